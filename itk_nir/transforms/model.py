"""Transforms as plain data: a matrix, a displacement grid, and a chain of them.

Every transform maps a **fixed** physical point to a **moving** physical point (LPS mm), which is what ITK needs to
resample the moving image on the fixed grid; the inverse maps back. A `CompositeTransform` lists its steps in the order in which
they meet a fixed point, so ``chain.map(p) = steps[-1](... steps[0](p))``. (ITK's composite lists them the other way
round: the one added last is applied first.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry

FloatArray = NDArray[np.float64]
VectorArray = NDArray[np.float32]

# Points that are mapped in one go: small enough for the intermediate arrays to stay in the processor's cache.
_CHUNK = 1 << 17


class _Axis(NamedTuple):
    """For every position along one axis: its two neighbours on another grid, the weight of the upper, 1 if inside."""

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: VectorArray
    inside: VectorArray


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """An affine map of physical points, ``q = M p + t``.

    Parameters
    ----------
    matrix : ``(d + 1, d + 1)`` homogeneous matrix ``[[M, t], [0, 1]]``, LPS mm → LPS mm.

    Raises
    ------
    InputError : a matrix of another shape, with values that are not finite, with a last row that is not
        ``(0, ..., 0, 1)``, or that flattens space.
    """

    matrix: FloatArray

    def __post_init__(self) -> None:
        m: FloatArray = np.array(self.matrix, dtype=np.float64)
        if m.shape not in ((3, 3), (4, 4)):
            raise InputError(f"a linear transform is a 3x3 (2D) or 4x4 (3D) homogeneous matrix, got shape {m.shape}")
        last = np.eye(len(m))[-1]
        if not np.all(np.isfinite(m)) or not np.allclose(m[-1], last, atol=1e-9):
            raise InputError(f"a linear transform needs finite values and the last row {last}, got {m.tolist()}")
        if abs(np.linalg.det(m)) < 1e-12:
            raise InputError(f"a linear transform must be invertible, got the matrix {m.tolist()}")
        m.flags.writeable = False
        object.__setattr__(self, "matrix", m)

    @classmethod
    def identity(cls, dimension: int) -> LinearTransform:
        return cls(np.eye(dimension + 1))

    @classmethod
    def make(cls, matrix: ArrayLike, translation: ArrayLike, centre: ArrayLike | None = None) -> LinearTransform:
        """From ITK's three parts: ``q = M (p - c) + c + t``."""
        linear = np.asarray(matrix, float)
        c = np.zeros(len(linear)) if centre is None else np.asarray(centre, float)
        m = np.eye(len(linear) + 1)
        m[:-1, :-1] = linear
        m[:-1, -1] = np.asarray(translation, float) + c - linear @ c
        return cls(m)

    @property
    def dimension(self) -> int:
        return len(self.matrix) - 1

    @property
    def is_identity(self) -> bool:
        return bool(np.array_equal(self.matrix, np.eye(len(self.matrix))))

    def map(self, points: ArrayLike) -> FloatArray:
        """``(..., d)`` physical points → ``(..., d)``."""
        p = np.asarray(points, float)
        # One flat product and one pass an axis: four times as fast as `p @ M.T + t` on a grid of points.
        out = np.ascontiguousarray(p.reshape(-1, self.dimension)) @ self.matrix[:-1, :-1].T
        for axis, shift in enumerate(self.matrix[:-1, -1]):
            out[:, axis] += shift
        return out.reshape(p.shape)

    def inverse(self) -> LinearTransform:
        """The exact inverse, moving → fixed."""
        return LinearTransform(np.asarray(np.linalg.inv(self.matrix), np.float64))


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement at every voxel of a grid, ``q = p + u(p)``, read exactly as ITK's DisplacementFieldTransform.

    Between the voxel centres the displacement is interpolated linearly. In the half voxel around the outermost
    centres it is that of the nearest point of the grid; beyond, it is zero.

    Parameters
    ----------
    geometry : the grid, in the space that the points come from.
    vectors : ``shape + (d,)``, last axis ``(x, y[, z])``, LPS mm; kept as contiguous float32.

    Raises
    ------
    InputError : a shape that does not fit the grid, or values that are not finite.
    """

    geometry: Geometry
    vectors: VectorArray

    def __post_init__(self) -> None:
        wanted = (*self.geometry.shape, self.geometry.dimension)
        if np.shape(self.vectors) != wanted:
            raise InputError(
                f"a displacement field on a grid of size {self.geometry.size} has shape {wanted}, "
                f"got {np.shape(self.vectors)}"
            )
        vectors = np.ascontiguousarray(self.vectors, dtype=np.float32)
        # One NaN or infinity makes the sum non-finite, and a sum needs no second array of the same size.
        if not np.isfinite(vectors.sum(dtype=np.float64)):
            raise InputError("a displacement field must be finite, got NaN or infinite vectors")
        object.__setattr__(self, "vectors", vectors)

    @property
    def dimension(self) -> int:
        return self.geometry.dimension

    def displacement(self, points: ArrayLike) -> FloatArray:
        """``(..., d)`` physical points → displacement ``(..., d)``, mm."""
        p = np.asarray(points, float)
        flat = p.reshape(-1, self.dimension)
        out = np.empty_like(flat)
        for start in range(0, len(flat), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = interpolate_vectors(self.vectors, self.geometry.physical_to_index(flat[part]))
        return out.reshape(p.shape)

    def map(self, points: ArrayLike) -> FloatArray:
        """``(..., d)`` physical points → ``(..., d)``."""
        return np.asarray(points, float) + self.displacement(points)

    def inverse(
        self, geometry: Geometry | None = None, *, tolerance: float = 0.01, iterations: int = 100
    ) -> DisplacementField:
        """The inverse displacement on a grid, by fixed-point iteration ``v ← -u(p + v)`` (Chen et al. 2008).

        Parameters
        ----------
        geometry : grid of the inverse; the field's own when left out.
        tolerance : wanted ``|v + u(p + v)|``, in voxels of the field's finest axis.
        iterations : at most. Steps that do not bring a point nearer are halved, so folds do not make it diverge.

        Warns
        -----
        UserWarning : points that were not inverted to `tolerance`; they keep the best value that was found. Points
            whose inverse lies outside the field's grid are not counted: the field jumps to zero there, so none exists.
        """
        grid = self.geometry if geometry is None else geometry
        limit = tolerance * min(self.geometry.spacing)
        out = np.zeros((int(np.prod(grid.size)), self.dimension), np.float32)
        failed = 0
        worst = 0.0
        for part, p in _grid_slabs(grid):
            p = p.reshape(-1, self.dimension)
            v = np.zeros_like(p)
            best = v.copy()
            residual = np.full(len(p), np.inf)
            step = np.ones(len(p))
            open_ = np.arange(len(p))
            for _ in range(iterations):
                r = v[open_] + self.displacement(p[open_] + v[open_])
                size = np.linalg.norm(r, axis=-1)
                better = size < residual[open_]
                step[open_] = np.where(better, step[open_], step[open_] / 2)
                best[open_[better]] = v[open_[better]]
                residual[open_[better]] = size[better]
                v[open_] -= step[open_, None] * r
                open_ = open_[size > limit]
                if not len(open_):
                    break
            if len(open_):
                inner = self.geometry.physical_to_index(p[open_] + best[open_])
                last = np.asarray(self.geometry.size) - 1
                left = residual[open_][np.all((inner >= 0) & (inner <= last), axis=-1)]
                failed += len(left)
                worst = max(worst, float(left.max(initial=0.0)))
            row = int(np.prod(grid.shape[1:]))
            out[part.start * row : part.stop * row] = best
        if failed:
            warnings.warn(
                f"{failed} of {len(out)} points of a displacement field could not be inverted to {limit:.3g} mm "
                f"(worst {worst:.3g} mm): it probably folds there",
                stacklevel=2,
            )
        return DisplacementField(grid, out.reshape(*grid.shape, self.dimension))

    def rows_on(self, geometry: Geometry, start: int, stop: int) -> FloatArray | VectorArray | None:
        """Displacement on rows `start` to `stop` of the outermost array axis of another grid.

        Only for grids whose axes run along this field's axes, where linear interpolation falls apart into one cheap
        pass an axis; ``None`` for any other grid.
        """
        if geometry == self.geometry:
            return self.vectors[start:stop]
        axes = self._axes(geometry)
        if axes is None:
            return None
        outer, *inner = axes
        rows = slice(start, stop)
        low, high = int(outer.lower[rows].min()), int(outer.upper[rows].max()) + 1
        outer = _Axis(outer.lower[rows] - low, outer.upper[rows] - low, outer.weight[rows], outer.inside[rows])
        block = self.vectors[low:high]
        # The inner axes first: `block` then has as few rows as the field's own grid.
        for number, axis in enumerate(inner, start=1):
            block = _lerp(block, axis, number)
        return _lerp(block, outer, 0)

    def _axes(self, geometry: Geometry) -> list[_Axis] | None:
        """How each array axis of `geometry` falls on this grid; ``None`` where the axes differ."""
        to_here = self.geometry.inverse_matrix @ geometry.matrix
        linear, offset = to_here[:-1, :-1], to_here[:-1, -1]
        off_axis = np.abs(linear - np.diag(np.diag(linear))) @ np.asarray(geometry.size, float)
        if off_axis.max() > 1e-6:
            return None
        out = []
        for axis in reversed(range(self.dimension)):
            index = offset[axis] + linear[axis, axis] * np.arange(geometry.size[axis])
            n = self.geometry.size[axis]
            # A ten-millionth of a voxel of rounding must not push the rim of an equal grid outside.
            inside = (index >= -0.5 - 1e-7) & (index <= n - 0.5 + 1e-7)
            index = np.clip(index, 0, n - 1)
            lower = np.minimum(np.floor(index + 1e-7).astype(np.intp), n - 1)
            weight = np.maximum(index - lower, 0)
            upper = np.minimum(lower + 1, n - 1)
            out.append(_Axis(lower, upper, weight.astype(np.float32), inside.astype(np.float32)))
        return out


Step: TypeAlias = "LinearTransform | DisplacementField"


@dataclass(frozen=True, eq=False)
class CompositeTransform:
    """Steps in the order in which they meet a fixed point.

    Parameters
    ----------
    transforms : applied first to last, fixed → moving.
    inverse_transforms : applied first to last, moving → fixed; ``None`` where the inverse has not been computed.

    Raises
    ------
    InputError : no step, or steps of unlike dimension.
    """

    transforms: tuple[Step, ...]
    inverse_transforms: tuple[Step, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        if self.inverse_transforms is not None:
            object.__setattr__(self, "inverse_transforms", tuple(self.inverse_transforms))
        if not self.transforms:
            raise InputError("a chain needs at least one step (LinearTransform.identity(d) for no change)")
        dimensions = {s.dimension for s in (*self.transforms, *(self.inverse_transforms or ()))}
        if len(dimensions) > 1:
            raise InputError(f"the steps of a chain must have one dimension, got {sorted(dimensions)}")

    @property
    def dimension(self) -> int:
        return self.transforms[0].dimension

    @property
    def fields(self) -> tuple[DisplacementField, ...]:
        """The steps that are displacement fields."""
        return tuple(s for s in self.transforms if isinstance(s, DisplacementField))

    @property
    def is_linear(self) -> bool:
        return not self.fields

    @property
    def is_identity(self) -> bool:
        return all(isinstance(s, LinearTransform) and s.is_identity for s in self.transforms)

    def map(self, points: ArrayLike) -> FloatArray:
        """``(..., d)`` fixed points → ``(..., d)`` moving points, LPS mm."""
        p = np.asarray(points, float)
        if p.shape[-1:] != (self.dimension,):
            raise InputError(f"{self.dimension}D points have shape (..., {self.dimension}), got {p.shape}")
        for step in self.transforms:
            p = step.map(p)
        return p

    @cached_property
    def _inverse(self) -> CompositeTransform:
        if self.inverse_transforms is not None:
            return CompositeTransform(self.inverse_transforms, self.transforms)
        return CompositeTransform(tuple(step.inverse() for step in reversed(self.transforms)), self.transforms)

    def inverse(self) -> CompositeTransform:
        """The chain moving → fixed: `inverse_transforms` if there are any, else every step inverted (once, then kept)."""
        return self._inverse

    def simplified(self) -> CompositeTransform:
        """The same maps with neighbouring linear steps multiplied into one, and identities dropped."""
        inverse = None if self.inverse_transforms is None else _merge(self.inverse_transforms)
        return CompositeTransform(_merge(self.transforms), inverse)

    def rows(self, geometry: Geometry) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
        """The map of a grid's voxel centres, a few rows at a time, so that no full-size float64 array is needed.

        Yields
        ------
        part : rows of the outermost array axis.
        points : their physical positions, ``(rows, [H,] W, d)``, LPS mm.
        mapped : where the chain takes them, the same shape.
        """
        for part, points in _grid_slabs(geometry):
            first, *rest = self.transforms
            mapped = None
            if isinstance(first, DisplacementField):
                shift = first.rows_on(geometry, part.start, part.stop)
                mapped = None if shift is None else points + shift
            if mapped is None:
                mapped = first.map(points)
            for step in rest:
                mapped = step.map(mapped)
            yield part, points, mapped

    def displacement_on(self, geometry: Geometry) -> DisplacementField:
        """The whole chain as one displacement field on a grid of fixed space: exact at the voxel centres."""
        if geometry.dimension != self.dimension:
            raise InputError(f"a {self.dimension}D transform has no displacement on a {geometry.dimension}D grid")
        out = np.empty((*geometry.shape, self.dimension), np.float32)
        for part, points, mapped in self.rows(geometry):
            np.subtract(mapped, points, out=out[part], casting="same_kind")
        return DisplacementField(geometry, out)


def compose(*transforms: CompositeTransform | Step) -> CompositeTransform:
    """One chain that applies the given transforms first to last.

    The inverse is kept where every part has one (a linear transform always has).

    Raises
    ------
    InputError : nothing given, or unlike dimensions.
    """
    chains = [t if isinstance(t, CompositeTransform) else CompositeTransform((t,)) for t in transforms]
    steps = tuple(s for c in chains for s in c.transforms)
    inverse: list[Step] = []
    for c in reversed(chains):
        if c.inverse_transforms is None and not c.is_linear:
            return CompositeTransform(steps).simplified()
        inverse.extend(c.inverse().transforms)
    return CompositeTransform(steps, tuple(inverse)).simplified()


def interpolate_vectors(vectors: VectorArray, index: FloatArray) -> FloatArray:
    """Linear interpolation of ``shape + (d,)`` vectors at ``(N, d)`` continuous indices ``(x, y[, z])`` → ``(N, d)``.

    Zero outside the grid (more than half a voxel from the outermost centres), as ITK's displacement transform.
    """
    d = vectors.shape[-1]
    size = vectors.shape[-2::-1]
    inside = np.ones(len(index), bool)
    ends = []  # per axis: flat number of the lower and upper neighbour, and their weights
    stride = 1
    for axis, n in enumerate(size):
        position = index[:, axis]
        inside &= (position >= -0.5) & (position < n - 0.5)
        position = np.clip(np.nan_to_num(position), 0, n - 1)
        lower = np.minimum(position.astype(np.intp), max(n - 2, 0))
        weight = position - lower
        ends.append(((lower * stride, 1 - weight), ((lower + min(n - 1, 1)) * stride, weight)))
        stride *= n
    flat = vectors.reshape(-1, d)
    out = np.zeros((len(index), d))
    for corner in product(*ends):
        at, w = corner[0]
        for other_at, other_w in corner[1:]:
            at, w = at + other_at, w * other_w
        out += w[:, None] * np.take(flat, at, axis=0)
    out[~inside] = 0.0
    return out


def _lerp(block: VectorArray, axis: _Axis, number: int) -> VectorArray:
    """Linear interpolation along array axis `number`."""
    before, after = block.shape[:number], block.shape[number + 1 :]
    lines = block.reshape(int(np.prod(before)), block.shape[number], -1)
    lower = np.take(lines, axis.lower, 1)
    out = np.take(lines, axis.upper, 1)
    out -= lower
    _scale(out, axis.weight)
    out += lower
    if not axis.inside.all():
        _scale(out, axis.inside)
    return out.reshape(*before, len(axis.lower), *after)


def _scale(lines: VectorArray, weights: VectorArray) -> None:
    """``lines[a, i, b] *= weights[i]`` in place; NumPy is slow in short inner loops, so few ``b`` are run together."""
    a, n, b = lines.shape
    if b < 16:
        lines.reshape(a, n * b)[...] *= np.repeat(weights, b)
    else:
        lines *= weights[:, None]


def _grid_slabs(geometry: Geometry) -> Iterator[tuple[slice, FloatArray]]:
    """Physical positions of the voxel centres, some rows of the outermost array axis at a time."""
    m = geometry.matrix
    d = geometry.dimension
    rows = max(1, _CHUNK // int(np.prod(geometry.shape[1:])))
    inner = np.zeros((*geometry.shape[1:], d)) + m[:-1, -1]
    for axis in range(d - 1):
        shape = [1] * d
        shape[d - 2 - axis] = -1
        inner = inner + np.arange(geometry.size[axis]).reshape(shape) * m[:-1, axis]
    outer = m[:-1, d - 1]
    for start in range(0, geometry.shape[0], rows):
        part = slice(start, min(start + rows, geometry.shape[0]))
        numbers = np.arange(part.start, part.stop).reshape(-1, *[1] * d)
        yield part, inner[None] + numbers * outer


def _merge(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    out: list[Step] = []
    for step in steps:
        if isinstance(step, LinearTransform) and out and isinstance(out[-1], LinearTransform):
            out[-1] = LinearTransform(step.matrix @ out[-1].matrix)
        else:
            out.append(step)
    kept = tuple(s for s in out if not (isinstance(s, LinearTransform) and s.is_identity))
    return kept or (LinearTransform.identity(steps[0].dimension),)

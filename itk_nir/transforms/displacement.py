"""Displacement fields: a vector at every voxel of a grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry, checked_points
from itk_nir.transforms.interpolation import (
    CHUNK,
    FloatArray,
    VectorArray,
    grid_slabs,
    interpolate_vectors,
    rows_on_grid,
)

#: What the faces of a grid may be moved outwards, in voxels, without a longer grid for the inverse.
NEGLIGIBLE = 0.05

#: Steps of Newton's method, and the distance of its differences in voxels of the finest axis.
_NEWTON_STEPS, _PROBE = 40, 0.05


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement at every voxel of a grid, ``q = p + u(p)``, read exactly as ITK's DisplacementFieldTransform.

    Between the voxel centres the displacement is interpolated linearly. In the half voxel around the outermost
    centres it is that of the nearest point of the grid; beyond, it is zero.

    Parameters
    ----------
    geometry : Geometry
        The grid, in the space that the points come from.
    vectors : numpy.ndarray
        ``geometry.shape + (d,)``, last axis ``(x, y[, z])``, LPS mm; kept as contiguous float32.

    Raises
    ------
    InputError
        Vectors of another shape, or that are not finite.

    Examples
    --------
    >>> grid = Geometry.make([3, 2], spacing=[10.0, 10.0])
    >>> vectors = np.zeros((2, 3, 2))
    >>> vectors[:, 1] = 4.0, 0.0        # the middle column moves along x
    >>> field = DisplacementField(grid, vectors)
    >>> field.map([[10.0, 0.0], [15.0, 5.0], [99.0, 0.0]]).tolist()
    [[14.0, 0.0], [17.0, 5.0], [99.0, 0.0]]
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
        # One NaN or infinity makes a sum non-finite, and a sum needs no second array of the same size. That of the
        # squares is the fastest; where it is beyond float32 the vectors may still be finite.
        flat = vectors.reshape(-1)
        with np.errstate(all="ignore"):
            finite = np.isfinite(np.dot(flat, flat))
        if not finite and not np.isfinite(vectors.sum(dtype=np.float64)):
            raise InputError("a displacement field must be finite, got NaN or infinite vectors")
        object.__setattr__(self, "vectors", vectors)

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return self.geometry.dimension

    def displacement(self, points: ArrayLike) -> FloatArray:
        """Give the displacement at physical points.

        Parameters
        ----------
        points : array_like
            ``(..., d)``, LPS mm.

        Returns
        -------
        numpy.ndarray
            ``(..., d)``, mm.

        Raises
        ------
        InputError
            Points of another dimension, or what is no finite real number.
        """
        return self._displacement(checked_points(points, self.dimension, rows=False))

    def _displacement(self, points: ArrayLike, continued: bool = False) -> FloatArray:
        """The displacement; beyond the grid zero, or that of the nearest point of the grid."""
        p = np.asarray(points, float)
        flat = p.reshape(-1, self.dimension)
        out = np.empty_like(flat)
        for start in range(0, len(flat), CHUNK):
            part = slice(start, start + CHUNK)
            index = self.geometry.physical_to_index(flat[part])
            if continued:
                index = np.clip(index, 0, np.asarray(self.geometry.size) - 1)
            out[part] = interpolate_vectors(self.vectors, index)
        return out.reshape(p.shape)

    def map(self, points: ArrayLike) -> FloatArray:
        """Map physical points.

        Parameters
        ----------
        points : array_like
            ``(..., d)``, LPS mm.

        Returns
        -------
        numpy.ndarray
            ``(..., d)``, LPS mm.

        Raises
        ------
        InputError
            Points of another dimension, or what is no finite real number.
        """
        p = checked_points(points, self.dimension, rows=False)
        return p + self._displacement(p)

    def inverse(
        self,
        geometry: Geometry | None = None,
        *,
        tolerance: float = 0.01,
        iterations: int = 100,
        continued: bool = False,
    ) -> DisplacementField:
        """Compute the inverse displacement on a grid: the fixed-point iteration ``v <- -u(p + v)``, then Newton's.

        Parameters
        ----------
        geometry : Geometry, optional
            Grid of the inverse; the field's own when left out.
        tolerance : float, default 0.01
            Wanted ``|v + u(p + v)|``, in voxels of the field's finest axis.
        iterations : int, default 100
            Of the fixed point, at most. Updates that do not bring a point nearer are halved, so folds do not make it
            diverge. It is slow where things are pressed together: Newton's method goes on there.
        continued : bool, default False
            Whether points outside the field's grid too get the inverse of the field continued by its nearest value:
            smooth up to the rim of what the field reaches (`reached`).

        Returns
        -------
        DisplacementField
            Moving -> fixed, if this field maps fixed -> moving.

        Warns
        -----
        UserWarning
            Points that were not inverted to `tolerance`, because the field folds there; they keep the best value that
            was found.

        Notes
        -----
        Every reader takes the field to be zero beyond its grid. A point outside that no point of the grid is taken to
        is its own inverse, therefore. A point of the grid that none is taken to has no inverse; it gets that of the
        field continued beyond its grid by its nearest value, which leaves the inverse smooth.

        References
        ----------
        .. [1] Chen, M., Lu, W., Chen, Q., Ruchala, K. J., Olivera, G. H. (2008). A simple fixed-point approach to
           invert a deformation field. Medical Physics 35(1), 81-88.
        """
        grid = self.geometry if geometry is None else geometry
        limit = tolerance * min(self.geometry.spacing)
        out = np.zeros((int(np.prod(grid.size)), self.dimension), np.float32)
        failed = 0
        worst = 0.0
        for part, p in grid_slabs(grid):
            p = p.reshape(-1, self.dimension)
            v = np.zeros_like(p)
            best = v.copy()
            residual = np.full(len(p), np.inf)
            step = np.ones(len(p))
            open_ = np.arange(len(p))
            for _ in range(iterations):
                r = v[open_] + self._displacement(p[open_] + v[open_], continued=True)
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
                best[open_], residual[open_] = self._newton(p[open_], best[open_], residual[open_], limit)
                open_ = open_[residual[open_] > limit]
            found = self.geometry.contains(p + best)
            if not continued:
                best[~self.geometry.contains(p) & ~(found & (residual <= limit))] = 0.0
            left = residual[open_][(found & self.geometry.contains(p))[open_]]
            failed += len(left)
            worst = max(worst, float(left.max(initial=0.0)))
            row = int(np.prod(grid.shape[1:]))
            out[part.start * row : part.stop * row] = best
        if failed:
            warnings.warn(
                f"{failed} of {len(out)} points of a displacement field could not be inverted to {limit:.3g} mm "
                f"(worst {worst:.3g} mm): it folds there",
                stacklevel=2,
            )
        return DisplacementField(grid, out.reshape(*grid.shape, self.dimension))

    def reached(self) -> Geometry:
        """The grid, longer by as far as the field moves its faces outwards.

        The map of what lies within the grid lies within that of the faces, unless the field folds. A grid becomes at
        most twice as long at either end.

        Returns
        -------
        Geometry
            The field's own grid where no face is moved outwards by more than 0.05 voxel.
        """
        d = self.dimension
        along = self.geometry.rotation / np.asarray(self.geometry.spacing)
        before, after = [0] * d, [0] * d
        for axis, n in enumerate(self.geometry.size):
            for out, face, sign in ((before, 0, -1.0), (after, n - 1, 1.0)):
                moved = np.take(self.vectors, face, axis=d - 1 - axis) @ along[:, axis]
                most = float((sign * moved).max()) if n > 1 else 0.0
                if most > NEGLIGIBLE:  # a voxel more: positions are interpolated
                    out[axis] = min(math.ceil(most) + 1, n)
        size = [n + a + b for n, a, b in zip(self.geometry.size, before, after, strict=True)]
        return self.geometry.crop([-a for a in before], size)

    def _newton(
        self, p: FloatArray, v: FloatArray, residual: FloatArray, limit: float
    ) -> tuple[FloatArray, FloatArray]:
        """Newton's method for ``v + u(p + v) = 0``, steps halved that bring a point no nearer.

        Parameters
        ----------
        p, v : numpy.ndarray
            ``(n, d)``, points and the displacements to begin with, mm.
        residual : numpy.ndarray
            ``(n,)``, ``|v + u(p + v)|``, mm.
        limit : float
            What it shall be at most.

        Returns
        -------
        v, residual : numpy.ndarray
            No worse than before.
        """
        d = self.dimension
        v, residual, share = v.copy(), residual.copy(), np.ones(len(p))
        probes = _PROBE * min(self.geometry.spacing) * np.eye(d)
        for _ in range(_NEWTON_STEPS):
            open_ = np.flatnonzero(residual > limit)
            if not len(open_):
                break
            q = p[open_] + v[open_]
            sides = [self._displacement(q[:, None] + sign * probes, continued=True) for sign in (1, -1)]
            # Row k of a point's difference is the derivative along axis k of space.
            jacobian = np.eye(d) + np.swapaxes(sides[0] - sides[1], 1, 2) / (2 * probes[0, 0])
            r = v[open_] + self._displacement(q, continued=True)
            step = np.einsum("nij,nj->ni", np.linalg.pinv(jacobian), r)
            tried = v[open_] - share[open_, None] * step
            size = np.linalg.norm(tried + self._displacement(p[open_] + tried, continued=True), axis=-1)
            better = size < residual[open_]
            v[open_[better]], residual[open_[better]] = tried[better], size[better]
            share[open_] = np.where(better, np.minimum(1, 2 * share[open_]), share[open_] / 2)
        return v, residual

    def rows_on(self, geometry: Geometry, start: int, stop: int) -> VectorArray | None:
        """Interpolate the displacement on rows of another grid, one cheap pass an axis.

        Parameters
        ----------
        geometry : Geometry
            The other grid.
        start, stop : int
            Rows of its outermost array axis.

        Returns
        -------
        numpy.ndarray or None
            ``(stop - start, [H,] W, d)``, mm. None unless the other grid's axes run along this field's, where linear
            interpolation falls apart into its axes.
        """
        if geometry == self.geometry:
            return self.vectors[start:stop]
        return rows_on_grid(self.vectors, self.geometry, geometry, start, stop)


def on_one_grid(
    field: DisplacementField, inverse: DisplacementField
) -> tuple[DisplacementField, DisplacementField] | None:
    """A field and its inverse on one grid, which is what ITK keeps.

    Where the grid of the inverse is that of the field, continued by whole voxels, the field goes on beyond its own as
    at the nearest voxel.

    Parameters
    ----------
    field : DisplacementField
        Fixed -> moving.
    inverse : DisplacementField
        Moving -> fixed.

    Returns
    -------
    tuple of DisplacementField, or None
        None where the two grids do not go together.
    """
    ours, theirs = field.geometry, inverse.geometry
    if ours.same_grid(theirs):
        return field, inverse
    start = ours.physical_to_index(theirs.index_to_physical(np.zeros(ours.dimension)))
    before = -np.rint(start).astype(int)
    after = np.asarray(theirs.size) - np.asarray(ours.size) - before
    if min(*before, *after) < 0 or not theirs.same_grid(ours.crop((-before).tolist(), theirs.size)):
        return None
    longer = np.pad(field.vectors, [*zip(before[::-1], after[::-1], strict=True), (0, 0)], mode="edge")
    return DisplacementField(theirs, longer), inverse

"""Linear interpolation of vectors on grids, and walks over the voxel centres of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry

FloatArray = NDArray[np.float64]
VectorArray = NDArray[np.float32]

#: Points that are mapped in one go: small enough for the intermediate arrays to stay in the processor's cache.
CHUNK = 1 << 17


class _Axis(NamedTuple):
    """For every position along one axis: its two neighbours on another grid, the weight of the upper, 1 if inside."""

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    weight: VectorArray
    inside: VectorArray


def interpolate_vectors(vectors: NDArray[np.floating], index: FloatArray) -> FloatArray:
    """Interpolate vectors linearly.

    Parameters
    ----------
    vectors : numpy.ndarray
        ``shape + (k,)``, vectors of k components on a grid.
    index : numpy.ndarray
        ``(N, d)`` continuous indices ``(x, y[, z])``.

    Returns
    -------
    numpy.ndarray
        ``(N, k)``; zero outside the grid (more than half a voxel from the outermost centres), as ITK's displacement
        transform has it.
    """
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
    flat = vectors.reshape(-1, vectors.shape[-1])
    out = np.zeros((len(index), flat.shape[-1]))
    for corner in product(*ends):
        at, w = corner[0]
        for other_at, other_w in corner[1:]:
            at, w = at + other_at, w * other_w
        out += w[:, None] * np.take(flat, at, axis=0)
    out[~inside] = 0.0
    return out


def rows_on_grid(vectors: VectorArray, source: Geometry, target: Geometry, start: int, stop: int) -> VectorArray | None:
    """Interpolate vectors on rows of another grid, one cheap pass an axis.

    Parameters
    ----------
    vectors : numpy.ndarray
        ``source.shape + (k,)``.
    source, target : Geometry
        Their grid and the other.
    start, stop : int
        Rows of the outermost array axis of `target`.

    Returns
    -------
    numpy.ndarray or None
        ``(stop - start, [H,] W, k)``. None unless the axes of the two grids run along each other.
    """
    axes = _axes(source, target)
    if axes is None:
        return None
    outer, *inner = axes
    rows = slice(start, stop)
    low, high = int(outer.lower[rows].min()), int(outer.upper[rows].max()) + 1
    outer = _Axis(outer.lower[rows] - low, outer.upper[rows] - low, outer.weight[rows], outer.inside[rows])
    block = vectors[low:high]
    # The inner axes first: `block` then has as few rows as the source.
    for number, axis in enumerate(inner, start=1):
        block = _lerp(block, axis, number)
    return _lerp(block, outer, 0)


def grid_slabs(geometry: Geometry) -> Iterator[tuple[slice, FloatArray]]:
    """Walk over the voxel centres of a grid, some rows at a time.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Yields
    ------
    part : slice
        Rows of the outermost array axis.
    points : numpy.ndarray
        Their physical positions, ``(rows, [H,] W, d)``, LPS mm.
    """
    m = geometry.matrix
    d = geometry.dimension
    rows = max(1, CHUNK // int(np.prod(geometry.shape[1:])))
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


def _axes(source: Geometry, target: Geometry) -> list[_Axis] | None:
    """How each array axis of `target` falls on `source`; None where the axes differ."""
    to_source = source.inverse_matrix @ target.matrix
    linear, offset = to_source[:-1, :-1], to_source[:-1, -1]
    off_axis = np.abs(linear - np.diag(np.diag(linear))) @ np.asarray(target.size, float)
    if off_axis.max() > 1e-6:
        return None
    out = []
    for axis in reversed(range(source.dimension)):
        index = offset[axis] + linear[axis, axis] * np.arange(target.size[axis])
        n = source.size[axis]
        # A ten-millionth of a voxel of rounding must not push the rim of an equal grid outside.
        inside = (index >= -0.5 - 1e-7) & (index <= n - 0.5 + 1e-7)
        index = np.clip(index, 0, n - 1)
        lower = np.minimum(np.floor(index + 1e-7).astype(np.intp), n - 1)
        weight = np.maximum(index - lower, 0)
        upper = np.minimum(lower + 1, n - 1)
        out.append(_Axis(lower, upper, weight.astype(np.float32), inside.astype(np.float32)))
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

"""The part of the fixed grid a registration works on, its resolution levels, and the spline lattices over it.

Everything separable is a banded matrix an axis (`Banded`): Gaussian smoothing with downsampling, cubic B-spline
evaluation from a lattice to voxels, refinement from one lattice to the next. The transpose of each is its gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from itk_nir.caching import cached_property

F64 = NDArray[np.float64]

#: First and last position of a block along ``[x, y, z]``, in voxels of the fixed image.
Ends: TypeAlias = list[tuple[float, float]]


@dataclass(frozen=True)
class Banded:
    """A banded matrix: row ``i`` holds `weights[i]` from column `start[i]` on.

    Parameters
    ----------
    start : ndarray
        ``(n_out,)`` int32.
    weights : ndarray
        ``(n_out, width)`` float32.
    n_in : int
        Number of columns.
    """

    start: NDArray[np.int32]
    weights: NDArray[np.float32]
    n_in: int

    @property
    def n_out(self) -> int:
        """Number of rows."""
        return len(self.start)

    def scaled(self, factors: F64) -> Banded:
        """Every row times a factor of its own.

        Parameters
        ----------
        factors : ndarray
            ``(n_out,)``.

        Returns
        -------
        Banded
            The same matrix where all factors are 1.
        """
        if (factors == 1).all():
            return self
        return Banded(self.start, self.weights * factors[:, None].astype(np.float32), self.n_in)

    def dense(self) -> F64:
        """The matrix with its zeros.

        Returns
        -------
        ndarray
            ``(n_out, n_in)`` float64.
        """
        m = np.zeros((self.n_out, self.n_in))
        for i, s in enumerate(self.start):
            m[i, s : s + self.weights.shape[1]] += self.weights[i]
        return m

    @cached_property
    def transpose(self) -> Banded:
        """The transposed matrix.

        Returns
        -------
        Banded
            ``(n_in, n_out)``.
        """
        row, tap = np.nonzero(self.weights)
        column = self.start[row] + tap
        first, last = np.full(self.n_in, self.n_out), np.full(self.n_in, -1)
        np.minimum.at(first, column, row)
        np.maximum.at(last, column, row)
        first = np.where(last < 0, 0, first)
        taps = int(np.where(last < 0, 0, last - first).max()) + 1
        start = np.minimum(first, self.n_out - taps).astype(np.int32)
        weights = np.zeros((self.n_in, taps), np.float32)
        weights[column, row - start[column]] = self.weights[row, tap]
        return Banded(start, weights, self.n_out)


def banded_from_dense(matrix: F64) -> Banded:
    """The narrowest `Banded` that holds a dense matrix.

    Parameters
    ----------
    matrix : ndarray
        ``(n_out, n_in)``.

    Returns
    -------
    Banded
    """
    return _banded(np.zeros(len(matrix), np.int64), matrix, matrix.shape[1])


def _banded(column: NDArray[np.int64], window: F64, n_in: int) -> Banded:
    """The narrowest `Banded` of rows that are zero but for a window from some `column` on, which may reach beyond."""
    width = window.shape[1]
    columns = column[:, None] + np.arange(width)
    window = np.where((columns >= 0) & (columns < n_in), window, 0.0)
    used = window != 0
    first = np.where(used.any(1), column + used.argmax(1), 0)
    last = np.where(used.any(1), column + width - 1 - used[:, ::-1].argmax(1), 0)
    taps = int((last - first).max()) + 1
    start = np.minimum(first, n_in - taps).astype(np.int32)
    at = start[:, None] + np.arange(taps) - column[:, None]
    weights = np.take_along_axis(window, np.clip(at, 0, width - 1), 1)
    return Banded(start, np.where((at >= 0) & (at < width), weights, 0.0).astype(np.float32), n_in)


def cubic(t: F64) -> F64:
    """The cubic B-spline kernel at distance ``t`` (in knots).

    Parameters
    ----------
    t : ndarray
        Distances from the centre of the spline.

    Returns
    -------
    ndarray
        Like `t`.
    """
    t = np.abs(t)
    out: F64 = np.where(t < 1, 2 / 3 - t * t + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0.0))
    return out


def gaussian_matrix(n: int, positions: F64, sigma: float) -> Banded:
    """Values at `positions` (in voxels) of an axis of `n` voxels smoothed by a Gaussian of `sigma` voxels.

    The kernel is the Gaussian convolved with linear interpolation, cut at 3 sigma; rows sum to one, and positions
    beyond the axis take the value of its end.

    Parameters
    ----------
    n : int
        Voxels of the axis.
    positions : ndarray
        ``(m,)``, in voxels.
    sigma : float
        In voxels.

    Returns
    -------
    Banded
        ``(m, n)``.
    """
    return _gaussian_matrix(n, np.clip(np.asarray(positions, float), 0, n - 1).tobytes(), float(sigma))


@lru_cache(maxsize=64)
def _gaussian_matrix(n: int, positions: bytes, sigma: float) -> Banded:
    # Both images are seen at each level by every stage: the same matrices, and on a card what was brought there.
    at = np.frombuffer(positions)
    reach = max(1.0, 3 * sigma) if sigma > 0.1 else 1.0
    column = np.floor(at - reach).astype(np.int64)
    x = column[:, None] + np.arange(math.ceil(2 * reach) + 2)
    distance = at[:, None] - x
    if sigma > 0.1:
        m = np.exp(-0.5 * (distance / sigma) ** 2) * (np.abs(distance) <= reach)
    else:
        m = np.maximum(0.0, 1 - np.abs(distance))
    m *= (x >= 0) & (x < n)
    return _banded(column, m / m.sum(1, keepdims=True), n)


@dataclass(frozen=True)
class Axis:
    """The control points of a cubic B-spline lattice along one axis, in voxels of the fixed image.

    Parameters
    ----------
    start : float
        Position of the first control point.
    spacing : float
        Distance between two.
    count : int
        How many there are; 1 along z of a 2D image.
    """

    start: float
    spacing: float
    count: int

    @property
    def positions(self) -> F64:
        """Positions of the control points, ``(count,)``, in voxels of the fixed image."""
        return self.start + self.spacing * np.arange(self.count, dtype=float)

    def evaluate(self, positions: F64) -> Banded:
        """The matrix from coefficients to values of the spline; zero beyond the lattice.

        Parameters
        ----------
        positions : ndarray
            ``(m,)``, in voxels of the fixed image.

        Returns
        -------
        Banded
            ``(m, count)``.
        """
        return _evaluated(self, np.asarray(positions, float).tobytes())

    def refined(self) -> Axis:
        """The lattice of half the spacing that holds every spline of this one exactly (see `refine`).

        Returns
        -------
        Axis
        """
        if self.count == 1:
            return self
        return Axis(self.start, self.spacing / 2, 2 * self.count - 1)

    def refine(self) -> Banded:
        """The matrix from coefficients here to those of the same spline on `refined`.

        It is the two-scale relation of the B-spline.

        Returns
        -------
        Banded
            ``(refined().count, count)``.
        """
        return _refinement(self.count)


@lru_cache(maxsize=16)
def _refinement(count: int) -> Banded:
    if count == 1:
        return Banded(np.zeros(1, np.int32), np.ones((1, 1), np.float32), 1)
    m = np.zeros((2 * count - 1, count))
    for j in range(count):
        for k, w in zip(range(-2, 3), (1 / 8, 1 / 2, 3 / 4, 1 / 2, 1 / 8), strict=True):
            if 0 <= 2 * j + k < len(m):
                m[2 * j + k, j] += w
    return banded_from_dense(m)


@lru_cache(maxsize=64)
def _evaluated(axis: Axis, positions: bytes) -> Banded:
    at = np.frombuffer(positions)
    if axis.count == 1:
        return Banded(np.zeros(len(at), np.int32), np.ones((len(at), 1), np.float32), 1)
    column = np.floor((at - axis.start) / axis.spacing).astype(np.int64) - 2
    knots = axis.start + axis.spacing * (column[:, None] + np.arange(6))
    return _banded(column, cubic((at[:, None] - knots) / axis.spacing), axis.count)


@dataclass(frozen=True)
class Domain:
    """The block of the fixed grid that is worked on.

    A 2D image has size 1 along z.

    Parameters
    ----------
    start, size : tuple of int
        ``(x, y, z)``, in voxels.
    """

    start: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def ends(self) -> Ends:
        """First and last voxel along each axis, ``[x, y, z]``."""
        return [(float(start), float(start + n - 1)) for start, n in zip(self.start, self.size, strict=True)]

    def level_positions(self, factors: tuple[int, int, int]) -> list[F64]:
        """Sample positions of a level in voxels of the fixed grid, an axis each: the centres of blocks of `factors`.

        Parameters
        ----------
        factors : tuple of int
            Voxels that make one of the level, ``(x, y, z)``.

        Returns
        -------
        list of ndarray
            ``[x, y, z]``.
        """
        out: list[F64] = []
        for start, size, f in zip(self.start, self.size, factors, strict=True):
            n = max(1, math.ceil(size / f))
            out.append(start + (size - 1) / 2 + (np.arange(n, dtype=np.float64) - (n - 1) / 2) * f)
        return out

    def lattice(self, spacing: tuple[float, float, float]) -> list[Axis]:
        """The lattice of a spacing over the domain.

        Every point of the domain has all four control points around it.

        Parameters
        ----------
        spacing : tuple of float
            In voxels, ``(x, y, z)``.

        Returns
        -------
        list of Axis
            ``[x, y, z]``.
        """
        axes = []
        for start, size, h in zip(self.start, self.size, spacing, strict=True):
            if size == 1:
                axes.append(Axis(float(start), float(h), 1))
                continue
            cells = max(1, math.ceil((size - 1) / h))
            middle = start + (size - 1) / 2
            axes.append(Axis(middle - h * (cells / 2 + 1), float(h), cells + 3))
        return axes


def shape_of(axes: list[Axis]) -> tuple[int, int, int]:
    """Array shape of a lattice.

    Parameters
    ----------
    axes : list of Axis
        ``[x, y, z]``.

    Returns
    -------
    tuple of int
        ``(z, y, x)``.
    """
    return axes[2].count, axes[1].count, axes[0].count

"""Affine maps of physical space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import checked_points

FloatArray = NDArray[np.float64]

# A matrix whose smallest singular value is this share of its largest flattens space, as far as doubles can tell.
_SINGULAR = 1e-14
# How far from the origin a linear map is looked at, and farther where its translation is longer: so far that the
# rounding of the translation does not count. A power of two loses nothing in the division.
_FAR = float(1 << 20)


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """An affine map of physical points, ``q = M p + t``.

    Parameters
    ----------
    matrix : numpy.ndarray
        ``(d + 1, d + 1)`` homogeneous matrix ``[[M, t], [0, 1]]``, LPS mm -> LPS mm.

    Raises
    ------
    InputError
        A matrix of another shape, with values that are not finite, with a last row that is not ``(0, ..., 0, 1)``, or
        that flattens space.

    Examples
    --------
    >>> shift = LinearTransform.make([[0, -1], [1, 0]], translation=[5, 0], centre=[10, 0])
    >>> shift.map([[11.0, 0.0]]).tolist()
    [[15.0, 1.0]]
    >>> shift.inverse().map([[15.0, 1.0]]).tolist()
    [[11.0, 0.0]]
    """

    matrix: FloatArray

    def __post_init__(self) -> None:
        m: FloatArray = np.array(self.matrix, dtype=np.float64)
        if m.shape not in ((3, 3), (4, 4)):
            raise InputError(f"a linear transform is a 3x3 (2D) or 4x4 (3D) homogeneous matrix, got shape {m.shape}")
        last = np.eye(len(m))[-1]
        if not np.all(np.isfinite(m)) or not np.allclose(m[-1], last, atol=1e-9):
            raise InputError(f"a linear transform needs finite values and the last row {last}, got {m.tolist()}")
        sizes = np.linalg.svd(m[:-1, :-1], compute_uv=False)
        if sizes[-1] <= _SINGULAR * sizes[0]:
            raise InputError(f"a linear transform must be invertible, got the matrix {m.tolist()}")
        m.flags.writeable = False
        object.__setattr__(self, "matrix", m)

    @classmethod
    def identity(cls, dimension: int) -> LinearTransform:
        """Give the map that leaves every point of 2D or 3D space where it is.

        Parameters
        ----------
        dimension : int
            2 or 3.

        Returns
        -------
        LinearTransform
        """
        return cls(np.eye(dimension + 1))

    @classmethod
    def make(cls, matrix: ArrayLike, translation: ArrayLike, centre: ArrayLike | None = None) -> LinearTransform:
        """Make a map of ITK's three parts, ``q = M (p - c) + c + t``.

        Parameters
        ----------
        matrix : array_like
            ``M``, ``(d, d)``.
        translation : array_like
            ``t``, ``(d,)``, mm.
        centre : array_like, optional
            ``c``, ``(d,)``, LPS mm; the origin of physical space when left out.

        Returns
        -------
        LinearTransform
            The map.
        """
        linear = np.asarray(matrix, float)
        c = np.zeros(len(linear)) if centre is None else np.asarray(centre, float)
        m = np.eye(len(linear) + 1)
        m[:-1, :-1] = linear
        m[:-1, -1] = np.asarray(translation, float) + c - linear @ c
        return cls(m)

    @classmethod
    def of_map(cls, function: Callable[[list[float]], Sequence[float]], dimension: int) -> LinearTransform:
        """Find the map that any function is which is known to be linear.

        Parameters
        ----------
        function : callable
            ``(d,)`` physical point -> ``(d,)``, such as ``TransformPoint`` of a transform of ITK's.
        dimension : {2, 3}
            ``d``.

        Returns
        -------
        LinearTransform
            The same map.

        Raises
        ------
        InputError
            The function is not linear, though it may say so, or it flattens space.
        """
        origin = np.array(function([0.0] * dimension), float)
        far = max(_FAR, 2.0 ** np.ceil(np.log2(np.abs(origin).max(initial=1.0))))
        ends = np.array([function(row.tolist()) for row in np.eye(dimension) * far], float) - origin
        # ITK's AzimuthElevationToCartesianTransform inherits from the affine one, and with that its word.
        apart = np.abs(ends.sum(axis=0) + origin - function([far] * dimension))
        if np.any(apart > 1e-6 * max(far, np.abs(ends).max())):
            raise InputError("transform: says that it is linear, but is not; make a displacement field of it")
        return cls.make(ends.T / far, origin)

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.matrix) - 1

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every point where it is, to the last bit."""
        return bool(np.array_equal(self.matrix, np.eye(len(self.matrix))))

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
        # One flat product and one pass an axis: four times as fast as `p @ M.T + t` on a grid of points.
        out = np.ascontiguousarray(p.reshape(-1, self.dimension)) @ self.matrix[:-1, :-1].T
        for axis, shift in enumerate(self.matrix[:-1, -1]):
            out[:, axis] += shift
        return out.reshape(p.shape)

    def about(self, centre: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Give ITK's parts of the map, ``q = M (p - c) + c + t``, for a centre.

        Parameters
        ----------
        centre : array_like
            ``c``, ``(d,)``, LPS mm.

        Returns
        -------
        matrix : numpy.ndarray
            ``M``, ``(d, d)``.
        translation : numpy.ndarray
            ``t``, ``(d,)``, mm: how far the centre moves.
        """
        c = np.asarray(centre, float)
        return self.matrix[:-1, :-1], self.map(c) - c

    def inverse(self) -> LinearTransform:
        """Give the exact inverse, moving -> fixed.

        Returns
        -------
        LinearTransform
        """
        return LinearTransform(np.asarray(np.linalg.inv(self.matrix), np.float64))

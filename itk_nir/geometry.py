"""The grid of an image in physical space, and the three frames every coordinate of the package lives in.

- *index*: continuous voxel index in ITK's order ``(x, y[, z])``; voxel centres are whole numbers.
- *physical*: LPS millimetres, ``p = origin + direction @ (spacing * index)``.
- *field*: what a coordinate network sees. Physical space rotated to the image axes, centred on the grid, and
  divided by **one** length for all axes (half the largest extent in mm), so that one frequency means one
  wavelength whatever the axis and the spacing: ``q = direction.T @ (p - centre) / half_extent``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.caching import cached_property
from itk_nir.errors import InputError, one_line

FloatArray = NDArray[np.float64]


def real_numbers(values: ArrayLike) -> FloatArray:
    """Values as float64, where they are real numbers: text and dates are not taken for some.

    Parameters
    ----------
    values : array_like
        What the caller gives.

    Returns
    -------
    ndarray
        A copy only where it has to be.

    Raises
    ------
    ValueError
        What is no array of real numbers.
    """
    try:
        found = np.asarray(values)
        if found.dtype.kind not in "biufO":
            raise ValueError(f"they are of type {found.dtype}")
        return np.asarray(found, float)
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(one_line(error)) from error


def checked_points(points: ArrayLike, dimension: int, *, rows: bool = True) -> FloatArray:
    """Points as numbers that can be mapped.

    Parameters
    ----------
    points : array_like
        What the caller gives.
    dimension : int
        2 or 3.
    rows : bool
        They are ``(N, d)``; else ``(..., d)``. An empty list is no points.

    Returns
    -------
    ndarray
        float64.

    Raises
    ------
    InputError
        Another shape, or what is no finite real number.
    """
    p = _rows(points, dimension, "N" if rows else "...")
    if rows and p.ndim != 2:
        raise InputError(f"points have shape (N, {dimension}), got {p.shape}")
    if not np.isfinite(p).all():
        count = int((~np.isfinite(p)).any(axis=-1).sum())
        raise InputError(f"{count} of the points have a coordinate that is NaN or infinite; leave them out")
    return p


def _rows(points: ArrayLike, dimension: int, leading: str = "...") -> FloatArray:
    """Points of any kind as float64 ``(..., d)``, none for an empty list; NaN may stand for what lies nowhere."""
    shape = f"({leading}, {dimension})"
    try:
        p = real_numbers(points)
    except ValueError as error:
        raise InputError(f"points are real numbers of shape {shape}, and these are not: {one_line(error)}") from error
    if p.shape == (0,):
        return p.reshape(0, dimension)
    if p.shape[-1:] != (dimension,):
        raise InputError(f"{dimension}D points have shape {shape}, got {p.shape}")
    return p


@dataclass(frozen=True)
class Geometry:
    """Size, spacing, origin and direction of a 2D or 3D grid, as ITK defines them.

    Parameters
    ----------
    size : tuple of int
        Voxels, in ``(x, y[, z])`` order (an array on this grid has the reversed shape, see `shape`).
    spacing : tuple of float
        mm, all above zero.
    origin : tuple of float
        LPS mm, position of the centre of voxel 0.
    direction : tuple of tuple of float
        d rows of d numbers; column ``j`` is the unit vector of index axis ``j`` in LPS.
    oriented : bool, default True
        Whether what the grid was read from says how the object lies. NIfTI files whose sform and qform codes are 0 and
        Analyze files do not, and some programs take them for mirrored. Grids are equal whatever this is.

    Raises
    ------
    ValueError
        Lengths that disagree, sizes or spacings that are not above zero, or a direction that is not orthonormal to
        1e-3 (left-handed is allowed).

    Examples
    --------
    >>> import itk_nir
    >>> grid = itk_nir.Geometry.make(size=(60, 72), spacing=(2.0, 2.0), origin=(-59.0, -71.0))
    >>> grid.shape
    (72, 60)
    >>> grid.index_to_physical([1, 0]).tolist()
    [-57.0, -71.0]
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[tuple[float, ...], ...]
    oriented: bool = field(default=True, compare=False, repr=False)

    @classmethod
    def make(
        cls,
        size: Sequence[int],
        spacing: ArrayLike | None = None,
        origin: ArrayLike | None = None,
        direction: ArrayLike | None = None,
    ) -> Geometry:
        """A geometry from any sequences; spacing 1, origin 0 and identity direction where left out.

        Parameters
        ----------
        size : sequence of int
            Voxels, ``(x, y[, z])``.
        spacing : array_like, optional
            ``(d,)`` mm; 1 where left out.
        origin : array_like, optional
            ``(d,)`` LPS mm; 0 where left out.
        direction : array_like, optional
            ``(d, d)``; identity where left out.

        Returns
        -------
        Geometry

        Raises
        ------
        ValueError
            As of the class.
        """
        d = len(size)
        spacing_ = np.ones(d) if spacing is None else np.asarray(spacing, float).ravel()
        origin_ = np.zeros(d) if origin is None else np.asarray(origin, float).ravel()
        direction_ = np.eye(d) if direction is None else np.asarray(direction, float).reshape(d, d)
        return cls(
            tuple(int(n) for n in size),
            tuple(float(s) for s in spacing_),
            tuple(float(o) for o in origin_),
            tuple(tuple(float(v) for v in row) for row in direction_),
        )

    def __post_init__(self) -> None:
        d = len(self.size)
        if d not in (2, 3):
            raise ValueError(f"a geometry has 2 or 3 axes, got {d} (size {self.size})")
        if len(self.spacing) != d or len(self.origin) != d or np.shape(self.direction) != (d, d):
            raise ValueError(
                f"size {self.size} needs {d} spacings, {d} origin values and a {d}x{d} direction, got spacing "
                f"{self.spacing}, origin {self.origin}, direction of shape {np.shape(self.direction)}"
            )
        if min(self.size) < 1 or not all(np.isfinite(self.spacing)) or min(self.spacing) <= 0:
            raise ValueError(f"size and spacing must be above zero, got {self.size} and {self.spacing}")
        if not np.all(np.isfinite(self.origin)):
            raise ValueError(f"origin must be finite, got {self.origin}")
        r = np.asarray(self.direction)
        if not np.all(np.isfinite(r)) or np.abs(r.T @ r - np.eye(d)).max() > 1e-3:
            raise ValueError(f"direction must be orthonormal, got {self.direction}")

    @property
    def dimension(self) -> int:
        """Number of axes, ``d``."""
        return len(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Array shape ``([D,] H, W)``: `size` reversed."""
        return self.size[::-1]

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel, mm³ (area, mm², in 2D)."""
        return float(np.prod(self.spacing))

    @cached_property
    def rotation(self) -> FloatArray:
        """The direction matrix ``(d, d)``."""
        return np.asarray(self.direction, float)

    @cached_property
    def matrix(self) -> FloatArray:
        """``(d + 1, d + 1)`` homogeneous matrix, index → physical."""
        m = np.eye(self.dimension + 1)
        m[:-1, :-1] = self.rotation * np.asarray(self.spacing)
        m[:-1, -1] = self.origin
        return m

    @cached_property
    def inverse_matrix(self) -> FloatArray:
        """``(d + 1, d + 1)`` homogeneous matrix, physical → index."""
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    @cached_property
    def centre(self) -> FloatArray:
        """Physical position of the middle of the grid, LPS mm."""
        return self.index_to_physical((np.asarray(self.size) - 1) / 2)

    @cached_property
    def half_extent(self) -> float:
        """Half the largest extent in mm (voxel edges counted): the one length of field coordinates."""
        return float(max(n * s for n, s in zip(self.size, self.spacing, strict=True)) / 2)

    def index_to_physical(self, index: ArrayLike) -> FloatArray:
        """Voxel indices as physical points.

        Parameters
        ----------
        index : array_like
            ``(..., d)`` continuous indices, ``(x, y[, z])``.

        Returns
        -------
        ndarray
            ``(..., d)`` LPS mm.
        """
        return _rows(index, self.dimension) @ self.matrix[:-1, :-1].T + self.matrix[:-1, -1]

    def physical_to_index(self, points: ArrayLike) -> FloatArray:
        """Physical points as voxel indices.

        Parameters
        ----------
        points : array_like
            ``(..., d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(..., d)`` continuous indices, ``(x, y[, z])``.
        """
        return _rows(points, self.dimension) @ self.inverse_matrix[:-1, :-1].T + self.inverse_matrix[:-1, -1]

    def physical_to_field(self, points: ArrayLike) -> FloatArray:
        """Physical points as field coordinates: along the image axes, one unit for all axes.

        Parameters
        ----------
        points : array_like
            ``(..., d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(..., d)`` field coordinates: 0 is the centre, and the largest extent (voxel edges counted) is -1 to 1.
        """
        return (_rows(points, self.dimension) - self.centre) @ self.rotation / self.half_extent

    def field_to_physical(self, coordinates: ArrayLike) -> FloatArray:
        """Field coordinates as physical points.

        Parameters
        ----------
        coordinates : array_like
            ``(..., d)`` field coordinates (see `physical_to_field`).

        Returns
        -------
        ndarray
            ``(..., d)`` LPS mm.
        """
        return np.asarray(_rows(coordinates, self.dimension) * self.half_extent @ self.rotation.T + self.centre)

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether each physical point lies within the grid, half a voxel around the outer centres included.

        Parameters
        ----------
        points : array_like
            ``(..., d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(...)`` bool.
        """
        i = self.physical_to_index(points)
        return np.all((i >= -0.5 - 1e-6) & (i <= np.asarray(self.size) - 0.5 + 1e-6), axis=-1)

    def grid(self) -> FloatArray:
        """Physical position of every voxel centre.

        Returns
        -------
        ndarray
            ``shape + (d,)`` LPS mm.
        """
        axes = np.meshgrid(*[np.arange(n) for n in self.shape], indexing="ij")
        return self.index_to_physical(np.stack(axes[::-1], axis=-1))

    def corners(self) -> FloatArray:
        """Physical positions of the ``2**d`` outermost voxel centres.

        Returns
        -------
        ndarray
            ``(2**d, d)`` LPS mm.
        """
        ends = [(0, n - 1) for n in self.size]
        return self.index_to_physical(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, self.dimension))

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Geometry:
        """The sub-grid of `size` voxels that begins at index `start` (which may lie outside: padding).

        Parameters
        ----------
        start : sequence of int
            Index of the first voxel, ``(x, y[, z])``.
        size : sequence of int
            Voxels, ``(x, y[, z])``.

        Returns
        -------
        Geometry
            The same spacing and direction.
        """
        origin = self.index_to_physical(np.asarray(start, float))
        return Geometry.make(size, self.spacing, origin, self.direction)

    def start_of(self, part: Geometry) -> list[int]:
        """Where a sub-grid begins, see `crop`.

        Parameters
        ----------
        part : Geometry
            With the same spacing and direction, its voxels on voxels of this grid.

        Returns
        -------
        list of int
            Index of its first voxel, ``(x, y[, z])``.
        """
        found: list[int] = np.rint(self.physical_to_index(part.origin)).astype(int).tolist()
        return found

    def same_grid(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Whether every voxel of the two grids coincides to `tolerance` of a voxel.

        Parameters
        ----------
        other : Geometry
            The grid to compare with.
        tolerance : float
            Largest distance in voxels.

        Returns
        -------
        bool
        """
        if self.size != other.size:
            return False
        gap = np.abs(self.physical_to_index(other.corners()) - self.physical_to_index(self.corners()))
        return bool(gap.max() <= tolerance)

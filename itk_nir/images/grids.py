"""Matrices of image files and objects -> `Geometry`, also where their axes are not quite perpendicular.

A `Geometry` has perpendicular axes, a 4 x 4 matrix of a header need not. Where the columns of one are a little sheared,
the nearest perpendicular grid about the same centre takes its place (the rotation of the polar decomposition of its
unit columns) and is told; where that would move a corner by more than a quarter of a voxel, the image is refused, or
resampled onto that grid on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError
from itk_nir.findings import Finding, note, warning
from itk_nir.geometry import Geometry
from itk_nir.images.volume import make_geometry

#: NIfTI, nibabel and FreeSurfer count x to the right and y to the front, ITK to the left and to the back.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Cosines between axes up to which ITK takes them for perpendicular, and so does this package.
_PERPENDICULAR = 5e-4
#: Largest distance, in voxels, that a corner may be moved.
_QUARTER = 0.25
#: Below this, in voxels, two grids are one.
_SAME = 1e-4


@dataclass(frozen=True, eq=False)
class Placed:
    """Where an image lies.

    Attributes
    ----------
    geometry : Geometry
        A grid with perpendicular axes.
    findings : tuple of Finding
        What is to be told about it.
    sheared : numpy.ndarray or None
        ``(d + 1, d + 1)``, voxel index -> LPS: the sheared grid that the pixels are on, which have to be resampled onto
        `geometry`; None where they are on it.
    """

    geometry: Geometry
    findings: tuple[Finding, ...] = ()
    sheared: NDArray[np.float64] | None = None

    def told(self, oriented: bool) -> Placed:
        """The same of an image that says, or does not, how the object lies, see `Geometry.oriented`.

        Parameters
        ----------
        oriented : bool
            Whether it does.

        Returns
        -------
        Placed
        """
        return replace(self, geometry=replace(self.geometry, oriented=oriented))


def is_usable(matrix: NDArray[np.float64], axes: int = 3) -> bool:
    """Tell whether a matrix puts every voxel at a place of its own.

    Parameters
    ----------
    matrix : numpy.ndarray
        ``(n + 1, n + 1)``, voxel index -> mm.
    axes : int, default 3
        How many axes the image has; the columns behind these do not count.

    Returns
    -------
    bool
    """
    columns = matrix[:-1, :-1][:, :axes]
    if not np.isfinite(columns).all() or not np.isfinite(matrix[:-1, -1]).all():
        return False
    lengths = np.linalg.norm(columns, axis=0)
    if lengths.min() <= 0:
        return False
    unit = columns / lengths
    return bool(np.linalg.det(unit.T @ unit) > 1e-12)


def place(size: Sequence[int], matrix: NDArray[np.float64], label: str, resample_shear: bool = False) -> Placed:
    """Find the grid that a matrix describes.

    Parameters
    ----------
    size : sequence of int
        ``(x, y[, z])``.
    matrix : numpy.ndarray
        ``(4, 4)``, voxel index -> LPS; of a 2D image the columns of x and y and the origin count.
    label : str
        What opens every message.
    resample_shear : bool, default False
        Take a sheared grid, which the pixels are then to be resampled from (see `straightened`).

    Returns
    -------
    Placed

    Raises
    ------
    InputError
        Numbers that are not finite, axes of length 0 or in one plane, or axes so far from perpendicular that the
        nearest grid would move a corner by more than a quarter of a voxel.
    """
    usable = is_usable(matrix, len(size))
    if len(size) == 2:
        matrix = in_plane(matrix)
    if not usable:
        rows = "; ".join(" ".join(f"{v:.4g}" for v in row) for row in matrix[:-1])
        raise InputError(f"{label}: its matrix from voxels to mm is singular or not finite ({rows}); mend its header")
    spacing = np.linalg.norm(matrix[:-1, :-1], axis=0)
    axes = matrix[:-1, :-1] / spacing
    if np.abs(axes.T @ axes - np.eye(len(size))).max() <= _PERPENDICULAR:
        return Placed(make_geometry(label, size, spacing, matrix[:-1, -1], axes))
    u, _, vt = np.linalg.svd(axes)
    direction = u @ vt
    straight = np.einsum("ij,ij->j", direction, matrix[:-1, :-1])
    middle = (np.asarray(size, float) - 1) / 2
    origin = matrix[:-1, -1] + (matrix[:-1, :-1] - direction * straight) @ middle
    geometry = make_geometry(label, size, straight, origin, direction)
    moved = farthest(geometry, matrix)
    angle = float(np.degrees(np.arcsin(min(1.0, np.abs(axes.T @ axes - np.eye(len(size))).max()))))
    said = f"{label}: its axes are not perpendicular (sheared by {angle:.3g} degrees)"
    if moved <= _QUARTER:
        return Placed(
            geometry,
            (
                warning(
                    f"{said}; it is read on the nearest perpendicular grid, which moves a corner by {moved:.2g} voxels",
                    shear_degrees=angle,
                    moved_voxels=moved,
                ),
            ),
        )
    if not resample_shear:
        raise InputError(
            f"{said}, and the nearest perpendicular grid would move a corner by {moved:.3g} voxels (at most {_QUARTER} "
            "are accepted); resample it onto a perpendicular grid first, or ask for that with resample_shear=True "
            "(--resample-shear)"
        )
    covering = _covering(geometry, matrix, label)
    told = note(
        f"{said}; it is resampled onto a perpendicular grid of {'x'.join(map(str, covering.size))} voxels",
        shear_degrees=angle,
    )
    return Placed(covering, (told,), matrix)


def place_like_itk(
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float],
    direction: ArrayLike,
    label: str,
    resample_shear: bool = False,
) -> Placed:
    """Find the grid of an image of ITK's, SimpleITK's or ANTs', whose direction need not be a rotation.

    Parameters
    ----------
    size, spacing, origin, direction
        As of `Geometry.make`.
    label, resample_shear
        As of `place`.

    Returns
    -------
    Placed

    Raises
    ------
    InputError
        As `place`, or a spacing that is not above 0.
    """
    d = len(size)
    axes = np.reshape(np.asarray(direction, float), (d, d))
    if not np.isfinite(axes).all() or np.abs(axes.T @ axes - np.eye(d)).max() <= 1e-3 or min(spacing) <= 0:
        return Placed(make_geometry(label, size, spacing, origin, axes))
    matrix = np.eye(4)
    matrix[:d, :d], matrix[:d, 3] = axes * spacing, origin
    return place(size, matrix, label, resample_shear)


def in_plane(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The two axes of a 2D image and its origin in coordinates of its plane.

    Parameters
    ----------
    matrix : numpy.ndarray
        ``(4, 4)``, voxel index -> LPS.

    Returns
    -------
    numpy.ndarray
        ``(3, 3)``. For axial images the coordinates are LPS x and y; for others they run along the image's own axes.
    """
    columns = matrix[:3, :2]
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = columns[:2], matrix[:2, 3]
    if not is_usable(matrix, 2):
        return out
    lengths = np.linalg.norm(columns, axis=0)
    axes = columns / lengths
    if np.abs(axes[2]).max() > 1e-3:
        # The first axis as it is, and the second as far as it is sheared against it.
        first = axes[:, 0]
        second = axes[:, 1] - first * (first @ axes[:, 1])
        basis = np.stack([first, second / np.linalg.norm(second)])
        out[:2, :2], out[:2, 2] = basis @ columns, basis @ matrix[:3, 3]
    return out


def farthest(geometry: Geometry, matrix: NDArray[np.float64]) -> float:
    """The largest distance between the corners of a grid and those of a matrix.

    Parameters
    ----------
    geometry : Geometry
        A grid in d dimensions.
    matrix : numpy.ndarray
        ``(d + 1, d + 1)``, voxel index -> LPS.

    Returns
    -------
    float
        Voxels of the grid.
    """
    ends = [(0, n - 1) for n in geometry.size]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
    there = geometry.physical_to_index(index @ matrix[:-1, :-1].T + matrix[:-1, -1])
    return float(np.linalg.norm(there - index, axis=1).max())


def is_same(geometry: Geometry, other: Geometry) -> bool:
    """Tell whether two grids of one size have their corners at the same places, to rounding in single precision.

    Parameters
    ----------
    geometry, other : Geometry
        The grids.

    Returns
    -------
    bool
    """
    return geometry.size == other.size and farthest(geometry, other.matrix) <= _SAME


def straightened(array: NDArray[Any], placed: Placed, labels: bool) -> NDArray[Any]:
    """Resample pixels from their sheared grid onto the perpendicular one.

    Parameters
    ----------
    array : numpy.ndarray
        ``([D,] H, W[, components])``.
    placed : Placed
        Where they are; without a sheared grid the pixels are returned as they are.
    labels : bool
        Take the nearest pixel; else linear. Outside, and this is where the grid is larger, is the smallest value.

    Returns
    -------
    numpy.ndarray
        ``placed.geometry.shape [+ (components,)]``; float32 where it is interpolated.
    """
    if placed.sheared is None:
        return array
    grid = placed.geometry
    d = grid.dimension
    to_index = np.linalg.inv(placed.sheared) @ grid.matrix
    dtype = array.dtype if labels else np.dtype(np.float32)
    out = np.full((*grid.shape, *array.shape[d:]), array.min() if array.size else 0, dtype)
    last = np.array(array.shape[d - 1 :: -1]) - 1
    axes = np.meshgrid(*[np.arange(n) for n in grid.shape[1:]], indexing="ij")
    for row in range(grid.shape[0]):
        index = np.stack([*axes[::-1], np.full(axes[0].shape, row)], -1) @ to_index[:-1, :-1].T + to_index[:-1, -1]
        inside = ((index >= -0.5) & (index <= last + 0.5)).all(-1)
        at = np.clip(index[inside], 0, last)
        out[row][inside] = _nearest(array, at) if labels else _linear(array, at)
    return out


def _nearest(array: NDArray[Any], index: NDArray[np.float64]) -> NDArray[Any]:
    whole = np.floor(index + 0.5).astype(np.intp)
    return array[tuple(whole[:, ::-1].T)]


def _linear(array: NDArray[Any], index: NDArray[np.float64]) -> NDArray[np.float64]:
    d = index.shape[1]
    last = np.array(array.shape[d - 1 :: -1]) - 1
    low = np.minimum(np.floor(index).astype(np.intp), np.maximum(last - 1, 0))
    part = index - low
    extra = (1,) * (array.ndim - d)
    total = np.zeros((len(index), *array.shape[d:]))
    for corner in np.ndindex(*(2,) * d):
        at = np.minimum(low + corner, last)
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        total += weight.reshape(-1, *extra) * array[tuple(at[:, ::-1].T)]
    return total


def _covering(geometry: Geometry, matrix: NDArray[np.float64], label: str) -> Geometry:
    """The grid, grown until every corner of the matrix's own grid lies within."""
    ends = [(0, n - 1) for n in geometry.size]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
    there = geometry.physical_to_index(index @ matrix[:-1, :-1].T + matrix[:-1, -1])
    low = np.floor(there.min(0) + 1e-6).astype(int)
    high = np.ceil(there.max(0) - 1e-6).astype(int)
    size = [int(n) for n in high - low + 1]
    origin = geometry.index_to_physical(low.astype(float))
    return make_geometry(label, size, geometry.spacing, origin, geometry.rotation)

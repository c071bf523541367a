"""What was written, read back and applied as its readers would: is it the transform?

How a file is applied stands with its format and follows that format's convention, not the code that wrote the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import ItkNirError, one_line
from itk_nir.geometry import Geometry
from itk_nir.transforms.model import CompositeTransform, DisplacementField

#: Largest allowed distance between where a transform and its file take a point, in voxels.
TOLERANCE = 1e-3
#: Points that are tried.
POINTS = 500

Points = NDArray[np.float64]


def random_points(grid: Geometry, count: int = POINTS, seed: int = 0) -> Points:
    """Choose points between the outermost voxel centres of a grid, always the same for one grid.

    Parameters
    ----------
    grid : Geometry
        The grid.
    count : int, optional
        How many.
    seed : int, optional
        Another one gives other points.

    Returns
    -------
    numpy.ndarray
        ``(count, d)``, LPS mm.
    """
    index = np.random.default_rng(seed).uniform(size=(count, grid.dimension)) * (np.asarray(grid.size) - 1)
    return grid.index_to_physical(index)


def tolerance(*grids: Geometry) -> float:
    """Give the largest allowed distance between where a transform and its file take a point.

    Parameters
    ----------
    *grids : Geometry
        The grids of the images and displacement fields that it is about.

    Returns
    -------
    float
        `TOLERANCE` of the finest spacing of all axes, in the grids' unit of length (mm).
    """
    return TOLERANCE * min(min(grid.spacing) for grid in grids)


def largest_difference(
    transform: CompositeTransform,
    points: Points,
    applied: Callable[[Points], Points],
    label: str,
    exact: Callable[[Points], Points] | None = None,
) -> float:
    """Measure how far a file is from the transform that it stands for.

    Parameters
    ----------
    transform : CompositeTransform
        What the file stands for.
    points : numpy.ndarray
        ``(N, d)``, LPS mm. Those are left out that rounding can throw off one of the transform's displacement fields.
    applied : callable
        Points -> points, as the format's readers apply the file.
    label : str
        What opens the message.
    exact : callable, optional
        Points -> points in place of ``transform.map``.

    Returns
    -------
    float
        The largest distance, mm; NaN if the file gives NaN, 0 if no point is left.

    Raises
    ------
    ItkNirError
        The file cannot be read back.
    """
    p = points[_clear_of_rims(transform, points)]
    if not len(p):
        return 0.0
    try:
        return float(np.linalg.norm(applied(p) - (exact or transform.map)(p), axis=-1).max())
    except (OSError, EOFError, ValueError, KeyError, IndexError, RuntimeError, struct.error, zlib.error) as error:
        raise ItkNirError(
            f"{label}: cannot be read back after writing ({one_line(error)}); check the disk, report it"
        ) from error


def _clear_of_rims(transform: CompositeTransform, points: Points) -> NDArray[np.bool_]:
    """Whether each point stays a hundredth of a voxel away from where a displacement field jumps to zero."""
    clear = np.ones(len(points), bool)
    p = points
    for step in transform.transforms:
        if isinstance(step, DisplacementField):
            index = step.geometry.physical_to_index(p)
            ends = np.array([np.full(step.dimension, -0.5), np.asarray(step.geometry.size) - 0.5])
            clear &= (np.abs(index[:, None] - ends) > 0.01).all(axis=(1, 2))
        p = step.map(p)
    return clear

"""The moving image of a registration on the fixed grid, as it came: its pixel type, its colour, its slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.images import Volume, flattened, load_channels
from itk_nir.resample import resample
from itk_nir.transforms.model import CompositeTransform


def load_pair(fixed: Any, moving: Any, dimension: int) -> tuple[Volume, Volume, tuple[Volume, ...]]:
    """Read the two images of a registration that was done.

    Parameters
    ----------
    fixed, moving : image, path or list of them
        As of `itk_nir.register`.
    dimension : int
        Of the registration: in 2D single slices are the 2D images that they are.

    Returns
    -------
    fixed, moving : Volume
        The first channel of each.
    more : tuple of Volume
        The second and further values of a pixel of a moving image in colour.

    Raises
    ------
    InputError
        An image that cannot be used.
    """
    (a, *_), (b, *more) = load_channels(fixed, "fixed image"), load_channels(moving, "moving image")
    channels = [a, b, *(more if b.components > 1 else ())]
    a, b, *more = [flattened(v) for v in channels] if dimension == 2 else channels
    return a, b, tuple(more)


def values_on(
    moving: Volume, mapping: CompositeTransform, fixed: Volume, fill: float | None, threads: int | None
) -> NDArray[Any]:
    """The moving image on the fixed grid, one linear interpolation.

    Parameters
    ----------
    moving : Volume
        The image, or one of its channels.
    mapping : CompositeTransform
        Fixed → moving.
    fixed : Volume
        Gives the grid.
    fill : float or None
        Value outside the moving image; its background for None.
    threads : int or None
        CPU threads.

    Returns
    -------
    ndarray
        ``([D,] H, W)`` float32; float64 where float32 does not hold the image's values.
    """
    plain = moving.scale == 1 and moving.offset == 0
    kind = np.dtype(np.float32 if plain else np.float64)
    return resample(moving, mapping, fixed.geometry, "linear", fill, pixel_type=kind, threads=threads)


def pixels_on(
    moving: Sequence[Volume], mapping: CompositeTransform, fixed: Volume, fill: float | None, threads: int | None
) -> tuple[NDArray[Any], Geometry]:
    """The same as pixels of the moving image's type, with all values of a pixel.

    Parameters
    ----------
    moving : sequence of Volume
        The values of a pixel, one Volume each.
    mapping, fixed, fill, threads
        As of `values_on`.

    Returns
    -------
    ndarray
        In the grid's shape; several values a pixel are the last axis.
    Geometry
        The fixed grid, in 3D where that is a single slice.
    """
    parts = [resample(m, mapping, fixed.geometry, "linear", fill, threads=threads) for m in moving]
    return in_place(parts[0] if len(parts) == 1 else np.stack(parts, -1), fixed)


def in_place(array: NDArray[Any], volume: Volume) -> tuple[NDArray[Any], Geometry]:
    """An array on the grid of an image, and that grid, as the image came: a single slice is one in 3D.

    Parameters
    ----------
    array : ndarray
        ``volume.geometry.shape``, or with several values a pixel in a last axis.
    volume : Volume
        The image.

    Returns
    -------
    ndarray
        The array, or the slice in 3D.
    Geometry
        Its grid.
    """
    if volume.plane is None:
        return array, volume.geometry
    return volume.plane.put_back(array), volume.plane.geometry

"""``ANTsImage`` → `Volume`, and arrays → ``ANTsImage``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image


def as_volume(image: Any, role: str) -> Volume:
    """Read an ``ANTsImage``, or whatever else `itk_nir.register` takes.

    Parameters
    ----------
    image : ants.ANTsImage, itk.Image, SimpleITK.Image, Volume or path
        A 2D or 3D image of one grey value a voxel.
    role : str
        What it is in messages, for example ``"fixed image"``.

    Returns
    -------
    Volume
        The values as float32 of shape ``([D,] H, W)`` on the image's grid (LPS mm).

    Raises
    ------
    InputError
        Another dimension, several values a voxel, NaN or infinite values, a grid that cannot be used, or whatever
        `itk_nir.register` would refuse.
    """
    # An ANTsImage can only exist where ants was imported; this module must not import it for the others.
    ants = sys.modules.get("ants")
    if ants is None or not ants.is_image(image):
        return load_image(image, role)
    if image.dimension not in (2, 3) or image.components != 1:
        raise InputError(
            f"{role}: is {image.dimension}D with {image.components} values a voxel; a registration takes 2D and 3D "
            "images of one grey value"
        )
    try:
        geometry = Geometry.make(image.shape, image.spacing, image.origin, image.direction)
    except ValueError as error:
        raise InputError(f"{role}: its grid cannot be used: {error}") from error
    # ANTs' arrays have ITK's index order (x, y[, z]).
    values = image.numpy().T
    if not np.isfinite(values).all():
        count = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise InputError(f"{role}: has {count} NaN or infinite voxels; replace them, for example by the background")
    return Volume(np.ascontiguousarray(values, np.float32), geometry, role, "itk", values.dtype)


def to_ants(array: NDArray[Any], geometry: Geometry) -> Any:
    """Make an ``ANTsImage``.

    Parameters
    ----------
    array : ndarray, shape ``geometry.shape``
        One number a voxel, ``([D,] H, W)``.
    geometry : Geometry
        The grid of the array (LPS mm).

    Returns
    -------
    ants.ANTsImage
        An image of its own memory.
    """
    import ants

    return ants.from_numpy(
        np.ascontiguousarray(array.T),
        origin=list(geometry.origin),
        spacing=list(geometry.spacing),
        direction=geometry.rotation.copy(),
    )

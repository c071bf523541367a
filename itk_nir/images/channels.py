"""Several images of one object on one grid: the channels of a registration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError
from itk_nir.images.itk_classes import image_view, scalar_image
from itk_nir.images.nifti import is_nifti
from itk_nir.images.volume import Volume, load_image


def load_channels(image: Any, role: str) -> tuple[Volume, ...]:
    """Read an image, or several of one object.

    Parameters
    ----------
    image : image, path or list of them
        Anything that `load_image` takes: a list of images on one grid, or an image with several values a pixel (colour,
        vectors), each of which becomes a channel.
    role : str
        What it is in messages: ``"fixed image"``, ...

    Returns
    -------
    tuple of Volume
        At least one, all on one grid.

    Raises
    ------
    InputError
        As `load_image`; or channels on unlike grids, or none.
    """
    if isinstance(image, (list, tuple)):
        if not image:
            raise InputError(f"{role}: an empty list; give one image, or one for each channel")
        several = len(image) > 1
        volumes = tuple(load_image(x, f"{role}, channel {k}" if several else role) for k, x in enumerate(image, 1))
        for other in volumes[1:]:
            if other.dimension != volumes[0].dimension or not other.geometry.same_grid(volumes[0].geometry):
                raise InputError(
                    f"{other.name}: lies on another grid than {volumes[0].name}; resample it: all channels of an image "
                    "share one grid"
                )
        return volumes
    return tuple(load_image(part, role) for part in _components(image))


def _components(image: Any) -> list[Any]:
    """The scalar images of one with several values a pixel; any other image alone."""
    if isinstance(image, (str, os.PathLike)):
        return _components_of_file(Path(image)) or [image]
    count = getattr(image, "GetNumberOfComponentsPerPixel", lambda: 1)()
    if count <= 1:
        return [image]
    if hasattr(image, "GetBufferedRegion"):  # ITK
        view = image_view(image)
        out = []
        for k in range(count):
            part = scalar_image(np.ascontiguousarray(view[..., k]))
            part.SetSpacing(image.GetSpacing())
            part.SetOrigin(image.GetOrigin())
            part.SetDirection(image.GetDirection())
            out.append(part)
        return out
    import SimpleITK as sitk

    return [sitk.VectorIndexSelectionCast(image, k) for k in range(count)]


def _components_of_file(path: Path) -> list[Any] | None:
    """Those of a file that SimpleITK reads as a picture with several values a pixel; None for any other."""
    if not path.is_file() or is_nifti(path):
        return None
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() <= 1:
            return None
        return _components(reader.Execute())
    except RuntimeError:
        return None  # `load_image` says what is wrong with it

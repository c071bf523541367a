"""Several images of one object on one grid: the channels of a registration."""

from __future__ import annotations

from typing import Any

from itk_nir.errors import InputError
from itk_nir.images.objects import is_pair
from itk_nir.images.reading import load_components, load_image
from itk_nir.images.volume import Volume


def load_channels(image: Any, role: str, *, nan: str = "error", resample_shear: bool = False) -> tuple[Volume, ...]:
    """Read an image, or several of one object.

    Parameters
    ----------
    image : image, path or list of them
        Anything that `load_image` takes: a list of images on one grid, or an image with several values a pixel (colour,
        vectors), each of which becomes a channel.
    role : str
        What it is in messages: ``"fixed image"``, ...
    nan : {"error", "mask"}
        As of `load_image`.
    resample_shear : bool, default False
        As of `load_image`.

    Returns
    -------
    tuple of Volume
        At least one, all on one grid.

    Raises
    ------
    InputError
        As `load_image`; or channels on unlike grids, or none.
    """
    if isinstance(image, (list, tuple)) and not is_pair(image):
        if not image:
            raise InputError(f"{role}: an empty list; give one image, or one for each channel")
        several = len(image) > 1
        names = [f"{role}, channel {k}" if several else role for k in range(1, len(image) + 1)]
        volumes = tuple(
            load_image(x, name, nan=nan, resample_shear=resample_shear) for x, name in zip(image, names, strict=True)
        )
        for other in volumes[1:]:
            if other.dimension != volumes[0].dimension or not other.geometry.same_grid(volumes[0].geometry):
                raise InputError(
                    f"{other.name}: lies on another grid than {volumes[0].name}; resample it: all channels of an image "
                    "share one grid"
                )
        return volumes
    return load_components(image, role, nan=nan, resample_shear=resample_shear)

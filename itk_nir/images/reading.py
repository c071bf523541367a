"""Any image -> `Volume`.

One table, `READERS`, lists the kinds of image that come in; a new kind is one more row. Every reader refuses, with a
one-line `InputError`, what no registration can use: complex pixels, 4D, NaN. A `Volume` that left this module is a
finite scalar image in 2 or 3 dimensions; vector and colour images are as many of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.findings import note
from itk_nir.images.files import read_path
from itk_nir.images.missing import without_missing
from itk_nir.images.objects import (
    is_ants,
    is_array,
    is_itk,
    is_nibabel,
    is_sitk,
    read_ants,
    read_array,
    read_itk,
    read_nibabel,
    read_sitk,
)
from itk_nir.images.values import in_float32
from itk_nir.images.volume import ReadOptions, Volume


def load_image(
    image: Any, role: str, *, native: bool = False, nan: str = "error", resample_shear: bool = False
) -> Volume:
    """Read an image of any kind that `READERS` knows.

    Parameters
    ----------
    image : path, itk.Image, SimpleITK.Image, ants.ANTsImage, nibabel image, (array, Geometry) or Volume
        A file or an image in memory (docs/inputs.md has the list); a `Volume` is returned as it is.
    role : str
        What it is in messages: ``"fixed image"``, ``"moving mask"``, ...
    native : bool, default False
        Keep the pixel type (label maps); float32 otherwise, shifted and scaled where that would not hold the values.
    nan : {"error", "mask"}
        What NaN and infinite voxels are: an error, or `Volume.missing`.
    resample_shear : bool, default False
        Resample an image whose axes are not perpendicular (linear; label maps and masks nearest) instead of refusing
        it.

    Returns
    -------
    Volume
        A finite scalar image in 2 or 3 dimensions, with memory of its own.

    Raises
    ------
    InputError
        A missing, unreadable or truncated file; an image that is not 2D or 3D, with more than one component a pixel,
        with complex pixels, or with NaN or infinite values; axes that are not perpendicular; a kind of object that is
        not known.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> volume = load_image(sitk.Image(4, 3, sitk.sitkUInt8), "fixed image")
    >>> volume.array.shape, volume.array.dtype.name, volume.pixel_type.name
    ((3, 4), 'float32', 'uint8')
    """
    labels = native or role.endswith(("mask", "labels", "lesion", "regions"))
    volume = read(image, role, ReadOptions(resample_shear=resample_shear, labels=labels), nan)
    return replace(volume, array=np.ascontiguousarray(volume.array)) if native else in_float32(volume)


def load_components(image: Any, role: str, *, nan: str = "error", resample_shear: bool = False) -> tuple[Volume, ...]:
    """Read an image of one or several values a pixel (colour, vectors).

    Parameters
    ----------
    image, role, nan, resample_shear
        As of `load_image`.

    Returns
    -------
    tuple of Volume
        One for each of the values, float32, all on one grid. That there are several is told by a note; the opacity of a
        picture that is opaque everywhere is left out, and one whose colours are all grey has one channel.

    Raises
    ------
    InputError
        As `load_image`.
    """
    volume = read(image, role, ReadOptions(several=True, resample_shear=resample_shear), nan)
    if volume.array.ndim == volume.dimension:
        return (in_float32(volume),)
    array = _without_opacity(volume.array)
    said = f"{volume.name}: has {volume.array.shape[-1]} values a pixel"
    if array.shape != volume.array.shape:
        said += ", the last of which is full opacity everywhere"
    if array.shape[-1] == 3 and array.dtype.kind == "u" and (array == array[..., :1]).all():
        array = array[..., :1]
        said += ", red, green and blue alike"
    count = array.shape[-1]
    remedy = f"{count} channels are registered" if count > 1 else "they are registered as one"
    told = note(said, remedy, components=int(volume.array.shape[-1]))
    stored = int(volume.array.shape[-1])
    first, *others = (in_float32(replace(volume, array=p, components=stored)) for p in np.moveaxis(array, -1, 0))
    return (replace(first, findings=(*volume.findings, told)), *(replace(v, findings=()) for v in others))


def load_pixels(image: Any, role: str, *, nan: str = "error", resample_shear: bool = False) -> Volume:
    """Read an image of one or several values a pixel, in its own pixel type.

    Parameters
    ----------
    image, role, nan, resample_shear
        As of `load_image`.

    Returns
    -------
    Volume
        Several values a pixel are the last axis of its array. What is resampled is so to the nearest pixel: it may be
        labels.

    Raises
    ------
    InputError
        As `load_image`.
    """
    return read(image, role, ReadOptions(several=True, resample_shear=resample_shear, labels=True), nan)


def _without_opacity(array: NDArray[Any]) -> NDArray[Any]:
    """Leave out the last of two or four whole numbers a pixel where it is the largest of its type everywhere."""
    if array.shape[-1] not in (2, 4) or array.dtype.kind != "u":
        return array
    return array[..., :-1] if (array[..., -1] == np.iinfo(array.dtype).max).all() else array


def read(image: Any, role: str, options: ReadOptions, nan: str = "error") -> Volume:
    """Read an image as its reader gives it.

    Parameters
    ----------
    image, role
        As of `load_image`.
    options : ReadOptions
        How to read it.
    nan : {"error", "mask"}
        As of `load_image`.

    Returns
    -------
    Volume
        Of the source's pixel type; an array of several values a pixel has them last.

    Raises
    ------
    InputError
        As `load_image`.
    """
    for _, accepts, reader in READERS:
        if accepts(image):
            try:
                volume = reader(image, role, options)
            except MemoryError as error:
                raise InputError(f"{role}: there is not enough memory to read it; give a smaller image") from error
            if volume is image:
                return volume
            volume = without_missing(volume, nan)
            # Nothing behind this knows half precision.
            half = volume.array.dtype == np.float16
            return replace(volume, array=volume.array.astype(np.float32)) if half else volume
    known = ", ".join(name for name, _, _ in READERS)
    hint = ""
    if hasattr(image, "GetOutput"):
        hint = " (of a filter or reader, give its GetOutput())"
    raise InputError(f"{role}: cannot use an object of type {type(image).__name__}{hint}; give one of: {known}")


def _read_volume(volume: Volume, role: str, options: ReadOptions) -> Volume:
    return volume


#: (name, does it accept the object?, reader). The first row that accepts reads. The tests must not import anything.
READERS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, str, ReadOptions], Volume]], ...] = (
    ("itk.Image", is_itk, read_itk),
    ("SimpleITK.Image", is_sitk, read_sitk),
    ("path", lambda image: isinstance(image, (str, os.PathLike)), read_path),
    ("Volume", lambda image: isinstance(image, Volume), _read_volume),
    ("ants.ANTsImage", is_ants, read_ants),
    ("nibabel image", is_nibabel, read_nibabel),
    ("(array, Geometry)", is_array, read_array),
)

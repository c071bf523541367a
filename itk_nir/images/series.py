"""Images of one or several volumes (4D), each of one or several values a pixel, read one volume at a time."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images.grids import place
from itk_nir.images.itk_classes import image_view, matrix_array
from itk_nir.images.missing import without_missing
from itk_nir.images.nifti import is_nifti, read_header, scaled
from itk_nir.images.nifti_grid import orientation
from itk_nir.images.nifti_header import Header
from itk_nir.images.quiet import quiet
from itk_nir.images.reading import load_pixels
from itk_nir.images.values import as_pixels
from itk_nir.images.volume import Volume, check_pixels, make_geometry, not_real
from itk_nir.places import itk_name


@dataclass(frozen=True, eq=False)
class Series:
    """An image that may have a fourth axis.

    Attributes
    ----------
    volumes : callable
        Gives the volumes one after the other, each a `Volume` of the source's pixel type with several values a pixel in
        the last axis of its array.
    geometry : Geometry
        The grid of each volume.
    name, kind, space_code
        As of `Volume`.
    pixel_type : numpy.dtype
        Type of the source's pixels.
    count : int
        How many volumes there are.
    time : tuple of float or None
        Spacing and origin of the fourth axis; None for an image that has none.
    """

    volumes: Callable[[], Iterator[Volume]]
    geometry: Geometry
    name: str
    kind: str
    pixel_type: np.dtype[Any]
    space_code: int = 1
    count: int = 1
    time: tuple[float, float] | None = None


def open_series(image: Any, role: str, *, nan: str = "error", resample_shear: bool = False) -> Series:
    """Open an image of 2, 3 or 4 dimensions; what has a fourth axis is read volume by volume.

    Parameters
    ----------
    image : image or path
        Anything that `load_image` takes, and 4D images of ITK, SimpleITK and files.
    role : str
        What it is in messages.
    nan, resample_shear
        As of `load_image`.

    Returns
    -------
    Series

    Raises
    ------
    InputError
        As `load_image`, when it is opened or when its volumes are read.
    """
    found = None
    if isinstance(image, (str, os.PathLike)):
        found = _file_of_volumes(Path(image), f"{role} {Path(image)}")
    elif "SimpleITK" in sys.modules and isinstance(image, sys.modules["SimpleITK"].Image) and image.GetDimension() == 4:
        found = _of_sitk(image, role)
    elif getattr(image, "GetImageDimension", lambda: 0)() == 4:
        found = _of_itk(image, role)
    if found is None:
        volume = load_pixels(image, role, nan=nan, resample_shear=resample_shear)
        return Series(
            lambda: iter((volume,)), volume.geometry, volume.name, volume.kind, volume.pixel_type, volume.space_code
        )
    plain = found.volumes
    return replace(found, volumes=lambda: (without_missing(v, nan) for v in plain()))


def load_grid(source: Any, role: str, *, resample_shear: bool = False) -> Geometry:
    """The grid of an image, of which nothing else matters: neither its pixels nor its fourth axis.

    Parameters
    ----------
    source : image, path or Geometry
        Anything that `open_series` takes.
    role : str
        What it is in messages.
    resample_shear : bool, default False
        As of `load_image`.

    Returns
    -------
    Geometry

    Raises
    ------
    InputError
        It cannot be read.
    """
    if isinstance(source, Geometry):
        return source
    if isinstance(source, Volume):
        return source.geometry if source.plane is None else source.plane.geometry
    if isinstance(source, (str, os.PathLike)) and not is_nifti(source):
        reader = _information(Path(source))
        if reader is not None and reader.GetDimension() in (2, 3):
            size, at = reader.GetSize(), (reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
            return make_geometry(f"{role} {source}", size, *at)
    return open_series(source, role, nan="mask", resample_shear=resample_shear).geometry


# --- files -----------------------------------------------------------------------------------------------------------


def _information(file: Path) -> Any:
    """SimpleITK's reader with what a file's header says, or None where it cannot read one."""
    import SimpleITK as sitk

    if not file.is_file():
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(file))
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError:  # whoever reads the voxels says what is wrong
        return None
    return reader


def _file_of_volumes(file: Path, label: str) -> Series | None:
    """A file with a fourth axis; None for every other."""
    reader = _information(file)
    if reader is None or reader.GetDimension() != 4:
        return None
    import SimpleITK as sitk

    size = reader.GetSize()
    geometry, time = _without_time(label, size, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    dtype = _pixel_type(reader, label)
    base = Volume(np.zeros(0, dtype), geometry, label, "path", dtype)
    if is_nifti(file):
        header, data = read_header(file, label)
        if header is not None and header.dtype is not None and header.shape[:4] == size and len(header.shape) == 4:
            where = orientation(header, label)
            geometry = place(size[:3], where.matrix, label).geometry
            base = replace(base, geometry=geometry, space_code=where.code or 1)
            volumes = lambda: _nifti_volumes(data, header, base)  # noqa: E731
            return Series(volumes, geometry, label, "path", dtype, base.space_code, size[3], time)
    if _is_packed(file):
        return replace(_of_sitk(sitk.ReadImage(itk_name(file)), label), kind="path")
    return Series(lambda: _extracted(reader, base, size), geometry, label, "path", dtype, 1, size[3], time)


def _pixel_type(reader: Any, label: str) -> np.dtype[Any]:
    import SimpleITK as sitk

    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in name:
        raise not_real(label, name)
    several = reader.GetNumberOfComponents() > 1
    one = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents() if several else 0)
    return np.asarray(sitk.GetArrayFromImage(one)).dtype


def _extracted(reader: Any, base: Volume, size: tuple[int, ...]) -> Iterator[Volume]:
    """The volumes of a file that ITK reads in parts."""
    import SimpleITK as sitk

    for k in range(size[3]):
        reader.SetExtractIndex([0, 0, 0, k])
        reader.SetExtractSize([*size[:3], 0])
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(f"{base.name}: volume {k + 1} cannot be read ({one_line(error)})") from error
        yield replace(base, array=array)


def _is_packed(file: Path) -> bool:
    """Whether an NRRD or MetaImage file is compressed, so that it cannot be read in parts."""
    with open(file, "rb") as raw:
        head = raw.read(4096).lower()
    return b"compresseddata = true" in head or (head.startswith(b"nrrd") and b"encoding: raw" not in head)


def _opened(file: Path) -> BinaryIO:
    with open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if packed else open(file, "rb")  # type: ignore[return-value]


def _nifti_volumes(data: Path, header: Header, base: Volume) -> Iterator[Volume]:
    """The volumes of a NIfTI file from its own bytes, in their order, so that packed files are unpacked once."""
    assert header.dtype is not None
    shape, count = header.shape[2::-1], header.shape[3]
    wanted = int(np.prod(shape)) * header.dtype.itemsize
    try:
        with _opened(data) as raw:
            raw.seek(header.offset)
            for k in range(count):
                part = raw.read(wanted)
                if len(part) < wanted:
                    raise InputError(f"{base.name}: truncated, {k} of its {count} volumes are there; get a fresh copy")
                stored = np.frombuffer(bytearray(part), header.dtype).reshape(shape)
                yield replace(base, array=scaled(header, stored, base.pixel_type))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{base.name}: truncated or damaged ({one_line(error)}); get a fresh copy") from error


# --- objects ---------------------------------------------------------------------------------------------------------


def _of_sitk(image: Any, role: str) -> Series:
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    at = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    return _of_array(array, role, "sitk", image.GetSize(), *at)


def _of_itk(image: Any, role: str) -> Series:
    try:
        image.Update()
        array = np.array(image_view(image))
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{role}: ITK gives no array of this image ({one_line(error)}); cast it to float") from error
    region = image.GetBufferedRegion()
    origin = image.TransformIndexToPhysicalPoint(region.GetIndex())
    at = tuple(image.GetSpacing()), tuple(origin), matrix_array(image.GetDirection()).ravel()
    return _of_array(array, role, "itk", tuple(region.GetSize()), *at)


def _of_array(
    array: NDArray[Any], role: str, kind: str, size: Any, spacing: Any, origin: Any, direction: Any
) -> Series:
    check_pixels(role, array.dtype)
    geometry, time = _without_time(role, size, spacing, origin, direction)
    base = Volume(array[0], geometry, role, kind, array.dtype)
    volumes = lambda: (replace(base, array=part) for part in array)  # noqa: E731
    return Series(volumes, geometry, role, kind, array.dtype, 1, len(array), time)


def _without_time(
    label: str, size: Any, spacing: Any, origin: Any, direction: Any
) -> tuple[Geometry, tuple[float, float]]:
    """The first three axes of a 4D grid, and spacing and origin of the fourth."""
    turned = np.reshape(direction, (4, 4))
    if np.abs(turned[3, :3]).max() > 1e-6 or np.abs(turned[:3, 3]).max() > 1e-6:
        raise InputError(f"{label}: its fourth axis is not perpendicular to the other three; mend its direction")
    geometry = make_geometry(label, size[:3], spacing[:3], origin[:3], turned[:3, :3])
    return geometry, (float(spacing[3]), float(origin[3]))


# --- out -------------------------------------------------------------------------------------------------------------


def four_dimensional(volumes: list[NDArray[Any]], geometry: Geometry, time: tuple[float, float], kind: str) -> Any:
    """Make a 4D image object.

    Parameters
    ----------
    volumes : list of ndarray
        ``geometry.shape`` each, or with several values a pixel in a last axis (not for ITK).
    geometry : Geometry
        Their grid, 3D.
    time : tuple of float
        Spacing and origin of the fourth axis.
    kind : {"itk", "sitk", "path"}
        Of which library; SimpleITK's for ``"sitk"``, ITK's for all others.

    Returns
    -------
    itk.Image or SimpleITK.Image

    Raises
    ------
    InputError
        Several values a pixel for ITK, which has no such images.
    """
    array = np.stack(volumes)
    several = array.ndim > 4
    direction = np.eye(4)
    direction[:3, :3] = geometry.rotation
    spacing, origin = [*geometry.spacing, time[0]], [*geometry.origin, time[1]]
    if kind == "sitk":
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(array, isVector=several)
        image.SetDirection(direction.ravel().tolist())
    else:
        if several:
            raise InputError("ITK has no 4D images of several values a pixel; apply it to a file, with itk-nir apply")
        from itk_nir.images.itk_classes import itk_matrix, scalar_image

        wider = {"i1": np.int16, "i8": np.float64, "u8": np.float64}.get(array.dtype.kind + str(array.dtype.itemsize))
        image = scalar_image(array if wider is None else as_pixels(array, np.dtype(wider)))
        image.SetDirection(itk_matrix(direction))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image

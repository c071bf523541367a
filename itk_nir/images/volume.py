"""Any image -> `Volume`.

One table, `READERS`, lists the kinds of image that come in; a new kind is one more row. Every reader refuses, with a
one-line `InputError`, what no registration can use: complex pixels, 4D, NaN. A `Volume` that left this module is a
finite scalar image in 2 or 3 dimensions; vector and colour images are as many of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding
from itk_nir.geometry import Geometry
from itk_nir.images.itk_classes import image_view, matrix_array
from itk_nir.images.missing import without_missing
from itk_nir.images.nifti import is_nifti, orientation_warnings, read_voxels, scaled
from itk_nir.images.planes import Plane
from itk_nir.images.values import in_float32


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image in memory.

    Attributes
    ----------
    array : numpy.ndarray
        ``([D,] H, W)``, C-contiguous; float32, or the file's own type if `load_image` was asked for it.
    geometry : Geometry
        Its grid.
    name : str
        What to call it in a message, for example ``"fixed image /data/f.nii.gz"``.
    kind : {"itk", "sitk", "path"}
        Where it came from, and so what results are given as.
    pixel_type : numpy.dtype
        Type of the source's pixels.
    findings : tuple of Finding
        What the reader found odd.
    scale, offset : float
        The source's values are ``scale * array + offset``: 1 and 0 but where float32 would not hold them.
    components : int
        How many values a pixel of the source has; this is one of them.
    missing : numpy.ndarray or None
        Like `array`, bool: voxels that were NaN or infinite in the source and have the background's value here.
    plane : Plane or None
        The single slice that a 2D image was in the source.
    space_code : int
        NIfTI's number of the space that the source says it lies in: 1 scanner, 2 aligned, 3 Talairach, 4 MNI.
    """

    array: NDArray[Any]
    geometry: Geometry
    name: str
    kind: str
    pixel_type: np.dtype[Any]
    findings: tuple[Finding, ...] = ()
    scale: float = 1.0
    offset: float | int = 0
    components: int = 1
    missing: NDArray[np.bool_] | None = None
    plane: Plane | None = None
    space_code: int = 1

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return self.geometry.dimension


def load_image(image: Any, role: str, *, native: bool = False, nan: str = "error") -> Volume:
    """Read an image of any kind that `READERS` knows.

    Parameters
    ----------
    image : str, os.PathLike, itk.Image, SimpleITK.Image or Volume
        A file or an image in memory; a `Volume` is returned as it is.
    role : str
        What it is in messages: ``"fixed image"``, ``"moving mask"``, ...
    native : bool, default False
        Keep the pixel type (label maps); float32 otherwise, shifted and scaled where that would not hold the values.
    nan : {"error", "mask"}
        What NaN and infinite voxels are: an error, or `Volume.missing`.

    Returns
    -------
    Volume
        A finite scalar image in 2 or 3 dimensions, with memory of its own.

    Raises
    ------
    InputError
        A missing, unreadable or truncated file; an image that is not 2D or 3D, with more than one component a pixel,
        with complex pixels, or with NaN or infinite values; a kind of object that is not known.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> volume = load_image(sitk.Image(4, 3, sitk.sitkUInt8), "fixed image")
    >>> volume.array.shape, volume.array.dtype.name, volume.pixel_type.name
    ((3, 4), 'float32', 'uint8')
    """
    volume = _read(image, role, nan=nan)
    return volume if native else in_float32(volume)


def load_components(image: Any, role: str, *, nan: str = "error") -> tuple[Volume, ...]:
    """Read an image of one or several values a pixel (colour, vectors; not in NIfTI files).

    Parameters
    ----------
    image, role, nan
        As of `load_image`.

    Returns
    -------
    tuple of Volume
        One for each of the values, float32, all on one grid.

    Raises
    ------
    InputError
        As `load_image`.
    """
    volume = _read(image, role, several=True, nan=nan)
    if volume.array.ndim == volume.dimension:
        return (in_float32(volume),)
    parts = np.moveaxis(volume.array, -1, 0)
    return tuple(in_float32(replace(volume, array=part, components=len(parts))) for part in parts)


def load_pixels(image: Any, role: str, *, nan: str = "error") -> Volume:
    """Read an image of one or several values a pixel, in its own pixel type.

    Parameters
    ----------
    image, role, nan
        As of `load_image`.

    Returns
    -------
    Volume
        Several values a pixel are the last axis of its array.

    Raises
    ------
    InputError
        As `load_image`.
    """
    return _read(image, role, several=True, nan=nan)


def _read(image: Any, role: str, several: bool = False, nan: str = "error") -> Volume:
    """The image as its reader gives it: with `several`, an array of several values a pixel has them last."""
    for _, accepts, reader in READERS:
        if accepts(image):
            volume = reader(image, role, several)
            return volume if isinstance(image, Volume) else without_missing(volume, nan)
    known = ", ".join(name for name, _, _ in READERS)
    raise InputError(f"{role}: cannot use an object of type {type(image).__name__}; give one of: {known}")


# --- readers ---------------------------------------------------------------------------------------------------------


def _is_itk(image: Any) -> bool:
    return "itk" in sys.modules and hasattr(image, "GetLargestPossibleRegion") and hasattr(image, "GetBufferedRegion")


def _is_sitk(image: Any) -> bool:
    module = sys.modules.get("SimpleITK")
    return module is not None and isinstance(image, module.Image)


def _read_itk(image: Any, role: str, several: bool) -> Volume:
    try:
        image.Update()
    except RuntimeError as error:
        raise InputError(f"{role}: its ITK pipeline failed ({one_line(error)})") from error
    _check_layout(role, int(image.GetImageDimension()), int(image.GetNumberOfComponentsPerPixel()), several)
    try:
        view = image_view(image)
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{role}: ITK gives no array of this image ({one_line(error)}); cast it to float") from error
    region = image.GetBufferedRegion()
    _check_pixels(role, view.dtype)
    # The origin belongs to index 0, which after a crop is not the first voxel.
    origin = image.TransformIndexToPhysicalPoint(region.GetIndex())
    direction = matrix_array(image.GetDirection())
    geometry = _geometry(role, tuple(region.GetSize()), tuple(image.GetSpacing()), tuple(origin), direction)
    array = np.array(view, order="C")
    return Volume(array, geometry, role, "itk", view.dtype)


def _read_sitk(image: Any, role: str, several: bool) -> Volume:
    import SimpleITK as sitk

    _check_layout(role, image.GetDimension(), image.GetNumberOfComponentsPerPixel(), several)
    array = sitk.GetArrayFromImage(image)
    _check_pixels(role, array.dtype)
    geometry = _geometry(role, image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(array, geometry, role, "sitk", array.dtype)


def _read_path(path: str | os.PathLike[str], role: str, several: bool) -> Volume:
    import SimpleITK as sitk

    # Here, because it makes volumes itself.
    from itk_nir.images.flat_files import read_flat_file

    file = Path(path)
    label = f"{role} {file}"
    if file.is_dir():
        raise InputError(f"{label}: is a folder; give an image file (.nii.gz, .nrrd, .mha, ...)")
    if not file.exists():
        raise InputError(f"{label}: no such file; check the path")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if (flat := read_flat_file(file, label)) is not None:
            return flat
        raise _unreadable(label, error) from error
    if reader.GetDimension() == 2 and (flat := read_flat_file(file, label)) is not None:
        return flat
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in pixel:
        raise _not_real(label, pixel)
    several = several and not is_nifti(file)
    _check_layout(label, reader.GetDimension(), reader.GetNumberOfComponents(), several)
    try:
        volume = _read_nifti(file, reader, label) if is_nifti(file) else None
        volume = volume or _read_sitk(reader.Execute(), label, several)
    except RuntimeError as error:
        raise _unreadable(label, error) from error
    return replace(volume, kind="path")


def _read_nifti(file: Path, reader: Any, label: str) -> Volume | None:
    """The voxels from the file's own bytes, the grid from ITK; None where ITK alone knows what to make of the file."""
    import SimpleITK as sitk

    found = read_voxels(file, label)
    if found is None:
        return None
    header, stored = found
    size = reader.GetSize()
    if stored is None or stored.size != np.prod(size):
        return None
    # ITK says whether it scales the values, and to what type.
    dtype = sitk.GetArrayViewFromImage(sitk.Image([1] * len(size), reader.GetPixelID())).dtype
    array = scaled(header, stored.reshape(size[::-1]), dtype)
    geometry = _geometry(label, size, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    told = tuple(orientation_warnings(header, label))
    return Volume(array, geometry, label, "path", dtype, told, space_code=header.space_code)


def _read_volume(volume: Volume, role: str, several: bool) -> Volume:
    return volume


#: (name, does it accept the object?, reader). The first row that accepts reads. The tests must not import anything.
READERS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, str, bool], Volume]], ...] = (
    ("itk.Image", _is_itk, _read_itk),
    ("SimpleITK.Image", _is_sitk, _read_sitk),
    ("path", lambda image: isinstance(image, (str, os.PathLike)), _read_path),
    ("Volume", lambda image: isinstance(image, Volume), _read_volume),
)


def _check_layout(label: str, dimension: int, components: int, several: bool) -> None:
    if dimension not in (2, 3):
        hint = "; extract one volume first" if dimension == 4 else ""
        raise InputError(f"{label}: is {dimension}D, but a registration takes 2D and 3D images{hint}")
    if components != 1 and not several:
        raise InputError(
            f"{label}: has {components} values a pixel (colour or vectors); convert it to one grey value first"
        )


def _check_pixels(label: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise _not_real(label, str(dtype))


def _not_real(label: str, pixel: str) -> InputError:
    return InputError(f"{label}: has pixels of type {pixel}; take the magnitude or the real part first")


def _geometry(label: str, size: Sequence[int], spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike) -> Geometry:
    try:
        return Geometry.make(size, spacing, origin, direction)
    except ValueError as error:
        raise InputError(f"{label}: its grid cannot be used: {one_line(error)}") from error


def _unreadable(label: str, error: RuntimeError) -> InputError:
    text = str(error)
    if "orthonormal" in text:
        return InputError(
            f"{label}: its axes are not perpendicular (sheared sform), which ITK does not read; resample it to a "
            "perpendicular grid first"
        )
    if "Unable to determine ImageIO reader" in text or "not find" in text:
        return InputError(f"{label}: no image format that can be read, or a damaged header; convert it to .nii.gz")
    return InputError(f"{label}: cannot be read, damaged or truncated ({one_line(text)}); get a fresh copy")

"""Images of one or several volumes (4D), each of one or several values a pixel, read one volume at a time."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from itk_nir.companions import companions
from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding
from itk_nir.geometry import Geometry
from itk_nir.images.dicom import is_dicom
from itk_nir.images.grids import RAS_TO_LPS, Placed, place, place_like_itk, straightened
from itk_nir.images.itk_classes import image_view, matrix_array
from itk_nir.images.metaimage import check_metaimage
from itk_nir.images.missing import without_missing
from itk_nir.images.names import checked_path, label_of
from itk_nir.images.nifti import is_nifti, read_header, read_voxels, scaled
from itk_nir.images.nifti_grid import orientation
from itk_nir.images.nifti_header import Header
from itk_nir.images.nrrd import check_nrrd
from itk_nir.images.objects import (
    check_sitk,
    is_ants,
    is_nibabel,
    is_sitk,
    nibabel_affine,
    nibabel_layout,
    nibabel_values,
)
from itk_nir.images.quiet import quiet
from itk_nir.images.reading import READERS, load_pixels
from itk_nir.images.volume import (
    ReadOptions,
    Volume,
    check_memory,
    check_no_tensors,
    check_pixels,
    not_real,
    tensors,
    unreadable,
)
from itk_nir.places import itk_name

#: What is looked at before ITK reads a file: ending -> check(file, label).
_CHECKS = {".mha": check_metaimage, ".mhd": check_metaimage, ".nrrd": check_nrrd, ".nhdr": check_nrrd}
#: Seconds in the units of time that are not seconds, by NIfTI's numbers.
_SECONDS = {16: 1e-3, 24: 1e-6}


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
    findings : tuple of Finding
        What the reader found odd.
    """

    volumes: Callable[[], Iterator[Volume]]
    geometry: Geometry
    name: str
    kind: str
    pixel_type: np.dtype[Any]
    space_code: int = 1
    count: int = 1
    time: tuple[float, float] | None = None
    findings: tuple[Finding, ...] = ()


def open_series(image: Any, role: str, *, nan: str = "error", resample_shear: bool = False) -> Series:
    """Open an image of 2, 3 or 4 dimensions; what has a fourth axis is read volume by volume.

    Parameters
    ----------
    image : image or path
        Anything that `load_image` takes, and 4D images of ITK, SimpleITK, ANTs, nibabel and files.
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
    found = _of_volumes(image, role, resample_shear)
    if found is None:
        volume = load_pixels(image, role, nan=nan, resample_shear=resample_shear)
        return Series(
            lambda: iter((volume,)), volume.geometry, volume.name, volume.kind, volume.pixel_type, volume.space_code,
            findings=volume.findings,
        )  # fmt: skip
    plain = found.volumes
    return replace(found, volumes=lambda: (without_missing(v, nan) for v in plain()))


def read_grid(source: Any, role: str, *, resample_shear: bool = False) -> tuple[Geometry, tuple[Finding, ...]]:
    """Read the grid of an image, of which nothing else matters: neither its pixels nor its fourth axis.

    Its header is read and checked as that of an image is, which it might be as well.

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
    geometry : Geometry
        The grid.
    findings : tuple of Finding
        What is odd about it.

    Raises
    ------
    InputError
        It cannot be read.
    """
    if isinstance(source, Geometry):
        return source, ()
    if isinstance(source, Volume):
        return source.geometry if source.plane is None else source.plane.geometry, ()
    found = _of_volumes(source, role, resample_shear)
    if found is not None:
        return found.geometry, found.findings
    if isinstance(source, (str, os.PathLike)):
        placed = _grid_of_header(checked_path(source, role), label_of(source, role), resample_shear)
        if placed is not None:
            return placed.geometry, placed.findings
    options = ReadOptions(several=True, resample_shear=resample_shear)
    reader = next((reader for _, accepts, reader in READERS if accepts(source)), None)
    # NaN voxels, which `load_pixels` would look for, are none of the grid's business; it refuses what no row takes.
    volume = load_pixels(source, role) if reader is None else reader(source, role, options)
    return volume.geometry, volume.findings


def load_grid(source: Any, role: str, *, resample_shear: bool = False) -> Geometry:
    """The grid of `read_grid` alone.

    Parameters
    ----------
    source, role, resample_shear
        As of `read_grid`.

    Returns
    -------
    Geometry

    Raises
    ------
    InputError
        It cannot be read.
    """
    return read_grid(source, role, resample_shear=resample_shear)[0]


def _of_volumes(image: Any, role: str, resample_shear: bool) -> Series | None:
    """What has a fourth axis; None for everything else."""
    if isinstance(image, (str, os.PathLike)):
        return _file_of_volumes(checked_path(image, role), label_of(image, role), resample_shear)
    if is_sitk(image):
        return _of_sitk(image, role, resample_shear) if image.GetDimension() == 4 else None
    if is_ants(image):
        return _of_ants(image, role, resample_shear) if image.dimension == 4 else None
    if is_nibabel(image):
        return _of_nibabel(image, role, resample_shear) if len(nibabel_layout(image)[0]) == 4 else None
    return _of_itk(image, role, resample_shear) if getattr(image, "GetImageDimension", lambda: 0)() == 4 else None


@dataclass(frozen=True, eq=False)
class _Source:
    """What all volumes of a series share."""

    label: str
    kind: str
    dtype: np.dtype[Any]
    placed: Placed
    time: tuple[float, float]
    count: int
    findings: tuple[Finding, ...] = ()
    space_code: int = 1

    def series(self, arrays: Callable[[], Iterable[NDArray[Any]]]) -> Series:
        """The series of what gives the arrays of its volumes one after the other."""
        told = (*self.findings, *self.placed.findings)
        geometry = self.placed.geometry

        def volumes() -> Iterator[Volume]:
            for array in arrays():
                straight = straightened(array, self.placed, labels=True)  # it may be labels
                yield Volume(straight, geometry, self.label, self.kind, self.dtype, told, space_code=self.space_code)

        return Series(
            volumes, geometry, self.label, self.kind, self.dtype, self.space_code, self.count, self.time, told
        )  # fmt: skip


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


def _checked(file: Path, label: str) -> tuple[Finding, ...]:
    """What is odd about a file that ITK is to read."""
    check = _CHECKS.get(file.suffix.lower())
    return () if check is None else check(file, label)


def _grid_of_header(file: Path, label: str, resample_shear: bool) -> Placed | None:
    """The grid of a 3D MetaImage or NRRD file, whose voxels are not kept; None for every other."""
    if file.suffix.lower() not in _CHECKS or not file.is_file() or is_dicom(file):
        return None
    found = _checked(file, label)
    reader = _information(file)
    if reader is None or reader.GetDimension() != 3:
        return None
    at = reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection()
    placed = place_like_itk(*at, label, resample_shear)
    return replace(placed, findings=(*found, *placed.findings))


def _file_of_volumes(file: Path, label: str, resample_shear: bool) -> Series | None:
    """A file with a fourth axis; None for every other."""
    if is_nifti(file) and file.is_file():
        header, data = read_header(file, label)
        if header is not None:
            if header.has_tensors:
                raise tensors(label)
            several = header.components > header.colours > 1  # vectors of colours are nobody's
            known = len(header.size) == 4 and header.dtype is not None and not several
            return _nifti_series(file, header, data, label, resample_shear) if known else None
    reader = _information(file)
    if reader is None or reader.GetDimension() != 4:
        return None
    found = _checked(file, label)
    size, at = reader.GetSize(), (reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    placed, time = _without_time(label, size, *at, resample_shear)
    source = _Source(label, "path", _pixel_type(reader, label), placed, time, size[3], found)
    if _is_packed(file):
        return source.series(lambda: _whole(file, label))
    return source.series(lambda: _extracted(reader, label))


def _pixel_type(reader: Any, label: str) -> np.dtype[Any]:
    import SimpleITK as sitk

    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in name:
        raise not_real(label, name)
    several = reader.GetNumberOfComponents() > 1
    one = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents() if several else 0)
    return np.asarray(sitk.GetArrayFromImage(one)).dtype


def _extracted(reader: Any, label: str) -> Iterator[NDArray[Any]]:
    """The volumes of a file that ITK reads in parts."""
    import SimpleITK as sitk

    size = reader.GetSize()
    for k in range(size[3]):
        reader.SetExtractIndex([0, 0, 0, k])
        reader.SetExtractSize([*size[:3], 0])
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(f"{label}: volume {k + 1} cannot be read ({one_line(error)})") from error
        yield array


def _whole(file: Path, label: str) -> NDArray[Any]:
    """The volumes of a file that ITK cannot read in parts."""
    import SimpleITK as sitk

    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(itk_name(file))))
    except RuntimeError as error:
        raise unreadable(label, error) from error


def _is_packed(file: Path) -> bool:
    """Whether an NRRD or MetaImage file is compressed, so that it cannot be read in parts."""
    with open(file, "rb") as raw:
        head = raw.read(4096).lower()
    return b"compresseddata = true" in head or (head.startswith(b"nrrd") and b"encoding: raw" not in head)


def _nifti_series(file: Path, header: Header, data: Path, label: str, resample_shear: bool) -> Series:
    """A NIfTI file of any version, placed as a 3D one is."""
    assert header.dtype is not None
    native = header.dtype.newbyteorder("=")
    # As ITK: what is scaled is float32, unless it was wider before.
    dtype = np.dtype(np.float32) if header.is_scaled and native.kind != "f" else native
    where = orientation(header, label)
    placed = place(header.size[:3], where.matrix, label, resample_shear).told(where.source != "neither")
    source = _Source(
        label, "path", dtype, placed, _nifti_time(file, header), header.size[3], where.findings, where.code or 1
    )  # fmt: skip
    if header.components > header.colours:
        return source.series(lambda: _nifti_vectors(file, header, dtype, label))
    return source.series(lambda: _nifti_volumes(data, header, dtype, label))


def _nifti_time(file: Path, header: Header) -> tuple[float, float]:
    """Spacing and origin of the fourth axis of a NIfTI file."""
    if file.name.lower().endswith((".img", ".img.gz")):
        file = next((Path(p) for p in companions(str(file)) if os.path.isfile(p)), file)
    with _opened(file) as opened:
        raw = opened.read(540)
    units, origin = 0, 0.0
    if header.version == 1:
        units, (origin,) = raw[123], struct.unpack_from(header.byte_order + "f", raw, 136)
    elif header.version == 2:
        (units,), (origin,) = (struct.unpack_from(header.byte_order + f, raw, at) for f, at in (("i", 500), ("d", 216)))
    return _in_seconds(units, header.pixdim[4], origin)


def _in_seconds(units: int, step: float, origin: float) -> tuple[float, float]:
    """Spacing and origin of the fourth axis, of which ITK takes what is not finite, or no step, for 1 and 0."""
    unit = _SECONDS.get(units & 0x38, 1.0)
    return unit * step if np.isfinite(step) and step else 1.0, unit * origin if np.isfinite(origin) else 0.0


def _opened(file: Path) -> BinaryIO:
    with open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if packed else open(file, "rb")  # type: ignore[return-value]


def _nifti_volumes(data: Path, header: Header, dtype: np.dtype[Any], label: str) -> Iterator[NDArray[Any]]:
    """The volumes of a NIfTI file from its own bytes, in their order, so that packed files are unpacked once."""
    assert header.dtype is not None
    colours = (header.colours,) if header.colours > 1 else ()
    shape, count = (*header.size[2::-1], *colours), header.size[3]
    check_memory(label, shape, header.dtype.itemsize)
    wanted = int(np.prod(shape)) * header.dtype.itemsize
    try:
        with _opened(data) as raw:
            raw.seek(header.offset)
            for k in range(count):
                part = raw.read(wanted)
                if len(part) < wanted:
                    raise InputError(f"{label}: truncated, {k} of its {count} volumes are there; get a fresh copy")
                stored = np.frombuffer(bytearray(part), header.dtype).reshape(shape)
                yield scaled(header, stored, dtype)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: truncated or damaged ({one_line(error)}); get a fresh copy") from error


def _nifti_vectors(file: Path, header: Header, dtype: np.dtype[Any], label: str) -> Iterator[NDArray[Any]]:
    """The volumes of a NIfTI file that has one component of all of them after the other."""
    found = read_voxels(file, label, finite=False)
    if found is None or found[1] is None:
        raise InputError(f"{label}: truncated, its header promises more voxels than it holds; get a fresh copy")
    stored = found[1].reshape(-1, *header.size[::-1])
    for k in range(header.size[3]):
        yield scaled(header, np.ascontiguousarray(np.moveaxis(stored[:, k], 0, -1)), dtype)


# --- objects ---------------------------------------------------------------------------------------------------------


def _of_sitk(image: Any, role: str, resample_shear: bool) -> Series:
    import SimpleITK as sitk

    check_sitk(image, role)
    at = image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    return _of_array(sitk.GetArrayFromImage(image), role, "sitk", *at, resample_shear)


def _of_itk(image: Any, role: str, resample_shear: bool) -> Series:
    try:
        image.Update()
        array = np.array(image_view(image))
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{role}: ITK gives no array of this image ({one_line(error)}); cast it to float") from error
    region = image.GetBufferedRegion()
    origin = image.TransformIndexToPhysicalPoint(region.GetIndex())
    at = tuple(image.GetSpacing()), tuple(origin), matrix_array(image.GetDirection()).ravel()
    return _of_array(array, role, "itk", tuple(region.GetSize()), *at, resample_shear)


def _of_ants(image: Any, role: str, resample_shear: bool) -> Series:
    values = image.numpy()
    # ANTs' arrays have ITK's index order (x, y, z, t[, component]).
    array = np.array(values.transpose(3, 2, 1, 0, *range(4, values.ndim)), order="C")
    return _of_array(
        array, role, "ants", image.shape, image.spacing, image.origin, image.direction, resample_shear
    )  # fmt: skip


def _of_nibabel(image: Any, role: str, resample_shear: bool) -> Series:
    shape, _ = nibabel_layout(image)
    check_no_tensors(image, role)
    array = nibabel_values(image, role)
    check_pixels(role, array.dtype)
    affine, findings, code = nibabel_affine(image, role)
    placed = place(shape[:3], RAS_TO_LPS @ affine, role, resample_shear).told(code > 0)
    zooms = image.header.get_zooms()
    nifti = isinstance(image.header, sys.modules["nibabel.nifti1"].Nifti1Header)
    units, origin = (int(image.header["xyzt_units"]), float(image.header["toffset"])) if nifti else (0, 0.0)
    time = _in_seconds(units, float(zooms[3]) if len(zooms) > 3 else 1.0, origin)
    source = _Source(role, "nibabel", array.dtype, placed, time, shape[3], findings, code or 1)
    return source.series(lambda: array)


def _of_array(
    array: NDArray[Any], role: str, kind: str, size: Any, spacing: Any, origin: Any, direction: Any,
    resample_shear: bool,
) -> Series:  # fmt: skip
    check_pixels(role, array.dtype)
    placed, time = _without_time(role, size, spacing, origin, direction, resample_shear)
    return _Source(role, kind, array.dtype, placed, time, len(array)).series(lambda: array)


def _without_time(
    label: str, size: Any, spacing: Any, origin: Any, direction: Any, resample_shear: bool
) -> tuple[Placed, tuple[float, float]]:
    """Where the first three axes of a 4D grid lie, and spacing and origin of the fourth."""
    turned = np.reshape(direction, (4, 4))
    if np.abs(turned[3, :3]).max() > 1e-6 or np.abs(turned[:3, 3]).max() > 1e-6:
        raise InputError(f"{label}: its fourth axis is not perpendicular to the other three; mend its direction")
    placed = place_like_itk(size[:3], spacing[:3], origin[:3], turned[:3, :3], label, resample_shear)
    return placed, (float(spacing[3]), float(origin[3]))

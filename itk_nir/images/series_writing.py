"""4D images out: as objects, and as files, written one volume at a time: NIfTI, NRRD and MetaImage."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.atomic import replacing
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images.convert import ants_values, storable, to_nibabel
from itk_nir.images.itk_classes import itk_matrix, scalar_image
from itk_nir.images.values import as_pixels

#: NIfTI's numbers of the types of pixels.
_NIFTI = {
    "u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280,
}  # fmt: skip
_RGB, _RGBA = 128, 2304
_NRRD = {
    "u1": "uint8", "i1": "int8", "u2": "uint16", "i2": "int16", "u4": "uint32", "i4": "int32", "u8": "uint64",
    "i8": "int64", "f4": "float", "f8": "double",
}  # fmt: skip
_META = {
    "u1": "MET_UCHAR", "i1": "MET_CHAR", "u2": "MET_USHORT", "i2": "MET_SHORT", "u4": "MET_UINT", "i4": "MET_INT",
    "u8": "MET_ULONG_LONG", "i8": "MET_LONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def check_series_path(path: str | os.PathLike[str]) -> None:
    """Refuse a name that no 4D image can be written to.

    Parameters
    ----------
    path : path
        The name.

    Raises
    ------
    InputError
        Another suffix than those of `SUFFIXES`.
    """
    if not os.fspath(path).lower().endswith(SUFFIXES):
        raise InputError(f"{os.fspath(path)}: no 4D image can be written so; end it in one of {', '.join(SUFFIXES)}")


def four_dimensional(
    volumes: list[NDArray[Any]], geometry: Geometry, time: tuple[float, float], kind: str, space_code: int = 1
) -> Any:
    """Make a 4D image object.

    Parameters
    ----------
    volumes : list of ndarray
        ``geometry.shape`` each, or with several values a pixel in a last axis (not for ITK).
    geometry : Geometry
        Their grid, 3D.
    time : tuple of float
        Spacing and origin of the fourth axis.
    kind : {"itk", "sitk", "path", "ants", "nibabel"}
        Of which library; ITK's for ``"path"``.
    space_code : int, default 1
        NIfTI's number of the space that the coordinates refer to, for ``"nibabel"``.

    Returns
    -------
    itk.Image, SimpleITK.Image, ants.ANTsImage or nibabel.Nifti1Image

    Raises
    ------
    InputError
        Several values a pixel for ITK, which has no such images.
    """
    array = np.stack(volumes)
    if kind == "nibabel":
        return _nibabel_image(array, geometry, time, space_code)
    several = array.ndim > 4
    direction = np.eye(4)
    direction[:3, :3] = geometry.rotation
    spacing, origin = [*geometry.spacing, time[0]], [*geometry.origin, time[1]]
    if kind == "ants":
        import ants

        return ants.from_numpy(ants_values(array, 4), origin, spacing, direction, has_components=several)
    if kind == "sitk":
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(array, isVector=several)
        image.SetDirection(direction.ravel().tolist())
    else:
        if several:
            raise InputError("ITK has no 4D images of several values a pixel; apply it to a file, with itk-nir apply")
        wider = {"i1": np.int16, "i8": np.float64, "u8": np.float64}.get(array.dtype.kind + str(array.dtype.itemsize))
        image = scalar_image(array if wider is None else as_pixels(array, np.dtype(wider)))
        image.SetDirection(itk_matrix(direction))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def _nibabel_image(array: NDArray[Any], geometry: Geometry, time: tuple[float, float], space_code: int) -> Any:
    """A 4D ``nibabel.Nifti1Image``, placed as one of its volumes is; several values a pixel are on the fifth axis."""
    placed = to_nibabel(array[0], geometry, space_code)
    values = np.ascontiguousarray(array.transpose(3, 2, 1, 0, *range(4, array.ndim)))
    values = values.astype(placed.get_data_dtype(), copy=False)
    image = type(placed)(values, placed.affine, placed.header, dtype=values.dtype)
    image.header.set_zooms([*geometry.spacing, time[0], *(1.0,) * (values.ndim - 4)])
    image.header["toffset"] = time[1]
    image.header.set_xyzt_units("mm", "sec")
    return image


def write_series(
    volumes: Iterable[NDArray[Any]],
    count: int,
    geometry: Geometry,
    time: tuple[float, float],
    path: str | os.PathLike[str],
    space_code: int = 1,
) -> None:
    """Write a 4D image, one volume after the other; the file appears complete or not at all.

    Parameters
    ----------
    volumes : iterable of ndarray
        `count` arrays of ``geometry.shape``, of one type, or with several values a pixel in a last axis.
    count : int
        How many there are.
    geometry : Geometry
        Their grid, 3D.
    time : tuple of float
        Spacing and origin of the fourth axis.
    path : path
        Ends in one of `SUFFIXES`.
    space_code : int, default 1
        NIfTI's number of the space that the coordinates refer to.

    Raises
    ------
    InputError
        Another suffix, or pixels that the format does not have in 4D.
    """
    check_series_path(path)
    target = Path(path)
    name = target.name.lower()
    with replacing(target) as temporary, ExitStack() as stack:
        raw: Any = stack.enter_context(open(temporary, "wb"))
        file: Any = None
        for array in volumes:
            array = np.ascontiguousarray(storable(array))
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            if file is None:
                if name.endswith((".nii", ".nii.gz")):
                    head = _nifti_header(array, count, geometry, time, space_code, target)
                else:
                    head = (_nrrd_header if name.endswith(".nrrd") else _meta_header)(array, count, geometry, time)
                packed = name.endswith((".nii.gz", ".nrrd"))
                if name.endswith(".nrrd"):
                    raw.write(head)  # only the voxels are packed
                    head = b""
                file = stack.enter_context(gzip.GzipFile("", "wb", 1, raw, mtime=0)) if packed else raw
                file.write(head)
            file.write(array.data)


def _kind(array: NDArray[Any]) -> str:
    return array.dtype.kind + str(array.dtype.itemsize)


def _nifti_header(
    array: NDArray[Any], count: int, geometry: Geometry, time: tuple[float, float], code: int, path: Path
) -> bytes:
    """The header of a NIfTI-1 file, 352 bytes, with sform and qform."""
    several = array.shape[-1] if array.ndim > 3 else 1
    datatype, bits = _NIFTI[_kind(array)], 8 * array.dtype.itemsize
    if several > 1:
        if _kind(array) != "u1" or several not in (3, 4):
            raise InputError(
                f"{path}: NIfTI files hold no 4D images of {several} values of type {array.dtype} a pixel; write .nrrd "
                "or .mha"
            )
        datatype, bits = (_RGB if several == 3 else _RGBA), 8 * several
    to_ras = np.diag([-1.0, -1.0, 1.0])
    rotation, origin = to_ras @ geometry.rotation, to_ras @ np.asarray(geometry.origin)
    matrix = rotation * np.asarray(geometry.spacing)
    factor = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    proper = rotation * [1, 1, factor]
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 4, *geometry.size, count, 1, 1, 1)
    struct.pack_into("<2h", head, 70, datatype, bits)
    struct.pack_into("<8f", head, 76, factor, *geometry.spacing, time[0], 0, 0, 0)
    struct.pack_into("<3f", head, 108, 352, 1, 0)
    head[123] = 2 | 8  # mm, s
    struct.pack_into("<f", head, 136, time[1])
    struct.pack_into("<2h", head, 252, code, code)
    struct.pack_into("<6f", head, 256, *_quaternion(proper), *origin)
    struct.pack_into("<12f", head, 280, *np.column_stack([matrix, origin]).ravel())
    head[344:348] = b"n+1\0"
    return bytes(head)


def _quaternion(r: NDArray[np.float64]) -> NDArray[np.float64]:
    """b, c, d of a rotation, with a not below 0: the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    k = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
    ])  # fmt: skip
    vector = np.linalg.eigh(k)[1][:, -1]
    return np.asarray(vector[:3] if vector[3] >= 0 else -vector[:3])


def _nrrd_header(array: NDArray[Any], count: int, geometry: Geometry, time: tuple[float, float]) -> bytes:
    """The text before the voxels of an NRRD file; its space has time as a fourth axis, as ITK writes it."""
    several = array.shape[-1] if array.ndim > 3 else 1
    sizes = [*([several] if several > 1 else []), *geometry.size, count]
    axes = np.zeros((4, 4))
    axes[:3, :3] = (geometry.rotation * np.asarray(geometry.spacing)).T
    axes[3, 3] = time[0]

    def vector(v: Any) -> str:
        return "(" + ",".join(repr(float(x)) for x in v) + ")"

    lines = [
        "NRRD0004",
        f"type: {_NRRD[_kind(array)]}",
        f"dimension: {len(sizes)}",
        "space dimension: 4",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {'none ' if several > 1 else ''}{' '.join(map(vector, axes))}",
        f"kinds: {'vector ' if several > 1 else ''}domain domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {vector([*geometry.origin, time[1]])}",
    ]
    return ("\n".join(lines) + "\n\n").encode()


def _meta_header(array: NDArray[Any], count: int, geometry: Geometry, time: tuple[float, float]) -> bytes:
    """The text before the voxels of a MetaImage file."""
    direction = np.eye(4)
    direction[:3, :3] = geometry.rotation

    def row(values: Any) -> str:
        return " ".join(repr(float(x)) for x in values)

    lines = [
        "ObjectType = Image",
        "NDims = 4",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        f"TransformMatrix = {row(direction.T.ravel())}",
        f"Offset = {row([*geometry.origin, time[1]])}",
        "CenterOfRotation = 0 0 0 0",
        f"ElementSpacing = {row([*geometry.spacing, time[0]])}",
        f"DimSize = {' '.join(map(str, [*geometry.size, count]))}",
        *([f"ElementNumberOfChannels = {array.shape[-1]}"] if array.ndim > 3 else []),
        f"ElementType = {_META[_kind(array)]}",
        "ElementDataFile = LOCAL",
    ]
    return ("\n".join(lines) + "\n").encode()

"""Images as files, proved complete.

NIfTI files are written here, behind the header that ITK makes: ITK's own writer says nothing when the disk is full.
What ITK writes in other formats is read back and compared.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.atomic import refuse_cut, refuse_if_full, replacing
from itk_nir.errors import InputError, WriteError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images.convert import storable, to_sitk
from itk_nir.places import itk_name

#: Endings of the image formats that can be written.
ENDINGS = (
    ".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".vtk", ".mnc", ".gipl",
    ".gipl.gz", ".tif", ".tiff", ".png", ".jpg", ".jpeg",
)  # fmt: skip
#: Formats that do not keep the values as they are.
_LOSSY = (".jpg", ".jpeg")
#: Bytes of a NIfTI-1 header and of what ITK puts between it and the voxels.
_NIFTI_HEADER = 352
#: Where the codes of qform and sform are in it.
_CODES = 252
#: The longest axis of a NIfTI-1 file.
_NIFTI_LONGEST = 32767
#: Bytes that a file may be longer than its voxels.
_OVERHEAD = 1 << 15
#: Bytes that are compressed at once.
_BLOCK = 1 << 22
#: By how many pieces of the voxels, of so many bytes each, the way to pack them is chosen. A prime number: no size of
#: an image makes all of them begin at the rim of a slice.
_PIECES, _PIECE = 61, 1 << 12
#: How much larger those may become for the sake of speed.
_LARGER = 1.02


def check_image_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that tells no image format that can be written.

    Parameters
    ----------
    path : path
        The name.

    Raises
    ------
    InputError
        Another ending.

    Examples
    --------
    >>> check_image_name("warped.nii.gz")
    """
    if not os.fspath(path).lower().endswith(ENDINGS):
        raise InputError(f"{os.fspath(path)}: the name tells no image format; end it in .nii.gz, .mha or .nrrd")


def save_image(
    array: NDArray[Any],
    geometry: Geometry,
    path: str | os.PathLike[str],
    *,
    compression: int = 1,
    space_code: int = 1,
) -> None:
    """Write an image; the file appears complete or not at all.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors (LPS mm; in NIfTI files with intent 1007, as
        ANTs writes its warps).
    geometry : Geometry
        The grid.
    path : str or os.PathLike
        Its suffix chooses the format.
    compression : int, default 1
        Level of gzip, 1 to 9, for formats that have it; 0 writes uncompressed where the format allows.
    space_code : int, default 1
        NIfTI's number of the space that the coordinates refer to; other formats have none.

    Raises
    ------
    InputError
        No such folder, or a suffix that no writer knows.
    WriteError
        The disk is full, or what was written is not the image.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from itk_nir.images import load_image
    >>> file = Path(tempfile.mkdtemp()) / "ramp.nii.gz"
    >>> save_image(np.arange(12, dtype=np.float32).reshape(3, 4), Geometry.make([4, 3], spacing=[0.5, 2.0]), file)
    >>> load_image(file, "image").geometry.spacing
    (0.5, 2.0)
    """
    target, array = Path(path), storable(array)
    check_image_name(target)
    with replacing(target) as temporary:
        if target.name.lower().endswith((".nii", ".nii.gz")) and max(geometry.size) <= _NIFTI_LONGEST:
            _write_nifti(array, geometry, temporary, compression, space_code)
        else:
            _write_with_itk(array, geometry, temporary, compression)


def _write_nifti(array: NDArray[Any], geometry: Geometry, path: Path, compression: int, space_code: int) -> None:
    """One component of all voxels after the other behind the header that ITK gives a corner of the image."""
    vector = array.ndim == geometry.dimension + 1
    corner = array[tuple(slice(0, 2) for _ in geometry.size)]
    plain = path.with_name(".header.nii")
    try:
        _execute(to_sitk(np.ascontiguousarray(corner), geometry), plain, 0)
        header = bytearray(plain.read_bytes()[:_NIFTI_HEADER])
    finally:
        plain.unlink(missing_ok=True)
    if len(header) < _NIFTI_HEADER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    struct.pack_into(f"={geometry.dimension}h", header, 42, *geometry.size)
    struct.pack_into("=2h", header, _CODES, space_code, space_code)  # ITK's are 1
    stored = array.dtype
    parts = np.moveaxis(array, -1, 0) if vector else [array]
    voxels = (np.ascontiguousarray(part, stored).reshape(-1).view(np.uint8) for part in parts)
    _write_bytes(path, header, voxels, max(1, compression) if path.name.lower().endswith(".gz") else 0)


def _write_bytes(path: Path, head: bytes | bytearray, parts: Iterable[Any], level: int) -> None:
    """Write buffers one after the other, packed by gzip above level 0."""
    buffers = iter(parts)
    first = memoryview(next(buffers))
    packer = _packer(level, first) if level else None
    with open(path, "wb", buffering=0) as file:

        def put(data: Any) -> None:
            rest = memoryview(data)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]

        for buffer in chain((head, first), buffers):
            if packer is None:
                put(buffer)
                continue
            for start in range(0, len(buffer), _BLOCK):
                put(packer.compress(buffer[start : start + _BLOCK]))
        if packer is not None:
            put(packer.flush())


def _packer(level: int, voxels: memoryview) -> Any:
    """A compressor into the gzip format.

    In real numbers, those of a field above all, there is little that comes twice but runs of zeros: to look for nothing
    else takes a third of the time, and makes the file no larger. At the fastest level that is what is done where some
    pieces of the voxels say so; labels are packed in the usual way.
    """

    def packer(strategy: int) -> Any:
        return zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)

    def size(strategy: int) -> int:
        one = packer(strategy)
        return sum(len(one.compress(piece)) for piece in pieces) + len(one.flush())

    step = max(_PIECE, len(voxels) // _PIECES)
    pieces = [voxels[start : start + _PIECE] for start in range(0, len(voxels), step)]
    runs = level == 1 and size(zlib.Z_RLE) <= _LARGER * size(zlib.Z_DEFAULT_STRATEGY)
    return packer(zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY)


def _write_with_itk(array: NDArray[Any], geometry: Geometry, path: Path, compression: int) -> None:
    """Have ITK write, read it back and compare."""
    import SimpleITK as sitk

    image = to_sitk(array, geometry)
    refuse_if_full(path, array.nbytes + array.nbytes // 8 + _OVERHEAD)
    _execute(image, path, compression)
    # Readers put zeros where a file ends too early.
    refuse_cut(path)
    if path.suffix.lower() in (".mha", ".nrrd") and _ends_in(path, sitk.GetArrayViewFromImage(image)):
        return
    try:
        back = sitk.ReadImage(itk_name(path))
    except RuntimeError as error:
        raise WriteError(
            f"{path.name}: cannot be read back after writing ({one_line(error)}); check the disk"
        ) from error
    found, wanted = sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(image)
    lossy = path.suffix.lower() in _LOSSY
    if found.size != wanted.size or not (lossy or np.array_equal(found.ravel(), wanted.ravel(), equal_nan=True)):
        raise WriteError(
            f"{path.name}: read back, it is not the image that was written; the disk is full, or the format cannot "
            "hold such an image: try .nii.gz, .mha or .nrrd"
        )


def _ends_in(path: Path, voxels: NDArray[Any]) -> bool:
    """Whether the voxels are the last bytes of a file, as they are where it is not packed."""
    start = path.stat().st_size - voxels.nbytes
    if start <= 0:
        return False
    stored = np.memmap(path, np.uint8, "r", start, (voxels.nbytes,))
    return np.array_equal(stored, voxels.reshape(-1).view(np.uint8))


def _execute(image: Any, path: Path, compression: int) -> None:
    import SimpleITK as sitk

    writer = sitk.ImageFileWriter()
    writer.SetFileName(itk_name(path))
    writer.SetUseCompression(compression > 0)
    writer.SetCompressionLevel(compression or -1)
    try:
        writer.Execute(image)
    except RuntimeError as error:
        text = one_line(error)
        raise WriteError(
            f"{path.name}: cannot be written ({text}); the disk is full, or the format cannot hold such an image: try "
            ".nii.gz, .mha or .nrrd"
        ) from error

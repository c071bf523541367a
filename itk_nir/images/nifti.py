"""NIfTI and Analyze files, their voxels read here and unpacked once.

ITK's reader fills the missing end of a truncated file with zeros, turns NaN and infinity into 0, silently chooses
between sform and qform, and knows no NIfTI-2. So header and voxels are read from the raw bytes, with a look at all of
these; `itk_nir.images.nifti_grid` says where they lie.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.images.missing import where_finite
from itk_nir.images.nifti_header import Header, parse_analyze, parse_header
from itk_nir.images.volume import check_memory

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
#: The longest header, that of NIfTI-2.
_HEADER = 540
#: Bytes that are read from a packed file at once, and at most come out of them at once.
_PIECE, _BLOCK = 1 << 16, 1 << 20
#: Deflate packs a thousand bytes into one at the very best.
_PACKED = 1032


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name ends as a NIfTI or Analyze file's does.

    Parameters
    ----------
    path : str or os.PathLike
        The name; the file is not looked at.

    Returns
    -------
    bool
        Whether it ends in one of `SUFFIXES`.
    """
    return os.fspath(path).lower().endswith(SUFFIXES)


def read_voxels(
    path: str | os.PathLike[str],
    label: str,
    *,
    check: Callable[[Header], None] | None = None,
    finite: bool = True,
    into: Callable[[Header], SideBySide | None] | None = None,
) -> tuple[Header, NDArray[Any] | None] | None:
    """Read the header and the stored values of a NIfTI file, to its very end.

    A packed file is unpacked once, in blocks, and its checksum is compared.

    Parameters
    ----------
    path : str or os.PathLike
        The file; of a ``.hdr``/``.img`` pair either.
    label : str
        What opens every message.
    check : callable, optional
        Given the header before any voxel is read; raises for what is not wanted.
    finite : bool, default True
        Refuse NaN and infinity.
    into : callable, optional
        Given the header; the values go into what it gives, if anything, and not into an array of their own.

    Returns
    -------
    header : Header
        What the file says of its voxels.
    stored : numpy.ndarray or None
        The values as they are stored (in the file's byte order, neither scaled nor shifted), an array of shape
        ``header.shape[::-1]``, with a last axis for the values of a colour, with memory of its own. None for types that
        are no real numbers, and where the values went elsewhere.

    None takes the place of both where the file has no such header: something else that bears the name.

    Raises
    ------
    InputError
        A truncated or damaged file, one without its other half, a header that cannot be, or floating-point values that
        are NaN or infinite.
    """
    header, data_path, first, blocks = _begun(Path(path), label)
    if header is None:
        return None
    if check is not None:
        check(header)
    blocks = chain([first], blocks) if header.single_file else file_blocks(data_path)
    stored, excess = _stored(header, blocks, data_path, label, into)
    header = replace(header, excess=excess)
    if stored is not None and finite and stored.dtype.kind == "f":
        refuse_not_finite(stored, label)
    return header, stored


def read_header(path: Path, label: str) -> tuple[Header | None, Path]:
    """Read the header of a NIfTI file, and no voxel.

    Parameters
    ----------
    path : Path
        The file; of a ``.hdr``/``.img`` pair either.
    label : str
        What opens every message.

    Returns
    -------
    header : Header or None
        None where the file has no such header.
    data : Path
        The file that holds the voxels.

    Raises
    ------
    InputError
        A damaged file, one without its other half, or a header that cannot be.
    """
    return _begun(path, label)[:2]


def _begun(path: Path, label: str) -> tuple[Header | None, Path, bytes, Iterator[bytes]]:
    """The header, the file with the voxels, the first bytes of the one with the header, and those that follow."""
    header_path, data_path = _parts(path, label)
    try:
        blocks = file_blocks(header_path)
        first = next(blocks, b"")
        # A packed file may be many short members.
        while len(first) < _HEADER and (more := next(blocks, b"")):
            first += more
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: damaged gzip file ({one_line(error)}); get a fresh copy") from error
    try:
        header = parse_header(first[:_HEADER])
        if header is None and header_path != data_path:
            header = parse_analyze(first[:_HEADER])
    except ValueError as error:
        raise InputError(f"{label}: {error}; its header is damaged, get a fresh copy") from error
    if header is not None and not header.single_file and header_path == data_path:
        raise InputError(f"{label}: its header says that its voxels are in another file; name the pair .hdr and .img")
    return header, data_path, first, blocks


def scaled(header: Header, stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Turn stored values into those that the file means, rounding where ITK does.

    Parameters
    ----------
    header : Header
        Has slope and intercept.
    stored : numpy.ndarray
        As `read_voxels` gives them.
    dtype : numpy.dtype
        Type of the result. Where it is not a floating-point type, nothing is scaled.

    Returns
    -------
    numpy.ndarray
        Of the same shape, in this machine's byte order.
    """
    values = stored.astype(dtype, copy=False)
    if not header.is_scaled or dtype.kind != "f":
        return values
    out = np.empty(values.shape, dtype)
    with np.errstate(over="ignore"):  # infinity, which the caller looks for
        for row in range(len(values)):  # small enough for the double precision between to stay in the cache
            out[row] = values[row].astype(np.float64) * header.slope + header.intercept
    return out


def refuse_not_finite(values: NDArray[Any], label: str) -> None:
    """Raise for NaN or infinite voxels.

    Parameters
    ----------
    values : numpy.ndarray
        Floating-point values of any shape.
    label : str
        What opens the message.

    Raises
    ------
    InputError
        There are such values; the message has their number.
    """
    finite = where_finite(values)
    if finite is not None:
        count = int(values.size - np.count_nonzero(finite))
        raise InputError(
            f"{label}: has {count} NaN or infinite voxels; replace them, for example by the background value"
        )


def _parts(path: Path, label: str) -> tuple[Path, Path]:
    """The file with the header and the file with the voxels: one and the same but for .hdr/.img pairs."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return path, path
    half = ".hdr" if name.endswith((".hdr", ".hdr.gz")) else ".img"
    stem = path.name[: name.rindex(half)]
    other = ".img" if half == ".hdr" else ".hdr"
    endings = [e for ending in (other, f"{other}.gz") for e in (ending, ending.upper())]
    found = next((p for p in (path.with_name(stem + e) for e in endings) if p.is_file()), None)
    if found is None:
        what = "its voxels" if half == ".hdr" else "its header"
        raise InputError(f"{label}: {what} should be in {path.with_name(stem + other)}, which does not exist")
    return (path, found) if half == ".hdr" else (found, path)


class SideBySide:
    """Takes one component of all voxels after the other, as NIfTI files have them, and lays those of a voxel together.

    So that vectors need no second array of their size.

    Parameters
    ----------
    voxels, components : int
        How many.
    stored : numpy.dtype
        Type of the values that come.
    dtype : numpy.dtype
        Type of those in `array`.

    Attributes
    ----------
    array : numpy.ndarray
        ``(voxels, components)``.
    """

    def __init__(self, voxels: int, components: int, stored: np.dtype[Any], dtype: np.dtype[Any]) -> None:
        self.array = np.empty((voxels, components), dtype)
        self._stored = stored
        self._count = 0
        self._rest = b""

    def put(self, data: memoryview) -> None:
        """Take the bytes that come next, which may end within a value.

        Parameters
        ----------
        data : memoryview
            No more of them than there are values to come.
        """
        if self._rest:
            data = memoryview(self._rest + data)
        whole = len(data) // self._stored.itemsize
        self._rest = bytes(data[whole * self._stored.itemsize :])
        values = np.frombuffer(data, self._stored, whole)
        while len(values):
            component, start = divmod(self._count, len(self.array))
            part = values[: len(self.array) - start]
            self.array[start : start + len(part), component] = part
            self._count += len(part)
            values = values[len(part) :]


def _stored(
    header: Header,
    blocks: Iterator[bytes],
    path: Path,
    label: str,
    into: Callable[[Header], SideBySide | None] | None,
) -> tuple[NDArray[Any] | None, int]:
    """The voxels, from blocks that begin at the first byte of the file that holds them; how many bytes follow them."""
    wanted, got, skip = header.data_bytes, 0, header.offset
    # A damaged header may want more than there is memory for; such a file is read, but not kept.
    possible = wanted <= path.stat().st_size * _PACKED
    if possible and header.dtype is not None:
        check_memory(label, (*header.shape, header.colours), header.dtype.itemsize)
    elsewhere = into(header) if possible and header.dtype is not None and into is not None else None
    keep = np.empty(wanted, np.uint8) if possible and header.dtype is not None and elsewhere is None else None
    try:
        for block in blocks:
            part = memoryview(block)[min(skip, len(block)) :]
            skip -= len(block) - len(part)
            used = part[: max(0, wanted - got)]
            if elsewhere is not None:
                elsewhere.put(used)
            elif keep is not None:
                keep[got : got + len(used)] = np.frombuffer(used, np.uint8)
            got += len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{label}: truncated or damaged ({one_line(error)}), {got} of {wanted} voxel bytes could be read; "
            "get a fresh copy"
        ) from error
    if got < wanted:
        raise InputError(f"{label}: truncated, {got} of {wanted} voxel bytes are there; get a fresh copy")
    if keep is None or header.dtype is None:
        return None, got - wanted if elsewhere is not None else 0
    colours = (header.colours,) if header.colours > 1 else ()
    return keep.view(header.dtype).reshape(*header.shape[::-1], *colours), got - wanted


def file_blocks(path: Path) -> Iterator[bytes]:
    """Read the bytes of a file, unpacked if it is packed by gzip, some at a time.

    Like the `gzip` module, and half as long at it: that one reads in small pieces.

    Parameters
    ----------
    path : Path
        The file.

    Yields
    ------
    bytes
        Not empty.

    Raises
    ------
    OSError, EOFError, zlib.error
        A file that cannot be read, or is damaged.
    """
    with open(path, "rb") as file:
        packed = file.read(_PIECE)
        if packed[:2] != b"\x1f\x8b":
            while packed:
                yield packed
                packed = file.read(_BLOCK)
            return
        while packed:
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                if block := member.decompress(packed, _BLOCK):
                    yield block
                packed = member.unconsumed_tail
                # A full block may have left more in the decompressor than in its tail.
                if not packed and not member.eof and len(block) < _BLOCK:
                    packed = file.read(_PIECE)
                    if not packed:
                        raise EOFError("the file ends before the end of what is packed in it")
            # Zeros may fill the file up to whole blocks of a tape; what is no other member is an error of zlib's.
            packed = member.unused_data.lstrip(b"\0")
            while not packed and (packed := file.read(_PIECE)):
                packed = packed.lstrip(b"\0")

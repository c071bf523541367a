"""NIfTI files, their voxels read here and unpacked once.

ITK's reader fills the missing end of a truncated file with zeros, turns NaN and infinity into 0, and silently chooses
between sform and qform. So the voxels are read from the raw bytes, with a look at all three; the size and the place of
the grid are still ITK's word.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding, warning

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")
#: Data types of NIfTI that NumPy has too: one real number a voxel.
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
#: The longest header, that of NIfTI-2.
_HEADER = 540
#: Bytes that are read from a packed file at once, and at most come out of them at once.
_PIECE, _BLOCK = 1 << 16, 1 << 20
#: Slopes and intercepts below this are none to ITK.
_LEAST = float(np.finfo(np.float64).eps)
#: Deflate packs a thousand bytes into one at the very best.
_PACKED = 1032


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI-1 or NIfTI-2 header says of the voxels and where they are.

    Attributes
    ----------
    shape : tuple of int
        Lengths of the axes, ``(x, y, z, t, components, ...)``, as many as the header has.
    datatype : int
        NIfTI's number of the type of the values.
    bits : int
        Bits of one value.
    offset : int
        Bytes before the first voxel.
    byte_order : str
        ``"<"`` or ``">"``.
    single_file : bool
        Whether header and voxels lie in one file (``.nii``) or in two (``.hdr``, ``.img``).
    qform_code, sform_code : int
        What the two orientations refer to; 0 where there is none.
    qform, sform : numpy.ndarray or None
        ``(4, 4)``, voxel index -> RAS mm; None where the code is 0.
    slope, intercept : float
        ``value = slope * stored + intercept``, with ITK's reading of values that mean nothing: 1 for a slope that is
        nearly 0 or not finite, 0 for an intercept that is not finite.
    intent : int
        What the values mean: 1006 a displacement (RAS), 1007 a vector.
    """

    shape: tuple[int, ...]
    datatype: int
    bits: int
    offset: int
    byte_order: str
    single_file: bool
    qform_code: int
    sform_code: int
    qform: NDArray[np.float64] | None
    sform: NDArray[np.float64] | None
    slope: float = 1.0
    intercept: float = 0.0
    intent: int = 0

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Type of the stored values, in the file's byte order; None for those that are not one real number."""
        code = _TYPES.get(self.datatype)
        return None if code is None else np.dtype(self.byte_order + code)

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels."""
        bits = self.bits if self.dtype is None else 8 * self.dtype.itemsize
        return int(np.prod(self.shape, dtype=object)) * bits // 8

    @property
    def space_code(self) -> int:
        """What the coordinates refer to: the code of the form that ITK uses; 1 where both are 0."""
        code = self.sform_code if self.sform_code == 1 or self.qform_code == 0 else self.qform_code
        return max(code, 1)

    @property
    def is_scaled(self) -> bool:
        """Whether the stored values are to be multiplied or shifted, as ITK decides."""
        return abs(self.slope - 1) > _LEAST or abs(self.intercept) > _LEAST


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


def parse_header(raw: bytes) -> Header | None:
    """Read the header of a NIfTI file.

    Parameters
    ----------
    raw : bytes
        The first 540 bytes of the file (348 are enough for NIfTI-1).

    Returns
    -------
    Header or None
        None if the bytes are no NIfTI header.
    """
    for order in "<>":
        if len(raw) >= 348 and struct.unpack_from(order + "i", raw)[0] == 348 and raw[344:347] in (b"n+1", b"ni1"):
            dim = struct.unpack_from(order + "8h", raw, 40)
            intent, datatype, bits = struct.unpack_from(order + "3h", raw, 68)
            pixdim = struct.unpack_from(order + "8f", raw, 76)
            offset, slope, intercept = struct.unpack_from(order + "3f", raw, 108)
            q_code, s_code = struct.unpack_from(order + "2h", raw, 252)
            quaternion = struct.unpack_from(order + "6f", raw, 256)
            rows = struct.unpack_from(order + "12f", raw, 280)
            single, least = raw[344:347] == b"n+1", 348
        elif len(raw) >= 540 and struct.unpack_from(order + "i", raw)[0] == 540 and raw[4:7] in (b"n+2", b"ni2"):
            datatype, bits = struct.unpack_from(order + "2h", raw, 12)
            dim = struct.unpack_from(order + "8q", raw, 16)
            pixdim = struct.unpack_from(order + "8d", raw, 104)
            offset, slope, intercept = struct.unpack_from(order + "q2d", raw, 168)
            q_code, s_code = struct.unpack_from(order + "2i", raw, 344)
            quaternion = struct.unpack_from(order + "6d", raw, 352)
            rows = struct.unpack_from(order + "12d", raw, 400)
            intent = struct.unpack_from(order + "i", raw, 504)[0]
            single, least = raw[4:7] == b"n+2", 540
        else:
            continue
        if not 1 <= dim[0] <= 7 or bits <= 0 or not np.isfinite(offset):
            return None
        sform = np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]).astype(float) if s_code > 0 else None
        qform = _quaternion_matrix(quaternion, pixdim) if q_code > 0 else None
        # Where the voxels of a single file are said to begin within its header, ITK takes the header's end.
        start = max(int(offset), least) if single else int(offset)
        return Header(
            tuple(max(int(n), 1) for n in dim[1 : dim[0] + 1]),
            datatype, bits, start, order, single, q_code, s_code, qform, sform,
            slope if np.isfinite(slope) and abs(slope) > _LEAST else 1.0,
            intercept if np.isfinite(intercept) else 0.0,
            intent,
        )  # fmt: skip
    return None


def read_voxels(path: str | os.PathLike[str], label: str) -> tuple[Header, NDArray[Any] | None] | None:
    """Read the header and the stored values of a NIfTI file, to its very end.

    A packed file is unpacked once, in blocks, and its checksum is compared.

    Parameters
    ----------
    path : str or os.PathLike
        The file; of a ``.hdr``/``.img`` pair either.
    label : str
        What opens every message.

    Returns
    -------
    header : Header
        What the file says of its voxels.
    stored : numpy.ndarray or None
        The values as they are stored (in the file's byte order, neither scaled nor shifted), an array of shape
        ``header.shape[::-1]`` with memory of its own. None for types that are not one real number.

    None takes the place of both where the file has no NIfTI header: an Analyze file, or something else that bears the
    name.

    Raises
    ------
    InputError
        A truncated or damaged file.
    """
    header_path, data_path = _parts(Path(path))
    blocks: Iterator[bytes]
    try:
        blocks = _blocks(header_path)
        first = next(blocks, b"")
        # A packed file may be many short members.
        while len(first) < _HEADER and (more := next(blocks, b"")):
            first += more
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: damaged gzip file ({one_line(error)}); get a fresh copy") from error
    header = parse_header(first[:_HEADER])
    if header is None or header.offset < 0:
        return None
    blocks = chain([first], blocks) if header.single_file else _blocks(data_path)
    return header, _stored(header, blocks, data_path, label)


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


def orientation_warnings(header: Header, label: str) -> list[Finding]:
    """Say where the two orientations of a header disagree.

    Parameters
    ----------
    header : Header
        The header.
    label : str
        What opens every message.

    Returns
    -------
    list of Finding
        One if sform and qform place a voxel more than a quarter of a voxel apart, else nothing.
    """
    if header.sform is None or header.qform is None:
        return []
    size = np.array([*header.shape, 1, 1, 1][:3])
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3)
    gap = (header.sform - header.qform)[:3]
    distance = float(np.linalg.norm(corners @ gap[:, :3].T + gap[:, 3], axis=-1).max())
    voxel = float(np.linalg.norm(header.sform[:3, :3], axis=0).min())
    # A float32 quaternion near half a turn is good to 3e-4 of a radian: what that moves a corner is no disagreement.
    extent = float(np.linalg.norm(header.sform[:3, :3] @ size))
    if distance <= max(0.25 * voxel, 5e-4 * extent):
        return []
    used = "sform" if header.sform_code == 1 else "qform"
    return [
        warning(
            f"{label}: its sform (code {header.sform_code}) and qform (code {header.qform_code}) differ by up to "
            f"{distance:.3g} mm",
            f"like ITK, the {used} is used",
            distance=distance,
        )
    ]


def _quaternion_matrix(q: tuple[float, ...], pixdim: tuple[float, ...]) -> NDArray[np.float64]:
    """Index -> RAS of the qform (NIfTI-1 header, method 2)."""
    b, c, d = q[:3]
    a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    scale = np.array(pixdim[1:4], float)
    scale[2] *= -1 if pixdim[0] < 0 else 1
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * scale
    matrix[:3, 3] = q[3:]
    return matrix


def _parts(path: Path) -> tuple[Path, Path]:
    """The file with the header and the file with the voxels: one and the same but for .hdr/.img pairs."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return path, path
    stem = path.name[: name.rindex(".hdr" if ".hdr" in name else ".img")]
    header = path.with_name(stem + ".hdr")
    data = next((p for p in (path.with_name(stem + e) for e in (".img", ".img.gz")) if p.exists()), path)
    return (header if header.exists() else path), data


def _stored(header: Header, blocks: Iterator[bytes], path: Path, label: str) -> NDArray[Any] | None:
    """The voxels, from blocks that begin at the first byte of the file that holds them; all blocks are read."""
    wanted, got, skip = header.data_bytes, 0, header.offset
    # A damaged header may want more than there is memory for; such a file is read, but not kept.
    possible = wanted <= path.stat().st_size * _PACKED
    keep = np.empty(wanted, np.uint8) if possible and header.dtype is not None else None
    try:
        for block in blocks:
            part = memoryview(block)[min(skip, len(block)) :]
            skip -= len(block) - len(part)
            if keep is not None and got < wanted:
                used = part[: wanted - got]
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
        return None
    return keep.view(header.dtype).reshape(header.shape[::-1])


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked if it is packed by gzip, some at a time.

    Like the `gzip` module, and half as long at it: that one reads in small pieces.
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

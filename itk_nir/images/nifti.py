"""What ITK's NIfTI reader keeps to itself: truncated files, NaN, and two orientations that disagree.

ITK fills the missing end of a truncated file with zeros, turns NaN and infinity into 0, and silently chooses between
sform and qform. This module looks at the raw bytes for those three, and for nothing else.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz")
_FLOATS = {16: "f4", 64: "f8"}
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Header:
    """The fields of a NIfTI-1 or NIfTI-2 header that decide where and how many the voxels are.

    Matrices are ``(4, 4)``, index → RAS mm; ``None`` where their code is 0.
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

    @property
    def data_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.bits // 8


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends as a NIfTI or Analyze file's does."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def parse_header(raw: bytes) -> Header | None:
    """Read the first 540 bytes of a file; ``None`` if they are no NIfTI header."""
    for order in "<>":
        if len(raw) >= 348 and struct.unpack_from(order + "i", raw)[0] == 348 and raw[344:347] in (b"n+1", b"ni1"):
            dim = struct.unpack_from(order + "8h", raw, 40)
            datatype, bits = struct.unpack_from(order + "2h", raw, 70)
            pixdim = struct.unpack_from(order + "8f", raw, 76)
            offset = int(struct.unpack_from(order + "f", raw, 108)[0])
            q_code, s_code = struct.unpack_from(order + "2h", raw, 252)
            quaternion = struct.unpack_from(order + "6f", raw, 256)
            rows = struct.unpack_from(order + "12f", raw, 280)
            single = raw[344:347] == b"n+1"
        elif len(raw) >= 540 and struct.unpack_from(order + "i", raw)[0] == 540 and raw[4:7] in (b"n+2", b"ni2"):
            datatype, bits = struct.unpack_from(order + "2h", raw, 12)
            dim = struct.unpack_from(order + "8q", raw, 16)
            pixdim = struct.unpack_from(order + "8d", raw, 104)
            offset = struct.unpack_from(order + "q", raw, 168)[0]
            q_code, s_code = struct.unpack_from(order + "2i", raw, 344)
            quaternion = struct.unpack_from(order + "6d", raw, 352)
            rows = struct.unpack_from(order + "12d", raw, 400)
            single = raw[4:7] == b"n+2"
        else:
            continue
        if not 1 <= dim[0] <= 7 or bits <= 0:
            return None
        sform = np.vstack([np.reshape(rows, (3, 4)), [0, 0, 0, 1]]).astype(float) if s_code > 0 else None
        qform = _quaternion_matrix(quaternion, pixdim) if q_code > 0 else None
        return Header(
            tuple(max(int(n), 1) for n in dim[1 : dim[0] + 1]),
            datatype, bits, offset, order, single, q_code, s_code, qform, sform,
        )  # fmt: skip
    return None


def check_nifti(path: str | os.PathLike[str], label: str) -> list[str]:
    """Raise for a truncated or damaged file and for NaN or infinite voxels; return warnings about the orientation.

    Reads the voxel bytes once. `label` opens every message.
    """
    header_path, data_path = _parts(Path(path))
    try:
        with _open(header_path) as file:
            header = parse_header(file.read(540))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: damaged gzip file ({one_line(error)}); get a fresh copy") from error
    if header is None:
        # Analyze files and other things that bear the name: ITK decides what to make of them.
        return []
    offset = header.offset if header.single_file else 0
    dtype = _FLOATS.get(header.datatype)
    wanted = header.data_bytes
    got = 0
    try:
        for block in _blocks(data_path, offset):
            if dtype is not None and got < wanted:
                usable = block[: (min(len(block), wanted - got)) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize]
                _refuse_nan(np.frombuffer(usable, header.byte_order + dtype), label)
            got += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{label}: truncated or damaged ({one_line(error)}), {got} of {wanted} voxel bytes could be read; "
            "get a fresh copy"
        ) from error
    if got < wanted:
        raise InputError(f"{label}: truncated, {got} of {wanted} voxel bytes are there; get a fresh copy")
    return _orientation_warnings(header, label)


def _refuse_nan(values: NDArray[np.floating], label: str) -> None:
    # A sum is finite only if every term is; sums of float32 are taken in float64 and cannot overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float64)
    if not np.isfinite(total) and not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise InputError(
            f"{label}: has NaN or infinite voxels (at least {count}); replace them, for example by the background value"
        )


def _orientation_warnings(header: Header, label: str) -> list[str]:
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
        f"{label}: its sform (code {header.sform_code}) and qform (code {header.qform_code}) differ by up to "
        f"{distance:.3g} mm; like ITK, the {used} is used"
    ]


def _quaternion_matrix(q: tuple[float, ...], pixdim: tuple[float, ...]) -> NDArray[np.float64]:
    """Index → RAS of the qform (NIfTI-1 header, method 2)."""
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


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else open(path, "rb")


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    with _open(path) as file:
        left = offset
        while left > 0:
            skipped = len(file.read(min(left, _BLOCK)))
            if not skipped:
                return
            left -= skipped
        while block := file.read(_BLOCK):
            # gzip may hand out short blocks; whole numbers of 8 bytes keep the values aligned.
            while len(block) % 8 and (more := file.read(8 - len(block) % 8)):
                block += more
            yield block

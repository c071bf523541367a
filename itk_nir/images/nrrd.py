"""What ITK's NRRD reader does not see: damage in packed pixels, whose checksum it does not compare."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError
from itk_nir.findings import Finding

#: Bytes of one value, by any of the names that a type has.
_WIDTHS = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t", "double"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
}
_LONGEST, _PIECE = 1 << 20, 1 << 20


def check_nrrd(file: Path, label: str) -> tuple[Finding, ...]:
    """Refuse packed pixels that are damaged, or not as many as the header says.

    Parameters
    ----------
    file : Path
        ``.nrrd`` or ``.nhdr``.
    label : str
        What opens every message.

    Returns
    -------
    tuple of Finding
        Empty.

    Raises
    ------
    InputError
        Damage. What is wrong with the header is left to its reader.
    """
    with open(file, "rb") as opened:
        raw = opened.read(_LONGEST)
    # An empty line ends the header, whichever system's.
    ends = [(raw.find(mark), mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in raw]
    at, mark = min(ends, default=(len(raw), b""))
    if not raw.startswith(b"NRRD"):
        raise InputError(f"{label}: no NRRD header, or a damaged one; get a fresh copy")
    fields = dict(_field(line) for line in raw[:at].decode("latin1").splitlines() if ":" in line)
    named = fields.get("data file", fields.get("datafile", ""))
    if fields.get("encoding", "").lower() not in ("gzip", "gz") or " " in named or "%" in named or named == "LIST":
        return ()
    data, start = (file.parent / named, 0) if named else (file, at + len(mark))
    if not data.is_file():
        raise InputError(f"{label}: its voxels should be in {data}, which does not exist")
    got = _inflated(data, start, label)
    sizes, width = fields.get("sizes", "").split(), _WIDTHS.get(fields.get("type", "").lower())
    if width is None or not all(n.isdigit() for n in sizes):
        return ()
    wanted = int(np.prod([int(n) for n in sizes], dtype=object)) * width
    if got < wanted:
        raise InputError(f"{label}: truncated, {got} of {wanted} voxel bytes come out of it; get a fresh copy")
    return ()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _inflated(data: Path, start: int, label: str) -> int:
    """How many bytes come out; the checksum is compared by zlib."""
    got, stream = 0, zlib.decompressobj(wbits=31)
    try:
        with open(data, "rb") as file:
            file.seek(start)
            while not stream.eof and (packed := file.read(_PIECE)):
                while packed and not stream.eof:
                    got += len(stream.decompress(packed, _PIECE))
                    packed = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"{label}: its compressed voxels are damaged; get a fresh copy") from error
    if not stream.eof:
        raise InputError(f"{label}: truncated or damaged, its compressed voxels have no end; get a fresh copy")
    return got

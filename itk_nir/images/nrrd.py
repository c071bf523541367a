"""What ITK's NRRD reader does not see: damage in packed pixels, whose checksum it does not compare, and headers that do
not say where the voxels lie."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError
from itk_nir.findings import Finding, warning
from itk_nir.images.metaimage import other_units
from itk_nir.images.volume import tensors

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
#: Spaces that say where the left and the front of an object are; they may have time as a fourth axis.
_ANATOMICAL = (
    "right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps", "rast", "last",
    "lpst",
)  # fmt: skip
#: Kinds of axes along which there is a step in space.
_SPATIAL = ("domain", "space", "???", "none")


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
        What is odd but can be read.

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
    # Not `splitlines`: it also ends a line at a byte 0x85, which is part of a letter in UTF-8.
    fields = dict(_field(line) for line in raw[:at].decode("latin1").split("\n") if ":" in line)
    if "-matrix" in fields.get("kinds", "").lower():
        raise tensors(label)
    found = _oddities(fields, label)
    named = os.fsdecode(fields.get("data file", fields.get("datafile", "")).encode("latin1"))
    if fields.get("encoding", "").lower() not in ("gzip", "gz") or " " in named or "%" in named or named == "LIST":
        return found
    data, start = (file.parent / named, 0) if named else (file, at + len(mark))
    if not data.is_file():
        raise InputError(f"{label}: its voxels should be in {data}, which does not exist")
    got = _inflated(data, start, label)
    sizes, width = fields.get("sizes", "").split(), _WIDTHS.get(fields.get("type", "").lower())
    if width is None or not all(n.isdigit() for n in sizes):
        return found
    wanted = int(np.prod([int(n) for n in sizes], dtype=object)) * width
    if got < wanted:
        raise InputError(f"{label}: truncated, {got} of {wanted} voxel bytes come out of it; get a fresh copy")
    return found


def _oddities(fields: dict[str, str], label: str) -> tuple[Finding, ...]:
    """What a header says of its space that is to be told, or does not say."""
    kinds = fields.get("kinds", "").lower().split()
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    dimension = len(fields.get("sizes", "").split())
    spatial = [
        k
        for k in range(dimension)
        if (k >= len(kinds) or kinds[k] in _SPATIAL) and (k >= len(directions) or directions[k] != "none")
    ]
    units = re.findall('"([^"]*)"', fields.get("units", ""))
    of_space = re.findall('"([^"]*)"', fields.get("space units", ""))
    found = [*other_units(label, [*of_space, *(u for k, u in enumerate(units) if k in spatial)])]
    if not directions:
        found += _steps(fields.get("spacings", ""), spatial, label)
    if len(spatial) == 3 and (not directions or fields.get("space", "").lower() not in _ANATOMICAL):
        found.append(
            warning(
                f"{label}: its header does not say how the object lies (no anatomical space, or no directions)",
                "the axes are taken for left, back and up, as ITK does; give it an orientation if that is wrong",
                orientation="unknown",
            )
        )
    return tuple(found)


def _steps(spacings: str, spatial: list[int], label: str) -> list[Finding]:
    """What is odd about voxels whose lengths stand alone, without a direction."""
    try:
        lengths = [float(v) for v in spacings.split()]
    except ValueError:  # its reader says so
        return []
    given = [lengths[k] for k in spatial if k < len(lengths)]
    if len(given) < len(spatial) or any(np.isnan(given)):
        return [warning(f"{label}: its header does not say how large its voxels are", "1 mm is taken")]
    if min(given, default=1.0) < 0:
        return [warning(f"{label}: its header has voxels of size {spacings}", "axes below 0 run backwards, as in ITK")]
    return []


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

"""What ITK does not see of PNG, JPEG, BMP and TIFF files: that their end is missing or damaged."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from itk_nir.errors import InputError
from itk_nir.findings import Finding

_PNG = b"\x89PNG\r\n\x1a\n"


def check_picture(file: Path, label: str) -> tuple[Finding, ...]:
    """Refuse a picture whose end is missing.

    Parameters
    ----------
    file : Path
        ``.png``, ``.jpg``, ``.bmp``, ``.tif``.
    label : str
        What opens every message.

    Returns
    -------
    tuple of Finding
        Empty.

    Raises
    ------
    InputError
        A truncated or damaged file. Whether it is a picture at all is left to its reader.
    """
    raw = file.read_bytes()
    good = True
    if raw[:8] == _PNG:
        good = _whole_png(raw)
    elif raw[:2] == b"\xff\xd8":
        good = b"\xff\xd9" in raw[-1024:]
    elif raw[:2] == b"BM" and len(raw) >= 30:
        good = len(raw) >= _bmp_length(raw)
    elif raw[:4] in (b"II*\0", b"MM\0*"):
        good = _whole_tiff(raw)
    if not good:
        raise InputError(f"{label}: truncated or damaged; get a fresh copy")
    return ()


def _whole_png(raw: bytes) -> bool:
    """Every chunk is there with a right checksum, the last is the end."""
    at = 8
    while at + 12 <= len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        end = at + 12 + length
        if end > len(raw) or zlib.crc32(raw[at + 4 : end - 4]) != struct.unpack_from(">I", raw, end - 4)[0]:
            return False
        if raw[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def _bmp_length(raw: bytes) -> int:
    """Bytes that the pixels need, where they are not packed."""
    start, header = struct.unpack_from("<II", raw, 10)
    if header < 40 or len(raw) < 34:  # an old kind of header, or one cut
        return max(start, 34)
    width, height, _, bits, packed = struct.unpack_from("<iihHI", raw, 18)
    return start if packed else start + (abs(width) * bits + 31) // 32 * 4 * abs(height)


def _whole_tiff(raw: bytes) -> bool:
    """The first image's strips or tiles are within the file."""
    order = "<" if raw[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", raw, 4)
    if at + 2 > len(raw):
        return False
    (count,) = struct.unpack_from(order + "H", raw, at)
    if at + 2 + 12 * count > len(raw):
        return False
    found: dict[int, list[int]] = {}
    for k in range(count):
        tag, kind, number = struct.unpack_from(order + "HHI", raw, at + 2 + 12 * k)
        if tag not in (273, 279, 324, 325) or kind not in (3, 4):
            continue
        width = 2 if kind == 3 else 4
        place = at + 2 + 12 * k + 8
        if width * number > 4:
            (place,) = struct.unpack_from(order + "I", raw, place)
        if place + width * number > len(raw):
            return False
        found[tag] = list(struct.unpack_from(f"{order}{number}{'H' if kind == 3 else 'I'}", raw, place))
    for offsets, lengths in ((273, 279), (324, 325)):
        pairs = zip(found.get(offsets, []), found.get(lengths, []), strict=False)
        if any(start + length > len(raw) for start, length in pairs):
            return False
    return True

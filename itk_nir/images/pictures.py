"""What ITK does not see of PNG, JPEG, BMP and TIFF files: missing or damaged parts, values it takes wrongly."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from itk_nir.errors import InputError
from itk_nir.findings import Finding

_PNG = b"\x89PNG\r\n\x1a\n"
#: Tags of TIFF: bits of a value, offsets and lengths of strips and of tiles, and what the bits mean.
_TAGS = (258, 273, 279, 324, 325, 339)


def check_picture(file: Path, label: str) -> tuple[Finding, ...]:
    """Refuse a picture of which a part is missing.

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
        A truncated or damaged file, or one of values that ITK would take for others. Whether it is a picture at all is
        left to its reader.
    """
    raw = file.read_bytes()
    good = True
    if raw[:8] == _PNG:
        good = _whole_png(raw)
    elif raw[:2] == b"\xff\xd8":
        good = b"\xff\xd9" in raw[-1024:]
    elif raw[:2] == b"BM" and len(raw) >= 30:
        good = len(raw) >= _bmp_length(raw)
    elif raw[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        pages = _tiff_pages(raw)
        good = _whole_tiff(raw, pages)
        _check_samples(pages, label)
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


def _tiff_pages(raw: bytes) -> list[dict[int, tuple[int, ...]]]:
    """What is to be known of every page of a TIFF or BigTIFF file; empty where one of them is not within the file."""
    order, big = "<" if raw[:2] == b"II" else ">", 43 in raw[2:4]
    many, word, width = ("Q", "Q", 20) if big else ("H", "I", 12)
    pages: list[dict[int, tuple[int, ...]]] = []
    known = set()
    try:
        (at,) = struct.unpack_from(order + word, raw, 8 if big else 4)
        while at:
            if at in known:  # a chain that runs in a circle
                return []
            known.add(at)
            (count,) = struct.unpack_from(order + many, raw, at)
            at += struct.calcsize(order + many)
            page = {}
            for place in range(at, at + width * count, width):
                (tag,) = struct.unpack_from(order + "H", raw, place)
                if tag in _TAGS:
                    page[tag] = _tiff_values(raw, order, word, place + 2)
            pages.append(page)
            (at,) = struct.unpack_from(order + word, raw, at + width * count)
    except (struct.error, OverflowError):  # beyond the end of the file
        return []
    return pages


def _tiff_values(raw: bytes, order: str, word: str, place: int) -> tuple[int, ...]:
    """The whole numbers of a tag, which stand in it where there is room; empty for those of another type."""
    kind, number = struct.unpack_from(order + "H" + word, raw, place)
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if form is None:
        return ()
    at, form = place + struct.calcsize(order + "H" + word), f"{order}{number}{form}"
    if struct.calcsize(form) > struct.calcsize(order + word):
        (at,) = struct.unpack_from(order + word, raw, at)
    return struct.unpack_from(form, raw, at)


def _whole_tiff(raw: bytes, pages: list[dict[int, tuple[int, ...]]]) -> bool:
    """Every page and its strips or tiles are within the file."""
    return bool(pages) and all(
        start + length <= len(raw)
        for page in pages
        for offsets, lengths in ((273, 279), (324, 325))
        for start, length in zip(page.get(offsets, ()), page.get(lengths, ()), strict=False)
    )


def _check_samples(pages: list[dict[int, tuple[int, ...]]], label: str) -> None:
    """Refuse types of values that ITK takes for whole numbers."""
    for page in pages:
        bits, kind = (next(iter(page.get(tag, ())), 1) for tag in (258, 339))
        if (kind == 3 and bits < 32) or kind in (5, 6):
            name = "complex" if kind > 3 else f"{bits}-bit floating-point"
            raise InputError(f"{label}: has {name} pixels, which cannot be read; save them as 32-bit floating-point")

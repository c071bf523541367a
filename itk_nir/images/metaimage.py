"""What ITK's MetaImage reader does not see: damage in the header, or in compressed pixels.

It reads a number that is none as 0, gives memory that nothing was written to where what should be compressed is not,
and takes what comes out of a damaged stream for pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError
from itk_nir.findings import Finding, warning
from itk_nir.images.volume import excess

#: Bytes of one value: to MetaIO a long has 4 on every system.
_WIDTHS = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4, "LONG_LONG": 8,
    "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
#: The longest header, in bytes, that is looked for its end.
_LONGEST = 1 << 20
_PIECE = 1 << 20
#: What is millimetres, or says nothing.
_MILLIMETRES = ("", "?", "???", "none", "mm", "millimeter", "millimeters", "millimetre", "millimetres")


def check_metaimage(file: Path, label: str) -> tuple[Finding, ...]:
    """Refuse a damaged header, and compressed or raw pixels that are not as many as it says.

    Parameters
    ----------
    file : Path
        ``.mha`` or ``.mhd``.
    label : str
        What opens every message.

    Returns
    -------
    tuple of Finding
        What is odd but can be read.

    Raises
    ------
    InputError
        Damage.
    """
    fields, length = _fields(file, label)
    sizes = _numbers(fields, ("DimSize",), label)
    if len(sizes) != _integer(fields, "NDims", label) or any(n < 1 or n != int(n) for n in sizes):
        raise InputError(
            f"{label}: its header says {fields.get('NDims')} axes of size {fields.get('DimSize')}; get a fresh copy"
        )
    for names, most in (
        (("ElementSpacing", "ElementSize"), len(sizes)),
        (("Offset", "Position", "Origin"), len(sizes)),
        (("TransformMatrix", "Rotation", "Orientation"), len(sizes) ** 2),
    ):
        values = _numbers(fields, names, label)
        if values and len(values) != most:
            raise InputError(f"{label}: its header has {len(values)} numbers at {names[0]} instead of {most}")
        if names[0] == "ElementSpacing" and any(v <= 0 for v in values):
            raise InputError(f"{label}: its header has voxels of size {fields.get('ElementSpacing')}; mend it")
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in _WIDTHS:
        raise InputError(f"{label}: its header has the type {fields.get('ElementType')} of values, which is none")
    channels = _integer(fields, "ElementNumberOfChannels", label) if "ElementNumberOfChannels" in fields else 1
    wanted = int(np.prod([int(n) for n in sizes], dtype=object)) * channels * _WIDTHS[kind]
    found = _check_data(file, label, fields, length, wanted)
    if not {"ElementSpacing", "ElementSize"} & set(fields):
        found = (*found, warning(f"{label}: its header does not say how large its voxels are", "1 mm is taken"))
    return (*found, *other_units(label, [fields.get("DistanceUnits", "")]))


def other_units(label: str, units: Iterable[str]) -> tuple[Finding, ...]:
    """Tell of lengths in other units than mm, which ITK's readers of MetaImage and NRRD do not look at.

    Parameters
    ----------
    label : str
        What opens the message.
    units : iterable of str
        What the header says; empty, ``"?"`` or any name of mm where there is nothing to tell.

    Returns
    -------
    tuple of Finding
        One or none.
    """
    others = sorted({u for u in units if u.strip().lower() not in _MILLIMETRES})
    if not others:
        return ()
    names = ", ".join(others)
    return (
        warning(
            f"{label}: its header says that lengths are in {names}",
            "the numbers are used as they are, as ITK does; mend its header",
            units=names,
        ),
    )


def _check_data(file: Path, label: str, fields: dict[str, str], length: int, wanted: int) -> tuple[Finding, ...]:
    named = fields["ElementDataFile"]
    binary = fields.get("BinaryData", "True").lower() not in ("false", "0", "no")
    # A list may say how many axes each of its files has: "LIST 2D".
    if named.upper() == "LOCAL" or named.upper().startswith("LIST") or "%" in named:
        data, start = file, length
        if named.upper() != "LOCAL":  # many files: ITK's reader misses those that are not there
            return ()
    else:
        data, start = file.parent / named, 0
        if not data.is_file():
            raise InputError(f"{label}: its voxels should be in {data}, which does not exist")
    if not binary:
        return ()
    if fields.get("CompressedData", "False").lower() in ("true", "1", "yes"):
        _check_compressed(data, start, wanted, label)
        return ()
    there = data.stat().st_size - start
    skipped = int(fields.get("HeaderSize", "0") or 0) if fields.get("HeaderSize", "0").lstrip("-").isdigit() else 0
    if there - max(skipped, 0) < wanted:
        raise InputError(f"{label}: truncated, {there} of {wanted} voxel bytes are there; get a fresh copy")
    if there == 2 * wanted and fields["ElementType"] in ("MET_LONG", "MET_ULONG") and not skipped:
        raise InputError(
            f"{label}: its header says {fields['ElementType']}, of 4 bytes, and its voxels have 8; write "
            f"{fields['ElementType']}_LONG there"
        )
    return () if skipped else excess(there - wanted, wanted, label)


def _check_compressed(data: Path, start: int, wanted: int, label: str) -> None:
    got, stream = 0, zlib.decompressobj()
    try:
        with open(data, "rb") as file:
            file.seek(start)
            while not stream.eof and (packed := file.read(_PIECE)):
                while packed and not stream.eof:
                    got += len(stream.decompress(packed, _PIECE))
                    packed = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"{label}: its compressed voxels are damaged, or not compressed; get a fresh copy") from error
    if not stream.eof or got != wanted:
        raise InputError(
            f"{label}: truncated or damaged, {got} of {wanted} voxel bytes come out of its compressed data; get "
            "a fresh copy"
        )


def _fields(file: Path, label: str) -> tuple[dict[str, str], int]:
    """The header's fields, and its length in bytes."""
    with open(file, "rb") as opened:
        raw = opened.read(_LONGEST)
    fields: dict[str, str] = {}
    at = 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        end = len(raw) if end < 0 else end
        line = raw[at:end].decode("utf-8", "replace").strip()
        at = end + 1
        name, equals, value = line.partition("=")
        if not equals:
            if line:
                break
            continue
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, at
    raise InputError(f"{label}: no MetaImage header, or a damaged one (it has no ElementDataFile); get a fresh copy")


def _numbers(fields: dict[str, str], names: tuple[str, ...], label: str) -> list[float]:
    name = next((n for n in names if n in fields), None)
    if name is None:
        return []
    try:
        values = [float(v) for v in fields[name].split()]
    except ValueError as error:
        raise InputError(f"{label}: its header says {name} = {fields[name]}, which are no numbers; mend it") from error
    if not np.isfinite(values).all():
        raise InputError(f"{label}: its header says {name} = {fields[name]}, which is not finite; mend it")
    return values


def _integer(fields: dict[str, str], name: str, label: str) -> int:
    values = _numbers(fields, (name,), label)
    if len(values) != 1 or values[0] != int(values[0]):
        raise InputError(f"{label}: its header says {name} = {fields.get(name)}, which is no whole number; mend it")
    return int(values[0])

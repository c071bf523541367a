"""VTK's files with points: legacy ``.vtk`` (text or binary) and ``.vtp`` (text)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import islice
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.points.table import F64, PointFile, agreed, as_text, in_plane, in_space, number, turned

_POINTS = re.compile(rb"^POINTS[ \t]+(\d+)[ \t]+(\w+)[ \t]*\r?\n", re.MULTILINE)
_TYPES = {b"float": ">f4", b"double": ">f8"}


def read_legacy(raw: bytes, file: Path, dimension: int | None, frame: str | None) -> PointFile:
    """Read the points of a legacy VTK file.

    Parameters
    ----------
    raw : bytes
        Content of the file.
    file : Path
        Its name.
    dimension : {2, 3} or None
        2 takes points at z = 0 as 2D ones.
    frame : {"lps", "ras"} or None
        What the user says; 3D Slicer's files say it in their title.

    Returns
    -------
    PointFile

    Raises
    ------
    InputError
        No points, fewer than it says, or values that are no numbers.
    """
    head = raw.split(b"\n", 4)[:3]
    match = _POINTS.search(raw)
    if len(head) < 3 or not head[0].startswith(b"# vtk DataFile") or match is None:
        raise InputError(f"points file {file}: damaged or no VTK file with points")
    where = f"points file {file}"
    digits, kind = match[1].decode(), match[2]
    truncated = f"{where}: truncated, it has not the {digits[:20]} points that it says; get a fresh copy"
    if len(digits) > 18:  # no file has, and Python does not count so far
        raise InputError(truncated)
    count = int(digits)
    if kind not in _TYPES:
        raise InputError(f"{where}: its points are of type {kind.decode()}; float or double is needed")
    if head[2].strip() == b"BINARY":
        dtype = np.dtype(_TYPES[kind])
        end = match.end() + 3 * count * dtype.itemsize
        if len(raw) < end:
            raise InputError(truncated)
        values = np.frombuffer(raw, dtype, 3 * count, match.end()).astype(float)
        if not np.isfinite(values).all():
            raise InputError(f"{where}: has NaN or infinite coordinates; remove those points")
    else:
        rest = raw[match.end() :]
        cells = list(islice(re.finditer(rb"\S+", rest), 3 * count))
        # A number at the very end of the file may have lost some of its digits.
        if len(cells) < 3 * count or (cells and cells[-1].end() == len(rest)):
            raise InputError(truncated)
        values = np.array([number(c.group().decode("latin-1"), where) for c in cells])
        end = match.end() + (cells[-1].end() if cells else 0)
    space = re.search(rb"SPACE=(RAS|LPS)", head[1])
    own = agreed(space[1].decode().lower() if space else None, frame, file)
    points = turned(values.reshape(-1, 3), own)
    return PointFile(in_plane(points, dimension, file), "vtk", own, (), (raw[: match.end()], raw[end:], kind, head[2]))


def write_legacy(source: PointFile, points: F64, path: Path) -> bytes:
    """Write points as a legacy VTK file: as the one that they came from, or a new one, text in LPS.

    Parameters
    ----------
    source : PointFile
        What was read.
    points : numpy.ndarray
        ``(N, d)``, LPS mm.
    path : Path
        The file.

    Returns
    -------
    bytes
    """
    p = in_space(points)
    if source.kind == "vtk":
        before, after, kind, form = source.content
        p = turned(p, source.frame)
        if form.strip() == b"BINARY":
            return bytes(before + p.astype(_TYPES[kind]).tobytes() + after)
        return bytes(before + _rows(p).encode() + after)
    n = len(p)
    vertices = "".join(f"1 {k}\n" for k in range(n))
    text = (
        f"# vtk DataFile Version 3.0\npoints SPACE=LPS\nASCII\nDATASET POLYDATA\nPOINTS {n} double\n{_rows(p)}\n"
        f"VERTICES {n} {2 * n}\n{vertices}"
    )
    return text.encode()


def read_xml(raw: bytes, file: Path, dimension: int | None, frame: str | None) -> PointFile:
    """Read the points of a ``.vtp``.

    Parameters
    ----------
    raw, file, dimension, frame
        As of `read_legacy`.

    Returns
    -------
    PointFile

    Raises
    ------
    InputError
        No points, several pieces, or values that are not text.
    """
    where = f"points file {file}"
    if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:
        raise InputError(f"{where}: has a document type of its own; VTK's files have none")
    try:
        root = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{where}: damaged, or not all of it is text ({one_line(error)}); write ASCII") from error
    pieces = root.findall("./PolyData/Piece")
    arrays = [piece.find("./Points/DataArray") for piece in pieces]
    if len(arrays) != 1 or arrays[0] is None:
        raise InputError(f"{where}: has {len(arrays)} pieces with points; one is needed")
    array = arrays[0]
    if array.get("format") != "ascii":
        raise InputError(f"{where}: its points are {array.get('format')}; write the file as ASCII")
    values = [number(cell, where) for cell in (array.text or "").split()]
    count = pieces[0].get("NumberOfPoints", "")
    if count != str(len(values) // 3) or len(values) % 3 or array.get("NumberOfComponents") != "3":
        raise InputError(f"{where}: has {len(values)} numbers for {count or 'an unknown number of'} points")
    own = agreed(None, frame, file)
    points = turned(np.array(values, float).reshape(-1, 3), own)
    return PointFile(in_plane(points, dimension, file), "vtp", own, (), root)


def write_xml(source: PointFile, points: F64, path: Path) -> bytes:
    """Write points as a ``.vtp``: as the one that they came from, or a new one in LPS.

    Parameters
    ----------
    source, points, path
        As of `write_legacy`.

    Returns
    -------
    bytes
    """
    p = in_space(points)
    if source.kind == "vtp":
        root = ElementTree.fromstring(ElementTree.tostring(source.content))
        array = root.find("./PolyData/Piece/Points/DataArray")
        assert array is not None
        p = turned(p, source.frame)
        for key in [k for k in array.attrib if k.startswith("Range")]:
            del array.attrib[key]
    else:
        root = ElementTree.Element("VTKFile", type="PolyData", version="0.1", byte_order="LittleEndian")
        n = str(len(p))
        piece = ElementTree.SubElement(ElementTree.SubElement(root, "PolyData"), "Piece", NumberOfPoints=n)
        piece.set("NumberOfVerts", n)
        place = ElementTree.SubElement(piece, "Points")
        array = ElementTree.SubElement(place, "DataArray", type="Float64", NumberOfComponents="3", format="ascii")
        vertices = ElementTree.SubElement(piece, "Verts")
        for name, cells in (("connectivity", range(len(p))), ("offsets", range(1, len(p) + 1))):
            part = ElementTree.SubElement(vertices, "DataArray", type="Int64", Name=name, format="ascii")
            part.text = " ".join(map(str, cells))
    array.text = f"\n{_rows(p)}\n"
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _rows(points: F64) -> str:
    return "\n".join(" ".join(row) for row in as_text(points))

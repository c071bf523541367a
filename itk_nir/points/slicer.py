"""3D Slicer's lists of points: ``.fcsv`` and ``.mrk.json``, which say their coordinate system."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.points.table import (
    F64,
    PointFile,
    agreed,
    as_text,
    in_plane,
    in_space,
    lines_of,
    number,
    numbered,
    turned,
)

_SYSTEMS = {"0": "ras", "ras": "ras", "1": "lps", "lps": "lps"}
#: Cells at the end of a row of Slicer's that its header does not name.
_UNNAMED = 2
_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"


def read_fcsv(raw: bytes, file: Path, dimension: int | None, frame: str | None) -> PointFile:
    """Read a ``.fcsv``.

    Parameters
    ----------
    raw : bytes
        Content of the file.
    file : Path
        Its name.
    dimension : {2, 3} or None
        2 takes points at z = 0 as 2D ones.
    frame : {"lps", "ras"} or None
        What the user says; the file says it itself.

    Returns
    -------
    PointFile

    Raises
    ------
    InputError
        No coordinate system, voxel coordinates, rows without three numbers, or that are no CSV.
    """
    lines = lines_of(raw, file)
    told, columns, rows, at = None, _COLUMNS.split(","), [], []
    for k, line in enumerate(lines, 1):
        if line.startswith("#"):
            key, _, value = (part.strip() for part in line.lstrip("# ").partition("="))
            if key == "CoordinateSystem":
                told = _system(value, file)
            elif key == "columns":
                columns = [c.strip() for c in value.split(",")]
        elif line.strip():
            rows.append(_cells(line, f"points file {file}: line {k}"))
            at.append(k)
    if told is None:
        raise InputError(f"points file {file}: lacks Slicer's line '# CoordinateSystem = ...'; is it cut off?")
    if not {"x", "y", "z"} <= set(columns):
        raise InputError(f"points file {file}: its columns are {', '.join(columns)}; x, y and z are needed")
    xyz = [columns.index(a) for a in "xyz"]
    points = np.empty((len(rows), 3))
    for row, line_number, point in zip(rows, at, points, strict=True):
        where = f"points file {file}: line {line_number}"
        if len(row) <= max(xyz) or len(row) > len(columns) + _UNNAMED:
            raise InputError(f"{where} has {len(row)} cells, the columns are {len(columns)}")
        point[:] = [number(row[i], where) for i in xyz]
    label = columns.index("label") if "label" in columns else None
    names = () if label is None else tuple(row[label] if label < len(row) else "" for row in rows)
    own = agreed(told, frame, file)
    return PointFile(in_plane(turned(points, own), dimension, file), "fcsv", own, names, (lines, xyz))


def write_fcsv(source: PointFile, points: F64, path: Path) -> bytes:
    """Write points as a ``.fcsv``: as the one that they came from, or a new one in LPS.

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
    own = source.kind == "fcsv"
    cells = iter(as_text(turned(in_space(points), source.frame if own else "lps")))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if not own:
        out.write(f"# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n# columns = {_COLUMNS}\n")
        # Slicer reads a row a line, whatever the quotes say.
        names = (re.sub(r"[\r\n]+", " ", name) for name in numbered(source.names, len(points)))
        rows = enumerate(zip(names, cells, strict=True), 1)
        writer.writerows([k, *cell, 0, 0, 0, 1, 1, 1, 0, name, "", ""] for k, (name, cell) in rows)
        return out.getvalue().encode("utf-8")
    lines, xyz = source.content
    for line in lines:
        if line.startswith("#") or not line.strip():
            out.write(line + "\n")
            continue
        row = _cells(line, str(path))
        for i, cell in zip(xyz, next(cells), strict=True):
            row[i] = cell
        writer.writerow(row)
    return out.getvalue().encode("utf-8")


def read_markups(raw: bytes, file: Path, dimension: int | None, frame: str | None) -> PointFile:
    """Read a ``.mrk.json``, the control points of all its markups one after the other.

    Parameters
    ----------
    raw, file, dimension, frame
        As of `read_fcsv`.

    Returns
    -------
    PointFile

    Raises
    ------
    InputError
        No markups, no coordinate system, units that are not mm, or points without a position.
    """
    try:
        whole = json.loads("\n".join(lines_of(raw, file)))
        markups = whole["markups"]
        lists = [(m, [*m["controlPoints"]]) for m in markups]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"points file {file}: damaged or no markups of 3D Slicer's ({one_line(error)})") from error
    found: list[F64] = []
    names: list[str] = []
    frames: set[str] = set()
    for markup, controls in lists:
        own = _system(str(markup.get("coordinateSystem")), file)
        frames.add(own)
        unit = _unit(markup.get("coordinateUnits", "mm"))
        if unit != "mm":
            raise InputError(f"points file {file}: its coordinates are in {unit}; mm are needed")
        for control in controls:
            where = f"points file {file}: point {len(found) + 1}"
            position = control.get("position") if isinstance(control, dict) else None
            status = control.get("positionStatus", "defined") if isinstance(control, dict) else None
            if not _is_position(position) or status != "defined":
                raise InputError(f"{where} has no position of three numbers ({position!r}); remove it")
            found.append(turned(np.array([position], float), own)[0])
            names.append(str(control.get("label", "")))
    told = agreed(frames.pop(), frame, file) if len(frames) == 1 else "lps"
    points = np.array(found, float).reshape(-1, 3)
    return PointFile(in_plane(points, dimension, file), "markups", told, tuple(names), whole)


def write_markups(source: PointFile, points: F64, path: Path) -> bytes:
    """Write points as a ``.mrk.json``: as the one that they came from, or a new one in LPS.

    Parameters
    ----------
    source, points, path
        As of `write_fcsv`.

    Returns
    -------
    bytes
    """
    p = in_space(points)
    whole: Any
    if source.kind == "markups":
        whole = json.loads(json.dumps(source.content))
        rest = iter(p)
        for markup in whole["markups"]:
            own = _system(str(markup["coordinateSystem"]), path)
            for control in markup["controlPoints"]:
                control["position"] = turned(next(rest)[None], own)[0].tolist()
    else:
        controls = [
            {"id": str(k), "label": name, "position": q.tolist(), "positionStatus": "defined"}
            for k, (name, q) in enumerate(zip(numbered(source.names, len(p)), p, strict=True), 1)
        ]
        fiducials = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
        schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema"
        whole = {"@schema": f"{schema}/markups-schema-v1.0.3.json#", "markups": [fiducials]}
    return (json.dumps(whole, indent=4) + "\n").encode("utf-8")


def _cells(line: str, where: str) -> list[str]:
    try:
        (row,) = csv.reader([line])
    except csv.Error as error:
        raise InputError(f"{where} is no CSV text ({one_line(error)})") from error
    return row


def _system(text: str, file: Path) -> str:
    found = _SYSTEMS.get(text.strip().lower())
    if found is None:
        what = "voxel indices (IJK)" if text.strip().lower() in ("2", "ijk") else repr(text)
        raise InputError(f"points file {file}: its coordinate system is {what}; LPS or RAS is needed")
    return found


def _is_position(value: Any) -> bool:
    """Whether something out of JSON is three finite numbers."""
    if not (isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)):
        return False
    try:
        return bool(np.isfinite([float(v) for v in value]).all())
    except OverflowError:  # whole numbers of JSON's have any length
        return False


def _unit(value: Any) -> str:
    """Slicer writes "mm" or the code of a unit, ``["mm", "UCUM", "millimeter"]``."""
    return str(value[0] if isinstance(value, list) and value else value)

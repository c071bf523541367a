"""The point files of elastix and transformix: ``point`` (LPS mm) or ``index``, their number, and a row each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError
from itk_nir.points.table import F64, PointFile, agreed, as_text, lines_of, number


def is_elastix(raw: bytes) -> bool:
    """Tell whether a file begins as transformix' point files do.

    Parameters
    ----------
    raw : bytes
        Its content.

    Returns
    -------
    bool
    """
    return re.match(rb"\s*((point|index)\s+)?\d+\s*?\n", raw) is not None


def read(raw: bytes, file: Path, dimension: int | None, frame: str | None) -> PointFile:
    """Read a point file.

    Parameters
    ----------
    raw : bytes
        Content of the file.
    file : Path
        Its name.
    dimension : {2, 3} or None
        What the rows say where it is None.
    frame : {"lps", "ras"} or None
        What the user says; these files are in LPS.

    Returns
    -------
    PointFile

    Raises
    ------
    InputError
        An empty file, voxel indices, another number of rows than it says, or rows that are no points.
    """
    lines = [(k, line.split()) for k, line in enumerate(lines_of(raw, file), 1) if line.strip()]
    if not lines:
        raise InputError(f"points file {file}: is empty; it begins with 'point', their number and a row for each")
    if lines[0][1][0] != "point":
        raise InputError(
            f"points file {file}: holds voxel indices of the fixed image (its first line is no 'point'); write LPS mm "
            "under 'point'"
        )
    cells = [(k, cell) for k, row in lines for cell in row][1:]
    count = int(cells[0][1]) if cells and re.fullmatch(r"[0-9]{1,18}", cells[0][1]) else -1
    rows = [row for k, row in lines if k > cells[0][0]] if cells else []
    d = dimension or (len(rows[0]) if rows else 3)
    bad = next((row for row in rows if len(row) != d), None)
    if len(rows) != count or d not in (2, 3) or bad is not None:
        what = f"a row of {len(bad)} numbers" if bad else f"{len(rows)} rows"
        raise InputError(f"points file {file}: says {max(count, 0)} points of {d} coordinates but has {what}")
    own = agreed("lps", frame, file)
    at = [k for k, _ in lines if k > cells[0][0]]
    values = [[number(c, f"points file {file}: line {k}") for c in row] for k, row in zip(at, rows, strict=True)]
    return PointFile(np.array(values, float).reshape(-1, d), "elastix", own)


def write(source: PointFile, points: F64, path: Path) -> bytes:
    """Write a point file.

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
    rows = "".join(" ".join(row) + "\n" for row in as_text(points))
    return f"point\n{len(points)}\n{rows}".encode()

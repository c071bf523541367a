"""Point files by their format: one table, each row reads and writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import ArrayLike

from itk_nir.atomic import replacing
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import checked_points
from itk_nir.places import check_input
from itk_nir.points import delimited, elastix, slicer, vtk
from itk_nir.points.table import F64, FRAMES, PointFile


@dataclass(frozen=True)
class Format:
    """A format of point files.

    Attributes
    ----------
    endings : tuple of str
        Of the names.
    read, write : callable
        From and to the bytes of a file.
    """

    endings: tuple[str, ...]
    read: Callable[[bytes, Path, int | None, str | None], PointFile]
    write: Callable[[PointFile, F64, Path], bytes]


FORMATS = {
    "fcsv": Format((".fcsv",), slicer.read_fcsv, slicer.write_fcsv),
    "csv": Format((".csv", ".tsv"), delimited.read, delimited.write),
    "markups": Format((".json",), slicer.read_markups, slicer.write_markups),
    "vtk": Format((".vtk",), vtk.read_legacy, vtk.write_legacy),
    "vtp": Format((".vtp",), vtk.read_xml, vtk.write_xml),
    "elastix": Format((".pts",), elastix.read, elastix.write),
}


def load_points(
    path: str | os.PathLike[str], dimension: int | None = None, *, frame: str | None = None
) -> PointFile:  # fmt: skip
    """Read a file of points.

    Parameters
    ----------
    path : str or os.PathLike
        A table whose header names the columns ``x, y[, z]`` (or ``l, p, s``, or ``r, a, s``) in any order and case,
        with others beside them: CSV with ``,``, ``;`` or tabs, BIDS' ``.tsv``; 3D Slicer's ``.fcsv`` or ``.mrk.json``;
        VTK's ``.vtk`` or ``.vtp``; transformix' points.
    dimension : {2, 3}, optional
        What the file says when left out.
    frame : {"lps", "ras"}, optional
        What the coordinates are in, mm. Left out: what the file says, or else LPS.

    Returns
    -------
    PointFile
        The points in LPS, and the file they stand in.

    Raises
    ------
    InputError
        Missing file, no coordinates, or one that is no finite number: with the line and what was got.
    OptionError
        No such frame.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "landmarks.csv"
    >>> _ = file.write_text("name,x,y\\ntip,1.5,-2\\nbase,0,4\\n")
    >>> load_points(file).points.tolist()
    [[1.5, -2.0], [0.0, 4.0]]
    """
    if frame is not None and frame not in FRAMES:
        raise OptionError(f"frame is one of {', '.join(FRAMES)}, got {frame!r}")
    file = Path(path)
    check_input(path, f"points file {file}")
    if not file.is_file():
        raise InputError(f"points file {file}: no such file; check the path")
    raw = file.read_bytes()
    kind = _kind(file)
    if kind is None:
        kind = next((k for k, mark in _MARKS.items() if raw.lstrip().startswith(mark)), "csv")
        kind = "elastix" if elastix.is_elastix(raw) else kind
    found = FORMATS[kind].read(raw, file, dimension, frame)
    if dimension is not None and found.points.shape[1] != dimension:
        raise InputError(f"points file {file}: its points are {found.points.shape[1]}D, {dimension}D ones are needed")
    return found


def save_points(source: PointFile, points: ArrayLike, path: str | os.PathLike[str]) -> None:
    """Write moved points as the file they came from: its format, columns and frame; complete or not at all.

    Parameters
    ----------
    source : PointFile
        The file they came from.
    points : array_like
        ``(N, d)``, LPS mm, in the order of ``source.points``.
    path : str or os.PathLike
        The file to write. Where its ending is that of another format, it is written in that, in LPS.

    Raises
    ------
    InputError
        Another number of points or coordinates than the file has, what is no finite real number, or no such folder.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "landmarks.csv").write_text("name,x,y\\ntip,1.5,-2\\n")
    >>> table = load_points(folder / "landmarks.csv")
    >>> save_points(table, table.points + 1, folder / "moved.csv")
    >>> (folder / "moved.csv").read_text().splitlines()
    ['name,x,y', 'tip,2.500000,-1.000000']
    """
    target = Path(path)
    values = checked_points(points, source.points.shape[1])
    if values.shape != source.points.shape:
        raise InputError(f"{target}: the table has {source.points.shape} coordinates, got {values.shape}")
    content = FORMATS[_kind(target) or source.kind].write(source, values, target)
    with replacing(target) as temporary:
        temporary.write_bytes(content)


#: What files of other endings begin with.
_MARKS = {"fcsv": b"# Markups", "markups": b"{", "vtk": b"# vtk", "vtp": b"<"}


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for kind, form in FORMATS.items() if name.endswith(form.endings)), None)

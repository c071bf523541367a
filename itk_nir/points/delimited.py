"""Tables with a header line: CSV with ``,`` or ``;``, and ``.tsv``."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError, escaped, one_line
from itk_nir.points.table import F64, PointFile, agreed, as_text, lines_of, number, numbered, turned

#: Names of the coordinate columns, and the frame that they tell.
_AXES: tuple[tuple[str, str | None], ...] = (("xyz", None), ("lps", "lps"), ("ras", "ras"))
_NAMES = ("name", "label")
#: The column in which 3D Slicer says whether a point was ever placed: one that was not is at 0, 0, 0.
_DEFINED = "defined"


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes
    ----------
    delimiter : str
        What separates the cells.
    ending : str
        Of the file's name, which may stand for it.
    comma : bool
        Whether numbers have a decimal comma.
    columns : tuple of str
        The header.
    rows : tuple of tuple of str
        The cells, so that other columns go out as they came in.
    at : tuple of int
        Which columns are the coordinates.
    """

    delimiter: str
    ending: str
    comma: bool
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    at: tuple[int, ...]


def read(raw: bytes, file: Path, dimension: int | None, frame: str | None) -> PointFile:
    """Read a table.

    Parameters
    ----------
    raw : bytes
        Content of the file.
    file : Path
        Its name.
    dimension : {2, 3} or None
        What the header says where it is None.
    frame : {"lps", "ras"} or None
        What the user says of it.

    Returns
    -------
    PointFile

    Raises
    ------
    InputError
        No coordinate columns, some twice, rows with more cells than columns, cells that are no number, a point of 3D
        Slicer's that was never placed.
    """
    lines = lines_of(raw, file)
    head = next((line for line in lines if line.strip()), "")
    delimiter = "\t" if file.name.lower().endswith(".tsv") else next((c for c in ";\t" if c in head), ",")
    try:
        # With the line ends, which belong to the cell in quotes.
        reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
        table = [(reader.line_num, row) for row in reader if row and any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"points file {file}: is no CSV text ({one_line(error)})") from error
    columns = tuple(table[0][1]) if table else ()
    at, told = _coordinate_columns(columns, dimension, file)
    defined = None if told is None else next((i for i, c in enumerate(columns) if c.strip().lower() == _DEFINED), None)
    comma = delimiter == ";" and any("," in row[i] for _, row in table[1:] for i in at if i < len(row))
    points = np.empty((len(table) - 1, len(at)))
    for k, (line, row) in enumerate(table[1:]):
        where = f"points file {file}: line {line} (row {k + 1})"
        if len(row) > len(columns):
            raise InputError(
                f"{where} has {len(row)} cells but the header {len(columns)} columns: {delimiter.join(row)[:60]!r}; "
                "are these decimal commas? Separate the columns by ;"
            )
        if len(row) <= max(at):
            raise InputError(f"{where} has no {len(at)} numbers: {delimiter.join(row)[:60]!r}")
        if defined is not None and defined < len(row) and row[defined].strip() == "0":
            raise InputError(f"{where} is a point that was never placed (its column {_DEFINED} is 0); remove that row")
        for axis, i in enumerate(at):
            cell = row[i]
            if comma and "." in cell:
                raise InputError(
                    f"{where}: {cell!r} has a decimal point, other rows have decimal commas; use one of them"
                )
            points[k, axis] = number(cell.replace(",", ".") if comma and cell.count(",") == 1 else cell, where)
    frame = agreed(told, frame, file)
    rows = tuple(tuple(row) for _, row in table[1:])
    label = next((i for i, c in enumerate(columns) if c.strip().lower() in _NAMES), None)
    names = () if label is None else tuple(row[label] if label < len(row) else "" for row in rows)
    return PointFile(
        turned(points, frame),
        "csv",
        frame,
        names,
        Table(delimiter, file.suffix.lower(), comma, columns, rows, tuple(at)),
    )


def write(source: PointFile, points: F64, path: Path) -> bytes:
    """Write moved points with the columns of the table that they came from, or as a new table.

    Parameters
    ----------
    source : PointFile
        What was read.
    points : numpy.ndarray
        ``(N, d)``, LPS mm.
    path : Path
        Its ending chooses between tabs and commas where the table came from another format.

    Returns
    -------
    bytes
    """
    table = source.content
    tabs = path.name.lower().endswith(".tsv")
    if not isinstance(table, Table):
        d = points.shape[1]
        rows = tuple((name, *[""] * d) for name in numbered(source.names, len(points)))
        table = Table("\t" if tabs else ",", "", False, ("name", *"xyz"[:d]), rows, tuple(range(1, d + 1)))
        frame = "lps"
    else:
        frame = source.frame
        # A .tsv has tabs, and what was one has none as a .csv.
        commas = table.ending == ".tsv" and path.suffix.lower() == ".csv"
        if tabs or commas:
            table = replace(table, delimiter="\t" if tabs else ",", comma=False)
    out = io.StringIO()
    writer = csv.writer(out, delimiter=table.delimiter, lineterminator="\n")
    writer.writerow(table.columns)
    for row, cells in zip(table.rows, as_text(turned(points, frame)), strict=True):
        new = list(row)
        for i, cell in zip(table.at, cells, strict=True):
            new[i] = cell.replace(".", ",") if table.comma else cell
        writer.writerow(new)
    return out.getvalue().encode("utf-8")


def _coordinate_columns(columns: tuple[str, ...], dimension: int | None, file: Path) -> tuple[list[int], str | None]:
    names = [c.strip().lower() for c in columns]
    for word, frame in _AXES:
        d = dimension or (3 if word[2] in names else 2)
        axes = word[:d]
        if set(axes) <= set(names):
            twice = [a for a in axes if names.count(a) > 1]
            if twice:
                raise InputError(f"points file {file}: has the column {', '.join(twice)} twice; leave one of them")
            return [names.index(a) for a in axes], frame
    axes = "xyz" if dimension == 3 or (dimension is None and "z" in names) else "xy"
    missing = [a for a in axes if a not in names]
    raise InputError(
        f"points file {file}: the header has no column {', '.join(missing)}; it must name {', '.join(axes)} "
        f"(or l,p,s or r,a,s), got {escaped(', '.join(columns)[:200]) or 'nothing'}"
    )

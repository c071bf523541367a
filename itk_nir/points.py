"""Tables of points (CSV)."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.atomic import replacing
from itk_nir.errors import InputError, one_line
from itk_nir.places import check_input


@dataclass(frozen=True, eq=False)
class PointFile:
    """A table of points.

    Attributes
    ----------
    points : numpy.ndarray
        ``(N, d)``, LPS mm.
    columns : tuple of str
        The header, ``x, y[, z]`` among them.
    rows : tuple of tuple of str
        The cells as text, so that other columns go out as they came in.
    """

    points: NDArray[np.float64]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def load_points(path: str | os.PathLike[str], dimension: int | None = None) -> PointFile:
    """Read a CSV file of points.

    Parameters
    ----------
    path : str or os.PathLike
        Its header names the columns ``x, y[, z]`` (LPS mm) in any order and case; there may be others.
    dimension : {2, 3}, optional
        What the header says when left out.

    Returns
    -------
    PointFile
        The points, and the table they stand in.

    Raises
    ------
    InputError
        Missing file, no such columns, or a cell that is no finite number.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "landmarks.csv"
    >>> _ = file.write_text("name,x,y\\ntip,1.5,-2\\nbase,0,4\\n")
    >>> load_points(file).points.tolist()
    [[1.5, -2.0], [0.0, 4.0]]
    """
    file = Path(path)
    check_input(path, f"points file {file}")
    if not file.is_file():
        raise InputError(f"points file {file}: no such file; check the path")
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            table = [row for row in csv.reader(handle, skipinitialspace=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"points file {file}: is no CSV text ({one_line(error)})") from error
    columns = tuple(table[0]) if table else ()
    at = _coordinate_columns(columns, dimension, file)
    points = np.empty((len(table) - 1, len(at)))
    for number, row in enumerate(table[1:]):
        try:
            points[number] = [float(row[i]) for i in at]
        except (ValueError, IndexError) as error:
            raise InputError(f"points file {file}: row {number + 1} has no {len(at)} numbers: {row}") from error
    if not np.isfinite(points).all():
        raise InputError(f"points file {file}: has NaN or infinite coordinates; remove those rows")
    return PointFile(points, columns, tuple(tuple(row) for row in table[1:]))


def save_points(source: PointFile, points: ArrayLike, path: str | os.PathLike[str]) -> None:
    """Write moved points with the columns of the table they came from; the file appears complete or not at all.

    Parameters
    ----------
    source : PointFile
        The table they came from.
    points : array_like
        ``(N, d)``, LPS mm, in the order of ``source.points``.
    path : str or os.PathLike
        The file to write.

    Raises
    ------
    InputError
        Another number of points or coordinates than the table has, or no such folder.

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
    values = np.asarray(points, float)
    if values.shape != source.points.shape:
        raise InputError(f"{target}: the table has {source.points.shape} coordinates, got {values.shape}")
    at = _coordinate_columns(source.columns, values.shape[1], target)
    with replacing(target) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(source.columns)
        for row, point in zip(source.rows, values, strict=True):
            cells = list(row)
            for i, value in zip(at, point, strict=True):
                cells[i] = f"{value:.6f}"
            writer.writerow(cells)


def _coordinate_columns(columns: Sequence[str], dimension: int | None, file: Path) -> list[int]:
    names = [c.strip().lower() for c in columns]
    axes = "xyz" if dimension == 3 or (dimension is None and "z" in names) else "xy"
    missing = [a for a in axes if a not in names]
    if missing:
        raise InputError(
            f"points file {file}: the header has no column {', '.join(missing)}; it must name {', '.join(axes)} "
            f"(LPS mm), got {', '.join(columns) or 'nothing'}"
        )
    return [names.index(a) for a in axes]

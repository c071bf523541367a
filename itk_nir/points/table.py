"""What the formats of point files have in common: what was read, numbers as text, frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError
from itk_nir.findings import Finding, warning
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

FRAMES = ("lps", "ras")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, eq=False)
class PointFile:
    """The points of a file.

    Attributes
    ----------
    points : numpy.ndarray
        ``(N, d)``, LPS mm.
    kind : str
        The format: a key of `files.FORMATS`.
    frame : {"lps", "ras"}
        What the numbers in the file are in.
    names : tuple of str
        Their names, one for each; none where the file has none.
    content : object
        What else the file holds, for the format's own writer.
    """

    points: F64
    kind: str
    frame: str = "lps"
    names: tuple[str, ...] = ()
    content: Any = None


def number(text: str, where: str) -> float:
    """Read a finite decimal number.

    Parameters
    ----------
    text : str
        The cell.
    where : str
        What opens the message: the file and the line.

    Returns
    -------
    float

    Raises
    ------
    InputError
        Anything else: words, NaN, infinity, digits with underscores, a comma.
    """
    cell = text.strip()
    if _NUMBER.fullmatch(cell):
        value = float(cell)
        if np.isfinite(value):
            return value
    hint = ""
    if re.fullmatch(r"[+-]?\d*,\d+", cell):
        hint = "; a decimal comma is read where ; separates the columns, and nowhere else"
    elif cell.lower() in ("", "nan", "n/a", "na", "inf", "-inf", "infinity"):
        hint = "; remove that row (NaN, infinite and missing coordinates cannot be used)"
    raise InputError(f"{where}: {cell!r} is no finite number{hint}")


def turned(points: F64, frame: str) -> F64:
    """Turn points from a frame to LPS, or from LPS to the frame.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, d)`` mm.
    frame : {"lps", "ras"}
        The frame.

    Returns
    -------
    numpy.ndarray
    """
    return points if frame == "lps" else points * np.array([-1.0, -1.0, 1.0])[: points.shape[1]]


def agreed(told: str | None, asked: str | None, file: Path) -> str:
    """Decide on the frame of a file.

    Parameters
    ----------
    told : {"lps", "ras"} or None
        What the file says itself.
    asked : {"lps", "ras"} or None
        What the user says.
    file : Path
        The file, for the message.

    Returns
    -------
    str
        LPS where neither says anything.

    Raises
    ------
    InputError
        The two contradict each other.
    """
    if told is not None and asked is not None and told != asked:
        raise InputError(
            f"points file {file}: says that it is in {told.upper()}, but the frame {asked} was given; leave it out"
        )
    return told or asked or "lps"


def in_plane(points: F64, dimension: int | None, file: Path) -> F64:
    """Take 2D points out of a format that always has three coordinates.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, 3)``.
    dimension : {2, 3} or None
        What is wanted.
    file : Path
        The file, for the message.

    Returns
    -------
    numpy.ndarray
        ``(N, 2)`` for 2, else the points as they are.

    Raises
    ------
    InputError
        2D points are wanted, and these are not all at z = 0.
    """
    if dimension != 2:
        return points
    if np.abs(points[:, 2]).max(initial=0.0) > 0:
        raise InputError(f"points file {file}: its points are 3D, 2D ones are needed (z = 0)")
    return points[:, :2]


def in_space(points: F64) -> F64:
    """Give 2D points a third coordinate of 0, for formats that always have three.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, d)``.

    Returns
    -------
    numpy.ndarray
        ``(N, 3)``.
    """
    return np.pad(points, [(0, 0), (0, 3 - points.shape[1])])


def as_text(points: F64) -> list[list[str]]:
    """Write coordinates as text: six decimals, and more where the points lie that close together.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, d)``.

    Returns
    -------
    list of list of str
        A row for each point.
    """
    spread = float(np.ptp(points, axis=0).max(initial=0.0)) if len(points) > 1 else 0.0
    size = spread or float(np.abs(points).max(initial=1.0)) or 1.0
    decimals = int(np.clip(np.ceil(6 - np.log10(size)), 6, 16))
    return [[f"{value:.{decimals}f}" for value in row] for row in points]


def beyond(points: ArrayLike, grid: Geometry, what: str) -> Finding | None:
    """Tell which points lie outside a grid.

    Parameters
    ----------
    points : array_like
        ``(N, d)``, LPS mm.
    grid : Geometry
        The grid; half a voxel around its outermost centres belongs to it.
    what : str
        What the grid is, for the text.

    Returns
    -------
    Finding or None
        A warning with their number, the first rows (counted from 1) and the largest distance; None where all lie
        inside.
    """
    p = np.asarray(points, float)
    rows = np.flatnonzero(~grid.contains(p))
    if not len(rows):
        return None
    index = grid.physical_to_index(p[rows])
    nearest = grid.index_to_physical(np.clip(index, -0.5, np.asarray(grid.size) - 0.5))
    farthest = float(np.linalg.norm(p[rows] - nearest, axis=1).max())
    some = ", ".join(str(row + 1) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    return warning(
        f"{len(rows)} of {len(p)} points lie outside {what} (row {some}; up to {farthest:.3g} mm from it)",
        "only the linear part of a transform moves them there; check their frame (LPS or RAS)",
        outside=len(rows),
        farthest=farthest,
    )


def lines_of(raw: bytes, file: Path) -> list[str]:
    """Give the lines of a text file, without their ends.

    Parameters
    ----------
    raw : bytes
        Its content.
    file : Path
        The file, for the message.

    Returns
    -------
    list of str

    Raises
    ------
    InputError
        It is no text.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Names and comments of older programs, of which every byte is a letter.
        text = raw.decode("latin-1").removeprefix("\xef\xbb\xbf")
    if "\0" in text:
        raise InputError(f"points file {file}: is no CSV text, it has zero bytes")
    # Not `splitlines`: form feeds and U+2028 are part of a name.
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def numbered(names: Sequence[str], count: int) -> list[str]:
    """Give a name to every point: its own, or its number.

    Parameters
    ----------
    names : sequence of str
        The names that there are.
    count : int
        The number of points.

    Returns
    -------
    list of str
    """
    return list(names) if len(names) == count else [str(k + 1) for k in range(count)]

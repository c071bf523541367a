"""Corresponding points as elastix takes them: files of points or of indices, point sets in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry, real_numbers

F64 = NDArray[np.float64]

#: First word of a point file → whether its numbers are voxel indices.
WORDS = {"point": False, "index": True}


def read_points(source: Any, grid: Geometry, role: str) -> F64:
    """The points of one image.

    Parameters
    ----------
    source : path, itk.PointSet, its container of points or array_like
        A file of elastix (``point`` or ``index``, the number of points, then their coordinates), a point set, or
        ``(N, d)`` LPS mm.
    grid : Geometry
        Of the image, for indices.
    role : str
        Name of the keyword, for messages.

    Returns
    -------
    ndarray
        ``(N, d)`` LPS mm.

    Raises
    ------
    InputError
        No such file, or none of elastix'; what is no array of real numbers.
    """
    d = grid.dimension
    if hasattr(source, "GetPoints"):
        count = source.GetNumberOfPoints()
        return np.array([[source.GetPoint(k)[a] for a in range(d)] for k in range(count)], float).reshape(-1, d)
    if hasattr(source, "ElementAt"):  # the container of a point set, which ITKElastix asks for
        rows = [[source.ElementAt(k)[a] for a in range(d)] for k in range(source.Size())]
        return np.array(rows, float).reshape(-1, d)
    if not isinstance(source, (str, os.PathLike)):
        try:
            return real_numbers(source)
        except ValueError as error:
            raise InputError(f"{role}: is a file, an itk.PointSet or (N, {d}) numbers, got {source!r}") from error
    points, are_indices = read_point_file(Path(source), d, role)
    return grid.index_to_physical(points) if are_indices else points


def read_point_file(file: Path, dimension: int, role: str) -> tuple[F64, bool]:
    """Read a point file of elastix.

    Parameters
    ----------
    file : Path
        ``point`` or ``index`` (which may be left out), the number of points, then their coordinates.
    dimension : {2, 3}
        Of the points.
    role : str
        Name of the keyword, for messages.

    Returns
    -------
    points : ndarray
        ``(N, d)``.
    are_indices : bool
        Whether they are voxel indices rather than LPS mm.

    Raises
    ------
    InputError
        No such file, or none of elastix'.
    """
    if not file.is_file():
        raise InputError(f"{role} {file}: no such file; check the path")
    words = file.read_text(encoding="utf-8", errors="replace").split()
    if words and words[0].isdigit():  # as elastix reads it: indices
        words = ["index", *words]
    kind = words[0].lower() if words else ""
    try:
        count = int(words[1])
        points = np.array([float(word) for word in words[2 : 2 + count * dimension]]).reshape(count, dimension)
        known = kind in WORDS and len(words) == 2 + count * dimension
    except (IndexError, ValueError):
        known = False
    if not known:
        raise InputError(
            f"{role} {file}: is no point file of elastix: 'point' or 'index', the number of points, then {dimension} "
            "numbers for each"
        )
    return points, WORDS[kind]

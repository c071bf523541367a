"""Closed surfaces of elastix (``-fmeshA1``): the voxels of the fixed image that lie within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.elastix.options import MISSING
from itk_nir.errors import InputError, OptionError
from itk_nir.images import Volume
from itk_nir.images.itk_classes import LOADING
from itk_nir.places import as_file_name

F64 = NDArray[np.float64]

#: Rows of voxels are moved by so many voxels, so that none runs along an edge or through a corner of a surface.
_ASIDE = (1.23e-5, 2.71e-5)


def within_surfaces(files: Sequence[str], fixed: Volume) -> Volume:
    """The voxels of a fixed image that lie within any of some surfaces.

    Parameters
    ----------
    files : sequence of str
        Surfaces in LPS mm, as ITK reads them: VTK's legacy ``.vtk``, ``.off``, ``.obj``, ...
    fixed : Volume
        In 3D.

    Returns
    -------
    Volume
        1 inside, else 0.

    Raises
    ------
    InputError
        A file that cannot be read, holds no surface, or encloses no voxel.
    OptionError
        An image in 2D.
    """
    if fixed.dimension != 3:
        raise OptionError(f"elastix metric {MISSING}: surfaces are for 3D images; give the keyword fixed_lesion=")
    inside = np.zeros(fixed.geometry.shape, bool)
    for name in files:
        points, triangles = _read(name)
        here = enclosed(fixed.geometry.physical_to_index(points)[triangles], fixed.geometry.shape)
        if not here.any():
            raise InputError(
                f"surface {name}: encloses no voxel of {fixed.name}; it is closed, in LPS mm and within that image"
            )
        inside |= here
    labels = inside.astype(np.uint8)
    return replace(fixed, array=labels, name="surfaces", pixel_type=labels.dtype, scale=1.0, offset=0, missing=None)


def enclosed(triangles: F64, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The voxels within a closed surface: a ray along x from outside crosses it an odd number of times before them.

    Parameters
    ----------
    triangles : ndarray
        ``(N, 3, 3)``: corners, and their indices ``(x, y, z)``.
    shape : tuple of int
        ``(z, y, x)``.

    Returns
    -------
    ndarray
        `shape` bool.
    """
    nz, ny, nx = shape
    crossed = np.zeros((nz, ny, nx + 1), bool)
    for corners in triangles - (0.0, *_ASIDE):
        low = np.maximum(np.ceil(corners[:, 1:].min(0)), 0).astype(int)
        high = np.minimum(np.floor(corners[:, 1:].max(0)), (ny - 1, nz - 1)).astype(int)
        edges = corners[1:] - corners[0]
        area = edges[0, 1] * edges[1, 2] - edges[0, 2] * edges[1, 1]
        if (high < low).any() or area == 0:
            continue
        y, z = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
        dy, dz = y - corners[0, 1], z - corners[0, 2]
        a = (dy * edges[1, 2] - dz * edges[1, 1]) / area
        b = (dz * edges[0, 1] - dy * edges[0, 2]) / area
        hit = (a >= 0) & (b >= 0) & (a + b <= 1)
        x = corners[0, 0] + a[hit] * edges[0, 0] + b[hit] * edges[1, 0]
        crossed[z[hit], y[hit], np.clip(np.ceil(x), 0, nx).astype(int)] ^= True
    return np.asarray(np.logical_xor.accumulate(crossed, axis=2)[..., :nx])


def _read(name: str) -> tuple[F64, NDArray[np.int64]]:
    """Points ``(N, 3)`` and triangles ``(M, 3)`` of a file."""
    file = Path(as_file_name(name))
    if not file.is_file():
        raise InputError(f"surface {name}: no such file; check the path")
    with LOADING:
        import itk
    try:
        mesh = itk.meshread(str(file))
        points = itk.array_from_vector_container(mesh.GetPoints()).astype(np.float64)
        cells = itk.array_from_vector_container(mesh.GetCellsArray()).astype(np.int64)
    except Exception as error:
        raise InputError(f"surface {name}: cannot be read ({str(error).strip().splitlines()[-1]})") from error
    triangles, at = [], 0
    while at < len(cells):  # each cell: its kind, the number of its points, their numbers
        corners = cells[at + 2 : at + 2 + cells[at + 1]]
        triangles += [(corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1)]
        at += 2 + int(cells[at + 1])
    if not triangles or points.shape[-1] != 3:
        raise InputError(f"surface {name}: holds no triangles in space; give a closed surface")
    return points, np.array(triangles)

"""The two forms of a transform that other programs take: a field then a linear map, or one field for the whole."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform


def field_then_linear(
    transform: CompositeTransform, grid: Geometry | None = None, *, inverse: bool = True
) -> CompositeTransform:
    """Bring a transform into the form ``(field, linear)``, with ``(linear, field)`` as its inverse.

    A transform of that form comes back as it is, and a linear one as ``(linear,)``. For any other, all linear parts are
    multiplied into one, ``A``, and what is left is sampled: ``w(p) = A^-1(transform(p)) - p`` at the voxels of `grid`,
    where the result is exact; between them it is interpolated linearly. Outside the grid ``A`` alone is left.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    grid : Geometry, optional
        A grid of fixed space; that of the transform's first field when left out.
    inverse : bool, default True
        Without it the result has no inverse.

    Returns
    -------
    CompositeTransform
        One displacement field and one linear transform, or a linear transform alone.
    """
    steps = transform.simplified().transforms
    linear = LinearTransform.identity(transform.dimension)
    for step in steps:
        if isinstance(step, LinearTransform):
            linear = LinearTransform(step.matrix @ linear.matrix)
    if transform.is_linear:
        return CompositeTransform((linear,), (linear.inverse(),) if inverse else None)
    first = steps[0]
    if isinstance(first, DisplacementField) and all(isinstance(s, LinearTransform) for s in steps[1:]):
        field = first
    else:
        field = CompositeTransform((*steps, linear.inverse())).displacement_on(grid or transform.fields[0].geometry)
    if not inverse:
        return CompositeTransform((field, linear))
    # In front of the given inverse, A undoes the A^-1 that it begins with where it has the wanted form.
    back = CompositeTransform((linear, *transform.inverse().transforms)).simplified().transforms
    rest = [s for s in back if isinstance(s, DisplacementField) or not _is_nearly_identity(s, field.geometry)]
    if len(rest) == 1 and isinstance(rest[0], DisplacementField):
        undo = rest[0]
    else:
        # Where the field takes the rim of its grid the inverse is wanted too.
        around = cover(field.geometry, field.map(surface(field.geometry)))
        undo = CompositeTransform(back).displacement_on(around)
    return CompositeTransform((field, linear), (linear.inverse(), undo))


def _is_nearly_identity(linear: LinearTransform, grid: Geometry) -> bool:
    """Whether a product of a matrix and its inverse differs from no change by rounding alone."""
    corners = grid.corners()
    return bool(np.abs(linear.map(corners) - corners).max() <= 1e-6 * min(grid.spacing))


def whole_field_grid(transform: CompositeTransform, fixed: Geometry) -> Geometry:
    """Choose a grid for one displacement field that stands for the whole of a transform.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    fixed : Geometry
        The fixed image's grid.

    Returns
    -------
    Geometry
        The grid of the transform's own field where the rest is linear (linear interpolation follows a linear map
        exactly), else `fixed`; continued until it covers `fixed`.
    """
    return cover(own_grid(transform, fixed), fixed.corners())


def own_grid(transform: CompositeTransform, fixed: Geometry) -> Geometry:
    """Give the grid of a transform's displacement field if the rest is linear.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    fixed : Geometry
        What is returned for any other transform.

    Returns
    -------
    Geometry
        A grid of fixed space.
    """
    fields = transform.fields
    return fields[0].geometry if len(fields) == 1 and fields[0] is transform.transforms[0] else fixed


def surface(geometry: Geometry) -> NDArray[np.float64]:
    """Choose points on the surface of a grid; a continuous map takes the inside within their image.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Returns
    -------
    numpy.ndarray
        ``(N, d)``, LPS mm, at most 64 along each axis.
    """
    axes = [np.linspace(0, n - 1, min(n, 64)) for n in geometry.size]
    parts = []
    for axis, end in product(range(geometry.dimension), (0, -1)):
        side = [a[[end]] if number == axis else a for number, a in enumerate(axes)]
        parts.append(np.stack(np.meshgrid(*side, indexing="ij"), -1).reshape(-1, geometry.dimension))
    return geometry.index_to_physical(np.concatenate(parts))


def cover(geometry: Geometry, points: NDArray[np.float64]) -> Geometry:
    """Continue a grid by whole voxels until it holds some points.

    Parameters
    ----------
    geometry : Geometry
        The grid.
    points : numpy.ndarray
        ``(N, d)``, LPS mm.

    Returns
    -------
    Geometry
        The grid itself if it holds them all.
    """
    index = geometry.physical_to_index(points)
    low = np.minimum(np.floor(index.min(axis=0) + 1e-3), 0).astype(int)
    high = np.maximum(np.ceil(index.max(axis=0) - 1e-3), np.asarray(geometry.size) - 1).astype(int)
    if not low.any() and np.array_equal(high, np.asarray(geometry.size) - 1):
        return geometry
    return geometry.crop(low.tolist(), (high - low + 1).tolist())

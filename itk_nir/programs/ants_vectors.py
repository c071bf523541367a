"""Vectors that are turned with the image that they belong to, as antsApplyTransforms does it (``-e vector``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.transforms.interpolation import grid_slabs
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step

F64 = NDArray[np.float64]


def turned(vectors: F64, chain: CompositeTransform, grid: Geometry, *, of_voxels: bool) -> F64:
    """Turn the vectors of an image that was carried through transforms.

    At every voxel by the rotation that is nearest to the product of the transforms' inverse Jacobian matrices, the last
    one leftmost. Of a field that matrix is ``I - du/dp`` at its nearest voxel, by differences of fourth order, and the
    identity on its rim and beyond: these are ITK's and ANTs' choices.

    Parameters
    ----------
    vectors : ndarray
        ``grid.shape + (d,)``.
    chain : CompositeTransform
        Fixed → moving, LPS mm.
    grid : Geometry
        The grid of the vectors, in fixed space.
    of_voxels : bool
        Whether they are in the frame of the grid's axes, and not in LPS.

    Returns
    -------
    ndarray
        As `vectors`.
    """
    out = np.array(vectors, np.float64)
    d, frame = grid.dimension, grid.rotation
    for part, points in grid_slabs(grid):
        p = points.reshape(-1, d)
        whole = np.broadcast_to(np.eye(d), (len(p), d, d))
        for step in chain.transforms:
            whole = _inverse_jacobian(step, p) @ whole
            p = step.map(p)
        v = out[part].reshape(-1, d, 1)
        there = frame @ v if of_voxels else v
        there = _rotations(whole) @ there
        out[part] = (frame.T @ there if of_voxels else there).reshape(out[part].shape)
    return out


def from_image_to_grid(vectors: F64, image: Geometry, grid: Geometry) -> F64:
    """Vectors in the frame of one image's axes in that of another's.

    Parameters
    ----------
    vectors : ndarray
        ``(..., d)``.
    image, grid : Geometry
        The two.

    Returns
    -------
    ndarray
        As `vectors`.
    """
    change = grid.rotation.T @ image.rotation
    return vectors if np.allclose(change, np.eye(len(change)), atol=1e-5) else vectors @ change.T


def _rotations(matrices: F64) -> F64:
    """The rotation nearest to each matrix."""
    u, _, vt = np.linalg.svd(matrices)
    mirrored = np.linalg.det(u @ vt) < 0
    vt[mirrored, -1] *= -1
    return np.asarray(u @ vt)


def _inverse_jacobian(step: Step, points: F64) -> F64:
    """``(N, d, d)`` matrices at physical points."""
    d = step.dimension
    if isinstance(step, LinearTransform):
        return np.broadcast_to(np.linalg.inv(step.matrix)[:d, :d], (len(points), d, d))
    assert isinstance(step, DisplacementField)
    grid, size = step.geometry, np.asarray(step.geometry.size)
    index = np.floor(grid.physical_to_index(points) + 0.5).astype(np.intp)
    inside = np.all((index >= 1) & (index <= size - 2), axis=1)
    at = index[inside]
    strides = np.cumprod([1, *grid.size[:-1]])
    flat = step.vectors.reshape(-1, d)
    centre = at @ strides
    slopes = np.empty((len(at), d, d))
    for axis in range(d):
        # Beyond the rim its voxels are repeated.
        near, far = strides[axis], at[:, axis]
        up, down = centre + 2 * near - near * (far == size[axis] - 2), centre - 2 * near + near * (far == 1)
        difference = 8.0 * (flat[centre + near].astype(float) - flat[centre - near]) + flat[down] - flat[up]
        slopes[:, :, axis] = difference / (12 * grid.spacing[axis])
    out = np.tile(np.eye(d), (len(points), 1, 1))
    out[inside] -= slopes @ grid.rotation.T
    return out

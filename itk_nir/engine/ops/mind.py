"""Ops on self-similarity descriptors (MIND-SSC), which images of different contrast share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.lattice import Banded
from itk_nir.engine.ops import reference_mind
from itk_nir.engine.ops.dispatch import descriptors_for
from itk_nir.engine.ops.images import banded_tensors, float64_rows, map_tensors, separable
from itk_nir.engine.ops.limits import thread_count

F64 = NDArray[np.float64]

#: Dimension of an image → channels of its descriptors.
MIND_CHANNELS = {2: 4, 3: 12}
#: Widest window, voxels.
LARGEST_RADIUS = 32
#: Longest step to a neighbour along an axis, voxels.
LONGEST_OFFSET = 1e6


def mind_descriptors(image: Tensor, offsets: F64, radius: int = 1, dimension: int = 3, threads: int = 1) -> Tensor:
    """Self-similarity descriptors of an image, see `reference_mind.mind_descriptors`.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)``.
    offsets : ndarray
        ``(3, 3)``; column ``k`` is one step along axis ``k`` of the *fixed* grid, components ``x, y, z`` in voxels of
        `image`: the descriptors of two images are alike only along the same axes. The identity for the fixed image.
    radius : int
        Of the windows, voxels; 1 to 32.
    dimension : int
        3, or 2 where only the first two columns of `offsets` count.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(Z, Y, X, 16)`` uint8: ``MIND_CHANNELS[dimension]`` channels, 255 for 1, then zeros.

    Raises
    ------
    ValueError
        `radius` or `dimension` is none of those, or an offset is no number or above a million voxels.
    """
    threads, native, steps = thread_count(threads), descriptors_for(image), float64_rows(offsets)
    if not 1 <= radius <= LARGEST_RADIUS:
        raise ValueError(f"mind_descriptors: radius must be 1 to {LARGEST_RADIUS}, got {radius}")
    if dimension not in MIND_CHANNELS:
        raise ValueError(f"mind_descriptors: dimension must be 2 or 3, got {dimension}")
    if steps.shape != (3, 3) or not (np.abs(steps) <= LONGEST_OFFSET).all():
        raise ValueError(f"mind_descriptors: offsets must be (3, 3), at most {LONGEST_OFFSET:g} voxels, got {offsets}")
    image = image.detach()
    if native:
        return native.mind_descriptors(image, steps, radius, dimension, threads)
    return reference_mind.mind_descriptors(image, torch.from_numpy(steps), radius, dimension)


def mind_difference(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, displacement: Tensor, grid_to_moving: F64,
    displacement_to_moving: F64, channels: int = 12, threads: int = 1,
) -> Tensor:  # fmt: skip
    """Sum over the voxels that count of the mean squared difference of two images' descriptors.

    ``sum_i mean_c (m_c(grid_to_moving (i, 1) + displacement_to_moving u(i)) - f_c(i))²``, descriptors from 0 to 1,
    trilinear, the value at the edge beyond it; the gradient is that by the displacement alone. The native op makes it
    with the value, and never holds the warped descriptors.

    Parameters
    ----------
    fixed : Tensor
        ``f``, ``(Z, Y, X, 16)`` uint8, see `mind_descriptors`.
    moving : Tensor
        ``m``, ``(Z', Y', X', 16)`` uint8.
    weight : Tensor or None
        ``(Z, Y, X)``: a voxel counts where it is above one half; None where every voxel counts.
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, fixed → moving, any unit, components ``x, y, z`` first.
    grid_to_moving : ndarray
        ``(3, 4)``, voxel ``i = (x, y, z)`` of the fixed image → voxel of the moving one.
    displacement_to_moving : ndarray
        ``(3, 3)``, unit of the displacement → voxels of the moving image.
    channels : int
        12 in 3D, 4 in 2D; those after them must be 0.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    ValueError
        `channels` is neither.
    """
    threads, native = thread_count(threads), descriptors_for(displacement)
    points, vectors = float64_rows(grid_to_moving), float64_rows(displacement_to_moving)
    _need_channels(channels)
    if native:
        result: Tensor = native.MindDifference.apply(
            fixed, moving, weight, displacement, points, vectors, channels, threads
        )
        return result
    maps = map_tensors(points, vectors, displacement)
    return reference_mind.mind_difference(fixed, moving, weight, displacement, *maps, channels)


def mind_difference_spline(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, lattice: Tensor, matrices: list[Banded],
    grid_to_moving: F64, displacement_to_moving: F64, channels: int = 12, threads: int = 1,
) -> Tensor:  # fmt: skip
    """`mind_difference` by the displacement that a spline lattice stands for, see `images.warp_spline`.

    The native op never holds the displacement of all voxels.

    Parameters
    ----------
    fixed, moving, weight
        See `mind_difference`.
    lattice : Tensor
        ``(3, z, y, x)``, coefficients of the displacement, any unit, components ``x, y, z`` first.
    matrices : list of Banded
        Coefficients → values at the voxels of the fixed image, along x, y and z.
    grid_to_moving, displacement_to_moving, channels, threads
        See `mind_difference`.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    ValueError
        `channels` is neither 12 nor 4.
    """
    threads, native = thread_count(threads), descriptors_for(lattice)
    _need_channels(channels)
    if not native:
        u = separable(lattice, matrices, threads)
        return mind_difference(fixed, moving, weight, u, grid_to_moving, displacement_to_moving, channels, threads)
    rows, back = banded_tensors(matrices, lattice.device)
    points, vectors = float64_rows(grid_to_moving), float64_rows(displacement_to_moving)
    result: Tensor = native.MindDifferenceSpline.apply(
        fixed, moving, weight, lattice, rows, back, points, vectors, channels, threads
    )
    return result


def _need_channels(channels: int) -> None:
    if channels not in MIND_CHANNELS.values():
        raise ValueError(f"mind_difference: channels must be 4 or 12, got {channels}")

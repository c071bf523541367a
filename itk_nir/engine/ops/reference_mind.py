"""The self-similarity descriptors in plain torch, see `reference`."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from itk_nir.engine.ops import reference
from itk_nir.engine.ops.box_sums import box_sum


def _shifted(x: Tensor, axis: int, step: float) -> Tensor:
    """``x`` at ``step`` voxels on along an axis: linear, the value at the edge beyond it; a constant to the bit."""
    low = math.floor(step)
    at = torch.arange(x.shape[axis], device=x.device) + low
    last = x.shape[axis] - 1
    a, b = x.index_select(axis, at.clamp(0, last)), x.index_select(axis, (at + 1).clamp(0, last))
    return a + (step - low) * (b - a)


def mind_descriptors(image: Tensor, offsets: Tensor, radius: int, dimension: int) -> Tensor:
    """Self-similarity descriptors (MIND-SSC [1]_), in eight bits.

    With ``S_k(x) = image(x ± offset_k)`` at the neighbours of a voxel, ``D_ab`` is the mean of ``(S_a - S_b)²`` over a
    cubic window, for every two neighbours at right angles, less the smallest of them; ``V`` is the mean of ``D_ab``,
    not below 0.001 and not above 1000 times its mean over the image. The descriptor is ``exp(-D_ab / V)``.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)``.
    offsets : Tensor
        ``(3, 3)`` float64; column ``k`` is a step along axis ``k``, components ``x, y, z``, voxels.
    radius : int
        Of the window, voxels; it is cut at the border.
    dimension : int
        2 or 3: how many of the axes have neighbours.

    Returns
    -------
    Tensor
        ``(Z, Y, X, 16)`` uint8, ``round(255 exp(-D / V))``. The 12 (3D) or 4 (2D) pairs in the order of their axes (xy,
        xz, yz) and then of their signs (++, +-, -+, --); the rest is 0. All 255 where nothing varies.

    References
    ----------
    .. [1] Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities",
       MICCAI 2013.
    """
    neighbours = []
    for axis in range(dimension):
        both = []
        for sign in (1.0, -1.0):
            shifted = image
            for a in range(3):
                shifted = _shifted(shifted, 2 - a, sign * float(offsets[a, axis]))
            both.append(shifted)
        neighbours.append(both)
    count = box_sum(torch.ones_like(image), radius)
    distances = torch.stack(
        [
            box_sum((p - q).square(), radius) / count
            for a, b in itertools.combinations(range(dimension), 2)
            for p in neighbours[a]
            for q in neighbours[b]
        ],
        dim=-1,
    )
    distances -= distances.amin(-1, keepdim=True)
    variance = distances.mean(-1, keepdim=True)
    mean = variance.mean()
    variance = torch.minimum(torch.maximum(variance, 1e-3 * mean), 1e3 * mean).clamp(min=1e-36)
    out = torch.zeros((*image.shape, 16), dtype=torch.uint8, device=image.device)
    out[..., : distances.shape[-1]] = (255 * torch.exp(-distances / variance)).round().to(torch.uint8)
    return out


def mind_difference(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, displacement: Tensor, grid_to_moving: Tensor,
    displacement_to_moving: Tensor, channels: int,
) -> Tensor:  # fmt: skip
    """Sum over the voxels that count of the mean squared difference of two images' descriptors.

    Those of the moving image are seen through a displacement, then a linear map, as an image is by `reference.warp`.

    Parameters
    ----------
    fixed : Tensor
        ``(Z, Y, X, 16)`` uint8, see `mind_descriptors`.
    moving : Tensor
        ``(Z', Y', X', 16)`` uint8.
    weight : Tensor or None
        ``(Z, Y, X)``: a voxel counts where it is above one half; None where every voxel counts.
    displacement : Tensor
        ``(3, Z, Y, X)``, any unit.
    grid_to_moving, displacement_to_moving : Tensor
        ``(3, 4)`` and ``(3, 3)``, see `reference.warp`.
    channels : int
        12 in 3D, 4 in 2D.

    Returns
    -------
    Tensor
        Scalar; a descriptor is 0 to 1.
    """
    f, m = (x[..., :channels].movedim(-1, 0).to(displacement.dtype) / 255 for x in (fixed, moving))
    warped = reference.warp(m, displacement, grid_to_moving, displacement_to_moving)
    each = (warped - f).square().mean(0)
    return (each if weight is None else torch.where(weight > 0.5, each, torch.zeros_like(each))).sum()

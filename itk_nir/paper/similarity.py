"""How alike two images are at the points of a sample, as losses: 0 is perfect.

Images are ``(B, [D,] H, W)`` blocks for `lncc`; `ncc` and `mse` take any shape, scattered points included. A mask has
the shape of the images and weighs every voxel; 0 takes a voxel out, of the statistics and of the mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itk_nir.engine.ops import MutualInformation, reference

#: Share of the variance of all blocks together that a window must exceed to count, and that is added to the variances
#: of the quotient. Relative, so that the loss does not depend on the unit of the intensities.
EPSILON = 1e-5


def lncc(
    fixed: Tensor, moving: Tensor, radius: int = 4, mask: Tensor | None = None, epsilon: float = EPSILON
) -> Tensor:
    """One minus the mean squared local correlation of blocks, as `itk_nir.engine.ops.reference.lncc` takes it.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(B, [D,] H, W)``, differentiable in both. Windows do not reach from block to block.
    radius : int
        Of the cubic window, in voxels of the block, at least 1. Windows are cut at the border of the block.
    mask : Tensor, optional
        ``(B, [D,] H, W)`` weights, 0 to 1, of the window sums; only windows whose centre has more than one half count.
        No gradient.
    epsilon : float
        See `EPSILON`.

    Returns
    -------
    Tensor
        A scalar, 0 (locally linear relation everywhere) to 1. It is 1, without gradient, where no window counts.

    Raises
    ------
    ValueError
        Shapes that disagree or are no blocks, or no radius.
    """
    if radius < 1:
        raise ValueError(f"the radius must be at least 1, got {radius}")
    _check(fixed, moving, mask)
    if fixed.dim() not in (3, 4):
        raise ValueError(f"lncc needs blocks (B, [D,] H, W), got {tuple(fixed.shape)}")
    weights = torch.ones_like(fixed) if mask is None else mask.detach().to(fixed)
    planes = fixed.dim() == 3
    total, count = fixed.new_zeros(()), fixed.new_zeros(())
    for f, m, w in zip(_standardised(fixed, weights, epsilon), _standardised(moving, weights, epsilon), weights,
                       strict=True):  # fmt: skip
        block = (f[None], m[None], w[None]) if planes else (f, m, w)
        correlation, counted = reference.lncc(*block, radius, epsilon)
        total, count = total + correlation, count + counted
    return 1 - total / count.clamp(min=1)


def _standardised(image: Tensor, weights: Tensor, epsilon: float) -> Tensor:
    """Zero mean and unit variance over all blocks, both held fixed in the gradient; a flat image is left flat.

    Without the mean, no small variance is lost as the difference of two large sums.
    """
    total = weights.sum().clamp(min=1e-12)
    centred = image - ((weights * image).sum() / total).detach()
    variance = ((weights * centred * centred).sum() / total).detach()
    tiny = torch.finfo(image.dtype).tiny ** 0.5
    return centred * torch.rsqrt(variance + tiny / max(epsilon, tiny**0.5))


def ncc(fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the correlation coefficient of all points. Signed, unlike `lncc`: a negative is as unlike as can be.

    Parameters
    ----------
    fixed, moving : Tensor
        Of one shape, differentiable in both.
    mask : Tensor, optional
        Weights of the same shape; no gradient.

    Returns
    -------
    Tensor
        A scalar, 0 (rising linear relation) to 2 (falling); 1 for a constant image.
    """
    _check(fixed, moving, mask)
    weights = torch.ones_like(fixed) if mask is None else mask.detach().to(fixed)
    total = weights.sum().clamp(min=1e-12)
    f = fixed - (weights * fixed).sum() / total
    m = moving - (weights * moving).sum() / total
    var_f, var_m = (weights * f * f).sum() / total, (weights * m * m).sum() / total
    tiny = torch.finfo(f.dtype).tiny ** 0.5
    return 1 - (weights * f * m).sum() / total / torch.sqrt(var_f * var_m + tiny)


def mse(fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the squared differences.

    Parameters
    ----------
    fixed, moving : Tensor
        Of one shape, differentiable in both.
    mask : Tensor, optional
        Weights of the same shape; no gradient.

    Returns
    -------
    Tensor
        A scalar, in squared intensities.
    """
    _check(fixed, moving, mask)
    square = (fixed - moving).square()
    if mask is None:
        return square.mean()
    weights = mask.detach().to(fixed)
    return (weights * square).sum() / weights.sum().clamp(min=1e-12)


def nmi(fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the normalised mutual information of all points, see `itk_nir.engine.ops.MutualInformation`.

    Parameters
    ----------
    fixed, moving : Tensor
        Of one shape, differentiable in `moving`.
    mask : Tensor, optional
        Of the same shape: a point counts where it is above 0.5.

    Returns
    -------
    Tensor
        A scalar, 1 for independent images.
    """
    return 1 - _information(fixed, moving, mask, normalised=True)


def mi(fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the mutual information of all points, in nats.

    Parameters
    ----------
    fixed, moving, mask
        As of `nmi`.

    Returns
    -------
    Tensor
        A scalar, at most 1.
    """
    return 1 - _information(fixed, moving, mask, normalised=False)


def _information(fixed: Tensor, moving: Tensor, mask: Tensor | None, normalised: bool) -> Tensor:
    _check(fixed, moving, mask)
    # The op works on volumes; how the points lie does not matter to a histogram.
    f, m = fixed.detach().reshape(1, 1, -1), moving.reshape(1, 1, -1)
    weight = None if mask is None else mask.detach().to(f).reshape(1, 1, -1)
    ranges = [(float(x.detach().min()), float(x.detach().max())) for x in (f, m)]
    return MutualInformation.make(f, weight, ranges[0], ranges[1], normalised=normalised)(m)


#: Similarities of any set of points, by name.
POINT_SIMILARITIES: dict[str, Callable[..., Tensor]] = {"ncc": ncc, "mse": mse, "nmi": nmi, "mi": mi}

#: All similarities by name; ``lncc`` alone needs blocks and a radius.
SIMILARITIES: dict[str, Callable[..., Tensor]] = {"lncc": lncc, **POINT_SIMILARITIES}


def _check(fixed: Tensor, moving: Tensor, mask: Tensor | None) -> None:
    if fixed.shape != moving.shape or (mask is not None and mask.shape != fixed.shape):
        shapes = [tuple(t.shape) for t in (fixed, moving, mask) if t is not None]
        raise ValueError(f"fixed, moving and mask must have one shape, got {' '.join(map(str, shapes))}")

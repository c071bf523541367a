"""How alike two images are, as losses: 0 is perfect. The torch reference of what the faster operations compute.

Images are ``(B, [D,] H, W)`` blocks for `lncc`; `ncc` and `mse` take any shape, scattered points included. A mask has
the shape of the images, weighs every voxel, and 0 takes a voxel out, from the statistics and from the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Share of the variance of the whole image (over all blocks) that a window must exceed to count, and that is added to
#: the variances of the quotient. Relative, so that the loss does not depend on the unit of the intensities.
EPSILON = 1e-5


def lncc(
    fixed: Tensor, moving: Tensor, radius: int = 4, mask: Tensor | None = None, epsilon: float = EPSILON
) -> Tensor:
    """One minus the mean squared local correlation.

    For every voxel, over the cubic window of ``2 radius + 1`` voxels around it, cut at the border of the block and
    normalised by the voxels that are left: ``r² = cov(f, m)² / ((var f + e_f)(var m + e_m))``, with ``e`` the
    `epsilon` times the variance of the image over all blocks. Windows whose fixed variance is at most ``e_f`` carry no
    information and are left out of the mean; where none is left the loss is 1, without gradient.

    Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", MedIA 12 (2008) 26, eq. 5; the
    epsilons, the rule at the border and the exclusion of flat windows are ours.

    Parameters
    ----------
    fixed, moving : ``(B, [D,] H, W)``, differentiable in both.
    radius : voxels of the block, at least 1.
    mask : ``(B, [D,] H, W)`` weights, 0 to 1; window sums and the final mean are weighted by it. No gradient.

    Returns
    -------
    A scalar, 0 (locally linear relation everywhere) to 1.
    """
    if radius < 1:
        raise ValueError(f"the radius must be at least 1, got {radius}")
    _check(fixed, moving, mask)
    if fixed.dim() not in (3, 4):
        raise ValueError(f"lncc needs blocks (B, [D,] H, W), got {tuple(fixed.shape)}")
    weights = torch.ones_like(fixed) if mask is None else mask.detach().to(fixed)
    # Means over everything are taken off first: the difference of two large sums would lose the small variances.
    total = weights.sum().clamp(min=1e-12)
    f = fixed - ((weights * fixed).sum() / total).detach()
    m = moving - ((weights * moving).sum() / total).detach()
    tiny = torch.finfo(f.dtype).tiny ** 0.5
    e_f = (epsilon * (weights * f * f).sum() / total).detach() + tiny
    e_m = (epsilon * (weights * m * m).sum() / total).detach() + tiny
    count = window_sum(weights, radius)
    share = 1 / torch.where(count > 1e-6, count, torch.ones_like(count))
    wf, wm = weights * f, weights * m
    mean_f, mean_m = window_sum(wf, radius) * share, window_sum(wm, radius) * share
    var_f = (window_sum(wf * f, radius) * share - mean_f * mean_f).clamp(min=0)
    var_m = (window_sum(wm * m, radius) * share - mean_m * mean_m).clamp(min=0)
    cov = window_sum(wf * m, radius) * share - mean_f * mean_m
    r2 = cov * cov / ((var_f + e_f) * (var_m + e_m))
    counted = weights * (var_f > e_f) * (count > 1e-6)
    return 1 - (counted * r2).sum() / counted.sum().clamp(min=1e-12)


def ncc(fixed: Tensor, moving: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the correlation coefficient of all points: 0 (rising linear relation) to 2 (falling).

    The loss of a constant image is 1. Signed, unlike `lncc`: a negative is as unlike as can be.
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
    """Mean of the squared differences, in squared intensities."""
    _check(fixed, moving, mask)
    square = (fixed - moving).square()
    if mask is None:
        return square.mean()
    weights = mask.detach().to(fixed)
    return (weights * square).sum() / weights.sum().clamp(min=1e-12)


#: Similarities of any set of points by name; ``lncc`` stands apart, as it alone needs blocks and a radius.
POINT_SIMILARITIES: dict[str, Callable[..., Tensor]] = {"ncc": ncc, "mse": mse}

#: All similarities by name.
SIMILARITIES: dict[str, Callable[..., Tensor]] = {"lncc": lncc, **POINT_SIMILARITIES}


def window_sum(image: Tensor, radius: int) -> Tensor:
    """Sums over cubic windows of ``2 radius + 1`` voxels, cut at the border, of ``(B, [D,] H, W)``.

    Sums of 1, 2, 4, … neighbours are doubled and joined, so the cost grows with the logarithm of the radius, and no
    long running sum gathers rounding errors. Its own transpose, which is its gradient.
    """
    result: Tensor = _WindowSum.apply(image, radius)
    return result


class _WindowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        for axis in range(1, image.dim()):
            image = _line_sum(image, axis, radius)
        return image

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return window_sum(gradient, ctx.radius), None


def _line_sum(image: Tensor, axis: int, radius: int) -> Tensor:
    n = image.shape[axis]
    radius = min(radius, n - 1)
    width = 2 * radius + 1
    shape = list(image.shape)
    shape[axis] = n + 2 * radius
    power = image.new_zeros(shape)
    power.narrow(axis, radius, n).copy_(image)
    total: Tensor | None = None
    taken, size = 0, 1
    while True:  # `power` holds sums of `size` neighbours; `taken` neighbours are in `total` already
        if width & size:
            part = power.narrow(axis, taken, n)
            total = part.clone() if total is None else total.add_(part)
            taken += size
        if 2 * size > width:
            break
        length = power.shape[axis] - size
        power = power.narrow(axis, 0, length) + power.narrow(axis, size, length)
        size *= 2
    assert total is not None
    return total


def _check(fixed: Tensor, moving: Tensor, mask: Tensor | None) -> None:
    if fixed.shape != moving.shape or (mask is not None and mask.shape != fixed.shape):
        shapes = [tuple(t.shape) for t in (fixed, moving, mask) if t is not None]
        raise ValueError(f"fixed, moving and mask must have one shape, got {' '.join(map(str, shapes))}")

"""Sums over a whole image, of which global metrics are made."""

from __future__ import annotations

import torch
from torch import Tensor

from itk_nir.engine.ops.dispatch import native_for
from itk_nir.engine.ops.limits import thread_count


def global_sums(fixed: Tensor, moving: Tensor, weight: Tensor | None, threads: int = 1) -> Tensor:
    """The sums of a moving image that its correlation with a fixed one needs, with the gradient by the moving image.

    Parameters
    ----------
    fixed, moving : Tensor
        ``f`` and ``m``, ``(Z, Y, X)``.
    weight : Tensor or None
        ``(Z, Y, X)``: a voxel counts where it is above 0.5; None where every voxel does.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(3,)`` float64: the sums of ``m``, ``m²`` and ``f m`` over the voxels that count.
    """
    threads, native = thread_count(threads), native_for(moving)
    if native:
        result: Tensor = native.GlobalSums.apply(fixed, moving, weight, threads)
        return result
    if weight is not None:
        # Selected, not multiplied: what does not count may be anything, also not a number.
        fixed, moving = (torch.where(weight > 0.5, x, torch.zeros_like(x)) for x in (fixed, moving))
    return torch.stack([x.sum(dtype=torch.float64) for x in (moving, moving * moving, fixed * moving)])

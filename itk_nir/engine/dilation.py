"""What lies around the true voxels of a mask, and what is joined to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def dilated(mask: Tensor, reach: int | Sequence[int]) -> Tensor:
    """What lies within a block around what is true.

    Parameters
    ----------
    mask : Tensor
        ``(Z, Y, X)`` bool.
    reach : int or sequence of int
        Voxels to each side, along all axes or along ``x, y, z``.

    Returns
    -------
    Tensor
        Like `mask`.
    """
    along = (reach,) * 3 if isinstance(reach, int) else tuple(reach)
    out = mask.float()[None, None]
    for axis, radius in enumerate(reversed(along)):
        if mask.shape[axis] > 1 and radius:
            width = [2 * radius + 1 if k == axis else 1 for k in range(3)]
            pad = [radius if k == axis else 0 for k in range(3)]
            out = functional.max_pool3d(out, width, 1, pad)
    return out[0, 0] > 0.5


def joined(seeds: NDArray[np.bool_], within: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What paths inside a mask join to some of its voxels.

    Parameters
    ----------
    seeds : ndarray
        ``([D,] H, W)`` bool, where the paths begin.
    within : ndarray
        Like `seeds`: the mask. Paths run along the axes.

    Returns
    -------
    ndarray
        Like `seeds`.
    """
    reached = seeds & within
    before = -1
    while before != (before := int(reached.sum())) and before < within.sum():
        for axis in range(within.ndim):
            a, b = np.moveaxis(reached, axis, 0), np.moveaxis(within, axis, 0)
            n = len(a)
            for order in (range(1, n), range(n - 2, -1, -1)):
                step = -1 if order.step > 0 else 1
                for k in order:
                    a[k] |= a[k + step] & b[k]
    return reached

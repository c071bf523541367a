"""What lies around the true voxels of a mask, and which of them are enclosed."""

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


def enclosed(mask: NDArray[np.bool_], axes: Sequence[int] | None = None) -> NDArray[np.bool_]:
    """What of a mask no path inside it joins to the faces of the block.

    Parameters
    ----------
    mask : ndarray
        ``([D,] H, W)`` bool. Paths run along the axes.
    axes : sequence of int, optional
        Across which the faces lie; all when left out.

    Returns
    -------
    ndarray
        Like `mask`; the very same where nothing of it lies on the faces.
    """
    reached = np.zeros_like(mask)
    for axis in range(mask.ndim) if axes is None else axes:
        for end in (0, -1):
            face = (slice(None),) * axis + (end,)
            reached[face] = mask[face]
    if not reached.any():
        return mask
    before = -1
    while before != (before := int(reached.sum())) and before < mask.sum():
        for axis in range(mask.ndim):
            a, b = np.moveaxis(reached, axis, 0), np.moveaxis(mask, axis, 0)
            n = len(a)
            for order in (range(1, n), range(n - 2, -1, -1)):
                step = -1 if order.step > 0 else 1
                for k in order:
                    a[k] |= a[k + step] & b[k]
    return mask & ~reached

"""What lies around the true voxels of a mask."""

from __future__ import annotations

from collections.abc import Sequence

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

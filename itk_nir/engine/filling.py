"""An image continued smoothly into places where what it shows is false.

A lesion, an implant, a torn part: nothing there has a counterpart in the other image. Left as it is, it would be
smoothed into its surroundings, seen by windows and descriptors around it, and met by positions that move while a level
is optimised. Continued from around, it has no edge that could be matched, whatever looks across the border.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from itk_nir.engine import ops
from itk_nir.engine.lattice import gaussian_matrix

#: How often the continuation is smoothed, by a Gaussian of one voxel each time, what is true staying as it is.
SMOOTHINGS = 8


def continued(image: Tensor, false: Tensor, threads: int = 1) -> Tensor:
    """An image whose false voxels are filled from around.

    The mean of the true voxels of blocks, finer and finer: every false voxel takes that of the smallest block around it
    with a true voxel in it, interpolated linearly between blocks; then smoothed.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)`` float32.
    false : Tensor
        ``(Z, Y, X)`` bool, true where the image is to be replaced; not everywhere.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``, the image itself where it is not false.
    """
    weight = (~false).to(image.dtype)[None, None]
    total = torch.where(false, torch.zeros_like(image), image)[None, None]
    levels = [(total, weight)]
    while bool((weight == 0).any()) and max(weight.shape) > 1:
        size = [2 if n > 1 else 1 for n in weight.shape[2:]]
        total, weight = (functional.avg_pool3d(x, size, ceil_mode=True) for x in (total, weight))
        levels.append((total, weight))
    total, weight = levels[-1]
    filled = total / weight.clamp(min=1e-12)
    for total, weight in levels[-2::-1]:
        coarser = functional.interpolate(filled, size=total.shape[2:], mode="trilinear", align_corners=False)
        # Of a block that is true in part, as much counts as is.
        filled = total + (1 - weight) * coarser
    out = filled[0, 0]
    kernels = [gaussian_matrix(n, np.arange(n, dtype=float), 1.0) for n in image.shape[::-1]]
    for _ in range(SMOOTHINGS):
        out = torch.where(false, ops.separable(out[None], kernels, threads)[0], image)
    return torch.where(false, out, image)

"""Many linear maps at once: how alike the images are under each, by mutual information.

One after the other they would cost as many calls as there are maps, each far longer than its few voxels need.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.linear_level import LinearLevel
from itk_nir.engine.metric_protocol import LevelImages
from itk_nir.engine.metrics import MutualInformation
from itk_nir.engine.ops.reference import identity

F64 = NDArray[np.float64]

#: So many maps at once: more take memory, and no less time.
TOGETHER = 400


def informations(level: LinearLevel, bases: Sequence[F64], metric: MutualInformation) -> F64:
    """The mean mutual information of all channels under each of many maps, times the share of the positions.

    Parameters
    ----------
    level : LinearLevel
        The images, of few voxels.
    bases : sequence of ndarray
        ``(d + 1, d + 1)`` LPS each, before the linear map of the pair; one at least.
    metric : MutualInformation
        What measures every channel.

    Returns
    -------
    ndarray
        ``(n,)``, what `linear_level.value` gives for each, but for rounding.
    """
    parts = [bases[k : k + TOGETHER] for k in range(0, len(bases), TOGETHER)]
    return np.concatenate([_informations(level, part, metric) for part in parts])


def _informations(level: LinearLevel, bases: Sequence[F64], metric: MutualInformation) -> F64:
    """The same of a few."""
    device, shape = level.fixed.device, level.fixed.shape
    maps = np.stack([level.grids.voxel_map(level.pair, level.pair.linear @ base)[0] for base in bases])
    index = torch.from_numpy(maps.astype(np.float32)).to(device)
    voxels = identity(shape, level.fixed).reshape(3, -1)
    # (3, n Z, Y, X): the grids of all maps lie one behind the other, and each map is a displacement of its own.
    at = (index[:, :, :3] @ voxels + index[:, :, 3:]).movedim(0, 1).reshape(3, len(bases) * shape[0], *shape[1:])
    counts = _counts(level, at)
    channels = [_channel(level, images, at, counts, len(bases), metric) for images in level.channels.images]
    measured = torch.stack(channels)
    share = (counts.reshape(len(bases), -1).sum(1).double() / level.most).clamp(max=1.0)
    return np.asarray((measured.mean(0) * share).cpu().numpy(), dtype=float)


def _counts(level: LinearLevel, at: Tensor) -> Tensor:
    """Which positions count, as `LinearLevel.under` has it."""
    size = level.moving.shape[::-1]
    counts = torch.ones_like(at[0], dtype=torch.bool)
    for row, n in enumerate(size):
        if n > 1:
            counts &= (at[row] >= -0.5) & (at[row] <= n - 0.5)
    if level.weight is not None:
        counts &= (level.weight > 0.5).repeat(at.shape[1] // level.weight.shape[0], 1, 1)
    if level.moving_weight is not None:
        counts &= _seen(level.moving_weight, at, level.threads) > 0.5
    return counts


def _seen(image: Tensor, at: Tensor, threads: int) -> Tensor:
    """An image at positions ``(3, Z, Y, X)`` in its voxels."""
    return ops.warp(image, at, np.zeros((3, 4)), np.eye(3), threads)


def _channel(
    level: LinearLevel, images: LevelImages, at: Tensor, counts: Tensor, maps: int, metric: MutualInformation
) -> Tensor:
    """``(n,)`` float64, 0 where the fixed image is flat over what counts."""
    moving = _seen(images.moving, at, level.threads).reshape(maps, -1)
    return ops.many_informations(
        images.fixed.reshape(1, -1).expand(maps, -1), moving, counts.reshape(maps, -1), metric.bins,
        *images.ranges(), metric.normalised,
    )  # fmt: skip

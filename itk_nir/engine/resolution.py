"""Both images of a pair on one coarse grid: what their windows and their histograms show there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.empty_windows import empty, level_noise, range_above_air
from itk_nir.engine.images import Pair
from itk_nir.engine.inside import Windows, objects_of
from itk_nir.engine.lattice import Banded, banded_from_dense
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.metrics import METRICS
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: Smoothing of the images, in voxels of the grid.
SIGMA = 0.5


class Displacement(Protocol):
    """A displacement that can be evaluated on a grid."""

    def on_grid(self, positions: list[F64]) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            ``[x, y, z]``, in voxels of the fixed image.

        Returns
        -------
        Tensor
            ``(3, z, y, x)`` mm along the fixed axes.
        """


class Resolution:
    """Both images of every channel on one coarse grid, under the linear map of the pair.

    Parameters
    ----------
    pair : Pair
        The images.
    normalised : sequence of (Tensor, Tensor)
        Of `Pair.normalised`.
    size : float
        Voxels of the longest axis, about.
    threads : int
        CPU threads; no result depends on it.
    displacement : Displacement or None
        Before the map.
    sigma : float
        Smoothing of the images, in voxels of the grid.
    """

    def __init__(
        self, pair: Pair, normalised: Sequence[tuple[Tensor, Tensor]], size: float, threads: int,
        displacement: Displacement | None, sigma: float = SIGMA,
    ) -> None:  # fmt: skip
        grids = LevelGrids.whole(pair, size)
        self.pair, self.grids, self.sigma = pair, grids, sigma
        self.channels = LevelChannels.of(pair, grids, normalised, sigma, 2, threads)
        fixed, moving = self.channels.images[0].fixed, self.channels.images[0].moving
        self.threads = threads
        index, vector = grids.voxel_map(pair, pair.linear)
        u = fixed.new_zeros(3, *fixed.shape) if displacement is None else displacement.on_grid(grids.fixed)
        self.view = View(u, index, vector, threads=threads)
        self.weight = counting_weight(pair, grids, u, moving, index, vector, threads)

    def agreement(self, channel: int, *, inside: bool = False) -> Windows:
        """What the windows of a channel show; or those inside of what both images show against their backgrounds.

        Parameters
        ----------
        channel : int
            Which of them.
        inside : bool
            Whether those inside count alone.

        Returns
        -------
        Windows
        """
        images = self.channels.images[channel]
        f, m = images.fixed, self.view(images.moving)
        w = torch.ones_like(f) if self.weight is None else (self.weight > 0.5).float()
        if inside:
            w = w * objects_of(f) * objects_of(m)
        boxes = [_windows(n, images.radius) for n in f.shape[::-1]]
        powers = torch.stack([w, w * f, w * m, w * f * f, w * m * m, w * f * m])
        count, f1, m1, ff, mm, fm = ops.separable(powers, boxes, self.threads)
        count = count.clamp(min=1e-6)
        variances = [(square - total * total / count) / count for square, total in ((ff, f1), (mm, m1))]
        counts = (w > 0.5) & (variances[0] > 1e-3) & (variances[1] > 1e-3)
        if not inside:  # where there is no noisy air
            nothing = [
                empty(total / count, v, counts, partial(self._noise, channel, moving))
                for total, v, moving in zip((f1, m1), variances, (False, True), strict=True)
            ]
            counts &= ~(nothing[0] | nothing[1])
        windows = int(counts.sum())
        if windows == 0:
            return Windows(0.0, 0.0, 0.0, 0)
        spread = (variances[0] * variances[1]).clamp(min=1e-12).sqrt()
        r = ((fm - f1 * m1 / count) / count / spread)[counts].double().clamp(-1, 1)
        square = r.square()
        edges = square * spread[counts].double()
        signs = [float(abs((r.sign() * weight).sum()) / weight.sum().clamp(min=1e-12)) for weight in (square, edges)]
        return Windows(signs[0], signs[1], float(square.mean()), windows)

    def _noise(self, channel: int, moving: bool) -> float:
        return level_noise(self.pair, channel, self.grids, self.sigma, moving=moving)

    def mutual_information(self, *, inside: bool = False, above_air: bool = False) -> float:
        """NMI of the channels, their mean; or inside of what both images show against their backgrounds alone.

        Parameters
        ----------
        inside : bool
            Whether what is inside counts alone.
        above_air : bool
            Whether noisy air counts as a background of one value (`range_above_air`).

        Returns
        -------
        float
            0 where nothing counts.
        """
        weight = self.weight
        if inside:
            weight = torch.ones_like(self.channels.images[0].fixed) if weight is None else weight
            for images in self.channels.images:
                weight = weight * objects_of(images.fixed) * objects_of(self.view(images.moving))
        channels = self._above_air() if above_air else self.channels
        metric = channels.metric([(1.0, METRICS["nmi"])] * len(channels.images), weight)
        return float(metric(self.view)) if metric.count >= 1 else 0.0

    def _above_air(self) -> LevelChannels:
        """The channels, whose histograms begin above the noise of their air."""
        images = []
        for k, i in enumerate(self.channels.images):
            fixed = range_above_air(self.pair, k, self.grids, self.sigma, i.fixed)
            moving = range_above_air(self.pair, k, self.grids, self.sigma, i.moving, moving=True)
            images.append(replace(i, fixed_range=fixed, moving_range=moving))
        return LevelChannels(tuple(images))


@lru_cache(maxsize=32)
def _windows(size: int, radius: int) -> Banded:
    """The sums over the windows along one axis, cut at the border."""
    at = np.arange(size)
    return banded_from_dense((np.abs(at[:, None] - at) <= radius).astype(float))

"""The channels of a pair at one resolution, and what measures them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.metrics import LevelImages, LevelMetric, Metric, weighted_sum

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LevelChannels:
    """What the metric of every channel is shown of a level.

    Parameters
    ----------
    images : tuple of LevelImages
        One a channel, without a weight.
    """

    images: tuple[LevelImages, ...]

    @classmethod
    def of(
        cls, pair: Pair, grids: LevelGrids, normalised: Sequence[tuple[Tensor, Tensor]], sigma: float, radius: int,
        threads: int,
    ) -> LevelChannels:  # fmt: skip
        """Smooth and shrink every channel.

        Parameters
        ----------
        pair : Pair
            The images, and the linear map along which their axes are compared.
        grids : LevelGrids
            The voxels of the level.
        normalised : sequence of (Tensor, Tensor)
            Of `Pair.normalised`.
        sigma : float
            Of the Gaussian, in voxels of the level.
        radius : int
            Of windowed metrics, in voxels of the level.
        threads : int
            CPU threads.

        Returns
        -------
        LevelChannels
        """
        axes = grids.voxel_map(pair, pair.linear)[0][:, :3]
        out = []
        for channel, (fixed, moving) in zip(pair.channels, normalised, strict=True):
            out.append(
                LevelImages(
                    *grids.images(pair, fixed, moving, sigma, threads),
                    weight=None,
                    radius=radius,
                    threads=threads,
                    fixed_range=channel.fixed_intensity.normalised_range,
                    moving_range=channel.moving_intensity.normalised_range,
                    moving_in_fixed_units=channel.moving_in_fixed_units,
                    axes=axes,
                    dimension=pair.fixed_geometry.dimension,
                )
            )
        return cls(tuple(out))

    def metric(
        self, metrics: Sequence[tuple[float, Metric]], weight: Tensor | None, centres: Tensor | None = None
    ) -> LevelMetric:
        """What measures all channels together.

        Parameters
        ----------
        metrics : sequence of (float, Metric)
            Weight and metric of each channel.
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where the fixed image counts.
        centres : Tensor or None
            Where windows may be centred, see `LevelImages`.

        Returns
        -------
        LevelMetric
            Its `count` is 0 where there is nothing to compare.
        """
        parts = [(w, m.prepare(i.weighted(weight, centres))) for (w, m), i in zip(metrics, self.images, strict=True)]
        return weighted_sum(parts)

    def exchanged(self, targets: Sequence[Tensor]) -> LevelChannels:
        """The channels of the other direction: fixed and moving image have changed places.

        Parameters
        ----------
        targets : sequence of Tensor
            ``(Z, Y, X)``, the moving image of every channel on the fixed grid.

        Returns
        -------
        LevelChannels
            Both images lie on the fixed grid.
        """
        return LevelChannels(
            tuple(
                replace(
                    i, fixed=target, moving=i.fixed, fixed_range=i.moving_range, moving_range=i.fixed_range,
                    moving_in_fixed_units=_inverted(*i.moving_in_fixed_units), axes=None,
                )
                for i, target in zip(self.images, targets, strict=True)
            )
        )  # fmt: skip


def _inverted(scale: float, offset: float) -> tuple[float, float]:
    return 1 / scale, -offset / scale

"""The images of the linear stage at one resolution, and how alike they are under a linear map.

The similarity times the share of the positions holds against a map that it leaves less to compare, as it must: a metric
rises easily where little is left. But a turn alone takes the corners of an image out of the other one, and a metric
that cannot exceed 1 may have less to gain than that share. Over the positions that two maps both have
(`values_where_both`), nothing is lost or won by leaving some out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import linear_starts, ops
from itk_nir.engine.correspondences import LinearCorrespondences
from itk_nir.engine.images import Pair
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, at_nearest, inside_image, shrink_factor
from itk_nir.engine.linear_map import LinearMap
from itk_nir.engine.linear_voxels import LinearVoxels
from itk_nir.engine.metrics import LevelMetric, Metric
from itk_nir.engine.progress import LEAST_SHARED
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: The least share of the fixed image that the moving one is held to fill, whatever a map makes of it.
LEAST_EXTENT = 0.1


#: Growth of volumes from one map to another up to which they are compared so: one that magnifies pushes out of the
#: other image what it cannot match.
MOST_GROWTH = 1.01

#: Gain over shared positions that counts, as a share of the metric: less is what noise and interpolation make.
LEAST_GAIN = 0.005


class LinearLevel:
    """All channels at one resolution, and how alike they are under a linear map.

    Parameters
    ----------
    pair : Pair
        The images.
    normalised : sequence of (Tensor, Tensor)
        Fixed and moving image of each channel, of `Pair.normalised`.
    grids : LevelGrids
        Its voxels.
    voxel : float
        Their size, mm.
    radius : int
        Of the windows of local metrics, voxels of the level.
    threads : int
        CPU threads of the native ops.
    sigma : float
        Of the Gaussian that smooths the images, in voxels of the level.
    alone : bool
        Whether the size of the moving image changes with the map, as of `optimise_linear`.
    """

    def __init__(
        self, pair: Pair, normalised: Sequence[tuple[Tensor, Tensor]], grids: LevelGrids, voxel: float, radius: int,
        threads: int, sigma: float = 0.5, alone: bool = False,
    ) -> None:  # fmt: skip
        self.pair: Pair = pair
        self.threads: int = threads
        #: Whether the size of the moving image changes with the map.
        self.alone: bool = alone
        geometry = pair.fixed_geometry
        #: mm a voxel of the level.
        self.voxel: float = voxel
        self.grids: LevelGrids = grids
        self.channels: LevelChannels = LevelChannels.of(pair, grids, normalised, sigma, radius, threads)
        self.fixed: Tensor = self.channels.images[0].fixed
        self.moving: Tensor = self.channels.images[0].moving
        self.still: Tensor = torch.zeros(3, *self.fixed.shape, device=self.fixed.device)
        counts, moving_counts = pair.fixed_counts, pair.moving_counts
        self.weight: Tensor | None = None if counts is None else grids.fixed_mask(counts)
        self.moving_weight: Tensor | None = None if moving_counts is None else at_nearest(moving_counts, grids.moving)
        #: Its voxels, mm along the fixed axes from the centre of the fixed grid.
        self.voxels: LinearVoxels = LinearVoxels.of(grids.fixed, geometry, self.still)
        counted = float(self.fixed.numel()) if self.weight is None else float((self.weight > 0.5).sum())
        voxel = float(np.prod(grids.voxel(geometry)[: geometry.dimension]))
        scale = abs(np.linalg.det(pair.linear[:-1, :-1]))
        extent = linear_starts.grid_extent(pair.moving_geometry) / scale / voxel
        if self.moving_weight is not None:
            extent *= float((self.moving_weight > 0.5).double().mean())
        #: Landmarks and labels, as far as there are any.
        self.known: LinearCorrespondences | None = None
        if pair.known is not None:
            self.known = LinearCorrespondences.of(pair.known, pair, grids, self.weight, self.voxel, threads)
        #: Positions that there can be at most: those of the fixed image, or as many as the moving image fills.
        #: Positions that count of the fixed image, and that the moving image fills.
        self.counted: float = counted
        self.extent: float = extent
        self.most: float = max(1.0, min(counted, extent))

    @classmethod
    def of_size(
        cls, pair: Pair, normalised: Sequence[tuple[Tensor, Tensor]], size: int, radius: int, threads: int,
        alone: bool = False,
    ) -> LinearLevel:  # fmt: skip
        """Both images shrunk until the longest axis of the fixed one has about `size` voxels.

        Parameters
        ----------
        pair, normalised, radius, threads, alone
            As of the class.
        size : int
            Voxels; an image that has fewer is not shrunk.

        Returns
        -------
        LinearLevel
        """
        voxel = shrink_factor(pair.fixed_geometry, size) * min(pair.fixed_geometry.spacing)
        return cls(pair, normalised, LevelGrids.whole(pair, size), voxel, radius, threads, alone=alone)

    def overlap(self, base: F64) -> float:
        """The share of the positions that both images have under a map.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.

        Returns
        -------
        float
            0 to 1.
        """
        weight = self.weight_under(base)
        return 1.0 if weight is None else min(1.0, float((weight > 0.5).sum()) / self.most_under(base))

    def weight_under(self, base: F64) -> Tensor | None:
        """Which positions both images have under a map.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.

        Returns
        -------
        Tensor or None
            ``(Z, Y, X)``, above 0.5 where they do; None for all.
        """
        return self._weight(self.still, self.pair.linear @ base)

    def most_under(self, base: F64) -> float:
        """Positions that there can be at most under a map, see `most`.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.

        Returns
        -------
        float
        """
        if not self.alone:
            return self.most
        # A moving image that is made small must not end as a point.
        extent = max(LEAST_EXTENT * self.counted, self.extent / abs(float(np.linalg.det(base[:-1, :-1]))))
        return max(1.0, min(self.counted, extent))

    def _weight(self, u: Tensor, linear: F64) -> Tensor | None:
        index, vector = self.grids.voxel_map(self.pair, linear)
        inside = inside_image(u, index, vector, tuple(self.moving.shape))
        weight = self.weight
        if inside is not None:
            weight = inside.float() if weight is None else inside * weight
        if self.moving_weight is not None:
            there = (ops.warp(self.moving_weight, u, index, vector, self.threads) > 0.5).float()
            weight = there if weight is None else weight * there
        return weight

    def under(self, base: F64, metrics: Sequence[tuple[float, Metric]], among: Tensor | None = None) -> Near:
        """What measures the images near a map.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
        metrics : sequence of (float, Metric)
            Weight and metric of each channel.
        among : Tensor, optional
            ``(Z, Y, X)``, above 0.5 at the positions that count; left out: all.

        Returns
        -------
        Near
            Over the positions that both images have under the map.
        """
        linear = self.pair.linear @ base
        index, vector = self.grids.voxel_map(self.pair, linear)
        weight = self.weight_under(base)
        if among is not None:
            weight = among if weight is None else weight * among
        images = tuple(replace(i, axes=index[:, :3]) for i in self.channels.images)
        metric = LevelChannels(images).metric(metrics, weight)
        share = 1.0 if weight is None else min(1.0, float((weight > 0.5).sum()) / self.most_under(base))
        return Near(self, metric, linear, index, vector, share if metric.count >= 1 else 0.0)


@dataclass(frozen=True, eq=False)
class Near:
    """What measures the images of a level near a map, over the positions that they share under it.

    Parameters
    ----------
    level : LinearLevel
        The images.
    metric : LevelMetric
        Over these positions.
    linear : ndarray
        ``(d + 1, d + 1)`` LPS, the map followed by the linear map of the pair.
    grid_to_moving, displacement_to_moving : ndarray
        As of `LevelGrids.voxel_map`; a displacement ``u`` comes before the map.
    share : float
        That of the positions, of all that there can be.
    """

    level: LinearLevel
    metric: LevelMetric
    linear: F64
    grid_to_moving: F64
    displacement_to_moving: F64
    share: float

    def moved(self, matrix: Tensor, shift: Tensor) -> View:
        """The moving side under a linear map.

        Parameters
        ----------
        matrix, shift : Tensor
            As of `LinearVoxels.view`.

        Returns
        -------
        View
        """
        maps = self.grid_to_moving, self.displacement_to_moving
        return self.level.voxels.view(matrix, shift, *maps, self.level.threads)

    def view(self, u: Tensor) -> View:
        """The moving side under a displacement.

        Parameters
        ----------
        u : Tensor
            ``(3, Z, Y, X)`` mm along the fixed axes, before the map.

        Returns
        -------
        View
        """
        return View(u, self.grid_to_moving, self.displacement_to_moving, threads=self.level.threads)

    def agreement(self, model: LinearMap, x: Tensor) -> Tensor:
        """The similarity under a map, with its gradient, less what landmarks and labels ask for.

        Parameters
        ----------
        model : LinearMap
            Which map.
        x : Tensor
            Its parameters.

        Returns
        -------
        Tensor
            One number.
        """
        similarity, asked = self.terms(model, x)
        return similarity if asked is None else similarity - asked

    def terms(self, model: LinearMap, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The two parts of `agreement`: the similarity, and what landmarks and labels ask for.

        Parameters
        ----------
        model, x
            As of `agreement`.

        Returns
        -------
        tuple of Tensor
            One number each; None where there are none.
        """
        known = self.level.known
        # Landmarks and labels want the map on the device.
        parts = model.parts(x, self.level.voxels.place if known is None else self.level.still.device)
        view = self.moved(*parts)
        return self.metric(view), None if known is None else known(*parts, self.linear, view)

    def agreed(self) -> float:
        """Under the map itself: its `value`, less what landmarks and labels still ask for.

        Returns
        -------
        float
        """
        return self.value() - self.asked()

    def asked(self) -> float:
        """What landmarks and labels still ask for under the map itself; 0 where there are none.

        Returns
        -------
        float
        """
        known, still = self.level.known, self.level.still
        if known is None:
            return 0.0
        with torch.no_grad():
            eye, zero = torch.eye(3, device=still.device), torch.zeros(3, device=still.device)
            return float(known(eye, zero, self.linear, self.view(still)))

    def value(self) -> float:
        """Under the map itself, times the share of the positions.

        Returns
        -------
        float
        """
        return self.plain() * self.share

    def plain(self) -> float:
        """Under the map itself, whatever the share of the positions.

        Returns
        -------
        float
            0 where there is nothing to compare.
        """
        if self.share == 0:
            return 0.0
        with torch.no_grad():
            return float(self.metric(self.view(self.level.still)))


def value(level: LinearLevel, base: F64, metrics: Sequence[tuple[float, Metric]]) -> float:
    """The similarity of a level under a map, times the share of the positions that both images have.

    Parameters
    ----------
    level : LinearLevel
        The images.
    base : ndarray
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.

    Returns
    -------
    float
    """
    return level.under(base, metrics).value()


def agreed(level: LinearLevel, base: F64, metrics: Sequence[tuple[float, Metric]]) -> float:
    """`value`, less what landmarks and labels still ask for.

    Parameters
    ----------
    level, base, metrics
        As of `value`.

    Returns
    -------
    float
    """
    return level.under(base, metrics).agreed()


def values_where_both(
    level: LinearLevel, before: F64, after: F64, metrics: Sequence[tuple[float, Metric]]
) -> tuple[float, float] | None:
    """The similarity under two maps over the positions that the images have under both.

    Parameters
    ----------
    level : LinearLevel
        The images.
    before, after : ndarray
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.

    Returns
    -------
    tuple of (float, float) or None
        Before and after; None where `after` has less than `LEAST_SHARED` of the positions that `before` has.
    """
    weights = level.weight_under(before), level.weight_under(after)
    kept = [w for w in weights if w is not None]
    if not kept:
        return level.under(before, metrics).plain(), level.under(after, metrics).plain()
    both = kept[0] if len(kept) == 1 else kept[0] * kept[1]
    there = float(both.numel() if weights[0] is None else (weights[0] > 0.5).sum())
    if float((both > 0.5).sum()) < LEAST_SHARED * max(there, 1.0):
        return None
    near = [level.under(m, metrics, both) for m in (before, after)]
    return None if min(n.share for n in near) == 0 else (near[0].plain(), near[1].plain())


def is_better_where_both(level: LinearLevel, before: F64, after: F64, metrics: Sequence[tuple[float, Metric]]) -> bool:
    """Tell whether one map is clearly better than another, over the positions of each and over those of both.

    Parameters
    ----------
    level, before, after, metrics
        As of `values_where_both`.

    Returns
    -------
    bool
        Also what landmarks and labels ask for counts.
    """
    growth = np.divide(*(abs(np.linalg.det(m[:-1, :-1])) for m in (after, before)))
    if growth > MOST_GROWTH:
        return False
    near = [level.under(m, metrics) for m in (before, after)]
    own, asked = [n.plain() for n in near], [n.asked() for n in near]
    # Mutual information rises and falls with the background that is left out: that of the shared positions alone errs.
    both = values_where_both(level, before, after, metrics) if own[1] > own[0] else None
    if both is None:
        return False
    gains = ((b - asked[1] - (a - asked[0]), LEAST_GAIN * abs(a)) for a, b in (own, both))
    return all(gain > least for gain, least in gains)

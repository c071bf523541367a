"""The images of the linear stage at one resolution, and the descent over the parameters of a linear map there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import linear_starts, ops
from itk_nir.engine.correspondences import LinearCorrespondences
from itk_nir.engine.images import Pair
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, at_nearest, inside_image, shrink_factor
from itk_nir.engine.linear_map import Comparing, LinearMap, Measuring, corners_from_centre
from itk_nir.engine.linear_voxels import LinearVoxels
from itk_nir.engine.metrics import LevelMetric, Metric
from itk_nir.engine.progress import Callback, Progress
from itk_nir.engine.quasi_newton import minimise
from itk_nir.engine.settings import LinearSettings
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: Evaluations after which it is looked anew at which positions both images have.
ROUND = 10

#: The least share of the fixed image that the moving one is held to fill, whatever a map makes of it.
LEAST_EXTENT = 0.1


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
        weight = self._weight(self.still, self.pair.linear @ base)
        return 1.0 if weight is None else min(1.0, float((weight > 0.5).sum()) / self.most_under(base))

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

    def under(self, base: F64, metrics: Sequence[tuple[float, Metric]]) -> Near:
        """What measures the images near a map.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
        metrics : sequence of (float, Metric)
            Weight and metric of each channel.

        Returns
        -------
        Near
            Over the positions that both images have under the map.
        """
        linear = self.pair.linear @ base
        index, vector = self.grids.voxel_map(self.pair, linear)
        weight = self._weight(self.still, linear)
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
        if self.share == 0:
            return 0.0
        with torch.no_grad():
            return float(self.metric(self.view(self.level.still))) * self.share


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


class LinearDescent:
    """The evaluations of the linear stage, counted over all of it.

    Parameters
    ----------
    pair : Pair
        The images.
    settings : LinearSettings
        What the stage is told.
    levels : list of LinearLevel
        Its resolutions.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.
    callback : callable or None
        Called after every evaluation; a true value cancels.
    clock : float
        When the registration began.
    count : int
        All evaluations to come, for the progress.
    restrict : sequence of float
        As of `optimise_linear`.
    """

    def __init__(
        self, pair: Pair, settings: LinearSettings, levels: list[LinearLevel], metrics: Sequence[tuple[float, Metric]],
        callback: Callback | None, clock: float, count: int, restrict: Sequence[float],
    ) -> None:  # fmt: skip
        self.restrict: Sequence[float] = restrict
        self.pair: Pair = pair
        self.settings: LinearSettings = settings
        self.levels: list[LinearLevel] = levels
        self.metrics: Sequence[tuple[float, Metric]] = metrics
        self.callback: Callback | None = callback
        self.clock: float = clock
        self.done: int = 0
        #: The map of the latest evaluation: the parameters of a model, and the matrix that follows it.
        self.latest: tuple[LinearMap, Tensor] | None = None
        self.following: F64 = pair.linear
        self.count: int = max(1, count)

    def run(self, level: int, base: F64, kind: str, evaluations: int) -> tuple[F64, float, bool]:
        """Improve a map at one level.

        Parameters
        ----------
        level : int
            Which of the levels.
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair: where to begin.
        kind : str
            Which map, as of `optimise_linear`.
        evaluations : int
            How many at most.

        Returns
        -------
        base : ndarray
            The best map.
        cost : float
            One minus its similarity.
        cancelled : bool
            Whether the caller asked to stop.
        """
        return self.at(self.levels[level], level, base, kind, evaluations)

    def at(self, here: Comparing, level: int, base: F64, kind: str, evaluations: int) -> tuple[F64, float, bool]:
        """The same at a level that need not be among those of the descent.

        Parameters
        ----------
        here : Comparing
            The level.
        level : int
            Its number, for the progress.
        base, kind, evaluations
            As of `run`.

        Returns
        -------
        tuple of (ndarray, float, bool)
            As of `run`.
        """
        model = LinearMap(self.pair.fixed_geometry, kind, self.restrict)
        corners = corners_from_centre(self.pair.fixed_geometry)
        model.turn_about(self.settings.linear_rotations)

        def reach(a: Tensor, b: Tensor) -> float:
            change = model.matrix(b) - model.matrix(a)
            return float(np.linalg.norm(change[:, :3] @ corners + change[:, 3:], axis=0).max())

        best, kept, done, ended, cancelled = np.inf, base, 0, False, False
        while True:
            near = here.under(base, self.metrics)
            cost = 1 - near.agreed()
            gained = best - cost
            self.following = self.pair.linear @ base
            if gained >= 0:
                best, kept = cost, base
            if ended or cancelled or done >= evaluations or near.share == 0 or gained <= 1e-6:
                return kept, best, cancelled

            def function(x: Tensor, near: Measuring = near) -> tuple[float, Tensor]:
                at = x.detach().requires_grad_()
                self.latest = model, x.detach()
                loss = 1 - near.agreement(model, at)
                loss.backward()
                assert at.grad is not None
                return float(loss.detach()), at.grad.double()

            found = minimise(
                function, model.zero(), reach, radius=2 * here.voxel, most_radius=8 * here.voxel,
                evaluations=min(ROUND, evaluations - done), tolerance=self.settings.linear_tolerance,
                goes_on=partial(self._goes_on, level, done, evaluations),
            )  # fmt: skip
            done += found.evaluations
            base = base @ model.in_lps(found.x)
            cancelled = found.stop == "cancelled"
            ended = found.stop == "converged" and found.evaluations <= 2

    def _goes_on(self, level: int, evaluation: int, evaluations: int, cost: float) -> bool:
        self.done += 1
        if self.callback is None:
            return True
        seconds = time.perf_counter() - self.clock
        fraction = min(1.0, self.done / self.count)
        assert self.latest is not None
        mapping = partial(_through, *self.latest, self.following)
        return not (
            self.callback(
                Progress(
                    "linear", level, len(self.levels), evaluation, evaluations, 1 - cost, cost, 1.0, seconds, fraction,
                    mapping,
                )
            )
        )  # fmt: skip


def _through(model: LinearMap, x: Tensor, following: F64, points: F64) -> F64:
    """What a linear map and the matrix that follows it make of points, LPS mm."""
    matrix = following @ model.in_lps(x)
    out: F64 = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return out

"""The linear stage: from wherever the images lie to a translation, a rigid, similarity or affine map.

It maximises the metrics of the deformable stage, over the positions that both images have: what the moving image does
not cover counts as no match, so that pushing the images apart never pays. A few starts (the images as they lie, their
centres, their centres of mass, their principal axes, and the best of a coarse search over rotations) are each followed
for a few steps on the coarsest level; the best goes on, coarse to fine. Steps are those of `quasi_newton`: none makes
the images less alike. The map that is found is given up for the start where the metric, or mutual information, holds it
to be worse.
"""

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
from itk_nir.engine.images import Pair, sizes, spacings
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, at_nearest, inside_image, shrink_factor
from itk_nir.engine.linear_map import LinearMap
from itk_nir.engine.metrics import LevelMetric, Metric, MutualInformation, NoMetric, look_at_images, mean_of
from itk_nir.engine.progress import Callback, Progress
from itk_nir.engine.quasi_newton import minimise
from itk_nir.engine.restriction import held_axes, without_held_axes
from itk_nir.engine.settings import LinearSettings
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: The share of a metric's `little_evidence` below which the images stay as they lie.
LEAST_EVIDENCE = 0.4

#: Of the similarity of a start that turns the images by more than `GREAT_TURN` degrees this share counts: headers are
#: seldom wrong, and organs nearly symmetric.
TURNED_GAIN, GREAT_TURN = 0.9, 30.0

#: Mutual information that so many positions have by chance, times their number, about: noise fills the bins unevenly.
CHANCE = 150.0

#: The overlap (share of the smaller image) below which the images as they lie are no start.
LEAST_OVERLAP = 0.05

#: By which share of a measure the map that was found must be worse than the start for that to be told.
NOTABLE = 0.005

#: Evaluations after which it is looked anew at which positions both images have.
ROUND = 10


@dataclass(frozen=True)
class LinearResult:
    """What the linear stage found.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)`` LPS, fixed → moving: the found map followed by the linear map of the pair.
    similarity : float
        The metric at its last level.
    cancelled : bool
        Whether the callback asked to stop.
    notes : tuple of str
        What was found odd, one sentence each.
    """

    matrix: F64
    similarity: float
    cancelled: bool
    notes: tuple[str, ...] = ()


class _Level:
    """All channels at one resolution, and how alike they are under a linear map."""

    def __init__(
        self, pair: Pair, normalised: Sequence[tuple[Tensor, Tensor]], size: int, radius: int, threads: int
    ) -> None:
        self.pair, self.threads = pair, threads
        geometry = pair.fixed_geometry
        #: mm a voxel of the level.
        self.voxel = shrink_factor(geometry, size) * min(geometry.spacing)
        self.grids = grids = LevelGrids.whole(pair, size)
        self.channels = LevelChannels.of(pair, grids, normalised, 0.5, radius, threads)
        self.fixed, self.moving = self.channels.images[0].fixed, self.channels.images[0].moving
        self.still = torch.zeros(3, *self.fixed.shape, device=self.fixed.device)
        counts, moving_counts = pair.fixed_counts, pair.moving_counts
        self.weight = None if counts is None else grids.fixed_mask(counts)
        self.moving_weight = None if moving_counts is None else at_nearest(moving_counts, grids.moving)
        axes = [
            (torch.from_numpy(p).float() - (n - 1) / 2) * s
            for p, n, s in zip(grids.fixed, sizes(geometry), spacings(geometry), strict=True)
        ]
        # mm along the fixed axes, from the centre of the fixed grid
        mesh = torch.meshgrid(*axes[::-1], indexing="ij")
        self.points = torch.stack(mesh[::-1]).reshape(3, -1).to(self.fixed.device)
        counted = float(self.fixed.numel()) if self.weight is None else float((self.weight > 0.5).sum())
        voxel = float(np.prod(grids.voxel(geometry)[: geometry.dimension]))
        scale = abs(np.linalg.det(pair.linear[:-1, :-1]))
        extent = linear_starts.grid_extent(pair.moving_geometry) / scale / voxel
        if self.moving_weight is not None:
            extent *= float((self.moving_weight > 0.5).double().mean())
        #: Landmarks and labels, as far as there are any.
        self.known = None
        if pair.known is not None:
            self.known = LinearCorrespondences.of(pair.known, pair, grids, self.weight, self.voxel, threads)
        #: Positions that there can be at most: those of the fixed image, or as many as the moving image fills.
        self.most = max(1.0, min(counted, extent))

    def overlap(self, base: F64) -> float:
        """The share of the positions that both images have under a map (LPS, before that of the pair)."""
        weight = self._weight(self.still, self.pair.linear @ base)
        return 1.0 if weight is None else min(1.0, float((weight > 0.5).sum()) / self.most)

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

    def under(self, base: F64, metrics: Sequence[tuple[float, Metric]]) -> _Near:
        """What measures the images near a map (LPS, before that of the pair)."""
        linear = self.pair.linear @ base
        index, vector = self.grids.voxel_map(self.pair, linear)
        weight = self._weight(self.still, linear)
        images = tuple(replace(i, axes=index[:, :3]) for i in self.channels.images)
        metric = LevelChannels(images).metric(metrics, weight)
        share = 1.0 if weight is None else min(1.0, float((weight > 0.5).sum()) / self.most)
        return _Near(self, metric, linear, index, vector, share if metric.count >= 1 else 0.0)

    def displacement(self, model: LinearMap, x: Tensor) -> Tensor:
        """``(3, Z, Y, X)`` mm along the fixed axes: of the parameters of a map."""
        matrix, shift = model.parts(x)
        u = (matrix - torch.eye(3, device=matrix.device)) @ self.points + shift[:, None]
        return u.reshape(3, *self.fixed.shape)


@dataclass(frozen=True, eq=False)
class _Near:
    """What measures the images of a level near a map, over the positions that they share under it.

    `share` is that of these positions; a displacement ``u`` comes before the map.
    """

    level: _Level
    metric: LevelMetric
    linear: F64
    grid_to_moving: F64
    displacement_to_moving: F64
    share: float

    def _view(self, u: Tensor) -> View:
        return View(u, self.grid_to_moving, self.displacement_to_moving, threads=self.level.threads)

    def agreement(self, model: LinearMap, x: Tensor) -> Tensor:
        """Under the parameters of a map, with its gradient: the similarity, less what landmarks and labels ask for."""
        view, known = self._view(self.level.displacement(model, x)), self.level.known
        out = self.metric(view)
        return out if known is None else out - known(*model.parts(x), self.linear, view)

    def agreed(self) -> float:
        """Under the map itself: its `value`, less what landmarks and labels still ask for."""
        out, known = self.value(), self.level.known
        if known is None:
            return out
        still = self.level.still
        with torch.no_grad():
            eye, zero = torch.eye(3, device=still.device), torch.zeros(3, device=still.device)
            return out - float(known(eye, zero, self.linear, self._view(still)))

    def value(self) -> float:
        """Under the map itself, times the share of the positions."""
        if self.share == 0:
            return 0.0
        with torch.no_grad():
            return float(self.metric(self._view(self.level.still))) * self.share


def optimise_linear(
    pair: Pair,
    kind: str,
    settings: LinearSettings,
    metrics: Sequence[tuple[float, Metric]],
    *,
    start: Start | None = None,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
    restrict: Sequence[float] = (),
) -> LinearResult:
    """Find the linear map between two images.

    Parameters
    ----------
    pair : Pair
        The images; `pair.linear` (LPS, fixed → moving) is applied after what is found here.
    kind : str
        ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
    settings : LinearSettings
        What the stage is told.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.
    start : Start, optional
        Of `find_start`; left out: the images as they lie.
    threads : int
        CPU threads of the native ops; no result depends on it.
    callback : callable, optional
        Called with a `Progress` after every evaluation; a true value cancels, and the best so far is kept.
    clock : float, optional
        ``time.perf_counter()`` when the registration began.
    restrict : sequence of float
        1 for each axis of the fixed image along which the map may displace things, 0 for the others; empty for all.

    Returns
    -------
    LinearResult
    """
    clock = time.perf_counter() if clock is None else clock
    if pair.known is not None and not look_at_images(metrics):
        kind = pair.known.supported(kind)
    normalised = pair.normalised()
    radius = min(settings.linear_radius, max(pair.fixed_geometry.size))  # wider windows see no more
    levels = [_Level(pair, normalised, size, radius, threads) for size in settings.linear_size]
    descent = _Descent(pair, settings, levels, metrics, callback, clock, sum(settings.linear_iterations), restrict)
    begin = linear_starts.as_they_lie(pair)
    base, cancelled, notes = (begin, False, []) if start is None else (start.matrix, start.cancelled, list(start.notes))
    several = kind in ("similarity", "affine")
    plain = base
    for level, evaluations in enumerate(settings.linear_iterations):
        rigid = evaluations // 2 if several and level == 0 else 0
        for part, count in (("rigid", rigid), (kind, evaluations - rigid)):
            if count and not cancelled:
                base, _, cancelled = descent.run(level, base, part, count)
            if part == "rigid" and rigid:
                plain = base
    gain = mean_of(metrics, "contrast_gain")
    if several and gain > 0 and not cancelled:
        base = _needed(descent, plain, base, gain)
    # By the metric and by mutual information, each times the overlap.
    measures = metrics, [(w, MutualInformation()) for w, _ in metrics]
    found, at_start = ([value(levels[-1], m, by) for by in measures] for m in (base, begin))
    # A map that brings landmarks or labels together need not please the images too.
    known = pair.known is not None and agreed(levels[-1], base, metrics) > agreed(levels[-1], begin, metrics)
    if not cancelled and not known and look_at_images(metrics):
        little, chance = mean_of(metrics, "little_evidence"), CHANCE / levels[-1].most
        # Few positions hold much information by chance; a metric of another kind may know better.
        little_found = found[0] < LEAST_EVIDENCE * little or (found[1] < chance and found[0] < max(little, chance))
        worse = [name for name, a, b in zip(("metric", "mutual information"), found, at_start, strict=True) if a < b]
        if worse or little_found:
            told = any(b - a > NOTABLE * abs(b) for a, b in zip(found, at_start, strict=True))
            if told and not np.array_equal(base, begin):
                notes.append(
                    f"linear stage: the {' and the '.join(worse)} held the map that was found to be worse than the "
                    "start, which was kept"
                )
            base, found = begin, at_start
    # Free parameters alone have moved: what there is along held axes is rounding.
    base = without_held_axes(base, pair.fixed_geometry, restrict)
    return LinearResult(pair.linear @ base, found[0], cancelled, tuple(notes))


@dataclass(frozen=True)
class Start:
    """Where the linear stage begins.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
    cancelled : bool
        Whether the callback asked to stop.
    notes : tuple of str
        What was found odd, one sentence each.
    """

    matrix: F64
    cancelled: bool = False
    notes: tuple[str, ...] = ()


def find_start(
    pair: Pair, kind: str, settings: LinearSettings, *, images: bool = True, threads: int = 1,
    callback: Callback | None = None, clock: float | None = None, restrict: Sequence[float] = (),
) -> Start:  # fmt: skip
    """Follow several starts for a few steps, by mutual information, which holds for like and unlike contrasts.

    Parameters
    ----------
    pair : Pair
        The images.
    kind : str
        The map that is to be found, as of `optimise_linear`; a translation turns nothing.
    settings : LinearSettings
        What the stage is told.
    images : bool
        Whether the images count; else landmarks and labels alone.
    threads : int
        CPU threads of the native ops; no result depends on it.
    callback, clock, restrict
        As of `optimise_linear`; with held axes nothing is turned, and shifted along free axes only.

    Returns
    -------
    Start
        The best.
    """
    clock = time.perf_counter() if clock is None else clock
    normalised = pair.normalised()
    metric: Metric = MutualInformation() if images else NoMetric()
    metrics = [(1.0, metric)] * len(pair.channels)
    tiny, level = (
        _Level(pair, normalised, size, 1, threads) for size in (settings.linear_search_size, settings.linear_size[0])
    )
    masses = linear_starts.masses(pair)
    shifts = [without_held_axes(s, pair.fixed_geometry, restrict) for s in linear_starts.shifted(pair, *masses)]
    starts = [linear_starts.as_they_lie(pair), *shifts]
    notes = []
    if tiny.overlap(starts[0]) < LEAST_OVERLAP:
        notes.append(
            "the images do not overlap where their headers place them; the linear stage began with their centres on "
            "each other"
        )
        starts = starts[1:]
    if kind != "translation" and not held_axes(restrict):
        turns = linear_starts.along_principal_axes(pair, *masses) + linear_starts.turned(pair, *masses)
        ranked = sorted(range(len(turns)), key=lambda k: -agreed(tiny, turns[k], metrics))
        starts += [turns[k] for k in ranked[: settings.linear_turned_starts]]
    if pair.known is not None and pair.known.landmarks is not None:
        on_landmarks = pair.known.landmarks.matrix(kind, pair.linear)
        starts += [] if on_landmarks is None else [without_held_axes(on_landmarks, pair.fixed_geometry, restrict)]
    kept: list[F64] = []
    for start in starts:
        if all(_apart(pair, start, other) > 0.5 * level.voxel for other in kept):
            kept.append(start)
    count = settings.linear_start_iterations * len(kept)
    descent = _Descent(pair, settings, [level], metrics, callback, clock, count, restrict)
    tried: list[tuple[float, int, F64]] = []
    cancelled = False
    for k, start in enumerate(kept):
        part = "translation" if kind == "translation" else "rigid"
        base, cost, cancelled = descent.run(0, start, part, settings.linear_start_iterations)
        handicap = 1.0 if linear_starts.angle(start) <= GREAT_TURN else TURNED_GAIN
        tried.append(((cost - 1) * handicap if cost < 1 else (cost - 1) / handicap, k, base))
        if cancelled:
            break
    return Start(min(tried)[2], cancelled, tuple(notes))


def _apart(pair: Pair, a: F64, b: F64) -> float:
    """How far two maps take a corner of the fixed image apart, mm."""
    corners = pair.fixed_geometry.corners()
    moved = [corners @ m[:-1, :-1].T + m[:-1, -1] for m in (a, b)]
    return float(np.linalg.norm(moved[0] - moved[1], axis=1).max())


def _needed(descent: _Descent, plain: F64, base: F64, gain: float) -> F64:
    """The map with a stretch where the metric gains by it what a change of contrast alone would not; else without."""
    levels, evaluations = descent.levels, descent.settings.linear_iterations
    for level in range(1, len(levels)):
        plain = descent.run(level, plain, "rigid", evaluations[level])[0]
    stretched, rigid = (agreed(levels[-1], m, descent.metrics) for m in (base, plain))
    return base if stretched - rigid > gain * abs(rigid) else plain


def value(level: _Level, base: F64, metrics: Sequence[tuple[float, Metric]]) -> float:
    """The similarity of a level under a map, times the share of the positions that both images have.

    Parameters
    ----------
    level : _Level
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


def agreed(level: _Level, base: F64, metrics: Sequence[tuple[float, Metric]]) -> float:
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


class _Descent:
    """The evaluations of the linear stage, counted over all of it."""

    def __init__(
        self, pair: Pair, settings: LinearSettings, levels: list[_Level], metrics: Sequence[tuple[float, Metric]],
        callback: Callback | None, clock: float, count: int, restrict: Sequence[float],
    ) -> None:  # fmt: skip
        self.restrict = restrict
        self.pair, self.settings, self.levels, self.metrics = pair, settings, levels, metrics
        self.callback, self.clock, self.done, self.count = callback, clock, 0, max(1, count)

    def run(self, level: int, base: F64, kind: str, evaluations: int) -> tuple[F64, float, bool]:
        """Improve a map at one level: the best, one minus its similarity, and whether the caller cancelled."""
        here, model = self.levels[level], LinearMap(self.pair.fixed_geometry, kind, self.restrict)
        corners = self._corners().to(here.fixed.device)

        def reach(a: Tensor, b: Tensor) -> float:
            ends = []
            for x in (a, b):
                matrix, shift = model.parts(x)
                ends.append(matrix @ corners + shift[:, None])
            return float((ends[1] - ends[0]).norm(dim=0).max())

        best, kept, done, ended, cancelled = np.inf, base, 0, False, False
        while True:
            near = here.under(base, self.metrics)
            cost = 1 - near.agreed()
            gained = best - cost
            if gained >= 0:
                best, kept = cost, base
            if ended or cancelled or done >= evaluations or near.share == 0 or gained <= 1e-6:
                return kept, best, cancelled

            def function(x: Tensor, near: _Near = near) -> tuple[float, Tensor]:
                at = x.detach().requires_grad_()
                loss = 1 - near.agreement(model, at)
                loss.backward()
                assert at.grad is not None
                return float(loss.detach()), at.grad.double()

            found = minimise(
                function, model.zero(here.fixed.device), reach, radius=2 * here.voxel, most_radius=8 * here.voxel,
                evaluations=min(ROUND, evaluations - done), tolerance=self.settings.linear_tolerance,
                goes_on=partial(self._goes_on, level, done, evaluations),
            )  # fmt: skip
            done += found.evaluations
            base = base @ model.in_lps(found.x)
            cancelled = found.stop == "cancelled"
            ended = found.stop == "converged" and found.evaluations <= 2

    def _corners(self) -> Tensor:
        g = self.pair.fixed_geometry
        corners = (g.corners() - g.centre) @ g.rotation
        return torch.from_numpy(np.pad(corners, ((0, 0), (0, 3 - g.dimension))).T).float()

    def _goes_on(self, level: int, evaluation: int, evaluations: int, cost: float) -> bool:
        self.done += 1
        if self.callback is None:
            return True
        seconds = time.perf_counter() - self.clock
        fraction = min(1.0, self.done / self.count)
        return not (
            self.callback(
                Progress(
                    "linear", level, len(self.levels), evaluation, evaluations, 1 - cost, cost, 1.0, seconds, fraction
                )
            )
        )  # fmt: skip

"""The deformable stage: two fields, composed, optimised coarse to fine on whole images.

    phi(p) = A(p + u(p)),   id + u = (id + u_1) o (id + u_2),   u_k = exp(v_k) - id   (or u_k = v_k)

The coarse field ``v_1`` is a coordinate network plus a cubic B-spline lattice, trained at the first level. The network
goes first and alone: with few degrees of freedom that all act on the whole image it finds what the linear stage has
left over, turns and shifts included, before control points can fit the wrong anatomy to them. Then they join it and
move what is left at that resolution. After the level the coarse field is frozen, and the levels that follow train a
fine field ``v_2`` from zero, on a lattice that is refined from level to level. Each is a flow of its own: large
deformations need not be one flow's. (``composed=False`` trains one field through all levels.) The loss is in
`itk_nir.engine.level`.

As an engine this module has what `itk_nir.settings.ENGINES` asks for: `Settings`, `optimise`, `describe`, `restore`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.folds import remove_folds
from itk_nir.engine.images import Pair, common_domain, shrink, spacings
from itk_nir.engine.lattice import Domain
from itk_nir.engine.level import FieldInTraining, Level
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.progress import Callback, Iteration, Optimised, Progress
from itk_nir.engine.settings import DeformableSettings as Settings
from itk_nir.engine.stored_field import describe, restore
from itk_nir.engine.velocity_field import Lattices

__all__ = ["Settings", "describe", "optimise", "restore"]

CONVERGED, CANCELLED, DONE = "converged", "cancelled", "all iterations done"


def optimise(
    pair: Pair,
    settings: Settings,
    *,
    seed: int = 0,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
) -> Optimised:
    """Register a pair. See the module's text for the model.

    Parameters
    ----------
    pair : Pair
        The images, and the linear map that follows the deformation.
    settings : DeformableSettings
        What the stage is told.
    seed : int
        Of the network's first weights.
    threads : int
        CPU threads of the native ops; no result depends on it.
    callback : callable, optional
        Called with a `Progress` after every iteration; a true value cancels, and the best so far is kept.
    clock : float, optional
        ``time.perf_counter()`` when the registration began.

    Returns
    -------
    Optimised
        With a `VelocityField`.

    Raises
    ------
    NothingToCompare
        No position of the fixed image counts.
    """
    clock = time.perf_counter() if clock is None else clock
    # In a function of its own: what the iterations held is free again before the folds are looked for.
    done, domain = _train(pair, settings, seed, threads, callback, clock)
    if not settings.jacobian_weight:
        return done
    ops.release_memory()
    return replace(done, field=remove_folds(done.field, domain))


@dataclass
class _Report:
    """What was measured so far, and who is told of it."""

    settings: Settings
    work: list[int]
    callback: Callback | None
    clock: float
    trace: list[Iteration] = field(default_factory=list)

    def goes_on(self, now: Iteration) -> bool:
        """Note an iteration; whether there shall be another."""
        self.trace.append(now)
        if self.callback is None:
            return True
        iterations = self.settings.iterations[now.level]
        done = sum(self.work[: now.level]) + self.work[now.level] * (now.iteration + 1) / iterations
        return not self.callback(
            Progress(
                "deformable",
                now.level,
                self.settings.levels,
                now.iteration,
                iterations,
                now.metric,
                now.loss,
                now.learning_rate,
                time.perf_counter() - self.clock,
                done / sum(self.work),
            )
        )


def _train(
    pair: Pair, settings: Settings, seed: int, threads: int, callback: Callback | None, clock: float
) -> tuple[Optimised, Domain]:
    """All levels, and the block of the fixed grid that was worked on."""
    fixed = pair.fixed_intensity.normalised(pair.fixed)
    moving = pair.moving_intensity.normalised(pair.moving)
    unit = min(pair.fixed_geometry.spacing)
    margin = 2 * settings.shrink_factors[-1] * unit if pair.fixed_weight is None else 8 * unit
    domain = common_domain(pair, margin)
    settings = settings.for_voxels(math.prod(domain.size))
    coarsest = settings.coarsest_grid_spacing * unit
    knots = tuple(coarsest / s for s in spacings(pair.fixed_geometry))
    finest = max(settings.halvings(level) for level in range(settings.levels))
    lattices = Lattices.halved(domain.lattice(knots), coarsest, finest)  # type: ignore[arg-type]
    model = FieldInTraining(pair.fixed_geometry, lattices, settings, seed, pair.fixed.device, threads)
    work = [
        n * math.prod(math.ceil(size / f) for size, f in zip(domain.size, shrink(pair.fixed_geometry, k), strict=True))
        for n, k in zip(settings.iterations, settings.shrink_factors, strict=True)
    ]
    report = _Report(settings, work, callback, clock)
    last = max(level for level in range(settings.levels) if settings.iterations[level])
    stop = DONE
    measured: tuple[float | None, float | None] = None, None
    for number in range(settings.levels):
        if number == 1 and settings.composed and report.trace and stop != CANCELLED:
            model.freeze()
        model.go_to(settings.halvings(number))
        if settings.iterations[number] == 0 or stop == CANCELLED:
            continue
        ops.release_memory()
        grids = LevelGrids.of(pair, domain, settings.shrink_factors[number])
        images = grids.images(pair, fixed, moving, settings.smoothing_sigmas[number], threads)
        if number == settings.levels - 1:
            del fixed, moving
        with ops.reused_memory():
            level = Level.make(number, settings, pair, domain, images, grids, model)
            del images
            stop = _Descent(level, model, report.goes_on, keep_best=callback is not None).run()
            if number == last or stop == CANCELLED:
                measured = _before_and_after(level, model)
            del level
    return Optimised(model.trained(), tuple(report.trace), stop, *measured), domain


def _before_and_after(level: Level, model: FieldInTraining) -> tuple[float, float]:
    """The metric without any deformation and with the field, over the same positions."""
    with torch.no_grad():
        u = model.displaced(model.velocity())
        return float(level.similarity(torch.zeros_like(u))), float(level.similarity(u))


class _Descent:
    """The iterations of a level.

    Parameters
    ----------
    level : Level
        The level.
    model : FieldInTraining
        The field, which is changed in place.
    goes_on : callable
        Told of every iteration, and asked whether there shall be another.
    keep_best : bool
        Where it says no, the field goes back to the iteration with the least loss, not to the last one.
    """

    def __init__(
        self, level: Level, model: FieldInTraining, goes_on: Callable[[Iteration], bool], keep_best: bool
    ) -> None:
        settings = level.settings
        self.level, self.model, self.goes_on, self.keep_best = level, model, goes_on, keep_best
        self.settings, self.iterations = settings, settings.iterations[level.number]
        self.unit = min(model.geometry.spacing)
        network, threads = model.velocity.network, level.threads
        self.control_points = ops.Adam([model.velocity.control_points], settings.betas, level.epsilon, threads)
        self.weights: ops.Adam | None = None
        self.warmup = 0
        if network is not None:
            # Its gradients are per half-extent of the image, not per mm.
            epsilon = level.epsilon * model.geometry.half_extent
            self.weights = ops.Adam(list(network.parameters()), settings.betas, epsilon, threads)
            if level.number == 0:
                self.warmup = round(settings.network_warmup / level.factor * self.iterations)
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.losses: list[float] = []

    def run(self) -> str:
        """All iterations; returns what ended them."""
        for iteration in range(self.iterations):
            rate = self._learning_rate(iteration)
            now = self._measure(iteration, rate)
            if not self.goes_on(now):
                if self.best is not None:
                    self.model.velocity.load_state_dict(self.best[1])
                return CANCELLED
            self._step(iteration, rate * self.unit)
            if _converged(self.losses, self.settings):
                if iteration + 1 >= self.warmup:
                    return CONVERGED
                self.warmup = iteration + 1  # the network is done: the control points' turn
                self.losses.clear()
        return DONE

    def _learning_rate(self, iteration: int) -> float:
        """In voxels of the fixed image along its finest axis."""
        share = iteration / max(1, self.iterations - 1)
        return self.settings.learning_rates[self.level.number] * (1 - (1 - self.settings.learning_rate_end) * share)

    def _measure(self, iteration: int, rate: float) -> Iteration:
        """Loss and gradients."""
        self.model.velocity.control_points.requires_grad_(iteration >= self.warmup)
        similarity, loss = self.level.loss(self.model, iteration)
        loss.backward()
        # With its locals the graph goes, and all that it holds, before the next one is made.
        now = Iteration(self.level.number, iteration, float(similarity.detach()), float(loss.detach()), rate)
        self.losses.append(now.loss)
        if self.keep_best and (self.best is None or now.loss < self.best[0]):
            self.best = now.loss, {k: p.detach().clone() for k, p in self.model.velocity.state_dict().items()}
        return now

    def _step(self, iteration: int, rate: float) -> None:
        """One step of the optimisers; `rate` in mm."""
        if iteration >= self.warmup:
            self.control_points.step(rate)
        if self.weights is not None:
            # A network moves the whole image at once, which no smoothness forbids: not on little evidence. The square,
            # for Adam's steps add up whatever the gradient: the images would drift apart.
            share = self.settings.network_learning_rate / self.level.factor**2
            self.weights.step(share * rate / self.model.geometry.half_extent)


def _converged(losses: list[float], settings: Settings) -> bool:
    w = settings.convergence_window
    if settings.convergence_threshold <= 0 or len(losses) < 2 * w:
        return False
    return float(np.mean(losses[-2 * w : -w]) - np.mean(losses[-w:])) < settings.convergence_threshold

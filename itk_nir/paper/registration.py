"""Registration on sampled points, as published [1]_: the engine that preset ``paper`` runs.

A coordinate network gives a stationary velocity that is integrated at the points of a sample; the loss is local
correlation plus a penalty on folded cells, both on the sampled blocks. The phases run in order: the first field learns
the large motion on the downsized lattice and is then frozen, the second learns on mini-patches what is left, and the
map is the first field's deformation followed by the second's.

    phi = A ∘ phi_K ∘ … ∘ phi_1,    phi_k(q) = flow of field k,    A the linear map

Everything is in field coordinates of the fixed image (see `itk_nir.geometry`); A and the moving image's grid are folded
into one affine map from field coordinates to moving voxel indices.

References
----------
.. [1] Sun, Han, Kong, Hua, Wu, Xie, "Medical Image Registration via Neural Fields", MedIA 97 (2024) 103249.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from itk_nir.engine.coordinate_networks import build_field
from itk_nir.engine.ops import Adam
from itk_nir.engine.progress import Callback, Iteration, Optimised, Progress
from itk_nir.paper.batches import Batch, Images, points_of
from itk_nir.paper.field import PaperField, describe, extent_of, restore
from itk_nir.paper.objective import Measured, Objective
from itk_nir.paper.settings import PaperPhase, PaperSettings, preset

if TYPE_CHECKING:
    from itk_nir.engine.images import Pair

__all__ = ["Settings", "describe", "optimise", "preset", "restore"]

#: What this engine is told.
Settings = PaperSettings

#: How often a phase is measured on one fixed batch, by which "the best so far" is judged.
CHECKS = 20


def optimise(
    pair: Pair,
    settings: PaperSettings,
    *,
    seed: int = 0,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
) -> Optimised:
    """Train the fields that carry the fixed image onto the moving one: ``phi(p) = A(p + u(p))``, LPS mm.

    Parameters
    ----------
    pair : Pair
        Images, geometries, masks (what is zero in them does not count) and the linear map A, see
        `itk_nir.engine.images.Pair`. The device of the images is where everything is computed.
    settings : PaperSettings
        Phases, flow, loss.
    seed : int
        Every random number comes from it.
    threads : int
        CPU threads of native operations. Torch's own loops run on as many as they are set to.
    callback : callable, optional
        Called after every iteration, see `itk_nir.engine.progress`; a true return value ends the registration.
    clock : float, optional
        `time.perf_counter` when the registration began; now, where left out.

    Returns
    -------
    Optimised
        The field is a `PaperField`: of every phase it has the parameters with the lowest loss on one fixed batch,
        measured `CHECKS` times. The two similarities are the metric on that batch of the last phase: without any
        displacement, and with that of the field.

    Raises
    ------
    NothingToCompare
        An empty mask.
    ValueError
        Images, geometries and linear map that do not fit together.
    FloatingPointError
        The loss is no longer finite; says the phase and the iteration.
    """
    images = Images.of(pair, settings)
    g = pair.fixed_geometry
    generator = Generator().manual_seed(seed)
    work = [points_of(phase, g.size) for phase in settings.phases]
    journal = _Journal(settings.phases, work, callback, time.perf_counter() if clock is None else clock)
    trained: list[nn.Module] = []
    start: float | None = None
    end: float | None = None
    for phase in settings.phases:
        module = build_field(phase.field, g.dimension, generator, images.fixed.device, images.fixed.dtype, extent_of(g))
        objective = Objective(images, settings, phase, tuple(trained))
        start, end = _train(module, objective, len(trained), generator, journal, threads)
        trained.append(module.requires_grad_(False))
        if journal.cancelled:
            break
    stop = "cancelled" if journal.cancelled else "all iterations done"
    return Optimised(PaperField(g, tuple(trained), settings, threads), tuple(journal.trace), stop, start, end)


def _train(
    module: nn.Module, objective: Objective, level: int, generator: Generator, journal: _Journal, threads: int
) -> tuple[float, float]:
    """Train the field of one phase; the metric on its fixed batch, without displacement and with the field kept."""
    phase, settings, images = objective.phase, objective.settings, objective.images
    adam = Adam(list(module.parameters()), threads=threads)
    best = _Best(list(module.parameters()))
    check = Batch.draw(images, phase, settings, generator)
    every = math.ceil(phase.iterations / CHECKS)
    for iteration in range(phase.iterations):
        if iteration % every == 0:
            best.see(objective(module, check))
        now = objective(module, Batch.draw(images, phase, settings, generator), learn=True)
        if not math.isfinite(now.loss):
            raise FloatingPointError(
                f"the loss is {now.loss} in phase {level} at iteration {iteration}: lower the learning rate "
                f"({phase.learning_rate}) or raise the regularisation"
            )
        rate = phase.rate(iteration)
        adam.step(rate)
        journal.enter(Iteration(level, iteration, now.metric, now.loss, rate))
        if journal.cancelled:
            break
    best.see(objective(module, check))
    return objective.undeformed(check), best.restore()


@dataclass
class _Journal:
    """What was measured so far, and who is told."""

    phases: tuple[PaperPhase, ...]
    work: list[int]  # of each phase, any unit
    callback: Callback | None
    clock: float
    trace: list[Iteration] = field(default_factory=list)
    cancelled: bool = False

    def enter(self, now: Iteration) -> None:
        """Note an iteration, and ask the callback whether to go on."""
        self.trace.append(now)
        if self.callback is None:
            return
        iterations = self.phases[now.level].iterations
        done = sum(self.work[: now.level]) + self.work[now.level] * (now.iteration + 1) / iterations
        progress = Progress(
            stage="deformable",
            level=now.level,
            levels=len(self.phases),
            iteration=now.iteration,
            iterations=iterations,
            metric=now.metric,
            loss=now.loss,
            learning_rate=now.learning_rate,
            seconds=time.perf_counter() - self.clock,
            fraction=done / sum(self.work),
        )
        self.cancelled = bool(self.callback(progress))


class _Best:
    """The parameters with the lowest loss on one fixed batch; the losses of the iterations all see different points."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.measured: Measured | None = None
        self.kept: list[Tensor] = []

    def see(self, measured: Measured) -> None:
        """What was measured with the parameters as they are now."""
        if self.measured is None or measured.loss < self.measured.loss:
            self.measured = measured
            self.kept = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self) -> float:
        """Go back to them, and tell their metric."""
        assert self.measured is not None
        for p, kept in zip(self.parameters, self.kept, strict=True):
            p.copy_(kept)
        return self.measured.metric

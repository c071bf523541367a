"""What an iteration of the control points does: the loss with its gradient, then the step along it.

By autograd and the ops that there are for the device; or, on a card, by launches that are prepared once for the level
(`itk_nir.engine.ops.cuda.iterations`), with autograd for what they leave of the metric.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.level import CORNERS, FieldInTraining, Level
from itk_nir.engine.regularisers import DiffusionEnergy
from itk_nir.engine.restriction import held_axes
from itk_nir.engine.windows import LevelLNCC


class Iterations(Protocol):
    """The iterations of a level."""

    def measure(self, iteration: int, done: int) -> Tensor:
        """Similarity and loss with the gradients.

        Parameters
        ----------
        iteration : int
            Counted from 0.
        done : int
            Iterations of the control points before this one.

        Returns
        -------
        Tensor
            ``(2,)``, on the device, which nobody waits for.
        """

    def step(self, rate: float) -> None:
        """The step along the gradients of what was measured last.

        Parameters
        ----------
        rate : float
            The step size, mm.
        """


def iterations_of(level: Level, model: FieldInTraining, optimiser: ops.Adam) -> Iterations:
    """The iterations of a level in the way that suits it and its device.

    Parameters
    ----------
    level : Level
        The level.
    model : FieldInTraining
        The field, whose control points the optimiser has.
    optimiser : Adam
        Of them alone.

    Returns
    -------
    Iterations
    """
    terms = _terms(level, model)
    whole = None
    if terms is not None:
        whole = ops.whole_iterations(optimiser, level.settings.iterations[level.number], terms)
    return _ByAutograd(level, model, optimiser) if whole is None else _Whole(whole, optimiser)


def _terms(level: Level, model: FieldInTraining) -> ops.IterationTerms | None:
    """What the loss is made of; None where there is more to it than a function of the displacement."""
    settings, number, energy = level.settings, level.number, level.energy
    more = level.backward is not None or settings.velocity_smoothness[number]
    not_free = model.some_held or model.velocity.network is not None or held_axes(model.lattices.restrict)
    if more or not_free or not isinstance(energy, DiffusionEnergy):
        return None

    def measure(u: Tensor) -> tuple[Tensor, Tensor | None]:
        similarity = level.agreement(u, level.similarity(u))
        return similarity, None if level.regions is None else level.regions(u)

    return ops.IterationTerms(
        outer=None if model.outer is None else model.outer[0],
        integration_steps=settings.integration_steps if settings.transform_model == "velocity" else 0,
        scale=1 / model.spacing,
        penalties=(
            level.factor * settings.smoothness[number] * energy.cell,
            energy.scale,
            settings.jacobian_weight * level.cell,
            settings.jacobian_margin,
        ),
        measure=measure,
        windows=_windows(level),
    )


def _windows(level: Level) -> ops.Windows | None:
    """The local correlation of one channel, where the similarity is nothing else."""
    metric = level.metric
    # That very class: a metric from outside may make more of its sums.
    if level.known is not None or level.regions is not None or type(metric) is not LevelLNCC:
        return None
    return ops.Windows(metric.moving, metric.lncc, level.spline, level.grid_to_moving, level.displacement_to_moving)


class _ByAutograd:
    """Any loss."""

    def __init__(self, level: Level, model: FieldInTraining, optimiser: ops.Adam) -> None:
        self.level, self.model, self.optimiser = level, model, optimiser

    def measure(self, iteration: int, done: int) -> Tensor:
        """See `Iterations`."""
        similarity, loss = self.level.loss(self.model, done)
        loss.backward()
        # With its locals the graph goes, and all that it holds, before the next one is made.
        return torch.stack([similarity.detach(), loss.detach()])

    def step(self, rate: float) -> None:
        """See `Iterations`."""
        self.optimiser.step(rate)


class _Whole:
    """By what a card has prepared."""

    def __init__(self, whole: Any, optimiser: ops.Adam) -> None:
        self.whole, self.optimiser = whole, optimiser
        self.rows = whole.numbers.unbind()

    def measure(self, iteration: int, done: int) -> Tensor:
        """See `Iterations`."""
        self.whole.evaluate(iteration, CORNERS[done % 8])
        row: Tensor = self.rows[iteration]
        return row

    def step(self, rate: float) -> None:
        """See `Iterations`."""
        self.whole.step(*self.optimiser.next_rates(rate))

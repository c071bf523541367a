"""What an iteration of the control points does: the loss with its gradient, then the step along it.

By autograd and the ops that there are for the device; or, where a card has kernels for all of the loss, by these alone:
what an iteration launches is then prepared once for the level (`itk_nir.engine.ops.cuda.iterations`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.level import CORNERS, FieldInTraining, Level
from itk_nir.engine.regularisers import DiffusionEnergy
from itk_nir.engine.restriction import held_axes


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
    """What the loss is made of; None where there is more in it than kernels do whole."""
    settings, number, metric = level.settings, level.number, level.metric
    lncc = getattr(metric, "lncc", None)
    more = level.backward, level.regions, level.known, model.velocity.network
    energy = level.energy
    if any(part is not None for part in more) or settings.velocity_smoothness[number] or model.some_held:
        return None
    if held_axes(model.lattices.restrict) or not isinstance(energy, DiffusionEnergy) or not isinstance(lncc, ops.Lncc):
        return None
    steps = settings.integration_steps if settings.transform_model == "velocity" else 0
    return ops.IterationTerms(
        outer=None if model.outer is None else model.outer[0],
        integration_steps=steps,
        scale=1 / model.spacing,
        moving=metric.moving,  # type: ignore[attr-defined]
        lncc=lncc,
        spline=level.spline,
        grid_to_moving=level.grid_to_moving,
        displacement_to_moving=level.displacement_to_moving,
        diffusion_weight=level.factor * settings.smoothness[number] * energy.cell,
        diffusion_scale=energy.scale,
        jacobian_weight=settings.jacobian_weight * level.cell,
        jacobian_margin=settings.jacobian_margin,
    )


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
    """A loss that the kernels of a card do whole."""

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

"""What the published design is told, as data (see `itk_nir.options`), and what preset ``paper`` tells it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.interpolation import MODES
from itk_nir.errors import OptionError
from itk_nir.options import check, documented, option
from itk_nir.paper.flow import FLOWS
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.paper.similarity import SIMILARITIES

#: Sampler of the first phase: the whole image, downsized.
DOWNSIZED = SamplerConfig("downsize")

#: The network as the paper's authors released it, with a sine frequency that matches its initialisation.
PUBLISHED_FIELD = FieldConfig(
    encoding="fourier", activation="sine", width=256, depth=4, scale=1.0, omega=30.0, bound=1.0
)


@documented
@dataclass(frozen=True)
class PaperPhase:
    """One phase: a new field, trained on one sampler."""

    field: FieldConfig = option(PUBLISHED_FIELD, "what the field is made of")
    sampler: SamplerConfig = option(DOWNSIZED, "where each iteration looks")
    iterations: int = option(300, "iterations of Adam", at_least=1)
    radius: int = option(
        4, "radius of the LNCC window, in samples (a sample of 'downsize' is `stride` voxels)", at_least=1
    )
    learning_rate: float = option(1e-3, "learning rate of the first iteration; it changes linearly", above=0)
    learning_rate_end: float = option(1e-4, "learning rate of the last iteration", above=0)

    def __post_init__(self) -> None:
        check(self)

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration.

        Parameters
        ----------
        iteration : int
            Counted from 0.

        Returns
        -------
        float
        """
        share = iteration / max(self.iterations - 1, 1)
        return self.learning_rate + share * (self.learning_rate_end - self.learning_rate)


@documented
@dataclass(frozen=True)
class PaperSettings:
    """What the published design is told."""

    kind: ClassVar[str] = "paper"

    phases: tuple[PaperPhase, ...] = option(
        (
            PaperPhase(PUBLISHED_FIELD, DOWNSIZED, radius=4),
            PaperPhase(PUBLISHED_FIELD, SamplerConfig("patches", patches=8, edge=32), radius=9),
        ),
        "phases in order; every earlier one is frozen while a later one is trained",
    )
    flow: str = option(
        "rk4",
        "what a field is: the displacement itself, or a stationary velocity with the solver that integrates it",
        choices=FLOWS,
    )
    ode_steps: int = option(4, "steps of the solver", at_least=1)
    integration_time: float = option(
        0.2,
        "time up to which a velocity is integrated. With a field bounded by b no point travels further than b times "
        "this in a phase, in field units",
    )
    metric: str = option(
        "lncc", "similarity metric; 'lncc' needs a sampler of blocks", choices=SIMILARITIES, public=True
    )
    jacobian_weight: float = option(10.0, "weight of the penalty on folds, mean(max(margin - det, 0))", at_least=0)
    jacobian_margin: float = option(0.0, "determinant below which that penalty sets in")
    diffusion_weight: float = option(
        0.0, "weight of the squared gradient of the displacement of all phases together", at_least=0
    )
    bending_weight: float = option(
        0.0, "weight of the squared curvature of the displacement of all phases together", at_least=0
    )
    bending_length: float = option(10.0, "length that makes the curvature dimensionless, mm", above=0)
    fixed_interpolation: str = option(
        "linear", "of the fixed image; matters only where points lie between voxels", choices=MODES
    )
    moving_interpolation: str = option("linear", "of the moving image", choices=("linear", "bspline"))
    probes: int = option(
        2048,
        "cells, one voxel wide, on which the penalties are measured where the sampler gives no regular blocks",
        at_least=1,
    )
    chunk: int = option(
        1 << 14,
        "points that are integrated at once with a gradient; more is faster on a GPU and takes more memory",
        at_least=1,
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.phases:
            raise OptionError("phases must hold at least one phase")
        for phase in self.phases:
            if self.metric == "lncc" and not phase.sampler.blocks:
                raise OptionError(
                    "metric 'lncc' needs neighbours: use sampler 'downsize' or 'patches', or metric 'ncc'"
                )
            if self.bending_weight and not phase.sampler.regular:
                raise OptionError(f"bending_weight needs regular blocks, which {phase.sampler.name} points are not")

    @property
    def penalised(self) -> bool:
        """Whether any penalty has a weight."""
        return bool(self.jacobian_weight or self.diffusion_weight or self.bending_weight)


def preset() -> PaperSettings:
    """What preset ``paper`` is: the published design at a size that a CPU can train.

    Returns
    -------
    PaperSettings
    """
    network = FieldConfig(
        encoding="fourier", activation="sine", frequencies=64, width=64, depth=2, omega=10.0, scale=1.5, bound=1.0
    )
    return PaperSettings(
        phases=(
            PaperPhase(
                network, SamplerConfig("downsize", stride=3), iterations=150, radius=2, learning_rate=3e-3,
                learning_rate_end=3e-4,
            ),
            PaperPhase(
                replace(network, scale=2.5), SamplerConfig("patches", patches=2, edge=24), iterations=100, radius=3,
                learning_rate=2e-3, learning_rate_end=2e-4,
            ),
        ),
        flow="rk4",
        ode_steps=1,
        chunk=1 << 16,
    )  # fmt: skip

"""What a running registration tells its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of a running registration.

    Attributes
    ----------
    stage : ``"linear"``, ``"deformable"`` or ``"bake"``.
    level, levels : current resolution level, counted from 0, and how many the stage has.
    step, steps : current step in the level, counted from 0, and how many it has at most.
    metric : similarity now (1 is perfect for LNCC and NCC).
    loss : what is minimised: 1 - similarity plus the weighted penalties.
    learning_rate : of this step, as the optimiser was or will be given it: in voxels of the level for the linear stage,
        in voxels of the fixed image (along its finest axis) for a deformation on a grid of control points, in the unit
        of the network's weights with preset ``"paper"``; 0 where nothing is optimised.
    seconds : since the registration began.
    fraction : share of the whole work that is done, 0 to 1 (an estimate made from voxels and steps).
    """

    stage: str
    level: int
    levels: int
    step: int
    steps: int
    metric: float
    loss: float
    learning_rate: float
    seconds: float
    fraction: float


#: Called after every step; a true return value cancels, and the best deformation so far is kept.
Callback = Callable[[Progress], "bool | None"]

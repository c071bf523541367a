"""What a running registration tells its caller, and what is left of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import warn_renamed

#: The overlap below which images lie apart: a map that leaves no more is no start, and no metric under it is evidence.
NO_OVERLAP = 0.05

#: Share of the positions of one map that another has to have as well for the two to be compared over these.
LEAST_SHARED = 0.5


@dataclass(frozen=True)
class Progress:
    """One iteration of a running registration.

    Parameters
    ----------
    stage : str
        ``"linear"``, ``"deformable"`` or ``"sampling"``.
    level, levels : int
        Current resolution level, counted from 0, and how many the stage has.
    iteration, iterations : int
        Current iteration in the level, counted from 0, and how many it has at most.
    metric : float
        Similarity now (1 is perfect for LNCC and NCC).
    loss : float
        What is minimised: 1 - similarity plus the weighted penalties.
    learning_rate : float
        Of the optimiser's step that follows, in voxels of the fixed image along its finest axis; for preset ``"paper"``
        it is the rate of the network's weights. 1 for the linear stage, whose steps have none; 0 for sampling.
    seconds : float
        Since the registration began.
    fraction : float
        Share of the whole work that is done, 0 to 1 (an estimate made from voxels and iterations).
    mapping : callable or None
        The map as this iteration has it: fixed points ``(..., d)``, LPS mm, to what it makes of them, before an initial
        transform that is not linear. To be called while the callback runs; for a deformation that takes about as long
        as an iteration, where the points are those of a grid, ``([z,] y, x, d)``. None for sampling and for preset
        ``"paper"``.

    Examples
    --------
    A callback that stops when the similarity is good enough:

    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> def stop(progress: itk_nir.Progress) -> bool:
    ...     return progress.stage == "deformable" and progress.metric > 0.5
    >>> itk_nir.register(fixed, moving, preset="fast", callback=stop).report.stop
    'cancelled'
    """

    stage: str
    level: int
    levels: int
    iteration: int
    iterations: int
    metric: float
    loss: float
    learning_rate: float
    seconds: float
    fraction: float
    mapping: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def step(self) -> int:
        """Deprecated name of `iteration`."""
        warn_renamed("Progress.step", ".iteration")
        return self.iteration

    @property
    def steps(self) -> int:
        """Deprecated name of `iterations`."""
        warn_renamed("Progress.steps", ".iterations")
        return self.iterations


#: Called after every iteration; a true return value cancels, and the best deformation so far is kept.
Callback = Callable[[Progress], "bool | None"]


@dataclass(frozen=True)
class Iteration:
    """What one iteration of the deformable stage measured, before its step.

    Parameters
    ----------
    level, iteration : int
        Counted from 0.
    metric, loss, learning_rate : float
        As in `Progress`.
    """

    level: int
    iteration: int
    metric: float
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Measures:
    """How alike the images are under one map, at the positions that are compared.

    Parameters
    ----------
    metric : float
        The chosen metric.
    mutual_information : float
        Normalised mutual information, 0 for independent images.
    overlap : float
        Share of the positions of the fixed image that count that the moving image covers.
    landmark_voxels : float or None
        Mean distance of the landmarks that are believed, in voxels of the fixed image along its finest axis; None
        without any.
    label_overlap : float or None
        Mean soft Dice of the labels, each counting the same; None without any.
    images : bool
        Whether the images were to be made alike at all (metric ``"none"``: they were not).
    object_overlap : float or None
        The overlap of what the fixed image shows against its background alone; None where that is not known.
    """

    metric: float
    mutual_information: float
    overlap: float
    landmark_voxels: float | None = None
    label_overlap: float | None = None
    images: bool = True
    object_overlap: float | None = None


@dataclass(frozen=True, eq=False)
class Optimised:
    """What the deformable stage of any engine returns.

    Parameters
    ----------
    field : object
        The trained field, see `itk_nir.engine.sampling.Field`.
    trace : tuple of Iteration
        Every iteration that led to the field.
    stop : str
        Why the last level ended: ``"all iterations done"``, ``"converged"``, ``"cancelled"`` or, where the first was to
        make the images alike, ``"too little alike"``.
    similarity_start, similarity : float or None
        The metric before the first and after the last iteration, both at the last level that was optimised and over the
        same positions; None where the engine does not measure them.
    returned_levels : tuple of int
        Levels that ended with a lower similarity than they began with, and gave their start back.
    search : str
        What became of the search for large motion, and of what else was tried; empty where there is none.
    notes : tuple of str
        What was found odd, one sentence each.
    doubts : tuple of str
        Why not to rely on the field.
    """

    field: Any
    trace: tuple[Iteration, ...]
    stop: str
    similarity_start: float | None = None
    similarity: float | None = None
    returned_levels: tuple[int, ...] = ()
    search: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

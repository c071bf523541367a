"""The descent over the parameters of a linear map."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.linear_level import LinearLevel, is_better_where_both
from itk_nir.engine.linear_map import Comparing, LinearMap, Measuring, corners_from_centre
from itk_nir.engine.metrics import Metric
from itk_nir.engine.progress import LEAST_SHARED, Callback, Progress
from itk_nir.engine.quasi_newton import minimise
from itk_nir.engine.settings import LinearSettings

F64 = NDArray[np.float64]
Kept = TypeVar("Kept")

#: Evaluations after which it is looked anew at which positions both images have.
ROUND = 10


class BestOfRounds(Generic[Kept]):
    """The best map of the rounds of a descent: each round begins where the one before ended, and may have lost.

    Parameters
    ----------
    level : Comparing
        What compares the images.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.
    first : object
        What stands for the map of the first round, such as its parameters.
    """

    def __init__(self, level: Comparing, metrics: Sequence[tuple[float, Metric]], first: Kept) -> None:
        self.level: Comparing = level
        self.metrics: Sequence[tuple[float, Metric]] = metrics
        self.kept: Kept = first
        self.cost: float = np.inf
        self._matrix: F64 | None = None
        self._most_shared: float = 0.0

    def gain(self, near: Measuring, matrix: F64, which: Kept) -> float:
        """How much less the map of a round costs than the best before; kept where it costs no more.

        Parameters
        ----------
        near : Measuring
            The level under the map.
        matrix : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
        which : object
            What stands for the map.

        Returns
        -------
        float
            Infinite for the first map, and where a map that costs more is better at the positions that both have.
        """
        self._most_shared = max(self._most_shared, near.share)
        cost = 1 - near.agreed()
        gained = self.cost - cost
        level, before, enough = self.level, self._matrix, near.share > LEAST_SHARED * self._most_shared
        if gained < 0 and before is not None and enough and isinstance(level, LinearLevel):
            # What is lost may be the corners that a turn takes out of the other image.
            gained = np.inf if is_better_where_both(level, before, matrix, self.metrics) else gained
        if gained >= 0:
            self.cost, self.kept, self._matrix = cost, which, matrix
        return gained


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

        rounds = BestOfRounds(here, self.metrics, base)
        done, ended, cancelled = 0, False, False
        while True:
            near = here.under(base, self.metrics)
            self.following = self.pair.linear @ base
            gained = rounds.gain(near, base, base)
            if ended or cancelled or done >= evaluations or near.share == 0 or gained <= 1e-6:
                return rounds.kept, rounds.cost, cancelled

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

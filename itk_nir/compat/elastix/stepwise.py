"""Linear maps found one after the other by elastix' own parameters, of which some are held still or searched.

The similarity and its gradient are those of the linear stage (`itk_nir.engine.linear_level`); the parameters are
elastix', about its centre of rotation, and begin where elastix begins: nothing is tried beside that.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.compat.elastix.constraints import MOST_SCALES, Constraint, Range
from itk_nir.compat.elastix.linear_parameters import (
    identity_parameters,
    matrix_of,
    parameter_count,
    translation_of,
)
from itk_nir.compat.elastix.stages import RESULT_CLASSES, Stage
from itk_nir.engine.linear_descent import ROUND, BestOfRounds
from itk_nir.engine.linear_level import LinearLevel, value
from itk_nir.engine.linear_map import corners_from_centre
from itk_nir.engine.linear_metrics import without_descriptors
from itk_nir.engine.metrics import Metric, channel_metrics
from itk_nir.engine.progress import Progress
from itk_nir.engine.quasi_newton import minimise
from itk_nir.engine.torch_state import engine_state
from itk_nir.errors import OptionError
from itk_nir.images import Volume
from itk_nir.transforms.model import LinearTransform

if TYPE_CHECKING:
    from itk_nir.engine.frame import Frame
    from itk_nir.engine.images import Pair
    from itk_nir.engine.progress import Callback
    from itk_nir.problem import Problem

F64 = NDArray[np.float64]

#: Voxels that the longest axis of the fixed image has at the finest level, about, in 2D and in 3D.
_FINEST = {2: 256, 3: 96}


class _Map:
    """A linear transform of elastix by the parameters that may move, in units of the frame at the rim of the image."""

    def __init__(
        self, kind: str, values: Sequence[float], free: Sequence[int], centre: F64, before: F64, frame: Frame
    ) -> None:
        self.kind, self.centre, self.before, self.frame, self.grid = kind, centre, before, frame, frame.geometry
        grid = self.grid
        self.values = torch.tensor(list(values), dtype=torch.float64)
        self.free = torch.tensor(list(free), dtype=torch.int64)
        unit = torch.full((len(values),), 1 / grid.half_extent, dtype=torch.float64)
        unit[translation_of(kind, grid.dimension)] = frame.unit
        self.unit = unit[self.free]
        self.begin = self.linear(self.values).detach().numpy() @ before

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """All parameters where the free ones have moved by `x`."""
        return self.values.index_add(0, self.free, self.unit * x.double())

    def linear(self, values: torch.Tensor) -> torch.Tensor:
        """``(d + 1, d + 1)`` LPS, of all parameters."""
        d = self.grid.dimension
        matrix, centre = matrix_of(self.kind, d, values), torch.tensor(self.centre)
        shift = centre - matrix @ centre + values[translation_of(self.kind, d)]
        last = torch.eye(d + 1, dtype=torch.float64)[d:]
        return torch.cat([torch.cat([matrix, shift[:, None]], 1), last])

    def parts(self, x: torch.Tensor, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What the step makes of the map before it, as `LinearMap.parts` has it."""
        d, grid, frame = self.grid.dimension, self.grid, self.frame
        step = torch.tensor(np.linalg.inv(self.begin)) @ self.linear(self.at(x)) @ torch.tensor(self.before)
        axes, centre = torch.tensor(np.array(grid.rotation)), torch.tensor(frame.physical(grid.centre))
        inner = axes.T @ step[:d, :d] @ axes
        shift = axes.T @ (step[:d, :d] @ centre + step[:d, d] - centre) / frame.unit
        pad = 3 - d
        matrix = torch.block_diag(inner, torch.eye(pad, dtype=torch.float64)) if pad else inner
        shift = torch.cat([shift, shift.new_zeros(pad)])
        return matrix.float().to(device), shift.float().to(device)


@dataclass(frozen=True, eq=False)
class Found:
    """The linear maps of some stages.

    Parameters
    ----------
    stages : tuple of Stage
        One for each.
    linear : LinearTransform
        All of them, after the initial transform.
    cancelled : bool
        Whether the callback asked to stop.
    """

    stages: tuple[Stage, ...]
    linear: LinearTransform
    cancelled: bool


def find_stepwise(
    problem: Problem, constraints: Sequence[Constraint], start: LinearTransform | None, callback: Callback | None
) -> Found:
    """Find linear maps one after the other.

    Parameters
    ----------
    problem : Problem
        The images.
    constraints : sequence of Constraint
        One for each map, in order.
    start : LinearTransform or None
        The initial transform.
    callback : callable or None
        Called with a `Progress` after every evaluation; a true value ends it with the best so far.

    Returns
    -------
    Found
    """
    d = problem.fixed.dimension
    with engine_state(problem.device):
        # As elastix has it, all of both images counts, frames around them too.
        whole = replace(problem, fixed_part=None, moving_part=None)
        pair = replace(whole.pair(), linear=np.eye(d + 1))
        search = _Search(pair, problem, callback, len(constraints))
        done = LinearTransform.identity(d) if start is None else start
        out: list[Stage] = []
        for number, one in enumerate(constraints):
            centre, shift = _begin(one, problem, number == 0 and start is None)
            centre = done.map(centre)
            values = identity_parameters(one.kind, d)
            values[translation_of(one.kind, d)] = shift.tolist()
            values = search.run(number, one, values, centre, done.matrix)
            matrix = matrix_of(one.kind, d, torch.tensor(values, dtype=torch.float64)).numpy()
            own = LinearTransform.make(matrix, np.array(values[translation_of(one.kind, d)]), centre)
            out.append(Stage(RESULT_CLASSES.get(one.kind, one.kind), own, centre=centre))
            done = LinearTransform(own.matrix @ done.matrix)
    return Found(tuple(out), done, search.cancelled)


def _begin(one: Constraint, problem: Problem, alone: bool) -> tuple[F64, F64]:
    """Centre of rotation in the fixed image, and the translation to begin with; a map before it leaves none."""
    fixed, moving = problem.fixed.geometry, problem.moving.geometry
    centre, shift = np.array(fixed.centre), np.zeros(fixed.dimension)
    if alone and one.initialisation == "CenterOfGravity":
        centre = _gravity(problem.fixed, problem.fixed_mask)
        shift = _gravity(problem.moving, problem.moving_mask) - centre
    elif alone and one.initialisation is not None:
        ends = [np.array(g.origin if one.initialisation == "Origins" else g.centre) for g in (fixed, moving)]
        shift = ends[1] - ends[0]
    if one.centre_index is not None:  # which goes before a point, in elastix too
        centre = fixed.index_to_physical(np.array(one.centre_index))
    elif one.centre is not None:
        centre = np.array(one.centre)
    return centre, shift


def _gravity(image: Volume, mask: Volume | None) -> F64:
    weight = image.array.astype(np.float64) * image.scale + image.offset
    if mask is not None:
        weight = weight * (mask.array > 0)
    total = weight.sum()
    if total == 0:
        raise OptionError(
            f"elastix parameter AutomaticTransformInitializationMethod: {image.name} has no centre of gravity, its "
            "intensities sum up to 0; take GeometricalCenter"
        )
    centre: F64 = np.tensordot(weight, image.geometry.grid(), weight.ndim) / total
    return centre


class _Search:
    """The evaluations of all maps."""

    def __init__(self, pair: Pair, problem: Problem, callback: Callback | None, maps: int) -> None:
        self.pair, self.frame, self.callback, self.maps = pair, problem.frame, callback, maps
        self.grid = self.frame.geometry
        self.settings, self.threads, self.clock = problem.settings.linear, problem.threads, problem.clock
        self.normalised = pair.normalised()
        self.metrics: Sequence[tuple[float, Metric]] = _metrics(problem)
        self.cancelled = False

    def run(self, number: int, one: Constraint, values: list[float], centre: F64, before: F64) -> list[float]:
        """The parameters of one map."""
        if one.spaces:
            for level, space in enumerate(one.spaces):
                size = max(1, self._finest() >> (len(one.spaces) - 1 - level))
                values = self._try_all(number, level, one, space, size, values, centre, before)
            return values
        sizes = sorted({*self.settings.linear_size, max(self._finest(), *self.settings.linear_size)})
        counts = [*self.settings.linear_iterations, self.settings.linear_fine_iterations]
        for level, (size, count) in enumerate(itertools.zip_longest(sizes, counts[: len(sizes)], fillvalue=counts[-1])):
            values = self._descend(number, (level, len(sizes)), one, self._level(size), count, values, centre, before)
        return values

    def _finest(self) -> int:
        return min(_FINEST[self.grid.dimension], max(self.grid.size))

    def _level(self, size: int) -> LinearLevel:
        radius = min(self.settings.linear_radius, max(self.grid.size))
        return LinearLevel.of_size(self.pair, self.normalised, size, radius, self.threads)

    def _try_all(
        self, number: int, level: int, one: Constraint, space: Sequence[Range], size: int, values: list[float],
        centre: F64, before: F64,
    ) -> list[float]:  # fmt: skip
        """The best node of a grid of parameters; the first of several that are as good."""
        here = self._level(size)
        nodes = list(itertools.product(*(r.values for r in space)))
        best, kept = -np.inf, values
        for done, node in enumerate(nodes):
            there = list(values)
            for axis, at in zip(space, node, strict=True):
                there[axis.parameter] = at
            linear = _Map(one.kind, there, (), centre, before, self.frame).begin
            now = value(here, self.frame.matrix(linear), self.metrics)
            if now > best:
                best, kept = now, there
            if self._told(number, (level, len(one.spaces)), (done, len(nodes)), now, linear):
                break
        return kept

    def _descend(
        self, number: int, level: tuple[int, int], one: Constraint, here: LinearLevel, most: int, values: list[float],
        centre: F64, before: F64,
    ) -> list[float]:  # fmt: skip
        """Quasi-Newton steps over the free parameters, none of which makes the images less alike."""
        free = _free(one, len(values))
        rounds = BestOfRounds(here, self.metrics, values)
        done, ended = 0, False
        corners = torch.from_numpy(corners_from_centre(self.grid)).float()
        while True:
            model = _Map(one.kind, values, free, centre, before, self.frame)
            near = here.under(self.frame.matrix(model.begin), self.metrics)
            gained = rounds.gain(near, self.frame.matrix(model.begin), values)
            if ended or self.cancelled or done >= most or near.share == 0 or gained <= 1e-6 or not free:
                return rounds.kept

            def reach(a: torch.Tensor, b: torch.Tensor, model: _Map = model) -> float:
                (m, s), (n, t) = model.parts(a), model.parts(b)
                return float((n @ corners + t[:, None] - m @ corners - s[:, None]).norm(dim=0).max())

            def function(x: torch.Tensor, model: Any = model, near: Any = near) -> tuple[float, torch.Tensor]:
                at = x.detach().requires_grad_()
                loss = 1 - near.agreement(model, at)
                loss.backward()
                assert at.grad is not None
                return float(loss.detach()), at.grad.double()

            def goes_on(loss: float, done: int = done, linear: F64 = model.begin) -> bool:
                return not self._told(number, level, (done, most), 1 - loss, linear)

            found = minimise(
                function, torch.zeros(len(free), dtype=torch.float64), reach, radius=2 * here.voxel,
                most_radius=8 * here.voxel, evaluations=min(ROUND, most - done),
                tolerance=self.settings.linear_tolerance, goes_on=goes_on,
            )  # fmt: skip
            done += found.evaluations
            values = model.at(found.x).detach().tolist()
            ended = found.stop == "converged" and found.evaluations <= 2

    def _told(self, number: int, level: tuple[int, int], iteration: tuple[int, int], now: float, linear: F64) -> bool:
        """Tell the callback; whether it asks to stop."""
        if self.callback is None:
            return False
        share = (level[0] + iteration[0] / max(1, iteration[1])) / level[1]
        told = Progress(
            "linear", *level, *iteration, now, 1 - now, 1.0, time.perf_counter() - self.clock,
            min(1.0, (number + share) / self.maps), LinearTransform(linear).map,
        )  # fmt: skip
        self.cancelled = bool(self.callback(told)) or self.cancelled
        return self.cancelled


def _free(one: Constraint, count: int) -> list[int]:
    """The parameters that may move."""
    if not one.scales:
        return list(range(count))
    d = 2 if count in {parameter_count(one.kind, 2)} else 3
    sizes = np.abs(one.scales)
    if len(sizes) == 1:
        shift = translation_of(one.kind, d)
        return list(range(shift.start, shift.stop))
    return [n for n in range(count) if sizes[n] <= MOST_SCALES * sizes.min()]


def _metrics(problem: Problem) -> Sequence[tuple[float, Metric]]:
    """Those of the linear stage; mutual information where the pair would have to decide."""
    settings = problem.settings
    metric: Any = settings.linear.linear_metric
    same = metric == "same"
    if same:
        metric = getattr(settings.deformable, "metric", "nmi")
    if metric == "auto":
        metric = "nmi"
    found = channel_metrics(metric, getattr(settings.deformable, "channel_weights", ()), 1 + len(problem.more))
    return without_descriptors(found) if same else found

"""The deformable stage: two fields, composed, optimised coarse to fine on whole images.

    phi(p) = A(p + u(p)),   id + u = (id + u_1) o (id + u_2),   u_k = exp(v_k) - id   (or u_k = v_k)

The coarse field ``v_1`` is a cubic B-spline lattice, with a coordinate network where it earns its place, trained at the
first level. Where control points alone had to move things far, they may have caught the wrong ones, and the level is
done once more with a network first and alone: with few degrees of freedom that all act on the whole image it finds what
the linear stage has left over, turns and shifts included, before control points can fit the wrong anatomy to them. Its
steps are those of a trust region (`itk_nir.engine.quasi_newton`): bounded by how far they move the image, and none is
taken that does not lower the loss, so that it starts at exactly zero motion and stays there where nothing is to be
gained. Then it rests, and the control points move what is left at that resolution; the field with the lower loss is
kept. Where little moves, nothing is drawn at random, and all seeds give one field. A level that ends less alike than it
began gives its start back, and one that sees nothing to compare (under a small mask) is left out. After the level the
coarse field is frozen, and the levels that follow train a fine field ``v_2`` from zero, on a lattice that is refined
from level to level. Each is a flow of its own: large deformations need not be one flow's. (``composed=False`` trains
one field through all levels.) The loss is in `itk_nir.engine.level`.

As an engine this module has what `itk_nir.settings.ENGINES` asks for: `Settings`, `optimise`, `describe`, `restore`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from itk_nir.engine import ops
from itk_nir.engine.folds import remove_folds
from itk_nir.engine.images import Pair, common_domain, shrink, spacings
from itk_nir.engine.lattice import Domain
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.level import FieldInTraining, Level
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.metrics import channel_metrics, look_at_images
from itk_nir.engine.progress import Callback, Iteration, Optimised, Progress
from itk_nir.engine.quasi_newton import minimise
from itk_nir.engine.regions import kept
from itk_nir.engine.search import CONSISTENT, find_matches
from itk_nir.engine.settings import DeformableSettings as Settings
from itk_nir.engine.stored_field import describe, restore
from itk_nir.errors import NothingToCompare

__all__ = ["Settings", "describe", "optimise", "restore"]

#: A step of the network that promises less than this of the loss ends its training.
NETWORK_TOLERANCE = 1e-5

#: Motion that control points alone find (95th percentile), in voxels of the first level, from which on it is searched
#: for what they may have missed, or which a part of the image has (99th percentile) that moves so many times as far as
#: the rest (90th); and the share of what is left that the search must save: a field through matches is free to follow
#: what does not belong together.
FAR, PART, SEARCH_GAIN = 1.5, 5.0, 0.02

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
        No position of the fixed image counts at any level.
    """
    clock = time.perf_counter() if clock is None else clock
    # In a function of its own: what the iterations held is free again before the folds are looked for.
    done, domain = _train(pair, settings, seed, threads, callback, clock)
    if settings.jacobian_weight:
        ops.release_memory()
        done = replace(done, field=remove_folds(done.field, domain))
    field, notes = kept(done.field, pair)  # the very same field without regions
    return replace(done, field=field, notes=notes)


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
        # A level that is done twice has more iterations than it was given; its share of the work stays.
        iterations = max(self.settings.iterations[now.level], now.iteration + 1)
        share = min(1.0, (now.iteration + 1) / self.settings.iterations[now.level])
        done = sum(self.work[: now.level]) + self.work[now.level] * share
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
    normalised = pair.normalised()
    unit = min(pair.fixed_geometry.spacing)
    margin = 2 * settings.shrink_factors[-1] * unit if pair.fixed_weight is None else 8 * unit
    domain = common_domain(pair, margin)
    if pair.known is not None:
        domain = pair.known.reached(domain, pair.fixed_geometry)
    settings = settings.for_pair(domain.size, len(pair.channels))
    coarsest = settings.coarsest_grid_spacing * unit
    knots = tuple(coarsest / s for s in spacings(pair.fixed_geometry))
    finest = max(settings.halvings(level) for level in range(settings.levels))
    lattices = Lattices.halved(domain.lattice(knots), coarsest, finest, domain.ends, settings.restrict)  # type: ignore[arg-type]
    model = FieldInTraining(pair.fixed_geometry, lattices, settings, seed, pair.fixed.device, threads)
    work = [
        n * math.prod(math.ceil(size / f) for size, f in zip(domain.size, shrink(pair.fixed_geometry, k), strict=True))
        for n, k in zip(settings.iterations, settings.shrink_factors, strict=True)
    ]
    report = _Report(settings, work, callback, clock)
    last = max(level for level in range(settings.levels) if settings.iterations[level])
    stop, returned, rest, searched = DONE, list[int](), False, ""
    measured: tuple[float | None, float | None] = None, None
    nothing: NothingToCompare | None = None
    for number in range(settings.levels):
        if number == 1 and settings.composed and report.trace and stop != CANCELLED:
            model.freeze()
        model.go_to(settings.halvings(number))
        if settings.iterations[number] == 0 or stop == CANCELLED:
            continue
        ops.release_memory()
        grids = LevelGrids.of(pair, domain, settings.shrink_factors[number])
        sigma, radius = settings.smoothing_sigmas[number], settings.radius[number]
        channels = LevelChannels.of(pair, grids, normalised, sigma, radius, threads)
        if number == settings.levels - 1:
            normalised.clear()
        if pair.known is not None and not report.trace:
            known = pair.known.start(pair, lattices, model.velocity.number, threads)
            if known is not None:
                model.begin_at(known)
        with ops.reused_memory():
            make = partial(Level.make, number, settings, pair, domain, channels, grids, model)
            del channels
            try:
                level = make()
            except NothingToCompare as error:  # a mask may be too small for a coarse level to see
                nothing = error
                continue
            search = _Search.of(pair, settings, make) if number == 0 else None
            del make
            descent = _Descent(level, model, report.goes_on, callback is not None, search)
            del level
            stop = descent.run()
            if search is not None:
                searched = search.outcome
            if descent.returned:
                returned.append(number)
            if number == last or stop == CANCELLED:
                measured, gain = _before_and_after(descent.level, model)
                if not gain >= 0:  # coarse levels may have led astray what the finest cannot mend
                    rest, measured = True, (measured[0], measured[0])
                    returned = [k for k in range(number + 1) if settings.iterations[k]]
            del descent
    if not report.trace and nothing is not None:
        raise nothing
    field = model.trained().at_rest() if rest else model.trained()
    return Optimised(field, tuple(report.trace), stop, *measured, tuple(returned), searched), domain


def _before_and_after(level: Level, model: FieldInTraining) -> tuple[tuple[float, float], float]:
    """The metric without a deformation and with the field, over the same positions; and what `agreement` gains."""
    with torch.no_grad():
        u = model.displaced(model.velocity())
        still = torch.zeros_like(u)
        before, after = level.similarity(still), level.similarity(u)
        gain = float(level.agreement(u, after)) - float(level.agreement(still, before))
        return (float(before), float(after)), gain


class _Search:
    """The search for large motion, where the first level calls for it.

    Parameters
    ----------
    pair : Pair
        The images.
    one_contrast : bool
        Whether the metric is for images of one contrast.
    level : callable
        Makes the level anew, beginning with the field as it then is.
    """

    def __init__(self, pair: Pair, one_contrast: bool, level: Callable[[], Level]) -> None:
        self.pair, self.one_contrast, self.level = pair, one_contrast, level
        #: What became of it, in words.
        self.outcome = "not needed"

    @classmethod
    def of(cls, pair: Pair, settings: Settings, level: Callable[[], Level]) -> _Search | None:
        """A search where one is allowed, and there are images to look at."""
        metrics = channel_metrics(settings.metric, settings.channel_weights, len(pair.channels))
        if settings.search == "never" or not look_at_images(metrics):
            return None
        return cls(pair, all(getattr(m, "one_contrast", False) for _, m in metrics), level)

    def begin(self, model: FieldInTraining) -> Level | None:
        """Let the field begin at what is found; the level from there, None where the matches say nothing."""
        found = find_matches(self.pair, self.one_contrast, model.threads, model.lattices.restrict)
        self.outcome = f"not kept, {100 * found.consistent:.0f} % of the matches lead back"
        if found.consistent < CONSISTENT:
            return None
        axes = model.lattices.axes[model.velocity.number]
        model.begin_at(found.on_grid([a.positions for a in axes]))
        return self.level()

    def keep(self) -> None:
        """Note that its field is kept."""
        self.outcome = self.outcome.removeprefix("not ")


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
    search : _Search, optional
        Of the first level: what is tried where things move far, or where there is little evidence to begin with.
    """

    def __init__(
        self, level: Level, model: FieldInTraining, goes_on: Callable[[Iteration], bool], keep_best: bool,
        search: _Search | None = None,
    ) -> None:  # fmt: skip
        settings = level.settings
        self.search = search
        self.level, self.model, self.goes_on, self.keep_best = level, model, goes_on, keep_best
        self.settings, self.iterations = settings, settings.iterations[level.number]
        self.unit = min(model.geometry.spacing)
        given = level.number == 0 and settings.network is not None
        self.warmup = round(settings.network_warmup * self.iterations) if given else 0
        #: Iterations that were done before the present ones: the level may be done twice.
        self.before = 0
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.losses: list[float] = []
        self.similarities: list[float] = []
        #: Whether the level was worth nothing and the field is what it was before.
        self.returned = False

    def run(self) -> str:
        """All iterations; returns what ended them."""
        first = self.warmup > 0 and self.settings.network_above == 0
        stop = self._train_both() if first else self._train_control_points(0)
        if stop == CANCELLED or self.level.number:
            return stop
        # Control points that lost gave their start back: no motion is left to tell by.
        motion = math.inf if self.returned else self._motion()
        if self.search is not None and not first:
            ended = self._try_search(self.search) if self._search_is_called_for(motion) else None
            if ended is not None:
                return ended
        if self.warmup and not first and motion > self.settings.network_above:
            return self._try_network(stop)
        return stop

    def _train_both(self) -> str:
        """The network, then the control points."""
        network = self.model.add_network()
        if self._train_network(network) == CANCELLED:
            return CANCELLED
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return DONE if self.warmup == self.iterations else self._train_control_points(self.warmup)

    def _try_search(self, search: _Search) -> str | None:
        """The level once more, from what a search finds; what ended it where that field is kept, else None."""
        velocity, level, returned = self.model.velocity, self.level, self.returned
        alone, begun = velocity.control_points.detach().clone(), search.begin(self.model)
        if begun is None:
            return None
        self.level = begun
        self.before, self.best, self.returned = self.before + self.iterations, None, False
        stop = self._train_control_points(0)
        found, left = velocity.control_points.detach().clone(), self._left()
        with torch.no_grad():
            velocity.control_points.copy_(alone)
        # Both at the positions and in the weights of the better evidence.
        if left < (1 - SEARCH_GAIN) * self._left():
            search.keep()
            with torch.no_grad():
                velocity.control_points.copy_(found)
            return stop
        self.level, self.returned = level, returned
        return CANCELLED if stop == CANCELLED else None

    def _try_network(self, stop: str) -> str:
        """The level once more, with a network; the field with the lower loss is kept."""
        velocity = self.model.velocity
        loss, alone, returned = self._loss(), velocity.control_points.detach().clone(), self.returned
        with torch.no_grad():
            velocity.control_points.zero_()
        self.before, self.best, self.returned = self.before + self.iterations, None, False
        again = self._train_both()
        if again != CANCELLED and self._loss() < loss:
            return again
        velocity.drop_network()
        with torch.no_grad():
            velocity.control_points.copy_(alone)
        self.returned = returned
        return CANCELLED if again == CANCELLED else stop

    def _loss(self) -> float:
        with torch.no_grad():
            return float(self.level.loss(self.model, 0)[1])

    def _left(self) -> float:
        """The loss, in which what is unlike counts twice: what slides along a wall has to pay for it."""
        with torch.no_grad():
            similarity, loss = self.level.loss(self.model, 0)
            return float(loss) + 1 - float(similarity)

    def _motion(self, share: float = 0.95) -> float:
        """A percentile of the displacements of the nodes, in voxels of the level."""
        model = self.model
        with torch.no_grad():
            length = (model.displaced(model.velocity()) * model.spacing).norm(dim=0).flatten()
        voxel = self.settings.shrink_factors[self.level.number] * self.unit
        return float(length.kthvalue(max(1, round(share * len(length)))).values) / voxel

    def _search_is_called_for(self, motion: float) -> bool:
        """Where things moved far, a part of them alone, where there was little evidence to begin with, or landmarks."""
        if self.settings.search == "always" or self.level.factor > 1 or motion > FAR:
            return True
        if self.level.known is not None and self.level.known.landmarks is not None:
            return True  # who gives them holds that the images alone do not tell enough
        part = self._motion(0.99)
        return part > FAR and part > PART * self._motion(0.9)

    def _train_network(self, network: nn.Module) -> str:
        """The network alone, its control points at rest; no loss is ever above that of the start."""
        velocity = self.model.velocity
        parameters = list(network.parameters())
        velocity.control_points.requires_grad_(False)
        similarity, evaluation = 0.0, 0

        def put(x: Tensor) -> None:
            vector_to_parameters(x.float(), parameters)

        def loss_and_gradient(x: Tensor) -> tuple[float, Tensor]:
            nonlocal similarity
            put(x)
            for p in parameters:
                p.grad = None
            value, loss = self.level.loss(self.model, 0)
            loss.backward()
            similarity = float(value.detach())
            return float(loss.detach()), torch.cat(
                [p.grad.reshape(-1) for p in parameters if p.grad is not None]
            ).double()

        def reach(a: Tensor, b: Tensor) -> float:
            ends = []
            with torch.no_grad():
                for x in (a, b):
                    put(x)
                    ends.append(velocity.network_at_nodes())
                return float((ends[1] - ends[0]).norm(dim=1).max())

        def goes_on(loss: float) -> bool:
            nonlocal evaluation
            rate = self._learning_rate(evaluation)
            now = Iteration(self.level.number, self.before + evaluation, similarity, loss, rate)
            evaluation += 1
            return self.goes_on(now)

        unit = self.unit * self.settings.learning_rates[self.level.number]
        threshold = self.settings.convergence_threshold / self.settings.convergence_window  # of a single step
        found = minimise(
            loss_and_gradient, parameters_to_vector(parameters).detach().double(), reach,
            radius=self.settings.network_radius * unit, most_radius=8 * self.settings.network_radius * unit,
            evaluations=self.warmup, tolerance=max(NETWORK_TOLERANCE, threshold), goes_on=goes_on,
        )  # fmt: skip
        with torch.no_grad():
            put(found.x)
        return CANCELLED if found.stop == "cancelled" else DONE

    def _train_control_points(self, first: int) -> str:
        """The control points alone, from the iteration `first` on."""
        points, stop = self.model.velocity.control_points, DONE
        optimiser = ops.Adam([points], self.settings.betas, self.level.epsilon, self.level.threads)
        self.losses, self.similarities = [], []
        start = points.detach().clone()
        for iteration in range(first, self.iterations):
            rate = self._learning_rate(iteration)
            now = self._measure(iteration, iteration - first, rate)
            if not self.goes_on(now):
                if self.best is not None:
                    self.model.velocity.load_state_dict(self.best[1])
                return CANCELLED
            optimiser.step(rate * self.unit)
            if _converged(self.losses, self.settings):
                stop = CONVERGED
                break
        # By the similarity, which two maps can be compared by: a few steps leave a roughness that the loss charges for.
        # The last one is that before the last step; only where it leaves a doubt another evaluation is worth its time.
        if len(self.similarities) < 3 or not self.similarities[-1] >= self.similarities[0]:
            with torch.no_grad():
                end = float(self.level.similarity_of(self.model))
                if not end >= self.similarities[0]:
                    points.copy_(start)
                    self.returned = True
        return stop

    def _learning_rate(self, iteration: int) -> float:
        """In voxels of the fixed image along its finest axis."""
        share = iteration / max(1, self.iterations - 1)
        return self.settings.learning_rates[self.level.number] * (1 - (1 - self.settings.learning_rate_end) * share)

    def _measure(self, iteration: int, done: int, rate: float) -> Iteration:
        """Loss and gradients, after `done` iterations of the control points."""
        self.model.velocity.control_points.requires_grad_(True)
        similarity, loss = self.level.loss(self.model, done)
        loss.backward()
        # With its locals the graph goes, and all that it holds, before the next one is made.
        iteration += self.before
        now = Iteration(self.level.number, iteration, float(similarity.detach()), float(loss.detach()), rate)
        self.losses.append(now.loss)
        self.similarities.append(now.metric)
        if self.keep_best and (self.best is None or now.loss < self.best[0]):
            self.best = now.loss, {k: p.detach().clone() for k, p in self.model.velocity.state_dict().items()}
        return now


def _converged(losses: list[float], settings: Settings) -> bool:
    w = settings.convergence_window
    if settings.convergence_threshold <= 0 or len(losses) < 2 * w:
        return False
    return float(np.mean(losses[-2 * w : -w]) - np.mean(losses[-w:])) < settings.convergence_threshold

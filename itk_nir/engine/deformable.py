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
one field through all levels.) The loss is in `itk_nir.engine.level`. Under a mask of a slice or a few, all of this is
done twice (`itk_nir.engine.thin_masks`).

As an engine this module has what `itk_nir.settings.ENGINES` asks for: `Settings`, `optimise`, `describe`, `restore`.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops, thin_masks
from itk_nir.engine.descent import CANCELLED, DONE, Descent
from itk_nir.engine.folds import remove_folds
from itk_nir.engine.images import Pair, common_domain, shrink, spacings
from itk_nir.engine.journal import LEVELS, Entry, Journal, as_rows, copied, load, rows_as_trace
from itk_nir.engine.lattice import Domain
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.lesions import smooth_through_lesions
from itk_nir.engine.level import FieldInTraining, Level
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.metrics import LevelImages, channel_metrics, mean_of, of_one_contrast
from itk_nir.engine.noise import is_noisy
from itk_nir.engine.progress import Callback, Iteration, Optimised, Progress
from itk_nir.engine.regions import kept
from itk_nir.engine.search import Outcome
from itk_nir.engine.search_trial import Search
from itk_nir.engine.settings import DeformableSettings as Settings
from itk_nir.engine.sliding import LEAST_STEEP, Steps, are_worth, find_steps, similarity_with, with_steps
from itk_nir.engine.stored_field import describe, restore
from itk_nir.engine.unchanged import at_control_points
from itk_nir.engine.velocity_field import SplineVelocity, VelocityField
from itk_nir.errors import NothingToCompare

__all__ = ["UNALIKE", "Settings", "describe", "optimise", "restore"]

#: Whether images are of one contrast, by their similarity after the first level and its field.
Alike = Callable[[float, VelocityField], bool]

#: What stopped it where the images have not become as alike as they were to.
UNALIKE = "too little alike"

#: What is told where organs slide along each other.
TOLD_APART = "things that slide along each other told apart"

#: The doubt about a field where they were not.
NOT_TOLD_APART = (
    "things seem to slide along each other and could not be told apart: near their borders the map is smoother than "
    "the motion, and may be off by a good part of it"
)

#: What ends a level and all that follow.
_ENDS = (CANCELLED, UNALIKE)


def optimise(
    pair: Pair,
    settings: Settings,
    *,
    seed: int = 0,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
    journal: Journal | None = None,
    alike: Alike | None = None,
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
    journal : Journal, optional
        Of what was done before, and for what is done; left out, nothing is kept.
    alike : callable, optional
        Called after the first level with the similarity and the field; where it says no, no other level follows, and
        what stopped it is `UNALIKE`.

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
    thin = thin_masks.concerned(pair, settings)
    first, second = (callback, None) if not thin else (_share(callback, 0.0), _share(callback, 0.5))
    # In a function of its own: what the iterations held is free again before the folds are looked for.
    done, domain, steps = _train(pair, settings, seed, threads, first, clock, journal or Journal(), alike)
    if thin and done.stop not in _ENDS:
        smooth, _, its = _train(pair, settings, seed, threads, second, clock, Journal(), None, thin_masks.smoother)
        if smooth.stop == CANCELLED:
            done = replace(done, stop=CANCELLED)
        elif thin_masks.believed(smooth, done):
            done, steps = replace(smooth, search=f"{smooth.search}; a smoother field kept, the mask is thin"), its
    if settings.jacobian_weight and done.stop != UNALIKE:
        ops.release_memory()
        done = replace(done, field=remove_folds(done.field, domain, pair))
    if steps is not None:
        done = replace(done, field=with_steps(done.field, steps, domain))
    if done.stop not in _ENDS:
        done = replace(done, field=smooth_through_lesions(done.field, domain, pair))
    field, notes = kept(done.field, pair)  # the very same field without regions
    return replace(done, field=field, notes=notes)


def _share(callback: Callback | None, begin: float) -> Callback | None:
    """A callback that is told of half of the work, from a share on."""
    if callback is None:
        return None
    return lambda now: callback(replace(now, fraction=begin + now.fraction / 2))


@dataclass
class _Report:
    """What was measured so far, and who is told of it."""

    settings: Settings
    work: list[int]
    callback: Callback | None
    clock: float
    model: FieldInTraining
    #: After the field, LPS.
    linear: NDArray[np.float64]
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
                partial(_through, weakref.ref(self.model), self.linear),
            )
        )


def _through(
    field: weakref.ref[FieldInTraining], linear: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What a field as it stands, and the linear map after it, make of points, LPS mm.

    Raises
    ------
    RuntimeError
        The registration is over: what is kept of its progress keeps no field.
    """
    now = field()
    if now is None:
        raise RuntimeError("the registration is over; Progress.mapping is to be called while the callback runs")
    moved = points + now.displacement(points)
    out: NDArray[np.float64] = moved @ linear[:-1, :-1].T + linear[:-1, -1]
    return out


def _train(
    pair: Pair, settings: Settings, seed: int, threads: int, callback: Callback | None, clock: float, journal: Journal,
    alike: Alike | None, adapted: Callable[[Settings], Settings] | None = None,
) -> tuple[Optimised, Domain, Steps | None]:  # fmt: skip
    """All levels, by the settings for the pair or what is made of them; the block of the fixed grid that was worked on,
    and the steps that the field is to have there."""
    normalised = pair.normalised()
    unit = min(pair.fixed_geometry.spacing)
    margin = 2 * settings.shrink_factors[-1] * unit if pair.fixed_weight is None else 8 * unit
    domain = common_domain(pair, margin)
    if pair.known is not None:
        domain = pair.known.reached(domain, pair.fixed_geometry)
    settings = _for_pair(settings, pair, domain)
    settings = settings if adapted is None else adapted(settings)
    coarsest = settings.coarsest_grid_spacing * unit
    knots = tuple(coarsest / s for s in spacings(pair.fixed_geometry))
    finest = max(settings.halvings(level) for level in range(settings.levels))
    lattices = Lattices.halved(domain.lattice(knots), coarsest, finest, domain.ends, settings.restrict)  # type: ignore[arg-type]
    model = FieldInTraining(pair.fixed_geometry, lattices, settings, seed, pair.fixed.device, threads)
    work = [
        n * math.prod(math.ceil(size / f) for size, f in zip(domain.size, shrink(pair.fixed_geometry, k), strict=True))
        for n, k in zip(settings.iterations, settings.shrink_factors, strict=True)
    ]
    report = _Report(settings, work, callback, clock, model, pair.linear)
    last = max(level for level in range(settings.levels) if settings.iterations[level])
    nothing: NothingToCompare | None = None
    begin, stop, returned, rest, searched, measured, steps = _taken_up(journal, model, report.trace)
    for number in range(begin, settings.levels):
        if number == 1 and settings.composed and report.trace and stop not in _ENDS:
            model.freeze()
        model.go_to(settings.halvings(number))
        if settings.iterations[number] == 0 or stop in _ENDS:
            continue
        ops.release_memory()
        grids, channels = _seen(number, settings, pair, domain, normalised, threads)
        if number == settings.levels - 1:
            normalised.clear()
        if pair.known is not None and not report.trace:
            known = pair.known.start(pair, lattices, model.velocity.number, threads)
            if known is not None:
                model.begin_at(known)
        with ops.reused_memory():
            steps = find_steps(pair, channels, grids, domain, model, searched) if number == last else None
            make = partial(Level.make, number, settings, pair, domain, channels, grids, model)
            del channels
            try:
                level = _believing_coarser(make(), report.trace, len(pair.channels))
            except NothingToCompare as error:  # a mask may be too small for a coarse level to see
                nothing = error
                continue
            finer = partial(_finer, settings, pair, domain, normalised, model) if settings.levels > number + 1 else None
            search = Search.of(pair, settings, make, number, finer)
            del make
            descent = Descent(level, model, report, journal, callback is not None, search)
            del level
            stop = _descended(descent, pair, model, None if report.trace else alike)
            if search is not None:
                searched = search.outcome
            if descent.returned:
                returned.append(number)
            if number == last or stop in _ENDS:
                measured, gain = _before_and_after(descent.level, model)
                if not gain >= 0:  # coarse levels may have led astray what the finest cannot mend
                    rest, measured = True, (measured[0], measured[0])
                    returned = [k for k in range(number + 1) if settings.iterations[k]]
                steps = None if rest or stop in _ENDS else steps
                steps, measured, searched = _believed(steps, descent.level, model, measured, searched)
            del descent
        if stop not in _ENDS:
            journal.forget_parts()
            values = {
                "next": number + 1, "stop": stop, "returned": returned, "rest": rest, "search": asdict(searched),
                "measured": measured, "trace": as_rows(report.trace),
            }  # fmt: skip
            journal.keep(LEVELS, partial(_kept, model, values, steps), write=True)
    if not report.trace and nothing is not None:
        raise nothing
    field = model.trained().at_rest() if rest else model.trained()
    doubts = (NOT_TOLD_APART,) if searched.slides and not rest else ()
    done = Optimised(field, tuple(report.trace), stop, *measured, tuple(returned), searched.told, doubts=doubts)
    return done, domain, steps


def _seen(
    number: int, settings: Settings, pair: Pair, domain: Domain, normalised: list[tuple[Tensor, Tensor]], threads: int
) -> tuple[LevelGrids, LevelChannels]:
    """The voxels of a level, and the images at them."""
    grids = LevelGrids.of(pair, domain, settings.shrink_factors[number])
    # A window that reaches beyond both ends sees no more than the whole.
    radius = min(settings.radius[number], max(len(p) for p in grids.fixed))
    sigma = settings.smoothing_sigmas[number]
    return grids, LevelChannels.of(pair, grids, normalised, sigma, radius, threads)


def _believing_coarser(level: Level, trace: Sequence[Iteration], channels: int) -> Level:
    """A level without the stiffness of little evidence, where a coarser one began with enough of it.

    For metrics of unlike contrasts: what two of them share shows best at a coarse resolution, and is hidden by noise at
    a fine one. It counts as the images were before that level, when nothing could have been fitted to noise.
    """
    metrics = channel_metrics(level.settings.metric, level.settings.channel_weights, channels)
    if level.factor == 1 or of_one_contrast(metrics):
        return level
    begun = {now.level: now.metric for now in reversed(trace)}  # the first iteration of each level
    enough = max(begun.values(), default=-math.inf) >= mean_of(metrics, "little_evidence")
    return replace(level, factor=1.0) if enough else level


def _finer(
    settings: Settings, pair: Pair, domain: Domain, normalised: list[tuple[Tensor, Tensor]], model: FieldInTraining
) -> tuple[Level, tuple[LevelImages, ...]]:  # fmt: skip
    """The second level while the field is still that of the first, and what its metrics are shown."""
    grids, channels = _seen(1, settings, pair, domain, normalised, model.threads)
    level = Level.make(1, settings, pair, domain, channels, grids, model)
    index, vector, moving = level.grid_to_moving, level.displacement_to_moving, channels.images[0].moving
    with torch.no_grad():
        u = ops.separable(model.displaced(model.velocity()), level.spline, model.threads)
        weight = counting_weight(pair, grids, u, moving, index, vector, model.threads)
    return level, tuple(i.weighted(weight, None) for i in channels.images)


def _for_pair(settings: Settings, pair: Pair, domain: Domain) -> Settings:
    """The settings for a pair: what moves the whole image is not for one that lies where it belongs."""
    settings = settings.for_pair(domain.size, len(pair.channels))
    metrics = channel_metrics(settings.metric, settings.channel_weights, len(pair.channels))
    if of_one_contrast(metrics):
        settings = replace(settings, smoothing_sigmas=_sigmas(settings, pair))
    return settings if pair.free is None else replace(settings, network=None, search="never")


def _sigmas(settings: Settings, pair: Pair) -> tuple[float, ...]:
    """The smoothing of the levels for images of one contrast, of which noise would hide what they share."""
    first, *others = settings.smoothing_sigmas
    if pair.fixed_geometry.dimension == 2:
        first = max(settings.plane_sigma, first)
    sigmas = (first, *others)
    if min(sigmas) >= settings.noise_sigma or not is_noisy(pair):
        return sigmas
    return tuple(max(settings.noise_sigma, s) for s in sigmas)


@contextmanager
def _held(free: Tensor | None, model: FieldInTraining) -> Iterator[None]:
    """Control points that are not free have no gradient, and stay as they are."""
    if free is None:
        yield
        return
    moving = at_control_points(free, model.lattices.axes[model.velocity.number])
    hook = model.velocity.control_points.requires_grad_(True).register_hook(lambda gradient: gradient * moving)
    model.some_held = True
    try:
        yield
    finally:
        hook.remove()
        model.some_held = False


def _descended(descent: Descent, pair: Pair, model: FieldInTraining, alike: Alike | None) -> str:
    """Do all iterations of a level; what ended them: that the images have not become alike, too."""
    with _held(pair.free, model):
        stop = descent.run()
    if alike is None or stop == CANCELLED:
        return stop
    with torch.no_grad():
        similarity = float(descent.level.similarity(model.displaced(model.velocity())))
        return stop if alike(similarity, model.trained_now()) else UNALIKE


def _kept(model: FieldInTraining, values: dict[str, Any], steps: Steps | None) -> Entry:
    """The field between two levels, and what else there is to know then."""
    parts = {"fine": model.velocity} | ({} if model.coarse is None else {"coarse": model.coarse})
    about = {name: {"lattice": p.number, "network": p.network is not None} for name, p in parts.items()}
    arrays: dict[str, Tensor] = {}
    for name, part in parts.items():
        arrays |= copied(part.state_dict(), f"{name}.")
    arrays |= {} if steps is None else copied(steps.arrays())
    return Entry(values | {"field": about}, arrays)


def _taken_up(
    journal: Journal, model: FieldInTraining, trace: list[Iteration]
) -> tuple[int, str, list[int], bool, Outcome, tuple[float | None, float | None], Steps | None]:
    """Where the levels stand; the field and the trace become what they were then."""
    entry = journal.recalled(LEVELS)
    if entry is None:
        return 0, DONE, [], False, Outcome(), (None, None), None
    device = model.velocity.control_points.device
    for name in ("coarse", "fine"):
        part = entry.values["field"].get(name)
        if part is None:
            continue
        model.velocity = SplineVelocity(
            model.geometry, model.lattices, part["lattice"], None, torch.Generator(), device, model.threads
        )
        if part["network"]:
            for parameter in model.add_network().parameters():
                parameter.requires_grad_(False)
        load(model.velocity, entry, f"{name}.")
        if name == "coarse":
            model.coarse = model.velocity.requires_grad_(False)
    trace.extend(rows_as_trace(entry.values["trace"]))
    v, steps = entry.values, Steps.of_arrays(entry.arrays, device)
    measured = v["measured"][0], v["measured"][1]
    return v["next"], v["stop"], v["returned"], v["rest"], Outcome(**v["search"]), measured, steps


def _believed(
    steps: Steps | None, level: Level, model: FieldInTraining, measured: tuple[float, float], searched: Outcome
) -> tuple[Steps | None, tuple[float, float], Outcome]:
    """Steps under which the images are hardly less alike, the metric before and after, and what is told."""
    if steps is None:
        return None, measured, searched
    alike = similarity_with(steps, level, model)
    if not are_worth(steps.left, alike, *measured):
        return None, measured, replace(searched, slides=steps.steep >= LEAST_STEEP)
    return steps, (measured[0], alike), replace(searched, told=f"{searched.told}, {TOLD_APART}")


def _before_and_after(level: Level, model: FieldInTraining) -> tuple[tuple[float, float], float]:
    """The metric without a deformation and with the field, over the same positions; and what `agreement` gains."""
    with torch.no_grad():
        u = model.displaced(model.velocity())
        still = torch.zeros_like(u)
        before, after = level.similarity(still), level.similarity(u)
        gain = float(level.agreement(u, after)) - float(level.agreement(still, before))
        return (float(before), float(after)), gain

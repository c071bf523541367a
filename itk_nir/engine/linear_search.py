"""Where the linear stage begins: several starts, each followed for a few steps by mutual information."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import linear_starts
from itk_nir.engine.images import Channel, Pair
from itk_nir.engine.level_grids import is_resized, mean_scale
from itk_nir.engine.linear_candidates import informations
from itk_nir.engine.linear_descent import LinearDescent
from itk_nir.engine.linear_level import LinearLevel, agreed, value
from itk_nir.engine.linear_starts import Mass
from itk_nir.engine.metrics import Metric, MutualInformation, NoMetric
from itk_nir.engine.progress import NO_OVERLAP, Callback
from itk_nir.engine.restriction import held_axes, without_held_axes
from itk_nir.engine.settings import LinearSettings

F64 = NDArray[np.float64]

#: Of the similarity of a start that turns the images by more than `GREAT_TURN` degrees this share counts: headers are
#: seldom wrong, and organs nearly symmetric.
TURNED_GAIN, GREAT_TURN = 0.9, 30.0

#: The same, at every level, of a start that changes the size (`is_resized`), turned or not, and of what rivals it at
#: about that size (`_as_resized`). A part of the other image seems to be of another size too, and gains by that 1.3
#: times at most at the last level; where sizes do differ, it is 2 times and more.
RESIZED_GAIN = 0.6

#: The same for a section that was turned over, as it happens on a microscope's slide.
MIRRORED_GAIN = 0.8

#: Ends that are at least so alike as the best one and lie more than so many voxels of the level from it are its rivals.
#: So many of them, and where the best one turns far the best one that does not, are followed further, by ever freer
#: maps up to that which is wanted, and at the last level: differences of size and shape hide which is right. One that
#: was less alike before must then be more by this factor.
CLOSE, ELSEWHERE, RIVALS, CLEARLY = 0.85, 4.0, 4, 1.08

#: The share of the similarity of a best end that turns the images far from which on a rival leaves open which is right.
AS_GOOD = 0.97

#: How alike an end that turns the images far must be after a turn back by right angles, as a share of what it is, to be
#: taken with that: the object does not show such turns, and its header is believed. Brains are far less alike.
ALIKE_TURNED_BACK = 0.97

#: How alike starts with the centres of mass beside each other must be before they are followed, as a share of the best
#: end: 0.88 and more where one image shows a part that no other start finds, 0.8 and less mostly where all is right.
BESIDE_GAIN = 0.82

#: Where no two starts agree, or the best one turns far: how many of the most alike turns are tried after shifts to all
#: sides, by so many voxels of the search, first and then; and how many times as many of them are followed as else.
WIDE_SHIFTS, WIDER = ((48, 3.0), (24, 1.5)), 4


@dataclass(frozen=True)
class Start:
    """Where the linear stage begins.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
    cancelled : bool
        Whether the callback asked to stop.
    notes : tuple of str
        What was found odd, one sentence each.
    doubts : tuple of str
        What speaks against it.
    mirrored : ndarray or None
        Like `matrix`, a map that mirrors, where the images are more alike under it and no symmetry explains that.
    evened : bool
        Whether it was found without what changes slowly over the images (`itk_nir.engine.evened`).
    """

    matrix: F64
    cancelled: bool = False
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    mirrored: F64 | None = None
    evened: bool = False

    @property
    def resizes(self) -> bool:
        """Whether it changes the size much."""
        return is_resized(mean_scale(self.matrix))


def find_start(
    pair: Pair, kind: str, settings: LinearSettings, *, images: bool = True, threads: int = 1,
    callback: Callback | None = None, clock: float | None = None, restrict: Sequence[float] = (), alone: bool = False,
) -> Start:  # fmt: skip
    """Follow several starts for a few steps, by mutual information, which holds for like and unlike contrasts.

    Parameters
    ----------
    pair : Pair
        The images.
    kind : str
        The map that is to be found, as of `optimise_linear`; a translation turns nothing.
    settings : LinearSettings
        What the stage is told.
    images : bool
        Whether the images count; else landmarks and labels alone.
    threads : int
        CPU threads of the native ops; no result depends on it.
    callback, clock, restrict
        As of `optimise_linear`; with held axes nothing is turned, and shifted along free axes only.
    alone : bool
        As of `optimise_linear`; the starts are then compared after a change of size too, where the map may have one.

    Returns
    -------
    Start
        The best.
    """
    clock = time.perf_counter() if clock is None else clock
    settled = None if images else settled_by_landmarks(pair, kind, settings, restrict)
    if settled is not None:
        return Start(settled)
    search = _Search(pair, kind, settings, images, threads, callback, clock, restrict, alone, pair.normalised())
    masses = linear_starts.masses(pair)
    shifts = [without_held_axes(s, pair.fixed_geometry, restrict) for s in linear_starts.shifted(pair, *masses)]
    starts = [linear_starts.as_they_lie(pair), *shifts]
    notes: list[str] = []
    if search.tiny.overlap(starts[0]) < NO_OVERLAP:
        notes.append(
            "the images do not overlap where their headers place them; the linear stage began with their centres on "
            "each other"
        )
        starts = starts[1:]
    turns = kind != "translation" and not held_axes(restrict)
    if turns:
        starts += search.most_alike(_on_each_other(pair, masses))
    if pair.known is not None and pair.known.landmarks is not None:
        on_landmarks = pair.known.landmarks.matrix(kind, pair.linear)
        starts += [] if on_landmarks is None else [without_held_axes(on_landmarks, pair.fixed_geometry, restrict)]
    unknown = turns and images and pair.known is None
    section = unknown and pair.fixed_geometry.dimension == 2
    if unknown:
        starts += search.most_alike(linear_starts.mirrored(pair, *masses))
    tried = search.follow(starts)
    if turns and images and not search.cancelled:
        tried += search.of_another_size(masses)
    cancelled = search.cancelled
    plain = [t for t in tried if not t.mirrored]
    best = max(plain, key=_Tried.held)
    if turns and images and not cancelled and (best.turned or not search.agreed_on(best, plain)):
        more = search.follow(search.shifted_too(_on_each_other(pair, masses)))
        plain, cancelled = plain + more, search.cancelled
        better = max(more, key=_Tried.held, default=best)  # one at the same place is no news
        best = best if better.held() <= best.held() or search.same_place(better, best) else better
    if section and not cancelled:  # more that may lead elsewhere, as where one image shows a part
        plain += search.follow(search.more_alike(best, linear_starts.turned_beside(pair, *masses)))
        cancelled = search.cancelled
    likely = max(plain, key=lambda t: t.similarity)
    doubts: tuple[str, ...] = ()
    if turns and images and not cancelled:
        best, doubts = search.against_rivals(best, plain)
        back = search.turned_back(best, masses[0])
        best, doubts = back, doubts if back is best else ()
    if cancelled:
        return Start(best.matrix, True, tuple(notes))
    over, least, mirror = search.more_alike_mirrored(best, likely, [t for t in tried if t.mirrored])
    most = 0.0 if mirror is None else mirror.similarity
    if section and kind == "affine" and most * MIRRORED_GAIN > least:
        notes.append(
            f"linear stage: the moving image is more alike mirrored (mutual information {most:.2f} against {least:.2f})"
            ": the section was turned over, and the map mirrors it"
        )
        return Start(over.matrix, False, tuple(notes))
    return Start(best.matrix, False, tuple(notes), doubts, None if mirror is None else mirror.matrix)


def settled_by_landmarks(pair: Pair, kind: str, settings: LinearSettings, restrict: Sequence[float]) -> F64 | None:
    """The linear map that turns least of all that a few landmarks, which determine none, ask for without the images.

    Where the images lie, or what they show, says nothing of the rest: a descent from any other start would keep its
    turn.

    Parameters
    ----------
    pair, kind, settings, restrict
        As of `find_start`.

    Returns
    -------
    ndarray or None
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair; None where landmarks or labels determine one.
    """
    if pair.known is None:
        return None
    turns = not held_axes(restrict) and all(settings.linear_rotations)
    found = pair.known.least_turned(kind, pair.linear, turns)
    return None if found is None else without_held_axes(found, pair.fixed_geometry, restrict)


@dataclass(frozen=True, eq=False)
class _Tried:
    """Where a start led: the map, how alike the images are there, whether it turns far, whether it turns over; a change
    of size that the map comes before; and whether it counts as one of another size."""

    base: F64
    similarity: float
    turned: bool
    mirrored: bool
    resize: F64 | None = None
    resized: bool = False

    @property
    def matrix(self) -> F64:
        """The map, before the linear map of the pair."""
        return self.base if self.resize is None else self.resize @ self.base

    def held(self) -> float:
        """The similarity that counts where headers are believed too: a turn must gain, and another size much."""
        share = (TURNED_GAIN if self.turned else 1.0) * (RESIZED_GAIN if self.resized else 1.0)
        return self.similarity * share if self.similarity > 0 else self.similarity / share


@dataclass(eq=False)
class _Search:
    """A pair at coarse levels, and what follows starts there; the parameters are those of `find_start`, and the images
    of `Pair.normalised`."""

    pair: Pair
    kind: str
    settings: LinearSettings
    images: bool
    threads: int
    callback: Callback | None
    clock: float
    restrict: Sequence[float]
    alone: bool
    normalised: Sequence[tuple[Tensor, Tensor]]
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.metric: Metric = MutualInformation() if self.images else NoMetric()
        self.metrics = [(1.0, self.metric)] * len(self.pair.channels)
        self.part = "translation" if self.kind == "translation" else "rigid"

    @cached_property
    def tiny(self) -> LinearLevel:
        """Where many maps are measured."""
        return self._level(self.settings.linear_search_size)

    @cached_property
    def level(self) -> LinearLevel:
        """Where starts are followed."""
        return self._level(self.settings.linear_size[0])

    @property
    def apart(self) -> float:
        """How far from each other ends are that lie elsewhere, mm."""
        return ELSEWHERE * self.level.voxel

    @cached_property
    def last(self) -> LinearLevel:
        """Where those are followed further that end elsewhere."""
        return self._level(self.settings.linear_size[-1])

    def _level(self, size: int) -> LinearLevel:
        return LinearLevel.of_size(self.pair, self.normalised, size, 1, self.threads, self.alone)

    def most_alike(self, candidates: list[F64]) -> list[F64]:
        """The few that are worth to be followed."""
        if isinstance(self.metric, MutualInformation) and self.pair.known is None:
            alike = list(informations(self.tiny, candidates, self.metric))
        else:
            alike = [agreed(self.tiny, c, self.metrics) for c in candidates]
        ranked = sorted(range(len(candidates)), key=lambda k: -alike[k])
        return [candidates[k] for k in ranked[: self.settings.linear_turned_starts]]

    def agreed_on(self, end: _Tried, others: Sequence[_Tried]) -> bool:
        """Whether another start led to an end, too."""
        return any(t is not end and self.same_place(t, end) for t in others)

    def same_place(self, end: _Tried, other: _Tried) -> bool:
        """Whether two ends lie no farther from each other than a few more steps would bring them together."""
        return corner_distance(self.pair, end.matrix, other.matrix) <= self.apart

    def shifted_too(self, turns: Sequence[F64]) -> list[F64]:
        """The few that are most alike of many turns after shifts as well: centres of mass that do not belong on each
        other, as where the images show more or less, hide which turn is right."""
        followed = WIDER * self.settings.linear_turned_starts
        if not followed or not isinstance(self.metric, MutualInformation) or self.pair.known is not None:
            return []
        if self.pair.masked:  # what little a mask shows is like something at one of many places
            return []
        kept, alike = list(turns), informations(self.tiny, turns, self.metric)
        for most, step in WIDE_SHIFTS:
            kept = [kept[k] for k in np.argsort(-alike, kind="stable")[:most]]
            shifts = step * self.tiny.voxel * _neighbours(self.pair.fixed_geometry.dimension)
            shifted = [[_shifted(m, s) for s in shifts] for m in kept]
            each = informations(self.tiny, [m for group in shifted for m in group], self.metric).reshape(len(kept), -1)
            kept = [group[k] for group, k in zip(shifted, each.argmax(1), strict=True)]
            alike = each.max(1)
        return [kept[k] for k in np.argsort(-alike, kind="stable")[:followed]]

    def more_alike(self, end: _Tried, candidates: list[F64]) -> list[F64]:
        """Those of the few that are about as alike before they are followed as an end is, or more."""
        if not isinstance(self.metric, MutualInformation):
            return []
        few = self.most_alike(candidates)
        least, *alike = informations(self.tiny, [end.base, *few], self.metric)
        return [c for c, a in zip(few, alike, strict=True) if a >= BESIDE_GAIN * least]

    def follow(self, starts: list[F64]) -> list[_Tried]:
        """Where those of the starts lead that differ."""
        kept = [starts[k] for k in _that_differ(self.pair, starts, 0.5 * self.level.voxel)]
        steps = self.settings.linear_start_iterations
        descent = LinearDescent(
            self.pair, self.settings, [self.level], self.metrics, self.callback, self.clock, steps * len(kept),
            self.restrict,
        )  # fmt: skip
        tried: list[_Tried] = []
        for start in kept:
            base, cost, self.cancelled = descent.run(0, start, self.part, steps)
            if self.alone and self.may_resize and not self.cancelled:
                _, cost, self.cancelled = descent.run(0, base, "similarity", steps)
            turned = linear_starts.angle(start) > GREAT_TURN
            tried.append(_Tried(base, 1 - cost, turned, bool(np.linalg.det(start[:-1, :-1]) < 0)))
            if self.cancelled:
                break
        return tried

    def of_another_size(self, masses: tuple[Mass, Mass]) -> list[_Tried]:
        """Where the best start leads that makes up for objects of very different size, which no gradient finds; none
        where the map may not change the size, or where there is no such difference."""
        ratio = linear_starts.size_ratio(self.pair, *masses)
        if not self.may_resize or not is_resized(ratio):
            return []
        resize = linear_starts.on_each_other(self.pair, ratio, *masses)
        search = self._after(resize)
        starts = [linear_starts.as_they_lie(self.pair), *search.most_alike(_on_each_other(search.pair, masses))]
        tried = [replace(t, resize=resize, resized=True) for t in search.follow(starts)]
        self.cancelled = search.cancelled
        return [max(tried, key=_Tried.held)]

    def _after(self, resize: F64) -> _Search:
        """The search of the pair after a change of size, whose levels have voxels that differ as the sizes do."""
        return replace(self, pair=replace(self.pair, linear=self.pair.linear @ resize))

    def against_rivals(self, best: _Tried, others: Sequence[_Tried]) -> tuple[_Tried, tuple[str, ...]]:
        """The best end, or one elsewhere that turns out to be the right one; and what speaks against it."""
        close = sorted((t for t in others if t.held() >= CLOSE * best.held()), key=lambda t: -t.held())
        # A rigid map of what differs in shape may be less alike by far where the headers are right.
        still = [t for t in others if not t.turned] if best.turned and self.may_resize else []
        still = sorted(still, key=lambda t: -t.held())[:1]
        sized = [t for t in others if t.resized]  # how much it gains is known at the last level
        ends = [best, *still, *sized, *close]
        differ = _that_differ(self.pair, [t.matrix for t in ends], self.apart)
        if len(differ) == 1:
            return best, ()
        seen = _as_resized([(ends[k], self.further(ends[k])) for k in differ[: 1 + len(still + sized) + RIVALS]])

        def counts(pair: tuple[_Tried, _Tried]) -> float:
            before, after = pair
            return after.held() / (CLEARLY if before.similarity < best.similarity else 1.0)

        end, now = max(seen, key=counts)
        # Followed on from the end itself, unless what is right lies far from there, which rigid steps would not reach.
        best = end if self.same_place(end, now) else now
        as_good = [
            t for before, t in seen
            if before in close and t.held() >= AS_GOOD * now.held() and not self.same_place(t, now)
        ]  # fmt: skip
        if not (now.turned and as_good):
            return best, ()
        told, angle = max(t.similarity for t in as_good), linear_starts.angle(now.base)
        return best, (
            f"the linear stage turned the moving image by {angle:.0f} degrees, and another place is as good (mutual "
            f"information {told:.2f} against {now.similarity:.2f}); give an initial transform",
        )

    def turned_back(self, end: _Tried, fixed: Mass) -> _Tried:
        """An end that turns the images far, with the least turn that a symmetric object does not tell from it.

        Landmarks and labels may tell what the images do not show.
        """
        if not (end.turned and isinstance(self.metric, MutualInformation)) or self.pair.known is not None:
            return end
        search = self if end.resize is None else self._after(end.resize)
        turned = [end.base @ turn for turn in linear_starts.by_right_angles(self.pair, fixed)]
        least, *alike = informations(search.level, [end.base, *turned], self.metric)
        ends = [end.base, *(t for t, a in zip(turned, alike, strict=True) if a >= ALIKE_TURNED_BACK * least)]
        base = min(ends, key=linear_starts.angle)
        return end if base is end.base else replace(end, base=base, turned=linear_starts.angle(base) > GREAT_TURN)

    def more_alike_mirrored(
        self, best: _Tried, likely: _Tried, mirrored: Sequence[_Tried]
    ) -> tuple[_Tried, float, _Tried | None]:
        """The most alike of mirrored ends, how alike the best end is after freer maps, since shapes that differ hide
        which of the two is right, and where these lead from the former; None unless it is more alike there, and no
        symmetry explains it."""
        over = max(mirrored, key=lambda t: t.similarity, default=best)
        if over is best or over.similarity <= likely.similarity:
            return over, 0.0, None
        here, there = self.further(best), self.further(over)
        least = max(here.similarity, self.symmetry(here, there))
        return over, here.similarity, there if there.similarity > least else None

    def symmetry(self, end: _Tried, over: _Tried) -> float:
        """How alike the fixed image is to itself by the mirror image that lies between two ends: as much as two images
        of an object are where it does not show which of its sides is which."""
        pair, channels = self.pair, tuple(Channel(c.fixed, c.fixed, *2 * [c.fixed_intensity]) for c in self.pair.more)
        itself = replace(
            pair, moving=pair.fixed, moving_geometry=pair.fixed_geometry, moving_intensity=pair.fixed_intensity,
            moving_weight=pair.fixed_weight, moving_lesion=pair.fixed_lesion, more=channels,
            linear=linear_starts.as_they_lie(pair),
        )  # fmt: skip
        search = replace(self, pair=itself, normalised=[(fixed, fixed) for fixed, _ in self.normalised])
        return value(search.last, np.linalg.inv(end.matrix) @ over.matrix, self.metrics)

    @property
    def may_resize(self) -> bool:
        """Whether the map that is to be found may change the size."""
        return self.kind in ("similarity", "affine")

    def further(self, tried: _Tried) -> _Tried:
        """Where a few more steps lead, by ever freer maps up to that which is wanted, and then at the last level."""
        search = self if tried.resize is None else self._after(tried.resize)
        wanted = {"similarity": ["similarity"], "affine": ["similarity", "affine"]}.get(self.kind, [])
        parts = [*((0, w) for w in wanted), (1, wanted[0] if wanted else self.part)]
        base, cost, steps = tried.base, 0.0, self.settings.linear_start_iterations
        descent = LinearDescent(
            search.pair, self.settings, [search.level, search.last], self.metrics, None, self.clock,
            steps * len(parts), self.restrict,
        )  # fmt: skip
        for k, part in parts:
            base, cost, _ = descent.run(k, base, part, steps)
        return replace(tried, base=base, similarity=1 - cost)


def _as_resized(seen: list[tuple[_Tried, _Tried]]) -> list[tuple[_Tried, _Tried]]:
    """Ends, and where freer maps led from them: where one is of another size, those that came nearer to that size than
    to the headers' count as such, too. An outline that is laid on another one gains by size as what is right does."""
    sizes = [np.log(mean_scale(before.resize)) for before, _ in seen if before.resize is not None]
    if not sizes:
        return seen
    return [(b, replace(t, resized=b.resized or np.log(mean_scale(t.matrix)) / sizes[0] > 0.5)) for b, t in seen]


def _on_each_other(pair: Pair, masses: tuple[Mass, Mass]) -> list[F64]:
    """Turns with the centres of mass on each other."""
    return linear_starts.along_principal_axes(pair, *masses) + linear_starts.turned(pair, *masses)


def _neighbours(d: int) -> F64:
    """``(3**d, d)``: the steps to all neighbours of a voxel, and none."""
    return np.stack(np.meshgrid(*d * [[-1.0, 0.0, 1.0]], indexing="ij"), -1).reshape(-1, d)


def _shifted(matrix: F64, shift: F64) -> F64:
    """A map, and a shift after it, mm."""
    out = matrix.copy()
    out[:-1, -1] += shift
    return out


def _that_differ(pair: Pair, maps: Sequence[F64], least: float) -> list[int]:
    """Which of some maps lie more than a distance in mm from all of those before them."""
    kept: list[int] = []
    for k, one in enumerate(maps):
        if all(corner_distance(pair, one, maps[j]) > least for j in kept):
            kept.append(k)
    return kept


def corner_distance(pair: Pair, a: F64, b: F64) -> float:
    """How far two maps take a corner of the fixed image apart.

    Parameters
    ----------
    pair : Pair
        The images.
    a, b : ndarray
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair.

    Returns
    -------
    float
        The largest of the distances, mm.
    """
    corners = pair.fixed_geometry.corners()
    moved = [corners @ m[:-1, :-1].T + m[:-1, -1] for m in (a, b)]
    return float(np.linalg.norm(moved[0] - moved[1], axis=1).max())

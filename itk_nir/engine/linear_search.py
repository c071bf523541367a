"""Where the linear stage begins: several starts, each followed for a few steps by mutual information."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from itk_nir.engine import linear_starts
from itk_nir.engine.images import Pair
from itk_nir.engine.linear_candidates import informations
from itk_nir.engine.linear_level import LinearDescent, LinearLevel, agreed
from itk_nir.engine.metrics import Metric, MutualInformation, NoMetric
from itk_nir.engine.progress import Callback
from itk_nir.engine.restriction import held_axes, without_held_axes
from itk_nir.engine.settings import LinearSettings

F64 = NDArray[np.float64]

#: Of the similarity of a start that turns the images by more than `GREAT_TURN` degrees this share counts: headers are
#: seldom wrong, and organs nearly symmetric. At the last level, where images tell more, this one does.
TURNED_GAIN, GREAT_TURN = 0.9, 30.0
TURNED_GAIN_FINE = 0.95

#: The same for a section that was turned over, as it happens on a microscope's slide; from the second share on, that
#: is taken for possible.
MIRRORED_GAIN, MIRRORED_DOUBT = 0.8, 0.95

#: The overlap (share of the smaller image) below which the images as they lie are no start.
LEAST_OVERLAP = 0.05


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
    """

    matrix: F64
    cancelled: bool = False
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


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
    normalised = pair.normalised()
    metric: Metric = MutualInformation() if images else NoMetric()
    metrics = [(1.0, metric)] * len(pair.channels)
    tiny, level = (
        LinearLevel.of_size(pair, normalised, size, 1, threads, alone)
        for size in (settings.linear_search_size, settings.linear_size[0])
    )
    masses = linear_starts.masses(pair)
    shifts = [without_held_axes(s, pair.fixed_geometry, restrict) for s in linear_starts.shifted(pair, *masses)]
    starts = [linear_starts.as_they_lie(pair), *shifts]
    notes: list[str] = []
    if tiny.overlap(starts[0]) < LEAST_OVERLAP:
        notes.append(
            "the images do not overlap where their headers place them; the linear stage began with their centres on "
            "each other"
        )
        starts = starts[1:]
    turns = kind != "translation" and not held_axes(restrict)

    def most_alike(candidates: list[F64]) -> list[F64]:
        if isinstance(metric, MutualInformation) and pair.known is None:
            alike = list(informations(tiny, candidates, metric))
        else:
            alike = [agreed(tiny, c, metrics) for c in candidates]
        ranked = sorted(range(len(candidates)), key=lambda k: -alike[k])
        return [candidates[k] for k in ranked[: settings.linear_turned_starts]]

    if turns:
        starts += most_alike(linear_starts.along_principal_axes(pair, *masses) + linear_starts.turned(pair, *masses))
    if pair.known is not None and pair.known.landmarks is not None:
        on_landmarks = pair.known.landmarks.matrix(kind, pair.linear)
        starts += [] if on_landmarks is None else [without_held_axes(on_landmarks, pair.fixed_geometry, restrict)]
    if turns and images and pair.known is None and pair.fixed_geometry.dimension == 2:
        starts += most_alike(linear_starts.mirrored(pair, *masses))
    kept: list[F64] = []
    for start in starts:
        if all(_apart(pair, start, other) > 0.5 * level.voxel for other in kept):
            kept.append(start)
    steps = settings.linear_start_iterations
    descent = LinearDescent(pair, settings, [level], metrics, callback, clock, steps * len(kept), restrict)
    part = "translation" if kind == "translation" else "rigid"
    tried: list[_Tried] = []
    cancelled = False
    for start in kept:
        base, cost, cancelled = descent.run(0, start, part, steps)
        if alone and kind in ("similarity", "affine") and not cancelled:
            _, cost, cancelled = descent.run(0, base, "similarity", steps)
        turned = linear_starts.angle(start) > GREAT_TURN
        tried.append(_Tried(base, 1 - cost, turned, bool(np.linalg.det(start[:-1, :-1]) < 0)))
        if cancelled:
            break
    plain = [t for t in tried if not t.mirrored]
    best, likely = max(plain, key=_Tried.held), max(plain, key=lambda t: t.similarity)
    if likely is not best and not cancelled:
        # The headers against the images: a finer look at both.
        last = LinearLevel.of_size(pair, normalised, settings.linear_size[-1], 1, threads, alone)
        fine = LinearDescent(pair, settings, [last], metrics, None, clock, steps, restrict)
        ends = [replace(t, similarity=1 - fine.run(0, t.base, part, steps)[1]) for t in (best, likely)]
        best = likely if ends[1].held(TURNED_GAIN_FINE) > ends[0].similarity else best
    over = max((t for t in tried if t.mirrored), key=lambda t: t.similarity, default=None)
    if over is None or over.similarity * MIRRORED_DOUBT <= likely.similarity:
        return Start(best.base, cancelled, tuple(notes))
    told = f"is more alike mirrored (mutual information {over.similarity:.2f} against {likely.similarity:.2f})"
    if kind == "affine" and over.similarity * MIRRORED_GAIN > likely.similarity:
        notes.append(f"linear stage: the moving image {told}: the section was turned over, and the map mirrors it")
        return Start(over.base, cancelled, tuple(notes))
    doubt = f"the moving image {told}; if its section was turned over, mirror it first"
    return Start(best.base, cancelled, tuple(notes), (doubt,))


@dataclass(frozen=True, eq=False)
class _Tried:
    """Where a start led: the map, how alike the images are there, whether it turns far, whether it turns over."""

    base: F64
    similarity: float
    turned: bool
    mirrored: bool

    def held(self, gain: float = TURNED_GAIN) -> float:
        """The similarity that counts where headers are believed too: a turn must gain."""
        share = gain if self.turned else 1.0
        return self.similarity * share if self.similarity > 0 else self.similarity / share


def _apart(pair: Pair, a: F64, b: F64) -> float:
    """How far two maps take a corner of the fixed image apart, mm."""
    corners = pair.fixed_geometry.corners()
    moved = [corners @ m[:-1, :-1].T + m[:-1, -1] for m in (a, b)]
    return float(np.linalg.norm(moved[0] - moved[1], axis=1).max())

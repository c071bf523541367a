"""The linear stage: from wherever the images lie to a translation, a rigid, similarity or affine map.

It maximises the metrics of the deformable stage, over the positions that both images have: what the moving image does
not cover counts as no match, so that pushing the images apart never pays. It begins where `linear_search` says, and
goes on coarse to fine. Steps are those of `quasi_newton`: none makes the images less alike. The map that is found is
given up for the start where the metric, or mutual information, holds it to be worse.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from itk_nir.engine import linear_starts
from itk_nir.engine.images import Pair
from itk_nir.engine.linear_descent import LinearDescent
from itk_nir.engine.linear_fine import refined
from itk_nir.engine.linear_level import LinearLevel, agreed, is_better_where_both, value, values_where_both
from itk_nir.engine.linear_metrics import with_filled_bins
from itk_nir.engine.linear_search import Start, find_start, settled_by_landmarks
from itk_nir.engine.metrics import LNCC, Metric, MutualInformation, look_at_images, mean_of
from itk_nir.engine.progress import NO_OVERLAP, Callback, Progress
from itk_nir.engine.restriction import without_held_axes
from itk_nir.engine.settings import LinearSettings

F64 = NDArray[np.float64]

#: The share of a metric's `little_evidence` below which the images stay as they lie.
LEAST_EVIDENCE = 0.4

#: Mutual information that so many positions have by chance, times their number, about: noise fills the bins unevenly.
CHANCE = 150.0

#: Windows of the finer levels are so many times as wide, in samples: there is more noise, and less to be found.
FINE_RADII = 4

#: The share of the overlap of the start that a metric below zero must keep.
LEAST_KEPT = 0.5

#: By how much more alike the images must be without a rigid map first for that to be given up, where no deformation
#: follows.
DIRECT_GAIN = 0.05

#: Masks of fewer positions, at the last level, show too little to be relied upon; and by how much more alike what they
#: show must be under the map between the whole images.
FEW, BETTER = 800, 1.1

#: What is told of that.
BY_WHOLE_IMAGES = "the masks show little: the whole images were aligned, which suits them better"

#: Voxels of the longest axis, at most, of the level on which maps are compared inside of masks.
FINEST = {2: 1024, 3: 128}

#: By which share of a measure the map that was found must be worse than the start for that to be told.
NOTABLE = 0.005

#: The share of the similarity of mirrored images that the map which was found must reach, else which is right is
#: doubted. Where all is right it reaches 0.98 and more, however symmetric; where not, 0.93 at most.
MIRRORED_DOUBT = 0.95

#: The same where both maps have positions, times that of the likeness of windows over what is short of it. Sections of
#: two brains, whose halves differ less than they do, reach 0.83 and more where all is right; hands of two people and
#: organs of which one is mirrored 0.73 at most.
MIRRORED_WHERE_BOTH = 0.78


@dataclass(frozen=True)
class LinearResult:
    """What the linear stage found.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)`` LPS, fixed → moving: the found map followed by the linear map of the pair.
    similarity : float
        The metric at its last level.
    cancelled : bool
        Whether the callback asked to stop.
    notes : tuple of str
        What was found odd, one sentence each.
    by_whole_images : bool
        Whether the masks showed too little, and the whole images were aligned.
    doubts : tuple of str
        Of the start that it was found from.
    """

    matrix: F64
    similarity: float
    cancelled: bool
    notes: tuple[str, ...] = ()
    by_whole_images: bool = False
    doubts: tuple[str, ...] = ()


def optimise_linear(
    pair: Pair,
    kind: str,
    settings: LinearSettings,
    metrics: Sequence[tuple[float, Metric]],
    *,
    start: Start | None = None,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
    restrict: Sequence[float] = (),
    alone: bool = False,
) -> LinearResult:
    """Find the linear map between two images.

    Parameters
    ----------
    pair : Pair
        The images; `pair.linear` (LPS, fixed → moving) is applied after what is found here.
    kind : str
        ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
    settings : LinearSettings
        What the stage is told.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.
    start : Start, optional
        Of `linear_search.find_start`; left out: the images as they lie.
    threads : int
        CPU threads of the native ops; no result depends on it.
    callback : callable, optional
        Called with a `Progress` after every evaluation; a true value cancels, and the best so far is kept.
    clock : float, optional
        ``time.perf_counter()`` when the registration began.
    restrict : sequence of float
        1 for each axis of the fixed image along which the map may displace things, 0 for the others; empty for all.
    alone : bool
        Whether no deformation follows: the map is then improved up to the full resolution of the images
        (`linear_fine`), and the share of the moving image that the fixed one has is that of its size under the map.

    Returns
    -------
    LinearResult
    """
    clock = time.perf_counter() if clock is None else clock
    kind, settled = _without_images(pair, kind, settings, metrics, restrict)
    if settled is not None:
        return LinearResult(pair.linear @ settled, 0.0, start is not None and start.cancelled)
    begin, given = linear_starts.as_they_lie(pair), pair.linear
    if start is not None and start.resizes:
        # The levels are made for it; what the images lie like is behind it.
        begin, pair = np.linalg.inv(start.matrix).astype(np.float64), replace(pair, linear=given @ start.matrix)
        mirrored = None if start.mirrored is None else np.asarray(begin @ start.mirrored, dtype=np.float64)
        start = replace(start, matrix=linear_starts.as_they_lie(pair), mirrored=mirrored)
    normalised = pair.normalised()
    metrics = with_filled_bins(pair, metrics)
    radius = min(settings.linear_radius, max(pair.fixed_geometry.size))  # wider windows see no more
    sizes, iterations = _levels(pair, settings)
    levels = [LinearLevel.of_size(pair, normalised, size, radius, threads, alone) for size in sizes]
    descent = LinearDescent(pair, settings, levels, metrics, callback, clock, sum(iterations), restrict)
    base, cancelled, notes = (begin, False, []) if start is None else (start.matrix, start.cancelled, list(start.notes))
    several = kind in ("similarity", "affine")
    plain, first = base, base
    for level, evaluations in enumerate(iterations):
        rigid = evaluations // 2 if several and level == 0 else 0
        cost = np.inf
        for part, count in (("rigid", rigid), (kind, evaluations - rigid)):
            if count and not cancelled:
                base, cost, cancelled = descent.run(level, base, part, count)
            if part == "rigid" and rigid:
                plain = base
        if alone and rigid and not cancelled:
            # Structures of another size have no good rigid map: what is found from there may lead nowhere.
            direct, least, cancelled = descent.run(level, first, kind, evaluations - rigid)
            base = direct if least < cost - DIRECT_GAIN else base
    gain = mean_of(metrics, "contrast_gain")
    if several and gain > 0 and not cancelled:
        needed = _needed(descent, plain, base, gain, iterations)
        base, kind = needed, kind if needed is base else "rigid"
    # By the metric and by mutual information, each times the overlap.
    measures = metrics, [(w, MutualInformation()) for w, _ in metrics]
    judged = levels[len(settings.linear_size) - 1]
    base = _where_they_overlap(judged, base, start, metrics, notes)
    found, at_start = ([value(judged, m, by) for by in measures] for m in (base, begin))
    # A map that brings landmarks or labels together need not please the images too.
    known = pair.known is not None and agreed(judged, base, metrics) > agreed(judged, begin, metrics)
    # A start that leaves nothing to compare is no way back.
    if not cancelled and not known and look_at_images(metrics) and judged.overlap(begin) >= NO_OVERLAP:
        little, chance = mean_of(metrics, "little_evidence"), CHANCE / judged.most
        # Few positions hold much information by chance; a metric of another kind may know better.
        little_found = found[0] < LEAST_EVIDENCE * little or (found[1] < chance and found[0] < max(little, chance))
        worse = _worse_by(judged, begin, base, at_start, found, metrics, alone)
        if worse or little_found:
            told = any(b - a > NOTABLE * abs(b) for a, b in zip(found, at_start, strict=True))
            if told and not np.array_equal(base, begin):
                notes.append(
                    f"linear stage: the {' and the '.join(worse)} held the map that was found to be worse than the "
                    "start, which was kept"
                )
            base, found = begin, at_start
    tried = (base is begin or judged.most < FEW) and start is not None and not (cancelled or known)
    whole, cancelled = (
        _by_whole_images(pair, base, kind, settings, metrics, threads, callback, clock, restrict, alone)
        if tried
        else (None, cancelled)
    )
    similarity, doubts = found[0], () if start is None else (*start.doubts, *_more_alike_mirrored(judged, base, start))
    if whole is not None:
        base, doubts = whole
        similarity = value(judged, base, metrics)
    if alone and base is not begin and not cancelled and look_at_images(metrics):
        base, finer, cancelled = refined(descent, normalised, base, kind, FINE_RADII * radius, threads)
        similarity = similarity if finer is None else finer
    # Free parameters alone have moved: what there is along held axes is rounding.
    base = without_held_axes(base, pair.fixed_geometry, restrict)
    matrix = given if base is begin else pair.linear @ base
    return LinearResult(matrix, similarity, cancelled, tuple(notes), whole is not None, doubts)


def _more_alike_mirrored(level: LinearLevel, found: F64, start: Start) -> tuple[str, ...]:
    """The doubt that a mirrored image is clearly more alike than under the map that was found, by its windows too, and
    not for the positions alone: of an object whose halves differ less than two images of it do, either may be."""
    if start.mirrored is None:
        return ()
    maps, channels = (found, start.mirrored), len(level.pair.channels)
    information, windows = ([(1.0, m)] * channels for m in (MutualInformation(), LNCC()))
    alike, mirrored = (value(level, m, information) for m in maps)
    if alike >= MIRRORED_DOUBT * mirrored:
        return ()
    shared, seen = (values_where_both(level, *maps, by) for by in (information, windows))
    if shared is not None and seen is not None:
        found_alike, mirror_alike = (a * b / max(1 - b, 1e-6) for a, b in zip(shared, seen, strict=True))
        if found_alike >= MIRRORED_WHERE_BOTH * mirror_alike:
            return ()
    section = level.pair.fixed_geometry.dimension == 2
    return (
        f"the moving image is more alike mirrored (mutual information {mirrored:.2f} against {alike:.2f}); if "
        f"{'its section was turned over' if section else 'its left and right are swapped'}, mirror it first",
    )


def _without_images(
    pair: Pair, kind: str, settings: LinearSettings, metrics: Sequence[tuple[float, Metric]], restrict: Sequence[float]
) -> tuple[str, F64 | None]:
    """The map that there is enough known for, and the one that a few landmarks settle, where images do not count."""
    if pair.known is None or look_at_images(metrics):
        return kind, None
    return pair.known.supported(kind), settled_by_landmarks(pair, kind, settings, restrict)


def _worse_by(
    level: LinearLevel, begin: F64, base: F64, at_start: Sequence[float], found: Sequence[float],
    metrics: Sequence[tuple[float, Metric]], alone: bool,
) -> list[str]:  # fmt: skip
    """The measures that hold a map worse than the start, each times the share of the positions."""
    worse = [name for name, a, b in zip(("metric", "mutual information"), found, at_start, strict=True) if a < b]
    # A large gain by one outweighs the little that the other loses with the corners of the image.
    if alone and sum((a - b) / max(abs(b), 1e-3) for a, b in zip(found, at_start, strict=True)) > 0:
        return []
    # A metric that cannot exceed 1 may have less to gain than these corners; mutual information has no such limit.
    return [] if worse == ["metric"] and is_better_where_both(level, begin, base, metrics) else worse


def _where_they_overlap(
    level: LinearLevel, found: F64, start: Start | None, metrics: Sequence[tuple[float, Metric]], notes: list[str]
) -> F64:
    """The map that was found; that of the start where it lost half of the overlap by a metric below zero, which gains
    by that: of images so unlike the metric tells nothing."""
    if start is None or level.known is not None or value(level, found, metrics) > 0:
        return found
    left, there = (level.overlap(m) * level.most_under(m) for m in (found, start.matrix))  # positions
    if left >= LEAST_KEPT * there:
        return found
    notes.append("linear stage: the metric led to where the images overlap less; the start was kept")
    return start.matrix


def _by_whole_images(
    pair: Pair, found: F64, kind: str, settings: LinearSettings, metrics: Sequence[tuple[float, Metric]], threads: int,
    callback: Callback | None, clock: float, restrict: Sequence[float], alone: bool,
) -> tuple[tuple[F64, tuple[str, ...]] | None, bool]:  # fmt: skip
    """The map between the images without their masks, where what these show has more in common under it than under what
    was found, and clearly more unless that is where the images lay, with what speaks against it, else None; and whether
    the caller asked to stop."""
    if not (pair.masked and look_at_images(metrics)):
        return None, False
    whole, heard = pair.without_masks(), None if callback is None else partial(_tell_of_more, callback)
    start = find_start(
        whole, kind, settings, threads=threads, callback=heard, clock=clock, restrict=restrict, alone=alone
    )  # fmt: skip
    if start.cancelled:
        return None, True
    result = optimise_linear(
        whole, kind, settings, metrics, start=start, threads=threads, callback=heard, clock=clock, restrict=restrict
    )  # fmt: skip
    if result.cancelled:
        return None, True
    base = np.asarray(np.linalg.solve(pair.linear, result.matrix), dtype=np.float64)
    # Few voxels tell little at the levels on which maps are found.
    size = min(max(pair.fixed_geometry.size), FINEST[pair.fixed_geometry.dimension])
    finest = LinearLevel.of_size(pair, pair.normalised(), size, settings.linear_radius, threads)
    # Metrics of windows rise with edges of unlike contrasts that are laid on each other, the more so in a small mask.
    information = [(w, MutualInformation()) for w, _ in metrics]
    least = 1.0 if np.array_equal(found, linear_starts.as_they_lie(pair)) else BETTER
    better = value(finest, base, information) > least * value(finest, found, information)
    return (base, result.doubts) if better else None, False


def _tell_of_more(callback: Callback, progress: Progress) -> bool:
    """Tell of what comes after all that was expected."""
    return bool(callback(replace(progress, fraction=1.0)))


def _levels(pair: Pair, settings: LinearSettings) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxels of the longest axis, and most evaluations, of each level.

    A plane has few voxels to go by at those of a volume, and one more costs it next to nothing; in one of few voxels
    the deformable stage begins where that would be.
    """
    sizes, iterations, more = settings.linear_size, settings.linear_iterations, settings.linear_plane_size
    if pair.fixed_geometry.dimension == 2 and more > sizes[-1] and max(pair.fixed_geometry.size) >= 2 * more:
        return (*sizes, more), (*iterations, iterations[-1])
    return sizes, iterations


def _needed(descent: LinearDescent, plain: F64, base: F64, gain: float, iterations: Sequence[int]) -> F64:
    """The map with a stretch where the metric gains by it what a change of contrast alone would not; else without."""
    levels = descent.levels
    for level in range(1, len(levels)):
        plain = descent.run(level, plain, "rigid", iterations[level])[0]
    stretched, rigid = (agreed(levels[-1], m, descent.metrics) for m in (base, plain))
    return base if stretched - rigid > gain * abs(rigid) else plain

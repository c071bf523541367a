"""Images without what changes slowly over them: bias fields of coils, uneven exposure.

Where one of two images is brighter at one side, the slopes of their intensities may be the largest thing that they
have in common: mutual information is then highest where a turn or a shift lays the slope on something else that is as
bright, and lower where the images belong. So where the search for a start leads far away, it is made once more with
images that were divided by their own mean over a wide neighbourhood; and where images that look like unlike contrasts
have clearly more in common without what changes slowly over them, they are registered without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from itk_nir.engine import linear_starts, ops
from itk_nir.engine.choice import SAME, Choice, choose_metric
from itk_nir.engine.images import Channel, Intensity, Pair
from itk_nir.engine.lattice import gaussian_matrix
from itk_nir.engine.linear_level import LinearLevel, value
from itk_nir.engine.linear_search import Start, corner_distance, find_start
from itk_nir.engine.metrics import MutualInformation
from itk_nir.engine.progress import Callback
from itk_nir.engine.settings import LinearSettings
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: The standard deviation of the neighbourhood, as a share of the longest extent of an image.
WIDTH = 1 / 8

#: Elements of the longest axis of the grid on which the mean is computed, which is smooth.
SIZE = 32

#: The least mean that is divided by, as a share of the largest.
LEAST = 0.05

#: How far a corner of the fixed image lies from where the images lie, or have their centres on each other, under a
#: start that is looked at once more: as a share of its longest extent.
FAR = 0.25

#: How many times as alike the evened images must be at the start that they lead to as at the other one. Radiographs
#: with a ramp from one side to the other are 2.0 times and more; where an object was turned, 1.1 times at most.
CLEARLY = 1.5

#: How many times as alike images that look like unlike contrasts must be without slow changes to be registered so.
#: Radiographs with ramps are 1.27 times and more. Unlike contrasts are 0.91 times at most (heads, stains, organs): the
#: outlines of what they show change slowly, too. Brains without heads reach 1.28 times, and are none the worse for it.
MORE_ALIKE = 1.25

#: The agreement in sign of windows in which slopes have a part, of images that are at least as alike without them:
#: radiographs and pictures like them have 0.94 and more, phantoms of unlike contrasts that are as alike much less.
ENOUGH = 0.9

#: Voxels of the longest axis at which images are compared, about.
COMPARED = 56

#: What is told of a start that was found so, and of images that were registered so.
NOTE = "linear stage: what changes slowly over the images led elsewhere; its start was found without that"
IN_EVEN_LIGHT = (
    "the brightness of the images changes slowly over them, which hides what they have in common: they were registered "
    "without that"
)


def start_in_even_light(
    pair: Pair, kind: str, settings: LinearSettings, *, images: bool = True, threads: int = 1,
    callback: Callback | None = None, clock: float | None = None, restrict: Sequence[float] = (), alone: bool = False,
) -> Start:  # fmt: skip
    """Find where the linear stage begins, and look for it in evened images too where that is far from the headers.

    Parameters
    ----------
    pair, kind, settings, images, threads, callback, clock, restrict, alone
        As of `itk_nir.engine.linear_search.find_start`.

    Returns
    -------
    Start
        That of the images as they are, unless that of the evened ones lies nearer to where the headers place them or
        to where their centres lie on each other, and these are clearly more alike there.
    """

    def search(of: Pair) -> Start:
        return find_start(
            of, kind, settings, images=images, threads=threads, callback=callback, clock=clock, restrict=restrict,
            alone=alone,
        )  # fmt: skip

    found = search(pair)
    if not images or found.cancelled or pair.known is not None:
        return found
    usual = [linear_starts.as_they_lie(pair)]

    def moved(start: Start) -> float:
        return min(corner_distance(pair, start.matrix, m) for m in usual)

    far = FAR * max(n * s for n, s in zip(pair.fixed_geometry.size, pair.fixed_geometry.spacing, strict=True))
    if moved(found) > far:
        usual += linear_starts.shifted(pair, *linear_starts.masses(pair))
    if moved(found) <= far:
        return found
    even = evened(pair, threads)
    again = search(even)
    if again.cancelled or moved(again) >= moved(found):
        return replace(found, cancelled=again.cancelled)
    alike = [_information(even, s.matrix, threads) for s in (found, again)]
    return replace(again, evened=True, notes=(*again.notes, NOTE)) if alike[1] > CLEARLY * alike[0] else found


def choice_in_even_light(pair: Pair, found: Choice | None, threads: int = 1) -> tuple[Choice, bool]:
    """Pick a metric for images that hide what they have in common behind slow changes.

    Parameters
    ----------
    pair : Pair
        The images as they are, with the map under which they are compared.
    found : Choice or None
        What is picked for them as they are; None where it is known that they hide something.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    choice : Choice
        `found`, unless the evened images have as much in common: one contrast where the images as they are agree in
        sign but for slopes, or what is picked for the evened ones where these have clearly more in common.
    evened : bool
        Whether they are to be registered evened, which is so in the latter case; the squared local correlation minds
        slopes little.
    """
    if found is not None and found.metric == SAME:
        return found, False
    even, hides = evened(pair, threads), True
    if found is not None:
        as_they_are, without = (_information(p, linear_starts.as_they_lie(p), threads) for p in (pair, even))
        if without < as_they_are:
            return found, False
        hides = without > MORE_ALIKE * as_they_are
    choice = choose_metric(even, threads) if found is None or hides else found
    if choice.metric != SAME:
        again = choose_metric(pair, threads, enough=ENOUGH)
        choice = again if again.metric == SAME else choice
    return choice, hides


def _information(pair: Pair, matrix: F64, threads: int) -> float:
    """The mutual information under a map before the linear one of a pair, mean over the channels."""
    level = LinearLevel.of_size(pair, pair.normalised(), COMPARED, 1, threads)
    return value(level, matrix, [(1.0, MutualInformation())] * len(pair.channels))


def evened(pair: Pair, threads: int = 1) -> Pair:
    """Divide each image by its mean over a wide neighbourhood.

    Parameters
    ----------
    pair : Pair
        The images.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    Pair
        On the same grids, with the same masks and the same map.
    """
    channels = []
    for c in pair.channels:
        fixed = _divided(c.fixed, pair.fixed_geometry, c.fixed_intensity, threads)
        moving = _divided(c.moving, pair.moving_geometry, c.moving_intensity, threads)
        measured = (
            Intensity.of(fixed, pair.fixed_weight, pair.fixed_lesion),
            Intensity.of(moving, pair.moving_weight, pair.moving_lesion),
        )
        channels.append(Channel(fixed, moving, *measured))
    return with_channels(pair, channels)


def with_channels(pair: Pair, channels: Sequence[Channel]) -> Pair:
    """Put other images in the place of those of a pair.

    Parameters
    ----------
    pair : Pair
        The images.
    channels : sequence of Channel
        As many, on the same grids.

    Returns
    -------
    Pair
    """
    first, *more = channels
    return replace(
        pair, fixed=first.fixed, moving=first.moving, fixed_intensity=first.fixed_intensity,
        moving_intensity=first.moving_intensity, more=tuple(more),
    )  # fmt: skip


def _divided(image: Tensor, geometry: Geometry, intensity: Intensity, threads: int) -> Tensor:
    """An image over its mean over a wide neighbourhood; its background stays of one value."""
    low, high = intensity.range
    counts = intensity.foreground(image).float()
    shown = (image - low).clamp(0, high - low) * counts
    extent = [n * s for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    extent += [0.0] * (3 - len(extent))
    size = [max(1, round(SIZE * e / max(extent))) for e in extent]
    coarse = interpolate(torch.stack([shown, counts])[None], size=size[::-1], mode="area")[0]
    smooth = [gaussian_matrix(n, np.arange(n, dtype=float), WIDTH * SIZE) for n in size]
    mean, weight = ops.separable(coarse.contiguous(), smooth, threads)
    mean = mean / weight.clamp(min=1e-3)
    mean = mean.clamp(min=max(LEAST * float(mean.max()), 1e-12))
    wide = interpolate(mean[None, None], size=tuple(image.shape), mode="trilinear", align_corners=False)[0, 0]
    # One value for the background: what the border is filled with is told by that.
    return torch.where(counts > 0, shown / wide, torch.zeros_like(shown))

"""Impulse noise: single voxels far outside the range of their neighbours, strewn over an image.

A detector or a transmission that fails for single voxels ("salt and pepper") leaves values that no metric can match,
and each spoils all windows that it lies in. Such voxels are told from what belongs to an image by three things: they
lie beyond all but one of their neighbours along the axes by more than a share of the image's contrast, and by many
times more than voxels of that image do; there are some, but few; and most of them stand alone, while bright vessels,
calcifications, metal, and the edges of labels go on in a neighbour. A sample of the voxels decides, so that an image
without such noise costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from itk_nir.images import background_value

F32 = NDArray[np.float32]

#: Voxels that decide, about.
SAMPLE = 60_000

#: How far beyond its neighbours an impulse lies: a share of the contrast (5th to 95th percentile of what is not
#: background), and a multiple of what nine of ten voxels stay below.
CONTRAST, USUAL = 0.3, 8.0

#: What nine of ten voxels stay below, as a share of the contrast, where there is a smooth image below the impulses.
#: Beyond, noise is all that there is, and a bright voxel may be what is shown.
SMOOTH = 0.12

#: The least and the largest share of the voxels, and how many of the sample there must be at least.
LEAST, MOST, FEWEST = 2e-4, 0.06, 8

#: The share of them that must stand alone, and in the block around a voxel that stands alone there are at most so many
#: like it: one, and so many times as many as noise puts there.
ALONE, OTHERS = 0.5, 3.0

#: Voxels that are looked at together.
_PART = 1 << 16


def impulses(array: F32) -> NDArray[np.int64]:
    """Find the voxels of impulse noise.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``, finite, C-contiguous.

    Returns
    -------
    ndarray
        ``(N,)``, where they lie in the flattened array, rising; none where there is no such noise.
    """
    axes = tuple(k for k, n in enumerate(array.shape) if n >= 3)
    if len(axes) < 2:
        return np.empty(0, np.int64)
    step = max(1, array.size // SAMPLE)
    limits = _limits(array, axes, step)
    if limits is None:
        return np.empty(0, np.int64)
    least, most = limits
    found = [at[_beyond(array, at, axes)[0] > least] for at in _inner(array, axes, 1)]
    places = np.concatenate(found)
    return places[_others(array, places, axes) <= most]


def mended(array: F32, rounds: int = 3) -> tuple[F32, int]:
    """An image with the median of their neighbours in the place of impulses.

    Parameters
    ----------
    array : ndarray
        As of `impulses`.
    rounds : int
        How often impulses are looked for: two that touch hide each other, until one of them is mended.

    Returns
    -------
    array : ndarray
        The very same without impulses.
    count : int
        How many were mended.
    """
    count = 0
    for _ in range(rounds):
        places = impulses(array)
        if not places.size:
            break
        wrong = np.zeros(array.shape, bool)
        wrong.reshape(-1)[places] = True
        array = array.copy()
        around = tuple(k for k, n in enumerate(array.shape) if n >= 3)
        values = [_median(array, wrong, some, around) for some in np.array_split(places, 1 + places.size // _PART)]
        array.reshape(-1)[places] = np.concatenate(values)
        count += int(places.size)
    return array, count


def _limits(array: F32, axes: tuple[int, ...], step: int) -> tuple[float, float] | None:
    """How far beyond its neighbours an impulse of this image lies at least, and how many others there are around it at
    most; None for an image without."""
    places = np.concatenate(list(_inner(array, axes, step)))
    far, middle = _beyond(array, places, axes)
    inside = middle != background_value(array)
    if np.count_nonzero(inside) < SAMPLE // 100:
        return None
    below, above = np.percentile(middle[inside], [5, 95])
    usual = float(np.percentile(np.maximum(far[inside], 0), 90))
    contrast = float(above) - float(below)
    if not contrast > 0 or usual > SMOOTH * contrast:
        return None
    least = max(CONTRAST * contrast, USUAL * usual)
    found = places[far > least]
    share = len(found) / len(places)
    if len(found) < FEWEST or not LEAST <= share <= MOST:
        return None
    most = 1 + OTHERS * share * len(_block(array, axes))
    return (least, most) if np.mean(_others(array, found, axes) <= most) >= ALONE else None


def _inner(array: F32, axes: tuple[int, ...], step: int) -> Iterator[NDArray[np.int64]]:
    """Where every so many-th voxel lies, of those that have neighbours on all sides; in parts."""
    for begin in range(0, array.size, _PART * step):
        at = np.arange(begin, min(begin + _PART * step, array.size), step)
        inner = np.ones(at.shape, bool)
        for stride, n in ((_stride(array, k), array.shape[k]) for k in axes):
            index = at // stride % n
            inner &= (index > 0) & (index < n - 1)
        yield at[inner]


def _stride(array: F32, axis: int) -> int:
    return int(np.prod(array.shape[axis + 1 :], dtype=np.int64))


def _beyond(array: F32, at: NDArray[np.int64], axes: tuple[int, ...]) -> tuple[F32, F32]:
    """How far voxels lie beyond all but one of their neighbours along the axes (below 0: they do not), and the middle
    of these."""
    flat = array.reshape(-1)
    highest, lowest = np.full(at.shape, -np.inf, np.float32), np.full(at.shape, np.inf, np.float32)
    high, low = highest, lowest
    for axis in axes:
        for shift in (-_stride(array, axis), _stride(array, axis)):
            near = flat[at + shift]
            high, highest = np.maximum(high, np.minimum(highest, near)), np.maximum(highest, near)
            low, lowest = np.minimum(low, np.maximum(lowest, near)), np.minimum(lowest, near)
    here = flat[at]
    return np.maximum(here - high, low - here), 0.5 * high + 0.5 * low


def _block(array: F32, axes: tuple[int, ...]) -> NDArray[np.int64]:
    """From a voxel to those around it in the flattened array, itself left out."""
    steps = np.array([0])
    for axis in axes:
        steps = (steps[:, None] + _stride(array, axis) * np.array([-1, 0, 1])).reshape(-1)
    return steps[steps != 0]


def _others(array: F32, places: NDArray[np.int64], axes: tuple[int, ...]) -> NDArray[np.int64]:
    """How many voxels around each lie as far from what is around it as half its own distance, to the same side."""
    flat, block = array.reshape(-1), _block(array, axes)
    counts = [np.empty(0, np.int64)]
    for some in np.array_split(places, 1 + places.size // _PART):
        around = flat[some[:, None] + block]
        middle = np.median(around, axis=1)
        height = flat[some] - middle
        alike = (around - middle[:, None]) * np.sign(height)[:, None] > 0.5 * np.abs(height)[:, None]
        counts.append(alike.sum(axis=1))
    return np.concatenate(counts)


def _median(array: F32, wrong: NDArray[np.bool_], places: NDArray[np.int64], axes: tuple[int, ...]) -> F32:
    """The median of the voxels around each that are not wrong; of all around it where there are none."""
    near = places[:, None] + _block(array, axes)
    values, out = array.reshape(-1)[near], wrong.reshape(-1)[near]
    out &= ~out.all(axis=1)[:, None]
    values[out] = np.inf
    values.sort(axis=1)
    count = (values.shape[1] - out.sum(axis=1))[:, None]
    ends = [np.take_along_axis(values, k, 1)[:, 0] for k in ((count - 1) // 2, count // 2)]
    return np.asarray(0.5 * ends[0] + 0.5 * ends[1], np.float32)

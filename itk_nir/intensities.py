"""What is odd about the intensities of an image: told before a registration, or kept from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.findings import Finding, warning
from itk_nir.illumination import evened
from itk_nir.images import Volume, background_value
from itk_nir.impulses import mended
from itk_nir.label_maps import is_label_map

#: The smallest range, as a share of the magnitude, that is not told.
NEARLY_CONSTANT = 1e-6
#: The share of the object at one end of the range from which on it is clipped.
CLIPPED = 0.1
#: A hot voxel lies so many times the range of the others beyond them, a piece of several so many times; there are at
#: most so many of them, in share.
HOT, VERY_HOT, FEW = 50.0, 3000.0, 1e-3
#: Voxels that are looked at for what most of them are like.
_SAMPLE = 200_000
#: Images in which nothing was found to be mended or evened: they are not looked through again.
_QUIET: WeakSet[Volume] = WeakSet()


def odd_intensities(volume: Volume) -> list[Finding]:
    """Tell what is odd about the intensities of an image.

    Parameters
    ----------
    volume : Volume
        Finite, not constant.

    Returns
    -------
    list of Finding
        Missing and hot voxels; impulse noise; uneven light; few values; a range that is small beside the values; a
        large share at one end of it.
    """
    found, array = [], volume.array
    if volume.missing is not None:
        count = int(np.count_nonzero(volume.missing))
        found.append(
            warning(
                f"{volume.name}: has {count} NaN or infinite voxels ({count / volume.missing.size:.2%})",
                "they are left out, and have the value of the background",
                voxels=count,
            )
        )
    _, hot, ratio, impulses = _cleaned(volume)
    if hot is not None:
        found.append(
            warning(
                f"{volume.name}: has {int(hot.sum())} single voxels far beyond all others (up to "
                f"{_in_units(volume, array[hot].max()):.3g})",
                "they are taken for faults of the detector and not looked at; mask them out, or mend them",
                voxels=int(hot.sum()),
            )
        )
    if ratio > 1:
        found.append(
            warning(
                f"{volume.name}: is lit unevenly: its bright background is {ratio:.2g} times as bright at one place as "
                "at another",
                "the registration sees the image divided by its illumination; what is written keeps it",
                ratio=ratio,
            )
        )
    if impulses:
        found.append(
            warning(
                f"{volume.name}: has impulse noise: {impulses} single voxels ({impulses / array.size:.2%}) far outside "
                "the range of their neighbours",
                "the registration sees the median of their neighbours there; what is written keeps them",
                voxels=impulses,
                share=impulses / array.size,
            )
        )
    low, high = (_in_units(volume, end) for end in volume.extremes)
    size = max(abs(low), abs(high))
    if high - low < NEARLY_CONSTANT * size:
        found.append(
            warning(
                f"{volume.name}: is nearly constant (from {low:.9g} to {high:.9g})",
                "its contrast may be nothing but rounding; check that it is the image that is meant",
                low=low,
                high=high,
            )
        )
    return found + _few_values(volume)


def _black(volume: Volume) -> float:
    """The value of no light, in which nothing may be negative."""
    return float(min(-volume.offset / volume.scale, volume.extremes[0]))


def _in_units(volume: Volume, value: float) -> float:
    return float(value) * volume.scale + float(volume.offset)


def _few_values(volume: Volume) -> list[Finding]:
    """Binary and clipped images."""
    array = volume.array
    low, high = volume.extremes
    some = array.reshape(-1)[:: max(1, array.size // _SAMPLE)]
    ends = int(np.count_nonzero(some == low)), int(np.count_nonzero(some == high))
    if max(ends) < 0.01 * some.size:
        return []
    if sum(ends) == some.size and ((array == low) | (array == high)).all():
        first, second = _in_units(volume, low), _in_units(volume, high)
        text = f"{volume.name}: is binary (it has the values {first:g} and {second:g})"
        return [warning(text, "only outlines can be matched; register the image that it was made of")]
    ground = background_value(array, volume.missing)
    inside = some.size - int(np.count_nonzero(some == ground))
    out: list[Finding] = []
    for value, count, end in ((low, ends[0], "lowest"), (high, ends[1], "highest")):
        share = count / max(inside, 1)
        if value != ground and share > CLIPPED and not is_label_map(array):
            out.append(
                warning(
                    f"{volume.name}: is clipped: {share:.0%} of what is not background has its {end} value "
                    f"({_in_units(volume, value):g})",
                    "what was cut off cannot be compared; give the image with its whole range",
                    share=share,
                )
            )
    return out


def hot_voxels(array: NDArray[np.float32], extremes: tuple[Any, Any] | None = None) -> NDArray[np.bool_] | None:
    """Single voxels far beyond all others: faults of a detector, of which one may set the scale of everything.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``, finite.
    extremes : tuple of float, optional
        Its least and largest value, where these are known.

    Returns
    -------
    ndarray or None
        Like `array`, bool; None where there are none, or so many that they belong to the image. Pieces of several
        voxels are taken for faults only where they are much farther beyond.
    """
    ground = background_value(array)
    flat = array.reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLE)]
    some = some[some != ground].astype(np.float64)
    if some.size < 16:
        return None
    below, middle, above = np.percentile(some, [5, 50, 95])
    spread = max(above - below, abs(middle - float(ground)))
    least, most = (array.min(), array.max()) if extremes is None else extremes
    highest, lowest = float(most) - above, below - float(least)
    if spread == 0 or max(highest, lowest) <= HOT * spread:
        return None
    hot = np.asarray((array > above + HOT * spread) | (array < below - HOT * spread))
    places = np.argwhere(hot)
    if len(places) > max(64, FEW * array.size):
        return None
    alone = sum(2 * int(np.count_nonzero(_around(hot, at))) < _around(hot, at).size for at in places)
    return hot if alone >= 0.9 * len(places) or max(highest, lowest) > VERY_HOT * spread else None


def for_registration(volume: Volume) -> Volume:
    """An image with the median of their neighbours in the place of hot voxels and of impulse noise, evenly lit.

    Parameters
    ----------
    volume : Volume
        Finite, float32.

    Returns
    -------
    Volume
        Itself where there is nothing of that.
    """
    array = _cleaned(volume)[0]
    return volume if array is volume.array else replace(volume, array=array)


def _cleaned(volume: Volume) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None, float, int]:
    """The array of `for_registration`, and what was found: hot voxels, how uneven the light is, impulses."""
    if volume in _QUIET:
        return volume.array, None, 1.0, 0
    hot = hot_voxels(volume.array, volume.extremes)
    without, impulses = mended(without_hot_voxels(volume.array, hot))
    array, ratio = evened(without, _black(volume))
    if array is volume.array:
        _QUIET.add(volume)
    return array, hot, ratio, impulses


def without_hot_voxels(array: NDArray[np.float32], hot: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """An image with the median of their neighbours in the place of hot voxels.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``, finite.
    hot : ndarray or None
        Of `hot_voxels`.

    Returns
    -------
    ndarray
        `array` itself where there are none.
    """
    if hot is None:
        return array
    out = array.copy()
    for at in np.argwhere(hot):
        reach = 1
        while not (near := _around(array, at, reach)[~_around(hot, at, reach)]).size:
            reach += 1
        out[tuple(at)] = np.median(near)
    return out


def _around(array: NDArray[Any], at: NDArray[np.int64], reach: int = 1) -> NDArray[Any]:
    """The block around a voxel that goes `reach` voxels either way."""
    return array[tuple(slice(max(int(k) - reach, 0), int(k) + reach + 1) for k in at)]


def without_missing_voxels(mask: Volume | None, image: Volume, more: Sequence[Volume] = ()) -> Volume | None:
    """A mask without the voxels where an image, or one of its further channels, has no value.

    Parameters
    ----------
    mask : Volume or None
        On the image's grid, zeros and ones; None where all of it counts.
    image : Volume
        The image.
    more : sequence of Volume
        Further channels on its grid.

    Returns
    -------
    Volume or None
        `mask` itself where no value is missing.

    Raises
    ------
    InputError
        Nothing is left.
    """
    lost = [v.missing for v in (image, *more) if v.missing is not None]
    if not lost:
        return mask
    inside = ~np.logical_or.reduce(lost)
    if mask is not None:
        inside &= mask.array > 0.5
    if not inside.any():
        where = "in any voxel" if mask is None else "inside its mask"
        raise InputError(f"{image.name}: has no value {where}, all are NaN or infinite; give another image or mask")
    name = f"{image.name}, where it has values" if mask is None else mask.name
    return replace(mask or image, array=inside.astype(np.float32), name=name, missing=None)


def check_contrast(image: Volume, mask: Volume | None) -> None:
    """Refuse an image that is constant where it counts.

    Parameters
    ----------
    image : Volume
        The image.
    mask : Volume or None
        On its grid, zeros and ones.

    Raises
    ------
    InputError
        One value is all that there is inside the mask.
    """
    if mask is None:
        return
    values = image.array[mask.array > 0.5]
    if values.size and values.min() == values.max():
        raise InputError(
            f"{image.name}: is constant inside {mask.name} (every voxel is {_in_units(image, values[0]):g}); give a "
            "mask that holds some contrast"
        )

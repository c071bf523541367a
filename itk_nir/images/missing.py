"""Voxels without a value: NaN and infinity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, OptionError

if TYPE_CHECKING:
    from itk_nir.images.volume import Volume

#: The spread of the border, as a share of the image's range, that is noise around one value.
_NOISE = 0.1
#: What may be made of NaN and infinite voxels.
NAN = ("error", "mask")


def checked_nan(nan: Any) -> str:
    """What to make of NaN and infinite voxels.

    Parameters
    ----------
    nan : str
        One of `NAN`.

    Returns
    -------
    str

    Raises
    ------
    OptionError
        Anything else.
    """
    if not isinstance(nan, str) or nan not in NAN:
        raise OptionError(f"nan is one of {', '.join(map(repr, NAN))}, got {nan!r}")
    return nan


def where_finite(array: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the values of an array are neither NaN nor infinite.

    Parameters
    ----------
    array : ndarray
        Floating-point values of any shape.

    Returns
    -------
    ndarray or None
        Like `array`, bool; None where all of them are.
    """
    # A sum is finite only if every term is; sums of float32 are taken in float64 and cannot overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float64)
    if np.isfinite(total) or (finite := np.isfinite(array)).all():
        return None
    return np.asarray(finite)


def without_missing(volume: Volume, nan: str = "error") -> Volume:
    """Refuse NaN and infinite voxels, or note where they are and give them the background's value.

    Parameters
    ----------
    volume : Volume
        As its reader gives it; several values a pixel are the last axis.
    nan : {"error", "mask"}
        Whether such voxels are an error, or missing: a pixel is where any of its values is.

    Returns
    -------
    Volume
        Finite; itself where it was.

    Raises
    ------
    InputError
        There are such voxels (the message has their number), or nothing else.
    """
    array = volume.array
    if array.dtype.kind != "f":
        return volume
    finite = where_finite(array)
    if finite is None:
        return volume
    several = array.ndim > volume.dimension
    missing: NDArray[np.bool_] = np.logical_not(finite.all(-1) if several else finite)
    count = int(np.count_nonzero(missing))
    if count == missing.size:
        raise InputError(f"{volume.name}: has nothing but NaN or infinite voxels ({count}); give another image")
    if nan == "error":
        raise InputError(
            f"{volume.name}: has {count} NaN or infinite voxels; replace them, for example by the background value, or "
            "say nan='mask' (--nan mask) to leave them out"
        )
    array = array.copy()
    parts = np.moveaxis(array, -1, 0) if several else array[None]
    for part in parts:
        part[missing] = background_value(part, missing)
    return replace(volume, array=array, missing=missing)


def outside_missing(volume: Volume) -> Volume:
    """A mask or label map that is 0 where it had no value.

    Parameters
    ----------
    volume : Volume
        Whose missing voxels have the value of its background.

    Returns
    -------
    Volume
        Itself where no value is missing.
    """
    if volume.missing is None:
        return volume
    return replace(volume, array=np.where(volume.missing, volume.array.dtype.type(0), volume.array), missing=None)


def background_value(array: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> Any:
    """The value of what surrounds the object in an image.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``, finite but where `missing` is.
    missing : ndarray or None
        Like `array`, bool: voxels without a value.

    Returns
    -------
    number
        The value that nine tenths of the voxels at the border share, or their median where they are nearly alike; where
        neither is so, the least of all.
    """
    faces, known = [], []
    for axis, n in enumerate(array.shape):
        for end in {0, n - 1} if n > 1 else ():
            faces.append(array.take(end, axis).ravel())
            known.append(np.ones(faces[-1].size, bool) if missing is None else ~missing.take(end, axis).ravel())
    border = np.concatenate(faces)[np.concatenate(known)] if faces else array.ravel()[:0]
    if border.size:
        places = [int(share * (border.size - 1)) for share in (0.05, 0.5, 0.95)]
        low, value, high = np.partition(border, places)[places]
        if np.count_nonzero(border == value) > 0.9 * border.size:
            return value
        known_values = array if missing is None else array[~missing]
        least, most = known_values.min(), known_values.max()
        # Noise around one value, as in air or on a slide.
        if float(high) - float(low) <= _NOISE * (float(most) - float(least)):
            return value
        return least
    return array.min() if missing is None else array[~missing].min()

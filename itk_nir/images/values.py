"""Pixel values as float32, which everything is computed in, and back in the type that came in.

float32 holds 24 bits. Where the values of an image need more (a small range far from zero, 64-bit integers) or are too
large or too small for it, the image is held shifted and scaled: ``value = scale * array + offset``. The scale is a
power of two, so that nothing but the place of the point changes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import OptionError

if TYPE_CHECKING:
    from itk_nir.images.volume import Volume

#: Magnitudes between which float32 and the sums of it are safe: an image that lies between them is not scaled.
_SAFE = (1e-10, 1e15)
#: The smallest range, as a share of the magnitude, that an image may have without being shifted.
_RANGE = 2.0**-10
#: Values beyond so many times what nearly all others stay below are cut off there.
_FAR = 1e12
#: Types that float32 holds without a look at the values.
_HELD = ("b1", "u1", "i1", "u2", "i2", "f2")


def as_float32(array: NDArray[Any]) -> tuple[NDArray[np.float32], float, float | int]:
    """Values as float32, shifted and scaled where float32 would not hold them.

    Parameters
    ----------
    array : ndarray
        Finite real numbers of any type and shape.

    Returns
    -------
    ndarray of float32
        C-contiguous.
    float
        The scale, a power of two; 1 for ordinary images.
    float or int
        The offset; 0 for ordinary images, a whole number for integers.

    Examples
    --------
    >>> as_float32(np.array([0, 100], np.int16))
    (array([  0., 100.], dtype=float32), 1.0, 0)
    >>> as_float32(np.array([2**60, 2**60 + 7]))
    (array([0., 7.], dtype=float32), 1.0, 1152921504606846976)
    """
    kind = array.dtype.kind + str(array.dtype.itemsize)
    if kind in _HELD or not array.size:
        return np.ascontiguousarray(array, np.float32), 1.0, 0
    low, high = array.min(), array.max()
    offset: float | int = 0
    # Halves, because the whole range of a float64 image may be no float64.
    half, size = float(high) / 2 - float(low) / 2, max(abs(float(low)), abs(float(high)))
    if array.dtype.kind in "iu":
        half = (int(high) - int(low)) / 2
        if size >= 2**24 and 2 * half < _RANGE * size:
            offset = int(low)
            # Modulo 2**n, so that no difference overflows.
            unsigned = array.view(f"u{array.dtype.itemsize}")
            array, size = unsigned - low.astype(unsigned.dtype), 2 * half
    elif kind == "f8" and 0 < 2 * half < _RANGE * size:
        offset = float(low)
        array, size = array - offset, 2 * half
    if size == 0 or _SAFE[0] <= size <= _SAFE[1]:
        return np.ascontiguousarray(array, np.float32), 1.0, offset
    most = _most(array)
    if size > _FAR * most > 0:
        # A few values far beyond all others: they are cut off, and the others keep their place.
        size = most
        array = np.clip(array.astype(np.float64), -_FAR * size, _FAR * size)
        if _SAFE[0] <= size <= _SAFE[1]:
            return np.ascontiguousarray(array, np.float32), 1.0, offset
    exponent = math.frexp(size)[1] - 1
    scaled = np.ldexp(array.astype(np.float64), -exponent)
    return np.ascontiguousarray(scaled, np.float32), math.ldexp(1.0, exponent), offset


def _most(array: NDArray[Any]) -> float:
    """The magnitude that nearly all values of an image that are not 0 stay below."""
    some = array.reshape(-1)[:: max(1, array.size // 100_000)]
    some = np.abs(some[some != 0].astype(np.float64))
    return float(np.percentile(some, 90)) if some.size else 0.0


def in_float32(volume: Volume) -> Volume:
    """An image with its array in float32, and the scale and offset that it has then.

    Parameters
    ----------
    volume : Volume
        Finite.

    Returns
    -------
    Volume
    """
    array, scale, offset = as_float32(volume.array)
    if scale == 1 and offset == 0:
        return replace(volume, array=array)
    return replace(volume, array=array, scale=scale, offset=offset)


def in_units(array: NDArray[Any], scale: float, offset: float | int) -> NDArray[Any]:
    """The values that `as_float32` was given, or what was computed from its result.

    Parameters
    ----------
    array : ndarray
        Shifted and scaled.
    scale, offset : float
        As `as_float32` gave them.

    Returns
    -------
    ndarray
        `array` itself for scale 1 and offset 0, float64 otherwise.
    """
    if scale == 1 and offset == 0:
        return array
    return np.asarray(array.astype(np.float64) * scale + float(offset))


def as_pixels(array: NDArray[Any], dtype: np.dtype[Any], scale: float = 1.0, offset: float | int = 0) -> NDArray[Any]:
    """Computed values as pixels: rounded and clipped to the range of integer types, as ITK does.

    Parameters
    ----------
    array : ndarray
        Shifted and scaled.
    dtype : numpy.dtype
        Type of the pixels.
    scale, offset : float
        As of `as_float32`.

    Returns
    -------
    ndarray
        Of type `dtype`.

    Examples
    --------
    >>> as_pixels(np.array([-3.0, 12.6, 300.0], np.float32), np.dtype(np.uint8)).tolist()
    [0, 13, 255]
    """
    if array.dtype == dtype and scale == 1 and offset == 0:
        return array
    if dtype.kind == "b":
        return np.asarray(in_units(array, scale, offset) >= 0.5)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # a wider type was asked to become a narrower one
            return in_units(array, scale, offset).astype(dtype)
    ends = np.iinfo(dtype)
    if isinstance(offset, int) and offset:
        # The difference is small and exact; the sum may need all 64 bits.
        steps = np.rint(array.astype(np.float64) * scale)
        steps = np.clip(steps, float(ends.min - offset), float(ends.max - offset)).astype(np.int64)
        unsigned = np.dtype(f"u{dtype.itemsize}")
        return np.asarray((steps.astype(unsigned) + np.array(offset % 2 ** (8 * dtype.itemsize), unsigned)).view(dtype))
    values = np.rint(in_units(array, scale, offset))
    # The largest 64-bit integers are no float64: those beyond are set by themselves.
    top = values >= float(ends.max)
    out = np.where(top, 0, np.clip(values, float(ends.min), float(ends.max))).astype(dtype)
    out[top] = ends.max
    return np.asarray(out)


def checked_fill(fill: Any, dtype: np.dtype[Any], name: str = "fill") -> float | int:
    """A fill value that pixels of a type can hold.

    Parameters
    ----------
    fill : float
        The value.
    dtype : numpy.dtype
        Type of the pixels.
    name : str
        What the caller calls the value.

    Returns
    -------
    float or int

    Raises
    ------
    OptionError
        No number, or one that such pixels cannot hold.
    """
    try:
        if isinstance(fill, (bool, np.bool_)):
            raise TypeError
        value = float(fill)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"{name} is a number, got {fill!r}") from None
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        if math.isfinite(value) and abs(value) > limit:
            raise OptionError(f"{name}={value:g}: pixels of type {dtype} hold numbers up to {limit:g}; give another")
        return value
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if not math.isfinite(value) or value != math.floor(value) or not low <= int(value) <= high:
        raise OptionError(
            f"{name}={fill}: pixels of type {dtype} hold whole numbers from {low} to {high}; give one of them, or ask "
            "for another pixel type"
        )
    return int(fill) if isinstance(fill, (int, np.integer)) else int(value)


#: What `pixel_type` may be, by the names of NumPy, ITK and ANTs.
PIXEL_TYPES = {
    name: np.dtype(kind)
    for kind, names in {
        "u1": ("uint8", "uchar"), "i1": ("int8", "char"), "u2": ("uint16", "ushort"), "i2": ("int16", "short"),
        "u4": ("uint32", "uint"), "i4": ("int32", "int"), "u8": ("uint64",), "i8": ("int64",),
        "f4": ("float32", "float"), "f8": ("float64", "double"),
    }.items()
    for name in names
}  # fmt: skip


def pixel_type_named(given: Any) -> np.dtype[Any]:
    """The type of pixels that a caller asks for.

    Parameters
    ----------
    given : str or dtype
        One of `PIXEL_TYPES`, or a type of NumPy's that is among them.

    Returns
    -------
    numpy.dtype

    Raises
    ------
    OptionError
        Anything else.
    """
    if isinstance(given, str) and given in PIXEL_TYPES:
        return PIXEL_TYPES[given]
    try:
        dtype = None if given is None or isinstance(given, str) else np.dtype(given)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in PIXEL_TYPES.values():
        raise OptionError(f"pixel_type is one of {', '.join(PIXEL_TYPES)}, got {given!r}")
    return dtype

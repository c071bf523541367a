"""Frames of one value around a picture: what a viewer, a scanner or `numpy.pad` put there and nothing was seen in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itk_nir.findings import Finding, warning
from itk_nir.geometry import Geometry
from itk_nir.images import Volume

#: A block of an array, a slice for each of its axes.
Part: TypeAlias = tuple[slice, ...]

#: The share of the outermost plane of a picture that differs from the frame beside it. A round object that was cut
#: through fills pi / 4 of the box around it; stripped brains, heads, hands and sections fill at most 0.63 at a border
#: of it, and pictures that were padded 0.94 and more.
REACHES = 0.9

#: Planes that a frame has at least at a border: a single one is what resampling leaves there.
FEWEST_PLANES = 2

#: The outermost plane of a picture has more values than these: a box on a background, evenly bright, is no picture.
FEW_VALUES = 4

#: Voxels that a picture has at least along each axis.
_SMALLEST = 4


def picture(channels: Sequence[Volume]) -> Part | None:
    """The part of an image that is no frame of one value.

    At each border, the frame is what lies outside of the outermost plane with more than one value, where nearly all of
    that plane differs from it: the picture reaches up to it. The empty planes around an object on a background are no
    frame, since the object ends in a small face.

    Parameters
    ----------
    channels : sequence of Volume
        The channels of one image, on one grid.

    Returns
    -------
    tuple of slice or None
        Along the axes of the array, what is framed in all channels left out; None where there is no such frame.
    """
    borders = np.min([_frame(volume.array) for volume in channels], axis=0)
    if not borders.any():
        return None
    array = channels[0].array
    part = tuple(slice(int(a), n - int(b)) for (a, b), n in zip(borders, array.shape, strict=True))
    small = min(p.stop - p.start for p in part) < _SMALLEST
    return None if small or any(v.array[part].min() == v.array[part].max() for v in channels) else part


def cropped(volume: Volume, part: Part | None) -> Volume:
    """A part of an image, on its part of the grid.

    Parameters
    ----------
    volume : Volume
        The image.
    part : tuple of slice or None
        Of `picture`.

    Returns
    -------
    Volume
        `volume` itself for None.
    """
    if part is None:
        return volume
    missing = None if volume.missing is None else volume.missing[part]
    array = np.ascontiguousarray(volume.array[part])
    return replace(volume, array=array, geometry=grid_of(volume.geometry, part), missing=missing)


def grid_of(geometry: Geometry, part: Part) -> Geometry:
    """The grid of a part of an image.

    Parameters
    ----------
    geometry : Geometry
        The grid of the image.
    part : tuple of slice
        Along the axes of its array.

    Returns
    -------
    Geometry
    """
    return geometry.crop([p.start for p in part[::-1]], [p.stop - p.start for p in part[::-1]])


def usable(part: Part | None, mask: Volume | None, lesion: Volume | None, regions: Sequence[Volume]) -> Part | None:
    """The part of an image that holds a picture, where what was drawn on the image lets the frame be left out.

    Parameters
    ----------
    part : tuple of slice or None
        Of `picture`.
    mask, lesion : Volume or None
        On the grid of the image: something of the mask outside the lesion must be left in the picture.
    regions : sequence of Volume
        Label maps on the same grid, whose regions must lie in the picture: what is kept of them is kept all over.

    Returns
    -------
    tuple of slice or None
        `part`, or None.
    """
    if part is None or (mask is None and lesion is None and not regions):
        return part
    counts = np.ones([p.stop - p.start for p in part], bool) if mask is None else mask.array[part] > 0.5
    if lesion is not None:
        counts = counts & (lesion.array[part] < 0.5)
    whole = all(np.count_nonzero(r.array[part]) == np.count_nonzero(r.array) for r in regions)
    return part if whole and counts.any() else None


def on_frame(image: Volume, part: Part | None) -> list[Finding]:
    """Tell of a frame.

    Parameters
    ----------
    image : Volume
        The image.
    part : tuple of slice or None
        What of it is no frame.

    Returns
    -------
    list of Finding
        Nothing without a frame.
    """
    if part is None:
        return []
    wide = max(max(p.start, n - p.stop) for p, n in zip(part, image.array.shape, strict=True))
    return [
        warning(
            f"{image.name}: has a frame of one value around its picture, up to {wide} voxels wide",
            "the registration leaves it out; what is written keeps it",
            voxels=wide,
        )
    ]


def _frame(array: NDArray[Any]) -> NDArray[np.int64]:
    """``(d, 2)``: how many planes the frame has before and behind the picture along each axis."""
    empty = [(_constant(array, axis, 1), _constant(array, axis, -1)) for axis in range(array.ndim)]
    found = np.zeros((array.ndim, 2), np.int64)
    # Where all of it has one value there is no picture.
    box = tuple(slice(a, max(n - b, a)) for (a, b), n in zip(empty, array.shape, strict=True))
    inside = array[box]
    if not inside.size:
        return found
    for axis, both in enumerate(empty):
        for end, planes in enumerate(both):
            if planes >= FEWEST_PLANES:
                value, plane = array.take(-end, axis).flat[0], inside.take(-end, axis)
                found[axis, end] = planes * (np.mean(plane != value) >= REACHES and len(np.unique(plane)) > FEW_VALUES)
    return found


def _constant(array: NDArray[Any], axis: int, step: int) -> int:
    """How many of the outermost planes across an axis have the same one value."""
    planes = np.moveaxis(array, axis, 0)[::step]
    value = planes[0].flat[0]
    for number, plane in enumerate(planes):
        if not (plane == value).all():
            return number
    return len(planes)

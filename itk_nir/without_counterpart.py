"""What an image shows and the other one cannot: holes of masks, and what lies beyond a cut through the object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from itk_nir.checks import beyond_cuts, cut_by_borders, holes
from itk_nir.engine.images import as_volume, background
from itk_nir.images import Volume
from itk_nir.padding import Part, cropped


def with_holes(mask: Volume | None, lesion: Volume | None) -> Volume | None:
    """The lesion, and what the mask encloses but leaves out: "all but the lesion" is how masks of lesions are drawn.

    Parameters
    ----------
    mask, lesion : Volume or None
        On one grid.

    Returns
    -------
    Volume or None
    """
    if mask is None:
        return lesion
    found = holes(mask.array)
    if not found.any():
        return lesion
    both = found if lesion is None else found | (lesion.array > 0.5)
    return replace(mask, array=both.astype(np.float32))


def with_cuts(image: Volume, lesion: Volume | None, part: Part | None) -> tuple[Volume | None, list[str]]:
    """The lesion, and what lies beyond a plane in which the object of an image was cut off; what there is to tell.

    Parameters
    ----------
    image : Volume
        The image.
    lesion : Volume or None
        On its grid.
    part : tuple of slice or None
        What of the image is no frame, see `itk_nir.padding.picture`.

    Returns
    -------
    Volume or None
        On the grid of the image.
    list of str
    """
    array = cropped(image, part).array
    value = background(as_volume(torch.from_numpy(array)))
    if value is None:
        return lesion, []
    there, axes = beyond_cuts(array, value)
    if not axes:
        return lesion, []
    beyond = np.zeros(image.array.shape, bool)
    beyond[... if part is None else part] = there
    both = beyond if lesion is None else beyond | (lesion.array > 0.5)
    return replace(image, array=both.astype(np.float32)), [_cut_off(image, axes) + "; what lies beyond was left out"]


def told_cut_by_borders(fixed: Volume, moving: Volume) -> list[str]:
    """What there is to tell of an image whose border cuts through what the other one shows whole.

    Parameters
    ----------
    fixed, moving : Volume
        The two images, without frames.

    Returns
    -------
    list of str
    """
    found = zip((fixed, moving), cut_by_borders(fixed.array, moving.array), strict=True)
    return [_cut_off(image, axes) + " by its border" for image, axes in found if axes]


def _cut_off(image: Volume, axes: list[str]) -> str:
    return f"the images share only part of what they show: {image.name} is cut off across {' and '.join(axes)}"

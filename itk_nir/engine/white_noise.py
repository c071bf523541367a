"""The white noise of an image: by the differences between neighbours, of which noise has much and anatomy little.

J. Immerkær, *Fast noise variance estimation*, Computer Vision and Image Understanding 64(2), 1996, here in two or three
dimensions, and with the median in place of the mean, which edges do not move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from itk_nir.engine.lattice import Banded

#: A window whose variance is at most so many times that of its noise shows nothing: it is flat. From 1.4 to 3, phantoms
#: of noise of 3 to 9 % end alike.
FLAT = 2.0

#: Share of the windows above which their noise makes them flat: surroundings full of it. At the finest levels, 15 % at
#: most of clean images (mice, of which texture looks like noise), 38 % and more of phantoms in noisy air.
MANY_FLAT = 0.2

#: Triples of planes (in 2D: of rows) that are looked at, about.
TRIPLES = {2: 512, 3: 32}

#: Axes that have fewer voxels tell nothing.
LEAST_SIZE = 8

#: The standard deviation of a normal distribution over the median of its absolute values.
NORMAL = 1.4826


def noise_deviation(image: Tensor, weight: Tensor | None = None) -> float:
    """The standard deviation of the white noise of an image.

    Second differences are taken along every axis, one after the other: what is linear along any one of them, as an edge
    along an axis or a slope is, leaves nothing. Voxels among values that are all the same, as in a background of
    zeros, do not count.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)``; a 2D image has one plane.
    weight : Tensor or None
        ``(Z, Y, X)``, what counts above 0.5; None for everything.

    Returns
    -------
    float
        In the image's unit.
    """
    axes = [axis for axis in range(3) if image.shape[axis] >= LEAST_SIZE]
    if not axes:
        return 0.0
    rest, counts = image, None if weight is None else weight > 0.5
    for axis in axes:
        # Not every triple along the first of them: some say enough.
        step = max(1, image.shape[axis] // TRIPLES.get(len(axes), image.shape[axis])) if axis == axes[0] else 1
        rest = rest.unfold(axis, 3, step).double().diff(n=2, dim=-1)[..., 0]
        counts = None if counts is None else counts.unfold(axis, 3, step).all(-1)
    sizes = (rest if counts is None else rest[counts]).abs().reshape(-1)
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 0.0
    return NORMAL * float(sizes.median()) / math.sqrt(6.0) ** len(axes)  # (1, -2, 1) has a norm of the root of 6


def variance_left(matrices: Sequence[Banded]) -> float:
    """What smoothing leaves of the variance of white noise.

    Parameters
    ----------
    matrices : sequence of Banded
        By which an image is smoothed, one an axis.

    Returns
    -------
    float
        0 to 1.
    """
    return float(np.prod([np.square(m.weights).sum(1).mean() for m in matrices]))


def flat_below(variances: Tensor, noise: float, least: float) -> float:
    """The variance up to which windows show nothing: where many hold nothing but noise, it is that of their noise.

    Windows of noise have next to nothing in common, whatever the map: where most of an image is noise, their mean would
    hide what the others show. Where they are few, nothing depends on them, and texture may look like noise.

    Parameters
    ----------
    variances : Tensor
        Of the windows.
    noise : float
        The variance of the noise in them.
    least : float
        The variance up to which windows without noise show nothing.

    Returns
    -------
    float
        At least `least`.
    """
    limit = FLAT * noise
    if limit <= least:
        return least
    shown = variances > least
    flat = shown & (variances <= limit)
    return limit if float(flat.sum()) > MANY_FLAT * float(shown.sum()) else least

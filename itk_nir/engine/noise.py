"""How noisy images are: by the differences between neighbours, of which noise has much and anatomy little.

J. Immerkær, *Fast noise variance estimation*, Computer Vision and Image Understanding 64(2), 1996, here in two or three
dimensions, and with the median in place of the mean, which edges do not move.
"""

from __future__ import annotations

import math

from torch import Tensor

from itk_nir.engine.images import Intensity, Pair

#: The noise of an image of 2 or 3 dimensions, as a share of its range, from which it is noisy: windows of the finest
#: level then have less in common than what counts as evidence. Those of a plane hold fewer voxels.
NOISY = {2: 0.035, 3: 0.08}

#: Triples of planes (in 2D: of rows) that are looked at, about.
TRIPLES = {2: 512, 3: 32}

#: Axes that have fewer voxels tell nothing.
LEAST_SIZE = 8

#: The standard deviation of a normal distribution over the median of its absolute values.
NORMAL = 1.4826


def noise_share(pair: Pair) -> float:
    """The standard deviation of the white noise of an image over its range: that of the noisiest of a pair.

    Parameters
    ----------
    pair : Pair
        The images of all channels; what their masks and lesions leave out does not count.

    Returns
    -------
    float
        0 and more.
    """
    sides = [(c.fixed, c.fixed_intensity, pair.fixed_counts) for c in pair.channels]
    sides += [(c.moving, c.moving_intensity, pair.moving_counts) for c in pair.channels]
    return max(_share(*side) for side in sides)


def is_noisy(pair: Pair) -> bool:
    """Whether the noise of an image of a pair hides what small windows of both share (`NOISY`).

    Parameters
    ----------
    pair : Pair
        The images of all channels.

    Returns
    -------
    bool
    """
    return noise_share(pair) > NOISY[pair.fixed_geometry.dimension]


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


def _share(image: Tensor, intensity: Intensity, weight: Tensor | None) -> float:
    low, high = intensity.range
    return noise_deviation(image, weight) / (high - low) if high > low else 0.0

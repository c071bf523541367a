"""How noisy images are: by the differences between neighbours, of which noise has much and anatomy little.

J. Immerkær, *Fast noise variance estimation*, Computer Vision and Image Understanding 64(2), 1996, here in two or three
dimensions, and with the median in place of the mean, which edges do not move.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itk_nir.engine.images import Channel, Intensity

#: Triples of planes (in 2D: of rows) that are looked at, about.
TRIPLES = {2: 512, 3: 32}

#: Axes that have fewer voxels tell nothing.
LEAST_SIZE = 8

#: The standard deviation of a normal distribution over the median of its absolute values.
NORMAL = 1.4826


def noise_share(channel: Channel) -> float:
    """The standard deviation of the white noise of an image over its range; that of the noisier of two images.

    Parameters
    ----------
    channel : Channel
        The two.

    Returns
    -------
    float
        0 and more; 0 where more than a half of what is not flat is free of noise.
    """
    return max(_share(channel.fixed, channel.fixed_intensity), _share(channel.moving, channel.moving_intensity))


def noise_deviation(image: Tensor) -> float:
    """The standard deviation of the white noise of an image.

    Second differences are taken along every axis, one after the other: what is linear along any one of them, as an edge
    along an axis or a slope is, leaves nothing. Voxels among values that are all the same, as in a background of
    zeros, do not count.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)``; a 2D image has one plane.

    Returns
    -------
    float
        In the image's unit.
    """
    axes = [axis for axis in range(3) if image.shape[axis] >= LEAST_SIZE]
    if not axes:
        return 0.0
    first, *others = axes
    n = image.shape[first]
    step = max(1, n // TRIPLES.get(len(axes), n))
    middle = torch.arange(1, n - 1, step, device=image.device)
    below, here, above = (image.index_select(first, middle + k).double() for k in (-1, 0, 1))
    rest = below - 2 * here + above
    for axis in others:
        m = rest.shape[axis]
        rest = rest.narrow(axis, 0, m - 2) - 2 * rest.narrow(axis, 1, m - 2) + rest.narrow(axis, 2, m - 2)
    sizes = rest.abs_().reshape(-1)
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 0.0
    return NORMAL * float(sizes.median()) / math.sqrt(6.0) ** len(axes)  # (1, -2, 1) has a norm of the root of 6


def _share(image: Tensor, intensity: Intensity) -> float:
    low, high = intensity.range
    return noise_deviation(image) / (high - low) if high > low else 0.0

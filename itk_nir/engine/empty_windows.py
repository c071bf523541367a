"""Windows that hold nothing but white noise, as those of noisy air around an object do.

They agree in nothing, whatever the map, as those of a background of one value do, which do not count. Where most of the
windows of an image are such, what the others show is lost in their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import Intensity, Pair
from itk_nir.engine.inside import objects_of
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, smoothing
from itk_nir.engine.noise import noise_deviation
from itk_nir.engine.ops.box_sums import box_sum
from itk_nir.geometry import Geometry

#: The noise of an image, as a share of its range, from which its empty windows are looked for. Phantoms with noise of
#: 1.4 % have 2 % at most by the measure, and need nothing; those that were doubted for their air have 4 % and more.
LEAST_NOISE = 0.03

#: A window whose variance is at most so many times that of its noise shows nothing. From 1.4 to 3, phantoms in
#: air with noise of 9 and 14 % end alike.
FLAT = 2.0

#: The noise of an image, as a share of its range, from which its air is no background of one value to histograms; and
#: how many standard deviations of it above the middle of the air values begin to tell. With 1.5 to 3, contrasts of one
#: person in air with noise of 2 to 10 % have the NMI that they have without, within 4 %; as they are, 30 % less.
AIR_NOISE, ABOVE_AIR = 0.01, 2.0

#: Share of the windows of which more must be empty: where they are few, nothing depends on them; and of which more must
#: show something: an image of noise alone is looked at as it is.
MANY, LEAST_LEFT = 0.2, 0.02


def empty(means: Tensor, variances: Tensor, shown: Tensor, noise: Callable[[], float]) -> Tensor:
    """Which windows of an image lie in its background and hold nothing but noise, if many do.

    Parameters
    ----------
    means, variances : Tensor
        ``(z, y, x)``, of the window around each voxel of an image.
    shown : Tensor
        Bool, which windows count without regard to noise.
    noise : callable
        Gives the variance of the noise in them; asked only where there is a background that varies.

    Returns
    -------
    Tensor
        ``(z, y, x)`` bool.
    """
    none, number = torch.zeros_like(shown), int(shown.sum())
    around = shown & (objects_of(means) < 0.5)
    if int(around.sum()) <= MANY * number:
        return none
    flat = variances <= FLAT * noise()
    found = around & flat
    if int(found.sum()) <= MANY * number or int((shown & ~flat).sum()) <= LEAST_LEFT * number:
        return none
    return found


def level_noise(
    pair: Pair, channel: int, grids: LevelGrids, sigma: float, *, moving: bool = False, least: float = LEAST_NOISE
) -> float:
    """The variance of the white noise of a normalised image after it was smoothed for a level.

    Parameters
    ----------
    pair : Pair
        The images.
    channel : int
        Which of them.
    grids : LevelGrids
        The voxels of the level.
    sigma : float
        Of the Gaussian, in voxels of the level.
    moving : bool
        Of the moving image.
    least : float
        The noise that an image must have, as a share of its range.

    Returns
    -------
    float
        0 for an image with less noise.
    """
    c = pair.channels[channel]
    if moving:
        noise = _variance(c.moving, c.moving_intensity, pair.moving_counts, least)
        return noise * _left(pair.moving_geometry, grids.moving, grids.moving_factors, sigma) if noise else 0.0
    noise = _variance(c.fixed, c.fixed_intensity, pair.fixed_counts, least)
    return noise * _left(pair.fixed_geometry, grids.fixed, grids.factors, sigma) if noise else 0.0


def range_above_air(
    pair: Pair, channel: int, grids: LevelGrids, sigma: float, image: Tensor, *, moving: bool = False
) -> tuple[float, float]:
    """The range of a normalised image for histograms, from above the noise of dark air on.

    What lies below it is counted in the outermost bin, as a background of one value is. Spread over several bins, the
    noise of the air is nothing that images could have in common, but adds to the entropies that mutual information is
    divided by.

    Parameters
    ----------
    pair, channel, grids, sigma, moving
        See `level_noise`.
    image : Tensor
        ``(z, y, x)``, the image at the level.

    Returns
    -------
    tuple of float
        As it is for an image with a background of one value, or hardly any noise, or bright air.
    """
    c = pair.channels[channel]
    intensity = c.moving_intensity if moving else c.fixed_intensity
    low, high = intensity.normalised_range
    around = image[objects_of(image) < 0.5] if intensity.background is None else image[:0]
    if not around.numel():
        return low, high
    noise = level_noise(pair, channel, grids, sigma, moving=moving, least=AIR_NOISE)
    above = float(around.median()) + ABOVE_AIR * math.sqrt(noise)
    return (above, high) if noise and low < above < (low + high) / 2 else (low, high)


def telling(pair: Pair, grids: LevelGrids, channels: LevelChannels, sigma: float, least: float) -> Tensor | None:
    """Where the windows of the fixed image hold more than noise, in any channel.

    Parameters
    ----------
    pair : Pair
        The images.
    grids : LevelGrids
        The voxels of a level.
    channels : LevelChannels
        The images there.
    sigma : float
        Of the Gaussian that they were smoothed by, in voxels of the level.
    least : float
        Variance up to which windows without noise show nothing.

    Returns
    -------
    Tensor or None
        ``(z, y, x)``, 0 or 1; None for everywhere.
    """
    nothing: Tensor | None = None
    inside = None if pair.fixed_counts is None else grids.fixed_mask(pair.fixed_counts) > 0.5
    for k, images in enumerate(channels.images):
        ones, f = torch.ones_like(images.fixed), images.fixed
        count, total, square = (box_sum(x, images.radius) for x in (ones, f, f.square()))
        means = total.div_(count)
        variances = square.div_(count).sub_(means.square())
        shown = variances > least if inside is None else inside & (variances > least)
        found = empty(means, variances, shown, partial(level_noise, pair, k, grids, sigma))
        if not bool(found.any()):
            return None
        nothing = found if nothing is None else nothing & found
    return None if nothing is None else (~nothing).float()


def _variance(image: Tensor, intensity: Intensity, weight: Tensor | None, least: float) -> float:
    low, high = intensity.range
    deviation = noise_deviation(image, weight)
    return (deviation / intensity.deviation) ** 2 if deviation > least * (high - low) else 0.0


def _left(geometry: Geometry, positions: list[NDArray[np.float64]], factors: tuple[int, ...], sigma: float) -> float:
    """What smoothing leaves of the variance of white noise."""
    matrices = smoothing(geometry, positions, factors, sigma)
    return float(np.prod([np.square(m.weights).sum(1).mean() for m in matrices]))

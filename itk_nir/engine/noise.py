"""How noisy a pair of images is."""

from __future__ import annotations

from itk_nir.engine.images import Intensity, Pair

#: The noise of an image of 2 or 3 dimensions, as a share of its range, from which it is noisy: windows of the finest
#: level then have less in common than what counts as evidence. Those of a plane hold fewer voxels.
NOISY = {2: 0.035, 3: 0.08}


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
    return max(_share(i) for c in pair.channels for i in (c.fixed_intensity, c.moving_intensity))


def _share(intensity: Intensity) -> float:
    low, high = intensity.range
    return intensity.noise / (high - low) if high > low else 0.0


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

"""Slow factors between two images of one contrast: the bias fields of MR coils, shading of a camera.

An image ``I`` with a bias field is ``b * I``, where ``b`` is smooth. Inside of what an object shows evenly, such a
field is the largest slope there is, and every metric of intensities lays the slopes of two fields on each other: what
it gains by that is no sign of a good map. So once the images lie on each other about as a linear map can bring them, a
smooth surface is laid through the logarithm of their ratio inside of what both show against their backgrounds. The
fixed image is divided by it where it explains most of that ratio, where the images show the same details without their
smooth parts, and where they are of one contrast then. What tissues of two contrasts differ by, and one organ that is
brighter, is not smooth and leaves most of the ratio unexplained. Images that are smooth themselves differ by something
smooth where they lie apart, but a smooth motion explains that as well; and where they show unlike things, their details
do not agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.choice import SAME, choose_metric
from itk_nir.engine.evened import with_channels
from itk_nir.engine.images import Channel, Intensity, Pair
from itk_nir.engine.inside import objects_of
from itk_nir.engine.resolution import Resolution
from itk_nir.engine.surfaces import DEGREE, Surfaces, exponents_along, polynomials, sampled_logs

F64 = NDArray[np.float64]

#: Voxels of the longest axis of the grid that the images are compared on, about.
SIZE = 56

#: Voxels that it is laid through, at most, and how many there must be for each coefficient.
MOST, FEWEST = 10_000, 10

#: Rounds of fitting, and from how many robust standard deviations on a voxel hardly counts: edges that lie apart.
ROUNDS, FAR = 10, 2.0

#: How much the coefficients are held back.
RIDGE = 1e-6

#: The shares of the logarithm of the ratio that a factor between images of one contrast explains, at least: by the
#: variance, and by the median of the absolute deviations, which edges that lie apart do not raise.
EXPLAINED, MOSTLY = 0.5, 0.7

#: The standard deviation of the logarithm of a factor that counts: with 0.16, phantoms end within 0.2 pixels of where
#: even ones do, with 0.22 up to 0.5 pixels farther from the truth.
EVEN = 0.17

#: Voxels of the coarse grid by which smooth motions are as unlikely as factors; and the share of the variance that they
#: explain in place of a factor from which on the images just lie apart: smooth clouds that do have 0.45 and more,
#: phantoms with factors 0.14 at most.
MOTION, MOVED = 3.0, 0.3

#: The correlation of the details of the images, without the smooth surfaces through each, under a map that is right:
#: phantoms with factors have 0.43 and more there, and 0.05 at most where they are turned by half a turn; clouds that
#: have nothing in common 0.14 at most.
AGREED = 0.25

#: The standard deviation of a normal distribution over the median of its absolute values.
NORMAL = 1.4826


@dataclass(frozen=True, eq=False)
class Bias:
    """A smooth factor between two images, or over one of them.

    Parameters
    ----------
    coefficients : ndarray
        ``(5, 5, 5)``, of the logarithm of the factor: one for each product of Legendre polynomials along ``x, y, z``.
    low, high : ndarray
        ``(x, y, z)``, in voxels: the ends of the object, between which the polynomials go from -1 to 1. Beyond them
        the factor is that of the nearest place between them.
    least, most : float
        Logarithms of the factor between which it is kept: its smallest and largest inside of the object.
    deviation : float
        The standard deviation of the logarithm of the factor there.
    explained : float
        The share of the variance of the logarithm of the ratio of the images that it explains; of one over an image
        of unlike contrasts, this and all that follows is 0.
    mostly : float
        The same of the squared median of the absolute deviations: what differs in few places hardly counts.
    agreed : float
        The correlation of the details of both images, without smooth surfaces through the logarithm of each; 0 where
        the others show that it does not count.
    moved : float
        The share of the variance of the logarithm of the ratio that a smooth displacement explains in its place; 0 as
        before.
    """

    coefficients: F64
    low: F64
    high: F64
    least: float
    most: float
    deviation: float
    explained: float = 0.0
    mostly: float = 0.0
    agreed: float = 0.0
    moved: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether the images differ by more than a factor that no metric minds, and in most places by little else."""
        return self.mostly > MOSTLY and self.deviation > EVEN and self.moved < MOVED

    @property
    def agrees(self) -> bool:
        """Whether the images show the same details."""
        return self.agreed > AGREED

    @property
    def believed(self) -> bool:
        """Whether they show the same without it, and differ by little else."""
        return self.agrees and self.explained > EXPLAINED

    def as_values(self) -> dict[str, Any]:
        """Its parameters as plain numbers and lists.

        Returns
        -------
        dict
        """
        return {f.name: np.asarray(getattr(self, f.name)).tolist() for f in fields(self)}

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Bias:
        """One of its parameters.

        Parameters
        ----------
        values : mapping
            Of `as_values`.

        Returns
        -------
        Bias
        """
        read: dict[str, Any] = {k: np.array(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**read)

    def divided(self, image: Tensor, black: float) -> Tensor:
        """An image without the factor.

        Parameters
        ----------
        image : Tensor
            ``(Z, Y, X)``, on the grid of the image that the factor lies over.
        black : float
            The value of no signal.

        Returns
        -------
        Tensor
            ``(Z, Y, X)``.
        """
        x, y, z = (
            polynomials(np.arange(n, dtype=np.float64), *ends)
            for n, *ends in zip(reversed(image.shape), self.low, self.high, strict=True)
        )
        rows = np.einsum("abc,yb,zc->zya", self.coefficients, y, z)
        # What the object does not show has no larger factors than it.
        out = torch.empty_like(image)
        for plane, values, along in zip(out, image, rows, strict=True):
            log = np.clip(along @ x.T, self.least, self.most)
            factor = torch.from_numpy(np.exp(-log)).to(image)
            plane.copy_((values - black) * factor + black)
        return out


#: One a channel, None where there is none; empty without any. Between unlike contrasts, one a channel of the fixed
#: images, then one a channel of the moving ones.
Biases = tuple[Bias | None, ...]


def biases_between(pair: Pair, threads: int = 1) -> Biases:
    """The smooth factors between two images under the linear map that the pair has, whether they are believed or not.

    Parameters
    ----------
    pair : Pair
        The images.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    tuple of Bias or None
        One a channel, None where there is none that counts; empty without any.
    """
    seen = Resolution(pair, pair.normalised(), SIZE, threads, None)
    found = [
        _between(channel, images.fixed, seen.view(images.moving), seen.weight, seen.grids.fixed)
        for channel, images in zip(pair.channels, seen.channels.images, strict=True)
    ]
    biases = tuple(bias if bias is not None and bias.counts else None for bias in found)
    return biases if any(biases) else ()


def believed_biases(pair: Pair, found: Biases, threads: int = 1) -> Biases:
    """Those of the smooth factors that are believed, if the images are of one contrast without them.

    Parameters
    ----------
    pair : Pair
        The images under the linear map that the factors were found under.
    found : sequence of Bias or None
        Of `biases_between`.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    tuple of Bias or None
        One a channel; empty without any.
    """
    biases = tuple(bias if bias is not None and bias.believed else None for bias in found)
    if any(biases) and choose_metric(without_biases(pair, biases), threads).metric == SAME:
        return biases
    return ()


def without_biases(pair: Pair, biases: Biases) -> Pair:
    """The pair with its images divided by what makes them brighter in some places.

    Parameters
    ----------
    pair : Pair
        The images.
    biases : sequence of Bias or None
        One a channel, of the fixed images; then, between unlike contrasts, one a channel of the moving ones. None for
        no change.

    Returns
    -------
    Pair
        The very same without any.
    """
    if not any(biases):
        return pair
    number = len(pair.channels)
    channels = []
    for channel, bias, other in zip(pair.channels, biases[:number], biases[number:] or number * (None,), strict=True):
        if bias is not None:
            fixed = bias.divided(channel.fixed, black(channel.fixed_intensity))
            intensity = Intensity.of(fixed, pair.fixed_weight, pair.fixed_lesion)
            channel = replace(channel, fixed=fixed, fixed_intensity=intensity)
        if other is not None:
            moving = other.divided(channel.moving, black(channel.moving_intensity))
            intensity = Intensity.of(moving, pair.moving_weight, pair.moving_lesion)
            channel = replace(channel, moving=moving, moving_intensity=intensity)
        channels.append(channel)
    return with_channels(pair, channels)


def without_trends(pair: Pair) -> Pair:
    """The pair with every image divided by its own smooth trend, what it shows and what shades it alike.

    Which way an object is turned shows in what is left.

    Parameters
    ----------
    pair : Pair
        The images.

    Returns
    -------
    Pair
    """
    channels = []
    for channel in pair.channels:
        fixed, fixed_intensity = _flat(channel.fixed, channel.fixed_intensity, pair.fixed_weight, pair.fixed_lesion)
        moving, intensity = _flat(channel.moving, channel.moving_intensity, pair.moving_weight, pair.moving_lesion)
        channels.append(Channel(fixed, moving, fixed_intensity, intensity))
    return with_channels(pair, channels)


def _flat(
    image: Tensor, intensity: Intensity, weight: Tensor | None, lesion: Tensor | None
) -> tuple[Tensor, Intensity]:
    """An image without its trend, and what is measured on it; the very same where it shows too little."""
    dark = black(intensity)
    steps = [max(1, round(n / SIZE)) for n in image.shape]
    some = image[tuple(slice(None, None, step) for step in steps)].double() - dark
    shown = _eroded(objects_of(some.clamp(min=0).sqrt())) > 0.5
    shown &= some > 0
    positions = [step * np.arange(n, dtype=np.float64) for n, step in zip(some.shape, steps, strict=True)][::-1]
    trend = _fitted_within(some, torch.ones_like(some), shown, positions)
    if trend is None:
        return image, intensity
    flat = trend.divided(image, dark)
    return flat, Intensity.of(flat, weight, lesion)


def _between(
    channel: Channel, fixed: Tensor, moving: Tensor, weight: Tensor | None, positions: list[F64]
) -> Bias | None:
    """The factor between two normalised images on one grid; None where they show too little to tell."""
    signals = signals_of(channel, fixed, moving, weight)
    return None if signals is None else _fitted_within(*signals, positions)


def signals_of(
    channel: Channel, fixed: Tensor, moving: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Two normalised images on one grid above their black, and where both show something.

    Parameters
    ----------
    channel : Channel
        What was measured on them.
    fixed, moving : Tensor
        ``(z, y, x)``.
    weight : Tensor or None
        Above 0.5 where they count.

    Returns
    -------
    tuple of Tensor or None
        Like `fixed`, the third one bool; None where the background is not black.
    """
    sides = (channel.fixed_intensity, fixed), (channel.moving_intensity, moving)
    one, two = (intensity.mean + intensity.deviation * image.double() - black(intensity) for intensity, image in sides)
    # A threshold between the values themselves would cut through an object whose one side is dim.
    shown = objects_of(one.clamp(min=0).sqrt()) * objects_of(two.clamp(min=0).sqrt())
    # The rim of an object differs where one image is smoother than the other.
    shown = _eroded(shown if weight is None else shown * (weight > 0.5)) > 0.5
    shown &= (one > 0) & (two > 0)
    # Factors are of what is brighter than a background that is black.
    return (one, two, shown) if all(bool(x[shown].mean() > x.mean()) for x in (one, two)) else None


def _fitted_within(one: Tensor, two: Tensor, shown: Tensor, positions: list[F64]) -> Bias | None:
    """The smooth factor between two images above their black, where both show something."""
    along = [len(p) > 1 for p in positions]
    if int(shown.sum()) < FEWEST * len(exponents_along(along, DEGREE)):
        return None
    some, logs, places = sampled_logs(one, two, shown, positions, MOST)
    ratio = logs[0] - logs[1]
    surfaces = Surfaces(places, along, DEGREE)
    basis = np.stack(surfaces.products, -1)
    fitted, rest = _fitted(basis, ratio)
    surface = basis @ fitted
    middle = float(np.median(surface))
    coefficients = surfaces.coefficients(fitted, middle)
    least, most = float(surface.min()) - middle, float(surface.max()) - middle
    explained = 1 - float(rest.var()) / max(float(ratio.var()), 1e-12)
    mostly = 1 - (_spread(rest) / max(_spread(ratio), 1e-6)) ** 2
    found = Bias(coefficients, surfaces.low, surfaces.high, least, most, float(surface.std()), explained, mostly)
    if not found.counts:
        return found
    details = [_fitted(basis, log)[1] for log in logs]
    slopes = [_slope(one, two, axis)[some].cpu().numpy() for axis, more in enumerate(reversed(along)) if more]
    moving = np.concatenate([slope[:, None] * basis for slope in slopes], 1)
    unmoved = _fitted(moving, ratio - middle, float(ratio.var()) / MOTION**2)[1]
    moved = 1 - float(unmoved.var()) / max(float(ratio.var()), 1e-12)
    return replace(found, agreed=_correlation(*details), moved=moved)


def _slope(one: Tensor, two: Tensor, axis: int) -> Tensor:
    """The mean of how the logarithms of two images change along an axis, a voxel."""
    logs = (one * two).clamp(min=torch.finfo(one.dtype).tiny).log() / 2
    return torch.gradient(logs, dim=axis)[0]


def _spread(values: F64) -> float:
    """The standard deviation of normally distributed values, by their median."""
    return NORMAL * float(np.median(np.abs(values - np.median(values))))


def _correlation(one: F64, two: F64) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    one, two = one - one.mean(), two - two.mean()
    return float(one @ two) / max(float(np.sqrt((one @ one) * (two @ two))), 1e-12)


def black(intensity: Intensity) -> float:
    """The value of no signal: that of a background, where there is a dark one.

    Parameters
    ----------
    intensity : Intensity
        What was measured on an image.

    Returns
    -------
    float
    """
    value = intensity.background
    return intensity.range[0] if value is None or value > intensity.mean else value


def _eroded(shown: Tensor) -> Tensor:
    """Without the voxels at the border of what is shown."""
    size = [3 if n > 1 else 1 for n in shown.shape]
    padded = 1 - shown.float()[None, None]
    return 1 - torch.nn.functional.max_pool3d(padded, size, 1, [n // 2 for n in size])[0, 0]


def _fitted(basis: F64, ratio: F64, ridge: float = RIDGE) -> tuple[F64, F64]:
    """Coefficients of the surface, by least squares in which what lies far from it hardly counts; and what is left."""
    coefficients, weight = np.zeros(basis.shape[1]), np.ones(len(ratio))
    for _ in range(ROUNDS):
        weighted = weight[:, None] * basis
        held = ridge * weight.sum() * np.eye(basis.shape[1])
        coefficients = np.linalg.solve(basis.T @ weighted + held, weighted.T @ ratio)
        rest = ratio - basis @ coefficients
        deviation = max(NORMAL * float(np.median(np.abs(rest))), 1e-6)
        weight = (1 + (rest / (FAR * deviation)) ** 2) ** -2.0
    return coefficients, ratio - basis @ coefficients

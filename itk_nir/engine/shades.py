"""Slow factors over images of unlike contrasts: each image's own bias field.

Where contrasts are unlike, the ratio of two images tells of no factor. But tissues are few: without factors, the
logarithms of the intensities at the places of two images that lie on each other gather in few clusters of their joint
histogram, and a smooth factor over either image smears these along one axis of it. So both factors are sought under
which the clusters are the sharpest, that is, the joint entropy is the least: all values are drawn towards the nearest
cluster, by the mean shift with a Gaussian kernel, and what a smooth surface explains of that is the factor. This is the
sharpening of a histogram (N3: Sled et al., IEEE Trans. Med. Imaging 17, 87-97, 1998; N4: Tustison et al., ibid. 29,
1310-1320, 2010) with two images in place of one, which tells tissues far better.

A factor is believed where it is strong and where the images clearly have more in common without it. What the tissues of
an object differ by is never quite without a trend, and the sharpest clusters are those without any: but that costs
information that the images have of each other, where factors hide it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from itk_nir.engine.bias import SIZE, Bias, Biases, signals_of
from itk_nir.engine.images import Pair, sizes, voxel_map
from itk_nir.engine.resolution import Resolution
from itk_nir.engine.surfaces import Surfaces, sampled_logs

F64 = NDArray[np.float64]

#: The degree of the surfaces: with 3 and 4, more of what heads without factors show is taken for one.
OWN_DEGREE = 2

#: Voxels that they are laid through, at most, and how many there must be for each coefficient.
MOST, FEWEST = 5_000, 50

#: Standard deviations of the kernel, of the first rounds and of the last, in logarithms of intensities.
WIDE, NARROW = 0.3, 0.1

#: Rounds, the share of them after which the kernel is narrow, and how much more than the mean shift is taken in each.
ROUNDS, ANNEALED, STEP = 20, 0.7, 1.5

#: Bins of the histogram a standard deviation of the kernel, and bins along an axis at most.
BINS, MOST_BINS = 3, 160

#: How much the coefficients are held back.
RIDGE = 1e-4

#: The standard deviation of the logarithm of a factor that counts, and how many times as much information without it
#: the images must have of each other. Of 42 pairs of unlike contrasts without factors (heads, brains, abdomens; one
#: person's and two people's; 2D and 3D, with masks) those that gain more than 1.08 times have 0.075 at most, the others
#: up to 0.153. Ramps whose logarithms go from -0.5 to 0.5 over heads have 0.15 to 0.28, and mostly gain 1.2 to 3 times.
STRONG, GAINED = 0.14, 1.15


def shades_between(pair: Pair, threads: int = 1) -> Biases:
    """The smooth factors over images of unlike contrasts that are believed, under the linear map that the pair has.

    Parameters
    ----------
    pair : Pair
        The images.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    tuple of Bias or None
        One a channel of the fixed images, then one a channel of the moving ones; empty without any.
    """
    seen = Resolution(pair, pair.normalised(), SIZE, threads, None)
    sides = []
    for channel, images in zip(pair.channels, seen.channels.images, strict=True):
        signals = signals_of(channel, images.fixed, seen.view(images.moving), seen.weight)
        found: tuple[Bias | None, Bias | None] = (None, None)
        if signals is not None:
            _, logs, places = sampled_logs(*signals, seen.grids.fixed, MOST)
            found = _shades(logs, pair, places)
        sides.append(found)
    shades = (*(fixed for fixed, _ in sides), *(moving for _, moving in sides))
    return shades if any(shades) else ()


def _shades(logs: list[F64], pair: Pair, places: F64) -> tuple[Bias | None, Bias | None]:
    """The factors over both images, of the logarithms of their values at some fixed voxels; None where not believed."""
    index, _ = voxel_map(pair.fixed_geometry, pair.moving_geometry, pair.linear)
    surfaces = [
        _Surface(places, [n > 1 for n in sizes(pair.fixed_geometry)]),
        _Surface(places @ index[:, :3].T + index[:, 3], [n > 1 for n in sizes(pair.moving_geometry)]),
    ]
    if len(places) < FEWEST * max(s.basis.shape[1] for s in surfaces):
        return None, None
    coefficients = _sharpest(logs, surfaces)
    strong = [float((s.basis @ c).std()) > STRONG for s, c in zip(surfaces, coefficients, strict=True)]
    if not any(strong):
        return None, None
    kept = [c if much else 0 * c for c, much in zip(coefficients, strong, strict=True)]
    without = [log - s.basis @ c for log, s, c in zip(logs, surfaces, kept, strict=True)]
    if _information(without) < GAINED * _information(logs):
        return None, None
    one, two = (s.factor(c) if much else None for s, c, much in zip(surfaces, kept, strong, strict=True))
    return one, two


class _Surface:
    """Smooth surfaces over some voxels of an image, without a constant."""

    def __init__(self, places: F64, along: Sequence[bool]) -> None:
        self.surfaces = Surfaces(places, along, OWN_DEGREE)
        products = self.surfaces.products[1:]
        self.means = np.mean(products, axis=1)
        self.basis = np.stack(products, -1) - self.means
        held = RIDGE * len(places) * np.eye(len(products))
        self.solved = np.linalg.solve(self.basis.T @ self.basis + held, self.basis.T)

    def factor(self, fitted: F64) -> Bias:
        """The factor whose logarithm has these coefficients."""
        surface = self.basis @ fitted
        coefficients = self.surfaces.coefficients(np.array([0.0, *fitted]), float(self.means @ fitted))
        ends = float(surface.min()), float(surface.max())
        return Bias(coefficients, self.surfaces.low, self.surfaces.high, *ends, float(surface.std()))


def _sharpest(logs: list[F64], surfaces: list[_Surface]) -> list[F64]:
    """The coefficients of the logarithms of the factors without which the joint histogram is the sharpest."""
    coefficients = [np.zeros(s.basis.shape[1]) for s in surfaces]
    for k in range(ROUNDS):
        sigma = WIDE * (NARROW / WIDE) ** min(1.0, k / (ANNEALED * ROUNDS))
        values = [log - s.basis @ c for log, s, c in zip(logs, surfaces, coefficients, strict=True)]
        histogram = _Histogram(values, sigma)
        for c, surface, shift in zip(coefficients, surfaces, histogram.shifts(), strict=True):
            c += STEP * surface.solved @ shift
    return coefficients


def _information(values: list[F64]) -> float:
    """The mutual information of the values of two images, nats."""
    return _Histogram(values, NARROW).information()


class _Histogram:
    """The joint histogram of the values of two images, smoothed by a Gaussian kernel."""

    def __init__(self, values: list[F64], sigma: float) -> None:
        self.bins, self.centres, self.kernels = [], [], []
        for some in values:
            # The outermost values, of what is nearly black, are in the bins at the ends.
            low, high = np.percentile(some, (0.5, 99.5))
            width = max(sigma / BINS, float(high - low) / MOST_BINS)
            number = 1 + int((high - low) / width)
            centres = low + width * (np.arange(number) + 0.5)
            self.bins.append(np.clip(((some - low) / width).astype(np.int64), 0, number - 1))
            self.centres.append(centres)
            self.kernels.append(np.exp(-0.5 * ((centres[:, None] - centres) / sigma) ** 2))
        shape = tuple(map(len, self.centres))
        flat = np.ravel_multi_index(self.bins, shape)
        self.counts = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

    def _smoothed(self, counts: F64) -> F64:
        """Sums of counts under the kernel, at the bins of the values: none is empty."""
        return np.asarray((self.kernels[0] @ counts @ self.kernels[1])[self.bins[0], self.bins[1]], np.float64)

    def shifts(self) -> list[F64]:
        """How far the values of either image lie from the mean around them, weighted by the kernel."""
        density = self._smoothed(self.counts)
        one, two = self.centres
        means = self._smoothed(self.counts * one[:, None]) / density, self._smoothed(self.counts * two) / density
        return [c[b] - mean for c, b, mean in zip(self.centres, self.bins, means, strict=True)]

    def information(self) -> float:
        """Their mutual information, nats."""
        alone = [
            (kernel @ self.counts.sum(1 - axis))[b]
            for axis, (kernel, b) in enumerate(zip(self.kernels, self.bins, strict=True))
        ]
        joint = self._smoothed(self.counts)
        return float(np.log(joint * len(joint) / (alone[0] * alone[1])).mean())

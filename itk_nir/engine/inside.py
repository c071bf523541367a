"""How two images are looked at inside of what they show, against their backgrounds.

Outlines of unlike contrasts can be laid on each other by a deformation, so that windows that see both an object and its
background agree; those inside of it do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.level_grids import shrink_factor

#: Voxels of the longest axis of the grid for it, about.
INSIDE_SIZE = 112

#: Of the histogram that objects are told from their background by.
BINS = 128


@dataclass(frozen=True)
class Windows:
    """What the windows of two images show of each other.

    Parameters
    ----------
    sign : float
        How well their correlations agree in sign, 0 to 1, weighted by r².
    edges : float
        The same, weighted by the contrast of the windows, too: edges count for more than what hardly varies, where a
        slow change of the illumination may decide the sign.
    told : float
        Their mean r².
    number : int
        How many there are.
    """

    sign: float
    edges: float
    told: float
    number: int


@dataclass(frozen=True)
class Inside:
    """What the windows inside of objects, against their backgrounds, show after the first level of the deformation.

    Parameters
    ----------
    alike : float
        LNCC² of the whole images from which on their outlines lie on each other: a brain in a head has 0.7.
    sign : float
        Agreement in sign below which they are unlike: T1 and FLAIR of two people have 0.92 and less, two FLAIR images
        0.90, T1 or T2 of two people 0.96 and more.
    told, least : float
        Mean r² above which they are alike whatever their signs (fetal brains have 0.44 with a sign of 0.90, T1 and
        FLAIR 0.30 at most), and below which nothing is told: noise has 0.05.
    opposed : float
        Agreement in sign below which windows are unlike however much they tell, by either weight: 2D phantoms whose
        contrasts are not a monotone function of each other have 0.53 and less where most of their edges are opposed,
        one contrast under unlike illuminations 0.84 and more by the edges.
    moved : float
        Share of the matches of a search that lead back from which on windows are unlike because parts of the images
        moved away: organs that slide have 0.95 and more, T1 and FLAIR 0.78 at most.
    """

    alike: float = 0.8
    sign: float = 0.94
    told: float = 0.3
    least: float = 0.08
    opposed: float = 0.7
    moved: float = 0.9

    def unlike(self, seen: Windows) -> bool:
        """Whether windows inside of objects are those of unlike contrasts.

        Parameters
        ----------
        seen : Windows
            What they show.

        Returns
        -------
        bool
        """
        if seen.told >= self.told:
            return max(seen.sign, seen.edges) < self.opposed
        return seen.sign < self.sign and self.least < seen.told

    def at(self, voxels: float) -> Inside:
        """The limits on a coarser grid, whose windows hold more: all signs agree better there, and tell more.

        Parameters
        ----------
        voxels : float
            Of the longest axis of the grid; the limits are those of `INSIDE_SIZE` and more.

        Returns
        -------
        Inside
        """
        share = min(1.0, voxels / INSIDE_SIZE)
        told = self.told + min(COARSER_TOLD[1], COARSER_TOLD[0] * (1 - share))
        return replace(self, sign=1 - (1 - self.sign) * share**COARSER_SIGN, told=told)


#: Voxels of the longest axis below which volumes are looked at in full resolution: half of theirs tells too little. T1
#: or T2 of two people have signs of 0.93 and more there, T1 and FLAIR 0.83 at most.
SMALL, SMALL_SIGN = 100, 0.88

#: How the limits follow the grid: T1 and FLAIR of two people have signs of 0.925, 0.954, 0.980, 0.990 at most and mean
#: r² of 0.29, 0.32, 0.38, 0.39 at most where the grid has 87, 73, 62 and 55 voxels, and T1 or T2 signs of 0.990, 0.986,
#: 0.998 and 0.994 at least.
COARSER_SIGN, COARSER_TOLD = 3, (0.26, 0.12)

#: Of images whose outlines the first level has laid on each other; and of noisy ones, smoothed by `NOISY_SIGMA`:
#: sections of T1 and FLAIR have a sign of 0.88 and less, phantoms with noise of 20 % 0.91 and more.
INSIDE, NOISY_INSIDE = Inside(), Inside(sign=0.9, told=0.45)


def inside_size(pair: Pair) -> float:
    """Voxels of the longest axis of the grid that images are looked at on inside of what they show.

    Of volumes it is no finer than half of their voxels: what the first level has brought together it has on a grid
    twice as coarse as that, and one contrast looks like two where things lie apart.

    Parameters
    ----------
    pair : Pair
        The images.

    Returns
    -------
    float
    """
    longest = shrink_factor(pair.fixed_geometry, 1.0)
    return INSIDE_SIZE if pair.fixed_geometry.dimension == 2 or longest < SMALL else min(INSIDE_SIZE, longest / 2)


def limits_on(limits: Inside, pair: Pair, voxels: int) -> Inside:
    """The limits on a grid of a pair.

    Parameters
    ----------
    limits : Inside
        Those of `INSIDE_SIZE`.
    pair : Pair
        The images.
    voxels : int
        Of the longest axis of the grid.

    Returns
    -------
    Inside
    """
    if pair.fixed_geometry.dimension == 2:
        return limits
    if shrink_factor(pair.fixed_geometry, 1.0) < SMALL:
        return replace(limits, sign=min(SMALL_SIGN, limits.sign))
    return limits.at(voxels)


def objects_of(image: Tensor) -> Tensor:
    """1 where an image is on the other side of a threshold than most of its border, else 0.

    The threshold has the largest variance between its sides (Otsu, IEEE Trans. Syst. Man Cybern. 9, 62-66, 1979).

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)``.

    Returns
    -------
    Tensor
        Like `image`.
    """
    values = image.double()
    low, high = (float(end) for end in torch.stack(values.aminmax()).cpu())
    if low == high:
        return torch.zeros_like(image)
    bins = ((values - low) * (BINS / (high - low))).long().clamp_(max=BINS - 1)
    counts = torch.bincount(bins.reshape(-1), minlength=BINS).cpu().numpy()
    edges = np.linspace(low, high, BINS + 1)
    below, middles = np.cumsum(counts)[:-1], (edges[:-1] + edges[1:]) / 2
    total = np.cumsum(counts * middles)
    share = below / counts.sum()
    between = (share * total[-1] - total[:-1]) ** 2 / np.maximum(share * (1 - share), 1e-12)
    above = values > float(edges[1 + int(between.argmax())])
    ends = [above.select(axis, end).reshape(-1) for axis, n in enumerate(above.shape) if n > 1 for end in (0, -1)]
    background = bool(torch.cat(ends).double().mean() > 0.5) if ends else False
    return (above != background).to(image.dtype)


def share_of_object(where: Tensor, image: Tensor) -> float:
    """The share of what an image shows that lies at some voxels.

    Parameters
    ----------
    where : Tensor
        ``(Z, Y, X)`` bool.
    image : Tensor
        The same shape.

    Returns
    -------
    float
        1 of an image that shows nothing.
    """
    shown = objects_of(image) > 0.5
    return float(where[shown].double().mean()) if bool(shown.any()) else 1.0

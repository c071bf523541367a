"""Which metric a pair of images wants: ``metric="auto"``.

Where two images show one contrast, a brighter place in one is a brighter place in the other: the correlation in small
windows has one sign everywhere (or, with the contrast inverted, the other). LNCC², the most accurate metric there is
for such pairs, does not see the sign; between unlike contrasts it is high wherever two edges can be laid on each other,
and rises when the object is misplaced. So the share of windows, weighted by what they tell (r²), that agree in sign
decides, at three resolutions: at the coarsest it hardly depends on how well the images are aligned, at the finer ones
it sees what the coarsest cannot, once they are.

Stains of tissue may agree in sign everywhere and be unlike nevertheless. That shows when they are brought together:
images of one contrast become alike at the first level of the deformation, LNCC² 0.75 and more, and such stains do not,
0.28 and less (`LEAST_ALIKE`). The deformation then begins anew, as for unlike contrasts (`unlike_after_all`).

Unlike contrasts want mutual information, and a little of MIND, which sees structure where intensities do not tell: more
of it where the intensities tell little. The linear stage has mutual information alone, whose range is wider. What two
such images differ in may be their contrast alone: the more alike they are to begin with, the stiffer the deformation,
and one that gains next to nothing is given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import Pair
from itk_nir.engine.lattice import Banded, banded_from_dense
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.metrics import METRICS
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: What images of one contrast are registered by.
SAME = "lncc"

#: What unlike contrasts are registered by, and what where their intensities tell little of each other: where the NMI
#: (at the second resolution) is below `TELLING`.
UNLIKE, UNLIKE_LITTLE, TELLING = "nmi + 0.1*mind", "nmi + mind", 0.15

#: What the linear stage has for unlike contrasts.
UNLIKE_LINEAR = "nmi"

#: The resolutions: voxels of the longest axis, about; the agreement in sign from which on two images show one contrast;
#: and how alike (mean r²) the windows must be for that to count: as alike as those of aligned images at the second, of
#: images of one object at the third.
RESOLUTIONS = ((28, 0.98, 0.0), (56, 0.95, 0.65), (112, 0.95, 0.6))

#: Which of them NMI is taken at.
INFORMATION_SIZE = RESOLUTIONS[1][0]

#: Windows that there must be to judge by.
FEWEST = 30

#: NMI of unlike contrasts (at the second resolution) above which the deformation is stiffened, with this power of the
#: ratio.
ALIKE, STIFFENING, STIFFEST = 0.26, 8.0, 100.0

#: The share of the similarity of unlike contrasts that a deformation gains where there is nothing to move, at most:
#: edges of two contrasts differ by themselves, and a field follows.
CONTRAST_GAIN = 0.03


#: The mean LNCC² that images of one contrast reach at the first level of the deformation, at least; and the iterations
#: of that level from which on it has been given the chance.
LEAST_ALIKE, ENOUGH_ITERATIONS = 0.5, 20


@dataclass(frozen=True)
class Choice:
    """What was picked, and why.

    Parameters
    ----------
    metric : str
        For the option of that name.
    linear_metric : str
        The same, for the linear stage.
    smoothness : float
        What the weights of the penalty on the displacement are to be multiplied by.
    reason : str
        In words, with the figures.
    least_gain : float
        The share of the similarity that a deformation must gain to be more than what the contrasts differ in.
    little_told : bool
        Whether the intensities of the one image tell little of those of the other: the contrasts are far apart, or the
        images are.
    """

    metric: str
    linear_metric: str
    smoothness: float
    reason: str
    least_gain: float = 0.0
    little_told: bool = False


class Displacement(Protocol):
    """A displacement that can be evaluated on a grid."""

    def on_grid(self, positions: list[F64]) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            ``[x, y, z]``, in voxels of the fixed image.

        Returns
        -------
        Tensor
            ``(3, z, y, x)`` mm along the fixed axes.
        """


def choose_metric(pair: Pair, threads: int = 1, displacement: Displacement | None = None) -> Choice:
    """Look at a pair, under the linear map that it has, and pick a metric.

    Parameters
    ----------
    pair : Pair
        The images. Of several channels the least alike decides for all.
    threads : int
        CPU threads; no result depends on it.
    displacement : Displacement, optional
        Before that map.

    Returns
    -------
    Choice
    """
    normalised = pair.normalised()
    at_size = cache(lambda size: _Resolution(pair, normalised, size, threads, displacement))
    shares: list[float] = []
    for size, least_sign, least_alike in RESOLUTIONS:
        found = (at_size(size).agreement(k) for k in range(len(pair.channels)))
        sign, alike, windows = min(found, key=lambda s: s[0])
        if windows < FEWEST:
            return Choice(SAME, SAME, 1.0, f"only {windows} windows could be compared")
        if alike < least_alike:
            continue
        shares.append(100 * (1 + sign) / 2)
        if sign < least_sign:
            break
    else:
        return Choice(SAME, SAME, 1.0, f"one contrast: {_in_words(shares)}")
    return _unlike(at_size(INFORMATION_SIZE).mutual_information(), f"unlike contrasts: {_in_words(shares)}")


def unlike_after_all(pair: Pair, similarity: float, displacement: Displacement, threads: int = 1) -> Choice:
    """What images are registered by that looked like one contrast and did not become alike.

    Parameters
    ----------
    pair : Pair
        The images, with the linear map that was found.
    similarity : float
        Mean LNCC² after the first level of the deformation: less than `LEAST_ALIKE`.
    displacement : Displacement
        Of that level, before the map.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    Choice
    """
    resolution = _Resolution(pair, pair.normalised(), INFORMATION_SIZE, threads, displacement)
    reason = (
        f"unlike contrasts: the windows agree in sign, but the first level of the deformation by {SAME} ended at "
        f"{similarity:.2f}, where images of one contrast reach {LEAST_ALIKE} and more"
    )
    return _unlike(resolution.mutual_information(), reason)


def _unlike(nmi: float, reason: str) -> Choice:
    """What unlike contrasts are registered by, from how much their intensities tell of each other."""
    smoothness = min(STIFFEST, max(1.0, (nmi / ALIKE) ** STIFFENING))
    if smoothness > 1:
        reason += (
            f"; the images are nearly as alike as such contrasts can be (NMI {nmi:.2f}), so the deformation is "
            f"{smoothness:.3g} times as stiff"
        )
    metric = UNLIKE if nmi >= TELLING else UNLIKE_LITTLE
    return Choice(metric, UNLIKE_LINEAR, smoothness, reason, CONTRAST_GAIN, nmi < TELLING)


def _in_words(shares: Sequence[float]) -> str:
    """In how many per cent of the windows the correlation has one sign, the coarsest resolution first."""
    finer = "".join(f", of {share:.1f} % at a finer resolution" for share in shares[1:])
    return f"the correlation of {shares[0]:.1f} % of the windows has one sign{finer}"


class _Resolution:
    """Both images of every channel on one coarse grid, under the linear map of the pair."""

    def __init__(
        self, pair: Pair, normalised: Sequence[tuple[Tensor, Tensor]], size: int, threads: int,
        displacement: Displacement | None,
    ) -> None:  # fmt: skip
        grids = LevelGrids.whole(pair, size)
        self.channels = LevelChannels.of(pair, grids, normalised, 0.5, 2, threads)
        fixed, moving = self.channels.images[0].fixed, self.channels.images[0].moving
        self.threads = threads
        index, vector = grids.voxel_map(pair, pair.linear)
        u = fixed.new_zeros(3, *fixed.shape) if displacement is None else displacement.on_grid(grids.fixed)
        self.view = View(u, index, vector, threads=threads)
        self.weight = counting_weight(pair, grids, u, moving, index, vector, threads)

    def agreement(self, channel: int) -> tuple[float, float, int]:
        """How well the windows of a channel agree in sign (0 to 1), their mean r², and how many there are."""
        images = self.channels.images[channel]
        f, m = images.fixed, self.view(images.moving)
        w = torch.ones_like(f) if self.weight is None else (self.weight > 0.5).float()
        boxes = [_windows(n, images.radius) for n in f.shape[::-1]]
        powers = torch.stack([w, w * f, w * m, w * f * f, w * m * m, w * f * m])
        count, f1, m1, ff, mm, fm = ops.separable(powers, boxes, self.threads)
        count = count.clamp(min=1e-6)
        variances = [(square - total * total / count) / count for square, total in ((ff, f1), (mm, m1))]
        counts = (w > 0.5) & (variances[0] > 1e-3) & (variances[1] > 1e-3)
        windows = int(counts.sum())
        if windows == 0:
            return 0.0, 0.0, 0
        r = ((fm - f1 * m1 / count) / count / (variances[0] * variances[1]).clamp(min=1e-12).sqrt())[counts].double()
        r = r.clamp(-1, 1)
        square = r.square()
        return float(abs((r.sign() * square).sum()) / square.sum().clamp(min=1e-12)), float(square.mean()), windows

    def mutual_information(self) -> float:
        """NMI of the channels, their mean."""
        metric = self.channels.metric([(1.0, METRICS["nmi"])] * len(self.channels.images), self.weight)
        return float(metric(self.view)) if metric.count >= 1 else 0.0


def _windows(size: int, radius: int) -> Banded:
    """The sums over the windows along one axis, cut at the border."""
    at = np.arange(size)
    return banded_from_dense((np.abs(at[:, None] - at) <= radius).astype(float))

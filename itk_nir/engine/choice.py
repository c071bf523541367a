"""Which metric a pair of images wants: ``metric="auto"``.

Where two images show one contrast, a brighter place in one is a brighter place in the other: the correlation in small
windows has one sign everywhere (or, with the contrast inverted, the other). LNCC², the most accurate metric there is
for such pairs, does not see the sign; between unlike contrasts it is high wherever two edges can be laid on each other,
and rises when the object is misplaced. So the share of windows, weighted by what they tell (r²), that agree in sign
decides, at three resolutions: at the coarsest it hardly depends on how well the images are aligned, at the finer ones
it sees what the coarsest cannot, once they are.

Stains of tissue may agree in sign everywhere and be unlike nevertheless. That shows when they are brought together:
images of one contrast become alike at the first level of the deformation, LNCC² 0.75 and more, and such stains do not,
0.28 and less (`LEAST_ALIKE`). T1 and FLAIR of two people do become alike, since fluid is dark in both: but inside of
the brains their windows do not agree (`Inside`). Nor do those of two FLAIR images, which show little of their tissue
and which mutual information registers better, too. The deformation then begins anew, as for unlike contrasts
(`unlike_after_all`).

Unlike contrasts want mutual information, and a little of MIND, which sees structure where intensities do not tell: more
of it where the intensities tell little. The linear stage has mutual information alone, whose range is wider. What two
such images differ in may be their contrast alone: the more alike they are under the map of the linear stage, inside of
what they show as well as against their backgrounds, the stiffer the deformation, and the more it must gain: one that
gains next to nothing is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import Pair
from itk_nir.engine.inside import (
    INSIDE,
    INSIDE_SIZE,
    NOISY_INSIDE,
    Inside,
    Windows,
    inside_size,
    limits_on,
)
from itk_nir.engine.lattice import gaussian_matrix
from itk_nir.engine.metric_protocol import Metric, of_one_contrast
from itk_nir.engine.metrics import METRICS
from itk_nir.engine.noise import is_noisy
from itk_nir.engine.resolution import Displacement, Resolution
from itk_nir.engine.search import find_matches

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
RESOLUTIONS = ((28, 0.98, 0.0), (56, 0.95, 0.65), (INSIDE_SIZE, 0.95, 0.6))

#: Which of them NMI is taken at.
INFORMATION_SIZE = RESOLUTIONS[1][0]

#: Smoothing of the images there, in its voxels, where noise would hide what they share.
NOISY_SIGMA = 0.9

#: Windows that there must be to judge by.
FEWEST = 30

#: NMI of unlike contrasts (at the second resolution) above which the deformation is stiffened, with this power of the
#: ratio.
ALIKE, STIFFENING, STIFFEST = 0.26, 8.0, 100.0

#: NMI inside of the objects alone (at the third resolution) below which nothing is stiffened: brains of two people that
#: an affine map has laid over each other stand out from the background alike, which is most of the whole NMI, and have
#: less than 0.02 inside; MR contrasts of one head have 0.09 and more there, CT and MR of a template 0.06.
INSIDE_ALIKE = 0.04

#: The share of the similarity of unlike contrasts that a deformation gains where there is nothing to move, at most:
#: edges of two contrasts differ by themselves, and a field follows.
CONTRAST_GAIN = 0.03

#: The same at the voxels of the finest level, where there is more of such edges, and more that only a deformation
#: brings together: 2 to 8 % were gained between contrasts of one person, 13 % in noise, 25 % and more where tissue is
#: deformed.
CONTRAST_GAIN_FINEST = 0.18

#: How many times as much must be gained where the deformation is at least as many times as stiff: such images lie on
#: each other, and what a stiff field gains may be the outlines of two contrasts alone. 4.3 % were gained at most with
#: nothing to move (slices of 6 mm, noise of 5 %), 9.6 % and more by a motion of one voxel.
MOST_GAIN = 2.0

#: The mean LNCC² that images of one contrast reach at the first level of the deformation, at least; and the iterations
#: of that level from which on it has been given the chance.
LEAST_ALIKE, ENOUGH_ITERATIONS = 0.5, 20

#: The mean r² (at the second resolution) that 2D images of one contrast have after that level, at least, and the mean
#: LNCC² below which that is asked: windows of a plane hold few voxels, so that sections of unlike stains may reach a
#: mean LNCC² of 0.83. They have 0.57 at most here, whatever their resolution, and radiographs, brains and tissue of one
#: contrast below that LNCC² 0.65 at least.
LEAST_TOLD, MAY_BE_TOLD = 0.61, 0.84

#: Smoothing of the field for it, in voxels of that resolution: a field that is finer than the windows makes them alike
#: whatever they show.
FIELD_SIGMA = 1.0


@dataclass(frozen=True)
class Choice:
    """What was picked, and why.

    Parameters
    ----------
    metric : str
        For the option of that name.
    linear_metric : str
        The same, for the linear stage.
    found : str
        Why, in words, with the figures.
    little_told : bool
        Whether the intensities of the one image tell little of those of the other: the contrasts are far apart, or the
        images are.
    alike : float
        NMI of unlike contrasts; 0 for those that are not alike inside of what they show or whose windows agree in sign,
        and for one contrast.
    shown : bool
        Whether the first level of a deformation showed the images to be unlike, whose windows agree in sign.
    """

    metric: str
    linear_metric: str
    found: str
    little_told: bool = False
    alike: float = 0.0
    shown: bool = False

    @property
    def smoothness(self) -> float:
        """What the weights of the penalty on the displacement are to be multiplied by."""
        return min(STIFFEST, max(1.0, (self.alike / ALIKE) ** STIFFENING))

    @property
    def least_gain(self) -> float:
        """The share of the similarity that a deformation must gain to be more than what the contrasts differ in."""
        return 0.0 if self.metric == SAME else CONTRAST_GAIN * min(MOST_GAIN, self.smoothness)

    @property
    def reason(self) -> str:
        """In words, with the figures."""
        if self.smoothness == 1:
            return self.found
        return (
            f"{self.found}; the images are nearly as alike as such contrasts can be (NMI {self.alike:.2f}), so the "
            f"deformation is {self.smoothness:.3g} times as stiff"
        )


def choose_metric(
    pair: Pair, threads: int = 1, displacement: Displacement | None = None, enough: float = 1.0
) -> Choice:
    """Look at a pair, under the linear map that it has, and pick a metric.

    Parameters
    ----------
    pair : Pair
        The images. Of several channels the least alike decides for all.
    threads : int
        CPU threads; no result depends on it.
    displacement : Displacement, optional
        Before that map.
    enough : float
        The agreement in sign that is enough for one contrast at the coarsest resolution, where that asked for is more:
        what changes slowly has its part in the widest windows alone.

    Returns
    -------
    Choice
    """
    normalised = pair.normalised()
    at_size = cache(lambda size: Resolution(pair, normalised, size, threads, displacement))
    shares: list[float] = []
    for size, least_sign, least_alike in RESOLUTIONS:
        seen = min((at_size(size).agreement(k) for k in range(len(pair.channels))), key=lambda windows: windows.sign)
        if seen.number < FEWEST:
            few = f"only {seen.number} windows could be compared"
            if not pair.masked:
                return Choice(SAME, SAME, few)
            whole = choose_metric(pair.without_masks(), threads, displacement, enough)
            return replace(whole, found=f"{few} inside of the masks; of the whole images: {whole.found}", alike=0.0)
        if seen.told < least_alike:
            continue
        shares.append(100 * (1 + seen.sign) / 2)
        if seen.sign < (min(least_sign, enough) if size == RESOLUTIONS[0][0] else least_sign):
            break
    else:
        return Choice(SAME, SAME, f"one contrast: {_in_words(shares)}")
    return _unlike(*_alike(at_size), f"unlike contrasts: {_in_words(shares)}")


def doubts_of_one_contrast(
    began: Pair, aligned: Pair, displacement: Displacement | None, metrics: Sequence[tuple[float, Metric]],
    threads: int = 1,
) -> tuple[str, ...]:  # fmt: skip
    """What speaks against a metric that was asked for by its name.

    Metrics for one contrast tear images of two until they look alike, and are high then: what they looked like before
    tells it. Images of one contrast may look unlike where they lie apart, but then not once they are aligned.

    Parameters
    ----------
    began, aligned : Pair
        The images with the map that the registration began with, and with that of its linear stage.
    displacement : Displacement or None
        The deformation before the latter.
    metrics : sequence of (float, Metric)
        Weight and metric of every channel.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    tuple of str
        A sentence, or none.
    """
    if not of_one_contrast(metrics):
        return ()
    found = choose_metric(began, threads)
    if found.metric != SAME and not np.array_equal(began.linear, aligned.linear):
        found = choose_metric(aligned, threads)
    # The squared correlation does not ask how intensities belong together, so that it leaves them apart.
    leaves = all(metric is METRICS[SAME] for _, metric in metrics)
    if found.metric != SAME and (leaves or found.little_told) and displacement is not None:
        found = choose_metric(aligned, threads, displacement)
    if found.metric == SAME or found.little_told:
        return ()
    return (
        f"the metric is for images of one contrast, and these look like {found.found}; metric='auto' takes "
        f"{found.metric} for them",
    )


def gained_in_detail(least_gain: float, start: float | None, end: float | None) -> bool:
    """Whether unlike contrasts became more alike, at the finest level, than they would with nothing to move.

    The evidence is taken on a coarse grid, where what was brought together may be too small to be seen.

    Parameters
    ----------
    least_gain : float
        Of the choice: 0 for one contrast.
    start, end : float or None
        The similarity of that level, before and after; None where it is not known.

    Returns
    -------
    bool
    """
    if not least_gain or start is None or end is None:
        return False
    return end - start >= CONTRAST_GAIN_FINEST * abs(start)


def unlike_after_all(pair: Pair, similarity: float, displacement: Displacement, threads: int = 1) -> Choice | None:
    """What images are registered by that looked like one contrast and are not, after the first level.

    Parameters
    ----------
    pair : Pair
        The images, with the linear map that was found.
    similarity : float
        Mean LNCC² after the first level of the deformation.
    displacement : Displacement
        Of that level, before the map.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    Choice or None
        None for images of one contrast.
    """
    normalised = pair.normalised()
    brought = cache(lambda size: Resolution(pair, normalised, size, threads, displacement))
    if similarity < LEAST_ALIKE:
        found = (
            f"the first level of the deformation by {SAME} ended at {similarity:.2f}, where images of one contrast "
            f"reach {LEAST_ALIKE} and more"
        )
    elif similarity < MAY_BE_TOLD and (told := _brought_together(pair, normalised, threads, displacement)) < LEAST_TOLD:
        found = (
            f"after the first level of the deformation by {SAME}, the mean square of the correlation is {told:.2f}, "
            f"where 2D images of one contrast have {LEAST_TOLD} and more"
        )
    elif similarity < INSIDE.alike and pair.fixed_geometry.dimension != 2:
        return None
    else:
        size = inside_size(pair)
        apart = _apart_inside(brought(size), pair, INSIDE)
        if apart and is_noisy(pair):  # in windows of a plane, noise may look like another contrast
            smoother = Resolution(pair, normalised, size, threads, displacement, NOISY_SIGMA)
            apart = _apart_inside(smoother, pair, NOISY_INSIDE)
        if not apart or find_matches(pair, True, threads).consistent >= INSIDE.moved:
            return None
        found = (
            f"after the first level of the deformation by {SAME}, the correlation of {50 * (1 + apart[0].sign):.1f} % "
            f"of those inside of what the images show has one sign, and its mean square is {apart[0].told:.2f}"
        )
    nmi = brought(INFORMATION_SIZE).mutual_information()
    # Contrasts of one person that lie on each other do not agree in sign: here is something to move.
    return replace(_unlike(nmi, 0.0, f"unlike contrasts: the windows agree in sign, but {found}"), shown=True)


def _apart_inside(brought: Resolution, pair: Pair, limits: Inside) -> list[Windows]:
    """What the windows inside of the objects show, of the channels that are unlike there."""
    limits = limits_on(limits, pair, max(brought.channels.images[0].fixed.shape))
    windows = (brought.agreement(k, inside=True) for k in range(len(pair.channels)))
    return [seen for seen in windows if seen.number >= FEWEST and limits.unlike(seen)]


def _brought_together(
    pair: Pair, normalised: Sequence[tuple[Tensor, Tensor]], threads: int, field: Displacement
) -> float:
    """The mean r² of the windows of the least alike channel of 2D images; 1 for others, and where there are too few."""
    if pair.fixed_geometry.dimension != 2:
        return 1.0
    brought = Resolution(pair, normalised, INFORMATION_SIZE, threads, _Smoothed(field, threads))
    windows = (brought.agreement(k) for k in range(len(pair.channels)))
    return min((seen.told for seen in windows if seen.number >= FEWEST), default=1.0)


def once_aligned(choice: Choice, pair: Pair, threads: int = 1) -> Choice:
    """What the choice should have been, under the map of the linear stage.

    As they lay, or under a coarse start, the images may have been far less alike than what is left to the deformation:
    the stiffness goes by what they are now, and images of one contrast that differed in size may have been taken for
    unlike ones.

    Parameters
    ----------
    choice : Choice
        From before the linear stage.
    pair : Pair
        The images, with the linear map that was found.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    Choice
        The very same for one contrast.
    """
    if choice.metric == SAME:
        return choice
    again = choose_metric(pair, threads)
    if again.metric != SAME:
        return replace(choice, alike=again.alike)
    return choice if choice.shown else again


def _alike(at_size: Callable[[int], Resolution]) -> tuple[float, float]:
    """NMI of two images; and once more, or 0 where it would stiffen what is not alike inside of what they show."""
    seen = at_size(INFORMATION_SIZE)
    nmi = seen.mutual_information()
    alike = max(nmi, seen.mutual_information(above_air=True))  # tissue as dark as the air is lost to the latter
    if alike > ALIKE and at_size(INSIDE_SIZE).mutual_information(inside=True) < INSIDE_ALIKE:
        return nmi, 0.0
    return nmi, alike


def _unlike(nmi: float, alike: float, found: str) -> Choice:
    """What unlike contrasts are registered by, from how much their intensities tell of each other."""
    metric = UNLIKE if nmi >= TELLING else UNLIKE_LITTLE
    return Choice(metric, UNLIKE_LINEAR, found, nmi < TELLING, alike)


def _in_words(shares: Sequence[float]) -> str:
    """In how many per cent of the windows the correlation has one sign, the coarsest resolution first."""
    finer = "".join(f", of {share:.1f} % at a finer resolution" for share in shares[1:])
    return f"the correlation of {shares[0]:.1f} % of the windows has one sign{finer}"


@dataclass(frozen=True)
class _Smoothed:
    """A displacement, smoothed on the grid that it is asked for on."""

    displacement: Displacement
    threads: int

    def on_grid(self, positions: list[F64]) -> Tensor:
        u = self.displacement.on_grid(positions)
        at = [np.arange(n, dtype=float) for n in u.shape[:0:-1]]
        return ops.separable(u, [gaussian_matrix(len(p), p, FIELD_SIGMA) for p in at], self.threads)

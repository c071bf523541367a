"""Masks of a slice, or of a few: a second, smoother field, and whether it is believed.

Few voxels tell little of where things lie across a thin mask. Where the deformation is smooth, control points that lie
close together fit another place whose slice looks alike. Those that lie far apart cannot, but neither can they follow
what differs in small places. Which of the two a pair wants is told by how much either field leaves unlike.
"""

from __future__ import annotations

from dataclasses import replace

from itk_nir.engine.images import Pair
from itk_nir.engine.level_grids import thickness
from itk_nir.engine.metrics import channel_metrics, of_one_contrast
from itk_nir.engine.progress import Optimised
from itk_nir.engine.settings import DeformableSettings

#: A mask is thin that has fewer planes across an axis than so many voxels of the first level hold, and more along
#: another.
THIN = 2

#: The smoother field is kept where it leaves at most so many times as much unlike as the other. Of known smooth
#: deformations it leaves 0.8 to 1.4 times as much; where it leaves 1.5 times as much, it may be nearer to the truth or
#: farther from it; between two people it is 1.7 to 2.2 times by the correlation or the squares of the whole images, and
#: 2.5 to 3.9 times by the local correlation.
ALIKE = 1.4

#: The share of the usual smoothness that control points at the coarsest spacing have: they can hardly be rough.
SMOOTHNESS = 1 / 3


def concerned(pair: Pair, settings: DeformableSettings) -> bool:
    """Whether the fixed mask is a slice or a few, and images alone say where things lie.

    Parameters
    ----------
    pair : Pair
        The images and masks.
    settings : DeformableSettings
        Whose first level counts.

    Returns
    -------
    bool
    """
    if pair.fixed_weight is None or pair.known is not None or pair.free is not None or not settings.thin_masks:
        return False
    # What any other metric leaves below one says nothing of how much is unlike.
    if not of_one_contrast(channel_metrics(settings.metric, settings.channel_weights, len(pair.channels))):
        return False
    axes = [axis for axis, n in enumerate(pair.fixed_weight.shape) if n > 1]
    planes = [thickness(pair.fixed_weight, axis) for axis in axes]
    least = THIN * settings.shrink_factors[0]
    return 0 < min(planes, default=0) < least <= max(planes)


def smoother(settings: DeformableSettings) -> DeformableSettings:
    """The same with control points at the coarsest spacing at every level.

    Parameters
    ----------
    settings : DeformableSettings
        For the pair.

    Returns
    -------
    DeformableSettings
    """
    return replace(
        settings,
        grid_spacing=tuple(settings.coarsest_grid_spacing / f for f in settings.shrink_factors),
        smoothness=tuple(SMOOTHNESS * w for w in settings.smoothness),
    )


def believed(smooth: Optimised, usual: Optimised) -> bool:
    """Whether the smoother field is the one to keep.

    Parameters
    ----------
    smooth, usual : Optimised
        Both fields, each with all its levels.

    Returns
    -------
    bool
    """
    if smooth.similarity is None or usual.similarity is None or smooth.similarity_start is None:
        return False
    gains = smooth.similarity > smooth.similarity_start
    return gains and 1 - smooth.similarity <= ALIKE * (1 - usual.similarity)

"""The search for large motion at the first level: where it is called for, and what begins at what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.level import FieldInTraining, Level
from itk_nir.engine.metrics import LevelImages, channel_metrics, look_at_images, of_one_contrast
from itk_nir.engine.ops.box_sums import box_sum
from itk_nir.engine.search import BLOCK, CONSISTENT, Matches, Outcome, find_matches
from itk_nir.engine.settings import DeformableSettings as Settings
from itk_nir.errors import NothingToCompare

#: The next level, and what its metrics are shown.
Finer = Callable[[], tuple[Level, Sequence[LevelImages]]]

#: Most of the image has its counterpart where the median correlation of windows of this radius, voxels of the next
#: level, is so high. Organs that slid have 0.92 at least (in voxels of 3 mm and less 0.96), brains of two people 0.78,
#: fetal ones 0.91. Where others come as far, the matches have the last word: this saves their time.
WINDOW, MOST_ALIKE = 2, 0.912

#: A part of it has none where windows correlate by less than this on average over a neighbourhood, and are so large a
#: share of all that have structure. Organs that slid by 25 mm have 0.017 at least, most others that are as alike 0.
NEIGHBOURHOOD, UNLIKE, LEAST_SHARE = 3, 0.3, 0.005

#: The variance of a window, as a share of the mean one, that is structure.
STRUCTURE = 0.1

#: The share of the matches that lead back, and of these the one that is elsewhere than the field, so many voxels of the
#: search away, with which a part may have been missed. Organs that slid have 0.93 and 0.05 at least; of other pairs
#: mice of one strain have 0.89 and 0.02 at most, and those with more elsewhere 0.75.
SURE, MISSED, ELSEWHERE = 0.85, 0.02, 0.75

#: The share of what the next level finds unlike that the matches must save, unless a part has no counterpart: of organs
#: that slid a fifth and more, while under those of two mice a third more is unlike.
MATCHES_GAIN = 0.05


class Search:
    """The search for large motion, where the first level calls for it.

    Parameters
    ----------
    pair : Pair
        The images.
    one_contrast : bool
        Whether the metric is for images of one contrast.
    level : callable
        Makes the level anew, beginning with the field as it then is.
    finer : callable, optional
        Makes the next level with the field as it is, and what its metrics are shown of the images.
    """

    pair: Pair
    one_contrast: bool
    level: Callable[[], Level]
    finer: Finer | None
    outcome: Outcome
    #: What decides whether the field from a search is kept, where it is not the level itself.
    judge: Level | None

    def __init__(
        self, pair: Pair, one_contrast: bool, level: Callable[[], Level], finer: Finer | None = None
    ) -> None:  # fmt: skip
        self.pair, self.one_contrast, self.level, self.finer = pair, one_contrast, level, finer
        self.judge = None
        self._found: Matches | None = None
        self.outcome = Outcome("not needed")

    @classmethod
    def of(cls, pair: Pair, settings: Settings, level: Callable[[], Level], number: int,
           finer: Finer | None = None) -> Search | None:  # fmt: skip
        """A search at the first level, where one is allowed and there are images to look at.

        Parameters
        ----------
        pair : Pair
            The images.
        settings : DeformableSettings
            Say whether a search is allowed.
        level : callable
            As of the class.
        number : int
            Of the level.
        finer : callable, optional
            As of the class.

        Returns
        -------
        Search or None
        """
        metrics = channel_metrics(settings.metric, settings.channel_weights, len(pair.channels))
        if number > 0 or settings.search == "never" or not look_at_images(metrics):
            return None
        return cls(pair, of_one_contrast(metrics), level, finer)

    def finds_missed(self, model: FieldInTraining) -> bool:
        """Whether a part of the image has gone to a wrong place without moving far.

        The next level shows it: there most of the image has a counterpart. Matches tell whether some of it has one
        elsewhere. They are right where a part has structure in both images and no counterpart; else the images of that
        level tell.

        Parameters
        ----------
        model : FieldInTraining
            The field after the first level.

        Returns
        -------
        bool
        """
        if self.finer is None or not self.one_contrast:
            return False
        try:
            level, images = self.finer()
        except NothingToCompare:  # that level will be left out
            return False
        with torch.no_grad():
            view = level.view(model.displaced(model.velocity()))
            seen = [alike_and_unlike(i.fixed, view(i.moving), i.weight) for i in images]
            unlike = [share for alike, share in seen if alike > MOST_ALIKE]
            if not unlike:
                return False
            found = find_matches(self.pair, self.one_contrast, model.threads, model.lattices.restrict)
            self.outcome = replace(self.outcome, consistent=found.consistent)
            if found.consistent < SURE or _share_elsewhere(found, model) < MISSED:
                return False
            if max(unlike) <= LEAST_SHARE and not _shown(found, level, model):
                return False
        self.judge, self._found = level, found
        return True

    def begin(self, model: FieldInTraining) -> Level | None:
        """Let the field begin at what is found.

        Parameters
        ----------
        model : FieldInTraining
            The field.

        Returns
        -------
        Level or None
            The level from there; None where the matches say nothing.
        """
        found = self._found
        if found is None:
            found = find_matches(self.pair, self.one_contrast, model.threads, model.lattices.restrict)
        self.outcome = Outcome(f"not kept, {100 * found.consistent:.0f} % of the matches lead back", found.consistent)
        if found.consistent < CONSISTENT:
            return None
        _begin_at(found, model)
        return self.level()

    def keep(self) -> None:
        """Note that its field is kept."""
        self.outcome = replace(self.outcome, told=self.outcome.told.removeprefix("not "), kept=True)


def alike_and_unlike(fixed: Tensor, moved: Tensor, weight: Tensor | None) -> tuple[float, float]:
    """How much of two images on one grid is alike, and how much has no counterpart.

    Parameters
    ----------
    fixed, moved : Tensor
        ``(..., Z, Y, X)``.
    weight : Tensor or None
        ``(Z, Y, X)``, above 0.5 where they count.

    Returns
    -------
    alike : float
        The median correlation of windows with structure in both images; 0 where there are none.
    unlike : float
        The share of these windows around which it is below `UNLIKE`.
    """
    a, b = (x.reshape(x.shape[-3:]).double() for x in (fixed, moved))
    seen = box_sum(torch.ones_like(a), WINDOW)
    mean_a, mean_b, of_aa, of_bb, of_ab = (box_sum(x, WINDOW) / seen for x in (a, b, a * a, b * b, a * b))
    variances = of_aa - mean_a * mean_a, of_bb - mean_b * mean_b
    counts = torch.ones_like(a, dtype=torch.bool) if weight is None else weight > 0.5
    if not bool(counts.any()):
        return 0.0, 0.0
    has = counts
    for variance in variances:
        has = has & (variance > STRUCTURE * variance[counts].mean())
    if not bool(has.any()):
        return 0.0, 0.0
    correlation = torch.zeros_like(a)
    correlation[has] = ((of_ab - mean_a * mean_b) / (variances[0] * variances[1]).clamp_min(1e-12).sqrt())[has]
    around = box_sum(correlation, NEIGHBOURHOOD)[has] / box_sum(has.double(), NEIGHBOURHOOD)[has]
    return float(correlation[has].median()), float((around < UNLIKE).double().mean())


def _begin_at(found: Matches, model: FieldInTraining) -> None:
    """Let a field make the displacement of matches, about."""
    model.begin_at(found.on_grid([a.positions for a in model.lattices.axes[model.velocity.number]]))


def _shown(found: Matches, level: Level, model: FieldInTraining) -> bool:
    """Whether the images of a level are more alike under matches than under the field."""
    points = model.velocity.control_points
    alone, before = points.detach().clone(), float(level.similarity_of(model))
    _begin_at(found, model)
    after = float(level.similarity_of(model))
    points.copy_(alone)
    return 1 - after < (1 - MATCHES_GAIN) * (1 - before)


def _share_elsewhere(found: Matches, model: FieldInTraining) -> float:
    """The share of the matches that lead back which are elsewhere than the field."""
    field = model.trained_now().on_grid(found.positions)
    block = BLOCK[model.geometry.dimension]
    spacing = (*model.geometry.spacing, 1.0)
    steps = [(p[1] - p[0]) * s for p, s in zip(found.positions, spacing, strict=False) if len(p) > 1]
    if not steps or not bool(found.trusted.any()):
        return 0.0
    away = (found.displacement - field.to(found.displacement)).norm(dim=0)[found.trusted] / (min(steps) / block)
    return float((away > ELSEWHERE).double().mean())

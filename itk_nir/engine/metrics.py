"""Similarity metrics: one entry each in the table `METRICS`.

A metric is any object with the one method of `Metric`: it is shown the images of a resolution level and returns what
measures there, a `LevelMetric`, which gives the similarity under a map as a differentiable scalar. Everything that
depends on the images alone is thus done once a level. A metric is chosen by its name, ``metric="nmi"``, as a weighted
sum of several, ``metric="0.5*nmi + 0.5*mind"``, or given as an object, ``metric=LNCC(epsilon=1e-3)``; one from outside
the package is put into the table under a name of its own, or given as it is. ``docs/own_metric.md`` writes one from
scratch.

A metric may also say of itself (any of these attributes may be left out):

- ``tuning``: a `Tuning`, what the presets, which are tuned for LNCC, are multiplied by under it.
- ``little_evidence``: the similarity below which images say little about where things belong, 0 by default.
- ``contrast_gain``: the share of the similarity that a stretch may gain by a difference of contrast alone, 0 by
  default.
- ``one_contrast``: whether it is for images in which the same things are bright, False by default: the search for large
  motion then compares intensities.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.metric_protocol import (
    LevelImages,
    LevelMetric,
    Metric,
    Tuning,
    mean_of,
    mean_tuning,
    of_one_contrast,
    weighted_sum,
)
from itk_nir.engine.no_metric import NONE, NoMetric, look_at_images
from itk_nir.engine.views import View
from itk_nir.engine.windows import LevelLNCC
from itk_nir.errors import OptionError
from itk_nir.options import nearest_name

__all__ = [
    "AUTO",
    "LNCC",
    "METRICS",
    "MIND",
    "MSE",
    "NCC",
    "NONE",
    "LevelImages",
    "LevelMetric",
    "Metric",
    "MetricNames",
    "MutualInformation",
    "NoMetric",
    "Tuning",
    "WeightedSum",
    "channel_metrics",
    "look_at_images",
    "mean_of",
    "mean_tuning",
    "metric_named",
    "of_one_contrast",
    "weighted_sum",
]


@dataclass(frozen=True)
class LNCC:
    """Mean squared local normalised cross-correlation over cubic windows (see `ops.Lncc`).

    Parameters
    ----------
    epsilon : float
        Variance below which a window of the normalised images counts as flat.

    References
    ----------
    Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Med. Image Anal. 12(1), 2008,
    eq. 6, squared.
    """

    epsilon: float = 1e-4
    #: Noise alone can be fitted to that.
    little_evidence = 0.25
    one_contrast = True

    def prepare(self, images: LevelImages) -> LevelMetric:
        """The sums of the fixed image, once for the level.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        i = images
        lncc = ops.Lncc.make(i.fixed, i.weight, i.radius, self.epsilon, i.threads, i.centres)
        return LevelLNCC(i.moving, lncc)


@dataclass(frozen=True)
class NCC:
    """Normalised cross-correlation of the whole images, Pearson's r: for one contrast without a bias field."""

    little_evidence = 0.25
    one_contrast = True

    def prepare(self, images: LevelImages) -> LevelMetric:
        """Mean and norm of the fixed image over the positions that count, once for the level.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        inside = images.inside()
        count = float(inside.sum())
        centred = images.fixed - (images.fixed * inside).sum(dtype=torch.float64) / max(1.0, count)
        norm = float((centred * inside).square().sum(dtype=torch.float64).sqrt())
        flat = norm <= 1e-6 * max(1.0, count) ** 0.5
        unit = centred.float() / max(norm, 1e-12)
        return _LevelNCC(images.moving, unit, images.weight, 0.0 if flat else count, images.threads)


@dataclass(frozen=True, eq=False)
class _LevelNCC:
    moving: Tensor
    unit: Tensor  # the fixed image, zero mean and unit norm over the positions that count
    weight: Tensor | None
    count: float
    threads: int

    def __call__(self, view: View) -> Tensor:
        # The mean of the warped image need not be taken off the product: `unit` sums to zero.
        total, square, product = ops.global_sums(self.unit, view(self.moving), self.weight, self.threads).unbind()
        variance = square - total * total / self.count
        return (product / variance.clamp(min=1e-6 * self.count).sqrt()).float()


@dataclass(frozen=True)
class MSE:
    """1 minus the mean squared difference over the variance of the fixed image: for one scanner and protocol."""

    little_evidence = 0.25
    one_contrast = True

    def prepare(self, images: LevelImages) -> LevelMetric:
        """The variance of the fixed image over the positions that count, once for the level.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        kept = images.fixed[images.inside()].double()
        variance = float(kept.var(correction=0)) if len(kept) else 0.0
        count = float(len(kept)) if variance > 1e-12 else 0.0
        return _LevelMSE(images, float(kept.sum()), float(kept.square().sum()), max(variance, 1e-12), count)


@dataclass(frozen=True, eq=False)
class _LevelMSE:
    images: LevelImages
    total: float
    square: float
    variance: float
    count: float

    def __call__(self, view: View) -> Tensor:
        i = self.images
        m, mm, fm = ops.global_sums(i.fixed, view(i.moving), i.weight, i.threads).unbind()
        a, b = i.moving_in_fixed_units
        # sum (f - a m - b)², multiplied out
        squares = self.square + a * a * mm + b * b * self.count - 2 * a * fm - 2 * b * self.total + 2 * a * b * m
        return (1 - squares / (self.count * self.variance)).float()


@dataclass(frozen=True)
class MutualInformation:
    """(Normalised) mutual information of the whole images: for unlike contrasts (see `ops.MutualInformation`).

    Parameters
    ----------
    bins : int
        Of either image, 4 to 128.
    normalised : bool
        Divided by the geometric mean of both entropies (0 to 1), else plain, in nats.

    References
    ----------
    Mattes et al., "PET-CT image registration in the chest using free-form deformations", IEEE Trans. Med. Imaging
    22(1), 2003; Strehl and Ghosh, "Cluster ensembles", J. Mach. Learn. Res. 3, 2002, for the normalised one.
    """

    bins: int = 32
    normalised: bool = True
    #: The information in whole images changes less than local correlations for the same error, and costs less.
    tuning = Tuning(smoothness=0.35, iterations=2.0, jacobian_weight=1.25, jacobian_margin=1.25)
    little_evidence = 0.02
    contrast_gain = 0.02

    def prepare(self, images: LevelImages) -> LevelMetric:
        """The bins of the fixed image, once for the level.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        measure = ops.MutualInformation.make(
            images.fixed, images.weight, *images.ranges(), self.bins, self.normalised, images.threads
        )
        kept = measure.prepared[measure.prepared >= 0]
        flat = len(kept) == 0 or bool(kept.min() == kept.max())
        return _LevelMutualInformation(images.moving, measure, 0.0 if flat else measure.count)


@dataclass(frozen=True, eq=False)
class _LevelMutualInformation:
    moving: Tensor
    measure: ops.MutualInformation
    count: float

    def __call__(self, view: View) -> Tensor:
        return self.measure(view(self.moving))


@dataclass(frozen=True)
class MIND:
    """1 minus the mean squared difference of MIND-SSC descriptors over their variance: for unlike contrasts.

    Descriptors say how alike a voxel's neighbours are to one another, which no change of contrast alters. Those of the
    moving image are made once a level, along the axes of the fixed image, and then warped.

    Parameters
    ----------
    radius : int
        Of the patches that are compared, voxels of the level.

    References
    ----------
    Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities", MICCAI
    2013.
    """

    radius: int = 1
    tuning = Tuning(smoothness=0.5)

    def prepare(self, images: LevelImages) -> LevelMetric:
        """The descriptors of both images, once for the level.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        d, threads = images.dimension, images.threads
        axes = np.eye(3) if images.axes is None else images.axes
        if ("mind", self.radius) not in images.memo:
            images.memo["mind", self.radius] = (
                ops.mind_descriptors(images.fixed, np.eye(3), self.radius, d, threads),
                ops.mind_descriptors(images.moving, axes, self.radius, d, threads),
            )
        fixed, moving = images.memo["mind", self.radius]
        channels = ops.MIND_CHANNELS[d]
        sums, squares = np.zeros(channels), np.zeros(channels)
        inside = images.inside()
        for plane, kept in zip(fixed, inside, strict=True):  # a plane at a time: as numbers they need much more room
            values = plane[kept][:, :channels].double() / 255
            sums += values.sum(0).cpu().numpy()
            squares += values.square().sum(0).cpu().numpy()
        count = float(inside.sum())
        variance = float((squares / max(1.0, count) - (sums / max(1.0, count)) ** 2).mean())
        return _LevelMIND(fixed, moving, images.weight, channels, variance, count if variance > 1e-9 else 0.0)


@dataclass(frozen=True, eq=False)
class _LevelMIND:
    fixed: Tensor
    moving: Tensor
    weight: Tensor | None
    channels: int
    variance: float
    count: float

    def __call__(self, view: View) -> Tensor:
        difference = view.descriptor_difference(self.fixed, self.moving, self.weight, self.channels)
        return 1 - difference / (self.count * self.variance)


@dataclass(frozen=True)
class WeightedSum:
    """The weighted mean of several metrics.

    Parameters
    ----------
    parts : tuple of (float, Metric)
        Weight above 0 and metric of each.
    """

    parts: tuple[tuple[float, Metric], ...]

    @property
    def tuning(self) -> Tuning:
        """The weighted mean of those of the parts."""
        return mean_tuning(self.parts)

    @property
    def little_evidence(self) -> float:
        """The weighted mean of those of the parts."""
        return mean_of(self.parts, "little_evidence")

    @property
    def contrast_gain(self) -> float:
        """The weighted mean of those of the parts."""
        return mean_of(self.parts, "contrast_gain")

    @property
    def one_contrast(self) -> bool:
        """Whether all parts are for images of one contrast."""
        return of_one_contrast(self.parts)

    def prepare(self, images: LevelImages) -> LevelMetric:
        """Every part's own preparation.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        return weighted_sum([(w, m.prepare(images)) for w, m in self.parts])


#: Metrics by name. An entry from outside is as good as ours.
METRICS: dict[str, Metric] = {
    "lncc": LNCC(),
    "ncc": NCC(),
    "mse": MSE(),
    "nmi": MutualInformation(),
    "mi": MutualInformation(normalised=False),
    "mind": MIND(),
}

#: The word for the metric that `itk_nir.engine.choice` picks for a pair.
AUTO = "auto"

_TERM = re.compile(r"\s*(?:([0-9.eE+-]+)\s*\*\s*)?([^\s*+][^*+]*?)\s*")


def _terms(text: str) -> list[tuple[float, str]] | None:
    """``"0.5*nmi + mind"`` as weights and names; None where it is no such sum."""
    out = []
    for part in text.split("+"):
        found = _TERM.fullmatch(part)
        if found is None:
            return None
        try:
            weight = 1.0 if found[1] is None else float(found[1])
        except ValueError:
            return None
        if not 0 < weight < float("inf"):
            return None
        out.append((weight, found[2]))
    return out


class MetricNames(Collection[str]):
    """The names that ``metric`` may be, live: those of a table, some words, and weighted sums of the names.

    Parameters
    ----------
    table : mapping of str to object
        The names.
    words : sequence of str
        What else it may be.
    """

    def __init__(self, table: Mapping[str, Any], words: Sequence[str] = ()) -> None:
        self.table, self.words = table, tuple(words)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.words, *self.table))

    def __len__(self) -> int:
        return len(self.words) + len(self.table)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or name in self.words or name in self.table:
            return isinstance(name, str)
        terms = _terms(name)
        return terms is not None and all(part in self.table for _, part in terms)

    def hint(self, name: str) -> str:
        """How a sum is spelt, for what may have been meant as one; else the nearest name.

        Parameters
        ----------
        name : str
            What the user wrote.

        Returns
        -------
        str
        """
        spelt = "; a sum is spelt '0.3*nmi + 0.7*lncc', weights above 0"
        return spelt if {*name} & {*"*+"} else nearest_name(name, self)


def metric_named(metric: str | Metric) -> Metric:
    """The entry of `METRICS`, the weighted sum that is spelt out, or the object itself.

    Parameters
    ----------
    metric : str or Metric
        A key of `METRICS`, a sum such as ``"0.5*nmi + 0.5*mind"``, or a metric.

    Returns
    -------
    Metric

    Raises
    ------
    KeyError
        No such name.
    """
    if not isinstance(metric, str):
        return metric
    if metric == AUTO:  # `itk_nir.engine.choice` has chosen for whoever asked; the engine alone takes this one
        return METRICS["lncc"]
    if metric == NONE:
        return NoMetric()
    if metric in METRICS:
        return METRICS[metric]
    terms = _terms(metric)
    if terms is None:
        raise KeyError(metric)
    return WeightedSum(tuple((w, METRICS[name]) for w, name in terms))


def channel_metrics(
    metric: str | Metric | tuple[str | Metric, ...], weights: tuple[float, ...], channels: int
) -> tuple[tuple[float, Metric], ...]:
    """Weight and metric of every channel.

    Parameters
    ----------
    metric : str, Metric or tuple of them
        One for all channels, or one for each.
    weights : tuple of float
        One a channel; none for 1 everywhere.
    channels : int
        How many there are.

    Returns
    -------
    tuple of (float, Metric)

    Raises
    ------
    OptionError
        Another number of metrics or weights.
    """
    several = metric if isinstance(metric, tuple) else (metric,) * channels
    for name, values in (("metric", several), ("channel_weights", weights or several)):
        if len(values) != channels:
            raise OptionError(
                f"{name} has {len(values)} values but the images have {channels} "
                f"channel{'' if channels == 1 else 's'}; give one for each"
            )
    return tuple(zip(weights or (1.0,) * channels, map(metric_named, several), strict=True))

"""Metrics as the linear stage takes them: made steadier where a map of few parameters would be led astray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.metrics import LNCC, MIND, Metric, MutualInformation, WeightedSum
from itk_nir.engine.ops.histogram import LEAST_BINS

#: Variance below which a window of the squared local correlation counts as flat, in images of unit variance.
FLAT = 0.03

#: Of so many voxels one is looked at before all are.
_STRIDE = 97


def with_filled_bins(pair: Pair, metrics: Sequence[tuple[float, Metric]]) -> list[tuple[float, Metric]]:
    """Mutual information of images that have two values only, with no more bins than these fill.

    Where both images are binary, all but two bins of either hold nothing but voxels at outlines, whose values are
    those of interpolation. Mutual information is then large where many of these fall into few bins, that is where
    outlines lie on the same parts of a voxel, and the descent ends in one of many such places far from the answer.

    Parameters
    ----------
    pair : Pair
        The images.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.

    Returns
    -------
    list of (float, Metric)
        The same, but for mutual information of channels of which both images are binary.
    """
    images = [(pair.fixed, pair.moving), *((c.fixed, c.moving) for c in pair.more)]
    return [
        (weight, changed if changed != metric and all(_is_binary(i) for i in both) else metric)
        for (weight, metric), both in zip(metrics, images, strict=True)
        for changed in [_each_part(metric, _with_fewest_bins)]
    ]


def without_descriptors(metrics: Sequence[tuple[float, Metric]]) -> list[tuple[float, Metric]]:
    """Sums without MIND, for a linear stage that has the metric of the deformation.

    Descriptors are alike where structures lie on each other to a voxel or two, and differ about as much everywhere
    else: they hold a map of few parameters wherever edges happen to meet. Other parts of a sum may know the way, but
    vary far less: it is not mutual information that decides then, whatever little weight the descriptors have.

    Parameters
    ----------
    metrics : sequence of (float, Metric)
        Weight and metric of each channel, as the deformation has them.

    Returns
    -------
    list of (float, Metric)
        The same, but for sums that hold `MIND` and another metric: what else there is in them.
    """
    return [(weight, _without_descriptors(metric)) for weight, metric in metrics]


def _without_descriptors(metric: Metric) -> Metric:
    if not isinstance(metric, WeightedSum):
        return metric
    kept = tuple((weight, part) for weight, part in metric.parts if not isinstance(part, MIND))
    if len(kept) in (0, len(metric.parts)):
        return metric
    return kept[0][1] if len(kept) == 1 else WeightedSum(kept)


def steadied(metric: Metric) -> Metric:
    """A metric with which windows of little but noise count for less.

    Parameters
    ----------
    metric : Metric
        Of a channel.

    Returns
    -------
    Metric
        Itself, unless it is, or holds, a squared local correlation: that one gives every window the same weight,
        whatever there is in it, and many windows of air lead the few parameters of a linear map astray.
    """
    return _each_part(metric, _with_flat_windows)


def _each_part(metric: Metric, change: Callable[[Metric], Metric]) -> Metric:
    """A metric, or every part of a sum, changed."""
    if isinstance(metric, WeightedSum):
        return WeightedSum(tuple((weight, _each_part(part, change)) for weight, part in metric.parts))
    return change(metric)


def _with_fewest_bins(metric: Metric) -> Metric:
    return replace(metric, bins=LEAST_BINS) if isinstance(metric, MutualInformation) else metric


def _with_flat_windows(metric: Metric) -> Metric:
    return replace(metric, epsilon=max(metric.epsilon, FLAT)) if isinstance(metric, LNCC) else metric


def _is_binary(image: Tensor) -> bool:
    if len(torch.unique(image.reshape(-1)[::_STRIDE])) > 2:
        return False
    low, high = image.min(), image.max()
    return bool(((image == low) | (image == high)).all())

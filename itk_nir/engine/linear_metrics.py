"""Mutual information of images that have two values only, with no more bins than these fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.metrics import Metric, MutualInformation, WeightedSum
from itk_nir.engine.ops.histogram import LEAST_BINS


def with_filled_bins(pair: Pair, metrics: Sequence[tuple[float, Metric]]) -> list[tuple[float, Metric]]:
    """Metrics of the linear stage as the images' own values allow.

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
        (weight, _coarse(metric) if _has_bins(metric) and all(_is_binary(i) for i in both) else metric)
        for (weight, metric), both in zip(metrics, images, strict=True)
    ]


def _has_bins(metric: Metric) -> bool:
    if isinstance(metric, WeightedSum):
        return any(_has_bins(part) for _, part in metric.parts)
    return isinstance(metric, MutualInformation)


def _coarse(metric: Metric) -> Metric:
    if isinstance(metric, WeightedSum):
        return WeightedSum(tuple((weight, _coarse(part)) for weight, part in metric.parts))
    return replace(metric, bins=LEAST_BINS) if isinstance(metric, MutualInformation) else metric


def _is_binary(image: Tensor) -> bool:
    low, high = image.min(), image.max()
    return bool(((image == low) | (image == high)).all())

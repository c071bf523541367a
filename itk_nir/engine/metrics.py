"""Similarity metrics: one entry each in the table `METRICS`.

A metric is any object with the one method of `Metric`: it is shown the images of a resolution level and returns what
measures there, a `LevelMetric`, which gives the similarity of a warped image as a differentiable scalar. Everything
that depends on the fixed image alone is thus done once a level. A metric is chosen by its name, ``metric="lncc"``, or
given as an object, ``metric=LNCC(epsilon=1e-3)``; one from outside the package is put into the table under a name of
its own, or given as it is. ``docs/own_metric.md`` writes one from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from itk_nir.engine import ops


@dataclass(frozen=True, eq=False)
class LevelImages:
    """What a metric is shown of a resolution level.

    Parameters
    ----------
    fixed : Tensor
        ``(Z, Y, X)`` float32, smoothed, zero mean and unit variance over the foreground of the whole image. 2D images
        have one plane.
    moving : Tensor
        ``(Z', Y', X')``, the same of the moving image, on its own grid.
    weight : Tensor or None
        ``(Z, Y, X)``, above 0.5 where the fixed image counts (masks, extent of the moving image); None for everywhere.
    radius : int
        Of the window of windowed metrics, voxels of the level.
    threads : int
        CPU threads; no result may depend on it.
    """

    fixed: Tensor
    moving: Tensor
    weight: Tensor | None
    radius: int
    threads: int = 1


class LevelMetric(Protocol):
    """A metric at one level."""

    @property
    def count(self) -> float:
        """At how many positions the images are compared; 0 ends the registration with `NothingToCompare`."""

    @property
    def moving(self) -> Tensor:
        """``(Z', Y', X')``: what is warped onto the fixed grid: the moving image of the level, or a feature of it."""

    def __call__(self, warped: Tensor) -> Tensor:
        """Similarity of ``warped (Z, Y, X)`` with the fixed image: a scalar, 1 is perfect, with its gradient."""


@runtime_checkable
class Metric(Protocol):
    """What is chosen as ``metric``: makes a `LevelMetric` for each level."""

    def prepare(self, images: LevelImages) -> LevelMetric:
        """Whatever can be computed before the first iteration of a level.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
            Called with a warped moving image in every iteration.
        """


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
        lncc = ops.Lncc.make(images.fixed, images.weight, images.radius, self.epsilon, images.threads)
        return _LevelLNCC(images.moving, lncc)


@dataclass(frozen=True, eq=False)
class _LevelLNCC:
    moving: Tensor
    lncc: ops.Lncc

    @property
    def count(self) -> float:
        return self.lncc.count

    def __call__(self, warped: Tensor) -> Tensor:
        return self.lncc(warped)


@dataclass(frozen=True)
class NCC:
    """Normalised cross-correlation of the whole images, Pearson's r: for one contrast without a bias field."""

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
        inside = torch.ones_like(images.fixed) if images.weight is None else (images.weight > 0.5).float()
        count = float(inside.sum(dtype=torch.float64))
        centred = (images.fixed - (images.fixed * inside).sum(dtype=torch.float64) / max(1.0, count)).mul_(inside)
        norm = float(centred.square().sum(dtype=torch.float64).sqrt())
        flat = norm <= 1e-6 * max(1.0, count) ** 0.5
        return _LevelNCC(images.moving, centred.float() / max(norm, 1e-12), inside, 0.0 if flat else count)


@dataclass(frozen=True, eq=False)
class _LevelNCC:
    moving: Tensor
    unit: Tensor  # the fixed image, zero mean and unit norm over the positions that count, zero elsewhere
    inside: Tensor
    count: float

    def __call__(self, warped: Tensor) -> Tensor:
        # The mean of `warped` need not be taken off the product: `unit` sums to zero.
        product = (self.unit * warped).sum(dtype=torch.float64)
        mean = (warped * self.inside).sum(dtype=torch.float64) / self.count
        square = (warped.square() * self.inside).sum(dtype=torch.float64) - self.count * mean * mean
        return (product / square.clamp(min=1e-6 * self.count).sqrt()).float()


#: Metrics by name. An entry from outside is as good as ours.
METRICS: dict[str, Metric] = {"lncc": LNCC(), "ncc": NCC()}


def metric_named(metric: str | Metric) -> Metric:
    """The entry of `METRICS`, or the object itself.

    Parameters
    ----------
    metric : str or Metric
        A key of `METRICS`, or a metric.

    Returns
    -------
    Metric
    """
    return METRICS[metric] if isinstance(metric, str) else metric

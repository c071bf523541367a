"""What a metric is: the protocol, what it is shown of a level, and what it may say of itself.

`itk_nir.engine.metrics` has the metrics, and these names too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.views import View
from itk_nir.errors import OptionError
from itk_nir.options import shown


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
    fixed_range, moving_range : tuple of float or None
        Between which nearly all intensities of either (whole) image lie; None: their extremes.
    moving_in_fixed_units : tuple of float
        ``(a, b)``: ``a m + b`` is the intensity ``m`` of the moving image in the units of the fixed one.
    axes : ndarray or None
        ``(3, 3)``, column k: the step of one voxel along axis k of the fixed grid, in voxels of the moving one (about:
        by the linear map). None for the identity.
    dimension : int
        2 or 3.
    centres : Tensor or None
        ``(Z, Y, X)``, 0 or 1: where windows may be centred, which is where the fixed image counts and in lesions, so
        that what lies around a lesion is seen by as many windows as elsewhere; None for where it counts.

    Attributes
    ----------
    memo : dict
        What a metric made of these images and may need again with another weight; `weighted` hands it on, and a copy in
        which anything else is changed begins with an empty one.
    """

    fixed: Tensor
    moving: Tensor
    weight: Tensor | None
    radius: int
    threads: int = 1
    fixed_range: tuple[float, float] | None = None
    moving_range: tuple[float, float] | None = None
    moving_in_fixed_units: tuple[float, float] = (1.0, 0.0)
    axes: NDArray[np.float64] | None = None
    dimension: int = 3
    centres: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict, init=False)

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Between which the intensities of the fixed and of the moving image lie, or nearly all of them.

        Returns
        -------
        tuple of tuple of float
            Lowest and highest of either.
        """
        pairs = (self.fixed, self.fixed_range), (self.moving, self.moving_range)
        fixed, moving = ((float(x.min()), float(x.max())) if r is None else r for x, r in pairs)
        return fixed, moving

    def weighted(self, weight: Tensor | None, centres: Tensor | None = None) -> LevelImages:
        """The same images, counted elsewhere.

        Parameters
        ----------
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where the fixed image counts.
        centres : Tensor or None
            Where windows may be centred, as of the class.

        Returns
        -------
        LevelImages
            With the same `memo`.
        """
        out = replace(self, weight=weight, centres=centres)
        object.__setattr__(out, "memo", self.memo)
        return out

    def inside(self) -> Tensor:
        """Where the fixed image counts.

        Returns
        -------
        Tensor
            ``(Z, Y, X)`` bool.
        """
        return torch.ones_like(self.fixed, dtype=torch.bool) if self.weight is None else self.weight > 0.5


class LevelMetric(Protocol):
    """A metric at one level."""

    @property
    def count(self) -> float:
        """At how many positions the images are compared; 0 ends the registration with `NothingToCompare`."""

    def __call__(self, view: View) -> Tensor:
        """Similarity under a map: a scalar, 1 is perfect, with its gradient.

        ``view(image)`` is an image of the moving side, such as ``images.moving``, on the fixed grid.
        """


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
            Called with a view of the moving side in every iteration.
        """


def check_metrics(settings: Any, name: str, word: str) -> None:
    """Refuse an option of metrics with a class for an object, or with a word for all channels among several values.

    That word for every channel is the word alone, which the option then is.

    Parameters
    ----------
    settings : dataclass
        With the option.
    name : str
        Of the option.
    word : str
        ``"auto"`` or ``"same"``, which says nothing of a single channel.

    Raises
    ------
    OptionError
        Either.
    """
    chosen = getattr(settings, name)
    each = chosen if isinstance(chosen, tuple) else (chosen,)
    for one in each:
        if isinstance(one, type):
            raise OptionError(f"{name} is the class {one.__name__}; give an object of it, such as {one.__name__}()")
    words = sum(isinstance(one, str) and one == word for one in each)
    if isinstance(chosen, tuple) and words:
        if words < len(each):
            raise OptionError(
                f"{name} is {shown(chosen)}, but {word!r} stands for all channels together; give {name}={word!r}, or "
                "name the metric of every channel"
            )
        object.__setattr__(settings, name, word)


@dataclass(frozen=True)
class Tuning:
    """What the settings of the deformable stage are multiplied by under a metric. They are tuned for LNCC.

    Parameters
    ----------
    smoothness : float
        Weights of the penalty on the displacement (and on the velocity).
    iterations : float
        Iterations, where the user did not say how many.
    jacobian_weight, jacobian_margin : float
        Weight of the Jacobian-determinant penalty, and the determinant below which it sets in.
    """

    smoothness: float = 1.0
    iterations: float = 1.0
    jacobian_weight: float = 1.0
    jacobian_margin: float = 1.0


@dataclass(frozen=True, eq=False)
class _LevelSum:
    parts: tuple[tuple[float, LevelMetric], ...]
    count: float

    def __call__(self, view: View) -> Tensor:
        values = [w * metric(view) for w, metric in self.parts]
        return torch.stack(values).sum() / sum(w for w, _ in self.parts)


def weighted_sum(parts: Sequence[tuple[float, LevelMetric]]) -> LevelMetric:
    """The weighted mean of what measures at a level; what has nothing to compare there is left out.

    Parameters
    ----------
    parts : sequence of (float, LevelMetric)
        Weight and metric of each.

    Returns
    -------
    LevelMetric
    """
    kept = tuple((w, m) for w, m in parts if m.count >= 1)
    if len(kept) == 1:
        return kept[0][1]
    return _LevelSum(kept, max((m.count for _, m in kept), default=0.0))


def mean_tuning(parts: Sequence[tuple[float, Metric]]) -> Tuning:
    """The weighted mean of what several metrics say of the settings.

    Parameters
    ----------
    parts : sequence of (float, Metric)
        Weight and metric of each.

    Returns
    -------
    Tuning
    """
    found = [(w, getattr(m, "tuning", Tuning())) for w, m in parts]
    return Tuning(**{f.name: _mean([(w, getattr(t, f.name)) for w, t in found]) for f in fields(Tuning)})


def mean_of(parts: Sequence[tuple[float, Metric]], attribute: str) -> float:
    """The weighted mean of a number that several metrics say of themselves.

    Parameters
    ----------
    parts : sequence of (float, Metric)
        Weight and metric of each; one that says nothing of it counts as 0.
    attribute : str
        ``"little_evidence"``, the similarity below which images say little about where things belong, or
        ``"contrast_gain"``, the share of it that a stretch may gain by a difference of contrast alone.

    Returns
    -------
    float
    """
    return _mean([(w, float(getattr(m, attribute, 0.0))) for w, m in parts])


def of_one_contrast(parts: Sequence[tuple[float, Metric]]) -> bool:
    """Whether several metrics are for images of one contrast.

    Parameters
    ----------
    parts : sequence of (float, Metric)
        Weight and metric of each; one that says nothing of it is for unlike ones too.

    Returns
    -------
    bool
        Whether all are.
    """
    return all(getattr(m, "one_contrast", False) for _, m in parts)


def _mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(w * x for w, x in values) / sum(w for w, _ in values)

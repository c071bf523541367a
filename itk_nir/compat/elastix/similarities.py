"""What the metrics of parameter maps are here: similarities, corresponding points, overlap of structures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.elastix.options import BINS, METRICS, OVERLAP, PENALTIES, POINTS
from itk_nir.compat.elastix.values import at_last, flag_of, number_of, weight_of
from itk_nir.compat.options import MUTUAL_INFORMATION, mutual_information
from itk_nir.errors import OptionError
from itk_nir.images import Volume
from itk_nir.transforms.formats.elastix import ParameterMap

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric

#: The similarity whose size is that of the intensities.
SQUARES = "AdvancedMeanSquares"
#: No weight is larger.
MOST_WEIGHT = 1e6
#: Similarities with their weights.
Parts = tuple[tuple[float, Any], ...]


@dataclass(frozen=True)
class Overlap:
    """Images of a structure that are to overlap, which is a label here.

    Parameters
    ----------
    image : int
        Which of several pairs of images they are; of a single pair, that one.
    foreground : float
        The value of the structure.
    weight : float
        Beside all of the similarities.
    """

    image: int
    foreground: float
    weight: float


def combined(parts: Parts | None) -> str | Metric | None:
    """One metric of several similarities.

    Parameters
    ----------
    parts : tuple of (float, str or Metric) or None
        With their weights; none at all is the metric ``"none"``.

    Returns
    -------
    str, Metric or None
        None for None.
    """
    # Here, because it imports torch: reading the tables must not wait for that.
    from itk_nir.engine.metrics import WeightedSum, metric_named

    if parts is None or len(parts) < 2:
        return None if parts is None else parts[0][1] if parts else "none"
    if all(isinstance(metric, str) for _, metric in parts):
        return " + ".join(f"{weight:.15g}*{metric}" for weight, metric in parts)
    return WeightedSum(tuple((weight, metric_named(metric)) for weight, metric in parts))


def for_each(parts: Parts | None, channels: int) -> Any:
    """A metric for each of several pairs of images.

    Parameters
    ----------
    parts : tuple of (float, str or Metric) or None
        With their weights: one of them, or one for each pair.
    channels : int
        How many pairs there are.

    Returns
    -------
    str, Metric, tuple of these or None
        None for None.

    Raises
    ------
    OptionError
        Another number of metrics.
    """
    if parts is None or len(parts) == 0:
        return combined(parts)
    if len(parts) == 1:
        return parts[0][1]
    if len(parts) != channels:
        raise OptionError(
            f"elastix parameter Metric: there are {channels} pairs of images and {len(parts)} similarities; name one, "
            "or one for each pair"
        )
    return tuple(metric for _, metric in parts)


def parts_of(parameters: ParameterMap, where: str) -> Parts | None:
    """The similarities of a map with their weights.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map.
    where : str
        What to call it in messages.

    Returns
    -------
    tuple of (float, str or Metric) or None
        None where it names none but penalties.

    Raises
    ------
    OptionError
        A weight below 0, or weights that leave nothing.
    """
    names = parameters.get("Metric", ())
    others = POINTS in names or OVERLAP in names
    if not any(name in METRICS for name in names):
        return () if others else None
    parts: list[tuple[float, Any]] = []
    for _, name, weight in _weighted(parameters, where):
        if name in METRICS and weight > 0:
            ours = METRICS[name]
            parts.append((weight, _with_bins(parameters, where) if ours == MUTUAL_INFORMATION else ours))
    if not parts and not others:
        raise OptionError(f"elastix parameter Metric {where}: all have weight 0 or are not used; leave one in")
    return tuple(parts)


@dataclass(frozen=True)
class PointsTerm:
    """How much corresponding points count in a map beside its similarities.

    elastix adds up ``weight * mean distance in mm`` and each similarity times its own weight. Ours divide the
    similarities by the sum of their weights.

    Parameters
    ----------
    weight : float
        Of the mean distance of the points.
    similarities : tuple of (int, str, float)
        Their numbers among the metrics, elastix' names, and weights above 0.
    normalised : bool
        Whether mean squares are those of intensities that reach from 0 to 10.
    """

    weight: float
    similarities: tuple[tuple[int, str, float], ...]
    normalised: bool

    def beside(self, fixed: Sequence[Volume], moving: Sequence[Volume]) -> float:
        """The weight of the mean distance in voxels where similarities are at most 1 in all.

        Parameters
        ----------
        fixed, moving : sequence of Volume
            The images, pair by pair.

        Returns
        -------
        float
        """
        if not self.similarities:
            # Nothing but the points counts, in whatever unit they come.
            return self.weight
        whole = 0.0
        for number, name, weight in self.similarities:
            pair = min(number, len(fixed) - 1)
            whole += weight * (self._unit_of_squares(fixed[pair], moving[pair]) if name == SQUARES else 1.0)
        return min(MOST_WEIGHT, self.weight * min(fixed[0].geometry.spacing) / whole)

    def _unit_of_squares(self, fixed: Volume, moving: Volume) -> float:
        """What elastix' mean squares are where ours are 1: ours are those over the variance of the fixed image."""
        ours, theirs = (v.array.astype(np.float64) * v.scale + v.offset for v in (fixed, moving))
        span = max(ours.max() - theirs.min(), theirs.max() - ours.min(), 1e-10)
        return max(float(ours.var()), 1e-10) * (100 / float(span) ** 2 if self.normalised else 1.0)


def points_of(maps: Sequence[ParameterMap]) -> PointsTerm | None:
    """How much corresponding points count.

    Parameters
    ----------
    maps : sequence of dict of str to list of str
        Parameter maps; the last one that has points counts.

    Returns
    -------
    PointsTerm or None
        None where no map has them.

    Raises
    ------
    OptionError
        A weight below 0.
    """
    for number, one in reversed(list(enumerate(maps))):
        if POINTS in one.get("Metric", ()):
            weights = list(_weighted(one, f"of map {number}"))
            return PointsTerm(
                max(w for _, name, w in weights if name == POINTS),
                tuple(one for one in weights if one[1] in METRICS and one[2] > 0),
                flag_of(at_last(one), "UseNormalization", False),
            )
    return None


def overlap_of(maps: Sequence[ParameterMap]) -> Overlap | None:
    """The images of a structure whose overlap counts.

    Parameters
    ----------
    maps : sequence of dict of str to list of str
        Parameter maps; the last one that has that metric counts.

    Returns
    -------
    Overlap or None
        None where no map has it, or gives it a weight.

    Raises
    ------
    OptionError
        A weight below 0, or a foreground value that is no number.
    """
    for number, one in reversed(list(enumerate(maps))):
        names = list(one.get("Metric", ()))
        if OVERLAP in names:
            weight = _relative(one, OVERLAP, f"of map {number}")
            if weight > 0:
                return Overlap(names.index(OVERLAP), number_of(one, "ForegroundValue", 1.0), weight)
    return None


def _weighted(parameters: ParameterMap, where: str) -> Iterator[tuple[int, str, float]]:
    """Number, name and weight of the metrics of a map: 0 for one that is not used. Penalties are left out."""
    for n, name in enumerate(parameters.get("Metric", ())):
        if name in PENALTIES:
            continue
        parameter, weight, counts = weight_of(parameters, n)
        if weight < 0:
            raise OptionError(f"elastix parameter {parameter} {where}: cannot be below 0, got {weight:g}")
        yield n, name, weight if counts else 0.0


def _relative(parameters: ParameterMap, wanted: str, where: str) -> float:
    """Weight of a metric over the sum of those of the similarities, which is 1 here."""
    weights = [(name, weight) for _, name, weight in _weighted(parameters, where)]
    others = [w for name, w in weights if name in METRICS and w > 0]
    own = max(w for name, w in weights if name == wanted)
    return own / (sum(others) if others else 1.0)


def _with_bins(parameters: ParameterMap, where: str) -> str | Metric:
    """Mutual information with the bins of a map: the larger number, where both images have their own."""
    last = at_last(parameters)
    both = number_of(last, "NumberOfHistogramBins", BINS)
    bins = max(number_of(last, f"NumberOf{image}HistogramBins", both) for image in ("Fixed", "Moving"))
    return mutual_information(
        int(bins) if bins.is_integer() else bins, f"elastix parameter NumberOfHistogramBins {where}"
    )

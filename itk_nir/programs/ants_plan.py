"""From what a command line of antsRegistration asks for to calls of `itk_nir.register`.

Linear stages are one search, and so are deformable ones. The two are one registration where they look at the same
images in the same way, and two, one after the other, where they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from itk_nir.compat.ants.smoothness import SPLINE_DISTANCE, TOTAL, UPDATE, smoothness_factor
from itk_nir.compat.options import level_options, limited, mutual_information
from itk_nir.engine.restriction import check_restriction
from itk_nir.errors import OptionError, escaped
from itk_nir.programs.ants_request import Metric, Request, Stage
from itk_nir.programs.ants_values import COMPARES_INTENSITIES, LINEAR, METRICS, ORDER, TRANSFORMS
from itk_nir.programs.ants_words import number

#: Voxels above which a preset's own iterations are enough; smaller images get up to twice as many, where the line asks.
_FEW_VOXELS = 4_000_000


@dataclass(frozen=True)
class Call:
    """One call of `itk_nir.register`.

    Parameters
    ----------
    linear : str
        Its linear stage.
    deformable : bool
        Whether a deformation follows.
    pairs : tuple of (str, str)
        Names of the fixed and the moving image of each channel.
    masks : tuple of (str or None)
        Of the fixed and the moving image.
    histogram_matching : bool
        Whether the histograms of the moving images are matched to those of the fixed ones.
    restrict : tuple of int
        1 or 0 for each axis; empty for all of them.
    options : dict
        Options of the preset.
    """

    linear: str
    deformable: bool
    pairs: tuple[tuple[str, str], ...]
    masks: tuple[str | None, str | None]
    histogram_matching: bool
    restrict: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is done for a command line.

    Parameters
    ----------
    calls : tuple of Call
        None, one or two.
    notes : tuple of str
        What is done otherwise than the line says, one sentence each.
    """

    calls: tuple[Call, ...]
    notes: tuple[str, ...]


def plan_of(request: Request, preset: str, spacing: Sequence[float], voxels: int) -> Plan:
    """Plan what is done for a command line.

    Parameters
    ----------
    request : Request
        The command line.
    preset : str
        Preset of `itk_nir.register`.
    spacing : sequence of float
        Of the fixed image, mm.
    voxels : int
        Of the fixed image.

    Returns
    -------
    Plan

    Raises
    ------
    OptionError
        A value, or an order of stages, that cannot be had.
    """
    notes: list[str] = []
    done = [s for s in request.stages if _is_done(s)]
    if len(done) < len(request.stages):
        notes.append("stages whose numbers of iterations are all 0 are left out")
    linear, deformable = [s for s in done if s.linear], [s for s in done if not s.linear]
    if linear and deformable and done.index(linear[-1]) > done.index(deformable[0]):
        raise OptionError(
            f"--transform {linear[-1].transform} behind {deformable[0].transform} is refused: linear stages come first"
            "; run it by itself, with the other's files as --initial-moving-transform"
        )
    parts = []
    if linear:
        parts.append(_linear_call(linear, preset, len(spacing), notes))
    if deformable:
        parts.append(_deformable_call(deformable, preset, spacing, voxels, notes))
    if len(parts) == 2 and _alike(*parts):
        a, b = parts
        parts = [replace(b, linear=a.linear, options={**a.options, **b.options})]
    elif linear:
        if deformable:
            notes.append("linear and deformable stages differ in images, masks or axes: one is done after the other")
        parts[0] = replace(parts[0], options=_judged(parts[0].options))
    return Plan(tuple(parts), tuple(notes))


def _judged(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a linear stage alone: its metric is that of the registration, by which it is judged."""
    return {**options, "metric": options["linear_metric"]} if "linear_metric" in options else options


def _is_done(stage: Stage) -> bool:
    return not stage.iterations or sum(stage.iterations) > 0


def _alike(a: Call, b: Call) -> bool:
    """Whether both stages look at the same in the same way."""
    one, other = (
        (c.pairs, c.masks, c.histogram_matching, c.restrict, c.options.get("channel_weights")) for c in (a, b)
    )
    return one == other


def _linear_call(stages: list[Stage], preset: str, dimension: int, notes: list[str]) -> Call:
    from itk_nir.settings import options_of

    last = stages[-1]
    kind = max((LINEAR[s.transform] for s in stages), key=ORDER.index)
    if len(stages) > 1:
        notes.append(f"{', '.join(s.transform for s in stages)} are one search of {kind} maps")
    pairs, weights, metrics, radius = _channels(last.metrics)
    options: dict[str, Any] = {}
    if metrics is not None:
        options["linear_metric"] = metrics
    if radius is not None:
        options["linear_radius"] = radius
    if weights is not None:
        options["channel_weights"] = weights
    most = max((max(s.iterations) for s in stages if s.iterations), default=0)
    own = options_of(preset)["linear_iterations"]
    if most and most < max(own):
        options["linear_iterations"] = tuple(min(most, n) for n in own)
    restrict = _restriction(last, dimension)
    if restrict:
        options["restrict"] = restrict
    return Call(kind, False, pairs, last.masks, _matched(stages), restrict, options)


def _deformable_call(stages: list[Stage], preset: str, spacing: Sequence[float], voxels: int, notes: list[str]) -> Call:
    main = max(stages, key=lambda s: sum(s.iterations))
    if len(stages) > 1:
        notes.append(f"{', '.join(s.transform for s in stages)} are one deformation")
    pairs, weights, metrics, radius = _channels(main.metrics)
    options: dict[str, Any] = {"field_spacing": 1}
    if metrics is not None:
        options["metric"] = metrics
    if radius is not None:
        options["radius"] = radius
    if weights is not None:
        options["channel_weights"] = weights
    options.update(_levels(stages, main, preset, spacing, voxels, notes))
    options.update(_smoothness(main, preset, len(options.get("shrink_factors", ()))))
    restrict = _restriction(main, len(spacing))
    if restrict:
        options["restrict"] = restrict
    return Call("none", True, pairs, stages[-1].masks, _matched(stages), restrict, options)


# --- what the numbers mean -------------------------------------------------------------------------------------------


def _matched(stages: list[Stage]) -> bool:
    return any(
        s.histogram_matching and any(_ours(m) in COMPARES_INTENSITIES for m in s.metrics) for s in stages
    )  # fmt: skip


def _ours(metric: Metric) -> str:
    return METRICS[metric.kind].ours if metric.kind in METRICS else metric.kind


def _channels(
    metrics: tuple[Metric, ...],
) -> tuple[tuple[tuple[str, str], ...], tuple[float, ...] | None, Any, int | None]:
    """Pairs, their weights (None for one), the metrics (None for the preset's own), and the radius of CC."""
    counted = [m for m in metrics if m.weight > 0]
    if not counted:
        raise OptionError("the weights of the metrics of a stage are all 0; give one of them a weight")
    pairs = tuple(dict.fromkeys(m.pair for m in counted))
    radii = {m.number for m in counted if _ours(m) == "lncc" and m.number is not None}
    if len(radii) > 1:
        raise OptionError(f"CC has the radii {', '.join(map(str, sorted(radii)))} in one stage; give all the same")
    per_pair = [[m for m in counted if m.pair == pair] for pair in pairs]
    names = [_metric_of(group) for group in per_pair]
    weights = tuple(sum(m.weight for m in group) for group in per_pair) if len(pairs) > 1 else None
    if names[0] == "auto" and len(pairs) == 1:
        return pairs, None, None, None
    same = all(name == names[0] for name in names)
    return pairs, weights, names[0] if same else tuple(names), next(iter(radii), None)


def _metric_of(group: list[Metric]) -> Any:
    """The metric of one channel: one, or a weighted sum."""
    parts = [(m.weight, _one_metric(m)) for m in group]
    if len(parts) == 1:
        return parts[0][1]
    from itk_nir.engine.metrics import WeightedSum, metric_named

    total = sum(weight for weight, _ in parts)
    return WeightedSum(tuple((weight / total, metric_named(metric)) for weight, metric in parts))


def _one_metric(metric: Metric) -> Any:
    if _ours(metric) == "nmi" and metric.number is not None:
        return mutual_information(metric.number, f"{metric.kind}[...]: the number of bins")
    return _ours(metric)


def _levels(
    stages: list[Stage], main: Stage, preset: str, spacing: Sequence[float], voxels: int, notes: list[str]
) -> dict[str, Any]:
    """Levels of the deformation: those of all stages where they get finer, else those of the one that does most."""
    levels = [level for stage in stages for level in _levels_of(stage, min(spacing))]
    factors = [factor for factor, _, _ in levels]
    if factors != sorted(factors, reverse=True):
        levels = list(_levels_of(main, min(spacing)))
        factors = [factor for factor, _, _ in levels]
        if len(stages) > 1:
            notes.append("the levels are those of the deformable stage with the most iterations")
    if not levels:
        return {}
    asked = [n for _, _, n in levels]
    out = level_options(preset, factors, smoothing_sigmas=[sigma for _, sigma, _ in levels])
    # As many as the preset does of its own accord for images of this size and this metric, if the line allows it.
    from itk_nir.settings import options_of

    more = max(1.0, min(2.0, _FEW_VOXELS / max(1, voxels)))
    more *= 2.0 if any(_ours(m) == "nmi" for m in main.metrics) else 1.0
    own = tuple(round(more * n) for n in options_of(preset)["iterations"])
    return {**out, "iterations": limited(own, len(levels), asked)}


def _levels_of(stage: Stage, finest: float) -> Iterator[tuple[int, float, int]]:
    """Shrink factor, sigma in voxels of the fixed image, and iterations of each level that has any."""
    for factor, sigma, count in zip(stage.shrink_factors, stage.sigmas, stage.iterations, strict=True):
        if count:
            yield factor, sigma / finest if stage.in_mm else sigma, count


def _smoothness(stage: Stage, preset: str, levels: int) -> dict[str, Any]:
    """How smooth the variances, or the distance of the knots, ask the deformation to be."""
    update, total, distance = smoothing_of(stage)
    factor = smoothness_factor(update, total, distance)
    if factor == 1:
        return {}
    from itk_nir.settings import options_of

    own = tuple(options_of(preset)["smoothness"])
    count = levels or len(own)
    return {"smoothness": tuple(factor * w for w in (own + (own[-1],) * count)[:count])}


#: Kind of transform -> where the variances of the update and of the total field stand in its brackets.
_VARIANCES = {
    "SyN": (1, 2),
    "GaussianDisplacementField": (1, 2),
    "Exponential": (1, 2),
    "TimeVaryingVelocityField": (2, 4),
}
#: Kinds whose second number is the distance of knots in mm, unless it is a size of a mesh (``10x10x10``).
_KNOTS = ("BSplineSyN", "BSplineDisplacementField", "BSplineExponential", "BSpline")


def smoothing_of(stage: Stage) -> tuple[float, float, float]:
    """What the numbers of a deformable stage say of its smoothness.

    Parameters
    ----------
    stage : Stage
        A deformable one.

    Returns
    -------
    update, total : float
        Variances in squared voxels; ANTs' own where it says nothing.
    distance : float
        Of the knots, mm; ANTs' own where it says nothing.

    Raises
    ------
    OptionError
        A negative number.
    """
    known = {
        where: number(text, stage.transform) for where, text in enumerate(stage.numbers) if "x" not in text and text
    }
    if any(value < 0 for value in known.values()):
        raise OptionError(f"--transform {stage.transform}[{escaped(','.join(stage.numbers))}]: numbers are 0 or more")
    if stage.transform in _KNOTS:
        return UPDATE, TOTAL, known.get(1, SPLINE_DISTANCE) or SPLINE_DISTANCE
    update, total = _VARIANCES.get(stage.transform, (len(stage.numbers),) * 2)
    return known.get(update, UPDATE), known.get(total, TOTAL), SPLINE_DISTANCE


def _restriction(stage: Stage, dimension: int) -> tuple[int, ...]:
    """1 or 0 for each axis; empty where nothing is restricted."""
    weights = stage.restrict
    if all(weight == 1 for weight in weights):
        return ()
    text = "x".join(f"{w:g}" for w in weights)
    if len(weights) != dimension or any(weight not in (0, 1) for weight in weights):
        raise OptionError(
            f"--restrict-deformation {text} is refused: give 1 or 0 for each of the {dimension} axes of the fixed image"
        )
    check_restriction(tuple(weights))
    return tuple(int(weight) for weight in weights)


def linear_name(stage: Stage) -> str:
    """What ANTs calls the file of a linear stage, ``-z 0``.

    Parameters
    ----------
    stage : Stage
        A linear one.

    Returns
    -------
    str
        Such as ``"Rigid"``.
    """
    return TRANSFORMS[stage.transform].linear.capitalize()

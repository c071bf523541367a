"""From ANTs' arguments to those of `itk_nir.register`: the only file here that names options of the latter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.ants.options import (
    AFF_LEVELS,
    DEFAULT_METRIC,
    METRICS,
    OPTIONS,
    REG_ITERATIONS,
    SAMPLING,
    SCRIPT_TYPES,
    TYPES,
    Kind,
    LeftOut,
)
from itk_nir.compat.ants.smoothness import SPLINE_DISTANCE, smoothness_for
from itk_nir.compat.options import (
    LINEAR_METRIC,
    MUTUAL_INFORMATION,
    engine_options,
    level_options,
    limited,
    linear_sizes,
    mutual_information,
    register_arguments,
)
from itk_nir.engine.restriction import check_restriction
from itk_nir.errors import OptionError, warn_caller
from itk_nir.options import SYNONYMS, nearest_name, whole_number

if TYPE_CHECKING:
    from itk_nir.geometry import Geometry
    from itk_nir.settings import Settings

_SCRIPT = re.compile(r"antsRegistrationSyN(Quick)?(Repro)?(?:\[(\w+)(?:,([\d.]+))?(?:,([\d.]+))?\])?$")


def parse_type(name: Any) -> Kind:
    """What one of ANTsPy's types of transform asks for.

    Parameters
    ----------
    name : str or sequence of one str
        A key of `TYPES`, ``"TV[n]"``, or ``"antsRegistrationSyN[x]"``, ``"antsRegistrationSyNQuick[x]"`` or
        ``"antsRegistrationSyNRepro[x]"`` with a key of `SCRIPT_TYPES` for ``x``; the radius of CC may follow the type
        (with Quick the number of bins), then the spline distance in mm, as in ``"antsRegistrationSyN[b,4,26]"``. An
        empty name is ``"SyN"``, as in ANTsPy.

    Returns
    -------
    Kind
        Stages, preset and radius.

    Raises
    ------
    OptionError
        A type that is unknown to ANTs (with the nearest name), or numbers that it cannot have.
    """
    if isinstance(name, (list, tuple)) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str):
        raise OptionError(f"type_of_transform is a name such as 'SyN', got {name!r}")
    if name in TYPES or name == "":
        return TYPES[name or "SyN"]
    if re.match(r"TV\[\d+\]$", name):
        return TYPES["TVMSQ"]
    script = _SCRIPT.match(name)
    if script is None:
        known = [*TYPES, "antsRegistrationSyN[s]", "antsRegistrationSyNQuick[s]"]
        raise OptionError(
            f"unknown type_of_transform {name!r}{nearest_name(name, known)}; see docs/coming_from_ants.md"
        )
    quick, repro, letters, number, distance = script.groups()
    kind = parse_script_type(letters or "s", f"type_of_transform {name!r}")
    if quick:
        kind = replace(kind, preset="fast")
    if number is None:
        return kind
    if not kind.deformable or not number.isdigit() or int(number) < 1:
        raise OptionError(
            f"type_of_transform {name!r}: a radius of CC (with Quick a number of bins), at least 1, and a spline "
            "distance in mm can follow a type with a deformation, as in 'antsRegistrationSyN[s,4]' and "
            "'antsRegistrationSyNQuick[b,32,26]'"
        )
    bins = bool(quick and not repro)
    if bins and int(number) != SAMPLING:
        kind = replace(kind, bins=int(number))
    elif not bins:
        kind = replace(kind, radius=int(number))
    return kind if distance is None else replace(kind, spline_distance=float(distance))


def parse_script_type(letters: str, where: str) -> Kind:
    """What one of the types of antsRegistrationSyN.sh asks for.

    Parameters
    ----------
    letters : str
        A key of `SCRIPT_TYPES`: ``"s"``, ``"so"``, ``"r"``, ...
    where : str
        What to call it in messages, for example ``"-t"``.

    Returns
    -------
    Kind
        Stages, with the default preset and its radius.

    Raises
    ------
    OptionError
        A type that the script does not have.
    """
    if letters not in SCRIPT_TYPES:
        raise OptionError(f"{where}: there is no type {letters!r}; give one of {', '.join(SCRIPT_TYPES)}")
    return SCRIPT_TYPES[letters]


def kind_options(kind: Kind, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Options of `itk_nir.register` for a type of transform.

    Parameters
    ----------
    kind : Kind
        What the type asks for.
    options : mapping of str to object, optional
        Arguments of `itk_nir.register` and options of its preset that go before what the type would set.

    Returns
    -------
    dict of str to object
        Keywords for `itk_nir.register`: stages, the settings, and the arguments among `options`.
    """
    given = dict(options or {})
    preset = given.pop("preset", kind.preset)
    named = "cc" if kind.radius is not None else kind.metric
    if kind.deformable and named is not None:
        given.setdefault("metric", METRICS[named][1])
    if kind.deformable and kind.radius is not None:
        given.setdefault("radius", kind.radius)
    if kind.deformable and kind.bins is not None:
        given.setdefault("metric", mutual_information(kind.bins, "type_of_transform"))
    if kind.deformable and kind.spline_distance not in (None, SPLINE_DISTANCE) and "smoothness" not in given:
        levels = given.get("shrink_factors")
        given |= smoothness_for(3, 0, preset, None if levels is None else len(levels), kind.spline_distance)
    return {"linear": kind.linear, "deformable": kind.deformable, **register_arguments(preset, given)}


def register_options(given: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """What the caller of `registration` asks for, as a kind and options of `itk_nir.register`.

    Parameters
    ----------
    given : mapping of str to object
        Values of all named arguments of `registration`, the images left out.
    extra : mapping of str to object
        The other keywords: ``random_seed``, arguments of `itk_nir.register` and options of its preset.

    Returns
    -------
    kind : Kind
        What the type of transform asks for.
    options : dict of str to object
        Arguments of `itk_nir.register` and options of its preset that go before what the type would set (see
        `kind_options`).

    Raises
    ------
    OptionError
        An option that is refused, does not exist (with the nearest name) or has a value it cannot have.
    """
    kind = parse_type(given["type_of_transform"])
    preset = extra.get("preset", kind.preset)
    from itk_nir.settings import present_names

    extra = present_names(preset, extra)
    _check_names(extra, preset)
    stages = {**_linear_options(given, kind), **_deformable_options(given, kind, preset), **_restriction(given)}
    stages |= _channels(given, kind, stages)
    if "restrict" in stages and "restrict" in extra:
        raise OptionError("restrict_transformation and restrict are the same option; give one of them")
    options = {**stages, **extra}
    # None is what ANTsPy has where nothing is given.
    seed = options.pop("random_seed", None)
    if seed is not None:
        if "seed" in options:
            raise OptionError("random_seed and seed are the same option; give one of them")
        options["seed"] = seed
    return kind, options


def _check_names(extra: Mapping[str, Any], preset: str | Settings) -> None:
    # What ANTs' own arguments decide.
    own = {"linear", "deformable", "fixed_mask", "moving_mask", "initial_transform"}
    allowed = (engine_options(preset) - own) | {"random_seed"}
    for name in extra:
        if name not in allowed:
            hint = nearest_name(name, [*sorted(allowed), *OPTIONS], SYNONYMS)
            raise OptionError(
                f"unknown option {name!r}{hint}; ANTs' options and those of itk_nir.register can be given"
            )


def _restriction(given: Mapping[str, Any]) -> dict[str, Any]:
    """Along which axes things may move."""
    value = given["restrict_transformation"]
    if value is None:
        return {}
    try:
        check_restriction(value)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"restrict_transformation={value!r} is 1 for an axis along which things may move and 0 for one along which "
            "nothing may, such as (0, 1, 0); weights between the two have no counterpart here"
        ) from error
    return {"restrict": tuple(int(weight) for weight in value)}


def _linear_options(given: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The metric of the linear stage, where the caller has said something of it."""
    rate = given["aff_random_sampling_rate"]
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise OptionError(f"aff_random_sampling_rate is above 0 and at most 1, got {rate!r}")
    metric, radius = _metric(given, "aff")
    out = {LINEAR_METRIC: metric, "linear_radius": radius}
    return {name: value for name, value in out.items() if value is not None and kind.linear != "none"}


def _metric(given: Mapping[str, Any], stage: str, usual: str = "mattes") -> tuple[Any, int | None]:
    """Metric and radius of a stage, None for what the caller says nothing of; `usual` is what a number alone is for."""
    word, number = given[f"{stage}_metric"], given[f"{stage}_sampling"]
    name = usual if isinstance(word, LeftOut) else str(word).lower()
    if name not in METRICS:
        raise OptionError(f"{stage}_metric={word!r} has no counterpart here; there are {', '.join(METRICS)}")
    if isinstance(word, LeftOut) and number == SAMPLING:
        return None, None
    if METRICS[name][1] == MUTUAL_INFORMATION:
        return mutual_information(number, f"{stage}_sampling"), None
    return METRICS[name][1], _radius(number, stage) if name == "cc" and number != SAMPLING else None


def _deformable_options(given: Mapping[str, Any], kind: Kind, preset: str | Settings) -> dict[str, Any]:
    """Metric, radius and levels of the deformable stage, where they are not ANTsPy's defaults."""
    iterations = _listed(given["reg_iterations"])
    if not kind.deformable:
        # ANTsPy ignores them too: callers give all types of transform the same arguments.
        usual = {"syn_metric": DEFAULT_METRIC, "syn_sampling": SAMPLING, "reg_iterations": REG_ITERATIONS}
        found = {"syn_metric": str(given["syn_metric"]).lower(), "syn_sampling": given["syn_sampling"]}
        idle = [name for name, value in {**found, "reg_iterations": iterations}.items() if value != usual[name]]
        if idle:
            warn_caller(
                f"{' and '.join(idle)}: not used, as type_of_transform={given['type_of_transform']!r} has no "
                "deformable stage"
            )
        return {}
    usual_metric = "cc" if kind.radius is not None else kind.metric or "mattes"
    metric, radius = _metric(given, "syn", usual_metric)
    out: dict[str, Any] = {n: value for n, value in (("metric", metric), ("radius", radius)) if value is not None}
    if iterations != REG_ITERATIONS:
        out.update(_levels(iterations, given["reg_iterations"], preset))
    step, distance = given["grad_step"], kind.spline_distance
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not step > 0:
        raise OptionError(f"grad_step is a number above 0, got {step!r}")
    levels = len(out["shrink_factors"]) if "shrink_factors" in out else None
    usual_distance = SPLINE_DISTANCE if distance is None else distance
    return out | smoothness_for(given["flow_sigma"], given["total_sigma"], preset, levels, usual_distance)


def _radius(sampling: Any, stage: str) -> int:
    radius = whole_number(sampling)
    if radius is None or radius < 1:
        raise OptionError(f"{stage}_sampling is the radius of CC in voxels, at least 1, got {sampling!r}")
    return radius


def _levels(iterations: tuple[Any, ...], given: Any, preset: str | Settings) -> dict[str, Any]:
    """Levels with the shrink factors …, 4, 2, 1, without those of 0 iterations."""
    numbers = [n for n in map(whole_number, iterations) if n is not None and n >= 0]
    if not numbers or len(numbers) != len(iterations):
        raise OptionError(f"reg_iterations has one whole number a level, got {given!r}")
    levels = [(2 ** (len(numbers) - 1 - k), n) for k, n in enumerate(numbers) if n > 0]
    if not levels:
        raise OptionError("reg_iterations is all zero, which leaves nothing to do; use a linear type of transform")
    return level_options(preset, [factor for factor, _ in levels], most_iterations=[n for _, n in levels])


def linear_levels(given: Mapping[str, Any], kind: Kind, fixed: Geometry, preset: str | Settings) -> dict[str, Any]:
    """Levels of the linear stage, where they are not ANTsPy's defaults.

    Parameters
    ----------
    given : mapping of str to object
        Values of all named arguments of `registration`.
    kind : Kind
        What the type of transform asks for.
    fixed : Geometry
        The fixed grid.
    preset : str or Settings
        The preset whose iterations are the most that a level has.

    Returns
    -------
    dict of str to object
        ``linear_size`` and ``linear_iterations``; empty without a linear stage or for the defaults.

    Raises
    ------
    OptionError
        Anything but one whole number a level, or one for all three; levels that are all left out.
    """
    levels = {name: _numbers(given[name], name) for name in AFF_LEVELS}
    lists = {np.ndim(given[name]) > 0 for name in levels}
    if len({len(values) for values in levels.values()}) > 1 or len(lists) > 1:
        raise OptionError(
            "aff_iterations, aff_shrink_factors and aff_smoothing_sigmas have one number a level each, or are a single "
            f"number all three, got {', '.join(f'{name}={given[name]!r}' for name in levels)}"
        )
    if levels == AFF_LEVELS or kind.linear == "none":
        return {}
    pairs = zip(levels["aff_shrink_factors"], levels["aff_iterations"], strict=True)
    kept = [(int(factor), int(most)) for factor, most in pairs if most > 0]
    if not kept or min(factor for factor, _ in kept) < 1:
        raise OptionError(
            "aff_iterations has a level that is not zero, and aff_shrink_factors are at least 1, got "
            f"{given['aff_iterations']!r} and {given['aff_shrink_factors']!r}"
        )
    from itk_nir.settings import options_of

    own = options_of(preset)["linear_iterations"]
    return {
        "linear_size": linear_sizes(fixed, [factor for factor, _ in kept]),
        "linear_iterations": limited(own, len(kept), [most for _, most in kept]),
    }


def field_grid(kind: Kind, options: Mapping[str, Any]) -> dict[str, Any]:
    """The displacement field on the grid of the fixed image, where the caller says nothing of its grid.

    Parameters
    ----------
    kind : Kind
        What the type of transform asks for.
    options : mapping of str to object
        Options as of `register_options`.

    Returns
    -------
    dict of str to object
        ``field_spacing``; empty where there is no field or it is chosen already.

    Notes
    -----
    Left to itself, a smooth field lies on a coarser grid. ANTs' warps all lie on that of the fixed image, so that they
    can be added up, as ``ants.build_template`` does it.
    """
    from itk_nir.settings import options_of

    if not kind.deformable or {"field_spacing", "max_interpolation_error"} & set(options):
        return {}
    chosen = options_of(options.get("preset", kind.preset)).get("field_spacing", 1)
    return {"field_spacing": 1} if chosen is None else {}


def _listed(value: Any) -> tuple[Any, ...]:
    """The values of a list, tuple or array; none for anything else."""
    return tuple(value) if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value) == 1 else ()


def _fraction(value: Any) -> float | None:
    """A number that need not be whole; None for anything else."""
    return None if isinstance(value, (bool, str)) or np.ndim(value) or not np.isreal(value) else float(value)


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    """Numbers of the levels, whole but for the sigmas."""
    values = _listed(value) or (value,)
    fractions = name == "aff_smoothing_sigmas"
    found = (_fraction(value) if fractions else whole_number(value) for value in values)
    numbers = [number for number in found if number is not None and number >= 0]
    if not numbers or len(numbers) != len(values):
        kind = "number" if fractions else "whole number"
        raise OptionError(f"{name} has one {kind} a level, or is a single one, got {value!r}")
    return tuple(numbers)


def further_pairs(given: Mapping[str, Any]) -> list[tuple[str, Any, Any, float, Any]]:
    """The image pairs of ``multivariate_extras``.

    Parameters
    ----------
    given : mapping of str to object
        Values of all named arguments of `registration`.

    Returns
    -------
    list of tuple
        Metric in lower case, fixed and moving image, weight, and the metric's own number, each.

    Raises
    ------
    OptionError
        Anything but such a list, an unknown metric, or a weight that is negative.
    """
    extras = given["multivariate_extras"]
    if extras is None:
        return []
    if not isinstance(extras, (list, tuple)):
        raise OptionError(f"multivariate_extras is a list, got {type(extras).__name__}")
    pairs = []
    for extra in extras:
        if not isinstance(extra, (list, tuple)) or len(extra) != 5:
            raise OptionError(
                "multivariate_extras holds a metric, a fixed image, a moving image, a weight and the metric's number "
                f"each, got {len(extra) if isinstance(extra, (list, tuple)) else type(extra).__name__}"
            )
        name, fixed, moving, weight, number = extra
        if str(name).lower() not in METRICS:
            raise OptionError(
                f"multivariate_extras: metric {name!r} has no counterpart here; there are {', '.join(METRICS)}"
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise OptionError(f"multivariate_extras: a weight is a number that is not negative, got {weight!r}")
        pairs.append((str(name).lower(), fixed, moving, float(weight), number))
    return pairs


def _channels(given: Mapping[str, Any], kind: Kind, stages: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics and weights of the channels, where there are several."""
    pairs = further_pairs(given)
    if not pairs:
        return {}
    if not kind.deformable:
        raise OptionError(
            f"multivariate_extras have no meaning for {given['type_of_transform']!r}, which has no deformable stage; "
            "leave them out"
        )
    usual = "cc" if kind.radius is not None else kind.metric or "mattes"
    metrics = [stages.get("metric", METRICS[usual][1])]
    radii = [stages["radius"]] if "radius" in stages else [] if kind.radius is None else [kind.radius]
    for name, _, _, _, number in pairs:
        ours = METRICS[name][1]
        if ours == MUTUAL_INFORMATION:
            metrics.append(mutual_information(number, "multivariate_extras: the number of 'mattes'"))
            continue
        if name == "cc":
            radii.append(_radius(number, "multivariate_extras: CC's number, as syn"))
        metrics.append(ours)
    out: dict[str, Any] = {"metric": tuple(metrics), "channel_weights": (1.0, *(weight for *_, weight, _ in pairs))}
    return out | ({"radius": max(radii)} if radii else {})

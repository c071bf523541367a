"""From ANTs' arguments to those of `itk_nir.register`: the only file here that names options of the latter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from itk_nir.compat.ants.options import (
    DEFAULT_METRIC,
    FIXED_VALUES,
    METRICS,
    NO_COUNTERPART,
    NO_SCRIPT_COUNTERPART,
    OPTIONS,
    REG_ITERATIONS,
    SAMPLING,
    SCRIPT_TYPES,
    TYPES,
    Kind,
    LeftOut,
)
from itk_nir.compat.options import (
    LINEAR_METRIC,
    MUTUAL_INFORMATION,
    engine_options,
    level_options,
    mutual_information,
    register_arguments,
)
from itk_nir.engine.restriction import check_restriction
from itk_nir.errors import OptionError
from itk_nir.options import SYNONYMS, nearest_name, whole_number

if TYPE_CHECKING:
    from itk_nir.settings import Settings

_SCRIPT = re.compile(r"antsRegistrationSyN(Quick)?(Repro)?(?:\[(\w+)(?:,([\d.]+))?\])?$")


def parse_type(name: Any) -> Kind:
    """What one of ANTsPy's types of transform asks for.

    Parameters
    ----------
    name : str or sequence of one str
        A key of `TYPES`, or ``"antsRegistrationSyN[x]"``, ``"antsRegistrationSyNQuick[x]"`` or
        ``"antsRegistrationSyNRepro[x]"`` with a key of `SCRIPT_TYPES` for ``x``; a radius of CC may follow the type, as
        in ``"antsRegistrationSyN[s,4]"``. An empty name is ``"SyN"``, as in ANTsPy.

    Returns
    -------
    Kind
        Stages, preset and radius.

    Raises
    ------
    OptionError
        A type that has no counterpart here, or is unknown to ANTs (with the nearest name).
    """
    if isinstance(name, (list, tuple)) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str):
        raise OptionError(f"type_of_transform is a name such as 'SyN', got {name!r}")
    if name in TYPES or name == "":
        return TYPES[name or "SyN"]
    if name in NO_COUNTERPART:
        raise OptionError(f"type_of_transform {name!r} has no counterpart here: {NO_COUNTERPART[name]}")
    if re.match(r"TV\[\d+\]$", name):
        raise OptionError(f"type_of_transform {name!r} has no counterpart here: use 'SyNOnly' or 'SyN'")
    script = _SCRIPT.match(name)
    if script is None:
        known = [*TYPES, *NO_COUNTERPART, "antsRegistrationSyN[s]", "antsRegistrationSyNQuick[s]"]
        raise OptionError(
            f"unknown type_of_transform {name!r}{nearest_name(name, known)}; see docs/coming_from_ants.md"
        )
    quick, _, letters, number = script.groups()
    kind = parse_script_type(letters or "s", f"type_of_transform {name!r}")
    if quick:
        kind = replace(kind, preset="fast")
    if number is not None:
        if quick or not (letters.startswith("s") and number.isdigit()):
            raise OptionError(
                f"type_of_transform {name!r}: only the radius of CC can follow the letter, as in "
                "'antsRegistrationSyN[s,4]'; bins and spline distances have no counterpart here"
            )
        kind = replace(kind, radius=int(number))
    return kind


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
        A type that has no counterpart here, or that the script does not have.
    """
    if letters in NO_SCRIPT_COUNTERPART:
        what, instead = NO_SCRIPT_COUNTERPART[letters]
        raise OptionError(f"{where}: {what} has no counterpart here; {instead}")
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
    if kind.deformable and (kind.cc or kind.radius is not None):
        given.setdefault("metric", METRICS["cc"][1])
    if kind.deformable and kind.radius is not None:
        given.setdefault("radius", kind.radius)
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
    _check_refused(given)
    preset = extra.get("preset", kind.preset)
    from itk_nir.settings import present_names

    extra = present_names(preset, extra)
    _check_names(extra, preset)
    stages = {**_linear_options(given, kind), **_deformable_options(given, kind, preset), **_restriction(given)}
    if "restrict" in stages and "restrict" in extra:
        raise OptionError("restrict_transformation and restrict are the same option; give one of them")
    options = {**stages, **extra}
    if "random_seed" in options:
        if "seed" in options:
            raise OptionError("random_seed and seed are the same option; give one of them")
        options["seed"] = options.pop("random_seed")
    return kind, options


def _check_refused(given: Mapping[str, Any]) -> None:
    for name, only in FIXED_VALUES.items():
        value = given[name]
        value = tuple(value) if isinstance(value, list) else value
        if value is not only and value != only:
            raise OptionError(f"{name}={given[name]!r} is refused: {OPTIONS[name][1]} (only {only!r} can be had)")


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
    iterations = tuple(given["reg_iterations"]) if isinstance(given["reg_iterations"], Sequence) else ()
    if not kind.deformable:
        usual = (DEFAULT_METRIC, SAMPLING, REG_ITERATIONS)
        if (str(given["syn_metric"]).lower(), given["syn_sampling"], iterations) != usual:
            raise OptionError(
                f"syn_metric, syn_sampling and reg_iterations have no meaning for {given['type_of_transform']!r}, "
                "which has no deformable stage; leave them out"
            )
        return {}
    metric, radius = _metric(given, "syn", "cc" if kind.cc or kind.radius is not None else "mattes")
    out: dict[str, Any] = {n: value for n, value in (("metric", metric), ("radius", radius)) if value is not None}
    if iterations != REG_ITERATIONS:
        out.update(_levels(iterations, given["reg_iterations"], preset))
    return out


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

"""Single values of parameter maps: words, truth values and numbers, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from itk_nir.compat.elastix.options import REPLACED
from itk_nir.errors import OptionError
from itk_nir.transforms.formats.elastix import ParameterMap


def word_of(parameters: ParameterMap, name: str, default: str, known: Mapping[str, Any]) -> str:
    """A parameter that is one of some words.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map.
    name : str
        Of the parameter; its first value counts.
    default : str
        Where it is not given.
    known : mapping
        Its keys are what it may be.

    Returns
    -------
    str

    Raises
    ------
    OptionError
        Any other word.
    """
    value = (parameters.get(name) or [default])[0]
    if value not in known:
        raise OptionError(
            f"elastix parameter {name}: {value!r} cannot be had here; it may be {', '.join(known)}{instead_of(value)}"
        )
    return value


def instead_of(value: str) -> str:
    """Why a value cannot be had, or what there is in its place.

    Parameters
    ----------
    value : str
        Of any parameter.

    Returns
    -------
    str
        The end of a sentence; empty where there is nothing to say.
    """
    return f"; {REPLACED[value]}" if value in REPLACED else ""


def flag_of(parameters: ParameterMap, name: str, default: bool) -> bool:
    """A parameter that is true or false.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map.
    name : str
        Of the parameter; its first value counts.
    default : bool
        Where it is not given.

    Returns
    -------
    bool

    Raises
    ------
    OptionError
        Neither ``true`` nor ``false``.
    """
    return word_of(parameters, name, "true" if default else "false", {"true": True, "false": False}) == "true"


def number_of(parameters: ParameterMap, name: str, default: float) -> float:
    """A parameter that is a number.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map.
    name : str
        Of the parameter; its first value counts.
    default : float
        Where it is not given.

    Returns
    -------
    float
        Finite.

    Raises
    ------
    OptionError
        No number, or a seed that is no whole one.
    """
    text = (parameters.get(name) or [str(default)])[0]
    try:
        value = float(text)
    except ValueError:
        raise OptionError(f"elastix parameter {name}: is a number, got {text!r}") from None
    if not np.isfinite(value) or (name == "RandomSeed" and (value < 0 or value != int(value))):
        raise OptionError(f"elastix parameter {name}: cannot be {text!r}")
    return value


def numbers_of(values: Sequence[str], label: str) -> tuple[float, ...]:
    """All values of a parameter as numbers.

    Parameters
    ----------
    values : sequence of str
        As they stand in the map.
    label : str
        What to call the parameter in messages.

    Returns
    -------
    tuple of float

    Raises
    ------
    OptionError
        One that is no number.
    """
    try:
        return tuple(float(v) for v in values)
    except ValueError:
        raise OptionError(f"{label}: are numbers, got {list(values)}") from None


def at_last(parameters: ParameterMap) -> ParameterMap:
    """A map with the last value of every parameter: of values for each resolution, that of full resolution.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map.

    Returns
    -------
    dict of str to list of str
        One value each.
    """
    return {name: values[-1:] for name, values in parameters.items()}


def weight_of(parameters: ParameterMap, number: int) -> tuple[str, float, bool]:
    """The weight of a metric at full resolution, which its relative weight is where a map says so.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map.
    number : int
        Of the metric.

    Returns
    -------
    str
        The parameter that says it.
    float
        The weight, 1 where nothing is said.
    bool
        Whether the metric counts: it is used, and its weight is not 0.
    """
    last = at_last(parameters)
    name = f"Metric{number}{'RelativeWeight' if flag_of(last, 'UseRelativeWeights', False) else 'Weight'}"
    weight = number_of(last, name, 1.0)
    return name, weight, flag_of(last, f"Metric{number}Use", True) and weight != 0

"""Options as data: every setting says on its own field what it means and which values it may have.

A settings class is a frozen dataclass whose fields are made by `option`. From that one statement come the checks (with
messages that are all alike), the conversion of what a user gives (numpy's numbers and arrays, lists, one number for all
levels), ``itk-nir presets``, ``--set`` and ``docs/options.md``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import os
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from itk_nir.errors import OptionError

_KEY = "itk-nir option"

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What is known of one option beside its name, type and default.

    Parameters
    ----------
    help : str
        One or two sentences: meaning and unit.
    above, at_least, below, at_most : float or None
        Limits of a number (of every number of a tuple).
    choices : collection of str
        The words it may be; a live table, so that what is added to the table can be chosen.
    per_level : bool
        One value a resolution level, coarsest first; a single one stands for all.
    public : bool
        Whether `itk_nir.register` takes it as a keyword. The others are expert settings (`itk_nir.make_settings`).
    infinite : bool
        Whether infinity is a value.
    """

    help: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: Collection[str] = ()
    per_level: bool = False
    public: bool = False
    infinite: bool = False

    def limits(self) -> str:
        """The limits in words, ``""`` where there are none.

        Returns
        -------
        str
            As messages and tables show them.
        """
        words = [
            f"{word} {value:g}"
            for word, value in (
                ("above", self.above), ("at least", self.at_least), ("below", self.below), ("at most", self.at_most)
            )
            if value is not None
        ]  # fmt: skip
        if self.choices:
            words.append("one of " + ", ".join(map(repr, self.choices)))
        return " and ".join(words)

    def allows(self, number: float) -> bool:
        """Whether a number keeps the limits; NaN never does.

        Parameters
        ----------
        number : float
            One number of the value.

        Returns
        -------
        bool
        """
        if math.isnan(number) or (math.isinf(number) and not self.infinite):
            return False
        return (
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )


def option(default: Any, help: str, **what: Any) -> Any:  # noqa: A002 - the word that argparse has for it
    """A dataclass field that is an option.

    Parameters
    ----------
    default : object
        The default of the field.
    help : str
        One or two sentences: meaning and unit.
    **what : object
        As of `Option`: limits, choices, `per_level`, `public`.

    Returns
    -------
    dataclasses.Field

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     radius: int = option(4, "radius of the window, voxels", at_least=1)
    ...     def __post_init__(self) -> None:
    ...         check(self)
    >>> Settings(radius=0)
    Traceback (most recent call last):
    itk_nir.errors.OptionError: radius must be at least 1, got 0
    """
    return dataclasses.field(default=default, metadata={_KEY: Option(help, **what)})


def options_in(settings: Any) -> dict[str, Option]:
    """Name → `Option` of every option of a settings class (or of one of its objects), in order.

    Parameters
    ----------
    settings : type or object
        A settings class or one of its objects.

    Returns
    -------
    dict of str to Option
    """
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(settings) if _KEY in f.metadata}


def documented(settings: type[T]) -> type[T]:
    """Write the Parameters section of a settings class's docstring from its options (a class decorator).

    Parameters
    ----------
    settings : type
        A dataclass whose fields are all options.

    Returns
    -------
    type
        The class itself.
    """
    lines = ["Parameters", "----------"]
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        what: Option = field.metadata[_KEY]
        default = repr(field.default)
        lines.append(f"{field.name} : {field.type}" + (f", default {default}" if len(default) <= 40 else ""))
        limits = what.limits()
        text = f"{what.help[0].upper()}{what.help[1:]}" + (f" ({limits})." if limits else ".")
        lines += textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ")
    summary, *others = re.split(r"\n\n(?=\w+\n---)", inspect.cleandoc(settings.__doc__ or ""), maxsplit=1)
    settings.__doc__ = "\n\n".join([summary, "\n".join(lines), *others])
    return settings


def check(settings: Any) -> None:
    """Refuse a settings object with a value that its option does not allow; tuples by each of their numbers.

    Values of a like type (NumPy's numbers, lists) become those of the field's, see `converted`.

    Parameters
    ----------
    settings : object
        An object of a settings class.

    Raises
    ------
    OptionError
        The name, the limit and the value.
    """
    for name, what in options_in(settings).items():
        value = getattr(settings, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str):
                if what.choices and part not in what.choices:
                    hint = getattr(what.choices, "hint", functools.partial(nearest_name, known=what.choices))(part)
                    raise OptionError(f"{name} must be {what.limits()}, got {shown(value)}{hint}")
            elif isinstance(part, (int, float)) and not isinstance(part, bool) and not what.allows(part):
                wanted = what.limits() or "a finite number"
                raise OptionError(f"{name} must be {wanted}, got {shown(value)}")
        object.__setattr__(settings, name, converted(type(settings), name, value))


def check_levels(settings: Any, count: int, counted: str) -> None:
    """Refuse a settings object whose per-level options have not `count` values each.

    Parameters
    ----------
    settings : dataclass
        With options.
    count : int
        Number of levels.
    counted : str
        The option that says how many there are.

    Raises
    ------
    OptionError
        Unlike numbers of values.
    """
    for name, what in options_in(settings).items():
        if what.per_level and len(getattr(settings, name)) != count:
            raise OptionError(
                f"{name} has {len(getattr(settings, name))} values but {counted} has {count}; give one for each level"
            )


def converted(owner: type, name: str, value: Any) -> Any:
    """A user's value in the type that the field `name` of the settings class `owner` has.

    Whole numbers and numbers of every kind are welcome (NumPy's too), lists and arrays where a tuple is wanted, and one
    number where any number of them is (it becomes a tuple of one, see `spread`).

    Parameters
    ----------
    owner : type
        The settings class.
    name : str
        One of its fields.
    value : object
        What the user gave.

    Returns
    -------
    object
        The value in the type of the field.

    Raises
    ------
    OptionError
        A value of another type.
    """
    hint = _hints(owner)[name]
    several = typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,)
    ok, out = _convert(hint, (value,) if several and isinstance(value, (numbers.Real, np.number)) else value)
    if not ok:
        raise OptionError(f"option {name!r} is {_in_words(hint)}, got {shown(value)}")
    return out


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def shown(value: Any) -> str:
    """A value for a message: its `repr` on one line, cut where it is long.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    str
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def whole_number(value: Any) -> int | None:
    """A whole number of any kind (Python's, NumPy's) as an int; None for anything else, truth values included.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    int or None
    """
    if isinstance(value, bool):
        return None
    return int(value) if isinstance(value, numbers.Integral) else None


def truth_value(value: Any, name: str) -> bool:
    """True or False, Python's or NumPy's, as a bool: any other object has a truth value too, ``"no"`` that of True.

    Parameters
    ----------
    value : object
        Anything.
    name : str
        The argument that it was given for.

    Returns
    -------
    bool

    Raises
    ------
    OptionError
        Neither of the two.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(f"{name} is True or False, got {shown(value)}")
    return bool(value)


def thread_count(threads: int | None) -> int:
    """The number of CPU threads: what the user says, else all that the process may use.

    Parameters
    ----------
    threads : int or None
        What the user says.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    OptionError
        Not a whole number of at least 1.
    """
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = whole_number(threads)
    if count is None or count < 1:
        raise OptionError(f"threads is a whole number of at least 1, got {shown(threads)}")
    return count


def spread(value: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """One value for all of `count` levels; any other number of values as it is.

    Parameters
    ----------
    value : tuple
        Values, one a level.
    count : int
        Number of levels.

    Returns
    -------
    tuple
    """
    return value * count if len(value) == 1 else value


def _convert(hint: Any, value: Any) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return isinstance(value, str), value  # which words there are is the option's to say, see `check`
    if origin is tuple:
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = value.tolist()
        if not isinstance(value, (tuple, list)):
            return False, None
        inner = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(inner) != len(value):
            return False, None
        pairs = [_convert(h, v) for h, v in zip(inner, value, strict=True)]
        return all(ok for ok, _ in pairs), tuple(v for _, v in pairs)
    if arguments:  # a union
        return next((found for found in (_convert(h, value) for h in arguments) if found[0]), (False, None))
    if hint is bool:
        return isinstance(value, (bool, np.bool_)), bool(value) if isinstance(value, (bool, np.bool_)) else None
    if hint in (int, float):
        wanted = numbers.Integral if hint is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            return False, None
        try:
            return True, hint(value)
        except OverflowError:  # a whole number that no float can hold
            return False, None
    return isinstance(value, hint), value


def _in_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", type(None): "None"}
    if hint in plain:
        return plain[hint]
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        many = {int: "whole numbers", float: "numbers"}.get(arguments[0], _in_words(arguments[0]))
        return f"a tuple of {many}"
    if arguments:
        return " or ".join(_in_words(a) for a in arguments)
    return f"a {hint.__name__}" if isinstance(hint, type) else str(hint)


#: What users of other tools call an option or argument of `itk_nir.register`.
SYNONYMS: dict[str, str] = {
    "steps": "iterations", "niter": "iterations", "number_of_iterations": "iterations", "reg_iterations": "iterations",
    "epochs": "iterations", "levels": "shrink_factors", "shrink_factors_per_level": "shrink_factors",
    "sigma": "smoothing_sigmas", "sigmas": "smoothing_sigmas", "smoothing": "smoothing_sigmas",
    "smoothing_sigmas_per_level": "smoothing_sigmas", "lr": "learning_rates", "learning_rate": "learning_rates",
    "step_size": "learning_rates", "gradient_step": "learning_rates", "grad_step": "learning_rates",
    "flow_sigma": "smoothness", "total_sigma": "smoothness", "regularization": "smoothness",
    "regularisation": "smoothness", "regularisation_weight": "smoothness", "lambda": "smoothness",
    "regularizer": "regulariser", "similarity": "metric", "loss": "metric", "aff_metric": "linear_metric",
    "syn_metric": "metric", "mask": "fixed_mask", "masks": "fixed_mask", "fixed_masks": "fixed_mask",
    "moving_masks": "moving_mask", "initial": "initial_transform", "init": "initial_transform",
    "start": "initial_transform", "thread": "threads", "num_threads": "threads", "n_jobs": "threads",
    "number_of_threads": "threads", "random_seed": "seed", "gpu": "device", "cuda": "device",
    "type_of_transform": "linear", "affine": "linear", "rigid": "linear", "window": "radius", "cc_radius": "radius",
    "radii": "radius", "convergence": "convergence_threshold", "tolerance": "convergence_threshold",
    "flow": "transform_model", "transform": "transform_model", "final_grid_spacing": "grid_spacing",
    "control_point_spacing": "grid_spacing", "progress": "callback", "restrict_transformation": "restrict",
    "restrict_deformation": "restrict",
}  # fmt: skip


def nearest_name(name: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str:
    """``", did you mean 'x'?"``, or nothing where no known name is near.

    Parameters
    ----------
    name : str
        What the user wrote.
    known : iterable of str
        All names there are.
    synonyms : mapping, optional
        Other people's word → ours; looked at first.

    Returns
    -------
    str
        To be put behind a message.
    """
    names = list(known)
    words = {w: n for w, n in (synonyms or {}).items() if n in names} | {n.lower(): n for n in reversed(names)}
    word = name.lower().replace("-", "_")
    close = [word] if word in words else difflib.get_close_matches(word, list(words), n=1, cutoff=0.75)
    return f", did you mean {words[close[0]]!r}?" if close else ""


def rebuilt(hint: Any, value: Any) -> Any:
    """JSON's lists and tables as the tuples and dataclasses they were.

    Parameters
    ----------
    hint : type
        Of the value: a dataclass, or any type a field of one has.
    value : object
        What `dataclasses.asdict` made of it, through JSON or not.

    Returns
    -------
    object
        Of the type `hint`. Fields that the table lacks have their defaults.

    Raises
    ------
    ValueError
        A field that the class does not have, or a value that it does not allow.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     radii: tuple[int, ...] = (4,)
    >>> rebuilt(Settings, {"radii": [3, 2]})
    Settings(radii=(3, 2))
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        names = {f.name for f in dataclasses.fields(hint)}
        unknown = sorted(set(value) - names)
        if unknown:
            raise ValueError(f"{hint.__name__} has no {', '.join(unknown)}: of another version")
        return hint(**{name: rebuilt(hints[name], v) for name, v in value.items()})
    if origin is tuple:
        inner = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(rebuilt(h, v) for h, v in zip(inner, value, strict=True))
    if origin in (typing.Union, types.UnionType):
        return None if value is None else rebuilt(next(a for a in arguments if a is not type(None)), value)
    return value

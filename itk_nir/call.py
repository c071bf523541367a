"""What `itk_nir.register` was called with, as JSON's values, and back: what a report holds, to be repeated."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from itk_nir.engine.settings import ASKED
from itk_nir.images.objects import is_pair
from itk_nir.options import rebuilt
from itk_nir.places import with_file
from itk_nir.settings import Settings, make_settings, options_of

#: Arguments that say how a registration is run, not what comes out; and the settings, which stand by themselves.
_NO_PART = ("preset", "options", "callback", "checkpoint", "checkpoint_seconds")

#: Arguments that are words or numbers, never a file: those that decide what comes out, and those that do not.
CHOICES = ("linear", "deformable", "fill", "nan", "resample_shear", "strict_input", "seed")
_PLAIN = (*CHOICES, "device", "threads")

#: What stands for a value that JSON has no form for, with what it was.
OBJECT = "object"

#: Numbers of an array that is written out (points, matrices); longer ones are objects.
_MOST = 10_000

#: Options that `make_settings` changes with others where they are not given.
_ALWAYS = tuple(name for _, name, _ in ASKED)


def described(arguments: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A call as JSON's values.

    Parameters
    ----------
    arguments : mapping of str to object
        Everything that `itk_nir.register` was given, by name.
    settings : Settings
        The settings that it came to.

    Returns
    -------
    dict
        ``"arguments"``; ``"preset"``; ``"options"``: those that are not as the preset has them.
    """
    usual = options_of(settings.preset) if settings.preset in _presets() else {}
    options = {
        name: _plain(value)
        for name, value in options_of(settings).items()
        if name in _ALWAYS or name not in usual or usual[name] != value
    }
    return {
        "arguments": {
            name: _plain(value, file=name not in _PLAIN) for name, value in arguments.items() if name not in _NO_PART
        },
        "preset": settings.preset,
        "options": options,
    }


def _presets() -> typing.Collection[str]:
    from itk_nir.settings import PRESETS

    return PRESETS


def settings_of(call: Mapping[str, Any]) -> Settings:
    """The settings of a call.

    Parameters
    ----------
    call : mapping
        Of `described`.

    Returns
    -------
    Settings

    Raises
    ------
    OptionError, ValueError
        Options that this version does not have, or that were objects.
    """
    from itk_nir.settings import preset_settings

    homes = {f.name: type(part) for part in preset_settings(call["preset"]).parts.values() for f in _fields(part)}
    options = {}
    for name, value in call["options"].items():
        if _is_object(value):
            raise ValueError(f"option {name} was {value[OBJECT]}, an object of the caller's program")
        hint = typing.get_type_hints(homes[name])[name] if name in homes else object
        options[name] = rebuilt(hint, _back(value))
    return make_settings(call["preset"], **options)


def _fields(part: Any) -> tuple[Any, ...]:
    return dataclasses.fields(part)


def objects_in(call: Mapping[str, Any]) -> list[str]:
    """The arguments that were objects in memory.

    Parameters
    ----------
    call : mapping
        Of `described`.

    Returns
    -------
    list of str
    """
    return [name for name, value in call["arguments"].items() if _is_object(value)]


def arguments_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call but for its settings.

    Parameters
    ----------
    call : mapping
        Of `described`.

    Returns
    -------
    dict of str to object
    """
    return {name: _back(value) for name, value in call["arguments"].items()}


def _is_object(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_object, value))
    return isinstance(value, dict) and set(value) == {OBJECT}


def _plain(value: Any, file: bool = False) -> Any:
    """JSON's values; the name of a file whole, so that it means the same in another folder."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, (str, os.PathLike)):
        text = os.fsdecode(value)
        return with_file(text, lambda name: os.path.abspath(name) if os.path.exists(name) else name) if file else text
    if is_pair(value):  # an image: its voxels are no part of a report, however few they are
        value = value[0]
    elif isinstance(value, np.ndarray) and value.size <= _MOST and value.dtype.kind in "fiub":
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v, file) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__post_init__"):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: _plain(v) for name, v in fields.items()}
    kind = type(value)
    return {OBJECT: f"{kind.__module__.split('.')[0]}.{kind.__name__}"}


def _back(value: Any) -> Any:
    if isinstance(value, list):
        return [_back(v) for v in value]
    if isinstance(value, dict):
        if set(value) == {"number"}:
            return float(value["number"])
        return {name: _back(v) for name, v in value.items()}
    return value

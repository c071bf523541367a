"""Presets, and how an option overrides one. No global state: a preset is a frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import textwrap
import typing
from dataclasses import dataclass, field, replace
from typing import Any

from itk_nir.engine.sampling import BakeSettings
from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.linear import LinearSettings
from itk_nir.engine.optimize import LatticeSettings
from itk_nir.paper.registration import PointPhase, PointSettings
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.errors import OptionError


@dataclass(frozen=True)
class Settings:
    """Everything a registration is told: its deformable engine, the linear stage before it, the bake after it.

    `engine` decides how the field is optimised: a `LatticeSettings` takes whole images on spline lattices, a
    `PointSettings` samples coordinates as the paper does.
    """

    engine: LatticeSettings | PointSettings
    linear: LinearSettings = field(default_factory=LinearSettings)
    bake: BakeSettings = field(default_factory=BakeSettings)


def _paper() -> PointSettings:
    network = FieldConfig(
        encoding="fourier", activation="sine", frequencies=64, width=64, depth=2, omega=10.0, scale=1.5, bound=1.0
    )
    return PointSettings(
        phases=(
            PointPhase(
                network, SamplerConfig("downsize", stride=3), steps=150, radius=2, learning_rate=3e-3,
                learning_rate_end=3e-4,
            ),
            PointPhase(
                replace(network, scale=2.5), SamplerConfig("patches", patches=2, edge=24), steps=100, radius=3,
                learning_rate=2e-3, learning_rate_end=2e-4,
            ),
        ),
        flow="rk4",
        flow_steps=1,
        chunk=1 << 16,
    )  # fmt: skip


#: Preset name → (what it is for, its settings).
PRESETS: dict[str, tuple[str, Settings]] = {
    "fast": (
        "a good alignment in seconds",
        Settings(LatticeSettings(steps=(20, 10, 5), learning_rates=(1.5, 0.9, 0.6))),
    ),
    "default": (
        "the one to start with: more accurate than SyN, in a fraction of its time",
        Settings(LatticeSettings()),
    ),
    "accurate": (
        "the last bit of accuracy: more steps, wider windows, less smoothing",
        Settings(
            LatticeSettings(
                steps=(80, 40, 24), radius=(5, 7, 8), displacement_diffusion=(0.6, 0.3, 0.3), strain_scale=0.55
            ),
        ),
    ),
    "paper": (
        "the design of the paper itself: Fourier-encoded SIREN, velocity + RK4, downsized lattice then mini-patches",
        Settings(_paper()),
    ),
}


def options_of(preset: str) -> dict[str, Any]:
    """Option name → value of a preset, as `register` takes them."""
    settings = preset_settings(preset)
    out: dict[str, Any] = {}
    for part in (settings.engine, settings.linear, settings.bake):
        out.update({f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    return out


def preset_settings(preset: str) -> Settings:
    """The settings of a preset.

    Raises
    ------
    OptionError : an unknown preset, with the nearest name.
    """
    if preset not in PRESETS:
        raise OptionError(f"unknown preset {preset!r}{_nearest(preset, list(PRESETS))}; there are {', '.join(PRESETS)}")
    return PRESETS[preset][1]


def make_settings(preset: str = "default", **options: Any) -> Settings:
    """A preset with some of its options overridden.

    A single number for an option that has one value a level stands for all levels.

    Raises
    ------
    OptionError : an unknown preset or option (with the nearest valid name), a value of the wrong type, or values that
        do not go together.
    """
    settings = preset_settings(preset)
    if isinstance(settings.engine, LatticeSettings):
        options = _match_levels(settings.engine, options)
    parts = {"engine": settings.engine, "linear": settings.linear, "bake": settings.bake}
    changes: dict[str, dict[str, Any]] = {name: {} for name in parts}
    known = options_of(preset)
    for name in ("linear_size", "linear_steps"):
        if isinstance(options.get(name), int) and not isinstance(options[name], bool):
            options[name] = (options[name],) * len(known[name])
    for name, value in options.items():
        if name not in known:
            raise OptionError(
                f"unknown option {name!r} for preset {preset!r}{_nearest(name, list(known))}; "
                f"`itk-nir presets {preset}` lists them"
            )
        home = next(k for k, part in parts.items() if name in {f.name for f in dataclasses.fields(part)})
        changes[home][name] = _typed(type(parts[home]), name, value)
    try:
        return Settings(**{name: replace(part, **changes[name]) for name, part in parts.items()})  # type: ignore[arg-type]
    except ValueError as error:
        raise OptionError(str(error)) from None


def _match_levels(engine: LatticeSettings, options: dict[str, Any]) -> dict[str, Any]:
    """Spread single numbers over the levels; where the number of levels changes, cut or repeat what is not given."""
    out = dict(options)
    if "steps" in out:  # what is asked for is done, whatever the size of the images
        out.setdefault("small_voxels", 0)
    levels = out.get("shrink_factors", engine.shrink_factors)
    n = len(levels) if isinstance(levels, (tuple, list)) else 1
    if isinstance(levels, int) and not isinstance(levels, bool):
        out["shrink_factors"] = (levels,)
    for f in dataclasses.fields(engine):
        value = getattr(engine, f.name)
        if not isinstance(value, tuple) or f.name in ("shrink_factors", "momentum"):
            continue
        given = out.get(f.name)
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            out[f.name] = (given,) * n
        elif given is None and n != engine.levels:
            out[f.name] = (value + (value[-1],) * n)[:n]
    return out


def _typed(owner: type, name: str, value: Any) -> Any:
    """`value` as the annotated type of the option, or an `OptionError` that says what is wanted."""
    hint = typing.get_type_hints(owner)[name]
    ok, out = _convert(hint, value)
    if not ok:
        wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise OptionError(f"option {name!r} is a {wanted}, got {value!r}")
    return out


def _convert(hint: Any, value: Any) -> tuple[bool, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False, None
        inner = [arguments[0]] * len(value) if len(arguments) == 2 and arguments[1] is ... else list(arguments)
        if len(inner) != len(value):
            return False, None
        pairs = [_convert(h, v) for h, v in zip(inner, value, strict=True)]
        return all(ok for ok, _ in pairs), tuple(v for _, v in pairs)
    if arguments:  # a union
        for h in arguments:
            ok, out = _convert(h, value)
            if ok:
                return True, out
        return False, None
    if hint is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        return ok, float(value) if ok else None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def documentation(part: Any) -> dict[str, str]:
    """Option name → what its dataclass says of it, one line each, from the "Attributes" of the docstring."""
    out: dict[str, str] = {}
    names: list[str] = []
    _, _, text = inspect.cleandoc(type(part).__doc__ or "").partition("Attributes\n----------\n")
    for line in text.splitlines():
        head = re.match(r"(\w+(?:, \w+)*) : (.*)", line)
        if head:
            names = head[1].split(", ")
            out.update(dict.fromkeys(names, head[2]))
        elif line.strip():
            out.update({name: f"{out[name]} {line.strip()}" for name in names})
    return out


def describe_presets(preset: str | None = None) -> str:
    """Text: the presets with their purposes, or the options of one with their values and meanings."""
    if preset is None:
        return "\n".join(f"{name:<9} {text}" for name, (text, _) in PRESETS.items())
    options, settings = options_of(preset), preset_settings(preset)
    meaning: dict[str, str] = {}
    for part in (settings.engine, settings.linear, settings.bake):
        meaning.update(documentation(part))
    lines = [f"{preset}: {PRESETS[preset][0]}"]
    for name, value in options.items():
        lines.append(f"  {name} = {value!r}")
        lines += textwrap.wrap(meaning[name].replace("`", ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)

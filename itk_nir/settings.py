"""Presets, and how an option overrides one. No global state: settings are frozen dataclasses.

Public options (`Options`) are keywords of `itk_nir.register`, in the words of the field's other tools. Everything else
is an expert setting: ``register(fixed, moving, preset=make_settings("fast", jacobian_weight=0.0))``. What each means
and may be stands on its field (`itk_nir.engine.settings`), from which checks, ``itk-nir presets`` and
``docs/options.md`` are made.
"""

from __future__ import annotations

import dataclasses
import numbers
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from itk_nir.engine.settings import ASKED, DeformableSettings, LinearSettings, SamplingSettings
from itk_nir.errors import OptionError, warn_renamed
from itk_nir.options import SYNONYMS, Option, converted, nearest_name, options_in, shown, spread

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric
    from itk_nir.engine.regularisers import Regulariser

#: Names of the presets.
PresetName = Literal["fast", "default", "accurate", "paper"]

#: Kind of settings → the module that is the engine of the deformable stage. It has `Settings`, the class of its
#: settings; `optimise(pair, settings, *, seed, threads, callback, clock) -> Optimised`; `describe(field)` and
#: `restore(description, arrays, geometry, *, device, threads)`, a trained field as plain values and back.
ENGINES: dict[str, str] = {"deformable": "itk_nir.engine.deformable", "paper": "itk_nir.paper.registration"}


class Options(TypedDict, total=False):
    """The public options, keywords of `itk_nir.register`: one value stands for all levels; see ``docs/options.md``."""

    metric: str | Metric | Sequence[str | Metric]
    linear_metric: str | Metric | Sequence[str | Metric]
    channel_weights: Sequence[float]
    iterations: int | Sequence[int]
    shrink_factors: int | Sequence[int]
    smoothing_sigmas: float | Sequence[float]
    radius: int | Sequence[int]
    learning_rates: float | Sequence[float]
    regulariser: Literal["lorentzian", "diffusion"] | Regulariser
    smoothness: float | Sequence[float]
    grid_spacing: float | Sequence[float]
    transform_model: Literal["velocity", "displacement"]
    symmetric: bool
    search: Literal["auto", "always", "never"]
    restrict: Sequence[float]
    region_weight: float
    landmark_weight: float
    label_weight: float
    labels: Sequence[int]
    convergence_window: int
    convergence_threshold: float


@dataclass(frozen=True)
class Settings:
    """Everything a registration is told.

    Parameters
    ----------
    preset : str
        The name of the preset that it began as.
    deformable : DeformableSettings or PaperSettings
        The deformable stage; its `kind` chooses the engine (`ENGINES`).
    linear : LinearSettings
        The linear stage before it.
    sampling : SamplingSettings
        The displacement grids after it.

    Examples
    --------
    >>> import itk_nir
    >>> settings = itk_nir.make_settings("accurate")
    >>> settings.preset, settings.deformable.iterations
    ('accurate', (96, 40, 24))
    >>> isinstance(settings, itk_nir.Settings)
    True
    """

    preset: str
    deformable: Any
    linear: LinearSettings = field(default_factory=LinearSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    @property
    def engine(self) -> ModuleType:
        """The engine of the deformable stage."""
        return engine_named(self.deformable.kind)

    @property
    def parts(self) -> dict[str, Any]:
        """The settings objects of the three stages by name."""
        return {"deformable": self.deformable, "linear": self.linear, "sampling": self.sampling}


@dataclass(frozen=True)
class Preset:
    """An entry of `PRESETS`: what it is for, and what makes its settings.

    Parameters
    ----------
    purpose : str
        What it is for, in one line.
    make : callable
        Makes its `Settings`.
    """

    purpose: str
    make: Callable[[], Settings]


def engine_named(kind: str) -> ModuleType:
    """The module of an engine of `ENGINES`, loaded when it is first asked for.

    Parameters
    ----------
    kind : str
        A key of `ENGINES`.

    Returns
    -------
    module

    Raises
    ------
    KeyError
        No such engine.
    """
    return import_module(ENGINES[kind])


#: Steps of presets with few iterations, which do not get far otherwise, and with many, which settle at any.
OWN_STEPS: dict[str, Any] = {"learning_rate_end": 0.3, "betas": (0.9, 0.99)}


def _fast() -> Settings:
    return Settings("fast", DeformableSettings(iterations=(24, 10, 5), learning_rates=(1.5, 0.9, 0.6), **OWN_STEPS))


def _default() -> Settings:
    return Settings("default", DeformableSettings())


def _accurate() -> Settings:
    return Settings(
        "accurate",
        DeformableSettings(
            iterations=(96, 40, 24), radius=(5, 7, 8), learning_rates=(1.0, 0.6, 0.4), smoothness=(0.6, 0.3, 0.3),
            lorentzian_scale=0.55, **OWN_STEPS,
        ),
    )  # fmt: skip


def _paper() -> Settings:
    return Settings("paper", import_module("itk_nir.paper.settings").preset())


#: The presets by name.
PRESETS: dict[str, Preset] = {
    "fast": Preset("a good alignment in seconds", _fast),
    "default": Preset("the one to start with: more accurate than SyN, in a fraction of its time", _default),
    "accurate": Preset("the last bit of accuracy: more iterations, wider windows, less smoothness", _accurate),
    "paper": Preset(
        "the design of the paper itself: Fourier-encoded SIREN, velocity + RK4, downsized lattice then mini-patches",
        _paper,
    ),
}

#: Names of options before 0.2 → now.
RENAMED: dict[str, str] = {
    "steps": "iterations",
    "displacement_diffusion": "smoothness",
    "strain_scale": "lorentzian_scale",
    "velocity_diffusion": "velocity_smoothness",
    "lattice_spacing": "grid_spacing",
    "coarsest_lattice": "coarsest_grid_spacing",
    "flow": "transform_model",
    "squarings": "integration_steps",
    "network_alone": "network_warmup",
    "small_voxels": "extra_iterations_below",
    "momentum": "betas",
    "linear_steps": "linear_iterations",
    "linear_start_steps": "linear_start_iterations",
    "bake_error": "max_interpolation_error",
    "bake_spacing": "field_spacing",
    "flow_steps": "ode_steps",
    "time": "integration_time",
    "similarity": "metric",
}

#: Options that are gone since 0.2, and what to do instead.
REMOVED: dict[str, str] = {
    "grids": "every field has one lattice of control points; leave it out",
    "linear_rate": "steps of the linear stage are those of a trust region; leave it out",
    "linear_learning_rate": "steps of the linear stage are those of a trust region; leave it out",
    "network_rate": "the network's steps are bounded by network_radius",
    "network_learning_rate": "the network's steps are bounded by network_radius",
    "centre_gradient": "the gradient of the metric is exact; leave it out",
    "network_step": "the network's steps are bounded by network_radius",
    "gradient_smoothing": "use smoothness for a smoother map",
    "epsilon": "give metric=itk_nir.engine.metrics.LNCC(epsilon=...)",
}


def preset_settings(preset: str | Settings) -> Settings:
    """The settings of a preset; settings as they are.

    Parameters
    ----------
    preset : str or Settings
        A key of `PRESETS`, or settings.

    Returns
    -------
    Settings

    Raises
    ------
    OptionError
        An unknown preset, with the nearest name.
    """
    if isinstance(preset, Settings):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        hint = nearest_name(preset, PRESETS) if isinstance(preset, str) else ""
        raise OptionError(f"unknown preset {shown(preset)}{hint}; there are {', '.join(PRESETS)}")
    return PRESETS[preset].make()


def options_of(preset: str | Settings) -> dict[str, Any]:
    """Name → value of every option of a preset, public and expert.

    Parameters
    ----------
    preset : str or Settings
        A key of `PRESETS`, or settings.

    Returns
    -------
    dict of str to object
    """
    return {
        f.name: getattr(part, f.name)
        for part in preset_settings(preset).parts.values()
        for f in dataclasses.fields(part)
    }


def public_options(preset: str | Settings) -> set[str]:
    """Names of the options of a preset that `itk_nir.register` takes as keywords.

    Parameters
    ----------
    preset : str or Settings
        A key of `PRESETS`, or settings.

    Returns
    -------
    set of str
    """
    parts = preset_settings(preset).parts.values()
    return {name for part in parts for name, what in options_in(part).items() if what.public}


def make_settings(preset: str | Settings = "default", **options: Any) -> Settings:
    """A preset with some of its options overridden, public and expert ones alike.

    Parameters
    ----------
    preset : str or Settings
        What to begin with.
    **options
        See ``itk-nir presets PRESET``. A single number for an option that has one value a level stands for all levels;
        where the number of levels changes, values that are not given are cut, or the last one is repeated.

    Returns
    -------
    Settings
        For `preset` of `itk_nir.register`.

    Raises
    ------
    OptionError
        An unknown preset or option (with the nearest valid name), a value of the wrong type, or values that do not go
        together.

    Examples
    --------
    >>> from itk_nir import make_settings
    >>> make_settings("fast", iterations=5, jacobian_weight=0).deformable.iterations
    (5, 5, 5)
    """
    settings = preset_settings(preset)
    parts = settings.parts
    options = present_names(settings, options)
    homes = {f.name: name for name, part in parts.items() for f in dataclasses.fields(part)}
    for name in options:
        if name not in homes:
            raise unknown_option(name, settings, homes)
    values = {name: converted(type(parts[homes[name]]), name, value) for name, value in options.items()}
    if isinstance(options.get("linear_size"), numbers.Real):
        values["linear_size"] *= len(settings.linear.linear_size)  # one number for all levels, not a single level
    changes = {part: {name: value for name, value in values.items() if homes[name] == part} for part in parts}
    for asked, name, value in ASKED:
        if name in homes and asked & set(values):
            changes[homes[name]].setdefault(name, value)
    for name, counted in (("deformable", "shrink_factors"), ("linear", "linear_size")):
        _match_levels(parts[name], changes[name], counted)
    return replace(settings, **{name: replace(part, **changes[name]) for name, part in parts.items()})


def unknown_option(name: str, settings: Settings, known: Sequence[str] | dict[str, Any]) -> OptionError:
    """The error for an option that there is not, answered from all names and from those of other tools.

    Parameters
    ----------
    name : str
        What the user wrote.
    settings : Settings
        What it was given for.
    known : sequence or dict of str
        All names there are.

    Returns
    -------
    OptionError
    """
    if name in REMOVED:
        return OptionError(f"option {name!r} is gone since 0.2: {REMOVED[name]}")
    hint = nearest_name(name, [*known, *ARGUMENTS], {**SYNONYMS, **RENAMED})
    return OptionError(
        f"unknown option {name!r} for preset {settings.preset!r}{hint}; `itk-nir presets {settings.preset}` lists them"
    )


#: The arguments of `itk_nir.register` that are no options of a preset.
ARGUMENTS = (
    "fixed", "moving", "preset", "linear", "deformable", "fixed_mask", "moving_mask", "fixed_lesion",
    "moving_lesion", "rigid_regions", "volume_regions", "fixed_landmarks", "moving_landmarks", "landmark_weights",
    "fixed_labels", "moving_labels", "initial_transform", "fill", "nan", "resample_shear", "strict_input", "seed",
    "device", "threads", "callback", "checkpoint", "checkpoint_seconds",
)  # fmt: skip


def present_names(preset: str | Settings, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names that they have since 0.2, with a `DeprecationWarning` at the user's own line.

    Parameters
    ----------
    preset : str or Settings
        What the options are for.
    options : mapping of str to object
        Under old or new names.

    Returns
    -------
    dict of str to object

    Raises
    ------
    OptionError
        An old and a new name of one option.
    """
    known = options_of(preset)
    out: dict[str, Any] = {}
    for name, value in options.items():
        now = RENAMED.get(name)
        if name in known or now is None or now not in known:
            out[name] = value
            continue
        if now in options:
            raise OptionError(f"{name!r} is the old name of {now!r}; give one of them")
        warn_renamed(f"option {name!r}", repr(now))
        out[now] = value
    return out


def _match_levels(part: Any, changes: dict[str, Any], counted: str) -> None:
    """One value for all levels; where the number of levels changes, values that are not given are cut or repeated."""
    per_level = [name for name, what in options_in(part).items() if what.per_level]
    if counted not in per_level:
        return
    levels = len(changes[counted] if counted in changes else getattr(part, counted))
    for name in per_level:
        if name in changes:
            changes[name] = spread(changes[name], levels)
        elif levels != len(getattr(part, name)):
            value = getattr(part, name)
            changes[name] = (value + (value[-1],) * levels)[:levels]


def described(preset: str | Settings) -> dict[str, tuple[Any, Option | None]]:
    """Name → value and `Option` of every option of a preset, public ones first.

    Parameters
    ----------
    preset : str or Settings
        A key of `PRESETS`, or settings.

    Returns
    -------
    dict of str to tuple
    """
    parts = preset_settings(preset).parts.values()
    found = {
        f.name: (getattr(part, f.name), options_in(part).get(f.name))
        for part in parts
        for f in dataclasses.fields(part)
    }
    return dict(sorted(found.items(), key=lambda item: not (item[1][1] and item[1][1].public)))


def describe_presets(preset: str | None = None) -> str:
    """Text: the presets with their purposes, or the options of one with their values and meanings.

    Parameters
    ----------
    preset : str, optional
        A key of `PRESETS`; left out: all of them.

    Returns
    -------
    str
        Several lines.
    """
    if preset is None:
        return "\n".join(f"{name:<9} {entry.purpose}" for name, entry in PRESETS.items())
    lines = [f"{preset}: {PRESETS[preset].purpose}"]
    heading = None
    for name, (value, what) in described(preset).items():
        kind = "options" if what is not None and what.public else "expert settings"
        if kind != heading:
            lines += ["", f"{kind}:"]
            heading = kind
        lines.append(f"  {name} = {value!r}")
        if what is not None:
            limits = what.limits()
            text = what.help.replace("`", "") + (f" ({limits})" if limits else "")
            lines += textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def options_page() -> str:
    """``docs/options.md``: the public options and the expert settings of preset ``default``, as tables.

    Returns
    -------
    str
        Markdown.
    """
    lines = [
        "# Options",
        "",
        "Made by `python -m itk_nir.settings`; the test suite checks that it is up to date.",
        "",
        "The public options are keywords of `itk_nir.register` and flags of `itk-nir register` (`--smoothness 2`).",
        "Those with one value a level take a single number for all levels.",
    ]
    for title, public in (("Public options", True), ("Expert settings", False)):
        lines += ["", f"## {title}", ""]
        if not public:
            lines += [
                '`register(fixed, moving, preset=itk_nir.make_settings("default", NAME=VALUE))`, or `--set',
                "NAME=VALUE`.",
                "",
            ]
        lines += ["| name | default | a level | limits | meaning |", "|---|---|---|---|---|"]
        for name, (value, what) in described("default").items():
            if what is None or what.public != public:
                continue
            shown = "a Fourier-SIREN" if name == "network" else f"`{value!r}`"
            text = what.help.replace("|", "\\|")
            lines.append(f"| `{name}` | {shown} | {'yes' if what.per_level else ''} | {what.limits()} | {text} |")
    lines += [
        "",
        "## Presets",
        "",
        "What each has other than `default`.",
        "",
        "| preset | option | value |",
        "|---|---|---|",
    ]
    usual = options_of("default")
    for preset in PRESETS:
        for name, value in options_of(preset).items():
            if name not in usual or value != usual[name]:
                lines.append(f"| `{preset}` | `{name}` | `{value!r}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(options_page(), end="")

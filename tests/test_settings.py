"""Presets and options."""

from __future__ import annotations

import dataclasses
import itertools
import typing
import warnings
from typing import Any

import numpy as np
import pytest

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.metrics import LNCC, METRICS, NCC
from itk_nir.engine.regularisers import REGULARISERS, Diffusion
from itk_nir.engine.settings import DeformableSettings
from itk_nir.errors import OptionError
from itk_nir.options import options_in
from itk_nir.settings import (
    ARGUMENTS,
    ENGINES,
    PRESETS,
    REMOVED,
    RENAMED,
    Options,
    Preset,
    PresetName,
    Settings,
    describe_presets,
    engine_named,
    make_settings,
    options_of,
    preset_settings,
    public_options,
)

EVERY = pytest.mark.parametrize("preset", list(PRESETS))
#: The presets of the default engine.
DEFORMABLE = ["fast", "default", "accurate"]
PER_LEVEL = [
    "smoothing_sigmas", "iterations", "learning_rates", "grid_spacing", "radius", "velocity_smoothness", "smoothness",
]  # fmt: skip


def made(preset: str) -> Settings:
    return PRESETS[preset].make()


def deformable(settings: Settings) -> DeformableSettings:
    assert isinstance(settings.deformable, DeformableSettings)
    return settings.deformable


def test_the_four_presets() -> None:
    assert list(PRESETS) == ["fast", "default", "accurate", "paper"]
    assert make_settings("paper").deformable.kind == "paper"


@EVERY
def test_preset_without_options_is_the_preset(preset: str) -> None:
    assert make_settings(preset) == made(preset) == preset_settings(preset)


@EVERY
def test_options_of_a_preset_make_it_again(preset: str) -> None:
    options = options_of(preset)
    assert make_settings(preset, **options) == made(preset)
    parts = made(preset).parts.values()
    names = [f.name for part in parts for f in dataclasses.fields(part)]
    assert len(names) == len(set(names)), "an option name that two parts share would be ambiguous"
    assert set(options) == set(names)


@EVERY
def test_preset_is_described_with_all_its_options(preset: str) -> None:
    text = describe_presets(preset)
    assert text.startswith(f"{preset}: {PRESETS[preset].purpose}")
    for name, value in options_of(preset).items():
        assert f"{name} = {value!r}" in text
    assert preset in describe_presets()


def test_options_go_to_the_part_that_has_them() -> None:
    settings = make_settings("default", integration_steps=7, linear_radius=3, max_interpolation_error=0.2)
    assert deformable(settings).integration_steps == 7
    assert settings.linear.linear_radius == 3
    assert settings.sampling.max_interpolation_error == 0.2
    assert make_settings("default") == made("default"), "a preset is never changed"


@pytest.mark.parametrize(("wrong", "nearest"), [("defualt", "'default'"), ("Fast", "'fast'"), ("papers", "'paper'")])
def test_unknown_preset_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"unknown preset .* did you mean {nearest}.*fast, default, accurate, paper"):
        make_settings(wrong)


@pytest.mark.parametrize(
    ("preset", "wrong", "nearest"),
    [
        ("default", "step", "iterations"),
        ("default", "shrink_factor", "shrink_factors"),
        ("fast", "learning_rate", "learning_rates"),
        ("accurate", "bake_eror", "max_interpolation_error"),
        ("default", "linear_step", "linear_iterations"),
        ("paper", "phase", "phases"),
        ("paper", "flow_step", "flow_steps"),
    ],
)
def test_unknown_option_names_the_nearest(preset: str, wrong: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option '{wrong}'.*did you mean '{nearest}'") as caught:
        make_settings(preset, **{wrong: 1})
    assert f"itk-nir presets {preset}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_option_that_resembles_nothing_and_option_of_another_preset() -> None:
    with pytest.raises(OptionError, match="unknown option 'zzzzzz' for preset 'default';"):
        make_settings("default", zzzzzz=1)
    with pytest.raises(OptionError, match="unknown option 'phases' for preset 'default'"):
        make_settings("default", phases=options_of("paper")["phases"])


@pytest.mark.parametrize(
    ("preset", "name", "value"),
    [
        ("default", "iterations", "many"),
        ("default", "iterations", (1.5, 2.5)),
        ("default", "iterations", True),
        ("default", "iterations", None),
        ("default", "learning_rates", ("a", "b")),
        ("default", "flow", 3),
        ("default", "integration_steps", 2.0),
        ("default", "integration_steps", True),
        ("default", "centre_gradient", 1),
        ("default", "betas", (0.9,)),
        ("default", "betas", 0.9),
        ("default", "network", "siren"),
        ("default", "field_spacing", 1.5),
        ("default", "linear_radius", "4"),
        ("paper", "flow_steps", "4"),
        ("paper", "phases", (1, 2)),
    ],
)
def test_value_of_the_wrong_type(preset: str, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"option '{name}' is a ") as caught:
        make_settings(preset, **{name: value})
    assert repr(value)[:3] in str(caught.value)


def test_whole_numbers_stand_for_floats_and_lists_for_tuples() -> None:
    engine = deformable(make_settings("default", shrink_factors=[2, 1], learning_rates=[1, 0.5], grid_spacing=(2, 2)))
    assert engine.shrink_factors == (2, 1)
    assert engine.learning_rates == (1.0, 0.5)
    assert all(type(v) is float for v in engine.learning_rates + engine.grid_spacing)


def test_none_and_a_number_where_both_are_allowed() -> None:
    assert make_settings("default", field_spacing=3).sampling.field_spacing == 3
    assert make_settings("default", field_spacing=None).sampling.field_spacing is None
    network = FieldConfig(width=16, depth=1)
    assert deformable(make_settings("default", network=network)).network == network


@pytest.mark.parametrize("preset", DEFORMABLE)
@pytest.mark.parametrize("name", [n for n in PER_LEVEL if n != "grid_spacing"])
def test_single_number_stands_for_all_levels(preset: str, name: str) -> None:
    engine = deformable(make_settings(preset, **{name: 3}))
    assert getattr(engine, name) == (3,) * deformable(made(preset)).levels


def test_single_number_stands_for_all_levels_of_the_linear_stage_too() -> None:
    plain = make_settings("default").linear
    linear = make_settings("default", linear_iterations=7, linear_size=20).linear
    assert linear.linear_iterations == (7,) * len(plain.linear_iterations)
    assert linear.linear_size == (20,) * len(plain.linear_size)


@pytest.mark.parametrize("preset", DEFORMABLE)
@pytest.mark.parametrize("factors", [2, (4,), (4, 2), (8, 4, 2, 1)])
def test_number_of_levels_can_change_alone(preset: str, factors: Any) -> None:
    before = deformable(made(preset))
    engine = deformable(make_settings(preset, shrink_factors=factors, grid_spacing=1.0, coarsest_grid_spacing=16.0))
    assert engine.levels == (1 if isinstance(factors, int) else len(factors))
    for name in PER_LEVEL:
        if name == "grid_spacing":
            continue
        wanted = itertools.islice(itertools.chain(getattr(before, name), itertools.repeat(getattr(before, name)[-1])),
                                  engine.levels)  # fmt: skip
        assert getattr(engine, name) == tuple(wanted)


@pytest.mark.parametrize("name", PER_LEVEL)
def test_values_that_are_not_one_a_level(name: str) -> None:
    value = getattr(deformable(made("default")), name)
    with pytest.raises(OptionError, match=f"{name} has {len(value) + 1} values but shrink_factors has {len(value)}"):
        make_settings("default", **{name: (*value, value[-1])})


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("default", {"shrink_factors": (2, 4)}, "shrink_factors must fall"),
        ("default", {"shrink_factors": ()}, "shrink_factors"),
        ("default", {"iterations": 0}, "steps must not be negative, nor all zero"),
        ("default", {"radius": 0}, "radius"),
        ("default", {"grids": "pyramids"}, "grids is 'pyramid', 'single' or 'none'"),
        ("default", {"flow": "euler"}, "flow is 'velocity' or 'displacement'"),
        ("default", {"coarsest_grid_spacing": 7.0}, "coarsest_grid_spacing"),
        ("default", {"grid_spacing": 0.0}, "grid_spacing"),
        ("default", {"learning_rates": 0.0}, "learning_rates"),
        ("default", {"smoothing_sigmas": -1.0}, "smoothing_sigmas"),
        ("default", {"velocity_smoothness": -1.0}, "velocity_smoothness"),
        ("default", {"integration_steps": -1}, "integration_steps"),
        ("default", {"epsilon": 0.0}, "epsilon"),
        ("default", {"convergence_window": 0}, "convergence_window"),
        ("default", {"max_interpolation_error": 0.0}, "max_interpolation_error"),
        ("default", {"linear_size": (10, 20, 30)}, "linear_size has 3 values"),
        ("default", {"linear_size": 0}, "linear_size"),
        ("default", {"linear_radius": 0}, "linear_radius"),
        ("default", {"linear_iterations": -1}, "linear_iterations"),
        ("paper", {"flow": "eulr"}, "unknown flow"),
        ("paper", {"phases": ()}, "at least one phase"),
    ],
)
def test_values_that_make_no_sense(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_settings(preset, **options)

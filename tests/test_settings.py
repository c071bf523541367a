"""Presets and options."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from itk_nir.settings import PRESETS, Settings, describe_presets, make_settings, options_of, preset_settings
from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.optimize import LatticeSettings
from itk_nir.paper.registration import PointSettings
from itk_nir.errors import OptionError

EVERY = pytest.mark.parametrize("preset", list(PRESETS))
LATTICE = [name for name, (_, s) in PRESETS.items() if isinstance(s.engine, LatticeSettings)]
PER_LEVEL = [
    "smoothing_sigmas", "steps", "learning_rates", "lattice_spacing", "radius", "velocity_diffusion",
    "displacement_diffusion",
]  # fmt: skip


def lattice(settings: Settings) -> LatticeSettings:
    assert isinstance(settings.engine, LatticeSettings)
    return settings.engine


def test_the_four_presets() -> None:
    assert list(PRESETS) == ["fast", "default", "accurate", "paper"]
    assert isinstance(PRESETS["paper"][1].engine, PointSettings)


@EVERY
def test_preset_without_options_is_the_preset(preset: str) -> None:
    assert make_settings(preset) == PRESETS[preset][1] == preset_settings(preset)


@EVERY
def test_options_of_a_preset_make_it_again(preset: str) -> None:
    options = options_of(preset)
    assert make_settings(preset, **options) == PRESETS[preset][1]
    parts = [getattr(PRESETS[preset][1], f.name) for f in dataclasses.fields(Settings)]
    names = [f.name for part in parts for f in dataclasses.fields(part)]
    assert len(names) == len(set(names)), "an option name that two parts share would be ambiguous"
    assert set(options) == set(names)


@EVERY
def test_preset_is_described_with_all_its_options(preset: str) -> None:
    text = describe_presets(preset)
    assert text.startswith(f"{preset}: {PRESETS[preset][0]}")
    for name, value in options_of(preset).items():
        assert f"{name} = {value!r}" in text
    assert preset in describe_presets()


def test_options_go_to_the_part_that_has_them() -> None:
    settings = make_settings("default", squarings=7, linear_radius=3, bake_error=0.2)
    assert lattice(settings).squarings == 7
    assert settings.linear.linear_radius == 3
    assert settings.bake.bake_error == 0.2
    assert make_settings("default") == PRESETS["default"][1], "a preset is never changed"


@pytest.mark.parametrize(("wrong", "nearest"), [("defualt", "'default'"), ("Fast", "'fast'"), ("papers", "'paper'")])
def test_unknown_preset_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"unknown preset .* did you mean {nearest}.*fast, default, accurate, paper"):
        make_settings(wrong)


@pytest.mark.parametrize(
    ("preset", "wrong", "nearest"),
    [
        ("default", "step", "steps"),
        ("default", "shrink_factor", "shrink_factors"),
        ("fast", "learning_rate", "learning_rates"),
        ("accurate", "bake_eror", "bake_error"),
        ("default", "linear_step", "linear_steps"),
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
        ("default", "steps", "many"),
        ("default", "steps", (1.5, 2.5)),
        ("default", "steps", True),
        ("default", "steps", None),
        ("default", "learning_rates", ("a", "b")),
        ("default", "flow", 3),
        ("default", "squarings", 2.0),
        ("default", "squarings", True),
        ("default", "symmetric", 1),
        ("default", "momentum", (0.9,)),
        ("default", "momentum", 0.9),
        ("default", "network", "siren"),
        ("default", "bake_spacing", 1.5),
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
    engine = lattice(make_settings("default", shrink_factors=[2, 1], learning_rates=[1, 0.5], lattice_spacing=(2, 2)))
    assert engine.shrink_factors == (2, 1)
    assert engine.learning_rates == (1.0, 0.5)
    assert all(type(v) is float for v in engine.learning_rates + engine.lattice_spacing)


def test_none_and_a_number_where_both_are_allowed() -> None:
    assert make_settings("default", bake_spacing=3).bake.bake_spacing == 3
    assert make_settings("default", bake_spacing=None).bake.bake_spacing is None
    network = FieldConfig(width=16, depth=1)
    assert lattice(make_settings("default", network=network)).network == network


@pytest.mark.parametrize("preset", LATTICE)
@pytest.mark.parametrize("name", [n for n in PER_LEVEL if n != "lattice_spacing"])
def test_single_number_stands_for_all_levels(preset: str, name: str) -> None:
    engine = lattice(make_settings(preset, **{name: 3}))
    assert getattr(engine, name) == (3,) * lattice(PRESETS[preset][1]).levels


def test_single_number_stands_for_all_levels_of_the_linear_stage_too() -> None:
    plain = make_settings("default").linear
    linear = make_settings("default", linear_steps=7, linear_size=20).linear
    assert linear.linear_steps == (7,) * len(plain.linear_steps)
    assert linear.linear_size == (20,) * len(plain.linear_size)


@pytest.mark.parametrize("preset", LATTICE)
@pytest.mark.parametrize("factors", [2, (4,), (4, 2), (8, 4, 2, 1)])
def test_number_of_levels_can_change_alone(preset: str, factors: Any) -> None:
    before = lattice(PRESETS[preset][1])
    engine = lattice(make_settings(preset, shrink_factors=factors, lattice_spacing=1.0, coarsest_lattice=16.0))
    assert engine.levels == (1 if isinstance(factors, int) else len(factors))
    for name in PER_LEVEL:
        if name == "lattice_spacing":
            continue
        wanted = itertools.islice(itertools.chain(getattr(before, name), itertools.repeat(getattr(before, name)[-1])),
                                  engine.levels)  # fmt: skip
        assert getattr(engine, name) == tuple(wanted)


@pytest.mark.parametrize("name", PER_LEVEL)
def test_values_that_are_not_one_a_level(name: str) -> None:
    value = getattr(lattice(PRESETS["default"][1]), name)
    with pytest.raises(OptionError, match=f"{name} has {len(value) + 1} values but shrink_factors has {len(value)}"):
        make_settings("default", **{name: (*value, value[-1])})


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("default", {"shrink_factors": (2, 4)}, "shrink_factors must fall"),
        ("default", {"shrink_factors": ()}, "shrink_factors"),
        ("default", {"steps": 0}, "steps must not be negative, nor all zero"),
        ("default", {"radius": 0}, "radius"),
        ("default", {"grids": "pyramids"}, "grids is 'pyramid', 'single' or 'none'"),
        ("default", {"flow": "euler"}, "flow is 'velocity' or 'displacement'"),
        ("default", {"coarsest_lattice": 7.0}, "coarsest_lattice"),
        ("default", {"lattice_spacing": 0.0}, "lattice_spacing"),
        ("default", {"learning_rates": 0.0}, "learning_rates"),
        ("default", {"smoothing_sigmas": -1.0}, "smoothing_sigmas"),
        ("default", {"velocity_diffusion": -1.0}, "velocity_diffusion"),
        ("default", {"squarings": -1}, "squarings"),
        ("default", {"epsilon": 0.0}, "epsilon"),
        ("default", {"convergence_window": 0}, "convergence_window"),
        ("default", {"bake_error": 0.0}, "bake_error"),
        ("default", {"linear_size": (10, 20, 30)}, "linear_size has 3 values"),
        ("default", {"linear_size": 0}, "linear_size"),
        ("default", {"linear_radius": 0}, "linear_radius"),
        ("default", {"linear_steps": -1}, "linear_steps"),
        ("paper", {"flow": "eulr"}, "unknown flow"),
        ("paper", {"phases": ()}, "at least one phase"),
    ],
)
def test_values_that_make_no_sense(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_settings(preset, **options)

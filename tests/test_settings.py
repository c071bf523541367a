"""Presets and options."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from pathlib import Path
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
    options_page,
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
    assert list(typing.get_args(PresetName)) == list(PRESETS)
    assert all(isinstance(entry, Preset) and entry.purpose for entry in PRESETS.values())


@EVERY
def test_presets_name_themselves_and_their_engine(preset: str) -> None:
    settings = made(preset)
    assert settings.preset == preset
    assert settings.deformable.kind == ("paper" if preset == "paper" else "deformable")
    assert settings.engine is engine_named(settings.deformable.kind)
    assert isinstance(settings.deformable, settings.engine.Settings)
    assert {"optimise", "describe", "restore"} <= set(dir(settings.engine))


def test_engine_that_there_is_not() -> None:
    assert set(ENGINES) == {"deformable", "paper"}
    with pytest.raises(KeyError):
        engine_named("wavelet")


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
    assert f"{preset:<9} {PRESETS[preset].purpose}" in describe_presets().splitlines()
    public, expert = (text.index(f"\n{kind}:") for kind in ("options", "expert settings"))
    for name in options_of(preset):
        assert (public < text.index(f"\n  {name} = ") < expert) == (name in public_options(preset)), name


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
        ("default", "stepz", "iterations"),
        ("default", "levels", "shrink_factors"),
        ("default", "smoothnes", "smoothness"),
        ("default", "fixed_masks", "fixed_mask"),
        ("default", "sed", "seed"),
        ("default", "shrink_factor", "shrink_factors"),
        ("fast", "learning_rate", "learning_rates"),
        ("accurate", "max_interpolation_eror", "max_interpolation_error"),
        ("default", "linear_step", "linear_iterations"),
        ("default", "bake_eror", "max_interpolation_error"),
        ("paper", "phase", "phases"),
        ("paper", "ode_step", "ode_steps"),
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
        make_settings("default", phases=3)


@pytest.mark.parametrize(
    ("preset", "name", "value"),
    [
        ("default", "iterations", "many"),
        ("default", "iterations", (1.5, 2.5)),
        ("default", "iterations", True),
        ("default", "iterations", None),
        ("default", "learning_rates", ("a", "b")),
        ("default", "transform_model", 3),
        ("default", "metric", 3),
        ("default", "regulariser", None),
        ("default", "integration_steps", 2.0),
        ("default", "integration_steps", True),
        ("default", "symmetric", 1),
        ("default", "betas", (0.9,)),
        ("default", "betas", 0.9),
        ("default", "network", "siren"),
        ("default", "field_spacing", 1.5),
        ("default", "linear_radius", "4"),
        ("paper", "ode_steps", "4"),
        ("paper", "phases", (1, 2)),
    ],
)
def test_value_of_the_wrong_type(preset: str, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"option '{name}' is (a|True or|one of) ") as caught:
        make_settings(preset, **{name: value})
    assert str(caught.value).endswith(f"got {value!r}")


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
    assert make_settings("default", linear_size=np.int64(20)).linear.linear_size == (20,) * len(plain.linear_size)


def test_number_of_levels_of_the_linear_stage_can_change_alone() -> None:
    before = make_settings("default").linear.linear_iterations
    for sizes in ((20,), (10, 20, 30)):
        linear = make_settings("default", linear_size=sizes).linear
        assert linear.linear_size == sizes
        assert linear.linear_iterations == (before + before[-1:] * 3)[: len(sizes)]


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
        ("default", {"iterations": 0}, "iterations must not all be zero"),
        ("default", {"radius": 0}, "radius"),
        ("default", {"iterations": -1}, "iterations must be at least 0"),
        (
            "default",
            {"transform_model": "euler"},
            "transform_model must be one of 'velocity', 'displacement', got 'euler'",
        ),
        ("default", {"transform_model": "displacment"}, "did you mean 'displacement'"),
        ("default", {"symmetric": True, "transform_model": "displacement"}, "symmetric needs the inverse"),
        ("default", {"coarsest_grid_spacing": 7.0}, "coarsest_grid_spacing"),
        ("default", {"grid_spacing": 0.0}, "grid_spacing"),
        ("default", {"learning_rates": 0.0}, "learning_rates"),
        ("default", {"smoothing_sigmas": -1.0}, "smoothing_sigmas"),
        ("default", {"velocity_smoothness": -1.0}, "velocity_smoothness"),
        ("default", {"integration_steps": -1}, "integration_steps"),
        ("default", {"betas": (0.9, 1.0)}, "betas must be at least 0 and below 1"),
        ("default", {"network_warmup": 1.5}, "network_warmup must be at least 0 and at most 1"),
        ("default", {"lorentzian_scale": float("nan")}, "lorentzian_scale must be above 0"),
        ("default", {"smoothness": float("inf")}, "smoothness must be at least 0"),
        ("default", {"convergence_window": 0}, "convergence_window"),
        ("default", {"max_interpolation_error": 0.0}, "max_interpolation_error"),
        ("default", {"linear_iterations": (10, 20, 30)}, "linear_size has 2 values and linear_iterations 3"),
        ("default", {"linear_size": (10, 20, 30), "linear_iterations": (9, 9)}, "linear_size has 3 values"),
        ("default", {"linear_size": 0}, "linear_size"),
        ("default", {"linear_radius": 0}, "linear_radius"),
        ("default", {"linear_iterations": -1}, "linear_iterations"),
        ("default", {"linear_iterations": 0}, "linear='none'"),
        ("paper", {"flow": "eulr"}, "flow must be one of"),
        ("paper", {"phases": ()}, "at least one phase"),
    ],
)
def test_values_that_make_no_sense(preset: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_settings(preset, **options)


# --- settings as a preset --------------------------------------------------------------------------------------------


def test_settings_are_a_preset_too() -> None:
    changed = make_settings("fast", smoothness=2, jacobian_weight=0)
    assert preset_settings(changed) is changed
    assert make_settings(changed) == changed
    again = make_settings(changed, radius=3)
    assert again.preset == "fast"
    assert deformable(again).smoothness == (2.0, 2.0, 2.0)
    assert deformable(again).radius == (3, 3, 3)
    assert deformable(again).jacobian_weight == 0
    assert deformable(changed).radius == deformable(made("fast")).radius, "settings are never changed"
    with pytest.raises(OptionError, match="for preset 'fast'"):
        make_settings(changed, zzzzzz=1)
    for wrong in (3, None, ["fast"]):
        with pytest.raises(OptionError, match="unknown preset"):
            make_settings(wrong)  # type: ignore[arg-type]


def test_what_is_asked_for_is_done_whatever_the_size() -> None:
    assert deformable(make_settings("default")).extra_iterations_below > 0
    assert deformable(make_settings("default", iterations=5)).extra_iterations_below == 0
    assert deformable(make_settings("default", iterations=5, extra_iterations_below=9)).extra_iterations_below == 9
    assert deformable(make_settings("default", radius=5)).extra_iterations_below > 0


def test_metric_and_regulariser_by_name_and_as_objects() -> None:
    for name, table in (("metric", METRICS), ("regulariser", REGULARISERS)):
        for word in table:
            assert getattr(deformable(make_settings("default", **{name: word})), name) == word
        with pytest.raises(OptionError, match=f"{name} must be one of .*, got 'mutual information'"):
            make_settings("default", **{name: "mutual information"})
    assert deformable(make_settings("default", metric=LNCC(epsilon=1e-3))).metric == LNCC(epsilon=1e-3)
    assert deformable(make_settings("default", metric=NCC())).metric == NCC()
    assert deformable(make_settings("default", regulariser=Diffusion())).regulariser == Diffusion()
    with pytest.raises(OptionError, match="option 'metric' is a "):
        make_settings("default", metric=Diffusion())


def test_numbers_of_numpy_are_numbers() -> None:
    settings = deformable(
        make_settings("default", iterations=np.array([20, 10, 5]), learning_rates=np.float32(0.5), radius=np.int64(4),
                      symmetric=np.bool_(True), smoothness=[np.float64(1), 2, np.int32(3)])
    )  # fmt: skip
    assert settings.iterations == (20, 10, 5)
    assert settings.learning_rates == (0.5,) * 3
    assert settings.radius == (4,) * 3
    assert settings.symmetric is True
    assert settings.smoothness == (1.0, 2.0, 3.0)
    assert {type(v) for v in settings.iterations + settings.radius} == {int}
    assert {type(v) for v in settings.learning_rates + settings.smoothness} == {float}


# --- public and expert, old and gone ---------------------------------------------------------------------------------


def test_options_that_an_editor_knows_are_the_public_ones() -> None:
    """`Options` is written by hand, for editors and type checkers; the settings say what there is."""
    from itk_nir import settings as module
    from itk_nir.engine.metrics import Metric
    from itk_nir.engine.regularisers import Regulariser

    assert set(Options.__annotations__) == public_options("default")
    names = {**vars(module), "Metric": Metric, "Regulariser": Regulariser}
    hints = typing.get_type_hints(Options, None, names)
    own = typing.get_type_hints(DeformableSettings)
    for name, what in options_in(DeformableSettings).items():
        if not what.public:
            continue
        parts = [hints[name], *typing.get_args(hints[name])]
        words = [w for part in parts if typing.get_origin(part) is typing.Literal for w in typing.get_args(part)]
        # Any text may be a sum of metrics: what is wrong in it is said when it is read.
        assert words == ([] if name == "metric" else list(what.choices)), name
        assert (str in parts) == (name == "metric")
        if what.per_level:
            number = typing.get_args(own[name])[0]
            assert number in typing.get_args(hints[name]), name
    assert set(Options.__annotations__).isdisjoint(ARGUMENTS)


def test_arguments_are_those_of_register() -> None:
    import inspect

    from itk_nir import register

    taken = [p.name for p in inspect.signature(register).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert list(ARGUMENTS) == taken


@pytest.mark.parametrize("old", [old for old, now in RENAMED.items() if now in options_of("default")])
def test_old_names_warn_and_work(old: str) -> None:
    now = RENAMED[old]
    value: Any = options_of("accurate")[now]
    with pytest.warns(DeprecationWarning, match=f"option '{old}' is called '{now}' since 0.2") as told:
        settings = make_settings("default", **{old: value})
    assert len(told) == 1
    assert told[0].filename == __file__, "the warning is about the caller's line"
    assert settings == make_settings("default", **{now: value})
    assert options_of(settings)[now] == value
    with pytest.raises(OptionError, match=f"'{old}' is the old name of '{now}'"):
        make_settings("default", **{old: value, now: value})
    with pytest.warns(DeprecationWarning, match=now), pytest.raises(OptionError, match=f"'{now}' is|^{now} must"):
        make_settings("default", **{old: "nonsense"})


def test_old_names_stand_for_options_that_there_are() -> None:
    known = set(options_of("default"))
    assert {old for old, now in RENAMED.items() if now not in known} <= {"flow_steps", "time"}
    assert known.isdisjoint(RENAMED)
    assert known.isdisjoint(REMOVED)


@pytest.mark.parametrize("name", REMOVED)
def test_options_that_are_gone_say_what_to_do(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_settings("default", **{name: 1})
    assert str(caught.value) == f"option {name!r} is gone since 0.2: {REMOVED[name]}"


def test_page_of_options_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == options_page(), "run python -m itk_nir.settings > docs/options.md"
    for name in options_of("default"):
        assert f"\n| `{name}` | " in options_page()

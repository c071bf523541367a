"""Options as data: limits, conversion of what a user gives, the nearest name."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest

from itk_nir.engine.settings import DeformableSettings, LinearSettings, SamplingSettings
from itk_nir.errors import OptionError
from itk_nir.options import (
    SYNONYMS,
    Option,
    check,
    check_levels,
    converted,
    nearest_name,
    option,
    options_in,
    rebuilt,
    spread,
)
from itk_nir.settings import ARGUMENTS, Preset, make_settings, options_of, public_options

CLASSES = [DeformableSettings, LinearSettings, SamplingSettings]
EVERY = [pytest.param(owner, name, what, id=name) for owner in CLASSES for name, what in options_in(owner).items()]


@dataclass(frozen=True)
class Made:
    """One option of each kind."""

    count: int = option(3, "a count", at_least=1)
    share: float = option(0.5, "a share", at_least=0, below=1)
    scale: float = option(1.0, "a scale", above=0, infinite=True)
    sizes: tuple[int, ...] = option((2, 1), "sizes", at_least=1, per_level=True, public=True)
    labels: tuple[int, ...] = option((), "labels", at_least=1)
    weights: tuple[float, ...] = option((0.5, 0.1), "weights", at_least=0, at_most=9, per_level=True)
    pair: tuple[float, float] = option((0.9, 0.99), "two rates")
    word: str = option("one", "a word", choices=("one", "two"))
    model: Literal["x", "y"] = option("x", "a model", choices=("x", "y"))
    flag: bool = option(False, "yes or no")
    spacing: int | None = option(None, "a spacing", at_least=1)
    plain: int = 7

    def __post_init__(self) -> None:
        check(self)
        check_levels(self, len(self.sizes), "sizes")


# --- the options that there are --------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", CLASSES)
def test_every_setting_is_an_option_with_help(owner: Any) -> None:
    assert list(options_in(owner)) == [f.name for f in dataclasses.fields(owner)]
    for name, what in options_in(owner).items():
        assert len(what.help) > 15, name
        assert not what.help.endswith("."), f"{name}: the limits follow in brackets"
    assert options_in(owner()) == options_in(owner)


def outside(what: Option) -> Iterator[Any]:
    """Values just beyond each limit, and what is no number."""
    if what.choices:
        yield "no such word"
    if what.above is not None:
        yield from (what.above, what.above - 1)
    if what.at_least is not None:
        yield what.at_least - 1
    if what.below is not None:
        yield from (what.below, what.below + 1)
    if what.at_most is not None:
        yield what.at_most + 1


def with_value(owner: Any, name: str, value: Any) -> Any:
    """The settings with a value for an option, for all its numbers where it has several."""
    default = getattr(owner(), name)
    return replace(owner(), **{name: (value,) * max(1, len(default)) if isinstance(default, tuple) else value})


@pytest.mark.parametrize(("owner", "name", "what"), EVERY)
def test_every_option_refuses_what_is_outside_its_limits(owner: Any, name: str, what: Option) -> None:
    hint = typing.get_type_hints(owner)[name]
    values = list(outside(what))
    number = hint in (int, float) or float in typing.get_args(hint) or int in typing.get_args(hint)
    if number:
        assert values, "every number has a limit"
        values += [math.nan, -math.inf] + ([] if what.infinite else [math.inf])
    for value in values:
        with pytest.raises(OptionError, match=f"^{name} must be ") as caught:
            with_value(owner, name, value)
        assert what.limits() in str(caught.value)
        assert "\n" not in str(caught.value)
    if isinstance(getattr(owner(), name), tuple):
        # One number of many is enough.
        good = getattr(owner(), name)
        with pytest.raises(OptionError, match=f"^{name} must be "):
            replace(owner(), **{name: (*good[:-1], values[0])})


@pytest.mark.parametrize(("owner", "name", "what"), EVERY)
def test_every_default_and_every_bound_that_belongs_is_allowed(owner: Any, name: str, what: Option) -> None:
    default = getattr(owner(), name)
    for value in default if isinstance(default, tuple) else (default,):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert what.allows(value)
        if what.choices:
            assert value in what.choices
    for bound in (what.at_least, what.at_most):
        assert bound is None or what.allows(bound)
    for bound in (what.above, what.below):
        assert bound is None or not what.allows(bound)
    assert what.allows(math.inf) == what.infinite
    assert not what.allows(math.nan)


def test_public_options_are_few_and_but_for_a_metric_of_the_deformable_stage() -> None:
    public = [{n for n, what in options_in(s).items() if what.public} for s in (DeformableSettings, LinearSettings)]
    assert public_options("default") == public[0] | public[1]
    assert public[1] == {"linear_metric"}
    assert not any(what.public for what in options_in(SamplingSettings).values())
    assert len(public_options("default")) == 21


# --- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (Option("x"), ""),
        (Option("x", above=0), "above 0"),
        (Option("x", at_least=0, below=1), "at least 0 and below 1"),
        (Option("x", above=0.5, at_most=2), "above 0.5 and at most 2"),
        (Option("x", choices=("a", "b")), "one of 'a', 'b'"),
    ],
)
def test_limits_in_words(what: Option, words: str) -> None:
    assert what.limits() == words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"share": 1.0}, r"share must be at least 0 and below 1, got 1\.0"),
        ({"share": math.nan}, "share must be at least 0 and below 1, got nan"),
        ({"scale": -math.inf}, "scale must be above 0, got -inf"),
        ({"weights": (1.0, 10.0)}, r"weights must be at least 0 and at most 9, got \(1\.0, 10\.0\)"),
        ({"weights": (1.0, math.inf)}, "weights must be"),
        ({"pair": (0.1, math.nan)}, r"pair must be a finite number, got \(0\.1, nan\)"),
        ({"word": "twoo"}, "word must be one of 'one', 'two', got 'twoo', did you mean 'two'"),
        ({"spacing": 0}, "spacing must be at least 1, got 0"),
        ({"weights": (1.0,)}, "weights has 1 values but sizes has 2; give one for each level"),
    ],
)
def test_values_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        Made(**changes)


def test_values_that_are_allowed() -> None:
    Made(scale=math.inf, share=0.0, weights=(0.0, 9.0), spacing=None)
    Made(plain=-5)  # no option, no limit
    assert set(options_in(Made)) == {f.name for f in dataclasses.fields(Made)} - {"plain"}


def test_choices_are_looked_up_when_they_are_needed() -> None:
    table = {"one": 1}

    @dataclass(frozen=True)
    class Live:
        word: str = option("one", "a word of a table", choices=table)

        def __post_init__(self) -> None:
            check(self)

    with pytest.raises(OptionError):
        Live("two")
    table["two"] = 2
    assert Live("two").word == "two"


# --- conversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", 4, 4),
        ("count", np.int64(4), 4),
        ("count", np.uint8(4), 4),
        ("share", 1, 1.0),
        ("share", np.float32(0.25), 0.25),
        ("share", np.int16(1), 1.0),
        ("share", np.inf, math.inf),
        ("sizes", 3, (3,)),
        ("sizes", np.int32(3), (3,)),
        ("sizes", [4, 2], (4, 2)),
        ("sizes", np.array([4, 2]), (4, 2)),
        ("sizes", (np.int64(4), 2), (4, 2)),
        ("labels", 2, (2,)),
        ("weights", 1, (1.0,)),
        ("weights", np.float32(0.5), (0.5,)),
        ("weights", np.array([1, 2]), (1.0, 2.0)),
        ("weights", np.array([0.5, 0.25], np.float32), (0.5, 0.25)),
        ("pair", [0, 0.5], (0.0, 0.5)),
        ("pair", np.array([0.5, 0.75]), (0.5, 0.75)),
        ("flag", np.bool_(True), True),
        ("flag", False, False),
        ("word", "zzz", "zzz"),  # which words there are is for `check` to say
        ("model", "y", "y"),
        ("spacing", None, None),
        ("spacing", np.int64(2), 2),
    ],
)
def test_what_is_taken(name: str, value: Any, wanted: Any) -> None:
    got = converted(Made, name, value)
    assert got == wanted
    assert type(got) is type(wanted)
    if isinstance(wanted, tuple):
        assert [type(v) for v in got] == [type(v) for v in wanted]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 1.0, "a whole number"),
        ("count", np.float64(1.0), "a whole number"),
        ("count", True, "a whole number"),
        ("count", np.bool_(True), "a whole number"),
        ("count", "3", "a whole number"),
        ("share", "0.5", "a number"),
        ("share", None, "a number"),
        ("share", 1j, "a number"),
        ("share", False, "a number"),
        ("sizes", 1.5, "a tuple of whole numbers"),
        ("sizes", np.array([1.0, 2.0]), "a tuple of whole numbers"),
        ("sizes", True, "a tuple of whole numbers"),
        ("sizes", "12", "a tuple of whole numbers"),
        ("sizes", np.array([[1, 2]]), "a tuple of whole numbers"),
        ("sizes", {1: 2}, "a tuple of whole numbers"),
        ("weights", ["a"], "a tuple of numbers"),
        ("pair", (0.5,), "a tuple of numbers"),
        ("pair", 0.5, "a tuple of numbers"),
        ("word", 3, "a word"),
        ("model", 3, "one of 'x', 'y'"),
        ("flag", 1, "True or False"),
        ("flag", "yes", "True or False"),
        ("spacing", 1.5, "a whole number or None"),
    ],
)
def test_what_is_not_taken(name: str, value: Any, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        converted(Made, name, value)
    assert str(caught.value) == f"option {name!r} is {words}, got {value!r}"


def test_one_value_is_spread_over_the_levels() -> None:
    assert spread((3,), 4) == (3, 3, 3, 3)
    assert spread((3,), 1) == (3,)
    assert spread((3, 2), 4) == (3, 2)
    assert spread((), 4) == ()


def test_json_comes_back_as_what_it_was() -> None:
    import json

    @dataclass(frozen=True)
    class Outer:
        inner: Made | None = None
        many: tuple[Made, ...] = ()

    for value in (Outer(), Outer(Made(count=9, sizes=(3, 2)), (Made(), Made(spacing=4)))):
        hints = {"inner": Made | None, "many": tuple[Made, ...]}
        text = json.loads(json.dumps(dataclasses.asdict(value)))
        again = Outer(**{name: rebuilt(hint, text[name]) for name, hint in hints.items()})
        assert again == value
    with pytest.raises(ValueError, match="Made has no soul: of another version"):
        rebuilt(Made, {"soul": 1})


# --- the nearest name ------------------------------------------------------------------------------------------------

NAMES = [*options_of("default"), *ARGUMENTS]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("stepz", "iterations"), ("steps", "iterations"), ("iteration", "iterations"), ("sed", "seed"),
        ("fixed_masks", "fixed_mask"), ("moving_masks", "moving_mask"), ("levels", "shrink_factors"),
        ("shrink-factors", "shrink_factors"), ("Linear", "linear"), ("mask", "fixed_mask"),
        ("initial", "initial_transform"), ("sigma", "smoothing_sigmas"), ("thread", "threads"),
        ("regularizer", "regulariser"), ("smoothness", "smoothness"), ("SMOOTHNESS", "smoothness"),
        ("learning_rate", "learning_rates"), ("metrics", "metric"), ("gpu", "device"),
    ],
)  # fmt: skip
def test_nearest_name(word: str, meant: str) -> None:
    assert nearest_name(word, NAMES, SYNONYMS) == f", did you mean {meant!r}?"


@pytest.mark.parametrize("word", ["", "zzzzzz", "x", "colour_of_the_sky", "qqq_threads_qqq"])
def test_word_that_is_near_nothing(word: str) -> None:
    assert nearest_name(word, NAMES, SYNONYMS) == ""


def test_words_of_others_lead_only_to_names_that_there_are() -> None:
    assert set(SYNONYMS.values()) <= set(NAMES)
    assert nearest_name("gpu", ["iterations"], SYNONYMS) == ""
    assert nearest_name("devise", ["device"]) == ", did you mean 'device'?"


def test_a_name_of_its_own_comes_before_a_word_of_others() -> None:
    """``flow`` is an option of preset paper, and another tool's word for ours."""
    assert nearest_name("flow", ["flow", "transform_model"], SYNONYMS) == ", did you mean 'flow'?"


def test_preset_is_data_too() -> None:
    preset = Preset("for a test", lambda: make_settings("fast", iterations=1))
    assert preset.make() == make_settings("fast", iterations=1)

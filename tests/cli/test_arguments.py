"""The values of ``--set``."""

from __future__ import annotations

import argparse
import inspect
import math
from typing import Any

import pytest

import itk_nir
from itk_nir.cli import main, register
from itk_nir.cli.arguments import REGISTER_FLAGS, parse_settings
from itk_nir.errors import OptionError
from itk_nir.settings import PRESETS, make_settings, options_of
from tests.cli.commands import error_line


def test_settings_are_typed() -> None:
    settings = parse_settings(
        ["a=3", "b=0.5", "c=(4, 2, 1)", "d=True", "e=false", "f=siren", "g-h=none", "i=[1.5]", "j='3'"]
    )
    assert settings == {
        "a": 3, "b": 0.5, "c": (4, 2, 1), "d": True, "e": False, "f": "siren", "g_h": None, "i": [1.5], "j": "3",
    }  # fmt: skip
    assert type(settings["a"]) is int


@pytest.mark.parametrize("assignment", ["levels", "=3", "a b=3"])
def test_a_setting_without_name_or_value(assignment: str) -> None:
    with pytest.raises(OptionError, match="OPTION=VALUE"):
        parse_settings([assignment])


@pytest.mark.parametrize(("name", "flag"), REGISTER_FLAGS.items())
def test_an_argument_of_its_own_is_no_setting(name: str, flag: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    given = f"{name.replace('_', '-')}=3"
    assert main(["register", "--fixed", "f", "--moving", "m", "--output", "o", "--set", given]) == 2
    told = error_line(capsys)
    assert f"--set {given}: " in told
    assert ("is not an option of the command line" if flag is None else f"give it as {flag} 3\n") in told


def test_every_argument_of_register_has_its_flag_or_none() -> None:
    parameters = inspect.signature(itk_nir.register).parameters.values()
    assert set(REGISTER_FLAGS) == {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    for preset in PRESETS:
        assert not set(REGISTER_FLAGS) & set(options_of(preset))
    commands: Any = argparse.ArgumentParser().add_subparsers()
    usage = register.add_parser(commands).format_usage()
    assert all(flag in usage for flag in REGISTER_FLAGS.values() if flag)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("+Infinity", math.inf),
        ("1e999", math.inf),
        ("(inf, 1, -inf)", (math.inf, 1, -math.inf)),
        ("(true, None, [False])", (True, None, [False])),
        ("(inf", "(inf"),
        ("info", "info"),
        ("inf(1)", "inf(1)"),
        ("{[]: 1}", "{[]: 1}"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_words_and_text_in_values(text: str, value: object) -> None:
    assert parse_settings([f"x={text}"]) == {"x": value}


def test_infinity_and_no_number_reach_the_settings() -> None:
    assert math.isnan(parse_settings(["x=nan"])["x"])
    assert make_settings("default", **parse_settings(["lorentzian_scale=inf"])).deformable.lorentzian_scale == math.inf


@pytest.mark.parametrize("text", ["-" * 5000 + "1", "1" + "+1" * 100_000, "[" * 150 + "]" * 150])
def test_a_value_that_is_nested_deeply_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["register", "--fixed", "f", "--moving", "m", "--output", "o", "--set", f"iterations={text}"]) == 2
    assert "iterations" in error_line(capsys)

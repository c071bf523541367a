"""The values of ``--set``, and the public options as flags."""

from __future__ import annotations

import argparse
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest

import itk_nir
from itk_nir.cli import main, register
from itk_nir.cli.arguments import PUBLIC_OPTIONS, REGISTER_FLAGS, level_values, parse_settings
from itk_nir.errors import OptionError
from itk_nir.settings import PRESETS, described, make_settings, options_of, public_options
from tests.cli.commands import error_line, register_arguments


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
        ("0x1", (0, 1)),
        ("0x1x0", (0, 1, 0)),
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


# --- the public options as flags -------------------------------------------------------------------------------------


def test_every_public_option_is_a_flag_that_help_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(PUBLIC_OPTIONS) == public_options("default")
    with pytest.raises(SystemExit):
        main(["register", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, (value, what) in described("default").items():
        if name in PUBLIC_OPTIONS:
            assert what is not None
            assert f"--{name.replace('_', '-')}" in shown
            assert " ".join(what.help.replace("`", "").split())[:60] in shown
            first = (*value, "none")[0] if isinstance(value, tuple) else value
            assert value in (False, 0.0) or str(first) in shown


@pytest.mark.parametrize(
    ("text", "value"),
    [("40,20,10", (40, 20, 10)), ("40x20x10", (40, 20, 10)), ("0.5", 0.5), ("1.2,0.65", (1.2, 0.65)), ("ncc", "ncc"),
     ("inf", math.inf), ("velocity", "velocity")],
)  # fmt: skip
def test_values_of_flags(text: str, value: object) -> None:
    assert level_values(text) == value


def test_flags_are_options_of_register(pair: dict[str, str], tmp_path: Path) -> None:
    flags = ["--iterations", "2x1x1", "--smoothness", "3", "--metric", "ncc", "--symmetric", "--learning-rates", "1e-3"]
    flags += ["--linear", "none", "--linear-metric", "mse"]
    assert main(register_arguments(pair, tmp_path / "a_", *flags)) == 0
    told = json.loads((tmp_path / "a_report.json").read_text())["metrics"]["settings"]["deformable"]
    assert told["iterations"] == [2, 1, 1]
    assert told["smoothness"] == [3.0, 3.0, 3.0]
    linear = json.loads((tmp_path / "a_report.json").read_text())["metrics"]["settings"]["linear"]
    assert linear["linear_metric"] == "mse"
    assert (told["metric"], told["symmetric"], told["learning_rates"]) == ("ncc", True, [1e-3] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--iterations", "2", "--set", "iterations=3"],
            "--set iterations=3: --iterations is given too; leave one out",
        ),
        (["--metric", "lnc"], "'mind', got 'lnc', did you mean 'lncc'?"),
        (["--smoothness=-1"], "smoothness must be at least 0"),
        (["--iterations", "none"], "option 'iterations' is a tuple of whole numbers, got None"),
        (["--checkpoint-seconds", "60"], "--checkpoint-seconds: is about --checkpoint FOLDER"),
        (["--initial-transform", str(Path(__file__))], "give a transform file (.h5, .tfm, .mat, .txt, ...) or a"),
    ],
)
def test_flags_that_cannot_be(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(register_arguments(pair, tmp_path / "a_", *arguments)) == 2
    assert message in error_line(capsys)
    assert not list(tmp_path.glob("a_*"))

"""The parser, the help, and what the commands `demo` and `presets` print."""

from __future__ import annotations

from pathlib import Path

import pytest

from itk_nir import __version__, interpolating, settings
from itk_nir.cli import main
from itk_nir.cli.arguments import FORMATS, INTERPOLATIONS, PRESETS
from itk_nir.cli.slicer import main as slicer
from itk_nir.transforms import save as formats
from tests.cli.commands import console, error_line, process


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"itk-nir {__version__}\n"


def test_the_package_is_the_command() -> None:
    """Where the folder of programs is not on the PATH."""
    done = process("-m", "itk_nir", "--version")
    assert (done.returncode, done.stdout) == (0, f"itk-nir {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["register", "--fixed", "f.nii"], "--moving"),
        (["register", "--fixed", "f", "--moving", "m", "--output", "o", "--set", "seed=3"], "--seed 3"),
        (["apply", "--points", "p.csv", "--transform", "t.h5", "--output", "q.csv", "--labels"], "--labels"),
        (["presets", "best"], "best"),
    ],
)
def test_arguments_are_read_before_anything_heavy_is_imported(arguments: list[str], message: str) -> None:
    program = (
        "import sys\nfrom itk_nir.cli import main\n"
        f"try:\n    status = main({arguments!r})\n"
        "except SystemExit as stop:\n    status = stop.code\n"
        "print(status, sorted({'torch', 'numpy', 'itk', 'SimpleITK', 'h5py', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = process("-c", program)
    assert done.stdout == "2 []\n"
    assert message in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_on_a_console_that_is_not_utf_8(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = ("register", "apply", "convert", "install-programs", "demo", "presets")
    with console(monkeypatch, encoding) as (out, err):
        for run, *words in ((main,), *((main, command) for command in commands), (slicer,)):
            with pytest.raises(SystemExit) as stop:
                run([*words, "--help"])
            assert stop.value.code == 0
    assert err.getvalue() == b""
    text = out.getvalue().decode(encoding)
    assert text.count("usage: ") == 8
    assert "fixed -> moving" in text
    assert "\\u" not in text


def test_debug_may_stand_before_or_behind_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, debug in ((["presets"], False), (["presets", "--debug"], True), (["--debug", "presets"], True)):
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        assert "accurate" in out
        assert (f"itk-nir {__version__}, Python" in err) == debug
        assert ("torch " in err) == debug


@pytest.mark.parametrize(
    "command", ["register", "batch", "apply", "convert", "install-programs", "demo", "presets", "selftest"]
)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert f"itk-nir {command}" in told
    assert "default: none" not in told, "which could not be typed"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["register", "--fixed", "f", "--moving", "m"],
        ["register", "--fixed", "f", "--moving", "m", "--output", "o", "--preset", "best"],
        ["register", "--fixed", "f", "--moving", "m", "--output", "o", "--threads", "0"],
        ["apply", "--transform", "t", "--output", "o"],
        ["apply", "--image", "i", "--points", "p", "--transform", "t", "--output", "o"],
        ["register", "--fixed", "f", "--moving", "m", "--output", "o", "--format", "minc"],
        ["convert", "t.h5"],
        ["convert", "t.h5", "t.nii.gz", "--format", "minc"],
        ["demo", "--size", "10,x"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: itk-nir" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_reports_the_true_error(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "demo"
    arguments = ["--dimension", "2", "--size", "80,96", "--preset", "fast", "--device", "cpu", "--threads", "1"]
    assert main(["demo", "--output", str(folder), *arguments]) == 0
    out = capsys.readouterr().out
    mean = next(line.split() for line in out.splitlines() if line.strip().startswith("mean"))
    assert float(mean[2]) < 0.5 * float(mean[1])
    assert "white matter" in out
    for name in ("registration.png", "Warped.nii.gz", "Composite.h5", "fixed.nii.gz", "moving_labels.nii.gz"):
        assert (folder / name).stat().st_size > 1000


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(settings.PRESETS) == PRESETS
    assert tuple(formats.FORMATS) == FORMATS
    assert interpolating.INTERPOLATIONS == INTERPOLATIONS
    assert main(["presets"]) == 0
    everything = capsys.readouterr().out
    assert all(name in everything for name in PRESETS)
    assert main(["presets", "fast"]) == 0
    fast = capsys.readouterr().out
    assert all(f"  {name} = " in fast for name in settings.options_of("fast"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dimension", "2", "--size", "64,64,64"], "give 2 numbers (--dimension 2), each at least 16"),
        (["--size", "64"], "give 3 numbers (--dimension 3), each at least 16"),
        (["--size", "15,64,64"], "--size 15,64,64: give 3 numbers"),
    ],
)
def test_sizes_of_a_demo(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), *arguments]) == 2
    assert message in error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A self-test replaces its own pages alone, and says so before it; programs go into a folder."""
    other = tmp_path / "other.json"
    other.write_text('{"passed": true}', encoding="utf-8")
    selftest = ["selftest", "--device", "cpu", "--quiet"]
    assert main([*selftest, "--json", str(other)]) == 2
    assert "other.json: is there already and is of no self-test" in error_line(capsys)
    assert main([*selftest, "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert "does not exist; create it first" in error_line(capsys)
    (tmp_path / "own.json").write_text('{"passed": false, "ops": [], "registrations": []}', encoding="utf-8")
    for size in ("40,39", "48,48,47", "100", "9,9,9,9"):
        assert main([*selftest, "--size", size, "--json", str(tmp_path / "own.json")]) == 2
        assert f"2 numbers of at least 40 or 3 numbers of at least 48, got {size};" in error_line(capsys)
    assert main(["install-programs", str(other)]) == 2
    assert "other.json is a file; choose another folder" in error_line(capsys)
    assert other.read_text(encoding="utf-8") == '{"passed": true}'


def test_check_tells_wrong_options_and_wrong_files(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--fixed", pair["fixed"], "--moving", pair["moving"]]
    assert main(["check", *images, "--set", "foo=1", "--fixed-mask", str(tmp_path / "none.nii.gz")]) == 2
    told = capsys.readouterr().out.splitlines()
    assert ["unknown option 'foo'" in told[0], "none.nii.gz" in told[1]] == [True, True]
    assert all(line.startswith("error: ") for line in told)

"""Ctrl-C, SIGTERM and SIGHUP at any moment of a command: one line, and complete files or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import itk_nir
import itk_nir.cli.register
from itk_nir import problem, saving
from itk_nir.cli import main
from itk_nir.engine.progress import Progress
from itk_nir.transforms.formats.itk_h5 import read_h5
from tests.cli.commands import read, register_arguments

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")

REQUESTS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "the terminal was closed")]


@contextmanager
def ask(monkeypatch: pytest.MonkeyPatch, number: int, times: int, when: Callable[[Progress], bool]) -> Iterator[None]:
    """Send a signal in the middle of a registration."""
    sent = []

    def told(now: Progress) -> None:
        if when(now) and not sent:
            for _ in range(times):
                sent.append(now)
                signal.raise_signal(number)

    @contextmanager
    def progress() -> Iterator[Callable[[Progress], None]]:
        yield told

    monkeypatch.setattr(itk_nir.cli.register, "progress", progress)
    yield
    assert len(sent) == times or times > 1


def check_files(folder: Path, fixed: str, stop: str) -> dict[str, Any]:
    names = {"Composite.h5", "InverseComposite.h5", "Warped.nii.gz", "report.json"}
    assert {path.name for path in folder.iterdir()} == {f"c_{name}" for name in names}
    assert read_h5(folder / "c_Composite.h5").dimension == 2
    assert read(folder / "c_Warped.nii.gz").shape == read(fixed).shape
    report: dict[str, Any] = json.loads((folder / "c_report.json").read_text())
    assert report["metrics"]["stop"] == stop
    return report


@pytest.mark.parametrize(("number", "word"), REQUESTS)
def test_the_best_so_far_is_written(
    number: int, word: str, pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = signal.getsignal(number)
    with ask(monkeypatch, number, 1, lambda now: now.stage == "deformable" and now.iteration == 30):
        arguments = register_arguments(pair, tmp_path / "out" / "c_", "--linear", "none", "--iterations", "500")
        assert main(arguments) == 128 + number
    out, err = capsys.readouterr()
    assert err == f"itk-nir: {word}: the best so far will be written; once more ends at once, without it\n"
    assert out.startswith("registered: ")
    report = check_files(tmp_path / "out", pair["fixed"], "cancelled")
    assert len(report["metrics"]["trace"]) == 31
    assert report["metrics"]["similarity"] > report["metrics"]["similarity_start"]
    assert signal.getsignal(number) is before


def test_in_the_linear_stage_too(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with ask(monkeypatch, signal.SIGTERM, 1, lambda now: now.stage == "linear"):
        assert main(register_arguments(pair, tmp_path / "out" / "c_", "--iterations", "500")) == 143
    assert capsys.readouterr().err.count("\n") == 1
    check_files(tmp_path / "out", pair["fixed"], "cancelled")


def test_the_second_one_ends_at_once(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with ask(monkeypatch, signal.SIGINT, 2, lambda now: now.stage == "deformable"):
        arguments = register_arguments(pair, tmp_path / "out" / "c_", "--linear", "none", "--iterations", "500")
        assert main(arguments) == 130
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["interrupted", "error"]
    assert lines[1] == "itk-nir: error: interrupted; nothing was left behind"
    assert not (tmp_path / "out").exists()


def test_before_the_work_there_is_nothing_to_keep(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(problem, "load_channels", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert main(register_arguments(pair, tmp_path / "out" / "c_")) == 143
    assert capsys.readouterr().err == "itk-nir: error: terminated; nothing was left behind\n"
    assert not (tmp_path / "out").exists()


def test_while_the_arguments_are_read(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(itk_nir.cli.register, "add_parser", lambda _: signal.raise_signal(signal.SIGHUP))
    assert main(["presets"]) == 129
    assert capsys.readouterr().err == "itk-nir: error: the terminal was closed; nothing was left behind\n"


@pytest.mark.parametrize("times", [1, 2])
def test_while_the_files_are_written(
    times: int, pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save_image = saving.save_image

    def interrupted(*arguments: Any, **named: Any) -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGTERM)
        save_image(*arguments, **named)

    monkeypatch.setattr(saving, "save_image", interrupted)
    arguments = register_arguments(pair, tmp_path / "out" / "c_", "--linear", "none", "--iterations", "2")
    assert main(arguments) == 143
    assert len(capsys.readouterr().err.splitlines()) == times
    if times == 1:
        check_files(tmp_path / "out", pair["fixed"], "all iterations done")
    else:
        assert not (tmp_path / "out").exists()


def test_when_all_is_written(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import itk_nir.cli.apply

    monkeypatch.setattr(itk_nir.cli.apply, "tell", lambda _: signal.raise_signal(signal.SIGTERM))
    output = tmp_path / "w.nii.gz"
    words = ["apply", "--image", pair["moving"], "--transform", pair["transform"], "--output", str(output)]
    assert main(words) == 143
    assert capsys.readouterr().err == "itk-nir: error: terminated; all files are complete\n"
    assert read(output).shape == read(pair["moving"]).shape


def test_a_library_that_breaks_at_a_request_is_no_fault(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise ImportError("initialisation failed") from None

    monkeypatch.setattr(problem, "load_channels", broken)
    assert main(register_arguments(pair, tmp_path / "out" / "c_")) == 143
    assert capsys.readouterr().err == "itk-nir: error: terminated; nothing was left behind\n"


#: The command, which says on standard output when the deformable stage is at work.
COMMAND = """
import sys
from contextlib import contextmanager
import itk_nir.cli.register
from itk_nir.cli import main

@contextmanager
def progress():
    yield lambda now: print(now.stage, flush=True)

itk_nir.cli.register.progress = progress
sys.argv[0] = "itk-nir"
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process(number: int, pair: dict[str, str], tmp_path: Path) -> None:
    """From outside."""
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    words = register_arguments(pair, tmp_path / "out" / "c_", "--linear", "none", "--iterations", "100000")
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        preexec_fn=lambda: signal.signal(number, signal.default_int_handler),  # not as a background job has it
    ) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert started.stdout.readline() == "deformable\n"
        started.send_signal(number)
        out, err = started.communicate()
    assert started.returncode == 128 + number
    assert out.splitlines()[-1].startswith("registered: ")
    assert err.count("\n") == 1
    check_files(tmp_path / "out", pair["fixed"], "cancelled")

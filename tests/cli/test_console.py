"""Messages, streams, the progress bar, signals and the exit status."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itk_nir import saving
from itk_nir.cli import exit_status, main
from itk_nir.cli.console import STATUSES, ProgressBar, names, note_if_folder, say, standard_streams, summary, tell
from itk_nir.engine.progress import Progress
from itk_nir.errors import InputError, ItkNirError, OptionError, RegistrationCancelled
from itk_nir.report import Report
from tests.cli.commands import STILL, error_line, process, register_arguments
from tests.docs_blocks import DOCS


def failing(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


# --- exit status -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InputError("image f: no such file"), 2, "image f: no such file"),
        (InputError("image f\ng\x1b[2K: no such file"), 2, "image f\\ng\\x1b[2K: no such file"),
        (OptionError("no option x"), 2, "no option x"),
        (RegistrationCancelled("stopped"), 1, "stopped"),
        (ItkNirError("needs matplotlib"), 1, "needs matplotlib"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (FileNotFoundError(2, "No such file", "a\nb"), 1, "[Errno 2] No such file: 'a\\nb'"),
        (MemoryError(), 1, "out of memory (MemoryError)"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 8 GB"), 1, "out of memory ("),
        (ImportError("libtorch.so: failed to map segment"), 1, "a library cannot be loaded (ImportError: libtorch.so"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was left behind"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(failing(error)) == status
    told = error_line(capsys)
    assert text in told
    assert "internal" not in told


@pytest.mark.parametrize("error", [ValueError("operands\nx"), TypeError("t"), KeyError("k"), RuntimeError("r")])
def test_a_fault_of_ours_is_no_fault_of_the_input(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(failing(error)) == 1
    told = error_line(capsys)
    assert f"error: internal error: {type(error).__name__}: " in told
    assert told.endswith("; run again with --debug and report it\n")


def test_debug_shows_the_traceback_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("itk_nir.somewhere")

    def run() -> None:
        log.debug("a detail")
        raise ValueError("operands")

    assert exit_status(run, debug=True) == 1
    err = capsys.readouterr().err
    assert "DEBUG itk_nir.somewhere: a detail\n" in err
    assert "Traceback (most recent call last):" in err
    assert err.splitlines()[-1].startswith("itk-nir: error: internal error: ValueError: operands;")
    assert exit_status(run) == 1  # and nothing of it stays behind
    assert "a detail" not in error_line(capsys)
    assert not log.isEnabledFor(logging.DEBUG)


@pytest.mark.filterwarnings("default")
def test_success_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(lambda: warnings.warn("two\nlines", UserWarning, stacklevel=1)) == 0
    assert capsys.readouterr().err == "itk-nir: warning: two lines\n"
    assert exit_status(lambda: warnings.warn("of a library", DeprecationWarning, stacklevel=1)) == 0
    assert capsys.readouterr().err == ""


def test_a_self_check_that_failed_has_a_status_of_its_own(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saving.write_both

    def write_badly(*arguments: Any) -> Any:
        return replace(write(*arguments), failed=("Composite.h5: is off by 0.1 mm",))

    monkeypatch.setattr(saving, "write_both", write_badly)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as with PYTHONWARNINGS=ignore
        assert main(register_arguments(pair, tmp_path / "case_", "--linear", "none", *STILL)) == 4
    out, err = capsys.readouterr()
    assert "itk-nir: warning: Composite.h5: is off by 0.1 mm\n" in err
    assert "wrote" in out
    assert (tmp_path / "case_Composite.h5").is_file()


def test_every_status_is_documented() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    table = page[page.index("## Exit status") :]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert sorted(int(number) for row in rows for number in row.split(",")) == sorted(STATUSES)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_request_to_end_unwinds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    cleaned = []

    def run() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)  # the handler runs at the latest here
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    assert exit_status(run) == 128 + number
    assert 128 + number in STATUSES
    assert error_line(capsys).endswith("; nothing was left behind\n")
    assert cleaned == [True]
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert exit_status(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


# --- streams and messages --------------------------------------------------------------------------------------------


def test_characters_that_a_console_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with standard_streams():
        tell("fixed → moving, é and \udcff …")
        say("3 × 4")
    assert out.buffer.getvalue() == b"fixed -> moving, \\xe9 and \\udcff ...\n"  # type: ignore[attr-defined]
    assert err.buffer.getvalue() == b"itk-nir: 3 x 4\n"  # type: ignore[attr-defined]
    assert out.errors == err.errors == "strict"


@pytest.mark.parametrize("closed", [True, False])
def test_streams_that_are_not_there(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.StringIO() if closed else None for _ in range(2)]
    for stream in streams:
        if stream is not None:
            stream.close()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert main(["presets"]) == 0
    assert main(["apply", "--image", "i", "--transform", "t", "--output", "o"]) == 2
    assert [sys.stdout, sys.stderr] == streams


@pytest.mark.slow
def test_a_reader_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["presets"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "itk_nir.cli", *words], stdout=writing, stderr=subprocess.PIPE, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(writing)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_result_that_cannot_be_printed_is_an_error() -> None:
    done = process("-m", "itk_nir.cli", "presets", redirect=">/dev/full")
    assert done.stderr.startswith("itk-nir: error: [Errno 28] ")


def test_names_are_one_line() -> None:
    assert names([Path("out/a_b"), "two\nlines"]) == f"{Path('out/a_b')}, two\\nlines"


def test_a_prefix_that_is_a_folder_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "case").mkdir()
    note_if_folder(f"{tmp_path}/case")
    told = capsys.readouterr().err
    assert told.startswith(f"itk-nir: note: {tmp_path}/case is a folder;")
    assert f"write {tmp_path}/case/ to" in told
    for prefix in (f"{tmp_path}/case/", f"{tmp_path}/case_", f"{tmp_path}/case/x", "."):
        note_if_folder(prefix)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (
            {"similarity_start": 0.5, "similarity": 0.75, "folded_percent": 0.0, "inverse_error_mean_voxels": 0.01},
            "registered: similarity 0.5000 to 0.7500, folds 0.0000 %, inverse error 0.010 voxels",
        ),
        ({"similarity": 0.75}, "registered: similarity 0.7500"),
        ({"similarity": None, "folded_percent": 0.5}, "registered: folds 0.5000 %"),
        ({}, "registered"),
    ],
)
def test_the_closing_line(measured: dict[str, Any], text: str) -> None:
    result: Any = SimpleNamespace(report=Report(**measured))
    assert summary(result) == text


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_bar_shows_level_step_metric_and_time_left() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, interval=0.0)
    bar(Progress("deformable", 1, 3, 36, 60, 0.8123, 0.2, 0.3, 75.0, 0.5))
    shown = stream.getvalue()
    for part in ("deformable", "level 2/3", "iteration  37/60", "metric 0.8123", "50%", "1:15 left"):
        assert part in shown
    assert shown.startswith("\r")
    assert "\n" not in shown
    bar.clear()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_bar_does_not_flood_the_terminal_but_shows_the_end() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, interval=1000.0)
    for step in range(50):
        bar(Progress("linear", 0, 1, step, 50, 0.5, 0.5, 0.1, 1.0, (step + 1) / 50))
    assert stream.getvalue().count("\r") == 2
    assert "iteration  50/50" in stream.getvalue()


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "━━╌╌"), ("ascii", "##.."), ("cp1252", "##..")])
def test_progress_bar_in_the_characters_of_the_terminal(encoding: str, bar: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    ProgressBar(stream, width=4)(Progress("deformable", 1, 3, 36, 60, 0.8123, 0.2, 0.3, 75.0, 0.5))
    assert bar in stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_a_terminal_that_has_gone_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    bar = ProgressBar(Gone(), interval=0.0)
    bar(Progress("deformable", 1, 3, 36, 60, 0.8123, 0.2, 0.3, 75.0, 0.5))
    bar.clear()


@pytest.mark.slow
def test_progress_bar_on_a_terminal(pair: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(register_arguments(pair, tmp_path / "case_")) == 0
    shown = terminal.getvalue().split("\r")
    assert "starting" in shown[1]
    assert any("level 1/" in line and "metric" in line for line in shown)
    assert shown[-1] == "\x1b[K"

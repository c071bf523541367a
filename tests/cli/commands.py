"""What the tests of the command line share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir

#: Settings of a registration that is over at once and moves nothing.
STILL = ("--set", "iterations=1", "--set", "learning_rates=1e-6")


def register_arguments(pair: dict[str, str], prefix: Path | str, *more: str) -> list[str]:
    files = ["--fixed", pair["fixed"], "--moving", pair["moving"], "--output", str(prefix)]
    return ["register", *files, "--preset", "fast", "--device", "cpu", "--threads", "1", *more]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be one line that begins as errors do."""
    err = capsys.readouterr().err
    assert err.startswith("itk-nir: error: ")
    assert err.count("\n") == 1
    return err


def read(path: str | Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def written(folder: Path, before: set[Path]) -> set[Path]:
    return set(folder.rglob("*")) - before


@contextmanager
def console(monkeypatch: pytest.MonkeyPatch, encoding: str) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Standard output and error as of a console that knows the characters of `encoding` alone; what was written."""
    written = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(stream, encoding=encoding, errors="strict") for stream in written)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        yield written
        out.flush()
        err.flush()
    out.detach()
    err.detach()


def process(
    *command: str, redirect: str = "", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python COMMAND`` on this checkout's package, with a shell's redirections (``2>&-``)."""
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, *command],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        check=False,
    )

"""``itk-nir install-programs``: files that are called as the programs and run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from itk_nir.cli import main
from itk_nir.cli.install_programs import MARK, launchers
from itk_nir.cli.programs import table
from itk_nir.programs import PROGRAMS


def test_the_programs_whose_modules_there_are() -> None:
    assert table().items() <= PROGRAMS.items()
    assert {"antsRegistration", "antsRegistrationSyN.sh", "antsRegistrationSyNQuick.sh"} <= table().keys()


@pytest.mark.skipif(os.name == "nt", reason="scripts are run by their first line")
def test_an_installed_program_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "with a space"
    assert main(["install-programs", str(folder)]) == 0
    assert f'export PATH="{folder}:$PATH"' in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == set(table())
    root = str(Path(__file__).parents[2])
    for path in ("antsRegistration", str(folder / "antsRegistrationSyN.sh")):
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": root},
        )  # fmt: skip
        assert done.stdout.startswith("ANTs Version: ")
        assert done.stderr == ""


def test_what_is_not_ours_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "antsRegistration").write_text("the real one")
    assert main(["install-programs", str(tmp_path)]) == 2
    assert "antsRegistration in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["antsRegistration"]
    assert main(["install-programs", str(tmp_path), "--force"]) == 0
    assert MARK in (tmp_path / "antsRegistration").read_text()
    assert main(["install-programs", str(tmp_path)]) == 0  # once more: these are ours


def test_the_files_on_windows_and_where_python_has_an_odd_name(tmp_path: Path) -> None:
    files = launchers(r"C:\Program Files\python.exe", windows=True)
    assert set(files) == {f"{name}{end}" for name in table() for end in ("", ".cmd")}
    assert r'@"C:\Program Files\python.exe" "%~dp0antsRegistrationSyN.sh" %*' in files["antsRegistrationSyN.sh.cmd"]
    if os.name == "nt":
        return
    python = tmp_path / "a b" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    program = tmp_path / "antsRegistration"
    program.write_text(launchers(str(python))["antsRegistration"])
    program.chmod(0o755)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [str(program), "--nothing", "1"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 1
    assert "no flag --nothing" in done.stderr

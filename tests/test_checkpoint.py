"""Checkpoints: what cannot be used is refused or passed over before the work, and never costs a result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import itk_nir
from itk_nir.checkpoint import KEY, LAYOUT, Checkpoints
from itk_nir.errors import InputError
from itk_nir.identity import checksum
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom
from itk_nir.problem import Problem

NAME = "checkpoint-000007.safetensors"


def pair() -> tuple[Any, Any]:
    phantom = brain_phantom(2, (40, 44))
    return to_sitk(phantom.fixed, phantom.geometry), to_sitk(phantom.moving, phantom.moving_geometry)


def problem() -> Problem:
    return Problem.prepare(*pair(), settings=itk_nir.make_settings("fast", iterations=2))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_before_the_work(make: Any, tmp_path: Path) -> None:
    make(tmp_path / NAME)
    with pytest.raises(InputError, match=f"{NAME}: is a folder or a pipe, no file; remove it or give another folder"):
        Checkpoints.of(tmp_path, problem())


@pytest.mark.parametrize(
    "content",
    [
        "[]", "null", "{", "{}", f'{{"layout": {LAYOUT}}}', f'{{"layout": {LAYOUT}, "about": {{}}, "entries": []}}',
        f'{{"layout": {LAYOUT}, "about": 3, "entries": {{"a": {{}}}}}}',
        f'{{"layout": {LAYOUT}, "about": {{}}, "entries": {{"a": null}}}}',
        f'{{"layout": {LAYOUT}, "about": {{}}, "entries": {{"another": {{}}}}}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_another_layout_with_a_right_checksum_is_damage(content: str, tmp_path: Path) -> None:
    arrays = {"a/b": np.zeros(3)}
    save_file(arrays, tmp_path / NAME, metadata={KEY: content, "sha256": checksum(content, arrays)})
    with pytest.warns(UserWarning, match=rf"{NAME}: is damaged \(it is not laid out as a checkpoint is"):
        found = Checkpoints.of(tmp_path, problem())
    assert (found.number, found.entries) == (7, {})


def test_of_another_version_is_told(tmp_path: Path) -> None:
    content = json.dumps({"layout": LAYOUT + 1})
    save_file({}, tmp_path / NAME, metadata={KEY: content, "sha256": checksum(content, {})})
    with pytest.warns(UserWarning, match="of another version"):
        Checkpoints.of(tmp_path, problem())


@pytest.mark.parametrize("how", ["a folder under the next name", "the folder is gone"])
def test_what_happens_to_the_folder_meanwhile_costs_no_result(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def spoil(_: Any) -> None:
        if how.startswith("a folder"):
            (folder / NAME).mkdir(exist_ok=True)
        elif folder.exists():
            folder.rename(tmp_path / "elsewhere")

    with pytest.warns(UserWarning, match=f"checkpoint {folder}: cannot be emptied"):
        result = itk_nir.register(
            *pair(), preset="fast", iterations=2, linear="none", checkpoint=folder, callback=spoil
        )
    assert result.report.stop == "all iterations done"

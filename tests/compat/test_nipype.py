"""The nipype interface of ``itk-nir register``: its flags are the command's, its outputs the files."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nipype", reason="nipype is not installed")

from itk_nir.cli import register as register_command
from itk_nir.compat.nipype import Register, RegisterInputSpec
from itk_nir.images import load_image, save_image
from itk_nir.phantom import brain_phantom


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    phantom = brain_phantom(2, (48, 56))
    save_image(phantom.fixed, phantom.geometry, tmp_path / "fixed.nii.gz")
    save_image(phantom.moving, phantom.moving_geometry, tmp_path / "moving.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(interface: Any) -> argparse.Namespace:
    """What the command reads from the line that nipype runs."""
    parser = argparse.ArgumentParser()
    register_command.add_parser(parser.add_subparsers())
    words = shlex.split(interface.cmdline)
    assert words[0] == "itk-nir"
    return parser.parse_args(words[1:])


def test_every_flag_is_one_of_the_command() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    known = {flag for action in register_command.add_parser(commands)._actions for flag in action.option_strings}
    own = {t.argstr.split()[0] for t in RegisterInputSpec().traits().values() if getattr(t, "argstr", None)}
    assert len(own) > 30
    assert own - {"%s"} <= known


def test_values_arrive_at_the_command(folder: Path) -> None:
    interface = Register(
        fixed_image="fixed.nii.gz", moving_image="moving.nii.gz", preset="fast", linear="similarity",
        initial_transform=["fixed.nii.gz", "moving.nii.gz"], metric=["nmi"], iterations=[10, 5], shrink_factors=[2, 1],
        restrict=[0, 1], fill=-1.5, strict_input=True, seed=3,
        settings={"linear_size": (20, 40), "jacobian_weight": 0.5, "network": None},
    )  # fmt: skip
    options = parsed(interface)
    assert (options.fixed, options.moving, options.output) == ("fixed.nii.gz", "moving.nii.gz", "registered_")
    assert (options.preset, options.linear, options.fill, options.strict_input, options.seed, options.threads) == (
        "fast", "similarity", -1.5, True, 3, 1,
    )  # fmt: skip
    assert [Path(name).name for name in options.initial_transform] == ["fixed.nii.gz", "moving.nii.gz"]
    assert register_command.all_options(options) == {
        "metric": "nmi", "iterations": (10, 5), "shrink_factors": (2, 1), "restrict": (0, 1), "linear_size": (20, 40),
        "jacobian_weight": 0.5, "network": None,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["itk", "ants"])
def test_outputs_are_the_files_and_lists_for_apply_transforms(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Register, "_cmd", f"{sys.executable} -m itk_nir.cli register")
    found = Register(
        fixed_image="fixed.nii.gz", moving_image="moving.nii.gz", preset="fast", format=kind, output_prefix="new/x_",
        iterations=[3],
    ).run().outputs  # fmt: skip
    names = {
        "itk": (["x_Composite.h5"], ["x_InverseComposite.h5"], [False]),
        "ants": (["x_1Warp.nii.gz", "x_0GenericAffine.mat"], ["x_0GenericAffine.mat", "x_1InverseWarp.nii.gz"], None),
    }[kind]
    for files, wanted in zip((found.forward_transforms, found.reverse_transforms), names[:2], strict=True):
        assert [Path(path).name for path in np.atleast_1d(files)] == wanted
    assert found.reverse_invert_flags == (names[2] or [True, False])
    assert Path(found.report) == folder / "new" / "x_report.json"
    assert load_image(found.warped_image, "warped image").array.std() > 0

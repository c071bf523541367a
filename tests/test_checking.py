"""`check`: findings before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.cli.main import main
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom

P = brain_phantom(2, (48, 56))


def pair(shift: float = 0.0) -> tuple[Any, Any]:
    g = P.geometry
    there = Geometry.make(g.size, g.spacing, np.asarray(g.origin) + np.array([shift, 0]))
    return to_sitk(P.fixed, g), to_sitk(P.moving, there)


def test_sound_pair() -> None:
    found = itk_nir.check(*pair())
    assert found.ok
    assert not found.warnings
    (overlap,) = [f for f in found.findings if "share" in f.values]
    assert overlap.values["share"] == 1
    assert np.allclose(overlap.values["extent"], np.multiply(P.geometry.size, P.geometry.spacing))


def test_overlap_is_told_in_mm_and_percent() -> None:
    g = P.geometry
    found = itk_nir.check(*pair(g.size[0] * g.spacing[0] / 2))
    (overlap,) = [f for f in found.findings if "share" in f.values]
    assert overlap.values["share"] == pytest.approx(0.5, abs=0.04)
    assert overlap.values["extent"][0] == pytest.approx(g.size[0] * g.spacing[0] / 2, rel=0.1)
    assert "50%" in str(overlap)
    start = np.eye(3)
    start[0, 2] = g.size[0] * g.spacing[0] / 2
    found = itk_nir.check(*pair(g.size[0] * g.spacing[0] / 2), initial_transform=start)
    assert [f.values["share"] for f in found.findings if "share" in f.values] == [1]


def test_several_errors_are_told_at_once(tmp_path: Path) -> None:
    fixed, _ = pair()
    empty = sitk.Image(fixed.GetSize(), sitk.sitkUInt8)
    found = itk_nir.check(fixed, tmp_path / "none.nii.gz", fixed_mask=tmp_path / "nor.nii.gz", smoothness=-1)
    assert len(found.errors) == 3
    assert {"smoothness", "moving", "fixed"} == {str(f).split()[0] for f in found.errors}
    found = itk_nir.check(fixed, fixed, fixed_mask=empty)
    assert [f.text for f in found.errors] == ["fixed mask: is empty"]
    assert found.errors[0].remedy


def test_what_check_finds_register_says() -> None:
    """Errors are its errors, warnings its warnings, and with `strict_input` its errors."""
    fixed, moving = pair(1.6 * P.geometry.size[0] * P.geometry.spacing[0])
    found = itk_nir.check(fixed, moving)
    assert [str(f) for f in found.warnings] == ["moving image: covers only 0% of fixed image in physical space"]
    with pytest.raises(itk_nir.InputError, match=r"covers only 0%.*strict_input"):
        itk_nir.register(fixed, moving, strict_input=True)
    assert not itk_nir.check(fixed, moving, strict_input=True).ok
    assert not itk_nir.check(fixed, moving, linear="none").ok
    with pytest.raises(itk_nir.InputError, match="does not overlap"):
        itk_nir.register(fixed, moving, linear="none")


def test_handedness_is_told() -> None:
    fixed, moving = pair()
    moving.SetDirection((-1.0, 0.0, 0.0, 1.0))
    found = itk_nir.check(fixed, moving)
    assert [f for f in found.findings if "left-handed" in str(f)]
    assert not [f for f in itk_nir.check(fixed, fixed).findings if "handed" in str(f)]


def test_cost_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {k: v for f in itk_nir.check(*pair()).findings for k, v in f.values.items()}
    assert 50 * 2**20 < values["needed"] < values["free"]
    assert 0 < values["seconds"] < 60
    monkeypatch.setattr("itk_nir.checking.free_memory", lambda: 1 << 20)
    (told,) = [f for f in itk_nir.check(*pair()).warnings if "needed" in f.values]
    assert "1 MB are free" in told.text
    assert told.remedy


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, image in zip("fm", pair(1000), strict=True):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    images = ["--fixed", str(tmp_path / "f.nii.gz"), "--moving", str(tmp_path / "m.nii.gz")]
    assert main(["check", *images]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert [line.split(":")[0] for line in told.out.splitlines()] == ["warning", "note", "note", "note"]
    assert main(["check", *images, "--strict-input"]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("error: moving image")
    assert "would be refused" in told.err
    assert main(["register", *images, "--strict-input", "--output", str(tmp_path / "o_")]) == 2
    assert "covers only 0%" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.nii.gz", "m.nii.gz"]

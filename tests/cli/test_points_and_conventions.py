"""`itk-nir apply --points` with frames and formats, and matrices in text with a convention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.cli import main
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.points import load_points
from itk_nir.transforms import CompositeTransform, DisplacementField
from itk_nir.transforms.formats.itk_h5 import write_h5

GRID = Geometry.make([9, 8, 7], [2.0, 2.5, 3.0], [-8.0, -9.0, -9.0])
SHIFT = np.array([1.5, -2.0, 0.75])


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def shift(folder: Path) -> Path:
    field = DisplacementField(GRID, np.broadcast_to(SHIFT, (*GRID.shape, 3)))
    write_h5(CompositeTransform((field,)), folder / "t.h5")
    return folder / "t.h5"


@pytest.mark.filterwarnings("default")
def test_points_go_out_in_the_frame_they_came_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shift(tmp_path)
    (tmp_path / "p.tsv").write_text("name\tx\ty\tz\na\t1\t2\t3\nb\t-500\t0\t0\n")
    assert run(
        "apply", "--points", tmp_path / "p.tsv", "--frame", "ras", "--transform", path, "--output", tmp_path / "q.fcsv"
    ) == 0  # fmt: skip
    told = capsys.readouterr()
    assert "1 of 2 points lie outside the image that they belong to (row 2; up to 491 mm from it)" in told.err
    moved = load_points(tmp_path / "q.fcsv")
    np.testing.assert_allclose(moved.points, [[-1 + 1.5, -2 - 2, 3.75], [500, 0, 0]], atol=1e-5)
    assert moved.names == ("a", "b")
    assert run(
        "apply", "--points", tmp_path / "p.tsv", "--frame", "ras", "--transform", path, "--output", tmp_path / "q.tsv"
    ) == 0  # fmt: skip
    row = (tmp_path / "q.tsv").read_text().splitlines()[1]
    assert row == "a\t-0.500000\t4.000000\t3.750000"


@pytest.mark.filterwarnings("default")
def test_a_reference_tells_where_points_are_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n0,0,80\n")
    sitk.WriteTransform(sitk.TranslationTransform(3, (1, 0, 0)), str(tmp_path / "t.tfm"))
    sitk.WriteImage(to_sitk(np.ones(GRID.shape, np.float32), GRID), str(tmp_path / "f.mha"))
    more = ("--transform", tmp_path / "t.tfm", "--output", tmp_path / "q.csv")
    assert run("apply", "--points", tmp_path / "p.csv", *more) == 0
    assert "outside" not in capsys.readouterr().err
    assert run("apply", "--points", tmp_path / "p.csv", "--reference", tmp_path / "f.mha", *more) == 0
    assert "1 of 2 points lie outside" in capsys.readouterr().err
    np.testing.assert_allclose(load_points(tmp_path / "q.csv").points, [[1, 0, 0], [1, 0, 80]])
    assert run("apply", "--points", tmp_path / "p.csv", "--labels", *more) == 2
    assert run("apply", "--image", tmp_path / "f.mha", "--frame", "ras", *more) == 2


def test_flirt_through_convert_and_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shift by two voxels along x in FSL's coordinates: right-handed images are counted from the far side."""
    matrix = np.eye(4)
    matrix[0, 3] = 4.0
    np.savetxt(tmp_path / "m.mat", matrix)
    values = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    sitk.WriteImage(to_sitk(values, GRID), str(tmp_path / "f.nii.gz"))
    assert run("convert", tmp_path / "m.mat", tmp_path / "t.tfm") == 2
    assert "give its convention" in capsys.readouterr().err
    images = ("--reference", tmp_path / "f.nii.gz", "--moving", tmp_path / "f.nii.gz")
    assert run("convert", tmp_path / "m.mat", tmp_path / "t.tfm", *images, "--convention", "fsl") == 0
    np.testing.assert_allclose(itk_nir.load_transform(tmp_path / "t.tfm").map([0.0, 0, 0]), [4, 0, 0], atol=1e-5)
    out = tmp_path / "w.nii.gz"
    same = ("--transform", tmp_path / "m.mat", "--convention", "fsl", "--output", out)
    assert run("apply", "--image", tmp_path / "f.nii.gz", "--reference", tmp_path / "f.nii.gz", *same) == 0
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out)))
    np.testing.assert_allclose(found[:, :, :-2], values[:, :, 2:], atol=1e-5)
    image = to_sitk(values, GRID)
    again = itk_nir.apply(image, tmp_path / "m.mat", image, convention="fsl")
    np.testing.assert_allclose(sitk.GetArrayFromImage(again)[:, :, :-2], values[:, :, 2:], atol=1e-5)
    # Without a reference FSL's fixed image is not known.
    assert run("apply", "--image", tmp_path / "f.nii.gz", *same) == 2
    assert "the fixed one" in capsys.readouterr().err

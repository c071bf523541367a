"""``itk-nir apply``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli import main
from itk_nir.phantom import Phantom
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.model import CompositeTransform, LinearTransform
from tests.cli.commands import error_line, read


def test_apply_image(pair: dict[str, str], phantom_2d: Phantom, tmp_path: Path, capsys) -> None:
    out = tmp_path / "warped.nii.gz"
    arguments = ["apply", "--image", pair["moving"], "--transform", pair["transform"], "--reference", pair["fixed"]]
    assert main([*arguments, "--output", str(out)]) == 0
    assert "linear" in capsys.readouterr().out
    reference = sitk.ReadImage(pair["fixed"])
    expected = sitk.Resample(sitk.ReadImage(pair["moving"]), reference, sitk.ReadTransform(pair["transform"]))
    inside = phantom_2d.fixed_labels > 0
    assert np.abs(read(out) - sitk.GetArrayFromImage(expected))[inside].max() < 1e-3 * phantom_2d.fixed.max()
    assert sitk.ReadImage(str(out)).GetSpacing() == reference.GetSpacing()


@pytest.mark.parametrize(
    "flags", [["--labels"], [], ["--interpolation", "nearest"], ["--labels", "--interpolation", "label"]]
)
def test_apply_labels_makes_no_new_labels(pair: dict[str, str], tmp_path: Path, flags: list[str]) -> None:
    out = tmp_path / "labels.nii.gz"
    arguments = ["apply", "--image", pair["moving_labels"], "--transform", pair["transform"], "--output", str(out)]
    assert main([*arguments, *flags]) == 0
    warped, fixed, moving = (read(p) for p in (out, pair["fixed_labels"], pair["moving_labels"]))
    assert warped.dtype == np.uint8
    assert set(np.unique(warped)) <= set(np.unique(moving))
    assert np.mean(warped == fixed) > np.mean(moving == fixed) + 0.03


def test_labels_and_linear_interpolation_contradict(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "labels.nii.gz"
    arguments = ["apply", "--image", pair["moving_labels"], "--transform", pair["transform"], "--output", str(out)]
    assert main([*arguments, "--labels", "--interpolation", "linear"]) == 2
    assert "--labels" in error_line(capsys)
    assert not out.exists()


def test_apply_inverse_brings_the_fixed_labels_back(pair: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "back.nii.gz"
    arguments = ["apply", "--image", pair["fixed_labels"], "--transform", pair["transform"], "--inverse", "--labels"]
    assert main([*arguments, "--output", str(out)]) == 0
    moving = read(pair["moving_labels"])
    assert np.mean(read(out) == moving) > np.mean(read(pair["fixed_labels"]) == moving) + 0.03


def test_lists_as_ants_writes_them(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    """The inverse of one file beside another as it is, for images and for points."""
    shift = sitk.AffineTransform(2)
    shift.SetTranslation([7, -3])
    sitk.WriteTransform(shift, str(tmp_path / "shift.mat"))
    table = tmp_path / "points.csv"
    table.write_text("x,y\n1,2\n")
    still = ["--transform", f"[{tmp_path / 'shift.mat'},1]", "--transform", str(tmp_path / "shift.mat")]
    once = ["--transform", f"[ {tmp_path / 'shift.mat'} , 1 ]", "--transform", "identity"]
    for transforms, moved in ((still, [1, 2]), (once, [-6, 5])):
        out = tmp_path / "moved.csv"
        assert main(["apply", "--points", str(table), *transforms, "--output", str(out)]) == 0
        assert np.allclose(np.loadtxt(out, delimiter=",", skiprows=1), moved)
    out = tmp_path / "same.nii.gz"
    assert main(["apply", "--image", pair["fixed"], *still, "--output", str(out)]) == 0
    assert np.allclose(read(out), read(pair["fixed"]), atol=1e-3)
    capsys.readouterr()
    onto = ["apply", "--points", str(table), *still, "--output", str(tmp_path / "shift.mat")]
    assert main(onto) == 2
    assert "shift.mat" in error_line(capsys)


def test_apply_points_there_and_back(pair: dict[str, str], phantom_2d: Phantom, tmp_path: Path) -> None:
    grid = phantom_2d.geometry
    index = np.array([[30, 40], [50, 60], [41, 22]])
    points = grid.index_to_physical(index)
    table, there, back = (tmp_path / f"{n}.csv" for n in ("points", "there", "back"))
    rows = [f"p{k},{x!r},{y!r},{k * 2}" for k, (x, y) in enumerate(points.tolist())]
    table.write_text("\n".join(["name,x,y,weight", *rows]) + "\n")
    assert main(["apply", "--points", str(table), "--transform", pair["transform"], "--output", str(there)]) == 0
    lines = [line.split(",") for line in there.read_text().splitlines()]
    assert lines[0] == ["name", "x", "y", "weight"]
    assert [line[3] for line in lines[1:]] == ["0", "2", "4"]
    moved = np.array([[float(line[1]), float(line[2])] for line in lines[1:]])
    truth = points + phantom_2d.displacement[index[:, 1], index[:, 0]]
    assert np.abs(moved - truth).max() < 1e-4
    arguments = ["apply", "--points", str(there), "--transform", pair["transform"], "--inverse", "--output", str(back)]
    assert main(arguments) == 0
    returned = np.loadtxt(back, delimiter=",", skiprows=1, usecols=(1, 2))
    assert np.abs(returned - points).max() < 0.1


def test_transforms_apply_in_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    quarter = LinearTransform.make([[0.0, -1.0], [1.0, 0.0]], [0.0, 0.0])
    shift = LinearTransform.make(np.eye(2), [10.0, 0.0])
    files = [str(tmp_path / name) for name in ("quarter.h5", "shift.h5")]
    for step, file in zip((quarter, shift), files, strict=True):
        write_h5(CompositeTransform((step,)), file)
    table, out = tmp_path / "p.csv", tmp_path / "q.csv"
    table.write_text("x,y\n1,2\n")
    arguments = ["apply", "--points", str(table), "--output", str(out)]
    assert main([*arguments, "--transform", files[0], "--transform", files[1]]) == 0
    assert np.allclose(np.loadtxt(out, delimiter=",", skiprows=1), [8.0, 1.0])


@pytest.mark.parametrize("missing", ["--image", "--transform", "--reference"])
def test_apply_with_a_missing_file(pair: dict[str, str], tmp_path: Path, capsys, missing: str) -> None:
    given = {"--image": pair["moving"], "--transform": pair["transform"], "--reference": pair["fixed"]}
    given[missing] = str(tmp_path / "nowhere.nii.gz")
    out = tmp_path / "out.nii.gz"
    assert main(["apply", *[a for item in given.items() for a in item], "--output", str(out)]) == 2
    assert "nowhere.nii.gz" in error_line(capsys)
    assert not out.exists()


def test_apply_to_a_folder_that_does_not_exist(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "nowhere" / "out.nii.gz"
    arguments = ["apply", "--image", pair["moving"], "--transform", pair["transform"], "--output", str(out)]
    assert main(arguments) != 0
    assert "nowhere" in error_line(capsys)


def test_apply_points_takes_no_image_options(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    arguments = ["apply", "--points", "p.csv", "--transform", pair["transform"], "--output", str(tmp_path / "q.csv")]
    assert main([*arguments, "--labels"]) == 2
    assert "--points" in error_line(capsys)
    assert main([*arguments, "--fill", "0", "--nan", "mask"]) == 2
    assert "--points takes no --fill, --nan: " in error_line(capsys)

"""``itk-nir register``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli import main
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.phantom import Phantom
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.model import CompositeTransform
from tests.cli.commands import STILL, console, error_line, process, read, register_arguments, written


def make_bad(kind: str, folder: Path) -> str:
    path = folder / f"{kind}.nii.gz"
    ramp = np.arange(24 * 20, dtype=np.float32).reshape(24, 20)
    if kind == "unreadable":
        path.write_bytes(b"this is no image" * 40)
    elif kind == "four":
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([[ramp] * 6] * 3), isVector=False), str(path))
    elif kind == "other_dimension":
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([ramp] * 20)), str(path))
    elif kind == "constant":
        save_image(np.full((24, 20), 7.0, np.float32), Geometry.make((20, 24)), path)
    elif kind == "nan":
        path = folder / "nan.mha"
        ramp[3, 4] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(ramp), str(path))
    return str(path)


@pytest.mark.slow
def test_register_writes_complete_files_that_other_tools_read(
    pair: dict[str, str], phantom_2d: Phantom, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "new" / "out"
    assert main(register_arguments(pair, f"{folder}/case_", "--picture", "--seed", "3")) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "folds 0.0000 %, inverse error 0.0" in captured.out
    assert "\r" not in captured.err  # no terminal, no bar
    names = {p.name for p in folder.iterdir()}
    ours = {"Warped.nii.gz", "Composite.h5", "InverseComposite.h5", "report.json", "registration.png"}
    assert names == {f"case_{n}" for n in ours}
    report = json.loads((folder / "case_report.json").read_text())
    assert report["metrics"]["seed"] == 3

    fixed, moving = sitk.ReadImage(pair["fixed"]), sitk.ReadImage(pair["moving"])
    transform = sitk.ReadTransform(str(folder / "case_Composite.h5"))
    ours_warped = read(folder / "case_Warped.nii.gz")
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform))
    inside = phantom_2d.fixed_labels > 0
    assert np.abs(ours_warped - theirs)[inside].max() < 1e-3 * np.ptp(theirs)
    error = np.array([transform.TransformPoint(p) for p in phantom_2d.geometry.grid()[inside].tolist()])
    error -= phantom_2d.geometry.grid()[inside] + phantom_2d.displacement[inside]
    before = np.linalg.norm(phantom_2d.displacement[inside], axis=1).mean()
    assert np.linalg.norm(error, axis=1).mean() < 0.5 * before


@pytest.mark.slow
def test_register_writes_the_files_of_another_program(
    pair: dict[str, str], phantom_2d: Phantom, tmp_path: Path, capsys
) -> None:
    more = ["--format", "ants", *STILL, "--set", "field_spacing=2"]
    assert main(register_arguments(pair, f"{tmp_path}/a/", *more)) == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "0GenericAffine.mat", "1InverseWarp.nii.gz", "1Warp.nii.gz", "Warped.nii.gz", "report.json",
    }  # fmt: skip
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert max(report["self_check"]["largest_difference_mm"].values()) < 1e-3
    assert sitk.ReadImage(str(tmp_path / "a" / "1Warp.nii.gz")).GetSpacing()[0] == pytest.approx(
        2 * phantom_2d.geometry.spacing[0]
    )
    capsys.readouterr()


def test_register_refuses_a_format_that_its_images_cannot_have(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    before = set(tmp_path.rglob("*"))
    assert main(register_arguments(pair, tmp_path / "case_", "--format", "nifti")) == 2
    assert "format nifti is for 3D" in error_line(capsys)
    assert written(tmp_path, before) == set()


def test_register_takes_masks_a_start_and_settings(pair: dict[str, str], phantom_2d: Phantom, tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    save_image((phantom_2d.fixed_labels > 0).astype(np.uint8), phantom_2d.geometry, mask)
    more = ["--fixed-mask", str(mask), "--initial-transform", pair["transform"], "--linear", "none"]
    assert main(register_arguments(pair, tmp_path / "r", *more, *STILL)) == 0
    transform = sitk.ReadTransform(str(tmp_path / "rComposite.h5"))
    inside = phantom_2d.fixed_labels > 0
    points = phantom_2d.geometry.grid()[inside]
    moved = np.array([transform.TransformPoint(p) for p in points.tolist()])
    error = np.linalg.norm(moved - points - phantom_2d.displacement[inside], axis=1)
    assert error.max() < 0.05  # the start was the truth, and all of it is in the result


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize("kind", ["missing", "unreadable", "four", "other_dimension", "constant", "nan"])
def test_input_that_cannot_be_used_is_one_line_and_writes_nothing(
    pair: dict[str, str], tmp_path: Path, capsys, kind: str, role: str
) -> None:
    bad = make_bad(kind, tmp_path)
    before = set(tmp_path.rglob("*"))
    assert main(register_arguments({**pair, role: bad}, tmp_path / "out" / "case_")) == 2
    assert Path(bad).name in error_line(capsys)
    assert written(tmp_path, before) == set()


def test_unknown_setting_names_the_nearest(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    before = set(tmp_path.rglob("*"))
    assert main(register_arguments(pair, tmp_path / "case_", "--set", "shrink_factor=(2, 1)")) == 2
    assert "shrink_factors" in error_line(capsys)
    assert written(tmp_path, before) == set()


def test_output_that_cannot_be_written(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    assert main(register_arguments(pair, Path(pair["fixed"]) / "case_")) == 2
    assert "fixed.nii.gz" in error_line(capsys)


@pytest.mark.slow
def test_interruption_leaves_nothing_behind(pair: dict[str, str], tmp_path: Path, capsys, monkeypatch) -> None:
    """Ctrl-C while the last of the files is being written: status 130, and the others are gone as well."""
    calls = []

    def interrupted(chain: CompositeTransform, path: Path, **options: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_h5(chain, path)

    monkeypatch.setattr("itk_nir.transforms.formats.itk_h5.write_h5", interrupted)
    before = set(tmp_path.rglob("*"))
    assert main(register_arguments(pair, tmp_path / "new" / "case_")) == 130
    assert len(calls) == 2
    assert "interrupted" in error_line(capsys)
    assert written(tmp_path, before) == set()


@pytest.mark.slow
def test_picture_that_fails_takes_the_other_files_with_it(
    pair: dict[str, str], tmp_path: Path, capsys, monkeypatch
) -> None:
    from itk_nir import plot as report

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "picture", full)
    before = set(tmp_path.rglob("*"))
    assert main(register_arguments(pair, tmp_path / "case_", "--picture")) == 1
    assert "No space left" in error_line(capsys)
    assert written(tmp_path, before) == set()


def test_a_name_that_the_console_cannot_show_loses_nothing(
    pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = register_arguments(pair, tmp_path / "fälle" / "é_", "--linear", "none", *STILL)
    with console(monkeypatch, "ascii") as (out, err):
        assert main(arguments) == 0
    assert err.getvalue() == b""
    assert b"f\\xe4lle" in out.getvalue()
    assert out.getvalue().count(b"\n") == 1
    assert len(list((tmp_path / "fälle").iterdir())) == 4


@pytest.mark.slow
def test_closed_streams_break_nothing(pair: dict[str, str], tmp_path: Path) -> None:
    arguments = register_arguments(pair, tmp_path / "out" / "r_", "--linear", "none", *STILL)
    done = process("-m", "itk_nir.cli", *arguments, redirect="<&- >&- 2>&-")
    assert done.returncode == 0
    assert len(list((tmp_path / "out").iterdir())) == 4
    done = process("-m", "itk_nir.cli", *arguments, "--set", "seed=3", redirect="<&- >&- 2>&-")
    assert done.returncode == 2


def test_a_folder_as_prefix_is_noted_and_nothing_lies_in_it(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "case").mkdir()
    assert main(register_arguments(pair, tmp_path / "case", "--linear", "none", *STILL)) == 0
    assert f"note: {tmp_path / 'case'} is a folder" in capsys.readouterr().err
    assert (tmp_path / "caseComposite.h5").is_file()
    assert not list((tmp_path / "case").iterdir())


def test_a_file_name_of_two_lines_does_not_cut_the_message(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "two\nlines.nii.gz"
    assert main(register_arguments({**pair, "fixed": str(missing)}, tmp_path / "case_")) == 2
    assert "two\\nlines.nii.gz: no such file" in error_line(capsys)


def test_one_label_and_a_report_that_says_it_already(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    """One number where there may be several; flags beside a report, also those that change nothing, are refused."""
    labels = ["--fixed-labels", pair["fixed_labels"], "--moving-labels", pair["moving_labels"], "--labels", "2"]
    assert main(register_arguments(pair, tmp_path / "a_", *labels, *STILL)) == 0
    report = str(tmp_path / "a_report.json")
    assert json.loads(Path(report).read_text())["metrics"]["settings"]["deformable"]["labels"] == [2]
    again = ["register", "--from-report", report, "--output", str(tmp_path / "b_")]
    capsys.readouterr()
    assert main([*again, "--seed", "0", "--linear", "affine", "--preset", "default", "--nan", "error"]) == 2
    assert "--linear, --nan, --preset, --seed: --from-report says it already" in error_line(capsys)
    assert main([*again, "--fixed-mask", pair["fixed_labels"]]) == 2
    told = error_line(capsys)
    assert "error: fixed_mask: was not given to the registration" in told
    assert "lesion" not in told
    assert main([*again, "--fixed", pair["moving"]]) == 2
    assert "fixed is not what it was then" in error_line(capsys)
    assert not list(tmp_path.glob("b_*"))


def test_from_report_refuses_to_write_over_what_it_reads_before_any_work(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report itself, and a file that only the report names."""
    moving = tmp_path / "b_Warped.nii.gz"
    Path(pair["moving"]).rename(moving)
    assert main(register_arguments({**pair, "moving": str(moving)}, tmp_path / "a_", *STILL)) == 0
    report = str(tmp_path / "a_report.json")
    monkeypatch.setattr("itk_nir.repeating.repeat", lambda *a, **k: pytest.fail("it was registered first"))
    for prefix in ("a_", "b_"):
        capsys.readouterr()
        assert main(["register", "--from-report", report, "--output", str(tmp_path / prefix)]) == 2
        assert "is an input" in error_line(capsys)


def test_a_start_in_brackets_is_an_input(pair: dict[str, str], tmp_path: Path, capsys) -> None:
    start = tmp_path / "a_Composite.h5"
    Path(pair["transform"]).rename(start)
    before = start.read_bytes()
    assert main(register_arguments(pair, tmp_path / "a_", "--initial-transform", f"[{start},1]", *STILL)) == 2
    assert "and would be replaced" in error_line(capsys)
    assert main(["convert", f"[{start},1]", str(start)]) == 2
    assert "and would be replaced" in error_line(capsys)
    fixed, moving = pair["fixed"], pair["moving"]
    np.savetxt(tmp_path / "m.txt", np.eye(4))
    flirt = ["--convention", "fsl", "--reference", fixed, "--moving", moving]
    assert main(["convert", str(tmp_path / "m.txt"), moving, *flirt]) == 2
    assert "is an input itself" in error_line(capsys)
    assert start.read_bytes() == before

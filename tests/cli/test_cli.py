from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir import __version__, settings
from itk_nir.cli import FORMATS, PRESETS, ProgressBar, _settings, main
from itk_nir.engine.progress import Progress
from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.phantom import Phantom
from itk_nir.transforms import save as formats
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform


@pytest.fixture
def pair(phantom_2d: Phantom, tmp_path: Path) -> dict[str, str]:
    """Files of the 2D phantom: its images, labels and true transform."""
    names = ("fixed", "moving", "fixed_labels", "moving_labels")
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in names}
    for name, file in files.items():
        save_image(getattr(phantom_2d, name), phantom_2d.geometry, file)
    files["transform"] = str(tmp_path / "truth.h5")
    write_h5(CompositeTransform((DisplacementField(phantom_2d.geometry, phantom_2d.displacement),)), files["transform"])
    return files


def read(path: str | Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be one line that begins as errors do."""
    err = capsys.readouterr().err
    assert err.startswith("itk-nir: error: ")
    assert err.count("\n") == 1
    return err


# --- start-up --------------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"itk-nir {__version__}\n"


def test_arguments_are_read_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys\nfrom itk_nir.cli import main\n"
        "try:\n    main(['register', '--fixed', 'f.nii'])\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'numpy', 'itk', 'SimpleITK', 'h5py', 'matplotlib'} & set(sys.modules)\n"
        "    print(stop.code, sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"
    assert "--moving" in done.stderr


@pytest.mark.parametrize("command", ["register", "apply", "convert", "demo", "presets"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"itk-nir {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["register", "--fixed", "f", "--moving", "m"],
        ["register", "--fixed", "f", "--moving", "m", "--output", "o", "--preset", "best"],
        ["register", "--fixed", "f", "--moving", "m", "--output", "o", "--threads", "0"],
        ["apply", "--transform", "t", "--output", "o"],
        ["apply", "--image", "i", "--points", "p", "--transform", "t", "--output", "o"],
        ["register", "--fixed", "f", "--moving", "m", "--output", "o", "--format", "minc"],
        ["convert", "t.h5"],
        ["convert", "t.h5", "t.nii.gz", "--format", "minc"],
        ["demo", "--size", "10,x"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: itk-nir" in capsys.readouterr().err


def test_settings_are_typed() -> None:
    settings = _settings(
        ["a=3", "b=0.5", "c=(4, 2, 1)", "d=True", "e=false", "f=siren", "g-h=none", "i=[1.5]", "j='3'"]
    )
    assert settings == {
        "a": 3, "b": 0.5, "c": (4, 2, 1), "d": True, "e": False, "f": "siren", "g_h": None, "i": [1.5], "j": "3",
    }  # fmt: skip
    assert type(settings["a"]) is int


@pytest.mark.parametrize("assignment", ["levels", "=3", "a b=3"])
def test_a_setting_without_name_or_value(assignment: str) -> None:
    with pytest.raises(OptionError, match="OPTION=VALUE"):
        _settings([assignment])


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_bar_shows_level_step_metric_and_time_left() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, interval=0.0)
    bar(Progress("deformable", 1, 3, 36, 60, 0.8123, 0.2, 75.0, 0.5))
    shown = stream.getvalue()
    for part in ("deformable", "level 2/3", "step  37/60", "metric 0.8123", "50%", "1:15 left"):
        assert part in shown
    assert shown.startswith("\r")
    assert "\n" not in shown
    bar.clear()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_bar_does_not_flood_the_terminal_but_shows_the_end() -> None:
    stream = io.StringIO()
    bar = ProgressBar(stream, interval=1000.0)
    for step in range(50):
        bar(Progress("linear", 0, 1, step, 50, 0.5, 0.5, 1.0, (step + 1) / 50))
    assert stream.getvalue().count("\r") == 2
    assert "step  50/50" in stream.getvalue()


# --- apply -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("flags", [["--labels"], [], ["--interpolation", "nearest"]])
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


# --- register --------------------------------------------------------------------------------------------------------


def register_arguments(pair: dict[str, str], prefix: Path | str, *more: str) -> list[str]:
    files = ["--fixed", pair["fixed"], "--moving", pair["moving"], "--output", str(prefix)]
    return ["register", *files, "--preset", "fast", "--device", "cpu", "--threads", "1", *more]


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


def test_register_writes_the_files_of_another_program(
    pair: dict[str, str], phantom_2d: Phantom, tmp_path: Path, capsys
) -> None:
    still = ["--set", "steps=1", "--set", "learning_rates=1e-6", "--set", "bake_spacing=2"]
    assert main(register_arguments(pair, f"{tmp_path}/a/", "--format", "ants", *still)) == 0
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
    still = ["--set", "steps=1", "--set", "learning_rates=1e-6"]
    assert main(register_arguments(pair, tmp_path / "r", *more, *still)) == 0
    transform = sitk.ReadTransform(str(tmp_path / "rComposite.h5"))
    inside = phantom_2d.fixed_labels > 0
    points = phantom_2d.geometry.grid()[inside]
    moved = np.array([transform.TransformPoint(p) for p in points.tolist()])
    error = np.linalg.norm(moved - points - phantom_2d.displacement[inside], axis=1)
    assert error.max() < 0.05  # the start was the truth, and all of it is in the result


def written(folder: Path, before: set[Path]) -> set[Path]:
    return set(folder.rglob("*")) - before


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


# --- the others ------------------------------------------------------------------------------------------------------


def test_demo_reports_the_true_error(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "demo"
    arguments = ["--dimension", "2", "--size", "80,96", "--preset", "fast", "--device", "cpu", "--threads", "1"]
    assert main(["demo", "--output", str(folder), *arguments]) == 0
    out = capsys.readouterr().out
    mean = next(line.split() for line in out.splitlines() if line.strip().startswith("mean"))
    assert float(mean[2]) < 0.5 * float(mean[1])
    assert "white matter" in out
    for name in ("registration.png", "Warped.nii.gz", "Composite.h5", "fixed.nii.gz", "moving_labels.nii.gz"):
        assert (folder / name).stat().st_size > 1000


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(settings.PRESETS) == PRESETS
    assert tuple(formats.FORMATS) == FORMATS
    assert main(["presets"]) == 0
    everything = capsys.readouterr().out
    assert all(name in everything for name in PRESETS)
    assert main(["presets", "fast"]) == 0
    fast = capsys.readouterr().out
    assert all(f"  {name} = " in fast for name in settings.options_of("fast"))

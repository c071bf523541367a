"""The benchmarks' scorer against truth made by hand, and how pairs are found and processes measured."""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.settings import make_settings
from tests.grids import turned

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("no benchmarks: they are not part of a source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
score, pairs, peers, measure, page, compare, study, growth, trust, step_cost, many, landmark_residuals = (
    importlib.import_module(name)
    for name in (
        "score",
        "pairs",
        "peers",
        "measure",
        "page",
        "compare",
        "study",
        "growth",
        "trust",
        "step_cost",
        "many",
        "landmark_residuals",
    )
)

SPACING = np.array([1.0, 1.5, 2.0])


def rotation(angle: float = 0.4) -> np.ndarray:
    """About an oblique axis, with one axis mirrored: no direction is a special case."""
    return np.asarray(turned(3, angle) @ np.diag([1, -1, 1]))


def image(array: np.ndarray, direction: np.ndarray | None = None) -> sitk.Image:
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(SPACING[: array.ndim].tolist())
    made.SetOrigin([5.0, -7.0, 3.0][: array.ndim])
    if direction is not None:
        made.SetDirection(direction.ravel().tolist())
    return made


def grid_points(of: sitk.Image) -> np.ndarray:
    """([D,] H, W, d) physical points, by the formula of the ITK software guide."""
    d = of.GetDimension()
    axes = np.meshgrid(*(np.arange(n) for n in of.GetSize()), indexing="ij")
    index = np.stack([axis.T for axis in axes], axis=-1)
    voxel = np.array(of.GetDirection()).reshape(d, d) * np.array(of.GetSpacing())
    return np.asarray(index @ voxel.T + np.array(of.GetOrigin()))


def write_field(path: Path, vectors: np.ndarray, like: sitk.Image) -> None:
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(like)
    sitk.WriteImage(field, str(path))


def write_manifest(folder: Path, forward: list[dict[str, Any]], inverse: list[dict[str, Any]]) -> Path:
    path = folder / "transforms.json"
    path.write_text(json.dumps({"forward": forward, "inverse": inverse}))
    return path


@pytest.fixture
def blob() -> sitk.Image:
    """A textured image on an oblique, mirrored, anisotropic grid."""
    noise = np.random.default_rng(3).normal(size=(20, 24, 28)).astype(np.float32)
    return image(np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image(noise), 2.0))), rotation())


def test_dice_by_hand() -> None:
    truth = np.array([[1, 1, 2, 2], [0, 0, 3, 0]])
    other = np.array([[1, 0, 2, 2], [1, 0, 0, 4]])
    found = score.dice(truth, other, (1, 2, 3, 4, 9))
    # 1: 2·1/(2+2); 2: 1; 3 and 4: only in one map; 9: in neither, so it does not count.
    assert found["dice_by_label"] == {"1": 0.5, "2": 1.0, "3": 0.0, "4": 0.0}
    assert found["dice"] == pytest.approx(1.5 / 4)
    assert score.dice(truth, other)["dice"] == pytest.approx(0.75)  # those that both have
    with pytest.raises(ValueError, match="none of the labels"):
        score.dice(truth, other, (77,))


def test_jacobian_of_an_affine_map_on_an_oblique_grid(blob: sitk.Image) -> None:
    matrix = np.array([[1.2, 0.1, 0.0], [-0.2, 0.8, 0.3], [0.05, 0.0, 1.1]])
    points = grid_points(blob)
    inside = np.ones(points.shape[:-1], dtype=bool)
    voxel = rotation() * SPACING
    found = score.jacobian_determinant(points @ matrix.T - points, inside, voxel)
    np.testing.assert_allclose(found, np.linalg.det(matrix), rtol=1e-10)  # at the rim too


def test_jacobian_counts_a_fold_where_it_is() -> None:
    # x → x + u(x) on a line of pixels: u falls by 1.5 a pixel between columns 3 and 5, by nothing elsewhere.
    u = np.zeros((6, 9, 2))
    u[:, 4, 0], u[:, 5:, 0] = -1.5, -3.0
    inside = np.zeros((6, 9), dtype=bool)
    inside[2, 1:8] = True
    found = score.jacobian_determinant(u, inside, np.eye(2))
    np.testing.assert_allclose(found, [1, 1, 0.25, -0.5, 0.25, 1, 1])


def test_score_of_a_known_affine_and_its_inverse(tmp_path: Path, blob: sitk.Image) -> None:
    matrix = np.array([[1.1, 0.05, 0.0], [-0.1, 0.95, 0.1], [0.0, 0.02, 1.05]])
    shift = np.array([1.0, -2.0, 0.5])
    transform = sitk.AffineTransform(matrix.ravel().tolist(), shift.tolist())
    sitk.WriteTransform(transform, str(tmp_path / "affine.tfm"))
    sitk.WriteImage(blob, str(tmp_path / "fixed.nii.gz"))
    points = np.array([[6.0, -3.0, 9.0], [10.0, -20.0, 4.0]])
    for name, table in (("fixed", points), ("moving", points @ matrix.T + shift + [[0, 3, 4], [0, 0, 1]])):
        rows = [",".join(map(repr, row)) for row in table.tolist()]
        (tmp_path / f"{name}.csv").write_text("x,y,z\n" + "\n".join(rows) + "\n")
    manifest = write_manifest(tmp_path, [{"file": "affine.tfm"}], [{"file": "affine.tfm", "invert": True}])
    fixed = tmp_path / "fixed.nii.gz"
    found = score.score(
        fixed, fixed, manifest, fixed_landmarks=tmp_path / "fixed.csv", moving_landmarks=tmp_path / "moving.csv"
    )
    assert found["tre"] == pytest.approx(3.0)
    assert found["tre_max"] == pytest.approx(5.0)
    assert found["det_min"] == pytest.approx(np.linalg.det(matrix))
    assert found["sd_log_jacobian"] == pytest.approx(0.0, abs=1e-9)
    assert found["folds"] == 0.0
    assert found["inverse_p99"] == pytest.approx(0.0, abs=1e-9)
    before = score.score(fixed, fixed, None)
    assert before["lncc"] == pytest.approx(1.0)
    assert found["lncc"] < 0.9


def test_field_meets_the_point_before_the_affine(tmp_path: Path, blob: sitk.Image) -> None:
    """A field and an affine that do not commute, undone in the other order, by hand."""
    matrix, shift = np.diag([2.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.0])
    sitk.WriteTransform(sitk.AffineTransform(matrix.ravel().tolist(), shift.tolist()), str(tmp_path / "affine.mat"))
    step = np.array([3.0, -1.0, 2.0])
    write_field(tmp_path / "field.nii.gz", np.broadcast_to(step, (20, 24, 28, 3)).astype(np.float32), blob)
    manifest = write_manifest(tmp_path, [{"file": "field.nii.gz"}, {"file": "affine.mat"}], [])
    forward, inverse = score.load_manifest(manifest, 3)
    centre = blob.TransformIndexToPhysicalPoint((14, 12, 10))
    np.testing.assert_allclose(forward.TransformPoint(centre), matrix @ (np.array(centre) + step) + shift, atol=1e-5)
    assert inverse is None


def test_inverse_error_is_in_voxels(tmp_path: Path, blob: sitk.Image) -> None:
    fixed = tmp_path / "fixed.nii.gz"
    sitk.WriteImage(blob, str(fixed))
    for name, offset in (("there", (2.0, 0.0, 0.0)), ("back", (-2.0, 0.0, 0.0))):
        vector = np.array(offset)
        if name == "back":  # misses by one voxel along the third axis
            vector = vector + rotation()[:, 2] * SPACING[2]
        sitk.WriteTransform(sitk.TranslationTransform(3, vector.tolist()), str(tmp_path / f"{name}.tfm"))
    manifest = write_manifest(tmp_path, [{"file": "there.tfm"}], [{"file": "back.tfm"}])
    found = score.score(fixed, fixed, manifest)
    assert found["inverse_mean"] == pytest.approx(1.0)


def test_labels_are_carried_from_moving_to_fixed(tmp_path: Path) -> None:
    truth = np.zeros((8, 10, 12), dtype=np.uint8)
    truth[2:6, 3:7, 2:6] = 4
    moved = np.roll(truth, 3, axis=2)  # three voxels further along x
    for name, array in (("fixed", truth), ("moving", moved)):
        sitk.WriteImage(image(array), str(tmp_path / f"{name}_seg.nii.gz"))
        sitk.WriteImage(image(array.astype(np.float32)), str(tmp_path / f"{name}.nii.gz"))
    sitk.WriteTransform(sitk.TranslationTransform(3, [3.0, 0.0, 0.0]), str(tmp_path / "shift.tfm"))
    manifest = write_manifest(tmp_path, [{"file": "shift.tfm"}], [])
    [pair] = pairs.find_pairs(tmp_path)
    files = {"fixed_seg": pair.fixed_seg, "moving_seg": pair.moving_seg}
    assert score.score(pair.fixed, pair.moving, None, **files)["dice"] == pytest.approx(0.25)
    found = score.score(pair.fixed, pair.moving, manifest, **files)
    assert found["dice"] == 1.0
    assert found["inside_voxels"] == 64
    assert "inverse_mean" not in found


def test_pairs_of_a_generic_folder_and_of_subjects(tmp_path: Path) -> None:
    one, cohort = tmp_path / "one", tmp_path / "cohort"
    for folder, names in (
        (one, "fixed_ct.nii.gz fixed_ct_mask.nii.gz moving_ct.nii.gz fixed_landmarks.csv moving_landmarks.csv"),
        (cohort, "a_t1.nii.gz a_seg.nii.gz b_t1.nii.gz b_seg.nii.gz c_t1.nii.gz"),
    ):
        folder.mkdir()
        for name in names.split():
            (folder / name).touch()
    found = {pair.name: pair for pair in pairs.find_pairs(tmp_path)}
    assert list(found) == ["cohort/a-b", "cohort/a-c", "cohort/b-a", "cohort/b-c", "cohort/c-a", "cohort/c-b", "one"]
    assert found["one"].fixed == one / "fixed_ct.nii.gz"
    assert found["one"].fixed_mask == one / "fixed_ct_mask.nii.gz"
    assert found["one"].moving_landmarks == one / "moving_landmarks.csv"
    assert found["one"].moving_mask is None
    assert found["cohort/b-c"].fixed_seg == cohort / "b_seg.nii.gz"
    assert found["cohort/b-c"].moving_seg is None
    assert [pair.name for pair in compare.chosen_pairs(found.values(), ["cohort/a-*", "one"])] == [
        "cohort/a-b",
        "cohort/a-c",
        "one",
    ]


def test_absent_data_is_said_clearly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--data", str(tmp_path / "nowhere")])
    assert "ITK_NIR_DATA" in capsys.readouterr().err
    with pytest.raises(pairs.NoPairs, match="no pairs"):
        pairs.find_pairs(tmp_path)


def test_landmarks_match_by_number_or_by_row(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text(",X,Y\n1,10,0\n2,20,0\n3,30,0\n")
    other.write_text(",X,Y\n3,31,0\n1,11,0\n")
    ours, theirs = score.matched_points(one, other, 2)
    np.testing.assert_array_equal(theirs - ours, [[1, 0], [1, 0]])
    other.write_text("x,y\n11,0\n21,0\n")
    with pytest.raises(ValueError, match="3 landmarks"):
        score.matched_points(one, other, 2)
    with pytest.raises(ValueError, match="no column 'z'"):
        score.matched_points(one, one, 3)


def test_greedys_matrix_becomes_an_itk_one(tmp_path: Path) -> None:
    ras = np.array([[0.9, 0.1, 0.2, 5.0], [-0.1, 1.1, 0.0, -3.0], [0.3, 0.0, 1.0, 2.0], [0, 0, 0, 1]])
    (tmp_path / "ras.txt").write_text("\n".join(" ".join(map(str, row)) for row in ras) + "\n")
    peers.ras_to_itk(tmp_path / "ras.txt", tmp_path / "itk.tfm")
    point = np.array([10.0, -20.0, 30.0, 1.0])  # LPS
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    found = sitk.ReadTransform(str(tmp_path / "itk.tfm")).TransformPoint(point[:3].tolist())
    np.testing.assert_allclose(found, (flip @ ras @ flip @ point)[:3])


@pytest.mark.slow
def test_a_process_is_measured_whole(tmp_path: Path) -> None:
    code = "import time; block = b'x' * 200_000_000; time.sleep(0.3); print(len(block)); raise SystemExit(5)"
    used = measure.measure([sys.executable, "-c", code], tmp_path / "log", threads=1, cwd=tmp_path)
    assert used.status == 5
    assert used.wall > 0.3
    # A child starts with the memory of its parent, here that of the test runner.
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert 0.2 < used.peak < max(0.5, mine + 0.1)
    assert used.cpu < used.wall + 0.5
    assert (tmp_path / "log").read_text().strip() == "200000000"
    endless = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert measure.measure(endless, tmp_path / "log", threads=1, cwd=tmp_path, timeout=0.2).status == -9


def test_time_that_the_host_gave_to_others_is_known() -> None:
    now = measure.processor_time()
    if sys.platform == "linux":
        assert now is not None
        assert now[0] > 0
    assert measure.stolen_percent((100.0, 7.0), (130.0, 17.0)) == 25
    assert measure.stolen_percent((100.0, 7.0), (100.0, 7.0)) == 0
    assert measure.stolen_percent(None, (1.0, 1.0)) is None


@pytest.mark.parametrize("program", [compare, study, growth])
def test_help_is_printed(program: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    assert "--threads" in capsys.readouterr().out


def test_a_disturbed_run_is_done_again_and_every_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stolen = {"greedy": iter([40.0, 5.0, 3.0]), "nir-fast": iter([30.0, 35.0, 12.0, 11.0])}
    stolen["fireants"] = iter([20.0, -1.0, 5.0])  # -1: it fails

    def run(name: str, pair: Any, folder: Path, threads: int, timeout: float) -> Any:
        if name == "elastix":
            raise measure.RunFailed("failed with status 1")
        (folder / "transforms.json").write_text('{"forward": []}')
        part = next(stolen[name])
        if part < 0:
            raise measure.RunFailed("took longer than 9 s")
        return measure.Usage(0, wall=10 + part, cpu=10.0, peak=1.0, stolen=part)

    monkeypatch.setattr(compare, "run", run)
    monkeypatch.setattr(compare, "score", lambda pair, manifest: {"dice": 0.5 if manifest is None else 0.7})
    options = argparse.Namespace(repeats=2, once=[], tries=2, threads=2, timeout=9.0, keep=False)
    pair = pairs.Pair("set/one", tmp_path / "f.nii", tmp_path / "m.nii")
    seen: list[tuple[int, int]] = []
    kept: list[dict[str, Any]] = []

    def done(result: dict[str, Any]) -> None:
        seen.append((sum(map(len, result["runs"].values())), len(result["failed"])))
        kept.append(result)

    compare.compare(pair, ["greedy", "elastix", "nir-fast", "fireants"], options, tmp_path, done)
    assert seen == [(1, 0), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]
    runs = kept[-1]["runs"]
    assert [r["wall"] for r in runs["greedy"]] == [15, 13]
    assert [r["wall"] for r in runs["nir-fast"]] == [40, 21]  # both tries of the first turn were bad: the better one
    # A repetition that failed takes nothing from the run before it.
    assert [r["wall"] for r in runs["fireants"]] == [30, 15]
    assert list(kept[-1]["failed"]) == ["elastix"]
    assert list(tmp_path.iterdir()) == []


def test_rows_of_an_earlier_page_are_kept_with_their_date() -> None:
    def content(name: str, wall: float) -> dict[str, Any]:
        one = {"wall": wall, "cpu": wall, "peak": 1.0, "dice": 0.7}
        return {"pair": "set/one", "linear": "none", "masked": False, "runs": {name: [one]}, "failed": {}}

    before = {"dice": 0.5, "inside": "fixed mask", "inside_voxels": 9}
    old = {"date": "2020-01-01", "results": [content("greedy", 50.0) | {"failed": {"elastix": "not done"}}]}
    new = content("nir-fast", 5.0) | {"before": before}
    both = page.with_earlier(new, old, ["nir-fast"])
    assert both["earlier"] == {"greedy": "2020-01-01", "elastix": "2020-01-01"}
    rows = page.summary(both)
    assert rows["greedy"]["wall"] == 50
    assert not any("wall_ratio" in row for row in rows.values())  # not of the same run
    assert not any("wall_ratio" in row for row in page.over_pairs([rows, rows]).values())
    facts = {"date": "d", "processor": "p", "cores": 2, "threads": 1, "repeats": 3, "command": "c", "skipped": {}}
    text = page.report("set", facts | {"versions": {}}, [both], None)
    assert "medians over 1 turn in" in text
    assert "greedy NCC 100x100x40 (2020-01-01) | 0.7000" in text
    assert "elastix B-spline NCC: not done" in text
    again = page.with_earlier(content("nir-fast", 4.0), {"date": "2021-01-01", "results": [both]}, ["nir-fast"])
    assert again["earlier"]["greedy"] == "2020-01-01"
    assert list(page.with_earlier(new, old, ["nir-fast", "greedy", "elastix"])["runs"]) == ["nir-fast"]
    assert page.with_earlier(new, None, ["nir-fast"]) is new


def test_medians_ratios_and_table() -> None:
    def runs(name: str, times: list[float], dice: float) -> tuple[str, list[dict[str, float]]]:
        return name, [{"wall": time, "cpu": time, "peak": 1.0, "dice": dice} for time in times]

    result = {
        "pair": "set/one",
        "linear": "none",
        "masked": False,
        "before": {"dice": 0.5, "inside": "fixed mask", "inside_voxels": 9},
        "runs": dict([runs("nir-fast", [5.0, 4.0, 90.0], 0.75), runs("greedy", [50.0, 40.0, 60.0], 0.7)]),
        "failed": {"elastix": "failed with status 1"},
    }
    rows = page.summary(result)
    assert rows["nir-fast"]["wall"] == 5.0
    assert rows["nir-fast"]["wall_ratio"] == pytest.approx(0.1)
    mean = page.over_pairs([rows, {"greedy": rows["greedy"]}])
    assert list(mean) == ["greedy"]  # who did not do every pair has no mean
    lines = page.table(result["before"], rows)
    assert lines[0].startswith("| method | Dice | time s |")
    assert lines[2].startswith("| before | 0.5000 | – |")
    facts = {"date": "d", "processor": "p", "cores": 2, "threads": 1, "repeats": 9, "command": "c"}
    text = page.report("set", facts | {"versions": {}, "skipped": {"greedy": "not installed"}}, [result], None)
    assert "medians over 3 turns" in text
    assert "failed with status 1" in text
    assert "Skipped: greedy" in text


def test_every_arm_of_the_study_is_a_registration() -> None:
    for arm in study.ARMS:
        given = study.options(arm, 0.5, (60, 30, 1))
        assert given["iterations"] == (30, 15, 1)  # a level has one iteration at least
        make_settings("default", **given)
    assert study.options("free lattice", 1.0, (1, 1, 1))["network"] is None


def test_a_spoilt_start_is_turned_about_the_middle(tmp_path: Path, blob: sitk.Image) -> None:
    file = tmp_path / "fixed.nii.gz"
    sitk.WriteImage(blob, str(file))
    pair = pairs.Pair("p", file, file)
    middle = np.array(blob.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in blob.GetSize()]))
    start = np.diag([1.1, 0.9, 1.0, 1.0])
    assert study.turned(pair, start, 0, 0) is start
    m = study.turned(pair, None, 12, 8)
    r = m[:3, :3]
    assert np.allclose(r @ r.T, np.eye(3))
    assert np.degrees(np.arccos((np.trace(r) - 1) / 2)) == pytest.approx(12)
    assert np.linalg.norm(r @ middle + m[:3, 3] - middle) == pytest.approx(8)
    assert np.allclose(study.turned(pair, start, 12, 8), start @ m)


def test_page_of_the_study_has_the_pairs_that_every_arm_has_had(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        output=tmp_path, name="s", threads=2, preset="default", turns=0, turned="12,8", pairs="*"
    )
    row = {"dice": 0.5, "lncc": 0.4, "folds": 0.0, "sd_log_jacobian": 0.3, "seconds": 1.0}
    rows = {"default": {"a": row, "b": row | {"dice": 0.9}}, "free lattice": {"a": row | {"dice": 0.6}}}
    scales = {"default": 1.0, "free lattice": 1.0}
    study.write(arguments, ["b", "c"], rows, scales)
    assert not (tmp_path / "s.md").exists()
    study.write(arguments, ["a", "b"], rows, scales)
    text = (tmp_path / "s.md").read_text()
    assert "Pairs: a." in text
    assert "| 0.5000 |  |" in text
    assert "| 0.6000 | 1 of 1 |" in text
    assert "--turned 12,8 --name s --turns 0" in text
    assert "0.9" in (tmp_path / "s.json").read_text()


def test_growth_is_the_exponent_of_a_power_law() -> None:
    rows = [{"edge": n, "wall": 3e-6 * (n**3) ** 0.8} for n in (96, 128, 200)]
    assert growth.slope(rows, "wall") == pytest.approx(0.8)


def test_growth_repeats_a_disturbed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stolen = iter([50.0, 20.0, 30.0, None])

    def measured(command: Any, log: Path, **_: Any) -> Any:
        log.write_text("out of memory")
        part = next(stolen, -1.0)
        (tmp_path / "out_report.json").write_text(json.dumps(part))
        return measure.Usage(int(part == -1.0), wall=1.0, cpu=1.0, peak=1.0, stolen=part)

    monkeypatch.setattr(growth, "measure", measured)
    options = argparse.Namespace(preset="default", threads=1, tries=3)
    assert growth.run(96, options, tmp_path).stolen == 20
    assert json.loads((tmp_path / "report.json").read_text()) == 20  # the report of that run
    assert growth.run(96, options, tmp_path).stolen is None  # not known: not repeated
    with pytest.raises(SystemExit, match=r"96: failed with status 1: out of memory"):
        growth.run(96, options, tmp_path)


def test_growth_keeps_the_field_of_view(tmp_path: Path) -> None:
    image = sitk.Image(32, 32, 32, sitk.sitkFloat32) + 5.0
    image.SetSpacing((1.5, 1.5, 1.5))
    image.SetOrigin((-3.0, 4.0, 5.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    growth.resample(tmp_path / "a.nii", tmp_path / "b.nii", 48)
    got = sitk.ReadImage(str(tmp_path / "b.nii"))
    assert got.GetSize() == (48, 48, 48)
    for corner in (-0.5, 47.5):
        there = got.TransformContinuousIndexToPhysicalPoint([corner] * 3)
        here = image.TransformContinuousIndexToPhysicalPoint([-0.5 if corner < 0 else 31.5] * 3)
        assert there == pytest.approx(here)
    assert float(sitk.GetArrayFromImage(got)[1:-1, 1:-1, 1:-1].min()) == 5.0


def test_a_preset_of_another_checkout_is_a_method(tmp_path: Path) -> None:
    name = f"nir-fast@{tmp_path}/before"
    assert compare.chosen_methods(f"nir-fast,{name}") == ["nir-fast", name]
    assert measure.method_named(name).title == "itk-nir fast @ before"
    assert measure.itk_nir_command(name) == [f"{tmp_path}/before/.venv/bin/itk-nir"]
    with pytest.raises(measure.RunFailed, match="make setup in that folder"):
        measure.version(name)
    for wrong in ("greedy@here", "nir-fats@here"):
        with pytest.raises(argparse.ArgumentTypeError, match="no method"):
            compare.chosen_methods(wrong)


def test_trust_scores_maps_that_are_known() -> None:
    values = np.zeros((8, 9, 10))
    values[2:5, 3:6, 4:7] = 1
    fixed, moving = image(values.astype(np.uint8), rotation()), image(values.astype(np.uint8), rotation())
    step = np.array(fixed.GetDirection()).reshape(3, 3) @ (SPACING * [1, 0, 0])
    shifted = np.broadcast_to(step, (*values.shape, 3))
    everywhere = np.ones(values.shape, bool)
    dice = trust.overlap_of(fixed, moving, (1,))
    assert dice(np.zeros_like(shifted))["Dice"] == 1
    assert dice(shifted)["Dice"] == pytest.approx(2 / 3)
    assert trust.motion(everywhere)(shifted)["moved, mean mm"] == pytest.approx(1.0)
    assert trust.error(shifted, everywhere)(shifted)["error mm"] == 0
    np.testing.assert_allclose(trust.points_of(fixed), grid_points(fixed))
    ours = grid_points(fixed)[3, 3, 3:6]
    assert trust.landmarks(fixed, ours, ours + step)(shifted)["TRE mm"] == pytest.approx(0.0, abs=1e-9)


def test_trust_page_shows_what_was_measured() -> None:
    peers = ["peers-contrasts", "peers-abdomen", "peers-spine"]
    assert trust.chosen_rows("box,peers-*") == [*peers, "box", "peers-programs", "peers-programs-head"]
    line = vars(trust.Line("case", {"Dice": [0.5, 0.75]}, "nmi", "good", 2.0, [0.1, 0.2], 0, 0.25))
    content = {"processor": "p", "cores": 2, "threads": 2}
    row = {"date": "2026-01-01", "version": "1", "lines": [line]}
    text = trust.page(content | {"rows": {"box": row}})
    assert "| case | 0.500 → 0.750 | `nmi` | good | 0.100 → 0.200 | 0 | 0.250 | 2.0 |" in text


def test_what_landmarks_tell_of_others_is_measured() -> None:
    """Much where what is left varies slowly, nothing where it is the error of each alone."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (80, 3))
    smooth = np.stack([np.sin(points @ rng.normal(0, 0.015, 3) + phase) for phase in (0, 2, 4)], 1)
    lone = rng.normal(0, 1, (80, 3))
    near, _, far = (value for _, value, _ in landmark_residuals.correlations(points, smooth))
    assert near > 0.8
    assert near > far
    _, value, error = landmark_residuals.correlations(points, lone)[1]
    assert abs(value) < 3 * error
    before = [np.linalg.norm(left, axis=1).mean() for left in (smooth, lone)]
    after = [landmark_residuals.predicted(points, left)[0] for left in (smooth, lone)]
    assert after[0] < 0.2 * before[0]
    assert after[1] > 0.97 * before[1]
    halves = dict(landmark_residuals.halves(9))
    assert np.array_equal(halves["even"], ~halves["odd"])
    assert all(abs(given.sum() - 4.5) < 1 for given in halves.values())


def test_a_step_of_every_metric_can_be_measured() -> None:
    found = step_cost.steps((10, 12, 11), 1, 1)
    assert set(found) == set(step_cost.METRICS)
    assert min(found.values()) > 0


def test_pairs_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row for each way; the first pair of each, while all is made ready, is not counted."""
    words = ["--size", "40,48", "--preset", "fast", "--linear", "none", "--pairs", "1", "--in-flight", "1x1"]
    monkeypatch.setattr(sys, "argv", ["many.py", *words, "--json", str(tmp_path / "many.json")])
    assert many.main() == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    [[run]] = json.loads((tmp_path / "many.json").read_text())["runs"]
    assert row[1].strip() == "1x1"
    assert float(row[2]) == pytest.approx(run["pairs_a_minute"], abs=0.01)
    assert 0 < run["seconds_of_a_pair"] <= 60 / run["pairs_a_minute"] + 1e-3
    assert run["failed"] == []

"""Whether the evidence supports a registration, and what is done and told where it does not."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.cli import main
from itk_nir.engine import choice, deformable
from itk_nir.engine.progress import Optimised
from itk_nir.errors import VerdictWarning
from itk_nir.geometry import Geometry
from itk_nir.images import save_image, to_sitk
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.telling import not_finite
from itk_nir.transforms.model import DisplacementField
from itk_nir.verdict import Measures, Verdict, judge, worse

SOON: dict[str, Any] = {"preset": "fast", "iterations": 6, "device": "cpu", "threads": 1}
FINE = {"little_evidence": 0.25, "folded_percent": 0.0, "inverse_error": 0.1}
START, END = Measures(0.5, 0.2, 1.0), Measures(0.8, 0.4, 0.95)


def images(p: Phantom) -> tuple[Any, Any]:
    return to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.moving_geometry)


def noise(seed: int) -> Any:
    return to_sitk(np.random.default_rng(seed).random((64, 64), np.float32), Geometry.make((64, 64)))


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (END, []),
        (START, []),
        (Measures(0.4999, 0.1999, 1.0), []),
        (Measures(0.49, 0.3, 1.0), ["the metric is 0.490, before 0.500"]),
        (Measures(0.6, 0.19, 1.0), ["mutual information is 0.190, before 0.200"]),
        # What the moving image no longer covers counts as no match.
        (Measures(0.6, 0.25, 0.7), ["the metric is 0.420, before 0.500", "mutual information is 0.175, before 0.200"]),
    ],
)
def test_worse(now: Measures, found: list[str]) -> None:
    assert worse(now, START) == found


def test_worse_where_the_metric_is_below_zero() -> None:
    before = Measures(-0.2, 0.0, 1.0)
    assert worse(Measures(-0.1, 0.0, 1.0), before) == []
    assert worse(before, before) == []
    assert len(worse(Measures(-0.3, 0.0, 1.0), before)) == 1


def test_nothing_is_worse_than_a_start_without_overlap_by_its_metric() -> None:
    nothing, little = Measures(0.0, 0.0, 0.0), Measures(0.4, 0.3, 0.02)
    for before in (nothing, little):
        assert worse(Measures(-0.1, 0.1, 0.9), before) == []
        verdict = judge(before, Measures(-0.1, 0.1, 0.9), **FINE)
        assert verdict.grade == "doubtful"
        assert "little in common" in verdict.reasons[0]
    assert worse(nothing, nothing) == []
    assert len(worse(Measures(-0.1, 0.0, 0.9), Measures(0.4, 0.3, 0.06))) == 2
    assert worse(Measures(-0.1, 0.001, 0.9), little) == ["mutual information is 0.001, before 0.006"]


def test_good() -> None:
    verdict = judge(START, END, **FINE)
    assert verdict == Verdict("good")
    assert str(verdict) == "good"
    assert judge(START, END, little_evidence=0.25, folded_percent=None, inverse_error=None).grade == "good"


@pytest.mark.parametrize(
    ("end", "changes", "reason"),
    [
        (END, {"little_evidence": 0.9}, "little in common (metric 0.80, little evidence below 0.90)"),
        (Measures(0.8, 0.4, 0.3), {}, "covers 30 % of what counts"),
        (END, {"folded_percent": 0.2}, "0.20 % of the voxels are folded"),
        (END, {"inverse_error": 0.6}, "the inverse is 0.60 voxels off"),
        (END, {"doubts": ("the deformation was given up",)}, "the deformation was given up"),
    ],
)
def test_doubtful(end: Measures, changes: dict[str, Any], reason: str) -> None:
    start = Measures(0.1, 0.05, 1.0)
    verdict = judge(start, end, **{**FINE, **changes})
    assert verdict.grade == "doubtful"
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]
    assert str(verdict) == f"doubtful ({verdict.reasons[0]})"


def test_images_that_tell_nothing_of_each_other() -> None:
    verdict = judge(Measures(0.3, 0.001, 1.0), Measures(0.4, 0.004, 1.0), **FINE)
    assert verdict.grade == "doubtful"
    assert "tell next to nothing of each other" in verdict.reasons[0]


def test_what_is_not_finite_is_a_doubt() -> None:
    evidence = {"start": START, "linear": START, "end": replace(END, metric=float("nan"))}
    [doubt] = not_finite(evidence, None)
    assert doubt.startswith("the metric has no finite value")
    assert judge(START, evidence["end"], **FINE, doubts=(doubt,)).grade == "doubtful"
    evidence = {"start": replace(START, mutual_information=float("inf")), "end": END}
    assert not_finite(evidence, None)[0].startswith("mutual information has no finite value")
    assert not_finite({"start": START, "end": END}, None) == []


def test_worse_comes_before_every_doubt() -> None:
    verdict = judge(END, START, **{**FINE, "folded_percent": 5.0})
    assert verdict.grade == "worse than the start"
    assert [r.split(" is ")[0] for r in verdict.reasons] == ["the metric", "mutual information"]


# --- in a registration -----------------------------------------------------------------------------------------------


def test_a_good_registration(phantom_2d: Phantom) -> None:
    report = itk_nir.register(*images(phantom_2d), **SOON).report
    assert report.verdict == Verdict("good")
    assert report.warnings == ()
    evidence = report.evidence
    assert list(evidence) == ["start", "linear", "end"]
    assert evidence["start"].metric < evidence["linear"].metric < evidence["end"].metric
    assert evidence["start"].mutual_information < evidence["end"].mutual_information
    assert 0.9 < evidence["end"].overlap <= 1


@pytest.mark.parametrize("metric", ["lncc", "nmi"])
def test_images_that_have_nothing_in_common(metric: str, tmp_path: Path) -> None:
    with pytest.warns(VerdictWarning, match="moving image onto fixed image: .*check the result") as told:
        result = itk_nir.register(noise(0), noise(1), **SOON, metric=metric)
    verdict = result.report.verdict
    assert verdict is not None
    assert verdict.grade != "good"
    assert verdict.reasons
    assert [str(w.message) for w in told if w.category is VerdictWarning] == [result.report.warnings[-1]]
    written = json.loads(result.save(tmp_path / "a_")["report"].read_text())["metrics"]
    assert written["verdict"] == {"grade": verdict.grade, "reasons": list(verdict.reasons)}
    assert set(written["evidence"]) == {"start", "linear", "end"}
    assert set(written["evidence"]["end"]) == {f.name for f in fields(Measures)}
    assert written["metric"] == metric


def spoilt(done: Optimised) -> Optimised:
    """The field with a shift of 12 mm added."""
    velocity = done.field.fine
    velocity.control_points.data += 12.0
    return replace(done, field=replace(done.field))


@pytest.mark.parametrize("metric", ["lncc", "ncc", "mse"])
def test_a_metric_for_one_contrast_is_doubted_by_name_where_there_are_two(metric: str) -> None:
    """They are torn until they look alike, and lie farther off than at the start."""
    phantom = brain_phantom(2, (128, 154), seed=1)
    fixed, moving = images(phantom)
    alike = itk_nir.register(fixed, moving, metric=metric, **SOON)
    assert "one contrast" not in str(alike.report.verdict)
    x = phantom.moving / 200
    other = 200 * np.sin(np.clip(x, 0, 1) * np.pi * 1.3) ** 2 * (x > 0.04) + 20 * x
    unlike = to_sitk(other.astype(np.float32), phantom.moving_geometry)
    with pytest.warns(VerdictWarning, match="for images of one contrast, and these look like unlike contrasts"):
        itk_nir.register(fixed, unlike, metric=metric, **SOON)


def test_deformation_that_makes_it_worse_is_given_up(phantom_2d: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    optimise = deformable.optimise
    monkeypatch.setattr(deformable, "optimise", lambda *a, **k: spoilt(optimise(*a, **k)))
    with pytest.warns(VerdictWarning, match="the deformation was given up: with it, the metric is"):
        result = itk_nir.register(*images(phantom_2d), **SOON)
    report = result.report
    assert report.verdict is not None
    assert report.verdict.grade == "doubtful"
    field = result.mapping.transforms[0]
    assert isinstance(field, DisplacementField)
    assert not field.vectors.any()
    assert report.evidence["end"] == report.evidence["linear"]
    assert report.similarity == report.similarity_start
    points = phantom_2d.geometry.grid()[::9, ::9].reshape(-1, 2)
    matrix = np.array(report.affine_matrix)
    np.testing.assert_allclose(result.transform_points(points), points @ matrix[:2, :2].T + matrix[:2, 2], atol=1e-6)


def turned_over(image: np.ndarray) -> np.ndarray:
    """Another contrast: what is bright in the middle of the range is dark at both of its ends."""
    return (150 - np.abs(image - 90)).astype(np.float32)


def test_deformation_of_unlike_contrasts_that_gains_next_to_nothing_is_given_up(
    phantom_2d: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = phantom_2d
    pairs = {
        "unlike": (to_sitk(p.fixed, p.geometry), to_sitk(turned_over(p.moving), p.moving_geometry)),
        "like": images(p),
    }
    remark = "a deformation would have gained next to nothing: the result is the linear map alone"
    for name, given_up in (("unlike", False), ("unlike", True), ("like", True)):
        if given_up:
            monkeypatch.setattr(choice, "CONTRAST_GAIN", 10.0)
            monkeypatch.setattr(choice, "CONTRAST_GAIN_FINEST", 10.0)
        report = itk_nir.register(*pairs[name], **SOON, linear="none").report
        assert report.metric == ("lncc" if name == "like" else choice.UNLIKE)
        assert report.verdict is not None
        assert report.verdict.grade == "good"
        gone = given_up and name == "unlike"
        assert report.verdict.reasons == ((remark,) if gone else ())
        assert (report.log_jacobian_sd == 0) == gone


def test_level_that_gives_its_start_back_is_reported(phantom_2d: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    optimise = deformable.optimise
    monkeypatch.setattr(deformable, "optimise", lambda *a, **k: replace(optimise(*a, **k), returned_levels=(1,)))
    report = itk_nir.register(*images(phantom_2d), **SOON).report
    assert report.returned_levels == (1,)
    assert report.as_dict()["returned_levels"] == [1]


def test_cancelled_registration_is_not_warned_of() -> None:
    result = itk_nir.register(noise(0), noise(1), **SOON, callback=lambda _: True)
    assert result.report.stop == "cancelled"


def test_auto_that_picks_lncc_is_lncc_to_the_bit(phantom_2d: Phantom) -> None:
    auto, plain = (itk_nir.register(*images(phantom_2d), **SOON, metric=m) for m in ("auto", "lncc"))
    assert auto.report.metric == "lncc"
    assert auto.report.metric_reason.startswith("one contrast: ")
    assert plain.report.metric_reason == ""
    np.testing.assert_array_equal(auto.warped_array, plain.warped_array)
    assert auto.report.trace == plain.report.trace
    assert auto.report.affine_matrix == plain.report.affine_matrix


# --- on the command line ---------------------------------------------------------------------------------------------


def command(fixed: Path, moving: Path, prefix: Path, *more: str) -> list[str]:
    files = ["--fixed", str(fixed), "--moving", str(moving), "--output", str(prefix)]
    return ["register", *files, "--preset", "fast", "--iterations", "6", "--device", "cpu", "--threads", "1", *more]


@pytest.mark.filterwarnings("default::itk_nir.errors.VerdictWarning")
@pytest.mark.parametrize(("more", "status"), [((), 0), (("--strict",), 3)])
def test_strict_where_there_is_nothing_in_common(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], status: int
) -> None:
    files = [tmp_path / "f.nii.gz", tmp_path / "m.nii.gz"]
    for seed, file in enumerate(files):
        save_image(np.random.default_rng(seed).random((64, 64), np.float32), Geometry.make((64, 64)), file)
    assert main(command(files[0], files[1], tmp_path / "a_", *more)) == status
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    grade = json.loads((tmp_path / "a_report.json").read_text())["metrics"]["verdict"]["grade"]
    assert grade != "good"
    assert grade in line
    assert (tmp_path / "a_Composite.h5").exists()


def test_strict_where_all_is_well(phantom_2d: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "f.nii.gz", tmp_path / "m.nii.gz"]
    for file, array in zip(files, (phantom_2d.fixed, phantom_2d.moving), strict=True):
        save_image(array, phantom_2d.geometry, file)
    assert main(command(files[0], files[1], tmp_path / "a_", "--strict")) == 0
    assert "good" in capsys.readouterr().out


def test_empty_surroundings_that_the_moving_image_lacks_are_no_part_that_is_missing() -> None:
    start = Measures(0.1, 0.05, 1.0)
    whole = Measures(0.8, 0.4, 0.15, object_overlap=0.99)
    assert judge(start, replace(whole, metric=8.0, mutual_information=4.0), **FINE).grade == "good"
    part = replace(whole, metric=8.0, mutual_information=4.0, object_overlap=0.3)
    assert "covers 15 % of what counts" in str(judge(start, part, **FINE))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the overlap, and of a start that was kept
def test_the_object_of_a_large_image_is_covered_by_a_tight_one() -> None:
    p = brain_phantom(2, (96, 112))
    wide = np.pad(p.fixed, 120)
    grid = Geometry.make(wide.shape[::-1], p.geometry.spacing, p.geometry.origin - 120 * np.array(p.geometry.spacing))
    result = itk_nir.register((wide, grid), (p.moving, p.geometry), preset="fast", threads=1)
    end = result.report.evidence["end"]
    assert end.overlap < 0.2
    assert end.object_overlap == pytest.approx(1, abs=0.05)
    assert result.report.verdict.grade == "good"


def test_what_a_turn_takes_out_of_the_image_is_no_sign_of_a_wrong_map() -> None:
    """Over the positions that both maps have the right one is better, which decides unless it lost half of them."""
    start, end = Measures(0.82, 0.20, 1.0), Measures(0.99, 0.28, 0.8)
    told: dict[str, Any] = {"little_evidence": 0.1, "folded_percent": None, "inverse_error": None}
    assert judge(start, end, **told).grade == "worse than the start"
    shared = replace(start, metric=0.85, overlap=0.9), replace(end, overlap=0.7)
    assert judge(start, end, **told, shared=shared).grade == "good"
    assert judge(start, end, **told, shared=shared[::-1]).grade == "worse than the start"
    few = replace(end, mutual_information=0.24)
    assert judge(start, few, **told, shared=shared).grade == "worse than the start", "both measures are worse"
    assert judge(start, replace(end, overlap=0.45), **told, shared=shared).grade == "worse than the start"

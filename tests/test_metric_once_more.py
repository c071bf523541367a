"""Images that look like one contrast, and do not become alike: the registration begins anew, as of unlike ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir import run
from itk_nir.engine import choice
from itk_nir.engine.linear import BY_WHOLE_IMAGES, LinearResult, optimise_linear
from itk_nir.engine.linear_search import Start, find_start
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom, brain_phantom

CALL: dict[str, Any] = {
    "preset": itk_nir.make_settings("fast", iterations=(20, 2, 1), network=None, search="never"),
    "linear": "translation",
    "threads": 1,
}


@pytest.fixture(scope="module")
def images() -> tuple[Any, Any]:
    p: Phantom = brain_phantom(2, (56, 64))
    return to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.moving_geometry)


def demanding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever alike enough."""
    monkeypatch.setattr(choice, "LEAST_ALIKE", 1.5)


def test_result_is_that_of_the_metric_for_unlike_contrasts(
    images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    demanding(monkeypatch)
    fractions: list[float] = []
    found = itk_nir.register(*images, **CALL, callback=lambda p: fractions.append(p.fraction))
    report = found.report
    assert report.metric == choice.UNLIKE
    assert "first level of the deformation by lncc ended at 0." in report.metric_reason
    assert fractions == sorted(fractions)
    assert max(fractions) == 1
    assert sum(report.seconds.values()) == pytest.approx(2 * report.seconds["total"], rel=0.01)
    same = itk_nir.register(
        *images, **CALL, metric=choice.UNLIKE, linear_metric=choice.UNLIKE_LINEAR, callback=lambda p: False,
        smoothness=report.settings["deformable"]["smoothness"],
    )  # fmt: skip
    np.testing.assert_array_equal(found.warped_array, same.warped_array)
    assert found.report.trace == same.report.trace


def test_images_that_become_alike_and_those_that_were_given_no_chance_keep_their_metric(
    images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = itk_nir.register(*images, **CALL)
    assert usual.report.metric == choice.SAME
    demanding(monkeypatch)
    few = itk_nir.register(*images, **CALL, iterations=(19, 2, 1))
    named = itk_nir.register(*images, **CALL, metric="lncc")
    assert few.report.metric == named.report.metric == choice.SAME
    np.testing.assert_array_equal(usual.warped_array, named.warped_array)


@pytest.mark.parametrize("after", [10, 30])
def test_one_that_was_stopped_before_or_behind_that_is_taken_up(
    images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    demanding(monkeypatch)
    whole = itk_nir.register(*images, **CALL, callback=lambda p: False)
    calls = 0

    def stop(progress: Any) -> bool:
        nonlocal calls
        calls += progress.stage == "deformable"
        return calls > after

    kept: dict[str, Any] = {"checkpoint": tmp_path, "checkpoint_seconds": 0.0}
    stopped = itk_nir.register(*images, **CALL, **kept, callback=stop)
    assert stopped.report.stop == "cancelled"
    again = itk_nir.register(*images, **CALL, **kept, callback=lambda p: False)
    np.testing.assert_array_equal(again.warped_array, whole.warped_array)
    assert again.report.metric_reason == whole.report.metric_reason


def test_what_the_linear_stage_left_in_doubt_is_told_by_a_run_that_is_taken_up_behind_it(
    images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def doubtful(*a: Any, **k: Any) -> Start:
        return replace(find_start(*a, **k), doubts=("what speaks against the start",))

    def by_whole_images(*a: Any, **k: Any) -> LinearResult:
        return replace(optimise_linear(*a, **k), by_whole_images=True, doubts=())

    kept: dict[str, Any] = {
        "checkpoint": tmp_path,
        "checkpoint_seconds": 0.0,
        "callback": lambda p: p.stage == "deformable",
    }
    monkeypatch.setattr(run, "start_in_even_light", doubtful)
    with pytest.warns(itk_nir.VerdictWarning, match="what speaks against the start"):
        itk_nir.register(*images, **CALL, **kept)
    monkeypatch.undo()
    with pytest.warns(itk_nir.VerdictWarning, match="what speaks against the start"):
        itk_nir.register(*images, **CALL, **kept | {"callback": None})
    # It was no start of what the whole images led to.
    monkeypatch.setattr(run, "start_in_even_light", doubtful)
    monkeypatch.setattr(run, "optimise_linear", by_whole_images)
    kept["checkpoint"] = tmp_path / "whole"
    itk_nir.register(*images, **CALL, **kept)
    monkeypatch.undo()
    verdict = itk_nir.register(*images, **CALL, **kept | {"callback": None}).report.verdict
    assert verdict is not None
    assert verdict.grade == "good"
    assert BY_WHOLE_IMAGES in str(verdict)


@pytest.mark.parametrize("linear", ["translation", "none"])
def test_a_deformation_between_unlike_contrasts_is_as_stiff_as_the_aligned_images_call_for(
    images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, linear: str
) -> None:
    monkeypatch.setattr(run, "choose_metric", lambda *_: choice.Choice(choice.UNLIKE, choice.UNLIKE_LINEAR, "unlike"))
    monkeypatch.setattr(run, "choice_in_even_light", lambda _, found, __: (found, False))
    monkeypatch.setattr(run, "once_aligned", lambda found, *_: replace(found, alike=2 * choice.ALIKE))
    report = itk_nir.register(*images, **CALL | {"linear": linear}).report
    stiff = linear != "none"
    assert ("100 times as stiff" in report.metric_reason) == stiff
    ratio = report.settings["deformable"]["smoothness"][0] / CALL["preset"].deformable.smoothness[0]
    assert ratio == pytest.approx(choice.STIFFEST if stiff else 1.0)


@pytest.mark.parametrize("deformable", [True, False])
def test_one_contrast_that_a_coarse_start_hid_is_registered_as_one_contrast(
    images: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, deformable: bool
) -> None:
    """With the bits of the metric that the aligned images call for, and nothing told of what was tried before."""
    call, fractions = CALL | {"linear": "affine", "deformable": deformable}, list[float]()
    named = itk_nir.register(*images, **call, metric="lncc", callback=lambda _: False)
    hidden = choice.Choice(choice.UNLIKE, choice.UNLIKE_LINEAR, "unlike")
    monkeypatch.setattr(run, "choose_metric", lambda *_: hidden)
    monkeypatch.setattr(run, "choice_in_even_light", lambda _, found, __: (found, False))
    found = itk_nir.register(*images, **call, callback=lambda p: fractions.append(p.fraction))
    assert found.report.metric == choice.SAME
    assert found.report.metric_reason.startswith("one contrast: ")
    assert found.report.warnings == named.report.warnings
    np.testing.assert_array_equal(found.report.affine_matrix, named.report.affine_matrix)
    np.testing.assert_array_equal(found.warped_array, named.warped_array)
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(("share", "gain", "kept"), [(0.03, 0.25, True), (0.03, 0.135, False), (0.0, 0.25, False)])
def test_what_the_finest_level_gains_counts_between_unlike_contrasts(share: float, gain: float, kept: bool) -> None:
    """What is brought together may be too small for the grid on which the evidence is taken."""
    for start in (0.1, -0.1):
        assert choice.gained_in_detail(share, start, start + gain * abs(start)) == kept
    assert not choice.gained_in_detail(share, None, None)


def test_descriptors_of_a_sum_are_left_to_the_deformation(images: tuple[Any, Any]) -> None:
    """As of what ``metric="auto"`` picks: they would hold the linear map where edges happen to meet."""
    call = CALL | {"linear": "affine", "deformable": False}
    ours, without, named = (
        itk_nir.register(*images, **call, metric="0.6*nmi + 0.2*ncc + 0.2*mind", linear_metric=metric).report
        for metric in ("same", "0.6*nmi + 0.2*ncc", "0.6*nmi + 0.2*ncc + 0.2*mind")
    )
    np.testing.assert_array_equal(ours.affine_matrix, without.affine_matrix)
    assert not np.array_equal(ours.affine_matrix, named.affine_matrix)
    alone, same = (
        itk_nir.register(*images, **call, metric="mind", linear_metric=metric).report for metric in ("same", "mind")
    )
    np.testing.assert_array_equal(alone.affine_matrix, same.affine_matrix)

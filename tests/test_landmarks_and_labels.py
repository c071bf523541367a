"""What a user knows of a pair, given to `register`: landmarks and labels, with the images and alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.cli import main
from itk_nir.errors import InputError, OptionError
from itk_nir.images import save_image, to_sitk
from itk_nir.phantom import Phantom, brain_phantom

QUICK: dict[str, Any] = {"preset": "fast", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """Weak texture and a large motion."""
    return brain_phantom(2, (72, 84), seed=2, deformation=14.0, noise=12.0)


def images(p: Phantom) -> tuple[Any, Any]:
    return to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.moving_geometry)


def labels(p: Phantom) -> dict[str, Any]:
    ours, theirs = to_sitk(p.fixed_labels, p.geometry), to_sitk(p.moving_labels, p.moving_geometry)
    return {"fixed_labels": ours, "moving_labels": theirs}


def points(p: Phantom, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    inside = np.argwhere(p.fixed_labels > 0)
    at = inside[np.random.default_rng(2).choice(len(inside), count, replace=False)]
    ours = p.geometry.index_to_physical(at[:, ::-1].astype(float))
    return ours, ours + p.displacement[tuple(at.T)]


def landmarks(p: Phantom, count: int = 10) -> dict[str, Any]:
    ours, theirs = points(p, count)
    return {"fixed_landmarks": ours, "moving_landmarks": theirs}


def error(p: Phantom, result: itk_nir.RegistrationResult) -> float:
    """Mean distance from the true displacement inside the head, mm."""
    u = result.mapping.displacement_on(p.geometry).vectors
    return float(np.linalg.norm(u - p.displacement, axis=-1)[p.fixed_labels > 0].mean())


@pytest.fixture(scope="module")
def without(phantom: Phantom) -> float:
    return error(phantom, itk_nir.register(*images(phantom), **QUICK))


def test_given_half_of_the_landmarks_the_others_come_nearer(phantom: Phantom) -> None:
    ours, theirs = points(phantom, 40)
    half = slice(None, None, 2), slice(1, None, 2)
    given = {"fixed_landmarks": ours[half[0]], "moving_landmarks": theirs[half[0]]}
    apart = []
    for known in ({}, given):
        result = itk_nir.register(*images(phantom), **QUICK, **known)
        apart.append(np.linalg.norm(result.mapping.map(ours[half[1]]) - theirs[half[1]], axis=1).mean())
    assert apart[1] < 0.9 * apart[0]
    told = result.report.landmarks
    assert told is not None
    assert np.mean(told.after) < 0.2 * np.mean(told.before)
    assert all(told.believed)
    np.testing.assert_allclose(told.before, np.linalg.norm(ours[half[0]] - theirs[half[0]], axis=1))


def test_two_wrong_pairs_of_ten_do_no_harm(phantom: Phantom, without: float) -> None:
    ours, theirs = points(phantom)
    theirs[[2, 8]] += [[24.0, 18.0], [-30.0, 0.0]]
    with pytest.warns(UserWarning, match="the pairs in row .*3, .*9 of 10 contradict the others"):
        result = itk_nir.register(*images(phantom), **QUICK, fixed_landmarks=ours, moving_landmarks=theirs)
    assert error(phantom, result) < without + 0.1
    assert result.report.landmarks is not None
    assert {2, 8} <= set(np.flatnonzero(~np.array(result.report.landmarks.believed)).tolist())


def test_labels_raise_the_overlap(phantom: Phantom, without: float) -> None:
    plain = itk_nir.register(*images(phantom), **QUICK, **labels(phantom), label_weight=0)
    result = itk_nir.register(*images(phantom), **QUICK, **labels(phantom))
    assert list(result.report.labels) == sorted(set(np.unique(phantom.fixed_labels).tolist()) - {0})
    before, after = np.mean(list(result.report.labels.values()), axis=0)
    assert after > before + 0.1
    assert after > np.mean([overlap[1] for overlap in plain.report.labels.values()]) + 0.02
    assert error(phantom, result) < without


def test_only_the_labels_that_are_named_count(phantom: Phantom) -> None:
    result = itk_nir.register(*images(phantom), **QUICK, **labels(phantom), labels=(1, 2))
    assert list(result.report.labels) == [1, 2]


def test_alone_by_landmarks(phantom: Phantom) -> None:
    result = itk_nir.register(*images(phantom), **QUICK, **landmarks(phantom), metric="none")
    told = result.report.landmarks
    assert told is not None
    assert np.mean(told.after) < 0.1 * np.mean(told.before)
    assert error(phantom, result) < 0.8 * np.linalg.norm(phantom.displacement, axis=-1)[phantom.fixed_labels > 0].mean()
    assert result.report.verdict is not None
    assert result.report.verdict.grade == "good"
    assert result.report.warnings == ()


@pytest.mark.parametrize("options", [{}, {"deformable": False}, {"initial_transform": sitk.TranslationTransform(2)}])
@pytest.mark.parametrize("times", [1, 6])
def test_one_landmark_alone_turns_nothing(phantom: Phantom, times: int, options: dict[str, Any]) -> None:
    """Given once or several times: nothing else is known, and where the images lie is of no account."""
    ours, theirs = (np.repeat(p, times, 0) for p in points(phantom, 1))
    theirs += np.array([9.0, -4.0])
    known = {"fixed_landmarks": ours, "moving_landmarks": theirs}
    result = itk_nir.register(*images(phantom), **QUICK, **known, metric="none", **options)
    np.testing.assert_allclose(result.report.affine_matrix[0][:2] + result.report.affine_matrix[1][:2], [1, 0, 0, 1])
    at = phantom.geometry.grid().reshape(-1, 2)[::99]
    there = theirs[0] - ours[0]
    np.testing.assert_allclose(result.mapping.map(at) - at, np.broadcast_to(there, at.shape), atol=1e-3)


def test_alone_by_labels_from_far_away(phantom: Phantom) -> None:
    """The moving side is shifted by 40 mm: the linear stage goes by labels too, and images of noise say nothing."""
    noise = np.random.default_rng(0).random(phantom.fixed.shape, np.float32)
    fixed, moving = to_sitk(noise, phantom.geometry), to_sitk(noise[::-1].copy(), phantom.moving_geometry)
    maps = labels(phantom)
    for image in (moving, maps["moving_labels"]):
        image.SetOrigin([x + 40 for x in image.GetOrigin()])
    result = itk_nir.register(fixed, moving, **QUICK, **maps, metric="none")
    before, after = np.mean(list(result.report.labels.values()), axis=0)
    assert before < 0.3
    assert after > 0.8
    assert result.report.verdict is not None
    assert result.report.verdict.grade == "good"


def test_linear_maps_go_by_landmarks(phantom: Phantom) -> None:
    ours, _ = points(phantom)
    turn = np.deg2rad(70)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    theirs = (ours - ours.mean(0)) @ matrix.T * 0.9 + ours.mean(0)
    result = itk_nir.register(
        *images(phantom), **QUICK, fixed_landmarks=ours, moving_landmarks=theirs, linear="rigid", deformable=False,
        metric="none",
    )  # fmt: skip
    found = np.array(result.report.affine_matrix)
    np.testing.assert_allclose(found[:2, :2], matrix, atol=0.01)


def test_another_unit_of_length_gives_the_same_map(phantom: Phantom) -> None:
    maps = []
    for unit in (1.0, 1000.0):
        pair, known = images(phantom), labels(phantom)
        for image in (*pair, *known.values()):
            image.SetSpacing([unit * s for s in image.GetSpacing()])
            image.SetOrigin([unit * s for s in image.GetOrigin()])
        known |= {name: unit * p for name, p in landmarks(phantom).items()}
        result = itk_nir.register(*pair, **QUICK, **known, linear="none", iterations=(8, 4, 2))
        maps.append(result.mapping.displacement_on(result.fixed.geometry).vectors / unit)
    assert np.abs(maps[0] - maps[1]).mean() < 0.02


@pytest.mark.parametrize("nonlinear", [False, True])
def test_an_initial_transform_is_taken_into_account(phantom: Phantom, nonlinear: bool) -> None:
    """Half of the true deformation, or a shift, comes first; the landmarks ask for what is left."""
    start: Any = sitk.TranslationTransform(2, (5.0, -3.0))
    if nonlinear:
        half = sitk.GetImageFromArray(phantom.displacement.astype(np.float64) / 2, isVector=True)
        half.CopyInformation(images(phantom)[0])
        start = sitk.DisplacementFieldTransform(half)
    result = itk_nir.register(
        *images(phantom), **QUICK, **landmarks(phantom), **labels(phantom), initial_transform=start, linear="none"
    )
    assert result.report.landmarks is not None
    assert np.mean(result.report.landmarks.after) < 1
    assert np.mean([after for _, after in result.report.labels.values()]) > 0.85


def test_start_of_simpleitk_s_initialiser_for_landmarks(phantom: Phantom) -> None:
    ours, theirs = points(phantom)
    start = sitk.LandmarkBasedTransformInitializer(
        sitk.AffineTransform(2), ours.ravel().tolist(), theirs.ravel().tolist()
    )
    result = itk_nir.register(*images(phantom), **QUICK, initial_transform=start, deformable=False, linear="rigid")
    again = itk_nir.register(*images(phantom), **QUICK, initial_transform=start, **landmarks(phantom))
    assert np.isfinite(result.report.affine_matrix).all()
    assert again.report.landmarks is not None
    fitted = [np.linalg.norm(np.array(start.TransformPoint(p.tolist())) - q) for p, q in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(again.report.landmarks.before, fitted, atol=1e-6)
    assert np.mean(again.report.landmarks.after) < 0.5 * np.mean(fitted)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"fixed_landmarks": [[0, 0]]}, OptionError, "fixed_landmarks is given but not moving_landmarks"),
        ({"moving_labels": "x.nii"}, OptionError, "moving_labels is given but not fixed_labels"),
        ({"landmark_weights": [1]}, OptionError, "landmark_weights is given but not fixed_landmarks"),
        ({"fixed_landmarks": [[0, 0]], "moving_landmarks": [[0, 0], [1, 1]]}, InputError, "has 1 points and .* 2"),
        ({"fixed_landmarks": [[0, 0, 0]], "moving_landmarks": [[0, 0]]}, InputError, r"shape \(1, 3\), but .* is 2D"),
        ({"fixed_landmarks": [[0, 0]], "moving_landmarks": [[0, 900]]}, InputError, r"1 of 1 .*outside moving.*row 1"),
        ({"fixed_landmarks": [], "moving_landmarks": []}, InputError, r"fixed_landmarks: has shape \(0,\)"),
        ({"fixed_landmarks": np.zeros((0, 2)), "moving_landmarks": [[0, 0]]}, InputError, "holds no points"),
        ({"fixed_landmarks": [[0, np.nan]], "moving_landmarks": [[0, 0]]}, InputError, "NaN"),
        ({"fixed_landmarks": [["1", "2"]], "moving_landmarks": [[0, 0]]}, InputError, "is an .N, 2. array of LPS mm"),
        ({"fixed_landmarks": [[0, 0]], "moving_landmarks": [[1j, 0]]}, InputError, "is an .N, 2. array of LPS mm"),
        ({"fixed_landmarks": [[10**400, 0]], "moving_landmarks": [[0, 0]]}, InputError, "is an .N, 2. array of LPS mm"),
        (
            {"fixed_landmarks": [[0, 0]], "moving_landmarks": [[0, 0]], "landmark_weights": ["1"]},
            InputError,
            "landmark_weights: are numbers",
        ),
        ({"fixed_landmarks": "no.csv", "moving_landmarks": [[0, 0]]}, InputError, "no such file"),
        (
            {"fixed_landmarks": [[0, 0]], "moving_landmarks": [[0, 0]], "landmark_weights": [0]},
            InputError,
            "not all 0",
        ),
        (
            {"fixed_landmarks": [[0, 0]], "moving_landmarks": [[0, 0]], "landmark_weights": [1, 2]},
            InputError,
            "there are 1 landmarks",
        ),
        ({"metric": "none"}, OptionError, "^metric 'none' .*there are neither"),
        ({"linear_metric": "none"}, OptionError, "linear_metric 'none' .*there are neither"),
        ({"linear_metric": "none", "deformable": False}, OptionError, "linear_metric 'none' .*there are neither"),
        ({"labels": (3,)}, OptionError, "no fixed_labels"),
        (
            {"preset": "paper", "fixed_landmarks": [[0, 0]], "moving_landmarks": [[0, 0]]},
            OptionError,
            "preset 'paper' .* cannot honour fixed_landmarks, moving_landmarks",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(phantom: Phantom, given: dict[str, Any], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        itk_nir.register(*images(phantom), **(QUICK | given))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda a: a + 100 * (a > 0), {}, "no value in common: fixed labels has 1"),
        (lambda a: a + 0.5, {}, "not whole numbers"),
        (lambda a: a.astype(np.int16) - 3, {}, "negative value -3"),
        (lambda a: a, {"labels": (1, 77)}, "has no label 77; it has 1"),
    ],
)
def test_label_maps_that_cannot_be_used(phantom: Phantom, change: Any, options: dict[str, Any], words: str) -> None:
    maps = labels(phantom)
    maps["moving_labels"] = to_sitk(change(phantom.moving_labels), phantom.moving_geometry)
    with pytest.raises(InputError, match=words):
        itk_nir.register(*images(phantom), **QUICK, **maps, **options)


def test_command_line(phantom: Phantom, tmp_path: Path) -> None:
    for name, array in (("f", phantom.fixed), ("m", phantom.moving)):
        save_image(array, phantom.geometry, tmp_path / f"{name}.nii.gz")
    for name, array in (("fl", phantom.fixed_labels), ("ml", phantom.moving_labels)):
        save_image(array, phantom.geometry, tmp_path / f"{name}.nii.gz")
    for name, rows in zip("fm", points(phantom, 4), strict=True):
        (tmp_path / f"{name}.csv").write_text("x,y\n" + "\n".join(f"{x:.4f},{y:.4f}" for x, y in rows) + "\n")
    t = str(tmp_path)
    words = ["register", "--fixed", f"{t}/f.nii.gz", "--moving", f"{t}/m.nii.gz", "--output", f"{t}/o_"]
    words += ["--fixed-landmarks", f"{t}/f.csv", "--moving-landmarks", f"{t}/m.csv", "--landmark-weights", "1,1,0.5,1"]
    words += ["--fixed-labels", f"{t}/fl.nii.gz", "--moving-labels", f"{t}/ml.nii.gz", "--labels", "1,2"]
    words += ["--metric", "none", "--label-weight", "0.5", "--preset", "fast", "--threads", "1"]
    assert main(words) == 0
    report = json.loads((tmp_path / "o_report.json").read_text())["metrics"]
    assert report["metric"] == "none"
    assert list(report["labels"]) == ["1", "2"]
    assert np.mean(report["landmarks"]["after"]) < np.mean(report["landmarks"]["before"])
    assert report["settings"]["deformable"]["label_weight"] == 0.5

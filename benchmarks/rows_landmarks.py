"""Rows of `trust.py`: what landmarks and labels that are given do for what is not given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Line, array, each, landmarks, overlap_of, phantom, phantom_case, points_of, read
from score import read_points

#: Labels of FreeSurfer that are scored; every second one is given.
BRAIN = (
    2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 31, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60, 63,
)  # fmt: skip


def _half(case: Case, ours: np.ndarray, theirs: np.ndarray, given: np.ndarray) -> Iterator[Line]:
    """Without and with some of the landmarks; the others are scored."""
    case = replace(case, score=landmarks(read(case.fixed), ours[~given], theirs[~given]))
    known = {"fixed_landmarks": ours[given], "moving_landmarks": theirs[given]}
    for what, more in (("images alone", {}), (f"{given.sum()} of {len(given)} landmarks given", known)):
        yield from each([replace(case, what=f"{case.what}{what}", options=case.options | more)])


def given_landmarks(data: Path) -> Iterator[Line]:
    """Two CT scans of a chest with a mask, every second landmark given: distance of the others. Phantom, ten pairs."""
    folder = data / "lung_ct"
    ours, theirs = (read_points(folder / f"{side}_landmarks.csv", 3)[1] for side in ("fixed", "moving"))
    given = np.arange(len(ours)) % 2 == 0
    mask: dict[str, Any] = {"fixed_mask": folder / "fixed_mask.nii.gz"}
    for what, options in (("", mask), ("no linear stage, ", mask | {"linear": "none"})):
        case = Case(what, folder / "fixed.nii.gz", folder / "moving.nii.gz", lambda u: {}, options, linear=not what)
        yield from _half(case, ours, theirs, given)
    made, fixed, _ = phantom()
    inside = np.argwhere(made.fixed_labels > 0)
    at = inside[np.random.default_rng(0).choice(len(inside), 10, replace=False)]
    p = points_of(fixed)[tuple(at.T)]
    q = p + made.displacement[tuple(at.T)]
    wrong = q.copy()
    wrong[[2, 7]] += [[18.0, -24.0, 0.0], [-24.0, 0.0, 18.0]]
    yield from each([phantom_case("phantom")])
    for what, there in (("ten pairs", q), ("ten pairs, two of them wrong by 30 mm", wrong)):
        yield from each([phantom_case(f"phantom, {what}", fixed_landmarks=p, moving_landmarks=there)])


def hands(data: Path) -> Iterator[Line]:
    """Two radiographs of hands, 128², 3 of 7 landmarks given: distance of the other four."""
    folder = data / "hands_xray"
    ours, theirs = (read_points(folder / f"{side}_landmarks.csv", 2)[1] for side in ("fixed", "moving"))
    case = Case("", folder / "fixed.mha", folder / "moving.mha", lambda u: {}, {}, linear=True)
    yield from _half(case, ours, theirs, np.arange(len(ours)) % 3 == 0)


def given_labels(data: Path) -> Iterator[Line]:
    """Brains with every second label given: Dice of the others."""
    folder = data / "brain_oasis"
    maps = [folder / f"{side}_seg.nii.gz" for side in ("fixed", "moving")]
    yield from _labels("two people, ", folder / "fixed_t1.nii.gz", folder / "moving_t1.nii.gz", maps, BRAIN)
    folder = data / "mouse_fvb"
    maps = [folder / f"fvb{k}_seg.nii.gz" for k in (1, 2)]
    both = sorted(set(np.unique(array(read(maps[0])))) & set(np.unique(array(read(maps[1])))) - {0})
    yield from _labels("two mice, ", folder / "fvb1_t1.nii.gz", folder / "fvb2_t1.nii.gz", maps, [int(v) for v in both])


def _labels(what: str, fixed: Path, moving: Path, maps: list[Path], values: Any) -> Iterator[Line]:
    given, others = tuple(values[::2]), tuple(values[1::2])
    score = overlap_of(read(maps[0]), sitk.ReadImage(str(maps[1])), others)
    known = {"fixed_labels": maps[0], "moving_labels": maps[1], "labels": given}
    for how, more in (("images alone", {}), (f"{len(given)} labels given", known)):
        yield from each([Case(what + how, fixed, moving, score, more, linear=True)])

"""Rows of `trust.py`: motion that a gradient does not find, and pairs of kinds that no other row has."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Figures, Line, array, do, each, landmarks, overlap_of, read
from score import read_points

#: With and without the search.
SEARCHES: tuple[tuple[str, dict[str, Any]], ...] = (("", {}), (", no search", {"search": "never"}))


def _searched(case: Case, told: bool = True) -> Iterator[Line]:
    for what, options in SEARCHES:
        line, _, result = do(Case(case.what + what, case.fixed, case.moving, case.score, case.options | options,
                                  case.before, case.linear))  # fmt: skip
        found = result.report.search
        line = Line(**{**vars(line), "verdict": line.verdict + (f"; search: {found}" if told and found else "")})
        yield line


def far(data: Path) -> Iterator[Line]:
    """Far apart: two CT scans of a chest, 35 mm, without a linear stage; two hands. Distance of the landmarks."""
    folder = data / "lung_ct"
    fixed, moving = folder / "fixed.nii.gz", folder / "moving.nii.gz"
    ours, theirs = (read_points(folder / f"{side}_landmarks.csv", 3)[1] for side in ("fixed", "moving"))
    options = {"fixed_mask": folder / "fixed_mask.nii.gz", "linear": "none"}
    yield from _searched(Case("chest, with a mask", fixed, moving, landmarks(read(fixed), ours, theirs), options))
    folder = data / "hands_xray"
    fixed, moving = folder / "fixed.mha", folder / "moving.mha"
    ours, theirs = (read_points(folder / f"{side}_landmarks.csv", 2)[1] for side in ("fixed", "moving"))
    yield from _searched(Case("hands", fixed, moving, landmarks(read(fixed), ours, theirs), linear=True))


def sections_of_tissue(data: Path) -> Iterator[Line]:
    """Neighbouring sections in unlike stains. Distance of the landmarks, pixels (named TRE mm)."""
    folder = data / "histology_lung"
    ours = read_points(folder / "He_landmarks.csv", 2)[1]
    for stain in ("CD31-3", "proSPC-4"):
        theirs = read_points(folder / f"{stain}_landmarks.csv", 2)[1]
        score = landmarks(read(folder / "He.nii.gz"), ours, theirs)
        yield from _searched(
            Case(f"He ← {stain}", folder / "He.nii.gz", folder / f"{stain}.nii.gz", score, linear=True)
        )
    fixed, moving, ours, theirs = kidney(data)
    score = landmarks(fixed, ours, theirs)
    yield from _searched(Case("kidney, HE ← PanCytokeratin, grey", fixed, moving, score, linear=True))


def kidney(data: Path) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """HE and PanCytokeratin of a kidney in grey, and the landmarks of both, row k to row k."""
    folder = data / "histology_2d"
    names = ("rat_kidney_HE", "rat_kidney_PanCytokeratin")
    ours, theirs = (_pixels(folder / f"{name}.csv") for name in names)
    common = min(len(ours), len(theirs))
    fixed, moving = (_grey(folder / f"{name}.jpg") for name in names)
    return fixed, moving, ours[:common], theirs[:common]


def _pixels(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8") as file:
        return np.array([[float(row["X"]), float(row["Y"])] for row in csv.DictReader(file)])


def _grey(path: Path) -> Any:
    return sitk.GetImageFromArray(array(read(path)).astype(np.float32).mean(axis=-1))


def sliding(_: Path) -> Iterator[Line]:
    """Two organs that slide by 25 mm (or less) along a still wall, slices of 4 mm (or voxels of 3 or 4 mm), no linear
    stage. True error in the organs."""
    for seed in (0, 1):
        whole, masked = _slid(seed)
        yield from _searched(whole)
        yield from _searched(masked)
    # Little moves before the search.
    yield from each([_slid(4)[0], _slid(0, (3.0, 3.0, 3.0))[0], _slid(6, (3.0, 3.0, 3.0), 18.0)[0]])
    # The organs slide by less.
    yield from each([_slid(5, motion=18.0)[0], _slid(6, motion=12.0)[0], _slid(1, motion=12.0)[0]])
    # Little is to be seen of them.
    yield from each([_slid(seed, (3.0, 3.0, 3.0), 12.0)[0] for seed in (0, 1)])
    yield from each([_slid(0, (4.0, 4.0, 4.0), motion)[0] for motion in (25.0, 16.0)])


def _slid(seed: int, spacing: tuple[float, ...] = (2.0, 2.0, 4.0), motion: float = 25.0) -> tuple[Case, Case]:
    """A phantom, and the same with a mask of the organs."""
    from itk_nir.images import to_sitk
    from itk_nir.phantom import sliding_phantom

    made = sliding_phantom(motion, seed=seed, spacing=spacing)
    fixed, moving = to_sitk(made.fixed, made.geometry), to_sitk(made.moving, made.geometry)
    organs = (made.fixed_labels == 2) | (made.fixed_labels == 3)
    voxels = f", voxels of {spacing[0]:.0f} mm" * (spacing[0] == spacing[2])
    name = f"phantom {seed}{voxels}" + f", by {motion:.0f} mm" * (motion != 25)
    score = _errors(made.displacement, {"organs": organs, "wall": made.fixed_labels == 1})
    whole, inside = Case(name, fixed, moving, score, {"linear": "none"}), _errors(made.displacement, {"organs": organs})
    options = whole.options | {"fixed_mask": to_sitk(organs.astype(np.uint8), made.geometry)}
    return whole, Case(f"{name}, mask of the organs", fixed, moving, inside, options)


def _errors(truth: np.ndarray, parts: dict[str, np.ndarray]) -> Callable[[np.ndarray], Figures]:
    """Mean and 95th percentile of the distance from the true displacement, part by part."""

    def score(u: np.ndarray) -> Figures:
        far = np.linalg.norm(u - truth, axis=-1)
        out: Figures = {}
        for name, part in parts.items():
            out[f"{name}, mean mm"] = float(far[part].mean())
            out[f"{name}, 95 % mm"] = float(np.percentile(far[part], 95))
        return out

    return score


def anatomies(data: Path) -> Iterator[Line]:
    """Mice (six ordered pairs), fetal templates, chest radiographs, default call. Mean Dice of all labels."""
    folder = data / "mouse_fvb"
    for i, j in itertools.permutations((1, 2, 3), 2):
        names = (f"fvb{i}_t1", f"fvb{i}_seg"), (f"fvb{j}_t1", f"fvb{j}_seg")
        yield from each([_labelled(f"mouse {i} ← {j}", folder, *names)])
    folder = data / "fetal_spina_bifida"
    yield from each([_labelled("fetal templates", folder, ("fixed", "fixed_seg"), ("moving", "moving_seg"))])
    folder = data / "chest_xray"
    yield from _searched(_labelled("chest radiographs", folder, ("cxr1_t1", "cxr1_seg"), ("cxr2_t1", "cxr2_seg")))


def _labelled(what: str, folder: Path, fixed: tuple[str, str], moving: tuple[str, str]) -> Case:
    """Image and labels of both sides."""
    ours, theirs = (read(folder / f"{names[1]}.nii.gz") for names in (fixed, moving))
    labels = tuple(int(v) for v in np.unique(array(ours)) if v)
    images = [folder / f"{names[0]}.nii.gz" for names in (fixed, moving)]
    return Case(what, images[0], images[1], overlap_of(ours, theirs, labels), linear=True)

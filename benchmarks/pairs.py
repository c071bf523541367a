"""Pairs of images with their truth, found in a folder by the names of its files.

Known folders are in the flat table `KNOWN`. Any other folder is read by two rules:

- one pair: ``fixed*`` and ``moving*`` images, with ``fixed*_seg*``, ``fixed*_mask*``, ``fixed*_landmarks.csv`` (and the
  same for moving) where there are any;
- subjects: ``NAME_t1.nii.gz`` with ``NAME_seg.nii.gz``, at least two of them: every ordered pair.

Landmarks are CSV files with a header ``x,y[,z]``, in LPS mm; row k of one file belongs to row k of the other.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".tif", ".tiff")
OASIS = (
    2,
    3,
    4,
    7,
    8,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    24,
    28,
    31,
    41,
    42,
    43,
    46,
    47,
    49,
    50,
    51,
    52,
    53,
    54,
    60,
    63,
)


@dataclass(frozen=True)
class Pair:
    """One registration to do. Paths; `labels` are those whose Dice counts (empty: all that both maps have)."""

    name: str
    fixed: Path
    moving: Path
    fixed_seg: Path | None = None
    moving_seg: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_landmarks: Path | None = None
    moving_landmarks: Path | None = None
    labels: tuple[int, ...] = ()
    linear: Literal["affine", "rigid", "none"] = "affine"

    @property
    def set(self) -> str:
        """The folder's name: the pairs of one set are summed up together."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Layout:
    """How a known folder is to be read; None for fixed and moving: by the rules above."""

    fixed: str | None = None
    moving: str | None = None
    fixed_seg: str | None = None
    moving_seg: str | None = None
    fixed_landmarks: str | None = None
    moving_landmarks: str | None = None
    labels: tuple[int, ...] = ()
    linear: Literal["affine", "rigid", "none"] = "affine"


KNOWN = {
    # Affinely aligned already. Labels: those of the FreeSurfer aseg that both sides of the comparison are scored over.
    "brain_oasis": Layout(labels=OASIS, linear="none"),
    "brain_t1": Layout(labels=tuple(label for label in OASIS if label not in (31, 63))),
    "spine_t1_t2": Layout("t1w.nii.gz", "t2.nii.gz", "t1w_seg-manual.nii.gz", "t2_seg-manual.nii.gz", labels=(1,)),
    "slices_2d": Layout("r16.nii.gz", "r64.nii.gz"),
    "histology_2d": Layout(
        "rat_kidney_HE.jpg",
        "rat_kidney_PanCytokeratin.jpg",
        fixed_landmarks="rat_kidney_HE.csv",
        moving_landmarks="rat_kidney_PanCytokeratin.csv",
    ),
}


class NoPairs(Exception):
    """The folder is absent, or holds nothing that can be registered."""


def data_folder(named: str | None = None) -> Path:
    """The folder given, else ``ITK_NIR_DATA``, else ``../shared/data`` beside the checkout."""
    where = named or os.environ.get("ITK_NIR_DATA")
    folder = Path(where) if where else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        raise NoPairs(f"{folder} is no folder; say where the image pairs are with --data FOLDER or ITK_NIR_DATA")
    return folder.resolve()


def find_pairs(folder: Path) -> list[Pair]:
    """Every pair in a folder, or in its sub-folders when it has none of its own.

    Raises
    ------
    NoPairs : nothing was found.
    """
    pairs = list(_pairs_of(folder))
    if not pairs:
        pairs = [pair for each in sorted(folder.iterdir()) if each.is_dir() for pair in _pairs_of(each)]
    if not pairs:
        raise NoPairs(f"{folder}: no pairs; wanted fixed* and moving* images, or two subjects NAME_t1 with NAME_seg")
    return pairs


def _pairs_of(folder: Path) -> Iterator[Pair]:
    layout = KNOWN.get(folder.name, Layout())
    if layout.fixed and layout.moving:
        if (folder / layout.fixed).is_file() and (folder / layout.moving).is_file():
            yield Pair(
                folder.name,
                folder / layout.fixed,
                folder / layout.moving,
                fixed_seg=_within(folder, layout.fixed_seg),
                moving_seg=_within(folder, layout.moving_seg),
                fixed_landmarks=_within(folder, layout.fixed_landmarks),
                moving_landmarks=_within(folder, layout.moving_landmarks),
                labels=layout.labels,
                linear=layout.linear,
            )
        return
    sides = [_side(folder, name) for name in ("fixed", "moving")]
    if all(sides):
        fixed, moving = sides
        truth: dict[str, Any] = {
            f"{side}_{key}": of.get(key) for side, of in (("fixed", fixed), ("moving", moving)) for key in _TRUTH
        }
        yield Pair(folder.name, fixed["image"], moving["image"], labels=layout.labels, linear=layout.linear, **truth)
        return
    subjects = {_stem(path).removesuffix("_t1"): path for path in _images(folder) if _stem(path).endswith("_t1")}
    segs = {_stem(path).removesuffix("_seg"): path for path in _images(folder) if _stem(path).endswith("_seg")}
    for one, other in itertools.permutations(sorted(subjects), 2):
        yield Pair(
            f"{folder.name}/{one}-{other}",
            subjects[one],
            subjects[other],
            fixed_seg=segs.get(one),
            moving_seg=segs.get(other),
            labels=layout.labels,
            linear=layout.linear,
        )


_TRUTH = ("seg", "mask", "landmarks")


def _side(folder: Path, start: str) -> dict[str, Path]:
    """The files of one side by what they are; empty where there is no image."""
    found: dict[str, Path] = {}
    for path in _images(folder):
        stem = _stem(path)
        if stem.startswith(start):
            kind = next((kind for kind in ("seg", "mask") if f"_{kind}" in stem), "image")
            found.setdefault(kind, path)
    for path in sorted(folder.glob(f"{start}*_landmarks.csv")):
        found.setdefault("landmarks", path)
    return found if "image" in found else {}


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(IMAGES))


def _stem(path: Path) -> str:
    name = path.name
    for ending in IMAGES:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def _within(folder: Path, name: str | None) -> Path | None:
    return folder / name if name and (folder / name).is_file() else None

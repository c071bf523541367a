"""Row `light`: sections in transmitted light that is uneven, as without a correction for the lamp and the optics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Line, array, each, landmarks, read
from rows_motion import kidney
from score import read_points

#: How much darker the corners are than the middle of the fixed section, and how much darker one side of the moving one
#: is than the other, as shares of the light in the middle.
UNEVEN = (0.0, 0.3, 0.6)


def light(data: Path) -> Iterator[Line]:
    """Neighbouring sections in unlike stains; the light of the fixed one falls off to its corners and that of the
    moving one from left to right, by a share of that in the middle. Distance of the landmarks, pixels (TRE mm)."""
    folder = data / "histology_lung"
    ours = read_points(folder / "He_landmarks.csv", 2)[1]
    for share in UNEVEN:
        for stain in ("CD31-3", "proSPC-4"):
            theirs = read_points(folder / f"{stain}_landmarks.csv", 2)[1]
            pair = read(folder / "He.nii.gz"), read(folder / f"{stain}.nii.gz")
            yield from _lit(f"He ← {stain}", *pair, ours, theirs, share)
        fixed, moving, corners, others = kidney(data)
        yield from _lit("kidney, HE ← PanCytokeratin, grey", fixed, moving, corners, others, share)


def _lit(what: str, fixed: Any, moving: Any, ours: np.ndarray, theirs: np.ndarray, share: float) -> Iterator[Line]:
    spoilt = _times(fixed, lambda y, x: 1 - share * (x**2 + y**2) / 2), _times(moving, lambda y, x: 1 - share * x / 2)
    case = Case(f"{what}, uneven by {share:.0%}", *spoilt, landmarks(fixed, ours, theirs), linear=True)
    yield from each([case])


def _times(image: Any, factor: Any) -> Any:
    """An image times a function of y and x, each from -1 to 1 across it."""
    values = array(image).astype(np.float32)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in values.shape), indexing="ij")
    out = sitk.GetImageFromArray((values * factor(y, x)).astype(np.float32))
    out.CopyInformation(image)
    return out

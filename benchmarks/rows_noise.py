"""Row `noise`: images with white noise of their own, and what the smoothing of the levels makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Line, array, do, error, overlap_of, read
from pairs import OASIS

#: Seeds of the 2D phantoms.
SEEDS = range(1, 9)

#: Options without the smoothing that is against noise.
WITHOUT = {"noise_sigma": 0.0, "plane_sigma": 0.0}


def noise(data: Path) -> Iterator[Line]:
    """Noise of its own on each image (normal, then the absolute value), as a share of the range; with the smoothing
    that is against it and without. Eight 2D phantoms of 112 x 134 pixels: true error in the brain. brain_oasis: mean
    Dice over 30 labels. No linear stage."""
    for seed in SEEDS:
        for share in (0.0, 0.02, 0.08):
            fixed, moving, score = _phantom(seed, share)
            yield from _both(f"2D phantom {seed}, {share:.0%}", fixed, moving, score)
    folder = data / "brain_oasis"
    if folder.is_dir():
        brains = [read(folder / f"{side}_t1.nii.gz") for side in ("fixed", "moving")]
        score = overlap_of(read(folder / "fixed_seg.nii.gz"), read(folder / "moving_seg.nii.gz"), OASIS)
        for share in (0.04, 0.08, 0.16):
            random = np.random.default_rng(0)
            spoilt = [sitk.GetImageFromArray(_noisy(array(brain), share, random)) for brain in brains]
            for image, brain in zip(spoilt, brains, strict=True):
                image.CopyInformation(brain)
            yield from _both(f"brain_oasis, {share:.0%}", spoilt[0], spoilt[1], score)


def _both(what: str, fixed: Any, moving: Any, score: Any) -> Iterator[Line]:
    for how, options in (("", {}), (", not smoothed for it", WITHOUT)):
        case = Case(f"{what}{how}", fixed, moving, score, {"linear": "none", "metric": "lncc", **options}, before=False)
        yield do(case)[0]


def _noisy(values: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    values = values.astype(np.float32)
    return np.abs(values + share * np.ptp(values) * random.normal(size=values.shape)).astype(np.float32)


def _phantom(seed: int, share: float) -> tuple[Any, Any, Any]:
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom

    made = brain_phantom(2, (112, 134), seed=seed, noise=0)
    random = np.random.default_rng(3)
    fixed = to_sitk(_noisy(made.fixed, share, random), made.geometry)
    moving = to_sitk(_noisy(made.moving, share, random), made.moving_geometry)
    return fixed, moving, error(made.displacement, made.fixed_labels > 0)

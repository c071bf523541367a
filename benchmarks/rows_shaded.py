"""Rows `shaded` and `air`: a smooth factor over one of the images, and noisy air around an object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Line, array, coarser, each, error, motion, overlap_of, read
from scipy.ndimage import gaussian_filter

#: Logarithms of the factor at either side of the moving radiograph, and the axis of the image along which it goes.
RAMPS = ((0.0, "x"), (0.15, "x"), (-0.15, "y"), (0.3, "x"), (-0.3, "y"), (0.5, "x"), (-0.5, "y"), (0.7, "x"))

#: Fixed and moving template, and logarithms of the factors over them at either side, along x.
OVER_CONTRASTS = (
    ("t1", "t2", 0.0, 0.0), ("t1", "t2", 0.0, 0.5), ("t1", "t2", 0.0, -0.6), ("t1", "t2", 0.6, 0.0),
    ("t1", "t2", 0.6, -0.6), ("pd", "t1", 0.0, 0.0), ("pd", "t1", 0.0, 0.7),
)  # fmt: skip

#: Standard deviations of the logarithm of the factor over the fixed phantom.
SHADES = (0.0, 0.2, 0.4)

#: Standard deviations of the noise of the phantom in air, as shares of its range.
NOISE = (0.0, 0.05, 0.1, 0.15)


def shaded(data: Path) -> Iterator[Line]:
    """One of the images times a smooth factor: radiographs of two people in pixels of 2 mm, the moving one brighter at
    one side by a ramp (mean Dice of lungs and heart); templates of two contrasts in voxels of 3 mm with such ramps,
    where nothing is to move (motion inside the head, voxels); phantoms, the fixed one shaded by smoothed noise of a
    seed (true error in the brain, voxels)."""
    folder = data / "chest_xray"
    if folder.is_dir():
        fixed, moving = (coarser(folder / f"{name}_t1.nii.gz", 2.0) for name in ("cxr1", "cxr2"))
        labels = tuple(int(v) for v in np.unique(array(read(folder / "cxr1_seg.nii.gz"))) if v)
        ours, theirs = (
            _on(read(folder / f"{name}_seg.nii.gz"), image) for name, image in (("cxr1", fixed), ("cxr2", moving))
        )
        score = overlap_of(ours, theirs, labels)
        for strength, axis in RAMPS:
            yield from each([
                Case(f"chest, ramp of {strength:+.2f} along {axis}", fixed, _ramp(moving, strength, axis), score,
                     linear=True)
            ])  # fmt: skip
    heads = data / "head_templates"
    if heads.is_dir():
        templates = {name: coarser(heads / f"mni_{name}_2mm.nii.gz", 3.0) for name in ("t1", "t2", "pd")}
        values = array(templates["t1"])
        still = motion(values > 0.2 * np.percentile(values, 99), 3.0, "voxels")
        for one, two, over_fixed, over_moving in OVER_CONTRASTS:
            what = f"{one.upper()} ← {two.upper()}, ramps of {over_fixed:+.1f} and {over_moving:+.1f}"
            images = _ramp(templates[one], over_fixed, "x"), _ramp(templates[two], over_moving, "x")
            yield from each([Case(what, *images, still, before=False, linear=True)])
    for d, size, seeds in ((2, (112, 134), (3, 4, 5)), (3, (54, 64, 54), (0, 1))):
        for seed in seeds:
            for deviation in SHADES:
                yield from each([_phantom(d, size, seed, deviation)])


def air(_: Path) -> Iterator[Line]:
    """The phantom in 20 voxels of air to all sides, with normal noise of its own on each image, as a share of the
    range, of one contrast and of two. True error in the brain, voxels."""
    for seed in (1, 2):
        for share in NOISE:
            for unlike in (False, True) if share in NOISE[:2] else (False,):
                yield from each([_in_air(seed, share, unlike)])


def _on(labels: Any, image: Any) -> Any:
    """A label map on the grid of an image."""
    return sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor)


def _ramp(image: Any, strength: float, axis: str) -> Any:
    values = array(image).astype(np.float32)
    k = values.ndim - 1 - "xyz".index(axis)
    factor = np.exp(strength * np.linspace(-1, 1, values.shape[k])).reshape(
        [-1 if a == k else 1 for a in range(values.ndim)]
    )
    out = sitk.GetImageFromArray((values * factor).astype(np.float32))
    out.CopyInformation(image)
    return out


def _phantom(d: int, size: tuple[int, ...], seed: int, deviation: float) -> Case:
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom

    made = brain_phantom(d, size, seed=seed)
    random = np.random.default_rng(seed + 7)
    field = gaussian_filter(random.normal(size=made.fixed.shape), made.fixed.shape[0] / 4, mode="wrap")
    shade = np.exp(deviation * (field - field.mean()) / field.std())
    images = to_sitk((made.fixed * shade).astype(np.float32), made.geometry), to_sitk(made.moving, made.geometry)
    score = error(made.displacement, made.fixed_labels > 0, min(made.geometry.spacing), "voxels")
    return Case(f"{d}D phantom {seed}, factor of SD {deviation:.1f}", *images, score, linear=True)


def _in_air(seed: int, share: float, unlike: bool) -> Case:
    from itk_nir.geometry import Geometry
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom

    around = 20
    made = brain_phantom(3, (54, 64, 54), seed=seed, noise=0)
    random = np.random.default_rng(0)
    moving = made.moving if not unlike else np.abs(np.ptp(made.moving) / 2 - made.moving)
    deviation = share * np.ptp(made.fixed)
    fixed, moving = (
        (np.pad(x, around) + deviation * random.normal(size=np.add(x.shape, 2 * around))).astype(np.float32)
        for x in (made.fixed, moving)
    )
    grid = Geometry.make(fixed.shape[::-1], made.geometry.spacing)
    truth = np.pad(made.displacement, [(around, around)] * 3 + [(0, 0)])
    score = error(truth, np.pad(made.fixed_labels > 0, around), min(grid.spacing), "voxels")
    what = f"phantom {seed} in air, noise of {share:.0%}{', two contrasts' if unlike else ''}"
    return Case(what, to_sitk(fixed, grid), to_sitk(moving, grid), score, linear=True)

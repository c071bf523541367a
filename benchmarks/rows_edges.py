"""Row `edges`: images that are cut through anatomy, whose content moves out of the fixed image.

Forward and then back must end where it began, at all voxels of the fixed image that land inside the moving one: through
`result.mapping`, through ITK's transform and through the files of every format read back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Figures, Line, do, phantom, read

#: What of each format undoes the map: the files in the order in which ANTs names them, or the one that there is.
INVERSES = {
    "itk": ("inverse_composite",),
    "ants": ("affine", "inverse_warp"),
    "elastix": ("inverse_transform",),
    "slicer": ("inverse_displacement",),
    "nifti": ("inverse_displacement",),
}


def edges(data: Path) -> Iterator[Line]:
    """Crops through a head, a chest, an abdomen. 99th percentile of the distance between a voxel and where forward and
    back take it, in voxels, over all voxels that land inside the moving image."""
    made, fixed, moving = phantom()
    low = np.array(made.geometry.size) // 4
    size = np.array(made.geometry.size) // 2
    part = sitk.RegionOfInterest(fixed, size.tolist(), low.tolist())
    yield _line(Case("phantom, the middle of the head ← the whole head", part, moving, _none, {"linear": "none"}))
    folder = data / "brain_oasis"
    if folder.is_dir():
        brains = [read(folder / f"{side}_t1.nii.gz") for side in ("fixed", "moving")]
        parts = [
            sitk.RegionOfInterest(b, [90, 100, 110], [s, s + 10, s + 20]) for b, s in zip(brains, (30, 26), strict=True)
        ]
        yield _line(Case("brain_oasis, crops that lie 4 mm apart", parts[0], parts[1], _none, {"linear": "none"}))
        yield _line(Case("brain_oasis, a crop ← the whole brain", parts[0], brains[1], _none, {"linear": "none"}))
    folder = data / "lung_ct"
    if folder.is_dir():
        yield _line(Case("lung_ct, whole images", folder / "fixed.nii.gz", folder / "moving.nii.gz", _none))
    folder = data / "abdomen_ct_mr"
    if folder.is_dir():
        start = {"initial_transform": folder / "rigid_from_organ_centroids.tfm"}
        yield _line(Case("abdomen_ct_mr", folder / "fixed.nii.gz", folder / "moving.nii.gz", _none, start))


def _none(_: np.ndarray) -> Figures:
    return {}


def _line(case: Case) -> Line:
    """Register, and go forward and back by every way."""
    line, _, result = do(replace(case, before=False))
    fixed, moving = result.fixed.geometry, result.moving.geometry
    points = fixed.grid().reshape(-1, fixed.dimension)
    there = result.mapping.map(points)
    lands = moving.contains(there)
    points, there = points[lands], there[lands]

    def percentile(back: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        gaps = np.linalg.norm(back(there) - points, axis=-1) / min(fixed.spacing)
        return [float(np.percentile(gaps, 99))]

    figures = {
        "leave the fixed image, %": [100 * float((~fixed.contains(there)).mean())],
        "mapping": percentile(result.mapping.inverse().map),
        "transform": percentile(_by_itk(result.transform.GetInverseTransform())),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, keys in INVERSES.items():
            paths = result.save(f"{folder}/{name}/", format=name)
            figures[name] = percentile(_read([paths[key] for key in keys], moving))
    folds = float((result.jacobian_array <= 0).sum())
    return replace(line, figures={**figures, "folded voxels of the whole image": [folds]})


def _by_itk(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A displacement field transform, by numpy: one voxel after the other through Python takes minutes."""
    from itk_nir.transforms.as_itk import from_itk

    return from_itk(transform).map


def _read(paths: list[Path], grid: Any) -> Callable[[np.ndarray], np.ndarray]:
    from itk_nir.transforms.load import read_transform
    from itk_nir.transforms.model import CompositeTransform

    if len(paths) == 1:
        return read_transform(paths[0], grid).map
    affine, warp = paths
    undone = read_transform(affine, grid).inverse()
    return CompositeTransform((*undone.transforms, *read_transform(warp, grid).transforms)).map

"""Score a transform from the files in which a program exported it.

Nothing here belongs to one of the programs that are compared: the files are read, composed and evaluated by SimpleITK,
and the numbers are made with numpy. As a program, it prints one JSON object::

    python benchmarks/score.py --fixed F --moving M --fixed-seg FS --moving-seg MS --manifest transforms.json

A manifest names the files of the forward transform (fixed → moving physical points, LPS mm) and of the inverse::

    {"forward": [{"file": "warp.nii"}, {"file": "affine.mat"}],
     "inverse": [{"file": "affine.mat", "invert": true}, {"file": "inverse_warp.nii"}]}

in the order in which a point meets them; file names are relative to the manifest. A file is any transform that ITK
reads, or a displacement field image (LPS mm). ``inverse`` may be empty: a program that gives none is not scored on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

# log(det) of folded voxels has no value; they are counted as folds and enter the spread at this floor, so that a fold
# never makes the spread look better and a single one does not decide it.
DETERMINANT_FLOOR = 1e-3
WINDOW_RADIUS = 4


def score(
    fixed: Path,
    moving: Path,
    manifest: Path | None,
    *,
    fixed_seg: Path | None = None,
    moving_seg: Path | None = None,
    fixed_mask: Path | None = None,
    fixed_landmarks: Path | None = None,
    moving_landmarks: Path | None = None,
    labels: tuple[int, ...] = (),
) -> dict[str, Any]:
    """All numbers that the truth at hand allows; without a manifest, those of the identity ("before").

    Returns
    -------
    dice : mean over `labels` (default: all that both maps have), of the moving labels carried to the fixed grid by
        nearest neighbour; dice_by_label
    tre : mean distance in mm between the mapped fixed landmarks and the moving ones; tre_median, tre_max
    lncc : mean squared local correlation of fixed and warped image, windows of 9 voxels along each axis
    folds : percent of the voxels with a Jacobian determinant ≤ 0; det_min; sd_log_jacobian
    inverse_mean, inverse_p99 : distance, in fixed voxels, between a voxel and its image under forward then inverse

    The last three rows and lncc are over the *inside*: fixed segmentation > 0, else fixed mask > 0, else what Otsu's
    threshold leaves of the fixed image. inside says which, inside_voxels how many.
    """
    import SimpleITK as sitk

    target = sitk.ReadImage(str(fixed), sitk.sitkFloat32)
    source = sitk.ReadImage(str(moving), sitk.sitkFloat32)
    dimension = target.GetDimension()
    forward, inverse = load_manifest(manifest, dimension) if manifest else (_identity(dimension), None)
    found: dict[str, Any] = {}

    if fixed_seg and moving_seg:
        truth = _on_grid(fixed_seg, target)
        carried = sitk.Resample(sitk.ReadImage(str(moving_seg)), target, forward, sitk.sitkNearestNeighbor, 0.0)
        found |= dice(sitk.GetArrayViewFromImage(truth), sitk.GetArrayViewFromImage(carried), labels)
    if fixed_landmarks and moving_landmarks:
        ours, theirs = matched_points(fixed_landmarks, moving_landmarks, dimension)
        mapped = np.array([forward.TransformPoint(point.tolist()) for point in ours])
        distance = np.linalg.norm(mapped - theirs, axis=1)
        found |= {"tre": distance.mean(), "tre_median": np.median(distance), "tre_max": distance.max()}

    inside, kind = _inside(target, fixed_seg, fixed_mask)
    found |= {"inside": kind, "inside_voxels": int(inside.sum())}
    lowest = float(sitk.GetArrayViewFromImage(source).min())
    warped = sitk.Resample(source, target, forward, sitk.sitkLinear, lowest)
    found["lncc"] = local_correlation(target, warped, inside)
    if manifest is None:
        return _plain(found)

    voxel = np.array(target.GetDirection()).reshape(dimension, dimension) * np.array(target.GetSpacing())
    determinant = jacobian_determinant(_field(forward, target), inside, voxel)
    found |= {
        "folds": 100.0 * np.mean(determinant <= 0),
        "det_min": determinant.min(),
        "det_max": determinant.max(),
        "sd_log_jacobian": np.log(np.maximum(determinant, DETERMINANT_FLOOR)).std(),
    }
    if inverse is not None:
        round_trip = sitk.CompositeTransform([inverse, forward])  # SimpleITK applies the last one first
        error = np.linalg.norm(_field(round_trip, target)[inside] @ np.linalg.inv(voxel).T, axis=1)
        found |= {"inverse_mean": error.mean(), "inverse_p99": np.percentile(error, 99)}
    return _plain(found)


def load_manifest(path: Path, dimension: int) -> tuple[Any, Any | None]:
    """Forward and inverse transform (None where the manifest has no inverse), as SimpleITK composites."""
    content = json.loads(path.read_text())
    forward = _composite(content["forward"], path.parent, dimension)
    return forward, _composite(content["inverse"], path.parent, dimension) if content.get("inverse") else None


def _composite(steps: list[dict[str, Any]], folder: Path, dimension: int) -> Any:
    import SimpleITK as sitk

    # A composite applies the transform that was added last first.
    total = sitk.CompositeTransform(dimension)
    for step in reversed(steps):
        total.AddTransform(_read(folder / step["file"], step.get("invert", False)))
    return total


def _read(path: Path, invert: bool) -> Any:
    import SimpleITK as sitk

    if path.name.endswith((".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")):
        if invert:
            raise ValueError(f"{path}: a displacement field cannot be inverted by the scorer")
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    transform = sitk.ReadTransform(str(path))
    return transform.GetInverse() if invert else transform


def dice(truth: np.ndarray, other: np.ndarray, labels: tuple[int, ...] = ()) -> dict[str, Any]:
    """Mean Dice over labels; one that neither map has does not count, one that only one map has counts as 0."""
    truth, other = np.asarray(truth).ravel(), np.asarray(other).ravel()
    chosen = labels or tuple(sorted(set(np.unique(truth).tolist()) & set(np.unique(other).tolist()) - {0}))
    top = int(max(truth.max(), other.max())) + 1
    sizes = np.bincount(truth.astype(np.int64), minlength=top) + np.bincount(other.astype(np.int64), minlength=top)
    common = np.bincount(truth[truth == other].astype(np.int64), minlength=top)
    each = {int(label): 2.0 * common[label] / sizes[label] for label in chosen if label < top and sizes[label]}
    if not each:
        raise ValueError(f"none of the labels {list(chosen)[:10]} is in the label maps")
    return {"dice": float(np.mean(list(each.values()))), "dice_by_label": {str(key): float(each[key]) for key in each}}


def jacobian_determinant(displacement: np.ndarray, inside: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """det(∂φ/∂p) of φ(p) = p + u(p) at the voxels inside, in the order of ``np.nonzero(inside)``.

    Central differences of the map along the index axes, one-sided at the rim of the grid, carried to physical axes by
    the chain rule.

    Parameters
    ----------
    displacement : ndarray
        ``([D,] H, W, d)``, components ``(x, y[, z])`` in LPS mm.
    inside : ndarray
        ``([D,] H, W)`` bool.
    voxel : ndarray
        ``(d, d)``: column k is the offset in mm of one voxel along index axis k, ``(x, y[, z])``.

    Returns
    -------
    ndarray
        ``(N,)``.
    """
    where = np.array(np.nonzero(inside))
    d = displacement.shape[-1]
    slope = np.empty((where.shape[1], d, d))
    for axis in range(d):
        array_axis = d - 1 - axis
        above, below = where.copy(), where.copy()
        above[array_axis] = np.minimum(where[array_axis] + 1, inside.shape[array_axis] - 1)
        below[array_axis] = np.maximum(where[array_axis] - 1, 0)
        span = (above[array_axis] - below[array_axis])[:, None]
        slope[:, :, axis] = (displacement[tuple(above)] - displacement[tuple(below)]) / span
    return np.linalg.det(np.eye(d) + slope @ np.linalg.inv(voxel))


def local_correlation(fixed: Any, warped: Any, inside: np.ndarray) -> float:
    """Mean over the voxels inside of the squared correlation in windows of (2·4 + 1) voxels along each axis.

    Windows in which either image is constant say nothing and are left out.
    """
    import SimpleITK as sitk

    def mean(image: Any) -> Any:
        return sitk.BoxMean(image, [WINDOW_RADIUS] * image.GetDimension())

    def view(image: Any) -> np.ndarray:
        return np.asarray(sitk.GetArrayViewFromImage(image)[inside])

    f = sitk.Cast(fixed, sitk.sitkFloat64)
    w = sitk.Cast(warped, sitk.sitkFloat64)
    f = f - float(view(f).mean())  # the window sums below lose fewer digits so
    w = w - float(view(w).mean())
    f_mean, w_mean = mean(f), mean(w)
    cross = view(mean(f * w)) - view(f_mean) * view(w_mean)
    f_variance = view(mean(f * f)) - view(f_mean) ** 2
    w_variance = view(mean(w * w)) - view(w_mean) ** 2
    tiny = 1e-6
    told = (f_variance > tiny * f_variance.max()) & (w_variance > tiny * w_variance.max())
    return float(np.mean(cross[told] ** 2 / (f_variance[told] * w_variance[told]))) if told.any() else 0.0


def matched_points(fixed: Path, moving: Path, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, d) points of two landmark files, LPS mm, that belong together.

    Those of the same number where a first column without a name numbers them in both files, else row by row.
    """
    (our_numbers, ours), (their_numbers, theirs) = (read_points(path, dimension) for path in (fixed, moving))
    if our_numbers and their_numbers:
        place = {number: k for k, number in enumerate(their_numbers)}
        both = [(k, place[number]) for k, number in enumerate(our_numbers) if number in place]
        ours, theirs = ours[[k for k, _ in both]], theirs[[k for _, k in both]]
    if len(ours) != len(theirs):
        raise ValueError(f"{fixed}: {len(ours)} landmarks, {moving}: {len(theirs)}; row k of both must belong together")
    return ours, theirs


def read_points(path: Path, dimension: int) -> tuple[list[str], np.ndarray]:
    """Numbers (empty where the file has none) and (N, d) points from the columns x, y[, z], in capitals or not."""
    import csv

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {name.strip().lower(): name for name in (rows[0] if rows else {})}
    try:
        points = np.array([[float(row[names[axis]]) for axis in "xyz"[:dimension]] for row in rows])
    except KeyError as error:
        raise ValueError(f"{path}: no column {error}; wanted a header with {','.join('xyz'[:dimension])}") from error
    return [row[names[""]] for row in rows] if "" in names else [], points


def _field(transform: Any, grid: Any) -> np.ndarray:
    """The displacement at every voxel of a grid, ([D,] H, W, d) in LPS mm."""
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    )
    return np.asarray(sitk.GetArrayFromImage(field))


def _inside(fixed: Any, seg: Path | None, mask: Path | None) -> tuple[np.ndarray, str]:
    import SimpleITK as sitk

    for path, kind in ((seg, "fixed segmentation"), (mask, "fixed mask")):
        if path:
            return np.asarray(sitk.GetArrayFromImage(_on_grid(path, fixed)) > 0), kind
    return np.asarray(sitk.GetArrayFromImage(sitk.OtsuThreshold(fixed, 0, 1)) > 0), "Otsu threshold"


def _on_grid(path: Path, grid: Any) -> Any:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    return sitk.Resample(image, grid, _identity(grid.GetDimension()), sitk.sitkNearestNeighbor, 0.0)


def _identity(dimension: int) -> Any:
    import SimpleITK as sitk

    return sitk.Transform(dimension, sitk.sitkIdentity)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if isinstance(value, np.floating) else value for key, value in found.items()}


def main() -> int:
    """Print the score as JSON."""
    parser = argparse.ArgumentParser(description="Score a transform from the files in which a program exported it.")
    for name in ("fixed", "moving"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("manifest", "fixed-seg", "moving-seg", "fixed-mask", "fixed-landmarks", "moving-landmarks"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--labels", type=int, nargs="*", default=[], help="labels whose Dice counts (default: all)")
    options = vars(parser.parse_args())
    options["labels"] = tuple(options["labels"])
    json.dump(score(options.pop("fixed"), options.pop("moving"), options.pop("manifest"), **options), sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

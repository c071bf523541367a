"""Rows of `trust.py`: lesions, halves of objects, regions that keep their shape or volume,
and single slices as masks. On the phantom, but for the last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Figures, Line, array, carried, each, error, mask_of, overlap_of, phantom, points_of, read
from pairs import OASIS

CENTRE = np.array([28.0, 5.0, 15.0])


def like(values: np.ndarray, grid: Any) -> Any:
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid)
    return image


@cache
def places() -> tuple[np.ndarray, np.ndarray]:
    """Points of the fixed grid (which is the moving one too), and where the truth takes them."""
    made, fixed, _ = phantom()
    points = points_of(fixed)
    return points, points + made.displacement


def lesion(_: Path) -> Iterator[Line]:
    """A ball in one image alone: as it is, masked, given as lesion; and without it. True error within 10 mm of it."""
    made, fixed, moving = phantom()
    points, there = places()
    for radius, side in itertools.product((10, 20), ("fixed", "moving")):
        ball = np.linalg.norm(points - CENTRE, axis=-1) <= radius
        near = np.linalg.norm((points if side == "fixed" else there) - CENTRE, axis=-1) <= radius + 10
        score = error(made.displacement, near & (made.fixed_labels > 0))
        values = array(fixed if side == "fixed" else moving).copy()
        values[ball] = 250
        spoilt = like(values, fixed)
        images = (spoilt, moving) if side == "fixed" else (fixed, spoilt)
        what = f"ball of {2 * radius} mm, {side} image"
        yield from each(
            [
                Case(f"{what}: none", fixed, moving, score),
                Case(f"{what}: not told", *images, score),
                Case(f"{what}: masked", *images, score, {f"{side}_mask": mask_of(~ball)}),
                Case(f"{what}: lesion", *images, score, {f"{side}_lesion": mask_of(ball)}),
            ]
        )


def small_masks(_: Path) -> Iterator[Line]:
    """Phantoms whose moving side is turned by 10° and shifted by 15 mm, with a mask of a disc of 9 pixels (in 3D a ball
    of 4 voxels) radius, linear stage rigid. True error in the mask."""
    from itk_nir.geometry import Geometry
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom

    angle = np.deg2rad(10)
    for (d, size, radius), seed in itertools.product(((2, (120, 140), 9), (3, (52, 60, 52), 4)), range(4)):
        made = brain_phantom(d, size, seed=seed)
        g, centre = made.geometry, made.geometry.centre
        turn, shift = np.eye(d), np.array([12.0, -9.0, 0.0])[:d]
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        lies = Geometry.make(g.size, g.spacing, turn @ (g.origin - centre) + centre + shift, turn @ g.rotation)
        at = np.array(made.fixed.shape) // 2 + np.array([0] * (d - 1) + [12])
        mask = np.linalg.norm(np.moveaxis(np.indices(made.fixed.shape), 0, -1) - at, axis=-1) < radius
        points = g.grid()
        truth = (points + made.displacement - centre) @ turn.T + centre + shift - points
        images = to_sitk(made.fixed, g), to_sitk(made.moving, lies)
        options = {"linear": "rigid", "fixed_mask": to_sitk(mask.astype(np.uint8), g)}
        score = error(truth, mask & (made.fixed_labels > 0))
        yield from each([Case(f"{d}D phantom {seed}", *images, score, options, linear=True)])


def half(_: Path) -> Iterator[Line]:
    """Half of the phantom in one image, the rest background or cropped. True error in the half that both have."""
    made, fixed, moving = phantom()
    points, there = places()
    for side, axis in itertools.product(("fixed", "moving"), range(3)):
        keep = points[..., axis] > 0
        both = (made.fixed_labels > 0) & ((points if side == "fixed" else there)[..., axis] > 0)
        score = _with_determinants(error(made.displacement, both), fixed)
        image = fixed if side == "fixed" else moving
        cut = like(array(image) * keep, fixed)
        images = (cut, moving) if side == "fixed" else (fixed, cut)
        what = f"{side} image, half along {'xyz'[axis]}"
        yield from each(
            [
                Case(f"{what}: no mask", *images, score),
                Case(f"{what}: masked", *images, score, {f"{side}_mask": mask_of(keep)}),
            ]
        )
        if side == "moving":
            start = [0, 0, 0]
            start[axis] = fixed.GetSize()[axis] // 2
            part = sitk.RegionOfInterest(image, [n - s for n, s in zip(fixed.GetSize(), start, strict=True)], start)
            yield from each([Case(f"{what}: cropped, no mask", fixed, part, score)])


def _with_determinants(score: Callable[[np.ndarray], Figures], grid: Any) -> Callable[[np.ndarray], Figures]:
    def both(u: np.ndarray) -> Figures:
        det = determinants(u, grid)
        return score(u) | {"least det": float(det.min()), "largest det": float(det.max())}

    return both


def determinants(u: np.ndarray, grid: Any) -> np.ndarray:
    """Of the Jacobian of a map whose displacements on a grid are given."""
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(u, dtype=np.float64), isVector=True)
    vectors.CopyInformation(grid)
    return array(sitk.DisplacementFieldJacobianDeterminant(vectors))


def regions(_: Path) -> Iterator[Line]:
    """Balls and a thalamus that stay rigid or keep their volume: how well, and Dice of the labels around them."""
    made, fixed, moving = phantom()
    points, _there = places()
    labels = np.zeros(made.fixed.shape, np.uint8)
    for number, (centre, radius) in enumerate((((28, 5, 15), 12), ((-35, -30, 5), 16), ((10, -50, 0), 10)), 1):
        labels[np.linalg.norm(points - np.array(centre), axis=-1) <= radius] = number
    thalamus = ((made.fixed_labels == 5) & (points[..., 0] > 0)).astype(np.uint8)
    for what, chosen in (
        ("a ball of 24 mm", labels * (labels == 1)),
        ("three balls", labels),
        ("a thalamus", thalamus),
    ):
        score = _region_score(chosen)
        given = like(chosen, fixed)
        yield from each(
            [
                Case(f"{what}: free", fixed, moving, score, before=False),
                Case(f"{what}: rigid", fixed, moving, score, {"rigid_regions": given}, before=False),
                Case(f"{what}: volume kept", fixed, moving, score, {"volume_regions": given}, before=False),
            ]
        )


def _region_score(labels: np.ndarray) -> Callable[[np.ndarray], Figures]:
    made, fixed, _ = phantom()
    points, _there = places()
    outside, seg = labels == 0, like(made.moving_labels, fixed)

    def score(u: np.ndarray) -> Figures:
        det = determinants(u, fixed)
        numbers = [k for k in np.unique(labels) if k]
        found = carried(seg, u, fixed, sitk.sitkNearestNeighbor)
        both = [((made.fixed_labels == k) & outside, (found == k) & outside) for k in np.unique(made.fixed_labels) if k]
        return {
            "from rigid, most mm": max(_from_rigid(points[labels == k], u[labels == k]) for k in numbers),
            "volume, most off": max(abs(float(det[labels == k].mean()) - 1) for k in numbers),
            "Dice around": float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both])),
            "least det": float(det.min()),
        }

    return score


def _from_rigid(points: np.ndarray, u: np.ndarray) -> float:
    """The largest distance of mapped points from the nearest rigid map of them."""
    mapped = points + u
    a, b = points - points.mean(0), mapped - mapped.mean(0)
    left, _, right = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    return float(np.linalg.norm(a @ ((left * signs) @ right).T - b, axis=1).max())


def one_slice(data: Path) -> Iterator[Line]:
    """A mask of one slice of brain_oasis, sagittal, coronal, axial. Mean Dice in the slice."""
    folder = data / "brain_oasis"
    fixed, moving = (read(folder / f"{side}_t1.nii.gz") for side in ("fixed", "moving"))
    ours, theirs = (read(folder / f"{side}_seg.nii.gz") for side in ("fixed", "moving"))
    for what, axis, at in (("sagittal", 2, 80), ("coronal", 1, 96), ("axial", 0, 112)):
        inside = np.zeros(array(fixed).shape, np.uint8)
        inside.swapaxes(0, axis)[at] = 1
        score = overlap_of(ours, theirs, OASIS, inside > 0)
        yield from each([Case(what, fixed, moving, score, {"fixed_mask": like(inside, fixed)}, linear=True)])

"""Row `bias`: a part of the phantom grew or shrank by a known volume; how much of it is found, and what moves besides.

The volume that counts is that of the part itself: what an image shows of it is where its border lies. How a change is
spread over what is flat inside, no image tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, Figures, Line, do
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

#: Noise of its own on both images, as a share of the range of their intensities.
NOISE = 0.02

#: How far from the part's border things move, voxels.
REACH = 4.0

#: What lies so far from all that moved is elsewhere, voxels.
ELSEWHERE = 8.0


def bias(_: Path) -> Iterator[Line]:
    """Phantom, 2D of 1.25 mm and 3D of 2.2 mm, one of whose parts grew or shrank; noise of 2 % of its own on both
    images, no linear stage. The share of the change of its volume (logarithm) that the map recovers, the largest change
    of volume (log of the Jacobian determinant) where nothing changed, and what was truly moved, in voxels."""
    for d, name, amount in (
        *((2, name, amount) for name in ("putamen", "ventricle") for amount in (0.05, 0.1, 0.2, -0.1, -0.2)),
        *((3, "ventricle", amount) for amount in (0.05, 0.1, -0.1)),
        (3, "putamen", 0.1),
    ):
        whole, part = brain(d, name)
        u, volume = changed(part, amount)
        for preset in ("fast", "default", "accurate"):
            if d == 3 and preset == "fast":
                continue
            fixed, moving = images(whole, u, seed=1)
            score = _score(whole, u, volume)
            case = Case(f"{d}D, {name} {amount:+.0%}, {preset}", fixed, moving, score,
                        {"preset": preset, "linear": "none"}, before=False)  # fmt: skip
            yield do(case)[0]


@cache
def brain(d: int, name: str) -> tuple[Any, np.ndarray]:
    """The phantom without noise, and where a part of one of its halves is."""
    from itk_nir.phantom import LABELS, brain_phantom

    whole = brain_phantom(d, (128, 154) if d == 2 else (72, 86, 72), seed=2, noise=0)
    part = whole.fixed_labels == LABELS[name]
    return whole, part & (np.indices(part.shape)[-1] > part.shape[-1] / 2)


def changed(part: np.ndarray, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """Displacements ``(d, [Z,] Y, X)`` in voxels, in the order of the axes, under which a part is larger by `amount` in
    the moving image than in the fixed one; and the part in the fixed image, 0 … 1.
    """
    index = np.indices(part.shape).astype(float)
    away = -np.stack(np.gradient(gaussian_filter(part.astype(float), REACH)))
    away /= np.abs(away).max()
    low, high = -REACH, REACH
    while high - low > 1e-4:
        u = (low + high) / 2 * away
        volume = map_coordinates(part.astype(float), index + u, order=1, mode="nearest")
        low, high = ((low + high) / 2, high) if part.sum() / volume.sum() - 1 < amount else (low, (low + high) / 2)
    return u, volume


def images(whole: Any, u: np.ndarray, seed: int) -> tuple[Any, Any]:
    """The phantom seen through displacements, and as it is, with noise: fixed and moving image."""
    from itk_nir.images import to_sitk

    rng = np.random.default_rng(seed)
    seen = map_coordinates(whole.fixed, np.indices(whole.fixed.shape) + u, order=3, mode="nearest")
    deviation = NOISE * float(np.ptp(whole.fixed))
    fixed, moving = ((x + rng.normal(0, deviation, x.shape)).astype(np.float32) for x in (seen, whole.fixed))
    return to_sitk(fixed, whole.geometry), to_sitk(moving, whole.geometry)


def determinants(u: np.ndarray) -> np.ndarray:
    """Of the Jacobian of a map with the displacements ``(d, [Z,] Y, X)`` in voxels, in the order of the axes."""
    d = len(u)
    jacobian = np.stack([np.stack(np.gradient(one)) for one in u]) + np.eye(d).reshape(d, d, *(1,) * d)
    return np.asarray(np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))))


def log_volume(u: np.ndarray, part: np.ndarray) -> float:
    """How much larger the map makes a part, as a logarithm."""
    return float(np.log((determinants(u) * part).sum() / part.sum()))


def _score(whole: Any, truth: np.ndarray, part: np.ndarray) -> Callable[[np.ndarray], Figures]:
    size = np.array(whole.geometry.spacing)
    far = (distance_transform_edt(np.linalg.norm(truth, axis=0) < 1e-6) > ELSEWHERE) & (whole.fixed_labels > 0)

    def score(vectors: np.ndarray) -> Figures:
        u = np.moveaxis((vectors / size)[..., ::-1], -1, 0)
        return {
            "recovered": log_volume(u, part) / log_volume(truth, part),
            "mean log J elsewhere, %": 100 * abs(float(np.log(determinants(u))[far].mean())),
            "true motion, largest, voxels": float(np.linalg.norm(truth, axis=0).max()),
        }

    return score

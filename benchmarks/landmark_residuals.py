"""What some landmarks of a pair can tell of the others: is what the images leave at one alike to what is left near it?

    python benchmarks/landmark_residuals.py --data FOLDER

Every pair with landmarks is registered by its images alone. What is then left at the landmarks is

- correlated between neighbours, over several distances: given landmarks can mend at others what they share with them,
- predicted at each landmark from all others, by a Gaussian process of several widths and errors of the points, of which
  the best is named, chosen with the truth in hand: hardly any method that has the given landmarks gains more.

Then the pair is registered with one half of its landmarks given, several halves in turn, and the others are compared
with the registration without. Distances in mm (pixels where the images have no spacing), means over landmarks. A
landmark that is farther off than ten times the median is left out of all three: it would be all that they show.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows_motion import kidney
from score import read_points

#: Distances of neighbours, in the median distance of a landmark to the nearest other one.
DISTANCES = (0.0, 1.0, 2.0, 4.0)
#: Widths of the Gaussian process in the same unit, and variances of the error of a landmark over that of the field.
WIDTHS, ERRORS = (0.5, 1.0, 2.0, 4.0, 8.0), (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
#: A landmark is left out where it is so many times the median farther off.
OUTLIER = 10.0
#: Random halves beside the two of every second landmark.
RANDOM_HALVES = 2


@dataclass(frozen=True)
class Pair:
    """Two images and their landmarks, row k to row k."""

    name: str
    fixed: Any
    moving: Any
    ours: np.ndarray
    theirs: np.ndarray
    options: dict[str, Any]


def pairs(data: Path) -> Iterator[Pair]:
    """Those of the data that have landmarks."""
    folder = data / "lung_ct"
    ours, theirs = (read_points(folder / f"{side}_landmarks.csv", 3)[1] for side in ("fixed", "moving"))
    mask = {"fixed_mask": folder / "fixed_mask.nii.gz"}
    yield Pair("lung_ct", folder / "fixed.nii.gz", folder / "moving.nii.gz", ours, theirs, mask)
    folder = data / "histology_lung"
    ours = read_points(folder / "He_landmarks.csv", 2)[1]
    for stain in ("CD31-3", "proSPC-4"):
        theirs = read_points(folder / f"{stain}_landmarks.csv", 2)[1]
        yield Pair(f"He ← {stain}", folder / "He.nii.gz", folder / f"{stain}.nii.gz", ours, theirs, {})
    yield Pair("kidney, HE ← PanCytokeratin", *kidney(data), {})


def correlations(points: np.ndarray, left: np.ndarray) -> list[tuple[int, float, float]]:
    """Number of pairs of landmarks, correlation of what is left, and its standard error by chance, over `DISTANCES`."""
    apart, unit = distances(points)
    product = (left @ left.T) / np.square(left).sum(1).mean()
    upper = np.triu(np.ones_like(apart, bool), 1)
    found = []
    for low, high in itertools.pairwise(DISTANCES):
        chosen = product[upper & (apart >= low * unit) & (apart < high * unit)]
        if len(chosen) > 1:
            found.append((len(chosen), float(chosen.mean()), float(chosen.std(ddof=1) / np.sqrt(len(chosen)))))
        else:
            found.append((len(chosen), float("nan"), float("nan")))
    return found


def predicted(points: np.ndarray, left: np.ndarray) -> tuple[float, float, float]:
    """What the best prediction of each landmark from all others leaves, in the mean; its width and error."""
    apart, unit = distances(points)
    best = (float(np.linalg.norm(left, axis=1).mean()), float("nan"), float("inf"))
    for width in WIDTHS:
        covariance = np.exp(-0.5 * np.square(apart / (width * unit)))
        for error in ERRORS:
            inverse = np.linalg.inv(covariance + error * np.eye(len(points)))
            rest = float(np.linalg.norm(inverse @ left / np.diag(inverse)[:, None], axis=1).mean())
            best = min(best, (rest, width * unit, error))
    return best


def distances(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Between all points, and the median to the nearest other one."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return apart, float(np.median((apart + np.diag(np.full(len(points), np.inf))).min(1)))


def halves(n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Which landmarks are given."""
    yield "even", np.arange(n) % 2 == 0
    yield "odd", np.arange(n) % 2 == 1
    for seed in range(RANDOM_HALVES):
        given = np.zeros(n, bool)
        given[np.random.default_rng(seed).choice(n, n // 2, replace=False)] = True
        yield f"random {seed}", given


def study(pair: Pair, threads: int, weight: float | None) -> None:
    """Print all of it for a pair; `weight` is that of the landmarks, where it is not the default."""
    import itk_nir

    def rest(**known: Any) -> np.ndarray:
        made = itk_nir.register(pair.fixed, pair.moving, threads=threads, **pair.options, **known)
        return np.asarray(pair.theirs - made.transform_points(pair.ours))

    left = rest()
    far = np.linalg.norm(left, axis=1)
    usual = far <= OUTLIER * np.median(far)
    print(f"{pair.name}: {len(far)} landmarks, {(~usual).sum()} left out; {far[usual].mean():.3f} by the images alone")
    for (low, high), (n, value, by) in zip(
        itertools.pairwise(DISTANCES), correlations(pair.ours[usual], left[usual]), strict=True
    ):
        unit = distances(pair.ours[usual])[1]
        print(f"  {low * unit:6.1f} to {high * unit:6.1f} apart: correlation {value:+.3f} ± {by:.3f} ({n} pairs)")
    best, width, error = predicted(pair.ours[usual], left[usual])
    how = f"width {width:.1f}, error {error:g}" if np.isfinite(error) else "none is better than no prediction"
    print(f"  best prediction from all others leaves {best:.3f} ({how})")
    for name, given in halves(len(far)):
        known: dict[str, Any] = {"fixed_landmarks": pair.ours[given], "moving_landmarks": pair.theirs[given]}
        after = np.linalg.norm(rest(**known, **({} if weight is None else {"landmark_weight": weight})), axis=1)
        others = usual & ~given
        change = after[others] - far[others]
        by = change.std(ddof=1) / np.sqrt(len(change))
        print(
            f"  {name} half given, the others: {far[others].mean():.3f} → {after[others].mean():.3f}"
            f" ({change.mean():+.3f} ± {by:.3f}); the given: {far[given].mean():.3f} → {after[given].mean():.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ITK_NIR_DATA", "data")))
    parser.add_argument("--only", default="", help="part of the names of the pairs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--landmark-weight", type=float, help="of `register` (default: its own)")
    arguments = parser.parse_args()
    for pair in pairs(arguments.data):
        if arguments.only in pair.name:
            study(pair, arguments.threads, arguments.landmark_weight)


if __name__ == "__main__":
    main()

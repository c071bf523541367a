"""A case whose truth is known: images, options, a score; and what registers and scores it.

Scores are of displacements on the fixed grid, so that the start, the linear stage's map, the result and what another
program wrote are scored in one way, with SimpleITK and numpy alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

Figures = dict[str, float]
THREADS = 2


@dataclass(frozen=True)
class Case:
    """One registration. `score` takes ([Z,] Y, X, d) displacements in LPS mm on the fixed grid; `start` is a transform.

    before : whether the map that the registration begins with is scored too; `linear`, that of the linear stage.
    """

    what: str
    fixed: Any
    moving: Any
    score: Callable[[np.ndarray], Figures]
    options: dict[str, Any] = field(default_factory=dict)
    before: bool = True
    linear: bool = False


@dataclass(frozen=True)
class Line:
    """What became of a case: figures at the start, after the linear stage and at the end, and what the report says."""

    what: str
    figures: dict[str, list[float]]
    metric: str = ""
    verdict: str = ""
    seconds: float | None = None
    nmi: list[float] = field(default_factory=list)
    folds: int | None = None
    spread: float | None = None


# --- scores ----------------------------------------------------------------------------------------------------------


def read(path: Path | str) -> Any:
    return sitk.ReadImage(str(path))


def array(image: Any) -> np.ndarray:
    return np.asarray(sitk.GetArrayFromImage(image))


def transform_of(displacements: np.ndarray, grid: Any) -> Any:
    """([Z,] Y, X, d) displacements on a grid as a transform."""
    vectors = sitk.GetImageFromArray(np.ascontiguousarray(displacements, dtype=np.float64), isVector=True)
    vectors.CopyInformation(grid)
    return sitk.DisplacementFieldTransform(vectors)


def carried(image: Any, displacements: np.ndarray, grid: Any, how: int = sitk.sitkLinear) -> np.ndarray:
    """An image of the moving side on the fixed grid."""
    return array(sitk.Resample(image, grid, transform_of(displacements, grid), how, 0.0))


def correlations(fixed: dict[str, Any], moving: dict[str, Any], inside: np.ndarray) -> Callable[[np.ndarray], Figures]:
    """Of images by contrast, whichever were registered."""

    def score(u: np.ndarray) -> Figures:
        grid = next(iter(fixed.values()))
        return {
            f"{name} correlation": float(
                np.corrcoef(array(fixed[name])[inside], carried(moving[name], u, grid)[inside])[0, 1]
            )
            for name in fixed
        }

    return score


def motion(inside: np.ndarray, unit: float = 1.0, name: str = "mm") -> Callable[[np.ndarray], Figures]:
    """How far things move that should stay."""

    def score(u: np.ndarray) -> Figures:
        length = np.linalg.norm(u, axis=-1)[inside] / unit
        return {f"moved, mean {name}": float(length.mean()), f"95 % {name}": float(np.percentile(length, 95))}

    return score


def coarser(file: Path, spacing: float) -> sitk.Image:
    """An image smoothed and sampled with larger voxels, mm."""
    image = sitk.SmoothingRecursiveGaussian(sitk.ReadImage(str(file), sitk.sitkFloat32), 0.45 * spacing)
    size = [int(n * s / spacing) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    still = sitk.Transform(image.GetDimension(), sitk.sitkIdentity)
    where = image.GetOrigin(), [spacing] * len(size), image.GetDirection()
    return sitk.Resample(image, size, still, sitk.sitkLinear, *where, 0.0)


def overlap_of(
    fixed: Any, moving: Any, labels: tuple[int, ...], inside: np.ndarray | None = None
) -> Callable[[np.ndarray], Figures]:
    """Mean Dice over labels, everywhere or inside a mask."""
    inside = np.ones(array(fixed).shape, bool) if inside is None else inside
    truth = array(fixed)[inside]

    def score(u: np.ndarray) -> Figures:
        found = carried(moving, u, fixed, sitk.sitkNearestNeighbor)[inside]
        both = [(truth == label, found == label) for label in labels]
        return {
            "Dice": float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both if a.any() or b.any()]))
        }

    return score


def landmarks(fixed: Any, ours: np.ndarray, theirs: np.ndarray) -> Callable[[np.ndarray], Figures]:
    """Mean distance of landmarks."""

    def score(u: np.ndarray) -> Figures:
        map_ = transform_of(u, fixed)
        return {
            "TRE mm": float(
                np.mean(
                    [
                        np.linalg.norm(np.array(map_.TransformPoint(p.tolist())) - q)
                        for p, q in zip(ours, theirs, strict=True)
                    ]
                )
            )
        }

    return score


def error(
    truth: np.ndarray, inside: np.ndarray, unit: float = 1.0, name: str = "mm"
) -> Callable[[np.ndarray], Figures]:
    """Distance from the true displacement."""

    def score(u: np.ndarray) -> Figures:
        return {f"error {name}": float(np.linalg.norm(u - truth, axis=-1)[inside].mean() / unit)}

    return score


# --- running a case --------------------------------------------------------------------------------------------------


def points_of(image: Any) -> np.ndarray:
    """([Z,] Y, X, d) physical points of a grid, LPS mm."""
    d = image.GetDimension()
    axes = np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij")
    index = np.stack([axis.T for axis in axes], axis=-1)
    voxel = np.array(image.GetDirection()).reshape(d, d) * np.array(image.GetSpacing())
    return np.asarray(index @ voxel.T + np.array(image.GetOrigin()))


def field_of(transform: Any, grid: Any) -> np.ndarray:
    filter_ = sitk.TransformToDisplacementFieldFilter()
    filter_.SetReferenceImage(grid)
    return array(filter_.Execute(transform))


def do(case: Case) -> tuple[Line, np.ndarray, Any]:
    """Register and score: the line, the displacements of the whole map, and the result."""
    import itk_nir

    result = itk_nir.register(case.fixed, case.moving, threads=THREADS, **case.options)
    report = result.report
    grid = case.fixed[0] if isinstance(case.fixed, list) else case.fixed
    grid = read(grid) if isinstance(grid, (str, Path)) else grid
    d = grid.GetDimension()
    u = result.mapping.displacement_on(result.fixed.geometry).vectors
    maps = []
    if case.before:
        start = case.options.get("initial_transform")
        maps.append(np.zeros_like(u) if start is None else field_of(sitk.ReadTransform(str(start)), grid))
    if case.linear:
        matrix, points = np.array(report.affine_matrix), points_of(grid)
        maps.append(points @ (matrix[:d, :d] - np.eye(d)).T + matrix[:d, d])
    figures: dict[str, list[float]] = {}
    for one in (*maps, u):
        for name, value in case.score(one).items():
            figures.setdefault(name, []).append(value)
    evidence = report.evidence
    line = Line(
        case.what,
        figures,
        metric=report.metric,
        verdict=re.sub(r"\S*/(?=[^/\s]+\.nii)", "", str(report.verdict)),  # no folder of the data
        seconds=report.seconds["total"],
        nmi=[evidence[k].mutual_information for k in ("start", "end")],
        folds=report.folded_voxels,
        spread=report.log_jacobian_sd,
    )
    return line, u, result


def each(cases: Iterator[Case] | list[Case]) -> Iterator[Line]:
    for case in cases:
        yield do(case)[0]


# --- the phantom -----------------------------------------------------------------------------------------------------


@cache
def phantom() -> tuple[Any, Any, Any]:
    """The phantom and its two images."""
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom

    made = brain_phantom(3, (107, 128, 107), seed=3)
    return made, to_sitk(made.fixed, made.geometry), to_sitk(made.moving, made.moving_geometry)


def phantom_case(what: str, inside: np.ndarray | None = None, **options: Any) -> Case:
    made, fixed, moving = phantom()
    brain = made.fixed_labels > 0
    score = error(made.displacement, brain if inside is None else brain & inside)
    return Case(what, fixed, moving, score, options, linear=options.get("linear") != "none")


def mask_of(inside: np.ndarray) -> Any:
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.CopyInformation(phantom()[1])
    return image


def around_hippocampus() -> np.ndarray:
    """How far every voxel is from a hippocampus' centre, mm, along the axis along which it is farthest."""
    made, fixed, _ = phantom()
    points = points_of(fixed)
    of_one = points[made.fixed_labels == 9]
    return np.asarray(np.abs(points - of_one[of_one[:, 0] > 0].mean(axis=0)).max(axis=-1))

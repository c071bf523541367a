"""The finer levels of the linear stage, where no deformation follows that would take up what it leaves.

Two things make a linear map of noisy images wrong by a tenth of a voxel and more, however fine the level: linear
interpolation smooths noise in the middle between voxels and not at them, so that a metric pulls towards shifts by half
a voxel; and the moving image, which alone is interpolated, looks less noisy where it is magnified, so that the map
shrinks. So the fixed image is sampled at steps whose parts of a voxel never repeat (multiples of a voxel and 0.618,
after Weyl), which leaves interpolation the same under every small shift; and the images are compared both ways, on the
grid of the fixed and on that of the moving one, which leaves nothing to be gained by a stretch.

References
----------
Thevenaz, Bierlaire, Unser, "Halton sampling for image registration based on mutual information", Sampling Theory in
Signal and Image Processing 7(2), 2008, on interpolation artefacts of regular samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import Channel, Pair, sizes, spacings
from itk_nir.engine.lattice import Domain, gaussian_matrix
from itk_nir.engine.level_grids import LevelGrids, mean_scale
from itk_nir.engine.linear_descent import LinearDescent
from itk_nir.engine.linear_level import LinearLevel, Near
from itk_nir.engine.linear_map import LinearMap
from itk_nir.engine.linear_metrics import steadied
from itk_nir.engine.metrics import Metric
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: Steps between samples, voxels: the finest, and by how much the others are more than a whole number of them.
FINEST, PART = 1.118, 0.618

#: Samples of a level, at most, about: the finest level of a large image is the finest that has no more.
MOST_SAMPLES = 500_000

#: Width of the Gaussian that smooths both images: at least so many voxels, and so much of a step.
SIGMA, SIGMA_STEP = 0.7, 0.4


@dataclass(frozen=True, eq=False)
class FineGrids(LevelGrids):
    """Samples at steps that are no whole numbers of voxels, of images that are smoothed by the same width in mm.

    Parameters
    ----------
    fixed, moving, factors, moving_factors
        As of `LevelGrids`; the factors of the fixed image need not be whole.
    width, moving_width : float
        Standard deviation of the Gaussian, mm in either image.
    """

    width: float
    moving_width: float

    def images(self, pair: Pair, fixed: Tensor, moving: Tensor, sigma: float, threads: int) -> tuple[Tensor, Tensor]:
        """Both (normalised) images at this level.

        Parameters
        ----------
        pair : Pair
            Gives the grids.
        fixed, moving : Tensor
            ``(Z, Y, X)`` normalised images.
        sigma : float
            Not looked at: the widths of the grids are taken.
        threads : int
            CPU threads.

        Returns
        -------
        tuple of Tensor
            Fixed and moving image of the level, ``(z, y, x)``.
        """

        def smoothed(image: Tensor, geometry: Geometry, at: list[F64], width: float) -> Tensor:
            matrices = [
                gaussian_matrix(n, p, width / s)
                for n, p, s in zip(sizes(geometry), at, spacings(geometry), strict=True)
            ]
            return ops.separable(image[None], matrices, threads)[0].contiguous()

        return (
            smoothed(fixed, pair.fixed_geometry, self.fixed, self.width),
            smoothed(moving, pair.moving_geometry, self.moving, self.moving_width),
        )


class BothWays:
    """A level of the linear stage that compares the images on the grid of either one.

    Parameters
    ----------
    there : LinearLevel
        On the grid of the fixed image.
    back : LinearLevel
        On that of the moving image, of the exchanged pair.
    """

    def __init__(self, there: LinearLevel, back: LinearLevel) -> None:
        self.there: LinearLevel = there
        self.back: LinearLevel = back
        #: A quarter of a step: the first moves are small, the map is nearly right.
        self.voxel: float = 0.25 * there.voxel
        self.fixed: Tensor = there.fixed

    def under(self, base: F64, metrics: Sequence[tuple[float, Metric]]) -> NearBothWays:
        """What measures the images near a map.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
        metrics : sequence of (float, Metric)
            Weight and metric of each channel.

        Returns
        -------
        NearBothWays
            Over the positions that both images have under the map.
        """
        pair, metrics = self.there.pair, [(weight, steadied(metric)) for weight, metric in metrics]
        whole = pair.linear @ base
        back = self.back.under(pair.linear @ np.linalg.inv(whole), metrics)
        frames = _frame(pair.moving_geometry), _frame(pair.fixed_geometry)
        frame = np.linalg.inv(frames[0]) @ _in_space(whole) @ frames[1]
        there, back = (replace(n, share=float(n.share > 0)) for n in (self.there.under(base, metrics), back))
        return NearBothWays(there, back, frame)


@dataclass(frozen=True, eq=False)
class NearBothWays:
    """What measures the images near a map on both grids.

    The share of the positions that both images have does not count: nothing moves by more than a few voxels here, and
    an edge of an image that one map covers and another does not says nothing of where things belong.

    Parameters
    ----------
    there, back : Near
        On the grid of the fixed, and on that of the moving image.
    frame : ndarray
        ``(4, 4)``, mm along the fixed axes from the centre of the fixed grid → the same of the moving image, by the
        map.
    """

    there: Near
    back: Near
    frame: F64

    @property
    def share(self) -> float:
        """0 where a grid has nothing to compare, else 1."""
        return min(self.there.share, self.back.share)

    def agreement(self, model: LinearMap, x: Tensor) -> Tensor:
        """The mean of both similarities under a map, with its gradient, less what landmarks and labels ask for.

        Parameters
        ----------
        model : LinearMap
            Which map.
        x : Tensor
            Its parameters.

        Returns
        -------
        Tensor
            One number.
        """
        matrix, shift = (p.double() for p in model.parts(x))
        last = matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])
        forward = torch.cat([torch.cat([matrix, shift[:, None]], 1), last])
        frame = torch.from_numpy(self.frame)
        back = (frame @ torch.linalg.inv(forward) @ torch.linalg.inv(frame)).float().to(self.back.level.voxels.place)
        view = self.back.moved(back[:3, :3], back[:3, 3])
        similarity, asked = self.there.terms(model, x)
        both = 0.5 * (similarity + self.back.metric(view))
        return both if asked is None else both - asked

    def agreed(self) -> float:
        """Under the map itself.

        Returns
        -------
        float
        """
        return 0.5 * (self.there.value() + self.back.value()) - self.there.asked()


def refined(
    descent: LinearDescent, normalised: Sequence[tuple[Tensor, Tensor]], base: F64, kind: str, radius: int, threads: int
) -> tuple[F64, float | None, bool]:
    """A map of the last level of the linear stage, improved up to the full resolution of the images.

    Parameters
    ----------
    descent : LinearDescent
        Of the levels so far; the finer ones are added to it.
    normalised : sequence of (Tensor, Tensor)
        Fixed and moving image of each channel, of `Pair.normalised`.
    base : ndarray
        ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
    kind : str
        Which map, as of `optimise_linear`.
    radius : int
        Of the windows of local metrics, samples.
    threads : int
        CPU threads of the native ops.

    Returns
    -------
    base : ndarray
        The better map.
    similarity : float or None
        At the finest level; None where there was nothing to do.
    cancelled : bool
        Whether the caller asked to stop.
    """
    pair, coarse = descent.pair, descent.levels[-1].voxel
    other, back = exchanged(pair), [(b, a) for a, b in normalised]
    count, similarity, cancelled = descent.settings.linear_fine_iterations, None, False
    larger = mean_scale(pair.linear @ base)
    voxel = max(min(pair.fixed_geometry.spacing), min(pair.moving_geometry.spacing) / larger)
    for step in steps(pair.fixed_geometry, voxel, coarse) if count else ():
        grids = fine_grids(pair, step, voxel, larger), fine_grids(other, step * larger, voxel * larger, 1 / larger)
        level = BothWays(
            LinearLevel(pair, normalised, grids[0], step, radius, threads),
            LinearLevel(other, back, grids[1], step * larger, radius, threads),
        )
        # For who follows the progress they belong to the last level.
        base, cost, cancelled = descent.at(level, len(descent.levels) - 1, base, kind, count)
        similarity = 1 - cost
        if cancelled:
            break
    return base, similarity, cancelled


def steps(geometry: Geometry, voxel: float, coarse: float) -> list[float]:
    """The steps between the samples of the finer levels.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    voxel : float
        mm that the voxels of both images are at least wide.
    coarse : float
        mm a voxel of the level before.

    Returns
    -------
    list of float
        mm, coarsest first; the last is the finest that `MOST_SAMPLES` allow.
    """
    voxels = float(np.prod([n * s / max(s, voxel) for n, s in zip(geometry.size, geometry.spacing, strict=True)]))
    finest = FINEST
    while voxels / finest**geometry.dimension > MOST_SAMPLES:
        finest = math.floor(finest) + (PART if finest < 1.5 else 1 + PART)
    out = [finest]
    while 2 * out[0] * voxel < coarse / 1.5:
        out.insert(0, math.floor(2 * out[0]) + PART)
    return [k * voxel for k in out]


def fine_grids(pair: Pair, step: float, voxel: float, larger: float) -> FineGrids:
    """The samples of a level.

    Parameters
    ----------
    pair : Pair
        The images.
    step : float
        mm between the samples of the fixed image, about: along an axis of thick slices as many as there are.
    voxel : float
        mm of the fixed image, what is the least that both images resolve.
    larger : float
        By how much the map makes lengths larger.

    Returns
    -------
    FineGrids
    """
    width = max(SIGMA * voxel, SIGMA_STEP * step)
    fixed, factors = [], []
    for n, s in zip(sizes(pair.fixed_geometry), spacings(pair.fixed_geometry), strict=True):
        factor = 1.0 if n == 1 else max(FINEST, step / s)
        count = max(1, math.floor((n - 1) / factor) + 1)
        factors.append(factor)
        fixed.append((n - 1) / 2 + (np.arange(count) - (count - 1) / 2) * factor)
    geometry = pair.moving_geometry
    there = tuple(
        max(1, min(n, math.floor(step * larger / s))) for n, s in zip(sizes(geometry), spacings(geometry), strict=True)
    )
    moving = Domain((0, 0, 0), sizes(geometry)).level_positions(there)  # type: ignore[arg-type]
    return FineGrids(fixed, tuple(factors), moving, there, width, width * larger)  # type: ignore[arg-type]


def exchanged(pair: Pair) -> Pair:
    """The pair with the fixed and the moving image in each other's place, without what is known of the fixed one.

    Parameters
    ----------
    pair : Pair
        The images.

    Returns
    -------
    Pair
        Its linear map is the inverse; it has neither regions nor landmarks nor labels.
    """
    return replace(
        pair, fixed=pair.moving, fixed_geometry=pair.moving_geometry, moving=pair.fixed,
        moving_geometry=pair.fixed_geometry, linear=np.asarray(np.linalg.inv(pair.linear)),
        fixed_intensity=pair.moving_intensity, moving_intensity=pair.fixed_intensity,
        fixed_weight=pair.moving_weight, moving_weight=pair.fixed_weight,
        more=tuple(Channel(c.moving, c.fixed, c.moving_intensity, c.fixed_intensity) for c in pair.more),
        fixed_lesion=pair.moving_lesion, moving_lesion=pair.fixed_lesion, regions=(), known=None,
    )  # fmt: skip


def _frame(geometry: Geometry) -> F64:
    """Millimetres along the axes of a grid, from its centre → LPS, ``(4, 4)``."""
    d = geometry.dimension
    out = np.eye(d + 1)
    out[:d, :d], out[:d, d] = geometry.rotation, geometry.centre
    return _in_space(out)


def _in_space(matrix: F64) -> F64:
    """A homogeneous matrix of two or three dimensions as one of three."""
    d = len(matrix) - 1
    out = np.eye(4)
    out[:d, :d], out[:d, 3] = matrix[:d, :d], matrix[:d, d]
    return out

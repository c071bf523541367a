"""Organs that slide along each other: a smooth field's ramp between two motions is made the step that it is.

The field of the coarse levels is smooth over a few of their voxels: where one organ slides along another, a band along
the border moves in a way that neither of them does, too far off for a gradient to mend. Such a band shows as a steep
gradient of a displacement that began at matches over long distances. Within it every voxel is offered the displacements
of places around it, first far ones, then nearer ones, and takes the one under which it and its next neighbours look
alike: motion is carried from both sides up to the border. Where that explains the images much better, the fine field
begins there, on control points of half the spacing; where it does not, nothing has happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.dilation import dilated
from itk_nir.engine.images import Pair
from itk_nir.engine.lattice import Axis, Banded, gaussian_matrix
from itk_nir.engine.level import FieldInTraining
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.metrics import channel_metrics, of_one_contrast

F64 = NDArray[np.float64]

#: The share of the matches of the search that must lead back: of an organ that slides all do but those in the band, of
#: a head onto a brain 0.28 do, and then steep is what has no counterpart.
SURE = 0.6

#: Length of the gradient of the displacement from which on it is steep, and voxels around the steep ones that belong to
#: the band.
STEEP, AROUND = 0.75, 3

#: Voxels along the finest axis over which the differences of the images are averaged, and from how far away the
#: displacements come that a voxel is offered; and how much longer than wide that neighbourhood is along the motion: a
#: border along which things slide runs there too.
PASSES, ALONG = ((1.0, (8, 4, 2, 1)), (0.5, (2, 1))), 3.0

#: Two displacements are of different motions where they are farther apart, voxels along the finest axis.
APART = 1.0

#: What another displacement has to save, in units of the mean squared difference of the images beyond the band.
SAVED = 1.0

#: The squared difference in the band that may be left for the step to be believed, as a share of that of the ramp.
LEFT = 0.6

#: How often what was carried up to a border is smoothed on its own side.
EVENINGS = 8

#: The Jacobian determinant that a step keeps, where smoothing it so often brings that about.
LEAST, SMOOTHINGS = 0.1, 100

#: Steps towards the control points that make a displacement at voxels.
FITTINGS = 8


def is_sure(search: str) -> bool:
    """Whether the field of a search was kept whose matches nearly all lead back.

    Parameters
    ----------
    search : str
        What is told of it: ``"kept, 95 % of the matches lead back"``.

    Returns
    -------
    bool
    """
    kept, _, share = search.partition(", ")
    return kept == "kept" and float(share.partition(" ")[0]) >= 100 * SURE


def begin_with_steps(pair: Pair, channels: LevelChannels, grids: LevelGrids, model: FieldInTraining) -> bool:
    """Let a level begin with steps, on control points of half the spacing, where things slide along each other.

    Parameters
    ----------
    pair : Pair
        The images.
    channels : LevelChannels
        The images of the level.
    grids : LevelGrids
        Its voxels.
    model : FieldInTraining
        The field, on the lattice of the level; it stays as it is where nothing slides. There is a finer lattice.

    Returns
    -------
    bool
        Whether anything slides, as far as can be seen; not under metrics for unlike contrasts.
    """
    number, threads, settings = model.velocity.number, model.threads, model.settings
    if not of_one_contrast(channel_metrics(settings.metric, settings.channel_weights, len(channels.images))):
        return False
    with torch.no_grad():
        axes = model.lattices.axes[number]
        spline = [a.evaluate(p) for a, p in zip(axes, grids.fixed, strict=True)]
        ramp = ops.separable(model.displaced(model.velocity()) * model.spacing, spline, threads)
        wanted = told_apart(pair, channels, grids, ramp, threads)
        if wanted is None:
            return False
        model.go_to(number + 1)
        axes, points = model.lattices.axes[number + 1], model.velocity.control_points
        spline = [a.evaluate(p) for a, p in zip(axes, grids.fixed, strict=True)]
        for _ in range(FITTINGS):
            made = ops.separable(model.displaced(model.velocity()) * model.spacing, spline, threads)
            points.add_(_at_nodes(wanted - made, grids.fixed, axes, threads))
    return True


@dataclass(frozen=True, eq=False)
class _Seen:
    """How unlike the images of a level are under displacements of its voxels."""

    channels: LevelChannels
    index: F64
    vector: F64
    counts: Tensor
    scales: tuple[tuple[float, float, float], ...]
    threads: int

    @classmethod
    def of(
        cls, channels: LevelChannels, index: F64, vector: F64, counts: Tensor, u: Tensor, apart: Tensor, threads: int
    ) -> _Seen:
        """Fit the intensities of every channel to each other under `u`, where it counts and not within the band."""
        scales = []
        where = counts & ~apart
        for images in channels.images:
            seen = ops.warp(images.moving, u, index, vector, threads)
            a, b = images.fixed[where].double(), seen[where].double()
            slope, offset, noise = 1.0, 0.0, 1.0
            if len(a) > 1:
                variance = float((b - b.mean()).square().mean())
                slope = float(((a - a.mean()) * (b - b.mean())).mean()) / max(variance, 1e-12)
                offset = float(a.mean() - slope * b.mean())
                noise = float((a - slope * b - offset).square().mean())
            scales.append((slope, offset, 1 / max(noise, 1e-12)))
        return cls(channels, index, vector, counts, tuple(scales), threads)

    def __call__(self, u: Tensor, kernels: list[Banded]) -> Tensor:
        """The squared difference of the images around every voxel, 1 where it is what it is beyond the band."""
        out = torch.zeros_like(u[0])
        for images, (slope, offset, scale) in zip(self.channels.images, self.scales, strict=True):
            seen = ops.warp(images.moving, u, self.index, self.vector, self.threads)
            out += scale * (images.fixed - slope * seen - offset).square()
        out *= self.counts
        return ops.separable(out[None], kernels, self.threads)[0] / len(self.scales)


def told_apart(
    pair: Pair, channels: LevelChannels, grids: LevelGrids, ramp: Tensor, threads: int
) -> Tensor | None:  # fmt: skip
    """A displacement whose steep bands are steps, where the images say so.

    Parameters
    ----------
    pair : Pair
        The images.
    channels : LevelChannels
        The images of the level.
    grids : LevelGrids
        Its voxels.
    ramp : Tensor
        ``(3, Z, Y, X)`` mm along the fixed axes: the displacement at them.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    Tensor or None
        In the same shape; None where nothing slides, as far as can be seen.
    """
    u = ramp
    voxel = grids.voxel(pair.fixed_geometry)
    unit = min(v for v, n in zip(voxel, u.shape[:0:-1], strict=True) if n > 1)
    band = dilated(_steepness(u, voxel) > STEEP, AROUND)
    index, vector = grids.voxel_map(pair, pair.linear)
    weight = counting_weight(pair, grids, u, channels.images[0].moving, index, vector, threads)
    counts = torch.ones_like(band) if weight is None else weight > 0.5
    if not bool((band & counts).any()):
        return None
    seen = _Seen.of(channels, index, vector, counts, u, band, threads)
    first = 0.0
    moved = [float(c[band & counts].double().std(correction=0)) for c in u]
    along = [m / max(*moved, 1e-6) for m in moved]
    for sigma, offers in PASSES:
        kernels = [
            gaussian_matrix(n, np.arange(n, dtype=float), sigma * (1 + ALONG * share) * unit / v)
            for n, v, share in zip(u.shape[:0:-1], voxel, along, strict=True)
        ]
        cost = seen(u, kernels)
        first = first or float(cost[band & counts].double().mean())
        for offer in offers:
            for axis, v in enumerate(voxel):
                n, step = u.shape[3 - axis], max(1, round(offer * unit / v))
                for way in (step, -step) if n > 1 else ():
                    from_there = torch.arange(n, device=u.device).add_(way).clamp_(0, n - 1)
                    other = u.index_select(3 - axis, from_there)
                    there = seen(other, kernels)
                    better = band & ((other - u).norm(dim=0) > APART * unit) & (there < cost - SAVED)
                    u, cost = torch.where(better, other, u), torch.where(better, there, cost)
    if float(cost[band & counts].double().mean()) > LEFT * first:
        return None
    return _without_folds(_evened(_without_islands(u), APART * unit), voxel, threads)


def _evened(u: Tensor, apart: float) -> Tensor:
    """A displacement at voxels smoothed over neighbours whose motion is the same: not across a step."""
    for _ in range(EVENINGS):
        total, weight = u.clone(), torch.ones_like(u[:1])
        for axis in (1, 2, 3):
            n = u.shape[axis]
            if n == 1:
                continue
            step = u.diff(dim=axis)
            like = torch.exp(-step.square().sum(0, keepdim=True) / (2 * apart) ** 2)
            for here, there in ((0, 1), (1, 0)):
                total.narrow(axis, here, n - 1).add_(like * u.narrow(axis, there, n - 1))
                weight.narrow(axis, here, n - 1).add_(like)
        u = total / weight
    return u


def _without_islands(u: Tensor) -> Tensor:
    """A displacement at voxels, each component the median of five along its own axis: borders run along the motion."""
    parts = []
    for c, part in enumerate(u):
        axis, n = 2 - c, part.shape[2 - c]
        at = torch.arange(n, device=u.device)
        near = [part.index_select(axis, (at + k).clamp(0, n - 1)) for k in range(-2, 3)]
        parts.append(torch.stack(near).median(dim=0).values)
    return torch.stack(parts)


def _without_folds(u: Tensor, voxel: Sequence[float], threads: int) -> Tensor:
    """A displacement at voxels whose folds are smoothed away, as far as that can be done without blurring a border.

    Each component is smoothed along its own axis alone: a step along a border folds nothing, however sharp it is.
    """
    size = u.new_tensor(voxel).reshape(3, 1, 1, 1)
    shape = u.shape[:0:-1]
    still = [gaussian_matrix(n, np.arange(n, dtype=float), 0.0) for n in shape]
    for _ in range(SMOOTHINGS):
        folded = ops.jacobian_map(u / size, threads) < LEAST
        if not bool(folded.any()):
            break
        parts = []
        for axis, n in enumerate(shape):
            own = [*still[:axis], gaussian_matrix(n, np.arange(n, dtype=float), 1.0), *still[axis + 1 :]]
            smooth = ops.separable(u[axis : axis + 1], own, threads)[0]
            parts.append(torch.where(dilated(folded, [int(k == axis) for k in range(3)]), smooth, u[axis]))
        u = torch.stack(parts)
    return u


def _at_nodes(values: Tensor, positions: Sequence[F64], axes: Sequence[Axis], threads: int) -> Tensor:
    """Values at the voxels of a level at control points: linear between voxels, those of the nearest beyond them."""
    matrices = []
    for p, axis in zip(positions, axes, strict=True):
        spacing = p[1] - p[0] if len(p) > 1 else 1.0
        matrices.append(gaussian_matrix(len(p), (axis.positions - p[0]) / spacing, 0.0))
    return ops.separable(values, matrices, threads)


def _steepness(u: Tensor, voxel: Sequence[float]) -> Tensor:
    """The length of the gradient of a displacement at every voxel."""
    total = torch.zeros_like(u[0])
    for axis, v in zip((3, 2, 1), voxel, strict=True):
        if u.shape[axis] > 1:
            total += torch.gradient(u, spacing=float(v), dim=axis)[0].square().sum(0)
    return total.sqrt()

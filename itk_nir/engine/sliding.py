"""Organs that slide along each other: a smooth field's ramp between two motions is made the step that it is.

The field of the coarse levels is smooth over a few of their voxels: where one organ slides along another, a band along
the border moves in a way that neither of them does, too far off for a gradient to mend. Such a band shows as a steep
gradient of a displacement that began at matches over long distances. Within it every voxel is offered the displacements
of places around it, first far ones, then nearer ones, and takes the one under which it and its next neighbours look
alike: motion is carried from both sides up to the border. Where that explains the images much better, the band alone
keeps it, as a displacement of voxels on top of a field whose control points could not follow (`with_steps`); where it
does not, nothing has happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.dilation import dilated
from itk_nir.engine.images import Pair, sizes, spacings
from itk_nir.engine.inside import share_of_object
from itk_nir.engine.lattice import Banded, Domain, gaussian_matrix
from itk_nir.engine.level import FieldInTraining, Level
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.metrics import channel_metrics, of_one_contrast
from itk_nir.engine.overlay import Overlay
from itk_nir.engine.search import Outcome
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: The share of the matches of the search that must lead back: of an organ that slides all do but those in the band
#: (0.92 at least), of two brains 0.78 do, whose gyri differ, and of a head onto a brain 0.28: then steep is what has no
#: counterpart. The second is for a search whose field was not kept: where things slide by little, a field finds what is
#: inside of them without it. They have 0.97 at least, two mice of one strain 0.89 at most.
SURE, SURE_ALONE = 0.85, 0.94

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

#: The squared difference in the band that may be left for the step to be believed, as a share of that of the ramp; and
#: for things to seem to slide.
LEFT, SEEMS = 0.6, 0.75

#: The share of an object in which the field must be steep for things to seem to slide: what little else is steep is
#: hardly the border of an organ. A right map of an echo-planar image, steep next to the sinuses, has 0.003; phantoms
#: whose organs slid and could not be told apart have 0.007 and more.
LEAST_STEEP = 0.005

#: The share of what a field gained that steps may cost: it was trained until the metric was best, noise and all, and
#: they were not. Organs that slide by 12 mm lose 0.012 of it where the 95th percentile of their error falls by half.
COST = 0.02

#: How often what was carried up to a border is smoothed on its own side.
EVENINGS = 8

#: The Jacobian determinant that voxels keep; how often at most they are smoothed for that, and how often at first each
#: component along its own axis alone: a step along a border folds nothing, however sharp it is.
LEAST, SMOOTHINGS, ALONG_FIRST = 0.1, 200, 30

#: Voxels around the band over which the steps give way to the field, and the Gaussian that does it.
BEYOND, FADING = 2, 2.0

#: Voxels at a face of the block that is not one of the image in which nothing may change: the field goes on beyond it.
RIM = 8


@dataclass(frozen=True, eq=False)
class Steps:
    """A displacement with steps at the voxels of a level, and where it holds.

    Parameters
    ----------
    positions : list of ndarray
        Of the voxels along ``x, y, z``, in voxels of the fixed image.
    displacement : Tensor
        ``(3, Z, Y, X)`` mm along the fixed axes.
    share : Tensor
        ``(1, Z, Y, X)``: 1 in the band, 0 away from it, where the field is right.
    left : float
        The squared difference of the images in the band, as a share of that without steps.
    steep : float
        The share of what the fixed image shows in which the field was steep.
    """

    positions: list[F64]
    displacement: Tensor
    share: Tensor
    left: float = 0.0
    steep: float = 1.0

    def arrays(self) -> dict[str, Tensor]:
        """What it is made of, by name; `of_arrays` is the way back.

        Returns
        -------
        dict of str to Tensor
        """
        positions = {f"steps.{axis}": torch.from_numpy(p) for axis, p in zip("xyz", self.positions, strict=True)}
        values = {f"steps.{k}": torch.tensor(getattr(self, k), dtype=torch.float64) for k in ("left", "steep")}
        return positions | {"steps.displacement": self.displacement, "steps.share": self.share} | values

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor], device: torch.device) -> Steps | None:
        """The steps of `arrays`.

        Parameters
        ----------
        arrays : mapping of str to Tensor
            What it gave, and any others.
        device : torch.device
            Where they are to be.

        Returns
        -------
        Steps or None
            None where there are none among the arrays.
        """
        if "steps.share" not in arrays:
            return None
        positions = [arrays[f"steps.{axis}"].numpy() for axis in "xyz"]
        displacement, share = (arrays[f"steps.{name}"].to(device) for name in ("displacement", "share"))
        return cls(positions, displacement, share, float(arrays["steps.left"]), float(arrays["steps.steep"]))

    def mixed(self, u: Tensor, matrices: list[Banded] | None = None, threads: int = 1) -> Tensor:
        """A displacement with these steps in it.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)`` mm, at the voxels of the level or where `matrices` lead.
        matrices : list of Banded, optional
            From the voxels of the level to others, along ``x, y, z``.
        threads : int
            CPU threads.

        Returns
        -------
        Tensor
            Like `u`.
        """
        share, steps = self.share, self.displacement
        if matrices is not None:
            share, steps = (ops.separable(a, matrices, threads) for a in (share, steps))
        return u + share * (steps - u)


def is_sure(search: Outcome) -> bool:
    """Whether so many matches of a search lead back that what is steep may be a border between things that slide.

    Parameters
    ----------
    search : Outcome
        What became of it.

    Returns
    -------
    bool
    """
    return search.consistent >= (SURE if search.kept else SURE_ALONE)


def find_steps(
    pair: Pair, channels: LevelChannels, grids: LevelGrids, domain: Domain, model: FieldInTraining, search: Outcome
) -> Steps | None:  # fmt: skip
    """The steps of a field, where things slide along each other.

    Parameters
    ----------
    pair : Pair
        The images.
    channels : LevelChannels
        The images of the level.
    grids : LevelGrids
        Its voxels.
    domain : Domain
        The block of the fixed grid that is worked on.
    model : FieldInTraining
        The field, on the lattice of the level.
    search : Outcome
        What became of the search that the field began with.

    Returns
    -------
    Steps or None
        None where nothing slides, as far as can be seen; under metrics for unlike contrasts; and with regions, whose
        shape or volume is kept by a displacement of voxels of its own.
    """
    number, threads, settings = model.velocity.number, model.threads, model.settings
    metrics = channel_metrics(settings.metric, settings.channel_weights, len(channels.images))
    if not is_sure(search) or pair.regions or not of_one_contrast(metrics):
        return None
    with torch.no_grad():
        axes = model.lattices.axes[number]
        spline = [a.evaluate(p) for a, p in zip(axes, grids.fixed, strict=True)]
        ramp = ops.separable(model.displaced(model.velocity()) * model.spacing, spline, threads)
        band = steep_band(pair, grids, ramp)
        found = told_apart(pair, channels, grids, ramp, band, threads)
        if found is None:
            return None
        near, whole = dilated(band, BEYOND), sizes(pair.fixed_geometry)
        for axis, (start, n, size) in enumerate(zip(domain.start, domain.size, whole, strict=True)):
            count = near.shape[2 - axis]
            for inner, first in ((start > 0, 0), (start + n < size, max(0, count - RIM))):
                if inner:
                    near.narrow(2 - axis, first, min(RIM, count)).fill_(False)
        fading = [gaussian_matrix(n, np.arange(n, dtype=float), FADING) for n in reversed(near.shape)]
        steps, left = found
        steep = share_of_object(_is_steep(pair, grids, ramp), channels.images[0].fixed)
        return Steps(grids.fixed, steps, ops.separable(near.float()[None], fading, threads), left, steep)


def similarity_with(steps: Steps, level: Level, model: FieldInTraining) -> float:
    """The metric under a field with steps.

    Parameters
    ----------
    steps : Steps
        At the voxels of the level.
    level : Level
        The level.
    model : FieldInTraining
        The field, on its lattice.

    Returns
    -------
    float
    """
    with torch.no_grad():
        u = ops.separable(model.displaced(model.velocity()), level.spline, level.threads) * model.spacing
        u = steps.mixed(u) / model.spacing
        return float(level.metric(View(u, level.grid_to_moving, level.displacement_to_moving, threads=level.threads)))


def are_worth(left: float, alike: float, before: float, after: float) -> bool:
    """Whether the band is explained much better with steps, and the images are hardly less alike than without.

    Parameters
    ----------
    left : float
        Of `Steps`.
    alike : float
        The metric with steps, see `similarity_with`.
    before, after : float
        The metric at the start, and under the trained field without steps.

    Returns
    -------
    bool
    """
    return left <= LEFT and alike >= after - COST * (after - before)


def with_steps(field: VelocityField, steps: Steps, domain: Domain) -> VelocityField:
    """A field that has steps where the band is, and is what it was elsewhere.

    Parameters
    ----------
    field : VelocityField
        A trained field without an overlay.
    steps : Steps
        Of the level it was trained at last.
    domain : Domain
        The block of the fixed grid that is worked on.

    Returns
    -------
    VelocityField
        With an overlay; free of folds where the field is.
    """
    positions, matrices = [], []
    for axis, (p, start, n) in enumerate(zip(steps.positions, domain.start, domain.size, strict=True)):
        at = torch.nonzero(steps.share[0].amax([k for k in range(3) if k != 2 - axis]) > 0).cpu().numpy()
        step = p[1] - p[0] if len(p) > 1 else 1.0
        first = max(start, int(np.floor(p[at.min()] - step)))
        voxels = np.arange(first, min(start + n, int(np.ceil(p[at.max()] + step)) + 1), dtype=float)
        positions.append(voxels)
        matrices.append(gaussian_matrix(len(p), (voxels - p[0]) / step, 0.0))
    with torch.no_grad():
        u = field.on_grid(positions)
        unfolded = _without_folds(steps.mixed(u, matrices, field.threads), spacings(field.geometry), field.threads)
    first_voxel = tuple(int(p[0]) for p in positions)
    return replace(field, overlay=Overlay(first_voxel, unfolded - u))  # type: ignore[arg-type]


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


def steep_band(pair: Pair, grids: LevelGrids, ramp: Tensor) -> Tensor:
    """Where a displacement is steep, and what lies around.

    Parameters
    ----------
    pair : Pair
        The images.
    grids : LevelGrids
        The voxels of the level.
    ramp : Tensor
        ``(3, Z, Y, X)`` mm along the fixed axes: the displacement at them.

    Returns
    -------
    Tensor
        ``(Z, Y, X)`` bool.
    """
    return dilated(_is_steep(pair, grids, ramp), AROUND)


def told_apart(
    pair: Pair, channels: LevelChannels, grids: LevelGrids, ramp: Tensor, band: Tensor, threads: int
) -> tuple[Tensor, float] | None:  # fmt: skip
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
    band : Tensor
        ``(Z, Y, X)`` bool, of `steep_band`.
    threads : int
        CPU threads; no result depends on it.

    Returns
    -------
    tuple of Tensor and float, or None
        In the same shape, not free of folds; and the squared difference of the images in the band, as a share of that
        without steps. None where nothing slides, as far as can be seen.
    """
    u = ramp
    voxel = grids.voxel(pair.fixed_geometry)
    unit = min(v for v, n in zip(voxel, u.shape[:0:-1], strict=True) if n > 1)
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
    left = float(cost[band & counts].double().mean()) / max(first, 1e-12)
    if left > SEEMS:
        return None
    return _evened(_without_islands(u), APART * unit), left


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
    """A displacement at voxels, smoothed at those that are folded and next to them until none is."""
    size = u.new_tensor(voxel).reshape(3, 1, 1, 1)
    axes = [k for k in range(3) if u.shape[1 + k] > 1]
    u = u.clone()
    for number in range(SMOOTHINGS):
        folded = ops.jacobian_map(u / size, threads) < LEAST
        if not bool(folded.any()):
            break
        at = torch.nonzero(dilated(folded, 1), as_tuple=True)
        here = u[:, at[0], at[1], at[2]]
        around = {}
        for axis in axes:
            ends = []
            for way in (-1, 1):
                there = list(at)
                there[axis] = (at[axis] + way).clamp(0, u.shape[1 + axis] - 1)
                ends.append(u[:, there[0], there[1], there[2]])
            around[axis] = (here + (ends[0] + ends[1]) / 2) / 2
        if number < ALONG_FIRST:
            u[:, at[0], at[1], at[2]] = torch.stack([around.get(2 - c, here)[c] for c in range(3)])
        else:
            u[:, at[0], at[1], at[2]] = torch.stack(list(around.values())).mean(0)
    return u


def _is_steep(pair: Pair, grids: LevelGrids, ramp: Tensor) -> Tensor:
    return _steepness(ramp, grids.voxel(pair.fixed_geometry)) > STEEP


def _steepness(u: Tensor, voxel: Sequence[float]) -> Tensor:
    """The length of the gradient of a displacement at every voxel."""
    total = torch.zeros_like(u[0])
    for axis, v in zip((3, 2, 1), voxel, strict=True):
        if u.shape[axis] > 1:
            total += torch.gradient(u, spacing=float(v), dim=axis)[0].square().sum(0)
    return total.sqrt()

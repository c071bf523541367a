"""A search for motion that a gradient cannot find: matches over long distances, both ways.

A gradient sees as far as the images are smooth. Here the features of a coarse voxel are compared at every displacement
of whole voxels up to a sixth of the image, summed over blocks; the displacement of every block is picked, smoothed over
its neighbours and picked again near what they agree on, ever nearer (a convex relaxation [1]_). The same is done from
the moving image to the fixed one: where the way there and back does not lead home, a match is not to be trusted. A
smooth field through the matches, each weighted by that, is what the coarse field may begin with.

Features are bytes: for one contrast the intensity in units of its neighbourhood, at four scales; for unlike ones the
self-similarity descriptors (MIND-SSC).

References
----------
.. [1] Heinrich, Papież, Schnabel, Handels, "Non-parametric discrete registration with convex optimisation", WBIR 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import Pair, common_domain, sizes, spacings
from itk_nir.engine.lattice import gaussian_matrix
from itk_nir.engine.level_grids import LevelGrids, at_nearest, inside_image
from itk_nir.engine.ops.reference_matching import with_neighbours
from itk_nir.engine.restriction import held_axes
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: By dimension: voxels of the block's longest axis, about; the farthest displacement as a share of it; voxels of a
#: block, a match each, along an axis.
SIZE, REACH, BLOCK = {2: 256, 3: 56}, {2: 0.1, 3: 0.16}, {2: 6, 3: 3}

#: Voxels times displacements that are compared at most: about half a second on two threads.
MOST_WORK = 8e8

#: Around the block that is worked on, in voxels of the fixed image.
MARGIN = 8

#: The weights of the rounds of picking: of the squared distance from what the neighbours agree on, which is 1 at half
#: the reach, against a cost that is 1 where nothing belongs together. The first holds to no motion: where nothing
#: counts all costs are equal.
ROUNDS = (1e-4, 0.003, 0.01, 0.03, 0.1)

#: How far from home the way there and back may lead, voxels, for a match to be trusted.
HOME = 2.0

#: Step between neighbouring matches, voxels, from which on it is held for one between things that slide along each
#: other; and how often the smooth field through them is found anew.
STEP, REWEIGHTINGS = 0.5, 5

#: Trust in a match that is not to be trusted: what its neighbours do is worth a thousand times as much.
LEAST_TRUST = 1e-3

#: Share of the matches that must lead back for them to say anything of the images: those of different things have 0.03
#: at most.
CONSISTENT = 0.2

#: Scales of the neighbourhoods of intensities, voxels, and what a standard deviation is in bytes.
NEIGHBOURHOODS, DEVIATION = (2.0, 4.0, 8.0, 16.0), 50.0

#: Variance of a normalised image within a neighbourhood below which it is flat.
FLAT = 0.01


@dataclass(frozen=True, eq=False)
class Matches:
    """A smooth displacement through matches.

    Parameters
    ----------
    positions : list of ndarray
        Of the nodes along ``x, y, z``, in voxels of the fixed image.
    displacement : Tensor
        ``(3, z, y, x)`` mm along the fixed axes, before the linear map of the pair.
    consistent : float
        Share of the nodes from which the way there and back leads home to a voxel of the search: next to none for
        images of different things.
    trusted : Tensor
        ``(z, y, x)``, the nodes from which it leads home to about two.
    """

    positions: list[F64]
    displacement: Tensor
    consistent: float
    trusted: Tensor

    def on_grid(self, positions: Sequence[F64]) -> Tensor:
        """The displacement on a regular grid: linear between the nodes, that of the nearest beyond them.

        Parameters
        ----------
        positions : sequence of ndarray
            ``[x, y, z]``, in voxels of the fixed image.

        Returns
        -------
        Tensor
            ``(3, len z, len y, len x)`` mm along the fixed axes.
        """
        matrices = []
        for nodes, at in zip(self.positions, positions, strict=True):
            spacing = nodes[1] - nodes[0] if len(nodes) > 1 else 1.0
            matrices.append(gaussian_matrix(len(nodes), (at - nodes[0]) / spacing, 0.0))
        return ops.separable(self.displacement, matrices)


@dataclass(frozen=True)
class Outcome:
    """What became of a search.

    Parameters
    ----------
    told : str
        In words; empty where there was none.
    consistent : float
        Share of the matches that lead back; 0 where nothing was searched for.
    kept : bool
        Whether the field from there was kept.
    slides : bool
        Whether things seem to slide along each other, in a way that the field does not show.
    """

    told: str = ""
    consistent: float = 0.0
    kept: bool = False
    slides: bool = False


@dataclass(frozen=True, eq=False)
class _Side:
    """An image on the grid of the search and as far around as it reaches: features of each channel, where it counts."""

    features: list[Tensor]
    counts: Tensor

    def within(self, reach: ops.Whole) -> _Side:
        """The grid of the search alone."""
        part = tuple(slice(r, n - r) for r, n in zip(reach[::-1], self.counts.shape, strict=True))
        return _Side([f[part] for f in self.features], self.counts[part])


def find_matches(pair: Pair, one_contrast: bool, threads: int = 1, restrict: Sequence[float] = ()) -> Matches:
    """Search for the displacement between two images, under the linear map of the pair.

    Parameters
    ----------
    pair : Pair
        The images.
    one_contrast : bool
        Whether a brighter place in one image is a brighter place in the other.
    threads : int
        CPU threads; no result depends on it.
    restrict : sequence of float
        1 for an axis of the fixed image along which things may move, 0 for the others; empty: all.

    Returns
    -------
    Matches
    """
    geometry = pair.fixed_geometry
    dimension, unit = geometry.dimension, min(geometry.spacing)
    domain = common_domain(pair, MARGIN * unit)
    longest = max(n * s for n, s in zip(domain.size, spacings(geometry), strict=True))
    factor, work = longest / SIZE[dimension] / unit, math.inf
    while work > MOST_WORK:  # voxels are shrunk by whole numbers: there may be many more than wanted
        grids = LevelGrids.of(pair, domain, max(1.0, factor))
        voxel = grids.voxel(geometry)
        size: ops.Whole = tuple(len(p) for p in grids.fixed)  # type: ignore[assignment]
        reach: ops.Whole = tuple(  # type: ignore[assignment]
            0 if n == 1 or axis in held_axes(restrict) else round(REACH[dimension] * longest / v)
            for axis, (n, v) in enumerate(zip(size, voxel, strict=True))
        )
        work, factor = math.prod(size) * math.prod(2 * r + 1 for r in reach), 1.3 * max(1.0, factor)
    block: ops.Whole = tuple(BLOCK[dimension] if n > 1 else 1 for n in size)  # type: ignore[assignment]
    fixed, moving = _sides(pair, grids, reach, one_contrast, threads)
    there, known = _matched(fixed.within(reach), moving, reach, block, threads)
    back, _ = _matched(moving.within(reach), fixed, reach, block, threads)
    from_home = (there + _seen_through(back, there, block)).norm(dim=0)
    trust = known * torch.exp(-((from_home / HOME) ** 2)) + LEAST_TRUST
    inside = known > 0.5
    consistent = float((from_home[inside] <= 1.0).float().mean()) if bool(inside.any()) else 0.0
    smooth = _smooth_through(there, trust) * there.new_tensor(voxel).reshape(3, 1, 1, 1)
    positions = [
        np.array([p[k : k + b].mean() if k + b <= len(p) else p[k] + (b - 1) / 2 * f for k in range(0, len(p), b)])
        for p, b, f in zip(grids.fixed, block, grids.factors, strict=True)
    ]
    return Matches(positions, smooth, consistent, trust > 0.5)


def _sides(
    pair: Pair, grids: LevelGrids, reach: ops.Whole, one_contrast: bool, threads: int
) -> tuple[_Side, _Side]:  # fmt: skip
    """Both images on the grid of the search and around it, the moving one through the linear map."""
    geometry = pair.fixed_geometry
    around = [
        p[0] + f * np.arange(-r, len(p) + r, dtype=float)
        for p, f, r in zip(grids.fixed, grids.factors, reach, strict=True)
    ]
    wide = LevelGrids(around, grids.factors, grids.moving, grids.moving_factors)
    index, vector = wide.voxel_map(pair, pair.linear)
    still = pair.fixed.new_zeros(3, *(len(p) for p in reversed(around)))
    view = View(still, index, vector, threads=threads)
    features: tuple[list[Tensor], list[Tensor]] = [], []
    there = None
    for normalised in pair.normalised():
        images = wide.images(pair, *normalised, 0.5, threads)
        there = tuple(images[1].shape) if there is None else there
        for side, image in zip(features, (images[0], view(images[1])), strict=True):
            side.append(_features(image, one_contrast, geometry.dimension, threads))
    ends = [(p >= -0.5) & (p <= n - 0.5) for p, n in zip(around, sizes(geometry), strict=True)]
    here = torch.from_numpy(ends[2][:, None, None] & ends[1][:, None] & ends[0]).to(still.device)
    if pair.fixed_weight is not None:
        nearest = [np.clip(p, 0, n - 1) for p, n in zip(around, sizes(geometry), strict=True)]
        here &= at_nearest(pair.fixed_weight, nearest) > 0.5
    assert there is not None
    seen = inside_image(still, index, vector, there)
    seen = torch.ones_like(here) if seen is None else seen
    if pair.moving_weight is not None:
        mask = at_nearest(pair.moving_weight, grids.moving)
        seen &= View(still, index, vector, threads=threads)(mask) > 0.5
    return _Side(features[0], here.to(torch.uint8)), _Side(features[1], seen.to(torch.uint8))


def _features(image: Tensor, one_contrast: bool, dimension: int, threads: int) -> Tensor:
    """``(Z, Y, X, 16)`` uint8."""
    if not one_contrast:
        return ops.mind_descriptors(image, np.eye(3), 1, dimension, threads)
    out = torch.zeros((*image.shape, 16), dtype=torch.uint8, device=image.device)
    both = torch.stack([image, image.square()])
    for k, sigma in enumerate(NEIGHBOURHOODS):
        around = [gaussian_matrix(n, np.arange(n, dtype=float), sigma) for n in reversed(image.shape)]
        mean, square = ops.separable(both, around, threads)
        deviation = ((square - mean.square()).clamp(min=0) + FLAT).sqrt()
        out[..., k] = (128 + DEVIATION * (image - mean) / deviation).clamp(0, 255).to(torch.uint8)
    return out


def _matched(
    fixed: _Side, moving: _Side, reach: ops.Whole, block: ops.Whole, threads: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The displacement of every node in voxels, ``(3, z, y, x)``, and how much of it counts, 0 to 1."""
    costs: Tensor | None = None
    for ours, theirs in zip(fixed.features, moving.features, strict=True):
        one = ops.match_costs(
            ours, fixed.counts, theirs, moving.counts, reach, block, _unrelated(fixed, moving, ours, theirs), threads
        )
        costs = one if costs is None else (costs.int() + one.int()).clamp(max=65535).to(torch.uint16)
    assert costs is not None
    known = _counted(fixed.counts, block)
    shape, share = known.shape, known.clamp(min=LEAST_TRUST)
    scale = 4 / max(1.0, float(np.mean([r * r for r in reach if r] or [1])))
    found = torch.zeros(3, known.numel(), device=known.device)
    for weight in ROUNDS:
        wanted = found.reshape(3, *shape)
        for _ in range(2):
            wanted = with_neighbours(wanted * share) / with_neighbours(share[None])
        found, _ = ops.best_matches(costs, wanted.reshape(3, -1).contiguous(), reach, weight * scale, threads)
    return found.reshape(3, *shape), known


def _unrelated(fixed: _Side, moving: _Side, ours: Tensor, theirs: Tensor) -> int:
    """The mean summed difference of two voxels that have nothing to do with each other: of places far apart."""
    a, b = ours[fixed.counts != 0].int(), theirs[moving.counts != 0].int()
    if min(len(a), len(b)) == 0:
        return 1
    at = torch.arange(4096, device=a.device)
    far = (a[at * 7919 % len(a)] - b[at * 104729 % len(b)]).abs().sum(1)
    return max(1, int(far.float().mean().round()))


def _counted(counts: Tensor, block: ops.Whole) -> Tensor:
    """The share of every block and of those around it that counts, ``(z, y, x)``."""
    out = (counts != 0).float()
    for axis, edge in zip((2, 1, 0), block, strict=True):
        out = torch.stack([part.sum(axis) / edge for part in out.split(edge, axis)], axis)
    return with_neighbours(out) / 3 ** sum(n > 1 for n in out.shape)


def _seen_through(field: Tensor, displacement: Tensor, block: ops.Whole) -> Tensor:
    """One displacement of the nodes where another one leads, voxels."""
    still = np.eye(4)[:3]
    to_nodes = np.diag(1.0 / np.array(block))
    return torch.stack([ops.warp(f.contiguous(), displacement, still, to_nodes) for f in field])


def _smooth_through(displacement: Tensor, trust: Tensor) -> Tensor:
    """The field of least ``sum trust |u - displacement|² + sum s² log(1 + |grad u|² / s²)``.

    The logarithm lets what slides along a wall keep its motion, and the wall its own; by reweighting a quadratic.
    """
    axes = [axis for axis in (1, 2, 3) if displacement.shape[axis] > 1]
    bonds = {axis: torch.ones_like(displacement[:1].diff(dim=axis)) for axis in axes}
    u = with_neighbours(displacement * trust) / with_neighbours(trust[None])
    for _ in range(REWEIGHTINGS):
        u = _least_squares(displacement, trust, bonds, u)
        bonds = {axis: 1 / (1 + u.diff(dim=axis).square().sum(0, keepdim=True) / STEP**2) for axis in axes}
    return u


def _least_squares(displacement: Tensor, trust: Tensor, bonds: dict[int, Tensor], u: Tensor) -> Tensor:
    """The field of least ``sum trust |u - displacement|² + sum bonds |grad u|²``, by conjugate gradients from `u`."""

    def normal(u: Tensor) -> Tensor:
        out = trust * u
        for axis, bond in bonds.items():
            n, step = u.shape[axis], bond * u.diff(dim=axis)
            out.narrow(axis, 0, n - 1).sub_(step)
            out.narrow(axis, 1, n - 1).add_(step)
        return out

    residual = trust * displacement - normal(u)
    direction, size = residual.clone(), residual.square().sum()
    least = 1e-6 * float((trust * displacement).square().sum()) + 1e-20
    for _ in range(100):
        if not float(size) > least:
            break
        along = normal(direction)
        step = size / (direction * along).sum()
        u, residual = u + step * direction, residual - step * along
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
    return u

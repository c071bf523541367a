"""Regions of the fixed image that stay rigid, or keep their volume, under the whole map ``p -> A(p + u(p))``.

A bone, an implant or a lesion does not follow a smooth deformation. While the field is trained, a penalty holds such
regions, so that their surroundings adapt to it (`RegionPenalty`); after that `kept` makes it exact, by a small
displacement on the voxels around them that is added to the field: in rigid regions, and one voxel around, what makes
the map the nearest rigid one, so that it stays rigid where it is interpolated linearly between voxels; in the others as
much of a radial mode as makes the volume right. It is carried smoothly into the surroundings.
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
from itk_nir.engine.dilation import dilated
from itk_nir.engine.images import Pair, sizes, spacings
from itk_nir.engine.lattice import Axis, Banded, gaussian_matrix
from itk_nir.engine.ops import reference
from itk_nir.engine.overlay import Overlay
from itk_nir.engine.point_fits import nearest_rotation, rigid_fit
from itk_nir.engine.progress import Optimised
from itk_nir.engine.region_labels import Region
from itk_nir.engine.restriction import held_axes
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: The least determinant that counts in the logarithm of the penalty.
LEAST_DETERMINANT = 0.01

#: Samples that a region has along each axis at least, where it has as many voxels.
FEWEST_SAMPLES = 4

#: How often the change is smoothed into the surroundings, by a Gaussian of one voxel each time: the first that leaves
#: no determinant below `LEAST_LEFT` is taken.
SMOOTHINGS, LEAST_LEFT = (16, 64, 256), 0.25

#: Relative error of a volume that ends the search for it, and most steps.
VOLUME_TOLERANCE, VOLUME_STEPS = 1e-5, 12

#: The amount of a mode that its slope is taken over, and how often a step is tried, half as long each time.
SMALL, SHORTENED = 1e-3, 6

#: Relative error of a volume that is told.
NOTABLE_VOLUME = 5e-3

#: How far from rigid a region may be that cannot be it without a word, mm.
NOTABLE_MOTION = 0.05


@dataclass(frozen=True, eq=False)
class WholeMap:
    """The whole map in numbers: where a displacement along the axes of the fixed image takes a voxel.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    linear : ndarray
        ``(d + 1, d + 1)`` LPS mm, what follows the deformation.
    restrict : tuple of float
        One value an axis of the fixed image, 0 where nothing may move along it, or none.
    """

    geometry: Geometry
    linear: F64
    restrict: tuple[float, ...] = ()

    def points(self, index: F64) -> F64:
        """Physical points of voxel positions.

        Parameters
        ----------
        index : ndarray
            ``(N, 3)``, ``x, y, z``.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """
        return self.geometry.index_to_physical(index[:, : self.geometry.dimension])

    def still(self, points: F64) -> F64:
        """Where the linear map takes points.

        Parameters
        ----------
        points : ndarray
            ``(N, d)`` LPS mm.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """
        return np.asarray(points @ self.linear[:-1, :-1].T + self.linear[:-1, -1])

    def nearest_rigid(self, points: F64, targets: F64) -> tuple[F64, F64]:
        """The rigid map that takes points nearest to targets, and nothing along held axes.

        Parameters
        ----------
        points, targets : ndarray
            ``(N, d)`` LPS mm, of the fixed and of the moving side.

        Returns
        -------
        rotation, shift : ndarray
            As of `rigid_fit`. With held axes, a motion along the free ones and then the turn of the linear map.
        """
        held = held_axes(self.restrict)
        if not held:
            return rigid_fit(points, targets)
        d, axes = points.shape[1], self.geometry.rotation
        free = [axis for axis in range(d) if axis not in held]
        # A linear map that moves nothing along the held axes either may shear, which its nearest rotation would turn.
        keeps = np.allclose((axes.T @ (self.linear[:-1, :-1] - np.eye(d)))[held], 0, rtol=0, atol=1e-9)
        turn = np.eye(d) if keeps else nearest_rotation(self.linear[:-1, :-1])[0]
        a, b = points @ axes, targets @ turn @ axes
        rotation, shift = np.eye(d), b.mean(0) - a.mean(0)
        rotation[np.ix_(free, free)], shift[free] = rigid_fit(a[:, free], b[:, free])
        return turn @ axes @ rotation @ axes.T, turn @ axes @ shift

    @property
    def displacement_to_moving(self) -> F64:
        """``(d, d)``: mm along the fixed axes → mm LPS of the moving side."""
        return np.asarray(self.linear[:-1, :-1] @ self.geometry.rotation)

    @property
    def log_determinant(self) -> float:
        """Of the linear map."""
        return math.log(abs(np.linalg.det(self.linear[:-1, :-1])))

    def displacement_for(self, points: F64, targets: F64) -> F64:
        """The displacements that make the whole map take points to targets.

        Parameters
        ----------
        points, targets : ndarray
            ``(N, d)`` LPS mm, of the fixed and of the moving side.

        Returns
        -------
        ndarray
            ``(N, d)`` mm along the axes of the fixed image.
        """
        back = np.linalg.inv(self.linear)
        moved = targets @ back[:-1, :-1].T + back[:-1, -1]
        return np.asarray((moved - points) @ self.geometry.rotation)


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A region at some of its voxels, on the lattice of a level."""

    region: Region
    splines: list[Banded]  # lattice → a block of samples that holds the region, and one around it
    inside: Tensor  # (z, y, x) bool: the samples of the block that belong to it
    step: Tensor  # (3, 1, 1, 1) mm between samples
    index: F64  # (N, 3) voxels, those inside
    share: float  # of the volume that is compared

    @classmethod
    def of(
        cls, region: Region, axes: list[Axis], geometry: Geometry, factors: Sequence[int], volume: float
    ) -> _Sampled:
        """At every so many voxels of an axis, at most `factors`; `volume` is what is compared, mm^d."""
        strides = [max(1, min(f, n // FEWEST_SAMPLES)) for f, n in zip(factors, region.size, strict=True)]
        positions = _positions(region, strides, geometry)
        inside = _labelled(region, positions)
        if not inside.any():  # thin and slanted: between the samples
            strides = [1, 1, 1]
            positions = _positions(region, strides, geometry)
            inside = _labelled(region, positions)
        voxel = math.prod(geometry.spacing)
        step = torch.tensor([f * s for f, s in zip(strides, spacings(geometry), strict=True)], dtype=torch.float32)
        splines = [a.evaluate(p) for a, p in zip(axes, positions, strict=True)]
        share = float(region.inside.sum()) * voxel / volume
        device = region.inside.device
        return cls(region, splines, inside, step.reshape(3, 1, 1, 1).to(device), _index(positions, inside), share)


def _positions(region: Region, strides: Sequence[int], geometry: Geometry) -> list[F64]:
    """Every so many voxels of the block, and one sample around where the grid has one; ``[x, y, z]``."""
    out = []
    sizes = [*geometry.size, 1][:3]
    for start, size, f, n in zip(region.start, region.size, strides, sizes, strict=True):
        count = (size - 1) // f + 1
        first = start + (size - 1 - (count - 1) * f) // 2
        at = first + f * np.arange(-1, count + 1)
        out.append(at[(at >= 0) & (at < n)].astype(float))
    return out


def _labelled(region: Region, positions: list[F64]) -> Tensor:
    """Which samples belong to a region, ``(z, y, x)`` bool."""
    inside = region.inside
    for axis, (p, start, n) in enumerate(zip(positions, region.start, region.size, strict=True)):
        at = torch.from_numpy((p - start).astype(np.int64)).to(inside.device)
        within = ((at >= 0) & (at < n)).reshape([-1 if a == 2 - axis else 1 for a in range(3)])
        inside = inside.index_select(2 - axis, at.clamp(0, n - 1)) & within
    return inside


def _index(positions: list[F64], inside: Tensor) -> F64:
    """Voxel positions ``(N, 3)``, ``x, y, z``, of the samples that are true."""
    at = np.nonzero(inside.cpu().numpy())
    return np.stack([p[k] for p, k in zip(positions, at[::-1], strict=True)], -1)


class RegionPenalty:
    """What a displacement on the lattice of a level does to regions, as a differentiable number without a unit.

    Parameters
    ----------
    pair : Pair
        The images, their linear map and the regions.
    axes : list of Axis
        The lattice of the level.
    spacing : float
        Of the lattice, mm.
    factors : tuple of int
        Voxels of the image that make one of the level.
    volume : float
        What is compared, mm^d: regions count by their share of it, as the similarity does.
    weight : float
        Of the penalty.
    threads : int
        CPU threads; no result depends on it.
    restrict : tuple of float
        As of `WholeMap`.

    Notes
    -----
    For a rigid region the mean of ``|y - R p - t|² / voxel²`` over its points, where ``y`` is what the whole map makes
    of ``p``, ``R`` and ``t`` the nearest rigid map (no gradient goes through the fit, which needs none: it minimises
    the same sum) and ``voxel`` the size of a voxel of the level. For one that keeps its volume, the mean of ``(log
    det)²`` of the whole map.
    """

    map: WholeMap
    spacing: float
    weight: float
    threads: int
    voxel: float

    def __init__(
        self, pair: Pair, axes: list[Axis], spacing: float, factors: tuple[int, int, int], volume: float,
        weight: float, threads: int, restrict: tuple[float, ...] = (),
    ) -> None:  # fmt: skip
        self.map = WholeMap(pair.fixed_geometry, pair.linear, restrict)
        self.spacing, self.weight, self.threads = spacing, weight, threads
        self.samples = [_Sampled.of(r, axes, pair.fixed_geometry, factors, volume) for r in pair.regions]
        self.voxel = max(f * s for f, s in zip(factors, pair.fixed_geometry.spacing, strict=False))

    def __call__(self, u: Tensor) -> Tensor:
        """The penalty.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)``, displacement on the lattice, in its units.

        Returns
        -------
        Tensor
            Scalar.
        """
        total = u.new_zeros(())
        for sampled in self.samples:
            there = ops.separable(u, sampled.splines, self.threads) * self.spacing
            part = self._bending if sampled.region.kind == "rigid" else self._swelling
            total = total + sampled.share * part(sampled, there)
        return self.weight * total

    def _bending(self, sampled: _Sampled, u: Tensor) -> Tensor:
        """Mean squared distance from the nearest rigid map, in voxels of the level."""
        points = self.map.points(sampled.index)
        d = points.shape[1]
        moved = u[:d, sampled.inside].T @ _like(self.map.displacement_to_moving.T, u)
        still = self.map.still(points)
        rotation, shift = self.map.nearest_rigid(points, still + moved.detach().double().cpu().numpy())
        return (moved - _like(points @ rotation.T + shift - still, u)).square().sum(1).mean() / self.voxel**2

    def _swelling(self, sampled: _Sampled, u: Tensor) -> Tensor:
        """Mean squared logarithm of the determinant of the whole map."""
        determinant = reference.jacobian_map(u / sampled.step.to(u.dtype))[sampled.inside]
        return (determinant.clamp(min=LEAST_DETERMINANT).log() + self.map.log_determinant).square().mean()


def _like(array: F64, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(tensor)


def at_rest(done: Optimised, pair: Pair) -> Optimised:
    """Take a deformation back, but for what rigid and volume-keeping regions need.

    Parameters
    ----------
    done : Optimised
        What a deformable stage returned.
    pair : Pair
        The images, their linear map and the regions.

    Returns
    -------
    Optimised
        With the similarity before the deformation.
    """
    return replace(done, field=kept(done.field.at_rest(), pair)[0], similarity=done.similarity_start)


def kept(field: VelocityField, pair: Pair) -> tuple[VelocityField, tuple[str, ...]]:
    """A field under which the rigid regions are exactly rigid and the others have their volume.

    Parameters
    ----------
    field : VelocityField
        A trained field.
    pair : Pair
        The images, their linear map and the regions.

    Returns
    -------
    field : VelocityField
        With an `overlay`; the very same where there are no regions.
    notes : tuple of str
        What could not be kept, a sentence each.
    """
    if not pair.regions:
        return field, ()
    tried: list[tuple[float, VelocityField, list[str]]] = []
    for smoothings in SMOOTHINGS:
        correction = _Correction(field, pair, smoothings)
        found = replace(field, overlay=correction.made())
        tried.append((correction.least_determinant(found), found, correction.notes))
        if tried[-1][0] >= LEAST_LEFT:
            break
    least, found, notes = max(tried, key=lambda one: one[0])
    if least <= 0:
        notes.append("the map is folded around the rigid or volume-keeping regions; see report.folded_voxels")
    return found, tuple(notes)


class _Correction:
    """What has to be added to a displacement for the sake of the regions, on a block of voxels that holds them all."""

    def __init__(self, field: VelocityField, pair: Pair, smoothings: int) -> None:
        self.geometry, self.threads = pair.fixed_geometry, field.threads
        self.map = WholeMap(pair.fixed_geometry, pair.linear, field.fine.lattices.restrict)
        self.held = held_axes(self.map.restrict)
        self.smoothings = smoothings
        self.notes: list[str] = []
        size, margin = np.array(sizes(pair.fixed_geometry)), math.ceil(3 * math.sqrt(smoothings))
        first = np.min([r.start for r in pair.regions], 0) - margin
        last = np.max([np.add(r.start, r.size) for r in pair.regions], 0) + margin
        self.first, last = np.maximum(first, 0), np.minimum(last, size)
        self.positions = [np.arange(a, b, dtype=float) for a, b in zip(self.first, last, strict=True)]
        self.voxel = torch.tensor(spacings(self.geometry), dtype=torch.float32).reshape(3, 1, 1, 1).to(field.device)
        self.plain = field.on_grid(self.positions)
        self.kernels = [gaussian_matrix(len(p), np.arange(len(p), dtype=float), 1.0) for p in self.positions]
        #: Where nothing may change: the rim of the block, where that is not the rim of the image.
        self.rim = torch.zeros_like(self.plain[0], dtype=torch.bool)
        for axis in range(3):
            for inner, at in ((self.first[axis] > 0, 0), (last[axis] < size[axis], -1)):
                if inner:
                    self.rim.select(2 - axis, at).fill_(True)
        self.inside = {r: self._in_block(r) for r in pair.regions}
        self.any = torch.stack(list(self.inside.values())).any(0)

    def made(self) -> Overlay:
        """The correction."""
        change, held = torch.zeros_like(self.plain), self.rim.clone()
        for region, inside in self.inside.items():
            if region.kind == "rigid":
                # With the voxels around it: what the map at the rim of its outermost voxels is interpolated from.
                zone = inside | (dilated(inside, 1) & ~self.any)
                change = torch.where(zone, self._rigid_displacement(region, inside) - self.plain, change)
                held |= zone
        change = self._carried(change, held)
        volume = {r: self._mode(inside, held) for r, inside in self.inside.items() if r.kind == "volume"}
        change = self._with_volumes(change, volume) if volume else change
        return Overlay(tuple(int(v) for v in self.first), change)  # type: ignore[arg-type]

    def least_determinant(self, field: VelocityField) -> float:
        """Of a field in the block."""
        return float(ops.jacobian_map(field.on_grid(self.positions).div_(self.voxel), self.threads).min())

    def _in_block(self, region: Region) -> Tensor:
        out = torch.zeros_like(self.rim)
        at = tuple(slice(a - b, a - b + n) for a, b, n in zip(region.start, self.first, region.size, strict=True))
        out[at[::-1]] = region.inside
        return out

    def _rigid_displacement(self, region: Region, inside: Tensor) -> Tensor:
        """The displacement of the rigid map nearest to the field in a region, in the whole block."""
        points = self.map.points(_index(self.positions, inside))
        d = points.shape[1]
        there = self.plain[:d, inside].T.double().cpu().numpy()
        rotation, shift = self.map.nearest_rigid(
            points, self.map.still(points) + there @ self.map.displacement_to_moving.T
        )
        everywhere = self.map.points(_index(self.positions, torch.ones_like(inside)))
        wanted = self.map.displacement_for(everywhere, everywhere @ rotation.T + shift)
        out = torch.zeros_like(self.plain)
        out[:d] = _like(wanted.T, out).reshape(d, *inside.shape)
        if self.held and float(out[self.held][:, inside].abs().max()) > NOTABLE_MOTION:
            # What comes before or after stretches it along axes on which nothing may move.
            self.notes.append(f"region {region.label} cannot stay rigid where nothing may move along some axes")
        out[self.held] = 0
        return out

    def _mode(self, inside: Tensor, held: Tensor) -> Tensor:
        """What swells a region about its centre, carried into the surroundings, ``(3, z, y, x)`` mm."""
        centre = _index(self.positions, inside).mean(0)
        out = torch.zeros_like(self.plain)
        for c, (p, s) in enumerate(zip(self.positions, spacings(self.geometry), strict=True)):
            if c in self.held:
                continue
            out[c] = _like((p - centre[c]) * s, out).reshape([-1 if a == 2 - c else 1 for a in range(3)])
        zone = (inside | (dilated(inside, 1) & ~self.any)) & ~held
        return self._carried(out * zone, zone | held)

    def _with_volumes(self, change: Tensor, modes: dict[Region, Tensor]) -> Tensor:
        """A change and as much of every mode as gives all regions their volumes, by Newton's method.

        For all of them at once: what is added for one reaches into its neighbours.
        """
        plain = self.plain + change

        def with_modes(amounts: F64) -> Tensor:
            return sum((float(a) * mode for a, mode in zip(amounts, modes.values(), strict=True)), plain)

        def gaps(amounts: F64) -> F64:
            """Logarithm of each volume as a share of what it was."""
            determinant = reference.jacobian_map(with_modes(amounts).double() / self.voxel)
            means = np.array([float(determinant[self.inside[region]].mean()) for region in modes])
            return np.log(np.maximum(means, LEAST_DETERMINANT)) + self.map.log_determinant

        amounts = np.zeros(len(modes))
        left = gaps(amounts)
        for _ in range(VOLUME_STEPS):
            if np.abs(left).max() < VOLUME_TOLERANCE:
                break
            slopes = np.stack([(gaps(amounts + SMALL * one) - left) / SMALL for one in np.eye(len(modes))], 1)
            step = np.linalg.lstsq(slopes, -left, rcond=1e-6)[0]
            for halvings in range(SHORTENED):
                there = amounts + 0.5**halvings * step
                found = gaps(there)
                if np.abs(found).max() < np.abs(left).max():
                    break
            else:
                break
            amounts, left = there, found
        for region, off in zip(modes, left, strict=True):
            if abs(off) > NOTABLE_VOLUME:
                self.notes.append(f"the volume of region {region.label} is off by {100 * math.expm1(off):.1f} %")
        return with_modes(amounts) - self.plain

    def _carried(self, values: Tensor, held: Tensor) -> Tensor:
        """Values where they are held, carried smoothly to the other voxels, where they fade."""
        out = values
        for _ in range(self.smoothings):
            out = torch.where(held, values, ops.separable(out, self.kernels, self.threads))
        return out

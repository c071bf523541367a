"""Regions of the fixed image that stay rigid, or keep their volume, under the whole map ``p -> A(p + u(p))``.

A bone, an implant or a lesion does not follow a smooth deformation. While the field is trained, a penalty holds such
regions, so that their surroundings adapt to it (`RegionPenalty`); after that `kept` makes it exact. For rigid regions,
the coefficients of all splines that reach the region become samples of an affine function, which cubic B-splines
reproduce: the map is rigid there to the last digit, also where it is interpolated linearly between voxels. For the
others, a radial mode is added until the volume is right. What has to change is carried smoothly into the surroundings.
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
from itk_nir.engine.images import Pair, spacings
from itk_nir.engine.lattice import Axis, Banded, banded_from_dense, gaussian_matrix
from itk_nir.engine.ops import reference
from itk_nir.engine.region_labels import Region
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: Largest spacing of the lattice on which regions are kept, in voxels of the fixed image along its finest axis.
SPACING = 2.0

#: The least determinant that counts in the logarithm of the penalty.
LEAST_DETERMINANT = 0.01

#: Samples that a region has along each axis at least, where it has as many voxels.
FEWEST_SAMPLES = 4

#: How often the change is smoothed into the surroundings, by a Gaussian of one spacing of the lattice each time: the
#: first that leaves no determinant below `LEAST_LEFT` is taken.
SMOOTHINGS, LEAST_LEFT = (16, 64, 256), 0.1

#: Relative error of a volume that ends the search for it, and most steps.
VOLUME_TOLERANCE, VOLUME_STEPS = 1e-5, 12


@dataclass(frozen=True, eq=False)
class WholeMap:
    """The whole map in numbers: where a displacement along the axes of the fixed image takes a voxel.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    linear : ndarray
        ``(d + 1, d + 1)`` LPS mm, what follows the deformation.
    """

    geometry: Geometry
    linear: F64

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


def rigid_fit(points: F64, targets: F64) -> tuple[F64, F64]:
    """The rotation and shift that take points nearest to targets, in the least-squares sense [1]_.

    Parameters
    ----------
    points, targets : ndarray
        ``(N, d)``.

    Returns
    -------
    rotation : ndarray
        ``(d, d)``, of determinant 1.
    shift : ndarray
        ``(d,)``: a point ``p`` goes to ``rotation @ p + shift``.

    References
    ----------
    .. [1] Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32, 1976.
    """
    a, b = points.mean(0), targets.mean(0)
    u, _, v = np.linalg.svd((targets - b).T @ (points - a))
    signs = np.ones(len(a))
    signs[-1] = np.sign(np.linalg.det(u @ v))
    rotation = (u * signs) @ v
    return rotation, b - rotation @ a


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

    Notes
    -----
    For a rigid region the mean of ``|y - R p - t|² / voxel²`` over its points, where ``y`` is what the whole map makes
    of ``p``, ``R`` and ``t`` the nearest rigid map (no gradient goes through the fit, which needs none: it minimises
    the same sum) and ``voxel`` the size of a voxel of the level. For one that keeps its volume, the mean of ``(log
    det)²`` of the whole map.
    """

    def __init__(
        self, pair: Pair, axes: list[Axis], spacing: float, factors: tuple[int, int, int], volume: float,
        weight: float, threads: int,
    ) -> None:  # fmt: skip
        self.map = WholeMap(pair.fixed_geometry, pair.linear)
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
        rotation, shift = rigid_fit(points, still + moved.detach().double().cpu().numpy())
        return (moved - _like(points @ rotation.T + shift - still, u)).square().sum(1).mean() / self.voxel**2

    def _swelling(self, sampled: _Sampled, u: Tensor) -> Tensor:
        """Mean squared logarithm of the determinant of the whole map."""
        determinant = reference.jacobian_map(u / sampled.step.to(u.dtype))[sampled.inside]
        return (determinant.clamp(min=LEAST_DETERMINANT).log() + self.map.log_determinant).square().mean()


def _like(array: F64, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(tensor)


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
        With `corrected` in place of what it was trained to; the very same where there are no regions.
    notes : tuple of str
        What could not be kept, a sentence each.
    """
    if not pair.regions:
        return field, ()
    tried: list[tuple[float, VelocityField, list[str]]] = []
    for smoothings in SMOOTHINGS:
        correction = _Correction(field, pair, smoothings)
        found = replace(field, corrected=correction.made())
        tried.append((_least_determinant(found), found, correction.notes))
        if tried[-1][0] >= LEAST_LEFT:
            break
    least, found, notes = max(tried, key=lambda one: one[0])
    if least <= 0:
        notes.append("the map is folded around the rigid or volume-keeping regions; see report.folded_voxels")
    return found, tuple(notes)


def _least_determinant(field: VelocityField) -> float:
    positions = [np.arange(math.ceil(low), math.floor(high) + 1, dtype=float) for low, high in field.support()]
    voxel = torch.tensor(spacings(field.geometry), dtype=torch.float32).reshape(3, 1, 1, 1).to(field.device)
    return float(ops.jacobian_map(field.on_grid(positions).div_(voxel), field.threads).min())


class _Correction:
    """What has to be added to a displacement on its lattice for the sake of the regions."""

    def __init__(self, field: VelocityField, pair: Pair, smoothings: int) -> None:
        self.field, self.geometry = field, pair.fixed_geometry
        self.map = WholeMap(pair.fixed_geometry, pair.linear)
        self.smoothings, self.threads = smoothings, field.threads
        self.notes: list[str] = []
        self.rigid = [r for r in pair.regions if r.kind == "rigid"]
        self.volume = [r for r in pair.regions if r.kind == "volume"]
        #: Of every region, the control points whose splines reach it.
        self.zones = {r: self._zone(r) for r in pair.regions}
        self.kernels = [gaussian_matrix(n, np.arange(n, dtype=float), 1.0) for n in field.forward.shape[:0:-1]]

    def made(self) -> Tensor:
        """The displacement with the correction, ``(3, z, y, x)`` mm along the image axes."""
        u = self._with_rigid(self.field.forward.clone())
        modes = {region: self._mode(region) for region in self.volume}
        for _ in range(3 if len(self.volume) > 1 else 1):  # neighbours move each other a little
            for region in self.volume:
                u = self._with_volume(u, region, modes[region])
        return u

    def _zone(self, region: Region) -> Tensor:
        """``(z, y, x)`` bool: which control points have a spline that reaches the region or a voxel beside it."""
        near = []
        for axis, start, size in zip(self.field.axes, region.start, region.size, strict=True):
            if axis.count == 1:
                near.append(Banded(np.zeros(1, np.int32), np.ones((1, 1), np.float32), 1))
                continue
            gap = np.abs(axis.positions[:, None] - (start + np.arange(size)))
            near.append(banded_from_dense((gap <= 2 * axis.spacing + 1).astype(float)))
        return ops.separable(region.inside.float()[None], near, self.threads)[0] > 0.5

    def _with_rigid(self, u: Tensor) -> Tensor:
        if not self.rigid:
            return u
        change, fixed, nearest = torch.zeros_like(u), torch.zeros_like(u[0], dtype=torch.bool), torch.zeros_like(u[0])
        shared = set[int]()
        for region in self.rigid:
            zone = self.zones[region]
            clash = zone & fixed
            if clash.any():
                shared.add(region.label)
            ours = self._closeness(region)
            zone = zone & (~fixed | (ours > nearest))
            change = torch.where(zone, self._rigid_displacement(region, u) - u, change)
            nearest, fixed = torch.where(zone, ours, nearest), fixed | zone
        if shared:
            names = ", ".join(map(str, sorted(shared)))
            self.notes.append(
                f"rigid regions {names} lie within {4 * self.field.spacing:.3g} mm of others: beside them they are not "
                "exactly rigid; give regions that move together one label"
            )
        self.fixed = fixed
        return u + self._carried(change, fixed)

    def _closeness(self, region: Region) -> Tensor:
        """The larger, the nearer a control point is to the region, ``(z, y, x)``."""
        matrices = []
        for axis, start, size in zip(self.field.axes, region.start, region.size, strict=True):
            gap = (axis.positions[:, None] - (start + np.arange(size))) / axis.spacing
            matrices.append(banded_from_dense(np.exp(-0.5 * gap**2) + 1e-12))
        return ops.separable(region.inside.float()[None], matrices, self.threads)[0]

    def _rigid_displacement(self, region: Region, u: Tensor) -> Tensor:
        """The displacement of the rigid map nearest to the field in a region, at all control points."""
        points = self.map.points(_index(_voxels(region), region.inside))
        d = points.shape[1]
        there = self._at(u, _voxels(region))[:d, region.inside].T.double().cpu().numpy()
        rotation, shift = rigid_fit(points, self.map.still(points) + there @ self.map.displacement_to_moving.T)
        mesh = np.meshgrid(*(a.positions for a in self.field.axes[::-1]), indexing="ij")[::-1]
        nodes = self.map.points(np.stack([m.ravel() for m in mesh], -1))
        wanted = self.map.displacement_for(nodes, nodes @ rotation.T + shift)
        out = torch.zeros_like(u)
        out[:d] = _like(wanted.T, u).reshape(d, *u.shape[1:])
        return out

    def _mode(self, region: Region) -> Tensor:
        """What swells a region about its centre, carried into the surroundings, ``(3, z, y, x)`` mm."""
        index = _index(_voxels(region), region.inside).mean(0)
        out = torch.zeros_like(self.field.forward)
        for c, (axis, s) in enumerate(zip(self.field.axes, spacings(self.geometry), strict=True)):
            if axis.count > 1:
                along = _like((axis.positions - index[c]) * s, out)
                out[c] = along.reshape([-1 if a == 2 - c else 1 for a in range(3)])
        held = self.fixed if self.rigid else torch.zeros_like(out[0], dtype=torch.bool)
        zone = self.zones[region] & ~held
        return self._carried(torch.where(zone, out, torch.zeros_like(out)), zone | held)

    def _with_volume(self, u: Tensor, region: Region, mode: Tensor) -> Tensor:
        """The displacement with as much of a region's mode as its volume needs, by Newton's method."""
        positions = _positions(region, (1, 1, 1), self.geometry)
        inside = _labelled(region, positions)
        voxel = _like(np.array(spacings(self.geometry)).reshape(3, 1, 1, 1), u)
        plain, change = (self._at(x, positions).double() / voxel for x in (u, mode))

        def gap(amount: float) -> float:
            mean = float(reference.jacobian_map(plain + amount * change)[inside].mean())
            return math.log(max(mean, LEAST_DETERMINANT)) + self.map.log_determinant

        amount, left = 0.0, gap(0.0)
        for _ in range(VOLUME_STEPS):
            slope = (gap(amount + 1e-3) - left) / 1e-3
            if abs(left) < VOLUME_TOLERANCE or slope <= 0:
                break
            amount -= left / slope
            left = gap(amount)
        if abs(left) > 5e-3:
            self.notes.append(f"the volume of region {region.label} is off by {100 * math.expm1(left):.1f} %")
        return u + amount * mode

    def _at(self, u: Tensor, positions: list[F64]) -> Tensor:
        matrices = [a.evaluate(p) for a, p in zip(self.field.axes, positions, strict=True)]
        return ops.separable(u, matrices, self.threads)

    def _carried(self, values: Tensor, fixed: Tensor) -> Tensor:
        """Values at control points that are given, carried smoothly to the others, where they fade."""
        out = values
        for _ in range(self.smoothings):
            out = torch.where(fixed, values, ops.separable(out, self.kernels, self.threads))
        return out


def _voxels(region: Region) -> list[F64]:
    """The voxels of the block of a region, ``[x, y, z]``."""
    return [s + np.arange(n, dtype=float) for s, n in zip(region.start, region.size, strict=True)]

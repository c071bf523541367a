"""One resolution level of the deformable stage: its images, the field in training on it, and the loss.

    1 - similarity  +  w_u E(u)  +  w_v / |Ω| ∫ |∇v|²  +  w_j / |Ω| ∫ max(margin - det ∇phi, 0)²

and, where the user gave landmarks or labels, a term of theirs (`itk_nir.engine.correspondences`); with ``|Ω|`` the
volume that is compared and ``E`` the regulariser's energy (`itk_nir.engine.regularisers`): all terms are dimensionless,
so that weights hold for any image size, spacing and lattice. Everything is evaluated on the level's lattice and carried
to voxels by separable splines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from itk_nir.engine import ops
from itk_nir.engine.correspondences import LevelCorrespondences
from itk_nir.engine.flow import flowed
from itk_nir.engine.images import Pair
from itk_nir.engine.lattice import Banded, Domain
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight, margins, window_centres
from itk_nir.engine.metrics import LevelMetric, channel_metrics, mean_of
from itk_nir.engine.regions import RegionPenalty
from itk_nir.engine.regularisers import LevelLattice, regulariser_named
from itk_nir.engine.restriction import held_axes
from itk_nir.engine.settings import DeformableSettings
from itk_nir.engine.velocity_field import SplineVelocity, VelocityField
from itk_nir.engine.views import View
from itk_nir.errors import NothingToCompare
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: The corner of the cells from which an iteration's Jacobian determinants are taken. A cell has eight, and a cell is
#: only free of folds where all are: taking turns costs no more than always the same, and leaves next to none.
CORNERS = (0, 7, 3, 4, 5, 2, 6, 1)

#: Adam's epsilon, as a share of the gradient of one window.
EPSILON_SHARE = 2e-3


def low_similarity_factor(similarity: float, little: float) -> float:
    """Factor on the diffusion weights of a level that begins at `similarity`: 1 from `little` on.

    With little evidence only smooth motion can be trusted. Where it brings the images together, the next level begins
    above the threshold and is free again; where nothing does (another object), the images stay about where they were
    instead of being torn to fit noise.

    Parameters
    ----------
    similarity : float
        The metric at the start of the level.
    little : float
        The similarity below which there is little evidence; 0 for never.

    Returns
    -------
    float
        At least 1.
    """
    return min(1e4, max(1.0, (little / max(similarity, 1e-6)) ** 4))


class FieldInTraining:
    """The field while it is optimised: the velocity in training, and the frozen one that it is composed with.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    lattices : Lattices
        Of all levels.
    settings : DeformableSettings
        What the stage is told.
    seed : int
        Of the network's first weights.
    device : torch.device
        Where it is evaluated.
    threads : int
        CPU threads of the native ops.
    """

    geometry: Geometry
    lattices: Lattices
    settings: DeformableSettings
    seed: int
    threads: int
    velocity: SplineVelocity

    def __init__(
        self, geometry: Geometry, lattices: Lattices, settings: DeformableSettings, seed: int, device: torch.device,
        threads: int,
    ) -> None:  # fmt: skip
        self.geometry, self.lattices, self.settings, self.threads = geometry, lattices, settings, threads
        self.seed = seed
        self.velocity = SplineVelocity(geometry, lattices, 0, None, torch.Generator(), device, threads)
        self.coarse: SplineVelocity | None = None
        #: The frozen field's displacement and its inverse's, in units of the lattice: what the other is composed with.
        self.outer: tuple[Tensor, Tensor] | None = None
        self.some_held = False  # whether some control points are not free

    @property
    def spacing(self) -> float:
        """Spacing of the lattice, mm."""
        return self.velocity.spacing

    def add_network(self) -> nn.Module:
        """Add the network of the settings to the velocity in training.

        Returns
        -------
        torch.nn.Module
            The network, at zero.
        """
        config = self.settings.network
        assert config is not None
        return self.velocity.add_network(config, torch.Generator().manual_seed(self.seed))

    def freeze(self) -> None:
        """Keep the velocity as the coarse one, and begin another at zero."""
        self.coarse = self.velocity.requires_grad_(False)
        self.velocity = SplineVelocity(
            self.geometry, self.lattices, self.coarse.number, None, torch.Generator(),
            self.coarse.control_points.device, self.threads,
        )  # fmt: skip

    def go_to(self, number: int) -> None:
        """Go to the lattice `number`; the field stays what it is.

        Parameters
        ----------
        number : int
            0 is the coarsest; not below the present one.
        """
        self.velocity.refine(number)
        if self.coarse is not None:
            s = self.settings
            self.outer = self.coarse.integrated(s.transform_model, s.integration_steps, number)

    def begin_at(self, displacement: Tensor) -> None:
        """Let the velocity in training make a displacement, about.

        Parameters
        ----------
        displacement : Tensor
            ``(3, z, y, x)`` mm, on the lattice; what moves along held axes is cleared.
        """
        points, held = self.velocity.control_points, held_axes(self.lattices.restrict)
        displacement[held] = 0
        with torch.no_grad():
            points.copy_(displacement)
            for _ in range(4):  # a few steps towards the velocity that makes it
                points.add_(displacement - self.displaced(self.velocity()) * self.spacing)

    def displaced(self, v: Tensor) -> Tensor:
        """The displacement of the whole field that the coefficients of the trained part make.

        Parameters
        ----------
        v : Tensor
            ``(3, z, y, x)`` mm, on the lattice.

        Returns
        -------
        Tensor
            ``(3, z, y, x)``, in units of the lattice.
        """
        s = self.settings
        outer = None if self.outer is None else self.outer[0]
        return flowed(v, outer, s.transform_model, s.integration_steps, self.spacing, self.threads)

    def displacement(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The displacement of the whole field as it stands, at any physical points of fixed space.

        Parameters
        ----------
        points : ndarray
            ``(..., d)`` LPS mm; those of a grid along the axes of the image, ``([z,] y, x, d)``, take far less time.

        Returns
        -------
        ndarray
            In the same shape, LPS mm.
        """
        d, turn = self.geometry.dimension, self.geometry.rotation.T
        with torch.no_grad():
            now = self.trained_now()
            index = self.geometry.physical_to_index(points.reshape(-1, d)).reshape(points.shape)
            positions = _grid_positions(index)
            if positions is None:
                return now.displacement(points.reshape(-1, d)).reshape(points.shape)
            there = now.on_grid([*positions, np.zeros(1)][:3])[:d].double().cpu().numpy()
        out: NDArray[np.float64] = np.moveaxis(there, 0, -1).reshape(points.shape) @ turn
        return out

    def trained_now(self) -> VelocityField:
        """The field while it is in training.

        Returns
        -------
        VelocityField
        """
        s = self.settings
        return VelocityField(
            self.geometry, self.velocity, self.coarse, s.transform_model, s.integration_steps, self.threads
        )

    def trained(self) -> VelocityField:
        """The field as it stands.

        Returns
        -------
        VelocityField
        """
        s = self.settings
        return VelocityField(
            self.geometry, self.velocity.requires_grad_(False), self.coarse, s.transform_model, s.integration_steps,
            self.threads,
        )  # fmt: skip


def _grid_positions(index: NDArray[np.float64]) -> list[NDArray[np.float64]] | None:
    """``[x, y[, z]]`` of indices ``([z,] y, x, d)`` that are all combinations of these; None for any others."""
    d = index.shape[-1]
    if index.ndim != d + 1:
        return None
    lines = [np.moveaxis(index[..., axis], d - 1 - axis, 0).reshape(index.shape[d - 1 - axis], -1) for axis in range(d)]
    if any(np.abs(line - line[:, :1]).max() > 1e-6 for line in lines):
        return None
    return [line[:, 0] for line in lines]


@dataclass(frozen=True, eq=False)
class Level:
    """One level: the images at its resolution, where they count, and the weights of the loss.

    Parameters
    ----------
    number : int
        Counted from 0.
    settings : DeformableSettings
        What the stage is told.
    metric : LevelMetric
        The metric, with what it computed before the first iteration.
    grid_to_moving, displacement_to_moving : ndarray
        The matrices of `ops.warp`; the displacement is in units of the lattice, which scaling and squaring works in.
    spline : list of Banded
        Lattice → voxels of the level.
    energy : callable
        The regulariser's.
    cell : float
        A cell of the lattice, as a share of the volume that is compared.
    factor : float
        On the weights of diffusion, see `low_similarity_factor`.
    epsilon : float
        Adam's smallest number, for gradients per mm.
    backward : _BackwardMetric or None
        The similarity of the other direction, where that counts too.
    regions : RegionPenalty or None
        Of the regions that stay rigid or keep their volume, where there are such.
    known : LevelCorrespondences or None
        Landmarks and labels.
    threads : int
        CPU threads of the native ops.
    """

    number: int
    settings: DeformableSettings
    metric: LevelMetric
    grid_to_moving: F64
    displacement_to_moving: F64
    spline: list[Banded]
    energy: Callable[[Tensor], Tensor]
    cell: float
    factor: float
    epsilon: float
    backward: _BackwardMetric | None
    regions: RegionPenalty | None
    known: LevelCorrespondences | None
    threads: int

    @classmethod
    def make(
        cls, number: int, settings: DeformableSettings, pair: Pair, domain: Domain, channels: LevelChannels,
        grids: LevelGrids, field: FieldInTraining,
    ) -> Level:  # fmt: skip
        """A level that begins with `field`.

        Parameters
        ----------
        number : int
            Counted from 0.
        settings : DeformableSettings
            Of the whole stage.
        pair : Pair
            The images.
        domain : Domain
            The block of the fixed grid that is worked on.
        channels : LevelChannels
            The images on `grids`.
        grids : LevelGrids
            The voxels of the level.
        field : FieldInTraining
            The field so far, on the lattice of the level.

        Returns
        -------
        Level

        Raises
        ------
        NothingToCompare
            No position counts.
        """
        moving = channels.images[0].moving
        threads, h = field.threads, field.spacing
        axes = field.lattices.axes[field.velocity.number]
        spline = [a.evaluate(p) for a, p in zip(axes, grids.fixed, strict=True)]
        index, vector = grids.voxel_map(pair, pair.linear)
        vector = vector * h
        with torch.no_grad():
            start = ops.separable(field.displaced(field.velocity()), spline, threads)
            weight = counting_weight(pair, grids, start, moving, index, vector, threads)
            centres = window_centres(pair, grids, start, moving, index, vector, threads)
        chosen = channel_metrics(settings.metric, settings.channel_weights, len(channels.images))
        metric = channels.metric(chosen, weight, centres)
        if metric.count < 1:
            raise NothingToCompare(
                "nothing to compare: the fixed image is flat, masked out or outside the moving image everywhere; check "
                "the masks, the initial transform and that the images overlap (without a linear stage, ask for one)"
            )
        with torch.no_grad():
            begin = float(metric(View(start, index, vector, threads=threads)))
        # Energies are sums over cells of volume h^d; |Ω| = count * voxel volume of the level.
        voxel = grids.voxel(pair.fixed_geometry)
        present = [s for s, n in zip(voxel, domain.size, strict=True) if n > 1]
        cell = h ** len(present) / (metric.count * math.prod(present)) / margins(pair, domain, h)
        lattice = LevelLattice(h, cell, settings.lorentzian_scale, threads)
        backward = None
        if settings.symmetric:
            still = View(torch.zeros_like(start), index, vector, threads=threads)
            exchanged = channels.exchanged([still(i.moving) for i in channels.images])
            other = exchanged.metric(chosen, weight, centres)
            if other.count >= 1:  # not where the moving image is flat
                backward = _BackwardMetric(settings, other, np.diag(h / np.array(voxel)), h, threads)
        regions = None
        if pair.regions:
            volume = metric.count * math.prod(present)
            regions = RegionPenalty(
                pair, axes, h, grids.factors, volume, settings.region_weight, threads, settings.restrict
            )
        known = None
        if pair.known is not None:
            size = settings.shrink_factors[number] * min(pair.fixed_geometry.spacing)
            sigma = settings.smoothing_sigmas[number]
            known = pair.known.on_lattice(pair, grids, axes, h, size, weight, sigma, threads)
        return cls(
            number, settings, metric, index, vector, spline,
            energy=regulariser_named(settings.regulariser).energy(lattice),
            cell=cell,
            factor=low_similarity_factor(begin, mean_of(chosen, "little_evidence")),
            # A node's gradient is one window's share of the mean, per mm: Adam's smallest number must scale with both,
            # or the size of the image and the unit of length would show.
            epsilon=EPSILON_SHARE / (metric.count * min(pair.fixed_geometry.spacing)),
            backward=backward,
            regions=regions,
            known=known,
            threads=threads,
        )  # fmt: skip

    def similarity(self, u: Tensor) -> Tensor:
        """The metric under a displacement on the lattice (its units).

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)`` displacement on the lattice, in its units.

        Returns
        -------
        Tensor
            Scalar.
        """
        return self.metric(self.view(u))

    def agreement(self, u: Tensor, similarity: Tensor) -> Tensor:
        """A similarity, less what landmarks and labels still ask for; the similarity itself without any.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)`` displacement on the lattice, in its units.
        similarity : Tensor
            Scalar, that it has.

        Returns
        -------
        Tensor
            Scalar.
        """
        return similarity if self.known is None else similarity - self.known(u, self.view(u))

    def view(self, u: Tensor) -> View:
        """What a displacement on the lattice makes of a moving image.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)``, in units of the lattice.

        Returns
        -------
        View
        """
        return View(u, self.grid_to_moving, self.displacement_to_moving, self.spline, self.threads)

    def similarity_of(self, field: FieldInTraining) -> Tensor:
        """What is maximised: the metric under a field, the mean of both directions where both count, see `agreement`.

        Parameters
        ----------
        field : FieldInTraining
            The field as it stands.

        Returns
        -------
        Tensor
            Scalar.
        """
        v = field.velocity()
        u = field.displaced(v)
        return self.agreement(u, self._both_ways(field, v, u))

    def _both_ways(self, field: FieldInTraining, v: Tensor, u: Tensor) -> Tensor:
        forward = self.similarity(u)
        if self.backward is None:
            return forward
        return (forward + self.backward(v, field.outer, self.spline)) / 2

    def loss(self, field: FieldInTraining, iteration: int) -> tuple[Tensor, Tensor]:
        """The similarity that the field has here (see `agreement`), and the loss of this iteration.

        Parameters
        ----------
        field : FieldInTraining
            The field as it stands.
        iteration : int
            Counted from 0.

        Returns
        -------
        tuple of Tensor
            Similarity and loss, scalars.
        """
        settings, threads, number = self.settings, self.threads, self.number
        v = field.velocity()
        u = field.displaced(v)
        similarity = self.agreement(u, self._both_ways(field, v, u))
        loss = 1 - similarity
        if settings.smoothness[number]:
            loss = loss + self.factor * settings.smoothness[number] * self.energy(u)
        if settings.velocity_smoothness[number]:
            weight = self.factor * settings.velocity_smoothness[number] * self.cell / field.spacing**2
            loss = loss + weight * ops.diffusion(v, threads=threads)
        if settings.jacobian_weight:
            penalty = ops.jacobian_penalty(u, settings.jacobian_margin, CORNERS[iteration % 8], threads)
            loss = loss + settings.jacobian_weight * self.cell * penalty
        if self.regions is not None:
            loss = loss + self.regions(u)
        return similarity, loss


@dataclass(frozen=True, eq=False)
class _BackwardMetric:
    """The similarity of the other direction: the fixed image through the inverse, the moving one by the linear map.

    Both lie on the fixed grid of the level, so that all there is of a backward registration is the sign of ``v`` (and
    the inverse of the coarse field, which comes first).
    """

    settings: DeformableSettings
    metric: LevelMetric
    displacement_to_voxels: F64
    spacing: float
    threads: int

    def __call__(self, v: Tensor, outer: tuple[Tensor, Tensor] | None, spline: list[Banded]) -> Tensor:
        u = ops.exponential(v, self.settings.integration_steps, -1 / self.spacing, self.threads)
        if outer is not None:
            u = ops.compose(u, outer[1], self.threads)
        return self.metric(View(u, np.eye(4)[:3], self.displacement_to_voxels, spline, self.threads))

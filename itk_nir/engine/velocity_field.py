"""The trained field: one velocity, or two whose flows are composed, each a coordinate network plus a B-spline lattice.

    id + u = (id + u_1) o (id + u_2),    u_k = exp(v_k) - id   (or u_k = v_k)
    v_k(x) = sum_j B_j(x) (N_k(x_j) + c_j)

``B_j`` are the cubic B-splines of a lattice of control points ``x_j``, ``c_j`` free coefficients, and ``N_k`` a
coordinate network that is evaluated at the control points of the coarsest lattice (and carried to finer ones exactly,
by the two-scale relation). Displacements and velocities are mm along the image axes unless said otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from itk_nir.caching import cached_property
from itk_nir.engine import ops
from itk_nir.engine.continuation import Continuation, length_near_faces
from itk_nir.engine.coordinate_networks import FieldConfig, build_field
from itk_nir.engine.flow import flowed
from itk_nir.engine.images import spacings
from itk_nir.engine.lattice import Axis, shape_of
from itk_nir.engine.lattice_values import at_points, second_differences
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.overlay import Overlay, refined_inverse
from itk_nir.engine.restriction import held_axes
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


class SplineVelocity(nn.Module):
    """A velocity (or displacement) on a lattice: free coefficients, and those that a coordinate network may give.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    lattices : Lattices
        The network is evaluated on the coarsest.
    number : int
        The lattice that the free coefficients live on.
    config : FieldConfig or None
        What the network is made of.
    generator : torch.Generator
        Where the network's first weights are drawn from.
    device : torch.device
        Where it is evaluated.
    threads : int
        CPU threads of the native ops.
    """

    geometry: Geometry
    lattices: Lattices
    number: int
    config: FieldConfig | None
    control_points: nn.Parameter

    def __init__(
        self, geometry: Geometry, lattices: Lattices, number: int, config: FieldConfig | None,
        generator: torch.Generator, device: torch.device, threads: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.geometry, self.lattices, self.number = geometry, lattices, number
        self.threads = threads
        self.control_points = nn.Parameter(torch.zeros(3, *shape_of(lattices.axes[number]), device=device))
        self.config: FieldConfig | None = None
        self.network: nn.Module | None = None
        if config is not None:
            self.add_network(config, generator)

    @property
    def spacing(self) -> float:
        """Spacing of its lattice, mm."""
        return self.lattices.spacing(self.number)

    def add_network(self, config: FieldConfig, generator: torch.Generator) -> nn.Module:
        """Add a network; its output is zero until it is trained.

        Parameters
        ----------
        config : FieldConfig
            What it is made of.
        generator : torch.Generator
            Where its first weights are drawn from.

        Returns
        -------
        torch.nn.Module
            The network.
        """
        self.config, device = config, self.control_points.device
        self.network = build_field(config, self.geometry.dimension, generator, device, torch.float32)
        self._nodes = self.lattices.nodes(self.geometry).to(device)
        return self.network

    def drop_network(self) -> None:
        """Leave the control points alone."""
        self.config = self.network = None

    def refine(self, number: int) -> None:
        """Go to the finer lattice `number`; the velocity stays what it is.

        Parameters
        ----------
        number : int
            Of the lattice; 0 is the coarsest.
        """
        with torch.no_grad():
            finer = self.lattices.refined(self.control_points.detach(), self.number, number, self.threads)
        self.number, self.control_points = number, nn.Parameter(finer.clone())

    def moved(self, change: Tensor) -> SplineVelocity:
        """The same velocity with something added to its control points; the network is shared.

        Parameters
        ----------
        change : Tensor
            ``(3, z, y, x)`` mm.

        Returns
        -------
        SplineVelocity
        """
        out = copy.copy(self)
        out._parameters = {"control_points": nn.Parameter(self.control_points + change, requires_grad=False)}
        return out

    def forward(self) -> Tensor:
        """The coefficients on its lattice.

        Returns
        -------
        Tensor
            ``(3, z, y, x)`` mm along the image axes.
        """
        if self.network is None:
            return self._free(self.control_points)
        out = self.network_at_nodes()
        d = out.shape[1]
        shape = shape_of(self.lattices.axes[0])
        flat = out.T.reshape(d, *shape)
        given = flat if d == 3 else torch.cat([flat, flat.new_zeros(3 - d, *shape)])
        return self.lattices.refined(given, 0, self.number, self.threads) + self._free(self.control_points)

    def _free(self, values: Tensor) -> Tensor:
        """Vectors ``(3 or d, ...)`` without their components along held axes."""
        held = held_axes(self.lattices.restrict)
        if not held:
            return values
        kept = values.new_ones(len(values), *[1] * (values.ndim - 1))
        for axis in held:  # one by one: a list of them would be brought to a GPU each time
            kept[axis] = 0
        return values * kept

    def network_at_nodes(self) -> Tensor:
        """What the network gives at the control points of the coarsest lattice.

        Returns
        -------
        Tensor
            ``(N, d)`` mm along the image axes, x fastest.
        """
        assert self.network is not None
        out: Tensor = self.network(self._nodes) * self.geometry.half_extent
        return self._free(out.T).T

    def integrated(self, model: str, integration_steps: int, number: int) -> tuple[Tensor, Tensor]:
        """Its displacement and that of its inverse on a finer lattice.

        Parameters
        ----------
        model : str
            ``"velocity"`` or ``"displacement"``.
        integration_steps : int
            Squarings of scaling and squaring.
        number : int
            Of the finer lattice.

        Returns
        -------
        tuple of Tensor
            Each ``(3, z, y, x)``, in units of that lattice.
        """
        h, threads = self.spacing, self.threads
        with torch.no_grad():
            v = self()
            if model == "velocity":
                forward = ops.exponential(v, integration_steps, 1 / h, threads)
                backward = ops.exponential(v, integration_steps, -1 / h, threads)
            else:
                forward = v / h
                backward = ops.invert(forward, -forward, threads)[0]
            scale = 2 ** (number - self.number)
            return (
                self.lattices.refined(forward, self.number, number, threads) * scale,
                self.lattices.refined(backward, self.number, number, threads) * scale,
            )


@dataclass(frozen=True, eq=False)
class VelocityField:
    """A trained field over the fixed grid.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    fine : SplineVelocity
        The field that was trained last; its lattice is the one that everything is evaluated on.
    coarse : SplineVelocity or None
        The field of the first level, which `fine` is composed with.
    transform_model : str
        ``"velocity"`` or ``"displacement"``.
    integration_steps : int
        Of scaling and squaring.
    threads : int
        CPU threads of the native ops.
    unfolded : Tensor or None
        ``(3, z, y, x)`` units of the lattice: the coarse displacement after its folds were removed, where it had any.
    overlay : Overlay or None
        What is added to the displacement, where regions had to keep their shape or volume, things slide, or lesions
        are.
    """

    geometry: Geometry
    fine: SplineVelocity
    coarse: SplineVelocity | None = None
    transform_model: str = "velocity"
    integration_steps: int = 2
    threads: int = 1
    unfolded: Tensor | None = None
    overlay: Overlay | None = None

    def at_rest(self) -> VelocityField:
        """The field that moves nothing, on the same lattice.

        Returns
        -------
        VelocityField
        """
        f = self.fine
        still = SplineVelocity(f.geometry, f.lattices, f.number, None, torch.Generator(), self.device, f.threads)
        still.requires_grad_(False)
        return VelocityField(self.geometry, still, None, self.transform_model, self.integration_steps, self.threads)

    @property
    def device(self) -> torch.device:
        """Where it is evaluated."""
        return self.fine.control_points.device

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The coordinate networks, weights included; none where none was trained."""
        parts = (self.coarse, self.fine)
        return tuple(p.network for p in parts if p is not None and p.network is not None)

    @property
    def axes(self) -> list[Axis]:
        """The lattice, ``[x, y, z]`` in voxels of the fixed grid."""
        return self.fine.lattices.axes[self.fine.number]

    @property
    def spacing(self) -> float:
        """Spacing of the lattice, mm."""
        return self.fine.spacing

    @cached_property
    def coarse_displacements(self) -> tuple[Tensor, Tensor] | None:
        """The coarse field's displacement and its inverse's on the lattice, in its units; None without one."""
        if self.coarse is None:
            return None
        forward, backward = self.coarse.integrated(self.transform_model, self.integration_steps, self.fine.number)
        if self.unfolded is None:
            return forward, backward
        return self.unfolded, ops.invert(self.unfolded, backward, self.threads)[0]

    @cached_property
    def forward(self) -> Tensor:
        """Displacement at the control points, ``(3, z, y, x)`` mm along the image axes."""
        with torch.no_grad():
            outer = None if self.coarse_displacements is None else self.coarse_displacements[0]
            return self.displaced(self.fine(), outer) * self.spacing

    @cached_property
    def backward(self) -> Tensor:
        """The inverse's: exact for velocities up to the lattice, by Newton's method for a displacement."""
        h = self.spacing
        with torch.no_grad():
            if self.transform_model == "displacement":
                u = self.forward / h
                return ops.invert(u, -u, self.threads)[0] * h
            u = ops.exponential(self.fine(), self.integration_steps, -1 / h, self.threads)
            if self.coarse_displacements is not None:
                u = ops.compose(u, self.coarse_displacements[1], self.threads)
            return u * h

    def displaced(self, v: Tensor, outer: Tensor | None) -> Tensor:
        """The displacement that coefficients of the fine field make.

        Parameters
        ----------
        v : Tensor
            ``(3, z, y, x)`` mm.
        outer : Tensor or None
            ``(3, z, y, x)``: the coarse displacement, in units of the lattice.

        Returns
        -------
        Tensor
            ``(3, z, y, x)``, in units of the lattice.
        """
        return flowed(v, outer, self.transform_model, self.integration_steps, self.spacing, self.threads)

    @cached_property
    def continuation(self) -> Continuation:
        """What the displacement is beyond the block that was optimised."""
        lattices = self.fine.lattices
        longest = length_near_faces(self.forward, self.axes, lattices.block)
        return Continuation.of(lattices.block, spacings(self.geometry), longest, lattices.coarsest_spacing)

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            ``[x, y, z]``, in voxels of the fixed image.
        inverse : bool
            That of the inverse.

        Returns
        -------
        Tensor
            ``(3, len z, len y, len x)`` mm along the image axes; beyond the block what `continuation` says.
            The inverse is that without the overlay.
        """
        lattice = self.backward if inverse else self.forward
        there = [self.continuation.along(number, p) for number, p in enumerate(positions)]
        matrices = [a.evaluate(p).scaled(share) for a, (p, share) in zip(self.axes, there, strict=True)]
        out = ops.separable(lattice, matrices, self.threads)
        return out if inverse or self.overlay is None else out.add_(self.overlay.on_grid(positions, self.threads))

    def support(self) -> list[tuple[float, float]]:
        """First and last place along each axis where the displacement may be other than 0.

        Returns
        -------
        list of tuple of float
            ``[x, y, z]``, in voxels of the fixed image; they may lie beyond it.
        """
        ends = self.continuation.support()
        if self.overlay is not None:
            ends = [(min(a, p[0]), max(b, p[-1])) for (a, b), p in zip(ends, self.overlay.positions, strict=True)]
        return ends

    def curvature(self) -> Tensor:
        """Length of the second derivative along each axis at the control points.

        Returns
        -------
        Tensor
            ``(3, z, y, x)``, 1/mm.
        """
        return second_differences(self.forward) / self.spacing**2

    def displacement(self, points: F64, inverse: bool = False) -> F64:
        """The displacement at any physical points of fixed space.

        Parameters
        ----------
        points : ndarray
            ``(N, d)`` LPS mm.
        inverse : bool
            That of the inverse.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """
        d, turn = self.geometry.dimension, self.geometry.rotation.T
        lattice = (self.backward if inverse else self.forward).double().cpu().numpy()
        index = np.pad(self.geometry.physical_to_index(points), ((0, 0), (0, 3 - d)))
        out = np.zeros((len(index), d))
        for begin in range(0, len(index), 1 << 15):
            part = index[begin : begin + (1 << 15)]
            at, shares = zip(*(self.continuation.along(a, part[:, a]) for a in range(3)), strict=True)
            value = at_points(lattice, self.axes, list(at))
            out[begin : begin + len(part)] = (value[:d] * np.prod(shares, axis=0)).T
        out = out @ turn
        if self.overlay is None:
            return out
        if inverse:
            return refined_inverse(self.displacement, points, out, 1e-4 * min(self.geometry.spacing))
        there = self._on_overlay.holds(index)
        out[there] = self._on_overlay.at(index[there])[:, :d] @ turn
        return out

    @cached_property
    def _on_overlay(self) -> Overlay:
        """The whole displacement on the voxels of the overlay: between them it is linear, as in what is saved."""
        assert self.overlay is not None
        return Overlay(self.overlay.start, self.on_grid(self.overlay.positions))

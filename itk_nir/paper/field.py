"""The trained fields of the published design, as sampling and the result want them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from itk_nir.engine.coordinate_networks import build_field
from itk_nir.engine.lattice_values import second_differences
from itk_nir.geometry import Geometry
from itk_nir.options import rebuilt
from itk_nir.paper.flow import inverse_flow
from itk_nir.paper.objective import displacement_of
from itk_nir.paper.settings import PaperSettings

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PaperField:
    """The displacement ``u`` of ``phi(p) = A(p + u(p))``, with A the linear map (protocol `engine.sampling.Field`).

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    fields : tuple of Module
        One a phase, in the order in which a fixed point meets them: field coordinates ``(N, d)`` → ``(N, d)``.
    settings : PaperSettings
        What they were trained with.
    threads : int
        CPU threads of what samples it; the fields themselves are torch's.
    """

    geometry: Geometry
    fields: tuple[nn.Module, ...]
    settings: PaperSettings
    threads: int = 1

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The coordinate networks: all of it."""
        return self.fields

    @property
    def device(self) -> torch.device:
        """Where it is evaluated."""
        return next(self.fields[0].parameters()).device

    def at_field_coordinates(self, points: Tensor, inverse: bool = False) -> Tensor:
        """The displacement in the frame of the fields.

        Velocities are integrated backward for the inverse; displacements are inverted by fixed-point iteration.

        Parameters
        ----------
        points : Tensor
            ``(N, d)`` field coordinates of the fixed image.
        inverse : bool
            Whether to take the displacement of the inverse of ``p + u(p)``.

        Returns
        -------
        Tensor
            ``(N, d)`` field units along the image axes, on the device and in the type of the fields; times
            ``geometry.half_extent`` it is mm.
        """
        like = next(self.fields[0].parameters())
        function = self._inverse if inverse else self._forward
        with torch.no_grad():
            parts = points.to(device=like.device, dtype=like.dtype).split(self.settings.chunk)
            return torch.cat([function(part) for part in parts])

    def _forward(self, points: Tensor) -> Tensor:
        return displacement_of(self.fields, self.settings, points)

    def _inverse(self, points: Tensor) -> Tensor:
        s = self.settings
        moved = points
        for field in reversed(self.fields):
            moved = moved + inverse_flow(s.flow, field, moved, s.ode_steps, s.integration_time)
        return moved - points

    def at_rest(self) -> PaperField:
        """The field that moves nothing.

        Returns
        -------
        PaperField
            With one network, whose weights are 0.
        """
        still = copy.deepcopy(self.fields[0])
        with torch.no_grad():
            for parameter in still.parameters():
                parameter.zero_()
        return PaperField(self.geometry, (still,), self.settings, self.threads)

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            Along ``x, y, z``, in voxels of the fixed image; one for z in 2D.
        inverse : bool
            Whether to take the inverse's.

        Returns
        -------
        Tensor
            ``(3, z, y, x)`` mm along the image axes; for 2D with one plane and no z component.
        """
        d = self.geometry.dimension
        mesh = np.meshgrid(*positions[d - 1 :: -1], indexing="ij")[::-1]
        index = np.stack([m.ravel() for m in mesh], -1)
        q = self.geometry.physical_to_field(self.geometry.index_to_physical(index))
        value = self.at_field_coordinates(torch.from_numpy(q).float(), inverse) * self.geometry.half_extent
        shape = [len(p) for p in positions[::-1]]
        out = value.new_zeros(3, *shape)
        out[:d] = value.T.reshape(d, *shape)
        return out

    def support(self) -> list[tuple[float, float]]:
        """Everywhere, see `itk_nir.engine.sampling.Field`: a network has no end.

        Returns
        -------
        list of tuple of float
            ``[x, y, z]``, in voxels of the fixed image.
        """
        return [(-math.inf, math.inf)] * 3

    def curvature(self) -> Tensor:
        """Length of the second derivative along each axis on every other voxel.

        By differences over two voxels: what is finer than that, a network is not trained to hold.

        Returns
        -------
        Tensor
            ``(3, z, y, x)``, 1/mm.
        """
        step = 2.0
        sizes = [*self.geometry.size, 1][:3]
        u = self.on_grid([np.arange(0, n, step, dtype=np.float64) for n in sizes])
        mm = u.new_tensor([step * s for s in [*self.geometry.spacing, 1.0][:3]]).reshape(3, 1, 1, 1)
        return second_differences(u) / mm**2

    def displacement(self, points: F64, inverse: bool = False) -> F64:
        """The displacement at physical points of fixed space.

        Parameters
        ----------
        points : ndarray
            ``(N, d)`` LPS mm.
        inverse : bool
            Whether to take the inverse's.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """
        q = torch.from_numpy(self.geometry.physical_to_field(points)).float()
        along: F64 = self.at_field_coordinates(q, inverse).double().cpu().numpy() * self.geometry.half_extent
        out: F64 = along @ self.geometry.rotation.T
        return out


def extent_of(geometry: Geometry) -> list[float]:
    """Half-extent of a grid along ``(x, y[, z])`` in field units, voxel edges counted; the largest is 1.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Returns
    -------
    list of float
    """
    return [n * s / 2 / geometry.half_extent for n, s in zip(geometry.size, geometry.spacing, strict=True)]


def describe(field: PaperField) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A trained field as plain values, to be put into a file. See `restore`.

    Parameters
    ----------
    field : PaperField
        The field.

    Returns
    -------
    description : dict
        What JSON can hold: kind, number of fields, settings.
    arrays : dict
        Name → parameters and buffers of the fields.
    """
    arrays = {
        f"field.{number}.{name}": np.ascontiguousarray(value.detach().cpu().numpy())
        for number, module in enumerate(field.fields)
        for name, value in module.state_dict().items()
    }
    settings = dataclasses.asdict(field.settings)
    return {"kind": PaperSettings.kind, "fields": len(field.fields), "settings": settings}, arrays


def restore(
    description: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    geometry: Geometry,
    *,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> PaperField:
    """The field that `describe` described.

    Parameters
    ----------
    description : mapping
        As from `describe`, through JSON or not.
    arrays : mapping
        As from `describe`; arrays of other names are not looked at.
    geometry : Geometry
        The fixed grid.
    device : torch.device or str
        Where it is to be evaluated.
    threads : int
        CPU threads of what samples it.

    Returns
    -------
    PaperField
        With the displacements of the original, bit for bit on the device it was trained on.

    Raises
    ------
    KeyError, ValueError
        Parts that are missing or do not fit together.
    """
    if description["kind"] != PaperSettings.kind:
        raise ValueError(f"a field of kind {description['kind']!r}, not {PaperSettings.kind!r}")
    settings: PaperSettings = rebuilt(PaperSettings, description["settings"])
    count = description["fields"]
    if not isinstance(count, int) or not 1 <= count <= len(settings.phases):
        raise ValueError(f"{count!r} fields of {len(settings.phases)} phases")
    modules = []
    for number, phase in enumerate(settings.phases[:count]):
        # What is drawn here is overwritten.
        generator = Generator().manual_seed(0)
        module = build_field(phase.field, geometry.dimension, generator, extent=extent_of(geometry))
        prefix = f"field.{number}."
        state = {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the arrays of field {number} do not fit its settings: {error}") from error
        modules.append(module.to(device).requires_grad_(False))
    return PaperField(geometry, tuple(modules), settings, threads)

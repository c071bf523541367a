"""A field trained on sampled points, as the bake and the result want it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.optimize import second_differences
from itk_nir.paper.registration import PointRegistration
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointField:
    """The fields of a `PointRegistration` over a fixed grid; displacements in mm."""

    geometry: Geometry
    registration: PointRegistration

    def _at(self, coordinates: Tensor, inverse: bool) -> Tensor:
        """Field coordinates ``(N, d)`` → displacement ``(N, d)`` mm along the image axes."""
        out = []
        with torch.no_grad():
            for part in coordinates.split(1 << 16):
                if inverse:
                    value = self.registration.inverse_displacement(part)[0]
                else:
                    value = self.registration.displacement(part)
                out.append(value * self.geometry.half_extent)
        return torch.cat(out)

    @property
    def _device(self) -> torch.device:
        return next(self.registration.fields[0].parameters()).device

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """The displacement on a regular grid at `positions` (voxels of the fixed image, ``[x, y, z]``).

        ``(3, z, y, x)`` mm along the image axes, for 2D with one plane and no z component.
        """
        d = self.geometry.dimension
        mesh = np.meshgrid(*positions[d - 1 :: -1], indexing="ij")[::-1]
        index = np.stack([m.ravel() for m in mesh], -1)
        q = self.geometry.physical_to_field(self.geometry.index_to_physical(index))
        value = self._at(torch.from_numpy(q).float().to(self._device), inverse)
        shape = [len(p) for p in positions[::-1]]
        out = value.new_zeros(3, *shape)
        out[:d] = value.T.reshape(d, *shape)
        return out

    def support(self) -> list[tuple[float, float]]:
        """The whole grid, see `itk_nir.engine.sampling.Field`."""
        return [(0.0, n - 1.0) for n in [*self.geometry.size, 1][:3]]

    def curvature(self) -> Tensor:
        """``(3, z, y, x)``: length of the second derivative along each axis on every other voxel, 1/mm.

        By differences over two voxels: what is finer than that, a network is not trained to hold.
        """
        step = 2.0
        sizes = [*self.geometry.size, 1][:3]
        u = self.on_grid([np.arange(0, n, step, dtype=np.float64) for n in sizes])
        mm = u.new_tensor([step * s for s in [*self.geometry.spacing, 1.0][:3]]).reshape(3, 1, 1, 1)
        return second_differences(u) / mm**2

    def displacement(self, points: F64, inverse: bool = False) -> F64:
        """The displacement at physical points of fixed space, ``(N, d)`` LPS mm → ``(N, d)`` LPS mm."""
        q = torch.from_numpy(self.geometry.physical_to_field(points)).float().to(self._device)
        along: F64 = self._at(q, inverse).double().cpu().numpy()
        out: F64 = along @ self.geometry.rotation.T
        return out

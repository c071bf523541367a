"""Where the voxels of a level of the linear stage lie, and what a linear map displaces them by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import sizes, spacings
from itk_nir.engine.views import LinearView, View
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearVoxels:
    """The voxels of the fixed grid of a level, mm along the fixed axes from the centre of the fixed image.

    Parameters
    ----------
    points : Tensor
        ``(3, Z Y X)``.
    shape : tuple of int
        ``(Z, Y, X)``.
    places : ndarray
        ``(3, 2)``: step and origin along x, y and z.
    place : torch.device
        Where linear maps are wanted: a card that has a kernel for them takes them from the host.
    """

    points: Tensor
    shape: tuple[int, int, int]
    places: F64
    place: torch.device

    @classmethod
    def of(cls, positions: list[F64], geometry: Geometry, like: Tensor) -> LinearVoxels:
        """The voxels of a level.

        Parameters
        ----------
        positions : list of ndarray
            Along ``x, y, z``, in voxels of the fixed image, at equal steps.
        geometry : Geometry
            Of the fixed image.
        like : Tensor
            Whose type and device count.

        Returns
        -------
        LinearVoxels
        """
        axes = [
            (torch.from_numpy(p).float() - (n - 1) / 2) * s
            for p, n, s in zip(positions, sizes(geometry), spacings(geometry), strict=True)
        ]
        mesh = torch.meshgrid(*axes[::-1], indexing="ij")
        places = np.array([[float(a[-1] - a[0]) / max(1, len(a) - 1), float(a[0])] for a in axes])
        z, y, x = mesh[0].shape
        points = torch.stack(mesh[::-1]).reshape(3, -1).to(like.device)
        return cls(points, (z, y, x), places, torch.device("cpu") if ops.warps_linearly(like) else like.device)

    def displacement(self, matrix: Tensor, shift: Tensor) -> Tensor:
        """What a linear map displaces things by.

        Parameters
        ----------
        matrix, shift : Tensor
            ``(3, 3)`` and ``(3,)``, about the centre of the fixed grid, on the device.

        Returns
        -------
        Tensor
            ``(3, Z, Y, X)`` mm along the fixed axes.
        """
        u = (matrix - torch.eye(3, device=matrix.device)) @ self.points + shift[:, None]
        return u.reshape(3, *self.shape)

    def view(
        self, matrix: Tensor, shift: Tensor, grid_to_moving: F64, displacement_to_moving: F64, threads: int
    ) -> View:
        """The moving side under a linear map.

        Parameters
        ----------
        matrix, shift : Tensor
            As of `displacement`, on the device or at `place`.
        grid_to_moving, displacement_to_moving : ndarray
            As of `View`.
        threads : int
            CPU threads of the native ops.

        Returns
        -------
        View
        """
        maps = grid_to_moving, displacement_to_moving
        if matrix.device.type != "cpu" or not ops.warps_linearly(self.points):
            return View(self.displacement(matrix, shift), *maps, threads=threads)
        parts = torch.cat([matrix, shift[:, None]], 1)

        def field() -> Tensor:
            there = parts.to(self.points.device)
            return self.displacement(there[:, :3], there[:, 3])

        return LinearView(parts, field, self.shape, self.places, *maps, threads)

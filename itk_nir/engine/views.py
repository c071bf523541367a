"""What a metric sees of the moving side: its images through the map of one iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.caching import cached_property
from itk_nir.engine import ops
from itk_nir.engine.lattice import Banded

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """Images of the moving side seen through a displacement, then a linear map, on the fixed grid of a level.

    Called with an image, it gives that image warped. An image that several metrics ask for is warped once.

    Parameters
    ----------
    displacement : Tensor
        ``(3, Z, Y, X)`` at the voxels of the fixed grid, or ``(3, z, y, x)`` coefficients of a spline.
    grid_to_moving, displacement_to_moving : ndarray
        ``(3, 4)`` and ``(3, 3)``, as of `ops.warp`.
    spline : list of Banded or None
        Coefficients → voxels along x, y and z; None where the displacement is given at the voxels.
    threads : int
        CPU threads of the native ops.
    """

    displacement: Tensor
    grid_to_moving: F64
    displacement_to_moving: F64
    spline: list[Banded] | None = None
    threads: int = 1
    _seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def identity(cls, image: Tensor, threads: int = 1) -> View:
        """Images that lie on the fixed grid already, as they are.

        Parameters
        ----------
        image : Tensor
            ``(Z, Y, X)``, one of them.
        threads : int
            CPU threads of the native ops.

        Returns
        -------
        View
        """
        return cls(image.new_zeros(3, *image.shape), np.eye(4)[:3], np.eye(3), threads=threads)

    def __call__(self, image: Tensor) -> Tensor:
        """An image of the moving side on the fixed grid.

        Parameters
        ----------
        image : Tensor
            ``(Z', Y', X')`` on the level's grid of the moving image.

        Returns
        -------
        Tensor
            ``(Z, Y, X)``, with its gradient by the displacement.
        """
        if id(image) not in self._seen:
            self._seen[id(image)] = (
                image,
                self._warped(image),
            )  # the image itself too: its number is its own only while it lives
        return self._seen[id(image)][1]

    def _warped(self, image: Tensor) -> Tensor:
        matrices = self.grid_to_moving, self.displacement_to_moving
        if self.spline is None:
            return ops.warp(image, self.displacement, *matrices, self.threads)
        return ops.warp_spline(image, self.displacement, self.spline, *matrices, self.threads)

    def descriptor_difference(self, fixed: Tensor, moving: Tensor, weight: Tensor | None, channels: int) -> Tensor:
        """The summed squared difference of descriptors, see `ops.mind_difference`.

        Parameters
        ----------
        fixed, moving : Tensor
            ``(Z, Y, X, 16)`` and ``(Z', Y', X', 16)`` uint8.
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where a voxel counts.
        channels : int
            How many of the 16 there are.

        Returns
        -------
        Tensor
            Scalar, with its gradient by the displacement.
        """
        where = weight, self.displacement
        matrices = self.grid_to_moving, self.displacement_to_moving
        if self.spline is None:
            return ops.mind_difference(fixed, moving, *where, *matrices, channels, self.threads)
        return ops.mind_difference_spline(fixed, moving, *where, self.spline, *matrices, channels, self.threads)


class LinearView(View):
    """The same through a displacement that a linear map makes, which stays on the host: see `ops.linear_warp`.

    Parameters
    ----------
    parts : Tensor
        ``(3, 4)``, the map, on the CPU.
    field : callable
        ``(3, Z, Y, X)``, the displacement that it makes, for who asks for it.
    shape : tuple of int
        ``(Z, Y, X)`` of the fixed grid.
    places : ndarray
        ``(3, 2)``, where its voxels lie: step and origin along x, y and z.
    grid_to_moving, displacement_to_moving : ndarray
        As of `View`.
    threads : int
        CPU threads of the native ops.
    """

    parts: Tensor
    field: Callable[[], Tensor]
    shape: tuple[int, int, int]
    places: F64

    def __init__(
        self, parts: Tensor, field: Callable[[], Tensor], shape: tuple[int, int, int], places: F64,
        grid_to_moving: F64, displacement_to_moving: F64, threads: int,
    ) -> None:  # fmt: skip
        self.__dict__.update(
            parts=parts, field=field, shape=shape, places=places, grid_to_moving=grid_to_moving,
            displacement_to_moving=displacement_to_moving, spline=None, threads=threads, _seen={},
        )  # fmt: skip

    @cached_property
    def displacement(self) -> Tensor:
        """The displacement at the voxels of the fixed grid."""
        return self.field()

    def _warped(self, image: Tensor) -> Tensor:
        where = self.shape, self.places, self.grid_to_moving, self.displacement_to_moving
        return ops.linear_warp(image, self.parts, *where)

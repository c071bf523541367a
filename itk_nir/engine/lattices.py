"""The lattices of control points over one block of the fixed grid, each of half the spacing of the one before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itk_nir.caching import cached_property
from itk_nir.engine import ops
from itk_nir.engine.continuation import whole_cells
from itk_nir.engine.lattice import Axis, Banded, Ends
from itk_nir.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Lattices:
    """Lattices of control points over one block of the fixed grid, each of half the spacing of the one before.

    Parameters
    ----------
    axes : list of list of Axis
        Coarsest first; each ``[x, y, z]`` in voxels of the fixed grid.
    coarsest_spacing : float
        Of the coarsest, mm, the same along all axes.
    block : list of tuple of float
        First and last position of the block along ``[x, y, z]``, in voxels of the fixed grid.
    restrict : tuple of float
        1 for each axis of the fixed grid along which things may move, 0 for the others; empty for all.
    """

    axes: list[list[Axis]]
    coarsest_spacing: float
    block: Ends
    restrict: tuple[float, ...] = ()

    @classmethod
    def halved(
        cls, coarsest: list[Axis], spacing: float, halvings: int, block: Ends | None = None,
        restrict: tuple[float, ...] = (),
    ) -> Lattices:  # fmt: skip
        """The coarsest lattice and `halvings` finer ones.

        Parameters
        ----------
        coarsest : list of Axis
            ``[x, y, z]``.
        spacing : float
            Of the coarsest, mm.
        halvings : int
            Number of finer ones.
        block : list of tuple of float, optional
            As of the class; the whole cells of the coarsest lattice when left out.
        restrict : tuple of float
            As of the class.

        Returns
        -------
        Lattices
        """
        axes = [coarsest]
        for _ in range(halvings):
            axes.append([a.refined() for a in axes[-1]])
        return cls(axes, spacing, whole_cells(coarsest) if block is None else block, restrict)

    @cached_property
    def _refinements(self) -> list[list[Banded]]:
        return [[a.refine() for a in axes] for axes in self.axes[:-1]]

    def spacing(self, number: int) -> float:
        """Spacing of one lattice, mm.

        Parameters
        ----------
        number : int
            0 is the coarsest.

        Returns
        -------
        float
        """
        return self.coarsest_spacing / 2**number

    def refined(self, values: Tensor, start: int, stop: int, threads: int) -> Tensor:
        """Coefficients on lattice `start` → of the same spline on the finer lattice `stop`.

        Parameters
        ----------
        values : Tensor
            ``(3, z, y, x)``.
        start, stop : int
            Numbers of lattices.
        threads : int
            CPU threads.

        Returns
        -------
        Tensor
            ``(3, z, y, x)``.
        """
        for k in range(start, stop):
            values = ops.separable(values, self._refinements[k], threads)
        return values

    def nodes(self, geometry: Geometry) -> Tensor:
        """The control points of the coarsest lattice.

        Parameters
        ----------
        geometry : Geometry
            The fixed grid.

        Returns
        -------
        Tensor
            ``(N, d)`` field coordinates, x fastest.
        """
        d = geometry.dimension
        at = np.meshgrid(*[a.positions for a in self.axes[0][d - 1 :: -1]], indexing="ij")[::-1]
        index = np.stack([x.ravel() for x in at], -1)
        return torch.from_numpy(geometry.physical_to_field(geometry.index_to_physical(index))).float()

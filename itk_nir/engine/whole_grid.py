"""A field over the part of the fixed grid that was looked at, on the whole of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import sizes
from itk_nir.geometry import Geometry

if TYPE_CHECKING:
    from itk_nir.engine.sampling import Field

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OnWholeGrid:
    """A field over a part of a grid, as one over all of it: all members are those of `Field`.

    Parameters
    ----------
    field : Field
        Over the part.
    geometry : Geometry
        The whole grid.
    first : tuple of int
        Of its voxels, ``(x, y, z)``, that which the part begins with.
    """

    field: Field
    geometry: Geometry
    first: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where it is evaluated."""
        return self.field.device

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The coordinate networks in it."""
        return self.field.networks

    @property
    def threads(self) -> int:
        """CPU threads that it uses."""
        return self.field.threads

    @property
    def overlay(self) -> object:
        """What has steps on the grid, if anything."""
        return getattr(self.field, "overlay", None)

    def displacement(self, points: F64, inverse: bool = False) -> F64:
        """The displacement at physical points of fixed space.

        Parameters
        ----------
        points : ndarray
            ``(N, d)`` LPS mm.
        inverse : bool
            That of the inverse.

        Returns
        -------
        ndarray
        """
        return self.field.displacement(points, inverse)

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            ``[x, y, z]``, in voxels of the whole grid.
        inverse : bool
            That of the inverse.

        Returns
        -------
        Tensor
        """
        return self.field.on_grid([p - n for p, n in zip(positions, self.first, strict=True)], inverse)

    def at_rest(self) -> Field:
        """The field that moves nothing.

        Returns
        -------
        Field
        """
        return OnWholeGrid(self.field.at_rest(), self.geometry, self.first)

    def curvature(self) -> Tensor:
        """Length of the second derivative of the displacement along each axis.

        Returns
        -------
        Tensor
        """
        return self.field.curvature()

    def support(self) -> list[tuple[float, float]]:
        """First and last place along each axis where the displacement may be other than 0.

        Returns
        -------
        list of tuple of float
            In voxels of the whole grid.
        """
        return [(a + n, b + n) for (a, b), n in zip(self.field.support(), self.first, strict=True)]


def on_whole_grid(field: Field, inside: Tensor | None, whole: Geometry) -> tuple[Field, Tensor | None]:
    """A field, and a mask on its grid, on a grid that the field's is a part of.

    Parameters
    ----------
    field : Field
        Over the part.
    inside : Tensor or None
        ``(Z, Y, X)`` bool on the part; None for all of it.
    whole : Geometry
        The whole grid.

    Returns
    -------
    tuple of (Field, Tensor or None)
        What was given where the part is all of the grid.
    """
    part = field.geometry
    if part.size == whole.size:
        return field, inside
    first = (*whole.start_of(part), 0)[:3]
    if inside is None:
        inside = torch.ones(sizes(part)[::-1], dtype=torch.bool, device=field.device)
    out = inside.new_zeros(sizes(whole)[::-1])
    out[tuple(slice(a, a + n) for a, n in zip(first[::-1], inside.shape, strict=True))] = inside
    return OnWholeGrid(field, whole, first), out

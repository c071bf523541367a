"""Penalties on the displacement: one entry each in the table `REGULARISERS`.

A regulariser is any object with the one method of `Regulariser`: it is shown the lattice of a resolution level and
returns a function that gives the energy of a displacement on it as a differentiable scalar. Chosen by name,
``regulariser="diffusion"``, or given as an object. The engine multiplies the energy by the level's ``smoothness``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from itk_nir.engine import ops


@dataclass(frozen=True)
class LevelLattice:
    """What a regulariser is shown of a resolution level.

    Parameters
    ----------
    spacing : float
        Of the control points, in voxels of the fixed image along its finest axis; the same along all axes.
    cell : float
        Volume of a cell of the lattice as a share of the volume that is compared: a sum over cells times this is a mean
        over that volume.
    lorentzian_scale : float
        The setting of that name.
    threads : int
        CPU threads; no result may depend on it.
    """

    spacing: float
    cell: float
    lorentzian_scale: float = math.inf
    threads: int = 1


@runtime_checkable
class Regulariser(Protocol):
    """What is chosen as ``regulariser``: makes an energy for each level."""

    def energy(self, lattice: LevelLattice) -> Callable[[Tensor], Tensor]:
        """The energy of a displacement on a lattice.

        It should be a mean over the volume that is compared and free of units, so that ``smoothness`` means the same
        for any image size, spacing and lattice.

        Parameters
        ----------
        lattice : LevelLattice
            Of the level.

        Returns
        -------
        callable
            ``(3, z, y, x)`` displacements in units of the lattice spacing → a scalar with its gradient.
        """


@dataclass(frozen=True)
class DiffusionEnergy:
    """What both regularisers of the package are on a lattice.

    Parameters
    ----------
    cell : float
        As of `LevelLattice`.
    scale : float
        Of the logarithm, see `ops.diffusion`; infinite for none.
    threads : int
        CPU threads.
    """

    cell: float
    scale: float
    threads: int

    def __call__(self, u: Tensor) -> Tensor:
        """The energy of a displacement.

        Parameters
        ----------
        u : Tensor
            ``(3, z, y, x)`` in units of the lattice spacing.

        Returns
        -------
        Tensor
            Scalar.
        """
        return self.cell * ops.diffusion(u, self.scale, self.threads)


@dataclass(frozen=True)
class Diffusion:
    """``1/|Ω| ∫ |∇u|²``: the gradient of the displacement, squared."""

    def energy(self, lattice: LevelLattice) -> Callable[[Tensor], Tensor]:
        """The energy of a displacement on a lattice, see `Regulariser`.

        Parameters
        ----------
        lattice : LevelLattice
            Of the level.

        Returns
        -------
        callable
            ``(3, z, y, x)`` in units of the lattice spacing → scalar.
        """
        return DiffusionEnergy(lattice.cell, math.inf, lattice.threads)


@dataclass(frozen=True)
class Lorentzian:
    """``1/|Ω| ∫ s² log(1 + |∇u|² / s²)``: diffusion for small gradients, hardly more for large ones.

    Two brains differ much in few places, two breathing states slide along the pleura; a quadratic penalty that lets
    those be lets noise in everywhere else.

    Parameters
    ----------
    scale : float or None
        s, the gradient from which on the penalty grows only with the logarithm; None for the setting
        ``lorentzian_scale``.

    References
    ----------
    Black and Anandan, "The robust estimation of multiple motions", CVIU 63(1), 1996.
    """

    scale: float | None = None

    def energy(self, lattice: LevelLattice) -> Callable[[Tensor], Tensor]:
        """The energy of a displacement on a lattice, see `Regulariser`.

        Parameters
        ----------
        lattice : LevelLattice
            Of the level.

        Returns
        -------
        callable
            ``(3, z, y, x)`` in units of the lattice spacing → scalar.
        """
        scale = lattice.lorentzian_scale if self.scale is None else self.scale
        return DiffusionEnergy(lattice.cell, scale, lattice.threads)


#: Regularisers by name. An entry from outside is as good as ours.
REGULARISERS: dict[str, Regulariser] = {"lorentzian": Lorentzian(), "diffusion": Diffusion()}


def regulariser_named(regulariser: str | Regulariser) -> Regulariser:
    """The entry of `REGULARISERS`, or the object itself.

    Parameters
    ----------
    regulariser : str or Regulariser
        A key of `REGULARISERS`, or a regulariser.

    Returns
    -------
    Regulariser
    """
    return REGULARISERS[regulariser] if isinstance(regulariser, str) else regulariser

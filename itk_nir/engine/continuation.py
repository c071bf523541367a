"""What a displacement is beyond the block of the fixed grid on which it was optimised.

A spline ends two knots after its last control point, and where the block cuts through anatomy, the displacement would
fall to zero over that short a way: torn or folded tissue in the map, and no inverse. Beyond the block,

    u(x) = w(x) u(c(x)),    w(x) = prod over the axes of w(d_a / D)

with ``c(x)`` the nearest point of the block, ``d_a`` how far beyond it ``x`` lies along axis ``a``, and ``w`` a smooth
step from 1 to 0. Next to the block things go on moving as its face does, so that nothing folds across the face. Far
away nothing is known of them: a mask of a few centimetres shall not move the rest of the head. The way ``D`` over which
the displacement ends is several times as long as the displacement at the faces, so that nothing is squeezed or
stretched by more than a third on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.lattice import Axis, Ends

F64 = NDArray[np.float64]

#: The way over which a displacement ends, in lengths of the longest one at the faces of the block. The smooth step is
#: at most 1.5 times as steep as a ramp: 1.5 / 5 is what things are squeezed or stretched by.
LENGTHS = 5.0


@dataclass(frozen=True)
class Continuation:
    """The nearest position within a block along each axis, and the share of the displacement there that is kept.

    Parameters
    ----------
    block : list of tuple of float
        First and last position along ``[x, y, z]``, in voxels of the fixed grid.
    reach : tuple of float
        Over how many voxels beyond either end the displacement ends, along ``(x, y, z)``.
    """

    block: Ends
    reach: tuple[float, float, float]

    @classmethod
    def of(cls, block: Ends, spacing: tuple[float, float, float], longest: float, least: float) -> Continuation:
        """The continuation of a displacement that is known at the faces of its block.

        Parameters
        ----------
        block : list of tuple of float
            First and last position along ``[x, y, z]``, in voxels of the fixed grid.
        spacing : tuple of float
            Of the fixed grid along ``(x, y, z)``, mm.
        longest : float
            The longest displacement at the faces of the block, mm.
        least : float
            The shortest way over which the displacement may end, mm.

        Returns
        -------
        Continuation
        """
        way = max(LENGTHS * longest, least)
        return cls(block, (way / spacing[0], way / spacing[1], way / spacing[2]))

    def along(self, axis: int, positions: F64) -> tuple[F64, F64]:
        """Where the displacement is taken from, and the share of it.

        Parameters
        ----------
        axis : int
            0 for x.
        positions : ndarray
            ``(n,)``, in voxels of the fixed grid.

        Returns
        -------
        nearest : ndarray
            ``(n,)``, the nearest positions within the block.
        share : ndarray
            ``(n,)``, from 1 within the block down to 0.
        """
        at = np.asarray(positions, float)
        first, last = self.block[axis]
        if first == last:  # a 2D image's axis z, or one that is one voxel thick: the same along all of it
            return at, np.ones_like(at)
        nearest = np.clip(at, first, last)
        t = np.clip(np.abs(at - nearest) / self.reach[axis], 0, 1)
        return nearest, 1 - t * t * (3 - 2 * t)

    def support(self) -> Ends:
        """First and last position along each axis where the share is above 0.

        Returns
        -------
        list of tuple of float
            ``[x, y, z]``, in voxels of the fixed grid.
        """
        ends = []
        for (first, last), reach in zip(self.block, self.reach, strict=True):
            ends.append((-np.inf, np.inf) if first == last else (first - reach, last + reach))
        return ends


def whole_cells(axes: list[Axis]) -> Ends:
    """The block within which all control points of a lattice are that reach there.

    Parameters
    ----------
    axes : list of Axis
        ``[x, y, z]``.

    Returns
    -------
    list of tuple of float
        First and last position along ``[x, y, z]``, in voxels of the fixed grid.
    """
    return [
        (a.start, a.start) if a.count == 1 else (a.start + a.spacing, a.start + a.spacing * (a.count - 2)) for a in axes
    ]


def length_near_faces(lattice: Tensor, axes: list[Axis], block: Ends) -> float:
    """The longest vector at the control points that reach the faces of a block: no displacement there is longer.

    Parameters
    ----------
    lattice : Tensor
        ``(3, z, y, x)``.
    axes : list of Axis
        Of that lattice, ``[x, y, z]``.
    block : list of tuple of float
        First and last position along ``[x, y, z]``, in voxels of the fixed grid.

    Returns
    -------
    float
        In the unit of `lattice`.
    """
    most = 0.0
    for number, (axis, ends) in enumerate(zip(axes, block, strict=True)):
        if axis.count == 1:
            continue
        for end in ends:
            node = int(np.floor((end - axis.start) / axis.spacing))
            first, last = max(0, node - 1), min(axis.count - 1, node + 2)
            near = lattice.narrow(3 - number, first, last - first + 1)
            most = max(most, float(near.square().sum(0).max()))
    return most**0.5

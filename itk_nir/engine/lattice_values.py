"""Values on a lattice of control points: how they bend, and which of them reach a position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.lattice import Axis, cubic

F64 = NDArray[np.float64]


def second_differences(u: Tensor) -> Tensor:
    """``|u(i - 1) - 2 u(i) + u(i + 1)|`` along x, y and z at every point; zero at the rim.

    Parameters
    ----------
    u : Tensor
        ``(3, z, y, x)``.

    Returns
    -------
    Tensor
        ``(3, z, y, x)``, one value an axis.
    """
    out = torch.zeros_like(u)
    for a in range(3):
        axis = 3 - a
        n = u.shape[axis]
        if n > 2:
            d = u.narrow(axis, 0, n - 2) - 2 * u.narrow(axis, 1, n - 2) + u.narrow(axis, 2, n - 2)
            out[a].narrow(axis - 1, 1, n - 2).copy_(d.square().sum(0).sqrt())
    return out


def neighbours(axis: Axis, position: F64) -> Iterator[tuple[NDArray[np.int64], F64]]:
    """The control points whose splines reach each position, and their weights; one after the other.

    Parameters
    ----------
    axis : Axis
        Of the lattice.
    position : ndarray
        ``(N,)``, in voxels of the fixed image.

    Yields
    ------
    tuple of ndarray
        Number of the control point and its weight (0 beyond the lattice), ``(N,)`` each.
    """
    if axis.count == 1:
        yield np.zeros(len(position), np.int64), np.ones(len(position))
        return
    t = (position - axis.start) / axis.spacing
    base = np.floor(t).astype(np.int64)
    for k in range(-1, 3):
        node = base + k
        inside = (node >= 0) & (node < axis.count)
        yield np.where(inside, node, 0), cubic(t - node) * inside


def at_positions(lattice: NDArray[np.float64], axes: list[Axis], index: F64) -> F64:
    """The spline that a lattice stands for, at any positions.

    Parameters
    ----------
    lattice : ndarray
        ``(3, z, y, x)``, coefficients.
    axes : list of Axis
        ``[x, y, z]``.
    index : ndarray
        ``(N, 3)``, ``x, y, z``, in voxels of the fixed image.

    Returns
    -------
    ndarray
        ``(N, 3)``; 0 beyond the lattice.
    """
    out = np.zeros((len(index), 3))
    for begin in range(0, len(index), 1 << 15):
        part = index[begin : begin + (1 << 15)]
        value = np.zeros((3, len(part)))
        for z, wz in neighbours(axes[2], part[:, 2]):
            for y, wy in neighbours(axes[1], part[:, 1]):
                for x, wx in neighbours(axes[0], part[:, 0]):
                    value += lattice[:, z, y, x] * (wx * wy * wz)
        out[begin : begin + len(part)] = value.T
    return out

"""A displacement on voxels of the fixed grid that is added to a trained field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import banded_from_dense

F64 = NDArray[np.float64]

#: Most steps of `refined_inverse`.
STEPS = 50


@dataclass(frozen=True, eq=False)
class Overlay:
    """A displacement on a block of voxels: linear between them, zero beyond.

    Parameters
    ----------
    start : tuple of int
        First voxel of the block, ``(x, y, z)``.
    values : Tensor
        ``(3, z, y, x)`` mm along the image axes.
    """

    start: tuple[int, int, int]
    values: Tensor

    def on_grid(self, positions: list[F64], threads: int) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            ``[x, y, z]``, in voxels of the fixed image.
        threads : int
            CPU threads.

        Returns
        -------
        Tensor
            ``(3, len z, len y, len x)`` mm along the image axes.
        """
        matrices = []
        for p, start, n in zip(positions, self.start, self.values.shape[:0:-1], strict=True):
            gap = np.abs(np.asarray(p, float)[:, None] - (start + np.arange(n)))
            matrices.append(banded_from_dense(np.maximum(0.0, 1 - gap)))
        return ops.separable(self.values, matrices, threads)

    def at(self, index: F64) -> F64:
        """The displacement at any positions.

        Parameters
        ----------
        index : ndarray
            ``(N, 3)``, ``x, y, z``, in voxels of the fixed image.

        Returns
        -------
        ndarray
            ``(N, 3)`` mm along the image axes.
        """
        values = self.values.double().cpu().numpy()
        size = np.array(values.shape[:0:-1])
        t = index - np.array(self.start)
        base = np.floor(t).astype(np.int64)
        out = np.zeros((len(index), 3))
        for corner in np.ndindex(2, 2, 2):
            node = base + corner
            inside = ((node >= 0) & (node < size)).all(1)
            weight = np.prod(1 - np.abs(t - node), axis=1) * inside
            x, y, z = np.where(inside[:, None], node, 0).T
            out += values[:, z, y, x].T * weight[:, None]
        return out

    def holds(self, index: F64) -> NDArray[np.bool_]:
        """Whether positions lie between voxels of the block.

        Parameters
        ----------
        index : ndarray
            ``(N, 3)``, ``x, y, z``, in voxels of the fixed image.

        Returns
        -------
        ndarray
            ``(N,)`` bool.
        """
        t = index - np.array(self.start)
        return np.asarray(((t >= 0) & (t <= np.array(self.values.shape[:0:-1]) - 1)).all(1))

    @property
    def positions(self) -> list[F64]:
        """The voxels of the block along ``x, y, z``."""
        return [s + np.arange(n, dtype=float) for s, n in zip(self.start, self.values.shape[:0:-1], strict=True)]


def together(overlays: Sequence[Overlay]) -> Overlay | None:
    """The sum of displacements on blocks of voxels.

    Parameters
    ----------
    overlays : sequence of Overlay
        Any number.

    Returns
    -------
    Overlay or None
        On the block that holds all of theirs; the very same for a single one, None without any.
    """
    if len(overlays) < 2:
        return overlays[0] if overlays else None
    first = np.min([o.start for o in overlays], axis=0)
    size = np.max([np.add(o.start, o.values.shape[:0:-1]) for o in overlays], axis=0) - first
    values = overlays[0].values.new_zeros((3, *size[::-1].tolist()))
    for o in overlays:
        at = (np.array(o.start) - first)[::-1]
        block = tuple(slice(int(a), int(a) + n) for a, n in zip(at, o.values.shape[1:], strict=True))
        values[(slice(None), *block)] += o.values
    return Overlay(tuple(int(v) for v in first), values)  # type: ignore[arg-type]


def refined_inverse(displacement: Callable[[F64], F64], points: F64, start: F64, tolerance: float) -> F64:
    """The inverse ``v`` of a displacement at points, ``v(y) = -u(y + v(y))``, by iterating that from a first guess.

    Parameters
    ----------
    displacement : callable
        ``u``: ``(N, d)`` points → ``(N, d)``.
    points : ndarray
        ``y``, ``(N, d)``.
    start : ndarray
        ``(N, d)``, the first guess.
    tolerance : float
        Largest residual of a component that ends it, in the unit of the points.

    Returns
    -------
    ndarray
        ``(N, d)``.
    """
    v = start
    for _ in range(STEPS):
        residual = v + displacement(points + v)
        if len(v) == 0 or float(np.abs(residual).max()) < tolerance:
            break
        v = v - residual
    return v

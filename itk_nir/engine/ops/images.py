"""Ops on images: separable matrices, warps, and the local correlation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.caching import ById
from itk_nir.engine.lattice import Banded
from itk_nir.engine.ops import reference
from itk_nir.engine.ops.box_sums import box_sum
from itk_nir.engine.ops.dispatch import native_for
from itk_nir.engine.ops.limits import thread_count

F64 = NDArray[np.float64]


@lru_cache(maxsize=256)
def _tensors(matrix: ById, device: torch.device) -> tuple[Tensor, Tensor]:
    b = matrix.value
    start, weights = np.ascontiguousarray(b.start, np.int32), np.ascontiguousarray(b.weights, np.float32)
    return torch.from_numpy(start).to(device), torch.from_numpy(weights).to(device)


def banded_tensors(
    matrices: list[Banded], device: torch.device
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Banded matrices as the native ops take them.

    Parameters
    ----------
    matrices : list of Banded
        Any.
    device : torch.device
        Where the tensors are.

    Returns
    -------
    rows, back : list of tuple
        Where the rows start and their weights, of the matrices and of their transposes.
    """
    return [_tensors(ById(m), device) for m in matrices], [_tensors(ById(m.transpose), device) for m in matrices]


def separable(x: Tensor, matrices: list[Banded], threads: int = 1) -> Tensor:
    """Apply a banded matrix along each axis, in the order that keeps the intermediate results smallest.

    Parameters
    ----------
    x : Tensor
        ``(C, Z, Y, X)``.
    matrices : list of Banded
        Along x, y and z, in this order.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(C, Z', Y', X')``, as many as the matrices have rows.
    """
    threads, native = thread_count(threads), native_for(x)
    grows = sum(m.n_out for m in matrices) > sum(m.n_in for m in matrices)
    for a in (0, 1, 2) if grows else (2, 1, 0):
        m, axis = matrices[a], 3 - a
        shape = list(x.shape)
        flat = x.reshape(int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :])))
        rows = _tensors(ById(m), x.device)
        if native:
            followed = flat.requires_grad and torch.is_grad_enabled()
            flat = native.Banded.apply(flat, rows, _tensors(ById(m.transpose), x.device) if followed else None, threads)
        else:
            flat = reference.banded(flat, *rows)
        shape[axis] = m.n_out
        x = flat.reshape(shape)
    return x


def float64_rows(matrix: F64) -> F64:
    """A matrix as the native ops take it.

    Parameters
    ----------
    matrix : ndarray
        Any numbers.

    Returns
    -------
    ndarray
        float64, row after row.
    """
    return np.ascontiguousarray(matrix, np.float64)


@lru_cache(maxsize=64)
def _map_tensor(values: bytes, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # By what it holds: a matrix may be changed in place.
    return torch.from_numpy(np.frombuffer(values).copy()).reshape(3, columns).to(dtype).to(device)


def map_tensors(points: F64, vectors: F64, like: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices of a warp on a device, where they are brought once, however often they are asked for.

    Parameters
    ----------
    points, vectors : ndarray
        ``(3, 4)`` and ``(3, 3)``, of `float64_rows`.
    like : Tensor
        Whose type and device they have.

    Returns
    -------
    tuple of Tensor
    """
    return (
        _map_tensor(points.tobytes(), 4, like.device, like.dtype),
        _map_tensor(vectors.tobytes(), 3, like.device, like.dtype),
    )


def warp(
    moving: Tensor, displacement: Tensor, grid_to_moving: F64, displacement_to_moving: F64, threads: int = 1
) -> Tensor:
    """An image seen through a displacement, then a linear map: trilinear, the value at the edge beyond it.

    ``warped(i) = moving(grid_to_moving (i, 1) + displacement_to_moving u(i))``; the gradient is that by the
    displacement alone.

    Parameters
    ----------
    moving : Tensor
        ``(Z', Y', X')``.
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, fixed → moving, any unit, components ``x, y, z`` first.
    grid_to_moving : ndarray
        ``(3, 4)``, voxel ``i = (x, y, z)`` of the output → voxel of `moving`.
    displacement_to_moving : ndarray
        ``(3, 3)``, unit of the displacement → voxels of `moving`.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``.
    """
    threads, native = thread_count(threads), native_for(displacement)
    points, vectors = float64_rows(grid_to_moving), float64_rows(displacement_to_moving)
    if native:
        result: Tensor = native.Warp.apply(moving, displacement, points, vectors, threads)
        return result
    return reference.warp(moving, displacement, *map_tensors(points, vectors, displacement))


def warps_linearly(like: Tensor) -> bool:
    """Whether there is a kernel for `linear_warp`.

    Parameters
    ----------
    like : Tensor
        Whose type and device count.

    Returns
    -------
    bool
        False on a CPU.
    """
    return hasattr(native_for(like), "LinearWarp")


def linear_warp(
    moving: Tensor, parts: Tensor, shape: tuple[int, int, int], places: F64, grid_to_moving: F64,
    displacement_to_moving: F64,
) -> Tensor:  # fmt: skip
    """`warp` by a displacement that is linear: ``u(i) = (M - 1) p(i) + s`` of the voxel ``i`` that lies at ``p(i)``.

    The map may stay on the host, which then waits for the gradient alone.

    Parameters
    ----------
    moving : Tensor
        ``(Z', Y', X')``, on a device such that `warps_linearly`.
    parts : Tensor
        ``(3, 4)``, ``M`` and ``s``, on the CPU.
    shape : tuple of int
        ``(Z, Y, X)`` of the result.
    places : ndarray
        ``(3, 2)``: step and origin of ``p`` along x, y and z.
    grid_to_moving, displacement_to_moving : ndarray
        As of `warp`.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``, with its gradient by `parts`.
    """
    points, vectors = float64_rows(grid_to_moving), float64_rows(displacement_to_moving)
    result: Tensor = native_for(moving).LinearWarp.apply(moving, parts, shape, places, points, vectors)
    return result


def warp_spline(
    moving: Tensor, lattice: Tensor, matrices: list[Banded], grid_to_moving: F64, displacement_to_moving: F64,
    threads: int = 1,
) -> Tensor:  # fmt: skip
    """`warp` by the displacement that a spline lattice stands for: ``warp(moving, separable(lattice, matrices), …)``.

    The native op never holds the displacement of all voxels.

    Parameters
    ----------
    moving : Tensor
        ``(Z', Y', X')``.
    lattice : Tensor
        ``(3, z, y, x)``, coefficients of the displacement, any unit, components ``x, y, z`` first.
    matrices : list of Banded
        Coefficients → values at the voxels of the output, along x, y and z.
    grid_to_moving, displacement_to_moving : ndarray
        ``(3, 4)`` and ``(3, 3)``, as for `warp`.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``.
    """
    threads, native = thread_count(threads), native_for(lattice)
    if not native:
        return warp(moving, separable(lattice, matrices, threads), grid_to_moving, displacement_to_moving, threads)
    rows, back = banded_tensors(matrices, lattice.device)
    points, vectors = float64_rows(grid_to_moving), float64_rows(displacement_to_moving)
    result: Tensor = native.WarpSpline.apply(moving, lattice, rows, back, points, vectors, threads)
    return result


@dataclass(frozen=True)
class Lncc:
    """Local normalised cross-correlation with one fixed image, whose local sums are made once (see `make`).

    Attributes
    ----------
    fixed : Tensor
        ``(Z, Y, X)``.
    weight : Tensor or None
        ``(Z, Y, X)``, 0 to 1; None where every voxel counts.
    radius : int
        Of the window, voxels.
    epsilon : float
        Variance below which a window counts as flat, in squared units of intensity.
    threads : int
        Of the native op.
    count : float
        Number of windows that count, see `reference.lncc`.
    prepared : object
        The local sums for the native op; None where the reference runs.
    centres : Tensor or None
        ``(Z, Y, X)``, 0 or 1: where windows may be centred, see `reference.centred_beyond`; None for where the weight
        is above one half.
    """

    fixed: Tensor
    weight: Tensor | None
    radius: int
    epsilon: float
    threads: int
    count: float
    prepared: Any
    centres: Tensor | None = None

    @classmethod
    def make(
        cls, fixed: Tensor, weight: Tensor | None, radius: int, epsilon: float, threads: int = 1,
        centres: Tensor | None = None,
    ) -> Lncc:  # fmt: skip
        """Make the local sums of a fixed image.

        Parameters
        ----------
        fixed, weight, radius, epsilon, threads, centres
            See the attributes.

        Returns
        -------
        Lncc
            What measures moving images on the grid of `fixed`.
        """
        threads, native = thread_count(threads), native_for(fixed)
        if native and native.takes_radius(radius, fixed.device):
            prepared = native.LnccFixed(fixed, weight, radius, epsilon, threads)
            if weight is not None and centres is not None:
                _count_beyond(prepared, prepared.weight, centres)
            return cls(fixed, weight, radius, epsilon, threads, prepared.count, prepared, centres)
        _, count = reference.lncc(fixed, fixed, weight, radius, epsilon, centres)
        return cls(fixed, weight, radius, epsilon, threads, float(count), None, centres)

    def __call__(self, moving: Tensor) -> Tensor:
        """Mean squared local correlation with a moving image.

        Parameters
        ----------
        moving : Tensor
            ``(Z, Y, X)``, on the grid of the fixed image.

        Returns
        -------
        Tensor
            Scalar, 0 to 1.
        """
        if self.prepared is not None:
            result: Tensor = native_for(moving).Lncc.apply(moving, self.prepared, self.threads)
            return result
        total, count = reference.lncc(self.fixed, moving, self.weight, self.radius, self.epsilon, self.centres)
        return total / count.clamp(min=1)


def _count_beyond(prepared: Any, weight: Tensor, centres: Tensor) -> None:
    """Let windows of `reference.centred_beyond` count: a window counts where its inverse variance is above zero."""
    radius, epsilon, image = prepared.radius, prepared.epsilon, prepared.image
    count = box_sum(weight, radius)
    variance = box_sum(weight * image * image, radius) - box_sum(weight * image, radius) * prepared.mean
    more = reference.centred_beyond(weight, centres, radius) & (count > 0.5) & (variance > epsilon * count)
    inverse = 1 / torch.where(more, variance + epsilon * count, torch.ones_like(count))
    prepared.inverse_variance.copy_(torch.where(more, inverse, prepared.inverse_variance))
    prepared.count += float(more.sum())

"""The self-similarity descriptors on a card, as `cpu_mind` has them on the CPU."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.compositions import packed_size
from itk_nir.engine.ops.cuda.images import Rows, banded, map_argument
from itk_nir.engine.ops.cuda.launching import blocks, f32, launch, launch_each, size_of
from itk_nir.engine.ops.cuda.sums import SUM_BYTES, total

FILE = "mind.cu"
#: Voxels that descriptors are made of at a time, which bounds the memory that it takes: 100 bytes each.
SLAB = 1 << 20


class _Shifts(ctypes.Structure):
    _fields_ = [("low", ctypes.c_int * 18), ("share", ctypes.c_float * 18)]


def _shifts(offsets: np.ndarray) -> _Shifts:
    """The steps to the six neighbours: along each axis forth and back."""
    steps = np.concatenate([[offsets[:, axis], -offsets[:, axis]] for axis in range(3)])
    low = np.floor(steps)
    return _Shifts(
        (ctypes.c_int * 18)(*low.astype(int).ravel()), (ctypes.c_float * 18)(*(steps - low).astype(float).ravel())
    )


def mind_descriptors(image: Tensor, offsets: np.ndarray, radius: int, dimension: int, threads: int) -> Tensor:
    """See `mind.mind_descriptors`; a descriptor is 0 in all channels where the image, or its variance, is no number.

    Parameters
    ----------
    image, offsets, radius, dimension
        See `mind.mind_descriptors`.
    threads : int
        Has no meaning here.

    Returns
    -------
    Tensor
        ``(Z, Y, X, 16)`` uint8.
    """
    x = f32(image)
    n, shifts, pairs = size_of(x), _shifts(offsets), 4 if dimension == 2 else 12
    plane = n.x * n.y
    height = max(2 * radius + 1, SLAB // plane)
    slabs = [(z, min(z + height, n.z)) for z in range(0, n.z, height)]
    deepest = max(min(n.z, last + radius) - max(0, first - radius) for first, last in slabs)
    along_x, along_y = (x.new_empty(pairs * deepest * plane) for _ in range(2))
    counts = [blocks((last - first) * plane) for first, last in slabs]
    partial = x.new_empty(sum(counts))
    out = torch.empty((*x.shape, 16), dtype=torch.uint8, device=x.device)
    mean = None
    # First the mean of the variances over the image, which bounds them then: to keep the distances of all voxels would
    # take more memory than anything else in a registration.
    for parts in (partial.split(counts), [None] * len(slabs)):
        for (first, last), part in zip(slabs, parts, strict=True):
            begin, end = max(0, first - radius), min(n.z, last + radius)
            planes = end - begin
            launch_each(FILE, "mind_along_x", planes * plane, x, n, shifts, radius, dimension, begin, planes, along_x)
            grid = blocks(planes * plane), pairs, 1
            launch(FILE, "mind_along_y", grid, (256, 1, 1), along_x, n, radius, planes, along_y)
            launch_each(
                FILE, "mind_along_z", (last - first) * plane, along_y, n, radius, dimension, begin, planes, first, last,
                mean, part, None if part is not None else out, shared=SUM_BYTES,
            )  # fmt: skip
        if mean is None:
            mean = total(partial, 1 / x.numel())
    return out


def _difference(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, u: Tensor, grid_to_moving: np.ndarray,
    displacement_to_moving: np.ndarray, channels: int, with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The difference of the descriptors by the displacement `u`, and its gradient."""
    n = size_of(u)
    gradient = torch.empty_like(u) if with_gradient else None
    grid = blocks(n.x, 32), blocks(n.y, 4), blocks(n.z, 2)
    partial = u.new_empty(math.prod(grid))
    scale = 1 / (255 * 255 * channels)
    at = map_argument(grid_to_moving, displacement_to_moving)
    launch(
        FILE, "mind_difference", grid, (32, 4, 2), fixed.contiguous(), None if weight is None else f32(weight),
        moving.contiguous(), packed_size(moving), u, n, at, channels,
        2 * scale, gradient, partial, shared=SUM_BYTES,
    )  # fmt: skip
    return total(partial, scale), gradient


class MindDifference(torch.autograd.Function):
    """See `mind.mind_difference`."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, weight: Tensor | None, displacement: Tensor,
        grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray, channels: int, threads: int,
    ) -> Tensor:  # fmt: skip
        value, ctx.gradient = _difference(
            fixed, moving, weight, f32(displacement), grid_to_moving, displacement_to_moving, channels,
            displacement.requires_grad,
        )  # fmt: skip
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, ctx.gradient.mul_(grads[0]), None, None, None, None


def _along(x: Tensor, axis: int, rows: Rows) -> Tensor:
    """A banded matrix along an axis of ``x (C, Z, Y, X)``."""
    shape = list(x.shape)
    flat = x.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    shape[axis] = rows[1].shape[0]
    return banded(flat, rows).reshape(shape)


class MindDifferenceSpline(torch.autograd.Function):
    """`MindDifference` of a spline. Its gradient goes back to the lattice at once: that at the voxels is not kept."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, weight: Tensor | None, lattice: Tensor, rows: list[Rows],
        back: list[Rows], grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray, channels: int, threads: int,
    ) -> Tensor:  # fmt: skip
        u = f32(lattice)
        for axis, matrix in zip((3, 2, 1), rows, strict=True):
            u = _along(u, axis, matrix)
        value, gradient = _difference(
            fixed, moving, weight, u, grid_to_moving, displacement_to_moving, channels, lattice.requires_grad
        )
        if gradient is not None:
            del u
            for axis, matrix in zip((1, 2, 3), reversed(back), strict=True):
                gradient = _along(gradient, axis, matrix)
        ctx.gradient = gradient
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, ctx.gradient.mul_(grads[0]), None, None, None, None, None, None, None

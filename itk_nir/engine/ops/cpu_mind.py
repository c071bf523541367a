"""The self-similarity descriptors by the native module, as `cpu` wraps the other ops.

The difference of a registration is a scalar: its gradient is made with its value, and scaled on the way back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import itk_nir._native as native
from itk_nir.engine.ops.cpu import Banded, Rows
from itk_nir.engine.ops.pool import empty


def _f32(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


def mind_descriptors(image: Tensor, offsets: np.ndarray, radius: int, dimension: int, threads: int) -> Tensor:
    """See `mind.mind_descriptors`."""
    out = torch.empty((*image.shape, 16), dtype=torch.uint8)
    native.mind_descriptors(_f32(image), offsets, radius, dimension, out, threads)
    return out


class MindDifference(torch.autograd.Function):
    """See `mind.mind_difference`."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, weight: Tensor | None, displacement: Tensor,
        grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray, channels: int, threads: int,
    ) -> Tensor:  # fmt: skip
        gradient = empty(displacement.shape) if displacement.requires_grad else None
        total = native.mind_difference(
            fixed.contiguous(), None if weight is None else _f32(weight), moving.contiguous(), _f32(displacement),
            grid_to_moving, displacement_to_moving, channels, gradient, threads,
        )  # fmt: skip
        ctx.gradient = gradient
        return displacement.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, ctx.gradient.mul_(float(grads[0])), None, None, None, None


class MindDifferenceSpline(torch.autograd.Function):
    """`MindDifference` of a spline: along its last axis it is evaluated a row at a time, and never there as a whole.

    The gradient goes back to the lattice at once: that at the voxels need not wait for `backward`.
    """

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, weight: Tensor | None, lattice: Tensor, rows: list[Rows],
        back: list[Rows], grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray, channels: int, threads: int,
    ) -> Tensor:  # fmt: skip
        c, lz, ly, lx = lattice.shape
        nz, ny, nx = fixed.shape[:3]
        half = Banded.apply(lattice.reshape(c * lz * ly, lx, 1), rows[0], back[0], threads)
        half = Banded.apply(half.reshape(c * lz, ly, nx), rows[1], back[1], threads)
        gradient = empty((c, nz, ny, nx)) if lattice.requires_grad else None
        total = native.mind_difference_spline(
            fixed.contiguous(), None if weight is None else _f32(weight), moving.contiguous(),
            half.reshape(c, lz, ny, nx), *rows[2], grid_to_moving, displacement_to_moving, channels, gradient, threads,
        )  # fmt: skip
        ctx.gradient = None
        if gradient is not None:
            del half
            out = Banded.apply(gradient.reshape(c, nz, ny * nx), back[2], rows[2], threads)
            out = Banded.apply(out.reshape(c * lz, ny, nx), back[1], rows[1], threads)
            out = Banded.apply(out.reshape(c * lz * ly, nx, 1), back[0], rows[0], threads)
            ctx.gradient = out.reshape(lattice.shape)
        return lattice.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, ctx.gradient.mul_(float(grads[0])), None, None, None, None, None, None

"""The penalties of a displacement on the device, value and gradient in one launch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.launching import blocks, f32, launch, size_of
from itk_nir.engine.ops.cuda.sums import SUM_BYTES, total

#: ``1 / scale²`` below which the logarithm is its argument to rounding; the scale is soon too large for the floats.
LEAST_INVERSE = 1e-30


def _penalty(kernel: str, u: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient of what is summed over the nodes of ``u (C, Z, Y, X)``."""
    n, gradient = size_of(u), torch.empty_like(u)
    grid = blocks(n.x, 32), blocks(n.y, 4), blocks(n.z, 2)
    partial = u.new_empty(grid[0] * grid[1] * grid[2])
    launch("penalties.cu", kernel, grid, (32, 4, 2), u, *arguments, gradient, partial, shared=SUM_BYTES)
    return total(partial), gradient


class Diffusion(torch.autograd.Function):
    """See `displacements.diffusion`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, scale: float, threads: int) -> Tensor:
        square = scale * scale
        inverse = 1 / square if square else math.inf
        x = f32(u)
        energy, ctx.gradient = _penalty(
            "diffusion", x, x.shape[0], size_of(x), inverse if inverse > LEAST_INVERSE else 0.0
        )
        return energy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(grads[0]), None, None


class JacobianPenalty(torch.autograd.Function):
    """See `displacements.jacobian_penalty`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, margin: float, corner: int, threads: int) -> Tensor:
        x = f32(u)
        energy, ctx.gradient = _penalty("jacobian_penalty", x, size_of(x), float(margin), corner)
        return energy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(grads[0]), None, None, None

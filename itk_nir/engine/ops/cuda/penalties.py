"""The penalties of a displacement on the device, value and gradient in one launch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.launching import Grid, Size, blocks, f32, launch, size_of
from itk_nir.engine.ops.cuda.sums import SUM_BYTES, total

FILE = "penalties.cu"
#: ``1 / scale²`` below which the logarithm is its argument to rounding; the scale is soon too large for the floats.
LEAST_INVERSE = 1e-30


#: Nodes of a block along x, y and z.
NODE_BLOCK = (32, 4, 2)


def node_blocks(n: Size) -> Grid:
    """The blocks of a lattice.

    Parameters
    ----------
    n : Size
        Of the lattice.

    Returns
    -------
    tuple of int
        Along x, y and z.
    """
    return blocks(n.x, NODE_BLOCK[0]), blocks(n.y, NODE_BLOCK[1]), blocks(n.z, NODE_BLOCK[2])


def inverse_square(scale: float) -> float:
    """What the kernels take in place of the scale of a diffusion.

    Parameters
    ----------
    scale : float
        See `displacements.diffusion`.

    Returns
    -------
    float
        ``1 / scale²``; 0 where the logarithm is its argument.
    """
    square = scale * scale
    inverse = 1 / square if square else math.inf
    return inverse if inverse > LEAST_INVERSE else 0.0


def _penalty(kernel: str, u: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Value and gradient of what is summed over the nodes of ``u (C, Z, Y, X)``."""
    n, gradient = size_of(u), torch.empty_like(u)
    grid = node_blocks(n)
    partial = u.new_empty(math.prod(grid))
    launch(FILE, kernel, grid, NODE_BLOCK, u, *arguments, gradient, partial, shared=SUM_BYTES)
    return total(partial), gradient


class Diffusion(torch.autograd.Function):
    """See `displacements.diffusion`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, scale: float, threads: int) -> Tensor:
        x = f32(u)
        energy, ctx.gradient = _penalty("diffusion", x, x.shape[0], size_of(x), inverse_square(scale))
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

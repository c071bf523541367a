"""Compositions and exponentials of displacements on a card: the ops of `ops.displacements` with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.launching import Size, f32, launch_each, size_xyz

FILE = "compositions.cu"


def pack(u: Tensor, scale: float) -> Tensor:
    """A displacement as the kernels take it.

    Parameters
    ----------
    u : Tensor
        ``(3, Z, Y, X)`` float32, contiguous.
    scale : float
        What it is multiplied by.

    Returns
    -------
    Tensor
        ``(Z, Y, X, 4)``.
    """
    out = u.new_empty((*u.shape[1:], 4))
    launch_each(FILE, "pack", u[0].numel(), u, out, packed_size(out), float(scale))
    return out


def unpack(p: Tensor, scale: float) -> Tensor:
    """The reverse of `pack`.

    Parameters
    ----------
    p : Tensor
        ``(Z, Y, X, 4)`` float32, contiguous.
    scale : float
        What it is multiplied by.

    Returns
    -------
    Tensor
        ``(3, Z, Y, X)``.
    """
    out = p.new_empty((3, *p.shape[:3]))
    launch_each(FILE, "unpack", out[0].numel(), p, out, packed_size(p), float(scale))
    return out


def packed_size(p: Tensor) -> Size:
    """The size of the grid of what `pack` gave.

    Parameters
    ----------
    p : Tensor
        ``(Z, Y, X, 4)``.

    Returns
    -------
    Size
    """
    z, y, x = p.shape[:3]
    return size_xyz(x, y, z)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    out = torch.empty_like(inner)
    launch_each(FILE, "compose", inner.numel() // 4, outer, inner, out, packed_size(inner))
    return out


def _compose_adjoint(outer: Tensor, inner: Tensor, g: Tensor, outer_too: bool) -> tuple[Tensor | None, Tensor]:
    """The gradients of outer and inner, all packed."""
    if outer_too:
        sums, bits, inner_gradient = _scattered(outer, inner, g)
        return _settled(sums, None, bits, g), inner_gradient
    inner_gradient = torch.empty_like(g)  # what is kept fixed needs no scatter
    launch_each(
        FILE, "compose_adjoint", g.numel() // 4, outer, inner, g, None, inner_gradient, None, packed_size(g)
    )  # fmt: skip
    return None, inner_gradient


def _squared_adjoint(u: Tensor, g: Tensor) -> Tensor:
    """The gradient of what is composed with itself, packed."""
    sums, bits, inner_gradient = _scattered(u, u, g)
    return _settled(sums, inner_gradient, bits, g)


def _scattered(outer: Tensor, inner: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of outer as sums of whole numbers, the bits of their unit, and the gradient of inner."""
    count, n, inner_gradient = g.numel() // 4, packed_size(g), torch.empty_like(g)
    # The bits of the largest size, then three sums a node: cleared at once.
    sums = torch.zeros(3 * count + 1, dtype=torch.int64, device=g.device)
    bits, sums = sums[-1:], sums[:-1]
    launch_each(FILE, "largest", count, g, bits, n, shared=1024)
    launch_each(FILE, "compose_adjoint", count, outer, inner, g, sums, inner_gradient, bits, n)
    return sums, bits, inner_gradient


def _settled(sums: Tensor, plus: Tensor | None, bits: Tensor, like: Tensor) -> Tensor:
    """The sums as floats, plus something where it is given."""
    out = torch.empty_like(like)
    launch_each(FILE, "settle", like.numel() // 4, sums, plus, out, bits, packed_size(like))
    return out


class Exponential(torch.autograd.Function):
    """``exp(scale v)``, and ``(id + outer) o exp(scale v)`` where there is an `outer`: packed once for all."""

    @staticmethod
    def forward(
        ctx: Any, velocity: Tensor, outer: Tensor | None, integration_steps: int, scale: float, threads: int
    ) -> Tensor:
        ctx.scale = scale * 0.5**integration_steps
        u = pack(f32(velocity), ctx.scale)
        stack = []
        for _ in range(integration_steps):
            stack.append(u)
            u = _compose(u, u)
        ctx.stack, ctx.fields = stack, None
        if outer is not None:
            a = pack(f32(outer), 1.0)
            ctx.fields, u = (a, u), _compose(a, u)
        return unpack(u, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g, outer = pack(f32(grads[0]), 1.0), None
        if ctx.fields is not None:
            a, u = ctx.fields
            outer, g = _compose_adjoint(a, u, g, ctx.needs_input_grad[1])
            outer = None if outer is None else unpack(outer, 1.0)
        for u in reversed(ctx.stack):
            g = _squared_adjoint(u, g)
        return unpack(g, ctx.scale), outer, None, None, None


class Compose(torch.autograd.Function):
    """See `displacements.compose`."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, inner: Tensor, threads: int) -> Tensor:
        ctx.fields = pack(f32(outer), 1.0), pack(f32(inner), 1.0)
        return unpack(_compose(*ctx.fields), 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b = ctx.fields
        outer, inner = _compose_adjoint(a, b, pack(f32(grads[0]), 1.0), ctx.needs_input_grad[0])
        return None if outer is None else unpack(outer, 1.0), unpack(inner, 1.0), None

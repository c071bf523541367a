"""Compositions and exponentials of displacements on a card: the ops of `ops.displacements` with their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.launching import Size, f32, launch_each, size_xyz

FILE = "compositions.cu"
#: Bytes of shared memory of the largest of a block.
LARGEST_BYTES = 4 * 256


def pack(u: Tensor, scale: float, bits: Tensor | None = None) -> Tensor:
    """A displacement as the kernels take it.

    Parameters
    ----------
    u : Tensor
        ``(3, Z, Y, X)`` float32, contiguous.
    scale : float
        What it is multiplied by.
    bits : Tensor or None
        What becomes the size of the largest component, as the bits of a float; zero before.

    Returns
    -------
    Tensor
        ``(Z, Y, X, 4)``.
    """
    out = u.new_empty((*u.shape[1:], 4))
    launch_each(
        FILE, "pack", out.numel() // 4, u, out, bits, packed_size(out), float(scale),
        shared=0 if bits is None else LARGEST_BYTES,
    )  # fmt: skip
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


class _Adjoint:
    """The gradients of several compositions, last to first: their sums share one piece of memory, cleared once."""

    def __init__(self, gradient: Tensor, scatters: int, at_once: bool) -> None:
        """`scatters`: how many of the compositions need the sums; `at_once`: whether the first does."""
        gradient = f32(gradient)
        n = gradient[0].numel()
        # Three sums a node, and the largest size of each gradient that is scattered.
        cleared = torch.zeros(3 * n + scatters, dtype=torch.int64, device=gradient.device) if scatters else None
        self.sums = None if cleared is None else cleared[: 3 * n]
        self.bits = [] if cleared is None else [cleared[3 * n + k :] for k in range(scatters)]
        self.packed = pack(gradient, 1.0, self.bits[0] if scatters and at_once else None)
        self.size = packed_size(self.packed)

    def compose(self, outer: Tensor, inner: Tensor, scatter: bool, next_bits: Tensor | None) -> None:
        """The gradient becomes that of `inner`; that of `outer` is added to the sums, if wanted."""
        launch_each(
            FILE, "compose_adjoint", inner.numel() // 4, outer, inner, self.packed, self.sums if scatter else None,
            self.bits[0] if scatter else None, next_bits, self.size, shared=0 if next_bits is None else LARGEST_BYTES,
        )  # fmt: skip

    def outer(self, outer: Tensor, inner: Tensor, wanted: bool) -> Tensor | None:
        """The gradient of what is composed with `inner`, if wanted; it becomes that of `inner`."""
        following = self.bits[1 if wanted else 0 :]
        self.compose(outer, inner, wanted, following[0] if following else None)
        return self._planar(None, 1.0) if wanted else None

    def squared(self, u: Tensor) -> None:
        """The gradient becomes that of what was composed with itself, but for the sums."""
        self.compose(u, u, True, None)

    def settle(self) -> None:
        """The sums are added to the gradient."""
        launch_each(
            FILE, "settle", self.packed.numel() // 4, self.sums, self.packed, None, 1.0, self.bits[0], self.bits[1],
            self.size, shared=LARGEST_BYTES,
        )  # fmt: skip
        del self.bits[0]

    def _planar(self, gradient: Tensor | None, scale: float) -> Tensor:
        out = self.packed.new_empty((3, *self.packed.shape[:3]))
        launch_each(
            FILE, "settle", self.packed.numel() // 4, self.sums, gradient, out, float(scale), self.bits[0], None,
            self.size,
        )  # fmt: skip
        del self.bits[0]
        return out

    def ended(self, scale: float) -> Tensor:
        """The gradient, planar, times `scale`: with the sums, if some were not added yet."""
        return self._planar(self.packed, scale) if self.bits else unpack(self.packed, scale)


def _compose(outer: Tensor, inner: Tensor, planar: bool = False) -> Tensor:
    out = inner.new_empty((3, *inner.shape[:3])) if planar else torch.empty_like(inner)
    to = (None, out) if planar else (out, None)
    launch_each(FILE, "compose", inner.numel() // 4, outer, inner, *to, packed_size(inner))
    return out


class Exponential(torch.autograd.Function):
    """``exp(scale v)``, and ``(id + outer) o exp(scale v)`` where there is an `outer`: packed once for all."""

    @staticmethod
    def forward(
        ctx: Any, velocity: Tensor, outer: Tensor | None, integration_steps: int, scale: float, threads: int
    ) -> Tensor:
        ctx.scale, ctx.stack, ctx.fields = scale * 0.5**integration_steps, [], None
        v = f32(velocity)
        u = v.new_empty((*v.shape[1:], 4))
        n, count = packed_size(u), u.numel() // 4
        squared = torch.empty_like(u)
        to = squared if integration_steps else None
        launch_each(FILE, "begin_flow", count, v, u, to, None, 0, n, float(ctx.scale))
        if integration_steps:
            ctx.stack, u = [u], squared
        for step in range(1, integration_steps):
            ctx.stack.append(u)
            if step == integration_steps - 1 and outer is None:
                return _compose(u, u, planar=True)
            u = _compose(u, u)
        if outer is None:
            return unpack(u, 1.0)
        a = pack(f32(outer), 1.0)
        ctx.fields = a, u
        return _compose(a, u, planar=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        outer_too = ctx.fields is not None and ctx.needs_input_grad[1]
        adjoint, outer = _Adjoint(grads[0], len(ctx.stack) + outer_too, outer_too or ctx.fields is None), None
        if ctx.fields is not None:
            a, u = ctx.fields
            outer = adjoint.outer(a, u, outer_too)
        for number, u in enumerate(reversed(ctx.stack)):
            if number:
                adjoint.settle()
            adjoint.squared(u)
        return adjoint.ended(ctx.scale), outer, None, None, None


class Compose(torch.autograd.Function):
    """See `displacements.compose`."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, inner: Tensor, threads: int) -> Tensor:
        a, b = pack(f32(outer), 1.0), pack(f32(inner), 1.0)
        ctx.fields = a, b
        return _compose(a, b, planar=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        outer_too = ctx.needs_input_grad[0]
        adjoint = _Adjoint(grads[0], int(outer_too), outer_too)
        a, b = ctx.fields
        outer = adjoint.outer(a, b, outer_too)
        return outer, adjoint.ended(1.0), None

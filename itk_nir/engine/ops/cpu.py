"""The ops by the native module: float32 on the CPU, with their gradients, on a given number of threads.

The module refuses arrays of another type or layout: what comes from outside goes through `_f32`, which copies it where
it must, and outputs are made here. The arguments are those of the ops of the same names (`images`, `displacements`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import itk_nir._native as native
from itk_nir.engine.ops.pool import empty


def _f32(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


#: A banded matrix: where its rows start, and their weights.
Rows = tuple[Tensor, Tensor]
#: Whole numbers along x, y and z.
Whole = tuple[int, int, int]


def _banded(x: Tensor, rows: Rows, threads: int) -> Tensor:
    start, weights = rows
    out = empty((x.shape[0], weights.shape[0], x.shape[2]))
    native.banded(_f32(x), out, start, weights, threads)
    return out


class Banded(torch.autograd.Function):
    """A banded matrix along the middle axis of ``x (outer, n, inner)``, see `reference.banded`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows, back: Rows | None, threads: int) -> Tensor:
        ctx.back, ctx.threads = back, threads
        return _banded(x, rows, threads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _banded(grads[0], ctx.back, ctx.threads), None, None, None


class Warp(torch.autograd.Function):
    """See `images.warp`."""

    @staticmethod
    def forward(
        ctx: Any, moving: Tensor, displacement: Tensor, grid_to_moving: np.ndarray, displacement_to_moving: np.ndarray,
        threads: int,
    ) -> Tensor:  # fmt: skip
        warped = empty(displacement.shape[1:])
        gradient = empty(displacement.shape) if displacement.requires_grad else None
        native.warp(_f32(moving), _f32(displacement), grid_to_moving, displacement_to_moving, warped, gradient, threads)
        ctx.gradient = gradient
        return warped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # The spatial gradient is not needed again: multiply in place.
        return None, ctx.gradient.mul_(grads[0]), None, None, None


class WarpSpline(torch.autograd.Function):
    """`Warp` of a spline: along its last axis it is evaluated a row at a time, and never there as a whole."""

    @staticmethod
    def forward(
        ctx: Any, moving: Tensor, lattice: Tensor, rows: list[Rows], back: list[Rows], grid_to_moving: np.ndarray,
        displacement_to_moving: np.ndarray, threads: int,
    ) -> Tensor:  # fmt: skip
        c, lz, ly, lx = lattice.shape
        nx, ny, nz = (weights.shape[0] for _, weights in rows)
        half = _banded(lattice.reshape(c * lz * ly, lx, 1), rows[0], threads)
        half = _banded(half.reshape(c * lz, ly, nx), rows[1], threads)
        warped = empty((nz, ny, nx))
        gradient = empty((c, nz, ny, nx)) if lattice.requires_grad else None
        native.warp_spline(
            _f32(moving), half.reshape(c, lz, ny, nx), *rows[2], grid_to_moving, displacement_to_moving, warped,
            gradient, threads,
        )  # fmt: skip
        ctx.gradient, ctx.lattice, ctx.along_z, ctx.back, ctx.threads = gradient, lattice.shape, rows[2], back, threads
        return warped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        c, lz, ly = ctx.lattice[:3]
        _, nz, ny, nx = ctx.gradient.shape
        out = empty((c, lz, ny * nx))
        factor = _f32(grads[0]).reshape(nz, ny * nx)
        native.banded_adjoint(ctx.gradient.reshape(c, nz, ny * nx), factor, out, *ctx.along_z, ctx.threads)
        out = _banded(out.reshape(c * lz, ny, nx), ctx.back[1], ctx.threads)
        out = _banded(out.reshape(c * lz * ly, nx, 1), ctx.back[0], ctx.threads)
        return None, out.reshape(ctx.lattice), None, None, None, None, None


class Lncc(torch.autograd.Function):
    """The mean squared local correlation with a fixed image, see `images.Lncc`."""

    @staticmethod
    def forward(ctx: Any, moving: Tensor, fixed: LnccFixed, threads: int) -> Tensor:
        gradient = empty(moving.shape) if moving.requires_grad else None
        scratch = empty((3, *moving.shape) if moving.requires_grad else (0, 0, 0, 0))
        total = native.lncc(
            fixed.image, fixed.weight, fixed.inverse_count, fixed.mean, fixed.inverse_variance, _f32(moving),
            fixed.radius, fixed.epsilon, gradient, scratch, threads,
        )  # fmt: skip
        ctx.gradient, ctx.count = gradient, max(1.0, fixed.count)
        return moving.new_tensor(total / ctx.count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(float(grads[0]) / ctx.count), None, None


def takes_radius(radius: int, device: torch.device) -> bool:
    """Whether `LnccFixed` takes a radius on a device: any."""
    return True


class LnccFixed:
    """The local sums of a fixed image, see `images.Lncc`: `count` windows of them count."""

    image: Tensor
    weight: Tensor | None
    radius: int
    epsilon: float
    inverse_count: Tensor
    mean: Tensor
    inverse_variance: Tensor
    count: float

    def __init__(self, image: Tensor, weight: Tensor | None, radius: int, epsilon: float, threads: int) -> None:
        self.image, self.weight = _f32(image), None if weight is None else _f32(weight)
        self.radius, self.epsilon = radius, epsilon
        self.inverse_count, self.mean, self.inverse_variance = (torch.empty_like(self.image) for _ in range(3))
        self.count = native.lncc_prepare(
            self.image, self.weight, radius, epsilon, self.inverse_count, self.mean, self.inverse_variance, threads
        )


class JointHistogram(torch.autograd.Function):
    """The joint histogram with a fixed image, see `histogram.joint_histogram`."""

    @staticmethod
    def forward(
        ctx: Any, position: Tensor, moving: Tensor, bins: int, low: float, scale: float, threads: int
    ) -> Tensor:
        ctx.position, ctx.low, ctx.scale, ctx.threads = position, low, scale, threads
        ctx.save_for_backward(moving)
        out = torch.empty(bins, bins, dtype=torch.float64)
        native.joint_histogram(position, _f32(moving), low, scale, out, threads)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (moving,) = ctx.saved_tensors
        gradient = empty(moving.shape)
        derivative = grads[0].contiguous()
        native.joint_histogram_adjoint(
            ctx.position, _f32(moving), ctx.low, ctx.scale, derivative, gradient, ctx.threads
        )
        return None, gradient, None, None, None, None


class GlobalSums(torch.autograd.Function):
    """See `sums.global_sums`."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, weight: Tensor | None, threads: int) -> Tensor:
        ctx.fixed, ctx.weight, ctx.threads = _f32(fixed), None if weight is None else _f32(weight), threads
        ctx.save_for_backward(moving)
        sums = native.global_sums(ctx.fixed, _f32(moving), ctx.weight, threads)
        return torch.tensor(sums, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (moving,) = ctx.saved_tensors
        gradient = empty(moving.shape)
        native.global_sums_adjoint(ctx.fixed, _f32(moving), ctx.weight, grads[0].tolist(), gradient, ctx.threads)
        return None, gradient, None, None


def _pack(u: Tensor, scale: float, threads: int) -> Tensor:
    out = empty((*u.shape[1:], 4))
    native.pack(_f32(u), out, scale, threads)
    return out


def _unpack(p: Tensor, scale: float, threads: int) -> Tensor:
    out = empty((3, *p.shape[:3]))
    native.unpack(p, out, scale, threads)
    return out


class Exponential(torch.autograd.Function):
    """``exp(scale v)``, and ``(id + outer) o exp(scale v)`` where there is an `outer`: packed once for all."""

    @staticmethod
    def forward(
        ctx: Any, velocity: Tensor, outer: Tensor | None, integration_steps: int, scale: float, threads: int
    ) -> Tensor:
        ctx.scale, ctx.threads = scale * 0.5**integration_steps, threads
        u = _pack(velocity, ctx.scale, threads)
        stack = []
        for _ in range(integration_steps):
            out = empty(u.shape)
            native.compose(u, u, out, threads)
            stack.append(u)
            u = out
        ctx.stack, ctx.fields = stack, None
        if outer is not None:
            a, out = _pack(outer, 1.0, threads), empty(u.shape)
            native.compose(a, u, out, threads)
            ctx.fields, u = (a, u), out
        return _unpack(u, 1.0, threads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g, outer = _pack(grads[0], 1.0, ctx.threads), None
        if ctx.fields is not None:
            a, b = ctx.fields
            outer, g = _compose_adjoint(a, b, g, ctx.needs_input_grad[1], ctx.threads)
            outer = None if outer is None else _unpack(outer, 1.0, ctx.threads)
        for u in reversed(ctx.stack):
            out = empty(g.shape)
            native.compose_adjoint(u, u, g, out, out, ctx.threads)
            g = out
        return _unpack(g, ctx.scale, ctx.threads), outer, None, None, None


def _compose_adjoint(a: Tensor, b: Tensor, g: Tensor, outer_too: bool, threads: int) -> tuple[Tensor | None, Tensor]:
    """The gradients of outer `a` and inner `b`, all packed."""
    gb = empty(g.shape)
    if not outer_too:  # what is kept fixed needs no scatter, the slow half
        native.compose_adjoint_inner(a, b, g, gb, threads)
        return None, gb
    ga = empty(g.shape)
    native.compose_adjoint(a, b, g, ga, gb, threads)
    return ga, gb


class Compose(torch.autograd.Function):
    """See `displacements.compose`."""

    @staticmethod
    def forward(ctx: Any, outer: Tensor, inner: Tensor, threads: int) -> Tensor:
        a, b = _pack(outer, 1.0, threads), _pack(inner, 1.0, threads)
        out = empty(a.shape)
        native.compose(a, b, out, threads)
        ctx.fields, ctx.threads = (a, b), threads
        return _unpack(out, 1.0, threads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = _pack(grads[0], 1.0, ctx.threads)
        a, b = ctx.fields
        outer, inner = _compose_adjoint(a, b, g, ctx.needs_input_grad[0], ctx.threads)
        return None if outer is None else _unpack(outer, 1.0, ctx.threads), _unpack(inner, 1.0, ctx.threads), None


class Diffusion(torch.autograd.Function):
    """See `displacements.diffusion`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, scale: float, threads: int) -> Tensor:
        gradient = empty(u.shape)
        energy = native.diffusion(_f32(u), gradient, scale, threads)
        ctx.gradient = gradient
        return u.new_tensor(energy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(float(grads[0])), None, None


class JacobianPenalty(torch.autograd.Function):
    """See `displacements.jacobian_penalty`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, margin: float, corner: int, threads: int) -> Tensor:
        gradient = empty(u.shape)
        energy = native.jacobian_penalty(_f32(u), gradient, margin, corner, threads)
        ctx.gradient = gradient
        return u.new_tensor(energy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(float(grads[0])), None, None, None


def invert(
    displacement: Tensor, start: Tensor, iterations: int, tolerance: float, threads: int
) -> tuple[Tensor, float]:
    """As `displacements.invert`, with the most steps and the residual at which a node ends, voxels."""
    u, v = _pack(displacement, 1.0, threads), _pack(start, 1.0, threads)
    worst = native.invert(u, v, iterations, tolerance, threads)
    return _unpack(v, 1.0, threads), worst


def inverse_pair(
    displacement: Tensor, start: Tensor, relaxation: float, scale: list[float], threads: int
) -> tuple[Tensor, Tensor]:
    """As `displacements.inverse_pair`; `relaxation` as for `reference.inverse_pair`."""
    u, v = _pack(displacement, 1.0, threads), _pack(start, 1.0, threads)
    native.invert(u, v, 20, 1e-3, threads)
    native.balance(u, v, relaxation, threads)
    error = empty(displacement.shape[1:])
    native.inverse_error(u, v, scale, error, threads)
    del u
    return _unpack(v, 1.0, threads), error


def jacobian_map(displacement: Tensor, threads: int) -> Tensor:
    """See `displacements.jacobian_map`."""
    out = empty(displacement.shape[1:])
    native.jacobian(_f32(displacement), out, threads)
    return out


def adam(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], rate: float,
         correction: float, epsilon: float, threads: int) -> None:  # fmt: skip
    """As `reference.adam`. Parameter and moments must be contiguous float32: they are changed in place."""
    native.adam(parameter.detach(), _f32(gradient), first, second, *betas, rate, correction, epsilon, threads)


def match_costs(
    fixed: Tensor, fixed_counts: Tensor, moving: Tensor, moving_counts: Tensor, reach: Whole, block: Whole,
    unrelated: int, threads: int,
) -> Tensor:  # fmt: skip
    """See `matching.match_costs`."""
    nodes = math.prod(-(-n // b) for n, b in zip(fixed.shape[2::-1], block, strict=True))
    out = torch.empty((nodes, math.prod(2 * r + 1 for r in reach)), dtype=torch.uint16)
    native.match_costs(
        fixed.contiguous(), fixed_counts.contiguous(), moving.contiguous(), moving_counts.contiguous(), list(reach),
        list(block), unrelated, out.numpy(), threads,
    )  # fmt: skip
    return out


def best_matches(costs: Tensor, wanted: Tensor, reach: Whole, weight: float, threads: int) -> tuple[Tensor, Tensor]:
    """See `matching.best_matches`."""
    found, cost = torch.empty_like(wanted), torch.empty(wanted.shape[1])
    native.best_matches(costs.numpy(), wanted.contiguous(), list(reach), weight, found, cost, threads)
    return found, cost

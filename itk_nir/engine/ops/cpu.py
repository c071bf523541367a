"""The ops by the native module: float32 on the CPU, with their gradients, on a given number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import itk_nir._native as native


def _f32(x: Tensor) -> Tensor:
    return x.detach().contiguous()


class Banded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, start: Tensor, weights: Tensor, back: tuple[Tensor, Tensor], threads: int
    ) -> Tensor:
        out = x.new_empty(x.shape[0], weights.shape[0], x.shape[2])
        native.banded(_f32(x), out, start, weights, threads)
        ctx.back, ctx.threads = back, threads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        start, weights = ctx.back
        g = grads[0]
        out = g.new_empty(g.shape[0], weights.shape[0], g.shape[2])
        native.banded(_f32(g), out, start, weights, ctx.threads)
        return out, None, None, None, None


class Warp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, moving: Tensor, displacement: Tensor, index: np.ndarray, vector: np.ndarray, threads: int
    ) -> Tensor:
        warped = displacement.new_empty(displacement.shape[1:])
        gradient = torch.empty_like(displacement) if displacement.requires_grad else None
        native.warp(_f32(moving), _f32(displacement), index, vector, warped, gradient, threads)
        ctx.gradient = gradient
        return warped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # The spatial gradient is not needed again: multiply in place.
        return None, ctx.gradient.mul_(grads[0]), None, None, None


class Lncc(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, moving: Tensor, fixed: LnccFixed, centre_only: bool, threads: int) -> Tensor:
        gradient = torch.empty_like(moving) if moving.requires_grad else None
        total = native.lncc(
            fixed.image, fixed.weight, fixed.inverse_count, fixed.mean, fixed.inverse_variance, _f32(moving),
            fixed.radius, fixed.epsilon, gradient, centre_only, fixed.scratch, threads,
        )  # fmt: skip
        ctx.gradient, ctx.count = gradient, max(1.0, fixed.count)
        return moving.new_tensor(total / ctx.count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(float(grads[0]) / ctx.count), None, None, None


class LnccFixed:
    """The sums of the fixed image, made once a level."""

    def __init__(self, image: Tensor, weight: Tensor | None, radius: int, epsilon: float, threads: int) -> None:
        self.image, self.weight = _f32(image), None if weight is None else _f32(weight)
        self.radius, self.epsilon = radius, epsilon
        self.inverse_count, self.mean, self.inverse_variance = (torch.empty_like(self.image) for _ in range(3))
        self.scratch = self.image.new_empty(3, *self.image.shape)
        self.count = native.lncc_prepare(
            self.image, self.weight, radius, epsilon, self.inverse_count, self.mean, self.inverse_variance, threads
        )


def _pack(u: Tensor, scale: float, threads: int) -> Tensor:
    out = u.new_empty(*u.shape[1:], 4)
    native.pack(_f32(u), out, scale, threads)
    return out


def _unpack(p: Tensor, scale: float, threads: int) -> Tensor:
    out = p.new_empty(3, *p.shape[:3])
    native.unpack(p, out, scale, threads)
    return out


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, velocity: Tensor, squarings: int, scale: float, threads: int) -> Tensor:
        ctx.scale = scale * 0.5**squarings
        u = _pack(velocity, ctx.scale, threads)
        stack = []
        for _ in range(squarings):
            out = torch.empty_like(u)
            native.compose(u, u, out, threads)
            stack.append(u)
            u = out
        ctx.stack, ctx.threads = stack, threads
        return _unpack(u, 1.0, threads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = _pack(grads[0], 1.0, ctx.threads)
        for u in reversed(ctx.stack):
            out = torch.empty_like(g)
            native.compose_adjoint(u, u, g, out, out, ctx.threads)
            g = out
        return _unpack(g, ctx.scale, ctx.threads), None, None, None


class Compose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outer: Tensor, inner: Tensor, threads: int) -> Tensor:
        a, b = _pack(outer, 1.0, threads), _pack(inner, 1.0, threads)
        out = torch.empty_like(a)
        native.compose(a, b, out, threads)
        ctx.fields, ctx.threads = (a, b), threads
        return _unpack(out, 1.0, threads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b = ctx.fields
        g = _pack(grads[0], 1.0, ctx.threads)
        gb = torch.empty_like(g)
        if not ctx.needs_input_grad[0]:  # what is kept fixed needs no scatter, the slow half
            native.compose_adjoint_inner(a, b, g, gb, ctx.threads)
            return None, _unpack(gb, 1.0, ctx.threads), None
        ga = torch.empty_like(g)
        native.compose_adjoint(a, b, g, ga, gb, ctx.threads)
        return _unpack(ga, 1.0, ctx.threads), _unpack(gb, 1.0, ctx.threads), None


class Diffusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weights: tuple[float, float, float], scale: float, threads: int) -> Tensor:
        gradient = torch.empty_like(u)
        energy = native.diffusion(_f32(u), gradient, list(weights), scale, threads)
        ctx.gradient = gradient
        return u.new_tensor(energy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(float(grads[0])), None, None, None


class JacobianPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, margin: float, corner: int, threads: int) -> Tensor:
        gradient = torch.empty_like(u)
        energy = native.jacobian_penalty(_f32(u), gradient, margin, corner, threads)
        ctx.gradient = gradient
        return u.new_tensor(energy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient.mul_(float(grads[0])), None, None, None


def invert(
    displacement: Tensor, start: Tensor, iterations: int, tolerance: float, threads: int
) -> tuple[Tensor, float]:
    u, v = _pack(displacement, 1.0, threads), _pack(start, 1.0, threads)
    worst = native.invert(u, v, iterations, tolerance, threads)
    return _unpack(v, 1.0, threads), worst


def inverse_pair(
    displacement: Tensor, start: Tensor, relaxation: float, scale: list[float], threads: int
) -> tuple[Tensor, Tensor]:
    u, v = _pack(displacement, 1.0, threads), _pack(start, 1.0, threads)
    native.invert(u, v, 20, 1e-3, threads)
    native.balance(u, v, relaxation, threads)
    error = displacement.new_empty(displacement.shape[1:])
    native.inverse_error(u, v, scale, error, threads)
    del u
    return _unpack(v, 1.0, threads), error


def jacobian_map(displacement: Tensor, threads: int) -> Tensor:
    out = displacement.new_empty(displacement.shape[1:])
    native.jacobian(_f32(displacement), out, threads)
    return out


def adam(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], rate: float,
         correction: float, epsilon: float, threads: int) -> None:  # fmt: skip
    native.adam(parameter.detach(), _f32(gradient), first, second, *betas, rate, correction, epsilon, threads)


def resample(moving: np.ndarray, displacement: np.ndarray | None, index: np.ndarray, vector: np.ndarray,
             outside: float, shape: tuple[int, int, int], threads: int) -> np.ndarray:  # fmt: skip
    out = np.empty(shape, np.float32)
    native.resample(moving, displacement, index, vector, outside, out, threads)
    return out

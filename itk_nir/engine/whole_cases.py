"""Cases of the self-test for what a card does whole: an iteration of control points, and a warp by a linear map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine import ops

#: Name, op, inputs, and the tolerances of value and gradient: see `op_cases.OpCase`.
Case = tuple[str, Callable[..., Tensor], tuple[Tensor, ...], float, float]

#: Weight and scale of the diffusion, weight and margin of the Jacobian penalty.
PENALTIES = (0.01, 0.4, 0.02, 0.6)


def whole_cases(images: Any, threads: int) -> Iterator[Case]:
    """An iteration with the local correlation, one that any metric may have, and a linear warp.

    Parameters
    ----------
    images : object
        What draws images, see `op_cases`.
    threads : int
        Of the native ops.

    Yields
    ------
    tuple
        See `Case`.
    """
    (index, vector), (spline, lattice) = images.maps(), images.spline()
    fixed, outer, points = images.image(), 0.4 * images.displacement(1.0, lattice), images.displacement(0.5, lattice)
    moving = 0.6 * fixed + 0.8 * images.image()

    def iteration(v: Tensor, windows: bool) -> Tensor:
        image, lncc = moving.to(v), ops.Lncc.make(fixed.to(v), None, 3, 1e-4, threads)

        def measure(u: Tensor) -> tuple[Tensor, None]:
            return lncc(ops.warp_spline(image, u, spline, index, vector, threads)), None

        alone = ops.Windows(image, lncc, spline, index, vector) if windows else None
        terms = ops.IterationTerms(outer.to(v), 2, 0.8, PENALTIES, measure, alone)
        result: Tensor = _Iteration.apply(v, terms, threads)
        return result

    yield "iteration, lncc", lambda v: iteration(v, True), (points,), 2e-5, 2e-4
    yield "iteration, measured", lambda v: iteration(v, False), (points,), 2e-5, 2e-4

    shape, places = images.shape, np.array([[1.0, -(n - 1) / 2] for n in images.shape[::-1]])
    matrix = torch.eye(3) + 0.02 * images.noise(3, 3)
    if shape[0] == 1:
        matrix[2], matrix[:, 2] = torch.eye(3)[2], torch.eye(3)[2]
    parts = torch.cat([matrix, torch.tensor([[0.7], [-0.4], [0.0]])], 1)

    def linear(p: Tensor) -> Tensor:
        if ops.warps_linearly(p):
            return ops.linear_warp(moving.to(p), p.cpu(), shape, places, index, vector)
        lines = [step * torch.arange(n) + origin for n, (step, origin) in zip(shape[::-1], places, strict=True)]
        at = torch.stack(torch.meshgrid(*lines[::-1], indexing="ij")[::-1]).to(p).reshape(3, -1)
        u = (p[:, :3] - torch.eye(3).to(p)) @ at + p[:, 3:]
        return ops.warp(moving.to(p), u.reshape(3, *shape), index, vector, threads)

    yield "linear warp", linear, (parts,), 2e-5, 2e-4


class _Iteration(torch.autograd.Function):
    """The loss of an iteration with its gradient, in the way of the device."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, terms: ops.IterationTerms, threads: int) -> Tensor:
        leaf = v.detach().clone().requires_grad_()
        # The first moment is the gradient itself.
        optimiser = ops.Adam([leaf], betas=(0.0, 0.999), threads=threads)
        whole = ops.whole_iterations(optimiser, 1, terms)
        if whole is not None:
            whole.evaluate(0, 3)
            whole.step(*optimiser.next_rates(0.0))
            ctx.gradient = optimiser.first[0]
            return whole.numbers[0, 1].clone()
        weight, scale, jacobian_weight, margin = terms.penalties
        with torch.enable_grad():
            u = ops.exponential(leaf, terms.integration_steps, terms.scale, threads, outer=terms.outer)
            loss = 1 - terms.measure(u)[0] + weight * ops.diffusion(u, scale, threads)
            loss = loss + jacobian_weight * ops.jacobian_penalty(u, margin, 3, threads)
            (ctx.gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.gradient * grads[0], None, None

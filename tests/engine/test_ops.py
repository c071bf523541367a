"""The native ops against the torch ones that define them, in float64: values, gradients, threads, instruction sets."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Axis, Banded, Domain, banded_from_dense, cubic, gaussian_matrix, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.ops import limits, reference
from tests.engine.images_of_ops import SHAPES, noise

native = pytest.importorskip("itk_nir._native", reason="the native module is not built")

THREADS = (1, 2, 3, 7)


def smooth(*shape: int, seed: int = 0, passes: int = 2) -> Tensor:
    """Noise blurred along every axis but the first that is longer than one."""
    x = noise(*shape, seed=seed)
    for _ in range(passes):
        for axis in range(1, len(shape)):
            if x.shape[axis] > 1:
                x = (x + x.roll(1, axis) + x.roll(-1, axis)) / 3
    return x / x.std()


def displacement(shape: tuple[int, int, int], size: float, seed: int = 0) -> Tensor:
    """A smooth field of `size` voxels, in the plane where there is only one."""
    u = size * smooth(3, *shape, seed=seed)
    if shape[0] == 1:
        u[2] = 0
    return u


def gradients(op: Callable[..., Tensor], inputs: list[Tensor], seed: int = 9) -> tuple[Tensor, list[Tensor]]:
    """Value of `op` and the gradient of its scalar product with a fixed noise, for each input."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = op(*leaves)
    cotangent = noise(*value.shape, seed=seed).to(value) if value.ndim else torch.ones_like(value)
    grads = torch.autograd.grad((value * cotangent).sum(), leaves)
    return value.detach(), list(grads)


def assert_close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Largest difference, relative to the largest value."""
    assert got.dtype == torch.float32
    assert wanted.dtype == torch.float64
    assert got.shape == wanted.shape
    scale = float(wanted.abs().max())
    assert scale > 0
    assert float((got.double() - wanted).abs().max()) <= tolerance * scale


def check(op: Callable[..., Tensor], inputs: list[Tensor], tolerance: float, gradient_tolerance: float) -> None:
    """The native op (float32) against the same call in float64, which runs the reference."""
    value, grads = gradients(op, inputs)
    wanted, wanted_grads = gradients(op, [x.double() for x in inputs])
    assert_close(value, wanted, tolerance)
    for g, w in zip(grads, wanted_grads, strict=True):
        assert_close(g, w, gradient_tolerance)


# ------------------------------------------------------------------------------------------------------------- values


def splines(
    shape: tuple[int, int, int], knots: tuple[float, float, float] = (4.0, 3.0, 5.0)
) -> tuple[list[Banded], tuple[int, ...]]:
    """Evaluation matrices (x, y, z) from a lattice to the voxels of `shape`, and the lattice's shape."""
    domain = Domain((0, 0, 0), (shape[2], shape[1], shape[0]))
    axes = domain.lattice(knots)
    return [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)], shape_of(axes)


@pytest.mark.parametrize("up", [True, False])
def test_separable(instructions: str, shape: tuple[int, int, int], up: bool) -> None:
    matrices, lattice = splines(shape)
    if not up:
        matrices = [m.transpose for m in matrices]
    x = noise(3, *(lattice if up else shape))
    value, (grad,) = gradients(lambda x: ops.separable(x, matrices), [x])
    dense = [torch.from_numpy(m.dense()) for m in matrices]

    def full(x: Tensor) -> Tensor:
        return torch.einsum("ai,bj,ck,nkji->ncba", *dense, x)

    wanted, (wanted_grad,) = gradients(full, [x.double()])
    assert_close(value, wanted, 2e-6)
    assert_close(grad, wanted_grad, 2e-6)
    assert_close(value, ops.separable(x.double(), matrices), 2e-6)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 7, 12])
def test_banded_of_any_width(instructions: str, taps: int) -> None:
    rows = np.random.default_rng(taps)
    start = rows.integers(0, 21 - taps, 17).astype(np.int32)
    m = Banded(start, rows.standard_normal((17, taps)).astype(np.float32), 20)
    one, five = banded_from_dense(np.eye(1)), banded_from_dense(np.eye(5))
    for matrices, x in (([m, five, one], noise(3, 1, 5, 20)), ([five, m, one], noise(2, 1, 20, 5))):
        check(lambda x, matrices=matrices: ops.separable(x, matrices), [x], 2e-6, 2e-6)


def frames(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An oblique map to the voxels of `moving`, which keeps a 2D image in its plane."""
    index = np.array([[0.9, 0.2, -0.1, 1.3], [-0.15, 1.1, 0.05, -0.7], [0.1, -0.05, 0.8, 2.2]])
    vector = np.array([[0.5, 0.1, 0.0], [-0.05, 0.6, 0.1], [0.02, -0.1, 0.4]])
    if shape[0] == 1:
        for m in (index, vector):
            m[2] = m[:, 2] = 0
    return index, vector


def test_warp(instructions: str, shape: tuple[int, int, int]) -> None:
    index, vector = frames(shape)
    moving = smooth(1, shape[0] if shape[0] == 1 else 12, 15, 17)[0]
    u = displacement(shape, 3.0)
    value, (grad,) = gradients(lambda u: ops.warp(moving, u, index, vector), [u])
    wanted, (wanted_grad,) = gradients(lambda u: ops.warp(moving.double(), u, index, vector), [u.double()])
    assert_close(value, wanted, 1e-5)
    assert_close(grad, wanted_grad, 1e-5)
    with torch.no_grad():
        assert_close(ops.warp(moving, u, index, vector), wanted, 1e-5)


@cache
def warped_by_spline(
    shape: tuple[int, int, int], knots: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image, a displacement on a lattice, and what the reference makes of them: value and gradient."""
    moving = smooth(1, shape[0] if shape[0] == 1 else 12, 15, 17)[0]
    matrices, lattice = splines(shape, knots)
    u = 3.0 * smooth(3, *lattice)
    if shape[0] == 1:
        u[2] = 0
    dense = [torch.from_numpy(m.dense()) for m in matrices]
    index, vector = map(torch.from_numpy, frames(shape))

    def apart(u: Tensor) -> Tensor:
        at_voxels = torch.einsum("ai,bj,ck,nkji->ncba", *dense, u)
        return reference.warp(moving.double(), at_voxels, index, vector)

    wanted, (wanted_grad,) = gradients(apart, [u.double()])
    return moving, u, wanted, wanted_grad


@pytest.mark.slow
@pytest.mark.parametrize("knots", [(4.0, 3.0, 5.0), (1.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES.values(), (5, 40, 67)], ids=str)
def test_warp_spline(instructions: str, shape: tuple[int, int, int], knots: tuple[float, float, float]) -> None:
    """Coarser and finer lattices than the voxels, and rows and planes longer than the blocks they are done in."""
    index, vector = frames(shape)
    moving, u, wanted, wanted_grad = (x.clone() for x in warped_by_spline(shape, knots))
    matrices, _ = splines(shape, knots)
    value, (grad,) = gradients(lambda u: ops.warp_spline(moving, u, matrices, index, vector), [u])
    assert_close(value, wanted, 1e-5)
    assert_close(grad, wanted_grad, 2e-5)
    with torch.no_grad():
        assert_close(ops.warp_spline(moving, u, matrices, index, vector), wanted, 1e-5)
        full = ops.warp_spline(moving.double(), u.double(), matrices, index, vector)
        assert torch.allclose(full, wanted, rtol=0, atol=1e-12)


def test_warp_beyond_the_edge_is_the_edge(instructions: str, shape: tuple[int, int, int]) -> None:
    moving = noise(*shape)
    u = torch.full((3, *shape), 100.0)
    value, (grad,) = gradients(lambda u: ops.warp(moving, u, np.eye(3, 4), np.eye(3)), [u])
    assert torch.allclose(value, moving[-1, -1, -1].expand(shape), atol=1e-6)
    assert torch.equal(grad, torch.zeros_like(u))


def mask(shape: tuple[int, int, int]) -> Tensor:
    """Weights of zero, one and between, with a block of zeros wider than the smaller windows."""
    w = (noise(*shape, seed=5) * 0.5 + 0.7).clamp(0, 1)
    w[:, : shape[1] // 2, : shape[2] // 2] = 0
    return w


def images(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Two alike images, the first with a constant corner whose windows do not count."""
    fixed = smooth(1, *shape, passes=1)[0] + 0.5
    fixed[:, shape[1] // 2 :, shape[2] // 2 :] = 0.25
    return fixed, 0.7 * fixed + 0.4 * noise(*shape, seed=3) + 1


def exact_lncc(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, radius: int, epsilon: float, centres: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over windows, and their number, float64."""
    f, m = fixed.double(), moving.double()
    w = torch.ones_like(f) if weight is None else weight.double()

    def box(x: Tensor) -> Tensor:
        for axis in range(3):
            padding = [0] * 6
            padding[2 * (2 - axis) : 2 * (2 - axis) + 2] = [radius, radius]
            x = torch.nn.functional.pad(x, padding).unfold(axis, 2 * radius + 1, 1).sum(-1)
        return x

    n = box(w)
    centre = w > 0.5
    if centres is not None:
        centre = centre | ((centres > 0) & (n >= 0.1 * box(centres.double())))
    counts = n > 0.5
    n = n.clamp(min=0.5)
    mean_f, mean_m = box(w * f) / n, box(w * m) / n
    vf = box(w * f * f) - n * mean_f**2
    vm = (box(w * m * m) - n * mean_m**2).clamp(min=0)
    cross = box(w * f * m) - n * mean_f * mean_m
    counts = counts & (vf > epsilon * n) & centre
    af, am = vf + epsilon * n, vm + epsilon * n
    zero = torch.zeros_like(f)
    return torch.where(counts, cross**2 / (af * am), zero).sum(), counts.sum()


weighted = pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])


@weighted
@pytest.mark.parametrize("radius", range(1, 10))
def test_lncc(instructions: str, shape: tuple[int, int, int], radius: int, weighted: bool) -> None:
    fixed, moving = images(shape)
    weight = mask(shape) if weighted else None
    epsilon = 1e-3
    lncc = ops.Lncc.make(fixed, weight, radius, epsilon)
    exact = moving.double().requires_grad_()
    total, count = exact_lncc(fixed, exact, weight, radius, epsilon)
    assert 0 < lncc.count == count
    wanted = total.detach() / count
    (wanted_grad,) = torch.autograd.grad(total / count, exact)
    assert 0 < float(wanted) < 1
    value, (grad,) = gradients(lncc, [moving])
    assert_close(value, wanted, 3e-6)
    assert_close(grad, wanted_grad, 1e-5)
    with torch.no_grad():
        assert_close(lncc(moving), wanted, 3e-6)


@weighted
@pytest.mark.parametrize("radius", [1, 3, 6])
def test_lncc_of_the_reference(shape: tuple[int, int, int], radius: int, weighted: bool) -> None:
    fixed, moving = images(shape)
    weight = mask(shape) if weighted else None
    lncc = ops.Lncc.make(fixed.double(), None if weight is None else weight.double(), radius, 1e-3)
    exact = moving.double().requires_grad_()
    total, count = exact_lncc(fixed, exact, weight, radius, 1e-3)
    value, (grad,) = gradients(lncc, [moving.double()])
    assert lncc.count == count
    assert torch.allclose(value, total / count, rtol=1e-10)
    assert torch.allclose(grad, torch.autograd.grad(total / count, exact)[0], atol=1e-12)


@pytest.mark.parametrize("radius", [2, 5])
def test_windows_that_are_centred_in_a_lesion_count(
    instructions: str, shape: tuple[int, int, int], radius: int
) -> None:
    fixed, moving = images(shape)
    weight, lesion = torch.ones(shape), torch.zeros(shape, dtype=torch.bool)
    weight[..., :3] = 0  # a mask ends there
    lesion[..., 6:14] = True
    centres, weight = weight, torch.where(lesion, 0.0, weight)
    exact = moving.double().requires_grad_()
    total, count = exact_lncc(fixed, exact, weight, radius, 1e-3, centres)
    _, fewer = exact_lncc(fixed, exact, weight, radius, 1e-3)
    wanted, (grad,) = total.detach() / count, torch.autograd.grad(total / count, exact)
    for image, within in ((fixed, 1e-5), (fixed.double(), 1e-10)):  # the native op; the reference
        lncc = ops.Lncc.make(image, weight.to(image), radius, 1e-3, centres=centres)
        assert lncc.count == count > fewer
        value, (found,) = gradients(lncc, [moving.to(image)])
        assert torch.allclose(value.double(), wanted, rtol=within)
        assert float((found - grad).abs().max()) < within * float(grad.abs().max())


def test_lncc_of_an_offset_image(instructions: str) -> None:
    """Sums of squares far above the variance: what direct sums in float32 can hold."""
    fixed, moving = images(SHAPES["3D"])
    lncc = ops.Lncc.make(fixed + 5, None, 2, 1e-3)
    value, (grad,) = gradients(lncc, [moving + 5])
    exact = (moving + 5).double().requires_grad_()
    total, count = exact_lncc(fixed + 5, exact, None, 2, 1e-3)
    (wanted_grad,) = torch.autograd.grad(total / count, exact)
    assert_close(value, total.detach() / count, 1e-4)
    assert_close(grad, wanted_grad, 1e-3)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_compose(instructions: str, shape: tuple[int, int, int], size: float) -> None:
    """Displacements that stay inside and ones that leave the grid."""
    outer, inner = displacement(shape, size), displacement(shape, size, seed=1)
    check(ops.compose, [outer, inner], 1e-5, 1e-5)


def test_compose_with_a_field_that_is_kept(instructions: str, shape: tuple[int, int, int]) -> None:
    """Without a gradient by the outer field there is nothing to scatter: another path."""
    outer = displacement(shape, 1.5)
    for size in (0.7, 4.0):
        check(lambda u: ops.compose(outer.to(u.dtype), u), [displacement(shape, size, seed=1)], 1e-5, 1e-5)


def test_compose_with_itself(instructions: str, shape: tuple[int, int, int]) -> None:
    check(lambda u: ops.compose(u, u), [displacement(shape, 1.0)], 1e-5, 1e-5)


def test_compose_far_outside(instructions: str, shape: tuple[int, int, int]) -> None:
    """Every position clamped to a corner: the outer field's value there, and no gradient through the position."""
    outer = displacement(shape, 1.0)
    for sign, corner in ((1.0, -1), (-1.0, 0)):
        inner = torch.full((3, *shape), sign * 1e6)
        value, (grad_outer, grad_inner) = gradients(ops.compose, [outer, inner])
        wanted = inner + outer[:, corner, corner, corner].reshape(3, 1, 1, 1)
        assert torch.equal(value, wanted)
        cotangent = noise(3, *shape, seed=9)
        assert torch.equal(grad_inner, cotangent)
        at_corner = grad_outer[:, corner, corner, corner]
        assert torch.allclose(at_corner, cotangent.sum((1, 2, 3)), atol=1e-3)
        at_corner.zero_()
        assert torch.equal(grad_outer, torch.zeros_like(grad_outer))


@pytest.mark.parametrize("squarings", [0, 1, 4])
def test_exponential(instructions: str, shape: tuple[int, int, int], squarings: int) -> None:
    velocity = displacement(shape, 1.0)
    check(lambda v: ops.exponential(v, squarings, -0.7), [velocity], 1e-5, 3e-5)


@pytest.mark.parametrize("squarings", [0, 2])
def test_exponential_within_another_field(instructions: str, shape: tuple[int, int, int], squarings: int) -> None:
    velocity, outer = displacement(shape, 1.0), displacement(shape, 2.0, seed=1)
    check(lambda v, a: ops.exponential(v, squarings, 0.8, outer=a), [velocity, outer], 1e-5, 3e-5)
    check(lambda v: ops.exponential(v, squarings, 0.8, outer=outer.to(v)), [velocity], 1e-5, 3e-5)
    with torch.no_grad():
        apart = ops.compose(outer, ops.exponential(velocity, squarings, 0.8))
        assert torch.equal(ops.exponential(velocity, squarings, 0.8, outer=outer), apart)


def test_diffusion(instructions: str, shape: tuple[int, int, int]) -> None:
    check(ops.diffusion, [noise(3, *shape)], 2e-6, 2e-6)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 3.0, 1e4])
@pytest.mark.parametrize("components", [1, 3])
def test_robust_diffusion(instructions: str, shape: tuple[int, int, int], components: int, scale: float) -> None:
    """From hardly more than a count of nodes to hardly less than the sum of the squares."""
    check(lambda u: ops.diffusion(u, scale), [noise(components, *shape)], 2e-6, 4e-6)


@pytest.mark.parametrize("size", [(17, 70, 33), (1, 65, 16), (2, 33, 200)], ids=str)
def test_robust_diffusion_across_blocks(instructions: str, size: tuple[int, int, int]) -> None:
    check(lambda u: ops.diffusion(u, 0.8), [noise(3, *size)], 2e-6, 4e-6)


def test_robust_diffusion_by_hand() -> None:
    """Both components of a node share one logarithm; the last node of a row has no difference."""
    u = torch.tensor([[0.0, 3.0, 3.0], [0.0, 4.0, 5.0]]).reshape(2, 1, 1, 3)
    wanted = 4 * (math.log1p(25 / 4) + math.log1p(1 / 4))
    for x in (u, u.double()):
        assert float(ops.diffusion(x, 2.0)) == pytest.approx(wanted, rel=1e-6)


def test_gradient_of_the_robust_diffusion() -> None:
    u = noise(2, 3, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.diffusion(x, 0.7), [u])


def test_large_scales_of_the_diffusion(instructions: str, shape: tuple[int, int, int]) -> None:
    """Infinity is the plain sum, to the bit, and so is what is infinite to single precision."""
    for dtype in (torch.float32, torch.float64):
        u = noise(3, *shape).to(dtype)
        plain, (slope,) = gradients(ops.diffusion, [u])
        by_hand = sum(float(u.double().diff(dim=d).square().sum()) for d in (1, 2, 3))
        assert float(plain) == pytest.approx(by_hand, rel=1e-6)
        for scale in (math.inf, 1e200):
            value, (grad,) = gradients(lambda x, scale=scale: ops.diffusion(x, scale), [u])
            assert torch.equal(value, plain)
            assert torch.equal(grad, slope)
        value, (grad,) = gradients(lambda x: ops.diffusion(x, 1e6), [u])
        assert torch.allclose(value, plain, rtol=1e-5)
        assert torch.allclose(grad, slope, atol=1e-4)


def test_robust_diffusion_of_extremes(instructions: str, shape: tuple[int, int, int]) -> None:
    """No overflow in the products of many large ratios, no loss of digits in small ones, nothing from nothing."""
    for size, scale in ((1e-9, 1.0), (1e12, 1e-6)):
        check(lambda u, scale=scale: ops.diffusion(u, scale=scale), [size * noise(3, *shape)], 2e-6, 4e-6)
    energy, (grad,) = gradients(lambda u: ops.diffusion(u, scale=0.1), [torch.full((3, *shape), 7.0)])
    assert float(energy) == 0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_diffusion_refuses_a_scale(scale: float) -> None:
    for u in (torch.zeros(3, 2, 2, 2), torch.zeros(3, 2, 2, 2).double()):
        with pytest.raises(ValueError, match="scale must be positive"):
            ops.diffusion(u, scale=scale)


@pytest.mark.parametrize("corner", range(8))
@pytest.mark.parametrize("size", [0.1, 1.0])
def test_jacobian_penalty(instructions: str, shape: tuple[int, int, int], size: float, corner: int) -> None:
    """Few cells below the margin, and many of them folded."""
    u = displacement(shape, size)
    det = reference.jacobian(u.double(), corner)
    assert 0 < int((det < 0.8).sum()) < det.numel()
    # Few cells, hardly below: the rounding of the determinant counts for more.
    tolerance = 1e-5 if size == 1.0 else 1e-4
    check(lambda u: ops.jacobian_penalty(u, 0.8, corner), [u], tolerance, tolerance)


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_jacobian_penalty_of_nothing(instructions: str, shape: tuple[int, int, int], value: float) -> None:
    energy, (grad,) = gradients(lambda u: ops.jacobian_penalty(u, 0.5), [torch.full((3, *shape), value)])
    assert float(energy) == 0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_invert(instructions: str, shape: tuple[int, int, int]) -> None:
    u = displacement(shape, 0.3, seed=2)
    start = -u
    v, worst = ops.invert(u, start)
    assert 0 < worst < 2e-3
    exact, residual = ops.invert(u.double(), start.double())
    assert residual < 1e-6
    assert float((v.double() - exact).abs().max()) < 5e-3
    back = reference.compose(u.double(), v.double())
    assert abs(float(back.square().sum(0).max().sqrt()) - worst) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 9, 1), (9, 1, 1), (2, 2, 2), (1, 2, 3)], ids=str)
def test_thin_grids(instructions: str, shape: tuple[int, int, int]) -> None:
    u, v = 0.4 * noise(3, *shape), 0.4 * noise(3, *shape, seed=1)
    # Across an axis of one plane every position is clamped; keep away from the point where its derivative jumps.
    for op, inputs in (
        (ops.compose, [u, v]),
        (lambda u: ops.exponential(u, 3), [u]),
        (lambda u: ops.warp(noise(*shape, seed=4).to(u), u, np.eye(3, 4), np.eye(3)), [u]),
        (ops.diffusion, [u]),
        (lambda u: ops.diffusion(u, 0.5), [u]),
        (lambda u: ops.jacobian_penalty(u, 1.5), [u]),
    ):
        value, grads = gradients(op, inputs)
        wanted, wanted_grads = gradients(op, [x.double() for x in inputs])
        assert torch.allclose(value.double(), wanted, atol=1e-5)
        for g, w in zip(grads, wanted_grads, strict=True):
            assert torch.allclose(g.double(), w, atol=1e-4)
    fixed, moving = noise(*shape, seed=4), u[0].double().requires_grad_()
    total, count = exact_lncc(fixed, moving, None, 2, 1e-2)
    value, (grad,) = gradients(ops.Lncc.make(fixed, None, 2, 1e-2), [u[0]])
    assert torch.allclose(value.double(), total / count, atol=1e-5)
    assert torch.allclose(grad.double(), torch.autograd.grad(total / count, moving)[0], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ threads


def every_op(threads: int) -> list[Tensor]:
    """Values and gradients of all ops on a grid large enough to be cut into several tasks."""
    shape = (37, 43, 41)
    fixed, moving = images(shape)
    u, v = displacement(shape, 2.0), displacement(shape, 3.0, seed=1)
    index, vector = frames(shape)
    out: list[Tensor] = []

    def keep(op: Callable[..., Tensor], *inputs: Tensor) -> None:
        value, grads = gradients(op, list(inputs))
        out.extend([value, *grads])

    matrices, lattice = splines(shape)
    keep(lambda x: ops.separable(x, matrices, threads), noise(3, *lattice))
    keep(lambda x: ops.warp(moving, x, index, vector, threads), u)
    keep(lambda x: ops.warp_spline(moving, x, matrices, index, vector, threads), noise(3, *lattice, seed=2))
    for radius, weight in ((2, None), (6, mask(shape))):
        lncc = ops.Lncc.make(fixed, weight, radius, 1e-3, threads)
        out.append(torch.tensor(lncc.count))
        keep(lncc, moving)
    keep(lambda a, b: ops.compose(a, b, threads), u, v)
    keep(lambda x: ops.exponential(x, 3, 1.0, threads), u)
    keep(lambda x, y: ops.exponential(x, 3, 1.0, threads, outer=y), u, v)
    keep(lambda x: ops.diffusion(x, threads=threads), u)
    keep(lambda x: ops.diffusion(x, 0.5, threads), u)
    keep(lambda x: ops.diffusion(x, 0.5, threads), noise(3, 1, 150, 41))
    keep(lambda x: ops.jacobian_penalty(x, 0.8, 0, threads), u)
    inverse, worst = ops.invert(0.2 * u, -0.2 * u, threads)
    return [*out, inverse, torch.tensor(worst)]


def test_same_bits_on_any_number_of_threads(instructions: str) -> None:
    one = every_op(1)
    for threads in THREADS[1:]:
        for i, (a, b) in enumerate(zip(one, every_op(threads), strict=True)):
            assert torch.equal(a, b), f"result {i} differs on {threads} threads"


@pytest.mark.parametrize("threads", [2**31, 2**100, np.int64(2**40)], ids=str)
def test_any_number_of_threads(threads: int) -> None:
    """Also more than an int of the native module holds; a few are started, no more."""
    for a, b in zip(every_op(1), every_op(threads), strict=True):
        assert torch.equal(a, b)
    parameter = torch.ones(40000, requires_grad=True)
    parameter.grad = torch.ones(40000)
    ops.Adam([parameter], threads=threads).step(0.5)
    assert torch.allclose(parameter.detach(), torch.full((40000,), 0.5))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/task")) < limits.MOST_THREADS + 40


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    u = torch.zeros(3, 2, 2, 2)
    for x in (u, u.double()):
        with pytest.raises(ValueError, match="threads must be at least 1"):
            ops.compose(x, x, threads)


# ------------------------------------------------------------------------------------------------------ the dispatch


def test_instruction_sets() -> None:
    assert native.instruction_set() in native.instruction_sets()
    with pytest.raises(ValueError, match="not available"):
        native.use_instruction_set("abacus")


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, then the reference with float32 on the CPU."""
    u = displacement(SHAPES["3D"], 1.0)
    with_native = ops.compose(u, u)
    monkeypatch.setitem(sys.modules, "itk_nir.engine.ops.cpu", None)
    monkeypatch.delattr(ops, "cpu", raising=False)
    ops.native_module.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="native CPU ops are not available"):
            without = ops.compose(u, u)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = ops.exponential(u, 1, 2.0)
            lncc = ops.Lncc.make(*images(SHAPES["3D"])[:1], None, 2, 1e-3)
    finally:
        ops.native_module.cache_clear()
    assert lncc.prepared is None
    assert torch.equal(without, reference.compose(u, u))
    assert torch.equal(again, without)
    assert float((without - with_native).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: native.compose(a, a, b, 1), "shapes disagree"),
        (lambda a, b: native.diffusion(a, b, math.inf, 1), "shapes disagree"),
        (lambda a, b: native.banded(a[0], b[0], torch.zeros(2, dtype=torch.int32), torch.ones(2, 1), 1), "row"),
        (
            lambda a, b: native.banded(a[0], b[0], torch.full((5,), 1, dtype=torch.int32), torch.ones(5, 4), 1),
            "a row reaches beyond the input",
        ),
        (
            lambda a, b: native.banded_adjoint(
                a[0], a[0, 0, :3], b[0], torch.zeros(4, dtype=torch.int32), torch.ones(4, 2), 1
            ),
            "in and factor disagree",
        ),
        (
            lambda a, b: native.warp_spline(
                a[0], b, torch.zeros(4, dtype=torch.int32), torch.ones(4, 2), np.eye(3, 4), np.eye(3), a[0], None, 1
            ),
            "the spline must be",
        ),
    ],
    ids=["compose", "diffusion", "banded", "banded_beyond", "banded_adjoint", "warp_spline"],
)
def test_wrong_shapes(call: Callable[[Any, Any], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 4, 4, 4), torch.zeros(3, 4, 5, 4))


# ------------------------------------------------------------------------------------------------------- the lattice


def test_spline_is_a_partition_of_unity() -> None:
    """Every point of the domain has all four control points around it, at every refinement."""
    domain = Domain((3, 5, 0), (29, 17, 1))
    for axes in Lattices.halved(domain.lattice((6.0, 7.5, 1.0)), 6.0, 2).axes:
        for axis, start, size in zip(axes, domain.start, domain.size, strict=True):
            positions = np.linspace(start, start + size - 1, 101)
            m = axis.evaluate(positions)
            assert m.n_in == axis.count
            assert m.n_out == 101
            np.testing.assert_allclose(m.dense().sum(1), 1, atol=1e-6)
            # Linear precision: coefficients at their own positions give the position.
            if axis.count > 1:
                np.testing.assert_allclose(m.dense() @ axis.positions, positions, atol=1e-5)


def test_cubic_is_the_spline() -> None:
    np.testing.assert_allclose(cubic(np.array([0.0, 1, -1, 2, 0.5])), [2 / 3, 1 / 6, 1 / 6, 0, 23 / 48], atol=1e-12)


def test_refinement_keeps_the_spline() -> None:
    domain = Domain((0, 0, 0), (31, 20, 1))
    rng = np.random.default_rng(0)
    for axis, size in zip(domain.lattice((8.0, 5.0, 1.0)), domain.size, strict=True):
        fine = axis.refined()
        if axis.count > 1:
            assert fine.spacing == axis.spacing / 2
        positions = np.linspace(0, size - 1, 97)
        coefficients = rng.standard_normal(axis.count)
        coarse_values = axis.evaluate(positions).dense() @ coefficients
        fine_values = fine.evaluate(positions).dense() @ (axis.refine().dense() @ coefficients)
        np.testing.assert_allclose(fine_values, coarse_values, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.7, 6.0])
@pytest.mark.parametrize("n", [1, 2, 15])
def test_gaussian_rows_sum_to_one(n: int, sigma: float) -> None:
    positions = np.linspace(-1.5, n + 0.5, 23)
    m = gaussian_matrix(n, positions, sigma)
    np.testing.assert_allclose(m.dense().sum(1), 1, atol=1e-6)
    assert (m.weights >= 0).all()
    if sigma == 0:
        at = positions.clip(0, n - 1)
        np.testing.assert_allclose(m.dense() @ np.arange(n), at, atol=1e-5)


@pytest.mark.parametrize("positions", [np.linspace(-9, 40, 61), np.arange(31.0), np.array([12.0])])
def test_banded_matrices_are_those_of_all_pairs(positions: np.ndarray) -> None:
    """Made of the few columns that a row needs; here every column is looked at."""
    axis = Axis(-3.5, 2.5, 14)
    dense = cubic((positions[:, None] - axis.positions) / axis.spacing)
    np.testing.assert_array_equal(axis.evaluate(positions).dense(), dense.astype(np.float32))
    for sigma in (0.05, 0.3, 2.0):
        at = positions.clip(0, 30)
        distance = np.abs(at[:, None] - np.arange(31))
        reach = max(1.0, 3 * sigma)
        kernel = np.exp(-0.5 * (distance / sigma) ** 2) * (distance <= reach)
        if sigma <= 0.1:
            kernel = np.maximum(0, 1 - distance)
        found = gaussian_matrix(31, positions, sigma).dense()
        np.testing.assert_allclose(found, kernel / kernel.sum(1, keepdims=True), atol=1e-7)


def test_banded_holds_the_dense_matrix_and_its_transpose() -> None:
    rng = np.random.default_rng(1)
    dense = np.zeros((9, 14))
    for i in range(9):
        s = rng.integers(0, 11)
        dense[i, s : s + 3] = rng.integers(-4, 5, 3)
    dense[4] = 0
    m = banded_from_dense(dense)
    np.testing.assert_array_equal(m.dense(), dense)
    np.testing.assert_array_equal(m.transpose.dense(), dense.T)
    np.testing.assert_array_equal(m.transpose.transpose.dense(), dense)
    assert (m.start >= 0).all()
    assert (m.start + m.weights.shape[1] <= 14).all()


def test_inverse_pair(instructions: str, shape: tuple[int, int, int]) -> None:
    """Newton and the fixed point agree, and so do the balanced inverse and its error."""
    torch.manual_seed(3)
    coarse = torch.randn(1, 3, *(3 if n > 1 else 1 for n in shape))
    u = torch.nn.functional.interpolate(coarse * 0.8, size=shape, mode="trilinear", align_corners=True)[0].contiguous()
    if shape[0] == 1:
        u[2] = 0
    inverse, error = ops.inverse_pair(u, -u, (1.0, 2.0, 0.5))
    again, wanted = reference.inverse_pair(u.double(), -u.double(), 0.5, torch.tensor([1.0, 2.0, 0.5]).double())
    # Points that leave the grid are clamped to its edge, where several inverses are as good: look inside.
    inner = tuple(slice(3, -3) if n > 8 else slice(None) for n in shape)
    assert float((inverse - again)[(slice(None), *inner)].abs().median()) < 1e-3
    assert float((error - wanted)[inner].abs().median()) < 1e-3
    assert torch.equal(inverse, ops.inverse_pair(u, -u, (1.0, 2.0, 0.5), threads=3)[0])


def test_jacobian_map(instructions: str, shape: tuple[int, int, int]) -> None:
    u = displacement(shape, 0.5)
    assert float((ops.jacobian_map(u, 2) - reference.jacobian_map(u.double())).abs().max()) < 1e-5


@pytest.mark.parametrize("count", [1, 17, 40000])
def test_adam(instructions: str, count: int) -> None:
    torch.manual_seed(4)
    starts = torch.randn(count)
    fast, slow = starts.clone().requires_grad_(), starts.double().requires_grad_()
    a, b = ops.Adam([fast], (0.9, 0.99), 1e-6, threads=2), ops.Adam([slow], (0.9, 0.99), 1e-6)
    for k in range(5):
        g = torch.randn(count) * 10.0**-k
        fast.grad, slow.grad = g, g.double()
        a.step(0.1)
        b.step(0.1)
    assert fast.grad is None
    assert float((fast - slow).detach().abs().max()) < 1e-5

"""The kernels on images and displacements, emulated, against the float64 references: value, gradient, same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine.lattice import Domain
from itk_nir.engine.ops import reference
from itk_nir.engine.ops.images import banded_tensors
from tests.device.emulated import emulated_kernels, set_order

ORDERS = (0, 1, 2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def value_and_gradients(f, *inputs: Tensor, weights: Tensor | None = None):
    x = [i.clone().requires_grad_() for i in inputs]
    y = f(*x)
    w = torch.ones_like(y) if weights is None else weights.to(y)
    return y.detach(), torch.autograd.grad((y * w).sum(), x)


def same_in_every_order(make) -> None:
    results = []
    for seed in ORDERS:
        set_order(seed)
        results.append(make())
    set_order(1)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def spline(size: tuple[int, int, int], spacing: float):
    domain = Domain((0, 0, 0), size)
    axes = domain.lattice((spacing,) * 3)
    return axes, [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)]


MAPS = (
    np.hstack([np.eye(3) * 0.9 + 0.03 * drawn(3, 3, seed=5).numpy(), drawn(3, 1, seed=6).numpy()]).astype(float),
    np.eye(3) * 0.9 + 0.1 * drawn(3, 3, seed=7).double().numpy(),
)


@pytest.mark.parametrize("shape", [(9, 13, 21), (1, 17, 30), (6, 1, 40)])
def test_warp(kernels, shape):
    moving, u, factor = drawn(8, 15, 19), 1.5 * drawn(3, *shape, seed=1), drawn(*shape, seed=2)
    maps = [torch.from_numpy(m) for m in MAPS]
    value, (gradient,) = value_and_gradients(lambda x: kernels.Warp.apply(moving, x, *MAPS, 1), u, weights=factor)
    true, (wanted,) = value_and_gradients(
        lambda x: reference.warp(moving.double(), x, *maps), u.double(), weights=factor
    )
    assert apart(value, true) < 1e-5
    far = (gradient.double() - wanted).abs().amax(0) > 1e-3  # on the face of a cell either side is right
    assert far.float().mean() < 1e-3
    assert apart(gradient[:, ~far], wanted[:, ~far]) < 1e-5


@pytest.mark.parametrize("shape", [(9, 13, 41), (1, 17, 30)])
def test_linear_warp(kernels, shape):
    """The map stays on the host; its gradient is that of the displacement that it makes."""
    moving, factor = drawn(8, 15, 19), drawn(*shape, seed=2)
    parts = torch.hstack([torch.eye(3) + 0.02 * drawn(3, 3, seed=3), drawn(3, 1, seed=4)])
    places = np.array([[1.3, -9.0], [0.7, -4.1], [2.0, -6.5]])
    maps = [torch.from_numpy(m) for m in MAPS]

    def run():
        value, (gradient,) = value_and_gradients(
            lambda p: kernels.LinearWarp.apply(moving, p, shape, places, *MAPS), parts, weights=factor
        )
        return value, gradient

    def true(p: Tensor) -> Tensor:
        lines = [torch.arange(n, dtype=torch.float64) * a + b for n, (a, b) in zip(shape[::-1], places, strict=True)]
        points = torch.stack(torch.meshgrid(*lines[::-1], indexing="ij")[::-1])
        u = torch.einsum("rc,czyx->rzyx", p[:, :3] - torch.eye(3), points) + p[:, 3, None, None, None]
        return reference.warp(moving.double(), u, *maps)

    same_in_every_order(run)
    value, gradient = run()
    wanted, (slope,) = value_and_gradients(true, parts.double(), weights=factor)
    assert apart(value, wanted) < 1e-5
    assert apart(gradient, slope) < 1e-5
    with torch.no_grad():
        assert torch.equal(kernels.LinearWarp.apply(moving, parts, shape, places, *MAPS), value)


def test_not_a_number_is_passed_on(kernels):
    u = torch.zeros(3, 4, 5, 6)
    u[1, 2, 3, 4] = torch.nan
    warped = kernels.Warp.apply(drawn(4, 5, 6), u, np.eye(4)[:3].copy(), np.eye(3), 1)
    assert warped.isnan().sum() == 1
    assert warped[2, 3, 4].isnan()
    composed = kernels.Compose.apply(drawn(3, 4, 5, 6), u, 1)
    assert composed[:, 2, 3, 4].isnan().all()
    v = torch.zeros(3, 4, 5, 6, requires_grad=True)
    (kernels.Exponential.apply(v, None, 2, 1.0, 1) * u).sum().backward()
    assert v.grad is not None
    assert v.grad.isnan().all()  # whole numbers know none, so that all of the sums say so
    image = drawn(6, 7, 8)
    moving = image.clone()
    moving[3, 3, 3] = torch.nan
    fixed = kernels.LnccFixed(image, None, 1, 1e-4, 1)
    assert kernels.Lncc.apply(moving, fixed, 1).isnan()


@pytest.mark.parametrize(("size", "spacing"), [((45, 22, 13), 2.0), ((33, 30, 9), 1.0), ((40, 21, 1), 4.0)])
def test_warp_spline(kernels, size, spacing):
    axes, matrices = spline(size, spacing)
    lattice, moving = 1.5 * drawn(3, *(a.count for a in axes[::-1]), seed=3), drawn(9, 31, 30)
    factor = drawn(*size[::-1], seed=4)
    rows, back = banded_tensors(matrices, torch.device("cpu"))
    value, (gradient,) = value_and_gradients(
        lambda x: kernels.WarpSpline.apply(moving, x, rows, back, *MAPS, 1), lattice, weights=factor
    )
    dense = [torch.from_numpy(m.dense()) for m in matrices]
    maps = [torch.from_numpy(m) for m in MAPS]

    def true(x: Tensor) -> Tensor:
        u = torch.einsum("czyx,Zz,Yy,Xx->cZYX", x, dense[2], dense[1], dense[0])
        return reference.warp(moving.double(), u, *maps)

    wanted, (slope,) = value_and_gradients(true, lattice.double(), weights=factor)
    assert apart(value, wanted) < 1e-5
    assert apart(gradient, slope) < 2e-2  # some voxels lie on the faces of cells
    direct, (other,) = value_and_gradients(
        lambda x: kernels.Warp.apply(moving, x, *MAPS, 1),
        torch.einsum("czyx,Zz,Yy,Xx->cZYX", lattice.double(), dense[2], dense[1], dense[0]).float(),
        weights=factor,
    )
    assert apart(value, direct.double()) < 1e-5
    back_there = torch.einsum("cZYX,Zz,Yy,Xx->czyx", other.double(), dense[2], dense[1], dense[0])
    assert apart(gradient, back_there) < 1e-2


def test_banded_and_its_transpose(kernels):
    _, (matrix, *_) = spline((23, 9, 9), 2.0)
    (rows,), (back,) = banded_tensors([matrix], torch.device("cpu"))
    x, factor = drawn(3, matrix.n_in, 5), drawn(3, matrix.n_out, 5, seed=1)
    value, (gradient,) = value_and_gradients(lambda t: kernels.Banded.apply(t, rows, back, 1), x, weights=factor)
    dense = torch.from_numpy(matrix.dense())
    assert apart(value, torch.einsum("oi,aij->aoj", dense, x.double())) < 1e-6
    assert apart(gradient, torch.einsum("oi,aoj->aij", dense, factor.double())) < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "radius"), [((11, 19, 45), 2), ((30, 17, 35), 5), ((1, 40, 70), 8), ((7, 9, 5), 1)])
def test_lncc(kernels, shape, radius, weighted):
    fixed = drawn(*shape)
    moving, epsilon = 0.6 * fixed + drawn(*shape, seed=1), 1e-4
    weight = (drawn(*shape, seed=2) > -0.5).float() if weighted else None
    prepared = kernels.LnccFixed(fixed, weight, radius, epsilon, 1)
    wide = None if weight is None else weight.double()
    _, count = reference.lncc(fixed.double(), moving.double(), wide, radius, epsilon)
    assert prepared.count == float(count)
    value, (gradient,) = value_and_gradients(lambda m: kernels.Lncc.apply(m, prepared, 1), moving)
    true, (wanted,) = value_and_gradients(
        lambda m: reference.lncc(fixed.double(), m, wide, radius, epsilon)[0] / count, moving.double()
    )
    assert abs(float(value) / float(true) - 1) < 1e-6
    assert apart(gradient, wanted) < 2e-6
    with torch.no_grad():
        assert torch.equal(kernels.Lncc.apply(moving, prepared, 1), value)


def test_lncc_has_the_same_bits_in_every_order(kernels):
    fixed = drawn(14, 17, 37)
    moving = fixed + drawn(14, 17, 37, seed=1)

    def make():
        prepared = kernels.LnccFixed(fixed, None, 2, 1e-4, 1)
        value, (gradient,) = value_and_gradients(lambda m: kernels.Lncc.apply(m, prepared, 1), moving)
        return value, gradient, prepared.mean

    same_in_every_order(make)


@pytest.mark.parametrize("shape", [(9, 12, 15), (1, 22, 17)])
def test_compositions(kernels, shape):
    a, b, factor = 1.3 * drawn(3, *shape), 2.1 * drawn(3, *shape, seed=1), drawn(3, *shape, seed=2)
    if shape[0] == 1:
        a[2], b[2] = 0, 0
    value, (outer, inner) = value_and_gradients(lambda x, y: kernels.Compose.apply(x, y, 1), a, b, weights=factor)
    true, (wanted_outer, wanted_inner) = value_and_gradients(reference.compose, a.double(), b.double(), weights=factor)
    assert apart(value, true) < 1e-6
    assert apart(outer, wanted_outer) < 1e-5
    assert apart(inner, wanted_inner) < 1e-5
    for given in (None, a):

        def exponential(x: Tensor, given=given) -> Tensor:
            return kernels.Exponential.apply(x, given, 2, 0.5, 1)

        def true_exponential(x: Tensor, given=given) -> Tensor:
            u = reference.exponential(x, 2, 0.5)
            return u if given is None else reference.compose(given.double(), u)

        value, (gradient,) = value_and_gradients(exponential, b, weights=factor)
        true, (wanted,) = value_and_gradients(true_exponential, b.double(), weights=factor)
        assert apart(value, true) < 1e-6
        assert apart(gradient, wanted) < 1e-4


def test_the_adjoint_has_the_same_bits_in_every_order(kernels):
    a, b = 1.3 * drawn(3, 8, 9, 10), 2.1 * drawn(3, 8, 9, 10, seed=1)

    def make():
        value, gradients = value_and_gradients(lambda x, y: kernels.Compose.apply(x, y, 1), a, b)
        return value, *gradients

    same_in_every_order(make)


#: File, and which of the barriers of its text. Every text begins with three: two of `block_sum`, the first of which is
#: for kernels that used the memory before, and one of the largest of all (see `test_kernels`).
BARRIERS = [("lncc.cu", k) for k in (1, 3, 4, 5)] + [("warp.cu", 3), ("warp.cu", 4)]


@pytest.mark.parametrize(("file", "number"), BARRIERS)
def test_each_barrier_is_needed(libraries, file, number):
    def results(ops):
        if file == "lncc.cu":
            fixed = drawn(14, 17, 37)
            prepared = ops.LnccFixed(fixed, None, 2, 1e-4, 1)
            moving = fixed + drawn(14, 17, 37, seed=1)
            value, (gradient,) = value_and_gradients(lambda m: ops.Lncc.apply(m, prepared, 1), moving)
            return value, gradient
        axes, matrices = spline((45, 22, 13), 2.0)
        rows, back = banded_tensors(matrices, torch.device("cpu"))
        lattice = drawn(3, *(a.count for a in axes[::-1]))
        return (ops.WarpSpline.apply(drawn(9, 31, 30), lattice, rows, back, *MAPS, 1),)

    with emulated_kernels(libraries) as ops:
        right = results(ops)
    with emulated_kernels(libraries, without=(file, number)) as ops:
        spoilt = results(ops)
    assert any(not torch.equal(a, b) for a, b in zip(right, spoilt, strict=True))


def test_a_radius_without_kernels_is_left_to_the_reference(kernels, monkeypatch):
    from itk_nir.engine.ops.cuda import launching

    assert kernels.takes_radius(2, torch.device("cpu"))
    assert not kernels.takes_radius(100, torch.device("cpu"))

    def refuse(*_: object) -> None:
        raise launching.DriverError("no such card")

    monkeypatch.setattr(launching, "module_on", refuse)
    with pytest.warns(RuntimeWarning, match="no such card"):
        assert not kernels.takes_radius(2, torch.device("cpu"))

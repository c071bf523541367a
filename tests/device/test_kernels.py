"""The kernels of penalties, inverses, sums, descriptors and matches, emulated, against the float64 references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from itk_nir.engine.ops import reference
from itk_nir.engine.ops.cuda import adam, inversion, penalties
from tests.device.emulated import set_order

pytestmark = pytest.mark.usefixtures("kernels")

#: A volume that no block divides, an image, a column, a volume of one block along x.
SHAPES = {"3D": (5, 7, 37), "2D": (1, 9, 41), "column": (6, 1, 1), "thin": (4, 5, 1), "point": (1, 1, 1)}

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_every_order(run: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `run` returns, which has the same bits in three orders of threads and blocks."""
    found = []
    for seed in (0, 1, 2):
        set_order(seed)
        found.append(run())
    set_order(1)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a.nan_to_num(nan=7e30), b.nan_to_num(nan=7e30))
    return found[0]


def value_and_gradient(op: Callable[[Tensor], Tensor], x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = op(leaf)
    # The reference of nothing at all has no gradient.
    gradient = torch.autograd.grad(factor * value, leaf)[0] if value.requires_grad else torch.zeros_like(x)
    return value.detach(), gradient


def assert_close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Largest difference, relative to the largest value."""
    assert got.shape == wanted.shape
    assert torch.equal(got.isnan(), wanted.isnan())
    if wanted.numel():
        scale = float(wanted.nan_to_num().abs().max())
        assert float((got.double() - wanted.double()).nan_to_num().abs().max()) <= tolerance * max(scale, 1e-30)


@each_shape
@pytest.mark.parametrize(("components", "scale"), [(3, math.inf), (3, 0.7), (2, 1e-3), (1, 1e20)])
def test_diffusion(shape: tuple[int, int, int], components: int, scale: float) -> None:
    u = noise(components, *shape)
    value, gradient = in_every_order(
        lambda: value_and_gradient(lambda x: penalties.Diffusion.apply(x, scale, 1), u, -3.0)
    )
    wanted, slope = value_and_gradient(lambda x: reference.diffusion(x, scale), u.double(), -3.0)
    assert_close(value, wanted, 1e-6)
    assert_close(gradient, slope, 2e-6)


def test_diffusion_of_small_differences_keeps_its_digits() -> None:
    u = 1e-4 * noise(3, 4, 5, 6)
    value, gradient = value_and_gradient(lambda x: penalties.Diffusion.apply(x, 10.0, 1), u)
    wanted, slope = value_and_gradient(lambda x: reference.diffusion(x, 10.0), u.double())
    assert_close(value, wanted, 1e-6)
    assert_close(gradient, slope, 2e-6)


@each_shape
@pytest.mark.parametrize("corner", range(8))
def test_jacobian_penalty(shape: tuple[int, int, int], corner: int) -> None:
    u = 0.6 * noise(3, *shape)
    value, gradient = in_every_order(
        lambda: value_and_gradient(lambda x: penalties.JacobianPenalty.apply(x, 0.8, corner, 1), u, -3.0)
    )
    wanted, slope = value_and_gradient(lambda x: reference.jacobian_penalty(x, 0.8, corner), u.double(), -3.0)
    assert float(wanted) > 0 or max(shape) == 1 or sum(n > 1 for n in shape) == 1
    assert_close(value, wanted, 1e-6)
    assert_close(gradient, slope, 2e-6)


@pytest.mark.parametrize("op", [
    lambda x: penalties.Diffusion.apply(x, math.inf, 1), lambda x: penalties.Diffusion.apply(x, 0.5, 1),
    lambda x: penalties.JacobianPenalty.apply(x, 0.5, 3, 1),
], ids=["diffusion", "robust", "jacobian"])  # fmt: skip
def test_penalties_pass_on_what_is_no_number(op: Callable[[Tensor], Tensor]) -> None:
    u = noise(3, 4, 5, 6)
    clean = value_and_gradient(op, u)[1]
    u[1, 2, 2, 2] = math.nan
    value, gradient = value_and_gradient(op, u)
    assert value.isnan()
    assert gradient[:, 2, 2, 2].isnan().any()
    assert torch.equal(gradient[:, 0, 0], clean[:, 0, 0])


def test_adam() -> None:
    p, g = noise(700, seed=1), noise(700, seed=2)
    moments = 0.1 * noise(700, seed=3), 0.1 * noise(700, seed=4).square()
    wanted = [x.double() for x in (p, *moments)]
    reference.adam(wanted[0], g.double(), wanted[1], wanted[2], (0.9, 0.999), 0.1, 2.0, 1e-8)

    def run() -> tuple[Tensor, ...]:
        got = [x.clone() for x in (p, *moments)]
        adam(got[0], g, got[1], got[2], (0.9, 0.999), 0.1, 2.0, 1e-8, 1)
        return tuple(got)

    for a, b in zip(in_every_order(run), wanted, strict=True):
        assert_close(a, b, 1e-6)


def smooth(shape: tuple[int, int, int], size: float, seed: int = 0) -> Tensor:
    """A smooth displacement of about `size` voxels, none along an axis of one voxel."""
    u = noise(3, *shape, seed=seed).double()
    for _ in range(4):
        for axis in (1, 2, 3):
            u = (u + u.roll(1, axis) + u.roll(-1, axis)) / 3
    for axis in (1, 2, 3):
        if shape[axis - 1] == 1:
            u[3 - axis] = 0
    return size * u / u.std()


@pytest.mark.parametrize(("shape", "size"), [((6, 11, 17), 0.9), ((1, 13, 25), 1.5), ((4, 1, 9), 0.5)])
def test_inverses(shape: tuple[int, int, int], size: float) -> None:
    u = smooth(shape, size)
    found, worst = in_every_order(lambda: inversion.invert(u.float(), -u.float(), 20, 1e-3, 1))
    wanted, _ = reference.invert(u, -u)
    gap = reference.compose(u, found.double()).square().sum(0).sqrt()
    assert float(gap.max()) == pytest.approx(float(worst), abs=1e-5)
    # Where the map folds there is no inverse; elsewhere a node ends at the tolerance.
    solved = reference.compose(u, wanted).square().sum(0) < 1e-10
    assert solved.double().mean() > 0.9
    assert float(gap[solved].max()) < 1.1e-3
    pair, error = in_every_order(lambda: inversion.inverse_pair(u.float(), -u.float(), 0.5, [1.0, 2.0, 0.5], 1))
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64).reshape(3, 1, 1, 1)
    there = (reference.compose(pair.double(), u) * scale).square().sum(0).sqrt()
    assert_close(error, there, 1e-5)
    # The step from the same inverse, once by the reference.
    x = (reference.identity(shape, u) + u).requires_grad_(False)
    nodes = found.double().requires_grad_()
    interpolated = reference._corner_sum(nodes, x)
    (weight,) = torch.autograd.grad(interpolated.sum(), nodes, retain_graph=True)
    (move,) = torch.autograd.grad(interpolated, nodes, -(u + interpolated).detach())
    assert_close(pair, found + move / (weight + 0.5), 1e-5)


def test_an_inverse_passes_on_what_is_no_number() -> None:
    u = smooth((3, 8, 9), 0.4).float()
    clean, _ = inversion.inverse_pair(u, -u, 0.5, [1.0] * 3, 1)
    u[0, 1, 4, 4] = math.nan
    start = -u
    start[0, 1, 4, 4] = 0.0
    pair, error = in_every_order(lambda: inversion.inverse_pair(u, start, 0.5, [1.0] * 3, 1))
    assert error[1, 4, 4].isnan()
    assert 0 < int(pair.isnan().any(0).sum()) < 60
    _, worst = inversion.invert(torch.full_like(u, math.nan), u, 20, 1e-3, 1)
    assert worst.isinf()
    assert torch.equal(pair[:, 0, :2, 7:], clean[:, 0, :2, 7:])


def test_a_whole_image_that_ends_in_one_node() -> None:
    """As many addends as there can be: what leaves the image goes to its corner."""
    u = torch.full((3, 4, 8, 8), 100.0)
    u += 0.1 * noise(*u.shape)
    pair, _ = inversion.inverse_pair(u, -u, 0.5, [1.0] * 3, 1)
    wanted, _ = reference.inverse_pair(u.double(), -u.double(), 0.5, torch.ones(3, dtype=torch.float64))
    assert_close(pair, wanted, 1e-5)


@each_shape
def test_jacobian_map(shape: tuple[int, int, int]) -> None:
    u = noise(3, *shape)
    assert_close(inversion.jacobian_map(u, 1), reference.jacobian_map(u.double()), 1e-6)

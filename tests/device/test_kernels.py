"""The kernels of penalties, inverses, sums, descriptors and matches, emulated, against the float64 references."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine.lattice import Domain
from itk_nir.engine.op_cases import compared, op_cases, value_and_gradients
from itk_nir.engine.ops import dispatch, reference, reference_matching, reference_mind
from itk_nir.engine.ops.cuda import adam, compositions, inversion, launching, matching, mind, penalties, sums
from itk_nir.engine.ops.cuda.compiler import text_of
from itk_nir.engine.ops.histogram import Similarity, joint_histogram
from itk_nir.engine.ops.images import banded_tensors
from tests.device.emulated import emulated_kernels, set_order

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


def test_launched_by_hip(libraries: Path) -> None:
    """Its functions have other names, and end the list of where the arguments lie by another word."""
    p, g = noise(700, seed=1), noise(700, seed=2)
    got = [p.clone(), torch.zeros(700), torch.zeros(700)]
    adam(got[0], g, got[1], got[2], (0.9, 0.999), 0.1, 2.0, 1e-8, 1)
    with emulated_kernels(libraries, hip=True):
        by_hip = [p.clone(), torch.zeros(700), torch.zeros(700)]
        adam(by_hip[0], g, by_hip[1], by_hip[2], (0.9, 0.999), 0.1, 2.0, 1e-8, 1)
        assert all(torch.equal(a, b) for a, b in zip(by_hip, got, strict=True))
        rates = (ctypes.c_longlong(700), 1 - 0.9, 1 - 0.999, 0.1, 2.0, 1e-8)
        prepared = launching.prepare("adam.cu", "adam", (3, 1, 1), (256, 1, 1), p, g, *by_hip[1:], *rates)
        assert prepared.module.driver.hip
        before = p.clone()
        launching.repeat([prepared], p.device)
        assert not torch.equal(p, before)


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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [(3, 5, 7), (5, 31, 37)])
def test_global_sums(count: tuple[int, int, int], weighted: bool) -> None:
    fixed, moving, weight = noise(*count), noise(*count, seed=1), (noise(*count, seed=2) > 0).float()
    if weighted:
        moving[weight == 0], fixed[weight == 0] = math.nan, math.inf
    w, mask = (weight, weight > 0.5) if weighted else (None, torch.ones_like(weight) > 0)
    factor = torch.tensor([0.3, -2.0, 0.7], dtype=torch.float64)

    def run() -> tuple[Tensor, ...]:
        leaf = moving.clone().requires_grad_()
        value = sums.GlobalSums.apply(fixed, leaf, w, 1)
        return value.detach(), *torch.autograd.grad((value * factor).sum(), leaf)

    value, gradient = in_every_order(run)
    f, m = fixed[mask].double(), moving[mask].double()
    assert value.dtype == torch.float64
    assert_close(value, torch.stack([m.sum(), m.square().sum(), (f * m).sum()]), 1e-6)
    wanted = torch.zeros(count, dtype=torch.float64)
    wanted[mask] = factor[0] + 2 * factor[1] * m + factor[2] * f
    assert_close(gradient, wanted, 1e-6)
    moving[mask.nonzero()[0].unbind()] = math.nan
    assert sums.GlobalSums.apply(fixed, moving, w, 1).isnan().all()


@pytest.mark.parametrize("bins", [4, 32, 48, 70])
def test_joint_histogram(bins: int) -> None:
    shape = (6, 17, 31)
    position = (noise(*shape).abs() * bins / 3).clamp(0, bins - 1)
    position[noise(*shape, seed=1) > 1] = -1
    position[0, 0, 0] = math.nan
    moving, factor = noise(*shape, seed=2), noise(bins, bins, seed=3).double()
    low, scale = -2.0, (bins - 1) / 4.0
    moving[1, 1, 1:4] = torch.tensor([-2.0, 2.0, 30.0])

    def run() -> tuple[Tensor, ...]:
        leaf = moving.clone().requires_grad_()
        value = sums.JointHistogram.apply(position, leaf, bins, low, scale, 1)
        return value.detach(), *torch.autograd.grad((value * factor).sum(), leaf)

    value, gradient = in_every_order(run)
    leaf = moving.double().requires_grad_()
    wanted = joint_histogram(position.double(), leaf, bins, low, scale)
    (slope,) = torch.autograd.grad((wanted * factor).sum(), leaf)
    assert float(value.sum()) == float((position >= 0).sum())
    assert_close(value, wanted.detach(), 2e-6)
    # On the face of a cell either side is right.
    t = (moving.double() - low) * scale
    off = (t - t.round()).abs() > 1e-5
    assert_close(gradient[off], slope[off], 1e-5)


def test_a_histogram_of_one_bin_overflows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All voxels in one place, as many a block as of a large image."""
    monkeypatch.setattr(sums, "WANTED_BLOCKS", 1)
    position, moving = torch.full((1, 131, 130), 2.0), torch.full((1, 131, 130), 1.0)
    for bins in (4, 32, 70):
        value = sums.JointHistogram.apply(position, moving, bins, 0.0, 1.0, 1)
        assert float(value[2, 1]) == position.numel()
        assert float(value.sum()) == position.numel()


def test_a_histogram_passes_on_what_is_no_number() -> None:
    position, moving = noise(4, 5, 6).abs(), noise(4, 5, 6, seed=1)
    moving[1, 2, 3], position[1, 2, 3] = math.nan, 2.5
    moving[0, 0, 0], position[0, 0, 0] = math.nan, -1.0  # does not count
    value = in_every_order(lambda: (sums.JointHistogram.apply(position, moving, 8, -3.0, 1.1, 1),))[0]
    wanted = joint_histogram(position.double(), moving.double(), 8, -3.0, 1.1)
    assert int(wanted.isnan().sum()) == 4
    assert_close(value, wanted, 2e-6)


OFFSETS = {
    "whole": np.eye(3),
    "between": np.array([[0.8, 0.3, 0.0], [-0.2, 1.3, 0.1], [0.4, 0.0, 2.2]]),
}


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize(
    ("shape", "radius", "dimension"), [((5, 9, 13), 1, 3), ((4, 6, 7), 5, 3), ((1, 12, 17), 2, 2), ((7, 1, 1), 1, 3)]
)
def test_descriptors(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], radius: int, dimension: int, offsets: np.ndarray
) -> None:
    image = noise(*shape)
    if dimension == 2:
        offsets = offsets * np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    wanted = reference_mind.mind_descriptors(image.double(), torch.from_numpy(offsets), radius, dimension)

    def run() -> tuple[Tensor, ...]:
        return (mind.mind_descriptors(image, offsets, radius, dimension, 1),)

    for slab in (mind.SLAB, 2):
        monkeypatch.setattr(mind, "SLAB", slab)
        (got,) = in_every_order(run) if slab > 2 else run()
        assert got.dtype == torch.uint8
        assert int((got.int() - wanted.int()).abs().max()) <= 1
        assert float((got != wanted).float().mean()) < 0.02


def test_descriptors_of_what_does_not_vary() -> None:
    flat = mind.mind_descriptors(torch.full((4, 5, 6), 0.3), OFFSETS["between"], 1, 3, 1)
    assert bool((flat[..., :12] == 255).all())
    assert bool((flat[..., 12:] == 0).all())
    broken = noise(4, 5, 6)
    broken[2, 2, 2] = math.nan
    assert not mind.mind_descriptors(broken, np.eye(3), 1, 3, 1).any()


INDEX = np.array([[0.9, 0.05, 0.0, 0.3], [-0.03, 1.1, 0.02, -0.4], [0.01, 0.0, 0.95, 0.2]])
VECTOR = np.array([[0.9, 0.1, 0.0], [0.0, 1.1, -0.2], [0.05, 0.0, 0.8]])


def descriptors(shape: tuple[int, int, int], channels: int, seed: int) -> Tensor:
    found = torch.randint(0, 256, (*shape, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    found[..., channels:] = 0
    return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "channels"), [((5, 6, 35), 12), ((1, 9, 13), 4), ((3, 1, 4), 12)])
def test_difference_of_descriptors(shape: tuple[int, int, int], channels: int, weighted: bool) -> None:
    fixed, moving = (
        descriptors(shape, channels, 1),
        descriptors((4, 7, 20) if shape[0] > 1 else (1, 8, 15), channels, 2),
    )
    u = 2 * noise(3, *shape)
    weight = noise(*shape, seed=3) if weighted else None
    maps = torch.from_numpy(INDEX), torch.from_numpy(VECTOR)
    value, gradient = in_every_order(
        lambda: value_and_gradient(
            lambda x: mind.MindDifference.apply(fixed, moving, weight, x, INDEX, VECTOR, channels, 1), u, -3.0
        )
    )
    wanted, slope = value_and_gradient(
        lambda x: reference_mind.mind_difference(fixed, moving, weight, x, *maps, channels), u.double(), -3.0
    )
    assert_close(value, wanted, 1e-5)
    assert_close(gradient, slope, 1e-4)
    with torch.no_grad():
        assert torch.equal(mind.MindDifference.apply(fixed, moving, weight, u, INDEX, VECTOR, channels, 1), value)
    u[1, 0, 0, 2] = math.nan
    value, gradient = value_and_gradient(
        lambda x: mind.MindDifference.apply(fixed, moving, None, x, INDEX, VECTOR, channels, 1), u
    )
    assert value.isnan()
    assert gradient[:, 0, 0, 2].isnan().all()
    assert int(gradient.isnan().any(0).sum()) == 1


@pytest.mark.parametrize(("size", "channels"), [((11, 9, 6), 12), ((14, 12, 1), 4)])
def test_difference_of_descriptors_by_a_spline(size: tuple[int, int, int], channels: int) -> None:
    domain = Domain((0, 0, 0), size)
    axes = domain.lattice((2.0,) * 3)
    matrices = [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)]
    rows, back = banded_tensors(matrices, torch.device("cpu"))
    shape = size[::-1]
    fixed, moving = descriptors(shape, channels, 1), descriptors(shape, channels, 2)
    lattice = noise(3, *(a.count for a in axes[::-1]))
    value, gradient = in_every_order(
        lambda: value_and_gradient(
            lambda x: mind.MindDifferenceSpline.apply(fixed, moving, None, x, rows, back, INDEX, VECTOR, channels, 1),
            lattice,
        )
    )
    dense = [torch.from_numpy(m.dense()) for m in matrices]

    def true(x: Tensor) -> Tensor:
        u = torch.einsum("czyx,Zz,Yy,Xx->cZYX", x, dense[2], dense[1], dense[0])
        maps = torch.from_numpy(INDEX), torch.from_numpy(VECTOR)
        return reference_mind.mind_difference(fixed, moving, None, u, *maps, channels)

    wanted, slope = value_and_gradient(true, lattice.double())
    assert_close(value, wanted, 1e-5)
    assert_close(gradient, slope, 1e-4)


MATCHES = [((6, 7, 9), (2, 1, 1), (3, 2, 4)), ((1, 10, 11), (3, 2, 0), (4, 4, 1)), ((5, 3, 3), (0, 1, 2), (4, 4, 4))]


@pytest.mark.parametrize(("shape", "reach", "block"), MATCHES)
def test_matches(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], reach: matching.Whole, block: matching.Whole
) -> None:
    around = tuple(n + 2 * r for n, r in zip(shape, reversed(reach), strict=True))
    fixed, moving = descriptors(shape, 16, 1), descriptors(around, 16, 2)
    counts, there = ((noise(*s, seed=3) > -1).to(torch.uint8) for s in (shape, around))
    arguments = (fixed, counts, moving, there, reach, block, 1300)
    wanted = reference_matching.match_costs(*arguments)
    costs = in_every_order(lambda: (matching.match_costs(*arguments, 1).int(),))[0]
    assert torch.equal(costs, wanted.int())
    monkeypatch.setattr(matching, "HELD", 1)
    assert torch.equal(matching.match_costs(*arguments, 1).int(), costs)
    to = noise(3, costs.shape[0], seed=4)
    found, cost = in_every_order(lambda: matching.best_matches(wanted, to, reach, 0.05, 1))
    best, least = reference_matching.best_matches(wanted, to.double(), reach, 0.05)
    assert torch.equal(found.double(), best)
    assert torch.equal(cost.double(), least)


def test_the_first_of_several_matches() -> None:
    """Of displacements that are as good, also in threads far apart."""
    costs = torch.full((2, 729), 100, dtype=torch.int32)
    costs[0, [700, 20, 300, 21]] = 3
    found, cost = in_every_order(
        lambda: matching.best_matches(costs.to(torch.uint16), torch.zeros(3, 2), (4, 4, 4), 0.0, 1)
    )
    assert found[:, 0].tolist() == [20 % 9 - 4, 20 // 9 - 4, -4]
    assert found[:, 1].tolist() == [-4, -4, -4]
    assert (8192 * cost).tolist() == [3, 100]


def _of_inversion() -> tuple[Tensor, ...]:
    return inversion.invert(smooth((3, 9, 11), 0.6).float(), torch.zeros(3, 3, 9, 11), 1, 1e-3, 1)


def _of_totals() -> tuple[Tensor, ...]:
    return (sums.total(noise(700)),)


def _of_histogram() -> tuple[Tensor, ...]:
    return (sums.JointHistogram.apply(noise(4, 9, 20).abs(), noise(4, 9, 20, seed=1), 6, -2.0, 1.2, 1),)


def _of_information() -> tuple[Tensor, ...]:
    # Another one first, or the memory that is read too early may hold what an equal run left there.
    sums.Information.apply(noise(17, 17).double().square(), 200.0, True)
    histogram = noise(17, 17).double().abs().requires_grad_()
    value = sums.Information.apply(histogram, 200.0, True)
    return value.detach(), *torch.autograd.grad(value, histogram)


def _of_iteration() -> tuple[Tensor, ...]:
    out = torch.zeros(2)
    launching.launch(
        "sums.cu", "iteration_totals", (1, 1, 1), (256, 1, 1), noise(700), 700, 0.1, None, noise(900, seed=1), 450,
        0.3, 0.2, out, 0, shared=3 * sums.WIDE_SUM_BYTES,
    )  # fmt: skip
    return (out,)


def _of_matches() -> tuple[Tensor, ...]:
    costs = torch.randint(0, 8192, (3, 729), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return matching.best_matches(costs.to(torch.uint16), noise(3, 3), (4, 4, 4), 0.1, 1)


def _of_compositions() -> tuple[Tensor, ...]:
    a, b = smooth((3, 9, 11), 0.6).float().requires_grad_(), smooth((3, 9, 11), 0.9, seed=1).float().requires_grad_()
    return torch.autograd.grad(compositions.Compose.apply(a, b, 1).square().sum(), (a, b))


#: Barriers of the text that all files share: two of `block_sum`, which are tested with the local correlation, and that
#: of the largest of all.
SHARED_BARRIERS = 3
#: File, which of the barriers of its text, what needs it.
BARRIERS = [
    ("compositions.cu", 2, _of_compositions),
    ("inversion.cu", 2, _of_inversion),
    ("sums.cu", 3, _of_totals),
    ("sums.cu", 4, _of_histogram),
    ("sums.cu", 5, _of_histogram),
    *(("sums.cu", k, _of_information) for k in range(6, 12)),
    ("sums.cu", 12, _of_iteration),
    ("matching.cu", 3, _of_matches),
]


@pytest.mark.parametrize(("file", "number", "run"), BARRIERS)
def test_each_barrier_is_needed(libraries: Path, file: str, number: int, run: Callable[[], tuple[Tensor, ...]]) -> None:
    own = [k for f, k, _ in BARRIERS if f == file and k >= SHARED_BARRIERS]
    assert text_of(file).count("__syncthreads();") == SHARED_BARRIERS + len(own)
    wanted = in_every_order(run)
    with emulated_kernels(libraries, without=(file, number)):
        found = []
        for seed in (1, 2, 3):
            set_order(seed)
            found.append(run())
    set_order(1)
    assert any(not torch.equal(a, b) for one in found for a, b in zip(one, wanted, strict=True))
    for a, b in zip(run(), wanted, strict=True):
        assert torch.equal(a, b)


def test_every_barrier_is_in_the_list() -> None:
    """None of the other files of these ops has one."""
    for file in ("adam.cu", "banded.cu", "mind.cu", "penalties.cu"):
        assert text_of(file).count("__syncthreads();") == SHARED_BARRIERS


@pytest.mark.parametrize("shape", [(5, 9, 14), (1, 13, 18)])
def test_each_case_of_the_self_test(
    monkeypatch: pytest.MonkeyPatch, kernels: ModuleType, shape: tuple[int, int, int]
) -> None:
    """As on a card, where the engine chooses the kernels itself; what is warped may end on the other side of a face."""
    cpu, cases = torch.device("cpu"), list(op_cases(shape))
    wanted = [value_and_gradients(case, cpu, torch.float64) for case in cases]
    monkeypatch.setitem(dispatch.KERNELS, "cpu", lambda device: kernels)
    results = [compared(case, cpu, w) for case, w in zip(cases, wanted, strict=True)]
    assert [r for r in results if not r.passed] == []


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("bins", [4, 17, 32])
def test_information(bins: int, normalised: bool) -> None:
    histogram = 50 * noise(bins, bins).double().abs()
    histogram[:, 1:3] = 0  # what the smoothing leaves empty in one image
    histogram[-3:] = 0
    count = float(histogram.sum().round())

    def run() -> tuple[Tensor, ...]:
        leaf = histogram.clone().requires_grad_()
        value = sums.Information.apply(leaf, count, normalised)
        return value.detach(), torch.autograd.grad(-3 * value, leaf)[0]

    value, gradient = in_every_order(run)
    leaf = histogram.clone().requires_grad_()
    wanted = Similarity.apply(leaf, count, normalised)
    assert value.dtype == torch.float32
    assert_close(value, wanted.detach(), 1e-6)
    assert_close(gradient, torch.autograd.grad(-3 * wanted, leaf)[0], 1e-12)
    histogram[2, 3] = math.nan
    assert sums.Information.apply(histogram, count, normalised).isnan()
    assert float(sums.Information.apply(torch.zeros(bins, bins).double(), 0.0, normalised)) == 0

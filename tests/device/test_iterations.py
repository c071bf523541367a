"""Iterations that the kernels do whole, emulated, against the float64 references of what they are made of."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Domain
from itk_nir.engine.ops import dispatch, reference
from itk_nir.engine.ops.cuda import iterations as whole
from tests.device.emulated import set_order

#: The displacement of a cell is at most some voxels, and no voxel of the moving image lies at the face of a cell.
MAPS = (np.hstack([np.eye(3) * 0.93, np.full((3, 1), 0.31)]), np.diag([1.1, 0.9, 1.0]))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(size: tuple[int, int, int], **changed: object) -> tuple[Tensor, ops.IterationTerms]:
    """Control points, and the terms of a loss; `weight` and `composed` say what else there is."""
    domain = Domain((0, 0, 0), size)
    axes = domain.lattice((2.0,) * 3)
    spline = [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)]
    shape, lattice = size[::-1], [a.count for a in axes[::-1]]
    fixed, moving = drawn(*shape, seed=1), drawn(*shape, seed=2)
    weight = (drawn(*shape, seed=3) > -0.5).float() if changed.pop("weight", False) else None
    points, outer = 0.5 * drawn(3, *lattice, seed=4), 0.3 * drawn(3, *lattice, seed=5)
    if size[2] == 1:
        points[2], outer[2] = 0, 0
    lncc = ops.Lncc.make(fixed, weight, 2, 1e-4)

    def measure(u: Tensor) -> tuple[Tensor, Tensor]:
        return lncc(ops.warp_spline(moving, u, spline, *MAPS)), 0.01 * u.square().sum()

    terms = ops.IterationTerms(
        outer=outer if changed.pop("composed", False) else None, integration_steps=2, scale=0.8,
        penalties=(0.03, 0.32, 0.07, 0.6), measure=measure, windows=ops.Windows(moving, lncc, spline, *MAPS),
    )  # fmt: skip
    return points, replace(terms, **changed)  # type: ignore[arg-type]


def optimiser_of(points: Tensor) -> ops.Adam:
    """The first moment is the gradient itself."""
    return ops.Adam([points.clone().requires_grad_()], betas=(0.0, 0.999))


def by_kernels(points: Tensor, terms: ops.IterationTerms, corner: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity and loss, the gradient, and where a step ends."""
    optimiser = optimiser_of(points)
    found = ops.whole_iterations(optimiser, 2, terms)
    found.evaluate(1, corner)
    found.step(*optimiser.next_rates(0.05))
    assert not found.numbers[0].any()
    return found.numbers[1], optimiser.first[0], optimiser.parameters[0].detach()


def by_reference(
    points: Tensor, terms: ops.IterationTerms, windows: ops.Windows, corner: int = 3
) -> tuple[Tensor, Tensor]:
    """Similarity and loss, and the gradient, in float64."""
    v = points.double().requires_grad_()
    u = reference.exponential(v, terms.integration_steps, terms.scale) if terms.integration_steps else terms.scale * v
    if terms.outer is not None:
        u = reference.compose(terms.outer.double(), u)
    dense = [torch.from_numpy(m.dense()) for m in windows.spline]
    there = torch.einsum("czyx,Zz,Yy,Xx->cZYX", u, dense[2], dense[1], dense[0])
    maps, lncc = (torch.from_numpy(m) for m in MAPS), windows.lncc
    weight = None if lncc.weight is None else lncc.weight.double()
    total, count = reference.lncc(
        lncc.fixed.double(), reference.warp(windows.moving.double(), there, *maps), weight, lncc.radius, lncc.epsilon
    )
    similarity, (weight_d, scale, weight_j, margin) = total / count, terms.penalties
    loss = 1 - similarity + weight_d * reference.diffusion(u, scale)
    loss = loss + weight_j * reference.jacobian_penalty(u, margin, corner)
    if terms.windows is None:
        loss = loss + 0.01 * u.square().sum()
    (gradient,) = torch.autograd.grad(loss, v)
    return torch.stack([similarity.detach(), loss.detach()]), gradient


@pytest.fixture(autouse=True)
def _on_kernels(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    monkeypatch.setitem(dispatch.KERNELS, "cpu", lambda device: kernels)


SIZE = (15, 12, 9)
CASES: dict[str, dict] = {
    "flow": {},
    "composed, weighted": {"composed": True, "weight": True},
    "one squaring": {"integration_steps": 1},
    "displacement": {"integration_steps": 0},
    "displacement, composed": {"integration_steps": 0, "composed": True, "penalties": (0.03, math.inf, 0.07, 0.6)},
    "three squarings, no penalties": {"integration_steps": 3, "penalties": (0.0, 0.32, 0.0, 0.6)},
    "2D": {"size": (23, 19, 1), "composed": True},
    "measured": {"windows": None},
    "measured, composed": {"windows": None, "composed": True},
    "measured, displacement": {"windows": None, "integration_steps": 0, "size": (23, 19, 1)},
}


@pytest.mark.parametrize("name", CASES)
def test_an_iteration(name: str) -> None:
    """Value, gradient, and the same bits in every order of threads and blocks."""
    given = dict(CASES[name])
    size = given.pop("size", SIZE)
    windows = problem(size, **{k: v for k, v in given.items() if k != "windows"})[1].windows
    points, terms = problem(size, **given)
    results = []
    for seed in (0, 1, 2):
        set_order(seed)
        results.append(by_kernels(points, terms))
    set_order(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    numbers, gradient, moved = results[0]
    wanted, slope = by_reference(points, terms, windows)
    assert ((numbers - wanted) / wanted).abs().max() < 2e-6
    assert terms.penalties[2] == 0 or wanted[1] > 1 - wanted[0] + 0.01
    assert (gradient - slope).norm() < 2e-5 * slope.norm()
    # The first step of Adam goes one rate along each component, where that is much larger than its smallest number.
    expected = points.double() - 0.05 * slope.sign()
    clear = slope.abs() > 0.03 * slope.abs().max()
    assert clear.double().mean() > 0.1
    assert (moved - expected)[clear].abs().max() < 1e-4


def test_iterations_follow_one_another() -> None:
    """Nothing is left of one in the next, nor of an evaluation without a step; and the corner of the cells changes."""
    points, terms = problem(SIZE, composed=True)
    optimiser, other = optimiser_of(points), optimiser_of(points)
    found = ops.whole_iterations(optimiser, 6, terms)
    for k in range(3):
        found.evaluate(k, 0)  # somebody only looks
        found.evaluate(k + 3, k)
        found.step(*optimiser.next_rates(0.1))
        again = ops.whole_iterations(other, 1, terms)
        again.evaluate(0, k)
        again.step(*other.next_rates(0.1))
        assert torch.equal(again.numbers[0], found.numbers[k + 3])
        for mine, its in ((optimiser, other), (other, optimiser)):
            assert torch.equal(mine.parameters[0], its.parameters[0])
            assert torch.equal(mine.second[0], its.second[0])
    assert not torch.equal(found.numbers[1, 1], found.numbers[4, 1])


def test_what_is_no_number_is_passed_on() -> None:
    points, terms = problem(SIZE)
    assert terms.windows is not None
    moving = terms.windows.moving.clone()
    moving[4, 5, 6] = math.nan
    numbers, gradient, _ = by_kernels(points, replace(terms, windows=replace(terms.windows, moving=moving)))
    assert numbers.isnan().all()
    assert gradient.isnan().any()
    points[1, 3, 3, 3] = math.nan
    numbers, gradient, _ = by_kernels(points, terms)
    assert numbers[1].isnan()
    assert gradient.isnan().all()


def test_sizes_of_an_iteration_are_forgotten() -> None:
    """The unit of the sums of one iteration is no part of the next."""
    points, terms = problem(SIZE, composed=True)
    optimiser = optimiser_of(1000 * points)
    found = ops.whole_iterations(optimiser, 2, terms)
    found.evaluate(0, 3)
    found.step(*optimiser.next_rates(0.1))
    with torch.no_grad():
        optimiser.parameters[0].copy_(points)
        optimiser.first[0].zero_(), optimiser.second[0].zero_()
    found.evaluate(1, 3)
    found.step(0.1, 1.0)
    assert torch.equal(optimiser.first[0], by_kernels(points, terms)[1])


def test_what_has_no_kernels_is_left_to_autograd() -> None:
    points, terms = problem(SIZE)
    windows = terms.windows
    assert windows is not None
    assert isinstance(ops.whole_iterations(optimiser_of(points), 1, terms), whole.WindowIterations)
    narrow = replace(windows.spline[0], weights=windows.spline[0].weights[:, :3])
    for other in (
        replace(windows, spline=[narrow, *windows.spline[1:]]),
        replace(windows, lncc=replace(windows.lncc, prepared=None)),
    ):
        found = ops.whole_iterations(optimiser_of(points), 1, replace(terms, windows=other))
        assert isinstance(found, whole.MeasuredIterations)
    assert ops.whole_iterations(optimiser_of(points.double()), 1, terms) is None


def test_a_metric_that_says_nothing() -> None:
    """Of a constant the penalties alone remain."""
    points, terms = problem(SIZE)
    constants = (lambda u: u.new_tensor(0.25), lambda u: torch.ones((), requires_grad=True) * 0.25)
    for constant in constants:
        numbers, gradient, _ = by_kernels(
            points, replace(terms, windows=None, measure=lambda u, c=constant: (c(u), None))
        )
        v = points.double().requires_grad_()
        u = reference.exponential(v, 2, terms.scale)
        loss = 0.75 + 0.03 * reference.diffusion(u, 0.32) + 0.07 * reference.jacobian_penalty(u, 0.6, 3)
        assert numbers.tolist() == pytest.approx([0.25, loss.item()], rel=1e-6)
        (slope,) = torch.autograd.grad(loss, v)
        assert (gradient - slope).norm() < 2e-5 * slope.norm()


def test_the_totals_of_many_blocks() -> None:
    scores, energies, out = drawn(700), drawn(900, seed=1), torch.zeros(2, 2)
    one = whole.prepare(
        "sums.cu", "iteration_totals", (1, 1, 1), whole.THREADS, scores, 700, 0.1, scores[3:], energies, 450, 0.3, 0.2,
        out, 0, shared=whole.THREE_SUM_BYTES,
    )  # fmt: skip
    one.put(whole.ITERATION, 1)
    whole.repeat([one], out.device)
    similarity = 0.1 * scores.double().sum()
    loss = 1 - similarity + scores[3] + 0.3 * energies[:450].double().sum() + 0.2 * energies[450:].double().sum()
    assert (out[1] - torch.stack([similarity, loss])).abs().max() < 1e-5
    assert not out[0].any()

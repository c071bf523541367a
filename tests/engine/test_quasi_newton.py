"""The minimisation that cannot lose: it finds minima, keeps to its radius and takes nothing that is worse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from itk_nir.engine.quasi_newton import Minimum, minimise

Function = Callable[[Tensor], tuple[float, Tensor]]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def farthest(a: Tensor, b: Tensor) -> float:
    return float((b - a).abs().max())


def with_gradient(loss: Callable[[Tensor], Tensor]) -> Function:
    def function(x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient

    return function


@with_gradient
def quadratic(x: Tensor) -> Tensor:
    """Its least value 0 is at (1, 2, 3, …); curvatures from 1 to 100."""
    scale = torch.logspace(0, 2, len(x), dtype=torch.float64)
    return (scale * (x - torch.arange(1, len(x) + 1)) ** 2).sum()


@with_gradient
def rosenbrock(x: Tensor) -> Tensor:
    """A bent valley; its least value 0 is at (1, …, 1)."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def found(function: Function, start: Tensor, **changes: Any) -> Minimum:
    options: dict[str, Any] = {"radius": 0.5, "most_radius": 4.0, "evaluations": 300, "tolerance": 1e-14}
    reach = changes.pop("reach", farthest)
    return minimise(function, start, reach, **(options | changes))


class Seen:
    """A function that notes where it was evaluated, and what it gave."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.at: list[Tensor] = []
        self.losses: list[float] = []

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self.function(x)
        self.at.append(x.clone())
        self.losses.append(loss)
        return loss, gradient


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 12])
def test_minimum_of_a_quadratic(n: int) -> None:
    result = found(quadratic, torch.zeros(n, dtype=torch.float64))
    assert result.stop == "converged"
    assert result.evaluations < 100
    assert result.loss < 1e-10
    torch.testing.assert_close(result.x, torch.arange(1, n + 1, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", [(-1.2, 1.0), (-1.2, 1.0, -1.2, 1.0), (3.0, -2.0, 0.5)])
def test_minimum_of_rosenbrocks_valley(start: tuple[float, ...]) -> None:
    seen = Seen(rosenbrock)
    result = found(seen, f64(*start))
    assert result.stop == "converged"
    assert result.evaluations == len(seen.losses) < 150
    assert result.loss == rosenbrock(result.x)[0] == min(seen.losses)
    if len(start) < 4:  # four have a second minimum
        torch.testing.assert_close(result.x, torch.ones(len(start), dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("evaluations", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("function", [quadratic, rosenbrock], ids=["quadratic", "rosenbrock"])
def test_never_above_the_start_nor_longer_than_wanted(function: Function, evaluations: int) -> None:
    start = f64(-1.2, 1.0, 0.3)
    seen = Seen(function)
    result = found(seen, start, evaluations=evaluations)
    assert result.evaluations == len(seen.losses) == evaluations
    assert result.stop == "all evaluations done"
    assert result.loss == min(seen.losses) <= function(start)[0]
    assert function(result.x)[0] == result.loss
    if evaluations == 1:
        assert torch.equal(result.x, start)


@pytest.mark.parametrize(
    ("function", "start"),
    [(quadratic, f64(1, 2, 3)), (rosenbrock, f64(1, 1)), (lambda x: (3.0, torch.zeros_like(x)), f64(5, -7))],
    ids=["quadratic", "rosenbrock", "flat"],
)
def test_start_that_is_the_minimum_is_kept_exactly(function: Function, start: Tensor) -> None:
    result = found(function, start, tolerance=0.0)
    assert torch.equal(result.x, start)
    assert result.evaluations == 1
    assert result.stop == "converged"


def test_gradient_that_lies_moves_nothing() -> None:
    """Where no step along it lowers the loss, the start is given back, soon."""
    result = found(lambda x: (float((x**2).sum()), -2 * x), f64(1.0, -2.0))
    assert torch.equal(result.x, f64(1.0, -2.0))
    assert result.stop == "converged"
    assert result.evaluations < 10


def test_start_is_left_alone() -> None:
    start = f64(-1.2, 1.0)
    found(rosenbrock, start)
    assert torch.equal(start, f64(-1.2, 1.0))


# --- how far ---------------------------------------------------------------------------------------------------------


def saturated(a: Tensor, b: Tensor) -> float:
    """What moves the image need not be linear: far steps all look alike."""
    return float(torch.tanh(20 * (b - a).abs().max()))


def rooted(a: Tensor, b: Tensor) -> float:
    return float((b - a).abs().max()) ** 0.2


@pytest.mark.parametrize("reach", [farthest, saturated, rooted])
@pytest.mark.parametrize(("function", "start"), [(quadratic, f64(-30, 40, 50)), (rosenbrock, f64(-1.2, 1.0))])
def test_no_step_reaches_beyond_the_radius(
    function: Function, start: Tensor, reach: Callable[[Tensor, Tensor], float]
) -> None:
    seen = Seen(function)
    result = found(seen, start, reach=reach, radius=0.1, most_radius=0.3, evaluations=40)
    at, best = start, math.inf
    steps = []
    for x, loss in zip(seen.at, seen.losses, strict=True):
        steps.append(reach(at, x))
        if loss < best:
            at, best = x, loss
    assert 0.5 * 0.1 < steps[1] <= 1.06 * 0.1
    assert max(steps) <= 1.06 * 0.3
    assert result.loss < seen.losses[0]


def test_radius_grows_where_the_steps_keep_their_promise() -> None:
    seen = Seen(quadratic)
    found(seen, f64(-300.0, -300.0), radius=0.1, most_radius=6.4, evaluations=12)
    steps = [farthest(a, b) for a, b in zip(seen.at[:-1], seen.at[1:], strict=True)]
    assert steps[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6], rel=0.06)
    assert max(steps) <= 1.06 * 6.4


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worse", [math.nan, math.inf])
@pytest.mark.parametrize("of", ["loss", "gradient", "both"])
def test_what_is_no_number_is_never_accepted(worse: float, of: str) -> None:
    """A cliff beyond 0.7: the minimum lies behind it."""

    def cliff(x: Tensor) -> tuple[float, Tensor]:
        loss, gradient = float(((x - 1) ** 2).sum()), 2 * (x - 1)
        if float(x.max()) <= 0.7:
            return loss, gradient
        return worse if of != "gradient" else 9.0, gradient * worse if of != "loss" else gradient

    result = found(cliff, f64(0.0, 0.0), radius=2.0)
    assert math.isfinite(result.loss)
    assert result.loss < 1
    assert float(result.x.max()) <= 0.7
    assert cliff(result.x)[0] == result.loss


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_start_that_is_no_number_is_given_back(part: str) -> None:
    def broken(x: Tensor) -> tuple[float, Tensor]:
        return (math.nan, torch.ones_like(x)) if part == "loss" else (1.0, x * math.nan)

    result = found(broken, f64(1.0, 2.0))
    assert torch.equal(result.x, f64(1.0, 2.0))
    assert result.evaluations < 10


def test_reach_that_is_no_number_moves_nothing() -> None:
    result = found(quadratic, f64(0.0, 0.0), reach=lambda a, b: math.nan)
    assert torch.equal(result.x, f64(0.0, 0.0))


def test_loss_without_a_bottom_ends() -> None:
    result = found(lambda x: (float(x.sum()), torch.ones_like(x)), f64(0.0, 0.0), evaluations=30)
    assert result.evaluations == 30
    assert -30 * 2 * 4 * 1.06 <= result.loss < -100


# --- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_cancelled_it_gives_the_best_that_was_seen(after: int) -> None:
    seen, told = Seen(rosenbrock), []

    def goes_on(loss: float) -> bool:
        told.append(loss)
        return len(told) < after

    result = found(seen, f64(-1.2, 1.0), goes_on=goes_on)
    assert result.stop == "cancelled"
    assert told == seen.losses
    assert len(told) == result.evaluations == after
    assert result.loss == min(told)
    assert torch.equal(result.x, seen.at[told.index(min(told))])


@pytest.mark.parametrize("tolerance", [1.0, 1e-2, 1e-4])
def test_tolerance_ends_it(tolerance: float) -> None:
    """The next step promises less than that."""
    exact, rough = (found(rosenbrock, f64(-1.2, 1.0), tolerance=t) for t in (1e-14, tolerance))
    assert rough.stop == "converged"
    assert rough.evaluations < exact.evaluations
    assert rough.loss >= exact.loss
    huge = found(rosenbrock, f64(-1.2, 1.0), tolerance=1e9)
    assert huge.evaluations == 1
    assert torch.equal(huge.x, f64(-1.2, 1.0))

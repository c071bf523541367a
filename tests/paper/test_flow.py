"""Flows and their inverses at points, against closed forms and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from itk_nir.paper.flow import FLOWS, flow, inverse_flow, invert_at_points

linalg = pytest.importorskip("scipy.linalg")


def matrix(d: int, size: float = 0.4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(d, d)) * size


def cloud(d: int, n: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, size=(n, d)))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(("name", "steps", "tolerance"), [("euler", 400, 5e-3), ("rk4", 4, 1e-4), ("rk4", 16, 1e-6)])
@pytest.mark.parametrize("time", [1.0, 0.3, -1.0])
def test_linear_velocity_flows_as_the_matrix_exponential(
    d: int, name: str, steps: int, tolerance: float, time: float
) -> None:
    a, p = matrix(d), cloud(d)
    got = p + flow(name, lambda q: q @ torch.from_numpy(a).T, p, steps, time)
    np.testing.assert_allclose(got.numpy(), p.numpy() @ linalg.expm(time * a).T, atol=tolerance)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("rk4", 4)])
def test_solvers_have_their_order(name: str, order: int) -> None:
    a, p = matrix(3), cloud(3)
    exact = p @ torch.from_numpy(linalg.expm(a)).T

    def error(steps: int) -> float:
        return float((p + flow(name, lambda q: q @ torch.from_numpy(a).T, p, steps) - exact).abs().max())

    assert abs(math.log2(error(16) / error(32)) - order) < 0.2


def wave(q: torch.Tensor) -> torch.Tensor:
    """A smooth displacement or velocity, Lipschitz below one."""
    return 0.15 * torch.sin(3 * q.flip(-1) + torch.arange(q.shape[-1]))


@pytest.mark.parametrize("name", list(FLOWS))
@pytest.mark.parametrize("d", [2, 3])
def test_inverse_flow_comes_back(name: str, d: int) -> None:
    p = cloud(d)
    back = inverse_flow(name, wave, p, steps=16, tolerance=1e-9)
    there = p + back
    again = there + flow(name, wave, there, steps=16)
    distance = torch.linalg.vector_norm(again - p, dim=-1)
    assert float(distance.max()) < {"displacement": 1e-8, "euler": 0.02, "rk4": 1e-6}[name]


@pytest.mark.slow
def test_inverse_settles_where_the_displacement_is_not_a_contraction() -> None:
    """x → 2.6 x is one to one, but plain fixed-point iteration of u = 1.6 x runs away."""
    p = cloud(2)
    inverse, error = invert_at_points(lambda q: 1.6 * q, p, tolerance=1e-9)
    assert float(error.max()) < 1e-8
    torch.testing.assert_close(error, torch.linalg.vector_norm(inverse + 1.6 * (p + inverse), dim=-1))
    torch.testing.assert_close(p + inverse, p / 2.6, atol=1e-8, rtol=0)


def test_inverse_reports_what_it_could_not_reach() -> None:
    p = torch.tensor([[0.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    _, error = invert_at_points(lambda q: torch.where(q[:, :1] > 2, 1.0, 0.0) * torch.ones_like(q), p + 2.5, 30)
    assert float(error[0]) > 0.5  # 2.5 lies in the tear between 2 and 3
    assert float(error[1]) < 1e-6


def test_errors() -> None:
    with pytest.raises(ValueError, match="displacement, euler, rk4"):
        flow("leapfrog", wave, cloud(2))
    with pytest.raises(ValueError, match="at least one step"):
        flow("rk4", wave, cloud(2), 0)

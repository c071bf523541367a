"""Flows, composition, inverse and Jacobian, against closed forms and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itk_nir.paper.flow import (
    FLOWS,
    compose,
    flow,
    inverse_flow,
    invert_at_points,
    invert_fixed_point,
    jacobian_determinant,
    lattice_index,
    squaring,
)
from itk_nir.geometry import Geometry

linalg = pytest.importorskip("scipy.linalg")
Rotation = pytest.importorskip("scipy.spatial.transform").Rotation


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
def test_inverse_flow_comes_back_and_tells_its_error(name: str, d: int) -> None:
    p = cloud(d)
    back, error = inverse_flow(name, wave, p, steps=16, tolerance=1e-9)
    there = p + back
    again = there + flow(name, wave, there, steps=16)
    distance = torch.linalg.vector_norm(again - p, dim=-1)
    torch.testing.assert_close(error, distance)
    assert float(distance.max()) < {"displacement": 1e-8, "euler": 0.02, "rk4": 1e-6}[name]


def test_inverse_settles_where_the_displacement_is_not_a_contraction() -> None:
    """x → 2.6 x is one to one, but plain fixed-point iteration of u = 1.6 x runs away."""
    p = cloud(2)
    inverse, error = invert_at_points(lambda q: 1.6 * q, p, tolerance=1e-9)
    assert float(error.max()) < 1e-8
    torch.testing.assert_close(p + inverse, p / 2.6, atol=1e-8, rtol=0)


def test_inverse_reports_what_it_could_not_reach() -> None:
    p = torch.tensor([[0.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    _, error = invert_at_points(lambda q: torch.where(q[:, :1] > 2, 1.0, 0.0) * torch.ones_like(q), p + 2.5, 30)
    assert float(error[0]) > 0.5  # 2.5 lies in the tear between 2 and 3
    assert float(error[1]) < 1e-6


def linear_lattice(a: np.ndarray, shape: tuple[int, ...], spacing: np.ndarray) -> torch.Tensor:
    """Vectors ``a @ (x - middle)`` on a lattice."""
    index = lattice_index(torch.zeros(len(shape), *shape, dtype=torch.float64)).numpy()
    x = (index - (np.array(shape[::-1]) - 1) / 2) * spacing
    return torch.from_numpy(np.moveaxis(x @ a.T, -1, 0).copy())


@pytest.mark.parametrize("shape", [(21, 25), (13, 15, 17)])
def test_squaring_of_a_linear_velocity(shape: tuple[int, ...]) -> None:
    d = len(shape)
    spacing = np.array([1.5, 0.7, 2.0][:d])
    a = matrix(d, 0.08)
    u = squaring(linear_lattice(a, shape, spacing), squarings=8, spacing=spacing.tolist())
    wanted = linear_lattice(linalg.expm(a) - np.eye(d), shape, spacing)
    inner = (slice(None), *[slice(n // 4, n - n // 4) for n in shape])
    np.testing.assert_allclose(u[inner].numpy(), wanted[inner].numpy(), atol=2e-3 * float(wanted.abs().max()))
    back = squaring(linear_lattice(a, shape, spacing), squarings=8, spacing=spacing.tolist(), time=-1.0)
    assert float(compose(back, u, spacing.tolist())[inner].abs().max()) < 5e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("shape", [(30, 34), (16, 18, 20)])
def test_squaring_equals_many_euler_steps(shape: tuple[int, ...]) -> None:
    d = len(shape)
    index = lattice_index(torch.zeros(d, *shape, dtype=torch.float64))
    size = torch.tensor(shape[::-1])
    velocity = (1.5 * torch.sin(6.0 * index / size).prod(-1, keepdim=True) * torch.ones(d)).movedim(-1, 0)
    u = squaring(velocity, squarings=10)
    fine = torch.zeros_like(velocity)
    for _ in range(1024):
        fine = compose(velocity / 1024, fine)
    # The two differ by how often the lattice is interpolated, not by the order of the method.
    assert float((u - fine).abs().max()) < 0.06
    assert float(u.abs().max()) > 1.0


@pytest.mark.parametrize("shape", [(9, 11), (6, 7, 8)])
def test_compose_is_exact_for_linear_maps(shape: tuple[int, ...]) -> None:
    d = len(shape)
    spacing = np.array([0.5, 2.0, 1.0][:d])
    a, b = matrix(d, 0.03, 3), matrix(d, 0.03, 4)
    total = compose(linear_lattice(a, shape, spacing), linear_lattice(b, shape, spacing), spacing.tolist())
    wanted = linear_lattice((np.eye(d) + a) @ (np.eye(d) + b) - np.eye(d), shape, spacing)
    inner = (slice(None), *[slice(2, n - 2) for n in shape])
    np.testing.assert_allclose(total[inner].numpy(), wanted[inner].numpy(), atol=1e-12)


def test_squaring_gradient() -> None:
    v = linear_lattice(matrix(2, 0.03), (4, 5), np.ones(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: squaring(v + 0.1234, 2), (v,))


@pytest.mark.parametrize("shape", [(40, 36), (20, 22, 24)])
def test_lattice_inverse_and_its_error(shape: tuple[int, ...]) -> None:
    d = len(shape)
    spacing = [0.8, 1.6, 1.2][:d]
    index = lattice_index(torch.zeros(d, *shape, dtype=torch.float64))
    phase = torch.arange(d) + 2 * math.pi * index.flip(-1) / torch.tensor(shape[::-1])
    u = (1.2 * torch.sin(phase)).movedim(-1, 0)
    inverse, error = invert_fixed_point(u, spacing, tolerance=1e-7)
    assert float(error.max()) < 1e-6
    assert float(compose(u, inverse, spacing).abs().max()) < 1e-6


@st.composite
def oblique(draw: st.DrawFn) -> tuple[Geometry, np.ndarray]:
    d = draw(st.sampled_from([2, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    rotation = Rotation.random(random_state=rng.integers(2**31)).as_matrix() if d == 3 else plane(rng.uniform(0, 6.3))
    if draw(st.booleans()):
        rotation = rotation * np.array([-1.0] + [1.0] * (d - 1))  # left-handed
    size = tuple(int(n) for n in rng.integers(2, 7, size=d))
    return Geometry.make(size, rng.uniform(0.3, 4.0, d), rng.normal(size=d) * 50, rotation), rng.normal(size=(d, d)) / 2


def plane(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@settings(max_examples=40, deadline=None)
@given(oblique())
def test_jacobian_of_a_linear_map_on_any_grid(case: tuple[Geometry, np.ndarray]) -> None:
    geometry, a = case
    d = geometry.dimension
    lps = torch.from_numpy(np.moveaxis(geometry.grid() @ a.T, -1, 0).copy())
    wanted = np.full(geometry.shape, np.linalg.det(np.eye(d) + a))
    got = jacobian_determinant(lps, geometry.spacing, geometry.direction)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-8)
    along_axes = torch.einsum("ji,j...->i...", torch.from_numpy(geometry.rotation.copy()), lps)
    np.testing.assert_allclose(jacobian_determinant(along_axes, geometry.spacing).numpy(), wanted, atol=1e-8)


def test_jacobian_differences_and_flat_axis() -> None:
    x = torch.arange(5.0, dtype=torch.float64)
    u = torch.zeros(2, 3, 5, dtype=torch.float64)
    u[0] = x**2 / 10  # central differences of x² are exact, the ends are one-sided
    wanted = 1 + torch.tensor([0.1, 0.2, 0.4, 0.6, 0.7], dtype=torch.float64)
    torch.testing.assert_close(jacobian_determinant(u), wanted.expand(3, 5))
    torch.testing.assert_close(jacobian_determinant(u[:, :1]), wanted.expand(1, 5))


def test_errors() -> None:
    with pytest.raises(ValueError, match="displacement, euler, rk4"):
        flow("leapfrog", wave, cloud(2))
    with pytest.raises(ValueError, match="at least one step"):
        flow("rk4", wave, cloud(2), 0)
    with pytest.raises(ValueError, match="spacing needs 2"):
        squaring(torch.zeros(2, 4, 4), spacing=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"\(d, \[D,\] H, W\)"):
        jacobian_determinant(torch.zeros(2, 4, 4, 4))

"""The Jacobian determinant on any grid, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itk_nir.engine.jacobian import jacobian_determinant
from itk_nir.geometry import Geometry

Rotation = pytest.importorskip("scipy.spatial.transform").Rotation


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


def test_native_and_reference_agree() -> None:
    u = torch.randn(3, 5, 7, 6, generator=torch.Generator().manual_seed(0)) * 0.3
    spacing = (0.8, 1.5, 2.0)
    single, double = jacobian_determinant(u, spacing), jacobian_determinant(u.double(), spacing)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=1e-5, rtol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(d, \[D,\] H, W\)"):
        jacobian_determinant(torch.zeros(2, 4, 4, 4))
    with pytest.raises(ValueError, match="spacing needs 2"):
        jacobian_determinant(torch.zeros(2, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"direction must be \(2, 2\)"):
        jacobian_determinant(torch.zeros(2, 4, 4), 1.0, np.eye(3).tolist())

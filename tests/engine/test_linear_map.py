"""The map of the linear stage: its closed form and its gradient against float64 and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from itk_nir.engine.linear_map import LinearMap
from itk_nir.geometry import Geometry

KINDS = ("translation", "rigid", "similarity", "affine")


def model(d: int, kind: str) -> LinearMap:
    return LinearMap(Geometry.make((40, 50, 30)[:d], (1.0, 0.8, 2.0)[:d]), kind)


def parameters(m: LinearMap, size: float, seed: int) -> Tensor:
    return size * m.radius * torch.from_numpy(np.random.default_rng(seed).standard_normal(len(m.moving)))


def reference(m: LinearMap, x: Tensor) -> Tensor:
    """``(3, 4)`` float64 by torch's matrix exponential, which is a polynomial: its digits end at some 1e-10."""
    full = x.new_zeros(16).index_copy(0, torch.from_numpy(m.moving), x)
    a, b, c = (full[3:6] / m.radius).unbind()
    o = torch.zeros_like(a)
    skew = torch.stack([torch.stack([o, -c, b]), torch.stack([c, o, -a]), torch.stack([-b, a, o])])
    stretch = torch.exp(full[6] / m.radius) * (torch.eye(3, dtype=x.dtype) + full[7:].reshape(3, 3) / m.radius)
    if m.d == 2:
        flat = torch.diag(x.new_tensor([1.0, 1.0, 0.0]))
        stretch = flat @ stretch @ flat + torch.diag(x.new_tensor([0.0, 0.0, 1.0]))
    return torch.cat([torch.matrix_exp(skew) @ stretch, full[:3, None]], 1)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(size=st.sampled_from([0.0, 1e-9, 1e-5, 3e-3, 0.01, 0.3, 1.0, 3.0]), seed=st.integers(0, 1000))
def test_closed_form_and_its_gradient(d: int, kind: str, size: float, seed: int) -> None:
    m = model(d, kind)
    x = parameters(m, size, seed)
    there = x.clone().requires_grad_()
    wanted = reference(m, there)
    np.testing.assert_allclose(m.matrix(x), wanted.detach().numpy(), rtol=1e-8, atol=1e-8)
    slopes = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((3, 4)))
    (wanted * slopes).sum().backward()
    assert there.grad is not None
    np.testing.assert_allclose(m.gradient(x, slopes.numpy()), there.grad.numpy(), rtol=1e-7, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(size=st.floats(0, 3), seed=st.integers(0, 1000))
def test_rotations_are_those_of_scipy(size: float, seed: int) -> None:
    m = model(3, "rigid")
    x = parameters(m, size, seed)
    wanted = Rotation.from_rotvec(x.numpy()[3:] / m.radius).as_matrix()
    np.testing.assert_allclose(m.matrix(x)[:, :3], wanted, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(m.matrix(x)[:, 3], x.numpy()[:3])


@pytest.mark.parametrize("d", [2, 3])
def test_parts_are_float32_with_their_gradient(d: int) -> None:
    m = model(d, "affine")
    m.turn_about((0.0, 0.0, 1.0))
    x = parameters(m, 0.1, 0).requires_grad_()
    matrix, shift = m.parts(x)
    assert matrix.dtype == shift.dtype == torch.float32
    np.testing.assert_allclose(np.c_[matrix.detach(), shift.detach()], m.matrix(x), rtol=1e-6, atol=1e-6)
    ((matrix**2).sum() + (shift**3).sum()).backward()
    other = x.detach().clone().requires_grad_()
    there = reference(m, other)
    ((there[:, :3] ** 2).sum() + (there[:, 3] ** 3).sum()).backward()
    assert x.grad is not None
    assert other.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), other.grad.numpy(), rtol=1e-5, atol=1e-6)

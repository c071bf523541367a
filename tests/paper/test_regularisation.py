"""Penalties against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itk_nir.paper.regularisation import bending, block_jacobian, diffusion, jacobian_penalty


def block(function: object, shape: tuple[int, ...], spacing: list[float]) -> torch.Tensor:
    """``(1, d, *shape)`` displacement of a function ``(..., d) -> (..., d)`` of mm along the axes."""
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    x = np.stack(axes[::-1], -1) * np.array(spacing)
    return torch.from_numpy(np.moveaxis(function(x), -1, 0)[None].copy())  # type: ignore[operator]


@st.composite
def linear_case(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], list[float]]:
    d = draw(st.sampled_from([2, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return rng.normal(size=(d, d)) / 2, tuple(rng.integers(3, 6, d)), rng.uniform(0.3, 5, d).tolist()


@settings(max_examples=40, deadline=None)
@given(linear_case())
def test_linear_displacements(case: tuple[np.ndarray, tuple[int, ...], list[float]]) -> None:
    a, shape, spacing = case
    d = len(shape)
    u = block(lambda x: x @ a.T + 3, shape, spacing)
    assert float(diffusion(u, spacing)) == pytest.approx((a**2).sum())
    assert float(bending(u, spacing, length=10.0)) == pytest.approx(0, abs=1e-15 * 1e4)
    det = block_jacobian(u, spacing)
    assert det.shape == (1, *[n - 1 for n in shape])
    np.testing.assert_allclose(det.numpy(), np.linalg.det(np.eye(d) + a), atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 5), (4, 6, 5)])
def test_quadratic_displacements_bend_by_their_hessian(shape: tuple[int, ...]) -> None:
    d = len(shape)
    spacing = [0.5, 2.0, 1.5][:d]
    h = np.random.default_rng(0).normal(size=(d, d, d))
    h = h + h.transpose(0, 2, 1)
    u = block(lambda x: np.einsum("ijk,...j,...k->...i", h, x, x) / 2, shape, spacing)
    assert float(bending(u, spacing)) == pytest.approx((h**2).sum())
    assert float(bending(u, spacing, length=3.0)) == pytest.approx(9 * (h**2).sum())


def test_weights_do_not_depend_on_the_voxel_size() -> None:
    def bump(x: np.ndarray) -> np.ndarray:
        return np.sin(x[..., ::-1] / 8)

    coarse, fine = block(bump, (40, 50), [1.0, 1.0]), block(bump, (160, 200), [0.25, 0.25])
    assert float(diffusion(coarse, 1.0)) == pytest.approx(float(diffusion(fine, 0.25)), rel=0.05)
    assert float(bending(coarse, 1.0)) == pytest.approx(float(bending(fine, 0.25)), rel=0.05)


def test_jacobian_penalty() -> None:
    det = torch.tensor([-1.0, 0.05, 0.5, 2.0])
    assert float(jacobian_penalty(det)) == pytest.approx(0.25)
    assert float(jacobian_penalty(det, 0.1)) == pytest.approx((1.1 + 0.05) / 4)


def test_thin_blocks_and_gradients() -> None:
    u = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 3, 1, 4, 5)))
    assert torch.isfinite(bending(u, 1.0))
    assert torch.isfinite(diffusion(u, 1.0))
    flat = u.clone()
    flat[:, 2] = 0  # an axis of one point is uniform: what is left is the plane
    torch.testing.assert_close(block_jacobian(flat, 0.5)[:, 0], block_jacobian(flat[:, :2, 0], 0.5))
    torch.testing.assert_close(diffusion(flat, 0.5), diffusion(flat[:, :2, 0], 0.5))
    v = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 2, 3, 4))).requires_grad_()
    for cost in (lambda x: diffusion(x, 0.7), lambda x: bending(x, 0.7, 2.0), lambda x: block_jacobian(x, 0.7)):
        assert torch.autograd.gradcheck(cost, (v,))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"\(B, d, \[D,\] H, W\)"):
        diffusion(torch.zeros(2, 4, 4), 1.0)
    with pytest.raises(ValueError, match="spacing needs 2"):
        diffusion(torch.zeros(1, 2, 4, 4), (1.0, 1.0, 1.0))

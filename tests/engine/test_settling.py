"""How the iterations of a level settle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itk_nir.engine.settling import Average, converged


@pytest.mark.parametrize(("share", "counted"), [(0.3, 3), (0.25, 3), (0.01, 1), (1.0, 10)])
def test_the_mean_is_that_of_the_last_iterations(share: float, counted: int) -> None:
    values = np.random.default_rng(0).normal(size=(10, 4, 3)).astype(np.float32)
    points = torch.zeros(4, 3, requires_grad=True)
    average = Average(points, 5, 15, share)
    for k, value in enumerate(values):
        with torch.no_grad():
            points.copy_(torch.from_numpy(value))
        average.add(5 + k)
    average.take()
    np.testing.assert_allclose(points.detach().numpy(), values[-counted:].mean(0), atol=1e-6)


def test_points_that_rest_keep_their_bits() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    before = points.clone()
    average = Average(points, 0, 7, 1.0)
    for k in range(7):
        average.add(k)
    average.take()
    assert torch.equal(points, before)


def test_without_a_share_or_before_it_the_last_iteration_stays() -> None:
    for share, done in ((0.0, 10), (0.5, 4)):
        points = torch.zeros(3)
        average = Average(points, 0, 10, share)
        for k in range(done):
            points += 1
            average.add(k)
        average.take()
        assert torch.equal(points, torch.full((3,), float(done)))


def test_convergence_compares_two_windows() -> None:
    falling = [1.0, 0.9, 0.8, 0.7]
    assert converged(falling, 2, 0.3)
    assert not converged(falling, 2, 0.1)
    assert not converged(falling, 2, 0.0)
    assert not converged(falling[:3], 2, 0.3)

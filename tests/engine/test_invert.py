"""The inverse of a displacement where the map squeezes and stretches: the reference, the native op and the equation."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.ops import reference

#: Grids, and how often their noise is blurred: the fixed point v <- -u(y + v) does not converge on any of the fields.
FIELDS = {"3D": ((16, 40, 40), 20), "3D smooth": ((16, 40, 40), 40), "2D": ((1, 48, 60), 40)}
SEEDS = {"3D": 0, "3D smooth": 0, "2D": 2}

each_field = pytest.mark.parametrize("name", FIELDS)
each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def least_determinant(u: Tensor) -> float:
    """The smallest over all cells and all of their corners."""
    return min(float(reference.jacobian(u, corner).min()) for corner in range(8))


@lru_cache
def squeezing(name: str) -> Tensor:
    """A smooth field, zero at the rim, in float64: determinants of 0.10 where it squeezes most."""
    shape, passes = FIELDS[name]
    u = torch.randn((3, *shape), generator=torch.Generator().manual_seed(SEEDS[name]), dtype=torch.float64)
    for _ in range(passes):
        for axis in (1, 2, 3):
            u = (3 * u + u.roll(1, axis) + u.roll(-1, axis) + u.roll(2, axis) + u.roll(-2, axis)) / 7
    for axis in (1, 2, 3):
        n = u.shape[axis]
        if n > 1:
            rim = torch.sin(torch.pi * torch.arange(n, dtype=u.dtype) / (n - 1)).square()
            u = u * rim.reshape([-1 if a == axis else 1 for a in range(4)])
    if shape[0] == 1:
        u[2] = 0
    low, high = 0.0, 1.0
    while least_determinant(high * u) > 0.1:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if least_determinant(middle * u) > 0.1 else (low, middle)
    return low * u


def largest(vectors: Tensor) -> float:
    return float(vectors.double().square().sum(0).max().sqrt())


@pytest.mark.slow
@each_field
def test_the_field_is_a_hard_one(name: str) -> None:
    u = squeezing(name)
    assert 0.1 <= least_determinant(u) < 0.101
    v = -u
    for _ in range(50):
        v = v - reference.compose(u, v)
    assert largest(reference.compose(u, v)) > 4


@each_field
@each_type
def test_reference_solves_the_equation(name: str, dtype: torch.dtype) -> None:
    u = squeezing(name).to(dtype)
    v, residual = reference.invert(u, -u)
    assert v.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7
    assert residual < tolerance
    assert largest(reference.compose(u.double(), v.double())) < tolerance
    # And what is said of it is so.
    assert abs(largest(reference.compose(u, v)) - residual) < tolerance


@each_field
@each_type
def test_reference_is_the_native_op(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("itk_nir._native", reason="the native module is not built")
    u = squeezing(name)
    native, worst = ops.invert(u.float(), -u.float())
    assert worst < 1.001e-3
    v, _ = reference.invert(u.to(dtype), -u.to(dtype))
    # The native op ends at 0.001 voxels: as far from the inverse as the map squeezes there.
    assert largest(v - native) < 1e-2


@each_field
@each_type
def test_both_orders_of_composition(name: str, dtype: torch.dtype) -> None:
    """The reference's pair is as good as the native one, in both orders, and the error is what it says."""
    pytest.importorskip("itk_nir._native", reason="the native module is not built")
    scale = (1.0, 2.0, 0.5)
    u = squeezing(name)
    native, native_error = ops.inverse_pair(u.float(), -u.float(), scale)
    v, error = reference.inverse_pair(u.to(dtype), -u.to(dtype), 0.5, torch.tensor(scale, dtype=dtype))
    assert v.dtype == error.dtype == dtype
    assert largest(v - native) < 1e-2
    assert float((error - native_error).abs().max()) < 1e-2
    there = reference.compose(v.double(), u) * torch.tensor(scale).reshape(3, 1, 1, 1)
    rounding = 1e-4 if dtype == torch.float32 else 1e-10
    assert float((there.square().sum(0).sqrt() - error).abs().max()) < rounding
    for a, b in ((u, v.double()), (v.double(), u)):
        of_native = reference.compose(*(x if x is u else native.double() for x in (a, b)))
        assert largest(reference.compose(a, b)) < largest(of_native) + 1e-2


def test_folds_do_no_harm() -> None:
    """Where the map is folded there is no inverse: the best that was found is kept, and nothing is not a number."""
    u = 2.5 * squeezing("3D")
    assert least_determinant(u) < -0.5
    v, residual = reference.invert(u, -u)
    assert bool(torch.isfinite(v).all())
    start = reference.compose(u, -u)
    at_node = reference.compose(u, v).square().sum(0)
    assert bool((at_node <= start.square().sum(0) + 1e-12).all())
    assert residual == pytest.approx(float(at_node.max().sqrt()))


def test_numbers_that_are_none_stay_where_they_are() -> None:
    u = squeezing("2D").clone()
    u[:, 0, 20, 20] = torch.nan
    v, residual = reference.invert(u, torch.zeros_like(u))
    assert residual > 0
    far = torch.ones(u.shape[1:], dtype=torch.bool)
    far[:, 5:36, 5:36] = False
    clean, _ = reference.invert(squeezing("2D"), torch.zeros_like(u))
    assert torch.allclose(v[:, far], clean[:, far], rtol=0, atol=1e-6)


def test_blocks_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    u = squeezing("2D")
    whole = reference.invert(u, -u)
    monkeypatch.setattr(reference, "BLOCK", 101)
    parts = reference.invert(u, -u)
    assert torch.allclose(whole[0], parts[0], rtol=0, atol=1e-6)
    assert parts[1] < 1e-7

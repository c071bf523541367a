"""The ops in plain torch where they are not held against the native ones: on a GPU they are what runs."""

from __future__ import annotations

import itertools

import pytest
import torch

from itk_nir.engine import ops
from itk_nir.engine.ops import histogram, reference
from itk_nir.engine.ops.box_sums import box_sum
from tests.engine.images_of_ops import noise


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("shape", [(13, 11, 19), (1, 23, 37), (1, 1, 1), (2, 1, 9)], ids=str)
def test_box_sums_and_their_gradient(radius: int, shape: tuple[int, int, int]) -> None:
    x = noise(*shape).double().requires_grad_()
    bands = []
    for n in shape:
        at = torch.arange(n)
        bands.append(((at[:, None] - at).abs() <= radius).double())
    wanted = torch.einsum("az,by,cx,zyx->abc", *bands, x)
    found = box_sum(x, radius)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    cotangent = noise(*shape, seed=4).double()
    gradients = [torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (1, 1, 6)], ids=str)
@pytest.mark.parametrize("corner", range(8))
def test_the_determinant_at_a_corner_is_that_of_the_mirrored_grid(corner: int, shape: tuple[int, int, int]) -> None:
    u = noise(3, *shape).double()
    flips = [3 - a for a in range(3) if (corner >> a) & 1]
    signs = torch.tensor([-1.0 if (corner >> a) & 1 else 1.0 for a in range(3)]).double().reshape(3, 1, 1, 1)
    mirrored = reference.jacobian(u.flip(flips) * signs).flip([f - 1 for f in flips])
    torch.testing.assert_close(reference.jacobian(u, corner), mirrored, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 6, 7), (1, 1, 1)], ids=str)
def test_a_position_that_is_no_number_gives_none_and_no_other_suffers(shape: tuple[int, int, int]) -> None:
    moving, u = noise(*shape), noise(3, *shape, seed=1)
    plain = reference.warp(moving, u, torch.eye(4)[:3], torch.eye(3))
    u[0, 0, 0, 0] = torch.nan
    found = reference.warp(moving, u, torch.eye(4)[:3], torch.eye(3))
    assert found[0, 0, 0].isnan()
    assert torch.equal(found.flatten()[1:], plain.flatten()[1:])


def test_warps_at_the_corners_of_a_cell() -> None:
    """Trilinear weights, one corner at a time."""
    moving = noise(2, 2, 2).double()
    at = torch.tensor([0.2, 0.3, 0.6]).double()
    u = at.reshape(3, 1, 1, 1).expand(3, 1, 1, 1)
    wanted = sum(
        moving[z, y, x] * torch.prod(torch.stack([(a if k else 1 - a) for a, k in zip(at, (x, y, z), strict=True)]))
        for x, y, z in itertools.product((0, 1), repeat=3)
    )
    found = reference.warp(moving, u, torch.eye(4)[:3].double(), torch.eye(3).double())
    assert float(found) == pytest.approx(float(wanted), abs=1e-12)


def test_sums_of_whole_numbers_are_those_of_weights() -> None:
    """What a GPU does, done here: as exact, whatever the order, and what is not a number stays none."""
    generator = torch.Generator().manual_seed(2)
    at = torch.randint(0, 7, (5000,), generator=generator)
    weights = torch.rand(5000, generator=generator, dtype=torch.float64)
    wanted = torch.zeros(7, dtype=torch.float64).index_add_(0, at, weights)
    found = histogram.whole_bin_sums(weights, at, 7)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    order = torch.randperm(5000, generator=generator)
    assert torch.equal(histogram.whole_bin_sums(weights[order], at[order], 7), found)
    weights[3] = torch.nan
    assert histogram.whole_bin_sums(weights, at, 7).isnan().all()


def test_a_map_that_is_changed_in_place_is_seen() -> None:
    moving, u = noise(5, 6, 7).double(), torch.zeros(3, 5, 6, 7).double()
    index, vector = torch.eye(4)[:3].double().numpy(), torch.eye(3).double().numpy()
    assert torch.equal(ops.warp(moving, u, index, vector), moving)
    index[0, 3] = 1.0
    assert torch.equal(ops.warp(moving, u, index, vector)[..., :-1], moving[..., 1:])

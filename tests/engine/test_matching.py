"""The ops of the search: the native ones against the torch ones, and by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.ops import reference_matching

pytest.importorskip("itk_nir._native", reason="the native module is not built")

#: Name → size, reach and block, each x, y, z.
GRIDS = {
    "3D": ((7, 6, 5), (2, 1, 2), (3, 3, 2)),
    "2D": ((21, 13, 1), (3, 2, 0), (4, 5, 1)),
    "one node": ((3, 2, 2), (1, 1, 1), (3, 3, 3)),
}


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> tuple[ops.Whole, ops.Whole, ops.Whole]:
    return GRIDS[request.param]


def wide(size: ops.Whole, reach: ops.Whole) -> tuple[int, ...]:
    return tuple(n + 2 * r for n, r in zip(size[::-1], reach[::-1], strict=True))


def draw(size: ops.Whole, reach: ops.Whole) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and counts of both images."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for shape, share in ((size[::-1], 0.3), (wide(size, reach), 0.2)):
        out.append(torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8))
        out.append((torch.rand(shape, generator=generator) > share).to(torch.uint8))
    return out[0], out[1], out[2], out[3]


def test_costs_are_those_of_the_reference(grid: tuple[ops.Whole, ops.Whole, ops.Whole], instructions: None) -> None:
    size, reach, block = grid
    images = draw(size, reach)
    expected = reference_matching.match_costs(*images, reach, block, 1300)
    for threads in (1, 2, 5):
        found = ops.match_costs(*images, reach, block, 1300, threads)
        assert found.shape == expected.shape
        # Sums of whole numbers, scaled: at most the rounding of the last bit apart.
        assert int((found.int() - expected.int()).abs().max()) <= 1
        assert torch.equal(found, ops.match_costs(*images, reach, block, 1300, 1))


def test_choice_is_that_of_the_reference(grid: tuple[ops.Whole, ops.Whole, ops.Whole], instructions: None) -> None:
    size, reach, block = grid
    costs = ops.match_costs(*draw(size, reach), reach, block, 1300)
    wanted = 2 * torch.randn(3, len(costs), generator=torch.Generator().manual_seed(1))
    for weight in (0.0, 0.01, 3.0):
        expected = reference_matching.best_matches(costs, wanted.double(), reach, weight)
        for threads in (1, 3):
            found = ops.best_matches(costs, wanted, reach, weight, threads)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b.float())


def test_costs_by_hand() -> None:
    """One block: the mean over what counts, and `unrelated` where the moving image does not."""
    fixed = torch.full((1, 1, 2, 16), 10, dtype=torch.uint8)
    moving = torch.zeros(1, 1, 4, 16, dtype=torch.uint8)
    moving[0, 0, 2] = 14
    counts, there = torch.ones(1, 1, 2, dtype=torch.uint8), torch.ones(1, 1, 4, dtype=torch.uint8)
    there[0, 0, 3] = 0
    costs = ops.match_costs(fixed, counts, moving, there, (1, 0, 0), (2, 1, 1), 320)
    far, near = 16 * 10, 16 * 4
    expected = [(far + far) / 640, (far + near) / 640, (near + 320) / 640]
    np.testing.assert_allclose(costs[0].float() / 8192, expected, atol=1e-4)
    counts[0, 0, 1] = 0
    costs = ops.match_costs(fixed, counts, moving, there, (1, 0, 0), (2, 1, 1), 320)
    np.testing.assert_allclose(costs[0].float() / 8192, [far / 640, far / 640, near / 640], atol=1e-4)


def test_first_of_equals_and_the_pull_of_the_neighbours() -> None:
    costs = torch.full((1, 27), 100, dtype=torch.uint16)
    still = torch.zeros(3, 1)
    assert ops.best_matches(costs, still, (1, 1, 1), 0.0)[0][:, 0].tolist() == [-1, -1, -1]
    assert ops.best_matches(costs, still, (1, 1, 1), 0.1)[0][:, 0].tolist() == [0, 0, 0]
    wanted = torch.tensor([[1.0], [-1.0], [0.2]])
    assert ops.best_matches(costs, wanted, (1, 1, 1), 0.1)[0][:, 0].tolist() == [1, -1, 0]


def test_refusals() -> None:
    images = draw((7, 6, 5), (2, 1, 2))
    with pytest.raises(ValueError, match="reach is 0 to 256"):
        ops.match_costs(*images, (300, 1, 2), (3, 3, 2), 1300)
    with pytest.raises(ValueError, match="larger than fixed by the reach"):
        ops.match_costs(*images, (1, 1, 2), (3, 3, 2), 1300)
    with pytest.raises(ValueError, match="unrelated"):
        ops.match_costs(*images, (2, 1, 2), (3, 3, 2), 0)
    costs = ops.match_costs(*images, (2, 1, 2), (3, 3, 2), 1300)
    with pytest.raises(ValueError, match="disagree"):
        ops.best_matches(costs, torch.zeros(3, len(costs)), (1, 1, 2), 0.0)
    with pytest.raises(ValueError, match="wanted"):
        ops.best_matches(costs, torch.zeros(3, 2), (2, 1, 2), 0.0)

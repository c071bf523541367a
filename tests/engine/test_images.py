"""The two images as the engine sees them: the maps between their voxels, what is measured on them, where they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from itk_nir.engine.images import Intensity, background, bounds, common_domain, shrink, sizes, voxel_map
from itk_nir.engine.lattice import Domain
from itk_nir.engine.level_grids import LevelGrids, inside_image
from itk_nir.geometry import Geometry
from tests.engine.pairs import scaled_linear

BOTH = pytest.mark.parametrize("d", [2, 3])


@BOTH
def test_voxel_maps(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(
        d, 30, spacing=(1.0, 1.3, 2.0)[:d], moving_spacing=(0.7, 1.1, 1.0)[:d], angle=0.3, moving_angle=-1.0,
        linear=scaled_linear(d), away=12.0,
    )  # fmt: skip
    fixed, moving, linear = case.fixed, case.pair.moving_geometry, case.pair.linear
    index, vector = voxel_map(fixed, moving, linear)
    rng = np.random.default_rng(0)
    i = rng.uniform(0, 10, (50, d))
    u = rng.normal(size=(50, d))  # mm along the fixed axes
    p = fixed.index_to_physical(i) + u @ fixed.rotation.T
    wanted = moving.physical_to_index(p @ linear[:d, :d].T + linear[:d, d])
    three = np.zeros((50, 3))
    three[:, :d], shift = i, np.zeros((50, 3))
    shift[:, :d] = u
    got = three @ index[:, :3].T + index[:, 3] + shift @ vector.T
    np.testing.assert_allclose(got[:, :d], wanted, atol=1e-9)
    # And between levels: sample k of a level is where its position says.
    factors, moving_factors = (2, 3, 1), (2, 2, 1)
    at = Domain((0, 0, 0), sizes(fixed)).level_positions(factors)
    there = Domain((0, 0, 0), sizes(moving)).level_positions(moving_factors)
    low, low_vector = LevelGrids(at, factors, there, moving_factors).voxel_map(case.pair, linear)
    k = np.array([2.0, 3.0, 0.0])
    full = np.array([at[a][int(k[a])] for a in range(3)])
    target = index[:, :3] @ full + index[:, 3] + vector @ shift[0]
    sample = low[:, :3] @ k + low[:, 3] + low_vector @ shift[0]
    back = np.array([there[a][0] for a in range(3)]) + sample * moving_factors
    np.testing.assert_allclose(back[:d], target[:d], atol=1e-9)


def test_background_and_bounds() -> None:
    image = torch.full((8, 9, 10), 7.0)
    image[2:5, 3:7, 4] = 1.0
    assert background(image) == 7.0
    box = bounds(image != 7.0)
    assert box is not None
    np.testing.assert_array_equal(box[0], [4, 3, 2])
    np.testing.assert_array_equal(box[1], [4, 6, 4])
    assert bounds(torch.zeros(3, 3, 3, dtype=torch.bool)) is None
    assert background(torch.rand(4, 5, 6)) is None
    plane = torch.zeros(1, 6, 6)
    plane[0, 2:4, 2:4] = 3.0
    assert background(plane) == 0.0


def test_normalised_by_the_foreground() -> None:
    image = torch.zeros(1, 20, 20)
    image[0, 5:15, 5:15] = torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) * 40 + 900
    measured = Intensity.of(image, None)
    out, box = measured.normalised(image), measured.box
    inside = out[0, 5:15, 5:15]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inside.std()) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(box[0], [5, 5, 0])
    np.testing.assert_array_equal(box[1], [14, 14, 0])
    assert float(out.min()) == -6  # far outliers are cut
    weight = torch.zeros_like(image)
    weight[0, 0:6, 0:6] = 1
    assert Intensity.of(image, weight).box[1].tolist() == [5, 5, 0]


@BOTH
def test_domain_holds_both_foregrounds(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, 40, linear=scaled_linear(d))
    domain = common_domain(case.pair, 2.0)
    low, high = np.asarray(domain.start), np.asarray(domain.start) + domain.size - 1
    assert np.all(low >= 0)
    assert np.all(high <= np.array([*case.fixed.size, 1][:3]) - 1)
    seen = np.argwhere(case.pair.fixed.numpy() != 0)[:, ::-1]
    assert np.all(low <= seen.min(0))
    assert np.all(high >= seen.max(0))
    there = np.argwhere(case.pair.moving.numpy() != 0)[:, ::-1][:, :d]
    p = case.pair.moving_geometry.index_to_physical(there)
    back = np.linalg.inv(case.pair.linear)
    i = case.fixed.physical_to_index(p @ back[:d, :d].T + back[:d, d])
    i = np.clip(i, 0, np.asarray(case.fixed.size) - 1)
    assert np.all(low[:d] <= i.min(0) + 1)
    assert np.all(high[:d] >= i.max(0) - 1)


@pytest.mark.parametrize("shape", [(1, 30, 41), (9, 300, 310)], ids=str)
def test_voxels_taken_from_within_an_image(shape: tuple[int, int, int]) -> None:
    """Some planes at a time, as all at once."""
    generator = torch.Generator().manual_seed(0)
    u = 3 * torch.randn((3, *shape), generator=generator)
    index, vector = np.eye(4)[:3], np.diag([1.0, 0.5, 2.0])
    index[:, 3] = 1.5, -2.0, 0.2
    size = (1 if shape[0] == 1 else 12, 280, 290)
    got = inside_image(u, index, vector, size)
    at = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij")[::-1])
    q = at + torch.einsum("ij,j...->i...", torch.from_numpy(vector).float(), u)
    q = q + torch.from_numpy(index[:, 3]).float().reshape(3, 1, 1, 1)
    wanted = torch.ones(shape, dtype=torch.bool)
    for row, n in enumerate(size[::-1]):
        if n > 1:
            wanted &= (q[row] >= -0.5) & (q[row] <= n - 0.5)
    assert not bool(wanted.all())
    assert got is not None
    assert torch.equal(got, wanted)
    assert inside_image(torch.zeros(3, *shape), np.eye(4)[:3], vector, shape) is None


def test_spacings_of_the_levels_follow_the_millimetres() -> None:
    g = Geometry.make((100, 100, 30), (1.0, 1.0, 4.0))
    assert shrink(g, 4) == (4, 4, 1)
    assert shrink(g, 8) == (8, 8, 2)
    assert shrink(Geometry.make((3, 100), (1.0, 1.0)), 8) == (3, 8, 1)

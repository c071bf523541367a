"""The soft overlap of label maps, against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itk_nir.engine.images import Pair
from itk_nir.engine.labels import Labels, LevelLabels
from itk_nir.engine.lattice import Domain
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.ops import reference
from itk_nir.engine.views import View
from itk_nir.phantom import brain_phantom


def made(d: int, values: int) -> tuple[Pair, Labels, LevelGrids]:
    phantom = brain_phantom(d, (40, 44, 36)[:d], seed=1)

    def volume(array: np.ndarray, kind: type) -> torch.Tensor:
        return torch.from_numpy(array.astype(kind).reshape((1,) * (3 - d) + array.shape))

    images = volume(phantom.fixed, np.float32), volume(phantom.moving, np.float32)
    pair = Pair.make(images[0], phantom.geometry, images[1], phantom.moving_geometry, np.eye(d + 1))
    maps = [volume(np.where(a <= values, a, 0), np.int16) for a in (phantom.fixed_labels, phantom.moving_labels)]
    size = tuple([*phantom.geometry.size, 1][:3])
    return pair, Labels(*maps, tuple(range(1, values + 1))), LevelGrids.of(pair, Domain((0, 0, 0), size), 2.0)


def exact(labels: Labels, pair: Pair, grids: LevelGrids, u: torch.Tensor, sigma: float) -> torch.Tensor:
    """One minus the mean soft Dice by its definition, with the overlap's denominators under no displacement."""
    from itk_nir.engine.level_grids import smoothed_samples

    index, vector = grids.voxel_map(pair, pair.linear)
    out = []
    for number in range(1, len(labels.values) + 1):
        f = smoothed_samples(
            (labels.fixed == number).float(), pair.fixed_geometry, grids.fixed, grids.factors, sigma, 1
        ).double()
        m = smoothed_samples(
            (labels.moving == number).float(), pair.moving_geometry, grids.moving, grids.moving_factors, sigma, 1
        ).double()
        warped = reference.warp(m[None], u, torch.from_numpy(index), torch.from_numpy(vector))[0]
        out.append((warped - f).square().sum() / (f.square().sum() + m.square().sum()))
    return torch.stack(out).mean()


@pytest.mark.parametrize(("d", "values"), [(2, 3), (2, 7), (3, 9), (3, 14)])
def test_value_and_gradient_are_those_of_the_soft_dice(d: int, values: int) -> None:
    pair, labels, grids = made(d, values)
    shown = LevelLabels.of(labels, pair, grids, None, 0.7, 1)
    assert shown is not None
    shape = [len(p) for p in grids.fixed[::-1]]
    u = torch.from_numpy(np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32))
    if d == 2:
        u[2] = 0
    u.requires_grad_()
    value = shown(View(u, *grids.voxel_map(pair, pair.linear)))
    value.backward()
    truth = u.detach().double().requires_grad_()
    wanted = exact(Labels(labels.fixed, labels.moving, labels.values[: _present(labels)]), pair, grids, truth, 0.7)
    wanted.backward()
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=0.02)  # eight bits
    assert u.grad is not None
    assert truth.grad is not None
    a, b = u.grad.double().flatten(), truth.grad.flatten()
    assert float(a @ b / (a.norm() * b.norm())) > 0.995
    assert float(a.norm() / b.norm()) == pytest.approx(1, rel=0.03)


def _present(labels: Labels) -> int:
    return int(labels.fixed.max())


def test_same_maps_overlap_fully_and_disjoint_ones_not_at_all() -> None:
    pair, labels, grids = made(2, 5)
    still = View(torch.zeros(3, *[len(p) for p in grids.fixed[::-1]]), *grids.voxel_map(pair, pair.linear))
    same = LevelLabels.of(Labels(labels.fixed, labels.fixed, labels.values), pair, grids, None, 0.7, 1)
    apart = LevelLabels.of(
        Labels((labels.fixed == 2).short(), (labels.fixed == 3).short(), (1,)), pair, grids, None, 0.0, 1
    )
    assert same is not None
    assert apart is not None
    assert float(same(still)) == 0
    assert float(apart(still)) == pytest.approx(1, abs=0.35)  # they touch, and voxels of the level hold both


def test_a_mask_without_any_label_leaves_nothing_to_compare() -> None:
    pair, labels, grids = made(2, 5)
    empty = Labels(labels.fixed * 0, labels.moving * 0, labels.values)
    assert LevelLabels.of(empty, pair, grids, None, 0.7, 1) is None

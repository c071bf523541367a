"""Samplers: where the points lie, how they are spread, and that a seed decides them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itk_nir.paper.samplers import OFFSETS, SAMPLERS, Sample, SamplerConfig, draw, mask_candidates


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CONFIGS = st.builds(
    SamplerConfig,
    name=st.sampled_from(sorted(SAMPLERS)),
    points=st.integers(1, 50),
    stride=st.integers(1, 5),
    offset=st.sampled_from(OFFSETS),
    subvoxel=st.booleans(),
    patches=st.integers(1, 4),
    edge=st.integers(1, 9),
)


@settings(max_examples=150, deadline=None)
@given(CONFIGS, st.lists(st.integers(1, 14), min_size=2, max_size=3), st.integers(0, 99))
def test_points_lie_in_the_grid_with_the_stated_step(config: SamplerConfig, size: list[int], seed: int) -> None:
    state = torch.random.get_rng_state()
    sample = draw(config, size, seeded(seed))
    assert torch.equal(sample.points, draw(config, size, seeded(seed)).points)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    d = len(size)
    p = sample.points
    assert p.shape[-1] == d
    assert config.blocks == (p.dim() == d + 2)
    assert config.regular == (sample.spacing is not None)
    slack = config.stride / 2 if config.name == "lattice" else 1e-4
    assert float(p.min()) >= -slack
    assert (p.reshape(-1, d).max(0).values <= torch.tensor(size) - 1 + slack).all()
    if sample.spacing is not None:
        for axis in range(d):
            gaps = torch.diff(p, dim=-2 - axis)
            wanted = torch.zeros(d)
            wanted[axis] = sample.spacing
            assert torch.allclose(gaps, wanted.expand_as(gaps), atol=1e-4)
    if config.name == "downsize" and not config.subvoxel:
        assert torch.equal(p, p.round())


def test_random_is_uniform_and_stays_in_the_mask() -> None:
    p = draw(SamplerConfig("random", points=40_000), (5, 9, 17), seeded()).points
    assert p.shape == (40_000, 3)
    unit = p / torch.tensor([4.0, 8.0, 16.0])
    assert float((unit.mean(0) - 0.5).abs().max()) < 0.01
    assert float((unit.std(0) - 12**-0.5).abs().max()) < 0.01
    mask = torch.zeros(1, 6, 7)
    mask[0, 2:4, 5] = 1
    candidates = mask_candidates(mask)
    assert candidates.tolist() == [[5, 2], [5, 3]]
    inside = draw(SamplerConfig("random", points=500), (7, 6), seeded(), candidates).points
    assert set(map(tuple, torch.floor(inside + 0.5).long().tolist())) == {(5, 2), (5, 3)}


@pytest.mark.parametrize("subvoxel", [False, True])
def test_downsize_offsets(subvoxel: bool) -> None:
    size = (11, 7)  # cells of three: 3 and 2
    centre = draw(SamplerConfig("downsize", offset="centre", subvoxel=subvoxel), size, seeded())
    assert centre.points.shape == (1, 2, 3, 2)
    assert centre.points[0, 0, 0].tolist() == [2.0, 1.5 if subvoxel else 1.0]
    assert centre.points[0, 0, :, 0].tolist() == [2.0, 5.0, 8.0]
    shared = SamplerConfig("downsize", offset="shared", subvoxel=subvoxel)
    seen = torch.cat([draw(shared, size, seeded(s)).points.reshape(-1, 2) for s in range(1000)])
    jittered = SamplerConfig("downsize", offset="jitter", subvoxel=subvoxel)
    spread = torch.cat([draw(jittered, size, seeded(s)).points.reshape(-1, 2) for s in range(1000)])
    for points in (seen, spread):  # in the long run no voxel is left out
        voxels = {tuple(v) for v in torch.floor(points + 0.5).long().tolist()}
        assert voxels == set(itertools.product(range(11), range(7)))
    steps = torch.diff(draw(jittered, (30, 30), seeded()).points[..., 0], dim=2)
    assert float(steps.std()) > 0.5


def test_patches_cover_the_grid_and_follow_the_mask() -> None:
    config = SamplerConfig("patches", patches=300, edge=4)
    sample = draw(config, (9, 6, 3), seeded())
    assert sample.points.shape == (300, 3, 4, 4, 3)  # the third axis is shorter than the edge
    corners = {tuple(c) for c in sample.points[:, 0, 0, 0].long().tolist()}
    assert corners == set(itertools.product(range(6), range(3), range(1)))
    candidates = torch.tensor([[8, 1, 2]])
    masked = draw(config, (9, 6, 3), seeded(), candidates)
    assert masked.points[:, 0, 0, 0].unique(dim=0).tolist() == [[5.0, 0.0, 0.0]]


def test_lattice_covers_from_end_to_end() -> None:
    sample = draw(SamplerConfig("lattice", stride=4, margin=1), (9, 11), seeded())
    assert sample.points.shape == (1, 6, 5, 2)
    assert sample.points[0, 0, :, 0].tolist() == [-4.0, 0.0, 4.0, 8.0, 12.0]
    assert sample.points[0, :, 0, 1].tolist() == [-5.0, -1.0, 3.0, 7.0, 11.0, 15.0]


def test_a_sampler_from_outside_can_be_chosen() -> None:
    def corners(config, size, generator, candidates):  # type: ignore[no-untyped-def]
        return Sample(torch.tensor(list(itertools.product(*[(0.0, n - 1.0) for n in size]))), None)

    SAMPLERS["corners"] = corners
    try:
        assert draw(SamplerConfig("corners"), (5, 4), seeded()).points.tolist() == [[0, 0], [0, 3], [4, 0], [4, 3]]
    finally:
        del SAMPLERS["corners"]
    with pytest.raises(ValueError, match="corners"):
        SamplerConfig("corners")


def test_errors() -> None:
    with pytest.raises(ValueError, match="'random', 'downsize', 'patches', 'lattice'"):
        SamplerConfig("sobol")
    with pytest.raises(ValueError, match="'shared', 'jitter', 'centre'"):
        SamplerConfig(offset="none")
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        SamplerConfig(stride=0)
    with pytest.raises(ValueError, match="candidates"):
        draw(SamplerConfig("random"), (4, 4), seeded(), torch.zeros(0, 2))

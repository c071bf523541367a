"""The trained field: frames, sampling, and what is put into a file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from itk_nir.engine.coordinate_networks import FieldConfig, build_field
from itk_nir.engine.sampling import sample_field
from itk_nir.engine.settings import SamplingSettings
from itk_nir.geometry import Geometry
from itk_nir.paper.field import PaperField, extent_of
from itk_nir.paper.registration import describe, restore
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.paper.settings import PaperPhase, PaperSettings
from tests.grids import centred, turned

NETWORK = FieldConfig(width=16, depth=1, frequencies=8, scale=0.5, omega=5.0, bound=1.0)
GRIDS = FieldConfig(kind="grid", cells=(3, 5), features=2, width=8, depth=1)


def oblique(d: int) -> Geometry:
    return centred((14, 12, 10)[:d], (1.5, 2.0, 2.4)[:d], turned(d, 0.4))


def trained(geometry: Geometry, flow: str = "rk4", kinds: tuple[FieldConfig, ...] = (NETWORK, GRIDS)) -> PaperField:
    """A field with random weights, moving points by some millimetres."""
    generator = torch.Generator().manual_seed(4)
    modules = []
    for config in kinds:
        module = build_field(config, geometry.dimension, generator, extent=extent_of(geometry))
        with torch.no_grad():
            for p in module.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)
        modules.append(module.requires_grad_(False))
    phases = tuple(PaperPhase(config, SamplerConfig()) for config in kinds)
    settings = PaperSettings(phases, flow=flow, ode_steps=2, integration_time=0.5, chunk=100)
    return PaperField(geometry, tuple(modules), settings)


@pytest.mark.parametrize("d", [2, 3])
def test_points_and_grid_tell_one_displacement(d: int) -> None:
    g = oblique(d)
    field = trained(g)
    positions = [np.arange(0.0, n, 3.0) for n in [*g.size, 1][:3]]
    on_grid = field.on_grid(positions)
    assert on_grid.shape == (3, *[len(p) for p in positions[::-1]])
    index = np.stack(np.meshgrid(*positions[d - 1 :: -1], indexing="ij")[::-1], -1).reshape(-1, d)
    lps = field.displacement(g.index_to_physical(index))
    along = on_grid[:d].reshape(d, -1).T.double().numpy()
    np.testing.assert_allclose(lps, along @ g.rotation.T, atol=1e-6)
    assert np.abs(lps).max() > 0.1
    assert (on_grid[d:] == 0).all()
    assert field.device == torch.device("cpu")
    assert field.support() == [(-np.inf, np.inf)] * 3


@pytest.mark.parametrize("flow", ["rk4", "displacement"])
def test_the_inverse_comes_back(flow: str) -> None:
    g = oblique(2)
    field = trained(g, flow)
    p = g.grid().reshape(-1, 2)
    back = p + field.displacement(p, inverse=True)
    there = back + field.displacement(back)
    assert np.linalg.norm(there - p, axis=-1).max() < 0.01
    assert np.linalg.norm(back - p, axis=-1).max() > 0.1


@pytest.mark.slow
def test_it_can_be_sampled_to_a_wanted_error() -> None:
    """The protocol of `itk_nir.engine.sampling.Field`."""
    g = oblique(3)
    sampled = sample_field(trained(g), SamplingSettings(), torch.ones(g.shape, dtype=torch.bool))
    p = sampled.geometry.grid().reshape(-1, 3)
    wanted = trained(g).displacement(p).reshape(sampled.forward.shape)
    np.testing.assert_allclose(sampled.forward, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_a_described_field_comes_back_bit_for_bit(d: int) -> None:
    g = oblique(d)
    field = trained(g)
    description, arrays = describe(field)
    again = restore(json.loads(json.dumps(description)), {**arrays, "start.0": np.zeros(3)}, g, device="cpu", threads=2)
    assert again.settings == field.settings
    p = g.grid().reshape(-1, d)
    for inverse in (False, True):
        assert np.array_equal(again.displacement(p, inverse), field.displacement(p, inverse))
    assert not any(q.requires_grad for module in again.fields for q in module.parameters())


def test_a_registration_that_was_cancelled_early_comes_back() -> None:
    g = oblique(2)
    field = trained(g)
    one = PaperField(g, field.fields[:1], field.settings)
    description, arrays = describe(one)
    assert len(restore(description, arrays, g).fields) == 1


def test_parts_that_do_not_fit() -> None:
    g = oblique(2)
    description, arrays = describe(trained(g))
    name = next(iter(arrays))
    with pytest.raises(ValueError, match="kind 'deformable'"):
        restore({**description, "kind": "deformable"}, arrays, g)
    with pytest.raises(ValueError, match="3 fields of 2 phases"):
        restore({**description, "fields": 3}, arrays, g)
    with pytest.raises(ValueError, match="0 fields"):
        restore({**description, "fields": 0}, arrays, g)
    with pytest.raises(ValueError, match="arrays of field 0 do not fit"):
        restore(description, {k: v for k, v in arrays.items() if k != name}, g)
    with pytest.raises(ValueError, match="arrays of field 0 do not fit"):
        restore(description, {**arrays, name: arrays[name][..., :1]}, g)
    with pytest.raises(ValueError, match="arrays of field"):
        restore(description, arrays, oblique(3))
    with pytest.raises(KeyError, match="settings"):
        restore({"kind": "paper", "fields": 1}, arrays, g)
    with pytest.raises(ValueError, match="has no squarings"):
        restore({**description, "settings": {**description["settings"], "squarings": 6}}, arrays, g)

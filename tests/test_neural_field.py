"""Trained fields in files: what comes back is the same map, and can be baked at another resolution."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from itk_nir.engine.optimize import LatticeField, sizes
from safetensors.numpy import load_file, save_file

import itk_nir
from itk_nir.engine.coordinate_networks import FieldConfig, build_field
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk
from itk_nir.neural_field import KEY, Network, load_network, save_network
from itk_nir.paper.field import PointField
from itk_nir.paper.registration import PointPhase, PointRegistration, PointSettings
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

BOTH = pytest.mark.parametrize("d", [2, 3])


def oblique(d: int) -> Geometry:
    c, s = np.cos(0.4), np.sin(0.4)
    direction = np.eye(d)
    direction[:2, :2] = [[c, -s], [s, c]]
    if d == 3:
        tilt = np.eye(3)
        tilt[1:, 1:] = [[c, -s], [s, c]]
        direction = direction @ tilt
    return Geometry.make((22, 17, 13)[:d], (1.1, 1.6, 2.3)[:d], (-40.0, 12.0, 90.0)[:d], direction)


def lattice_field(d: int, flow: str = "velocity") -> LatticeField:
    geometry = oblique(d)
    knots = tuple(6.0 / s for s in [*geometry.spacing, 1.0][:3])
    axes = Domain((0, 0, 0), sizes(geometry)).lattice(knots, 0)[0]  # type: ignore[arg-type]
    values = torch.randn(3, *shape_of(axes), generator=torch.Generator().manual_seed(5)) * 1.2
    values[d:] = 0
    return LatticeField(geometry, axes, 6.0, values, flow, 4)


def composed_field(d: int) -> LatticeField:
    fine = lattice_field(d)
    return dataclasses.replace(fine, values=fine.values * 0.5, coarse=(fine.forward, fine.backward))


def point_field(d: int, kind: str = "mlp") -> PointField:
    geometry = oblique(d)
    config = FieldConfig(kind=kind, width=16, frequencies=8, omega=5.0, bound=1.0, cells=(3, 5))
    settings = PointSettings(
        phases=(
            PointPhase(config, SamplerConfig("downsize", stride=3)),
            PointPhase(replace(config, encoding="positional", frequencies=3), SamplerConfig("patches")),
        ),
        flow="rk4",
        flow_steps=2,
    )
    generator = torch.Generator().manual_seed(3)
    extent = [n * s / 2 / geometry.half_extent for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    modules = []
    for phase in settings.phases:
        module = build_field(phase.field, d, generator, extent=extent)
        for p in module.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
        modules.append(module.requires_grad_(False))
    return PointField(geometry, PointRegistration(tuple(modules), settings, (), False))


def linear(d: int) -> LinearTransform:
    m = np.eye(d + 1)
    m[:d, :d] += 0.03 * np.arange(d * d).reshape(d, d) / d
    m[:d, d] = (3.1, -2.2, 1 / 3)[:d]
    return LinearTransform(m)


def start(d: int) -> CompositeTransform:
    grid = oblique(d)
    vectors = np.random.default_rng(2).normal(scale=0.2, size=(*grid.shape, d)).astype(np.float32)
    return CompositeTransform((DisplacementField(grid, vectors), linear(d)))


def smooth_start(d: int) -> CompositeTransform:
    """A small non-linear initial transform with its inverse."""
    grid = oblique(d)
    forward = DisplacementField(grid, 0.4 * np.sin(grid.grid() / 9.0).astype(np.float32))
    return CompositeTransform((forward,), (forward.inverse(),))


FIELDS: dict[str, Callable[[int], Any]] = {
    "velocity": lattice_field,
    "displacement": lambda d: lattice_field(d, "displacement"),
    "composed": composed_field,
    "network": point_field,
    "feature grids": lambda d: point_field(d, "grid"),
}


def points_in(geometry: Geometry, count: int = 400) -> np.ndarray:
    index = np.random.default_rng(0).uniform(0, 1, (count, geometry.dimension)) * (np.asarray(geometry.size) - 1)
    return geometry.index_to_physical(index)


@BOTH
@pytest.mark.parametrize("kind", FIELDS)
def test_loaded_field_is_the_same_map_bit_for_bit(kind: str, d: int, tmp_path: Path) -> None:
    network = Network(FIELDS[kind](d), linear(d), start(d), {"preset": "default", "seed": 4})
    again = load_network(save_network(network, tmp_path / "n.safetensors"), threads=2)
    p = points_in(network.geometry)
    moved = network.map(p)
    assert np.abs(network.field.displacement(p)).max() > 0.3
    np.testing.assert_array_equal(again.field.displacement(p), network.field.displacement(p))
    np.testing.assert_array_equal(again.field.displacement(p, True), network.field.displacement(p, True))
    np.testing.assert_array_equal(again.map(p), moved)
    assert again.geometry == network.geometry
    np.testing.assert_array_equal(again.linear.matrix, network.linear.matrix)
    assert again.about == {"preset": "default", "seed": 4}
    assert [f.name for f in tmp_path.iterdir()] == ["n.safetensors"]


@BOTH
def test_baked_again_at_other_resolutions(d: int, tmp_path: Path) -> None:
    network = Network(lattice_field(d), linear(d))
    again = load_network(save_network(network, tmp_path / "n.safetensors"))
    p = points_in(network.geometry)
    exact = network.map(p)
    errors = {}
    for spacing in (1, 2, 4):
        chain = again.bake(bake_spacing=spacing)
        grid = chain.fields[0].geometry
        assert grid.spacing == tuple(spacing * s for s in network.geometry.spacing)
        errors[spacing] = np.abs(chain.map(p) - exact).max()
        # At the grid's own points nothing is interpolated.
        own = grid.grid().reshape(-1, d)
        own = own[network.geometry.contains(own)]
        np.testing.assert_allclose(chain.map(own), network.map(own), atol=2e-4)
    assert errors[1] < errors[2] < errors[4]
    finest = again.bake(bake_spacing=1)
    np.testing.assert_array_equal(finest.fields[0].vectors, network.bake(bake_spacing=1).fields[0].vectors)
    inner = p[network.geometry.contains(network.geometry.centre + 1.6 * (p - network.geometry.centre))]
    back = finest.inverse().map(finest.map(inner))
    assert np.median(np.linalg.norm(back - inner, axis=1)) < 0.05


@BOTH
def test_linear_part_and_initial_transform_stay_in_the_map(d: int, tmp_path: Path) -> None:
    network = Network(lattice_field(d), linear(d), start(d))
    chain = load_network(save_network(network, tmp_path / "n.safetensors")).bake(bake_spacing=1)
    p = network.geometry.grid().reshape(-1, d)
    by_hand = start(d).map(linear(d).map(p + network.field.displacement(p)))
    np.testing.assert_allclose(chain.map(p), by_hand, atol=2e-4)
    assert len(chain.inverse().transforms) == 4
    np.testing.assert_array_equal(chain.inverse().transforms[0].matrix, np.linalg.inv(linear(d).matrix))


def test_error_chooses_the_grid(tmp_path: Path) -> None:
    network = load_network(save_network(Network(lattice_field(2), linear(2)), tmp_path / "n.safetensors"))
    coarse, fine = network.bake(bake_error=2.0), network.bake(bake_error=1e-4)
    assert min(coarse.fields[0].geometry.spacing) > min(fine.fields[0].geometry.spacing) == 1.1


def test_result_with_the_images_again(tmp_path: Path) -> None:
    network = Network(lattice_field(2), linear(2), None, {"preset": "fast"})
    grid = network.geometry
    image = to_itk(np.random.default_rng(0).random(grid.shape).astype(np.float32), grid)
    result = network.result(image, image, bake_spacing=2)
    assert result.metrics["bake_spacing_voxels"] == 2
    assert result.metrics["preset"] == "fast"
    p = points_in(grid)
    np.testing.assert_array_equal(result.transform_points(p), network.map(p))
    assert set(result.save(tmp_path / "again_")) == {"warped", "composite", "inverse_composite", "report"}
    other = Geometry.make(grid.size, grid.spacing, np.asarray(grid.origin) + 1, grid.direction)
    with pytest.raises(InputError, match="trained on"):
        network.result(to_itk(np.zeros(other.shape, np.float32), other), image)


@BOTH
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_a_registration_is_saved_and_baked_again(preset: str, d: int, tmp_path: Path) -> None:
    fixed = oblique(d)
    p = fixed.grid()
    image = np.sin(p / 5.0).sum(-1).astype(np.float32)
    moved = np.sin((p - 0.7) / 5.0).sum(-1).astype(np.float32)
    if preset == "fast":
        options: dict[str, Any] = {
            "shrink_factors": (2, 1), "smoothing_sigmas": 0.4, "steps": (5, 3), "learning_rates": 0.3, "radius": 2,
            "lattice_spacing": (2.0, 4.0), "coarsest_lattice": 8.0, "velocity_diffusion": 0.05,
            "displacement_diffusion": 0.0,
        }  # fmt: skip
    else:
        config = FieldConfig(width=8, depth=1, frequencies=4, omega=5.0)
        options = {"phases": (PointPhase(config, SamplerConfig("downsize", stride=3), steps=4, radius=1),)}
    result = itk_nir.register(
        to_itk(image, fixed), to_itk(moved, fixed), preset=preset, linear="none", device="cpu", threads=1,
        initial_transform=smooth_start(d), bake_spacing=2, seed=3, **options,
    )  # fmt: skip
    network = itk_nir.load_network(result.save_network(tmp_path / "n.safetensors"), threads=1)
    at = points_in(fixed)
    np.testing.assert_array_equal(network.map(at), result.transform_points(at))
    assert np.abs(network.field.displacement(at)).max() > 1e-3
    again, finer = network.bake(bake_spacing=2), network.bake(bake_spacing=1)
    np.testing.assert_array_equal(again.fields[0].vectors, result.chain.fields[0].vectors)
    np.testing.assert_array_equal(again.inverse().map(at), result.chain.inverse().map(at))
    assert finer.fields[0].geometry == fixed
    assert network.about["settings"]["bake"]["bake_spacing"] == 2
    assert (network.about["preset"], network.about["seed"]) == (preset, 3)


def test_a_linear_map_has_no_network(tmp_path: Path) -> None:
    grid = oblique(2)
    image = to_itk(np.sin(grid.grid() / 5.0).sum(-1).astype(np.float32), grid)
    result = itk_nir.register(image, image, linear="rigid", deformable=False, device="cpu", threads=1)
    with pytest.raises(InputError, match="linear map"):
        result.save_network(tmp_path / "n.safetensors")


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    path = save_network(Network(lattice_field(2), linear(2)), tmp_path / "n.safetensors")
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"n\.safetensors: damaged, truncated"):
            load_network(path)


def test_foreign_and_unfitting_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match="another program"):
        load_network(path)
    with pytest.raises(InputError, match="no such file"):
        load_network(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("x = 1\n" * 40)
    with pytest.raises(InputError, match="damaged"):
        load_network(tmp_path / "text.safetensors")
    save_network(Network(point_field(2), linear(2)), path)
    tensors, header = load_file(path), header_of(path)
    for change, message in (
        ({"layout": 99}, "layout 99"),
        ({"field": {**header["field"], "kind": "wavelet"}}, "wavelet"),
        ({"field": {**header["field"], "fields": 3}}, "3 fields of 2 phases"),
        ({"field": {**header["field"], "settings": {**header["field"]["settings"], "soul": 1}}}, "soul"),
        ({"linear": [[1, 0], [0, 1]]}, "3x3"),
    ):
        save_file(tensors, path, metadata={KEY: json.dumps({**header, **change})})
        with pytest.raises(InputError, match=message):
            load_network(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={KEY: json.dumps(header)})
    with pytest.raises(InputError, match="do not fit"):
        load_network(path)


def test_values_that_do_not_fit_the_lattice(tmp_path: Path) -> None:
    path = save_network(Network(lattice_field(3), linear(3)), tmp_path / "n.safetensors")
    header = header_of(path)
    save_file({"values": np.zeros((3, 2, 2, 2), np.float32)}, path, metadata={KEY: json.dumps(header)})
    with pytest.raises(InputError, match="control points"):
        load_network(path)


def test_bad_requests(tmp_path: Path) -> None:
    network = Network(lattice_field(2), linear(2))
    with pytest.raises(InputError, match=r"\.safetensors"):
        network.save(tmp_path / "n.pt")
    with pytest.raises(InputError, match="does not exist"):
        network.save(tmp_path / "no" / "n.safetensors")
    with pytest.raises(OptionError, match="not both"):
        network.bake(bake_error=0.1, bake_spacing=2)
    for spacing in (0, 1.5, True):
        with pytest.raises(OptionError, match="bake_spacing"):
            network.bake(bake_spacing=spacing)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="bake_error"):
        network.bake(bake_error=0.0)
    with pytest.raises(InputError, match="shape"):
        network.map(np.zeros((4, 3)))


def header_of(path: Path) -> dict[str, Any]:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][KEY])  # type: ignore[no-any-return]

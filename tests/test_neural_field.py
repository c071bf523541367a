"""Trained fields in files: what comes back is the same map, and can be sampled at another resolution."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import itk_nir
from itk_nir.engine.coordinate_networks import FieldConfig, build_field
from itk_nir.engine.frame import Frame
from itk_nir.engine.images import sizes, spacings
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk
from itk_nir.neural_field import KEY, NeuralField, load_field
from itk_nir.result import RegistrationResult
from itk_nir.settings import make_settings
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform
from tests.engine.pairs import SMALL, velocity

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


def lattice_field(
    d: int, model: str = "velocity", network: FieldConfig | None = None, composed: bool = False
) -> VelocityField:
    geometry = oblique(d)
    knots = tuple(6.0 / s for s in spacings(geometry))
    lattices = Lattices.halved(Domain((0, 0, 0), sizes(geometry)).lattice(knots), 6.0, 0)  # type: ignore[arg-type]
    values = torch.randn(3, *shape_of(lattices.axes[0]), generator=torch.Generator().manual_seed(5)) * 1.2
    values[d:] = 0
    trained = velocity(geometry, lattices, values, network, seed=7)
    if not composed:
        return VelocityField(geometry, trained, None, model, 4)
    return VelocityField(geometry, velocity(geometry, lattices, 0.5 * values), trained, model, 4)


def paper_field(d: int, kind: str = "mlp") -> Any:
    from itk_nir.paper.field import PaperField, extent_of
    from itk_nir.paper.samplers import SamplerConfig
    from itk_nir.paper.settings import PaperPhase, PaperSettings

    geometry = oblique(d)
    config = FieldConfig(kind=kind, width=16, frequencies=8, omega=5.0, bound=1.0, cells=(3, 5))
    settings = PaperSettings(
        phases=(
            PaperPhase(config, SamplerConfig("downsize", stride=3)),
            PaperPhase(replace(config, encoding="positional", frequencies=3), SamplerConfig("patches")),
        ),
        flow="rk4",
        ode_steps=2,
    )
    generator = torch.Generator().manual_seed(3)
    modules = []
    for phase in settings.phases:
        module = build_field(phase.field, d, generator, extent=extent_of(geometry))
        for p in module.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
        modules.append(module.requires_grad_(False))
    return PaperField(geometry, tuple(modules), settings)


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
    "composed": lambda d: lattice_field(d, composed=True),
    "network": lambda d: lattice_field(d, network=SMALL),
    "composed, network": lambda d: lattice_field(d, network=SMALL, composed=True),
    "paper network": paper_field,
    "paper feature grids": lambda d: paper_field(d, "grid"),
}


def made(field: Any, linear: LinearTransform, *rest: Any) -> NeuralField:
    kind = "deformable" if isinstance(field, VelocityField) else "paper"
    return NeuralField(kind, field, linear, Frame.plain(field.geometry), *rest)


def points_in(geometry: Geometry, count: int = 400) -> np.ndarray:
    index = np.random.default_rng(0).uniform(0, 1, (count, geometry.dimension)) * (np.asarray(geometry.size) - 1)
    return geometry.index_to_physical(index)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("kind", FIELDS)
def test_loaded_field_is_the_same_map_bit_for_bit(kind: str, d: int, tmp_path: Path) -> None:
    network = made(FIELDS[kind](d), linear(d), start(d), {"preset": "default", "seed": 4})
    again = load_field(network.save(tmp_path / "n.safetensors"), threads=2)
    p = points_in(network.geometry)
    moved = network.map(p)
    assert np.abs(network.displacement(p)).max() > 0.3
    np.testing.assert_array_equal(again.displacement(p), network.displacement(p))
    np.testing.assert_array_equal(again.displacement(p, True), network.displacement(p, True))
    np.testing.assert_array_equal(again.map(p), moved)
    assert again.geometry == network.geometry
    np.testing.assert_array_equal(again.linear.matrix, network.linear.matrix)
    assert again.about == {"preset": "default", "seed": 4}
    assert [f.name for f in tmp_path.iterdir()] == ["n.safetensors"]


@BOTH
def test_sampled_again_at_other_resolutions(d: int, tmp_path: Path) -> None:
    network = made(lattice_field(d), linear(d))
    again = load_field(network.save(tmp_path / "n.safetensors"))
    p = points_in(network.geometry)
    exact = network.map(p)
    errors = {}
    for spacing in (1, 2, 4):
        chain = again.sample(field_spacing=spacing)
        grid = chain.fields[0].geometry
        assert grid.spacing == tuple(spacing * s for s in network.geometry.spacing)
        errors[spacing] = np.abs(chain.map(p) - exact).max()
        # At the grid's own points nothing is interpolated.
        own = grid.grid().reshape(-1, d)
        own = own[network.geometry.contains(own)]
        np.testing.assert_allclose(chain.map(own), network.map(own), atol=2e-4)
    assert errors[1] < errors[2] < errors[4]
    finest = again.sample(field_spacing=1)
    np.testing.assert_array_equal(finest.fields[0].vectors, network.sample(field_spacing=1).fields[0].vectors)
    inner = p[network.geometry.contains(network.geometry.centre + 1.6 * (p - network.geometry.centre))]
    back = finest.inverse().map(finest.map(inner))
    assert np.median(np.linalg.norm(back - inner, axis=1)) < 0.05


@BOTH
def test_linear_part_and_initial_transform_stay_in_the_map(d: int, tmp_path: Path) -> None:
    network = made(lattice_field(d), linear(d), start(d))
    chain = load_field(network.save(tmp_path / "n.safetensors")).sample(field_spacing=1)
    p = network.geometry.grid().reshape(-1, d)
    by_hand = start(d).map(linear(d).map(p + network.displacement(p)))
    np.testing.assert_allclose(chain.map(p), by_hand, atol=2e-4)
    assert len(chain.inverse().transforms) == 4
    np.testing.assert_array_equal(chain.inverse().transforms[0].matrix, np.linalg.inv(linear(d).matrix))


def test_error_chooses_the_grid(tmp_path: Path) -> None:
    network = load_field(made(lattice_field(2), linear(2)).save(tmp_path / "n.safetensors"))
    coarse, fine = network.sample(max_interpolation_error=2.0), network.sample(max_interpolation_error=1e-4)
    assert min(coarse.fields[0].geometry.spacing) > min(fine.fields[0].geometry.spacing) == 1.1


def test_result_with_the_images_again(tmp_path: Path) -> None:
    network = made(lattice_field(2), linear(2), None, {"preset": "fast"})
    grid = network.geometry
    image = to_itk(np.random.default_rng(0).random(grid.shape).astype(np.float32), grid)
    result = RegistrationResult.from_field(network, image, image, field_spacing=2)
    assert result.field is network
    assert result.report.field_spacing_voxels == 2
    assert result.report.preset == "fast"
    p = points_in(grid)
    np.testing.assert_array_equal(result.transform_points(p), network.map(p))
    assert set(result.save(tmp_path / "again_")) == {"warped", "composite", "inverse_composite", "report"}
    other = Geometry.make(grid.size, grid.spacing, np.asarray(grid.origin) + 1, grid.direction)
    with pytest.raises(InputError, match="trained on"):
        RegistrationResult.from_field(network, to_itk(np.zeros(other.shape, np.float32), other), image)
    deep = oblique(3)
    with pytest.raises(InputError, match="both must be alike"):
        RegistrationResult.from_field(network, image, to_itk(np.zeros(deep.shape, np.float32), deep))


@BOTH
@pytest.mark.parametrize("preset", ["fast", "paper"])
@pytest.mark.filterwarnings("default:.*voxels along one axis:UserWarning")
def test_a_registration_is_saved_and_sampled_again(preset: str, d: int, tmp_path: Path) -> None:
    fixed = oblique(d)
    p = fixed.grid()
    image = np.sin(p / 5.0).sum(-1).astype(np.float32)
    moved = np.sin((p - 1.8) / 5.0).sum(-1).astype(np.float32)
    if preset == "fast":
        options: dict[str, Any] = {
            "shrink_factors": (2, 1), "smoothing_sigmas": 0.4, "iterations": (5, 3), "learning_rates": 0.3, "radius": 2,
            "grid_spacing": (2.0, 4.0), "coarsest_grid_spacing": 8.0, "velocity_smoothness": 0.05, "smoothness": 0.0,
            "network_above": 0,
        }  # fmt: skip
    else:
        from itk_nir.paper.samplers import SamplerConfig
        from itk_nir.paper.settings import PaperPhase

        config = FieldConfig(width=8, depth=1, frequencies=4, omega=5.0)
        options = {"phases": (PaperPhase(config, SamplerConfig("downsize", stride=3), iterations=4, radius=1),)}
    result = itk_nir.register(
        to_itk(image, fixed), to_itk(moved, fixed), preset=make_settings(preset, field_spacing=2, **options),
        linear="none", device="cpu", threads=1, initial_transform=smooth_start(d), seed=3,
    )  # fmt: skip
    network = itk_nir.load_field(result.save_field(tmp_path / "n.safetensors"), threads=1)
    at = points_in(fixed)
    np.testing.assert_array_equal(network.map(at), result.transform_points(at))
    assert np.abs(network.displacement(at)).max() > 1e-3
    again, finer = network.sample(field_spacing=2), network.sample(field_spacing=1)
    np.testing.assert_array_equal(again.fields[0].vectors, result.mapping.fields[0].vectors)
    np.testing.assert_array_equal(again.inverse().map(at), result.mapping.inverse().map(at))
    assert finer.fields[0].geometry == fixed
    assert network.about["settings"]["sampling"]["field_spacing"] == 2
    assert (network.about["preset"], network.about["seed"]) == (preset, 3)
    assert set(network.about["versions"]) == {"itk-nir", "torch", "numpy", "python"}
    assert network.networks


def test_a_linear_map_has_no_network(tmp_path: Path) -> None:
    grid = oblique(2)
    image = to_itk(np.sin(grid.grid() / 5.0).sum(-1).astype(np.float32), grid)
    result = itk_nir.register(image, image, linear="rigid", deformable=False, device="cpu", threads=1)
    with pytest.raises(InputError, match="linear map"):
        result.save_field(tmp_path / "n.safetensors")


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    path = made(lattice_field(2), linear(2)).save(tmp_path / "n.safetensors")
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"n\.safetensors: damaged, truncated"):
            load_field(path)


def test_a_file_of_the_layout_before_is_read_in_mm_as_stored(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    network = made(lattice_field(2), linear(2))
    network.save(path)
    header = header_of(path)
    assert header.pop("unit") is None
    save_file(load_file(path), path, metadata={KEY: json.dumps({**header, "layout": 2})})
    p = points_in(network.geometry)
    np.testing.assert_array_equal(load_field(path).map(p), network.map(p))
    assert np.abs(network.displacement(p)).max() > 0.3


def test_foreign_and_unfitting_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match="another program"):
        load_field(path)
    with pytest.raises(InputError, match="no such file"):
        load_field(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("x = 1\n" * 40)
    with pytest.raises(InputError, match="damaged"):
        load_field(tmp_path / "text.safetensors")
    made(lattice_field(2, network=SMALL), linear(2)).save(path)
    tensors, header = load_file(path), header_of(path)
    fine = header["field"]["fine"]
    for change, message in (
        ({"layout": 99}, "layout 99"),
        ({"kind": "wavelet"}, "wavelet"),
        ({"field": {**header["field"], "transform_model": "wavelet"}}, "wavelet"),
        ({"field": {**header["field"], "fine": {**fine, "network": {**fine["network"], "soul": 1}}}}, "soul"),
        ({"field": {**header["field"], "fine": {**fine, "network": None}}}, "do not fit: Unexpected key"),
        ({"field": {**header["field"], "fine": {**fine, "lattice": 1}}}, "do not fit: size mismatch"),
        ({"linear": [[1, 0], [0, 1]]}, "3x3"),
    ):
        save_file(tensors, path, metadata={KEY: json.dumps({**header, **change})})
        with pytest.raises(InputError, match=message) as caught:
            load_field(path)
        assert "\n" not in str(caught.value)
    for name in list(tensors):
        save_file({k: v for k, v in tensors.items() if k != name}, path, metadata={KEY: json.dumps(header)})
        with pytest.raises(InputError, match="do not fit"):
            load_field(path)


def test_unfitting_files_of_the_paper_preset_are_errors(tmp_path: Path) -> None:
    path = made(paper_field(2), linear(2)).save(tmp_path / "n.safetensors")
    tensors, header = load_file(path), header_of(path)
    for change, message in (
        ({"field": {**header["field"], "kind": "wavelet"}}, "wavelet"),
        ({"field": {**header["field"], "fields": 3}}, "3 fields of 2 phases"),
        ({"field": {**header["field"], "settings": {**header["field"]["settings"], "soul": 1}}}, "soul"),
    ):
        save_file(tensors, path, metadata={KEY: json.dumps({**header, **change})})
        with pytest.raises(InputError, match=message):
            load_field(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={KEY: json.dumps(header)})
    with pytest.raises(InputError, match="do not fit"):
        load_field(path)


def test_values_that_do_not_fit_the_lattice(tmp_path: Path) -> None:
    path = made(lattice_field(3), linear(3)).save(tmp_path / "n.safetensors")
    header = header_of(path)
    values = {"fine.control_points": np.zeros((3, 2, 2, 2), np.float32)}
    save_file(values, path, metadata={KEY: json.dumps(header)})
    with pytest.raises(InputError, match="control points"):
        load_field(path)


def test_bad_requests(tmp_path: Path) -> None:
    network = made(lattice_field(2), linear(2))
    with pytest.raises(InputError, match=r"\.safetensors"):
        network.save(tmp_path / "n.pt")
    with pytest.raises(InputError, match="does not exist"):
        network.save(tmp_path / "no" / "n.safetensors")
    with pytest.raises(OptionError, match="not both"):
        network.sample(max_interpolation_error=0.1, field_spacing=2)
    for spacing in (0, 1.5, True):
        with pytest.raises(OptionError, match="field_spacing"):
            network.sample(field_spacing=spacing)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="max_interpolation_error"):
        network.sample(max_interpolation_error=0.0)
    with pytest.raises(InputError, match="shape"):
        network.map(np.zeros((4, 3)))
    with pytest.raises(InputError, match="shape"):
        network.displacement(np.zeros(2))
    path = network.save(tmp_path / "n.safetensors")
    with pytest.raises(OptionError, match="device is"):
        load_field(path, device="gpu")
    with pytest.raises(OptionError, match="threads is"):
        load_field(path, threads=0)


def test_network_of_a_trained_field() -> None:
    assert made(lattice_field(2), linear(2)).networks == ()
    for field in (lattice_field(2, network=SMALL), lattice_field(2, network=SMALL, composed=True)):
        (network,) = made(field, linear(2)).networks
        assert isinstance(network, torch.nn.Module)
        weights = sum(p.numel() for p in network.parameters())
        assert weights > SMALL.width * SMALL.depth
    assert repr(made(lattice_field(2), linear(2), None, {"preset": "fast"})) == (
        "NeuralField(deformable, fixed grid 22x17, preset 'fast')"
    )


@BOTH
def test_weights_in_the_file_are_what_is_evaluated(d: int, tmp_path: Path) -> None:
    """A change of one weight of the coordinate network in the file changes the map."""
    field = made(lattice_field(d, network=SMALL, composed=True), linear(d))
    path = field.save(tmp_path / "n.safetensors")
    tensors, header = load_file(path), header_of(path)
    p = points_in(field.geometry)
    weights = [name for name in tensors if name.startswith("coarse.network.") and tensors[name].ndim == 2]
    assert len(weights) >= SMALL.depth + 1
    for name in weights:
        changed = tensors[name].copy()
        changed[0, 0] += 0.5
        save_file({**tensors, name: changed}, path, metadata={KEY: json.dumps(header)})
        assert np.abs(load_field(path).map(p) - field.map(p)).max() > 1e-4, name


def test_old_name_of_load_field_warns_and_works(tmp_path: Path) -> None:
    path = made(lattice_field(2), linear(2)).save(tmp_path / "n.safetensors")
    with pytest.warns(DeprecationWarning, match=r"itk_nir\.load_network is itk_nir\.load_field since 0\.2") as told:
        old = itk_nir.load_network
    assert told[0].filename == __file__
    assert old is itk_nir.load_field
    assert old(path).geometry == oblique(2)


def header_of(path: Path) -> dict[str, Any]:
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][KEY])  # type: ignore[no-any-return]

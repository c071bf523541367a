"""Axes along which nothing may move: exactly nothing, in the map, in its inverse and in every file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import itk_nir
from itk_nir.engine.folds import remove_folds
from itk_nir.engine.images import sizes
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.linear_map import LinearMap
from itk_nir.engine.restriction import free_parameters, without_held_axes
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image, to_sitk
from itk_nir.neural_field import load_field
from itk_nir.phantom import brain_phantom
from itk_nir.settings import make_settings
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.model import LinearTransform
from tests.docs_blocks import run_blocks
from tests.engine.pairs import SMALL, on_voxels, velocity
from tests.grids import turned

SIZES = {2: (44, 50), 3: (26, 30, 24)}
KINDS: dict[str, dict[str, Any]] = {
    "default": {}, "fast": {"preset": "fast"}, "network": {"preset": make_settings("default", network_above=0.0)},
    "symmetric": {"symmetric": True}, "displacement": {"transform_model": "displacement"},
}  # fmt: skip
#: Every kind with either axis of an image; and with one choice of axes of a volume, where each choice comes up.
HELD_BY: list[tuple[tuple[float, ...], str]] = [
    *(((0, 1), kind) for kind in KINDS), *(((1, 0), kind) for kind in KINDS),
    ((0, 1, 0), "default"), ((1, 1, 0), "fast"), ((True, False, False), "network"), ((1, 1, 0), "symmetric"),
    ((0, 1, 0), "displacement"),
]  # fmt: skip
FEW: dict[str, Any] = {"iterations": (6, 3, 2), "threads": 1}


def pair(d: int, direction: np.ndarray | None = None) -> tuple[Any, Any, Geometry]:
    made = brain_phantom(d, SIZES[d], seed=2)
    grids = [made.geometry, made.moving_geometry]
    if direction is not None:
        grids = [Geometry.make(g.size, g.spacing, direction @ np.array(g.origin), direction) for g in grids]
    fixed, moving = (to_sitk(a, g) for a, g in zip((made.fixed, made.moving), grids, strict=True))
    return fixed, moving, grids[0]


def along_axes(displacement: np.ndarray, grid: Geometry, restrict: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The displacement along held and along free axes, voxels."""
    voxels = displacement @ grid.rotation / grid.spacing
    held = [axis for axis, free in enumerate(restrict) if not free]
    return voxels[..., held], np.delete(voxels, held, axis=-1)


@pytest.mark.parametrize(("restrict", "kind"), HELD_BY, ids=str)
def test_held_axes_move_by_exactly_nothing(restrict: tuple[float, ...], kind: str, tmp_path: Path) -> None:
    options = KINDS[kind]
    fixed, moving, grid = pair(len(restrict))
    result = itk_nir.register(fixed, moving, restrict=restrict, **FEW, **options)
    assert result.field is not None
    assert bool(result.field.networks) == (options.get("preset") not in (None, "fast"))
    result.save_field(tmp_path / "f.safetensors")
    again = load_field(tmp_path / "f.safetensors")
    points = np.concatenate([grid.grid().reshape(-1, grid.dimension)[::7], grid.corners() * 1.4])
    for map_ in (result.mapping.map, result.mapping.inverse().map, again.map):
        held, free = along_axes(map_(points) - points, grid, restrict)
        assert not held.any()
        assert np.abs(free).max() > 0.5
    for inverse in (False, True):
        assert not along_axes(again.displacement(points, inverse), grid, restrict)[0].any()
    assert result.report.folded_voxels == 0


@cache
def registered_along_y() -> tuple[itk_nir.RegistrationResult, Geometry]:
    fixed, moving, grid = pair(3)
    return itk_nir.register(fixed, moving, restrict=(0, 1, 0), linear="translation", **FEW), grid


@pytest.mark.parametrize("kind", ["itk", "ants", "slicer"])
def test_files_hold_it_too(kind: str, tmp_path: Path) -> None:
    result, grid = registered_along_y()
    paths = result.save(f"{tmp_path}/", format=kind)  # type: ignore[arg-type]
    names = {"itk": ("composite", "inverse_composite"), "ants": ("warp", "inverse_warp"),
             "slicer": ("displacement", "inverse_displacement")}  # fmt: skip
    points = grid.grid().reshape(-1, 3)[::5]
    for name in names[kind]:
        held, free = along_axes(read_transform(paths[name], grid).map(points) - points, grid, (0, 1, 0))
        assert np.abs(held).max() < 1e-9
        assert np.abs(free).max() > 0.5


@pytest.mark.parametrize("restrict", [(0, 1), (1, 0, 1)], ids=str)
def test_axes_are_those_of_the_image(restrict: tuple[int, ...]) -> None:
    fixed, moving, grid = pair(len(restrict), turned(len(restrict), 0.5, 0.3))
    result = itk_nir.register(fixed, moving, restrict=restrict, preset="fast", **FEW)
    points = grid.grid().reshape(-1, grid.dimension)[::7]
    for map_ in (result.mapping, result.mapping.inverse()):
        held, free = along_axes(map_.map(points) - points, grid, restrict)
        assert np.abs(held).max() < 1e-5
        assert np.abs(free).max() > 0.5
    assert np.abs(along_axes(result.affine.map(points) - points, grid, restrict)[0]).max() < 1e-11
    assert result.field is not None
    u = result.field.trained.on_grid([np.arange(float(n)) for n in sizes(grid)])
    held_axes = [axis for axis, free in enumerate(restrict) if not free]
    assert not u[held_axes].any()
    assert u.any()


def test_an_axis_more_that_may_move_is_as_none_held() -> None:
    fixed, moving, grid = pair(2)
    free, ones = (itk_nir.register(fixed, moving, restrict=r, preset="fast", **FEW) for r in ((), (1, 1)))
    points = grid.grid()
    np.testing.assert_array_equal(free.mapping.map(points), ones.mapping.map(points))


@pytest.mark.parametrize("network", [None, SMALL])
@pytest.mark.parametrize("model", ["velocity", "displacement"])
def test_removed_folds_leave_held_axes_as_they_are(network: Any, model: str) -> None:
    geometry = Geometry.make([40, 44, 36], [1.0, 1.5, 2.0])
    domain = Domain((0, 0, 0), sizes(geometry))
    lattices = Lattices.halved(domain.lattice((4.0, 4.0, 4.0)), 4.0, 0, domain.ends, (1, 0, 1))
    values = torch.full((3, *shape_of(lattices.axes[0])), 0.3)
    values[0, 5, 5, 5:7] = torch.tensor([25.0, -25.0])
    fine = velocity(geometry, lattices, values, network)
    coarse = velocity(geometry, lattices, 0.2 * values)
    field = VelocityField(geometry, fine, coarse, model, 1)
    whole = remove_folds(field, domain)
    assert whole is not field
    for f in (field, whole):
        for inverse in (False, True):
            u = on_voxels(f) if not inverse else f.on_grid([np.arange(float(n)) for n in geometry.size], True)
            assert not u[1].any()
            assert u[0].any()
            assert u[2].any()


# --- the linear stage ------------------------------------------------------------------------------------------------


def test_parameters_that_may_move() -> None:
    def names(d: int, kind: str, restrict: tuple[int, ...]) -> list[int]:
        return np.flatnonzero(free_parameters(d, kind, restrict)).tolist()

    assert names(3, "translation", (0, 1, 0)) == [1]
    assert names(3, "rigid", (0, 1, 0)) == [1]
    assert names(3, "rigid", (1, 1, 0)) == [0, 1, 5]  # and turns about the held axis
    assert names(3, "similarity", (1, 1, 0)) == [0, 1, 5]
    assert names(3, "affine", (0, 1, 0)) == [1, 10, 11, 12]
    assert names(2, "rigid", (0, 1)) == [1]
    assert names(2, "affine", (1, 0)) == [0, 7, 8]
    assert names(3, "rigid", ()) == [0, 1, 2, 3, 4, 5]
    assert names(2, "affine", (1, 1)) == [0, 1, 5, 7, 8, 10, 11]


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["translation", "rigid", "similarity", "affine"]),
    restrict=st.sampled_from([(0, 1), (1, 0), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0)]),
)
@settings(max_examples=40, deadline=None)
def test_linear_maps_displace_along_free_axes_alone(seed: int, kind: str, restrict: tuple[int, ...]) -> None:
    d, rng = len(restrict), np.random.default_rng(seed)
    grid = Geometry.make(
        [20, 24, 18][:d], [1.0, 1.5, 2.0][:d], rng.uniform(-50, 50, d), turned(d, *rng.uniform(-2, 2, 2))
    )
    model = LinearMap(grid, kind, restrict)
    matrix = model.in_lps(torch.from_numpy(rng.uniform(-8, 8, len(model.moving))))
    points = grid.grid().reshape(-1, d)
    moved = LinearTransform(matrix).map(points) - points
    held, free = along_axes(moved, grid, restrict)
    assert np.abs(held).max() < 1e-5
    assert np.abs(free).max() > 1e-3
    clean = LinearTransform(without_held_axes(matrix, grid, restrict)).map(points) - points
    np.testing.assert_allclose(clean, moved, atol=1e-4)
    assert np.abs(along_axes(clean, grid, restrict)[0]).max() < 1e-12
    # What displaces along held axes loses just that.
    wild = np.eye(d + 1) + 0.2 * rng.normal(size=(d + 1, d + 1)) * [[1.0]] * np.r_[np.ones(d), 0][:, None]
    other = LinearTransform(without_held_axes(wild, grid, restrict)).map(points) - points
    _, wanted = along_axes(LinearTransform(wild).map(points) - points, grid, restrict)
    held, free = along_axes(other, grid, restrict)
    assert np.abs(held).max() < 1e-11
    np.testing.assert_allclose(free, wanted, atol=1e-9)


@pytest.mark.parametrize("linear", ["translation", "rigid", "similarity", "affine"])
@pytest.mark.parametrize("restrict", [(0, 1), (1, 1, 0)], ids=str)
def test_linear_stage_keeps_held_axes(linear: str, restrict: tuple[int, ...]) -> None:
    d = len(restrict)
    fixed, moving, grid = pair(d)
    # Shifted along all axes: along the held ones it must not come back.
    moving.SetOrigin([a + 5.0 for a in moving.GetOrigin()])
    result = itk_nir.register(fixed, moving, linear=linear, deformable=False, restrict=restrict, threads=1)  # type: ignore[arg-type]
    matrix = np.array(result.report.affine_matrix)
    for axis, free in enumerate(restrict):
        assert np.array_equal(matrix[axis], np.eye(d + 1)[axis]) == (not free)
    there = result.mapping.map(grid.centre[None]) - grid.centre
    assert there[0, 1] == pytest.approx(5.0, abs=3.0)


def test_the_callers_own_start_is_kept() -> None:
    fixed, moving, grid = pair(2)
    start = LinearTransform.make(np.eye(2), [1.5, -2.0])
    result = itk_nir.register(fixed, moving, initial_transform=start, restrict=(0, 1), preset="fast", **FEW)
    points = grid.grid().reshape(-1, 2)
    held, _ = along_axes(result.mapping.map(points) - points, grid, (0, 1))
    np.testing.assert_allclose(held, 1.5 / grid.spacing[0], atol=1e-9)


# --- what is refused, and other ways to say it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restrict", "message"),
    [
        ((0, 1, 0), "restrict has one value for each axis of the fixed image, 2 of them, got 3"),
        ((1,), "restrict has one value for each axis of the fixed image, 2 of them, got 1"),
        ((0, 0), "leaves no axis along which anything may move"),
        ((0.1, 1), "a weight between the two cannot be had"),
        ((0, 2), "restrict must be at least 0 and at most 1"),
        ("0x1", "option 'restrict' is a tuple of"),
        (1, "restrict has one value for each axis of the fixed image, 2 of them, got 1"),
    ],
)
def test_what_it_cannot_be(restrict: Any, message: str) -> None:
    fixed, moving, _ = pair(2)
    with pytest.raises(OptionError, match=message):
        itk_nir.register(fixed, moving, restrict=restrict)


def test_preset_paper_refuses_it_by_name() -> None:
    fixed, moving, _ = pair(2)
    with pytest.raises(OptionError, match="unknown option 'restrict' for preset 'paper'"):
        itk_nir.register(fixed, moving, preset="paper", restrict=(0, 1))


def test_on_the_command_line(tmp_path: Path) -> None:
    from itk_nir.cli.main import main

    made = brain_phantom(2, SIZES[2], seed=2)
    for name, array, grid in (("f", made.fixed, made.geometry), ("m", made.moving, made.moving_geometry)):
        save_image(array, grid, tmp_path / f"{name}.nii.gz")
    arguments = ["register", "--fixed", f"{tmp_path}/f.nii.gz", "--moving", f"{tmp_path}/m.nii.gz"]
    arguments += ["--output", f"{tmp_path}/o_", "--preset", "fast", "--iterations", "4,2,1"]
    assert main([*arguments, "--restrict", "0x1"]) == 0
    told = json.loads((tmp_path / "o_report.json").read_text())["metrics"]
    assert told["settings"]["deformable"]["restrict"] == [0, 1]
    points = made.geometry.grid().reshape(-1, 2)
    moved = read_transform(tmp_path / "o_Composite.h5", made.geometry).map(points) - points
    assert np.abs(moved[:, 0]).max() < 1e-9
    assert np.abs(moved[:, 1]).max() > 1
    assert main([*arguments, "--restrict", "0x1x0"]) != 0


@pytest.mark.slow
def test_page_on_echo_planar_distortion() -> None:
    fixed, moving, grid = pair(2)
    result = run_blocks("echo_planar_distortion.md", {"fixed": fixed, "moving": moving}, without=["not-run"])["result"]
    points = grid.grid()
    assert not (result.mapping.map(points) - points)[..., 0].any()

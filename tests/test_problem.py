"""What is to be registered: read, matched and measured once, and refused before any work."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import itk_nir
from itk_nir import identity, problem
from itk_nir.engine.images import Intensity
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import reading, save_image, to_itk, to_sitk
from itk_nir.neural_field import load_field
from itk_nir.phantom import Phantom
from itk_nir.problem import Problem
from itk_nir.settings import make_settings
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])
#: Without the network, whose first steps are long.
FEW = make_settings("fast", iterations=1, network=None, search="never", linear_iterations=2, linear_start_iterations=1)


def images(d: int, kind: str = "sitk") -> tuple[Any, Any, Geometry]:
    """A pair on unlike grids with a background of 0."""
    fixed = Geometry.make([24, 28, 20][:d], [2.0, 1.5, 2.5][:d], [-20.0, 10.0, 5.0][:d], turned(d, 0.2))
    moving = Geometry.make([30, 26, 24][:d], [1.8] * d, None, turned(d, -0.1))
    moving = Geometry.make(moving.size, moving.spacing, fixed.centre - moving.centre, moving.direction)
    make = to_sitk if kind == "sitk" else to_itk
    out = []
    for g in (fixed, moving):
        r = np.linalg.norm(g.grid() - g.centre, axis=-1)
        texture = 60 + 20 * np.sin((g.grid() - g.centre) @ np.array([0.5, 0.4, 0.3])[:d])
        out.append(make(np.where(r < 17, texture, 0).astype(np.float32), g))
    return out[0], out[1], fixed


def prepared(d: int = 2, **options: Any) -> Problem:
    fixed, moving, _ = images(d)
    return Problem.prepare(fixed, moving, FEW, **{"device": "cpu", "threads": 1, **options})


def mask_like(grid: Geometry) -> Any:
    return to_sitk((np.linalg.norm(grid.grid() - grid.centre, axis=-1) < 14).astype(np.uint8), grid)


def bend(grid: Geometry) -> DisplacementField:
    return DisplacementField(grid, (0.8 * np.sin((grid.grid() - grid.centre) / 9)).astype(np.float32))


# --- once ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("start", ["none", "linear", "field"])
def test_masks_are_matched_once_and_images_measured_once(d: int, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, grid = images(d)
    calls: list[str] = []
    match_mask, read, of = problem.match_mask, reading.read, Intensity.of

    def matched(mask: Any, image: Any) -> Any:
        calls.append(f"match {mask.name}")
        return match_mask(mask, image)

    def loaded(image: Any, role: str, options: Any, nan: str = "error") -> Any:
        calls.append(f"load {role}")
        return read(image, role, options, nan)

    def measured(cls: type[Intensity], image: Any, weight: Any, lesion: Any) -> Intensity:
        calls.append("measure")
        return of(image, weight, lesion)

    monkeypatch.setattr(problem, "match_mask", matched)
    monkeypatch.setattr(reading, "read", loaded)
    monkeypatch.setattr(Intensity, "of", classmethod(measured))
    coarse = Geometry.make([12] * d, [5.0] * d, grid.centre - 27.5)  # another grid, so that it must be resampled
    initial = {"none": None, "linear": np.eye(d + 1), "field": CompositeTransform((bend(grid),))}[start]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = itk_nir.register(
            fixed, moving, preset=FEW, fixed_mask=mask_like(coarse), moving_mask=mask_like(grid), device="cpu",
            initial_transform=initial, threads=1,
        )  # fmt: skip
    assert sorted(calls) == [
        "load fixed image", "load fixed mask", "load moving image", "load moving mask", "match fixed mask",
        "match moving mask", "measure", "measure",
    ]  # fmt: skip
    assert len(result.report.trace) == 3
    assert result.report.similarity_linear is not None, "both stages ran"
    for role in ("fixed mask", "moving mask"):
        for texts in (result.report.warnings, [str(w.message) for w in told]):
            assert sum(f"{role}: is on another grid" in text for text in texts) == 1


# --- numbers that are numbers ----------------------------------------------------------------------------------------


# Nothing can be gained: the images are aligned.
@pytest.mark.filterwarnings("default:.*the deformation was given up:UserWarning")
def test_numbers_of_numpy_are_taken() -> None:
    p = prepared(seed=np.int64(3), threads=np.int64(1), deformable=np.bool_(True))
    assert (p.seed, p.threads) == (3, 1)
    assert type(p.seed) is int
    assert type(p.threads) is int
    fixed, moving, _ = images(2)
    few: dict[str, Any] = {"preset": FEW, "linear": "none", "device": "cpu"}
    plain = itk_nir.register(fixed, moving, seed=3, threads=1, **few)
    numpy = itk_nir.register(fixed, moving, seed=np.int64(3), threads=np.int32(1), **few)
    np.testing.assert_array_equal(plain.warped_array, numpy.warped_array)
    assert plain.report.trace == numpy.report.trace
    assert (numpy.report.seed, numpy.report.threads) == (3, 1)
    assert type(numpy.report.seed) is int


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": True}, "seed is a whole number that is not negative, got True"),
        ({"seed": np.bool_(True)}, "seed is a whole number"),
        ({"seed": 1.0}, "seed is a whole number"),
        ({"seed": np.float64(1)}, "seed is a whole number"),
        ({"seed": -1}, "seed is a whole number"),
        ({"seed": None}, "seed is a whole number"),
        ({"threads": True}, "threads is a whole number of at least 1, got True"),
        ({"threads": np.bool_(True)}, "threads is a whole number"),
        ({"threads": 0}, "threads is a whole number"),
        ({"threads": 2.0}, "threads is a whole number"),
        ({"deformable": 1}, "deformable is True or False, got 1"),
        ({"deformable": None}, "deformable is True or False"),
        ({"strict_input": "no"}, "strict_input is True or False, got 'no'"),
        ({"deformable": False, "linear": "none"}, "leaves nothing to do"),
        (
            {"linear": "bspline"},
            "linear is one of 'affine', 'similarity', 'rigid', 'translation', 'none', got 'bspline'",
        ),
        ({"linear": True}, "linear is one of"),
        ({"linear": ["rigid"]}, "linear is one of"),
        ({"device": "gpu"}, "device is 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": None}, "device is 'auto', 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        prepared(**options)


def test_arguments_are_refused_before_anything_is_read() -> None:
    with pytest.raises(OptionError, match="seed"):
        Problem.prepare("no.nii.gz", "no.nii.gz", FEW, seed=-1)


# --- what is prepared ------------------------------------------------------------------------------------------------


def test_threads_that_are_left_out_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert prepared(threads=None).threads == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert prepared(threads=None).threads == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert prepared(threads=None).threads == 1


@BOTH
def test_plain_problem(d: int) -> None:
    begin = time.perf_counter()
    p = prepared(d)
    assert begin <= p.clock <= time.perf_counter()
    assert p.findings == ()
    assert (p.linear, p.deformable, p.seed, p.start, p.tail) == ("affine", True, 0, None, None)
    assert (p.fixed.kind, p.moving.name) == ("sitk", "moving image")
    pair = p.pair()
    assert pair.fixed.dtype == torch.float32
    assert pair.fixed.shape == (*(1,) * (3 - d), *p.fixed.array.shape)
    np.testing.assert_array_equal(pair.fixed.numpy().reshape(p.fixed.array.shape), p.fixed.array)
    np.testing.assert_array_equal(pair.linear, np.eye(d + 1))
    assert pair.fixed_weight is None
    assert pair.moving_weight is None
    assert torch.equal(pair.counted, pair.fixed != 0)


@BOTH
def test_masks_lie_on_the_grids_of_their_images(d: int) -> None:
    _, _, grid = images(d)
    p = prepared(d, fixed_mask=mask_like(grid), moving_mask=mask_like(grid))
    assert p.fixed_mask is not None
    assert p.moving_mask is not None
    assert p.fixed_mask.geometry == p.fixed.geometry
    assert p.moving_mask.geometry == p.moving.geometry
    assert set(np.unique(p.moving_mask.array)) == {0, 1}
    assert [note.split(":")[0] for note in map(str, p.findings)] == ["moving mask"]
    pair = p.pair()
    assert pair.fixed_weight is not None
    assert torch.equal(pair.counted, pair.fixed_weight > 0.5)


@BOTH
def test_linear_start_is_where_the_stages_begin(d: int) -> None:
    matrix = np.eye(d + 1)
    matrix[:d, :d] = turned(d, 0.1)
    matrix[:d, d] = 1.5
    p = prepared(d, initial_transform=[matrix, LinearTransform(matrix)])
    assert p.start is not None
    assert p.tail is None, "it becomes part of the linear map"
    pair = p.pair()
    np.testing.assert_allclose(p.frame.physical_matrix(pair.linear), matrix @ matrix, atol=1e-12)
    assert pair.moving_geometry == p.frame.placed(p.moving.geometry) != p.frame.geometry


@BOTH
def test_moving_image_is_seen_through_any_other_start(d: int) -> None:
    fixed, moving, grid = images(d)
    start = CompositeTransform((bend(grid), LinearTransform.make(np.eye(d), [6.0] * d)))
    p = prepared(d, initial_transform=start)
    assert p.tail is p.start is not None
    pair = p.pair()
    assert pair.moving_geometry == pair.fixed_geometry == p.frame.geometry
    np.testing.assert_array_equal(pair.linear, np.eye(d + 1))
    seen = sitk.GetArrayFromImage(itk_nir.apply(moving, start, fixed))
    np.testing.assert_allclose(pair.moving.numpy().reshape(seen.shape), seen, atol=1e-3)
    # Where the moving image does not reach, nothing counts.
    inside = p.moving.geometry.contains(start.map(grid.grid().reshape(-1, d))).reshape(seen.shape)
    assert 0.5 < inside.mean() < 1
    assert pair.moving_weight is not None
    # `contains` ends at the outermost centres or half a voxel beyond: the rim may differ.
    assert (pair.moving_weight.numpy().reshape(seen.shape) == inside).mean() > 0.95
    # All of it in sight: no mask is needed.
    small = Geometry.make([12] * d, [1.0] * d, grid.centre - 5.5)
    near = Problem.prepare(to_sitk(small.grid()[..., 0].astype(np.float32), small), moving, FEW, device="cpu",
                           initial_transform=bend(grid))  # fmt: skip
    assert near.pair().moving_weight is None
    assert near.pair().moving_geometry == near.frame.geometry


def test_start_that_leads_out_of_the_moving_image() -> None:
    _, _, grid = images(2)
    away = DisplacementField(grid, np.full((*grid.shape, 2), 3000.0, np.float32))
    p = prepared(initial_transform=away)
    assert any("covers only 0%" in note for note in map(str, p.findings))
    with pytest.raises(InputError, match="initial transform: takes the fixed image wholly outside"):
        p.pair()


def test_what_is_odd_is_noted_in_order() -> None:
    """Of the images first, then of the masks."""
    fixed, _, grid = images(2)
    away = to_sitk(sitk.GetArrayFromImage(fixed), Geometry.make(grid.size, grid.spacing, np.asarray(grid.origin) + 40))
    coarse = Geometry.make([12, 12], [5.0, 5.0], grid.centre - 27.5)
    p = Problem.prepare(fixed, away, FEW, fixed_mask=mask_like(coarse), device="cpu")
    assert [note.split(":")[0] for note in map(str, p.findings)] == ["moving image", "fixed mask"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed_mask": "no_mask.nii.gz"}, "fixed mask no_mask.nii.gz: no such file"),
        ({"moving_mask": np.zeros((3, 3))}, "moving mask"),
        ({"initial_transform": "no.h5"}, "initial transform no.h5"),
        ({"initial_transform": np.eye(4)}, "initial transform: is 3D"),
        ({"initial_transform": 3}, "initial transform"),
    ],
)
def test_inputs_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(**change)


def test_dimensions_are_looked_at_before_masks() -> None:
    fixed, _, grid = images(2)
    _, moving, _ = images(3)
    with pytest.raises(InputError, match="moving image: is 3D but fixed image is 2D"):
        Problem.prepare(fixed, moving, FEW, moving_mask=mask_like(grid), device="cpu")


def test_paths_are_named_in_messages(phantom_2d: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "flat.nii.gz"
    save_image(np.full(phantom_2d.fixed.shape, 3, np.float32), phantom_2d.geometry, path)
    with pytest.raises(InputError, match=r"moving image .*flat\.nii\.gz: is constant"):
        Problem.prepare(to_sitk(phantom_2d.fixed, phantom_2d.geometry), path, FEW, device="cpu")


def test_checksums_are_the_same_on_a_thread_and_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    p, alone = prepared(3, threads=2), prepared(3, threads=1)
    wanted = identity.inputs_of(p)
    assert set(wanted) == {"fixed", "moving"}
    assert identity.inputs_soon(p)() == wanted
    asked = []

    def refused(self: threading.Thread) -> None:
        asked.append(self)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert identity.inputs_soon(p)() == wanted
        assert len(asked) == 1
        assert identity.inputs_soon(alone)() == wanted
        assert len(asked) == 1, "one thread is one thread"

    def fails(p: Problem) -> dict[str, str]:
        raise MemoryError("none left")

    monkeypatch.setattr(identity, "inputs_of", fails)
    with pytest.raises(MemoryError, match="none left"):
        identity.inputs_soon(p)()


# --- frames of one value ---------------------------------------------------------------------------------------------


def pictures(d: int, pad: int = 0) -> tuple[Any, Any]:
    """Two textures that reach their borders, the moving one shifted by (1, ...) voxels, in frames of 0."""
    out = []
    for shift in (0.0, 1.0):
        at = [np.arange(n) - shift for n in [40, 36, 20][:d]]
        x = np.meshgrid(*at, indexing="ij")
        array = 100 + sum(20 * np.sin(v / (2.1 + 0.4 * k) + 0.3 * x[0]) for k, v in enumerate(x))
        grid = Geometry.make(array.shape[::-1], [1.0] * d)
        array = np.pad(array, pad)
        out.append(to_sitk(array.astype(np.float32), grid.crop([-pad] * d, array.shape[::-1])))
    return out[0], out[1]


@BOTH
def test_a_frame_of_one_value_is_left_out(d: int) -> None:
    plain, framed = (Problem.prepare(*pictures(d, pad), FEW, device="cpu", threads=1) for pad in (0, 6))
    assert plain.fixed_part is None
    assert framed.fixed_part == framed.moving_part == tuple(slice(6, 6 + n) for n in [40, 36, 20][:d])
    assert [str(f).count("a frame of one value") for f in framed.findings] == [1, 1]
    a, b = plain.pair(), framed.pair()
    assert torch.equal(a.fixed, b.fixed)
    assert torch.equal(a.moving, b.moving)


def test_the_result_covers_the_frame() -> None:
    given = {"preset": "fast", "linear": "affine", "threads": 1, "device": "cpu"}
    plain = itk_nir.register(*pictures(2), **given)
    with pytest.warns(UserWarning, match="a frame of one value"):
        framed = itk_nir.register(*pictures(2, 6), **given)
    assert framed.warped.GetSize() == pictures(2, 6)[0].GetSize()
    u, v = (r.mapping.displacement_on(r.fixed.geometry).vectors for r in (plain, framed))
    np.testing.assert_allclose(v[6:-6, 6:-6], u, atol=0.05)


def test_the_field_of_a_framed_pair_is_saved_with_its_part_of_the_grid(tmp_path: Path) -> None:
    fixed, moving = pictures(2, 6)
    for image in (fixed, moving):
        image.SetDirection([0.8, 0.6, 0.6, -0.8])
    with pytest.warns(UserWarning, match="a frame of one value"):
        result = itk_nir.register(fixed, moving, preset="fast", linear="none", threads=1, device="cpu")
    again = load_field(result.save_field(tmp_path / "field.safetensors"))
    points = again.geometry.grid().reshape(-1, 2)[::7]
    mapped = [result.transform.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(again.map(points), mapped, atol=0.02)


def test_masks_and_labels_of_a_framed_pair() -> None:
    """They are cropped as the images are."""
    maps = []
    for margin in (0, 6):
        fixed, moving = pictures(2, margin)
        mask = np.zeros(sitk.GetArrayViewFromImage(fixed).shape, np.uint8)
        mask[margin + 3 : -margin - 3, margin + 3 : -margin - 3] = 1
        drawn = [sitk.GetImageFromArray(mask * (1 + (sitk.GetArrayFromImage(i) > 100))) for i in (fixed, moving)]
        for image, like in zip(drawn, (fixed, moving), strict=True):
            image.CopyInformation(like)
        given = {"fixed_mask": drawn[0] > 0, "fixed_labels": drawn[0], "moving_labels": drawn[1]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = itk_nir.register(fixed, moving, preset="fast", threads=1, device="cpu", **given)
        u = result.mapping.displacement_on(result.fixed.geometry).vectors
        maps.append(u[margin : u.shape[0] - margin, margin : u.shape[1] - margin])
    np.testing.assert_allclose(maps[1], maps[0], atol=0.05)


@pytest.mark.filterwarnings("ignore:.*is binary")
def test_the_border_around_an_object_is_no_frame() -> None:
    p = prepared(2)
    assert p.fixed_part is None
    assert p.moving_part is None
    boxes = np.zeros((2, 40, 40), np.float32)
    boxes[0, 8:30, 8:30], boxes[1, 1:34, 1:30] = 1, 1
    p = Problem.prepare(*[to_sitk(b, Geometry.make((40, 40))) for b in boxes], FEW, device="cpu", threads=1)
    assert p.fixed_part is None
    assert p.moving_part is None

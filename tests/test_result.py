"""A result made by hand: every way out of it gives one and the same map."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from itk_nir.engine.frame import Frame
from itk_nir.engine.progress import Iteration
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, to_itk, to_sitk
from itk_nir.neural_field import NeuralField
from itk_nir.report import Report
from itk_nir.result import RegistrationResult
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.formats.itk_h5 import read_h5
from tests.grids import permuted, turned

BOTH = pytest.mark.parametrize("d", [2, 3])


def smooth(points: np.ndarray, size: float = 2.0) -> np.ndarray:
    """A displacement of at most `size` mm that changes over about 25 mm."""
    d = points.shape[-1]
    return size * np.sin(points @ (np.random.default_rng(0).normal(size=(d, d)) / 10))


def made(d: int, kind: str = "sitk", *, linear: bool = True, step: int = 1, away: float = 0.0) -> RegistrationResult:
    """An oblique, anisotropic pair with unlike grids; field on every `step`-th fixed voxel, then an affine part."""
    fixed = Geometry.make([29, 25, 21][:d], [1.1, 1.7, 2.3][:d], [-40, 25, 90][:d], permuted(d, 0.4))
    moving = Geometry.make([46, 44, 48][:d], [1.0, 1.2, 1.3][:d], [0] * d, permuted(d, -0.7))
    moving = Geometry.make(moving.size, moving.spacing, fixed.centre - moving.centre + away, moving.direction)
    rng = np.random.default_rng(1)
    images = [50 + 50 * np.sin((g.grid() - fixed.centre) @ (rng.normal(size=d) / 3)) for g in (fixed, moving)]
    f, m = (
        Volume(a.astype(np.float32), g, name, kind, np.dtype(np.float32))
        for a, g, name in zip(images, (fixed, moving), ("fixed image", "moving image"), strict=True)
    )
    grid = Geometry.make(
        [(n - 1) // step + 1 for n in fixed.size], np.asarray(fixed.spacing) * step, fixed.origin, fixed.direction
    )
    u = DisplacementField(grid, smooth(grid.grid() - fixed.centre).astype(np.float32))
    matrix = turned(2, 0.1) if d == 2 else np.diag([1.05, 0.95, 1.0])
    shift = np.array([2.0, -1, 3])[:d] + away
    a = LinearTransform.make(matrix, shift, fixed.centre) if linear else LinearTransform.identity(d)
    around = Geometry.make([n + 8 for n in grid.size], grid.spacing, grid.index_to_physical([-4] * d), grid.direction)
    report = Report(
        preset="by hand", similarity_start=0.25, similarity=float("nan"), folded_percent=0.0,
        trace=(Iteration(0, 0, 0.25, 0.75, 1.0),), seconds={"total": np.float32(1.5)},  # type: ignore[dict-item]
    )  # fmt: skip
    return RegistrationResult(f, m, a, u, u.inverse(around, tolerance=1e-3), report=report)


@dataclass(frozen=True)
class EverywhereOne:
    """A trained field that moves every point by 1 mm along each axis."""

    geometry: Geometry
    device: torch.device = torch.device("cpu")

    def displacement(self, points: np.ndarray, inverse: bool = False) -> np.ndarray:
        return np.full_like(points, -1.0 if inverse else 1.0)


def inner_points(result: RegistrationResult, margin: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(2)
    size = np.asarray(result.fixed.geometry.size)
    return result.fixed.geometry.index_to_physical(rng.uniform(margin, size - 1 - margin, (200, len(size))))


def mapped_by(transform: Any, points: np.ndarray) -> np.ndarray:
    return np.array([list(transform.TransformPoint(p.tolist())) for p in points])


def by_itk(result: RegistrationResult, transform: Any) -> np.ndarray:
    import itk

    fixed = result.fixed.geometry
    out = itk.resample_image_filter(
        to_itk(result.moving.array, result.moving.geometry),
        transform=transform,
        reference_image=to_itk(np.zeros(fixed.shape, np.float32), fixed),
        use_reference_image=True,
    )
    return np.asarray(out)


@BOTH
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("linear", [True, False])
def test_every_route_resamples_alike(d: int, step: int, linear: bool, tmp_path: Path) -> None:
    result = made(d, step=step, linear=linear)
    paths = result.save(tmp_path / "x_")
    own = result.warped_array
    assert own.std() > 10
    f, m = (to_sitk(v.array, v.geometry) for v in (result.fixed, result.moving))
    by_sitk = sitk.GetArrayFromImage(sitk.Resample(m, f, sitk.ReadTransform(str(paths["composite"])), sitk.sitkLinear))
    # A thousandth of the intensity range, which is about 100.
    np.testing.assert_allclose(by_sitk, own, atol=0.1)
    np.testing.assert_allclose(by_itk(result, result.transform), own, atol=0.1)
    np.testing.assert_allclose(by_itk(result, result.composite), own, atol=0.1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(paths["warped"]))), own)


@BOTH
def test_points_and_inverses(d: int) -> None:
    result = made(d)
    p = inner_points(result)
    q = result.transform_points(p)
    assert np.linalg.norm(q - p, axis=-1).max() > 2
    for transform in (result.transform, result.composite):
        np.testing.assert_allclose(mapped_by(transform, p), q, atol=1e-4)
    voxel = min(result.fixed.geometry.spacing)
    np.testing.assert_allclose(result.transform_points(q, inverse=True), p, atol=0.05 * voxel)
    for transform in (
        result.inverse_transform,
        result.inverse_composite,
        result.transform.GetInverseTransform(),
        result.inverse_transform.GetInverseTransform().GetInverseTransform(),
    ):
        np.testing.assert_allclose(mapped_by(transform, q), p, atol=0.05 * voxel)
    np.testing.assert_allclose(mapped_by(result.inverse_transform.GetInverseTransform(), p), q, atol=1e-4)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1, 2), (1,)], r"points are real numbers of shape \(N, 2\), and these are not"),
        ([("a", 2)], "points are real numbers"),
        (["ab"], "points are real numbers"),
        ([(1 + 2j, 3)], "they are of type complex128"),
        ([(1, None)], "1 of the points have a coordinate that is NaN"),
        ([(1.0, np.nan), (2, 3), (np.inf, 1)], "2 of the points have a coordinate that is NaN or infinite"),
        ([(1, 2, 3)], r"points have shape \(N, 2\), got \(1, 3\)"),
        ((1, 2), r"points have shape \(N, 2\), got \(2,\)"),
    ],
)
def test_points_that_cannot_be(points: Any, message: str) -> None:
    result = made(2)
    for inverse in (False, True):
        with pytest.raises(InputError, match=message):
            result.transform_points(points, inverse)
    if points == (1, 2):  # one point, which these take
        return
    assert result.displacement is not None
    for map_ in (result.mapping.map, result.affine.map, result.displacement.map, result.displacement.displacement):
        with pytest.raises(InputError, match=message.replace("N,", r"\.\.\.,")):
            map_(points)


def test_no_points_are_no_points() -> None:
    result = made(2)
    for nothing in ([], np.zeros((0, 2))):
        for map_ in (result.transform_points, result.mapping.map, result.affine.map):
            assert map_(nothing).shape == (0, 2)


@BOTH
def test_one_grid_covers_fixed_space_and_its_image(d: int) -> None:
    import itk

    result = made(d)
    field = result.transform.GetDisplacementField()
    assert type(result.transform) is type(itk.DisplacementFieldTransform[itk.D, d].New())
    grid = load_image(itk.image_from_array(np.zeros(tuple(field.GetLargestPossibleRegion().GetSize())[::-1])), "x")
    covered = Geometry.make(
        grid.geometry.size, tuple(field.GetSpacing()), tuple(field.GetOrigin()), result.fixed.geometry.direction
    )
    nodes = result.fixed.geometry.grid().reshape(-1, d)
    assert covered.contains(nodes).all()
    assert covered.contains(result.mapping.map(nodes)).all()
    assert np.prod(covered.size) < 4 * np.prod(result.fixed.geometry.size)


def test_spaces_far_apart_keep_two_grids() -> None:
    result = made(3, away=900.0)
    p = inner_points(result)
    q = result.transform_points(p)
    with pytest.warns(UserWarning, match="too far apart"):
        forward = result.transform
    assert forward.GetInverseDisplacementField() is None
    np.testing.assert_allclose(mapped_by(forward, p), q, atol=1e-3)
    np.testing.assert_allclose(mapped_by(result.inverse_transform, q), p, atol=0.06)


def test_continuous_map_is_preferred_where_there_is_one() -> None:
    result = made(2)
    grid = result.fixed.geometry
    moved = replace(result, field=NeuralField("by hand", EverywhereOne(grid), result.affine, Frame.plain(grid)))
    there = result.affine.map([[2.0, 3.0]])
    np.testing.assert_array_equal(moved.transform_points([[1.0, 2.0]]), there)
    assert np.abs(result.transform_points([[1.0, 2.0]]) - there).max() > 0.1
    np.testing.assert_array_equal(
        moved.transform_points([[1.0, 2.0]], inverse=True), result.mapping.inverse().map([[1.0, 2.0]])
    )
    for wrong in ([1.0, 2.0], [[1.0, 2.0, 3.0]]):
        with pytest.raises(InputError, match=r"\(N, 2\)"):
            result.transform_points(wrong)


@pytest.mark.parametrize(("kind", "module"), [("itk", "itk"), ("sitk", "SimpleITK"), ("path", "itk")])
def test_images_are_of_the_kind_that_came_in(kind: str, module: str) -> None:
    result = made(2, kind)
    for image, array in (
        (result.warped, result.warped_array),
        (result.jacobian_determinant(), result.jacobian_array),
    ):
        assert type(image).__module__.startswith(module)
        volume = load_image(image, "image")
        assert volume.geometry.same_grid(result.fixed.geometry)
        np.testing.assert_array_equal(volume.array, array)
    assert result.warped is result.warped


@BOTH
@pytest.mark.parametrize("hand", [1, -1])
def test_jacobian_is_right_for_any_direction(d: int, hand: int) -> None:
    direction = permuted(d, 0.9)
    direction[:, 0] *= hand
    grid = Geometry.make([12, 10, 9][:d], [1.5, 0.7, 2.0][:d], [-3, 8, 5][:d], direction)
    image = Volume(np.zeros(grid.shape, np.float32), grid, "fixed image", "sitk", np.dtype(np.float32))
    # A linear displacement: the determinant is known and central differences are exact.
    g = np.random.default_rng(3).normal(size=(d, d)) * 0.2
    field = DisplacementField(grid, ((grid.grid() - grid.centre) @ g.T).astype(np.float32))
    a = LinearTransform.make(np.eye(d) * 1.1, [300.0] * d)
    result = RegistrationResult(image, image, a, field)
    wanted = np.linalg.det(np.eye(d) + g) * 1.1**d
    np.testing.assert_allclose(result.jacobian_array, wanted, rtol=2e-3)


def test_saved_files(tmp_path: Path) -> None:
    result = made(3)
    paths = result.save(f"{tmp_path}/new/deep/")
    assert {key: path.name for key, path in paths.items()} == {
        "warped": "Warped.nii.gz",
        "composite": "Composite.h5",
        "inverse_composite": "InverseComposite.h5",
        "report": "report.json",
    }
    assert sorted(p.name for p in (tmp_path / "new" / "deep").iterdir()) == sorted(p.name for p in paths.values())
    report = json.loads(paths["report"].read_text())
    assert report["metrics"] == result.report.as_dict()
    assert report["metrics"]["seconds"] == {"total": 1.5}
    assert report["metrics"]["similarity"] is None
    assert report["metrics"]["trace"][0] == {
        "level": 0, "iteration": 0, "metric": 0.25, "loss": 0.75, "learning_rate": 1.0
    }  # fmt: skip
    assert report["fixed"] == "fixed image"
    p = inner_points(result)
    np.testing.assert_allclose(read_h5(paths["composite"]).map(p), result.mapping.map(p), atol=2e-5)
    q = result.mapping.map(p)
    np.testing.assert_allclose(read_h5(paths["inverse_composite"]).map(q), result.mapping.inverse().map(q), atol=2e-5)
    warped = load_image(paths["warped"], "warped")
    assert warped.geometry.same_grid(result.fixed.geometry)


@pytest.mark.parametrize(
    "where",
    [
        "itk_nir.saving.save_image",
        "itk_nir.transforms.formats.itk_h5.write_h5",
        "itk_nir.saving.json.dumps",
        "os.replace",
    ],
)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_nothing(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    result = made(2)
    real = os.replace
    calls = []

    def broken(*args: Any, **options: Any) -> None:
        calls.append(args)
        # The first two of the four renames at the end still work.
        if where.endswith("os.replace") and len(calls) < 3:
            real(*args)
            return
        raise error

    monkeypatch.setattr(where, broken)
    with pytest.raises(type(error)):
        result.save(tmp_path / "new" / "x_")
    assert list(tmp_path.iterdir()) == []


# --- made of its parts -----------------------------------------------------------------------------------------------


@BOTH
def test_map_is_made_of_the_parts(d: int) -> None:
    """``T(A(p + u(p)))``, and back; each part may be missing."""
    whole = made(d)
    p = inner_points(whole)
    grid = whole.fixed.geometry
    assert whole.displacement is not None
    assert whole.inverse_displacement is not None
    u = whole.displacement
    start = LinearTransform.make(turned(d, 0.3), [5.0, -7.0, 3.0][:d], grid.centre)
    bend = DisplacementField(grid, (0.5 * smooth(grid.grid() - grid.centre)).astype(np.float32))
    initial = CompositeTransform((bend, start), (start.inverse(), bend.inverse()))
    bent = replace(whole, initial=initial)
    np.testing.assert_allclose(bent.mapping.map(p), start.map(bend.map(whole.affine.map(u.map(p)))), atol=1e-9)
    back = bent.mapping.inverse().map(bent.mapping.map(p))
    np.testing.assert_allclose(back, p, atol=0.1 * min(grid.spacing))
    linear = RegistrationResult(whole.fixed, whole.moving, whole.affine)
    np.testing.assert_allclose(linear.mapping.map(p), whole.affine.map(p), atol=1e-9)
    np.testing.assert_allclose(linear.mapping.inverse().map(linear.mapping.map(p)), p, atol=1e-9)
    assert [type(t) for t in linear.mapping.transforms] == [LinearTransform]
    # Without its inverse, that of the displacement is found.
    half = replace(whole, inverse_displacement=None)
    np.testing.assert_allclose(half.mapping.inverse().map(half.mapping.map(p)), p, atol=0.05 * min(grid.spacing))
    assert whole.mapping is whole.mapping


def test_repr_is_three_lines() -> None:
    result = made(3)
    lines = repr(result).splitlines()
    assert len(lines) == 3
    assert lines[0] == "RegistrationResult(fixed 29x25x21, moving 46x44x48"
    assert lines[1] == "  displacement on 29x25x21, affine"
    assert lines[2].startswith("  preset 'by hand', similarity 0.2500 to nan, folds 0.0000 %, 1.5 s)")
    linear = RegistrationResult(result.fixed, result.moving, result.affine, initial=result.mapping)
    assert repr(linear).splitlines()[1] == "  affine, initial transform"
    assert len(repr(linear).splitlines()) == 3


def test_old_names_warn_and_work(tmp_path: Path) -> None:
    result = made(2)
    with pytest.warns(DeprecationWarning, match=r"RegistrationResult\.metrics is called \.report since 0\.2") as told:
        metrics = result.metrics
    assert told[0].filename == __file__
    assert metrics["linear_matrix"] == metrics["affine_matrix"] == result.report.affine_matrix
    assert {"bake_spacing_voxels", "bake_error_voxels", "similarity_start"} <= set(metrics)
    assert result.report.as_dict().items() <= metrics.items()
    with pytest.warns(DeprecationWarning, match=r"\.chain is called \.mapping"):
        assert result.chain is result.mapping
    with pytest.warns(DeprecationWarning, match=r"\.network is called \.field"):
        assert result.network is result.field
    with pytest.warns(DeprecationWarning, match=r"\.save_network is called \.save_field"), pytest.raises(InputError):
        result.save_network(tmp_path / "n.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert result.report.preset == "by hand"
        assert result.mapping.dimension == 2


def test_a_linear_map_has_no_field_to_save(tmp_path: Path) -> None:
    result = made(2)
    with pytest.raises(InputError, match="linear map"):
        RegistrationResult(result.fixed, result.moving, result.affine).save_field(tmp_path / "n.safetensors")
    assert not list(tmp_path.iterdir())

"""A result made by hand: every way out of it gives one and the same map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, to_itk, to_sitk
from itk_nir.result import RegistrationResult
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform, compose
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
    bake = Geometry.make(
        [(n - 1) // step + 1 for n in fixed.size], np.asarray(fixed.spacing) * step, fixed.origin, fixed.direction
    )
    u = DisplacementField(bake, smooth(bake.grid() - fixed.centre).astype(np.float32))
    matrix = turned(2, 0.1) if d == 2 else np.diag([1.05, 0.95, 1.0])
    shift = np.array([2.0, -1, 3])[:d] + away
    a = LinearTransform.make(matrix, shift, fixed.centre) if linear else LinearTransform.identity(d)
    around = Geometry.make(
        [n + 8 for n in bake.size],
        bake.spacing,
        bake.index_to_physical([-4] * d),
        bake.direction,
    )
    chain = compose(CompositeTransform((u,), (u.inverse(around, tolerance=1e-3),)), a)
    return RegistrationResult(f, m, chain, {"seconds": np.float32(1.5), "folds": 0, "trace": [0.1, np.nan]})


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
    assert covered.contains(result.chain.map(nodes)).all()
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
    moved = RegistrationResult(result.fixed, result.moving, result.chain, {}, lambda p: p + 1)
    np.testing.assert_array_equal(moved.transform_points([[1.0, 2.0]]), [[2, 3]])
    np.testing.assert_array_equal(
        moved.transform_points([[1.0, 2.0]], inverse=True), result.chain.inverse().map([[1.0, 2.0]])
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
    result = RegistrationResult(image, image, CompositeTransform((field, a)), {})
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
    assert report["metrics"] == {"seconds": 1.5, "folds": 0, "trace": [0.1, None]}
    assert report["fixed"] == "fixed image"
    p = inner_points(result)
    np.testing.assert_allclose(read_h5(paths["composite"]).map(p), result.chain.map(p), atol=2e-5)
    q = result.chain.map(p)
    np.testing.assert_allclose(read_h5(paths["inverse_composite"]).map(q), result.chain.inverse().map(q), atol=2e-5)
    warped = load_image(paths["warped"], "warped")
    assert warped.geometry.same_grid(result.fixed.geometry)


@pytest.mark.parametrize(
    "where",
    [
        "itk_nir.result.save_image",
        "itk_nir.transforms.formats.itk_h5.write_h5",
        "itk_nir.result.json.dumps",
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
        # The renames of single writers and the first two of the four at the end still work.
        if where.endswith("os.replace") and len(calls) < 6:
            real(*args)
            return
        raise error

    monkeypatch.setattr(where, broken)
    with pytest.raises(type(error)):
        result.save(tmp_path / "new" / "x_")
    assert list(tmp_path.iterdir()) == []

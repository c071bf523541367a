"""Interpolations by name: the native op against NumPy and against SimpleITK, for lists of transforms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir import interpolating, interpolation_reference
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.interpolating import (
    NAMES,
    OF_LABELS,
    Interpolation,
    displacement_on,
    interpolated,
    interpolation_named,
)
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.listed import Listed, listed

SHAPES = {2: (17, 21), 3: (9, 12, 13)}
BOTH = pytest.mark.parametrize("d", [2, 3])
EVERY = {
    **NAMES,
    **{f"spline {order}": Interpolation("bspline", order=order) for order in range(6)},
    "blackman": Interpolation("sinc", window="blackman"),
    "wide": Interpolation("gaussian", sigma=(2.5,), alpha=2.5),
    "few votes": Interpolation("label-gaussian", sigma=(0.3,), alpha=0.7),
}


def case(d: int) -> tuple[Geometry, Geometry, CompositeTransform, np.random.Generator]:
    """Grid of an image, another grid, and a map of three parts between them."""
    rng = np.random.default_rng(d)
    source = Geometry.make(SHAPES[d][::-1], [1, 1.5, 2][:d], [3, -4, 7][:d])
    target = Geometry.make([n + 2 for n in source.size], [1.1, 1.3, 1.7][:d], [2, -3, 6][:d])
    grid = Geometry.make([9] * d, [3] * d, [0, -6, 4][:d])
    a, b = (
        LinearTransform.make(np.eye(d) + rng.normal(size=(d, d)) / 20, rng.normal(size=d), source.centre) for _ in "ab"
    )
    field = DisplacementField(grid, rng.normal(size=(*grid.shape, d)).astype(np.float32))
    return source, target, CompositeTransform((a, field, b)), rng


@BOTH
@pytest.mark.parametrize("name", EVERY)
def test_native_and_numpy_are_one(d: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, chain, rng = case(d)
    how = EVERY[name]
    labels = how.kind in OF_LABELS
    array = rng.integers(0, 4, source.shape).astype(np.int16) if labels else rng.random(source.shape)
    one = interpolated(array, source, chain, target, how, -3, threads=1)
    assert np.array_equal(one, interpolated(array, source, chain, target, how, -3, threads=2))
    monkeypatch.setattr(interpolating, "native_module", lambda: None)
    other = interpolated(array, source, chain, target, how, -3)
    assert one.dtype == other.dtype == (array.dtype if labels else np.float32)
    assert 0.05 < (one == -3).mean() < 0.9
    np.testing.assert_allclose(one, other, atol=0 if labels else 3e-6)


@BOTH
@pytest.mark.parametrize("on_grid", [True, False])
def test_one_field_for_all_is_that_of_numpy(d: int, on_grid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first field lies on the grid that is asked for, and so is read voxel by voxel."""
    _, target, chain, rng = case(d)
    if on_grid:
        first = DisplacementField(target, rng.normal(size=(*target.shape, d)).astype(np.float32))
        chain = CompositeTransform((first, *chain.transforms))
    one = displacement_on(chain, target, threads=1).vectors
    assert np.array_equal(one, displacement_on(chain, target, threads=2).vectors)
    wanted = chain.displacement_on(target).vectors
    np.testing.assert_allclose(one, wanted, atol=3e-6 * np.abs(wanted).max())
    monkeypatch.setattr(interpolating, "native_module", lambda: None)
    assert np.array_equal(displacement_on(chain, target).vectors, wanted)
    with pytest.raises(InputError, match="no displacement"):
        displacement_on(chain, Geometry.make([4] * (5 - d)))


@BOTH
def test_a_first_field_on_the_grid_is_read_as_any_other(d: int) -> None:
    """A hair beside the grid it is interpolated; a whole voxel beside it it is another field."""
    source, target, _, rng = case(d)
    vectors = rng.normal(size=(*target.shape, d)).astype(np.float32)
    array = rng.random(source.shape)
    seen = []
    for shift in (0.0, 1e-5, 1.0):
        grid = Geometry.make(target.size, target.spacing, np.asarray(target.origin) + shift, target.rotation)
        chain = CompositeTransform((DisplacementField(grid, vectors),))
        seen.append(interpolated(array, source, chain, target, NAMES["bspline"], 0))
    inside = (seen[0] != 0) & (seen[1] != 0)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(seen[0][inside], seen[1][inside], atol=1e-3)
    assert np.abs(seen[0] - seen[2])[inside].mean() > 0.05


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u4", "f4", "i8", "f8", ">i2", ">f8"])
def test_nearest_keeps_every_type(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, chain, rng = case(3)
    array = (rng.integers(0, 2, source.shape) if dtype == "?" else rng.integers(0, 100, source.shape)).astype(dtype)
    one = interpolated(array, source, chain, target, NAMES["nearest"], 1)
    assert one.dtype == array.dtype
    monkeypatch.setattr(interpolating, "native_module", lambda: None)
    assert np.array_equal(one, interpolated(array, source, chain, target, NAMES["nearest"], 1))
    assert (one == 1).any()
    assert not (one == 1).all()


@BOTH
@pytest.mark.parametrize("order", range(1, 6))
def test_splines_of_simpleitk(d: int, order: int) -> None:
    source, target, chain, rng = case(d)
    array = rng.random(source.shape).astype(np.float32)
    linear = chain.transforms[0]
    assert isinstance(linear, LinearTransform)
    transform = sitk.AffineTransform(d)
    transform.SetMatrix(linear.matrix[:d, :d].ravel())
    transform.SetTranslation(linear.matrix[:d, d])
    kind = getattr(sitk, f"sitkBSpline{order}")
    wanted = sitk.GetArrayFromImage(
        sitk.Resample(
            to_sitk(array, source), to_sitk(np.zeros(target.shape, np.float32), target), transform, kind, -1.0
        )
    )
    found = interpolated(array, source, CompositeTransform((linear,)), target, Interpolation("bspline", order), -1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_splines_pass_through_the_voxels() -> None:
    source, _, _, rng = case(3)
    array = rng.random(source.shape).astype(np.float32)
    still = CompositeTransform((LinearTransform.identity(3),))
    for order in range(6):
        found = interpolated(array, source, still, source, Interpolation("bspline", order))
        np.testing.assert_allclose(found, array, atol=1e-5)
    coefficients = interpolation_reference.spline_coefficients(np.full((5, 1, 4), 3.0), 5)
    np.testing.assert_allclose(coefficients, 3.0, atol=1e-12)


def test_votes_are_those_of_smoothed_labels() -> None:
    """MultiLabel is what the largest of all labels' images is, each smoothed by itself."""
    source, target, chain, rng = case(3)
    array = rng.integers(0, 3, source.shape)
    for votes, smooth in (("label", Interpolation("gaussian", alpha=4.0)), ("label-linear", NAMES["linear"])):
        found = interpolated(array, source, chain, target, NAMES[votes], -1)
        each = [interpolated(array == k, source, chain, target, smooth, -1) for k in range(3)]
        assert np.array_equal(found, np.where(each[0] < 0, -1, np.argmax(each, axis=0)))


def test_labels_beyond_float32_are_kept() -> None:
    source, target, chain, rng = case(2)
    array = rng.integers(0, 3, source.shape) + 2**40
    for name in ("nearest", "label", "label-linear"):
        found = interpolated(array, source, chain, target, NAMES[name], 7)
        small = interpolated(array - 2**40, source, chain, target, NAMES[name], -1)
        assert found.dtype == np.int64
        assert np.array_equal(found, np.where(small < 0, 7, small + 2**40))


def test_votes_beside_large_regions_of_one_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native op answers without a vote in blocks of 8 voxels that have one label as far as a vote reaches."""
    rng = np.random.default_rng(0)
    grid = Geometry.make([72, 72])
    array = np.kron(rng.integers(0, 3, (9, 9)), np.ones((8, 8), np.uint8)).astype(np.uint8)
    array[:32, :32] = 7
    moved = CompositeTransform((LinearTransform.make(np.eye(2), [0.4, -0.45]),))
    found = interpolated(array, grid, moved, grid, NAMES["label"])
    nearest = interpolated(array, grid, moved, grid, NAMES["nearest"])
    monkeypatch.setattr(interpolating, "native_module", lambda: None)
    assert np.array_equal(found, interpolated(array, grid, moved, grid, NAMES["label"]))
    assert 20 < (found != nearest).sum() < 400


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: interpolation_named("cubic"), "interpolation must be one of auto, linear"),
        (lambda: Interpolation("bspline", order=6), "0 to 5"),
        (lambda: Interpolation("gaussian", sigma=(0.0,)), "above 0"),
        (lambda: Interpolation("gaussian", alpha=float("nan")), "above 0"),
        (lambda: Interpolation("gaussian", sigma=(1.0, 1.0)).sigma_in_voxels([1, 1, 1]), "sigma has 2 numbers"),
    ],
)
def test_what_cannot_be_used_is_named(make: object, what: str) -> None:
    with pytest.raises(OptionError, match=what):
        make()  # type: ignore[operator]


def test_apply_takes_the_names_and_the_lists_of_ants(tmp_path: object) -> None:
    source, target, chain, rng = case(2)
    first = chain.transforms[0]
    assert isinstance(first, LinearTransform)
    labels = to_sitk(rng.integers(0, 4, source.shape).astype(np.uint8), source)
    matrix = sitk.AffineTransform(2)
    matrix.SetMatrix(first.matrix[:2, :2].ravel())
    matrix.SetTranslation(first.matrix[:2, 2])
    file = f"{tmp_path}/a.mat"
    sitk.WriteTransform(matrix, file)
    wanted = interpolated(
        sitk.GetArrayFromImage(labels), source, CompositeTransform((first.inverse(),)), target, NAMES["label"]
    )
    for listed_ in (f"[{file},1]", ["identity", f"[ {file} , 1 ]"], [np.eye(3), f"[{file},true]"]):
        found = itk_nir.apply(labels, listed_, target, interpolation="label", fill=0)
        assert np.array_equal(sitk.GetArrayFromImage(found), wanted)
    assert not np.array_equal(
        sitk.GetArrayFromImage(itk_nir.apply(labels, f"[{file},0]", target, interpolation="label")), wanted
    )
    with pytest.raises(InputError, match="of no known dimension"):
        itk_nir.load_transform("identity")
    with pytest.raises(InputError, match=r"give a file, \[file,1\]"):
        itk_nir.load_transform(f"[{file},2]")


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert listed("[a.mat,1]") == Listed("a.mat", inverse=True)
    sitk.WriteTransform(sitk.AffineTransform(2), "a.mat")
    (tmp_path / "[a.mat,1]").write_bytes((tmp_path / "a.mat").read_bytes())  # type: ignore[operator]
    assert listed("[a.mat,1]") == Listed("[a.mat,1]")

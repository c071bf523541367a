"""`apply`: an image through whatever holds a transform, onto whatever names a grid."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, save_image, to_itk, to_sitk
from itk_nir.resample import resample_array
from itk_nir.result import RegistrationResult
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.as_simpleitk import to_sitk as transform_to_sitk
from tests.grids import permuted, turned

BOTH = pytest.mark.parametrize("d", [2, 3])


def made(d: int) -> RegistrationResult:
    """A result by hand on unlike oblique grids; its field reaches beyond the fixed image, so that it has an inverse."""
    fixed = Geometry.make([24, 21, 17][:d], [1.1, 1.7, 2.3][:d], [-40, 25, 90][:d], permuted(d, 0.4))
    moving = Geometry.make([40, 30, 35][:d], [1.0, 1.4, 1.2][:d], [0] * d, permuted(d, -0.7))
    moving = Geometry.make(moving.size, moving.spacing, fixed.centre - moving.centre, moving.direction)
    images = [
        Volume((50 + 50 * np.sin((g.grid() - g.centre) @ np.array([0.4, 0.3, 0.2])[:d])).astype(np.float32), g, name,
               "sitk", np.dtype(np.float32))
        for g, name in ((fixed, "fixed image"), (moving, "moving image"))
    ]  # fmt: skip
    waves = np.random.default_rng(0).normal(size=(d, d)) / 8
    around = Geometry.make(
        [n + 8 for n in fixed.size], fixed.spacing, fixed.index_to_physical([-4] * d), fixed.direction
    )
    field = DisplacementField(around, (2 * np.sin((around.grid() - fixed.centre) @ waves)).astype(np.float32))
    a = LinearTransform.make(turned(d, 0.1) if d == 2 else np.diag([1.05, 0.95, 1.0]), [2, -1, 3][:d], fixed.centre)
    return RegistrationResult(images[0], images[1], a, field, field.inverse(around, tolerance=1e-3))


def moving_of(result: RegistrationResult) -> sitk.Image:
    return to_sitk(result.moving.array, result.moving.geometry)


def pixels(image: Any) -> np.ndarray:
    return load_image(image, "image").array


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "kind",
    ["result", "mapping", "itk", "itk composite", "sitk", "path", "path text", "list", "list of files", "parts"],
)
def test_whatever_holds_the_transform(d: int, kind: str, tmp_path: Path) -> None:
    result = made(d)
    wanted = result.warped_array
    reference = None if kind == "result" else to_sitk(result.fixed.array, result.fixed.geometry)
    given: Any
    if kind.startswith("path") or kind == "list of files":
        files = result.save(tmp_path / "a_", "ants" if kind == "list of files" else "itk")
        given = [files["warp"], files["affine"]] if kind == "list of files" else files["composite"]
        given = str(given) if kind == "path text" else given
    else:
        given = {
            "result": lambda: result,
            "mapping": lambda: result.mapping,
            "itk": lambda: result.transform,
            "itk composite": lambda: result.composite,
            "sitk": lambda: transform_to_sitk(result.mapping),
            "list": lambda: [result.displacement, result.affine],
            "parts": lambda: [CompositeTransform((result.displacement,)), result.affine.matrix],
        }[kind]()
    out = itk_nir.apply(moving_of(result), given, reference)
    assert isinstance(out, sitk.Image)
    assert load_image(out, "out").geometry.same_grid(result.fixed.geometry)
    np.testing.assert_allclose(pixels(out), wanted, atol=1e-3)


@BOTH
def test_inverse_goes_back(d: int) -> None:
    """The fixed image onto the moving image's grid."""
    result = made(d)
    fixed = to_sitk(result.fixed.array, result.fixed.geometry)
    out = itk_nir.apply(fixed, result, inverse=True, fill=0)
    assert load_image(out, "out").geometry.same_grid(result.moving.geometry)
    wanted = resample_array(
        result.fixed.array, result.fixed.geometry, result.mapping.inverse(), result.moving.geometry, "linear"
    )
    np.testing.assert_array_equal(pixels(out), wanted)
    # There and back is where it began, to the two interpolations; the wrong direction would be far off.
    again = pixels(itk_nir.apply(out, result, fill=0))
    inner = np.all([(i > 4) & (i < n - 5) for i, n in zip(np.indices(again.shape), again.shape, strict=True)], axis=0)
    assert np.abs(again - result.fixed.array)[inner].mean() < 4
    wrong = pixels(itk_nir.apply(itk_nir.apply(fixed, result, result.moving.geometry, fill=0), result, fill=0))
    assert np.abs(wrong - result.fixed.array)[inner].mean() > 12
    # By the transform itself the grid is the image's own, or what is given.
    own = itk_nir.apply(fixed, result.mapping, inverse=True)
    assert load_image(own, "out").geometry.same_grid(result.fixed.geometry)
    given = itk_nir.apply(fixed, result.mapping, result.moving.geometry, inverse=True, fill=0)
    np.testing.assert_array_equal(pixels(given), wanted)


@BOTH
def test_reference_grids(d: int, tmp_path: Path) -> None:
    result = made(d)
    moving = moving_of(result)
    grid = Geometry.make([9, 8, 7][:d], [3.0] * d, result.fixed.geometry.centre - 12)
    wanted = resample_array(result.moving.array, result.moving.geometry, result.mapping, grid, "linear")
    empty = np.zeros(grid.shape, np.float32)
    save_image(empty, grid, tmp_path / "grid.mha")
    for reference in (
        grid,
        to_sitk(empty, grid),
        to_itk(empty, grid),
        tmp_path / "grid.mha",
        str(tmp_path / "grid.mha"),
    ):
        out = itk_nir.apply(moving, result, reference)
        np.testing.assert_allclose(pixels(out), wanted, atol=1e-4)
        assert load_image(out, "out").geometry.same_grid(grid)
    # Left out: the fixed image's for a result, the image's own for anything else.
    assert load_image(itk_nir.apply(moving, result), "out").geometry.same_grid(result.fixed.geometry)
    assert load_image(itk_nir.apply(moving, result.mapping), "out").geometry.same_grid(result.moving.geometry)


@pytest.mark.parametrize(("kind", "module"), [("itk", "itk"), ("sitk", "SimpleITK"), ("path", "itk")])
def test_image_is_of_the_kind_that_came_in(kind: str, module: str, tmp_path: Path) -> None:
    result = made(3)
    labels = np.digitize(result.moving.array, [30, 60]).astype(np.uint16)
    image: Any = tmp_path / "labels.mha"
    if kind == "path":
        save_image(labels, result.moving.geometry, image)
    else:
        image = (to_itk if kind == "itk" else to_sitk)(labels, result.moving.geometry)
    out = itk_nir.apply(image, result)
    assert type(out).__module__.startswith(module)
    volume = load_image(out, "out", native=True)
    assert volume.pixel_type == np.uint16
    wanted = resample_array(labels, result.moving.geometry, result.mapping, result.fixed.geometry, "nearest")
    np.testing.assert_array_equal(volume.array, wanted)
    smooth = load_image(itk_nir.apply(image, result, interpolation="linear"), "out", native=True)
    assert smooth.pixel_type == np.uint16
    floats = itk_nir.apply(image, result, interpolation="linear", pixel_type="float")
    assert load_image(floats, "out", native=True).pixel_type == np.float32
    np.testing.assert_allclose(smooth.array, np.rint(pixels(floats)))


def test_default_value_and_interpolation() -> None:
    result = made(2)
    out = pixels(itk_nir.apply(moving_of(result), result, fill=-7.0))
    outside = out == -7
    assert 0 < outside.sum() < outside.size
    # Left out, it is the background, which has no value of its own here: the least of all.
    np.testing.assert_array_equal(result.warped_array == result.moving.array.min(), outside)
    with pytest.warns(DeprecationWarning, match="is called fill since 0.2"):
        old = pixels(itk_nir.apply(moving_of(result), result, default=-7.0))
    np.testing.assert_array_equal(old, out)
    with pytest.raises(OptionError, match="old name of fill"), pytest.warns(match="is called fill"):
        itk_nir.apply(moving_of(result), result, default=-7.0, fill=1)
    cubic = pixels(itk_nir.apply(moving_of(result), result, interpolation="bspline"))
    assert 0 < np.abs(cubic - result.warped_array).mean() < 2
    with pytest.raises(OptionError, match="interpolation must be one of"):
        itk_nir.apply(moving_of(result), result, interpolation="cubic")  # type: ignore[arg-type]


def test_threads_change_no_bit() -> None:
    result = made(3)
    one, two = (pixels(itk_nir.apply(moving_of(result), result, threads=t)) for t in (1, 2))
    np.testing.assert_array_equal(one, two)
    for wrong in (0, True, 1.0):
        with pytest.raises(OptionError, match="threads is a whole number"):
            itk_nir.apply(moving_of(result), result, threads=wrong)  # type: ignore[arg-type]


def test_what_cannot_be_applied(tmp_path: Path) -> None:
    result = made(2)
    for wrong in (3, "no_such_file.h5", tmp_path / "none.safetensors", None):
        with pytest.raises(InputError):
            itk_nir.apply(moving_of(result), wrong)
    with pytest.raises(InputError, match="is 3D, its transform 2D"):
        itk_nir.apply(moving_of(made(3)), result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inverse": "no"}, "inverse is True or False, got 'no'"),
        ({"inverse": 1}, "inverse is True or False, got 1"),
        ({"resample_shear": "no"}, "resample_shear is True or False"),
        ({"convention": ["ras"]}, r"convention is one of .*, got \['ras'\]"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    result = made(2)
    with pytest.raises(OptionError, match=message):
        itk_nir.apply(moving_of(result), np.eye(3), **options)
    itk_nir.apply(moving_of(result), np.eye(3), inverse=np.bool_(True))  # type: ignore[arg-type]


def test_flags_of_a_result_are_no_words() -> None:
    with pytest.raises(OptionError, match="inverse is True or False, got 'no'"):
        made(2).transform_points([[0.0, 0.0]], inverse="no")  # type: ignore[arg-type]


def test_trained_field_and_its_file(tmp_path: Path) -> None:
    grid = made(2).fixed.geometry
    fixed, moving = (np.sin((grid.grid() - s) / 4.0).sum(-1).astype(np.float32) for s in (0.0, 0.8))
    settings = itk_nir.make_settings("fast", iterations=4, max_interpolation_error=0.05)
    result = itk_nir.register(
        to_sitk(fixed, grid), to_sitk(moving, grid), preset=settings, linear="none", threads=1, device="cpu"
    )
    image = to_sitk(moving, grid)
    wanted = pixels(itk_nir.apply(image, result))
    np.testing.assert_allclose(wanted, result.warped_array, atol=1e-6)
    path = result.save_field(tmp_path / "a.safetensors")
    with pytest.raises(OptionError, match="inverse is True or False"):
        result.field.displacement([[0.0, 0.0]], inverse="no")
    for wrong in (None, 3, b"a.safetensors"):
        for use in (result.save_field, itk_nir.load_field):
            with pytest.raises(InputError, match="no name of a file; give text or a path"):
                use(wrong)  # type: ignore[arg-type]
    assert np.abs(wanted - moving).max() > 0.05
    for given in (result.field, path, str(path)):
        np.testing.assert_allclose(pixels(itk_nir.apply(image, given)), wanted, atol=1e-4)
    # In a list it is one part of many, in the order in which they meet a fixed point.
    shift = np.array([[1, 0, 5.0], [0, 1, 0], [0, 0, 1]])
    p = grid.grid().reshape(-1, 2)
    for given in ([result, shift], [path, shift], [result.field, LinearTransform(shift)]):
        there = itk_nir.load_transform(given).map(p)
        np.testing.assert_allclose(there, itk_nir.load_transform(path).map(p) + shift[:2, 2], atol=1e-4)


@pytest.mark.slow
def test_function_is_not_hidden_by_a_module() -> None:
    """Whoever imports a module first, ``itk_nir.apply`` is the function."""
    for name in itk_nir.__all__:
        assert importlib.util.find_spec(f"itk_nir.{name}") is None, name
    program = "from itk_nir.applying import apply\nimport itk_nir\nassert itk_nir.apply is apply"
    root = str(Path(itk_nir.__file__).resolve().parents[1])
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)

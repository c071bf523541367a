"""One image through one chain: the same numbers as ITK's, SimpleITK's and ANTs' resamplers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.applying import apply
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, like, load_image, to_itk, to_sitk
from itk_nir.resample import nearest_on, resample, resample_array
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.as_simpleitk import to_sitk as transform_to_sitk
from tests.grids import permuted, turned

BOTH = pytest.mark.parametrize("d", [2, 3])


def pair(d: int) -> tuple[Geometry, Geometry, np.ndarray, CompositeTransform]:
    """Two unlike oblique grids, a smooth moving image of about 0 to 100, and a deformation with an affine part."""
    fixed = Geometry.make([24, 21, 17][:d], [1.1, 1.7, 2.3][:d], [-40, 25, 90][:d], permuted(d, 0.4))
    moving = Geometry.make([40, 30, 35][:d], [1.0, 1.4, 1.2][:d], [0, 0, 0][:d], permuted(d, -0.7))
    moving = Geometry.make(moving.size, moving.spacing, fixed.centre - moving.centre, moving.direction)
    image = 50 + 50 * np.sin((moving.grid() - moving.centre) @ np.array([0.4, 0.3, 0.2])[:d])
    waves = np.random.default_rng(0).normal(size=(d, d)) / 8
    u = 2 * np.sin((fixed.grid() - fixed.centre) @ waves)
    shift = LinearTransform.make(turned(d, 0.1) if d == 2 else np.diag([1.05, 0.95, 1.0]), [2, -1, 3][:d], fixed.centre)
    return fixed, moving, image.astype(np.float32), CompositeTransform((DisplacementField(fixed, u), shift))


@BOTH
def test_identity_changes_nothing(d: int) -> None:
    _, moving, image, _ = pair(d)
    same = CompositeTransform((LinearTransform.identity(d),))
    for mode in ("linear", "nearest"):
        np.testing.assert_allclose(resample_array(image, moving, same, moving, mode), image, atol=1e-4)
    np.testing.assert_allclose(resample_array(image, moving, same, moving, "bspline"), image, atol=1e-3)


def test_known_shift() -> None:
    """A transform of +5 mm in x looks 5 mm further along x: a spot at x = 15 comes to lie at x = 10."""
    grid = Geometry.make([30, 20], [1, 1], [0, 0])
    spot = np.zeros(grid.shape, np.float32)
    spot[8, 15] = 1
    shift = CompositeTransform((LinearTransform.make(np.eye(2), [5, 0]),))
    for mode in ("linear", "nearest", "bspline"):
        out = resample_array(spot, grid, shift, grid, mode)
        assert np.unravel_index(out.argmax(), out.shape) == (8, 10)
    theirs = sitk.Resample(to_sitk(spot, grid), to_sitk(spot, grid), sitk.TranslationTransform(2, (5, 0)))
    assert theirs.GetPixel([10, 8]) == 1


@BOTH
@pytest.mark.parametrize(
    ("mode", "theirs", "error"),
    [("linear", sitk.sitkLinear, 1e-3), ("nearest", sitk.sitkNearestNeighbor, 0), ("bspline", sitk.sitkBSpline3, 1e-2)],
)
def test_agrees_with_simpleitk(d: int, mode: str, theirs: int, error: float) -> None:
    fixed, moving, image, chain = pair(d)
    wanted = sitk.GetArrayFromImage(
        sitk.Resample(to_sitk(image, moving), _empty(fixed), transform_to_sitk(chain), theirs, -7.0)
    )
    got = resample_array(image, moving, chain, fixed, mode, -7.0)
    np.testing.assert_array_equal(got == -7, wanted == -7)
    inside = got != -7
    assert inside.mean() > 0.5
    if mode == "bspline":
        # In the half voxel beyond the outermost centres the two continue the image in their own ways.
        index = moving.physical_to_index(chain.map(fixed.grid()))
        inside &= np.all((index >= 0) & (index <= np.asarray(moving.size) - 1), axis=-1)
    assert np.mean(np.abs(got - wanted)[inside] > error) <= (0.001 if mode == "nearest" else 0)


@BOTH
def test_agrees_with_itk(d: int) -> None:
    import itk

    from itk_nir.transforms.as_itk import to_itk as transform_to_itk

    fixed, moving, image, chain = pair(d)
    theirs = itk.resample_image_filter(
        to_itk(image, moving),
        transform=transform_to_itk(chain),
        reference_image=to_itk(np.zeros(fixed.shape, np.float32), fixed),
        use_reference_image=True,
    )
    np.testing.assert_allclose(resample_array(image, moving, chain, fixed, "linear"), np.asarray(theirs), atol=1e-3)


def _empty(grid: Geometry) -> Any:
    return to_sitk(np.zeros(grid.shape, np.float32), grid)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_nearest_keeps_every_label(dtype: str) -> None:
    _, moving, image, chain = pair(2)
    labels = (image > 50).astype(dtype)
    if dtype != "bool":
        labels *= np.array(np.iinfo(dtype).max, dtype)
    out = resample_array(labels, moving, chain, moving, "nearest")
    assert out.dtype == np.dtype(dtype)
    assert set(np.unique(out)) == set(np.unique(labels))
    if dtype != "bool":
        filled = resample_array(labels, moving, chain, Geometry.make([3, 3], origin=[9e3, 9e3]), "nearest", 5)
        assert (filled == 5).all()


@pytest.mark.parametrize("kind", ["itk", "sitk"])
def test_apply_gives_the_kind_that_came_in(kind: str) -> None:
    fixed, moving, image, chain = pair(3)
    labels = np.digitize(image, [30, 60]).astype(np.uint8)
    out = load_image(apply(like(labels, moving, kind), chain, _empty(fixed)), "out", native=True)
    assert (out.kind, out.pixel_type) == (kind, np.dtype(np.uint8))
    assert out.geometry.same_grid(fixed)
    np.testing.assert_array_equal(out.array, resample_array(labels, moving, chain, fixed, "nearest"))
    grey = load_image(apply(like(image, moving, kind), chain, fixed, fill=0), "out", native=True)
    np.testing.assert_array_equal(grey.array, resample_array(image, moving, chain, fixed, "linear"))
    own = load_image(apply(like(image, moving, kind), chain), "out")
    assert own.geometry.same_grid(moving)


def test_what_cannot_be_applied() -> None:
    fixed, moving, image, chain = pair(3)
    volume = Volume(image, moving, "image /a/b.nii.gz", "path", image.dtype)
    with pytest.raises(OptionError, match="interpolation must be one of auto, linear, nearest, bspline"):
        resample(volume, chain, fixed, "cubic")
    with pytest.raises(InputError, match=r"image /a/b.nii.gz: is 3D, its transform 2D"):
        resample(volume, CompositeTransform((LinearTransform.identity(2),)), fixed)


def test_nearest_on_another_grid() -> None:
    source = Geometry.make([10, 8], [2, 2], [0, 0])
    array = np.arange(80).reshape(8, 10)
    fine = Geometry.make([20, 16], [1, 1], [-0.5, -0.5])
    np.testing.assert_array_equal(nearest_on(array, source, fine), np.kron(array, np.ones((2, 2), int)))
    assert nearest_on(array, source, Geometry.make([2, 2], origin=[100, 0]), -1).tolist() == [[-1, -1], [-1, -1]]

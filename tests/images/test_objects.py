"""Images in memory of every library: read as they are, given back as they came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.errors import InputError
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import like, load_channels, load_image, to_sitk
from tests.grids import turned

LIBRARIES = ["itk", "sitk", "ants", "nibabel", "array", "torch"]
TYPES = {
    "itk": ["uint8", "int16", "uint16", "int32", "float32", "float64"],
    "sitk": ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"],
    "ants": ["uint8", "uint32", "float32"],
    "nibabel": ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"],
    "array": ["bool", "uint8", "int64", "float16", "float32", ">f4", ">u2"],
    "torch": ["bool", "uint8", "int64", "float16", "float32", "float64"],
}


def oblique(d: int) -> Geometry:
    """LPS; in 2D, where nibabel has to find the plane again, too."""
    return Geometry.make([9, 7, 5][:d], [0.7, 1.1, 3.0][:d], [-40.5, 25.25, 90.125][:d], turned(d, 0.4))


def given(array: np.ndarray, grid: Geometry, kind: str) -> Any:
    """What a user would give."""
    if kind == "torch":
        import torch

        return torch.from_numpy(array), grid
    return (array, grid) if kind == "array" else like(array, grid, kind)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(("kind", "dtype"), [(k, t) for k in LIBRARIES for t in TYPES[k]])
def test_what_comes_in_goes_out_again(kind: str, dtype: str, d: int) -> None:
    if kind in ("ants", "nibabel"):
        pytest.importorskip(kind)
    grid = oblique(d)
    array = (np.random.default_rng(0).random(grid.shape) * 100).astype(dtype)
    if dtype == "bool":
        array[0] = True
    volume = load_image(given(array, grid, kind), "image", native=True)
    assert volume.kind == kind
    assert volume.findings == ()
    assert volume.pixel_type == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.flags.c_contiguous
    assert volume.array.dtype.isnative
    # NIfTI headers and nibabel's float64 affine: nothing is lost to single precision that anybody could see.
    assert volume.geometry.same_grid(grid, 1e-5)
    floats = load_image(given(array, grid, kind), "image").array
    assert floats.dtype == np.float32
    out = like(floats, volume.geometry, kind)
    if kind in ("array", "torch"):
        np.testing.assert_array_equal(np.asarray(out), floats)
    else:
        again = load_image(out, "image")
        np.testing.assert_array_equal(again.array, floats)
        assert again.geometry.same_grid(grid, 1e-5)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_volumes_have_memory_of_their_own(kind: str) -> None:
    if kind in ("ants", "nibabel"):
        pytest.importorskip(kind)
    grid = oblique(3)
    array = np.ones(grid.shape, np.float32)
    image = given(array, grid, kind)
    volume = load_image(image, "image", native=True)
    array[:] = 7
    volume.array[:] += 1
    assert (volume.array == 2).all()
    assert (load_image(image, "image").array != 2).all()


@pytest.mark.parametrize("kind", LIBRARIES)
@pytest.mark.parametrize("d", [2, 3])
def test_several_values_a_pixel_are_channels_and_told(kind: str, d: int) -> None:
    if kind in ("ants", "nibabel"):
        pytest.importorskip(kind)
    grid = oblique(d)
    # What goes out as itk.Image has vectors of its dimension.
    count = d if kind == "itk" else 3
    array = np.random.default_rng(0).random((*grid.shape, count)).astype(np.float32)
    image = given(array, grid, kind)
    channels = load_channels(image, "fixed image")
    np.testing.assert_array_equal(np.stack([c.array for c in channels], -1), array)
    assert all(c.geometry.same_grid(grid, 1e-5) for c in channels)
    (said,) = texts(channels[0].findings, "note")
    assert said == f"fixed image: has {count} values a pixel; {count} channels are registered"
    assert [c.findings for c in channels[1:]] == [()] * (count - 1)
    with pytest.raises(InputError, match="values a pixel"):
        load_image(image, "fixed image")


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("components", [2, 4])
def test_full_opacity_is_no_channel(components: int, opaque: bool) -> None:
    grid = oblique(2)
    array = np.random.default_rng(0).integers(0, 255, (*grid.shape, components), np.uint8)
    if opaque:
        array[..., -1] = 255
    channels = load_channels((array, grid), "fixed image")
    assert len(channels) == components - opaque
    assert ("full opacity" in str(channels[0].findings[0])) == opaque


def test_colours_that_are_all_grey_are_one_channel() -> None:
    grid = oblique(2)
    array = np.random.default_rng(0).integers(0, 255, (*grid.shape, 1), np.uint8)
    (channel,) = load_channels((np.repeat(array, 3, -1), grid), "fixed image")
    np.testing.assert_array_equal(channel.array, array[..., 0])
    assert "red, green and blue alike; they are registered as one" in texts(channel.findings, "note")[0]


def test_nibabel_images_of_colour_and_scaled_values() -> None:
    nibabel = pytest.importorskip("nibabel")
    colour = np.random.default_rng(0).integers(0, 255, (5, 4, 3, 3), np.uint8)
    packed = np.ascontiguousarray(colour).view([(c, "u1") for c in "RGB"])[..., 0]
    channels = load_channels(nibabel.Nifti1Image(packed, np.eye(4)), "image")
    np.testing.assert_array_equal(np.stack([c.array for c in channels], -1), colour.transpose(2, 1, 0, 3))
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    scaled = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    wanted = np.asarray(scaled.dataobj).T
    np.testing.assert_allclose(load_image(scaled, "image").array, wanted, rtol=1e-6)


def test_the_space_of_the_fixed_image_is_that_of_the_result() -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.ones((5, 4, 3), np.float32), np.diag([2.0, 2, 2, 1]))
    image.set_sform(image.affine, 4)
    volume = load_image(image, "image")
    out = like(volume.array, volume.geometry, volume.kind, volume.space_code)
    assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (4, 4)
    np.testing.assert_allclose(out.affine, image.affine)


def test_a_registration_of_arrays_gives_arrays_on_the_fixed_grid(phantom_2d: Any) -> None:
    p = phantom_2d
    quick = {"preset": "fast", "iterations": 2, "threads": 1}
    pair = (p.fixed, p.geometry), (p.moving, p.moving_geometry)
    result = itk_nir.register(*pair, **quick)
    by_sitk = itk_nir.register(to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.moving_geometry), **quick)
    assert isinstance(result.warped, np.ndarray)
    np.testing.assert_array_equal(result.warped, by_sitk.warped_array)
    np.testing.assert_array_equal(itk_nir.apply(pair[1], result, interpolation="linear"), by_sitk.warped_array)


def test_sheared_directions_of_itk_are_placed_as_near_as_can_be() -> None:
    import SimpleITK as sitk

    image = to_sitk(np.random.default_rng(0).random((10, 12)).astype(np.float32), Geometry.make([12, 10]))
    image.SetDirection([1, 0.01, 0, 1])
    volume = load_image(image, "image")
    (said,) = texts(volume.findings)
    assert "sheared by 0.573 degrees" in said
    for corner in ((0, 0), (11, 0), (0, 9), (11, 9)):
        there = image.TransformIndexToPhysicalPoint(corner)
        assert np.linalg.norm(volume.geometry.physical_to_index(there) - corner) < 0.06
    image.SetDirection([1, 0.2, 0, 1])
    with pytest.raises(InputError, match="not perpendicular"):
        load_image(image, "image")
    # A ramp is the same ramp on the grid that it is resampled onto; labels stay labels.
    x, y = np.meshgrid(np.arange(12), np.arange(10))
    for array, native in (((x + 2 * y).astype(np.float32), False), ((x // 4).astype(np.uint8), True)):
        sheared = sitk.GetImageFromArray(array)
        sheared.SetDirection([1, 0.2, 0, 1])
        volume = load_image(sheared, "image", native=native, resample_shear=True)
        points = volume.geometry.grid().reshape(-1, 2)
        index = np.array([sheared.TransformPhysicalPointToContinuousIndex(p) for p in points])
        inside = ((index >= 0) & (index <= (11, 9))).all(-1)
        assert inside.sum() > 60
        got = volume.array.reshape(-1)[inside]
        want = np.floor(index[inside, 0] + 0.5) // 4 if native else index[inside] @ [1, 2]
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_sheared_pair_is_registered_on_request(phantom_2d: Any) -> None:
    p, quick = phantom_2d, {"preset": "fast", "iterations": 2, "threads": 1}
    fixed, moving = to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.moving_geometry)
    mask, labels = (to_sitk(a.astype(np.uint8), p.geometry) for a in (p.fixed_labels > 0, p.fixed_labels))
    for image in (fixed, mask, labels):
        image.SetDirection([1, 0.1, 0, 1])
    pair = {"fixed_mask": mask, "fixed_labels": labels, "moving_labels": to_sitk(p.moving_labels, p.moving_geometry)}
    with pytest.raises(InputError, match="fixed image: its axes are not perpendicular"):
        itk_nir.register(fixed, moving, **pair, **quick)
    result = itk_nir.register(fixed, moving, **pair, **quick, resample_shear=True)
    # The grid covers the sheared one, and labels are still labels there.
    for corner in ((0, 0), (p.geometry.size[0] - 1, p.geometry.size[1] - 1)):
        assert result.fixed.geometry.contains(fixed.TransformIndexToPhysicalPoint(corner))
    assert result.report.labels is not None
    warped = itk_nir.apply(labels, np.eye(3), result.fixed.geometry, resample_shear=True)
    assert set(np.unique(load_image(warped, "warped", native=True).array)) <= set(np.unique(p.fixed_labels))
    with pytest.raises(itk_nir.OptionError, match="resample_shear is True or False"):
        itk_nir.register(fixed, moving, resample_shear="yes", **quick)  # type: ignore[arg-type]


def test_images_of_tensors_are_refused(tmp_path: Path) -> None:
    """Each would have to be turned with the image; colours and vectors are taken."""
    import itk
    import nibabel

    image = itk.Image[itk.SymmetricSecondRankTensor[itk.D, 3], 3].New()
    image.SetRegions([4, 5, 6])
    image.Allocate()
    stored = nibabel.Nifti1Image(np.ones((4, 5, 6, 1, 6), np.float32), np.eye(4))
    stored.header.set_intent("symmetric matrix", (3,))
    nibabel.save(stored, tmp_path / "t.nii.gz")
    several = nibabel.Nifti1Image(np.ones((4, 5, 6, 2, 6), np.float32), np.eye(4))
    several.header.set_intent("symmetric matrix", (3,))
    nibabel.save(several, tmp_path / "several.nii")
    (tmp_path / "t.nrrd").write_bytes(
        b"NRRD0004\ntype: float\ndimension: 4\nspace: left-posterior-superior\nsizes: 6 2 2 2\n"
        b"space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: 3D-symmetric-matrix domain domain domain\n"
        b"endian: little\nencoding: raw\nspace origin: (0,0,0)\n\n" + bytes(4 * 48)
    )
    for tensors in (image, stored, several, tmp_path / "t.nii.gz", tmp_path / "several.nii", tmp_path / "t.nrrd"):
        with pytest.raises(InputError, match="is an image of tensors"):
            itk_nir.apply(tensors, np.eye(4))
    for tensors in (image, stored, tmp_path / "t.nii.gz", tmp_path / "t.nrrd"):
        with pytest.raises(InputError, match="is an image of tensors"):
            load_channels(tensors, "fixed image")


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_tensors_that_numpy_does_not_know() -> None:
    torch = pytest.importorskip("torch")
    grid = oblique(2)
    ones = torch.ones(grid.shape)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        if hasattr(torch, name):
            assert (load_image((ones.to(getattr(torch, name)), grid), "image").array == 1).all()
    for tensor in (ones.to("meta"), torch.empty(grid.shape, dtype=torch.complex32)):
        with pytest.raises(InputError, match=r"^image: is a tensor .* (holds no values|gives no array)"):
            load_image((tensor, grid), "image")


def test_objects_that_hold_an_image_are_hinted_at() -> None:
    import itk

    reader = itk.ImageFileReader[itk.Image[itk.F, 2]].New(FileName="none.nrrd")
    with pytest.raises(InputError, match=r"give its GetOutput\(\)"):
        load_image(reader, "fixed image")
    with pytest.raises(InputError, match=r"its ITK pipeline failed .*Could not create IO object"):
        load_image(reader.GetOutput(), "fixed image")

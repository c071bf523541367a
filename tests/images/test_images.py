"""Images in and out: the geometry survives, and everything that cannot be registered is refused in one line."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, like, load_image, save_image, to_itk, to_sitk
from itk_nir.images.nifti import parse_header

BOTH = pytest.mark.parametrize("d", [2, 3])


def oblique(d: int) -> Geometry:
    c, s = np.cos(0.4), np.sin(0.4)
    turn = np.eye(d)
    turn[:2, :2] = [[c, -s], [s, c]]
    if d == 3:
        turn = turn[:, [2, 0, 1]]  # axes in another order, as in sagittal scans
    return Geometry.make([9, 7, 5][:d], [0.7, 1.1, 3.0][:d], [-40.5, 25.25, 90.125][:d], turn)


def picture(grid: Geometry, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).random(grid.shape) * 100).astype(dtype)


def refused(image: Any, role: str = "fixed image") -> str:
    """The message of the error, which must be one line."""
    with pytest.raises(InputError) as error:
        load_image(image, role)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- in and out ------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["itk", "sitk"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_images_in_memory_round_trip(d: int, kind: str, dtype: str) -> None:
    grid = oblique(d)
    array = picture(grid, dtype)
    image = like(array, grid, kind)
    # The same voxel is at the same place for the library itself.
    index = [3, 2, 1][:d]
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), grid.index_to_physical(index), atol=1e-9)
    assert image.GetPixel(index) == array[tuple(index[::-1])]
    volume = load_image(image, "fixed image", native=True)
    assert (volume.kind, volume.name, volume.pixel_type) == (kind, "fixed image", np.dtype(dtype))
    assert volume.geometry.same_grid(grid)
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, array)
    floats = load_image(image, "fixed image")
    assert floats.array.dtype == np.float32
    assert floats.array.flags.c_contiguous


@pytest.mark.parametrize(("dtype", "stored"), [("bool", "uint8"), ("int8", "int16"), ("int64", "int32")])
def test_types_that_itk_lacks_go_to_the_next_wider(dtype: str, stored: str) -> None:
    grid = oblique(2)
    array = (picture(grid) > 50).astype(dtype)
    volume = load_image(to_itk(array, grid), "label map", native=True)
    assert volume.pixel_type == np.dtype(stored)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_array_equal(load_image(to_sitk(array, grid), "label map").array, array)


@BOTH
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_files_round_trip(d: int, suffix: str, tmp_path: Path) -> None:
    grid, path = oblique(d), tmp_path / f"f{suffix}"
    array = picture(grid)
    save_image(array, grid, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    volume = load_image(path, "fixed image")
    assert (volume.kind, volume.name, volume.findings) == ("path", f"fixed image {path}", ())
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry.same_grid(grid)
    np.testing.assert_array_equal(load_image(str(path), "fixed image").array, array)
    assert load_image(volume, "again").geometry is volume.geometry


@BOTH
def test_vectors_become_vector_images(d: int) -> None:
    import itk

    grid = oblique(d)
    vectors = np.random.default_rng(0).random((*grid.shape, d)).astype(np.float32)
    for image, view in ((to_itk(vectors, grid), itk.array_view_from_image), (to_sitk(vectors, grid), None)):
        got = sitk.GetArrayFromImage(image) if view is None else view(image)
        np.testing.assert_array_equal(got, vectors)
        np.testing.assert_allclose(tuple(image.GetOrigin()), grid.origin)


def test_images_own_their_memory() -> None:
    import itk

    grid = oblique(3)
    array = picture(grid)
    image = to_itk(array, grid)
    kept = array.copy()
    array[:] = -1
    np.testing.assert_array_equal(itk.array_view_from_image(image), kept)
    volume = load_image(image, "fixed image")
    itk.array_view_from_image(image)[:] = 7
    np.testing.assert_array_equal(volume.array, kept)


def test_cropped_itk_image_keeps_its_place() -> None:
    import itk

    grid = oblique(3)
    array = picture(grid)
    image = to_itk(array, grid)
    part = itk.region_of_interest_image_filter(
        image, region_of_interest=itk.ImageRegion[3]([2, 1, 1], [4, 5, 3])
    )  # moves the origin
    cropper = itk.ExtractImageFilter[type(image), type(image)].New(image)
    cropper.SetExtractionRegion(itk.ImageRegion[3]([2, 1, 1], [4, 5, 3]))
    cropper.SetDirectionCollapseToSubmatrix()
    cropper.Update()  # keeps the origin, and an index that begins at (2, 1, 1)
    for cropped in (part, cropper.GetOutput()):
        volume = load_image(cropped, "fixed image")
        np.testing.assert_array_equal(volume.array, array[1:4, 1:6, 2:6])
        assert volume.geometry.same_grid(grid.crop([2, 1, 1], [4, 5, 3]))


def test_itk_pipeline_is_brought_up_to_date() -> None:
    import itk

    grid = oblique(2)
    source = to_itk(picture(grid), grid)
    smoother = itk.ShiftScaleImageFilter[type(source), type(source)].New(source)
    smoother.SetShift(5.0)
    np.testing.assert_allclose(load_image(smoother.GetOutput(), "fixed image").array, picture(grid) + 5, rtol=1e-6)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "strategy"), [("field", zlib.Z_RLE), ("zeros", zlib.Z_RLE), ("labels", zlib.Z_DEFAULT_STRATEGY)]
)
def test_real_numbers_are_packed_fast_and_labels_small(what: str, strategy: int, tmp_path: Path) -> None:
    """In real numbers it is not worth while to look for what comes twice; in labels it is."""
    rng = np.random.default_rng(0)
    grid = Geometry.make([40, 36, 30])
    array = np.zeros((*grid.shape, 3) if what == "field" else grid.shape, np.float32)
    if what == "field":
        array[:] = rng.normal(size=array.shape)
    elif what == "labels":
        array[8:20, 9:30, 7:33] = np.repeat(rng.integers(1, 60, (12, 21, 2)), 13, -1)
    save_image(array, grid, tmp_path / "f.nii.gz")
    content = (tmp_path / "f.nii.gz").read_bytes()
    body = gzip.decompress(content)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31, zlib.DEF_MEM_LEVEL, strategy)
    assert content == packer.compress(body) + packer.flush()
    assert len(content) <= 1.03 * len(zlib.compress(body, 1))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "f.nii.gz"))), array)


def test_missing_folder_and_unknown_files(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "f.nii.gz")
    assert "is a folder" in refused(tmp_path)
    for name in ("f.nii.gz", "f.nii", "f.mha", "f.nrrd", "f.txt"):
        (tmp_path / name).write_text("hello")
        message = refused(tmp_path / name, "moving image")
        assert message.startswith(f"moving image {tmp_path / name}: ")
    (tmp_path / "empty.nii.gz").touch()
    assert "empty.nii.gz" in refused(tmp_path / "empty.nii.gz")
    for thing in (3, None, np.zeros((4, 4))):
        assert "cannot use an object of type" in refused(thing)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_truncated_files(suffix: str, share: float, tmp_path: Path) -> None:
    grid = Geometry.make([40, 30, 20])
    path = tmp_path / f"f{suffix}"
    save_image(picture(grid), grid, path, compression=0)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refused(path)
    assert message.startswith(f"fixed image {path}: ")
    assert "truncated" in message or "damaged" in message


def test_flipped_byte_in_gzip(tmp_path: Path) -> None:
    path = tmp_path / "f.nii.gz"
    grid = Geometry.make([40, 30, 20])
    save_image(picture(grid), grid, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    assert "damaged" in refused(path)


def test_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    grid = Geometry.make([40, 30, 20])
    save_image(picture(grid), grid, tmp_path / "f.nii", compression=0)
    content = (tmp_path / "f.nii").read_bytes()
    half = len(content) // 2 + 3
    (tmp_path / "f.nii.gz").write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    np.testing.assert_array_equal(load_image(tmp_path / "f.nii.gz", "fixed image").array, picture(grid))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_in_files(suffix: str, bad: float, dtype: Any, tmp_path: Path) -> None:
    grid = oblique(3)
    array = picture(grid, dtype)
    array[2, 3, 4] = bad
    path = tmp_path / f"f{suffix}"
    save_image(array, grid, path)
    message = refused(path)
    assert str(path) in message
    assert "NaN or infinite" in message


@pytest.mark.parametrize("kind", ["itk", "sitk"])
def test_nan_in_memory(kind: str) -> None:
    array = picture(oblique(3))
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    assert "fixed image: has 3 NaN or infinite voxels" in refused(like(array, oblique(3), kind))


def test_large_finite_values_are_not_taken_for_infinity() -> None:
    array = np.full((6, 5), np.finfo(np.float32).max, np.float32)
    volume = load_image(to_sitk(array, Geometry.make([5, 6])), "fixed image")
    assert volume.array[0, 0] * volume.scale == array[0, 0]


def test_four_dimensions(tmp_path: Path) -> None:
    import itk

    series = sitk.JoinSeries([sitk.Image([6, 5, 4], sitk.sitkFloat32)] * 3)
    sitk.WriteImage(series, str(tmp_path / "f.nii.gz"))
    in_itk = itk.image_from_array(np.zeros((3, 4, 5, 6), np.float32))
    for image in (series, tmp_path / "f.nii.gz", in_itk):
        message = refused(image)
        assert "is 4D" in message
        assert "extract one volume" in message


def test_colour_vectors_and_complex_numbers(tmp_path: Path) -> None:
    import itk

    colour = sitk.Image([6, 5], sitk.sitkVectorUInt8, 3)
    sitk.WriteImage(colour, str(tmp_path / "f.png"))
    vectors = to_itk(np.zeros((5, 6, 2), np.float32), Geometry.make([6, 5]))
    rgb = itk.image_from_array(np.zeros((5, 6, 3), np.uint8), ttype=itk.Image[itk.RGBPixel[itk.UC], 2])
    for image in (colour, tmp_path / "f.png", vectors, rgb):
        assert "values a pixel" in refused(image)
    wave = sitk.Image([6, 5], sitk.sitkComplexFloat32)
    sitk.WriteImage(wave, str(tmp_path / "f.nii"))
    for image in (wave, tmp_path / "f.nii"):
        assert "complex" in refused(image)


def _patched(path: Path, *changes: tuple[int, str, tuple[float, ...]]) -> Path:
    """Overwrite header fields of an uncompressed NIfTI-1 file."""
    content = bytearray(path.read_bytes())
    for offset, form, values in changes:
        struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(bytes(content))
    return path


def test_sform_and_qform_that_disagree_are_told(tmp_path: Path) -> None:
    grid, path = oblique(3), tmp_path / "f.nii"
    save_image(picture(grid), grid, path)
    header = parse_header(path.read_bytes()[:540])
    assert header is not None
    assert header.sform is not None
    assert header.qform is not None
    np.testing.assert_allclose(header.sform, header.qform, atol=1e-4)
    ras = np.diag([-1, -1, 1, 1]) @ grid.matrix
    np.testing.assert_allclose(header.sform, ras, atol=1e-4)
    # qform 4 mm further along x: the sform counts, whatever its code (ITK takes the qform where it is above 1).
    for code in (1, 2):
        _patched(path, (252, "2h", (1, code)), (268, "f", (-grid.origin[0] + 4,)))
        volume = load_image(path, "fixed image")
        assert len(volume.findings) == 1
        assert "differ by up to 4 mm; the sform is used, as nibabel, SPM and FSL do" in str(volume.findings[0])
        np.testing.assert_allclose(volume.geometry.origin[0], grid.origin[0], atol=1e-4)


def test_sheared_axes(tmp_path: Path) -> None:
    grid, path = Geometry.make([6, 5, 4]), tmp_path / "f.nii"
    save_image(picture(grid), grid, path)
    _patched(path, (252, "2h", (0, 1)), (284, "f", (0.2,)))
    assert "not perpendicular" in refused(path)


def test_big_endian_and_nifti_2_headers() -> None:
    for order in "<>":
        one = bytearray(352)
        struct.pack_into(order + "i", one, 0, 348)
        struct.pack_into(order + "8h", one, 40, 3, 6, 5, 4, 1, 1, 1, 1)
        struct.pack_into(order + "2h", one, 70, 16, 32)
        struct.pack_into(order + "f", one, 108, 352)
        one[344:347] = b"n+1"
        two = bytearray(540)
        struct.pack_into(order + "i", two, 0, 540)
        two[4:7] = b"n+2"
        struct.pack_into(order + "2h", two, 12, 16, 32)
        struct.pack_into(order + "8q", two, 16, 3, 6, 5, 4, 1, 1, 1, 1)
        struct.pack_into(order + "q", two, 168, 544)
        for raw, offset in ((one, 352), (two, 544)):
            header = parse_header(bytes(raw))
            assert header is not None
            assert (header.shape, header.data_bytes, header.offset) == ((6, 5, 4), 480, offset)
            assert header.byte_order == order
            assert header.sform is None
    assert parse_header(b"\0" * 540) is None


def test_image_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    grid = oblique(2)
    with pytest.raises(InputError, match="tells no image format"):
        save_image(picture(grid), grid, tmp_path / "f.unknown")
    with pytest.raises(InputError, match="does not exist"):
        save_image(picture(grid), grid, tmp_path / "no" / "f.nii.gz")
    assert list(tmp_path.iterdir()) == []


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "brain_oasis/fixed_t1.nii.gz",
        "lung_ct/fixed.nii.gz",
        "slices_2d/r16.nii.gz",
        "spine_t1_t2/t1w.nii.gz",
        "spine_t1_t2/t2.nii.gz",
    ],
)
def test_real_files_have_the_grid_that_itk_sees(data: Path, name: str) -> None:
    image = sitk.ReadImage(str(data / name))
    volume: Volume = load_image(data / name, "fixed image", native=True)
    assert volume.findings == ()
    np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image))
    last = [n - 1 for n in image.GetSize()]
    np.testing.assert_allclose(
        volume.geometry.index_to_physical(last), image.TransformIndexToPhysicalPoint(last), atol=1e-6
    )

"""4D images, and images that give nothing but their grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.cli import main
from itk_nir.errors import InputError
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, to_sitk
from itk_nir.images.series import open_series, read_grid
from tests.images.test_files import GRID, VALUES, series

nibabel = pytest.importorskip("nibabel")

STILL = np.eye(4)
#: RAS of an image whose LPS axes are its own.
PLAIN = np.diag([-1.0, -1.0, 1.0, 1.0])
FOUR = np.random.default_rng(0).integers(0, 200, (6, 5, 4, 3)).astype(np.int16)
VECTORS = np.random.default_rng(0).random((6, 5, 4, 2, 3)).astype(np.float32)
COLOURS = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 2, 3)).astype(np.uint8)


def image_of(array: np.ndarray, affine: np.ndarray | None = PLAIN, kind: Any = nibabel.Nifti1Image) -> Any:
    """An image of nibabel's; colours and vectors as NIfTI has them."""
    if array.dtype == np.uint8:
        array = np.ascontiguousarray(array).view([(c, "u1") for c in "RGB"])[..., 0]
    image = kind(array, affine)
    if array.ndim == 5:
        image.header.set_intent("vector")
    image.header.set_xyzt_units("mm", "msec")
    image.header["toffset"] = 300
    image.header["pixdim"][4] = 500
    return image


def sheared(by: float) -> np.ndarray:
    matrix = PLAIN.copy()
    matrix[0, 1] = -by
    return matrix


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("array", [FOUR, VECTORS, COLOURS], ids=["scalars", "vectors", "colours"])
def test_every_nifti_file_of_volumes_keeps_its_values(array: np.ndarray, kind: Any, name: str, tmp_path: Path) -> None:
    pair = {nibabel.Nifti1Image: nibabel.Nifti1Pair, nibabel.Nifti2Image: nibabel.Nifti2Pair}
    image_of(array, kind=kind if ".nii" in name else pair[kind]).to_filename(tmp_path / name)
    found = open_series(tmp_path / name, "image")
    assert (found.count, found.pixel_type) == (array.shape[3], array.dtype)
    assert found.time == pytest.approx((0.5, 0.3))
    for k, volume in enumerate(found.volumes()):
        np.testing.assert_array_equal(volume.array, array[:, :, :, k].swapaxes(0, 2))


def test_colours_of_files_with_four_axes_come_out(tmp_path: Path) -> None:
    image_of(COLOURS).to_filename(tmp_path / "a.nii.gz")
    files = ["--image", str(tmp_path / "a.nii.gz"), "--transform", "identity", "--output", str(tmp_path / "o.nii.gz")]
    assert main(["apply", *files]) == 0
    out = sitk.ReadImage(str(tmp_path / "o.nii.gz"))
    assert out.GetNumberOfComponentsPerPixel() == 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(out), COLOURS.transpose(3, 2, 1, 0, 4))


@pytest.mark.parametrize("array", [FOUR, VECTORS, COLOURS], ids=["scalars", "vectors", "colours"])
def test_images_of_nibabel_with_four_axes(array: np.ndarray) -> None:
    image = image_of(array)
    image.set_sform(PLAIN, 4)
    out = itk_nir.apply(image, STILL)
    assert isinstance(out, nibabel.Nifti1Image)
    np.testing.assert_allclose(np.asarray(out.dataobj), array, atol=1e-6)
    assert out.get_data_dtype() == array.dtype
    np.testing.assert_array_equal(out.affine, PLAIN)
    assert float(out.header.get_zooms()[3]) == 0.5
    assert (float(out.header["toffset"]), int(out.header["sform_code"])) == (pytest.approx(0.3), 4)


@pytest.mark.parametrize("array", [FOUR, VECTORS], ids=["scalars", "vectors"])
def test_images_of_ants_with_four_axes(array: np.ndarray) -> None:
    ants = pytest.importorskip("ants")
    at = {"origin": [1, 2, 3, 4], "spacing": [1, 1.5, 2, 3]}
    image = ants.from_numpy(array.astype(np.float32), **at, has_components=array.ndim > 4)
    out = itk_nir.apply(image, STILL)
    assert ants.is_image(out)
    np.testing.assert_allclose(out.numpy(), array, atol=1e-4)
    assert (list(out.origin), list(out.spacing)) == (at["origin"], at["spacing"])


@pytest.mark.parametrize("kind", ["nii", "nibabel", "nrrd"])
def test_sheared_images_with_four_axes_are_read_as_those_with_three(kind: str, tmp_path: Path) -> None:
    def given(by: float) -> Any:
        if kind != "nrrd":
            image = image_of(FOUR, sheared(by))
            image.set_qform(None)
            image.to_filename(tmp_path / "a.nii")
            return tmp_path / "a.nii" if kind == "nii" else image
        sitk.WriteImage(sitk.GetImageFromArray(FOUR.T, isVector=False), str(tmp_path / "a.nrrd"))
        raw = (tmp_path / "a.nrrd").read_bytes()
        (tmp_path / "a.nrrd").write_bytes(raw.replace(b" (0,1,0,0)", b" (%g,1,0,0)" % by))
        return tmp_path / "a.nrrd"

    assert open_series(given(3e-4), "image").findings == ()
    assert "sheared by" in texts(open_series(given(0.02), "image").findings)[0]
    with pytest.raises(InputError, match="axes are not perpendicular"):
        open_series(given(0.3), "image")
    straight = open_series(given(0.3), "image", resample_shear=True)
    assert straight.geometry.size != (6, 5, 4)
    for volume in straight.volumes():
        assert volume.array.shape == straight.geometry.shape
        # As of three axes: they may be labels.
        assert set(np.unique(volume.array)) <= set(np.unique(FOUR))


def test_labels_on_sheared_axes_stay_labels() -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[5:15, 5:15], labels[8:10, 8:10] = 100, 7
    image = sitk.GetImageFromArray(labels)
    image.SetDirection([1, 0.3, 0, 1])
    out = itk_nir.apply(image, np.eye(3), resample_shear=True)
    assert set(np.unique(sitk.GetArrayFromImage(out))) == {0, 7, 100}


@pytest.mark.parametrize("as_reference", [False, True])
@pytest.mark.parametrize("axes", [3, 4])
def test_what_is_odd_about_a_header_is_told(axes: int, as_reference: bool, tmp_path: Path) -> None:
    image_of(FOUR if axes == 4 else FOUR[..., 0], None).to_filename(tmp_path / "odd.nii")
    good = to_sitk(VALUES, GRID)
    given = (good, STILL, tmp_path / "odd.nii") if as_reference else (tmp_path / "odd.nii", STILL)
    with pytest.warns(UserWarning, match="does not say how the object lies") as told:
        itk_nir.apply(*given)
    (said,) = [str(w.message) for w in told if "does not say" in str(w.message)]
    assert said.startswith("reference image" if as_reference else "image")


def test_a_dicom_file_as_a_reference_is_its_whole_series(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", "1.2.3.4", [(0, 0, 3.0 * k) for k in range(5)])
    file = next(folder.iterdir())
    assert read_grid(file, "reference image")[0] == load_image(file, "image").geometry == load_image(
        folder, "image"
    ).geometry  # fmt: skip


def test_the_header_of_a_reference_is_read_as_that_of_an_image(tmp_path: Path) -> None:
    file = tmp_path / "a.mha"
    sitk.WriteImage(to_sitk(VALUES, GRID), str(file))
    file.write_bytes(file.read_bytes().replace(b"Offset = 10 20 30", b"Offset = nan 3 4"))
    for read in (load_image, read_grid):
        with pytest.raises(InputError, match="Offset = nan 3 4, which is not finite"):
            read(file, "image")
    file = tmp_path / "a.nrrd"
    for by, refused in ((0.02, False), (0.3, True)):
        sitk.WriteImage(to_sitk(VALUES, Geometry.make(GRID.size)), str(file))
        file.write_bytes(file.read_bytes().replace(b" (0,1,0)", b" (%g,1,0)" % by))
        if refused:
            with pytest.raises(InputError, match="axes are not perpendicular"):
                read_grid(file, "image")
        image = load_image(file, "image", resample_shear=True)
        assert read_grid(file, "image", resample_shear=True) == (image.geometry, image.findings)


@pytest.mark.parametrize("name", ["a.nii", "a.mha", "a.nrrd"])
def test_of_a_reference_the_grid_alone_matters(name: str, tmp_path: Path) -> None:
    """Neither NaN in it, all of it perhaps, nor a fourth axis, for whatever needs one."""
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    sitk.WriteTransform(sitk.TranslationTransform(3, (1, 0, 0)), str(tmp_path / "t.tfm"))
    nothing = sitk.GetImageFromArray(np.full((4, 5, 6), np.nan, np.float32))
    for image in (nothing, sitk.JoinSeries([nothing, nothing])):
        reference = str(tmp_path / name)
        sitk.WriteImage(image, reference)
        files = ["--transform", str(tmp_path / "t.tfm"), "--reference", reference, "--moving", reference]
        assert main(["apply", "--points", str(tmp_path / "p.csv"), *files, "--output", str(tmp_path / "q.csv")]) == 0
        assert main(["convert", str(tmp_path / "t.tfm"), str(tmp_path / "u.mat"), *files[2:]]) == 0
        assert itk_nir.load_transform(tmp_path / "t.tfm", reference, moving=reference).dimension == 3
        out = itk_nir.apply(to_sitk(VALUES, GRID), sitk.TranslationTransform(3), reference)
        assert out.GetSize() == (6, 5, 4)


def test_points_on_a_sheared_reference_may_be_asked_for(tmp_path: Path) -> None:
    image_of(FOUR[..., 0], sheared(0.3)).to_filename(tmp_path / "a.nii")
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    files = ["--points", tmp_path / "p.csv", "--reference", tmp_path / "a.nii", "--output", tmp_path / "q.csv"]
    command = ["apply", *map(str, files), "--transform", "identity"]
    assert main(command) == 2
    assert main([*command, "--resample-shear"]) == 0

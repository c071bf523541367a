"""The self-check of what was written: any unit of length, any origin, and nothing is thrown away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli import main
from itk_nir.errors import InputError, ItkNirError
from itk_nir.geometry import Geometry
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform, check, compose
from itk_nir.transforms.formats import ants, field_image, itk_h5
from itk_nir.transforms.formats.ants import read_ants
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.save import FORMATS, Written, save_transform, write_both
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])
#: Spacing of the images, origins of the fixed and the moving image, all in one unit of length.
PLACES = pytest.mark.parametrize(
    ("spacing", "fixed_at", "moving_at"),
    [
        (1e-6, 0.0, 0.0),
        (0.01, 30_000.123, 30_000.123),  # farther from the origin than single precision can say in a NIfTI header
        (1.0, 30_000.25, 0.0),
        (20.0, -160_000.0, 1_600_000.0),
        (2_000.0, 0.0, 0.0),
        (1e6, -30_000.0, 1e6),
    ],
)


def pair(d: int, spacing: float, fixed_at: float, moving_at: float) -> tuple[CompositeTransform, Geometry, Geometry]:
    """A field of a few voxels and an affine map between two oblique grids."""
    steps = np.array([1.0, 1.5, 2.0][:d]) * spacing
    fixed = Geometry.make([24, 20, 16][:d], steps, [fixed_at] * d, turned(d, 0.4, 0.3))
    moving = Geometry.make([30, 26, 22][:d], steps * 1.1, [moving_at] * d, turned(d, -0.2, 0.1))
    waves = np.sin((fixed.grid() - fixed.centre) / spacing / 5)
    field = DisplacementField(fixed, 2 * spacing * waves)
    inverse = field.inverse(tolerance=1e-3)
    affine = LinearTransform.make(turned(d, 0.12, -0.1) * 1.03, moving.centre - fixed.centre + spacing, fixed.centre)
    return compose(CompositeTransform((field,), (inverse,)), affine), fixed, moving


@BOTH
@PLACES
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_images_of_any_size_anywhere(
    kind: str, d: int, spacing: float, fixed_at: float, moving_at: float, tmp_path: Path
) -> None:
    if (kind, d) == ("nifti", 2):
        pytest.skip("RAS fields are 3D")
    transform, fixed, moving = pair(d, spacing, fixed_at, moving_at)
    written = write_both(kind, transform, fixed, moving, tmp_path, "x_", tmp_path)
    assert written.tolerance == pytest.approx(1e-3 * spacing)
    assert written.passed
    assert written.failed == ()
    assert max(written.differences.values()) <= written.tolerance
    assert len(written.differences) >= 2


#: Unit of length, in voxels of 1: micrometres told as metres up to nanometres told as mm; and how far away, in voxels.
UNITS = pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0, 1e3, 1e6])
AWAY = pytest.mark.parametrize("away", [1e-6, 1e3, 1e7])


@BOTH
@UNITS
@AWAY
def test_other_readers_in_any_unit(d: int, unit: float, away: float, tmp_path: Path) -> None:
    """ITK's and ANTs' own readers take points where the map takes them, to a thousandth of a voxel."""
    import ants as ants_library

    transform, fixed, moving = pair(d, unit, away * unit, -away * unit)
    p = check.random_points(fixed, 30)
    wanted = transform.map(p)
    for kind in ("itk", "ants", "slicer", *(["nifti"] if d == 3 else [])):
        assert write_both(kind, transform, fixed, moving, tmp_path, f"{kind}_", tmp_path).passed

    def field_of(name: str) -> Any:
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64))

    composite, affine = str(tmp_path / "itk_Composite.h5"), str(tmp_path / "ants_0GenericAffine.mat")
    by_sitk = sitk.ReadTransform(composite)
    both = sitk.CompositeTransform([sitk.ReadTransform(affine), field_of("ants_1Warp.nii.gz")])
    readers = {
        "SimpleITK .h5": by_sitk.TransformPoint,
        "ANTs .h5": ants_library.read_transform(composite, precision="double").apply_to_point,
        "SimpleITK, ANTs' files": both.TransformPoint,
        "SimpleITK .nrrd": field_of("slicer_Displacement.nrrd").TransformPoint,
    }
    if d == 3:
        readers["SimpleITK RAS field"] = field_of("nifti_DisplacementField.nii.gz").TransformPoint
    for name, reader in readers.items():
        found = np.array([reader(q.tolist()) for q in p])
        # What is sampled is exact at the voxels alone; so far away, on a grid that NIfTI's single precision holds.
        sampled = 0.05 if "field" in name or "nrrd" in name or away > 1e6 else 0.0
        # ANTsPy hands points over in single precision.
        rounded = np.abs([p, wanted]).max() * 2.0**-23 if name.startswith("ANTs ") else 0.0
        assert np.abs(found - wanted).max() <= (1e-3 + sampled) * unit + rounded, name
    linear = ants_library.read_transform(affine, precision="double")
    moved = transform.transforms[-1].map(p)
    rounded = np.abs([p, moved]).max() * 2.0**-23
    assert np.abs([linear.apply_to_point(q.tolist()) for q in p] - moved).max() <= 1e-3 * unit + rounded


@BOTH
@PLACES
@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.mat", "TransformParameters.0.txt", "t.nrrd", "t.mha"])
def test_linear_maps_keep_their_digits(
    name: str, d: int, spacing: float, fixed_at: float, moving_at: float, tmp_path: Path
) -> None:
    transform, fixed, _ = pair(d, spacing, fixed_at, moving_at)
    linear = CompositeTransform(transform.transforms[1:])
    paths, written = save_transform(linear, tmp_path / name, reference=fixed)
    assert written.passed
    assert written.tolerance == pytest.approx(1e-3 * spacing)
    p = check.random_points(fixed)
    if name in ("t.nrrd", "t.mha"):  # read into a field, whose vectors are in single precision
        allowed = max(written.tolerance, np.abs(linear.map(p) - p).max() * 2.0**-23)
    else:
        allowed = written.tolerance
    assert np.abs(read_transform(paths[-1]).map(p) - linear.map(p)).max() <= allowed


def test_a_file_that_cannot_hold_the_grid_is_told(tmp_path: Path) -> None:
    transform, fixed, moving = pair(3, 1e-6, 30_000.123, 30_000.123)
    written = write_both("ants", transform, fixed, moving, tmp_path, "", tmp_path)
    assert not written.passed
    # The affine is in double precision, the header of the warps is not.
    assert [sentence.split(":")[0] for sentence in written.failed] == ["1Warp.nii.gz", "1InverseWarp.nii.gz"]
    assert all("it moves a point by" in sentence for sentence in written.failed)
    assert written.report()["failed"] == list(written.failed)


def test_displacements_of_many_voxels_are_written_in_double_precision(tmp_path: Path) -> None:
    transform, fixed, _ = pair(2, 1.0, 30_000.25, 0.0)
    for name in ("f.nrrd", "f.nii.gz"):
        (path,), _ = save_transform(transform, tmp_path / name, reference=fixed)
        field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
        nodes = fixed.grid()[2:-2, 2:-2].reshape(-1, 2)
        got = np.array([field.TransformPoint(p.tolist()) for p in nodes])
        np.testing.assert_allclose(got, transform.map(nodes), atol=1e-6)
    near, fixed, _ = pair(2, 1.0, 0.0, 0.0)
    save_transform(near, tmp_path / "near.nrrd", reference=fixed)
    assert sitk.ReadImage(str(tmp_path / "near.nrrd")).GetPixelID() == sitk.sitkVectorFloat32


@BOTH
def test_affines_are_written_about_the_centre_of_the_fixed_image(d: int, tmp_path: Path) -> None:
    transform, fixed, moving = pair(d, 1.0, 30_000.25, 0.0)
    write_both("ants", transform, fixed, moving, tmp_path, "", tmp_path)
    affine = sitk.AffineTransform(sitk.ReadTransform(str(tmp_path / "0GenericAffine.mat")))
    np.testing.assert_allclose(affine.GetCenter(), fixed.centre, rtol=1e-12)
    np.testing.assert_allclose(affine.GetTranslation(), moving.centre - fixed.centre + 1, rtol=1e-9)
    again, last = read_ants(f"{tmp_path}/").transforms[1], transform.transforms[1]
    assert isinstance(again, LinearTransform)
    assert isinstance(last, LinearTransform)
    np.testing.assert_allclose(again.matrix, last.matrix, atol=1e-7)
    write_both("itk", transform, fixed, moving, tmp_path, "", tmp_path)
    with h5py.File(tmp_path / "Composite.h5") as file:
        np.testing.assert_array_equal(file["TransformGroup/1/TransformFixedParameters"], fixed.centre)


def test_a_field_in_single_and_an_affine_in_double_precision_in_one_file(tmp_path: Path) -> None:
    import itk

    transform, fixed, _ = pair(3, 1.0, 30_000.25, 0.0)
    path = str(tmp_path / "t.h5")
    save_transform(transform, path, reference=fixed)
    with h5py.File(path) as file:
        types = [file[f"TransformGroup/{n}/TransformType"][0].decode() for n in range(3)]
        names = ("CompositeTransform_float", "AffineTransform_double", "DisplacementFieldTransform_float")
        assert types == [f"{name}_3_3" for name in names]
        assert file["TransformGroup/2/TransformParameters"].dtype == np.float32
    p = check.random_points(fixed, 100)
    for read in (sitk.ReadTransform(path), itk.down_cast(itk.transformread(path)[0])):
        got = np.array([list(read.TransformPoint(q.tolist())) for q in p])
        np.testing.assert_allclose(got, transform.map(p), atol=1e-6)


def test_ants_inverts_the_affine_of_a_far_image(tmp_path: Path) -> None:
    ants_library = pytest.importorskip("ants", reason="antspyx is not installed")
    transform, fixed, moving = pair(3, 1.0, 30_000.25, 0.0)
    write_both("ants", transform, fixed, moving, tmp_path, "", tmp_path)
    affine = ants_library.read_transform(str(tmp_path / "0GenericAffine.mat"), precision="double")
    p = check.random_points(fixed, 50)
    q = transform.transforms[1].map(p)
    np.testing.assert_allclose([affine.apply_to_point(x.tolist()) for x in p], q, atol=1e-6)
    np.testing.assert_allclose([affine.invert().apply_to_point(x.tolist()) for x in q], p, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e9])
def test_only_maps_that_flatten_space_are_refused(scale: float) -> None:
    turn = turned(3, 0.3)
    back = LinearTransform.make(turn * scale, [1, 2, 3]).inverse()
    np.testing.assert_allclose(back.map([1.0, 2, 3]), 0, atol=1e-9 / min(scale, 1))
    spacings = np.diag([1e-6, 1.0, 1e6]) * scale
    for matrix in (turn @ spacings, spacings @ turn):
        assert LinearTransform.make(matrix, [0, 0, 0]).dimension == 3
    with pytest.raises(InputError, match="invertible"):
        LinearTransform.make(turn @ np.diag([1.0, 2.0, 0.0]) @ turned(3, -0.8) * scale, [0, 0, 0])
    with pytest.raises(InputError, match="invertible"):
        LinearTransform(np.diag([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("kind", ["ants", "nifti", "slicer", "elastix"])
def test_a_file_cut_short_is_an_error(kind: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from itk_nir.images import save_image
    from itk_nir.transforms.formats.elastix import writing

    def short(array: Any, geometry: Geometry, path: Path, **options: Any) -> None:
        save_image(array, geometry, path, **options)
        os.truncate(path, int(path.stat().st_size * share))

    for module in (ants, field_image, writing):
        monkeypatch.setattr(module, "save_image", short)
    transform, fixed, moving = pair(3, 1.0, 0.0, 0.0)
    with pytest.raises(ItkNirError, match="cannot be read back after writing"):
        write_both(kind, transform, fixed, moving, tmp_path, "x_", tmp_path)


@pytest.mark.filterwarnings("default::itk_nir.errors.SelfCheckWarning")
def test_convert_keeps_what_failed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sitk.WriteTransform(sitk.TranslationTransform(3, (1, 2, 3)), str(tmp_path / "in.tfm"))
    real = itk_h5.write_h5

    def wrong(transform: CompositeTransform, path: Path, **options: Any) -> None:
        real(compose(transform, LinearTransform.make(np.eye(3), [0.5, 0, 0])), path, **options)

    arguments = ["convert", str(tmp_path / "in.tfm"), str(tmp_path / "out.h5")]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(itk_h5, "write_h5", wrong)
    assert main(arguments) == 4
    told = capsys.readouterr().err
    assert "warning: out.h5: read back, it moves a point by 0.5 mm more or less than it should" in told
    np.testing.assert_allclose(read_transform(tmp_path / "out.h5").map([0.0, 0, 0]), [1.5, 2, 3])


def test_a_report_holds_numbers_that_json_lacks_as_null() -> None:
    report = Written(differences={"a.h5": float("nan"), "b.h5": 0.5}, failed=("a.h5: ...",)).report()
    assert report["largest_difference_mm"] == {"a.h5": None, "b.h5": 0.5}
    assert report["passed"] is False

"""Every export, forward and inverse, applied by the program it is for: the same image, the same points."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError, ItkNirError, OptionError, SelfCheckWarning
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, save_image, to_itk, to_sitk
from itk_nir.report import Report
from itk_nir.resample import resample_array
from itk_nir.result import RegistrationResult
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform, check, compose
from itk_nir.transforms import save as formats
from itk_nir.transforms.composition import field_then_linear
from itk_nir.transforms.formats import ants, field_image, itk_h5
from itk_nir.transforms.formats.ants import read_ants
from itk_nir.transforms.formats.elastix import writing as elastix
from itk_nir.transforms.formats.itk_h5 import ItkH5, write_h5
from itk_nir.transforms.load import read_transform
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])
WAYS = pytest.mark.parametrize("way", ["", "inverse_"])
needs_transformix = pytest.mark.skipif(
    shutil.which("transformix") is None, reason="no transformix program on the PATH (Debian: apt-get install elastix)"
)


@lru_cache
def made(d: int) -> RegistrationResult:
    """Oblique, anisotropic, unequal grids; a field coarser than the fixed image, its inverse, and an affine part."""
    fixed = Geometry.make([27, 23, 19][:d], [1.1, 1.7, 2.3][:d], [-40, 25, 90][:d], turned(d, 0.4, 0.3))
    moving = Geometry.make([50, 47, 52][:d], [1.0, 1.2, 1.3][:d], [0] * d, turned(d, -0.7, 0.2))
    moving = Geometry.make(moving.size, moving.spacing, fixed.centre - moving.centre, moving.direction)
    waves = np.random.default_rng(1).normal(size=(2, d)) / 4
    f, m = (
        Volume(
            (50 + 50 * np.sin((g.grid() - fixed.centre) @ wave)).astype(np.float32),
            g,
            name,
            "path",
            np.dtype(np.float32),
        )
        for g, name, wave in zip((fixed, moving), ("fixed image", "moving image"), waves, strict=True)
    )
    coarse = Geometry.make(
        [(n + 1) // 2 + 4 for n in fixed.size], np.multiply(fixed.spacing, 2), fixed.index_to_physical([-4] * d),
        fixed.direction,
    )  # fmt: skip
    bend = np.random.default_rng(2).normal(size=(d, d)) / 12
    u = DisplacementField(coarse, (2 * np.sin((coarse.grid() - fixed.centre) @ bend + 1)).astype(np.float32))
    a = LinearTransform.make(turned(d, 0.12, -0.1) * 1.03, [2.0, -1.0, 3.0][:d], fixed.centre)
    return RegistrationResult(f, m, a, u, u.inverse(tolerance=1e-4), report=Report(seconds={"total": 1.0}))


def interior(chain: CompositeTransform, source: Geometry, target: Geometry) -> np.ndarray:
    """Voxels of `target` that every field knows, and that land well within `source`."""
    p = target.grid()
    inside = np.ones(target.shape, bool)
    for step in (*chain.transforms, None):
        grid = source if step is None else getattr(step, "geometry", None)
        if grid is not None:
            index = grid.physical_to_index(p)
            inside &= ((index >= 0.5) & (index <= np.asarray(grid.size) - 1.5)).all(axis=-1)
        p = p if step is None else step.map(p)
    assert inside.mean() > 0.15
    return inside


def there_or_back(result: RegistrationResult, way: str) -> tuple[CompositeTransform, Volume, Volume]:
    """The map, the image whose grid is wanted, the image that is resampled; `way` begins the keys of a save."""
    if way:
        return result.mapping.inverse(), result.moving, result.fixed
    return result.mapping, result.fixed, result.moving


def compare(
    image: np.ndarray,
    points: Callable[[np.ndarray], np.ndarray],
    chain: CompositeTransform,
    onto: Volume,
    source: Volume,
) -> None:
    """A tool's image inside the field to 1e-4 of the range, and its points to 1e-3 mm."""
    own = resample_array(source.array, source.geometry, chain, onto.geometry, "linear")
    inside = interior(chain, source.geometry, onto.geometry)
    assert own[inside].std() > 10
    assert np.abs(np.asarray(image, float) - own)[inside].max() <= 1e-4 * np.ptp(source.array)
    p = onto.geometry.grid()[inside][::7][:200]
    np.testing.assert_allclose(points(p), chain.map(p), atol=1e-3)


def one_by_one(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda points: np.array([list(transform.TransformPoint(p.tolist())) for p in points])


def by_sitk(transform: Any, onto: Volume, source: Volume) -> np.ndarray:
    image = sitk.Resample(
        to_sitk(source.array, source.geometry), to_sitk(onto.array, onto.geometry), transform, sitk.sitkLinear
    )
    return sitk.GetArrayFromImage(image)


def by_itk(transform: Any, onto: Volume, source: Volume) -> np.ndarray:
    import itk

    return np.asarray(
        itk.resample_image_filter(
            to_itk(source.array, source.geometry),
            transform=transform,
            reference_image=to_itk(onto.array, onto.geometry),
            use_reference_image=True,
        )
    )


# --- each format through its own program -----------------------------------------------------------------------------


@BOTH
@WAYS
def test_itk_files_in_itk_and_simpleitk(d: int, way: str, tmp_path: Path) -> None:
    import itk

    result = made(d)
    path = str(result.save(tmp_path / "x_")[f"{way}composite"])
    chain, onto, source = there_or_back(result, way)
    for transform, resampled in ((sitk.ReadTransform(path), by_sitk), (itk.transformread(path)[0], by_itk)):
        compare(resampled(transform, onto, source), one_by_one(transform), chain, onto, source)


@WAYS
@pytest.mark.parametrize(("kind", "d"), [("slicer", 2), ("slicer", 3), ("nifti", 3)])
def test_fields_of_the_whole_map_in_itk_and_simpleitk(d: int, way: str, kind: str, tmp_path: Path) -> None:
    import itk

    result = made(d)
    path = result.save(tmp_path / "x_", format=kind)[f"{way}displacement"]
    chain, onto, source = there_or_back(result, way)
    # Between the voxels of its grid one field is an approximation; `compare` looks at the voxels.
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    compare(by_sitk(transform, onto, source), one_by_one(transform), chain, onto, source)
    vectors = itk.imread(str(path))
    image = itk.Image[itk.Vector[itk.D, d], d].New()
    image.CopyInformation(vectors)
    image.SetRegions(vectors.GetLargestPossibleRegion())
    image.Allocate()
    itk.array_view_from_image(image)[...] = itk.array_from_image(vectors)
    transform = itk.DisplacementFieldTransform[itk.D, d].New()
    transform.SetDisplacementField(image)
    compare(by_itk(transform, onto, source), one_by_one(transform), chain, onto, source)


@BOTH
@WAYS
@pytest.mark.parametrize("kind", ["ants", "itk"])
def test_ants_applies_its_files_and_the_composite(d: int, way: str, kind: str, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas (of antspyx) is not installed")
    result = made(d)
    paths = result.save(f"{tmp_path}/", format=kind)
    chain, onto, source = there_or_back(result, way)
    keys = [f"{way}composite"] if kind == "itk" else ["affine", "inverse_warp"] if way else ["warp", "affine"]
    files = [str(paths[key]) for key in keys]
    invert = [bool(way) and key == "affine" for key in keys]
    images = []
    for volume, name in ((onto, "onto.nii.gz"), (source, "source.nii.gz")):
        save_image(volume.array, volume.geometry, tmp_path / name)
        images.append(ants.image_read(str(tmp_path / name)))

    def points(p: np.ndarray) -> np.ndarray:
        columns = list("xyz")[:d]
        out = ants.apply_transforms_to_points(d, pandas.DataFrame(p, columns=columns), files, whichtoinvert=invert)
        return out[columns].to_numpy()

    compare(ants.apply_transforms(*images, files, whichtoinvert=invert).numpy().T, points, chain, onto, source)


@BOTH
@WAYS
def test_transformix_of_itk_elastix(d: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import itk

    if not hasattr(itk, "TransformixFilter"):
        pytest.skip("itk-elastix is not installed")
    result = made(d)
    paths = result.save(tmp_path / "x_", format="elastix")
    chain, onto, source = there_or_back(result, way)
    monkeypatch.chdir("/")
    parameters = itk.ParameterObject.New()
    parameters.ReadParameterFiles([str(paths[f"{way}transform_0"]), str(paths[f"{way}transform"])])
    image = to_itk(source.array, source.geometry)

    def points(p: np.ndarray) -> np.ndarray:
        listed = tmp_path / "points.txt"
        write_points(listed, p)
        itk.transformix_pointset(
            image, parameters, fixed_point_set_file_name=str(listed), output_directory=str(tmp_path)
        )
        return read_points(tmp_path / "outputpoints.txt", d)

    compare(np.asarray(itk.transformix_filter(image, parameters)), points, chain, onto, source)


@needs_transformix
@BOTH
@WAYS
def test_the_transformix_program(d: int, way: str, tmp_path: Path) -> None:
    result = made(d)
    paths = result.save(tmp_path / "x_", format="elastix")
    chain, onto, source = there_or_back(result, way)
    save_image(source.array, source.geometry, tmp_path / "source.mha")

    def run(*more: str) -> None:
        arguments = ["transformix", "-out", str(tmp_path), "-tp", str(paths[f"{way}transform"]), *more]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stdout[-2000:]

    def points(p: np.ndarray) -> np.ndarray:
        write_points(tmp_path / "points.txt", p)
        run("-def", str(tmp_path / "points.txt"))
        return read_points(tmp_path / "outputpoints.txt", d)

    run("-in", str(tmp_path / "source.mha"))
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "result.nii.gz")))
    compare(image, points, chain, onto, source)


def write_points(path: Path, points: np.ndarray) -> None:
    rows = [" ".join(repr(float(v)) for v in p) for p in points]
    path.write_text("\n".join(["point", str(len(points)), *rows]) + "\n")


def read_points(path: Path, d: int) -> np.ndarray:
    found = re.findall(r"OutputPoint\s*=\s*\[([^\]]*)\]", path.read_text())
    return np.array([[float(v) for v in text.split()] for text in found]).reshape(-1, d)


# --- what a save leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "d"), [(k, d) for k in formats.FORMATS for d in (2, 3) if (k, d) != ("nifti", 2)])
def test_files_report_and_the_way_back(d: int, kind: str, tmp_path: Path) -> None:
    result = made(d)
    paths = result.save(tmp_path / "new" / "x_", format=kind)
    assert {p.name for p in paths.values()} == {p.name for p in (tmp_path / "new").iterdir()}
    report = json.loads(paths["report"].read_text())
    checked = report["self_check"]
    assert checked["tolerance_mm"] == 1e-3
    assert checked["points"] == check.POINTS
    assert 2 <= len(checked["largest_difference_mm"]) <= 3
    assert all(0 <= gap < 1e-4 for gap in checked["largest_difference_mm"].values())
    assert set(checked["largest_difference_mm"]) <= set(report["files"].values())
    p = result.fixed.geometry.grid()[interior(result.mapping, result.moving.geometry, result.fixed.geometry)]
    q = result.mapping.map(p)
    keys = {
        "itk": "composite", "ants": ("warp", "affine"), "elastix": "transform", "slicer": "displacement",
        "nifti": "displacement",
    }  # fmt: skip
    key = keys[kind]
    again = read_transform([paths[k] for k in key] if isinstance(key, tuple) else paths[key])
    np.testing.assert_allclose(again.map(p), q, atol=1e-4)
    back = read_ants(tmp_path / "new" / "x_").inverse() if kind == "ants" else read_transform(paths[f"inverse_{key}"])
    wanted = result.mapping.inverse()
    # One field of the inverse is exact at the voxels of the moving image only.
    nodes = result.moving.geometry.grid()[interior(wanted, result.fixed.geometry, result.moving.geometry)]
    np.testing.assert_allclose(back.map(nodes), wanted.map(nodes), atol=1e-4)


def test_fields_are_single_precision(tmp_path: Path) -> None:
    result = made(3)
    voxels = int(np.prod(result.mapping.fields[0].geometry.size))
    elastix = result.save(f"{tmp_path}/e/", format="elastix")
    assert elastix["field"].stat().st_size < voxels * 12 + 1000
    itk_files = result.save(f"{tmp_path}/i/")
    assert itk_files["composite"].stat().st_size < voxels * 12 + 20000


def test_a_linear_result_in_every_format(tmp_path: Path) -> None:
    result = made(3)
    linear = RegistrationResult(result.fixed, result.moving, result.affine)
    chain = linear.mapping
    p = result.fixed.geometry.grid()[2:-2, 2:-2, 2:-2].reshape(-1, 3)
    for kind, key in (("itk", "composite"), ("ants", "affine"), ("elastix", "transform"), ("nifti", "displacement")):
        paths = linear.save(f"{tmp_path}/{kind}/", format=kind)
        np.testing.assert_allclose(read_transform(paths[key]).map(p), chain.map(p), atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "ants").iterdir()) == [
        "0GenericAffine.mat", "Warped.nii.gz", "report.json",
    ]  # fmt: skip


@BOTH
def test_a_chain_of_many_steps_is_brought_into_ants_form(d: int, tmp_path: Path) -> None:
    result = made(d)
    extra = LinearTransform.make(np.eye(d), [1.5, -0.5, 1.0][:d])
    chain = compose(extra, result.mapping)
    longer = RegistrationResult(result.fixed, result.moving, extra, initial=result.mapping)
    paths = longer.save(f"{tmp_path}/", format="ants")
    report = json.loads(paths["report"].read_text())["self_check"]
    inside = interior(chain, result.moving.geometry, result.fixed.geometry)
    nodes = result.fixed.geometry.grid()[inside]
    np.testing.assert_allclose(read_ants(f"{tmp_path}/").map(nodes), chain.map(nodes), atol=1e-4)
    assert 1e-6 < report["sampling_mm"]["1Warp.nii.gz"] < 3
    form = field_then_linear(chain, result.fixed.geometry)
    assert [type(step) for step in form.transforms] == [DisplacementField, LinearTransform]
    last = result.mapping.transforms[-1].matrix @ extra.matrix
    np.testing.assert_allclose(form.transforms[-1].matrix, last, atol=1e-12)
    q = chain.map(nodes)
    np.testing.assert_allclose(form.inverse().map(q), nodes, atol=0.4)


def test_forms_that_fit_stay_as_they_are() -> None:
    chain = made(2).mapping
    form = field_then_linear(chain)
    assert form.transforms[0] is chain.transforms[0]
    assert form.inverse_transforms is not None
    assert form.inverse_transforms[1] is chain.inverse().transforms[1]
    assert field_then_linear(chain, inverse=False).inverse_transforms is None


def test_ras_fields_are_3d_only_because_itk_misreads_flat_ones(tmp_path: Path) -> None:
    result = made(2)
    with pytest.raises(InputError, match="format nifti is for 3D"):
        result.save(tmp_path / "new" / "x_", format="nifti")
    assert list(tmp_path.iterdir()) == []
    path = result.save(f"{tmp_path}/", format="ants")["warp"]
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", raw, 68, 1006)
    flat = tmp_path / "flat.nii"
    flat.write_bytes(raw)
    # The reason: half of the vectors come out with the wrong sign. When this fails, ITK has been mended.
    written, read = (sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (path, flat))
    assert np.abs(read + written).max() > 0.1
    with pytest.raises(InputError, match="2D field with RAS vectors"):
        read_transform(flat)


def test_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one of itk, ants, elastix, slicer, nifti, got 'minc'"):
        made(2).save(tmp_path / "new" / "x_", format="minc")
    assert list(tmp_path.iterdir()) == []


# --- the self-check --------------------------------------------------------------------------------------------------


def shifted(chain: CompositeTransform) -> CompositeTransform:
    """The chain with one vector component 0.01 mm off."""
    field, *rest = chain.transforms
    assert isinstance(field, DisplacementField)
    vectors = field.vectors.copy()
    vectors[..., 0] += 0.01
    return CompositeTransform((DisplacementField(field.geometry, vectors), *rest))


def test_a_file_that_is_not_the_transform_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(chain: CompositeTransform, path: Path, **options: Any) -> None:
        write_h5(shifted(chain) if path.name == "x_Composite.h5" else chain, path, **options)

    monkeypatch.setattr(itk_h5, "write_h5", wrong)
    with pytest.warns(SelfCheckWarning, match=r"x_Composite\.h5: read back, it moves a point by 0\.01\d* mm") as told:
        paths = made(3).save(tmp_path / "x_")
    assert len(told) == 1
    assert sorted(tmp_path.iterdir()) == sorted(paths.values())
    checked = json.loads(paths["report"].read_text())["self_check"]
    assert checked["passed"] is False
    assert checked["failed"] == [str(told[0].message)]
    assert checked["largest_difference_mm"]["x_Composite.h5"] == pytest.approx(0.01, rel=0.1)
    assert checked["largest_difference_mm"]["x_InverseComposite.h5"] < 1e-4


@pytest.mark.parametrize("kind", ["ants", "elastix", "slicer", "nifti"])
def test_wrong_axes_and_directions_are_seen_in_every_format(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mirrored(array: np.ndarray, geometry: Geometry, path: Path, **options: Any) -> None:
        save_image(array * np.float32([-1, 1, 1]) if array.ndim == 4 else array, geometry, path, **options)

    for module in (ants, elastix, field_image):
        monkeypatch.setattr(module, "save_image", mirrored)
    with pytest.warns(SelfCheckWarning, match="mm more or less than it should"):
        paths = made(3).save(f"{tmp_path}/new/", format=kind)
    checked = json.loads(paths["report"].read_text())["self_check"]
    assert checked["passed"] is False
    assert checked["failed"]


def test_a_truncated_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(chain: CompositeTransform, path: Path, **options: Any) -> None:
        write_h5(chain, path, **options)
        os.truncate(path, path.stat().st_size // 2)

    monkeypatch.setattr(itk_h5, "write_h5", short)
    with pytest.raises(ItkNirError, match="cannot be read back"):
        made(2).save(tmp_path / "x_")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["float", "double"])
@pytest.mark.parametrize("compression", [0, 1])
def test_the_checks_own_reader_of_h5(precision: str, compression: int, tmp_path: Path) -> None:
    chain = made(3).mapping
    path = tmp_path / "t.h5"
    write_h5(chain, path, precision=precision, compression=compression)
    p = check.random_points(chain.fields[0].geometry)
    np.testing.assert_allclose(ItkH5().applied(path)(p), chain.map(p), atol=1e-4)
    assert check.largest_difference(chain, p, ItkH5().applied(path), "t.h5") < 1e-4


def test_points_of_the_check_are_random_and_always_the_same() -> None:
    grid = made(3).fixed.geometry
    p = check.random_points(grid)
    np.testing.assert_array_equal(p, check.random_points(grid))
    assert p.shape == (check.POINTS, 3)
    assert grid.contains(p).all()


def test_folder_of_elastix_files_may_be_moved(tmp_path: Path) -> None:
    result = made(3)
    result.save(f"{tmp_path}/here/", format="elastix")
    shutil.move(tmp_path / "here", tmp_path / "there")
    p = result.fixed.geometry.grid()[::4, ::4, ::4].reshape(-1, 3)
    again = read_transform(tmp_path / "there" / "TransformParameters.1.txt")
    np.testing.assert_allclose(again.map(p), result.mapping.map(p), atol=1e-9)


def test_old_files_of_the_same_name_do_not_deceive_the_check(tmp_path: Path) -> None:
    result = made(2)
    other = replace(result, displacement=shifted(result.mapping).transforms[0])
    result.save(f"{tmp_path}/", format="elastix")
    other.save(f"{tmp_path}/", format="elastix")
    p = result.fixed.geometry.grid()[::4, ::4].reshape(-1, 2)
    again = read_transform(tmp_path / "TransformParameters.1.txt")
    np.testing.assert_allclose(again.map(p), other.mapping.map(p), atol=1e-9)

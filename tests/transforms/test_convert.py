"""Known shifts and turns, written by hand in each format's own convention, and `itk-nir convert` between them."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli import main
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.formats.elastix import parameter_maps, read_elastix
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.save import save_transform

BOTH = pytest.mark.parametrize("d", [2, 3])

# 30 degrees about z, x towards y, about CENTRE; then 5 mm to the left, 3 to the front, 7 up (LPS).
ANGLE = np.pi / 6
CENTRE = np.array([10.0, 20.0, 30.0])
SHIFT = np.array([5.0, -3.0, 7.0])


def expected(points: np.ndarray) -> np.ndarray:
    """The turn and the shift, written out."""
    d = points.shape[-1]
    x, y = points[..., 0] - 10, points[..., 1] - 20
    c, s = np.sqrt(0.75), 0.5
    out = [c * x - s * y + 10 + 5, s * x + c * y + 20 - 3]
    if d == 3:
        out.append(points[..., 2] + 7)
    return np.stack(out, -1)


def known(d: int) -> LinearTransform:
    matrix = np.eye(d)
    matrix[:2, :2] = [[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]
    return LinearTransform.make(matrix, SHIFT[:d], CENTRE[:d])


def grid_around(d: int) -> Geometry:
    """Oblique, anisotropic, around CENTRE."""
    turn = np.eye(d)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    grid = Geometry.make([13, 11, 9][:d], [2.0, 3.0, 4.0][:d], [0] * d, turn)
    return Geometry.make(grid.size, grid.spacing, CENTRE[:d] - grid.centre, turn)


def known_field(d: int) -> DisplacementField:
    grid = grid_around(d)
    return DisplacementField(grid, (expected(grid.grid()) - grid.grid()).astype(np.float32))


def points(d: int) -> np.ndarray:
    index = np.random.default_rng(0).uniform(size=(60, d)) * (np.asarray(grid_around(d).size) - 1)
    return grid_around(d).index_to_physical(index)


def test_the_known_map_itself() -> None:
    # A point 10 mm to the left of the centre goes to (8.66, 5) from it, then moves by the shift.
    left = np.array([10.0, 0, 0])
    np.testing.assert_allclose(expected(CENTRE + left), CENTRE + np.array([8.660254, 5, 0]) + SHIFT, atol=1e-6)
    for d in (2, 3):
        np.testing.assert_allclose(known(d).map(points(d)), expected(points(d)), atol=1e-12)


# --- in: files made by hand, in the words of each tool ---------------------------------------------------------------


def itk_text(path: Path, d: int) -> Path:
    name, turn = ("Euler2DTransform", f"{ANGLE!r}") if d == 2 else ("Euler3DTransform", f"0 0 {ANGLE!r}")
    fixed = "10 20" if d == 2 else "10 20 30 0"
    file = path / "t.tfm"
    file.write_text(
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {name}_double_{d}_{d}\n"
        f"Parameters: {turn} {'5 -3 7'[: 4 if d == 2 else 6]}\nFixedParameters: {fixed}\n"
    )
    return file


def itk_hdf(path: Path, d: int) -> Path:
    """A composite whose parts stand in ITK's order: the shift, added first, is applied last."""
    turn = known(d).matrix[:-1, :-1]
    with h5py.File(path / "t.h5", "w") as file:
        for number, (name, fixed, values) in enumerate(
            (
                ("CompositeTransform", [], []),
                ("TranslationTransform", [], SHIFT[:d]),
                ("AffineTransform", CENTRE[:d], [*turn.ravel(), *[0.0] * d]),
            )
        ):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = [f"{name}_double_{d}_{d}".encode()]
            if number:
                group["TransformFixedParameters"] = np.array(fixed, float)
                group["TransformParameters"] = np.array(values, float)
    return path / "t.h5"


def elastix_head(d: int) -> str:
    grid = grid_around(d)
    columns = " ".join(repr(float(v)) for v in grid.rotation.T.ravel())
    return (
        f'(FixedImageDimension {d})\n(MovingImageDimension {d})\n(HowToCombineTransforms "Compose")\n'
        f"(Size {' '.join(map(str, grid.size))})\n(Index {' '.join('0' * d)})\n"
        f"(Spacing {' '.join(map(str, grid.spacing))})\n(Origin {' '.join(map(repr, grid.origin))})\n"
        f'(Direction {columns})\n(UseDirectionCosines "true")\n\n// ResampleInterpolator specific\n'
        '(ResampleInterpolator "FinalBSplineInterpolator")\n(FinalBSplineInterpolationOrder 3)\n'
    )


def elastix_euler(path: Path, d: int) -> Path:
    turn = f"{ANGLE!r}" if d == 2 else f"0 0 {ANGLE!r}"
    file = path / "TransformParameters.0.txt"
    file.write_text(
        f'(Transform "EulerTransform")\n(NumberOfParameters {3 * (d - 1)})\n(TransformParameters {turn} '
        f"{' '.join(map(str, SHIFT[:d]))})\n(CenterOfRotationPoint {' '.join(map(str, CENTRE[:d]))})\n"
        f'(InitialTransformParametersFileName "NoInitialTransform")\n{elastix_head(d)}'
    )
    return file


def elastix_chain(path: Path, d: int) -> Path:
    """The turn (file 0) comes first, then the shift (file 1), which names the other by a path that is gone."""
    first = elastix_euler(path, d)
    first.write_text(first.read_text().replace(" ".join(map(str, SHIFT[:d])), " ".join(["0"] * d)))
    file = path / "TransformParameters.1.txt"
    file.write_text(
        f'(Transform "TranslationTransform")\n(NumberOfParameters {d})\n'
        f"(TransformParameters {' '.join(map(str, SHIFT[:d]))})\n"
        f'(InitialTransformParameterFileName "/gone/TransformParameters.0.txt")\n{elastix_head(d)}'
    )
    return file


def elastix_affine_about_a_centre_index(path: Path, d: int) -> Path:
    """As elastix 4 wrote it: the centre is an index of the fixed image (the middle of the grid, which is CENTRE)."""
    matrix = " ".join(repr(float(v)) for v in known(d).matrix[:-1, :-1].ravel())
    middle = " ".join(str((n - 1) // 2) for n in grid_around(d).size)
    file = path / "TransformParameters.0.txt"
    file.write_text(
        f'(Transform "AffineTransform")\n(TransformParameters {matrix} {" ".join(map(str, SHIFT[:d]))})\n'
        f"(CenterOfRotation {middle})\n{elastix_head(d)}"
    )
    return file


def nifti_by_nibabel(path: Path, d: int, intent: str) -> Path:
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    grid, field = grid_around(d), known_field(d)
    flip = np.array([-1.0, -1, 1])
    ras = np.eye(4)
    ras[:d, :d], ras[:d, 3] = grid.matrix[:-1, :-1], grid.matrix[:-1, -1]
    ras[:3] *= flip[:, None]
    # nibabel's arrays are x first.
    vectors = np.moveaxis(field.vectors, range(d), range(d)[::-1]).reshape(*grid.size, *[1] * (4 - d), d)
    if intent == "displacement vector":
        vectors = vectors * flip[:d]
    image = nibabel.Nifti1Image(vectors.astype(np.float32), ras)
    image.header.set_intent(intent)
    image.header.set_xyzt_units("mm")
    image.set_sform(ras, 1)
    image.set_qform(ras, 1)
    nibabel.save(image, path / "field.nii.gz")
    return path / "field.nii.gz"


def ants_warp(path: Path, d: int) -> Path:
    return nifti_by_nibabel(path, d, "vector")


def ras_field(path: Path, d: int) -> Path:
    return nifti_by_nibabel(path, d, "displacement vector")


def ants_affine(path: Path, d: int) -> Path:
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    transform = ants.create_ants_transform(
        "AffineTransform", "double", d, matrix=known(d).matrix[:-1, :-1], translation=SHIFT[:d].tolist(),
        center=CENTRE[:d].tolist(),
    )  # fmt: skip
    ants.write_transform(transform, str(path / "0GenericAffine.mat"))
    return path / "0GenericAffine.mat"


def slicer_grid(path: Path, d: int) -> Path:
    """A grid transform as 3D Slicer saves it: a NRRD file of LPS vectors (2D likewise)."""
    grid, field = grid_around(d), known_field(d)

    def text(v: np.ndarray) -> str:
        return f"({','.join(repr(float(c)) for c in v)})"

    axes = " ".join(text(grid.rotation[:, a] * grid.spacing[a]) for a in range(d))
    space = "space: left-posterior-superior" if d == 3 else "space dimension: 2"
    head = (
        f"NRRD0004\ntype: float\ndimension: {d + 1}\n{space}\nsizes: {d} {' '.join(map(str, grid.size))}\n"
        f"space directions: none {axes}\nkinds: vector {' '.join(['domain'] * d)}\nendian: little\nencoding: raw\n"
        f"space origin: {text(np.asarray(grid.origin))}\n\n"
    )
    file = path / "grid.nrrd"
    file.write_bytes(head.encode() + field.vectors.astype("<f4").tobytes())
    return file


def elastix_field(path: Path, d: int) -> Path:
    """A MetaImage written by hand, and the parameter file that names it without a folder."""
    grid, field = grid_around(d), known_field(d)
    numbers = " ".join(repr(float(v)) for v in grid.rotation.T.ravel())
    head = (
        f"ObjectType = Image\nNDims = {d}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"TransformMatrix = {numbers}\nOffset = {' '.join(map(repr, grid.origin))}\n"
        f"ElementSpacing = {' '.join(map(str, grid.spacing))}\nDimSize = {' '.join(map(str, grid.size))}\n"
        f"ElementNumberOfChannels = {d}\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    (path / "field.mha").write_bytes(head.encode() + field.vectors.astype("<f4").tobytes())
    file = path / "TransformParameters.0.txt"
    file.write_text(
        '(Transform "DeformationFieldTransform")\n(DeformationFieldFileName "field.mha")\n'
        f"(DeformationFieldInterpolationOrder 1)\n(NumberOfParameters 0)\n{elastix_head(d)}"
    )
    return file


HAND_MADE = (
    itk_text, itk_hdf, elastix_euler, elastix_chain, elastix_affine_about_a_centre_index, elastix_field, ants_warp,
    ants_affine, ras_field, slicer_grid,
)  # fmt: skip


# ITK misreads flat fields of intent 1006, so they are refused (see test_formats).
@pytest.mark.parametrize(
    ("make", "d"),
    [pytest.param(f, d, id=f"{f.__name__}-{d}") for f in HAND_MADE for d in (2, 3) if (f, d) != (ras_field, 2)],
)
def test_known_map_comes_in_with_the_right_sign_and_axis(
    make: Callable[[Path, int], Path], d: int, tmp_path: Path
) -> None:
    chain = read_transform(make(tmp_path, d))
    np.testing.assert_allclose(chain.map(points(d)), expected(points(d)), atol=1e-4)


# --- out: each file read by hand, or by its tool ---------------------------------------------------------------------


def parameter(path: Path, key: str) -> list[float]:
    found = re.search(rf"^\({key} (.*)\)$", path.read_text(), re.MULTILINE)
    assert found is not None
    return [float(v) for v in found[1].split()]


@BOTH
def test_known_map_goes_out_to_elastix(d: int, tmp_path: Path) -> None:
    (file,), _ = save_transform(
        CompositeTransform((known(d),)), tmp_path / "TransformParameters.0.txt", reference=grid_around(d)
    )
    values = np.array(parameter(file, "TransformParameters"))
    assert parameter(file, "CenterOfRotationPoint") == [0] * d
    np.testing.assert_allclose(points(d) @ values[: d * d].reshape(d, d).T + values[d * d :], expected(points(d)))
    assert parameter(file, "Direction")[:2] == [0.8, 0.6]  # the first column
    assert parameter(file, "Size") == list(grid_around(d).size)


def test_elastix_files_have_the_words_that_every_version_needs(tmp_path: Path) -> None:
    chain = CompositeTransform((known_field(3), LinearTransform.make(np.eye(3), [1, 2, 3])))
    paths, _ = save_transform(chain, tmp_path / "TransformParameters.1.txt")
    text = paths[-1].read_text()
    for key in ("InitialTransformParameterFileName", "InitialTransformParametersFileName"):
        assert f'({key} "{tmp_path / "TransformParameters.0.txt"}")' in text
    assert '(ResampleInterpolator "FinalBSplineInterpolator")' in text
    assert "(FinalBSplineInterpolationOrder 1)" in text
    first = (tmp_path / "TransformParameters.0.txt").read_text()
    assert "(DeformationFieldInterpolationOrder 1)" in first
    assert f'(DeformationFieldFileName "{tmp_path / "DeformationField.mha"}")' in first
    assert '(InitialTransformParametersFileName "NoInitialTransform")' in first


@BOTH
def test_known_map_goes_out_to_ants(d: int, tmp_path: Path) -> None:
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    paths, _ = save_transform(CompositeTransform((known(d),)), tmp_path / "x_", format="ants")
    assert [p.name for p in paths] == ["x_0GenericAffine.mat"]
    affine = ants.read_transform(str(paths[0]), precision="double")
    np.testing.assert_allclose([affine.apply_to_point(p.tolist()) for p in points(d)], expected(points(d)), atol=1e-4)
    grid = grid_around(d)
    back = DisplacementField(grid, (known(d).inverse().map(grid.grid()) - grid.grid()).astype(np.float32))
    paths, _ = save_transform(CompositeTransform((known_field(d),), (back,)), tmp_path / "y_", format="ants")
    assert {p.name for p in paths} == {"y_1Warp.nii.gz", "y_0GenericAffine.mat", "y_1InverseWarp.nii.gz"}
    warp = ants.transform_from_displacement_field(ants.image_read(str(tmp_path / "y_1Warp.nii.gz")))
    np.testing.assert_allclose([warp.apply_to_point(p.tolist()) for p in points(d)], expected(points(d)), atol=1e-3)
    inverse = read_transform(tmp_path / "y_1InverseWarp.nii.gz")
    np.testing.assert_allclose(inverse.map(points(d)), known(d).inverse().map(points(d)), atol=1e-3)


@pytest.mark.parametrize(("d", "name", "kind"), [(2, "f.nii.gz", None), (3, "f.nii", None), (3, "f.nii.gz", "nifti")])
def test_known_map_goes_out_to_nifti(d: int, name: str, kind: str | None, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    (path,), _ = save_transform(CompositeTransform((known_field(d),)), tmp_path / name, format=kind)
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    assert data.dtype == np.float32
    assert data.shape == (*grid_around(d).size, *[1] * (4 - d), d)
    assert int(image.header["intent_code"]) == (1006 if kind else 1007)
    index = np.array([2, 3, 4][:d])
    ras = image.affine @ [*index, *[0] * (3 - d), 1]
    lps = ras[:d] * [-1, -1, 1][:d]
    vector = data[tuple(index)].ravel() * (np.array([-1, -1, 1])[:d] if kind else 1)
    np.testing.assert_allclose(lps, grid_around(d).index_to_physical(index), atol=1e-4)
    np.testing.assert_allclose(lps + vector, expected(lps), atol=1e-4)


@BOTH
def test_known_map_goes_out_to_slicer(d: int, tmp_path: Path) -> None:
    (path,), _ = save_transform(CompositeTransform((known_field(d),)), tmp_path / "f.nrrd", format="slicer")
    head, _, body = path.read_bytes().partition(b"\n\n")
    text = head.decode()
    assert "encoding: raw" in text
    assert f"sizes: {d} {' '.join(map(str, grid_around(d).size))}" in text
    if d == 3:
        assert "space: left-posterior-superior" in text
    assert re.search(r"^kinds: vector", text, re.MULTILINE)
    origin = [float(v) for v in re.search(r"space origin: \(([^)]*)\)", text)[1].split(",")]  # type: ignore[index]
    np.testing.assert_allclose(origin, grid_around(d).origin)
    first = struct.unpack_from(f"<{d}f", body)
    np.testing.assert_allclose(np.array(origin) + first, expected(np.array(origin)), atol=1e-5)


@BOTH
@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.txt", "t.mat"])
def test_known_map_goes_out_to_itk(d: int, name: str, tmp_path: Path) -> None:
    (path,), written = save_transform(CompositeTransform((known(d),)), tmp_path / name)
    transform = sitk.ReadTransform(str(path))
    np.testing.assert_allclose(
        [transform.TransformPoint(p.tolist()) for p in points(d)], expected(points(d)), atol=1e-4
    )
    assert 0 <= written.differences[name] < 1e-4
    assert written.sampling == {}


# --- from every format to every other --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("out", ["o.h5", "o.tfm", "o.nii.gz", "o.nii", "o.nrrd", "o.mha", "TransformParameters.1.txt"])
def test_convert_on_the_command_line(d: int, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = slicer_grid(tmp_path, d)
    assert main(["convert", str(source), str(tmp_path / out)]) == 0
    shown = capsys.readouterr().out
    assert "read back: " in shown
    # Elastix numbers from 0, and one field is one file.
    made = tmp_path / out.replace(".1.", ".0.")
    assert made.name in shown
    np.testing.assert_allclose(read_transform(made).map(points(d)), expected(points(d)), atol=1e-4)


def test_convert_ants_files_to_elastix_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, shift = grid_around(3), LinearTransform.make(np.eye(3), [1, 2, 3])
    field = DisplacementField(grid, (1.5 * np.sin(grid.grid() / 5)).astype(np.float32))
    save_transform(CompositeTransform((field, shift)), tmp_path / "a_", format="ants")
    files = [str(tmp_path / "a_1Warp.nii.gz"), str(tmp_path / "a_0GenericAffine.mat")]
    assert main(["convert", *files, str(tmp_path / "e" / "TransformParameters.1.txt")]) == 0
    assert {p.name for p in (tmp_path / "e").iterdir()} == {
        "DeformationField.mha", "TransformParameters.0.txt", "TransformParameters.1.txt",
    }  # fmt: skip
    whole = str(tmp_path / "e" / "TransformParameters.1.txt")
    assert main(["convert", whole, str(tmp_path / "b_"), "--format", "ants"]) == 0
    again = read_transform([tmp_path / "b_1Warp.nii.gz", tmp_path / "b_0GenericAffine.mat"])
    np.testing.assert_allclose(again.map(points(3)), shift.map(field.map(points(3))), atol=1e-4)
    assert "sampled" not in capsys.readouterr().out


@pytest.mark.parametrize("out", ["o.nii.gz", "o.nrrd", "TransformParameters.0.txt"])
def test_what_cannot_be_exact_needs_a_reference_and_says_so(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = itk_text(tmp_path, 3)
    before = set(tmp_path.iterdir())
    assert main(["convert", str(source), str(tmp_path / out)]) == 2
    assert "reference" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before
    image = tmp_path / "fixed.nii.gz"
    save_image(np.zeros(grid_around(3).shape, np.float32), grid_around(3), image)
    assert main(["convert", str(source), str(tmp_path / out), "--reference", str(image)]) == 0
    assert ("sampled on a grid" in capsys.readouterr().out) == (not out.endswith(".txt"))
    # A linear map is followed exactly by linear interpolation.
    np.testing.assert_allclose(read_transform(tmp_path / out).map(points(3)), expected(points(3)), atol=1e-4)


def test_field_on_another_grid_says_what_it_costs(tmp_path: Path) -> None:
    fine = Geometry.make([41, 33, 29], [0.7] * 3, CENTRE - 12)
    wave = DisplacementField(fine, (2 * np.sin(fine.grid() / 3)).astype(np.float32))
    coarse = Geometry.make([11, 9, 8], [2.4] * 3, CENTRE - 11)
    (path,), written = save_transform(CompositeTransform((wave,)), tmp_path / "f.nii.gz", reference=coarse)
    assert 0.05 < written.sampling["f.nii.gz"] < 2
    inner = coarse.grid()[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(read_transform(path).map(inner), wave.map(inner), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("t.xyz", None, "tells no transform format"),
        ("t.mat", None, "linear transforms only"),
        ("t.mha", "nifti", r"ends in \.nii"),
        ("t.mat", "slicer", "ends in"),
        ("t.h5", "ants", "start of their names"),
        ("t.h5", "elastix", "TransformParameters.0.txt"),
        ("TransformParameters.0.txt", "itk", "ends in"),
    ],
)
def test_names_that_do_not_fit(name: str, kind: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        save_transform(CompositeTransform((known_field(3),)), tmp_path / "new" / name, format=kind)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="minc"):
        save_transform(CompositeTransform((known_field(3),)), tmp_path / name, format="minc")


# --- what elastix itself makes ---------------------------------------------------------------------------------------


def blob(grid: Geometry, at: np.ndarray) -> np.ndarray:
    return (100 * np.exp(-((grid.grid() - at) ** 2).sum(-1) / 200)).astype(np.float32)


ELASTIX_CASES = ("translation", "rigid", "similarity", "affine", "bspline", "rigid+bspline", "rigid+bspline add")


@BOTH
@pytest.mark.parametrize("case", ELASTIX_CASES)
def test_elastix_results_come_in_as_transformix_applies_them(d: int, case: str, tmp_path: Path) -> None:
    import itk

    if not hasattr(itk, "ParameterObject"):
        pytest.skip("itk-elastix is not installed")
    from itk_nir.images import to_itk

    fixed = grid_around(d)
    moving = Geometry.make([30, 34, 32][:d], [1.5, 1.4, 1.7][:d], fixed.index_to_physical([-2] * d), np.eye(d))
    parameters = itk.ParameterObject.New()
    for number, name in enumerate(case.split()[0].split("+")):
        stage = parameters.GetDefaultParameterMap("rigid" if name == "similarity" else name, 1, 12.0)
        stage["MaximumNumberOfIterations"] = ["4"]
        if name == "similarity":
            stage["Transform"] = ["SimilarityTransform"]
        if number and case.endswith("add"):
            stage["HowToCombineTransforms"] = ["Add"]
        parameters.AddParameterMap(stage)
    images = [to_itk(blob(g, fixed.centre + s), g) for g, s in ((fixed, 0), (moving, 2.0))]
    folder = tmp_path / "out"
    folder.mkdir()
    _, found = itk.elastix_registration_method(*images, parameter_object=parameters, output_directory=str(folder))
    wanted = itk.array_from_image(itk.transformix_deformation_field(images[1], found, output_directory=str(folder)))
    assert np.abs(wanted).max() > 0.1
    last = folder / f"TransformParameters.{parameters.GetNumberOfParameterMaps() - 1}.txt"
    for source in (found, last):
        chain = read_transform(source, fixed)
        np.testing.assert_allclose(chain.displacement_on(fixed).vectors, wanted, atol=1e-4)
    if "bspline" in case:
        with pytest.warns(UserWarning, match="BSplineTransform is sampled on the grid that its parameters name"):
            chain = read_elastix(last)
        np.testing.assert_allclose(chain.displacement_on(fixed).vectors, wanted, atol=1e-4)
    if case == "rigid+bspline":
        assert [type(step) for step in chain.transforms] == [DisplacementField, LinearTransform]


def test_a_class_that_only_elastix_knows_is_sampled_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import itk

    monkeypatch.chdir(tmp_path)

    file = elastix_euler(tmp_path, 3)
    shear = "0 0 0 0 0 0 1 1 1 5 -3 7"  # angles, shears, scales, translation
    text = re.sub(r"\(TransformParameters .*\)", f"(TransformParameters {shear})", file.read_text())
    text = text.replace("EulerTransform", "AffineDTITransform").replace("NumberOfParameters 6", "NumberOfParameters 12")
    file.write_text(text)
    if hasattr(itk, "TransformixFilter"):
        chain = read_transform(file, grid_around(3))
        np.testing.assert_allclose(chain.map(points(3)) - points(3), np.broadcast_to(SHIFT, (60, 3)), atol=1e-4)
        assert [p.name for p in tmp_path.iterdir()] == ["TransformParameters.0.txt"]

    class Bare:
        ParameterObject = None

    monkeypatch.setitem(__import__("sys").modules, "itk", Bare())
    with pytest.raises(
        InputError, match="AffineDTITransform can only be read by elastix itself; pip install itk-elastix"
    ):
        read_transform(file, grid_around(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("(CenterOfRotationPoint", "(Other"), "CenterOfRotation"),
        (lambda t: re.sub(r"\(TransformParameters .*\)", "(TransformParameters 1 2)", t), "has 2 values, 6 are needed"),
        (lambda t: re.sub(r"\(TransformParameters .*\)", "(TransformParameters a b c d e f)", t), "no numbers"),
        (lambda t: t.replace("NoInitialTransform", "TransformParameters.0.txt"), "in a circle"),
        (lambda t: t.replace("NoInitialTransform", "gone.txt"), "no such file"),
        (lambda t: t + "(Broken", "damaged"),
        (lambda t: t.replace("EulerTransform", "ExternalTransform"), "its address"),
    ],
)
def test_damaged_parameter_files(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    file = elastix_euler(tmp_path, 3)
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=message):
        read_transform(file)


def test_nearest_neighbour_fields_of_elastix_are_pointed_out(tmp_path: Path) -> None:
    file = elastix_field(tmp_path, 3)
    file.write_text(file.read_text().replace("InterpolationOrder 1", "InterpolationOrder 0"))
    with pytest.warns(UserWarning, match="nearest vector"):
        read_transform(file)


def test_maps_in_memory_name_their_field_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    two = CompositeTransform((known_field(3), LinearTransform.make(np.eye(3), [1, 0, 0]), known_field(3)))
    maps = parameter_maps(two, ".")
    assert [m["Transform"] for m in maps] == [
        ["DeformationFieldTransform"], ["AffineTransform"], ["DeformationFieldTransform"],
    ]  # fmt: skip
    for m, name in ((maps[0], "DeformationField.0.mha"), (maps[2], "DeformationField.1.mha")):
        assert m["DeformationFieldFileName"] == [str(tmp_path / name)]
        assert m["DeformationFieldInterpolationOrder"] == ["1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (maps, read_transform(maps)):
            np.testing.assert_allclose(read_transform(source).map(points(3)), two.map(points(3)), atol=1e-9)
    with pytest.raises(InputError, match="no grid of its own"):
        parameter_maps(CompositeTransform((known(3),)), tmp_path)


def test_wrong_objects_are_refused() -> None:
    thing: Any = 3
    with pytest.raises(InputError, match="type int; give a TransformParameters file"):
        read_elastix(thing)
    with pytest.raises(InputError, match="no parameter map"):
        read_elastix([])

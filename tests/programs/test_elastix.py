"""The programs elastix and transformix: their flags, files and numbers beside those of elastix itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itk_nir.compat.elastix.parameters import understand
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.errors import InputError, ItkNirError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, save_image
from itk_nir.loading import load_transform
from itk_nir.programs import elastix, elastix_words, transformix
from itk_nir.transforms.formats.elastix import as_text, as_toml, read_elastix, read_entries
from itk_nir.transforms.formats.elastix.steps import ShearedField
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform
from tests.docs_blocks import DOCS
from tests.grids import turned

FIXED = Geometry.make((48, 44), (1.2, 1.5), (-20.0, 7.0), turned(2, 0.3, 0.0))
MOVING = Geometry.make((52, 46), (1.3, 1.3), (-24.0, 3.0), turned(2, -0.1, 0.0))
EULER = (
    """(Transform "EulerTransform")  // the first stage
(Metric "AdvancedMattesMutualInformation") (""".replace(" (", "\n").rstrip("(\n")
    + "\n"
)
SPLINE = {
    "Transform": "BSplineTransform", "Metric": ["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"],
    "FinalGridSpacingInVoxels": [8, 8], "ErodeMask": True, "WriteTransformParametersEachResolution": True,
    "FinalBSplineInterpolationOrder": 1, "ResultImagePixelType": "float", "ResultImageFormat": "mha",
}  # fmt: skip


def scene(points: np.ndarray) -> np.ndarray:
    """Smooth structures at physical points, 0 to about 100."""
    x, y = np.moveaxis(points - FIXED.centre, -1, 0)
    body = np.exp(-(((x**2 + 1.3 * y**2) / 20.0**2) ** 2))
    return np.asarray((50 + 25 * np.sin(x / 4.0 + 1) + 25 * np.cos(y / 3.5 + x / 9.0)) * body, np.float32)


def map_of(points: np.ndarray) -> np.ndarray:
    """The true map, fixed → moving: a turn and a shift after a small bend."""
    bend = np.stack([0.8 * np.sin(points[..., 1] / 7.0), 0.8 * np.cos(points[..., 0] / 8.0)], -1)
    return LinearTransform.make(turned(2, 0.1, 0.0), (3.0, -2.0), FIXED.centre).map(points + bend)


def back_of(points: np.ndarray) -> np.ndarray:
    p = points.copy()
    for _ in range(40):
        p = p - (map_of(p) - points)
    return p


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, and parameter files of two stages."""
    where: Path = tmp_path_factory.mktemp("elastix")
    save_image(scene(FIXED.grid()), FIXED, where / "f.mha")
    save_image(scene(back_of(MOVING.grid())), MOVING, where / "m.mha")
    (where / "euler.txt").write_text(EULER)
    (where / "spline.toml").write_text(as_toml(read_maps(SPLINE)[0]))
    return where


@pytest.fixture(scope="module")
def registered(folder: Path) -> Path:
    out = folder / "out"
    out.mkdir()
    files = ["-f", str(folder / "f.mha"), "-m", str(folder / "m.mha"), "-out", str(out)]
    stages = ["-p", str(folder / "euler.txt"), "-p", str(folder / "spline.toml")]
    assert elastix.main([*files, *stages, "-threads", "1", "-priority", "idle"]) == 0
    return out


def test_elastix_writes_its_files_and_they_are_a_registration(folder: Path, registered: Path) -> None:
    names = {p.name for p in registered.iterdir()}
    assert names == {
        "elastix.log", "TransformParameters.0.txt", "TransformParameters.1.txt", "DeformationField.mha", "result.0.mhd",
        "result.0.raw", "result.1.mha",
    }  # fmt: skip
    first, last = (read_entries(registered / f"TransformParameters.{n}.txt") for n in (0, 1))
    assert first["Transform"] == ["EulerTransform"]
    assert len(first["TransformParameters"]) == 3
    assert last["InitialTransformParameterFileName"] == [str(registered / "TransformParameters.0.txt")]
    assert (first["ResultImagePixelType"], first["CompressResultImage"]) == (["short"], ["false"])
    p = FIXED.grid()[scene(FIXED.grid()) > 20]
    ends = [read_elastix(registered / f"TransformParameters.{n}.txt").map(p) for n in (0, 1)]
    rigid, whole = (np.linalg.norm(end - map_of(p), axis=-1).mean() for end in ends)
    assert whole < min(0.5, 0.7 * rigid)
    log = (registered / "elastix.log").read_text()
    assert "FinalGridSpacingInVoxels" in log
    assert re.search(r"deformable level 1 of \d, iteration 1 of", log)
    short, last_image = (
        load_image(registered / "result.0.mhd", "result"),
        load_image(registered / "result.1.mha", "result"),
    )
    assert (short.pixel_type, last_image.pixel_type) == (np.int16, np.float32)
    assert last_image.geometry.same_grid(FIXED)
    assert np.abs(last_image.array - scene(FIXED.grid())).mean() < np.abs(short.array - scene(FIXED.grid())).mean()


def apply(out: Path, *words: str) -> Path:
    out.mkdir()
    assert transformix.main(["-out", str(out), *words]) == 0
    return out


def test_transformix_repeats_the_result_of_elastix(folder: Path, registered: Path) -> None:
    (folder / "points.txt").write_text("index\n2\n10 12\n30 20\n")
    tp = str(registered / "TransformParameters.1.txt")
    out = apply(folder / "t1", "-in", str(folder / "m.mha"), "-tp", tp, "-def", str(folder / "points.txt"))
    np.testing.assert_allclose(
        load_image(out / "result.mha", "a").array, load_image(registered / "result.1.mha", "b").array, atol=1e-4
    )
    rows = (out / "outputpoints.txt").read_text().splitlines()
    assert len(rows) == 2
    assert rows[0].startswith("Point\t0\t; InputIndex = [ 10 12 ]\t; InputPoint = [ ")
    ends = [[float(v) for v in re.search(r"OutputPoint = \[ (\S+) (\S+) \]", row).groups()] for row in rows]  # type: ignore[union-attr]
    start = FIXED.index_to_physical([[10, 12], [30, 20]])
    np.testing.assert_allclose(ends, read_elastix(tp).map(start), atol=1e-5)
    maps = apply(folder / "t2", "-tp", tp, "-def", "all", "-jac", "all", "-jacmat", "all")
    import SimpleITK as sitk

    field, jacobian, matrix = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(maps / f"{name}.mha")))
        for name in ("deformationField", "spatialJacobian", "fullSpatialJacobian")
    )
    np.testing.assert_allclose(field, read_elastix(tp).map(FIXED.grid()) - FIXED.grid(), atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(matrix.reshape(*FIXED.shape, 2, 2)), jacobian, atol=1e-5)
    # Along an axis of the image, the difference of its neighbours.
    along = matrix.reshape(*FIXED.shape, 2, 2) @ FIXED.rotation[:, 0]
    wanted = (field[:, 2:] - field[:, :-2]) / (2 * FIXED.spacing[0]) + FIXED.rotation[:, 0]
    assert np.abs(along[5:-5, 1:-1] - wanted[5:-5])[:, 5:-5].mean() < 0.01


def elastix_results(folder: Path) -> dict[str, list[dict[str, list[str]]]]:
    """Transform parameters as elastix writes them, of many kinds."""
    from itk_nir.transforms.formats.elastix.parameters import as_numbers, grid_entries

    rng = np.random.default_rng(3)
    centre = as_numbers(FIXED.centre)
    common = grid_entries(FIXED) | {"ResultImagePixelType": ["float"]}

    def one(kind: str, values: Any, **more: list[str]) -> dict[str, list[str]]:
        numbers = as_numbers(values)
        return {"Transform": [kind], "NumberOfParameters": [str(len(numbers))], "TransformParameters": numbers,
                "CenterOfRotationPoint": centre, **common, **more}  # fmt: skip

    spline = one(
        "BSplineTransform", rng.normal(0, 2.0, 2 * 9 * 8), GridSize=["9", "8"], GridIndex=["0", "0"],
        GridSpacing=["10", "14"], GridOrigin=as_numbers(FIXED.centre - FIXED.rotation @ [40.0, 49.0]),
        GridDirection=as_numbers(FIXED.rotation.T), BSplineTransformSplineOrder=["3"], UseCyclicTransform=["false"],
        FinalBSplineInterpolationOrder=["3"], DefaultPixelValue=["-7"],
    )  # fmt: skip
    euler = one("EulerTransform", [0.1, 2.0, -3.0])
    affine = one("AffineTransform", [1.1, 0.2, -0.1, 0.9, 1.0, 2.0], FinalBSplineInterpolationOrder=["0"])
    shape = (*FIXED.shape, 2)
    field = DisplacementField(FIXED, np.asarray(rng.normal(0, 1.0, shape), np.float32))
    ShearedField.after(LinearTransform.make([[1.1, 0.2], [-0.1, 0.9]], [1.0, 2.0], FIXED.centre), field).write(
        folder / "sheared.mha"
    )
    return {
        "translation": [one("TranslationTransform", [2.5, -1.5])],
        "similarity": [one("SimilarityTransform", [1.1, 0.2, 2.0, 1.0], FinalBSplineInterpolationOrder=["2"])],
        "spline": [spline],
        "multi": [euler, affine, spline],
        "added": [euler, {**spline, "HowToCombineTransforms": ["Add"]}],
        "nearest": [affine],
        "sheared": [
            one("AffineTransform", [1.1, 0.2, -0.1, 0.9, 1.0, 2.0]),
            {**common, "Transform": ["DeformationFieldTransform"], "NumberOfParameters": ["0"],
             "DeformationFieldFileName": [str(folder / "sheared.mha")], "DeformationFieldInterpolationOrder": ["1"]},
        ],
    }  # fmt: skip


def test_transformix_equals_that_of_elastix(folder: Path) -> None:
    """On transforms of elastix' own, to 1e-4 of the range in every voxel, the rim and the outside among them."""
    itk = pytest.importorskip("itk")
    if not hasattr(itk, "ParameterObject"):
        pytest.skip("needs itk-elastix: pip install itk-elastix")
    image = itk.imread(str(folder / "m.mha"), itk.F)
    for name, maps in elastix_results(folder).items():
        before, parameters = "NoInitialTransform", itk.ParameterObject.New()
        for number, one in enumerate(maps):
            parameters.AddParameterMap(one)
            file = folder / f"{name}.{number}.txt"
            file.write_text(as_text({**one, "InitialTransformParameterFileName": [before],
                                     "InitialTransformParametersFileName": [before]}))  # fmt: skip
            before = str(file)
        out = apply(folder / name, "-in", str(folder / "m.mha"), "-tp", before, "-def", "all")
        ours = load_image(out / "result.nii.gz", "result").array
        theirs = itk.array_from_image(itk.transformix_filter(image, parameters))
        assert ours.std() > 5, name
        assert np.abs(ours - theirs).max() <= 1e-4 * 100, name
        import SimpleITK as sitk

        field = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "deformationField.nii.gz")))
        wanted = itk.array_from_image(itk.transformix_deformation_field(image, parameters, output_directory=str(out)))
        assert np.abs(field - wanted).max() <= 1e-5, name


def test_a_field_moves_through_a_linear_map(tmp_path: Path) -> None:
    """The field of after an affine map is the same map as the field of before it, and is read back as that."""
    rng = np.random.default_rng(5)
    for matrix in (turned(2, 0.4, 0.0) * 1.2, [[1.1, 0.3], [-0.1, 0.8]]):
        linear = LinearTransform.make(matrix, [4.0, 2.0])
        field = DisplacementField(FIXED, np.asarray(rng.normal(0, 1.0, (*FIXED.shape, 2)), np.float32))
        moved = ShearedField.after(linear, field)
        p = FIXED.index_to_physical(rng.uniform(-0.4, 40.0, (200, 2)))
        p = np.concatenate([p, FIXED.index_to_physical([[-9.0, 4.0]])])  # outside, where nothing moves
        wanted = CompositeTransform((field, linear)).map(p)
        np.testing.assert_allclose(CompositeTransform((linear, *moved.steps())).map(p), wanted, atol=1e-5)


def test_toml_and_text_say_the_same(tmp_path: Path) -> None:
    maps = read_maps({**SPLINE, "ResultImageName": "a # b", "DefaultPixelValue": "-1e3"})[0]
    (tmp_path / "a.toml").write_text(
        as_toml(maps)
        + "# a remark\nImagePyramidSchedule = [ 4, 4, # rough\n 1, 1 ]\nGridSpacingSchedule = [4.0, 1.0,]\n"
    )
    (tmp_path / "a.txt").write_text(as_text(maps) + "\n// a remark\n\t(ImagePyramidSchedule 4 4 1 1) // rough\n")
    toml, text = read_entries(tmp_path / "a.toml"), read_entries(tmp_path / "a.txt")
    assert toml.pop("GridSpacingSchedule") == ["4.0", "1.0"]
    assert toml == text == {**maps, "ImagePyramidSchedule": ["4", "4", "1", "1"]}
    for bad in ("(Transform", "Transform BSpline", '(A "b)', "(A 1)\n(A 2)"):
        (tmp_path / "bad.txt").write_text(bad + "\n")
        with pytest.raises(InputError, match=r"bad\.txt: damaged"):
            read_entries(tmp_path / "bad.txt")
    for bad in ("A = [1, 2", "A =", "A = [1 2]", "(A 1)"):
        (tmp_path / "bad.toml").write_text(bad + "\n")
        with pytest.raises(InputError, match=r"bad\.toml: damaged"):
            read_entries(tmp_path / "bad.toml")


OLD = """// Elastix 3 to 5, as people keep them
(FixedImagePixelType "short")
(FixedImageDimension 3)
(UseDirectionCosines "false")
(Registration "MultiResolutionRegistration")
(Metric "MattesMutualInformation")
(ErodeMask "true" "true")
(FinalGridSpacing 8.0 8.0 8.0)
(MaximumNumberOfIterations 300 300 600)
(Scales 50000.0)
(HowToCombineTransforms "Compose")
(WriteTransformParametersEachIteration "false" "true")
(WriteResultImageAfterEachResolution "true")
(Resampler "OpenCLResampler")
(AutomaticTransformInitializationMethod "Origins")
(CenterOfRotationPoint 0.0 0.0 0.0)
(FinalBSplineInterpolationOrder 1.000000)
"""


@pytest.mark.parametrize("kind", ["TranslationTransform", "SimilarityTransform", "RecursiveBSplineTransform"])
def test_old_parameter_files_are_understood(kind: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(OLD + f'(Transform "{kind}")\n')
    request = understand(read_maps([tmp_path / "p.txt"]))
    assert request.kinds == (kind,)
    assert (request.linear_metric, request.metric) == ((None, "nmi") if "BSpline" in kind else ("nmi", None))
    assert not request.use_direction
    assert request.outputs[0].resampling.order == 1
    assert {"FinalGridSpacing", "FixedImagePixelType", "Scales", "ErodeMask"} <= set(request.unused)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_comments_in_any_encoding(mark: bytes, end: bytes, tmp_path: Path) -> None:
    """ITK reads bytes: comments are in any encoding, and a line ends where it ends for ITK."""
    for name, lines in (
        ("p.txt", [b"// caf\xe9, 3 \xb5m, 90\xb0 \x85 \xe2\x80\xa8 on", b'(Transform "EulerTransform") // \xe9']),
        ("p.toml", [b"# caf\xe9 \x85 \xe2\x80\xa8 on", b'Transform = "EulerTransform" # \xe9']),
    ):
        (tmp_path / name).write_bytes(mark + end.join(lines) + end)
        assert read_entries(tmp_path / name) == {"Transform": ["EulerTransform"]}
    (tmp_path / "p.txt").write_bytes(b'(Transform "EulerTransform")\n\0\n')
    with pytest.raises(InputError, match="is no text"):
        read_entries(tmp_path / "p.txt")


def test_a_transform_with_a_byte_order_mark_is_known(registered: Path, tmp_path: Path) -> None:
    raw = (registered / "TransformParameters.0.txt").read_bytes()
    start = raw.index(b"(Transform ")
    end = raw.index(b"\n", start) + 1
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + raw[start:end] + raw[:start] + raw[end:])
    point = np.zeros((1, 2))
    expected = load_transform(registered / "TransformParameters.0.txt").map(point)
    np.testing.assert_array_equal(load_transform(tmp_path / "t.txt").map(point), expected)


def test_a_format_that_cannot_be_written_is_told(folder: Path, registered: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(EULER + '\n(ResultImageFormat "bmp")\n')
    files = ["-f", str(folder / "f.mha"), "-m", str(folder / "m.mha"), "-out", str(tmp_path)]
    with pytest.raises(OptionError, match=r"ResultImageFormat: 'bmp' cannot be written; it may be nii, nii\.gz"):
        elastix.main([*files, "-p", str(tmp_path / "p.txt")])
    entries = read_entries(registered / "TransformParameters.0.txt")
    (tmp_path / "tp.txt").write_text(as_text({**entries, "ResultImageFormat": ["bmp"]}))
    (tmp_path / "points.txt").write_text("index\n1\n10 12\n")
    words = ["-out", str(tmp_path), "-tp", str(tmp_path / "tp.txt")]
    for asked in (["-in", str(folder / "m.mha")], ["-def", "all"], ["-jac", "all"]):
        with pytest.raises(OptionError, match="ResultImageFormat: 'bmp' cannot be written"):
            transformix.main([*words, *asked])
    assert transformix.main([*words, "-def", str(tmp_path / "points.txt")]) == 0  # which writes no image


def test_asked_for_information(capsys: pytest.CaptureFixture[str]) -> None:
    for program in (elastix, transformix):
        name = program.__name__.rsplit(".", 1)[-1]
        for words, begins in (
            ([], f'Use "{name} --help"'), (["--version"], f"{name} version: {elastix_words.ELASTIX_VERSION}\n"),
            (["--help"], f"{name} version: "), (["--extended-version"], f"{name} version: "),
        ):  # fmt: skip
            assert program.main(words) == 0
            assert capsys.readouterr().out.startswith(begins)


def test_wrong_command_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.txt").write_text('(Transform "EulerTransform")\n(Metrik "x")\n')
    f, m, p, out = (str(folder / "f.mha"), str(folder / "m.mha"), str(folder / "euler.txt"), str(tmp_path))
    both = ["-f", f, "-m", m]
    for words, message in (
        ([*both, "-p", p, "-out", str(tmp_path / "no")], "does not exist. You are responsible for creating it"),
        ([*both, "-p", p], 'No CommandLine option "-out" given!'),
        ([*both, "-out", out], 'No CommandLine option "-p" given!'),
        ([*both, "-p", p, "-out", out, "-fmask", f], "-fmask: elastix has no such flag"),
        ([*both, "-p", p, "-out"], "-out: its value is missing"),
        ([*both, "-p", p, "-out", out, "-threads", "two"], "-threads: is a whole number"),
        ([*both, "-p", p, "-out", out, "-f1", f], "-f: is given with and without a number"),
        (["-f0", f, "-f2", f, "-m", m, "-p", p, "-out", out], "-f: numbers count up from -f0"),
        (["-f0", f, "-f1", f, "-m", m, "-p", p, "-out", out], "2 fixed and 1 moving images"),
        ([*both, "-p", str(folder / "bad.txt"), "-out", out], "Metrik of map 0: not known here"),
        ([*both, "-p", p, "-out", out, "-loglevel", "loud"], "-loglevel"),
    ):  # fmt: skip
        with pytest.raises(ItkNirError, match=re.escape(message)):
            elastix.main(words)
    tp = ["-tp", p, "-out", out]
    for words, message in (
        (["-in", m, "-out", out], 'No CommandLine option "-tp" given!'),
        (tp, "At least one of the CommandLine options"),
        ([*tp, "-jac", "some"], 'should be used as "-jac all"'),
        ([*tp, "-def", "all", "-ipp", "all"], "Can not use both"),
        ([*tp, "-in", m], "lacks"),
    ):
        with pytest.raises(ItkNirError, match=re.escape(message)):
            transformix.main(words)
    assert "ERROR: elastix parameter Metrik" in (tmp_path / "elastix.log").read_text()


def test_an_initial_transform_is_not_written_over(folder: Path, registered: Path) -> None:
    start = str(registered / "TransformParameters.1.txt")
    words = ["-f", str(folder / "f.mha"), "-m", str(folder / "m.mha"), "-p", str(folder / "euler.txt")]
    with pytest.raises(InputError, match="would be replaced"):
        elastix.main([*words, "-t0", start, "-out", str(registered)])


def test_the_smallest_displacement_is_the_inverse(folder: Path, registered: Path, tmp_path: Path) -> None:
    """elastix' own way to ask for the inverse: the maps are that of the initial transform, which is not among them."""
    start = registered / "TransformParameters.1.txt"
    asked = '(Transform "BSplineTransform")\n(Metric "DisplacementMagnitudePenalty")\n'
    (tmp_path / "p.txt").write_text(asked + '(OutputTransformParameterFileFormat "TOML")\n(WriteResultImage "false")\n')
    fixed = str(folder / "f.mha")
    elastix.main(["-f", fixed, "-m", fixed, "-t0", str(start), "-p", str(tmp_path / "p.txt"), "-out", str(tmp_path)])
    assert {f.name for f in tmp_path.iterdir()} == {
        "p.txt", "elastix.log", "TransformParameters.0.toml", "DeformationField.mha"
    }  # fmt: skip
    parameters = read_entries(tmp_path / "TransformParameters.0.toml")
    assert parameters["InitialTransformParameterFileName"] == [str(start)]
    whole = load_transform(tmp_path / "TransformParameters.0.toml")
    assert np.linalg.norm(whole.map(FIXED.grid()[8:-8, 8:-8]) - FIXED.grid()[8:-8, 8:-8], axis=-1).max() < 0.1
    alone = {key: ["NoInitialTransform"] for key in parameters if key.startswith("InitialTransform")}
    there = read_elastix(start)
    back = read_elastix([{**parameters, **alone}])
    p = FIXED.grid()[6:-6, 6:-6].reshape(-1, 2)
    q = there.map(p)
    assert np.linalg.norm(q - p, axis=-1).mean() > 2.0
    assert np.linalg.norm(back.map(q) - p, axis=-1).max() < 0.1
    with pytest.raises(InputError, match="inverse of an initial transform; give one"):
        elastix.main(["-f", fixed, "-m", fixed, "-p", str(tmp_path / "p.txt"), "-out", str(tmp_path)])


def test_axes_may_be_left_aside(folder: Path, tmp_path: Path) -> None:
    """Where UseDirectionCosines is false, transforms work on upright axes and images come back on their own."""
    words = '(Transform "TranslationTransform")\n(UseDirectionCosines "false")\n(ResultImagePixelType "float")\n'
    (tmp_path / "p.txt").write_text(words)
    out = tmp_path / "out"
    out.mkdir()
    fixed, moving = str(folder / "f.mha"), str(folder / "m.mha")
    elastix.main(["-f", fixed, "-m", moving, "-p", str(tmp_path / "p.txt"), "-out", str(out)])
    parameters = read_entries(out / "TransformParameters.0.txt")
    assert parameters["UseDirectionCosines"] == ["false"]
    np.testing.assert_allclose([float(v) for v in parameters["Direction"]], FIXED.rotation.T.ravel())
    shift = np.array([float(v) for v in parameters["TransformParameters"]])
    image = load_image(out / "result.0.mhd", "result")
    assert image.geometry.same_grid(FIXED)
    again = apply(tmp_path / "again", "-in", moving, "-tp", str(out / "TransformParameters.0.txt"))
    np.testing.assert_allclose(load_image(again / "result.mhd", "again").array, image.array, atol=1e-4)
    # The same by hand: upright images, moved by the shift.
    upright = [Geometry.make(g.size, g.spacing, g.origin) for g in (FIXED, MOVING)]
    import SimpleITK as sitk

    source = sitk.GetImageFromArray(load_image(moving, "moving").array)
    source.SetSpacing(upright[1].spacing)
    source.SetOrigin(upright[1].origin)
    target = sitk.Image(upright[0].size, sitk.sitkFloat32)
    target.SetSpacing(upright[0].spacing)
    target.SetOrigin(upright[0].origin)
    moved = sitk.Resample(source, target, sitk.TranslationTransform(2, shift.tolist()), sitk.sitkBSpline3, 0.0)
    np.testing.assert_allclose(image.array, sitk.GetArrayFromImage(moved), atol=1e-3)


def test_documents_show_the_flags() -> None:
    text = (DOCS / "coming_from_elastix.md").read_text(encoding="utf-8")
    for flags in (elastix.FLAGS, transformix.FLAGS):
        for flag, meaning in flags.items():
            assert flag.endswith("N") or f"| `{flag}` | {meaning} |" in text, flag


def test_torch_is_imported_by_registrations_alone(folder: Path, registered: Path, tmp_path: Path) -> None:
    words = ["-in", str(folder / "m.mha"), "-tp", str(registered / "TransformParameters.1.txt"), "-out", str(tmp_path)]
    code = (
        "import sys; from itk_nir.programs import elastix, transformix; elastix.main(['--version']); "
        f"transformix.main({words!r}); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_option_errors_are_about_options(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('(Transform "EulerTransform")\n(Metric "PatternIntensity")\n')
    fixed = str(folder / "f.mha")
    with pytest.raises(OptionError, match="X-ray projection"):
        elastix.main(["-f", fixed, "-m", fixed, "-p", str(tmp_path / "p.txt"), "-out", str(tmp_path)])

"""antsApplyTransforms: the numbers, types and grids of ANTs' own program."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli.main import main as itk_nir_main
from itk_nir.errors import InputError, OptionError
from itk_nir.interpolating import NAMES, Interpolation
from itk_nir.programs.ants_apply_transforms import FLAGS, INPUT_TYPES, INTERPOLATIONS, main, read_request
from itk_nir.transforms.listed import Listed
from tests.programs.ants_programs import Files, make_files, run_ants

interop = pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="needs antspyx")

FORWARD = "-t field.nii.gz -t affine.mat"
BACK = "-t [affine.mat,1] -t field.nii.gz"

#: What is compared, in words without -d, -r and -o; names of files stand for those of `make_files`.
LINES = {
    "linear": f"-i image.nii.gz {FORWARD}",
    "inverse matrix": f"-i image.nii.gz {BACK}",
    "composite": "-i image.nii.gz -t rigid.mat -t composite.h5",
    "identity": "-i image.nii.gz -t identity -t [rigid.mat,1] -t [field.nii.gz,0]",
    "none": "-i image.nii.gz",
    "many": f"-i image.nii.gz {FORWARD} {BACK} {FORWARD}",
    "long names": "--input image.nii.gz --transform affine.mat --interpolation BSpline[4] --default-value -3 --float 1",
    "float, bare": f"-i image.nii.gz {FORWARD} --float",
    "series": f"-i series.nii.gz -e 3 {FORWARD}",
    "series of short": f"-i series.nii.gz -e time-series -u short {FORWARD}",
    "one of a series": f"-i series.nii.gz -e 3 --time-index 2 {FORWARD}",
    "series of one": f"-i image.nii.gz -e 3 {FORWARD}",
    "the one of a series": f"-i image.nii.gz -e 3 --time-index 0 {FORWARD}",
    "in a row": "-i image.nii.gz -t field.nii.gz affine.mat [rigid.mat,1] -n Linear",
    "channels": f"-i channels.nii.gz -e 4 {FORWARD}",
    "vectors": f"-i vectors.nii.gz -e 1 {FORWARD}",
    "vectors, LPS": f"-i vectors.nii.gz -e physical-vector -n NearestNeighbor --float 1 {BACK}",
    **{f"to {u}": f"-i image.nii.gz {BACK} -u {u} -f 7" for u in ("char", "uchar", "short", "int", "float", "double")},
    **{
        f"image, {n}": f"-i image.nii.gz {FORWARD} -n {n}"
        for n in (
            "NearestNeighbor", "Gaussian", "Gaussian[1.5,2]", "Gaussian[SIGMAS,3]", "BSpline", "BSpline[2]",
            "BSpline[5]", "CosineWindowedSinc", "WelchWindowedSinc", "HammingWindowedSinc",
            "LanczosWindowedSinc", "BlackmanWindowedSinc",
        )
    },
    **{
        f"labels, {n}": f"-i labels.nii.gz {FORWARD} -n {n}"
        for n in (
            "NearestNeighbor", "MultiLabel", "MultiLabel[0.7]", "MultiLabel[2,2]", "MultiLabel[SIGMAS]", "GenericLabel",
            "GenericLabel[Linear]",
        )
    },
}  # fmt: skip
#: And transforms as output.
FIELDS = {
    "collapsed": "-o [OUT.nii.gz,1]",
    "named": "-o DisplacementField[OUT.nii.gz] --float 1",
    "kept as they are": "-o CompositeTransform[OUT.h5]",
}
MATRICES = {"there": "-o Linear[OUT.mat]", "and back": "-o Linear[OUT.mat,1]"}
WHOLE_LINES = {
    **LINES,
    **{name: f"{BACK} {line}" for name, line in FIELDS.items()},
    **{name: f"-t affine.mat -t [rigid.mat,1] {line}" for name, line in MATRICES.items()},
}


def words(line: str, files: Files, out: str | None = None) -> list[str]:
    """A line of the tables as words of a command line; `out` is what OUT stands for, or the image to write."""
    sigmas = "x".join(["1", "2", "1.5"][: files.d])
    line = re.sub(r"\w+\.(?:nii\.gz|mat|h5)", lambda m: m[0] if m[0].startswith("OUT") else files(m[0]), line)
    line = f"-d {files.d} -r {files('reference.nii.gz')} {line.replace('SIGMAS', sigmas)}"
    return (line.replace("OUT", out) if out and "OUT" in line else f"{line} -o {out}.nii.gz").split()


#: Every line, and the number that its output of ANTs has in its name.
NUMBERS = {name: number for number, name in enumerate([*LINES, *FIELDS, *MATRICES])}


@pytest.fixture(scope="module")
def by_ants(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Files]:
    """The files of both dimensions, and beside them what ANTs made of every line."""
    folder = tmp_path_factory.mktemp("ants")
    made = {d: make_files(folder / str(d), d) for d in (2, 3)}
    commands = {}
    for d, files in made.items():
        for name, number in NUMBERS.items():
            commands[f"{d} {name}"] = words(WHOLE_LINES[name], files, files(f"ants{number}"))
    statuses = run_ants("antsApplyTransforms", commands, folder)
    assert [name for name, status in statuses.items() if status] == []
    return made


@pytest.fixture(params=[2, 3])
def there(request: pytest.FixtureRequest, by_ants: dict[int, Files]) -> Files:
    return by_ants[request.param]


@interop
@pytest.mark.interop
@pytest.mark.parametrize("name", LINES)
def test_the_numbers_of_ants(name: str, there: Files, tmp_path: Path) -> None:
    assert main(words(WHOLE_LINES[name], there, str(tmp_path / "ours"))) == 0
    theirs = sitk.ReadImage(there(f"ants{NUMBERS[name]}.nii.gz"))
    ours = sitk.ReadImage(str(tmp_path / "ours.nii.gz"))
    assert ours.GetPixelIDTypeAsString() == theirs.GetPixelIDTypeAsString()
    assert ours.GetSize() == theirs.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(ours, get)(), getattr(theirs, get)(), atol=1e-6)
    a, b = (sitk.GetArrayFromImage(image).astype(float) for image in (ours, theirs))
    assert np.ptp(b) > 3
    if name.startswith("labels"):
        assert np.array_equal(a, b)
    else:
        # The only difference of whole numbers is one that lies at a step of the cast.
        limit = 1 if "to " in name and np.dtype(sitk.GetArrayViewFromImage(ours).dtype).kind == "i" else 0
        assert np.sum(np.abs(a - b) > 1e-4 * np.ptp(b)) <= limit


@interop
@pytest.mark.interop
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_ants(name: str, there: Files, tmp_path: Path) -> None:
    assert main(words(WHOLE_LINES[name], there, str(tmp_path / "ours"))) == 0
    ending = ".h5" if "h5" in FIELDS[name] else ".nii.gz"
    theirs, ours = there(f"ants{NUMBERS[name]}{ending}"), str(tmp_path / f"ours{ending}")
    if ending == ".h5":
        a, b = (sitk.ReadTransform(file) for file in (ours, theirs))
        points = np.random.default_rng(0).normal(size=(20, there.d)) * 20
        assert a.GetName() == b.GetName() == "CompositeTransform"
        assert np.allclose([a.TransformPoint(p) for p in points], [b.TransformPoint(p) for p in points], atol=1e-5)
        return
    a, b = (sitk.ReadImage(file) for file in (ours, theirs))
    assert a.GetPixelIDTypeAsString() == b.GetPixelIDTypeAsString()
    found, wanted = sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b)
    assert np.abs(wanted).max() > 1
    assert np.allclose(found, wanted, atol=1e-4)


@interop
@pytest.mark.interop
@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_ants(name: str, there: Files, tmp_path: Path) -> None:
    assert main(words(WHOLE_LINES[name], there, str(tmp_path / "ours"))) == 0
    a, b = (sitk.ReadTransform(f) for f in (str(tmp_path / "ours.mat"), there(f"ants{NUMBERS[name]}.mat")))
    points = np.random.default_rng(0).normal(size=(20, there.d)) * 20
    assert a.GetName() == b.GetName() == "AffineTransform"
    assert np.allclose([a.TransformPoint(p) for p in points], [b.TransformPoint(p) for p in points], atol=1e-10)


# --- without ANTs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("own") / "2", 2)


def test_words_of_nipype_and_of_scripts() -> None:
    nipype = (
        "--default-value 0 --dimensionality 3 --float 1 --input f.nii.gz --interpolation MultiLabel "
        "--output out.nii.gz --reference-image r.nii.gz --transform [ a.mat, 1 ] --transform w.nii.gz"
    )
    request = read_request(nipype.split())
    assert request.transforms == (Listed("a.mat", inverse=True), Listed("w.nii.gz"))
    assert request.how == NAMES["label"]
    assert (request.kind, request.output, request.pixel_type, request.fill) == ("image", "out.nii.gz", "float32", 0)
    script = "-d 2 -v -i f.nii -r r.nii -n Gaussian[ 1x2, 3 ] -o [out.nii.gz,0] -e 3 -f -1 -z 1"
    request = read_request(script.split())
    assert request.how == Interpolation("gaussian", sigma=(1.0, 2.0), alpha=3.0)
    assert (request.dimension, request.input_type, request.fill, request.verbose) == (2, "3", -1, True)
    assert request.output == "out.nii.gz"
    assert request.pixel_type == "float64"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("-i f.nii -o o.nii", "--reference-image is missing"),
        ("-r r.nii -o o.nii", "--input is missing"),
        ("-i f.nii -r r.nii", "--output is missing"),
        ("-d 4 -i f.nii -r r.nii -o o.nii", "--dimensionality is 2 or 3, got 4"),
        ("-i f.nii -r r.nii -o o.nii -n Cubic", "--interpolation is one of Linear"),
        ("-i f.nii -r r.nii -o o.nii -n BSpline[6]", "order of a B-spline is 0 to 5"),
        ("-i f.nii -r r.nii -o o.nii -n Linear[2]", "takes nothing in brackets"),
        ("-i f.nii -r r.nii -o o.nii -n MultiLabel[0]", "are above 0"),
        ("-i f.nii -r r.nii -o o.nii -u long", "--output-data-type is one of"),
        ("-i f.nii -r r.nii -o o.nii -e 2", "--input-image-type tensor is refused"),
        ("-i f.nii -r r.nii -o o.nii -e five-dimensional", "--input-image-type five-dimensional is refused"),
        ("-i f.nii -r r.nii -o o.nii -e 7", "--input-image-type is one of"),
        ("-i f.nii -r r.nii -o o.nii -t [f.nii,m.nii,1]", "give a file, [file,1] for its inverse, or identity"),
        ("-i f.nii -r r.nii -o Linear", "needs a file in brackets"),
        ("-i f.nii -r r.nii -o o.nii --interpolate Linear", "there is no flag --interpolate"),
    ],
)
def test_what_cannot_be_used_is_named(line: str, what: str) -> None:
    if line.endswith("-o Linear"):
        line = line.replace("-o Linear", "-o Linear[]")
    with pytest.raises((InputError, OptionError)) as found:
        read_request(line.split())
    assert what in str(found.value)
    assert "\n" not in str(found.value)


def test_inputs_that_do_not_fit(files: Files, tmp_path: Path) -> None:
    for line, what in {
        "-i series.nii.gz": "is 3D, but --input-image-type scalar with --dimensionality 2 is 2D",
        "-i channels.nii.gz": "has 2 values a pixel",
        "-i image.nii.gz -e 4": "has one value a pixel",
        "-i image.nii.gz -e vector": "has one value a pixel",
        "-i series.nii.gz -e 3 --time-index 3": "--time-index 3 is not below its 3 volumes",
        "-i image.nii.gz -n Gaussian[1x1x1]": "sigma has 3 numbers",
        f"{FORWARD} -o Linear[OUT.mat]": "not all linear",
        "-t affine.mat -o Linear[OUT.h5]": "end the name so",
    }.items():
        with pytest.raises((InputError, OptionError), match=re.escape(what)):
            main(words(line, files, str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


def test_an_image_may_be_replaced_by_what_is_made_of_it(files: Files, tmp_path: Path) -> None:
    image = sitk.ReadImage(files("image.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "x.nii.gz"))
    main(words(f"-i image.nii.gz {FORWARD}", files, str(tmp_path / "wanted")))
    line = words(f"-i image.nii.gz {FORWARD}", files, str(tmp_path / "x"))
    line[line.index("-i") + 1] = str(tmp_path / "x.nii.gz")
    main(line)
    found, wanted = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{n}.nii.gz"))) for n in ("x", "wanted"))
    assert np.array_equal(found, wanted)


def test_values_that_are_no_numbers_are_outside(files: Files, tmp_path: Path) -> None:
    image = sitk.ReadImage(files("image.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    array[10:14, 10:14] = np.nan
    broken = sitk.GetImageFromArray(array)
    broken.CopyInformation(image)
    sitk.WriteImage(broken, str(tmp_path / "nan.nii.gz"))
    name = str(tmp_path / "nan.nii.gz")
    main(["-d", "2", "-i", name, "-r", name, "-f", "-9", "-o", str(tmp_path / "out.nii.gz")])
    out = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    assert np.all(out[10:14, 10:14] == -9)
    assert np.isfinite(out).all()


def test_version_help_and_exit_status(capsys: pytest.CaptureFixture[str], files: Files, tmp_path: Path) -> None:
    assert itk_nir_main(["antsApplyTransforms", "--version"]) == 0
    assert capsys.readouterr().out.startswith("ANTs Version: ")
    assert itk_nir_main(["antsApplyTransforms", "-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name} " in text for name in FLAGS)
    assert all(f" {entry.name} " in text for entry in INTERPOLATIONS.values())
    assert itk_nir_main(["antsApplyTransforms"]) == 1
    capsys.readouterr()
    missing = words("-i nowhere.nii.gz", files, str(tmp_path / "out"))
    assert itk_nir_main(["antsApplyTransforms", *missing]) == 1
    error = capsys.readouterr().err
    assert "nowhere.nii.gz" in error
    assert error.count("\n") == 1
    assert (
        itk_nir_main(["antsApplyTransforms", *words("-i image.nii.gz -t affine.mat -v", files, str(tmp_path / "o"))])
        == 0
    )
    told = capsys.readouterr().out
    assert "Interpolation type: LinearInterpolateImageFunction" in told
    assert "  --transform: honoured:" in told


def test_headers_that_ants_reads_otherwise_are_warned_of(tmp_path: Path) -> None:
    """ITK takes the qform where the code of the sform is above 1."""
    values = np.random.default_rng(0).random((8, 9, 7)).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([-2.0, -2.0, 2.0, 1.0]))
    moved = image.affine.copy()
    moved[:3, 3] += 5
    image.set_qform(moved, 1)
    image.set_sform(image.affine, 2)
    plain = nibabel.Nifti1Image(values, image.affine)
    for name, one in (("odd", image), ("plain", plain)):
        nibabel.save(one, tmp_path / f"{name}.nii.gz")
    for given, reference, role in (("odd", "plain", "input"), ("plain", "odd", "reference")):
        files = [f"{tmp_path}/{name}.nii.gz" for name in (given, reference, "out")]
        with pytest.warns(UserWarning, match=f"{role} image .*qform"):
            assert main(["-d", "3", "-i", files[0], "-r", files[1], "-o", files[2]]) == 0


def test_torch_is_not_imported(files: Files, tmp_path: Path) -> None:
    line = words(f"-i labels.nii.gz -n MultiLabel {BACK}", files, str(tmp_path / "out"))
    code = (
        "import sys; from itk_nir.cli.main import main; "
        "assert main(['antsApplyTransforms', *sys.argv[1:]]) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *line], check=True, timeout=60)


def test_the_tables_name_everything() -> None:
    page = (Path(__file__).parents[2] / "docs" / "apply_programs.md").read_text(encoding="utf-8")
    for name, support in FLAGS.items():
        assert f"| `--{name}` | {support.status} | {support.meaning} |" in page
    for key, (name, support) in INPUT_TYPES.items():
        assert f"| `{key}` `{name}` | {support.status} | {support.meaning} |" in page
    for entry in INTERPOLATIONS.values():
        assert f"| `{entry.name}` | {entry.support.status} | {entry.support.meaning} |" in page

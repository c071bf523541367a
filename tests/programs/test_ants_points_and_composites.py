"""antsApplyTransformsToPoints and CompositeTransformUtil: the numbers and files of ANTs' own programs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli.main import main as itk_nir_main
from itk_nir.errors import InputError, OptionError
from itk_nir.programs import composite_transform_util
from itk_nir.programs.ants_apply_transforms_to_points import FLAGS, main
from tests.programs.ants_programs import Files, make_files, run_ants

LISTS = {
    "there": "-t [affine.mat,1] -t field.nii.gz",
    "back": "-t field.nii.gz -t affine.mat",
    "composite": "-t composite.h5 -t identity",
    "nothing": "",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Files]:
    folder = tmp_path_factory.mktemp("points")
    made = {d: make_files(folder / str(d), d) for d in (2, 3)}
    points = np.random.default_rng(0).random((6, 3)) * 12 + [8, 2, 6]
    rows = [f"{x:.6f},{y:.6f},{z:.6f},0,{k},{2 * k}" for k, (x, y, z) in enumerate(points)]
    for files in made.values():
        Path(files("points.csv")).write_text("\n".join(["x,y,z,t,label,size", *rows]) + "\n")
    return made


@pytest.fixture(params=[2, 3])
def files(request: pytest.FixtureRequest, both: dict[int, Files]) -> Files:
    return both[request.param]


def words(files: Files, transforms: str, out: str) -> list[str]:
    transforms = re.sub(r"\w+\.(?:nii\.gz|mat|h5)", lambda m: files(m[0]), transforms)
    return f"-d {files.d} -i {files('points.csv')} -o {out} {transforms}".split()


@pytest.mark.interop
@pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="needs antspyx")
def test_the_points_of_ants(both: dict[int, Files], tmp_path: Path) -> None:
    theirs = {
        f"{d}{name}{precision}": [
            *words(files, line, str(tmp_path / f"ants_{d}{name}{precision}.csv")), "--precision", precision,
        ]
        for d, files in both.items() for name, line in LISTS.items() if line for precision in "01"
    }  # fmt: skip
    assert not any(run_ants("antsApplyTransformsToPoints", theirs, tmp_path).values())
    given = np.genfromtxt(both[2]("points.csv"), delimiter=",", skip_header=1)
    for name, line in theirs.items():
        ours = tmp_path / f"{name}.csv"
        line[line.index("-o") + 1] = str(ours)
        assert main(line) == 0
        wanted = np.genfromtxt(tmp_path / f"ants_{name}.csv", delimiter=",", skip_header=1)
        found = np.genfromtxt(ours, delimiter=",", skip_header=1)
        assert np.abs(wanted - given)[:, : int(name[0])].max() > 1
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert ours.read_text().splitlines()[0] == "x,y,z,t,label,size"


def test_columns_behind_the_coordinates_are_kept(tmp_path: Path) -> None:
    table = tmp_path / "chicken.csv"
    table.write_text(
        'X, Y, z,t,label,comment\n82.5, 116.5,0.25,0,1,this is the breast\n137.5,35.5,,0,2,"beak, upper"\n'
    )
    matrix = sitk.AffineTransform(2)
    matrix.SetTranslation([1, -2])
    sitk.WriteTransform(matrix, str(tmp_path / "shift.mat"))
    assert main(f"-d 2 -i {table} -o {tmp_path / 'out.csv'} -t {tmp_path / 'shift.mat'}".split()) == 0
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "X,Y,z,t,label,comment",
        "83.5,114.5,0.25,0,1,this is the breast",
        '138.5,33.5,,0,2,"beak, upper"',
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("-i p.csv -o o.csv", "--dimensionality is missing"),
        ("-d 2 -o o.csv", "--input is missing"),
        ("-d 4 -i p.csv -o o.csv", "--dimensionality is 2 or 3"),
        ("-d 2 -i p.mha -o o.csv", "--input p.mha is refused: give a table"),
        ("-d 2 -i p.csv -o o.nii.gz", "--output o.nii.gz is refused: give a table"),
        ("-d 2 -i p.csv -o o.csv -f 1", "--forantsr 1 is refused"),
        ("-d 2 -i nowhere.csv -o TMP/o.csv", "nowhere.csv: no such file"),
        ("-d 2 -i TMP/names.csv -o TMP/o.csv", "they must be x, y"),
        ("-d 3 -i TMP/flat.csv -o TMP/o.csv", "has 2 columns, 3 coordinates are needed"),
        ("-d 2 -i TMP/word.csv -o TMP/o.csv", "row 1: 'one' is no finite number"),
    ],
)
def test_what_cannot_be_used_is_named(line: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("1.5,2.5\n3,4\n")
    (tmp_path / "flat.csv").write_text("x,y\n3,4\n")
    (tmp_path / "word.csv").write_text("x,y\none,4\n")
    with pytest.raises((InputError, OptionError)) as found:
        main(line.replace("TMP", str(tmp_path)).split())
    assert what in str(found.value)
    assert not (tmp_path / "o.csv").exists()


def test_a_composite_is_put_together_and_taken_apart(files: Files, tmp_path: Path) -> None:
    parts = [files("rigid.mat"), files("affine.mat"), files("field.nii.gz")]
    whole = tmp_path / "whole.h5"
    assert composite_transform_util.main(["--assemble", str(whole), *parts]) == 0
    found = sitk.CompositeTransform(sitk.ReadTransform(str(whole)))
    assert found.GetNumberOfTransforms() == 3
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(parts[2], sitk.sitkVectorFloat64))
    wanted = sitk.CompositeTransform([*(sitk.ReadTransform(p) for p in parts[:2]), field])
    points = np.random.default_rng(0).random((20, files.d)) * 15 + 4
    there = np.array([wanted.TransformPoint(p) for p in points])
    np.testing.assert_allclose([found.TransformPoint(p) for p in points], there, atol=1e-5)
    assert composite_transform_util.main(["--disassemble", str(whole), str(tmp_path / "part")]) == 0
    names = [
        "part_00_AffineTransform.mat", "part_01_AffineTransform.mat", "part_02_DisplacementFieldTransform.nii.gz",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.glob("part*")) == names
    assert (
        composite_transform_util.main(["--assemble", str(tmp_path / "again.h5"), *(str(tmp_path / n) for n in names)])
        == 0
    )
    again = sitk.ReadTransform(str(tmp_path / "again.h5"))
    np.testing.assert_allclose([again.TransformPoint(p) for p in points], there, atol=1e-5)


def test_programs_by_name(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("antsApplyTransformsToPoints", "CompositeTransformUtil"):
        assert itk_nir_main([program, "--version"]) == 0
        assert capsys.readouterr().out.startswith("ANTs Version: ")
        assert itk_nir_main([program]) == 1
        assert "--" in capsys.readouterr().out
    assert (
        itk_nir_main(["CompositeTransformUtil", "--disassemble", str(tmp_path / "none.h5"), str(tmp_path / "x")]) == 1
    )
    error = capsys.readouterr().err
    assert "none.h5: no such file" in error
    assert error.count("\n") == 1
    for words_ in (["--assemble", "x.h5"], ["--disassemble", "x.h5"], ["--join", "x.h5", "y.mat"]):
        with pytest.raises(OptionError):
            composite_transform_util.main(words_)


def test_the_table_names_everything() -> None:
    page = (Path(__file__).parents[2] / "docs" / "apply_programs.md").read_text(encoding="utf-8")
    for name, support in FLAGS.items():
        assert f"| `--{name}` | {support.status} | {support.meaning} |" in page

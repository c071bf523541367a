"""3D Slicer's command line module: its description, its protocol on standard output, and the files it writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.cli.slicer import CLI_FOLDER, DESCRIPTION, FLAGS, main
from itk_nir.engine.metrics import METRICS
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import PRESETS

QUICK = "iterations = (4, 2, 1); linear_iterations=(4,); linear_size=(16,); linear_start_iterations=2"
ENV = {**os.environ, "PYTHONPATH": str(Path(itk_nir.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phantom, Path]:
    """An oblique 2D pair of unequal grids, on disk as Slicer writes volumes."""
    angle = 0.3
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    fixed = Geometry.make((48, 40), (3.5, 4.5), (-90.0, -70.0), turn)
    moving = Geometry.make((40, 48), (4.0, 4.0), (-80.0, -96.0))
    phantom = brain_phantom(2, geometry=fixed, moving_geometry=moving)
    folder = tmp_path_factory.mktemp("slicer")
    save_image(phantom.fixed, fixed, folder / "fixed.nrrd")
    save_image(phantom.moving, moving, folder / "moving.nrrd")
    save_image((phantom.fixed_labels > 0).astype(np.uint8), fixed, folder / "mask.nrrd")
    return phantom, folder


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--fixed", str(folder / "fixed.nrrd"), "--moving", str(folder / "moving.nrrd"), "--preset", "fast",
        "--device", "cpu", "--threads", "1", "--settings", QUICK, *more,
    ]  # fmt: skip


def test_the_description_is_what_slicer_parses() -> None:
    root = ElementTree.parse(DESCRIPTION).getroot()
    assert root.tag == "executable"
    assert all(root.find(tag) is not None for tag in ("category", "title", "description", "version", "contributor"))
    assert root.findtext("version") == itk_nir.__version__
    names, flags = [], []
    kinds = {"image", "transform", "integer", "string", "string-enumeration", "boolean"}
    for parameter in root.iterfind("parameters/*"):
        if parameter.tag in ("label", "description"):
            continue
        assert parameter.tag in kinds
        assert all(parameter.findtext(tag) for tag in ("name", "label", "longflag", "description"))
        names.append(parameter.findtext("name"))
        flags.append(parameter.findtext("longflag") or "")
        if parameter.tag in ("image", "transform"):
            assert parameter.findtext("channel") in ("input", "output")
        else:
            assert parameter.find("default") is not None
        if parameter.get("type") is not None:
            assert (
                parameter.get("type")
                in {"transform": ("linear", "nonlinear", "bspline"), "image": ("label",)}[parameter.tag]
            )
        elements = [element.text for element in parameter.iterfind("element")]
        assert not elements or parameter.findtext("default") in elements
    assert len(set(names)) == len(names)
    assert len(set(flags)) == len(flags)
    # Slicer refuses any other character in a long flag.
    assert all(re.fullmatch(r"--[A-Za-z0-9_]+", flag) for flag in flags)
    assert {r for p in root.iter() if (r := p.get("reference"))} <= set(names)


def test_the_description_offers_what_there_is() -> None:
    root = ElementTree.parse(DESCRIPTION).getroot()
    elements = {
        p.findtext("name"): tuple(e.text for e in p.iterfind("element")) for p in root.iter("string-enumeration")
    }
    assert elements["preset"] == tuple(PRESETS)
    assert elements["linear"] == ("none", "translation", "rigid", "similarity", "affine")
    assert set(elements["metric"]) == {"auto", *METRICS} - {"none"}
    assert elements["interpolation"] == ("linear", "nearest", "bspline")
    assert elements["device"] == ("auto", "cpu", "cuda")


def test_the_scripted_module_prints_only_its_description() -> None:
    script = CLI_FOLDER / "NIRRegistration.py"
    assert script.read_text().startswith("#!/usr/bin/env python-real\n")
    assert script.with_suffix(".xml") == DESCRIPTION
    assert os.name != "posix" or os.access(script, os.X_OK)
    out = subprocess.run([sys.executable, script, "--xml"], capture_output=True, text=True, env=ENV, check=True)
    assert out.stdout == DESCRIPTION.read_text()
    assert out.stderr == ""


@pytest.mark.slow
def test_a_run_as_slicer_starts_it(pair: tuple[Phantom, Path], tmp_path: Path) -> None:
    phantom, folder = pair
    more = ["--outputVolume", "w.nrrd", "--outputTransform", "t.h5", "--outputInverseTransform", "i.h5"]
    more += ["--fixedMask", str(folder / "mask.nrrd"), "--linear", "rigid"]
    script = CLI_FOLDER / "NIRRegistration.py"
    out = subprocess.run(
        [sys.executable, script, *arguments(folder, *more)], capture_output=True, text=True, env=ENV, cwd=tmp_path
    )
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert lines[0].startswith("<filter-start>")
    assert lines[-1].startswith("<filter-end>")
    fractions = [float(m[1]) for m in map(re.compile(r"<filter-progress>(.*)</filter-progress>$").match, lines) if m]
    assert len(fractions) == len(lines) - 2  # and nothing else
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i.h5", "t.h5", "w.nrrd"]

    fixed, moving = (sitk.ReadImage(str(folder / f"{name}.nrrd")) for name in ("fixed", "moving"))
    forward, inverse = (sitk.ReadTransform(str(tmp_path / name)) for name in ("t.h5", "i.h5"))
    # One composite, which is the one kind of composite that Slicer reads.
    assert forward.GetName() == "CompositeTransform"
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "w.nrrd")))
    seen = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, forward, sitk.sitkLinear))
    inside = phantom.fixed_labels > 0
    assert np.abs(warped - seen)[inside].max() < 1e-4 * np.ptp(phantom.moving)
    points = phantom.geometry.grid()[inside][::50]
    there = [forward.TransformPoint(p.tolist()) for p in points]
    back = np.array([inverse.TransformPoint(p) for p in there])
    assert np.linalg.norm(np.subtract(there, points), axis=1).mean() > 1.0
    assert np.linalg.norm(back - points, axis=1).mean() < 0.2  # mm; voxels of 4 mm


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to make; choose at least one output"),
        (["--outputVolume", "w.nrrd", "--initialTransform", "missing.h5"], "missing.h5: no such file"),
        (["--outputVolume", "w.nrrd", "--settings", "stepz=3"], "did you mean 'iterations'"),
        (
            ["--outputVolume", "w.nrrd", "--settings", "iterations=1; fixed_mask=m.nrrd"],
            "give it as --fixedMask m.nrrd",
        ),
        (["--outputTransform", "t.docx"], "t.docx: Slicer reads no such transform"),
        (["--outputDisplacementField", "t.h5"], "t.h5: is no image file, which a displacement field is"),
        (["--outputVolume", "w.nrrd", "--settings", "metric=nmi"], "give it as --metric nmi"),
        (["--outputVolume", "w.nrrd", "--linear", "none", "--linearOnly"], "leaves nothing to do"),
    ],
)
def test_refusals_are_one_line_on_standard_error(
    pair: tuple[Phantom, Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = [str(tmp_path / m) if m in ("w.nrrd", "t.docx", "t.h5") else m for m in more]
    assert main(arguments(pair[1], *more)) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not [line for line in out.splitlines() if not line.startswith("<filter-")]
    assert not list(tmp_path.iterdir())


def test_a_linear_stage_alone_with_its_metric_and_a_displacement_field(
    pair: tuple[Phantom, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a rigid preset of another module asks for."""
    phantom, folder = pair
    more = ["--linear", "rigid", "--linearOnly", "--metric", "nmi", "--interpolation", "nearest"]
    outputs = ["--outputVolume", "w.nrrd", "--outputDisplacementField", "d.nrrd", "--outputTransform", "t.tfm"]
    outputs = [str(tmp_path / name) if name[1] == "." else name for name in outputs]
    assert main([*arguments(folder, *more), *outputs]) == 0
    capsys.readouterr()
    fixed, moving = (sitk.ReadImage(str(folder / f"{name}.nrrd")) for name in ("fixed", "moving"))
    linear = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    assert linear.IsLinear()
    matrix = np.reshape(linear.GetParameters()[:4], (2, 2))
    assert np.allclose(matrix @ matrix.T, np.eye(2), atol=1e-6)
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "w.nrrd")))
    assert set(np.unique(warped)) <= {0, *np.unique(phantom.moving)}
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "d.nrrd"), sitk.sitkVectorFloat64))
    points = phantom.geometry.grid()[phantom.fixed_labels > 0][::50].tolist()
    apart = np.subtract([field.TransformPoint(p) for p in points], [linear.TransformPoint(p) for p in points])
    assert np.linalg.norm(apart, axis=1).max() < 1e-3
    assert sitk.GetArrayFromImage(sitk.Resample(moving, fixed, linear, sitk.sitkNearestNeighbor)).shape == warped.shape


def test_an_unknown_flag_is_refused(pair: tuple[Phantom, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(pair[1], "--presets", "fast"))
    assert stop.value.code == 2
    assert "--presets" in capsys.readouterr().err


def test_flags_that_messages_name_are_those_of_the_description() -> None:
    root = ElementTree.parse(DESCRIPTION).getroot()
    there = {p.findtext("longflag") for p in root.iterfind("parameters/*")}
    assert {flag for flag in FLAGS.values() if flag} <= there


def test_the_description_needs_no_encoding() -> None:
    """It is printed on whatever standard output is, and what is replaced there would be another description."""
    assert DESCRIPTION.read_bytes().isascii()

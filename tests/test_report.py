"""The report: every number documented, and fit for JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.engine.progress import Iteration
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom
from itk_nir.report import Report, as_json


def test_every_field_is_documented() -> None:
    text = Report.__doc__
    assert text is not None
    told = re.findall(r"(?m)^    (\w[\w, ]*) : \S", text)
    names = [name for line in told for name in line.split(", ")]
    assert sorted(names) == sorted(f.name for f in dataclasses.fields(Report))
    assert len(names) == len(set(names))


def test_empty_report_is_json() -> None:
    plain = Report().as_dict()
    assert list(plain) == [f.name for f in dataclasses.fields(Report)]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_what_json_lacks() -> None:
    report = Report(
        preset="p",
        similarity=math.nan,
        jacobian_range=(np.float32(0.5), math.inf),  # type: ignore[arg-type]
        trace=(Iteration(0, 1, 0.5, -math.inf, 0.25),),
        seconds={"total": np.float64(2)},
        settings={"deformable": {"metric": itk_nir.make_settings, "sizes": np.array([1, 2])}},
        warnings=("odd",),
    )
    plain = report.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["similarity"] is None
    assert plain["jacobian_range"] == [0.5, None]
    assert plain["trace"] == [{"level": 0, "iteration": 1, "metric": 0.5, "loss": None, "learning_rate": 0.25}]
    assert plain["seconds"] == {"total": 2.0}
    assert plain["settings"]["deformable"]["sizes"] == [1, 2]
    assert plain["settings"]["deformable"]["metric"].startswith("<function make_settings")
    assert plain["warnings"] == ["odd"]


CALL = {"arguments": {"fixed": "f.nii", "moving": "m.nii"}, "preset": "fast", "options": {}}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"call": []}, "does not say how"), ({"call": CALL | {"options": []}}, "its options are no table"),
        ({"call": CALL | {"arguments": None}}, "its arguments are no table"),
        ({"call": CALL | {"arguments": [1]}, "inputs": None}, "its arguments and inputs are no table"),
        ({"inputs": ["fixed"]}, "its inputs are no table"), ({"versions": 3}, "is not the report|its versions are"),
        ({"call": CALL | {"arguments": {}}}, "has no fixed, moving among its arguments"),
        ({"call": CALL | {"arguments": {**CALL["arguments"], "colour": 1}}}, "has unknown colour among"),  # type: ignore[dict-item]
        ({"call": CALL | {"arguments": {**CALL["arguments"], "fill": {"number": "x"}}}}, "arguments cannot be read"),  # type: ignore[dict-item]
        ({"call": CALL | {"options": {"network": 3}}}, "its options cannot be used"),
        ({"call": CALL | {"preset": ["fast"]}}, "its options cannot be used"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", ["in memory", "saved"])
def test_an_edited_report_is_refused_in_a_sentence(change: Any, what: str, kept: str, tmp_path: Path) -> None:
    report = {"metrics": {"call": CALL, "inputs": {}, "versions": {}} | change}
    given: Any = report
    if kept == "saved":
        given = tmp_path / "report.json"
        given.write_text(json.dumps(report))
    with pytest.raises(itk_nir.InputError, match=what):
        itk_nir.repeat(given)


def test_a_mapping_that_is_no_report_is_refused() -> None:
    with pytest.raises(itk_nir.InputError, match="does not say how"):
        itk_nir.repeat({"metrics": None})


def test_small_arrays_in_memory_are_no_part_of_a_report(phantom_2d: Phantom) -> None:
    """They are images, to be given again; and half precision, which few programs know, is saved as float32."""
    fixed, moving = ((a.astype(np.float16), phantom_2d.geometry) for a in (phantom_2d.fixed, phantom_2d.moving))
    assert fixed[0].size < 10_000
    masks = {"fixed_mask": (np.ones(fixed[0].shape, np.uint8), phantom_2d.geometry)}
    quick: dict[str, Any] = {"preset": "fast", "iterations": 2, "threads": 1, "device": "cpu"}
    result = itk_nir.register(fixed, moving, **masks, **quick)
    told = result.report.as_dict()["call"]["arguments"]
    assert told["fixed"] == told["moving"] == told["fixed_mask"] == {"object": "numpy.ndarray"}
    with pytest.raises(itk_nir.InputError, match="fixed, fixed_mask, moving was in memory, not a file"):
        itk_nir.repeat(result)
    again = itk_nir.repeat(result, fixed=fixed, moving=moving, **masks)
    np.testing.assert_array_equal(again.warped_array, result.warped_array)


@pytest.mark.parametrize("kind", ["itk", "ants", "elastix", "slicer"])
def test_half_precision_is_saved_as_float32(phantom_2d: Phantom, kind: Any, tmp_path: Path) -> None:
    fixed, moving = ((a.astype(np.float16), phantom_2d.geometry) for a in (phantom_2d.fixed, phantom_2d.moving))
    result = itk_nir.register(fixed, moving, preset="fast", iterations=2, threads=1, device="cpu")
    saved = itk_nir.images.load_image(result.save(tmp_path / "x_", kind)["warped"], "warped")
    assert saved.pixel_type == np.float32
    np.testing.assert_array_equal(saved.array, result.warped_pixels[0].astype(np.float32))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None), (True, True), (np.bool_(False), False), (np.int64(3), 3), (np.float32(0.5), 0.5), ("x", "x"),
        (math.nan, None), (-math.inf, None), ((1, (2, 3)), [1, [2, 3]]),
        ({1: {"a": (math.nan,)}}, {"1": {"a": [None]}}), (np.eye(2), [[1.0, 0.0], [0.0, 1.0]]), (1j, "1j"),
    ],
)  # fmt: skip
def test_values_in_the_types_of_json(value: Any, wanted: Any) -> None:
    got = as_json(value)
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.fixture(scope="module")
def results(phantom_2d: Phantom) -> dict[str, itk_nir.RegistrationResult]:
    fixed, moving = (to_sitk(a, phantom_2d.geometry) for a in (phantom_2d.fixed, phantom_2d.moving))
    few: dict[str, Any] = {"threads": 1, "device": "cpu", "seed": 5}
    settings = itk_nir.make_settings("fast", iterations=3, linear_iterations=8, linear_start_iterations=2)
    return {
        "whole": itk_nir.register(fixed, moving, preset=settings, **few),
        "linear": itk_nir.register(fixed, moving, preset=settings, deformable=False, linear="rigid", **few),
    }


@pytest.mark.parametrize("kind", ["whole", "linear"])
def test_report_of_a_run(results: dict[str, itk_nir.RegistrationResult], kind: str) -> None:
    result = results[kind]
    report = result.report
    plain = report.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    measured = {f.name for f in dataclasses.fields(Report) if getattr(report, f.name) is not None}
    missing = {f.name for f in dataclasses.fields(Report)} - measured
    deformation = {
        "similarity_start", "folded_voxels", "folded_percent", "jacobian_range", "log_jacobian_sd",
        "inverse_error_mean_voxels", "inverse_error_p99_voxels", "field_spacing_voxels", "interpolation_error_voxels",
    }  # fmt: skip
    assert missing == {"peak_device_memory_mb", "landmarks"} | (deformation if kind == "linear" else set())
    assert (report.preset, report.seed, report.threads, report.device) == ("fast", 5, 1, "cpu")
    assert set(report.settings) == {"deformable", "linear", "sampling"}
    assert report.settings["deformable"]["iterations"] == [3, 3, 3]
    assert report.settings["deformable"]["network"]["width"] == 64
    assert report.settings["linear"]["linear_iterations"] == [8, 8]
    np.testing.assert_array_equal(report.affine_matrix, result.affine.matrix)
    assert len(report.trace) == (9 if kind == "whole" else 0)


@pytest.mark.parametrize("kind", ["whole", "linear"])
def test_metrics_is_the_old_name(results: dict[str, itk_nir.RegistrationResult], kind: str) -> None:
    result = results[kind]
    with pytest.warns(DeprecationWarning, match=r"metrics is called \.report"):
        old = result.metrics
    assert json.loads(json.dumps(old, allow_nan=False)) == old
    assert old["linear_matrix"] == result.report.affine_matrix
    assert old["bake_spacing_voxels"] == result.report.field_spacing_voxels
    assert old["bake_error_voxels"] == result.report.interpolation_error_voxels
    assert {k: old[k] for k in result.report.as_dict()} == result.report.as_dict()

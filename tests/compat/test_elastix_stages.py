"""One map for each stage of a request to elastix, of its own class; elastix' recipes; the class interface."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itk_nir.compat.elastix import ElastixRegistrationMethod, registration_method, understand
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.compat.elastix.splines import field_to_spline, resting_spline
from itk_nir.compat.elastix.stages import nearest
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk
from itk_nir.transforms.formats.elastix import read_elastix
from itk_nir.transforms.formats.elastix.steps import ShearedField
from itk_nir.transforms.model import LinearTransform
from tests.grids import turned

itk = pytest.importorskip("itk")
if "ParameterObject" not in dir(itk):  # to ask for the attribute would load most of ITK, before any test runs
    pytest.skip("needs itk-elastix: pip install itk-elastix", allow_module_level=True)

FIXED = Geometry.make((44, 40), (1.2, 1.5), (-20.0, 7.0), turned(2, 0.3, 0.0))
MOVING = Geometry.make((50, 46), (1.2, 1.2), (-24.0, 3.0), turned(2, -0.1, 0.0))
AFFINE = LinearTransform.make([[1.08, 0.08], [-0.06, 0.94]], (3.0, -2.0), FIXED.centre)
MATTES = "AdvancedMattesMutualInformation"
QUICK: dict[str, Any] = {
    "preset": "fast", "device": "cpu", "number_of_threads": 1, "linear_size": (40,), "linear_iterations": (60,),
    "iterations": (24, 12, 6),
}  # fmt: skip


def stage(kind: str, metric: str = "AdvancedNormalizedCorrelation") -> dict[str, Any]:
    return {"Transform": f"{kind}Transform", "Metric": metric}


def scene(points: np.ndarray) -> np.ndarray:
    """Smooth structures at physical points, 0 to about 100."""
    x, y = np.moveaxis(points - FIXED.centre, -1, 0)
    body = np.exp(-(((x**2 + 1.3 * y**2) / 18.0**2) ** 2))
    return np.asarray((50 + 25 * np.sin(x / 3.0 + 1) + 25 * np.cos(y / 2.5 + x / 7.0)) * body, np.float32)


def images(linear: LinearTransform = AFFINE, bend: float = 0.8) -> tuple[Any, Any]:
    """A pair such that fixed point ``p`` shows what moving point ``linear(p + b(p))`` shows."""
    p = FIXED.grid()
    shift = bend * np.stack([np.sin(p[..., 1] / 7.0), np.cos(p[..., 0] / 8.0)], -1)
    return to_itk(scene(p + shift), FIXED), to_itk(scene(linear.inverse().map(MOVING.grid())), MOVING)


def kinds(parameters: Any) -> list[str]:
    return [parameters.GetParameterMap(n)["Transform"][0] for n in range(parameters.GetNumberOfParameterMaps())]


def in_the_middle() -> np.ndarray:
    return np.asarray(FIXED.grid()[8:-8, 8:-8].reshape(-1, 2))


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (["Translation", "Affine"], ["TranslationTransform", "AffineTransform"]),
        (["Euler", "Similarity", "Affine"], ["EulerTransform", "SimilarityTransform", "AffineTransform"]),
        (["BSpline", "BSpline"], ["DeformationFieldTransform", "BSplineTransform"]),
        (["Affine", "RecursiveBSpline"], ["AffineTransform", "DeformationFieldTransform"]),
    ],
)
def test_every_stage_has_a_map_of_its_class(asked: list[str], wanted: list[str]) -> None:
    fixed, moving = images()
    image, parameters = registration_method(fixed, moving, [stage(k) for k in asked], **QUICK)
    assert kinds(parameters) == wanted
    again = itk.array_from_image(itk.transformix_filter(moving, parameters))
    assert np.abs(again - itk.array_from_image(image)).max() <= 1e-3
    whole = read_elastix(parameters).map(in_the_middle())
    # The stages before the last are a start for it: each is about as near to the whole as the one before, or nearer.
    apart = [np.linalg.norm(in_the_middle() - whole, axis=-1).mean()]
    for count in range(1, len(wanted) + 1):
        part = read_elastix([parameters.GetParameterMap(n) for n in range(count)])
        apart.append(np.linalg.norm(part.map(in_the_middle()) - whole, axis=-1).mean())
    assert all(after <= 1.01 * before for before, after in pairwise(apart))
    assert apart[-1] < 1e-6
    assert np.linalg.norm(whole - AFFINE.map(in_the_middle()), axis=-1).mean() < 1.5


@pytest.mark.parametrize(("kind", "parameters"), [("Translation", 2), ("Similarity", 4), ("Euler", 3)])
def test_a_class_alone_comes_back_as_that_class(kind: str, parameters: int) -> None:
    true = {
        "Translation": LinearTransform.make(np.eye(2), (2.5, -3.0)),
        "Euler": LinearTransform.make(turned(2, 0.12, 0.0), (2.5, -3.0), FIXED.centre),
        "Similarity": LinearTransform.make(1.1 * turned(2, 0.12, 0.0), (2.5, -3.0), FIXED.centre),
    }[kind]
    _, found = registration_method(*images(true, bend=0.0), stage(kind, MATTES), **QUICK)
    assert kinds(found) == [f"{kind}Transform"]
    assert len(found.GetParameterMap(0)["TransformParameters"]) == parameters
    error = np.linalg.norm(read_elastix(found).map(in_the_middle()) - true.map(in_the_middle()), axis=-1)
    assert error.mean() < 0.2


def test_the_nearest_map_of_a_class() -> None:
    assert nearest(AFFINE, "AffineTransform", FIXED.centre) is AFFINE
    for kind in ("TranslationTransform", "EulerTransform", "SimilarityTransform"):
        best = nearest(AFFINE, kind, FIXED.centre)
        np.testing.assert_allclose(best.map(FIXED.centre), AFFINE.map(FIXED.centre))
        # No other one of the class is nearer in the sum of squares of the matrix.
        distance = np.linalg.norm(best.matrix[:2, :2] - AFFINE.matrix[:2, :2])
        for angle in (0.0, 0.05, -0.05):
            for scale in (1.0, 1.02, 0.98) if kind.startswith("Sim") else (1.0,):
                turn = turned(2, angle, 0.0) if kind != "TranslationTransform" else np.eye(2)
                other = scale * turn @ best.matrix[:2, :2]
                assert np.linalg.norm(other - AFFINE.matrix[:2, :2]) >= distance - 1e-12
    mirror = LinearTransform.make([[-1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    assert np.linalg.det(nearest(mirror, "EulerTransform", FIXED.centre).matrix) == pytest.approx(1.0)


def test_the_recipes_for_an_inverse_give_inverses(tmp_path: Path) -> None:
    """ITKElastix' example 11 (a file, then NoInitialTransform), and brainglobe's (an object, its maps dropped)."""
    fixed, moving = images()
    stages = [stage("Affine"), stage("BSpline")]
    _, there = registration_method(fixed, moving, stages, output_directory=tmp_path, **QUICK)
    file = tmp_path / "TransformParameters.1.txt"
    _, by_file = registration_method(fixed, fixed, stages, initial_transform_parameter_file_name=file, **QUICK)
    assert by_file.GetParameterMap(0)["InitialTransformParameterFileName"] == (str(file),)
    for name in ("InitialTransformParameterFileName", "InitialTransformParametersFileName"):
        by_file.SetParameter(0, name, "NoInitialTransform")
    method = ElastixRegistrationMethod.New(fixed, fixed, **{k: v for k, v in QUICK.items() if k != "number_of_threads"})
    method.SetInitialTransformParameterObject(there)
    method.SetParameterObject([stage("Affine"), stage("BSpline")])
    method.UpdateLargestPossibleRegion()
    out = method.GetTransformParameterObject()
    assert kinds(out)[:2] == kinds(there)
    by_object = itk.ParameterObject.New()
    for n in range(there.GetNumberOfParameterMaps(), out.GetNumberOfParameterMaps()):
        by_object.AddParameterMap(out.GetParameterMap(n))
    by_object.SetParameter(0, "InitialTransformParameterFileName", "NoInitialTransform")
    p = in_the_middle()
    q = read_elastix(there).map(p)
    moved = np.linalg.norm(q - p, axis=-1).mean()
    assert moved > 3.0
    for back in (by_file, by_object):
        assert kinds(back) == ["AffineTransform", "DeformationFieldTransform"]
        assert np.linalg.norm(read_elastix(back).map(q) - p, axis=-1).mean() < 0.15 * moved


def test_a_linear_map_after_a_linear_start_is_of_its_class() -> None:
    fixed, moving = images(bend=0.0)
    _, first = registration_method(fixed, moving, stage("Euler", MATTES), **QUICK)
    asked = stage("Affine", MATTES)
    _, second = registration_method(fixed, moving, asked, initial_transform_parameter_object=first, **QUICK)
    assert kinds(second) == ["EulerTransform", "AffineTransform"]
    assert second.GetParameterMap(0)["TransformParameters"] == first.GetParameterMap(0)["TransformParameters"]
    p = in_the_middle()
    assert np.linalg.norm(read_elastix(second).map(p) - AFFINE.map(p), axis=-1).mean() < 0.3
    # What a turn becomes behind a stretch is no turn: its map says what it is.
    away = LinearTransform(AFFINE.matrix @ LinearTransform.make(turned(2, 0.08, 0.0), (1.0, 0.5), FIXED.centre).matrix)
    _, third = registration_method(fixed, moving, stage("Euler", MATTES), initial_transform=away.matrix, **QUICK)
    assert kinds(third) == ["AffineTransform", "AffineTransform"]
    assert np.linalg.norm(read_elastix(third).map(p) - AFFINE.map(p), axis=-1).mean() < 0.3


def test_the_class_has_the_methods_of_itk_elastix(tmp_path: Path) -> None:
    fixed, moving = images()
    mask = to_itk(np.ones(FIXED.shape, np.uint8), FIXED)
    parameters = itk.ParameterObject.New()
    for kind in ("Euler", "BSpline"):
        parameters.AddParameterMap(read_maps(stage(kind))[0])
    method = ElastixRegistrationMethod[type(fixed), type(moving)].New(fixed_image=fixed, parameter_object=parameters)
    with pytest.raises(InputError, match="there is no MovingImage; call SetMovingImage first"):
        method.Update()
    method.options.update({k: v for k, v in QUICK.items() if k != "number_of_threads"})
    method.SetMovingImage(moving)
    method.SetFixedMask(mask)
    method.SetNumberOfThreads(1)
    method.SetOutputDirectory(str(tmp_path))
    method.SetLogFileName("log.txt")
    method.LogToFileOn()
    method.LogToConsoleOff()
    assert (method.GetLogToFile(), method.GetNumberOfFixedImages(), method.GetFixedImage()) == (True, 1, fixed)
    method.UpdateLargestPossibleRegion()
    image = method.GetOutput()
    method.Update()  # nothing has changed
    assert method.GetOutput() is image
    assert "iteration" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "result.1.mhd").exists()
    whole = method.ConvertToItkTransform(method.GetCombinationTransform())
    names = [method.GetNthTransform(n).GetNameOfClass() for n in range(method.GetNumberOfTransforms())]
    assert names == ["Euler2DTransform", "BSplineTransform"]
    itk.Euler2DTransform[itk.D].cast(whole.GetNthTransform(1))
    itk.BSplineTransform[itk.D, 2, 3].cast(whole.GetNthTransform(0))
    p = in_the_middle()
    through = [list(whole.TransformPoint(point)) for point in p.tolist()]
    # Between the nodes, a spline and linear interpolation are apart by as much as either may be off.
    np.testing.assert_allclose(through, read_elastix(method.GetTransformParameterObject()).map(p), atol=0.05)
    method.RemoveFixedMask()
    assert method.GetNumberOfFixedMasks() == 0
    with pytest.raises(AttributeError, match="did you mean SetParameterObject"):
        method.SetParameterObjekt(parameters)
    with pytest.raises(AttributeError, match=r"has no 'Clone'$"):  # and no private name
        method.Clone()
    with pytest.raises(OptionError, match="the log level cannot be had"):
        method.SetLogLevel(3)


@pytest.mark.parametrize("d", [2, 3])
def test_a_spline_has_the_displacements_of_the_field_at_its_nodes(d: int) -> None:
    """On axes that are not perpendicular too; beyond the field neither moves anything."""
    generator = np.random.default_rng(0)
    size = (7, 5, 4)[:d]
    matrix = np.eye(d + 1)
    matrix[:d] += generator.normal(0, 0.2, (d, d + 1))
    field = ShearedField(size, matrix, generator.normal(0, 1, (*size[::-1], d)).astype(np.float32))
    spline, at_rest = field_to_spline(field), resting_spline(size, matrix)
    inner = [range(1, n - 1) for n in size]  # ITK has nothing move on the very rim
    for index in product(*inner):
        point = (matrix[:d, :d] @ index + matrix[:d, d]).tolist()
        moved = np.array(list(spline.TransformPoint(point))) - point
        np.testing.assert_allclose(moved, field.vectors[index[::-1]], atol=1e-5)
        assert list(at_rest.TransformPoint(point)) == point
    beyond = (matrix[:d, :d] @ np.array(size) + matrix[:d, d]).tolist()
    assert list(spline.TransformPoint(beyond)) == beyond


def test_pairs_of_images_have_a_metric_each() -> None:
    fixed, moving = images()
    inverted = [to_itk(100 - itk.array_from_image(i), g) for i, g in ((fixed, FIXED), (moving, MOVING))]
    two = stage("Affine") | {"Metric": ["AdvancedNormalizedCorrelation", "AdvancedMeanSquares"], "Metric1Weight": 0.5}
    request = understand(read_maps(two))
    assert request.with_metrics({}, 2) == {
        "linear_metric": ("ncc", "mse"), "channel_weights": (1.0, 0.5)
    }  # fmt: skip
    with pytest.raises(OptionError, match="3 pairs of images and 2 similarities"):
        request.with_metrics({}, 3)
    _, found = registration_method([fixed, inverted[0]], [moving, inverted[1]], two, **QUICK)
    p = in_the_middle()
    assert np.linalg.norm(read_elastix(found).map(p) - AFFINE.map(p), axis=-1).mean() < 1.2


def test_a_rigidity_image_keeps_its_regions_rigid(tmp_path: Path) -> None:
    fixed, moving = images(bend=1.5)
    stiff = np.zeros(FIXED.shape, np.float32)
    stiff[12:20, 10:20], stiff[24:30, 26:34] = 1.0, 0.8
    itk.imwrite(to_itk(stiff, FIXED), str(tmp_path / "stiff.mha"))
    penalised = stage("BSpline") | {
        "Metric": ["AdvancedNormalizedCorrelation", "TransformRigidityPenalty"],
        "FixedRigidityImageName": str(tmp_path / "stiff.mha"), "UseMovingRigidityImage": False,
    }  # fmt: skip
    start = {"initial_transform": AFFINE.matrix}
    bent = []
    for asked in (stage("BSpline"), penalised):
        _, found = registration_method(fixed, moving, asked, **start, **QUICK)
        whole = read_elastix(found)
        strain = []
        for region in (stiff == 1.0, stiff == np.float32(0.8)):
            p = FIXED.grid()[region]
            q = whole.map(p)
            left, _, right = np.linalg.svd((p - p.mean(0)).T @ (q - q.mean(0)))
            strain.append(np.abs((p - p.mean(0)) @ left @ right - (q - q.mean(0))).max())
        bent.append(max(strain))
    assert bent[1] < 0.02 < 0.1 < bent[0]
    missing = {**penalised, "FixedRigidityImageName": "none.mha"}
    with pytest.raises(InputError, match=r"FixedRigidityImageName: none\.mha: no such file"):
        registration_method(fixed, moving, missing, **QUICK)

"""Parameters that elastix holds still or searches, and metrics for which another one stands; beside itk-elastix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itk_nir.compat.elastix import registration_method, understand
from itk_nir.compat.elastix.linear_parameters import identity_parameters, matrix_of, translation_of
from itk_nir.compat.elastix.options import STANDING_IN
from itk_nir.compat.elastix.points import read_points
from itk_nir.compat.elastix.reading import read_maps
from itk_nir.compat.elastix.registration import remarks
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk
from itk_nir.phantom import brain_phantom
from itk_nir.resample import resample_array
from itk_nir.transforms.formats.elastix import read_elastix
from itk_nir.transforms.formats.elastix.steps import linear_class

itk = pytest.importorskip("itk")
if not hasattr(itk, "ParameterObject"):
    pytest.skip("needs itk-elastix: pip install itk-elastix", allow_module_level=True)

PHANTOM = brain_phantom(2, (48, 56), seed=1)
QUICK: dict[str, Any] = {"preset": "fast", "device": "cpu", "number_of_threads": 1}
SEARCH = {
    "Transform": "EulerTransform", "Metric": "AdvancedMeanSquares", "Optimizer": "FullSearch", "ImageSampler": "Full",
    "NumberOfResolutions": 1, "ImagePyramidSchedule": [1, 1], "FullSearchSpace0": ["t_x", 1, -3.0, 5.0, 0.7],
}  # fmt: skip
SPLINE = {"Transform": "BSplineTransform", "Metric": "AdvancedNormalizedCorrelation"}


def test_what_a_result_says_is_no_parameter_of_a_registration() -> None:
    """A map that was edited from a result, or from elastix' own, is understood; it is no start."""
    fixed, moving = shifted((2.0, 1.0))
    for kind in ("translation", "rigid", "affine", "bspline"):
        given = itk.ParameterObject.New()
        given.AddParameterMap(given.GetDefaultParameterMap(kind, 1))
        given.SetParameter(0, "MaximumNumberOfIterations", "2")
        _, theirs = itk.elastix_registration_method(fixed, moving, parameter_object=given)
        _, ours = registration_method(fixed, moving, given, iterations=2, **QUICK)
        wanted = dict(given.GetParameterMap(0))
        for written in (theirs, ours):
            edited = {**written.GetParameterMap(0), **wanted}
            assert "TransformParameters" in edited or kind == "bspline"
            assert understand([{name: list(values) for name, values in edited.items()}]).kinds


def test_the_order_of_angles_counts_where_one_is_held() -> None:
    euler = {"Transform": ["EulerTransform"], "ComputeZYX": ["true"]}
    assert understand([euler]).unused == ("ComputeZYX",)
    assert understand([{**euler, "ComputeZYX": ["false"], "Scales": ["1e10", "1", "1", "1", "1", "1"]}]).constraints
    with pytest.raises(OptionError, match="ComputeZYX of map 0: 'true' cannot"):
        understand([{**euler, "Scales": ["1e10", "1", "1", "1", "1", "1"]}])
    with pytest.raises(OptionError, match="ComputeZYX: 'maybe'"):
        understand([{**euler, "ComputeZYX": ["maybe"]}])


def shifted(shift: tuple[float, float]) -> tuple[Any, Any]:
    """One image twice, the second of which lies somewhere else."""
    grids = [Geometry.make(PHANTOM.geometry.size, (1.5, 1.2), (10.0 + x, -7.0 + y)) for x, y in ((0, 0), shift)]
    return to_itk(PHANTOM.fixed, grids[0]), to_itk(PHANTOM.fixed, grids[1])


def theirs(fixed: Any, moving: Any, maps: list[dict[str, Any]]) -> Any:
    po = itk.ParameterObject.New()
    for one in read_maps(maps):
        po.AddParameterMap(one)
    return itk.elastix_registration_method(fixed, moving, parameter_object=po, number_of_threads=1)[1]


def entries(po: Any, n: int, name: str) -> list[float]:
    return [float(v) for v in po.GetParameterMap(n)[name]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"AutomaticTransformInitialization": "true", "AutomaticTransformInitializationMethod": "CenterOfGravity"},
        {"FullSearchSpace0": ["t_x", 1, -3.0, 5.0, 0.7, "a", 0, -0.1, 0.1, 0.04], "CenterOfRotation": [20, 30],
         "AutomaticTransformInitialization": "true"},
        {"NumberOfResolutions": 2, "ImagePyramidSchedule": [2, 2, 1, 1], "CenterOfRotationPoint": [3, 4],
         "FullSearchSpace1": ["t_y", 2, -6.0, 5.0, 0.5]},
    ],
)  # fmt: skip
def test_an_exhaustive_search_ends_at_the_node_where_that_of_elastix_ends(changes: dict[str, Any]) -> None:
    fixed, moving = shifted((4.0, -5.0))
    maps = [{**SEARCH, **changes}]
    ours = registration_method(fixed, moving, maps, **QUICK)[1]
    for name in ("TransformParameters", "CenterOfRotationPoint"):
        expected = entries(theirs(fixed, moving, maps), 0, name)
        np.testing.assert_allclose(entries(ours, 0, name), expected, atol=1e-9)


def test_a_second_search_begins_where_the_first_one_ended() -> None:
    fixed, moving = shifted((4.0, -5.0))
    maps = [SEARCH, {**SEARCH, "Transform": "TranslationTransform"}]
    ours, elastix = registration_method(fixed, moving, maps, **QUICK)[1], theirs(fixed, moving, maps)
    for n in range(2):
        np.testing.assert_allclose(*(entries(po, n, "TransformParameters") for po in (ours, elastix)), atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "scales", "held"),
    [
        ("EulerTransform", [1e20], {0: 0.0}),
        ("EulerTransform", [1000, 1, 1e20], {2: 0.0}),
        ("SimilarityTransform", [1e20, 1000, 1, 1], {0: 1.0}),
        ("AffineTransform", [1000, 1e20, 1e20, 1000, 1, 1], {1: 0.0, 2: 0.0}),
    ],
)
def test_parameters_with_a_large_scale_stay_and_the_others_move(
    kind: str, scales: list[float], held: dict[int, float]
) -> None:
    fixed, moving = shifted((4.0, 0.0 if kind == "EulerTransform" and len(scales) == 3 else -5.0))
    maps = {"Transform": kind, "Metric": "AdvancedMeanSquares", "Scales": scales, "AutomaticScalesEstimation": "false"}
    image, po = registration_method(fixed, moving, maps, **QUICK)
    found = entries(po, 0, "TransformParameters")
    assert {n: found[n] for n in held} == held
    shift = np.array(found[translation_of(kind, 2)])
    np.testing.assert_allclose(shift, np.subtract(moving.GetOrigin(), fixed.GetOrigin()), atol=0.1)
    again = itk.transformix_filter(moving, po)
    np.testing.assert_allclose(itk.array_from_image(again), itk.array_from_image(image), atol=1e-3)


def test_a_deformation_may_follow_what_was_held() -> None:
    fixed, moving = shifted((4.0, 0.0))
    held = {"Transform": "EulerTransform", "Metric": "AdvancedMeanSquares", "Scales": [1e20]}
    _, po = registration_method(fixed, moving, [held, SPLINE], iterations=2, **QUICK)
    kinds = [po.GetParameterMap(n)["Transform"][0] for n in range(2)]
    assert kinds[0] == "EulerTransform"
    grid = Geometry.make(PHANTOM.geometry.size, (1.5, 1.2), (10.0, -7.0))
    middle = grid.grid()[8:-8, 8:-8].reshape(-1, 2)
    np.testing.assert_allclose(read_elastix(po, grid).map(middle), middle + np.array([4.0, 0.0]), atol=0.3)


def test_scales_that_elastix_does_not_read_hold_nothing() -> None:
    for changes in (
        {"Transform": "TranslationTransform"}, {"AutomaticScalesEstimation": "true"}, SPLINE, {"Scales": [2.0, 1, 1]}
    ):  # fmt: skip
        request = understand(read_maps({"Transform": "EulerTransform", "Scales": [1, 1, 1e20], **changes}))
        assert not request.constraints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FullSearchSpace0": []}, "FullSearchSpace0 of map 0: FullSearch needs a name, the number"),
        ({"NumberOfResolutions": 2}, "FullSearchSpace1 of map 0: FullSearch needs"),
        ({"FullSearchSpace0": ["x", 1, 5.0, 3.0, 0.7]}, "goes up from its first value to its last"),
        ({"FullSearchSpace0": ["x", 1, "a", 3.0, 0.7]}, "are a name and four numbers"),
        ({"FullSearchSpace0": ["x", 1, 0, 1e9, 0.7]}, "more than 100000 positions"),
        ({"Transform": "BSplineTransform"}, "FullSearch tries parameters of linear maps alone"),
        ({"FullSearchSpace0": ["x", 3, 0, 1, 0.5]}, "EulerTransform has the parameters 0 to 2 in 2D, got 3"),
        ({"AutomaticTransformInitialization": "true", "AutomaticTransformInitializationMethod": "GeometryTop"},
         "'GeometryTop' cannot be had where"),
        ({"Optimizer": "Powell", "Scales": [1, 1e20]}, "Scales: EulerTransform has 3 parameters in 2D, got 2"),
        ({"Optimizer": "Powell", "Scales": [1, 1, 1e20], "CenterOfRotation": [1, 2, 3]}, "has 2 numbers in 2D, got 3"),
        ({"Optimizer": "Powell", "Transform": "SimilarityTransform", "Scales": [1e20]}, "give 4, one a parameter"),
    ],
)  # fmt: skip
def test_searches_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    fixed, moving = shifted((4.0, 0.0))
    with pytest.raises(OptionError, match=message):
        registration_method(fixed, moving, {**SEARCH, **changes}, **QUICK)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["TranslationTransform", "EulerTransform", "SimilarityTransform", "AffineTransform"])
def test_matrices_are_those_of_the_classes(kind: str, d: int) -> None:
    import torch

    values = np.array(identity_parameters(kind, d))
    values += 0.1 * np.random.default_rng(0).normal(size=len(values))
    transform = linear_class(kind, d)
    transform.SetParameters(values.tolist())
    ends = np.array([transform.TransformPoint(row.tolist()) for row in (np.zeros(d), *np.eye(d))])
    matrix = matrix_of(kind, d, torch.tensor(values)).numpy()
    np.testing.assert_allclose((ends[1:] - ends[0]).T, matrix, atol=1e-12)
    np.testing.assert_allclose(ends[0], values[translation_of(kind, d)], atol=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_the_matrix_of_affine_dti_is_that_of_elastix(d: int, tmp_path: Path) -> None:
    import torch

    values = np.array(identity_parameters("AffineDTITransform", d))
    values += 0.2 * np.random.default_rng(0).normal(size=len(values))
    image = itk.image_from_array(np.zeros((4,) * d, np.float32))
    po = itk.ParameterObject.New()
    po.AddParameterMap({
        "Transform": ["AffineDTITransform"], "NumberOfParameters": [str(len(values))],
        "TransformParameters": [repr(float(v)) for v in values], "CenterOfRotationPoint": ["0"] * d,
        "Size": ["4"] * d, "Index": ["0"] * d, "Spacing": ["1"] * d, "Origin": ["0"] * d,
        "Direction": [f"{v:g}" for v in np.eye(d).ravel()], "HowToCombineTransforms": ["Compose"],
    })  # fmt: skip
    field = itk.array_from_image(itk.transformix_deformation_field(image, po, output_directory=str(tmp_path)))
    ends = [field[tuple(3 if a == axis else 0 for a in reversed(range(d)))] for axis in range(d)]
    start = field[(0,) * d]
    found = np.stack([(end - start) / 3 for end in ends], axis=1) + np.eye(d)
    np.testing.assert_allclose(found, matrix_of("AffineDTITransform", d, torch.tensor(values)).numpy(), atol=1e-5)
    assert understand(read_maps({"Transform": "AffineDTITransform"})).kinds == ("AffineTransform",)


# Masks are binary, and a structure alone is little to judge a map by.
@pytest.mark.filterwarnings("ignore:.*(is binary|check the result)")
def test_a_structure_is_brought_together_and_counts_beside_other_images() -> None:
    grids = PHANTOM.geometry, PHANTOM.moving_geometry
    masks = [(labels > 3).astype(np.float32) for labels in (PHANTOM.fixed_labels, PHANTOM.moving_labels)]
    images = [to_itk(2 * mask, grid) for mask, grid in zip(masks, grids, strict=True)]
    kappa = {"Transform": "BSplineTransform", "Metric": ["AdvancedKappaStatistic"], "ForegroundValue": 2}

    def dice(po: Any) -> float:
        seen = resample_array(masks[1].astype(np.uint8), grids[1], read_elastix(po, grids[0]), grids[0], "nearest")
        return float(2 * (seen * masks[0]).sum() / (seen.sum() + masks[0].sum()))

    _, po = registration_method(*images, kappa, **QUICK)
    assert dice(po) > 0.95
    with pytest.raises(InputError, match="no voxel of the value 1, which AdvancedKappaStatistic compares"):
        registration_method(*images, {**kappa, "ForegroundValue": 1}, **QUICK)
    pairs = [[to_itk(a, g), i] for a, g, i in zip((PHANTOM.fixed, PHANTOM.moving), grids, images, strict=True)]
    several = {**kappa, "Metric": ["AdvancedNormalizedCorrelation", "AdvancedKappaStatistic"], "Metric1Weight": 0.5}
    request = understand(read_maps(several))
    assert request.metric == "ncc"
    assert request.overlap is not None
    assert (request.overlap.image, request.overlap.foreground, request.overlap.weight) == (1, 2.0, 0.5)
    image, po = registration_method(*pairs, several, iterations=4, **QUICK)
    assert dice(po) > 0.9
    correlation = np.corrcoef(itk.array_from_image(image).ravel(), PHANTOM.fixed.ravel())[0, 1]
    assert correlation > 0.9  # the first image came back
    names = ["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty", "AdvancedKappaStatistic"]
    with pytest.raises(OptionError, match="is metric 2, but there are 2 pairs"):
        registration_method(*pairs, {**several, "Metric": names}, **QUICK)
    with pytest.raises(OptionError, match="fixed_labels beside the metric AdvancedKappaStatistic"):
        registration_method(*images, kappa, fixed_labels=images[0], **QUICK)


def test_what_stands_in_for_a_metric_is_said() -> None:
    for name, metric in (("KNNGraphAlphaMutualInformation", "nmi"), ("SumSquaredTissueVolumeDifference", "lncc")):
        words = {"Registration": "MultiResolutionRegistrationWithFeatures", "KNearestNeighbours": 20, "Alpha": 0.99}
        request = understand(read_maps({**SPLINE, **words, "Metric": name}))
        assert request.metric == metric
        assert f"elastix metric {name} is approximated by {STANDING_IN[name]}" in remarks(request)


@pytest.mark.parametrize("kind", ["BSplineTransform", "BSplineStackTransform"])
def test_the_inverse_needs_no_class_of_its_own(kind: str) -> None:
    """Of a periodic spline and of a stack of them: what is asked for beside the inverse has no meaning for it."""
    words = {"Transform": kind, "Metric": "DisplacementMagnitudePenalty", "MovingImageDerivativeScales": [1, 0]}
    request = understand(read_maps({**words, "UseCyclicTransform": "true"}))
    assert request.inverse
    assert request.kinds == ("BSplineTransform",)
    with pytest.raises(OptionError, match="hold an axis still"):
        understand(read_maps({**words, "Transform": "BSplineTransform", "Metric": "AdvancedMeanSquares"}))
    if kind == "BSplineStackTransform":
        with pytest.raises(OptionError, match="BSplineStackTransform' cannot be had"):
            understand(read_maps({"Transform": kind, "Metric": "AdvancedMeanSquares"}))


def test_the_inverse_of_a_stack_of_splines() -> None:
    """Two slices that elastix' own class moves by their own amounts."""
    size, d = (24, 20, 2), 3
    sub = np.zeros((2, 2, 49))
    sub[0, 0], sub[1, 1] = 1.5, -2.0  # x of the first slice, y of the second
    po = itk.ParameterObject.New()
    po.AddParameterMap({
        "Transform": ["BSplineStackTransform"], "NumberOfParameters": [str(sub.size)], "NumberOfSubTransforms": ["2"],
        "TransformParameters": [f"{v:g}" for v in sub.ravel()], "StackOrigin": ["0"], "StackSpacing": ["1"],
        "GridSize": ["7", "7"], "GridIndex": ["0", "0"], "GridSpacing": ["8", "8"], "GridOrigin": ["-12", "-12"],
        "GridDirection": ["1", "0", "0", "1"], "BSplineTransformSplineOrder": ["3"], "UseCyclicTransform": ["false"],
        "Size": [str(n) for n in size], "Index": ["0"] * d, "Spacing": ["1"] * d, "Origin": ["0"] * d,
        "Direction": [f"{v:g}" for v in np.eye(d).ravel()], "HowToCombineTransforms": ["Compose"],
        "UseDirectionCosines": ["true"], "InitialTransformParameterFileName": ["NoInitialTransform"],
    })  # fmt: skip
    image = itk.image_from_array(np.zeros(size[::-1], np.float32))
    words = {"Transform": "BSplineStackTransform", "Metric": "DisplacementMagnitudePenalty"}
    _, found = registration_method(image, image, words, initial_transform_parameter_object=po, number_of_threads=1)
    own = found.GetParameterMap(1)
    back = read_elastix([{key: list(own[key]) for key in own.keys()}])  # noqa: SIM118
    inner = Geometry.make(size, (1.0,) * d).grid()[:, 4:-4, 4:-4]
    moved = back.map(inner.reshape(-1, d)).reshape(inner.shape) - inner
    np.testing.assert_allclose(moved[0], np.broadcast_to([-1.5, 0, 0], moved[0].shape), atol=1e-3)
    np.testing.assert_allclose(moved[1], np.broadcast_to([0, 2.0, 0], moved[1].shape), atol=1e-3)


def test_points_may_be_the_container_of_a_point_set() -> None:
    points = itk.PointSet[itk.UC, 2].New()
    for row in ((1.0, 2.0), (3.0, 4.0)):
        points.GetPoints().CastToSTLContainer().push_back(row)
    np.testing.assert_array_equal(read_points(points.GetPoints(), PHANTOM.geometry, "points"), [[1, 2], [3, 4]])


@pytest.mark.parametrize("wrong", [[["1", "2"]], [[1j, 2]], [[10**400, 0]], [[1, 2], [3]]])
def test_points_that_are_no_real_numbers(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"points: is a file, an itk.PointSet or .N, 2. numbers"):
        read_points(wrong, PHANTOM.geometry, "points")

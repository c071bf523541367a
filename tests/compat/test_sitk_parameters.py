"""The SimpleITK interface: parameters while it runs, held ones, exhaustive search, the class in SimpleITK's place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.compat.sitk import ImageRegistrationMethod
from itk_nir.compat.sitk.exhaustive import Grid
from itk_nir.compat.sitk.splines import spline_parameters
from itk_nir.compat.sitk.weights import stage_for
from itk_nir.errors import ItkNirError, OptionError
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings
from tests.grids import centred, turned

QUICK: dict[str, Any] = {"preset": "fast", "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def flat() -> Phantom:
    return brain_phantom(2, (56, 64))


def pair(phantom: Phantom) -> tuple[Any, Any]:
    return to_sitk(phantom.fixed, phantom.geometry), to_sitk(phantom.moving, phantom.moving_geometry)


def moved(phantom: Phantom, tx: Any) -> tuple[Any, Any]:
    """The fixed image, and what it looks like after ``tx`` (fixed → moving)."""
    fixed = to_sitk(phantom.fixed, phantom.geometry)
    return fixed, sitk.Resample(fixed, fixed, tx.GetInverse(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


def rigid_start(fixed: Any, kind: type) -> Any:
    mode = sitk.CenteredTransformInitializerFilter.GEOMETRY
    return sitk.CenteredTransformInitializer(fixed, fixed, kind(), mode)


def positions_of(method: ImageRegistrationMethod, start: Any, mover: Any = None) -> list[tuple[float, ...]]:
    """What SimpleITK's notebooks do in their callback: the transform of each step from its position."""
    seen: list[tuple[float, ...]] = []

    def observe() -> None:
        now = sitk.CompositeTransform(method.GetInitialTransform())
        now.SetParameters(method.GetOptimizerPosition())
        now.AddTransform(method.GetMovingInitialTransform())
        now.AddTransform(method.GetFixedInitialTransform().GetInverse())
        seen.append(tuple(method.GetOptimizerPosition()))

    method.SetInitialTransform(start, inPlace=False)
    if mover is not None:
        method.SetMovingInitialTransform(mover)
    method.AddCommand(sitk.sitkIterationEvent, observe)
    return seen


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mover"),
    [
        (sitk.TranslationTransform, False),
        (sitk.Euler2DTransform, True),
        (sitk.Similarity2DTransform, False),
    ],
)
def test_positions_of_a_linear_run_lead_to_the_returned_parameters(flat: Phantom, kind: type, mover: bool) -> None:
    grid = flat.geometry
    truth = sitk.Similarity2DTransform()
    truth.SetCenter(grid.centre.tolist())
    truth.SetTranslation((4.0, -3.0))
    if kind is not sitk.TranslationTransform:
        truth.SetAngle(0.1)
    if kind is sitk.Similarity2DTransform:
        truth.SetScale(1.05)
    fixed, moving = moved(flat, truth)
    before = sitk.TranslationTransform(2, (1.0, 2.0)) if mover else None
    start = kind(2) if kind is sitk.TranslationTransform else rigid_start(fixed, kind)
    R = ImageRegistrationMethod(**QUICK)
    R.SetMetricAsMattesMutualInformation()
    begin = start.GetParameters()
    seen = positions_of(R, start, before)
    R.Execute(fixed, moving)
    end = np.array(R.GetOptimizerPosition())
    assert len(seen[0]) == len(end) == start.GetNumberOfParameters()
    # The first evaluation is at the start; one of the last ones is what came out.
    assert np.allclose(seen[0], begin, atol=1e-5)
    assert min(np.abs(np.array(p) - end).max() for p in seen) < 1e-4
    assert np.abs(end - begin).max() > 1
    whole = sitk.CompositeTransform([*([before] if mover else []), kind(start)])
    whole.SetParameters(tuple(end))
    points = grid.index_to_physical(np.random.default_rng(0).uniform(10, 46, (20, 2)))
    error = [np.subtract(whole.TransformPoint(p), truth.TransformPoint(p)) for p in points.tolist()]
    assert np.linalg.norm(error, axis=1).mean() < 0.5


@pytest.mark.parametrize("spline", [False, True])
def test_positions_of_a_deformation_are_parameters_of_the_given_transform(flat: Phantom, spline: bool) -> None:
    """At the last iteration about those that come out, before at the start."""
    fixed, moving = pair(flat)
    if spline:
        start = sitk.BSplineTransformInitializer(fixed, [10, 10])
    else:
        field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)
        field.CopyInformation(fixed)
        start = sitk.DisplacementFieldTransform(field)
    R = ImageRegistrationMethod(**QUICK, iterations=(14, 6, 3))
    R.SetMetricAsANTSNeighborhoodCorrelation(3)
    begin = start.GetParameters()
    seen = positions_of(R, start)
    begun = []
    R.AddCommand(sitk.sitkStartEvent, lambda: begun.append(R.GetOptimizerPosition()))
    R.Execute(fixed, moving)
    assert begun == [begin]
    now = type(start)(start)
    points = flat.geometry.grid()[flat.fixed_labels > 0][::7]
    end = R.result.mapping.map(points)
    errors = []
    for position in (begin, seen[0], seen[-1]):
        now.SetParameters(position)
        errors.append(np.linalg.norm([now.TransformPoint(p) for p in points.tolist()] - end, axis=1).mean())
    assert errors[2] < 0.2 * errors[0]
    assert abs(errors[1] - errors[0]) < 0.05 * errors[0]


@pytest.mark.parametrize(("order", "dimension"), [(1, 3), (2, 2), (3, 2), (3, 3)])
def test_the_spline_of_a_splines_displacement_is_itself(order: int, dimension: int) -> None:
    grid = centred((7, 10, 6)[:dimension], (1.0, 2.0, 1.5)[:dimension], turned(dimension, 0.4))
    domain = to_sitk(np.zeros(grid.shape, np.float32), grid)
    spline = sitk.BSplineTransformInitializer(domain, [3, 4, 2][:dimension], order)
    known = np.random.default_rng(order).normal(size=len(spline.GetParameters()))
    spline.SetParameters(known)

    def displacement(points: Any) -> Any:
        flat = points.reshape(-1, dimension)
        return np.reshape([np.subtract(spline.TransformPoint(p), p) for p in flat.tolist()], points.shape)

    found = spline_parameters(spline, displacement)
    np.testing.assert_allclose(found, known, atol=1e-8)


@pytest.mark.parametrize("within", [False, True])
def test_a_spline_in_place_becomes_what_was_found(flat: Phantom, within: bool) -> None:
    """As scripts expect that use the transform that they gave in place, and not what `Execute` returned."""
    fixed, moving = pair(flat)
    shift = sitk.TranslationTransform(2, (2.0, -1.0))
    spline = sitk.BSplineTransformInitializer(fixed, [4, 4])
    given = sitk.CompositeTransform([shift, spline]) if within else spline
    R = ImageRegistrationMethod(**QUICK, iterations=(30, 12, 4))
    R.SetMetricAsANTSNeighborhoodCorrelation(3)
    R.SetInitialTransformAsBSpline(given, inPlace=True, scaleFactors=[1, 3])
    R.Execute(fixed, moving)
    last = sitk.BSplineTransform(given.GetNthTransform(1).Downcast() if within else spline)
    assert tuple(last.GetTransformDomainMeshSize()) == (12, 12)
    brain = flat.fixed_labels > 0
    points, truth = flat.geometry.grid()[brain][::7], flat.displacement[brain][::7]
    moved_points = np.array([given.TransformPoint(p) for p in points.tolist()])
    before = np.linalg.norm(truth, axis=1).mean()
    assert np.linalg.norm(moved_points - R.result.mapping.map(points), axis=1).mean() < 0.1 * before
    assert np.linalg.norm(moved_points - points - truth, axis=1).mean() < 0.5 * before


def test_a_spline_that_cannot_hold_the_result_is_warned_of(flat: Phantom, recwarn: pytest.WarningsRecorder) -> None:
    """The domain of a new B-spline is a cube of 1 mm at the origin, whatever the image."""
    fixed, moving = pair(flat)
    R = ImageRegistrationMethod(**QUICK, iterations=1)
    new = sitk.BSplineTransform(2, 3)
    R.SetInitialTransform(new)
    with pytest.warns(UserWarning, match="the domain of the BSplineTransform covers 0% of the fixed image"):
        R.Execute(fixed, moving)
    recwarn.clear()
    R.SetInitialTransform(sitk.BSplineTransform(2, 3), inPlace=False)  # which stays as it was
    R.Execute(fixed, moving)
    for shown in (fixed, sitk.Shrink(fixed, [4, 4])):
        R.SetInitialTransform(sitk.BSplineTransformInitializer(shown, [4, 4]))
        R.Execute(fixed, moving)
    assert not [str(w.message) for w in recwarn if "domain" in str(w.message)]


def test_the_virtual_domain_is_the_fixed_grid(flat: Phantom) -> None:
    fixed, moving = pair(flat)
    R = ImageRegistrationMethod(**QUICK)
    R.SetMetricAsCorrelation()
    R.SetVirtualDomain(fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection())
    value = R.MetricEvaluate(fixed, moving)
    R.SetVirtualDomainFromImage(fixed)
    assert R.MetricEvaluate(fixed, moving) == value
    R.SetVirtualDomainFromImage(fixed[:-1, :])
    for use in (R.MetricEvaluate, R.Execute):
        with pytest.raises(OptionError, match="SetVirtualDomain with another grid than the fixed image's is refused"):
            use(fixed, moving)


def test_scales_are_as_many_as_parameters_that_move_a_point(flat: Phantom) -> None:
    """As SimpleITK has them: what a callback prints, or divides a position by."""
    fixed, _ = pair(flat)
    R = ImageRegistrationMethod(**QUICK, linear_iterations=2, iterations=1)
    assert R.GetOptimizerScales() == ()
    spline = sitk.BSplineTransformInitializer(fixed, [4, 4])
    for start, count in ((sitk.Euler2DTransform(), 3), (sitk.AffineTransform(2), 6), (spline, 2)):
        R.SetInitialTransform(start, inPlace=False)
        seen: set[tuple[float, ...]] = set()
        R.RemoveAllCommands()
        R.AddCommand(sitk.sitkIterationEvent, lambda seen=seen: seen.add(R.GetOptimizerScales()))  # type: ignore[misc]
        R.Execute(fixed, fixed)
        assert seen == {(1.0,) * count}


def test_what_changes_nothing_is_taken() -> None:
    R = ImageRegistrationMethod()
    R.MetricUseFixedImageGradientFilterOn()
    R.SetMetricUseMovingImageGradientFilter(True)
    assert R.GetNumberOfWorkUnits() == 0
    R.SetNumberOfWorkUnits(4)
    assert R.GetNumberOfWorkUnits() == 4


def test_what_nothing_was_set_for_is_the_identity(flat: Phantom) -> None:
    R = ImageRegistrationMethod(**QUICK, iterations=1)
    for get in (R.GetInitialTransform, R.GetMovingInitialTransform, R.GetFixedInitialTransform):
        assert sitk.CompositeTransform(get()).IsLinear()
        assert get().TransformPoint((3.0, 4.0, 5.0)) == (3.0, 4.0, 5.0)
    R.SetMovingInitialTransform(sitk.TranslationTransform(2))
    assert R.GetInitialTransform().GetDimension() == 2
    R.AddCommand(sitk.sitkIterationEvent, R.GetOptimizerPosition)
    with pytest.raises(OptionError, match="refused without an initial transform while it runs"):
        R.Execute(*pair(flat))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "linear", "weights", "stage"),
    [
        ("Euler2DTransform", "rigid", (), ("rigid", {})),
        ("Euler2DTransform", "rigid", (1, 1, 1), ("rigid", {})),
        ("Euler2DTransform", "rigid", (0, 1, 1), ("translation", {})),
        ("Euler2DTransform", "rigid", (0, 0, 1), ("translation", {"restrict": (0, 1)})),
        ("Similarity2DTransform", "similarity", (0, 1, 1, 1), ("rigid", {})),
        ("AffineTransform", "affine", (0, 0, 0, 0, 1, 1), ("translation", {})),
        ("Euler3DTransform", "rigid", (0, 0, 1, 1, 1, 1), ("rigid", {"linear_rotations": (0, 0, 1)})),
        ("Euler3DTransform", "rigid", (0, 0, 1, 1, 1, 0), ("rigid", {"restrict": (1, 1, 0)})),
        ("VersorRigid3DTransform", "rigid", (0, 0, 0, 0, 1, 1), ("translation", {"restrict": (0, 1, 1)})),
        ("Similarity3DTransform", "similarity", (1, 1, 1, 1, 1, 1, 0), ("rigid", {})),
    ],
)
def test_weights_choose_what_moves(kind: str, linear: Any, weights: Any, stage: Any) -> None:
    d = 2 if "2D" in kind or (len(weights) == 6 and kind == "AffineTransform") else 3
    grid = centred((20, 22, 24)[:d], (1.0, 1.2, 1.4)[:d], np.eye(d))
    assert stage_for(kind, linear, weights, np.eye(d + 1), grid) == stage
    if d == 3:  # axes of the grid in another order than those of space
        permuted = centred((20, 22, 24), (1.0, 1.2, 1.4), np.eye(3)[[2, 0, 1]])
        options = stage_for(kind, linear, weights, np.eye(4), permuted)[1]
        along = {name: tuple(value[k] for k in (1, 2, 0)) for name, value in stage[1].items()}
        assert options == along


@pytest.mark.parametrize(
    ("kind", "weights", "message"),
    [
        ("Euler3DTransform", (0, 0, 1, 1, 1), "has 6 parameters, got 5 weights"),
        ("Euler3DTransform", (1,) * 3, "has 6 parameters, got 3 weights"),
        ("Euler3DTransform", (0,) * 6, "is refused: a weight is 1"),
        ("Euler3DTransform", (0, 1, 1, 1, 1, 1), "rotations are about one axis or all"),
        ("Euler3DTransform", (1, 1, 1, 0, 1, 1), "a rotation goes with all translations"),
        ("Euler3DTransform", (0, 0, 1, 0, 1, 1), "goes with the translations across it"),
        ("AffineTransform", (1,) * 9 + (0, 1, 1), "scale and matrix are optimised with all"),
        ("BSplineTransform", (0, 1), "the parameters of a BSplineTransform are all optimised"),
    ],
)
def test_weights_that_cannot_be_had_are_named(kind: str, weights: Any, message: str) -> None:
    grid = centred((20, 22, 24), (1.0, 1.2, 1.4), np.eye(3))
    with pytest.raises(OptionError, match=message):
        stage_for(kind, "rigid", weights, np.eye(4), grid)


def test_a_turned_grid_and_a_turned_start_hold_no_axis() -> None:
    grid = centred((20, 22, 24), (1.0, 1.2, 1.4), turned(3, 0.3))
    with pytest.raises(OptionError, match="the axes of the fixed image are turned"):
        stage_for("Euler3DTransform", "rigid", (0, 0, 1, 1, 1, 1), np.eye(4), grid)
    start = np.eye(4)
    start[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(OptionError, match="the start turns about no other"):
        stage_for("Euler3DTransform", "rigid", (0, 0, 1, 1, 1, 1), start, grid)


def test_axes_of_rotations_are_three() -> None:
    for wrong in ((1, 0), (0, 0, 0.5), (1, 1, 1, 1)):
        with pytest.raises(OptionError, match="linear_rotations"):
            make_settings("default", linear_rotations=wrong)


def test_held_rotations_stay_at_zero() -> None:
    phantom = brain_phantom(3, (32, 36, 30))
    truth = sitk.Euler3DTransform()
    truth.SetCenter(phantom.geometry.centre.tolist())
    truth.SetParameters((0, 0, 0.3, 14.0, -11.0, 7.0))
    fixed, moving = moved(phantom, truth)
    start = rigid_start(fixed, sitk.Euler3DTransform)
    R = ImageRegistrationMethod(**QUICK)
    R.SetMetricAsMattesMutualInformation()
    R.SetInitialTransform(start)
    R.SetOptimizerWeights([0, 0, 1, 1, 1, 1])
    assert R.GetOptimizerWeights() == (0, 0, 1, 1, 1, 1)
    R.Execute(fixed, moving)
    found = np.array(start.GetParameters())
    assert np.abs(found[:2]).max() < 1e-9
    assert abs(found[2] - 0.3) < 0.02
    assert np.abs(found[3:] - (14.0, -11.0, 7.0)).max() < 1


# --- exhaustive search -----------------------------------------------------------------------------------------------


def test_positions_of_a_grid_are_in_the_order_of_simpleitk(flat: Phantom) -> None:
    """Both visit the same positions one after the other."""
    fixed, moving = pair(flat)
    seen: list[list[tuple[float, ...]]] = []
    for method in (sitk.ImageRegistrationMethod(), ImageRegistrationMethod(**QUICK)):
        told: list[tuple[float, ...]] = []
        method.SetMetricAsCorrelation()
        method.SetOptimizerAsExhaustive([1, 0, 2], 0.5)
        method.SetOptimizerScales([0.2, 1.0, 4.0])
        method.SetInitialTransform(rigid_start(fixed, sitk.Euler2DTransform))
        method.AddCommand(sitk.sitkIterationEvent, lambda m=method, t=told: t.append(tuple(m.GetOptimizerPosition())))
        method.Execute(fixed, moving)
        seen.append(told)
    assert len(seen[1]) == Grid.of([1, 0, 2], 0.5).count == 15
    # SimpleITK tells a position when it has gone on to the next one.
    assert np.allclose(seen[0][: len(seen[1]) - 1], seen[1][1:]) or np.allclose(seen[0], seen[1])
    assert method.GetOptimizerScales() == (0.2, 1.0, 4.0)


def test_an_exhaustive_search_finds_the_best_node_and_ends_when_asked(flat: Phantom) -> None:
    truth = sitk.Euler2DTransform()
    truth.SetCenter(flat.geometry.centre.tolist())
    truth.SetParameters((0.4, 6.0, 0.0))
    fixed, moving = moved(flat, truth)
    start = rigid_start(fixed, sitk.Euler2DTransform)
    R = ImageRegistrationMethod(**QUICK)
    R.SetMetricAsCorrelation()
    R.SetOptimizerAsExhaustive([2, 1, 1])
    R.SetOptimizerScales([0.2, 6.0, 6.0])
    R.SetInitialTransform(start)
    values: list[float] = []
    R.AddCommand(sitk.sitkIterationEvent, lambda: values.append(R.GetMetricValue()))
    out = R.Execute(fixed, moving)
    assert np.allclose(start.GetParameters(), (0.4, 6.0, 0.0))
    assert out is start
    assert (len(values), R.GetMetricValue()) == (45, min(values))
    assert R.GetOptimizerPosition() == start.GetParameters()
    assert "45 of 45" in R.GetOptimizerStopConditionDescription()
    assert R.MetricEvaluate(fixed, moving) == pytest.approx(min(values))
    with pytest.raises(ItkNirError, match="no result beside the transform"):
        _ = R.result
    R.AddCommand(sitk.sitkIterationEvent, R.StopRegistration)
    R.Execute(fixed, moving)
    assert "1 of 45" in R.GetOptimizerStopConditionDescription()
    R.SetInitialTransform(sitk.BSplineTransformInitializer(fixed, [4, 4]))
    with pytest.raises(OptionError, match="is for linear transforms"):
        R.Execute(fixed, moving)
    R.SetInitialTransform(sitk.TranslationTransform(2))
    with pytest.raises(OptionError, match="the transform has 2 parameters, got 3 values"):
        R.Execute(fixed, moving)
    R.SetOptimizerAsPowell(numberOfIterations=7)  # the last optimiser counts
    assert (R._setup.exhaustive, R._setup.iterations) == (None, 7)


# --- transforms in transforms ----------------------------------------------------------------------------------------


def built(transform: Any) -> str:
    """A transform and what is in it, by class: as a user sees it, without a `Downcast` of the whole."""
    name = type(transform).__name__
    if name != "CompositeTransform":
        return name
    return f"({', '.join(built(transform.GetNthTransform(i)) for i in range(transform.GetNumberOfTransforms()))})"


def composed(*parts: Any) -> Any:
    return sitk.CompositeTransform([*parts])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda turn: turn,
        lambda turn: sitk.Transform(turn),
        lambda turn: composed(turn),
        lambda turn: composed(sitk.TranslationTransform(2, (1.0, 2.0)), turn),
        lambda turn: sitk.Transform(composed(sitk.TranslationTransform(2, (1.0, 2.0)), turn)),
        lambda turn: composed(sitk.AffineTransform(2), composed(sitk.TranslationTransform(2, (1.0, 2.0)), turn)),
    ],
)
def test_what_is_returned_is_built_as_simpleitks(flat: Phantom, make: Any, in_place: bool) -> None:
    """So are the parameters that were given: the same as before, or, in place, those that were found."""
    fixed, moving = pair(flat)
    seen = []
    for R in (sitk.ImageRegistrationMethod(), ImageRegistrationMethod(**QUICK, linear_iterations=3)):
        given = make(rigid_start(fixed, sitk.Euler2DTransform))
        before = given.GetParameters()
        R.SetMetricAsMeanSquares()
        R.SetInterpolator(sitk.sitkLinear)
        R.SetOptimizerAsGradientDescent(1e-3, 2)
        R.SetInitialTransform(given, in_place)
        out = R.Execute(fixed, moving)
        seen.append((built(out), built(given), out.GetNumberOfParameters()))
        assert given.GetParameters() == (out.GetParameters() if in_place else before) != ()
    assert seen[0] == seen[1]
    assert out.GetParameters() != before
    np.testing.assert_allclose(out.TransformPoint((9.0, -5.0)), R.result.mapping.map([(9.0, -5.0)])[0], atol=1e-6)


@pytest.mark.parametrize(
    "given", [sitk.Transform(2, sitk.sitkIdentity), composed(sitk.TranslationTransform(2), sitk.Transform(2, 0))]
)
def test_the_identity_asks_for_affine_and_deformable(flat: Phantom, given: Any) -> None:
    fixed, moving = pair(flat)
    R = ImageRegistrationMethod(**QUICK, iterations=1)
    R.SetInitialTransform(given)
    out = R.Execute(fixed, moving)
    assert R.result.displacement is not None
    np.testing.assert_allclose(out.TransformPoint((9.0, -5.0)), R.result.mapping.map([(9.0, -5.0)])[0], atol=0.01)


# --- the class in SimpleITK's place ----------------------------------------------------------------------------------


def test_refusals_show_when_the_class_is_patched_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitk, "ImageRegistrationMethod", ImageRegistrationMethod)
    R = sitk.ImageRegistrationMethod()
    with pytest.raises(OptionError, match="GetMetricNumberOfValidPoints is refused: the engine does not report it"):
        R.GetMetricNumberOfValidPoints()
    with pytest.raises(AttributeError, match="no method 'SetVirtualDomian', did you mean 'SetVirtualDomain'"):
        R.SetVirtualDomian()


def test_another_interpolator_and_scale_factors_are_taken() -> None:
    R = ImageRegistrationMethod()
    assert R.GetInterpolator() == sitk.sitkLinear
    with pytest.warns(UserWarning, match="the metric interpolates linearly here") as warned:
        R.SetInterpolator(sitk.sitkNearestNeighbor)
    assert [w.filename for w in warned] == [__file__]
    assert R.GetInterpolator() == sitk.sitkNearestNeighbor
    spline = sitk.BSplineTransform(2)
    R.SetInitialTransformAsBSpline(spline, inPlace=True, scaleFactors=[1, 2, 5])
    assert R.GetInitialTransform() is spline

"""The SimpleITK interface: flows written for SimpleITK's class with one line changed, its protocol, what it returns."""

from __future__ import annotations

import gc
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.compat.options import OptionSupport, approximated, honoured, refused
from itk_nir.compat.sitk import OPTIONS, ImageRegistrationMethod
from itk_nir.compat.sitk.options import OPTIMISERS, register_options
from itk_nir.engine import ops
from itk_nir.engine.metrics import MutualInformation
from itk_nir.errors import InputError, ItkNirError, OptionError, RegistrationCancelled
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, to_sitk
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings, options_of
from tests.docs_blocks import DOCS, run_blocks
from tests.grids import centred, turned

BOTH = pytest.mark.parametrize("d", [2, 3])
#: Few iterations, and stiff: enough to be well on the way on images this small.
QUICK: dict[str, Any] = {
    "preset": "fast", "learning_rates": 0.4, "velocity_smoothness": 0.1, "radius": 3, "linear_start_iterations": 8,
    "threads": 1, "device": "cpu",
}  # fmt: skip
SHORT: dict[str, Any] = {
    **QUICK, "shrink_factors": (2, 1), "smoothing_sigmas": (0.5, 0.5), "iterations": (25, 8),
    "learning_rates": (0.4, 0.2), "grid_spacing": (2.0, 2.0), "coarsest_grid_spacing": 8.0, "linear_size": (28,),
    "linear_iterations": (40,),
}  # fmt: skip


def known(d: int) -> Any:
    """A rotation and a shift by unlike amounts along the axes, fixed → moving."""
    tx = sitk.Euler2DTransform() if d == 2 else sitk.Euler3DTransform()
    tx.SetCenter((4.0, -9.0, 6.0)[:d])
    if d == 2:
        tx.SetAngle(0.12)
    else:
        tx.SetRotation(0.04, -0.07, 0.12)
    tx.SetTranslation((7.0, -4.0, 2.5)[:d])
    return tx


def pair(phantom: Phantom) -> tuple[Any, Any]:
    return to_sitk(phantom.fixed, phantom.geometry), to_sitk(phantom.moving, phantom.moving_geometry)


def moved_pair(phantom: Phantom, tx: Any) -> tuple[Any, Any]:
    """The fixed image, and what it looks like after ``tx`` (fixed → moving), on the moving grid."""
    fixed, grid = pair(phantom)
    return fixed, sitk.Resample(fixed, grid, tx.GetInverse(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


def inner(geometry: Geometry, number: int = 40) -> np.ndarray:
    """Points well inside a grid, ``(N, d)`` LPS mm."""
    size = np.asarray(geometry.size)
    index = np.random.default_rng(0).uniform(0.3, 0.7, (number, len(size))) * (size - 1)
    return geometry.index_to_physical(index)


def through(tx: Any, points: np.ndarray) -> np.ndarray:
    return np.array([tx.TransformPoint(p.tolist()) for p in points])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=1).mean())


def rigid(d: int) -> Any:
    return sitk.Euler2DTransform() if d == 2 else sitk.Euler3DTransform()


def zero_field(fixed: Any) -> Any:
    image = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64, fixed.GetDimension())
    image.CopyInformation(fixed)
    return sitk.DisplacementFieldTransform(image)


def quick(**options: Any) -> ImageRegistrationMethod:
    return ImageRegistrationMethod(**{**SHORT, **options})


# --- flows written for SimpleITK -------------------------------------------------------------------------------------

RIGID_NOTEBOOK = """
import SimpleITK as sitk
METHOD

initial_transform = sitk.CenteredTransformInitializer(
    fixed_image, moving_image, euler(), sitk.CenteredTransformInitializerFilter.GEOMETRY
)
registration_method = ImageRegistrationMethod()
registration_method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
registration_method.SetMetricSamplingStrategy(registration_method.RANDOM)
registration_method.SetMetricSamplingPercentage(0.5, 121)
registration_method.SetInterpolator(sitk.sitkLinear)
registration_method.SetOptimizerAsGradientDescent(
    learningRate=1.0, numberOfIterations=iterations, convergenceMinimumValue=1e-6, convergenceWindowSize=10
)
registration_method.SetOptimizerScalesFromPhysicalShift()
registration_method.SetShrinkFactorsPerLevel(shrinkFactors=[2, 1])
registration_method.SetSmoothingSigmasPerLevel(smoothingSigmas=[2, 0])
registration_method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
registration_method.SetInitialTransform(initial_transform, inPlace=False)

values, levels = [], []

def start_plot():
    values.append("start")

def plot_values(method):
    values.append(method.GetMetricValue())
    assert method.GetOptimizerIteration() >= 0 and method.GetOptimizerLearningRate() > 0

registration_method.AddCommand(sitk.sitkStartEvent, start_plot)
registration_method.AddCommand(sitk.sitkMultiResolutionIterationEvent, lambda: levels.append(len(values)))
registration_method.AddCommand(sitk.sitkIterationEvent, lambda: plot_values(registration_method))

final_transform = registration_method.Execute(
    sitk.Cast(fixed_image, sitk.sitkFloat32), sitk.Cast(moving_image, sitk.sitkFloat32)
)
description = registration_method.GetOptimizerStopConditionDescription()
final_value = registration_method.GetMetricValue()
moving_resampled = sitk.Resample(
    moving_image, fixed_image, final_transform, sitk.sitkLinear, 0.0, moving_image.GetPixelID()
)
"""


@BOTH
@pytest.mark.parametrize("ours", [False, True])
def test_a_rigid_notebook_runs_with_one_line_changed(oblique: dict[int, Phantom], d: int, ours: bool) -> None:
    truth = known(d)
    fixed, moving = moved_pair(oblique[d], truth)
    line = "from " + ("itk_nir.compat.sitk" if ours else "SimpleITK") + " import ImageRegistrationMethod"
    names: dict[str, Any] = {
        "fixed_image": fixed,
        "moving_image": moving,
        "euler": type(rigid(d)),
        "iterations": 60 if ours else 5,
    }
    exec(RIGID_NOTEBOOK.replace("METHOD", line), names)
    final = names["final_transform"]
    assert isinstance(final, sitk.CompositeTransform)
    assert final.GetNthTransform(0).GetName() == rigid(d).GetName()
    values = names["values"]
    assert values[0] == "start"
    assert values[-1] < values[1] < 0 or not ours
    assert len(names["levels"]) == 2
    assert names["levels"][0] == 1  # before the first iteration
    assert names["description"]
    assert names["final_value"] < 0
    points = inner(oblique[d].geometry)
    if not ours:  # theirs shows that the flow is right; how far it gets in so few samples is not the point
        return
    assert distance(through(final, points), through(truth, points)) < 0.1 * distance(points, through(truth, points))
    before = np.abs(sitk.GetArrayFromImage(fixed) - sitk.GetArrayFromImage(sitk.Resample(moving, fixed))).mean()
    after = np.abs(sitk.GetArrayFromImage(fixed) - sitk.GetArrayFromImage(names["moving_resampled"])).mean()
    assert after < 0.8 * before


DISPLACEMENT_SCRIPT = """
import sys
import SimpleITK as sitk
METHOD

R = ImageRegistrationMethod()

def command_iteration(method):
    if method.GetOptimizerIteration() == 0:
        log.append(f"Level: {method.GetCurrentLevel()} Scales: {len(method.GetOptimizerScales())}")
    log.append(f"#{method.GetOptimizerIteration()} {method.GetMetricValue():10.5f}")
    log.append(f"{method.GetOptimizerLearningRate():.4f}")
    if method.GetOptimizerConvergenceValue() != sys.float_info.max:
        converging.append(method.GetOptimizerConvergenceValue())

R.SetMetricAsCorrelation()
R.SetOptimizerAsGradientDescent(
    learningRate=1.0, numberOfIterations=iterations, convergenceMinimumValue=1e-5, convergenceWindowSize=5
)
R.SetOptimizerScalesFromPhysicalShift()
initial = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(fixed.GetDimension()))
R.SetShrinkFactorsPerLevel([2])
R.SetSmoothingSigmasPerLevel([1])
R.SetInitialTransform(initial)
R.SetInterpolator(sitk.sitkLinear)
affine = R.Execute(fixed, moving)

field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)
field.CopyInformation(fixed)
displacement = sitk.DisplacementFieldTransform(field)
del field
displacement.SetSmoothingGaussianOnUpdate(varianceForUpdateField=0.0, varianceForTotalField=1.5)
R.SetMovingInitialTransform(affine)
R.SetInitialTransform(displacement, inPlace=True)
R.SetMetricAsANTSNeighborhoodCorrelation(3)
R.MetricUseFixedImageGradientFilterOff()
R.SetShrinkFactorsPerLevel([2, 1])
R.SetSmoothingSigmasPerLevel([2, 1])
R.SetOptimizerScalesFromPhysicalShift()
R.SetOptimizerAsGradientDescent(learningRate=1, numberOfIterations=iterations, estimateLearningRate=R.EachIteration)
log, converging = [], []
R.AddCommand(sitk.sitkIterationEvent, lambda: command_iteration(R))
returned = R.Execute(fixed, moving)
both = sitk.CompositeTransform([affine, displacement])
resampled = sitk.Resample(moving, fixed, both, sitk.sitkLinear, 0.0)
"""


@BOTH
@pytest.mark.parametrize("ours", [False, True])
def test_a_displacement_field_script_runs_with_one_line_changed(
    oblique: dict[int, Phantom], d: int, ours: bool
) -> None:
    phantom = oblique[d]
    fixed, moving = pair(phantom)
    line = "from SimpleITK import ImageRegistrationMethod"
    names: dict[str, Any] = {"fixed": fixed, "moving": moving, "iterations": 15 if ours else 2}
    if ours:
        line = "from functools import partial\nImageRegistrationMethod = partial(method, **options)"
        names |= {"method": ImageRegistrationMethod, "options": QUICK}
    exec(DISPLACEMENT_SCRIPT.replace("METHOD", line), names)
    assert names["affine"].GetName() == "AffineTransform"
    assert isinstance(names["returned"], sitk.DisplacementFieldTransform)
    assert names["log"][0].startswith("Level: 0")
    assert sum(entry.startswith("Level") for entry in names["log"]) == 2
    assert names["converging"] or not ours
    image = sitk.GetArrayFromImage(fixed)
    start = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, names["affine"], sitk.sitkLinear, 0.0))
    end = sitk.GetArrayFromImage(names["resampled"])
    assert np.abs(image - end).mean() < (0.95 if ours else 1.01) * np.abs(image - start).mean()
    if ours:
        R = names["R"]
        # What is returned is the deformation alone; the whole map is that, then the affine start.
        points = inner(phantom.geometry)
        np.testing.assert_allclose(through(names["both"], points), R.result.mapping.map(points), atol=1e-3)
        np.testing.assert_array_equal(through(names["returned"], points), through(names["displacement"], points))
        whole = sitk.GetArrayFromImage(R.result.warped)
        assert np.abs(end - whole)[phantom.fixed_labels > 0].max() < 1e-4 * 200


# --- signs and axes, and what is returned ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "kind"),
    [(2, "rigid"), (2, "affine"), (2, "none"), (2, "base"), (3, "rigid"), (3, "versor"), (3, "affine"), (3, "none"),
     (3, "composite")],
)  # fmt: skip
def test_a_known_rotation_and_shift_come_out_with_the_right_sign(
    oblique: dict[int, Phantom], d: int, kind: str
) -> None:
    truth = known(d)
    fixed, moving = moved_pair(oblique[d], truth)
    points = inner(oblique[d].geometry)
    wanted = through(truth, points)
    centre = (-20.0, 11.0, 8.0)[:d]
    R = quick(linear_iterations=(60,))
    tx: Any = None
    if kind == "rigid":
        tx = rigid(d)
    elif kind == "versor":
        tx = sitk.VersorRigid3DTransform()
    elif kind == "affine":
        tx = sitk.AffineTransform(d)
    elif kind == "base":
        tx = sitk.Transform(rigid(d))
        assert type(tx) is sitk.Transform
    elif kind == "composite":
        tx = sitk.CompositeTransform([sitk.TranslationTransform(d, (2.0, -1.0, 1.0)[:d]), rigid(d)])
    if kind in ("rigid", "versor", "affine"):
        tx.SetCenter(centre)
    if tx is not None:
        R.SetInitialTransform(tx)
    out = R.Execute(fixed, moving)
    assert distance(through(out, points), wanted) < 0.15 * distance(points, wanted)
    if kind == "none":
        assert isinstance(out, sitk.CompositeTransform)
        assert out.GetNumberOfTransforms() == 2
    elif kind == "base":  # which SimpleITK does not return either; what was given is the result too
        assert type(out) is type(rigid(d))
        np.testing.assert_allclose(through(tx, points), through(out, points))
    else:
        assert out is tx
    if kind in ("rigid", "versor", "affine"):
        np.testing.assert_allclose(tx.GetCenter(), centre)
    if kind == "composite":
        assert tx.GetNumberOfTransforms() == 2
        np.testing.assert_allclose(tx.GetNthTransform(0).GetParameters(), (2.0, -1.0, 1.0)[:d])


@BOTH
def test_the_moving_initial_transform_comes_after_and_is_not_returned(oblique: dict[int, Phantom], d: int) -> None:
    """A fixed point meets the optimised transform first, as in ITK; both parts together make the whole."""
    truth = known(d)
    fixed, moving = moved_pair(oblique[d], truth)
    points = inner(oblique[d].geometry)
    wanted = through(truth, points)
    turn = sitk.AffineTransform(d)
    turn.SetMatrix(turned(d, 0.1).ravel().tolist())
    turn.SetTranslation((5.0, 3.0, -2.0)[:d])
    for model in (rigid(d), zero_field(fixed), None):
        R = quick()
        R.SetMovingInitialTransform(turn)
        if model is not None:
            R.SetInitialTransform(model)
        out = R.Execute(fixed, moving)
        whole = sitk.CompositeTransform([turn, out])
        np.testing.assert_allclose(through(whole, points), R.result.mapping.map(points), atol=2e-3)
        if not isinstance(model, sitk.DisplacementFieldTransform):
            assert distance(through(whole, points), wanted) < 0.15 * distance(points, wanted)


def test_a_displacement_field_to_start_from_is_part_of_the_result(oblique: dict[int, Phantom]) -> None:
    """On a grid of its own, with a moving initial field too: in place, the grid stays, and its inverse is not faked."""
    truth = known(2)
    fixed, moving = moved_pair(oblique[2], truth)
    points = inner(oblique[2].geometry)
    wanted = through(truth, points)
    reference = sitk.Resample(fixed, [36, 31], sitk.Transform(), sitk.sitkLinear, fixed.GetOrigin(),
                              [4.8, 6.6], fixed.GetDirection())  # fmt: skip
    field = sitk.TransformToDisplacementField(
        truth, sitk.sitkVectorFloat64, reference.GetSize(), reference.GetOrigin(), reference.GetSpacing(),
        reference.GetDirection(),
    )  # fmt: skip
    small = zero_field(fixed)
    values = np.zeros((*sitk.GetArrayFromImage(fixed).shape, 2))
    values[..., 0] = 1.5
    bend = sitk.GetImageFromArray(values, isVector=True)
    bend.CopyInformation(fixed)
    for after in (None, small, sitk.DisplacementFieldTransform(bend)):
        tx = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
        R = quick()
        R.SetInitialTransform(tx)
        if after is not None:
            R.SetMovingInitialTransform(after)
        out = R.Execute(fixed, moving)
        assert out is tx
        assert tx.GetDisplacementField().GetSize() == (36, 31)
        whole = tx if after is None else sitk.CompositeTransform([after, tx])
        np.testing.assert_allclose(
            through(whole, points), R.result.mapping.map(points), atol=0.6
        )  # 4.8 mm between the nodes
        assert distance(through(whole, points), wanted) < 1.5


def test_the_inverse_comes_with_a_field_in_place(oblique: dict[int, Phantom]) -> None:
    fixed, moving = pair(oblique[2])
    tx = zero_field(fixed)
    R = quick()
    R.SetInitialTransform(tx)
    R.Execute(fixed, moving)
    points = inner(oblique[2].geometry)
    back = tx.GetInverse()
    assert distance(points, through(tx, points)) > 0.5
    assert distance(through(back, through(tx, points)), points) < 0.1
    # The memory is the transform's own, whatever is freed and allocated meanwhile.
    kept = tx.GetParameters()
    del R
    gc.collect()
    churn = [sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64) + 9.0 for _ in range(20)]
    assert tx.GetParameters() == kept
    assert max(map(abs, kept)) < 60
    del churn


def test_a_spline_comes_back_as_a_field(oblique: dict[int, Phantom]) -> None:
    fixed, moving = pair(oblique[2])
    points = inner(oblique[2].geometry)
    spline = sitk.BSplineTransformInitializer(fixed, [4, 4])
    R = quick()
    R.SetInitialTransformAsBSpline(spline, inPlace=True, scaleFactors=[1, 2, 5])
    R.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-5, numberOfIterations=100)
    out = R.Execute(fixed, moving)
    assert isinstance(out, sitk.DisplacementFieldTransform)
    np.testing.assert_allclose(through(out, points), R.result.mapping.map(points), atol=1e-3)
    spline.SetParameters([3.0] * len(spline.GetParameters()))
    R.SetInitialTransform(spline, inPlace=False)
    shifted = R.Execute(fixed, moving)
    assert isinstance(shifted, sitk.CompositeTransform)
    assert distance(through(shifted, points) - 3.0, points) < distance(through(shifted, points) + 3.0, points)


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_events_come_in_order_with_live_values(oblique: dict[int, Phantom]) -> None:
    fixed, moving = pair(oblique[2])
    R = quick(iterations=(12, 3))
    seen: list[Any] = []
    for name in ("Start", "MultiResolutionIteration", "Iteration", "Progress", "End", "Abort"):
        R.AddCommand(getattr(sitk, f"sitk{name}Event"), lambda name=name: seen.append((name, R.GetCurrentLevel(),
                     R.GetOptimizerIteration(), R.GetMetricValue(), R.GetProgress())))  # fmt: skip
    count = []
    R.AddCommand(sitk.sitkAnyEvent, lambda: count.append(1))
    assert R.HasCommand(sitk.sitkIterationEvent)
    assert not R.HasCommand(sitk.sitkUserEvent)
    R.SetInitialTransform(zero_field(fixed))
    R.Execute(fixed, moving)
    assert len(count) == len(seen)
    names = [s[0] for s in seen]
    assert names[0] == "Start"
    assert names[-1] == "End"
    assert "Abort" not in names
    steps = [s for s in seen if s[0] == "Iteration"]
    assert [s[1:3] for s in steps] == [(level, i) for level, n in enumerate((12, 3)) for i in range(n)]
    assert names.count("MultiResolutionIteration") == 2
    for level in range(2):
        first = next(i for i, s in enumerate(seen) if s[0] == "Iteration" and s[1] == level)
        assert names[first - 1] == "MultiResolutionIteration"
    assert steps[11][3] < steps[0][3] < 0
    progress = [s[4] for s in seen if s[0] == "Progress"]
    assert progress == sorted(progress)
    assert R.GetProgress() == 1.0
    assert R.GetOptimizerPosition()[:4] == R.GetInitialTransform().GetParameters()[:4]
    R.RemoveAllCommands()
    before = len(seen)
    R.Execute(fixed, moving)
    assert len(seen) == before


def test_stop_keeps_the_best_and_abort_raises(oblique: dict[int, Phantom]) -> None:
    fixed, moving = pair(oblique[2])
    for ending, steps in (("StopRegistration", 5), ("Abort", 1)):
        R = quick(iterations=(50, 50))
        R.SetInitialTransform(zero_field(fixed))
        count: list[int] = []
        aborted: list[int] = []

        def step(R: Any = R, count: Any = count, ending: str = ending, steps: int = steps) -> None:
            count.append(1)
            if len(count) == steps:
                getattr(R, ending)()

        R.AddCommand(sitk.sitkIterationEvent, step)
        R.AddCommand(sitk.sitkAbortEvent, lambda aborted=aborted: aborted.append(1))
        assert R.StopRegistration() is False  # nothing runs
        if ending == "Abort":
            with pytest.raises(RegistrationCancelled):
                R.Execute(fixed, moving)
            assert aborted == [1]
        else:
            out = R.Execute(fixed, moving)
            assert "StopRegistration" in R.GetOptimizerStopConditionDescription()
            assert np.abs(sitk.GetArrayFromImage(out.GetDisplacementField())).max() > 0
            assert not aborted
        assert len(count) == steps


def test_what_a_command_raises_comes_out_as_itself(oblique: dict[int, Phantom]) -> None:
    R = quick()

    def broken() -> None:
        raise KeyError("mine")

    R.AddCommand(sitk.sitkIterationEvent, broken)
    with pytest.raises(KeyError, match="mine"):
        R.Execute(*pair(oblique[2]))
    assert R.StopRegistration() is False


def test_setters_reach_the_engine(oblique: dict[int, Phantom]) -> None:
    phantom = oblique[2]
    fixed, _ = pair(phantom)
    R = ImageRegistrationMethod(preset="fast")
    R.SetMetricAsANTSNeighborhoodCorrelation(3)
    R.SetShrinkFactorsPerLevel([6, 3, 1])
    R.SetSmoothingSigmasPerLevel([7.2, 2.4, 0])
    R.SetOptimizerAsGradientDescent(1.0, 10, maximumStepSizeInPhysicalUnits=1.2)
    R.SetMetricSamplingPercentage(0.1, 17)
    R.SetNumberOfThreads(1)
    R.SetInitialTransform(zero_field(fixed))
    grid = load_image(fixed, "fixed image").geometry
    options = register_options(R._setup, True, grid)
    assert options["shrink_factors"] == (6, 3, 1)
    np.testing.assert_allclose(options["smoothing_sigmas"], (0.5, 1 / 3, 0))  # 2.4 mm voxels
    assert options["iterations"] == (10, 10, 5)
    assert (options["radius"], options["seed"], options["threads"]) == (3, 17, 1)
    assert options["learning_rates"] == pytest.approx(0.5)
    settings = make_settings("fast", **{k: v for k, v in options.items() if k not in ("seed", "threads")})
    assert settings.deformable.learning_rates == (0.5, 0.5, 0.5)
    R.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    options = register_options(R._setup, True, grid)
    np.testing.assert_allclose(options["smoothing_sigmas"], (1.2, 0.8, 0))
    R.SetOptimizerAsGradientDescent(1.0, 10)
    options = register_options(R._setup, False, grid)
    assert options["linear_size"] == (14, 28, 82)  # the longest axis is 82.5 times the finest spacing
    assert options["linear_iterations"] == (10, 10, 10)
    assert options["linear_radius"] == 3


@pytest.mark.parametrize(
    ("use", "metric", "radius"),
    [
        (lambda R: R.SetMetricAsANTSNeighborhoodCorrelation(4), "lncc", 4),
        (lambda R: R.SetMetricAsCorrelation(), "ncc", None),
        (lambda R: R.SetMetricAsMeanSquares(), "mse", None),
        (lambda R: R.SetMetricAsDemons(0.01), "mse", None),
        (lambda R: R.SetMetricAsMattesMutualInformation(), MutualInformation(50), None),
        (lambda R: R.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32), "nmi", None),
        (lambda R: R.SetMetricAsJointHistogramMutualInformation(), MutualInformation(20), None),
        (lambda R: R.SetMetricAsJointHistogramMutualInformation(64, 2.5), MutualInformation(64), None),
    ],
)
def test_metrics_are_honoured_by_the_metric_of_that_name(
    oblique: dict[int, Phantom], use: Callable[[Any], Any], metric: Any, radius: int | None
) -> None:
    """Without a warning, of whatever runs, and instead of the metric and the radius that were set before."""
    grid = oblique[2].geometry
    R = ImageRegistrationMethod(preset="fast", metric="mind")
    assert register_options(R._setup, True, grid) == register_options(R._setup, False, grid) == {"metric": "mind"}
    R.SetMetricAsANTSNeighborhoodCorrelation(7)
    use(R)
    wanted = {"metric": metric} if radius is None else {"metric": metric, "radius": radius}
    assert register_options(R._setup, True, grid) == wanted
    wanted = {"linear_metric": metric} if radius is None else {"linear_metric": metric, "linear_radius": radius}
    assert register_options(R._setup, False, grid) == {"metric": "mind", **wanted}


def test_bins_that_cannot_be_had_warn_at_the_line_that_asks_for_them() -> None:
    R = ImageRegistrationMethod()
    message = "SetMetricAsMattesMutualInformation: numberOfHistogramBins: there can be 4 to 128 bins; 128 are taken"
    with pytest.warns(UserWarning, match=message) as seen:
        R.SetMetricAsMattesMutualInformation(256)
    assert [w.filename for w in seen] == [__file__]
    assert R._setup.metric == MutualInformation(128)


@pytest.mark.filterwarnings("ignore:.*little in common")  # which is what the others find
@pytest.mark.filterwarnings("ignore:.*look like unlike contrasts")
def test_mutual_information_aligns_what_others_cannot(oblique: dict[int, Phantom]) -> None:
    """The metric reaches the engine: inside the head the contrast is reversed, outside it is not."""
    phantom = oblique[2]
    head = phantom.moving_labels > 0
    array = np.where(head, 1.1 * phantom.moving.max() - phantom.moving, 0.0).astype(np.float32)
    fixed, moving = to_sitk(phantom.fixed, phantom.geometry), to_sitk(array, phantom.moving_geometry)
    inside = phantom.fixed_labels > 0
    points = phantom.geometry.grid()[inside]
    wanted = points + phantom.displacement[inside]
    errors, values = {}, {}
    for name in ("MattesMutualInformation", "ANTSNeighborhoodCorrelation", "Correlation", "MeanSquares"):
        R = ImageRegistrationMethod(preset="fast", network_above=0, threads=1, device="cpu")
        R.SetInitialTransform(zero_field(fixed))
        getattr(R, f"SetMetricAs{name}")(*((6,) if name.startswith("ANTS") else ()))
        R.Execute(fixed, moving)
        errors[name] = distance(R.result.mapping.map(points), wanted)
        values[name] = (R.GetMetricValue(), R.result.report.similarity)
    mutual = errors.pop("MattesMutualInformation")
    assert mutual < 0.5 * distance(points, wanted) < distance(points, wanted) < min(errors.values())
    for value, similarity in values.values():
        assert value == -similarity


def test_masks_count(oblique: dict[int, Phantom]) -> None:
    """Half of the moving image goes another way; with that half masked out, it does not disturb."""
    truth = known(2)
    fixed, moving = moved_pair(oblique[2], truth)
    points = inner(oblique[2].geometry)
    other = sitk.GetArrayFromImage(moved_pair(oblique[2], sitk.TranslationTransform(2, (-9.0, 8.0)))[1])
    array = sitk.GetArrayFromImage(moving)
    half = np.zeros(array.shape, np.uint8)
    half[:, : array.shape[1] // 2] = 1
    torn, mask = (sitk.GetImageFromArray(a) for a in (np.where(half, array, other), half))
    torn.CopyInformation(moving)
    mask.CopyInformation(moving)
    errors = []
    for given in (mask, None):
        R = quick(linear_iterations=(60,))
        R.SetInitialTransform(rigid(2))
        if given is not None:
            R.SetMetricMovingMask(given)
        errors.append(distance(through(R.Execute(fixed, torn), points), through(truth, points)))
    assert errors[0] < 1.5
    assert errors[0] < 0.5 * errors[1]
    R.SetMetricFixedMask(sitk.Image(fixed.GetSize(), sitk.sitkUInt8))
    with pytest.raises(InputError, match="fixed mask: is empty"):
        R.Execute(fixed, moving)


def test_metric_evaluate_is_smallest_at_the_truth(oblique: dict[int, Phantom]) -> None:
    truth = known(2)
    fixed, moving = moved_pair(oblique[2], truth)
    R = ImageRegistrationMethod()
    R.SetMetricAsANTSNeighborhoodCorrelation(3)
    at_identity = R.MetricEvaluate(fixed, moving)
    R.SetInitialTransform(truth)
    at_truth = R.MetricEvaluate(fixed, moving)
    R.SetInitialTransform(rigid(2))
    R.SetMovingInitialTransform(truth)
    assert R.MetricEvaluate(fixed, moving) == pytest.approx(at_truth, abs=1e-6)
    assert -1 <= at_truth < -0.8
    assert at_truth < at_identity - 0.2


def test_metric_evaluate_measures_what_a_deformation_is_optimised_for(oblique: dict[int, Phantom]) -> None:
    """The metric of the options; r and mean squares over the overlap, but for the clipping of outliers."""
    phantom = oblique[2]
    fixed, moving = pair(phantom)
    moving = moving + 25.0  # which mean squares see
    mask = sitk.GetImageFromArray((phantom.fixed_labels > 0).astype(np.uint8))
    mask.CopyInformation(fixed)
    values = {}
    for metric in ("lncc", "ncc", "mse", "nmi"):
        R = ImageRegistrationMethod(metric=metric, threads=1)
        R.SetMetricFixedMask(mask)
        values[metric] = R.MetricEvaluate(fixed, moving)
        R.SetInitialTransform(rigid(2))  # a linear stage has the metric of the deformation
        assert R.MetricEvaluate(fixed, moving) == values[metric]
    seen = sitk.Resample(moving * 0 + 1, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0)
    inside = (sitk.GetArrayFromImage(seen) > 0.5) & (phantom.fixed_labels > 0)
    warped = sitk.GetArrayFromImage(sitk.Resample(moving, fixed))
    r = np.corrcoef(phantom.fixed[inside], warped[inside])[0, 1]
    assert values["ncc"] == pytest.approx(-r, abs=0.01)
    squares = np.mean((phantom.fixed[inside] - warped[inside]) ** 2) / phantom.fixed[inside].var()
    assert values["mse"] == pytest.approx(squares - 1, abs=0.01)
    assert -1 < values["nmi"] < 0
    assert len({*values.values()}) == 4
    R = ImageRegistrationMethod(threads=1)  # "auto" is chosen by a registration only
    R.SetMetricFixedMask(mask)
    assert R.MetricEvaluate(fixed, moving) == values["lncc"]


@pytest.mark.parametrize("model", [None, "rigid"])
def test_metric_evaluate_measures_the_metric_that_is_set(oblique: dict[int, Phantom], model: str | None) -> None:
    """Instead of that of the options, for either stage; smaller at the truth under every one."""
    truth = known(2)
    fixed, moving = moved_pair(oblique[2], truth)
    named = {"lncc": "ANTSNeighborhoodCorrelation", "ncc": "Correlation", "mse": "MeanSquares",
             "nmi": "MattesMutualInformation"}  # fmt: skip
    for metric, name in named.items():
        R = ImageRegistrationMethod(metric=metric, threads=1, radius=6)
        other = ImageRegistrationMethod(metric="mind", threads=1, radius=6)
        getattr(other, f"SetMetricAs{name}")(*{"lncc": (6,), "nmi": (32,)}.get(metric, ()))
        if model is not None:
            R.SetInitialTransform(rigid(2))
            other.SetInitialTransform(rigid(2))
        before = R.MetricEvaluate(fixed, moving)
        assert other.MetricEvaluate(fixed, moving) == before
        other.SetMovingInitialTransform(truth)
        assert -1 <= other.MetricEvaluate(fixed, moving) < before
    few, many = ImageRegistrationMethod(), ImageRegistrationMethod()
    few.SetMetricAsMattesMutualInformation(8)
    many.SetMetricAsMattesMutualInformation(100)
    assert few.MetricEvaluate(fixed, moving) != many.MetricEvaluate(fixed, moving)


@pytest.mark.parametrize("masked", [False, True])
def test_mean_squares_rank_maps_as_simpleitk(oblique: dict[int, Phantom], masked: bool) -> None:
    """Whatever the overlap: all are divided by one variance."""
    fixed, moving = pair(oblique[2])
    mask = sitk.GetImageFromArray((oblique[2].fixed_labels > 0).astype(np.uint8))
    mask.CopyInformation(fixed)
    ratios = []
    for shift in ((0.0, 0.0), (30.0, 0.0), (0.0, -40.0), (25.0, 35.0)):
        values = []
        for R in (sitk.ImageRegistrationMethod(), ImageRegistrationMethod(threads=1)):
            R.SetMetricAsMeanSquares()
            R.SetInterpolator(sitk.sitkLinear)
            R.SetInitialTransform(sitk.TranslationTransform(2, shift))
            if masked:
                R.SetMetricFixedMask(mask)
            values.append(R.MetricEvaluate(fixed, moving))
        ratios.append((values[1] + 1) / values[0])
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
    inside = oblique[2].fixed_labels > 0 if masked else np.ones(oblique[2].fixed.shape, bool)
    assert ratios[0] == pytest.approx(1 / oblique[2].fixed[inside].var(), rel=1e-3)


@pytest.mark.parametrize("metric", ["MeanSquares", "Correlation"])
def test_a_flat_overlap_has_a_value(metric: str) -> None:
    """A number: an exhaustive search whose first node has such an overlap goes on to better ones."""
    array = np.zeros((30, 32), np.float32)
    array[8:20, 10:25] = np.random.default_rng(0).uniform(1, 2, (12, 15))
    moving = array.copy()
    moving[:, :8] = 3.0  # all that the first node sees
    fixed = sitk.GetImageFromArray(array)
    R = ImageRegistrationMethod(threads=1)
    getattr(R, f"SetMetricAs{metric}")()
    start = sitk.TranslationTransform(2)
    R.SetInitialTransform(start)
    R.SetOptimizerAsExhaustive([26, 0], 1.0)
    values: list[float] = []
    R.AddCommand(sitk.sitkIterationEvent, lambda: values.append(R.GetMetricValue()))
    R.Execute(fixed, sitk.GetImageFromArray(moving))
    assert np.isfinite(values).all()
    assert start.GetOffset()[0] == np.argmin(values) - 26 > -26
    assert R.GetMetricValue() == min(values)


# --- the learning rate -----------------------------------------------------------------------------------------------


@contextmanager
def rates_given() -> Iterator[list[tuple[Any, float]]]:
    """Every optimiser that steps meanwhile, with the rate it is given: looked at from outside, nothing is replaced."""
    seen: list[tuple[Any, float]] = []
    step = inspect.unwrap(ops.Adam.step).__code__

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is step:
            seen.append((frame.f_locals["self"], frame.f_locals["rate"]))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def rates_told(R: ImageRegistrationMethod) -> dict[int, list[float]]:
    """Level -> what `GetOptimizerLearningRate` says in each of its iterations, once `R` has run."""
    told: dict[int, list[float]] = defaultdict(list)
    R.AddCommand(sitk.sitkIterationEvent, lambda: told[R.GetCurrentLevel()].append(R.GetOptimizerLearningRate()))
    return told


def test_a_linear_stage_has_no_learning_rate(oblique: dict[int, Phantom]) -> None:
    """Its steps are those of a trust region: the factor on them is 1, and no other optimiser takes part."""
    R = quick(linear_size=(16, 32), linear_iterations=(20, 10))
    R.SetInitialTransform(rigid(2))
    assert R.GetOptimizerLearningRate() == 0
    told = rates_told(R)
    with rates_given() as given:
        R.Execute(*pair(oblique[2]))
    assert not given
    assert set(told) <= {0, 1}
    assert {rate for level in told.values() for rate in level} == {1.0}
    assert R.GetOptimizerLearningRate() == 1.0


@BOTH
def test_the_learning_rate_of_a_deformation_is_the_optimisers(oblique: dict[int, Phantom], d: int) -> None:
    fixed, moving = pair(oblique[d])
    R = ImageRegistrationMethod(preset="fast", iterations=(8, 5, 3), threads=1, device="cpu")
    R.SetInitialTransform(zero_field(fixed))
    told = rates_told(R)
    with rates_given() as given:
        R.Execute(fixed, moving)
    preset = options_of("fast")
    for level, (n, rate) in enumerate(zip((8, 5, 3), preset["learning_rates"], strict=True)):
        np.testing.assert_allclose(told[level], np.linspace(rate, rate * preset["learning_rate_end"], n), rtol=1e-12)
    # Little moves, so that no network is tried, which has an optimiser of another kind.
    points = [rate for optimiser, rate in given if optimiser.parameters[0].ndim == 4]
    assert len(points) == len(given)
    assert len(points) == 8 + 5 + 3
    np.testing.assert_allclose(points, [rate for level in range(3) for rate in told[level]], rtol=1e-12)
    assert R.GetOptimizerLearningRate() == told[2][-1]


def test_the_learning_rate_of_the_paper_preset_is_the_optimisers(oblique: dict[int, Phantom]) -> None:
    fixed, moving = pair(oblique[2])
    first, second = options_of("paper")["phases"]
    phases = (
        replace(first, iterations=11, learning_rate=3e-3, learning_rate_end=3e-4),
        replace(second, iterations=4, learning_rate=2e-3, learning_rate_end=2e-3),
    )
    R = ImageRegistrationMethod(preset="paper", phases=phases, threads=1, device="cpu")
    R.SetInitialTransform(zero_field(fixed))
    told = rates_told(R)
    with rates_given() as given:
        R.Execute(fixed, moving)
    np.testing.assert_allclose([*told[0], *told[1]], [rate for _, rate in given], rtol=1e-12)
    assert len(told[0]) == 11
    assert told[0][0] == pytest.approx(3e-3)
    assert told[0][5] == pytest.approx(0.00165)
    assert told[0][10] == pytest.approx(3e-4)
    assert told[1] == [2e-3] * 4


# --- refusals --------------------------------------------------------------------------------------------------------


def test_every_method_of_simpleitk_is_there_or_refused_by_name() -> None:
    R = ImageRegistrationMethod()
    own = {name for owner in ImageRegistrationMethod.__mro__[:-1] for name in vars(owner)}
    theirs = {n for n in dir(sitk.ImageRegistrationMethod) if not n.startswith("_") and n != "thisown"}
    for name in sorted(theirs - own):
        with pytest.raises(OptionError, match=f"{name} is refused: ."):
            getattr(R, name)()
    assert {n for n in own if not n.startswith("_")} - theirs == {"result"}
    refused = {name for name, (what, _) in OPTIONS.items() if what == "refused"}
    conditional = {"SetFixedInitialTransform", "SetDebug", "SetVirtualDomain", "SetVirtualDomainFromImage"}
    assert refused - conditional - {"SetGlobalDefault…"} <= theirs - own
    assert {n for n in theirs if n.startswith("Set")} <= {*OPTIONS, *SETTERS_UNDER_ANOTHER_NAME}
    assert {what for what, _ in OPTIONS.values()} == {"honoured", "approximated", "refused"}


def test_an_entry_of_a_table_of_options() -> None:
    assert [entry("why") for entry in (honoured, approximated, refused)] == [
        OptionSupport(status, "why") for status in ("honoured", "approximated", "refused")
    ]
    error = OPTIONS["SetDebug"].refusal("SetDebug(True)")
    assert isinstance(error, OptionError)
    assert str(error) == "SetDebug(True) is refused: use AddCommand"


def their_parameters(name: str) -> list[tuple[str, str | None]]:
    """Names and defaults of a method's parameters, as SimpleITK's own help says them."""
    text = getattr(sitk.ImageRegistrationMethod, name).__doc__
    inside = re.search(rf"{name}\(ImageRegistrationMethod self, (.*)\)\n", text)
    assert inside
    out = []
    for parameter in inside[1].split(", "):
        declared, _, default = parameter.partition("=")
        out.append((declared.split()[-1], default or None))
    return out


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_optimisers_are_called_as_simpleitks(name: str) -> None:
    method = getattr(ImageRegistrationMethod, name)
    assert (method.__name__, method.__qualname__) == (name, f"ImageRegistrationMethod.{name}")
    own = list(inspect.signature(method).parameters.values())[1:]
    theirs = their_parameters(name)
    assert [p.name for p in own] == [parameter for parameter, _ in theirs]
    words = {
        "Never": 0,
        "Once": 1,
        "EachIteration": 2,
        "False": False,
        "True": True,
        "sitkWallClock": sitk.sitkWallClock,
    }
    for p, (_, default) in zip(own, theirs, strict=True):
        assert p.name in method.__doc__
        assert (p.default is p.empty) == (default is None)
        if default is None or p.name in ("lowerBound", "upperBound"):  # said in C++: no bounds
            continue
        value = words[default.rpartition("::")[2]] if default.rpartition("::")[2] in words else float(default)
        assert p.default == value
        assert isinstance(p.default, p.annotation)
    # All by position, and all by name, come to the same.
    values = {p.name: {float: 0.5, int: 7}[p.annotation] if p.default is p.empty else p.default for p in own}
    values["numberOfIterations"] = 7
    setups = []
    for positional, named in ((values.values(), {}), ((), values)):
        R = ImageRegistrationMethod()
        getattr(R, name)(*positional, **named)
        setups.append(R._setup)
    assert setups[0] == setups[1]
    assert setups[0].iterations == 7
    with pytest.raises(TypeError, match=rf"{name}\(\): .*'nonsense'"):
        getattr(R, name)(**values, nonsense=1)
    with pytest.raises(TypeError, match=rf"{name}\(\): too many positional"):
        getattr(R, name)(*values.values(), 1)


def test_iterations_and_step_size_are_taken_from_the_optimiser() -> None:
    R = ImageRegistrationMethod()
    R.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 30, maximumStepSizeInPhysicalUnits=2.5)
    assert (R._setup.iterations, R._setup.largest_step) == (30, 2.5)
    R.SetOptimizerAsLBFGSB()
    assert (R._setup.iterations, R._setup.largest_step) == (500, 0.0)
    R.SetOptimizerAsLBFGS2()
    assert R._setup.iterations is None
    with pytest.raises(OptionError, match=r"maximumStepSizeInPhysicalUnits is not negative \(mm\), got -1"):
        R.SetOptimizerAsGradientDescent(1.0, 10, maximumStepSizeInPhysicalUnits=-1)
    assert R._setup.iterations is None  # what is refused changes nothing


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    R = ImageRegistrationMethod()
    R.SetMetricAsANTSNeighborhoodCorrelation(np.int64(3))
    R.SetNumberOfThreads(np.uint8(2))
    R.SetOptimizerAsGradientDescent(1.0, np.int32(30))
    assert (R._setup.radius, R._setup.threads, R._setup.iterations) == (3, 2, 30)
    assert {type(n) for n in (R._setup.radius, R._setup.threads, R._setup.iterations)} == {int}
    for use in (R.SetMetricAsANTSNeighborhoodCorrelation, R.SetNumberOfThreads, R.SetOptimizerAsLBFGSB):
        for wrong in (True, 2.0, np.float64(2)):
            with pytest.raises(OptionError):
                use(numberOfIterations=wrong) if use == R.SetOptimizerAsLBFGSB else use(wrong)
    with pytest.raises(OptionError, match="numberOfIterations"):
        R.SetOptimizerAsLBFGS2(numberOfIterations=False)


SETTERS_UNDER_ANOTHER_NAME = {
    "SetMetricUseFixedImageGradientFilter", "SetMetricUseMovingImageGradientFilter", "SetGlobalWarningDisplay",
    "SetGlobalDefaultDebug", "SetGlobalDefaultThreader", "SetGlobalDefaultNumberOfThreads",
    "SetGlobalDefaultCoordinateTolerance", "SetGlobalDefaultDirectionTolerance",
}  # fmt: skip


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (
            lambda R: R.SetMetricAsMattesMutualInfo(),
            AttributeError,
            "did you mean 'SetMetricAsMattesMutualInformation'",
        ),
        (lambda R: R.Nonsense(), AttributeError, "no method 'Nonsense'"),
        (
            lambda R: R.SetMetricAsMattesMutualInformation(0),
            OptionError,
            "SetMetricAsMattesMutualInformation: numberOfHistogramBins is a whole number of bins, at least 1, got 0",
        ),
        (
            lambda R: R.SetMetricAsJointHistogramMutualInformation(8.5),
            OptionError,
            "SetMetricAsJointHistogramMutualInformation: numberOfHistogramBins is a whole number of bins",
        ),
        (lambda R: R.SetMetricAsANTSNeighborhoodCorrelation(0), OptionError, "radius is at least 1"),
        (lambda R: R.SetOptimizerAsExhaustive([1, -1]), OptionError, "numberOfSteps has a whole number that is not"),
        (lambda R: R.SetOptimizerAsExhaustive([1, 1], 0), OptionError, "stepLength is above 0, got 0"),
        (lambda R: R.SetOptimizerAsExhaustive([999] * 4), OptionError, "positions are too many"),
        (lambda R: R.SetOptimizerScales([1, 0]), OptionError, "SetOptimizerScales: scales are above 0"),
        (
            lambda R: R.SetInitialTransformAsBSpline(sitk.BSplineTransform(2), scaleFactors=[1, 0]),
            OptionError,
            "scaleFactors are whole numbers of at least 1",
        ),
        (lambda R: R.GetOptimizerPosition(), OptionError, "before Execute"),
        (lambda R: R.SetOptimizerAsGradientDescent(1.0, 0), OptionError, "numberOfIterations"),
        (lambda R: R.SetOptimizerAsGradientDescent(1.0), TypeError, "numberOfIterations"),
        (lambda R: R.SetOptimizerAsLBFGSB(lowerBound=-1.0), OptionError, "bounds are refused"),
        (lambda R: R.SetOptimizerWeights([1, 0.5]), OptionError, r"SetOptimizerWeights\(\[1.0, 0.5\]\) is refused"),
        (lambda R: R.SetMetricSamplingStrategy(7), OptionError, "NONE, REGULAR or RANDOM"),
        (lambda R: R.SetMetricSamplingPercentage(1.5), OptionError, "at most 1"),
        (lambda R: R.SetShrinkFactorsPerLevel([1, 2]), OptionError, "fall from level to level"),
        (lambda R: R.SetSmoothingSigmasPerLevel([-1]), OptionError, "not negative"),
        (lambda R: R.SetNumberOfThreads(-1), OptionError, "SetNumberOfThreads"),
        (lambda R: R.SetNumberOfWorkUnits(2.5), OptionError, "SetNumberOfWorkUnits takes a whole number"),
        (lambda R: R.SetInterpolator("linear"), OptionError, "such as sitk.sitkLinear, got 'linear'"),
        (lambda R: R.GetMetricNumberOfValidPoints(), OptionError, "GetMetricNumberOfValidPoints is refused"),
        (
            lambda R: R.SetVirtualDomain([1, 1], [0, 0], [1, 1], [1, 0, 0]),
            OptionError,
            "SetVirtualDomain: cannot reshape",
        ),
        (lambda R: R.SetFixedInitialTransform(known(2)), OptionError, "SetFixedInitialTransform is refused"),
        (lambda R: R.SetInitialTransform("a.tfm"), InputError, "takes a SimpleITK transform, got str"),
        (lambda R: R.AddCommand(sitk.sitkUserEvent, print), OptionError, "there is no event"),
        (lambda R: R.AddCommand(sitk.sitkStartEvent, 3), OptionError, "takes a function"),
        (lambda R: R.DebugOn(), OptionError, r"SetDebug\(True\) is refused"),
        (lambda R: R.result, ItkNirError, "call Execute first"),
        (lambda R: ImageRegistrationMethod(stepz=3), OptionError, "did you mean 'iterations'"),
    ],
)
def test_what_cannot_be_had_is_named(use: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use(ImageRegistrationMethod())


def test_options_may_be_a_settings_object_or_have_names_of_before() -> None:
    with pytest.warns(DeprecationWarning, match="option 'steps' is called 'iterations' since") as seen:
        R = ImageRegistrationMethod(preset="fast", steps=(3, 2, 1), jacobian_weight=0.5)
    assert [w.filename for w in seen] == [__file__]
    assert R._setup.options == {"iterations": (3, 2, 1), "jacobian_weight": 0.5}
    R = ImageRegistrationMethod(preset=make_settings("fast", iterations=(9, 7, 1)))
    R.SetShrinkFactorsPerLevel([4, 1])
    R.SetOptimizerAsGradientDescent(1.0, 8)
    assert register_options(R._setup, True, centred((40, 44), (2.0, 2.0), np.eye(2)))["iterations"] == (8, 7)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (sitk.ScaleTransform(2), "a ScaleTransform has no counterpart"),
        (sitk.Euler3DTransform(), "is 3D but the fixed image is 2D"),
        (sitk.DisplacementFieldTransform(2), "without a field"),
    ],
)
def test_transforms_that_cannot_be_optimised(oblique: dict[int, Phantom], transform: Any, message: str) -> None:
    R = ImageRegistrationMethod()
    R.SetInitialTransform(transform)
    with pytest.raises(ItkNirError, match=message):
        R.Execute(*pair(oblique[2]))


def test_sigmas_need_levels(oblique: dict[int, Phantom]) -> None:
    fixed, moving = pair(oblique[2])
    R = quick()
    R.SetInitialTransform(rigid(2))
    R.SetOptimizerAsGradientDescent(1.0, 10, maximumStepSizeInPhysicalUnits=2.0)
    with pytest.raises(OptionError, match="maximumStepSizeInPhysicalUnits has no meaning"):
        R.Execute(fixed, moving)
    R = quick()
    R.SetSmoothingSigmasPerLevel([2, 1])
    with pytest.raises(OptionError, match="needs SetShrinkFactorsPerLevel"):
        R.Execute(fixed, moving)
    R.SetShrinkFactorsPerLevel([2])
    with pytest.raises(OptionError, match="1 shrink factors but 2 smoothing sigmas"):
        R.Execute(fixed, moving)


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_runs_and_lists_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = (centred((44, 40), (3.8, 4.9), turned(2, 0.3)), centred((40, 46), (4.2, 4.4), turned(2, -0.2)))
    phantom = brain_phantom(2, geometry=grids[0], moving_geometry=grids[1])
    for name, image in zip(("fixed", "moving"), pair(phantom), strict=True):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    monkeypatch.chdir(tmp_path)
    names = run_blocks("coming_from_simpleitk.md")
    whole = names["whole"]
    points = inner(phantom.geometry)
    np.testing.assert_allclose(through(whole, points), names["R"].result.mapping.map(points), atol=1e-3)
    text = (DOCS / "coming_from_simpleitk.md").read_text(encoding="utf-8")
    for method, (what, meaning) in OPTIONS.items():
        assert f"| `{method}` | {what} | {meaning} |" in text


def test_the_method_prints_its_settings() -> None:
    """SimpleITK's own lines come first and in its order."""

    def names(method: Any) -> list[str]:
        return re.findall(r"^  (\w+):", str(method), re.MULTILINE)

    theirs = names(sitk.ImageRegistrationMethod())
    R = ImageRegistrationMethod(**QUICK)
    assert names(R)[: names(R).index("Transform")] == theirs[: theirs.index("Transform")]
    R.SetMetricAsCorrelation()
    R.SetOptimizerAsGradientDescent(1.0, 37)
    R.SetShrinkFactorsPerLevel([4, 2])
    R.SetSmoothingSigmasPerLevel([2, 1])
    R.SetOptimizerWeights([1, 1, 0])
    R.SetMetricSamplingPercentage(0.1, 7)
    R.SetMetricFixedMask(sitk.Image(5, 4, sitk.sitkUInt8))
    R.SetInitialTransform(sitk.Euler2DTransform())
    R.AddCommand(sitk.sitkIterationEvent, lambda: None)
    text = str(R)
    for line in (
        "Metric: ncc", "Optimizer: GradientDescent", "OptimizerIterations: 37", "ShrinkFactorsPerLevel: [4, 2]",
        "SmoothingSigmasPerLevel: [2.0, 1.0]", "OptimizerWeights: [1.0, 1.0, 0.0]", "MetricSamplingSeed: 7",
        "MetricSamplingPercentagePerLevel: [0.1]", "MetricFixedMask: image of size [5, 4]", "MetricMovingMask: (none)",
        "Interpolator: Linear", "  Event: IterationEvent Command: Command", "NumberOfThreads: 1", "Preset: fast",
    ):  # fmt: skip
        assert f"  {line}\n" in text, line
    assert " Euler2DTransform (" in text


def test_threads_are_told_as_by_simpleitk() -> None:
    usual = sitk.ImageRegistrationMethod().GetNumberOfThreads()
    R = ImageRegistrationMethod()
    assert R.GetNumberOfThreads() == usual > 0
    R.SetNumberOfThreads(3)
    assert R.GetNumberOfThreads() == 3
    assert ImageRegistrationMethod(threads=5).GetNumberOfThreads() == 5

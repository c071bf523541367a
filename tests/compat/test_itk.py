"""`NIRRegistrationMethod` as a filter among filters: when it runs, what it gives, and what outlives what."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest

import itk_nir.compat.itk
from itk_nir.compat.itk import NIRRegistrationMethod, nir_registration_method
from itk_nir.compat.itk.lifetime import Link, kept
from itk_nir.compat.itk.options import COUNTERPARTS, method_table, option_table
from itk_nir.engine.metrics import MutualInformation
from itk_nir.errors import InputError, ItkNirError, OptionError, RegistrationCancelled
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk
from itk_nir.phantom import brain_phantom
from itk_nir.settings import ARGUMENTS, PRESETS, make_settings, options_of
from tests.docs_blocks import DOCS, run_blocks

BOTH = pytest.mark.parametrize("d", [2, 3])
#: A registration of a fraction of a second that moves something.
QUICK: dict[str, Any] = {
    "preset": "fast", "iterations": (3, 2, 1), "linear": "none", "threads": 1, "device": "cpu",
}  # fmt: skip
AFFINE: dict[str, Any] = {
    **QUICK, "linear": "affine", "linear_iterations": (6,), "linear_size": (16,), "linear_start_iterations": 3,
}  # fmt: skip
# So few iterations at so coarse a level settle nothing, and the verdict says so.
pytestmark = pytest.mark.filterwarnings("default::itk_nir.errors.VerdictWarning")
ENV = {**os.environ, "PYTHONPATH": str(Path(itk_nir.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}


def make_pair(d: int, dtype: Any = np.float32, moving_dtype: Any = None) -> tuple[Any, Any]:
    """An oblique, anisotropic fixed image and a moving one on another grid."""
    c, s = np.cos(0.25), np.sin(0.25)
    if d == 2:
        turn = [[c, -s], [s, c]]
        fixed = Geometry.make((40, 36), (4.0, 5.0), (-85.0, -75.0), turn)
        moving = Geometry.make((36, 44), (4.5, 4.25), (-80.0, -92.0))
    else:
        turn = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
        fixed = Geometry.make((26, 24, 20), (6.5, 7.5, 8.0), (-90.0, -70.0, -78.0), turn)
        moving = Geometry.make((24, 28, 22), (6.5, 6.75, 7.5), (-76.0, -92.0, -80.0))
    phantom = brain_phantom(d, geometry=fixed, moving_geometry=moving)
    return (
        to_itk(phantom.fixed.astype(dtype), fixed),
        to_itk(phantom.moving.astype(moving_dtype or dtype), moving),
    )


@pytest.fixture(scope="module")
def pairs() -> dict[int, tuple[Any, Any]]:
    return {d: make_pair(d) for d in (2, 3)}


@pytest.fixture
def pair(pairs: dict[int, tuple[Any, Any]]) -> tuple[Any, Any]:
    """A 2D pair of one's own, which may be modified."""
    return tuple(itk.image_duplicator(image) for image in pairs[2])  # type: ignore[return-value]


def array(image: Any) -> Any:
    return itk.array_from_image(itk.output(image))


def runs_of(process: Any) -> list[int]:
    """A list that grows by one at each execution of a filter."""
    seen: list[int] = []
    process.AddObserver(itk.EndEvent(), lambda: seen.append(1))
    return seen


def shift(image: Any, value: float = 0.0) -> Any:
    kind = type(itk.output(image))
    upstream = itk.ShiftScaleImageFilter[kind, kind].New()
    upstream.SetInput(itk.output(image))
    upstream.SetShift(value)
    return upstream


# --- what it gives ---------------------------------------------------------------------------------------------------


@BOTH
def test_the_results_are_those_of_register(d: int, pairs: dict[int, tuple[Any, Any]]) -> None:
    fixed, moving = pairs[d]
    registration = NIRRegistrationMethod.New(fixed, moving, **AFFINE)
    registration.Update()
    options = {name: value for name, value in AFFINE.items() if name not in ARGUMENTS}
    arguments = {name: value for name, value in AFFINE.items() if name in ARGUMENTS}
    wanted = itk_nir.register(fixed, moving, **{**arguments, "preset": make_settings(AFFINE["preset"], **options)})
    out = registration.GetOutput()
    assert type(out) is itk.Image[itk.F, d]
    assert np.array_equal(array(out), wanted.warped_array)
    assert np.ptp(array(out)) > 50
    assert Geometry.make(
        tuple(itk.size(out)), tuple(itk.spacing(out)), tuple(itk.origin(out)), itk.array_from_matrix(out.GetDirection())
    ).same_grid(wanted.fixed.geometry)
    assert isinstance(registration.GetTransform(), itk.DisplacementFieldTransform[itk.D, d])
    points = wanted.fixed.geometry.grid().reshape(-1, d)[:: 7 * 3**d]
    for mine, theirs in (
        (registration.GetTransform(), wanted.transform),
        (registration.GetInverseTransform(), wanted.inverse_transform),
    ):
        assert [list(mine.TransformPoint(p)) for p in points.tolist()] == [
            list(theirs.TransformPoint(p)) for p in points.tolist()
        ]
    assert registration.GetResult().report.preset == "fast"


@BOTH
def test_the_displacement_field_and_the_transform_make_the_output(d: int, pairs: dict[int, tuple[Any, Any]]) -> None:
    """ITK's own resamplers come to the same image; so signs, axes and grids are right."""
    fixed, moving = pairs[d]
    registration = NIRRegistrationMethod.New(fixed, moving, **AFFINE)
    registration.Update()
    out = array(registration.GetOutput())
    seen = itk.resample_image_filter(
        moving, transform=registration.GetTransform(), use_reference_image=True, reference_image=fixed
    )
    field = registration.GetDisplacementField()
    assert type(field) is itk.Image[itk.Vector[itk.F, d], d]
    vectors = itk.array_view_from_image(field)
    grid = registration.GetResult().fixed.geometry.grid()
    there = registration.GetResult().moving.geometry.physical_to_index(grid + vectors)
    size = np.array(registration.GetResult().moving.geometry.size)
    inside = ((there > 0.5) & (there < size - 1.5)).all(-1)
    assert inside.mean() > 0.5
    assert np.abs(vectors).max() > 1
    assert np.abs(out - array(seen))[inside].max() < 1e-4 * np.ptp(array(moving))
    warp = itk.WarpImageFilter[type(moving), type(out_image := registration.GetOutput()), type(field)].New(moving)
    warp.SetDisplacementField(field)
    warp.SetOutputParametersFromImage(out_image)
    warp.Update()
    assert np.abs(out - array(warp))[inside].max() < 1e-4 * np.ptp(array(moving))


@pytest.mark.parametrize("pixel", ["UC", "SS", "US", "SI", "UI", "UL", "ULL", "F", "D"])
def test_every_real_scalar_pixel_type(pixel: str) -> None:
    fixed, moving = make_pair(2)
    kind = itk.Image[getattr(itk, pixel), 2]
    typed = []
    for image in (fixed, moving):
        new = kind.New()
        new.CopyInformation(image)
        new.SetRegions(image.GetLargestPossibleRegion())
        new.Allocate()
        view = itk.array_view_from_image(new)
        view[...] = array(image).astype(view.dtype)
        typed.append(new)
    registration = NIRRegistrationMethod.New(*typed, **QUICK)
    registration.Update()
    assert np.array_equal(array(registration), itk_nir.register(*typed, **QUICK).warped_array)
    assert registration.GetFixedImage() is typed[0]
    # A change is seen whatever the type.
    runs = runs_of(registration)
    typed[1].Modified()
    registration.Update()
    registration.Update()
    assert len(runs) == 1


@BOTH
def test_inputs_of_unlike_types(d: int) -> None:
    fixed, moving = make_pair(d, np.uint8, np.int16)
    warped = NIRRegistrationMethod.New(fixed, moving, **QUICK)
    warped.Update()
    assert np.array_equal(array(warped), itk_nir.register(fixed, moving, **QUICK).warped_array)


def test_a_fixed_image_that_does_not_begin_at_index_0(pair: tuple[Any, Any]) -> None:
    fixed, moving = pair
    region = itk.ImageRegion[2]([4, 6], [30, 26])
    part = itk.ExtractImageFilter[type(fixed), type(fixed)].New(
        fixed, ExtractionRegion=region, DirectionCollapseToStrategy=2
    )
    registration = NIRRegistrationMethod.New(part, moving, **QUICK)
    registration.Update()
    out = registration.GetOutput()
    assert tuple(out.GetLargestPossibleRegion().GetIndex()) == (4, 6)
    assert tuple(out.TransformIndexToPhysicalPoint([4, 6])) == tuple(fixed.TransformIndexToPhysicalPoint([4, 6]))
    part.Update()
    assert np.array_equal(array(out), itk_nir.register(part.GetOutput(), moving, **QUICK).warped_array)


def test_masks_and_the_initial_transform_are_used(pair: tuple[Any, Any]) -> None:
    fixed, moving = pair
    mask = (array(fixed) > 60).astype(np.uint8)
    mask[:, :20] = 0
    mask = itk.image_from_array(mask)
    mask.CopyInformation(fixed)
    start = itk.TranslationTransform[itk.D, 2].New()
    start.SetOffset([9.0, -6.0])
    options = {"fixed_mask": mask, "moving_mask": None, "initial_transform": start}
    registration = NIRRegistrationMethod.New(fixed, moving, **QUICK, **options)
    registration.Update()
    assert np.array_equal(array(registration), itk_nir.register(fixed, moving, **QUICK, **options).warped_array)
    assert not np.array_equal(array(registration), itk_nir.register(fixed, moving, **QUICK).warped_array)


def test_the_functional_form(pair: tuple[Any, Any]) -> None:
    warped, transform = nir_registration_method(*pair, **QUICK)
    wanted = itk_nir.register(*pair, **QUICK)
    assert np.array_equal(array(warped), wanted.warped_array)
    assert isinstance(transform, itk.DisplacementFieldTransform[itk.D, 2])
    # An image of its own: it does not run the registration again.
    pair[1].Modified()
    gc.collect()
    assert not kept
    assert array(itk.median_image_filter(warped, radius=0)).shape == wanted.warped_array.shape


# --- when it runs ----------------------------------------------------------------------------------------------------


def mask_of(image: Any) -> Any:
    mask = itk.image_from_array((array(image) > 20).astype(np.uint8))
    mask.CopyInformation(image)
    return mask


CHANGES: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "fixed pixels": lambda r, x: x["fixed"].Modified(),
    "moving pixels": lambda r, x: x["moving"].Modified(),
    "upstream parameter": lambda r, x: x["upstream"].SetShift(5.0),
    "upstream of the mask": lambda r, x: x["mask upstream"].Modified(),
    "mask pixels": lambda r, x: x["mask"].Modified(),
    "another mask": lambda r, x: r.SetFixedMask(mask_of(x["fixed"])),
    "no mask": lambda r, x: r.SetFixedMask(None),
    "another fixed image": lambda r, x: r.SetFixedImage(itk.image_duplicator(x["fixed"])),
    "option of register": lambda r, x: r.SetSeed(3),
    "option of the preset": lambda r, x: r.SetIterations((2, 2, 1)),
    "initial transform": lambda r, x: x["start"].Translate([1.0, 0.0]),
    "another initial transform": lambda r, x: r.SetInitialTransform(np.eye(3)),
    "the filter itself": lambda r, x: r.Modified(),
}


@pytest.fixture
def pipeline(pair: tuple[Any, Any]) -> tuple[Any, Any, dict[str, Any]]:
    fixed, moving = pair
    x: dict[str, Any] = {"fixed": fixed, "moving": moving, "upstream": shift(moving), "mask": mask_of(fixed)}
    x["mask upstream"] = shift(x["mask"])
    x["start"] = itk.AffineTransform[itk.D, 2].New()
    registration = NIRRegistrationMethod.New(
        fixed, x["upstream"], fixed_mask=x["mask upstream"], initial_transform=x["start"], **QUICK
    )
    return registration, shift(registration), x


@pytest.mark.filterwarnings("ignore:.*little in common")  # after the few iterations of one of the changes
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_one_execution(pipeline: tuple[Any, Any, dict[str, Any]], change: str) -> None:
    registration, downstream, x = pipeline
    runs = runs_of(registration)
    downstream.Update()
    assert len(runs) == 1
    CHANGES[change](registration, x)
    downstream.Update()
    assert len(runs) == 2
    downstream.Update()
    registration.Update()
    registration.UpdateLargestPossibleRegion()
    assert len(runs) == 2


def test_nothing_changed_is_no_execution(pipeline: tuple[Any, Any, dict[str, Any]]) -> None:
    registration, downstream, x = pipeline
    runs = runs_of(registration)
    downstream.Update()
    registration.SetSeed(0)
    registration.SetPreset("fast")
    registration.SetIterations([3, 2, 1])
    registration.SetInitialTransform(x["start"])
    registration.SetFixedImage(x["fixed"])
    registration.SetMovingImage(x["upstream"])
    registration.SetMovingImage(x["upstream"].GetOutput())
    registration.SetFixedMask(x["mask upstream"].GetOutput())
    registration.SetMovingMask(None)
    registration.GetTransform()
    registration.GetDisplacementField()
    registration.GetOutput()
    downstream.SetShift(2.0)
    downstream.Update()
    registration.Update()
    assert len(runs) == 1


def test_a_downstream_streamer_runs_it_once(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    runs = runs_of(registration)
    streamer = itk.StreamingImageFilter[itk.Image[itk.F, 2], itk.Image[itk.F, 2]].New(registration)
    streamer.SetNumberOfStreamDivisions(4)
    streamer.Update()
    assert len(runs) == 1
    assert np.array_equal(array(streamer), array(registration))


def test_the_output_grid_is_known_before_anything_runs(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    runs = runs_of(registration)
    registration.UpdateOutputInformation()
    assert tuple(itk.size(registration.GetOutput())) == tuple(itk.size(pair[0]))
    assert not runs


def test_upstream_runs_once_for_each_change(pair: tuple[Any, Any]) -> None:
    fixed, moving = make_pair(2, np.uint16)
    upstream = shift(moving)
    above = runs_of(upstream)
    registration = NIRRegistrationMethod.New(shift(fixed), upstream, **QUICK)  # the first has no other name
    downstream = shift(registration)
    downstream.Update()
    registration.SetSeed(1)
    downstream.Update()
    assert len(above) == 1
    upstream.SetShift(1.0)
    downstream.Update()
    assert len(above) == 2


@BOTH
def test_a_pipeline_for_another_registration_with_one_line_changed(d: int, pairs: dict[int, tuple[Any, Any]]) -> None:
    """Smooth → register → median, as written for elastix; both bring the images closer."""
    results = {}
    for name in ("elastix", "ours"):
        fixed = itk.DiscreteGaussianImageFilter.New(pairs[d][0], Variance=4.0)
        moving = itk.DiscreteGaussianImageFilter.New(pairs[d][1], Variance=4.0)
        if name == "elastix":
            registration = itk.ElastixRegistrationMethod.New(fixed.GetOutput(), moving.GetOutput())
            parameters = itk.ParameterObject.New()
            map_ = parameters.GetDefaultParameterMap("affine", 1)
            map_["MaximumNumberOfIterations"] = ["20"]
            map_["NumberOfSpatialSamples"] = ["400"]
            parameters.AddParameterMap(map_)
            registration.SetParameterObject(parameters)
            registration.SetLogToConsole(False)
        else:
            registration = NIRRegistrationMethod.New(fixed.GetOutput(), moving.GetOutput(), **AFFINE)
        median = itk.MedianImageFilter.New(registration.GetOutput(), Radius=1)
        median.Update()
        results[name] = array(median)
        registration.UpdateLargestPossibleRegion()
        fixed_array = array(fixed)
    similarity = {k: np.corrcoef(v.ravel(), fixed_array.ravel())[0, 1] for k, v in results.items()}
    assert results["ours"].shape == results["elastix"].shape == fixed_array.shape
    assert min(similarity.values()) > 0.8


# --- events ----------------------------------------------------------------------------------------------------------


def test_observers_hear_in_order_with_live_values(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New()
    log: list[Any] = []
    # Before there is an image, so before there is a C++ filter.
    registration.AddObserver(itk.StartEvent(), lambda: log.append("start"))
    registration.AddObserver(itk.EndEvent(), lambda: log.append("end"))
    registration.AddObserver(
        itk.MultiResolutionIterationEvent(), lambda: log.append(("level", registration.GetCurrentLevel()))
    )
    registration.AddObserver(
        itk.IterationEvent(),
        lambda: log.append((registration.GetCurrentLevel(), registration.GetCurrentIteration())),
    )
    progress: list[float] = []
    metric: list[float] = []
    registration.AddObserver(itk.ProgressEvent(), lambda: progress.append(registration.GetProgress()))
    registration.AddObserver(itk.IterationEvent(), lambda: metric.append(registration.GetMetricValue()))
    registration.AddObserver(itk.AbortEvent(), lambda: log.append("abort"))
    for name, value in QUICK.items():
        getattr(registration, "Set" + name.capitalize())(value)
    registration.SetFixedImage(pair[0])
    registration.SetMovingImage(pair[1])
    assert registration.GetCurrentStage() == ""
    registration.Update()
    assert log == [
        "start", ("level", 0), (0, 0), (0, 1), (0, 2), ("level", 1), (1, 0), (1, 1), ("level", 2), (2, 0), "end",
    ]  # fmt: skip
    assert progress == sorted(progress)
    assert progress[-1] == 1
    trace = registration.GetResult().report.trace
    assert metric == [t.metric for t in trace]
    assert registration.GetCurrentStage() == "sampling"


def test_observers_can_be_taken_away(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    left, gone = runs_of(registration), []
    tag = registration.AddObserver(itk.EndEvent(), lambda: gone.append(1))
    assert registration.HasObserver(itk.EndEvent())
    assert not registration.HasObserver(itk.AbortEvent())
    registration.RemoveObserver(tag)
    registration.Update()
    assert (len(left), gone) == (1, [])
    registration.RemoveAllObservers()
    assert not registration.HasObserver(itk.EndEvent())
    registration.Modified()
    registration.Update()
    assert len(left) == 1


@pytest.mark.parametrize("event", ["Start", "MultiResolutionIteration", "Iteration", "Progress"])
def test_abort_within_one_iteration(pair: tuple[Any, Any], event: str) -> None:
    registration = NIRRegistrationMethod.New(*pair, **{**QUICK, "iterations": (50, 50, 50)})
    log: list[str] = []

    def abort() -> None:
        log.append("asked")
        registration.AbortGenerateDataOn()

    tag = registration.AddObserver(getattr(itk, f"{event}Event")(), abort)
    registration.AddObserver(itk.IterationEvent(), lambda: log.append("iteration"))
    registration.AddObserver(itk.AbortEvent(), lambda: log.append("abort"))
    registration.AddObserver(itk.EndEvent(), lambda: log.append("end"))
    with pytest.raises(RegistrationCancelled, match="aborted by AbortGenerateDataOn"):
        registration.Update()
    assert log[-1] == "abort"
    assert log.count("abort") == 1
    assert log.count("asked") == 1
    assert log.count("iteration") <= 1
    assert "end" not in log
    with pytest.raises(ItkNirError, match="call Update"):
        registration.GetTransform()
    # The request is spent, and nothing half-done counts as done.
    registration.RemoveObserver(tag)
    registration.SetIterations((2, 1, 1))
    registration.Update()
    assert log[-1] == "end"
    assert registration.GetTransform() is not None


def test_abort_from_downstream(pair: tuple[Any, Any], capfd: pytest.CaptureFixture[str]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    downstream = shift(registration)
    tag = registration.AddObserver(itk.IterationEvent(), registration.AbortGenerateDataOn)
    with pytest.raises(RuntimeError):  # ITK's
        downstream.Update()
    assert "RegistrationCancelled: registration: aborted" in capfd.readouterr().err
    registration.RemoveObserver(tag)
    runs = runs_of(registration)
    downstream.ResetPipeline()  # as after any failure in ITK
    downstream.Update()
    assert len(runs) == 1


def test_a_callback_that_returns_true_keeps_the_best_so_far(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    registration.SetCallback(lambda progress: progress.iteration == 1)
    registration.Update()
    assert registration.GetResult().report.stop == "cancelled"
    assert np.ptp(array(registration)) > 50


# --- exceptions ------------------------------------------------------------------------------------------------------


def test_exceptions_come_out_as_themselves_and_quietly(
    pair: tuple[Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    hook = sys.excepthook
    flat = itk.image_duplicator(pair[1])
    flat.FillBuffer(7.0)
    registration = NIRRegistrationMethod.New(pair[0], flat, **QUICK)
    with pytest.raises(InputError, match=r"moving image.*constant"):
        registration.Update()
    registration.SetMovingImage(pair[1])
    registration.SetLinear("helical")
    with pytest.raises(OptionError, match="helical"):
        registration.Update()
    registration.SetLinear("none")
    registration.SetRadius("wide")
    with pytest.raises(OptionError, match="radius"):
        registration.Update()
    registration.SetRadius((3, 3, 3))
    registration.Update()
    assert sys.excepthook is hook
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("event", ["Start", "MultiResolutionIteration", "Iteration", "Progress", "End"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_what_an_observer_raises_stops_and_comes_out(
    pair: tuple[Any, Any], event: str, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    steps: list[int] = []

    def fail() -> None:
        raise error("from the observer")

    tag = registration.AddObserver(getattr(itk, f"{event}Event")(), fail)
    registration.AddObserver(itk.IterationEvent(), lambda: steps.append(1))
    with pytest.raises(error, match="from the observer"):
        registration.Update()
    assert len(steps) <= 1 or event == "End"
    assert capfd.readouterr().err == ""
    registration.RemoveObserver(tag)
    registration.Modified()
    registration.Update()


def test_an_upstream_failure_comes_out(pair: tuple[Any, Any]) -> None:
    reader = itk.ImageFileReader[itk.Image[itk.F, 2]].New(FileName="no_such_file.nii.gz")
    registration = NIRRegistrationMethod.New(reader, pair[1], **QUICK)
    with pytest.raises(RuntimeError, match="no_such_file"):
        registration.Update()
    registration.SetFixedImage(pair[0])
    registration.Update()
    assert registration.GetTransform() is not None


def test_a_failure_below_is_told_in_one_line(pair: tuple[Any, Any], capfd: pytest.CaptureFixture[str]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK, radius="wide")
    downstream = shift(registration)
    with pytest.raises(RuntimeError):
        downstream.Update()
    del registration, downstream
    gc.collect()
    assert not kept
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("itk-nir: registration failed: OptionError: ")


def test_what_cannot_be_registered_is_refused_at_once(pair: tuple[Any, Any]) -> None:
    new = NIRRegistrationMethod.New
    with pytest.raises(InputError, match=r"fixed image: got str; .*itk\.imread"):
        new("fixed.nii.gz", pair[1])
    with pytest.raises(InputError, match="fixed image: got str"):
        new(*pair).SetFixedImage("fixed.nii.gz")
    with pytest.raises(InputError, match="moving image: is 3D, but this filter is 2D"):
        new(pair[0], make_pair(3)[1])
    with pytest.raises(InputError, match="fixed image: is 4D"):
        new(itk.Image[itk.F, 4].New())
    for pixel in (itk.RGBPixel[itk.UC], itk.complex[itk.F], itk.Vector[itk.F, 2]):
        with pytest.raises(InputError, match="moving image: has pixels of type"):
            new(pair[0], itk.Image[pixel, 2].New())
    with pytest.raises(InputError, match="has no moving image; call SetMovingImage"):
        new(pair[0]).Update()
    with pytest.raises(InputError, match="has no fixed image; call SetFixedImage"):
        new().Update()
    with pytest.raises(InputError, match="its dimension is not known yet"):
        new().GetOutput()
    with pytest.raises(ItkNirError, match="nothing has been registered yet"):
        new(*pair).GetInverseTransform()


# --- options ---------------------------------------------------------------------------------------------------------


def test_every_option_has_a_set_and_a_get() -> None:
    registration = NIRRegistrationMethod.New()
    for preset in PRESETS:
        registration.SetPreset(preset)
        for name, value in options_of(preset).items():
            camel = "".join(part.capitalize() for part in name.split("_"))
            assert f"Set{camel}" in dir(registration)
            assert getattr(registration, f"Get{camel}")() == value
            getattr(registration, f"Set{camel}")(value)
    for name in ("Preset", "Linear", "FixedMask", "MovingMask", "InitialTransform", "Seed", "Device", "Threads"):
        assert {f"Set{name}", f"Get{name}"} <= set(dir(registration))
    assert registration.GetDevice() == "auto"
    registration.SetThreads(2)
    assert registration.GetThreads() == 2
    assert registration.GetFixedMask() is None


def test_both_spellings(pair: tuple[Any, Any]) -> None:
    one = NIRRegistrationMethod.New(*pair, preset="fast", learning_rates=0.3, fixed_mask=mask_of(pair[0]))
    other = NIRRegistrationMethod.New(
        FixedImage=pair[0], MovingImage=pair[1], Preset="fast", LearningRates=0.3, FixedMask=one.GetFixedMask()
    )
    for name in ("Preset", "LearningRates", "FixedImage", "FixedMask"):
        assert getattr(one, f"Get{name}")() is getattr(other, f"Get{name}")()


def test_the_metric_is_a_name_a_sum_or_an_object(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    values = {}
    for metric in ("lncc", "0.5*nmi + 0.5*lncc", MutualInformation(16), MutualInformation(64)):
        registration.SetMetric(metric)
        assert registration.GetMetric() is metric
        registration.Update()
        told = registration.GetResult().report.settings["deformable"]["metric"]
        assert told == (metric if isinstance(metric, str) else dataclasses.asdict(metric))
        values[metric] = registration.GetMetricValue()
    assert len({*values.values()}) == 4
    registration.SetMetric("0.5*nmi + 0.5*lnc")
    with pytest.raises(OptionError, match="metric must be one of"):
        registration.Update()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("SetPresett", "SetPreset"), ("SetLearningRate", "SetLearningRates"), ("GetTransfrom", "GetTransform")],
)
def test_an_unknown_name_is_an_attribute_error(name: str, nearest: str) -> None:
    with pytest.raises(AttributeError, match=f"has no '{name}', did you mean '{nearest}'"):
        getattr(NIRRegistrationMethod.New(), name)


def test_methods_of_other_filters_are_translated() -> None:
    """The docs' table is made of the data that messages come from, and names what there is."""
    assert method_table() in (DOCS / "coming_from_itk.md").read_text(encoding="utf-8")
    registration = NIRRegistrationMethod.New()
    for theirs, here in (names for one in COUNTERPARTS for names in one.methods):
        assert here in dir(registration)
        assert theirs == here or not hasattr(registration, theirs)
    with pytest.raises(AttributeError, match=r"has no 'SetShrinkFactorsPerLevel'; here it is SetShrinkFactors$"):
        registration.SetShrinkFactorsPerLevel([4, 2, 1])
    with pytest.raises(AttributeError, match=r"has no 'SetOptimizer': SetPreset and its options choose it$"):
        registration.SetOptimizer(None)


def test_methods_of_before_have_another_name() -> None:
    registration = NIRRegistrationMethod.New()
    for old, now, value in (("Steps", "Iterations", (3, 2, 1)), ("LatticeSpacing", "GridSpacing", (2.0, 4.0, 8.0))):
        assert f"Set{old}" not in dir(registration)
        with pytest.warns(DeprecationWarning, match=f"NIRRegistrationMethod.Set{old} is called Set{now} since") as seen:
            getattr(registration, f"Set{old}")(value)
        with pytest.warns(DeprecationWarning, match=f"NIRRegistrationMethod.Get{old} is called Get{now} since"):
            assert getattr(registration, f"Get{old}")() == value
        assert [w.filename for w in seen] == [__file__]
        assert getattr(registration, f"Get{now}")() == value
    with pytest.warns(DeprecationWarning, match="SetSteps is called SetIterations") as seen:
        assert NIRRegistrationMethod.New(steps=7).GetIterations() == 7
    assert [w.filename for w in seen] == [__file__]


def test_options_are_methods_with_a_name_and_a_meaning() -> None:
    registration = NIRRegistrationMethod.New()
    for camel, option in option_table().items():
        for verb in ("Set", "Get"):
            method = getattr(registration, verb + camel)
            assert method.__name__ == verb + camel
            assert option.name in method.__doc__ or camel == "InitialTransform"
            assert option.help in method.__doc__
        assert bool(option.help) or not option.of_preset


def test_an_unknown_option_is_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(AttributeError, match="did you mean 'SetSeed'"):
        NIRRegistrationMethod.New(*pair, sed=3)
    with pytest.raises(OptionError, match="did you mean 'fast'"):
        NIRRegistrationMethod.New(*pair, preset="fsat")


def test_it_is_instantiated_as_itk_classes_are(pair: tuple[Any, Any]) -> None:
    kind = NIRRegistrationMethod[itk.Image[itk.F, 2], itk.Image[itk.US, 2]]
    registration = kind.New(*pair, **QUICK)
    assert isinstance(registration, NIRRegistrationMethod)
    assert registration.GetNameOfClass() == "NIRRegistrationMethod"
    assert type(kind.New().GetOutput()) is itk.Image[itk.F, 2]
    with pytest.raises(InputError, match="is 2D, but this filter is 3D"):
        NIRRegistrationMethod[itk.Image[itk.F, 3]].New(pair[0])
    for types in ((itk.Image[itk.F, 2], itk.Image[itk.F, 3]), itk.Image[itk.F, 4], int, itk.Vector[itk.F, 3]):
        with pytest.raises(InputError):
            NIRRegistrationMethod[types]


# --- who outlives whom -----------------------------------------------------------------------------------------------


def build(pair: tuple[Any, Any], observe: bool = False) -> tuple[Any, list[int]]:
    """A pipeline whose registration has no name after this."""
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    runs: list[int] = []

    def ended() -> None:
        assert registration.GetProgress() <= 1  # a cycle: it takes the garbage collector to end this one
        runs.append(1)

    registration.AddObserver(itk.EndEvent(), ended if observe else lambda: runs.append(1))
    return itk.MedianImageFilter.New(registration, Radius=0), runs


def sweeps() -> int:
    """How often the garbage collector calls this package."""
    return len([c for c in gc.callbacks if c.__module__.startswith("itk_nir.")])


@pytest.mark.parametrize("observe", [False, True])
def test_a_registration_lives_as_long_as_what_is_downstream(pair: tuple[Any, Any], observe: bool) -> None:
    downstream, runs = build(pair, observe)
    gc.collect()
    assert len(kept) == 1
    assert sweeps() == 1
    downstream.Update()
    assert len(runs) == 1
    assert np.array_equal(array(downstream), itk_nir.register(*pair, **QUICK).warped_array)
    pair[1].Modified()
    downstream.Update()
    downstream.Update()
    assert len(runs) == 2
    inside = weakref.ref(next(iter(kept)).link)
    del downstream
    gc.collect()
    assert not kept
    gc.collect()  # the cycle through the observer
    assert inside() is None  # the C++ filter held it
    assert sweeps() == 0


def test_a_chain_of_registrations_goes_as_a_whole(pair: tuple[Any, Any]) -> None:
    first = NIRRegistrationMethod.New(*pair, **QUICK)
    second = NIRRegistrationMethod.New(pair[0], first, **QUICK)
    end = shift(second)
    del first, second
    gc.collect()
    assert len(kept) >= 1
    end.Update()
    del end
    gc.collect()
    assert not kept


def test_what_is_upstream_of_one_that_goes_may_stay(pair: tuple[Any, Any]) -> None:
    first = NIRRegistrationMethod.New(*pair, **QUICK)
    second = NIRRegistrationMethod.New(pair[0], first, **QUICK)
    end, other = shift(second), shift(first)
    del first, second
    gc.collect()
    assert (len(kept), sweeps()) == (1, 1)  # the second, which holds the first
    del end
    gc.collect()
    assert (len(kept), sweeps()) == (1, 1)  # the first
    other.Update()
    del other
    gc.collect()
    assert (len(kept), sweeps()) == (0, 0)


def links() -> set[int]:
    """What the C++ filters that there are call in Python."""
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, Link)}


def test_without_anything_downstream_nothing_lingers(pair: tuple[Any, Any]) -> None:
    """No cycle through C++, which no garbage collector would see: all goes with the last name, at once."""
    before = links()
    registration = NIRRegistrationMethod.New(*pair, **QUICK, initial_transform=itk.AffineTransform[itk.D, 2].New())
    registration.AddObserver(itk.ProgressEvent(), lambda: None)
    registration.Update()
    result = weakref.ref(registration.GetResult())
    deleted: list[int] = []
    registration.GetOutput().GetSource().AddObserver(itk.DeleteEvent(), lambda: deleted.append(1))
    assert len(links() - before) == 1
    gc.disable()
    try:
        del registration
        assert deleted == [1]
        assert links() == before
        assert result() is None
    finally:
        gc.enable()
    assert not kept


def test_a_failure_leaves_nothing_behind(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK, radius="wide")
    with pytest.raises(OptionError):
        registration.Update()
    gone = weakref.ref(registration)
    del registration
    gc.collect()
    assert gone() is None
    assert not kept


def test_an_initial_transform_forgets_the_filter(pair: tuple[Any, Any]) -> None:
    start = itk.AffineTransform[itk.D, 2].New()
    registration = NIRRegistrationMethod.New(*pair, **QUICK, initial_transform=start)
    assert start.HasObserver(itk.ModifiedEvent())
    registration.SetInitialTransform(None)
    assert not start.HasObserver(itk.ModifiedEvent())
    registration.SetInitialTransform(start)
    del registration
    gc.collect()
    assert not start.HasObserver(itk.ModifiedEvent())
    start.Translate([1.0, 0.0])


def test_the_output_outlives_the_filter(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    registration.Update()
    image = registration.GetOutput()
    wanted = array(image)
    del registration
    gc.collect()
    assert np.array_equal(array(itk.median_image_filter(image, radius=0)), wanted)
    del image
    gc.collect()
    assert not kept


def test_a_c_plus_plus_filter_without_its_python_object_does_not_crash(pair: tuple[Any, Any]) -> None:
    registration = NIRRegistrationMethod.New(*pair, **QUICK)
    inner = registration.GetOutput().GetSource()
    del registration
    gc.collect()
    with pytest.raises(RuntimeError):
        inner.Update()


def test_importing_is_light() -> None:
    script = """
import sys
from itk_nir.compat.itk import NIRRegistrationMethod, nir_registration_method
NIRRegistrationMethod.New()
print(*sorted({"itk", "torch", "SimpleITK"} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENV)
    assert (out.returncode, out.stdout.strip()) == (0, ""), out.stderr


def test_the_interpreter_ends_well_with_pipelines_alive() -> None:
    script = """
import gc, itk, numpy as np
from itk_nir.compat.itk import NIRRegistrationMethod
rng = np.random.default_rng(0)
fixed, moving = (itk.image_from_array(rng.random((24, 24)).astype(np.float32)) for _ in range(2))
options = dict(preset="fast", iterations=(1, 1, 1), linear="none", threads=1, device="cpu")
named = NIRRegistrationMethod.New(fixed, moving, **options)
named.AddObserver(itk.EndEvent(), lambda: named.GetProgress())
named.AddObserver(itk.DeleteEvent(), lambda: print("gone"))
downstream = NIRRegistrationMethod.New(fixed, NIRRegistrationMethod.New(fixed, named, **options), **options)
gc.collect()
downstream.Update()
print("done")
"""
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=ENV)
    assert out.returncode == 0, out.stderr
    assert "done" in out.stdout.splitlines()
    assert out.stderr == ""


# --- docs ------------------------------------------------------------------------------------------------------------


@BOTH
def test_the_page_for_itk_users(
    d: int, pairs: dict[int, tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("fixed", "moving"), pairs[d], strict=True):
        itk.imwrite(image, f"{name}.nii.gz")
    for name in ("NIRRegistrationMethod", "nir_registration_method"):  # whatever is installed, and without loading it
        monkeypatch.setitem(vars(itk), name, getattr(itk_nir.compat.itk, name))
    names = run_blocks("coming_from_itk.md", {"QUICK": QUICK}, without=() if d == 3 else ("3d",))
    assert np.ptp(array(names["warped"])) > 50
    assert (tmp_path / "warped.nii.gz").exists()

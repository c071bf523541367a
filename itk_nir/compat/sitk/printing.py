"""What is printed of the method: SimpleITK's lines, in their order, and below them what its setters were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from itk_nir.compat.sitk.run import events

if TYPE_CHECKING:
    from itk_nir.compat.sitk.method import ImageRegistrationMethod
    from itk_nir.compat.sitk.options import Setup

#: SimpleITK's interpolators that are common; the others print their number.
_INTERPOLATORS = (
    "NearestNeighbor", "Linear", "BSpline", "Gaussian", "LabelGaussian", "HammingWindowedSinc", "CosineWindowedSinc",
    "WelchWindowedSinc", "LanczosWindowedSinc", "BlackmanWindowedSinc",
)  # fmt: skip
#: What stands where nothing was set, SimpleITK's word.
_NONE = "(none)"


def printed(method: ImageRegistrationMethod, setup: Setup, masks: tuple[Any, Any], commands: list[int]) -> str:
    """All settings of a method, one a line.

    Parameters
    ----------
    method : ImageRegistrationMethod
        The method.
    setup : Setup
        What its setters were told.
    masks : tuple of object
        Of the fixed and the moving image, None where there is none.
    commands : list of int
        The events that have commands.

    Returns
    -------
    str
    """
    names = {number: name.removeprefix("sitk") for name, number in events().items()}
    listed = "".join(f"\n    Event: {names.get(event, event)} Command: Command" for event in commands)
    metric = setup.metric or setup.options.get("metric")
    lines = [
        "itk::simpleImageRegistrationMethod",
        f"  Debug: {int(method.GetDebug())}",
        f"  NumberOfThreads: {method.GetNumberOfThreads()}",
        f"  NumberOfWorkUnits: {method.GetNumberOfWorkUnits()}",
        f"  Commands:{listed or f' {_NONE}'}",
        f"  ProgressMeasurement: {method.GetProgress():g}",
        f"  ActiveProcess: {_NONE}",
        f"  Interpolator: {_interpolator(method.GetInterpolator())}",
        f"  Transform: {str(method.GetInitialTransform()).rstrip()}",
        f"  InitialTransformInPlace: {int(method.GetInitialTransformInPlace())}",
        f"  MovingInitialTransform: {str(method.GetMovingInitialTransform()).rstrip()}",
        f"  Metric: {_shown(metric)}",
        f"  MetricRadius: {_shown(setup.radius)}",
        f"  MetricFixedMask: {_image(masks[0])}",
        f"  MetricMovingMask: {_image(masks[1])}",
        f"  MetricSamplingPercentagePerLevel: {list(method.GetMetricSamplingPercentagePerLevel())}",
        f"  MetricSamplingSeed: {_shown(setup.seed)}",
        f"  Optimizer: {setup.optimiser if setup.exhaustive is None else 'Exhaustive'}",
        f"  OptimizerIterations: {_shown(setup.iterations)}",
        f"  OptimizerScales: {_shown(setup.scales)}",
        f"  OptimizerWeights: {_shown(setup.weights)}",
        f"  ShrinkFactorsPerLevel: {_shown(setup.shrink_factors)}",
        f"  SmoothingSigmasPerLevel: {_shown(setup.sigmas)}",
        f"  SmoothingSigmasAreSpecifiedInPhysicalUnits: {int(setup.sigmas_in_mm)}",
        f"  Preset: {setup.preset if isinstance(setup.preset, str) else 'Settings'}",
        *(f"  {name}: {value}" for name, value in setup.options.items() if name != "metric"),
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    """A value, or what stands for none of SimpleITK's."""
    if value is None or value == ():
        return _NONE
    return str(list(value) if isinstance(value, tuple) else value)


def _image(image: Any) -> str:
    """An image by its size, where it tells one: its own text is as long as this whole list."""
    if image is None:
        return _NONE
    size = getattr(image, "GetSize", None)
    return f"image of size {list(size())}" if callable(size) else str(image) if isinstance(image, str) else "image"


def _interpolator(number: int) -> str:
    import SimpleITK as sitk

    return next((name for name in _INTERPOLATORS if getattr(sitk, f"sitk{name}", None) == number), str(number))

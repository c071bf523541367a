"""The class: SimpleITK's setters, and the call of `register` that they lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.options import (
    Device,
    engine_options,
    level_options,
    mutual_information,
    refused,
    register_arguments,
)
from itk_nir.compat.sitk.measure import similarity
from itk_nir.compat.sitk.options import OPTIMISERS, OPTIONS, Setup, optimiser_signature, register_options
from itk_nir.compat.sitk.run import ObservedRegistration, Run
from itk_nir.compat.sitk.transforms import TransformModel, as_composite, checked_transform
from itk_nir.errors import InputError, ItkNirError, OptionError, RegistrationCancelled
from itk_nir.images import Volume, load_image, refuse_slices
from itk_nir.options import SYNONYMS, nearest_name, whole_number
from itk_nir.transforms.model import CompositeTransform, LinearTransform

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult
    from itk_nir.settings import Settings

#: Arguments of `register` that the methods set.
SET_BY_METHODS = {
    "linear",
    "deformable",
    "fixed_mask",
    "moving_mask",
    "initial_transform",
    "callback",
    "preset",
    "device",
}


class ImageRegistrationMethod(ObservedRegistration):
    """``SimpleITK.ImageRegistrationMethod`` with this engine; see `OPTIONS` for what each method does.

    Parameters
    ----------
    preset : str or Settings
        As of `itk_nir.register`.
    device : str
        As of `itk_nir.register`.
    **options
        Other arguments of `itk_nir.register` and options of the preset, public and expert ones; what the setters say
        goes before them.

    Raises
    ------
    OptionError
        An option that does not exist, a setting that is refused or has a value it cannot have.
    InputError
        Images, masks or transforms that cannot be used; said before any work begins.

    Examples
    --------
    >>> from itk_nir.compat.sitk import ImageRegistrationMethod
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> method = ImageRegistrationMethod(preset="fast", iterations=2)
    >>> method.SetMetricAsANTSNeighborhoodCorrelation(4)
    >>> transform = method.Execute(fixed, moving)
    >>> transform.GetName(), method.result.warped.GetSize()
    ('CompositeTransform', (48, 56))
    """

    #: Values of SimpleITK's enumerations, under its names.
    NONE, REGULAR, RANDOM = 0, 1, 2
    Never: int = 0
    Once: int = 1
    EachIteration: int = 2

    def __init__(self, *, preset: str | Settings = "default", device: Device = "auto", **options: Any) -> None:
        super().__init__()
        from itk_nir.settings import present_names

        options = present_names(preset, options)
        allowed = sorted(engine_options(preset) - SET_BY_METHODS)
        for name in options:
            if name not in allowed:
                hint = nearest_name(name, allowed, SYNONYMS)
                raise OptionError(f"unknown option {name!r}{hint}; set the rest by its methods")
        self._device = device
        self._setup = Setup(preset, options)
        self._initial: Any = None
        self._in_place = True
        self._moving_initial: Any = None
        self._fixed_mask: Any = None
        self._moving_mask: Any = None
        self._percentages: tuple[float, ...] = (1.0,)
        self._result: RegistrationResult | None = None

    def __getattr__(self, name: str) -> Any:
        # Only for names that the class lacks: those of SimpleITK's class that are refused, and what does not exist.
        import SimpleITK as sitk

        theirs = [n for n in dir(sitk.ImageRegistrationMethod) if not n.startswith("_") and n != "thisown"]
        if name in theirs:
            support = OPTIONS.get(name, refused("settings of the whole process are not touched"))

            def refuse(*_: Any, **__: Any) -> None:
                raise support.refusal(name)

            return refuse
        raise AttributeError(f"ImageRegistrationMethod has no method {name!r}{nearest_name(name, theirs)}")

    # --- transforms --------------------------------------------------------------------------------------------------

    def SetInitialTransform(self, transform: Any, inPlace: bool = True) -> None:
        """What to optimise and where from. In place, `transform` itself becomes the result of `Execute`."""
        self._initial, self._in_place = checked_transform(transform, "SetInitialTransform"), bool(inPlace)

    def SetInitialTransformAsBSpline(
        self, transform: Any, inPlace: bool = True, scaleFactors: Sequence[int] = ()
    ) -> None:
        """A B-spline to start from; the result is a displacement field."""
        if any(f != 1 for f in scaleFactors):
            raise OptionError(
                f"SetInitialTransformAsBSpline: scaleFactors={list(scaleFactors)} is refused, the deformation has "
                "levels of its own; leave them out"
            )
        self.SetInitialTransform(transform, inPlace)

    def GetInitialTransform(self) -> Any:
        """What was given, None before."""
        return self._initial

    def GetInitialTransformInPlace(self) -> bool:
        """Whether the initial transform becomes the result."""
        return self._in_place

    def SetMovingInitialTransform(self, transform: Any) -> None:
        """Applied after the optimised transform: fixed -> optimised -> this -> moving. Not part of what is returned."""
        self._moving_initial = checked_transform(transform, "SetMovingInitialTransform")

    def GetMovingInitialTransform(self) -> Any:
        """What was given, None before."""
        return self._moving_initial

    def SetFixedInitialTransform(self, transform: Any) -> None:
        """The identity only."""
        if not as_composite(checked_transform(transform, "SetFixedInitialTransform"), None).is_identity:
            raise OPTIONS["SetFixedInitialTransform"].refusal("SetFixedInitialTransform")

    def GetFixedInitialTransform(self) -> Any:
        """The identity."""
        import SimpleITK as sitk

        return sitk.Transform()

    # --- metric ------------------------------------------------------------------------------------------------------

    def SetMetricAsANTSNeighborhoodCorrelation(self, radius: int) -> None:
        """Metric ``"lncc"``, squared local correlation; `radius` in voxels of the level."""
        number = whole_number(radius)
        if number is None or number < 1:
            raise OptionError(f"SetMetricAsANTSNeighborhoodCorrelation: radius is at least 1, got {radius!r}")
        self._set_metric("lncc", number)

    def SetMetricAsCorrelation(self) -> None:
        """Metric ``"ncc"``, correlation of the whole images, with its sign."""
        self._set_metric("ncc")

    def SetMetricAsMeanSquares(self) -> None:
        """Metric ``"mse"``, mean squares."""
        self._set_metric("mse")

    def SetMetricAsDemons(self, intensityDifferenceThreshold: float = 0.001) -> None:
        """Metric ``"mse"``, mean squares, whatever the threshold."""
        self._set_metric("mse")

    def SetMetricAsMattesMutualInformation(self, numberOfHistogramBins: int = 50) -> None:
        """Metric ``"nmi"``, normalised mutual information, with so many bins (4 to 128)."""
        self._set_metric(
            mutual_information(numberOfHistogramBins, "SetMetricAsMattesMutualInformation: numberOfHistogramBins")
        )

    def SetMetricAsJointHistogramMutualInformation(
        self, numberOfHistogramBins: int = 20, varianceForJointPDFSmoothing: float = 1.5
    ) -> None:
        """Metric ``"nmi"``, normalised mutual information, with so many bins (4 to 128), whatever the variance."""
        self._set_metric(
            mutual_information(
                numberOfHistogramBins, "SetMetricAsJointHistogramMutualInformation: numberOfHistogramBins"
            )
        )

    def _set_metric(self, metric: Any, radius: int | None = None) -> None:
        self._setup.metric, self._setup.radius = metric, radius

    def SetMetricFixedMask(self, binaryMask: Any) -> None:
        """An image above 0 where the fixed image counts, on any grid."""
        self._fixed_mask = binaryMask

    def SetMetricMovingMask(self, binaryMask: Any) -> None:
        """An image above 0 where the moving image counts, on any grid."""
        self._moving_mask = binaryMask

    def SetMetricSamplingStrategy(self, strategy: int) -> None:
        """`NONE`, `REGULAR` or `RANDOM`: all voxels are used."""
        if strategy not in (self.NONE, self.REGULAR, self.RANDOM):
            raise OptionError(f"SetMetricSamplingStrategy takes NONE, REGULAR or RANDOM, got {strategy!r}")

    def SetMetricSamplingPercentage(self, percentage: float, seed: int = 0) -> None:
        """All voxels are used, whatever the share; `seed` is the seed of the registration."""
        self.SetMetricSamplingPercentagePerLevel((percentage,), seed)

    def SetMetricSamplingPercentagePerLevel(self, percentage: Sequence[float], seed: int = 0) -> None:
        """All voxels are used, whatever the shares; `seed` is the seed of the registration."""
        values = tuple(float(p) for p in percentage)
        if not values or not all(0 < p <= 1 for p in values):
            raise OptionError(f"sampling percentages are above 0 and at most 1, got {list(percentage)}")
        self._percentages, self._setup.seed = values, int(seed)

    def GetMetricSamplingPercentagePerLevel(self) -> tuple[float, ...]:
        """What was given, (1.0,) before."""
        return self._percentages

    def MetricUseFixedImageGradientFilterOff(self) -> None:
        """What happens anyway."""

    def MetricUseMovingImageGradientFilterOff(self) -> None:
        """What happens anyway."""

    def SetMetricUseFixedImageGradientFilter(self, value: bool) -> None:
        """False only."""
        if value:
            self.MetricUseFixedImageGradientFilterOn()

    def SetMetricUseMovingImageGradientFilter(self, value: bool) -> None:
        """False only."""
        if value:
            self.MetricUseMovingImageGradientFilterOn()

    # --- optimiser (the methods of OPTIMISERS are added below) -------------------------------------------------------

    def SetOptimizerScalesFromPhysicalShift(
        self, centralRegionRadius: int = 5, smallParameterVariation: float = 0.01
    ) -> None:
        """What happens anyway: parameters are in mm."""

    def SetOptimizerScalesFromIndexShift(
        self, centralRegionRadius: int = 5, smallParameterVariation: float = 0.01
    ) -> None:
        """Parameters are in mm, as with `SetOptimizerScalesFromPhysicalShift`."""

    def SetOptimizerScalesFromJacobian(self, centralRegionRadius: int = 5) -> None:
        """Parameters are in mm, as with `SetOptimizerScalesFromPhysicalShift`."""

    def SetOptimizerWeights(self, weights: Sequence[float]) -> None:
        """Empty, or ones only."""
        if any(w != 1 for w in weights):
            raise OPTIONS["SetOptimizerWeights"].refusal("SetOptimizerWeights")

    # --- levels, interpolation, threads ------------------------------------------------------------------------------

    def SetShrinkFactorsPerLevel(self, shrinkFactors: Sequence[int]) -> None:
        """Coarsest first, in voxels of the fixed image along its finest axis; coarser axes are shrunk less."""
        level_options("default", shrinkFactors)
        self._setup.shrink_factors = tuple(int(f) for f in shrinkFactors)

    def SetSmoothingSigmasPerLevel(self, smoothingSigmas: Sequence[float]) -> None:
        """One a level; mm, or voxels after `SmoothingSigmasAreSpecifiedInPhysicalUnitsOff`."""
        values = tuple(float(s) for s in smoothingSigmas)
        if not all(0 <= s < np.inf for s in values):
            raise OptionError(f"SetSmoothingSigmasPerLevel: sigmas are not negative, got {list(smoothingSigmas)}")
        self._setup.sigmas = values

    def SetSmoothingSigmasAreSpecifiedInPhysicalUnits(self, arg: bool) -> None:
        """Whether the sigmas are mm, else voxels of the fixed image along its finest axis."""
        self._setup.sigmas_in_mm = bool(arg)

    def SmoothingSigmasAreSpecifiedInPhysicalUnitsOn(self) -> None:
        """The sigmas are mm."""
        self._setup.sigmas_in_mm = True

    def SmoothingSigmasAreSpecifiedInPhysicalUnitsOff(self) -> None:
        """The sigmas are voxels of the fixed image along its finest axis."""
        self._setup.sigmas_in_mm = False

    def SetInterpolator(self, interpolator: int) -> None:
        """``sitk.sitkLinear``."""
        if interpolator != self.GetInterpolator():
            raise OPTIONS["SetInterpolator"].refusal(f"SetInterpolator({interpolator!r})")

    def GetInterpolator(self) -> int:
        """``sitk.sitkLinear``."""
        import SimpleITK as sitk

        return int(sitk.sitkLinear)

    def SetNumberOfThreads(self, n: int) -> None:
        """CPU threads; 0 means all that the process may use. Results do not depend on it."""
        number = whole_number(n)
        if number is None or number < 0:
            raise OptionError(f"SetNumberOfThreads takes a whole number that is not negative, got {n!r}")
        self._setup.threads = number

    def GetNumberOfThreads(self) -> int:
        """What was given, 0 before."""
        return self._setup.threads

    # --- the work ----------------------------------------------------------------------------------------------------

    @property
    def result(self) -> RegistrationResult:
        """Everything about the last `Execute`: inverse, report, files.

        Its transform is the whole map, with the moving initial transform.
        """
        if self._result is None:
            raise ItkNirError("there is no result yet; call Execute first")
        return self._result

    def Execute(self, fixed: Any, moving: Any) -> Any:
        """Register.

        Parameters
        ----------
        fixed, moving : SimpleITK.Image
            Or anything that `itk_nir.register` takes, of any real scalar pixel type.

        Returns
        -------
        SimpleITK.Transform
            The optimised transform, fixed -> moving, without the moving initial transform: the object that was given in
            place, else a ``sitk.CompositeTransform``; a ``sitk.DisplacementFieldTransform`` for a B-spline in place.

        Raises
        ------
        RegistrationCancelled
            After `Abort`.
        """
        from itk_nir.registration import register

        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        refuse_slices(fixed=a.geometry.size, moving=b.geometry.size)
        model, after = self._transforms(a)
        options = register_options(self._setup, model.deformable, a.geometry)
        arguments = register_arguments(self._setup.preset, options)
        run = self._run = Run("deformable" if model.deformable else "linear", a.dimension, self._fire)
        try:
            self._fire("Start")
            result = register(
                a,
                b,
                device=self._device,
                linear=model.linear,
                deformable=model.deformable,
                fixed_mask=self._fixed_mask,
                moving_mask=self._moving_mask,
                initial_transform=model.start(after),
                callback=run.report,
                **arguments,
            )
        finally:
            run.live = False
        if run.ending == "abort":
            self._fire("Abort")
            raise RegistrationCancelled("aborted by Abort(); StopRegistration() keeps what was found so far")
        stopped = run.ending == "stop"
        run.stop_condition = f"itk-nir: {'stopped by StopRegistration' if stopped else result.report.stop}"
        if result.report.similarity is not None and not stopped:
            run.value = -result.report.similarity
        self._result = result
        run.transform = model.deliver(result, after, self._in_place)
        run.progress = 1.0
        self._fire("End")
        return run.transform

    def MetricEvaluate(self, fixed: Any, moving: Any) -> float:
        """The metric of the whole images where the initial transforms take them.

        Parameters
        ----------
        fixed, moving : SimpleITK.Image
            Or anything that `itk_nir.register` takes.

        Returns
        -------
        float
            Minus the similarity under the metric of what is optimised (``"lncc"`` for ``"auto"``): -1 is perfect.

        Raises
        ------
        InputError
            Images that do not overlap where the masks count.
        """
        from itk_nir.checks import match_mask
        from itk_nir.resample import resample_array

        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        refuse_slices(fixed=a.geometry.size, moving=b.geometry.size)
        model, after = self._transforms(a)
        start = model.start(after) or CompositeTransform((LinearTransform.identity(a.dimension),))
        threads = self._setup.allowed_threads
        warped = resample_array(b.array, b.geometry, start, a.geometry, "linear", threads=threads)
        seen = np.ones_like(b.array)
        if self._moving_mask is not None:
            seen = match_mask(load_image(self._moving_mask, "moving mask"), b)[0].array
        inside = resample_array(seen, b.geometry, start, a.geometry, "nearest", threads=threads) > 0.5
        if self._fixed_mask is not None:
            inside &= match_mask(load_image(self._fixed_mask, "fixed mask"), a)[0].array > 0.5
        if not inside.any():
            raise InputError("the images do not overlap where the masks count; check the initial transforms")
        return -similarity(a.array, warped, inside, self._setup, model.deformable)

    def _transforms(self, fixed: Volume) -> tuple[TransformModel, CompositeTransform | None]:
        """What the initial transform asks for, and the moving initial transform."""
        after = None if self._moving_initial is None else as_composite(self._moving_initial, fixed.geometry)
        return TransformModel.of(self._initial, fixed.geometry), after


def _optimiser_method(name: str) -> Callable[..., None]:
    """A method of `OPTIMISERS` with SimpleITK's signature."""
    signature = optimiser_signature(name)

    def method(self: ImageRegistrationMethod, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None
        given.apply_defaults()
        self._setup.set_optimiser(name, {k: v for k, v in given.arguments.items() if k != "self"})

    method.__name__ = name
    method.__qualname__ = f"ImageRegistrationMethod.{name}"
    method.__doc__ = _optimiser_doc(name)
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method


def _optimiser_doc(name: str) -> str:
    """Docstring of a method of `OPTIMISERS`: which of its parameters count."""
    meanings = {
        "numberOfIterations": (
            "numberOfIterations : int\n"
            "    The most iterations of a level" + ("; 0 for the preset's." if name == "SetOptimizerAsLBFGS2" else ".")
        ),
        "maximumStepSizeInPhysicalUnits": (
            "maximumStepSizeInPhysicalUnits : float\n"
            "    The learning rate that a deformation begins with, in mm; 0 for the preset's."
        ),
    }
    counting = [text for parameter, text in meanings.items() if parameter in OPTIMISERS[name]]
    others = ", ".join(parameter for parameter in OPTIMISERS[name] if parameter not in meanings)
    return "\n".join(
        [
            "The engine's own optimiser, at most so many iterations a level.",
            "",
            "Parameters",
            "----------",
            *counting,
            others,
            "    Accepted without effect" + (", but bounds are refused." if "lowerBound" in OPTIMISERS[name] else "."),
        ]
    )


for _name in OPTIMISERS:
    setattr(ImageRegistrationMethod, _name, _optimiser_method(_name))

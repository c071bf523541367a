"""SimpleITK's `ImageRegistrationMethod`, with this engine behind it.

>>> R = itk_nir.compat.sitk.ImageRegistrationMethod()
>>> R.SetMetricAsANTSNeighborhoodCorrelation(4)
>>> transform = R.Execute(fixed, moving)

The class of the initial transform says what is optimised, as in SimpleITK: a rigid or affine transform gives a linear
registration, a displacement field or B-spline a deformable one without a linear stage. Without an initial transform
an affine stage and the deformation run, one after the other.

`OPTIONS` says of every method what becomes of it; ``docs/coming_from_simpleitk.md`` shows the same table.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat import STAND_IN, engine_options, level_options, limited, nearest_name
from itk_nir.errors import InputError, ItkNirError, OptionError, RegistrationCancelled
from itk_nir.images import Volume, load_image
from itk_nir.transforms.model import CompositeTransform, LinearTransform, compose

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.geometry import Geometry
    from itk_nir.result import RegistrationResult

#: Method of SimpleITK's class → (honoured, approximated or refused; what that means). Getters follow their setters.
OPTIONS: dict[str, tuple[str, str]] = {
    "SetInitialTransform": (
        "honoured",
        "its class is what is optimised: Euler, VersorRigid3D → rigid; Affine → affine; DisplacementField, BSpline → "
        "deformable; the last of a composite. Other linear classes (translation, similarity, scale) are refused",
    ),
    "SetInitialTransformAsBSpline": (
        "approximated",
        "the spline is the start; the result is a displacement field, and a spline given in place stays as it was; "
        "scale factors are refused",
    ),
    "SetMovingInitialTransform": ("honoured", "applied after the optimised transform, and no part of what is returned"),
    "SetFixedInitialTransform": (
        "refused",
        "identity only; resample the fixed image, or use SetMovingInitialTransform",
    ),
    "SetVirtualDomain": ("refused", "the fixed image's grid is the virtual domain"),
    "SetVirtualDomainFromImage": ("refused", "the fixed image's grid is the virtual domain"),
    "SetMetricAsANTSNeighborhoodCorrelation": ("honoured", f"{STAND_IN} with this radius, in voxels of the level"),
    "SetMetricAsCorrelation": ("approximated", f"{STAND_IN} with the preset's radius, with a warning"),
    "SetMetricAsMattesMutualInformation": (
        "approximated",
        f"{STAND_IN} with the preset's radius, with a warning; good within one modality, whatever the contrast",
    ),
    "SetMetricAsJointHistogramMutualInformation": ("approximated", "as SetMetricAsMattesMutualInformation"),
    "SetMetricAsMeanSquares": (
        "refused",
        "it compares intensities as such; use SetMetricAsANTSNeighborhoodCorrelation(4)",
    ),
    "SetMetricAsDemons": (
        "refused",
        "it compares intensities as such; use SetMetricAsANTSNeighborhoodCorrelation(4)",
    ),
    "SetMetricFixedMask": ("honoured", "above 0 where the fixed image counts; any grid"),
    "SetMetricMovingMask": ("honoured", "above 0 where the moving image counts; any grid"),
    "SetMetricSamplingStrategy": ("approximated", "all voxels are used, as with NONE"),
    "SetMetricSamplingPercentage": ("approximated", "all voxels are used; the seed is honoured"),
    "SetMetricSamplingPercentagePerLevel": ("approximated", "all voxels are used; the seed is honoured"),
    "MetricUseFixedImageGradientFilterOn": ("refused", "gradients are exact; …Off is what happens"),
    "MetricUseMovingImageGradientFilterOn": ("refused", "gradients are exact; …Off is what happens"),
    "SetOptimizerAsGradientDescent": (
        "approximated",
        "the engine's own optimiser; numberOfIterations is honoured as the most steps of a level, "
        "maximumStepSizeInPhysicalUnits as the first step of a deformation; learning rate, convergence and everything "
        "else are its own",
    ),
    "SetOptimizerAsGradientDescentLineSearch": ("approximated", "as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsConjugateGradientLineSearch": ("approximated", "as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsRegularStepGradientDescent": ("approximated", "as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsLBFGSB": ("approximated", "as SetOptimizerAsGradientDescent; bounds are refused"),
    "SetOptimizerAsLBFGS2": ("approximated", "as SetOptimizerAsGradientDescent; 0 iterations mean the preset's"),
    "SetOptimizerAsAmoeba": ("refused", "use SetOptimizerAsGradientDescent"),
    "SetOptimizerAsPowell": ("refused", "use SetOptimizerAsGradientDescent"),
    "SetOptimizerAsOnePlusOneEvolutionary": ("refused", "use SetOptimizerAsGradientDescent"),
    "SetOptimizerAsExhaustive": ("refused", "without an initial transform the best of several starts is looked for"),
    "SetOptimizerScales": ("refused", "parameters are in mm already, so nothing is to be scaled"),
    "SetOptimizerScalesFromPhysicalShift": ("honoured", "which is what happens: parameters are in mm"),
    "SetOptimizerScalesFromIndexShift": ("approximated", "as SetOptimizerScalesFromPhysicalShift"),
    "SetOptimizerScalesFromJacobian": ("approximated", "as SetOptimizerScalesFromPhysicalShift"),
    "SetOptimizerWeights": ("refused", "every parameter is optimised"),
    "SetShrinkFactorsPerLevel": ("honoured", "the levels of what is optimised (of the deformation, where both run)"),
    "SetSmoothingSigmasPerLevel": (
        "honoured",
        "for a deformation (at full resolution from 0.75 voxels on); a linear stage smooths as its levels ask for",
    ),
    "SetSmoothingSigmasAreSpecifiedInPhysicalUnits": ("honoured", "mm by default, else voxels of the fixed image"),
    "SetInterpolator": ("honoured", "sitkLinear only; others are refused (resample with what you like afterwards)"),
    "SetNumberOfThreads": ("honoured", "0 means all"),
    "SetNumberOfWorkUnits": ("refused", "use SetNumberOfThreads"),
    "SetGlobalDefault…": ("refused", "settings of the whole process are not touched; use SetNumberOfThreads"),
    "AddCommand": ("honoured", "Start, MultiResolutionIteration, Iteration, Progress, Abort, End, Any"),
    "StopRegistration": ("honoured", "ends the run after this step; the best so far is returned"),
    "Abort": ("honoured", "ends the run after this step; Execute raises RegistrationCancelled"),
    "MetricEvaluate": ("honoured", "the negative metric of the whole images where the initial transforms take them"),
    "GetMetricValue": ("honoured", "the negative mean LNCC², so that smaller is better, as in SimpleITK"),
    "GetMetricNumberOfValidPoints": ("refused", "the engine does not report it"),
    "GetOptimizerIteration": ("honoured", "steps of the level so far"),
    "GetOptimizerLearningRate": ("honoured", "step of the optimiser now, in voxels (of the level for a linear stage)"),
    "GetOptimizerConvergenceValue": (
        "approximated",
        "fall of the metric a step over the last 10 steps (a straight line through them); the largest float before",
    ),
    "GetOptimizerPosition": ("approximated", "the parameters of the returned transform; refused while it runs"),
    "GetOptimizerScales": ("honoured", "ones"),
    "GetOptimizerWeights": ("honoured", "empty: none"),
    "GetOptimizerStopConditionDescription": ("honoured", "why the run ended"),
    "SetDebug": ("refused", "use AddCommand"),
}

_RIGID = ("Euler2DTransform", "Euler3DTransform", "VersorRigid3DTransform")
_AFFINE = ("AffineTransform",)
_DEFORMABLE = ("DisplacementFieldTransform", "BSplineTransform")
_NONE = ("IdentityTransform",)
_WINDOW = 10


class ImageRegistrationMethod:
    """``SimpleITK.ImageRegistrationMethod`` with this engine; see `OPTIONS` for what each method does.

    Parameters
    ----------
    preset, device, **options : as of `itk_nir.register`; what the setters say goes before them.

    Raises
    ------
    OptionError : an option that does not exist, a setting that is refused or has a value it cannot have.
    InputError : images, masks or transforms that cannot be used; said before any work begins.
    """

    #: Values of SimpleITK's enumerations, under its names.
    NONE, REGULAR, RANDOM = 0, 1, 2
    Never, Once, EachIteration = 0, 1, 2

    def __init__(self, *, preset: str = "default", device: str = "auto", **options: Any) -> None:
        faced = {
            "linear",
            "deformable",
            "fixed_mask",
            "moving_mask",
            "initial_transform",
            "callback",
            "preset",
            "device",
        }
        allowed = engine_options(preset) - faced
        for name in options:
            if name not in allowed:
                raise OptionError(f"unknown option {name!r}{nearest_name(name, allowed)}; set the rest by its methods")
        self._preset, self._device, self._options = preset, device, options
        self._initial: Any = None
        self._in_place = True
        self._moving_initial: Any = None
        self._metric: str | None = None
        self._radius: int | None = None
        self._fixed_mask: Any = None
        self._moving_mask: Any = None
        self._seed: int | None = None
        self._percentages: tuple[float, ...] = (1.0,)
        self._iterations: int | None = None
        self._largest_step = 0.0
        self._shrink: tuple[int, ...] | None = None
        self._sigmas: tuple[float, ...] | None = None
        self._sigmas_in_mm = True
        self._threads = 0
        self._commands: list[tuple[int, Callable[[], Any]]] = []
        self._run: _Run | None = None
        self._result: RegistrationResult | None = None

    def __getattr__(self, name: str) -> Any:
        # Only for names that the class lacks: those of SimpleITK's class that are refused, and what does not exist.
        import SimpleITK as sitk

        theirs = [n for n in dir(sitk.ImageRegistrationMethod) if not n.startswith("_") and n != "thisown"]
        if name in theirs:
            reason = OPTIONS.get(name, ("refused", "settings of the whole process are not touched"))[1]

            def refuse(*_: Any, **__: Any) -> None:
                raise OptionError(f"{name} is refused: {reason}")

            return refuse
        raise AttributeError(f"ImageRegistrationMethod has no method {name!r}{nearest_name(name, theirs)}")

    # --- transforms --------------------------------------------------------------------------------------------------

    def SetInitialTransform(self, transform: Any, inPlace: bool = True) -> None:
        """What to optimise and where from. In place, `transform` itself becomes the result of `Execute`."""
        self._initial, self._in_place = _checked_transform(transform, "SetInitialTransform"), bool(inPlace)

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
        return self._initial

    def GetInitialTransformInPlace(self) -> bool:
        return self._in_place

    def SetMovingInitialTransform(self, transform: Any) -> None:
        """Applied after the optimised transform: fixed → optimised → this → moving. Not part of what is returned."""
        self._moving_initial = _checked_transform(transform, "SetMovingInitialTransform")

    def GetMovingInitialTransform(self) -> Any:
        return self._moving_initial

    def SetFixedInitialTransform(self, transform: Any) -> None:
        """The identity only."""
        chain = _chain(_checked_transform(transform, "SetFixedInitialTransform"), None)
        if not chain.is_identity:
            raise OptionError(f"SetFixedInitialTransform is refused: {OPTIONS['SetFixedInitialTransform'][1]}")

    def GetFixedInitialTransform(self) -> Any:
        import SimpleITK as sitk

        return sitk.Transform()

    # --- metric ------------------------------------------------------------------------------------------------------

    def SetMetricAsANTSNeighborhoodCorrelation(self, radius: int) -> None:
        """Squared local correlation; `radius` in voxels of the level."""
        if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
            raise OptionError(f"SetMetricAsANTSNeighborhoodCorrelation: radius is at least 1, got {radius!r}")
        self._metric, self._radius = None, radius

    def SetMetricAsCorrelation(self) -> None:
        self._metric, self._radius = "SetMetricAsCorrelation", None

    def SetMetricAsMattesMutualInformation(self, numberOfHistogramBins: int = 50) -> None:
        self._metric, self._radius = f"SetMetricAsMattesMutualInformation({numberOfHistogramBins})", None

    def SetMetricAsJointHistogramMutualInformation(
        self, numberOfHistogramBins: int = 20, varianceForJointPDFSmoothing: float = 1.5
    ) -> None:
        self._metric = (
            f"SetMetricAsJointHistogramMutualInformation({numberOfHistogramBins}, {varianceForJointPDFSmoothing})"
        )
        self._radius = None

    def SetMetricFixedMask(self, binaryMask: Any) -> None:
        self._fixed_mask = binaryMask

    def SetMetricMovingMask(self, binaryMask: Any) -> None:
        self._moving_mask = binaryMask

    def SetMetricSamplingStrategy(self, strategy: int) -> None:
        """`NONE`, `REGULAR` or `RANDOM`: all voxels are used."""
        if strategy not in (self.NONE, self.REGULAR, self.RANDOM):
            raise OptionError(f"SetMetricSamplingStrategy takes NONE, REGULAR or RANDOM, got {strategy!r}")

    def SetMetricSamplingPercentage(self, percentage: float, seed: int = 0) -> None:
        """All voxels are used, whatever the share; `seed` is the seed of the registration."""
        self.SetMetricSamplingPercentagePerLevel((percentage,), seed)

    def SetMetricSamplingPercentagePerLevel(self, percentage: Sequence[float], seed: int = 0) -> None:
        values = tuple(float(p) for p in percentage)
        if not values or not all(0 < p <= 1 for p in values):
            raise OptionError(f"sampling percentages are above 0 and at most 1, got {list(percentage)}")
        self._percentages, self._seed = values, int(seed)

    def GetMetricSamplingPercentagePerLevel(self) -> tuple[float, ...]:
        return self._percentages

    def MetricUseFixedImageGradientFilterOff(self) -> None:
        """What happens anyway."""

    def MetricUseMovingImageGradientFilterOff(self) -> None:
        """What happens anyway."""

    def SetMetricUseFixedImageGradientFilter(self, value: bool) -> None:
        if value:
            self.MetricUseFixedImageGradientFilterOn()

    def SetMetricUseMovingImageGradientFilter(self, value: bool) -> None:
        if value:
            self.MetricUseMovingImageGradientFilterOn()

    # --- optimiser ---------------------------------------------------------------------------------------------------

    def SetOptimizerAsGradientDescent(
        self,
        learningRate: float,
        numberOfIterations: int,
        convergenceMinimumValue: float = 1e-6,
        convergenceWindowSize: int = 10,
        estimateLearningRate: int = 1,
        maximumStepSizeInPhysicalUnits: float = 0.0,
    ) -> None:
        """At most `numberOfIterations` steps a level, the first of at most `maximumStepSizeInPhysicalUnits` mm."""
        self._optimise("SetOptimizerAsGradientDescent", numberOfIterations, maximumStepSizeInPhysicalUnits)

    def SetOptimizerAsGradientDescentLineSearch(
        self,
        learningRate: float,
        numberOfIterations: int,
        convergenceMinimumValue: float = 1e-6,
        convergenceWindowSize: int = 10,
        lineSearchLowerLimit: float = 0.0,
        lineSearchUpperLimit: float = 5.0,
        lineSearchEpsilon: float = 0.01,
        lineSearchMaximumIterations: int = 20,
        estimateLearningRate: int = 1,
        maximumStepSizeInPhysicalUnits: float = 0.0,
    ) -> None:
        self._optimise("SetOptimizerAsGradientDescentLineSearch", numberOfIterations, maximumStepSizeInPhysicalUnits)

    def SetOptimizerAsConjugateGradientLineSearch(
        self,
        learningRate: float,
        numberOfIterations: int,
        convergenceMinimumValue: float = 1e-6,
        convergenceWindowSize: int = 10,
        lineSearchLowerLimit: float = 0.0,
        lineSearchUpperLimit: float = 5.0,
        lineSearchEpsilon: float = 0.01,
        lineSearchMaximumIterations: int = 20,
        estimateLearningRate: int = 1,
        maximumStepSizeInPhysicalUnits: float = 0.0,
    ) -> None:
        self._optimise("SetOptimizerAsConjugateGradientLineSearch", numberOfIterations, maximumStepSizeInPhysicalUnits)

    def SetOptimizerAsRegularStepGradientDescent(
        self,
        learningRate: float,
        minStep: float,
        numberOfIterations: int,
        relaxationFactor: float = 0.5,
        gradientMagnitudeTolerance: float = 1e-4,
        estimateLearningRate: int = 0,
        maximumStepSizeInPhysicalUnits: float = 0.0,
    ) -> None:
        self._optimise("SetOptimizerAsRegularStepGradientDescent", numberOfIterations, maximumStepSizeInPhysicalUnits)

    def SetOptimizerAsLBFGSB(
        self,
        gradientConvergenceTolerance: float = 1e-5,
        numberOfIterations: int = 500,
        maximumNumberOfCorrections: int = 5,
        maximumNumberOfFunctionEvaluations: int = 2000,
        costFunctionConvergenceFactor: float = 1e7,
        lowerBound: float = -sys.float_info.max,
        upperBound: float = sys.float_info.max,
        trace: bool = False,
    ) -> None:
        if lowerBound > -sys.float_info.max or upperBound < sys.float_info.max:
            raise OptionError("SetOptimizerAsLBFGSB: bounds are refused, parameters are free; leave them out")
        self._optimise("SetOptimizerAsLBFGSB", numberOfIterations)

    def SetOptimizerAsLBFGS2(
        self,
        solutionAccuracy: float = 1e-5,
        numberOfIterations: int = 0,
        hessianApproximateAccuracy: int = 6,
        deltaConvergenceDistance: int = 0,
        deltaConvergenceTolerance: float = 1e-5,
        lineSearchMaximumEvaluations: int = 40,
        lineSearchMinimumStep: float = 1e-20,
        lineSearchMaximumStep: float = 1e20,
        lineSearchAccuracy: float = 1e-4,
    ) -> None:
        self._optimise("SetOptimizerAsLBFGS2", numberOfIterations or None)

    def _optimise(self, name: str, iterations: int | None, largest_step: float = 0.0) -> None:
        if iterations is not None and (
            isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1
        ):
            raise OptionError(f"{name}: numberOfIterations is a whole number of at least 1, got {iterations!r}")
        if not 0 <= largest_step < np.inf:
            raise OptionError(f"{name}: maximumStepSizeInPhysicalUnits is not negative (mm), got {largest_step!r}")
        self._iterations, self._largest_step = iterations, float(largest_step)

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
            raise OptionError(f"SetOptimizerWeights is refused: {OPTIONS['SetOptimizerWeights'][1]}")

    # --- levels, interpolation, threads ------------------------------------------------------------------------------

    def SetShrinkFactorsPerLevel(self, shrinkFactors: Sequence[int]) -> None:
        """Coarsest first, in voxels of the fixed image along its finest axis; coarser axes are shrunk less."""
        level_options("default", shrinkFactors)
        self._shrink = tuple(int(f) for f in shrinkFactors)

    def SetSmoothingSigmasPerLevel(self, smoothingSigmas: Sequence[float]) -> None:
        """One a level; mm, or voxels after `SmoothingSigmasAreSpecifiedInPhysicalUnitsOff`."""
        values = tuple(float(s) for s in smoothingSigmas)
        if not all(0 <= s < np.inf for s in values):
            raise OptionError(f"SetSmoothingSigmasPerLevel: sigmas are not negative, got {list(smoothingSigmas)}")
        self._sigmas = values

    def SetSmoothingSigmasAreSpecifiedInPhysicalUnits(self, arg: bool) -> None:
        self._sigmas_in_mm = bool(arg)

    def SmoothingSigmasAreSpecifiedInPhysicalUnitsOn(self) -> None:
        self._sigmas_in_mm = True

    def SmoothingSigmasAreSpecifiedInPhysicalUnitsOff(self) -> None:
        self._sigmas_in_mm = False

    def SetInterpolator(self, interpolator: int) -> None:
        """``sitk.sitkLinear``."""
        import SimpleITK as sitk

        if interpolator != sitk.sitkLinear:
            raise OptionError(f"SetInterpolator({interpolator!r}) is refused: {OPTIONS['SetInterpolator'][1]}")

    def GetInterpolator(self) -> int:
        import SimpleITK as sitk

        return int(sitk.sitkLinear)

    def SetNumberOfThreads(self, n: int) -> None:
        """CPU threads; 0 means all that the process may use. Results do not depend on it."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise OptionError(f"SetNumberOfThreads takes a whole number that is not negative, got {n!r}")
        self._threads = n

    def GetNumberOfThreads(self) -> int:
        return self._threads

    def DebugOff(self) -> None:
        """What happens anyway."""

    def DebugOn(self) -> None:
        self.SetDebug(True)

    def GetDebug(self) -> bool:
        return False

    def SetDebug(self, debugFlag: bool) -> None:
        if debugFlag:
            raise OptionError(f"SetDebug(True) is refused: {OPTIONS['SetDebug'][1]}")

    def GetName(self) -> str:
        return "ImageRegistrationMethod"

    # --- commands ----------------------------------------------------------------------------------------------------

    def AddCommand(self, event: int, command: Any) -> int:
        """Call `command` (a function without arguments, or a ``sitk.Command``) whenever `event` happens."""
        function = command if callable(command) else getattr(command, "Execute", None)
        if function is None:
            raise OptionError(f"AddCommand takes a function or a SimpleITK.Command, got {type(command).__name__}")
        if event not in _events().values():
            raise OptionError(f"AddCommand: there is no event {event!r}; give one of {', '.join(_events())}")
        self._commands.append((event, function))
        return len(self._commands) - 1

    def HasCommand(self, event: int) -> bool:
        return any(e == event for e, _ in self._commands)

    def RemoveAllCommands(self) -> None:
        self._commands.clear()

    def _fire(self, name: str) -> None:
        number, any_event = _events()[f"sitk{name}Event"], _events()["sitkAnyEvent"]
        for event, function in list(self._commands):
            if event in (number, any_event):
                function()

    def StopRegistration(self) -> bool:
        """End the run after this step, with the best so far. Returns whether there is a run."""
        return self._end("stop")

    def Abort(self) -> None:
        """End the run after this step; `Execute` raises `RegistrationCancelled`."""
        self._end("abort")

    def _end(self, how: str) -> bool:
        if self._run is None or not self._run.live:
            return False
        self._run.ending = how
        return True

    # --- live getters ------------------------------------------------------------------------------------------------

    def GetOptimizerIteration(self) -> int:
        """Steps of the level before this one, counted from 0."""
        return 0 if self._run is None else self._run.iteration

    def GetCurrentLevel(self) -> int:
        return 0 if self._run is None else max(0, self._run.level)

    def GetMetricValue(self) -> float:
        """Minus the mean LNCC²: -1 is perfect, 0 is nothing in common."""
        return 0.0 if self._run is None else self._run.value

    def GetProgress(self) -> float:
        return 0.0 if self._run is None else self._run.progress

    def GetOptimizerLearningRate(self) -> float:
        return 0.0 if self._run is None else self._run.rate

    def GetOptimizerConvergenceValue(self) -> float:
        """How much the metric falls a step, over the last 10 steps of the level; the largest float before."""
        values = [] if self._run is None else self._run.values[-_WINDOW:]
        if len(values) < _WINDOW:
            return sys.float_info.max
        return float(-np.polyfit(np.arange(_WINDOW), values, 1)[0])

    def GetOptimizerPosition(self) -> tuple[float, ...]:
        """Parameters of the transform that `Execute` returned."""
        if self._run is None or self._run.live or self._run.transform is None:
            raise OptionError(
                "GetOptimizerPosition is refused while nothing has been returned: the engine's parameters are those of "
                "a neural field; ask after Execute"
            )
        return tuple(self._run.transform.GetParameters())

    def GetOptimizerScales(self) -> tuple[float, ...]:
        """Ones, an axis each: parameters are in mm."""
        return (1.0,) * (0 if self._run is None else self._run.dimension)

    def GetOptimizerWeights(self) -> tuple[float, ...]:
        return ()

    def GetOptimizerStopConditionDescription(self) -> str:
        return "" if self._run is None else self._run.stop

    @property
    def result(self) -> RegistrationResult:
        """Everything about the last `Execute`: inverse, metrics, files.

        Its chain is the whole map, with the moving initial transform.
        """
        if self._result is None:
            raise ItkNirError("there is no result yet; call Execute first")
        return self._result

    # --- the work ----------------------------------------------------------------------------------------------------

    def Execute(self, fixed: Any, moving: Any) -> Any:
        """Register.

        Parameters
        ----------
        fixed, moving : ``SimpleITK.Image`` (or anything that `itk_nir.register` takes), any real scalar pixel type.

        Returns
        -------
        The optimised transform, fixed → moving, without the moving initial transform: the object that was given in
        place, else a ``sitk.CompositeTransform``; a ``sitk.DisplacementFieldTransform`` for a B-spline in place.

        Raises
        ------
        RegistrationCancelled : after `Abort`.
        """
        from itk_nir.registration import register

        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        model = _Model.of(self._initial, a.geometry)
        after = None if self._moving_initial is None else _chain(self._moving_initial, a.geometry)
        start = _start(model, after)
        options = self._settings(model, a)
        if self._metric is not None:
            warnings.warn(
                f"{self._metric}: approximated by {STAND_IN}, which wants both images in one modality; "
                "SetMetricAsANTSNeighborhoodCorrelation(radius) says so by itself",
                UserWarning,
                stacklevel=2,
            )
        run = self._run = _Run(self, model.deformable, a.dimension, options, self._preset)
        try:
            self._fire("Start")
            result = register(
                a,
                b,
                preset=self._preset,
                device=self._device,
                linear=model.linear,
                deformable=model.deformable,
                fixed_mask=self._fixed_mask,
                moving_mask=self._moving_mask,
                initial_transform=start,
                callback=run.report,
                **options,
            )
        finally:
            run.live = False
        if run.ending == "abort":
            self._fire("Abort")
            raise RegistrationCancelled("aborted by Abort(); StopRegistration() keeps what was found so far")
        stop = result.metrics["stop"]
        run.stop = "itk-nir: " + ("stopped by StopRegistration" if run.ending == "stop" else str(stop))
        if result.metrics.get("similarity") is not None and run.ending is None:
            run.value = -float(result.metrics["similarity"])
        self._result = result
        run.transform = model.deliver(result, start, after, self._in_place)
        run.progress = 1.0
        self._fire("End")
        return run.transform

    def MetricEvaluate(self, fixed: Any, moving: Any) -> float:
        """Minus the mean LNCC² of the whole images, the moving one seen through the initial transforms."""
        import torch

        from itk_nir.settings import preset_settings
        from itk_nir.engine import ops
        from itk_nir.engine.optimize import as_volume, normalised
        from itk_nir.checks import match_mask
        from itk_nir.resample import resample_array

        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        after = None if self._moving_initial is None else _chain(self._moving_initial, a.geometry)
        start = _start(_Model.of(self._initial, a.geometry), after) or CompositeTransform((LinearTransform.identity(a.dimension),))
        warped = resample_array(b.array, b.geometry, start, a.geometry, "linear")
        seen = np.ones_like(b.array)
        if self._moving_mask is not None:
            seen = match_mask(load_image(self._moving_mask, "moving mask"), b)[0].array
        weight = resample_array(seen, b.geometry, start, a.geometry, "nearest") > 0.5
        if self._fixed_mask is not None:
            weight &= match_mask(load_image(self._fixed_mask, "fixed mask"), a)[0].array > 0.5
        inside = as_volume(torch.from_numpy(weight.astype(np.float32)))
        if not weight.any():
            raise InputError("the images do not overlap where the masks count; check the initial transforms")
        engine = preset_settings(self._preset).engine
        radius = self._radius or int(np.max(getattr(engine, "radius", 4)))
        epsilon = float(getattr(engine, "epsilon", 1e-4))
        lncc = ops.Lncc.make(
            normalised(as_volume(torch.from_numpy(a.array)), inside)[0].contiguous(), inside, radius, epsilon
        )
        return -float(lncc(normalised(as_volume(torch.from_numpy(warped)), inside)[0].contiguous()))

    def _settings(self, model: _Model, fixed: Volume) -> dict[str, Any]:
        """What the setters said, as options of `register`."""
        from itk_nir.settings import options_of

        out: dict[str, Any] = dict(self._options)
        if self._threads:
            out["threads"] = self._threads
        if self._seed is not None:
            out["seed"] = self._seed
        if self._sigmas is not None and self._shrink is None:
            raise OptionError("SetSmoothingSigmasPerLevel needs SetShrinkFactorsPerLevel with as many levels")
        if self._sigmas is not None and self._shrink is not None and len(self._sigmas) != len(self._shrink):
            raise OptionError(
                f"there are {len(self._shrink)} shrink factors but {len(self._sigmas)} smoothing sigmas; give as many"
            )
        finest = min(fixed.geometry.spacing)
        if not model.deformable:
            if self._largest_step > 0:
                raise OptionError(
                    "maximumStepSizeInPhysicalUnits has no meaning for a rigid or affine registration; leave it at 0"
                )
            sizes = [round(2 * fixed.geometry.half_extent / finest / f) for f in self._shrink or ()]
            if sizes:
                out["linear_size"] = tuple(max(4, s) for s in sizes)
            if sizes or self._iterations is not None:
                own = _as_tuple(self._options.get("linear_steps", options_of(self._preset)["linear_steps"]))
                out["linear_steps"] = limited(own, len(sizes) or len(own), self._iterations)
            if self._radius is not None:
                out["linear_radius"] = self._radius
            return out
        if self._radius is not None:
            out["radius"] = self._radius
        if self._shrink is not None:
            unit = finest if self._sigmas_in_mm else 1.0
            sigmas = None if self._sigmas is None else [s / unit for s in self._sigmas]
            levels = level_options(self._preset, self._shrink, smoothing_sigmas=sigmas, most_steps=self._iterations)
            if "steps" in self._options:
                levels["steps"] = limited(_as_tuple(self._options["steps"]), len(self._shrink), self._iterations)
            out.update(levels)
        elif self._iterations is not None:
            own = _as_tuple(self._options.get("steps", options_of(self._preset).get("steps", ())))
            if own:
                out["steps"] = limited(own, len(own), self._iterations)
            else:
                raise OptionError(f"preset {self._preset!r} has phases of its own, so no number of iterations fits it")
        if self._largest_step > 0:
            out["learning_rates"] = self._largest_step / finest
        return out


class _Run:
    """One execution: what the getters tell while it goes on."""

    def __init__(
        self, method: ImageRegistrationMethod, deformable: bool, dimension: int, options: dict[str, Any], preset: str
    ) -> None:
        from itk_nir.settings import make_settings

        known = {k: v for k, v in options.items() if k not in ("threads", "seed")}
        self._settings = make_settings(preset, **known)
        self._method, self._stage = method, "deformable" if deformable else "linear"
        self.dimension = dimension
        self.live = True
        self.ending: str | None = None
        self.level, self.iteration, self.value, self.rate, self.progress = -1, 0, 0.0, 0.0, 0.0
        self.values: list[float] = []
        self.stop = ""
        self.transform: Any = None

    def report(self, progress: Progress) -> bool:
        """Called by the engine after every step."""
        self.progress = progress.fraction
        if progress.stage == self._stage:
            if progress.level != self.level:
                self.level, self.iteration, self.values = progress.level, 0, []
                self._method._fire("MultiResolutionIteration")
            else:
                self.iteration += 1
            self.value = -progress.metric
            self.values.append(self.value)
            self.rate = self._rate(progress)
            self._method._fire("Iteration")
        self._method._fire("Progress")
        return self.ending is not None

    def _rate(self, p: Progress) -> float:
        """The optimiser's step now, by the engine's own schedule."""
        if p.stage == "linear":
            return self._settings.linear.linear_rate * (1 - 0.95 * p.step / p.steps)
        engine: Any = self._settings.engine
        if not hasattr(engine, "learning_rates"):
            phase = engine.phases[p.level]
            share = p.step / max(1, p.steps - 1)
            return float(phase.learning_rate * (phase.learning_rate_end / phase.learning_rate) ** share)
        return float(
            engine.learning_rates[p.level] * (1 - (1 - engine.learning_rate_end) * p.step / max(1, p.steps - 1))
        )


class _Model:
    """What the initial transform asks for: the part that is optimised, and what a composite puts after it."""

    def __init__(
        self, given: Any, moved: Any, name: str, own: CompositeTransform | None, tail: CompositeTransform | None, grid: Geometry
    ) -> None:
        self.given, self.moved, self.name, self.own, self.tail, self.grid = given, moved, name, own, tail, grid
        self.deformable = name in (*_DEFORMABLE, *_NONE)
        self.linear = "rigid" if name in _RIGID else "affine" if name in (*_AFFINE, *_NONE) else "none"

    @classmethod
    def of(cls, given: Any, grid: Geometry) -> _Model:
        import SimpleITK as sitk

        if given is None:
            return cls(None, None, "IdentityTransform", None, None, grid)
        if given.GetDimension() != grid.dimension:
            raise InputError(f"initial transform: is {given.GetDimension()}D but the fixed image is {grid.dimension}D")
        moved, tail = given.Downcast(), None
        if isinstance(moved, sitk.CompositeTransform):
            parts = [moved.GetNthTransform(i) for i in range(moved.GetNumberOfTransforms())]
            if not parts:
                return cls(given, None, "IdentityTransform", None, None, grid)
            # ITK optimises the transform that was added last, which a fixed point meets first.
            moved = parts[-1].Downcast()
            if len(parts) > 1:
                tail = compose(*(_chain(part, grid) for part in reversed(parts[:-1])))
        name = type(moved).__name__
        if name == "Transform":
            name = moved.GetName()
        if name not in (*_RIGID, *_AFFINE, *_DEFORMABLE, *_NONE):
            raise OptionError(
                f"SetInitialTransform: a {name} has no counterpart here; give an Euler, VersorRigid3D, Affine, "
                "DisplacementField or BSpline transform, or none for affine and deformable"
            )
        if name == "DisplacementFieldTransform" and not moved.GetDisplacementField().GetNumberOfPixels():
            raise InputError(
                "initial transform: a DisplacementFieldTransform without a field; make it from an image on the fixed "
                "grid: sitk.DisplacementFieldTransform(sitk.TransformToDisplacementField(sitk.Transform(d, "
                "sitk.sitkIdentity), sitk.sitkVectorFloat64, size, origin, spacing, direction))"
            )
        own = None if name in _NONE or _is_zero(moved, name) else _chain(moved, grid)
        return cls(given, moved, name, own, tail, grid)

    def deliver(self, result: RegistrationResult, start: CompositeTransform | None, after: CompositeTransform | None, in_place: bool) -> Any:
        """The optimised transform out of the whole map fixed → moving, as `Execute` returns it."""
        import SimpleITK as sitk

        from itk_nir.transforms.as_simpleitk import to_sitk

        behind = [c for c in (self.tail, after) if c is not None]
        part = self._part(result, start, compose(*behind) if behind else None)
        if self.name in _NONE:
            found = [to_sitk(CompositeTransform((step,))) for step in reversed(part.transforms)]
            return sitk.CompositeTransform([*self._tail_parts(), *found])
        if in_place and isinstance(self.given, sitk.DisplacementFieldTransform):
            return self._field(part, self.given)
        optimised = self._field(part) if self.deformable else self._linear(part)
        if in_place and self.name != "BSplineTransform":
            return self._put(optimised)
        if in_place and self.tail is None:
            return optimised
        return sitk.CompositeTransform([*self._tail_parts(), optimised])

    def _part(self, result: RegistrationResult, start: CompositeTransform | None, behind: CompositeTransform | None) -> CompositeTransform:
        """What was found, with the own start of the optimised transform, without what comes behind it."""
        linear = np.asarray(result.metrics["linear_matrix"], float)
        own = self.own
        if start is None or start.is_linear:
            # A linear start is multiplied into the linear map.
            own = None
            if behind is not None:
                for step in behind.inverse().transforms:
                    assert isinstance(step, LinearTransform)
                    linear = step.matrix @ linear
        parts: list[CompositeTransform | LinearTransform] = [LinearTransform(linear)]
        if self.deformable:
            assert result.chain.inverse_transforms is not None
            parts.insert(0, CompositeTransform(result.chain.transforms[:1], result.chain.inverse_transforms[-1:]))
        return compose(*parts, *([] if own is None else [own]))

    def _tail_parts(self) -> list[Any]:
        import SimpleITK as sitk

        given = None if self.given is None else self.given.Downcast()
        if not isinstance(given, sitk.CompositeTransform):
            return []
        return [given.GetNthTransform(i) for i in range(given.GetNumberOfTransforms() - 1)]

    def _linear(self, part: CompositeTransform) -> Any:
        """A copy of the given transform, its centre kept, with the parameters that were found."""
        matrix = np.eye(part.dimension + 1)
        for step in part.transforms:
            assert isinstance(step, LinearTransform)
            matrix = step.matrix @ matrix
        out = type(self.moved)(self.moved)
        d = part.dimension
        m = matrix[:d, :d]
        if self.name in _RIGID:
            u, _, v = np.linalg.svd(m)
            m = u @ v
        centre = np.asarray(self.moved.GetCenter())
        out.SetMatrix(m.ravel().tolist())
        out.SetTranslation((matrix[:d, d] - centre + m @ centre).tolist())
        return out

    def _field(self, part: CompositeTransform, out: Any = None) -> Any:
        """A displacement field on the grid of the given one, or of the fixed image; with its inverse where it has one.

        It goes into `out` where that is given. The images are made for it alone: SimpleITK lets a transform share the
        memory of an image that came from another transform's ``GetDisplacementField``, and frees it with that one.
        """
        import SimpleITK as sitk

        from itk_nir.geometry import Geometry
        from itk_nir.images import to_sitk as image_to_sitk

        grid = self.grid
        if self.name == "DisplacementFieldTransform":
            image = self.moved.GetDisplacementField()
            grid = Geometry.make(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        vectors = part.displacement_on(grid).vectors.astype(np.float64)
        if out is None:
            out = sitk.DisplacementFieldTransform(part.dimension)
        out.SetDisplacementField(image_to_sitk(vectors, grid))
        if part.inverse_transforms is not None:
            back = part.inverse().displacement_on(grid).vectors.astype(np.float64)
            out.SetInverseDisplacementField(image_to_sitk(back, grid))
        return out

    def _put(self, optimised: Any) -> Any:
        """The result in the object that was given in place, and that object."""
        import SimpleITK as sitk

        if isinstance(self.given, sitk.CompositeTransform):
            self.given.RemoveTransform()
            self.given.AddTransform(optimised)
        else:
            self.given.SetParameters(optimised.GetParameters())
        return self.given


def _checked_transform(transform: Any, where: str) -> Any:
    import SimpleITK as sitk

    if not isinstance(transform, sitk.Transform):
        raise InputError(f"{where}: takes a SimpleITK transform, got {type(transform).__name__}")
    return transform


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _chain(transform: Any, grid: Geometry | None) -> CompositeTransform:
    from itk_nir.loading import load_transform

    return load_transform(transform, grid, role="initial transform")


def _start(model: _Model, after: CompositeTransform | None) -> CompositeTransform | None:
    """Everything that a fixed point meets after what is going to be found."""
    parts = [c for c in (model.own, model.tail, after) if c is not None]
    if parts:
        return compose(*parts)
    # A given start, if only the identity, is where the search begins; without one the best start is looked for.
    return None if model.given is None else CompositeTransform((LinearTransform.identity(model.grid.dimension),))


def _is_zero(transform: Any, name: str) -> bool:
    """Whether a deformable start does nothing."""
    if name not in _DEFORMABLE:
        return False
    import SimpleITK as sitk

    if name == "DisplacementFieldTransform":
        vectors: NDArray[Any] = sitk.GetArrayViewFromImage(transform.GetDisplacementField())
        return not vectors.any()
    return not np.any(transform.GetParameters())


def _events() -> dict[str, int]:
    import SimpleITK as sitk

    names = ("Start", "MultiResolutionIteration", "Iteration", "Progress", "Abort", "End", "Any")
    return {f"sitk{name}Event": int(getattr(sitk, f"sitk{name}Event")) for name in names}

"""SimpleITK's setters of metric, optimiser and levels: what they are told goes into a `Setup`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from itk_nir.compat.options import level_options, mutual_information
from itk_nir.compat.sitk.exhaustive import Grid
from itk_nir.compat.sitk.options import OPTIMISERS, Setup, optimiser_signature
from itk_nir.compat.sitk.run import ObservedRegistration
from itk_nir.compat.sitk.weights import refusal as weights_refusal
from itk_nir.errors import OptionError, warn_caller
from itk_nir.options import whole_number


class ConfiguredRegistration(ObservedRegistration):
    """The setters of ``SimpleITK.ImageRegistrationMethod`` that are no transforms.

    Parameters
    ----------
    setup : Setup
        What to begin with.
    """

    #: Values of SimpleITK's enumerations, under its names.
    NONE, REGULAR, RANDOM = 0, 1, 2
    Never: int = 0
    Once: int = 1
    EachIteration: int = 2

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._setup = setup
        self._fixed_mask: Any = None
        self._moving_mask: Any = None
        self._interpolator: int | None = None
        self._percentages: tuple[float, ...] = (1.0,)
        self._work_units = 0

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

    def MetricUseFixedImageGradientFilterOn(self) -> None:
        """Gradients are exact, without a filter."""

    def MetricUseFixedImageGradientFilterOff(self) -> None:
        """What happens anyway."""

    def SetMetricUseFixedImageGradientFilter(self, value: bool) -> None:
        """Gradients are exact, without a filter."""

    def MetricUseMovingImageGradientFilterOn(self) -> None:
        """Gradients are exact, without a filter."""

    def MetricUseMovingImageGradientFilterOff(self) -> None:
        """What happens anyway."""

    def SetMetricUseMovingImageGradientFilter(self, value: bool) -> None:
        """Gradients are exact, without a filter."""

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
        """1 for each parameter that is optimised, 0 for one that is held; `Execute` refuses what cannot be had."""
        values = tuple(float(w) for w in weights)
        if not set(values) <= {0.0, 1.0}:
            raise weights_refusal(values, "a weight is 1 for a parameter that is optimised and 0 for one that is held")
        self._setup.weights = values

    def GetOptimizerWeights(self) -> tuple[float, ...]:
        """What was given, empty before: every parameter is optimised."""
        return self._setup.weights

    def SetOptimizerScales(self, scales: Sequence[float]) -> None:
        """The steps of an exhaustive search; without effect else: parameters are in mm."""
        values = tuple(float(s) for s in scales)
        if not all(0 < s < np.inf for s in values):
            raise OptionError(f"SetOptimizerScales: scales are above 0, got {list(scales)}")
        self._setup.scales = values

    def GetOptimizerScales(self) -> tuple[float, ...]:
        """What was given, else ones: a parameter each for linear transforms, an axis each for others.

        Empty before `Execute`.
        """
        return self._setup.scales or (1.0,) * (0 if self._run is None else self._run.local_parameters)

    def SetOptimizerAsExhaustive(self, numberOfSteps: Sequence[int], stepLength: float = 1.0) -> None:
        """The metric at every node of a grid around the initial parameters, and the best of them.

        Parameters
        ----------
        numberOfSteps : sequence of int
            To either side, a parameter.
        stepLength : float
            Times the scale of a parameter.
        """
        self._setup.exhaustive = Grid.of(numberOfSteps, stepLength)

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
        """``sitk.sitkLinear``; another one is taken with a warning: the metric interpolates linearly all the same."""
        import SimpleITK as sitk

        number = whole_number(interpolator)
        if number is None:
            raise OptionError(f"SetInterpolator takes a constant such as sitk.sitkLinear, got {interpolator!r}")
        if number != sitk.sitkLinear:
            warn_caller(
                f"SetInterpolator({interpolator!r}): the metric interpolates linearly here, whatever the interpolator; "
                "resample with what you like afterwards"
            )
        self._interpolator = number

    def GetInterpolator(self) -> int:
        """What was given, ``sitk.sitkLinear`` before."""
        import SimpleITK as sitk

        return int(sitk.sitkLinear) if self._interpolator is None else self._interpolator

    def SetNumberOfThreads(self, n: int) -> None:
        """CPU threads; 0 means all that the process may use. Results do not depend on it."""
        number = whole_number(n)
        if number is None or number < 0:
            raise OptionError(f"SetNumberOfThreads takes a whole number that is not negative, got {n!r}")
        self._setup.threads = number

    def GetNumberOfThreads(self) -> int:
        """What was given, else SimpleITK's global default, which is only told: the work uses all that it may."""
        import SimpleITK as sitk

        return self._setup.allowed_threads or int(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())

    def SetNumberOfWorkUnits(self, n: int) -> None:
        """Work is cut by the size of the images, whatever the number."""
        number = whole_number(n)
        if number is None or number < 0:
            raise OptionError(f"SetNumberOfWorkUnits takes a whole number that is not negative, got {n!r}")
        self._work_units = number

    def GetNumberOfWorkUnits(self) -> int:
        """What was given, 0 before."""
        return self._work_units


def _optimiser_method(name: str) -> Callable[..., None]:
    """A method of `OPTIMISERS` with SimpleITK's signature."""
    signature = optimiser_signature(name)

    def method(self: ConfiguredRegistration, *args: Any, **kwargs: Any) -> None:
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
    setattr(ConfiguredRegistration, _name, _optimiser_method(_name))

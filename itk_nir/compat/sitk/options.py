"""What becomes of each of SimpleITK's methods, the optimisers' parameters, and options of the preset made of both."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from itk_nir.compat.options import (
    LINEAR_METRIC,
    OptionSupport,
    approximated,
    honoured,
    level_options,
    limited,
    linear_sizes,
    refused,
)
from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.options import whole_number

if TYPE_CHECKING:
    from itk_nir.compat.sitk.exhaustive import Grid
    from itk_nir.engine.metrics import Metric
    from itk_nir.settings import Settings

#: Method of SimpleITK's class -> what becomes of it. Getters follow their setters.
OPTIONS: dict[str, OptionSupport] = {
    "SetInitialTransform": honoured(
        "its class is what is optimised: Translation; Euler, VersorRigid3D → rigid; Similarity; Affine; "
        "DisplacementField, BSpline → deformable; the last of a composite. Other linear classes (scale and versor "
        "alone, scale and skew) are refused"
    ),
    "SetInitialTransformAsBSpline": approximated(
        "the spline is the start; the result is a displacement field; a spline given in place becomes the one nearest "
        "to that field, its mesh finer by the last scale factor; the deformation has levels of its own, whatever the "
        "factors"
    ),
    "SetMovingInitialTransform": honoured("applied after the optimised transform, and no part of what is returned"),
    "SetFixedInitialTransform": refused("identity only; resample the fixed image, or use SetMovingInitialTransform"),
    "SetVirtualDomain": refused("the virtual domain is the fixed image's grid, and no other one"),
    "SetVirtualDomainFromImage": refused("the virtual domain is the fixed image's grid, and no other one"),
    "SetMetricAsANTSNeighborhoodCorrelation": honoured(
        "metric 'lncc', squared local correlation, with this radius in voxels of the level"
    ),
    "SetMetricAsCorrelation": honoured(
        "metric 'ncc', correlation of the whole images, with its sign: contrast that is reversed does not match"
    ),
    "SetMetricAsMattesMutualInformation": honoured(
        "metric 'nmi', mutual information normalised to 0 … 1, with this number of bins; 4 to 128, else the nearest of "
        "these, with a warning"
    ),
    "SetMetricAsJointHistogramMutualInformation": honoured(
        "as SetMetricAsMattesMutualInformation; the histogram has a smoothing of its own, so the variance has no effect"
    ),
    "SetMetricAsMeanSquares": honoured("metric 'mse', mean squares over the variance of the fixed image"),
    "SetMetricAsDemons": approximated("as SetMetricAsMeanSquares; the threshold has no effect"),
    "SetMetricFixedMask": honoured("above 0 where the fixed image counts; any grid"),
    "SetMetricMovingMask": honoured("above 0 where the moving image counts; any grid"),
    "SetMetricSamplingStrategy": approximated("all voxels are used, as with NONE"),
    "SetMetricSamplingPercentage": approximated("all voxels are used; the seed is honoured"),
    "SetMetricSamplingPercentagePerLevel": approximated("all voxels are used; the seed is honoured"),
    "MetricUseFixedImageGradientFilterOn": approximated("gradients are exact, without a filter, …On as …Off"),
    "MetricUseMovingImageGradientFilterOn": approximated("gradients are exact, without a filter, …On as …Off"),
    "SetOptimizerAsGradientDescent": approximated(
        "the engine's own optimiser; numberOfIterations is honoured as the most iterations of a level, "
        "maximumStepSizeInPhysicalUnits as the learning rate a deformation begins with; learning rate, convergence and "
        "everything else are its own"
    ),
    "SetOptimizerAsGradientDescentLineSearch": approximated("as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsConjugateGradientLineSearch": approximated("as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsRegularStepGradientDescent": approximated("as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsLBFGSB": approximated("as SetOptimizerAsGradientDescent; bounds are refused"),
    "SetOptimizerAsLBFGS2": approximated("as SetOptimizerAsGradientDescent; 0 iterations mean the preset's"),
    "SetOptimizerAsAmoeba": approximated("as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsPowell": approximated("as SetOptimizerAsGradientDescent"),
    "SetOptimizerAsOnePlusOneEvolutionary": approximated("as SetOptimizerAsGradientDescent; the seed has no effect"),
    "SetOptimizerAsExhaustive": honoured(
        "the metric of the whole images at every node of the grid, in SimpleITK's order, by the metric of "
        "MetricEvaluate; for linear transforms, with no result beside the transform"
    ),
    "SetOptimizerScales": approximated(
        "the steps of an exhaustive search; without effect else, because parameters are in mm already"
    ),
    "SetOptimizerScalesFromPhysicalShift": honoured("which is what happens: parameters are in mm"),
    "SetOptimizerScalesFromIndexShift": approximated("as SetOptimizerScalesFromPhysicalShift"),
    "SetOptimizerScalesFromJacobian": approximated("as SetOptimizerScalesFromPhysicalShift"),
    "SetOptimizerWeights": honoured(
        "0 or 1 a parameter: all rotations or those about one axis (of the fixed image and of space) with all "
        "translations, translations along some axes, or rigid of a similarity; other weights are refused"
    ),
    "SetShrinkFactorsPerLevel": honoured("the levels of what is optimised (of the deformation, where both run)"),
    "SetSmoothingSigmasPerLevel": honoured(
        "for a deformation (at full resolution from 0.75 voxels on); a linear stage smooths as its levels ask for"
    ),
    "SetSmoothingSigmasAreSpecifiedInPhysicalUnits": honoured("mm by default, else voxels of the fixed image"),
    "SetInterpolator": approximated(
        "the metric interpolates linearly; others are taken with a warning (resample with what you like afterwards)"
    ),
    "SetNumberOfThreads": honoured("0 means all; where none was set, the method tells SimpleITK's global default"),
    "SetNumberOfWorkUnits": approximated("work is cut by the size of the images, whatever the number"),
    "SetGlobalDefault…": refused("settings of the whole process are not touched; use SetNumberOfThreads"),
    "AddCommand": honoured("Start, MultiResolutionIteration, Iteration, Progress, Abort, End, Any"),
    "StopRegistration": honoured("ends the run after this iteration; the best so far is returned"),
    "Abort": honoured("ends the run after this iteration; Execute raises RegistrationCancelled"),
    "MetricEvaluate": honoured(
        "as GetMetricValue, of the whole images where the initial transforms take them; without a metric that "
        "is set or given as an option, by 'lncc'"
    ),
    "GetMetricValue": honoured(
        "the negative similarity, so that smaller is better, as in SimpleITK; -1 is perfect, for mean squares too"
    ),
    "GetMetricNumberOfValidPoints": refused("the engine does not report it"),
    "GetOptimizerIteration": honoured("iterations of the level so far"),
    "GetOptimizerLearningRate": honoured(
        "that of this iteration: in voxels of the level for a linear stage, of the fixed image for a deformation, in "
        "the unit of the network's weights with preset 'paper'"
    ),
    "GetOptimizerConvergenceValue": approximated(
        "decrease of the metric per iteration, by a straight line through the last 10; the largest float before"
    ),
    "GetOptimizerPosition": honoured(
        "the parameters at this iteration, those of a BSpline fitted to the displacement; after Execute those of what "
        "it returned; refused while it runs without an initial transform"
    ),
    "GetOptimizerScales": honoured(
        "as given, else ones: a parameter each for linear transforms, an axis each for others; empty before Execute"
    ),
    "GetOptimizerWeights": honoured("as given, else empty"),
    "GetOptimizerStopConditionDescription": honoured("why the run ended"),
    "SetDebug": refused("use AddCommand"),
}

_STOPPING = {"convergenceMinimumValue": 1e-6, "convergenceWindowSize": 10}
_LINE_SEARCH = {
    "lineSearchLowerLimit": 0.0,
    "lineSearchUpperLimit": 5.0,
    "lineSearchEpsilon": 0.01,
    "lineSearchMaximumIterations": 20,
}
_STEP_SIZE = {"estimateLearningRate": 1, "maximumStepSizeInPhysicalUnits": 0.0}

#: Method that chooses an optimiser -> its parameters in SimpleITK's order, with their defaults; a type stands for one
#: that must be given.
OPTIMISERS: dict[str, dict[str, Any]] = {
    "SetOptimizerAsGradientDescent": {
        "learningRate": float,
        "numberOfIterations": int,
        **_STOPPING,
        **_STEP_SIZE,
    },
    "SetOptimizerAsGradientDescentLineSearch": {
        "learningRate": float,
        "numberOfIterations": int,
        **_STOPPING,
        **_LINE_SEARCH,
        **_STEP_SIZE,
    },
    "SetOptimizerAsConjugateGradientLineSearch": {
        "learningRate": float,
        "numberOfIterations": int,
        **_STOPPING,
        **_LINE_SEARCH,
        **_STEP_SIZE,
    },
    "SetOptimizerAsRegularStepGradientDescent": {
        "learningRate": float,
        "minStep": float,
        "numberOfIterations": int,
        "relaxationFactor": 0.5,
        "gradientMagnitudeTolerance": 1e-4,
        "estimateLearningRate": 0,
        "maximumStepSizeInPhysicalUnits": 0.0,
    },
    "SetOptimizerAsLBFGSB": {
        "gradientConvergenceTolerance": 1e-5,
        "numberOfIterations": 500,
        "maximumNumberOfCorrections": 5,
        "maximumNumberOfFunctionEvaluations": 2000,
        "costFunctionConvergenceFactor": 1e7,
        "lowerBound": -sys.float_info.max,
        "upperBound": sys.float_info.max,
        "trace": False,
    },
    "SetOptimizerAsAmoeba": {
        "simplexDelta": float,
        "numberOfIterations": int,
        "parametersConvergenceTolerance": 1e-8,
        "functionConvergenceTolerance": 1e-4,
        "withRestarts": False,
    },
    "SetOptimizerAsPowell": {
        "numberOfIterations": 100,
        "maximumLineIterations": 100,
        "stepLength": 1.0,
        "stepTolerance": 1e-6,
        "valueTolerance": 1e-6,
    },
    "SetOptimizerAsOnePlusOneEvolutionary": {
        "numberOfIterations": 100,
        "epsilon": 1.5e-4,
        "initialRadius": 1.01,
        "growthFactor": -1.0,
        "shrinkFactor": -1.0,
        "seed": 0,
    },
    "SetOptimizerAsLBFGS2": {
        "solutionAccuracy": 1e-5,
        "numberOfIterations": 0,
        "hessianApproximateAccuracy": 6,
        "deltaConvergenceDistance": 0,
        "deltaConvergenceTolerance": 1e-5,
        "lineSearchMaximumEvaluations": 40,
        "lineSearchMinimumStep": 1e-20,
        "lineSearchMaximumStep": 1e20,
        "lineSearchAccuracy": 1e-4,
    },
}


def optimiser_signature(name: str) -> inspect.Signature:
    """The signature of a method of `OPTIMISERS`, as SimpleITK has it."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    for parameter, default in OPTIMISERS[name].items():
        if isinstance(default, type):
            parameters.append(inspect.Parameter(parameter, kind, annotation=default))
        else:
            parameters.append(inspect.Parameter(parameter, kind, default=default, annotation=type(default)))
    return inspect.Signature(parameters, return_annotation=None)


@dataclass
class Setup:
    """What the setters have said, as far as it becomes options of the preset and arguments of `register`.

    Attributes
    ----------
    preset : str or Settings
        The preset whose values hold where nothing is said.
    options : dict
        Arguments of `register` and options of the preset that were given by name.
    metric : str or Metric, optional
        Of whatever is optimised; None for that of `options` and the preset.
    radius : int, optional
        Of the window of the local correlation, in voxels of the level.
    seed : int, optional
        Of every random draw.
    iterations : int, optional
        The most iterations of a level.
    largest_step : float
        The learning rate that a deformation begins with, in mm; 0 for the preset's.
    shrink_factors : tuple of int, optional
        One a level, coarsest first.
    sigmas : tuple of float, optional
        Of the Gaussian smoothing, one a level.
    sigmas_in_mm : bool
        Whether `sigmas` are mm, else voxels of the fixed image.
    threads : int
        CPU threads; 0 for all that the process may use.
    exhaustive : Grid, optional
        What an exhaustive search goes over, in place of any other optimiser.
    optimiser : str
        SimpleITK's name of the one that was set; the engine's own works in place of any.
    scales, weights : tuple of float
        Of the parameters; empty for ones.
    """

    preset: str | Settings = "default"
    options: dict[str, Any] = field(default_factory=dict)
    metric: str | Metric | None = None
    radius: int | None = None
    seed: int | None = None
    iterations: int | None = None
    largest_step: float = 0.0
    shrink_factors: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sigmas_in_mm: bool = True
    threads: int = 0
    exhaustive: Grid | None = None
    optimiser: str = "the engine's own"
    scales: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def allowed_threads(self) -> int | None:
        """CPU threads as `register` takes them: None for all that the process may use."""
        given: int | None = self.threads or self.options.get("threads")
        return given

    def set_optimiser(self, name: str, values: dict[str, Any]) -> None:
        """Take the optimiser's parameters.

        Parameters
        ----------
        name : str
            A method of `OPTIMISERS`.
        values : dict
            All its parameters -> their values.

        Raises
        ------
        OptionError
            Iterations below 1, a negative or infinite step size, or bounds.
        """
        largest = sys.float_info.max
        if values.get("lowerBound", -largest) > -largest or values.get("upperBound", largest) < largest:
            raise OptionError(f"{name}: bounds are refused, parameters are free; leave them out")
        iterations = whole_number(values["numberOfIterations"])
        if name == "SetOptimizerAsLBFGS2" and iterations == 0:
            iterations = None
        elif iterations is None or iterations < 1:
            raise OptionError(
                f"{name}: numberOfIterations is a whole number of at least 1, got {values['numberOfIterations']!r}"
            )
        step = values.get("maximumStepSizeInPhysicalUnits", 0.0)
        if not 0 <= step < float("inf"):
            raise OptionError(f"{name}: maximumStepSizeInPhysicalUnits is not negative (mm), got {step!r}")
        self.iterations, self.largest_step, self.exhaustive = iterations, float(step), None
        self.optimiser = name.removeprefix("SetOptimizerAs")


def register_options(setup: Setup, deformable: bool, fixed: Geometry) -> dict[str, Any]:
    """What the setters have said, as arguments of `register` and options of the preset.

    Parameters
    ----------
    setup : Setup
        What they have said.
    deformable : bool
        Whether it is for a deformation, else for a linear registration.
    fixed : Geometry
        The fixed image's grid.

    Returns
    -------
    dict
        Name of the option -> value.

    Raises
    ------
    OptionError
        Settings that do not go together, or that the preset or the stage cannot have.
    """
    out = dict(setup.options)
    if setup.threads:
        out["threads"] = setup.threads
    if setup.seed is not None:
        out["seed"] = setup.seed
    if setup.metric is not None:
        out["metric" if deformable else LINEAR_METRIC] = setup.metric
    if setup.sigmas is not None:
        if setup.shrink_factors is None:
            raise OptionError("SetSmoothingSigmasPerLevel needs SetShrinkFactorsPerLevel with as many levels")
        if len(setup.sigmas) != len(setup.shrink_factors):
            raise OptionError(
                f"there are {len(setup.shrink_factors)} shrink factors but {len(setup.sigmas)} smoothing sigmas; give "
                "as many"
            )
    return {**out, **(_deformable_options if deformable else _linear_options)(setup, fixed)}


def _linear_options(setup: Setup, fixed: Geometry) -> dict[str, Any]:
    if setup.largest_step > 0:
        raise OptionError(
            "maximumStepSizeInPhysicalUnits has no meaning for a rigid or affine registration; leave it at 0"
        )
    out: dict[str, Any] = {}
    sizes = linear_sizes(fixed, setup.shrink_factors or ())
    if sizes:
        out["linear_size"] = sizes
    if sizes or setup.iterations is not None:
        own = _own_iterations(setup, "linear_iterations")
        out["linear_iterations"] = limited(own, len(sizes) or len(own), setup.iterations)
    if setup.radius is not None:
        out["linear_radius"] = setup.radius
    return out


def _deformable_options(setup: Setup, fixed: Geometry) -> dict[str, Any]:
    from itk_nir.settings import preset_settings

    out: dict[str, Any] = {}
    finest = min(fixed.spacing)
    if setup.radius is not None:
        out["radius"] = setup.radius
    if setup.shrink_factors is not None:
        unit = finest if setup.sigmas_in_mm else 1.0
        sigmas = None if setup.sigmas is None else [s / unit for s in setup.sigmas]
        out |= level_options(
            setup.preset, setup.shrink_factors, smoothing_sigmas=sigmas, most_iterations=setup.iterations
        )
        if "iterations" in setup.options:
            own = _own_iterations(setup, "iterations")
            out["iterations"] = limited(own, len(setup.shrink_factors), setup.iterations)
    elif setup.iterations is not None:
        own = _own_iterations(setup, "iterations")
        if not own:
            name = preset_settings(setup.preset).preset
            raise OptionError(f"preset {name!r} has phases of its own, so no number of iterations fits it")
        out["iterations"] = limited(own, len(own), setup.iterations)
    if setup.largest_step > 0:
        out["learning_rates"] = setup.largest_step / finest
    return out


def _own_iterations(setup: Setup, name: str) -> tuple[int, ...]:
    """Iterations of each level where the setters say nothing: the caller's option, else the preset's."""
    from itk_nir.settings import options_of

    value = setup.options.get(name, options_of(setup.preset).get(name, ()))
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)

"""Parameters and keywords of elastix, as data: what becomes of each here.

``docs/coming_from_elastix.md`` shows the same tables, and the tests compare the two.
"""

from __future__ import annotations

import re

from itk_nir.compat.options import MUTUAL_INFORMATION

#: Class of elastix' transform → stage of ours.
TRANSFORMS = {
    "TranslationTransform": "rigid",
    "EulerTransform": "rigid",
    "SimilarityTransform": "affine",
    "AffineTransform": "affine",
    "BSplineTransform": "deformable",
    "RecursiveBSplineTransform": "deformable",
}
#: Linear classes that are only taken before a stage that can do what they cannot, since the result would be of another
#: class otherwise.
WEAKER = ("TranslationTransform", "SimilarityTransform")

#: Similarity of elastix → metric here.
METRICS = {
    "AdvancedMattesMutualInformation": MUTUAL_INFORMATION,
    "NormalizedMutualInformation": MUTUAL_INFORMATION,
    "AdvancedNormalizedCorrelation": "ncc",
    "AdvancedMeanSquares": "mse",
}
#: Penalties, in place of which our own regularity stands.
PENALTIES = ("TransformBendingEnergyPenalty",)
#: Values that cannot be had as elastix has them, and what there is in their place.
REPLACED = {
    "TransformRigidityPenalty": "instead of FixedRigidityImageName, give rigid_regions= a label map of the fixed "
    "image: its regions become exactly rigid",
}
#: The metric of corresponding points, which are landmarks here.
POINTS = "CorrespondingPointsEuclideanDistanceMetric"
#: Keywords for these points: files and sets in memory.
POINT_KEYWORDS = {
    "fixed": ("fixed_point_set_file_name", "fixed_points"), "moving": ("moving_point_set_file_name", "moving_points"),
}  # fmt: skip
#: Bins of mutual information where nothing is said, as in elastix.
BINS = 32

#: Interpolator of the result → our interpolation (None: `FinalBSplineInterpolationOrder` decides).
INTERPOLATORS = {
    "FinalBSplineInterpolator": None,
    "FinalBSplineInterpolatorFloat": None,
    "FinalLinearInterpolator": "linear",
    "FinalNearestNeighborInterpolator": "nearest",
}
#: `FinalBSplineInterpolationOrder` → our interpolation.
ORDERS = {"0": "nearest", "1": "linear", "3": "bspline"}
#: Parameters of the resampled image as elastix has them where nothing is said.
DEFAULT_OUTPUT = {"FinalBSplineInterpolationOrder": ("3",)}

#: elastix' names of pixel types → NumPy's.
PIXELS = {
    "float": "float32", "double": "float64", "char": "int8", "unsigned char": "uint8", "short": "int16",
    "unsigned short": "uint16", "int": "int32", "unsigned int": "uint32", "float32": "float32", "float64": "float64",
}  # fmt: skip

#: Parameters that are done as asked.
HONOURED = (
    "Transform", "AutomaticTransformInitialization", "RandomSeed", "FixedImageDimension", "MovingImageDimension",
    "ResampleInterpolator", "FinalBSplineInterpolationOrder", "DefaultPixelValue", "WriteResultImage",
    "ResultImageFormat", "ResultImagePixelType", "CompressResultImage", "NumberOfHistogramBins",
    "NumberOfFixedHistogramBins", "NumberOfMovingHistogramBins", "UseRelativeWeights",
)  # fmt: skip

#: Parameters of which only these values can be had: any other is an error.
ONLY: dict[str, tuple[str, ...]] = {
    "Metric": (*METRICS, *PENALTIES, POINTS),
    "AutomaticTransformInitializationMethod": ("GeometricalCenter", "CenterOfGravity"),
    "HowToCombineTransforms": ("Compose",),
    "UseDirectionCosines": ("true",),
    "Registration": ("MultiResolutionRegistration", "MultiMetricMultiResolutionRegistration"),
    "Resampler": ("DefaultResampler",),
    "InitialTransformParameterFileName": ("NoInitialTransform", ""),
    "InitialTransformParametersFileName": ("NoInitialTransform", ""),
    "ErodeMask": ("false",),
    "ErodeFixedMask": ("false",),
    "ErodeMovingMask": ("false",),
    "UseCyclicTransform": ("false",),
    "WriteFinalTransformParameters": ("true",),
    "WriteIterationInfo": ("false",),
    "WriteResultImageAfterEachResolution": ("false",),
    "WriteResultImageAfterEachIteration": ("false",),
    "WriteTransformParametersEachResolution": ("false",),
    "WriteTransformParametersEachIteration": ("false",),
    "WritePyramidImagesAfterEachResolution": ("false",),
    "ITKTransformOutputFileNameExtension": ("",),
}

#: Parameters of elastix' own way to search, which have no meaning here; the preset and its options decide instead.
NO_MEANING: dict[str, tuple[str, ...]] = {
    "optimiser": (
        "Optimizer", "MaximumNumberOfIterations", "AutomaticParameterEstimation", "AutomaticScalesEstimation",
        "ASGDParameterEstimationMethod", "UseAdaptiveStepSizes", "MaximumStepLength",
        "MaximumDisplacementEstimationMethod", "NumberOfGradientMeasurements", "NumberOfJacobianMeasurements",
        "NumberOfSamplesForExactGradient", "NumberOfSamplesForNoiseCompensationFactor", "NumberOfBandStructureSamples",
        "UseNoiseCompensation", "SigmoidInitialTime", "SigmoidMax", "SigmoidMin", "SigmoidScaleFactor", "SP_a", "SP_A",
        "SP_alpha", "SP_c", "SP_gamma", "MinimumStepLength", "MinimumGradientMagnitude", "RelaxationFactor",
        "GradientMagnitudeTolerance", "ValueTolerance", "StopIfWolfeNotSatisfied", "LBFGSUpdateAccuracy",
        "LineSearchValueTolerance", "LineSearchGradientTolerance", "MaximumNumberOfLineSearchIterations",
        "ShowExactMetricValue", "NoiseCompensation",
    ),
    "samples": (
        "ImageSampler", "NumberOfSpatialSamples", "NewSamplesEveryIteration", "CheckNumberOfSamples",
        "RequiredRatioOfValidSamples", "MaximumNumberOfSamplingAttempts", "UseRandomSampleRegion", "SampleRegionSize",
        "SampleGridSpacing", "FixedImageBSplineInterpolationOrder", "Interpolator", "BSplineInterpolationOrder",
    ),
    "similarity": (
        "FixedKernelBSplineOrder", "MovingKernelBSplineOrder", "FixedLimitRangeRatio", "MovingLimitRangeRatio",
        "UseFastAndLowMemoryVersion", "UseJacobianPreconditioning", "FiniteDifferenceDerivative", "SubtractMean",
        "UseNormalization", "UseMultiThreadingForMetrics",
    ),
    "levels": (
        "NumberOfResolutions", "FixedImagePyramid", "MovingImagePyramid", "ImagePyramidSchedule",
        "FixedImagePyramidSchedule", "MovingImagePyramidSchedule", "ImagePyramidRescaleSchedule",
        "ImagePyramidSmoothingSchedule", "FixedImagePyramidRescaleSchedule", "FixedImagePyramidSmoothingSchedule",
        "MovingImagePyramidRescaleSchedule", "MovingImagePyramidSmoothingSchedule",
    ),
    "grid": (
        "FinalGridSpacingInPhysicalUnits", "FinalGridSpacingInVoxels", "GridSpacingSchedule",
        "BSplineTransformSplineOrder", "PassiveEdgeWidth", "UpsampleGridOption",
    ),
    "memory": ("FixedInternalImagePixelType", "MovingInternalImagePixelType"),
}  # fmt: skip

#: Group of `NO_MEANING` → what decides instead.
INSTEAD: dict[str, str] = {
    "optimiser": "`iterations=`, `learning_rates=`",
    "samples": "every voxel of a level counts",
    "similarity": "`radius=`, `smoothness=`",
    "levels": "`shrink_factors=`, `smoothing_sigmas=`",
    "grid": "`grid_spacing=`",
    "memory": "always float",
}

#: Keywords of ``itk.elastix_registration_method`` that cannot be had, and what to do instead.
REFUSED = {
    "log_to_file": "log_to_console=True prints the same lines; or give callback=",
    "log_file_name": "log_to_console=True prints the same lines; or give callback=",
    "log_level": "log_to_console=True prints what there is",
    "initial_transform_parameter_object_file_name": "did you mean initial_transform_parameter_file_name?",
}

#: Every parameter that may be given, those of `is_of_metric` left out.
KNOWN = (*HONOURED, *ONLY, *(name for names in NO_MEANING.values() for name in names))

_MEANINGLESS = frozenset(name for names in NO_MEANING.values() for name in names)
_NUMBERED = re.compile(r"Metric\d+(Weight|RelativeWeight|Use)$")


def has_no_meaning(name: str) -> bool:
    """Tell whether a parameter belongs to elastix' own way to search.

    Parameters
    ----------
    name : str
        Name of a parameter.

    Returns
    -------
    bool
        Whether it is in `NO_MEANING`.
    """
    return name in _MEANINGLESS


def is_of_metric(name: str) -> bool:
    """Tell whether a parameter says how much one of several metrics counts.

    Parameters
    ----------
    name : str
        Name of a parameter.

    Returns
    -------
    bool
        Whether it is ``Metric0Weight``, ``Metric0RelativeWeight``, ``Metric0Use`` or that of another number.
    """
    return _NUMBERED.match(name) is not None

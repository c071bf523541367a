"""Parameters and keywords of elastix, as data: what becomes of each here.

``docs/coming_from_elastix.md`` shows the same tables, and the tests compare the two.
"""

from __future__ import annotations

import re

from itk_nir.compat.options import MUTUAL_INFORMATION

#: Class of elastix' transform → stage of ours.
TRANSFORMS = {
    "TranslationTransform": "translation",
    "EulerTransform": "rigid",
    "SimilarityTransform": "similarity",
    "AffineTransform": "affine",
    "AffineDTITransform": "affine",
    "BSplineTransform": "deformable",
    "RecursiveBSplineTransform": "deformable",
}
#: Linear stages, each of which can do what those before it can.
LINEAR = ("none", "translation", "rigid", "similarity", "affine")
#: The stages where no parameter map is given, which are elastix' own.
DEFAULT_KINDS = ("TranslationTransform", "AffineTransform", "BSplineTransform")

#: Similarity of elastix → metric here.
METRICS = {
    "AdvancedMattesMutualInformation": MUTUAL_INFORMATION,
    "NormalizedMutualInformation": MUTUAL_INFORMATION,
    "MattesMutualInformation": MUTUAL_INFORMATION,
    "MattesMutualInformationWithRigidityPenalty": MUTUAL_INFORMATION,
    "AdvancedNormalizedCorrelation": "ncc",
    "AdvancedMeanSquares": "mse",
    "KNNGraphAlphaMutualInformation": MUTUAL_INFORMATION,
    "SumSquaredTissueVolumeDifference": "lncc",
}
#: Similarities for which another one stands: what that one does not see of what they measure.
STANDING_IN = {
    "KNNGraphAlphaMutualInformation": "the mutual information of each pair of images by itself, with a histogram of 32 "
    "bins, and their sum: what several features tell together beyond that is not estimated",
    "SumSquaredTissueVolumeDifference": "local correlation, which does not change with the density of the tissue, "
    "where that metric follows its change with the volume",
}
#: A deformation for each slice along the last axis, of which there can be the inverse.
STACK = "BSplineStackTransform"
#: The penalty whose minimum, where it is the only metric, is the inverse of the initial transform.
INVERSION = "DisplacementMagnitudePenalty"
#: The penalty that keeps regions rigid.
RIGIDITY = "TransformRigidityPenalty"
#: What elastix 3 and 4 called mutual information with that penalty.
WITH_RIGIDITY = "MattesMutualInformationWithRigidityPenalty"
#: The penalty on the volume of what is in the fixed image alone, which is a lesion here.
MISSING = "MissingStructurePenalty"
#: What has surfaces warped and is no penalty: its value is 0.
SURFACES = "PolydataDummyPenalty"
#: Metrics of surfaces: what stands for them.
OF_SURFACES = {
    MISSING: "what lies within its surfaces has no counterpart: it is not looked at in any stage, and the deformation "
    "follows its surroundings there; it is not made smaller for its own sake",
    SURFACES: "nothing: its value is 0, and its surfaces are not warped; map their points with transformix -def",
}
#: Penalties, in place of which our own regularity stands, or what is known of the image.
PENALTIES = ("TransformBendingEnergyPenalty", INVERSION, MISSING, SURFACES)
#: The overlap of one structure in both images, which is a label here.
OVERLAP = "AdvancedKappaStatistic"
#: Values that cannot be had, and why or what there is in their place.
_SERIES = (
    "it compares the volumes of a series, and a registration takes two images; register each volume to one of them"
)
_PROJECTION = "it compares an X-ray projection with a volume; 2D images are registered to 2D ones here, 3D to 3D"
REPLACED = {
    "VarianceOverLastDimensionMetric": _SERIES,
    "PCAMetric": _SERIES,
    "PCAMetric2": _SERIES,
    "SumOfPairwiseCorrelationCoefficientsMetric": _SERIES,
    "BSplineStackTransform": _SERIES,
    "TranslationStackTransform": _SERIES,
    "EulerStackTransform": _SERIES,
    "AffineLogStackTransform": _SERIES,
    "FinalReducedDimensionBSplineInterpolator": _SERIES,
    "FinalRayCastInterpolator": _PROJECTION,
    "NormalizedGradientCorrelation": _PROJECTION,
    "GradientDifference": _PROJECTION,
    "PatternIntensity": _PROJECTION,
    "StatisticalShapePenalty": "it compares points with a model of shapes, and there is no such model here; give "
    "corresponding points with the metric CorrespondingPointsEuclideanDistanceMetric",
    "MultiBSplineTransformWithNormal": "the map would slide along a surface and be torn there; all maps are continuous "
    "here",
}
#: The metric of corresponding points, which are landmarks here.
POINTS = "CorrespondingPointsEuclideanDistanceMetric"
#: Keywords for these points: files and sets in memory.
POINT_KEYWORDS = {
    "fixed": ("fixed_point_set_file_name", "fixed_points"), "moving": ("moving_point_set_file_name", "moving_points"),
}  # fmt: skip
#: Bins of mutual information where nothing is said, as in elastix.
BINS = 32

#: Interpolator of the result → order of its B-spline (None: `FinalBSplineInterpolationOrder` decides).
INTERPOLATORS = {
    "FinalBSplineInterpolator": None,
    "FinalBSplineInterpolatorFloat": None,
    "FinalLinearInterpolator": 1,
    "FinalNearestNeighborInterpolator": 0,
}

#: elastix' names of pixel types → NumPy's.
PIXELS = {
    "float": "float32", "double": "float64", "char": "int8", "unsigned char": "uint8", "short": "int16",
    "unsigned short": "uint16", "int": "int32", "unsigned int": "uint32", "float32": "float32", "float64": "float64",
    "long": "int64", "unsigned long": "uint64", "ushort": "uint16", "int8": "int8", "uint8": "uint8", "int16": "int16",
    "uint16": "uint16", "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
}  # fmt: skip

#: Parameters that are done as asked.
HONOURED = (
    "Transform", "AutomaticTransformInitialization", "RandomSeed", "FixedImageDimension", "MovingImageDimension",
    "ResampleInterpolator", "FinalBSplineInterpolationOrder", "DefaultPixelValue", "WriteResultImage",
    "ResultImageFormat", "ResultImagePixelType", "CompressResultImage", "ResultImageName", "NumberOfHistogramBins",
    "NumberOfFixedHistogramBins", "NumberOfMovingHistogramBins", "UseRelativeWeights", "UseDirectionCosines",
    "WriteFinalTransformParameters", "OutputTransformParameterFileFormat", "FixedRigidityImageName",
    "UseFixedRigidityImage", "MovingRigidityImageName", "UseMovingRigidityImage", "ForegroundValue",
)  # fmt: skip

#: Parameters of which only these values can be had: any other is an error.
ONLY: dict[str, tuple[str, ...]] = {
    "Metric": (*METRICS, *PENALTIES, POINTS, OVERLAP, RIGIDITY),
    "AutomaticTransformInitializationMethod": ("GeometricalCenter", "CenterOfGravity", "Origins", "GeometryTop"),
    "HowToCombineTransforms": ("Compose", "Add"),
    "Registration": (
        "MultiResolutionRegistration",
        "MultiMetricMultiResolutionRegistration",
        "MultiResolutionRegistrationWithFeatures",
    ),
    "Resampler": ("DefaultResampler", "CUDAResampler", "OpenCLResampler", "MyStandardResampler"),
    "InitialTransformParameterFileName": ("NoInitialTransform", ""),
    "InitialTransformParametersFileName": ("NoInitialTransform", ""),
    "UseCyclicTransform": ("false",),
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
        "ShowExactMetricValue", "NoiseCompensation", "ShowExactMetricValues", "MaxBandCovSize", "Scales", "Scaler",
        "ConjugateGradientType", "GenerateLineSearchIterations", "StepLength", "StepTolerance", "UseConstantStep",
        "MaximumStepLengthRatio", "GradientEstimationMethod", "AutomaticInitialSimplex", "InitialSimplexDelta",
        "UseDecayingSigma", "CenterOfRotationPoint", "CenterOfRotation", "MaximumNumberOfSamplesForExactGradient",
        "PopulationSize", "NumberOfPerturbations", "AutomaticLBFGSStepsizeEstimation", "NumberOfInnerLoopSamples",
        "NumberOfSamplesForSelfHessian", "SelfHessianSmoothingSigma", "SelfHessianNoiseRange",
        "JacobianThresholdPercentage", "ScalesEstimationMethod", "StepSizeStrategy",
    ),
    "samples": (
        "ImageSampler", "NumberOfSpatialSamples", "NewSamplesEveryIteration", "CheckNumberOfSamples",
        "RequiredRatioOfValidSamples", "MaximumNumberOfSamplingAttempts", "UseRandomSampleRegion", "SampleRegionSize",
        "SampleGridSpacing", "FixedImageBSplineInterpolationOrder", "Interpolator", "BSplineInterpolationOrder",
        "Sampler", "UseAllPixels", "ExactMetricSampleGridSpacing", "ExactMetricEveryXIterations",
        "FixedImageBSplineInterpolatorOrder", "MovingImageBSplineInterpolationOrder", "UseDifferentiableOverlap",
        "ErodeMask", "ErodeFixedMask", "ErodeMovingMask", "MovingImageDerivativeScales",
        "UseMovingImageDerivativeScales",
    ),
    "similarity": (
        "FixedKernelBSplineOrder", "MovingKernelBSplineOrder", "FixedLimitRangeRatio", "MovingLimitRangeRatio",
        "UseFastAndLowMemoryVersion", "UseJacobianPreconditioning", "FiniteDifferenceDerivative", "SubtractMean",
        "UseNormalization", "UseMultiThreadingForMetrics", "UseExplicitPDFDerivatives", "LinearityConditionWeight",
        "OrthonormalityConditionWeight", "PropernessConditionWeight", "UseLinearityCondition",
        "UseOrthonormalityCondition", "UsePropernessCondition", "CalculateLinearityCondition",
        "CalculateOrthonormalityCondition", "CalculatePropernessCondition", "DilateRigidityImages",
        "DilationRadiusMultiplier", "RigidityPenaltyWeight", "AirValue", "TissueValue",
    ),
    "graph": (
        "Alpha", "AvoidDivisionBy", "TreeType", "BucketSize", "SplittingRule", "ShrinkingRule", "TreeSearchType",
        "KNearestNeighbours", "ErrorBound", "SquaredSearchRadius",
    ),
    "levels": (
        "NumberOfResolutions", "FixedImagePyramid", "MovingImagePyramid", "ImagePyramidSchedule",
        "FixedImagePyramidSchedule", "MovingImagePyramidSchedule", "ImagePyramidRescaleSchedule",
        "ImagePyramidSmoothingSchedule", "FixedImagePyramidRescaleSchedule", "FixedImagePyramidSmoothingSchedule",
        "MovingImagePyramidRescaleSchedule", "MovingImagePyramidSmoothingSchedule",
    ),
    "grid": (
        "FinalGridSpacingInPhysicalUnits", "FinalGridSpacingInVoxels", "GridSpacingSchedule", "FinalGridSpacing",
        "BSplineTransformSplineOrder", "PassiveEdgeWidth", "UpsampleGridOption",
    ),
    "result": (
        "ComputeZYX", "NumberOfParameters", "TransformParameters", "Size", "Index", "Spacing", "Origin", "Direction",
        "GridSize", "GridIndex", "GridSpacing", "GridOrigin", "GridDirection", "DeformationFieldFileName",
        "DeformationFieldInterpolationOrder",
    ),
    "files": (
        "WriteIterationInfo", "WriteResultImageAfterEachResolution", "WriteResultImageAfterEachIteration",
        "WriteTransformParametersEachResolution", "WriteTransformParametersEachIteration",
        "WritePyramidImagesAfterEachResolution", "WriteResultMeshAfterEachResolution",
        "WriteResultMeshAfterEachIteration", "WriteDiffusionFiles", "WriteITKCompositeTransform",
        "ShowProgressPercentage", "ReleaseMemoryBeforeResampling",
    ),
    "memory": (
        "FixedInternalImagePixelType", "MovingInternalImagePixelType", "FixedImagePixelType", "MovingImagePixelType",
        "UseCUDA", "OpenCLResamplerUseOpenCL", "OpenCLDeviceType", "OpenCLDeviceID",
    ),
}  # fmt: skip

#: Group of `NO_MEANING` → what decides instead.
INSTEAD: dict[str, str] = {
    "optimiser": "`iterations=`, `learning_rates=`",
    "samples": "every voxel of a level counts, and of a mask every voxel that it has",
    "similarity": "`radius=`, `smoothness=`, `region_weight=`",
    "graph": "the histogram of mutual information, `NumberOfHistogramBins`",
    "levels": "`shrink_factors=`, `smoothing_sigmas=`",
    "grid": "`grid_spacing=`",
    "result": "an initial transform that is given as such; the grid is that of the fixed image",
    "files": "only what the end is made of is written; `callback=` sees every iteration",
    "memory": "always float; `device=`",
}

#: Keywords of ``itk.elastix_registration_method`` that cannot be had, and what to do instead.
REFUSED = {
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

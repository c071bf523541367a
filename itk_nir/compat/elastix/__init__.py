"""elastix' call: ``registration_method(fixed, moving, parameter_object=…) -> (image, ParameterObject)``.

The parameter maps say *what* to align (which transforms, masks, how to resample): that is honoured. *How* elastix
searches (its optimiser, samples, pyramids, B-spline grid) has no counterpart: the preset decides. What is in neither
list below is an error that names the parameter. The returned object is for ``itk.transformix_filter``, and to start
elastix from. It needs ``itk-elastix`` (``pip install itk-elastix``).
"""

from __future__ import annotations

import atexit
import difflib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.settings import make_settings
from itk_nir.engine.progress import Callback, Progress
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, save_image, to_itk
from itk_nir.resample import resample_array
from itk_nir.atomic import all_or_none
from itk_nir.transforms.formats.elastix import as_text, parameter_maps, read_elastix
from itk_nir.loading import load_transform
from itk_nir.transforms.model import CompositeTransform

ParameterMap = dict[str, list[str]]

#: Class of elastix' transform → stage of ours. The weaker linear classes are only taken before a stage that can do
#: what they cannot, since the result would be of another class otherwise.
TRANSFORMS = {
    "TranslationTransform": "rigid",
    "EulerTransform": "rigid",
    "SimilarityTransform": "affine",
    "AffineTransform": "affine",
    "BSplineTransform": "deformable",
    "RecursiveBSplineTransform": "deformable",
}
_WEAKER = ("TranslationTransform", "SimilarityTransform")

#: Similarities that are approximated by local normalised cross-correlation, and penalties by our own regularity.
METRICS = (
    "AdvancedMattesMutualInformation", "NormalizedMutualInformation", "AdvancedNormalizedCorrelation",
    "AdvancedMeanSquares", "TransformBendingEnergyPenalty",
)  # fmt: skip

#: Interpolator of the result → our interpolation (None: `FinalBSplineInterpolationOrder` decides).
INTERPOLATORS = {
    "FinalBSplineInterpolator": None,
    "FinalBSplineInterpolatorFloat": None,
    "FinalLinearInterpolator": "linear",
    "FinalNearestNeighborInterpolator": "nearest",
}
_ORDERS = {"0": "nearest", "1": "linear", "3": "bspline"}
#: What elastix does where nothing is said.
_CUBIC = {"FinalBSplineInterpolationOrder": ("3",)}

#: Parameters that are done as asked.
HONOURED = (
    "Transform", "AutomaticTransformInitialization", "RandomSeed", "FixedImageDimension", "MovingImageDimension",
    "ResampleInterpolator", "FinalBSplineInterpolationOrder", "DefaultPixelValue", "WriteResultImage",
    "ResultImageFormat", "ResultImagePixelType", "CompressResultImage",
)  # fmt: skip

#: Parameters of which only these values can be had: any other is an error.
ONLY: dict[str, tuple[str, ...]] = {
    "Metric": METRICS,
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
        "NumberOfSamplesForExactGradient",
        "NumberOfSamplesForNoiseCompensationFactor", "NumberOfBandStructureSamples", "UseNoiseCompensation",
        "SigmoidInitialTime", "SigmoidMax", "SigmoidMin", "SigmoidScaleFactor", "SP_a", "SP_A", "SP_alpha", "SP_c",
        "SP_gamma", "MinimumStepLength", "MinimumGradientMagnitude", "RelaxationFactor", "GradientMagnitudeTolerance",
        "ValueTolerance", "StopIfWolfeNotSatisfied", "LBFGSUpdateAccuracy", "LineSearchValueTolerance",
        "LineSearchGradientTolerance", "MaximumNumberOfLineSearchIterations", "ShowExactMetricValue",
        "NoiseCompensation",
    ),
    "samples": (
        "ImageSampler", "NumberOfSpatialSamples", "NewSamplesEveryIteration", "CheckNumberOfSamples",
        "RequiredRatioOfValidSamples", "MaximumNumberOfSamplingAttempts", "UseRandomSampleRegion", "SampleRegionSize",
        "SampleGridSpacing", "FixedImageBSplineInterpolationOrder", "Interpolator", "BSplineInterpolationOrder",
    ),
    "similarity": (
        "NumberOfHistogramBins", "NumberOfFixedHistogramBins", "NumberOfMovingHistogramBins", "FixedKernelBSplineOrder",
        "MovingKernelBSplineOrder", "FixedLimitRangeRatio", "MovingLimitRangeRatio", "UseFastAndLowMemoryVersion",
        "UseJacobianPreconditioning", "FiniteDifferenceDerivative", "SubtractMean", "UseNormalization",
        "UseMultiThreadingForMetrics", "UseRelativeWeights",
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
_MEANINGLESS = frozenset(name for names in NO_MEANING.values() for name in names)
#: Weights of the n-th metric: likewise.
_NUMBERED = re.compile(r"Metric\d+(Weight|RelativeWeight|Use)$")

#: Keywords of ``itk.elastix_registration_method`` that cannot be had, and what to do instead.
REFUSED = {
    "fixed_point_set_file_name": "landmarks do not take part in a registration",
    "moving_point_set_file_name": "landmarks do not take part in a registration",
    "fixed_points": "landmarks do not take part in a registration",
    "moving_points": "landmarks do not take part in a registration",
    "log_to_file": "log_to_console=True prints the same lines; or give callback=",
    "log_file_name": "log_to_console=True prints the same lines; or give callback=",
    "log_level": "log_to_console=True prints what there is",
    "initial_transform_parameter_object_file_name": "did you mean initial_transform_parameter_file_name?",
}


@dataclass(frozen=True)
class Request:
    """What parameter maps ask for.

    Attributes
    ----------
    linear : ``"none"``, ``"rigid"`` or ``"affine"``.
    deformable : whether a deformable stage follows.
    search : whether the linear stage may look for a start of its own.
    seed : of every random draw.
    interpolation, default : how the result is resampled; value outside the moving image.
    output : parameters of the result that go into the returned maps as they are.
    write_image : whether an image file is wanted in the output directory.
    unused : names of the parameters that have no meaning here.
    """

    linear: str = "affine"
    deformable: bool = True
    search: bool = True
    seed: int = 0
    interpolation: str = "bspline"
    default: float = 0.0
    output: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(_CUBIC))
    write_image: bool = True
    unused: tuple[str, ...] = ()


def registration_method(
    fixed_image: Any,
    moving_image: Any,
    parameter_object: Any = None,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    external_initial_transform: Any = None,
    initial_transform_parameter_object: Any = None,
    initial_transform_parameter_file_name: str | os.PathLike[str] | None = None,
    output_directory: str | os.PathLike[str] | None = None,
    log_to_console: bool = False,
    number_of_threads: int = 0,
    preset: str = "default",
    device: str = "auto",
    callback: Callback | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Register as ``itk.elastix_registration_method`` would be asked to.

    Parameters
    ----------
    fixed_image, moving_image : as for `itk_nir.register`; their pixel types may differ.
    parameter_object : an ``itk.ParameterObject``, a dict or a list of dicts (one map a stage, in order), or a path to
        a parameter file or a list of these. Left out: an affine, then a deformable stage.
    fixed_mask, moving_mask : image or path, above 0 where the image counts.
    initial_transform, external_initial_transform : a transform of ITK's or SimpleITK's, or whatever
        `itk_nir.load_transform` takes, fixed → moving. Both names mean the same.
    initial_transform_parameter_object, initial_transform_parameter_file_name : a result of elastix instead: its object,
        or its last ``TransformParameters.N.txt``. At most one of the four may be given. The result contains it.
    output_directory : an existing folder for ``TransformParameters.N.txt``, the displacement field they name, and
        ``result.N.FORMAT``. Left out: the field goes to a folder of its own for this result under the system's
        temporary folder, which is removed when Python ends; the returned object is of no use after that.
    log_to_console : print a line for every tenth step.
    number_of_threads : 0 for all that the process may use.
    preset, device, callback, **options : as for `itk_nir.register`.

    Returns
    -------
    image : ``itk.Image`` of the fixed image's pixel type on its grid: the moving image seen through the transform.
    transform_parameters : an ``itk.ParameterObject``, first applied map first: the deformation (a
        ``DeformationFieldTransform``), the linear part, the initial transform. ``itk.transformix_filter`` takes it.

    Raises
    ------
    OptionError : a parameter or keyword that is unknown or cannot be honoured, by its name.
    InputError : an image, mask, transform or folder that cannot be used; itk-elastix is not installed.
    """
    itk = _itk_elastix()
    for name in options:
        if name in REFUSED:
            raise OptionError(f"elastix: {name} cannot be used here: {REFUSED[name]}")
    if isinstance(number_of_threads, bool) or not isinstance(number_of_threads, int) or number_of_threads < 0:
        raise OptionError(f"number_of_threads is a whole number, 0 for all, got {number_of_threads!r}")
    maps = _read_maps(parameter_object)
    request = understand(maps)
    make_settings(preset, **options)
    folder = None if output_directory is None else Path(output_directory)
    if folder is not None and not folder.is_dir():
        raise InputError(f"output_directory {folder}: no such folder; create it first")
    fixed, moving = load_image(fixed_image, "fixed image"), load_image(moving_image, "moving image")
    _check_dimensions(maps, fixed, moving)
    starts = {
        "initial_transform": initial_transform,
        "external_initial_transform": external_initial_transform,
        "initial_transform_parameter_object": initial_transform_parameter_object,
        "initial_transform_parameter_file_name": initial_transform_parameter_file_name,
    }
    start = _start(starts, fixed.geometry)
    if start is None and not request.search:
        start = load_transform(np.eye(fixed.dimension + 1))

    from itk_nir.registration import register

    if log_to_console and request.unused:
        print(f"elastix parameters without a meaning here: {', '.join(request.unused)}", flush=True)
    result = register(
        fixed, moving, preset=preset, linear=request.linear, deformable=request.deformable, fixed_mask=fixed_mask,
        moving_mask=moving_mask, initial_transform=start, seed=request.seed, device=device,
        threads=number_of_threads or None, callback=_printing(callback) if log_to_console else callback, **options,
    )  # fmt: skip
    warped = resample_array(
        moving.array, moving.geometry, result.chain, fixed.geometry, request.interpolation, request.default
    )
    image = to_itk(_as_type(warped, fixed.pixel_type), fixed.geometry)
    if folder is None:
        maps = _finished(parameter_maps(result.chain, _own_folder(), fixed.geometry), request)
    else:
        maps = _write(result.chain, folder, request, warped, fixed.geometry)
    parameters = itk.ParameterObject.New()
    for one in maps:
        parameters.AddParameterMap(one)
    return image, parameters


def understand(maps: list[ParameterMap]) -> Request:
    """What the maps of a registration ask for; an empty list asks for elastix' defaults, as far as we have them.

    Raises
    ------
    OptionError : the first parameter that is unknown or has a value that cannot be honoured.
    """
    if not maps:
        return Request()
    for number, one in enumerate(maps):
        for name, values in one.items():
            _check(name, values, f"elastix parameter {name} of map {number}")
    linear, deformable = _stages(maps)
    last = maps[-1]
    kind = INTERPOLATORS[_one(last, "ResampleInterpolator", "FinalBSplineInterpolator", INTERPOLATORS)]
    order = _one(last, "FinalBSplineInterpolationOrder", "3", _ORDERS)
    wanted = ("ResampleInterpolator", "FinalBSplineInterpolationOrder", "DefaultPixelValue", "ResultImageFormat",
              "ResultImagePixelType", "CompressResultImage")  # fmt: skip
    first = maps[0]
    return Request(
        linear,
        deformable,
        _flag(first, "AutomaticTransformInitialization", True),
        int(_number(first, "RandomSeed", 0)),
        kind or _ORDERS[order],
        _number(last, "DefaultPixelValue", 0),
        {**_CUBIC, **{k: tuple(last[k]) for k in wanted if k in last}},
        _flag(last, "WriteResultImage", True),
        tuple(dict.fromkeys(name for one in maps for name in one if name in _MEANINGLESS or _NUMBERED.match(name))),
    )


def _check(name: str, values: list[str], label: str) -> None:
    if name in ONLY:
        for value in values:
            if value not in ONLY[name]:
                known = ", ".join(repr(v) for v in ONLY[name])
                raise OptionError(f"{label}: {value!r} cannot be had here; it may be {known}")
    elif name not in HONOURED and name not in _MEANINGLESS and not _NUMBERED.match(name):
        close = difflib.get_close_matches(name, [*HONOURED, *ONLY, *_MEANINGLESS], n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "remove it if the alignment does not depend on it"
        raise OptionError(f"{label}: not known here, so it cannot be honoured; {hint}")
    if name == "MaximumNumberOfIterations" and any(v.strip() == "0" for v in values):
        raise OptionError(f"{label}: 0 steps leave the initial transform as it is; apply that one directly")
    if name == "ResultImagePixelType" and values[:1] not in ([k] for k in _PIXELS):
        raise OptionError(f"{label}: {values} is no pixel type that can be written; it may be {', '.join(_PIXELS)}")


def _stages(maps: list[ParameterMap]) -> tuple[str, bool]:
    names = []
    for number, one in enumerate(maps):
        if "Transform" not in one:
            raise OptionError(
                f"elastix parameter Transform is missing in map {number}; name one of {_list(TRANSFORMS)}"
            )
        names.append(_one(one, "Transform", "", TRANSFORMS))
    kinds = [TRANSFORMS[n] for n in names]
    if kinds.count("deformable") > 1:
        raise OptionError(
            f"elastix parameter Transform: {kinds.count('deformable')} deformable maps in a row cannot be had; one "
            "already goes from coarse to fine, remove the others"
        )
    if "deformable" in kinds[:-1]:
        raise OptionError(
            f"elastix parameter Transform: {names[-1]} after a deformable map cannot be had; put it first"
        )
    linear = [n for n, k in zip(names, kinds, strict=True) if k != "deformable"]
    if linear and linear[-1] in _WEAKER and kinds[-1] != "deformable":
        raise OptionError(
            f"elastix parameter Transform: {linear[-1]} as the last map cannot be had; ask for EulerTransform or "
            "AffineTransform"
        )
    stage = "none"
    if linear:
        stage = "affine" if "affine" in (TRANSFORMS[n] for n in linear) else "rigid"
    return stage, kinds[-1] == "deformable"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _one(parameters: ParameterMap, name: str, default: str, known: Mapping[str, Any]) -> str:
    value = (parameters.get(name) or [default])[0]
    if value not in known:
        raise OptionError(f"elastix parameter {name}: {value!r} cannot be had here; it may be {_list(known)}")
    return value


def _flag(parameters: ParameterMap, name: str, default: bool) -> bool:
    fallback = "true" if default else "false"
    return _one(parameters, name, fallback, {"true": True, "false": False}) == "true"


def _number(parameters: ParameterMap, name: str, default: float) -> float:
    text = (parameters.get(name) or [str(default)])[0]
    try:
        value = float(text)
    except ValueError:
        raise OptionError(f"elastix parameter {name}: is a number, got {text!r}") from None
    if not np.isfinite(value) or (name == "RandomSeed" and (value < 0 or value != int(value))):
        raise OptionError(f"elastix parameter {name}: cannot be {text!r}")
    return value


# --- inputs ----------------------------------------------------------------------------------------------------------


def _itk_elastix() -> Any:
    import itk

    try:
        _ = itk.ParameterObject
    except AttributeError:
        raise InputError("elastix: itk.ParameterObject is not there; pip install itk-elastix") from None
    return itk


def _read_maps(source: Any) -> list[ParameterMap]:
    """Parameter maps, whatever they come as, with all values as text."""
    if source is None:
        return []
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if hasattr(source, "GetNumberOfParameterMaps"):
        source = [source.GetParameterMap(n) for n in range(source.GetNumberOfParameterMaps())]
    if hasattr(source, "keys"):
        source = [source]
    if not isinstance(source, (list, tuple)) or not source:
        raise InputError(
            f"parameter_object: cannot use {source!r}; give an itk.ParameterObject, a dict, a list of dicts or a path"
        )
    return [_read_map(one) for one in source]


def _read_map(source: Any) -> ParameterMap:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"parameter file {path}: no such file; check the path")
        parameters = _itk_elastix().ParameterObject.New()
        try:
            parameters.AddParameterFile(str(path))
        except RuntimeError as error:
            raise InputError(f"parameter file {path}: is none of elastix' ({one_line(error)})") from error
        source = parameters.GetParameterMap(0)
    if not hasattr(source, "keys"):
        raise InputError(f"parameter_object: cannot use {type(source).__name__} as a parameter map; give a dict")
    return {str(name): _texts(source[name]) for name in source.keys()}  # noqa: SIM118


def _texts(value: Any) -> list[str]:
    if isinstance(value, (bool, np.bool_)):
        return ["true" if value else "false"]
    if isinstance(value, (str, int, float, np.number)):
        return [str(value)]
    return [text for part in value for text in _texts(part)]


def _check_dimensions(maps: list[ParameterMap], fixed: Volume, moving: Volume) -> None:
    for one in maps:
        for name, image in (("FixedImageDimension", fixed), ("MovingImageDimension", moving)):
            if _number(one, name, image.dimension) != image.dimension:
                raise InputError(f"elastix parameter {name} is {one[name][0]}, but {image.name} is {image.dimension}D")


def _start(given: Mapping[str, Any], grid: Geometry) -> CompositeTransform | None:
    present = [name for name, value in given.items() if value is not None]
    if not present:
        return None
    if len(present) > 1:
        raise OptionError(f"give one initial transform, got {_list(present)}")
    name = present[0]
    if "parameter" in name:
        return read_elastix(given[name], grid)
    return load_transform(given[name], grid, role=name)


# --- outputs ---------------------------------------------------------------------------------------------------------

#: elastix' names of pixel types.
_PIXELS = {
    "float": "float32", "double": "float64", "char": "int8", "unsigned char": "uint8", "short": "int16",
    "unsigned short": "uint16", "int": "int32", "unsigned int": "uint32", "float32": "float32", "float64": "float64",
}  # fmt: skip


def _as_type(values: NDArray[Any], kind: Any) -> NDArray[Any]:
    dtype = np.dtype(kind)
    if dtype.kind == "b":
        return values > 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # In double: float32 does not hold the largest integers.
        return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def _finished(maps: list[ParameterMap], request: Request) -> list[ParameterMap]:
    """The maps with the caller's wishes about the resampled image, which transformix then follows."""
    wishes = {name: list(values) for name, values in request.output.items()}
    return [{**one, **wishes} for one in maps]


def _write(chain: CompositeTransform, folder: Path, request: Request, warped: NDArray[Any], grid: Geometry) -> list[ParameterMap]:
    """Transform files and image as elastix leaves them in its output directory, all or none."""
    where = Path(os.path.abspath(folder))
    with all_or_none(where) as stage:
        maps = _finished(parameter_maps(chain, stage, grid, location=where), request)
        for number, one in enumerate(maps):
            before = str(where / f"TransformParameters.{number - 1}.txt") if number else "NoInitialTransform"
            names = {key: [before] for key in one if key.startswith("InitialTransformParameter")}
            text = as_text({**one, **names})
            (stage / f"TransformParameters.{number}.txt").write_text(text, encoding="utf-8")
        if request.write_image:
            last = maps[-1]
            image = _as_type(warped, _PIXELS[last["ResultImagePixelType"][0]])
            name = f"result.{len(maps) - 1}.{last['ResultImageFormat'][0]}"
            save_image(image, grid, stage / name, compression=5 if last["CompressResultImage"] == ["true"] else 0)
    return maps


_folders: dict[int, Path] = {}


def _own_folder() -> Path:
    """A new folder for one result; all of a process are removed when it ends."""
    pid = os.getpid()  # a forked child must not remove its parent's
    if pid not in _folders:
        _folders[pid] = Path(tempfile.mkdtemp(prefix="itk-nir-elastix-"))
        atexit.register(_remove, _folders[pid], pid)
    return Path(tempfile.mkdtemp(prefix="result-", dir=_folders[pid]))


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _printing(callback: Callback | None) -> Callable[[Progress], bool | None]:
    def report(now: Progress) -> bool | None:
        if now.step % 10 == 0 or now.step == now.steps - 1:
            print(
                f"{now.stage} level {now.level + 1} of {now.levels}, step {now.step + 1} of {now.steps}: "
                f"metric {now.metric:.4f}",
                flush=True,
            )
        return None if callback is None else callback(now)

    return report

"""Reading parameter maps: from whatever holds them, and what they ask for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.elastix.options import (
    BINS,
    DEFAULT_OUTPUT,
    HONOURED,
    INTERPOLATORS,
    KNOWN,
    METRICS,
    ONLY,
    ORDERS,
    PENALTIES,
    PIXELS,
    POINTS,
    REPLACED,
    TRANSFORMS,
    WEAKER,
    has_no_meaning,
    is_of_metric,
)
from itk_nir.compat.options import LINEAR_METRIC, MUTUAL_INFORMATION, LinearStage, mutual_information
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.images import Volume
from itk_nir.transforms.formats.elastix import ParameterMap

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric


@dataclass(frozen=True)
class Request:
    """What parameter maps ask for.

    Parameters
    ----------
    linear : {"none", "rigid", "affine"}
        The linear stage.
    deformable : bool
        Whether a deformable stage follows.
    metric : str or Metric, optional
        Of the deformable stage, where its map names one.
    linear_metric : str or Metric, optional
        Of the linear stage, where its maps name one: that of the last of them.
    points : float or None
        Weight of the corresponding points beside that of a similarity, where a map names their metric.
    search : bool
        Whether the linear stage may look for a start of its own.
    seed : int
        The seed of every random draw.
    interpolation : {"nearest", "linear", "bspline"}
        How the result is resampled.
    default : float
        Value of the result outside the moving image.
    output : mapping of str to tuple of str
        Parameters of the resampled image that go into the returned maps as they are.
    write_image : bool
        Whether an image file is wanted in the output directory.
    unused : tuple of str
        Names of the given parameters that have no meaning here.
    """

    linear: LinearStage = "affine"
    deformable: bool = True
    metric: str | Metric | None = None
    linear_metric: str | Metric | None = None
    points: float | None = None
    search: bool = True
    seed: int = 0
    interpolation: str = "bspline"
    default: float = 0.0
    output: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_OUTPUT))
    write_image: bool = True
    unused: tuple[str, ...] = ()

    def with_metrics(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the preset with the metrics of the maps.

        Parameters
        ----------
        options : mapping of str to object
            Those that were given as keywords: a metric among them goes before those of all maps.

        Returns
        -------
        dict of str to object
        """
        out = dict(options)
        if self.points is not None:
            from itk_nir.engine.settings import DeformableSettings

            out.setdefault("landmark_weight", self.points * DeformableSettings().landmark_weight)
        if "metric" not in options:
            if self.metric is not None:
                out["metric"] = self.metric
            if self.linear_metric is not None:
                out.setdefault(LINEAR_METRIC, self.linear_metric)
        return out


def understand(maps: Sequence[ParameterMap]) -> Request:
    """Find out what the parameter maps of a registration ask for.

    Parameters
    ----------
    maps : sequence of dict of str to list of str
        One a stage, in order. None at all asks for elastix' defaults, as far as there are such here.

    Returns
    -------
    Request
        Stages, seed and how the result is resampled.

    Raises
    ------
    OptionError
        The first parameter that is unknown or has a value that cannot be honoured.
    """
    if not maps:
        return Request()
    for number, one in enumerate(maps):
        for name, values in one.items():
            _check(name, values, f"elastix parameter {name} of map {number}")
    linear, deformable = _stages(maps)
    metrics = [_metric(one, f"of map {number}") for number, one in enumerate(maps)]
    deforming = metrics.pop() if deformable else None
    first, last = maps[0], maps[-1]
    kind = INTERPOLATORS[_one(last, "ResampleInterpolator", "FinalBSplineInterpolator", INTERPOLATORS)]
    order = _one(last, "FinalBSplineInterpolationOrder", "3", ORDERS)
    wanted = ("ResampleInterpolator", "FinalBSplineInterpolationOrder", "DefaultPixelValue", "ResultImageFormat",
              "ResultImagePixelType", "CompressResultImage")  # fmt: skip
    return Request(
        linear=linear,
        deformable=deformable,
        metric=deforming,
        linear_metric=next((m for m in reversed(metrics) if m is not None), None),
        points=_points_weight(maps),
        search=_flag(first, "AutomaticTransformInitialization", True),
        seed=int(_number(first, "RandomSeed", 0)),
        interpolation=kind or ORDERS[order],
        default=_number(last, "DefaultPixelValue", 0),
        output={**DEFAULT_OUTPUT, **{k: tuple(last[k]) for k in wanted if k in last}},
        write_image=_flag(last, "WriteResultImage", True),
        unused=tuple(dict.fromkeys(name for one in maps for name in one if has_no_meaning(name))),
    )


def read_maps(source: Any) -> list[ParameterMap]:
    """Read parameter maps, whatever they come as.

    Parameters
    ----------
    source : itk.ParameterObject, mapping, path, sequence of mappings or paths, or None
        Values may be text, numbers or truth values, one or several. None stands for no map at all.

    Returns
    -------
    list of dict of str to list of str
        One a stage, in order, with all values as text.

    Raises
    ------
    InputError
        Something else, a file that is missing or none of elastix', or itk-elastix is not installed.
    """
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


def check_dimensions(maps: Sequence[ParameterMap], fixed: Volume, moving: Volume) -> None:
    """Make sure that the maps speak of images of this dimension.

    Parameters
    ----------
    maps : sequence of dict of str to list of str
        Parameter maps.
    fixed, moving : Volume
        The images.

    Raises
    ------
    InputError
        ``FixedImageDimension`` or ``MovingImageDimension`` says otherwise.
    """
    for one in maps:
        for name, image in (("FixedImageDimension", fixed), ("MovingImageDimension", moving)):
            if _number(one, name, image.dimension) != image.dimension:
                raise InputError(f"elastix parameter {name} is {one[name][0]}, but {image.name} is {image.dimension}D")


def import_itk_elastix() -> Any:
    """Import ``itk`` with itk-elastix' classes in it.

    Returns
    -------
    module
        ``itk``.

    Raises
    ------
    InputError
        itk-elastix is not installed.
    """
    import itk

    if not hasattr(itk, "ParameterObject"):
        raise InputError("elastix: itk.ParameterObject is not there; pip install itk-elastix")
    return itk


def _check(name: str, values: list[str], label: str) -> None:
    if name in ONLY:
        for value in values:
            if value not in ONLY[name]:
                known = ", ".join(repr(v) for v in ONLY[name])
                hint = f"; {REPLACED[value]}" if value in REPLACED else ""
                raise OptionError(f"{label}: {value!r} cannot be had here; it may be {known}{hint}")
    elif name not in HONOURED and not has_no_meaning(name) and not is_of_metric(name):
        close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "remove it if the alignment does not depend on it"
        raise OptionError(f"{label}: not known here, so it cannot be honoured; {hint}")
    if name == "MaximumNumberOfIterations" and any(v.strip() == "0" for v in values):
        raise OptionError(f"{label}: 0 iterations leave the initial transform as it is; apply that one directly")
    if name == "ResultImagePixelType" and values[:1] not in ([k] for k in PIXELS):
        raise OptionError(f"{label}: {values} is no pixel type that can be written; it may be {_list(PIXELS)}")


def _metric(parameters: ParameterMap, where: str) -> str | Metric | None:
    """The metric of a map, or the weighted sum of several; None where it names none but penalties."""
    # Here, because it imports torch: reading the tables must not wait for that.
    from itk_nir.engine.metrics import WeightedSum, metric_named

    # Of values for each resolution, the last ones count: those of full resolution.
    last = {name: values[-1:] for name, values in parameters.items()}
    weight_name = "RelativeWeight" if _flag(last, "UseRelativeWeights", False) else "Weight"
    names = parameters.get("Metric", ())
    similarities = [(n, name) for n, name in enumerate(names) if name not in (*PENALTIES, POINTS)]
    if not similarities and POINTS in names:
        return "none"
    parts: list[tuple[float, str | Metric]] = []
    for n, name in similarities:
        weight = _number(last, f"Metric{n}{weight_name}", 1.0)
        if weight < 0:
            raise OptionError(f"elastix parameter Metric{n}{weight_name} {where}: cannot be below 0, got {weight:g}")
        if weight > 0 and _flag(last, f"Metric{n}Use", True):
            ours = METRICS[name]
            parts.append((weight, _with_bins(last, where) if ours == MUTUAL_INFORMATION else ours))
    if similarities and not parts:
        raise OptionError(f"elastix parameter Metric {where}: all have weight 0 or are not used; leave one in")
    if len(parts) < 2:
        return parts[0][1] if parts else None
    if all(isinstance(metric, str) for _, metric in parts):
        return " + ".join(f"{weight:.15g}*{metric}" for weight, metric in parts)
    return WeightedSum(tuple((weight, metric_named(metric)) for weight, metric in parts))


def _points_weight(maps: Sequence[ParameterMap]) -> float | None:
    """Weight of the corresponding points over the mean one of the similarities, in the last map that has them."""
    for one in reversed(maps):
        names = list(one.get("Metric", ()))
        if POINTS not in names:
            continue
        last = {name: values[-1:] for name, values in one.items()}
        word = "RelativeWeight" if _flag(last, "UseRelativeWeights", False) else "Weight"
        weights = {
            name: _number(last, f"Metric{n}{word}", 1.0)
            for n, name in enumerate(names)
            if _flag(last, f"Metric{n}Use", True) and name not in PENALTIES
        }
        if weights.get(POINTS, 0.0) < 0:
            raise OptionError(f"elastix parameter Metric{names.index(POINTS)}{word}: cannot be below 0")
        others = [w for name, w in weights.items() if name != POINTS and w > 0]
        return weights.get(POINTS, 0.0) / (sum(others) / len(others) if others else 1.0)
    return None


def _with_bins(parameters: ParameterMap, where: str) -> str | Metric:
    """Mutual information with the bins of a map: the larger number, where both images have their own."""
    both = _number(parameters, "NumberOfHistogramBins", BINS)
    bins = max(_number(parameters, f"NumberOf{image}HistogramBins", both) for image in ("Fixed", "Moving"))
    return mutual_information(
        int(bins) if bins.is_integer() else bins, f"elastix parameter NumberOfHistogramBins {where}"
    )


def _stages(maps: Sequence[ParameterMap]) -> tuple[LinearStage, bool]:
    """The linear stage, and whether a deformable one follows."""
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
    if linear and linear[-1] in WEAKER and kinds[-1] != "deformable":
        raise OptionError(
            f"elastix parameter Transform: {linear[-1]} as the last map cannot be had; ask for EulerTransform or "
            "AffineTransform"
        )
    stage: LinearStage = "none"
    if linear:
        stage = "affine" if "affine" in (TRANSFORMS[n] for n in linear) else "rigid"
    return stage, kinds[-1] == "deformable"


def _read_map(source: Any) -> ParameterMap:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"parameter file {path}: no such file; check the path")
        parameters = import_itk_elastix().ParameterObject.New()
        try:
            parameters.AddParameterFile(str(path))
        except RuntimeError as error:
            raise InputError(f"parameter file {path}: is none of elastix' ({one_line(error)})") from error
        source = parameters.GetParameterMap(0)
    if not hasattr(source, "keys"):
        raise InputError(f"parameter_object: cannot use {type(source).__name__} as a parameter map; give a dict")
    # ITK's maps are no dicts: they cannot be iterated over.
    return {str(name): _texts(source[name]) for name in source.keys()}  # noqa: SIM118


def _texts(value: Any) -> list[str]:
    if isinstance(value, (bool, np.bool_)):
        return ["true" if value else "false"]
    if isinstance(value, (str, int, float, np.number)):
        return [str(value)]
    return [text for part in value for text in _texts(part)]


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

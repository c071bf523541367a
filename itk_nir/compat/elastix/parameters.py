"""What parameter maps ask for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.elastix.options import (
    BINS,
    DEFAULT_KINDS,
    HONOURED,
    INVERSION,
    KNOWN,
    LINEAR,
    METRICS,
    ONLY,
    PENALTIES,
    POINTS,
    REPLACED,
    RIGIDITY,
    TRANSFORMS,
    WITH_RIGIDITY,
    has_no_meaning,
    is_of_metric,
)
from itk_nir.compat.elastix.resampling import ENTRIES, Resampling
from itk_nir.compat.options import LINEAR_METRIC, MUTUAL_INFORMATION, mutual_information
from itk_nir.errors import InputError, OptionError
from itk_nir.images import Volume
from itk_nir.transforms.formats.elastix import ParameterMap

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric

#: Similarities with their weights.
Parts = tuple[tuple[float, Any], ...]

#: Scales that differ by more than this hold parameters still, rather than making steps alike.
_MOST_SCALES = 5e5


@dataclass(frozen=True)
class Output:
    """What becomes of the end of one stage.

    Parameters
    ----------
    resampling : Resampling
        How its image is resampled and written.
    entries : mapping of str to tuple of str
        What its parameter map says of that, as it was given.
    image : str or None
        Stem of the image file in the output directory; None where none is wanted.
    parameters : bool
        Whether its parameter map is written there.
    toml : bool
        Whether that is written as TOML.
    """

    resampling: Resampling = Resampling()
    entries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    image: str | None = "result"
    parameters: bool = True
    toml: bool = False


@dataclass(frozen=True)
class Request:
    """What parameter maps ask for.

    Parameters
    ----------
    kinds : tuple of str
        Class of elastix' transforms of every stage.
    linear_parts, parts : tuple of (float, metric) or None
        Similarities of the linear and of the deformable stage with their weights, where a map names any.
    points : float or None
        Weight of the corresponding points beside that of a similarity, where a map names their metric.
    inverse : bool
        Whether the inverse of the initial transform is asked for.
    search : bool
        Whether the linear stage may look for a start of its own.
    seed : int
        The seed of every random draw.
    outputs : tuple of Output
        One a stage.
    use_direction : bool
        Whether the axes of images count.
    rigidity : mapping of str to str
        Files of the images of what stays rigid, of ``"fixed"`` and of ``"moving"``.
    unused : tuple of str
        Names of the given parameters that have no meaning here.
    """

    kinds: tuple[str, ...] = DEFAULT_KINDS
    linear_parts: Parts | None = None
    parts: Parts | None = None
    points: float | None = None
    inverse: bool = False
    search: bool = True
    seed: int = 0
    outputs: tuple[Output, ...] = (Output(),) * len(DEFAULT_KINDS)
    use_direction: bool = True
    rigidity: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def linear(self) -> Any:
        """The linear stage of `itk_nir.register`: that of the linear map with the most freedom."""
        ours = [TRANSFORMS[k] for k in self.kinds if TRANSFORMS[k] != "deformable"]
        return max(ours, key=LINEAR.index, default="none")

    @property
    def deformable(self) -> bool:
        """Whether a deformable stage follows."""
        return TRANSFORMS[self.kinds[-1]] == "deformable"

    @property
    def metric(self) -> str | Metric | None:
        """Metric of the deformable stage of two images, where its maps name one."""
        return combined(self.parts)

    @property
    def linear_metric(self) -> str | Metric | None:
        """Metric of the linear stage of two images, where its maps name one."""
        return combined(self.linear_parts)

    def with_metrics(self, options: Mapping[str, Any], channels: int = 1) -> dict[str, Any]:
        """Options of the preset with the metrics of the maps.

        Parameters
        ----------
        options : mapping of str to object
            Those that were given as keywords: a metric among them goes before those of all maps.
        channels : int, default 1
            Number of fixed images; of several, each is compared by the metric of its number.

        Returns
        -------
        dict of str to object

        Raises
        ------
        OptionError
            Several images and another number of metrics.
        """
        out = dict(options)
        if self.points is not None:
            from itk_nir.engine.settings import DeformableSettings

            out.setdefault("landmark_weight", self.points * DeformableSettings().landmark_weight)
        if "metric" in options:
            return out
        if channels == 1:
            found: dict[str, Any] = {"metric": self.metric, LINEAR_METRIC: self.linear_metric}
        else:
            found = {"metric": _for_each(self.parts, channels), LINEAR_METRIC: _for_each(self.linear_parts, channels)}
            deciding = self.parts or self.linear_parts or ()
            if len(deciding) == channels:
                found["channel_weights"] = tuple(weight for weight, _ in deciding)
        for name, value in found.items():
            if value is not None:
                out.setdefault(name, value)
        return out


def combined(parts: Parts | None) -> str | Metric | None:
    """One metric of several similarities.

    Parameters
    ----------
    parts : tuple of (float, str or Metric) or None
        With their weights; none at all is the metric ``"none"``.

    Returns
    -------
    str, Metric or None
        None for None.
    """
    # Here, because it imports torch: reading the tables must not wait for that.
    from itk_nir.engine.metrics import WeightedSum, metric_named

    if parts is None or len(parts) < 2:
        return None if parts is None else parts[0][1] if parts else "none"
    if all(isinstance(metric, str) for _, metric in parts):
        return " + ".join(f"{weight:.15g}*{metric}" for weight, metric in parts)
    return WeightedSum(tuple((weight, metric_named(metric)) for weight, metric in parts))


def _for_each(parts: Parts | None, channels: int) -> Any:
    """A metric for each of several pairs of images."""
    if parts is None or len(parts) == 0:
        return combined(parts)
    if len(parts) == 1:
        return parts[0][1]
    if len(parts) != channels:
        raise OptionError(
            f"elastix parameter Metric: there are {channels} pairs of images and {len(parts)} similarities; name one, "
            "or one for each pair"
        )
    return tuple(metric for _, metric in parts)


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
    kinds = _stages(maps)
    found = [_parts(one, f"of map {number}") for number, one in enumerate(maps)]
    linear = [p for p, kind in zip(found, kinds, strict=True) if TRANSFORMS[kind] != "deformable" and p is not None]
    deforming = [p for p, kind in zip(found, kinds, strict=True) if TRANSFORMS[kind] == "deformable" and p is not None]
    direction = {_flag(one, "UseDirectionCosines", True) for one in maps}
    if len(direction) > 1:
        raise OptionError(
            "elastix parameter UseDirectionCosines: is true in one map and false in another; let it be one"
        )
    return Request(
        kinds=kinds,
        linear_parts=linear[-1] if linear else None,
        parts=deforming[-1] if deforming else None,
        points=_points_weight(maps),
        inverse=_is_inversion(maps),
        search=_flag(maps[0], "AutomaticTransformInitialization", True),
        seed=int(_number(maps[0], "RandomSeed", 0)),
        outputs=tuple(_output(one) for one in maps),
        use_direction=direction.pop(),
        rigidity=_rigidity(maps),
        unused=tuple(dict.fromkeys(name for one in maps for name in one if has_no_meaning(name))),
    )


def _output(parameters: ParameterMap) -> Output:
    wanted = _flag(parameters, "WriteResultImage", True)
    form = _one(parameters, "OutputTransformParameterFileFormat", "", {"": False, "txt": False, "TXT": False,
                                                                       "toml": True, "TOML": True})  # fmt: skip
    return Output(
        resampling=Resampling.of(parameters),
        entries={name: tuple(parameters[name]) for name in ENTRIES if name in parameters},
        image=(parameters.get("ResultImageName") or ["result"])[0] if wanted else None,
        parameters=_flag(parameters, "WriteFinalTransformParameters", True),
        toml=form in ("toml", "TOML"),
    )


def _is_inversion(maps: Sequence[ParameterMap]) -> bool:
    """Whether all maps ask for the smallest displacement and nothing else: the inverse of the initial transform."""
    asked = [[n for n in one.get("Metric", ()) if n not in PENALTIES or n == INVERSION] == [INVERSION] for one in maps]
    return all(asked)


def _rigidity(maps: Sequence[ParameterMap]) -> Mapping[str, str]:
    """The images of the rigid regions, which the last map that asks for them names."""
    for one in reversed(maps):
        names = list(one.get("Metric", ()))
        penalised = next((n for n, name in enumerate(names) if name in (RIGIDITY, WITH_RIGIDITY)), None)
        if penalised is None:
            continue
        last = {name: values[-1:] for name, values in one.items()}
        word = "RelativeWeight" if _flag(last, "UseRelativeWeights", False) else "Weight"
        if not _flag(last, f"Metric{penalised}Use", True) or _number(last, f"Metric{penalised}{word}", 1.0) == 0:
            continue
        found = {
            side.lower(): (one.get(f"{side}RigidityImageName") or [""])[0]
            for side in ("Fixed", "Moving")
            if _flag(last, f"Use{side}RigidityImage", True)
        }
        named = {side: name for side, name in found.items() if name}
        # A file that leaves the name of the only image to be filled in is told of where it is used.
        found = named or dict(list(found.items())[:1])
        if not found:
            raise OptionError(
                f"elastix parameter Metric: {names[penalised]} needs an image of what is rigid; neither that of the "
                "fixed image nor that of the moving one is used"
            )
        return found
    return {}


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
    if name.endswith("ImageDimension") and values[:1] not in (["2"], ["3"]):
        raise OptionError(f"{label}: {values} cannot be had here; images are 2D or 3D ({REPLACED['PCAMetric2']})")
    if name in ("Scales", "MovingImageDerivativeScales"):
        _refuse_holding(name, values, label)


def _refuse_holding(name: str, values: Sequence[str], label: str) -> None:
    """Scales that hold parameters or axes still mean something, all others are for elastix' steps alone."""
    try:
        numbers = [abs(float(v)) for v in values]
    except ValueError:
        raise OptionError(f"{label}: are numbers, got {list(values)}") from None
    holds = max(numbers, default=1.0) > _MOST_SCALES * min(numbers, default=1.0)
    # A single number is the scale of the rotations beside the 1 of the translations.
    if holds or (name == "Scales" and len(numbers) == 1 and numbers[0] > _MOST_SCALES):
        raise OptionError(
            f"{label}: {list(values)} hold parameters still, which cannot be had parameter by parameter; restrict= "
            "holds axes of the image still, and the class of the transform holds the rest"
        )


def _parts(parameters: ParameterMap, where: str) -> Parts | None:
    """The similarities of a map with their weights; None where it names none but penalties."""
    # Of values for each resolution, the last ones count: those of full resolution.
    last = {name: values[-1:] for name, values in parameters.items()}
    weight_name = "RelativeWeight" if _flag(last, "UseRelativeWeights", False) else "Weight"
    names = parameters.get("Metric", ())
    similarities = [(n, name) for n, name in enumerate(names) if name in METRICS]
    if not similarities:
        return () if POINTS in names else None
    parts: list[tuple[float, Any]] = []
    for n, name in similarities:
        weight = _number(last, f"Metric{n}{weight_name}", 1.0)
        if weight < 0:
            raise OptionError(f"elastix parameter Metric{n}{weight_name} {where}: cannot be below 0, got {weight:g}")
        if weight > 0 and _flag(last, f"Metric{n}Use", True):
            ours = METRICS[name]
            parts.append((weight, _with_bins(last, where) if ours == MUTUAL_INFORMATION else ours))
    if not parts and POINTS not in names:
        raise OptionError(f"elastix parameter Metric {where}: all have weight 0 or are not used; leave one in")
    return tuple(parts)


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


def _stages(maps: Sequence[ParameterMap]) -> tuple[str, ...]:
    """The class of every stage: linear ones, then deformable ones."""
    names = []
    for number, one in enumerate(maps):
        if "Transform" not in one:
            raise OptionError(
                f"elastix parameter Transform is missing in map {number}; name one of {_list(TRANSFORMS)}"
            )
        names.append(_one(one, "Transform", "", TRANSFORMS))
    deformable = [TRANSFORMS[n] == "deformable" for n in names]
    if deformable != sorted(deformable):
        late = names[len(deformable) - 1 - deformable[::-1].index(False)]
        raise OptionError(f"elastix parameter Transform: {late} after a deformable map cannot be had; put it first")
    return tuple(names)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _one(parameters: ParameterMap, name: str, default: str, known: Mapping[str, Any]) -> str:
    value = (parameters.get(name) or [default])[0]
    if value not in known:
        hint = f"; {REPLACED[value]}" if value in REPLACED else ""
        raise OptionError(f"elastix parameter {name}: {value!r} cannot be had here; it may be {_list(known)}{hint}")
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

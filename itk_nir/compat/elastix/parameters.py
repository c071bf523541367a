"""What parameter maps ask for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from itk_nir.compat.elastix.constraints import Constraint, constraint_of, holds, is_of_search
from itk_nir.compat.elastix.options import (
    DEFAULT_KINDS,
    HONOURED,
    INVERSION,
    KNOWN,
    LINEAR,
    MISSING,
    OF_SURFACES,
    ONLY,
    PENALTIES,
    REPLACED,
    RIGIDITY,
    STACK,
    STANDING_IN,
    SURFACES,
    TRANSFORMS,
    WITH_RIGIDITY,
    has_no_meaning,
    is_of_metric,
)
from itk_nir.compat.elastix.resampling import ENTRIES, Resampling
from itk_nir.compat.elastix.similarities import (
    Overlap,
    Parts,
    PointsTerm,
    combined,
    for_each,
    overlap_of,
    parts_of,
    points_of,
)
from itk_nir.compat.elastix.stages import RESULT_CLASSES
from itk_nir.compat.elastix.values import at_last, flag_of, instead_of, number_of, numbers_of, weight_of, word_of
from itk_nir.compat.options import LINEAR_METRIC
from itk_nir.errors import InputError, OptionError
from itk_nir.images import Volume
from itk_nir.transforms.formats.elastix import ParameterMap

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric


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
    linear_points, points : PointsTerm or None
        How much corresponding points count in the linear and in the deformable stage, where a map names their metric.
    overlap : Overlap or None
        The images of a structure that are to overlap, where a map names that metric.
    constraints : tuple of Constraint
        Of each linear map, where any of them holds parameters still or searches them; else none at all.
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
    missing, surfaces : tuple of int
        Numbers of the metrics that name surfaces: of what has no counterpart, and of what has no effect.
    unused : tuple of str
        Names of the given parameters that have no meaning here.
    standing_in : tuple of str
        Names of the given metrics for which something else stands.
    """

    kinds: tuple[str, ...] = DEFAULT_KINDS
    linear_parts: Parts | None = None
    parts: Parts | None = None
    linear_points: PointsTerm | None = None
    points: PointsTerm | None = None
    overlap: Overlap | None = None
    constraints: tuple[Constraint, ...] = ()
    inverse: bool = False
    search: bool = True
    seed: int = 0
    outputs: tuple[Output, ...] = (Output(),) * len(DEFAULT_KINDS)
    use_direction: bool = True
    rigidity: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    surfaces: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()
    standing_in: tuple[str, ...] = ()

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

    @property
    def has_points(self) -> bool:
        """Whether corresponding points count in any map."""
        return self.linear_points is not None or self.points is not None

    def points_options(self, fixed: Sequence[Volume], moving: Sequence[Volume]) -> dict[str, Any]:
        """Options of the preset by which corresponding points count as much as in elastix.

        Parameters
        ----------
        fixed, moving : sequence of Volume
            The images, pair by pair.

        Returns
        -------
        dict of str to object
            None of them where no map has points.
        """
        if not self.has_points:
            return {}
        linear, deforming = (
            0.0 if term is None else term.beside(fixed, moving) for term in (self.linear_points, self.points)
        )
        return {"landmark_distance": "plain", "landmark_weight": deforming, "linear_landmark_weight": linear}

    def has_structure_apart(self, pairs: int) -> bool:
        """Whether one of several pairs of images is looked at for the overlap of a structure alone.

        Parameters
        ----------
        pairs : int
            Number of fixed images.

        Returns
        -------
        bool
        """
        return self.overlap is not None and pairs > 1

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
        if self.overlap is not None:
            # Here, because it imports torch: reading the tables must not wait for that.
            from itk_nir.engine.settings import DeformableSettings

            out.setdefault("label_weight", self.overlap.weight * DeformableSettings().label_weight)
        if "metric" in options:
            return out
        if channels == 1:
            found: dict[str, Any] = {"metric": self.metric, LINEAR_METRIC: self.linear_metric}
        else:
            found = {"metric": for_each(self.parts, channels), LINEAR_METRIC: for_each(self.linear_parts, channels)}
            deciding = self.parts or self.linear_parts or ()
            if len(deciding) == channels:
                found["channel_weights"] = tuple(weight for weight, _ in deciding)
        for name, value in found.items():
            if value is not None:
                out.setdefault(name, value)
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
    inverse = _is_inversion(maps)
    for number, one in enumerate(maps):
        # First what the whole map is about: the reason for the rest of what is not known.
        for name in sorted(one, key=lambda name: name not in ONLY):
            _check(name, one[name], f"elastix parameter {name} of map {number}", inverse)
    kinds = _stages(maps, inverse)
    bound = [constraint_of(one, f"of map {number}") for number, one in enumerate(maps)][: _linear_count(kinds)]
    found = [parts_of(one, f"of map {number}") for number, one in enumerate(maps)]
    deforming_maps = [TRANSFORMS[kind] == "deformable" for kind in kinds]
    linear = [p for p, late in zip(found, deforming_maps, strict=True) if not late and p is not None]
    deforming = [p for p, late in zip(found, deforming_maps, strict=True) if late and p is not None]
    direction = {flag_of(one, "UseDirectionCosines", True) for one in maps}
    if len(direction) > 1:
        raise OptionError(
            "elastix parameter UseDirectionCosines: is true in one map and false in another; let it be one"
        )
    return Request(
        kinds=kinds,
        linear_parts=linear[-1] if linear else None,
        parts=deforming[-1] if deforming else None,
        linear_points=points_of([one for one, late in zip(maps, deforming_maps, strict=True) if not late]),
        points=points_of([one for one, late in zip(maps, deforming_maps, strict=True) if late]),
        overlap=overlap_of(maps),
        constraints=tuple(bound) if any(one.binds for one in bound) and not inverse else (),
        inverse=inverse,
        search=flag_of(maps[0], "AutomaticTransformInitialization", True),
        seed=int(number_of(maps[0], "RandomSeed", 0)),
        outputs=tuple(_output(one) for one in maps),
        use_direction=direction.pop(),
        rigidity=_rigidity(maps),
        missing=_numbers_of(maps, MISSING),
        surfaces=_numbers_of(maps, SURFACES),
        unused=tuple(dict.fromkeys(name for one in maps for name in one if has_no_meaning(name))),
        standing_in=tuple(
            dict.fromkeys(n for one in maps for n in one.get("Metric", ()) if n in STANDING_IN | OF_SURFACES)
        ),
    )


def _output(parameters: ParameterMap) -> Output:
    wanted = flag_of(parameters, "WriteResultImage", True)
    form = word_of(parameters, "OutputTransformParameterFileFormat", "", {"": False, "txt": False, "TXT": False,
                                                                       "toml": True, "TOML": True})  # fmt: skip
    return Output(
        resampling=Resampling.of(parameters),
        entries={name: tuple(parameters[name]) for name in ENTRIES if name in parameters},
        image=(parameters.get("ResultImageName") or ["result"])[0] if wanted else None,
        parameters=flag_of(parameters, "WriteFinalTransformParameters", True),
        toml=form in ("toml", "TOML"),
    )


def _numbers_of(maps: Sequence[ParameterMap], metric: str) -> tuple[int, ...]:
    """At which numbers a metric stands that is used in any map."""
    found = {
        n
        for one in maps
        for n, name in enumerate(one.get("Metric", ()))
        if name == metric and (metric == SURFACES or weight_of(one, n)[2])
    }
    return tuple(sorted(found))


def _is_inversion(maps: Sequence[ParameterMap]) -> bool:
    """Whether all maps ask for the smallest displacement and nothing else: the inverse of the initial transform."""
    asked = [[n for n in one.get("Metric", ()) if n not in PENALTIES or n == INVERSION] == [INVERSION] for one in maps]
    return all(asked)


def _rigidity(maps: Sequence[ParameterMap]) -> Mapping[str, str]:
    """The images of the rigid regions, which the last map that asks for them names."""
    for one in reversed(maps):
        names = list(one.get("Metric", ()))
        penalised = next((n for n, name in enumerate(names) if name in (RIGIDITY, WITH_RIGIDITY)), None)
        if penalised is None or not weight_of(one, penalised)[2]:
            continue
        last = at_last(one)
        found = {
            side.lower(): (one.get(f"{side}RigidityImageName") or [""])[0]
            for side in ("Fixed", "Moving")
            if flag_of(last, f"Use{side}RigidityImage", True)
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
            if number_of(one, name, image.dimension) != image.dimension:
                raise InputError(f"elastix parameter {name} is {one[name][0]}, but {image.name} is {image.dimension}D")


def _check(name: str, values: list[str], label: str, inverse: bool) -> None:
    if name in ONLY:
        for value in values:
            # The inverse of a periodic transform is one by itself.
            if value not in ONLY[name] and not (inverse and name == "UseCyclicTransform" and value == "true"):
                known = ", ".join(repr(v) for v in ONLY[name])
                raise OptionError(f"{label}: {value!r} cannot be had here; it may be {known}{instead_of(value)}")
    elif not (name in HONOURED or has_no_meaning(name) or is_of_metric(name) or is_of_search(name)):
        close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "remove it if the alignment does not depend on it"
        raise OptionError(f"{label}: not known here, so it cannot be honoured; {hint}")
    if name == "MaximumNumberOfIterations" and any(v.strip() == "0" for v in values):
        raise OptionError(f"{label}: 0 iterations leave the initial transform as it is; apply that one directly")
    if name.endswith("ImageDimension") and values[:1] not in (["2"], ["3"]):
        raise OptionError(f"{label}: {values} cannot be had here; images are 2D or 3D ({REPLACED['PCAMetric2']})")
    # Those that hold an axis mean something, all others are for elastix' steps alone; the inverse looks at no image.
    if name == "MovingImageDerivativeScales" and not inverse and holds(numbers_of(values, label)):
        raise OptionError(f"{label}: {list(values)} hold an axis still; give the keyword restrict= for that")


def _linear_count(kinds: Sequence[str]) -> int:
    return sum(TRANSFORMS[kind] != "deformable" for kind in kinds)


def _stages(maps: Sequence[ParameterMap], inverse: bool) -> tuple[str, ...]:
    """The class of every stage: linear ones, then deformable ones."""
    # The inverse of a stack of deformations is a deformation, whatever it is the inverse of.
    known = TRANSFORMS if not inverse else {**TRANSFORMS, STACK: "deformable"}
    result_classes = RESULT_CLASSES if not inverse else {**RESULT_CLASSES, STACK: "BSplineTransform"}
    names = []
    for number, one in enumerate(maps):
        if "Transform" not in one:
            raise OptionError(
                f"elastix parameter Transform is missing in map {number}; name one of {', '.join(TRANSFORMS)}"
            )
        name = word_of(one, "Transform", "", known)
        names.append(result_classes.get(name, name))
    deformable = [TRANSFORMS[n] == "deformable" for n in names]
    if deformable != sorted(deformable):
        late = names[len(deformable) - 1 - deformable[::-1].index(False)]
        raise OptionError(f"elastix parameter Transform: {late} after a deformable map cannot be had; put it first")
    return tuple(names)

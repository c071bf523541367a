"""What a command line of antsRegistration asks for, as data; nothing here knows how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from itk_nir.errors import OptionError, escaped
from itk_nir.options import nearest_name
from itk_nir.programs.ants_apply_values import interpolation_of
from itk_nir.programs.ants_values import FLAGS, LINEAR, METRICS, NAMES, TRANSFORMS
from itk_nir.programs.ants_words import Flag, Value, flags_of, number, numbers, whole

#: Words that stand for no file.
_NO_FILE = ("", "null", "na", "none")
#: And those that stand for no mask, in the lines of pipelines as well.
_NO_MASK = (*_NO_FILE, "nomask")
#: Number of an alignment -> what is aligned.
_FEATURES = {"0": "centres", "1": "centres of mass", "2": "origins"}


@dataclass(frozen=True)
class Metric:
    """One ``--metric``.

    Parameters
    ----------
    kind : str
        A key of `itk_nir.programs.ants_values.METRICS`.
    fixed, moving : str
        Names of the images.
    weight : float
        Share of the sum.
    number : int or None
        Bins of a mutual information, or radius of CC; None where the line says nothing.
    """

    kind: str
    fixed: str
    moving: str
    weight: float = 1.0
    number: int | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """The images."""
        return self.fixed, self.moving


@dataclass(frozen=True)
class Stage:
    """One ``--transform`` with all that belongs to it.

    Parameters
    ----------
    transform : str
        A key of `itk_nir.programs.ants_values.TRANSFORMS`.
    numbers : tuple of str
        What stands in its brackets: the gradient step, and what the kind of transform has.
    metrics : tuple of Metric
        At least one.
    iterations, shrink_factors : tuple of int
        One a level, coarsest first.
    sigmas : tuple of float
        One a level, in voxels of the fixed image or in mm.
    in_mm : bool
        Whether the sigmas are in mm.
    histogram_matching : bool
        Whether histograms are matched.
    restrict : tuple of float
        Weights of ``--restrict-deformation``; empty where the line says nothing.
    masks : tuple of (str or None)
        Of the fixed and the moving image.
    """

    transform: str
    numbers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    iterations: tuple[int, ...] = ()
    shrink_factors: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    in_mm: bool = False
    histogram_matching: bool = False
    restrict: tuple[float, ...] = ()
    masks: tuple[str | None, str | None] = (None, None)

    @property
    def linear(self) -> bool:
        """Whether it is a linear stage."""
        return self.transform in LINEAR

    @property
    def step(self) -> float:
        """The gradient step."""
        return number(self.numbers[0], f"gradient step of {self.transform}")


@dataclass(frozen=True)
class Start:
    """One ``--initial-moving-transform``.

    Parameters
    ----------
    file : str
        Name of a transform; empty for an alignment of two images.
    inverse : bool
        Whether its inverse is meant.
    pair : tuple of str
        Names of the fixed and the moving image that are aligned; empty for a file.
    feature : str
        What is aligned: ``"centres"``, ``"centres of mass"`` or ``"origins"``.
    """

    file: str = ""
    inverse: bool = False
    pair: tuple[str, str] | tuple[()] = ()
    feature: str = ""


@dataclass(frozen=True)
class Request:
    """Everything that a command line of antsRegistration says.

    Parameters
    ----------
    stages : tuple of Stage
        At least one.
    prefix : str
        Start of the names of the transform files.
    warped, inverse_warped : str
        Names of the warped images; empty for none.
    starts : tuple of Start
        In the order of the line, which is that of antsApplyTransforms: the first meets a fixed point first.
    dimension : int or None
        None where the images say.
    winsorize : tuple of float
        Lower and upper quantile; empty for none.
    interpolation : Value
        Of the warped images.
    collapse, composite, single, verbose : bool
        ``-z``, ``-a``, ``--float`` and ``-v``.
    seed : int or None
        None where the line says nothing.
    preset, device : str
        Of `itk_nir.register`.
    given : tuple of str
        Long names of all flags that the line has, in their order.
    """

    stages: tuple[Stage, ...]
    prefix: str
    warped: str = ""
    inverse_warped: str = ""
    starts: tuple[Start, ...] = ()
    dimension: int | None = None
    winsorize: tuple[float, ...] = ()
    interpolation: Value = Value("Linear", "Linear")
    collapse: bool = True
    composite: bool = False
    single: bool = False
    verbose: bool = False
    seed: int | None = None
    preset: str = "default"
    device: str = "auto"
    given: tuple[str, ...] = ()


def read_request(words: Sequence[str]) -> Request:
    """Read a command line of antsRegistration.

    Parameters
    ----------
    words : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    Request

    Raises
    ------
    OptionError
        A flag or value that does not exist, is not written as ANTs' is, or is refused (see `ants_values`).
    """
    flags = flags_of(words, NAMES, FLAGS, several=("initial-moving-transform", "initial-fixed-transform"))
    for flag in flags:
        _refuse(flag)
    stages = _with_masks(_stages(flags), [read_mask(f.wanted(), f.written) for f in flags if f.name == "masks"])
    return Request(
        stages, **_output(flags), starts=tuple(_start(f) for f in flags if f.name == "initial-moving-transform"),
        dimension=_dimension(flags), winsorize=_winsorize(flags), interpolation=_interpolation(flags),
        collapse=_yes(flags, "collapse-output-transforms", True), composite=_yes(flags, "write-composite-transform"),
        single=_yes(flags, "float"), verbose=_yes(flags, "verbose"), seed=_seed(flags),
        preset=_word(flags, "preset", "default"), device=_word(flags, "device", "auto"),
        given=tuple(f.name for f in flags),
    )  # fmt: skip


# --- one value each --------------------------------------------------------------------------------------------------


def _last(flags: Sequence[Flag], name: str) -> Flag | None:
    return next((f for f in reversed(flags) if f.name == name), None)


def _yes(flags: Sequence[Flag], name: str, usual: bool = False) -> bool:
    flag = _last(flags, name)
    return usual if flag is None else flag.yes()


def _word(flags: Sequence[Flag], name: str, usual: str) -> str:
    flag = _last(flags, name)
    return usual if flag is None else flag.wanted().text


def _refuse(flag: Flag) -> None:
    """Refuse flags that are refused, unless with the value that changes nothing."""
    support = FLAGS[flag.name]
    if support.status == "refused" and not (flag.value is not None and flag.value.text.lower() in ("0", "false")):
        raise support.refusal(flag.written)


def _dimension(flags: Sequence[Flag]) -> int | None:
    flag = _last(flags, "dimensionality")
    if flag is None:
        return None
    dimension = flag.whole(2)
    if dimension > 3:
        raise OptionError(
            f"{flag.written} is 2 or 3 here, got {dimension}; register the volumes of a series one by one"
        )
    return dimension


def _seed(flags: Sequence[Flag]) -> int | None:
    flag = _last(flags, "random-seed")
    return None if flag is None else abs(whole(flag.wanted().text, flag.written, -(2**63)))


def _output(flags: Sequence[Flag]) -> dict[str, str]:
    flag = _last(flags, "output")
    if flag is None:
        raise OptionError("--output is missing: give PREFIX, [PREFIX,WARPED] or [PREFIX,WARPED,INVERSE_WARPED]")
    value = flag.wanted()
    if not value.bracketed:
        return {"prefix": value.text}
    if len(value.parts) > 3 or not value.parts[0]:
        raise OptionError(f"{flag.written} {escaped(value.text)}: give [PREFIX,WARPED,INVERSE_WARPED]")
    return dict(zip(("prefix", "warped", "inverse_warped"), value.parts, strict=False))


def _winsorize(flags: Sequence[Flag]) -> tuple[float, ...]:
    flag = _last(flags, "winsorize-image-intensities")
    if flag is None:
        return ()
    value = flag.wanted()
    quantiles = tuple(number(part, flag.written) for part in value.parts)
    if not value.bracketed or len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise OptionError(f"{flag.written} is [LOWER,UPPER], two quantiles from 0 to 1, got {escaped(value.text)}")
    return () if quantiles == (0.0, 1.0) else quantiles


def _interpolation(flags: Sequence[Flag]) -> Value:
    flag = _last(flags, "interpolation")
    if flag is None:
        return Value("Linear", "Linear")
    interpolation_of(flag.wanted())
    return flag.wanted()


def read_mask(value: Value, written: str) -> tuple[str | None, str | None]:
    """Read the masks of a stage.

    Parameters
    ----------
    value : Value
        ``FIXED``, ``FIXED,MOVING`` or ``[FIXED,MOVING]``; NULL, NOMASK, NA or nothing for none. ANTs looks at no part
        behind these two; some lines have a third one that says none as well.
    written : str
        The flag, for messages.

    Returns
    -------
    fixed, moving : str or None
        Names of files.

    Raises
    ------
    OptionError
        More than two, which name files.
    """
    parts = value.parts if value.bracketed else tuple(part.strip() for part in value.text.split(","))
    if any(part.lower() not in _NO_MASK for part in parts[2:]):
        raise OptionError(f"{written} {escaped(value.text)}: give FIXED or [FIXED,MOVING], NULL for none")
    fixed, moving = (None if part.lower() in _NO_MASK else part for part in (*parts, "")[:2])
    return fixed, moving


def _with_masks(stages: list[Stage], masks: list[tuple[str | None, str | None]]) -> tuple[Stage, ...]:
    """The stages with one mask for all, or one for each."""
    if not masks:
        return tuple(stages)
    if len(masks) not in (1, len(stages)):
        raise OptionError(
            f"there are {len(masks)} masks and {len(stages)} stages; give one --masks, or one for each stage"
        )
    several = masks if len(masks) > 1 else masks * len(stages)
    return tuple(replace(stage, masks=mask) for stage, mask in zip(stages, several, strict=True))


def _start(flag: Flag) -> Start:
    return read_start(flag.wanted(), flag.written)


def read_start(value: Value, written: str) -> Start:
    """Read a transform to start from.

    Parameters
    ----------
    value : Value
        ``FILE``, ``[FILE,0]``, ``[FILE,1]`` for its inverse, or ``[FIXED,MOVING,0]`` (1, 2) for an alignment of the
        centres of both images (their centres of mass, their origins).
    written : str
        The flag, for messages.

    Returns
    -------
    Start

    Raises
    ------
    OptionError
        Something else.
    """
    parts = value.parts if value.bracketed else (value.text,)
    if len(parts) == 3 and parts[2] in _FEATURES:
        return Start(pair=(parts[0], parts[1]), feature=_FEATURES[parts[2]])
    if parts[0] and (len(parts) == 1 or (len(parts) == 2 and parts[1] in ("0", "1"))):
        return Start(parts[0], inverse=parts[-1] == "1" and len(parts) == 2)
    raise OptionError(
        f"{written} {escaped(value.text)}: give FILE, [FILE,1] for its inverse, or [FIXED,MOVING,0], 1 or 2 for an "
        "alignment of centres, centres of mass or origins"
    )


# --- the stages ------------------------------------------------------------------------------------------------------


def _stages(flags: Sequence[Flag]) -> list[Stage]:
    """The stages: each begins with its ``--transform``, or with its metrics where the line begins with those."""
    groups: list[list[Flag]] = []
    first = next((f.name for f in flags if f.name in ("transform", "metric")), "transform")
    for flag in flags:
        if flag.name not in _OF_A_STAGE:
            continue
        if not groups or (flag.name == first and _begins(groups[-1], flag.name)):
            groups.append([])
        groups[-1].append(flag)
    if not any(f.name == "transform" for f in flags):
        raise OptionError("--transform is missing: give at least one stage")
    restrictions = [f for f in flags if f.name == "restrict-deformation"]
    stages = [_stage(group, number) for number, group in enumerate(groups, 1)]
    if len(restrictions) > len(stages):
        raise OptionError(f"there are {len(restrictions)} --restrict-deformation and {len(stages)} stages")
    # The first one is that of the first stage, and so on, wherever they stand.
    for k, flag in enumerate(restrictions):
        stages[k] = replace(stages[k], restrict=numbers(flag.wanted().text, flag.written))
    return stages


_OF_A_STAGE = (
    "transform", "metric", "convergence", "shrink-factors", "smoothing-sigmas", "use-histogram-matching",
)  # fmt: skip


def _begins(group: list[Flag], name: str) -> bool:
    """Whether one more flag of this name begins a new stage: metrics of one stage stand together."""
    return any(flag.name == name for flag in group) and (name == "transform" or group[-1].name != name)


def _stage(group: list[Flag], position: int) -> Stage:
    named: dict[str, list[Flag]] = {}
    for flag in group:
        named.setdefault(flag.name, []).append(flag)
    where = f"stage {position}"
    for name in ("transform", "metric", "convergence", "shrink-factors", "smoothing-sigmas"):
        found = named.get(name, [])
        if not found:
            raise OptionError(f"{where}: --{name} is missing")
        if len(found) > 1 and name != "metric":
            raise OptionError(f"{where}: --{name} is given {len(found)} times; each stage has one")
    transform, parts = _transform(named["transform"][0])
    iterations = _iterations(named["convergence"][0])
    factors = tuple(whole(repr(v), "--shrink-factors", 1) for v in _numbers(named["shrink-factors"][0]))
    sigmas, in_mm = _sigmas(named["smoothing-sigmas"][0])
    if not len(iterations) == len(factors) == len(sigmas):
        raise OptionError(
            f"{where}: {len(iterations)} numbers of iterations, {len(factors)} shrink factors and {len(sigmas)} "
            "smoothing sigmas; give one of each a level"
        )
    matched = named.get("use-histogram-matching", [])
    return Stage(
        transform, parts, tuple(_metric(f) for f in named["metric"]), iterations, factors, sigmas, in_mm,
        bool(matched) and matched[-1].yes(),
    )  # fmt: skip


def _numbers(flag: Flag) -> tuple[float, ...]:
    return numbers(flag.wanted().text, flag.written)


def _transform(flag: Flag) -> tuple[str, tuple[str, ...]]:
    value = flag.wanted()
    name = value.name.lower()
    kind = next((k for k, aliases in TRANSFORMS.items() if name in (k.lower(), *aliases.aliases)), None)
    if kind is None:
        hint = nearest_name(value.name, TRANSFORMS)
        raise OptionError(f"{flag.written}: there is no transform {escaped(value.name)}{hint}")
    if not value.parts or not value.parts[0]:
        raise OptionError(f"{flag.written} {escaped(value.text)}: give its gradient step, as in {kind}[0.1]")
    step = number(value.parts[0], f"{flag.written} {escaped(value.text)}: the gradient step")
    if step <= 0:
        raise OptionError(f"{flag.written} {escaped(value.text)}: the gradient step is above 0")
    for part in value.parts[1:]:
        numbers(part, f"{flag.written} {escaped(value.text)}:")
    return kind, value.parts


def _metric(flag: Flag) -> Metric:
    value = flag.wanted()
    name = value.name.lower()
    kind = next((k for k, entry in METRICS.items() if name in (k.lower(), *entry.aliases)), None)
    if kind is None:
        raise OptionError(
            f"{flag.written}: there is no metric {escaped(value.name)}{nearest_name(value.name, METRICS)}"
        )
    if METRICS[kind].support.status == "refused":
        raise METRICS[kind].support.refusal(f"{flag.written} {kind}")
    parts = value.parts
    if len(parts) < 2 or not parts[0] or not parts[1] or len(parts) > 7:
        raise OptionError(f"{flag.written} {escaped(value.text)}: give {kind}[FIXED,MOVING,WEIGHT,NUMBER,...]")
    weight = number(parts[2], f"{flag.written} {escaped(value.text)}: the weight") if parts[2:] and parts[2] else 1.0
    if weight < 0:
        raise OptionError(f"{flag.written} {escaped(value.text)}: the weight is 0 or more")
    count = None
    if METRICS[kind].number and parts[3:] and parts[3].lower() not in _NO_FILE:
        count = whole(parts[3], f"{flag.written} {escaped(value.text)}: the {METRICS[kind].number}", 1)
    if parts[4:] and parts[4].lower() not in (*_NO_FILE, "regular", "random", "dense"):
        raise OptionError(f"{flag.written} {escaped(value.text)}: sampling is None, Regular or Random, got {parts[4]}")
    if parts[5:] and parts[5] and not 0 < number(parts[5], f"{flag.written}: the share of the samples") <= 1:
        raise OptionError(f"{flag.written} {escaped(value.text)}: the share of the samples is above 0 and at most 1")
    if parts[6:] and parts[6].lower() not in ("", "0", "1", "true", "false"):
        raise OptionError(
            f"{flag.written} {escaped(value.text)}: the gradient filter is true or false, got {escaped(parts[6])}"
        )
    return Metric(kind, parts[0], parts[1], weight, count)


def _iterations(flag: Flag) -> tuple[int, ...]:
    value = flag.wanted()
    first = value.parts[0] if value.bracketed else value.text
    for part in value.parts[1:]:
        number(part, f"{flag.written} {escaped(value.text)}: each")
    return tuple(whole(repr(v), f"{flag.written}: each number of iterations", 0) for v in numbers(first, flag.written))


def _sigmas(flag: Flag) -> tuple[tuple[float, ...], bool]:
    text = flag.wanted().text.lower()
    for unit in ("vox", "mm"):
        if text.endswith(unit):
            text = text[: -len(unit)]
            break
    else:
        unit = "vox"
    sigmas = numbers(text, flag.written)
    if min(sigmas) < 0:
        raise OptionError(f"{flag.written} {escaped(text)}: sigmas are 0 or more")
    return sigmas, unit == "mm"

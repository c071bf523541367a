"""``antsRegistrationSyN.sh`` and ``antsRegistrationSyNQuick.sh``: their flags, as requests of antsRegistration."""

from __future__ import annotations

import getopt
from collections.abc import Mapping, Sequence
from dataclasses import replace

from itk_nir.cli.console import names, note_if_folder, tell
from itk_nir.compat.options import OptionSupport, approximated, honoured
from itk_nir.errors import OptionError, escaped
from itk_nir.options import nearest_name
from itk_nir.programs.ants_common import asked_about
from itk_nir.programs.ants_registration import run_request
from itk_nir.programs.ants_request import Metric, Request, Stage, Start, read_mask, read_start
from itk_nir.programs.ants_values import FLAGS
from itk_nir.programs.ants_words import Value, number, whole

#: Flag -> what becomes of it.
SCRIPT_FLAGS: dict[str, OptionSupport] = {
    "d": honoured("2 or 3; with 2 also single slices of 3D images"),
    "f": honoured("fixed image; several with as many `-m` are channels of the deformable stage"),
    "m": honoured("moving image"),
    "o": honoured("start of the names of all files"),
    "t": honoured("`t r a s sr so b br bo`; b, br, bo are s, sr, so, and a `-s` other than 26 counts"),
    "n": honoured("threads; left out, the environment says, else all that the process may use"),
    "i": honoured("as --initial-moving-transform of antsRegistration; left out, the centres of mass"),
    "r": honoured(
        "radius of CC (antsRegistrationSyNQuick.sh: bins of a mutual information); left out, or 32 bins, the metric is "
        "what suits the pair. Without effect on linear types"
    ),
    "s": approximated("distance of the knots of `b`, `br`, `bo`, mm: a longer one is smoother"),
    "g": approximated("steps are the engine's own"),
    "x": honoured(
        "`fixed` or `fixed,moving`, NULL or NOMASK for none, and a third part that says so is left out; once for "
        "all stages, or once for each"
    ),
    "p": approximated("f and d: fields are float32, points and matrices float64"),
    "j": approximated("metrics of these types need no matching of histograms"),
    "z": FLAGS["collapse-output-transforms"],
    "e": honoured("random seed; else ANTS_RANDOM_SEED"),
    "y": approximated("runs are reproducible with 0 and with 1"),
}
#: Letters of ``-t`` -> its stages.
TYPES: dict[str, tuple[str, ...]] = {
    "t": ("Translation",),
    "r": ("Rigid",),
    "a": ("Rigid", "Affine"),
    "s": ("Rigid", "Affine", "SyN"),
    "sr": ("Rigid", "SyN"),
    "so": ("SyN",),
    "b": ("Rigid", "Affine", "BSplineSyN"),
    "br": ("Rigid", "BSplineSyN"),
    "bo": ("BSplineSyN",),
}
#: The scripts' own number of bins.
_BINS = 32
#: Quantiles that the scripts clip images to.
_QUANTILES = (0.005, 0.995)


def main(arguments: Sequence[str]) -> int:
    """Run a command line of antsRegistrationSyN.sh.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: all files are complete; 1 where nothing was asked for.

    Raises
    ------
    InputError, OptionError
        Before any work begins: a flag, value or file that cannot be used.
    """
    return _run("antsRegistrationSyN.sh", arguments, quick=False)


def quick(arguments: Sequence[str]) -> int:
    """Run a command line of antsRegistrationSyNQuick.sh: ``-r`` is a number of bins, and the preset is ``"fast"``.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: all files are complete; 1 where nothing was asked for.

    Raises
    ------
    InputError, OptionError
        Before any work begins: a flag, value or file that cannot be used.
    """
    return _run("antsRegistrationSyNQuick.sh", arguments, quick=True)


def _run(program: str, arguments: Sequence[str], *, quick: bool) -> int:
    answered = asked_about(arguments, lambda: _help(program))
    if answered is not None:
        return answered
    request, threads = read_script(arguments, quick=quick)
    note_if_folder(request.prefix)
    files = run_request(request, threads)
    tell(f"registered; wrote {names(files)}")
    return 0


def _help(program: str) -> str:
    lines = [
        f"Usage: {program} -d DIMENSION -f FIXED -m MOVING -o PREFIX [OPTIONS]",
        f"(itk-nir {'ants' if 'Quick' not in program else program} is the same; it registers by neural fields)",
        "",
        *(f"  -{letter}  {support.status}: {support.meaning}" for letter, support in SCRIPT_FLAGS.items()),
        "  --preset PRESET, --device DEVICE  no flags of ANTs: those of itk-nir register",
    ]
    return "\n".join(lines)


def read_script(arguments: Sequence[str], *, quick: bool) -> tuple[Request, int | None]:
    """Read a command line of the scripts.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the script.
    quick : bool
        Whether it is antsRegistrationSyNQuick.sh.

    Returns
    -------
    request : Request
        As of antsRegistration.
    threads : int or None
        None where the line says nothing.

    Raises
    ------
    OptionError
        A flag or value that does not exist.
    """
    given = _given(arguments)
    for letter in "fmo":
        if letter not in given:
            raise OptionError(f"-{letter} is missing: give -d, -f, -m and -o")
    if len(given["f"]) != len(given["m"]):
        raise OptionError(f"there are {len(given['f'])} -f and {len(given['m'])} -m; give as many of both")
    last = {letter: values[-1] for letter, values in given.items()}
    dimension = whole(last.get("d", "3"), "-d", 2)
    if dimension > 3:
        raise OptionError(f"-d is 2 or 3, got {dimension}")
    for letter, allowed in (("p", "fd"), ("j", "01"), ("z", "01"), ("y", "01")):
        if last.get(letter, allowed[0]) not in tuple(allowed):
            raise OptionError(f"-{letter} is {' or '.join(allowed)}, got {escaped(last[letter])}")
    number(last.get("g", "0.1"), "-g")
    prefix, first = last["o"], (given["f"][0], given["m"][0])
    starts = tuple(read_start(Value.of(text), "-i") for text in given.get("i", ()))
    request = Request(
        _stages(given, last, quick), prefix, f"{prefix}Warped.nii.gz", f"{prefix}InverseWarped.nii.gz",
        starts or (Start(pair=first, feature="centres of mass"),), dimension, _QUANTILES,
        collapse=last.get("z", "1") == "1", single=last.get("p") == "f",
        seed=whole(last["e"], "-e", 0) if "e" in last else None,
        preset=last.get("preset", "fast" if quick else "default"), device=last.get("device", "auto"),
    )  # fmt: skip
    return request, whole(last["n"], "-n", 1) if "n" in last else None


def _given(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Flag without its dashes -> its values, in their order."""
    letters = "".join(f"{letter}:" for letter in SCRIPT_FLAGS)
    try:
        pairs, left = getopt.getopt(list(arguments), letters, ["preset=", "device="])
    except getopt.GetoptError as error:
        raise OptionError(f"{error.msg}; --help lists the flags") from error
    if left:
        raise OptionError(f"{escaped(left[0])} belongs to no flag; every value follows one")
    out: dict[str, list[str]] = {}
    for flag, value in pairs:
        out.setdefault(flag.lstrip("-"), []).append(value)
    return out


def _stages(given: Mapping[str, list[str]], last: Mapping[str, str], quick: bool) -> tuple[Stage, ...]:
    letters = last.get("t", "s")
    if letters not in TYPES:
        raise OptionError(
            f"-t: there is no type {escaped(letters)}{nearest_name(letters, TYPES)}; give one of {', '.join(TYPES)}"
        )
    distance = number(last.get("s", "26"), "-s")
    if distance <= 0:
        raise OptionError(f"-s is a distance in mm above 0, got {distance:g}")
    pairs = list(zip(given["f"], given["m"], strict=True))
    count = whole(last["r"], "-r", 1) if "r" in last else None
    stages = []
    for kind in TYPES[letters]:
        linear = kind not in ("SyN", "BSplineSyN")
        numbers = ("0.1",) if linear else ("0.1", f"{distance:g}" if kind == "BSplineSyN" else "3", "0")
        # Linear stages of the scripts look at the first pair alone.
        metrics = [_metric(*pair, None if linear else count, quick) for pair in (pairs[:1] if linear else pairs)]
        stages.append(Stage(kind, numbers, tuple(metrics)))
    masks = [read_mask(Value.of(text), "-x") for text in given.get("x", ())]
    if len(masks) not in (0, 1, len(stages)):
        raise OptionError(f"there are {len(masks)} -x and {len(stages)} stages; give one -x, or one for each stage")
    several = masks if len(masks) == len(stages) else (masks or [(None, None)]) * len(stages)
    return tuple(replace(stage, masks=mask) for stage, mask in zip(stages, several, strict=True))


def _metric(fixed: str, moving: str, count: int | None, quick: bool) -> Metric:
    """The metric of a pair: what suits it, where the line says nothing of its own."""
    if count is None or (quick and count == _BINS):
        return Metric("auto", fixed, moving)
    return Metric("MI" if quick else "CC", fixed, moving, 1.0, count)

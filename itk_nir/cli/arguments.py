"""Arguments that several commands share: their types, their names, and the values of ``--set``."""

from __future__ import annotations

import argparse
import ast
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from itk_nir.errors import OptionError, warn_caller
from itk_nir.findings import texts

if TYPE_CHECKING:
    from itk_nir.geometry import Geometry
    from itk_nir.settings import Settings

PRESETS = ("fast", "default", "accurate", "paper")
FORMATS = ("itk", "ants", "elastix", "slicer", "nifti")
INTERPOLATIONS = (
    "auto", "linear", "nearest", "bspline", "gaussian", "cosine", "hamming", "welch", "lanczos", "label",
    "label-linear",
)  # fmt: skip

#: The public options of `itk_nir.register`, each of which is a flag: known here so that arguments are read at once.
PUBLIC_OPTIONS = (
    "metric", "channel_weights", "iterations", "shrink_factors", "smoothing_sigmas", "radius", "learning_rates",
    "regulariser", "smoothness", "grid_spacing", "transform_model", "symmetric", "search", "restrict", "region_weight",
    "landmark_weight", "label_weight", "labels", "convergence_window", "convergence_threshold", "linear_metric",
)  # fmt: skip

#: Arguments of `itk_nir.register` that are no setting of a preset: the flag for each, None where there is none.
REGISTER_FLAGS: dict[str, str | None] = {
    "fixed": "--fixed",
    "moving": "--moving",
    "preset": "--preset",
    "linear": "--linear",
    "deformable": None,
    "fixed_mask": "--fixed-mask",
    "moving_mask": "--moving-mask",
    "fixed_lesion": "--fixed-lesion",
    "moving_lesion": "--moving-lesion",
    "rigid_regions": "--rigid-regions",
    "volume_regions": "--volume-regions",
    "fixed_landmarks": "--fixed-landmarks",
    "moving_landmarks": "--moving-landmarks",
    "landmark_weights": "--landmark-weights",
    "fixed_labels": "--fixed-labels",
    "moving_labels": "--moving-labels",
    "initial_transform": "--initial-transform",
    "fill": "--fill",
    "nan": "--nan",
    "resample_shear": "--resample-shear",
    "strict_input": "--strict-input",
    "seed": "--seed",
    "device": "--device",
    "threads": "--threads",
    "callback": None,
    "checkpoint": "--checkpoint",
    "checkpoint_seconds": "--checkpoint-seconds",
}

#: Numbers as flags and ANTs' programs take them, which Python may read as one in hexadecimal: ``0x1``, ``4x2x1``.
_BY_X = re.compile(r"\d[\d.]*(x\d[\d.]*)+")

#: What a bare word means as a value or within one, in small or capital letters.
_WORDS = {
    "true": True,
    "false": False,
    "none": None,
    "inf": math.inf,
    "infinity": math.inf,
    "nan": math.nan,
}


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command that registers has: preset, seed, device and threads."""
    parser.add_argument("--preset", choices=PRESETS, default="default", help="how much work (default: default)")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")
    parser.add_argument(
        "--device", type=device, default="auto", metavar="NAME",
        help="where to compute: auto (a GPU that has passed `itk-nir selftest`, else the CPU), cpu, cuda or cuda:N "
        "(default: auto)",
    )  # fmt: skip
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each public option; what it means is filled in from the settings when help is asked for."""
    group = parser.add_argument_group(
        "options of the deformable stage",
        "one value for all levels or one a level, coarsest first: 40,20,10; more with --set",
    )
    actions = {}
    for name in PUBLIC_OPTIONS:
        flag, target = "--" + name.replace("_", "-"), f"option_{name}"
        if name == "symmetric":
            actions[name] = group.add_argument(
                flag, dest=target, action="store_const", const=True, default=argparse.SUPPRESS
            )
        else:
            kind = metric_names if name.endswith("metric") else level_values
            actions[name] = group.add_argument(flag, dest=target, type=kind, metavar="VALUE", default=argparse.SUPPRESS)
    plain = parser.format_help

    def format_help() -> str:
        from itk_nir.settings import described

        for name, (value, what) in described("default").items():
            if name in actions and what is not None:
                limits = what.limits()
                text = f"{what.help}{f' ({limits})' if limits else ''}"
                # No values are no value that could be typed: the text says what holds where the flag is left out.
                if value != ():
                    text += f"; default: {','.join(map(str, value)) if isinstance(value, tuple) else value}"
                actions[name].help = text.replace("`", "").replace("%", "%%")
        return plain()

    parser.format_help = format_help  # type: ignore[method-assign]


def level_values(text: str) -> Any:
    """Read ``40,20,10``, ``40x20x10``, a number or a word, for argparse; what it may be the settings say.

    Examples
    --------
    >>> level_values("40x20x10"), level_values("0.5,1"), level_values("ncc")
    ((40, 20, 10), (0.5, 1), 'ncc')
    """
    parts = text.replace("x", ",").split(",") if text[:1].isdigit() else text.split(",")
    values = tuple(_value(part.strip()) for part in parts)
    return values[0] if len(values) == 1 else values


def metric_names(text: str) -> Any:
    """Read the name of a metric, or one a channel, for argparse: ``none`` is one of them.

    Examples
    --------
    >>> metric_names("none"), metric_names("lncc,nmi")
    ('none', ('lncc', 'nmi'))
    """
    value = level_values(text)
    return "none" if value is None else value


def numbers(text: str) -> tuple[float, ...]:
    """Read ``A,B,...``, numbers, for argparse."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between, got {text!r}") from None


def given_options(options: argparse.Namespace) -> dict[str, Any]:
    """The public options that the user gave a flag for, also those with the value ``none``."""
    given = vars(options)
    return {name: given[f"option_{name}"] for name in PUBLIC_OPTIONS if f"option_{name}" in given}


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``; without it the options have no such name, so that it may stand before or behind a command."""
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log what is done to standard error, and show the traceback of an error",
    )


def positive(text: str) -> int:
    """Read a whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def sizes(text: str) -> tuple[int, ...]:
    """Read ``X,Y[,Z]``, for argparse."""
    return tuple(positive(part) for part in text.split(","))


def device(text: str) -> str:
    """Check the form of the name of a device, for argparse; whether there is one is asked when it is needed."""
    from itk_nir.devices import checked_device

    try:
        return checked_device(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def settings_of(preset: str, given: Mapping[str, Any]) -> Settings:
    """The preset with what ``--set`` says; names of before 0.2 are told of, as a warning that users see."""
    from itk_nir.settings import make_settings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = make_settings(preset, **given)
    for warning in caught:
        warnings.warn(f"--set: {warning.message}", UserWarning, stacklevel=2)
    return settings


def one_or_list(files: list[str] | None) -> Any:
    """A single file by itself, several as the list they are."""
    return files[0] if files is not None and len(files) == 1 else files


def grid_of(name: str | None, role: str, *, resample_shear: bool = False) -> Geometry | None:
    """The grid of an image that gives nothing else, of which what is odd is told.

    Parameters
    ----------
    name : str or None
        The file, if there is one.
    role : str
        What it is in messages.
    resample_shear : bool, default False
        As of `itk_nir.images.load_image`.

    Returns
    -------
    Geometry or None

    Raises
    ------
    InputError
        It cannot be read.
    """
    if name is None:
        return None
    from itk_nir.images.series import read_grid

    geometry, findings = read_grid(name, role, resample_shear=resample_shear)
    for text in texts(findings):
        warn_caller(text)
    return geometry


def add_convention(parser: argparse.ArgumentParser) -> None:
    """Add what tells how transform files are meant that do not tell it themselves.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        The command's.
    """
    parser.add_argument(
        "--convention",
        metavar="NAME",
        help="of a matrix in text: lps, ras, fsl, or a program: greedy, c3d, niftyreg, mrtrix, afni, itk, flirt; "
        "displacements says that a field is one in LPS mm, whatever it looks like",
    )


def parse_settings(
    assignments: Sequence[str], *, option: str = "--set", flags: Mapping[str, str | None] = REGISTER_FLAGS
) -> dict[str, Any]:
    """Read the settings of a preset that the user overrides.

    Parameters
    ----------
    assignments : sequence of str
        ``"NAME=VALUE"`` each. A value is a Python literal, or numbers with x between; true, false, none, inf and nan
        are words for theirs; anything else is text. The dashes of a name are underscores.
    option : str
        The flag that they came with, for messages.
    flags : mapping of str to str or None
        Names that are no settings but arguments of their own, and their flags.

    Returns
    -------
    dict of str
        The values by name.

    Raises
    ------
    OptionError
        For anything that is no assignment, and for the names in `flags`.

    Examples
    --------
    >>> parse_settings(["shrink_factors=(4, 2)", "strain-scale=inf"])
    {'shrink_factors': (4, 2), 'strain_scale': inf}
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name, text = name.strip().replace("-", "_"), text.strip()
        if not equals or not name.isidentifier():
            raise OptionError(f"{option} {assignment}: write it as OPTION=VALUE; `itk-nir presets` lists the options")
        if name in flags:
            flag = flags[name]
            instead = "is not an option of the command line" if flag is None else f"give it as {flag} {text}"
            raise OptionError(f"{option} {assignment}: {name} is no setting of a preset, {instead}")
        try:
            if text.lower() == "none" and name.endswith("metric"):
                settings[name] = metric_names(text)
            else:
                settings[name] = level_values(text) if _BY_X.fullmatch(text) else _value(text)
        except (RecursionError, MemoryError):  # of Python's parser, which says so for deep nesting
            raise OptionError(f"{option} {name}=...: the value is nested too deeply to be read") from None
    return settings


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(_KnownWords().visit(ast.parse(text, mode="eval")))
    except (ValueError, SyntaxError, TypeError):
        return text


class _KnownWords(ast.NodeTransformer):
    """Puts the values of `_WORDS` in the place of the words, wherever in an expression they stand."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        word = node.id.lower()
        return ast.copy_location(ast.Constant(_WORDS[word]), node) if word in _WORDS else node

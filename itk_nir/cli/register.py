"""``itk-nir register``: two images in, a transform and the warped image out."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from itk_nir.cli.arguments import (
    FORMATS,
    REGISTER_FLAGS,
    add_common,
    add_options,
    given_options,
    numbers,
    one_or_list,
    parse_settings,
    settings_of,
)
from itk_nir.cli.console import SUCCESS, UNSUPPORTED, names, note_if_folder, progress, require_matplotlib, summary, tell
from itk_nir.cli.signals import requests
from itk_nir.errors import OptionError

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``register`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "register",
        help="register two images",
        description="Find the transform between two images. Writes PREFIXWarped.nii.gz (moving on the fixed grid), "
        "PREFIXComposite.h5 (fixed -> moving, what resampling needs), PREFIXInverseComposite.h5, PREFIXreport.json; "
        "with --format, the transforms as another program's files.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--output", required=True, metavar="PREFIX", help="start of the names of all files written")
    add_inputs(parser)
    add_outputs(parser)
    add_common(parser)
    add_options(parser)
    # What is then there was typed: a flag may have been typed with the value that it has without.
    usual = {a.dest: a.default for a in parser._actions if a.default is not argparse.SUPPRESS}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser.set_defaults(usual=usual)
    return parser


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add what a registration is told of, but its preset and options."""
    parser.add_argument("--fixed", metavar="IMAGE", help="image that stays")
    parser.add_argument("--moving", metavar="IMAGE", help="image that is brought onto it")
    parser.add_argument(
        "--linear",
        choices=("none", "translation", "rigid", "similarity", "affine"),
        default="affine",
        help="linear stage before the deformation (default: affine)",
    )
    parser.add_argument("--fixed-mask", metavar="IMAGE", help="above 0 where the fixed image counts")
    parser.add_argument("--moving-mask", metavar="IMAGE", help="the same in the moving image")
    parser.add_argument(
        "--fixed-lesion",
        metavar="IMAGE",
        help="above 0 where the fixed image shows what has no counterpart: a lesion, an implant, an artefact",
    )
    parser.add_argument("--moving-lesion", metavar="IMAGE", help="the same in the moving image")
    parser.add_argument(
        "--rigid-regions",
        metavar="IMAGE",
        help="label map of the fixed image: regions (values other than 0) that keep their shape",
    )
    parser.add_argument("--volume-regions", metavar="IMAGE", help="the same for regions that keep their volume")
    parser.add_argument(
        "--fixed-landmarks", metavar="FILE", help="points in the fixed image, LPS mm: CSV with columns x,y[,z]"
    )
    parser.add_argument("--moving-landmarks", metavar="FILE", help="the same points in the moving image, row by row")
    parser.add_argument(
        "--landmark-weights", type=numbers, metavar="W,W,...", help="how much each pair of landmarks counts"
    )
    for side in ("fixed", "moving"):
        parser.add_argument(
            f"--{side}-labels", metavar="IMAGE", help=f"label map of the {side} image, 0 the background"
        )
    parser.add_argument(
        "--initial-transform",
        action="append",
        metavar="FILE",
        help="start from this transform file or displacement field, fixed -> moving; may be given several times, in "
        "the order in which they meet a fixed point. It becomes part of the result",
    )
    parser.add_argument(
        "--fill",
        type=float,
        metavar="VALUE",
        help="value of the warped image where the moving image does not reach (default: its background)",
    )
    parser.add_argument(
        "--nan", choices=("error", "mask"), default="error", help="NaN and infinite voxels: an error, or left out"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="override one setting of the preset (`itk-nir presets` lists them); may be given several times",
    )
    parser.add_argument(
        "--resample-shear",
        action="store_true",
        help="resample images whose axes are not perpendicular instead of refusing them",
    )
    parser.add_argument(
        "--strict-input",
        action="store_true",
        help="warnings about the input are errors (`itk-nir check` lists them)",
    )


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add what is written and how."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="itk",
        help="whose transform files: itk (Composite.h5), ants (1Warp.nii.gz, 0GenericAffine.mat, 1InverseWarp.nii.gz), "
        "elastix (TransformParameters.N.txt), slicer (Displacement.nrrd), nifti (DisplacementField.nii.gz, RAS); "
        "default: itk",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit status 3 unless the verdict on the result is 'good'; files are written",
    )
    parser.add_argument(
        "--from-report",
        metavar="FILE",
        help="repeat the registration of this report.json, to the bit on the same machine: its images and options "
        "are taken from there; --fixed, --moving and other inputs say where a file is now",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="keep what is done so far in this folder, after every level and every --checkpoint-seconds; the same "
        "command goes on from there after it was stopped, and the folder is emptied at the end",
    )
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=60.0, metavar="S", help="between two of them (default: 60)"
    )
    parser.add_argument("--picture", action="store_true", help="write PREFIXregistration.png too")


def run(options: argparse.Namespace) -> int:
    """Register the images, write all files or none, and print one line about the result; the exit status."""
    usual = vars(options).pop("usual")
    typed = set(vars(options)) - {"run", "debug"}
    options = argparse.Namespace(**{**usual, **vars(options)})
    if "checkpoint_seconds" in typed and options.checkpoint is None:
        raise OptionError("--checkpoint-seconds: is about --checkpoint FOLDER; give that too, or leave it out")
    if options.from_report is not None:
        began = time.perf_counter()
        return _finished(options, _repeated(options, typed), began)
    check_images(options)
    given = all_options(options)
    fixed = _checked_output(options)
    with progress() as callback:
        from itk_nir.engine import ops
        from itk_nir.registration import register

        ops.return_blocks_from(8 << 20)
        began = time.perf_counter()
        result = register(
            fixed, options.moving, preset=settings_of(options.preset, given), **inputs_of(options),
            callback=requests().stopping(callback), checkpoint=options.checkpoint,
            checkpoint_seconds=options.checkpoint_seconds,
        )  # fmt: skip
    return _finished(options, result, began)


def check_images(options: argparse.Namespace) -> None:
    """Refuse a command line without both images.

    Raises
    ------
    OptionError
        One is missing.
    """
    missing = [f"--{name}" for name in ("fixed", "moving") if getattr(options, name) is None]
    if missing:
        report = ", or --from-report FILE" if "from_report" in options else ""
        raise OptionError(f"{' and '.join(missing)}: missing; give both images{report}")


def _finished(options: argparse.Namespace, result: RegistrationResult, began: float) -> int:
    """Write all files or none, and print one line about the result; the exit status."""
    from itk_nir.saving import save_result

    paths = save_result(result, options.output, options.format, _picture(result) if options.picture else {})
    requests().written = True
    tell(f"{summary(result)}, {time.perf_counter() - began:.1f} s; wrote {names(paths.values())}")
    verdict = result.report.verdict
    return UNSUPPORTED if options.strict and verdict is not None and verdict.grade != "good" else SUCCESS


def all_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the preset that were given, by flags or by ``--set``."""
    given = parse_settings(options.set)
    for name, value in given_options(options).items():
        if name in given:
            raise OptionError(f"--set {name}={given[name]}: --{name.replace('_', '-')} is given too; leave one out")
        given[name] = value
    return given


def inputs_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that `itk_nir.check` has too, but the two images and the preset."""
    others = ("fixed", "moving", "preset", "checkpoint", "checkpoint_seconds")
    same = [name for name, flag in REGISTER_FLAGS.items() if flag is not None and name not in others]
    return {name: getattr(options, name) for name in same} | {
        "initial_transform": one_or_list(options.initial_transform)
    }


#: What may stand beside ``--from-report``: where things are and how it is run.
_WITH_A_REPORT = (
    "fixed", "moving", "fixed_mask", "moving_mask", "fixed_lesion", "moving_lesion", "rigid_regions", "volume_regions",
    "fixed_landmarks", "moving_landmarks", "fixed_labels", "moving_labels", "initial_transform", "device", "threads",
    "checkpoint", "checkpoint_seconds",
)  # fmt: skip


def _repeated(options: argparse.Namespace, typed: set[str]) -> RegistrationResult:
    """The registration of a report once more.

    Raises
    ------
    OptionError
        A flag that would make another registration of it.
    """
    others = typed - {*_WITH_A_REPORT, "from_report", "output", "format", "strict", "picture"}
    if others:
        flags = sorted("--" + name.removeprefix("option_").replace("_", "-") for name in others)
        raise OptionError(f"{', '.join(flags)}: --from-report says it already; leave it out")
    from itk_nir.repeating import arguments_in, repeat

    anew = {name: getattr(options, name) for name in typed & set(_WITH_A_REPORT)}
    if "initial_transform" in anew:
        anew["initial_transform"] = one_or_list(anew["initial_transform"])
    # What is no file, such as a pipe, can be read once only.
    given = arguments_in(options.from_report) if os.path.isfile(options.from_report) else {}
    _checked_output(options, [options.from_report, *(given | anew).values()])
    with progress() as callback:
        from itk_nir.engine import ops

        ops.return_blocks_from(8 << 20)
        return repeat(options.from_report, callback=requests().stopping(callback), **anew)


def _picture(result: RegistrationResult) -> dict[str, tuple[str, bytes]]:
    """What is written beside the other files."""
    from pathlib import Path

    from itk_nir.plot import picture
    from itk_nir.saving import PICTURE

    with tempfile.TemporaryDirectory() as folder:
        return {"picture": (PICTURE, picture(result, Path(folder) / PICTURE).read_bytes())}


def _checked_output(options: argparse.Namespace, more_files: Sequence[Any] = ()) -> Any:
    """Refuse what cannot be written, before the work rather than after it; the fixed image, read where it had to be."""
    from itk_nir.places import named_files
    from itk_nir.saving import PICTURE, check_result

    words = (
        "preset", "linear", "seed", "device", "threads", "landmark_weights", "strict_input", "resample_shear",
        "fill", "nan", "checkpoint", "checkpoint_seconds",
    )  # fmt: skip
    read = [getattr(options, name) for name, flag in REGISTER_FLAGS.items() if flag is not None and name not in words]
    more = (PICTURE,) if options.picture else ()
    check_result(options.output, options.format, more, named_files(*read, *more_files))
    note_if_folder(options.output)
    if options.picture:
        require_matplotlib()
    if options.format == "nifti" and options.fixed is not None:  # the one that not every dimension has
        from itk_nir.images import load_image
        from itk_nir.transforms.save import check_format

        volume = load_image(options.fixed, "fixed image", resample_shear=options.resample_shear)
        check_format(options.format, volume.dimension)
        return volume
    return options.fixed

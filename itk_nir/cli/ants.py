"""``itk-nir ants``: the flags and the files of antsRegistrationSyN.sh."""

from __future__ import annotations

import argparse
from typing import Any

from itk_nir.cli.arguments import PRESETS, device
from itk_nir.cli.console import names, note_if_folder, progress, summary, tell
from itk_nir.cli.signals import requests
from itk_nir.errors import InputError, OptionError


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``ants`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ants",
        help="register two images with the flags of antsRegistrationSyN.sh",
        description="Takes the flags of antsRegistrationSyN.sh and writes its files: PREFIXWarped.nii.gz, "
        "PREFIXInverseWarped.nii.gz, PREFIX0GenericAffine.mat, PREFIX1Warp.nii.gz, PREFIX1InverseWarp.nii.gz. "
        "A flag that has no meaning here is an error unless it has the script's own default.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("-d", dest="dimension", type=int, choices=(2, 3), default=3, help="2 or 3 (default: 3)")
    parser.add_argument("-f", dest="fixed", action="append", required=True, metavar="IMAGE", help="fixed image")
    parser.add_argument("-m", dest="moving", action="append", required=True, metavar="IMAGE", help="moving image")
    parser.add_argument("-o", dest="output", required=True, metavar="PREFIX", help="start of the names of all files")
    parser.add_argument(
        "-t",
        dest="type",
        default="s",
        metavar="TYPE",
        help="r rigid, a affine, s affine + deformable, sr rigid + deformable, so deformable only; b, br, bo are the "
        "same as s, sr, so (default: s)",
    )
    parser.add_argument("-n", dest="threads", type=int, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "-i",
        dest="initial",
        action="append",
        metavar="FILE",
        help="initial transform, or [FILE,1] for its inverse; several in the order of antsApplyTransforms",
    )
    parser.add_argument(
        "-x",
        dest="masks",
        action="append",
        default=[],
        metavar="FIXED[,MOVING]",
        help="mask of the fixed image, or of both; NULL stands for none. It counts in every stage",
    )
    parser.add_argument(
        "-r", dest="radius", type=int, metavar="N", help="radius of CC in voxels (default: the preset's)"
    )
    parser.add_argument("-e", dest="seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("-p", dest="precision", choices=("f", "d"), default="d", help="both give float32 fields")
    parser.add_argument("-y", dest="repro", choices=("0", "1"), default="0", help="runs are reproducible either way")
    parser.add_argument(
        "-s", dest="spline", type=float, default=26, help="refused unless 26: there are no such splines"
    )
    parser.add_argument("-g", dest="step", type=float, default=0.1, help="refused unless 0.1: steps are the preset's")
    parser.add_argument("-j", dest="histogram", choices=("0", "1"), default="0", help="refused unless 0")
    parser.add_argument("-z", dest="collapse", choices=("0", "1"), default="1", help="refused unless 1")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="not a flag of ANTs: how long to work (fast for antsRegistrationSyNQuick.sh; default: default)",
    )
    parser.add_argument(
        "--device", type=device, default="auto", metavar="NAME", help="not a flag of ANTs (default: auto)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Register and write the files.

    Returns
    -------
    int
        0: all of them are complete.

    Raises
    ------
    InputError, OptionError
        Before any work begins.
    """
    from dataclasses import replace

    from itk_nir.compat.ants import parse_script_type, run_kind, write_files
    from itk_nir.images import in_their_planes, load_image
    from itk_nir.places import named_files
    from itk_nir.saving import TRANSFORMS, check_output_prefix

    kind = replace(parse_script_type(args.type, "-t"), preset=args.preset, radius=args.radius)
    _refuse(args)
    if args.radius is not None and not kind.deformable:
        raise OptionError(f"-r has no meaning with -t {args.type}, which has no deformable stage; leave it out")
    mask, moving_mask = _masks(args.masks)
    initial = [(text.strip("[]").split(",")[0] if text.startswith("[") else text) for text in args.initial or ()]
    check_output_prefix(
        args.output,
        ("Warped.nii.gz", "InverseWarped.nii.gz", *TRANSFORMS["ants"]),
        named_files(args.fixed, args.moving, mask, moving_mask, initial),
    )
    note_if_folder(args.output)
    images = load_image(args.fixed[0], "fixed image"), load_image(args.moving[0], "moving image")
    (fixed,), (moving,), _ = in_their_planes(images[:1], images[1:])
    if fixed.dimension != args.dimension:
        what = "is a single slice" if fixed.plane is not None else f"is {fixed.dimension}D"
        raise InputError(f"-d {args.dimension}: {fixed.name} {what}; give -d {fixed.dimension}")
    options: dict[str, Any] = {"seed": args.seed, "device": args.device, "threads": args.threads}
    with progress() as callback:
        options["callback"] = requests().stopping(callback)
        result = run_kind(
            fixed, moving, kind, mask=mask, moving_mask=moving_mask, initial_transform=args.initial, options=options
        )
    files = write_files(result, args.output, images=True)
    requests().written = True
    written = dict.fromkeys([*files["images"], *files["fwdtransforms"], *files["invtransforms"]])
    tell(f"{summary(result)}; wrote {names(written)}")
    return 0


def _refuse(args: argparse.Namespace) -> None:
    if len(args.fixed) > 1 or len(args.moving) > 1:
        raise OptionError("-f and -m can be given once: one image pair at a time")
    for flag, value, only, why in (
        ("-s", args.spline, 26, "the deformation has no spline distance; itk-nir register --set grid_spacing=..."),
        ("-g", args.step, 0.1, "steps are the preset's; itk-nir register --set learning_rates=..."),
        ("-j", args.histogram, "0", "histograms are not matched here; match them beforehand"),
        ("-z", args.collapse, "1", "the stages are one linear map and one deformation"),
    ):
        if value != only:
            raise OptionError(f"{flag} {value} is refused: {why} (only {flag} {only} can be had)")


def _masks(given: list[str]) -> tuple[str | None, str | None]:
    """Fixed and moving mask; one pair counts for all stages."""
    if not given:
        return None, None
    if any(m != given[0] for m in given):
        raise OptionError(f"-x {' -x '.join(given)}: masks that differ from stage to stage cannot be had; give one -x")
    parts = [part.strip() for part in given[0].strip("[]").split(",")]
    if len(parts) > 2:
        raise OptionError(f"-x {given[0]}: give FIXED or FIXED,MOVING")
    fixed, moving = (None if part in ("", "NULL", "NA") else part for part in [*parts, ""][:2])
    return fixed, moving

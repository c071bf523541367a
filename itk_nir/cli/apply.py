"""``itk-nir apply``: an image, a label map or points through a transform."""

from __future__ import annotations

import argparse
from typing import Any

from itk_nir.cli.arguments import INTERPOLATIONS, add_convention, grid_of, one_or_list
from itk_nir.cli.console import names, tell
from itk_nir.cli.signals import requests
from itk_nir.errors import InputError, warn_caller
from itk_nir.places import named_files


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``apply`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "apply",
        help="warp an image, a label map or points",
        description="Carry an image (with --image) onto the reference grid, or points (with --points) from fixed to "
        "moving space, through a transform. Points go the way opposite to images.",
    )
    parser.set_defaults(run=run)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", metavar="IMAGE", help="image or label map in moving space")
    what.add_argument(
        "--points",
        metavar="FILE",
        help="table with a header x,y[,z] (CSV, .tsv), .fcsv, .mrk.json, .vtk, .vtp or transformix' points",
    )
    parser.add_argument(
        "--frame", choices=("lps", "ras"), help="what a table of points is in, mm (default: what it says, or else lps)"
    )
    parser.add_argument(
        "--transform",
        required=True,
        action="append",
        metavar="FILE",
        help="transform file or displacement field, fixed -> moving; several in the order in which they meet a fixed "
        "point; [FILE,1] is the inverse of one, identity no change",
    )
    add_convention(parser)
    parser.add_argument(
        "--moving", metavar="IMAGE", help="with --points: moving image, which FSL's matrices are about too"
    )
    parser.add_argument("--inverse", action="store_true", help="through the inverse of the transform")
    parser.add_argument(
        "--reference",
        metavar="IMAGE",
        help="image that gives the output grid (default: --image); with --points the fixed image",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="image or table to write")
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default="auto",
        help="default auto: nearest for label maps, linear for everything else; label votes with the weights of a "
        "Gaussian (ANTs' MultiLabel), label-linear with those of linear interpolation; cosine, hamming, welch and "
        "lanczos are windows of a sinc function",
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="the image is a label map: nearest, or what --interpolation says of label and label-linear",
    )
    parser.add_argument(
        "--resample-shear",
        action="store_true",
        help="resample images whose axes are not perpendicular instead of refusing them",
    )
    parser.add_argument(
        "--fill",
        "--default",
        type=float,
        metavar="VALUE",
        help="value where the image does not reach (default: its background, 0 for label maps); --default is the name "
        "of before",
    )
    parser.add_argument(
        "--pixel-type",
        metavar="TYPE",
        help="of the result: float, double, uchar, short, ushort, int, ... (default: the image's own, rounded and "
        "clipped)",
    )
    parser.add_argument(
        "--nan", choices=("error", "mask"), default="error", help="NaN and infinite voxels: an error, or no value"
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Carry what was given through the transform, and write it."""
    if options.points is not None:
        _apply_to_points(options)
    else:
        _apply_to_image(options)


def _files(options: argparse.Namespace) -> list[str]:
    """The files of the transforms."""
    from itk_nir.transforms.listed import listed

    return [entry.file for entry in map(listed, options.transform) if entry.file is not None]


def _apply_to_points(options: argparse.Namespace) -> None:
    images = {
        "--labels": options.labels, "--interpolation": options.interpolation != "auto",
        "--pixel-type": options.pixel_type, "--fill": options.fill is not None, "--nan": options.nan != "error",
    }  # fmt: skip
    if any(images.values()):
        flags = ", ".join(flag for flag, given in images.items() if given)
        raise InputError(f"--points takes no {flags}: that is about images; leave it out")
    from itk_nir.loading import load_transform
    from itk_nir.places import check_output_file
    from itk_nir.points import beyond, load_points, save_points
    from itk_nir.transforms import DisplacementField

    check_output_file(options.output, named_files(options.points, _files(options), options.reference, options.moving))
    fixed, moving = (
        grid_of(name, f"{role} image", resample_shear=options.resample_shear)
        for name, role in ((options.reference, "reference"), (options.moving, "moving"))
    )
    transform = load_transform(
        one_or_list(options.transform), fixed, moving=moving, convention=options.convention
    )  # fmt: skip
    table = load_points(options.points, transform.dimension, frame=options.frame)
    transform = transform.inverse() if options.inverse else transform
    first = transform.transforms[0]
    grid = moving if options.inverse else fixed
    if grid is None and isinstance(first, DisplacementField):
        grid = first.geometry
    found = None if grid is None else beyond(table.points, grid, "the image that they belong to")
    if found is not None:
        warn_caller(f"points file {options.points}: {found}")
    save_points(table, transform.map(table.points), options.output)
    requests().written = True
    tell(f"{len(table.points)} points; wrote {names([options.output])}")


def _apply_to_image(options: argparse.Namespace) -> None:
    if options.labels and options.interpolation not in ("auto", "nearest", "label", "label-linear"):
        raise InputError(f"--labels are never interpolated: --interpolation {options.interpolation} cannot be had")
    if options.frame or options.moving:
        raise InputError("--frame and --moving are for --points; leave them out")
    from itk_nir.applying import Application
    from itk_nir.images import check_image_name
    from itk_nir.places import check_output_file

    check_image_name(options.output)
    check_output_file(options.output, named_files(options.image, options.reference, _files(options)))
    job = Application.prepare(
        options.image,
        one_or_list(options.transform),
        options.reference,
        interpolation="nearest" if options.labels and options.interpolation == "auto" else options.interpolation,
        fill=0 if options.labels and options.fill is None else options.fill,
        pixel_type=options.pixel_type,
        nan=options.nan,
        inverse=options.inverse,
        convention=options.convention,
        resample_shear=options.resample_shear,
    )
    for text in job.told:
        warn_caller(text)
    job.write(options.output)
    requests().written = True
    size = "x".join(map(str, job.geometry.size))
    count = "" if job.source.time is None else f"{job.source.count} volumes of "
    tell(f"{count}{size} voxels, {job.mode}; wrote {names([options.output])}")

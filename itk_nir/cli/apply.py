"""``itk-nir apply``: an image, a label map or points through a transform."""

from __future__ import annotations

import argparse
from typing import Any

from itk_nir.cli.arguments import one_or_list
from itk_nir.cli.console import names, tell
from itk_nir.errors import InputError


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
    what.add_argument("--points", metavar="CSV", help="table with a header x,y[,z] in LPS mm; other columns are kept")
    parser.add_argument(
        "--transform",
        required=True,
        action="append",
        metavar="FILE",
        help="transform file (ITK, elastix) or displacement field, fixed -> moving; several in the order in which "
        "they meet a fixed point",
    )
    parser.add_argument("--inverse", action="store_true", help="through the inverse of the transform")
    parser.add_argument("--reference", metavar="IMAGE", help="image that gives the output grid (default: --image)")
    parser.add_argument("--output", required=True, metavar="FILE", help="image or table to write")
    parser.add_argument(
        "--interpolation",
        choices=("auto", "linear", "nearest", "bspline"),
        default="auto",
        help="default auto: nearest for label maps, linear for everything else",
    )
    parser.add_argument("--labels", action="store_true", help="the image is a label map: nearest, always")
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


def _apply_to_points(options: argparse.Namespace) -> None:
    if options.reference or options.labels or options.interpolation != "auto" or options.pixel_type:
        raise InputError("--points takes no --reference, --labels, --interpolation or --pixel-type; leave them out")
    from itk_nir.loading import load_transform
    from itk_nir.points import load_points, save_points

    transform = load_transform(one_or_list(options.transform))
    table = load_points(options.points, transform.dimension)
    transform = transform.inverse() if options.inverse else transform
    save_points(table, transform.map(table.points), options.output)
    tell(f"{len(table.points)} points; wrote {names([options.output])}")


def _apply_to_image(options: argparse.Namespace) -> None:
    if options.labels and options.interpolation not in ("auto", "nearest"):
        raise InputError(f"--labels are never interpolated: --interpolation {options.interpolation} cannot be had")
    from itk_nir.applying import Application

    job = Application.prepare(
        options.image,
        one_or_list(options.transform),
        options.reference,
        interpolation="nearest" if options.labels else options.interpolation,
        fill=0 if options.labels and options.fill is None else options.fill,
        pixel_type=options.pixel_type,
        nan=options.nan,
        inverse=options.inverse,
    )
    job.write(options.output)
    size = "x".join(map(str, job.geometry.size))
    count = "" if job.source.time is None else f"{job.source.count} volumes of "
    tell(f"{count}{size} voxels, {job.mode}; wrote {names([options.output])}")

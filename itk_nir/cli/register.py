"""``itk-nir register``: two images in, a transform and the warped image out."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itk_nir.cli.arguments import (
    FORMATS,
    add_common,
    add_options,
    given_options,
    numbers,
    one_or_list,
    parse_settings,
    settings_of,
)
from itk_nir.cli.console import SUCCESS, UNSUPPORTED, names, note_if_folder, progress, require_matplotlib, summary, tell
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
    parser.add_argument("--fixed", required=True, metavar="IMAGE", help="image that stays")
    parser.add_argument("--moving", required=True, metavar="IMAGE", help="image that is brought onto it")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="start of the names of all files written")
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
    parser.add_argument("--picture", action="store_true", help="write PREFIXregistration.png too")
    add_common(parser)
    add_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Register the images, write all files or none, and print one line about the result; the exit status."""
    given = parse_settings(options.set)
    for name, value in given_options(options).items():
        if name in given:
            raise OptionError(f"--set {name}={given[name]}: --{name.replace('_', '-')} is given too; leave one out")
        given[name] = value
    fixed = _checked_output(options)
    with progress() as callback:
        from itk_nir.engine import ops
        from itk_nir.registration import register

        ops.return_blocks_from(8 << 20)
        began = time.perf_counter()
        result = register(
            fixed,
            options.moving,
            preset=settings_of(options.preset, given),
            linear=options.linear,
            fixed_mask=options.fixed_mask,
            moving_mask=options.moving_mask,
            fixed_lesion=options.fixed_lesion,
            moving_lesion=options.moving_lesion,
            rigid_regions=options.rigid_regions,
            volume_regions=options.volume_regions,
            fixed_landmarks=options.fixed_landmarks,
            moving_landmarks=options.moving_landmarks,
            landmark_weights=options.landmark_weights,
            fixed_labels=options.fixed_labels,
            moving_labels=options.moving_labels,
            initial_transform=one_or_list(options.initial_transform),
            fill=options.fill,
            nan=options.nan,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            callback=callback,
        )
    paths = _save_with_picture(result, options) if options.picture else result.save(options.output, options.format)
    tell(f"{summary(result)}, {time.perf_counter() - began:.1f} s; wrote {names(paths.values())}")
    verdict = result.report.verdict
    return UNSUPPORTED if options.strict and verdict is not None and verdict.grade != "good" else SUCCESS


def _save_with_picture(result: RegistrationResult, options: argparse.Namespace) -> dict[str, Path]:
    """Draw first, so that a picture that fails leaves the files of an earlier run as they are."""
    from itk_nir.atomic import replacing
    from itk_nir.plot import picture

    with tempfile.TemporaryDirectory() as folder:
        drawn = picture(result, f"{folder}/registration.png").read_bytes()
    paths = result.save(options.output, options.format)
    paths["picture"] = Path(f"{options.output}registration.png")
    with replacing(paths["picture"]) as temporary:
        temporary.write_bytes(drawn)
    return paths


def _checked_output(options: argparse.Namespace) -> Any:
    """Refuse what cannot be written, before the work rather than after it; the fixed image, read where it had to be."""
    from itk_nir.checks import check_output_prefix

    check_output_prefix(options.output)
    note_if_folder(options.output)
    if options.picture:
        require_matplotlib()
    if options.format == "nifti":  # the one that not every dimension has
        from itk_nir.images import load_image
        from itk_nir.transforms.save import check_format

        volume = load_image(options.fixed, "fixed image")
        check_format(options.format, volume.dimension)
        return volume
    return options.fixed

"""``itk-nir convert``: a transform as another program's files."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from itk_nir.cli.arguments import FORMATS, add_convention, grid_of, one_or_list
from itk_nir.cli.console import names, note_if_folder, tell
from itk_nir.cli.signals import requests
from itk_nir.errors import SelfCheckWarning


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``convert`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "convert",
        help="turn a transform into another program's files",
        description="Read a transform fixed -> moving in any format and write it in the one that the name OUT tells: "
        ".h5, .tfm, .mat (ITK; .mat for linear ones), .nii.gz, .nrrd, .mha (displacement field), "
        "TransformParameters.N.txt (elastix).",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "transform",
        nargs="+",
        metavar="IN",
        help="transform file or displacement field; several in the order in which they meet a fixed point, as ANTs "
        "lists them: 1Warp.nii.gz 0GenericAffine.mat",
    )
    parser.add_argument("output", metavar="OUT", help="file to write; with --format ants the start of the names")
    parser.add_argument(
        "--reference",
        metavar="IMAGE",
        help="fixed image: where a conversion cannot be exact, the transform is sampled on its grid",
    )
    parser.add_argument("--moving", metavar="IMAGE", help="moving image, which FSL's matrices are about too")
    add_convention(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="ants writes 1Warp.nii.gz, 0GenericAffine.mat, 1InverseWarp.nii.gz; nifti a field in RAS (intent 1006); "
        "default: what the name tells",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Read the transform, write it and say how far the files are from it."""
    from itk_nir.loading import load_transform
    from itk_nir.places import named_files
    from itk_nir.saving import check_transform_output
    from itk_nir.transforms.save import save_transform

    read = named_files(options.transform, options.reference, options.moving)
    check_transform_output(options.output, options.format, read)
    if options.format == "ants":
        note_if_folder(options.output)
    reference, moving = grid_of(options.reference, "reference image"), grid_of(options.moving, "moving image")
    transform = load_transform(one_or_list(options.transform), reference, moving=moving, convention=options.convention)
    paths, written = save_transform(transform, options.output, format=options.format, reference=reference)
    requests().written = True
    for sentence in written.failed:
        warnings.warn(sentence, SelfCheckWarning, stacklevel=2)
    tell(f"wrote {names(paths)}; read back: {max(written.differences.values()):.1e} mm off at most")
    for name, gap in written.sampling.items():
        tell(f"{name}: sampled on a grid, which between its voxels is off by up to {gap:.2g} mm")

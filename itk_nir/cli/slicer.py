"""3D Slicer's command line module, in the protocol of its execution model.

The folder `CLI_FOLDER` holds what Slicer looks for: ``NIRRegistration.py``, ``NIRRegistration.xml`` side by side. The
same command line without Slicer: ``python -m itk_nir.cli.slicer --fixed F --moving M --outputVolume W``.

With ``--xml`` nothing but the description goes to standard output; otherwise nothing but progress does. The exit status
is that of the other commands.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from itk_nir.cli.arguments import REGISTER_FLAGS, add_debug, parse_settings, settings_of
from itk_nir.cli.console import exit_status, standard_streams, tell
from itk_nir.cli.signals import handled
from itk_nir.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from itk_nir.engine.progress import Progress
    from itk_nir.geometry import Geometry
    from itk_nir.result import RegistrationResult

#: What to add to Slicer's "Additional module paths" (Application Settings, Modules).
CLI_FOLDER = Path(__file__).parents[1] / "slicer_cli"
DESCRIPTION = CLI_FOLDER / "NIRRegistration.xml"

#: The flags of `register`'s own arguments: the names of Slicer's parameters have capitals where others have dashes.
FLAGS = REGISTER_FLAGS | {
    "deformable": None,
    "metric": "--metric",
    "strict_input": None,
    "checkpoint": None,
    "checkpoint_seconds": None,
    "fixed_mask": "--fixedMask",
    "moving_mask": "--movingMask",
    "fixed_lesion": "--fixedLesion",
    "moving_lesion": "--movingLesion",
    "rigid_regions": "--rigidRegions",
    "volume_regions": "--volumeRegions",
    "fixed_labels": "--fixedLabels",
    "moving_labels": "--movingLabels",
    "fixed_landmarks": None,
    "moving_landmarks": None,
    "landmark_weights": None,
    "fill": None,
    "nan": None,
    "initial_transform": "--initialTransform",
    "resample_shear": None,
}

_OUTPUTS = ("outputVolume", "outputTransform", "outputInverseTransform", "outputDisplacementField")
#: Transforms and displacement fields that Slicer reads.
_FIELDS = (".nrrd", ".mha", ".nii.gz")
_TRANSFORMS = (".h5", ".tfm", *_FIELDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Everything behind the name of the program; by default those of the process.

    Returns
    -------
    int
        The exit status, one of `itk_nir.cli.console.STATUSES`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with handled(for_good=__name__ == "__main__"), standard_streams():
        if "--xml" in arguments:
            sys.stdout.write(DESCRIPTION.read_text(encoding="utf-8"))
            return 0
        options = _parser().parse_args(arguments)
        return exit_status(lambda: _register(options), debug=options.debug)


def _register(options: argparse.Namespace) -> None:
    settings = parse_settings(
        [part for part in options.settings.split(";") if part.strip()], option="--settings", flags=FLAGS
    )
    from itk_nir.atomic import together
    from itk_nir.images import check_image_name, save_image
    from itk_nir.places import check_output_file, named_files

    outputs = [getattr(options, name) for name in _OUTPUTS]
    if not any(outputs):
        raise InputError(f"nothing to make; choose at least one output: {', '.join(f'--{name}' for name in _OUTPUTS)}")
    read = named_files(
        options.fixed, options.moving, options.fixedMask, options.movingMask, options.fixedLesion, options.movingLesion,
        options.rigidRegions, options.volumeRegions, options.fixedLabels, options.movingLabels,
        options.initialTransform,
    )  # fmt: skip
    for path in filter(None, outputs):
        check_output_file(path, read)
    if options.outputVolume:
        check_image_name(options.outputVolume)
    for path in filter(None, outputs[1:]):
        if not path.endswith(_TRANSFORMS):
            raise InputError(f"{path}: Slicer reads no such transform; end it in one of {', '.join(_TRANSFORMS)}")
    if options.outputDisplacementField and not options.outputDisplacementField.endswith(_FIELDS):
        raise InputError(
            f"{options.outputDisplacementField}: is no image file, which a displacement field is; end it in one of "
            f"{', '.join(_FIELDS)}"
        )
    if options.metric != "auto":
        settings["metric"] = options.metric
    from itk_nir.registration import register
    from itk_nir.transforms.save import save_transform

    tell("<filter-start><filter-name>NIR Registration</filter-name></filter-start>")
    result = register(
        options.fixed,
        options.moving,
        preset=settings_of(options.preset, settings),
        linear=options.linear,
        deformable=not options.linearOnly,
        fixed_mask=options.fixedMask or None,
        moving_mask=options.movingMask or None,
        fixed_lesion=options.fixedLesion or None,
        moving_lesion=options.movingLesion or None,
        rigid_regions=options.rigidRegions or None,
        volume_regions=options.volumeRegions or None,
        fixed_labels=options.fixedLabels or None,
        moving_labels=options.movingLabels or None,
        initial_transform=options.initialTransform or None,
        seed=options.seed,
        device=options.device,
        threads=options.threads or None,
        callback=_progress,
    )
    fixed, moving = result.fixed.geometry, result.moving.geometry
    failed: list[str] = []
    wanted = [Path(path) for path in outputs if path]
    with together(path.parent for path in wanted) as stages:
        staged = {str(path): stage / path.name for path, stage in zip(wanted, stages, strict=True)}
        if options.outputVolume:
            warped = _warped(result, options.interpolation)
            save_image(*warped, staged[str(Path(options.outputVolume))], space_code=result.fixed.space_code)
        for path, transform, grid in (
            (options.outputTransform, result.mapping, fixed),
            (options.outputInverseTransform, result.mapping.inverse(), moving),
            (options.outputDisplacementField, result.mapping, fixed),
        ):
            if path:
                _, written = save_transform(transform, staged[str(Path(path))], reference=grid)
                failed += written.failed
    for sentence in failed:
        # No other exit status for it: Slicer would load none of the outputs then.
        warnings.warn(sentence, stacklevel=2)
    tell("<filter-end><filter-name>NIR Registration</filter-name></filter-end>")


def _warped(result: RegistrationResult, interpolation: str) -> tuple[NDArray[Any], Geometry]:
    """The moving image in its own pixel type on the fixed grid, and that grid."""
    if interpolation == "linear":
        return result.warped_pixels
    import numpy as np

    from itk_nir.resample import resample
    from itk_nir.warping import in_place

    values = (result.moving, *result.moving_values)
    threads = result.report.threads
    parts = [
        resample(v, result.mapping, result.fixed.geometry, interpolation, result.fill, threads=threads) for v in values
    ]
    return in_place(parts[0] if len(parts) == 1 else np.stack(parts, -1), result.fixed)


def _progress(progress: Progress) -> None:
    tell(f"<filter-progress>{min(max(progress.fraction, 0.0), 1.0):.4f}</filter-progress>")


def _parser() -> argparse.ArgumentParser:
    """The arguments that the description lists, so that the two cannot differ."""
    root = ElementTree.parse(DESCRIPTION).getroot()
    # Slicer writes out what it shows, abbreviations would only hide mistakes.
    parser = argparse.ArgumentParser(
        prog="NIRRegistration", description=root.findtext("description"), allow_abbrev=False
    )
    parser.add_argument("--xml", action="store_true", help="print the description that Slicer reads")
    add_debug(parser)
    parser.set_defaults(debug=False)
    for parameter in root.iterfind("parameters/*"):
        flag = parameter.findtext("longflag")
        if flag is None:  # the label and the description of the group
            continue
        if parameter.tag == "boolean":  # Slicer gives it where it is true
            parser.add_argument(
                flag, dest=flag.removeprefix("--"), action="store_true", help=parameter.findtext("description")
            )
            continue
        parser.add_argument(
            flag,
            dest=flag.removeprefix("--"),
            required=flag in ("--fixed", "--moving"),
            type=int if parameter.tag == "integer" else str,
            choices=[element.text for element in parameter.iterfind("element")] or None,
            default=_default(parameter),
            help=parameter.findtext("description"),
        )
    return parser


def _default(parameter: ElementTree.Element) -> str | int | None:
    text = parameter.findtext("default")
    if text is None:
        return None
    return int(text) if parameter.tag == "integer" else text


if __name__ == "__main__":
    sys.exit(main())

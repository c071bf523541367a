"""``itk-nir demo``: register a synthetic brain whose deformation is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itk_nir.cli.arguments import add_common, sizes
from itk_nir.cli.console import names, progress, require_matplotlib, say, summary, tell
from itk_nir.errors import OptionError

if TYPE_CHECKING:
    from itk_nir.phantom import Phantom
    from itk_nir.result import RegistrationResult

#: Voxels along every axis, at least.
_LEAST_SIZE = 16


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``demo`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="register a synthetic brain whose deformation is known",
        description="Make a brain phantom, register it, and print the true error before and after.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--output", default="demo", metavar="FOLDER", help="where pictures and images go (default: demo)"
    )
    parser.add_argument("--dimension", type=int, choices=(2, 3), default=3, help="default: 3")
    parser.add_argument("--size", type=sizes, metavar="X,Y[,Z]", help="voxels (default: 1 mm voxels)")
    parser.add_argument("--quiet", action="store_true", help="results only")
    add_common(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Register the phantom, write everything, and say how far the result is from the truth."""
    from itk_nir.images import save_image, to_sitk
    from itk_nir.phantom import brain_phantom
    from itk_nir.saving import PICTURE, check_output_prefix, file_names

    _check_size(options.size, options.dimension)
    require_matplotlib()
    folder = Path(options.output)
    prefix = f"{folder}/"
    made = [f"{name}.nii.gz" for name in ("fixed", "moving", "fixed_labels", "moving_labels")]
    check_output_prefix(prefix, file_names("itk", PICTURE, *made))
    if not options.quiet:
        say(f"making a {options.dimension}D brain phantom ...")
    phantom = brain_phantom(options.dimension, options.size, options.seed)
    grid = phantom.geometry
    with progress() as callback:
        from itk_nir.plot import picture
        from itk_nir.registration import register

        result = register(
            to_sitk(phantom.fixed, grid),
            to_sitk(phantom.moving, grid),
            preset=options.preset,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            callback=callback,
        )
    paths = result.save(prefix)
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        paths[name] = folder / f"{name}.nii.gz"
        save_image(getattr(phantom, name), grid, paths[name])
    before, after = _true_errors(phantom, result)
    title = (
        f"Brain phantom, preset {options.preset}: mean error {before.mean():.2f} mm before, "
        f"{after.mean():.2f} mm after registration"
    )
    paths["picture"] = picture(result, folder / "registration.png", title=title)
    tell(f"{summary(result)}\n")
    _print_errors(before, after)
    _print_dice(phantom, result)
    tell(f"\nwrote {names(paths.values())}")


def _check_size(size: tuple[int, ...] | None, dimension: int) -> None:
    """Refuse the size of a phantom that nothing can be seen in.

    Raises
    ------
    OptionError
        Another number of axes than the phantom has, or too few voxels along one.
    """
    if size is not None and (len(size) != dimension or min(size) < _LEAST_SIZE):
        raise OptionError(
            f"--size {','.join(map(str, size))}: give {dimension} numbers (--dimension {dimension}), each at least "
            f"{_LEAST_SIZE}"
        )


def _true_errors(phantom: Phantom, result: RegistrationResult) -> tuple[Any, Any]:
    """Distance (mm) of every brain voxel from where it belongs, before and after registration."""
    import numpy as np

    brain = phantom.fixed_labels > 0
    truth = phantom.displacement[brain].astype(float)
    points = phantom.geometry.grid()[brain]
    found = result.transform_points(points) - points
    return np.linalg.norm(truth, axis=1), np.linalg.norm(found - truth, axis=1)


def _print_errors(before: Any, after: Any) -> None:
    import numpy as np

    def p95(values: Any) -> float:
        return float(np.percentile(values, 95))

    tell("true error in the brain (mm)   before    after")
    for name, statistic in (("mean", np.mean), ("median", np.median), ("95th percentile", p95), ("largest", np.max)):
        tell(f"  {name:<26} {statistic(before):8.3f} {statistic(after):8.3f}")


def _print_dice(phantom: Phantom, result: RegistrationResult) -> None:
    """Overlap of every tissue with that of the fixed image, before and after registration."""
    import numpy as np

    from itk_nir.images import Volume
    from itk_nir.phantom import LABELS
    from itk_nir.resample import resample

    labels = Volume(phantom.moving_labels, phantom.geometry, "labels", "sitk", phantom.moving_labels.dtype)
    warped = resample(labels, result.mapping, phantom.geometry, "nearest")
    scores = {}
    for name, value in LABELS.items():
        truth = phantom.fixed_labels == value
        if truth.any():
            scores[name] = [_dice(truth, other == value) for other in (phantom.moving_labels, warped)]
    scores["mean"] = np.mean(list(scores.values()), axis=0).tolist()
    tell("\nDice                           before    after")
    for name, (before, after) in scores.items():
        tell(f"  {name:<26} {before:8.3f} {after:8.3f}")


def _dice(a: Any, b: Any) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0

"""The command ``itk-nir``: register, apply, convert, ants, demo, presets.

Exit status: 0 when every file is complete and right, 2 for arguments and inputs that cannot be used, 1 for other
failures (also where a transform file failed its self-check and was kept), 130 when interrupted. Nothing heavy is imported before the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import ast
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from itk_nir import __version__

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.result import RegistrationResult
    from itk_nir.transforms.save import Written

PRESETS = ("fast", "default", "accurate", "paper")
FORMATS = ("itk", "ants", "elastix", "slicer", "nifti")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (argparse itself exits for ``--help`` and wrong arguments)."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: options.run(options), "interrupted; nothing was left behind")


def exit_status(run: Callable[[], None], interrupted: str) -> int:
    """Run a command; what goes wrong becomes one line on stderr and the exit status of the module's text."""
    from itk_nir.errors import InputError, ItkNirError, OptionError, SelfCheckWarning, one_line

    try:
        with _terminable(), _one_line_warnings() as shown:
            run()
    except KeyboardInterrupt:
        _say(f"error: {interrupted}")
        return 130
    except (InputError, OptionError) as error:
        _say(f"error: {one_line(error)}")
        return 2
    except (ItkNirError, OSError, MemoryError) as error:
        _say(f"error: {one_line(error)}")
        return 1
    return int(any(issubclass(category, SelfCheckWarning) for category in shown))


# --- the commands ----------------------------------------------------------------------------------------------------


def _register(options: argparse.Namespace) -> None:
    from itk_nir.checks import check_output_prefix

    settings = _settings(options.set)
    check_output_prefix(options.output)
    if options.picture:
        _require_matplotlib()
    if options.format == "nifti":  # the one that not every dimension has: before the work rather than after it
        from itk_nir.images import load_image
        from itk_nir.transforms.save import check_format

        check_format(options.format, load_image(options.fixed, "fixed image").dimension)
    with _progress() as callback:
        from itk_nir.engine import ops
        from itk_nir.registration import register

        ops.return_blocks_from(8 << 20)
        began = time.perf_counter()
        result = register(
            options.fixed,
            options.moving,
            preset=options.preset,
            linear=options.linear,
            fixed_mask=options.fixed_mask,
            moving_mask=options.moving_mask,
            initial_transform=_one_or_list(options.initial_transform),
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            callback=callback,
            **settings,
        )
    paths = result.save(options.output, options.format)
    if options.picture:
        from itk_nir.plot import picture

        try:
            paths["picture"] = picture(result, f"{options.output}registration.png")
        except BaseException:
            for path in paths.values():  # all files or none
                path.unlink(missing_ok=True)
            raise
    print(f"{_summary(result)}, {time.perf_counter() - began:.1f} s; wrote {_names(paths.values())}")


def _apply(options: argparse.Namespace) -> None:
    from itk_nir.errors import InputError
    from itk_nir.loading import load_transform

    if options.points is not None:
        if options.reference or options.labels or options.interpolation != "auto":
            raise InputError("--points takes no --reference, --labels or --interpolation; leave them out")
        from itk_nir.points import load_points, save_points

        table = load_points(options.points)
        chain = load_transform(_one_or_list(options.transform))
        if chain.dimension != table.points.shape[1]:
            table = load_points(options.points, chain.dimension)
        chain = chain.inverse() if options.inverse else chain
        save_points(table, chain.map(table.points), options.output)
        print(f"{len(table.points)} points; wrote {options.output}")
        return

    from itk_nir.images import load_image, save_image
    from itk_nir.resample import is_label_map, resample

    if options.labels and options.interpolation not in ("auto", "nearest"):
        raise InputError(f"--labels are never interpolated: --interpolation {options.interpolation} cannot be had")
    volume = load_image(options.image, "image", native=True)
    reference = load_image(options.reference, "reference image").geometry if options.reference else volume.geometry
    chain = load_transform(_one_or_list(options.transform), reference)
    chain = chain.inverse() if options.inverse else chain
    mode = "nearest" if options.labels else options.interpolation
    if mode == "auto":
        mode = "nearest" if is_label_map(volume.array) else "linear"
    save_image(resample(volume, chain, reference, mode, options.default), reference, options.output)
    print(f"{'x'.join(map(str, reference.size))} voxels, {mode}; wrote {options.output}")


def warn_of(written: Written) -> None:
    """Say which transform files failed their self-check."""
    from itk_nir.errors import SelfCheckWarning

    for sentence in written.failed:
        warnings.warn(sentence, SelfCheckWarning, stacklevel=2)


def _convert(options: argparse.Namespace) -> None:
    from itk_nir.images import load_image
    from itk_nir.loading import load_transform
    from itk_nir.transforms.save import save_transform

    reference = load_image(options.reference, "reference image").geometry if options.reference else None
    chain = load_transform(_one_or_list(options.transform), reference)
    paths, written = save_transform(chain, options.output, format=options.format, reference=reference)
    print(f"wrote {_names(paths)}; read back: {max(written.differences.values()):.1e} mm off at most")
    warn_of(written)
    for name, gap in written.sampling.items():
        print(f"{name}: sampled on a grid, which between its voxels is off by up to {gap:.2g} mm")


def _demo(options: argparse.Namespace) -> None:
    """Register the phantom and say how far the result is from the truth."""
    import numpy as np

    from itk_nir.images import save_image, to_sitk
    from itk_nir.phantom import LABELS, brain_phantom
    from itk_nir.checks import check_output_prefix

    _require_matplotlib()
    folder = Path(options.output)
    prefix = f"{folder}/"
    check_output_prefix(prefix)
    if not options.quiet:
        _say(f"making a {options.dimension}D brain phantom …")
    phantom = brain_phantom(options.dimension, options.size, options.seed)
    grid = phantom.geometry
    with _progress() as callback:
        from itk_nir.registration import register
        from itk_nir.plot import picture

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

    brain = phantom.fixed_labels > 0
    truth = phantom.displacement[brain].astype(float)
    points = grid.grid()[brain]
    before = np.linalg.norm(truth, axis=1)
    after = np.linalg.norm(result.transform_points(points) - points - truth, axis=1)
    from itk_nir.images import Volume
    from itk_nir.resample import resample

    moving_labels = Volume(phantom.moving_labels, grid, "labels", "sitk", phantom.moving_labels.dtype)
    warped_labels = resample(moving_labels, result.chain, grid, "nearest")
    title = (
        f"Brain phantom, preset {options.preset}: mean error {before.mean():.2f} mm before, "
        f"{after.mean():.2f} mm after registration"
    )
    paths["picture"] = picture(result, folder / "registration.png", title=title)

    print(f"{_summary(result)}\n")
    print("true error in the brain (mm)   before    after")
    for name, statistic in (("mean", np.mean), ("median", np.median), ("95th percentile", _p95), ("largest", np.max)):
        print(f"  {name:<26} {statistic(before):8.3f} {statistic(after):8.3f}")
    print("\nDice                           before    after")
    scores = []
    for name, value in LABELS.items():
        if np.any(phantom.fixed_labels == value):
            pair = tuple(
                _dice(phantom.fixed_labels == value, other == value) for other in (phantom.moving_labels, warped_labels)
            )
            scores.append(pair)
            print(f"  {name:<26} {pair[0]:8.3f} {pair[1]:8.3f}")
    mean = np.mean(scores, axis=0)
    print(f"  {'mean':<26} {mean[0]:8.3f} {mean[1]:8.3f}")
    print(f"\nwrote {_names(paths.values())}")


def _presets(options: argparse.Namespace) -> None:
    from itk_nir.settings import describe_presets

    print(describe_presets(options.preset))


# --- arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itk-nir",
        description="Deformable registration of medical images by neural fields, as ITK transforms.",
    )
    parser.add_argument("--version", action="version", version=f"itk-nir {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    register = commands.add_parser(
        "register",
        help="register two images",
        description="Find the transform between two images. Writes PREFIXWarped.nii.gz (moving on the fixed grid), "
        "PREFIXComposite.h5 (fixed → moving, what resampling needs), PREFIXInverseComposite.h5, PREFIXreport.json; "
        "with --format, the transforms as another program's files.",
    )
    register.set_defaults(run=_register)
    register.add_argument("--fixed", required=True, metavar="IMAGE", help="image that stays")
    register.add_argument("--moving", required=True, metavar="IMAGE", help="image that is brought onto it")
    register.add_argument("--output", required=True, metavar="PREFIX", help="start of the names of all files written")
    register.add_argument(
        "--linear", choices=("none", "rigid", "affine"), default="affine", help="what comes before (default: affine)"
    )
    register.add_argument("--fixed-mask", metavar="IMAGE", help="where in the fixed image similarity counts")
    register.add_argument("--moving-mask", metavar="IMAGE", help="the same in the moving image")
    register.add_argument(
        "--initial-transform",
        action="append",
        metavar="FILE",
        help="start from this transform file or displacement field, fixed → moving; may be given several times, in "
        "the order in which they meet a fixed point. It becomes part of the result",
    )
    register.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="override one setting of the preset (`itk-nir presets` lists them); may be given several times",
    )
    register.add_argument(
        "--format",
        choices=FORMATS,
        default="itk",
        help="whose transform files: itk (Composite.h5), ants (1Warp.nii.gz, 0GenericAffine.mat, 1InverseWarp.nii.gz), "
        "elastix (TransformParameters.N.txt), slicer (Displacement.nrrd), nifti (DisplacementField.nii.gz, RAS); "
        "default: itk",
    )
    register.add_argument("--picture", action="store_true", help="write PREFIXregistration.png too")
    _add_common(register)

    apply = commands.add_parser(
        "apply",
        help="warp an image, a label map or points",
        description="Carry an image (with --image) onto the reference grid, or points (with --points) from fixed to "
        "moving space, through a transform. Points go the way opposite to images.",
    )
    apply.set_defaults(run=_apply)
    what = apply.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", metavar="IMAGE", help="image or label map in moving space")
    what.add_argument("--points", metavar="CSV", help="table with a header x,y[,z] in LPS mm; other columns are kept")
    apply.add_argument(
        "--transform",
        required=True,
        action="append",
        metavar="FILE",
        help="transform file (ITK, elastix) or displacement field, fixed → moving; several in the order in which they "
        "meet a fixed point",
    )
    apply.add_argument("--inverse", action="store_true", help="through the inverse of the transform")
    apply.add_argument("--reference", metavar="IMAGE", help="image that gives the output grid (default: --image)")
    apply.add_argument("--output", required=True, metavar="FILE", help="image or table to write")
    apply.add_argument(
        "--interpolation",
        choices=("auto", "linear", "nearest", "bspline"),
        default="auto",
        help="default auto: nearest for label maps, linear for everything else",
    )
    apply.add_argument("--labels", action="store_true", help="the image is a label map: nearest, always")
    apply.add_argument(
        "--default", type=float, default=0.0, metavar="VALUE", help="value where the image does not reach (default: 0)"
    )

    convert = commands.add_parser(
        "convert",
        help="turn a transform into another program's files",
        description="Read a transform fixed → moving in any format and write it in the one that the name OUT tells: "
        ".h5, .tfm, .mat (ITK; .mat for linear ones), .nii.gz, .nrrd, .mha (displacement field), "
        "TransformParameters.N.txt (elastix).",
    )
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "transform",
        nargs="+",
        metavar="IN",
        help="transform file or displacement field; several in the order in which they meet a fixed point, as ANTs "
        "lists them: 1Warp.nii.gz 0GenericAffine.mat",
    )
    convert.add_argument("output", metavar="OUT", help="file to write; with --format ants the start of the names")
    convert.add_argument(
        "--reference",
        metavar="IMAGE",
        help="fixed image: where a conversion cannot be exact, the transform is sampled on its grid",
    )
    convert.add_argument(
        "--format",
        choices=FORMATS,
        help="ants writes 1Warp.nii.gz, 0GenericAffine.mat, 1InverseWarp.nii.gz; nifti a field in RAS (intent 1006); "
        "default: what the name tells",
    )

    from itk_nir.cli.ants import add_parser as add_ants

    add_ants(commands)

    demo = commands.add_parser(
        "demo",
        help="register a synthetic brain whose deformation is known",
        description="Make a brain phantom, register it, and print the true error before and after.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--output", default="demo", metavar="FOLDER", help="where pictures and images go (default: demo)")
    demo.add_argument("--dimension", type=int, choices=(2, 3), default=3, help="default: 3")
    demo.add_argument("--size", type=_sizes, metavar="X,Y[,Z]", help="voxels (default: 1 mm voxels)")
    demo.add_argument("--quiet", action="store_true", help="results only")
    _add_common(demo)

    presets = commands.add_parser("presets", help="list the presets and their settings")
    presets.set_defaults(run=_presets)
    presets.add_argument("preset", nargs="?", choices=PRESETS, help="only this one")
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=PRESETS, default="default", help="default: default")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _settings(assignments: Sequence[str]) -> dict[str, Any]:
    """``["a=1", "b=(2, 3)", "c=name"]`` → values: Python literals, true, false and none; anything else is text."""
    from itk_nir.errors import OptionError

    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name, text = name.strip().replace("-", "_"), text.strip()
        if not equals or not name.isidentifier():
            raise OptionError(f"--set {assignment}: write it as OPTION=VALUE; `itk-nir presets` lists the options")
        words: dict[str, Any] = {"true": True, "false": False, "none": None}
        if text.lower() in words:
            settings[name] = words[text.lower()]
            continue
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings


def _one_or_list(files: list[str] | None) -> Any:
    return files[0] if files is not None and len(files) == 1 else files


# --- what the user sees ----------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    print(f"itk-nir: {message}", file=sys.stderr, flush=True)


def _names(paths: Any) -> str:
    return ", ".join(str(path) for path in paths)


def _summary(result: RegistrationResult) -> str:
    """The numbers of a run that tell whether it went well, on one line."""
    metrics = result.metrics
    parts = []
    for text, *keys in (
        ("similarity {:.4f} to {:.4f}", "similarity_start", "similarity"),
        ("folds {:.4f} %", "folded_percent"),
        ("inverse error {:.3f} voxels", "inverse_error_mean_voxels"),
    ):
        values = [metrics.get(key) for key in keys]
        if all(isinstance(value, float) for value in values):  # a run cut short has no similarity
            parts.append(text.format(*values))
    return "registered: " + ", ".join(parts)


def _p95(values: Any) -> float:
    import numpy as np

    return float(np.percentile(values, 95))


def _dice(a: Any, b: Any) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def _require_matplotlib() -> None:
    """Say so before the work rather than after it."""
    from importlib.util import find_spec

    from itk_nir.errors import ItkNirError

    if find_spec("matplotlib") is None:
        raise ItkNirError("pictures need matplotlib: pip install 'itk-nir[picture]'")


class ProgressBar:
    """One line on a terminal: stage, level, step, metric, share done, time left. Call it with each `Progress`."""

    def __init__(self, stream: TextIO, width: int = 24, interval: float = 0.1) -> None:
        self._stream = stream
        self._width = width
        self._interval = interval
        self._shown = -1.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if 0 <= now - self._shown < self._interval and progress.fraction < 1:
            return
        self._shown = now
        self._write(self.line(progress))

    def line(self, progress: Progress) -> str:
        done = min(max(progress.fraction, 0.0), 1.0)
        filled = round(done * self._width)
        bar = "━" * filled + "╌" * (self._width - filled)
        left = f"{_clock(progress.seconds * (1 - done) / done)} left" if done > 0.01 else ""
        return (
            f"{progress.stage:<10} level {progress.level + 1}/{progress.levels}  "
            f"step {progress.step + 1:>3}/{progress.steps}  metric {progress.metric:.4f}  {bar} {done:4.0%}  {left}"
        )

    def message(self, text: str) -> None:
        self._write(text)

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar while the block runs, where standard error is a terminal; else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = ProgressBar(sys.stderr)
    bar.message("itk-nir: starting …")
    try:
        yield bar
    finally:
        bar.clear()


@contextmanager
def _one_line_warnings() -> Iterator[list[type[Warning]]]:
    """Warnings of this package as ``itk-nir: warning: …``; those of the libraries are no news to the user.

    Yields the categories of what was shown, which grow while the block runs.
    """
    shown: list[type[Warning]] = []
    with warnings.catch_warnings():

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            if issubclass(category, UserWarning):
                _say(f"warning: {' '.join(str(message).split())}")
                shown.append(category)

        warnings.showwarning = show
        yield shown


@contextmanager
def _terminable() -> Iterator[None]:
    """A polite kill unwinds as Ctrl-C does, so that temporary files go; status 143, as shells report it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


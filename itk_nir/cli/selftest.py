"""``itk-nir selftest``: whether a device computes what it should, and how fast."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from itk_nir.cli.arguments import device, positive, sizes
from itk_nir.cli.console import FAILED, SUCCESS, say, tell
from itk_nir.errors import InputError


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``selftest`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "selftest",
        help="test a GPU (or the CPU) before it is used",
        description="Compare every operation of the engine on a device with float64 on the CPU, register a phantom "
        "whose deformation is known, and measure times. A card that passes is what --device auto takes from then on. "
        "One page on standard output; the exit status is 0 where the device passes.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--device", type=device, default="cuda", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda)"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was found there too")
    parser.add_argument(
        "--size", type=sizes, metavar="X,Y[,Z]", help="voxels of the phantom, at least 40 each in 2D and 48 in 3D"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--quiet", action="store_true", help="results only")
    return parser


def run(options: argparse.Namespace) -> int:
    """Test the device and print the page."""
    import json

    from itk_nir.atomic import replacing
    from itk_nir.selftest import selftest

    if options.json is not None:
        _check_json(options.json)
    found = selftest(
        options.device, size=options.size, threads=options.threads,
        tell=(lambda _: None) if options.quiet else (lambda text: say(text)),
    )  # fmt: skip
    tell(found.text())
    if options.json is not None:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(found.as_dict(), indent=1), encoding="utf-8")
    return SUCCESS if found.passed else FAILED


def _check_json(name: str) -> None:
    """Refuse a file that could not be written, before the test.

    Raises
    ------
    InputError
        As of `itk_nir.places.check_output_file`, or a file of that name that no self-test has written.
    """
    import json

    from itk_nir.places import check_output_file, shown

    check_output_file(name)
    path = Path(name)
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"passed", "ops", "registrations"} <= found.keys():
        raise InputError(
            f"{shown(name)}: is there already and is of no self-test; move it away, or choose another name"
        )

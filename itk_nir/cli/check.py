"""``itk-nir check``: what is odd about a registration and what it will take, before it runs."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from itk_nir.cli.arguments import add_common, add_options, settings_of
from itk_nir.cli.console import SUCCESS, UNUSABLE, say, tell
from itk_nir.cli.register import add_inputs, all_options, check_images, inputs_of
from itk_nir.errors import OptionError, escaped


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``check`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="look at the input of a registration",
        description="Read and check everything that `itk-nir register` would be given, and print what was found, one "
        "line each: errors, which would stop it, warnings and notes. Nothing is written.",
    )
    parser.set_defaults(run=run)
    add_inputs(parser)
    add_common(parser)
    add_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the findings; the exit status says whether the registration would run."""
    from itk_nir.checking import check

    check_images(options)
    given, preset = all_options(options), options.preset
    with contextlib.suppress(OptionError):  # `check` tells it, beside everything else that is wrong
        preset, given = settings_of(preset, given), {}
    found = check(options.fixed, options.moving, preset=preset, **given, **inputs_of(options))
    for finding in found.findings:
        tell(escaped(f"{finding.severity}: {finding}"))
    if not found.ok:
        say(f"the registration would be refused, for {len(found.errors)} reason(s)")
    return SUCCESS if found.ok else UNUSABLE

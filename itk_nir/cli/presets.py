"""``itk-nir presets``: the presets and their settings."""

from __future__ import annotations

import argparse
from typing import Any

from itk_nir.cli.arguments import PRESETS
from itk_nir.cli.console import tell


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``presets`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser("presets", help="list the presets and their settings")
    parser.set_defaults(run=run)
    parser.add_argument("preset", nargs="?", choices=PRESETS, help="only this one, with its settings")
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the presets, or the settings of one."""
    from itk_nir.settings import describe_presets

    tell(describe_presets(options.preset))

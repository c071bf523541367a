"""The command ``itk-nir``: register, check, apply, convert, demo, presets, install-programs; one file a command.

Nothing heavy is imported before the arguments are known to be right.
"""

from itk_nir.cli.console import exit_status
from itk_nir.cli.main import main

__all__ = ["exit_status", "main"]

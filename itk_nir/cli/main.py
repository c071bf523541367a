"""The command ``itk-nir`` itself: its parser, made of the commands' own, and `main`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from itk_nir import __version__
from itk_nir.cli.console import STATUSES, exit_status, say, standard_streams
from itk_nir.cli.programs import run_program, table
from itk_nir.cli.signals import Ended, handled


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

    Raises
    ------
    SystemExit
        From ``--help``, ``--version`` and wrong arguments.
    """
    with handled(for_good=arguments is None) as requests, standard_streams():
        words = list(sys.argv[1:] if arguments is None else arguments)
        try:
            status = run_program(words)
            if status is not None:
                return status
            options = _parser().parse_args(words)
        except Ended as request:
            say(f"error: {requests.what(request.number)}")
            return 128 + request.number
        return exit_status(lambda: options.run(options), debug=options.debug)


def _parser() -> argparse.ArgumentParser:
    # Here: the programs of other packages, which are run again and again, must not wait for our own commands.
    from itk_nir.cli import apply, batch, check, convert, demo, install_programs, presets, register, selftest
    from itk_nir.cli.arguments import add_debug

    parser = argparse.ArgumentParser(
        prog="itk-nir",
        description="Deformable registration of medical images by neural fields, as ITK transforms.",
        epilog=f"Programs of other packages are run by their names: {', '.join(table())}. Exit status: "
        + "; ".join(f"{number} {meaning}" for number, meaning in STATUSES.items())
        + ".",
    )
    parser.add_argument("--version", action="version", version=f"itk-nir {__version__}")
    add_debug(parser)
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (register, batch, check, apply, convert, demo, presets, selftest, install_programs):
        add_debug(command.add_parser(commands))
    return parser

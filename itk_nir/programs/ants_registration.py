"""``antsRegistration``: raw command lines of ANTs, run by this engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from itk_nir.cli.console import tell
from itk_nir.cli.signals import requests
from itk_nir.programs.ants_common import THREADS, asked_about, environment_number
from itk_nir.programs.ants_console import Listener, help_text
from itk_nir.programs.ants_request import Request, read_request

#: The variable that holds the seed of ANTs' programs.
SEED = "ANTS_RANDOM_SEED"


def main(arguments: Sequence[str]) -> int:
    """Run a command line of antsRegistration.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: all files are complete; 1 where nothing was asked for.

    Raises
    ------
    InputError, OptionError
        Before any work begins: a flag, value or file that cannot be used.
    """
    answered = asked_about(arguments, lambda: help_text("antsRegistration"))
    if answered is not None:
        return answered
    run_request(read_request(arguments))
    return 0


def run_request(request: Request, threads: int | None = None) -> list[Path]:
    """Do what a command line asks for, and write its files.

    Parameters
    ----------
    request : Request
        The command line.
    threads : int, optional
        CPU threads; left out, the environment says (`THREADS`), else all that the process may use.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError, OptionError
        Before any work begins: a value or file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    # Here, because they import the libraries that read images: help and mistakes must not wait for that.
    from itk_nir.programs.ants_output import check_outputs_of, write_outputs
    from itk_nir.programs.ants_run import run

    threads = environment_number(THREADS, 1) if threads is None else threads
    if request.seed is None:
        request = replace(request, seed=environment_number((SEED,), 0))
    listener = Listener(tell) if request.verbose else None
    if listener is not None:
        listener.request(request)
    check_outputs_of(request)
    outcome = run(request, threads, listener)
    files = write_outputs(request, outcome, threads)
    requests().written = True
    if listener is not None:
        listener.end()
    return files

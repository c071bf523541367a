"""What all programs of ANTs answer alike; it is all that the small ones import."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from itk_nir import __version__
from itk_nir.cli.console import tell
from itk_nir.programs.ants_words import whole

#: The version of ANTs whose command lines are taken; nipype and others choose by it what they write.
ANTS_VERSION = "2.5.4"
#: Variables that hold the number of threads of ITK's programs.
THREADS = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_INPUT_IMAGE_THREADS")


def version() -> str:
    """What ``--version`` prints: a first line that the programs around ANTs read, and whose program it is.

    Returns
    -------
    str
        Two lines.
    """
    return f"ANTs Version: {ANTS_VERSION}\nThis is itk-nir {__version__}, which takes command lines of that version."


def asked_about(arguments: Sequence[str], help_of: Callable[[], str]) -> int | None:
    """Answer a command line that asks for help or for the version, or for nothing.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.
    help_of : callable
        Gives what ``--help`` prints.

    Returns
    -------
    int or None
        The exit status: 0, or 1 where nothing was asked for; None where there is something to do.
    """
    if not arguments or "-h" in arguments or "--help" in arguments:
        tell(help_of())
        return 0 if arguments else 1
    if "--version" in arguments:
        tell(version())
        return 0
    return None


def environment_number(names: Sequence[str], least: int) -> int | None:
    """A whole number from the environment.

    Parameters
    ----------
    names : sequence of str
        The variables that may hold it; the first that is set counts.
    least : int
        The smallest one that there can be.

    Returns
    -------
    int or None
        None where none is set.

    Raises
    ------
    OptionError
        No such number.
    """
    for name in names:
        text = os.environ.get(name, "").strip()
        if text:
            return whole(text, f"the environment's {name}", least)
    return None

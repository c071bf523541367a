"""Programs of other packages by name, ``itk-nir antsRegistration ...``: what follows the name is the program's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from itk_nir.cli.console import FAILED, SUCCESS, exit_status

#: What a program is also called here; under such a name it has the exit statuses of ``itk-nir``.
SPELLINGS = {"ants": "antsRegistrationSyN.sh"}


def table() -> dict[str, str]:
    """The programs that there are.

    Returns
    -------
    dict of str to str
        Name -> ``"module:function"``.
    """
    # By name: programs are built on what this package shares with the user.
    known: dict[str, str] = import_module("itk_nir.programs").PROGRAMS
    return known


def run_program(words: Sequence[str]) -> int | None:
    """Run the program that a command line of ``itk-nir`` names.

    Parameters
    ----------
    words : sequence of str
        Everything behind ``itk-nir``.

    Returns
    -------
    int or None
        The exit status, 0 or 1 as those of the original (and 128 and the number of a signal); None where it is a
        command of ``itk-nir`` itself.
    """
    rest = [word for word in words if word != "--debug"]
    if not rest:
        return None
    target = table().get(SPELLINGS.get(rest[0], rest[0]))
    if target is None:
        return None
    status = exit_status(lambda: _function(target)(rest[1:]), debug="--debug" in words)
    if rest[0] in SPELLINGS or status == SUCCESS or status > 128:
        return status
    return FAILED


def _function(target: str) -> Callable[[Sequence[str]], Any]:
    module, _, name = target.partition(":")
    function: Callable[[Sequence[str]], Any] = getattr(import_module(module), name)
    return function

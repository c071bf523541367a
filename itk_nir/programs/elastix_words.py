"""What the programs elastix and transformix have in common: pairs of words, versions, the log."""

from __future__ import annotations

import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from itk_nir import __version__
from itk_nir.atomic import replacing
from itk_nir.cli.console import tell
from itk_nir.errors import InputError, OptionError, one_line

#: The version of elastix whose command lines and files are taken; programs around it choose by it what they write.
ELASTIX_VERSION = "5.2.0"

#: How loud, from nothing to everything.
LEVELS = ("off", "error", "warning", "info")


_SURFACE = re.compile(r"^(-fmesh)[A-Z]\d+$")


def pairs(arguments: Sequence[str], known: Mapping[str, str], program: str) -> dict[str, list[str]]:
    """Take a command line apart into flags and their values, two words each.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.
    known : mapping of str to str
        The flags; one that ends in ``N`` may have any number there, and any capital letter in place of ``X``.
    program : str
        Its name, for messages.

    Returns
    -------
    dict of str to list of str
        The values of every flag that was given.

    Raises
    ------
    OptionError
        A flag that does not exist or has no value.
    """
    out: dict[str, list[str]] = {}
    for at in range(0, len(arguments), 2):
        flag = arguments[at]
        general = _SURFACE.sub(r"\1XN", flag)
        if not {flag, general, f"{flag.rstrip('0123456789')}N"} & set(known):
            raise OptionError(f"{flag}: {program} has no such flag; it takes {', '.join(known)}")
        if at + 1 == len(arguments):
            raise OptionError(f"{flag}: its value is missing")
        out.setdefault(flag, []).append(arguments[at + 1])
    return out


def single(given: Mapping[str, Sequence[str]], flag: str) -> str | None:
    """The value of a flag that may be given once.

    Parameters
    ----------
    given : mapping of str to sequence of str
        Of `pairs`.
    flag : str
        The flag.

    Returns
    -------
    str or None
        None where it was not given.

    Raises
    ------
    OptionError
        It was given more than once.
    """
    values = given.get(flag, ())
    if len(values) > 1:
        raise OptionError(f"{flag}: is given {len(values)} times; give it once")
    return values[0] if values else None


def numbered(given: Mapping[str, Sequence[str]], flag: str) -> list[str]:
    """The values of a flag that may have a number: ``-f``, or ``-f0``, ``-f1``, ...

    Parameters
    ----------
    given : mapping of str to sequence of str
        Of `pairs`.
    flag : str
        The flag without number.

    Returns
    -------
    list of str
        In the order of the numbers.

    Raises
    ------
    OptionError
        Numbers that do not count up from 0, or a flag twice.
    """
    rest = {name[len(flag) :]: name for name in given if name.startswith(flag) and name != flag}
    numbers = sorted(int(end) for end in rest if end.isdigit())
    plain = single(given, flag)
    if plain is not None and numbers:
        raise OptionError(f"{flag}: is given with and without a number; give {flag}0, {flag}1, ...")
    if numbers != list(range(len(numbers))):
        raise OptionError(f"{flag}: numbers count up from {flag}0, got {', '.join(f'{flag}{n}' for n in numbers)}")
    values = [single(given, f"{flag}{n}") for n in numbers] if plain is None else [plain]
    return [value for value in values if value is not None]


def surfaces_of(given: Mapping[str, Sequence[str]]) -> dict[int, list[str]]:
    """The surfaces of a command line: ``-fmeshA1``, ``-fmeshB1``, ...

    Parameters
    ----------
    given : mapping of str to sequence of str
        Of `pairs`.

    Returns
    -------
    dict of int to list of str
        Number of the metric → files.
    """
    out: dict[int, list[str]] = {}
    for flag in sorted(given):
        if _SURFACE.match(flag):
            out.setdefault(int(flag[len("-fmeshA") :]), []).append(single(given, flag) or "")
    return out


def threads_of(given: Mapping[str, Sequence[str]]) -> int | None:
    """The number of threads of a command line.

    Parameters
    ----------
    given : mapping of str to sequence of str
        Of `pairs`.

    Returns
    -------
    int or None
        None for all.

    Raises
    ------
    OptionError
        No whole number above 0.
    """
    text = single(given, "-threads")
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise OptionError(f"-threads: is a whole number of at least 1, got {text!r}")
    return int(text)


def folder_of(given: Mapping[str, Sequence[str]]) -> Path:
    """The output directory of a command line.

    Parameters
    ----------
    given : mapping of str to sequence of str
        Of `pairs`.

    Returns
    -------
    Path

    Raises
    ------
    OptionError
        None was given.
    InputError
        It does not exist.
    """
    name = single(given, "-out")
    if name is None:
        raise OptionError('No CommandLine option "-out" given!')
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f'the output directory "{name}" does not exist. You are responsible for creating it.')
    return folder


def informed(arguments: Sequence[str], program: str, text: str) -> bool:
    """Print what is asked for where nothing is to be done.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.
    program : str
        Its name.
    text : str
        What ``--help`` prints below the version.

    Returns
    -------
    bool
        Whether it was printed.
    """
    if len(arguments) > 1:
        return False
    word = arguments[0] if arguments else ""
    if word in ("-help", "--help", "-h"):
        tell(f"{program} version: {ELASTIX_VERSION}\n\n{text}")
    elif word == "--version":
        tell(f"{program} version: {ELASTIX_VERSION}")
    elif word == "--extended-version":
        tell(
            f"{program} version: {ELASTIX_VERSION}\nitk-nir version: {__version__}, which takes the command lines and "
            f"files of that version\nPython version: {platform.python_version()}"
        )
    else:
        tell(f'Use "{program} --help" for information about {program}-usage.')
    return True


@dataclass
class Log:
    """Lines for the console and for the log file of a run.

    Parameters
    ----------
    program : str
        Its name.
    folder : Path
        Where ``PROGRAM.log`` goes.
    level : str
        One of `LEVELS`.
    """

    program: str
    folder: Path
    level: str = "info"
    lines: list[str] = field(default_factory=list, init=False)
    began: float = field(default_factory=time.perf_counter, init=False)

    def say(self, line: str) -> None:
        """Add a line.

        Parameters
        ----------
        line : str
            The line.
        """
        if self.level == "info":
            self.lines.append(line)
            tell(line)

    def head(self, arguments: Sequence[str]) -> None:
        """Say which program is run, and how.

        Parameters
        ----------
        arguments : sequence of str
            Everything behind the name of the program.
        """
        self.say(f"{self.program} is started at {time.strftime('%a %b %d %H:%M:%S %Y')}.\n")
        self.say(f"which {self.program}:   {sys.argv[0]}")
        self.say(f"  {self.program} version: {ELASTIX_VERSION} (itk-nir {__version__})\n")
        self.say(f"Command-line arguments: \n  {shlex.join(arguments)}\n")

    def write(self, error: BaseException | None = None) -> None:
        """Write the file.

        Parameters
        ----------
        error : BaseException, optional
            What ended the run.
        """
        if error is None:
            self.say(f"\nTotal time elapsed: {time.perf_counter() - self.began:.1f}s.\n")
        elif self.level != "off":
            self.lines.append(f"ERROR: {one_line(error)}")
        with replacing(self.folder / f"{self.program}.log") as file:
            file.write_text("\n".join(self.lines) + "\n", encoding="utf-8", errors="surrogateescape")


def log_of(given: Mapping[str, Sequence[str]], program: str, folder: Path) -> Log:
    """The log that a command line asks for.

    Parameters
    ----------
    given : mapping of str to sequence of str
        Of `pairs`.
    program : str
        The name of the program.
    folder : Path
        Where its file goes.

    Returns
    -------
    Log

    Raises
    ------
    OptionError
        A level that does not exist.
    """
    level = single(given, "-loglevel") or "info"
    if level not in LEVELS:
        raise OptionError(f'-loglevel: the log level "{level}" is not supported; it may be {", ".join(LEVELS)}')
    return Log(program, folder, level)

"""``itk-nir install-programs``: small files that are called as programs of other packages and run them here."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from itk_nir.atomic import all_or_none
from itk_nir.cli.console import names, tell
from itk_nir.cli.programs import table
from itk_nir.errors import InputError, escaped
from itk_nir.places import check_outputs, shown

#: A line of every file, by which we know our own.
MARK = "# This file was written by itk-nir install-programs."
#: Longest first line of a script that all systems take.
_LONGEST = 120


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``install-programs`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "install-programs",
        help="write files called antsRegistration, elastix, ... that run this program",
        description=f"Writes one small executable file each, called {', '.join(table())}, which run the programs of "
        "these names with this Python. Nothing else changes: put the folder on the PATH, before that of the originals, "
        "and scripts and nipype find them there.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", metavar="FOLDER", help="where they go; made where there is none")
    parser.add_argument("--force", action="store_true", help="replace files of these names that are not ours")
    return parser


def run(options: argparse.Namespace) -> None:
    """Write the files, all or none.

    Raises
    ------
    InputError
        A folder that is a file or cannot be written to, or a file of one of these names that is not ours.
    """
    folder = Path(options.folder)
    files = launchers(sys.executable, windows=os.name == "nt")
    foreign = [name for name in files if not options.force and _is_foreign(folder / name)]
    if foreign:
        raise InputError(
            f"{names(foreign)} in {escaped(str(folder))} {'is' if len(foreign) == 1 else 'are'} not of itk-nir; choose "
            "another folder, or replace them with --force"
        )
    check_outputs([folder / name for name in files], f"folder {shown(folder)}")
    with all_or_none(folder) as stage:
        for name, text in files.items():
            (stage / name).write_text(text, encoding="utf-8", newline="")
            (stage / name).chmod(0o755)
    where = os.path.abspath(folder)
    how = f"set PATH={where};%PATH%" if os.name == "nt" else f'export PATH="{where}:$PATH"'
    tell(f"wrote {names(files)} to {escaped(where)}\nto use them: {how}")


def launchers(python: str, *, windows: bool = False) -> dict[str, str]:
    """Give the files.

    Parameters
    ----------
    python : str
        The Python that they call.
    windows : bool
        Whether a ``.cmd`` stands beside each.

    Returns
    -------
    dict of str to str
        Name of the file -> its text.
    """
    out = {}
    for name in table():
        out[name] = (
            f"{_first_lines(python)}{MARK}\nimport sys\n\nfrom itk_nir.cli import main\n\n"
            f"sys.exit(main([{name!r}, *sys.argv[1:]]))\n"
        )
        if windows:
            out[f"{name}.cmd"] = f'@rem {MARK}\r\n@"{python}" "%~dp0{name}" %*\r\n'
    return out


def _first_lines(python: str) -> str:
    """What makes a script run by a Python: a path with spaces, or a long one, cannot stand behind ``#!``."""
    if len(python) < _LONGEST and not any(letter.isspace() for letter in python):
        return f"#!{python}\n"
    # Read by the shell, the second line runs Python; read by Python, it is a string.
    return f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"


def _is_foreign(path: Path) -> bool:
    """Whether something lies there that is no file of ours."""
    if not (path.exists() or path.is_symlink()):
        return False
    try:
        return MARK.encode() not in path.read_bytes()[:2000]
    except OSError:
        return True

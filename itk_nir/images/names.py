"""Names of files: what can be opened, and under what name ITK can open it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itk_nir.errors import InputError, escaped


def label_of(path: str | os.PathLike[str], role: str) -> str:
    """What to call a file in a message: its role and its name on one line.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    role : str
        What it is: ``"fixed image"``.

    Returns
    -------
    str
    """
    return f"{role} {escaped(os.fsdecode(path))}"


def checked_path(path: str | os.PathLike[str], role: str) -> Path:
    """Refuse what is no file or folder that can be read.

    Parameters
    ----------
    path : str or os.PathLike
        What was given.
    role : str
        What it is in messages.

    Returns
    -------
    Path
        Of an ordinary file or of a folder, which can be read.

    Raises
    ------
    InputError
        An empty or impossible name, an address, a file that does not exist or may not be read, a pipe or a device.
    """
    given, label = os.fsdecode(path), label_of(path, role)
    if not given.strip():
        raise InputError(f"{role}: an empty file name; give an image file")
    if "\0" in given:
        raise InputError(f"{label}: no file can have a name with a zero character; check the path")
    file = Path(given)
    try:
        mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if "://" in given:
            raise InputError(f"{label}: is an address, and only files are read; download it first") from error
        if file.is_symlink():
            raise InputError(f"{label}: is a link to a file that does not exist; check the path") from error
        raise InputError(f"{label}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{label}: cannot be opened ({reason}); check the path") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for test, name in kinds if test(mode)), "a device")
        raise InputError(f"{label}: is {kind}, not a file; write its content to a file first")
    if not os.access(file, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        raise InputError(f"{label}: may not be read (permission denied); change its permissions")
    if stat.S_ISREG(mode) and os.stat(file).st_size == 0:
        raise InputError(f"{label}: is empty (0 bytes); get a fresh copy")
    return file


@contextmanager
def for_itk(file: Path, alone: bool = True) -> Iterator[str | None]:
    """Give the name by which ITK can open a file.

    ITK takes names as UTF-8, and SimpleITK ends the process for those that are not: such a file is opened through a
    link of another name.

    Parameters
    ----------
    file : Path
        The file.
    alone : bool, default True
        Whether the file holds everything; one that names others beside it cannot be opened by another name.

    Yields
    ------
    str or None
        The name; None where there is none.
    """
    raw = os.fsencode(file)
    try:
        name: str | None = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = None
    if name is not None or not alone:
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        # The suffixes are kept, since readers choose the format by them.
        suffix = "".join(s for s in file.suffixes[-2:] if s.isascii() and s.isprintable())
        link = Path(folder) / f"image{suffix}"
        try:
            os.symlink(os.path.abspath(file), link)
            name = os.fsencode(link).decode("utf-8")
        except (OSError, NotImplementedError, UnicodeDecodeError):  # no links here: there is no name
            name = None
        yield name

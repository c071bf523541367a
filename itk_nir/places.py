"""Names of files: what is wrong with one is said before any work, and an output that is an input is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from itk_nir.companions import HEADER, companions, parts_of
from itk_nir.errors import InputError, escaped

#: A name that begins so is the address of something that is no file: ``https://``, ``s3://``, ``file://``.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: What a file of this kind begins with. An existing file that begins otherwise is of another kind.
_BEGINS = {
    ".h5": b"\x89HDF\r\n\x1a\n",
    ".hdf5": b"\x89HDF\r\n\x1a\n",
    ".gz": b"\x1f\x8b",
    ".nrrd": b"NRRD",
    ".nhdr": b"NRRD",
    ".png": b"\x89PNG",
}
#: An entry of a list of transforms as ANTs writes them: ``[file,1]``.
_BRACKETED = re.compile(r"\[\s*(.*?)\s*\]", re.DOTALL)
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
#: What is written beside a file by its ending: the voxels of a header, or the header of voxels.
_WRITTEN_BESIDE = {".hdr": ".img", ".img": ".hdr", ".img.gz": ".hdr.gz", ".mhd": ".zraw", ".nhdr": ".raw.gz"}
#: What the header of a NIfTI or Analyze pair begins with, its own length, or gzip's files.
_PAIR_BEGINS = (*(n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big")), b"\x1f\x8b")


def itk_name(path: str | os.PathLike[str]) -> str:
    """Give the name of a file as ITK's libraries want it: text that is UTF-8, whatever the locale is.

    Parameters
    ----------
    path : path
        The name.

    Returns
    -------
    str

    Raises
    ------
    InputError
        A name that is not UTF-8: SimpleITK would end the process.
    """
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{shown(path)}: the name is not UTF-8, and ITK cannot open such files; rename it") from None


def as_file_name(text: str) -> str:
    """Give the name of a file that a text file of ours or another program's holds, in the locale's encoding.

    Parameters
    ----------
    text : str
        The name as it was decoded from UTF-8.

    Returns
    -------
    str
        What `open` takes.
    """
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def check_input(path: str | os.PathLike[str], label: str) -> None:
    """Refuse the name of a file that nobody could read, or that would never end. A file that is missing is not judged.

    Parameters
    ----------
    path : path
        The name that the user gave.
    label : str
        What opens the message.

    Raises
    ------
    InputError
        An empty name, the address of a web page, a name that is not UTF-8, a named pipe, a device, or a file that may
        not be read.
    """
    text = _checked_text(path, label)
    itk_name(text)
    try:
        mode = os.stat(text).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if os.path.islink(text):
                raise InputError(f"{label}: is a link to {os.readlink(text)}, which does not exist") from None
            if text.startswith("~"):
                raise InputError(f"{label}: no such file; ~ is for the shell to replace, give the whole path") from None
            return
        raise InputError(f"{label}: no such file ({error.strerror}); check the path") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{label}: is a {_kind(mode)}, not a file; write what comes from it to a file first")
    if not os.access(text, os.R_OK):
        raise InputError(f"{label}: may not be read (permission denied); ask its owner")


def check_name(name: str | os.PathLike[str], label: str) -> None:
    """Refuse what is no name of a file to be written, or the start of one.

    Parameters
    ----------
    name : path
        What the user gave.
    label : str
        Opens the message.

    Raises
    ------
    InputError
        An empty name, a web address, a home folder's abbreviation that no shell has replaced, or a name that is not
        UTF-8.
    """
    text = _checked_text(name, label)
    if text.startswith("~") and os.path.expanduser(text) != text:
        raise InputError(f"{label}: ~ is for the shell to replace, give the whole path (or ./~ for such a name)")
    itk_name(text)


def check_outputs(files: Iterable[Path], label: str) -> None:
    """Refuse files that could not be written. Nothing stays behind of the trial.

    Parameters
    ----------
    files : iterable of Path
        The files to be written, in one folder.
    label : str
        Opens the message.

    Raises
    ------
    InputError
        A name that is too long; a folder that cannot be made or written to; something else than a file of this kind
        where a file is to be.
    """
    whole = [Path(os.path.abspath(path)) for path in files]
    folder = whole[0].parent
    missing: list[str] = []
    while not _exists(folder, label):
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{label}: {shown(folder)} is a file; choose another folder")
    _check_lengths(folder, [*missing, *(path.name for path in whole)], label)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".itk-nir-", suffix=".new", dir=folder))
    except OSError as error:
        raise InputError(
            f"{label}: the folder {shown(folder)} is not writable ({error.strerror}); choose another"
        ) from error
    for path in whole:
        refuse_other_kind(path)


def refuse_other_kind(path: Path) -> None:
    """Refuse to replace what this package would not have written under a name. An empty file may be replaced.

    Parameters
    ----------
    path : Path
        A file to be written; it need not exist.

    Raises
    ------
    InputError
        There is a folder, a named pipe or a device of that name, or a file of another kind than the name tells; or,
        where two files are written, one of the other's name that does not belong to the first.
    """
    _refuse_other_beside(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{shown(path)}: is a {_kind(mode)}, and would be replaced by a file; choose another name")
    begins = _BEGINS.get(path.suffix.lower())
    report = path.name.endswith("report.json")
    if begins is None and not report:
        return
    try:
        with open(path, "rb") as file:
            head = file.read(len(begins) if begins else -1)
    except OSError:
        return
    if head and (not head.startswith(begins) if begins else not _is_report(head)):
        raise InputError(
            f"{shown(path)}: is there already and was not written by this program (no {path.suffix} file of its kind);"
            " move it away, or choose another name"
        )


def _refuse_other_beside(path: Path) -> None:
    """Refuse to replace the other file of a pair where the header is none of a pair's, or of another pair's."""
    ending = next((one for one in _WRITTEN_BESIDE if path.name.lower().endswith(one)), None)
    if ending is None:
        return
    other = path.with_name(path.name[: -len(ending)] + _WRITTEN_BESIDE[ending])
    if not other.is_file() or not other.stat().st_size:
        return
    header, voxels = (other, path) if ending.startswith(".img") else (path, other)
    head = b""
    if header.is_file() and os.access(header, os.R_OK):
        with open(header, "rb") as file:
            head = file.read(HEADER)
    named = ending in (".mhd", ".nhdr")
    if not (os.fsencode(voxels.name) in head if named else head.startswith(_PAIR_BEGINS)):
        raise InputError(
            f"{shown(other)}: is there already, does not belong to a file {shown(path.name)} of before, and would be "
            "replaced with it; move it away, or choose another name"
        )


class InputFiles:
    """Files, and folders of files, that are read: a table in which outputs are looked up.

    Parameters
    ----------
    files : iterable of path
        As of `add`.
    """

    def __init__(self, files: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._there: dict[tuple[int, int], str] = {}
        self._folders: dict[str, str] = {}
        self.add(files)

    def add(self, files: Iterable[str | os.PathLike[str]]) -> None:
        """Add more of them, with what belongs to each.

        Parameters
        ----------
        files : iterable of path
            The files and folders.
        """
        for file in files:
            source = os.fspath(file)
            for part in parts_of(source, set()):
                identity = _identity(part)
                if identity is not None:
                    self._there.setdefault(identity, source)
                if os.path.isdir(part):
                    self._folders.setdefault(os.path.join(os.path.realpath(part), ""), source)

    def refuse(self, outputs: Iterable[str | os.PathLike[str]]) -> None:
        """Refuse to write over what is read: under its own name or another, or what belongs to it.

        Parameters
        ----------
        outputs : iterable of path
            The files to be written.

        Raises
        ------
        InputError
            The output that is an input, and which.
        """
        for output in outputs:
            for part in (os.fspath(output), *companions(os.fspath(output))):
                identity = _identity(part)
                if identity is None:
                    continue
                real = os.path.realpath(part)
                within = (source for folder, source in self._folders.items() if real.startswith(folder))
                found = self._there.get(identity) or next(within, None)
                if found is not None:
                    what = "is an input itself" if found == part else f"is the input {shown(found)}, or a part of it"
                    raise InputError(
                        f"{shown(part)}: {what}, and would be replaced; choose another name for the output"
                    )


def refuse_inputs(outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse to write over what is read, see `InputFiles.refuse`.

    Parameters
    ----------
    outputs : iterable of path
        The files to be written.
    inputs : iterable of path
        The files, and folders of files, that are read.

    Raises
    ------
    InputError
        The output that is an input, and which.
    """
    InputFiles(inputs).refuse(outputs)


def bracketed(word: str) -> list[str]:
    """Give the parts of an entry of ANTs' lists of transforms.

    Parameters
    ----------
    word : str
        The entry.

    Returns
    -------
    list of str
        None of them where it is not in brackets, or a file exists under the whole of it.

    Examples
    --------
    >>> bracketed("[ x_0GenericAffine.mat, 1 ]"), bracketed("x_0GenericAffine.mat")
    (['x_0GenericAffine.mat', '1'], [])
    """
    found = _BRACKETED.fullmatch(word.strip())
    return [] if found is None or os.path.exists(word) else [part.strip() for part in found[1].split(",")]


def with_file(word: str, file: Callable[[str], str]) -> str:
    """Give a word with its file named anew, which may stand in ANTs' brackets.

    Parameters
    ----------
    word : str
        A file, or an entry as of `bracketed`.
    file : callable
        The new name of a file.

    Returns
    -------
    str
    """
    name, *rest = bracketed(word) or [word]
    return f"[{','.join([file(name), *rest])}]" if name != word else file(name)


def named_files(*values: Any) -> tuple[str, ...]:
    """Gather the files that arguments name.

    Parameters
    ----------
    *values : object
        Paths are taken, also those within the brackets of ``"[file,1]"``; lists and tuples are looked into, everything
        else is left out.

    Returns
    -------
    tuple of str
        Absolute paths of what exists.

    Examples
    --------
    >>> named_files("no such file", 3, None)
    ()
    """
    found: list[str] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += named_files(*value)
        elif isinstance(value, (str, os.PathLike)):
            text = os.fspath(value)
            if isinstance(text, str) and "\0" not in text:
                text = next(iter(bracketed(text)), text)
                found += [os.path.abspath(text)] if os.path.exists(text) else []
    return tuple(dict.fromkeys(found))


def check_working_folder() -> None:
    """Refuse to work in a folder that was removed: libraries end the process there.

    Raises
    ------
    InputError
        The current folder does not exist.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise InputError(f"the current folder does not exist any more ({error.strerror}); change to another") from error


def _checked_text(path: str | os.PathLike[str], label: str) -> str:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InputError(f"{label}: is an object of type {type(path).__name__}, no name of a file; give text or a path")
    text = os.fspath(path)
    if not text.strip():
        raise InputError(f"{label}: the name is empty; give one")
    if "\0" in text:
        raise InputError(f"{label}: a name cannot hold the character of value 0; give another")
    if _ADDRESS.match(text):
        raise InputError(f"{shown(text)}: is a web address, not a file; download it, and give the file")
    return text


def _exists(folder: Path, label: str) -> bool:
    """Whether there is a folder, or a file in its place.

    Raises
    ------
    InputError
        A link that leads nowhere.
    """
    if os.path.lexists(folder) and not os.path.exists(folder):
        raise InputError(f"{label}: {shown(folder)} is a link that leads nowhere; choose another folder")
    return os.path.exists(folder)


def _check_lengths(folder: Path, names: Iterable[str], label: str) -> None:
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        most = 255
    for name in names:
        length = len(os.fsencode(name))
        if length > most:
            raise InputError(
                f"{label}: the name {shown(name)[:20]}...{shown(name)[-20:]} would have {length} bytes, and the file "
                f"system takes {most}; choose a shorter one"
            )


def _is_report(raw: bytes) -> bool:
    """Whether bytes are a report of this package."""
    try:
        value = json.loads(raw)
    except ValueError:
        return False
    return isinstance(value, dict) and {"self_check", "metrics"} <= value.keys()


def _kind(mode: int) -> str:
    return next((word for is_it, word in _KINDS if is_it(mode)), "special file")


def shown(path: str | os.PathLike[str]) -> str:
    """Write a name for a message: bytes that are no text are escaped, as line ends are.

    Parameters
    ----------
    path : path
        The name.

    Returns
    -------
    str
        One line.
    """
    text = os.fsdecode(path) if isinstance(path, (str, os.PathLike)) else repr(path)
    return escaped(text).encode("utf-8", "backslashreplace").decode()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def check_output_file(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse one file that could not be written.

    Parameters
    ----------
    path : path
        The file.
    inputs : iterable of path, optional
        Files that are read, and must not be written over.

    Raises
    ------
    InputError
        A name that no file can have or that is no file's, a folder that does not exist or may not be written to, or
        a file that is read.
    """
    label = f"output {shown(path)}"
    check_name(path, label)
    if os.fsdecode(path) == "-":
        raise InputError(f"{label}: nothing is written to standard output; give a file name (./- for such a file)")
    if os.fsdecode(path).endswith(("/", os.sep)):
        raise InputError(f"{label}: is the name of a folder; give that of a file")
    if not Path(path).parent.is_dir():
        raise InputError(f"{label}: the folder {Path(path).parent} does not exist; create it first")
    check_outputs([Path(path)], label)
    refuse_inputs([path], inputs)

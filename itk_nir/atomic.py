"""Files that appear complete or not at all: one (`replacing`) or several together (`all_or_none`)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from itk_nir.errors import InputError


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one file that appears complete or not at all.

    What the block writes under the name that it is given is renamed to `target` when the block ends. Where the block
    fails, nothing is left of it, and a file that `target` named before stays as it was.

    Parameters
    ----------
    target : str or os.PathLike
        The file to write. An existing one is replaced.

    Yields
    ------
    temporary : Path
        A hidden name in the same folder, so that the renaming is one step. It keeps every suffix of `target`, because
        many writers choose the format by it.

    Raises
    ------
    InputError
        The folder of `target` does not exist.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [(path.name, path.read_text()) for path in folder.iterdir()]
    [('note.txt', 'whole')]
    """
    path = Path(target)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def all_or_none(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Write several files that appear together, complete, or not at all.

    When the block ends, everything in the folder that it was given moves to `folder` under its own name. Where anything
    fails, in the block or while the files move, nothing is left: neither files that took a free name nor folders that
    had to be created. Files of the same name are replaced.

    Parameters
    ----------
    folder : str or os.PathLike
        Where the files shall be; created, with the folders above it, if it does not exist.

    Yields
    ------
    stage : Path
        A hidden folder to write into.
    """
    target = Path(folder)
    created = [p for p in (target, *target.parents) if not p.exists()]
    moved: list[Path] = []
    stage: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Within the target, so that moving is a rename; hidden, so that a killed run leaves no half-written name.
        stage = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=target))
        yield stage
        for path in sorted(stage.iterdir()):
            free = not (target / path.name).exists()
            os.replace(path, target / path.name)
            if free:
                moved.append(target / path.name)
        stage.rmdir()
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


def split_prefix(prefix: str | os.PathLike[str]) -> tuple[Path, str]:
    """Take the start of several files' names apart into their folder and the start of each name.

    Parameters
    ----------
    prefix : str or os.PathLike
        A folder, where it ends in a slash, or a folder and the start of the names.

    Returns
    -------
    folder : Path
        The folder.
    start : str
        What every name begins with; empty for a folder.

    Examples
    --------
    >>> split_prefix("out/case_")[1], split_prefix("out/")[1]
    ('case_', '')
    """
    text = os.fspath(prefix)
    if text.endswith(("/", os.sep)):
        return Path(text), ""
    return Path(text).parent, Path(text).name

"""Locks: which process is at work in a folder, and whether one that was is still there."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from itk_nir.errors import WriteError, escaped

#: The file that is locked, and seconds to wait for it.
_NAME, _PATIENCE = ".itk-nir.lock", 60.0


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: one process or thread at a time renames its files there.

    A lock ends with the process that holds it, so what a killed one leaves stops nobody. Where a file system has no
    locks, nobody waits.

    Parameters
    ----------
    folder : Path
        The folder.

    Yields
    ------
    None

    Raises
    ------
    WriteError
        Another process holds it for a minute.
    """
    path = folder / _NAME
    until = time.monotonic() + _PATIENCE
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        # Whoever held it before has removed it: then this is a file without a name.
        if lock(handle) is not False and file_number(path) == os.fstat(handle).st_ino:
            break
        holder = escaped(os.read(handle, 200).decode(errors="replace").strip())
        os.close(handle)
        if time.monotonic() > until:
            raise WriteError(
                f"{folder}: another process ({holder or 'unknown'}) has been writing there for a minute; wait for it, "
                f"or remove {path} if there is none"
            )
        time.sleep(0.01)
    try:
        with suppress(OSError):  # for people to read; a full disk is no matter
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def lock(handle: int) -> bool | None:
    """Lock an open file until it is closed or the process ends.

    Parameters
    ----------
    handle : int
        The file's descriptor.

    Returns
    -------
    bool or None
        Whether it could be, or another holds it; None where the file system, or the machine, has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def host() -> str:
    """Name this machine, and the container: locks tell nothing about the processes of another.

    Returns
    -------
    str
        On one line.
    """
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{platform.node()} {space}".strip()


def file_number(path: Path) -> int | None:
    """Give the file system's number of a file.

    Parameters
    ----------
    path : Path
        Its name; a link is looked at itself.

    Returns
    -------
    int or None
        None where there is none.
    """
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None

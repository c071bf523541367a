"""What ITK and the libraries behind it print on standard error while they read: silenced in one place.

What ITK finds odd about a file is found by this package too and told as a `Finding`; what it cannot read is an error.
Its warnings are switched off at their source. MetaIO and the NIfTI library print past ITK, on file descriptor 2: for as
long as one of them reads, that descriptor leads to nowhere.

GDCM, which reads DICOM, sets the C locale of the process for good, which is Python's encoding of files too: the locale
of before is set again.
"""

from __future__ import annotations

import locale
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: The descriptor is one for all threads: whoever comes first turns it away, whoever is last turns it back.
_LOCK = threading.Lock()
_STATE: dict[str, int] = {"depth": 0, "kept": -1, "warnings": 1}
_LOCALE = [""]
_STANDARD_ERROR = 2


@contextmanager
def quiet() -> Iterator[None]:
    """Keep standard error free of what libraries print, and the locale as it is, while the block reads a file.

    Yields
    ------
    None
    """
    import SimpleITK as sitk

    with _LOCK:
        if _STATE["depth"] == 0:
            _STATE["warnings"] = int(sitk.ProcessObject.GetGlobalWarningDisplay())
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            _STATE["kept"] = _turned_away()
            _LOCALE[0] = locale.setlocale(locale.LC_ALL)
        _STATE["depth"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _STATE["depth"] -= 1
            if _STATE["depth"] == 0:
                _turned_back(_STATE["kept"])
                if locale.setlocale(locale.LC_ALL) != _LOCALE[0]:
                    locale.setlocale(locale.LC_ALL, _LOCALE[0])
                sitk.ProcessObject.SetGlobalWarningDisplay(bool(_STATE["warnings"]))


def _turned_away() -> int:
    """A copy of standard error's descriptor, which leads to nowhere from now on; -1 where there is none."""
    if sys.__stderr__ is None:  # closed when Python began: the number may be another file's by now
        return -1
    try:
        kept = os.dup(_STANDARD_ERROR)
    except OSError:  # closed
        return -1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no free descriptor: what is printed is printed
        os.close(kept)
        return -1
    os.dup2(nowhere, _STANDARD_ERROR)
    os.close(nowhere)
    return kept


def _turned_back(kept: int) -> None:
    if kept >= 0:
        os.dup2(kept, _STANDARD_ERROR)
        os.close(kept)


def _forget() -> None:
    """In a forked child, which inherits the lock, held perhaps by a thread that it has not."""
    global _LOCK
    _LOCK = threading.Lock()
    if _STATE["depth"]:
        _turned_back(_STATE["kept"])
        _STATE.update(depth=0, kept=-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""Requests to end: Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal that was closed.

A request ends a command at once, and nothing is left behind. While a registration is at work, the first one lets it
stop where it is and write the best so far; the second one ends it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Number of a signal -> what has happened. Windows has no SIGHUP.
WORDS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "the terminal was closed"))
    if hasattr(signal, name)
}


class Ended(SystemExit):
    """A request to end that ends the command at once; its status is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Requests:
    """The requests to end that this process got while a command runs.

    Attributes
    ----------
    number : int
        The signal of the last one; 0 where there was none.
    keeps : bool
        Whether the first one lets the command end by itself.
    written : bool
        Whether all files are complete, and only words are left to say.
    """

    def __init__(self) -> None:
        self.number, self.keeps, self.written = 0, False, False

    def __call__(self, number: int, _: Any) -> None:
        """Take a signal.

        Raises
        ------
        Ended
            Unless it is the first one and the command ends by itself.
        """
        again, self.number = self.number != 0, number
        if again or not self.keeps:
            raise Ended(number)
        from itk_nir.cli.console import say

        say(f"{WORDS[number]}: the best so far will be written; once more ends at once, without it")

    def what(self, number: int) -> str:
        """Say what has happened, and what there is to find."""
        left = "all files are complete" if self.written else "nothing was left behind"
        return f"{WORDS[number]}; {left}"

    def stopping(self, callback: Callable[[Any], Any] | None) -> Callable[[Any], bool]:
        """Make a callback of a registration that stops it after a request; from its first call on one is kept.

        Parameters
        ----------
        callback : callable, optional
            Who else wants to know, and may stop it.

        Returns
        -------
        callable
        """

        def told(progress: Any) -> bool:
            self.keeps = True
            stop = callback is not None and callback(progress)
            return bool(stop) or self.number != 0

        return told


_current: list[Requests] = []


def requests() -> Requests:
    """The requests of the command that runs; of none where no command does."""
    return _current[-1] if _current else Requests()


@contextmanager
def handled(for_good: bool = False) -> Iterator[Requests]:
    """Take requests to end while the block runs.

    Parameters
    ----------
    for_good : bool
        What comes afterwards is the end of the process: a request then ends it without another word, as no files are
        being written any more.

    Yields
    ------
    Requests
        Those of the outermost block.
    """
    if _current:
        yield _current[-1]
        return
    mine = Requests()
    _current.append(mine)
    before: dict[int, Any] = {}
    hook = sys.unraisablehook

    def unraisable(what: Any) -> None:
        # A request within a finaliser cannot be raised from there: it is noted, and asked for later.
        if not isinstance(what.exc_value, Ended):
            hook(what)

    try:
        if threading.current_thread() is threading.main_thread():
            sys.unraisablehook = unraisable
            for number in WORDS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup's wish is kept
                    before[number] = signal.signal(number, mine)
        yield mine
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if for_good else handler)
        sys.unraisablehook = hook
        _current.remove(mine)

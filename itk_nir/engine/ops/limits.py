"""How many threads the native ops are given."""

from __future__ import annotations

import operator
import os

#: The native ops never start more threads: beyond the processors of the machine, more only wait for one another.
MOST_THREADS = max(64, os.cpu_count() or 1)


def thread_count(threads: int) -> int:
    """The number of threads that the native ops are told.

    Parameters
    ----------
    threads : int
        Any whole number from 1 on. No result depends on it.

    Returns
    -------
    int
        `threads`, at most `MOST_THREADS`.

    Raises
    ------
    ValueError
        `threads` is below 1.
    """
    count = operator.index(threads)
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return min(count, MOST_THREADS)

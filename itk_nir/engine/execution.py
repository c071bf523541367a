"""Where and on how many threads the engine computes, and what memory that took."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from itk_nir.errors import OptionError
from itk_nir.options import whole_number

#: Re-entrant: a callback may register another pair.
_ONE_AT_A_TIME = threading.RLock()

T = TypeVar("T")


def device_named(name: str) -> torch.device:
    """The device of a user's word: ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"``.

    Parameters
    ----------
    name : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    torch.device

    Raises
    ------
    OptionError
        Another word, or CUDA where torch finds none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise OptionError(f"device is 'auto', 'cpu' or 'cuda', got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device 'cuda' was asked for but torch finds no CUDA device; use device='cpu' or 'auto'")
    return torch.device(name)


def thread_count(threads: int | None) -> int:
    """The number of CPU threads: what the user says, else all that the process may use.

    Parameters
    ----------
    threads : int or None
        What the user says.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    OptionError
        Not a whole number of at least 1.
    """
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = whole_number(threads)
    if count is None or count < 1:
        raise OptionError(f"threads is a whole number of at least 1, got {threads!r}")
    return count


@contextmanager
def torch_on_one_thread(device: torch.device) -> Iterator[int]:
    """Torch's own CPU loops on one thread inside, as found outside.

    Nothing changes where `device` is no CPU.

    Parameters
    ----------
    device : torch.device
        Where the work is done.

    Yields
    ------
    int
        The number of threads that was found.

    Notes
    -----
    The work that scales is in the native ops, whose bits do not depend on their threads; torch's reductions and matrix
    products may, so they get one. The setting is the whole process's: callers on other threads wait for their turn, or
    one that ends would change it for another that still runs. (They lose little, each uses all threads it is allowed.)
    The caller's own code inside it (a callback) runs under `with_torch_threads`.
    """
    if device.type != "cpu":
        yield torch.get_num_threads()
        return
    with _ONE_AT_A_TIME:
        # Not before it is this thread's turn: torch's count is another one in every thread, begun with the process's at
        # that thread's first use.
        found = torch.get_num_threads()
        if found == 1:
            yield found
            return
        torch.set_num_threads(1)
        try:
            yield found
        finally:
            torch.set_num_threads(found)


def with_torch_threads(function: Callable[..., T], count: int) -> Callable[..., T]:
    """The function, run with `count` torch threads, whatever their number is when it is called.

    Parameters
    ----------
    function : callable
        Any.
    count : int
        Number of threads inside.

    Returns
    -------
    callable
        With the arguments and the value of `function`.
    """

    def called(*arguments: object) -> T:
        now = torch.get_num_threads()
        if now == count:
            return function(*arguments)
        torch.set_num_threads(count)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(now)

    return called


def peak_memory_mb() -> float | None:
    """Peak resident memory of the process so far, MiB; None where the system does not tell.

    Returns
    -------
    float or None
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def peak_device_memory_mb(device: torch.device) -> float | None:
    """Peak memory of a CUDA device since `reset_peak_device_memory`, MiB; None for a CPU.

    Parameters
    ----------
    device : torch.device
        Any device.

    Returns
    -------
    float or None
    """
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def reset_peak_device_memory(device: torch.device) -> None:
    """Begin to measure the peak memory of a CUDA device anew.

    Parameters
    ----------
    device : torch.device
        Nothing is done for a CPU.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_name(device: torch.device) -> str:
    """``"cpu"``, or what the card calls itself.

    Parameters
    ----------
    device : torch.device
        Any device.

    Returns
    -------
    str
    """
    return str(device) if device.type == "cpu" else torch.cuda.get_device_name(device)

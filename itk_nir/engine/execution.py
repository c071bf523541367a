"""Where and on how many threads the engine computes, and what memory that took."""

from __future__ import annotations

import os
import sys

import torch

from itk_nir.errors import OptionError
from itk_nir.options import shown, whole_number


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
    if not isinstance(name, str) or name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device is 'auto', 'cpu' or 'cuda', got {shown(name)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        raise OptionError(f"threads is a whole number of at least 1, got {shown(threads)}")
    return count


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

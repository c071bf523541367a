"""Where and on how many threads the engine computes, and what memory that took."""

from __future__ import annotations

import sys

import torch

from itk_nir.errors import OptionError
from itk_nir.options import shown
from itk_nir.options import thread_count as thread_count


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

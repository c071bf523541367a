"""Where and on how many threads the engine computes, and what memory that took."""

from __future__ import annotations

import sys

import torch

from itk_nir.devices import checked_device
from itk_nir.engine import cards
from itk_nir.errors import OptionError
from itk_nir.options import thread_count as thread_count


def device_named(name: str) -> torch.device:
    """The device of a user's word.

    Parameters
    ----------
    name : str
        ``"auto"`` (CUDA where the card has passed ``itk-nir selftest``, else the CPU), ``"cpu"``, ``"cuda"`` or
        ``"cuda:N"``.

    Returns
    -------
    torch.device

    Raises
    ------
    OptionError
        Another word, or a card that torch does not find.
    """
    if checked_device(name) == "auto":
        if torch.cuda.is_available():
            here = torch.device("cuda", torch.cuda.current_device())
            if cards.has_passed(cards.card(here)):
                return here
        return torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        raise OptionError(
            "device 'mps' is not supported: the registration needs float64 and operations that torch lacks there; "
            "use device='cpu', which is about as fast on such a machine"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise OptionError(f"device {name!r} was asked for but torch finds no CUDA device; use device='cpu' or 'auto'")
    number = torch.cuda.current_device() if name == "cuda" else int(name.removeprefix("cuda:"))
    if number >= count:
        last = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise OptionError(f"device {name!r} was asked for but torch finds only {last}")
    return torch.device("cuda", number)


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
    """What a card calls itself, and the name of any other device.

    Parameters
    ----------
    device : torch.device
        Any device.

    Returns
    -------
    str
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

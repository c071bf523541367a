"""Where and on how many threads the engine computes, and what memory that took."""

from __future__ import annotations

import sys
from typing import Any

import torch
from numpy.typing import NDArray

from itk_nir.devices import checked_device
from itk_nir.engine import cards
from itk_nir.errors import OptionError
from itk_nir.options import thread_count as thread_count

#: Bytes that are brought from a card at once, through memory that the system does not move.
_PART = 1 << 23


def host_array(x: torch.Tensor) -> NDArray[Any]:
    """A tensor in memory of the host.

    A driver copies to ordinary memory slowly, on one thread that also has the system find that memory page by page. So
    large tensors come in parts, while torch's threads put the part before where it belongs.

    Parameters
    ----------
    x : Tensor
        On any device.

    Returns
    -------
    ndarray
        Contiguous; of a CPU the tensor's own memory where that is so.
    """
    x = x.detach().contiguous()
    if not x.is_cuda or x.numel() * x.element_size() <= _PART:
        return x.cpu().numpy()
    out = torch.empty(x.shape, dtype=x.dtype)
    there, here, count = x.view(-1), out.view(-1), _PART // x.element_size()
    parts = [slice(k, min(k + count, x.numel())) for k in range(0, x.numel(), count)]
    held = [(torch.empty(count, dtype=x.dtype, pin_memory=True), torch.cuda.Event()) for _ in range(2)]
    with torch.cuda.device(x.device):
        for number in range(len(parts) + 1):
            if number < len(parts):
                part, (buffer, copied) = parts[number], held[number % 2]
                buffer[: part.stop - part.start].copy_(there[part], non_blocking=True)
                copied.record()
            if number > 0:
                part, (buffer, copied) = parts[number - 1], held[(number - 1) % 2]
                copied.synchronize()
                here[part].copy_(buffer[: part.stop - part.start])
    return out.numpy()


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

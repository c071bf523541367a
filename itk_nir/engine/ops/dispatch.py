"""Which implementation of an op runs, on how many threads, and the memory of the process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def native_module() -> ModuleType | None:
    """The native ops, as `ops.cpu` wraps them.

    Returns
    -------
    module or None
        None, with one warning, where the native module was not built.
    """
    try:
        from itk_nir.engine.ops import cpu
    except ImportError as error:
        warnings.warn(
            f"itk_nir: the native CPU ops are not available ({error}); the slow torch ones run instead. "
            "Reinstall the package with a C++17 compiler at hand to get them.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return cpu


@lru_cache(maxsize=16)
def cuda_module(device: torch.device) -> ModuleType | None:
    """The ops by our kernels for a card, as `ops.cuda` wraps them.

    Parameters
    ----------
    device : torch.device
        With its number.

    Returns
    -------
    module or None
        None, with one warning, where the kernels cannot be compiled or loaded there: torch's own ops run instead.
    """
    from itk_nir.engine.ops import cuda

    try:
        cuda.load(device)
    except (RuntimeError, OSError, AttributeError) as error:
        warnings.warn(
            f"itk_nir: the kernels for {device} are not available ({error}); torch's own ops run instead, which are "
            "slower and need more memory.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return cuda


#: Type of device → the ops that were written for it.
KERNELS: dict[str, Callable[[torch.device], Any]] = {"cpu": lambda _: native_module(), "cuda": cuda_module}


def native_for(x: Tensor) -> Any:
    """The ops that were written for a device, where they can work on a tensor.

    Parameters
    ----------
    x : Tensor
        What decides: they are for float32.

    Returns
    -------
    module or None
        See `native_module` and `cuda_module`; None for any other type or device.
    """
    return native_on(x.device) if x.dtype == torch.float32 else None


def native_on(device: torch.device) -> Any:
    """The ops that were written for a device, for what is no float: see `native_for`.

    Parameters
    ----------
    device : torch.device
        What decides.

    Returns
    -------
    module or None
        See `native_module` and `cuda_module`; None for any other device.
    """
    of = KERNELS.get(device.type)
    return None if of is None else of(device)


def descriptors_for(x: Tensor) -> Any:
    """The ops on self-similarity descriptors that were written for a device, as `native_for`.

    Parameters
    ----------
    x : Tensor
        What decides.

    Returns
    -------
    module or None
    """
    native = native_for(x)
    if native is not None and x.device.type == "cpu" and native is native_module():
        from itk_nir.engine.ops import cpu_mind

        return cpu_mind
    return native


def release_memory() -> None:
    """Give freed memory back to the system, where the native module knows how."""
    native = native_module()
    if native:
        native.native.release_memory()


def return_blocks_from(size: int) -> None:
    """Have the allocator give large blocks back when they are freed, for the rest of the process.

    For a process of our own: it is the command line that asks for it, never `register`.

    Parameters
    ----------
    size : int
        Bytes from which on a block is large.
    """
    native = native_module()
    if native:
        native.native.return_blocks_from(size)


def instruction_set() -> str:
    """The instruction set that the native ops use, or ``"torch"`` where they are missing."""
    native = native_module()
    return str(native.native.instruction_set()) if native else "torch"

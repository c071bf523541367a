"""Kernels are compiled, loaded and launched where their tensors lie.

A launch waits for nothing. It goes to the stream that torch is on, so that the memory which torch hands out there is
safe to use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.compiler import compiled
from itk_nir.engine.ops.cuda.driving import GIVEN_SHARED, Driver, DriverError, Grid, Module, Prepared, driver, pointer

__all__ = [
    "Driver", "DriverError", "Grid", "Module", "Prepared", "Size", "architecture_of", "blocks", "f32", "launch",
    "launch_each", "module_on", "most_shared", "pointer", "prepare", "repeat", "size_of", "size_xyz",
]  # fmt: skip


class Size(ctypes.Structure):
    """The size of a grid, voxels along x, y and z."""

    _fields_ = [(axis, ctypes.c_int) for axis in "xyz"]


def size_of(x: Tensor) -> Size:
    """The size of a grid that a tensor lies on.

    Parameters
    ----------
    x : Tensor
        ``(..., Z, Y, X)``.

    Returns
    -------
    Size
    """
    return size_xyz(*x.shape[:-4:-1])


@lru_cache(maxsize=1024)
def size_xyz(x: int, y: int, z: int) -> Size:
    """A size.

    Parameters
    ----------
    x, y, z : int
        Voxels.

    Returns
    -------
    Size
    """
    return Size(x, y, z)


def blocks(n: int, per: int = 256) -> int:
    """How many blocks there must be for so many things.

    Parameters
    ----------
    n : int
        Things.
    per : int
        In one block.

    Returns
    -------
    int
    """
    return -(-n // per)


def f32(x: Tensor) -> Tensor:
    """A tensor as kernels take it.

    Parameters
    ----------
    x : Tensor
        Any.

    Returns
    -------
    Tensor
        float32 and contiguous, without its history.
    """
    return x.detach().to(torch.float32).contiguous()


def architecture_of(device: torch.device) -> str:
    """What the compiler calls a card.

    Parameters
    ----------
    device : torch.device
        A CUDA device.

    Returns
    -------
    str
    """
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName)
    return f"sm_{properties.major}{properties.minor}"


@lru_cache(maxsize=256)
def module_on(file: str, defines: tuple[str, ...], device: torch.device) -> Module:
    """The kernels of a file on a card, compiled and loaded once.

    Parameters
    ----------
    file : str
        Its name.
    defines : tuple of str
        Macros.
    device : torch.device
        With its number.

    Returns
    -------
    Module

    Raises
    ------
    CompilerError, DriverError
        It cannot be had.
    """
    with torch.cuda.device(device):
        torch.cuda.init()  # torch makes the context that the module belongs to
        driver().bind(device.index)
        return Module(driver(), compiled(file, architecture_of(device), defines), device.index)


def most_shared(device: torch.device) -> int:
    """Shared memory that a block may ask for on a card.

    Parameters
    ----------
    device : torch.device
        With its number.

    Returns
    -------
    int
        Bytes.
    """
    properties = torch.cuda.get_device_properties(device)
    # Of AMD cards torch knows the one limit.
    given = getattr(properties, "shared_memory_per_block", GIVEN_SHARED)
    return int(getattr(properties, "shared_memory_per_block_optin", given))


def launch(
    file: str, kernel: str, grid: Grid, block: Grid, *arguments: Any, shared: int = 0, defines: tuple[str, ...] = ()
) -> None:
    """Launch a kernel where its first tensor lies, on the stream that torch is on; nothing waits.

    Parameters
    ----------
    file, kernel : str
        The file of kernels, and which of them.
    grid, block : tuple of int
        Blocks, and threads of a block (256 at most), along x, y and z.
    *arguments : Tensor, None, int, float or ctypes.Structure
        As the kernel declares them: a pointer (None: null), an int, a float, a structure.
    shared : int
        Bytes of dynamic shared memory.
    defines : tuple of str
        Macros that the file is compiled with.

    Raises
    ------
    CompilerError, DriverError
        The kernel cannot be had, or the driver refuses it.
    """
    device = next(a for a in arguments if isinstance(a, Tensor)).device
    module = module_on(file, defines, device)
    if device.index == torch.cuda.current_device():
        module.launch(kernel, grid, block, arguments, shared, _stream(device.index))
        return
    with torch.cuda.device(device):
        module.launch(kernel, grid, block, arguments, shared, _stream(device.index))


def prepare(
    file: str, kernel: str, grid: Grid, block: Grid, *arguments: Any, shared: int = 0, defines: tuple[str, ...] = ()
) -> Prepared:
    """`launch`, but for later and often: see `repeat`.

    Parameters
    ----------
    file, kernel, grid, block, *arguments, shared, defines
        See `launch`.

    Returns
    -------
    Prepared

    Raises
    ------
    CompilerError, DriverError
        The kernel cannot be had.
    """
    device = next(a for a in arguments if isinstance(a, Tensor)).device
    with torch.cuda.device(device):
        return Prepared(module_on(file, defines, device), kernel, grid, block, arguments, shared)


def repeat(launches: Sequence[Prepared], device: torch.device) -> None:
    """Launch what was prepared, one after the other, on the stream that torch is on; nothing waits.

    Parameters
    ----------
    launches : sequence of Prepared
        All on one card.
    device : torch.device
        The card, with its number.

    Raises
    ------
    DriverError
        The driver refuses a launch.
    """
    with nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        stream = ctypes.c_void_p(_stream(device.index))
        for launch in launches:
            launch.launch(stream)


def _stream(index: int) -> int:
    """The handle of the stream that torch is on."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # a tenth of the time of what is public
    return int(torch.cuda.current_stream(index).cuda_stream if raw is None else raw(index))


def launch_each(file: str, kernel: str, count: int, *arguments: Any, shared: int = 0) -> None:
    """`launch` with a thread for each of `count` things, 256 a block.

    Parameters
    ----------
    file, kernel : str
        The file of kernels, and which of them.
    count : int
        Things.
    *arguments : object
        See `launch`.
    shared : int
        Bytes of dynamic shared memory.
    """
    launch(file, kernel, (blocks(count), 1, 1), (256, 1, 1), *arguments, shared=shared)

"""Kernels are loaded and launched through the driver: no torch ABI, no C compiler, nothing to build.

A launch waits for nothing. It goes to the stream that torch is on, so that the memory which torch hands out there is
safe to use.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.compiler import compiled

Grid = tuple[int, int, int]

#: Shared memory beyond which a kernel must ask for it, bytes.
GIVEN_SHARED = 48 * 1024
#: What the arguments of a kernel take at most, bytes.
MOST_ARGUMENT_BYTES = 4096
#: Types of arguments, as `struct` writes them.
_LETTERS: dict[Any, str] = {
    ctypes.c_int: "i",
    ctypes.c_float: "f",
    ctypes.c_void_p: "P",
    ctypes.c_longlong: "q",
}
#: Of the driver: what it says of a thread that has used no card yet.
NO_CONTEXT = 201
#: Of the driver: the attribute by which a kernel asks.
MOST_DYNAMIC_SHARED = 8


class DriverError(RuntimeError):
    """The driver is missing or refuses what it is asked for."""


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


class Driver:
    """The few functions of the CUDA driver, or of HIP, that a launch needs.

    Parameters
    ----------
    library : ctypes.CDLL
        The driver's library.
    hip : bool
        Whether it is HIP's.
    """

    library: ctypes.CDLL
    hip: bool
    load: Any
    find: Any
    set: Any
    launch: Any
    text: Any

    def __init__(self, library: ctypes.CDLL, hip: bool = False) -> None:
        self.library = library
        names = (
            ("ModuleLoadData", "ModuleGetFunction", "FuncSetAttribute", "LaunchKernel", "GetErrorString")
            if not hip
            else ("ModuleLoadData", "ModuleGetFunction", "FuncSetAttribute", "ModuleLaunchKernel", "DrvGetErrorString")
        )
        prefix, self.hip = ("hip" if hip else "cu"), hip
        self.load, self.find, self.set, self.launch, self.text = (getattr(library, prefix + n) for n in names)

    def bind(self, number: int) -> None:
        """Make the context of a card, which torch shares, that of this thread. HIP does so by itself.

        Parameters
        ----------
        number : int
            Of the card.

        Raises
        ------
        DriverError
            There is none.
        """
        if self.hip:
            return
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.check(self.library.cuDeviceGet(ctypes.byref(device), number), f"card {number}")
        self.check(self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"context of card {number}")
        self.check(self.library.cuCtxSetCurrent(context), f"context of card {number}")

    def check(self, status: int, what: str) -> None:
        """Raise where the driver reports a failure.

        Parameters
        ----------
        status : int
            What a function returned.
        what : str
            What was tried.

        Raises
        ------
        DriverError
            `status` is not 0.
        """
        if not status:
            return
        text = ctypes.c_char_p()
        self.text(status, ctypes.byref(text))
        raise DriverError(f"{what}: {(text.value or b'unknown error').decode()} (status {status})")


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The driver of this machine.

    Returns
    -------
    Driver

    Raises
    ------
    DriverError
        Its library cannot be loaded.
    """
    hip = torch.version.hip is not None
    if sys.platform == "win32":
        name = "amdhip64.dll" if hip else "nvcuda.dll"
    else:
        name = "libamdhip64.so" if hip else "libcuda.so.1"
    try:
        return Driver(ctypes.CDLL(name), hip)
    except OSError as error:
        raise DriverError(f"the driver of the card was not found: {error}") from error


class _Buffer(threading.local):
    """Where a thread packs the arguments of a launch, and how it tells the driver."""

    def __init__(self) -> None:
        self.bytes = bytearray(MOST_ARGUMENT_BYTES)
        self.size = ctypes.c_size_t()
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.extra = (ctypes.c_void_p * 5)(1, address, 2, ctypes.addressof(self.size), 0)


_buffer = _Buffer()


class Module:
    """The kernels of one file, loaded on one card.

    Parameters
    ----------
    of : Driver
        The driver.
    code : bytes
        What the compiler made.
    number : int
        Of the card.
    """

    driver: Driver
    code: bytes
    number: int
    handle: ctypes.c_void_p
    functions: dict[str, ctypes.c_void_p]
    shared: dict[str, int]

    def __init__(self, of: Driver, code: bytes, number: int = 0) -> None:
        self.driver, self.code, self.number = of, code, number  # the driver may read the code later
        self.handle = ctypes.c_void_p()
        self.functions, self.shared = {}, {}
        of.check(of.load(ctypes.byref(self.handle), code), "loading kernels")

    def launch(self, name: str, grid: Grid, block: Grid, arguments: Sequence[Any], shared: int, stream: int) -> None:
        """Launch a kernel; nothing waits.

        Parameters
        ----------
        name : str
            Of the kernel.
        grid, block : tuple of int
            Blocks, and threads of a block, along x, y and z.
        arguments : sequence
            As for `launch`.
        shared : int
            Bytes of dynamic shared memory.
        stream : int
            Handle of the stream.

        Raises
        ------
        DriverError
            The driver refuses the launch.
        """
        function = self.function(name, shared)
        layout = ""
        values: list[Any] = []
        for a in arguments:
            kind, value = _packed(a)
            layout += kind
            values += value
        buffer = _buffer
        buffer.size.value = struct.calcsize(layout)
        struct.pack_into(layout, buffer.bytes, 0, *values)
        self.do(
            f"kernel {name}", self.driver.launch, function, *grid, *block, shared, ctypes.c_void_p(stream), None,
            buffer.extra,
        )  # fmt: skip

    def function(self, name: str, shared: int) -> ctypes.c_void_p:
        """A kernel, which may use that much shared memory.

        Parameters
        ----------
        name : str
            Of the kernel.
        shared : int
            Bytes of dynamic shared memory.

        Returns
        -------
        ctypes.c_void_p
            Its handle.

        Raises
        ------
        DriverError
            There is none of that name, or the card has less memory.
        """
        function = self.functions.get(name)
        if function is None:
            function = ctypes.c_void_p()
            self.driver.check(self.driver.find(ctypes.byref(function), self.handle, name.encode()), f"kernel {name}")
            self.functions[name] = function
        if shared > max(GIVEN_SHARED, self.shared.get(name, 0)):
            self.do(f"kernel {name}", self.driver.set, function, MOST_DYNAMIC_SHARED, shared)
            self.shared[name] = shared
        return function

    def do(self, what: str, function: Any, *arguments: Any) -> None:
        """Call a function of the driver, in the context of the card.

        Parameters
        ----------
        what : str
            What is tried.
        function : object
            Of the driver.
        *arguments : object
            What it is given.

        Raises
        ------
        DriverError
            It fails.
        """
        status = function(*arguments)
        if status == NO_CONTEXT:  # a thread of autograd, say, which has not come to the card by itself yet
            self.driver.bind(self.number)
            status = function(*arguments)
        if status:
            self.driver.check(status, what)


class Prepared:
    """A launch that is repeated: its arguments are packed once, and those that change are put where they lie.

    Parameters
    ----------
    module : Module
        The kernels.
    name : str
        Of the kernel.
    grid, block : tuple of int
        Blocks, and threads of a block, along x, y and z.
    arguments : sequence
        As for `launch`. Their tensors are kept alive.
    shared : int
        Bytes of dynamic shared memory.

    Raises
    ------
    DriverError
        There is no such kernel, or the card has less memory.
    """

    module: Module
    name: str
    arguments: Sequence[Any]

    def __init__(
        self, module: Module, name: str, grid: Grid, block: Grid, arguments: Sequence[Any], shared: int
    ) -> None:
        self.module, self.name, self.arguments = module, name, arguments
        layout, values, self._places = "", [], []  # type: ignore[var-annotated]
        for a in arguments:
            kind, value = _packed(a)
            layout += kind
            values += value
            self._places.append((kind, struct.calcsize(layout) - struct.calcsize(kind)))
        self._bytes = bytearray(struct.calcsize(layout))
        struct.pack_into(layout, self._bytes, 0, *values)
        self._size = ctypes.c_size_t(len(self._bytes))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
        extra = (ctypes.c_void_p * 5)(1, address, 2, ctypes.addressof(self._size), 0)
        self._before = (module.function(name, shared), *map(ctypes.c_uint, (*grid, *block, shared)))
        self._after = (None, extra)

    def put(self, number: int, value: float) -> None:
        """Change an argument.

        Parameters
        ----------
        number : int
            Which, counted from 0: an int or a float.
        value : int or float
            As it was given first.
        """
        kind, at = self._places[number]
        struct.pack_into(kind, self._bytes, at, value)

    def launch(self, stream: Any) -> None:
        """Launch it as it stands; nothing waits.

        Parameters
        ----------
        stream : ctypes.c_void_p
            Handle of the stream.

        Raises
        ------
        DriverError
            The driver refuses the launch.
        """
        self.module.do(self.name, self.module.driver.launch, *self._before, stream, *self._after)


def _packed(a: Any) -> tuple[str, Sequence[Any]]:
    """How an argument lies in memory, as `struct` writes it, and its values. A structure is laid out as its members."""
    kind = type(a)
    if kind is Tensor or isinstance(a, Tensor):
        return "P", (pointer(a),)
    if kind is int:
        return "i", (a,)
    if kind is float:
        return "f", (a,)
    if a is None:
        return "P", (0,)
    known: tuple[str, Sequence[Any]] | None = getattr(a, "packed", None)
    if known is None:
        known = _members(a)
        if isinstance(a, ctypes.Structure):
            a.packed = known
    return known


def _members(a: Any) -> tuple[str, list[Any]]:
    if isinstance(a, ctypes.Structure):
        parts = [_member(getattr(a, f[0]), f[1]) for f in a._fields_]
        return "".join(kind for kind, _ in parts), [v for _, values in parts for v in values]
    return _member(a.value, type(a))


def _member(value: Any, kind: Any) -> tuple[str, list[Any]]:
    if issubclass(kind, ctypes.Array):
        return f"{kind._length_}{_LETTERS[kind._type_]}", list(value)
    return _LETTERS[kind], [value or 0]


def pointer(x: Tensor) -> int:
    """Where a tensor lies on its card.

    Parameters
    ----------
    x : Tensor
        Contiguous.

    Returns
    -------
    int
        An address.

    Raises
    ------
    ValueError
        It is not contiguous.
    """
    if not x.is_contiguous():
        raise ValueError("a kernel takes contiguous tensors")
    return x.data_ptr()


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
    return int(getattr(properties, "shared_memory_per_block_optin", GIVEN_SHARED))


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

"""The driver of a card: kernels are loaded and launched through it, with arguments that are packed here.

No torch ABI, no C compiler, nothing to build.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    end: int | None

    def __init__(self, library: ctypes.CDLL, hip: bool = False) -> None:
        self.library, self.hip = library, hip
        prefix, launch = ("hip", "ModuleLaunchKernel") if hip else ("cu", "LaunchKernel")
        names = ("ModuleLoadData", "ModuleGetFunction", launch, "GetErrorString")
        self.load, self.find, self.launch, self.text = (getattr(library, prefix + n) for n in names)
        # What ends the list that says where the arguments of a launch lie.
        self.end = 3 if hip else None
        # HIP's is of functions of the host; a kernel may use all the shared memory of an AMD card without asking.
        self.set = None if hip else library.cuFuncSetAttribute
        if hip:
            self.text.restype = ctypes.c_char_p

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
        if self.hip:
            said = self.text(status)
        else:
            text = ctypes.c_char_p()
            self.text(status, ctypes.byref(text))
            said = text.value
        raise DriverError(f"{what}: {(said or b'unknown error').decode()} (status {status})")


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
    # A torch for ROCm brings HIP along: a second one beside it would know none of its streams.
    own = Path(torch.__file__).parent / "lib" / name
    try:
        return Driver(ctypes.CDLL(str(own) if hip and own.exists() else name), hip)
    except (OSError, AttributeError) as error:
        raise DriverError(f"the driver of the card was not found: {error}") from error


def _where(packed: bytearray, size: ctypes.c_size_t) -> Any:
    """What tells a driver where the packed arguments of a launch lie; its last word is the driver's own."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(packed))
    return (ctypes.c_void_p * 5)(1, address, 2, ctypes.addressof(size), None)


class _Buffer(threading.local):
    """Where a thread packs the arguments of a launch, and how it tells the driver."""

    def __init__(self) -> None:
        self.bytes = bytearray(MOST_ARGUMENT_BYTES)
        self.size = ctypes.c_size_t()
        self.extra = _where(self.bytes, self.size)


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
        buffer.extra[4] = self.driver.end
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
        if self.driver.set is not None and shared > max(GIVEN_SHARED, self.shared.get(name, 0)):
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
        extra = _where(self._bytes, self._size)
        extra[4] = module.driver.end
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

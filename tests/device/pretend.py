"""A device that is not there: its tensors say that they lie on it, and are computed on the CPU behind the scenes.

What a GPU forbids is an error here too (an operation on tensors of two devices, NumPy on a tensor of the device); what
makes the host wait for it is counted (every value that is read), and so are the kernels, the bytes that they must move
at least, uploads, and float64, each with the line of the package that asked.

It is torch's backend for a device of one's own (PrivateUse1) over tensors that wrap others, so it must have a process
of its own: a backend cannot be taken back. It knows nothing of a GPU's own kernels, streams and memory.
"""

from __future__ import annotations

import collections
import functools
import os
import sys
from typing import Any, ClassVar, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

#: Operations that launch no kernel: their results are views, or nothing is written.
FREE = {
    f"aten::{name}"
    for name in (
        "detach", "view", "_unsafe_view", "_reshape_alias", "expand", "permute", "t", "transpose", "select", "slice",
        "unsqueeze", "squeeze", "alias", "as_strided", "unbind", "split", "split_with_sizes", "empty", "empty_like",
        "new_empty", "narrow", "empty_strided", "diagonal", "lift_fresh", "new_empty_strided", "unfold", "result_type",
        "is_same_size",
    )
}  # fmt: skip
#: Operations that take tensors of the CPU beside those of the device.
MIXED = {f"aten::{n}" for n in ("index", "index_put_", "index_put", "_index_put_impl_", "copy_", "_unsafe_index")}
#: Operations whose result the host needs, so that it waits.
WAITS = {
    f"aten::{n}"
    for n in (
        "_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "linalg_eigh", "_linalg_eigh",
        "is_nonzero",
    )
}  # fmt: skip


class _Alive:
    """Memory of the device, as long as a tensor has it."""

    users: ClassVar[collections.Counter[int]] = collections.Counter()
    bytes: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self, real: torch.Tensor) -> None:
        storage = real.untyped_storage()
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        _Alive.users[self.place] += 1
        if _Alive.users[self.place] == 1:
            _Alive.bytes += self.size
            _Alive.most = max(_Alive.most, _Alive.bytes)

    def __del__(self) -> None:
        _Alive.users[self.place] -= 1
        if not _Alive.users[self.place]:
            del _Alive.users[self.place]
            _Alive.bytes -= self.size


class There(torch.Tensor):
    """A tensor of the device: a wrapper of one on the CPU."""

    held: torch.Tensor
    alive: _Alive

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> There:
        self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        self.held, self.alive = real, _Alive(real)
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({tuple(self.shape)}, {self.dtype})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    __array__ = numpy

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, other: There) -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held, self.alive = other.held, other.alive

    def tolist(self) -> Any:
        if Pretend.current is not None:
            Pretend.current.note(Pretend.current.waits, "tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Pretend.current is None:
            raise RuntimeError("a tensor of the pretend device is used outside of its block")
        return Pretend.current.run(func, types, args, kwargs or {})


@functools.cache
def _about(func: Any) -> tuple[str, bool]:
    """The name of an operation, and whether its result shares memory with what it was given."""
    schema = func._schema
    return schema.name, any(r.alias_info is not None for r in schema.returns)


def _unwrapped(tree: Any, ours: list[torch.Tensor], plain: list[torch.Tensor]) -> Any:
    """The same with tensors of the CPU; what they were goes into the lists, those of the device unwrapped."""
    if isinstance(tree, There):
        ours.append(tree.held)
        return tree.held
    if isinstance(tree, torch.Tensor):
        plain.append(tree)
    elif isinstance(tree, (tuple, list)):
        return type(tree)(_unwrapped(x, ours, plain) for x in tree)
    return tree


def _wrapped(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return There(tree)
    return type(tree)(_wrapped(x) for x in tree) if isinstance(tree, (tuple, list)) else tree


def _flat(tree: Any) -> list[Any]:
    return [y for x in tree for y in _flat(x)] if isinstance(tree, (tuple, list)) else [tree]


class Pretend(TorchDispatchMode):
    """The block in which the device is there.

    Parameters
    ----------
    forbid_float64 : bool
        Whether a float64 tensor with several elements on the device is an error, as on devices that lack the type.
    zeros : bool
        Whether memory that nobody wrote is zero, not anything: for kernels that are only counted.

    Attributes
    ----------
    kernels, bytes, calls : Counter
        By operation; `calls` counts those that launch nothing too, on whichever device: each costs the host some time.
    waits, uploads, doubles : Counter
        By operation and line of the package.
    peak : int
        Most bytes that tensors of the device had at once since `reset`, but for what an operation needs inside.
    """

    current: Pretend | None = None

    def __init__(self, forbid_float64: bool = False, zeros: bool = False) -> None:
        super().__init__()
        self.forbid_float64, self.zeros = forbid_float64, zeros
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        _Alive.most = _Alive.bytes
        self.kernels: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.calls: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.doubles: collections.Counter[tuple[str, str]] = collections.Counter()
        self.uploads: collections.Counter[tuple[str, str]] = collections.Counter()

    @property
    def peak(self) -> int:
        """See the attributes."""
        return _Alive.most

    def __enter__(self) -> Any:
        Pretend.current = self
        self.lifted = torch._C._only_lift_cpu_tensors()  # type: ignore[attr-defined]
        # torch.tensor(list, device=...) becomes a copy, which is seen here.
        torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Pretend.current = None
        torch._C._set_only_lift_cpu_tensors(self.lifted)  # type: ignore[attr-defined]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, types, args, kwargs or {})

    def run(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, on whichever device."""
        name, aliases = _about(func)
        self.calls[name] += 1
        given = kwargs.get("device")
        to = None if given is None else torch.device(given)
        ours: list[torch.Tensor] = []
        plain: list[torch.Tensor] = []
        real_args = _unwrapped(args, ours, plain)
        real_kwargs = {key: _unwrapped(value, ours, plain) for key, value in kwargs.items()}
        there = bool(ours) if to is None else to.type == NAME
        if ours and plain and to is None and name not in MIXED and any(x.dim() for x in plain):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
                f"({name}, shapes {[tuple(x.shape) for x in ours]} and {[tuple(x.shape) for x in plain]})"
            )
        self._note_transfer(name, args, to, bool(ours), plain)
        if there and to is not None:
            real_kwargs["device"] = torch.device("cpu")
        out = func(*real_args, **real_kwargs)
        if not there:
            return out
        if self.zeros and "empty" in name:
            out.zero_()
        outs = [out] if isinstance(out, torch.Tensor) else [x for x in _flat(out) if isinstance(x, torch.Tensor)]
        self._count(name, [*ours, *plain], outs)
        if name == "aten::_local_scalar_dense":
            return out
        wrapped = _wrapped(out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if aliases else wrapped

    def _note_transfer(
        self, name: str, args: Any, to: torch.device | None, ours: bool, plain: list[torch.Tensor]
    ) -> None:
        """Uploads, and what the host waits for."""
        if name == "aten::copy_" and isinstance(args[0], There) != isinstance(args[1], There):
            self.note(self.uploads if isinstance(args[0], There) else self.waits, name)
        if name in ("aten::_to_copy", "aten::to") and to is not None:
            if ours and to.type == "cpu":
                self.note(self.waits, f"{name} (device to host)")
            if plain and to.type == NAME:
                self.note(self.uploads, name)
        if ours and name in MIXED and name != "aten::copy_" and any(x.dim() for x in plain):
            self.note(self.uploads, name)
        if ours and name in WAITS:
            self.note(self.waits, name)

    def _count(self, name: str, tensors: list[torch.Tensor], outs: list[torch.Tensor]) -> None:
        if any(t.dtype == torch.float64 and t.numel() > 1 for t in [*tensors, *outs]):
            self.note(self.doubles, name)
            if self.forbid_float64:
                raise TypeError(f"the pretend device has no float64 ({name})")
        if name not in FREE:
            self.kernels[name] += 1
            self.bytes[name] += sum(t.numel() * t.element_size() for t in [*tensors, *outs])

    def note(self, counter: collections.Counter[tuple[str, str]], name: str) -> None:
        """Count something, with the innermost line of the package.

        Parameters
        ----------
        counter : Counter
            `waits`, `uploads` or `doubles`.
        name : str
            Of the operation.
        """
        frame = sys._getframe(1)
        while frame is not None and "itk_nir" not in frame.f_code.co_filename:
            frame = frame.f_back  # type: ignore[assignment]
        where = "autograd"
        if frame is not None:
            file = frame.f_code.co_filename.replace("\\", "/").rsplit("itk_nir/", 1)[-1]
            where = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        counter[name, where] += 1


def leave() -> NoReturn:
    """End a process whose work on this device is done and printed.

    Autograd works on a device in threads of its own, which are Python's here. One that still asks for the interpreter
    while that ends is ended by Python 3.11 within C++, which aborts the process.
    """
    sys.stdout.flush()
    os._exit(0)

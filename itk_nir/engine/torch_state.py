"""The settings of torch and NumPy that a process or a thread has, and the block in which the engine's hold instead.

Nothing that the caller has set matters to the engine, and nothing is other afterwards: not torch's default type and
device, its gradient, inference and autocast modes, deterministic algorithms, detection of anomalies, the precision of
matrix products, denormal numbers, the number of threads; not what NumPy does about floating-point errors.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
T = TypeVar("T")

#: Devices that have an autocast mode of their own.
_AUTOCAST = ("cpu", "cuda")

#: Seconds that the end of the process waits for an iteration of a daemon thread.
MOST_WAITING = 60.0

#: What numbers below the least normal one become where a processor flushes them to zero.
_DENORMAL = 1e-40


@dataclass(frozen=True)
class TorchState:
    """Settings that the results of torch and NumPy may depend on. Without arguments: those that the engine works with.

    Parameters
    ----------
    threads : int
        Of torch's own loops. Its reductions and matrix products may depend on them; what scales is in the native ops.
    dtype : torch.dtype
        Of tensors that are made of Python's numbers.
    device : torch.device
        Where tensors are made that are told no place.
    gradients, inference : bool
        Whether gradients are recorded, and whether tensors are made that never have any.
    autocast : mapping of str to torch.dtype
        Device → the type that some operations are done in.
    deterministic, deterministic_warns : bool
        Whether only deterministic algorithms are allowed, or others are warned of.
    anomalies, anomalies_nan : bool
        Whether a backward pass looks for the operation that failed, and for NaN.
    precision : str
        Of float32 matrix products.
    flush : bool
        Whether denormal numbers become zero.
    errors : mapping of str to str
        What NumPy does about floating-point errors, as of `numpy.seterr`.
    """

    threads: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    gradients: bool = True
    inference: bool = False
    autocast: Mapping[str, torch.dtype] = field(default_factory=dict)
    deterministic: bool = False
    deterministic_warns: bool = False
    anomalies: bool = False
    anomalies_nan: bool = True
    precision: str = "highest"
    flush: bool = False
    errors: Mapping[str, Any] = field(
        default_factory=lambda: {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    )

    @classmethod
    def found(cls) -> TorchState:
        """The settings of this thread and process as they are.

        Returns
        -------
        TorchState
        """
        return cls(
            threads=torch.get_num_threads(),
            dtype=torch.get_default_dtype(),
            device=torch.empty(0).device,
            gradients=torch.is_grad_enabled(),
            inference=torch.is_inference_mode_enabled(),
            autocast=_autocast_found(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            deterministic_warns=torch.is_deterministic_algorithms_warn_only_enabled(),
            anomalies=torch.is_anomaly_enabled(),
            anomalies_nan=torch.is_anomaly_check_nan_enabled(),
            precision=torch.get_float32_matmul_precision(),
            flush=bool(np.float32(_DENORMAL) * np.float32(1) == 0),
            errors=np.geterr(),
        )

    @contextmanager
    def held(self) -> Iterator[TorchState]:
        """These settings inside, what was found outside.

        Yields
        ------
        TorchState
            What was found.
        """
        found = TorchState.found()
        with ExitStack() as stack:
            stack.callback(found.set_global, self)
            self.set_global(found)
            if self.device != found.device:
                stack.enter_context(torch.device(self.device))
            if self.inference != found.inference:
                stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.gradients))
            for name in _AUTOCAST:
                wanted = self.autocast.get(name)
                if wanted != found.autocast.get(name):
                    stack.enter_context(torch.autocast(name, dtype=wanted, enabled=wanted is not None))
            stack.enter_context(np.errstate(**self.errors))
            yield found

    def set_global(self, now: TorchState) -> None:
        """Set what the process or the thread has without a block of its own, where it is another.

        Parameters
        ----------
        now : TorchState
            The settings as they are.
        """
        if self.threads != now.threads:
            torch.set_num_threads(self.threads)
        if self.dtype != now.dtype:
            torch.set_default_dtype(self.dtype)
        if (self.deterministic, self.deterministic_warns) != (now.deterministic, now.deterministic_warns):
            torch.use_deterministic_algorithms(self.deterministic, warn_only=self.deterministic_warns)
        if (self.anomalies, self.anomalies_nan) != (now.anomalies, now.anomalies_nan):
            torch.autograd.set_detect_anomaly(self.anomalies, self.anomalies_nan)
        if self.precision != now.precision:
            torch.set_float32_matmul_precision(self.precision)
        if self.flush != now.flush:
            torch.set_flush_denormal(self.flush)


def _autocast_found() -> dict[str, torch.dtype]:
    """Device → type, for the devices whose autocast mode is on."""
    if hasattr(torch, "get_autocast_dtype"):
        return {d: torch.get_autocast_dtype(d) for d in _AUTOCAST if torch.is_autocast_enabled(d)}
    found = {}  # before torch 2.4
    if torch.is_autocast_cpu_enabled():
        found["cpu"] = torch.get_autocast_cpu_dtype()
    if torch.is_autocast_enabled():
        found["cuda"] = torch.get_autocast_gpu_dtype()
    return found


class _Turn:
    """Whose turn it is: settings of the whole process cannot be two things at once.

    Callers on other threads wait, or one that ends would change them for another that still runs. (They lose little:
    each uses all threads that it is allowed.) It is re-entrant: a callback may register another pair.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: What the outermost block found, and the thread that is in it.
        self.outermost: tuple[TorchState, int] | None = None

    def after_fork(self) -> None:
        """In a forked child: nobody else's turn goes on there, and what another thread had set is set back."""
        self.lock = threading.RLock()
        if self.outermost is not None and self.outermost[1] != threading.get_ident():
            self.outermost[0].set_global(TorchState.found())
            self.outermost = None


class _Daemons:
    """Daemon threads that are in this package's code when the process ends.

    Python ends such a thread wherever it is, and within native code that would abort the process. So the end of the
    process waits until each has left, which an optimisation does at its next iteration, and none enters any more.
    """

    def __init__(self) -> None:
        self.ending = False
        self.inside = 0
        #: Those that were told to end.
        self.leaving: list[threading.Thread] = []
        self.changed = threading.Condition()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A block of native code."""
        if not threading.current_thread().daemon:
            yield
            return
        with self.changed:
            self.leave_if_ending()
            self.inside += 1
        try:
            yield
        finally:
            with self.changed:
                self.inside -= 1
                self.changed.notify_all()

    def leave_if_ending(self) -> None:
        """End this thread, without a word, where the process is ending."""
        if self.ending:
            self.leaving.append(threading.current_thread())
            raise SystemExit

    def at_exit(self) -> None:
        """When the process ends."""
        with self.changed:
            self.ending = True
            self.changed.wait_for(lambda: self.inside == 0, MOST_WAITING)
        for thread in self.leaving:  # what their frames held is given back by native code too
            thread.join(MOST_WAITING)

    def after_fork(self) -> None:
        """In a forked child, which has only the thread that forked."""
        self.changed = threading.Condition()
        self.leaving = []
        self.inside = 1 if threading.current_thread().daemon and self.inside else 0


_turn, _daemons = _Turn(), _Daemons()
atexit.register(_daemons.at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_turn.after_fork)
    os.register_at_fork(after_in_child=_daemons.after_fork)


@contextmanager
def engine_state(device: torch.device | None = None) -> Iterator[TorchState]:
    """The engine's settings inside, as found outside; one thread at a time.

    Parameters
    ----------
    device : torch.device, optional
        Where the work is done: away from a CPU the number of torch's threads stays as it is. Left out: on the CPU.

    Yields
    ------
    TorchState
        What was found. The caller's own code inside (a callback) runs under it, see `in_state`.
    """
    with _daemons.counted(), _turn.lock:
        # Not before it is this thread's turn: torch's count is another one in every thread, begun with the process's at
        # that thread's first use.
        wanted = TorchState()
        if device is not None and device.type != "cpu":
            wanted = replace(wanted, threads=torch.get_num_threads())
        before = _turn.outermost
        if before is None:
            _turn.outermost = TorchState.found(), threading.get_ident()
        try:
            with wanted.held() as found:
                yield found
        finally:
            _turn.outermost = before


@contextmanager
def quiet_state() -> Iterator[None]:
    """Settings of this thread alone that the engine needs, for work that names its types and may run on many threads.

    No gradients, no inference mode, no autocast, no other device, NumPy's usual warnings.

    Yields
    ------
    None
    """
    now, usual = TorchState.found(), TorchState()
    wanted = replace(now, device=usual.device, gradients=False, inference=False, autocast={}, errors=usual.errors)
    with _daemons.counted(), wanted.held():
        yield


def quietly(function: Callable[P, T]) -> Callable[P, T]:
    """The function, run within `quiet_state` (a decorator).

    Parameters
    ----------
    function : callable
        Any.

    Returns
    -------
    callable
        With the arguments and the value of `function`.
    """

    # Not the block as a decorator itself: a frame of another module would lie between a warning and its caller.
    @wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> T:
        with quiet_state():
            return function(*arguments, **named)

    return called


def until_exit(callback: Callable[[T], Any] | None) -> Callable[[T], Any] | None:
    """A callback for work on a daemon thread, which is to stop where the process ends; on others the callback itself.

    Parameters
    ----------
    callback : callable or None
        The caller's own.

    Returns
    -------
    callable or None
    """
    if not threading.current_thread().daemon:
        return callback

    def called(argument: T) -> Any:
        _daemons.leave_if_ending()
        return None if callback is None else callback(argument)

    return called


def in_state(function: Callable[..., T], state: TorchState) -> Callable[..., T]:
    """The function, run under the given settings, whatever they are when it is called.

    Parameters
    ----------
    function : callable
        Any.
    state : TorchState
        Inside.

    Returns
    -------
    callable
        With the arguments and the value of `function`.
    """

    def called(*arguments: object) -> T:
        with state.held():
            return function(*arguments)

    return called

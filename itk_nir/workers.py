"""Worker processes that call functions of this package: started once, replaced where they die, gone with their owner.

They are programs of their own (never forks: torch and CUDA do not survive one), which import the package and nothing of
the caller's script, so a script needs no ``if __name__ == "__main__"``. A call and its answer are pickles; arrays go
through the pipe as they are, without a copy. A worker ends when its pipe is closed, so none outlives the process that
started it, however that ended.
"""

from __future__ import annotations

import _thread
import json
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from multiprocessing.spawn import get_executable
from typing import Any

from itk_nir.errors import ItkNirError, OptionError, WorkerDied, one_line

#: Seconds that a worker has to end by itself and clear its hidden files away before it is killed.
GRACE = 5.0

#: What a worker runs: the path of modules first, then all the rest.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.raw.readline()); "
    "from itk_nir.workers import serve; serve()"
)

_COUNT = struct.Struct("<Q")


@dataclass(frozen=True)
class Answer:
    """What came of a call.

    Parameters
    ----------
    value : object
        What the function returned.
    error : Exception or None
        What it raised instead, or why it cannot be known.
    trace : str
        Where in the worker it was raised.
    """

    value: Any = None
    error: Exception | None = None
    trace: str = ""


# --- messages: a count of parts, their sizes, the parts ---------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Refuses what the worker could not find again: it does not have the caller's script."""

    def reducer_override(self, value: Any) -> Any:
        if getattr(value, "__module__", None) == "__main__" and isinstance(getattr(value, "__qualname__", None), str):
            raise OptionError(
                f"{value.__qualname__} is defined in the script that was started, where worker processes cannot find "
                "it; put it into a module of its own and import it, or use in_flight=1"
            )
        return NotImplemented


def packed(value: Any, what: str) -> list[Any]:
    """A value as the parts of a message.

    Parameters
    ----------
    value : object
        What can be pickled.
    what : str
        What to call it in a message.

    Returns
    -------
    list of buffer
        The pickle, then the memory of large arrays as it is.

    Raises
    ------
    OptionError
        What cannot be pickled, or is defined in the caller's script.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = BytesIO()
    try:
        _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    except OptionError:
        raise
    except Exception as error:  # each class says so in its own way
        raise OptionError(
            f"{what} cannot be sent to another process ({type(error).__name__}: {one_line(error)}); give files or "
            "plain values, or use in_flight=1"
        ) from error
    return [file.getbuffer(), *(b.raw() for b in buffers)]


def _write(file: Any, parts: Sequence[Any]) -> None:
    head = b"".join(_COUNT.pack(n) for n in (len(parts), *(memoryview(p).nbytes for p in parts)))
    for part in (head, *parts):
        left = memoryview(part).cast("B")
        while left:
            left = left[file.write(left) :]


def _read_bytes(file: Any, size: int) -> bytearray:
    out = bytearray(size)
    left = memoryview(out)
    while left:
        count = file.readinto(left)
        if not count:
            raise EOFError
        left = left[count:]
    return out


def _read(file: Any) -> list[bytearray]:
    """The parts of a message.

    Raises
    ------
    EOFError
        Nobody is at the other end.
    """
    (count,) = _COUNT.unpack(_read_bytes(file, _COUNT.size))
    sizes = [_COUNT.unpack(_read_bytes(file, _COUNT.size))[0] for _ in range(count)]
    return [_read_bytes(file, size) for size in sizes]


def _unpacked(parts: Sequence[bytearray]) -> Any:
    return pickle.loads(parts[0], buffers=parts[1:])


# --- in the worker ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer calls until the pipe is closed: what a worker process does."""
    # Whatever prints, or reads what is typed, is to have no part in the messages.
    calls, answers = (os.fdopen(os.dup(number), mode, buffering=0) for number, mode in ((0, "rb"), (1, "wb")))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # the caller has no standard error
        os.dup2(nowhere, 1)
    sys.stdout = sys.stderr
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    at_work = threading.Event()

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                waiting.put(_read(calls))
        waiting.put(None)
        if at_work.is_set():
            _interrupt()  # what is being written is taken away again, then it ends
        time.sleep(GRACE)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=listen, daemon=True).start()
    try:
        while (parts := waiting.get()) is not None:
            at_work.set()
            reply = _packed_answer(_answer(parts))
            at_work.clear()
            _write(answers, reply)
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(1)
    os._exit(0)  # nothing is left to be done, and the libraries would take their time


def _interrupt() -> None:
    """Raise KeyboardInterrupt in the main thread."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # a call that waits is woken too
    else:
        _thread.interrupt_main()


def _answer(parts: Sequence[bytearray]) -> Answer:
    try:
        function, arguments = _unpacked(parts)
        return Answer(function(*arguments))
    except Exception as error:
        trace = "" if isinstance(error, ItkNirError) else traceback.format_exc()
        return Answer(error=_portable(error), trace=trace)


def _packed_answer(answer: Answer) -> list[Any]:
    try:
        return packed(answer, "the result")
    except OptionError as error:
        return packed(Answer(error=error, trace=traceback.format_exc()), "the error")


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be pickled."""
    error.__traceback__ = None
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # each class says so in its own way
        pass
    return ItkNirError(f"{type(error).__name__}: {one_line(error)}")


def prepare(modules: Sequence[str]) -> None:
    """Import modules: the first thing that a worker is asked.

    Parameters
    ----------
    modules : sequence of str
        Their names.
    """
    for name in modules:
        import_module(name)


# --- in the caller's process -----------------------------------------------------------------------------------------


class _Worker:
    """One process after another that answers one call after another."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = modules
        self.process: subprocess.Popen[bytes] | None = None
        #: Whether one has ever been ready.
        self.proved = False
        self.ended = False
        #: Held while the pipe is written or closed.
        self.lock = threading.Lock()

    def answer(self, parts: Sequence[Any]) -> Answer:
        """What comes of a call; a process that dies of it is replaced at the next one."""
        try:
            if self.process is not None and self.process.poll() is not None:
                self._died(EOFError())  # while it had nothing to do: no fault of this call
            if self.process is None:
                self._start()
            return self._call(parts)
        except (EOFError, OSError) as error:
            return Answer(error=self._died(error))

    def _start(self) -> None:
        with self.lock:
            if self.ended:
                raise EOFError
            self.process = subprocess.Popen(
                [get_executable() or sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the caller, who ends the workers
            )
            for pipe in self._pipes():
                _widen(pipe)
            path = [entry or os.getcwd() for entry in sys.path]
            self._pipes()[0].write(json.dumps(path).encode("ascii") + b"\n")
        if (error := self._call(packed((prepare, (self.modules,)), "the first call")).error) is not None:
            raise OSError(one_line(error))
        self.proved = True

    def _pipes(self) -> tuple[Any, Any]:
        assert self.process is not None
        return self.process.stdin, self.process.stdout

    def _call(self, parts: Sequence[Any]) -> Answer:
        into, out = self._pipes()
        with self.lock:
            if self.ended:
                raise EOFError
            _write(into, parts)
        reply = _read(out)
        try:
            answer: Answer = _unpacked(reply)
        except Exception as error:  # each class says so in its own way
            return Answer(error=ItkNirError(f"the result cannot be read ({type(error).__name__}: {one_line(error)})"))
        return answer

    def _died(self, error: Exception) -> Exception:
        process, self.process = self.process, None
        if process is None:
            return WorkerDied(f"a worker process cannot be started ({one_line(error)}); use in_flight=1")
        _close(process.stdout)
        told = "" if isinstance(error, (EOFError, BrokenPipeError)) else f" ({one_line(error)})"
        status = self._end(process, 1.0)
        before = told if self.proved else f" before it was ready{told}"
        if status < 0:
            number = -status
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            memory = "; a system without free memory does so: a smaller in_flight needs less" if number == 9 else ""
            return WorkerDied(f"the worker process was ended by signal {name}{before}{memory}")
        return WorkerDied(f"the worker process ended with status {status}{before}; standard error may say why")

    def end(self, grace: float = 0.0) -> None:
        """Close the pipe, which ends the process; kill it where it does not."""
        if (process := self.process) is not None:
            self._end(process, grace)

    def _end(self, process: subprocess.Popen[bytes], grace: float) -> int:
        if self.lock.acquire(timeout=1.0):  # else it does not read, and is killed
            _close(process.stdin)
            self.lock.release()
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _widen(pipe: Any) -> None:
    """Have a pipe take more at once (Linux), so that the two ends wait less often for each other."""
    with suppress(ImportError, AttributeError, OSError):  # another system; a user's limit on the memory of pipes
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)


def _close(pipe: Any) -> None:
    with suppress(OSError):
        pipe.close()


class Workers:
    """Several workers that answer calls in any order.

    Parameters
    ----------
    count : int
        How many; each is started when there is a call for it.
    modules : sequence of str
        What they import before the first call.
    """

    def __init__(self, count: int, modules: Sequence[str]) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, Answer]] = queue.SimpleQueue()
        self._workers = [_Worker(modules) for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), daemon=True, name=f"itk-nir worker {number}")
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, worker: _Worker) -> None:
        while (call := self._calls.get()) is not None:
            key, parts = call
            answer = worker.answer(parts)
            del call, parts  # the images of the pair
            self._answers.put((key, answer))
            del answer
        if worker.process is not None:
            _close(worker.process.stdout)

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function called.

        Parameters
        ----------
        key : object
            Comes back with the answer.
        function : callable
            Of a module that the workers can import.
        *arguments : object
            What can be pickled; it is, at once.

        Raises
        ------
        OptionError
            What cannot be sent.
        """
        self._calls.put((key, packed((function, arguments), "the pair")))

    def next(self) -> tuple[Any, Answer]:
        """The next answer, whichever it is; waits for it.

        Returns
        -------
        tuple of (object, Answer)
            With the key of its call.

        Raises
        ------
        WorkerDied
            No worker can be started.
        """
        while True:
            with suppress(queue.Empty):  # on Windows, Ctrl-C is not seen within a call that waits
                key, answer = self._answers.get(timeout=1.0)
                break
        if isinstance(answer.error, WorkerDied) and not any(worker.proved for worker in self._workers):
            raise answer.error
        return key, answer

    def answered(self) -> bool:
        """Whether `next` need not wait.

        Returns
        -------
        bool
        """
        return not self._answers.empty()

    def close(self) -> None:
        """End all workers, whatever they do."""
        for worker in self._workers:
            worker.ended = True
        for _ in self._threads:
            self._calls.put(None)
        last = time.monotonic() + GRACE
        endings = [
            threading.Thread(target=worker.end, args=(max(0.0, last - time.monotonic()),), daemon=True)
            for worker in self._workers
        ]
        for thread in endings:
            thread.start()
        for thread in (*endings, *self._threads):
            thread.join()

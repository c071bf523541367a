"""What every command shares with its user: streams, messages, the progress bar, signals and the exit status."""

from __future__ import annotations

import codecs
import io
import logging
import os
import platform
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from itk_nir import __version__
from itk_nir.cli.signals import Ended, handled
from itk_nir.errors import InputError, ItkNirError, OptionError, OutOfMemory, SelfCheckWarning, escaped, one_line
from itk_nir.places import check_working_folder

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.report import Report
    from itk_nir.result import RegistrationResult

SUCCESS = 0
FAILED = 1
UNUSABLE = 2
UNSUPPORTED = 3
SELF_CHECK_FAILED = 4
HUNG_UP = 128 + 1  # as shells report a process that a signal ended
INTERRUPTED = 128 + 2
TERMINATED = 128 + 15

#: Exit status -> what it means.
STATUSES = {
    SUCCESS: "every file is complete",
    FAILED: "it failed",
    UNUSABLE: "the arguments or the input cannot be used",
    UNSUPPORTED: "files were written, but with --strict the evidence does not support the result",
    SELF_CHECK_FAILED: "files were written, but the self-check of a transform file failed",
    HUNG_UP: "the terminal was closed",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}

_log = logging.getLogger(__name__)


# --- running a command -----------------------------------------------------------------------------------------------


def exit_status(run: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command; what goes wrong becomes one line on standard error and an exit status.

    Parameters
    ----------
    run : callable
        The command; a number that it returns is the exit status.
    debug : bool
        Log to standard error what the package does, and the traceback of an error.

    Returns
    -------
    int
        One of `STATUSES`.
    """
    with _debug_log(debug), handled() as requests:
        try:
            with _one_line_warnings() as shown:
                check_working_folder()
                status = run()
        except (Ended, KeyboardInterrupt) as request:
            number = getattr(request, "number", signal.SIGINT)
            say(f"error: {requests.what(number)}")
            return 128 + number
        except Exception as error:
            _log.debug("%s", type(error).__name__, exc_info=True)
            if requests.number and not requests.keeps:  # a library that was being loaded said so in its own way
                say(f"error: {requests.what(requests.number)}")
                return 128 + requests.number
            text, status = _explained(error)
            say(f"error: {text}")
            return status
        if requests.number:
            if not requests.keeps:
                say(f"error: {requests.what(requests.number)}")
            return 128 + requests.number
        if any(issubclass(kind, SelfCheckWarning) for kind in shown):
            return SELF_CHECK_FAILED
        return status if isinstance(status, int) else SUCCESS


def _explained(error: Exception) -> tuple[str, int]:
    """One line about an error, and the exit status that goes with it."""
    if isinstance(error, (InputError, OptionError)):
        return one_line(error), UNUSABLE
    if isinstance(error, OutOfMemory):
        return one_line(error), FAILED
    if _is_out_of_memory(error):
        return f"out of memory ({one_line(error)}); use smaller images or another machine", FAILED
    if isinstance(error, (ItkNirError, OSError)):
        return one_line(error), FAILED
    kind = type(error).__name__
    if isinstance(error, ImportError):
        return (
            f"a library cannot be loaded ({kind}: {one_line(error)}); the installation is damaged, or memory is short",
            FAILED,
        )
    return f"internal error: {kind}: {one_line(error)}; run again with --debug and report it", FAILED


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch and ITK say so in the text of a RuntimeError."""
    text = str(error).lower()
    in_text = "out of memory" in text or "allocate memory" in text
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and in_text)


@contextmanager
def _debug_log(wanted: bool) -> Iterator[None]:
    """The log of the whole package on standard error while the block runs."""
    if not wanted:
        yield
        return
    package = logging.getLogger("itk_nir")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    _log.debug("itk-nir %s, Python %s, %s", __version__, platform.python_version(), platform.platform())
    _log.debug("%s", ", ".join(_library_versions()))
    _log.debug("%s", shlex.join(sys.argv))
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)


def _library_versions() -> Iterator[str]:
    """Name and version of what the package works with, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("numpy", "torch", "itk", "SimpleITK", "h5py", "safetensors"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not found"


@contextmanager
def _one_line_warnings() -> Iterator[list[type[Warning]]]:
    """Warnings of this package as ``itk-nir: warning: ...``; those of the libraries are no news to the user.

    Gives the list of the kinds that were shown.
    """
    shown: list[type[Warning]] = []

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"warning: {' '.join(str(message).split())}")
            shown.append(category)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SelfCheckWarning)  # it decides the exit status: never silenced
        warnings.showwarning = show
        yield shown


# --- streams ---------------------------------------------------------------------------------------------------------

#: Characters of our messages that a console may lack, and what stands for them there.
_PLAIN = {"→": "->", "…": "...", "–": "-", "×": "x", "²": "^2", "³": "^3", "°": " degrees"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: characters that cannot be written become ASCII ones, or escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error("itk_nir.plain", _plain)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Standard output and standard error that take every message, whatever they are connected to.

    Characters that the console's encoding lacks are replaced. A stream that was closed before the process began
    (``2>&-``, daemons) is connected to the null device, for good: else the next file to be opened would become
    standard error, and libraries would write their messages into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        used = [nowhere if stream is None or stream.closed else stream for stream in before]
        handlers = [_take_everything(stream) for stream in used]
        sys.stdout, sys.stderr = used
        try:
            yield
        finally:
            with suppress(OSError):  # after ``--help``; `tell` lets no failure pass
                _flush()
            for stream, handler in zip(used, handlers, strict=True):
                if isinstance(stream, io.TextIOWrapper) and not stream.closed:
                    stream.reconfigure(errors=handler)
            sys.stdout, sys.stderr = before


def _take_everything(stream: TextIO) -> str | None:
    """Let a stream replace what its encoding lacks; gives the error handler that it had before."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    before = stream.errors
    stream.reconfigure(errors="itk_nir.plain")
    return before


def _flush() -> None:
    """Flush standard output; where its reader has gone, what is left goes to the null device."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# --- messages --------------------------------------------------------------------------------------------------------


def say(message: str) -> None:
    """Tell the user something on standard error; where that cannot be, the work goes on."""
    if sys.stderr is not None:
        # A terminal that has gone, a stream that was closed, a signal in the middle of another message.
        with suppress(OSError, ValueError, RuntimeError):
            print(f"itk-nir: {message}", file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print a result on standard output; a reader that has seen enough (``| head``) is no error."""
    if sys.stdout is None:
        return
    with suppress(BrokenPipeError):  # what is left in the buffer goes with `_flush`
        print(text)
    _flush()


def names(paths: Iterable[str | os.PathLike[str]]) -> str:
    """File names for a line of text."""
    return ", ".join(escaped(os.fspath(path)) for path in paths)


def note_if_folder(prefix: str) -> None:
    """Tell the user where the start of the files' names is the name of a folder: they will lie beside it."""
    if Path(prefix).name and not prefix.endswith(("/", os.sep)) and Path(prefix).is_dir():
        name = escaped(prefix)
        say(
            f"note: {name} is a folder; the files are written beside it, with names that begin with {name}; "
            f"write {name}/ to put them into it"
        )


def require_matplotlib() -> None:
    """Refuse a picture where matplotlib is missing, before the work rather than after it."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ItkNirError("pictures need matplotlib: pip install 'itk-nir[picture]'")


def summary(result: RegistrationResult) -> str:
    """The numbers of a run that tell whether it went well, on one line.

    A linear result has no deformation to speak of; a run that was cut short has no similarity.
    """
    return report_line(result.report)


def report_line(report: Report) -> str:
    """The line of `summary`, from the report alone."""
    start, similarity = report.similarity_start, report.similarity
    parts: list[str] = []
    if similarity is not None:
        before = f"{start:.4f} to " if start is not None else ""
        parts.append(f"similarity {before}{similarity:.4f}")
    if report.folded_percent is not None:
        parts.append(f"folds {report.folded_percent:.4f} %")
    if report.inverse_error_mean_voxels is not None:
        parts.append(f"inverse error {report.inverse_error_mean_voxels:.3f} voxels")
    line = f"registered: {', '.join(parts)}" if parts else "registered"
    return line if report.verdict is None else f"{line}; verdict: {report.verdict.grade}"


# --- progress --------------------------------------------------------------------------------------------------------


class ProgressBar:
    """One line on a terminal: stage, level, iteration, metric, share done, time left. Call it with each `Progress`.

    Parameters
    ----------
    stream : file
        The terminal.
    width : int
        Characters of the bar.
    interval : float
        Seconds between two updates, at least.
    """

    def __init__(self, stream: TextIO, width: int = 24, interval: float = 0.1) -> None:
        self._stream = stream
        self._width = width
        self._interval = interval
        self._shown = -1.0
        self._done, self._left = ("━", "╌") if _can_show(stream, "━╌") else ("#", ".")

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if 0 <= now - self._shown < self._interval and progress.fraction < 1:
            return
        self._shown = now
        self._write(self.line(progress))

    def line(self, progress: Progress) -> str:
        """What is shown of an iteration."""
        done = min(max(progress.fraction, 0.0), 1.0)
        filled = round(done * self._width)
        bar = self._done * filled + self._left * (self._width - filled)
        left = f"{_clock(progress.seconds * (1 - done) / done)} left" if done > 0.01 else ""
        return (
            f"{progress.stage:<10} level {progress.level + 1}/{progress.levels}  "
            f"iteration {progress.iteration + 1:>3}/{progress.iterations}  "
            f"metric {progress.metric:.4f}  {bar} {done:4.0%}  {left}"
        )

    def message(self, text: str) -> None:
        """Show a text in the place of the bar."""
        self._write(text)

    def clear(self) -> None:
        """Leave an empty line."""
        self._write("")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the terminal was closed; the registration goes on
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()


@contextmanager
def progress() -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar while the block runs, where standard error is a terminal; else nothing."""
    stream = sys.stderr
    if stream is None or stream.closed or not stream.isatty():
        yield None
        return
    bar = ProgressBar(stream)
    bar.message("itk-nir: starting ...")
    try:
        yield bar
    finally:
        bar.clear()


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

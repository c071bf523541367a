"""What antsRegistration prints: its version, its help, and under ``-v 1`` what becomes of a line; iterations."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from itk_nir import __version__
from itk_nir.compat.options import OptionSupport
from itk_nir.programs.ants_apply_values import INTERPOLATIONS, interpolation_of
from itk_nir.programs.ants_common import ANTS_VERSION
from itk_nir.programs.ants_values import FLAGS, METRICS, NAMES, TRANSFORMS

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.programs.ants_plan import Call, Plan
    from itk_nir.programs.ants_request import Request

#: What ANTs prints for a convergence value that there is none of yet.
_NONE_YET = sys.float_info.max
#: Iterations that a convergence value is made of.
_WINDOW = 10
_HEADER = "DIAGNOSTIC,Iteration,metricValue,convergenceValue,ITERATION_TIME_INDEX,SINCE_LAST"


def values_of(request: Request) -> list[tuple[str, OptionSupport]]:
    """What becomes of every flag and value of a command line.

    Parameters
    ----------
    request : Request
        The command line.

    Returns
    -------
    list of (str, OptionSupport)
        Flag, or flag and value.
    """
    out = [(f"--{name}", FLAGS[name]) for name in dict.fromkeys(request.given)]
    for stage in request.stages:
        out.append((f"--transform {stage.transform}", TRANSFORMS[stage.transform].support))
        out += [(f"--metric {m.kind}", METRICS[m.kind].support) for m in stage.metrics if m.kind in METRICS]
    if "interpolation" in request.given:
        entry, _ = interpolation_of(request.interpolation)
        out.append((f"--interpolation {entry.name}", entry.support))
    return list(dict(out).items())


def help_text(program: str) -> str:
    """What ``--help`` prints of antsRegistration.

    Parameters
    ----------
    program : str
        Its name.

    Returns
    -------
    str
    """
    short = {long: f"-{letter}, " for letter, long in reversed(NAMES.items())}
    lines = [
        "",
        "COMMAND: ",
        f"     {program}",
        *_wrapped(
            "Takes the command lines of ANTs' antsRegistration, and registers by the neural fields of itk-nir. Each "
            "flag and value is honoured, approximated or refused, as is said here.",
            10,
        ),
        "",
        "OPTIONS: ",
        "     --version ",
        *_wrapped("the version of ANTs whose command lines are taken, and that of itk-nir", 10),
        "     -h, --help ",
        *_wrapped("this text", 10),
    ]
    for name, support in FLAGS.items():
        lines += [f"     {short.get(name, '')}--{name} ", *_wrapped(f"{support.status}: {support.meaning}", 10)]
    for title, table in (
        ("TRANSFORMS", {name: entry.support for name, entry in TRANSFORMS.items()}),
        ("METRICS", {name: entry.support for name, entry in METRICS.items()}),
        ("INTERPOLATIONS", {entry.name: entry.support for entry in INTERPOLATIONS.values()}),
    ):
        lines += ["", f"{title}: "]
        for name, support in table.items():
            lines += [f"     {name} ", *_wrapped(f"{support.status}: {support.meaning}", 10)]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * indent, subsequent_indent=" " * indent)


class Listener:
    """Prints as ANTs does under ``-v 1``, line by line.

    Parameters
    ----------
    write : callable
        Prints one line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._began = time.perf_counter()

    def request(self, request: Request) -> None:
        """Print what becomes of a command line.

        Parameters
        ----------
        request : Request
            The command line.
        """
        self._write("All_Command_lines_OK")
        self._write(f"itk-nir {__version__} in place of ANTs {ANTS_VERSION}")
        for what, support in values_of(request):
            self._write(f"  {what}: {support.status}: {support.meaning}")

    def plan(self, plan: Plan) -> None:
        """Print what was done otherwise.

        Parameters
        ----------
        plan : Plan
            What was done.
        """
        for note in plan.notes:
            self._write(f"  note: {note}")

    def __call__(self, number: int, call: Call) -> Callable[[Progress], Any]:
        """Give the callback of a registration.

        Parameters
        ----------
        number : int
            Of the registration, from 0.
        call : Call
            What it is.

        Returns
        -------
        callable
        """
        kinds = [f"{call.linear.capitalize()}Transform"] if call.linear != "none" else []
        kinds += ["deformable"] if call.deformable else []
        self._write(f"\nStage {number}\n\n*** Running {' and '.join(kinds)} registration ***\n")
        return _Lines(self._write)

    def end(self) -> None:
        """Print the time that all of it took."""
        self._write(f"\n\nTotal elapsed time: {time.perf_counter() - self._began:.4e}")


class _Lines:
    """The DIAGNOSTIC lines of one registration."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._level: tuple[str, int] | None = None
        self._values: list[float] = []
        self._count = 0
        self._before = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "sampling":
            return
        linear = progress.stage == "linear"
        if (progress.stage, progress.level) != self._level:
            self._level, self._values, self._count = (progress.stage, progress.level), [], 0
            self._write(_HEADER if linear else f"XX{_HEADER}")
        self._count += 1
        self._values = [*self._values, -progress.metric][-_WINDOW:]
        since, self._before = progress.seconds - self._before, progress.seconds
        self._write(
            f" {2 if linear else 1}DIAGNOSTIC, {self._count:5d}, {-progress.metric:.12e}, {self._convergence():.12e}, "
            f"{progress.seconds:.4e}, {since:.4e}, "
        )

    def _convergence(self) -> float:
        """How much the metric falls over its last values, as a share of the size that it has."""
        if len(self._values) < _WINDOW:
            return _NONE_YET
        size = max(map(abs, self._values))
        half = _WINDOW // 2
        older, newer = (sum(values) / half for values in (self._values[:half], self._values[half:]))
        return (older - newer) / (size * half) if size > 0 else 0.0

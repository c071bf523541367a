"""The self-test of a device: every op against float64 on the CPU, a registration whose answer is known, times.

It needs the engine and the phantom alone, no image library. A card that passes is what ``device="auto"`` takes from
then on (`itk_nir.engine.cards`).
"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.engine import cards, ops
from itk_nir.engine.execution import device_name, device_named, thread_count
from itk_nir.engine.op_cases import SHAPES, OpResult, compared, op_cases, value_and_gradients
from itk_nir.engine.op_times import OpTime, copied_bytes_per_second, op_times
from itk_nir.engine.ops import dispatch
from itk_nir.engine.torch_state import engine_state
from itk_nir.errors import OptionError
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.registration import register
from itk_nir.telling import versions

#: The true error that is left of that before the registration, at most; and the inverse's error, voxels, at most.
MOST_LEFT, MOST_INVERSE_ERROR = 0.35, 0.5
#: How far apart the maps of the device and of the CPU may be on average, voxels: rounding alone, over all iterations.
MOST_APART = 0.05

#: Voxels of the phantom: on a card, and on the CPU.
CARD_SIZE, CPU_SIZE = (96, 112, 96), (48, 56, 48)
#: Voxels along every axis of the phantom, at least, in 2D and 3D: of fewer the true error is that of the voxels, and a
#: sound device leaves more of it than `MOST_LEFT` (at these sizes at most 0.30, over unlike shapes).
LEAST_SIZE = {2: 40, 3: 48}
#: Voxels of the images that the ops are timed on: on a card those of a brain at 1 mm, and on the CPU.
CARD_TIMED, CPU_TIMED = (160, 192, 224), (48, 48, 48)


@dataclass(frozen=True)
class Registered:
    """How one device registered the phantom.

    Parameters
    ----------
    device : str
        Which.
    seconds : tuple of float
        Of the whole call, each time that it ran.
    stages : dict of str to float
        Of the last time.
    error_before, error_after : float
        Mean distance in the brain from where things belong, mm.
    folded_voxels : int
        Where the Jacobian determinant is not above 0.
    inverse_error_p99 : float
        99th percentile, voxels.
    peak_device_memory_mb : float or None
        Of the card.
    """

    device: str
    seconds: tuple[float, ...]
    stages: dict[str, float]
    error_before: float
    error_after: float
    folded_voxels: int
    inverse_error_p99: float
    peak_device_memory_mb: float | None


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found.

    Parameters
    ----------
    device : str
        As it was asked for.
    about : dict of str to str
        The card, its driver, versions, and what computes.
    copied_gb_per_second : float or None
        Read and written by a copy on the device.
    ops : tuple of OpResult
        Every op against float64.
    times : tuple of OpTime
        Of the ops of an iteration, at `timed_size`.
    timed_size, size : tuple of int
        Voxels ``(x, y, z)`` of the images that ops were timed on, and of the phantom.
    registrations : tuple of Registered
        On the device, and on the CPU where that is another one.
    apart : float or None
        Mean distance between the maps of both, voxels.
    warnings : tuple of str
        Told by the package while it ran.
    failures : tuple of str
        What does not hold; none where the device passes.
    remembered : str
        Where the verdict was kept, if it was.
    """

    device: str
    about: dict[str, str]
    copied_gb_per_second: float | None
    ops: tuple[OpResult, ...]
    times: tuple[OpTime, ...]
    timed_size: tuple[int, ...]
    size: tuple[int, ...]
    registrations: tuple[Registered, ...]
    apart: float | None
    warnings: tuple[str, ...]
    failures: tuple[str, ...]
    remembered: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON.

        Returns
        -------
        dict
        """
        return {"passed": self.passed, **asdict(self)}

    def text(self) -> str:
        """One page, to be read or put into a report.

        Returns
        -------
        str
            Several lines.
        """
        width = max(map(len, self.about))
        lines = [f"itk-nir selftest --device {self.device}", ""]
        lines += [f"{name:<{width}}  {value}" for name, value in self.about.items()]
        if self.copied_gb_per_second is not None:
            lines.append(f"{'copy':<{width}}  {self.copied_gb_per_second:.0f} GB/s read and written")
        lines += ["", f"{'op against float64 on the CPU':<38} {'value':>8} {'gradient':>8}  same bits twice"]
        lines += [_op_line(result) for result in self.ops]
        if self.times:
            size = "x".join(map(str, self.timed_size))
            lines += ["", f"{f'value and gradient at {size}':<38} {'ms':>8} {'copies of the image':>20}"]
            lines += [f"{t.name:<38} {1e3 * t.seconds:8.3f} {t.copies:20.1f}" for t in self.times]
        lines += ["", f"phantom of {'x'.join(map(str, self.size))} voxels, preset default"]
        lines += [_registration_line(r) for r in self.registrations]
        if self.apart is not None:
            lines.append(f"the two maps are {self.apart:.4f} voxels apart on average")
        lines += [f"warning: {w}" for w in self.warnings]
        lines += ["", *(f"FAILED: {f}" for f in self.failures)] if self.failures else ["", "passed"]
        if self.remembered:
            lines.append(f"kept in {self.remembered}")
        return "\n".join(lines)


def _op_line(result: OpResult) -> str:
    def number(x: float | None) -> str:
        return "" if x is None else f"{x:.0e}"

    end = "yes" if result.repeats else "NO"
    if result.error:
        end = result.error
    mark = "" if result.passed else "  <- FAILED"
    return f"{result.name:<38} {number(result.value_error):>8} {number(result.gradient_error):>8}  {end}{mark}"


def _registration_line(r: Registered) -> str:
    stages = ", ".join(f"{name} {s:.2f}" for name, s in r.stages.items() if name not in ("read", "total"))
    memory = "" if r.peak_device_memory_mb is None else f", {r.peak_device_memory_mb:.0f} MiB on the card"
    return (
        f"{r.device}: true error {r.error_before:.2f} to {r.error_after:.3f} mm, {r.folded_voxels} folded voxels, "
        f"inverse error {r.inverse_error_p99:.3f} voxels (p99); {', '.join(f'{s:.2f}' for s in r.seconds)} s "
        f"({stages}){memory}"
    )


def selftest(
    device: str = "cuda",
    *,
    size: Sequence[int] | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> SelfTest:
    """Test a device, and keep the verdict where it is a card.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    size : sequence of int, optional
        Voxels ``(x, y[, z])`` of the phantom, at least 40 along each of two axes or 48 along each of three.
    threads : int, optional
        CPU threads; all that the process may use by default.
    tell : callable
        Told in words what is done.

    Returns
    -------
    SelfTest

    Raises
    ------
    OptionError
        No such device, or a size for which the bounds do not hold.
    """
    where, count = device_named(device), thread_count(threads)
    on_card = where.type != "cpu"
    size = _checked_size(size) if size is not None else CARD_SIZE if on_card else CPU_SIZE
    timed = CARD_TIMED if on_card else CPU_TIMED
    failures: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with engine_state(where):
            about = _about(where)
            tell("ops against float64 ...")
            found = _ops(where, count)
            failures += [_failure(r) for r in found if not r.passed]
            tell("times ...")
            speed, times = _attempt(failures, "times", lambda: _times(where, timed, count)) or (None, [])
        tell("registrations ...")
        done = _attempt(failures, "registration", lambda: _registrations(device, where, size, count))
        registrations, apart, wrong = done or ([], None, [])
        failures += wrong
    told = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
    kept = None
    if where.type == "cuda":
        kept = cards.remember(cards.card(where), not failures)
    return SelfTest(
        device, about, None if speed is None else speed / 1e9, tuple(found), tuple(times), timed,
        size, tuple(registrations), apart, tuple(told), tuple(failures), "" if kept is None else str(kept),
    )  # fmt: skip


def _checked_size(size: Sequence[int]) -> tuple[int, ...]:
    """The size of the phantom.

    Raises
    ------
    OptionError
        Not two or three numbers, or a number for which the bounds do not hold.
    """
    voxels = tuple(size)
    if len(voxels) not in LEAST_SIZE or min(voxels) < LEAST_SIZE[len(voxels)]:
        wanted = " or ".join(f"{d} numbers of at least {least}" for d, least in LEAST_SIZE.items())
        raise OptionError(f"size is {wanted}, got {','.join(map(str, voxels))}; of fewer voxels a sound device fails")
    return voxels


def _attempt(failures: list[str], what: str, function: Callable[[], Any]) -> Any:
    """What a part of the test returns; None where it raises, which is noted: the rest is tested all the same."""
    try:
        return function()
    except Exception as error:
        failures.append(f"{what}: {type(error).__name__}: {error}".splitlines()[0])
        return None


def _about(where: torch.device) -> dict[str, str]:
    """The device and what computes there, by name."""
    about = {"device": device_name(where)}
    if where.type == "cuda":
        p = torch.cuda.get_device_properties(where)
        toolkit = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
        about |= {
            "card": f"capability {p.major}.{p.minor}, {p.multi_processor_count} multiprocessors, "
            f"{p.total_memory / 2**30:.1f} GiB",
            "driver": cards.driver_version() or "unknown",
            "toolkit": toolkit,
        }
    about["ops"] = _implementation(where)
    about |= {"cpu ops": ops.instruction_set()}
    about |= versions() | {"system": f"{platform.system()} {platform.machine()}, {sys.byteorder} endian"}
    return about


def _implementation(where: torch.device) -> str:
    """What the ops run on."""
    if where.type == "cpu":
        return f"native, {ops.instruction_set()}"
    begin = time.perf_counter()
    if dispatch.cuda_module(where) is None:
        return "torch's own (the kernels are not available)"
    return f"compiled kernels, loaded in {time.perf_counter() - begin:.1f} s"


def _ops(where: torch.device, threads: int) -> list[OpResult]:
    """All ops, in 3D and in 2D."""
    out = []
    for shape in SHAPES:
        for case in op_cases(shape, threads):
            wanted = value_and_gradients(case, torch.device("cpu"), torch.float64)
            result = compared(case, where, wanted)
            out.append(OpResult(**{**asdict(result), "name": f"{'2D' if shape[0] == 1 else '3D'} {case.name}"}))
    return out


def _failure(result: OpResult) -> str:
    if result.error:
        return f"{result.name}: {result.error}"
    if not result.keeps_nan:
        return f"{result.name}: what is not a number is taken for one"
    if not result.repeats:
        return f"{result.name}: not the same bits twice"
    slope = "" if result.gradient_error is None else f", gradient {result.gradient_error:.1e}"
    return f"{result.name}: off by {result.value_error:.1e}{slope}"


def _times(where: torch.device, size: tuple[int, int, int], threads: int) -> tuple[float, list[OpTime]]:
    """Bytes a second of a copy, and the time of the ops."""
    speed = copied_bytes_per_second(where, 1 << (28 if where.type == "cuda" else 26))
    x, y, z = size
    return speed, op_times((z, y, x), where, speed, threads)


@dataclass(frozen=True, eq=False)
class _Run:
    """A registration of the phantom, and where it takes the voxels of the brain, LPS mm."""

    registered: Registered
    mapped: NDArray[np.float64] = field(repr=False)


def _register(phantom: Phantom, device: str, threads: int, times: int) -> tuple[_Run, bool]:
    """The phantom registered, and whether every time gave the same bits."""
    brain = phantom.fixed_labels > 0
    points, truth = phantom.geometry.grid()[brain], phantom.displacement[brain].astype(float)
    seconds, fields = [], []
    for _ in range(times):
        result = register(
            (phantom.fixed, phantom.geometry), (phantom.moving, phantom.moving_geometry), device=device,
            threads=threads,
        )  # fmt: skip
        report = result.report
        seconds.append(report.seconds["total"])
        displacement = result.displacement
        fields.append(None if displacement is None else displacement.vectors.tobytes())
    mapped = result.mapping.map(points)
    run = Registered(
        device,
        tuple(seconds),
        dict(report.seconds),
        float(np.linalg.norm(truth, axis=1).mean()),
        float(np.linalg.norm(mapped - points - truth, axis=1).mean()),
        int(report.folded_voxels or 0),
        float(report.inverse_error_p99_voxels or 0.0),
        report.peak_device_memory_mb,
    )
    return _Run(run, mapped), len(set(fields)) == 1


def _registrations(
    device: str, where: torch.device, size: Sequence[int], threads: int
) -> tuple[list[Registered], float | None, list[str]]:
    """The phantom on the device and on the CPU, how far apart their maps are (voxels), and what does not hold."""
    phantom = brain_phantom(len(size), size)
    here, same = _register(phantom, device, threads, 2)
    runs, wrong, apart = [here], [], None
    if not same:
        wrong.append("registration: not the same bits twice")
    if where.type != "cpu":
        cpu = _register(phantom, "cpu", threads, 1)[0]
        runs.append(cpu)
        gap = np.linalg.norm(here.mapped - cpu.mapped, axis=1).mean()
        apart = float(gap) / min(phantom.geometry.spacing)
        if not apart <= MOST_APART:
            wrong.append(f"registration: the maps of {device} and the CPU are {apart:.3f} voxels apart on average")
    r = here.registered
    if not r.error_after <= MOST_LEFT * r.error_before:
        wrong.append(f"registration: true error {r.error_after:.3f} mm of {r.error_before:.2f} mm")
    if r.folded_voxels:
        wrong.append(f"registration: {r.folded_voxels} folded voxels")
    if not r.inverse_error_p99 <= MOST_INVERSE_ERROR:
        wrong.append(f"registration: inverse error {r.inverse_error_p99:.3f} voxels (p99)")
    return [run.registered for run in runs], apart, wrong

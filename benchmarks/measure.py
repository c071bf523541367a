"""One registration of one pair by one method: run as a whole process, measured from outside, and scored.

Wall and CPU time and the peak of the resident memory come from the operating system. On a virtual machine, what other
guests of the host took away during a run (Linux calls it stolen time) is part of its record, and a run that lost much
is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pairs import Pair
from peers import CANNOT_DO, THREAD_VARIABLES

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".venv"  # of the peers that need one of their own
DISTURBED = 10  # a run that lost more percent of its processor time than this is done again


@dataclass(frozen=True)
class Method:
    """One way to register. `requirement`: what pip is to install; `apart`: into an environment of its own."""

    title: str
    requirement: str = ""
    apart: bool = False


METHODS = {
    "nir-fast": Method("itk-nir fast"),
    "nir-default": Method("itk-nir default"),
    "nir-accurate": Method("itk-nir accurate"),
    "nir-paper": Method("itk-nir paper"),
    "greedy": Method("greedy NCC 100x100x40", "picsl-greedy"),
    "greedy-oasis": Method("greedy NCC 100x100x40, 1.5 mm 0.5 mm", "picsl-greedy"),
    "ants-quick": Method("ANTsPy antsRegistrationSyNQuick (MI)", "antspyx"),
    "ants-mattes": Method("ANTsPy SyNOnly / SyN (Mattes)", "antspyx"),
    "ants-syn": Method("ANTsPy antsRegistrationSyN (CC)", "antspyx"),
    "elastix": Method("elastix B-spline NCC", "itk-elastix"),
    "elastix-mi": Method("elastix B-spline MI", "itk-elastix"),
    "fireants": Method("FireANTs greedy CC, CPU", "fireants", apart=True),  # it pins an old SimpleITK
    "convexadam": Method("ConvexAdam MIND, CPU", "convexAdam", apart=True),
}


class RunFailed(Exception):
    """A method gave no result; the text says why."""


# --- one process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """Of one whole process: exit status, wall and CPU seconds, peak resident memory in GB (10⁹ bytes).

    stolen : percentage of the processor time this machine wanted that the host gave to others; None if unknown.
    """

    status: int
    wall: float
    cpu: float
    peak: float
    stolen: float | None


def processor_time() -> tuple[float, float] | None:
    """Time that this machine's processors worked, and time that the host held them, since it started; None if unknown.

    Linux: the first line of /proc/stat, see proc(5).
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = map(float, fields[:8])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, steal


def stolen_percent(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
    """Percentage of the processor time wanted between two `processor_time` that went to others; None if unknown."""
    if before is None or after is None:
        return None
    worked, held = after[0] - before[0], after[1] - before[1]
    return 100 * held / max(worked + held, 1.0)


def measure(command: Sequence[str], log: Path, *, threads: int, cwd: Path, timeout: float = 3600.0) -> Usage:
    """Run a command to its end, its output going to a log file, and see what it took.

    CPU time includes the processes that it started and waited for; the peak is that of the largest of them. A command
    that is not done after `timeout` seconds is killed (status -9).
    """
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    with log.open("wb") as output:
        processors, began = processor_time(), time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        killer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        killer.daemon = True
        killer.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            killer.cancel()
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    stolen = stolen_percent(processors, processor_time())
    return Usage(process.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e9, stolen)


# --- methods ---------------------------------------------------------------------------------------------------------


def interpreter(name: str) -> str:
    """The Python that runs a method: its own environment's where there is one."""
    own = ENVIRONMENTS / name / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def method_named(name: str) -> Method:
    """A method of `METHODS`, or one of this program's presets in another checkout: ``nir-default@FOLDER``.

    Raises
    ------
    KeyError : no such method.
    """
    own, _, checkout = name.partition("@")
    if not checkout:
        return METHODS[own]
    if not own.startswith("nir-"):
        raise KeyError(name)
    return replace(METHODS[own], title=f"{METHODS[own].title} @ {Path(checkout).name}")


def itk_nir_command(name: str = "") -> list[str]:
    """The installed command of this interpreter; without one, the package in the checkout.

    For a `name` with ``@FOLDER``, that of the environment which ``make setup`` has made there.
    """
    checkout = name.partition("@")[2]
    if checkout:
        return [str(Path(checkout).resolve() / ".venv" / "bin" / "itk-nir")]
    script = Path(sys.executable).with_name("itk-nir")
    return [str(script)] if script.exists() else [sys.executable, "-m", "itk_nir.cli"]


def version(name: str) -> str:
    """The installed version of what a method runs.

    Raises
    ------
    RunFailed : it is not installed; the text says how to install it.
    """
    if name.startswith("nir-"):
        command = [*itk_nir_command(name), "--version"]
        how = "make setup in that folder" if "@" in name else "pip install . in the checkout"
    else:
        command = [interpreter(name), str(HERE / "peers.py"), name, "--version"]
        peer = METHODS[name]
        how = f"python benchmarks/compare.py --install {name}" if peer.apart else f"pip install {peer.requirement}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    except FileNotFoundError:
        raise RunFailed(f"not installed: {how}") from None
    if done.returncode:
        raise RunFailed(f"not installed: {how}")
    return done.stdout.split()[-1]


def install(name: str) -> None:
    """Make the environment of a peer that cannot share the one this program runs in.

    Packages that are installed here already are seen from there and not installed again, unless the peer wants
    another version of one: that one goes into its environment only.
    """
    folder = ENVIRONMENTS / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    asked = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    Path(asked.stdout.strip(), "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", METHODS[name].requirement], check=True)


def run(name: str, pair: Pair, folder: Path, threads: int, timeout: float) -> Usage:
    """Register a pair with a method; leaves ``transforms.json`` and the files it names in the folder."""
    inputs = ["--fixed", str(pair.fixed), "--moving", str(pair.moving), "--linear", pair.linear]
    inputs += ["--threads", str(threads)]
    if pair.fixed_mask:
        inputs += ["--fixed-mask", str(pair.fixed_mask)]
    log = folder / "log.txt"
    if name.startswith("nir-"):
        preset = name.removeprefix("nir-").partition("@")[0]
        command = [*itk_nir_command(name), "register", "--preset", preset, "--output", f"{folder}/", *inputs]
        names = {"forward": "Composite.h5", "inverse": "InverseComposite.h5"}
        manifest = {direction: [{"file": file}] for direction, file in names.items()}
        (folder / "transforms.json").write_text(json.dumps(manifest))
    else:
        command = [interpreter(name), str(HERE / "peers.py"), name, "--output", str(folder), *inputs]
    usage = measure(command, log, threads=threads, cwd=HERE.parent, timeout=timeout)
    if usage.status:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1].replace(str(folder), "…")
        if usage.status == CANNOT_DO:
            raise RunFailed(last)
        if usage.status == -signal.SIGKILL and usage.wall >= timeout:
            raise RunFailed(f"not done after {usage.wall:.0f} s ({usage.cpu:.0f} CPU s), stopped")
        raise RunFailed(f"failed with status {usage.status} after {usage.wall:.0f} s: {last[:200]}")
    if not name.startswith("nir-"):
        measure([*command, "--invert"], folder / "invert.txt", threads=threads, cwd=HERE.parent, timeout=timeout)
    return usage


# --- scores ----------------------------------------------------------------------------------------------------------


def score(pair: Pair, manifest: Path | None) -> dict[str, Any]:
    """The numbers of `score.py`, made in a process of their own: this one stays small."""
    command = [sys.executable, str(HERE / "score.py"), "--fixed", str(pair.fixed), "--moving", str(pair.moving)]
    files = {
        "manifest": manifest,
        "fixed-seg": pair.fixed_seg,
        "moving-seg": pair.moving_seg,
        "fixed-mask": pair.fixed_mask,
        "fixed-landmarks": pair.fixed_landmarks,
        "moving-landmarks": pair.moving_landmarks,
    }
    for name, path in files.items():
        command += [f"--{name}", str(path)] if path else []
    command += ["--labels", *map(str, pair.labels)] if pair.labels else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"not scored: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fingerprint(manifest: Path) -> str:
    """Of the transform's files: the same bits need not be scored twice."""
    total = hashlib.sha256(manifest.read_bytes())
    content = json.loads(manifest.read_text())
    for step in [*content["forward"], *content.get("inverse", [])]:
        with (manifest.parent / step["file"]).open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def least_disturbed(once: Callable[[], T], stolen: Callable[[T], float], tries: int, heading: str) -> T:
    """What `once` gave, repeated while the host disturbed it: of at most `tries` runs the one that lost least.

    stolen : percentage that a run lost; heading : what the lines of progress begin with.
    A repetition that fails takes nothing from the runs before it.
    """
    best = last = once()
    for _ in range(tries - 1):
        if stolen(best) <= DISTURBED:
            break
        say(f"{heading}  again: {stolen(last):.0f} % of it was stolen")
        try:
            last = once()
        except RunFailed as failure:
            say(f"{heading}  {failure}")
            break
        best = min(best, last, key=stolen)
    return best


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def processor_name() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

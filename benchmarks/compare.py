"""Run this program and its peers on the same pairs, and say how accurate, how regular and how fast each one is.

Every registration is a whole process, timed from its start to its end (reading, start-up and writing included), with
its CPU time and the peak of its resident memory from the operating system. On each pair the methods take turns
(A B C A B C …), so that a disturbance of the machine meets all of them, and medians over the turns are reported. On a
virtual machine, what other guests of the host took away during a run is part of its record, and a run that lost much is
done again. The transforms are scored from the files that each program wrote, by `score.py`. See README.md beside this
file.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pairs import NoPairs, Pair, data_folder, find_pairs
from peers import CANNOT_DO, THREAD_VARIABLES

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".venv"  # of the peers that need one of their own
DISTURBED = 10  # a run that lost more percent of its processor time than this is done again
DEFAULT_METHODS = "nir-fast,nir-default,nir-accurate,greedy,greedy-oasis"


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
    "fireants": Method("FireANTs greedy CC, CPU", "fireants", apart=True),  # it pins an old SimpleITK
    "convexadam": Method("ConvexAdam MIND, CPU", "convexAdam", apart=True),
}

# The columns of a table: key in the results, heading, format. Those that no row has are left out.
COLUMNS = (
    ("dice", "Dice", "{:.4f}"),
    ("tre", "TRE mm", "{:.3f}"),
    ("lncc", "LNCC", "{:.4f}"),
    ("folds", "folds %", "{:.4f}"),
    ("sd_log_jacobian", "SD log J", "{:.3f}"),
    ("inverse_mean", "inverse mean", "{:.3f}"),
    ("inverse_p99", "inverse p99", "{:.3f}"),
    ("wall", "time s", "{:.1f}"),
    ("cpu", "CPU s", "{:.1f}"),
    ("stolen", "stolen %", "{:.0f}"),
    ("peak", "peak GB", "{:.2f}"),
    ("wall_ratio", "time / greedy", "{:.3f}"),
    ("peak_ratio", "memory / greedy", "{:.2f}"),
)


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


def _processor_time() -> tuple[float, float] | None:
    """Time that this machine's processors worked, and time that the host held them, since it started; None if unknown.

    Linux: the first line of /proc/stat, see proc(5).
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = map(float, fields[:8])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, steal


def _stolen(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float | None:
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
        processors, began = _processor_time(), time.perf_counter()
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
    stolen = _stolen(processors, _processor_time())
    return Usage(process.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e9, stolen)


# --- methods ---------------------------------------------------------------------------------------------------------


def interpreter(name: str) -> str:
    """The Python that runs a method: its own environment's where there is one."""
    own = ENVIRONMENTS / name / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def _itk_nir() -> list[str]:
    """The installed command of this interpreter; without one, the package in the checkout."""
    script = Path(sys.executable).with_name("itk-nir")
    return [str(script)] if script.exists() else [sys.executable, "-m", "itk_nir.cli"]


def version(name: str) -> str:
    """The installed version of what a method runs.

    Raises
    ------
    RunFailed : it is not installed; the text says how to install it.
    """
    if name.startswith("nir-"):
        command = [*_itk_nir(), "--version"]
        how = "pip install . in the checkout"
    else:
        command = [interpreter(name), str(HERE / "peers.py"), name, "--version"]
        method = METHODS[name]
        how = f"python benchmarks/compare.py --install {name}" if method.apart else f"pip install {method.requirement}"
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
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
        preset = name.removeprefix("nir-")
        command = [*_itk_nir(), "register", "--preset", preset, "--output", f"{folder}/", *inputs]
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


# --- the comparison --------------------------------------------------------------------------------------------------


def compare(
    pair: Pair,
    methods: Sequence[str],
    options: argparse.Namespace,
    work: Path,
    done: Callable[[dict[str, Any]], None],
) -> None:
    """All turns of all methods on one pair; `done` is called after each run with all that there is so far."""
    result: dict[str, Any] = {
        "pair": pair.name,
        "linear": pair.linear,
        "masked": pair.fixed_mask is not None,
        "before": score(pair, None),
        "runs": {},
        "failed": {},
    }
    scored: dict[str, dict[str, Any]] = {}
    for turn in range(options.repeats):
        for name in methods:
            if name in result["failed"] or (turn > 0 and name in options.once):
                continue
            heading = f"{pair.name}  {name}  turn {turn + 1}"
            try:
                found = least_disturbed(
                    partial(_once, pair, name, options, work, scored), lambda run: run.get("stolen", 0.0),
                    options.tries, heading,
                )  # fmt: skip
            except RunFailed as failure:
                result["failed"][name] = str(failure)
                say(f"{heading}  {failure}")
            else:
                result["runs"].setdefault(name, []).append(found)
                say(f"{heading}  {_brief(found)}")
            done(result)


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


def _once(
    pair: Pair, name: str, options: argparse.Namespace, work: Path, scored: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What one run took and gave; `scored`: the scores of the transforms seen so far."""
    folder = Path(tempfile.mkdtemp(prefix=f"{pair.name.replace('/', '_')}_{name}_", dir=work))
    load = os.getloadavg()[0]
    try:
        usage = run(name, pair, folder, options.threads, options.timeout)
        manifest = folder / "transforms.json"
        print_ = fingerprint(manifest)
        if print_ not in scored:
            scored[print_] = score(pair, manifest)
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    stolen = {} if usage.stolen is None else {"stolen": usage.stolen}
    return {"wall": usage.wall, "cpu": usage.cpu, "peak": usage.peak, **stolen, "load": load, **scored[print_]}


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Medians over the turns, by method, and the ratios to greedy where it took part."""
    rows = {}
    for name, runs in result["runs"].items():
        keys = [key for key, _, _ in COLUMNS if all(key in run for run in runs)]
        rows[name] = {key: statistics.median(run[key] for run in runs) for key in keys}
    return with_ratios(rows, result.get("earlier", {}))


def with_ratios(rows: dict[str, dict[str, float]], earlier: Iterable[str] = ()) -> dict[str, dict[str, float]]:
    """The rows, each with its time and memory divided by greedy's; only those of one run are compared."""
    reference = rows.get("greedy")
    if reference is None or "greedy" in earlier:
        return rows
    return {
        name: row if name in earlier else row | {f"{key}_ratio": row[key] / reference[key] for key in ("wall", "peak")}
        for name, row in rows.items()
    }


def with_earlier(result: dict[str, Any], content: dict[str, Any] | None, methods: Iterable[str]) -> dict[str, Any]:
    """The result, and what an earlier page (its JSON) has of the same pair by methods that take no part this time."""
    old = next((each for each in (content or {}).get("results", []) if each["pair"] == result["pair"]), None)
    if content is None or old is None:
        return result
    out = result | {"runs": dict(result["runs"]), "failed": dict(result["failed"]), "earlier": {}}
    for kind in ("runs", "failed"):
        for name in old[kind]:
            if name not in methods:
                out[kind][name] = old[kind][name]
                out["earlier"][name] = old.get("earlier", {}).get(name, content["date"])
    return out


def over_pairs(summaries: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the pairs of the methods that did every one of them."""
    names = [name for name in summaries[0] if all(name in each for each in summaries)]
    keys = [key for key, _, _ in COLUMNS if not key.endswith("_ratio")]
    apart = [name for name in names if not all("wall_ratio" in each[name] for each in summaries)]
    return with_ratios(
        {
            name: {
                key: statistics.fmean(each[name][key] for each in summaries)
                for key in keys
                if all(key in each[name] for each in summaries)
            }
            for name in names
        },
        apart,
    )


def before_over_pairs(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the pairs of the scores before registration."""
    keys = [key for key, _, _ in COLUMNS if all(key in result["before"] for result in results)]
    return {key: statistics.fmean(result["before"][key] for result in results) for key in keys}


# --- what is written -------------------------------------------------------------------------------------------------


def table(
    before: dict[str, float], rows: dict[str, dict[str, float]], earlier: dict[str, str] | None = None
) -> list[str]:
    """Lines of a Markdown table; `earlier`: methods that were measured in another run, and when."""
    columns = [column for column in COLUMNS if any(column[0] in row for row in (before, *rows.values()))]

    def line(title: str, row: dict[str, float]) -> str:
        return (
            "| "
            + " | ".join([title, *(form.format(row[key]) if key in row else "–" for key, _, form in columns)])
            + " |"
        )

    heads = ["method", *(head for _, head, _ in columns)]
    ruler = ["---", *("---:" for _ in columns)]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ruler)]
    dates = earlier or {}
    titles = {name: METHODS[name].title + (f" ({dates[name]})" if name in dates else "") for name in rows}
    return [*lines, line("before", before), *(line(titles[name], row) for name, row in rows.items())]


def report(name: str, facts: dict[str, Any], results: Sequence[dict[str, Any]], picture: str | None) -> str:
    """The Markdown page of one set of pairs."""
    threads = facts["threads"]
    # What was done, which may be less than was asked for: the page is written after every run.
    now = [runs for each in results for key, runs in each["runs"].items() if key not in each.get("earlier", {})]
    repeats = max(map(len, now), default=0)
    lines = [f"# {name}", ""]
    lines += [
        f"{facts['date']}, {facts['processor']} ({facts['cores']} cores), {threads} thread{'s' * (threads > 1)}, "
        f"medians over {repeats} turn{'s' * (repeats > 1)} in alternation"
        + (f" ({', '.join(METHODS[key].title for key in facts['once'])}: the first only)" if facts.get("once") else "")
        + ". Made with",
        "",
        f"    {facts['command']}",
        "",
    ]
    lines += [facts["note"], ""] if facts.get("note") else []
    summaries = [summary(result) for result in results]
    if len(results) > 1 and any(over_pairs(summaries)):
        lines += [f"## Mean over {len(results)} pairs", ""]
        lines += [*table(before_over_pairs(results), over_pairs(summaries), results[0].get("earlier")), ""]
    for result, rows in zip(results, summaries, strict=True):
        first = result["before"]
        stages = "deformable only" if result["linear"] == "none" else f"{result['linear']} first"
        mask = ", fixed mask" if result["masked"] else ""
        lines += [
            f"## {result['pair']}",
            "",
            f"{stages}{mask}. Inside: {first['inside']}, {first['inside_voxels']} voxels.",
            "",
        ]
        earlier = result.get("earlier", {})
        lines += [*table(first, rows, earlier), ""]
        if earlier:
            lines += ["With a date: from an earlier run of this page, whose times are not of the same hours.", ""]
        lines += [f"- {METHODS[method].title}: {reason}" for method, reason in result["failed"].items()]
        lines += [""] * bool(result["failed"])
    if picture:
        lines += [f"![Accuracy against time]({picture})", ""]
    lines += [
        "Dice, TRE: mean over labels or landmarks. LNCC, folds, SD log J, inverse error (forward then inverse, in "
        "voxels): inside. Time, CPU and peak memory: of the whole process. Stolen: how much of the processor time that "
        "this virtual machine wanted its host gave to others, which makes the time longer. – : not known, or the "
        "program gives none.",
        "",
        "Versions: " + ", ".join(f"{METHODS[key].title} {value}" for key, value in facts["versions"].items()) + ".",
    ]
    lines += [f"Skipped: {METHODS[key].title}: {why}." for key, why in facts["skipped"].items()]
    return "\n".join(lines) + "\n"


def plot(name: str, results: Sequence[dict[str, Any]], path: Path) -> bool:
    """Accuracy against time, as a PNG; False where matplotlib is missing or nothing was measured."""
    summaries = [summary(result) for result in results]
    rows = over_pairs(summaries) if len(results) > 1 else summaries[0]
    if not rows:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        say("no plot: pip install matplotlib")
        return False
    key, label = next(
        (key, label)
        for key, label in (("dice", "mean Dice"), ("tre", "landmark error (mm)"), ("lncc", "local correlation"))
        if all(key in row for row in rows.values())
    )
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for ours, colour in ((True, "#c1272d"), (False, "#3b5b7a")):
        chosen = sorted(
            (row["wall"], row[key], method) for method, row in rows.items() if method.startswith("nir-") == ours
        )
        if ours:
            axes.plot([x for x, _, _ in chosen], [y for _, y, _ in chosen], color=colour, linewidth=1, alpha=0.5)
        for x, y, method in chosen:
            axes.scatter([x], [y], s=40, color=colour, marker="o" if ours else "s", zorder=3)
            axes.annotate(METHODS[method].title, (x, y), (6, 5), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xscale("log")
    ticks = [second for second in _TICKS if 0.4 * min(row["wall"] for row in rows.values()) <= second]
    ticks = [second for second in ticks if second <= 4 * max(row["wall"] for row in rows.values())]
    axes.set_xticks(ticks, [str(second) for second in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ticks[0], ticks[-1])
    axes.margins(y=0.15)
    if key == "tre":
        axes.invert_yaxis()
    axes.set_xlabel("whole-process time (s)")
    axes.set_ylabel(f"{label}{', better is up' if key == 'tre' else ''}")
    axes.set_title(f"{name}: {len(results)} pair{'s' * (len(results) > 1)}", loc="left", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return True


_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)


def save(folder: Path, name: str, facts: dict[str, Any], results: Sequence[dict[str, Any]], *, with_plot: bool) -> None:
    """Write NAME.json and NAME.md, and NAME.png when asked, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.png"
    drawn = with_plot and plot(name, results, picture)
    content = facts | {"set": name, "results": [dict(result, summary=summary(result)) for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / f"{name}.md").write_text(report(name, facts, results, picture.name if drawn else None))


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def _brief(found: dict[str, Any]) -> str:
    return "  ".join(f"{head} {form.format(found[key])}" for key, head, form in COLUMNS if key in found)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# --- arguments -------------------------------------------------------------------------------------------------------


def chosen_methods(text: str) -> list[str]:
    """Names from a comma-separated list; ``all`` is every one."""
    if text == "all":
        return list(METHODS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"no method {', '.join(unknown) or text!r}; there are {', '.join(METHODS)}, all"
        )
    return list(dict.fromkeys(names))


def chosen_pairs(pairs: Iterable[Pair], patterns: Sequence[str]) -> list[Pair]:
    """Those whose name, or whose set's name, matches one of the shell patterns; all without patterns."""
    return [
        pair
        for pair in pairs
        if not patterns or any(fnmatch.fnmatch(name, want) for want in patterns for name in (pair.name, pair.set))
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare itk-nir with other programs on pairs of images.")
    parser.add_argument(
        "--data", help="folder of pairs (default: ITK_NIR_DATA, else ../shared/data beside the checkout)"
    )
    parser.add_argument("--pairs", default="", help="names or patterns, comma-separated (default: every pair found)")
    parser.add_argument(
        "--methods",
        type=chosen_methods,
        default=DEFAULT_METHODS,
        help=f"comma-separated, or all (default: {DEFAULT_METHODS}; there are {', '.join(METHODS)})",
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each method (default: 3)")
    parser.add_argument(
        "--once", type=chosen_methods, default=[], help="methods that take part in the first turn only, comma-separated"
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=2,
        help=f"runs in a turn at most, where one lost over {DISTURBED} %% of its processor time to other guests of "
        "the host; the one that lost least counts (default: 2)",
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the rows of the page whose methods take no part this time, with a date"
    )
    parser.add_argument(
        "--note",
        default="",
        help="a sentence for the page: what a reader must know of these runs; --add keeps that of the earlier page",
    )
    parser.add_argument("--threads", type=int, default=2, help="for every method (default: 2)")
    parser.add_argument("--linear", choices=("none", "affine"), help="in place of what the layout of the pairs says")
    parser.add_argument("--labels", help="labels whose Dice counts, comma-separated, in place of the layout's")
    parser.add_argument(
        "--output", type=Path, default=HERE.parent / "docs" / "benchmarks", help="default: docs/benchmarks"
    )
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one registration (default: 3600)")
    parser.add_argument("--keep", action="store_true", help="keep transforms and logs, in benchmarks/output/")
    parser.add_argument("--list", action="store_true", help="list the pairs and the methods, and stop")
    parser.add_argument(
        "--install",
        choices=[name for name in METHODS if METHODS[name].apart],
        help="make a peer's own environment, and stop",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit status 0 when every method that is installed did every pair it can do."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(words)
    if options.install:
        install(options.install)
        return 0
    if min(options.repeats, options.threads, options.tries) < 1:
        parser.error("--repeats, --threads and --tries are at least 1")
    try:
        folder = data_folder(options.data)
        pairs = chosen_pairs(find_pairs(folder), [word for word in options.pairs.split(",") if word])
        if not pairs:
            raise NoPairs(f"no pair matches {options.pairs}; --list shows what there is")
    except NoPairs as error:
        parser.error(str(error))
    if options.linear:
        pairs = [replace(pair, linear=options.linear) for pair in pairs]
    if options.labels:
        pairs = [replace(pair, labels=tuple(map(int, options.labels.split(",")))) for pair in pairs]

    versions, skipped = {}, {}
    for name in options.methods if not options.list else METHODS:
        try:
            versions[name] = version(name)
        except RunFailed as reason:
            skipped[name] = str(reason)
    if options.list:
        print("\n".join(pair.name for pair in pairs))
        print("\n".join(f"{name}: {METHODS[name].title}, {versions.get(name) or skipped[name]}" for name in METHODS))
        return 0
    for name, why in skipped.items():
        say(f"skipped {name}: {why}")

    work = _work_folder(options.keep)
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "threads": options.threads,
        "repeats": options.repeats,
        "once": options.once,
        "note": options.note,
        "command": _command(words),
        "versions": versions,
        "skipped": skipped,
    }
    by_set: dict[str, dict[str, dict[str, Any]]] = {}
    unusable: list[str] = []
    pages = {each.set: options.output / f"{each.set}.json" for each in pairs if options.add}
    old = {name: json.loads(page.read_text()) for name, page in pages.items() if page.exists()}

    def write(name: str, *, with_plot: bool) -> None:
        before = old.get(name, {})
        known = before.get("versions", {}) | versions
        note = options.note or before.get("note", "")  # what it says of the rows that are kept still holds
        page = facts | {"versions": known, "note": note}
        save(options.output, name, page, list(by_set[name].values()), with_plot=with_plot)

    try:
        for pair in pairs:

            def keep(result: dict[str, Any], name: str = pair.set) -> None:
                by_set.setdefault(name, {})[result["pair"]] = with_earlier(result, old.get(name), versions)
                write(name, with_plot=False)  # after every run: what is done is not lost

            try:
                compare(_gray(pair, work), list(versions), options, work, keep)
            except RunFailed as failure:  # the pair itself cannot be scored
                say(f"{pair.name}  {failure}")
                unusable.append(pair.name)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    # The plots last: matplotlib makes this process large, and a child's peak memory starts at its parent's.
    for name in by_set:
        write(name, with_plot=True)
        print(options.output / f"{name}.md")
    broken = [
        why
        for results in by_set.values()
        for result in results.values()
        for method, why in result["failed"].items()
        if method in versions
    ]
    return 1 if unusable or any(why.startswith(("failed", "not scored")) for why in broken) else 0


def _work_folder(keep: bool) -> Path:
    if not keep:
        return Path(tempfile.mkdtemp(prefix="itk-nir-benchmark-"))
    folder = HERE / "output" / datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    return folder


def _command(words: Sequence[str]) -> str:
    """The command as given, but for where the data and the output are."""
    shown: list[str] = []
    for word in words:
        key = shown[-1] if shown else ""
        shown.append({"--data": "DATA", "--output": "OUTPUT"}.get(key, word))
    return "python benchmarks/compare.py " + shlex.join(shown)


def _gray(pair: Pair, work: Path) -> Pair:
    """The pair with its colour images, if any, as gray ones of unit spacing: every program takes those.

    Their landmarks are in pixels, which are then also mm.
    """
    script = (
        "import sys, SimpleITK as sitk\n"
        "image = sitk.ReadImage(sys.argv[1])\n"
        "if image.GetNumberOfComponentsPerPixel() == 3:\n"
        "    parts = [sitk.VectorIndexSelectionCast(image, k, sitk.sitkFloat32) for k in range(3)]\n"
        "    gray = sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), parts))\n"
        "    gray.SetSpacing((1.0, 1.0))\n"
        "    sitk.WriteImage(gray, sys.argv[2])\n"
    )
    made: dict[str, Any] = {}
    for side in ("fixed", "moving"):
        path: Path = getattr(pair, side)
        if path.suffix.lower() in (".jpg", ".png", ".tif", ".tiff"):
            gray = work / f"{pair.name.replace('/', '_')}_{side}.nii.gz"
            subprocess.run([sys.executable, "-c", script, str(path), str(gray)], check=True)
            if gray.exists():
                made[side] = gray
    return replace(pair, **made)


if __name__ == "__main__":
    sys.exit(main())

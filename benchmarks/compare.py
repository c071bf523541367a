"""Run this program and its peers on the same pairs, and say how accurate, how regular and how fast each one is.

Every registration is a whole process, timed from its start to its end, reading, start-up and writing included
(`measure.py`). On each pair the methods take turns (A B C A B C …), so that a disturbance of the machine meets all of
them, and medians over the turns are reported (`page.py`). The transforms are scored from the files that each program
wrote (`score.py`). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from measure import (
    DISTURBED,
    HERE,
    METHODS,
    RunFailed,
    fingerprint,
    install,
    least_disturbed,
    method_named,
    processor_name,
    run,
    say,
    score,
    version,
)
from page import brief, save, with_earlier
from pairs import NoPairs, Pair, data_folder, find_pairs

DEFAULT_METHODS = "nir-fast,nir-default,nir-accurate,greedy,greedy-oasis"


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
                say(f"{heading}  {brief(found)}")
            done(result)


def _once(
    pair: Pair, name: str, options: argparse.Namespace, work: Path, scored: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What one run took and gave; `scored`: the scores of the transforms seen so far."""
    start = f"{pair.name}_{name}_".replace(os.sep, "_")
    folder = Path(tempfile.mkdtemp(prefix=start, dir=work))
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


# --- arguments -------------------------------------------------------------------------------------------------------


def chosen_methods(text: str) -> list[str]:
    """Names from a comma-separated list; ``all`` is every one."""
    if text == "all":
        return list(METHODS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if not _is_method(name)]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"no method {', '.join(unknown) or text!r}; there are {', '.join(METHODS)}, all"
        )
    return list(dict.fromkeys(names))


def _is_method(name: str) -> bool:
    try:
        return bool(method_named(name))
    except KeyError:
        return False


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
        pairs = _wanted_pairs(options)
    except NoPairs as error:
        parser.error(str(error))
    versions, skipped = _installed(METHODS if options.list else options.methods)
    if options.list:
        print("\n".join(pair.name for pair in pairs))
        print("\n".join(f"{name}: {METHODS[name].title}, {versions.get(name) or skipped[name]}" for name in METHODS))
        return 0
    for name, why in skipped.items():
        say(f"skipped {name}: {why}")

    work = _work_folder(options.keep)
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": processor_name(),
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
    failures = [
        why for results in by_set.values() for result in results.values() for why in _failures(result, versions)
    ]
    return 1 if unusable or failures else 0


def _wanted_pairs(options: argparse.Namespace) -> list[Pair]:
    """The pairs that were asked for, as the options change them."""
    folder = data_folder(options.data)
    pairs = chosen_pairs(find_pairs(folder), [word for word in options.pairs.split(",") if word])
    if not pairs:
        raise NoPairs(f"no pair matches {options.pairs}; --list shows what there is")
    if options.linear:
        pairs = [replace(pair, linear=options.linear) for pair in pairs]
    if options.labels:
        pairs = [replace(pair, labels=tuple(map(int, options.labels.split(",")))) for pair in pairs]
    return pairs


def _installed(methods: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Method → its version, and method → why it cannot be run."""
    versions, skipped = {}, {}
    for name in methods:
        try:
            versions[name] = version(name)
        except RunFailed as reason:
            skipped[name] = str(reason)
    return versions, skipped


def _failures(result: dict[str, Any], methods: Iterable[str]) -> list[str]:
    """Why methods of this run failed; what a method cannot do, or not in the time given, is no failure."""
    reasons = [why for method, why in result["failed"].items() if method in methods]
    return [why for why in reasons if why.startswith(("failed", "not scored"))]


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
    """The pair with its colour images, if any, as grey ones of unit spacing: every program takes those.

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

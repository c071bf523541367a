"""Pairs a minute: the same pairs with 1, 2, 4, ... of them in flight, on a card or a CPU.

    python benchmarks/many.py --device cuda
    python benchmarks/many.py --device cpu --in-flight 1,2 --turns 3
    python benchmarks/many.py --device cpu --in-flight 1x2,2x1      # pairs x threads

The pairs are synthetic brains with several deformations, handed over in memory; no image library is needed. The first
results of every run, one for each pair in flight, are not counted: until then workers start and kernels are made ready.
Where there are several turns, the ways take turns in one run, and their medians stand in the table. What comes back is
the whole result, fields included, unless ``--report`` has the workers write files and send the report alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def phantoms(size: tuple[int, ...], count: int) -> list[tuple[Any, Any]]:
    """Pairs of images as arrays with their grids."""
    from itk_nir.phantom import brain_phantom

    made = [brain_phantom(len(size), size, seed=seed) for seed in range(count)]
    return [((p.fixed, p.geometry), (p.moving, p.geometry)) for p in made]


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measured(
    pairs: list[tuple[Any, Any]], count: int, in_flight: int, threads: int | None, folder: str | None, **how: Any
) -> dict[str, Any]:
    """Register so many pairs beyond the first ones, and what that took."""
    from itk_nir import register_many

    total = count + in_flight

    def given() -> Iterator[Any]:
        for number in range(total):
            fixed, moving = pairs[number % len(pairs)]
            place = {} if folder is None else {"output": f"{folder}/{number}_"}
            yield {"fixed": fixed, "moving": moving, **place}

    began, used = time.perf_counter(), processor_seconds()
    ready, failed, inside = 0.0, [], []
    for number, one in enumerate(register_many(given(), in_flight=in_flight, threads=threads, **how), 1):
        if number == in_flight:
            ready = time.perf_counter()
        elif number > in_flight:
            inside.append(one.seconds)
        if not one.ok:
            failed.append(str(one.error))
    end = time.perf_counter()
    return {
        "in_flight": in_flight,
        "threads": threads,
        "pairs_a_minute": 60 * count / (end - ready),
        "seconds_until_ready": ready - began,
        "seconds_of_a_pair": statistics.median(inside) if inside else None,
        "processor_seconds_a_pair": (processor_seconds() - used) / total,
        "failed": failed,
    }


def main() -> int:
    """Measure and print a table; JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--in-flight", default="1,2,4,8", help="ways: pairs in flight, or PAIRSxTHREADS")
    parser.add_argument("--size", default="160,192,160", help="voxels of an image")
    parser.add_argument("--pairs", type=int, default=16, help="pairs that are counted, each way and turn")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--linear", default="affine")
    parser.add_argument("--report", action="store_true", help="workers write the files, only reports come back")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    size = tuple(map(int, options.size.split(",")))
    ways = [tuple(map(int, way.split("x"))) for way in options.in_flight.split(",")]
    how = {"device": options.device, "preset": options.preset, "linear": options.linear}
    pairs = phantoms(size, min(4, options.pairs))
    runs: dict[Any, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            # Each second turn goes backwards, so that a machine that slows down favours none.
            for way in ways if turn % 2 == 0 else ways[::-1]:
                threads = way[1] if len(way) > 1 else None
                found = measured(pairs, options.pairs, way[0], threads, folder if options.report else None, **how)
                runs[way].append(found)
                print(json.dumps({"turn": turn, **found}), file=sys.stderr, flush=True)
    print(f"{options.device}, {'x'.join(map(str, size))}, preset {options.preset}, linear {options.linear}, "
          f"{options.pairs} pairs, medians of {options.turns} turn(s)\n")  # fmt: skip
    columns = ("pairs_a_minute", "seconds_of_a_pair", "seconds_until_ready", "processor_seconds_a_pair")
    print(
        "| in flight | pairs a minute | seconds of a pair | seconds until ready | processor seconds a pair | failed |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for way, taken in runs.items():
        values = [f"{statistics.median(run[name] or 0.0 for run in taken):.2f}" for name in columns]
        print(f"| {'x'.join(map(str, way))} | {' | '.join(values)} | {sum(len(run['failed']) for run in taken)} |")
    if options.json:
        options.json.write_text(json.dumps({"options": how, "size": size, "runs": [*runs.values()]}, indent=1))
    return 1 if any(run["failed"] for taken in runs.values() for run in taken) else 0


if __name__ == "__main__":
    sys.exit(main())

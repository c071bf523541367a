"""What one step costs: time and memory of the metrics' value and gradient, at one level, in alternation.

    python benchmarks/step_cost.py

The level is that of a volume of random textures at full resolution. Every metric is prepared once (its time and memory
stand apart), then asked for its value and the gradient by the displacement; medians over the turns. Memory is what the
process holds at most beyond the images, each metric in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import processor_name, say

METRICS = ("lncc", "nmi", "mind", "nmi + 0.1*mind")
SHAPES = ((112, 128, 112), (160, 192, 160))
RADIUS = 6


def level(shape: tuple[int, ...], threads: int) -> tuple[Any, Any]:
    """The images of a level, and a view under a small displacement, whose gradient is asked for."""
    import torch

    from itk_nir.engine.metrics import LevelImages
    from itk_nir.engine.views import View

    generator = torch.Generator().manual_seed(0)

    def texture(voxels: int, count: int) -> Any:
        """Noise whose grains are as many voxels wide."""
        noise = torch.randn(1, count, *(max(2, n // voxels) for n in shape), generator=generator)
        return torch.nn.functional.interpolate(noise, shape, mode="trilinear", align_corners=True)[0]

    images = []
    for _ in range(2):
        image = texture(3, 1)[0] + texture(12, 1)[0]
        images.append(((image - image.mean()) / image.std()).contiguous())
    ranges = [(float(image.min()), float(image.max())) for image in images]
    fixed, moving = images
    shown = LevelImages(
        fixed, moving, weight=None, radius=RADIUS, threads=threads, fixed_range=ranges[0], moving_range=ranges[1]
    )
    u = (texture(20, 3) * 0.7).contiguous()
    return shown, View(u, np.eye(4)[:3], np.eye(3), threads=threads)


def evaluate(metric: Any, view: Any) -> None:
    """Value and gradient."""
    import torch

    from itk_nir.engine.views import View

    u = view.displacement.detach().requires_grad_()
    torch.autograd.grad(metric(View(u, view.grid_to_moving, view.displacement_to_moving, threads=view.threads)), u)


def one(name: str, shape: tuple[int, ...], threads: int) -> dict[str, float]:
    """In this process: seconds of the preparation, and the memory beyond that of the images, GB."""

    from itk_nir.engine.metrics import metric_named
    from itk_nir.engine.torch_state import engine_state

    shown, view = level(shape, threads)
    before = memory(reset=True)
    with engine_state():
        began = time.perf_counter()
        metric = metric_named(name).prepare(shown)
        prepared = time.perf_counter() - began
        for _ in range(3):
            evaluate(metric, view)
    return {"prepare": prepared, "memory": memory() - before}


def memory(*, reset: bool = False) -> float:
    """The largest resident memory of this process since it was last reset, GB (Linux; elsewhere not a number)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    except OSError:
        return float("nan")
    return int(line.split()[1]) * 1024 / 1e9


def steps(shape: tuple[int, ...], threads: int, turns: int) -> dict[str, float]:
    """Median seconds of a step of each metric, in alternation."""

    from itk_nir.engine.metrics import metric_named
    from itk_nir.engine.torch_state import engine_state

    shown, view = level(shape, threads)
    metrics = {name: metric_named(name).prepare(shown) for name in METRICS}
    seconds: dict[str, list[float]] = {name: [] for name in METRICS}
    with engine_state():
        for turn in range(turns + 1):
            for name, metric in metrics.items():
                began = time.perf_counter()
                evaluate(metric, view)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "benchmarks")
    parser.add_argument("--one", nargs=2, metavar=("METRIC", "SHAPE"), help="print what one metric takes, as JSON")
    parser.add_argument("--sizes", default=",".join("x".join(map(str, s)) for s in SHAPES), help="comma-separated")
    options = parser.parse_args()
    if options.one:
        shape = tuple(map(int, options.one[1].split("x")))
        print(json.dumps(one(options.one[0], shape, options.threads)))
        return 0
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for size in options.sizes.split(","):
        shape = tuple(map(int, size.split("x")))
        rows[size] = {name: {"step": step} for name, step in steps(shape, options.threads, options.turns).items()}
        for name, row in rows[size].items():
            command = [sys.executable, __file__, "--threads", str(options.threads), "--one", name, size]
            row |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            say(f"{size}  {name}  {row}")
        facts = {
            "processor": processor_name(), "cores": os.cpu_count(), "threads": options.threads, "turns": options.turns,
        }  # fmt: skip
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "step_cost.json").write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
        (options.output / "step_cost.md").write_text(page(facts, rows))
    return 0


def page(facts: dict[str, Any], rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """The Markdown page."""
    out = [
        "# What a step costs",
        "",
        f"{facts['processor']} ({facts['cores']} cores), {facts['threads']} threads. Value and gradient by the "
        f"displacement of each metric at full resolution, medians of {facts['turns']} turns in alternation; windows of "
        f"{2 * RADIUS + 1} voxels. Prepare: once a level. Memory: what the process holds at most beyond the images, "
        "gradient included. The machine does other work: compare within a table. Made with",
        "",
        f"    python benchmarks/step_cost.py --sizes {','.join(rows)}",
        "",
    ]
    for size, metrics in rows.items():
        first = metrics["lncc"]["step"]
        out += [f"## {size}", "", "| metric | step s | / lncc | prepare s | memory GB |", "|---|---:|---:|---:|---:|"]
        for name, row in metrics.items():
            out.append(
                f"| `{name}` | {row['step']:.3f} | {row['step'] / first:.2f} | {row['prepare']:.2f} | "
                f"{row['memory']:.2f} |"
            )
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(main())

"""What an iteration of each level would ask of a GPU, counted on the pretend device: no card is needed.

``python -m tests.device.count [X,Y,Z]`` prints the table of docs/gpu.md with torch's own ops: kernels, bytes that they
must read and write at least, what torch is called for, what the host waits for and uploads, and the most memory that
tensors have.
``python -m tests.device.count --kernels [X,Y,Z]`` counts with the compiled kernels in, up to the last iteration. They
are not run: what they would write stays zero, so that a pair of the size of a brain takes seconds.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.device.cases import prepared
from tests.device.emulated import launched_by

#: Tensors that a kernel both reads and writes, as numbers of its arguments; any other is read or written.
IN_PLACE = {
    "adam": (0, 2, 3), "compose_adjoint": (2, 3), "settle": (0, 1), "settle_adam": (0, 5, 6, 7), "gather_nodes": (7,),
    "invert": (1,), "balance": (5,), "balance_step": (0,),
}  # fmt: skip
#: What a kernel reads of the tensors of a structure, where that is not all of them.
READ = {"lncc_gradient": ("image", "weight")}
#: Bytes a second of an H100's memory, by its data sheet.
BANDWIDTH = 3.35e12
BRAIN = (160, 192, 224)
WITH_KERNELS: dict[str, Any] = {"kernels": True, "linear": "none"}


class _Enough(Exception):
    """All is counted."""


@contextmanager
def _counting(pretend: Any, mode: Any) -> Iterator[None]:
    """The kernels on the pretend device: their launches are counted and not done."""
    import torch

    from itk_nir.engine.ops import cuda, dispatch

    sizes: dict[int, int] = {}

    def pointer(x: Any) -> int:
        at = int(x.held.data_ptr())
        sizes[at] = x.numel() * x.element_size()
        return at

    def bytes_of(kernel: str, argument: Any) -> int:
        if isinstance(argument, torch.Tensor):
            return argument.numel() * argument.element_size()
        if isinstance(argument, ctypes.Structure):
            pointers = {name: getattr(argument, name) for name, kind in argument._fields_ if kind is ctypes.c_void_p}
            return sum(sizes[pointers[name]] for name in READ.get(kernel, pointers) if pointers.get(name) is not None)
        return 0

    def launch(file: str, kernel: str, grid: Any, block: Any, *arguments: Any, **options: Any) -> None:
        again = [arguments[k] for k in IN_PLACE.get(kernel, ())]
        once = {id(a): a for a in arguments}.values()  # what is composed with itself is read once
        mode.kernels[kernel] += 1
        mode.bytes[kernel] += sum(bytes_of(kernel, a) for a in (*once, *again))
        if kernel == "totals" and arguments[3] is not None:  # such as how many windows count, which must be some
            arguments[3].held.fill_(1.0)

    def launch_each(file: str, kernel: str, count: int, *arguments: Any, shared: int = 0) -> None:
        launch(file, kernel, (), (), *arguments)

    def prepare(file: str, kernel: str, grid: Any, block: Any, *arguments: Any, **options: Any) -> Any:
        return SimpleNamespace(
            put=lambda number, value: None, launch=lambda: launch(file, kernel, grid, block, *arguments)
        )

    def repeat(launches: Any, device: Any) -> None:
        for one in launches:
            one.launch()

    by = {
        "launch": launch, "launch_each": launch_each, "prepare": prepare, "repeat": repeat, "pointer": pointer,
        "most_shared": lambda device: 227 * 1024,
        "module_on": lambda *_: SimpleNamespace(),
    }  # fmt: skip
    dispatch.KERNELS[pretend.NAME] = lambda device: cuda
    try:
        with launched_by(by):
            yield
    finally:
        del dispatch.KERNELS[pretend.NAME]


def counted(
    size: tuple[int, ...], *, kernels: bool = False, to_the_end: bool = True, **options: Any
) -> list[dict[str, float]]:
    """One row for each level, and one for all of the registration.

    Parameters
    ----------
    size : tuple of int
        Voxels of both images, ``(x, y, z)``.
    kernels : bool
        Whether the compiled kernels run, or torch's own ops.
    to_the_end : bool
        Whether the registration goes on after the last iteration: without, `peak` is that of the iterations.
    **options : object
        Of `itk_nir.register`.

    Returns
    -------
    list of dict
    """
    pretend = prepared()
    import itk_nir
    from itk_nir.engine import descent
    from itk_nir.geometry import Geometry
    from itk_nir.phantom import brain_phantom

    if kernels:  # nobody looks at what the images show
        rng, grid = np.random.default_rng(0), Geometry.make(size, (1.0,) * len(size))
        fixed, moving = ((rng.random(size[::-1], np.float32) + 1, grid) for _ in range(2))
    else:
        phantom = brain_phantom(len(size), size)
        fixed, moving = (phantom.fixed, phantom.geometry), (phantom.moving, phantom.moving_geometry)
    plain, seen = descent.iterations_of, []  # type: ignore[var-annotated]
    mode = pretend.Pretend(zeros=kernels)

    def totals() -> dict[str, float]:
        parts = {name: getattr(mode, name) for name in ("kernels", "bytes", "calls", "waits", "uploads")}
        return {name: float(sum(counter.values())) for name, counter in parts.items()}

    def iterations_of(level: Any, *of: Any) -> Any:
        iterations = plain(level, *of)

        def measure(*numbers: int) -> Any:
            seen.append((level.number, totals()))
            if not to_the_end and [number for number, _ in seen].count(2) == 3:
                raise _Enough
            return iterations.measure(*numbers)

        return SimpleNamespace(measure=measure, step=iterations.step)

    descent.iterations_of = iterations_of  # type: ignore[assignment]
    try:
        with mode, _counting(pretend, mode) if kernels else nullcontext(), suppress(_Enough):
            itk_nir.register(
                fixed, moving, device="pretend", threads=1, iterations=(3, 3, 3), search="never", **options
            )
    finally:
        descent.iterations_of = plain
    rows = []
    for level in sorted({number for number, _ in seen}):
        here = [count for number, count in seen if number == level]
        rows.append({"level": level, **{name: here[2][name] - here[1][name] for name in here[0]}})
    return [*rows, {"level": -1, **totals(), "peak": float(mode.peak)}]


def main(size: tuple[int, ...], kernels: bool) -> None:
    """Print the table."""
    from itk_nir.settings import options_of

    voxels = size[0] * size[1] * size[2]
    rows = counted(size, to_the_end=False, **WITH_KERNELS) if kernels else counted(size)
    name = "x".join(map(str, size))
    print(f"{name} voxels, preset default, {'the compiled kernels' if kernels else 'operations of torch'}\n")
    unit = "MB | ms at 3.35 TB/s" if kernels else "bytes a voxel of the fixed image"
    print(f"| | launches | {unit} | calls of torch | waits | uploads |\n|---|---|---|---|---|---|{'---|' * kernels}")
    for row in rows:
        name = f"level {row['level']:.0f}"
        if row["level"] < 0:
            name = "all up to the last" if kernels else "the whole registration, 3 iterations a level"
        moved = f"{row['bytes'] / voxels:,.0f}"
        if kernels:
            moved = f"{row['bytes'] / 1e6:,.0f} | {1e3 * row['bytes'] / BANDWIDTH:.2f}"
        rest = " | ".join(f"{row[n]:.0f}" for n in ("calls", "waits", "uploads"))
        print(f"| {name} | {row['kernels']:.0f} | {moved} | {rest} |")
    *levels, whole = rows
    peak = whole["peak"]
    print(f"\nmost memory: {peak / voxels:,.0f} bytes a voxel of the fixed image, {peak / 1e9:.2f} GB")
    if kernels:
        total = sum(n * row["bytes"] for n, row in zip(options_of("default")["iterations"], levels, strict=True))
        print(f"all iterations of the preset: {total / 1e9:.0f} GB, {1e3 * total / BANDWIDTH:.0f} ms at 3.35 TB/s")


if __name__ == "__main__":
    from tests.device import pretend

    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    with_kernels = "--kernels" in sys.argv
    wanted = tuple(int(n) for n in words[0].split(",")) if words else BRAIN if with_kernels else (40, 48, 56)
    if "--json" in sys.argv:
        print(json.dumps(counted(wanted, to_the_end=False, **WITH_KERNELS)))
    else:
        main(wanted, with_kernels)
    pretend.leave()

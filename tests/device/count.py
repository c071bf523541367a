"""What an iteration of each level would ask of a GPU, counted on the pretend device with torch's own ops.

``python -m tests.device.count [X,Y,Z]`` prints the table of docs/gpu.md: kernels, bytes that they must read and write
at least, what the host waits for and uploads, and the most memory that tensors have.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.device.cases import prepared


def counted(size: tuple[int, ...], **options: Any) -> list[dict[str, float]]:
    """One row for each level, and one for all of the registration.

    Parameters
    ----------
    size : tuple of int
        Voxels of the phantom, ``(x, y, z)``.
    **options : object
        Of `itk_nir.register`.

    Returns
    -------
    list of dict
    """
    pretend = prepared()
    import itk_nir
    from itk_nir.engine.level import Level
    from itk_nir.phantom import brain_phantom

    phantom = brain_phantom(len(size), size)
    plain, seen = Level.loss, []  # type: ignore[var-annotated]
    mode = pretend.Pretend()

    def totals() -> dict[str, float]:
        parts = {"kernels": mode.kernels, "bytes": mode.bytes, "waits": mode.waits, "uploads": mode.uploads}
        return {name: float(sum(counter.values())) for name, counter in parts.items()}

    def loss(self: Any, field: Any, iteration: int) -> Any:
        seen.append((self.number, totals()))
        return plain(self, field, iteration)

    Level.loss = loss  # type: ignore[method-assign]
    try:
        with mode:
            itk_nir.register(
                (phantom.fixed, phantom.geometry), (phantom.moving, phantom.moving_geometry), device="pretend",
                threads=1, iterations=(3, 3, 3), search="never", **options,
            )  # fmt: skip
    finally:
        Level.loss = plain  # type: ignore[method-assign]
    rows = []
    for level in sorted({number for number, _ in seen}):
        here = [count for number, count in seen if number == level]
        rows.append({"level": level, **{name: here[2][name] - here[1][name] for name in here[0]}})
    return [*rows, {"level": -1, **totals(), "peak": float(mode.peak)}]


def main(size: tuple[int, ...]) -> None:
    """Print the table."""
    voxels = size[0] * size[1] * size[2]
    rows = counted(size)
    print(f"{'x'.join(map(str, size))} voxels, preset default, torch's own ops\n")
    print("| | kernels | bytes a voxel of the fixed image | waits | uploads |\n|---|---|---|---|---|")
    for row in rows:
        name = "the whole registration, 3 iterations a level" if row["level"] < 0 else f"level {row['level']:.0f}"
        print(
            f"| {name} | {row['kernels']:.0f} | {row['bytes'] / voxels:,.0f} | {row['waits']:.0f} | "
            f"{row['uploads']:.0f} |"
        )
    print(f"\nmost memory: {rows[-1]['peak'] / voxels:,.0f} bytes a voxel of the fixed image")


if __name__ == "__main__":
    main(tuple(int(n) for n in sys.argv[1].split(",")) if len(sys.argv) > 1 else (40, 48, 56))

"""How time and memory grow with the size of the images: whole processes, one pair at many resolutions.

    python benchmarks/growth.py --output docs/benchmarks

The pair is the brain phantom at its own resolution, resampled to cubes of N voxels an edge over the same field of
view, written as uncompressed NIfTI. Every size is one run of ``itk-nir register``; its wall time, CPU time and peak
memory come from the operating system, and what of its processor time the host gave to others (see `measure.py`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from measure import DISTURBED, Usage, itk_nir_command, least_disturbed, measure, processor_name

SIZES = (96, 128, 192, 256, 320, 384, 512)


def make_pair(folder: Path) -> None:
    """The phantom as ``fixed.nii`` and ``moving.nii``."""
    from itk_nir.images import save_image
    from itk_nir.phantom import brain_phantom

    pair = brain_phantom(size=(192, 192, 192), seed=1)
    for name in ("fixed", "moving"):
        save_image(getattr(pair, name), pair.geometry, folder / f"{name}.nii")


def resample(source: Path, target: Path, size: int) -> None:
    """A cube of `size` voxels an edge over the field of view of `source`; smoothed first where it gets coarser."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(source), sitk.sitkFloat32)
    spacing = [n * s / size for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    if size < image.GetSize()[0]:
        image = sitk.SmoothingRecursiveGaussian(image, [0.5 * s for s in spacing])
    corner = [-0.5 + 0.5 * n / size for n in image.GetSize()]
    grid = sitk.Image([size] * 3, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(corner))
    sitk.WriteImage(sitk.Resample(image, grid), str(target))


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Exponent of growth with the number of voxels: least squares on both logarithms."""
    x = [3 * math.log(row["edge"]) for row in rows]
    y = [math.log(row[key]) for row in rows]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return top / sum((a - mean_x) ** 2 for a in x)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    voxels = [row["edge"] ** 3 / 1e6 for row in rows]
    for ax, key, label in zip(axes, ("wall", "peak"), ("seconds, whole process", "peak memory, GB"), strict=True):
        ax.loglog(voxels, [row[key] for row in rows], "o-")
        reference = [rows[0][key] * v / voxels[0] for v in voxels]
        ax.loglog(voxels, reference, ":", color="gray", label="linear in voxels")
        ax.set_xlabel("voxels, millions")
        ax.set_ylabel(label)
        ax.set_xticks(voxels, [f"{row['edge']}³" for row in rows])
        ax.minorticks_off()
        ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(edge: int, options: argparse.Namespace, folder: Path) -> Usage:
    """One size, again where it was disturbed: the run that lost least."""
    command = [
        *itk_nir_command(), "register", "--preset", options.preset, "--linear", "none", "--fixed",
        str(folder / f"fixed_{edge}.nii"), "--moving", str(folder / f"moving_{edge}.nii"), "--output",
        f"{folder}/out_", "--threads", str(options.threads),
    ]  # fmt: skip

    def once() -> tuple[Usage, str]:
        used = measure(command, folder / "log.txt", threads=options.threads, cwd=Path.cwd())
        if used.status:
            raise SystemExit(f"{edge}: failed with status {used.status}: {(folder / 'log.txt').read_text()[-500:]}")
        return used, (folder / "out_report.json").read_text()

    used, report = least_disturbed(once, lambda got: got[0].stolen or 0.0, options.tries, f"{edge}")
    (folder / "report.json").write_text(report)
    return used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="edges in voxels, comma-separated")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--tries",
        type=int,
        default=2,
        help=f"runs of a size at most, where one lost over {DISTURBED} %% of its processor time to other guests of the "
        "host; the one that lost least counts (default: 2)",
    )
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="itk-nir-growth-") as name:
        folder = Path(name)
        make_pair(folder)
        for edge in map(int, options.sizes.split(",")):
            paths = {which: folder / f"{which}_{edge}.nii" for which in ("fixed", "moving")}
            for which, path in paths.items():
                resample(folder / f"{which}.nii", path, edge)
            used = run(edge, options, folder)
            metrics = json.loads((folder / "report.json").read_text())["metrics"]
            row: dict[str, Any] = {"edge": edge, "wall": used.wall, "cpu": used.cpu, "peak": used.peak}
            row |= {"stolen": used.stolen, "seconds": metrics["seconds"]}
            rows.append(row)
            print({k: v if isinstance(v, int) else round(v, 2) for k, v in row.items() if k != "seconds"}, flush=True)
            for path in [*paths.values(), *folder.glob("out_*")]:
                path.unlink()
    lines = [
        "# Growth with the size of the images",
        "",
        f"{processor_name()} ({os.cpu_count()} cores), {options.threads} threads, Python {platform.python_version()}, "
        f"preset `{options.preset}`, deformable only, one run of each size, {datetime.date.today()}. Made by "
        "`benchmarks/growth.py`.",
        "",
        "| edge | million voxels | seconds | of these: field | sampling | CPU s | stolen % | peak GB | bytes a voxel |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        parts = row["seconds"]
        stolen = "–" if row["stolen"] is None else f"{row['stolen']:.0f}"
        lines.append(
            f"| {row['edge']} | {row['edge'] ** 3 / 1e6:.1f} | {row['wall']:.1f} | {parts['deformable']:.1f} | "
            f"{parts['sampling']:.1f} | {row['cpu']:.1f} | {stolen} | {row['peak']:.2f} | "
            f"{row['peak'] * 1e9 / row['edge'] ** 3:.0f} |"
        )
    if len(rows) > 1:
        lines += [
            "",
            f"Wall time grows with voxels to the power {slope(rows, 'wall'):.2f}, memory {slope(rows, 'peak'):.2f}.",
            "",
            "![Time and memory against voxels](growth.png)",
        ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "growth.md").write_text("\n".join(lines) + "\n")
    (options.output / "growth.json").write_text(json.dumps(rows, indent=1))
    plot(rows, options.output / "growth.png")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""This program and FireANTs on one card, in one process: seconds, Dice, folds and memory of the card.

    python benchmarks/gpu.py FIXED MOVING FIXED_LABELS MOVING_LABELS --labels 2,3,4

Both are warmed up by a first registration, whose seconds are told apart: it loads kernels. Seconds are those of images
in memory to a map in memory. FireANTs runs as its own scripts run it, without its fused ops unless they are installed;
it is not a dependency of this project, and methods whose package is missing are left out with a word.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

import itk_nir

#: What a method returns: the warped labels on the fixed grid, and how many voxels are folded.
Outcome = tuple[np.ndarray, int]


def ours(device: str, preset: Any, linear: Any, files: argparse.Namespace) -> Callable[[], Callable[[], Outcome]]:
    """A preset of this program."""
    fixed, moving = sitk.ReadImage(files.fixed), sitk.ReadImage(files.moving)
    labels = sitk.ReadImage(files.moving_labels)

    def register() -> Callable[[], Outcome]:
        result = itk_nir.register(fixed, moving, preset=preset, linear=linear, device=device)

        def outcome() -> Outcome:
            warped = itk_nir.apply(labels, result, fixed, interpolation="nearest")
            return sitk.GetArrayFromImage(warped), int(result.report.folded_voxels or 0)

        return outcome

    return register


def fireants(device: str, method: str, affine: bool, files: argparse.Namespace) -> Callable[[], Callable[[], Outcome]]:
    """FireANTs: greedy or SyN, deformation alone or after its affine stage."""
    from fireants.io.image import BatchedImages, Image  # type: ignore[import-not-found]
    from fireants.registration.affine import AffineRegistration  # type: ignore[import-not-found]
    from fireants.registration.greedy import GreedyRegistration  # type: ignore[import-not-found]
    from fireants.registration.syn import SyNRegistration  # type: ignore[import-not-found]

    read = [Image(sitk.ReadImage(name), device=device) for name in (files.fixed, files.moving)]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(files.moving_labels)).astype(np.float32)
    fixed, moving = tuple(BatchedImages([image]) for image in read)

    def register() -> Callable[[], Outcome]:
        options: dict[str, Any] = {"progress_bar": False, "cc_kernel_size": 7}
        if affine:
            stage = AffineRegistration([8, 4, 2, 1], [200, 100, 50, 20], fixed, moving, progress_bar=False)
            stage.optimize()
            options["init_affine"] = stage.get_affine_matrix().detach()
        deformed = {
            "greedy": lambda: GreedyRegistration(
                [4, 2, 1], [250, 200, 100], fixed, moving, optimizer_lr=0.5, **options
            ),
            "syn": lambda: SyNRegistration([4, 2, 1], [200, 100, 50], fixed, moving, optimizer_lr=0.25, **options),
        }[method]()
        deformed.optimize()

        def outcome() -> Outcome:
            at = deformed.get_warped_coordinates(fixed, moving).detach()
            there = torch.nn.functional.grid_sample(
                torch.from_numpy(labels)[None, None].to(at), at, mode="nearest", align_corners=True
            )
            return np.rint(there[0, 0].cpu().numpy()), folded(at[0])

        return outcome

    return register


def folded(at: torch.Tensor) -> int:
    """Voxels whose map ``(Z, Y, X, 3)``, from -1 to 1 along x, y, z, has no positive determinant."""
    sizes = torch.tensor(at.shape[2::-1], device=at.device)
    voxels = (at + 1) / 2 * (sizes - 1)
    columns = torch.gradient(voxels, dim=(2, 1, 0))
    return int((torch.linalg.det(torch.stack(columns, -1)) <= 0).sum())


def dice(a: np.ndarray, b: np.ndarray, labels: list[int]) -> float:
    """The mean over labels."""
    return float(np.mean([2 * np.sum((a == k) & (b == k)) / max(1, np.sum(a == k) + np.sum(b == k)) for k in labels]))


METHODS: dict[str, Callable[[str, argparse.Namespace], Callable[[], Callable[[], Outcome]]]] = {
    "nir-fast": lambda device, files: ours(device, "fast", "affine", files),
    "nir-default": lambda device, files: ours(device, "default", "affine", files),
    "nir-accurate": lambda device, files: ours(device, "accurate", "affine", files),
    "nir-default, no linear stage": lambda device, files: ours(device, "default", "none", files),
    "nir-default, cpu": lambda device, files: ours("cpu", "default", "affine", files),
    "fireants-greedy, no linear stage": lambda device, files: fireants(device, "greedy", False, files),
    "fireants-greedy": lambda device, files: fireants(device, "greedy", True, files),
    "fireants-syn": lambda device, files: fireants(device, "syn", True, files),
}


def measure(
    register: Callable[[], Callable[[], Outcome]], fixed: np.ndarray, labels: list[int], device: str, repeats: int
) -> dict[str, Any]:
    """One method: seconds of the first and the median of the later registrations, and what the last one gave."""
    seconds = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(1 + repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        outcome = register()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() / 2**20
    warped, folds = outcome()
    return {
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "dice": dice(fixed, warped, labels),
        "folded_voxels": folds,
        "peak_device_mib": peak,
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        parser.add_argument(name)
    parser.add_argument("--labels", required=True, help="which labels are scored, 2,3,4")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args()
    wanted = [int(k) for k in options.labels.split(",")]
    fixed = sitk.GetArrayFromImage(sitk.ReadImage(options.fixed_labels))
    card = torch.cuda.get_device_name(options.device)
    rows: dict[str, Any] = {}
    print(f"{card}, torch {torch.__version__}; before: Dice "
          f"{dice(fixed, sitk.GetArrayFromImage(sitk.ReadImage(options.moving_labels)), wanted):.4f}")  # fmt: skip
    print("| method | seconds (median) | first | Dice | folded voxels | peak MiB on the card |")
    print("|---|---|---|---|---|---|")
    for name in options.methods.split(";"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                make = METHODS[name](options.device, options)
            except ImportError as error:
                print(f"| {name} | left out: {error} |")
                continue
            r = rows[name] = measure(make, fixed, wanted, options.device, 1 if "cpu" in name else options.repeats)
        print(
            f"| {name} | {r['seconds']:.2f} | {r['first_seconds']:.2f} | {r['dice']:.4f} | {r['folded_voxels']} | "
            f"{r['peak_device_mib']:.0f} |",
            flush=True,
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"card": card, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""Which field? Every arm gets the time of the first one, on the same pairs: the evidence for the default.

    python benchmarks/study.py --pairs 'brain_oasis,brain_t1/*,lung_ct' --output docs/benchmarks

An arm is a set of options of `itk_nir.register`. What its steps cost beside the reference's (the preset named by
--preset) is measured first, on the first pair, in short runs of both in alternation, of which the quickest count: other
work on the machine slows a run down, never speeds it up. All its steps are then scaled by that ratio, and the run is
scored. Linear stages are done once a pair and shared. Scores are `score.py`'s, from the exported transforms.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import tempfile
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from pairs import Pair, data_folder, find_pairs
from score import score

SIREN: dict[str, Any] = {"encoding": "none", "activation": "sine", "width": 64, "depth": 2, "omega": 10.0}
FOURIER: dict[str, Any] = {**SIREN, "encoding": "fourier", "frequencies": 64, "scale": 1.0}

FEATURES: dict[str, Any] = {
    "kind": "grid", "decoder": "mlp", "activation": "relu", "cells": (10, 20, 40), "features": 4, "width": 32,
    "depth": 1,
}  # fmt: skip

#: Arm → (what it is, options). A "network" is a dict of `FieldConfig` arguments.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("feature grids, 16 voxels down to the finest, linear decoder", {}),
    "free lattice": ("the finest velocity lattice alone, refined from level to level", {"grids": "single"}),
    "grids from 32": ("feature grids, 32 voxels down", {"coarsest_lattice": 32.0}),
    "grids from 8": ("feature grids, 8 voxels down", {"coarsest_lattice": 8.0}),
    "grids + MLP decoder": (
        "three feature grids decoded by a perceptron, evaluated every 4 voxels",
        {"network": FEATURES, "grids": "none", "coarsest_lattice": 4.0, "network_rate": 3e-3},
    ),
    "SIREN alone": (
        "SIREN 64x2 alone, evaluated every 8 voxels",
        {"network": SIREN, "grids": "none", "coarsest_lattice": 8.0},
    ),
    "Fourier-SIREN alone": (
        "Fourier-SIREN 64x2 alone, evaluated every 8 voxels",
        {"network": FOURIER, "grids": "none", "coarsest_lattice": 8.0},
    ),
    "SIREN + grids": ("SIREN 64x2 on the coarsest lattice under the grids", {"network": SIREN}),
    "Fourier-SIREN + grids": ("Fourier-SIREN 64x2 under the grids", {"network": FOURIER}),
    "Fourier-SIREN + grids, Kronecker": (
        "the same, its matrices stepped by Kronecker-factored whitening",
        {"network": FOURIER, "network_step": "kronecker"},
    ),
    "SIREN + free lattice": ("SIREN 64x2 under the finest lattice", {"network": SIREN, "grids": "single"}),
    "free lattice, smoothed": (
        "the free lattice, its gradient smoothed by one spacing before Adam",
        {"grids": "single", "gradient_smoothing": 1.0},
    ),
    "symmetric": ("the default, forward and backward similarity", {"symmetric": True}),
    "fixed diffusion": (
        "the default with diffusion weights that do not ease with the energy",
        {"diffusion_energy": 1e6, "velocity_diffusion": (0.05, 0.03, 0.03)},
    ),
    "displacement": ("the default without integration", {"flow": "displacement"}),
    "five squarings": ("the default with 32 integration steps instead of 4", {"squarings": 5}),
    "no fold penalty": ("the default without the Jacobian penalty", {"jacobian_weight": 0.0}),
    "centre gradient": ("the default with the centre term of the LNCC gradient only", {"centre_gradient": True}),
}


def options(arm: str, scale: float, steps: tuple[int, ...]) -> dict[str, Any]:
    """The options of an arm with all steps multiplied by `scale`."""
    from itk_nir.engine.fields import FieldConfig

    out = dict(ARMS[arm][1])
    if "network" in out:
        out["network"] = FieldConfig(**out["network"])
    out["steps"] = tuple(max(1, round(s * scale)) for s in steps)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of pairs (default: ITK_NIR_DATA, else ../shared/data)")
    parser.add_argument("--pairs", default="brain_oasis,brain_t1/*", help="names or patterns, comma-separated")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--turns", type=int, default=2, help="short runs that the ratio of the times is taken from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()

    import itk_nir
    from itk_nir.config import preset_settings

    warnings.simplefilter("ignore")
    arms = ["default", *(a for a in arguments.arms.split(",") if a != "default")]
    steps = preset_settings(arguments.preset).engine.steps  # type: ignore[union-attr]
    patterns = arguments.pairs.split(",")
    pairs = [p for p in find_pairs(data_folder(arguments.data)) if any(fnmatch.fnmatch(p.name, w) for w in patterns)]
    if not pairs:
        parser.error(f"no pair is called {arguments.pairs}")
    from itk_nir.result import RegistrationResult

    def run(pair: Pair, start: Any, arm: str, scale: float) -> RegistrationResult:
        return itk_nir.register(
            pair.fixed, pair.moving, preset=arguments.preset, threads=arguments.threads, fixed_mask=pair.fixed_mask,
            linear="none", initial_transform=start, **options(arm, scale, steps),
        )  # fmt: skip

    starts = {pair.name: linear_start(pair, arguments.threads) for pair in pairs}
    scales = {"default": 1.0}
    for arm in arms[1:]:
        quickest = {"default": np.inf, arm: np.inf}
        for _ in range(arguments.turns):
            for name in quickest:
                result = run(pairs[0], starts[pairs[0].name], name, 0.4)
                quickest[name] = min(quickest[name], result.metrics["seconds"]["deformable"])
        scales[arm] = quickest["default"] / quickest[arm]
        print(f"{arm}: steps x {scales[arm]:.2f}", flush=True)
    rows: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in arms}
    for pair in pairs:
        for arm in arms:
            result = run(pair, starts[pair.name], arm, scales[arm])
            found = scores_of(result, pair)
            seconds = result.metrics["seconds"]["deformable"]
            row: dict[str, float] = {
                k: found[k] for k in ("dice", "tre", "lncc", "folds", "sd_log_jacobian") if k in found
            }
            rows[arm][pair.name] = row | {"seconds": seconds}
            print(pair.name, arm, {k: round(v, 4) for k, v in rows[arm][pair.name].items()}, flush=True)
            write(arguments, [p.name for p in pairs], rows, scales)
    print((arguments.output / "study.md").read_text())
    return 0


def linear_start(pair: Pair, threads: int) -> Any:
    """The linear map that all arms begin with, or None."""
    import itk_nir

    if pair.linear == "none":
        return None
    result = itk_nir.register(
        pair.fixed, pair.moving, linear=pair.linear, fixed_mask=pair.fixed_mask, threads=threads, deformable=False
    )
    return np.asarray(result.metrics["linear_matrix"])


def scores_of(result: Any, pair: Pair) -> dict[str, Any]:
    """`score.py`'s numbers of the exported transforms."""
    with tempfile.TemporaryDirectory() as folder:
        files = result.save(f"{folder}/")
        manifest = Path(folder) / "transforms.json"
        names = {"forward": "composite", "inverse": "inverse_composite"}
        manifest.write_text(json.dumps({k: [{"file": files[v].name}] for k, v in names.items()}))
        return score(
            pair.fixed, pair.moving, manifest, fixed_seg=pair.fixed_seg, moving_seg=pair.moving_seg,
            fixed_mask=pair.fixed_mask, fixed_landmarks=pair.fixed_landmarks, moving_landmarks=pair.moving_landmarks,
            labels=pair.labels,
        )  # fmt: skip


def write(
    arguments: argparse.Namespace, pairs: list[str], rows: dict[str, dict[str, dict[str, float]]],
    scales: dict[str, float],
) -> None:  # fmt: skip
    """``study.md`` and ``study.json`` of what is done so far."""
    lines = [
        "# Which field: equal time",
        "",
        f"{arguments.threads} threads, preset `{arguments.preset}`; steps of every arm scaled to the time of the first "
        f"(ratios: quickest of {arguments.turns} short runs in alternation on {pairs[0]}). Made by",
        "",
        f"    python benchmarks/study.py --pairs {arguments.pairs!r} --arms {','.join(rows)!r}",
        "",
        "Dice: mean over the brain pairs, and in how many of them the arm is ahead of the default. TRE in mm. The "
        "rest: means over all pairs.",
        "",
        "| arm | what it is | Dice | ahead | TRE | LNCC | SD log J | folds % | steps scaled by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, by_pair in rows.items():
        if not by_pair:
            continue
        dice = {name: row["dice"] for name, row in by_pair.items() if "dice" in row}
        tre = [row["tre"] for row in by_pair.values() if "tre" in row]
        ahead = sum(value > rows["default"][name]["dice"] for name, value in dice.items())

        def over(key: str, got: dict[str, dict[str, float]] = by_pair) -> float:
            return mean(row[key] for row in got.values())

        lines.append(
            f"| {arm} | {ARMS[arm][0]} | {f'{mean(dice.values()):.4f}' if dice else '–'} | "
            f"{'' if arm == 'default' else f'{ahead} of {len(dice)}'} | {f'{mean(tre):.2f}' if tre else '–'} | "
            f"{over('lncc'):.4f} | {over('sd_log_jacobian'):.3f} | {over('folds'):.4f} | {scales[arm]:.2f} |"
        )
    lines += ["", f"Pairs: {', '.join(pairs)}."]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "study.md").write_text("\n".join(lines) + "\n")
    record = {"preset": arguments.preset, "scales": scales, "arms": rows}
    (arguments.output / "study.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())

"""Which field? Every arm gets the wall time of the first one, on the same pairs: the evidence for the default.

    python benchmarks/study.py --pairs 'brain_oasis,brain_t1/*' --output docs/benchmarks

An arm is a set of options of `itk_nir.register`. It runs once as it is to be timed, then its steps are scaled so that
its deformable stage takes as long as that of the reference (the preset named by --preset), and that run is scored.
Linear stages are done once a pair and shared. Scores are `score.py`'s, from the exported transforms.
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
from pairs import data_folder, find_pairs
from score import score

SIREN: dict[str, Any] = {"encoding": "none", "activation": "sine", "width": 64, "depth": 2, "omega": 10.0}
FOURIER: dict[str, Any] = {**SIREN, "encoding": "fourier", "frequencies": 64, "scale": 1.0}

#: Arm → (what it is, options). A "network" is a dict of `FieldConfig` arguments.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("feature grids, 16 voxels down to the finest, linear decoder", {}),
    "free lattice": ("the finest velocity lattice alone, refined from level to level", {"grids": "single"}),
    "grids from 32": ("feature grids, 32 voxels down", {"coarsest_lattice": 32.0}),
    "grids from 8": ("feature grids, 8 voxels down", {"coarsest_lattice": 8.0}),
    "SIREN + grids": ("SIREN 64x2 on the coarsest lattice under the grids", {"network": SIREN}),
    "Fourier-SIREN + grids": ("Fourier-SIREN 64x2 under the grids", {"network": FOURIER}),
    "SIREN + free lattice": ("SIREN 64x2 under the finest lattice", {"network": SIREN, "grids": "single"}),
    "SIREN alone": (
        "SIREN 64x2 alone, evaluated every 8 voxels",
        {"network": SIREN, "grids": "none", "coarsest_lattice": 8.0},
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
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for pair in pairs:
        common = {"preset": arguments.preset, "threads": arguments.threads, "fixed_mask": pair.fixed_mask}
        start = None
        if pair.linear != "none":
            first = itk_nir.register(pair.fixed, pair.moving, linear=pair.linear, **common, steps=1)
            start = np.asarray(first.metrics["linear_matrix"])
        budget = 0.0
        for arm in arms:
            given = {**common, "linear": "none", "initial_transform": start}
            result = itk_nir.register(pair.fixed, pair.moving, **given, **options(arm, 1.0, steps))
            seconds = result.metrics["seconds"]["deformable"]
            if arm == "default":
                budget, scale = seconds, 1.0
            else:
                scale = budget / seconds
                result = itk_nir.register(pair.fixed, pair.moving, **given, **options(arm, scale, steps))
                seconds = result.metrics["seconds"]["deformable"]
            with tempfile.TemporaryDirectory() as folder:
                files = result.save(f"{folder}/")
                manifest = Path(folder) / "transforms.json"
                manifest.write_text(
                    json.dumps(
                        {
                            "forward": [{"file": files["composite"].name}],
                            "inverse": [{"file": files["inverse_composite"].name}],
                        }
                    )
                )
                found = score(
                    pair.fixed, pair.moving, manifest, fixed_seg=pair.fixed_seg, moving_seg=pair.moving_seg,
                    fixed_mask=pair.fixed_mask, fixed_landmarks=pair.fixed_landmarks,
                    moving_landmarks=pair.moving_landmarks, labels=pair.labels,
                )  # fmt: skip
            row: dict[str, float] = {
                k: found[k] for k in ("dice", "tre", "lncc", "folds", "sd_log_jacobian") if k in found
            }
            rows[arm].append({**row, "seconds": seconds, "scale": scale})
            print(pair.name, arm, {k: round(v, 4) for k, v in rows[arm][-1].items()}, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    measure = "dice" if "dice" in rows["default"][0] else "tre"
    lines = [
        "# Which field: equal wall time",
        "",
        f"Means over {len(pairs)} pairs ({', '.join(p.name for p in pairs)}), {arguments.threads} threads, preset "
        f"`{arguments.preset}`; steps of every arm scaled to the seconds of the first. Made by `benchmarks/study.py`.",
        "",
        f"| arm | what it is | {measure} | LNCC | SD log J | folds % | seconds | steps scaled by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        got = {k: mean(r[k] for r in rows[arm]) for k in rows[arm][0]}
        lines.append(
            f"| {arm} | {ARMS[arm][0]} | {got[measure]:.4f} | {got['lncc']:.4f} | {got['sd_log_jacobian']:.3f} | "
            f"{got['folds']:.4f} | {got['seconds']:.1f} | {got['scale']:.2f} |"
        )
    (arguments.output / "study.md").write_text("\n".join(lines) + "\n")
    (arguments.output / "study.json").write_text(json.dumps({"preset": arguments.preset, "arms": rows}, indent=1))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

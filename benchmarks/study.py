"""Which field? Every arm gets the time of the first one, on the same pairs: the evidence for the default.

    python benchmarks/study.py --pairs 'brain_oasis,brain_t1/*,lung_ct' --output docs/benchmarks
    python benchmarks/study.py --pairs 'brain_oasis,brain_t1/*,lung_ct' --turned 12,8 --name study_turned

An arm is a set of options of `itk_nir.make_settings`. What its iterations cost beside the reference's (the preset named
by --preset) is measured first, on the first pair, in short runs of both in alternation, of which the quickest count:
other work on the machine slows a run down, never speeds it up. All its iterations are then scaled by that ratio, and
the run is scored. Linear stages are done once a pair and shared; with --turned they are spoilt by a rotation and a
shift, as a linear stage that failed or was left out would be. Scores are `score.py`'s, from the exported transforms.
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
LATTICE: dict[str, Any] = {"network": None, "composed": False}

#: Arm → (what it is, options). A "network" is a dict of `FieldConfig` arguments.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("a lattice, a Fourier-SIREN before it where much moves, then a fine lattice composed with them", {}),
    "network first": ("the default with its network always, before the lattice", {"network_above": 0.0}),
    "free lattice": ("one free velocity lattice, refined from level to level", LATTICE),
    "composed lattices": ("the default without its network", {"network": None}),
    "no search": ("the default without the search for large motion", {"search": "never"}),
    "neither": ("the default without search and network", {"search": "never", "network": None}),
    "not composed": ("the default as one field: network and lattice, refined from level to level", {"composed": False}),
    "network alone": (
        "all iterations of the first level for the network",
        {"network_above": 0.0, "network_warmup": 1.0},
    ),
    "short steps": (
        "network first, its steps of a quarter of the radius",
        {"network_above": 0.0, "network_radius": 0.5},
    ),
    "SIREN": ("network first, a SIREN 64x2 on the bare coordinates", {"network_above": 0.0, "network": SIREN}),
    "free lattice, half rates": (
        "the free lattice with half the rates",
        {**LATTICE, "learning_rates": (0.5, 0.3, 0.2)},
    ),
    "symmetric": ("the default, forward and backward similarity", {"symmetric": True}),
    "plain diffusion": (
        "the default with a quadratic penalty, a tenth of the weight",
        {"regulariser": "diffusion", "smoothness": (0.12, 0.06, 0.1)},
    ),
    "displacement": ("the default without integration", {"transform_model": "displacement"}),
    "five squarings": ("the default with 32 integration steps instead of 4", {"integration_steps": 5}),
    "no fold penalty": ("the default without the Jacobian penalty", {"jacobian_weight": 0.0}),
}


def options(arm: str, scale: float, iterations: tuple[int, ...]) -> dict[str, Any]:
    """The options of an arm with all iterations multiplied by `scale`."""
    from itk_nir.engine.coordinate_networks import FieldConfig

    out = dict(ARMS[arm][1])
    if out.get("network"):
        out["network"] = FieldConfig(**out["network"])
    out["iterations"] = tuple(max(1, round(n * scale)) for n in iterations)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of pairs (default: ITK_NIR_DATA, else ../shared/data)")
    parser.add_argument("--pairs", default="brain_oasis,brain_t1/*", help="names or patterns, comma-separated")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--preset", default="default")
    parser.add_argument(
        "--turns",
        type=int,
        default=2,
        help="short runs that the ratio of the times is taken from; 0: the same iterations, not the same time",
    )
    parser.add_argument(
        "--turned", default="0,0", metavar="DEGREES,MM", help="rotation and shift that every linear start is spoilt by"
    )
    parser.add_argument("--name", default="study", help="of the files that are written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()

    import itk_nir
    from itk_nir.settings import preset_settings

    warnings.simplefilter("ignore")
    arms = ["default", *(a for a in arguments.arms.split(",") if a != "default")]
    iterations = preset_settings(arguments.preset).deformable.iterations
    patterns = arguments.pairs.split(",")
    pairs = [p for p in find_pairs(data_folder(arguments.data)) if any(fnmatch.fnmatch(p.name, w) for w in patterns)]
    if not pairs:
        parser.error(f"no pair is called {arguments.pairs}")
    from itk_nir.result import RegistrationResult

    def run(pair: Pair, start: Any, arm: str, scale: float) -> RegistrationResult:
        settings = itk_nir.make_settings(arguments.preset, **options(arm, scale, iterations))
        return itk_nir.register(
            pair.fixed, pair.moving, preset=settings, threads=arguments.threads, fixed_mask=pair.fixed_mask,
            linear="none", initial_transform=start,
        )  # fmt: skip

    degrees, shift = (float(x) for x in arguments.turned.split(","))
    starts = {pair.name: turned(pair, linear_start(pair, arguments.threads), degrees, shift) for pair in pairs}
    scales = {"default": 1.0}
    for arm in arms[1:]:
        quickest = {"default": np.inf, arm: np.inf}
        for _ in range(arguments.turns):
            for name in quickest:
                result = run(pairs[0], starts[pairs[0].name], name, 0.4)
                quickest[name] = min(quickest[name], result.report.seconds["deformable"])
        scales[arm] = quickest["default"] / quickest[arm] if arguments.turns else 1.0
        print(f"{arm}: iterations x {scales[arm]:.2f}", flush=True)
    rows: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in arms}
    for pair in pairs:
        for arm in arms:
            result = run(pair, starts[pair.name], arm, scales[arm])
            found = scores_of(result, pair)
            seconds = result.report.seconds["deformable"]
            row: dict[str, float] = {
                k: found[k] for k in ("dice", "tre", "lncc", "folds", "sd_log_jacobian") if k in found
            }
            rows[arm][pair.name] = row | {"seconds": seconds}
            print(pair.name, arm, {k: round(v, 4) for k, v in rows[arm][pair.name].items()}, flush=True)
            write(arguments, [p.name for p in pairs], rows, scales)
    print((arguments.output / f"{arguments.name}.md").read_text())
    return 0


def linear_start(pair: Pair, threads: int) -> Any:
    """The linear map that all arms begin with, or None."""
    import itk_nir

    if pair.linear == "none":
        return None
    result = itk_nir.register(
        pair.fixed, pair.moving, linear=pair.linear, fixed_mask=pair.fixed_mask, threads=threads, deformable=False
    )
    return np.asarray(result.report.affine_matrix)


def turned(pair: Pair, start: Any, degrees: float, shift: float) -> Any:
    """The start after a rotation about a skew axis through the middle of the fixed image and a skew shift (mm)."""
    if not degrees and not shift:
        return start
    from itk_nir.images import load_image

    geometry = load_image(pair.fixed, "fixed image").geometry
    d = geometry.dimension
    rotation = rotation_about_a_skew_axis(degrees)
    if d == 2:
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        rotation = np.array([[c, -s], [s, c]])
    out = np.eye(d + 1)
    out[:d, :d] = rotation
    out[:d, d] = geometry.centre - rotation @ geometry.centre + shift * np.array([1, 1, -1])[:d] / np.sqrt(d)
    return out if start is None else start @ out


def rotation_about_a_skew_axis(degrees: float) -> np.ndarray:
    """(3, 3), about an axis that no image has."""
    axis = np.array([0.6, -0.5, 0.62]) / np.linalg.norm([0.6, -0.5, 0.62])
    angle = np.deg2rad(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


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
    """``study.md`` and ``study.json`` of what is done so far; the page has only the pairs that every arm has had."""
    record = {"preset": arguments.preset, "scales": scales, "arms": rows}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.name}.json").write_text(json.dumps(record, indent=1))
    pairs = [name for name in pairs if all(name in by_pair for by_pair in rows.values())]
    if not pairs:
        return
    rows = {arm: {name: by_pair[name] for name in pairs} for arm, by_pair in rows.items()}
    degrees, shift = arguments.turned.split(",")
    whole = float(degrees) == float(shift) == 0
    rule = (
        f"iterations of every arm scaled to the time of the first (ratios: quickest of {arguments.turns} short runs in "
        f"alternation on {pairs[0]})"
        if arguments.turns
        else "the same iterations for every arm"
    )
    lines = [
        f"# Which field: equal {'time' if arguments.turns else 'iterations'}{'' if whole else ', from a bad start'}",
        "",
        f"{arguments.threads} threads, preset `{arguments.preset}`; {rule}. Made by",
        "",
        f"    python benchmarks/study.py --pairs {arguments.pairs!r} --arms {','.join(rows)!r}"
        + ("" if whole else f" --turned {arguments.turned} --name {arguments.name}")
        + ("" if arguments.turns else " --turns 0"),
        "",
        *(
            []
            if whole
            else [f"Every linear start is spoilt by a rotation of {degrees}° and a shift of {shift} mm.", ""]
        ),
        "Dice: mean over the brain pairs, and in how many of them the arm is ahead of the default. TRE in mm. The "
        "rest: means over all pairs.",
        "",
        "| arm | what it is | Dice | ahead | TRE | LNCC | SD log J | folds % | iterations scaled by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, by_pair in rows.items():
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
    (arguments.output / f"{arguments.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())

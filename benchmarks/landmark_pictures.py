"""The picture of docs/landmarks_and_labels.md, from the 2D phantom.

python benchmarks/landmark_pictures.py
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np

MOST = 8.0  # mm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images")
    options = parser.parse_args()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    import itk_nir
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom

    warnings.simplefilter("ignore")
    phantom = brain_phantom(2, seed=2, deformation=20.0, noise=60.0)
    grid, brain = phantom.geometry, phantom.fixed_labels > 0
    fixed, moving = to_sitk(phantom.fixed, grid), to_sitk(phantom.moving, phantom.moving_geometry)
    inside = np.argwhere(brain)
    at = inside[np.random.default_rng(2).choice(len(inside), 10, replace=False)]
    p = grid.index_to_physical(at[:, ::-1].astype(float))
    q = p + phantom.displacement[tuple(at.T)]
    wrong = q.copy()
    wrong[[3, 8]] += [[18.0, -24.0], [-30.0, 0.0]]
    maps = {
        "fixed_labels": to_sitk(phantom.fixed_labels, grid),
        "moving_labels": to_sitk(phantom.moving_labels, phantom.moving_geometry),
    }
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("images alone", {}),
        ("ten landmarks", {"fixed_landmarks": p, "moving_landmarks": q}),
        ("two of them wrong by 30 mm", {"fixed_landmarks": p, "moving_landmarks": wrong}),
        ("labels", maps),
        ("landmarks, no images", {"fixed_landmarks": p, "moving_landmarks": q, "metric": "none"}),
    )
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(cases) + 1)
    panels[0].imshow(phantom.fixed, cmap="gray")
    panels[0].set_title("fixed, ten landmarks", fontsize=9)
    for axes, (title, known) in zip(panels[1:], cases, strict=True):
        result = itk_nir.register(fixed, moving, **known)
        error = np.linalg.norm(result.mapping.displacement_on(grid).vectors - phantom.displacement, axis=-1)
        drawn = axes.imshow(np.where(brain, error, np.nan), cmap="magma", vmin=0, vmax=MOST)
        axes.set_title(f"{title}\n{error[brain].mean():.2f} mm", fontsize=9)
        print(f"{title}: {error[brain].mean():.3f} mm, {result.report.verdict}")
    right = np.ones(len(p), bool)
    right[[3, 8]] = False
    for axes in panels:
        axes.plot(at[right, 1], at[right, 0], "o", markersize=3, color="#6fd08c")
        axes.plot(at[~right, 1], at[~right, 0], "x", markersize=5, color="#6fd08c")
        axes.set_axis_off()
    figure.colorbar(drawn, ax=panels, shrink=0.7, label="true error, mm")
    figure.savefig(options.output / "landmarks_and_labels.png", dpi=100)
    before = np.linalg.norm(phantom.displacement, axis=-1)[brain].mean()
    print(f"before: {before:.3f} mm")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

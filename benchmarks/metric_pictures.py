"""The pictures of docs/choosing_a_metric.md, from the 2D phantom.

python benchmarks/metric_pictures.py
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from panels import save_panels

METRICS = ("lncc", "ncc", "mse", "nmi", "mind")
COLOURS = {"lncc": "#c1272d", "ncc": "#e08a1e", "mse": "#8a8a8a", "nmi": "#3b5b7a", "mind": "#4b8a4b"}
REACH = 12  # voxels


def other_contrast(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """As T2 beside T1: what is bright inside the head is dark, the air stays dark."""
    return np.where(labels > 0, 1.1 * image.max() - image, image).astype(np.float32)


def curves(fixed: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Similarities when the moving image is shifted along x, over the middle of the image."""
    import torch

    from itk_nir.engine.metrics import LevelImages, metric_named
    from itk_nir.engine.views import View

    images = [torch.from_numpy((a / a.std() - a.mean() / a.std())[None].astype(np.float32)) for a in (fixed, moving)]
    weight = torch.zeros_like(images[0])
    weight[:, 2 * REACH : -2 * REACH, 2 * REACH : -2 * REACH] = 1
    shown = LevelImages(images[0], images[1], weight=weight, radius=4, dimension=2)
    shifts = np.arange(-REACH, REACH + 1)
    found: dict[str, list[float]] = {}
    for name in METRICS:
        metric = metric_named(name).prepare(shown)
        for shift in shifts:
            u = torch.zeros(3, *images[0].shape)
            u[0] = float(shift)
            found.setdefault(name, []).append(float(metric(View(u, np.eye(4)[:3], np.eye(3)))))
    return shifts, found


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
    still, phantom = brain_phantom(2, seed=3, deformation=0.0), brain_phantom(2, seed=3)

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    sides = (("one contrast", still.moving), ("unlike contrasts", other_contrast(still.moving, still.moving_labels)))
    for axes, (title, moving) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
        shifts, found = curves(still.fixed, moving)
        for name, values in found.items():
            axes.plot(shifts, values, color=COLOURS[name], label=name)
        axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_ylim(-1.3, 1.02)
        axes.set_xlabel("shift of the moving image (voxels)")
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("similarity")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(options.output / "metrics.png", dpi=110)

    grid, brain = phantom.geometry, phantom.fixed_labels > 0
    fixed, unlike = to_sitk(phantom.fixed, grid), other_contrast(phantom.moving, phantom.moving_labels)
    panels: list[tuple[str, np.ndarray, float | None]] = [
        ("fixed", phantom.fixed, None),
        ("moving, another contrast", unlike, None),
    ]
    for metric in ("lncc", "auto"):
        result = itk_nir.register(fixed, to_sitk(unlike, grid), metric=metric)
        u = result.mapping.displacement_on(grid).vectors
        error = np.linalg.norm(u - phantom.displacement, axis=-1)
        name = metric if metric == "lncc" else f"auto ({result.report.metric})"
        panels.append((f"{name}: true error {error[brain].mean():.2f} mm", np.where(brain, error, np.nan), 6.0))
        print(f"{name}: {error[brain].mean():.3f} mm, {result.report.verdict}; {result.report.metric_reason}")
    before = np.linalg.norm(phantom.displacement, axis=-1)[brain].mean()
    print(f"before: {before:.3f} mm")
    save_panels(panels, options.output / "unlike_contrasts.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The picture of docs/lesions_and_masks.md, from the 2D phantom.

python benchmarks/lesion_pictures.py
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np


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
    phantom = brain_phantom(2, seed=3)
    grid, brain = phantom.geometry, phantom.fixed_labels > 0
    points = grid.grid()
    ball = np.linalg.norm(points - [30, 10], axis=-1) <= 12
    spoilt = phantom.moving.copy()
    spoilt[ball] = 250
    near = brain & (np.linalg.norm(points + phantom.displacement - [30, 10], axis=-1) <= 22)
    fixed, moving = to_sitk(phantom.fixed, grid), to_sitk(spoilt, grid)
    marked = to_sitk(ball.astype(np.uint8), grid)

    figure = Figure(figsize=(12, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).ravel()
    axes[0].imshow(phantom.fixed, cmap="gray")
    axes[0].set_title("fixed", fontsize=9)
    axes[1].imshow(spoilt, cmap="gray")
    axes[1].set_title("moving, with a lesion of 24 mm", fontsize=9)
    told: tuple[tuple[str, dict], ...] = (("not told", {}), ("moving_lesion=", {"moving_lesion": marked}))
    for at, (title, given) in zip(axes[2:4], told, strict=True):
        u = itk_nir.register(fixed, moving, **given).mapping.displacement_on(grid).vectors
        error = np.linalg.norm(u - phantom.displacement, axis=-1)
        drawn = at.imshow(np.where(brain, error, np.nan), cmap="magma", vmin=0, vmax=6)
        at.set_title(f"{title}\nerror around it {error[near].mean():.2f} mm", fontsize=9)
        print(f"{title}: {error[near].mean():.2f} mm around the lesion")
    figure.colorbar(drawn, ax=axes[2:4].tolist(), shrink=0.7, label="mm")

    region = to_sitk(ball.astype(np.uint8), grid)
    moving = to_sitk(phantom.moving, grid)
    for at, (title, given) in zip(
        axes[4:7],
        (("free", {}), ("rigid_regions=", {"rigid_regions": region}), ("volume_regions=", {"volume_regions": region})),
        strict=True,
    ):
        result = itk_nir.register(fixed, moving, **given)
        mapped = result.transform_points(points.reshape(-1, 2)).reshape(points.shape)
        columns = [np.gradient(mapped, axis=1) / grid.spacing[0], np.gradient(mapped, axis=0) / grid.spacing[1]]
        determinant = columns[0][..., 0] * columns[1][..., 1] - columns[0][..., 1] * columns[1][..., 0]
        drawn = at.imshow(determinant, cmap="RdBu_r", vmin=0.5, vmax=1.5)
        at.contour(ball, levels=[0.5], colors="black", linewidths=0.8)
        volume = 100 * (determinant[ball].mean() - 1)
        at.set_title(f"{title}\nvolume of the region {volume:+.1f} %", fontsize=9)
        print(f"{title}: volume {volume:+.2f} %, determinants inside {np.ptp(determinant[ball]):.3f} apart")
    figure.colorbar(drawn, ax=axes[4:7].tolist(), shrink=0.7, label="Jacobian determinant of the whole map")
    for at in axes:
        at.set_axis_off()
    figure.savefig(options.output / "lesions_and_regions.png", dpi=100)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

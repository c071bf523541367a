"""The picture of docs/lungs.md, from the phantom whose organs slide along a still wall.

python benchmarks/lung_pictures.py
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images")
    options = parser.parse_args()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    import itk_nir
    from itk_nir.images import to_sitk
    from itk_nir.phantom import sliding_phantom

    warnings.simplefilter("ignore")
    chest = sliding_phantom(25.0)
    grid = chest.geometry
    fixed, moving = to_sitk(chest.fixed, grid), to_sitk(chest.moving, grid)
    organs = (chest.fixed_labels == 2) | (chest.fixed_labels == 3)
    mask = to_sitk(organs.astype(np.uint8), grid)
    wide, high = grid.size[0] * grid.spacing[0], grid.size[2] * grid.spacing[2]
    middle = grid.size[1] // 2

    figure = Figure(figsize=(12, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()

    def show(at: Any, image: np.ndarray, title: str, **how: Any) -> Any:
        at.set_title(title, fontsize=9)
        at.set_axis_off()
        return at.imshow(image[:, middle], origin="lower", extent=(0, wide, 0, high), **how)

    show(axes[0], chest.fixed, "fixed", cmap="gray", vmin=0, vmax=230)
    show(axes[1], chest.moving, "moving: the organs 25 mm higher, the wall where it was", cmap="gray", vmin=0, vmax=230)
    axes[2].set_axis_off()
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ('search="never"', {"search": "never"}), ("default", {}), ("fixed_mask=organs", {"fixed_mask": mask}),
    )  # fmt: skip
    for at, (title, given) in zip(axes[3:], cases, strict=True):
        result = itk_nir.register(fixed, moving, linear="none", **given)
        error = np.linalg.norm(result.mapping.displacement_on(grid).vectors - chest.displacement, axis=-1)
        kept = organs if "fixed_mask" in given else chest.fixed_labels > 0
        mean, most = error[organs].mean(), np.percentile(error[organs], 95)
        shown = np.where(kept & (chest.fixed_labels != 4), error, np.nan)
        drawn = show(at, shown, f"{title}\norgans {mean:.1f} mm, 95 % {most:.1f} mm", cmap="magma", vmin=0, vmax=20)
        print(f"{title}: {mean:.2f} mm in the organs, 95 % {most:.2f} mm; search: {result.report.search or 'none'}")
    figure.colorbar(drawn, ax=axes[3:].tolist(), shrink=0.8, label="true error, mm")
    figure.savefig(options.output / "lungs.png", dpi=100)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

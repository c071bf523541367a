"""The picture of docs/echo_planar_distortion.md, from the 2D phantom.

python benchmarks/restriction_picture.py
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from metric_pictures import other_contrast
from panels import save_panels


def off_resonance(points: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """([Y], X) mm along y: a smooth field, strongest at the front of the head, as above the sinuses."""
    low, high = points[brain].min(axis=0), points[brain].max(axis=0)
    x, y = np.moveaxis((points - (low + high) / 2) / (high - low), -1, 0)
    front = np.exp(-((x / 0.35) ** 2) - ((y + 0.38) / 0.22) ** 2)
    sides = np.exp(-(((np.abs(x) - 0.42) / 0.16) ** 2) - ((y - 0.12) / 0.25) ** 2)
    return np.asarray(9.0 * front - 4.0 * sides)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "images")
    options = parser.parse_args()

    import itk_nir
    from itk_nir.images import to_sitk
    from itk_nir.phantom import brain_phantom
    from itk_nir.resample import resample_array
    from itk_nir.transforms.model import CompositeTransform, DisplacementField

    warnings.simplefilter("ignore")
    made = brain_phantom(2, seed=3, deformation=0.0)
    grid, brain = made.geometry, made.fixed_labels > 0
    truth = np.zeros((*grid.shape, 2))
    truth[..., 1] = off_resonance(grid.grid(), brain)
    undo = DisplacementField(grid, truth.astype(np.float32)).inverse()
    plain = other_contrast(made.fixed, made.fixed_labels)
    distorted = resample_array(plain, grid, CompositeTransform((undo,)), grid, "linear")
    # Echo-planar images are noisier than anatomical ones.
    distorted += np.random.default_rng(0).normal(0, 0.08 * plain.max(), plain.shape).astype(np.float32)
    fixed, moving = to_sitk(made.fixed, grid), to_sitk(distorted, grid)
    panels: list[tuple[str, np.ndarray, float | None]] = [
        ("fixed: anatomical image", made.fixed, None),
        ("moving: distorted along y", distorted, None),
    ]
    before = np.linalg.norm(truth, axis=-1)[brain].mean()
    print(f"before: {before:.2f} mm")
    for title, restrict in (("free", ()), ("restrict=(0, 1)", (0, 1))):
        result = itk_nir.register(fixed, moving, linear="none", restrict=restrict)
        u = result.mapping.displacement_on(grid).vectors
        error = np.linalg.norm(u - truth, axis=-1)
        along_x = np.abs(u[..., 0]).max()
        panels.append((f"{title}: true error {error[brain].mean():.2f} mm", np.where(brain, error, np.nan), 2.0))
        print(f"{title}: {error[brain].mean():.2f} mm, x moves by up to {along_x:.2f} mm; {result.report.metric}")
    save_panels(panels, options.output / "echo_planar.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Carry a segmentation from one subject to another, and points the other way.

    python examples/warp_labels.py FIXED MOVING MOVING_LABELS OUTPUT

Without arguments it runs on the brain phantom, whose fixed labels are known, and prints the Dice of each tissue.
"""

from __future__ import annotations

import sys

import numpy as np

import itk_nir
from itk_nir.images import load_image, save_image, to_sitk
from itk_nir.phantom import LABELS, brain_phantom


def on_files(fixed: str, moving: str, moving_labels: str, output: str) -> None:
    result = itk_nir.register(fixed, moving, preset="fast")
    # "nearest": the labels that come out are labels that went in.
    labels = itk_nir.apply(moving_labels, result, interpolation="nearest")
    warped = load_image(labels, "warped labels", native=True)
    save_image(warped.array, warped.geometry, output)
    print(f"wrote {output}")


def on_the_phantom() -> None:
    phantom = brain_phantom(3, (80, 96, 80))
    grid = phantom.geometry
    result = itk_nir.register(to_sitk(phantom.fixed, grid), to_sitk(phantom.moving, grid), preset="fast")
    labels = itk_nir.apply(to_sitk(phantom.moving_labels, grid), result, interpolation="nearest")
    warped = load_image(labels, "warped labels", native=True).array

    print(f"{'Dice':<26}before  after")
    for name, value in LABELS.items():
        truth = phantom.fixed_labels == value
        scores = [2 * np.sum(truth & (a == value)) / (truth.sum() + np.sum(a == value))
                  for a in (phantom.moving_labels, warped)]  # fmt: skip
        print(f"{name:<26}{scores[0]:6.3f} {scores[1]:6.3f}")

    # Points go the way opposite to images: from the fixed subject to the moving one, LPS mm.
    landmark = grid.index_to_physical([[40, 48, 50]])
    there = result.transform_points(landmark)
    back = result.transform_points(there, inverse=True)
    print(f"fixed point {landmark[0].round(2)} lies at {there[0].round(2)} in the moving image,")
    print(f"and comes back to within {np.linalg.norm(back - landmark):.3f} mm")


if __name__ == "__main__":
    if len(sys.argv) not in (1, 5):
        sys.exit("give FIXED MOVING MOVING_LABELS OUTPUT, or nothing for the brain phantom")
    if sys.argv[1:]:
        on_files(*sys.argv[1:])
    else:
        on_the_phantom()

"""Where a script calls SyN today, call this instead.

ANTsPy:

    result = ants.registration(fixed, moving, type_of_transform="SyNCC")
    warped = result["warpedmovout"]
    labels = ants.apply_transforms(fixed, moving_labels, result["fwdtransforms"], interpolator="nearestNeighbor")

itk-nir, on ``itk.Image`` objects: see `main`. Without arguments it runs on the brain phantom; with two it takes paths:

    python examples/replace_syn.py FIXED MOVING
"""

from __future__ import annotations

import sys
from typing import Any

import itk
import numpy as np

import itk_nir
from itk_nir.images import to_itk
from itk_nir.phantom import brain_phantom


def images(arguments: list[str]) -> tuple[Any, Any]:
    """Two ``itk.Image``: from the paths given, or the phantom's."""
    if len(arguments) not in (0, 2):
        sys.exit("give FIXED MOVING, or nothing for the brain phantom")
    if arguments:
        return itk.imread(arguments[0], itk.F), itk.imread(arguments[1], itk.F)
    phantom = brain_phantom(3, (80, 96, 80))
    return to_itk(phantom.fixed, phantom.geometry), to_itk(phantom.moving, phantom.moving_geometry)


def main(arguments: list[str]) -> None:
    fixed, moving = images(arguments)

    result = itk_nir.register(fixed, moving, preset="fast")

    # An ordinary ITK transform: everything that takes one takes this, and its inverse comes with it.
    transform = result.transform
    warped = itk.resample_image_filter(moving, transform=transform, use_reference_image=True, reference_image=fixed)

    before = np.corrcoef(_values(itk.resample_image_filter(moving, use_reference_image=True, reference_image=fixed)),
                         _values(fixed))[0, 1]  # fmt: skip
    after = np.corrcoef(_values(warped), _values(fixed))[0, 1]
    determinant = _values(result.jacobian_determinant())
    print(f"correlation with the fixed image: {before:.3f} before, {after:.3f} after")
    print(f"Jacobian determinant: {determinant.min():.2f} to {determinant.max():.2f}")
    print(f"inverse at hand: {transform.GetInverseTransform() is not None}")


def _values(image: Any) -> Any:
    return itk.array_view_from_image(image).ravel()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Linear maps between binary shapes of unlike size: nothing but outlines to go by, and no good rigid map between."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from itk_nir import register
from itk_nir.geometry import Geometry

Sides = tuple[tuple[int, int], tuple[int, int]]

GRID = Geometry.make((100, 100), (1, 1), (0, 0))


def box(x: tuple[int, int], y: tuple[int, int]) -> NDArray[np.float32]:
    image = np.zeros((100, 100), np.float32)
    image[slice(*y), slice(*x)] = 1
    return image


def corners(x: tuple[int, int], y: tuple[int, int]) -> NDArray[np.float64]:
    return np.array([(a - 0.5, b - 0.5) for a in x for b in y])


@pytest.mark.filterwarnings("ignore")  # binary images are warned of
@pytest.mark.parametrize(
    ("metric", "fixed", "moving", "most"),
    [
        # elastix' own examples of affine registration; without few bins, or without a direct descent, 20 px and more
        # One column of background lies beside the second box: a map that puts it beyond the border is as good by nmi.
        ("nmi", ((25, 75), (25, 75)), ((1, 71), (1, 91)), 2.5),
        ("nmi", ((25, 75), (25, 75)), ((11, 81), (5, 95)), 0.75),
        ("nmi", ((25, 75), (25, 75)), ((5, 95), (5, 95)), 0.75),
        ("nmi", ((20, 70), (30, 60)), ((30, 90), (30, 55)), 0.75),
        ("ncc", ((25, 75), (25, 75)), ((1, 71), (1, 91)), 0.75),
        ("mse", ((25, 75), (25, 75)), ((1, 71), (1, 91)), 10.0),
    ],
)
def test_boxes_of_unlike_size_meet(metric: str, fixed: Sides, moving: Sides, most: float) -> None:
    pair = [(box(*sides), GRID) for sides in (fixed, moving)]
    result = register(*pair, linear="affine", deformable=False, metric=metric, preset="fast", threads=1)
    found = result.affine.map(corners(*fixed))
    assert np.linalg.norm(found - corners(*moving), axis=1).max() < most

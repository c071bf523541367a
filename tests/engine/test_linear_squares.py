"""Linear maps between binary shapes of unlike size: nothing but outlines to go by, and no good rigid map between."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from itk_nir import register
from itk_nir.engine.linear_starts import angle
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from tests.grids import about_centre, turned

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("turn", [100, 140, 220, 260])
def test_a_turn_that_an_object_does_not_show_is_not_made(turn: int) -> None:
    """What a header turns a long box by shows up to half a turn."""
    sides = (25, 75), (35, 65)
    shape = box(*sides)
    moving = to_sitk(shape, about_centre(GRID, turned(2, np.deg2rad(turn)), np.zeros(2)))
    result = register(to_sitk(shape, GRID), moving, linear="rigid", deformable=False, preset="fast", threads=1)
    assert angle(result.affine.matrix) == pytest.approx(abs(180 - turn), abs=1.0)
    inside = result.affine.map(corners(*sides))
    reach = np.linalg.norm(inside - GRID.index_to_physical([[49.5, 49.5]]), axis=1)
    np.testing.assert_allclose(reach, np.linalg.norm(np.ptp(corners(*sides), axis=0)) / 2, atol=1.0)


@pytest.mark.filterwarnings("ignore")
def test_landmarks_tell_the_turn_of_an_object_that_does_not_show_it() -> None:
    sides = (25, 75), (25, 75)
    shape, turn = box(*sides), turned(2, np.deg2rad(90))
    moving = about_centre(GRID, turn, np.zeros(2))
    index = np.array([[30.0, 35.0], [70.0, 40.0], [45.0, 72.0]])
    points = {"fixed_landmarks": GRID.index_to_physical(index), "moving_landmarks": moving.index_to_physical(index)}
    pair = to_sitk(shape, GRID), to_sitk(shape, moving)
    result = register(*pair, linear="rigid", deformable=False, preset="fast", threads=1, **points)
    assert angle(result.affine.matrix) == pytest.approx(90, abs=2.0)
    assert angle(register(*pair, linear="rigid", deformable=False, preset="fast", threads=1).affine.matrix) < 2.0

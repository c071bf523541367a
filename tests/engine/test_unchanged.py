"""Images that lie on each other and differ by noise alone, and such that only look like it."""

from __future__ import annotations

import numpy as np
import pytest

from itk_nir.engine.unchanged import free_to_move
from itk_nir.geometry import Geometry
from itk_nir.phantom import brain_phantom
from tests.engine.pairs import pair_of


@pytest.mark.parametrize(
    ("size", "margin", "noise"),
    [((96, 112), 60, 30), ((96, 112), 60, 40), ((112, 134), 40, 20), ((96, 112), 30, 60)],
)
def test_objects_that_lie_apart_in_empty_surroundings_are_not_unchanged(
    size: tuple[int, int], margin: int, noise: float
) -> None:
    """Most of such images is the same but for noise; most of the edges of the object are not."""
    p = brain_phantom(2, size)
    rng = np.random.default_rng(0)
    fixed, still, moved = (
        np.pad(image, margin) + noise * rng.normal(size=np.add(image.shape, 2 * margin))
        for image in (p.fixed, p.fixed, p.moving)
    )
    grid = Geometry.make(fixed.shape[::-1])
    assert free_to_move(pair_of(fixed, moved, grid)) is None
    same = free_to_move(pair_of(fixed, still, grid))
    assert same is not None
    assert float(same.float().mean()) < 0.05, "chance"
    still[100:120, 90:110] += 150  # a part that changed is one all the same
    changed = free_to_move(pair_of(fixed, still, grid))
    assert changed is not None
    assert 0 < float(changed.float().mean()) < 0.2

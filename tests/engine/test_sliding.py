"""Organs that slide along a still wall: the field jumps there, and is smooth and free of folds elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from itk_nir.engine.images import Pair
from itk_nir.engine.lattice import Domain
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.ops import jacobian_map
from itk_nir.engine.sliding import is_sure, told_apart
from itk_nir.geometry import Geometry

SIZE, MOTION = 72, 12.0


def pattern(x: Any, y: Any, seed: int) -> Any:
    """A texture of waves of 8 to 20 mm."""
    rng = np.random.default_rng(seed)
    out = np.zeros(np.shape(x))
    for _ in range(12):
        length, angle, phase = rng.uniform(8, 20), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        out += np.sin(2 * np.pi / length * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return out


def moved(motion: np.ndarray, column: np.ndarray) -> Pair:
    """A column between walls that moves along y, ``(y, x)``; everything else is still."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    noise = np.random.default_rng(0).standard_normal((2, SIZE, SIZE))
    fixed = np.where(column, pattern(x, y + motion, 1), 4 + pattern(x, y, 2)) + 0.2 * noise[0]
    moving = np.where(column, pattern(x, y, 1), 4 + pattern(x, y, 2)) + 0.2 * noise[1]
    geometry = Geometry.make((SIZE, SIZE), (1.0, 1.0), (0.0, 0.0))
    images = [torch.from_numpy(a[None]).float() for a in (fixed, moving)]
    return Pair.make(images[0], geometry, images[1], geometry, np.eye(3))


def from_ramp(pair: Pair, ramp: np.ndarray) -> torch.Tensor | None:
    """What becomes of a displacement along y, ``(y, x)``."""
    grids = LevelGrids.of(pair, Domain((0, 0, 0), (SIZE, SIZE, 1)), 1.0)
    channels = LevelChannels.of(pair, grids, pair.normalised(), 0.0, 4, 1)
    u = torch.zeros(3, 1, SIZE, SIZE)
    u[1, 0] = torch.from_numpy(ramp)
    return told_apart(pair, channels, grids, u, 1)


#: From the middle, and the motion with a ramp of twelve voxels at each border of the column.
AWAY = np.broadcast_to(abs(np.arange(SIZE) - SIZE / 2), (SIZE, SIZE))
COLUMN = AWAY < 12
RAMP = MOTION * np.clip((18 - AWAY) / 12, 0, 1)


def test_a_ramp_becomes_a_step_where_things_slide() -> None:
    steps = from_ramp(moved(np.full((SIZE, SIZE), MOTION), COLUMN), RAMP)
    assert steps is not None
    truth = np.where(COLUMN, MOTION, 0.0)[14:-14]
    before, after = (np.abs(u[14:-14] - truth) for u in (RAMP, steps[1, 0].numpy()))
    assert np.percentile(before, 95) > 4
    assert np.percentile(after, 95) < 1
    assert after.mean() < 0.3 * before.mean()
    assert float(jacobian_map(steps, 1)[0, 14:-14].min()) > 0


def test_a_ramp_that_the_images_have_stays() -> None:
    everywhere = np.ones((SIZE, SIZE), bool)
    assert from_ramp(moved(RAMP, everywhere), RAMP) is None


def test_a_gentle_motion_is_not_looked_at() -> None:
    gentle = MOTION * np.clip((21 - AWAY) / 18, 0, 1)
    assert from_ramp(moved(np.full((SIZE, SIZE), MOTION), COLUMN), gentle) is None


def test_only_a_search_that_is_sure_says_what_slides() -> None:
    assert is_sure("kept, 95 % of the matches lead back")
    assert is_sure("kept, 60 % of the matches lead back, things that slide along each other told apart")
    for told in ("kept, 28 % of the matches lead back", "not kept, 95 % of the matches lead back", "not needed", ""):
        assert not is_sure(told), told

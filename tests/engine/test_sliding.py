"""Organs that slide along a still wall: the field jumps there, and is smooth and free of folds elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from itk_nir.engine import deformable
from itk_nir.engine.images import Pair
from itk_nir.engine.inside import share_of_object
from itk_nir.engine.lattice import Domain
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.level import FieldInTraining
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.ops import jacobian_map
from itk_nir.engine.search import Outcome
from itk_nir.engine.settings import DeformableSettings
from itk_nir.engine.sliding import Steps, are_worth, is_sure, steep_band, told_apart, with_steps
from itk_nir.geometry import Geometry

SIZE, MOTION = 72, 12.0
GEOMETRY = Geometry.make((SIZE, SIZE), (1.0, 1.0), (0.0, 0.0))


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
    images = [torch.from_numpy(a[None]).float() for a in (fixed, moving)]
    return Pair.make(images[0], GEOMETRY, images[1], GEOMETRY, np.eye(3))


def from_ramp(pair: Pair, ramp: np.ndarray) -> torch.Tensor | None:
    """What becomes of a displacement along y, ``(y, x)``."""
    grids = LevelGrids.of(pair, Domain((0, 0, 0), (SIZE, SIZE, 1)), 1.0)
    channels = LevelChannels.of(pair, grids, pair.normalised(), 0.0, 4, 1)
    u = torch.zeros(3, 1, SIZE, SIZE)
    u[1, 0] = torch.from_numpy(ramp)
    found = told_apart(pair, channels, grids, u, steep_band(pair, grids, u), 1)
    return None if found is None else found[0]


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


def at_rest(block: Domain) -> FieldInTraining:
    """A field that moves nothing."""
    lattices = Lattices.halved(block.lattice((8.0,) * 3), 8.0, 0, block.ends)
    return FieldInTraining(GEOMETRY, lattices, DeformableSettings(), 0, torch.device("cpu"), 1)


def on_field_at_rest(steps: np.ndarray, share: np.ndarray, block: Domain) -> torch.Tensor:
    """What a field that moves nothing becomes with a displacement along x and y, ``(2, y, x)``, on the whole image."""
    image = torch.zeros(1, SIZE, SIZE)
    grid = LevelGrids.of(Pair.make(image, GEOMETRY, image, GEOMETRY, np.eye(3)), block, 1.0)
    u = torch.zeros(3, 1, *steps.shape[1:])
    u[:2, 0] = torch.from_numpy(steps)
    field = with_steps(at_rest(block).trained(), Steps(grid.fixed, u, torch.tensor(share)[None, None].float()), block)
    return field.on_grid([np.arange(SIZE, dtype=float), np.arange(SIZE, dtype=float), np.zeros(1)])


def test_a_field_has_its_steps_where_the_band_is_and_nowhere_else() -> None:
    truth = np.zeros((2, SIZE, SIZE))
    truth[1] = np.where(COLUMN, MOTION, 0.0)
    band = np.broadcast_to(abs(AWAY - 12) < 4, (SIZE, SIZE))
    found = on_field_at_rest(truth, band, Domain((0, 0, 0), (SIZE, SIZE, 1)))[:2, 0].numpy()
    np.testing.assert_allclose(found[:, band], truth[:, band], atol=1e-5)  # a border that runs along folds nothing
    assert not found[:, ~band].any()


def test_steps_that_fold_are_smoothed_until_they_do_not() -> None:
    rng = np.random.default_rng(0)
    wild = np.zeros((2, SIZE, SIZE))
    wild[:, 20:50, 20:50] = rng.normal(0, 3, (2, 30, 30))
    found = on_field_at_rest(wild, np.ones((SIZE, SIZE)), Domain((0, 0, 0), (SIZE, SIZE, 1)))
    gradient = np.stack(np.gradient(wild, axis=(2, 1)), -1).transpose(1, 2, 0, 3)
    assert np.linalg.det(np.eye(2) + gradient).min() < 0
    assert float(jacobian_map(found, 1).min()) >= 0.1
    assert float(found.abs().max()) > 0.5


def test_a_ramp_that_the_images_have_stays() -> None:
    everywhere = np.ones((SIZE, SIZE), bool)
    assert from_ramp(moved(RAMP, everywhere), RAMP) is None


def test_a_gentle_motion_is_not_looked_at() -> None:
    gentle = MOTION * np.clip((21 - AWAY) / 18, 0, 1)
    assert from_ramp(moved(np.full((SIZE, SIZE), MOTION), COLUMN), gentle) is None


def test_steps_come_back_from_their_arrays() -> None:
    at = [np.arange(3.0), np.arange(2.0), np.zeros(1)]
    steps = Steps(at, torch.rand(3, 1, 2, 3), torch.rand(1, 1, 2, 3), 0.3, 0.02)
    again = Steps.of_arrays({"other": torch.zeros(1)} | steps.arrays(), torch.device("cpu"))
    assert again is not None
    assert [p.tolist() for p in again.positions] == [p.tolist() for p in steps.positions]
    assert torch.equal(again.displacement, steps.displacement)
    assert torch.equal(again.share, steps.share)
    assert (again.left, again.steep) == (steps.left, steps.steep)
    assert Steps.of_arrays({"other": torch.zeros(1)}, torch.device("cpu")) is None


def test_only_a_search_that_is_sure_says_what_slides() -> None:
    assert is_sure(Outcome("in any words", 0.95, kept=True))
    assert is_sure(Outcome("in any words", 0.85, kept=True))
    assert is_sure(Outcome("not kept", 0.95))
    unsure = (Outcome("", 0.28, kept=True), Outcome("two brains", 0.78, kept=True))
    for search in (*unsure, Outcome("not kept", 0.89), Outcome("not needed"), Outcome()):
        assert not is_sure(search), search


def test_steps_may_cost_a_little_of_what_was_gained() -> None:
    assert are_worth(0.5, 0.862, 0.73, 0.86)
    assert are_worth(0.5, 0.8585, 0.73, 0.86)
    assert not are_worth(0.7, 0.8585, 0.73, 0.86)  # the band is explained little better
    assert not are_worth(0.5, 0.856, 0.73, 0.86)
    assert not are_worth(0.5, 0.8585, 0.84, 0.86)  # little was gained
    assert not are_worth(0.5, float("nan"), 0.73, 0.86)


def test_what_little_of_an_object_is_steep_is_not_said_to_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "similarity_with", lambda *_: 0.9)
    level: Any = None
    for number, told in ((1, False), (4, True)):
        shown, where = (torch.zeros(1, 40, 40) for _ in range(2))
        shown[0, 10:30, 10:30] = 1
        where[0, :10], where[0, 20, 10 : 10 + number] = 1, 1  # what is steep in the background does not count
        steep = share_of_object(where > 0, shown)
        assert steep == pytest.approx(number / 400)
        steps = Steps([], where[None].expand(3, -1, -1, -1), where[None], 0.7, steep)
        kept, measured, searched = deformable._believed(steps, level, level, (0.7, 0.9), Outcome("kept", 0.95, True))
        assert (kept, measured, searched.slides) == (None, (0.7, 0.9), told)

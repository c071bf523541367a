"""Masks of a slice or a few: the smoother field is tried, and kept where the deformation is smooth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from itk_nir import make_settings
from itk_nir.engine import thin_masks
from itk_nir.engine.deformable import optimise
from itk_nir.engine.images import Pair, as_volume
from itk_nir.engine.journal import Entry, Journal
from itk_nir.engine.progress import Optimised, Progress
from itk_nir.engine.settings import DeformableSettings
from itk_nir.phantom import Phantom, brain_phantom
from tests.engine.pairs import changed


@pytest.fixture(scope="module")
def brain() -> Phantom:
    return brain_phantom(3, (54, 64, 54), seed=1)


def planes(shape: tuple[int, ...], axis: int, count: int) -> np.ndarray:
    inside = np.zeros(shape, bool)
    np.moveaxis(inside, axis, 0)[shape[axis] // 2 + 1 :][:count] = True
    return inside


def masked(brain: Phantom, inside: np.ndarray) -> Pair:
    fixed, moving = (as_volume(torch.from_numpy(x)) for x in (brain.fixed, brain.moving))
    pair = Pair.make(fixed, brain.geometry, moving, brain.moving_geometry, np.eye(4))
    return changed(pair, fixed_weight=torch.from_numpy(inside.astype(np.float32)))


def told(**changes: Any) -> DeformableSettings:
    return DeformableSettings(**({"metric": "lncc", "extra_iterations_below": 0} | changes))


def test_smoother_field_of_one_slice_is_nearer_to_a_smooth_truth(brain: Phantom) -> None:
    slice_ = planes(brain.fixed.shape, 0, 1)
    inside = slice_ & (brain.fixed_labels > 0)
    at, truth = brain.geometry.grid()[inside], brain.displacement[inside]
    pair, fractions = masked(brain, slice_), list[float]()

    def tell(now: Progress) -> None:
        fractions.append(now.fraction)

    usual, done = optimise(pair, told(thin_masks=False)), optimise(pair, told(), callback=tell)
    errors = [np.linalg.norm(found.field.displacement(at) - truth, axis=-1).mean() for found in (usual, done)]
    assert errors[1] < 0.65 * errors[0]
    assert "smoother field kept" in done.search
    assert "smoother field kept" not in usual.search
    assert len(fractions) == len(usual.trace) + len(done.trace)
    assert fractions == sorted(fractions)
    assert fractions[len(usual.trace) - 1] == pytest.approx(0.5)
    assert fractions[-1] == pytest.approx(1)
    assert {i.level for i in done.trace} == {0, 1, 2}


def test_what_ends_the_smoother_field_leaves_the_other_one(brain: Phantom) -> None:
    pair, settings = masked(brain, planes(brain.fixed.shape, 0, 1)), {"iterations": (8, 4, 2), "search": "never"}
    usual = optimise(pair, told(**settings, thin_masks=False))
    done = optimise(pair, told(**settings), callback=lambda now: now.fraction > 0.6)
    assert done.stop == "cancelled"
    assert done.trace == usual.trace
    at = brain.geometry.grid()[20].reshape(-1, 3)
    np.testing.assert_array_equal(done.field.displacement(at), usual.field.displacement(at))


def test_run_that_stopped_at_the_smoother_field_is_taken_up(brain: Phantom) -> None:
    pair, settings = masked(brain, planes(brain.fixed.shape, 0, 1)), told(iterations=(8, 4, 2), search="never")
    written: dict[str, Entry] = {}

    def stop(now: Progress) -> None:
        if now.fraction > 0.6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        optimise(pair, settings, callback=stop, journal=Journal(written.update, seconds=0))
    whole, again = optimise(pair, settings), optimise(pair, settings, journal=Journal(entries=written))
    assert again.trace == whole.trace
    at = brain.geometry.grid()[20].reshape(-1, 3)
    np.testing.assert_array_equal(again.field.displacement(at), whole.field.displacement(at))


def test_other_anatomy_keeps_its_field(brain: Phantom) -> None:
    """Two people differ in small places: the same field, to the bit, as if no other had been tried."""
    other = brain_phantom(3, (54, 64, 54), seed=6)
    pair = changed(masked(brain, planes(brain.fixed.shape, 1, 1)), moving=as_volume(torch.from_numpy(other.moving)))
    usual, done = (optimise(pair, told(thin_masks=tried)) for tried in (False, True))
    assert done.trace == usual.trace
    at = brain.geometry.grid()[:, 32].reshape(-1, 3)
    np.testing.assert_array_equal(done.field.displacement(at), usual.field.displacement(at))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_which_masks_are_thin(brain: Phantom, axis: int) -> None:
    shape = brain.fixed.shape
    for count, thin in ((1, True), (7, True), (8, False), (20, False)):
        assert thin_masks.concerned(masked(brain, planes(shape, axis, count)), told()) is thin
    small = planes(shape, 0, 5) & planes(shape, 1, 5) & planes(shape, 2, 5)
    assert not thin_masks.concerned(masked(brain, small), told())
    slice_ = masked(brain, planes(shape, axis, 1))
    assert not thin_masks.concerned(slice_, told(thin_masks=False))
    assert not thin_masks.concerned(slice_, told(metric="nmi"))
    assert not thin_masks.concerned(changed(slice_, fixed_weight=None), told())


def test_smoother_settings() -> None:
    settings = told(grid_spacing=(1.0, 2.0, 4.0), smoothness=(3.0, 6.0, 0.0))
    smoother = thin_masks.smoother(settings)
    assert smoother.grid_spacing == (4.0, 8.0, 16.0)
    assert smoother.smoothness == pytest.approx((1.0, 2.0, 0.0))
    # A spacing that is asked for is the only one.
    assert make_settings("fast").deformable.thin_masks
    assert not make_settings("fast", grid_spacing=(2.0, 2.0, 4.0)).deformable.thin_masks
    assert make_settings("fast", grid_spacing=(2.0, 2.0, 4.0), thin_masks=True).deformable.thin_masks


@pytest.mark.parametrize(
    ("start", "smooth", "usual", "kept"),
    [(0.5, 0.9, 0.9, True), (0.5, 0.87, 0.9, True), (0.5, 0.85, 0.9, False), (0.9, 0.89, 0.9, False)],
)
def test_when_the_smoother_field_is_believed(start: float, smooth: float, usual: float, kept: bool) -> None:
    found, other = (Optimised(None, (), "", start, end) for end in (smooth, usual))
    assert thin_masks.believed(found, other) is kept
    assert not thin_masks.believed(Optimised(None, (), ""), other)

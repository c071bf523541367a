"""The linear stage on textured pairs whose map is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from itk_nir.engine import ops
from itk_nir.engine.images import as_volume
from itk_nir.engine.linear import optimise_linear
from itk_nir.engine.progress import Progress
from itk_nir.engine.settings import LinearSettings
from tests.engine.pairs import changed

BOTH = pytest.mark.parametrize("d", [2, 3])
N = {2: 56, 3: 36}
#: Less than the presets have: the images are small and clean.
QUICK = LinearSettings(linear_size=(24, 36), linear_iterations=(80, 30), linear_start_iterations=25)


def rigid(d: int, angle: float = 0.2, shift: float = 4.0) -> np.ndarray:
    m = np.eye(d + 1)
    c, s = np.cos(angle), np.sin(angle)
    m[:2, :2] = [[c, -s], [s, c]]
    if d == 3:
        tilt = np.eye(3)
        tilt[1:, 1:] = [[np.cos(0.15), -np.sin(0.15)], [np.sin(0.15), np.cos(0.15)]]
        m[:3, :3] = m[:3, :3] @ tilt
    m[:d, d] = np.array([1.0, -0.7, 0.5])[:d] * shift
    return m


def affine(d: int) -> np.ndarray:
    m = rigid(d)
    m[:d, :d] = m[:d, :d] @ np.diag([1.12, 0.93, 1.05][:d])
    m[0, 1] += 0.06
    return m


def error(case: Any, matrix: np.ndarray) -> float:
    """Mean distance to the true map within the object, mm."""
    d = case.fixed.dimension
    p = case.points()
    gap = p @ (matrix - case.linear)[:d, :d].T + (matrix - case.linear)[:d, d]
    return float(np.linalg.norm(gap, axis=-1).mean())


def find(case: Any, kind: str, **options: Any) -> np.ndarray:
    found = optimise_linear(case.pair, kind, options.pop("settings", QUICK), **options)
    assert not found.cancelled
    assert 0 < found.similarity <= 1
    return found.matrix


@BOTH
def test_rigid(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=rigid(d), given=np.eye(d + 1), amplitude=0.0)
    matrix = find(case, "rigid")
    assert error(case, np.eye(d + 1)) > 3
    assert error(case, matrix) < 0.25
    np.testing.assert_allclose(matrix[:d, :d] @ matrix[:d, :d].T, np.eye(d), atol=1e-5)
    assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@BOTH
def test_affine(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=affine(d), given=np.eye(d + 1), amplitude=0.0)
    assert error(case, find(case, "affine")) < 0.3
    # A rigid map cannot.
    assert error(case, find(case, "rigid")) > 0.5


@pytest.mark.slow
@BOTH
def test_unlike_oblique_grids_far_from_the_origin(make_case: Callable[..., Any], d: int) -> None:
    """The matrix is LPS, fixed → moving, whatever the grids."""
    case = make_case(
        d, N[d], spacing=(1.0, 1.3, 1.6)[:d], moving_spacing=(1.4, 0.9, 1.2)[:d], angle=0.5, moving_angle=-0.9,
        linear=affine(d), given=np.eye(d + 1), amplitude=0.0, away=90.0,
    )  # fmt: skip
    assert error(case, find(case, "affine")) < 0.4


@pytest.mark.slow
@BOTH
def test_images_that_lie_far_apart(make_case: Callable[..., Any], d: int) -> None:
    """No voxel in common: the centres of the grids, or of mass, make the start."""
    case = make_case(d, N[d], linear=rigid(d), given=np.eye(d + 1), amplitude=0.0)
    g = case.pair.moving_geometry
    away = np.array([300.0, -200.0, 150.0])[:d]
    moved = replace(g, origin=tuple(np.asarray(g.origin) + away))
    far = changed(case.pair, moving_geometry=moved)
    wanted = case.linear.copy()
    wanted[:d, d] += away
    found = optimise_linear(far, "rigid", QUICK)
    assert error(replace(case, linear=wanted), found.matrix) < 0.3
    assert found.similarity > 0.8


def test_object_at_the_other_end_of_a_wide_image(make_case: Callable[..., Any]) -> None:
    """Neither the images as they lie nor their centres overlap enough: the centres of mass do."""
    case = make_case(2, 56, linear=rigid(2, 0.1, 0.0), given=np.eye(3), amplitude=0.0)
    wide = torch.zeros(1, 56, 180)
    wide[..., 120:176] = case.pair.moving
    pair = changed(case.pair, moving=wide[..., :180].contiguous(),
                   moving_geometry=case.pair.moving_geometry.crop((0, 0), (180, 56)))  # fmt: skip
    wanted = case.linear.copy()
    wanted[0, 2] += 120
    found = optimise_linear(pair, "rigid", QUICK)
    assert error(replace(case, linear=wanted), found.matrix) < 0.5


@pytest.mark.slow
@BOTH
def test_inverted_contrast(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=affine(d), given=np.eye(d + 1), amplitude=0.0)
    inverted = replace(case, pair=changed(case.pair, moving=500 - 3 * case.pair.moving))
    assert error(inverted, find(inverted, "affine")) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_mask_leaves_the_rest_out(make_case: Callable[..., Any], which: str) -> None:
    case = make_case(2, 56, linear=rigid(2, 0.12, 3.0), given=np.eye(3), amplitude=0.0)
    g = case.fixed
    q = g.grid() - g.centre
    kept = as_volume(torch.from_numpy((q[..., 0] < 4).astype(np.float32)))
    # The other half of one image is that of an image that was never moved.
    plain = make_case(2, 56, amplitude=0.0)
    other = plain.pair.moving if which == "fixed" else plain.pair.fixed.flip(1) * 2
    image = torch.where(kept > 0.5, getattr(case.pair, which), other)
    spoilt = replace(case, pair=changed(case.pair, **{which: image}))
    masked = replace(spoilt, pair=changed(spoilt.pair, **{f"{which}_weight": kept}))
    assert error(masked, find(masked, "rigid")) < 0.4
    assert error(masked, find(masked, "rigid")) < error(spoilt, find(spoilt, "rigid"))


@pytest.mark.slow
@BOTH
def test_linear_map_that_is_given_comes_after(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=affine(d), given=rigid(d), amplitude=0.0)
    # From a turn that no start of its own would find.
    turned = rigid(d, 2.4, 0.0)
    far = make_case(d, N[d], linear=turned @ affine(d), given=turned, amplitude=0.0)
    for each in (case, far):
        assert error(each, find(each, "affine", search=False)) < 0.4


def test_nothing_to_find_leaves_what_is_given(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 56, linear=affine(2), amplitude=0.0)
    assert error(case, case.pair.linear) == pytest.approx(0, abs=1e-9)
    for kind in ("rigid", "affine"):
        assert error(case, find(case, kind, search=False)) < 0.1


def test_same_bits_again_and_on_more_threads(make_case: Callable[..., Any]) -> None:
    case = make_case(3, 28, linear=affine(3), given=np.eye(4), amplitude=0.0)
    few = LinearSettings(linear_size=(20,), linear_iterations=(20,), linear_start_iterations=5)
    torch.rand(3)
    first = find(case, "affine", settings=few)
    for threads in (1, 2):
        np.testing.assert_array_equal(find(case, "affine", settings=few, threads=threads), first)


@pytest.mark.slow
def test_progress_and_cancel(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48, linear=rigid(2), given=np.eye(3), amplitude=0.0)
    seen: list[Progress] = []
    optimise_linear(case.pair, "affine", QUICK, callback=seen.append)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.1
    assert fractions[-1] == 1.0
    assert {p.stage for p in seen} == {"linear"}
    assert [p.level for p in seen] == sorted(p.level for p in seen)
    # Cancelled while the starts are tried, in the first level, in the last: the best so far, better than nothing.
    for at in (10, len(seen) // 2, len(seen) - 5):
        count = 0

        def stop(_: Progress, at: int = at) -> bool:
            nonlocal count
            count += 1
            return count == at

        found = optimise_linear(case.pair, "affine", QUICK, callback=stop)
        assert found.cancelled
        assert count == at
        assert error(case, found.matrix) < error(case, np.eye(3))
        assert found.similarity > seen[0].metric


def test_learning_rate_that_is_told_is_the_one_of_the_step(
    make_case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In voxels of the level; Adam gets mm."""
    case = make_case(2, 48, spacing=(0.8, 1.2), linear=rigid(2), given=np.eye(3))
    taken: list[float] = []
    step = ops.Adam.step

    def noted(self: ops.Adam, rate: float) -> None:
        taken.append(rate)
        step(self, rate)

    monkeypatch.setattr(ops.Adam, "step", noted)
    seen: list[Progress] = []
    chosen = LinearSettings(
        linear_size=(12, 24), linear_iterations=(6, 4), linear_start_iterations=3, linear_learning_rate=0.3
    )
    optimise_linear(case.pair, "rigid", chosen, callback=seen.append)
    voxels = [2 * case.fixed.half_extent / size for size in chosen.linear_size]
    assert len(seen) == len(taken) >= 10
    assert taken == pytest.approx([p.learning_rate * voxels[p.level] for p in seen])
    assert [p.learning_rate for p in seen if p.iteration == 0] == pytest.approx([0.3] * (len(seen) // 3 - 1), abs=1e-9)
    assert all(0 < p.learning_rate <= 0.3 for p in seen)

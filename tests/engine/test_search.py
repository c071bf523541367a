"""The search for motion that a gradient cannot find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from itk_nir.engine.deformable import optimise
from itk_nir.engine.images import as_volume
from itk_nir.engine.search import Matches, find_matches
from itk_nir.engine.settings import DeformableSettings
from itk_nir.errors import OptionError
from tests.engine.pairs import Case, changed, quick, texture
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])
#: mm: in 2D 10 % of what is searched, in 3D 16 %; more than half a wave of the texture.
FAR = {2: [5.0, -3.0], 3: [7.0, -5.0, 4.0]}


def far_apart(make_case: Callable[..., Any], d: int, **more: Any) -> Case:
    """A pair that the linear map it is told leaves far apart."""
    shift = np.eye(d + 1)
    shift[:d, d] = FAR[d]
    case: Case = make_case(d, 48, linear=shift, given=np.eye(d + 1), moving_size=64, amplitude=0.02, **more)
    return case


def wanted(case: Case) -> np.ndarray:
    """The true displacement before the linear map of the pair, LPS mm at `case.points()`."""
    d, p = case.fixed.dimension, case.points()
    there = (p + case.truth(p)) @ case.linear[:d, :d].T + case.linear[:d, d]
    back = np.linalg.inv(case.pair.linear)
    return np.asarray(there @ back[:d, :d].T + back[:d, d] - p)


def distance(case: Case, found: Matches) -> float:
    """Mean distance of the matches to the truth, mm."""
    g = case.fixed
    u = found.on_grid([np.arange(n, dtype=float) for n in [*g.size, 1][:3]])
    d = g.dimension
    at_voxels = (u if d == 3 else u[:2, 0]).movedim(0, -1).numpy()[case.inside()] @ g.rotation.T
    return float(np.linalg.norm(at_voxels - wanted(case), axis=-1).mean())


@BOTH
@pytest.mark.parametrize("one_contrast", [True, False])
def test_motion_beyond_the_reach_of_a_gradient(make_case: Callable[..., Any], d: int, one_contrast: bool) -> None:
    case = far_apart(make_case, d)
    found = find_matches(case.pair, one_contrast, threads=2)
    # To about a voxel: a gradient does the rest.
    assert distance(case, found) < 0.8
    assert found.consistent > 0.25


@BOTH
def test_oblique_grids_and_thick_slices(make_case: Callable[..., Any], d: int) -> None:
    case = far_apart(make_case, d, spacing=(1.0, 1.2, 3.0)[-d:], moving_spacing=(1.3, 1.0, 2.0)[:d], angle=0.4)
    assert distance(case, find_matches(case.pair, True)) < 0.4 * np.linalg.norm(FAR[d])


@BOTH
def test_no_result_depends_on_threads(make_case: Callable[..., Any], d: int) -> None:
    case = far_apart(make_case, d)
    found = [find_matches(case.pair, True, threads=n) for n in (1, 3)]
    assert torch.equal(found[0].displacement, found[1].displacement)


def test_no_result_depends_on_the_unit_of_length(make_case: Callable[..., Any]) -> None:
    small, large = (find_matches(far_apart(make_case, 2, scale=scale).pair, True) for scale in (1.0, 1000.0))
    torch.testing.assert_close(large.displacement, 1000 * small.displacement, rtol=1e-3, atol=1.0)


def test_images_of_different_things_have_no_matches(make_case: Callable[..., Any]) -> None:
    case = make_case(3, 40, amplitude=0.0)
    g = case.fixed
    other = texture((g.grid() - g.centre)[..., ::-1], case.radius, seed=5).astype(np.float32)
    alike, unlike = (
        find_matches(pair, True) for pair in (case.pair, changed(case.pair, moving=as_volume(torch.from_numpy(other))))
    )
    assert alike.consistent > 0.9
    assert unlike.consistent < 0.75 * alike.consistent  # the outlines of the two are the same
    assert float(alike.displacement.abs().max()) < 0.5


def test_masks_say_where_to_look(make_case: Callable[..., Any]) -> None:
    """What lies outside a mask has no say: the other half of the image is turned upside down."""
    case = far_apart(make_case, 3)
    right = np.zeros(case.fixed.shape, np.float32)
    right[:, :, 24:] = 1
    spoilt = case.pair.fixed.clone()
    spoilt[:, :, :18] = spoilt[:, :, :18].flip(0)
    mask = as_volume(torch.from_numpy(right))
    found = find_matches(changed(case.pair, fixed=spoilt, fixed_weight=mask), True)
    inside = case.inside() & (right > 0)
    u = found.on_grid([np.arange(48.0)] * 3).movedim(0, -1).numpy()[inside]
    truth = wanted(replace(case, radius=case.radius))[(right > 0)[case.inside()]]
    assert np.linalg.norm(u @ case.fixed.rotation.T - truth, axis=-1).mean() < 2.0


def test_far_from_all_that_counts_nothing_is_made_up(make_case: Callable[..., Any]) -> None:
    """Nodes without a voxel that counts have no best displacement: they follow those that have."""
    case = far_apart(make_case, 2)
    corner = np.zeros(case.fixed.shape, np.float32)
    corner[20:30, 14:24] = 1
    found = find_matches(changed(case.pair, fixed_weight=as_volume(torch.from_numpy(corner))), True)
    length = found.displacement.norm(dim=0)
    inside = found.on_grid([np.arange(14.0, 24.0), np.arange(20.0, 30.0), np.zeros(1)]).norm(dim=0)
    assert float(length.max()) < 1.2 * float(inside.max())
    nothing = find_matches(changed(case.pair, fixed_weight=torch.zeros_like(case.pair.fixed)), True)
    assert float(nothing.displacement.abs().max()) < 1e-3
    assert nothing.consistent == 0.0


@BOTH
def test_field_begins_with_what_is_found(make_case: Callable[..., Any], d: int) -> None:
    case = far_apart(make_case, d)
    some = quick(smoothness=(0.3, 0.1), network=None)
    goals = {}
    for search in ("never", "auto"):
        done = optimise(case.pair, replace(some, search=search))
        p = case.points()
        goals[search] = float(np.linalg.norm(done.field.displacement(p) - wanted(case), axis=-1).mean())
        assert done.search.startswith("kept") == (search != "never")
    assert goals["auto"] < 0.4
    assert goals["never"] > 4 * goals["auto"]


@BOTH
def test_nothing_is_searched_where_little_moves(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, 40, amplitude=0.01)
    some = quick(smoothness=(0.3, 0.1), network=None)
    never, auto = (optimise(case.pair, replace(some, search=s)) for s in ("never", "auto"))
    assert (never.search, auto.search) == ("", "not needed")
    assert torch.equal(never.field.forward, auto.field.forward)
    always = optimise(case.pair, replace(some, search="always"))
    assert always.search.startswith("not kept")  # it ends in the same place
    assert torch.equal(never.field.forward, always.field.forward)


def test_images_a_little_longer_than_the_search_take_no_longer(make_case: Callable[..., Any]) -> None:
    """Voxels are shrunk by whole numbers: of 80 there would be 80, and eight times the displacements."""
    case = make_case(3, 80, amplitude=0.0)
    found = find_matches(case.pair, True)
    assert all(len(p) <= 20 for p in found.positions)
    assert float(found.displacement.abs().max()) < 1.0


def test_turned_objects(make_case: Callable[..., Any]) -> None:
    turn = np.eye(4)
    turn[:3, :3] = turned(3, 0.3, 0.0)
    case = make_case(3, 40, linear=turn, given=np.eye(4), moving_size=56, amplitude=0.0)
    assert distance(case, find_matches(case.pair, True)) < 0.5 * np.linalg.norm(wanted(case), axis=-1).mean()


def test_words() -> None:
    with pytest.raises(OptionError, match="'auto', 'always', 'never'"):
        DeformableSettings(search="sometimes")  # type: ignore[arg-type]

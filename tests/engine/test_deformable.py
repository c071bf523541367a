"""The deformable stage on textured pairs whose deformation is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.deformable import optimise
from itk_nir.engine.images import Pair, as_volume, background, common_domain, sizes, voxel_map
from itk_nir.engine.jacobian import jacobian_determinant
from itk_nir.engine.lattice import Axis, Domain
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.ops import reference
from itk_nir.engine.progress import Optimised, Progress
from itk_nir.engine.settings import COARSE_NETWORK, DeformableSettings
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.errors import InputError, NothingToCompare
from tests.engine.pairs import QUICK, SMALL, N, changed, gap, on_voxels, quick, scaled_linear
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])


# --- what is found ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "changes",
    [{}, {"transform_model": "displacement"}, {"symmetric": True},
     {"shrink_factors": (2,), "smoothing_sigmas": (0.5,), "iterations": (60,), "learning_rates": (0.4,),
      "grid_spacing": (2.0,), "radius": (3,), "velocity_smoothness": (0.1,), "smoothness": (0.1,)}],
    ids=["velocity", "displacement", "symmetric", "one level"],
)  # fmt: skip
def test_known_deformation_is_found(make_case: Callable[..., Any], d: int, changes: dict[str, Any]) -> None:
    case = make_case(d, N[d])
    result = optimise(case.pair, quick(**changes))
    assert case.start() > 1.5
    assert case.error(result.field) < (0.3 if len(changes) > 2 else 0.15) * case.start()
    assert result.trace[-1].metric > 0.9
    assert result.stop == "all iterations done"
    # No folds where there is something to see.
    det = jacobian_determinant(on_voxels(result.field), case.fixed.spacing)
    assert float(det[torch.from_numpy(case.inside())].min()) > 0.2


@BOTH
def test_unlike_oblique_grids_and_a_linear_map(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(
        d, N[d], spacing=(1.0, 1.3, 1.5)[:d], moving_spacing=(1.4, 0.9, 1.1)[:d], angle=0.4, moving_angle=-0.8,
        linear=scaled_linear(d), away=30.0,
    )  # fmt: skip
    result = optimise(case.pair, QUICK)
    assert case.error(result.field) < 0.3 * case.start()


@pytest.mark.slow
@BOTH
def test_network_beside_the_control_points(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    alone = quick(network=SMALL, network_warmup=1.0, composed=False, iterations=(60, 0))
    network = optimise(case.pair, alone)
    assert not network.field.fine.control_points.any()
    assert case.error(network.field) < 0.6 * case.start()  # the network does something by itself
    both = optimise(case.pair, quick(network=SMALL))
    assert case.error(both.field) < 0.15 * case.start()
    again = optimise(case.pair, quick(network=SMALL))
    assert torch.equal(both.field.fine(), again.field.fine())
    assert torch.equal(both.field.forward, again.field.forward)
    other = optimise(case.pair, quick(network=SMALL), seed=1)
    assert not torch.equal(both.field.fine(), other.field.fine())


# --- where the network is tried --------------------------------------------------------------------------------------


@BOTH
def test_network_is_not_tried_where_little_moves(make_case: Callable[..., Any], d: int) -> None:
    """So that no seed, and nothing that is drawn, matters there."""
    case = make_case(d, N[d], amplitude=0.01)
    some = quick(iterations=(12, 4), network=SMALL, network_above=1.5)
    fields = [optimise(case.pair, some, seed=seed) for seed in (0, 1)]
    assert len(fields[0].trace) == 16
    assert fields[0].field.networks == ()
    assert torch.equal(fields[0].field.forward, fields[1].field.forward)
    without = optimise(case.pair, replace(some, network=None))
    assert torch.equal(fields[0].field.forward, without.field.forward)


@BOTH
def test_network_that_helps_is_kept(make_case: Callable[..., Any], d: int) -> None:
    turn = np.eye(d + 1)
    turn[:d, :d] = turned(d, 0.45, 0.0)
    case = make_case(d, N[d], linear=turn, given=np.eye(d + 1))
    some = quick(network=SMALL, smoothness=(0.3, 0.1), network_above=1.0)
    tried, without = (optimise(case.pair, s) for s in (some, replace(some, network=None)))
    assert len(tried.field.networks) == 1
    assert [t.iteration for t in tried.trace if t.level == 0] == list(range(80))
    # The control points of the first half are forgotten: the same as with a network that always goes first.
    always = optimise(case.pair, replace(some, network_above=0.0))
    assert torch.equal(tried.field.forward, always.field.forward)
    ends = [r.trace[k].loss for r, k in ((always, 39), (without, 39))]
    assert ends[0] < ends[1]


def test_network_is_tried_where_control_points_lose(make_case: Callable[..., Any]) -> None:
    """They give their start back, and nothing has moved: that is no sign that nothing should."""
    case = make_case(2, N[2], amplitude=0.01)
    wild = quick(iterations=(12, 0), learning_rates=(90.0, 0.2), network=SMALL, network_above=1e3)
    assert [t.iteration for t in optimise(case.pair, wild).trace][-1] > 12
    assert len(optimise(case.pair, replace(wild, learning_rates=(0.4, 0.2))).trace) == 12


@pytest.mark.parametrize("cancel", [False, True])
def test_network_that_does_not_help_is_dropped(make_case: Callable[..., Any], cancel: bool) -> None:
    """Steps too short to get anywhere, and few iterations left for the control points."""
    case = make_case(2, N[2])
    hopeless = quick(
        iterations=(24, 6), network=SMALL, network_radius=1e-4, network_warmup=0.9, network_above=1e-6, composed=False
    )
    seen: list[Progress] = []

    def told(p: Progress) -> bool:
        seen.append(p)
        return cancel and (p.level, p.iteration) == (0, 46)

    tried, without = (
        optimise(case.pair, s, callback=c) for s, c in ((hopeless, told), (replace(hopeless, network=None), None))
    )
    assert tried.field.networks == ()
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert all(p.iteration < p.iterations for p in seen)
    if cancel:
        assert tried.stop == "cancelled"
        once = optimise(case.pair, replace(hopeless, network=None, iterations=(24, 0)))
        assert torch.equal(tried.field.forward, once.field.forward)
    else:
        assert torch.equal(tried.field.forward, without.field.forward)


@BOTH
def test_moving_image_that_covers_a_part_of_the_fixed_one(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], moving_size=round(0.55 * N[d]))
    result = optimise(case.pair, QUICK)
    p = case.points()
    seen = case.pair.moving_geometry.contains(p + 1.5 * case.truth(p)) & case.pair.moving_geometry.contains(p)
    assert 0.1 < seen.mean() < 0.8
    error = np.linalg.norm(result.field.displacement(p) - case.truth(p), axis=-1)
    assert error[seen].mean() < 0.4 * case.start()
    # What the moving image does not show is not torn about.
    assert error.max() < 3 * np.linalg.norm(case.truth(p), axis=-1).max()
    assert float(jacobian_determinant(on_voxels(result.field), case.fixed.spacing).min()) > -0.5


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_what_a_mask_leaves_out_does_not_count(make_case: Callable[..., Any], d: int, which: str) -> None:
    """A bright object that moves the other way is followed, unless a mask leaves it out."""
    case = make_case(d, N[d])
    g = case.fixed
    q = g.grid() - g.centre
    half = as_volume(torch.from_numpy((q[..., 0] < 0.25 * case.radius).astype(np.float32)))
    noise = torch.rand(half.shape, generator=torch.Generator().manual_seed(1)) * 100
    image = getattr(case.pair, which)
    spoilt = changed(case.pair, **{which: torch.where(half > 0.5, image, noise)})
    kept = q[..., 0] < 0.25 * case.radius - 6
    points = g.grid()[kept & case.inside()]
    weights = {f"{which}_weight": half}
    clean = optimise(changed(case.pair, **weights), QUICK)
    masked = optimise(changed(spoilt, **weights), QUICK)
    start = np.linalg.norm(case.truth(points), axis=-1).mean()
    error = np.linalg.norm(masked.field.displacement(points) - case.truth(points), axis=-1).mean()
    assert error < 0.3 * start
    # Only the smoothing of the images carries anything over the border of the mask.
    assert gap(clean.field, masked.field, points).mean() < 0.15


@BOTH
def test_unsmoothed_fixed_image_outside_its_mask_changes_no_bit(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    one = quick(
        shrink_factors=(1,), smoothing_sigmas=(0.0,), iterations=(8,), learning_rates=(0.3,), grid_spacing=(2.0,),
        radius=(3,), velocity_smoothness=(0.1,), smoothness=(0.0,),
    )  # fmt: skip
    mask = as_volume(torch.from_numpy(case.inside(0.6).astype(np.float32)))
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * 1000 - 500
    spoilt = torch.where(mask > 0.5, case.pair.fixed, noise)
    results = [optimise(changed(case.pair, fixed=image, fixed_weight=mask), one) for image in (case.pair.fixed, spoilt)]
    assert float(results[0].field.fine().abs().max()) > 0.5
    assert torch.equal(results[0].field.fine(), results[1].field.fine())
    assert results[0].trace == results[1].trace


def test_mask_of_ones_is_no_mask_where_there_is_no_background(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 40)
    noise = torch.rand(case.pair.fixed.shape, generator=torch.Generator().manual_seed(0)) * 5
    pair = changed(case.pair, fixed=case.pair.fixed + noise, moving=case.pair.moving + noise.flip(2))
    assert background(pair.fixed) is None
    ones = torch.ones_like(pair.fixed)
    plain = optimise(pair, quick(iterations=(5, 2)))
    masked = optimise(changed(pair, fixed_weight=ones, moving_weight=ones), quick(iterations=(5, 2)))
    p = case.points()
    assert gap(plain.field, masked.field, p).max() < 1e-3


@pytest.mark.parametrize("d", [2, 3])
def test_control_points_never_lie_farther_apart_than_at_the_level_before(make_case: Callable[..., Any], d: int) -> None:
    pair = make_case(d, 30).pair
    few: dict[str, Any] = {"iterations": (3, 2), "network": None}
    for factors, given, taken in (((2, 2), (1.0, 2.0), (1.0, 1.0)), ((2, 1), (1.0, 4.0), (1.0, 2.0))):
        found, same = (
            optimise(pair, quick(shrink_factors=factors, grid_spacing=spacing, **few)) for spacing in (given, taken)
        )
        assert torch.equal(found.field.forward, same.field.forward)
        assert float(found.field.forward.abs().max()) > 0


@pytest.mark.parametrize("side", ["fixed", "linear"])
def test_nothing_to_compare(make_case: Callable[..., Any], side: str) -> None:
    case = make_case(2, 40)
    if side == "fixed":
        flat = torch.zeros_like(case.pair.fixed)
        flat[0, :3, :3] = 1.0  # something, in a corner that the mask leaves out
        mask = torch.zeros_like(flat)
        mask[0, 20:30, 20:30] = 1
        pair = changed(case.pair, fixed=flat, fixed_weight=mask)
    else:
        away = np.eye(3)
        away[0, 2] = 500.0
        pair = changed(case.pair, linear=away)
    with pytest.raises(NothingToCompare, match=r"nothing to compare: .* masks, the initial transform and") as caught:
        optimise(pair, QUICK)
    assert isinstance(caught.value, InputError)


# --- invariances -----------------------------------------------------------------------------------------------------


def shift_in_voxels(a: Optimised, b: Optimised, points: tuple[np.ndarray, np.ndarray]) -> float:
    ua = a.field.displacement(points[0]) / min(a.field.geometry.spacing)
    ub = b.field.displacement(points[1]) / min(b.field.geometry.spacing)
    return float(np.linalg.norm(ua - ub, axis=-1).mean())


@pytest.mark.slow
@BOTH
def test_unit_of_length_does_not_matter(make_case: Callable[..., Any], d: int) -> None:
    """Every term of the loss is dimensionless: other spacings, the same deformation in voxels, the same loss."""
    penalised = quick(smoothness=(0.1, 0.1), jacobian_weight=0.5, jacobian_margin=0.9, velocity_smoothness=(0.5, 0.5))
    case, *others = (make_case(d, N[d], spacing=(1.0, 1.2, 1.1)[:d], scale=s) for s in (1.0, 2.0, 0.37))
    result = optimise(case.pair, penalised)
    for other in others:
        found = optimise(other.pair, penalised)
        for a, b in zip(result.trace[:5], found.trace[:5], strict=True):
            assert b.loss == pytest.approx(a.loss, abs=2e-5)
        assert shift_in_voxels(result, found, (case.points(), other.points())) < 0.02


def test_large_gradients_of_the_displacement_are_hardly_penalised_more(make_case: Callable[..., Any]) -> None:
    case, weight = make_case(2, N[2]), 0.7
    few = quick(iterations=(2, 0), smoothness=(weight, weight), velocity_smoothness=(0.0, 0.0), network=None)

    def penalty(scale: float) -> float:
        last = optimise(case.pair, replace(few, lorentzian_scale=scale)).trace[-1]
        return last.loss - (1 - last.metric)

    # All took the same first step: there was no deformation yet.
    plain = penalty(math.inf)
    assert plain > 0
    assert penalty(1e3) == pytest.approx(plain, rel=1e-3)
    smaller = [penalty(s) for s in (0.3, 0.1, 0.03)]
    assert plain > smaller[0] > smaller[1] > smaller[2] > 0


def test_small_images_get_more_iterations(make_case: Callable[..., Any]) -> None:
    pair = make_case(2, N[2]).pair
    pair = changed(pair, fixed_weight=torch.ones_like(pair.fixed))  # the domain is the whole image
    for times, expected in ((1.5, (6, 3)), (5.0, (8, 4)), (0.9, (4, 2)), (0, (4, 2))):
        few = quick(iterations=(4, 2), extra_iterations_below=round(times * N[2] ** 2))
        trace = optimise(pair, few).trace
        assert tuple(sum(t.level == k for t in trace) for k in (0, 1)) == expected


@BOTH
@pytest.mark.parametrize("composed", [True, False])
def test_network_goes_first_and_alone_and_then_rests(make_case: Callable[..., Any], d: int, composed: bool) -> None:
    case = make_case(d, N[d])
    one = quick(iterations=(10, 4), network=SMALL, composed=composed)
    # As many evaluations, and nothing after them.
    alone = optimise(case.pair, replace(one, iterations=(5, 0), network_warmup=1.0))
    assert alone.field.forward.any()
    assert not alone.field.fine.control_points.any()
    half = optimise(case.pair, replace(one, network_warmup=0.5))
    assert [s.loss for s in half.trace[:5]] == [s.loss for s in alone.trace]
    # The control points begin where it ended, at the best that it saw; its weights stay as they are, to the last level.
    assert half.trace[5].loss == pytest.approx(min(s.loss for s in alone.trace), abs=1e-6)
    (network,), (rested,) = alone.field.networks, half.field.networks
    for trained, kept in zip(network.parameters(), rested.parameters(), strict=True):
        assert torch.equal(trained, kept)
    first = half.field.coarse if composed else half.field.fine
    assert first is not None
    assert first.control_points.any()


@pytest.mark.slow
@pytest.mark.parametrize(("d", "angle", "amplitude"), [(2, 0.35, 0.05), (3, 0.45, 0.03)])
def test_network_finds_the_turn_that_a_linear_stage_missed(
    make_case: Callable[..., Any], d: int, angle: float, amplitude: float
) -> None:
    m = np.eye(d + 1)
    m[:d, :d] = turned(d, angle, 0.0)
    m[:d, d] = [2.0, -1.5, 1.0][:d]
    case = make_case(d, 48, linear=m, given=np.eye(d + 1), amplitude=amplitude)
    p = case.points()
    whole = p + case.truth(p)
    truth = whole @ case.linear[:d, :d].T + case.linear[:d, d] - p

    def error(**changes: Any) -> float:
        wrong = quick(smoothness=(0.1, 0.1), jacobian_weight=1.0, **changes)
        field = optimise(case.pair, wrong).field
        return float(np.linalg.norm(field.displacement(p) - truth, axis=-1).mean())

    found = error(network=COARSE_NETWORK)
    assert found < 0.15 * np.linalg.norm(truth, axis=-1).mean()
    assert found < 0.5 * error(network=None)


@BOTH
def test_little_evidence_leaves_the_image_where_it_is(make_case: Callable[..., Any], d: int) -> None:
    """Noise must not drag the whole image away, which no penalty on gradients would forbid."""
    case = make_case(d, N[d])
    other = torch.rand(case.pair.moving.shape, generator=torch.Generator().manual_seed(3))
    result = optimise(changed(case.pair, moving=other), quick(network=SMALL, smoothness=(1.0, 1.0)))
    assert np.abs(result.field.displacement(case.points())).mean() < 0.3 * min(case.fixed.spacing)


def test_evidence_at_a_coarse_level_holds_for_the_finer_ones(make_case: Callable[..., Any]) -> None:
    """Unlike contrasts that are alike where noise is averaged out: the finer level goes on from the coarse one."""
    case = make_case(3, N[3])
    draw = torch.Generator().manual_seed(0)
    images = case.pair.fixed, 100 * torch.sin(0.03 * case.pair.moving)
    fixed, moving = (i + 20 * torch.randn(i.shape, generator=draw) for i in images)
    pair = changed(case.pair, fixed=fixed, moving=moving)
    settings = quick(metric="nmi + mind", smoothness=(0.3, 0.3), jacobian_weight=1.0, iterations=(60, 20))
    result = optimise(pair, settings)
    begun = [next(t.metric for t in result.trace if t.level == level) for level in (0, 1)]
    assert begun[0] > 0.01 > begun[1]  # what the sum of these metrics takes for little evidence
    assert result.returned_levels == ()
    coarse = optimise(pair, replace(settings, iterations=(60, 0)))
    assert case.error(result.field) < 0.8 * case.error(coarse.field)


@pytest.mark.parametrize("term", ["velocity_smoothness", "smoothness", "jacobian_weight"])
def test_every_term_of_the_loss_has_its_effect(make_case: Callable[..., Any], term: str) -> None:
    case = make_case(2, 56)
    base = quick(velocity_smoothness=(0.0, 0.0), jacobian_margin=1.0)
    value: Any = 10.0 if term == "jacobian_weight" else (3.0, 3.0)
    free, bound = (optimise(case.pair, c).field for c in (base, replace(base, **{term: value})))
    u, v = on_voxels(free), on_voxels(bound)
    if term == "jacobian_weight":
        inside = torch.from_numpy(case.inside())
        dets = [jacobian_determinant(x, case.fixed.spacing)[inside] for x in (u, v)]
        low = [float(torch.relu(1 - det).square().mean()) for det in dets]
        assert low[1] < 0.7 * low[0]
    else:
        rough = [float(x.diff(dim=1).square().mean() + x.diff(dim=2).square().mean()) for x in (u, v)]
        assert rough[1] < 0.7 * rough[0]


@pytest.mark.slow
@BOTH
def test_unit_of_the_intensities_does_not_matter(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    plain = optimise(case.pair, QUICK)
    pair = changed(case.pair, fixed=case.pair.fixed * 0.004 + 3, moving=case.pair.moving * -250 + 1000)
    other = optimise(pair, QUICK)
    # The sign flips too: the correlation is squared. But clipped outliers differ, and rounding does.
    assert gap(plain.field, other.field, case.points()).mean() < 0.03 * case.start()


# --- running ---------------------------------------------------------------------------------------------------------


def test_every_iteration_is_reported_and_the_callback_changes_nothing(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)
    seen: list[Progress] = []
    result = optimise(case.pair, quick(iterations=(6, 4)), callback=seen.append)
    assert [(p.level, p.iteration) for p in seen] == [(0, k) for k in range(6)] + [(1, k) for k in range(4)]
    assert all(p.stage == "deformable" and p.levels == 2 for p in seen)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] > 0
    assert fractions[-1] == 1.0
    assert [p.loss for p in seen] == [t.loss for t in result.trace]
    assert [p.metric for p in seen] == [t.metric for t in result.trace]
    plain = optimise(case.pair, quick(iterations=(6, 4)))
    assert torch.equal(plain.field.fine(), result.field.fine())


@pytest.mark.parametrize("level", [0, 1])
def test_cancel_keeps_the_best_so_far(make_case: Callable[..., Any], level: int) -> None:
    case = make_case(2, 48)
    # Steps so large that the loss goes up and down.
    wild = quick(iterations=(14, 14), learning_rates=(4.0, 8.0))
    losses = [t.loss for t in optimise(case.pair, wild).trace if t.level == level]
    stop = next(k for k in range(2, 14) if losses[k] > min(losses[:k]))
    best = int(np.argmin(losses[:stop]))
    result = optimise(case.pair, wild, callback=lambda p: (p.level, p.iteration) == (level, stop))
    assert result.stop == "cancelled"
    assert (result.trace[-1].level, result.trace[-1].iteration) == (level, stop)
    # The state that had the smallest loss: a run that stops right there has it too.
    wanted = optimise(case.pair, wild, callback=lambda p: (p.level, p.iteration) == (level, best))
    assert torch.equal(result.field.fine(), wanted.field.fine())
    assert torch.equal(result.field.forward, wanted.field.forward)


def test_cancel_at_once_is_the_identity(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 40)
    result = optimise(case.pair, QUICK, callback=lambda _: True)
    assert len(result.trace) == 1
    assert not result.field.fine().any()
    assert not result.field.displacement(case.points()).any()


def test_convergence_window_ends_a_level(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)
    patient = quick(iterations=(300, 1), network=None, convergence_window=8, convergence_threshold=2e-3)
    result = optimise(case.pair, patient)
    first = [t.loss for t in result.trace if t.level == 0]
    assert 16 <= len(first) < 200
    w = 8
    gains = [np.mean(first[k - 2 * w : k - w]) - np.mean(first[k - w : k]) for k in range(2 * w, len(first) + 1)]
    assert gains[-1] < 2e-3
    assert all(g >= 2e-3 for g in gains[:-1])
    assert result.trace[-1].level == 1  # the next level still comes
    assert result.stop == "all iterations done"  # and is what `stop` speaks of
    both = optimise(case.pair, replace(patient, iterations=(40, 300)))
    assert both.stop == "converged"
    never = optimise(case.pair, replace(patient, iterations=(40, 1), convergence_threshold=0.0))
    assert len(never.trace) == 41


def test_network_that_has_converged_makes_way_for_the_control_points(make_case: Callable[..., Any]) -> None:
    """Where a step promises less than a window's share of the threshold; the control points have what is theirs."""
    patient = quick(iterations=(60, 0), network=SMALL, network_warmup=0.35, convergence_window=3)
    pair, evaluations = make_case(2, 48, amplitude=0.02).pair, []
    for threshold in (0.0, 3e-3, 1e6):
        result = optimise(pair, replace(patient, convergence_threshold=threshold))
        numbers = [t.iteration for t in result.trace]
        first = numbers.index(21)
        assert numbers == [*range(first), *range(21, 21 + len(numbers) - first)]
        evaluations.append(first)
    assert evaluations[0] == 21
    assert 3 < evaluations[1] < 21
    assert evaluations[2] == 1
    assert len(numbers) == 1 + 6
    assert result.stop == "converged"


def test_level_without_iterations_is_left_out(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)
    result = optimise(case.pair, quick(iterations=(0, 5)))
    assert {t.level for t in result.trace} == {1}


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(make_case: Callable[..., Any], threads: int) -> None:
    case = make_case(3, 26)
    one, many = (optimise(case.pair, quick(iterations=(8, 4)), threads=t) for t in (1, threads))
    assert torch.equal(one.field.fine(), many.field.fine())
    assert one.trace == many.trace
    assert torch.equal(one.field.forward, many.field.forward)
    assert torch.equal(one.field.backward, many.field.backward)


def test_random_numbers_and_settings_of_the_caller_are_left_alone(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 40)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    optimise(case.pair, quick(network=SMALL, iterations=(3, 2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def normalised(pair: Pair) -> tuple[Tensor, Tensor]:
    return pair.fixed_intensity.normalised(pair.fixed), pair.moving_intensity.normalised(pair.moving)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("model", ["velocity", "displacement"])
def test_gradient_of_the_whole_loss(make_case: Callable[..., Any], d: int, model: str) -> None:
    """The native ops in float32, put together as the loop does, against differences of the float64 reference."""
    case = make_case(d, 20 if d == 2 else 12, spacing=1.0)
    domain = Domain((0, 0, 0), sizes(case.fixed))
    axes = Lattices.halved(domain.lattice((4.0, 4.0, 4.0)), 4.0, 1).axes
    positions = domain.level_positions((1, 1, 1))
    spline = [a.evaluate(x) for a, x in zip(axes[1], positions, strict=True)]
    refine = [a.refine() for a in axes[0]]
    index, vector = voxel_map(case.fixed, case.pair.moving_geometry, case.pair.linear)
    fixed, moving = normalised(case.pair)
    generator = torch.Generator().manual_seed(0)

    def start(lattice: list[Axis]) -> torch.Tensor:
        values = 0.8 * torch.randn(3, *[a.count for a in lattice[::-1]], generator=generator)
        return values if d == 3 else values * torch.tensor([1.0, 1.0, 0.0]).reshape(3, 1, 1, 1)

    coarse, fine = start(axes[0]), start(axes[1])
    h = 2.0

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        v = ops.separable(a, refine) + b
        u = ops.exponential(v, 3, 1 / h) if model == "velocity" else v / h
        f, m = fixed.to(v.dtype), moving.to(v.dtype)
        warped = ops.warp(m, ops.separable(u, spline), index, vector * h)
        value = 1 - ops.Lncc.make(f, None, 2, 1e-3)(warped)
        value = value + 1e-3 * ops.diffusion(v) + 2e-3 * ops.diffusion(u)
        return value + 0.01 * ops.jacobian_penalty(u, 0.9, 3)

    a, b = coarse.clone().requires_grad_(), fine.clone().requires_grad_()
    value = loss(a, b)
    value.backward()
    a64, b64 = coarse.double().requires_grad_(), fine.double().requires_grad_()
    exact = loss(a64, b64)
    exact.backward()
    assert value.item() == pytest.approx(exact.item(), abs=1e-4)
    for got, wanted in ((a.grad, a64.grad), (b.grad, b64.grad)):
        assert got is not None
        assert wanted is not None
        assert float((got.double() - wanted).norm()) < 2e-3 * float(wanted.norm())
    # And the reference's own gradient is right: differences along random directions.
    for number in range(3):
        da, db = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (coarse, fine))
        eps = 1e-6
        with torch.no_grad():
            up, down = (loss(coarse.double() + s * eps * da, fine.double() + s * eps * db) for s in (1, -1))
        slope = float(up - down) / (2 * eps)
        assert a64.grad is not None
        assert b64.grad is not None
        along = float((a64.grad * da).sum() + (b64.grad * db).sum())
        assert along == pytest.approx(slope, rel=1e-3, abs=1e-5), f"direction {number}"


def test_loss_of_the_first_iteration_is_what_the_module_says(make_case: Callable[..., Any]) -> None:
    """Before any step the field is zero: 1 - LNCC² of the images as they lie; only windows that count."""
    case = make_case(2, 40)
    one = quick(
        shrink_factors=(1,), smoothing_sigmas=(0.0,), iterations=(1,), learning_rates=(0.3,), grid_spacing=(2.0,),
        radius=(3,), velocity_smoothness=(0.1,), smoothness=(0.1,), jacobian_weight=1.0,
    )  # fmt: skip
    result = optimise(case.pair, one)
    fixed, moving = (x.double() for x in normalised(case.pair))
    total, count = reference.lncc(fixed, moving, None, 3, 1e-3)
    # The block of the grid that is worked on leaves a rim of background out.
    assert result.trace[0].metric == pytest.approx(float(total / count), abs=0.02)
    assert result.trace[0].loss == pytest.approx(1 - result.trace[0].metric, abs=1e-6)


@BOTH
@pytest.mark.parametrize("iterations", [(8, 0), (8, 5)])
def test_similarities_are_the_metric_over_the_same_positions(
    make_case: Callable[..., Any], d: int, iterations: tuple[int, int]
) -> None:
    """Both anew from the images of the last level, by the reference in float64."""
    case = make_case(d, N[d], spacing=(1.0, 1.3, 1.2)[:d], angle=0.3, moving_size=N[d] - 8)
    chosen = quick(iterations=iterations)
    result = optimise(case.pair, chosen)
    pair, last = case.pair, 1 if iterations[1] else 0
    domain = common_domain(pair, 2.0 * chosen.shrink_factors[-1])
    grids = LevelGrids.of(pair, domain, chosen.shrink_factors[last])
    fixed, moving = grids.images(pair, *normalised(pair), chosen.smoothing_sigmas[last], 1)
    index, vector = grids.voxel_map(pair, pair.linear)

    def displacement(field: VelocityField | None) -> Tensor:
        return torch.zeros(3, *fixed.shape) if field is None else field.on_grid(grids.fixed)

    # What counts is settled by the field that the level begins with.
    begin = optimise(pair, quick(iterations=(8, 0))).field if last else None
    weight = counting_weight(pair, grids, displacement(begin), moving, index, vector, 1)
    assert weight is not None
    assert 0.2 < float(weight.mean()) < 1

    def similarity(field: VelocityField | None) -> float:
        matrices = torch.from_numpy(index), torch.from_numpy(vector)
        warped = reference.warp(moving.double(), displacement(field).double(), *matrices)
        total, count = reference.lncc(fixed.double(), warped, weight.double(), chosen.radius[last], 1e-3)
        return float(total / count)

    assert result.similarity_start == pytest.approx(similarity(None), abs=1e-4)
    assert result.similarity == pytest.approx(similarity(result.field), abs=1e-4)
    assert result.similarity > result.similarity_start + 0.1
    # The trace knows the similarity before its last step.
    assert result.trace[-1].metric == pytest.approx(result.similarity, abs=0.05)


@pytest.mark.parametrize("composed", [True, False])
def test_learning_rate_that_is_told_is_the_one_of_the_step(
    make_case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, composed: bool
) -> None:
    """In voxels of the fixed image along its finest axis; Adam, which trains the control points alone, gets mm."""
    case = make_case(2, 48, spacing=(0.8, 1.1))
    taken: list[tuple[int, float]] = []
    step = ops.Adam.step

    def noted(self: ops.Adam, rate: float) -> None:
        taken.extend((p.ndim, rate) for p in self.parameters)
        step(self, rate)

    monkeypatch.setattr(ops.Adam, "step", noted)
    seen: list[Progress] = []
    chosen = quick(
        network=SMALL, iterations=(6, 4), learning_rates=(0.5, 0.3), learning_rate_end=0.2, network_warmup=0.5,
        composed=composed,
    )  # fmt: skip
    result = optimise(case.pair, chosen, callback=seen.append)
    assert [p.learning_rate for p in seen] == [t.learning_rate for t in result.trace]
    assert [p.learning_rate for p in seen[:6]] == pytest.approx(np.linspace(0.5, 0.1, 6))
    assert [p.learning_rate for p in seen[6:]] == pytest.approx(np.linspace(0.3, 0.06, 4))
    assert [ndim for ndim, _ in taken] == [4] * 7
    # The network goes first for half of the first level.
    assert [rate for _, rate in taken] == pytest.approx([0.8 * p.learning_rate for p in seen[3:]])


@pytest.mark.parametrize(("radius", "rate"), [(0.5, 0.6), (2.0, 0.6), (2.0, 0.15)])
def test_first_step_of_the_network_moves_the_image_by_its_radius(
    make_case: Callable[..., Any], radius: float, rate: float
) -> None:
    """In learning rates of the level; later ones at most eight times as far."""
    case = make_case(2, 48, spacing=(0.8, 1.1))
    chosen = quick(
        network=SMALL, network_warmup=1.0, network_radius=radius, learning_rates=(rate, 0.3), composed=False,
        transform_model="displacement", velocity_smoothness=(0.0, 0.0),
    )  # fmt: skip

    def moved(iterations: int) -> float:
        field = optimise(case.pair, replace(chosen, iterations=(iterations, 0))).field
        return float(field.fine.network_at_nodes().norm(dim=1).max())

    unit = rate * 0.8 * radius
    assert moved(1) == 0
    assert 0.8 * unit < moved(2) <= 1.06 * unit
    assert moved(3) <= 1.06 * (1 + 2) * unit
    assert moved(12) > 1.5 * unit


# --- the parts -------------------------------------------------------------------------------------------------------


def test_settings_know_how_many_levels_they_have() -> None:
    assert QUICK.levels == 2
    assert [QUICK.halvings(k) for k in range(2)] == [1, 2]
    assert dataclasses.replace(QUICK, coarsest_grid_spacing=4.0).halvings(0) == 0


def test_flat_pair_in_float64_runs_on_the_reference(make_case: Callable[..., Any]) -> None:
    """The reference ops behind the same loop find the same deformation as the native ones."""
    case = make_case(2, 32)
    few = quick(iterations=(6, 3))
    native = optimise(case.pair, few)
    field = _with_the_reference(case.pair, few)
    p = case.points()
    moved = np.linalg.norm(native.field.displacement(p), axis=-1).mean()
    assert moved > 0.5
    assert gap(native.field, field, p).mean() < 0.02


def _with_the_reference(pair: Pair, few: DeformableSettings) -> VelocityField:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "native_module", lambda: None)
        return optimise(pair, few).field

"""The lattice engine on textured pairs whose deformation is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from itk_nir.engine import ops
from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.paper.flow import jacobian_determinant
from itk_nir.engine.lattice import Axis, Domain
from itk_nir.engine.ops import dispatch, reference
from itk_nir.engine.optimize import (
    LatticeField,
    LatticeResult,
    LatticeSettings,
    Pair,
    _inside,
    as_volume,
    background,
    bounds,
    common_domain,
    level_map,
    mend,
    normalised,
    optimise_lattice,
    shrink,
    voxel_map,
)
from itk_nir.engine.progress import Progress
from itk_nir.geometry import Geometry
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])
SMALL = FieldConfig(encoding="fourier", activation="sine", width=32, depth=2, frequencies=16, omega=10.0, scale=1.0)
#: Two levels for images of 30 to 60 voxels.
QUICK = LatticeSettings(
    shrink_factors=(2, 1), smoothing_sigmas=(0.5, 0.5), steps=(40, 20), learning_rates=(0.4, 0.2),
    lattice_spacing=(2.0, 2.0), coarsest_lattice=8.0, radius=(3, 3), velocity_diffusion=(0.1, 0.1),
    displacement_diffusion=(0.0, 0.0),
    epsilon=1e-3, squarings=5, jacobian_weight=0.0, jacobian_margin=0.3, small_voxels=0,
)  # fmt: skip
N = {2: 56, 3: 34}


def settings(**changes: Any) -> LatticeSettings:
    return replace(QUICK, **changes)


def scaled_linear(d: int) -> np.ndarray:
    """A rotation, a scaling and a shift that a deformation could not make up for."""
    m = np.eye(d + 1)
    m[:d, :d] = 1.1 * turned(d, 0.5, 0.0)
    m[:d, d] = [4.0, -3.0, 2.0][:d]
    return m


def on_voxels(field: LatticeField, inverse: bool = False) -> torch.Tensor:
    """``(d, [D,] H, W)`` mm along the image axes."""
    g = field.geometry
    u = field.on_grid([np.arange(n, dtype=float) for n in [*g.size, 1][:3]], inverse)
    return u if g.dimension == 3 else u[:2, 0]


def gap(a: LatticeField, b: LatticeField, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a.displacement(points) - b.displacement(points), axis=-1)


# --- what is found ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "changes",
    [{}, {"flow": "displacement"}, {"grids": "single"}, {"grids": "single", "flow": "displacement"},
     {"symmetric": True}, {"gradient_smoothing": 0.7},
     {"shrink_factors": (2,), "smoothing_sigmas": (0.5,), "steps": (60,), "learning_rates": (0.4,),
      "lattice_spacing": (2.0,), "radius": (3,), "velocity_diffusion": (0.1,), "displacement_diffusion": (0.1,)}],
    ids=["pyramid", "displacement", "single", "single displacement", "symmetric", "smoothed gradient", "one level"],
)  # fmt: skip
def test_known_deformation_is_found(make_case: Callable[..., Any], d: int, changes: dict[str, Any]) -> None:
    case = make_case(d, N[d])
    result = optimise_lattice(case.pair, settings(**changes))
    assert case.start() > 1.5
    rough = len(changes) > 2
    assert case.error(result.field) < (0.3 if rough else 0.15) * case.start()
    assert result.trace[-1].metric > 0.9
    assert result.stop == "all steps done"
    # No folds where there is something to see.
    det = jacobian_determinant(on_voxels(result.field), case.fixed.spacing)
    assert float(det[torch.from_numpy(case.inside())].min()) > 0.2


@BOTH
def test_unlike_oblique_grids_and_a_linear_map(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(
        d, N[d], spacing=(1.0, 1.3, 1.5)[:d], moving_spacing=(1.4, 0.9, 1.1)[:d], angle=0.4, moving_angle=-0.8,
        linear=scaled_linear(d), away=30.0,
    )  # fmt: skip
    result = optimise_lattice(case.pair, QUICK)
    assert case.error(result.field) < 0.3 * case.start()


@BOTH
def test_network_under_the_lattices(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    alone = settings(network=SMALL, network_rate=0.3, grids="none")
    network = optimise_lattice(case.pair, alone)
    assert case.error(network.field) < 0.6 * case.start()  # the network does something by itself
    both = optimise_lattice(case.pair, settings(network=SMALL))
    assert case.error(both.field) < 0.15 * case.start()
    again = optimise_lattice(case.pair, settings(network=SMALL))
    assert torch.equal(both.field.values, again.field.values)
    other = optimise_lattice(case.pair, settings(network=SMALL), seed=1)
    assert not torch.equal(both.field.values, other.field.values)


@BOTH
def test_moving_image_that_covers_a_part_of_the_fixed_one(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], moving_size=round(0.55 * N[d]))
    result = optimise_lattice(case.pair, QUICK)
    p = case.points()
    seen = case.pair.moving_geometry.contains(p + 1.5 * case.truth(p)) & case.pair.moving_geometry.contains(p)
    assert 0.1 < seen.mean() < 0.8
    error = np.linalg.norm(result.field.displacement(p) - case.truth(p), axis=-1)
    assert error[seen].mean() < 0.4 * case.start()
    # What the moving image does not show is not torn about.
    assert error.max() < 3 * np.linalg.norm(case.truth(p), axis=-1).max()
    assert float(jacobian_determinant(on_voxels(result.field), case.fixed.spacing).min()) > -0.5


# --- masks -----------------------------------------------------------------------------------------------------------


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
    spoilt = replace(case.pair, **{which: torch.where(half > 0.5, image, noise)})
    kept = q[..., 0] < 0.25 * case.radius - 6
    points = g.grid()[kept & case.inside()]
    weights = {f"{which}_weight": half}
    clean = optimise_lattice(replace(case.pair, **weights), QUICK)
    masked = optimise_lattice(replace(spoilt, **weights), QUICK)
    start = np.linalg.norm(case.truth(points), axis=-1).mean()
    error = np.linalg.norm(masked.field.displacement(points) - case.truth(points), axis=-1).mean()
    assert error < 0.3 * start
    # Only the smoothing of the images carries anything over the border of the mask.
    assert gap(clean.field, masked.field, points).mean() < 0.15


@BOTH
def test_unsmoothed_fixed_image_outside_its_mask_changes_no_bit(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    one = settings(
        shrink_factors=(1,), smoothing_sigmas=(0.0,), steps=(8,), learning_rates=(0.3,), lattice_spacing=(2.0,),
        radius=(3,), velocity_diffusion=(0.1,), displacement_diffusion=(0.0,),
    )  # fmt: skip
    mask = as_volume(torch.from_numpy(case.inside(0.6).astype(np.float32)))
    noise = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) * 1000 - 500
    spoilt = torch.where(mask > 0.5, case.pair.fixed, noise)
    results = [
        optimise_lattice(replace(case.pair, fixed=image, fixed_weight=mask), one) for image in (case.pair.fixed, spoilt)
    ]
    assert float(results[0].field.values.abs().max()) > 0.5
    assert torch.equal(results[0].field.values, results[1].field.values)
    assert results[0].trace == results[1].trace


def test_mask_of_ones_is_no_mask_where_there_is_no_background(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 40)
    noise = torch.rand(case.pair.fixed.shape, generator=torch.Generator().manual_seed(0)) * 5
    pair = replace(case.pair, fixed=case.pair.fixed + noise, moving=case.pair.moving + noise.flip(2))
    assert background(pair.fixed) is None
    ones = torch.ones_like(pair.fixed)
    plain = optimise_lattice(pair, settings(steps=(5, 2)))
    masked = optimise_lattice(replace(pair, fixed_weight=ones, moving_weight=ones), settings(steps=(5, 2)))
    p = case.points()
    assert gap(plain.field, masked.field, p).max() < 1e-3


@pytest.mark.parametrize("side", ["fixed", "linear"])
def test_nothing_to_compare(make_case: Callable[..., Any], side: str) -> None:
    case = make_case(2, 40)
    if side == "fixed":
        flat = torch.zeros_like(case.pair.fixed)
        flat[0, :3, :3] = 1.0  # something, in a corner that the mask leaves out
        mask = torch.zeros_like(flat)
        mask[0, 20:30, 20:30] = 1
        pair = replace(case.pair, fixed=flat, fixed_weight=mask)
    else:
        away = np.eye(3)
        away[0, 2] = 500.0
        pair = replace(case.pair, linear=away)
    with pytest.raises(ValueError, match="nothing to compare"):
        optimise_lattice(pair, QUICK)


# --- invariances -----------------------------------------------------------------------------------------------------


def shift_in_voxels(a: LatticeResult, b: LatticeResult, points: tuple[np.ndarray, np.ndarray]) -> float:
    ua = a.field.displacement(points[0]) / min(a.field.geometry.spacing)
    ub = b.field.displacement(points[1]) / min(b.field.geometry.spacing)
    return float(np.linalg.norm(ua - ub, axis=-1).mean())


@BOTH
@pytest.mark.parametrize("scale", [2.0, 0.37])
def test_unit_of_length_does_not_matter(make_case: Callable[..., Any], d: int, scale: float) -> None:
    """Every term of the loss is dimensionless: other spacings, the same deformation in voxels, the same loss."""
    changed = settings(
        displacement_diffusion=(0.1, 0.1), jacobian_weight=0.5, jacobian_margin=0.9, velocity_diffusion=(0.5, 0.5)
    )
    cases = [make_case(d, N[d], spacing=(1.0, 1.2, 1.1)[:d], scale=s) for s in (1.0, scale)]
    results = [optimise_lattice(case.pair, changed) for case in cases]
    for a, b in zip(*(r.trace[:5] for r in results), strict=True):
        assert b.loss == pytest.approx(a.loss, abs=2e-5)
    assert shift_in_voxels(*results, tuple(case.points() for case in cases)) < 0.02


def test_large_gradients_of_the_displacement_are_hardly_penalised_more(make_case: Callable[..., Any]) -> None:
    case, weight = make_case(2, N[2]), 0.7
    few = settings(steps=(2, 0), displacement_diffusion=(weight, weight), velocity_diffusion=(0.0, 0.0))

    def penalty(scale: float) -> float:
        last = optimise_lattice(case.pair, replace(few, strain_scale=scale)).trace[-1]
        return last.loss - (1 - last.metric)

    # All took the same first step: there was no deformation yet.
    plain = penalty(math.inf)
    assert plain > 0
    assert penalty(1e3) == pytest.approx(plain, rel=1e-3)
    smaller = [penalty(s) for s in (0.3, 0.1, 0.03)]
    assert plain > smaller[0] > smaller[1] > smaller[2] > 0


def test_small_images_get_more_steps(make_case: Callable[..., Any]) -> None:
    pair = make_case(2, N[2]).pair
    pair = replace(pair, fixed_weight=torch.ones_like(pair.fixed))  # the domain is the whole image
    for times, expected in ((1.5, (6, 3)), (5.0, (8, 4)), (0.9, (4, 2)), (0, (4, 2))):
        few = settings(steps=(4, 2), small_voxels=round(times * N[2] ** 2))
        trace = optimise_lattice(pair, few).trace
        assert tuple(sum(t.level == k for t in trace) for k in (0, 1)) == expected


def folds(field: LatticeField) -> int:
    voxels = on_voxels(field) / torch.tensor(field.geometry.spacing).reshape(-1, *[1] * field.geometry.dimension)
    d = field.geometry.dimension
    return int((ops.jacobian_map(voxels if d == 3 else torch.cat([voxels, 0 * voxels[:1]])[:, None]) <= 0).sum())


@BOTH
@pytest.mark.parametrize("flow", ["velocity", "displacement"])
def test_folds_are_mended_and_nothing_else(d: int, flow: str) -> None:
    geometry = Geometry.make([40, 44, 36][:d], [1.0, 1.5, 2.0][:d])
    domain = Domain((0, 0, 0), tuple([*geometry.size, 1][:3]))  # type: ignore[arg-type]
    axes = domain.lattice((4.0, 4.0, 4.0), 0)[0]
    values = torch.zeros(3, *[a.count for a in axes[::-1]])
    values[0] += 0.3
    at = (0, values.shape[1] // 2, 5, 5)
    values[at] = 25.0
    values[at[0], at[1], at[2], at[3] + 1] = -25.0
    field = LatticeField(geometry, axes, 4.0, values, flow, 1)
    assert folds(field) > 0
    whole = mend(field, domain)
    assert folds(whole) == 0
    changed = (whole.values != values).any(0)
    assert changed[at[1:]]
    assert float(changed.float().mean()) < 0.5
    assert mend(whole, domain) is whole


@BOTH
def test_folds_of_the_coarse_field_are_mended(d: int) -> None:
    geometry = Geometry.make([40, 44, 36][:d], [1.0, 1.5, 2.0][:d])
    domain = Domain((0, 0, 0), tuple([*geometry.size, 1][:3]))  # type: ignore[arg-type]
    axes = domain.lattice((4.0, 4.0, 4.0), 0)[0]
    values = torch.zeros(3, *[a.count for a in axes[::-1]])
    values[0] += 0.3
    coarse = values.clone()
    at = (0, values.shape[1] // 2, 5, 5)
    coarse[at] = 25.0
    coarse[at[0], at[1], at[2], at[3] + 1] = -25.0
    field = LatticeField(geometry, axes, 4.0, values, "velocity", 1, coarse=(coarse, -coarse))
    assert folds(field) > 0
    whole = mend(field, domain)
    assert folds(whole) == 0
    assert whole.coarse is not None
    changed = (whole.coarse[0] != coarse).any(0)
    assert changed[at[1:]]
    assert float(changed.float().mean()) < 0.5
    # The inverse was made anew: it takes the nodes back.
    there = ops.compose(whole.coarse[0] / 4.0, whole.coarse[1] / 4.0)
    assert float(there.abs().max()) < 0.01


@BOTH
@pytest.mark.parametrize("network", [None, SMALL])
def test_two_fields_are_composed(make_case: Callable[..., Any], d: int, network: FieldConfig | None) -> None:
    case = make_case(d, N[d])
    one = settings(steps=(12, 0), network=network)
    both = optimise_lattice(case.pair, replace(one, steps=(12, 8))).field
    assert both.coarse is not None
    assert optimise_lattice(case.pair, replace(one, steps=(12, 8), composed=False)).field.coarse is None
    # The coarse field is what the first level trained, whatever came after.
    alone = optimise_lattice(case.pair, one).field
    assert alone.coarse is not None
    assert not alone.values.any()
    for a, b in zip(both.coarse, alone.coarse, strict=True):
        assert torch.equal(a, b)
    assert both.values.any()
    h = both.spacing
    fine = ops.exponential(both.values, both.squarings, 1 / h)
    assert torch.allclose(both.forward / h, reference.compose(both.coarse[0] / h, fine), atol=1e-4)
    points = case.points()
    there = points + both.displacement(points)
    back = there + both.displacement(there, inverse=True)
    # On the lattice alone: baking makes it exact at the voxels.
    assert np.linalg.norm(back - points, axis=-1).mean() < 0.15 * min(case.fixed.spacing)


@BOTH
def test_network_goes_first_and_alone(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    one = settings(steps=(10, 0), network=SMALL, composed=False, grids="single")
    only = optimise_lattice(case.pair, replace(one, grids="none"))
    alone = optimise_lattice(case.pair, replace(one, network_alone=1.0))
    assert only.field.values.any()
    assert torch.equal(only.field.values, alone.field.values)
    half = optimise_lattice(case.pair, replace(one, network_alone=0.5))
    assert [s.loss for s in half.trace[:6]] == [s.loss for s in alone.trace[:6]]
    assert not torch.equal(half.field.values, alone.field.values)


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
        wrong = settings(displacement_diffusion=(0.1, 0.1), jacobian_weight=1.0, **changes)
        field = optimise_lattice(case.pair, wrong).field
        return float(np.linalg.norm(field.displacement(p) - truth, axis=-1).mean())

    found = error(network=SMALL)
    assert found < 0.15 * np.linalg.norm(truth, axis=-1).mean()
    assert found < 0.5 * error(network=None)


@BOTH
def test_little_evidence_leaves_the_image_where_it_is(make_case: Callable[..., Any], d: int) -> None:
    """Noise must not drag the whole image away, which no penalty on gradients would forbid."""
    case = make_case(d, N[d])
    other = torch.rand(case.pair.moving.shape, generator=torch.Generator().manual_seed(3))
    result = optimise_lattice(
        replace(case.pair, moving=other), settings(network=SMALL, displacement_diffusion=(1.0, 1.0))
    )
    assert np.abs(result.field.displacement(case.points())).mean() < 0.3 * min(case.fixed.spacing)


@pytest.mark.parametrize("term", ["velocity_diffusion", "displacement_diffusion", "jacobian_weight"])
def test_every_term_of_the_loss_has_its_effect(make_case: Callable[..., Any], term: str) -> None:
    case = make_case(2, 56)
    base = settings(velocity_diffusion=(0.0, 0.0), jacobian_margin=1.0)
    value: Any = 10.0 if term == "jacobian_weight" else (3.0, 3.0)
    free, bound = (optimise_lattice(case.pair, c).field for c in (base, replace(base, **{term: value})))
    u, v = on_voxels(free), on_voxels(bound)
    if term == "jacobian_weight":
        inside = torch.from_numpy(case.inside())
        dets = [jacobian_determinant(x, case.fixed.spacing)[inside] for x in (u, v)]
        low = [float(torch.relu(1 - det).square().mean()) for det in dets]
        assert low[1] < 0.7 * low[0]
    else:
        rough = [float(x.diff(dim=1).square().mean() + x.diff(dim=2).square().mean()) for x in (u, v)]
        assert rough[1] < 0.7 * rough[0]


@BOTH
def test_unit_of_the_intensities_does_not_matter(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    plain = optimise_lattice(case.pair, QUICK)
    pair = replace(case.pair, fixed=case.pair.fixed * 0.004 + 3, moving=case.pair.moving * -250 + 1000)
    other = optimise_lattice(pair, QUICK)
    # The sign flips too: the correlation is squared. But clipped outliers differ, and rounding does.
    assert gap(plain.field, other.field, case.points()).mean() < 0.03 * case.start()


def test_spacings_of_the_levels_follow_the_millimetres() -> None:
    g = Geometry.make((100, 100, 30), (1.0, 1.0, 4.0))
    assert shrink(g, 4) == (4, 4, 1)
    assert shrink(g, 8) == (8, 8, 2)
    assert shrink(Geometry.make((3, 100), (1.0, 1.0)), 8) == (3, 8, 1)


# --- running ---------------------------------------------------------------------------------------------------------


def test_every_step_is_reported_and_the_callback_changes_nothing(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)
    seen: list[Progress] = []
    result = optimise_lattice(case.pair, settings(steps=(6, 4)), callback=seen.append)
    assert [(p.level, p.step) for p in seen] == [(0, k) for k in range(6)] + [(1, k) for k in range(4)]
    assert all(p.stage == "deformable" and p.levels == 2 for p in seen)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] > 0
    assert fractions[-1] == 1.0
    assert [p.loss for p in seen] == [t.loss for t in result.trace]
    assert [p.metric for p in seen] == [t.metric for t in result.trace]
    plain = optimise_lattice(case.pair, settings(steps=(6, 4)))
    assert torch.equal(plain.field.values, result.field.values)


@pytest.mark.parametrize("grids", ["pyramid", "single"])
@pytest.mark.parametrize("level", [0, 1])
def test_cancel_keeps_the_best_so_far(make_case: Callable[..., Any], grids: str, level: int) -> None:
    case = make_case(2, 48)
    # Steps so large that the loss goes up and down.
    wild = settings(steps=(14, 14), learning_rates=(4.0, 8.0), grids=grids)
    losses = [t.loss for t in optimise_lattice(case.pair, wild).trace if t.level == level]
    stop = next(k for k in range(2, 14) if losses[k] > min(losses[:k]))
    best = int(np.argmin(losses[:stop]))
    result = optimise_lattice(case.pair, wild, callback=lambda p: (p.level, p.step) == (level, stop))
    assert result.stop == "cancelled"
    assert (result.trace[-1].level, result.trace[-1].step) == (level, stop)
    # The state that had the smallest loss: a run that stops right there has it too.
    wanted = optimise_lattice(case.pair, wild, callback=lambda p: (p.level, p.step) == (level, best))
    assert torch.equal(result.field.values, wanted.field.values)


def test_cancel_at_once_is_the_identity(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 40)
    result = optimise_lattice(case.pair, QUICK, callback=lambda _: True)
    assert len(result.trace) == 1
    assert not result.field.values.any()
    assert not result.field.displacement(case.points()).any()


def test_convergence_window_ends_a_level(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)
    patient = settings(steps=(300, 1), network=None, convergence_window=8, convergence_threshold=2e-3)
    result = optimise_lattice(case.pair, patient)
    first = [t.loss for t in result.trace if t.level == 0]
    assert 16 <= len(first) < 200
    w = 8
    gains = [np.mean(first[k - 2 * w : k - w]) - np.mean(first[k - w : k]) for k in range(2 * w, len(first) + 1)]
    assert gains[-1] < 2e-3
    assert all(g >= 2e-3 for g in gains[:-1])
    assert result.trace[-1].level == 1  # the next level still comes
    assert result.stop == "all steps done"  # and is what `stop` speaks of
    both = optimise_lattice(case.pair, replace(patient, steps=(40, 300)))
    assert both.stop == "converged"
    never = optimise_lattice(case.pair, replace(patient, steps=(40, 1), convergence_threshold=0.0))
    assert len(never.trace) == 41


def test_network_that_has_converged_makes_way_for_the_lattices(make_case: Callable[..., Any]) -> None:
    at_once = settings(steps=(30, 0), network=SMALL, convergence_window=3, convergence_threshold=1e9)
    result = optimise_lattice(make_case(2, 48).pair, at_once)
    assert len(result.trace) == 6 + 6
    assert result.stop == "converged"


def test_level_without_steps_is_left_out(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)
    result = optimise_lattice(case.pair, settings(steps=(0, 5)))
    assert {t.level for t in result.trace} == {1}


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(make_case: Callable[..., Any], threads: int) -> None:
    case = make_case(3, 26)
    one, many = (optimise_lattice(case.pair, settings(steps=(8, 4)), threads=t) for t in (1, threads))
    assert torch.equal(one.field.values, many.field.values)
    assert one.trace == many.trace
    assert torch.equal(one.field.forward, many.field.forward)
    assert torch.equal(one.field.backward, many.field.backward)


def test_random_numbers_and_settings_of_the_caller_are_left_alone(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 40)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    optimise_lattice(case.pair, settings(network=SMALL, steps=(3, 2)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


# --- the field -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(2, "velocity"), (3, "velocity"), (2, "displacement"), (3, "displacement")])
def trained(request: pytest.FixtureRequest, make_case: Callable[..., Any]) -> tuple[Any, LatticeField]:
    d, flow = request.param
    case = make_case(d, N[d], spacing=(1.0, 1.2, 1.4)[:d], angle=0.5, away=-40.0)
    return case, optimise_lattice(case.pair, settings(flow=flow, steps=(25, 6))).field


@pytest.mark.parametrize("inverse", [False, True])
def test_points_and_grids_agree(trained: tuple[Any, LatticeField], inverse: bool) -> None:
    case, field = trained
    g, d = case.fixed, case.fixed.dimension
    rng = np.random.default_rng(0)
    positions = [np.sort(rng.uniform(0, n - 1, 7)) for n in g.size] + [np.zeros(1)] * (3 - d)
    u = field.on_grid(positions, inverse).double().numpy()
    assert u.shape == (3, *[len(p) for p in positions[::-1]])
    if d == 2:
        assert not u[2].any()
    mesh = np.meshgrid(*positions[d - 1 :: -1], indexing="ij")[::-1]
    points = g.index_to_physical(np.stack([m.ravel() for m in mesh], -1))
    along = u[:d].reshape(d, -1).T
    assert np.abs(along).max() > 1
    np.testing.assert_allclose(field.displacement(points, inverse), along @ g.rotation.T, atol=2e-5)


def test_field_is_smooth(trained: tuple[Any, LatticeField]) -> None:
    """C1: one-sided slopes agree everywhere, the knots of the lattice included."""
    case, field = trained
    g, d = case.fixed, case.fixed.dimension
    for axis in range(d):
        knots = field.axes[axis].positions
        knots = knots[(knots > 1) & (knots < g.size[axis] - 2)]
        index = np.tile((np.asarray(g.size) - 1) * 0.47, (len(knots), 1))
        index[:, axis] = knots
        e = np.zeros(d)
        e[axis] = 1e-4
        at = [field.displacement(g.index_to_physical(index + k * e)) for k in (-1, 0, 1)]
        left, right = (at[1] - at[0]) / 1e-4, (at[2] - at[1]) / 1e-4
        assert np.abs(left).max() > 0.02
        np.testing.assert_allclose(left, right, atol=3e-3)


def test_field_is_zero_beyond_its_lattice(trained: tuple[Any, LatticeField]) -> None:
    case, field = trained
    d = case.fixed.dimension
    index = np.tile((np.asarray(case.fixed.size) - 1) / 2, (4 * d, 1))
    for axis in range(d):
        a = field.axes[axis]
        ends = (a.start - 2 * a.spacing, a.start - 30, a.positions[-1] + 2 * a.spacing, a.positions[-1] + 1000)
        index[4 * axis : 4 * axis + 4, axis] = ends
    for inverse in (False, True):
        # Exactly 2 knots beyond, the spline is a rounding error.
        assert np.abs(field.displacement(case.fixed.index_to_physical(index), inverse)).max() < 1e-30


def test_backward_is_the_inverse(trained: tuple[Any, LatticeField]) -> None:
    case, field = trained
    p = case.points(0.7)
    moved = p + field.displacement(p)
    back = moved + field.displacement(moved, inverse=True)
    assert np.linalg.norm(moved - p, axis=-1).max() > 1
    error = np.linalg.norm(back - p, axis=-1)
    # Between the lattice's points both are splines of their own, which are inverse to one another at the points only.
    assert error.mean() < 0.2
    assert np.percentile(error, 99) < 0.6


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("flow", ["velocity", "displacement"])
def test_gradient_of_the_whole_loss(make_case: Callable[..., Any], d: int, flow: str) -> None:
    """The native ops in float32, put together as the loop does, against differences of the float64 reference."""
    case = make_case(d, 20 if d == 2 else 12, spacing=1.0)
    size = [*case.fixed.size, 1][:3]
    domain = Domain((0, 0, 0), tuple(size))  # type: ignore[arg-type]
    axes = domain.lattice((4.0, 4.0, 4.0), 1)
    positions = domain.level_positions((1, 1, 1))
    spline = [a.evaluate(x) for a, x in zip(axes[1], positions, strict=True)]
    refine = [a.refine() for a in axes[0]]
    index, vector = voxel_map(case.fixed, case.pair.moving_geometry, case.pair.linear)
    fixed, moving = (normalised(x, None)[0] for x in (case.pair.fixed, case.pair.moving))
    generator = torch.Generator().manual_seed(0)

    def start(lattice: list[Axis]) -> torch.Tensor:
        values = 0.8 * torch.randn(3, *[a.count for a in lattice[::-1]], generator=generator)
        return values if d == 3 else values * torch.tensor([1.0, 1.0, 0.0]).reshape(3, 1, 1, 1)

    coarse, fine = start(axes[0]), start(axes[1])
    h = 2.0

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        v = ops.separable(a, refine) + b
        u = ops.exponential(v, 3, 1 / h) if flow == "velocity" else v / h
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


def test_loss_of_the_first_step_is_what_the_module_says(make_case: Callable[..., Any]) -> None:
    """Before any step the field is zero: 1 - LNCC² of the images as they lie; only windows that count."""
    case = make_case(2, 40)
    one = settings(
        shrink_factors=(1,), smoothing_sigmas=(0.0,), steps=(1,), learning_rates=(0.3,), lattice_spacing=(2.0,),
        radius=(3,), velocity_diffusion=(0.1,), displacement_diffusion=(0.1,), jacobian_weight=1.0,
    )  # fmt: skip
    result = optimise_lattice(case.pair, one)
    fixed, moving = (normalised(x, None)[0].double() for x in (case.pair.fixed, case.pair.moving))
    total, count = reference.lncc(fixed, moving, None, 3, 1e-3)
    # The block of the grid that is worked on leaves a rim of background out.
    assert result.trace[0].metric == pytest.approx(float(total / count), abs=0.02)
    assert result.trace[0].loss == pytest.approx(1 - result.trace[0].metric, abs=1e-6)


# --- the parts -------------------------------------------------------------------------------------------------------


@BOTH
def test_voxel_maps(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(
        d, 30, spacing=(1.0, 1.3, 2.0)[:d], moving_spacing=(0.7, 1.1, 1.0)[:d], angle=0.3, moving_angle=-1.0,
        linear=scaled_linear(d), away=12.0,
    )  # fmt: skip
    fixed, moving, linear = case.fixed, case.pair.moving_geometry, case.pair.linear
    index, vector = voxel_map(fixed, moving, linear)
    rng = np.random.default_rng(0)
    i = rng.uniform(0, 10, (50, d))
    u = rng.normal(size=(50, d))  # mm along the fixed axes
    p = fixed.index_to_physical(i) + u @ fixed.rotation.T
    wanted = moving.physical_to_index(p @ linear[:d, :d].T + linear[:d, d])
    three = np.zeros((50, 3))
    three[:, :d], shift = i, np.zeros((50, 3))
    shift[:, :d] = u
    got = three @ index[:, :3].T + index[:, 3] + shift @ vector.T
    np.testing.assert_allclose(got[:, :d], wanted, atol=1e-9)
    # And between levels: sample k of a level is where its position says.
    factors, moving_factors = (2, 3, 1), (2, 2, 1)
    sizes = tuple([*fixed.size, 1][:3]), tuple([*moving.size, 1][:3])
    at = Domain((0, 0, 0), sizes[0]).level_positions(factors)  # type: ignore[arg-type]
    there = Domain((0, 0, 0), sizes[1]).level_positions(moving_factors)  # type: ignore[arg-type]
    low, low_vector = level_map(index, vector, at, factors, there, moving_factors)
    k = np.array([2.0, 3.0, 0.0])
    full = np.array([at[a][int(k[a])] for a in range(3)])
    target = index[:, :3] @ full + index[:, 3] + vector @ shift[0]
    sample = low[:, :3] @ k + low[:, 3] + low_vector @ shift[0]
    back = np.array([there[a][0] for a in range(3)]) + sample * moving_factors
    np.testing.assert_allclose(back[:d], target[:d], atol=1e-9)


def test_background_and_bounds() -> None:
    image = torch.full((8, 9, 10), 7.0)
    image[2:5, 3:7, 4] = 1.0
    assert background(image) == 7.0
    box = bounds(image != 7.0)
    assert box is not None
    np.testing.assert_array_equal(box[0], [4, 3, 2])
    np.testing.assert_array_equal(box[1], [4, 6, 4])
    assert bounds(torch.zeros(3, 3, 3, dtype=torch.bool)) is None
    assert background(torch.rand(4, 5, 6)) is None
    plane = torch.zeros(1, 6, 6)
    plane[0, 2:4, 2:4] = 3.0
    assert background(plane) == 0.0


def test_normalised_by_the_foreground() -> None:
    image = torch.zeros(1, 20, 20)
    image[0, 5:15, 5:15] = torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) * 40 + 900
    out, box = normalised(image, None)
    inside = out[0, 5:15, 5:15]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inside.std()) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(box[0], [5, 5, 0])
    np.testing.assert_array_equal(box[1], [14, 14, 0])
    assert float(out.min()) == -6  # far outliers are cut
    weight = torch.zeros_like(image)
    weight[0, 0:6, 0:6] = 1
    assert normalised(image, weight)[1][1].tolist() == [5, 5, 0]


@BOTH
def test_domain_holds_both_foregrounds(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, 40, linear=scaled_linear(d))
    _, fixed_box = normalised(case.pair.fixed, None)
    _, moving_box = normalised(case.pair.moving, None)
    domain = common_domain(case.pair, fixed_box, moving_box, 2.0)
    low, high = np.asarray(domain.start), np.asarray(domain.start) + domain.size - 1
    assert np.all(low >= 0)
    assert np.all(high <= np.array([*case.fixed.size, 1][:3]) - 1)
    seen = np.argwhere(case.pair.fixed.numpy() != 0)[:, ::-1]
    assert np.all(low <= seen.min(0))
    assert np.all(high >= seen.max(0))
    there = np.argwhere(case.pair.moving.numpy() != 0)[:, ::-1][:, :d]
    p = case.pair.moving_geometry.index_to_physical(there)
    back = np.linalg.inv(case.pair.linear)
    i = case.fixed.physical_to_index(p @ back[:d, :d].T + back[:d, d])
    i = np.clip(i, 0, np.asarray(case.fixed.size) - 1)
    assert np.all(low[:d] <= i.min(0) + 1)
    assert np.all(high[:d] >= i.max(0) - 1)


def test_settings_know_how_many_levels_they_have() -> None:
    assert QUICK.levels == 2
    assert [QUICK.grid_of(k) for k in range(2)] == [1, 2]
    assert dataclasses.replace(QUICK, coarsest_lattice=4.0).grid_of(0) == 0


def test_flat_pair_in_float64_runs_on_the_reference(make_case: Callable[..., Any]) -> None:
    """The reference ops behind the same loop find the same deformation as the native ones."""
    case = make_case(2, 32)
    few = settings(steps=(6, 3))
    native = optimise_lattice(case.pair, few)
    field = _with_the_reference(case.pair, few)
    p = case.points()
    moved = np.linalg.norm(native.field.displacement(p), axis=-1).mean()
    assert moved > 0.5
    assert gap(native.field, field, p).mean() < 0.02


def _with_the_reference(pair: Pair, few: LatticeSettings) -> LatticeField:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "native_module", lambda: None)
        return optimise_lattice(pair, few).field


@pytest.mark.parametrize("shape", [(1, 30, 41), (9, 300, 310)], ids=str)
def test_voxels_taken_from_within_an_image(shape: tuple[int, int, int]) -> None:
    """Some planes at a time, as all at once."""
    generator = torch.Generator().manual_seed(0)
    u = 3 * torch.randn((3, *shape), generator=generator)
    index, vector = np.eye(4)[:3], np.diag([1.0, 0.5, 2.0])
    index[:, 3] = 1.5, -2.0, 0.2
    size = (1 if shape[0] == 1 else 12, 280, 290)
    got = _inside(u, index, vector, size)
    at = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij")[::-1])
    q = at + torch.einsum("ij,j...->i...", torch.from_numpy(vector).float(), u)
    q = q + torch.from_numpy(index[:, 3]).float().reshape(3, 1, 1, 1)
    wanted = torch.ones(shape, dtype=torch.bool)
    for row, n in enumerate(size[::-1]):
        if n > 1:
            wanted &= (q[row] >= -0.5) & (q[row] <= n - 0.5)
    assert not bool(wanted.all())
    assert got is not None
    assert torch.equal(got, wanted)
    assert _inside(torch.zeros(3, *shape), np.eye(4)[:3], vector, shape) is None

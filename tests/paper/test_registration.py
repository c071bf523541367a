"""The registration on sampled points, on pairs whose deformation is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.paper.flow import jacobian_determinant
from itk_nir.paper.registration import PointPhase, PointRegistration, PointSettings, optimise_points
from itk_nir.engine.progress import Progress
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.geometry import Geometry

SMALL = FieldConfig(width=32, depth=2, frequencies=16, scale=1.0, omega=10.0, bound=1.0)


def settings(d: int, steps: int = 40, **changes: object) -> PointSettings:
    phases = (
        PointPhase(SMALL, SamplerConfig("downsize", stride=2), steps, 2, 5e-3, 5e-4),
        PointPhase(SMALL, SamplerConfig("patches", patches=4, edge=20 if d == 2 else 12), steps, 3, 2e-3, 2e-4),
    )
    return dataclasses.replace(PointSettings(phases, flow_steps=2, time=0.5, probes=256), **changes)  # type: ignore[arg-type]


def scene(points: np.ndarray) -> np.ndarray:
    """A smooth picture of any physical points ``(..., d)``, within 20 mm of the origin."""
    d = points.shape[-1]
    radius = np.linalg.norm(points * np.array([1.0, 1.3, 1.1][:d]), axis=-1)
    turned = points @ np.array([[0.8, -0.6, 0.3], [0.5, 0.8, -0.4], [-0.3, 0.2, 0.9]])[:d, :d]
    waves = np.sin(points / 2.1 + [0.3, 1.0, 2.0][:d]).sum(-1) + np.sin(turned / 1.6).sum(-1)
    return np.asarray((4 + waves) / (1 + np.exp((radius - 15) / 1.0)))


def warp(points: np.ndarray) -> np.ndarray:
    """The true displacement, mm LPS, up to about 2.5 mm."""
    return np.asarray(1.6 * np.sin(points[..., ::-1] / 7 + np.arange(points.shape[-1])))


def pair(d: int) -> tuple[torch.Tensor, Geometry, torch.Tensor, Geometry, np.ndarray]:
    """Fixed and moving on unlike oblique grids with ``fixed(p) = moving(A(p + warp(p)))``."""
    c, s = math.cos(0.3), math.sin(0.3)
    turn = np.eye(d)
    turn[:2, :2] = [[c, -s], [s, c]]
    shape_f, shape_m = ((44, 40), (48, 46)) if d == 2 else ((26, 28, 24), (28, 30, 30))
    spacing_f, spacing_m = (0.9, 1.0, 1.3)[:d], (1.0, 0.8, 1.2)[:d]
    if d == 3:
        spacing_f, spacing_m = (1.5, 1.3, 1.4), (1.3, 1.25, 1.3)
    fixed_g = centred(shape_f[::-1], spacing_f, turn)
    moving_g = centred(shape_m[::-1], spacing_m, turn.T)
    linear = np.eye(d + 1)
    linear[:-1, :-1] = turn @ np.diag([1.05, 0.95, 1.0][:d])
    linear[:-1, -1] = [1.0, -1.5, 0.5][:d]
    p = moving_g.grid()
    moving = scene(p)
    q = fixed_g.grid()
    fixed = scene((q + warp(q)) @ linear[:-1, :-1].T + linear[:-1, -1])
    return tensor(fixed), fixed_g, tensor(moving), moving_g, linear


def centred(size: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray) -> Geometry:
    g = Geometry.make(size, spacing, None, direction)
    return Geometry.make(size, spacing, -g.centre, direction)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))[None]


def grid_displacement(result: PointRegistration, g: Geometry) -> np.ndarray:
    """``shape + (d,)`` displacement in mm LPS."""
    q = torch.from_numpy(g.physical_to_field(g.grid()).reshape(-1, g.dimension)).float()
    along = result.displacement(q).numpy().reshape(*g.shape, g.dimension) * g.half_extent
    return np.asarray(along @ g.rotation.T)


def error(u: np.ndarray, g: Geometry) -> float:
    """Mean distance to the true displacement in mm, inside the object."""
    inside = np.linalg.norm(g.grid(), axis=-1) < 10
    return float(np.linalg.norm(u - warp(g.grid()), axis=-1)[inside].mean())


@pytest.mark.parametrize("d", [2, 3])
def test_finds_a_known_deformation_through_oblique_grids_and_a_linear_map(d: int) -> None:
    case = pair(d)
    fixed_g = case[1]
    chosen = settings(d, 60 if d == 2 else 30)
    # A first phase that is cut short leaves the second something to do.
    short = dataclasses.replace(chosen.phases[0], steps=15)
    result = optimise_points(*case, dataclasses.replace(chosen, phases=(short, chosen.phases[1])))
    u = grid_displacement(result, fixed_g)
    start = error(np.zeros_like(u), fixed_g)
    assert start > 1.2
    assert error(u, fixed_g) < 0.25 * start
    assert len(result.fields) == 2
    assert not result.cancelled
    # Two phases do better than the first alone.
    first = dataclasses.replace(result, fields=result.fields[:1])
    assert error(u, fixed_g) < error(grid_displacement(first, fixed_g), fixed_g)
    # No folds, and the inverse comes back to a hundredth of a millimetre.
    lps = torch.from_numpy(np.moveaxis(u, -1, 0).copy())
    assert float(jacobian_determinant(lps, fixed_g.spacing, fixed_g.direction).min()) > 0
    q = torch.rand(200, d, generator=torch.Generator().manual_seed(3)) - 0.5
    inverse, gap = result.inverse_displacement(q)
    again = inverse + result.displacement(q + inverse)
    torch.testing.assert_close(gap, torch.linalg.vector_norm(again, dim=-1))
    assert float(gap.max()) * fixed_g.half_extent < 0.01
    assert float(inverse.abs().max()) * fixed_g.half_extent > 0.5


def test_same_seed_same_bits_whatever_ran_before() -> None:
    case = pair(2)
    q = torch.rand(50, 2, generator=torch.Generator().manual_seed(3)) - 0.5
    state = torch.random.get_rng_state()
    one = optimise_points(*case, settings(2, 4), seed=5)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    torch.manual_seed(99)
    two = optimise_points(*case, settings(2, 4), seed=5)
    other = optimise_points(*case, settings(2, 4), seed=6)
    assert torch.equal(one.displacement(q), two.displacement(q))
    assert one.trace == two.trace
    assert not torch.equal(one.displacement(q), other.displacement(q))


JITTER = SamplerConfig("downsize", stride=2, offset="jitter")
SCATTERED = SamplerConfig("random", points=600)
GRIDS = FieldConfig(kind="grid", cells=(4, 8), features=2, width=16, depth=1)
WHOLE = SamplerConfig("lattice", stride=2)


@pytest.mark.parametrize(
    ("sampler", "field", "changes"),
    [
        (SCATTERED, SMALL, {"similarity": "ncc", "diffusion_weight": 0.02}),
        (SCATTERED, GRIDS, {"similarity": "mse", "flow": "euler", "fixed_interpolation": "bspline"}),
        (JITTER, SMALL, {"flow": "displacement", "moving_interpolation": "bspline"}),
        (JITTER, SMALL, {"similarity": "ncc", "jacobian_margin": 0.1}),
        (WHOLE, GRIDS, {"flow": "displacement", "bending_weight": 0.01}),
        (SamplerConfig("downsize", stride=2, offset="centre"), SMALL, {"jacobian_weight": 0.0, "chunk": 100}),
        (
            SamplerConfig("patches", patches=3, edge=20),
            SMALL,
            {"diffusion_weight": 0.02, "fixed_interpolation": "nearest"},
        ),
    ],
    ids=lambda v: getattr(v, "name", getattr(v, "kind", "")),
)
def test_every_part_improves_the_alignment(sampler: SamplerConfig, field: FieldConfig, changes: dict) -> None:
    case = pair(2)
    phases = (PointPhase(field, sampler, 40, 2, 5e-3, 5e-4),)
    result = optimise_points(*case, settings(2, phases=phases, **changes))
    u = grid_displacement(result, case[1])
    assert error(u, case[1]) < 0.5 * error(np.zeros_like(u), case[1])
    assert [t.step for t in result.trace] == list(range(40))
    assert np.mean([t.loss for t in result.trace[-5:]]) < 0.7 * result.trace[0].loss


def test_chunks_change_the_memory_and_not_the_gradient() -> None:
    """Two steps, as the first only moves the last layer; float64 so that the order of sums does not matter."""
    case = pair(2)
    double = (case[0].double(), case[1], case[2].double(), *case[3:])
    q = torch.rand(50, 2, generator=torch.Generator().manual_seed(3)).double() - 0.5
    whole, parts = (optimise_points(*double, settings(2, 2, chunk=c)).displacement(q) for c in (1 << 14, 97))
    assert float(whole.abs().max()) > 1e-4
    torch.testing.assert_close(whole, parts, atol=1e-9, rtol=0)


def test_callback_sees_every_step_and_a_true_value_keeps_the_best_so_far() -> None:
    case = pair(2)
    seen: list[Progress] = []

    def watch(progress: Progress) -> bool:
        seen.append(progress)
        return progress.level == 1 and progress.step == 2

    result = optimise_points(*case, settings(2, 20), callback=watch)
    assert result.cancelled
    assert [(p.level, p.step) for p in seen] == [(0, k) for k in range(20)] + [(1, k) for k in range(3)]
    assert [(t.metric, t.loss) for t in result.trace] == [(p.metric, p.loss) for p in seen]
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] < 1
    assert all(p.stage == "deformable" and p.levels == 2 and p.steps == 20 for p in seen)
    u = grid_displacement(result, case[1])
    assert error(u, case[1]) < 0.7 * error(np.zeros_like(u), case[1])
    at_once = optimise_points(*case, settings(2, 20), callback=lambda p: True)
    assert at_once.cancelled
    assert (len(at_once.fields), len(at_once.trace)) == (1, 1)


def test_steps_that_only_do_harm_are_not_kept() -> None:
    case = pair(2)
    phases = (PointPhase(SMALL, SamplerConfig("downsize", stride=2), 8, 2, 30.0, 30.0),)
    result = optimise_points(*case, settings(2, phases=phases))
    assert min(t.loss for t in result.trace[1:]) > result.trace[0].loss
    assert (grid_displacement(result, case[1]) == 0).all()


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_masked_voxels_do_not_count(side: str) -> None:
    """Nonsense painted behind a mask changes no bit of the result."""
    fixed, fixed_g, moving, moving_g, linear = pair(2)
    image, g = (fixed, fixed_g) if side == "fixed" else (moving, moving_g)
    mask = (torch.arange(image.shape[-1]) < 28).float().expand_as(image)
    painted = image.clone()
    # One voxel beyond the mask still takes part in the interpolation at its rim.
    painted[..., 29:] = 50 * torch.rand(painted[..., 29:].shape, generator=torch.Generator().manual_seed(0))
    q = torch.rand(50, 2, generator=torch.Generator().manual_seed(3)) - 0.5

    def run(picture: torch.Tensor) -> torch.Tensor:
        f, m = (picture, moving) if side == "fixed" else (fixed, picture)
        masks = {f"{side}_mask": mask}
        phases = (PointPhase(SMALL, SamplerConfig("downsize", stride=2), 5, 2, 5e-3, 5e-4),)
        result = optimise_points(f, fixed_g, m, moving_g, linear, settings(2, phases=phases), **masks)
        return result.displacement(q)

    assert float(run(image).abs().max()) > 0
    torch.testing.assert_close(run(painted), run(image), atol=1e-6, rtol=0)
    assert g.size[0] > 30


def test_errors() -> None:
    case = pair(2)
    with pytest.raises(ValueError, match="lncc needs neighbours"):
        settings(2, phases=(PointPhase(SMALL, SCATTERED),))
    with pytest.raises(ValueError, match="bending needs regular blocks"):
        settings(2, phases=(PointPhase(SMALL, JITTER),), bending_weight=1.0)
    with pytest.raises(ValueError, match="displacement, euler, rk4"):
        settings(2, flow="squaring")
    with pytest.raises(ValueError, match="linear, bspline"):
        settings(2, moving_interpolation="nearest")
    with pytest.raises(ValueError, match="fixed mask is empty"):
        optimise_points(*case, settings(2, 1), fixed_mask=torch.zeros_like(case[0]))
    with pytest.raises(ValueError, match="the moving image must have shape"):
        optimise_points(case[0], case[1], case[0], case[3], case[4], settings(2, 1))
    with pytest.raises(ValueError, match=r"\(3, 3\) matrix"):
        optimise_points(*case[:4], np.eye(4), settings(2, 1))
    broken = case[2].clone()
    broken[0, 20, 20] = float("nan")
    with pytest.raises(FloatingPointError, match="phase 0 at step 0"):
        optimise_points(case[0], case[1], broken, case[3], case[4], settings(2, 1))

"""The registration on sampled points, on pairs whose deformation is known."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
import torch

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.jacobian import jacobian_determinant
from itk_nir.engine.progress import Optimised, Progress
from itk_nir.errors import NothingToCompare
from itk_nir.geometry import Geometry
from itk_nir.paper.batches import Batch, Images
from itk_nir.paper.objective import Objective
from itk_nir.paper.registration import optimise, preset
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.paper.settings import PaperPhase, PaperSettings
from itk_nir.phantom import Phantom

SMALL = FieldConfig(width=32, depth=2, frequencies=16, scale=1.0, omega=10.0, bound=1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """As `itk_nir.engine.images.Pair`."""

    fixed: torch.Tensor
    fixed_geometry: Geometry
    moving: torch.Tensor
    moving_geometry: Geometry
    linear: np.ndarray
    fixed_weight: torch.Tensor | None = None
    moving_weight: torch.Tensor | None = None


def settings(d: int, iterations: int = 40, **changes: object) -> PaperSettings:
    phases = (
        PaperPhase(SMALL, SamplerConfig("downsize", stride=2), iterations, 2, 5e-3, 5e-4),
        PaperPhase(SMALL, SamplerConfig("patches", patches=4, edge=20 if d == 2 else 12), iterations, 3, 2e-3, 2e-4),
    )
    chosen = PaperSettings(phases, ode_steps=2, integration_time=0.5, probes=256)
    return dataclasses.replace(chosen, **changes)  # type: ignore[arg-type]


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


def pair(d: int) -> Pair:
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
    return Pair(volume(fixed), fixed_g, volume(moving), moving_g, linear)


def centred(size: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray) -> Geometry:
    g = Geometry.make(size, spacing, None, direction)
    return Geometry.make(size, spacing, -g.centre, direction)


def volume(array: np.ndarray) -> torch.Tensor:
    """``(Z, Y, X)`` float32."""
    tensor = torch.from_numpy(array.astype(np.float32))
    return tensor if tensor.dim() == 3 else tensor[None]


def grid_displacement(result: Optimised) -> np.ndarray:
    """``shape + (d,)`` displacement in mm LPS."""
    g = result.field.geometry
    return np.asarray(result.field.displacement(g.grid().reshape(-1, g.dimension)).reshape(*g.shape, g.dimension))


def some_points(geometry: Geometry, n: int = 50) -> np.ndarray:
    """``(n, d)`` LPS mm in the middle of a grid."""
    q = np.random.default_rng(3).uniform(-0.5, 0.5, (n, geometry.dimension))
    return geometry.field_to_physical(q)


def error(u: np.ndarray, g: Geometry) -> float:
    """Mean distance to the true displacement in mm, inside the object."""
    inside = np.linalg.norm(g.grid(), axis=-1) < 10
    return float(np.linalg.norm(u - warp(g.grid()), axis=-1)[inside].mean())


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3])
def test_finds_a_known_deformation_through_oblique_grids_and_a_linear_map(d: int) -> None:
    case = pair(d)
    g = case.fixed_geometry
    chosen = settings(d, 60 if d == 2 else 30)
    # A first phase that is cut short leaves the second something to do.
    short = dataclasses.replace(chosen.phases[0], iterations=15)
    result = optimise(case, dataclasses.replace(chosen, phases=(short, chosen.phases[1])))
    u = grid_displacement(result)
    start = error(np.zeros_like(u), g)
    assert start > 1.2
    assert error(u, g) < 0.25 * start
    assert len(result.field.fields) == 2
    assert result.stop == "all iterations done"
    # Two phases do better than the first alone.
    first = dataclasses.replace(result, field=dataclasses.replace(result.field, fields=result.field.fields[:1]))
    assert error(u, g) < error(grid_displacement(first), g)
    # No folds, and the inverse comes back to a hundredth of a millimetre.
    lps = torch.from_numpy(np.moveaxis(u, -1, 0).copy())
    assert float(jacobian_determinant(lps, g.spacing, g.direction).min()) > 0
    p = some_points(g, 200)
    inverse = result.field.displacement(p, inverse=True)
    back = p + inverse
    again = back + result.field.displacement(back)
    assert np.linalg.norm(again - p, axis=-1).max() < 0.01
    assert np.abs(inverse).max() > 0.5


@pytest.mark.slow
def test_the_preset_on_the_phantom(phantom_2d: Phantom) -> None:
    """Of 3.93 mm at the start, 0.57 to 0.72 mm are left with six seeds."""
    p = phantom_2d
    case = Pair(volume(p.fixed), p.geometry, volume(p.moving), p.moving_geometry, np.eye(3))
    result = optimise(case, preset())
    inside = p.fixed_labels > 0
    left = result.field.displacement(p.geometry.grid()[inside]) - p.displacement[inside]
    assert np.linalg.norm(p.displacement[inside], axis=-1).mean() > 3.9
    assert np.linalg.norm(left, axis=-1).mean() < 0.8
    assert len(result.trace) == 250
    assert result.similarity_start is not None
    assert result.similarity is not None
    assert result.similarity_start < 0.5
    assert result.similarity > 0.9
    lps = torch.from_numpy(np.moveaxis(grid_displacement(result), -1, 0).copy())
    assert float((jacobian_determinant(lps, p.geometry.spacing, p.geometry.direction) <= 0).double().mean()) < 0.005


def test_similarities_are_those_of_one_batch_without_and_with_the_field() -> None:
    case = pair(2)
    lattice = (PaperPhase(SMALL, SamplerConfig("lattice", stride=2), 15, 2, 5e-3, 5e-4),)  # every batch is the same
    chosen = settings(2, phases=lattice)
    result = optimise(case, chosen)
    assert result.similarity_start == pytest.approx(result.trace[0].metric, abs=1e-6)
    images = Images.of(case, chosen)
    batch = Batch.draw(images, lattice[0], chosen, torch.Generator().manual_seed(0))
    again = Objective(images, chosen, lattice[0], ())(result.field.fields[0], batch)
    assert again.metric == pytest.approx(result.similarity, abs=1e-6)
    assert result.similarity > max(t.metric for t in result.trace[:10])


@pytest.mark.slow
def test_same_seed_same_bits_whatever_ran_before() -> None:
    case = pair(2)
    p = some_points(case.fixed_geometry)
    state = torch.random.get_rng_state()
    one = optimise(case, settings(2, 4), seed=5)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
    torch.manual_seed(99)
    two = optimise(case, settings(2, 4), seed=5)
    other = optimise(case, settings(2, 4), seed=6)
    assert np.array_equal(one.field.displacement(p), two.field.displacement(p))
    assert one.trace == two.trace
    assert not np.array_equal(one.field.displacement(p), other.field.displacement(p))


JITTER = SamplerConfig("downsize", stride=2, offset="jitter")
SCATTERED = SamplerConfig("random", points=600)
GRIDS = FieldConfig(kind="grid", cells=(4, 8), features=2, width=16, depth=1)
WHOLE = SamplerConfig("lattice", stride=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "field", "changes"),
    [
        (SCATTERED, SMALL, {"metric": "ncc", "diffusion_weight": 0.02}),
        (SCATTERED, GRIDS, {"metric": "mse", "flow": "euler", "fixed_interpolation": "bspline"}),
        (JITTER, SMALL, {"flow": "displacement", "moving_interpolation": "bspline"}),
        (JITTER, SMALL, {"metric": "ncc", "jacobian_margin": 0.1}),
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
    phases = (PaperPhase(field, sampler, 40, 2, 5e-3, 5e-4),)
    result = optimise(case, settings(2, phases=phases, **changes))
    u = grid_displacement(result)
    assert error(u, case.fixed_geometry) < 0.5 * error(np.zeros_like(u), case.fixed_geometry)
    assert [t.iteration for t in result.trace] == list(range(40))
    assert np.mean([t.loss for t in result.trace[-5:]]) < 0.7 * result.trace[0].loss


@pytest.mark.slow
def test_chunks_change_the_memory_and_not_the_gradient() -> None:
    """Two iterations, as the first only moves the last layer; float64 so that the order of sums does not matter."""
    case = pair(2)
    double = dataclasses.replace(case, fixed=case.fixed.double(), moving=case.moving.double())
    q = torch.rand(50, 2, generator=torch.Generator().manual_seed(3)).double() - 0.5
    whole, parts = (optimise(double, settings(2, 2, chunk=c)).field.at_field_coordinates(q) for c in (1 << 14, 97))
    assert float(whole.abs().max()) > 1e-4
    torch.testing.assert_close(whole, parts, atol=1e-9, rtol=0)


def test_callback_sees_every_iteration_and_a_true_value_keeps_the_best_so_far() -> None:
    case = pair(2)
    seen: list[Progress] = []

    def watch(progress: Progress) -> bool:
        seen.append(progress)
        return progress.level == 1 and progress.iteration == 2

    result = optimise(case, settings(2, 20), callback=watch, clock=time.perf_counter() - 100)
    assert result.stop == "cancelled"
    assert [(p.level, p.iteration) for p in seen] == [(0, k) for k in range(20)] + [(1, k) for k in range(3)]
    assert [(t.level, t.iteration, t.metric, t.loss, t.learning_rate) for t in result.trace] == [
        (p.level, p.iteration, p.metric, p.loss, p.learning_rate) for p in seen
    ]
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] < 1
    assert all(p.stage == "deformable" and p.levels == 2 and p.iterations == 20 for p in seen)
    assert all(100 < p.seconds < 200 for p in seen)
    # The rate falls linearly within each phase.
    rates = [p.learning_rate for p in seen]
    np.testing.assert_allclose(rates[:20], np.linspace(5e-3, 5e-4, 20))
    np.testing.assert_allclose(rates[20:], np.linspace(2e-3, 2e-4, 20)[:3])
    u = grid_displacement(result)
    assert error(u, case.fixed_geometry) < 0.7 * error(np.zeros_like(u), case.fixed_geometry)
    at_once = optimise(case, settings(2, 20), callback=lambda p: True)
    assert at_once.stop == "cancelled"
    assert (len(at_once.field.fields), len(at_once.trace)) == (1, 1)


def test_iterations_that_only_do_harm_are_not_kept() -> None:
    case = pair(2)
    phases = (PaperPhase(SMALL, SamplerConfig("downsize", stride=2), 8, 2, 30.0, 30.0),)
    result = optimise(case, settings(2, phases=phases))
    assert min(t.loss for t in result.trace[1:]) > result.trace[0].loss
    assert (grid_displacement(result) == 0).all()
    assert result.similarity == pytest.approx(result.similarity_start, abs=1e-6)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_masked_voxels_do_not_count(side: str) -> None:
    """Nonsense painted behind a mask changes no bit of the result."""
    case = pair(2)
    image = getattr(case, side)
    mask = (torch.arange(image.shape[-1]) < 28).float().expand_as(image)
    painted = image.clone()
    # One voxel beyond the mask still takes part in the interpolation at its rim.
    painted[..., 29:] = 50 * torch.rand(painted[..., 29:].shape, generator=torch.Generator().manual_seed(0))

    def run(picture: torch.Tensor) -> np.ndarray:
        phases = (PaperPhase(SMALL, SamplerConfig("downsize", stride=2), 5, 2, 5e-3, 5e-4),)
        masked = dataclasses.replace(case, **{side: picture, f"{side}_weight": mask})
        return np.asarray(optimise(masked, settings(2, phases=phases)).field.displacement(points))

    points = some_points(case.fixed_geometry)
    assert np.abs(run(image)).max() > 0
    np.testing.assert_allclose(run(painted), run(image), atol=1e-6 * case.fixed_geometry.half_extent, rtol=0)
    assert image.shape[-1] > 30


def test_errors() -> None:
    case = pair(2)

    def refused(**changes: object) -> None:
        optimise(dataclasses.replace(case, **changes), settings(2, 1))  # type: ignore[arg-type]

    with pytest.raises(NothingToCompare, match="fixed mask is empty"):
        refused(fixed_weight=torch.zeros_like(case.fixed))
    with pytest.raises(ValueError, match="the moving image must have shape"):
        refused(moving=case.fixed)
    with pytest.raises(ValueError, match="the moving mask must have shape"):
        refused(moving_weight=torch.ones_like(case.fixed))
    with pytest.raises(ValueError, match=r"\(3, 3\) matrix"):
        refused(linear=np.eye(4))
    broken = case.moving.clone()
    broken[0, 20, 20] = float("nan")
    with pytest.raises(FloatingPointError, match="phase 0 at iteration 0"):
        refused(moving=broken)

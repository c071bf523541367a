"""Sampling, on fields that are known everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine.deformable import optimise
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.sampling import Field, SampledField, every_nth_voxel, sample_field
from itk_nir.engine.settings import DeformableSettings, SamplingSettings
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry
from itk_nir.transforms.model import DisplacementField
from tests.engine.pairs import velocity

BOTH = pytest.mark.parametrize("d", [2, 3])


@dataclass(frozen=True)
class Formula:
    """A field given by a formula: ``(N, d)`` mm along the image axes from voxel 0 → displacement, likewise."""

    geometry: Geometry
    forward: Callable[[np.ndarray], np.ndarray]
    device: torch.device = torch.device("cpu")
    threads: int = 1

    def displacement(self, points: np.ndarray, inverse: bool = False) -> np.ndarray:
        u = self.forward(self.geometry.physical_to_index(points) * self.geometry.spacing)
        return np.asarray((-u if inverse else u) @ self.geometry.rotation.T)

    def on_grid(self, positions: list[np.ndarray], inverse: bool = False) -> Tensor:
        d = self.geometry.dimension
        mesh = np.meshgrid(*positions[d - 1 :: -1], indexing="ij")[::-1]
        x = np.stack([m.ravel() for m in mesh], -1) * self.geometry.spacing
        u = self.forward(x)
        # A rough inverse, as a field that is not exactly inverse would give.
        u = -u if inverse else u
        out = torch.zeros(3, *[len(p) for p in positions[::-1]])
        out[:d] = torch.from_numpy(u.T.astype(np.float32)).reshape(d, *out.shape[1:] if d == 3 else (1, *out.shape[2:]))
        return out

    def support(self) -> list[tuple[float, float]]:
        return [(0.0, n - 1.0) for n in [*self.geometry.size, 1][:3]]

    def curvature(self) -> Tensor:
        """By differences at every voxel."""
        g, d = self.geometry, self.geometry.dimension
        x = (g.physical_to_index(g.grid()) * g.spacing).reshape(-1, d)
        out = torch.zeros(3, len(x))
        for axis, e in enumerate(1e-2 * np.eye(d)):
            second = (self.forward(x - e) - 2 * self.forward(x) + self.forward(x + e)) / 1e-4
            out[axis] = torch.from_numpy(np.linalg.norm(second, axis=-1))
        return out.reshape(3, *(g.shape if d == 3 else (1, *g.shape)))


def grid(d: int, n: int = 24) -> Geometry:
    angle = 0.4
    direction = np.eye(d)
    direction[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Geometry.make([n, n + 5, n - 4][:d], (1.0, 1.5, 2.0)[:d], (10.0, -20.0, 30.0)[:d], direction)


def waves(d: int, size: float, length: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: size * np.stack([np.sin(x[:, (a + 1) % d] / length + a) for a in range(d)], -1)


def saddle(d: int, size: float) -> Callable[[np.ndarray], np.ndarray]:
    """Curved up along one axis and down along another: the errors cancel at the middle of every cell."""
    signs = np.array([1.0, -1.0, 0.0])[:d]
    return lambda x: size * np.stack([(signs * x * x).sum(-1)] + [0 * x[:, 0]] * (d - 1), -1)


def everywhere(g: Geometry) -> Tensor:
    return torch.ones(g.shape if g.dimension == 3 else (1, *g.shape), dtype=torch.bool)


def true_error(field: Field, sampled: SampledField, true_at: Callable[[np.ndarray], np.ndarray] | None = None) -> float:
    """Largest distance in voxels at a hundred thousand points between the voxels of the fixed grid."""
    g = field.geometry
    index = np.random.default_rng(0).uniform(0, np.asarray(g.size) - 1, (100_000, g.dimension))
    if true_at is None:
        assert isinstance(field, Formula)
        true = field.forward(index * g.spacing) @ g.rotation.T
    else:
        true = true_at(g.index_to_physical(index))
    got = DisplacementField(sampled.geometry, sampled.forward).displacement(g.index_to_physical(index))
    return float(np.linalg.norm(got - true, axis=-1).max() / min(g.spacing))


@BOTH
@pytest.mark.parametrize("make", [lambda d: waves(d, 1.5, 9.0), lambda d: saddle(d, 0.01)], ids=["waves", "saddle"])
def test_stated_error_is_a_bound_that_brute_force_does_not_break(
    d: int, make: Callable[[int], Callable[[np.ndarray], np.ndarray]]
) -> None:
    g = grid(d)
    field = Formula(g, make(d))
    for step in (1, 2, 3, 4):
        sampled = sample_field(field, SamplingSettings(field_spacing=step), everywhere(g))
        assert sampled.spacing == step
        true = true_error(field, sampled)
        assert true <= 1.02 * sampled.interpolation_error
        assert true >= 0.4 * sampled.interpolation_error, "a bound so loose would waste memory"


@pytest.mark.slow
@BOTH
def test_stated_error_of_a_trained_field(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, 56 if d == 2 else 32, spacing=(1.0, 1.2, 1.1)[:d], angle=0.3)
    few = DeformableSettings(
        shrink_factors=(2,), smoothing_sigmas=(0.5,), iterations=(25,), learning_rates=(0.4,), grid_spacing=(2.0,),
        coarsest_grid_spacing=8.0, radius=(3,), velocity_smoothness=(0.2,), smoothness=(0.0,),
    )  # fmt: skip
    field = optimise(case.pair, few).field
    for step in (1, 2, 3, 4):
        sampled = sample_field(field, SamplingSettings(field_spacing=step), everywhere(case.fixed))
        true = true_error(field, sampled, field.displacement)
        assert 0.3 * sampled.interpolation_error < true <= 1.1 * sampled.interpolation_error


@BOTH
@pytest.mark.parametrize("bound", [0.02, 0.1])
@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
def test_coarsest_grid_that_keeps_the_bound_is_taken(d: int, bound: float, size: float) -> None:
    g = grid(d)
    field = Formula(g, waves(d, size, 8.0))
    sampled = sample_field(field, SamplingSettings(max_interpolation_error=bound), everywhere(g))
    if sampled.spacing > 1:
        assert sampled.interpolation_error <= bound
        assert true_error(field, sampled) <= bound
    if sampled.spacing < 4:
        next_one = sample_field(field, SamplingSettings(field_spacing=sampled.spacing + 1), everywhere(g))
        assert next_one.interpolation_error > bound


def test_spacings_of_the_cases_above_differ() -> None:
    g = grid(3)
    spacings = {
        sample_field(Formula(g, waves(3, s, 8.0)), SamplingSettings(0.1), everywhere(g)).spacing
        for s in (0.3, 1.0, 3.0)
    }
    assert len(spacings) == 3


@BOTH
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_grid_covers_the_fixed_image(d: int, step: int) -> None:
    g = grid(d)
    sampled = every_nth_voxel(g, step)
    np.testing.assert_allclose(sampled.origin, g.origin)
    np.testing.assert_array_equal(sampled.direction, g.direction)
    np.testing.assert_allclose(sampled.spacing, np.multiply(g.spacing, step))
    last = sampled.physical_to_index(g.index_to_physical(np.asarray(g.size) - 1.0))
    assert np.all(last <= np.asarray(sampled.size) - 1 + 1e-9)
    assert np.all(last > np.asarray(sampled.size) - 2)


@BOTH
def test_vectors_point_along_lps_whatever_the_direction(d: int) -> None:
    g = grid(d)
    field = Formula(g, waves(d, 1.5, 9.0))
    sampled = sample_field(field, SamplingSettings(field_spacing=1), everywhere(g))
    along = field.forward((g.physical_to_index(g.grid()) * g.spacing).reshape(-1, d))
    np.testing.assert_allclose(sampled.forward.reshape(-1, d), along @ g.rotation.T, atol=1e-5)
    assert sampled.forward.dtype == sampled.inverse.dtype == np.float32


@BOTH
def test_jacobian_numbers_of_a_scaling(d: int) -> None:
    g = grid(d)
    factors = np.array([1.2, 0.9, 1.1])[:d]
    sampled = sample_field(Formula(g, lambda x: x * (factors - 1)), SamplingSettings(field_spacing=1), everywhere(g))
    assert sampled.jacobian_range == pytest.approx((np.prod(factors),) * 2, abs=1e-4)
    assert sampled.folded == 0
    assert sampled.folded_percent == 0
    assert sampled.log_jacobian_sd == pytest.approx(0, abs=1e-4)


@BOTH
def test_folds_are_counted_where_they_are_asked_for(d: int) -> None:
    """``x + u(x)`` turns back within a band of known width."""
    g = grid(d)
    x0, width = 10.0, 3.0

    def band(x: np.ndarray) -> np.ndarray:
        u = np.zeros_like(x)
        u[:, 0] = -2.0 * np.clip(x[:, 0] - x0, 0, width)  # derivative of the map is -1 within the band
        return u

    # Central differences: -1 at 11 and 12; at its ends, 10 and 13, half of the way: (1 - 1) / 2 = 0, folded too.
    sampled = sample_field(Formula(g, band), SamplingSettings(field_spacing=1), everywhere(g))
    assert sampled.folded == 4 * np.prod(g.size[1:])
    assert sampled.folded_percent == pytest.approx(100 * 4 / g.size[0])
    assert sampled.jacobian_range == pytest.approx((-1, 1), abs=1e-5)
    inside = everywhere(g)
    inside[..., 11:] = False
    sampled = sample_field(Formula(g, band), SamplingSettings(field_spacing=1), inside)
    assert sampled.folded == np.prod(g.size[1:])
    assert sampled.folded_percent == pytest.approx(100 / 11)


def test_all_voxels_count_where_none_are_named() -> None:
    field = Formula(grid(3), waves(3, 1.5, 9.0))
    plain, named = sample_field(field, SamplingSettings()), sample_field(field, SamplingSettings(), everywhere(grid(3)))
    assert plain.jacobian_range == named.jacobian_range
    assert plain.inverse_error_p99 == named.inverse_error_p99


@BOTH
def test_spread_of_the_log_jacobian(d: int) -> None:
    g = grid(d, 40)
    field = Formula(g, lambda x: np.stack([2.0 * np.cos(x[:, 0] / 5)] + [0 * x[:, 0]] * (d - 1), -1))
    sampled = sample_field(field, SamplingSettings(field_spacing=1), everywhere(g))
    x = np.arange(1, g.size[0] - 1, dtype=float)
    difference = 1 + (np.cos((x + 1) / 5) - np.cos((x - 1) / 5))
    assert sampled.jacobian_range[0] <= difference.min() + 1e-4
    assert sampled.log_jacobian_sd == pytest.approx(np.log(difference).std(), rel=0.05)


@BOTH
@pytest.mark.parametrize("step", [1, 2])
def test_inverse_error_is_that_of_the_sampled_fields(d: int, step: int) -> None:
    g = grid(d)
    x_max = (np.asarray(g.size) - 1) * g.spacing

    def inward(x: np.ndarray) -> np.ndarray:  # keeps the border, so that no point leaves the grid
        return 0.05 * x_max * np.prod(np.sin(np.pi * x / x_max), -1, keepdims=True) * np.ones(d)

    sampled = sample_field(Formula(g, inward), SamplingSettings(field_spacing=step), everywhere(g))
    forward = DisplacementField(sampled.geometry, sampled.forward)
    inverse = DisplacementField(sampled.geometry, sampled.inverse)
    p = sampled.geometry.grid().reshape(-1, d)
    p = p[g.contains(p)]
    gap = np.linalg.norm(inverse.map(forward.map(p)) - p, axis=-1) / min(g.spacing)
    moved = np.linalg.norm(forward.displacement(p), axis=-1) / min(g.spacing)
    assert moved.max() > 1
    assert gap.mean() < 0.05
    assert sampled.inverse_error_mean == pytest.approx(gap.mean(), rel=0.25, abs=2e-4)
    assert sampled.inverse_error_p99 == pytest.approx(np.percentile(gap, 99), rel=0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_interpolation_error": 0.0}, "max_interpolation_error"), ({"field_spacing": 0}, "field_spacing")],
)
def test_settings_that_make_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**options)  # type: ignore[arg-type]


@BOTH
@pytest.mark.parametrize("step", [1, 3])
def test_sampling_within_the_support_leaves_nothing_out(d: int, step: int) -> None:
    geometry = grid(d, 40)
    domain = Domain((10, 12, 9 if d == 3 else 0), (12, 14, 10 if d == 3 else 1))
    lattices = Lattices.halved(domain.lattice((2.0, 2.0 / 1.5, 1.0)), 2.0, 0)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, *shape_of(lattices.axes[0]), generator=generator) - 0.5
    field = VelocityField(geometry, velocity(geometry, lattices, values))
    sampled = sample_field(field, SamplingSettings(field_spacing=step), everywhere(geometry))
    whole = [np.arange(n, dtype=float) * step for n in [*sampled.geometry.size, 1][:3]]
    true = field.on_grid(whole)
    assert int((true != 0).any(0).sum()) < 0.6 * true[0].numel()  # there is something to leave out
    along = sampled.forward @ geometry.rotation
    got = torch.from_numpy(along).movedim(-1, 0).reshape(d, *true.shape[1:])
    assert torch.allclose(got.float(), true[:d], atol=1e-5)
    assert sampled.inverse_error_p99 < 0.3


@BOTH
def test_mask_between_the_nodes_is_measured_next_to_it(d: int) -> None:
    g = grid(d)
    field, settings = Formula(g, waves(d, 1.5, 9.0)), SamplingSettings(field_spacing=4)
    inside = torch.zeros_like(everywhere(g))
    inside[..., 10] = True  # nodes are at 8 and 12
    sampled, whole = sample_field(field, settings, inside), sample_field(field, settings, everywhere(g))
    assert 0 < sampled.log_jacobian_sd < 2 * whole.log_jacobian_sd
    assert sampled.jacobian_range != (1.0, 1.0)

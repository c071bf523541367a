"""The displacement beyond the block that was optimised, and its inverse where it leaves the fixed image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import special_ortho_group

from itk_nir.engine import ops
from itk_nir.engine.continuation import LENGTHS, Continuation, whole_cells
from itk_nir.engine.folds import remove_folds
from itk_nir.engine.images import sizes, spacings
from itk_nir.engine.lattice import Axis, Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.sampling import SampledField, Target, sample_field
from itk_nir.engine.settings import SamplingSettings
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry
from itk_nir.transforms.model import DisplacementField, LinearTransform
from tests.engine.pairs import velocity

BOTH = pytest.mark.parametrize("d", [2, 3])
KNOTS = 8.0


def random_grid(d: int, seed: int) -> Geometry:
    rng = np.random.default_rng(seed)
    direction = special_ortho_group.rvs(d, random_state=seed) * rng.choice([-1, 1], d)
    return Geometry.make(rng.integers(14, 24, d).tolist(), rng.uniform(0.6, 2.0, d), rng.uniform(-90, 90, d), direction)


def field_on(geometry: Geometry, domain: Domain, values: Sequence[float] | np.ndarray, seed: int = 0) -> VelocityField:
    """A displacement model: control points of `values` mm everywhere, and noise of a fifth of a millimetre with it."""
    knots = tuple(KNOTS / s for s in spacings(geometry))
    lattices = Lattices.halved(domain.lattice(knots), KNOTS, 0, domain.ends)  # type: ignore[arg-type]
    shape = shape_of(lattices.axes[0])
    points = (
        0.2 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed)) if seed else torch.zeros(3, *shape)
    )
    points += torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)
    points[geometry.dimension :] = 0
    return VelocityField(geometry, velocity(geometry, lattices, points), None, "displacement", 1)


def inner_block(geometry: Geometry, seed: int) -> Domain:
    rng = np.random.default_rng(seed)
    start = [int(rng.integers(0, 5)) for _ in geometry.size] + [0] * (3 - geometry.dimension)
    size = [int(n - a - rng.integers(0, 5)) for n, a in zip(sizes(geometry), start, strict=True)]
    if geometry.dimension == 2:
        size[2] = 1
    return Domain(tuple(start), tuple(size))  # type: ignore[arg-type]


def test_share_falls_smoothly_from_the_block_to_its_reach() -> None:
    made = Continuation.of([(3.0, 9.0), (0.0, 4.0), (0.0, 0.0)], (1.0, 2.0, 1.0), 2.0, 1.0)
    assert made.reach == (LENGTHS * 2, LENGTHS, LENGTHS * 2)
    at = np.linspace(-12, 24, 3601)
    nearest, share = made.along(0, at)
    assert (nearest == np.clip(at, 3, 9)).all()
    assert (share[(at >= 3) & (at <= 9)] == 1).all()
    assert (share[(at <= 3 - 10) | (at >= 9 + 10)] == 0).all()
    slope = np.diff(share) / np.diff(at)
    assert (slope[at[:-1] < 3] >= 0).all()
    assert (slope[at[:-1] > 9] <= 0).all()
    assert np.abs(slope).max() == pytest.approx(1.5 / 10, rel=1e-3)
    assert np.abs(np.diff(slope)).max() < 1e-3  # no kink
    # A plane that a 2D image is has no beyond.
    nearest, share = made.along(2, at)
    assert (nearest == at).all()
    assert (share == 1).all()


def test_least_way_holds_where_little_moves() -> None:
    assert Continuation.of([(0.0, 9.0)] * 3, (1.0, 2.0, 4.0), 0.01, 8.0).reach == (8.0, 4.0, 2.0)


def test_whole_cells_are_those_with_all_their_control_points() -> None:
    domain = Domain((3, 5, 0), (20, 31, 1))
    ends = whole_cells(domain.lattice((4.0, 5.0, 6.0)))
    assert ends[2] == (0.0, 0.0)
    for (first, last), (low, high) in zip(ends[:2], domain.ends[:2], strict=True):
        assert first <= low
        assert last >= high
    assert whole_cells([Axis(1.0, 2.0, 6)]) == [(3.0, 9.0)]


@given(seed=st.integers(1, 10_000), d=st.sampled_from([2, 3]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_beyond_the_block_the_displacement_is_that_of_its_nearest_point_and_fades(seed: int, d: int) -> None:
    geometry = random_grid(d, seed)
    domain = inner_block(geometry, seed)
    field = field_on(geometry, domain, np.array([1.0, -2.0, 0.5]), seed)
    positions = [np.arange(-15.0, n + 15) if n > 1 else np.zeros(1) for n in sizes(geometry)]
    inside = [(p >= a) & (p <= b) for p, (a, b) in zip(positions, domain.ends, strict=True)]
    u = field.on_grid(positions)
    # Within the block it is the plain spline, to the last bit.
    within = [p[i] for p, i in zip(positions, inside, strict=True)]
    plain = ops.separable(field.forward, [a.evaluate(p) for a, p in zip(field.axes, within, strict=True)])
    assert torch.equal(u[:, inside[2]][:, :, inside[1]][..., inside[0]], plain)
    # Points of space are told the same as grids, wherever they lie.
    mesh = np.meshgrid(*positions[d - 1 :: -1], indexing="ij")[::-1]
    some = np.random.default_rng(seed).choice(mesh[0].size, 1000)
    index = np.stack([m.ravel()[some] for m in mesh], -1)
    along = u[:d].reshape(d, -1)[:, some].double().numpy().T @ geometry.rotation.T
    np.testing.assert_allclose(field.displacement(geometry.index_to_physical(index)), along, atol=1e-5)
    # What it is there, from the definition.
    low, high = (np.array([e[k] for e in domain.ends[:d]]) for k in (0, 1))
    nearest = np.clip(index, low, high)
    t = np.clip(np.abs(index - nearest) / np.array(field.continuation.reach)[:d], 0, 1)
    wanted = field.displacement(geometry.index_to_physical(nearest)) * np.prod(1 - t * t * (3 - 2 * t), -1)[:, None]
    np.testing.assert_allclose(along, wanted, atol=1e-5)
    assert np.abs(wanted[(index < low - 1).any(-1)]).max() > 0.5  # it does not end at once
    # Nothing folds on the way out, or is squeezed much.
    voxel = torch.tensor(spacings(geometry)).reshape(3, 1, 1, 1).float()
    determinant = ops.jacobian_map(u / voxel)
    assert float(determinant.min()) > min(0.5, 0.9 * float(ops.jacobian_map(plain / voxel).min()))


SHIFTS = st.sampled_from([-3.7, -1.4, -0.2, 0.0, 0.04, 0.3, 2.6])


@given(
    seed=st.integers(1, 10_000),
    d=st.sampled_from([2, 3]),
    step=st.sampled_from([1, 2, 3]),
    shift=st.tuples(*[SHIFTS] * 3),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_inverse_of_a_shift_reaches_as_far_as_the_shift(
    seed: int, d: int, step: int, shift: tuple[float, float, float]
) -> None:
    geometry = random_grid(d, seed)
    voxels = np.array(shift)[:d]
    field = field_on(geometry, Domain((0, 0, 0), sizes(geometry)), [*(voxels * geometry.spacing), 0.0][:3])
    sampled = sample_field(field, SamplingSettings(field_spacing=step))
    low = -sampled.geometry.physical_to_index(sampled.inverse_geometry.origin)
    high = np.array(sampled.inverse_geometry.size) - np.array(sampled.geometry.size) - low
    np.testing.assert_allclose(low, np.where(voxels < -0.05, np.ceil(-voxels / step) + 1, 0), atol=1e-6)
    np.testing.assert_allclose(high, np.where(voxels > 0.05, np.ceil(voxels / step) + 1, 0), atol=1e-6)
    # Beyond the block the displacement fades, which a coarse grid interpolates; in voxels of the coarsest axis.
    unit = min(geometry.spacing) / max(geometry.spacing)
    assert gaps(sampled, geometry).max() * unit < 0.06 * step
    assert sampled.inverse_error_p99 * unit < 0.06 * step


def gaps(sampled: SampledField, geometry: Geometry) -> np.ndarray:
    """Of all voxels of the fixed grid, in voxels: how far forward and back ends from the start."""
    p = geometry.grid().reshape(-1, geometry.dimension)
    there = DisplacementField(sampled.geometry, sampled.forward).map(p)
    back = DisplacementField(sampled.inverse_geometry, sampled.inverse).map(there)
    return np.linalg.norm(back - p, axis=-1) / min(geometry.spacing)


@BOTH
@pytest.mark.parametrize("step", [1, 2])
def test_inverse_is_right_where_the_map_leaves_the_fixed_image(d: int, step: int) -> None:
    geometry = random_grid(d, 3)
    field = field_on(geometry, Domain((0, 0, 0), sizes(geometry)), np.array([3.0, -4.0, 2.5]), seed=5)
    sampled = sample_field(field, SamplingSettings(field_spacing=step))
    there = DisplacementField(sampled.geometry, sampled.forward).map(geometry.grid().reshape(-1, d))
    leaves = ~geometry.contains(there)
    assert leaves.mean() > 0.2
    found = gaps(sampled, geometry)
    assert np.percentile(found, 99) < 0.1
    assert found[leaves].max() < 0.2
    assert sampled.inverse_error_p99 == pytest.approx(np.percentile(found, 99), rel=0.3, abs=0.01)


@BOTH
def test_grid_of_the_inverse_is_the_fixed_one_where_nothing_leaves_it(d: int) -> None:
    geometry = random_grid(d, 4)
    start = tuple(6 if n > 1 else 0 for n in sizes(geometry))
    domain = Domain(start, tuple(max(1, n - 12) for n in sizes(geometry)))  # type: ignore[arg-type]
    field = field_on(geometry, domain, np.zeros(3), seed=1)
    field = VelocityField(geometry, velocity(geometry, field.fine.lattices, 0.04 * field.fine.control_points))
    sampled = sample_field(field, SamplingSettings(field_spacing=1))
    assert sampled.inverse_geometry == sampled.geometry


@BOTH
def test_grid_of_the_inverse_ends_where_the_moving_image_does(d: int) -> None:
    geometry = random_grid(d, 6)
    shift = np.array([4.3, -4.3, 4.3])[:d]
    field = field_on(geometry, Domain((0, 0, 0), sizes(geometry)), [*(shift * geometry.spacing), 0.0][:3])
    linear = np.eye(d + 1)
    linear[:-1, -1] = 7.0

    def longer(before: int, after: int, **options: bool) -> tuple[list[int], list[int]]:
        there = geometry.crop([-before] * d, [n + before + after for n in geometry.size])
        moving = Geometry.make(there.size, there.spacing, np.array(there.origin) + 7.0, there.direction)
        target = Target.of(geometry, moving, linear, **options)
        sampled = sample_field(field, SamplingSettings(field_spacing=1), None, target)
        low = -np.rint(geometry.physical_to_index(sampled.inverse_geometry.origin)).astype(int)
        high = np.array(sampled.inverse_geometry.size) - geometry.size - low
        forward = DisplacementField(sampled.geometry, sampled.forward)
        p = geometry.grid().reshape(-1, d)
        there_p = forward.map(p)
        lands = moving.contains(LinearTransform(linear).map(there_p))
        back = DisplacementField(sampled.inverse_geometry, sampled.inverse).map(there_p)
        assert np.linalg.norm(back - p, axis=-1)[lands].max() < 0.05 * min(geometry.spacing)
        return low.tolist(), high.tolist()

    assert longer(0, 0) == ([0] * d, [0] * d)
    assert longer(2, 0) == ([0, 3, 0][:d], [0] * d)
    assert longer(2, 3) == ([0, 3, 0][:d], [4, 0, 4][:d])
    assert longer(9, 9) == ([0, 6, 0][:d], [6, 0, 6][:d])
    assert longer(0, 0, last=False) == ([0, 6, 0][:d], [6, 0, 6][:d])


@BOTH
def test_error_counts_where_the_map_lands_in_the_moving_image(d: int) -> None:
    """A displacement with no inverse in one half, which the moving image does not hold."""
    geometry = Geometry.make([40, 20, 16][:d])
    domain = Domain((0, 0, 0), sizes(geometry))
    field = field_on(geometry, domain, np.zeros(3))
    torn = field.fine.control_points.clone()
    torn[0, ..., -2:] = -20.0  # the last ten columns are turned back, to nowhere left of column 20
    field = VelocityField(geometry, velocity(geometry, field.fine.lattices, torn), None, "displacement", 1)
    everywhere = sample_field(field, SamplingSettings(field_spacing=1))
    assert everywhere.inverse_error_p99 > 1
    index, vector = np.eye(4)[:3], np.eye(3)
    half = sample_field(
        field, SamplingSettings(field_spacing=1), None, Target(index, vector, (*sizes(geometry)[:0:-1], 20))
    )
    assert half.inverse_error_p99 < 0.1
    assert half.folded == everywhere.folded
    # The same voxels through another grid of the moving image, of half the spacing and begun elsewhere.
    index, vector = np.eye(4)[:3] * 2, np.eye(3) * 2
    index[:, 3] = 3
    finer = tuple(2 * n + 2 if n > 1 else 1 for n in (*sizes(geometry)[:0:-1], 20))
    other = sample_field(field, SamplingSettings(field_spacing=1), None, Target(index, vector, finer))
    assert other.inverse_error_p99 == pytest.approx(half.inverse_error_p99, abs=0.02)


@BOTH
def test_folds_beyond_a_face_are_removed_too(d: int) -> None:
    """A twist keeps all volumes, yet along the face that it is centred on things change places beyond."""
    geometry = Geometry.make([24, 24, 12][:d])
    domain = Domain((0, 0, 0), sizes(geometry))
    lattices = Lattices.halved(domain.lattice((1.0, 1.0, 1.0)), 1.0, 0, domain.ends)
    axes = lattices.axes[0]
    _, y, x = np.meshgrid(*[a.positions for a in axes[::-1]], indexing="ij")
    angle = 2.0 * np.exp(-(x**2 + (y - 12) ** 2) / 49)
    values = np.zeros((3, *shape_of(axes)), np.float32)
    values[0] = (np.cos(angle) - 1) * x - np.sin(angle) * (y - 12)
    values[1] = np.sin(angle) * x + (np.cos(angle) - 1) * (y - 12)
    field = VelocityField(geometry, velocity(geometry, lattices, torch.from_numpy(values)), None, "displacement", 1)

    def least(field: VelocityField, beyond: int) -> float:
        positions = [np.arange(-beyond, n + beyond, dtype=float) if n > 1 else np.zeros(1) for n in sizes(geometry)]
        return float(ops.jacobian_map(field.on_grid(positions)).min())

    assert least(field, 0) > 0
    assert least(field, 3) < 0
    whole = remove_folds(field, domain)
    assert least(whole, 0) > 0
    assert least(whole, 3) > 0
    assert field.continuation.reach[0] > 3  # it is looked at where the displacement is about that of the face

"""The trained field: what it is at points and on grids, its inverse, its parts, and the way into a file and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from itk_nir.engine import ops
from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.deformable import describe, optimise, restore
from itk_nir.engine.images import sizes, spacings
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.ops import reference
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry
from tests.engine.pairs import SMALL, N, gap, quick, velocity
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])


@pytest.fixture(scope="module", params=[(2, "velocity"), (3, "velocity"), (2, "displacement"), (3, "displacement")])
def trained(request: pytest.FixtureRequest, make_case: Callable[..., Any]) -> tuple[Any, VelocityField]:
    d, model = request.param
    case = make_case(d, N[d], spacing=(1.0, 1.2, 1.4)[:d], angle=0.5, away=-40.0)
    return case, optimise(case.pair, quick(transform_model=model, iterations=(25, 6))).field


@pytest.mark.parametrize("inverse", [False, True])
def test_points_and_grids_agree(trained: tuple[Any, VelocityField], inverse: bool) -> None:
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


def test_field_is_smooth(trained: tuple[Any, VelocityField]) -> None:
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


def test_field_ends_within_its_reach(trained: tuple[Any, VelocityField]) -> None:
    case, field = trained
    d = case.fixed.dimension
    index = np.tile((np.asarray(case.fixed.size) - 1) / 2, (4 * d, 1))
    for axis, (first, last) in enumerate(field.support()[:d]):
        assert first < 0  # the block is the whole image
        assert last > case.fixed.size[axis] - 1
        index[4 * axis : 4 * axis + 4, axis] = first, first - 30, last, last + 1000
    for inverse in (False, True):
        assert not field.displacement(case.fixed.index_to_physical(index), inverse).any()
        middle = (index + (np.asarray(case.fixed.size) - 1) / 2) / 2
        assert field.displacement(case.fixed.index_to_physical(middle), inverse).all(axis=-1).any()


def test_backward_is_the_inverse(trained: tuple[Any, VelocityField]) -> None:
    case, field = trained
    p = case.points(0.7)
    moved = p + field.displacement(p)
    back = moved + field.displacement(moved, inverse=True)
    assert np.linalg.norm(moved - p, axis=-1).max() > 1
    error = np.linalg.norm(back - p, axis=-1)
    # Between the lattice's points both are splines of their own, which are inverse to one another at the points only.
    assert error.mean() < 0.2
    assert np.percentile(error, 99) < 0.6


@BOTH
@pytest.mark.parametrize("network", [None, SMALL])
def test_two_fields_are_composed(make_case: Callable[..., Any], d: int, network: FieldConfig | None) -> None:
    case = make_case(d, N[d])
    one = quick(iterations=(12, 0), network=network)
    both = optimise(case.pair, replace(one, iterations=(12, 8))).field
    assert both.coarse is not None
    assert optimise(case.pair, replace(one, iterations=(12, 8), composed=False)).field.coarse is None
    # The coarse field is what the first level trained, whatever came after.
    alone = optimise(case.pair, one).field
    assert alone.coarse is not None
    assert not alone.fine().any()
    assert both.coarse_displacements is not None
    assert alone.coarse_displacements is not None
    for a, b in zip(both.coarse_displacements, alone.coarse_displacements, strict=True):
        assert torch.equal(a, b)
    assert both.fine().any()
    assert both.fine.network is None
    assert (both.coarse.network is None) == (network is None)
    h = both.spacing
    fine = ops.exponential(both.fine(), both.integration_steps, 1 / h)
    assert torch.allclose(both.forward / h, reference.compose(both.coarse_displacements[0], fine), atol=1e-4)
    points = case.points()
    there = points + both.displacement(points)
    back = there + both.displacement(there, inverse=True)
    # On the lattice alone: sampling makes it exact at the voxels.
    assert np.linalg.norm(back - points, axis=-1).mean() < 0.15 * min(case.fixed.spacing)


# --- as plain values, and back ---------------------------------------------------------------------------------------


def made(d: int, *, network: FieldConfig | None = SMALL, composed: bool = True, model: str = "velocity",
         unfolded: bool = False) -> VelocityField:  # fmt: skip
    """A field of random parameters on an oblique grid."""
    geometry = Geometry.make((22, 17, 13)[:d], (1.1, 1.6, 2.3)[:d], (-40.0, 12.0, 90.0)[:d], turned(d, 0.4))
    knots = tuple(6.6 / s for s in spacings(geometry))
    coarsest = Domain((0, 0, 0), sizes(geometry)).lattice(knots)  # type: ignore[arg-type]
    block = [(2.0, 19.0), (0.0, 15.5), (1.0, 12.0) if d == 3 else (0.0, 0.0)]
    lattices = Lattices.halved(coarsest, 6.6, 1, block)
    generator = torch.Generator().manual_seed(5)

    def random(number: int) -> torch.Tensor:
        values = torch.randn(3, *shape_of(lattices.axes[number]), generator=generator)
        values[d:] = 0
        return values

    fine = velocity(geometry, lattices, 0.4 * random(1), None if composed else network, seed=1, number=1)
    coarse = velocity(geometry, lattices, random(0), network, seed=2) if composed else None
    field = VelocityField(geometry, fine, coarse, model, 3)
    if not unfolded:
        return field
    assert field.coarse_displacements is not None
    return replace(field, unfolded=0.9 * field.coarse_displacements[0])


def through_json(field: VelocityField, threads: int = 2) -> VelocityField:
    description, arrays = describe(field)
    assert all(isinstance(a, np.ndarray) for a in arrays.values())
    text = json.dumps(description, allow_nan=False)
    return restore(json.loads(text), arrays, field.geometry, device=torch.device("cpu"), threads=threads)


PARTS = pytest.mark.parametrize(
    "parts",
    [{}, {"network": None}, {"composed": False}, {"composed": False, "network": None}, {"model": "displacement"},
     {"unfolded": True}, {"unfolded": True, "network": None}],
    ids=["composed", "composed, no network", "one field", "one field, no network", "displacement", "unfolded",
         "unfolded, no network"],
)  # fmt: skip


@BOTH
@PARTS
def test_described_and_restored_field_is_the_same_bit_for_bit(d: int, parts: dict[str, Any]) -> None:
    field = made(d, **parts)
    again = through_json(field)
    assert float(field.forward.abs().max()) > 1
    assert torch.equal(again.forward, field.forward)
    assert torch.equal(again.backward, field.backward)
    assert (again.coarse is None) == (field.coarse is None)
    assert (again.unfolded is None) == (field.unfolded is None)
    assert again.spacing == field.spacing
    assert again.axes == field.axes
    points = np.random.default_rng(0).uniform(-0.3, 1.3, (200, d)) * (np.asarray(field.geometry.size) - 1)
    points = field.geometry.index_to_physical(points)
    for inverse in (False, True):
        np.testing.assert_array_equal(again.displacement(points, inverse), field.displacement(points, inverse))


def test_a_field_without_its_block_is_that_of_its_whole_cells() -> None:
    field = made(2)
    description, arrays = describe(field)
    assert description.pop("block") == field.fine.lattices.block
    again = restore(description, arrays, field.geometry, device=torch.device("cpu"), threads=1)
    assert torch.equal(again.forward, field.forward)
    coarsest = again.fine.lattices.axes[0]
    assert again.fine.lattices.block[:2] == [(a.positions[1], a.positions[-2]) for a in coarsest[:2]]


def test_what_fold_removal_leaves_is_restored_too(make_case: Callable[..., Any]) -> None:
    case = make_case(2, N[2])
    torn = quick(
        network=SMALL, iterations=(20, 20), learning_rates=(3.0, 3.0), jacobian_weight=1e-6,
        velocity_smoothness=(0.0, 0.0), integration_steps=0,
    )  # fmt: skip
    field = optimise(case.pair, torn).field
    assert field.unfolded is not None, "nothing had to be unfolded: choose wilder settings"
    again = through_json(field)
    assert torch.equal(again.forward, field.forward)
    assert torch.equal(again.backward, field.backward)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("composed", [True, False])
def test_network_is_part_of_the_trained_field(make_case: Callable[..., Any], d: int, composed: bool) -> None:
    """Its weights were trained, go into the description, and a change of one of them changes the displacement."""
    case = make_case(d, N[d])
    field = optimise(case.pair, quick(network=SMALL, iterations=(6, 2), composed=composed)).field
    part = field.coarse if composed else field.fine
    assert part is not None
    assert part.network is not None
    again = through_json(field)
    assert torch.equal(again.forward, field.forward)
    assert torch.equal(again.backward, field.backward)
    description, arrays = describe(field)
    name = "coarse" if composed else "fine"
    weights = [key for key in arrays if key.startswith(f"{name}.network.")]
    assert len(weights) >= 2 * SMALL.depth
    # The last layer began at zero.
    last = max((key for key in weights if arrays[key].ndim == 2), key=list(arrays).index)
    assert np.abs(arrays[last]).max() > 1e-3
    for key in weights:
        changed = {**arrays, key: arrays[key].copy()}
        if changed[key].dtype.kind != "f":
            continue
        changed[key].reshape(-1)[0] += 0.5
        other = restore(description, changed, field.geometry, device=torch.device("cpu"), threads=1)
        assert gap(other, field, case.points()).max() > 1e-4, key


def test_parts_that_do_not_fit_are_refused() -> None:
    field = made(3, unfolded=True)
    description, arrays = describe(field)

    def back(changes: dict[str, Any] = {}, without: str = "", **given: np.ndarray) -> None:  # noqa: B006 - read only
        kept = {k: v for k, v in {**arrays, **given}.items() if k != without}
        restore({**description, **changes}, kept, field.geometry, device=torch.device("cpu"), threads=1)

    back()
    with pytest.raises(ValueError, match="weights of the fine field do not fit: size mismatch for control_points"):
        back(**{"fine.control_points": np.zeros((3, 2, 2, 2), np.float32)})
    with pytest.raises(ValueError, match=r"weights of the coarse field do not fit: Missing key.*control_points"):
        back(without="coarse.control_points")
    with pytest.raises(ValueError, match="wavelet"):
        back({"transform_model": "wavelet"})
    with pytest.raises(ValueError, match="unfolded displacement of shape"):
        back(unfolded=np.zeros((3, 2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="soul"):
        back({"coarse": {**description["coarse"], "network": {**description["coarse"]["network"], "soul": 1}}})
    with pytest.raises(KeyError):
        back({"fine": {}})

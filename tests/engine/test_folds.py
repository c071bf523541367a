"""Removal of folds, where they come from and nowhere else."""

from __future__ import annotations

import pytest
import torch

from itk_nir.engine import ops
from itk_nir.engine.folds import remove_folds
from itk_nir.engine.images import sizes
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.velocity_field import VelocityField
from itk_nir.geometry import Geometry
from tests.engine.pairs import SMALL, on_voxels, velocity

BOTH = pytest.mark.parametrize("d", [2, 3])
MODELS = pytest.mark.parametrize("model", ["velocity", "displacement"])
At = tuple[int, ...]


def folds(field: VelocityField) -> int:
    voxels = on_voxels(field) / torch.tensor(field.geometry.spacing).reshape(-1, *[1] * field.geometry.dimension)
    d = field.geometry.dimension
    return int((ops.jacobian_map(voxels if d == 3 else torch.cat([voxels, 0 * voxels[:1]])[:, None]) <= 0).sum())


def made(d: int) -> tuple[Geometry, Domain, Lattices, torch.Tensor, torch.Tensor, At]:
    """A grid, its block, a lattice of 4 mm, even control points, and such as fold at one place."""
    geometry = Geometry.make([40, 44, 36][:d], [1.0, 1.5, 2.0][:d])
    domain = Domain((0, 0, 0), sizes(geometry))
    lattices = Lattices.halved(domain.lattice((4.0, 4.0, 4.0)), 4.0, 0)
    even = torch.zeros(3, *shape_of(lattices.axes[0]))
    even[0] += 0.3
    folding = even.clone()
    at = (0, even.shape[1] // 2, 5, 5)
    folding[at] = 25.0
    folding[at[0], at[1], at[2], at[3] + 1] = -25.0
    return geometry, domain, lattices, even, folding, at


@BOTH
@MODELS
def test_folds_are_removed_and_nothing_else(d: int, model: str) -> None:
    geometry, domain, lattices, _, values, at = made(d)
    field = VelocityField(geometry, velocity(geometry, lattices, values), None, model, 1)
    assert folds(field) > 0
    whole = remove_folds(field, domain)
    assert folds(whole) == 0
    changed = (whole.fine() != values).any(0)
    assert changed[at[1:]]
    assert float(changed.float().mean()) < 0.5
    assert remove_folds(whole, domain) is whole
    assert torch.equal(field.fine(), values), "the field that was given is not changed"


@BOTH
@pytest.mark.parametrize("given", ["velocity", "displacement", "unfolded"])
def test_folds_of_the_coarse_field_are_removed(d: int, given: str) -> None:
    geometry, domain, lattices, even, folding, at = made(d)
    fine = velocity(geometry, lattices, even)
    if given == "unfolded":  # of a coarse displacement that is not the integral of its velocity
        coarse = velocity(geometry, lattices, torch.zeros_like(even))
        field = VelocityField(geometry, fine, coarse, "velocity", 1, unfolded=folding / 4.0)
    else:
        field = VelocityField(geometry, fine, velocity(geometry, lattices, folding), given, 1)
    assert field.coarse_displacements is not None
    assert folds(field) > 0
    whole = remove_folds(field, domain)
    assert folds(whole) == 0
    assert whole.coarse_displacements is not None
    forward, backward = whole.coarse_displacements
    assert whole.unfolded is not None
    assert torch.equal(forward, whole.unfolded)
    changed = (forward != field.coarse_displacements[0]).any(0)
    assert changed[at[1:]]
    assert float(changed.float().mean()) < 0.5
    # The inverse was made anew: it takes the nodes back.
    assert float(ops.compose(forward, backward).abs().max()) < 0.01


@BOTH
def test_network_stays_what_it_is(d: int) -> None:
    """What is smoothed is the sum of network and control points; what changes is the control points."""
    geometry, domain, lattices, _, values, _ = made(d)
    field = VelocityField(geometry, velocity(geometry, lattices, values, SMALL), None, "velocity", 1)
    assert field.fine.network is not None
    assert float((field.fine() - values).abs().max()) > 0.1
    assert folds(field) > 0
    whole = remove_folds(field, domain)
    assert folds(whole) == 0
    assert whole.fine.network is field.fine.network
    changed = (whole.fine() != field.fine()).any(0)
    assert 0 < float(changed.float().mean()) < 0.5

"""Registrations by the emulated kernels, from the images to the fields, beside the same ones on the CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.engine.ops import dispatch
from itk_nir.engine.ops.cuda import launching
from itk_nir.phantom import brain_phantom

#: Largest difference of the fields, voxels.
TOLERANCE = 1e-3
CASES: dict[str, dict[str, Any]] = {
    "3D, local correlation": {"size": (14, 16, 12), "deformation": 80.0, "iterations": (4, 2, 0)},
    "2D, descriptors": {"size": (32, 36), "metric": "mind", "iterations": (5, 2, 0)},
    "2D, correlation": {"size": (32, 36), "metric": "ncc", "iterations": (4, 1, 0), "symmetric": True},
}
#: The kernels of its iterations: what is symmetric is left to autograd.
USES = dict(
    zip(
        CASES,
        (
            {"lncc_gradient", "penalties", "settle_adam"},
            {"mind_difference", "add_planar", "penalties", "settle_adam"},
            {"global_sums_adjoint", "diffusion", "jacobian_penalty", "adam"},
        ),
        strict=True,
    )
)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*voxels along one axis")
def test_registered(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType, name: str) -> None:
    given = dict(CASES[name])
    size = given.pop("size")
    phantom = brain_phantom(dimension=len(size), size=size, deformation=given.pop("deformation", 12.0))
    fixed, moving = (phantom.fixed, phantom.geometry), (phantom.moving, phantom.moving_geometry)
    options = {"preset": "fast", "linear": "none", "threads": 1, **given}
    cpu = itk_nir.register(fixed, moving, **options)
    launched, function = set(), launching.Module.function

    def noted(self: launching.Module, kernel: str, shared: int) -> Any:
        launched.add(kernel)
        return function(self, kernel, shared)

    monkeypatch.setattr(launching.Module, "function", noted)
    monkeypatch.setitem(dispatch.KERNELS, "cpu", lambda device: kernels)
    card = itk_nir.register(fixed, moving, **options)
    assert launched >= {"compose_adjoint", "invert", "balance"} | USES[name]
    assert ("adam" in launched) != ("settle_adam" in launched)
    np.testing.assert_allclose([t.loss for t in card.report.trace], [t.loss for t in cpu.report.trace], rtol=1e-4)
    for there, here in ((card.displacement, cpu.displacement), (card.inverse_displacement, cpu.inverse_displacement)):
        assert there is not None
        assert here is not None
        spacing = np.asarray(phantom.geometry.spacing)
        assert np.abs(here.vectors / spacing).max() > 0.2
        assert np.abs((there.vectors - here.vectors) / spacing).max() < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*voxels along one axis")
def test_linear_stage(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> None:
    """Its maps stay on the host: the kernels take them with the launch, and give back twelve sums."""
    phantom = brain_phantom(dimension=2, size=(32, 36), deformation=0.0)
    fixed, turn = (phantom.fixed, phantom.geometry), np.eye(3)
    turn[:2] = [[0.99, -0.05, 3.0], [0.04, 1.02, -2.0]]
    moving = (phantom.moving, phantom.moving_geometry)
    preset = itk_nir.make_settings("fast", linear_size=(12, 20), linear_iterations=(6, 6), linear_fine_iterations=3)
    options = {"preset": preset, "linear": "affine", "deformable": False, "threads": 1, "initial_transform": turn}
    cpu = itk_nir.register(fixed, moving, **options)
    warped, apply = [], kernels.LinearWarp.forward

    def noted(*arguments: Any) -> Any:
        warped.append(arguments[3])
        return apply(*arguments)

    monkeypatch.setattr(kernels.LinearWarp, "forward", staticmethod(noted))
    monkeypatch.setitem(dispatch.KERNELS, "cpu", lambda device: kernels)
    card = itk_nir.register(fixed, moving, **options)
    assert len(warped) > 10
    assert np.abs(cpu.affine.matrix - turn).max() > 0.02
    corners = phantom.geometry.corners()
    ends = [corners @ r.affine.matrix[:-1, :-1].T + r.affine.matrix[:-1, -1] for r in (cpu, card)]
    assert np.abs(ends[0] - ends[1]).max() < 10 * TOLERANCE

"""Metrics and regularisers: the package's own against their definitions, and such as a user brings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine.deformable import optimise
from itk_nir.engine.metrics import LNCC, METRICS, NCC, LevelImages, Metric, metric_named
from itk_nir.engine.ops import reference
from itk_nir.engine.regularisers import (
    REGULARISERS,
    Diffusion,
    LevelLattice,
    Lorentzian,
    Regulariser,
    regulariser_named,
)
from itk_nir.errors import NothingToCompare, OptionError
from tests.engine.pairs import N, changed, quick

BOTH = pytest.mark.parametrize("d", [2, 3])


def images(d: int, weighted: bool = False) -> tuple[LevelImages, Tensor]:
    """Two noisy images of one grid, and a third that is warped onto the first."""
    generator = torch.Generator().manual_seed(d)
    shape = (7, 9, 11) if d == 3 else (1, 12, 14)
    fixed, moving = (torch.randn(shape, generator=generator) for _ in range(2))
    weight = (torch.rand(shape, generator=generator) > 0.4).float() if weighted else None
    return LevelImages(fixed, moving, weight, 2), fixed * 0.7 + 0.5 * torch.randn(shape, generator=generator) + 3


# --- metrics ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["ncc", "lncc"])
@pytest.mark.parametrize("weighted", [False, True])
def test_metric_is_what_its_text_says(d: int, name: str, weighted: bool) -> None:
    level, warped = images(d, weighted)
    measure = METRICS[name].prepare(level)
    assert measure.moving is level.moving
    if name == "ncc":
        kept = slice(None) if level.weight is None else level.weight > 0.5
        a, b = level.fixed[kept].double().numpy().ravel(), warped[kept].double().numpy().ravel()
        assert float(measure(warped)) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
        assert measure.count == len(a)
    else:
        total, count = reference.lncc(
            level.fixed.double(), warped.double(), None if level.weight is None else level.weight.double(), 2, 1e-4
        )
        assert float(measure(warped)) == pytest.approx(float(total / count), abs=1e-5)
        assert measure.count == float(count)
    assert float(measure(level.fixed * 3 - 5)) == pytest.approx(1, abs=2e-3)


@BOTH
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_ncc_against_differences(d: int, weighted: bool) -> None:
    level, warped = images(d, weighted)
    warped.requires_grad_()
    NCC().prepare(level)(warped).backward()
    assert warped.grad is not None
    kept = np.ones(tuple(warped.shape), bool) if level.weight is None else level.weight.numpy() > 0.5
    fixed, value = level.fixed.double().numpy(), warped.detach().double().numpy()

    def ncc(x: np.ndarray) -> float:
        return float(np.corrcoef(fixed[kept], x[kept])[0, 1])

    rng = np.random.default_rng(0)
    size = float(warped.grad.norm())
    assert size > 1e-3
    for _ in range(5):
        along = rng.normal(size=value.shape)
        slope = (ncc(value + 1e-6 * along) - ncc(value - 1e-6 * along)) / 2e-6
        assert float((warped.grad.double().numpy() * along).sum()) == pytest.approx(slope, abs=2e-5 * size)
    assert not warped.grad.numpy()[~kept].any()


@pytest.mark.parametrize("metric", [NCC(), LNCC()])
def test_flat_image_has_nothing_to_compare(make_case: Callable[..., Any], metric: Metric) -> None:
    level, _ = images(2)
    assert metric.prepare(replace(level, fixed=torch.ones_like(level.fixed))).count == 0
    assert metric.prepare(replace(level, weight=torch.zeros_like(level.fixed))).count == 0
    pair = make_case(2, 40).pair
    mask = torch.zeros_like(pair.fixed)
    mask[0, :3, :3] = 1
    assert not pair.fixed[0, :3, :3].any()
    with pytest.raises(NothingToCompare):
        optimise(changed(pair, fixed_weight=mask), quick(metric=metric))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "changes",
    [{"metric": "ncc"}, {"metric": "lncc"}, {"metric": NCC()}, {"metric": "ncc", "symmetric": True},
     {"regulariser": "diffusion", "smoothness": (0.05, 0.05)},
     {"regulariser": "lorentzian", "smoothness": (0.05, 0.05)}],
    ids=["ncc", "lncc", "NCC()", "ncc symmetric", "diffusion", "lorentzian"],
)  # fmt: skip
def test_known_deformation_is_found_with_each(make_case: Callable[..., Any], d: int, changes: dict[str, Any]) -> None:
    case = make_case(d, N[d])
    result = optimise(case.pair, quick(**changes))
    assert case.error(result.field) < 0.15 * case.start()
    assert result.similarity is not None
    assert result.similarity_start is not None
    assert result.similarity > max(0.9, result.similarity_start + 0.1)


@dataclass(frozen=True)
class MeanSquares:
    """A user's metric in plain torch: 1 minus the mean squared difference."""

    seen: list[LevelImages]

    def prepare(self, images: LevelImages) -> MeanSquaresHere:
        self.seen.append(images)
        weight = torch.ones_like(images.fixed) if images.weight is None else images.weight
        return MeanSquaresHere(images.fixed, images.moving, weight, float(weight.sum()))


@dataclass(frozen=True, eq=False)
class MeanSquaresHere:
    fixed: Tensor
    moving: Tensor
    weight: Tensor
    count: float

    def __call__(self, warped: Tensor) -> Tensor:
        return 1 - (self.weight * (warped - self.fixed) ** 2).sum() / self.count


@dataclass(frozen=True)
class Curvature:
    """A user's regulariser in plain torch: the mean squared second difference along each axis."""

    seen: list[LevelLattice]

    def energy(self, lattice: LevelLattice) -> Callable[[Tensor], Tensor]:
        self.seen.append(lattice)
        return lambda u: (
            lattice.cell
            * sum(  # type: ignore[return-value]
                u.diff(n=2, dim=axis).square().sum() for axis in (1, 2, 3) if u.shape[axis] > 2
            )
        )


@BOTH
def test_metric_of_the_user(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    metric = MeanSquares([])
    assert isinstance(metric, Metric)
    result = optimise(case.pair, quick(metric=metric))
    assert case.error(result.field) < 0.15 * case.start()
    assert [tuple(i.fixed.shape) for i in metric.seen] == sorted(tuple(i.fixed.shape) for i in metric.seen)
    assert [i.radius for i in metric.seen] == [3, 3]
    # By its name in the table it is the same.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "mean squares", metric)
        assert metric_named("mean squares") is metric
        named = optimise(case.pair, quick(metric="mean squares"))
    assert torch.equal(named.field.forward, result.field.forward)
    with pytest.raises(OptionError, match="metric must be one of 'lncc', 'ncc'"):
        quick(metric="mean squares")


@pytest.mark.slow
@BOTH
def test_regulariser_of_the_user(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    own = Curvature([])
    assert isinstance(own, Regulariser)
    stiff, loose = (
        optimise(case.pair, quick(regulariser=own, smoothness=(w, w), velocity_smoothness=(0.0, 0.0))).field
        for w in (3.0, 0.01)
    )
    assert case.error(loose) < 0.3 * case.start()
    assert [lattice.spacing for lattice in own.seen] == [4.0, 2.0] * 2
    bent = [float(own.energy(own.seen[-1])(field.forward / field.spacing)) for field in (stiff, loose)]
    assert bent[0] < 0.5 * bent[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGULARISERS, "curvature", own)
        assert regulariser_named("curvature") is own


# --- regularisers ----------------------------------------------------------------------------------------------------


@BOTH
def test_infinite_lorentzian_scale_is_diffusion_bit_for_bit(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d])
    few = quick(iterations=(6, 3), smoothness=(0.3, 0.3))
    plain, infinite, finite = (
        optimise(case.pair, replace(few, **changes))
        for changes in ({"regulariser": "diffusion"}, {"lorentzian_scale": math.inf}, {})
    )
    assert plain.trace == infinite.trace
    assert torch.equal(plain.field.forward, infinite.field.forward)
    assert torch.equal(plain.field.backward, infinite.field.backward)
    assert not torch.equal(plain.field.forward, finite.field.forward)


def test_energy_is_what_its_text_says() -> None:
    u = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    lattice = LevelLattice(spacing=4.0, cell=0.01, lorentzian_scale=0.5)
    squares = sum(u.double().diff(dim=axis).square().sum() for axis in (1, 2, 3))
    assert float(Diffusion().energy(lattice)(u)) == pytest.approx(0.01 * float(squares), rel=1e-5)
    wanted = 0.01 * float(reference.diffusion(u.double(), 0.5))
    assert float(Lorentzian().energy(lattice)(u)) == pytest.approx(wanted, rel=1e-5)
    assert 0 < wanted < 0.01 * float(squares)
    # Its own scale comes before that of the settings.
    assert float(Lorentzian(math.inf).energy(lattice)(u)) == float(Diffusion().energy(lattice)(u))
    assert float(Lorentzian(0.5).energy(replace(lattice, lorentzian_scale=9.0))(u)) == pytest.approx(wanted, rel=1e-5)

"""Metrics and regularisers: the package's own against their definitions, and such as a user brings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from itk_nir.engine.deformable import optimise
from itk_nir.engine.metrics import METRICS, NCC, LevelImages, Metric, metric_named
from itk_nir.engine.ops import reference
from itk_nir.engine.regularisers import (
    REGULARISERS,
    Diffusion,
    LevelLattice,
    Lorentzian,
    Regulariser,
    regulariser_named,
)
from itk_nir.engine.views import View
from itk_nir.errors import OptionError
from tests.engine.pairs import N, changed, quick

BOTH = pytest.mark.parametrize("d", [2, 3])


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "changes",
    [*({"metric": name} for name in METRICS), {"metric": NCC()}, {"metric": "0.5*nmi + 0.5*mind"},
     {"metric": "2*lncc + ncc"}, {"metric": "ncc", "symmetric": True}, {"metric": "nmi", "symmetric": True},
     {"metric": "mse", "symmetric": True}, {"metric": "mind", "symmetric": True},
     {"regulariser": "diffusion", "smoothness": (0.05, 0.05)},
     {"regulariser": "lorentzian", "smoothness": (0.05, 0.05)}],
    ids=lambda changes: " ".join(map(str, changes.values())),
)  # fmt: skip
def test_known_deformation_is_found_with_each(make_case: Callable[..., Any], d: int, changes: dict[str, Any]) -> None:
    case = make_case(d, N[d])
    result = optimise(case.pair, quick(**changes))
    assert case.error(result.field) < (0.25 if changes.get("metric") == "mind" else 0.15) * case.start()
    assert result.similarity is not None
    assert result.similarity_start is not None
    assert result.similarity > result.similarity_start + 0.1
    if "mi" not in str(changes.get("metric")):  # what information like images have depends on them
        assert result.similarity > 0.9
    assert result.returned_levels == ()


def inverted(x: Tensor) -> Tensor:
    return 255 - x


def folded(x: Tensor) -> Tensor:
    """Not monotone: the brightest and the middling tissue look alike."""
    return 100 - (x - 60) ** 2 / 30


#: The share of the deformation that may be left: four descriptors in 2D say less than twelve in 3D.
LEFT = {"nmi": (0.15, 0.35), "mi": (0.15, 0.35), "0.5*nmi + 0.5*mind": (0.15, 0.35), "mind": (0.25, 0.4)}


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("metric", LEFT)
@pytest.mark.parametrize("contrast", [inverted, folded])
def test_known_deformation_is_found_in_another_contrast(
    make_case: Callable[..., Any], d: int, metric: str, contrast: Callable[[Tensor], Tensor]
) -> None:
    case = make_case(d, N[d], amplitude=0.05 if contrast is inverted else 0.025)
    result = optimise(changed(case.pair, moving=contrast(case.pair.moving)), quick(metric=metric))
    left = LEFT[metric][contrast is folded] + (0.2 if (metric, d, contrast) == ("mind", 2, folded) else 0)
    assert case.error(result.field) < left * case.start()


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

    def __call__(self, view: View) -> Tensor:
        warped = view(self.moving)
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
    with pytest.raises(OptionError, match="metric must be one of 'auto', 'none', 'lncc', 'ncc'"):
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

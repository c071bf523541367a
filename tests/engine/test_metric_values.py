"""Every metric of the table, and sums of them, against their definitions; their gradients through a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.deformable import optimise
from itk_nir.engine.images import Pair
from itk_nir.engine.lattice import Banded, Domain, shape_of
from itk_nir.engine.level_channels import WORST, LevelChannels
from itk_nir.engine.linear import optimise_linear
from itk_nir.engine.metrics import METRICS, MSE, LevelImages, WeightedSum, metric_named, weighted_sum
from itk_nir.engine.settings import LinearSettings
from itk_nir.engine.views import View
from itk_nir.errors import NothingToCompare, OptionError
from tests.engine.metric_definitions import Array, similarity, splined, warped
from tests.engine.pairs import changed, quick

SUMS = ("0.3*nmi + 0.7*mind", "2*lncc+0.5*mse")
BOTH = pytest.mark.parametrize("d", [2, 3])
EACH = pytest.mark.parametrize("name", [*METRICS, *SUMS])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True])
SHAPES = {2: ((1, 17, 20), (1, 19, 16)), 3: ((7, 9, 11), (8, 7, 10))}
#: Fixed voxel → moving voxel, and unit of the displacement → moving voxels.
POINTS = np.array([[0.8, 0.1, -0.05, 0.3], [-0.05, 0.9, 0.05, 0.7], [0.01, -0.05, 0.9, 0.4]])
VECTORS = np.array([[0.5, 0.1, 0.03], [-0.05, 0.6, 0.1], [0.02, -0.1, 0.4]])


def smooth(*shape: int, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for axis in (-3, -2, -1):
        if x.shape[axis] > 1:
            x = (x + x.roll(1, axis) + x.roll(-1, axis)) / 3
    return x / x.std()


def in_plane(m: Array, d: int) -> Array:
    m = m.copy()
    if d == 2:
        m[2] = m[:, 2] = 0
    return m


def images(d: int, weighted: bool = False, **changes: Any) -> LevelImages:
    """Two smooth images on unlike grids that have something to do with each other."""
    fixed, moving = (smooth(*shape, seed=10 * d + k) for k, shape in enumerate(SHAPES[d]))
    common = tuple(slice(0, min(n)) for n in zip(*SHAPES[d], strict=True))
    moving[common] = 0.6 * fixed[common] + 0.5 * moving[common] + 0.4
    weight = None
    if weighted:  # above one half where it counts
        weight = torch.where(torch.rand(fixed.shape, generator=torch.Generator().manual_seed(d)) > 0.3, 1.0, 0.0)
    units: dict[str, Any] = {"moving_in_fixed_units": (1.3, -0.4), "axes": in_plane(POINTS[:, :3], d)}
    return LevelImages(fixed, moving, weight, 2, dimension=d, **(units | changes))


def spline_of(d: int) -> tuple[list[Banded], tuple[int, ...]]:
    z, y, x = SHAPES[d][0]
    domain = Domain((0, 0, 0), (x, y, z))
    axes = domain.lattice((4.0, 3.0, 5.0))
    return [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)], shape_of(axes)


def maps(d: int) -> tuple[Array, Array]:
    return in_plane(POINTS, d), in_plane(VECTORS, d)


# --- values and gradients --------------------------------------------------------------------------------------------


@BOTH
@EACH
@WEIGHTED
@pytest.mark.parametrize("form", ["voxels", "spline"])
def test_value_and_gradient_through_a_view(d: int, name: str, weighted: bool, form: str) -> None:
    """Against the definition in float64, and its differences along random directions."""
    level, (points, vectors) = images(d, weighted), maps(d)
    spline, lattice = spline_of(d)
    shape = SHAPES[d][0] if form == "voxels" else lattice
    u = (1.5 * smooth(3, *shape, seed=5)).requires_grad_()

    def wanted(x: Array) -> tuple[float, float]:
        there = x if form == "voxels" else splined(x, spline)
        return similarity(name, level, lambda image: warped(image, there, points, vectors))

    measure = metric_named(name).prepare(level)
    value = measure(View(u, points, vectors, None if form == "voxels" else spline))
    value.backward()
    at = u.detach().double().numpy()
    exact, count = wanted(at)
    assert value.shape == ()
    assert measure.count == count
    assert float(value.detach()) == pytest.approx(exact, abs=2e-5)
    assert u.grad is not None
    gradient = u.grad.double().numpy()
    size = np.linalg.norm(gradient)
    assert size > 1e-3
    rng = np.random.default_rng(0)
    slopes = []
    for _ in range(4):
        along = rng.normal(size=at.shape)
        slopes.append((wanted(at + 1e-6 * along)[0] - wanted(at - 1e-6 * along)[0]) / 2e-6)
        assert (gradient * along).sum() == pytest.approx(slopes[-1], abs=3e-3 * size)
    assert max(map(abs, slopes)) > 0.1 * size
    if form == "voxels" and weighted and "lncc" not in name:
        assert level.weight is not None
        assert not gradient[:, level.weight.numpy() <= 0.5].any()


@BOTH
@EACH
def test_same_image_is_alike_and_another_less(d: int, name: str) -> None:
    level = images(d, moving_in_fixed_units=(1.0, 0.0), axes=None)
    level = replace(level, moving=level.fixed)
    measure = metric_named(name).prepare(level)
    best = float(measure(View.identity(level.fixed)))
    if "mi" not in name.replace("mind", ""):
        assert best == pytest.approx(1, abs=2e-3)
    step = level.fixed.new_zeros(3, *level.fixed.shape)
    step[0] = 1.0
    assert float(measure(View(step, np.eye(4)[:3], np.eye(3)))) < best - 0.05


@BOTH
@pytest.mark.parametrize(
    ("name", "scale"),
    [("ncc", 3.0), ("lncc", 3.0), ("lncc", -3.0), ("nmi", 3.0), ("nmi", -3.0), ("mi", -0.2), ("mind", 3.0),
     ("mind", -3.0)],
)  # fmt: skip
@WEIGHTED
def test_change_of_scale_is_not_seen(d: int, name: str, scale: float, weighted: bool) -> None:
    level = images(d, weighted)
    other = replace(level, moving=level.moving * scale - 5)
    still = torch.zeros(3, *level.fixed.shape)
    plain, scaled = (float(metric_named(name).prepare(x)(View(still, *maps(d)))) for x in (level, other))
    assert scaled == pytest.approx(plain, abs=4e-3 if name == "mind" else 1e-3)
    if name == "ncc":
        other = replace(level, moving=-level.moving)
        assert float(metric_named(name).prepare(other)(View(still, *maps(d)))) == pytest.approx(-plain, abs=1e-5)


@pytest.mark.parametrize("name", ["nmi", "mi"])
def test_bins_divide_the_ranges_that_are_told(name: str) -> None:
    ranges: dict[str, Any] = {"fixed_range": (-1.0, 1.5), "moving_range": (-0.5, 2.0)}
    level, told = images(2), images(2, **ranges)
    still = torch.zeros(3, *level.fixed.shape)
    points, vectors = maps(2)
    values = [float(metric_named(name).prepare(x)(View(still, points, vectors))) for x in (level, told)]
    exact, _ = similarity(name, told, lambda image: warped(image, still.double().numpy(), points, vectors))
    assert values[1] == pytest.approx(exact, abs=2e-5)
    assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("units", [(1.0, 0.0), (2.5, -0.7), (0.1, 3.0)])
def test_mse_in_the_units_of_the_fixed_image(units: tuple[float, float]) -> None:
    """A moving image that is the fixed one in other units does not differ from it."""
    level = images(2)
    scale, offset = units
    same = replace(level, moving=(level.fixed - offset) / scale, moving_in_fixed_units=units)
    assert float(MSE().prepare(same)(View.identity(same.moving))) == pytest.approx(1, abs=1e-5)


def test_image_that_several_metrics_ask_for_is_warped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    level, calls = images(2), []
    warp = ops.warp
    monkeypatch.setattr(ops, "warp", lambda *a: calls.append(a[0]) or warp(*a))
    metric_named("lncc + ncc + 2*nmi").prepare(level)(View(torch.zeros(3, *level.fixed.shape), *maps(2)))
    assert [x is level.moving for x in calls] == [True]


# --- nothing to compare ----------------------------------------------------------------------------------------------


@BOTH
@EACH
def test_flat_image_or_no_weight_has_nothing_to_compare(make_case: Callable[..., Any], d: int, name: str) -> None:
    metric, level = metric_named(name), images(d)
    assert metric.prepare(level).count > 100
    assert metric.prepare(replace(level, fixed=torch.full_like(level.fixed, 0.7))).count == 0
    assert metric.prepare(replace(level, weight=torch.zeros_like(level.fixed))).count == 0
    pair = make_case(d, 24).pair
    mask = torch.zeros_like(pair.fixed)
    mask[: 3 if d == 3 else 1, :3, :3] = 1
    masked = changed(pair, fixed=pair.fixed * (1 - mask), fixed_weight=mask)
    flat = changed(pair, fixed=torch.ones_like(pair.fixed))
    # The descriptors of MIND see beyond the mask: there is something to compare at its border.
    for nothing in (flat,) if "mind" in name else (masked, flat):
        with pytest.raises(NothingToCompare, match="nothing to compare"):
            optimise(nothing, quick(metric=name))


@EACH
@pytest.mark.parametrize("symmetric", [False, True])
def test_flat_moving_image_moves_nothing(make_case: Callable[..., Any], name: str, symmetric: bool) -> None:
    pair = make_case(2, 24).pair
    flat = changed(pair, moving=torch.full_like(pair.moving, 3.0))
    result = optimise(flat, quick(metric=name, symmetric=symmetric, iterations=(6, 3)))
    assert not result.field.forward.any()


# --- sums and channels -----------------------------------------------------------------------------------------------


def two_channels(make_case: Callable[..., Any], d: int) -> tuple[Pair, list[Pair]]:
    """A pair of two channels, and each of them as a pair of its own; the mask makes one domain of them."""
    pair = make_case(d, 28).pair
    mask = torch.ones_like(pair.fixed)
    mask[..., :6] = 0
    other = pair.fixed.flip(-2) ** 2 / 50 + 3, pair.moving.flip(-2) ** 2 / 70 - 20
    first = changed(pair, fixed_weight=mask)
    return changed(pair, fixed_weight=mask, more=[other]), [
        first,
        changed(first, fixed=other[0], moving=other[1]),
    ]


@BOTH
@pytest.mark.parametrize(
    ("metric", "weights"),
    [
        ("lncc", ()),
        ("mse", (1.0, 3.0)),
        ("nmi", (0.5, 0.1)),
        (("mse", "0.5*ncc + mind"), (2.0, 0.5)),
        ((METRICS["mi"], "mind"), ()),
    ],
)
def test_channels_are_their_weighted_mean(
    make_case: Callable[..., Any], d: int, metric: Any, weights: tuple[float, ...]
) -> None:
    both, alone = two_channels(make_case, d)
    few = {"iterations": (2, 1), "network": None}
    result = optimise(both, quick(metric=metric, channel_weights=weights, **few))
    several = metric if isinstance(metric, tuple) else (metric, metric)
    each = [optimise(p, quick(metric=m, **few)).trace[0].metric for p, m in zip(alone, several, strict=True)]
    w = np.array(weights or (1.0, 1.0))
    assert abs(each[0] - each[1]) > 1e-3
    assert result.trace[0].metric == pytest.approx(float(w @ each / w.sum()), abs=1e-6)
    # And both move the field.
    assert result.trace[1].metric > result.trace[0].metric


def test_channels_are_seen_with_their_own_intensities(make_case: Callable[..., Any]) -> None:
    both, alone = two_channels(make_case, 2)
    assert len(both.channels) == 2
    for channel, pair, normalised in zip(both.channels, alone, both.normalised(), strict=True):
        assert torch.equal(channel.fixed, pair.fixed)
        assert channel.fixed_intensity.range == pair.fixed_intensity.range
        for got, intensity, image in (
            (normalised[0], pair.fixed_intensity, pair.fixed),
            (normalised[1], pair.moving_intensity, pair.moving),
        ):
            assert torch.equal(got, intensity.normalised(image))
        scale, offset = channel.moving_in_fixed_units
        there = channel.fixed_intensity.mean + channel.fixed_intensity.deviation * (scale * normalised[1] + offset)
        inside = (normalised[1] > -6) & (normalised[1] < 12)
        torch.testing.assert_close(there[inside], channel.moving[inside], atol=1e-3, rtol=0)


def test_exchanged_channels_are_those_of_the_other_direction() -> None:
    """Fixed and moving image change places; so do their ranges, and the units are those of the other."""
    level = images(2, fixed_range=(-1.0, 2.0), moving_range=(-0.5, 1.5), moving_in_fixed_units=(2.0, 0.5))
    level.memo["mind", 1] = "of this direction"
    (other,) = LevelChannels((level,)).exchanged([level.fixed * 2]).images
    assert torch.equal(other.fixed, level.fixed * 2)
    assert other.moving is level.fixed
    assert (other.fixed_range, other.moving_range) == ((-0.5, 1.5), (-1.0, 2.0))
    assert other.moving_in_fixed_units == (0.5, -0.25)
    assert other.axes is None
    assert not other.memo


def test_channel_with_nothing_to_compare_is_left_out(make_case: Callable[..., Any]) -> None:
    both, alone = two_channels(make_case, 2)
    flat = torch.full_like(both.fixed, 2.0)
    for more in ((flat, alone[1].moving), (flat, flat)):
        part = changed(both, more=[more])
        # The penalty is divided by the number of channels.
        results = [
            optimise(
                p, quick(metric="ncc", iterations=(3, 2), network=None, smoothness=(w, w), velocity_smoothness=(0, 0))
            )
            for p, w in ((part, 0.6), (alone[0], 0.3))
        ]
        assert [t.metric for t in results[0].trace] == [t.metric for t in results[1].trace]
    nothing = changed(both, fixed=flat, more=[(flat, alone[1].moving)])
    with pytest.raises(NothingToCompare):
        optimise(nothing, quick(metric="ncc"))


class FromOutside:
    """A metric whose value is made something else of."""

    def __init__(self, change: Callable[[Tensor], Any], level: bool = True) -> None:
        self.change, self.level = change, level

    def prepare(self, images: LevelImages) -> Any:
        self.images, self.count = images, float(images.fixed.numel())
        return self if self.level else None

    def __call__(self, view: View) -> Any:
        return self.change(1 - (view(self.images.moving) - self.images.fixed).square().mean())


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (FromOutside(lambda value: value.detach()), "metric FromOutside gave a similarity without its gradient"),
        (FromOutside(float), r"metric FromOutside gave -?\d.* for the similarity under a map; return one number"),
        (FromOutside(lambda value: value.repeat(2)), r"gave a tensor of shape \(2,\) for the similarity"),
        (FromOutside(lambda value: value, level=False), "metric FromOutside prepared None for a level; return an"),
    ],
)
def test_metric_from_outside_that_is_none(make_case: Callable[..., Any], metric: Any, message: str) -> None:
    pair = make_case(2, 40).pair
    with pytest.raises(OptionError, match=message):
        optimise(pair, quick(metric=metric))
    with pytest.raises(OptionError, match=message):
        optimise_linear(pair, "rigid", LinearSettings(), [(1.0, metric)])
    optimise(pair, quick(metric=FromOutside(lambda value: value), iterations=(1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value * float("nan"), "metric FromOutside gave nan for the similarity under the first map"),
        (lambda value: value / 0, "metric FromOutside gave -?inf for the similarity under the first map"),
        (lambda value: value + (value - value).sqrt(), "under a map and a gradient by the map that is not finite"),
    ],
)
@pytest.mark.parametrize("in_a_sum", [False, True])
def test_metric_from_outside_that_is_not_finite(
    make_case: Callable[..., Any], change: Callable[[Tensor], Any], message: str, in_a_sum: bool
) -> None:
    pair = make_case(2, 40).pair
    metric: Any = FromOutside(change)
    if in_a_sum:
        metric = WeightedSum(((0.5, METRICS["lncc"]), (0.5, metric)))
    with pytest.raises(OptionError, match=message):
        optimise(pair, quick(metric=metric))
    with pytest.raises(OptionError, match=message):
        optimise_linear(pair, "rigid", LinearSettings(), [(1.0, metric)])


def test_metric_from_outside_that_is_not_finite_under_a_later_map(make_case: Callable[..., Any]) -> None:
    """The map counts as the worst, which is told once a level, and it leads nowhere."""

    class Later(FromOutside):
        def prepare(self, images: LevelImages) -> Any:
            self.calls = 0
            return super().prepare(images)

        def __call__(self, view: View) -> Any:
            self.calls += 1
            return super().__call__(view) * (1 if self.calls == 1 else float("nan"))

    settings = quick(metric=Later(lambda value: value), iterations=(4, 4))
    with pytest.warns(UserWarning, match="metric Later gave nan under a map, which is taken for the worst"):
        done = optimise(make_case(2, 40).pair, settings)
    assert done.similarity == np.float32(WORST)
    points = np.array([[0.0, 1.0], [5.0, -5.0]])
    assert np.abs(done.field.displacement(points)).max() == 0


def test_sum_without_parts_has_nothing_to_compare() -> None:
    assert weighted_sum([]).count == 0
    flat = METRICS["ncc"].prepare(replace(images(2), fixed=torch.ones(SHAPES[2][0])))
    level = METRICS["ncc"].prepare(images(2))
    assert weighted_sum([(1.0, flat)]).count == 0
    assert weighted_sum([(1.0, flat), (0.2, level)]) is level


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": ("lncc", "nmi", "mind")}, "metric has 3 values but the images have 2 channels; give one for each"),
        ({"metric": ("lncc",)}, "metric has 1 values but the images have 2 channels"),
        ({"channel_weights": (1.0,)}, "channel_weights has 1 values but the images have 2 channels"),
        ({"channel_weights": (1.0, 2.0, 3.0)}, "channel_weights has 3 values but the images have 2 channels"),
    ],
)
def test_one_metric_and_one_weight_a_channel(
    make_case: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    both, alone = two_channels(make_case, 2)
    with pytest.raises(OptionError, match=message):
        optimise(both, quick(**changes))
    with pytest.raises(OptionError, match=r"has 2 values but the images have 1 channel; give"):
        optimise(alone[0], quick(metric=("lncc", "nmi")))

"""The ops of the global metrics: native against the reference in float64, the reference against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from tests.engine.images_of_ops import SHAPES, noise

native = pytest.importorskip("itk_nir._native", reason="the native module is not built")

Shape = tuple[int, int, int]

#: Large enough to be cut into several tasks, which end between the blocks of the kernels.
LARGE = (41, 53, 37)
#: Narrower than the images, so that many voxels are clamped, and not the same for both.
RANGES = ((-1.5, 1.25), (-1.0, 2.0))
WIDE = ((-9.0, 8.0), (-8.5, 9.5))
BINS = (4, 5, 32, 128)


weighted = pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])
either = pytest.mark.parametrize("normalised", [False, True], ids=["nats", "normalised"])
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "reference"])


def images(shape: Shape) -> tuple[Tensor, Tensor]:
    """Two alike images, both with a constant corner, which lies in one cell of the histogram."""
    fixed = noise(*shape)
    moving = 0.7 * fixed.square() + 0.4 * noise(*shape, seed=3) - 0.5
    fixed[:, shape[1] // 2 :, shape[2] // 2 :] = 0.3
    moving[:, shape[1] // 2 :, shape[2] // 2 :] = 0.1
    return fixed, moving


def mask(shape: Shape) -> Tensor:
    """Above one half and not, with a block of zeros."""
    w = noise(*shape, seed=5).sigmoid()
    w[:, : shape[1] // 3, : shape[2] // 3] = 0
    return w


def value_and_gradient(op: Callable[[Tensor], Tensor], moving: Tensor) -> tuple[Tensor, Tensor]:
    """Of a scalar product of what `op` gives."""
    leaf = moving.clone().requires_grad_()
    value = op(leaf)
    factor = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    (gradient,) = torch.autograd.grad((value * factor).sum(), leaf)
    return value.detach(), gradient


def metric(shape: Shape, dtype: torch.dtype, weighted: bool = False, bins: int = 32, normalised: bool = True,
           threads: int = 1, ranges: tuple[tuple[float, float], tuple[float, float]] = RANGES,
           ) -> ops.MutualInformation:  # fmt: skip
    weight = mask(shape).to(dtype) if weighted else None
    return ops.MutualInformation.make(images(shape)[0].to(dtype), weight, *ranges, bins, normalised, threads)


def by_hand(fixed: Tensor, moving: Tensor, weight: Tensor | None, bins: int) -> Tensor:
    """The joint histogram as it is defined, one dense matrix of weights an image."""

    def weights(x: Tensor, low: float, high: float) -> Tensor:
        t = ((x.double() - low) / (high - low) * (bins - 1)).clamp(0, bins - 1)
        return (1 - (t.reshape(-1, 1) - torch.arange(bins)).abs()).clamp(min=0)

    a, b = weights(fixed, *RANGES[0]), weights(moving, *RANGES[1])
    counts = torch.ones(len(a)) if weight is None else (weight > 0.5).reshape(-1)
    return a.T @ (b * counts.double()[:, None])


# ----------------------------------------------------------------------------------------------------- the histogram


sizes = pytest.mark.parametrize(
    ("shape", "bins"), [*((shape, bins) for shape in SHAPES.values() for bins in BINS), (LARGE, 32)], ids=str
)


@both_types
@weighted
@sizes
def test_histogram(instructions: str, shape: Shape, bins: int, weighted: bool, dtype: torch.dtype) -> None:
    fixed, moving = images(shape)
    weight = mask(shape) if weighted else None
    measure = metric(shape, dtype, weighted, bins)
    histogram = measure.histogram(moving.to(dtype, copy=True).requires_grad_())
    assert not histogram.requires_grad
    assert histogram.dtype == torch.float64
    wanted = by_hand(fixed, moving, weight, bins)
    assert measure.count == (fixed.numel() if weight is None else int((weight > 0.5).sum()))
    assert float(histogram.sum()) == pytest.approx(measure.count, rel=1e-6)
    # One voxel in another bin would be seen. Much of the image is constant, with the same error everywhere.
    tolerance = 3e-6 if dtype == torch.float32 else 1e-12
    assert float((histogram - wanted).abs().max()) < tolerance * measure.count


def test_bins_are_where_they_should_be(instructions: str) -> None:
    """Rows are those of the fixed image; halfway between two bins is in both; the ends take what is beyond."""
    fixed = torch.tensor([0.0, 1.0, 3.0, 4.0, 9.0, -5.0]).reshape(1, 1, -1)
    moving = torch.tensor([10.0, 25.0, 40.0, 0.0, 50.0, 20.0]).reshape(1, 1, -1)
    wanted = torch.zeros(5, 5, dtype=torch.float64)
    for i, j, weight in ((0, 1, 1), (1, 2, 0.5), (1, 3, 0.5), (3, 4, 1), (4, 0, 1), (4, 4, 1), (0, 2, 1)):
        wanted[i, j] += weight
    for dtype in (torch.float32, torch.float64):
        measure = ops.MutualInformation.make(fixed.to(dtype), None, (0.0, 4.0), (0.0, 40.0), 5)
        assert torch.equal(measure.histogram(moving.to(dtype)), wanted)


# --------------------------------------------------------------------------------------------------- the information


@weighted
@either
@sizes
def test_native_is_the_reference(instructions: str, shape: Shape, bins: int, normalised: bool, weighted: bool) -> None:
    moving = images(shape)[1]
    value, gradient = value_and_gradient(metric(shape, torch.float32, weighted, bins, normalised), moving)
    exact = metric(shape, torch.float64, weighted, bins, normalised)
    wanted, wanted_gradient = value_and_gradient(exact, moving.double())
    assert value.dtype == gradient.dtype == torch.float32
    assert wanted.dtype == wanted_gradient.dtype == torch.float64
    assert float(value) == pytest.approx(float(wanted), rel=2e-5)
    assert float(wanted) > 0.01
    # The gradient jumps at the bins: leave out what lies at one to rounding.
    t = (moving.double() - RANGES[1][0]) / (RANGES[1][1] - RANGES[1][0]) * (bins - 1)
    clear = (t - t.round()).abs() > 1e-4
    assert float(clear.double().mean()) > 0.99
    error = (gradient.double() - wanted_gradient)[clear].abs().max()
    assert float(error) < 1e-3 * float(wanted_gradient.abs().max())
    outside = clear & ((t < 0) | (t > bins - 1))
    if weighted:
        outside |= mask(shape) <= 0.5
    assert 0.05 < float(outside.double().mean()) < 0.95
    assert not gradient[outside].any()
    assert not wanted_gradient[outside].any()
    assert float((gradient[clear & ~outside] != 0).double().mean()) > 0.99


@either
@weighted
@pytest.mark.parametrize("bins", [4, 7, 32])
def test_gradient_of_the_reference(bins: int, weighted: bool, normalised: bool) -> None:
    """Finite differences of the value, also of clamped voxels, away from where it has a kink."""
    shape = (2, 5, 6)
    measure = metric(shape, torch.float64, weighted, bins, normalised)
    scale = (RANGES[1][1] - RANGES[1][0]) / (bins - 1)
    t = (images(shape)[1].double() - RANGES[1][0]) / scale
    moving = (t.floor() + t.frac().clamp(0.1, 0.9)) * scale + RANGES[1][0]
    assert torch.autograd.gradcheck(measure, moving.requires_grad_(), eps=1e-6, atol=1e-8, rtol=1e-5)


@both_types
def test_value_by_hand(dtype: torch.dtype) -> None:
    """Smoothing, entropies and normalisation, of a histogram that numpy could make."""
    shape = SHAPES["3D"]
    moving = images(shape)[1].to(dtype)
    p = metric(shape, dtype, bins=6).histogram(moving) / math.prod(shape)
    kernel = torch.tensor([1.0, 4.0, 1.0]).double() / 6
    padded = torch.nn.functional.pad(p[None, None], (1, 1, 1, 1), mode="replicate")
    p = torch.nn.functional.conv2d(padded, torch.outer(kernel, kernel)[None, None])[0, 0]
    fixed, warped, joint = (float(torch.special.entr(q).sum()) for q in (p.sum(1), p.sum(0), p))
    assert fixed != pytest.approx(warped, rel=0.01)
    plain, normal = (float(metric(shape, dtype, bins=6, normalised=n)(moving)) for n in (False, True))
    assert plain == pytest.approx(fixed + warped - joint, rel=1e-5)
    assert normal == pytest.approx((fixed + warped - joint) / math.sqrt(fixed * warped), rel=1e-5)


@both_types
@either
def test_nothing_is_as_like_an_image_as_itself(dtype: torch.dtype, normalised: bool) -> None:
    """And inverting the contrast changes nothing, nor does any intensity scale."""
    shape = LARGE
    fixed = images(shape)[0].to(dtype)
    low, high = RANGES[0]

    def similarity(moving: Tensor, moving_range: tuple[float, float]) -> float:
        return float(ops.MutualInformation.make(fixed, None, RANGES[0], moving_range, 32, normalised)(moving))

    itself = similarity(fixed, (low, high))
    assert similarity(low + high - fixed, (low, high)) == pytest.approx(itself, rel=1e-5)
    assert similarity(100 - 7 * fixed, (100 - 7 * high, 100 - 7 * low)) == pytest.approx(itself, rel=1e-4)
    others = [fixed + 0.1 * noise(*shape, seed=1).to(dtype), fixed.roll(1, 2), images(shape)[1].to(dtype)]
    for other in others:
        assert 0.0 < similarity(other, RANGES[0]) < 0.9 * itself
    if normalised:
        assert 0.5 < itself < 1
    unlike = noise(*shape, seed=8).to(dtype)
    assert similarity(unlike, RANGES[0]) < 0.25 * itself


def test_the_gradient_leads_upwards(instructions: str, shape: Shape) -> None:
    measure, moving = metric(shape, torch.float32, True), images(shape)[1]
    before, gradient = value_and_gradient(measure, moving)
    after = measure(moving + 0.02 * gradient / gradient.abs().max())
    assert float(after) > float(before)


def test_the_gradient_is_scaled(instructions: str) -> None:
    """By what comes from above, as often as it is asked for."""
    measure, moving = metric(SHAPES["3D"], torch.float32), images(SHAPES["3D"])[1].requires_grad_()
    value = measure(moving)
    (once,) = torch.autograd.grad(value, moving, retain_graph=True)
    (thrice,) = torch.autograd.grad(-3 * value, moving)
    assert once.any()
    assert torch.allclose(thrice, -3 * once, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------------------- edge cases


@both_types
@either
@pytest.mark.parametrize("constant", ["fixed", "moving", "both"])
@pytest.mark.parametrize("level", [0.0, 0.1, 99.0], ids=["at a bin", "between bins", "beyond"])
def test_constant_images(
    instructions: str, shape: Shape, constant: str, level: float, normalised: bool, dtype: torch.dtype
) -> None:
    fixed, moving = (x.to(dtype) for x in images(shape))
    if constant != "moving":
        fixed = torch.full_like(fixed, level)
    if constant != "fixed":
        moving = torch.full_like(moving, level)
    for ranges in (((-4.0, 4.0), (-3.0, 3.0)), ((level, level), (level, level))):
        measure = ops.MutualInformation.make(fixed, None, *ranges, 9, normalised)
        value, gradient = value_and_gradient(measure, moving)
        assert abs(float(value)) < 1e-12
        assert float(gradient.abs().max()) * moving.numel() < 1e-9


@both_types
@either
@pytest.mark.parametrize("nothing", ["weight", "fixed"])
def test_nothing_counts(instructions: str, dtype: torch.dtype, normalised: bool, nothing: str) -> None:
    fixed, moving = (x.to(dtype) for x in images(SHAPES["3D"]))
    weight = torch.full_like(fixed, 0.5)
    if nothing == "fixed":
        weight, fixed = torch.ones_like(fixed), torch.full_like(fixed, math.nan)
    measure = ops.MutualInformation.make(fixed, weight, *RANGES, 32, normalised)
    assert measure.count == 0
    assert not measure.histogram(moving).any()
    value, gradient = value_and_gradient(measure, moving)
    assert float(value) == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@both_types
def test_what_is_not_a_number(instructions: str, shape: Shape, dtype: torch.dtype) -> None:
    """Where it does not count it is nothing; where it does, the result is none; infinity is the last bin."""
    fixed, moving = (x.to(dtype) for x in images(shape))
    weight = mask(shape).to(dtype)
    wanted = value_and_gradient(ops.MutualInformation.make(fixed, weight, *RANGES), moving)
    for x in (fixed, moving):
        x[weight <= 0.5] = math.nan
    measure = ops.MutualInformation.make(fixed, weight, *RANGES)
    for got, want in zip(value_and_gradient(measure, moving), wanted, strict=True):
        assert torch.equal(got, want)
    at = tuple((weight > 0.5).nonzero()[0])
    moving[at] = math.inf
    infinite = measure.histogram(moving)
    moving[at] = 1e4
    assert torch.equal(infinite, measure.histogram(moving))
    moving[at] = math.nan
    assert measure(moving).isnan()
    assert measure.histogram(moving).isnan().any()


def test_positions_that_are_none() -> None:
    """The module itself: positions far outside, infinite or not a number are no crash, and nothing below 0 counts."""
    position = torch.tensor([-1e30, -1.0, math.nan, -math.inf, 3.0, 1e30, math.inf]).reshape(1, 1, -1)
    histogram, gradient = torch.ones(4, 4, dtype=torch.float64), torch.ones(1, 1, 7)
    for moving in (torch.zeros(1, 1, 7), position.clone()):
        for low, scale in ((0.0, 1.0), (math.nan, 1.0), (0.0, math.inf), (-1e30, 1e30)):
            native.joint_histogram(position, moving, low, scale, histogram, 1)
            native.joint_histogram_adjoint(position, moving, low, scale, histogram, gradient, 1)
    native.joint_histogram(position, torch.zeros(1, 1, 7), 0.0, 1.0, histogram, 1)
    wanted = torch.zeros(4, 4, dtype=torch.float64)
    wanted[3, 0] = 3
    assert torch.equal(histogram, wanted)


@pytest.mark.parametrize("bins", [0, 3, 129, -4])
def test_bins_that_are_refused(bins: int) -> None:
    x = torch.zeros(2, 3, 4)
    for image in (x, x.double()):
        with pytest.raises(ValueError, match="bins must be 4 to 128"):
            ops.MutualInformation.make(image, None, *RANGES, bins)
    if bins >= 0:
        with pytest.raises(ValueError, match="there must be 4 to 128 bins"):
            native.joint_histogram(x, x, 0.0, 1.0, torch.zeros(bins, bins, dtype=torch.float64), 1)


@pytest.mark.parametrize("wrong", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)], ids=str)
def test_ranges_that_are_refused(wrong: tuple[float, float]) -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="fixed_range must be"):
        ops.MutualInformation.make(x, None, wrong, (0.0, 1.0))
    with pytest.raises(ValueError, match="moving_range must be"):
        ops.MutualInformation.make(x, None, (0.0, 1.0), wrong)


def test_another_grid_is_refused() -> None:
    measure = metric(SHAPES["3D"], torch.float32)
    with pytest.raises(ValueError, match="shapes disagree"):
        measure(torch.zeros(13, 11, 20))


# --------------------------------------------------------------------------------------------------------- the sums


def sums_by_hand(fixed: Tensor, moving: Tensor, weight: Tensor | None) -> Tensor:
    f, m = fixed.double(), moving.double()
    w = torch.ones_like(f) if weight is None else (weight > 0.5).double()
    return torch.stack([(w * m).sum(), (w * m * m).sum(), (w * f * m).sum()])


@both_types
@weighted
def test_global_sums(instructions: str, shape: Shape, weighted: bool, dtype: torch.dtype) -> None:
    fixed, moving = images(shape)
    weight = mask(shape) if weighted else None
    given = None if weight is None else weight.to(dtype)
    value, gradient = value_and_gradient(lambda m: ops.global_sums(fixed.to(dtype), m, given), moving.to(dtype))
    wanted, wanted_gradient = value_and_gradient(lambda m: sums_by_hand(fixed, m, weight), moving.double())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert value.dtype == torch.float64
    assert gradient.dtype == dtype
    size = torch.stack([x.abs().sum() for x in (moving, moving * moving, fixed * moving)])
    assert float(((value - wanted).abs() / size).max()) < tolerance
    assert float((gradient - wanted_gradient).abs().max()) < tolerance * float(wanted_gradient.abs().max())


@both_types
def test_global_sums_of_what_does_not_count(instructions: str, shape: Shape, dtype: torch.dtype) -> None:
    fixed, moving = (x.to(dtype) for x in images(shape))
    weight = mask(shape).to(dtype)
    wanted = value_and_gradient(lambda m: ops.global_sums(fixed, m, weight), moving)
    for x in (fixed, moving):
        x[weight <= 0.5] = math.nan
    got = value_and_gradient(lambda m: ops.global_sums(fixed, m, weight), moving)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)
    nothing = torch.full_like(weight, 0.5)
    for x in value_and_gradient(lambda m: ops.global_sums(fixed, m, nothing), moving):
        assert torch.equal(x, torch.zeros_like(x))


def test_gradient_of_the_global_sums() -> None:
    fixed, moving = (x.double() for x in images((2, 3, 4)))
    weight = mask((2, 3, 4)).double()
    for w in (None, weight):
        assert torch.autograd.gradcheck(lambda m, w=w: ops.global_sums(fixed, m, w), moving.clone().requires_grad_())


# ---------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("shape", [LARGE, (1, 301, 263)], ids=str)
def test_same_bits_on_any_number_of_threads(instructions: str, shape: Shape) -> None:
    fixed, moving = images(shape)

    def results(threads: int) -> list[Tensor]:
        found = []
        for weight in (None, mask(shape)):
            for bins in (16, 64):
                measure = ops.MutualInformation.make(fixed, weight, *RANGES, bins, True, threads)
                found += [measure.histogram(moving), *value_and_gradient(measure, moving)]
            found += value_and_gradient(lambda m, weight=weight: ops.global_sums(fixed, m, weight, threads), moving)
        return found

    one = results(1)
    for threads in (2, 3, 7):
        for k, (a, b) in enumerate(zip(one, results(threads), strict=True)):
            assert torch.equal(a, b), f"result {k} differs on {threads} threads"


def test_without_clamping(instructions: str) -> None:
    """Wide ranges: few bins hold all, and the gradient of no voxel is cut off."""
    shape = LARGE
    moving = images(shape)[1]
    value, gradient = value_and_gradient(metric(shape, torch.float32, ranges=WIDE), moving)
    wanted, wanted_gradient = value_and_gradient(metric(shape, torch.float64, ranges=WIDE), moving.double())
    assert float(value) == pytest.approx(float(wanted), rel=2e-5)
    assert float((gradient != 0).double().mean()) > 0.999
    assert float((gradient - wanted_gradient).abs().median()) < 1e-4 * float(wanted_gradient.abs().median())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    shape = LARGE
    fixed, moving, weight = (x.double() for x in (*images(shape), mask(shape)))
    here = value_and_gradient(ops.MutualInformation.make(fixed, weight, *RANGES), moving)
    there = ops.MutualInformation.make(fixed.cuda(), weight.cuda(), *RANGES)
    leaf = moving.cuda().requires_grad_()
    value = there(leaf)
    value.backward()
    assert torch.allclose(value.detach().cpu(), here[0], rtol=1e-9)
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad.cpu(), here[1], rtol=1e-6, atol=1e-12)
    sums = ops.global_sums(fixed.cuda(), moving.cuda(), weight.cuda())
    assert torch.allclose(sums.cpu(), sums_by_hand(fixed, moving, weight), rtol=1e-9)

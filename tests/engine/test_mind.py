"""The self-similarity descriptors and their difference: the native ops against the torch ones, and by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Banded, Domain, shape_of
from itk_nir.engine.ops import reference_mind

native = pytest.importorskip("itk_nir._native", reason="the native module is not built")

#: Name → dimension, grid of the fixed image and of the moving one. The first is longer than a run of 64 voxels.
GRIDS = {"3D": (3, (11, 13, 70), (12, 9, 17)), "2D": (2, (1, 23, 37), (1, 31, 29))}
THREADS = (1, 2, 3, 7)
#: Steps of another grid: oblique, anisotropic, some longer than a voxel.
OBLIQUE = np.array([[0.9, 0.3, -0.2], [-0.4, 1.7, 0.1], [0.2, -0.1, 0.6]])


@pytest.fixture(params=GRIDS)
def grids(request: pytest.FixtureRequest) -> tuple[int, tuple[int, int, int], tuple[int, int, int]]:
    return GRIDS[request.param]


def smooth(*shape: int, seed: int = 0, passes: int = 1) -> Tensor:
    """Noise blurred along the last three axes where they are longer than one."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for _ in range(passes):
        for axis in (-3, -2, -1):
            if x.shape[axis] > 1:
                x = (x + x.roll(1, axis) + x.roll(-1, axis)) / 3
    return x / x.std()


def in_plane(steps: np.ndarray, dimension: int) -> np.ndarray:
    steps = steps.copy()
    if dimension == 2:
        steps[2] = steps[:, 2] = 0
    return steps


def counts_apart(a: Tensor, b: Tensor) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.uint8
    return int((a.int() - b.int()).abs().max())


def pair(dimension: int, fixed: tuple[int, int, int], moving: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Descriptors of two images that have nothing to do with each other."""
    f = ops.mind_descriptors(smooth(*fixed), np.eye(3), dimension=dimension)
    return f, ops.mind_descriptors(smooth(*moving, seed=1), in_plane(OBLIQUE, dimension), dimension=dimension)


def maps(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """To the voxels of the moving image; in the plane of a 2D one."""
    points = np.array([[0.3, 0.1, -0.1, 0.3], [-0.05, 0.7, 0.05, -0.7], [0.01, -0.05, 0.9, 1.2]])
    vectors = np.array([[0.5, 0.1, 0.0], [-0.05, 0.6, 0.1], [0.02, -0.1, 0.4]])
    if dimension == 2:
        for m in (points, vectors):
            m[2] = m[:, 2] = 0
    return points, vectors


def block(shape: tuple[int, int, int]) -> Tensor:
    """Weights around one half, exactly one half among them, and a block of zeros."""
    w = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    w[:, :3, :5] = 0
    w[:, 4:6, 6:9] = 0.5
    return w


def value_and_gradient(op: Callable[[Tensor], Tensor], x: Tensor, factor: float = -1.5) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = op(leaf)
    (gradient,) = torch.autograd.grad(factor * value, leaf)
    return value.detach(), gradient


def assert_agree(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    (value, gradient), (exact, exact_gradient) = got, wanted
    assert value.dtype == gradient.dtype == torch.float32
    assert value.shape == ()
    assert float(exact) > 0
    assert abs(float(value) - float(exact)) < 2e-6 * float(exact)
    scale = float(exact_gradient.abs().max())
    assert scale > 0
    assert float((gradient - exact_gradient).abs().max()) < 2e-5 * scale


# --------------------------------------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [np.eye(3), OBLIQUE, -2.5 * OBLIQUE, 40 * np.eye(3)], ids=["one", "a", "b", "far"])
def test_descriptors(instructions: str, grids: tuple, radius: int, steps: np.ndarray) -> None:
    dimension, shape, _ = grids
    image, steps = smooth(*shape), in_plane(steps, dimension)
    got = ops.mind_descriptors(image, steps, radius, dimension)
    wanted = ops.mind_descriptors(image.double(), steps, radius, dimension)
    assert counts_apart(got, wanted) <= 1
    channels = ops.MIND_CHANNELS[dimension]
    assert (got[..., :channels].amax(-1) == 255).all()
    assert not got[..., channels:].any()
    if steps[0, 0] < 10:  # beyond the image all neighbours of a side are alike
        assert 40 < float(got[..., :channels].double().std()) < 120


@pytest.mark.parametrize(("dimension", "shape"), [(3, (8, 9, 10)), (2, (1, 12, 14))], ids=["3D", "2D"])
def test_descriptors_by_the_definition(dimension: int, shape: tuple[int, int, int]) -> None:
    """The voxels away from the rim, from the numbers of their neighbourhoods."""
    image = smooth(*shape).double().numpy()
    got = ops.mind_descriptors(torch.from_numpy(image), np.eye(3), 1, dimension)
    steps = [np.eye(3, dtype=int)[2 - a] for a in range(dimension)]
    inner = [range(2, n - 2) if n > 1 else range(1) for n in shape]

    def window(at: np.ndarray) -> np.ndarray:
        return image[tuple(slice(k - 1, k + 2) if n > 1 else slice(None) for k, n in zip(at, shape, strict=True))]

    variances, wanted = [], []
    for at in itertools.product(*inner):
        distances = []
        for a, b in itertools.combinations(steps, 2):
            for p, q in itertools.product((a, -a), (b, -b)):
                distances.append(np.square(window(at + p) - window(at + q)).mean())
        apart = np.array(distances) - min(distances)
        variances.append(apart.mean())
        wanted.append(np.round(255 * np.exp(-apart / apart.mean())))
    # None of them is near the bounds of the variance, whatever the rim adds to its mean.
    assert 0.01 * max(variances) < min(variances)
    voxels = got[np.ix_(*inner)].reshape(len(wanted), 16).numpy()
    np.testing.assert_array_equal(voxels[:, : len(wanted[0])], wanted)


def test_variance_has_bounds(instructions: str) -> None:
    """An image of faint noise but for one strong patch: the noise does not become structure."""
    image = 1e-3 * smooth(9, 20, 40)
    assert float(ops.mind_descriptors(image, np.eye(3))[..., :12].double().mean()) < 200
    image[:, 5:9, 5:9] += 5 * smooth(9, 4, 4, seed=1)
    got = ops.mind_descriptors(image, np.eye(3))
    assert (got[:, :, 20:, :12] > 250).all()
    assert (got[4, 6, 6, :12] < 200).any()
    assert counts_apart(got, ops.mind_descriptors(image.double(), np.eye(3))) <= 1


def test_windows_are_cut_at_the_border(instructions: str) -> None:
    """Noise a little below the least variance: what it counts there depends on the size of the windows."""
    image = 2e-2 * smooth(9, 20, 40)
    image[:, 5:9, 5:9] += 5 * smooth(9, 4, 4, seed=1)
    got = ops.mind_descriptors(image, np.eye(3))
    assert 5 < float(got[:, :, 20:, :12].double().std()) < 60
    assert counts_apart(got, ops.mind_descriptors(image.double(), np.eye(3))) <= 1


def test_variance_of_one_voxel_has_a_bound(instructions: str) -> None:
    """A single spike in a large constant image: its variance is above 1000 times the mean."""
    image = torch.zeros(1, 300, 300)
    image[0, 150, 150] = 1
    image[0, 150, 151] = -0.5
    got = ops.mind_descriptors(image, np.eye(3), dimension=2)
    assert counts_apart(got, ops.mind_descriptors(image.double(), np.eye(3), dimension=2)) <= 1
    # exp(-D / V) of four channels with the true mean V cannot be below exp(-4).
    assert int(got[..., :4].min()) < round(255 * np.exp(-4)) - 1


@pytest.mark.parametrize("scale", [-1.0, 3.0, -0.02])
def test_descriptors_do_not_see_the_contrast(instructions: str, grids: tuple, scale: float) -> None:
    dimension, shape, _ = grids
    image = smooth(*shape)
    one = ops.mind_descriptors(image, np.eye(3), dimension=dimension)
    assert counts_apart(ops.mind_descriptors(scale * image + scale, np.eye(3), dimension=dimension), one) <= 1
    other = ops.mind_descriptors(smooth(*shape, seed=1), np.eye(3), dimension=dimension)
    assert counts_apart(other, one) > 100


TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in ((1, 1, 1), (-1, 1, -1), (1, -1, 1))]


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_descriptors_have_the_axes_of_the_steps(order: tuple[int, int, int], signs: tuple[int, int, int]) -> None:
    """The image stored along other axes, with the steps of the first grid: the same descriptors, stored likewise."""
    image = smooth(9, 12, 15)
    first = ops.mind_descriptors(image, np.eye(3))
    flips = [a for a in range(3) if signs[a] < 0]
    turned = image.permute(order).flip(flips).contiguous()
    # Array axes are z, y, x; axis a of the turned image is axis order[a] of the first.
    steps = np.zeros((3, 3))
    for a in range(3):
        steps[2 - a, 2 - order[a]] = signs[a]
    got = ops.mind_descriptors(turned, steps)
    assert counts_apart(got, first.permute(*order, 3).flip(flips)) <= 1
    if (order, signs) != TURNS[0]:
        assert counts_apart(ops.mind_descriptors(turned, np.eye(3)), first.permute(*order, 3).flip(flips)) > 100


@pytest.mark.parametrize("level", [0.0, 0.1, -1234.567])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_image_is_neutral(instructions: str, grids: tuple, level: float, dtype: torch.dtype) -> None:
    dimension, shape, _ = grids
    steps = in_plane(OBLIQUE, dimension)
    got = ops.mind_descriptors(torch.full(shape, level, dtype=dtype), steps, dimension=dimension)
    channels = ops.MIND_CHANNELS[dimension]
    assert (got[..., :channels] == 255).all()
    assert not got[..., channels:].any()


def test_a_constant_region_is_neutral(instructions: str) -> None:
    image = smooth(9, 20, 40) + 7
    image[..., 20:] = 0.3
    got = ops.mind_descriptors(image, OBLIQUE)
    assert (got[..., 24:, :12] == 255).all()
    assert (got[..., :18, :12] < 200).any(-1).all()


def test_an_image_that_is_not_a_number(instructions: str) -> None:
    image = smooth(*GRIDS["3D"][1])
    image[3, 4, 5] = torch.nan
    assert not ops.mind_descriptors(image, np.eye(3))[..., 12:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": 0}, "radius must be 1 to 32"),
        ({"radius": 33}, "radius must be 1 to 32"),
        ({"dimension": 1}, "dimension must be 2 or 3"),
        ({"offsets": np.eye(2)}, "offsets must be"),
        ({"offsets": np.full((3, 3), np.nan)}, "offsets must be"),
        ({"offsets": np.full((3, 3), 1e7)}, "offsets must be"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_descriptors_refuse(dtype: torch.dtype, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.mind_descriptors(torch.zeros(3, 4, 5, dtype=dtype), **{"offsets": np.eye(3), **changes})


# ---------------------------------------------------------------------------------------------------------- difference


weighted = pytest.mark.parametrize("weighted", [False, True], ids=["all", "weighted"])


@weighted
def test_difference(instructions: str, grids: tuple, weighted: bool) -> None:
    dimension, shape, moving_shape = grids
    fixed, moving = pair(*grids)
    channels, matrices = ops.MIND_CHANNELS[dimension], maps(dimension)
    weight = block(shape) if weighted else None
    u = 3 * smooth(3, *shape, seed=2)

    def op(u: Tensor) -> Tensor:
        return ops.mind_difference(fixed, moving, weight, u, *matrices, channels)

    got = value_and_gradient(op, u)
    assert_agree(got, value_and_gradient(op, u.double()))
    with torch.no_grad():
        assert float(op(u)) == pytest.approx(float(got[0]), rel=1e-6)
    if weight is not None:
        assert not got[1][:, weight <= 0.5].any()
    # Once more, a channel at a time, by the warp of an image.
    total = 0.0
    for c in range(channels):
        warped = ops.warp(moving[..., c].double() / 255, u.double(), *matrices)
        square = (warped - fixed[..., c].double() / 255).square()
        total += float(square.sum() if weight is None else square[weight > 0.5].sum()) / channels
    assert total == pytest.approx(float(got[0]), rel=1e-6)
    assert moving_shape == tuple(moving.shape[:3]) != shape


def splines(shape: tuple[int, int, int]) -> tuple[list[Banded], tuple[int, ...]]:
    domain = Domain((0, 0, 0), (shape[2], shape[1], shape[0]))
    axes = domain.lattice((4.0, 3.0, 5.0))
    return [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)], shape_of(axes)


@weighted
def test_difference_of_a_spline(instructions: str, grids: tuple, weighted: bool) -> None:
    dimension, shape, _ = grids
    fixed, moving = pair(*grids)
    channels, (points, vectors) = ops.MIND_CHANNELS[dimension], maps(dimension)
    weight = block(shape) if weighted else None
    matrices, lattice = splines(shape)
    x = 3 * smooth(3, *lattice, seed=2)

    def op(x: Tensor) -> Tensor:
        return ops.mind_difference_spline(fixed, moving, weight, x, matrices, points, vectors, channels)

    def apart(x: Tensor) -> Tensor:
        u = ops.separable(x, matrices)
        return ops.mind_difference(fixed, moving, weight, u, points, vectors, channels)

    got, wanted = value_and_gradient(op, x), value_and_gradient(apart, x.double())
    assert_agree(got, wanted)
    again = value_and_gradient(op, x.double())
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(again, wanted, strict=True))
    with torch.no_grad():
        assert float(op(x)) == pytest.approx(float(got[0]), rel=1e-6)


@weighted
def test_gradient_of_the_reference(grids: tuple, weighted: bool) -> None:
    """Against finite differences; nowhere near the planes where the derivative jumps."""
    dimension, shape, _ = grids
    fixed, moving = pair(*grids)
    channels = ops.MIND_CHANNELS[dimension]
    points, vectors = maps(dimension)
    weight = block(shape) if weighted else None
    u = 2 * smooth(3, *shape, seed=2).double()

    def op(u: Tensor) -> Tensor:
        return ops.mind_difference(fixed, moving, weight, u, points, vectors, channels)

    _, gradient = value_and_gradient(op, u, 1.0)
    random, step, seen = np.random.default_rng(0), 1e-6, 0
    for at in zip(*(random.integers(0, n, 20) for n in shape), strict=True):
        z, y, x = at
        where = points @ [x, y, z, 1] + vectors @ u[(slice(None), *at)].numpy()
        if np.abs(where[:dimension] - np.round(where[:dimension])).min() < 1e-4:
            continue
        for c in range(dimension):
            move = torch.zeros_like(u)
            move[(c, *at)] = step
            difference = float(op(u + move) - op(u - move)) / (2 * step)
            assert difference == pytest.approx(float(gradient[(c, *at)]), rel=1e-4, abs=1e-6)
            seen += abs(difference) > 1e-3
    assert seen > 8


def test_same_descriptors_do_not_differ(instructions: str, grids: tuple) -> None:
    dimension, shape, _ = grids
    fixed, _ = pair(*grids)
    u = torch.zeros(3, *shape)
    channels = ops.MIND_CHANNELS[dimension]
    value, gradient = value_and_gradient(
        lambda u: ops.mind_difference(fixed, fixed, None, u, np.eye(3, 4), np.eye(3), channels), u
    )
    assert float(value) == 0
    assert not gradient.any()


@pytest.mark.parametrize(("far", "corner"), [(1e6, -1), (-1e6, 0)])
def test_difference_beyond_the_edge(instructions: str, grids: tuple, far: float, corner: int) -> None:
    """The descriptor at the edge, and no gradient."""
    dimension, shape, _ = grids
    fixed, moving = pair(*grids)
    channels = ops.MIND_CHANNELS[dimension]
    u = torch.full((3, *shape), far)
    value, gradient = value_and_gradient(
        lambda u: ops.mind_difference(fixed, moving, None, u, np.eye(3, 4), np.eye(3), channels), u
    )
    edge = moving[corner, corner, corner].double()
    wanted = float((fixed.double() - edge).square().sum()) / channels / 255**2
    assert float(value) == pytest.approx(wanted, rel=1e-6)
    assert not gradient.any()


@pytest.mark.parametrize("axis", range(3))
def test_gradient_along_the_other_axes_stays(instructions: str, axis: int) -> None:
    """Beyond the edge along one axis only."""
    _, shape, _ = GRIDS["3D"]
    fixed, moving = pair(*GRIDS["3D"])
    u = smooth(3, *shape, seed=2)
    u[axis] = 1e3

    def op(u: Tensor) -> Tensor:
        return ops.mind_difference(fixed, moving, None, u, np.eye(3, 4) * 0.2, np.eye(3))

    got = value_and_gradient(op, u)
    assert_agree(got, value_and_gradient(op, u.double()))
    assert not got[1][axis].any()
    assert all(got[1][a].any() for a in range(3) if a != axis)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 9, 1), (9, 1, 1), (1, 1, 1), (2, 2, 2)], ids=str)
def test_thin_grids(instructions: str, shape: tuple[int, int, int]) -> None:
    image = smooth(4, 5, 6)
    fixed, thin = ops.mind_descriptors(image, np.eye(3)), torch.randn(shape, generator=torch.Generator().manual_seed(3))
    moving = ops.mind_descriptors(thin, OBLIQUE)
    assert counts_apart(moving, ops.mind_descriptors(thin.double(), OBLIQUE)) <= 1
    moving[..., :12] = torch.randint(0, 256, (*shape, 12), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    u = 0.7 * smooth(3, 4, 5, 6, seed=2) + 0.05
    tilt = np.hstack([0.3 * OBLIQUE, [[0.01], [0.02], [0.03]]])

    def op(u: Tensor) -> Tensor:
        return ops.mind_difference(fixed, moving, None, u, tilt, np.eye(3))

    value, gradient = value_and_gradient(op, u)
    exact, exact_gradient = value_and_gradient(op, u.double())
    assert float(value) == pytest.approx(float(exact), rel=1e-5)
    assert torch.allclose(gradient.double(), exact_gradient, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_displacements_that_lead_nowhere(instructions: str, grids: tuple, value: float) -> None:
    """Nothing is read beyond the arrays, and the voxels beside them do not change."""
    dimension, shape, _ = grids
    fixed, moving = pair(*grids)
    channels = ops.MIND_CHANNELS[dimension]
    u = smooth(3, *shape, seed=2)

    def op(u: Tensor) -> Tensor:
        return ops.mind_difference(fixed, moving, None, u, *maps(dimension), channels)

    before = value_and_gradient(op, u)
    u[:, 0, 3:9] = value
    total, gradient = value_and_gradient(op, u)
    assert torch.isfinite(total)
    assert torch.equal(gradient[:, 0, 9:], before[1][:, 0, 9:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_are_four_or_twelve(dtype: torch.dtype) -> None:
    fixed, moving = pair(*GRIDS["3D"])
    shape = GRIDS["3D"][1]
    matrices, lattice = splines(shape)
    for channels in (0, 3, 16):
        with pytest.raises(ValueError, match="channels must be 4 or 12"):
            ops.mind_difference(
                fixed, moving, None, torch.zeros(3, *shape, dtype=dtype), np.eye(3, 4), np.eye(3), channels
            )
        with pytest.raises(ValueError, match="channels must be 4 or 12"):
            ops.mind_difference_spline(
                fixed, moving, None, torch.zeros(3, *lattice, dtype=dtype), matrices, np.eye(3, 4), np.eye(3), channels
            )


# ------------------------------------------------------------------------------------------------------------- threads


def every_result(threads: int) -> list[Tensor]:
    """On grids large enough to be cut into several tasks."""
    out: list[Tensor] = []
    for dimension, shape in ((3, (35, 43, 41)), (2, (1, 150, 230))):
        steps = in_plane(OBLIQUE, dimension)
        fixed = ops.mind_descriptors(smooth(*shape), np.eye(3), 1, dimension, threads)
        moving = ops.mind_descriptors(smooth(*shape, seed=1), steps, 3, dimension, threads)
        channels, (points, vectors) = ops.MIND_CHANNELS[dimension], maps(dimension)
        matrices, lattice = splines(shape)
        out += [fixed, moving]
        args = (fixed, moving, block(shape))
        out += value_and_gradient(
            lambda u, a=args, m=(points, vectors), c=channels: ops.mind_difference(*a, u, *m, c, threads),
            2 * smooth(3, *shape, seed=2),
        )
        out += value_and_gradient(
            lambda u, a=args, s=matrices, m=(points, vectors), c=channels: ops.mind_difference_spline(
                *a, u, s, *m, c, threads
            ),
            2 * smooth(3, *lattice, seed=2),
        )
    return out


def test_same_bits_on_any_number_of_threads(instructions: str) -> None:
    one = every_result(1)
    for threads in THREADS[1:]:
        for i, (a, b) in enumerate(zip(one, every_result(threads), strict=True)):
            assert torch.equal(a, b), f"result {i} differs on {threads} threads"


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference, with float32."""
    shape = (5, 6, 7)
    image = smooth(*shape)
    wanted = reference_mind.mind_descriptors(image, torch.from_numpy(OBLIQUE), 2, 3)
    assert counts_apart(ops.mind_descriptors(image, OBLIQUE, 2), wanted) <= 1
    monkeypatch.setattr("itk_nir.engine.ops.mind.descriptors_for", lambda x: None)
    monkeypatch.setattr("itk_nir.engine.ops.images.native_for", lambda x: None)
    assert torch.equal(ops.mind_descriptors(image, OBLIQUE, 2), wanted)
    matrices, lattice = splines(shape)
    x = smooth(3, *lattice).requires_grad_()
    value = ops.mind_difference_spline(wanted, wanted, None, x, matrices, np.eye(3, 4), np.eye(3))
    value.backward()
    assert float(value.detach()) > 0
    assert x.grad is not None
    assert x.grad.any()

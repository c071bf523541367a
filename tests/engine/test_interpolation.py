"""Sampling between voxels, against SciPy and ITK-like rules written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itk_nir.engine.interpolation import bspline_coefficients, cubic_bspline_weights, sample

ndimage = pytest.importorskip("scipy.ndimage")

SHAPES = [(7, 9), (5, 6, 8)]


def random_image(shape: tuple[int, ...], channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels, *shape))


def random_points(shape: tuple[int, ...], n: int = 200, seed: int = 1) -> np.ndarray:
    size = np.asarray(shape[::-1], float)
    return np.random.default_rng(seed).uniform(0, 1, size=(n, len(shape))) * (size - 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("bspline", 3)])
def test_matches_scipy_inside(shape: tuple[int, ...], mode: str, order: int) -> None:
    image, points = random_image(shape), random_points(shape)
    wanted = [ndimage.map_coordinates(c, points.T[::-1], order=order, mode="mirror") for c in image]
    got = sample(torch.from_numpy(image), torch.from_numpy(points).reshape(20, 10, -1), mode)
    assert got.shape == (2, 20, 10)
    np.testing.assert_allclose(got.reshape(2, -1).numpy(), wanted, atol=1e-12)
    single = sample(torch.from_numpy(image).float(), torch.from_numpy(points).float(), mode)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (3, 4, 1), (40, 3)])
def test_bspline_coefficients_match_scipy_on_thin_images(shape: tuple[int, ...]) -> None:
    image = random_image(shape, channels=1)
    wanted = image[0]
    for axis in range(len(shape)):
        if shape[axis] > 1:
            wanted = ndimage.spline_filter1d(wanted, 3, axis=axis, mode="mirror")
    np.testing.assert_allclose(bspline_coefficients(torch.from_numpy(image))[0].numpy(), wanted, atol=1e-12)
    centres = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")[::-1], -1).astype(float)
    through = sample(torch.from_numpy(image), torch.from_numpy(centres), "bspline")
    np.testing.assert_allclose(through.numpy(), image, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_rounds_halves_up_and_keeps_the_type(shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(2).integers(0, 200, size=(1, *shape)).astype(np.uint8)
    points = random_points(shape)
    points[0] = 0.5
    index = np.floor(points + 0.5).astype(int)
    wanted = labels[0][tuple(index.T[::-1])]
    got = sample(torch.from_numpy(labels), torch.from_numpy(points), "nearest")
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got[0].numpy(), wanted)


@pytest.mark.parametrize("mode", ["linear", "nearest", "bspline"])
def test_rim_of_half_a_voxel_and_beyond(mode: str) -> None:
    image = torch.from_numpy(random_image((6, 7), channels=1))
    rim = torch.tensor([[-0.4, 2.0], [6.49, 5.0], [3.0, -0.5]], dtype=torch.float64)
    beyond = torch.tensor([[-0.51, 2.0], [6.5, 5.0], [3.0, 1e9], [float("nan"), 1.0]], dtype=torch.float64)
    mirror = rim.abs()
    mirror[1, 0] = 12 - 6.49
    wanted = {"linear": rim.clamp(min=0).clamp(max=6), "nearest": rim.clamp(min=0), "bspline": mirror}[mode]
    torch.testing.assert_close(sample(image, rim, mode), sample(image, wanted, mode))
    assert (sample(image, beyond, mode, outside=-7.0) == -7.0).all()
    edge = sample(image, beyond[:3], mode, outside="edge")
    clamped = torch.minimum(beyond[:3].clamp(min=0), torch.tensor([6.0, 5.0]))
    torch.testing.assert_close(edge, sample(image, clamped, mode))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["linear", "bspline"])
@pytest.mark.parametrize("outside", [0.0, "edge"])
def test_gradient_in_the_position(shape: tuple[int, ...], mode: str, outside: float | str) -> None:
    image = torch.from_numpy(random_image(shape))
    points = torch.from_numpy(random_points(shape, n=12)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: sample(image, p, mode, outside), (points,))
    if mode == "linear":
        assert torch.autograd.gradcheck(lambda i: sample(i, points.detach(), mode, outside), (image.requires_grad_(),))


def test_prefiltered_and_chunked_give_the_same() -> None:
    image = torch.from_numpy(random_image((9, 11), channels=1))
    points = torch.from_numpy(random_points((9, 11), n=300_000))
    whole = sample(image, points, "bspline")
    again = sample(bspline_coefficients(image), points, "bspline", prefiltered=True)
    assert torch.equal(whole, again)
    with_grad = sample(image, points.requires_grad_(), "bspline")
    assert torch.equal(whole, with_grad.detach())


def test_weights_sum_to_one_and_reproduce_a_line() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    w = torch.stack(cubic_bspline_weights(t))
    torch.testing.assert_close(w.sum(0), torch.ones_like(t))
    torch.testing.assert_close((w * torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)[:, None]).sum(0), t)


def test_errors_say_what_was_wanted() -> None:
    image = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="linear, nearest, bspline"):
        sample(image, torch.zeros(3, 2), "cubic")
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
        sample(image, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="edge"):
        sample(image, torch.zeros(3, 2), outside="mirror")

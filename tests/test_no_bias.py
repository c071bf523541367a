"""What does not move stays: no engine moves an image away from itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

import itk_nir
from itk_nir.images import to_sitk
from itk_nir.phantom import LABELS, Phantom, brain_phantom


@cache
def brain(d: int, size: tuple[int, ...], noise: float = 3.0) -> Phantom:
    return brain_phantom(d, size, seed=2, noise=noise)


@pytest.mark.parametrize("preset", ["fast", "default", "accurate"])
@pytest.mark.parametrize("d", [2, 3])
def test_image_onto_itself_stays_put(preset: str, d: int) -> None:
    p = brain(d, (28, 34, 28) if d == 3 else (72, 84))
    image = to_sitk(p.fixed, p.geometry)
    result = itk_nir.register(image, image, preset=preset)
    x = p.geometry.grid().reshape(-1, d)
    assert np.linalg.norm(result.transform_points(x) - x, axis=1).max() < 0.02 * min(p.geometry.spacing)
    assert result.report.jacobian_range == pytest.approx((1, 1), abs=1e-3)


def noisy_copies(
    d: int, size: tuple[int, ...], noise: float, moving: np.ndarray | None = None, seed: int = 1, rising: float = 0.0
) -> tuple[Any, Any, Any]:
    """The phantom twice with noise of its own, or the phantom and another image; a share of the range is its SD.

    Where the phantom is brighter, there may be more noise: `rising` times its intensity, as a share of the range.
    """
    p = brain(d, size, noise=0)
    rng = np.random.default_rng(seed)
    deviation = noise * float(np.ptp(p.fixed)) * (1 + rising * p.fixed / np.ptp(p.fixed))
    both = (p.fixed, p.fixed if moving is None else moving)
    return p, *(to_sitk((x + rng.normal(0, deviation, x.shape)).astype(np.float32), p.geometry) for x in both)


@pytest.mark.parametrize("preset", ["fast", "default", "accurate"])
@pytest.mark.parametrize(("d", "size", "noise"), [(2, (72, 84), 0.02), (2, (72, 84), 0.05), (3, (36, 42, 36), 0.02)])
def test_noisy_copies_stay_put(preset: str, d: int, size: tuple[int, ...], noise: float) -> None:
    p, *images = noisy_copies(d, size, noise)
    x = p.geometry.grid().reshape(-1, d)
    for fixed, moving in (images, images[::-1]):
        result = itk_nir.register(fixed, moving, preset=preset)
        assert np.linalg.norm(result.transform_points(x) - x, axis=1).mean() < 0.02 * min(p.geometry.spacing)
        assert result.report.jacobian_range == pytest.approx((1, 1), abs=1e-3)


def test_noise_hides_no_shift() -> None:
    p, fixed, moving = noisy_copies(2, (72, 84), 0.02)
    moving.SetOrigin(np.add(moving.GetOrigin(), 1.5).tolist())  # elsewhere in space, on the grid of its own
    field = itk_nir.register(fixed, moving, preset="fast").mapping.displacement_on(p.geometry).vectors
    assert field[p.fixed_labels > 0].mean(0) == pytest.approx([1.5, 1.5], abs=0.25)


@pytest.mark.parametrize("rising", [3.0, 8.0])
def test_more_noise_where_it_is_bright_is_no_change(rising: float) -> None:
    moved = 0
    for seed in range(5):
        _, fixed, moving = noisy_copies(2, (128, 154), 0.01, seed=seed, rising=rising)
        moved += itk_nir.register(fixed, moving, preset="fast").report.jacobian_range != pytest.approx((1, 1), abs=1e-3)
    assert moved == 0


def test_air_without_noise_is_no_change() -> None:
    p = brain(2, (128, 154), noise=0)
    rng, tissue = np.random.default_rng(1), p.fixed - p.fixed.min()
    images = [to_sitk((tissue * (1 + rng.normal(0, 0.05, tissue.shape))).astype(np.float32), p.geometry) for _ in "fm"]
    result = itk_nir.register(*images, preset="fast")
    u = result.mapping.displacement_on(p.geometry).vectors
    assert np.linalg.norm(u, axis=-1)[p.fixed_labels > 0].mean() < 0.03


def test_a_change_frees_little_of_a_volume() -> None:
    p = brain_phantom(3, (64, 76, 64), seed=3, noise=0)
    part = (p.fixed_labels == LABELS["ventricle"]) & (np.indices(p.fixed.shape)[2] > p.fixed.shape[2] / 2)
    u, volume = changed(part.astype(float), 0.15)
    seen = map_coordinates(p.fixed, np.indices(p.fixed.shape) + u, order=3, mode="nearest")
    rng, deviation = np.random.default_rng(1), 0.02 * float(np.ptp(p.fixed))
    fixed, moving = (
        to_sitk((x + rng.normal(0, deviation, x.shape)).astype(np.float32), p.geometry) for x in (seen, p.fixed)
    )
    result = itk_nir.register(fixed, moving, preset="default", linear="none")
    vectors = np.moveaxis(result.mapping.displacement_on(p.geometry).vectors[..., ::-1], -1, 0)
    found = determinants(vectors / np.array(p.geometry.spacing[::-1])[:, None, None, None])
    beyond = (distance_transform_edt(~part) > 20) & (p.fixed_labels > 0)
    assert beyond.mean() > 0.03
    assert abs(np.mean(np.log(found[beyond]))) < 1e-3
    assert logarithm(found, volume) > 0.6 * np.log(1.15)


@pytest.mark.parametrize(
    ("name", "amount", "draws"),
    [
        ("putamen", 0.2, 1), ("putamen", -0.1, 1), ("ventricle", 0.05, 1), ("ventricle", -0.1, 1),
        # Noise alone makes a tenth of these: the mean of some.
        ("putamen", 0.05, 3), ("putamen", -0.05, 3),
    ],
)  # fmt: skip
def test_a_change_of_volume_is_found_and_nothing_else(name: str, amount: float, draws: int) -> None:
    """Of the part itself: how a change is spread over what is flat inside, no image tells."""
    p = brain(2, (128, 154), noise=0)
    part = (p.fixed_labels == LABELS[name]) & (np.indices(p.fixed.shape)[1] > p.fixed.shape[1] / 2)
    u, volume = changed(part.astype(float), amount)
    seen = map_coordinates(p.fixed, np.indices(p.fixed.shape) + u, order=3, mode="nearest")
    beyond = (distance_transform_edt(~part) > 45) & (p.fixed_labels > 0)
    assert beyond.mean() > 0.05
    want = logarithm(determinants(u), volume)
    assert want == pytest.approx(np.log(1 + amount), rel=0.15)  # the measure finds the truth
    ratios = []
    for seed in range(1, 1 + draws):
        _, moving, fixed = noisy_copies(2, (128, 154), 0.02, moving=seen, seed=seed)
        result = itk_nir.register(fixed, moving, preset="accurate", linear="none")
        vectors = np.moveaxis(result.mapping.displacement_on(p.geometry).vectors[..., ::-1], -1, 0)
        found = determinants(vectors / np.array(p.geometry.spacing[::-1])[:, None, None])
        ratios.append(logarithm(found, volume) / want)
        assert abs(np.mean(np.log(found[beyond]))) < 1e-3
    assert min(ratios) > 0.5
    assert np.mean(ratios) == pytest.approx(1, abs=0.2)


def logarithm(determinant: np.ndarray, part: np.ndarray) -> float:
    """How much larger a part becomes, as a logarithm."""
    return float(np.log((determinant * part).sum() / part.sum()))


def changed(part: np.ndarray, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """Displacements ``(d, [Z,] Y, X)`` in voxels that make a part larger by `amount`; where they take to the part."""
    away = -np.stack(np.gradient(gaussian_filter(part, 4.0)))
    away /= np.abs(away).max()
    index, low, high = np.indices(part.shape), -4.0, 4.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        volume = map_coordinates(part, index + middle * away, order=1, mode="nearest")
        low, high = (middle, high) if part.sum() / volume.sum() - 1 < amount else (low, middle)
    return low * away, volume


def determinants(u: np.ndarray) -> np.ndarray:
    """Of the Jacobian of a map with the displacements ``(d, [Z,] Y, X)`` in voxels, in the order of the axes."""
    d = len(u)
    jacobian = np.stack([np.stack(np.gradient(component)) for component in u]) + np.eye(d).reshape(d, d, *(1,) * d)
    out: np.ndarray = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    return out

"""What does not move stays: no engine moves an image away from itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import itk_nir
from itk_nir.images import to_sitk
from itk_nir.phantom import LABELS, brain_phantom


@pytest.mark.parametrize("preset", ["fast", "default", "accurate"])
@pytest.mark.parametrize("d", [2, 3])
def test_image_onto_itself_stays_put(preset: str, d: int) -> None:
    p = brain_phantom(d, (40, 48, 40) if d == 3 else (72, 84), seed=2)
    image = to_sitk(p.fixed, p.geometry)
    result = itk_nir.register(image, image, preset=preset)
    x = p.geometry.grid().reshape(-1, d)
    assert np.linalg.norm(result.transform_points(x) - x, axis=1).max() < 0.02 * min(p.geometry.spacing)
    assert result.report.jacobian_range == pytest.approx((1, 1), abs=1e-3)


def noisy_copies(d: int, size: tuple[int, ...], noise: float, moving: np.ndarray | None = None) -> tuple[Any, Any, Any]:
    """The phantom twice with noise of its own, or the phantom and another image; a share of the range is its SD."""
    p = brain_phantom(d, size, seed=2, noise=0)
    rng = np.random.default_rng(1)
    deviation = noise * float(np.ptp(p.fixed))
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


def test_a_change_is_found_and_nothing_else() -> None:
    d, size = 2, (128, 154)
    p = brain_phantom(d, size, seed=2, noise=0)
    index = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in p.fixed.shape], indexing="ij"))
    part = (p.fixed_labels == LABELS["putamen"]) & (index[1] > p.fixed.shape[1] / 2)
    centre = index[:, part].mean(1)[:, None, None]
    away, reach = np.linalg.norm(index - centre, axis=0), 20.0
    # Things move towards the centre, and nothing does beyond the reach.
    u = 0.16 * (index - centre) * np.clip(1 - (away / reach) ** 2, 0, None) ** 3
    changed = map_coordinates(p.fixed, index + u, order=3, mode="nearest")
    want = np.log(determinants(u))
    _, moving, fixed = noisy_copies(d, size, 0.02, moving=changed)
    result = itk_nir.register(fixed, moving, preset="accurate", linear="none")
    vectors = np.moveaxis(result.mapping.displacement_on(p.geometry).vectors[..., ::-1], -1, 0)
    found = np.log(determinants(vectors / np.array(p.geometry.spacing[::-1])[:, None, None]))
    inside = away < 0.4 * reach
    assert np.mean(found[inside]) == pytest.approx(np.mean(want[inside]), rel=0.25)
    beyond = (away > 2.2 * reach) & (p.fixed_labels > 0)
    assert beyond.mean() > 0.1
    assert abs(np.mean(found[beyond])) < 1e-3


def determinants(u: np.ndarray) -> np.ndarray:
    """Of the Jacobian of a map with the displacements ``(2, Y, X)`` in voxels, in the order of the axes."""
    jacobian = np.stack([np.stack(np.gradient(component)) for component in u]) + np.eye(len(u))[:, :, None, None]
    out: np.ndarray = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    return out

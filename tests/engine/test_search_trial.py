"""What calls for a search although little moved: matches that are elsewhere, and images that are more alike there."""

from __future__ import annotations

import numpy as np
import torch

import itk_nir
from itk_nir.engine.search_trial import mostly_alike
from itk_nir.images import to_sitk
from itk_nir.phantom import sliding_phantom


def _smooth_noise(seed: int) -> torch.Tensor:
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, 28, 32, 36)))
    return torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[0, 0]


def test_most_of_two_images_is_alike() -> None:
    image, other = _smooth_noise(0), _smooth_noise(1)
    part = (slice(4, 20), slice(4, 20), slice(4, 20))
    moved = image.clone()
    moved[part] = other[part]
    assert mostly_alike(image, image, None)
    assert mostly_alike(image, moved, None)
    assert not mostly_alike(image, other, None)
    masked = torch.zeros_like(image)
    masked[part] = 1
    assert not mostly_alike(image, moved, masked)
    assert not mostly_alike(image, image, torch.zeros_like(image))  # nothing counts
    assert not mostly_alike(image, torch.zeros_like(image), None)  # nothing has structure
    for planes in (1, 2, 3, 6):  # fewer than a window has
        assert mostly_alike(image[:planes], image[:planes], None)


def test_organs_that_hardly_moved_are_searched_for() -> None:
    """Their texture is finer than a voxel of the first level, which therefore neither moves nor judges them."""
    made = sliding_phantom(18.0, spacing=(3, 3, 3))
    fixed, moving = (to_sitk(i, made.geometry) for i in (made.fixed, made.moving))
    result = itk_nir.register(fixed, moving, linear="none", preset="fast", threads=1)
    assert result.report.search.startswith("kept")
    organs = np.isin(made.fixed_labels, (2, 3))
    u = result.mapping.displacement_on(result.fixed.geometry).vectors
    assert np.linalg.norm(u - made.displacement, axis=-1)[organs].mean() < 3

"""What calls for a search although little moved: a part that is unlike, and matches that are elsewhere."""

from __future__ import annotations

import numpy as np
import torch

import itk_nir
from itk_nir.engine.search_trial import in_part_unlike
from itk_nir.images import to_sitk
from itk_nir.phantom import sliding_phantom


def _smooth_noise(seed: int) -> torch.Tensor:
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, 28, 32, 36)))
    return torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[0, 0]


def test_a_part_that_has_structure_in_both_and_no_counterpart() -> None:
    image, other = _smooth_noise(0), _smooth_noise(1)
    part = (slice(4, 20), slice(4, 20), slice(4, 20))
    moved, gone = image.clone(), image.clone()
    moved[part], gone[part] = other[part], 0.0
    assert in_part_unlike(image, moved, None)
    assert not in_part_unlike(image, image, None)
    assert not in_part_unlike(image, gone, None)  # nothing is there to be found
    assert not in_part_unlike(image, other, None)  # that is not a part
    masked = torch.ones_like(image)
    masked[part] = 0
    assert not in_part_unlike(image, moved, masked)
    assert not in_part_unlike(image, moved, torch.zeros_like(image))
    for planes in (1, 2, 3, 6):  # fewer than a window has
        assert not in_part_unlike(image[:planes], image[:planes], None)


def test_organs_that_hardly_moved_are_searched_for() -> None:
    """Their texture is finer than a voxel of the first level, which therefore neither moves nor judges them."""
    made = sliding_phantom(spacing=(3, 3, 3))
    fixed, moving = (to_sitk(i, made.geometry) for i in (made.fixed, made.moving))
    result = itk_nir.register(fixed, moving, linear="none", preset="fast", threads=1)
    assert result.report.search.startswith("kept")
    organs = np.isin(made.fixed_labels, (2, 3))
    u = result.mapping.displacement_on(result.fixed.geometry).vectors
    assert np.linalg.norm(u - made.displacement, axis=-1)[organs].mean() < 4

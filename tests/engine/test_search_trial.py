"""What calls for a search although little moved: matches that are elsewhere, and images that are more alike there."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import itk_nir
from itk_nir.engine.search_trial import LEAST_SHARE, MOST_ALIKE, alike_and_unlike
from itk_nir.images import to_sitk
from itk_nir.phantom import sliding_phantom


def _smooth_noise(seed: int) -> torch.Tensor:
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, 28, 32, 36)))
    return torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[0, 0]


def test_what_is_alike_and_what_has_no_counterpart() -> None:
    image, other = _smooth_noise(0), _smooth_noise(1)
    part = (slice(4, 20), slice(4, 20), slice(4, 20))
    moved, gone = image.clone(), image.clone()
    moved[part], gone[part] = other[part], 0.0

    def measured(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor | None = None) -> tuple[bool, bool]:
        alike, unlike = alike_and_unlike(a, b, weight)
        return alike > MOST_ALIKE, unlike > LEAST_SHARE

    assert measured(image, image) == (True, False)
    assert measured(image, moved) == (True, True)
    assert measured(image, gone) == (True, False)  # nothing is there to be found
    assert measured(image, other) == (False, True)  # that is not a part
    outside, inside = torch.ones_like(image), torch.zeros_like(image)
    outside[part], inside[part] = 0, 1
    assert measured(image, moved, outside) == (True, False)
    assert measured(image, moved, inside) == (False, True)
    nothing = torch.zeros_like(image)
    assert alike_and_unlike(image, image, nothing) == (0, 0)  # nothing counts
    assert alike_and_unlike(image, nothing, None) == (0, 0)  # nothing has structure
    for planes in (1, 2, 3, 6):  # fewer than a window has
        assert measured(image[:planes], image[:planes]) == (True, False)


@pytest.mark.parametrize(
    ("motion", "spacing", "seed"),
    [
        pytest.param(18.0, (3.5, 3.5, 3.5), 0, id="the images of the next level show it"),
        pytest.param(25.0, (4, 4, 4), 1, id="coarse voxels"),
        pytest.param(25.0, (3, 3, 5), 4, id="a part has no counterpart", marks=pytest.mark.slow),
    ],
)
def test_organs_that_hardly_moved_are_searched_for(
    motion: float, spacing: tuple[float, float, float], seed: int
) -> None:
    """Their texture is finer than a voxel of the first level, which therefore neither moves nor judges them."""
    made = sliding_phantom(motion, spacing=spacing, seed=seed)
    fixed, moving = (to_sitk(i, made.geometry) for i in (made.fixed, made.moving))
    result = itk_nir.register(fixed, moving, linear="none", preset="fast", threads=1)
    assert result.report.search.startswith("kept")
    organs = np.isin(made.fixed_labels, (2, 3))
    u = result.mapping.displacement_on(result.fixed.geometry).vectors
    assert np.linalg.norm(u - made.displacement, axis=-1)[organs].mean() < 3


def test_organs_whose_borders_could_not_be_told_apart_are_a_doubt() -> None:
    """There is no step that explains the images much better: their voxels are a quarter of the motion."""
    for motion, doubtful in ((16.0, True), (2.0, False)):
        made = sliding_phantom(motion, spacing=(4, 4, 4), seed=0)
        fixed, moving = (to_sitk(i, made.geometry) for i in (made.fixed, made.moving))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", itk_nir.VerdictWarning)
            verdict = itk_nir.register(fixed, moving, linear="none", preset="fast", threads=1).report.verdict
        assert ("slide along each other" in " ".join(verdict.reasons)) == doubtful, verdict
        assert (verdict.grade == "doubtful") == doubtful

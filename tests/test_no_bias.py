"""What does not move stays: no engine moves an image away from itself."""

from __future__ import annotations

import numpy as np
import pytest

import itk_nir
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom


@pytest.mark.parametrize("preset", ["fast", "default", "accurate"])
@pytest.mark.parametrize("d", [2, 3])
def test_image_onto_itself_stays_put(preset: str, d: int) -> None:
    p = brain_phantom(d, (40, 48, 40) if d == 3 else (72, 84), seed=2)
    image = to_sitk(p.fixed, p.geometry)
    result = itk_nir.register(image, image, preset=preset)
    x = p.geometry.grid().reshape(-1, d)
    assert np.linalg.norm(result.transform_points(x) - x, axis=1).max() < 0.02 * min(p.geometry.spacing)
    assert result.report.jacobian_range == pytest.approx((1, 1), abs=1e-3)

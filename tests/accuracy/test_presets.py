"""Every preset reaches the accuracy it is known for, on the native ops and on the reference.

The phantom's deformation is known, so that the error is a distance to the truth. `REACHED` holds what each preset
reaches (``python tests/accuracy/test_presets.py`` prints it anew); a test allows 15 % more, so that a preset that is
spoilt, or an engine that has become worse, fails here. Two-sided where it matters: less smoothness would lower the
error and fold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.engine.ops import dispatch
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom

#: Size of the phantom by dimension and ops; 4 mm or so a voxel. The reference is slow.
SIZES = {
    ("native", 2): (80, 96),
    ("native", 3): (44, 52, 44),
    ("reference", 2): (60, 72),
    ("reference", 3): (24, 28, 24),
}
#: (ops, dimension, preset) → mean true error in the brain (mm) and standard deviation of the log Jacobian there.
REACHED: dict[tuple[str, int, str], tuple[float, float]] = {}
#: How much more error, and how much more or less roughness, is allowed.
MARGIN = 0.15


def measure(kind: str, d: int, preset: Any) -> tuple[float, float]:
    """Mean true error (mm) and SD log J of one registration with everything at its default."""
    phantom = brain_phantom(d, SIZES[kind, d])
    grid = phantom.geometry
    fixed, moving = to_sitk(phantom.fixed, grid), to_sitk(phantom.moving, grid)
    with pytest.MonkeyPatch.context() as patch:
        if kind == "reference":
            patch.setattr(dispatch, "native_module", lambda: None)
        result = itk_nir.register(fixed, moving, preset=preset)
    brain = phantom.fixed_labels > 0
    points = grid.grid()[brain]
    error = np.linalg.norm(result.transform_points(points) - points - phantom.displacement[brain], axis=1).mean()
    assert result.report.folded_voxels == 0
    assert result.report.log_jacobian_sd is not None
    return float(error), result.report.log_jacobian_sd


CASES = [(kind, d, preset) for kind, d in SIZES for preset in ("fast", "default", "accurate", "paper")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "d", "preset"), CASES)
def test_a_preset_is_as_accurate_as_it_was(kind: str, d: int, preset: str) -> None:
    error, roughness = measure(kind, d, preset)
    known_error, known_roughness = REACHED[kind, d, preset]
    assert error < (1 + MARGIN) * known_error
    assert abs(roughness - known_roughness) < MARGIN * known_roughness


if __name__ == "__main__":
    for case in CASES:
        print(f"    {case!r}: ({', '.join(f'{x:.3f}' for x in measure(*case))}),", flush=True)

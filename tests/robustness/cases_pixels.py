"""Pixels that nothing can be registered by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

import itk_nir
from tests.robustness.campaign import Case


def _constant(folder: Path) -> float:
    flat = sitk.GetImageFromArray(np.full((12, 12), 3, np.float32))
    itk_nir.register(flat, flat, preset="fast")
    return 0.0


CASES = [Case("constant image", _constant, refused=r"is constant \(every voxel is 3\)")]

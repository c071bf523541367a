from __future__ import annotations

from pathlib import Path

import pytest

from itk_nir.images import save_image
from itk_nir.phantom import Phantom
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.model import CompositeTransform, DisplacementField


@pytest.fixture
def pair(phantom_2d: Phantom, tmp_path: Path) -> dict[str, str]:
    """Files of the 2D phantom: its images, labels and true transform."""
    names = ("fixed", "moving", "fixed_labels", "moving_labels")
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in names}
    for name, file in files.items():
        save_image(getattr(phantom_2d, name), phantom_2d.geometry, file)
    files["transform"] = str(tmp_path / "truth.h5")
    write_h5(CompositeTransform((DisplacementField(phantom_2d.geometry, phantom_2d.displacement),)), files["transform"])
    return files

"""Small tensors that the tests of the ops are run on."""

from __future__ import annotations

import torch
from torch import Tensor

#: A volume, and an image: a single plane.
SHAPES = {"3D": (13, 11, 19), "2D": (1, 23, 37)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

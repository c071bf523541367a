"""The Jacobian determinant of a displacement that is sampled on a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itk_nir.engine import ops


def jacobian_determinant(
    vectors: Tensor, spacing: float | Sequence[float] = 1.0, direction: Tensor | Sequence[Sequence[float]] | None = None
) -> Tensor:
    """Determinant of the Jacobian of ``p + u(p)`` at every voxel.

    Central differences inside, one-sided at the rim; an axis of one voxel counts as uniform. No gradient.

    Parameters
    ----------
    vectors : Tensor
        ``(d, [D,] H, W)``, the displacement in the unit of `spacing` (mm), components ``(x, y[, z])``.
    spacing : float or sequence of float
        Distance of neighbouring voxels, one number or ``(x, y[, z])``.
    direction : Tensor or sequence, optional
        ``(d, d)`` direction matrix of the grid; its columns are the grid's axes in LPS, and the components of `vectors`
        are LPS. Right for oblique and for left-handed grids. Left out: the components lie along the grid's axes.

    Returns
    -------
    Tensor
        ``([D,] H, W)``; 1 is no change of volume, 0 or less is a fold.

    Raises
    ------
    ValueError
        Shapes that do not belong together, or a spacing that is not above 0.
    """
    d = vectors.dim() - 1
    if d not in (2, 3) or vectors.shape[0] != d:
        raise ValueError(f"vectors on a grid are (d, [D,] H, W), got shape {tuple(vectors.shape)}")
    scale = [float(spacing)] * d if isinstance(spacing, int | float) else [float(s) for s in spacing]
    if len(scale) != d or min(scale) <= 0:
        raise ValueError(f"spacing needs {d} numbers above 0, got {spacing}")
    along = vectors.detach()
    if direction is not None:
        # Rᵀ (∂u/∂x) R has the determinant of the LPS Jacobian: turn the components to the axes of the grid first.
        rotation = torch.as_tensor(direction, dtype=vectors.dtype, device=vectors.device)
        if rotation.shape != (d, d):
            raise ValueError(f"direction must be ({d}, {d}), got {tuple(rotation.shape)}")
        along = torch.einsum("ji,j...->i...", rotation, along)
    voxels = vectors.new_zeros(3, *[1, *vectors.shape[1:]][-3:])
    for component, (values, s) in enumerate(zip(along, scale, strict=True)):
        torch.div(values, s, out=voxels[component].view(values.shape))
    return ops.jacobian_map(voxels).reshape(vectors.shape[1:])

"""What a plausible deformation costs: folds, gradients, curvature.

Displacements come in blocks ``(B, d, [D,] H, W)``, components ``(x, y[, z])`` along the axes of the block, in the unit
of `spacing` (mm). Everything is a mean over places of a quantity that is dimensionless, or made so by a stated length,
so one weight serves every image size and voxel size. Determinants and diffusion are those of
`itk_nir.engine.ops.reference`, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itk_nir.engine.ops import reference


def jacobian_penalty(determinant: Tensor, margin: float = 0.0) -> Tensor:
    """Mean of ``max(margin - det, 0)``; with margin 0 the penalty of Sun et al. (MedIA 97 (2024) 103249).

    Parameters
    ----------
    determinant : Tensor
        Determinants, of any shape.
    margin : float
        Determinant below which a place costs; above 0 it pushes before anything folds.

    Returns
    -------
    Tensor
        A scalar, dimensionless.
    """
    return torch.relu(margin - determinant).mean()


def block_jacobian(displacement: Tensor, spacing: float | Sequence[float]) -> Tensor:
    """Determinants of ``I + ∇u`` by forward differences inside blocks: one for every cell, from its lowest corner.

    Parameters
    ----------
    displacement : Tensor
        ``(B, d, [D,] H, W)`` in the unit of `spacing`.
    spacing : float or sequence of float
        Distance of neighbouring points, one number or ``(x, y[, z])``.

    Returns
    -------
    Tensor
        ``(B, [D - 1,] H - 1, W - 1)``; an axis of one point counts as uniform.
    """
    d = _dimension(displacement)
    step = displacement.new_tensor(_spacing(spacing, d)).reshape(1, d, *[1] * d)
    determinant: Tensor = torch.vmap(reference.jacobian)(_volumes(displacement / step))
    return determinant[:, 0] if d == 2 else determinant


def diffusion(displacement: Tensor, spacing: float | Sequence[float]) -> Tensor:
    """Mean of ``|∇u|² = Σ_ij (∂u_i/∂x_j)²`` by forward differences; an axis of one point adds nothing.

    Parameters
    ----------
    displacement : Tensor
        ``(B, d, [D,] H, W)`` in the unit of `spacing`.
    spacing : float or sequence of float
        Distance of neighbouring points, one number or ``(x, y[, z])``.

    Returns
    -------
    Tensor
        A scalar, dimensionless.
    """
    total = displacement.new_zeros(())
    for axis, step in enumerate(_spacing(spacing, _dimension(displacement))):
        along = displacement.dim() - 1 - axis
        if displacement.shape[along] > 1:
            # The derivative along an axis has fewer places than the block: each axis is a mean over its own.
            total = total + (displacement.diff(dim=along) / step).square().sum(1).mean()
    return total


def bending(displacement: Tensor, spacing: float | Sequence[float], length: float = 1.0) -> Tensor:
    """Mean of ``length² |∇²u|² = length² Σ_ijk (∂²u_i/∂x_j∂x_k)²`` [1]_; affine displacements cost nothing.

    Second differences, mixed ones over the cell; axes of too few points add nothing.

    Parameters
    ----------
    displacement : Tensor
        ``(B, d, [D,] H, W)`` in the unit of `spacing`.
    spacing : float or sequence of float
        Distance of neighbouring points, one number or ``(x, y[, z])``.
    length : float
        In the unit of `spacing`: a bend whose slope changes by one over this length costs one.

    Returns
    -------
    Tensor
        A scalar, dimensionless.

    References
    ----------
    .. [1] Rueckert, Sonoda, Hayes, Hill, Leach, Hawkes, "Nonrigid registration using free-form deformations", IEEE TMI
       18 (1999) 712, eq. 6.
    """
    d = _dimension(displacement)
    step = _spacing(spacing, d)
    total = displacement.new_zeros(())
    for j in range(d):
        first = torch.diff(displacement, dim=-1 - j) / step[j]
        for k in range(j, d):
            second = torch.diff(first, dim=-1 - k) / step[k]
            if second.numel():
                total = total + (1 if j == k else 2) * second.square().sum(1).mean()
    return total * length**2


def _volumes(displacement: Tensor) -> Tensor:
    """``(B, d, [D,] H, W)`` → ``(B, 3, Z, Y, X)``: 2D blocks as one plane that does not move along z."""
    if displacement.shape[1] == 3:
        return displacement
    return torch.cat([displacement, torch.zeros_like(displacement[:, :1])], 1).unsqueeze(2)


def _dimension(displacement: Tensor) -> int:
    d = displacement.dim() - 2
    if d not in (2, 3) or displacement.shape[1] != d:
        raise ValueError(f"a block of displacements is (B, d, [D,] H, W), got {tuple(displacement.shape)}")
    return d


def _spacing(spacing: float | Sequence[float], d: int) -> list[float]:
    values = [float(spacing)] * d if isinstance(spacing, int | float) else [float(s) for s in spacing]
    if len(values) != d or min(values) <= 0:
        raise ValueError(f"spacing needs {d} numbers above 0, got {spacing}")
    return values

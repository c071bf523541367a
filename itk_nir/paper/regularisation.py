"""What a plausible deformation costs: folds, gradients, curvature.

Displacements come in blocks ``(B, d, [D,] H, W)``, components ``(x, y[, z])`` along the axes of the block, in the unit
of `spacing` (mm). Everything is a mean over places of a quantity that is dimensionless, or made so by a stated length,
so one weight serves every image size and voxel size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itk_nir.paper.flow import determinant_of_identity_plus


def jacobian_penalty(determinant: Tensor, margin: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Mean of ``max(margin - det, 0)``, dimensionless; a margin above 0 pushes before anything folds.

    With margin 0 it is the penalty of Sun et al. (MedIA 97 (2024) 103249). `weights` has the determinant's shape.
    """
    cost = torch.relu(margin - determinant)
    return cost.mean() if weights is None else (weights * cost).sum() / weights.sum().clamp(min=1e-12)


def block_jacobian(displacement: Tensor, spacing: float | Sequence[float]) -> Tensor:
    """Determinants of ``I + ∇u`` by forward differences inside blocks.

    ``(B, d, [D,] H, W)`` → ``(B, [D - 1,] H - 1, W - 1)``: one value for every cell's lowest corner: a cell is
    folded where its three (two) edges from that corner turn over.
    """
    d = _dimension(displacement)
    step = _spacing(spacing, d)
    corner = (slice(None), slice(None), *[slice(None, -1)] * d)
    columns = []
    for axis in range(d):
        ahead = list(corner)
        ahead[-1 - axis] = slice(1, None)
        columns.append((displacement[tuple(ahead)] - displacement[corner]) / step[axis])
    return determinant_of_identity_plus([[columns[j][:, i] for j in range(d)] for i in range(d)])


def diffusion(displacement: Tensor, spacing: float | Sequence[float]) -> Tensor:
    """Mean of ``|∇u|² = Σ_ij (∂u_i/∂x_j)²``, dimensionless, by forward differences.

    An axis of one node adds nothing.
    """
    d = _dimension(displacement)
    step = _spacing(spacing, d)
    total = displacement.new_zeros(())
    for axis in range(d):
        first = torch.diff(displacement, dim=-1 - axis) / step[axis]
        if first.numel():
            total = total + first.square().sum(1).mean()
    return total


def bending(displacement: Tensor, spacing: float | Sequence[float], length: float = 1.0) -> Tensor:
    """Mean of ``length² |∇²u|² = length² Σ_ijk (∂²u_i/∂x_j∂x_k)²``, dimensionless.

    `length` is in the unit of `spacing` (1 mm): a bend whose slope changes by one over this length costs one. Affine
    displacements cost nothing. Second differences, mixed ones over the cell; axes of too few nodes add nothing.
    Rueckert et al., IEEE TMI 18 (1999) 712, eq. 6.
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

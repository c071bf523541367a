"""Removal of the few folds that the Jacobian-determinant penalty leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import spacings
from itk_nir.engine.lattice import Domain, gaussian_matrix
from itk_nir.engine.velocity_field import VelocityField

F64 = NDArray[np.float64]

#: Most rounds.
ROUNDS = 20


@ops.reused_memory()
def remove_folds(field: VelocityField, domain: Domain) -> VelocityField:
    """Smooth a field where its folds come from until no voxel is folded.

    A voxel is folded where the Jacobian determinant by central differences between voxels is not above zero. Which
    control points it comes from, of either field, is traced back through the integration; no others change.

    Parameters
    ----------
    field : VelocityField
        A trained field.
    domain : Domain
        The block of the fixed grid that is looked at.

    Returns
    -------
    VelocityField
        The same field where nothing is folded.
    """
    positions = [start + np.arange(n, dtype=float) for start, n in zip(domain.start, domain.size, strict=True)]
    voxel = torch.tensor(spacings(field.geometry), dtype=torch.float32).reshape(3, 1, 1, 1).to(field.device)
    kernels = [
        gaussian_matrix(n, np.arange(n, dtype=float), 1.0) for n in field.fine.control_points.shape[:0:-1]
    ]  # fmt: skip

    def smoothed(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where != 0, ops.separable(values, kernels, field.threads), values)

    for _ in range(ROUNDS):
        determinant = ops.jacobian_map(field.on_grid(positions).div_(voxel), field.threads)
        folded = torch.nonzero(determinant <= 0).cpu().numpy()
        del determinant
        if len(folded) == 0:
            break
        fine, coarse = _sources(field, folded, positions)
        with torch.no_grad():
            change = smoothed(field.fine(), fine) - field.fine()
            changed = field.fine.moved(change)
            unfolded = field.unfolded
            if coarse is not None:
                assert field.coarse_displacements is not None
                unfolded = smoothed(field.coarse_displacements[0], coarse)
            field = replace(field, fine=changed, unfolded=unfolded)
    return field


def _sources(field: VelocityField, folded: NDArray[np.int64], positions: list[F64]) -> tuple[Tensor, Tensor | None]:
    """Gradients that are not zero where control points of the fine and of the coarse field reach a folded voxel."""
    nodes = []
    for axis, p, at in zip(field.axes[::-1], positions[::-1], folded.T, strict=True):
        near = np.floor((p[at] - axis.start) / axis.spacing).astype(np.int64)[:, None] + np.arange(-1, 3)
        nodes.append(torch.from_numpy(near.clip(0, axis.count - 1)))
    z, y, x = nodes
    with torch.no_grad():
        v = field.fine().detach()
    v.requires_grad_()
    outer = field.coarse_displacements and field.coarse_displacements[0].detach().requires_grad_()
    u = field.displaced(v, outer) * field.spacing
    touched = torch.zeros_like(u)
    touched[:, z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]] = 1.0
    found = torch.autograd.grad((u * touched).sum(), [v] if outer is None else [v, outer])
    return found[0], None if outer is None else found[1]

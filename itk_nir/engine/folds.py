"""Removal of the few folds that the Jacobian-determinant penalty leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.dilation import dilated
from itk_nir.engine.images import Pair, spacings
from itk_nir.engine.lattice import Domain, gaussian_matrix
from itk_nir.engine.lesions import REACH, UNSEEN, lesions_of
from itk_nir.engine.velocity_field import VelocityField

F64 = NDArray[np.float64]

#: Most rounds.
ROUNDS = 20

#: What determinants beyond the faces of the block must keep: the displacement fades out there, which changes them.
FADING = 0.05


@ops.reused_memory()
def remove_folds(field: VelocityField, domain: Domain, pair: Pair | None = None) -> VelocityField:
    """Smooth a field where its folds come from until no voxel is folded.

    A voxel is folded where the Jacobian determinant by central differences between voxels is not above zero, or above
    `UNSEEN` around the lesions of the pair. Which control points it comes from, of either field, is traced back through
    the integration; no others change.

    Parameters
    ----------
    field : VelocityField
        A trained field.
    domain : Domain
        The block of the fixed grid that is looked at, and what is next to it.
    pair : Pair, optional
        The images, for their lesions.

    Returns
    -------
    VelocityField
        The same field where nothing is folded.
    """
    least = None if pair is None else _least(pair, field, domain)
    positions = [start + np.arange(n, dtype=float) for start, n in zip(domain.start, domain.size, strict=True)]
    voxel = torch.tensor(spacings(field.geometry), dtype=torch.float32).reshape(3, 1, 1, 1).to(field.device)
    kernels = [
        gaussian_matrix(n, np.arange(n, dtype=float), 1.0) for n in field.fine.control_points.shape[:0:-1]
    ]  # fmt: skip

    def smoothed(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where != 0, ops.separable(values, kernels, field.threads), values)

    for _ in range(ROUNDS):
        layers = [_folded(field, layer, voxel, FADING) for layer in _beyond_faces(positions)]
        folded = np.concatenate([_folded(field, positions, voxel, least), *layers])
        if len(folded) == 0:
            break
        fine, coarse = _sources(field, folded)
        with torch.no_grad():
            change = smoothed(field.fine(), fine) - field.fine()
            changed = field.fine.moved(change)
            unfolded = field.unfolded
            if coarse is not None:
                assert field.coarse_displacements is not None
                unfolded = smoothed(field.coarse_displacements[0], coarse)
            field = replace(field, fine=changed, unfolded=unfolded)
    return field


def _beyond_faces(positions: list[F64]) -> Iterator[list[F64]]:
    """The layers of voxels next to a block: what lies beyond it is folded where they are.

    The displacement goes on there as it is at the face, however it changes across the face inside.
    """
    longer = [p if len(p) == 1 else np.concatenate([p[:1] - 1, p, p[-1:] + 1]) for p in positions]
    for axis, p in enumerate(longer):
        if len(p) > 1:
            for end in (p[:1], p[-1:]):
                yield [*longer[:axis], end, *longer[axis + 1 :]]


def _least(pair: Pair, field: VelocityField, domain: Domain) -> Tensor | None:
    """``(Z, Y, X)``: what the determinants of the block must keep; None without any lesion."""
    inside = lesions_of(pair, field, domain)
    return None if inside is None else UNSEEN * dilated(inside, REACH).float()


def _folded(field: VelocityField, positions: list[F64], voxel: Tensor, least: Tensor | float | None = None) -> F64:
    """``(n, 3)``: the folded voxels among those at some positions, ``[x, y, z]``, or else the nearest of the block."""
    determinant = ops.jacobian_map(field.on_grid(positions).div_(voxel), field.threads)
    at = torch.nonzero(determinant <= (0.0 if least is None else least)).cpu().numpy()[:, ::-1]
    where = [field.continuation.along(a, p[i])[0] for a, (p, i) in enumerate(zip(positions, at.T, strict=True))]
    return np.stack(where, axis=-1)


def _sources(field: VelocityField, folded: F64) -> tuple[Tensor, Tensor | None]:
    """Gradients that are not zero where control points of the fine and of the coarse field reach a folded voxel."""
    nodes = []
    for axis, p in zip(field.axes[::-1], folded.T[::-1], strict=True):
        near = np.floor((p - axis.start) / axis.spacing).astype(np.int64)[:, None] + np.arange(-1, 3)
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

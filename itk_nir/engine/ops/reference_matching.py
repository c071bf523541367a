"""The ops of the search for large motion in plain torch, see `reference`."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

Whole = tuple[int, int, int]

#: What a cost of 1, that of unrelated positions, is stored as.
COST_SCALE = 8192


def displacements(reach: Whole, device: torch.device | None = None) -> Tensor:
    """All displacements, the labels of a cost, in their order.

    Parameters
    ----------
    reach : tuple of int
        The farthest along ``x, y, z``, voxels.
    device : torch.device, optional
        Where they are wanted.

    Returns
    -------
    Tensor
        ``(labels, 3)`` float32, components ``x, y, z``; x fastest.
    """
    ranges = (range(-r, r + 1) for r in reversed(reach))
    return torch.tensor([label[::-1] for label in itertools.product(*ranges)], dtype=torch.float32, device=device)


def _block_sums(values: Tensor, block: Whole) -> Tensor:
    missing = [-n % edge for n, edge in zip(values.shape[::-1], block, strict=True)]
    whole = functional.pad(values, [side for n in missing for side in (0, n)])
    (z, y, x), (a, b, c) = whole.shape, block
    return whole.reshape(z // c, c, y // b, b, x // a, a).sum((1, 3, 5))


def with_neighbours(values: Tensor) -> Tensor:
    """The sums over three neighbours along each of the last three axes; beyond the grid there is nothing.

    Parameters
    ----------
    values : Tensor
        ``(..., z, y, x)``.

    Returns
    -------
    Tensor
        Like `values`.
    """
    for axis in (-3, -2, -1):
        n = values.shape[axis]
        out = values.clone()
        out.narrow(axis, 0, n - 1).add_(values.narrow(axis, 1, n - 1))
        out.narrow(axis, 1, n - 1).add_(values.narrow(axis, 0, n - 1))
        values = out
    return values


def match_costs(
    fixed: Tensor, fixed_counts: Tensor, moving: Tensor, moving_counts: Tensor, reach: Whole, block: Whole,
    unrelated: int,
) -> Tensor:  # fmt: skip
    """How unlike two images are around every node under every displacement.

    The sum over the voxels of a block and of those around it (three along every axis that has several) of the absolute
    differences of their features, ``unrelated`` where the moving image does not count and 0 where the fixed one does
    not, over what it were if all were unrelated.

    Parameters
    ----------
    fixed, fixed_counts, moving, moving_counts, reach, block, unrelated
        See `matching.match_costs`.

    Returns
    -------
    Tensor
        ``(nodes, labels)`` uint16, see `matching.match_costs`.
    """
    nz, ny, nx = fixed.shape[:3]
    counts, there = fixed_counts != 0, moving_counts != 0
    whole = float(unrelated) * block[0] * block[1] * block[2]
    out = []
    for label in displacements(reach).long().tolist():
        x, y, z = (d + r for d, r in zip(label, reach, strict=True))
        seen = slice(z, z + nz), slice(y, y + ny), slice(x, x + nx)
        far = (fixed.int() - moving[seen].int()).abs().sum(-1)
        far = torch.where(there[seen], far, unrelated) * counts
        sums = _block_sums(far, block)
        around = 3 ** sum(n > 1 for n in sums.shape)
        cost = with_neighbours(sums).float() * (COST_SCALE / (whole * around)) + 0.5
        out.append(cost.clamp(max=65535).flatten().int())
    return torch.stack(out, 1).to(torch.uint16)


def best_matches(costs: Tensor, wanted: Tensor, reach: Whole, weight: float) -> tuple[Tensor, Tensor]:
    """The best displacement of every node, see `matching.best_matches`.

    Parameters
    ----------
    costs, wanted, reach, weight
        See `matching.best_matches`.

    Returns
    -------
    tuple of Tensor
        ``(3, nodes)`` and ``(nodes,)``.
    """
    labels = displacements(reach, wanted.device)
    plain = costs.int().to(wanted.dtype) / COST_SCALE
    far = (labels[None].to(wanted.dtype) - wanted.T[:, None]).square().sum(-1)
    at = (plain + weight * far).argmin(1)
    return labels.to(wanted.dtype)[at].T.contiguous(), plain.gather(1, at[:, None])[:, 0]

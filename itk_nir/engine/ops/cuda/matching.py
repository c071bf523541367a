"""The ops of the search for large motion on a card."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.launching import Size, blocks, launch, launch_each, size_of
from itk_nir.engine.ops.reference_matching import COST_SCALE

Whole = tuple[int, int, int]

FILE = "matching.cu"
#: Sums of blocks that are held at a time, four bytes each.
HELD = 1 << 24
#: What is numbered by 32 bits.
MOST_SUMS = 2**31 - 257


def match_costs(
    fixed: Tensor, fixed_counts: Tensor, moving: Tensor, moving_counts: Tensor, reach: Whole, block: Whole,
    unrelated: int, threads: int,
) -> Tensor:  # fmt: skip
    """See `matching.match_costs`.

    Parameters
    ----------
    fixed, fixed_counts, moving, moving_counts, reach, block, unrelated
        See `matching.match_costs`.
    threads : int
        Has no meaning here.

    Returns
    -------
    Tensor
        ``(nodes, labels)`` uint16.

    Raises
    ------
    ValueError
        More than two billion voxels, or nodes times displacements along x and y.
    """
    n = size_of(fixed_counts)
    nodes = tuple(blocks(size, edge) for size, edge in zip((n.x, n.y, n.z), block, strict=True))
    plane, deep = (2 * reach[0] + 1) * (2 * reach[1] + 1), 2 * reach[2] + 1
    count, labels = math.prod(nodes), plane * deep
    around = math.prod(3 if k > 1 else 1 for k in nodes)
    scale = COST_SCALE / (float(unrelated) * math.prod(block) * around)
    if max(count * plane, moving_counts.numel()) > MOST_SUMS:
        raise ValueError(
            f"match_costs: {count} nodes, {plane} displacements along x and y and {moving_counts.numel()} voxels are "
            "too many for a card"
        )
    together = min(deep, max(1, HELD // (count * plane)))
    sums = torch.empty(count * plane * together, dtype=torch.int32, device=fixed.device)
    out = torch.empty((count, labels), dtype=torch.uint16, device=fixed.device)
    images = [x.contiguous() for x in (fixed, fixed_counts, moving, moving_counts)]
    for first in range(0, deep, together):
        planes = min(together, deep - first)
        wanted = count * plane * planes
        launch_each(
            FILE, "block_differences", wanted, *images[:2], n, *images[2:], Size(*reach), Size(*block), unrelated,
            first, planes, sums,
        )  # fmt: skip
        launch_each(
            FILE, "costs_around", wanted, sums, Size(*nodes), plane * planes, float(scale),
            ctypes.c_longlong(first * plane), ctypes.c_longlong(labels), out,
        )  # fmt: skip
    return out


def best_matches(costs: Tensor, wanted: Tensor, reach: Whole, weight: float, threads: int) -> tuple[Tensor, Tensor]:
    """See `matching.best_matches`.

    Parameters
    ----------
    costs, wanted, reach, weight
        See `matching.best_matches`.
    threads : int
        Has no meaning here.

    Returns
    -------
    tuple of Tensor
        ``(3, nodes)`` displacements in voxels, and ``(nodes,)`` their costs, float32.
    """
    nodes = wanted.shape[1]
    at = wanted.detach().to(torch.float32).contiguous()
    found, cost = torch.empty_like(at), at.new_empty(nodes)
    launch(
        FILE, "best_matches", (nodes, 1, 1), (256, 1, 1), costs.contiguous(), at, ctypes.c_longlong(nodes),
        Size(*reach), float(weight), found, cost, shared=8 * 256,
    )  # fmt: skip
    return found, cost

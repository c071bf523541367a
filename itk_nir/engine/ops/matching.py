"""Ops of the search for large motion: costs of whole displacements around nodes, and the choice among them."""

from __future__ import annotations

import math

from torch import Tensor

from itk_nir.engine.ops import reference_matching
from itk_nir.engine.ops.dispatch import native_for, native_on
from itk_nir.engine.ops.limits import thread_count

Whole = tuple[int, int, int]

#: Farthest displacement along an axis, and longest edge of a block, voxels.
FARTHEST = 256


def labels_of(reach: Whole) -> int:
    """How many displacements there are.

    Parameters
    ----------
    reach : tuple of int
        The farthest along ``x, y, z``, voxels.

    Returns
    -------
    int
    """
    return math.prod(2 * r + 1 for r in reach)


def nodes_of(size: Whole, block: Whole) -> Whole:
    """How many nodes there are, one a block, the last of an axis cut.

    Parameters
    ----------
    size, block : tuple of int
        Voxels of the image and of a block, ``x, y, z``.

    Returns
    -------
    tuple of int
        ``(x, y, z)``.
    """
    return tuple(-(-n // b) for n, b in zip(size, block, strict=True))  # type: ignore[return-value]


def match_costs(
    fixed: Tensor, fixed_counts: Tensor, moving: Tensor, moving_counts: Tensor, reach: Whole, block: Whole,
    unrelated: int, threads: int = 1,
) -> Tensor:  # fmt: skip
    """How unlike two images are around every node under every displacement, see `reference_matching.match_costs`.

    Parameters
    ----------
    fixed : Tensor
        ``(Z, Y, X, 16)`` uint8: sixteen features of each voxel.
    fixed_counts : Tensor
        ``(Z, Y, X)`` uint8, not 0 where a voxel counts.
    moving : Tensor
        ``(Z + 2 reach, Y + 2 reach, X + 2 reach, 16)`` uint8: the moving image on the same grid and as far around.
    moving_counts : Tensor
        ``(Z + 2 reach, ...)`` uint8.
    reach : tuple of int
        The farthest displacement along ``x, y, z``, voxels.
    block : tuple of int
        Voxels of a block along ``x, y, z``, a node each.
    unrelated : int
        Summed difference of the features of two voxels that have nothing to do with each other, 1 to 4080.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(nodes, labels)`` uint16, nodes and labels with x fastest; 8192 is `unrelated` everywhere.

    Raises
    ------
    ValueError
        A reach or a block above 256 voxels.
    """
    if not all(0 <= r <= FARTHEST for r in reach) or not all(1 <= b <= FARTHEST for b in block):
        raise ValueError(
            f"match_costs: reach is 0 to {FARTHEST} and a block 1 to {FARTHEST} voxels, got {reach}, {block}"
        )
    native = native_on(fixed.device)
    if not native:
        return reference_matching.match_costs(
            fixed, fixed_counts, moving, moving_counts, reach, block, unrelated
        )  # fmt: skip
    result: Tensor = native.match_costs(
        fixed, fixed_counts, moving, moving_counts, reach, block, unrelated, thread_count(threads)
    )
    return result


def best_matches(costs: Tensor, wanted: Tensor, reach: Whole, weight: float, threads: int = 1) -> tuple[Tensor, Tensor]:
    """The displacement ``d`` of least ``cost(d) + weight |d - wanted|²`` of every node, the first of several.

    Parameters
    ----------
    costs : Tensor
        ``(nodes, labels)`` uint16, of `match_costs`.
    wanted : Tensor
        ``(3, nodes)`` float32, voxels.
    reach : tuple of int
        As of `match_costs`.
    weight : float
        At least 0; a cost of 1 is that of what is unrelated.
    threads : int
        Of the native op.

    Returns
    -------
    tuple of Tensor
        ``(3, nodes)`` displacements in voxels, and ``(nodes,)`` their costs, float32.
    """
    native = native_for(wanted)
    if not native:
        return reference_matching.best_matches(costs, wanted, reach, weight)
    result: tuple[Tensor, Tensor] = native.best_matches(costs, wanted, reach, weight, thread_count(threads))
    return result

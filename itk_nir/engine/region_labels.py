"""Regions of the fixed image, one for each value of a label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Region:
    """The voxels of one region, in the block of the fixed grid that holds them.

    Parameters
    ----------
    kind : str
        ``"rigid"`` (it keeps its shape) or ``"volume"`` (it keeps its volume).
    label : int
        Its value in the label map.
    start, size : tuple of int
        First voxel and size of the block, ``(x, y, z)``.
    inside : Tensor
        ``(z, y, x)`` bool, the voxels of the block that belong to it.
    """

    kind: Literal["rigid", "volume"]
    label: int
    start: tuple[int, int, int]
    size: tuple[int, int, int]
    inside: Tensor

    @classmethod
    def of(cls, kind: Literal["rigid", "volume"], label: int, inside: Tensor) -> Region:
        """The region of the voxels that are true.

        Parameters
        ----------
        kind : str
            ``"rigid"`` or ``"volume"``.
        label : int
            Its value in the label map.
        inside : Tensor
            ``(Z, Y, X)`` bool on the fixed grid, true somewhere.

        Returns
        -------
        Region
        """
        at = torch.nonzero(inside)
        first, last = at.amin(0).tolist(), at.amax(0).tolist()
        part = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        size = [b - a + 1 for a, b in zip(first, last, strict=True)]
        return cls(kind, label, tuple(first[::-1]), tuple(size[::-1]), inside[part].clone())


def regions_in(rigid: Tensor | None, volume: Tensor | None) -> tuple[Region, ...]:
    """The regions of two label maps.

    Parameters
    ----------
    rigid, volume : Tensor or None
        ``(Z, Y, X)`` whole numbers on the fixed grid; 0 is no region, every other value is one.

    Returns
    -------
    tuple of Region
        The rigid ones first, by rising label. What is rigid keeps its volume anyway: it is left out of the others.
    """
    out: list[Region] = []
    if rigid is not None:
        out += [Region.of("rigid", int(k), rigid == k) for k in torch.unique(rigid).tolist() if k != 0]
    if volume is not None:
        free = volume if rigid is None else torch.where(rigid != 0, torch.zeros_like(volume), volume)
        out += [Region.of("volume", int(k), free == k) for k in torch.unique(free).tolist() if k != 0]
    return tuple(out)

"""Label maps of two images: their soft overlap at one level, by the native operation that compares descriptors.

A label is an image of its own, 1 inside and 0 outside, smoothed and shrunk as the images are. Of two such images ``f``
and ``m``, ``1 - sum (f - m)² / (sum f² + sum m²)`` is their soft Dice overlap. The mean over the labels counts small
ones as much as large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.level_grids import LevelGrids, smoothed_samples
from itk_nir.engine.views import View

#: Labels that are compared in one pass: what the native operation has channels for, few and many.
FEW, MANY = 4, 12

#: Least amplitude of a label in its eight bits: labels are weighted by it, and one that is larger begins a new group.
LEAST = 1 / 16


@dataclass(frozen=True, eq=False)
class Labels:
    """Two label maps on the grids of a `Pair`.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(Z, Y, X)`` int16: 0, or the number of the label in `values`, counted from 1.
    values : tuple of int
        The values that the labels have in the user's maps.
    """

    fixed: Tensor
    moving: Tensor
    values: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Group:
    """Labels of like size, one a channel; `scale` makes a sum of weighted squares a mean of ``1 - Dice``."""

    fixed: Tensor
    moving: Tensor
    channels: int
    scale: float


@dataclass(frozen=True, eq=False)
class LevelLabels:
    """All labels at one level.

    Parameters
    ----------
    groups : tuple of _Group
        Labels, the smallest first.
    weight : Tensor or None
        ``(Z, Y, X)``, above 0.5 where the fixed image counts.
    """

    groups: tuple[_Group, ...]
    weight: Tensor | None

    @classmethod
    def of(
        cls, labels: Labels, pair: Pair, grids: LevelGrids, weight: Tensor | None, sigma: float, threads: int
    ) -> LevelLabels | None:
        """Smooth and shrink all labels.

        Parameters
        ----------
        labels : Labels
            The maps.
        pair : Pair
            Gives the grids, and the linear map that says how large the moving labels are in fixed space.
        grids : LevelGrids
            The voxels of the level.
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where the fixed image counts.
        sigma : float
            Of the Gaussian, in voxels of the level.
        threads : int
            CPU threads.

        Returns
        -------
        LevelLabels or None
            None where no label has a voxel that counts.
        """
        d = pair.fixed_geometry.dimension
        sides = (
            (labels.fixed, pair.fixed_geometry, grids.fixed, grids.factors),
            (labels.moving, pair.moving_geometry, grids.moving, grids.moving_factors),
        )
        # How many voxels of the fixed level a voxel of the moving one fills.
        voxel, theirs = (
            float(np.prod([f * s for f, s in zip(side[3][:d], side[1].spacing, strict=True)])) for side in sides
        )
        larger = theirs / voxel / abs(float(np.linalg.det(pair.linear[:d, :d])))
        inside = 1.0 if weight is None else (weight > 0.5).float()
        maps: list[tuple[float, Tensor, Tensor]] = []
        for number in range(1, len(labels.values) + 1):
            f, m = (
                smoothed_samples((numbers == number).float(), grid, positions, factors, sigma, threads)
                for numbers, grid, positions, factors in sides
            )
            size = float((f * inside).square().sum(dtype=torch.float64)) + larger * float(
                m.square().sum(dtype=torch.float64)
            )
            if size > 0:
                maps.append((size, f, m))
        if not maps:
            return None
        maps.sort(key=lambda one: one[0])
        groups = [[maps[0]]]
        for one in maps[1:]:
            if len(groups[-1]) == MANY or one[0] * LEAST**2 > groups[-1][0][0]:
                groups.append([])
            groups[-1].append(one)
        return cls(tuple(_group(g, len(maps)) for g in groups), weight)

    def __call__(self, view: View) -> Tensor:
        """One minus the mean soft Dice under a map.

        Parameters
        ----------
        view : View
            Of the moving side.

        Returns
        -------
        Tensor
            Scalar, with its gradient by the displacement.
        """
        parts = [g.scale * view.descriptor_difference(g.fixed, g.moving, self.weight, g.channels) for g in self.groups]
        return torch.stack(parts).sum()


def _group(maps: Sequence[tuple[float, Tensor, Tensor]], count: int) -> _Group:
    """Labels as channels, with the amplitudes by which the Dice of each counts the same."""
    first, channels = maps[0][0], FEW if len(maps) <= FEW else MANY
    packed = [torch.zeros((*like.shape, 16), dtype=torch.uint8, device=like.device) for like in maps[0][1:]]
    for channel, (size, *both) in enumerate(maps):
        amplitude = (first / size) ** 0.5
        for out, values in zip(packed, both, strict=True):
            out[..., channel] = (255 * amplitude * values).round().to(torch.uint8)
    fixed, moving = packed
    return _Group(fixed, moving, channels, channels / (first * count))

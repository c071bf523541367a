"""The voxels of a resolution level in both images, and the images and weights there.

Every tensor is 3D, ``(Z, Y, X)``; a 2D image is one with a single plane. Axes are given in the order ``x, y, z``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import Pair, shrink, sizes, spacings, voxel_map
from itk_nir.engine.lattice import Banded, Domain, gaussian_matrix
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: How much larger than a large mask, or than the object of an image without one, the block around it is at most.
USUAL_MARGINS = 1.5

#: Images whose structures differ in size by more than this many times along each axis in the mean have levels in voxels
#: that differ so too: else one of them would be blurred more than the other. Below it, the same mm serve both.
RESIZED = 1.3


@dataclass(frozen=True, eq=False)
class LevelGrids:
    """Where the voxels of a level lie, in voxels of the fixed and of the moving image, and how many make one.

    Parameters
    ----------
    fixed, moving : list of ndarray
        Sample positions along ``x, y, z``.
    factors, moving_factors : tuple of int
        Voxels of the image that make one of the level, along ``x, y, z``.
    """

    fixed: list[F64]
    factors: tuple[int, int, int]
    moving: list[F64]
    moving_factors: tuple[int, int, int]

    @classmethod
    def of(cls, pair: Pair, domain: Domain, factor: float) -> LevelGrids:
        """The level of a shrink factor.

        Parameters
        ----------
        pair : Pair
            The images.
        domain : Domain
            The block of the fixed grid that is worked on.
        factor : float
            Voxel size over the finest spacing of the fixed image; the moving image's level has the same mm, times the
            change of size by `pair.linear` where that is large (`RESIZED`).

        Returns
        -------
        LevelGrids
        """
        same = factor * min(pair.fixed_geometry.spacing) / min(pair.moving_geometry.spacing)
        scale = mean_scale(pair.linear)
        same *= scale if is_resized(scale) else 1.0
        factors, moving_factors = shrink(pair.fixed_geometry, factor), shrink(pair.moving_geometry, same)
        whole = Domain((0, 0, 0), sizes(pair.moving_geometry))
        return cls(domain.level_positions(factors), factors, whole.level_positions(moving_factors), moving_factors)

    @classmethod
    def whole(cls, pair: Pair, size: float) -> LevelGrids:
        """The whole fixed image, shrunk until its longest axis has about `size` voxels.

        Parameters
        ----------
        pair : Pair
            The images.
        size : float
            Voxels; an image that has fewer is not shrunk.

        Returns
        -------
        LevelGrids
        """
        geometry = pair.fixed_geometry
        return cls.of(pair, Domain((0, 0, 0), sizes(geometry)), shrink_factor(geometry, size))

    def voxel_map(self, pair: Pair, linear: F64) -> tuple[F64, F64]:
        """`voxel_map` between the samples of the level.

        Parameters
        ----------
        pair : Pair
            The images.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving.

        Returns
        -------
        tuple of ndarray
            ``(3, 4)`` and ``(3, 3)``, as of the function `voxel_map`.
        """
        index, vector = voxel_map(pair.fixed_geometry, pair.moving_geometry, linear)
        start = np.array([p[0] for p in self.fixed])
        moving_start = np.array([p[0] for p in self.moving])
        scale = 1 / np.asarray(self.moving_factors, float)
        out = np.empty((3, 4))
        out[:, :3] = scale[:, None] * index[:, :3] * np.asarray(self.factors, float)
        out[:, 3] = scale * (index[:, :3] @ start + index[:, 3] - moving_start)
        return out, scale[:, None] * vector

    def voxel(self, geometry: Geometry) -> tuple[float, float, float]:
        """Size of a voxel of the level.

        Parameters
        ----------
        geometry : Geometry
            The fixed grid.

        Returns
        -------
        tuple of float
            ``(x, y, z)`` mm.
        """
        return tuple(f * s for f, s in zip(self.factors, spacings(geometry), strict=True))  # type: ignore[return-value]

    def images(self, pair: Pair, fixed: Tensor, moving: Tensor, sigma: float, threads: int) -> tuple[Tensor, Tensor]:
        """Both (normalised) images at this level, smoothed by `sigma` voxels of the level.

        Parameters
        ----------
        pair : Pair
            Gives the grids.
        fixed, moving : Tensor
            ``(Z, Y, X)`` normalised images.
        sigma : float
            Of the Gaussian, in voxels of the level.
        threads : int
            CPU threads.

        Returns
        -------
        tuple of Tensor
            Fixed and moving image of the level, ``(z, y, x)``.
        """
        return (
            smoothed_samples(fixed, pair.fixed_geometry, self.fixed, self.factors, sigma, threads),
            smoothed_samples(moving, pair.moving_geometry, self.moving, self.moving_factors, sigma, threads),
        )

    def fixed_mask(self, mask: Tensor) -> Tensor:
        """A mask of the fixed image at the voxels of the level: that of the nearest voxel.

        Parameters
        ----------
        mask : Tensor
            ``(Z, Y, X)`` on the fixed grid.

        Returns
        -------
        Tensor
            ``(z, y, x)`` float32.
        """
        return at_nearest(mask, self.fixed)


def mean_scale(linear: F64) -> float:
    """How many times as large a linear map makes things, along each axis in the mean.

    Parameters
    ----------
    linear : ndarray
        ``(d + 1, d + 1)``.

    Returns
    -------
    float
    """
    return abs(float(np.linalg.det(linear[:-1, :-1]))) ** (1 / (len(linear) - 1))


def is_resized(scale: float) -> bool:
    """Whether a change of size is a large one.

    Parameters
    ----------
    scale : float
        Of `mean_scale`.

    Returns
    -------
    bool
        See `RESIZED`.
    """
    return not 1 / RESIZED < scale < RESIZED


def shrink_factor(geometry: Geometry, size: float) -> float:
    """Voxel size over the finest spacing at which the longest axis of a grid has about `size` voxels.

    Parameters
    ----------
    geometry : Geometry
        The grid.
    size : float
        Voxels.

    Returns
    -------
    float
        At least 1.
    """
    return max(1.0, 2 * geometry.half_extent / min(geometry.spacing) / size)


def at_nearest(mask: Tensor, positions: list[F64]) -> Tensor:
    """A mask at the voxels of a level: its value at the nearest voxel.

    Along an axis where the mask is thinner than two voxels of the level, which samples could miss, it is the largest
    value of all voxels nearest to the sample: a mask of one slice counts at every level.

    Parameters
    ----------
    mask : Tensor
        ``(Z, Y, X)``.
    positions : list of ndarray
        Along ``x, y, z``, in voxels.

    Returns
    -------
    Tensor
        ``(len z, len y, len x)`` float32.
    """
    for axis, p in zip((2, 1, 0), positions, strict=True):
        step = (p[-1] - p[0]) / (len(p) - 1) if len(p) > 1 else 1.0
        if 0 < thickness(mask, axis) < 2 * step:
            mask = _largest_nearest(mask, axis, p)
        else:
            mask = mask.index_select(axis, torch.from_numpy(np.rint(p).astype(np.int64)).to(mask.device))
    return mask.float()


def thickness(mask: Tensor, axis: int) -> int:
    """In how many planes across an axis anything counts.

    Parameters
    ----------
    mask : Tensor
        ``(Z, Y, X)``, above 0.5 where it counts.
    axis : int
        Of the tensor.

    Returns
    -------
    int
    """
    return int((mask.amax([k for k in range(3) if k != axis]) > 0.5).sum())


def margins(pair: Pair, domain: Domain, spacing: float) -> float:
    """On how much more than the mask the energy of the field is summed, while the similarity is a mean over the mask.

    Without this factor, the smaller or thinner a mask is, the stiffer the field would be inside it. The block around a
    mask has `B` cells where the mask has `M`. Those outside follow those inside, all the less the farther away they
    are, and so their energy grows like the square root of ``B / M``, here from `USUAL_MARGINS` on. Across a mask that
    is thinner than a cell, every cell counts as one at least.

    Parameters
    ----------
    pair : Pair
        The images and masks.
    domain : Domain
        The block of the fixed grid that is worked on.
    spacing : float
        Of the lattice, mm.

    Returns
    -------
    float
        At least 1; 1 without a fixed mask.
    """
    mask, larger, thinner = pair.fixed_weight, 1.0, 1.0
    if mask is None:
        return 1.0
    for axis, (n, s) in enumerate(zip(domain.size, spacings(pair.fixed_geometry), strict=True)):
        if n > 1:
            planes = max(1, thickness(mask, 2 - axis))
            larger *= max(1.0, n / planes)
            thinner *= max(1.0, spacing / (s * planes))
    return math.sqrt(max(1.0, larger / USUAL_MARGINS)) * thinner


def _largest_nearest(mask: Tensor, axis: int, positions: F64) -> Tensor:
    """The largest value of the voxels that are nearer to a position than to any other, along one axis."""
    shape = list(mask.shape)
    between = (positions[1:] + positions[:-1]) / 2
    to = torch.from_numpy(np.searchsorted(between, np.arange(shape[axis]))).to(mask.device)
    shape[axis] = len(positions)
    index = to.reshape([-1 if k == axis else 1 for k in range(3)]).expand(mask.shape)
    return mask.new_zeros(shape).scatter_reduce_(axis, index, mask, "amax")


def smoothed_samples(
    image: Tensor, geometry: Geometry, positions: list[F64], factors: tuple[int, ...], sigma: float, threads: int
) -> Tensor:
    """An image smoothed by `sigma` and sampled at the voxels of a level.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)`` on the grid `geometry`.
    geometry : Geometry
        The grid of the image.
    positions : list of ndarray
        Of the samples, in voxels of the image, along ``x, y, z``.
    factors : tuple of int
        Voxels of the image that make one of the level.
    sigma : float
        In voxels of the level; axes that are not shrunk are smoothed from 0.75 on only.
    threads : int
        CPU threads.

    Returns
    -------
    Tensor
        ``(len z, len y, len x)``.
    """
    return ops.separable(image[None], smoothing(geometry, positions, factors, sigma), threads)[0].contiguous()


def smoothing(geometry: Geometry, positions: list[F64], factors: tuple[int, ...], sigma: float) -> list[Banded]:
    """What `smoothed_samples` smooths and samples by.

    Parameters
    ----------
    geometry, positions, factors, sigma
        See there.

    Returns
    -------
    list of Banded
        Along ``x, y, z``.
    """
    return [
        gaussian_matrix(n, p, sigma * f if f > 1 or sigma > 0.75 else 0.0)
        for n, p, f in zip(sizes(geometry), positions, factors, strict=True)
    ]


def counting_weight(pair: Pair, grids: LevelGrids, displacement: Tensor, moving: Tensor, index: F64, vector: F64,
                    threads: int) -> Tensor | None:  # fmt: skip
    """Where a level looks: the fixed mask, times the moving mask and the moving image's extent under the map so far.

    Neither mask holds the lesion of its image.

    Parameters
    ----------
    pair : Pair
        The images and masks.
    grids : LevelGrids
        The voxels of the level.
    displacement : Tensor
        ``(3, Z, Y, X)`` mm along the fixed axes, at the voxels of the level.
    moving : Tensor
        The moving image of the level.
    index, vector : ndarray
        The matrices of `ops.warp` for them.
    threads : int
        CPU threads.

    Returns
    -------
    Tensor or None
        ``(Z, Y, X)``; None where everything counts.
    """
    counts, moving_counts = pair.fixed_counts, pair.moving_counts
    weight = None if counts is None else grids.fixed_mask(counts)
    inside = inside_image(displacement, index, vector, tuple(moving.shape))
    if inside is not None:
        weight = inside.float() if weight is None else weight * inside
    if moving_counts is not None:
        scale = np.array([(p[-1] - p[0]) / max(1, len(p) - 1) if len(p) > 1 else 1.0 for p in grids.moving])
        full_index = scale[:, None] * index
        full_index[:, 3] += np.array([p[0] for p in grids.moving])
        there = ops.warp(moving_counts, displacement, full_index, scale[:, None] * vector, threads) > 0.5
        weight = there.float() if weight is None else weight * there
    return weight


def window_centres(pair: Pair, grids: LevelGrids, displacement: Tensor, moving: Tensor, index: F64, vector: F64,
                   threads: int) -> Tensor | None:  # fmt: skip
    """Where windows may be centred: where a level looks, and in lesions.

    A window that is centred in a lesion looks at what is true around it. Without these windows, the nearer a voxel is
    to a lesion the less it would count, down to half at the border.

    Parameters
    ----------
    pair, grids, displacement, moving, index, vector, threads
        See `counting_weight`.

    Returns
    -------
    Tensor or None
        ``(Z, Y, X)``, 0 or 1; None without a lesion.
    """
    if pair.fixed_lesion is None and pair.moving_lesion is None:
        return None
    whole = replace(
        pair,
        fixed_weight=_filled(pair.fixed_weight, pair.fixed_lesion), fixed_lesion=None,
        moving_weight=_filled(pair.moving_weight, pair.moving_lesion), moving_lesion=None,
    )  # fmt: skip
    weight = counting_weight(whole, grids, displacement, moving, index, vector, threads)
    return torch.ones_like(displacement[0]) if weight is None else (weight > 0.5).float()


def _filled(weight: Tensor | None, lesion: Tensor | None) -> Tensor | None:
    """A mask with a lesion in it."""
    return weight if weight is None or lesion is None else torch.maximum(weight, lesion.to(weight))


def inside_image(displacement: Tensor, index: F64, vector: F64, size: tuple[int, ...]) -> Tensor | None:
    """Which voxels `ops.warp` takes from within an image.

    Parameters
    ----------
    displacement : Tensor
        ``(3, Z, Y, X)`` mm along the fixed axes.
    index, vector : ndarray
        The matrices of `ops.warp`.
    size : tuple of int
        ``(z, y, x)`` voxels of the image.

    Returns
    -------
    Tensor or None
        ``(Z, Y, X)`` bool; None where all of them.
    """
    nz, ny, nx = displacement.shape[1:]
    axes = [torch.arange(n, dtype=torch.float32, device=displacement.device) for n in (nz, ny, nx)]
    inside: Tensor | None = None
    # Some planes at a time on a CPU: what they need stays in the cache. A GPU would be waited for after each part.
    step = max(1, (1 << 18) // (ny * nx)) if displacement.device.type == "cpu" else nz
    for z in range(0, nz, step):
        u, good = displacement[:, z : z + step], None
        along = axes[2], axes[1][:, None], axes[0][z : z + step, None, None]
        for row, n in enumerate(size[::-1]):
            if n == 1:
                continue
            q = torch.full_like(u[0], float(index[row, 3]))
            for c in range(3):
                q.add_(along[c], alpha=float(index[row, c])).add_(u[c], alpha=float(vector[row, c]))
            # Half a voxel around the outermost centres still belongs to the image.
            this = (q >= -0.5) & (q <= n - 0.5)
            good = this if good is None else good & this
        if good is not None and not bool(good.all()):
            if inside is None:
                inside = torch.ones_like(displacement[0], dtype=torch.bool)
            inside[z : z + step] = good
    return inside

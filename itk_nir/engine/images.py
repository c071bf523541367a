"""The two images as the engine sees them: tensors, the maps between their voxels, their resolution levels.

Every tensor is 3D, ``(Z, Y, X)``; a 2D image is one with a single plane. Axes are given in the order ``x, y, z``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Domain, gaussian_matrix
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Intensity:
    """What was measured on an image once: where it differs from its background, and the scale of its values there.

    Parameters
    ----------
    background : float or None
        The value that fills the border, see `background`.
    mean, deviation : float
        Of the foreground: what the mask marks, or else what differs from the background.
    box : tuple of two arrays
        First and last index ``(x, y, z)`` of the foreground.
    """

    background: float | None
    mean: float
    deviation: float
    box: tuple[F64, F64]

    @classmethod
    def of(cls, image: Tensor, weight: Tensor | None) -> Intensity:
        """Measure an image; `weight` is its mask, 0 … 1, or None."""
        value = background(image)
        if weight is not None:
            inside = weight > 0.5
        else:
            inside = torch.ones_like(image, dtype=torch.bool) if value is None else image != value
        box = bounds(inside)
        if box is None:
            inside = torch.ones_like(inside)
            box = bounds(inside)
            assert box is not None
        values = image[inside]
        mean = float(values.mean(dtype=torch.float64))
        square = float(values.sub_(mean).square_().sum(dtype=torch.float64))
        return cls(value, mean, max(math.sqrt(square / max(1, len(values) - 1)), 1e-12), box)

    def normalised(self, image: Tensor) -> Tensor:
        """Zero mean and unit variance over the foreground.

        Correlations do not see a change of scale; their flatness threshold and the precision of float32 sums do.
        """
        # Metal, air around a body: far outliers would set the scale of everything else.
        return (image - self.mean).mul_(1 / self.deviation).clamp_(-6, 12)

    def foreground(self, image: Tensor) -> Tensor:
        """``(Z, Y, X)`` bool: what differs from the background; everything where there is none."""
        return torch.ones_like(image, dtype=torch.bool) if self.background is None else image != self.background


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images ready to be registered, with everything that does not change from level to level.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(Z, Y, X)`` float32, any intensity scale.
    fixed_geometry, moving_geometry : Geometry
        Their grids.
    linear : ndarray
        ``(d + 1, d + 1)`` LPS, fixed → moving, after the deformation.
    fixed_intensity, moving_intensity : Intensity
        What was measured on them.
    fixed_weight, moving_weight : Tensor or None
        Masks as 0 … 1, on their image's grid.
    """

    fixed: Tensor
    fixed_geometry: Geometry
    moving: Tensor
    moving_geometry: Geometry
    linear: F64
    fixed_intensity: Intensity
    moving_intensity: Intensity
    fixed_weight: Tensor | None = None
    moving_weight: Tensor | None = None

    @classmethod
    def make(
        cls,
        fixed: Tensor,
        fixed_geometry: Geometry,
        moving: Tensor,
        moving_geometry: Geometry,
        linear: F64,
        fixed_weight: Tensor | None = None,
        moving_weight: Tensor | None = None,
    ) -> Pair:
        """Measure both images, once for all stages."""
        measured = Intensity.of(fixed, fixed_weight), Intensity.of(moving, moving_weight)
        return cls(
            fixed, fixed_geometry, moving, moving_geometry, linear, *measured, fixed_weight, moving_weight
        )  # fmt: skip

    @property
    def counted(self) -> Tensor:
        """``(Z, Y, X)`` bool: the voxels of the fixed image that reported numbers are taken over."""
        if self.fixed_weight is not None:
            return self.fixed_weight > 0.5
        return self.fixed_intensity.foreground(self.fixed)


def as_volume(x: Tensor) -> Tensor:
    """``([1,] [D,] H, W)`` → ``(Z, Y, X)``, a 2D image as one plane."""
    while x.ndim > 3:
        x = x[0]
    return x[None] if x.ndim == 2 else x


def sizes(geometry: Geometry) -> tuple[int, int, int]:
    """``(x, y, z)`` size in voxels; 1 along z for a 2D image."""
    return tuple([*geometry.size, 1][:3])  # type: ignore[return-value]


def spacings(geometry: Geometry) -> tuple[float, float, float]:
    """``(x, y, z)`` spacing in mm; a 2D image's plane is as thick as its finest axis."""
    return tuple([*geometry.spacing, min(geometry.spacing)][:3])  # type: ignore[return-value]


def shrink(geometry: Geometry, factor: float) -> tuple[int, int, int]:
    """Whole shrink factors an axis that bring the voxels nearest to `factor` times the finest spacing."""
    finest = min(geometry.spacing)
    out = [max(1, min(n, round(factor * finest / s))) for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    return tuple([*out, 1][:3])  # type: ignore[return-value]


def voxel_map(fixed: Geometry, moving: Geometry, linear: F64) -> tuple[F64, F64]:
    """The matrices of `ops.warp` between two full grids.

    Returns
    -------
    grid_to_moving : ndarray
        ``(3, 4)``, fixed voxel index → moving voxel index through `linear`.
    displacement_to_moving : ndarray
        ``(3, 3)``, mm along the fixed axes → moving voxels. 2D is embedded with the identity along z.
    """
    d = fixed.dimension
    whole = moving.inverse_matrix @ linear @ fixed.matrix
    grid_to_moving = np.eye(4)[:3]
    grid_to_moving[:d, :d], grid_to_moving[:d, 3] = whole[:d, :d], whole[:d, d]
    displacement_to_moving = np.zeros((3, 3))
    displacement_to_moving[:d, :d] = whole[:d, :d] / np.asarray(fixed.spacing)
    return grid_to_moving, displacement_to_moving


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
        """The level of a shrink factor (of the fixed image's finest axis); the moving image's has the same mm."""
        same = factor * min(pair.fixed_geometry.spacing) / min(pair.moving_geometry.spacing)
        factors, moving_factors = shrink(pair.fixed_geometry, factor), shrink(pair.moving_geometry, same)
        whole = Domain((0, 0, 0), sizes(pair.moving_geometry))
        return cls(domain.level_positions(factors), factors, whole.level_positions(moving_factors), moving_factors)

    def voxel_map(self, pair: Pair, linear: F64) -> tuple[F64, F64]:
        """`voxel_map` between the samples of the level."""
        index, vector = voxel_map(pair.fixed_geometry, pair.moving_geometry, linear)
        start = np.array([p[0] for p in self.fixed])
        moving_start = np.array([p[0] for p in self.moving])
        scale = 1 / np.asarray(self.moving_factors, float)
        out = np.empty((3, 4))
        out[:, :3] = scale[:, None] * index[:, :3] * np.asarray(self.factors, float)
        out[:, 3] = scale * (index[:, :3] @ start + index[:, 3] - moving_start)
        return out, scale[:, None] * vector

    def voxel(self, geometry: Geometry) -> tuple[float, float, float]:
        """``(x, y, z)`` size in mm of a voxel of the level."""
        return tuple(f * s for f, s in zip(self.factors, spacings(geometry), strict=True))  # type: ignore[return-value]

    def images(self, pair: Pair, fixed: Tensor, moving: Tensor, sigma: float, threads: int) -> tuple[Tensor, Tensor]:
        """Both (normalised) images at this level, smoothed by `sigma` voxels of the level."""
        return (
            smoothed_samples(fixed, pair.fixed_geometry, self.fixed, self.factors, sigma, threads),
            smoothed_samples(moving, pair.moving_geometry, self.moving, self.moving_factors, sigma, threads),
        )

    def fixed_mask(self, mask: Tensor) -> Tensor:
        """A mask of the fixed image at the voxels of the level: that of the nearest voxel."""
        return at_nearest(mask, self.fixed)


def at_nearest(mask: Tensor, positions: list[F64]) -> Tensor:
    """A volume at the voxels nearest to `positions`, float32."""
    for axis, p in zip((2, 1, 0), positions, strict=True):
        mask = mask.index_select(axis, torch.from_numpy(np.rint(p).astype(np.int64)).to(mask.device))
    return mask.float()


def background(image: Tensor) -> float | None:
    """The value that fills the border of an image, where nine tenths of its border voxels share one, else None."""
    faces = []
    for axis, n in enumerate(image.shape):
        if n > 1:
            faces += [image.select(axis, 0).reshape(-1), image.select(axis, n - 1).reshape(-1)]
    border = torch.cat(faces)
    value = border.median()
    return float(value) if float((border == value).float().mean()) > 0.9 else None


def bounds(inside: Tensor) -> tuple[F64, F64] | None:
    """First and last index ``(x, y, z)`` of the true voxels, or None where there are none."""
    low, high = [], []
    for axis in (2, 1, 0):
        others = [a for a in range(3) if a != axis]
        line = inside
        for a in sorted(others, reverse=True):
            line = line.any(a)
        at = torch.nonzero(line)[:, 0]
        if len(at) == 0:
            return None
        low.append(float(at[0]))
        high.append(float(at[-1]))
    return np.array(low), np.array(high)


def common_domain(pair: Pair, margin: float) -> Domain:
    """The block of the fixed grid that holds the foreground of either image, `margin` mm around included."""
    d = pair.fixed_geometry.dimension
    index, _ = voxel_map(pair.fixed_geometry, pair.moving_geometry, pair.linear)
    back = np.linalg.inv(np.vstack([index, [0, 0, 0, 1]]))
    low, high = pair.moving_intensity.box
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    there = corners @ back[:3, :3].T + back[:3, 3]
    size = np.asarray(sizes(pair.fixed_geometry))
    pad = np.array([margin / s for s in spacings(pair.fixed_geometry)])
    first, last = pair.fixed_intensity.box
    if pair.fixed_weight is None:  # with a mask, nothing outside it is looked at
        first, last = np.minimum(first, there.min(0)), np.maximum(last, there.max(0))
    first = np.clip(np.floor(first - pad + 1e-6), 0, size - 1).astype(int)
    last = np.clip(np.ceil(last + pad - 1e-6), first, size - 1).astype(int)
    if d == 2:
        first[2] = last[2] = 0
    return Domain(tuple(int(v) for v in first), tuple(int(v) for v in last - first + 1))  # type: ignore[arg-type]


def smoothed_samples(
    image: Tensor, geometry: Geometry, positions: list[F64], factors: tuple[int, ...], sigma: float, threads: int
) -> Tensor:
    """An image smoothed by `sigma` and sampled at the voxels of a level.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)`` on the grid `geometry`.
    positions : list of ndarray
        Of the samples, in voxels of the image, along ``x, y, z``.
    factors : tuple of int
        Voxels of the image that make one of the level.
    sigma : float
        In voxels of the level; axes that are not shrunk are smoothed from 0.75 on only.
    """
    matrices = [
        gaussian_matrix(n, p, sigma * f if f > 1 or sigma > 0.75 else 0.0)
        for n, p, f in zip(sizes(geometry), positions, factors, strict=True)
    ]
    return ops.separable(image[None], matrices, threads)[0].contiguous()


def counting_weight(pair: Pair, grids: LevelGrids, displacement: Tensor, moving: Tensor, index: F64, vector: F64,
                    threads: int) -> Tensor | None:  # fmt: skip
    """Where a level looks: the fixed mask, times the moving mask and the moving image's extent under the map so far.

    Parameters
    ----------
    displacement : Tensor
        ``(3, Z, Y, X)`` at the voxels of the level.
    moving : Tensor
        The moving image of the level.
    index, vector : ndarray
        The matrices of `ops.warp` for them.

    Returns
    -------
    Tensor or None
        ``(Z, Y, X)``; None where everything counts.
    """
    weight = None if pair.fixed_weight is None else grids.fixed_mask(pair.fixed_weight)
    inside = inside_image(displacement, index, vector, tuple(moving.shape))
    if inside is not None:
        weight = inside.float() if weight is None else weight * inside
    if pair.moving_weight is not None:
        scale = np.array([(p[-1] - p[0]) / max(1, len(p) - 1) if len(p) > 1 else 1.0 for p in grids.moving])
        full_index = scale[:, None] * index
        full_index[:, 3] += np.array([p[0] for p in grids.moving])
        there = ops.warp(pair.moving_weight, displacement, full_index, scale[:, None] * vector, threads) > 0.5
        weight = there.float() if weight is None else weight * there
    return weight


def inside_image(displacement: Tensor, index: F64, vector: F64, size: tuple[int, ...]) -> Tensor | None:
    """``(Z, Y, X)`` bool: which voxels `ops.warp` takes from within an image of `size`; None where all of them."""
    nz, ny, nx = displacement.shape[1:]
    axes = [torch.arange(n, dtype=torch.float32, device=displacement.device) for n in (nz, ny, nx)]
    inside: Tensor | None = None
    step = max(1, (1 << 18) // (ny * nx))  # some planes at a time: what they need stays in the cache
    for z in range(0, nz, step):
        u = displacement[:, z : z + step]
        along = axes[2], axes[1][:, None], axes[0][z : z + step, None, None]
        for row, n in enumerate(size[::-1]):
            if n == 1:
                continue
            q = torch.full_like(u[0], float(index[row, 3]))
            for c in range(3):
                q.add_(along[c], alpha=float(index[row, c])).add_(u[c], alpha=float(vector[row, c]))
            # Half a voxel around the outermost centres still belongs to the image.
            good = (q >= -0.5) & (q <= n - 0.5)
            if not bool(good.all()):
                if inside is None:
                    inside = torch.ones_like(displacement[0], dtype=torch.bool)
                inside[z : z + step] &= good
    return inside

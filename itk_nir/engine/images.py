"""The two images as the engine sees them: tensors, the maps between their voxels, their resolution levels.

Every tensor is 3D, ``(Z, Y, X)``; a 2D image is one with a single plane. Axes are given in the order ``x, y, z``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.filling import continued
from itk_nir.engine.lattice import Domain
from itk_nir.engine.region_labels import Region
from itk_nir.geometry import Geometry

if TYPE_CHECKING:
    from itk_nir.engine.correspondences import Correspondences

F64 = NDArray[np.float64]

#: What normalised images are cut to.
_NORMALISED = (-6.0, 12.0)


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
    range : tuple of float
        Between which all but the outermost 0.2 % of the foreground on either side lie, and the background.
    """

    background: float | None
    mean: float
    deviation: float
    box: tuple[F64, F64]
    range: tuple[float, float]

    @classmethod
    def of(cls, image: Tensor, weight: Tensor | None, lesion: Tensor | None = None) -> Intensity:
        """Measure an image.

        Parameters
        ----------
        image : Tensor
            ``(Z, Y, X)``.
        weight : Tensor or None
            Its mask, 0 … 1.
        lesion : Tensor or None
            ``(Z, Y, X)`` bool, voxels that are not looked at.

        Returns
        -------
        Intensity
        """
        value = background(image)
        if weight is not None:
            inside = weight > 0.5
        else:
            inside = torch.ones_like(image, dtype=torch.bool) if value is None else image != value
        if lesion is not None:
            inside = inside & ~lesion
        box = bounds(inside)
        if box is None:
            inside = torch.ones_like(inside)
            box = bounds(inside)
            assert box is not None
        values = image[inside]
        ends = _range(values, value)
        mean = float(values.mean(dtype=torch.float64))
        square = sum(float(some.double().sub_(mean).square_().sum()) for some in values.split(1 << 20))
        return cls(value, mean, max(math.sqrt(square / max(1, len(values) - 1)), 1e-12), box, ends)

    def normalised(self, image: Tensor) -> Tensor:
        """Zero mean and unit variance over the foreground.

        Correlations do not see a change of scale; their flatness threshold and the precision of float32 sums do.

        Parameters
        ----------
        image : Tensor
            ``(Z, Y, X)``, the image that was measured.

        Returns
        -------
        Tensor
            ``(Z, Y, X)``.
        """
        # In float64, some at a time: the same image in other units is the same to the last bit, but for one in 1e8.
        # On a CPU what is in its cache, on a card what makes few launches.
        out = torch.empty(image.shape, dtype=image.dtype, device=image.device)
        part = 1 << (16 if image.device.type == "cpu" else 22)
        for some, values in zip(out.view(-1).split(part), image.reshape(-1).split(part), strict=True):
            # Metal, air around a body: far outliers would set the scale of everything else.
            some.copy_(values.double().sub_(self.mean).div_(self.deviation).clamp_(*_NORMALISED))
        return out

    @property
    def normalised_range(self) -> tuple[float, float]:
        """`range` in the units of `normalised`."""
        low, high = ((x - self.mean) / self.deviation for x in self.range)
        return max(low, _NORMALISED[0]), min(high, _NORMALISED[1])

    def foreground(self, image: Tensor) -> Tensor:
        """What differs from the background; everything where there is none.

        Parameters
        ----------
        image : Tensor
            ``(Z, Y, X)``, the image that was measured.

        Returns
        -------
        Tensor
            ``(Z, Y, X)`` bool.
        """
        return torch.ones_like(image, dtype=torch.bool) if self.background is None else image != self.background


def _range(values: Tensor, background: float | None) -> tuple[float, float]:
    """See `Intensity.range`; a hundred thousand voxels say enough."""
    some = values[:: max(1, len(values) // 100_000)].sort().values
    skipped = int(0.002 * len(some))
    ends = [float(some[skipped]), float(some[len(some) - 1 - skipped])]
    if background is not None:
        ends.append(background)
    return min(ends), max(ends)


@dataclass(frozen=True, eq=False)
class Channel:
    """One more pair of images on the grids of a `Pair`: another contrast, or a feature of both images.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(Z, Y, X)`` float32.
    fixed_intensity, moving_intensity : Intensity
        What was measured on them.
    """

    fixed: Tensor
    moving: Tensor
    fixed_intensity: Intensity
    moving_intensity: Intensity

    @property
    def moving_in_fixed_units(self) -> tuple[float, float]:
        """``(a, b)``: a normalised intensity ``m`` of the moving image is ``a m + b`` of the fixed one."""
        f, m = self.fixed_intensity, self.moving_intensity
        return m.deviation / f.deviation, (m.mean - f.mean) / f.deviation


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images ready to be registered, with everything that does not change from level to level.

    All lengths, here and in what works on a pair, are in one unit and one space: those of an
    `itk_nir.engine.frame.Frame`, or LPS mm.

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
    more : tuple of Channel
        Further channels on the same grids.
    fixed_lesion, moving_lesion : Tensor or None
        ``(Z, Y, X)`` bool, on their image's grid: what has no counterpart. The images are continued into it from around
        (`itk_nir.engine.filling`), and it never counts.
    regions : tuple of Region
        Of the fixed image, which stay rigid or keep their volume under the whole map.
    known : Correspondences or None
        Landmarks and labels.
    free : Tensor or None
        ``(Z, Y, X)`` bool, where the fixed image may be deformed (`itk_nir.engine.unchanged`); None for everywhere.
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
    more: tuple[Channel, ...] = ()
    fixed_lesion: Tensor | None = None
    moving_lesion: Tensor | None = None
    regions: tuple[Region, ...] = ()
    known: Correspondences | None = None
    free: Tensor | None = None

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
        more: Sequence[tuple[Tensor, Tensor]] = (),
        fixed_lesion: Tensor | None = None,
        moving_lesion: Tensor | None = None,
    ) -> Pair:
        """Measure both images, once for all stages.

        Parameters
        ----------
        fixed, moving : Tensor
            ``(Z, Y, X)`` float32.
        fixed_geometry, moving_geometry : Geometry
            Their grids.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, after the deformation.
        fixed_weight, moving_weight : Tensor or None
            Masks as 0 … 1, on their image's grid.
        more : sequence of (Tensor, Tensor)
            Fixed and moving image of further channels, on the same grids.
        fixed_lesion, moving_lesion : Tensor or None
            ``(Z, Y, X)`` bool, what has no counterpart; not everything.

        Returns
        -------
        Pair
        """

        def measured(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Intensity, Intensity]:
            of = Intensity.of(a, fixed_weight, fixed_lesion), Intensity.of(b, moving_weight, moving_lesion)
            a = a if fixed_lesion is None else continued(a, fixed_lesion)
            b = b if moving_lesion is None else continued(b, moving_lesion)
            return a, b, *of

        first, *channels = (Channel(*measured(a, b)) for a, b in ((fixed, moving), *more))
        return cls(
            first.fixed, fixed_geometry, first.moving, moving_geometry, linear, first.fixed_intensity,
            first.moving_intensity, fixed_weight, moving_weight, tuple(channels), fixed_lesion, moving_lesion,
        )  # fmt: skip

    @property
    def masked(self) -> bool:
        """Whether there is a mask, on either side."""
        return self.fixed_weight is not None or self.moving_weight is not None

    def without_masks(self) -> Pair:
        """The same images, all of which counts but for lesions; what was measured on them inside of masks stays.

        Returns
        -------
        Pair
        """
        return replace(self, fixed_weight=None, moving_weight=None)

    @property
    def fixed_counts(self) -> Tensor | None:
        """``(Z, Y, X)``, 0 … 1: the mask of the fixed image without its lesion; None where everything counts."""
        return _without(self.fixed_weight, self.fixed_lesion)

    @property
    def moving_counts(self) -> Tensor | None:
        """The same of the moving image."""
        return _without(self.moving_weight, self.moving_lesion)

    @property
    def channels(self) -> tuple[Channel, ...]:
        """All channels, the first among them."""
        return Channel(self.fixed, self.moving, self.fixed_intensity, self.moving_intensity), *self.more

    def normalised(self) -> list[tuple[Tensor, Tensor]]:
        """Fixed and moving image of every channel, zero mean and unit variance over their foreground.

        Returns
        -------
        list of (Tensor, Tensor)
            ``(Z, Y, X)`` and ``(Z', Y', X')``.
        """
        return [(c.fixed_intensity.normalised(c.fixed), c.moving_intensity.normalised(c.moving)) for c in self.channels]

    @property
    def counted(self) -> Tensor:
        """``(Z, Y, X)`` bool: the voxels of the fixed image that reported numbers are taken over."""
        if self.fixed_weight is not None:
            counted = self.fixed_weight > 0.5
        else:
            counted = self.fixed_intensity.foreground(self.fixed)
        return counted if self.fixed_lesion is None else counted & ~self.fixed_lesion


def _without(weight: Tensor | None, lesion: Tensor | None) -> Tensor | None:
    if lesion is None:
        return weight
    return (~lesion).float() if weight is None else torch.where(lesion, torch.zeros_like(weight), weight)


def as_volume(x: Tensor) -> Tensor:
    """An image as a volume, a 2D image as one plane.

    Parameters
    ----------
    x : Tensor
        ``([1,] [D,] H, W)``.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``.
    """
    while x.ndim > 3:
        x = x[0]
    return x[None] if x.ndim == 2 else x


def sizes(geometry: Geometry) -> tuple[int, int, int]:
    """Size in voxels of a 2D or 3D grid as three numbers.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Returns
    -------
    tuple of int
        ``(x, y, z)``; 1 along z for a 2D image.
    """
    return tuple([*geometry.size, 1][:3])  # type: ignore[return-value]


def spacings(geometry: Geometry) -> tuple[float, float, float]:
    """Spacing in mm of a 2D or 3D grid as three numbers.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Returns
    -------
    tuple of float
        ``(x, y, z)``; a 2D image's plane is as thick as its finest axis.
    """
    return tuple([*geometry.spacing, min(geometry.spacing)][:3])  # type: ignore[return-value]


def shrink(geometry: Geometry, factor: float) -> tuple[int, int, int]:
    """Whole shrink factors an axis that bring the voxels nearest to `factor` times the finest spacing.

    Parameters
    ----------
    geometry : Geometry
        The grid that is shrunk.
    factor : float
        Wanted voxel size over the finest spacing.

    Returns
    -------
    tuple of int
        ``(x, y, z)``, at least 1 each.
    """
    finest = min(geometry.spacing)
    out = [max(1, min(n, round(factor * finest / s))) for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    return tuple([*out, 1][:3])  # type: ignore[return-value]


def voxel_map(fixed: Geometry, moving: Geometry, linear: F64) -> tuple[F64, F64]:
    """The matrices of `ops.warp` between two full grids.

    Parameters
    ----------
    fixed, moving : Geometry
        The two grids.
    linear : ndarray
        ``(d + 1, d + 1)`` LPS mm, fixed → moving.

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


def background(image: Tensor) -> float | None:
    """The value that fills the border of an image, where nine tenths of its border voxels share one, else None.

    Parameters
    ----------
    image : Tensor
        ``(Z, Y, X)``.

    Returns
    -------
    float or None
    """
    faces = []
    for axis, n in enumerate(image.shape):
        if n > 1:
            faces += [image.select(axis, 0).reshape(-1), image.select(axis, n - 1).reshape(-1)]
    border = torch.cat(faces)
    value = border.median()
    return float(value) if float((border == value).float().mean()) > 0.9 else None


def bounds(inside: Tensor) -> tuple[F64, F64] | None:
    """First and last index ``(x, y, z)`` of the true voxels, or None where there are none.

    Parameters
    ----------
    inside : Tensor
        ``(Z, Y, X)`` bool.

    Returns
    -------
    tuple of ndarray, or None
    """
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
    """The block of the fixed grid that holds the foreground of either image, and a margin around.

    Parameters
    ----------
    pair : Pair
        The images.
    margin : float
        mm.

    Returns
    -------
    Domain
    """
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
    for region in pair.regions:
        first, last = np.minimum(first, region.start), np.maximum(last, np.add(region.start, region.size) - 1)
    first = np.clip(np.floor(first - pad + 1e-6), 0, size - 1).astype(int)
    last = np.clip(np.ceil(last + pad - 1e-6), first, size - 1).astype(int)
    if d == 2:
        first[2] = last[2] = 0
    return Domain(tuple(int(v) for v in first), tuple(int(v) for v in last - first + 1))  # type: ignore[arg-type]

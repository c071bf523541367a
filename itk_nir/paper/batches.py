"""The two images as the published design sees them, and the points that an iteration looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from itk_nir.engine.interpolation import bspline_coefficients
from itk_nir.errors import NothingToCompare
from itk_nir.geometry import Geometry
from itk_nir.paper.samplers import Sample, SamplerConfig, draw, mask_candidates
from itk_nir.paper.settings import PaperPhase, PaperSettings

if TYPE_CHECKING:
    from itk_nir.engine.images import Pair

#: Patch centres are drawn where the fixed image is above its minimum by this share of its range: patches of pure
#: background hold no window that counts.
FOREGROUND = 0.02


@dataclass(frozen=True, eq=False)
class Images:
    """The images on their device, and the maps between the frames that an iteration needs.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(1, [D,] H, W)``; spline coefficients where the interpolation is bspline.
    fixed_mask, moving_mask : Tensor or None
        The same shapes, 0 or 1.
    foreground : Tensor
        ``(M, d)`` voxels ``(x, y[, z])`` of the fixed image that its mask marks, or else that are no background; on the
        CPU.
    size, spacing : tuple
        Of the fixed grid, ``(x, y[, z])``; mm.
    half_extent : float
        The unit of field coordinates, mm (see `itk_nir.geometry`).
    index_to_field : tuple of two Tensors
        Scale and offset ``(d,)``: fixed voxel index → field coordinates.
    field_to_moving : tuple of two Tensors
        Transposed matrix ``(d, d)`` and offset ``(d,)``: field coordinates → moving voxel index, through the linear
        map.
    """

    fixed: Tensor
    moving: Tensor
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    foreground: Tensor
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    half_extent: float
    index_to_field: tuple[Tensor, Tensor]
    field_to_moving: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, pair: Pair, settings: PaperSettings) -> Images:
        """Both images of a pair.

        Parameters
        ----------
        pair : Pair
            The images, masks and linear map.
        settings : PaperSettings
            How the images are interpolated.

        Returns
        -------
        Images

        Raises
        ------
        NothingToCompare
            A mask that is zero everywhere.
        ValueError
            Tensors that are not of their geometries' shapes, or a linear map of another dimension.
        """
        g = pair.fixed_geometry
        d = g.dimension
        fixed = _channel(pair.fixed, g, "fixed image")
        moving = _channel(pair.moving, pair.moving_geometry, "moving image", d).to(fixed)
        fixed_mask = _mask(pair.fixed_weight, g, "fixed mask", fixed)
        moving_mask = _mask(pair.moving_weight, pair.moving_geometry, "moving mask", fixed)
        if fixed_mask is not None:
            foreground = mask_candidates(fixed_mask)
        else:
            low, high = fixed.min(), fixed.max()
            foreground = mask_candidates(fixed >= low + FOREGROUND * (high - low))

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(values, dtype=fixed.dtype, device=fixed.device)

        scale = np.asarray(g.spacing) / g.half_extent
        middle = (np.asarray(g.size) - 1) / 2
        to_moving = _field_to_moving(g, pair.moving_geometry, pair.linear)
        return cls(
            bspline_coefficients(fixed) if settings.fixed_interpolation == "bspline" else fixed,
            bspline_coefficients(moving) if settings.moving_interpolation == "bspline" else moving,
            fixed_mask,
            moving_mask,
            foreground,
            g.size,
            g.spacing,
            g.half_extent,
            (tensor(scale), tensor(-middle * scale)),
            (tensor(to_moving[:-1, :-1].T.copy()), tensor(to_moving[:-1, -1])),
        )

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.size)

    def candidates(self, sampler: SamplerConfig) -> Tensor | None:
        """The voxels that a sampler may draw from; None for the whole image.

        Uniform points cover the whole image unless there is a mask, patches never look at the background.

        Parameters
        ----------
        sampler : SamplerConfig
            The sampler.

        Returns
        -------
        Tensor or None
            ``(M, d)`` voxel indices ``(x, y[, z])``.
        """
        return self.foreground if self.fixed_mask is not None or sampler.name == "patches" else None

    def field_coordinates(self, index: Tensor) -> Tensor:
        """Fixed voxel indices as field coordinates.

        Parameters
        ----------
        index : Tensor
            ``(..., d)``, ``(x, y[, z])``.

        Returns
        -------
        Tensor
            ``(..., d)``.
        """
        scale, offset = self.index_to_field
        return index * scale + offset

    def moving_index(self, points: Tensor) -> Tensor:
        """Deformed field coordinates as voxel indices of the moving image.

        Parameters
        ----------
        points : Tensor
            ``(..., d)``.

        Returns
        -------
        Tensor
            ``(..., d)``, ``(x, y[, z])``.
        """
        matrix, offset = self.field_to_moving
        return points @ matrix + offset


def _channel(image: Tensor, geometry: Geometry, role: str, dimension: int | None = None) -> Tensor:
    """``(Z, Y, X)``, one plane for 2D → ``(1, [D,] H, W)``."""
    shape = (1, *geometry.shape)[-3:]
    if tuple(image.shape) != shape or geometry.dimension != (dimension or geometry.dimension):
        raise ValueError(f"the {role} must have shape {shape}, got {tuple(image.shape)}")
    return image.reshape(1, *geometry.shape)


def _mask(mask: Tensor | None, geometry: Geometry, role: str, like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    marked = _channel(mask, geometry, role) != 0
    if not bool(marked.any()):
        raise NothingToCompare(f"the {role} is empty")
    return marked.to(like)


def _field_to_moving(fixed: Geometry, moving: Geometry, linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(d + 1, d + 1)``: field coordinates of the fixed image → moving voxel index, through the linear map."""
    d = fixed.dimension
    matrix = np.asarray(linear, float)
    if matrix.shape != (d + 1, d + 1):
        raise ValueError(f"the linear map must be a ({d + 1}, {d + 1}) matrix, got {matrix.shape}")
    to_physical = np.eye(d + 1)
    to_physical[:-1, :-1] = fixed.rotation * fixed.half_extent
    to_physical[:-1, -1] = fixed.centre
    out: NDArray[np.float64] = moving.inverse_matrix @ matrix @ to_physical
    return out


@dataclass(frozen=True, eq=False)
class Batch:
    """What one iteration looks at.

    Parameters
    ----------
    sample : Sample
        The points of the sampler.
    probes : Tensor or None
        Cells for the penalties where those points are not regular, see `probe_cells`.
    """

    sample: Sample
    probes: Tensor | None

    @classmethod
    def draw(cls, images: Images, phase: PaperPhase, settings: PaperSettings, generator: Generator) -> Batch:
        """The points of one iteration of a phase.

        Parameters
        ----------
        images : Images
            What is looked at.
        phase : PaperPhase
            Gives the sampler.
        settings : PaperSettings
            Gives the number of probes.
        generator : Generator
            On the CPU; the only source of random numbers.

        Returns
        -------
        Batch
        """
        sample = draw(phase.sampler, images.size, generator, images.candidates(phase.sampler))
        needed = sample.spacing is None and settings.penalised
        return cls(sample, probe_cells(settings.probes, images, generator) if needed else None)


def probe_cells(count: int, images: Images, generator: Generator) -> Tensor:
    """Corners of cubic cells, one smallest voxel wide, at random places.

    Parameters
    ----------
    count : int
        How many.
    images : Images
        Whose fixed grid they lie in.
    generator : Generator
        A CPU generator.

    Returns
    -------
    Tensor
        ``(count, [2,] 2, 2, d)`` field coordinates.
    """
    d = images.dimension
    low = images.field_coordinates(torch.zeros(d).to(images.fixed))
    width = min(images.spacing) / images.half_extent
    unit = torch.rand(count, d, generator=generator).to(images.fixed)
    corners = low + unit * (-2 * low - width).clamp(min=0)
    axes = torch.meshgrid(*[torch.arange(2.0)] * d, indexing="ij")
    cell = torch.stack(axes[::-1], dim=-1).to(images.fixed) * width
    return corners.reshape(count, *[1] * d, d) + cell


def points_of(phase: PaperPhase, size: tuple[int, ...]) -> int:
    """How many points a phase looks at in all: its share of the work.

    Parameters
    ----------
    phase : PaperPhase
        The phase.
    size : tuple of int
        Of the fixed grid, ``(x, y[, z])``.

    Returns
    -------
    int
    """
    return phase.iterations * draw(phase.sampler, size, Generator().manual_seed(0)).points.numel()

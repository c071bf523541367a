"""Where an iteration looks: sets of points of the fixed grid, as continuous voxel indices.

A sampler is a function ``(config, size, generator, candidates) -> Sample``, found by its name in `SAMPLERS`. Block
samplers keep the neighbourhood of their points, which local correlation and finite differences need; ``random`` does
not. Every number is drawn from the generator that is passed in, on the CPU, so a sample does not depend on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from itk_nir.options import check, documented, option

#: ``(config, size, generator, candidates) -> Sample``, see `draw`.
Sampler = Callable[["SamplerConfig", Sequence[int], Generator, "Tensor | None"], "Sample"]


#: Offsets of ``downsize``.
OFFSETS = ("shared", "jitter", "centre")

#: Samplers by name.
SAMPLERS: dict[str, Sampler] = {}


@documented
@dataclass(frozen=True)
class SamplerConfig:
    """How the points of an iteration are drawn."""

    name: str = option("downsize", "which sampler", choices=SAMPLERS)
    points: int = option(1 << 16, "number of points of 'random'", at_least=1)
    stride: int = option(3, "voxels between neighbours, of 'downsize' and 'lattice'", at_least=1)
    offset: str = option(
        "shared",
        "where in its cell a point of 'downsize' lies: 'shared' draws one offset for all points, 'jitter' one for "
        "each, 'centre' none",
        choices=OFFSETS,
    )
    subvoxel: bool = option(False, "whether the offsets of 'downsize' are real numbers rather than whole voxels")
    patches: int = option(8, "number of cubes of 'patches'", at_least=1)
    edge: int = option(32, "voxels along each edge of a cube of 'patches' (fewer where the image ends)", at_least=1)
    margin: int = option(0, "extra points of 'lattice' beyond the image on every side", at_least=0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def blocks(self) -> bool:
        """Whether the points lie in blocks whose neighbours are neighbours in space."""
        return self.name != "random"

    @property
    def regular(self) -> bool:
        """Whether they do, and all neighbours along an axis lie equally far apart."""
        return self.blocks and not (self.name == "downsize" and self.offset == "jitter")


@dataclass(frozen=True)
class Sample:
    """Points of one iteration.

    Parameters
    ----------
    points : Tensor
        Continuous voxel indices ``(x, y[, z])``: ``(B, [D,] H, W, d)`` in blocks, or ``(N, d)`` scattered.
    spacing : float or None
        Distance of neighbours along every axis of a block, in voxels; None where it is not the same everywhere
        (scattered points, jittered blocks).
    """

    points: Tensor
    spacing: float | None


def draw(config: SamplerConfig, size: Sequence[int], generator: Generator, candidates: Tensor | None = None) -> Sample:
    """The points of one iteration.

    Parameters
    ----------
    config : SamplerConfig
        The sampler and its numbers.
    size : sequence of int
        Voxels of the grid along ``(x, y[, z])``.
    generator : Generator
        A CPU generator.
    candidates : Tensor, optional
        ``(M, d)`` voxel indices ``(x, y[, z])`` on the CPU, see `mask_candidates`: points of ``random`` and centres of
        ``patches`` are drawn among them only (``downsize`` and ``lattice`` cover the whole grid: weigh their points by
        the mask). Left out: the whole grid.

    Returns
    -------
    Sample
        The points and, where it is the same everywhere, their spacing.

    Raises
    ------
    ValueError
        There are no candidates, or the grid does not have 2 or 3 axes.
    """
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"a grid has 2 or 3 axes of at least 1 voxel, got size {tuple(size)}")
    if candidates is not None and (candidates.dim() != 2 or candidates.shape[1] != len(size) or not len(candidates)):
        raise ValueError(f"candidates must be (M, {len(size)}) with M at least 1, got {tuple(candidates.shape)}")
    return SAMPLERS[config.name](config, size, generator, candidates)


def mask_candidates(mask: Tensor) -> Tensor:
    """The voxels that a mask marks.

    Parameters
    ----------
    mask : Tensor
        ``(1, [D,] H, W)``; what is not zero is marked.

    Returns
    -------
    Tensor
        ``(M, d)`` indices ``(x, y[, z])``, on the CPU.
    """
    return mask[0].nonzero().flip(-1).cpu()


def _block(axes: Sequence[Tensor]) -> Tensor:
    """Index tensors along ``x, y[, z]`` → ``([D,] H, W, d)``."""
    grid = torch.meshgrid(*axes[::-1], indexing="ij")
    return torch.stack(grid[::-1], dim=-1)


def _random(config: SamplerConfig, size: Sequence[int], generator: Generator, candidates: Tensor | None) -> Sample:
    """Uniform in the box between the outer voxel centres, or in the voxels of the candidates."""
    d = len(size)
    last = torch.tensor([float(n - 1) for n in size])
    unit = torch.rand(config.points, d, generator=generator)
    if candidates is None:
        return Sample(unit * last, None)
    chosen = candidates[torch.randint(len(candidates), (config.points,), generator=generator)]
    return Sample(torch.minimum((chosen + unit - 0.5).clamp(min=0), last), None)


def _downsize(config: SamplerConfig, size: Sequence[int], generator: Generator, candidates: Tensor | None) -> Sample:
    """One point in every cell of `stride` voxels; the cells that fit, placed anywhere they fit."""
    cells = [max(n // config.stride, 1) for n in size]
    stride = float(config.stride)
    if config.offset == "jitter":
        # The whole array of cells is placed first, so that no voxel is left out for good; then a place in each cell.
        rest = torch.tensor([float(max(n - c * config.stride, 0)) for n, c in zip(size, cells, strict=True)])
        width = torch.tensor([float(min(config.stride, n)) for n in size])
        corner = torch.floor(torch.rand(len(size), generator=generator) * (rest + 1))
        within = torch.rand(*cells[::-1], len(size), generator=generator)
        within = within * (width - 1) if config.subvoxel else torch.floor(within * width)
        points = _block([torch.arange(c) * stride for c in cells]) + corner + within
        return Sample(points[None], None)
    rest = torch.tensor([n - 1 - (c - 1) * stride for n, c in zip(size, cells, strict=True)])
    if config.offset == "centre":
        start = rest / 2 if config.subvoxel else torch.floor(rest / 2)
    else:
        unit = torch.rand(len(size), generator=generator)
        start = unit * rest if config.subvoxel else torch.floor(unit * (rest + 1))
    return Sample(_block([torch.arange(c) * stride + s for c, s in zip(cells, start, strict=True)])[None], stride)


def _patches(config: SamplerConfig, size: Sequence[int], generator: Generator, candidates: Tensor | None) -> Sample:
    """Cubes of neighbouring voxels, wholly inside the grid."""
    edges = torch.tensor([min(config.edge, n) for n in size])
    rest = torch.tensor(list(size)) - edges
    if candidates is None:
        unit = torch.rand(config.patches, len(size), generator=generator)
        corners = torch.minimum((unit * (rest + 1)).long(), rest)
    else:
        centres = candidates[torch.randint(len(candidates), (config.patches,), generator=generator)]
        corners = torch.minimum((centres - edges // 2).clamp(min=0), rest)
    block = _block([torch.arange(float(e)) for e in edges])
    return Sample(block[None] + corners.reshape(-1, *[1] * len(size), len(size)), 1.0)


def _lattice(config: SamplerConfig, size: Sequence[int], generator: Generator, candidates: Tensor | None) -> Sample:
    """Nodes `stride` voxels apart that cover the grid from end to end, centred on it; nothing is drawn."""
    axes = []
    for n in size:
        cells = math.ceil((n - 1) / config.stride)
        start = (n - 1 - cells * config.stride) / 2 - config.margin * config.stride
        axes.append(start + config.stride * torch.arange(float(cells + 1 + 2 * config.margin)))
    return Sample(_block(axes)[None], float(config.stride))


SAMPLERS.update(random=_random, downsize=_downsize, patches=_patches, lattice=_lattice)

"""What a registration will need, from the sizes of the images and the settings alone: memory and time.

With ``F`` and ``M`` voxels of the fixed and the moving image, and ``f`` voxels of the fixed image at the finest level,

    bytes   = 60 MB + 24 F + 24 M + 142 min(f, 2e6) + 57 max(0, f - 2e6)      (each further channel: 24 F + 24 M more)
    seconds = 4 + 1.65e-7 / threads * (sum over the levels of iterations * voxels) + 5.5e-7 F

On a card, with ``c`` channels,

    bytes   = 200 MB + 48 c (F + M) + k f,      k = 110 with the compiled kernels, 1200 with torch's own ops

The 1200 are counted on a pretend device (docs/gpu.md), the 110 are what the kernels hold by design. Those for the
CPU are fitted to the measured peaks of 64^3 to 512^3 and of 512^2 and 1500^2 voxels, presets ``"fast"`` and
``"default"``, which they meet to about 15 %; the seconds to a factor of two on the machine of docs/benchmarks.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from itk_nir.engine.images import shrink
from itk_nir.engine.ops.dispatch import native_on
from itk_nir.geometry import Geometry
from itk_nir.settings import Settings

#: Bytes of a card for each voxel of the finest level, with the compiled kernels and with torch's own ops.
_WITH_KERNELS, _WITH_TORCH = 110, 1200

#: Voxels of the finest level beyond which an iteration works in parts.
_WHOLE = 2e6


def expected_memory(fixed: Geometry, moving: Geometry, settings: Settings, channels: int = 1) -> int | None:
    """Memory that a registration needs beyond what the process has before it.

    Parameters
    ----------
    fixed, moving : Geometry
        The grids of the images.
    settings : Settings
        What it is told.
    channels : int
        Of the images.

    Returns
    -------
    int or None
        Bytes; None for an engine that was not measured (preset ``"paper"``).

    Examples
    --------
    >>> from itk_nir import Geometry, make_settings
    >>> grid = Geometry.make((256, 256, 256))
    >>> round(expected_memory(grid, grid, make_settings("default")) / 1e9, 1)
    2.0
    """
    if settings.deformable.kind != "deformable":
        return None
    finest = math.prod(_size_at(fixed, settings.deformable.shrink_factors[-1]))
    images = 24 * channels * (math.prod(fixed.size) + math.prod(moving.size))
    return round(60e6 + images + 142 * min(finest, _WHOLE) + 57 * max(0.0, finest - _WHOLE))


def expected_card_memory(
    fixed: Geometry, moving: Geometry, settings: Settings, device: torch.device, channels: int = 1
) -> int | None:
    """Memory of a card that a registration needs there.

    Parameters
    ----------
    fixed, moving : Geometry
        The grids of the images.
    settings : Settings
        What it is told.
    device : torch.device
        The card.
    channels : int
        Of the images.

    Returns
    -------
    int or None
        Bytes; None for an engine that was not measured (preset ``"paper"``).
    """
    if settings.deformable.kind != "deformable":
        return None
    finest = math.prod(_size_at(fixed, settings.deformable.shrink_factors[-1]))
    each = _WITH_KERNELS if native_on(device) is not None else _WITH_TORCH
    return round(200e6 + 48 * channels * (math.prod(fixed.size) + math.prod(moving.size)) + each * finest)


def expected_seconds(fixed: Geometry, moving: Geometry, settings: Settings, threads: int) -> float | None:
    """Time that a registration takes on a CPU, roughly.

    Parameters
    ----------
    fixed, moving : Geometry
        The grids of the images.
    settings : Settings
        What it is told.
    threads : int
        CPU threads.

    Returns
    -------
    float or None
        Seconds; None for an engine that was not measured (preset ``"paper"``).

    Examples
    --------
    >>> from itk_nir import Geometry, make_settings
    >>> grid = Geometry.make((256, 256, 256))
    >>> 15 < expected_seconds(grid, grid, make_settings("default"), threads=2) < 60
    True
    """
    if settings.deformable.kind != "deformable":
        return None
    x, y, z = (*fixed.size, 1)[:3]
    told = settings.deformable.for_pair((x, y, z), 1)
    work = sum(
        n * math.prod(_size_at(fixed, k)) for n, k in zip(told.iterations, told.shrink_factors, strict=True)
    )  # fmt: skip
    return 4.0 + 1.65e-7 / threads * work + 5.5e-7 * math.prod(fixed.size)


def _size_at(grid: Geometry, factor: float) -> list[int]:
    """Voxels of a level along each axis."""
    return [math.ceil(n / s) for n, s in zip((*grid.size, 1)[:3], shrink(grid, factor), strict=True)]


def free_memory() -> int | None:
    """Memory that this process may still take; None where the system does not tell.

    Returns
    -------
    int or None
        Bytes: what the machine has left, or less where the process has a limit.
    """
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(max(0, limit - pages * resource.getpagesize()))
    except (OSError, ImportError, StopIteration, ValueError):  # another system than Linux
        return min(found, default=None)
    return min(found)


def free_card_memory(device: torch.device) -> int:
    """Memory of a card that this process may still take.

    Parameters
    ----------
    device : torch.device
        The card.

    Returns
    -------
    int
        Bytes: what is free on it, and what torch has but does not use.
    """
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def what_would_fit(
    fixed: Geometry, moving: Geometry, settings: Settings, device: torch.device | None = None, channels: int = 1
) -> str:
    """A sentence on the memory that a registration needs, and what needs less.

    Parameters
    ----------
    fixed, moving : Geometry
        The grids of the images.
    settings : Settings
        What it was told.
    device : torch.device, optional
        Where it runs; the CPU when left out.
    channels : int
        Of the images.

    Returns
    -------
    str
        One line.
    """
    card = None if device is None or device.type != "cuda" else device

    def needs(told: Settings) -> int | None:
        if card is not None:
            return expected_card_memory(fixed, moving, told, card, channels)
        return expected_memory(fixed, moving, told, channels)

    needed, free = needs(settings), free_memory() if card is None else free_card_memory(card)
    instead = "" if card is None else "; or use device='cpu'"
    if needed is None:
        return f"use smaller images{instead}"
    left = "" if free is None else f", {free / 1e9:.2g} GB are free{'' if card is None else ' there'}"
    text = f"this registration needs about {needed / 1e9:.2g} GB{'' if card is None else ' of the card'}{left}"
    from itk_nir.settings import make_settings

    factors = settings.deformable.shrink_factors
    for times in (2, 4):
        coarser = tuple(times * k for k in factors)
        spacing = settings.deformable.coarsest_grid_spacing * times
        less = needs(make_settings(settings, shrink_factors=coarser, coarsest_grid_spacing=spacing))
        if less is not None and (free is None or less < free or times == 4):
            return (
                f"{text}; images shrunk by {times}, or shrink_factors={coarser}, need about {less / 1e9:.2g} GB"
                f"{instead}"
            )
    return f"{text}{instead}"

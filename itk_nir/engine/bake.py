"""A trained field becomes plain grids: the displacement and its inverse, at a stated interpolation error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.flow import jacobian_determinant
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


class Field(Protocol):
    """What can be baked: a trained field that knows its displacement on any regular grid."""

    @property
    def geometry(self) -> Geometry:
        """The fixed grid."""

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """``(3, z, y, x)`` mm along the image axes at `positions` (voxels of the fixed image, ``[x, y, z]``)."""


@dataclass(frozen=True)
class BakeSettings:
    """How fine the baked grids are.

    Attributes
    ----------
    bake_error : largest error, in voxels of the fixed image, that linear interpolation between the points of the grid
        may make; the coarsest grid that keeps it is taken.
    bake_spacing : spacing of the grid in voxels of the fixed image instead (1 is the fixed grid itself).
    """

    bake_error: float = 0.05
    bake_spacing: int | None = None

    def __post_init__(self) -> None:
        if not self.bake_error > 0:
            raise ValueError(f"bake_error must be above zero (voxels), got {self.bake_error}")
        if self.bake_spacing is not None and self.bake_spacing < 1:
            raise ValueError(f"bake_spacing must be a whole number of voxels, at least 1, got {self.bake_spacing}")


@dataclass(frozen=True, eq=False)
class Baked:
    """The displacement and its inverse on one grid over fixed space.

    Attributes
    ----------
    geometry : the grid; same origin and direction as the fixed image, spacing a whole multiple of its.
    forward, inverse : ``shape + (d,)`` float32, mm LPS. ``p -> p + forward(p)`` and back again.
    spacing : of the grid, in voxels of the fixed image.
    interpolation_error : estimate of the largest error of linear interpolation between the grid's points, voxels (0
        at the points themselves).
    inverse_error_mean, inverse_error_p99 : distance, in voxels of the fixed image, between a fixed point and where
        forward followed by inverse takes it, over the voxels where the field was trained to look.
    folded, folded_percent, jacobian_range, log_jacobian_sd : of ``p -> p + u(p)`` on the grid, same voxels.
    """

    geometry: Geometry
    forward: NDArray[np.float32]
    inverse: NDArray[np.float32]
    spacing: int
    interpolation_error: float
    inverse_error_mean: float
    inverse_error_p99: float
    folded: int
    folded_percent: float
    jacobian_range: tuple[float, float]
    log_jacobian_sd: float


def bake_grid(geometry: Geometry, step: int) -> Geometry:
    """The grid of every `step`-th voxel, long enough to cover the last one."""
    size = [math.ceil((n - 1) / step) + 1 if n > 1 else 1 for n in geometry.size]
    return Geometry.make(size, [s * step for s in geometry.spacing], geometry.origin, geometry.direction)


def _positions(geometry: Geometry, step: int, between: int | None = None) -> list[F64]:
    """Points of the grid, in voxels of the fixed image; along axis `between` the points midway instead."""
    grid = bake_grid(geometry, step)
    out = []
    for axis, n in enumerate([*grid.size, 1][:3]):
        at = np.arange(n, dtype=float) * step
        out.append(at[:-1] + step / 2 if axis == between else at)
    return out


def interpolation_error(field: Field, step: int, limit: float = math.inf) -> float:
    """Largest distance between the field and its linear interpolation on a grid, voxels.

    Interpolation along one axis errs most midway between two points. The errors of the axes add up, in one place or
    another of the cell, over any of the axes; so the largest sum over any of them is taken (exact where the field is
    quadratic). Above `limit` a lower bound may be returned: the axes that are left no longer matter.
    """
    geometry = field.geometry
    nodes = field.on_grid(_positions(geometry, step))
    unit = min(geometry.spacing)
    sums: list[Tensor] = []
    largest = 0.0
    for a in range(geometry.dimension):
        axis = 3 - a
        n = nodes.shape[axis]
        if n < 2:
            continue
        gap = field.on_grid(_positions(geometry, step, a))
        gap -= (nodes.narrow(axis, 0, n - 1) + nodes.narrow(axis, 1, n - 1)) / 2
        for other in range(geometry.dimension):
            if other != a and nodes.shape[3 - other] > 1:
                gap = gap.narrow(3 - other, 0, nodes.shape[3 - other] - 1)
        largest = max(largest, _longest(gap) / unit, *(_longest(s + gap) / unit for s in sums))
        if a + 1 < geometry.dimension:
            sums += [gap, *(s + gap for s in sums)]
        if largest > limit:
            break
    return largest


def _longest(vectors: Tensor) -> float:
    return float(vectors.square().sum(0).max().sqrt())


def bake(field: Field, settings: BakeSettings, inside: Tensor, threads: int = 1) -> Baked:
    """Evaluate a field and its inverse on a grid.

    Parameters
    ----------
    field : trained field.
    settings : how fine.
    inside : ``(Z, Y, X)`` bool on the fixed grid: the voxels that the reported numbers are taken over.
    """
    geometry = field.geometry
    d = geometry.dimension
    error = math.inf
    free = settings.bake_spacing is None
    for step in (4, 3, 2, 1) if settings.bake_spacing is None else (settings.bake_spacing,):
        error = interpolation_error(field, step, settings.bake_error if free and step > 1 else math.inf)
        if error <= settings.bake_error:
            break
    grid = bake_grid(geometry, step)
    positions = _positions(geometry, step)
    u = field.on_grid(positions)
    spacing = torch.tensor([*grid.spacing, 1.0][:3], dtype=u.dtype, device=u.device).reshape(3, 1, 1, 1)
    voxels = u / spacing
    start = field.on_grid(positions, inverse=True) / spacing
    inverse, _ = ops.invert(voxels, start, threads)
    del start
    near = [torch.from_numpy(np.minimum(np.rint(p), n - 1).astype(np.int64)).to(inside.device)
            for p, n in zip(positions, [*geometry.size, 1][:3], strict=True)]  # fmt: skip
    chosen = inside
    for axis, at in zip((2, 1, 0), near, strict=True):
        chosen = chosen.index_select(axis, at)
    back = ops.compose(inverse, voxels, threads)
    gap = (back * (spacing / min(geometry.spacing))).square().sum(0).sqrt()[chosen]
    det = jacobian_determinant(u[:d] if d == 3 else u[:d, 0], grid.spacing)
    det = det[chosen if d == 3 else chosen[0]]
    folded = int((det <= 0).sum())
    count = max(1, det.numel())
    return Baked(
        geometry=grid,
        forward=_lps(voxels * spacing, grid),
        inverse=_lps(inverse * spacing, grid),
        spacing=step,
        interpolation_error=error,
        inverse_error_mean=float(gap.double().mean()) if gap.numel() else 0.0,
        inverse_error_p99=_percentile(gap, 0.99),
        folded=folded,
        folded_percent=100.0 * folded / count,
        jacobian_range=(float(det.min()), float(det.max())) if det.numel() else (1.0, 1.0),
        log_jacobian_sd=float(det.clamp(min=1e-3).log().double().std()) if det.numel() > 1 else 0.0,
    )


def _lps(vectors: Tensor, grid: Geometry) -> NDArray[np.float32]:
    """``(3, Z, Y, X)`` mm along the axes → ``shape + (d,)`` mm LPS."""
    d = grid.dimension
    v = vectors[:d] if d == 3 else vectors[:d, 0]
    rotation = torch.tensor(grid.direction, dtype=v.dtype, device=v.device)
    out = torch.empty(*v.shape[1:], d, dtype=v.dtype, device=v.device)
    for i in range(d):
        row = [float(r) for r in rotation[i]]
        terms = [(r, c) for c, r in enumerate(row) if r != 0.0]
        total = v[terms[0][1]] * terms[0][0]
        for r, c in terms[1:]:
            total = total + r * v[c]
        out[..., i] = total
    return np.ascontiguousarray(out.cpu().numpy())


def _percentile(values: Tensor, share: float) -> float:
    if values.numel() == 0:
        return 0.0
    k = min(values.numel(), max(1, math.ceil(share * values.numel())))
    return float(torch.from_numpy(np.partition(values.cpu().numpy(), k - 1)[k - 1 : k])[0])

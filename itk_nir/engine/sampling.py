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
from itk_nir.engine.settings import SamplingSettings
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


class Field(Protocol):
    """What can be sampled: a trained field that knows its displacement on any regular grid."""

    @property
    def geometry(self) -> Geometry:
        """The fixed grid."""

    @property
    def device(self) -> torch.device:
        """Where it is evaluated."""

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The coordinate networks in it, weights included."""

    @property
    def threads(self) -> int:
        """CPU threads that it uses."""

    def displacement(self, points: F64, inverse: bool = False) -> F64:
        """The displacement at physical points of fixed space.

        Parameters
        ----------
        points : ndarray
            ``(N, d)`` LPS mm.
        inverse : bool
            That of the inverse.

        Returns
        -------
        ndarray
            ``(N, d)`` LPS mm.
        """

    def on_grid(self, positions: list[F64], inverse: bool = False) -> Tensor:
        """The displacement on a regular grid.

        Parameters
        ----------
        positions : list of ndarray
            ``[x, y, z]``, in voxels of the fixed image.
        inverse : bool
            That of the inverse.

        Returns
        -------
        Tensor
            ``(3, z, y, x)`` mm along the image axes.
        """

    def at_rest(self) -> Field:
        """The field that moves nothing.

        Returns
        -------
        Field
            Over the same grid.
        """

    def curvature(self) -> Tensor:
        """Length of the second derivative of the displacement along each axis.

        Returns
        -------
        Tensor
            ``(3, ...)``, at points all over the grid, 1/mm.
        """

    def support(self) -> list[tuple[float, float]]:
        """First and last place along each axis where the displacement may be other than 0.

        Returns
        -------
        list of tuple of float
            ``[x, y, z]``, in voxels of the fixed image.
        """


@dataclass(frozen=True, eq=False)
class SampledField:
    """The displacement and its inverse on one grid over fixed space.

    Parameters
    ----------
    geometry : Geometry
        The grid; same origin and direction as the fixed image, spacing a whole multiple of its.
    forward, inverse : ndarray
        ``shape + (d,)`` float32, mm LPS. ``p -> p + forward(p)`` and back again.
    spacing : int
        Of the grid, in voxels of the fixed image.
    interpolation_error : float
        Bound, from the curvature of the field, of the error that linear interpolation makes between the grid's points,
        voxels (it makes none at the points themselves).
    inverse_error_mean, inverse_error_p99 : float
        Distance, in voxels of the fixed image, between a fixed point and where forward followed by inverse takes it,
        over the voxels that count.
    folded, folded_percent : int, float
        Voxels of the grid, of those that count, where the Jacobian determinant of ``p -> p + u(p)`` is not above 0, and
        their share.
    jacobian_range : tuple of float
        Least and largest determinant there.
    log_jacobian_sd : float
        Standard deviation of its natural logarithm there.
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


def every_nth_voxel(geometry: Geometry, step: int) -> Geometry:
    """The grid of every `step`-th voxel, long enough to cover the last one.

    Parameters
    ----------
    geometry : Geometry
        The grid.
    step : int
        At least 1.

    Returns
    -------
    Geometry
    """
    size = [math.ceil((n - 1) / step) + 1 if n > 1 else 1 for n in geometry.size]
    return Geometry.make(size, [s * step for s in geometry.spacing], geometry.origin, geometry.direction)


def sample_field(field: Field, settings: SamplingSettings, inside: Tensor | None = None) -> SampledField:
    """Evaluate a field and its inverse on a grid.

    Parameters
    ----------
    field : Field
        A trained field.
    settings : SamplingSettings
        How fine.
    inside : Tensor, optional
        ``(Z, Y, X)`` bool on the fixed grid: the voxels that the reported numbers are taken over; all when left out.

    Returns
    -------
    SampledField
    """
    threads = field.threads
    if inside is None:
        inside = torch.ones(*[1, *field.geometry.shape][-3:], dtype=torch.bool, device=field.device)
    geometry = field.geometry
    curvature = field.curvature()
    voxel = spacing_of(geometry).to(curvature.device)
    steps = (4, 3, 2, 1) if settings.field_spacing is None else (settings.field_spacing,)
    if settings.field_spacing is None and getattr(field, "overlay", None) is not None:
        steps = (1,)  # regions are kept on the fixed grid; a coarser one would cut across their borders
    for step in steps:
        error = float((curvature * (step * voxel) ** 2 / 8).sum(0).max()) / min(geometry.spacing)
        if error <= settings.max_interpolation_error:
            break
    del curvature
    grid = every_nth_voxel(geometry, step)
    # Beyond its support the field is zero, and so is the inverse: all work is done within it.
    part = [
        slice(max(0, math.floor(low / step) - 1), min(n, math.ceil(high / step) + 2))
        for (low, high), n in zip(field.support(), [*grid.size, 1][:3], strict=True)
    ]
    positions = [np.arange(s.start, s.stop, dtype=float) * step for s in part]
    spacing = spacing_of(grid).to(inside.device)
    scale = tuple(float(s) / min(geometry.spacing) for s in spacing.reshape(-1))
    voxels = field.on_grid(positions).div_(spacing)
    inverse, gap = ops.inverse_pair(voxels, field.on_grid(positions, inverse=True).div_(spacing), scale, threads)  # type: ignore[arg-type]
    chosen = inside
    for axis, (p, n) in zip((2, 1, 0), zip(positions, [*geometry.size, 1][:3], strict=True), strict=True):
        at = torch.from_numpy(np.minimum(np.rint(p), n - 1).astype(np.int64)).to(inside.device)
        chosen = chosen.index_select(axis, at)
    gap = gap[chosen]
    det = ops.jacobian_map(voxels, threads)[chosen]
    folded = int((det <= 0).sum())
    count = max(1, det.numel())
    inverse_lps = _lps(inverse.mul_(spacing), grid, part)
    del inverse
    return SampledField(
        geometry=grid,
        forward=_lps(voxels.mul_(spacing), grid, part),
        inverse=inverse_lps,
        spacing=step,
        interpolation_error=error,
        inverse_error_mean=float(gap.double().mean()) if gap.numel() else 0.0,
        inverse_error_p99=_percentile(gap, 0.99),
        folded=folded,
        folded_percent=100.0 * folded / count,
        jacobian_range=(float(det.min()), float(det.max())) if det.numel() else (1.0, 1.0),
        log_jacobian_sd=float(det.clamp(min=1e-3).log().double().std()) if det.numel() > 1 else 0.0,
    )


def spacing_of(geometry: Geometry) -> Tensor:
    """Spacing of a grid as a tensor.

    Parameters
    ----------
    geometry : Geometry
        The grid.

    Returns
    -------
    Tensor
        ``(3, 1, 1, 1)`` mm, 1 along z for 2D.
    """
    return torch.tensor([*geometry.spacing, 1.0][:3], dtype=torch.float32).reshape(3, 1, 1, 1)


def _lps(vectors: Tensor, grid: Geometry, part: list[slice]) -> NDArray[np.float32]:
    """``(3, Z, Y, X)`` mm along the axes, on a part of the grid → ``shape + (d,)`` mm LPS, zero elsewhere."""
    d = grid.dimension
    v = vectors[:d] if d == 3 else vectors[:d, 0]
    out = np.zeros((*grid.shape, d), np.float32)
    there = out[tuple(part[d - 1 :: -1])]
    for i, row in enumerate(np.asarray(grid.direction).reshape(d, d).astype(np.float32)):
        terms = [(c, float(r)) for c, r in enumerate(row) if r != 0.0]
        total = v[terms[0][0]] * terms[0][1]
        for c, r in terms[1:]:
            total = total + r * v[c]
        there[..., i] = total.cpu().numpy()
    return out


def _percentile(values: Tensor, share: float) -> float:
    if values.numel() == 0:
        return 0.0
    k = min(values.numel(), max(1, math.ceil(share * values.numel())))
    return float(torch.from_numpy(np.partition(values.cpu().numpy(), k - 1)[k - 1 : k])[0])

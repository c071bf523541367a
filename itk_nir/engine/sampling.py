"""A trained field becomes plain grids: the displacement and its inverse, at a stated interpolation error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.dilation import dilated
from itk_nir.engine.execution import host_array
from itk_nir.engine.frame import Frame
from itk_nir.engine.images import sizes, voxel_map
from itk_nir.engine.lattice import Ends
from itk_nir.engine.level_grids import inside_image
from itk_nir.engine.settings import SamplingSettings
from itk_nir.engine.whole_grid import on_whole_grid
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: What the faces of the fixed image may be moved outwards, in its voxels, without a longer grid for the inverse.
NEGLIGIBLE = 0.05


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
            ``[x, y, z]``, in voxels of the fixed image; may lie beyond it, and be infinite.
        """


@dataclass(frozen=True, eq=False)
class Target:
    """Where the map of a field and what follows it must land to be of use: inside the moving image.

    Parameters
    ----------
    grid_to_moving, displacement_to_moving : ndarray
        Of `itk_nir.engine.images.voxel_map`.
    size : tuple of int
        ``(z, y, x)`` voxels of the moving image.
    ends : list of tuple of float or None
        Between which positions, in voxels of the fixed image, its outermost voxels lie along ``[x, y[, z]]`` before the
        linear map; None where that is not known.
    """

    grid_to_moving: F64
    displacement_to_moving: F64
    size: tuple[int, ...]
    ends: Ends | None = None

    @classmethod
    def of(cls, fixed: Geometry, moving: Geometry, linear: F64, *, last: bool = True) -> Target:
        """A moving image behind a linear map.

        Parameters
        ----------
        fixed, moving : Geometry
            The two grids.
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving, after the deformation.
        last : bool
            False where another map follows, so that nothing can be said of where the moving image ends.

        Returns
        -------
        Target
        """
        index, vector = voxel_map(fixed, moving, linear)
        ends = None
        if last:
            back = np.linalg.inv(linear)
            corners = fixed.physical_to_index(moving.corners() @ back[:-1, :-1].T + back[:-1, -1])
            ends = list(zip(corners.min(axis=0).tolist(), corners.max(axis=0).tolist(), strict=True))
        return cls(index, vector, sizes(moving)[::-1], ends)

    def hit(self, displacement: Tensor, first: tuple[int, ...], step: int, spacing: Tensor) -> Tensor | None:
        """Which nodes of a grid are taken there.

        Parameters
        ----------
        displacement : Tensor
            ``(3, Z, Y, X)``, in spacings of the grid.
        first : tuple of int
            The first node, ``(x, y, z)``, in spacings of the grid.
        step : int
            Spacing of the grid, in voxels of the fixed image.
        spacing : Tensor
            The same in mm, ``(3, 1, 1, 1)``.

        Returns
        -------
        Tensor or None
            ``(Z, Y, X)`` bool; None where all of them.
        """
        index = self.grid_to_moving * [step, step, step, 1]
        index[:, 3] += index[:, :3] @ first
        return inside_image(displacement, index, self.displacement_to_moving * spacing.cpu().numpy().ravel(), self.size)


@dataclass(frozen=True, eq=False)
class SampledField:
    """The displacement on a grid over the fixed image, and its inverse on a grid over where that image is moved to.

    Parameters
    ----------
    geometry : Geometry
        The grid, its axes as those of the fixed image are stored, its spacing a whole multiple of that. It begins at
        the first voxel; along an axis that the engine has the other way round it ends at the last one.
    inverse_geometry : Geometry
        The grid of the inverse: the same one, continued by whole nodes where the displacement takes points of the fixed
        image out of it.
    forward, inverse : ndarray
        ``shape + (d,)`` float32, mm LPS. ``p -> p + forward(p)`` and back again.
    spacing : int
        Of the grid, in voxels of the fixed image.
    interpolation_error : float
        Bound, from the curvature of the field, of the error that linear interpolation makes between the grid's points,
        voxels (it makes none at the points themselves), within the block that was optimised.
    inverse_error_mean, inverse_error_p99 : float
        Distance, in voxels of the fixed image, between a fixed point and where forward followed by inverse takes it,
        over the voxels that count and are taken into the moving image.
    folded, folded_percent : int, float
        Voxels of the grid, of those that count, where the Jacobian determinant of ``p -> p + u(p)`` is not above 0, and
        their share.
    jacobian_range : tuple of float
        Least and largest determinant there.
    log_jacobian_sd : float
        Standard deviation of its natural logarithm there.
    """

    geometry: Geometry
    inverse_geometry: Geometry
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


def sample_field(
    field: Field, settings: SamplingSettings, inside: Tensor | None = None, target: Target | None = None,
    frame: Frame | None = None,
) -> SampledField:  # fmt: skip
    """Evaluate a field and its inverse on a grid.

    Parameters
    ----------
    field : Field
        A trained field.
    settings : SamplingSettings
        How fine.
    inside : Tensor, optional
        ``(Z, Y, X)`` bool on the field's grid: the voxels that the reported numbers are taken over; all when left out.
    target : Target, optional
        The moving image: the inverse's error is taken over the voxels that land in it; over all when left out.
    frame : Frame, optional
        What the field is measured in, on whose grid it is evaluated, of which its own may be a part; LPS mm along the
        axes as they are stored when left out.

    Returns
    -------
    SampledField
    """
    threads = field.threads
    frame = Frame.plain(field.geometry) if frame is None else frame
    field, inside = on_whole_grid(field, inside, frame.geometry)
    if inside is None:
        inside = torch.ones(*[1, *field.geometry.shape][-3:], dtype=torch.bool, device=field.device)
    geometry = field.geometry
    curvature = field.curvature()
    voxel = spacing_of(geometry).to(curvature.device)
    steps = (4, 3, 2, 1) if settings.field_spacing is None else (settings.field_spacing,)
    if settings.field_spacing is None and getattr(field, "overlay", None) is not None:
        steps = (1,)  # regions and steps are those of the fixed grid; a coarser one would cut across their borders
    for step in steps:
        error = float((curvature * (step * voxel) ** 2 / 8).sum(0).max()) / min(geometry.spacing)
        if error <= settings.max_interpolation_error:
            break
    del curvature
    grid = every_nth_voxel(geometry, step)
    spacing = spacing_of(grid).to(inside.device)
    outwards = _outwards(field, grid, step)
    low, high = _longer(outwards, grid, step, target)
    wide = grid if not any(low + high) else _continued(grid, low, high)
    part = _worked_on(field, grid, step, outwards, low, high)
    positions = [np.arange(first, last, dtype=float) * step for first, last in part]
    scale = tuple(float(s) / min(geometry.spacing) for s in spacing.reshape(-1))
    voxels = field.on_grid(positions).div_(spacing)
    inverse, gap = ops.inverse_pair(voxels, field.on_grid(positions, inverse=True).div_(spacing), scale, threads)  # type: ignore[arg-type]
    mm = spacing * frame.unit
    inverse_lps = _lps(
        inverse.mul_(mm), wide.shape, frame, [first + n for (first, _), n in zip(part, low, strict=True)]
    )
    del inverse
    if any(first < 0 or last > n for (first, last), n in zip(part, sizes(grid), strict=True)):
        # The rest is about the fixed image.
        cut = tuple(slice(max(0, -a), n - a) for (a, _), n in zip(part[::-1], sizes(grid)[::-1], strict=True))
        voxels, gap = voxels[(slice(None), *cut)].contiguous(), gap[cut]
        part = [(max(0, a), min(n, b)) for (a, b), n in zip(part, sizes(grid), strict=True)]
    chosen = _at_nodes(inside, part, step)
    if step > 1 and not bool(chosen.any()):  # a thin mask lies between them: those next to it
        chosen = _at_nodes(dilated(inside, step // 2), part, step)
    firsts = tuple(first for first, _ in part)
    landed = None if target is None else target.hit(voxels, firsts, step, spacing)
    gap = gap[chosen if landed is None else chosen & landed]
    det = ops.jacobian_map(voxels, threads)[chosen]
    folded = int((det <= 0).sum())
    count = max(1, det.numel())
    return SampledField(
        geometry=frame.stored_grid([0] * grid.dimension, grid.size, step),
        inverse_geometry=frame.stored_grid([-n for n in low[: grid.dimension]], wide.size, step),
        forward=_lps(voxels.mul_(mm), grid.shape, frame, list(firsts)),
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


def _at_nodes(inside: Tensor, part: Sequence[tuple[int, int]], step: int) -> Tensor:
    """A mask of the fixed grid at every so many voxels, from the first to before the last along ``[x, y, z]``."""
    for axis, ((first, last), n) in enumerate(zip(part[::-1], inside.shape, strict=True)):
        at = torch.arange(first, last, device=inside.device).mul_(step).clamp_(max=n - 1)
        inside = inside.index_select(axis, at)
    return inside


def _outwards(field: Field, grid: Geometry, step: int) -> list[tuple[float, float]]:
    """By how many nodes the first and the last face along ``[x, y, z]`` are moved outwards at most; 0 for next to none.

    The map of what lies inside lies within that of the faces.
    """
    n, out = sizes(grid), []
    spacing = spacing_of(grid).to(field.device)
    for axis in range(3):
        ends = []
        for end, sign in ((0, -1.0), (-1, 1.0)):
            positions = [np.arange(m, dtype=float) * step for m in n]
            positions[axis] = positions[axis][[end]]
            most = 0.0 if n[axis] == 1 else float((field.on_grid(positions)[axis] * sign / spacing[axis]).max())
            ends.append(most if most * step > NEGLIGIBLE else 0.0)
        out.append((ends[0], ends[1]))
    return out


def _longer(
    outwards: list[tuple[float, float]], grid: Geometry, step: int, target: Target | None
) -> tuple[list[int], list[int]]:
    """By how many nodes the inverse's grid is longer, before the first and after the last node of ``[x, y, z]``.

    As far as the faces are moved outwards, but not where the moving image has ended.
    """
    low, high = [0] * 3, [0] * 3
    for axis, (n, most) in enumerate(zip(grid.size, outwards, strict=False)):
        first, last = (-math.inf, math.inf) if target is None or target.ends is None else target.ends[axis]
        for out, far, there in ((low, most[0], -first / step), (high, most[1], last / step - (n - 1))):
            needed = min(far, there)
            if needed * step > NEGLIGIBLE:  # a node more: positions are interpolated
                out[axis] = min(math.ceil(needed - 1e-3) + 1, n)
    return low, high


def _continued(grid: Geometry, low: list[int], high: list[int]) -> Geometry:
    """A grid with more nodes before the first and after the last along ``[x, y, z]``."""
    d = grid.dimension
    return grid.crop([-a for a in low[:d]], [n + a + b for n, a, b in zip(grid.size, low, high, strict=False)])


def _worked_on(
    field: Field, grid: Geometry, step: int, outwards: list[tuple[float, float]], low: list[int], high: list[int]
) -> list[tuple[int, int]]:
    """The nodes, first and behind the last along ``[x, y, z]``, on which the field and its inverse are made.

    Beyond its support the field is zero, and so is the inverse. Where a face is moved outwards, a node more than the
    grid of the inverse has: `ops.inverse_pair` takes what leaves the nodes that it is given to the outermost of them,
    and spoils these.
    """
    part = []
    for (start, end), n, out, a, b in zip(field.support(), sizes(grid), outwards, low, high, strict=True):
        first, last = -a - (out[0] > 0), n + b + (out[1] > 0)
        part.append((int(max(first, np.floor(start / step) - 1)), int(min(last, np.ceil(end / step) + 2))))
    return part


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


def _lps(vectors: Tensor, shape: tuple[int, ...], frame: Frame, first: list[int]) -> NDArray[np.float32]:
    """``(3, Z, Y, X)`` mm along the axes, from node `first` ``[x, y, z]`` on → mm LPS as stored, elsewhere zero."""
    d, grid = len(shape), [*shape[::-1], 1][:3]
    ends = [(a, min(a + m, n)) for a, m, n in zip(first, vectors.shape[:0:-1], grid, strict=True)]
    v = vectors[(slice(d), *(slice(max(0, -a), b - a) for a, b in reversed(ends)))]
    v = v if d == 3 else v[:, 0]
    there = tuple(slice(max(0, a), b) for a, b in ends[d - 1 :: -1])
    rows = frame.axes.geometry(frame.stored).rotation.astype(np.float32)
    if v.device.type == "cpu":  # a component at a time, straight to where it belongs
        out = np.zeros((*frame.axes.stored_shape(shape), d), np.float32)
        place = frame.axes.canonical(out)[there]
        for i, row in enumerate(rows):
            place[..., i] = _combined(v, row).numpy()
        return out
    whole = v.new_zeros(*shape, d)
    for i, row in enumerate(rows):
        whole[there][..., i] = _combined(v, row)
    return host_array(frame.axes.stored(whole))


def _combined(v: Tensor, factors: NDArray[np.float32]) -> Tensor:
    """The sum of components times factors."""
    (c, factor), *others = [(c, float(r)) for c, r in enumerate(factors) if r != 0.0]
    total = v[c] * factor
    for c, factor in others:
        total = total + factor * v[c]
    return total


def _percentile(values: Tensor, share: float) -> float:
    if values.numel() == 0:
        return 0.0
    k = min(values.numel(), max(1, math.ceil(share * values.numel())))
    if values.device.type != "cpu":
        return float(values.kthvalue(k).values)
    return float(torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0])

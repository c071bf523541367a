"""The linear stage: from wherever the images lie to a rigid or affine map, on the same local correlation.

A few starts (the images as they lie, their centres, their centres of mass) are each followed for a few iterations on
the coarsest level; the best goes on, rigid first, then affine, coarse to fine. Squared local correlation over windows
that are wide at the coarsest level does not care for contrast, its sign included; windows that leave the moving image
count as no match, so that pushing the images apart never pays. Where even the best map leaves next to no correlation,
the images stay as they lie.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.images import Pair, sizes, spacings
from itk_nir.engine.lattice import Domain
from itk_nir.engine.level_grids import LevelGrids, at_nearest, inside_image
from itk_nir.engine.progress import Callback, Progress
from itk_nir.engine.settings import LinearSettings
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: Mean LNCC² that the linear stage must reach for its map to be kept.
MIN_LINEAR_SIMILARITY = 0.1


@dataclass(frozen=True)
class LinearResult:
    """What the linear stage found.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)`` LPS, fixed → moving: the found map followed by the linear map of the pair.
    similarity : float
        Mean LNCC² at its last level.
    cancelled : bool
        Whether the callback asked to stop.
    """

    matrix: F64
    similarity: float
    cancelled: bool


class _Level:
    """Both images at one resolution, and the cost of a linear map there."""

    def __init__(self, pair: Pair, fixed: Tensor, moving: Tensor, size: int, radius: int, threads: int) -> None:
        self.pair, self.radius, self.threads = pair, radius, threads
        geometry = pair.fixed_geometry
        finest = min(geometry.spacing)
        factor = max(1.0, 2 * geometry.half_extent / finest / size)
        #: mm a voxel of the level.
        self.voxel = factor * finest
        self.grids = grids = LevelGrids.of(pair, Domain((0, 0, 0), sizes(geometry)), factor)
        self.fixed, self.moving = grids.images(pair, fixed, moving, 0.5, threads)
        self.weight = None if pair.fixed_weight is None else grids.fixed_mask(pair.fixed_weight)
        self.moving_weight = None if pair.moving_weight is None else at_nearest(pair.moving_weight, grids.moving)
        axes = [
            (torch.from_numpy(p).float() - (n - 1) / 2) * s
            for p, n, s in zip(grids.fixed, sizes(geometry), spacings(geometry), strict=True)
        ]
        # mm along the fixed axes, from the centre of the fixed grid
        mesh = torch.meshgrid(*axes[::-1], indexing="ij")
        self.points = torch.stack(mesh[::-1]).reshape(3, -1).to(self.fixed.device)
        self.total = ops.Lncc.make(self.fixed, self.weight, radius, 1e-3, threads).count

    def cost(self, matrix: Tensor, shift: Tensor, base: F64) -> Tensor:
        """1 - mean LNCC² with `base` after ``x -> matrix x + shift`` (mm along fixed axes, about the centre)."""
        index, vector = self.grids.voxel_map(self.pair, base)
        u = (matrix - torch.eye(3, device=matrix.device)) @ self.points + shift[:, None]
        u = u.reshape(3, *self.fixed.shape)
        lncc = ops.Lncc.make(self.fixed, self._weight(u.detach(), index, vector), self.radius, 1e-3, self.threads)
        if lncc.count == 0 or self.total == 0:
            return 1 + 0 * u.sum()
        warped = ops.warp(self.moving, u, index, vector, self.threads)
        return 1 - lncc(warped) * (lncc.count / self.total)

    def _weight(self, u: Tensor, index: F64, vector: F64) -> Tensor | None:
        inside = inside_image(u, index, vector, tuple(self.moving.shape))
        weight = self.weight
        if inside is not None:
            weight = inside.float() if weight is None else inside * weight
        if self.moving_weight is not None:
            there = (ops.warp(self.moving_weight, u, index, vector, self.threads) > 0.5).float()
            weight = there if weight is None else weight * there
        return weight


class _Map:
    """The parameters: a rotation vector or a matrix, in mm at the rim of the image, and a shift in mm."""

    def __init__(self, dimension: int, radius: float, device: torch.device) -> None:
        self.d, self.radius = dimension, radius
        self.turn = torch.zeros(3, device=device, requires_grad=True)
        self.stretch = torch.zeros(3, 3, device=device, requires_grad=True)
        self.shift = torch.zeros(3, device=device, requires_grad=True)
        self.flat = torch.ones(3, 3, device=device)
        self.plane = torch.ones(3, device=device)
        self.axis = torch.ones(3, device=device)
        if dimension == 2:  # nothing moves out of the plane
            self.flat[2], self.flat[:, 2], self.plane[2], self.axis[:2] = 0, 0, 0, 0

    def matrix(self) -> Tensor:
        x, y, z = (self.turn * self.axis / self.radius).unbind()
        o = torch.zeros_like(x)
        skew = torch.stack([torch.stack([o, -z, y]), torch.stack([z, o, -x]), torch.stack([-y, x, o])])
        eye = torch.eye(3, device=o.device)
        return torch.matrix_exp(skew) @ (eye + self.flat * self.stretch / self.radius)

    def translation(self) -> Tensor:
        return self.shift * self.plane

    def in_lps(self, geometry: Geometry) -> F64:
        """``(d + 1, d + 1)`` LPS: from about the centre of the fixed grid, along its axes."""
        d, rotation = geometry.dimension, geometry.rotation
        m = self.matrix().detach().double().cpu().numpy()[:d, :d]
        t = self.translation().detach().double().cpu().numpy()[:d]
        out = np.eye(d + 1)
        out[:d, :d] = rotation @ m @ rotation.T
        out[:d, d] = geometry.centre + rotation @ t - out[:d, :d] @ geometry.centre
        return out


def optimise_linear(
    pair: Pair,
    kind: str,
    settings: LinearSettings,
    *,
    search: bool = True,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
) -> LinearResult:
    """Find the linear map between two images.

    Parameters
    ----------
    pair : Pair
        The images; `pair.linear` (LPS, fixed → moving) is applied after what is found here.
    kind : str
        ``"rigid"`` or ``"affine"``.
    settings : LinearSettings
        What the stage is told.
    search : bool
        Try the centres of the images and of their masses too, not only the images as they lie.
    threads : int
        CPU threads of the native ops; no result depends on it.
    callback : callable, optional
        Called with a `Progress` after every iteration; a true value cancels, and the best so far is kept.
    clock : float, optional
        ``time.perf_counter()`` when the registration began.

    Returns
    -------
    LinearResult
    """
    clock = time.perf_counter() if clock is None else clock
    fixed = pair.fixed_intensity.normalised(pair.fixed)
    moving = pair.moving_intensity.normalised(pair.moving)
    levels = [_Level(pair, fixed, moving, size, settings.linear_radius, threads) for size in settings.linear_size]
    shifts = _starts(pair) if search else [np.zeros(3)]
    descent = _Descent(pair, settings, levels, len(shifts), threads, callback, clock)
    model, cost, cancelled = descent.best_start(shifts)
    for level, iterations in enumerate(settings.linear_iterations):
        if cancelled:
            break
        rigid = iterations if kind == "rigid" else iterations // 2 if level == 0 else 0
        for affine, count in ((False, rigid), (True, iterations - rigid)):
            if count and not cancelled:
                cost, cancelled = descent.run(level, model, affine, count)
    if 1 - cost < MIN_LINEAR_SIMILARITY and not cancelled:
        # Nothing was found that is better than chance: a map made of noise would only do harm.
        with torch.no_grad():
            still = torch.eye(3, device=pair.fixed.device), torch.zeros(3, device=pair.fixed.device)
            cost = float(levels[-1].cost(*still, pair.linear))
        return LinearResult(pair.linear, 1 - cost, cancelled)
    return LinearResult(pair.linear @ model.in_lps(pair.fixed_geometry), 1 - cost, cancelled)


class _Descent:
    """The iterations of the linear stage, counted over all of it."""

    def __init__(
        self, pair: Pair, settings: LinearSettings, levels: list[_Level], starts: int, threads: int,
        callback: Callback | None, clock: float,
    ) -> None:  # fmt: skip
        self.pair, self.settings, self.levels, self.threads = pair, settings, levels, threads
        self.callback, self.clock, self.done = callback, clock, 0
        self.count = settings.linear_start_iterations * starts + sum(settings.linear_iterations)

    def best_start(self, shifts: list[F64]) -> tuple[_Map, float, bool]:
        """Follow every start for a few iterations; the best, its cost, and whether the caller cancelled."""
        geometry, device = self.pair.fixed_geometry, self.pair.fixed.device
        tried: list[tuple[float, int, _Map]] = []
        cancelled = False
        for k, start in enumerate(shifts):
            model = _Map(geometry.dimension, geometry.half_extent, device)
            with torch.no_grad():
                model.shift += torch.from_numpy(start).float().to(device)
            if len(shifts) > 1:
                cost, cancelled = self.run(0, model, False, self.settings.linear_start_iterations)
            else:
                cost = 1.0
                self.done += self.settings.linear_start_iterations
            tried.append((cost, k, model))
            if cancelled:
                break
        cost, _, model = min(tried)[:3]
        return model, cost, cancelled

    def run(self, level: int, model: _Map, affine: bool, iterations: int) -> tuple[float, bool]:
        """Iterations at one level; the least cost, whose parameters are kept, and whether the caller cancelled."""
        parameters = [model.turn, model.shift, *([model.stretch] if affine else [])]
        optimiser = ops.Adam(parameters, (0.9, 0.95), threads=self.threads)
        for p in parameters:
            p.grad = None  # of iterations in which it was not moved
        best, kept = 2.0, [p.detach().clone() for p in parameters]
        cancelled = False
        for iteration in range(iterations):
            loss = self.levels[level].cost(model.matrix(), model.translation(), self.pair.linear)
            cost = float(loss.detach())
            if cost < best:
                best, kept = cost, [p.detach().clone() for p in parameters]
            loss.backward()
            rate = self.settings.linear_learning_rate * (1 - 0.95 * iteration / iterations)
            optimiser.step(rate * self.levels[level].voxel)
            self.done += 1
            if self._told(level, iteration, iterations, cost, rate):
                cancelled = True
                break
        with torch.no_grad():
            for p, k in zip(parameters, kept, strict=True):
                p.copy_(k)
        return best, cancelled

    def _told(self, level: int, iteration: int, iterations: int, cost: float, rate: float) -> bool:
        if self.callback is None:
            return False
        seconds = time.perf_counter() - self.clock
        return bool(
            self.callback(
                Progress(
                    "linear",
                    level,
                    len(self.levels),
                    iteration,
                    iterations,
                    1 - cost,
                    cost,
                    rate,
                    seconds,
                    self.done / self.count,
                )
            )
        )


def _starts(pair: Pair) -> list[F64]:
    """Shifts in mm along the fixed axes that bring the images together in one sense or another."""
    f, m = pair.fixed_geometry, pair.moving_geometry
    back = np.linalg.inv(pair.linear)

    def shift(fixed_point: F64, moving_point: F64) -> F64:
        there = back[:-1, :-1] @ moving_point + back[:-1, -1]
        out = np.zeros(3)
        out[: f.dimension] = f.rotation.T @ (there - fixed_point)
        return out

    centres = shift(f.centre, m.centre)
    masses = shift(
        f.index_to_physical(_mass(pair.fixed, pair.fixed_weight, pair.fixed_intensity.background)[: f.dimension]),
        m.index_to_physical(_mass(pair.moving, pair.moving_weight, pair.moving_intensity.background)[: m.dimension]),
    )
    starts: list[F64] = [np.zeros(3)]
    for candidate in (centres, masses):
        if all(np.linalg.norm(candidate - s) > min(f.spacing) for s in starts):
            starts.append(candidate)
    return starts


def _mass(image: Tensor, weight: Tensor | None, value: float | None) -> F64:
    """Centre of mass in voxels ``(x, y, z)`` of what stands out from the background (from the minimum without one)."""
    mass = (image - float(image.min())).double() if value is None else (image - value).abs().double()
    if weight is not None:
        mass = mass * weight
    total = float(mass.sum())
    if total <= 0:
        return (np.array(image.shape[::-1], float) - 1) / 2
    out = []
    for axis in (2, 1, 0):
        line = mass.sum([a for a in range(3) if a != axis])
        out.append(float((line * torch.arange(len(line), device=line.device)).sum()) / total)
    return np.array(out)

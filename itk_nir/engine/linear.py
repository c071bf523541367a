"""The linear stage: from wherever the images lie to a rigid or affine map, on the same local correlation.

A few starts (the images as they lie, their centres, their centres of mass) are each followed for a few steps on the
coarsest level; the best goes on, rigid first, then affine, coarse to fine. Squared local correlation over windows that
are wide at the coarsest level does not care for contrast, its sign included; windows that leave the moving image count
as no match, so that pushing the images apart never pays. Where even the best map leaves next to no correlation, the
images stay as they lie.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Domain
from itk_nir.engine.optimize import Pair, background, level_map, normalised, pyramid, shrink, sizes, spacings, voxel_map
from itk_nir.engine.progress import Callback, Progress

F64 = NDArray[np.float64]

#: Mean LNCC² that the linear stage must reach for its map to be kept.
WEAK_LINEAR = 0.1


@dataclass(frozen=True)
class LinearSettings:
    """How the linear stage runs.

    Attributes
    ----------
    linear_size : voxels that the longest axis has at each level, about; one value a level, coarsest first.
    linear_steps : steps of each level.
    linear_start_steps : steps that every start gets before the best is chosen.
    linear_radius : LNCC radius in voxels of the level.
    linear_rate : first step of Adam, in voxels of the level.
    """

    linear_size: tuple[int, ...] = (28, 56)
    linear_steps: tuple[int, ...] = (120, 60)
    linear_start_steps: int = 40
    linear_radius: int = 4
    linear_rate: float = 0.5

    def __post_init__(self) -> None:
        if len(self.linear_size) != len(self.linear_steps) or not self.linear_size:
            raise ValueError(
                f"linear_size has {len(self.linear_size)} values and linear_steps {len(self.linear_steps)}; give both "
                "one value a level"
            )
        if min(self.linear_size) < 1:
            raise ValueError(f"linear_size must be at least 1, got {self.linear_size}")
        if min(*self.linear_steps, self.linear_start_steps) < 0 or sum(self.linear_steps) == 0:
            raise ValueError(
                f"linear_steps and linear_start_steps must not be negative, nor linear_steps all zero, got "
                f"{self.linear_steps} and {self.linear_start_steps}; linear='none' leaves the stage out"
            )
        if self.linear_radius < 1 or self.linear_rate <= 0:
            raise ValueError(
                f"linear_radius must be at least 1 and linear_rate above zero, got {self.linear_radius} and "
                f"{self.linear_rate}"
            )


class _Level:
    """Both images at one resolution, and the cost of a linear map there."""

    def __init__(self, pair: Pair, fixed: Tensor, moving: Tensor, size: int, radius: int, threads: int) -> None:
        self.pair, self.radius, self.threads = pair, radius, threads
        finest = min(pair.fixed_geometry.spacing)
        factor = max(1.0, 2 * pair.fixed_geometry.half_extent / finest / size)
        self.step = factor * finest
        self.factors = shrink(pair.fixed_geometry, factor)
        self.positions = Domain((0, 0, 0), sizes(pair.fixed_geometry)).level_positions(self.factors)
        self.moving_factors = shrink(pair.moving_geometry, self.step / min(pair.moving_geometry.spacing))
        self.moving_positions = Domain((0, 0, 0), sizes(pair.moving_geometry)).level_positions(self.moving_factors)
        self.fixed = pyramid(fixed, pair.fixed_geometry, self.positions, self.factors, 0.5, threads)
        self.moving = pyramid(moving, pair.moving_geometry, self.moving_positions, self.moving_factors, 0.5, threads)
        self.weight = self._weight(pair.fixed_weight, self.positions)
        self.moving_weight = self._weight(pair.moving_weight, self.moving_positions)
        grids = [
            torch.from_numpy(p).float() * s for p, s in zip(self.positions, spacings(pair.fixed_geometry), strict=True)
        ]
        middle = [
            (n - 1) / 2 * s for n, s in zip(sizes(pair.fixed_geometry), spacings(pair.fixed_geometry), strict=True)
        ]
        device = self.fixed.device
        mesh = torch.meshgrid(*[g - m for g, m in zip(grids[::-1], middle[::-1], strict=True)], indexing="ij")
        # mm along the fixed axes, from the centre of the fixed grid
        self.points = torch.stack(mesh[::-1]).reshape(3, -1).to(device)
        self.total = ops.Lncc.make(self.fixed, self.weight, radius, 1e-3, threads).count

    @staticmethod
    def _weight(mask: Tensor | None, positions: list[F64]) -> Tensor | None:
        if mask is None:
            return None
        for axis, p in zip((2, 1, 0), positions, strict=True):
            mask = mask.index_select(axis, torch.from_numpy(np.rint(p).astype(np.int64)).to(mask.device))
        return mask.float()

    def cost(self, matrix: Tensor, shift: Tensor, base: F64) -> Tensor:
        """1 - mean LNCC² with `base` after ``x -> matrix x + shift`` (mm along fixed axes, about the centre)."""
        index, vector = voxel_map(self.pair.fixed_geometry, self.pair.moving_geometry, base)
        index, vector = level_map(
            index, vector, self.positions, self.factors, self.moving_positions, self.moving_factors
        )
        u = (matrix - torch.eye(3, device=matrix.device)) @ self.points + shift[:, None]
        u = u.reshape(3, *self.fixed.shape)
        inside = self._inside(u.detach(), index, vector)
        lncc = ops.Lncc.make(self.fixed, inside, self.radius, 1e-3, self.threads)
        if lncc.count == 0 or self.total == 0:
            return 1 + 0 * u.sum()
        warped = ops.warp(self.moving, u, index, vector, self.threads)
        return 1 - lncc(warped) * (lncc.count / self.total)

    def _inside(self, u: Tensor, index: F64, vector: F64) -> Tensor:
        i = torch.from_numpy(index).float().to(u.device)
        v = torch.from_numpy(vector).float().to(u.device)
        grid = torch.meshgrid(
            *[torch.arange(n, device=u.device, dtype=torch.float32) for n in u.shape[1:]], indexing="ij"
        )
        x = torch.stack(grid[::-1]).reshape(3, -1)
        q = i[:, :3] @ x + i[:, 3:] + v @ u.reshape(3, -1)
        size = torch.tensor(self.moving.shape[::-1], device=u.device).reshape(3, 1)
        good = ((q >= -0.5) & (q <= size - 0.5)).all(0).reshape(u.shape[1:])
        weight = good.float() if self.weight is None else good * self.weight
        if self.moving_weight is not None:
            weight = weight * (ops.warp(self.moving_weight, u, index, vector, self.threads) > 0.5)
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


def optimise_linear(
    pair: Pair,
    kind: str,
    settings: LinearSettings,
    *,
    search: bool = True,
    threads: int = 1,
    callback: Callback | None = None,
    clock: float | None = None,
) -> tuple[F64, float, bool]:
    """Find the linear map between two images.

    Parameters
    ----------
    pair : the images; `pair.linear` (LPS, fixed → moving) is applied after what is found here.
    kind : ``"rigid"`` or ``"affine"``.
    search : try the centres of the images and of their masses too, not only the images as they lie.

    Returns
    -------
    matrix : ``(d + 1, d + 1)`` LPS: the found map followed by `pair.linear`.
    metric : mean LNCC² at the last level.
    cancelled : whether the callback asked to stop.
    """
    clock = time.perf_counter() if clock is None else clock
    device = pair.fixed.device
    fixed, _ = normalised(pair.fixed, pair.fixed_weight)
    moving, _ = normalised(pair.moving, pair.moving_weight)
    levels = [_Level(pair, fixed, moving, size, settings.linear_radius, threads) for size in settings.linear_size]
    d, radius = pair.fixed_geometry.dimension, pair.fixed_geometry.half_extent
    shifts = _starts(pair, fixed, moving) if search else [np.zeros(3)]
    count = settings.linear_start_steps * len(shifts) + sum(settings.linear_steps)
    done = 0

    def run(level: int, model: _Map, parameters: list[Tensor], steps: int) -> tuple[float, bool]:
        nonlocal done
        rate = settings.linear_rate * levels[level].step
        optimiser = ops.Adam(parameters, (0.9, 0.95), threads=threads)
        for p in parameters:
            p.grad = None  # of steps in which it was not moved
        cost, best, kept = 1.0, 2.0, [p.detach().clone() for p in parameters]
        for step in range(steps):
            loss = levels[level].cost(model.matrix(), model.translation(), pair.linear)
            cost = float(loss.detach())
            if cost < best:
                best, kept = cost, [p.detach().clone() for p in parameters]
            loss.backward()
            decay = 1 - 0.95 * step / steps
            optimiser.step(rate * decay)
            done += 1
            now = Progress(
                "linear", level, len(levels), step, steps, 1 - cost, cost, settings.linear_rate * decay,
                time.perf_counter() - clock, done / count,
            )  # fmt: skip
            if callback is not None and callback(now):
                break
        else:
            step = steps
        with torch.no_grad():
            for p, k in zip(parameters, kept, strict=True):
                p.copy_(k)
        return best, step < steps

    tried: list[tuple[float, int, _Map]] = []
    cancelled = False
    for k, start in enumerate(shifts):
        model = _Map(d, radius, device)
        with torch.no_grad():
            model.shift += torch.from_numpy(start).float().to(device)
        if len(shifts) > 1:
            cost, cancelled = run(0, model, [model.turn, model.shift], settings.linear_start_steps)
        else:
            cost = 1.0
            done += settings.linear_start_steps
        tried.append((cost, k, model))
        if cancelled:
            break
    cost, _, model = min(tried)[:3]
    for level, steps in enumerate(settings.linear_steps):
        if cancelled:
            break
        rigid = [model.turn, model.shift]
        if kind == "affine":
            if level == 0:
                cost, cancelled = run(level, model, rigid, steps // 2)
                if cancelled:
                    break
                cost, cancelled = run(level, model, [*rigid, model.stretch], steps - steps // 2)
            else:
                cost, cancelled = run(level, model, [*rigid, model.stretch], steps)
        else:
            cost, cancelled = run(level, model, rigid, steps)
    if 1 - cost < WEAK_LINEAR and not cancelled:
        # Nothing was found that is better than chance: a map made of noise would only do harm.
        with torch.no_grad():
            cost = float(levels[-1].cost(torch.eye(3, device=device), torch.zeros(3, device=device), pair.linear))
        return pair.linear, 1 - cost, cancelled
    geometry = pair.fixed_geometry
    m = model.matrix().detach().double().cpu().numpy()[:d, :d]
    t = model.translation().detach().double().cpu().numpy()[:d]
    # about the centre of the fixed grid, from its axes to LPS
    rotation = geometry.rotation
    out = np.eye(d + 1)
    out[:d, :d] = rotation @ m @ rotation.T
    out[:d, d] = geometry.centre + rotation @ t - out[:d, :d] @ geometry.centre
    return pair.linear @ out, 1 - cost, cancelled


def _starts(pair: Pair, fixed: Tensor, moving: Tensor) -> list[F64]:
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
        f.index_to_physical(_mass(pair.fixed, pair.fixed_weight)[: f.dimension]),
        m.index_to_physical(_mass(pair.moving, pair.moving_weight)[: m.dimension]),
    )
    starts: list[F64] = [np.zeros(3)]
    for candidate in (centres, masses):
        if all(np.linalg.norm(candidate - s) > min(f.spacing) for s in starts):
            starts.append(candidate)
    return starts


def _mass(image: Tensor, weight: Tensor | None) -> F64:
    """Centre of mass in voxels ``(x, y, z)`` of what stands out from the background (from the minimum without one)."""
    value = background(image)
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

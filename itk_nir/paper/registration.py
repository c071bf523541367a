"""Registration on sampled points: the design of the paper itself, as the preset ``paper`` runs it.

A coordinate network gives a stationary velocity that is integrated at the points of a sample; the loss is local
correlation plus a penalty on folded cells, both on the sampled blocks. The phases run in order: the first field learns
the large motion on the downsized lattice and is then frozen, the second learns on mini-patches what is left, and the
map is the first field's deformation followed by the second's.

    phi = A ∘ phi_K ∘ … ∘ phi_1,    phi_k(q) = flow of field k,    A the linear stage

Everything is in field coordinates of the fixed image (see `itk_nir.geometry`); A and the moving image's grid are folded
into one affine map from field coordinates to moving voxel indices.

References
----------
.. [1] Sun, Han, Kong, Hua, Wu, Xie, "Medical Image Registration via Neural Fields", MedIA 97 (2024) 103249.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from itk_nir.engine.coordinate_networks import FieldConfig, build_field
from itk_nir.paper.flow import FLOWS, flow, inverse_flow
from itk_nir.engine.interpolation import MODES, bspline_coefficients, sample
from itk_nir.engine.ops import Adam
from itk_nir.engine.progress import Callback, Progress
from itk_nir.paper.regularisation import bending, block_jacobian, diffusion, jacobian_penalty
from itk_nir.paper.samplers import Sample, SamplerConfig, draw, mask_candidates
from itk_nir.paper.similarity import SIMILARITIES, lncc
from itk_nir.geometry import Geometry

#: How often a phase measures its loss on one fixed batch, by which "the best so far" is judged.
CHECKS = 20

#: Patch centres are drawn where the fixed image is above its minimum by this share of its range: patches of pure
#: background hold no window that counts.
FOREGROUND = 0.02


@dataclass(frozen=True)
class PointPhase:
    """One phase: a new field, trained on one sampler.

    Attributes
    ----------
    field : what the field is made of.
    sampler : where each step looks.
    steps : steps of Adam.
    radius : LNCC radius in samples (on the downsized lattice a sample is `stride` voxels).
    learning_rate, learning_rate_end : rate of the first and of the last step, linear in between.
    """

    field: FieldConfig
    sampler: SamplerConfig
    steps: int = 300
    radius: int = 4
    learning_rate: float = 1e-3
    learning_rate_end: float = 1e-4


#: The paper's network as its authors released it, with a sine frequency that matches its initialisation.
PAPER_FIELD = FieldConfig(encoding="fourier", activation="sine", width=256, depth=4, scale=1.0, omega=30.0, bound=1.0)


@dataclass(frozen=True)
class PointSettings:
    """The whole registration.

    Attributes
    ----------
    phases : in order; every earlier one is frozen while a later one is trained.
    flow : a name in `itk_nir.paper.flow.FLOWS`.
    flow_steps, time : steps of the solver and integration time. With a field bounded by b no point travels further
        than ``b * time`` field units a phase.
    similarity : ``"lncc"`` (block samplers only), ``"ncc"`` or ``"mse"`` (any sampler).
    jacobian_weight, jacobian_margin : of ``mean(max(margin - det, 0))``.
    diffusion_weight, bending_weight : of the gradient and the curvature of the displacement of all phases together.
    bending_length : mm, the length that makes the bending dimensionless.
    fixed_interpolation : ``"linear"``, ``"nearest"`` or ``"bspline"``; matters only where points lie between voxels.
    moving_interpolation : ``"linear"`` or ``"bspline"``.
    probes : cells, one voxel wide, on which the penalties are measured where the sampler gives no regular blocks.
    chunk : points that are integrated at once with a gradient; more is faster on a GPU and takes more memory.
    """

    phases: tuple[PointPhase, ...] = (
        PointPhase(PAPER_FIELD, SamplerConfig("downsize", stride=3), radius=4),
        PointPhase(PAPER_FIELD, SamplerConfig("patches", patches=8, edge=32), radius=9),
    )
    flow: str = "rk4"
    flow_steps: int = 4
    time: float = 0.2
    similarity: str = "lncc"
    jacobian_weight: float = 10.0
    jacobian_margin: float = 0.0
    diffusion_weight: float = 0.0
    bending_weight: float = 0.0
    bending_length: float = 10.0
    fixed_interpolation: str = "linear"
    moving_interpolation: str = "linear"
    probes: int = 2048
    chunk: int = 1 << 14

    def __post_init__(self) -> None:
        for value, what, known in (
            (self.flow, "flow", list(FLOWS)),
            (self.similarity, "similarity", list(SIMILARITIES)),
            (self.fixed_interpolation, "fixed interpolation", list(MODES)),
            (self.moving_interpolation, "moving interpolation", [m for m in MODES if m != "nearest"]),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; there are {', '.join(known)}")
        if not self.phases:
            raise ValueError("there must be at least one phase")
        if self.flow_steps < 1 or self.probes < 1 or self.chunk < 1 or self.bending_length <= 0:
            raise ValueError(f"flow_steps, probes, chunk and bending_length must be above 0, got {self}")
        for phase in self.phases:
            if phase.steps < 1 or phase.radius < 1 or min(phase.learning_rate, phase.learning_rate_end) <= 0:
                raise ValueError(f"steps, radius and learning rates of a phase must be above 0, got {phase}")
            if self.similarity == "lncc" and phase.sampler.name == "random":
                raise ValueError("lncc needs neighbours: use the sampler downsize or patches, or the similarity ncc")
            if self.bending_weight and not _regular(phase.sampler):
                raise ValueError(f"bending needs regular blocks, which {phase.sampler.name} points are not")


@dataclass(frozen=True)
class TraceStep:
    """What one step saw: phase and step from 0, similarity metric (1 is perfect for LNCC and NCC) and whole loss."""

    phase: int
    step: int
    metric: float
    loss: float


@dataclass(frozen=True)
class PointRegistration:
    """A trained registration on points.

    Attributes
    ----------
    fields : one module a phase, in the order in which a fixed point meets them.
    settings : what they were trained with.
    trace : every step.
    cancelled : whether the callback stopped it; `fields` then holds the best so far.
    """

    fields: tuple[nn.Module, ...]
    settings: PointSettings
    trace: tuple[TraceStep, ...]
    cancelled: bool

    def displacement(self, points: Tensor) -> Tensor:
        """Displacement ``u`` at fixed points, without the linear stage: ``phi(p) = A(p + u(p))``.

        ``(N, d)`` field coordinates of the fixed image → ``(N, d)`` field units along the fixed image's axes; times
        ``fixed_geometry.half_extent`` it is mm along the image axes. On the device and in the type of the fields.
        """
        return self._in_chunks(lambda p: _through(self.fields, self.settings, p), self._like_fields(points))

    def inverse_displacement(
        self, points: Tensor, iterations: int = 100, tolerance: float = 1e-6
    ) -> tuple[Tensor, Tensor]:
        """Displacement ``v`` of the inverse of ``p + u(p)``, and its error.

        ``(N, d)`` field coordinates → ``(N, d)`` ``v`` and ``(N,)`` distances ``|v + u(p + v)|``, all in field units of
        the fixed image. Velocities are integrated backward; displacements are inverted by fixed-point iteration, at
        most `iterations` times a phase or until the largest error is `tolerance` field units.
        """
        s = self.settings

        def back(p: Tensor) -> Tensor:
            moved = p
            for field in reversed(self.fields):
                moved = moved + inverse_flow(s.flow, field, moved, s.flow_steps, s.time, iterations, tolerance)[0]
            return moved - p

        points = self._like_fields(points)
        inverse = self._in_chunks(back, points)
        return inverse, torch.linalg.vector_norm(inverse + self.displacement(points + inverse), dim=-1)

    def _like_fields(self, points: Tensor) -> Tensor:
        first = next(self.fields[0].parameters())
        return points.to(device=first.device, dtype=first.dtype)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([function(part) for part in points.split(self.settings.chunk)])


def optimise_points(
    fixed: Tensor,
    fixed_geometry: Geometry,
    moving: Tensor,
    moving_geometry: Geometry,
    linear: NDArray[np.float64],
    settings: PointSettings,
    fixed_mask: Tensor | None = None,
    moving_mask: Tensor | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    device: torch.device | str = "cpu",
) -> PointRegistration:
    """Train the fields that carry `fixed` onto `moving`: ``phi(p) = A(p + u(p))``, fixed → moving, LPS mm.

    Parameters
    ----------
    fixed, moving : ``(1, [D,] H, W)`` float images on their grids, in any unit for LNCC and NCC.
    fixed_geometry, moving_geometry : the grids.
    linear : ``(d + 1, d + 1)`` homogeneous matrix of ``A``, LPS mm.
    settings : phases, flow, loss.
    fixed_mask, moving_mask : ``(1, [D,] H, W)`` on the image's own grid, or ``None``; voxels at zero do not count.
    seed : every random number comes from it.
    callback : called after every step, see `itk_nir.engine.progress`; a true return value ends the registration.
    device : where to compute.

    Returns
    -------
    The trained fields. Of every phase the parameters with the lowest loss on one fixed batch, measured
    `CHECKS` times, are kept.

    Raises
    ------
    ValueError : shapes that disagree with the geometries, or an empty mask.
    FloatingPointError : the loss is no longer finite; says the phase and the step.
    """
    began = time.perf_counter()
    d = fixed_geometry.dimension
    for image, geometry, role in (
        (fixed, fixed_geometry, "fixed image"),
        (moving, moving_geometry, "moving image"),
        (fixed_mask, fixed_geometry, "fixed mask"),
        (moving_mask, moving_geometry, "moving mask"),
    ):
        if image is not None and (tuple(image.shape) != (1, *geometry.shape) or geometry.dimension != d):
            raise ValueError(f"the {role} must have shape {(1, *geometry.shape)}, got {tuple(image.shape)}")
        if image is not None and role.endswith("mask") and not bool((image != 0).any()):
            raise ValueError(f"the {role} is empty")
    pair = _Pair.make(fixed, fixed_geometry, moving, moving_geometry, linear, settings, fixed_mask, moving_mask, device)
    if fixed_mask is not None:
        candidates = mask_candidates(fixed_mask)
    else:
        low, high = fixed.min(), fixed.max()
        candidates = mask_candidates(fixed >= low + FOREGROUND * (high - low))
    generator = Generator().manual_seed(seed)
    costs = [_cost(phase, fixed_geometry) for phase in settings.phases]
    trained: list[nn.Module] = []
    trace: list[TraceStep] = []
    cancelled = False
    for level, phase in enumerate(settings.phases):
        extent = [n * s / 2 / fixed_geometry.half_extent for n, s in zip(pair.size, pair.spacing, strict=True)]
        field = build_field(phase.field, d, generator, device, fixed.dtype, extent)
        adam = Adam(list(field.parameters()))
        best = _Best(list(field.parameters()))
        # Uniform points cover the whole image unless the caller gave a mask; patches avoid the background.
        chosen = candidates if fixed_mask is not None or phase.sampler.name == "patches" else None
        check = _Batch.draw(phase, pair, settings, generator, chosen)
        every = math.ceil(phase.steps / CHECKS)
        for step in range(phase.steps):
            if step % every == 0:
                best.see(_loss(field, trained, check, pair, phase, settings, learn=False)[1])
            batch = _Batch.draw(phase, pair, settings, generator, chosen)
            similarity, loss = _loss(field, trained, batch, pair, phase, settings, learn=True)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in phase {level} at step {step}: lower the learning rate "
                    f"({phase.learning_rate}) or raise the regularisation"
                )
            share = step / max(phase.steps - 1, 1)
            rate = phase.learning_rate + share * (phase.learning_rate_end - phase.learning_rate)
            adam.step(rate)
            metric = 1.0 - similarity
            trace.append(TraceStep(level, step, metric, loss))
            if callback is not None:
                done = (sum(costs[:level]) + costs[level] * (step + 1) / phase.steps) / sum(costs)
                seconds = time.perf_counter() - began
                levels = len(settings.phases)
                state = Progress("deformable", level, levels, step, phase.steps, metric, loss, rate, seconds, done)
                cancelled = bool(callback(state))
                if cancelled:
                    break
        best.see(_loss(field, trained, check, pair, phase, settings, learn=False)[1])
        best.restore()
        field.requires_grad_(False)
        trained.append(field)
        if cancelled:
            break
    return PointRegistration(tuple(trained), settings, tuple(trace), cancelled)


@dataclass(frozen=True)
class _Pair:
    """The images on the device, and the maps between the frames that a step needs."""

    fixed: Tensor
    moving: Tensor  # spline coefficients where the moving interpolation is bspline
    fixed_mask: Tensor | None
    moving_mask: Tensor | None
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    half_extent: float
    index_to_field: tuple[Tensor, Tensor]  # scale (d,) and offset (d,)
    field_to_moving: tuple[Tensor, Tensor]  # matrix (d, d) transposed and offset (d,), to moving voxel indices

    @classmethod
    def make(
        cls,
        fixed: Tensor,
        fixed_geometry: Geometry,
        moving: Tensor,
        moving_geometry: Geometry,
        linear: NDArray[np.float64],
        settings: PointSettings,
        fixed_mask: Tensor | None,
        moving_mask: Tensor | None,
        device: torch.device | str,
    ) -> _Pair:
        d = fixed_geometry.dimension
        matrix = np.asarray(linear, float)
        if matrix.shape != (d + 1, d + 1):
            raise ValueError(f"the linear map must be a ({d + 1}, {d + 1}) matrix, got {matrix.shape}")
        to_physical = np.eye(d + 1)
        to_physical[:-1, :-1] = fixed_geometry.rotation * fixed_geometry.half_extent
        to_physical[:-1, -1] = fixed_geometry.centre
        to_moving = moving_geometry.inverse_matrix @ matrix @ to_physical

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(values, dtype=fixed.dtype, device=device)

        scale = np.asarray(fixed_geometry.spacing) / fixed_geometry.half_extent
        middle = (np.asarray(fixed_geometry.size) - 1) / 2
        images = [fixed.to(device), moving.to(device=device, dtype=fixed.dtype)]
        if settings.fixed_interpolation == "bspline":
            images[0] = bspline_coefficients(images[0])
        if settings.moving_interpolation == "bspline":
            images[1] = bspline_coefficients(images[1])
        masks = [
            None if m is None else (m != 0).to(device=device, dtype=fixed.dtype) for m in (fixed_mask, moving_mask)
        ]
        return cls(
            images[0],
            images[1],
            masks[0],
            masks[1],
            fixed_geometry.size,
            fixed_geometry.spacing,
            fixed_geometry.half_extent,
            (tensor(scale), tensor(-middle * scale)),
            (tensor(to_moving[:-1, :-1].T.copy()), tensor(to_moving[:-1, -1])),
        )

    def field_coordinates(self, index: Tensor) -> Tensor:
        scale, offset = self.index_to_field
        return index * scale + offset

    def moving_index(self, points: Tensor) -> Tensor:
        matrix, offset = self.field_to_moving
        return points @ matrix + offset


def _regular(sampler: SamplerConfig) -> bool:
    return sampler.name != "random" and not (sampler.name == "downsize" and sampler.offset == "jitter")


def _cost(phase: PointPhase, geometry: Geometry) -> float:
    """Points that a phase sees in all, to share out the progress."""
    points = draw(phase.sampler, geometry.size, Generator().manual_seed(0)).points
    return float(phase.steps * points.numel())


def _through(fields: tuple[nn.Module, ...] | list[nn.Module], settings: PointSettings, points: Tensor) -> Tensor:
    moved = points
    for field in fields:
        moved = moved + flow(settings.flow, field, moved, settings.flow_steps, settings.time)
    return moved - points


@dataclass(frozen=True)
class _Batch:
    """What a step looks at: the points of the sampler, and cells for the penalties where those are not regular."""

    points: Sample
    probes: Tensor | None

    @classmethod
    def draw(
        cls, phase: PointPhase, pair: _Pair, settings: PointSettings, generator: Generator, candidates: Tensor | None
    ) -> _Batch:
        points = draw(phase.sampler, pair.size, generator, candidates)
        needed = points.step is None and _penalised(settings)
        return cls(points, _probes(settings.probes, pair, generator) if needed else None)


def _penalised(settings: PointSettings) -> bool:
    return bool(settings.jacobian_weight or settings.diffusion_weight or settings.bending_weight)


def _loss(
    field: nn.Module,
    frozen: list[nn.Module],
    batch: _Batch,
    pair: _Pair,
    phase: PointPhase,
    settings: PointSettings,
    learn: bool,
) -> tuple[float, float]:
    """Similarity loss and whole loss on one batch; with `learn`, its gradient goes into the field's parameters."""
    d = len(pair.size)
    index = batch.points.points.to(pair.fixed)
    shape = index.shape[:-1]
    q = pair.field_coordinates(index.reshape(-1, d))
    if batch.probes is not None:
        q = torch.cat([q, batch.probes.reshape(-1, d)])
    with torch.no_grad():
        start = torch.cat([p + _through(frozen, settings, p) for p in q.split(settings.chunk)])

    def moved(p: Tensor) -> Tensor:
        return flow(settings.flow, field, p, settings.flow_steps, settings.time)

    whole = learn and len(start) <= settings.chunk
    if whole:
        step = moved(start)
    else:
        # The gradient in the displacements first, then chunk by chunk into the parameters: one more evaluation of the
        # field, for a memory that does not grow with the sample.
        with torch.no_grad():
            step = torch.cat([moved(p) for p in start.split(settings.chunk)])
        step.requires_grad_(learn)
    there = start + step
    count = math.prod(shape)
    similarity = _similarity(there[:count], index, pair, phase, settings)
    loss = similarity
    if _penalised(settings):
        millimetres = (there - q) * pair.half_extent
        if batch.probes is not None:
            blocks, spacing = millimetres[count:].reshape(batch.probes.shape), [min(pair.spacing)] * d
        else:
            assert batch.points.step is not None
            blocks, spacing = millimetres.reshape(*shape, d), [batch.points.step * s for s in pair.spacing]
        loss = loss + _penalties(blocks.movedim(-1, 1), spacing, settings)
    if learn and loss.requires_grad:
        loss.backward()
        if not whole:
            assert step.grad is not None
            for p, gradient in zip(start.split(settings.chunk), step.grad.split(settings.chunk), strict=True):
                moved(p).backward(gradient)
    return float(similarity.detach()), float(loss.detach())


def _similarity(there: Tensor, index: Tensor, pair: _Pair, phase: PointPhase, settings: PointSettings) -> Tensor:
    """Similarity loss between the fixed image at `index` ``(..., d)`` and the moving one at `there`, field units."""
    shape = index.shape[:-1]
    spline = settings.fixed_interpolation == "bspline"
    with torch.no_grad():
        f = sample(pair.fixed, index, settings.fixed_interpolation, "edge", prefiltered=spline)[0]
        weights = torch.ones_like(f)
        if pair.fixed_mask is not None:
            weights = sample(pair.fixed_mask, index, "nearest")[0]
    moving_index = pair.moving_index(there).reshape(*shape, -1)
    spline = settings.moving_interpolation == "bspline"
    m = sample(pair.moving, moving_index, settings.moving_interpolation, "edge", prefiltered=spline)[0]
    with torch.no_grad():
        # Places without a moving voxel say nothing, as in ITK.
        size = moving_index.new_tensor(list(pair.moving.shape[:0:-1]))
        weights = weights * ((moving_index >= -0.5) & (moving_index < size - 0.5)).all(-1)
        if pair.moving_mask is not None:
            weights = weights * sample(pair.moving_mask, moving_index, "linear")[0]
    if settings.similarity == "lncc":
        return lncc(f, m, phase.radius, weights)
    return SIMILARITIES[settings.similarity](f, m, weights)


def _probes(count: int, pair: _Pair, generator: Generator) -> Tensor:
    """Corners of cubic cells one smallest voxel wide at random places: ``(count, [2,] 2, 2, d)`` field coordinates."""
    d = len(pair.size)
    low = pair.field_coordinates(torch.zeros(d).to(pair.fixed))
    width = min(pair.spacing) / pair.half_extent
    unit = torch.rand(count, d, generator=generator).to(pair.fixed)
    corners = low + unit * (-2 * low - width).clamp(min=0)
    axes = torch.meshgrid(*[torch.arange(2.0)] * d, indexing="ij")
    cell = torch.stack(axes[::-1], dim=-1).to(pair.fixed) * width
    return corners.reshape(count, *[1] * d, d) + cell


def _penalties(blocks: Tensor, spacing: list[float], settings: PointSettings) -> Tensor:
    """Weighted penalties of ``(B, d, [D,] H, W)`` mm."""
    total = blocks.new_zeros(())
    if settings.jacobian_weight:
        determinant = block_jacobian(blocks, spacing)
        if determinant.numel():
            total = total + settings.jacobian_weight * jacobian_penalty(determinant, settings.jacobian_margin)
    if settings.diffusion_weight:
        total = total + settings.diffusion_weight * diffusion(blocks, spacing)
    if settings.bending_weight:
        total = total + settings.bending_weight * bending(blocks, spacing, settings.bending_length)
    return total


class _Best:
    """The parameters with the lowest loss on one fixed batch; the losses of the steps all see different points."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.lowest = float("inf")
        self.kept: list[Tensor] = []

    def see(self, loss: float) -> None:
        """The loss of the parameters as they are now."""
        if loss < self.lowest or not self.kept:
            self.lowest = loss
            self.kept = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to them."""
        for p, kept in zip(self.parameters, self.kept, strict=True):
            p.copy_(kept)

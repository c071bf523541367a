"""What an iteration minimises: dissimilarity at the points of a batch plus weighted penalties on the displacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from itk_nir.engine.interpolation import sample
from itk_nir.paper.batches import Batch, Images
from itk_nir.paper.flow import flow
from itk_nir.paper.regularisation import bending, block_jacobian, diffusion, jacobian_penalty
from itk_nir.paper.settings import PaperPhase, PaperSettings
from itk_nir.paper.similarity import SIMILARITIES, lncc


def displacement_of(fields: Sequence[nn.Module], settings: PaperSettings, points: Tensor) -> Tensor:
    """Displacement of points through the flows of several fields, one after the other.

    Parameters
    ----------
    fields : sequence of Module
        In the order in which a fixed point meets them.
    settings : PaperSettings
        How they are integrated.
    points : Tensor
        ``(N, d)`` field coordinates.

    Returns
    -------
    Tensor
        ``(N, d)``, field units.
    """
    moved = points
    for field in fields:
        moved = moved + flow(settings.flow, field, moved, settings.ode_steps, settings.integration_time)
    return moved - points


@dataclass(frozen=True)
class Measured:
    """What a batch says of a field.

    Parameters
    ----------
    metric : float
        One minus the dissimilarity; 1 is perfect.
    loss : float
        Dissimilarity plus weighted penalties.
    """

    metric: float
    loss: float


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of one phase.

    Parameters
    ----------
    images : Images
        The pair.
    settings : PaperSettings
        Flow, metric and penalties.
    phase : PaperPhase
        The phase.
    frozen : tuple of Module
        Fields of the phases before it.
    """

    images: Images
    settings: PaperSettings
    phase: PaperPhase
    frozen: tuple[nn.Module, ...]

    def undeformed(self, batch: Batch) -> float:
        """The metric of a batch without any displacement.

        Parameters
        ----------
        batch : Batch
            The points.

        Returns
        -------
        float
        """
        index, q, _ = self._places(batch)
        with torch.no_grad():
            return 1.0 - float(self._dissimilarity(q[: index.shape[:-1].numel()], index))

    def __call__(self, field: nn.Module, batch: Batch, learn: bool = False) -> Measured:
        """Measure a field on a batch; with `learn`, the gradient of the loss goes into the field's parameters."""
        images, settings = self.images, self.settings
        index, q, shape = self._places(batch)
        with torch.no_grad():
            start = torch.cat([p + displacement_of(self.frozen, settings, p) for p in q.split(settings.chunk)])

        def moved(p: Tensor) -> Tensor:
            return flow(settings.flow, field, p, settings.ode_steps, settings.integration_time)

        whole = learn and len(start) <= settings.chunk
        if whole:
            step = moved(start)
        else:
            # The gradient in the displacements first, then chunk by chunk into the parameters: one more evaluation of
            # the field, for a memory that does not grow with the sample.
            with torch.no_grad():
                step = torch.cat([moved(p) for p in start.split(settings.chunk)])
            step.requires_grad_(learn)
        there = start + step
        count = math.prod(shape)
        dissimilarity = self._dissimilarity(there[:count], index)
        loss = dissimilarity
        if settings.penalised:
            millimetres = (there - q) * images.half_extent
            if batch.probes is not None:
                blocks = millimetres[count:].reshape(batch.probes.shape)
                spacing = [min(images.spacing)] * images.dimension
            else:
                assert batch.sample.spacing is not None
                blocks = millimetres.reshape(*shape, images.dimension)
                spacing = [batch.sample.spacing * s for s in images.spacing]
            loss = loss + penalties(blocks.movedim(-1, 1), spacing, settings)
        if learn and loss.requires_grad:
            loss.backward()
            if not whole:
                assert step.grad is not None
                for p, gradient in zip(start.split(settings.chunk), step.grad.split(settings.chunk), strict=True):
                    moved(p).backward(gradient)
        return Measured(1.0 - float(dissimilarity.detach()), float(loss.detach()))

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Voxel indices ``(..., d)`` of the sample; field coordinates ``(N, d)``, probes last; shape of the sample."""
        d = self.images.dimension
        index = batch.sample.points.to(self.images.fixed)
        q = self.images.field_coordinates(index.reshape(-1, d))
        if batch.probes is not None:
            q = torch.cat([q, batch.probes.reshape(-1, d)])
        return index, q, tuple(index.shape[:-1])

    def _dissimilarity(self, there: Tensor, index: Tensor) -> Tensor:
        """Of the fixed image at `index` ``(..., d)`` and the moving one at `there` ``(N, d)``, field coordinates."""
        images, settings = self.images, self.settings
        spline = settings.fixed_interpolation == "bspline"
        with torch.no_grad():
            f = sample(images.fixed, index, settings.fixed_interpolation, "edge", prefiltered=spline)[0]
            weights = torch.ones_like(f)
            if images.fixed_mask is not None:
                weights = sample(images.fixed_mask, index, "nearest")[0]
        moving_index = images.moving_index(there).reshape(index.shape)
        spline = settings.moving_interpolation == "bspline"
        m = sample(images.moving, moving_index, settings.moving_interpolation, "edge", prefiltered=spline)[0]
        with torch.no_grad():
            # Places without a moving voxel say nothing, as in ITK.
            size = moving_index.new_tensor(list(images.moving.shape[:0:-1]))
            weights = weights * ((moving_index >= -0.5) & (moving_index < size - 0.5)).all(-1)
            if images.moving_mask is not None:
                weights = weights * sample(images.moving_mask, moving_index, "linear")[0]
        if settings.metric == "lncc":
            return lncc(f, m, self.phase.radius, weights)
        return SIMILARITIES[settings.metric](f, m, weights)


def penalties(blocks: Tensor, spacing: Sequence[float], settings: PaperSettings) -> Tensor:
    """Weighted penalties of a displacement.

    Parameters
    ----------
    blocks : Tensor
        ``(B, d, [D,] H, W)`` mm along the image axes.
    spacing : sequence of float
        Distance of neighbouring points, ``(x, y[, z])``, mm.
    settings : PaperSettings
        The weights.

    Returns
    -------
    Tensor
        A scalar.
    """
    total = blocks.new_zeros(())
    if settings.jacobian_weight:
        determinant = block_jacobian(blocks, spacing)
        total = total + settings.jacobian_weight * jacobian_penalty(determinant, settings.jacobian_margin)
    if settings.diffusion_weight:
        total = total + settings.diffusion_weight * diffusion(blocks, spacing)
    if settings.bending_weight:
        total = total + settings.bending_weight * bending(blocks, spacing, settings.bending_length)
    return total

"""The displacement in and around lesions, after the levels.

Within a lesion no image tells where anything goes, and a continuation of what was found at its border carries the
errors of that border into it. A smoothing spline, which minimises the bending energy and stays near the displacement in
a layer around the lesion, averages them out. It takes the place of the displacement inside alone: outside, where the
images are seen, it would smooth away what is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from itk_nir.engine import ops
from itk_nir.engine.dilation import dilated, enclosed
from itk_nir.engine.images import Pair, sizes, spacings, voxel_map
from itk_nir.engine.lattice import Domain, banded_from_dense
from itk_nir.engine.overlay import Overlay, together
from itk_nir.engine.velocity_field import VelocityField

F64 = NDArray[np.float64]

#: The least determinant around lesions, and how many voxels around them: at the border of a part of an image that has
#: no counterpart the metric pulls one way only, as far as its windows reach, and nothing beyond it holds.
UNSEEN, REACH = 0.2, 8

#: Length of the smoothing spline, in the smallest spacing of the image: waves of ``2 pi`` times that are halved. From
#: 1.6 to 2.5 the error around lesions hardly depends on it.
LENGTH = 2.0

#: Voxels between the nodes of the spline, at most.
STRIDE = 2

#: Relative residual that ends the conjugate gradients, and most iterations.
TOLERANCE, ITERATIONS = 1e-3, 300

#: Voxels from the border of a lesion inwards over which the spline takes the place of the displacement.
RAMP = 4

#: Voxels along an edge of the blocks by which lesions are told apart.
BLOCK = 4

#: Shares of the change that are tried, until it leaves no determinant below `UNSEEN`.
SHARES = (1.0, 0.5, 0.25)


def lesions_of(pair: Pair, field: VelocityField, domain: Domain) -> Tensor | None:
    """Where the fixed image, or the moving one under a field, has a lesion.

    Parameters
    ----------
    pair : Pair
        The images, for their lesions.
    field : VelocityField
        What the lesion of the moving image is carried by.
    domain : Domain
        The block of the fixed grid that is looked at.

    Returns
    -------
    Tensor or None
        ``(Z, Y, X)`` bool; None without any lesion.
    """
    if pair.fixed_lesion is None and pair.moving_lesion is None:
        return None
    inside = torch.zeros(domain.size[::-1], device=field.device)
    if pair.fixed_lesion is not None:
        block = tuple(slice(a, a + n) for a, n in zip(domain.start[::-1], domain.size[::-1], strict=True))
        inside = torch.maximum(inside, pair.fixed_lesion[block].float())
    if pair.moving_lesion is not None:
        positions = [start + np.arange(n, dtype=float) for start, n in zip(domain.start, domain.size, strict=True)]
        index, vector = voxel_map(pair.fixed_geometry, pair.moving_geometry, pair.linear)
        index[:, 3] += index[:, :3] @ np.asarray(domain.start, float)
        there = ops.warp(pair.moving_lesion.float(), field.on_grid(positions), index, vector, field.threads)
        inside = torch.maximum(inside, there)
    return inside > 0.5


def smooth_through_lesions(field: VelocityField, domain: Domain, pair: Pair) -> VelocityField:
    """A field that goes smoothly through lesions.

    Parameters
    ----------
    field : VelocityField
        A trained field.
    domain : Domain
        The block of the fixed grid that was worked on.
    pair : Pair
        The images, for their lesions.

    Returns
    -------
    VelocityField
        With an `overlay` in the lesions, each by itself. The very same without lesions; where they reach the faces of
        the fixed image, beyond which nothing holds; and where something else tells what the field is there: landmarks,
        labels, regions, parts that must not be deformed, or things that slide.
    """
    told = field.overlay is not None or pair.known is not None or pair.free is not None or pair.regions
    inside = None if told else lesions_of(pair, field, domain)
    if inside is None or not inside.any():
        return field
    whole = _enclosed(inside)
    if not torch.equal(whole, inside.cpu()):
        # What an image shows may end where a lesion does, and the block with it.
        domain = Domain((0, 0, 0), sizes(pair.fixed_geometry))
        inside = lesions_of(pair, field, domain)
        assert inside is not None
        whole = _enclosed(inside)
    found = [_smoothed(field, domain, pair, inside, part) for part in _apart(whole)]
    overlay = together([one for one in found if one is not None])
    return field if overlay is None else replace(field, overlay=overlay)


def _smoothed(field: VelocityField, domain: Domain, pair: Pair, inside: Tensor, part: Tensor) -> Overlay | None:
    """What a spline changes in a part of the lesions of a block; None where none of it can be made."""
    near = dilated(part, REACH)
    first, last = _extent(near, STRIDE)
    near, inside, part = (
        x[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].cpu() for x in (near, inside, part)
    )
    start = [int(a + b) for a, b in zip(domain.start, first[::-1], strict=True)]
    positions = [s + np.arange(n, dtype=float) for s, n in zip(start, near.shape[::-1], strict=True)]
    nodes = tuple(slice(None, None, STRIDE) for _ in range(3))
    u = field.on_grid([p[::STRIDE] for p in positions]).double().cpu()
    steps = [STRIDE * s / min(pair.fixed_geometry.spacing) for s in spacings(pair.fixed_geometry)][::-1]
    change = _smoothing_change(u, ~inside[nodes], near[nodes], steps)
    between = [banded_from_dense(np.maximum(0.0, 1 - np.abs(p[:, None] - p[::STRIDE]) / STRIDE)) for p in positions]
    within = torch.stack([~dilated(~part, reach) for reach in range(RAMP)]).float().mean(0).to(field.device)
    change = within * ops.separable(change.float().to(field.device), between, field.threads)
    voxel = torch.tensor(spacings(field.geometry), dtype=torch.float32).reshape(3, 1, 1, 1).to(field.device)
    plain = field.on_grid(positions)

    def least(u: Tensor) -> float:
        return float(ops.jacobian_map(u / voxel, field.threads).min())

    enough = min(UNSEEN, least(plain))
    for share in SHARES:
        if least(plain + share * change) >= enough:
            return Overlay(tuple(start), share * change)  # type: ignore[arg-type]
    return None


def _enclosed(inside: Tensor) -> Tensor:
    """The lesions of a block that do not touch its faces, along the axes it has more than one voxel of."""
    axes = [axis for axis, n in enumerate(inside.shape) if n > 1]
    return torch.from_numpy(enclosed(inside.cpu().numpy(), axes))


def _apart(inside: Tensor) -> Iterator[Tensor]:
    """The parts of lesions whose surroundings do not touch, each by itself: the same where there is but one."""
    near = functional.max_pool3d(dilated(inside, REACH).float()[None, None], BLOCK, ceil_mode=True)
    numbers = near * torch.arange(1, near.numel() + 1, dtype=torch.float64).reshape(near.shape)
    before = torch.zeros_like(numbers)
    while not torch.equal(numbers, before):
        before, numbers = numbers, near * functional.max_pool3d(numbers, 3, 1, 1)
    for number in torch.unique(numbers[numbers > 0]):
        there = numbers[0, 0] == number
        for axis, n in enumerate(inside.shape):
            there = there.repeat_interleave(BLOCK, axis).narrow(axis, 0, n)
        yield inside & there


def _extent(near: Tensor, margin: int) -> tuple[list[int], list[int]]:
    """First voxels of what is true, and those after its last, with a margin where there is room: ``z, y, x``.

    The number of voxels is one more than a multiple of `STRIDE` where there is room, so that nodes end the block.
    """
    at = torch.nonzero(near).cpu().numpy()
    first = np.maximum(at.min(0) - margin, 0)
    last = np.minimum(at.max(0) + 1 + margin, near.shape)
    last -= np.where(last - first > 1, (last - first - 1) % STRIDE, 0)
    return first.tolist(), last.tolist()


def _smoothing_change(u: Tensor, counts: Tensor, free: Tensor, steps: list[float]) -> Tensor:
    """What makes a displacement a smoothing spline: the minimum of ``sum counts change² + LENGTH⁴ bending``.

    `u` is ``(3, z, y, x)``; the change is zero where the nodes are not free; `steps` between nodes along ``z, y, x``.
    """

    def gradient(values: Tensor) -> Tensor:
        with torch.enable_grad():
            x = values.detach().requires_grad_()
            energy = 0.5 * LENGTH**4 * _bending(x, steps)
            return torch.autograd.grad(energy, x)[0] if energy.requires_grad else torch.zeros_like(values)

    # The curvature by a component itself, away from the rim.
    own = LENGTH**4 * (6 * sum(s**-4 for s in steps) + 8 * sum(
        (steps[a] * steps[b]) ** -2 for a in range(3) for b in range(a)
    ))  # fmt: skip
    return _conjugate_gradients(
        lambda x: free * (counts * x + gradient(x)), free * -gradient(u), (counts + own).expand_as(u)
    )


def _bending(u: Tensor, steps: list[float]) -> Tensor:
    """Sum of squares of all second differences, ``(3, z, y, x)``."""
    total = u.new_zeros(())
    for a in range(3):
        if u.shape[a + 1] > 2:
            total = total + (u.diff(n=2, dim=a + 1) / steps[a] ** 2).square().sum()
        for b in range(a):
            mixed = u.diff(dim=a + 1).diff(dim=b + 1)
            total = total + 2 * (mixed / (steps[a] * steps[b])).square().sum()
    return total


def _dot(a: Tensor, b: Tensor) -> float:
    """By NumPy, whose order of summation depends on no number of threads."""
    return float((a * b).numpy().sum())


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor) -> Tensor:
    """The solution of a symmetric system, preconditioned by its diagonal."""
    x, residual = torch.zeros_like(right), right
    z = residual / diagonal
    direction, now = z, _dot(residual, z)
    enough = TOLERANCE**2 * now
    for _ in range(ITERATIONS):
        if not math.isfinite(now) or now <= enough:
            break
        applied = product(direction)
        amount = now / _dot(direction, applied)
        x, residual = x + amount * direction, residual - amount * applied
        z = residual / diagonal
        before, now = now, _dot(residual, z)
        direction = z + (now / before) * direction
    return x

"""The value of an image between its voxels: linear, nearest and cubic B-spline, differentiable in the position.

Images are ``(C, [D,] H, W)``; positions are continuous voxel indices ``(..., d)`` in ``(x, y[, z])`` order, whole
numbers at voxel centres. All arithmetic is plain tensor work, so CPU and CUDA, 2D and 3D, float32 and float64 share
one path, and the result of a position does not depend on the other positions or on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

#: Points handled at once when no gradient is wanted: keeps the working set in cache and the memory flat.
CHUNK = 1 << 17

#: The pole of the cubic B-spline's inverse filter.
POLE = math.sqrt(3.0) - 2.0


def sample(
    image: Tensor,
    index_coords: Tensor,
    mode: str = "linear",
    outside: float | str = 0.0,
    *,
    prefiltered: bool = False,
) -> Tensor:
    """Values of `image` at continuous indices.

    Parameters
    ----------
    image : Tensor
        ``(C, [D,] H, W)``. ``linear`` and ``bspline`` turn integer images into floats; ``nearest`` keeps any type.
    index_coords : Tensor
        ``(..., d)`` float, finite, ``(x, y[, z])`` voxel indices.
    mode : str
        ``"linear"``, ``"nearest"`` (halves round up, as ITK does) or ``"bspline"`` (cubic, interpolating, mirrored at
        the outer voxel centres).
    outside : float or str
        A number given to every point more than half a voxel beyond the outer voxel centres, ITK's rule; in that rim of
        half a voxel ``linear`` and ``nearest`` repeat the outer voxel and ``bspline`` mirrors. ``"edge"``: every point
        outside takes the value at the nearest point of the box of voxel centres.
    prefiltered : bool
        For ``bspline``: `image` already holds the output of `bspline_coefficients`; saves the filtering when one image
        is sampled often.

    Returns
    -------
    Tensor
        ``(C, ...)``. Differentiable in `index_coords` for ``linear`` and ``bspline`` (the outside value has zero
        gradient), and in `image` for ``linear`` and for prefiltered ``bspline``.

    Raises
    ------
    ValueError
        An unknown mode, or coordinates whose last axis is not the image's number of axes.
    """
    d = image.dim() - 1
    if mode not in MODES:
        raise ValueError(f"unknown interpolation {mode!r}; there are {', '.join(MODES)}")
    if d not in (2, 3) or index_coords.shape[-1] != d:
        raise ValueError(
            f"an image of shape {tuple(image.shape)} (C, [D,] H, W) needs coordinates (..., {d}), "
            f"got {tuple(index_coords.shape)}"
        )
    if isinstance(outside, str) and outside != "edge":
        raise ValueError(f'outside must be a number or "edge", got {outside!r}')
    if mode != "nearest" and not image.is_floating_point():
        image = image.to(index_coords.dtype)
    if mode == "bspline" and not prefiltered:
        image = bspline_coefficients(image)
    points = index_coords.reshape(-1, d)
    if torch.is_grad_enabled() and (points.requires_grad or image.requires_grad):
        values = _sample_points(image, points, mode, outside)
    else:
        values = image.new_empty((image.shape[0], points.shape[0]))
        for start in range(0, points.shape[0], CHUNK):
            values[:, start : start + CHUNK] = _sample_points(image, points[start : start + CHUNK], mode, outside)
    return values.reshape(image.shape[0], *index_coords.shape[:-1])


def bspline_coefficients(image: Tensor) -> Tensor:
    """Cubic B-spline coefficients of an image, whose spline passes through it.

    The recursive filter of [1]_, with the exact start for signals that are mirrored at the ends.

    Parameters
    ----------
    image : Tensor
        ``(C, [D,] H, W)``. No gradient flows to it.

    Returns
    -------
    Tensor
        ``(C, [D,] H, W)``, float.

    References
    ----------
    .. [1] Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 16(6), 1999,
       eq. 2.5 (box 2).
    """
    with torch.no_grad():
        out = image.clone() if image.is_floating_point() else image.float()
        for axis in range(1, image.dim()):
            n = image.shape[axis]
            if n == 1:
                continue
            # The recursion runs along the first axis, so that every step is one contiguous slab.
            c = out.movedim(axis, 0).contiguous() * 6.0
            # Causal start: the whole mirrored signal (period 2n - 2), summed in closed form over its repeats.
            powers = [POLE**k for k in range(n)]
            mirrored = [POLE ** (2 * n - 2 - k) for k in range(n)]
            first = powers[0] * c[0] + powers[n - 1] * c[n - 1]
            for k in range(1, n - 1):
                weight = powers[k] + mirrored[k]
                if abs(weight) < 1e-20:  # below the last bit of float64 from here to the far end
                    break
                first = first + weight * c[k]
            c[0] = first / (1.0 - POLE ** (2 * n - 2))
            for k in range(1, n):
                c[k].add_(c[k - 1], alpha=POLE)
            c[n - 1] = (c[n - 1] + POLE * c[n - 2]) * (POLE / (POLE * POLE - 1.0))
            for k in range(n - 2, -1, -1):
                c[k] = (c[k + 1] - c[k]) * POLE
            out = c.movedim(0, axis)
        return out.contiguous()


def _sample_points(image: Tensor, points: Tensor, mode: str, outside: float | str) -> Tensor:
    """``(C, N)`` values at ``(N, d)`` points; `image` holds coefficients where the mode is ``bspline``."""
    limits = points.new_tensor(list(image.shape[:0:-1])) - 1
    if outside == "edge":
        return MODES[mode](image, torch.minimum(points.clamp(min=0), limits))
    inside = ((points >= -0.5) & (points < limits + 0.5)).all(dim=-1)
    # Points outside are moved to voxel 0 before any index is made of them, and their value is replaced after.
    values = MODES[mode](image, torch.where(inside[:, None], points, torch.zeros_like(points)))
    return torch.where(inside, values, torch.full_like(values[:, :1], float(outside)))


def _strides(image: Tensor) -> list[int]:
    """Steps in the flattened voxels along ``x, y[, z]``."""
    sizes = image.shape[:0:-1]
    return [math.prod(sizes[:axis]) for axis in range(len(sizes))]


def _nearest(image: Tensor, points: Tensor) -> Tensor:
    flat = image.reshape(image.shape[0], -1)
    index = points.new_zeros(points.shape[0], dtype=torch.long)
    for axis, stride in enumerate(_strides(image)):
        rounded = torch.floor(points[:, axis].detach() + 0.5).long()
        index += rounded.clamp(0, image.shape[-1 - axis] - 1) * stride
    return flat[:, index]


def _linear(image: Tensor, points: Tensor) -> Tensor:
    d = points.shape[1]
    ends = []  # per axis: flat index of the lower and upper neighbour, and their weights
    for axis, stride in enumerate(_strides(image)):
        n = image.shape[-1 - axis]
        position = points[:, axis].clamp(0, n - 1)
        lower = position.detach().long().clamp(max=max(n - 2, 0))
        upper = (position - lower).to(image.dtype)
        ends.append(((lower * stride, 1 - upper), ((lower + min(n - 1, 1)) * stride, upper)))
    return _weighted_sum(image, ends, d)


def _bspline(image: Tensor, points: Tensor) -> Tensor:
    d = points.shape[1]
    ends = []
    for axis, stride in enumerate(_strides(image)):
        n = image.shape[-1 - axis]
        position = points[:, axis]
        base = torch.floor(position.detach())
        weights = cubic_bspline_weights((position - base).to(image.dtype))
        period = max(2 * n - 2, 1)
        taps = []
        for k, weight in enumerate(weights):
            index = torch.remainder(base.long() + (k - 1), period)
            taps.append((torch.minimum(index, period - index).clamp(max=n - 1) * stride, weight))
        ends.append(tuple(taps))
    return _weighted_sum(image, ends, d)


def cubic_bspline_weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the coefficients at -1, 0, 1 and 2 for a point ``0 <= t < 1`` after coefficient 0; they sum to one.

    Parameters
    ----------
    t : Tensor
        Of any shape.

    Returns
    -------
    tuple of Tensor
        Four, each like `t`.
    """
    s = 1 - t
    return s * s * s / 6, 2 / 3 - t * t * (1 - t / 2), 2 / 3 - s * s * (1 - s / 2), t * t * t / 6


class _Gather(torch.autograd.Function):
    """``flat[:, index]`` whose gradient is summed in one fixed order.

    The gradient that torch gives to indexing is summed by racing threads on CPU, and that of `index_add_` by racing
    threads on CUDA; each is serial or sorted on the other device, so each is used where its order is fixed.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.voxels = flat.shape[1]
        return flat[:, index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        if gradient.is_cuda:
            total = gradient.new_zeros(ctx.voxels, gradient.shape[0])
            return total.index_put_((index,), gradient.T.contiguous(), accumulate=True).T, None
        total = gradient.new_zeros(gradient.shape[0], ctx.voxels)
        for channel, part in zip(total, gradient, strict=True):
            channel.index_add_(0, index, part)
        return total, None


def gather(flat: Tensor, index: Tensor) -> Tensor:
    """``flat[:, index]`` whose gradient has the same bits on every run.

    Parameters
    ----------
    flat : Tensor
        ``(C, V)``.
    index : Tensor
        ``(N,)`` whole numbers.

    Returns
    -------
    Tensor
        ``(C, N)``.
    """
    return _Gather.apply(flat, index) if flat.requires_grad else flat[:, index]


def _weighted_sum(image: Tensor, ends: list, d: int) -> Tensor:
    """Sum over the tensor product of the axes' ``(flat index, weight)`` taps, ``(C, N)``; x is summed first."""
    flat = image.reshape(image.shape[0], -1)
    total: Tensor | None = None
    for outer in product(*ends[:0:-1]):
        index, weight = outer[0]
        for other_index, other_weight in outer[1:]:
            index, weight = index + other_index, weight * other_weight
        line: Tensor | None = None
        for x_index, x_weight in ends[0]:
            term = gather(flat, index + x_index) * x_weight
            line = term if line is None else line + term
        assert line is not None
        total = line * weight if total is None else total + line * weight
    assert total is not None
    return total


#: Interpolations by name.
MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"linear": _linear, "nearest": _nearest, "bspline": _bspline}

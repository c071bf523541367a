"""Sums over cubic windows in plain torch, with the same bits every time."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


def box_sum(x: Tensor, radius: int) -> Tensor:
    """Sums over cubic windows, cut at the border.

    Parameters
    ----------
    x : Tensor
        ``(Z, Y, X)``.
    radius : int
        Voxels; a window is ``2 radius + 1`` of them wide.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``, the sum of the window around each voxel.
    """
    total: Tensor = _BoxSum.apply(x, radius)
    return total


def _line_sum(x: Tensor, axis: int, radius: int) -> Tensor:
    """Sums over windows along one axis, cut at the border: of sums of 1, 2, 4, ... neighbours, in one fixed order."""
    n, width = x.shape[axis], 2 * radius + 1
    if n == 1:
        return x
    if radius >= n - 1:  # every window is the whole axis
        return x.sum(axis, keepdim=True).expand(x.shape)
    doubled = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [radius, radius])
    size, begin, total = 1, 0, None
    while True:
        if width & size:
            part = doubled.narrow(axis, begin, n)
            total = part if total is None else total + part
            begin += size
        size *= 2
        if size > width:
            assert total is not None
            return total
        m = doubled.shape[axis] - size // 2
        doubled = doubled.narrow(axis, 0, m) + doubled.narrow(axis, size // 2, m)


class _BoxSum(Function):
    """`box_sum`, which is its own adjoint. (That of torch's pooling has other bits on every run on CUDA.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        for axis in range(3):
            x = _line_sum(x, axis, radius)
        return x.clone() if radius == 0 else x.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return box_sum(grads[0], ctx.radius), None

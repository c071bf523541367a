"""Sums over a whole image on the device: of partial sums, of two images, and their joint histogram."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.launching import blocks, f32, launch, launch_each

FILE = "sums.cu"
#: Bytes of shared memory of the sum of a block of 256 floats, and of as many doubles.
SUM_BYTES, WIDE_SUM_BYTES = 4 * 256, 8 * 256
#: Voxels of a block of `global_sums`.
SPAN = 4096
#: Shared memory of a block that counts, bytes.
SHARED_BYTES = 1 << 15
#: Most voxels that one copy of a block's histogram takes: 2^11 halves of at most 2^20 fit in 32 bits.
LARGEST_SPAN = 2048
#: A small image is counted by so many blocks, if they have enough to do.
WANTED_BLOCKS = 512


def total(partial: Tensor, scale: float = 1.0) -> Tensor:
    """The sum of partial sums, in double precision and a fixed order.

    Parameters
    ----------
    partial : Tensor
        ``(n,)`` float32, on the device.
    scale : float
        What the sum is multiplied by.

    Returns
    -------
    Tensor
        Scalar, float32, on the device.
    """
    out = partial.new_empty(())
    launch(
        FILE, "totals", (1, 1, 1), (256, 1, 1), partial, partial.numel(), float(scale), out, None,
        shared=WIDE_SUM_BYTES,
    )  # fmt: skip
    return out


def _weight(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else f32(weight)


class GlobalSums(torch.autograd.Function):
    """See `sums.global_sums`."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, weight: Tensor | None, threads: int) -> Tensor:
        ctx.fixed, ctx.weight = f32(fixed), _weight(weight)
        ctx.save_for_backward(moving)
        m, count = f32(moving), moving.numel()
        parts = blocks(count, SPAN)
        partial = m.new_empty(3 * parts)
        launch(
            FILE, "global_sums", (parts, 1, 1), (256, 1, 1), ctx.fixed, m, ctx.weight, ctypes.c_longlong(count), SPAN,
            partial, shared=SUM_BYTES,
        )  # fmt: skip
        out = torch.empty(3, dtype=torch.float64, device=m.device)
        launch(FILE, "totals", (3, 1, 1), (256, 1, 1), partial, parts, 1.0, None, out, shared=WIDE_SUM_BYTES)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (moving,) = ctx.saved_tensors
        m, count = f32(moving), moving.numel()
        gradient = torch.empty_like(m)
        launch_each(
            FILE, "global_sums_adjoint", count, ctx.fixed, m, ctx.weight, ctypes.c_longlong(count),
            grads[0].contiguous(), gradient,
        )  # fmt: skip
        return None, gradient, None, None


def _resolution(count: int) -> int:
    """Bits of the weight of a voxel in a bin along one axis: those of two, for all voxels together, fit in 63."""
    return min(20, (63 - count.bit_length()) // 2)


def _copies(bins: int) -> int:
    """How often a block counts: a bin takes 8 bytes, and a block 32 KiB at most; 0 where that is too little."""
    return min(8, SHARED_BYTES // (8 * bins * bins))


class JointHistogram(torch.autograd.Function):
    """The joint histogram with a fixed image, see `histogram.joint_histogram`."""

    @staticmethod
    def forward(
        ctx: Any, position: Tensor, moving: Tensor, bins: int, low: float, scale: float, threads: int
    ) -> Tensor:
        ctx.position, ctx.bins, ctx.low, ctx.scale = f32(position), bins, float(low), float(scale)
        ctx.save_for_backward(moving)
        m, count, copies = f32(moving), moving.numel(), _copies(bins)
        bits = _resolution(count)
        # What one copy counts must fit in its halves, and a small image should reach every part of the card.
        span = min(LARGEST_SPAN * max(1, copies), max(1024, 256 * blocks(count, 256 * WANTED_BLOCKS)))
        # Sums of 64 bits, and marks of 32: cleared at once.
        cells = bins * bins
        cleared = torch.zeros(cells + blocks(cells, 2), dtype=torch.int64, device=m.device)
        sums, marks = cleared[:cells], cleared[cells:]
        launch(
            FILE, "joint_histogram", (blocks(count, span), 1, 1), (256, 1, 1), ctx.position, m,
            ctypes.c_longlong(count), bins, ctx.low, ctx.scale, bits, span, copies, sums, marks,
            shared=8 * copies * cells,
        )  # fmt: skip
        out = torch.empty(bins, bins, dtype=torch.float64, device=m.device)
        launch_each(FILE, "settle_histogram", cells, sums, marks, cells, bits, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (moving,) = ctx.saved_tensors
        m, count, side = f32(moving), moving.numel(), ctx.bins - 1
        slopes, gradient = m.new_empty((side, side, 2)), torch.empty_like(m)
        launch_each(FILE, "histogram_slopes", side * side, grads[0].contiguous(), ctx.bins, ctx.scale, slopes)
        launch_each(
            FILE, "joint_histogram_adjoint", count, ctx.position, m, ctypes.c_longlong(count), ctx.bins, ctx.low,
            ctx.scale, slopes, gradient,
        )  # fmt: skip
        return None, gradient, None, None, None, None


class Information(torch.autograd.Function):
    """The (normalised) mutual information of a joint histogram, float32; its derivative is made along with it."""

    @staticmethod
    def forward(ctx: Any, histogram: Tensor, count: float, normalised: bool) -> Tensor:
        bins = histogram.shape[0]
        scratch = histogram.new_empty(2 * bins * bins + 2 * bins)
        p, slope, alone = scratch.split((bins * bins, bins * bins, 2 * bins))
        value = torch.empty((), device=histogram.device)
        ctx.slope = torch.empty_like(histogram)
        launch(
            FILE, "information", (1, 1, 1), (256, 1, 1), histogram.contiguous(), bins,
            ctypes.c_longlong(max(1, round(count))), int(normalised), p, slope, alone, value, ctx.slope,
            shared=WIDE_SUM_BYTES,
        )  # fmt: skip
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.slope.mul_(grads[0]), None, None

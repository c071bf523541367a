"""Sums over a whole image on the device: of partial sums, of two images, and their joint histogram."""

from __future__ import annotations

from torch import Tensor

from itk_nir.engine.ops.cuda.launching import launch

#: Bytes of shared memory of the sum of a block of 256 floats, and of as many doubles.
SUM_BYTES, WIDE_SUM_BYTES = 4 * 256, 8 * 256


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
        "sums.cu", "totals", (1, 1, 1), (256, 1, 1), partial, partial.numel(), float(scale), out, None,
        shared=WIDE_SUM_BYTES,
    )  # fmt: skip
    return out

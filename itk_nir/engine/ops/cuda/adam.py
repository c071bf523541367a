"""Adam on the device."""

from __future__ import annotations

import ctypes

from torch import Tensor

from itk_nir.engine.ops.cuda.launching import f32, launch_each


def adam(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], rate: float,
         correction: float, epsilon: float, threads: int) -> None:  # fmt: skip
    """As `reference.adam`. Parameter and moments must be contiguous float32: they are changed in place.

    Parameters
    ----------
    parameter, gradient, first, second, betas, rate, correction, epsilon
        See `reference.adam`.
    threads : int
        Has no meaning here.
    """
    count = parameter.numel()
    if not count:
        return
    launch_each(
        "adam.cu", "adam", count, parameter.detach(), f32(gradient), first, second, ctypes.c_longlong(count),
        1 - betas[0], 1 - betas[1], float(rate), float(correction), float(epsilon),
    )  # fmt: skip

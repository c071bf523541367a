"""How long the ops of the engine take on a device, in copies of an image by that device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.lattice import Domain, shape_of
from itk_nir.engine.op_cases import Shape


@dataclass(frozen=True)
class OpTime:
    """How long an op takes, value and gradient together.

    Parameters
    ----------
    name : str
        Of the op.
    seconds : float
        The median of several runs.
    copies : float
        The same in copies of the image on the device.
    """

    name: str
    seconds: float
    copies: float


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was told.

    Parameters
    ----------
    device : torch.device
        Any.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(function: Callable[[], object], device: torch.device, runs: int = 5) -> float:
    """The median time of a function, after two runs that are not counted.

    Parameters
    ----------
    function : callable
        Without arguments.
    device : torch.device
        Where it works.
    runs : int
        How many are counted.

    Returns
    -------
    float
        Seconds.
    """
    taken = []
    for run in range(runs + 2):
        finish(device)
        begin = time.perf_counter()
        function()
        finish(device)
        if run > 1:
            taken.append(time.perf_counter() - begin)
    return sorted(taken)[len(taken) // 2]


def copied_bytes_per_second(device: torch.device, size: int) -> float:
    """How fast a device copies its own memory: bytes read and written a second.

    Parameters
    ----------
    device : torch.device
        Any.
    size : int
        Bytes that are copied at once.

    Returns
    -------
    float
    """
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device)


def op_times(shape: Shape, device: torch.device, bytes_per_second: float, threads: int = 1) -> list[OpTime]:
    """The time of the ops that an iteration is made of, on images of one size and a lattice of every second voxel.

    Parameters
    ----------
    shape : tuple of int
        ``(z, y, x)``.
    device : torch.device
        Where they run.
    bytes_per_second : float
        Of `copied_bytes_per_second`.
    threads : int
        Of the native ops.

    Returns
    -------
    list of OpTime
    """
    z, y, x = shape
    domain = Domain((0, 0, 0), (x, y, z))
    axes = domain.lattice((2.0, 2.0, 2.0))
    matrices = [a.evaluate(p) for a, p in zip(axes, domain.level_positions((1, 1, 1)), strict=True)]
    generator = torch.Generator().manual_seed(3)
    fixed, moving = (torch.randn(*shape, generator=generator).to(device) for _ in range(2))
    nodes = 0.3 * torch.randn(3, *shape_of(axes), generator=generator).to(device)
    outer, points, vectors = nodes.flip(0), np.eye(4)[:3], np.eye(3)
    lncc = ops.Lncc.make(fixed, None, 5, 1e-4, threads)
    optimiser = ops.Adam([nodes.clone()], threads=threads)

    def with_gradient(op: Callable[[Tensor], Tensor], start: Tensor) -> Callable[[], object]:
        leaf = start.clone().requires_grad_()

        def run() -> None:
            value = op(leaf)
            torch.autograd.grad(value, leaf, torch.ones_like(value))

        return run

    def step() -> None:
        optimiser.parameters[0].grad = nodes
        optimiser.step(0.1)

    timed = {
        "warp_spline": with_gradient(lambda v: ops.warp_spline(moving, v, matrices, points, vectors, threads), nodes),
        "lncc, radius 5": with_gradient(lncc, moving),
        "exponential, then another": with_gradient(lambda v: ops.exponential(v, 2, 1.0, threads, outer=outer), nodes),
        "diffusion, Lorentzian": with_gradient(lambda u: ops.diffusion(u, 0.4, threads), nodes),
        "jacobian_penalty": with_gradient(lambda u: ops.jacobian_penalty(u, 0.6, 0, threads), nodes),
        "adam": step,
    }
    one = 2 * 4 * fixed.numel() / bytes_per_second
    return [OpTime(n, t, t / one) for n, t in ((n, seconds_of(f, device)) for n, f in timed.items())]

"""The inverse of a displacement on a card, how good it is, and its Jacobian determinants."""

from __future__ import annotations

import torch
from torch import Tensor

from itk_nir.engine.ops.cuda.compositions import LARGEST_BYTES, pack, packed_size, unpack
from itk_nir.engine.ops.cuda.launching import f32, launch_each, size_of

FILE = "inversion.cu"
#: Most steps of a node, and the residual at which it ends, voxels.
ITERATIONS, TOLERANCE = 20, 1e-3
#: Whole numbers of which as many as there are nodes are added up stay below this power of two.
SUM_BITS = 61


def _invert(u: Tensor, v: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Improve the packed inverse `v` in place; the largest residual, a scalar on the card."""
    bits = torch.zeros((), dtype=torch.int32, device=u.device)
    launch_each(
        FILE, "invert", u.numel() // 4, u, v, packed_size(u), iterations, float(tolerance), bits, shared=LARGEST_BYTES
    )
    return bits.view(torch.float32)


def invert(
    displacement: Tensor, start: Tensor, iterations: int, tolerance: float, threads: int
) -> tuple[Tensor, Tensor]:
    """As `displacements.invert`, with the most steps and the residual at which a node ends, voxels.

    Parameters
    ----------
    displacement, start
        See `displacements.invert`.
    iterations : int
        Most steps of a node.
    tolerance : float
        The residual at which it ends, voxels.
    threads : int
        Has no meaning here.

    Returns
    -------
    inverse : Tensor
        ``v``, ``(3, Z, Y, X)``, voxels.
    residual : Tensor
        The largest ``|v(y) + u(y + v(y))|``, voxels: a scalar on the card, which nobody waits for. Infinite where a
        node never came by a number.
    """
    u, v = pack(f32(displacement), 1.0), pack(f32(start), 1.0)
    worst = _invert(u, v, iterations, tolerance)
    return unpack(v, 1.0), worst


def _balance(u: Tensor, v: Tensor, relaxation: float) -> None:
    """The relaxed least-squares step of `reference.inverse_pair` on the packed inverse `v`, in place."""
    count, n = u.numel() // 4, packed_size(u)
    shift = min(40, SUM_BITS - count.bit_length())
    # Four sums a node, then the bits of the largest residual: cleared at once.
    sums = torch.zeros(4 * count + 1, dtype=torch.int64, device=u.device)
    bits, sums = sums[-1:], sums[:-1]
    launch_each(FILE, "largest_residual", count, u, v, n, bits, shared=LARGEST_BYTES)
    launch_each(FILE, "balance", count, u, v, n, shift, bits, sums)
    launch_each(FILE, "balance_step", count, v, n, float(relaxation), shift, bits, sums)


def inverse_pair(
    displacement: Tensor, start: Tensor, relaxation: float, scale: list[float], threads: int
) -> tuple[Tensor, Tensor]:
    """As `displacements.inverse_pair`.

    Parameters
    ----------
    displacement, start, scale
        See `displacements.inverse_pair`.
    relaxation : float
        As of `reference.inverse_pair`.
    threads : int
        Has no meaning here.

    Returns
    -------
    inverse : Tensor
        ``v``, ``(3, Z, Y, X)``, voxels.
    error : Tensor
        ``(Z, Y, X)``, see `displacements.inverse_pair`.
    """
    u, v = pack(f32(displacement), 1.0), pack(f32(start), 1.0)
    _invert(u, v, ITERATIONS, TOLERANCE)
    _balance(u, v, relaxation)
    error = u.new_empty(displacement.shape[1:])
    launch_each(FILE, "inverse_error", error.numel(), u, v, packed_size(u), *(float(s) for s in scale), error)
    del u
    return unpack(v, 1.0), error


def jacobian_map(displacement: Tensor, threads: int) -> Tensor:
    """See `displacements.jacobian_map`.

    Parameters
    ----------
    displacement : Tensor
        ``(3, Z, Y, X)``, voxels.
    threads : int
        Has no meaning here.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``.
    """
    u = f32(displacement)
    out = u.new_empty(u.shape[1:])
    launch_each(FILE, "jacobian_map", out.numel(), u, size_of(u), out)
    return out

"""Ops on displacements: exponential, composition, inverse, Jacobian determinants and penalties.

All are ``(3, Z, Y, X)`` in voxels of their own grid, components ``x, y, z`` first.
"""

from __future__ import annotations

import math

from torch import Tensor

from itk_nir.engine.ops import reference
from itk_nir.engine.ops.dispatch import native_for
from itk_nir.engine.ops.limits import thread_count


def exponential(
    velocity: Tensor, integration_steps: int, scale: float = 1.0, threads: int = 1, outer: Tensor | None = None
) -> Tensor:
    """``exp(scale v) - id`` by scaling and squaring.

    With `outer`, ``(id + outer) o exp(scale v) - id``: as `compose` of the two, faster.

    Parameters
    ----------
    velocity : Tensor
        ``v``, ``(3, Z, Y, X)``; `scale` times it is in voxels.
    integration_steps : int
        Squarings; the flow is that of ``2^integration_steps`` equal Euler steps.
    scale : float
        The time, or what makes voxels of the unit of `velocity`; negative for the inverse.
    threads : int
        Of the native op.
    outer : Tensor or None
        ``(3, Z, Y, X)``, voxels: a displacement that follows.

    Returns
    -------
    Tensor
        ``(3, Z, Y, X)``, voxels.
    """
    threads, native = thread_count(threads), native_for(velocity)
    if native:
        result: Tensor = native.Exponential.apply(velocity, outer, integration_steps, scale, threads)
        return result
    u = reference.exponential(velocity, integration_steps, scale)
    return u if outer is None else reference.compose(outer, u)


def compose(outer: Tensor, inner: Tensor, threads: int = 1) -> Tensor:
    """``inner(x) + outer(x + inner(x))``, trilinear, the value at the edge beyond it.

    Parameters
    ----------
    outer, inner : Tensor
        ``(3, Z, Y, X)``, voxels, on one grid.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(3, Z, Y, X)``, voxels.
    """
    threads, native = thread_count(threads), native_for(inner)
    result: Tensor = native.Compose.apply(outer, inner, threads) if native else reference.compose(outer, inner)
    return result


def diffusion(u: Tensor, scale: float = math.inf, threads: int = 1) -> Tensor:
    """Sum of the squared differences between neighbours, or only of the logarithm of those far beyond `scale`.

    See `reference.diffusion`; the differences of a node go into the logarithm together.

    Parameters
    ----------
    u : Tensor
        ``(C, Z, Y, X)``, any unit.
    scale : float
        Above 0, may be infinite; unit of `u`.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        Scalar, squared unit of `u`.

    Raises
    ------
    ValueError
        `scale` is not above 0.
    """
    if not scale > 0:
        raise ValueError(f"diffusion: scale must be positive, got {scale}")
    threads, native = thread_count(threads), native_for(u)
    result: Tensor = native.Diffusion.apply(u, scale, threads) if native else reference.diffusion(u, scale)
    return result


def jacobian_penalty(u: Tensor, margin: float, corner: int = 0, threads: int = 1) -> Tensor:
    """``sum relu(margin - det)²`` over the cells of a lattice, by differences from one of their corners.

    Parameters
    ----------
    u : Tensor
        ``(3, Z, Y, X)``, voxels.
    margin : float
        Determinant from which on nothing is penalised.
    corner : int
        0 to 7, see `reference.jacobian`.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        Scalar.
    """
    threads, native = thread_count(threads), native_for(u)
    result: Tensor = (
        native.JacobianPenalty.apply(u, margin, corner, threads)
        if native
        else reference.jacobian_penalty(u, margin, corner)
    )
    return result


def invert(displacement: Tensor, start: Tensor, threads: int = 1) -> tuple[Tensor, float]:
    """The inverse of a displacement: ``v`` with ``v(y) + u(y + v(y)) = 0`` at every node of the grid.

    Newton's method with the local Jacobian, see `reference.invert`.

    Parameters
    ----------
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, voxels.
    start : Tensor
        ``(3, Z, Y, X)``, voxels: a first guess of ``v``.
    threads : int
        Of the native op.

    Returns
    -------
    inverse : Tensor
        ``v``, ``(3, Z, Y, X)``, voxels.
    residual : float
        The largest ``|v(y) + u(y + v(y))|``, voxels. The native op ends at a node when it is below 0.001.
    """
    threads, native = thread_count(threads), native_for(displacement)
    if native:
        result: tuple[Tensor, float] = native.invert(displacement, start, 20, 1e-3, threads)
        return result
    return reference.invert(displacement, start)


def inverse_pair(
    displacement: Tensor, start: Tensor, scale: tuple[float, float, float], threads: int = 1
) -> tuple[Tensor, Tensor]:
    """The inverse of a displacement such that both orders of composition come back about equally close.

    Newton's method makes ``v(y) + u(y + v(y))`` vanish at every node ``y``; between the nodes, where ``v`` is
    interpolated, ``u(x) + v(x + u(x))`` does not, most of all where the map squeezes. One relaxed least-squares step on
    the latter (ours) halves the larger of the two errors.

    Parameters
    ----------
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, voxels.
    start : Tensor
        ``(3, Z, Y, X)``, voxels: a first guess of the inverse ``v``.
    scale : tuple of float
        What a voxel along x, y and z counts in the error, such as the spacing in mm.
    threads : int
        Of the native op.

    Returns
    -------
    inverse : Tensor
        ``v``, ``(3, Z, Y, X)``, voxels.
    error : Tensor
        ``(Z, Y, X)``, ``|S (u(x) + v(x + u(x)))|`` with ``S = diag(scale)``.
    """
    threads, native = thread_count(threads), native_for(displacement)
    if native:
        result: tuple[Tensor, Tensor] = native.inverse_pair(displacement, start, 0.5, list(scale), threads)
        return result
    return reference.inverse_pair(displacement, start, 0.5, displacement.new_tensor(scale))


def jacobian_map(displacement: Tensor, threads: int = 1) -> Tensor:
    """``det(I + ∂u_i/∂x_j)`` at every voxel, by central differences, one-sided at the rim.

    Parameters
    ----------
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, voxels.
    threads : int
        Of the native op.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``.
    """
    threads, native = thread_count(threads), native_for(displacement)
    result: Tensor = native.jacobian_map(displacement, threads) if native else reference.jacobian_map(displacement)
    return result

"""The ops in plain torch: slow, differentiable, any float type, any device. They define what the native ops compute.

Every function here works on 3D tensors ``([C,] Z, Y, X)``; a 2D image is one with a single plane. Displacements are in
voxels of their own grid, components ``x, y, z`` first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from itk_nir.engine.ops.box_sums import box_sum

#: `invert` works on so many voxels at a time, which bounds the memory that it takes.
BLOCK = 1 << 19
#: Determinant of the local Jacobian at or below which Newton's step is worth nothing.
LEAST_DETERMINANT = 0.05
#: Longest step of `invert`, voxels: the Jacobian is that of one cell.
LONGEST_STEP = 2.0
#: Of a window that is centred where nothing counts: less is too few voxels for a correlation (a fiftieth does as well).
LEAST_SHARE = 0.1


def banded(x: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """Apply a banded matrix along the middle axis.

    ``out[o, i, j] = sum_k weights[i, k] x[o, start[i] + k, j]``

    Parameters
    ----------
    x : Tensor
        ``(outer, n, inner)``.
    start : Tensor
        ``(n_out,)``, the first column of each row.
    weights : Tensor
        ``(n_out, taps)``, what the rows hold from there on.

    Returns
    -------
    Tensor
        ``(outer, n_out, inner)``.
    """
    n_out, taps = weights.shape
    index = start.to(torch.long)[:, None] + torch.arange(taps, device=x.device)
    matrix = torch.zeros(n_out, x.shape[1], dtype=x.dtype, device=x.device)
    matrix.scatter_add_(1, index, weights.to(x.dtype))
    return torch.matmul(matrix, x)


def _corner_sum(image: Tensor, position: Tensor) -> Tensor:
    """Trilinear interpolation of ``image (C, Z, Y, X)`` at ``position (3, ...)`` in voxels, clamped to the edge."""
    flat = image.reshape(image.shape[0], -1)
    # Of the corners of a cell, one along an axis of one voxel: where they are, and their weights.
    at, weight, stride = position.new_zeros((1, *position.shape[1:]), dtype=torch.long), None, 1
    for p, n in zip(position.unbind(), image.shape[:0:-1], strict=True):
        if n > 1:
            inside = p.clamp(0, n - 1)
            # What is not a number lies in the first cell, and makes its value no number.
            low = inside.detach().nan_to_num(0.0).floor().clamp(max=n - 2)
            high = inside - low
            at = at + low.long() * stride
            at = torch.cat([at, at + stride])
            both = torch.stack([1 - high, high])
            weight = both if weight is None else torch.cat([weight * both[0], weight * both[1]])
        stride *= n
    values = flat[:, at.reshape(-1)].reshape(len(image), *at.shape)
    # An image of one voxel is the same everywhere, but where a position is no number.
    return values[:, 0] + 0 * position[0] if weight is None else (values * weight).sum(1)


def identity(shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    """Voxel coordinates of a grid.

    Parameters
    ----------
    shape : torch.Size or tuple of int
        ``(Z, Y, X)``.
    like : Tensor
        What the result takes its type and device from.

    Returns
    -------
    Tensor
        ``(3, Z, Y, X)``, components ``x, y, z``.
    """
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])


def warp(moving: Tensor, displacement: Tensor, grid_to_moving: Tensor, displacement_to_moving: Tensor) -> Tensor:
    """An image seen through a displacement, then a linear map: trilinear, the value at the edge beyond it.

    ``warped(i) = moving(grid_to_moving (i, 1) + displacement_to_moving u(i))``

    Parameters
    ----------
    moving : Tensor
        ``([C,] Z', Y', X')``.
    displacement : Tensor
        ``(3, Z, Y, X)``, any unit.
    grid_to_moving : Tensor
        ``(3, 4)``, voxel ``i`` of the output → voxel of `moving`.
    displacement_to_moving : Tensor
        ``(3, 3)``, unit of the displacement → voxels of `moving`.

    Returns
    -------
    Tensor
        ``([C,] Z, Y, X)``.
    """
    i, v = grid_to_moving.to(displacement), displacement_to_moving.to(displacement)
    y = torch.einsum("ij,j...->i...", i[:, :3], identity(displacement.shape[1:], displacement))
    y = y + torch.einsum("ij,j...->i...", v, displacement) + i[:, 3].reshape(3, 1, 1, 1)
    return _corner_sum(moving, y) if moving.ndim == 4 else _corner_sum(moving[None], y)[0]


def lncc(
    fixed: Tensor, moving: Tensor, weight: Tensor | None, radius: int, epsilon: float, centres: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the squared local correlation over all windows that count, and how many do.

    A window counts where the weight of its centre is above one half, or `centred_beyond` says so, and the fixed
    variance is above `epsilon`;
    ``cc = (sum w (f - f̄)(m - m̄))² / ((sum w (f - f̄)² + ε n) (sum w (m - m̄)² + ε n))`` with ``n = sum w`` [1]_.

    Parameters
    ----------
    fixed, moving : Tensor
        ``(Z, Y, X)``, any intensity scale.
    weight : Tensor or None
        ``(Z, Y, X)``, 0 to 1; None where every voxel counts.
    radius : int
        Of the window, voxels.
    epsilon : float
        In squared units of intensity.
    centres : Tensor or None
        See `centred_beyond`.

    Returns
    -------
    total : Tensor
        Scalar, the sum of ``cc``.
    count : Tensor
        Scalar, the number of windows that count.

    References
    ----------
    .. [1] Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Med. Image Anal. 12(1),
       2008, eq. 6, squared; ε is ours.
    """
    w = torch.ones_like(fixed) if weight is None else weight
    count = box_sum(w, radius)
    inverse = torch.where(count > 0.5, 1 / count.clamp(min=0.5), torch.zeros_like(count))
    sf, sm = box_sum(w * fixed, radius), box_sum(w * moving, radius)
    vf = box_sum(w * fixed * fixed, radius) - sf * sf * inverse
    vm = (box_sum(w * moving * moving, radius) - sm * sm * inverse).clamp(min=0)
    cross = box_sum(w * fixed * moving, radius) - sf * sm * inverse
    centre = w > 0.5 if centres is None else (w > 0.5) | centred_beyond(w, centres, radius)
    counts = (count > 0.5) & (vf > epsilon * count) & centre
    safe = torch.where(counts, (vf + epsilon * count) * (vm + epsilon * count), torch.ones_like(vf))
    cc = torch.where(counts, cross * cross / safe, torch.zeros_like(vf))
    return cc.sum(), counts.sum()


def centred_beyond(weight: Tensor, centres: Tensor, radius: int) -> Tensor:
    """Windows that are centred where nothing counts and yet look at enough that does.

    Parameters
    ----------
    weight : Tensor
        ``(Z, Y, X)``, 0 to 1.
    centres : Tensor
        ``(Z, Y, X)``, 0 or 1: where windows may be centred; 1 wherever the weight is above one half.
    radius : int
        Of the window, voxels.

    Returns
    -------
    Tensor
        Bool, those of at least `LEAST_SHARE` of what they would look at if all centres counted.
    """
    share = box_sum(weight, radius) - LEAST_SHARE * box_sum(centres.to(weight), radius)
    return (weight <= 0.5) & (centres > 0.5) & (share >= 0)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """``inner(x) + outer(x + inner(x))``, trilinear, the value at the edge beyond it.

    Parameters
    ----------
    outer, inner : Tensor
        ``(3, Z, Y, X)``, voxels, on one grid.

    Returns
    -------
    Tensor
        ``(3, Z, Y, X)``, voxels.
    """
    return inner + _corner_sum(outer, identity(inner.shape[1:], inner) + inner)


def exponential(velocity: Tensor, integration_steps: int, scale: float = 1.0) -> Tensor:
    """``exp(scale v) - id`` by scaling and squaring [1]_.

    Parameters
    ----------
    velocity : Tensor
        ``(3, Z, Y, X)``; `scale` times it is in voxels.
    integration_steps : int
        Squarings; the flow is that of ``2^integration_steps`` equal Euler steps.
    scale : float
        The time, or what makes voxels of the unit of `velocity`.

    Returns
    -------
    Tensor
        ``(3, Z, Y, X)``, voxels.

    References
    ----------
    .. [1] Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI 2006.
    """
    u = velocity * (scale / 2**integration_steps)
    for _ in range(integration_steps):
        u = compose(u, u)
    return u


def _value_and_slopes(image: Tensor, position: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What `_corner_sum` is at ``position (3, N)``, and its derivatives along x, y and z, each ``(C, N)``."""
    base = torch.zeros_like(position[0], dtype=torch.long)
    fractions, inside, strides, stride = [], [], [], 1
    for p, n in zip(position, image.shape[:0:-1], strict=True):
        # So written that what is not a number comes to lie at 0.
        at = torch.where(p > 0, p.clamp(max=n - 1), torch.zeros_like(p))
        low = at.floor().clamp(max=max(0, n - 2))
        base = base + low.long() * stride
        fractions.append(at - low)
        inside.append((at == p).to(p.dtype))  # beyond the edge the value is constant
        strides.append(stride if n > 1 else 0)
        stride *= n
    flat = image.reshape(image.shape[0], -1)
    (fx, fy, fz), (sx, sy, sz) = fractions, strides

    def along_x(offset: int) -> tuple[Tensor, Tensor]:
        value = flat[:, base + offset]
        slope = flat[:, base + (offset + sx)] - value
        return value + fx * slope, slope

    (w00, d00), (w10, d10), (w01, d01), (w11, d11) = (along_x(s) for s in (0, sy, sz, sy + sz))
    e0, e1 = w10 - w00, w11 - w01
    r0, r1 = w00 + fy * e0, w01 + fy * e1
    t0, t1 = d00 + fy * (d10 - d00), d01 + fy * (d11 - d01)
    slopes = [t0 + fz * (t1 - t0), e0 + fz * (e1 - e0), r1 - r0]
    return r0 + fz * (r1 - r0), [s * i for s, i in zip(slopes, inside, strict=True)]


def _newton_step(residual: Tensor, slopes: list[Tensor]) -> Tensor:
    """The damped step ``(3, N)`` for the residual of ``w + u(x + w)``, whose Jacobian is ``I + slopes`` (columns)."""
    columns = [torch.stack([s[i] + 1 if i == a else s[i] for i in range(3)]) for a, s in enumerate(slopes)]
    # The rows of the adjugate: the inverse times the determinant.
    rows = [torch.linalg.cross(columns[(a + 1) % 3], columns[(a + 2) % 3], dim=0) for a in range(3)]
    determinant = (columns[0] * rows[0]).sum(0)
    good = determinant > LEAST_DETERMINANT
    step = torch.stack([(row * residual).sum(0) for row in rows]) / torch.where(good, determinant, 1.0)
    step = step * (LONGEST_STEP / step.square().sum(0).sqrt().clamp(min=LONGEST_STEP))
    # Where the map is close to singular or folded, Newton's step is worthless: fall back on the fixed point.
    return torch.where(good, step, 0.5 * residual)


@torch.no_grad()
def invert(displacement: Tensor, start: Tensor, iterations: int = 20) -> tuple[Tensor, float]:
    """The inverse of a displacement: ``v`` with ``v(y) + u(y + v(y)) = 0`` at every node ``y`` of the grid.

    Newton's method with the Jacobian of the trilinear interpolant in the cell that a point is in, no step longer than
    two voxels; half a step of the fixed-point iteration where the determinant is below 0.05. Every node keeps the best
    of what it came by.

    Parameters
    ----------
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, voxels.
    start : Tensor
        ``(3, Z, Y, X)``, voxels: a first guess of ``v``.
    iterations : int
        Most steps.

    Returns
    -------
    inverse : Tensor
        ``v``, ``(3, Z, Y, X)``, voxels.
    residual : float
        The largest ``|v(y) + u(y + v(y))|`` of all nodes, voxels.

    Notes
    -----
    Nothing is read back from the device before the end. On the CPU, where that costs nothing, a block of voxels ends
    when all of them are at the square root of the rounding error.
    """
    tolerance = torch.finfo(start.dtype).eps  # of the squared residual
    x, first = identity(start.shape[1:], start).reshape(3, -1), start.reshape(3, -1)
    inverse, worst = torch.empty_like(first), first.new_zeros(())
    for begin in range(0, x.shape[1], BLOCK):
        part = slice(begin, begin + BLOCK)
        v = best = first[:, part]
        least = torch.full_like(v[0], torch.inf)
        for k in range(iterations + 1):
            value, slopes = _value_and_slopes(displacement, x[:, part] + v)
            residual = v + value
            size = residual.square().sum(0)
            best = torch.where(size < least, v, best)
            least = torch.where(size < least, size, least)
            if k == iterations or (v.device.type == "cpu" and float(least.max()) <= tolerance):
                break
            v = v - _newton_step(residual, slopes)
        inverse[:, part] = best
        worst = torch.maximum(worst, least.max())
    return inverse.reshape(start.shape), float(worst.sqrt())


def inverse_pair(displacement: Tensor, start: Tensor, relaxation: float, scale: Tensor) -> tuple[Tensor, Tensor]:
    """An inverse that is as good in both orders of composition, and its error.

    `invert`, then one relaxed least-squares step of every node on ``u(x) + v(x + u(x))``.

    Parameters
    ----------
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, voxels.
    start : Tensor
        ``(3, Z, Y, X)``, voxels: a first guess of the inverse ``v``.
    relaxation : float
        What is added to the weights that a node has in the residuals around it.
    scale : Tensor
        ``(3,)``, what a voxel along x, y and z counts in the error.

    Returns
    -------
    inverse : Tensor
        ``v``, ``(3, Z, Y, X)``, voxels.
    error : Tensor
        ``(Z, Y, X)``, ``|S (u(x) + v(x + u(x)))|`` with ``S = diag(scale)``.
    """
    v, _ = invert(displacement, start)
    x = identity(v.shape[1:], v) + displacement
    with torch.enable_grad():
        nodes = v.detach().requires_grad_()
        there = _corner_sum(nodes, x)
        (weight,) = torch.autograd.grad(there.sum(), nodes, retain_graph=True)
        (move,) = torch.autograd.grad(there, nodes, -(displacement + there).detach())
    v = v + move / (weight + relaxation)
    error = ((displacement + _corner_sum(v, x)) * scale.reshape(3, 1, 1, 1)).square().sum(0).sqrt()
    return v, error


def jacobian_map(displacement: Tensor) -> Tensor:
    """``det(I + ∂u_i/∂x_j)`` at every voxel, by central differences, one-sided at the rim.

    Parameters
    ----------
    displacement : Tensor
        ``u``, ``(3, Z, Y, X)``, voxels.

    Returns
    -------
    Tensor
        ``(Z, Y, X)``.
    """
    columns = []
    for axis in (3, 2, 1):
        n = displacement.shape[axis]
        if n == 1:
            columns.append(torch.zeros_like(displacement))
            continue
        at = torch.arange(n, device=displacement.device)
        high, low = (at + 1).clamp(max=n - 1), (at - 1).clamp(min=0)
        step = (high - low).to(displacement.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
        columns.append((displacement.index_select(axis, high) - displacement.index_select(axis, low)) / step)
    m = [[columns[j][i] + (1.0 if i == j else 0.0) for j in range(3)] for i in range(3)]
    return _determinant(m)


def _determinant(m: list[list[Tensor]]) -> Tensor:
    return (
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
        - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    )


def diffusion(u: Tensor, scale: float = math.inf) -> Tensor:
    """``sum_i ρ(g_i)`` with ``g_i = sum_a |u(i + e_a) - u(i)|²``: diffusion, or a penalty with a heavy-tailed prior.

    ``ρ(g) = scale² log(1 + g / scale²)``, which is ``g`` for an infinite `scale`: the negative logarithm of a
    heavy-tailed (Cauchy-like) prior on local gradients, the Lorentzian of [1]_. Ordinary diffusion for small gradients,
    only logarithmic for large ones.

    Parameters
    ----------
    u : Tensor
        ``(C, Z, Y, X)``. ``|·|²`` runs over all components, differences beyond the grid are 0.
    scale : float
        Above 0, may be infinite; unit of `u`.

    Returns
    -------
    Tensor
        Scalar.

    References
    ----------
    .. [1] Black and Anandan, "The robust estimation of multiple motions", CVIU 63(1), 1996.
    """
    square = scale * scale
    if not math.isinf(square):
        g = torch.zeros_like(u[0])
        for a in range(3):
            axis = 3 - a
            if u.shape[axis] > 1:
                beyond = [0, 0] * a + [0, 1]
                g = g + functional.pad(u.diff(dim=axis), beyond).square().sum(0)
        return square * torch.log1p(g / square).sum()
    total = u.new_zeros(())
    for axis in (3, 2, 1):
        if u.shape[axis] > 1:
            total = total + u.diff(dim=axis).square().sum()
    return total


def jacobian(u: Tensor, corner: int = 0) -> Tensor:
    """``det(I + ∂u_i/∂x_j)`` of every cell, by differences from one of its corners.

    Parameters
    ----------
    u : Tensor
        ``(3, Z, Y, X)``, voxels. An axis of one voxel counts as uniform.
    corner : int
        0 to 7: bit ``a`` says whether it is the upper one along axis ``a`` (x, y, z).

    Returns
    -------
    Tensor
        ``(Z - 1, Y - 1, X - 1)``, 1 instead of 0 along an axis of one voxel.
    """
    columns = []
    for axis in (3, 2, 1):
        column = torch.zeros_like(u) if u.shape[axis] == 1 else u.diff(dim=axis)
        for other in (3, 2, 1):
            if other != axis and u.shape[other] > 1:
                column = column.narrow(other, (corner >> (3 - other)) & 1, u.shape[other] - 1)
        columns.append(column)
    m = [[columns[j][i] + (1.0 if i == j else 0.0) for j in range(3)] for i in range(3)]
    return _determinant(m)


def jacobian_penalty(u: Tensor, margin: float, corner: int = 0) -> Tensor:
    """``sum relu(margin - det)²`` over the cells of a lattice (squared: its gradient is continuous).

    Parameters
    ----------
    u : Tensor
        ``(3, Z, Y, X)``, voxels.
    margin : float
        Determinant from which on nothing is penalised.
    corner : int
        Of the cells, see `jacobian`.

    Returns
    -------
    Tensor
        Scalar.
    """
    return torch.relu(margin - jacobian(u, corner)).square().sum()


def adam(parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, betas: tuple[float, float], rate: float,
         correction: float, epsilon: float) -> None:  # fmt: skip
    """One step of Adam, in place.

    Parameters
    ----------
    parameter, gradient : Tensor
        Of any shape.
    first, second : Tensor
        The running moments, like `parameter`.
    betas : tuple of float
        Their decay rates.
    rate : float
        Step size times ``1 / (1 - beta1^t)``.
    correction : float
        ``1 / (1 - beta2^t)``.
    epsilon : float
        Added to the root of the second moment.
    """
    first.lerp_(gradient, 1 - betas[0])
    second.lerp_(gradient * gradient, 1 - betas[1])
    parameter.addcdiv_(first, (second * correction).sqrt_().add_(epsilon), value=-rate)

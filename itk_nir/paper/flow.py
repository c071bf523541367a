"""From a field to a deformation: integrate, compose, invert, and the Jacobian determinant.

Two forms of a deformation appear here.

- *At points*: a field is any function ``(N, d)`` → ``(N, d)``; positions and vectors share one unit (field units in
  this package). `flow` turns the field into a displacement by a name in `FLOWS`.
- *On a lattice*: vectors ``(d, [D,] H, W)``, components ``(x, y[, z])`` along the lattice's own axes, in the unit of
  `spacing` (voxels where the spacing is left at 1). Between the nodes they are linear; outside they repeat the rim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from itk_nir.engine.interpolation import sample

#: A displacement or velocity at points: ``(N, d)`` → ``(N, d)``.
PointField = Callable[[Tensor], Tensor]


# --- at points -------------------------------------------------------------------------------------------------------


def displacement(field: PointField, points: Tensor, steps: int = 1, time: float = 1.0) -> Tensor:
    """The field itself is the displacement; `steps` is not used and `time` scales it."""
    value = field(points)
    return value if time == 1.0 else value * time


def euler(field: PointField, points: Tensor, steps: int = 8, time: float = 1.0) -> Tensor:
    """Displacement ``phi(p) - p`` of the flow ``dphi/dt = v(phi)`` up to `time`, by `steps` steps of first order."""
    h = time / steps
    moved = points
    for _ in range(steps):
        moved = moved + h * field(moved)
    return moved - points


def rk4(field: PointField, points: Tensor, steps: int = 4, time: float = 1.0) -> Tensor:
    """The same flow by the classical Runge-Kutta method of fourth order: four evaluations a step."""
    h = time / steps
    moved = points
    for _ in range(steps):
        k1 = field(moved)
        k2 = field(moved + (h / 2) * k1)
        k3 = field(moved + (h / 2) * k2)
        k4 = field(moved + h * k3)
        moved = moved + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
    return moved - points


#: What a field means, by name: its own value, or a stationary velocity with the solver that integrates it.
FLOWS: dict[str, Callable[[PointField, Tensor, int, float], Tensor]] = {
    "displacement": displacement,
    "euler": euler,
    "rk4": rk4,
}


def flow(name: str, field: PointField, points: Tensor, steps: int = 4, time: float = 1.0) -> Tensor:
    """Displacement ``(N, d)`` of `points` under `field`, in the unit of the points.

    Parameters
    ----------
    name : a name in `FLOWS`.
    field : displacement or stationary velocity.
    points : ``(N, d)``.
    steps : steps of the solver, at least one.
    time : integration time; a negative time runs a velocity backward, which is the inverse map.

    Raises
    ------
    ValueError : unknown name, or no steps.
    """
    if name not in FLOWS:
        raise ValueError(
            f"unknown flow {name!r}; there are {', '.join(FLOWS)} (squaring works on lattices: `squaring`)"
        )
    if steps < 1:
        raise ValueError(f"a flow needs at least one step, got {steps}")
    return FLOWS[name](field, points, steps, time)


def inverse_flow(
    name: str,
    field: PointField,
    points: Tensor,
    steps: int = 4,
    time: float = 1.0,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Displacement ``(N, d)`` of the inverse map at `points`, and its error.

    A velocity is integrated backward; a displacement is inverted by `invert_at_points` with the given `iterations` and
    `tolerance`. The error is ``(N,)``: the distance between a point and the image of its inverse under the forward map,
    in the unit of the points.
    """
    if name == "displacement":
        return invert_at_points(lambda p: displacement(field, p, steps, time), points, iterations, tolerance)
    inverse = flow(name, field, points, steps, -time)
    there = points + inverse
    return inverse, torch.linalg.vector_norm(inverse + flow(name, field, there, steps, time), dim=-1)


def invert_at_points(
    field: PointField, points: Tensor, iterations: int = 100, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``v`` with ``v(p) + u(p + v(p)) = 0`` for the displacement ``u = field``, and the error that is left.

    Fixed-point iteration (Chen et al., Medical Physics 35 (2008) 81, eq. 10), with a step that is halved at every point
    whose error grew, so that it also settles where ``u`` is not a contraction but ``p + u`` is still one to one.

    Parameters
    ----------
    field : displacement ``(N, d)`` → ``(N, d)``.
    points : ``(N, d)``.
    iterations : at most so many evaluations of the field.
    tolerance : stops when the largest error is at or below it, in the unit of the points.

    Returns
    -------
    ``(N, d)`` inverse displacement, the best found at every point, and ``(N,)`` its error ``|v + u(p + v)|``.
    """
    with torch.no_grad():
        best = torch.zeros_like(points)
        residual = field(points)
        error = torch.linalg.vector_norm(residual, dim=-1)
        step = torch.ones_like(error)
        for _ in range(iterations):
            if not bool((error > tolerance).any()):
                break
            trial = best - step[:, None] * residual
            trial_residual = trial + field(points + trial)
            trial_error = torch.linalg.vector_norm(trial_residual, dim=-1)
            better = trial_error < error
            best = torch.where(better[:, None], trial, best)
            residual = torch.where(better[:, None], trial_residual, residual)
            error = torch.where(better, trial_error, error)
            step = torch.where(better, (step * 1.5).clamp(max=1.0), step / 2)
        return best, error


# --- on a lattice ----------------------------------------------------------------------------------------------------


def lattice_index(vectors: Tensor) -> Tensor:
    """Index of every node of ``(d, [D,] H, W)`` vectors, ``([D,] H, W, d)`` in ``(x, y[, z])`` order."""
    axes = [torch.arange(n, dtype=vectors.dtype, device=vectors.device) for n in vectors.shape[1:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)


def compose(outer: Tensor, inner: Tensor, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """Displacement of "`inner`, then `outer`": ``inner(x) + outer(x + inner(x))``, both on the same lattice.

    Parameters
    ----------
    outer, inner : ``(d, [D,] H, W)`` along the lattice axes, in the unit of `spacing`.
    spacing : distance of neighbouring nodes, one number or ``(x, y[, z])``.
    """
    return inner + _pull(outer, inner, _per_axis(spacing, inner))


def squaring(velocity: Tensor, squarings: int = 6, spacing: float | Sequence[float] = 1.0, time: float = 1.0) -> Tensor:
    """Displacement of the flow of a stationary velocity by scaling and squaring.

    ``u_0 = time v / 2^n``, then ``n`` times ``u ← u ∘ (id + u) + u`` (Arsigny et al., MICCAI 2006, algorithm 2). A
    negative `time` gives the inverse.

    Parameters
    ----------
    velocity : ``(d, [D,] H, W)`` along the lattice axes, in the unit of `spacing` per unit of time.
    squarings : ``n``, at least 0.
    spacing : distance of neighbouring nodes, one number or ``(x, y[, z])``.
    """
    if squarings < 0:
        raise ValueError(f"squarings must be at least 0, got {squarings}")
    u = velocity * (time / 2**squarings)
    for _ in range(squarings):
        u = compose(u, u, spacing)
    return u


def invert_fixed_point(
    vectors: Tensor, spacing: float | Sequence[float] = 1.0, iterations: int = 100, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Inverse displacement on the same lattice, ``(d, [D,] H, W)``, and its error ``([D,] H, W)``.

    See `invert_at_points`; `tolerance` and the error are in the unit of `spacing` (mm where that is mm).
    """
    scale = _per_axis(spacing, vectors)
    d = vectors.shape[0]
    index = lattice_index(vectors).reshape(-1, d)

    def read(points: Tensor) -> Tensor:
        return sample(vectors, points / scale, "linear", "edge").T

    inverse, error = invert_at_points(read, index * scale, iterations, tolerance)
    return inverse.T.reshape(vectors.shape), error.reshape(vectors.shape[1:])


def _per_axis(spacing: float | Sequence[float], vectors: Tensor) -> Tensor:
    d = vectors.dim() - 1
    if vectors.shape[0] != d:
        raise ValueError(f"vectors on a lattice are (d, [D,] H, W), got shape {tuple(vectors.shape)}")
    values = [float(spacing)] * d if isinstance(spacing, int | float) else [float(s) for s in spacing]
    if len(values) != d or min(values) <= 0:
        raise ValueError(f"spacing needs {d} numbers above 0, got {spacing}")
    return vectors.new_tensor(values)


def _pull(vectors: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`vectors` read at the nodes moved by `shift`."""
    index = lattice_index(shift) + shift.movedim(0, -1) / scale
    return sample(vectors, index, "linear", "edge")


# --- Jacobian --------------------------------------------------------------------------------------------------------


def jacobian_determinant(
    vectors: Tensor, spacing: float | Sequence[float] = 1.0, direction: Tensor | Sequence[Sequence[float]] | None = None
) -> Tensor:
    """Determinant of the Jacobian of ``p + u(p)`` at every node.

    Central differences inside, one-sided at the rim; an axis with one node contributes no derivative.

    Parameters
    ----------
    vectors : ``(d, [D,] H, W)`` displacement in the unit of `spacing` (mm).
    spacing : distance of neighbouring nodes, one number or ``(x, y[, z])``.
    direction : left out, the components lie along the lattice axes. With the ``(d, d)`` direction matrix of the grid
        (columns are the lattice axes in LPS), the components are LPS: the derivative along LPS axes is
        ``∂u/∂index · diag(1/spacing) · directionᵀ``, right for oblique and for left-handed grids.

    Returns
    -------
    ``([D,] H, W)``; 1 is no change of volume, 0 or less is a fold.
    """
    scale = _per_axis(spacing, vectors)
    d = vectors.shape[0]
    along = vectors
    if direction is not None:
        # Rᵀ (∂u/∂x R) has the determinant of the LPS Jacobian: turn the components to the lattice axes first.
        rotation = torch.as_tensor(direction, dtype=vectors.dtype, device=vectors.device)
        if rotation.shape != (d, d):
            raise ValueError(f"direction must be ({d}, {d}), got {tuple(rotation.shape)}")
        along = torch.einsum("ji,j...->i...", rotation, vectors)
    columns = [_difference(along, axis) / scale[axis] for axis in range(d)]
    return determinant_of_identity_plus([[columns[j][i] for j in range(d)] for i in range(d)])


def determinant_of_identity_plus(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """``det(I + G)`` for a 2x2 or 3x3 matrix of tensors ``G[i][j]`` of one shape, written out."""
    if len(rows) == 2:
        (a, b), (c, e) = rows
        return (1 + a) * (1 + e) - b * c
    (a, b, c), (e, f, g), (h, i, j) = rows
    return (1 + a) * ((1 + f) * (1 + j) - g * i) - b * (e * (1 + j) - g * h) + c * (e * i - (1 + f) * h)


def _difference(vectors: Tensor, axis: int) -> Tensor:
    """Derivative of every component along index axis `axis` (x is 0), per node."""
    dim = vectors.dim() - 1 - axis
    if vectors.shape[dim] == 1:
        return torch.zeros_like(vectors)
    (derivative,) = torch.gradient(vectors, dim=dim, edge_order=1)
    return derivative

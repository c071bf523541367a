"""From a field to a deformation, at points: integrate a velocity, and invert.

A field is any function ``(N, d)`` → ``(N, d)``; positions and vectors share one unit (field units in this package).
`flow` turns it into a displacement by a name in `FLOWS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A displacement or velocity at points: ``(N, d)`` → ``(N, d)``.
VectorField = Callable[[Tensor], Tensor]


def displacement(field: VectorField, points: Tensor, steps: int = 1, time: float = 1.0) -> Tensor:
    """The field itself is the displacement. See `flow`.

    Parameters
    ----------
    field : callable
        ``(N, d)`` → ``(N, d)``.
    points : Tensor
        ``(N, d)``.
    steps : int
        Not used.
    time : float
        Factor on the field.

    Returns
    -------
    Tensor
        ``(N, d)``.
    """
    value = field(points)
    return value if time == 1.0 else value * time


def euler(field: VectorField, points: Tensor, steps: int = 8, time: float = 1.0) -> Tensor:
    """Displacement ``phi(p) - p`` of the flow ``dphi/dt = v(phi)``, by first-order steps. See `flow`.

    Parameters
    ----------
    field : callable
        ``(N, d)`` → ``(N, d)``: the velocity.
    points : Tensor
        ``(N, d)``.
    steps : int
        Of the solver.
    time : float
        Up to which it integrates.

    Returns
    -------
    Tensor
        ``(N, d)``.
    """
    h = time / steps
    moved = points
    for _ in range(steps):
        moved = moved + h * field(moved)
    return moved - points


def rk4(field: VectorField, points: Tensor, steps: int = 4, time: float = 1.0) -> Tensor:
    """Displacement of the flow by the classical Runge-Kutta method of fourth order. See `flow`.

    Parameters
    ----------
    field : callable
        ``(N, d)`` → ``(N, d)``: the velocity, evaluated four times a step.
    points : Tensor
        ``(N, d)``.
    steps : int
        Of the solver.
    time : float
        Up to which it integrates.

    Returns
    -------
    Tensor
        ``(N, d)``.
    """
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
FLOWS: dict[str, Callable[[VectorField, Tensor, int, float], Tensor]] = {
    "displacement": displacement,
    "euler": euler,
    "rk4": rk4,
}


def flow(name: str, field: VectorField, points: Tensor, steps: int = 4, time: float = 1.0) -> Tensor:
    """Displacement of points under a field.

    Parameters
    ----------
    name : str
        A name in `FLOWS`.
    field : callable
        Displacement or stationary velocity, ``(N, d)`` → ``(N, d)``.
    points : Tensor
        ``(N, d)``.
    steps : int
        Steps of the solver, at least one.
    time : float
        Integration time; a negative one runs a velocity backward, which gives the inverse map.

    Returns
    -------
    Tensor
        ``(N, d)``, in the unit of the points.

    Raises
    ------
    ValueError
        An unknown name, or no steps.
    """
    if name not in FLOWS:
        raise ValueError(f"unknown flow {name!r}; there are {', '.join(FLOWS)}")
    if steps < 1:
        raise ValueError(f"a flow needs at least one step, got {steps}")
    return FLOWS[name](field, points, steps, time)


def inverse_flow(
    name: str,
    field: VectorField,
    points: Tensor,
    steps: int = 4,
    time: float = 1.0,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Tensor:
    """Displacement of points under the inverse of `flow`.

    A velocity is integrated backward; a displacement is inverted by `invert_at_points`.

    Parameters
    ----------
    name, field, points, steps, time
        As for `flow`.
    iterations, tolerance
        As for `invert_at_points`.

    Returns
    -------
    Tensor
        ``(N, d)``, in the unit of the points.
    """
    if name == "displacement":
        return invert_at_points(lambda p: displacement(field, p, steps, time), points, iterations, tolerance)[0]
    return flow(name, field, points, steps, -time)


def invert_at_points(
    field: VectorField, points: Tensor, iterations: int = 100, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``v`` with ``v(p) + u(p + v(p)) = 0`` for the displacement ``u = field``, and the error that is left.

    Fixed-point iteration [1]_, with a step that is halved at every point whose error grew, so that it also settles
    where ``u`` is not a contraction but ``p + u`` is still one to one.

    Parameters
    ----------
    field : callable
        Displacement ``(N, d)`` → ``(N, d)``.
    points : Tensor
        ``(N, d)``.
    iterations : int
        At most so many evaluations of the field.
    tolerance : float
        Stops when the largest error is at or below it, in the unit of the points.

    Returns
    -------
    inverse : Tensor
        ``(N, d)`` inverse displacement, the best found at every point.
    error : Tensor
        ``(N,)``, its ``|v + u(p + v)|``.

    References
    ----------
    .. [1] Chen, Lu, Chen, Ruchala, Olivera, "A simple fixed-point approach to invert a deformation field", Medical
       Physics 35 (2008) 81, eq. 10.
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

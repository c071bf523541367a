"""Minimisation that cannot lose: limited-memory BFGS whose steps are bounded by how far they move the image.

The gradient of a similarity says where to go but not how far: far from the answer its length means nothing. So the
first step, and every one after it, is cut where it would move the image by more than a radius (a trust region), the
radius grows and shrinks with how well the last step kept its promise, and no step is taken that does not lower the
loss. Where nothing is to be gained, the parameters stay exactly where they are.

References
----------
Nocedal and Wright, "Numerical Optimization", 2nd ed., 2006: algorithm 7.4 (the two-loop recursion), chapter 4 (trust
regions), equation 3.4 (sufficient decrease).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: How many pairs of steps and changes of the gradient the approximate Hessian is made of.
MEMORY = 10

#: Share of the decrease promised by the gradient that a step must bring.
SUFFICIENT_DECREASE = 1e-4

#: A step is shortened so many times before the direction is given up.
MOST_TRIES = 6


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a minimisation ended.

    Parameters
    ----------
    x : Tensor
        ``(n,)``; its loss is never above that of the start.
    loss : float
        The loss there.
    evaluations : int
        How often loss and gradient were computed.
    stop : str
        ``"converged"``, ``"all evaluations done"`` or ``"cancelled"``.
    """

    x: Tensor
    loss: float
    evaluations: int
    stop: str


@dataclass(frozen=True, eq=False)
class Position:
    """Where a minimisation is, between two evaluations.

    Parameters
    ----------
    x, gradient, direction : Tensor
        ``(n,)``: the parameters, the gradient there, and the direction that is followed.
    loss, slope, length, radius : float
        There; of the loss along the direction; of the next step; of the region that is trusted.
    tries, evaluations : int
        How often the step was shortened, and how many evaluations were done.
    pairs : tuple of (Tensor, Tensor)
        Steps and changes of the gradient.
    """

    x: Tensor
    gradient: Tensor
    direction: Tensor
    loss: float
    slope: float
    length: float
    radius: float
    tries: int
    evaluations: int
    pairs: tuple[tuple[Tensor, Tensor], ...]


class _Cancelled(Exception):
    """The caller wants no other evaluation."""


def minimise(
    function: Callable[[Tensor], tuple[float, Tensor]],
    start: Tensor,
    reach: Callable[[Tensor, Tensor], float],
    *,
    radius: float,
    most_radius: float,
    evaluations: int,
    tolerance: float,
    goes_on: Callable[[float], bool] = lambda _: True,
    begin: Position | None = None,
    tell: Callable[[Position], None] = lambda _: None,
) -> Minimum:
    """Lower a function from a start.

    Parameters
    ----------
    function : callable
        ``(n,)`` parameters → the loss and its gradient ``(n,)``.
    start : Tensor
        ``(n,)``.
    reach : callable
        How far the image is moved by going from one set of parameters to another, any unit.
    radius, most_radius : float
        That a step may reach at first, and ever; the unit of `reach`.
    evaluations : int
        Most evaluations of `function`.
    tolerance : float
        A step that promises less than this ends it.
    goes_on : callable
        Told the loss of every evaluation; a false value ends it.
    begin : Position, optional
        Where to go on, instead of at the start.
    tell : callable
        Told where it is before every evaluation after the first.

    Returns
    -------
    Minimum
    """
    done, x, loss = 0, start, float("inf")

    def evaluate(there: Tensor) -> tuple[float, Tensor]:
        nonlocal done, x, loss
        done += 1
        new_loss, gradient = function(there)
        if not goes_on(new_loss):
            if new_loss < loss:
                x, loss = there, new_loss
            raise _Cancelled
        return new_loss, gradient

    try:
        pairs: deque[tuple[Tensor, Tensor]] = deque(() if begin is None else begin.pairs, maxlen=MEMORY)
        if begin is None:
            loss, gradient = evaluate(x)
            tries, direction, slope, length = 0, gradient, 0.0, 0.0
        else:
            x, gradient, direction = begin.x, begin.gradient, begin.direction
            loss, slope, length, radius = begin.loss, begin.slope, begin.length, begin.radius
            tries, done = begin.tries, begin.evaluations
        while done < evaluations:
            tell(Position(x, gradient, direction, loss, slope, length, radius, tries, done, tuple(pairs)))
            if tries == 0:
                direction, slope = _direction(gradient, pairs)
                length = 1.0 if pairs else radius / max(reach(x, x + direction), 1e-30)
                length = _within(x, direction, length, radius, reach)
            if -slope * length < tolerance or not slope < 0:
                return Minimum(x, loss, done, "converged")
            there = x + length * direction
            new_loss, new_gradient = evaluate(there)
            gain = loss - new_loss
            if not gain >= -SUFFICIENT_DECREASE * slope * length:
                # The minimum of the parabola through both losses and the slope.
                tries += 1
                bend = new_loss - loss - slope * length
                best = 0.5 * slope * length / -bend if bend > 0 else 0.5
                length *= min(0.5, max(0.1, best))
                radius = min(radius, reach(x, x + length * direction))
                if tries >= MOST_TRIES:
                    if not pairs:
                        return Minimum(x, loss, done, "converged")
                    pairs.clear()
                    tries = 0
                continue
            if gain > -0.5 * slope * length:
                radius = min(most_radius, 2 * radius)
            change, turn = there - x, new_gradient - gradient
            if float(change @ turn) > 1e-10 * float(turn.norm() * change.norm()):
                pairs.append((change, turn))
            x, loss, gradient, tries = there, new_loss, new_gradient, 0
    except _Cancelled:
        return Minimum(x, loss, done, "cancelled")
    return Minimum(x, loss, done, "all evaluations done")


def _direction(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> tuple[Tensor, float]:
    """The quasi-Newton direction and the slope along it; steepest descent where it does not go down."""
    q = gradient.clone()
    factors = []
    for change, turn in reversed(pairs):
        rho = 1 / (change @ turn)
        a = rho * (change @ q)
        factors.append((rho, a))
        q -= a * turn
    if pairs:
        change, turn = pairs[-1]
        q *= (change @ turn) / (turn @ turn)
    for (change, turn), (rho, a) in zip(pairs, reversed(factors), strict=True):
        q += (a - rho * (turn @ q)) * change
    slope = -float(gradient @ q)
    if pairs and not slope < 0:
        pairs.clear()
        q, slope = gradient.clone(), -float(gradient @ gradient)
    return -q, slope


def _within(
    x: Tensor, direction: Tensor, length: float, radius: float, reach: Callable[[Tensor, Tensor], float]
) -> float:
    """A length at which the step keeps to the radius; what moves the image need not be linear in the parameters."""
    for _ in range(40):
        far = reach(x, x + length * direction)
        if far <= 1.05 * radius:
            return length
        length *= max(0.1, radius / far) if far > radius else 0.1  # not a number: much too far as well
    return 0.0

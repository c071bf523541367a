"""The exhaustive optimiser: the metric at every node of a grid of parameters, as ITK's does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from itk_nir.errors import OptionError
from itk_nir.options import whole_number

#: More positions than that are a mistake.
MOST_POSITIONS = 10_000_000


@dataclass(frozen=True)
class Grid:
    """A grid of parameters around a start.

    Parameters
    ----------
    steps : tuple of int
        How many to either side, a parameter.
    length : float
        Of a step of a parameter whose scale is 1.
    """

    steps: tuple[int, ...]
    length: float

    @classmethod
    def of(cls, steps: Sequence[int], length: float) -> Grid:
        """What ``SetOptimizerAsExhaustive`` was given.

        Parameters
        ----------
        steps : sequence of int
            How many to either side, a parameter; not negative.
        length : float
            Above 0.

        Returns
        -------
        Grid

        Raises
        ------
        OptionError
            Anything else, or far too many positions.
        """
        numbers = [whole_number(n) for n in steps]
        if not numbers or any(n is None or n < 0 for n in numbers):
            raise OptionError(
                f"SetOptimizerAsExhaustive: numberOfSteps has a whole number that is not negative a parameter, got "
                f"{list(steps)}"
            )
        if not 0 < length < math.inf:
            raise OptionError(f"SetOptimizerAsExhaustive: stepLength is above 0, got {length!r}")
        grid = cls(tuple(n for n in numbers if n is not None), float(length))
        if grid.count > MOST_POSITIONS:
            raise OptionError(f"SetOptimizerAsExhaustive: {grid.count} positions are too many; give fewer steps")
        return grid

    @property
    def count(self) -> int:
        """How many positions there are."""
        return math.prod(2 * n + 1 for n in self.steps)

    def positions(self, start: Sequence[float], scales: Sequence[float]) -> Iterator[tuple[float, ...]]:
        """All positions, the first parameter fastest.

        Parameters
        ----------
        start : sequence of float
            The middle of the grid.
        scales : sequence of float
            A step of each parameter, in units of `length`; empty for ones.

        Yields
        ------
        tuple of float

        Raises
        ------
        OptionError
            Another number of steps or scales than parameters.
        """
        scales = tuple(scales) or (1.0,) * len(start)
        for name, values in (("SetOptimizerAsExhaustive", self.steps), ("SetOptimizerScales", scales)):
            if len(values) != len(start):
                raise OptionError(f"{name}: the transform has {len(start)} parameters, got {len(values)} values")
        for number in range(self.count):
            at = []
            for n, value, scale in zip(self.steps, start, scales, strict=True):
                number, k = divmod(number, 2 * n + 1)
                at.append(value + (k - n) * self.length * scale)
            yield tuple(at)


def best_position(
    positions: Iterator[tuple[float, ...]],
    value: Callable[[tuple[float, ...]], float],
    tell: Callable[[tuple[float, ...], float], bool],
) -> tuple[tuple[float, ...], float]:
    """The first position with the least value.

    Parameters
    ----------
    positions : iterator of tuple of float
        At least one.
    value : callable
        Of a position; smaller is better.
    tell : callable
        Told every position and its value; a true answer ends it.

    Returns
    -------
    tuple of float
        The position.
    float
        Its value.
    """
    best: tuple[float, ...] = ()
    least = math.inf
    for position in positions:
        now = value(position)
        if not best or now < least:
            best, least = position, now
        if tell(position, now):
            break
    return best, least

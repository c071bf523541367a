"""Uneven illumination of pictures in transmitted light: stained sections under a microscope.

Light that passes through a section is ``I = I0 * T``: what the lamp and the optics give at each place, times what the
section lets through. ``I0`` is seen where there is glass alone. Where it falls off to the edges, or from one side to
the other, all values of a section differ from place to place, and what two stains have in common is lost in that. So
where glass is seen all around and it is brighter at one place than at another, a smooth surface is laid over the
brightest of what small blocks show, and the picture is divided by it. Backgrounds that are dark, as of most medical
images, and pictures without a background are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

#: Blocks along the longer axis; pixels along each axis that are looked at in one; and which share of them is darker
#: than what counts as the brightest, that single bright pixels shall not decide.
BLOCKS, PIXELS, BRIGHT = 40, 12, 0.9

#: Rows and columns of blocks all around that glass is looked for in first.
RING = 2

#: The degree of the surface (Legendre polynomials) there, and over the whole picture; the rounds of fitting with each.
DEGREES, ROUNDS = (2, 4), (15, 25)

#: How much its bends are held back.
RIDGE = 1e-4

#: The background of a picture in transmitted light is at least so bright, as a share of the brightest blocks.
LIGHT = 0.5

#: Illumination that varies by less (brightest less darkest, over the mean) is even.
EVEN = 0.1

#: How far from the surface glass lies at most (a robust standard deviation, as a share of the mean), and of how many of
#: the blocks it must be seen: of those all around, of all, and of those of each quarter.
CLOSE, AROUND, OVERALL, QUARTER = 0.02, 0.7, 0.15, 0.05

#: The largest share of the surface (standard deviations) that the terms above the second degree may have: light falls
#: off smoothly, while a radiograph cut out of a chest has a bright surface, too, which follows the body.
BENT = 0.3

#: The degree of each product of a polynomial along y and one along x.
_DEGREE = np.add.outer(np.arange(DEGREES[-1] + 1), np.arange(DEGREES[-1] + 1))

#: The standard deviation of a normal distribution over the median of its absolute values.
NORMAL = 1.4826


@dataclass(frozen=True, eq=False)
class Illumination:
    """How a picture is lit.

    Parameters
    ----------
    coefficients : ndarray
        ``(5, 5)``, of the products of Legendre polynomials along y and along x, from -1 to 1 across the picture.
    mean, least, most : float
        Of the surface at the blocks, in units of the picture above its black.
    """

    coefficients: F64
    mean: float
    least: float
    most: float


def illumination(array: F32, black: float) -> Illumination | None:
    """How a picture in transmitted light is lit, where that is uneven.

    Parameters
    ----------
    array : ndarray
        ``(H, W)``, finite.
    black : float
        The value of no light.

    Returns
    -------
    Illumination or None
        None for even light, and where it is not seen: no bright background all around.
    """
    blocks = _brightest(array) - black
    ring = np.ones(blocks.shape, bool)
    ring[RING:-RING, RING:-RING] = False
    # Whatever lies on the glass is darker than it.
    if not np.median(blocks[ring]) > LIGHT * np.percentile(blocks, 95):
        return None
    coefficients, deviation = _surface(blocks, ring)
    surface = _on_grid(coefficients, blocks.shape)
    found = Illumination(coefficients, float(surface.mean()), float(surface.min()), float(surface.max()))
    if found.least <= 0 or found.most - found.least < EVEN * found.mean or deviation > CLOSE * found.mean:
        return None
    if _on_grid(np.where(DEGREES[0] < _DEGREE, coefficients, 0), blocks.shape).std() > BENT * surface.std():
        return None
    glass = np.abs(blocks - surface) < 3 * deviation
    halves = [(slice(None, n // 2), slice(n // 2, None)) for n in glass.shape]
    quarters = min(glass[y, x].mean() for y in halves[0] for x in halves[1])
    return found if glass[ring].mean() > AROUND and glass.mean() > OVERALL and quarters > QUARTER else None


def evened(array: F32, black: float) -> tuple[F32, float]:
    """A picture as even light would show it.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``, finite; one of several planes is left as it is.
    black : float
        The value of no light.

    Returns
    -------
    array : ndarray
        The very same where the light is even, or not seen.
    ratio : float
        How many times as bright the light is at the brightest place as at the darkest one; 1 for even light.
    """
    shape = tuple(n for n in array.shape if n > 1)
    if len(shape) != 2 or min(shape) < BLOCKS:
        return array, 1.0
    plane = array.reshape(shape)
    found = illumination(plane, black)
    if found is None:
        return array, 1.0
    light = np.maximum(_on_grid(found.coefficients, shape), 0.5 * found.least) / found.mean
    return ((plane - black) / light + black).astype(np.float32).reshape(array.shape), found.most / found.least


def _places(n: int) -> F64:
    """The middles of so many pixels or blocks, from -1 to 1 across all."""
    return (2 * np.arange(n) + 1) / n - 1


def _on_grid(coefficients: F64, shape: tuple[int, ...]) -> F64:
    """A surface at the middles of so many pixels or blocks."""
    along_y, along_x = (legvander(_places(n), DEGREES[-1]) for n in shape)
    return np.asarray(along_y @ coefficients @ along_x.T)


def _brightest(array: F32) -> F64:
    """What is about the brightest in each block."""
    size = max(array.shape) / BLOCKS
    counts = [max(2 * RING + 1, round(n / size)) for n in array.shape]
    # The same pixels of each block, whatever its size.
    within = (np.arange(PIXELS) + 0.5) / PIXELS
    rows, columns = (
        ((np.arange(m)[:, None] + within) * n / m).astype(int).reshape(-1)
        for n, m in zip(array.shape, counts, strict=True)
    )
    some = array[rows][:, columns].reshape(counts[0], PIXELS, counts[1], PIXELS).swapaxes(1, 2)
    return np.percentile(some.reshape(*counts, -1).astype(np.float64), 100 * BRIGHT, axis=-1)


def _surface(blocks: F64, ring: NDArray[np.bool_]) -> tuple[F64, float]:
    """Coefficients of a smooth surface over the brightest blocks, and how far glass lies from it.

    Least squares, again and again, in which blocks well below the surface have no weight: first of those all around, by
    few coefficients, then of all.
    """
    degree = _DEGREE.reshape(-1)
    along_y, along_x = (legvander(_places(n), DEGREES[-1]) for n in blocks.shape)
    basis = np.einsum("yi,xj->yxij", along_y, along_x).reshape(blocks.size, -1)
    values, around = blocks.reshape(-1), ring.reshape(-1)
    weight, finest, deviation = around.astype(float), 0.003 * float(blocks.max()), 0.0
    coefficients = np.zeros(len(degree))
    for highest, rounds in zip(DEGREES, ROUNDS, strict=True):
        used = degree <= highest
        some, held = basis[:, used], RIDGE * np.diag(degree[used] ** 2.0)
        counted = around if highest < DEGREES[-1] else np.ones_like(around)
        for _ in range(rounds):
            weighted = weight[:, None] * some
            coefficients[used] = np.linalg.solve(some.T @ weighted + weight.sum() * held, weighted.T @ values)
            below = some @ coefficients[used] - values
            glass = around & (weight > 0.5)
            deviation = NORMAL * float(np.median(np.abs(below[glass if glass.any() else around])))
            deviation = max(deviation, finest)
            weight = counted / (1 + np.exp(np.clip(4 * (below / deviation - 2), -50, 50)))
            weight[below < -4 * deviation] *= 0.2
    return coefficients.reshape(_DEGREE.shape), deviation

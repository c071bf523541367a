"""Smooth surfaces over images, of which the logarithms of smooth factors are made: products of Legendre polynomials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from torch import Tensor

F64 = NDArray[np.float64]

#: The highest degree of a surface.
DEGREE = 4


def sampled_logs(
    one: Tensor, two: Tensor, shown: Tensor, positions: list[F64], most: int
) -> tuple[tuple[Tensor, ...], list[F64], F64]:
    """Logarithms of two images at some of the voxels where both show something.

    Parameters
    ----------
    one, two, shown : Tensor
        ``(z, y, x)``: two images above their black, and where both show something, bool.
    positions : list of ndarray
        Of the voxels along ``x, y, z``.
    most : int
        How many voxels, at most.

    Returns
    -------
    some : tuple of Tensor
        Their indices along ``z, y, x``.
    logs : list of ndarray
        ``(n,)``, of both images.
    places : ndarray
        ``(n, 3)``, their positions ``x, y, z``.
    """
    some = torch.nonzero(shown)[:: -(-int(shown.sum()) // most) or 1].unbind(1)
    logs = [image[some].log().cpu().numpy() for image in (one, two)]
    places = np.stack([p[i.cpu().numpy()] for p, i in zip(positions, reversed(some), strict=True)], -1)
    return some, logs, places


class Surfaces:
    """Smooth surfaces over some places: sums of products of Legendre polynomials along ``x, y, z``.

    Parameters
    ----------
    places : ndarray
        ``(n, 3)``, ``x, y, z`` in voxels.
    along : sequence of bool
        The axes that have more than one voxel: along others no surface changes.
    degree : int
        Of the products, at most `DEGREE`.

    Attributes
    ----------
    low, high : ndarray
        ``(x, y, z)``, the ends of the places.
    products : list of ndarray
        ``(n,)``, the products at the places; the first one is the constant.
    """

    def __init__(self, places: F64, along: Sequence[bool], degree: int) -> None:
        self.low, self.high = places.min(0), places.max(0)
        self._exponents = exponents_along(along, degree)
        values = [polynomials(p, *ends) for p, *ends in zip(places.T, self.low, self.high, strict=True)]
        self.products = [np.prod([v[:, k] for v, k in zip(values, e, strict=True)], axis=0) for e in self._exponents]

    def coefficients(self, fitted: F64, less: float) -> F64:
        """What `Bias` keeps of a surface.

        Parameters
        ----------
        fitted : ndarray
            One number a product.
        less : float
            A constant that the surface is to be lowered by.

        Returns
        -------
        ndarray
            ``(5, 5, 5)``.
        """
        coefficients = np.zeros((DEGREE + 1,) * 3)
        coefficients[tuple(np.array(self._exponents).T)] = fitted
        coefficients[0, 0, 0] -= less
        return coefficients


def exponents_along(along: Sequence[bool], degree: int) -> list[tuple[int, int, int]]:
    """The degrees along ``x, y, z`` of the products that a surface is a sum of; none along an axis of one voxel.

    Parameters
    ----------
    along : sequence of bool
        Which axes have more voxels.
    degree : int
        Of the surface.

    Returns
    -------
    list of tuple of int
    """
    one, two, three = (range(degree + 1) if axis else range(1) for axis in along)
    return [(x, y, z) for x in one for y in two for z in three if x + y + z <= degree]


def polynomials(positions: F64, low: float, high: float) -> F64:
    """The Legendre polynomials that go from -1 to 1 between two ends, constant beyond.

    Parameters
    ----------
    positions : ndarray
        ``(n,)``.
    low, high : float
        The ends.

    Returns
    -------
    ndarray
        ``(n, DEGREE + 1)``.
    """
    return np.asarray(legvander(np.clip(2 * (positions - low) / max(high - low, 1e-9) - 1, -1, 1), DEGREE), np.float64)

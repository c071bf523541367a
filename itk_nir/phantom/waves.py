"""Smooth random functions of space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Waves:
    """A smooth random function of 3D points: a sum of plane waves with wavelengths in a band, unit variance.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the waves are drawn from.
    shortest, longest : float
        The band of the wavelengths, mm.
    count : int
        Number of waves.
    components : int
        Number of values at a point.
    """

    k: NDArray[np.float32]
    phase: NDArray[np.float32]
    weights: NDArray[np.float32]

    def __init__(
        self, rng: np.random.Generator, shortest: float, longest: float, count: int = 32, components: int = 1
    ) -> None:
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        wavelength = rng.uniform(shortest, longest, (count, 1))
        self.k = (2 * np.pi / wavelength * direction).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
        weights = rng.standard_normal((components, count))
        weights *= np.sqrt(2) / np.linalg.norm(weights, axis=1, keepdims=True)
        self.weights = weights.astype(np.float32)

    def __call__(self, points: Array) -> Array:
        """The function at points.

        Parameters
        ----------
        points : ndarray
            ``(3, N)`` mm.

        Returns
        -------
        ndarray
            ``(components, N)``, or ``(N,)`` where there is one.
        """
        angle = self._angle(points)
        value = np.einsum("ck,kn->cn", self.weights, np.cos(angle, out=angle))
        return value[0] if len(value) == 1 else value

    def with_gradient(self, points: Array) -> tuple[Array, Array]:
        """The function and its gradient, for one component.

        Parameters
        ----------
        points : ndarray
            ``(3, N)`` mm.

        Returns
        -------
        ndarray
            Values, ``(N,)``.
        ndarray
            Gradients, ``(3, N)`` per mm.
        """
        angle = self._angle(points)
        value = np.einsum("k,kn->n", self.weights[0], np.cos(angle))
        gradient = np.einsum("kc,kn->cn", self.k * -self.weights[0][:, None], np.sin(angle, out=angle))
        return value, gradient

    def _angle(self, points: Array) -> Array:
        # No BLAS here and above: its threads cost more than they bring on matrices this thin.
        angle = np.einsum("kc,cn->kn", self.k, points)
        angle += self.phase
        return angle

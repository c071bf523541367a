"""A linear map by the parameters that the linear stage moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.metrics import Metric
from itk_nir.engine.restriction import free_parameters, held_axes
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]

#: What a map of a plane does to x and y.
_PLANE = np.pad(np.ones((2, 2)), (0, 1))


class LinearMap:
    """The parameters: a shift in mm, a rotation vector, a stretch and a matrix in mm at the rim of the image.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.
    kind : str
        ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``.
    restrict : sequence of float
        See `itk_nir.engine.restriction.free_parameters`.
    """

    def __init__(self, geometry: Geometry, kind: str, restrict: Sequence[float] = ()) -> None:
        self.geometry: Geometry = geometry
        self.d: int = geometry.dimension
        self.radius: float = geometry.half_extent
        #: Which of the 16 parameters move.
        self.moving: NDArray[np.int64] = np.flatnonzero(free_parameters(self.d, kind, restrict))

    def turn_about(self, axes: Sequence[float]) -> None:
        """Hold the rotation parameters of some axes.

        Parameters
        ----------
        axes : sequence of float
            1 for each axis of the fixed image about which the map may turn, 0 for the others; none for all.
        """
        held = [3 + axis for axis in held_axes(axes)]
        self.moving = self.moving[~np.isin(self.moving, held)]

    def parts(self, x: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """The map as a matrix and a shift.

        Parameters
        ----------
        x : Tensor
            The parameters that move, on the CPU: a GPU has no part in what is done with a dozen numbers.
        device : torch.device, optional
            Where the results are wanted; the CPU when left out.

        Returns
        -------
        tuple of Tensor
            ``(3, 3)`` and ``(3,)`` in mm along the fixed axes, about the centre of the fixed grid.
        """
        both = _Parts.apply(x, self)
        if device is not None and device.type != "cpu":
            both = both.to(device)  # one transfer there, and one of the gradient back
        return both[:, :3], both[:, 3]

    def matrix(self, x: Tensor) -> F64:
        """The map in float64.

        Parameters
        ----------
        x : Tensor
            The parameters that move.

        Returns
        -------
        ndarray
            ``(3, 4)``: the matrix and the shift of `parts`.
        """
        rotation, stretch, shift, *_ = self._factors(x)
        return np.concatenate([rotation @ stretch, shift[:, None]], axis=1)

    def _factors(self, x: Tensor) -> tuple[F64, F64, F64, F64, float]:
        full = np.zeros(16)
        full[self.moving] = x.detach().numpy()
        return _factors(full.tobytes(), self.radius, self.d)

    def gradient(self, x: Tensor, slopes: F64) -> F64:
        """What the parameters have of a slope by the parts.

        Parameters
        ----------
        x : Tensor
            The parameters that move.
        slopes : ndarray
            ``(3, 4)``, by the matrix and the shift.

        Returns
        -------
        ndarray
            As many as move. A rotation ``R`` by a vector ``w`` turns on by ``J(w) dw``, the left Jacobian of SO(3)
            (Sola et al., arXiv 1812.01537, eq. 145).
        """
        rotation, stretch, _, vector, factor = self._factors(x)
        matrix = slopes[:, :3]
        full, turned = np.empty(16), matrix @ (rotation @ stretch).T
        skew, (_, cosine, cubic) = cross_matrix(vector), _rotation_factors(vector)
        jacobian = np.eye(3) + cosine * skew + cubic * skew @ skew
        turning = np.array([turned[2, 1] - turned[1, 2], turned[0, 2] - turned[2, 0], turned[1, 0] - turned[0, 1]])
        full[:3], full[3:6] = slopes[:, 3], jacobian.T @ turning / self.radius
        stretching = rotation.T @ matrix
        if self.d == 2:
            stretching, stretch = stretching * _PLANE, stretch * _PLANE
        full[6] = (stretching * stretch).sum() / self.radius
        full[7:] = (stretching * factor).reshape(-1) / self.radius
        return full[self.moving]

    def zero(self) -> Tensor:
        """The parameters of the identity.

        Returns
        -------
        Tensor
            As many as move, on the CPU.
        """
        return torch.zeros(len(self.moving), dtype=torch.float64)

    def in_lps(self, x: Tensor) -> F64:
        """The map as a homogeneous matrix.

        Parameters
        ----------
        x : Tensor
            The parameters that move.

        Returns
        -------
        ndarray
            ``(d + 1, d + 1)`` LPS mm.
        """
        d, rotation, centre = self.d, self.geometry.rotation, self.geometry.centre
        there = self.matrix(x)
        out = np.eye(d + 1)
        out[:d, :d] = rotation @ there[:d, :d] @ rotation.T
        out[:d, d] = centre + rotation @ there[:d, 3] - out[:d, :d] @ centre
        return out


class _Parts(torch.autograd.Function):
    """The matrix and the shift of a map side by side, float32: numbers so few are not worth a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: LinearMap) -> Tensor:
        ctx.x, ctx.model = x.detach(), model
        return torch.from_numpy(model.matrix(x)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return torch.from_numpy(ctx.model.gradient(ctx.x, grads[0].double().numpy())), None


@lru_cache(maxsize=16)
def _factors(parameters: bytes, radius: float, d: int) -> tuple[F64, F64, F64, F64, float]:
    """The rotation, what is stretched before it, the shift; the rotation vector, and the factor of all lengths.

    A step is measured, evaluated and followed back: the same parameters come several times in a row.
    """
    full = np.frombuffer(parameters)
    vector, factor = full[3:6] / radius, float(np.exp(full[6] / radius))
    stretch = factor * (np.eye(3) + full[7:].reshape(3, 3) / radius)
    if d == 2:  # nothing moves out of the plane
        stretch = stretch * _PLANE + np.diag([0.0, 0.0, 1.0])
    skew, (sine, cosine, _) = cross_matrix(vector), _rotation_factors(vector)
    return np.eye(3) + sine * skew + cosine * skew @ skew, stretch, full[:3], vector, factor


def cross_matrix(v: F64) -> F64:
    """The matrix that takes any vector to the cross product of this one with it.

    Parameters
    ----------
    v : ndarray
        ``(3,)``.

    Returns
    -------
    ndarray
        ``(3, 3)``.
    """
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def _rotation_factors(vector: F64) -> tuple[float, float, float]:
    """``sin(t) / t``, ``(1 - cos(t)) / t²`` and ``(t - sin(t)) / t³`` of the angle ``t`` of a rotation vector."""
    square = float(vector @ vector)
    if square < 1e-4:
        return (
            1 - square / 6 * (1 - square / 20),
            1 / 2 - square / 24 * (1 - square / 30),
            1 / 6 - square / 120 * (1 - square / 42),
        )
    angle = math.sqrt(square)
    return math.sin(angle) / angle, 2 * (math.sin(angle / 2) / angle) ** 2, (angle - math.sin(angle)) / (angle * square)


def corners_from_centre(geometry: Geometry) -> F64:
    """The corners of a grid as a `LinearMap` takes them.

    Parameters
    ----------
    geometry : Geometry
        The fixed grid.

    Returns
    -------
    ndarray
        ``(3, n)`` mm along the fixed axes, from the centre of the grid.
    """
    corners = (geometry.corners() - geometry.centre) @ geometry.rotation
    return np.pad(corners, ((0, 0), (0, 3 - geometry.dimension))).T


class Measuring(Protocol):
    """What measures the images of a level near a map."""

    @property
    def share(self) -> float:
        """Of the positions that count; 0 where there is nothing to compare."""

    def agreement(self, model: LinearMap, x: Tensor) -> Tensor:
        """The similarity under a map after that one, with its gradient.

        Parameters
        ----------
        model : LinearMap
            Which map.
        x : Tensor
            Its parameters.

        Returns
        -------
        Tensor
            One number.
        """

    def agreed(self) -> float:
        """The similarity under the map itself.

        Returns
        -------
        float
        """


class Comparing(Protocol):
    """What compares the images of a level: `LinearLevel`, or `linear_fine.BothWays`."""

    voxel: float
    fixed: Tensor

    def under(self, base: F64, metrics: Sequence[tuple[float, Metric]]) -> Measuring:
        """What measures the images near a map.

        Parameters
        ----------
        base : ndarray
            ``(d + 1, d + 1)`` LPS, before the linear map of the pair.
        metrics : sequence of (float, Metric)
            Weight and metric of each channel.

        Returns
        -------
        Measuring
        """

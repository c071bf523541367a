"""A linear map by the parameters that the linear stage moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.metrics import Metric
from itk_nir.engine.restriction import free_parameters, held_axes
from itk_nir.geometry import Geometry

F64 = NDArray[np.float64]


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
        self.free: Tensor = torch.from_numpy(np.flatnonzero(free_parameters(self.d, kind, restrict)))

    def turn_about(self, axes: Sequence[float]) -> None:
        """Hold the rotation parameters of some axes.

        Parameters
        ----------
        axes : sequence of float
            1 for each axis of the fixed image about which the map may turn, 0 for the others; none for all.
        """
        held = [3 + axis for axis in held_axes(axes)]
        self.free = self.free[~torch.isin(self.free, torch.tensor(held, dtype=self.free.dtype))]

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
        full = x.new_zeros(16).index_copy(0, self.free, x).float()
        a, b, c = (full[3:6] / self.radius).unbind()
        o = torch.zeros_like(a)
        skew = torch.stack([torch.stack([o, -c, b]), torch.stack([c, o, -a]), torch.stack([-b, a, o])])
        eye = torch.eye(3)
        stretch = torch.exp(full[6] / self.radius) * (eye + full[7:].reshape(3, 3) / self.radius)
        if self.d == 2:  # nothing moves out of the plane
            flat = torch.diag(eye.new_tensor([1.0, 1.0, 0.0]))
            stretch = flat @ stretch @ flat + torch.diag(eye.new_tensor([0.0, 0.0, 1.0]))
        matrix, shift = torch.matrix_exp(skew) @ stretch, full[:3]
        if device is None or device.type == "cpu":
            return matrix, shift
        both = torch.cat([matrix, shift[:, None]], 1).to(device)  # one transfer there, and one of the gradient back
        return both[:, :3], both[:, 3]

    def zero(self) -> Tensor:
        """The parameters of the identity.

        Returns
        -------
        Tensor
            As many as move, on the CPU.
        """
        return torch.zeros(len(self.free), dtype=torch.float64)

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
        matrix, shift = (p.detach().double().numpy() for p in self.parts(x))
        out = np.eye(d + 1)
        out[:d, :d] = rotation @ matrix[:d, :d] @ rotation.T
        out[:d, d] = centre + rotation @ shift[:d] - out[:d, :d] @ centre
        return out


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

"""The iterations of a level by the kernels of a device that does them whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.lattice import Banded
from itk_nir.engine.ops.adam import Adam
from itk_nir.engine.ops.dispatch import native_for
from itk_nir.engine.ops.images import Lncc, banded_tensors, float64_rows

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class IterationTerms:
    """What the loss of a level is made of whose iterations may be done whole.

    That is ``1 - similarity + w_d D(u) + w_j J(u)`` with the local correlation, the diffusion ``D`` and the Jacobian
    penalty ``J`` of `displacements`, and ``u = (id + outer) o exp(scale v) - id`` of the control points ``v``.

    Parameters
    ----------
    outer : Tensor or None
        ``(3, z, y, x)``, in units of the lattice.
    integration_steps : int
        Squarings; 0 for ``scale v`` in place of its exponential.
    scale : float
        Units of the lattice in one of the control points.
    moving : Tensor
        ``(Z', Y', X')``.
    lncc : Lncc
        With the fixed image.
    spline : list of Banded
        Nodes → voxels along x, y and z.
    grid_to_moving, displacement_to_moving : ndarray
        As of `images.warp`.
    diffusion_weight, diffusion_scale, jacobian_weight, jacobian_margin : float
        Of the penalties; one whose weight is 0 is left out.
    """

    outer: Tensor | None
    integration_steps: int
    scale: float
    moving: Tensor
    lncc: Lncc
    spline: list[Banded]
    grid_to_moving: F64
    displacement_to_moving: F64
    diffusion_weight: float
    diffusion_scale: float
    jacobian_weight: float
    jacobian_margin: float


def whole_iterations(optimiser: Adam, iterations: int, terms: IterationTerms) -> Any:
    """The iterations of a level, where the kernels of the device do them whole.

    Parameters
    ----------
    optimiser : Adam
        Of the control points alone.
    iterations : int
        The most iterations.
    terms : IterationTerms
        What the loss is made of.

    Returns
    -------
    LevelIterations or None
        See `cuda.iterations`; None where the device has none, as a CPU, or not for these terms.
    """
    (points,), (first,), (second,) = optimiser.parameters, optimiser.first, optimiser.second
    kernels = getattr(native_for(points), "LevelIterations", None)
    if kernels is None:
        return None
    rows, back = banded_tensors(terms.spline, points.device)
    if not kernels.takes(points, terms.lncc.prepared, rows):
        return None
    return kernels(
        points, first, second, optimiser.betas, optimiser.epsilon, iterations,
        outer=terms.outer, integration_steps=terms.integration_steps, scale=terms.scale, moving=terms.moving,
        fixed=terms.lncc.prepared, rows=rows, back=back, grid_to_moving=float64_rows(terms.grid_to_moving),
        displacement_to_moving=float64_rows(terms.displacement_to_moving), diffusion_weight=terms.diffusion_weight,
        diffusion_scale=terms.diffusion_scale, jacobian_weight=terms.jacobian_weight,
        jacobian_margin=terms.jacobian_margin,
    )  # fmt: skip

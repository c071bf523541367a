"""The iterations of a level by the kernels of a device that does them whole."""

from __future__ import annotations

from collections.abc import Callable
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
class Windows:
    """A local correlation with a moving image that a spline warps.

    Parameters
    ----------
    moving : Tensor
        ``(Z', Y', X')``.
    lncc : Lncc
        With the fixed image.
    spline : list of Banded
        Nodes → voxels along x, y and z.
    grid_to_moving, displacement_to_moving : ndarray
        As of `images.warp`.
    """

    moving: Tensor
    lncc: Lncc
    spline: list[Banded]
    grid_to_moving: F64
    displacement_to_moving: F64


@dataclass(frozen=True, eq=False)
class IterationTerms:
    """What the loss of a level is made of.

    That is ``1 - similarity + w_d D(u) + w_j J(u)``, and what else `measure` says, with the diffusion ``D`` and the
    Jacobian penalty ``J`` of `displacements`, and ``u = (id + outer) o exp(scale v) - id`` of the control points ``v``.

    Parameters
    ----------
    outer : Tensor or None
        ``(3, z, y, x)``, in units of the lattice.
    integration_steps : int
        Squarings; 0 for ``scale v`` in place of its exponential.
    scale : float
        Units of the lattice in one of the control points.
    penalties : tuple of float
        Weight and scale of the diffusion, weight and margin of the Jacobian penalty; what has weight 0 is left out.
    measure : callable
        ``u`` → the similarity, and what else is in the loss, if anything: scalars with their gradients.
    windows : Windows or None
        What `measure` does, where it is that and nothing else.
    """

    outer: Tensor | None
    integration_steps: int
    scale: float
    penalties: tuple[float, float, float, float]
    measure: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    windows: Windows | None = None


def whole_iterations(optimiser: Adam, iterations: int, terms: IterationTerms) -> Any:
    """The iterations of a level, where the device has kernels for them.

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
    WindowIterations, MeasuredIterations or None
        See `cuda.iterations`; None where the device has none, as a CPU.
    """
    (points,), (first,), (second,) = optimiser.parameters, optimiser.first, optimiser.second
    native, windows = native_for(points), terms.windows
    if not hasattr(native, "MeasuredIterations") or not points.is_contiguous():
        return None
    common = (
        points, first, second, optimiser.betas, optimiser.epsilon, iterations, terms.outer, terms.integration_steps,
        terms.scale, terms.penalties,
    )  # fmt: skip
    if windows is not None:
        rows, back = banded_tensors(windows.spline, points.device)
        if native.WindowIterations.takes(windows.lncc.prepared, rows, points.shape[1]):
            return native.WindowIterations(
                *common, moving=windows.moving, fixed=windows.lncc.prepared, rows=rows, back=back,
                grid_to_moving=float64_rows(windows.grid_to_moving),
                displacement_to_moving=float64_rows(windows.displacement_to_moving),
            )  # fmt: skip
    return native.MeasuredIterations(*common, measure=terms.measure)

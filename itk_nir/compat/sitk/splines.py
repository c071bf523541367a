"""B-spline transforms of SimpleITK made from displacements: the coefficients that fit them best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import warn_caller
from itk_nir.geometry import Geometry

#: Points ``(..., d)`` to vectors ``(..., d)``, LPS mm.
Displacement = Callable[[NDArray[np.float64]], NDArray[np.float64]]
#: Samples a cell of the mesh and axis, and how many there may be in all.
_PER_CELL, _MOST_SAMPLES = 4, 1_000_000
#: Share of the fixed image that a domain covers at least. ``BSplineTransformInitializer`` gives 1, also where it was
#: shown a coarser image, and the domain of a new ``BSplineTransform``, a cube of 1 mm, covers next to nothing.
_COVERED, _SAMPLES = 0.9, 16


def check_domain(spline: Any, grid: Geometry) -> None:
    """Warn where a B-spline that shall become the result covers only a part of the fixed image.

    Parameters
    ----------
    spline : SimpleITK.BSplineTransform
        Beyond its domain it moves nothing.
    grid : Geometry
        The fixed image's.
    """
    d = grid.dimension
    # In the middle of as many parts of each axis, so that a domain that ends at the outermost voxels counts as whole.
    axes = [(np.arange(_SAMPLES) + 0.5) / _SAMPLES * n - 0.5 for n in grid.size]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, d)
    direction = np.asarray(spline.GetTransformDomainDirection(), float).reshape(d, d)
    at = (grid.index_to_physical(index) - spline.GetTransformDomainOrigin()) @ direction
    inside = (at >= 0) & (at <= spline.GetTransformDomainPhysicalDimensions())
    share = float(inside.all(axis=-1).mean())
    if share < _COVERED:
        warn_caller(
            f"SetInitialTransform: the domain of the BSplineTransform covers {share:.0%} of the fixed image, and "
            "beyond it a spline moves nothing; make it by sitk.BSplineTransformInitializer(fixed, mesh)"
        )


def spline_parameters(spline: Any, displacement: Displacement) -> tuple[float, ...]:
    """Coefficients of a B-spline transform that is nearest to a displacement over the spline's domain.

    Parameters
    ----------
    spline : SimpleITK.BSplineTransform
        Its domain, mesh and order; its own parameters have no effect.
    displacement : callable
        Points ``(..., d)`` to vectors, LPS mm.

    Returns
    -------
    tuple of float
        As ``SetParameters`` takes them.

    Notes
    -----
    Least squares over regular samples of the domain. Splines are products of one function an axis, and so are the
    samples, so that each axis is solved by itself. Of the coefficients that fit equally well (samples do not tell them
    apart) it is the least.
    """
    mesh, order = [int(n) for n in spline.GetTransformDomainMeshSize()], int(spline.GetOrder())
    d = len(mesh)
    per_cell = _PER_CELL
    while per_cell > 1 and np.prod([per_cell * n for n in mesh], dtype=float) > _MOST_SAMPLES:
        per_cell -= 1
    # Not on the rim, where a spline that was given as the start may move nothing.
    shares = [(np.arange(per_cell * n) + 0.5) / (per_cell * n) for n in mesh]
    index = np.stack(np.meshgrid(*shares, indexing="ij"), axis=-1)
    direction = np.asarray(spline.GetTransformDomainDirection(), float).reshape(d, d)
    extent = np.asarray(spline.GetTransformDomainPhysicalDimensions(), float)
    values = displacement(spline.GetTransformDomainOrigin() + (index * extent) @ direction.T)
    for axis, (share, cells) in enumerate(zip(shares, mesh, strict=True)):
        fit = np.linalg.pinv(_basis(share * cells, cells, order))
        values = np.moveaxis(np.tensordot(fit, values, axes=(1, axis)), 0, axis)
    # ITK: all coefficients of one component after those of the other, the first axis fastest.
    return tuple(np.concatenate([values[..., k].ravel(order="F") for k in range(d)]).tolist())


def refined(spline: Any, factor: int) -> Any:
    """A B-spline transform that moves nothing, with the domain and order of another and a finer mesh.

    Parameters
    ----------
    spline : SimpleITK.BSplineTransform
    factor : int
        How many cells become of one, along each axis.

    Returns
    -------
    SimpleITK.BSplineTransform
    """
    out = type(spline)(spline)
    out.SetTransformDomainMeshSize([factor * int(n) for n in spline.GetTransformDomainMeshSize()])
    out.SetParameters([0.0] * len(out.GetParameters()))
    return out


def _basis(positions: NDArray[np.float64], cells: int, order: int) -> NDArray[np.float64]:
    """Value at each position, in cells from the start of the domain, of the ``cells + order`` basis functions.

    Cox and de Boor's recursion on knots at whole numbers.
    """
    knots = np.arange(-order, cells + order + 1)
    out = (np.floor(positions)[:, None] == knots[None, :-1]).astype(float)
    for degree in range(1, order + 1):
        left = (positions[:, None] - knots[None, : -degree - 1]) / degree
        right = (knots[None, degree + 1 :] - positions[:, None]) / degree
        out = left * out[:, :-1] + right * out[:, 1:]
    return out

"""A deformation as a B-spline transform of ITK, the class that a parameter file named."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.images.itk_classes import LOADING
from itk_nir.transforms.formats.elastix.steps import ShearedField

F64 = NDArray[np.float64]

#: Of the splines, and how many control points there are beyond the first node of the field.
ORDER, BEYOND = 3, 1


def field_to_spline(field: ShearedField) -> Any:
    """The natural cubic B-spline with the displacements of a field at its nodes.

    Parameters
    ----------
    field : ShearedField
        Its axes need not be perpendicular, and those of the control points are the same.

    Returns
    -------
    itk.BSplineTransform[itk.D, d, 3]
        Between the nodes it differs from linear interpolation of the field by no more than that itself may be off; as a
        field it moves nothing beyond the first and the last node.
    """
    values: F64 = field.vectors.astype(np.float64)
    d = values.shape[-1]
    for axis in range(d):
        values = np.moveaxis(_coefficients(np.moveaxis(values, axis, 0)), 0, axis)
    return _spline([n + 2 * BEYOND for n in field.size], field.matrix, values)


def resting_spline(size: tuple[int, ...], matrix: F64) -> Any:
    """A B-spline transform that moves nothing, with one cell over a grid.

    Parameters
    ----------
    size : tuple of int
        Voxels of the grid, ``(x, y[, z])``.
    matrix : ndarray
        ``(d + 1, d + 1)``, index → LPS mm.

    Returns
    -------
    itk.BSplineTransform[itk.D, d, 3]
    """
    d = len(size)
    whole = matrix.copy()
    whole[:d, :d] *= np.maximum(np.asarray(size) - 1, 1)
    return _spline([ORDER + 1] * d, whole, np.zeros((*[ORDER + 1] * d, d)))


def _coefficients(values: F64) -> F64:
    """``(n + 2, ...)`` coefficients of the spline along the first axis through ``(n, ...)`` values."""
    n = len(values)
    matrix = np.eye(n)  # the second derivative is 0 at both ends, where a coefficient is the value itself
    inner = np.arange(1, n - 1)
    matrix[inner, inner], matrix[inner, inner - 1], matrix[inner, inner + 1] = 4 / 6, 1 / 6, 1 / 6
    found = np.linalg.solve(matrix, values.reshape(n, -1)).reshape(values.shape)
    beyond = [2 * found[:1] - found[1:2], 2 * found[-1:] - found[-2:-1]]
    return np.concatenate([beyond[0], found, beyond[1]])


def _spline(size: list[int], matrix: F64, coefficients: F64) -> Any:
    """A transform with control points of which the one at index `BEYOND` along each axis is at the origin."""
    with LOADING:
        import itk

    d = len(size)
    axes = matrix[:d, :d]
    spacing = np.linalg.norm(axes, axis=0)
    origin = matrix[:d, d] - BEYOND * axes.sum(axis=1)
    transform = itk.BSplineTransform[itk.D, d, ORDER].New()
    fixed = np.concatenate([size, origin, spacing, (axes / spacing).ravel()])
    transform.SetFixedParameters(_parameters(itk, fixed))
    # All coefficients of one component after those of the other, the first axis fastest.
    transform.SetParameters(_parameters(itk, np.moveaxis(coefficients, -1, 0).ravel()))
    return transform


def _parameters(itk: Any, values: F64) -> Any:
    return itk.OptimizerParameters[itk.D](values.tolist())

"""Axes of the fixed image along which nothing may move.

Echo-planar images are distorted along the phase-encoding axis alone, and the slices of a stack may have been taken one
after the other. What holds there holds exactly, in the map, in its inverse and in the linear map before it: held
components of a velocity are zero, and integration, composition, interpolation and inversion keep a zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.options import shown

F64 = NDArray[np.float64]


def check_restriction(restrict: Sequence[float]) -> None:
    """Refuse what `restrict` cannot be.

    Parameters
    ----------
    restrict : sequence of float
        One value an axis of the fixed image, or none.

    Raises
    ------
    OptionError
        A value that is neither 0 nor 1, or zeros alone.
    """
    values = tuple(restrict)
    if any(value not in (0, 1) for value in values):
        raise OptionError(
            f"restrict is 1 for an axis along which things may move and 0 for one along which nothing may, got "
            f"{shown(values)}; a weight between the two cannot be had, raise smoothness for less motion"
        )
    if values and not any(values):
        raise OptionError(
            f"restrict={values} leaves no axis along which anything may move; give a 1 for those that may"
        )


def check_length(restrict: Sequence[float], dimension: int) -> None:
    """Refuse a `restrict` for another number of axes.

    Parameters
    ----------
    restrict : sequence of float
        One value an axis of the fixed image, or none.
    dimension : int
        Of the images.

    Raises
    ------
    OptionError
        Another number of values than axes.
    """
    if restrict and len(restrict) != dimension:
        raise OptionError(
            f"restrict has one value for each axis of the fixed image, {dimension} of them, got {len(restrict)}: "
            f"{shown(tuple(restrict))}"
        )


def held_axes(restrict: Sequence[float]) -> list[int]:
    """The axes along which nothing may move.

    Parameters
    ----------
    restrict : sequence of float
        One value an axis of the fixed image, or none.

    Returns
    -------
    list of int
        0 for x; empty where everything may move.
    """
    return [axis for axis, value in enumerate(restrict) if not value]


def free_parameters(dimension: int, kind: str, restrict: Sequence[float]) -> NDArray[np.bool_]:
    """Which parameters of a linear map may move: those that displace things along free axes alone.

    Parameters
    ----------
    dimension : {2, 3}
        Of the map.
    kind : str
        ``"translation"``, ``"rigid"``, ``"similarity"`` or ``"affine"``. A rotation turns two axes and is left out
        where either is held, a stretch all of them.
    restrict : sequence of float
        One value an axis of the fixed image, or none.

    Returns
    -------
    ndarray
        ``(16,)``: a shift, a rotation about each axis, a stretch, and the rows of a matrix.
    """
    held = held_axes(restrict)
    free = np.zeros(16, bool)
    free[:dimension] = True
    if kind != "translation":
        free[[3, 4, 5] if dimension == 3 else [5]] = True
    if kind == "similarity":
        free[6] = not held
    if kind == "affine":
        free[7:] = np.pad(np.ones((dimension, dimension), bool), (0, 3 - dimension)).ravel()
    for axis in held:
        free[axis] = False
        free[[3 + other for other in range(3) if other != axis]] = False
        free[7 + 3 * axis : 10 + 3 * axis] = False
    return free


def without_held_axes(matrix: F64, geometry: Geometry, restrict: Sequence[float]) -> F64:
    """A linear map without what it displaces along held axes.

    Parameters
    ----------
    matrix : ndarray
        ``(d + 1, d + 1)`` LPS.
    geometry : Geometry
        The fixed grid, whose axes they are.
    restrict : sequence of float
        One value an axis of the fixed image, or none.

    Returns
    -------
    ndarray
        ``(d + 1, d + 1)`` LPS; the matrix itself where nothing is held.
    """
    held = held_axes(restrict)
    if not held:
        return matrix
    along = np.array(restrict, float) * np.eye(geometry.dimension)
    keep = geometry.rotation @ along @ geometry.rotation.T
    out = np.eye(len(matrix))
    out[:-1] += keep @ (matrix - out)[:-1]
    return out

"""SimpleITK's optimiser weights, 1 for a parameter that is optimised and 0 for one that is held, as a linear stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.options import LinearStage
from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry

#: Class of transform → its parameters in order: "r" a rotation about an axis, "t" a translation along one, "s" a scale,
#: "m" an entry of the matrix.
PARAMETERS: dict[str, dict[int, tuple[str, ...]]] = {
    "TranslationTransform": {2: ("t0", "t1"), 3: ("t0", "t1", "t2")},
    "Euler2DTransform": {2: ("r2", "t0", "t1")},
    "Euler3DTransform": {3: ("r0", "r1", "r2", "t0", "t1", "t2")},
    "VersorRigid3DTransform": {3: ("r0", "r1", "r2", "t0", "t1", "t2")},
    "Similarity2DTransform": {2: ("s", "r2", "t0", "t1")},
    "Similarity3DTransform": {3: ("r0", "r1", "r2", "t0", "t1", "t2", "s")},
    "AffineTransform": {2: ("m",) * 4 + ("t0", "t1"), 3: ("m",) * 9 + ("t0", "t1", "t2")},
}


def stage_for(
    name: str, linear: LinearStage, weights: Sequence[float], start: NDArray[np.float64], fixed: Geometry
) -> tuple[LinearStage, dict[str, Any]]:
    """The linear stage that moves what the weights leave free.

    Parameters
    ----------
    name : str
        Class of the transform that is optimised.
    linear : str
        The stage for all of its parameters.
    weights : sequence of float
        One a parameter, 0 or 1; empty for ones.
    start : ndarray
        ``(d + 1, d + 1)``, LPS mm: the map of the transform where it begins.
    fixed : Geometry
        The fixed grid.

    Returns
    -------
    linear : str
        The stage.
    options : dict of str to object
        What it is told beside that.

    Raises
    ------
    OptionError
        Weights of another number or value, or parameters that cannot be held alone here.
    """
    d = fixed.dimension
    names = PARAMETERS.get(name, {}).get(d)
    if names is not None and len(weights) not in (0, len(names)):
        raise OptionError(f"SetOptimizerWeights: a {name} has {len(names)} parameters, got {len(weights)} weights")
    if all(w == 1 for w in weights):
        return linear, {}
    if names is None:
        raise refusal(weights, f"the parameters of a {name} are all optimised")
    if not set(weights) <= {0, 1} or not any(weights):
        raise refusal(weights, "a weight is 1 for a parameter that is optimised and 0 for one that is held")
    free = {kind: [n for n, w in zip(names, weights, strict=True) if w and n[0] == kind] for kind in "trsm"}
    all_of = {kind: [n for n in names if n[0] == kind] for kind in "trsm"}
    still = [int(n[1]) for n in all_of["t"] if n not in free["t"]]
    if free["m"] or free["s"]:
        raise refusal(weights, "scale and matrix are optimised with all other parameters, or held")
    if not free["r"]:
        if still and not np.allclose(start[:d, :d], np.eye(d)):
            raise refusal(weights, "translations along some axes alone need a start that turns nothing")
        return "translation", _held(fixed, still, weights)
    if d == 2 or free["r"] == all_of["r"]:
        if still:
            raise refusal(weights, "a rotation goes with all translations")
        return "rigid", {}
    about = int(free["r"][0][1])
    if len(free["r"]) > 1 or not np.allclose(start[:d, about], np.eye(d)[about]):
        raise refusal(weights, "rotations are about one axis or all; about one, the start turns about no other")
    if still == [about]:
        return "rigid", _held(fixed, still, weights)
    if still:
        raise refusal(weights, "a rotation about an axis goes with the translations across it")
    axis = _grid_axis(fixed, about, weights)
    return "rigid", {"linear_rotations": tuple(int(k == axis) for k in range(d))}


def refusal(weights: Sequence[float], why: str) -> OptionError:
    """The error for weights that cannot be had.

    Parameters
    ----------
    weights : sequence of float
        As they were given.
    why : str
        The rule that they break.

    Returns
    -------
    OptionError
    """
    return OptionError(f"SetOptimizerWeights({list(weights)}) is refused: {why}")


def _held(fixed: Geometry, axes: Sequence[int], weights: Sequence[float]) -> dict[str, Any]:
    """`restrict` for axes of space along which nothing moves."""
    if not axes:
        return {}
    held = {_grid_axis(fixed, axis, weights) for axis in axes}
    return {"restrict": tuple(int(k not in held) for k in range(fixed.dimension))}


def _grid_axis(fixed: Geometry, axis: int, weights: Sequence[float]) -> int:
    """The axis of the fixed grid that lies along an axis of space."""
    along = np.abs(fixed.rotation[axis])
    found = int(np.argmax(along))
    if along[found] < 1 - 1e-6:
        raise refusal(weights, "the axes of the fixed image are turned against those of space, so no axis can be held")
    return found

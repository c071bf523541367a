"""One form of a chain that every format can hold: a displacement field, then a linear transform."""

from __future__ import annotations

import numpy as np

from itk_nir.geometry import Geometry
from itk_nir.transforms.model import Chain, DisplacementField, LinearTransform


def field_then_linear(chain: Chain, grid: Geometry | None = None, *, inverse: bool = True) -> Chain:
    """The chain as ``(field, linear)``, with ``(linear, field)`` as its inverse; a linear chain as ``(linear,)``.

    A chain of that form comes back as it is. For any other, all linear steps are multiplied into one, ``A``, and what
    is left is sampled: ``w(p) = A^-1(chain(p)) - p`` at the voxels of `grid`, where the result is exact; between them
    it is interpolated linearly. Outside the grid ``A`` alone is left.

    Parameters
    ----------
    grid : a grid of fixed space; that of the chain's first field when left out.
    inverse : without it the result has no `inverse_steps`.

    Raises
    ------
    ValueError : a chain that has to be sampled, and neither a grid nor a field that has one.
    """
    steps = chain.simplified().steps
    linear = LinearTransform.identity(chain.dimension)
    for step in steps:
        if isinstance(step, LinearTransform):
            linear = LinearTransform(step.matrix @ linear.matrix)
    if chain.is_linear:
        return Chain((linear,), (linear.inverse(),) if inverse else None)
    first = steps[0]
    if isinstance(first, DisplacementField) and all(isinstance(s, LinearTransform) for s in steps[1:]):
        field = first
    else:
        field = Chain((*steps, linear.inverse())).displacement_on(grid or chain.fields[0].geometry)
    if not inverse:
        return Chain((field, linear))
    # In front of the given inverse, A undoes the A^-1 that it begins with where it has the wanted form.
    back = Chain((linear, *chain.inverse().steps)).simplified().steps
    rest = [s for s in back if isinstance(s, DisplacementField) or not _is_nearly_identity(s, field.geometry)]
    if len(rest) == 1 and isinstance(rest[0], DisplacementField):
        undo = rest[0]
    else:
        undo = Chain(back).displacement_on(field.geometry)
    return Chain((field, linear), (linear.inverse(), undo))


def _is_nearly_identity(linear: LinearTransform, grid: Geometry) -> bool:
    """Whether a product of a matrix and its inverse differs from no change by rounding alone."""
    corners = grid.corners()
    return bool(np.abs(linear.map(corners) - corners).max() <= 1e-6 * min(grid.spacing))

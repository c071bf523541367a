"""Transforms as plain data: a matrix, a displacement grid, and several of them one after the other.

Every transform maps a **fixed** physical point to a **moving** physical point (LPS mm), which is what ITK needs to
resample the moving image on the fixed grid; the inverse maps back. A `CompositeTransform` lists its parts in the order
in which they meet a fixed point, so ``composite.map(p) = parts[-1](... parts[0](p))``. (ITK's composite lists them the
other way round: the one added last is applied first.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from itk_nir.caching import cached_property
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry, checked_points
from itk_nir.transforms.displacement import DisplacementField
from itk_nir.transforms.interpolation import FloatArray, grid_slabs, interpolate_vectors
from itk_nir.transforms.linear import LinearTransform

__all__ = ["CompositeTransform", "DisplacementField", "LinearTransform", "Step", "compose", "interpolate_vectors"]

Step: TypeAlias = "LinearTransform | DisplacementField"


@dataclass(frozen=True, eq=False)
class CompositeTransform:
    """Transforms one after the other, in the order in which they meet a fixed point.

    Parameters
    ----------
    transforms : tuple of LinearTransform or DisplacementField
        Applied first to last, fixed -> moving.
    inverse_transforms : tuple of LinearTransform or DisplacementField, optional
        Applied first to last, moving -> fixed; None where the inverse has not been computed.

    Raises
    ------
    InputError
        No transform, or transforms of unlike dimension.

    Examples
    --------
    >>> turn = LinearTransform.make([[0, -1], [1, 0]], [0, 0])
    >>> shift = LinearTransform.make(np.eye(2), [10, 0])
    >>> composite = CompositeTransform((turn, shift))       # first the turn, then the shift
    >>> composite.map([[1.0, 0.0]]).tolist()
    [[10.0, 1.0]]
    >>> composite.inverse().map([[10.0, 1.0]]).tolist()
    [[1.0, 0.0]]
    """

    transforms: tuple[Step, ...]
    inverse_transforms: tuple[Step, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        if self.inverse_transforms is not None:
            object.__setattr__(self, "inverse_transforms", tuple(self.inverse_transforms))
        if not self.transforms:
            raise InputError(
                "a composite transform needs at least one transform (LinearTransform.identity(d) for no change)"
            )
        dimensions = {s.dimension for s in (*self.transforms, *(self.inverse_transforms or ()))}
        if len(dimensions) > 1:
            raise InputError(f"the parts of a composite transform must have one dimension, got {sorted(dimensions)}")

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return self.transforms[0].dimension

    @property
    def fields(self) -> tuple[DisplacementField, ...]:
        """The parts that are displacement fields."""
        return tuple(s for s in self.transforms if isinstance(s, DisplacementField))

    @property
    def is_linear(self) -> bool:
        """Whether there is no displacement field among the parts."""
        return not self.fields

    @property
    def is_identity(self) -> bool:
        """Whether every part leaves every point where it is."""
        return all(isinstance(s, LinearTransform) and s.is_identity for s in self.transforms)

    def map(self, points: ArrayLike) -> FloatArray:
        """Map physical points.

        Parameters
        ----------
        points : array_like
            ``(..., d)`` fixed points, LPS mm.

        Returns
        -------
        numpy.ndarray
            ``(..., d)`` moving points, LPS mm.

        Raises
        ------
        InputError
            Points of another dimension, or what is no finite real number.
        """
        p = checked_points(points, self.dimension, rows=False)
        for step in self.transforms:
            p = step.map(p)
        return p

    @cached_property
    def _inverse(self) -> CompositeTransform:
        if self.inverse_transforms is not None:
            return CompositeTransform(self.inverse_transforms, self.transforms)
        steps = [
            step.inverse(step.reached(), continued=True) if isinstance(step, DisplacementField) else step.inverse()
            for step in reversed(self.transforms)
        ]
        return CompositeTransform(tuple(steps), self.transforms)

    def inverse(self) -> CompositeTransform:
        """Give the transform moving -> fixed.

        Returns
        -------
        CompositeTransform
            `inverse_transforms` if there are any, else every part inverted (once, then kept): fields on grids that are
            longer where they move their own outwards.
        """
        return self._inverse

    def simplified(self) -> CompositeTransform:
        """Multiply neighbouring linear parts into one and drop identities.

        Returns
        -------
        CompositeTransform
            The same maps.
        """
        inverse = None if self.inverse_transforms is None else _merge(self.inverse_transforms)
        return CompositeTransform(_merge(self.transforms), inverse)

    def rows(self, geometry: Geometry) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
        """Map a grid's voxel centres, a few rows at a time, so that no full-size float64 array is needed.

        Parameters
        ----------
        geometry : Geometry
            A grid of fixed space.

        Yields
        ------
        part : slice
            Rows of the outermost array axis.
        points : numpy.ndarray
            Their physical positions, ``(rows, [H,] W, d)``, LPS mm.
        mapped : numpy.ndarray
            Where the transform takes them, the same shape.
        """
        for part, points in grid_slabs(geometry):
            first, *rest = self.transforms
            mapped = None
            if isinstance(first, DisplacementField):
                shift = first.rows_on(geometry, part.start, part.stop)
                mapped = None if shift is None else points + shift
            if mapped is None:
                mapped = first.map(points)
            for step in rest:
                mapped = step.map(mapped)
            yield part, points, mapped

    def displacement_on(self, geometry: Geometry) -> DisplacementField:
        """Sample the whole transform as one displacement field.

        Parameters
        ----------
        geometry : Geometry
            A grid of fixed space.

        Returns
        -------
        DisplacementField
            Exact at the voxel centres of the grid.

        Raises
        ------
        InputError
            A grid of another dimension.
        """
        if geometry.dimension != self.dimension:
            raise InputError(f"a {self.dimension}D transform has no displacement on a {geometry.dimension}D grid")
        out = np.empty((*geometry.shape, self.dimension), np.float32)
        for part, points, mapped in self.rows(geometry):
            np.subtract(mapped, points, out=out[part], casting="same_kind")
        return DisplacementField(geometry, out)


def compose(*transforms: CompositeTransform | Step) -> CompositeTransform:
    """Put transforms one after the other.

    Parameters
    ----------
    *transforms : CompositeTransform, LinearTransform or DisplacementField
        Applied first to last.

    Returns
    -------
    CompositeTransform
        All of them; the inverse is kept where every one has one (a linear transform always has).

    Raises
    ------
    InputError
        Nothing given, or unlike dimensions.
    """
    parts = [t if isinstance(t, CompositeTransform) else CompositeTransform((t,)) for t in transforms]
    steps = tuple(s for c in parts for s in c.transforms)
    inverse: list[Step] = []
    for c in reversed(parts):
        if c.inverse_transforms is None and not c.is_linear:
            return CompositeTransform(steps).simplified()
        inverse.extend(c.inverse().transforms)
    return CompositeTransform(steps, tuple(inverse)).simplified()


def _merge(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    out: list[Step] = []
    for step in steps:
        if isinstance(step, LinearTransform) and out and isinstance(out[-1], LinearTransform):
            out[-1] = LinearTransform(step.matrix @ out[-1].matrix)
        else:
            out.append(step)
    kept = tuple(s for s in out if not (isinstance(s, LinearTransform) and s.is_identity))
    return kept or (LinearTransform.identity(steps[0].dimension),)

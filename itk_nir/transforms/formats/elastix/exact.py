"""Results of elastix as `transformix` applies them: nothing sampled but what has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.transforms.as_simpleitk import to_sitk
from itk_nir.transforms.formats.elastix.parameters import grid_of, numbers
from itk_nir.transforms.formats.elastix.reading import by_transformix, collect, explained
from itk_nir.transforms.formats.elastix.steps import step_of
from itk_nir.transforms.formats.elastix.text import ParameterMap
from itk_nir.transforms.model import CompositeTransform

F64 = NDArray[np.float64]

#: Steps of numerical derivatives, in voxels of the grid: so small that a cubic spline is a parabola within.
_STEP = 1e-3


@dataclass(frozen=True, eq=False)
class Chain:
    """All transforms of a result of elastix, one after the other.

    Parameters
    ----------
    parameters : dict
        The last parameter map, which says how transformix resamples.
    steps : tuple of (SimpleITK.Transform, bool)
        Applied first to last, fixed → moving; whether its displacement is added to that of those before instead.
    grid : Geometry
        What transformix resamples on, with the axes that the transforms work in.
    direction : ndarray
        ``(d, d)``, the axes that the resampled image gets: those of `grid` unless ``UseDirectionCosines`` is false.
    """

    parameters: ParameterMap
    steps: tuple[tuple[Any, bool], ...]
    grid: Geometry
    direction: F64

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return self.grid.dimension

    @property
    def uses_direction(self) -> bool:
        """Whether the axes of images count, which ``UseDirectionCosines`` says."""
        return self.parameters.get("UseDirectionCosines", ["true"])[0] == "true"

    @property
    def output_grid(self) -> Geometry:
        """The grid of resampled images."""
        return Geometry.make(self.grid.size, self.grid.spacing, self.grid.origin, self.direction)

    def transform_on(self, grid: Geometry) -> Any:
        """Give all of it as one transform that is exact at the voxels of a grid.

        Parameters
        ----------
        grid : Geometry
            Of fixed space.

        Returns
        -------
        SimpleITK.Transform
            Exact everywhere where nothing is combined by addition.
        """
        import SimpleITK as sitk

        parts: list[Any] = []
        for step, adds in self.steps:
            if adds and parts:
                shifts = [_sampled(_composed(parts), grid), _sampled(step, grid)]
                parts = [sitk.DisplacementFieldTransform(sitk.Add(*shifts))]
            else:
                parts.append(step)
        return _composed(parts)

    def displacement(self, grid: Geometry | None = None) -> F64:
        """Give the displacement at the voxels of a grid.

        Parameters
        ----------
        grid : Geometry, optional
            Of fixed space; left out, its own.

        Returns
        -------
        ndarray
            ``grid.shape + (d,)``, LPS mm.
        """
        import SimpleITK as sitk

        grid = self.grid if grid is None else grid
        return np.asarray(sitk.GetArrayFromImage(_sampled(self.transform_on(grid), grid)), np.float64)

    def jacobian(self) -> F64:
        """Give the spatial Jacobian matrix of the whole map at the voxels of its grid, by central differences.

        Returns
        -------
        ndarray
            ``grid.shape + (d, d)``: derivative of the moving coordinate (row) along the fixed one (column), LPS.
        """
        d, h = self.dimension, _STEP * min(self.grid.spacing)
        columns = []
        for axis in np.eye(d):
            ends = [
                self.displacement(replace(self.grid, origin=tuple((self.grid.origin + sign * h * axis).tolist())))
                for sign in (1.0, -1.0)
            ]
            columns.append((ends[0] - ends[1]) / (2 * h) + axis)
        return np.stack(columns, axis=-1)

    def map(self, points: F64) -> F64:
        """Map physical points.

        Parameters
        ----------
        points : ndarray
            ``(N, d)``, LPS mm.

        Returns
        -------
        ndarray
            ``(N, d)``, LPS mm.
        """
        out = np.array(points, float).reshape(-1, self.dimension)
        for step, adds in self.steps:
            start = points if adds else out
            ends = np.array([step.TransformPoint(p) for p in start.tolist()]).reshape(-1, self.dimension)
            out = out + ends - points if adds else ends
        return out


def read_chain(source: Any, grid: Geometry | None = None, *, beside: bool = False) -> Chain:
    """Read what elastix wrote or returned, to apply it as transformix would.

    Parameters
    ----------
    source : str, os.PathLike, itk.ParameterObject, mapping or list of mappings
        As of `read_elastix`.
    grid : Geometry, optional
        The fixed image's, for maps that name none, as they may where they were written by hand.
    beside : bool, default False
        As of `read_elastix`.

    Returns
    -------
    Chain

    Raises
    ------
    InputError
        As of `read_elastix`.
    """
    maps = collect(source, beside)
    if not maps:
        raise InputError("elastix: no parameter map")
    with explained():
        last = maps[-1][0]
        if grid is None or "Size" in last:
            grid = grid_of(last)
            d = grid.dimension
            direction = numbers(last, "Direction", d * d).reshape(d, d).T if "Direction" in last else np.eye(d)
        else:
            direction = grid.rotation
        return Chain(last, _steps(maps, grid, beside), grid, direction)


def _steps(
    maps: Sequence[tuple[ParameterMap, Path | None]], grid: Geometry, beside: bool
) -> tuple[tuple[Any, bool], ...]:
    d = grid.dimension
    steps = []
    for number, (parameters, folder) in enumerate(maps):
        order = (parameters.get("DeformationFieldInterpolationOrder") or ["0"])[0]
        nearest = parameters["Transform"][0] == "DeformationFieldTransform" and order == "0"
        linear = {**parameters, "DeformationFieldInterpolationOrder": ["1"]} if nearest else parameters
        known = order in ("0", "1") or parameters["Transform"][0] != "DeformationFieldTransform"
        step: Any = step_of(linear, folder, d, beside) if known else None
        if step is None:  # elastix alone knows it
            return ((to_sitk(by_transformix([m for m, _ in maps], grid)), False),)
        if isinstance(step, CompositeTransform):
            step = to_sitk(step)
        if nearest:
            step = _to_nearest(step)
        adds = number > 0 and parameters.get("HowToCombineTransforms", ["Compose"])[0] == "Add"
        steps.append((step, adds))
    return tuple(steps)


def _to_nearest(transform: Any) -> Any:
    """The same field with the vector of the nearest voxel everywhere."""
    import SimpleITK as sitk

    if transform.GetName() != "DisplacementFieldTransform":
        raise InputError(
            "elastix: a deformation field on axes that are not perpendicular needs "
            "(DeformationFieldInterpolationOrder 1); it has 0"
        )
    field = sitk.DisplacementFieldTransform(transform)
    field.SetInterpolator(sitk.sitkNearestNeighbor)
    return field


def _composed(parts: Sequence[Any]) -> Any:
    import SimpleITK as sitk

    # SimpleITK applies the last of a list first.
    return parts[0] if len(parts) == 1 else sitk.CompositeTransform(list(reversed(parts)))


def _sampled(transform: Any, grid: Geometry) -> Any:
    import SimpleITK as sitk

    return sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.size, grid.origin, grid.spacing, grid.rotation.ravel().tolist()
    )

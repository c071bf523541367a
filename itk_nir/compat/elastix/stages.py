"""A result as elastix has it: one parameter map for each stage of the request, of its own class, deformation last.

Our own form is the deformation, then the linear map: ``A(p + u(p))``. elastix' stages come in the order in which they
were run: the linear ones, then the deformation. Both are the same map where the field moves with the linear one
(`ShearedField.after`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.elastix.options import TRANSFORMS
from itk_nir.engine.point_fits import nearest_rotation
from itk_nir.geometry import Geometry
from itk_nir.transforms.composition import cover, surface
from itk_nir.transforms.formats.elastix import ParameterMap
from itk_nir.transforms.formats.elastix.parameters import as_numbers
from itk_nir.transforms.formats.elastix.steps import ShearedField, linear_class
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

F64 = NDArray[np.float64]

#: Class of a request → that of the result, where no other program has it.
RESULT_CLASSES = {"AffineDTITransform": "AffineTransform"}

#: A map is of a class of elastix' where it differs from one by no more than this share of a voxel.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Stage:
    """What one stage of a request came to.

    Parameters
    ----------
    kind : str
        Class of elastix' transforms that its parameter map has.
    linear : LinearTransform or None
        The map, where it is linear.
    field : ShearedField or None
        The map, where it is a deformation; both None for a deformation that another stage holds.
    centre : ndarray or None
        ``(d,)``, LPS mm: the centre of rotation that its parameters are about; None for that of the image.
    """

    kind: str
    linear: LinearTransform | None = None
    field: ShearedField | None = None
    centre: F64 | None = None


def stages_of(result: RegistrationResult, kinds: Sequence[str], start: CompositeTransform | None) -> tuple[Stage, ...]:
    """Take a result apart into the stages that were asked for.

    Parameters
    ----------
    result : RegistrationResult
        Of `itk_nir.register`, with `start` as its initial transform.
    kinds : sequence of str
        Class of elastix' transforms of every stage, in order.
    start : CompositeTransform or None
        The initial transform, which the stages come after.

    Returns
    -------
    tuple of Stage
        One for each of `kinds`; a stage has a wider class than it asked for where its own does not hold what was
        found.
    """
    grid = result.fixed.geometry
    deformable = result.displacement is not None
    if start is not None and not start.is_linear:
        return _after_deformation(result.mapping, kinds, start, grid)
    before = LinearTransform.identity(grid.dimension) if start is None else linear_part(start)
    own = LinearTransform(result.affine.matrix @ before.inverse().matrix)
    linear = _linear_stages(own, [k for k in kinds if not is_deformable(k)], before.map(grid.centre), grid)
    field = ShearedField.after(result.affine, result.displacement) if deformable and result.displacement else None
    return (*linear, *_deformable_stages([k for k in kinds if is_deformable(k)], field))


def inverse_stages(start: CompositeTransform, kinds: Sequence[str], grid: Geometry) -> tuple[Stage, ...]:
    """The inverse of an initial transform as the stages that were asked for.

    Parameters
    ----------
    start : CompositeTransform
        Fixed → moving.
    kinds : sequence of str
        As of `stages_of`.
    grid : Geometry
        The fixed image's.

    Returns
    -------
    tuple of Stage
    """
    if start.is_linear:
        back = linear_part(start).inverse()
        linear = [k for k in kinds if not is_deformable(k)]
        if linear:
            rest = _deformable_stages([k for k in kinds if is_deformable(k)], None)
            return (*_linear_stages(back, linear, linear_part(start).map(grid.centre), grid), *rest)
    identity = CompositeTransform((LinearTransform.identity(grid.dimension),))
    return _after_deformation(identity, kinds, start, grid)


def is_deformable(kind: str) -> bool:
    """Tell whether a class of elastix' transforms is deformable.

    Parameters
    ----------
    kind : str
        A key of `TRANSFORMS`.

    Returns
    -------
    bool
    """
    return TRANSFORMS[kind] == "deformable"


def linear_part(transform: CompositeTransform) -> LinearTransform:
    """The product of the linear parts of a transform.

    Parameters
    ----------
    transform : CompositeTransform
        Any.

    Returns
    -------
    LinearTransform
    """
    whole = LinearTransform.identity(transform.dimension)
    for step in transform.transforms:
        if isinstance(step, LinearTransform):
            whole = LinearTransform(step.matrix @ whole.matrix)
    return whole


def _deformable_stages(kinds: Sequence[str], field: ShearedField | None) -> tuple[Stage, ...]:
    """The first one holds all of the deformation: one stage here goes from coarse to fine."""
    first = field is not None
    return tuple(
        Stage("DeformationFieldTransform", field=field) if first and n == 0 else Stage(kind)
        for n, kind in enumerate(kinds)
    )


def _linear_stages(own: LinearTransform, kinds: Sequence[str], centre: F64, grid: Geometry) -> list[Stage]:
    """Each stage but the last has the nearest map of its class to what is left, and the last one all that is left."""
    out: list[Stage] = []
    done = LinearTransform.identity(own.dimension)
    for number, kind in enumerate(kinds):
        left = LinearTransform(own.matrix @ done.inverse().matrix)
        at = done.map(centre)
        best = nearest(left, kind, at)
        if number == len(kinds) - 1 and not _same(left, best, done, grid):
            kind, best = "AffineTransform", left
        out.append(Stage(kind, best))
        done = LinearTransform(best.matrix @ done.matrix)
    return out


def _same(a: LinearTransform, b: LinearTransform, before: LinearTransform, grid: Geometry) -> bool:
    corners = before.map(grid.corners())
    return bool(np.abs(a.map(corners) - b.map(corners)).max() <= _TOLERANCE * min(grid.spacing))


def nearest(linear: LinearTransform, kind: str, centre: F64) -> LinearTransform:
    """The map of one of elastix' linear classes that is nearest to another one and takes a point to the same place.

    Parameters
    ----------
    linear : LinearTransform
        Any.
    kind : str
        The class.
    centre : ndarray
        ``(d,)``, LPS mm: the point.

    Returns
    -------
    LinearTransform
        By the polar decomposition.
    """
    matrix, shift = linear.about(centre)
    if kind == "AffineTransform":
        return linear
    if kind == "TranslationTransform":
        return LinearTransform.make(np.eye(len(matrix)), shift)
    rotation, sizes = nearest_rotation(matrix)
    scale = float(sizes.mean()) if kind == "SimilarityTransform" else 1.0
    return LinearTransform.make(abs(scale) * rotation, shift, centre)


def _after_deformation(
    whole: CompositeTransform, kinds: Sequence[str], start: CompositeTransform, grid: Geometry
) -> tuple[Stage, ...]:
    """Stages that come after a deformation: ``own(q) = whole(start^-1(q))``, sampled where `start` takes the image."""
    there = cover(grid, start.map(surface(grid)))
    back = _inverse(start)
    q = there.grid().reshape(-1, grid.dimension)
    p = back.map(q)
    seen = grid.contains(p)
    ends = whole.map(p)
    solution = np.linalg.lstsq(np.column_stack([q[seen], np.ones(int(seen.sum()))]), ends[seen], rcond=None)[0]
    fitted = LinearTransform.make(solution[:-1].T, solution[-1])
    linear = [k for k in kinds if not is_deformable(k)]
    # Without a deformable stage, the last one has to hold what is left.
    plain = linear if len(linear) < len(kinds) else linear[:-1]
    out: list[Stage] = []
    done = LinearTransform.identity(grid.dimension)
    for kind in plain:
        part = nearest(LinearTransform(fitted.matrix @ done.inverse().matrix), kind, done.map(there.centre))
        out.append(Stage(kind, part))
        done = LinearTransform(part.matrix @ done.matrix)
    left = DisplacementField(there, (done.inverse().map(ends) - q).astype(np.float32).reshape(*there.shape, -1))
    field = ShearedField.after(done, left)
    return (*out, *_deformable_stages(list(kinds[len(plain) :]), field))


def _inverse(transform: CompositeTransform) -> CompositeTransform:
    """The inverse, where every field takes its grid too."""
    steps: list[Any] = []
    for step in reversed(transform.transforms):
        if isinstance(step, LinearTransform):
            steps.append(step.inverse())
        else:
            around = cover(step.geometry, step.map(surface(step.geometry)))
            steps.append(step.inverse(around, tolerance=1e-3))
    return CompositeTransform(tuple(steps))


def stage_map(stage: Stage, grid: Geometry, centre: F64, write: Callable[[ShearedField], Path]) -> ParameterMap:
    """The entries of a stage's parameter map that say what the transform is.

    Parameters
    ----------
    stage : Stage
        The stage.
    grid : Geometry
        The fixed image's.
    centre : ndarray
        ``(d,)``, LPS mm: the point that linear maps are written about.
    write : callable
        Writes the image of a field, and says where it will be.

    Returns
    -------
    dict of str to list of str
    """
    if stage.linear is not None:
        return _linear_entries(stage.kind, stage.linear, centre if stage.centre is None else stage.centre)
    if stage.field is not None:
        return {
            "Transform": [stage.kind],
            "NumberOfParameters": ["0"],
            "DeformationFieldFileName": [str(write(stage.field))],
            # The default, 0, is nearest neighbour.
            "DeformationFieldInterpolationOrder": ["1"],
        }
    return _resting_spline(stage.kind, grid)


def _linear_entries(kind: str, linear: LinearTransform, centre: F64) -> ParameterMap:
    d = linear.dimension
    transform: Any = linear_class(kind, d)
    matrix, shift = linear.about(centre)
    entries: ParameterMap = {}
    if kind == "TranslationTransform":
        values = shift
    else:
        transform.SetCenter(np.asarray(centre).tolist())
        transform.SetMatrix(matrix.ravel().tolist(), *(() if kind == "AffineTransform" else (1e-6,)))
        transform.SetTranslation(shift.tolist())
        values = np.array(transform.GetParameters())
        entries["CenterOfRotationPoint"] = as_numbers(centre)
    if kind == "EulerTransform" and d == 3:
        entries["ComputeZYX"] = ["false"]
    return {
        "Transform": [kind],
        "NumberOfParameters": [str(len(values))],
        "TransformParameters": as_numbers(values),
        **entries,
    }


def _resting_spline(kind: str, grid: Geometry) -> ParameterMap:
    """A spline that moves nothing: four control points along each axis, the fewest that there can be."""
    d = grid.dimension
    spacing = np.maximum(np.asarray(grid.size) - 1, 1) * np.asarray(grid.spacing)
    count = d * 4**d
    return {
        "Transform": [kind],
        "NumberOfParameters": [str(count)],
        "TransformParameters": ["0"] * count,
        "GridSize": ["4"] * d,
        "GridIndex": ["0"] * d,
        "GridSpacing": as_numbers(spacing),
        "GridOrigin": as_numbers(np.asarray(grid.origin) - grid.rotation @ spacing),
        "GridDirection": as_numbers(grid.rotation.T.ravel()),
        "BSplineTransformSplineOrder": ["3"],
        "UseCyclicTransform": ["false"],
    }

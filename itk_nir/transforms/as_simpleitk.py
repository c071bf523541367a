"""Transforms <-> SimpleITK's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk as image_to_sitk
from itk_nir.transforms.displacement import on_one_grid
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step

#: Composites of one composite, one in the other, that nobody writes.
_DEEPEST = 32


def to_sitk(transform: CompositeTransform, centre: ArrayLike | None = None) -> Any:
    """Make a SimpleITK transform.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    centre : array_like, optional
        ``(d,)``, LPS mm, the point that linear transforms are expressed about; the origin of physical space when left
        out. The map is the same.

    Returns
    -------
    SimpleITK.Transform
        One part gives a ``sitk.AffineTransform`` or ``sitk.DisplacementFieldTransform``, the latter with its inverse
        set where there is one on the same grid, or on that grid continued; more parts give a
        ``sitk.CompositeTransform``, which keeps no inverse (SimpleITK drops a field's inverse whenever it copies it):
        use ``to_sitk(transform.inverse())`` for that.
    """
    import SimpleITK as sitk

    about = np.zeros(transform.dimension) if centre is None else np.asarray(centre, float)
    if len(transform.transforms) == 1:
        back = transform.inverse_transforms
        return _step(transform.transforms[0], about, back[0] if back and len(back) == 1 else None)
    return sitk.CompositeTransform([_step(step, about) for step in reversed(transform.transforms)])


def from_sitk(transform: Any, reference: Geometry | None = None) -> CompositeTransform:
    """Take over a SimpleITK transform.

    Parameters
    ----------
    transform : SimpleITK.Transform
        Fixed -> moving. Linear transforms of every class, displacement fields and composites of them come over as they
        are; any other (B-spline, ...) is sampled.
    reference : Geometry, optional
        Grid of fixed space to sample on.

    Returns
    -------
    CompositeTransform
        Fixed -> moving, with the inverse of a displacement field that has one.

    Raises
    ------
    InputError
        A transform that has to be sampled and no `reference`, or one that is not 2D or 3D.
    """
    d = transform.GetDimension()
    if d not in (2, 3):
        raise InputError(f"transform: is {d}D; only 2D and 3D transforms can be used")
    steps = tuple(_steps(transform, reference))
    inverse = _inverse_field(transform)
    return CompositeTransform(steps, None if inverse is None else (inverse,))


def _step(step: Step, centre: np.ndarray, inverse: Step | None = None) -> Any:
    import SimpleITK as sitk

    if isinstance(step, LinearTransform):
        matrix, shift = step.about(centre)
        affine = sitk.AffineTransform(step.dimension)
        affine.SetCenter(centre.tolist())
        affine.SetMatrix(matrix.ravel().tolist())
        affine.SetTranslation(shift.tolist())
        return affine
    # SimpleITK takes double vectors only, and empties the image it is given.
    both = on_one_grid(step, inverse) if isinstance(inverse, DisplacementField) else None
    field, undo = (step, None) if both is None else both
    transform = sitk.DisplacementFieldTransform(image_to_sitk(field.vectors.astype(np.float64), field.geometry))
    if undo is not None:
        transform.SetInverseDisplacementField(image_to_sitk(undo.vectors.astype(np.float64), undo.geometry))
    return transform


def _steps(transform: Any, reference: Geometry | None) -> list[Step]:
    import SimpleITK as sitk

    transform = _downcast(transform)
    d = transform.GetDimension()
    nested = _parts(transform)
    if nested is not None:
        return [step for part in nested for step in _steps(part, reference)] or [LinearTransform.identity(d)]
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return [_field(transform.GetDisplacementField())]
    if transform.IsLinear():
        return [LinearTransform.of_map(transform.TransformPoint, d)]
    if reference is None:
        raise InputError(f"transform: a {transform.GetName()} has to be sampled; give the fixed image's grid with it")
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, reference.size, reference.origin, reference.spacing,
        reference.rotation.ravel().tolist(),
    )  # fmt: skip
    return [_field(field)]


def _downcast(transform: Any) -> Any:
    """A transform as one of its own class; where SimpleITK has none, as it is: it maps points all the same."""
    try:
        return transform.Downcast()
    except (KeyError, RuntimeError, TypeError):
        return transform


def _parts(transform: Any) -> list[Any] | None:
    """The parts of a composite, the first that a point meets first; None of anything else.

    SimpleITK wraps ITK's classes that it does not know as composites whose one part is wrapped so again, without end,
    and gives out no part of some other classes. Such a composite is what it maps.
    """
    import SimpleITK as sitk

    if not isinstance(transform, sitk.CompositeTransform):
        return None
    try:
        parts = [transform.GetNthTransform(i) for i in reversed(range(transform.GetNumberOfTransforms()))]
        inner, depth = parts, 0
        while len(inner) == 1 and isinstance(inner[0], sitk.CompositeTransform) and depth < _DEEPEST:
            inner = [inner[0].GetNthTransform(i) for i in range(inner[0].GetNumberOfTransforms())]
            depth += 1
    except (RuntimeError, KeyError):
        return None
    return parts if depth < _DEEPEST else None


def _inverse_field(transform: Any) -> DisplacementField | None:
    import SimpleITK as sitk

    transform = _downcast(transform)
    if not isinstance(transform, sitk.DisplacementFieldTransform):
        return None
    image = transform.GetInverseDisplacementField()
    return _field(image) if image.GetNumberOfPixels() else None


def _field(image: Any) -> DisplacementField:
    import SimpleITK as sitk

    if not image.GetNumberOfPixels():
        raise InputError("transform: a displacement field without voxels, which is what a truncated file reads as")
    geometry = Geometry.make(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return DisplacementField(geometry, sitk.GetArrayViewFromImage(image).astype(np.float32))

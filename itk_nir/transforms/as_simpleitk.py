"""Chains ⇄ SimpleITK transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk as image_to_sitk
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step


def to_sitk(chain: CompositeTransform) -> Any:
    """A chain as a SimpleITK transform, fixed → moving.

    One step gives a ``sitk.AffineTransform`` or ``sitk.DisplacementFieldTransform``, the latter with its inverse set
    where the chain has one on the same grid; more steps give a ``sitk.CompositeTransform``, which keeps no inverse
    (SimpleITK drops a field's inverse whenever it copies it): use ``to_sitk(chain.inverse())`` for that.
    """
    import SimpleITK as sitk

    if len(chain.transforms) == 1:
        back = chain.inverse_transforms[0] if chain.inverse_transforms and len(chain.inverse_transforms) == 1 else None
        return _step(chain.transforms[0], back)
    return sitk.CompositeTransform([_step(step) for step in reversed(chain.transforms)])


def from_sitk(transform: Any, reference: Geometry | None = None) -> CompositeTransform:
    """A SimpleITK transform as a chain.

    Linear transforms of every class, displacement fields and composites of them come over as they are; any other
    (B-spline, ...) is sampled on `reference`, a grid of fixed space.

    Raises
    ------
    InputError : such another transform and no `reference`, or a transform that is not 2D or 3D.
    """
    d = transform.GetDimension()
    if d not in (2, 3):
        raise InputError(f"transform: is {d}D; only 2D and 3D transforms can be used")
    chain = CompositeTransform(tuple(_steps(transform, reference)))
    inverse = _inverse_field(transform)
    return chain if inverse is None else CompositeTransform(chain.transforms, (inverse,))


def _step(step: Step, inverse: Step | None = None) -> Any:
    import SimpleITK as sitk

    if isinstance(step, LinearTransform):
        affine = sitk.AffineTransform(step.dimension)
        affine.SetMatrix(step.matrix[:-1, :-1].ravel().tolist())
        affine.SetTranslation(step.matrix[:-1, -1].tolist())
        return affine
    # SimpleITK takes double vectors only, and empties the image it is given.
    transform = sitk.DisplacementFieldTransform(image_to_sitk(step.vectors.astype(np.float64), step.geometry))
    if isinstance(inverse, DisplacementField) and inverse.geometry == step.geometry:
        transform.SetInverseDisplacementField(image_to_sitk(inverse.vectors.astype(np.float64), inverse.geometry))
    return transform


def _steps(transform: Any, reference: Geometry | None) -> list[Step]:
    import SimpleITK as sitk

    transform = transform.Downcast()
    d = transform.GetDimension()
    if isinstance(transform, sitk.CompositeTransform):
        nested = (transform.GetNthTransform(i) for i in reversed(range(transform.GetNumberOfTransforms())))
        return [step for part in nested for step in _steps(part, reference)] or [LinearTransform.identity(d)]
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return [_field(transform.GetDisplacementField())]
    if transform.IsLinear():
        # Any class of linear transform is known by where it takes the origin and the unit vectors.
        origin = np.array(transform.TransformPoint([0.0] * d))
        columns = [np.array(transform.TransformPoint(row.tolist())) - origin for row in np.eye(d)]
        return [LinearTransform.make(np.stack(columns, axis=1), origin)]
    if reference is None:
        raise InputError(f"transform: a {transform.GetName()} has to be sampled; give the fixed image's grid with it")
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, reference.size, reference.origin, reference.spacing,
        reference.rotation.ravel().tolist(),
    )  # fmt: skip
    return [_field(field)]


def _inverse_field(transform: Any) -> DisplacementField | None:
    import SimpleITK as sitk

    transform = transform.Downcast()
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

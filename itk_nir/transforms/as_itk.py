"""Chains ⇄ ITK transforms (double precision: ITK's wheels resample with no other)."""

from __future__ import annotations

from typing import Any

import numpy as np

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk_vectors
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step


def to_itk(chain: CompositeTransform) -> Any:
    """A chain as an ``itk.CompositeTransform[itk.D, d]``, fixed → moving.

    ITK applies the transform that was added last first, so the steps are added last to first. Where the inverse chain
    has, step by step, the inverses of these steps, each displacement field carries its own, and ITK's
    ``GetInverseTransform()`` works on the whole.
    """
    import itk

    composite = itk.CompositeTransform[itk.D, chain.dimension].New()
    inverses = _paired_inverses(chain)
    for step, inverse in zip(reversed(chain.transforms), reversed(inverses), strict=True):
        if isinstance(step, LinearTransform):
            composite.AddTransform(linear_to_itk(step))
        else:
            composite.AddTransform(field_to_itk(step, inverse))
    return composite


def field_to_itk(field: DisplacementField, inverse: DisplacementField | None = None) -> Any:
    """An ``itk.DisplacementFieldTransform[itk.D, d]``, with its inverse set where one is given on the same grid.

    Raises
    ------
    InputError : an inverse on another grid, which ITK cannot hold.
    """
    import itk

    transform = itk.DisplacementFieldTransform[itk.D, field.dimension].New()
    transform.SetDisplacementField(to_itk_vectors(field.vectors, field.geometry, itk.D))
    if inverse is not None:
        if not inverse.geometry.same_grid(field.geometry):
            raise InputError("ITK keeps a displacement field and its inverse on one grid; resample one of them")
        transform.SetInverseDisplacementField(to_itk_vectors(inverse.vectors, field.geometry, itk.D))
    return transform


def linear_to_itk(linear: LinearTransform) -> Any:
    """An ``itk.AffineTransform[itk.D, d]`` with centre 0."""
    import itk

    d = linear.dimension
    transform = itk.AffineTransform[itk.D, d].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(linear.matrix[:-1, :-1])))
    transform.SetTranslation(linear.matrix[:-1, -1].tolist())
    return transform


def from_itk(transform: Any, reference: Geometry | None = None) -> CompositeTransform:
    """An ITK transform as a chain.

    Linear transforms of every class, displacement fields (with their inverse) and composites, nested ones too, come
    over as they are; any other (B-spline, velocity field, ...) is sampled on `reference`, a grid of fixed space.

    Raises
    ------
    InputError : such another transform and no `reference`, or a transform that is not 2D or 3D.
    """
    import itk

    transform = itk.down_cast(transform)
    d = int(transform.GetInputSpaceDimension())
    if d not in (2, 3):
        raise InputError(f"transform: is {d}D; only 2D and 3D transforms can be used")
    pairs = _steps(transform, reference)
    steps = tuple(step for step, _ in pairs)
    inverse = [back for _, back in reversed(pairs) if back is not None]
    return CompositeTransform(steps, tuple(inverse) if len(inverse) == len(steps) else None)


def _steps(transform: Any, reference: Geometry | None) -> list[tuple[Step, Step | None]]:
    import itk

    transform = itk.down_cast(transform)
    d = int(transform.GetInputSpaceDimension())
    name = transform.GetNameOfClass()
    if name == "CompositeTransform":
        nested = [transform.GetNthTransform(i) for i in reversed(range(transform.GetNumberOfTransforms()))]
        identity = LinearTransform.identity(d)
        return [pair for part in nested for pair in _steps(part, reference)] or [(identity, identity)]
    if hasattr(transform, "GetDisplacementField") and name.endswith("DisplacementFieldTransform"):
        image = transform.GetDisplacementField()
        if image is None:
            raise InputError("transform: a displacement field transform without a field (a truncated file reads so)")
        back = transform.GetInverseDisplacementField()
        return [(_field(image), None if back is None else _field(back))]
    if transform.IsLinear():
        # Any class of linear transform is known by where it takes the origin and the unit vectors.
        origin = np.array(transform.TransformPoint([0.0] * d))
        columns = [np.array(transform.TransformPoint(row.tolist())) - origin for row in np.eye(d)]
        linear = LinearTransform.make(np.stack(columns, axis=1), origin)
        return [(linear, linear.inverse())]
    if reference is None:
        raise InputError(f"transform: a {name} has to be sampled; give the fixed image's grid with it")
    return [(_sampled(transform, reference), None)]


def _sampled(transform: Any, reference: Geometry) -> DisplacementField:
    import itk

    d = reference.dimension
    # Not wrapped for double vectors.
    sampler = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, d], d], itk.D].New()
    sampler.SetTransform(transform)
    sampler.SetSize([int(n) for n in reference.size])
    sampler.SetOutputSpacing(reference.spacing)
    sampler.SetOutputOrigin(reference.origin)
    sampler.SetOutputDirection(itk.matrix_from_array(np.ascontiguousarray(reference.rotation)))
    sampler.Update()
    return _field(sampler.GetOutput())


def _field(image: Any) -> DisplacementField:
    import itk

    region = image.GetLargestPossibleRegion()
    geometry = Geometry.make(
        tuple(region.GetSize()),
        tuple(image.GetSpacing()),
        tuple(image.TransformIndexToPhysicalPoint(region.GetIndex())),
        itk.array_from_matrix(image.GetDirection()),
    )
    return DisplacementField(geometry, itk.array_view_from_image(image).astype(np.float32))


def _paired_inverses(chain: CompositeTransform) -> list[DisplacementField | None]:
    """For each step the displacement field that inverts it, where the inverse chain holds it on the same grid."""
    back = chain.inverse_transforms
    found: list[DisplacementField | None] = [None] * len(chain.transforms)
    if back is None or len(back) != len(chain.transforms):
        return found
    for number, (step, inverse) in enumerate(zip(chain.transforms, reversed(back), strict=True)):
        if isinstance(step, DisplacementField) and isinstance(inverse, DisplacementField):
            found[number] = inverse if inverse.geometry == step.geometry else None
    return found

"""Transforms <-> ITK's (double precision: ITK's wheels resample with no other)."""

from __future__ import annotations

from typing import Any

import numpy as np

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import to_itk_vectors
from itk_nir.images.itk_classes import LOADING, down_cast, image_view, itk_matrix, matrix_array, new_transform
from itk_nir.transforms.displacement import on_one_grid
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step


def to_itk(transform: CompositeTransform) -> Any:
    """Make an ITK composite transform.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.

    Returns
    -------
    itk.CompositeTransform[itk.D, d]
        Fixed -> moving. Where the inverse has, part by part, the inverses of these parts, each displacement field
        carries its own, and ITK's ``GetInverseTransform()`` works on the whole; a field whose inverse is on a larger
        grid is continued to that one.

    Notes
    -----
    ITK applies the transform that was added last first, so the parts are added last to first.
    """
    composite = new_transform("CompositeTransform", transform.dimension)
    for step, inverse in reversed(_with_inverses(transform)):
        if isinstance(step, LinearTransform):
            composite.AddTransform(linear_to_itk(step))
        else:
            composite.AddTransform(field_to_itk(step, inverse))
    return composite


def field_to_itk(field: DisplacementField, inverse: DisplacementField | None = None) -> Any:
    """Make an ITK displacement field transform.

    Parameters
    ----------
    field : DisplacementField
        The displacements.
    inverse : DisplacementField, optional
        The inverse, on the same grid.

    Returns
    -------
    itk.DisplacementFieldTransform[itk.D, d]
        With its inverse set where one is given.

    Raises
    ------
    InputError
        An inverse on another grid, which ITK cannot hold.
    """
    transform = new_transform("DisplacementFieldTransform", field.dimension)
    transform.SetDisplacementField(to_itk_vectors(field.vectors, field.geometry, "D"))
    if inverse is not None:
        if not inverse.geometry.same_grid(field.geometry):
            raise InputError("ITK keeps a displacement field and its inverse on one grid; resample one of them")
        transform.SetInverseDisplacementField(to_itk_vectors(inverse.vectors, field.geometry, "D"))
    return transform


def linear_to_itk(linear: LinearTransform) -> Any:
    """Make an ITK affine transform.

    Parameters
    ----------
    linear : LinearTransform
        The map.

    Returns
    -------
    itk.AffineTransform[itk.D, d]
        With its centre at the origin of physical space.
    """
    transform = new_transform("AffineTransform", linear.dimension)
    transform.SetMatrix(itk_matrix(linear.matrix[:-1, :-1]))
    transform.SetTranslation(linear.matrix[:-1, -1].tolist())
    return transform


def from_itk(transform: Any, reference: Geometry | None = None) -> CompositeTransform:
    """Take over an ITK transform.

    Parameters
    ----------
    transform : itk.Transform
        Fixed -> moving. Linear transforms of every class, displacement fields (with their inverse) and composites,
        nested ones too, come over as they are; any other (B-spline, velocity field, ...) is sampled.
    reference : Geometry, optional
        Grid of fixed space to sample on.

    Returns
    -------
    CompositeTransform
        Fixed -> moving, with its inverse where every part has one.

    Raises
    ------
    InputError
        A transform that has to be sampled and no `reference`, or one that is not 2D or 3D.
    """
    transform = down_cast(transform)
    d = int(transform.GetInputSpaceDimension())
    if d not in (2, 3):
        raise InputError(f"transform: is {d}D; only 2D and 3D transforms can be used")
    pairs = _steps(transform, reference)
    steps = tuple(step for step, _ in pairs)
    inverse = [back for _, back in reversed(pairs) if back is not None]
    return CompositeTransform(steps, tuple(inverse) if len(inverse) == len(steps) else None)


def _steps(transform: Any, reference: Geometry | None) -> list[tuple[Step, Step | None]]:
    transform = down_cast(transform)
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
        linear = LinearTransform.of_map(lambda point: list(transform.TransformPoint(point)), d)
        return [(linear, linear.inverse())]
    if reference is None:
        raise InputError(f"transform: a {name} has to be sampled; give the fixed image's grid with it")
    return [(_sampled(transform, reference), None)]


def _sampled(transform: Any, reference: Geometry) -> DisplacementField:
    d = reference.dimension
    with LOADING:
        import itk

        # Not wrapped for double vectors.
        sampler = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, d], d], itk.D].New()
    sampler.SetTransform(transform)
    sampler.SetSize([int(n) for n in reference.size])
    sampler.SetOutputSpacing(reference.spacing)
    sampler.SetOutputOrigin(reference.origin)
    sampler.SetOutputDirection(itk_matrix(reference.rotation))
    sampler.Update()
    return _field(sampler.GetOutput())


def _field(image: Any) -> DisplacementField:
    region = image.GetLargestPossibleRegion()
    geometry = Geometry.make(
        tuple(region.GetSize()),
        tuple(image.GetSpacing()),
        tuple(image.TransformIndexToPhysicalPoint(region.GetIndex())),
        matrix_array(image.GetDirection()),
    )
    return DisplacementField(geometry, image_view(image).astype(np.float32))


def _with_inverses(transform: CompositeTransform) -> list[tuple[Step, DisplacementField | None]]:
    """Each part, a displacement field with what inverts it, where the inverse has that on a grid that fits."""
    back = transform.inverse_transforms
    if back is None or len(back) != len(transform.transforms):
        return [(step, None) for step in transform.transforms]
    found: list[tuple[Step, DisplacementField | None]] = []
    for step, inverse in zip(transform.transforms, reversed(back), strict=True):
        both = None
        if isinstance(step, DisplacementField) and isinstance(inverse, DisplacementField):
            both = on_one_grid(step, inverse)
        found.append((step, None) if both is None else both)
    return found

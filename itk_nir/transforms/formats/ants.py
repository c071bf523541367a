"""Transforms as the files ANTs leaves: ``1Warp.nii.gz``, ``0GenericAffine.mat``, ``1InverseWarp.nii.gz``.

A warp is a NIfTI vector image (intent 1007) whose vectors are **LPS** mm although the header is RAS; the affine is an
ITK transform file. Both map fixed points to moving points. A fixed point meets the warp first, then the affine; ANTs'
lists name them in that order. The inverse is the *same* affine file, inverted by whoever applies it, then the inverse
warp.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.places import itk_name
from itk_nir.transforms.composition import field_then_linear
from itk_nir.transforms.formats.base import (
    Directions,
    Mapping,
    Place,
    Points,
    SavedFile,
    has_ending,
    needs_reference,
)
from itk_nir.transforms.formats.field_image import FieldImage, nifti_grid, read_field
from itk_nir.transforms.formats.itk_text import ItkText, read_itk_file, write_itk_file
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step

WARP, AFFINE, INVERSE_WARP = "1Warp.nii.gz", "0GenericAffine.mat", "1InverseWarp.nii.gz"


@dataclass(frozen=True)
class Ants:
    """ANTs' files: one warp, one affine, one inverse warp; what is no field and then a linear map is sampled."""

    endings: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = (2, 3)

    def accepts(self, name: str) -> bool:
        """Tell whether the name can be a prefix."""
        return not has_ending(name)

    def prefix(self, name: str) -> str:
        """Give the name, which is a prefix."""
        return name

    def save(
        self, transform: CompositeTransform, place: Place, points: Points, reference: Geometry | None, label: str
    ) -> list[SavedFile]:
        """Write one transform, with the inverse that ANTs' files always have.

        Raises
        ------
        InputError
            A transform that has to be sampled and no reference.
        """
        first = transform.transforms[0]
        exact = transform.is_linear or (isinstance(first, DisplacementField) and len(transform.fields) == 1)
        if not exact and reference is None:
            raise needs_reference(label, "ANTs' files hold one warp, then one affine; this transform has to be sampled")
        form = _held(field_then_linear(transform, reference))
        return _files(form, place, points, reference, transform, None)

    def save_both(self, directions: Directions, place: Place) -> list[SavedFile]:
        """Write ``1Warp.nii.gz``, ``0GenericAffine.mat`` and ``1InverseWarp.nii.gz``."""
        form = _held(field_then_linear(directions.forward, directions.fixed))
        return _files(form, place, directions.points, directions.fixed, directions.forward, directions.inverse)


def write_ants(
    transform: CompositeTransform,
    prefix: str | os.PathLike[str],
    grid: Geometry | None = None,
    *,
    precision: str = "float",
) -> tuple[list[Path], list[Path]]:
    """Write a transform as ANTs' three files, all or none; a linear one as ``PREFIX0GenericAffine.mat`` alone.

    A transform that is not a field and then a linear map is brought into that form on `grid` (see `field_then_linear`).

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving, 2D or 3D. Where it has no inverse, that is computed.
    prefix : str or os.PathLike
        ANTs' output prefix: a folder (with a slash at its end) or a folder and the start of the names.
    grid : Geometry, optional
        The fixed image's. The affine is written about its centre, as ANTs does, and the transform is sampled on it
        where that has to be. The grid of the transform's first field when left out.
    precision : {"float", "double"}, default "float"
        Of the voxels of the fields; what they hold are float32 values in both cases.

    Returns
    -------
    forward : list of Path
        ANTs' ``fwdtransforms``, ``[1Warp, 0GenericAffine]``.
    inverse : list of Path
        Its ``invtransforms``, ``[0GenericAffine, 1InverseWarp]``; the affine counts as inverted
        (``whichtoinvert=[True, False]``, which is ANTsPy's default for such a list).
    """
    form = _held(field_then_linear(transform, grid))
    folder, start = split_prefix(prefix)
    affine, warp, inverse_warp = (folder / f"{start}{name}" for name in (AFFINE, WARP, INVERSE_WARP))
    if grid is None and form.fields:
        grid = form.fields[0].geometry
    with all_or_none(folder) as stage:
        linear = CompositeTransform((form.transforms[-1],))
        write_itk_file(linear, stage / affine.name, None if grid is None else grid.centre)
        if form.is_linear:
            return [affine], [affine]
        assert form.inverse_transforms is not None
        for field, path in ((form.transforms[0], warp), (form.inverse_transforms[1], inverse_warp)):
            assert isinstance(field, DisplacementField)
            kind = np.float64 if precision == "double" else np.float32
            save_image(field.vectors.astype(kind, copy=False), field.geometry, stage / path.name)
    return [warp, affine], [affine, inverse_warp]


def read_ants(prefix: str | os.PathLike[str]) -> CompositeTransform:
    """Read what `write_ants` or ANTs' own registration left under a prefix, with its inverse.

    Parameters
    ----------
    prefix : str or os.PathLike
        ANTs' output prefix.

    Returns
    -------
    CompositeTransform
        Fixed -> moving.

    Raises
    ------
    InputError
        Neither a warp nor an affine under that prefix, or files that are damaged.
    """
    folder, start = split_prefix(prefix)
    affine, warp, inverse_warp = (folder / f"{start}{name}" for name in (AFFINE, WARP, INVERSE_WARP))
    steps: list[DisplacementField | LinearTransform] = []
    if warp.exists():
        steps.append(read_field(warp, f"transform {warp}"))
    if affine.exists():
        steps.extend(read_itk_file(affine, None, f"transform {affine}").transforms)
    if not steps:
        raise InputError(f"{os.fspath(prefix)}: neither {WARP} nor {AFFINE} begins so; check the prefix")
    if not (warp.exists() and inverse_warp.exists()):
        return CompositeTransform(tuple(steps))
    undone = [step.inverse() for step in reversed(steps) if isinstance(step, LinearTransform)]
    back = read_field(inverse_warp, f"transform {inverse_warp}")
    return CompositeTransform(tuple(steps), (*undone, back))


def _files(
    form: CompositeTransform,
    place: Place,
    points: Points,
    grid: Geometry | None,
    forward: CompositeTransform,
    inverse: CompositeTransform | None,
) -> list[SavedFile]:
    write_ants(form, f"{place.stage}/{place.start}", grid)
    warp, affine, inverse_warp = (f"{place.start}{name}" for name in (WARP, AFFINE, INVERSE_WARP))
    last = ItkText().applied(place.stage / affine)
    files = [SavedFile("affine", affine, CompositeTransform((form.transforms[-1],)), points, last)]
    if form.is_linear:
        return files
    there = FieldImage().applied(place.stage / warp)
    back = FieldImage().applied(place.stage / inverse_warp)
    undo = _inverted(place.stage / affine)
    moved = form.map(points)
    return [
        *files,
        SavedFile("warp", warp, form, points, lambda p: last(there(p)), sampled_from=forward),
        SavedFile("inverse_warp", inverse_warp, form.inverse(), moved, lambda p: back(undo(p)), sampled_from=inverse),
    ]


def _held(form: CompositeTransform) -> CompositeTransform:
    """The transform with its fields on grids that NIfTI headers hold; itself unless they lie far from the origin."""

    def held(step: Step) -> Step:
        if isinstance(step, LinearTransform) or nifti_grid(step.geometry) is step.geometry:
            return step
        return CompositeTransform((step,)).displacement_on(nifti_grid(step.geometry))

    back = form.inverse_transforms
    return CompositeTransform(tuple(map(held, form.transforms)), None if back is None else tuple(map(held, back)))


def _inverted(affine: Path) -> Mapping:
    """What ANTs does with an affine file that it is told to invert."""

    def apply(points: Points) -> Points:
        import SimpleITK as sitk

        transform = sitk.ReadTransform(itk_name(affine)).GetInverse()
        return np.array([transform.TransformPoint(p.tolist()) for p in points])

    return apply

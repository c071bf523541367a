"""Chains as the files ANTs leaves: ``1Warp.nii.gz``, ``0GenericAffine.mat``, ``1InverseWarp.nii.gz``.

A warp is a NIfTI vector image (intent 1007) whose vectors are **LPS** mm although the header is RAS; the affine is an
ITK transform file. Both map fixed points to moving points. A fixed point meets the warp first, then the affine; ANTs'
lists name them in that order. The inverse is the *same* affine file, inverted by whoever applies it, then the inverse
warp.
"""

from __future__ import annotations

import os
from pathlib import Path

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.transforms.composition import field_then_linear
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

WARP, AFFINE, INVERSE_WARP = "1Warp.nii.gz", "0GenericAffine.mat", "1InverseWarp.nii.gz"


def write_ants(
    chain: CompositeTransform, prefix: str | os.PathLike[str], grid: Geometry | None = None
) -> tuple[list[Path], list[Path]]:
    """Write a chain as ANTs' three files, all or none; a linear chain as ``PREFIX0GenericAffine.mat`` alone.

    A chain that is not a field and then a linear map is brought into that form on `grid` (see `field_then_linear`).

    Parameters
    ----------
    chain : fixed → moving, 2D or 3D. Where it has no inverse, that is computed.
    prefix : ANTs' output prefix: a folder (with a slash at its end) or a folder and the start of the names.
    grid : the fixed image's; used only where the chain has to be sampled.

    Returns
    -------
    forward : ANTs' ``fwdtransforms``, ``[1Warp, 0GenericAffine]``.
    inverse : its ``invtransforms``, ``[0GenericAffine, 1InverseWarp]``; the affine counts as inverted
        (``whichtoinvert=[True, False]``, which is ANTsPy's default for such a list).
    """
    form = field_then_linear(chain, grid)
    folder, start = split_prefix(prefix)
    affine, warp, inverse_warp = (folder / f"{start}{name}" for name in (AFFINE, WARP, INVERSE_WARP))
    with all_or_none(folder) as stage:
        linear = form.transforms[-1]
        assert isinstance(linear, LinearTransform)
        write_affine(linear, stage / affine.name)
        if form.is_linear:
            return [affine], [affine]
        assert form.inverse_transforms is not None
        for field, path in ((form.transforms[0], warp), (form.inverse_transforms[1], inverse_warp)):
            assert isinstance(field, DisplacementField)
            save_image(field.vectors, field.geometry, stage / path.name)
    return [warp, affine], [affine, inverse_warp]


def read_ants(prefix: str | os.PathLike[str]) -> CompositeTransform:
    """What `write_ants` or ANTs' own registration left under a prefix, with its inverse.

    Raises
    ------
    InputError : neither a warp nor an affine under that prefix, or files that are damaged.
    """
    from itk_nir.transforms.load import load_transform

    folder, start = split_prefix(prefix)
    affine, warp, inverse_warp = (folder / f"{start}{name}" for name in (AFFINE, WARP, INVERSE_WARP))
    steps = [load_transform(path).transforms for path in (warp, affine) if path.exists()]
    if not steps:
        raise InputError(f"{os.fspath(prefix)}: neither {WARP} nor {AFFINE} begins so; check the prefix")
    chain = CompositeTransform(tuple(step for part in steps for step in part))
    if not (warp.exists() and inverse_warp.exists()):
        return chain
    undone = [step.inverse() for step in reversed(chain.transforms) if isinstance(step, LinearTransform)]
    return CompositeTransform(chain.transforms, (*undone, *load_transform(inverse_warp).transforms))


def write_affine(linear: LinearTransform, path: str | os.PathLike[str]) -> None:
    """An ITK ``.mat`` or ``.tfm`` file of an ``AffineTransform``, double precision, centre 0."""
    import SimpleITK as sitk

    from itk_nir.transforms.as_simpleitk import to_sitk

    try:
        sitk.WriteTransform(to_sitk(CompositeTransform((linear,))), os.fspath(path))
    except RuntimeError as error:
        raise OSError(f"{os.fspath(path)}: cannot be written") from error

"""ANTs' files: results under ANTs' names, and transforms to start from."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.saving import TRANSFORMS, check_output_prefix
from itk_nir.transforms.formats.ants import write_ants
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.model import CompositeTransform, LinearTransform, compose
from itk_nir.warping import in_place, values_on

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

#: Value of warped images where the other image does not reach, as ANTs has it.
OUTSIDE = 0.0

_BRACKETED = re.compile(r"\[(.+?)\s*,\s*([01])\]$")


def write_files(
    result: RegistrationResult,
    prefix: str,
    *,
    composite: bool = False,
    images: bool = False,
    precision: str = "float",
) -> dict[str, Any]:
    """Write what ANTs writes, under its names: all files appear, complete, or none.

    Parameters
    ----------
    result : RegistrationResult
        What `itk_nir.register` gave back.
    prefix : str
        Start of all names, ``P`` below: a folder (with a slash at its end) or a folder and the start of a name.
        Missing folders are made.
    composite : bool, default False
        Write ``PComposite.h5`` and ``PInverseComposite.h5`` in place of ``P0GenericAffine.mat``, ``P1Warp.nii.gz`` and
        ``P1InverseWarp.nii.gz``.
    images : bool, default False
        Write ``PWarped.nii.gz`` (the moving image on the fixed grid) and ``PInverseWarped.nii.gz`` (the fixed image on
        the moving grid) too.
    precision : {"float", "double"}, default "float"
        Of the voxels of displacement fields.

    Returns
    -------
    dict
        ``fwdtransforms`` and ``invtransforms`` as `registration` returns them, and ``images``, a list of paths.

    Raises
    ------
    InputError
        A prefix that cannot be written to, or an output that is an input.
    WriteError
        The disk is full, or refuses otherwise.
    """
    transforms = TRANSFORMS["itk" if composite else "ants"]
    pictured = ("Warped.nii.gz", "InverseWarped.nii.gz") if images else ()
    check_output_prefix(prefix, (*transforms, *pictured), result.inputs)
    folder, start = split_prefix(prefix)
    with all_or_none(folder) as stage:
        if composite:
            write_h5(result.mapping, stage / f"{start}Composite.h5", precision=precision)
            write_h5(result.mapping.inverse(), stage / f"{start}InverseComposite.h5", precision=precision)
        else:
            write_ants(result.mapping, f"{stage}{os.sep}{start}", result.fixed.geometry, precision=precision)
        if images:
            onto = (result.fixed, "Warped"), (result.moving, "InverseWarped")
            for array, (image, name) in zip(warped_images(result), onto, strict=True):
                save_image(*in_place(array, image), stage / f"{start}{name}.nii.gz", space_code=image.space_code)
        written = {path.name for path in stage.iterdir()}

    def named(*endings: str) -> list[str]:
        return [str(folder / f"{start}{e}") for e in endings if f"{start}{e}" in written]

    if composite:
        forward: Any = named("Composite.h5")[0]
        backward: Any = named("InverseComposite.h5")[0]
    else:
        forward = named("1Warp.nii.gz", "0GenericAffine.mat")
        backward = named("0GenericAffine.mat", "1InverseWarp.nii.gz")
    return {
        "fwdtransforms": forward,
        "invtransforms": backward,
        "images": named("Warped.nii.gz", "InverseWarped.nii.gz"),
    }


def warped_images(result: RegistrationResult) -> tuple[NDArray[Any], NDArray[Any]]:
    """Resample both images of a registration on each other's grid.

    Parameters
    ----------
    result : RegistrationResult
        What `itk_nir.register` gave back.

    Returns
    -------
    moving : ndarray, shape ``result.fixed.geometry.shape``
        One linear interpolation of the moving image through the transform (fixed → moving), float32 or wider; outside,
        0, as with ANTs.
    fixed : ndarray, shape ``result.moving.geometry.shape``
        The same of the fixed image through the inverse transform (moving → fixed).
    """
    forward, threads = result.mapping, result.report.threads
    moving = values_on(result.moving, forward, result.fixed, OUTSIDE, threads)
    return moving, values_on(result.fixed, forward.inverse(), result.moving, OUTSIDE, threads)


def load_initial_transform(initial: Any, reference: Geometry) -> CompositeTransform | None:
    """Read ANTs' initial transforms as one composite transform, fixed → moving.

    Parameters
    ----------
    initial : path, str, sequence of these, or None
        Each one a file of a transform, ``"[file,1]"`` for the inverse of one, or ``"Identity"``. The first of a
        sequence is the first that a fixed point meets.
    reference : Geometry
        The fixed grid (LPS mm), on which transforms that have no grid of their own are sampled where that is needed.

    Returns
    -------
    CompositeTransform or None
        None for None: the registration looks for a start by itself.

    Raises
    ------
    InputError
        An empty sequence, something that is no name of a file, ANTs' ``[fixed,moving,n]``, or a file that cannot be
        read as a transform of this dimension.
    """
    if initial is None:
        return None
    parts = list(initial) if isinstance(initial, (list, tuple)) else [initial]
    if not parts:
        raise InputError("initial transform: an empty list; give at least one file, or None")
    return compose(*(_load_one(part, reference) for part in parts))


def _load_one(part: Any, reference: Geometry) -> CompositeTransform:
    if not isinstance(part, (str, os.PathLike)):
        raise InputError(
            f"initial transform: ANTs takes names of files, got {type(part).__name__}; write it to a file, or give "
            "it to itk_nir.register"
        )
    text = os.fspath(part)
    if text.lower() == "identity":
        return CompositeTransform((LinearTransform.identity(reference.dimension),))
    bracketed = _BRACKETED.match(text)
    if (text.startswith("[") and bracketed is None) or (bracketed is not None and "," in bracketed[1]):
        raise InputError(
            f"initial transform {text}: give a file, or [file,1] for its inverse; alignment of the centres is what "
            "happens without an initial transform"
        )
    # Here, because it imports torch: reading the tables must not wait for that.
    from itk_nir.loading import load_transform

    transform = load_transform(bracketed[1] if bracketed else text, reference, role="initial transform")
    return transform.inverse() if bracketed and bracketed[2] == "1" else transform

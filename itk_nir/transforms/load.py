"""Whatever a user has as a transform → `CompositeTransform`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.images.nifti import check_nifti, is_nifti
from itk_nir.transforms.formats.itk_h5 import UnknownTransformType, read_h5
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose

_TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".hdf", ".tfm", ".txt", ".mat", ".xfm")


def read_transform(transform: Any, reference: Geometry | None = None, *, role: str = "transform") -> CompositeTransform:
    """Read a transform fixed → moving from whatever holds it.

    Parameters
    ----------
    transform : a `CompositeTransform` or one of its steps; an itk or SimpleITK transform; a ``(d + 1, d + 1)`` homogeneous matrix
        (LPS mm); a path to an ITK transform file (.h5, .tfm, .txt, .mat, .xfm) or to a displacement field image
        (.nii.gz, .mha, .nrrd, ...; LPS mm, but RAS for NIfTI intent 1006); elastix' ``TransformParameters.N.txt``,
        ``itk.ParameterObject`` or list of parameter maps; or a list of these in the order in which they meet a fixed
        point, which is the order of ANTs' ``fwdtransforms``.
    reference : grid of the fixed image, on which transforms of other classes (B-spline, ...) are sampled.
    role : what it is in messages.

    Raises
    ------
    InputError : missing, unreadable or truncated file, or an object that is no transform.
    """
    if isinstance(transform, CompositeTransform):
        return transform
    if isinstance(transform, (LinearTransform, DisplacementField)):
        return compose(transform)
    if isinstance(transform, (str, os.PathLike)):
        return _read(Path(transform), reference, f"{role} {os.fspath(transform)}")
    if isinstance(transform, np.ndarray) or _is_rows(transform):
        return CompositeTransform((LinearTransform(np.asarray(transform, float)),))
    if hasattr(transform, "GetNumberOfParameterMaps") or _is_maps(transform):
        from itk_nir.transforms.formats.elastix import read_elastix

        return read_elastix(transform, reference)
    if isinstance(transform, (list, tuple)):
        if not transform:
            raise InputError(f"{role}: an empty list; give at least one transform")
        return compose(*(read_transform(part, reference, role=role) for part in transform))
    sitk = sys.modules.get("SimpleITK")
    if sitk is not None and isinstance(transform, sitk.Transform):
        from itk_nir.transforms.as_simpleitk import from_sitk

        return from_sitk(transform, reference)
    if hasattr(transform, "TransformPoint") and hasattr(transform, "GetInputSpaceDimension"):
        from itk_nir.transforms.as_itk import from_itk

        return from_itk(transform, reference)
    raise InputError(
        f"{role}: cannot use an object of type {type(transform).__name__}; give an itk or SimpleITK transform, a "
        "homogeneous matrix (LPS mm) or a path"
    )


def save_field(field: DisplacementField, path: str | os.PathLike[str]) -> None:
    """Write a displacement field as a vector image, as ANTs writes its warps (NIfTI intent 1007, LPS mm)."""
    save_image(field.vectors, field.geometry, path)


def _is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, (list, tuple)) for row in value)


def _is_maps(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(hasattr(part, "keys") for part in value)


def _read(path: Path, reference: Geometry | None, label: str) -> CompositeTransform:
    if path.is_dir():
        raise InputError(f"{label}: is a folder; give a transform file (.h5, .tfm, .mat, .txt) or a warp image")
    if not path.exists():
        raise InputError(f"{label}: no such file; check the path")
    if path.name.lower().endswith(".txt"):
        from itk_nir.transforms.formats.elastix import is_elastix_file, read_elastix

        if is_elastix_file(path):
            return read_elastix(path, reference)
    if path.name.lower().endswith(".safetensors"):
        from itk_nir.neural_field import load_network

        return load_network(path).bake()
    if path.name.lower().endswith(_TRANSFORM_SUFFIXES):
        return _read_transform(path, reference, label)
    return CompositeTransform((read_field(path, label),))


def _read_transform(path: Path, reference: Geometry | None, label: str) -> CompositeTransform:
    import SimpleITK as sitk

    from itk_nir.transforms.as_simpleitk import from_sitk

    if path.suffix.lower() in (".h5", ".hdf5", ".hdf"):
        try:
            return read_h5(path)
        except UnknownTransformType:
            pass  # SimpleITK knows every class of ITK's
        except InputError as error:
            raise InputError(f"{label}: {str(error).removeprefix(str(path) + ': ')}") from error
    try:
        return from_sitk(sitk.ReadTransform(str(path)), reference)
    except RuntimeError as error:
        raise InputError(f"{label}: damaged or no ITK transform file ({one_line(error)})") from error
    except InputError as error:
        raise InputError(f"{label}: {str(error).removeprefix('transform: ')}") from error


def read_field(path: Path, label: str) -> DisplacementField:
    """A vector image as a displacement field; NIfTI intent 1006 is RAS, everything else LPS mm."""
    import SimpleITK as sitk

    if is_nifti(path):
        check_nifti(path, label)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{label}: neither a transform file nor an image ({one_line(error)})") from error
    d = image.GetDimension()
    if d not in (2, 3) or image.GetNumberOfComponentsPerPixel() != d:
        raise InputError(
            f"{label}: is a {d}D image with {image.GetNumberOfComponentsPerPixel()} values a voxel, no displacement "
            "field; a field has as many values as axes (NIfTI: 5D with intent code 1007)"
        )
    if d == 2 and image.HasMetaDataKey("intent_code") and image.GetMetaData("intent_code") == "1006":
        raise InputError(
            f"{label}: is a 2D field with RAS vectors (NIfTI intent 1006), which ITK misreads; write it with LPS "
            "vectors and intent 1007"
        )
    geometry = Geometry.make(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return DisplacementField(geometry, sitk.GetArrayViewFromImage(image).astype(np.float32))

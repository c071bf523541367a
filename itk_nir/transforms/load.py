"""Whatever a user has as a transform -> `CompositeTransform`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.places import check_input
from itk_nir.transforms.as_itk import from_itk
from itk_nir.transforms.as_simpleitk import from_sitk
from itk_nir.transforms.formats.base import Spaces
from itk_nir.transforms.formats.field_image import read_field
from itk_nir.transforms.formats.itk_text import is_itk_file, read_itk_file
from itk_nir.transforms.formats.matrices import (
    check_convention,
    from_matrix,
    is_matrix_file,
    read_matrix_file,
    read_xfm,
)
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose


def read_transform(
    transform: Any,
    reference: Geometry | None = None,
    *,
    moving: Geometry | None = None,
    convention: str | None = None,
    role: str = "transform",
) -> CompositeTransform:
    """Read a transform fixed -> moving from whatever holds it.

    Parameters
    ----------
    transform : CompositeTransform, LinearTransform, DisplacementField, array_like, str, os.PathLike, object or list
        One of

        - a transform of this package, of itk or of SimpleITK;
        - a ``(d + 1, d + 1)`` homogeneous matrix (LPS mm, or as `convention` says);
        - a path to an ITK transform file (.h5, .tfm, .txt, .mat, .xfm) or to a displacement field image (.nii.gz,
          .mha, .nrrd, ...; LPS mm, but RAS for NIfTI intent 1006); SPM's ``y_*.nii`` and NiftyReg's files by their
          intent;
        - a path to another program's linear transform: a matrix in text (`convention`), AFNI's ``.aff12.1D``, MINC's or
          FreeSurfer's ``.xfm``, FreeSurfer's ``.lta``;
        - elastix' ``TransformParameters.N.txt``, ``itk.ParameterObject`` or list of parameter maps;
        - a list of these in the order in which they meet a fixed point, which is the order of ANTs' ``fwdtransforms``.
    reference : Geometry, optional
        Grid of the fixed image, on which transforms of other classes (B-spline, ...) are sampled; FSL's matrices are
        about it.
    moving : Geometry, optional
        Grid of the moving image, which FSL's matrices are about too.
    convention : str, optional
        One of `formats.matrices.CONVENTIONS`, for files (and matrices) that do not tell theirs.
    role : str, default "transform"
        What it is in messages.

    Returns
    -------
    CompositeTransform
        Fixed -> moving.

    Raises
    ------
    InputError
        A missing, unreadable or truncated file, or an object that is no transform.
    OptionError
        No such convention.

    Examples
    --------
    >>> read_transform([[1, 0, 5], [0, 1, 0], [0, 0, 1]]).map([[1.0, 2.0]]).tolist()
    [[6.0, 2.0]]
    """
    check_convention(convention)
    spaces = Spaces(reference, moving, convention)
    for accepts, reader in OBJECTS:
        if accepts(transform):
            return reader(transform, spaces, role)
    raise InputError(
        f"{role}: cannot use an object of type {type(transform).__name__}; give an itk or SimpleITK transform, a "
        "homogeneous matrix (LPS mm) or a path"
    )


# --- objects ---------------------------------------------------------------------------------------------------------


def _is_matrix(value: Any) -> bool:
    rows = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, (list, tuple)) for row in value)
    return isinstance(value, np.ndarray) or rows


def _is_elastix(value: Any) -> bool:
    maps = isinstance(value, (list, tuple)) and bool(value) and all(hasattr(part, "keys") for part in value)
    return hasattr(value, "GetNumberOfParameterMaps") or maps


def _is_sitk(value: Any) -> bool:
    module = sys.modules.get("SimpleITK")
    return module is not None and isinstance(value, module.Transform)


def _is_itk(value: Any) -> bool:
    return hasattr(value, "TransformPoint") and hasattr(value, "GetInputSpaceDimension")


def _read_list(parts: Any, spaces: Spaces, role: str) -> CompositeTransform:
    if not parts:
        raise InputError(f"{role}: an empty list; give at least one transform")
    return compose(
        *(read_transform(p, spaces.fixed, moving=spaces.moving, convention=spaces.convention, role=role) for p in parts)
    )


def _read_matrix(value: Any, spaces: Spaces, role: str) -> CompositeTransform:
    try:
        matrix = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{role}: rows that are no matrix of numbers ({one_line(error)})") from error
    if spaces.convention is None:
        return CompositeTransform((LinearTransform(matrix),))
    if matrix.shape not in ((3, 3), (4, 4)):
        raise InputError(f"{role}: a linear transform is a 3x3 (2D) or 4x4 (3D) matrix, got shape {matrix.shape}")
    return from_matrix(matrix, spaces, role)


def _read_path(path: str | os.PathLike[str], spaces: Spaces, role: str) -> CompositeTransform:
    file = Path(path)
    label = f"{role} {os.fspath(path)}"
    check_input(path, label)
    if file.is_dir():
        raise InputError(f"{label}: is a folder; give a transform file (.h5, .tfm, .mat, .txt) or a warp image")
    if not file.exists():
        raise InputError(f"{label}: no such file; check the path")
    if not file.is_file():
        raise InputError(f"{label}: is no file that can be read from its beginning again; give a plain file")
    name = file.name.lower()
    for ending, what in REFUSED.items():
        if name.endswith(ending):
            raise InputError(f"{label}: {what}")
    for endings, reader in FILES:
        if name.endswith(endings):
            return reader(file, spaces, label)
    # Matrices in text have any name.
    if is_matrix_file(file):
        return read_matrix_file(file, spaces, label)
    return CompositeTransform((read_field(file, label, spaces),))


# The readers of large or rare formats are imported where such a file comes: a program that is run for every image of a
# study must not wait for them.


def _read_elastix(value: Any, spaces: Spaces, role: str) -> CompositeTransform:
    from itk_nir.transforms.formats.elastix import read_elastix

    return read_elastix(value, spaces.fixed)


def _read_lta(path: Path, spaces: Spaces, label: str) -> CompositeTransform:
    from itk_nir.transforms.formats.freesurfer import read_lta

    return read_lta(path, spaces, label)


def _read_text(path: Path, spaces: Spaces, label: str) -> CompositeTransform:
    from itk_nir.transforms.formats.elastix import is_elastix_file

    if is_elastix_file(path):
        return _read_elastix(path, spaces, label)
    return _read_itk_or_matrix(path, spaces, label)


def _read_itk_or_matrix(path: Path, spaces: Spaces, label: str) -> CompositeTransform:
    if not is_itk_file(path) and is_matrix_file(path):
        return read_matrix_file(path, spaces, label)
    return read_itk_file(path, spaces.fixed, label)


#: (does it accept the object?, reader). The first row that accepts reads. The tests must not import anything.
OBJECTS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Spaces, str], CompositeTransform]], ...] = (
    (lambda t: isinstance(t, CompositeTransform), lambda t, spaces, role: t),
    (lambda t: isinstance(t, (LinearTransform, DisplacementField)), lambda t, spaces, role: compose(t)),
    (lambda t: isinstance(t, (str, os.PathLike)), _read_path),
    (_is_matrix, _read_matrix),
    (_is_elastix, _read_elastix),
    (lambda t: isinstance(t, (list, tuple)), _read_list),
    (_is_sitk, lambda t, spaces, role: from_sitk(t, spaces.fixed)),
    (_is_itk, lambda t, spaces, role: from_itk(t, spaces.fixed)),
)

#: (endings of the name, reader). A file of any other name is a matrix in text, or else an image of displacements.
FILES: tuple[tuple[tuple[str, ...], Callable[[Path, Spaces, str], CompositeTransform]], ...] = (
    ((".txt",), _read_text),
    ((".toml",), _read_elastix),
    ((".h5", ".hdf5", ".hdf"), lambda path, spaces, label: read_itk_file(path, spaces.fixed, label)),
    ((".tfm", ".mat"), _read_itk_or_matrix),
    ((".xfm",), lambda path, spaces, label: read_xfm(path, label)),
    ((".lta",), _read_lta),
    ((".1d",), read_matrix_file),
)

#: Endings of files that are known and cannot be read, and what to do.
REFUSED = {
    ".dat": "FreeSurfer's register.dat names no geometry of the two volumes; lta_convert (or tkregister2 --ltaout) "
    "makes a .lta of it, which can be read",
    ".m3z": "FreeSurfer's .m3z cannot be read; mri_warp_convert --outitk FIELD.nii.gz makes a field of it",
    ".mif": "MRtrix' images cannot be read; warpconvert and mrconvert make a NIfTI field of it",
    ".brik": "AFNI's datasets cannot be read; 3dAFNItoNIFTI makes a NIfTI file of it",
    ".head": "AFNI's datasets cannot be read; 3dAFNItoNIFTI makes a NIfTI file of it",
    ".mnc": "MINC's grids cannot be read; mnc2nii makes a NIfTI file of it",
}

"""Whatever a user has as a transform -> `CompositeTransform`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.places import check_input
from itk_nir.transforms.as_itk import from_itk
from itk_nir.transforms.as_simpleitk import from_sitk
from itk_nir.transforms.formats.elastix import is_elastix_file, read_elastix
from itk_nir.transforms.formats.field_image import read_field
from itk_nir.transforms.formats.itk_text import read_itk_file
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose


def read_transform(transform: Any, reference: Geometry | None = None, *, role: str = "transform") -> CompositeTransform:
    """Read a transform fixed -> moving from whatever holds it.

    Parameters
    ----------
    transform : CompositeTransform, LinearTransform, DisplacementField, array_like, str, os.PathLike, object or list
        One of

        - a transform of this package, of itk or of SimpleITK;
        - a ``(d + 1, d + 1)`` homogeneous matrix (LPS mm);
        - a path to an ITK transform file (.h5, .tfm, .txt, .mat, .xfm) or to a displacement field image (.nii.gz,
          .mha, .nrrd, ...; LPS mm, but RAS for NIfTI intent 1006);
        - elastix' ``TransformParameters.N.txt``, ``itk.ParameterObject`` or list of parameter maps;
        - a list of these in the order in which they meet a fixed point, which is the order of ANTs' ``fwdtransforms``.
    reference : Geometry, optional
        Grid of the fixed image, on which transforms of other classes (B-spline, ...) are sampled.
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

    Examples
    --------
    >>> read_transform([[1, 0, 5], [0, 1, 0], [0, 0, 1]]).map([[1.0, 2.0]]).tolist()
    [[6.0, 2.0]]
    """
    for accepts, reader in OBJECTS:
        if accepts(transform):
            return reader(transform, reference, role)
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


def _read_list(parts: Any, reference: Geometry | None, role: str) -> CompositeTransform:
    if not parts:
        raise InputError(f"{role}: an empty list; give at least one transform")
    return compose(*(read_transform(part, reference, role=role) for part in parts))


def _read_path(path: str | os.PathLike[str], reference: Geometry | None, role: str) -> CompositeTransform:
    file = Path(path)
    label = f"{role} {os.fspath(path)}"
    check_input(path, label)
    if file.is_dir():
        raise InputError(f"{label}: is a folder; give a transform file (.h5, .tfm, .mat, .txt) or a warp image")
    if not file.exists():
        raise InputError(f"{label}: no such file; check the path")
    for endings, reader in FILES:
        if file.name.lower().endswith(endings):
            return reader(file, reference, label)
    return CompositeTransform((read_field(file, label),))


def _read_text(path: Path, reference: Geometry | None, label: str) -> CompositeTransform:
    return read_elastix(path, reference) if is_elastix_file(path) else read_itk_file(path, reference, label)


#: (does it accept the object?, reader). The first row that accepts reads. The tests must not import anything.
OBJECTS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Geometry | None, str], CompositeTransform]], ...] = (
    (lambda t: isinstance(t, CompositeTransform), lambda t, reference, role: t),
    (lambda t: isinstance(t, (LinearTransform, DisplacementField)), lambda t, reference, role: compose(t)),
    (lambda t: isinstance(t, (str, os.PathLike)), _read_path),
    (_is_matrix, lambda t, reference, role: CompositeTransform((LinearTransform(np.asarray(t, float)),))),
    (_is_elastix, lambda t, reference, role: read_elastix(t, reference)),
    (lambda t: isinstance(t, (list, tuple)), _read_list),
    (_is_sitk, lambda t, reference, role: from_sitk(t, reference)),
    (_is_itk, lambda t, reference, role: from_itk(t, reference)),
)

#: (endings of the name, reader). A file of any other name is read as an image of displacements.
FILES: tuple[tuple[tuple[str, ...], Callable[[Path, Geometry | None, str], CompositeTransform]], ...] = (
    ((".txt",), _read_text),
    ((".h5", ".hdf5", ".hdf", ".tfm", ".mat", ".xfm"), read_itk_file),
)

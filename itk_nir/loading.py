"""Anything that a user has as a transform → `CompositeTransform`: one door for `register`, `apply` and the commands."""

from __future__ import annotations

import os
from typing import Any

from itk_nir.geometry import Geometry
from itk_nir.images.series import load_grid
from itk_nir.neural_field import SUFFIX, NeuralField, load_field
from itk_nir.result import RegistrationResult
from itk_nir.transforms.listed import Listed, chain_of, listed
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.model import CompositeTransform, compose


def load_transform(
    transform: Any,
    reference: Any = None,
    *,
    moving: Any = None,
    convention: str | None = None,
    role: str = "transform",
) -> CompositeTransform:
    """Read a transform fixed → moving from whatever holds it.

    Parameters
    ----------
    transform : RegistrationResult, NeuralField, transform, matrix, path or list
        A result of `itk_nir.register`; a trained field or its ``.safetensors`` file; an itk or SimpleITK transform; a
        ``(d + 1, d + 1)`` homogeneous matrix (LPS mm); a `CompositeTransform` or one of its parts; a path to an ITK
        transform file (.h5, .tfm, .txt, .mat, .xfm) or to a displacement field image (.nii.gz, .mha, .nrrd, ...; LPS
        mm, but RAS for NIfTI intent 1006); the files of SPM, NiftyReg, FSL, greedy, AFNI, FreeSurfer, MINC and MRtrix
        that docs/formats.md lists; elastix' ``TransformParameters.N.txt``, ``itk.ParameterObject`` or list of parameter
        maps; or a list of these in the order in which they meet a fixed point, which is the order of ANTs'
        ``fwdtransforms``. As in ANTs' lists ``"[path,1]"`` is the inverse of a path, ``"identity"`` no change (of the
        dimension of `reference`, where it is alone).
    reference : Geometry, image or path, optional
        The fixed image: transforms of other classes (B-spline, ...) are sampled on its grid, and FSL's matrices are
        about it.
    moving : Geometry, image or path, optional
        The moving image, which FSL's matrices are about too.
    convention : str, optional
        Whose convention files follow that do not tell it (matrices in text): ``"lps"``, ``"ras"`` (``"greedy"``,
        ``"c3d"``, ``"niftyreg"``, ``"mrtrix"``), ``"afni"``, ``"itk"``, all fixed → moving in mm; ``"fsl"``, which
        needs `reference` and `moving`. ``"displacements"`` tells of a field image that its values are displacements in
        LPS mm, whatever they look like.
    role : str
        What it is in messages.

    Returns
    -------
    CompositeTransform
        LPS mm, fixed → moving.

    Raises
    ------
    InputError
        Missing, unreadable or truncated file, an object that is no transform, or a matrix in text without a convention.
    OptionError
        No such convention.

    Examples
    --------
    >>> import numpy as np, itk_nir
    >>> shift = itk_nir.load_transform(np.array([[1, 0, 5], [0, 1, 0], [0, 0, 1]]))
    >>> shift.map([[10.0, 20.0]]).tolist()
    [[15.0, 20.0]]
    """
    if isinstance(transform, RegistrationResult):
        return transform.mapping
    if isinstance(transform, NeuralField):
        return transform.sample()
    if _is_field_file(transform):
        return load_field(transform).sample()
    about: dict[str, Any] = {"moving": _grid(moving, "moving image"), "convention": convention, "role": role}
    fixed = _grid(reference, "reference image")
    parts = transform if isinstance(transform, (list, tuple)) else [transform]
    if any(_is_entry(part) for part in parts):
        entries = [listed(part) if _is_entry(part) else Listed(part) for part in parts]
        dimension = None if fixed is None else fixed.dimension
        return chain_of(entries, lambda part: load_transform(part, fixed, **about), dimension)
    if isinstance(transform, (list, tuple)) and any(_is_ours(part) for part in transform):
        return compose(*(load_transform(part, fixed, **about) for part in transform))
    return read_transform(transform, fixed, **about)


def _grid(image: Any, role: str) -> Geometry | None:
    return None if image is None else load_grid(image, role)


def _is_entry(part: Any) -> bool:
    """Whether it is an entry of ANTs' lists that is no path."""
    return isinstance(part, str) and listed(part) != Listed(part)


def _is_ours(part: Any) -> bool:
    return isinstance(part, (RegistrationResult, NeuralField)) or _is_field_file(part)


def _is_field_file(part: Any) -> bool:
    # One that is missing is answered below, in the words for all files.
    named = isinstance(part, (str, os.PathLike)) and os.fspath(part).lower().endswith(SUFFIX)
    return named and os.path.isfile(part)

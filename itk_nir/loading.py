"""Anything that a user has as a transform → `CompositeTransform`: one door for `register`, `apply` and the commands."""

from __future__ import annotations

import os
from typing import Any

from itk_nir.geometry import Geometry
from itk_nir.neural_field import SUFFIX, NeuralField, load_field
from itk_nir.result import RegistrationResult
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.model import CompositeTransform, compose


def load_transform(transform: Any, reference: Geometry | None = None, *, role: str = "transform") -> CompositeTransform:
    """Read a transform fixed → moving from whatever holds it.

    Parameters
    ----------
    transform : RegistrationResult, NeuralField, transform, matrix, path or list
        A result of `itk_nir.register`; a trained field or its ``.safetensors`` file; an itk or SimpleITK transform; a
        ``(d + 1, d + 1)`` homogeneous matrix (LPS mm); a `CompositeTransform` or one of its parts; a path to an ITK
        transform file (.h5, .tfm, .txt, .mat, .xfm) or to a displacement field image (.nii.gz, .mha, .nrrd, ...; LPS
        mm, but RAS for NIfTI intent 1006); elastix' ``TransformParameters.N.txt``, ``itk.ParameterObject`` or list of
        parameter maps; or a list of these in the order in which they meet a fixed point, which is the order of ANTs'
        ``fwdtransforms``.
    reference : Geometry, optional
        Grid of the fixed image, on which transforms of other classes (B-spline, ...) are sampled.
    role : str
        What it is in messages.

    Returns
    -------
    CompositeTransform
        LPS mm, fixed → moving.

    Raises
    ------
    InputError
        Missing, unreadable or truncated file, or an object that is no transform.

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
    if isinstance(transform, (list, tuple)) and any(_is_ours(part) for part in transform):
        return compose(*(load_transform(part, reference, role=role) for part in transform))
    return read_transform(transform, reference, role=role)


def _is_ours(part: Any) -> bool:
    return isinstance(part, (RegistrationResult, NeuralField)) or _is_field_file(part)


def _is_field_file(part: Any) -> bool:
    # One that is missing is answered below, in the words for all files.
    named = isinstance(part, (str, os.PathLike)) and os.fspath(part).lower().endswith(SUFFIX)
    return named and os.path.isfile(part)

"""Anything that holds a transform, results and trained fields among it -> `CompositeTransform`."""

from __future__ import annotations

import os
import sys
from typing import Any

from itk_nir.geometry import Geometry
from itk_nir.result import RegistrationResult
from itk_nir.transforms.load import read_transform
from itk_nir.transforms.model import CompositeTransform, compose


def load_transform(transform: Any, reference: Geometry | None = None, *, role: str = "transform") -> CompositeTransform:
    """Read a transform fixed -> moving from whatever holds it.

    Parameters
    ----------
    transform : RegistrationResult, trained field, str, os.PathLike, object or list
        A result, a trained field or its ``.safetensors`` file, anything that `itk_nir.transforms.load.read_transform`
        takes, or a list of these in the order in which they meet a fixed point.
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
    >>> load_transform([[1, 0, 5], [0, 1, 0], [0, 0, 1]]).map([[1.0, 2.0]]).tolist()
    [[6.0, 2.0]]
    """
    if isinstance(transform, RegistrationResult):
        return transform.chain
    if _is_trained_field(transform):
        from itk_nir.neural_field import Network, load_network

        return (transform if isinstance(transform, Network) else load_network(transform)).bake()
    if isinstance(transform, (list, tuple)) and any(map(_is_ours, transform)):
        return compose(*(load_transform(part, reference, role=role) for part in transform))
    return read_transform(transform, reference, role=role)


def _is_ours(part: Any) -> bool:
    """Whether it is something that `read_transform` does not know."""
    return isinstance(part, RegistrationResult) or _is_trained_field(part)


def _is_trained_field(value: Any) -> bool:
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value).lower().endswith(".safetensors") and os.path.isfile(value)
    # Nobody has such an object who has not imported its module, which is slow to import.
    module = sys.modules.get("itk_nir.neural_field")
    return module is not None and isinstance(value, module.Network)

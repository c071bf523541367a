"""Parameter maps from whatever holds them: objects of ITKElastix, dicts, files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError
from itk_nir.transforms.formats.elastix import ParameterMap, read_entries


def read_maps(source: Any) -> list[ParameterMap]:
    """Read parameter maps, whatever they come as.

    Parameters
    ----------
    source : itk.ParameterObject, mapping, path, sequence of mappings or paths, or None
        Values may be text, numbers or truth values, one or several. None stands for no map at all.

    Returns
    -------
    list of dict of str to list of str
        One a stage, in order, with all values as text.

    Raises
    ------
    InputError
        Something else, or a file that is missing or none of elastix'.
    """
    if source is None:
        return []
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if hasattr(source, "GetNumberOfParameterMaps"):
        source = [source.GetParameterMap(n) for n in range(source.GetNumberOfParameterMaps())]
    if hasattr(source, "keys"):
        source = [source]
    if not isinstance(source, (list, tuple)) or not source:
        raise InputError(
            f"parameter_object: cannot use {source!r}; give an itk.ParameterObject, a dict, a list of dicts or a path"
        )
    return [_read_map(one) for one in source]


def import_itk_elastix() -> Any:
    """Import ``itk`` with itk-elastix' classes in it.

    Returns
    -------
    module
        ``itk``.

    Raises
    ------
    InputError
        itk-elastix is not installed.
    """
    import itk

    if not hasattr(itk, "ParameterObject"):
        raise InputError("elastix: itk.ParameterObject is not there; pip install itk-elastix")
    return itk


def _read_map(source: Any) -> ParameterMap:
    if isinstance(source, (str, os.PathLike)):
        return read_entries(Path(source))
    if not hasattr(source, "keys"):
        raise InputError(f"parameter_object: cannot use {type(source).__name__} as a parameter map; give a dict")
    # ITK's maps are no dicts: they cannot be iterated over.
    return {str(name): _texts(source[name]) for name in source.keys()}  # noqa: SIM118


def _texts(value: Any) -> list[str]:
    if isinstance(value, (bool, np.bool_)):
        return ["true" if value else "false"]
    if isinstance(value, (str, int, float, np.number)):
        return [str(value)]
    return [text for part in value for text in _texts(part)]

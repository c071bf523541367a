"""What the entries of elastix' parameter maps mean."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.transforms.formats.elastix.text import ParameterMap, read_entries

#: elastix 5 writes the first of these keys and elastix 4 and 5.0 read the second alone: files carry both.
INITIAL = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
#: What they hold in the file that is applied first.
NONE = "NoInitialTransform"
#: What every version of elastix writes and a map depends on, and what it does for some classes.
_ALWAYS = ("HowToCombineTransforms", "Size", "Spacing", "Origin", "UseDirectionCosines", "Direction")
_OF_KIND: dict[str, tuple[str, ...]] = {
    "EulerTransform": ("TransformParameters",),
    "SimilarityTransform": ("TransformParameters",),
    "AffineTransform": ("TransformParameters",),
    "TranslationTransform": ("TransformParameters",),
    "BSplineTransform": ("TransformParameters", "GridSize", "GridIndex", "GridOrigin", "GridSpacing", "GridDirection"),
    "DeformationFieldTransform": ("DeformationFieldFileName", "DeformationFieldInterpolationOrder"),
}
#: An entry of each class that elastix writes after all of `_ALWAYS`, and that the class is nothing without.
_LATE = {
    "EulerTransform": "CenterOfRotationPoint",
    "SimilarityTransform": "CenterOfRotationPoint",
    "AffineTransform": "CenterOfRotationPoint",
    "BSplineTransform": "GridSize",
    "DeformationFieldTransform": "DeformationFieldFileName",
}


def is_elastix_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a text file is one of elastix' transform parameter files (ITK's own .txt transforms are not).

    Parameters
    ----------
    path : str or os.PathLike
        An existing file.

    Returns
    -------
    bool
        Whether it has an entry ``Transform``.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return re.search(r"^\s*(\(\s*Transform\s|Transform\s*=)", file.read(1 << 22), re.MULTILINE) is not None


def parse(path: Path) -> ParameterMap:
    """Read a parameter file.

    Parameters
    ----------
    path : Path
        A ``TransformParameters.N.txt``.

    Returns
    -------
    dict
        Values as text by key. Those that the file names are not followed.

    Raises
    ------
    InputError
        A file that is no such text, or names no ``Transform``.
    """
    parameters = read_entries(path)
    if not parameters.get("Transform"):
        raise InputError(f"elastix: {path}: names no Transform; give a TransformParameters.N.txt")
    _refuse_cut(parameters, path)
    return parameters


def _refuse_cut(parameters: ParameterMap, path: Path) -> None:
    """Refuse a file whose end is missing: what stands there has a default, which makes another map of the rest."""
    kind = parameters["Transform"][0].removeprefix("Advanced").removeprefix("Recursive")
    always = () if _written_by_hand(parameters, kind) else _ALWAYS
    missing = [key for key in (*always, *_OF_KIND.get(kind, ())) if key not in parameters]
    if missing:
        raise InputError(
            f"elastix: {path}: lacks {', '.join(missing)}, as a truncated file does; get a fresh copy, or add them"
        )
    told, values = parameters.get("NumberOfParameters"), parameters.get("TransformParameters", [])
    binary = parameters.get("UseBinaryFormatForTransformationParameters") == ["true"]
    if told and values and not binary and told != [str(len(values))]:
        raise InputError(
            f"elastix: {path}: damaged, TransformParameters has {len(values)} values, {told[0]} are needed; get a "
            "fresh copy"
        )


def _written_by_hand(parameters: ParameterMap, kind: str) -> bool:
    """Tell a file that says what its transform is and nothing else, as elastix takes it, from the beginning of a file.

    elastix begins its files with ``Transform`` and writes what a class alone has after all of `_ALWAYS`. So where the
    latter are missing altogether, one that has such an entry is whole; a translation has none, but its file is not
    begun as elastix does.
    """
    if any(key in parameters for key in _ALWAYS):
        return False
    if kind == "TranslationTransform":
        return next(iter(parameters)) != "Transform"
    return _LATE.get(kind) in parameters


def dimension_of(parameters: ParameterMap, grid: Geometry | None) -> int:
    """Give the dimension of the space that a parameter map is about.

    Parameters
    ----------
    parameters : dict
        The map.
    grid : Geometry or None
        The fixed image's, which counts where the map does not say; maps that were written by hand may leave it out.

    Returns
    -------
    int
        2 or 3.

    Raises
    ------
    KeyError
        Neither says it.
    """
    told = int(parameters.get("FixedImageDimension", ["0"])[0])
    return told or (grid.dimension if "Size" not in parameters and grid is not None else len(parameters["Size"]))


def initial_file(parameters: ParameterMap) -> str | None:
    """Give the file that a parameter map names as applied before it.

    Parameters
    ----------
    parameters : dict
        The map.

    Returns
    -------
    str or None
        As the map says it; None where it is the first.
    """
    for key in INITIAL:
        name = (parameters.get(key) or [NONE])[0]
        if name not in ("", NONE):
            return name
    return None


def grid_of(parameters: ParameterMap) -> Geometry:
    """Give the grid that transformix resamples on: the fixed image's.

    Parameters
    ----------
    parameters : dict
        A parameter map.

    Returns
    -------
    Geometry
        Its size, spacing, origin and direction.
    """
    size = [int(n) for n in parameters["Size"]]
    d = len(size)
    direction = np.eye(d)
    if "Direction" in parameters and parameters.get("UseDirectionCosines", ["true"])[0] == "true":
        direction = numbers(parameters, "Direction", d * d).reshape(d, d).T
    spacing, origin = numbers(parameters, "Spacing", d), numbers(parameters, "Origin", d)
    index = numbers(parameters, "Index", d) if "Index" in parameters else np.zeros(d)
    return Geometry.make(size, spacing, origin + direction @ (spacing * index), direction)


def numbers(parameters: ParameterMap, key: str, count: int) -> NDArray[np.float64]:
    """Read an entry as numbers.

    Parameters
    ----------
    parameters : dict
        A parameter map.
    key : str
        The entry.
    count : int
        How many numbers it has to have.

    Returns
    -------
    numpy.ndarray
        ``(count,)``.

    Raises
    ------
    InputError
        Another number of values, or values that are no numbers.
    KeyError
        No such entry.
    """
    values = parameters[key]
    if len(values) != count:
        hint = (
            "; binary parameters (.dat) cannot be read"
            if "UseBinaryFormatForTransformationParameters" in parameters
            else ""
        )
        raise InputError(f"elastix: {key} has {len(values)} values, {count} are needed{hint}")
    try:
        return np.array([float(v) for v in values])
    except ValueError as error:
        raise InputError(f"elastix: {key} holds no numbers ({one_line(error)})") from error


def grid_entries(grid: Geometry) -> ParameterMap:
    """Write down a grid to resample on, and how transformix is to do it.

    Parameters
    ----------
    grid : Geometry
        The fixed image's grid.

    Returns
    -------
    dict
        Entries that every parameter map needs beside its transform.
    """
    d = str(grid.dimension)
    return {
        **{key: [NONE] for key in INITIAL},
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": [d],
        "MovingImageDimension": [d],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "Size": [str(n) for n in grid.size],
        "Index": ["0"] * grid.dimension,
        "Spacing": as_numbers(grid.spacing),
        "Origin": as_numbers(grid.origin),
        "Direction": as_numbers(grid.rotation.T.ravel()),
        "UseDirectionCosines": ["true"],
        # elastix 5.0 knows no FinalLinearInterpolator; order 1 is the same.
        "ResampleInterpolator": ["FinalBSplineInterpolator"],
        "FinalBSplineInterpolationOrder": ["1"],
        "Resampler": ["DefaultResampler"],
        "DefaultPixelValue": ["0"],
        "ResultImageFormat": ["nii.gz"],
        "ResultImagePixelType": ["float"],
        "CompressResultImage": ["false"],
    }


def in_order(own: ParameterMap, common: ParameterMap) -> ParameterMap:
    """Put a parameter map together in the order of elastix: what a class alone has comes last.

    A file that was cut then lacks this, so that it is not taken for one that was written by hand.

    Parameters
    ----------
    own : dict
        What the transform is.
    common : dict
        What every map has, as of `grid_entries`.

    Returns
    -------
    dict
        All entries.
    """
    early: ParameterMap = {
        key: own[key] for key in ("Transform", "NumberOfParameters", "TransformParameters") if key in own
    }
    return {**early, **common, **{key: values for key, values in own.items() if key not in early}}


def as_numbers(values: Any) -> list[str]:
    """Write numbers with all their digits.

    Parameters
    ----------
    values : array_like
        Of any shape.

    Returns
    -------
    list of str
        One for each.
    """
    return [repr(float(v)) for v in np.asarray(values).ravel()]

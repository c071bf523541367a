"""What becomes of every flag and value of antsApplyTransforms here, as data.

The program refuses by it, ``-v 1`` prints it, and ``docs/apply_programs.md`` shows it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from itk_nir.compat.options import OptionSupport, approximated, honoured, refused
from itk_nir.errors import OptionError, escaped
from itk_nir.interpolating import NAMES as OURS
from itk_nir.interpolating import Interpolation
from itk_nir.programs.ants_words import Value, number, numbers, whole

#: Short name of a flag -> its long name.
NAMES: dict[str, str] = {
    "d": "dimensionality",
    "e": "input-image-type",
    "i": "input",
    "r": "reference-image",
    "o": "output",
    "n": "interpolation",
    "u": "output-data-type",
    "t": "transform",
    "f": "default-value",
    "z": "static-cast-for-R",
    "v": "verbose",
}
#: Long name of a flag -> what becomes of it.
FLAGS: dict[str, OptionSupport] = {
    "dimensionality": honoured("2 or 3; 3 where it is left out; 4 is refused"),
    "input-image-type": honoured("number or name; see the table"),
    "time-index": honoured("the volume of a time series (-e 3) that is warped, from 0"),
    "input": honoured(
        "an image file; left out where --output is a transform; NaN and infinite voxels become --default-value"
    ),
    "reference-image": honoured("its grid; of a 4D file that of the first three axes"),
    "output": honoured(
        "`image`, `[image,0]`, `DisplacementField[field]`, `[field,1]`, `CompositeTransform[file.h5]`, "
        "`Linear[matrix,0 or 1]`; a file appears under its name when it is complete"
    ),
    "interpolation": honoured("see the table"),
    "output-data-type": honoured(
        "char, uchar, short, int, float, double, or default (double, float with --float 1); whole numbers are cut off "
        "behind the point, as by ANTs, but clipped where their type ends"
    ),
    "transform": honoured(
        "a file, `[file,0]`, `[file,1]`, `identity`, any number of them, the first listed the first that a point of "
        "the reference meets; the inverse of a field is computed, where ANTs fails; `[fixed,moving,0]` is refused"
    ),
    "default-value": honoured("value of voxels that map outside the input"),
    "static-cast-for-R": approximated("taken, without effect: it is for R's interface"),
    "float": approximated("the type of what is written; computed is the same with 0 and with 1"),
    "verbose": honoured("1 prints what is done, and this table for what was given"),
}
#: Number of an input image type -> its name, and what becomes of it.
INPUT_TYPES: dict[str, tuple[str, OptionSupport]] = {
    "0": ("scalar", honoured("one value a pixel, as many axes as --dimensionality says")),
    "1": ("vector", honoured("vectors in the frame of the voxels; warped component by component, then turned by the "
                             "rotation in the inverse Jacobian matrices of the transforms")),
    "2": ("tensor", refused("tensors are turned with the image, by their logarithm; ANTs' program does it")),
    "3": ("time-series", honoured("one axis more than --dimensionality says; memory holds one volume at a time")),
    "4": ("multichannel", honoured("every value of a pixel by itself")),
    "5": ("five-dimensional", refused("split it into 4D files")),
    "6": ("physical-vector", honoured("as vector, in LPS")),
}  # fmt: skip
#: Name of an output type -> NumPy's.
OUTPUT_TYPES = {
    "char": "int8",
    "uchar": "uint8",
    "short": "int16",
    "int": "int32",
    "float": "float32",
    "double": "float64",
}


class Entry(NamedTuple):
    """An interpolation of ANTs.

    Attributes
    ----------
    name : str
        As ANTs writes it.
    how : Interpolation
        What it is here, without parameters.
    parameters : tuple of str
        What may stand in its brackets.
    itk : str
        The name of ITK's class, which ``-v 1`` prints.
    support : OptionSupport
        What becomes of it.
    """

    name: str
    how: Interpolation
    parameters: tuple[str, ...]
    itk: str
    support: OptionSupport


_SINC = "a sinc function with that window, three voxels to either side, zero beyond the image"
#: Every interpolation by its name in lower case.
INTERPOLATIONS: dict[str, Entry] = {
    entry.name.lower(): entry
    for entry in (
        Entry("Linear", OURS["linear"], (), "LinearInterpolateImageFunction", honoured("the default")),
        Entry("NearestNeighbor", OURS["nearest"], (), "NearestNeighborInterpolateImageFunction",
              honoured("halves of a voxel go up")),
        Entry("MultiLabel", OURS["label"], ("sigma", "alpha"), "LabelImageGaussianInterpolateImageFunction",
              honoured("`[sigma]`, mm, one or one an axis as `1x1x2`; the image's spacing where left out; alpha is 4 "
                       "whatever is given, as in ANTs")),
        Entry("Gaussian", OURS["gaussian"], ("sigma", "alpha"), "GaussianInterpolateImageFunction",
              honoured("`[sigma,alpha]`, sigma as for MultiLabel, alpha 1 where left out")),
        Entry("BSpline", OURS["bspline"], ("order",), "BSplineInterpolateImageFunction",
              honoured("`[order]`, 0 to 5, 3 where left out")),
        Entry("CosineWindowedSinc", OURS["cosine"], (), "WindowedSincInterpolateImageFunction", honoured(_SINC)),
        Entry("WelchWindowedSinc", OURS["welch"], (), "WindowedSincInterpolateImageFunction", honoured(_SINC)),
        Entry("HammingWindowedSinc", OURS["hamming"], (), "WindowedSincInterpolateImageFunction", honoured(_SINC)),
        Entry("LanczosWindowedSinc", OURS["lanczos"], (), "WindowedSincInterpolateImageFunction", honoured(_SINC)),
        Entry("BlackmanWindowedSinc", Interpolation("sinc", window="blackman"), (),
              "WindowedSincInterpolateImageFunction", honoured(_SINC)),
        Entry("GenericLabel", OURS["label-linear"], ("interpolator",), "LabelImageGenericInterpolateImageFunction",
              honoured("linear votes whatever is given in brackets, as in ANTs")),
    )
}  # fmt: skip


def interpolation_of(value: Value) -> tuple[Entry, Interpolation]:
    """What a value of ``--interpolation`` stands for.

    Parameters
    ----------
    value : Value
        Such as ``MultiLabel[0.5]``; in upper or lower case.

    Returns
    -------
    Entry
        Of the table.
    Interpolation
        With its parameters.

    Raises
    ------
    OptionError
        Another name, or parameters that it does not have.
    """
    entry = INTERPOLATIONS.get(value.name.lower())
    if entry is None:
        known = ", ".join(e.name for e in INTERPOLATIONS.values())
        raise OptionError(f"--interpolation is one of {known}, got {escaped(value.text)}")
    if len(value.parts) > len(entry.parameters):
        wanted = ", ".join(entry.parameters) or "nothing"
        raise OptionError(f"--interpolation {entry.name} takes {wanted} in brackets, got {escaped(value.text)}")
    how = entry.how
    if value.parts and "order" in entry.parameters:
        how = replace(how, order=whole(value.parts[0], "the order of a B-spline", 0))
    if value.parts and "sigma" in entry.parameters:
        how = replace(how, sigma=numbers(value.parts[0], "sigma"))
    if len(value.parts) > 1 and entry.name == "Gaussian":
        how = replace(how, alpha=number(value.parts[1], "alpha"))
    return entry, how


def input_type_of(text: str) -> str:
    """The number of an input image type that this program takes.

    Parameters
    ----------
    text : str
        Number or name.

    Returns
    -------
    str
        A key of `INPUT_TYPES`.

    Raises
    ------
    OptionError
        No such type, or one that is refused.
    """
    found = next((key for key, (name, _) in INPUT_TYPES.items() if text in (key, name)), None)
    if found is None:
        known = ", ".join(f"{key} ({name})" for key, (name, _) in INPUT_TYPES.items())
        raise OptionError(f"--input-image-type is one of {known}, got {escaped(text)}")
    name, support = INPUT_TYPES[found]
    if support.status == "refused":
        raise support.refusal(f"--input-image-type {name}")
    return found

"""The inputs of the filter: images of any real scalar pixel type, or filters that make them, connected as float images.

The C++ filter takes float images only. So a cast filter is put before it, or a copy where ITK's wheels have no such
cast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from itk_nir.errors import InputError

#: Inputs of the pipeline in the order of their number, and what messages call them.
INPUTS = {
    "FixedImage": "fixed image",
    "MovingImage": "moving image",
    "FixedMask": "fixed mask",
    "MovingMask": "moving mask",
}
INPUT_NAMES = tuple(INPUTS)


@dataclass(frozen=True)
class Connection:
    """What stands behind one input of the C++ filter.

    Attributes
    ----------
    given : itk.Image or ITK filter
        As the user set it.
    source : itk.Image or ITK filter
        The same in float pixels, which the C++ filter is connected to.
    dimension : int
        2 or 3.
    original : itk.Image, optional
        The image that `source` is a copy of, where it is a copy: it is to be copied again when the image changes.
    """

    given: Any
    source: Any
    dimension: int
    original: Any = None


def output_of(thing: Any) -> Any:
    """The image that an ITK filter makes; an image is its own.

    Parameters
    ----------
    thing : itk.Image or ITK filter
        Anything else comes back as it is.

    Returns
    -------
    itk.Image
    """
    import itk

    return itk.output(thing)


def same_input(a: Any, b: Any) -> bool:
    """Whether two inputs are one: the same image, or an image and the filter that makes it.

    Parameters
    ----------
    a, b : itk.Image, ITK filter or None

    Returns
    -------
    bool
    """
    if a is None or b is None:
        return a is b
    one, other = (getattr(output_of(x), "this", None) for x in (a, b))
    return bool(one is not None and one == other)


def as_float(thing: Any, role: str) -> Connection:
    """What to connect for an image or a filter of any real scalar pixel type.

    Parameters
    ----------
    thing : itk.Image or ITK filter
    role : str
        What messages call it: ``"fixed image"``.

    Returns
    -------
    Connection

    Raises
    ------
    InputError
        It is no image or filter, or not a real scalar image of 2 or 3 dimensions.
    """
    import itk

    image = output_of(thing)
    if not hasattr(image, "GetLargestPossibleRegion"):
        raise InputError(
            f"{role}: got {type(thing).__name__}; an ITK pipeline takes an itk.Image or an ITK filter "
            "(itk.imread(path) reads a file)"
        )
    dimension, components = int(image.GetImageDimension()), int(image.GetNumberOfComponentsPerPixel())
    if dimension not in (2, 3):
        raise InputError(
            f"{role}: is {dimension}D, but a registration takes 2D and 3D images; extract one volume first"
        )
    if components != 1 or "complex" in str(itk.template(image)[1][0]):
        raise InputError(f"{role}: has pixels of type {itk.template(image)[1][0]}; make it a real scalar image first")
    wanted = itk.Image[itk.F, dimension]
    if isinstance(image, wanted):
        return Connection(thing, thing, dimension)
    if (type(image), wanted) in itk.CastImageFilter.keys():  # noqa: SIM118 - itkTemplate's own `in` recurses for ever
        cast = itk.CastImageFilter[type(image), wanted].New()
        cast.SetInput(image)
        cast.ReleaseDataFlagOn()
        return Connection(thing, cast, dimension)
    return Connection(thing, float_copy(image, role), dimension, original=image)


def float_copy(image: Any, role: str) -> Any:
    """A copy with float pixels, for the pixel types that ITK's wheels have no cast from.

    Parameters
    ----------
    image : itk.Image
    role : str
        What messages call it: ``"fixed image"``.

    Returns
    -------
    itk.Image[itk.F, d]

    Raises
    ------
    InputError
        Its pixels cannot be registered.
    """
    from itk_nir.images import load_image, to_itk

    volume = load_image(image, role)
    return to_itk(volume.array, volume.geometry)


def without_pipeline(image: Any) -> Any:
    """The same pixels without the pipeline behind them, whose update is under way already.

    Parameters
    ----------
    image : itk.Image or None

    Returns
    -------
    itk.Image or None
    """
    if image is None:
        return None
    copy = type(image).New()
    copy.Graft(image)
    return copy


def dimension_of_type(image_type: Any) -> int:
    """Dimension of an image type such as ``itk.Image[itk.F, 3]``.

    Parameters
    ----------
    image_type : type

    Returns
    -------
    int
        2 or 3.

    Raises
    ------
    InputError
        It is not the type of a 2D or 3D image.
    """
    import itk

    try:
        template, (_, dimension, *_) = itk.template(image_type)
    except (KeyError, TypeError, ValueError):
        template = dimension = None
    if template is not itk.Image or dimension not in (2, 3):
        name = getattr(image_type, "__name__", str(image_type))
        raise InputError(f"NIRRegistrationMethod[…]: {name} is no 2D or 3D itk.Image type, such as itk.Image[itk.F, 3]")
    return int(dimension)

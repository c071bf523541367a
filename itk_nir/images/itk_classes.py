"""What is used of ITK's Python wrapping, loaded no sooner and no more than needed.

The first use of a class loads the whole ITK module that it belongs to and all that this depends on. For
``itk.DisplacementFieldTransform`` that is some four hundred extension modules and three quarters of the CPU time that
the first ``.transform`` of a result would take; the class itself is in an extension module of its own, which loads in a
tenth of a second once the modules of images and transforms are there. It is the same class, and ITK finds it loaded
when something asks for it by its usual name later (until then ``itk.template`` does not know it). Where another version
of ITK lays its modules out otherwise, the usual name is the way.

ITK's own loading is not made for several threads at once: what may load something is called under one lock.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Held while ITK may load something; a load may ask for another.
LOADING = threading.RLock()


def vector_image(vectors: NDArray[Any], component: str) -> Any:
    """Make an ``itk.Image`` of ``itk.Vector[component, d]`` with memory of its own, on the unit grid.

    Parameters
    ----------
    vectors : ndarray
        ``([D,] H, W, d)``.
    component : {"F", "D"}
        float32 or float64.

    Returns
    -------
    itk.Image
    """
    d = vectors.shape[-1]
    with LOADING:
        import itk

        image = itk.Image[itk.Vector[getattr(itk, component), d], d].New()
        image.SetRegions([int(n) for n in vectors.shape[-2::-1]])
        image.Allocate()
        view = itk.array_view_from_image(image)
    # Through a view: the only way without a dangling copy.
    view[...] = vectors
    return image


def scalar_image(array: NDArray[Any]) -> Any:
    """Make an ``itk.Image`` of scalars with memory of its own, on the unit grid.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``, of a type that ITK's wheels have images of.

    Returns
    -------
    itk.Image
    """
    with LOADING:
        import itk

        return itk.image_from_array(np.ascontiguousarray(array))


def several_valued_image(array: NDArray[Any]) -> Any:
    """Make an ``itk.Image`` of colours, or an ``itk.VectorImage``, with memory of its own, on the unit grid.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W, components)``, of a type that ITK's wheels have such images of.

    Returns
    -------
    itk.Image or itk.VectorImage
        ``itk.RGBPixel`` or ``itk.RGBAPixel`` for three or four components of uint8.
    """
    with LOADING:
        import itk

        return itk.image_from_array(np.ascontiguousarray(array), is_vector=True)


def empty_image(size: tuple[int, ...]) -> Any:
    """Make an ``itk.Image`` of floats that has a size and no pixels.

    Parameters
    ----------
    size : tuple of int
        ``(x, y[, z])``.

    Returns
    -------
    itk.Image
    """
    with LOADING:
        import itk

        image = itk.Image[itk.F, len(size)].New()
    image.SetRegions([int(n) for n in size])
    return image


def image_view(image: Any) -> NDArray[Any]:
    """The pixels of an ``itk.Image`` as a view.

    Parameters
    ----------
    image : itk.Image
        In memory.

    Returns
    -------
    ndarray
        ``([D,] H, W[, components])``.

    Raises
    ------
    TypeError, KeyError, RuntimeError
        ITK's, for images that its wrapping does not know.
    """
    with LOADING:
        import itk

        view: NDArray[Any] = itk.array_view_from_image(image)
    return view


def itk_matrix(matrix: ArrayLike) -> Any:
    """Make an ``itk.Matrix[itk.D, d, d]``.

    Parameters
    ----------
    matrix : array_like
        ``(d, d)``.

    Returns
    -------
    itk.Matrix
    """
    with LOADING:
        import itk

        return itk.matrix_from_array(np.ascontiguousarray(matrix, np.float64))


def matrix_array(matrix: Any) -> NDArray[np.float64]:
    """The values of an ITK matrix.

    Parameters
    ----------
    matrix : itk.Matrix
        ``d x d``.

    Returns
    -------
    ndarray
        ``(d, d)``.
    """
    with LOADING:
        import itk

        return np.array(itk.array_from_matrix(matrix))


def down_cast(transform: Any) -> Any:
    """An ITK transform as the class that it is.

    Parameters
    ----------
    transform : itk.Transform
        Of any class.

    Returns
    -------
    itk.Transform
    """
    with LOADING:
        import itk

        return itk.down_cast(transform)


def new_transform(name: str, d: int) -> Any:
    """Make an ITK transform of double precision.

    Parameters
    ----------
    name : {"AffineTransform", "CompositeTransform", "DisplacementFieldTransform"}
        The class.
    d : int
        2 or 3.

    Returns
    -------
    itk.Transform
        ``itk.<name>[itk.D, d]``.
    """
    with LOADING:
        import itk

        if name != "DisplacementFieldTransform":
            return getattr(itk, name)[itk.D, d].New()
        # What the class needs must be loaded the usual way.
        _ = itk.Image, itk.PyBuffer, itk.AffineTransform, itk.CompositeTransform
        try:
            return getattr(import_module("itk.itkDisplacementFieldTransformPython"), f"itk{name}D{d}").New()
        except (ImportError, AttributeError):
            return itk.DisplacementFieldTransform[itk.D, d].New()

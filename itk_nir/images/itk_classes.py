"""Single classes of ITK's Python wrapping, loaded one by one.

The first use of a class under its usual name, such as ``itk.DisplacementFieldTransform``, loads the whole ITK module
that it belongs to and all that this depends on: some four hundred extension modules, ten seconds of CPU time. Each
class also is in an extension module of its own, which loads in a twentieth of that; it is the same class, and ITK finds
it loaded when something asks for it by its usual name later. Where another version of ITK lays its modules out
otherwise, the usual name is the way.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def itk_class(module: str, name: str, usual: Callable[[Any], Any]) -> Any:
    """A wrapped class of ITK.

    Parameters
    ----------
    module, name : str
        Its extension module and its name there.
    usual : callable
        Takes the package ``itk`` and gives the class by its usual name.

    Returns
    -------
    type
    """
    import itk

    try:
        return getattr(import_module(f"itk.{module}"), name)
    except (ImportError, AttributeError):
        return usual(itk)


def vector_image(vectors: NDArray[Any], component: str) -> Any:
    """An ``itk.Image`` of ``itk.Vector[component, d]`` with memory of its own, on the unit grid.

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
    code = f"V{component}{d}{d}"
    image = itk_class("itkImagePython", f"itkImage{code}", lambda itk: itk.Image[_vector(itk, component, d), d]).New()
    image.SetRegions([int(n) for n in vectors.shape[-2::-1]])
    image.Allocate()
    buffer = itk_class(
        "itkPyBufferPython", f"itkPyBufferI{code}", lambda itk: itk.PyBuffer[itk.Image[_vector(itk, component, d), d]]
    )
    # Through a view: the only way without a dangling copy.
    buffer.GetArrayViewFromImage(image)[...] = vectors
    return image


def itk_matrix(matrix: ArrayLike) -> Any:
    """An ``itk.Matrix[itk.D, d, d]``.

    Parameters
    ----------
    matrix : array_like
        ``(d, d)``.

    Returns
    -------
    itk.Matrix
    """
    values = np.asarray(matrix, float)
    d = len(values)
    made = itk_class("itkMatrixPython", f"itkMatrixD{d}{d}", lambda itk: itk.Matrix[itk.D, d, d])
    numbers = made().GetVnlMatrix()
    for row in range(d):
        for column in range(d):
            numbers.set(row, column, float(values[row, column]))
    return made(numbers)


def new_transform(name: str, d: int) -> Any:
    """A new ``itk.<name>[itk.D, d]``, for example ``"AffineTransform"``.

    Parameters
    ----------
    name : str
        The name of the class.
    d : int
        2 or 3.

    Returns
    -------
    itk.Transform
    """
    return itk_class(f"itk{name}Python", f"itk{name}D{d}", lambda itk: getattr(itk, name)[itk.D, d]).New()


def _vector(itk: Any, component: str, d: int) -> Any:
    return itk.Vector[getattr(itk, component), d]

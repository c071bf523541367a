"""Arrays and their grids as images of other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.images.itk_classes import itk_matrix, scalar_image, several_valued_image, vector_image


def to_itk(array: NDArray[Any], geometry: Geometry) -> Any:
    """Make an ``itk.Image`` that has memory of its own.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors.
    geometry : Geometry
        The grid.

    Returns
    -------
    itk.Image
        Of the array's type; types that ITK's Python wheels lack become the next wider one (bool uint8, 64-bit integers
        int32 or double). Vectors of float32 become ``itk.Vector[itk.F, n]``, those of other types colours or an
        ``itk.VectorImage``.

    Examples
    --------
    >>> image = to_itk(np.zeros((3, 4), np.uint8), Geometry.make([4, 3], spacing=[0.5, 2.0]))
    >>> tuple(image.GetSpacing())
    (0.5, 2.0)
    """
    if array.ndim == geometry.dimension + 1 and array.dtype == np.float32 and array.shape[-1] <= 4:
        return to_itk_vectors(array, geometry, "F")
    if array.ndim == geometry.dimension + 1:
        wider = {"i4": np.float64, "u4": np.float64}.get(array.dtype.kind + str(array.dtype.itemsize))
        image = several_valued_image(_wrapped_type(array if wider is None else array.astype(wider)))
    else:
        image = scalar_image(_wrapped_type(array))
    _place(image, geometry)
    return image


def to_itk_vectors(vectors: NDArray[Any], geometry: Geometry, component: str) -> Any:
    """Make an ``itk.Image`` of vectors that has memory of its own.

    Parameters
    ----------
    vectors : numpy.ndarray
        ``geometry.shape + (d,)``.
    geometry : Geometry
        The grid.
    component : {"F", "D"}
        Type of one component: float32 or float64.

    Returns
    -------
    itk.Image
        Its pixels are ``itk.Vector[component, d]``.
    """
    image = vector_image(vectors, component)
    _place(image, geometry)
    return image


def storable(array: NDArray[Any]) -> NDArray[Any]:
    """Values in a type that SimpleITK and files of images have.

    Parameters
    ----------
    array : numpy.ndarray
        Real numbers of any shape.

    Returns
    -------
    numpy.ndarray
        bool as uint8, float16 as float32, what is wider than 64 bits as float64; in this machine's byte order.
    """
    wider = {"b1": np.uint8, "f2": np.float32, "f12": np.float64, "f16": np.float64}
    kind = array.dtype.kind + str(array.dtype.itemsize)
    return array.astype(wider.get(kind, array.dtype.newbyteorder("=")), copy=False)


def to_sitk(array: NDArray[Any], geometry: Geometry) -> Any:
    """Make a ``SimpleITK.Image`` that has memory of its own.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors.
    geometry : Geometry
        The grid.

    Returns
    -------
    SimpleITK.Image
        Of the array's type (bool becomes uint8, float16 float32).

    Examples
    --------
    >>> image = to_sitk(np.zeros((3, 4), np.uint8), Geometry.make([4, 3], spacing=[0.5, 2.0]))
    >>> image.GetSize(), image.GetSpacing()
    ((4, 3), (0.5, 2.0))
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(storable(array), isVector=array.ndim == geometry.dimension + 1)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.rotation.ravel().tolist())
    return image


def to_ants(array: NDArray[Any], geometry: Geometry) -> Any:
    """Make an ``ANTsImage`` that has memory of its own.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors.
    geometry : Geometry
        The grid.

    Returns
    -------
    ants.ANTsImage
        Of the array's type; types that ANTs lacks become float32.
    """
    import ants

    d = geometry.dimension
    return ants.from_numpy(
        ants_values(array, d),
        origin=list(geometry.origin),
        spacing=list(geometry.spacing),
        direction=geometry.rotation.copy(),
        has_components=array.ndim > d,
    )


def ants_values(array: NDArray[Any], dimension: int) -> NDArray[Any]:
    """Values as ``ants.from_numpy`` wants them.

    Parameters
    ----------
    array : ndarray
        ``([[T,] D,] H, W)``, or with several values a pixel in a last axis.
    dimension : int
        Of the image.

    Returns
    -------
    ndarray
        Its axes the other way round; types that ANTs lacks become float32.
    """
    known = array.dtype in (np.uint8, np.uint32, np.float32, np.float64)
    values = array if known else array.astype(np.uint8 if array.dtype == np.bool_ else np.float32)
    return np.ascontiguousarray(values.transpose(*range(dimension - 1, -1, -1), *range(dimension, values.ndim)))


def to_nibabel(array: NDArray[Any], geometry: Geometry, space_code: int = 1) -> Any:
    """Make a ``nibabel.Nifti1Image``.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors.
    geometry : Geometry
        The grid.
    space_code : int, default 1
        NIfTI's number of the space, as sform and qform code.

    Returns
    -------
    nibabel.Nifti1Image
        Its affine is RAS; vectors are on the fifth axis, with intent 1007.
    """
    import nibabel

    d = geometry.dimension
    lps = np.eye(4)
    lps[:d, :d], lps[:d, 3] = geometry.matrix[:-1, :-1], geometry.matrix[:-1, -1]
    values = np.ascontiguousarray(array.transpose(*range(d - 1, -1, -1), *range(d, array.ndim)))
    if values.dtype in (np.bool_, np.float16):
        values = values.astype(np.uint8 if values.dtype == np.bool_ else np.float32)
    vectors = array.ndim > d
    if vectors:
        values = values.reshape(*values.shape[:d], *(1,) * (4 - d), values.shape[-1])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    image.set_sform(affine, space_code)
    image.set_qform(affine, space_code)
    if vectors:
        image.header.set_intent("vector")
    return image


def like(array: NDArray[Any], geometry: Geometry, kind: str, space_code: int = 1) -> Any:
    """Make an image of the kind that another came in as.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors.
    geometry : Geometry
        The grid.
    kind : {"itk", "sitk", "path", "ants", "nibabel", "array", "torch"}
        The other image's `Volume.kind`.
    space_code : int, default 1
        The `Volume.space_code` of the image whose grid it is, for ``"nibabel"``.

    Returns
    -------
    itk.Image, SimpleITK.Image, ants.ANTsImage, nibabel.Nifti1Image, numpy.ndarray or torch.Tensor
        What came from a path goes out as an ``itk.Image``; an array or tensor is on `geometry`.
    """
    if kind == "sitk":
        return to_sitk(array, geometry)
    if kind == "ants":
        return to_ants(array, geometry)
    if kind == "nibabel":
        return to_nibabel(array, geometry, space_code)
    if kind == "array":
        return array.copy()
    if kind == "torch":
        import torch

        return torch.from_numpy(array.copy())
    return to_itk(array, geometry)


def _wrapped_type(array: NDArray[Any]) -> NDArray[Any]:
    """The array in a type that ITK's wheels have images of."""
    wider = {"b1": np.uint8, "i1": np.int16, "f2": np.float32}
    key = array.dtype.kind + str(array.dtype.itemsize)
    if key in wider:
        return array.astype(wider[key])
    if key in ("i8", "u8"):
        small = np.int32 if array.size == 0 or abs(array).max() < 2**31 else np.float64
        return array.astype(small)
    return array


def _place(image: Any, geometry: Geometry) -> None:
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(itk_matrix(geometry.rotation))

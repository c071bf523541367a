"""Images in memory -> `Volume`: those of ITK, SimpleITK, ANTs and nibabel, and arrays with a `Geometry`.

None of these libraries is imported for the sake of another: an object of one can only exist where it was imported.
"""

from __future__ import annotations

import re
import sys
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding, warning
from itk_nir.geometry import Geometry
from itk_nir.images.grids import RAS_TO_LPS, place, place_like_itk, straightened
from itk_nir.images.itk_classes import image_view, matrix_array
from itk_nir.images.volume import (
    ReadOptions,
    Volume,
    check_layout,
    check_memory,
    check_no_tensors,
    check_pixels,
    not_real,
    tensors,
)


def is_itk(image: Any) -> bool:
    """Tell whether an object is an ``itk.Image``, or a part of ITK that has one.

    Parameters
    ----------
    image : object
        Anything.

    Returns
    -------
    bool
    """
    return "itk" in sys.modules and hasattr(image, "GetLargestPossibleRegion") and hasattr(image, "GetBufferedRegion")


def read_itk(image: Any, role: str, options: ReadOptions) -> Volume:
    """Read an ``itk.Image``, after its pipeline was brought up to date.

    Parameters
    ----------
    image : itk.Image
        The image.
    role : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        An image that cannot be used.
    """
    try:
        image.Update()
    except RuntimeError as error:
        raise InputError(f"{role}: its ITK pipeline failed ({one_line(error)})") from error
    if not hasattr(image, "GetNumberOfComponentsPerPixel"):
        raise InputError(f"{role}: is an object of ITK of type {type(image).__name__}, no image; convert it to one")
    if "complex" in type(image).__name__ or re.match("itkImageC[FD]", type(image).__name__):
        raise not_real(role, "complex")
    if re.match("itkImage(SSRT|DT)", type(image).__name__):
        raise tensors(role)
    check_layout(role, int(image.GetImageDimension()), int(image.GetNumberOfComponentsPerPixel()), options.several)
    region = image.GetBufferedRegion()
    if not region.GetNumberOfPixels():
        raise InputError(f"{role}: this itk.Image has no pixels; set its regions and call Allocate(), or fill it")
    try:
        view = image_view(image)
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{role}: ITK gives no array of this image ({one_line(error)}); cast it to float") from error
    if view is None or getattr(view, "dtype", None) is None:
        raise InputError(f"{role}: this itk.Image has a size and no memory; call Allocate() and fill it")
    check_pixels(role, view.dtype)
    # The origin belongs to index 0, which after a crop is not the first voxel.
    origin = image.TransformIndexToPhysicalPoint(region.GetIndex())
    direction = matrix_array(image.GetDirection())
    size, spacing = tuple(region.GetSize()), tuple(image.GetSpacing())
    placed = place_like_itk(size, spacing, tuple(origin), direction, role, options.resample_shear)
    array = straightened(np.array(view, order="C"), placed, options.labels)
    return Volume(array, placed.geometry, role, "itk", view.dtype, placed.findings)


def is_sitk(image: Any) -> bool:
    """Tell whether an object is a ``SimpleITK.Image``.

    Parameters
    ----------
    image : object
        Anything.

    Returns
    -------
    bool
    """
    module = sys.modules.get("SimpleITK")
    return module is not None and isinstance(image, module.Image)


def read_sitk(image: Any, role: str, options: ReadOptions) -> Volume:
    """Read a ``SimpleITK.Image``.

    Parameters
    ----------
    image : SimpleITK.Image
        The image.
    role : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        An image that cannot be used.
    """
    import SimpleITK as sitk

    check_sitk(image, role)
    volumes = image.GetSize()[3] if image.GetDimension() == 4 else 0
    check_layout(role, image.GetDimension(), image.GetNumberOfComponentsPerPixel(), options.several, volumes)
    array = sitk.GetArrayFromImage(image)
    check_pixels(role, array.dtype)
    placed = place_like_itk(
        image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), role, options.resample_shear
    )
    straight = straightened(array, placed, options.labels)
    return Volume(straight, placed.geometry, role, "sitk", array.dtype, placed.findings)


def check_sitk(image: Any, role: str) -> None:
    """Refuse a ``SimpleITK.Image`` that has no array of real numbers, of any dimension.

    Parameters
    ----------
    image : SimpleITK.Image
        The image.
    role : str
        What opens the message.

    Raises
    ------
    InputError
        A label map object, complex pixels, or none.
    """
    import SimpleITK as sitk

    pixel = image.GetPixelIDTypeAsString()
    if "label" in pixel:
        # SimpleITK ends the process when it is asked for the array of such an image.
        raise InputError(f"{role}: is a SimpleITK label map object ({pixel}); give sitk.LabelMapToLabel(image)")
    if "complex" in pixel:
        raise not_real(role, pixel)
    if image.GetPixelID() == sitk.sitkUnknown or not image.GetNumberOfPixels():
        raise InputError(f"{role}: this SimpleITK.Image has no pixels; give an image with some")


def is_ants(image: Any) -> bool:
    """Tell whether an object is an ``ANTsImage``.

    Parameters
    ----------
    image : object
        Anything.

    Returns
    -------
    bool
    """
    module = sys.modules.get("ants")
    return module is not None and bool(module.is_image(image))


def read_ants(image: Any, role: str, options: ReadOptions) -> Volume:
    """Read an ``ANTsImage``.

    Parameters
    ----------
    image : ants.ANTsImage
        The image.
    role : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        An image that cannot be used.
    """
    d = int(image.dimension)
    volumes = image.shape[3] if d == 4 else 0
    check_layout(role, d, int(image.components), options.several, volumes)
    placed = place_like_itk(image.shape, image.spacing, image.origin, image.direction, role, options.resample_shear)
    values = image.numpy()
    check_pixels(role, values.dtype)
    # ANTs' arrays have ITK's index order (x, y[, z][, component]).
    array = np.array(values.transpose(*range(d - 1, -1, -1), *range(d, values.ndim)), order="C")
    array = straightened(array, placed, options.labels)
    return Volume(array, placed.geometry, role, "ants", values.dtype, placed.findings)


def is_nibabel(image: Any) -> bool:
    """Tell whether an object is an image of nibabel's.

    Parameters
    ----------
    image : object
        Anything.

    Returns
    -------
    bool
    """
    module = sys.modules.get("nibabel.spatialimages")
    return module is not None and isinstance(image, module.SpatialImage)


def read_nibabel(image: Any, role: str, options: ReadOptions) -> Volume:
    """Read an image of nibabel's: its scaled values at the places of its ``affine``.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        Of any class and file format.
    role : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        An image that cannot be used.
    """
    shape, components = nibabel_layout(image)
    check_no_tensors(image, role)
    check_layout(role, len(shape), components, options.several, shape[3] if len(shape) == 4 else 0)
    array = nibabel_values(image, role)
    affine, findings, code = nibabel_affine(image, role)
    placed = place(shape, RAS_TO_LPS @ affine, role, options.resample_shear).told(code > 0)
    found = (*findings, *placed.findings)
    straight = straightened(array, placed, options.labels)
    return Volume(straight, placed.geometry, role, "nibabel", array.dtype, found, code or 1)


def nibabel_layout(image: Any) -> tuple[tuple[int, ...], int]:
    """Tell the axes of an image of nibabel's from its values a voxel.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        The image.

    Returns
    -------
    shape : tuple of int
        Lengths of the axes of space and time, ``(x, y[, z[, t]])``; those of length 1 behind the third do not count.
    components : int
        Values a voxel: of vectors on the fifth axis, or colours.
    """
    shape = [int(n) for n in image.shape]
    components = 1
    intent = int(image.header["intent_code"]) if _has(image.header, "intent_code") else 0
    if len(shape) == 5 and intent in (1005, 1006, 1007, 2003, 2004):
        components = shape.pop()
        shape = shape[:2] if shape[2:] == [1, 1] else shape
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    names = image.get_data_dtype().names
    return tuple(shape), components * (len(names) if names else 1)


def nibabel_values(image: Any, role: str) -> NDArray[Any]:
    """Read the scaled values of an image of nibabel's.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        The image.
    role : str
        What opens every message.

    Returns
    -------
    numpy.ndarray
        ``([[T,] D,] H, W[, components])``, with memory of its own.

    Raises
    ------
    InputError
        Values that are no real numbers, more of them than there is memory for, or that cannot be read.
    """
    shape, components = nibabel_layout(image)
    stored = image.get_data_dtype()
    if not stored.names:
        check_pixels(role, stored)
    check_memory(role, (*shape, components), stored.itemsize)
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{role}: nibabel cannot read its values ({one_line(error)}); get a fresh copy") from error
    if values.dtype.names:
        values = np.stack([values[name] for name in values.dtype.names], -1)
    values = values.reshape(*shape, components) if components > 1 else values.reshape(shape)
    d = len(shape)
    return np.array(values.transpose(*range(d - 1, -1, -1), *range(d, values.ndim)), order="C")


def nibabel_affine(image: Any, role: str) -> tuple[NDArray[np.float64], tuple[Finding, ...], int]:
    """Read where an image of nibabel's lies.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        The image.
    role : str
        What opens every message.

    Returns
    -------
    affine : numpy.ndarray
        ``(4, 4)``, voxel index -> RAS.
    findings : tuple of Finding
        What is odd about it.
    code : int
        NIfTI's number of its space, 0 where the header has none.
    """
    header, affine = image.header, image.affine
    code = 1
    if _has(header, "sform_code") and _has(header, "qform_code"):
        code = int(header["sform_code"]) or int(header["qform_code"])
    elif _has(header, "sizeof_hdr"):  # Analyze, which has no orientation; SPM may have one beside it
        code = 1 if getattr(image, "_mat_file", None) is not None else 0
    if affine is None:
        affine, code = header.get_best_affine() if hasattr(header, "get_best_affine") else np.eye(4), 0
    if code > 0:
        return np.asarray(affine, float), (), code
    return (
        np.asarray(affine, float),
        (
            warning(
                f"{role}: its header does not say how the object lies",
                "nibabel's affine is used; give it an orientation if that is wrong",
                orientation="unknown",
            ),
        ),
        0,
    )


def _has(header: Any, name: str) -> bool:
    try:
        return name in header
    except TypeError:  # a header without named fields
        return False


def is_array(image: Any) -> bool:
    """Tell whether an object is an array, or a pair of one and its `Geometry`.

    Parameters
    ----------
    image : object
        Anything.

    Returns
    -------
    bool
    """
    return is_pair(image) or isinstance(image, np.ndarray) or _is_tensor(image)


def is_pair(image: Any) -> bool:
    """Tell whether an object is a pair of an array and its `Geometry`.

    Parameters
    ----------
    image : object
        Anything.

    Returns
    -------
    bool
    """
    return isinstance(image, (tuple, list)) and len(image) == 2 and isinstance(image[1], Geometry)


def _is_tensor(image: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def read_array(image: Any, role: str, options: ReadOptions) -> Volume:
    """Read a pair of an array, or a tensor, and the `Geometry` of its grid.

    Parameters
    ----------
    image : tuple
        ``(array, geometry)``; the array has ``geometry.shape``, and perhaps a last axis of several values a pixel.
    role : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        An array alone, one that does not fit its geometry, or one that cannot be used.
    """
    if not is_pair(image):
        raise InputError(
            f"{role}: cannot use an object of type {type(image).__name__} alone, it does not say where it lies; give "
            "the pair (array, itk_nir.Geometry.make(size, spacing, origin, direction)); an array's axes are ([z,] y, x)"
        )
    given, geometry = image
    kind = "torch" if _is_tensor(given) else "array"
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise InputError(
            f"{role}: is a masked array with masked pixels; fill them (array.filled(...)) and give the mask as a mask"
        )
    array = _numpy(given, role)
    d = geometry.dimension
    several = array.ndim == d + 1 and array.shape[:d] == geometry.shape
    if not several and array.shape != geometry.shape:
        raise InputError(
            f"{role}: the array has shape {array.shape}, its geometry {geometry.shape} (size {geometry.size} reversed: "
            "an array's axes are ([z,] y, x), and a last one may hold several values a pixel); give one that fits"
        )
    check_layout(role, d, array.shape[-1] if several else 1, options.several)
    check_pixels(role, array.dtype)
    dtype = array.dtype.newbyteorder("=")
    if several and array.shape[-1] == 1:
        array = array[..., 0]
    return Volume(np.array(array, dtype, order="C"), geometry, role, kind, dtype)


def _numpy(given: Any, role: str) -> NDArray[Any]:
    if _is_tensor(given):
        import torch

        given = given.detach()
        if given.layout != torch.strided or given.is_quantized:
            raise InputError(f"{role}: is a sparse or quantized tensor; make it dense (tensor.to_dense()) first")
        if given.is_meta:
            raise InputError(f"{role}: is a tensor on the meta device, which holds no values; give one that does")
        try:
            # NumPy has none of torch's other floating-point types, which are all shorter than float32.
            if given.is_floating_point() and given.dtype not in (torch.float16, torch.float32, torch.float64):
                given = given.float()
            return np.asarray(given.resolve_conj().resolve_neg().cpu().numpy())
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"{role}: is a tensor of {given.dtype} that gives no array ({one_line(error)}); convert it to float32"
            ) from error
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{role}: is no array ({one_line(error)}); give numpy.asarray of it") from error

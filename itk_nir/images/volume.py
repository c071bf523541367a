"""`Volume`, and what every reader of images asks before it makes one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.caching import cached_property
from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding, warning
from itk_nir.geometry import Geometry
from itk_nir.images.nifti_header import SYMMETRIC
from itk_nir.images.planes import Plane


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image in memory.

    Attributes
    ----------
    array : numpy.ndarray
        ``([D,] H, W)``, C-contiguous; float32, or the file's own type if `load_image` was asked for it.
    geometry : Geometry
        Its grid.
    name : str
        What to call it in a message, for example ``"fixed image /data/f.nii.gz"``.
    kind : {"itk", "sitk", "path", "ants", "nibabel", "array", "torch"}
        Where it came from, and so what results are given as.
    pixel_type : numpy.dtype
        Type of the source's pixels.
    findings : tuple of Finding
        What the reader found odd.
    space_code : int
        NIfTI's number of the space that the source says it lies in: 1 scanner, 2 aligned, 3 Talairach, 4 MNI.
    scale, offset : float
        The source's values are ``scale * array + offset``: 1 and 0 but where float32 would not hold them.
    components : int
        How many values a pixel of the source has; this is one of them.
    missing : numpy.ndarray or None
        Like `array`, bool: voxels that were NaN or infinite in the source and have the background's value here.
    plane : Plane or None
        The single slice that a 2D image was in the source.
    """

    array: NDArray[Any]
    geometry: Geometry
    name: str
    kind: str
    pixel_type: np.dtype[Any]
    findings: tuple[Finding, ...] = ()
    space_code: int = 1
    scale: float = 1.0
    offset: float | int = 0
    components: int = 1
    missing: NDArray[np.bool_] | None = None
    plane: Plane | None = None

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return self.geometry.dimension

    @cached_property
    def extremes(self) -> tuple[Any, Any]:
        """The least and the largest value of `array`."""
        return self.array.min(), self.array.max()


@dataclass(frozen=True)
class ReadOptions:
    """How an image is to be read.

    Attributes
    ----------
    several : bool
        Several values a pixel are taken: the array has them last.
    resample_shear : bool
        An image on sheared axes is resampled onto perpendicular ones instead of being refused.
    labels : bool
        Nothing may be interpolated.
    """

    several: bool = False
    resample_shear: bool = False
    labels: bool = False


def check_layout(label: str, dimension: int, components: int, several: bool, volumes: int = 0) -> None:
    """Refuse what is not one image in 2 or 3 dimensions.

    Parameters
    ----------
    label : str
        What opens the message.
    dimension : int
        Number of axes.
    components : int
        Values a pixel.
    several : bool
        Whether there may be more than one of these.
    volumes : int, default 0
        How many volumes a 4D image has, where it is known.

    Raises
    ------
    InputError
        Another dimension, or several values a pixel where one is wanted.
    """
    if dimension not in (2, 3):
        hint = ""
        if dimension == 4:
            count = f" of {volumes} volumes" if volumes else ""
            hint = f"; it is a series{count}: extract one volume first (nibabel: image.slicer[..., 0])"
        raise InputError(f"{label}: is {dimension}D, but a registration takes 2D and 3D images{hint}")
    if components != 1 and not several:
        raise InputError(
            f"{label}: has {components} values a pixel (colour or vectors); convert it to one grey value first"
        )


def check_pixels(label: str, dtype: np.dtype[Any]) -> None:
    """Refuse pixels that are no real numbers of at most 64 bits.

    Parameters
    ----------
    label : str
        What opens the message.
    dtype : numpy.dtype
        Their type.

    Raises
    ------
    InputError
        Another type.
    """
    if dtype.kind == "c":
        raise not_real(label, str(dtype))
    if dtype.kind not in "biuf":
        raise InputError(f"{label}: has pixels of type {dtype}, which are no numbers; convert them to float32")
    if dtype.itemsize > 8:
        raise InputError(f"{label}: has pixels of type {dtype}, wider than 64 bits; convert them to float64")


def not_real(label: str, pixel: str) -> InputError:
    """The error for complex pixels.

    Parameters
    ----------
    label : str
        What opens the message.
    pixel : str
        Their type.

    Returns
    -------
    InputError
    """
    return InputError(f"{label}: has pixels of type {pixel}; take the magnitude or the real part first")


def tensors(label: str) -> InputError:
    """The error for an image of tensors.

    Parameters
    ----------
    label : str
        What opens the message.

    Returns
    -------
    InputError
    """
    return InputError(
        f"{label}: is an image of tensors (symmetric matrices), which are to be turned with the image, by their "
        "logarithm; ANTs' antsApplyTransforms -e 2 does it; to register, give a scalar image made of it (FA, say)"
    )


def check_no_tensors(image: Any, role: str) -> None:
    """Refuse an image of nibabel's whose header says that its values are symmetric matrices.

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        The image.
    role : str
        What opens the message.

    Raises
    ------
    InputError
        It says so.
    """
    try:
        intent = int(image.header["intent_code"])
    except (TypeError, KeyError, ValueError):  # a header without it
        return
    if intent == SYMMETRIC and image.ndim == 5:
        raise tensors(role)


def check_memory(label: str, size: Sequence[int], itemsize: int) -> None:
    """Refuse an image that this machine cannot hold, before anything is allocated.

    Parameters
    ----------
    label : str
        What opens the message.
    size : sequence of int
        Lengths of all axes, that of the components included.
    itemsize : int
        Bytes of one value.

    Raises
    ------
    InputError
        An image of a larger size than all memory.
    """
    wanted = int(np.prod([int(n) for n in size], dtype=object)) * itemsize
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return
    if wanted > there > 0:
        raise InputError(
            f"{label}: is {'x'.join(str(n) for n in size)} values of {itemsize} bytes, {wanted / 2**30:.4g} GiB, which "
            f"is more than the {there / 2**30:.4g} GiB of memory of this machine; its header may be damaged"
        )


def excess(extra: int, wanted: int, label: str) -> tuple[Finding, ...]:
    """Tell of voxels beyond the last: a header may say too small a size.

    Parameters
    ----------
    extra : int
        Bytes beyond the last voxel.
    wanted : int
        Bytes of all voxels.
    label : str
        What opens the message.

    Returns
    -------
    tuple of Finding
        Empty where these are few, as at the end of a block of a tape.
    """
    if extra <= max(1024, wanted // 1000):
        return ()
    return (
        warning(
            f"{label}: holds {extra} bytes beyond the {wanted} that its size needs",
            "check that its header has the right size",
            bytes=extra,
        ),
    )


def make_geometry(
    label: str, size: Sequence[int], spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike
) -> Geometry:
    """Make a `Geometry` of what a source says.

    Parameters
    ----------
    label : str
        What opens the message.
    size, spacing, origin, direction
        As of `Geometry.make`.

    Returns
    -------
    Geometry

    Raises
    ------
    InputError
        It cannot be one.
    """
    if min(size, default=0) < 1:
        raise InputError(f"{label}: has no pixels (size {'x'.join(str(n) for n in size)}); give an image with some")
    try:
        return Geometry.make(size, spacing, origin, direction)
    except ValueError as error:
        raise InputError(f"{label}: its grid cannot be used: {one_line(error)}") from error


def unreadable(label: str, error: BaseException) -> InputError:
    """The error for a file that a library fails to read.

    Parameters
    ----------
    label : str
        What opens the message.
    error : BaseException
        The library's.

    Returns
    -------
    InputError
    """
    text = str(error)
    if "orthonormal" in text or "determinant is 0" in text:
        return InputError(
            f"{label}: its axes are not perpendicular, which ITK does not read in this format; resample it to a "
            "perpendicular grid first"
        )
    if "Unknown PixelType" in text:
        return InputError(f"{label}: has pixels that ITK does not read (grey and opacity?); save it as grey or RGB")
    if "Unable to determine ImageIO reader" in text or "not find" in text:
        return InputError(f"{label}: no image format that can be read, or a damaged header; convert it to .nii.gz")
    return InputError(f"{label}: cannot be read, damaged or truncated ({one_line(error)}); get a fresh copy")

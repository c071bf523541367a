"""How elastix resamples: interpolators, values outside, pixel types, all as transformix has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from itk_nir.compat.elastix.options import INTERPOLATORS, PIXELS, REPLACED
from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, to_sitk
from itk_nir.images.writing import ENDINGS

#: Entries of a parameter map that say how an image is resampled; they go from the request into the result.
ENTRIES = (
    "ResampleInterpolator", "FinalBSplineInterpolationOrder", "DefaultPixelValue", "ResultImageFormat",
    "ResultImagePixelType", "CompressResultImage", "Resampler",
)  # fmt: skip


@dataclass(frozen=True)
class Resampling:
    """How an image is resampled, and how it is written.

    Parameters
    ----------
    order : int
        Of the B-spline, 0 to 5: 0 is the nearest voxel, 1 linear.
    default : float
        Value outside the moving image.
    pixel_type : str or None
        One of `PIXELS`; None where nothing is said.
    image_format : str
        Ending of the image file.
    compress : bool
        Whether it is compressed.
    """

    order: int = 3
    default: float = 0.0
    pixel_type: str | None = None
    image_format: str = "mhd"
    compress: bool = False

    @classmethod
    def of(cls, parameters: Mapping[str, Sequence[str]]) -> Resampling:
        """What a parameter map says, of a registration or of a transform.

        Parameters
        ----------
        parameters : mapping of str to sequence of str
            The map.

        Returns
        -------
        Resampling

        Raises
        ------
        OptionError
            An interpolator, order, pixel type or number that cannot be had.
        """
        name = _first(parameters, "ResampleInterpolator", "FinalBSplineInterpolator")
        if name not in INTERPOLATORS:
            hint = f"; {REPLACED[name]}" if name in REPLACED else ""
            raise OptionError(
                f"elastix parameter ResampleInterpolator: {name!r} cannot be had here; it may be "
                f"{', '.join(INTERPOLATORS)}{hint}"
            )
        order = INTERPOLATORS[name]
        if order is None:
            order = _whole(parameters, "FinalBSplineInterpolationOrder", 3)
            if not 0 <= order <= 5:
                raise OptionError(f"elastix parameter FinalBSplineInterpolationOrder: is 0 to 5, got {order}")
        pixels = _first(parameters, "ResultImagePixelType", "")
        if pixels and pixels not in PIXELS:
            raise OptionError(
                f"elastix parameter ResultImagePixelType: {pixels!r} is no pixel type that can be written; it may be "
                f"{', '.join(PIXELS)}"
            )
        return cls(
            order=order,
            default=_number(parameters, "DefaultPixelValue", 0.0),
            pixel_type=pixels or None,
            image_format=_first(parameters, "ResultImageFormat", "mhd").lstrip("."),
            compress=_first(parameters, "CompressResultImage", "false") == "true",
        )

    def check_format(self) -> None:
        """Refuse an ending that tells no image format that can be written.

        Raises
        ------
        OptionError
            Such an ending.
        """
        if f".{self.image_format.lower()}" not in ENDINGS:
            raise OptionError(
                f"elastix parameter ResultImageFormat: {self.image_format!r} cannot be written; it may be "
                f"{', '.join(ending[1:] for ending in ENDINGS)}"
            )


def _first(parameters: Mapping[str, Sequence[str]], name: str, default: str) -> str:
    values = parameters.get(name)
    return values[0] if values else default


def _number(parameters: Mapping[str, Sequence[str]], name: str, default: float) -> float:
    text = _first(parameters, name, str(default))
    try:
        value = float(text)
    except ValueError:
        raise OptionError(f"elastix parameter {name}: is a number, got {text!r}") from None
    if not np.isfinite(value):
        raise OptionError(f"elastix parameter {name}: cannot be {text!r}")
    return value


def _whole(parameters: Mapping[str, Sequence[str]], name: str, default: int) -> int:
    value = _number(parameters, name, float(default))
    if value != int(value):
        raise OptionError(f"elastix parameter {name}: is a whole number, got {value}")
    return int(value)


def resampled(
    volume: Volume, transform: Any, grid: Geometry, how: Resampling, threads: int | None = None
) -> NDArray[Any]:
    """An image seen through a transform, as transformix resamples it: by ITK's own resampling and interpolators.

    Parameters
    ----------
    volume : Volume
        In moving space.
    transform : SimpleITK.Transform
        Fixed → moving.
    grid : Geometry
        The fixed grid.
    how : Resampling
        Interpolation, and the value outside.
    threads : int, optional
        CPU threads; all by default.

    Returns
    -------
    ndarray
        ``grid.shape``; float32, or float64 where float32 does not hold the image's values.
    """
    import SimpleITK as sitk

    splines = (
        sitk.sitkNearestNeighbor, sitk.sitkBSpline1, sitk.sitkBSpline2, sitk.sitkBSpline3, sitk.sitkBSpline4,
        sitk.sitkBSpline5,
    )  # fmt: skip
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputDirection(grid.rotation.ravel().tolist())
    resampler.SetInterpolator(splines[how.order])
    resampler.SetTransform(transform)
    plain = volume.scale == 1 and volume.offset == 0
    resampler.SetDefaultPixelValue((how.default - float(volume.offset)) / volume.scale)
    if threads:
        resampler.SetNumberOfThreads(threads)
    seen: NDArray[Any] = sitk.GetArrayFromImage(resampler.Execute(to_sitk(volume.array, volume.geometry)))
    return seen if plain else seen.astype(np.float64) * volume.scale + volume.offset


def as_pixel_type(values: NDArray[Any], pixel_type: DTypeLike) -> NDArray[Any]:
    """Convert resampled values to a pixel type, as elastix does: whole numbers are cut, not rounded.

    Parameters
    ----------
    values : ndarray
        Floating-point values.
    pixel_type : dtype_like
        What they become.

    Returns
    -------
    ndarray of `pixel_type`
        Of the shape of `values`: towards zero and within the limits of an integer type, above 0.5 for bool.
    """
    dtype: np.dtype[Any] = np.dtype(pixel_type)
    if dtype.kind == "b":
        return values > 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # In double: float32 does not hold the largest integers.
        return np.clip(np.trunc(values.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def without_direction(volume: Volume) -> Volume:
    """An image on axes along those of space, as elastix takes it where ``UseDirectionCosines`` is false.

    Parameters
    ----------
    volume : Volume
        The image.

    Returns
    -------
    Volume
        The same voxels, spacing and origin.
    """
    grid = volume.geometry
    return replace(volume, geometry=Geometry.make(grid.size, grid.spacing, grid.origin))

"""An image seen through a transform: one interpolation, whatever the number of transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, as_float32, as_pixels, background_value, checked_fill
from itk_nir.interpolating import (
    INTERPOLATIONS,
    OF_LABELS,
    Interpolation,
    interpolated,
    interpolation_named,
    native_module,
    native_threads,
)
from itk_nir.label_maps import is_label_map
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

__all__ = ["INTERPOLATIONS", "background_of", "held", "nearest_on", "resample", "resample_array"]


def resample(
    volume: Volume,
    transform: CompositeTransform,
    geometry: Geometry,
    interpolation: str | Interpolation = "linear",
    fill: float | None = None,
    *,
    pixel_type: np.dtype[Any] | None = None,
    threads: int | None = None,
) -> NDArray[Any]:
    """A `Volume` seen through a transform on a grid: the array of the resampled image, ``geometry.shape``.

    Parameters
    ----------
    volume : Volume
        In moving space.
    transform : CompositeTransform
        Fixed → moving.
    geometry : Geometry
        The output grid.
    interpolation : str or Interpolation
        One of `INTERPOLATIONS`; ``"auto"`` is nearest for label maps (see `itk_nir.label_maps`), linear for everything
        else.
    fill : float, optional
        Value of voxels that map outside the image (more than half a voxel from its outermost centres), or where it has
        no value; `background_of` the image where left out.
    pixel_type : numpy.dtype, optional
        Of the result; that of the volume's source where left out. Whole numbers are rounded and clipped.
    threads : int, optional
        CPU threads; all that the process may use by default.

    Returns
    -------
    ndarray
        ``geometry.shape``, in the units of the volume's source.

    Raises
    ------
    InputError
        Unlike dimensions.
    OptionError
        Unknown interpolation, or a fill value that the pixels cannot hold.
    """
    if interpolation == "auto":
        interpolation = "nearest" if is_label_map(volume.array) else "linear"
    how = interpolation_named(interpolation)
    if not volume.dimension == transform.dimension == geometry.dimension:
        raise InputError(
            f"{volume.name}: is {volume.dimension}D, its transform {transform.dimension}D and the reference grid "
            f"{geometry.dimension}D; they must have one dimension"
        )
    wanted = volume.pixel_type if pixel_type is None else pixel_type
    value = held(background_of(volume), wanted) if fill is None else checked_fill(fill, wanted)
    array, scale, offset = volume.array, volume.scale, volume.offset
    if how.kind in OF_LABELS and array.dtype == wanted:
        scale, offset = 1.0, 0
    elif array.dtype != np.float32:
        array, scale, offset = as_float32(array)
    # In the units of the array; the difference of whole numbers is exact.
    whole = isinstance(value, int) and isinstance(offset, int)
    outside = (value - offset) / scale if whole else (float(value) - float(offset)) / scale
    seen = resample_array(
        array, volume.geometry, transform, geometry, how, outside if array.dtype.kind == "f" else value,
        threads=threads,
    )  # fmt: skip
    out = as_pixels(seen, wanted, scale, offset)
    if wanted.itemsize == 8 and wanted.kind == "f" and float(np.float32(outside)) != outside:
        out[seen == np.float32(outside)] = value
    if volume.missing is not None:
        parts = volume.missing.astype(np.float32)
        near = resample_array(
            parts, volume.geometry, transform, geometry, "nearest" if how.kind in OF_LABELS else "linear",
            threads=threads,
        )  # fmt: skip
        out[near > _PART] = value
    return out


def held(value: float | int, dtype: np.dtype[Any]) -> float | int:
    """The nearest value that pixels of a type hold.

    Parameters
    ----------
    value : float
        A finite value.
    dtype : numpy.dtype
        Type of the pixels.

    Returns
    -------
    float or int
    """
    if dtype.kind == "f":
        return value
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return min(max(round(value), low), high)


#: A voxel has no value where at least this share of what it is made of has none.
_PART = 1e-3


def background_of(volume: Volume) -> float | int:
    """What to fill a resampled image with where it does not reach.

    Parameters
    ----------
    volume : Volume
        Any.

    Returns
    -------
    float or int
        0 for label maps; for all others the value of what surrounds the object (`itk_nir.images.background_value`), in
        the units of the source.
    """
    if volume.pixel_type.kind == "b" or is_label_map(volume.array):
        return 0
    value = background_value(volume.array, volume.missing)
    whole = volume.pixel_type.kind in "iu"
    if volume.scale == 1 and volume.offset == 0:
        return int(value) if whole else float(value)
    there = float(value) * volume.scale + volume.offset
    return int(there) if whole else float(there)


def resample_array(
    array: NDArray[Any],
    source: Geometry,
    chain: CompositeTransform,
    target: Geometry,
    mode: str | Interpolation,
    default: float = 0.0,
    *,
    threads: int | None = None,
) -> NDArray[Any]:
    """An array seen through a transform on another grid.

    Parameters
    ----------
    array : ndarray
        ``source.shape``.
    source : Geometry
        Its grid, in moving space.
    chain : CompositeTransform
        The map, fixed → moving, LPS mm.
    target : Geometry
        The output grid, in fixed space.
    mode : str or Interpolation
        One of `INTERPOLATIONS` but ``"auto"``.
    default : float
        Value of voxels that map outside.
    threads : int, optional
        CPU threads; all that the process may use by default.

    Returns
    -------
    ndarray
        ``target.shape``; float32, or of the array's type where labels are only chosen among.
    """
    how = interpolation_named(mode)
    if how.kind == "linear":
        done = _in_one_pass(array, source, chain, target, default, native_threads(threads))
        if done is not None:
            return done
    return interpolated(array, source, chain, target, how, default, threads=threads)


def _in_one_pass(
    array: NDArray[Any], source: Geometry, chain: CompositeTransform, target: Geometry, default: float, threads: int
) -> NDArray[np.float32] | None:
    """Linear resampling through at most one displacement field, then a linear map, by a native op of its own.

    None where the transform is of another form or the native ops are missing.
    """
    # Physical → index is one more linear transform, which melts into the last one of the composite.
    to_index = CompositeTransform((*chain.transforms, LinearTransform(source.inverse_matrix))).simplified()
    native, d = native_module(), target.dimension
    first, last = to_index.transforms[0], to_index.transforms[-1]
    if native is None or len(to_index.transforms) > 2 or not isinstance(last, LinearTransform):
        return None
    shift = None
    if len(to_index.transforms) == 2:
        if not isinstance(first, DisplacementField):
            return None
        shift = first.rows_on(target, 0, target.shape[0])
        if shift is None:
            return None
        shift = np.ascontiguousarray(shift, np.float32).reshape(*(1,) * (3 - d), *target.shape, d)
    index, vector = np.eye(4)[:3], np.zeros((3, 3))
    whole = last.matrix @ target.matrix
    index[:d, :d], index[:d, 3] = whole[:d, :d], whole[:d, d]
    vector[:d, :d] = last.matrix[:d, :d]
    moving = np.ascontiguousarray(array, np.float32).reshape(*(1,) * (3 - d), *array.shape)
    out = np.empty((*(1,) * (3 - d), *target.shape), np.float32)
    native.resample(moving, shift, index, vector, default, out, threads)
    return out.reshape(target.shape)


def nearest_on(array: NDArray[Any], source: Geometry, target: Geometry, default: float = 0.0) -> NDArray[Any]:
    """The nearest voxel of an array for every voxel of another grid, both in one physical space.

    Parameters
    ----------
    array : ndarray
        ``source.shape``.
    source, target : Geometry
        Its grid and the other one.
    default : float
        Value of voxels outside `source`.

    Returns
    -------
    ndarray
        ``target.shape``, of the array's type.
    """
    identity = CompositeTransform((LinearTransform.identity(source.dimension),))
    return resample_array(array, source, identity, target, "nearest", default)

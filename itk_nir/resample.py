"""An image seen through a transform: one interpolation, whatever the number of transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

INTERPOLATIONS = ("auto", "linear", "nearest", "bspline")


def resample(
    volume: Volume,
    transform: CompositeTransform,
    geometry: Geometry,
    interpolation: str = "linear",
    default: float = 0.0,
    *,
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
    interpolation : str
        One of `INTERPOLATIONS`; ``"auto"`` is nearest for label maps (see `is_label_map`), linear for everything else.
    default : float
        Value of voxels that map outside the image (more than half a voxel from its outermost centres).
    threads : int, optional
        CPU threads; all that the process may use by default.

    Returns
    -------
    ndarray
        ``geometry.shape``; the pixel type of the volume for nearest, float32 otherwise.

    Raises
    ------
    InputError
        Unlike dimensions.
    OptionError
        Unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise OptionError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
    if not volume.dimension == transform.dimension == geometry.dimension:
        raise InputError(
            f"{volume.name}: is {volume.dimension}D, its transform {transform.dimension}D and the reference grid "
            f"{geometry.dimension}D; they must have one dimension"
        )
    if interpolation == "auto":
        interpolation = "nearest" if is_label_map(volume.array) else "linear"
    return resample_array(volume.array, volume.geometry, transform, geometry, interpolation, default, threads=threads)


def resample_array(
    array: NDArray[Any],
    source: Geometry,
    chain: CompositeTransform,
    target: Geometry,
    mode: str,
    default: float = 0.0,
    *,
    threads: int | None = None,
) -> NDArray[Any]:
    """An array seen through a transform on another grid.

    Some rows at a time, so that beside input and output only a few megabytes are in use.

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
    mode : str
        ``"linear"``, ``"nearest"`` or ``"bspline"``.
    default : float
        Value of voxels that map outside.
    threads : int, optional
        CPU threads; all that the process may use by default.

    Returns
    -------
    ndarray
        ``target.shape``.
    """
    import torch

    from itk_nir.engine.execution import thread_count
    from itk_nir.engine.interpolation import bspline_coefficients, sample
    from itk_nir.engine.torch_state import engine_state, quiet_state

    # Physical → index is one more linear transform, which melts into the last one of the composite.
    to_index = CompositeTransform((*chain.transforms, LinearTransform(source.inverse_matrix))).simplified()
    if mode == "linear":
        with quiet_state():
            done = _in_one_pass(array, to_index, target, default, thread_count(threads))
        if done is not None:
            return done
    if mode == "nearest":
        # Nearest only copies, so unsigned types travel as signed ones of their width: torch has no full uint16.
        carried = array.view(f"i{array.dtype.itemsize}") if array.dtype.kind == "u" and array.itemsize > 1 else array
        image = torch.from_numpy(np.ascontiguousarray(carried))[None]
    else:
        image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
    out = np.empty(target.shape, array.dtype if mode == "nearest" else np.float32)
    with engine_state() if thread_count(threads) == 1 else quiet_state(), torch.no_grad():
        if mode == "bspline":
            image = bspline_coefficients(image)
        for part, _, index in to_index.rows(target):
            inside = np.ones(index.shape[:-1], bool)
            for axis, n in enumerate(source.size):
                position = index[..., axis]
                inside &= (position >= -0.5) & (position < n - 0.5)
            # The sampler wants indices that fit an integer; the values out there are replaced anyway.
            np.clip(index, -1.0, float(max(source.size)), out=index)
            values = sample(image, torch.from_numpy(index), mode, "edge", prefiltered=mode == "bspline")[0].numpy()
            out[part] = values.view(out.dtype) if mode == "nearest" else values
            out[part][~inside] = default
    return out


def _in_one_pass(
    array: NDArray[Any], to_index: CompositeTransform, target: Geometry, default: float, threads: int
) -> NDArray[np.float32] | None:
    """Linear resampling through at most one displacement field, then a linear map, by the native op.

    None where the transform is of another form or the native ops are missing.
    """
    from itk_nir.engine.ops import native_module

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
    shape = (*(1,) * (3 - d), *target.shape)
    out: NDArray[np.float32] = native.resample(moving, shift, index, vector, default, shape, threads)
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


def is_label_map(array: NDArray[Any]) -> bool:
    """Whether an image looks like labels rather than intensities.

    True for whole-number pixels with two values at most, or where at least half of all foreground voxels have the
    same value as their neighbour along x: labels fill regions, intensities vary from voxel to voxel.

    Parameters
    ----------
    array : ndarray
        ``([D,] H, W)``.

    Returns
    -------
    bool
    """
    if array.dtype.kind == "b":
        return True
    if array.dtype.kind not in "iu":
        return False
    foreground = array != 0
    values = array[foreground]
    if not values.size or values.min() == values.max():
        return True
    pairs = foreground[..., 1:] & foreground[..., :-1]
    equal = pairs & (array[..., 1:] == array[..., :-1])
    return bool(2 * np.count_nonzero(equal) >= np.count_nonzero(pairs) > 0)

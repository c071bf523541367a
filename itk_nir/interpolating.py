"""Interpolations of images and of label maps by name, and an array seen through transforms by any of them.

Without torch: programs that only resample start in the time that NumPy takes.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.options import shown, thread_count
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

#: What votes, or copies, and never makes a value that the image does not have.
OF_LABELS = ("nearest", "label-linear", "label-gaussian")


@dataclass(frozen=True)
class Interpolation:
    """How the value between voxels is made of theirs.

    Attributes
    ----------
    kind : str
        ``"nearest"`` (halves go up), ``"linear"``, ``"bspline"`` (mirrored at the outermost centres), ``"gaussian"``,
        ``"sinc"`` (windowed, three voxels to either side, zero beyond the image), ``"label-linear"`` or
        ``"label-gaussian"``: the label with the largest weight of linear interpolation, or of the Gaussian's.
    order : int
        Of the spline, 0 to 5.
    window : str
        Of the sinc function: ``"cosine"``, ``"hamming"``, ``"welch"``, ``"lanczos"`` or ``"blackman"``.
    sigma : tuple of float or None
        Of the Gaussian, mm along x, y[, z], or one for all; None for the image's spacing.
    alpha : float
        Where the Gaussian is cut off, in sigmas.
    """

    kind: str
    order: int = 3
    window: str = "lanczos"
    sigma: tuple[float, ...] | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in range(6):
            raise OptionError(f"the order of a B-spline is 0 to 5, got {self.order}")
        for number in (*(self.sigma or ()), self.alpha):
            if not (math.isfinite(number) and number > 0):
                raise OptionError(f"sigma and alpha of an interpolation are above 0, got {number:g}")

    def sigma_in_voxels(self, spacing: Sequence[float]) -> list[float]:
        """Sigma along each axis of an image.

        Parameters
        ----------
        spacing : sequence of float
            Of the image, mm.

        Returns
        -------
        list of float
            Voxels.

        Raises
        ------
        OptionError
            As many sigmas as the image has no axes.
        """
        if self.sigma is None:
            return [1.0] * len(spacing)
        sigma = self.sigma * len(spacing) if len(self.sigma) == 1 else self.sigma
        if len(sigma) != len(spacing):
            raise OptionError(f"sigma has {len(sigma)} numbers, the image {len(spacing)} axes; give one or as many")
        return [s / h for s, h in zip(sigma, spacing, strict=True)]


#: The names that users have; ``"auto"`` is nearest for label maps and linear for everything else.
NAMES: dict[str, Interpolation] = {
    "linear": Interpolation("linear"),
    "nearest": Interpolation("nearest"),
    "bspline": Interpolation("bspline"),
    "gaussian": Interpolation("gaussian"),
    "cosine": Interpolation("sinc", window="cosine"),
    "hamming": Interpolation("sinc", window="hamming"),
    "welch": Interpolation("sinc", window="welch"),
    "lanczos": Interpolation("sinc", window="lanczos"),
    "label": Interpolation("label-gaussian", alpha=4.0),
    "label-linear": Interpolation("label-linear"),
}
INTERPOLATIONS = ("auto", *NAMES)


def interpolation_named(interpolation: str | Interpolation) -> Interpolation:
    """What a name stands for.

    Parameters
    ----------
    interpolation : str or Interpolation
        A key of `NAMES`, or what is returned.

    Returns
    -------
    Interpolation

    Raises
    ------
    OptionError
        Another name.
    """
    if isinstance(interpolation, Interpolation):
        return interpolation
    if not isinstance(interpolation, str) or interpolation not in NAMES:
        raise OptionError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {shown(interpolation)}")
    return NAMES[interpolation]


@lru_cache(maxsize=1)
def native_module() -> ModuleType | None:
    """The native module, without torch.

    Returns
    -------
    module or None
        None, with one warning, where it was not built.
    """
    try:
        from itk_nir import _native
    except ImportError as error:
        warnings.warn(
            f"itk_nir: the native module is not available ({error}); NumPy interpolates images slowly. Reinstall "
            "the package with a C++17 compiler at hand to get it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return _native


def native_threads(threads: int | None) -> int:
    """The number of threads that the native module is told: beyond the processors more only wait for one another.

    Parameters
    ----------
    threads : int or None
        What the user says; all that the process may use where that is nothing.

    Returns
    -------
    int

    Raises
    ------
    OptionError
        Not a whole number of at least 1.
    """
    return min(thread_count(threads), max(64, os.cpu_count() or 1))


def interpolated(
    array: NDArray[Any],
    source: Geometry,
    chain: CompositeTransform,
    target: Geometry,
    how: Interpolation,
    outside: float = 0.0,
    *,
    threads: int | None = None,
) -> NDArray[Any]:
    """An array seen through transforms on another grid.

    Parameters
    ----------
    array : ndarray
        ``source.shape``, scalars.
    source : Geometry
        Its grid, in moving space.
    chain : CompositeTransform
        Fixed → moving, LPS mm.
    target : Geometry
        The output grid, in fixed space.
    how : Interpolation
        How.
    outside : float
        Value of voxels that map more than half a voxel beyond the outermost centres.
    threads : int, optional
        CPU threads; all that the process may use by default. No result depends on it.

    Returns
    -------
    ndarray
        ``target.shape``; of the array's type for `OF_LABELS`, else float32.

    Raises
    ------
    OptionError
        Sigmas for another number of axes, or a number of threads that cannot be.
    """
    sigma = how.sigma_in_voxels(source.spacing)
    path = _Path(chain.simplified(), source, target, native_threads(threads), native_module())
    if how.kind == "nearest":
        return path.nearest(np.ascontiguousarray(array), outside)
    if how.kind not in OF_LABELS:
        return path.seen(np.array(array, np.float32), how, sigma, outside)
    values, codes = _coded(array)
    # NaN is no label, so it stands for outside.
    seen = path.seen(values, how, sigma, float("nan"))
    beyond = np.isnan(seen)
    seen[beyond] = 0
    out = seen.astype(array.dtype) if codes is None else codes[seen.astype(np.intp)]
    out[beyond] = outside
    return out


def displacement_on(chain: CompositeTransform, grid: Geometry, *, threads: int | None = None) -> DisplacementField:
    """Transforms as one displacement field: `CompositeTransform.displacement_on` by the native module.

    A fifth of the time, and the same to the rounding of single precision.

    Parameters
    ----------
    chain : CompositeTransform
        Fixed → moving.
    grid : Geometry
        A grid of fixed space, of the transforms' dimension.
    threads : int, optional
        CPU threads; all that the process may use by default. No result depends on it.

    Returns
    -------
    DisplacementField
        Exact at the voxel centres of the grid.

    Raises
    ------
    InputError
        A grid of another dimension.
    """
    if chain.dimension != grid.dimension:
        return chain.displacement_on(grid)  # which says so
    vectors = _Path(chain.simplified(), grid, grid, native_threads(threads), native_module()).displacements()
    return chain.displacement_on(grid) if vectors is None else DisplacementField(grid, vectors)


def _coded(array: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    """Labels as float32, and what these stand for where that is something else: float32 holds no large numbers."""
    plain = array.astype(np.float32)
    if np.array_equal(plain.astype(array.dtype), array):
        return plain, None
    labels, number = np.unique(array, return_inverse=True)
    if len(labels) > 1 << 24:
        raise OptionError(f"an image of {len(labels)} values is no label map; interpolate it linearly")
    return number.reshape(array.shape).astype(np.float32), labels


@dataclass(frozen=True, eq=False)
class _Path:
    """The way from the voxels of a grid to those of an image, walked by the native module or by NumPy."""

    chain: CompositeTransform
    source: Geometry
    target: Geometry
    threads: int
    native: ModuleType | None

    def nearest(self, values: NDArray[Any], outside: float) -> NDArray[Any]:
        """The value of the nearest voxel of the image for every one of the grid, of the values' own type."""
        out = np.empty(self.target.shape, values.dtype)
        if self.native is None:
            from itk_nir import interpolation_reference

            number = interpolation_reference.nearest_voxels(self.source, self.chain, self.target)
            np.take(values.reshape(-1), np.maximum(number, 0), out=out)
            out[number < 0] = outside
            return out
        # Whatever the type is, its bytes are copied.
        beyond = np.full(1, outside, values.dtype).view(np.uint8)
        grid, matrices, fields = self._steps()
        to_index = _in_space(self.source.inverse_matrix)
        self.native.nearest(_bytes(values), grid, matrices, fields, to_index, beyond, _bytes(out), self.threads)
        return out

    def displacements(self) -> NDArray[np.float32] | None:
        """The vectors from the grid's voxel centres to where they are taken, or None without the native module."""
        if self.native is None:
            return None
        d = self.target.dimension
        out = np.empty((*self.target.shape, d), np.float32)
        grid, matrices, fields = self._steps()
        self.native.displacements(grid, matrices, fields, out.reshape(*_planes(self.target.shape), d), self.threads)
        return out

    def seen(
        self, values: NDArray[np.float32], how: Interpolation, sigma: list[float], outside: float
    ) -> NDArray[np.float32]:
        """The image on the grid; `values` may be overwritten."""
        if self.native is None:
            from itk_nir import interpolation_reference

            return interpolation_reference.interpolated(
                values, self.source, self.chain, self.target, how, sigma, outside
            )
        image = np.ascontiguousarray(values.reshape(_planes(values.shape)))
        if how.kind == "bspline":
            self.native.bspline_coefficients(image, how.order, self.threads)
        out = np.empty(_planes(self.target.shape), np.float32)
        grid, matrices, fields = self._steps()
        self.native.interpolate(
            image, grid, matrices, fields, _in_space(self.source.inverse_matrix), how.kind, how.order, how.window,
            [*sigma, 1.0][:3], how.alpha, outside, out, self.threads,
        )  # fmt: skip
        return out.reshape(self.target.shape)

    def _steps(self) -> tuple[Any, list[Any], list[Any]]:
        """Grid to points, the transforms' matrices and fields."""
        matrices: list[NDArray[np.float64]] = []
        fields: list[NDArray[np.float32] | None] = []
        for step in self.chain.transforms:
            if isinstance(step, LinearTransform):
                matrices.append(_in_space(step.matrix))
                fields.append(None)
            else:
                matrices.append(_in_space(step.geometry.inverse_matrix))
                fields.append(step.vectors.reshape(*_planes(step.vectors.shape[:-1]), step.dimension))
        return _in_space(self.target.matrix), matrices, fields


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The same memory as ``(Z, Y, X, bytes of a value)``."""
    return values.reshape(*_planes(values.shape), 1).view(np.uint8)


def _planes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(Z, Y, X)``; a 2D image is one plane."""
    return (1,) * (3 - len(shape)) + tuple(shape)


def _in_space(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first three rows of a homogeneous matrix; of a 2D one in the plane z = 0."""
    d = len(matrix) - 1
    out = np.eye(4)[:3]
    out[:d, :d], out[:d, 3] = matrix[:d, :d], matrix[:d, d]
    return np.ascontiguousarray(out)

"""The interpolations in NumPy: what defines them, and what runs, slowly, where the native module was not built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.transforms.model import CompositeTransform

if TYPE_CHECKING:
    from itk_nir.interpolating import Interpolation

F64 = NDArray[np.float64]
#: Of one axis: the voxels that each position is made of, ``(N, taps)``, and their weights.
Taps = tuple[NDArray[np.intp], F64]

#: Voxels to either side of a windowed sinc function.
_WINDOW = 3
_POLES = {
    2: (math.sqrt(8.0) - 3,),
    3: (math.sqrt(3.0) - 2,),
    4: (math.sqrt(664 - math.sqrt(438976.0)) + math.sqrt(304.0) - 19,
        math.sqrt(664 + math.sqrt(438976.0)) - math.sqrt(304.0) - 19),
    5: (math.sqrt(67.5 - math.sqrt(4436.25)) + math.sqrt(26.25) - 6.5,
        math.sqrt(67.5 + math.sqrt(4436.25)) - math.sqrt(26.25) - 6.5),
}  # fmt: skip


def interpolated(
    values: NDArray[np.float32],
    source: Geometry,
    chain: CompositeTransform,
    target: Geometry,
    how: Interpolation,
    sigma: list[float],
    outside: float,
) -> NDArray[np.float32]:
    """An array seen through transforms on another grid.

    Parameters
    ----------
    values : ndarray
        ``source.shape``.
    source, chain, target, how, outside
        As of `itk_nir.interpolating.interpolated`.
    sigma : list of float
        Of the Gaussian along x, y[, z], voxels.

    Returns
    -------
    ndarray
        ``target.shape``, float32.
    """
    image = np.asarray(values, np.float64)
    if how.kind == "bspline":
        image = spline_coefficients(image, how.order)
    out = np.full(target.shape, outside, np.float32)
    for part, there, index in _positions(source, chain, target):
        axes = [_taps(index[:, a], n, how, sigma[a]) for a, n in enumerate(source.size)]
        out[part][there] = _elected(image, axes) if how.kind.startswith("label") else _summed(image, axes, how.kind)
    return out


def nearest_voxels(source: Geometry, chain: CompositeTransform, target: Geometry) -> NDArray[np.int32]:
    """Of every voxel of a grid the number of the nearest voxel of an image.

    Parameters
    ----------
    source, chain, target
        As of `interpolated`.

    Returns
    -------
    ndarray
        ``target.shape``; -1 outside the image.
    """
    out = np.full(target.shape, -1, np.int32)
    for part, there, index in _positions(source, chain, target):
        at = np.clip(np.floor(index + 0.5), 0, np.asarray(source.size) - 1).astype(np.int32)
        out[part][there] = at @ np.cumprod([1, *source.size[:-1]])
    return out


def _positions(
    source: Geometry, chain: CompositeTransform, target: Geometry
) -> Iterator[tuple[slice, NDArray[np.bool_], F64]]:
    """Some rows at a time: which voxels of the grid lie within the image, and where in it."""
    for part, _, mapped in chain.rows(target):
        index = source.physical_to_index(mapped)
        there = np.all((index >= -0.5) & (index < np.asarray(source.size) - 0.5), axis=-1)
        yield part, there, index[there]


def spline_coefficients(image: F64, order: int) -> F64:
    """The coefficients of the B-spline that passes through an image, which is mirrored at its outermost centres.

    Parameters
    ----------
    image : ndarray
        ``([D,] H, W)``.
    order : int
        0 to 5.

    Returns
    -------
    ndarray
        As `image`.

    References
    ----------
    .. [1] Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine 16(6), 1999,
       box 2.
    """
    out = np.array(image, np.float64)
    for axis in range(out.ndim):
        n = out.shape[axis]
        if n == 1 or order not in _POLES:
            continue
        c = np.moveaxis(out, axis, 0)
        for pole in _POLES[order]:
            c *= (1 - pole) * (1 - 1 / pole)
        for pole in _POLES[order]:
            k = np.arange(2 * n - 2)
            weights = pole**k
            whole = np.concatenate([c, c[-2:0:-1]]) if n > 2 else c
            c[0] = np.tensordot(weights, whole, 1) / (1 - pole ** (2 * n - 2))
            for i in range(1, n):
                c[i] += pole * c[i - 1]
            c[n - 1] = (c[n - 1] + pole * c[n - 2]) * (pole / (pole * pole - 1))
            for i in range(n - 2, -1, -1):
                c[i] = (c[i + 1] - c[i]) * pole
    return out


def _taps(c: F64, n: int, how: Interpolation, sigma: float) -> Taps:
    """The voxels along one axis that positions are made of."""
    if how.kind in ("linear", "label-linear"):
        p = np.clip(c, 0, n - 1)
        lower = np.minimum(p.astype(np.intp), max(n - 2, 0))
        return np.stack([lower, np.minimum(lower + 1, n - 1)], 1), np.stack([1 - (p - lower), p - lower], 1)
    if how.kind == "bspline":
        half = 0.0 if how.order % 2 else 0.5
        first = np.floor(c + half).astype(np.intp) - how.order // 2
        at = first[:, None] + np.arange(how.order + 1)
        weights = _spline(at - c[:, None], how.order)
        period = max(2 * n - 2, 1)
        at %= period
        return np.minimum(at, period - at).clip(max=n - 1), weights
    if how.kind == "sinc":
        first = np.floor(c).astype(np.intp) - (_WINDOW - 1)
        at = first[:, None] + np.arange(2 * _WINDOW)
        x = c[:, None] - at
        exact = (c == np.floor(c))[:, None]
        weights = np.where(exact, x == 0, _window(x, how.window) * np.sinc(x))
    else:
        cut = sigma * how.alpha
        first = np.floor(c + 0.5 - cut).astype(np.intp)
        end = np.ceil(c + 0.5 + cut).astype(np.intp)
        at = first[:, None] + np.arange(int((end - first).max(initial=1)))
        erf = np.vectorize(math.erf, otypes=[float])
        edges = (np.concatenate([at, at[:, -1:] + 1], 1) - 0.5 - c[:, None]) / (math.sqrt(2.0) * sigma)
        weights = np.diff(erf(edges), axis=1) * (at < end[:, None])
    return at.clip(0, n - 1), weights * ((at >= 0) & (at < n))


def _spline(x: F64, order: int) -> F64:
    """The centred B-spline, a sum of truncated powers."""
    out = np.zeros_like(x)
    for k in range(order + 2):
        away = x + (order + 1) / 2 - k
        power = (away > 0 if order else away >= 0) * np.abs(away) ** order
        out += (-1) ** k * math.comb(order + 1, k) * power
    return out / math.factorial(order)


def _window(x: F64, name: str) -> F64:
    if name == "cosine":
        return np.cos(x * np.pi / (2 * _WINDOW))
    if name == "hamming":
        return 0.54 + 0.46 * np.cos(x * np.pi / _WINDOW)
    if name == "welch":
        return 1 - (x / _WINDOW) ** 2
    if name == "lanczos":
        return np.asarray(np.sinc(x / _WINDOW))
    return 0.42 + 0.5 * np.cos(x * np.pi / _WINDOW) + 0.08 * np.cos(2 * x * np.pi / _WINDOW)


def _neighbours(image: F64, axes: list[Taps]) -> Any:
    """Every combination of taps: the voxels there, and the weights, ``(N,)`` each."""
    flat, strides = image.reshape(-1), np.cumprod([1, *image.shape[:0:-1]])
    for corner in product(*(range(at.shape[1]) for at, _ in axes)):
        place = sum(at[:, k] * int(s) for (at, _), k, s in zip(axes, corner, strides, strict=True))
        yield flat[place], np.prod([w[:, k] for (_, w), k in zip(axes, corner, strict=True)], axis=0)


def _summed(image: F64, axes: list[Taps], kind: str) -> F64:
    total, whole = np.zeros(len(axes[0][0])), np.zeros(len(axes[0][0]))
    for values, weights in _neighbours(image, axes):
        total += weights * values
        whole += weights
    return total / whole if kind == "gaussian" else total


def _elected(image: F64, axes: list[Taps]) -> F64:
    """The label with the most votes; of equal ones the lowest."""
    labels = np.unique(image)
    votes = np.zeros((len(axes[0][0]), len(labels)))
    rows = np.arange(len(votes))
    for values, weights in _neighbours(image, axes):
        np.add.at(votes, (rows, np.searchsorted(labels, values)), weights)
    return labels[votes.argmax(1)]

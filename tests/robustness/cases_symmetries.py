"""One pair told in other words: axes, origins, units of length and of intensity."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import itk_nir
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom
from tests.robustness.campaign import Case

Image = tuple[np.ndarray, Geometry]
SIZES = {2: (48, 56), 3: (32, 40, 32)}


@cache
def _phantom(d: int) -> Any:
    return brain_phantom(d, SIZES[d], seed=1)


def _points(d: int) -> np.ndarray:
    p = _phantom(d)
    return p.geometry.grid()[p.fixed_labels > 0]


def _registered(fixed: Image, moving: Image) -> Any:
    return itk_nir.register(to_sitk(*fixed), to_sitk(*moving), preset="fast", linear="none")


@cache
def _plain(d: int) -> np.ndarray:
    p = _phantom(d)
    return _registered((p.fixed, p.geometry), (p.moving, p.geometry)).transform_points(_points(d))


def _flipped(image: Image) -> Image:
    array, g = image
    axes = g.rotation.copy()
    axes[:, 0] *= -1
    origin = g.index_to_physical([g.size[0] - 1] + [0] * (g.dimension - 1))
    return array[..., ::-1].copy(), Geometry.make(g.size, g.spacing, origin, axes)


def _permuted(image: Image) -> Image:
    array, g = image
    order = [1, 0, 2][: g.dimension]
    size, spacing = [g.size[k] for k in order], [g.spacing[k] for k in order]
    return np.swapaxes(array, -1, -2).copy(), Geometry.make(size, spacing, g.origin, g.rotation[:, order])


def _as_good(d: int, of_fixed: Callable[[Image], Image], of_moving: Callable[[Image], Image]) -> Callable[..., float]:
    """By how many voxels the mean true error is another: single points differ, as rounding does."""

    def run(folder: Path) -> float:
        p, x = _phantom(d), _points(d)
        result = _registered(of_fixed((p.fixed, p.geometry)), of_moving((p.moving, p.geometry)))
        truth = x + p.displacement[p.fixed_labels > 0]
        errors = [np.linalg.norm(y - truth, axis=1).mean() for y in (result.transform_points(x), _plain(d))]
        return float(abs(errors[0] - errors[1]) / min(p.geometry.spacing))

    return run


def _in_units(d: int, scale: float, shift: float = 0.0, grey: float = 1.0) -> Callable[..., float]:
    """The largest distance between the two maps, voxels."""

    def run(folder: Path) -> float:
        p, g, x = _phantom(d), _phantom(d).geometry, _points(d)
        there = Geometry.make(g.size, np.multiply(g.spacing, scale), np.multiply(g.origin, scale) + shift, g.direction)
        result = _registered((p.fixed, there), ((p.moving * np.float32(grey)).astype(np.float32), there))
        mapped = (result.transform_points(x * scale + shift) - shift) / scale
        return float(np.linalg.norm(mapped - _plain(d), axis=1).max() / min(g.spacing))

    return run


def _same(image: Image) -> Image:
    return image


CASES = [
    *(
        case
        for d in (2, 3)
        for case in (
            Case(f"{d}D: an axis of the moving image flipped", _as_good(d, _same, _flipped), within=0.05),
            Case(f"{d}D: an axis of both images flipped", _as_good(d, _flipped, _flipped), within=0.05),
            Case(f"{d}D: two axes of the moving image exchanged", _as_good(d, _same, _permuted), within=0.05),
            Case(f"{d}D: two axes of both images exchanged", _as_good(d, _permuted, _permuted), within=0.05),
            Case(f"{d}D: 8192 mm from the origin", _in_units(d, 1.0, 8192.0)),
            Case(f"{d}D: in units of 1/1024 mm", _in_units(d, 1024.0)),
            Case(f"{d}D: in units of 1024 mm", _in_units(d, 1 / 1024)),
            Case(f"{d}D: intensities of the moving image times 1024", _in_units(d, 1.0, grey=1024.0)),
        )
    ),
]

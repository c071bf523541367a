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
from tests.grids import turned
from tests.robustness.campaign import Case

Image = tuple[np.ndarray, Geometry]
SIZES = {2: (48, 56), 3: (32, 40, 32)}


@cache
def _phantom(d: int) -> Any:
    return brain_phantom(d, SIZES[d], seed=1)


@cache
def _pair(d: int) -> tuple[Image, Image]:
    """Whole numbers, as scanners write them, on a grid that is turned."""
    p = _phantom(d)
    turn = turned(d, 0.1, 0.05)
    grid = Geometry.make(p.geometry.size, p.geometry.spacing, turn @ p.geometry.origin, turn)
    return (np.rint(p.fixed), grid), (np.rint(p.moving), p.moving_geometry)


def _points(d: int) -> np.ndarray:
    return _pair(d)[0][1].grid()[_phantom(d).fixed_labels > 0]


def _registered(fixed: Image, moving: Image) -> Any:
    linear = "affine" if fixed[1].dimension == 2 else "none"
    return itk_nir.register(to_sitk(*fixed), to_sitk(*moving), preset="fast", linear=linear)


@cache
def _plain(d: int) -> np.ndarray:
    return _registered(*_pair(d)).transform_points(_points(d))


def _largest(d: int, points: np.ndarray) -> float:
    """The largest distance to what the plain pair's map makes of its points, voxels."""
    return float(np.linalg.norm(points - _plain(d), axis=1).max() / min(_phantom(d).geometry.spacing))


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


def _stored(d: int, of_fixed: Callable[[Image], Image], of_moving: Callable[[Image], Image]) -> Callable[..., float]:
    def run(folder: Path) -> float:
        fixed, moving = _pair(d)
        return _largest(d, _registered(of_fixed(fixed), of_moving(moving)).transform_points(_points(d)))

    return run


def _in_units(d: int, scale: float, shift: float = 0.0, grey: float = 1.0, add: float = 0.0) -> Callable[..., float]:
    def run(folder: Path) -> float:
        (fixed, g), (moving, h) = _pair(d)
        there = [
            Geometry.make(k.size, np.multiply(k.spacing, scale), np.multiply(k.origin, scale) + shift, k.direction)
            for k in (g, h)
        ]
        result = _registered((fixed, there[0]), ((moving * grey + add).astype(np.float32), there[1]))
        return _largest(d, (result.transform_points(_points(d) * scale + shift) - shift) / scale)

    return run


def _same(image: Image) -> Image:
    return image


CASES = [
    *(
        case
        for d in (2, 3)
        for case in (
            Case(f"{d}D: an axis of the moving image flipped", _stored(d, _same, _flipped)),
            Case(f"{d}D: an axis of both images flipped", _stored(d, _flipped, _flipped)),
            Case(f"{d}D: two axes of the moving image exchanged", _stored(d, _same, _permuted)),
            Case(f"{d}D: two axes of both images exchanged", _stored(d, _permuted, _permuted)),
            Case(f"{d}D: 12345.678 mm from the origin", _in_units(d, 1.0, 12345.678)),
            Case(f"{d}D: in units of 1/1000 mm", _in_units(d, 1000.0)),
            Case(f"{d}D: in units of 1000 mm", _in_units(d, 0.001)),
            Case(f"{d}D: intensities of the moving image times 1000", _in_units(d, 1.0, grey=1000.0)),
            Case(f"{d}D: intensities of the moving image plus 1000", _in_units(d, 1.0, add=1000.0)),
        )
    ),
]

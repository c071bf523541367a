"""Oblique grids for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from itk_nir.geometry import Geometry


def turned(d: int, angle: float, tilt: float | None = None) -> np.ndarray:
    """A rotation by `angle` about z, in 3D after one by `tilt` (or else `angle` again) about x."""
    m = np.eye(d)
    m[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    if d == 3:
        tilt = angle if tilt is None else tilt
        n = np.eye(3)
        n[1:, 1:] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
        m = m @ n
    return m


def about_centre(g: Geometry, turn: np.ndarray, shift: np.ndarray | float = 0.0) -> Geometry:
    """A grid that lies turned about its centre, and then shifted."""
    return Geometry.make(g.size, g.spacing, turn @ (g.origin - g.centre) + g.centre + shift, turn @ g.rotation)


def permuted(d: int, angle: float) -> np.ndarray:
    """A rotation about z, whose columns are in another order in 3D: the first voxel axis is z."""
    turn = turned(d, angle, 0.0)
    return turn if d == 2 else turn[:, [2, 0, 1]]


def centred(size: Sequence[int], spacing: Sequence[float], direction: np.ndarray) -> Geometry:
    """A grid whose middle is at 7 mm along every axis."""
    g = Geometry.make(size, spacing, None, direction)
    return Geometry.make(size, spacing, 7.0 - g.centre, direction)

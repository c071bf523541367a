"""Single slices: where their pixels lie in 2D and in 3D."""

from __future__ import annotations

import numpy as np
import pytest

from itk_nir.geometry import Geometry
from itk_nir.images import Plane, Volume, flattened
from itk_nir.images.flat_files import axes_leave_xy
from tests.grids import turned


def grid(axis: int, direction: np.ndarray | None = None) -> Geometry:
    size = [5, 6]
    size.insert(axis, 1)
    return Geometry.make(size, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], direction)


@pytest.mark.parametrize(("axis", "kept"), [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])])
def test_a_plane_across_an_axis_has_the_other_two_coordinates(axis: int, kept: list[int]) -> None:
    g = grid(axis)
    np.testing.assert_allclose(Plane(g).flat.grid().reshape(-1, 2), g.grid().reshape(-1, 3)[:, kept])
    # The sign of the axes and their order are the image's own affair.
    for signs in ([-1, 1, 1], [1, -1, 1], [1, 1, -1], [-1, -1, -1]):
        g = grid(axis, np.diag(signs))
        np.testing.assert_allclose(Plane(g).flat.grid().reshape(-1, 2), g.grid().reshape(-1, 3)[:, kept])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_oblique_planes(axis: int) -> None:
    rng = np.random.default_rng(axis)
    for _ in range(20):
        direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        g = grid(axis, direction)
        plane = Plane(g)
        np.testing.assert_allclose(plane.frame.T @ plane.frame, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(plane.frame.T @ plane.normal, 0, atol=1e-12)
        np.testing.assert_allclose(plane.flat.grid().reshape(-1, 2), g.grid().reshape(-1, 3) @ plane.frame, atol=1e-9)
    # A slight tilt turns the coordinates as slightly.
    tilted = Plane(grid(2, turned(3, 1e-3))).frame
    assert np.abs(tilted - Plane(grid(2)).frame).max() < 2e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_there_and_back(axis: int) -> None:
    g = grid(axis)
    array = np.arange(30, dtype=np.float32).reshape(g.shape)
    flat = flattened(Volume(array, g, "image", "sitk", array.dtype))
    assert flat.plane is not None
    assert flat.array.shape == flat.geometry.shape
    np.testing.assert_array_equal(flat.plane.put_back(flat.array), array)
    colours = np.stack([flat.array, flat.array], -1)
    np.testing.assert_array_equal(flat.plane.put_back(colours), np.stack([array, array], -1))
    assert flattened(flat) is flat


def test_axial_files_stay_2d() -> None:
    assert not axes_leave_xy(np.diag([-2.0, 3.0, 1.0, 1.0]))
    assert not axes_leave_xy(np.zeros((4, 4)))
    assert axes_leave_xy(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
    tilt = np.eye(4)
    tilt[:3, :3] = turned(3, 0.01)
    assert axes_leave_xy(tilt)

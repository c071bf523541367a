"""The frame of the engine: one order of axes, whatever the order of storage, and the way back to LPS mm."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itk_nir.engine.frame import AxisOrder, Frame
from itk_nir.geometry import Geometry
from tests.grids import turned

Image = tuple[np.ndarray, Geometry]


def stored(image: Image, order: tuple[int, ...], flips: tuple[bool, ...]) -> Image:
    """The same voxels with axes in another order, some of them the other way round."""
    array, g = image
    d = g.dimension
    first = [g.size[k] - 1 if flip else 0 for k, flip in zip(order, flips, strict=True)]
    start = np.zeros(d)
    start[list(order)] = first
    array = array.transpose([d - 1 - order[d - 1 - k] for k in range(d)])
    array = np.flip(array, [d - 1 - k for k in range(d) if flips[k]])
    direction = g.rotation[:, list(order)] * [-1 if flip else 1 for flip in flips]
    geometry = Geometry.make(
        [g.size[k] for k in order], [g.spacing[k] for k in order], g.index_to_physical(start), direction
    )
    return array.copy(), geometry


def image(d: int, angle: float, tilt: float, origin: float = 12.3) -> Image:
    size, spacing = [5, 6, 7][:d], [0.9, 1.3, 2.1][:d]
    array = np.arange(np.prod(size), dtype=np.float32).reshape(size[::-1])
    return array, Geometry.make(size, spacing, [origin, -2 * origin, 0.7][:d], turned(d, angle, tilt))


STORAGES = {
    d: [(o, f) for o in permutations(range(d)) for f in product((False, True), repeat=d)] for d in (2, 3)
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    d=st.sampled_from((2, 3)),
    angle=st.one_of(st.floats(-3.2, 3.2), st.sampled_from((0.0, np.pi / 4, -np.pi / 4, np.pi / 2, np.pi))),
    tilt=st.one_of(st.floats(-3.2, 3.2), st.sampled_from((0.0, np.pi / 4, np.pi / 2))),
    mirrored=st.booleans(),
    number=st.integers(0, 47),
)
def test_every_storage_is_one_image(d: int, angle: float, tilt: float, mirrored: bool, number: int) -> None:
    """The same bits of array and grid, whatever the order of storage; voxels keep their places."""
    plain = image(d, angle, tilt)
    if mirrored:
        plain = (
            plain[0],
            Geometry.make(plain[1].size, plain[1].spacing, plain[1].origin, plain[1].rotation * [-1, *[1] * (d - 1)]),
        )
    other = stored(plain, *STORAGES[d][number % len(STORAGES[d])])
    seen = []
    for array, geometry in (plain, other):
        order, frame = AxisOrder.of(geometry), Frame.of(geometry)
        straight = order.geometry(geometry)
        assert order.canonical(array).shape == straight.shape
        assert order.stored_shape(straight.shape) == geometry.shape
        there = straight.index_to_physical(np.zeros(d))
        at = tuple(np.rint(geometry.physical_to_index(there)).astype(int)[::-1])
        assert order.canonical(array)[(0,) * d] == array[at], "the first voxel is where the grid says"
        assert AxisOrder.of(straight).is_identity
        assert np.trace(straight.rotation) >= np.trace(geometry.rotation) - 1e-5
        seen.append((order.canonical(array), frame.geometry))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]


@pytest.mark.parametrize("d", [2, 3])
def test_a_tensor_goes_back_to_every_storage(d: int) -> None:
    for order, flips in STORAGES[d]:
        array, geometry = stored(image(d, 0.1, 0.0), order, flips)
        vectors = np.stack([array, -array, 2 * array][:d], axis=-1)
        axes = AxisOrder.of(geometry)
        back = axes.stored(torch.from_numpy(axes.canonical(vectors).copy()))
        assert back.is_contiguous()
        np.testing.assert_array_equal(back.numpy(), vectors)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (0.001, 0.0), (1.0, 12345.678), (3.0, -777.7)])
def test_other_units_and_origins_are_one_frame(d: int, scale: float, shift: float) -> None:
    _, fixed = image(d, 0.3, 0.2)
    _, moving = image(d, -0.2, 0.1, 3.21)
    seen = []
    for by, add in ((1.0, 0.0), (scale, shift)):
        a, b = (
            Geometry.make(g.size, np.multiply(g.spacing, by), np.multiply(g.origin, by) + add, g.direction)
            for g in (fixed, moving)
        )
        frame = Frame.of(a)
        seen.append((frame.geometry, frame.placed(AxisOrder.of(b).geometry(b))))
        assert min(seen[-1][0].spacing) == 1
        # A voxel is where it was, but for the rounding of its origin.
        point = b.index_to_physical(np.arange(1.0, d + 1))
        order = AxisOrder.of(b)
        index = order.geometry(b).physical_to_index(point)
        gap = seen[-1][1].index_to_physical(index) - frame.points(point)
        assert np.abs(gap).max() <= 2.0**-14
        np.testing.assert_allclose(frame.physical(frame.points(point)), point, rtol=1e-12)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("d", [2, 3])
def test_linear_maps_there_and_back(d: int) -> None:
    frame = Frame.of(image(d, 0.4, 0.9)[1])
    matrix = np.eye(d + 1)
    matrix[:d, :d] = turned(d, 0.2) * 1.1
    matrix[:d, d] = 4.5
    inside = frame.matrix(matrix)
    points = np.random.default_rng(0).normal(0, 30, (20, d))
    mapped = frame.points(points) @ inside[:d, :d].T + inside[:d, d]
    np.testing.assert_allclose(frame.physical(mapped), points @ matrix[:d, :d].T + matrix[:d, d], atol=1e-10)
    np.testing.assert_allclose(frame.physical_matrix(inside), matrix, atol=1e-12)
    np.testing.assert_array_equal(frame.physical_matrix(np.eye(d + 1)), np.eye(d + 1))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_grids_are_stored_as_the_fixed_image_is(d: int, step: int) -> None:
    """Every node lies where the engine has it; a grid of all voxels is the fixed grid itself."""
    plain = image(d, 0.3, 0.2)
    for order, flips in STORAGES[d][::5]:
        _, geometry = stored(plain, order, flips)
        frame = Frame.of(geometry)
        if step == 1:
            assert frame.stored_grid([0] * d, frame.geometry.size, 1).same_grid(geometry, 1e-9)
        nodes = [n // step + 2 for n in frame.geometry.size]
        grid = frame.stored_grid([-1] * d, nodes, step)
        values = np.arange(np.prod(nodes)).reshape(nodes[::-1])
        kept = np.zeros(grid.shape, int)
        frame.axes.canonical(kept)[...] = values
        index = np.array([1, 0, 2][:d])  # a node, as the engine has it
        there = frame.physical(frame.geometry.index_to_physical((index - 1) * step))
        at = np.rint(grid.physical_to_index(there)).astype(int)
        np.testing.assert_allclose(grid.index_to_physical(at), there, atol=1e-3)
        assert kept[tuple(at[::-1])] == values[tuple(index[::-1])]


def test_plain_frame_changes_nothing() -> None:
    geometry = stored(image(3, 0.3, 0.2), (2, 0, 1), (True, False, True))[1]
    frame = Frame.plain(geometry)
    assert frame.geometry == geometry
    assert frame.axes.is_identity
    assert frame.stored_grid([0, 0, 0], geometry.size, 1) == geometry
    np.testing.assert_array_equal(frame.points([[1.0, 2.0, 3.0]]), [[1.0, 2.0, 3.0]])


def test_values_for_axes_follow_them() -> None:
    """The third axis as stored is the first one, and runs the other way."""
    geometry = stored(image(3, 0.0, 0.0), (1, 2, 0), (False, False, True))[1]
    order = AxisOrder.of(geometry)
    assert order.along(("y", "z", "x")) == ("x", "y", "z")
    assert order.flipped == (True, False, False)
    assert order.along(()) == ()
    assert AxisOrder.of(image(2, 0.0, 0.0)[1]).along((0, 1, 1)) == (0, 1, 1)

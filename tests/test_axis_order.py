"""A pair whose images are stored in another order of axes ends in the same map, whatever is asked for beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import itk_nir
from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.neural_field import load_field
from itk_nir.paper.samplers import SamplerConfig
from itk_nir.paper.settings import PaperPhase
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings
from itk_nir.transforms import DisplacementField
from tests.engine.test_frame import stored
from tests.grids import turned

Change = Callable[[np.ndarray, Geometry], Any]
FEW = make_settings("fast", iterations=2, linear_iterations=(4, 2), linear_start_iterations=2)
#: Of the published design.
PHASE = PaperPhase(
    FieldConfig(width=16, depth=1, frequencies=4, omega=5.0),
    SamplerConfig("downsize", stride=2),
    iterations=5,
    radius=2,
)
#: How the fixed and the moving image are stored in 2D.
FIXED, MOVING = ((1, 0), (True, False)), ((1, 0), (False, True))


@cache
def phantom() -> Phantom:
    """Turned a little, so that directions are no whole numbers."""
    return brain_phantom(2, (44, 52), seed=3)


def as_is(array: np.ndarray, geometry: Geometry) -> Any:
    return to_sitk(array, geometry)


def in_another_order(storage: Any) -> Change:
    return lambda array, geometry: to_sitk(*stored((array, geometry), *storage))


def bend(geometry: Geometry) -> DisplacementField:
    return DisplacementField(geometry, (1.5 * np.sin((geometry.grid() - geometry.centre) / 20)).astype(np.float32))


def inputs(what: str, f: Change, m: Change) -> dict[str, Any]:
    """The arguments of `register`, with the images of the fixed and moving side stored as `f` and `m` do."""
    p = phantom()
    g, h = p.geometry, p.moving_geometry
    turn = turned(2, 0.1)
    g = Geometry.make(g.size, g.spacing, turn @ g.origin + 5.0, turn)
    brain, theirs = ((a > 0).astype(np.uint8) for a in (p.fixed_labels, p.moving_labels))
    lesion = np.zeros_like(brain)
    lesion[20:26, 18:24] = 1
    points = g.index_to_physical([[12.0, 20.0], [30.0, 25.0], [22.0, 40.0], [20.0, 12.0], [27.0, 33.0]])
    out: dict[str, Any] = {"fixed": f(p.fixed, g), "moving": m(p.moving, h), "preset": FEW, "threads": 1}
    start = np.array([[1.02, 0.1, 1.0], [-0.05, 1, -2.0], [0, 0, 1.0]])
    more: dict[str, dict[str, Any]] = {
        "masks": {"fixed_mask": f(brain, g), "moving_mask": m(theirs, h)},
        "lesion": {"fixed_lesion": f(lesion, g)},
        "rigid region": {"rigid_regions": f(lesion, g), "linear": "none"},
        "labels": {
            "fixed_labels": f(p.fixed_labels.astype(np.int16), g),
            "moving_labels": m(p.moving_labels.astype(np.int16), h),
        },
        "landmarks": {"fixed_landmarks": points, "moving_landmarks": points + np.array([2.0, -1.0])},
        "linear start": {"initial_transform": start},
        "another start": {"initial_transform": bend(g)},
        "channels": {"fixed": [f(p.fixed, g), f(p.fixed**0.5, g)], "moving": [m(p.moving, h), m(p.moving**0.5, h)]},
        "search": {"search": "always"},
        "linear alone": {"deformable": False},
        "both directions, coarse grids": {"preset": make_settings(FEW, symmetric=True, field_spacing=3)},
        "paper": {"preset": make_settings("paper", phases=(PHASE,)), "linear": "none"},
    }
    for part in what.split(" and "):
        out |= more[part]
    return out


WHAT = (
    "masks and labels and landmarks", "lesion and channels and search", "rigid region", "linear start", "another start",
    "linear alone", "both directions, coarse grids", "paper",
)  # fmt: skip


# Two iterations do not go far.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", WHAT)
def test_the_same_map_and_images(what: str) -> None:
    plain = itk_nir.register(**inputs(what, as_is, as_is))
    other = itk_nir.register(**inputs(what, in_another_order(FIXED), in_another_order(MOVING)))
    points = plain.fixed.geometry.grid().reshape(-1, 2)
    if what != "linear start":
        assert np.linalg.norm(plain.transform_points(points) - points, axis=1).max() > 0.1
    np.testing.assert_allclose(other.transform_points(points), plain.transform_points(points), atol=1e-9)
    np.testing.assert_allclose(other.mapping.map(points), plain.mapping.map(points), atol=1e-5)
    back = plain.transform_points(points)
    np.testing.assert_allclose(other.transform_points(back, True), plain.transform_points(back, True), atol=1e-4)
    assert other.report.similarity == pytest.approx(plain.report.similarity, abs=1e-6)
    # What comes back lies as the fixed image came.
    assert other.fixed.geometry.shape == other.warped_array.shape == other.jacobian_array.shape
    for name in ("warped_array", "jacobian_array"):
        there = stored((getattr(plain, name), plain.fixed.geometry), *FIXED)[0]
        np.testing.assert_allclose(getattr(other, name), there, atol=0.02, err_msg=name)
    np.testing.assert_allclose(other.warped.GetDirection(), other.fixed.geometry.rotation.ravel(), atol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_axes_of_a_restriction_are_those_that_are_stored(tmp_path: Any) -> None:
    """The second axis as stored, which is the first of the engine: nothing moves along it, in the map and its file."""
    given = inputs("search", in_another_order(FIXED), in_another_order(MOVING)) | {"restrict": (1, 0)}
    result = itk_nir.register(**given)
    points = result.fixed.geometry.grid().reshape(-1, 2)
    kept = load_field(result.save_field(tmp_path / "f.safetensors"))
    for moved in (result.transform_points(points), kept.map(points), result.mapping.map(points)):
        along = (moved - points) @ result.fixed.geometry.rotation
        assert np.abs(along[:, 1]).max() < 1e-5
        assert np.abs(along[:, 0]).max() > 0.3
    assert result.report.settings["deformable"]["restrict"] == [1, 0], "what the user gave is told"
    np.testing.assert_array_equal(kept.map(points), result.transform_points(points))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_callback_is_told_of_physical_points() -> None:
    """The last map that it is told is nearly the result, wherever the images lie and in whatever unit."""
    told: list[np.ndarray] = []
    given = inputs("search", in_another_order(FIXED), in_another_order(MOVING))
    for image in (given["fixed"], given["moving"]):
        image.SetOrigin([1000 * x + 5000 for x in image.GetOrigin()])
        image.SetSpacing([1000 * x for x in image.GetSpacing()])

    def see(progress: Any) -> None:
        if progress.mapping is not None:
            told.append(progress.mapping(points))

    size, origin = given["fixed"].GetSize(), np.array(given["fixed"].GetOrigin())
    rotation = np.array(given["fixed"].GetDirection()).reshape(2, 2) * given["fixed"].GetSpacing()
    x, y = (k.ravel() for k in np.meshgrid(*(np.arange(n) for n in size)))
    points = origin + np.stack([x, y], -1) @ rotation.T
    result = itk_nir.register(**given, callback=see)
    apart = np.linalg.norm(told[-1] - result.transform_points(points), axis=1)
    assert np.linalg.norm(result.transform_points(points) - points, axis=1).max() > 1000
    assert apart.max() < 0.7 * min(given["fixed"].GetSpacing()), "one step of the optimiser"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_turns_about_an_axis_that_is_stored_as_another() -> None:
    """`linear_rotations` names the axes of the fixed image as they are stored: the first is z here."""
    p = brain_phantom(3, (20, 24, 20), seed=1)
    fixed = to_sitk(*stored((p.fixed, p.geometry), (2, 0, 1), (False, True, False)))
    turn = turned(3, 0.15, 0.0)
    tilted = Geometry.make(p.geometry.size, p.geometry.spacing, turn @ p.geometry.origin, turn)
    found = []
    for axes in ((1, 0, 0), (0, 1, 0)):
        preset = make_settings(
            "fast", linear_rotations=axes, linear_iterations=(8, 2), linear_start_iterations=3, linear_turned_starts=0
        )
        result = itk_nir.register(
            fixed, to_sitk(p.fixed, tilted), preset=preset, linear="rigid", deformable=False, threads=1
        )
        found.append(result.affine.matrix[:3, :3])
    np.testing.assert_allclose(found[0], turn, atol=0.02)
    np.testing.assert_allclose(found[1][:, 0], [1, 0, 0], atol=1e-6)

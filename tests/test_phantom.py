from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from itk_nir.geometry import Geometry
from itk_nir.phantom import LABELS, Phantom, brain_phantom


def jacobian_determinant(phantom: Phantom) -> np.ndarray:
    """Of ``id + u`` by central differences along the image axes, whatever their direction."""
    geometry = phantom.geometry
    d = geometry.dimension
    gradients = np.gradient(phantom.displacement.astype(float), axis=tuple(range(d)))
    by_index = np.stack(gradients[::-1], -1)  # [..., component, index axis]
    by_physical = by_index @ np.linalg.inv(geometry.matrix[:-1, :-1])
    return np.linalg.det(np.eye(d) + by_physical)


def through_truth(phantom: Phantom, array: np.ndarray, order: int) -> np.ndarray:
    """A moving array seen from the fixed grid through the true displacement."""
    points = phantom.geometry.grid() + phantom.displacement
    index = phantom.moving_geometry.physical_to_index(points)
    return map_coordinates(array.astype(float), np.moveaxis(index[..., ::-1], -1, 0), order=order)


def dice(a: np.ndarray, b: np.ndarray, label: int) -> float:
    return float(2 * np.sum((a == label) & (b == label)) / (np.sum(a == label) + np.sum(b == label)))


def test_shapes_types_and_labels(phantom_2d: Phantom, phantom_3d: Phantom) -> None:
    for phantom, shape in ((phantom_2d, (96, 80)), (phantom_3d, (54, 64, 54))):
        assert phantom.geometry.shape == shape
        for image in (phantom.fixed, phantom.moving):
            assert image.shape == shape
            assert image.dtype == np.float32
        assert phantom.fixed_labels.dtype == np.uint8
        assert phantom.displacement.shape == (*shape, len(shape))
        assert phantom.displacement.dtype == np.float32
    assert set(np.unique(phantom_3d.moving_labels)) == {0, *LABELS.values()}


def test_tissue_volumes_are_those_of_a_brain(phantom_3d: Phantom) -> None:
    litres = {
        name: np.sum(phantom_3d.moving_labels == value) * phantom_3d.geometry.voxel_volume / 1e6
        for name, value in LABELS.items()
    }
    assert 0.35 < litres["cortex"] < 0.7
    assert 0.35 < litres["white matter"] < 0.7
    assert 0.008 < litres["ventricle"] < 0.05
    assert 0.08 < litres["cerebellar cortex"] + litres["cerebellar white matter"] < 0.2
    t1 = {name: phantom_3d.moving[phantom_3d.moving_labels == value].mean() for name, value in LABELS.items()}
    assert t1["ventricle"] < t1["csf"] < t1["cortex"] < t1["thalamus"] < t1["white matter"]


def test_same_seed_same_bits_other_seed_other_brain(phantom_2d: Phantom) -> None:
    again, other = brain_phantom(2, (80, 96)), brain_phantom(2, (80, 96), seed=1)
    for name in ("fixed", "moving", "fixed_labels", "moving_labels", "displacement"):
        assert np.array_equal(getattr(phantom_2d, name), getattr(again, name))
        assert not np.array_equal(getattr(phantom_2d, name), getattr(other, name))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_deformation_is_a_diffeomorphism_of_the_stated_size(seed: int) -> None:
    phantom = brain_phantom(2, (80, 96), seed, deformation=9.0)
    assert jacobian_determinant(phantom).min() > 0.2
    length = np.linalg.norm(phantom.displacement, axis=-1)
    assert 4.0 < length[phantom.fixed_labels > 0].max() < 9.5


@pytest.mark.slow
def test_moving_seen_through_the_truth_is_fixed() -> None:
    phantom = brain_phantom(3, (80, 96, 80), noise=0, bias=0)
    brain = phantom.fixed_labels > 0
    before = np.abs(phantom.moving - phantom.fixed)[brain].mean()
    after = np.abs(through_truth(phantom, phantom.moving, 1) - phantom.fixed)[brain].mean()
    assert after < 0.3 * before
    labels = through_truth(phantom, phantom.moving_labels, 0)
    for name in ("white matter", "ventricle", "thalamus", "putamen", "brainstem"):
        found = dice(labels, phantom.fixed_labels, LABELS[name])
        assert found > 0.88
        assert found > dice(phantom.moving_labels, phantom.fixed_labels, LABELS[name]) + 0.1


def test_no_deformation_gives_equal_anatomy() -> None:
    phantom = brain_phantom(2, (80, 96), deformation=0, noise=0, bias=0)
    assert np.array_equal(phantom.fixed, phantom.moving)
    assert not phantom.displacement.any()


@pytest.mark.slow
def test_oblique_and_anisotropic_grids_show_the_same_brain() -> None:
    angle = 0.3
    turned = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    plain = brain_phantom(3, spacing=3.0, noise=0, bias=0)
    shift = np.array([40.0, -25.0, 10.0])
    oblique = Geometry.make((60, 58, 44), (2.8, 3.6, 3.7), direction=turned)
    oblique = Geometry.make(oblique.size, oblique.spacing, shift - oblique.centre, turned)
    other = brain_phantom(3, geometry=oblique, moving_geometry=plain.geometry, noise=0, bias=0)
    # The same displacement, in LPS mm, at the same place of the head.
    index = plain.geometry.physical_to_index(oblique.grid() - oblique.centre + plain.geometry.centre)
    inside = np.all((index >= 1) & (index <= np.array(plain.geometry.size) - 2), axis=-1)
    for c in range(3):
        expected = map_coordinates(plain.displacement[..., c], index[inside][:, ::-1].T, order=3)
        assert np.abs(other.displacement[inside][:, c] - expected).max() < 0.15
    assert jacobian_determinant(other).min() > 0.2


def test_grids_that_differ_between_fixed_and_moving() -> None:
    moving_geometry = Geometry.make((110, 120), (1.5, 1.7), (-82.0, -101.0))
    phantom = brain_phantom(2, (80, 96), moving_geometry=moving_geometry, noise=0, bias=0)
    assert phantom.moving.shape == (120, 110)
    brain = phantom.fixed_labels > 0
    seen = through_truth(phantom, phantom.moving, 1)
    assert np.corrcoef(seen[brain], phantom.fixed[brain])[0, 1] > 0.95


@pytest.mark.parametrize(
    "arguments",
    [
        {"dimension": 4},
        {"dimension": 2, "deformation": -1.0},
        {"dimension": 2, "wavelength": 0.0},
        {"dimension": 3, "geometry": Geometry.make((8, 8))},
        {"dimension": 2, "geometry": Geometry.make((8, 8)), "spacing": 2.0},
    ],
)
def test_arguments_that_make_no_sense(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"got|either"):
        brain_phantom(**arguments)

"""Odd intensities: what is told, and what is left as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, background_value, load_image
from itk_nir.images.missing import without_missing
from itk_nir.intensities import for_registration, hot_voxels, odd_intensities, without_missing_voxels
from itk_nir.phantom import Phantom


def volume(array: np.ndarray) -> Volume:
    return Volume(array, Geometry.make(array.shape[::-1]), "image", "sitk", array.dtype)


def test_ordinary_images_are_left_alone(phantom_2d: Phantom, phantom_3d: Phantom) -> None:
    for phantom in (phantom_2d, phantom_3d):
        for array in (phantom.fixed, phantom.moving):
            image = volume(array)
            assert for_registration(image) is image
            assert odd_intensities(image) == []


def test_real_images_have_no_hot_voxels(data: Path) -> None:
    for name in (
        "lung_ct/fixed.nii.gz",
        "slices_2d/r16.nii.gz",
        "hands_xray/hand1.nii.gz",
        "brain_oasis/fixed_t1.nii.gz",
    ):
        if (data / name).exists():
            assert hot_voxels(load_image(data / name, name).array) is None, name


def test_hot_voxels_become_the_median_of_their_neighbours(phantom_3d: Phantom) -> None:
    image = phantom_3d.fixed.copy()
    places = [(10, 20, 30), (0, 0, 0), (30, 30, 30), (30, 30, 31)]
    for k, at in enumerate(places):
        image[at] = (-1) ** k * 1e6
    hot = hot_voxels(image)
    assert hot is not None
    assert {tuple(int(k) for k in at) for at in np.argwhere(hot)} == set(places)
    mended = for_registration(volume(image)).array
    np.testing.assert_array_equal(mended[~hot], image[~hot])
    near = phantom_3d.fixed[9:12, 19:22, 29:32].copy()
    near[1, 1, 1] = np.nan
    assert mended[10, 20, 30] == pytest.approx(np.nanmedian(near))


def test_bright_structures_are_no_hot_voxels(phantom_2d: Phantom) -> None:
    image = phantom_2d.fixed.copy()
    image[20:32, 30:42] = 100 * image.max()
    assert hot_voxels(image) is None


def test_missing_values() -> None:
    array = np.arange(48, dtype=np.float32).reshape(6, 8)
    array[:2] = np.nan
    image = without_missing(volume(array), "mask")
    assert image.missing is not None
    assert image.missing.sum() == 16
    assert (image.array[:2] == 16).all()
    with pytest.raises(InputError, match=r"has 16 NaN or infinite voxels.*nan='mask'"):
        without_missing(volume(array))
    mask = without_missing_voxels(None, image)
    assert mask is not None
    np.testing.assert_array_equal(mask.array, (~image.missing).astype(np.float32))
    lower = volume(np.pad(np.ones((2, 8), np.float32), ((0, 4), (0, 0))))
    with pytest.raises(InputError, match="has no value inside its mask"):
        without_missing_voxels(lower, image)


def test_background() -> None:
    image = np.full((20, 20), -1000.0)
    image[5:15, 5:15] = 50
    assert background_value(image) == -1000
    assert background_value(image[4:16, 5:15]) == -1000
    noise = np.random.default_rng(0).normal(0, 3, image.shape)
    assert abs(background_value(image + noise) + 1000) < 2
    ramp = np.arange(400.0).reshape(20, 20)
    assert background_value(ramp) == 0
    assert background_value(255 - image) == 1255

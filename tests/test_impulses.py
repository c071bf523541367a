"""Impulse noise: found where it is, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.images import load_channels, to_sitk
from itk_nir.impulses import impulses, mended
from itk_nir.intensities import for_registration, odd_intensities
from itk_nir.phantom import Phantom


def salted(array: np.ndarray, share: float, both: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """An image with a share of its voxels white (half of them black), and which."""
    rng = np.random.default_rng(0)
    wrong = rng.random(array.shape) < share
    out = array.astype(np.float32)
    out[wrong] = array.max()
    if both:
        out[wrong & (rng.random(array.shape) < 0.5)] = array.min()
    return out, wrong


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("both", [False, True])
def test_impulses_become_the_median_of_their_neighbours(phantom_3d: Phantom, share: float, both: bool) -> None:
    clean = phantom_3d.moving
    noisy, wrong = salted(clean, share, both)
    image, count = mended(noisy)
    spread = float(np.ptp(clean))
    far = np.abs(noisy - clean) > 0.5 * spread
    far[[0, -1]] = far[:, [0, -1]] = far[:, :, [0, -1]] = False  # the outermost voxels are not looked at
    assert np.count_nonzero(np.abs(image - clean)[far] > 0.3 * spread) < 0.08 * far.sum()
    assert np.count_nonzero((image != noisy) & ~wrong) < 5e-4 * clean.size
    assert count >= np.count_nonzero((image != noisy) & wrong) > 0.9 * far.sum()


def test_what_belongs_to_an_image_is_no_impulse(phantom_2d: Phantom, phantom_3d: Phantom) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(phantom_3d.fixed.shape).astype(np.float32)
    vessels = phantom_3d.fixed.copy()
    for k in range(12):
        at = np.arange(6, 40)
        vessels[at, at // 2 + k, 40 - at // 2] = vessels.max()  # thin, oblique
    counts = np.where(rng.random(phantom_3d.fixed.shape) < 0.01, np.float32(1), np.float32(0))
    for array in (
        phantom_2d.fixed, phantom_3d.fixed, phantom_3d.moving, phantom_3d.fixed_labels.astype(np.float32), vessels,
        phantom_3d.fixed + 8 * noise, noise, np.exp(2 * noise), counts, counts + 0.01 * noise, np.zeros_like(noise),
        phantom_3d.fixed[:1], phantom_3d.fixed[:1, :1],
    ):  # fmt: skip
        assert mended(array)[0] is array
        assert impulses(array).size == 0


def test_real_images_have_no_impulses(data: Path) -> None:
    found = [p for pattern in ("*/*.nii.gz", "*/*.mha", "*/*.jpg") for p in sorted(data.glob(pattern))]
    for path in found[::4]:
        if "mask" not in path.name:
            for volume in load_channels(path, path.name):
                assert impulses(volume.array).size == 0, path


def test_a_noisy_image_is_registered_as_the_clean_one(phantom_2d: Phantom) -> None:
    fixed = to_sitk(phantom_2d.fixed, phantom_2d.geometry)
    noisy = to_sitk(salted(phantom_2d.moving, 0.01)[0], phantom_2d.geometry)
    with pytest.warns(UserWarning, match="moving image: has impulse noise"):
        result = itk_nir.register(fixed, noisy, preset="fast", linear="none")
    clean = itk_nir.register(
        fixed, to_sitk(phantom_2d.moving, phantom_2d.geometry), preset="fast", linear="none"
    )  # fmt: skip
    inside = phantom_2d.fixed_labels > 0

    def error(of: itk_nir.RegistrationResult) -> float:
        grid = phantom_2d.geometry
        index = np.argwhere(inside)[:, ::-1]
        points = grid.index_to_physical(index.astype(float))
        truth = points + phantom_2d.displacement[inside]
        return float(np.linalg.norm(of.mapping.map(points) - truth, axis=1).mean())

    assert error(result) < error(clean) + 0.05
    # What is written keeps the noise: white voxels, more than the clean image has.
    white = [int((sitk.GetArrayFromImage(r.warped) > 0.8 * phantom_2d.moving.max()).sum()) for r in (result, clean)]
    assert white[0] > white[1]


def test_impulses_are_told_of_each_image(phantom_3d: Phantom) -> None:
    image = load_channels(to_sitk(salted(phantom_3d.fixed, 0.01)[0], phantom_3d.geometry), "fixed image")[0]
    (found,) = odd_intensities(image)
    assert "has impulse noise" in found.text
    assert found.values["share"] == pytest.approx(0.01, abs=0.003)
    assert for_registration(image).array is not image.array

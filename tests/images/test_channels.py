"""Images of several channels: a list of images, or an image with several values a pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.images.channels import load_channels
from itk_nir.phantom import Phantom, brain_phantom
from tests.grids import turned

GRID = Geometry.make((7, 5), (1.5, 2.0), (10.0, -4.0), turned(2, 0.3))
#: A registration that is over soon.
SOON: dict[str, Any] = {"preset": "fast", "iterations": 4, "threads": 1, "device": "cpu"}


def values(count: int) -> np.ndarray:
    """``(count, 5, 7)``, everywhere different."""
    return np.arange(count * 35, dtype=np.float32).reshape(count, 5, 7) ** 1.1


def sitk_vectors(count: int, geometry: Geometry = GRID) -> sitk.Image:
    return sitk.Compose([to_sitk(v, geometry) for v in values(count)])


def itk_vectors(count: int) -> Any:
    image = itk.image_from_array(np.ascontiguousarray(np.moveaxis(values(count), 0, -1)), is_vector=True)
    image.SetSpacing(GRID.spacing)
    image.SetOrigin(GRID.origin)
    image.SetDirection(itk.matrix_from_array(GRID.rotation))
    return image


def check(image: Any, count: int) -> None:
    channels = load_channels(image, "fixed image")
    assert len(channels) == count
    for volume, wanted in zip(channels, values(count), strict=True):
        np.testing.assert_allclose(volume.array, wanted)
        assert volume.geometry.same_grid(GRID)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_list_of_images(tmp_path: Path, count: int) -> None:
    images: list[Any] = [to_sitk(v, GRID) for v in values(count)]
    check(images, count)
    images[0] = str(tmp_path / "a.mha")
    sitk.WriteImage(to_sitk(values(count)[0], GRID), images[0])
    check(tuple(images), count)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_values_a_pixel(tmp_path: Path, count: int) -> None:
    check(sitk_vectors(count), count)
    check(itk_vectors(count), count)
    path = tmp_path / "vectors.nrrd"
    sitk.WriteImage(sitk_vectors(count), str(path))
    check(path, count)


def test_part_of_an_itk_vector_image_stays_in_its_place() -> None:
    """As after a crop: the first voxel is not that of the origin."""
    part = itk_vectors(2)
    region = itk.ImageRegion[2]([2, 1], part.GetBufferedRegion().GetSize())
    part.SetRegions(region)
    channels = load_channels(part, "fixed image")
    assert len(channels) == 2
    for volume, wanted in zip(channels, values(2), strict=True):
        np.testing.assert_allclose(volume.array, wanted)
        assert volume.geometry.same_grid(replace(GRID, origin=tuple(GRID.index_to_physical([[2.0, 1.0]])[0])))
        assert not volume.geometry.same_grid(GRID)


def test_image_of_one_value_a_pixel() -> None:
    check(to_sitk(values(1)[0], GRID), 1)


def test_colour_picture(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    path = tmp_path / "colour.png"
    sitk.WriteImage(sitk.GetImageFromArray(rgb, isVector=True), str(path))
    channels = load_channels(str(path), "fixed image")
    np.testing.assert_array_equal(np.stack([c.array for c in channels], -1), rgb)
    assert {c.kind for c in channels} == {"path"}


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_empty_list() -> None:
    with pytest.raises(InputError, match="moving image: an empty list"):
        load_channels([], "moving image")


def test_channels_on_unlike_grids() -> None:
    other = Geometry.make(GRID.size, GRID.spacing, (11.0, -4.0), GRID.rotation)
    with pytest.raises(InputError, match="lies on another grid"):
        load_channels([to_sitk(values(2)[0], GRID), to_sitk(values(2)[1], other)], "fixed image")


def test_channel_that_is_no_image_is_named() -> None:
    with pytest.raises(InputError, match="fixed image, channel 2"):
        load_channels([to_sitk(values(1)[0], GRID), np.zeros((5, 7))], "fixed image")


@pytest.fixture(scope="module")
def small() -> Phantom:
    return brain_phantom(2, (56, 64))


def channels_of(p: Phantom) -> tuple[list[Any], list[Any]]:
    """Two contrasts of the phantom."""
    return tuple([to_sitk(a, p.geometry), to_sitk(np.sqrt(np.abs(a)), p.geometry)] for a in (p.fixed, p.moving))  # type: ignore[return-value]


def test_unlike_numbers_of_channels(small: Phantom) -> None:
    fixed, moving = channels_of(small)
    with pytest.raises(InputError, match="the fixed image has 2 channels and the moving image 1"):
        itk_nir.register(fixed, moving[0], **SOON)


def test_preset_paper_has_one_channel(small: Phantom) -> None:
    fixed, moving = channels_of(small)
    with pytest.raises(OptionError, match="'paper' registers one channel, got 2"):
        itk_nir.register(fixed, moving, preset="paper")


@pytest.mark.parametrize("options", [{"channel_weights": (1.0, 2.0, 3.0)}, {"metric": ("lncc", "nmi", "mse")}])
def test_options_for_another_number_of_channels(small: Phantom, options: dict[str, Any]) -> None:
    fixed, moving = channels_of(small)
    with pytest.raises(OptionError):
        itk_nir.register(fixed, moving, **SOON, **options)


# --- in a registration -----------------------------------------------------------------------------------------------


def test_two_channels_are_registered(small: Phantom) -> None:
    fixed, moving = channels_of(small)
    result = itk_nir.register(fixed, moving, **SOON, metric=("lncc", "nmi"), channel_weights=(1.0, 0.5))
    report = result.report
    assert report.metric == "lncc, nmi"
    assert report.similarity is not None
    assert report.similarity_start is not None
    assert report.similarity > report.similarity_start
    # What is warped is the first channel.
    np.testing.assert_allclose(
        result.warped_array, sitk.GetArrayFromImage(itk_nir.apply(moving[0], result, fixed[0])), atol=1e-3
    )


def test_second_channel_counts(small: Phantom) -> None:
    """The first shows nothing that moves; the second does."""
    fixed, moving = channels_of(small)
    still = [fixed[0], moving[1]]
    found = [
        itk_nir.register(
            [fixed[0], fixed[1]], still, linear="none", **SOON, channel_weights=weights
        ).displacement.vectors
        for weights in ((1.0, 0.0001), (0.0001, 1.0))
    ]
    lengths = [float(np.linalg.norm(u, axis=-1).mean()) for u in found]
    assert lengths[1] > 3 * lengths[0]


def test_weights_hold_for_both_stages_whoever_picks_the_metric(small: Phantom) -> None:
    fixed, moving = channels_of(small)
    maps = [
        itk_nir.register(
            fixed, moving, **SOON, linear="affine", deformable=False, metric=metric, channel_weights=weights
        ).report
        for metric, weights in (("auto", (1.0, 0.01)), ("lncc", (1.0, 0.01)), ("lncc", (1.0, 1.0)))
    ]
    assert maps[0].metric == "lncc"
    assert maps[0].affine_matrix == maps[1].affine_matrix
    assert maps[1].affine_matrix != maps[2].affine_matrix


def test_equal_channels_are_one(small: Phantom) -> None:
    fixed, moving = (to_sitk(a, small.geometry) for a in (small.fixed, small.moving))
    # Two channels are twice the evidence: under half the penalty they are one.
    one = itk_nir.register(fixed, moving, smoothness=0.5, **SOON)
    two = itk_nir.register([fixed, fixed], [moving, moving], smoothness=1.0, **SOON)
    np.testing.assert_allclose(two.displacement.vectors, one.displacement.vectors, atol=0.05)
    assert two.report.similarity == pytest.approx(one.report.similarity, abs=1e-3)

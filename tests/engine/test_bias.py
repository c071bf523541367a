"""Smooth factors between images of one contrast, and over images of unlike ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

import itk_nir
from itk_nir.engine.bias import Bias, believed_biases, biases_between, without_biases, without_trends
from itk_nir.engine.shades import shades_between
from itk_nir.geometry import Geometry
from itk_nir.phantom import Phantom, brain_phantom
from tests.engine.pairs import pair_of, unlike

Array = np.ndarray
BOTH = pytest.mark.parametrize("d", [2, 3])
#: What is told of them.
TOLD = "times as bright at one place as at another"
#: Voxels of the images with organs, and of their side that they lie within.
SIZE = 96
GRID = Geometry.make((SIZE, SIZE))


@pytest.fixture(scope="module")
def brains() -> dict[int, Phantom]:
    return {2: brain_phantom(2, (80, 96)), 3: brain_phantom(3, (44, 52, 44))}


def shaded(image: Array, strength: float, seed: int) -> Array:
    """An image with a smooth factor, the standard deviation of whose logarithm is `strength`."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(image.shape), image.shape[0] / 4, mode="wrap")
    return np.asarray(image * np.exp(strength * (field - field.mean()) / field.std()), np.float32)


def organs(seed: int) -> tuple[Array, Array, Array]:
    """Fixed and moving image of an object with parts of even brightness, and the true displacement in pixels, y and x
    first."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    object_ = np.hypot(x / 39, y / 30) < 1
    image = 100.0 * object_
    for _ in range(9):
        angle, far, radius, long = rng.uniform(0, 6.28), rng.uniform(0, 0.7), rng.uniform(3, 10), rng.uniform(0.7, 1.4)
        part = np.hypot((x - 39 * far * np.cos(angle)) / long, (y - 30 * far * np.sin(angle)) * long) < radius
        image[part & object_] = rng.uniform(40, 220)
    moving = gaussian_filter(image, 0.8)
    u = np.stack([gaussian_filter(rng.standard_normal(image.shape), 10, mode="wrap") for _ in range(2)])
    u *= 3 / np.abs(u).max()
    return map_coordinates(moving, np.indices(moving.shape) + u, order=1), moving, u


def error(result: Any, u: Array, fixed: Array) -> float:
    """The mean distance from the truth in the object, pixels."""
    where = np.argwhere(fixed > 20)
    mapped = result.transform_points(where[:, ::-1].astype(float))[:, ::-1]
    return float(np.linalg.norm(mapped - where - u[:, fixed > 20].T, axis=1).mean())


@BOTH
def test_factor_is_found_and_divided_out(brains: dict[int, Phantom], d: int) -> None:
    p = brains[d]
    shade = shaded(np.ones_like(p.fixed), 0.4, 5)
    pair = pair_of(p.fixed * shade, gaussian_filter(p.fixed, 0.5), p.geometry)
    (bias,) = biases_between(pair)
    assert bias is not None
    assert bias.believed
    even = without_biases(pair, (bias,)).fixed.numpy().reshape(p.fixed.shape)
    inside = p.fixed > 60
    assert np.log(even[inside] / p.fixed[inside]).std() < 0.25 * np.log(shade[inside]).std()


@BOTH
@pytest.mark.parametrize("change", [lambda x: x, unlike, lambda x: 220 - x], ids=["same", "unlike", "inverted"])
def test_what_moved_and_what_contrasts_differ_by_is_no_factor(brains: dict[int, Phantom], d: int, change: Any) -> None:
    p = brains[d]
    pair = pair_of(p.fixed, change(p.moving), p.geometry)
    assert biases_between(pair) == ()
    assert without_biases(pair, ()) is pair


def believed(fixed: Array, moving: Array) -> tuple[Bias | None, ...]:
    """The factors between two images on one grid that are believed."""
    pair = pair_of(fixed, moving, Geometry.make(fixed.shape[::-1]))
    return believed_biases(pair, biases_between(pair))


def test_unlike_contrasts_have_none_in_common(brains: dict[int, Phantom]) -> None:
    p = brains[2]
    assert believed(shaded(p.fixed, 0.5, 5), unlike(p.moving)) == ()
    assert believed(shaded(p.fixed, 0.5, 5), p.moving) != ()


def clouds(seed: int, sigma: float = 14, log: float = 0.5) -> Array:
    """A round object of smoothly varying brightness."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    varying = gaussian_filter(np.random.default_rng(seed).standard_normal(x.shape), sigma, mode="wrap")
    return 100 * gaussian_filter((np.hypot(x, y) < 36) * 1.0, 1) * np.exp(log * varying / varying.std())


def test_smooth_images_of_unlike_things_have_no_factor() -> None:
    one, two = clouds(0), clouds(50)
    (found,) = biases_between(pair_of(one, two, GRID))
    assert found is not None
    assert found.explained > 0.9
    assert not found.agrees
    assert believed(one, two) == ()


@pytest.mark.parametrize("seed", [2, 3])
def test_smooth_images_that_lie_apart_have_no_factor(seed: int) -> None:
    moving = clouds(seed, log=1.0)
    rng = np.random.default_rng(seed + 1)
    u = np.stack([gaussian_filter(rng.standard_normal(moving.shape), 12) for _ in range(2)])
    fixed = map_coordinates(moving, np.indices(moving.shape) + 7 * u / np.abs(u).max(), order=1)
    assert biases_between(pair_of(fixed, moving, GRID)) == ()


def test_organ_that_is_brighter_has_no_factor() -> None:
    fixed, moving, _ = organs(0)
    y, x = np.indices(fixed.shape)
    enhanced = np.where(np.hypot(y - 60, x - 40) < 18, 2.2, 1.0) * fixed
    assert biases_between(pair_of(enhanced, moving, GRID)) == ()


def test_bright_background_is_no_place_for_a_factor(brains: dict[int, Phantom]) -> None:
    p = brains[2]
    assert biases_between(pair_of(255 - shaded(p.fixed, 0.4, 5), 255 - p.moving, p.geometry)) == ()


def test_each_channel_has_its_own_factor(brains: dict[int, Phantom]) -> None:
    p = brains[2]
    pair = pair_of(p.fixed, p.moving, p.geometry, (shaded(p.fixed, 0.4, 5), p.moving))
    first, second = biases_between(pair)
    assert first is None
    assert second is not None
    even = without_biases(pair, (first, second))
    assert even.fixed is pair.fixed
    assert not torch.equal(even.more[0].fixed, pair.more[0].fixed)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volumes_of_one_slice_are_planes(axis: int) -> None:
    p = brain_phantom(2, (80, 96))
    fixed, moving = (np.expand_dims(image, axis) for image in (shaded(p.fixed, 0.4, 5), p.moving))
    pair = pair_of(fixed, moving, Geometry.make(fixed.shape[::-1]))
    (bias,) = biases_between(pair)
    assert bias is not None
    assert bias.believed


def test_factor_is_the_same_after_a_checkpoint(brains: dict[int, Phantom]) -> None:
    p = brains[2]
    pair = pair_of(shaded(p.fixed, 0.4, 5), p.moving, p.geometry)
    (bias,) = biases_between(pair)
    assert bias is not None
    again = Bias.of_values(json.loads(json.dumps(bias.as_values())))
    assert torch.equal(without_biases(pair, (again,)).fixed, without_biases(pair, (bias,)).fixed)


def test_images_without_trends_hardly_show_their_shades(brains: dict[int, Phantom]) -> None:
    p = brains[2]
    flat = without_trends(pair_of(shaded(p.fixed, 0.4, 5), p.fixed, p.geometry))
    ratio = (flat.fixed / flat.moving).numpy()[0][p.fixed > 60]
    assert np.log(ratio).std() < 0.1
    dark = pair_of(np.zeros_like(p.fixed), p.moving, p.geometry)
    assert without_trends(dark).fixed is dark.fixed


@pytest.mark.parametrize("metric", ["auto", "lncc"])
def test_shaded_images_are_registered_as_well_as_even_ones(metric: str) -> None:
    fixed, moving, u = organs(0)
    call: dict[str, Any] = {"preset": "fast", "linear": "translation", "threads": 1, "metric": metric}
    even = error(itk_nir.register((fixed, GRID), (moving, GRID), **call), u, fixed)
    with pytest.warns(UserWarning, match=TOLD):
        found = itk_nir.register((shaded(fixed, 0.5, 5), GRID), (shaded(moving, 0.5, 11), GRID), **call)
    assert found.report.metric == "lncc"
    assert found.report.verdict.grade == "good"
    assert error(found, u, fixed) < even + 0.15
    assert sum(TOLD in note for note in found.report.warnings) == 1


def contrasts(brains: dict[int, Phantom], d: int) -> tuple[Array, Array, Geometry]:
    """Two unlike contrasts of one thing, a little apart."""
    if d == 2:
        fixed, moving, _ = organs(0)
        return fixed, unlike(moving), GRID
    return brains[3].fixed, unlike(brains[3].moving), brains[3].geometry


@BOTH
@pytest.mark.parametrize("which", ["fixed", "moving", "both"])
def test_factors_over_unlike_contrasts_are_found_and_divided_out(
    brains: dict[int, Phantom], d: int, which: str
) -> None:
    fixed, moving, geometry = contrasts(brains, d)
    shades = [
        shaded(np.ones_like(image), 0.4, seed) if which in (name, "both") else np.ones_like(image)
        for name, image, seed in (("fixed", fixed, 5), ("moving", moving, 11))
    ]
    pair = pair_of(fixed * shades[0], moving * shades[1], geometry)
    found = shades_between(pair)
    assert [bias is not None for bias in found] == [which in ("fixed", "both"), which in ("moving", "both")]
    even = without_biases(pair, found)
    for ours, theirs, shade in zip((even.fixed, even.moving), (fixed, moving), shades, strict=True):
        inside = theirs > 60
        left = np.log(ours.numpy().reshape(theirs.shape)[inside] / theirs[inside]).std()
        assert left <= 0.6 * np.log(shade[inside]).std() + 1e-5


@BOTH
def test_unlike_contrasts_without_factors_have_none(brains: dict[int, Phantom], d: int) -> None:
    fixed, moving, geometry = contrasts(brains, d)
    assert shades_between(pair_of(fixed, moving, geometry)) == ()
    assert shades_between(pair_of(moving, fixed, geometry)) == ()
    assert shades_between(pair_of(255 - fixed, shaded(moving, 0.5, 5), geometry)) == ()  # no dark background


def test_factor_over_a_moving_image_on_a_grid_of_its_own() -> None:
    fixed, moving, _ = organs(1)
    moving = unlike(moving)
    shade = shaded(np.ones_like(moving), 0.5, 11)
    grid = Geometry.make((SIZE, SIZE), (2.0, 2.0), (40.0, -30.0))
    there = np.array([[2.0, 0, 40], [0, 2.0, -30], [0, 0, 1]])
    still = pair_of(fixed, moving * shade, GRID)
    (_, ours) = shades_between(still)
    (_, theirs) = shades_between(dataclasses.replace(still, moving_geometry=grid, linear=there))
    assert ours is not None
    assert theirs is not None
    inside = moving > 60
    for bias in (ours, theirs):
        even = bias.divided(still.moving, 0.0).numpy().reshape(moving.shape)
        assert np.log(even[inside] / moving[inside]).std() < 0.5 * np.log(shade[inside]).std()


def test_each_image_of_each_channel_has_its_own_factor() -> None:
    fixed, moving, _ = organs(0)
    moving = unlike(moving)
    pair = pair_of(fixed, shaded(moving, 0.4, 11), GRID, (shaded(fixed, 0.4, 5), moving))
    found = shades_between(pair)
    assert [bias is not None for bias in found] == [False, True, True, False]
    even = without_biases(pair, found)
    assert even.fixed is pair.fixed
    assert even.more[0].moving is pair.more[0].moving
    assert not torch.equal(even.moving, pair.moving)
    assert not torch.equal(even.more[0].fixed, pair.more[0].fixed)


def test_shaded_contrasts_are_registered_as_well_as_even_ones() -> None:
    """Without a look for factors it ends 1.3 pixels off, with a good verdict."""
    fixed, moving, u = organs(1)
    moving = unlike(moving)
    call: dict[str, Any] = {"preset": "fast", "linear": "translation", "threads": 1}
    even = itk_nir.register((fixed, GRID), (moving, GRID), **call)
    assert even.report.metric != "lncc"
    assert not any(TOLD in note for note in even.report.warnings)
    with pytest.warns(UserWarning, match=f"^moving image: it is .* {TOLD}"):
        found = itk_nir.register((fixed, GRID), (shaded(moving, 0.5, 11), GRID), **call)
    assert error(found, u, fixed) < error(even, u, fixed) + 0.2
    assert sum(TOLD in note for note in found.report.warnings) == 1


@pytest.mark.parametrize("seed", [2])
def test_shades_turn_no_object(seed: int) -> None:
    fixed, moving, _ = organs(seed)
    call: dict[str, Any] = {"preset": "fast", "linear": "rigid", "threads": 1, "deformable": False}
    turned = shaded(fixed, 0.6, 5)[::-1, ::-1].copy()
    with pytest.warns(UserWarning, match=TOLD):
        found = itk_nir.register((turned, GRID), (shaded(moving, 0.6, 11), GRID), **call)
    np.testing.assert_allclose(found.affine.matrix[:2, :2], -np.eye(2), atol=0.15)


@pytest.mark.parametrize("change", [lambda x: x, unlike], ids=["same", "unlike"])
def test_run_that_is_taken_up_ends_in_the_same_bits(tmp_path: Path, change: Any) -> None:
    fixed, moving, _ = organs(0)
    moving = change(moving)
    images = (shaded(fixed, 0.5, 5), GRID), (shaded(moving, 0.5, 11), GRID)
    call: dict[str, Any] = {"preset": "fast", "linear": "translation", "threads": 1}
    with pytest.warns(UserWarning, match=TOLD):
        whole = itk_nir.register(*images, **call)

    def stop(progress: Any) -> bool:
        if progress.stage == "deformable" and progress.level == 1:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        itk_nir.register(*images, **call, checkpoint=tmp_path / "c", callback=stop)
    with pytest.warns(UserWarning, match=TOLD):
        again = itk_nir.register(*images, **call, checkpoint=tmp_path / "c")
    np.testing.assert_array_equal(again.warped_array, whole.warped_array)
    assert again.report.warnings == whole.report.warnings

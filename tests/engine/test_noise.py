"""How noisy images are, and what the deformation makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import itk_nir
from itk_nir.engine import deformable
from itk_nir.engine.empty_windows import empty, level_noise, range_above_air, telling
from itk_nir.engine.images import Pair, as_volume
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.metrics import METRICS
from itk_nir.engine.noise import noise_deviation, noise_share
from itk_nir.geometry import Geometry
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings
from tests.engine.pairs import quick


def slope(size: tuple[int, ...]) -> np.ndarray:
    """Smooth, with an edge along an axis: nothing that is noise."""
    at = np.indices(size).astype(float)
    return np.asarray(3 * at[-1] - 0.02 * at[-2] * at[-1] + 40 * (at[-1] > size[-1] // 2))


@settings(deadline=None)
@given(
    size=st.sampled_from([(60, 70), (30, 33, 41), (5, 60, 64)]),
    deviation=st.sampled_from([0.1, 3.0, 50.0]),
    unit=st.sampled_from([1e-3, 1.0, 1e4]),
    seed=st.integers(0, 100),
)
def test_noise_is_found(size: tuple[int, ...], deviation: float, unit: float, seed: int) -> None:
    noise = deviation * np.random.default_rng(seed).normal(size=size)
    image = as_volume(torch.from_numpy(unit * (slope(size) + noise)))
    assert noise_deviation(image) == pytest.approx(unit * deviation, rel=0.15)


def test_backgrounds_of_one_value_do_not_count() -> None:
    image = np.random.default_rng(0).normal(size=(40, 60, 60)).astype(np.float32)
    image[:, :40] = 0
    assert noise_deviation(torch.from_numpy(image)) == pytest.approx(1, rel=0.1)


def test_what_a_mask_leaves_out_does_not_count() -> None:
    image = np.random.default_rng(0).normal(size=(30, 60, 60)).astype(np.float32)
    image[:, 30:] *= 100
    weight = np.zeros(image.shape, np.float32)
    weight[:, :30] = 1
    given = torch.from_numpy(image), torch.from_numpy(weight)
    assert noise_deviation(*given) == pytest.approx(1, rel=0.1)
    assert noise_deviation(given[0]) > 3


@pytest.mark.parametrize("size", [(1, 7, 7), (1, 1, 1), (1, 40, 40)])
def test_nothing_is_noise_where_nothing_varies_or_nothing_can(size: tuple[int, ...]) -> None:
    assert noise_deviation(torch.full(size, 7.0)) == 0


def made() -> Phantom:
    return brain_phantom(2, (112, 134), seed=1, noise=0)


def noisy(phantom: Phantom, fixed: float, moving: float) -> Pair:
    """A phantom whose images have noise of so much of their range."""
    random = np.random.default_rng(3)
    images = []
    for image, share in ((phantom.fixed, fixed), (phantom.moving, moving)):
        noise = share * np.ptp(image) * random.normal(size=image.shape)
        images.append(as_volume(torch.from_numpy(np.abs(image + noise).astype(np.float32))))
    return Pair.make(images[0], phantom.geometry, images[1], phantom.moving_geometry, np.eye(3))


def test_the_noisier_of_two_images_counts() -> None:
    for shares in ((0.0, 0.1), (0.1, 0.0), (0.1, 0.1)):
        assert noise_share(noisy(made(), *shares)) == pytest.approx(0.08, abs=0.025)
    assert noise_share(noisy(made(), 0.0, 0.0)) < 0.01


@pytest.mark.parametrize(
    ("share", "metric", "least", "plane", "wanted"),
    [
        (0.15, "lncc", 0.9, 0.7, (0.9, 1.5)),
        (0.15, "lncc", 0.0, 0.7, (0.7, 1.5)),
        (0.15, "lncc", 0.0, 0.0, (0.5, 1.5)),
        (0.15, "lncc", 2.0, 0.7, (2.0,)),
        (0.15, "nmi", 0.9, 0.7, (0.5, 1.5)),
        (0.01, "lncc", 0.9, 0.7, (0.7, 1.5)),
        (0.01, "lncc", 0.9, 0.0, (0.5, 1.5)),
    ],
)
def test_levels_of_noisy_images_and_of_planes_are_smoother(
    monkeypatch: pytest.MonkeyPatch, share: float, metric: str, least: float, plane: float, wanted: tuple[float, ...]
) -> None:
    told = quick(noise_sigma=least, plane_sigma=plane, metric=METRICS[metric])
    assert sigmas(monkeypatch, told, noisy(made(), share, share)) == wanted


def test_all_levels_of_noisy_volumes_are_smoother(
    monkeypatch: pytest.MonkeyPatch, make_case: Callable[..., Any]
) -> None:
    pair = make_case(3, 20).pair
    spoilt = [i + 15 * torch.from_numpy(np.random.default_rng(k).normal(size=i.shape)).float()
              for k, i in enumerate((pair.fixed, pair.moving))]  # fmt: skip
    pair = Pair.make(spoilt[0], pair.fixed_geometry, spoilt[1], pair.moving_geometry, pair.linear)
    assert sigmas(monkeypatch, quick(noise_sigma=0.9, plane_sigma=0.7), pair) == (0.9, 1.5)


def test_volumes_without_noise_are_as_smooth_as_was_asked(
    monkeypatch: pytest.MonkeyPatch, make_case: Callable[..., Any]
) -> None:
    assert sigmas(monkeypatch, quick(noise_sigma=0.9, plane_sigma=0.7), make_case(3, 20).pair) == (0.5, 1.5)


def test_what_is_asked_for_is_done() -> None:
    asked = make_settings("default", smoothing_sigmas=(0.4, 0.3, 0.6)).deformable
    assert (asked.noise_sigma, asked.plane_sigma) == (0, 0)
    also = make_settings("default", smoothing_sigmas=(0.4, 0.3, 0.6), noise_sigma=1.0).deformable
    assert (also.noise_sigma, also.plane_sigma) == (1.0, 0)


def sigmas(monkeypatch: pytest.MonkeyPatch, told: Any, pair: Pair) -> tuple[float, ...]:
    """What the two levels are smoothed by."""
    seen: list[float] = []
    of = deformable.LevelChannels.of

    def watched(pair: Any, grids: Any, normalised: Any, sigma: float, *rest: Any) -> Any:
        seen.append(sigma)
        return of(pair, grids, normalised, sigma, *rest)

    monkeypatch.setattr(deformable.LevelChannels, "of", watched)
    deformable.optimise(pair, replace(told, smoothing_sigmas=(0.5, 1.5), iterations=(1, 1)))
    return tuple(dict.fromkeys(seen))


@pytest.mark.parametrize(("seed", "share"), [(1, 0.08), (2, 0.15), (2, 0.02), (8, 0.02)])
def test_noise_hides_less(seed: int, share: float) -> None:
    phantom = brain_phantom(2, (112, 134), seed=seed, noise=0)
    pair = noisy(phantom, share, share)
    default = make_settings("default", metric="lncc").deformable
    inside = phantom.fixed_labels > 0
    errors = []
    for least in ((0.0, 0.0), (default.noise_sigma, default.plane_sigma)):
        field = deformable.optimise(pair, replace(default, noise_sigma=least[0], plane_sigma=least[1])).field
        gap = field.displacement(phantom.geometry.grid()[inside]) - phantom.displacement[inside]
        errors.append(float(np.linalg.norm(gap, axis=-1).mean()))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("deviation", [12, 25])
def test_noisy_air_hides_no_volume(deviation: float) -> None:
    """Windows that hold nothing but noise neither decide what the metric is nor whether the deformation is kept."""
    p = brain_phantom(3, (36, 40, 36), seed=1, noise=0)
    random = np.random.default_rng(0)
    fixed, moving = (
        (np.pad(image, 10) + deviation * random.normal(size=np.add(image.shape, 20))).astype(np.float32)
        for image in (p.fixed, p.moving)
    )
    grid = Geometry.make(fixed.shape[::-1], p.geometry.spacing)
    report = itk_nir.register((fixed, grid), (moving, grid), preset="fast", threads=1).report
    assert report.metric == "lncc"
    assert report.verdict.grade == "good"
    assert report.evidence["end"].metric > report.evidence["linear"].metric + 0.01


def test_which_windows_are_empty() -> None:
    """Those of a noisy background; not those of texture inside, however fine, nor where all is noise."""
    random = np.random.default_rng(0)
    grid = Geometry.make((44, 42, 40))
    noise = random.normal(size=grid.shape)
    inside = np.zeros(grid.shape, bool)
    inside[10:30, 10:32, 10:34] = True

    def left(image: np.ndarray) -> torch.Tensor | None:
        image = as_volume(torch.from_numpy(image.astype(np.float32)))
        pair = Pair.make(image, grid, image, grid, np.eye(4))
        grids = LevelGrids.whole(pair, 44)
        return telling(pair, grids, LevelChannels.of(pair, grids, pair.normalised(), 0.5, 2, 1), 0.5, 1e-4)

    found = left(noise + np.where(inside, 8, 0))  # inside of it is noise, too, but no background
    assert found is not None
    assert bool(found[inside].all())
    air = torch.ones_like(found)
    air[7:33, 7:35, 7:37] = 0  # beyond what windows of the object see
    assert float(found[air > 0].mean()) < 0.1
    assert left(np.where(inside, 100 + 8 * noise, 0)) is None  # a clean background
    assert left(noise + np.where(inside, 100, 0)) is None  # of little noise
    assert left(noise) is None
    shown = torch.ones(4, 5, 6, dtype=torch.bool)
    assert not empty(torch.rand(4, 5, 6), torch.ones(4, 5, 6), shown, lambda: 1.0).any()  # nothing would be left


def test_histograms_begin_above_the_noise_of_dark_air() -> None:
    random = np.random.default_rng(0)
    grid = Geometry.make((44, 42, 40))
    noise = random.normal(size=grid.shape)
    inside = np.zeros(grid.shape, bool)
    inside[10:30, 10:32, 10:34] = True

    def ends(image: np.ndarray) -> tuple[tuple[float, float], tuple[float, float], np.ndarray]:
        """The range, that for histograms, and the values at the level."""
        volume = as_volume(torch.from_numpy(image.astype(np.float32)))
        pair = Pair.make(volume, grid, volume, grid, np.eye(4))
        grids = LevelGrids.whole(pair, 44)
        shown = LevelChannels.of(pair, grids, pair.normalised(), 0.5, 2, 1).images[0]
        found = [range_above_air(pair, 0, grids, 0.5, shown.moving, moving=moving) for moving in (False, True)]
        assert found[0] == found[1]
        return shown.fixed_range, found[0], shown.fixed.numpy()

    usual, above, values = ends(2 * noise + np.where(inside, 80, 0))
    assert above[1] == usual[1]
    assert usual[0] < above[0] < usual[1] / 2
    assert 0.9 < (values[~inside] < above[0]).mean() < 0.99
    for image in (
        np.where(inside, 80 + 2 * noise, 0),  # a background of one value
        0.2 * noise + np.where(inside, 80, 0),  # of little noise
        2 * noise - np.where(inside, 80, 0),  # a bright one
    ):
        usual, above, _ = ends(image)
        assert above == usual


@pytest.mark.parametrize(("size", "sigma"), [(40, 0.0), (40, 0.9), (20, 0.5)])
def test_the_noise_that_smoothing_leaves(size: int, sigma: float) -> None:
    random = np.random.default_rng(0)
    image = as_volume(torch.from_numpy(random.normal(size=(24, 40, 40)).astype(np.float32)))
    grid = Geometry.make((40, 40, 24))
    pair = Pair.make(image, grid, 3 * image, grid, np.eye(4))
    grids = LevelGrids.whole(pair, size)
    shown = LevelChannels.of(pair, grids, pair.normalised(), sigma, 3, 1).images[0]
    for moving, level in enumerate((shown.fixed, shown.moving)):
        assert level_noise(pair, 0, grids, sigma, moving=bool(moving)) == pytest.approx(float(level.var()), rel=0.2)


def test_unlike_contrasts_in_noisy_air_are_a_doubt() -> None:
    """Their outlines agree, and a deformation lays what little else is seen on each other by chance."""
    p = brain_phantom(3, (36, 40, 36), seed=2, noise=0)
    random = np.random.default_rng(0)
    other = np.where(p.moving > 5, np.abs(0.55 * np.ptp(p.moving) - p.moving) + 20, 0)
    fixed, moving = (
        (np.pad(image, 12) + 0.1 * np.ptp(p.fixed) * random.normal(size=np.add(image.shape, 24))).astype(np.float32)
        for image in (p.fixed, other)
    )
    grid = Geometry.make(fixed.shape[::-1], p.geometry.spacing)
    with pytest.warns(
        itk_nir.VerdictWarning, match="in noise, the images have little in common but for the deformation"
    ):
        report = itk_nir.register((fixed, grid), (moving, grid), preset="fast").report
    assert report.verdict.grade == "doubtful"

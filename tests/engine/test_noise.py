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

from itk_nir.engine import deformable
from itk_nir.engine.images import Pair, as_volume
from itk_nir.engine.metrics import METRICS
from itk_nir.engine.noise import noise_deviation, noise_share
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

"""Which metric is picked for a pair of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from itk_nir import register
from itk_nir.engine import choice as choosing
from itk_nir.engine.choice import (
    CONTRAST_GAIN,
    MOST_GAIN,
    STIFFEST,
    UNLIKE,
    Choice,
    choose_metric,
    once_aligned,
    unlike_after_all,
)
from itk_nir.engine.inside import INSIDE, INSIDE_SIZE, Windows
from itk_nir.geometry import Geometry
from itk_nir.phantom import Phantom, brain_phantom
from tests.engine.pairs import pair_of, unlike, volume

Array = np.ndarray
#: Of the contrast, that leave it one contrast.
CHANGES: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda x: x, "scaled": lambda x: 3 * x + 20, "inverted": lambda x: 255 - x,
}  # fmt: skip
BOTH = pytest.mark.parametrize("d", [2, 3])


@pytest.fixture(scope="module")
def brains() -> dict[int, Phantom]:
    return {2: brain_phantom(2, (80, 96)), 3: brain_phantom(3, (44, 52, 44))}


@BOTH
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_one_contrast(brains: dict[int, Phantom], d: int, change: Callable[[Array], Array]) -> None:
    p = brains[d]
    choice = choose_metric(pair_of(p.fixed, change(p.moving), p.geometry))
    assert (choice.metric, choice.smoothness) == ("lncc", 1.0)
    assert choice.reason.startswith("one contrast: ")


@BOTH
def test_unlike_contrasts_of_deformed_images(brains: dict[int, Phantom], d: int) -> None:
    p = brain_phantom(d, brains[d].geometry.size, deformation=15.0)
    choice = choose_metric(pair_of(p.fixed, unlike(p.moving), p.geometry))
    assert choice.metric == UNLIKE
    assert choice.smoothness == 1.0
    assert choice.reason.startswith("unlike contrasts: ")


@BOTH
def test_unlike_contrasts_that_are_aligned_are_stiffened(brains: dict[int, Phantom], d: int) -> None:
    p = brains[d]
    choice = choose_metric(pair_of(p.fixed, unlike(p.fixed), p.geometry))
    assert choice.metric == UNLIKE
    assert 3 < choice.smoothness <= STIFFEST
    assert "times as stiff" in choice.reason


@BOTH
def test_noise_of_the_air_leaves_the_stiffness(brains: dict[int, Phantom], d: int) -> None:
    """It is nothing that the images could share: what they are stiffened by is what they have in common but for it."""
    p = brain_phantom(d, brains[d].geometry.size, noise=0)
    random = np.random.default_rng(0)
    images = [np.pad(image, 12) for image in (p.fixed, unlike(p.fixed))]
    grid = Geometry.make(images[0].shape[::-1], p.geometry.spacing)
    clean = choose_metric(pair_of(images[0], images[1], grid))
    noisy = [image + 0.02 * np.ptp(image) * random.standard_normal(image.shape) for image in images]
    assert choose_metric(pair_of(noisy[0], noisy[1], grid)).alike > 0.9 * clean.alike > 0.3


def test_the_stiffer_a_deformation_the_more_it_must_gain() -> None:
    """Up to twice as much, on the grid of the evidence."""
    free, stiffened, stiff = (Choice(UNLIKE, "nmi", "unlike", alike=alike) for alike in (0.1, 0.27, 0.4))
    assert Choice("lncc", "lncc", "one contrast").least_gain == 0
    assert free.least_gain == CONTRAST_GAIN < stiffened.least_gain < stiff.least_gain == MOST_GAIN * CONTRAST_GAIN


@BOTH
def test_stiffness_is_that_under_the_map_of_the_linear_stage(brains: dict[int, Phantom], d: int) -> None:
    """Far apart, images of unlike contrasts look less alike than they are."""
    p = brains[d]
    aligned = pair_of(p.fixed, unlike(p.fixed), p.geometry)
    apart = np.eye(d + 1)
    apart[0, d] = 25.0
    before = choose_metric(replace(aligned, linear=apart))
    assert before.smoothness == 1.0
    after = once_aligned(before, aligned)
    assert after.metric == before.metric != "lncc"
    assert after.smoothness == choose_metric(aligned).smoothness > 3
    assert after.reason.startswith(before.reason)
    assert "times as stiff" in after.reason
    same = choose_metric(pair_of(p.fixed, p.moving, p.geometry))
    assert once_aligned(same, aligned) is same


def test_images_of_one_contrast_that_a_coarse_start_hides_are_seen_once_aligned(brains: dict[int, Phantom]) -> None:
    """But not those that a level of the deformation has shown to be unlike."""
    p = brains[2]
    aligned = pair_of(p.fixed, p.moving, p.geometry)
    smaller = np.diag([0.75, 0.75, 1.0])
    smaller[:2, 2] = 0.25 * p.geometry.centre
    before = choose_metric(replace(aligned, linear=smaller))
    assert before.metric != "lncc"
    assert once_aligned(before, aligned) == choose_metric(aligned)
    assert once_aligned(before, aligned).metric == "lncc"
    shown = once_aligned(replace(before, shown=True), aligned)
    assert (shown.metric, shown.found) == (before.metric, before.found)


@BOTH
def test_objects_that_lie_over_each_other_are_not_one_object(
    brains: dict[int, Phantom], d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against their backgrounds they are as alike as contrasts of one object; inside of them nothing is alike."""
    g, rng = brains[d].geometry, np.random.default_rng(0)
    there = np.indices(g.shape) - (np.array(g.shape).reshape(-1, *[1] * d) - 1) / 2
    ball = np.linalg.norm(there, axis=0) < 0.4 * min(g.shape)
    first, second = (50 * gaussian_filter(rng.standard_normal(g.shape), 2) * 2**d + 100 for _ in range(2))
    begun = Choice(UNLIKE, "nmi", "unlike")
    other, same = (pair_of(first * ball, moving * ball, g) for moving in (second, 250 - first))
    assert once_aligned(begun, other).smoothness == 1
    assert once_aligned(begun, same).smoothness > 2
    monkeypatch.setattr(choosing, "INSIDE_ALIKE", 0.0)
    assert once_aligned(begun, other).smoothness > 2


def test_contrasts_that_differ_in_details_alone(brains: dict[int, Phantom]) -> None:
    """As T1 and FLAIR of one person: grey and white matter the other way round, the rest alike."""
    p = brain_phantom(2, (224, 224))
    white = 134.0
    flipped = np.where(p.fixed > white, white - 0.3 * (p.fixed - white), p.fixed)
    choice = choose_metric(pair_of(p.fixed, flipped, p.geometry))
    assert choice.metric == UNLIKE
    assert choice.reason.count("at a finer resolution") == 2
    brighter = np.where(p.fixed > white, white + 0.3 * (p.fixed - white), p.fixed)
    assert choose_metric(pair_of(p.fixed, brighter, p.geometry)).metric == "lncc"


class Resting:
    """A displacement of zero."""

    def on_grid(self, positions: list[Array]) -> torch.Tensor:
        return torch.zeros(3, *(len(p) for p in positions[::-1]))


def test_outlines_alike_and_tissue_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As T1 and FLAIR of two people: fluid is dark in both, grey and white matter are the other way round."""
    p = brain_phantom(3, (72, 88, 72))
    white = 134.0
    flipped = np.where(p.moving > white, white - 0.3 * (p.moving - white), p.moving)
    other, same = (pair_of(p.fixed, moving, p.geometry) for moving in (flipped, p.moving))
    found = unlike_after_all(other, 0.9, Resting())
    assert found is not None
    assert found.metric == UNLIKE
    assert "inside of what the images show" in found.reason
    assert unlike_after_all(same, 0.9, Resting()) is None
    assert unlike_after_all(other, INSIDE.alike - 0.01, Resting()) is None, "outlines are to lie on each other"
    monkeypatch.setattr(choosing, "INSIDE", replace(INSIDE, moved=0.0))
    assert unlike_after_all(other, 0.9, Resting()) is None, "what moved away is not unlike"
    low = unlike_after_all(same, 0.4, Resting())
    assert low is not None
    assert "ended at 0.40" in low.reason


def spoilt(image: Array, share: float, seed: int) -> Array:
    """With noise of a share of the range."""
    return np.abs(image + share * np.ptp(image) * np.random.default_rng(seed).normal(size=image.shape))


def test_noise_is_not_another_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of noisy sections do not agree in sign; smoothed ones do, but for contrasts that are unlike."""
    p = brain_phantom(2, (112, 134))
    white = 134.0
    flipped = np.where(p.fixed > white, white - 0.9 * (p.fixed - white), p.fixed)
    same, other = (
        pair_of(spoilt(p.fixed, 0.13, 1), spoilt(moving, 0.13, 2), p.geometry) for moving in (p.fixed, flipped)
    )
    assert unlike_after_all(same, 0.9, Resting()) is None
    assert unlike_after_all(other, 0.9, Resting()) is not None
    monkeypatch.setattr(choosing, "is_noisy", lambda _: False)
    assert unlike_after_all(same, 0.9, Resting()) is not None


def test_unlike_sections_that_the_first_level_makes_half_alike(brains: dict[int, Phantom]) -> None:
    """As stains of tissue: a plane's windows hold few voxels, which a deformation may bring together."""
    p = brains[2]
    textured = spoilt(p.fixed, 0.4, 1), spoilt(p.fixed, 0.4, 2)
    found = unlike_after_all(pair_of(*textured, p.geometry), 0.65, Resting())
    assert found is not None
    assert "2D images of one contrast have 0.61 and more" in found.reason
    assert unlike_after_all(pair_of(p.fixed, p.fixed, p.geometry), 0.65, Resting()) is None
    assert "2D images" in getattr(unlike_after_all(pair_of(*textured, p.geometry), 0.82, Resting()), "reason", "")
    p = brains[3]
    textured = spoilt(p.fixed, 0.4, 1), spoilt(p.fixed, 0.4, 2)
    assert unlike_after_all(pair_of(*textured, p.geometry), 0.65, Resting()) is None


def test_a_field_finer_than_the_windows_tells_nothing(brains: dict[int, Phantom]) -> None:
    """It makes sections alike whatever they show, or tears them apart: what they show is seen under a smoother one."""

    class Fine(Resting):
        def on_grid(self, positions: list[Array]) -> torch.Tensor:
            u = super().on_grid(positions)
            u[0, :, :, ::2], u[0, :, :, 1::2] = 12.0, -12.0
            return u

    p = brains[2]
    assert unlike_after_all(pair_of(p.fixed, p.fixed, p.geometry), 0.65, Fine()) is None


def test_nothing_is_stiffened_where_a_deformation_showed_what_is_unlike() -> None:
    """Contrasts of one person that lie on each other are told by their signs, before any deformation."""
    p = brain_phantom(2, (80, 96))
    pair = pair_of(p.fixed, unlike(p.fixed), p.geometry)
    away = replace(pair, linear=np.array([[1.0, 0, 25.0], [0, 1, 0], [0, 0, 1]]))

    class Back(Resting):
        def on_grid(self, positions: list[Array]) -> torch.Tensor:
            u = super().on_grid(positions)
            u[0] -= 25.0
            return u

    found, usual = unlike_after_all(away, 0.4, Back()), unlike_after_all(pair, 0.4, Resting())
    assert found is not None
    assert usual is not None
    assert (found.metric, found.smoothness) == (usual.metric, usual.smoothness) == (UNLIKE, 1.0)
    same = pair_of(p.fixed, p.moving, p.geometry)
    assert once_aligned(usual, same).smoothness == 1, "aligned by mutual information, the signs still agree"
    assert once_aligned(usual, pair).smoothness > 3, "aligned, these do not"


def inside(sign: float, told: float, edges: float | None = None) -> Windows:
    return Windows(sign, sign if edges is None else edges, told, 1000)


@pytest.mark.parametrize(("sign", "told"), [(0.96, 0.2), (0.9, 0.32), (0.5, 0.05)])
def test_inside_of_one_contrast(sign: float, told: float) -> None:
    """Agreement in sign, structure that is told all the same, and nothing but noise."""
    assert not INSIDE.unlike(inside(sign, told))
    assert INSIDE.unlike(inside(0.9, 0.2))


@pytest.mark.parametrize(("sign", "edges", "opposed"), [(0.5, 0.5, True), (0.45, 0.84, False), (0.85, 0.6, False)])
def test_windows_that_tell_much_inside_must_oppose_each_other_by_either_weight(
    sign: float, edges: float, opposed: bool
) -> None:
    """Illuminations decide the sign of flat windows, and a part of an image that of its edges."""
    assert INSIDE.unlike(inside(sign, 0.4, edges)) is opposed


def several_objects(seed: int) -> tuple[Array, Array]:
    """Four discs with a spot and a slow texture, and the same deformed, mm = pixels; the intensities of one image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128] - 63.5
    texture = gaussian_filter(rng.standard_normal((128, 128)), 12, mode="wrap")
    texture *= 35 / texture.std()
    bend = [gaussian_filter(rng.standard_normal((128, 128)), 12, mode="wrap") for _ in range(2)]
    bend = [3.0 * u / np.abs(u).max() for u in bend]

    def at(dx: Array | float, dy: Array | float) -> Array:
        out = np.zeros((128, 128))
        for cx, cy in ((-28, -25), (25, -28), (-25, 27), (28, 24)):
            disc = np.hypot(x + dx - cx, y + dy - cy) < 18
            spot = np.hypot(x + dx - cx - 4, y + dy - cy + 3) < 6
            out += disc * (90 + map_coordinates(texture, [y + dy + 63.5, x + dx + 63.5], order=1) + 60 * spot)
        return gaussian_filter(out, 1.0)

    return at(0.0, 0.0), at(bend[0], bend[1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_objects_whose_insides_oppose_each_other_are_unlike(seed: int) -> None:
    """All outlines agree in sign, and windows inside tell much; most of them the other way round."""
    fixed, moving = several_objects(seed)
    geometry = Geometry.make([128, 128], [1.0, 1.0])
    waves = np.where(moving > 5, 128 + 115 * np.sin(9 * moving / np.percentile(moving, 99.5)), 0.0)
    for image, expected in ((moving, "lncc"), (waves, UNLIKE)):
        result = register((fixed, geometry), (image, geometry), preset="fast", linear="none", threads=1)
        assert result.report.metric == expected, result.report.metric_reason


def test_least_alike_channel_decides(brains: dict[int, Phantom]) -> None:
    p = brains[2]
    like, other = (p.fixed, p.moving), (p.fixed, unlike(p.moving))
    assert choose_metric(pair_of(*like, p.geometry, like)).metric == "lncc"
    assert choose_metric(pair_of(*like, p.geometry, other)).metric == UNLIKE
    assert choose_metric(pair_of(*other, p.geometry, like)).metric == UNLIKE


def test_too_few_windows_to_judge_by() -> None:
    rng = np.random.default_rng(0)
    g = Geometry.make([5, 5], [1.0, 1.0])
    choice = choose_metric(pair_of(rng.random((5, 5)), rng.random((5, 5)), g))
    assert (choice.metric, choice.smoothness) == ("lncc", 1.0)
    assert "windows could be compared" in choice.reason


def test_threads_change_nothing(brains: dict[int, Phantom]) -> None:
    p = brains[3]
    pair = pair_of(p.fixed, unlike(p.moving), p.geometry)
    assert choose_metric(pair, 1) == choose_metric(pair, 2)


@BOTH
def test_mask_that_shows_few_windows_leaves_the_choice_to_the_whole_images(brains: dict[int, Phantom], d: int) -> None:
    p = brains[d]
    mask = np.zeros(p.fixed.shape)
    mask[tuple(slice(n // 2, n // 2 + 4) for n in mask.shape)] = 1
    for moving, picked in ((p.moving, "lncc"), (unlike(p.moving), UNLIKE)):
        choice = choose_metric(replace(pair_of(p.fixed, moving, p.geometry), fixed_weight=volume(mask)))
        assert choice.metric == picked
        assert "inside of the masks; of the whole images: " in choice.reason
        assert choice.smoothness == 1


@pytest.mark.parametrize("size", [(96, 116, 96), (107, 128, 107)])
def test_one_contrast_is_none_of_two_where_details_lie_apart(size: tuple[int, int, int]) -> None:
    """The first level leaves details apart that a grid of all voxels sees: T1 brains of 1.5 mm were called unlike."""
    p = brain_phantom(3, size)
    white = 134.0
    flipped = np.where(p.moving > white, white - 0.3 * (p.moving - white), p.moving)
    other, same = (pair_of(p.fixed, moving, p.geometry) for moving in (flipped, p.moving))
    assert unlike_after_all(same, 0.9, Resting()) is None
    assert unlike_after_all(other, 0.9, Resting()) is not None


def test_limits_inside_of_objects_follow_the_grid() -> None:
    assert INSIDE.at(INSIDE_SIZE) == INSIDE.at(2 * INSIDE_SIZE) == INSIDE
    signs = [INSIDE.at(n).sign for n in (112, 87, 73, 62, 55)]
    assert signs == sorted(signs)
    for n, two, one in ((87, 0.925, 0.990), (73, 0.954, 0.986), (62, 0.980, 0.998), (55, 0.990, 0.994)):
        assert INSIDE.at(n).unlike(inside(two, 0.3))
        assert not INSIDE.at(n).unlike(inside(one, 0.3))

"""Starts of the linear stage over half turns, and sections that were turned over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

import itk_nir
from itk_nir.engine import linear, linear_search, linear_starts
from itk_nir.engine.images import Pair
from itk_nir.engine.linear_level import LinearLevel, agreed
from itk_nir.engine.linear_search import Start
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom, brain_phantom
from tests.engine.pairs import pair_of, unlike
from tests.grids import about_centre


def placed(p: Any, turn: np.ndarray) -> tuple[Any, Any, np.ndarray]:
    """A phantom's images, the moving one's header turned about its centre; where the moving points truly are."""
    g, c = p.geometry, p.geometry.centre
    x = g.grid()[p.fixed_labels > 0]
    return (
        to_sitk(p.fixed, g),
        to_sitk(p.moving, about_centre(g, turn)),
        (x + p.displacement[p.fixed_labels > 0] - c) @ turn.T + c,
    )


@pytest.mark.parametrize("degrees", [0, 50, 180])
def test_section_that_was_turned_over_is_mirrored_and_told(degrees: float) -> None:
    p = brain_phantom(2, (96, 112), seed=0)
    t = np.deg2rad(degrees)
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag([-1.0, 1.0])
    fixed, moving, truth = placed(p, turn)
    with pytest.warns(UserWarning, match="turned over"):
        result = itk_nir.register(fixed, moving, preset="fast")
    x = p.geometry.grid()[p.fixed_labels > 0]
    assert np.linalg.norm(result.transform_points(x) - truth, axis=1).mean() < 0.6
    # A rigid map mirrors nothing: the doubt is told.
    with pytest.warns(itk_nir.VerdictWarning, match="more alike mirrored"):
        rigid = itk_nir.register(fixed, moving, preset="fast", linear="rigid", iterations=1)
    assert rigid.report.verdict is not None
    assert rigid.report.verdict.grade == "doubtful"


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_section_that_was_not_turned_over_is_not_mirrored(seed: int) -> None:
    p = brain_phantom(2, (96, 112), seed=seed)
    result = itk_nir.register(to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.geometry), preset="fast", iterations=2)
    assert np.linalg.det(np.asarray(result.report.affine_matrix)[:2, :2]) > 0
    assert not result.report.warnings


@pytest.mark.parametrize("part", [(slice(58, 131), slice(39, 100)), (slice(12, 85), slice(12, 73))])
@pytest.mark.parametrize("seed", [1, 2])
def test_part_of_the_other_image_is_not_of_another_size(part: tuple[slice, slice], seed: int) -> None:
    p = brain_phantom(2, (112, 134), seed=seed)
    g = p.geometry
    begin = g.index_to_physical(np.array([[part[1].start, part[0].start]], float))[0]
    less = Geometry.make([s.stop - s.start for s in part[::-1]], g.spacing, begin, g.rotation)
    result = itk_nir.register(to_sitk(p.fixed[part], less), to_sitk(p.moving, p.moving_geometry), preset="fast")
    inside = p.fixed_labels[part] > 0
    gap = result.transform_points(less.grid()[inside]) - less.grid()[inside] - p.displacement[part][inside]
    assert np.linalg.norm(gap, axis=1).mean() < 1.5


def moved(p: Phantom, degrees: float, size: float, cut: int) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """A section onto another contrast of it that is turned, of another size and without its first rows; points of the
    brain, and where they truly are."""
    t, g = np.deg2rad(degrees), p.geometry
    turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])

    def there(x: Any) -> np.ndarray:
        return np.asarray(g.centre + size * (np.asarray(x) - g.centre) @ turn.T)

    share = (p.moving - p.moving.min()) / np.ptp(p.moving)
    other = 150 * np.where(share < 0.1, share, 1.2 - np.abs(share - 0.45) * 2)[cut:].astype(np.float32)
    grid = Geometry.make(other.shape[::-1], size * np.array(g.spacing), there(g.index_to_physical([0.0, cut])),
                         turn @ g.rotation)  # fmt: skip
    inside = p.fixed_labels > 0
    x = g.grid()[inside]
    truth = there(x + p.displacement[inside])
    shown = (grid.physical_to_index(truth) >= -0.5).all(1)
    return to_sitk(p.fixed, g), to_sitk(np.ascontiguousarray(other), grid), x[shown], truth[shown]


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning", "ignore:(?s).*times as large in")
@pytest.mark.parametrize(
    ("seed", "deformation", "change", "most"),
    [
        (3, 8.0, (-60, 1.0, 34), 1.0),
        (3, 8.0, (60, 0.6, 0), 1.0),
        (6, 15.0, (20, 1.2, 0), 10.0),
        (10, 15.0, (90, 1.15, 0), 10.0),
    ],
)
def test_turns_of_parts_and_of_what_differs_in_shape(
    seed: int, deformation: float, change: tuple[float, float, int], most: float
) -> None:
    fixed, moving, x, truth = moved(brain_phantom(2, (112, 134), seed=seed, deformation=deformation), *change)
    few = {"iterations": 1} if deformation > 10 else {}
    result = itk_nir.register(fixed, moving, preset="fast", **few)
    assert np.linalg.norm(result.transform_points(x) - truth, axis=1).mean() < most


def test_turn_that_is_as_good_as_another_is_doubted() -> None:
    p = brain_phantom(2, (112, 134), seed=1, noise=0)
    image = (p.fixed + p.fixed[::-1, ::-1]).astype(np.float32)
    fixed, moving, _ = placed(replace(p, fixed=image, moving=image), np.array([[0.0, -1.0], [1.0, 0.0]]))
    with pytest.warns(itk_nir.VerdictWarning, match="another place is as good"):
        itk_nir.register(fixed, moving, preset="fast", iterations=1)
    # As the headers say, it is where it belongs.
    still = itk_nir.register(fixed, fixed, preset="fast", iterations=1)
    assert still.report.verdict is not None
    assert still.report.verdict.grade == "good"


def test_turn_is_found_though_the_centres_of_mass_do_not_belong_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one image shows more around: by many turns after shifts as well."""
    p = brain_phantom(3, (36, 43, 36), seed=1)
    g, c, axis = p.geometry, p.geometry.centre, np.array([0.6, -0.5, 0.62])
    turn = Rotation.from_rotvec(np.deg2rad(130) * axis / np.linalg.norm(axis)).as_matrix()
    pair = pair_of(p.fixed, unlike(p.moving), g)
    pair = replace(pair, moving_geometry=about_centre(g, turn))
    usual = linear_starts.masses

    def elsewhere(of: Pair) -> Any:
        fixed, moving = usual(of)
        return fixed, replace(moving, centre=moving.centre + 40 * np.array([0.6, 0.64, -0.48]))

    monkeypatch.setattr(linear_starts, "masses", elsewhere)
    inside = p.fixed_labels > 0
    x = g.grid()[inside]
    truth = (x + p.displacement[inside] - c) @ turn.T + c

    def off() -> float:
        start = linear_search.find_start(pair, "rigid", itk_nir.make_settings("fast").linear, threads=1)
        assert not start.cancelled
        m = start.matrix
        return float(np.linalg.norm(x @ m[:3, :3].T + m[:3, 3] - truth, axis=1).mean())

    assert off() < 2 * max(g.spacing)
    monkeypatch.setattr(linear_search, "WIDER", 0)
    assert off() > 4 * max(g.spacing)


@cache
def volume() -> Phantom:
    return brain_phantom(3, (48, 57, 48), seed=1)


# A search over fewer positions, which tells turns apart less well, is quicker.
@pytest.mark.parametrize(("signs", "search"), [((-1, -1, 1), 16), ((1, -1, -1), 10), ((-1, 1, -1), 10)])
def test_header_that_is_half_a_turn_wrong(signs: tuple[int, int, int], search: int) -> None:
    p = volume()
    fixed, moving, truth = placed(p, np.diag(signs).astype(float))
    preset = itk_nir.make_settings("fast", linear_search_size=search)
    result = itk_nir.register(fixed, moving, preset=preset, deformable=False)
    x = p.geometry.grid()[p.fixed_labels > 0]
    before = np.linalg.norm(p.displacement[p.fixed_labels > 0], axis=1).mean()
    assert np.linalg.norm(result.transform_points(x) - truth, axis=1).mean() < before


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning")
@pytest.mark.parametrize("mask", [None, "fixed_mask", "moving_mask"])
@pytest.mark.parametrize("dimension", [2, 3])
def test_many_maps_are_measured_as_each_of_them(
    dimension: int, mask: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, compared = linear_search.informations, []

    def both(level: Any, bases: Any, metric: Any) -> np.ndarray:
        values = together(level, bases, metric)
        channels = [(1.0, metric)] * len(level.channels.images)
        some = slice(None, None, 3 if dimension == 3 else 1)
        compared.extend(np.abs(values[some] - [agreed(level, base, channels) for base in bases[some]]))
        return values

    monkeypatch.setattr(linear_search, "informations", both)
    p = brain_phantom(dimension, (48, 56) if dimension == 2 else (28, 32, 28))
    given: dict[str, Any] = {}
    if mask is not None:
        image, grid = (p.fixed, p.geometry) if mask == "fixed_mask" else (p.moving, p.moving_geometry)
        given[mask] = (image > image.mean()).astype(np.uint8), grid
    images = (p.fixed, p.geometry), (p.moving, p.moving_geometry)
    preset = itk_nir.make_settings("fast", linear_search_size=16 if dimension == 2 else 12)
    itk_nir.register(*images, preset=preset, deformable=False, **given)
    assert compared
    assert np.quantile(compared, 0.9) < 1e-6
    # Rounding may decide whether a position on the edge of a mask counts.
    assert max(compared) < (1e-6 if mask is None else 0.01)


def organs(d: int, seed: int) -> np.ndarray:
    """An ellipsoid with balls in it, ``[z,] y, x``, which no mirror image of it is like."""
    random = np.random.default_rng(seed)
    n = 96 if d == 2 else 32
    axes = np.meshgrid(*d * [np.linspace(-1, 1, n)], indexing="ij")
    radii = np.array([0.66, 0.88] if d == 2 else [0.8, 0.7, 0.9])
    body = sum((a / r) ** 2 for a, r in zip(axes, radii, strict=True)) < 1
    image = 100.0 * body
    for _ in range(9 if d == 2 else 14):
        v = random.standard_normal(d)
        at = radii * v * random.uniform(0, 0.7) / np.linalg.norm(v)
        ball = sum((a - c) ** 2 for a, c in zip(axes, at, strict=True)) < random.uniform(0.1, 0.25) ** 2
        image[ball & body] = random.uniform(40, 220)
    return np.asarray(ndimage.gaussian_filter(image, 0.8), np.float32)


def mirror_doubts(fixed: Any, moving: Any) -> list[str]:
    verdict = itk_nir.register(fixed, moving, preset="fast", iterations=1).report.verdict
    assert verdict is not None
    return [reason for reason in verdict.reasons if "more alike mirrored" in reason]


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning")
def test_volume_that_is_mirrored_is_doubted() -> None:
    image = organs(3, 0)
    turn = Rotation.from_rotvec([0.1, 0.0, 0.1]).as_matrix()
    grid = Geometry.make([32, 32, 32], [3.0, 3.0, 3.0], [0.0, 0.0, 0.0], np.eye(3))
    moved = Geometry.make([32, 32, 32], [3.15, 2.85, 3.0], [5.0, -3.0, 4.0], turn)
    assert not mirror_doubts((image, grid), (image, moved))
    for axis in (0, 2):
        (doubt,) = mirror_doubts((image, grid), (np.ascontiguousarray(np.flip(image, axis)), moved))
        assert "left and right are swapped" in doubt


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning")
@pytest.mark.parametrize("seed", [3, 4])
def test_symmetric_object_is_not_taken_for_mirrored(seed: int) -> None:
    """What differs between its sides lies on the other side in the moving image; the sides are more alike than the two
    images."""
    image = organs(2, seed)
    sides = 0.5 * (image + image[:, ::-1]) + 0.6 * image
    noise = 50 * np.random.default_rng(0).standard_normal(image.shape)
    fixed, moving = (np.ascontiguousarray(i, np.float32) for i in (sides, sides[:, ::-1] + noise))
    grid = Geometry.make([96, 96], [2.0, 2.0], [0.0, 0.0], np.eye(2))
    assert not mirror_doubts((fixed, grid), (moving, grid))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halves_that_are_alike_but_for_their_brightness_tell_of_no_mirror_image(seed: int) -> None:
    """Mutual information sees the brightness; windows see what the halves show."""
    image = organs(2, seed)
    grid = Geometry.make([96, 96], [1.0, 1.0], [-47.5, -47.5], np.eye(2))
    mirrored = np.diag([-1.0, 1.0, 1.0])
    for halves, told in ((image + image[:, ::-1], False), (image, True)):
        shown, noise = halves * np.linspace(0.92, 1.08, 96), 10 * np.random.default_rng(0).standard_normal((2, 96, 96))
        pair = pair_of(shown + noise[0], shown[:, ::-1] + noise[1], grid)
        level = LinearLevel.of_size(pair, pair.normalised(), 48, 4, 1)
        still = np.eye(3)
        assert bool(linear._more_alike_mirrored(level, still, Start(still, mirrored=mirrored))) == told
        assert not linear._more_alike_mirrored(level, mirrored, Start(still, mirrored=mirrored))
        assert not linear._more_alike_mirrored(level, still, Start(still))


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning")
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_object_that_is_stretched_so_that_its_axes_change_places_is_not_turned(seed: int) -> None:
    image = organs(2, seed)
    grid, other = (
        Geometry.make([96, 96], spacing, -47.5 * np.array(spacing), np.eye(2)) for spacing in ([1.0, 1.0], [0.8, 1.24])
    )
    result = itk_nir.register((image, grid), (image, other), preset="fast", iterations=1)
    x = grid.grid()[image > 0]
    assert np.linalg.norm(result.affine.map(x) - x * other.spacing, axis=1).mean() < 1.5


def chest(shift: Sequence[float], seed: int) -> tuple[np.ndarray, Geometry, np.ndarray, np.ndarray]:
    """A body with two lungs and a heart, shifted, in noise; its grid, and where the lungs are."""
    g = Geometry.make((64, 36, 56), [2.0] * 3, None, np.eye(3))
    x, y, z = np.moveaxis((g.grid() - g.centre - shift) / (2 * 64 / 112), -1, 0)
    image = np.where((x / 46) ** 2 + (y / 26) ** 2 + (z / 44) ** 2 < 1, 150.0, 0.0)
    left, right = (((x - at) / 15) ** 2 + (y / 18) ** 2 + (z / 26) ** 2 < 1 for at in (-21, 21))
    image[left | right] = 40
    image[((x - 8) / 10) ** 2 + ((y - 8) / 10) ** 2 + (z / 26) ** 2 < 1] = 180
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 20, image.shape), 1.5)
    return ndimage.gaussian_filter(image + noise, 1.0).astype(np.float32), g, left, right


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning")
@pytest.mark.parametrize(
    ("shift", "lung", "given"),
    [
        ((4, -14, 5), 0, "fixed"),
        ((-10, 0, 5), 1, "fixed"),
        ((0, 18, 5), 1, "fixed"),
        ((4, -14, 5), 0, "moving"),
        ((4, -14, 5), 1, "both, unlike"),
        ((-10, 0, 5), 0, "both, unlike"),
    ],
)
def test_mask_of_one_lung_does_not_lead_to_the_other(shift: tuple[int, ...], lung: int, given: str) -> None:
    """Its centre of mass does not belong on that of the whole other image, which lies between the lungs."""
    fixed, g, *ours = chest(np.zeros(3), 0)
    moving, _, *theirs = chest(shift, 1)
    marked = {"fixed": ours[lung], "moving": theirs[lung] if given == "moving" else theirs[0] | theirs[1]}
    masks = {
        f"{side}_mask": to_sitk(ndimage.binary_dilation(marked[side], iterations=2).astype(np.uint8), g)
        for side in (marked if given.startswith("both") else (given,))
    }
    result = itk_nir.register(
        to_sitk(fixed, g), to_sitk(moving, g), preset="fast", linear="rigid", deformable=False, **masks
    )  # fmt: skip
    x = g.grid()[ours[lung]]
    assert np.linalg.norm(result.transform_points(x) - x - shift, axis=1).mean() < 1.0


def test_masses_are_those_of_like_extent() -> None:
    body, g, *lungs = chest(np.zeros(3), 0)
    around = torch.from_numpy(ndimage.binary_dilation(lungs[0], iterations=2).astype(np.float32))
    whole = pair_of(body, body, g)
    # One lung of both images, and of the first alone.
    both = replace(whole, fixed_weight=around, moving_weight=around)
    one = replace(whole, fixed_weight=around)
    # The other image shows this lung alone, as a brain without its head.
    alone = replace(pair_of(body, np.where(around.numpy() > 0, body, 0.0), g), fixed_weight=around)
    middle, aside = linear_starts.masses(whole)[0].centre, linear_starts.masses(both)[0].centre
    assert abs(middle[0] - aside[0]) > 15
    for pair, expected in ((one, middle), (alone, aside)):
        for mass in linear_starts.masses(pair):
            np.testing.assert_allclose(mass.centre, expected, atol=2.0)

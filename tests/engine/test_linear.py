"""The linear stage on textured pairs whose map is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import itk_nir
from itk_nir.engine import linear
from itk_nir.engine.images import Pair, as_volume
from itk_nir.engine.linear import LinearResult, optimise_linear
from itk_nir.engine.linear_level import LinearLevel, is_better_where_both, values_where_both
from itk_nir.engine.linear_search import Start, find_start
from itk_nir.engine.metrics import METRICS, Metric
from itk_nir.engine.progress import Progress
from itk_nir.engine.settings import LinearSettings
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings
from tests.engine.pairs import changed, pair_of
from tests.grids import about_centre, turned

BOTH = pytest.mark.parametrize("d", [2, 3])
LIKE_AND_UNLIKE = pytest.mark.parametrize("metric", ["lncc", "nmi"])
N = {2: 56, 3: 28}
QUICK = LinearSettings(linear_size=(24, 36), linear_iterations=(40, 25), linear_start_iterations=10)
# Fewer positions make the search over turns quicker, and what it shall find no easier to find.
COARSE = replace(QUICK, linear_search_size=10)


def named(metric: str) -> list[tuple[float, Metric]]:
    return [(1.0, METRICS[metric])]


def rigid(d: int, angle: float = 0.2, shift: float = 4.0) -> np.ndarray:
    m = np.eye(d + 1)
    c, s = np.cos(angle), np.sin(angle)
    m[:2, :2] = [[c, -s], [s, c]]
    if d == 3:
        tilt = np.eye(3)
        tilt[1:, 1:] = [[np.cos(0.15), -np.sin(0.15)], [np.sin(0.15), np.cos(0.15)]]
        m[:3, :3] = m[:3, :3] @ tilt
    m[:d, d] = np.array([1.0, -0.7, 0.5])[:d] * shift
    return m


def affine(d: int) -> np.ndarray:
    m = rigid(d)
    m[:d, :d] = m[:d, :d] @ np.diag([1.12, 0.93, 1.05][:d])
    m[0, 1] += 0.06
    return m


def error(case: Any, matrix: np.ndarray) -> float:
    """Mean distance to the true map within the object, mm."""
    d = case.fixed.dimension
    p = case.points()
    gap = p @ (matrix - case.linear)[:d, :d].T + (matrix - case.linear)[:d, d]
    return float(np.linalg.norm(gap, axis=-1).mean())


def registered(
    pair: Pair,
    kind: str,
    metric: str = "lncc",
    *,
    search: bool = True,
    settings: LinearSettings = QUICK,
    threads: int = 1,
) -> LinearResult:
    """As `register` does it: the start first."""
    start = find_start(pair, kind, settings, threads=threads) if search else None
    return optimise_linear(pair, kind, settings, named(metric), start=start, threads=threads)


def find(case: Any, kind: str, metric: str = "lncc", **options: Any) -> np.ndarray:
    found = registered(case.pair, kind, metric, **options)
    assert not found.cancelled
    assert 0 < found.similarity <= 1
    return found.matrix


@BOTH
@LIKE_AND_UNLIKE
def test_translation(make_case: Callable[..., Any], d: int, metric: str) -> None:
    shift = np.eye(d + 1)
    shift[:d, d] = [5.0, -3.0, 4.0][:d]
    case = make_case(d, N[d], linear=shift, given=np.eye(d + 1), amplitude=0.0)
    matrix = find(case, "translation", metric)
    assert error(case, matrix) < 0.3
    np.testing.assert_array_equal(matrix[:d, :d], np.eye(d))


@BOTH
@LIKE_AND_UNLIKE
def test_rigid(make_case: Callable[..., Any], d: int, metric: str) -> None:
    case = make_case(d, N[d], linear=rigid(d), given=np.eye(d + 1), amplitude=0.0)
    matrix = find(case, "rigid", metric)
    assert error(case, np.eye(d + 1)) > 3
    assert error(case, matrix) < 0.3
    np.testing.assert_allclose(matrix[:d, :d] @ matrix[:d, :d].T, np.eye(d), atol=1e-5)
    assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("d", "metric"), [(2, "lncc"), (2, "nmi"), pytest.param(3, "nmi", marks=pytest.mark.slow)])
def test_similarity(make_case: Callable[..., Any], d: int, metric: str) -> None:
    wanted = rigid(d)
    wanted[:d, :d] *= 1.12
    case = make_case(d, N[d], linear=wanted, given=np.eye(d + 1), amplitude=0.0)
    matrix = find(case, "similarity", metric)
    assert error(case, matrix) < 0.4
    size = np.linalg.det(matrix[:d, :d]) ** (1 / d)
    assert size == pytest.approx(1.12, abs=0.02)
    np.testing.assert_allclose(matrix[:d, :d] @ matrix[:d, :d].T, size**2 * np.eye(d), atol=1e-4)
    # A rigid map cannot.
    assert error(case, find(case, "rigid", metric)) > 0.5


@pytest.mark.parametrize(("d", "metric"), [(2, "lncc"), (2, "nmi"), pytest.param(3, "lncc", marks=pytest.mark.slow)])
def test_affine(make_case: Callable[..., Any], d: int, metric: str) -> None:
    case = make_case(d, N[d], linear=affine(d), given=np.eye(d + 1), amplitude=0.0)
    assert error(case, find(case, "affine", metric)) < 0.5
    # Nor can a similarity.
    assert error(case, find(case, "similarity", metric)) > 0.5


# --- far from the answer ---------------------------------------------------------------------------------------------


def about_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def repositioned(case: Any, turn: np.ndarray, shift: float = 0.0) -> Any:
    """The moving image laid elsewhere by its header alone: no voxel is resampled, and the true map is known."""
    d, g = case.fixed.dimension, case.pair.moving_geometry
    away = np.array([1.0, -0.6, 0.8])[:d] / np.linalg.norm([1.0, -0.6, 0.8][:d]) * shift
    place = np.eye(d + 1)
    place[:d, :d] = turn
    place[:d, d] = g.centre + away - turn @ g.centre
    laid = Geometry.make(g.size, g.spacing, turn @ np.asarray(g.origin) + place[:d, d], turn @ g.rotation)
    return replace(case, pair=changed(case.pair, moving_geometry=laid), linear=place @ case.linear)


# The search over turns knows no metric but its own; what follows it in 3D is tried with either metric.
@pytest.mark.parametrize(
    ("d", "metric", "degrees", "shift"),
    [
        *((2, metric, *turn) for metric in ("lncc", "nmi") for turn in ((60, 80.0), (90, 0.0), (180, 0.0))),
        pytest.param(3, "lncc", 60, 80.0, marks=pytest.mark.slow),
        pytest.param(3, "nmi", 90, 0.0, marks=pytest.mark.slow),
        pytest.param(3, "lncc", 180, 0.0, marks=pytest.mark.slow),
    ],
)
def test_turned_far(make_case: Callable[..., Any], d: int, metric: str, degrees: int, shift: float) -> None:
    case = make_case(d, 56 if d == 2 else 36, linear=rigid(d, 0.05, 2.0), given=np.eye(d + 1), amplitude=0.0)
    angle = np.deg2rad(degrees)
    far = repositioned(case, turned(2, angle) if d == 2 else about_x(angle), shift)
    assert error(far, np.eye(d + 1)) > 10
    assert error(far, find(far, "rigid", metric, settings=QUICK if d == 2 else COARSE)) < 1.0


def resized(case: Any, size: float) -> Any:
    """The moving image made larger by its header alone, about the origin."""
    d, g = case.fixed.dimension, case.pair.moving_geometry
    laid = Geometry.make(g.size, np.multiply(g.spacing, size), np.multiply(g.origin, size), g.rotation)
    place = np.diag([*[size] * d, 1.0])
    return replace(case, pair=changed(case.pair, moving_geometry=laid), linear=place @ case.linear)


@pytest.mark.parametrize(
    ("d", "size", "kinds"),
    [
        *((2, size, ("similarity", "affine")) for size in (0.4, 2.5, 12.0)),
        (3, 0.4, ("similarity",)),
        (3, 12.0, ("affine",)),
    ],
)
def test_another_size(make_case: Callable[..., Any], d: int, size: float, kinds: tuple[str, ...]) -> None:
    case = make_case(d, N[d], linear=rigid(d, 0.05, 2.0), given=np.eye(d + 1), amplitude=0.0)
    other = resized(case, size)
    settings = QUICK if d == 2 else COARSE
    for kind in kinds:
        matrix = find(other, kind, settings=settings)
        assert error(other, matrix) / size < 0.5
        assert abs(np.linalg.det(matrix[:d, :d])) ** (1 / d) == pytest.approx(size, rel=0.02)
    if d == 2 or size < 1:  # a rigid map has no size, and does not get one
        assert np.linalg.det(find(other, "rigid", settings=settings)[:d, :d]) == pytest.approx(1, abs=1e-5)


# Of so few voxels a freer map that does not turn lays the outlines on each other, and is half as large then, too.
@BOTH
def test_another_size_turned(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=rigid(d, 0.05, 2.0), given=np.eye(d + 1), amplitude=0.0)
    angle = np.deg2rad(120)
    other = repositioned(resized(case, 0.5), turned(2, angle) if d == 2 else about_x(angle), 30.0)
    assert error(other, find(other, "affine", settings=QUICK if d == 2 else COARSE)) / 0.5 < 0.8


def test_planes_get_a_finer_level(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 96, linear=affine(2), given=np.eye(3), amplitude=0.0)
    ends = []
    for settings in (QUICK, replace(QUICK, linear_plane_size=48)):
        start = find_start(case.pair, "affine", settings)
        ends.append(error(case, optimise_linear(case.pair, "affine", settings, named("nmi"), start=start).matrix))
    assert ends[1] < 0.7 * ends[0], ends


def test_levels_that_are_asked_for_are_all_there_are() -> None:
    assert make_settings("default").linear.linear_plane_size == 112
    for given in ({"linear_size": (30, 60)}, {"linear_iterations": (20, 5)}):
        assert make_settings("default", **given).linear.linear_plane_size == 0
    assert make_settings("default", linear_size=(30, 60), linear_plane_size=90).linear.linear_plane_size == 90


@BOTH
def test_order_and_sign_of_the_axes_change_nothing(make_case: Callable[..., Any], d: int) -> None:
    """The same scan, stored with its axes permuted and flipped."""
    case = make_case(d, N[d], spacing=(1.0, 1.2, 1.1)[:d], linear=rigid(d), given=np.eye(d + 1), amplitude=0.0)
    g, image = case.pair.moving_geometry, case.pair.moving
    last = g.index_to_physical(np.array([[g.size[0] - 1] + [0] * (d - 1)], float))[0]
    order = [1, 0, 2][:d]  # x and y change places, and the former x runs the other way
    rotation = g.rotation[:, order].copy()
    rotation[:, 1] *= -1
    other = Geometry.make([g.size[k] for k in order], [g.spacing[k] for k in order], last, rotation)
    stored = image.transpose(1, 2).flip(1).contiguous()
    again = replace(case, pair=changed(case.pair, moving=stored, moving_geometry=other))
    one, two = (find(each, "rigid") for each in (case, again))
    assert error(again, two) < 0.3
    np.testing.assert_allclose(two, one, atol=0.02 if d == 2 else 0.05)


@BOTH
def test_images_that_lie_far_apart_begin_with_their_centres(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=rigid(d), given=np.eye(d + 1), amplitude=0.0)
    far = repositioned(case, np.eye(d), 400.0)
    found = registered(far.pair, "rigid")
    assert [note for note in found.notes if "do not overlap" in note]
    assert error(far, found.matrix) < 0.3
    assert not find_start(case.pair, "rigid", QUICK).notes


# --- never worse than the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "metric", "kind"),
    [
        *((2, metric, kind) for metric in ("lncc", "nmi") for kind in ("rigid", "affine")),
        (3, "nmi", "rigid"),
        (3, "lncc", "affine"),
    ],
)
def test_noise_stays_as_it_lies(d: int, metric: str, kind: str) -> None:
    n = {2: 64, 3: 24}[d]
    g = Geometry.make([n] * d, [1.0] * d)
    rng = np.random.default_rng(3)
    noise = [as_volume(torch.from_numpy(rng.random([n] * d, np.float32))) for _ in range(2)]
    pair = Pair.make(noise[0], g, noise[1], g, np.eye(d + 1))
    np.testing.assert_array_equal(registered(pair, kind, metric).matrix, np.eye(d + 1))


@pytest.mark.parametrize("rigid", [0.5, -0.5])
@pytest.mark.parametrize(("gained", "stretched"), [(0.0, False), (0.02, True)])
def test_stretch_is_kept_where_it_gains_enough(
    monkeypatch: pytest.MonkeyPatch, rigid: float, gained: float, stretched: bool
) -> None:
    """Some metrics are below 0 where images have little in common: less is worse there too."""
    plain, base = np.eye(3), np.diag([1.1, 1.0, 1.0])
    monkeypatch.setattr(linear, "agreed", lambda level, m, metrics: rigid + gained * (m is base))
    descent = SimpleNamespace(levels=[None], metrics=())
    assert linear._needed(descent, plain, base, 0.02, (1,)) is (base if stretched else plain)  # type: ignore[arg-type]


@LIKE_AND_UNLIKE
def test_map_that_a_measure_holds_to_be_worse_is_given_up(
    make_case: Callable[..., Any], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(2, 56, linear=np.eye(3), amplitude=0.0)
    away = np.eye(3)
    away[0, 2] = 9.0
    monkeypatch.setattr(linear.LinearDescent, "run", lambda self, level, base, kind, count: (away, 0.0, False))
    found = registered(case.pair, "rigid", metric, search=False)
    np.testing.assert_array_equal(found.matrix, np.eye(3))
    assert any("was kept" in note for note in found.notes)
    assert found.similarity > 0.5


def test_without_a_start_nothing_is_searched(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 56, linear=rigid(2, 0.05, 2.0), given=np.eye(3), amplitude=0.0)
    far = repositioned(case, turned(2, np.pi / 2))
    assert error(far, find(far, "rigid")) < 1
    assert error(far, find(far, "rigid", search=False)) > 5


# --- grids, masks, maps that are given -------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
def test_unlike_oblique_grids_far_from_the_origin(make_case: Callable[..., Any], d: int) -> None:
    """The matrix is LPS, fixed → moving, whatever the grids."""
    case = make_case(
        d, N[d], spacing=(1.0, 1.3, 1.6)[:d], moving_spacing=(1.4, 0.9, 1.2)[:d], angle=0.5, moving_angle=-0.9,
        linear=affine(d), given=np.eye(d + 1), amplitude=0.0, away=90.0,
    )  # fmt: skip
    assert error(case, find(case, "affine")) < 0.4


def test_object_at_the_other_end_of_a_wide_image(make_case: Callable[..., Any]) -> None:
    """Neither the images as they lie nor their centres overlap enough: the centres of mass do."""
    case = make_case(2, 56, linear=rigid(2, 0.1, 0.0), given=np.eye(3), amplitude=0.0)
    wide = torch.zeros(1, 56, 180)
    wide[..., 120:176] = case.pair.moving
    pair = changed(case.pair, moving=wide[..., :180].contiguous(),
                   moving_geometry=case.pair.moving_geometry.crop((0, 0), (180, 56)))  # fmt: skip
    wanted = case.linear.copy()
    wanted[0, 2] += 120
    found = registered(pair, "rigid")
    assert error(replace(case, linear=wanted), found.matrix) < 0.5


@pytest.mark.slow
@BOTH
def test_inverted_contrast(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=affine(d), given=np.eye(d + 1), amplitude=0.0)
    inverted = replace(case, pair=changed(case.pair, moving=500 - 3 * case.pair.moving))
    assert error(inverted, find(inverted, "affine")) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_mask_leaves_the_rest_out(make_case: Callable[..., Any], which: str) -> None:
    case = make_case(2, 56, linear=rigid(2, 0.12, 3.0), given=np.eye(3), amplitude=0.0)
    g = case.fixed
    q = g.grid() - g.centre
    kept = as_volume(torch.from_numpy((q[..., 0] < 4).astype(np.float32)))
    # The other half of one image is that of an image that was never moved.
    plain = make_case(2, 56, amplitude=0.0)
    other = plain.pair.moving if which == "fixed" else plain.pair.fixed.flip(1) * 2
    image = torch.where(kept > 0.5, getattr(case.pair, which), other)
    spoilt = replace(case, pair=changed(case.pair, **{which: image}))
    masked = replace(spoilt, pair=changed(spoilt.pair, **{f"{which}_weight": kept}))
    assert error(masked, find(masked, "rigid")) < 0.4
    assert error(masked, find(masked, "rigid")) < error(spoilt, find(spoilt, "rigid"))


@pytest.mark.slow
@BOTH
def test_linear_map_that_is_given_comes_after(make_case: Callable[..., Any], d: int) -> None:
    case = make_case(d, N[d], linear=affine(d), given=rigid(d), amplitude=0.0)
    # From a turn that no start of its own would find.
    turned = rigid(d, 2.4, 0.0)
    far = make_case(d, N[d], linear=turned @ affine(d), given=turned, amplitude=0.0)
    for each in (case, far):
        assert error(each, find(each, "affine", search=False)) < 0.4


def test_nothing_to_find_leaves_what_is_given(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 56, linear=affine(2), amplitude=0.0)
    assert error(case, case.pair.linear) == pytest.approx(0, abs=1e-9)
    for kind in ("rigid", "affine"):
        assert error(case, find(case, kind, search=False)) < 0.1


def test_same_bits_again_and_on_more_threads(make_case: Callable[..., Any]) -> None:
    case = make_case(3, 28, linear=affine(3), given=np.eye(4), amplitude=0.0)
    few = LinearSettings(linear_size=(20,), linear_iterations=(20,), linear_start_iterations=5, linear_search_size=8)
    torch.rand(3)
    first = find(case, "affine", settings=few)
    for threads in (1, 2):
        np.testing.assert_array_equal(find(case, "affine", settings=few, threads=threads), first)


def test_progress_and_cancel(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48, linear=rigid(2), given=np.eye(3), amplitude=0.0)
    seen: list[Progress] = []
    optimise_linear(case.pair, "affine", QUICK, named("lncc"), callback=seen.append)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.1
    assert fractions[-1] <= 1.0
    assert {p.stage for p in seen} == {"linear"}
    assert {p.level for p in seen} == {0, 1}
    # Cancelled in the first level and in the last: the best so far, better than nothing.
    for at in (10, len(seen) - 3):
        count = 0

        def stop(_: Progress, at: int = at) -> bool:
            nonlocal count
            count += 1
            return count == at

        found = optimise_linear(case.pair, "affine", QUICK, named("lncc"), callback=stop)
        assert found.cancelled
        assert count == at
        assert error(case, found.matrix) < error(case, np.eye(3))
        assert found.similarity > seen[0].metric


@pytest.mark.parametrize("at", [1, 15])
def test_cancelled_while_the_starts_are_tried(make_case: Callable[..., Any], at: int) -> None:
    case = make_case(2, 48, linear=rigid(2), given=np.eye(3), amplitude=0.0)
    count = 0

    def stop(_: Progress) -> bool:
        nonlocal count
        count += 1
        return count == at

    start = find_start(case.pair, "rigid", QUICK, callback=stop)
    assert start.cancelled
    assert count == at
    found = optimise_linear(case.pair, "rigid", QUICK, named("lncc"), start=start)
    assert found.cancelled
    np.testing.assert_array_equal(found.matrix, start.matrix)


@cache
def small_mask(d: int) -> tuple[Any, Any, Any, np.ndarray, np.ndarray]:
    """A phantom whose moving side is turned and shifted; the images, a mask, points inside, and where they belong."""
    p = brain_phantom(d, (120, 140) if d == 2 else (52, 60, 52), seed=0)
    g, centre, turn = p.geometry, p.geometry.centre, turned(d, np.deg2rad(10), 0.0)
    shift = np.array([12.0, -9.0, 5.0])[:d]
    at = np.array(p.fixed.shape) // 2 + np.array([0] * (d - 1) + [12])
    mask = np.linalg.norm(np.moveaxis(np.indices(p.fixed.shape), 0, -1) - at, axis=-1) < {2: 9, 3: 3.2}[d]
    inside = mask & (p.fixed_labels > 0)
    x = g.grid()[inside]
    truth = (x + p.displacement[inside] - centre) @ turn.T + centre + shift
    moving = to_sitk(p.moving, about_centre(g, turn, shift))
    return to_sitk(p.fixed, g), moving, to_sitk(mask.astype(np.uint8), g), x, truth


@pytest.mark.filterwarnings("ignore::itk_nir.VerdictWarning")
@pytest.mark.parametrize("at", [1, 40])
def test_the_alignment_of_whole_images_can_be_stopped(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    fixed, moving, mask, *_ = small_mask(2)
    begun, look = [False], linear.find_start

    def noted(*a: Any, **k: Any) -> Any:
        begun[0] = True
        return look(*a, **k)

    monkeypatch.setattr(linear, "find_start", noted)
    fractions: list[float] = []
    inside = 0

    def stop(progress: Any) -> bool:
        nonlocal inside
        inside += begun[0] and progress.stage == "linear"
        fractions.append(progress.fraction)
        return inside >= at

    result = itk_nir.register(fixed, moving, fixed_mask=mask, preset="fast", linear="rigid", threads=1, callback=stop)
    assert result.report.stop == "cancelled"
    assert inside == at
    assert fractions == sorted(fractions)


@BOTH
def test_masks_that_show_too_little_are_aligned_with_the_whole_images(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, mask, x, truth = small_mask(d)

    def error(**few: int) -> tuple[float, itk_nir.RegistrationResult]:
        result = itk_nir.register(fixed, moving, fixed_mask=mask, preset="fast", linear="rigid", threads=1, **few)
        return float(np.linalg.norm(result.transform_points(x) - truth, axis=1).mean()), result

    found, result = error()
    assert found < 1.0
    assert result.report.verdict is not None
    assert result.report.verdict.grade == "good"
    assert "the whole images were aligned" in str(result.report.verdict)
    monkeypatch.setattr(linear, "_by_whole_images", lambda *_: (None, False))
    with pytest.warns(itk_nir.VerdictWarning):
        without, _ = error(iterations=1)
    assert without > 10.0


@BOTH
def test_a_map_that_lost_its_overlap_gives_way_to_the_start(make_case: Callable[..., Any], d: int) -> None:
    """A metric below zero is above it where there is nothing to compare."""
    case = make_case(d, N[d], linear=np.eye(d + 1), given=np.eye(d + 1), amplitude=0.0)
    here, away, part = np.eye(d + 1), np.eye(d + 1), np.eye(d + 1)
    away[0, -1], part[0, -1] = 1e4, 0.8 * case.fixed.size[0] * case.fixed.spacing[0]
    unlike, alike = (
        LinearLevel.of_size(pair, pair.normalised(), 24, 2, 1)
        for pair in (changed(case.pair, moving=-case.pair.moving), case.pair)
    )
    metrics, notes = named("mse"), list[str]()
    for found, start, wanted in ((here, away, here), (away, away, away), (here, here, here)):
        assert linear._where_they_overlap(unlike, found, Start(start), metrics, notes) is wanted
    assert linear._where_they_overlap(unlike, away, None, metrics, notes) is away
    assert linear._where_they_overlap(alike, here, Start(part), metrics, notes) is here
    assert notes == []
    for found in (away, part):
        assert linear._where_they_overlap(unlike, found, Start(here), metrics, notes) is here
        assert "the start was kept" in notes.pop()


@cache
def whole_brain() -> Phantom:
    return brain_phantom(3, (40, 48, 44))


@pytest.mark.parametrize(
    ("rotation", "given", "deformable"),
    [(0.15, True, False), (0.3, True, False), (0.3, False, False), (0.15, True, True), (0.25, True, True)],
)
def test_corners_that_a_turn_takes_out_of_the_image_count_against_no_map(
    rotation: float, given: bool, deformable: bool
) -> None:
    """A correlation of 0.9 has less to gain than the share of the positions that the right map loses."""
    p = whole_brain()
    fixed = to_sitk(p.fixed, p.geometry)
    turn = sitk.Euler3DTransform()
    turn.SetRotation(rotation, -0.8 * rotation, 1.2 * rotation)
    moving = sitk.Resample(fixed, fixed, turn.GetInverse(), sitk.sitkLinear, 0.0)
    more = {"initial_transform": np.eye(4)} if given else {}
    result = itk_nir.register(
        fixed, moving, metric="ncc", linear="rigid", deformable=deformable, preset="fast", threads=1, **more
    )
    points = p.geometry.index_to_physical(np.random.default_rng(0).uniform(8, 32, (50, 3)))
    expected = np.array([turn.TransformPoint(x) for x in points])
    assert np.linalg.norm(points - expected, axis=1).max() > 4
    assert np.linalg.norm(result.transform_points(points) - expected, axis=1).max() < (1.0 if deformable else 0.3)
    assert result.report.verdict.grade == "good"


def test_maps_are_compared_over_the_positions_that_both_have() -> None:
    """A shift that leaves a part is worse where that part alone is looked at, however well it fits there by chance."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(24, 24)).astype(np.float32)
    grid = Geometry.make((24, 24))
    pair = pair_of(image, image, grid)
    level = LinearLevel.of_size(pair, pair.normalised(), 24, 2, 1)
    metrics = [(1.0, METRICS["ncc"])]
    away, far = np.eye(3), np.eye(3)
    away[0, 2], far[0, 2] = 6, 18
    found = values_where_both(level, away, np.eye(3), metrics)
    assert found is not None
    there, here = found
    assert here == pytest.approx(1, abs=1e-5)
    assert abs(there) < 0.2
    assert is_better_where_both(level, away, np.eye(3), metrics)
    assert not is_better_where_both(level, np.eye(3), away, metrics)
    assert not is_better_where_both(level, np.eye(3), np.eye(3), metrics)
    assert values_where_both(level, np.eye(3), far, metrics) is None, "a quarter of the positions is left"

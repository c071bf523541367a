"""The linear stage without a deformation after it: finer levels, both ways, free of what noise asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import itk_nir
from itk_nir.engine.linear import optimise_linear
from itk_nir.engine.linear_fine import steps
from itk_nir.engine.linear_metrics import FLAT, steadied
from itk_nir.engine.metrics import LNCC, METRICS, LevelImages, WeightedSum
from itk_nir.engine.settings import LinearSettings
from itk_nir.engine.views import View
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from tests.engine.pairs import changed

FINE, COARSE = LinearSettings(), LinearSettings(linear_fine_iterations=0)


def about_centre(d: int, turn: float = 0.0, scale: float = 1.0, shear: float = 0.0, shift: float = 1.7) -> np.ndarray:
    out = np.eye(d + 1)
    c, s = np.cos(turn), np.sin(turn)
    out[:2, :2] = np.array([[c, -s], [s, c]]) @ [[1, shear], [0, 1]]
    out[:d, :d] *= scale
    out[:d, d] = shift * np.array([1.0, -0.6, 0.4])[:d]
    return out


def noisy(case: Any, level: float, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    images = {
        name: image + level * torch.randn(image.shape, generator=generator)
        for name, image in (("fixed", case.pair.fixed), ("moving", case.pair.moving))
    }
    return replace(case, pair=changed(case.pair, **images))


def errors(case: Any, kind: str, metric: str, *settings: LinearSettings) -> list[float]:
    """Mean distance to the true map within the object, voxels of the fixed image, for each of some settings."""
    p, d, out = case.points(), case.fixed.dimension, []
    for each in settings:
        found = optimise_linear(case.pair, kind, each, [(1.0, METRICS[metric])], alone=True)
        gap = p @ (found.matrix - case.linear)[:d, :d].T + (found.matrix - case.linear)[:d, d]
        out.append(float(np.linalg.norm(gap, axis=-1).mean() / min(case.fixed.spacing)))
    return out


@pytest.mark.parametrize(
    ("kind", "wanted", "metric"),
    [
        ("translation", about_centre(2), "mse"),
        ("rigid", about_centre(2, turn=0.12), "lncc"),
        ("similarity", about_centre(2, turn=0.1, scale=1.1), "nmi"),
        ("affine", about_centre(2, shear=0.12), "ncc"),
    ],
)
def test_as_exact_as_the_full_resolution_allows(
    make_case: Callable[..., Any], kind: str, wanted: np.ndarray, metric: str
) -> None:
    case = make_case(2, 128, linear=wanted, given=np.eye(3), amplitude=0.0)
    # One draw of the noise may favour either, and where a descent ends depends on how the processor rounds.
    drawn = [errors(noisy(case, 4.0, seed), kind, metric, COARSE, FINE) for seed in range(4)]
    coarse, fine = np.mean(drawn, axis=0)
    assert max(one for _, one in drawn) < 0.05
    assert fine < max(0.8 * coarse, 0.015)  # mutual information of such images is as exact at once


def test_scale_that_takes_half_of_the_image_out_of_view(make_case: Callable[..., Any]) -> None:
    """What the map makes of the size of the moving image is no lack of overlap."""
    case = noisy(make_case(2, 96, linear=about_centre(2, scale=1.5, shift=0.0), given=np.eye(3), amplitude=0.0), 2.0)
    assert errors(case, "affine", "nmi", FINE)[0] < 0.1


def test_frames_of_few_large_voxels(make_case: Callable[..., Any]) -> None:
    """Motion between frames that are not shrunk at any level."""
    wanted = about_centre(3, turn=0.03, shift=1.3)
    case = noisy(make_case(3, 120, spacing=4.0, linear=wanted, given=np.eye(4), amplitude=0.0), 4.0)
    coarse, fine = errors(case, "rigid", "nmi", COARSE, FINE)
    assert fine < 0.02
    assert fine < 0.6 * coarse


def test_noise_neither_shrinks_nor_shifts(make_case: Callable[..., Any]) -> None:
    case = noisy(make_case(2, 128, linear=about_centre(2, turn=0.15, shift=0.3), given=np.eye(3), amplitude=0.0), 12.0)
    sizes = []
    for settings in (COARSE, FINE):
        found = optimise_linear(case.pair, "affine", settings, [(1.0, METRICS["lncc"])], alone=True)
        sizes.append(abs(np.log(np.linalg.det(found.matrix))))
    assert sizes[1] < 0.002 < sizes[0]


def test_windows_of_little_but_noise_count_for_less() -> None:
    assert steadied(LNCC()) == LNCC(FLAT)
    assert steadied(LNCC(0.5)) == LNCC(0.5)
    mixed = WeightedSum(((0.3, LNCC()), (0.7, METRICS["mse"])))
    assert steadied(mixed) == WeightedSum(((0.3, LNCC(FLAT)), (0.7, METRICS["mse"])))
    # What fine levels compare is that metric, and two images of noise alone have next to nothing in common under it.
    generator = torch.Generator().manual_seed(0)
    noise = [0.05 * torch.randn(1, 40, 40, generator=generator) for _ in range(2)]
    alike = [
        float(metric.prepare(LevelImages(*noise, None, 3, 1, dimension=2))(View.identity(noise[1])))
        for metric in (LNCC(), steadied(LNCC()))
    ]
    assert alike[1] < 0.1 * alike[0]


def test_exchanged_grids_of_unlike_directions_and_masks(make_case: Callable[..., Any]) -> None:
    case = make_case(
        2, 96, spacing=(1.0, 1.3), moving_spacing=(0.8, 1.1), angle=0.5, moving_angle=-0.9, away=70.0,
        linear=about_centre(2, turn=0.2, scale=1.1), given=np.eye(3), amplitude=0.0,
    )  # fmt: skip
    mask = torch.from_numpy(case.inside(0.95).astype(np.float32))[None]
    for each in (case, replace(case, pair=changed(case.pair, fixed_weight=mask))):
        assert errors(each, "affine", "mse", FINE)[0] < 0.03


def test_a_deformation_after_it_changes_nothing(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 96, linear=about_centre(2), given=np.eye(3), amplitude=0.0)
    found = [
        optimise_linear(case.pair, "rigid", s, [(1.0, METRICS["lncc"])], alone=a).matrix
        for s, a in ((FINE, False), (COARSE, False), (FINE, True))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_same_bits_on_more_threads(make_case: Callable[..., Any]) -> None:
    case = make_case(3, 28, linear=about_centre(3), given=np.eye(4), amplitude=0.0)
    found = [
        optimise_linear(case.pair, "affine", FINE, [(1.0, METRICS["lncc"])], alone=True, threads=n).matrix
        for n in (1, 2)
    ]
    np.testing.assert_array_equal(*found)


def test_cancelled_at_a_finer_level(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 128, linear=about_centre(2), given=np.eye(3), amplitude=0.0)
    seen: list[bool] = []

    def stop(progress: Any) -> bool:
        assert progress.level < progress.levels  # the finer levels belong to the last
        seen.append(progress.level == 1 and progress.iterations == FINE.linear_fine_iterations)
        return seen[-1]

    found = optimise_linear(case.pair, "rigid", FINE, [(1.0, METRICS["mse"])], alone=True, callback=stop)
    assert found.cancelled
    assert seen.count(True) == 1
    assert 0 < found.similarity <= 1


@pytest.mark.parametrize(
    ("size", "coarse", "wanted"),
    [((256, 256), 256 / 56, [2.618, 1.118]), ((56, 48, 40), 1.0, [1.118]), ((224, 192, 160), 4.0, [2.618]),
     ((4096, 4096), 4096 / 56, [27.618, 13.618, 6.618])],
)  # fmt: skip
def test_steps_never_repeat_and_fit_in_the_budget(size: tuple[int, ...], coarse: float, wanted: list[float]) -> None:
    geometry = Geometry.make(size, (1.0,) * len(size))
    found = steps(geometry, 1.0, coarse)
    assert found == pytest.approx(wanted)
    assert steps(Geometry.make(size, (1000.0,) * len(size)), 1000.0, 1000 * coarse) == pytest.approx(
        [1000 * s for s in found]
    )


@pytest.mark.filterwarnings("ignore:.*is binary", "ignore:.*covers 3. %")
def test_rectangle_onto_a_square() -> None:
    """The squares of elastix' own tests: 70 by 90 onto 50 by 50, here two thirds of that."""
    y, x = np.mgrid[:112, :112] - 55.5
    fixed = ((abs(x) < 17) & (abs(y) < 17)).astype(np.float32)
    moving = ((abs(x - 4) < 24) & (abs(y + 3) < 31)).astype(np.float32)
    grid = Geometry.make((112, 112), (1.0, 1.0))
    call: dict[str, Any] = {"deformable": False, "preset": "fast", "threads": 1}
    with pytest.warns(UserWarning, match=r"2\.\d* times as small in area"):
        result = itk_nir.register(to_sitk(fixed, grid), to_sitk(moving, grid), **call)
    assert np.corrcoef(result.warped_array.ravel(), fixed.ravel())[0, 1] > 0.98

"""itk-dreg drives our block registration; skipped where itk-dreg is not installed."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from itk_nir.engine.metrics import MutualInformation
from itk_nir.errors import OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image, to_itk
from itk_nir.settings import make_settings
from itk_nir.transforms.as_itk import linear_to_itk
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

pytest.importorskip("dask", reason="needs dask: pip install 'itk-nir[dreg]'")
pytest.importorskip("itk_dreg", reason="needs itk-dreg: pip install 'itk-nir[dreg]'")

#: Few iterations on two levels, for structures of some voxels.
QUICK: dict[str, Any] = {
    "preset": "fast", "device": "cpu", "threads": 1, "shrink_factors": (2, 1), "smoothing_sigmas": (0.4, 0.3),
    "iterations": (30, 10), "learning_rates": (0.4, 0.2), "grid_spacing": (2.0, 4.0), "coarsest_grid_spacing": 8.0,
    "radius": (3, 3), "velocity_smoothness": (0.05, 0.05), "smoothness": (0.0, 0.0),
}  # fmt: skip


def texture(points: np.ndarray) -> np.ndarray:
    """Smooth, everywhere structured intensities at physical points, 0 to 100."""
    total = np.zeros(points.shape[:-1])
    generator = np.random.default_rng(1)
    for _ in range(24):
        k = generator.normal(size=points.shape[-1])
        k *= 2 * np.pi / generator.uniform(9, 22) / np.linalg.norm(k)
        total += np.sin(points @ k + generator.uniform(0, 6))
    return (50 + 12 * total).astype(np.float32)


def motion(points: np.ndarray) -> np.ndarray:
    """The residual motion, mm: up to 2."""
    d = points.shape[-1]
    phase = points / 14.0
    return np.stack([1.6 * np.sin(phase[..., (a + 1) % d] + a) for a in range(d)], axis=-1)


SHIFT = (7.0, -4.0, 3.0)


def pair(d: int) -> tuple[Geometry, np.ndarray, Geometry, np.ndarray]:
    """Fixed and moving image, with ``moving point = fixed point + motion + SHIFT``, on unequal axis-aligned grids."""
    fixed = Geometry.make((36, 30, 26)[:d], (1.0, 1.2, 1.4)[:d], (-20.0, 5.0, 30.0)[:d])
    shift = np.array(SHIFT[:d])
    moving = Geometry.make((48, 40, 32)[:d], (1.1, 1.1, 1.3)[:d], np.asarray(fixed.origin) + shift - 5)
    points = fixed.grid()
    return fixed, texture(points + motion(points) + shift), moving, texture(moving.grid())


def translation(d: int) -> LinearTransform:
    return LinearTransform.make(np.eye(d), SHIFT[:d])


class Reader:
    """A reader constructor, as itk-dreg wants it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self, **_: Any) -> Any:
        import itk
        from itk_dreg.itk import make_reader

        return make_reader(self.path, image_type=itk.Image[itk.F, 3])


def test_register_images_in_blocks(tmp_path: Path) -> None:
    import itk
    from itk_dreg.reduce_dfield.dreg import ReduceToDisplacementFieldMethod
    from itk_dreg.register import register_images

    from itk_nir.compat.dreg import BlockPairRegistration

    grid, fixed, moving_grid, moving = pair(3)
    save_image(fixed, grid, tmp_path / "fixed.mha", compression=0)
    save_image(moving, moving_grid, tmp_path / "moving.mha", compression=0)
    schedule = register_images(
        fixed_reader_ctor=Reader(tmp_path / "fixed.mha"),
        moving_reader_ctor=Reader(tmp_path / "moving.mha"),
        block_registration_method=BlockPairRegistration(**QUICK),
        reduce_method=ReduceToDisplacementFieldMethod(),
        initial_transform=linear_to_itk(translation(3)),
        fixed_chunk_size=[26, 30, 18],
        overlap_factors=[0.4, 0.4, 0.4],
        displacement_grid_scale_factors=[6.0, 6.0, 6.0],
    )
    assert schedule.fixed_da.numblocks == (1, 1, 2)
    result = schedule.registration_result.compute(scheduler="threads", num_workers=2)
    assert result.status.shape == (1, 1, 2)
    assert not result.status.any()
    # The update runs after the initial transform.
    whole = itk.CompositeTransform[itk.D, 3].New()
    whole.AddTransform(result.transforms.transform)
    whole.AddTransform(linear_to_itk(translation(3)))
    inner = grid.grid()[3:-3, 3:-3, 3:-3].reshape(-1, 3)[::37]
    truth = inner + motion(inner) + np.array(SHIFT)
    before = np.linalg.norm(truth - translation(3).map(inner), axis=1)
    after = np.linalg.norm(truth - np.array([whole.TransformPoint(p.tolist()) for p in inner]), axis=1)
    assert before.mean() > 1.5
    assert after.mean() < 0.3 * before.mean()


def test_a_thin_last_block_is_registered_too() -> None:
    """Two slices behind three chunks of eight, with the motion of the rest."""
    import itk

    from itk_nir.compat.dreg import BlockPairRegistration

    grid, fixed, moving_grid, moving = pair(3)
    thin = itk.extract_image_filter(
        to_itk(fixed, grid), extraction_region=itk.ImageRegion[3]([0, 0, 12], [36, 30, 2])
    )  # fmt: skip
    method, start = BlockPairRegistration(**QUICK), linear_to_itk(translation(3))
    with pytest.warns(UserWarning, match="expect little from that direction"):
        result = method(fixed_subimage=thin, moving_subimage=to_itk(moving, moving_grid), initial_transform=start)
    assert result.status.name == "SUCCESS"
    assert tuple(itk.size(result.transform_domain)) == (36, 30, 2)
    inner = grid.grid()[12:14, 3:-3, 3:-3].reshape(-1, 3)[::7]
    moved = translation(3).map(inner)
    truth = inner + motion(inner) + SHIFT
    after = np.array([result.transform.TransformPoint(p.tolist()) for p in moved])
    gap = np.linalg.norm((after - truth)[:, :2], axis=1).mean()
    assert gap < 0.4 * np.linalg.norm((moved - truth)[:, :2], axis=1).mean()


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", ["none", "linear", "field"])
def test_a_block_pair_runs_after_the_initial_transform(d: int, kind: str) -> None:
    import itk

    from itk_nir.compat.dreg import BlockPairRegistration

    grid, fixed, moving_grid, moving = pair(d)
    angle = 0.02
    turn = np.eye(d)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    start: CompositeTransform | None = CompositeTransform((LinearTransform.make(turn, SHIFT[:d], grid.centre),))
    if kind == "field":
        assert start is not None
        start = CompositeTransform((start.displacement_on(grid.crop([-8] * d, [n + 16 for n in grid.size])),))
    if kind == "none":
        start = None
        moving_grid = Geometry.make(moving_grid.size, moving_grid.spacing, np.asarray(moving_grid.origin) - SHIFT[:d])
    first = None if start is None else (linear_to_itk(start.transforms[0]) if start.is_linear else transform_of(start))
    # A block of a larger image: its region does not begin at index 0.
    image = itk.extract_image_filter(
        to_itk(fixed, grid), extraction_region=itk.ImageRegion[d]([4] * d, [n - 6 for n in grid.size])
    )
    image.SetRequestedRegion(itk.ImageRegion[d]([6] * d, [n - 10 for n in grid.size]))
    result = BlockPairRegistration(**QUICK)(
        fixed_subimage=image,
        moving_subimage=to_itk(moving, moving_grid),
        initial_transform=first,
        block_info=SimpleNamespace(chunk_index=[0] * d),
        write_debug=False,
    )
    assert result.status == 0
    block = grid.crop([4] * d, [n - 6 for n in grid.size])
    inner = block.grid()[(slice(2, -2),) * d].reshape(-1, d)[:: 7 if d == 2 else 61]
    met = inner if start is None else start.map(inner)
    truth = inner + motion(inner) + (0 if start is None else np.array(SHIFT[:d]))
    got = np.array([result.transform.TransformPoint(p.tolist()) for p in met])
    assert np.linalg.norm(truth - met, axis=1).mean() > 1.0
    assert np.linalg.norm(truth - got, axis=1).mean() < 0.45
    # Its domain holds every point of the block, its inverse comes back.
    domain = load_domain(result.transform_domain)
    assert domain.contains(met).all()
    back = np.array([result.inv_transform.TransformPoint(p.tolist()) for p in got])
    assert np.median(np.linalg.norm(back - met, axis=1)) < 0.05
    # It travels between processes.
    again = pickle.loads(pickle.dumps(result))
    assert again.status == result.status
    assert again.report == result.report
    with pytest.warns(DeprecationWarning, match="BlockResult.metrics is called BlockResult.report since"):
        assert result.metrics == result.report.as_dict()
    for p in met[:5]:
        assert again.transform.TransformPoint(p.tolist()) == result.transform.TransformPoint(p.tolist())
    assert load_domain(again.transform_domain) == domain
    assert load_domain(again.inv_transform_domain) == moving_grid


def test_an_empty_block_is_a_failed_block(caplog: pytest.LogCaptureFixture) -> None:
    from itk_nir.compat.dreg import BlockPairRegistration

    grid, fixed, moving_grid, moving = pair(3)
    result = BlockPairRegistration(**QUICK)(
        to_itk(np.zeros_like(fixed), grid), to_itk(moving, moving_grid), None, SimpleNamespace(chunk_index=[0, 1, 0])
    )
    assert int(result.status) == 1
    assert result.transform is None
    assert "block [0, 1, 0]: fixed block: one value everywhere" in caplog.text


def test_method_travels_between_processes() -> None:
    from itk_nir.compat.dreg import BlockPairRegistration

    method = pickle.loads(pickle.dumps(BlockPairRegistration("fast", iterations=(3, 2, 1))))
    assert (method.preset, method.options) == ("fast", {"iterations": (3, 2, 1)})
    assert method.settings == make_settings("fast", iterations=(3, 2, 1))


@pytest.mark.filterwarnings("ignore:.*little in common")  # after so few iterations
@pytest.mark.parametrize("metric", ["0.5*nmi + 0.5*lncc", MutualInformation(16)])
def test_the_metric_is_that_of_every_block(metric: Any) -> None:
    """Also on the other side of a process."""
    from itk_nir.compat.dreg import BlockPairRegistration

    grid, fixed, moving_grid, moving = pair(2)
    method = pickle.loads(pickle.dumps(BlockPairRegistration(metric=metric, **QUICK)))
    result = method(to_itk(fixed, grid), to_itk(moving, moving_grid))
    told = result.report.settings["deformable"]["metric"]
    assert told == (metric if isinstance(metric, str) else dataclasses.asdict(metric))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "0.5*nmi + 0.5*lnc"}, "metric must be one of"),
        ({"stepz": 3}, "stepz"), ({"fixed_mask": 1}, "fixed_mask"), ({"linear": "full"}, "linear"),
        ({"device": "tpu"}, "device"), ({"seed": -1}, "seed"), ({"threads": 0}, "threads"), ({"preset": "x"}, "preset"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_any_block(options: dict[str, Any], message: str) -> None:
    from itk_nir.compat.dreg import BlockPairRegistration

    with pytest.raises(OptionError, match=message):
        BlockPairRegistration(**options)


def transform_of(chain: CompositeTransform) -> Any:
    from itk_nir.transforms.as_itk import field_to_itk

    step = chain.transforms[0]
    assert isinstance(step, DisplacementField)
    return field_to_itk(step)


def load_domain(image: Any) -> Geometry:
    import itk

    assert not image.GetLargestPossibleRegion().GetIndex()[0]
    return Geometry.make(
        tuple(image.GetLargestPossibleRegion().GetSize()),
        tuple(image.GetSpacing()),
        tuple(image.GetOrigin()),
        itk.array_from_matrix(image.GetDirection()),
    )

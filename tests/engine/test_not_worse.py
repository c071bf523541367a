"""What must not get worse: no level, and no registration, ends less alike than it began."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itk_nir.engine.deformable import optimise
from itk_nir.engine.images import Pair, as_volume
from itk_nir.engine.lattice import Domain
from itk_nir.engine.level_grids import at_nearest, margins
from itk_nir.engine.metrics import METRICS, LevelImages
from itk_nir.engine.settings import DeformableSettings
from itk_nir.engine.views import View
from itk_nir.errors import NothingToCompare
from itk_nir.phantom import Phantom, brain_phantom
from tests.engine.pairs import SMALL, changed, gap, quick

BOTH = pytest.mark.parametrize("d", [2, 3])
SEVERAL = pytest.mark.parametrize("metric", ["lncc", "nmi", "mind"])


@pytest.fixture(scope="module")
def brains() -> dict[int, Phantom]:
    return {2: brain_phantom(2, (64, 80)), 3: brain_phantom(3, (36, 44, 36))}


@pytest.fixture(scope="module")
def coarse(brains: dict[int, Phantom]) -> dict[int, Phantom]:
    """The same brains, and in 3D with about half as many voxels."""
    return brains | {3: brain_phantom(3, (30, 36, 30))}


def pair_of(brain: Phantom) -> Pair:
    fixed, moving = (as_volume(torch.from_numpy(x)) for x in (brain.fixed, brain.moving))
    return Pair.make(fixed, brain.geometry, moving, brain.moving_geometry, np.eye(brain.geometry.dimension + 1))


def plain(**changes: Any) -> DeformableSettings:
    """The defaults, as they are told."""
    return DeformableSettings(**({"extra_iterations_below": 0} | changes))


def voxel(brain: Phantom) -> float:
    return min(brain.geometry.spacing)


# --- what is right already -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "seed"), [(2, 0), (2, 1), (3, 0)])
@pytest.mark.parametrize("metric", METRICS)
def test_same_image_stays_where_it_is(
    brains: dict[int, Phantom], coarse: dict[int, Phantom], d: int, metric: str, seed: int
) -> None:
    """In the network's phase exactly; afterwards too, but for information, which is not greatest there to the bit."""
    brain = (brains if metric in ("nmi", "mi") else coarse)[d]
    pair = pair_of(brain)
    # With a mask everywhere both images have the same voxels at every level.
    same = changed(pair, moving=pair.fixed, fixed_weight=torch.ones_like(pair.fixed))
    alone = optimise(same, plain(metric=metric, network_above=0, network_warmup=1.0, iterations=(20, 0, 0)), seed=seed)
    whole = optimise(same, plain(metric=metric), seed=seed)
    if metric in ("nmi", "mi"):
        assert float(alone.field.forward.abs().max()) < 0.25 * voxel(brain)
        assert float(whole.field.forward.abs().mean()) < 0.15 * voxel(brain)
    else:
        assert not alone.field.forward.any()
        assert len(alone.trace) <= 2
        assert float(whole.field.forward.abs().max()) < 1e-3 * voxel(brain)


@BOTH
@SEVERAL
def test_network_never_raises_the_loss(coarse: dict[int, Phantom], d: int, metric: str) -> None:
    """Of what it is left at, not of what it tries; whatever the seed and however long its steps."""
    pair = pair_of(coarse[d])
    for seed, radius in ((0, 2.0), (1, 2.0), (0, 60.0)):
        settings = plain(
            metric=metric, iterations=(15, 0, 0), network_above=0, network_warmup=0.6, network_radius=radius
        )
        losses = [t.loss for t in optimise(pair, settings, seed=seed).trace]
        assert losses[9] == pytest.approx(min(losses[:9]), abs=1e-5)  # where the control points begin
        assert min(losses[:9]) < losses[0]


# --- what is hard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "metric", "radius"),
    [
        *((2, "lncc", radius) for radius in (3, 4, 6)),
        *((2, "nmi", radius) for radius in (3, 6)),
        *((2, "mind", radius) for radius in (3, 4)),
        *((3, "lncc", radius) for radius in (3, 6)),
        (3, "nmi", 4),
        (3, "mind", 6),
    ],
)
def test_small_mask_does_no_harm(coarse: dict[int, Phantom], d: int, metric: str, radius: int) -> None:
    """Five places each: never less alike than they were, and nearer to the truth where a few voxels can tell it."""
    brain, pair = coarse[d], pair_of(coarse[d])
    where = np.argwhere(brain.fixed_labels > 0)
    index = np.stack(np.meshgrid(*map(np.arange, brain.fixed.shape), indexing="ij"), -1)
    before, after = [], []
    for centre in where[:: len(where) // 5][:5]:
        mask = np.linalg.norm(index - centre, axis=-1) <= radius + (d == 3)
        masked = changed(pair, fixed_weight=as_volume(torch.from_numpy(mask.astype(np.float32))))
        result = optimise(masked, plain(metric=metric))
        assert result.similarity is not None
        assert result.similarity_start is not None
        assert result.similarity >= result.similarity_start
        truth = brain.displacement[mask]
        error = result.field.displacement(brain.geometry.grid()[mask]) - truth
        before.append(np.linalg.norm(truth, axis=-1).mean())
        after.append(np.linalg.norm(error, axis=-1).mean())
    if d == 3 or metric == "lncc":  # in 2D, a few dozen pixels fit to several places in another contrast
        assert np.mean(after) < np.mean(before)
        assert max(after) < max(before) + 2 * voxel(brain)


@BOTH
@SEVERAL
def test_stiff_penalty_hardly_bends_anything(brains: dict[int, Phantom], d: int, metric: str) -> None:
    """A thousand times the smoothness; only a shift costs nothing."""
    brain, pair = brains[d], pair_of(brains[d])
    inside = brain.geometry.grid()[brain.fixed_labels > 0]
    free, stiff = (
        optimise(
            pair, plain(metric=metric, network_above=0, smoothness=tuple(k * w for w in (1.2, 0.65, 1.1)))
        ).field.displacement(inside)
        for k in (1, 1000)
    )
    bent = [np.linalg.norm(u - u.mean(0), axis=-1).mean() / voxel(brain) for u in (free, stiff)]
    assert bent[1] < 0.15 < 0.25 < bent[0]
    assert np.linalg.norm(stiff.mean(0)) < voxel(brain)


@BOTH
@SEVERAL
def test_seeds_agree(brains: dict[int, Phantom], d: int, metric: str) -> None:
    brain, pair = brains[d], pair_of(brains[d])
    inside, truth = brain.geometry.grid()[brain.fixed_labels > 0], brain.displacement[brain.fixed_labels > 0]
    fields = [optimise(pair, plain(metric=metric), seed=seed).field for seed in ((0, 1, 2) if d == 2 else (0, 1))]
    for field in fields:
        error = np.linalg.norm(field.displacement(inside) - truth, axis=-1).mean()
        assert error < 0.6 * np.linalg.norm(truth, axis=-1).mean()
        assert gap(field, fields[0], inside).mean() < 0.2 * voxel(brain)


# --- what is given back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
def test_level_that_is_spoilt_gives_its_start_back(make_case: Callable[..., Any], symmetric: bool) -> None:
    case = make_case(2, 48)
    good = quick(iterations=(20, 0), network=None, symmetric=symmetric)
    wanted = optimise(case.pair, good)
    spoilt = optimise(
        case.pair, quick(iterations=(20, 8), network=None, symmetric=symmetric, learning_rates=(0.4, 90.0))
    )
    assert wanted.returned_levels == ()
    assert spoilt.returned_levels == (1,)
    assert len(spoilt.trace) == 28
    p = case.points()
    assert gap(spoilt.field, wanted.field, p).max() < 1e-4
    assert spoilt.similarity is not None
    assert spoilt.similarity_start is not None
    assert spoilt.similarity > spoilt.similarity_start


@pytest.mark.parametrize("few", [1, 2, 3, 9])
def test_everything_that_is_spoilt_leaves_the_identity(make_case: Callable[..., Any], few: int) -> None:
    case = make_case(2, 48)
    spoilt = quick(iterations=(few, few), network=None, learning_rates=(90.0, 90.0))
    result = optimise(case.pair, spoilt)
    assert result.returned_levels == (0, 1)
    assert not result.field.forward.any()
    assert result.similarity == result.similarity_start


def test_registration_that_is_less_alike_in_the_end_is_none(make_case: Callable[..., Any]) -> None:
    """What a coarse level gains can be a loss at the finest: then nothing is left of either."""
    case = make_case(2, 48, amplitude=0.0)
    ones = torch.ones_like(case.pair.fixed)

    class Astray:
        """At the coarse level the image shall be elsewhere."""

        def prepare(self, images: LevelImages) -> Any:
            metric = METRICS["ncc"].prepare(images)
            if images.fixed.shape[-1] < 40:
                away = images.fixed.roll(2, 2)
                return METRICS["ncc"].prepare(LevelImages(away, images.moving, None, 3))
            return metric

    result = optimise(
        changed(case.pair, fixed_weight=ones),
        quick(metric=Astray(), network=SMALL, iterations=(30, 1), smoothness=(0.0, 0.0)),
    )
    assert result.trace[29].metric > result.trace[0].metric + 0.1
    assert result.similarity == result.similarity_start == pytest.approx(1, abs=1e-3)
    assert not result.field.forward.any()
    assert not result.field.backward.any()
    assert result.returned_levels == (0, 1)


def test_similarity_that_is_no_number_is_given_back(make_case: Callable[..., Any]) -> None:
    case = make_case(2, 48)

    class Cracked:
        """Not a number once the images have become more alike."""

        def prepare(self, images: LevelImages) -> Any:
            return CrackedHere(METRICS["ncc"].prepare(images))

    with pytest.warns(UserWarning, match="metric Cracked gave nan under a map, which is taken for the worst"):
        result = optimise(case.pair, quick(metric=Cracked(), iterations=(10, 5), network=None))
    assert torch.isfinite(result.field.forward).all()
    assert result.similarity is not None
    assert np.isfinite(result.similarity)
    with pytest.warns(UserWarning, match="metric Cracked gave nan"):
        result = optimise(case.pair, quick(metric=Cracked(), iterations=(10, 5), network=SMALL))
    assert torch.isfinite(result.field.forward).all()


class CrackedHere:
    def __init__(self, metric: Any) -> None:
        self.metric, self.count = metric, metric.count
        self.limit: float | None = None

    def __call__(self, view: View) -> Tensor:
        value: Tensor = self.metric(view)
        if self.limit is None:
            self.limit = float(value.detach()) + 0.05
        return value * float("nan") if float(value.detach()) > self.limit else value


# --- levels that see nothing -----------------------------------------------------------------------------------------


def under_a_small_mask(brain: Phantom, width: int) -> Pair:
    """A mask of some voxels, between those of a level that is shrunk much."""
    pair = pair_of(brain)
    mask = torch.zeros_like(pair.fixed)
    y, x = (n // 2 - 6 for n in pair.fixed.shape[1:])
    mask[:, y : y + width, x : x + width] = 1
    return changed(pair, fixed_weight=mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mask_of_one_slice_counts_at_every_level(coarse: dict[int, Phantom], axis: int) -> None:
    brain, pair = coarse[3], pair_of(coarse[3])
    slice_ = np.zeros(pair.fixed.shape, bool)
    np.moveaxis(slice_, axis, 0)[slice_.shape[axis] // 2 + 1] = True
    masked = changed(pair, fixed_weight=torch.from_numpy(slice_.astype(np.float32)))
    done = optimise(masked, DeformableSettings(extra_iterations_below=0))
    assert {i.level for i in done.trace} == {0, 1, 2}
    inside = slice_ & (brain.fixed_labels > 0)
    truth = brain.displacement[inside]
    error = np.linalg.norm(done.field.displacement(brain.geometry.grid()[inside]) - truth, axis=-1).mean()
    assert error < 0.85 * np.linalg.norm(truth, axis=-1).mean()


def test_thin_masks_are_widened_to_the_voxels_of_a_level_and_others_are_not() -> None:
    mask = torch.zeros(20, 24, 28)
    mask[9, 4:20, 5:6] = 1
    at = [np.arange(1.5, n, 4.0) for n in mask.shape[::-1]]
    found = at_nearest(mask, at)
    # 1 of z: between 7 and 11 the sample at 9.5; y is wide: those nearest to 5.5, 9.5, …; 1 of x: the sample at 5.5.
    assert found.shape == (5, 6, 7)
    assert found.nonzero().tolist() == [[2, y, 1] for y in range(1, 5)]
    mask[3:18, :, 5:20] = 1
    nearest = mask[np.rint(at[2]).astype(int)][:, np.rint(at[1]).astype(int)][:, :, np.rint(at[0]).astype(int)]
    assert torch.equal(at_nearest(mask, at), nearest)


def test_what_the_block_around_a_mask_adds_to_the_energy(brains: dict[int, Phantom]) -> None:
    pair = pair_of(brains[3])
    z = pair.fixed_geometry.spacing[2]
    whole = Domain((0, 0, 0), tuple(pair.fixed.shape[::-1]))  # type: ignore[arg-type]
    assert margins(pair, whole, 1e3) == 1.0
    mask = torch.zeros_like(pair.fixed)
    mask[10:12, 5:30, :] = 1
    masked = changed(pair, fixed_weight=mask)
    block = Domain((0, 0, 4), (whole.size[0], 50, 18))
    # The block is twice as long and nine times as thick as the mask; a factor of 1.5 is usual.
    assert margins(masked, block, 2 * z) == pytest.approx(12**0.5)
    assert margins(masked, block, 4 * z) == pytest.approx(2 * 12**0.5)
    flat = pair_of(brains[2])
    everywhere = changed(flat, fixed_weight=torch.ones_like(flat.fixed))
    assert margins(everywhere, Domain((0, 0, 0), tuple(flat.fixed.shape[::-1])), 1.5) == 1.0  # type: ignore[arg-type]


def test_level_that_sees_nothing_under_a_mask_is_left_out(brains: dict[int, Phantom]) -> None:
    pair = under_a_small_mask(brains[2], 3)
    settings = quick(shrink_factors=(4, 1), iterations=(5, 6), convergence_threshold=0.0)
    done = optimise(pair, settings)
    assert [i.level for i in done.trace] == [1] * 6
    assert done.similarity is not None
    assert done.similarity_start is not None
    assert done.similarity >= done.similarity_start


def test_no_level_that_sees_anything(brains: dict[int, Phantom]) -> None:
    pair = under_a_small_mask(brains[2], 0)
    with pytest.raises(NothingToCompare):
        optimise(pair, quick(shrink_factors=(4, 1), iterations=(5, 6)))

"""What `metric` may be, what a metric says of the settings, and the settings for a pair."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from itk_nir.engine.metrics import (
    LNCC,
    METRICS,
    MIND,
    NCC,
    Metric,
    MetricNames,
    MutualInformation,
    Tuning,
    WeightedSum,
    channel_metrics,
    mean_of,
    mean_tuning,
    metric_named,
)
from itk_nir.engine.settings import MOST_LEVELS, DeformableSettings
from itk_nir.errors import OptionError
from itk_nir.settings import make_settings

GOOD: dict[str, tuple[tuple[float, str], ...]] = {
    "0.5*nmi + 0.5*mind": ((0.5, "nmi"), (0.5, "mind")),
    "nmi+mind": ((1.0, "nmi"), (1.0, "mind")),
    " 2 * lncc ": ((2.0, "lncc"),),
    "1e-2*ncc +3*mse+ mi": ((0.01, "ncc"), (3.0, "mse"), (1.0, "mi")),
    "nmi + nmi": ((1.0, "nmi"), (1.0, "nmi")),
}
BAD = ("", " ", "lnc", "0.5*lnc", "nmi +", "+ nmi", "nmi + + mind", "0*nmi + mind", "-1*nmi", "nmi - mind", "nmi*0.5",
       "0.5*0.5*nmi", "0.5*", "e*nmi", "1e999*nmi", "nan*nmi", "0.5 nmi", "0.5*auto + nmi", "nmi, mind",
       "NMI")  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_sums_that_are_spelt_out(text: str) -> None:
    settings = make_settings("default", metric=text).deformable
    assert settings.metric == text
    assert metric_named(text) == WeightedSum(tuple((w, METRICS[name]) for w, name in GOOD[text]))


@pytest.mark.parametrize("text", ["-0.3*nmi + lncc", "0*nmi", "0.5*foo + lncc"])
def test_what_was_meant_as_a_sum_is_told_how_one_is_spelt(text: str) -> None:
    with pytest.raises(OptionError, match=r"a sum is spelt '0.3\*nmi \+ 0.7\*lncc', weights above 0"):
        make_settings("default", metric=text)


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_metric_is_refused(text: str) -> None:
    with pytest.raises(
        OptionError, match="metric must be one of 'auto', 'none', 'lncc', 'ncc', 'mse', 'nmi', 'mi', 'mind'"
    ):
        make_settings("default", metric=text)
    with pytest.raises(OptionError, match="metric"):
        make_settings("default", metric=("lncc", text))
    with pytest.raises(KeyError):
        metric_named(text)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_weights_of_channels_are_above_zero(value: float) -> None:
    with pytest.raises(OptionError, match="channel_weights"):
        make_settings("default", metric=("lncc", "nmi"), channel_weights=(1.0, value))
    assert make_settings("default", channel_weights=[1, 2]).deformable.channel_weights == (1.0, 2.0)


def test_names_are_those_of_the_table_as_it_is_now() -> None:
    table: dict[str, Metric] = {"lncc": LNCC()}
    names = MetricNames(table, ("auto",))
    assert list(names) == ["auto", "lncc"]
    assert "ncc" not in names
    assert "lncc + ncc" not in names
    table["ncc"] = NCC()
    assert list(names) == ["auto", "lncc", "ncc"]
    assert len(names) == 3
    assert "lncc + ncc" in names
    for other in (3, None, LNCC(), ("lncc",), "auto + lncc"):
        assert other not in names


def test_entry_of_the_table_comes_before_a_sum() -> None:
    """A name may look like a sum; a word of the settings stands for the first of them."""
    own = NCC()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS, "nmi + mind", own)
        assert metric_named("nmi + mind") is own
    assert metric_named(own) is own
    assert metric_named("auto") == LNCC()


def test_metric_and_weight_of_each_channel() -> None:
    assert channel_metrics("nmi", (), 2) == ((1.0, METRICS["nmi"]),) * 2
    assert channel_metrics(("lncc", MIND(2)), (3.0, 1.0), 2) == ((3.0, LNCC()), (1.0, MIND(2)))
    assert channel_metrics("2*lncc", (5.0,), 1) == ((5.0, WeightedSum(((2.0, LNCC()),))),)


@pytest.mark.parametrize(("name", "word"), [("metric", "auto"), ("linear_metric", "same")])
def test_word_for_all_channels_is_not_one_of_several(name: str, word: str) -> None:
    """For every channel it is the word alone."""
    settings = make_settings("default", **{name: (word, word)})
    assert getattr(settings.linear if name == "linear_metric" else settings.deformable, name) == word
    for others in ("nmi", LNCC()):
        with pytest.raises(OptionError, match=f"{name} is .*but '{word}' stands for all channels together"):
            make_settings("default", **{name: (word, others)})


@pytest.mark.parametrize("name", ["metric", "linear_metric"])
def test_class_is_no_metric(name: str) -> None:
    for given in (LNCC, ("nmi", LNCC)):
        with pytest.raises(OptionError, match=rf"{name} is the class LNCC; give an object of it, such as LNCC\(\)"):
            make_settings("default", **{name: given})


# --- what metrics say of the settings --------------------------------------------------------------------------------


class Own:
    """A metric that says nothing of itself."""

    def prepare(self, images: Any) -> Any:
        raise NotImplementedError


def test_tuning_and_evidence_are_weighted_means() -> None:
    nmi, mind = METRICS["nmi"], METRICS["mind"]
    both = WeightedSum(((3.0, nmi), (1.0, mind)))
    one, other = MutualInformation().tuning, MIND().tuning
    for name in ("smoothness", "iterations", "jacobian_weight", "jacobian_margin"):
        wanted = (3 * getattr(one, name) + getattr(other, name)) / 4
        assert getattr(both.tuning, name) == pytest.approx(wanted)
        assert getattr(mean_tuning([(3.0, nmi), (1.0, mind)]), name) == pytest.approx(wanted)
    assert mean_tuning([(2.0, LNCC()), (1.0, Own())]) == Tuning()
    assert LNCC().little_evidence == 0.25
    assert mean_of([(1.0, LNCC()), (3.0, Own())], "little_evidence") == pytest.approx(0.25 / 4)
    assert WeightedSum(((1.0, LNCC()), (1.0, NCC()))).little_evidence == 0.25
    gain = MutualInformation().contrast_gain
    assert gain > 0
    assert both.contrast_gain == mean_of([(3.0, nmi), (1.0, Own())], "contrast_gain") == pytest.approx(0.75 * gain)


@pytest.mark.parametrize("metric", ["lncc", "nmi", "mind", "0.5*lncc + 0.5*nmi", Own()])
def test_settings_follow_the_metric(metric: Any) -> None:
    """What they are multiplied by, and nothing else; no iterations where the user said how many."""
    tuning = mean_tuning([(1.0, metric_named(metric))])
    settings = DeformableSettings(metric=metric, velocity_smoothness=(0.2, 0.1, 0.0))
    size = (200, 200, 200)  # more than `extra_iterations_below`
    found = settings.for_pair(size, 1)
    assert found.smoothness == pytest.approx([tuning.smoothness * w for w in settings.smoothness])
    assert found.velocity_smoothness == pytest.approx([tuning.smoothness * w for w in settings.velocity_smoothness])
    assert found.jacobian_weight == pytest.approx(tuning.jacobian_weight * settings.jacobian_weight)
    assert found.jacobian_margin == pytest.approx(min(1.0, tuning.jacobian_margin * settings.jacobian_margin))
    assert found.iterations == tuple(round(tuning.iterations * n) for n in settings.iterations)
    changed = {name: getattr(found, name) for name in ("smoothness", "velocity_smoothness", "jacobian_weight",
                                                       "jacobian_margin", "iterations")}  # fmt: skip
    assert replace(settings, **changed) == found
    if tuning == Tuning():
        assert found == settings
    told = make_settings("default", metric=metric, iterations=(7, 5, 3)).deformable
    assert told.for_pair(size, 1).iterations == told.for_pair((40, 40, 40), 1).iterations == (7, 5, 3)
    assert replace(settings, jacobian_margin=0.9).for_pair(size, 1).jacobian_margin <= 1


def test_small_block_gets_more_iterations() -> None:
    settings = DeformableSettings(iterations=(40, 20, 10), extra_iterations_below=1000, coarsest_size=0)
    for voxels, factor in ((2000, 1.0), (1000, 1.0), (800, 1.25), (500, 2.0), (10, 2.0)):
        assert settings.for_pair((voxels, 1, 1), 1).iterations == tuple(round(factor * n) for n in (40, 20, 10))


def test_other_number_of_channels_is_refused() -> None:
    with pytest.raises(OptionError, match="metric has 2 values but the images have 3 channels"):
        DeformableSettings(metric=("lncc", "nmi")).for_pair((9, 9, 9), 3)


# --- long blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "more"), [((1024, 9, 9), 0), ((1025, 9, 9), 1), ((9, 2048, 9), 1), ((9, 9, 2049), 2), ((9000, 9, 9), 4)]
)
def test_long_block_gets_coarser_levels_before_the_first(size: tuple[int, int, int], more: int) -> None:
    """Until the first level is at most `coarsest_size` (256) voxels long, but no more than `MOST_LEVELS` in all."""
    settings = replace(DeformableSettings(), extra_iterations_below=0)
    found = settings.for_pair(size, 1)
    assert found.levels == min(MOST_LEVELS, 3 + more)
    assert found.shrink_factors == (*[4 * 2**k for k in range(more, 0, -1)], 4, 2, 1)[:MOST_LEVELS]
    rates = settings.learning_rates
    assert found.learning_rates == (*[rates[0] * 2**k for k in range(more, 0, -1)], *rates)[:MOST_LEVELS]
    for name in ("iterations", "smoothing_sigmas", "radius", "smoothness", "grid_spacing", "velocity_smoothness"):
        values, before = getattr(found, name), getattr(settings, name)
        assert values == (*[before[0]] * more, *before)[:MOST_LEVELS]
    # The control points grow with the voxels, and those of the levels that there were stay what they were.
    spacings = [found.coarsest_grid_spacing / 2 ** found.halvings(k) for k in range(found.levels)]
    assert spacings == [s * f for s, f in zip(found.grid_spacing, found.shrink_factors, strict=True)]
    assert max(size) / found.shrink_factors[0] <= 256
    # Where the network is evaluated: at most about 32 nodes along an axis.
    assert max(size) / found.coarsest_grid_spacing <= 33
    assert max(size) / found.coarsest_grid_spacing > 16 or found.coarsest_grid_spacing <= 64
    assert replace(settings, coarsest_size=0).for_pair(size, 1).shrink_factors == (4, 2, 1)


@pytest.mark.parametrize("preset", ["fast", "default", "accurate"])
@pytest.mark.parametrize("given", [{}, {"shrink_factors": (4, 2, 1)}, {"iterations": (9, 9, 9)}, {"iterations": 3}])
def test_levels_that_were_asked_for_are_the_levels(preset: str, given: dict[str, Any]) -> None:
    settings = make_settings(preset, **given).deformable
    assert isinstance(settings, DeformableSettings)
    assert settings.for_pair((1500, 800, 20), 1).levels == (3 if given else 4)
    if given:
        kept = make_settings(preset, **given, coarsest_size=256).deformable
        assert isinstance(kept, DeformableSettings)
        assert kept.for_pair((1500, 800, 20), 1).levels == 4


def test_long_planes_of_unlike_contrasts_begin_one_level_coarser() -> None:
    for metric, size, levels in (
        ("nmi + 0.1*mind", (892, 661, 1), (8, 4, 2, 1)),
        ("lncc", (892, 661, 1), (4, 2, 1)),
        ("nmi + 0.1*mind", (512, 512, 1), (4, 2, 1)),
        ("nmi + 0.1*mind", (892, 200, 20), (4, 2, 1)),
        ("nmi + 0.1*mind", (4000, 4000, 1), (32, 16, 8, 4, 2)),
    ):
        settings = DeformableSettings(metric=metric)
        assert settings.for_pair(size, 1).shrink_factors == levels
        assert replace(settings, coarsest_size=0).for_pair(size, 1).shrink_factors == (4, 2, 1)

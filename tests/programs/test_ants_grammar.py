"""The grammar of antsRegistration's command line: what every word of it is taken for."""

from __future__ import annotations

import re

import pytest

from itk_nir.errors import OptionError
from itk_nir.programs import PROGRAMS
from itk_nir.programs.ants_plan import Plan, plan_of, smoothing_of
from itk_nir.programs.ants_registration_syn import SCRIPT_FLAGS
from itk_nir.programs.ants_request import Metric, Request, Start, read_request
from itk_nir.programs.ants_values import FLAGS, METRICS, TRANSFORMS
from itk_nir.programs.ants_words import Value, flags_of
from tests.docs_blocks import DOCS
from tests.programs.command_lines import SETTINGS, SPELLINGS, Line, words

#: A whole stage, in one piece each.
STAGE = ["-m", "CC[f,m,1,4]", "-c", "[9,1e-6,5]", "-f", "1", "-s", "0vox"]
LINEAR, DEFORMABLE = ["-t", "Rigid[0.1]", *STAGE], ["-t", "SyN[0.1,3,0]", *STAGE]


def numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split("x")))


def request(*given: str) -> Request:
    return read_request(["-o", "x", *given])


def plan(*given: str) -> Plan:
    return plan_of(request(*given), "default", (1.0, 1.0, 1.0), 1_000_000)


#: Has three numbers of iterations for two levels: ANTs refuses it too.
UNLIKE = "antsBrainExtractionNoLaplacian_testing"
WELL_FORMED = [name for name in SETTINGS if name != UNLIKE]


def test_a_setting_that_ants_refuses() -> None:
    with pytest.raises(OptionError, match="stage 3: 3 numbers of iterations, 2 shrink factors and 2 smoothing sigmas"):
        read_request(words(SETTINGS[UNLIKE], "script"))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", WELL_FORMED)
def test_settings_that_are_shipped(name: str, spelling: str) -> None:
    line = Line.of(SETTINGS[name])
    got = read_request(words(SETTINGS[name], spelling))
    assert (got.dimension, got.prefix, got.warped, got.inverse_warped) == (3, "out_", "w.nii.gz", "")
    assert got.interpolation.name[:3] == line.head[0]
    assert got.composite == ("a1" in line.head)
    assert got.single == ("float" in line.head)
    assert bool(got.starts) == ("center" in line.head)
    clipped = next((w[1:] for w in line.head if w.startswith("w")), "0,1")
    assert got.winsorize == (() if clipped in ("0,1", "0.0,1.0") else tuple(map(float, clipped.split(","))))
    assert got.verbose == (spelling == "nipype")
    assert len(got.stages) == len(line.stages)
    for stage, wanted in zip(got.stages, line.stages, strict=True):
        transform, *metrics, convergence, sigmas, factors, matching = wanted
        kind, _, inner = transform.rstrip("]").partition("[")
        assert (stage.transform, stage.numbers) == (kind, tuple(inner.split(",")))
        assert stage.iterations == numbers(convergence.split(",")[0])
        assert stage.shrink_factors == numbers(factors)
        assert stage.in_mm == sigmas.endswith("mm")
        assert stage.sigmas == numbers(sigmas.removesuffix("mm").removesuffix("vox"))
        assert stage.histogram_matching == (matching == "u1")
        assert len(stage.metrics) == len(metrics)
        for metric, text in zip(stage.metrics, metrics, strict=True):
            kind, weight, count, *_ = text.split(",")
            pair = ("f2.nii.gz", "m2.nii.gz") if kind.endswith("2") else ("f.nii.gz", "m.nii.gz")
            assert metric == Metric(kind.rstrip("2"), *pair, float(weight), int(count))


@pytest.mark.parametrize("name", WELL_FORMED)
def test_settings_become_registrations(name: str) -> None:
    line = Line.of(SETTINGS[name])
    calls = plan_of(read_request(words(SETTINGS[name], "script")), "default", (2.0, 2.0, 2.0), 900_000).calls
    kinds = [stage[0].partition("[")[0] for stage in line.stages]
    linear = [kind.lower() for kind in kinds if not kind.endswith("SyN")]
    assert calls[0].linear == (linear[-1] if linear else "none")
    assert calls[-1].deformable == (len(linear) < len(kinds))
    if calls[-1].deformable:
        options = calls[-1].options
        asked = [n for s in line.stages if "SyN" in s[0] for n in numbers(s[-4].split(",")[0]) if n]
        assert len(options["iterations"]) == len(asked)
        assert all(n <= 2 * most for n, most in zip(options["iterations"], asked, strict=True))
        assert list(options["shrink_factors"]) == sorted(options["shrink_factors"], reverse=True)
        several = any(m.split(",")[0].endswith("2") for stage in line.stages if "SyN" in stage[0] for m in stage[1:-4])
        assert len(calls[-1].pairs) == 1 + several
        # Linear stages that see one pair of two are a registration of their own.
        assert len(calls) == (2 if several and linear else 1)


def test_a_value_goes_on_until_its_bracket_closes() -> None:
    spelt = ["--transform", "Rigid[", "0.1", "]", "-v", "--convergence", "[", "10x5,", "-0.01,", "5", "]", "-x", "NULL"]
    flags = flags_of(spelt, {"v": "verbose", "x": "masks"}, ["transform", "convergence", "verbose", "masks"])
    assert [f.name for f in flags] == ["transform", "verbose", "convergence", "masks"]
    assert flags[0].value == Value("Rigid[ 0.1 ]", "Rigid", ("0.1",))
    assert flags[1].value is None
    assert flags[1].yes()
    assert flags[2].value is not None
    assert flags[2].value.parts == ("10x5", "-0.01", "5")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (["a.mat"], Start("a.mat")),
        (["[a.mat,0]"], Start("a.mat")),
        (["[", "my file.mat,", "1", "]"], Start("my file.mat", inverse=True)),
        (["[f,m,0]"], Start(pair=("f", "m"), feature="centres")),
        (["[ f, m, 1 ]"], Start(pair=("f", "m"), feature="centres of mass")),
        (["[f,m,2]"], Start(pair=("f", "m"), feature="origins")),
    ],
)
def test_starts(written: list[str], wanted: Start) -> None:
    assert request("-r", *written, *LINEAR).starts == (wanted,)


def test_old_scripts_name_the_metric_first() -> None:
    rest = ["-c", "[9,1e-6,5]", "-f", "1", "-s", "0vox"]
    first = ["-m", "cc[f,m,1,4]", "-t", "rigid[0.1]", *rest]
    second = ["-m", "mattes[f,m,0.5,20]", "-m", "msq[f,m,0.5,0]", "-t", "syn[0.1]", *rest, "-l", "1"]
    got = request(*first, *second)
    assert [s.transform for s in got.stages] == ["Rigid", "SyN"]
    assert [[m.kind for m in s.metrics] for s in got.stages] == [["CC"], ["Mattes", "MeanSquares"]]


def test_every_name_of_a_transform_and_a_metric() -> None:
    for kind, entry in TRANSFORMS.items():
        for name in (kind, kind.lower(), *entry.aliases):
            assert request("-t", f"{name}[0.1]", *STAGE).stages[0].transform == kind
    for metric, known in METRICS.items():
        for name in (metric, *known.aliases):
            given = ["-t", "Rigid[0.1]", "-m", f"{name}[f,m]", *STAGE[2:]]
            if known.support.status == "refused":
                with pytest.raises(OptionError, match=f"--?m.* {metric} is refused"):
                    request(*given)
            else:
                assert request(*given).stages[0].metrics == (Metric(metric, "f", "m"),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--transfrom", "Rigid[0.1]"], r"no flag --transfrom, did you mean 'transform'"),
        (["-t", "Rigid[0.1"], "not closed"),
        (["-t", "Rigid[0.1]"], "stage 1: --metric is missing"),
        (["-t", "Rigid", *STAGE], "gradient step"),
        (["-t", "Rigid[-1]", *STAGE], "above 0"),
        (["-t", "Rigit[0.1]", *STAGE], "no transform Rigit, did you mean 'Rigid'"),
        (["-t", "Rigid[0.1]", "-m", "CC[f,m,x]", *STAGE[2:]], "the weight is a number"),
        (["-t", "Rigid[0.1]", "-m", "CC[f,m,1,4.5]", *STAGE[2:]], "the radius is a whole number"),
        (["-t", "Rigid[0.1]", "-m", "CC[f,m,1,4,Often]", *STAGE[2:]], "sampling"),
        (["-t", "Rigid[0.1]", "-m", "CC[f,m,1,4,None,0.5,often]", *STAGE[2:]], "the gradient filter is true or false"),
        (["-t", "Rigid[0.1]", *STAGE[:4], "-f", "2x1", "-s", "0"], "1 numbers of iterations, 2 shrink factors"),
        ([*LINEAR, "-x", "a", "-x", "b"], "2 masks and 1 stages"),
        ([*LINEAR, "-d", "4"], "2 or 3"),
        ([*LINEAR, "-q", "a.mat"], "-q is refused"),
        ([*LINEAR, "--save-state", "a.h5"], "--save-state is refused"),
        ([*LINEAR, "-n", "Linaer"], "interpolation is one of Linear, .*got Linaer"),
        ([*LINEAR, "-w", "[0.9,0.1]"], "two quantiles"),
        ([*LINEAR, "-r", "[f,m,3]"], "centres of mass or origins"),
        ([*LINEAR, "-z", "2"], "-z is 0 or 1"),
        ([*LINEAR, "-a"], ""),
        (["stray", *LINEAR], "takes one value|belongs to no flag"),
    ],
)
def test_what_cannot_be_had_is_named(given: list[str], message: str) -> None:
    if not message:
        assert request(*given).composite
        return
    with pytest.raises(OptionError, match=message):
        request(*given)


def test_refused_flags_pass_where_they_change_nothing() -> None:
    assert request(*LINEAR, "--minc", "0", "--write-interval-volumes", "0").stages
    for name, support in FLAGS.items():
        if support.status == "refused":
            with pytest.raises(OptionError, match=f"--{name} is refused"):
                request(*LINEAR, f"--{name}", "1")


# --- what is made of it ----------------------------------------------------------------------------------------------


def test_linear_stages_are_one_search_of_the_largest() -> None:
    stages = [["-t", f"{kind}[0.1]", *STAGE] for kind in ("Translation", "Rigid", "Similarity", "Affine", "Rigid")]
    for count, wanted in ((1, "translation"), (2, "rigid"), (3, "similarity"), (4, "affine"), (5, "affine")):
        (call,) = plan(*(word for given in stages[:count] for word in given)).calls
        assert (call.linear, call.deformable) == (wanted, False)


def test_masks_and_axes_of_their_own_make_two_registrations() -> None:
    (one,) = plan(*LINEAR, *DEFORMABLE, "-x", "[a,b]").calls
    assert (one.masks, one.linear, one.deformable) == (("a", "b"), "rigid", True)
    for none in ("[ NOMASK,NOMASK ]", "[NULL,NULL,NULL]", "nomask", "[,,]"):
        (one,) = plan(*LINEAR, "-x", none).calls
        assert one.masks == (None, None)
    for third in ("NULL", "NOMASK", ""):
        (one,) = plan(*LINEAR, "-x", f"[a,b,{third}]").calls
        assert one.masks == ("a", "b")
    with pytest.raises(OptionError, match="give FIXED or"):
        plan(*LINEAR, "-x", "[a,b,c]")
    first, second = plan(*LINEAR, *DEFORMABLE, "-x", "NULL", "-x", "[a,NULL]").calls
    assert (first.masks, first.linear, first.deformable) == ((None, None), "rigid", False)
    assert (second.masks, second.linear, second.deformable) == (("a", None), "none", True)
    first, second = plan(*LINEAR, *DEFORMABLE, "-g", "1x1x1", "-g", "0x1x0").calls
    assert (first.options.get("restrict"), second.options["restrict"]) == (None, (0, 1, 0))
    for weights in ("0.5x1x0", "0x1", "1x1x1x1x1x0"):
        with pytest.raises(OptionError, match=f"restrict-deformation {weights} is refused"):
            plan(*DEFORMABLE, "-g", weights)


def test_smoother_numbers_are_smoother() -> None:
    def weights(transform: str) -> tuple[float, ...]:
        (call,) = plan("-t", transform, *STAGE).calls
        return tuple(call.options.get("smoothness", ()))

    assert weights("SyN[0.1,3,0]") == weights("SyN[0.2]") == ()
    assert weights("SyN[0.1,3,0.5]")[0] < weights("SyN[0.1,3,2]")[0]
    assert weights("SyN[0.1,6,0.5]")[0] > weights("SyN[0.1,3,0.5]")[0]
    assert weights("BSplineSyN[0.1,40,0,3]")[0] > weights("BSplineSyN[0.1,20,0,3]")[0]
    assert weights("BSplineSyN[0.1,10x10x10]") == ()
    (stage,) = request("-t", "TimeVaryingVelocityField[0.5,4,5,0,1,0]", *STAGE).stages
    assert smoothing_of(stage)[:2] == (5, 1)


def test_metrics_of_one_pair_are_a_sum_and_other_pairs_are_channels() -> None:
    from itk_nir.engine.metrics import LNCC, MutualInformation, WeightedSum

    rest = STAGE[2:]
    given = ["-m", "CC[f,m,3,2]", "-m", "Mattes[f,m,1,20]", "-m", "CC[f2,m2,4,2]", *rest]
    (call,) = plan("-t", "SyN[0.1]", *given).calls
    assert call.pairs == (("f", "m"), ("f2", "m2"))
    assert call.options["channel_weights"] == (4, 4)
    assert call.options["radius"] == 2
    summed, other = call.options["metric"]
    assert summed == WeightedSum(((0.75, LNCC()), (0.25, MutualInformation(20))))
    assert other == "lncc"
    with pytest.raises(OptionError, match="radii 2, 4"):
        plan("-t", "SyN[0.1]", "-m", "CC[f,m,1,2]", "-m", "CC[f2,m2,1,4]", *rest)
    with pytest.raises(OptionError, match="all 0"):
        plan("-t", "SyN[0.1]", "-m", "CC[f,m,0,2]", *rest)


def test_effort_and_levels() -> None:
    levels = ["-c", "[500x3x0,1e-6,5]", "-f", "8x2x1", "-s", "4x1x0mm"]
    options = plan("-t", "SyN[0.1]", *STAGE[:2], *levels).calls[0].options
    assert options["shrink_factors"] == (8, 2)
    assert options["smoothing_sigmas"] == (0.5, 0.5)
    assert options["iterations"][1] == 6
    assert 40 < options["iterations"][0] < 500
    assert plan("-t", "SyN[0.1]", *STAGE[:2], "-c", "[0x0,1e-6,5]", "-f", "2x1", "-s", "1x0").calls == ()


def test_a_linear_stage_behind_a_deformable_one_is_refused() -> None:
    with pytest.raises(OptionError, match="Rigid behind SyN is refused"):
        plan(*DEFORMABLE, *LINEAR)


def test_histograms_are_matched_where_intensities_are_compared() -> None:
    for metric, wanted in (("CC", False), ("MeanSquares", True), ("Demons", True), ("Mattes", False)):
        given = ["-t", "SyN[0.1]", "-m", f"{metric}[f,m,1,4]", *STAGE[2:]]
        assert plan(*given, "-u", "1").calls[0].histogram_matching == wanted
        assert not plan(*given, "-u", "0").calls[0].histogram_matching


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_tables() -> None:
    text = (DOCS / "programs.md").read_text(encoding="utf-8")
    for name, support in FLAGS.items():
        assert re.search(
            rf"^\| `--{name}`.* \| {support.status} \| {re.escape(support.meaning)} \|$", text, re.MULTILINE
        )
    for name, entry in TRANSFORMS.items():
        assert f"| `{name}` | {entry.support.status} | {entry.support.meaning} |\n" in text
    for name, metric in METRICS.items():
        ours = f"`{metric.ours}`" if metric.ours else ""
        assert f"| `{name}` | {metric.support.status} | {ours} | {metric.support.meaning} |\n" in text
    for letter, support in SCRIPT_FLAGS.items():
        assert f"| `-{letter}` | {support.status} | {support.meaning} |\n" in text
    for name in PROGRAMS:
        assert f"`{name}`" in text

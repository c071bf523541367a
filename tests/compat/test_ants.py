"""The ANTs interface: a script for ANTsPy with one line changed, the files that ANTs reads, the command line."""

from __future__ import annotations

import inspect
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ants
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from itk_nir.compat.ants import (
    APPROXIMATED_TYPES,
    METRICS,
    OPTIONS,
    SCRIPT_TYPES,
    TYPES,
    Kind,
    parse_type,
    register_options,
    registration,
    to_ants,
)
from itk_nir.compat.ants.arguments import kind_options
from itk_nir.compat.options import engine_options
from itk_nir.compat.printing import printing
from itk_nir.engine.metrics import METRICS as ENGINE_METRICS
from itk_nir.engine.metrics import MutualInformation
from itk_nir.engine.progress import Progress
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings
from tests.docs_blocks import DOCS, run_blocks
from tests.grids import centred, turned

BOTH = pytest.mark.parametrize("d", [2, 3])
#: Few iterations, and stiff: enough to be well on the way on images this small.
QUICK: dict[str, Any] = {
    "preset": "fast", "shrink_factors": (2, 1), "smoothing_sigmas": (0.5, 0.5), "iterations": (25, 8),
    "learning_rates": (0.4, 0.2), "grid_spacing": (2.0, 2.0), "coarsest_grid_spacing": 8.0, "radius": (3, 3),
    "velocity_smoothness": (0.1, 0.1), "linear_size": (28,), "linear_iterations": (40,), "linear_start_iterations": 8,
    "threads": 1, "device": "cpu",
}  # fmt: skip


def images(phantom: Phantom) -> dict[str, Any]:
    return {
        "fixed": to_ants(phantom.fixed, phantom.geometry),
        "moving": to_ants(phantom.moving, phantom.moving_geometry),
        "fixed_labels": to_ants(phantom.fixed_labels.astype(np.float32), phantom.geometry),
        "moving_labels": to_ants(phantom.moving_labels.astype(np.float32), phantom.moving_geometry),
    }


def array(image: Any) -> np.ndarray:
    return image.numpy().T


def inner(geometry: Geometry, number: int = 40, seed: int = 0) -> np.ndarray:
    """Points well inside a grid, ``(N, d)`` LPS mm."""
    size = np.asarray(geometry.size)
    index = np.random.default_rng(seed).uniform(0.3, 0.7, (number, len(size))) * (size - 1)
    return geometry.index_to_physical(index)


def table(points: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({axis: points[:, k] for k, axis in enumerate("xyz"[: points.shape[1]])})


def coordinates(frame: pd.DataFrame) -> np.ndarray:
    return frame[["x", "y", "z"][: len(frame.columns)]].to_numpy()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Dice over the labels of both."""
    both = [v for v in np.unique(a) if v > 0 and (b == v).any()]
    return float(np.mean([2 * ((a == v) & (b == v)).sum() / ((a == v).sum() + (b == v).sum()) for v in both]))


# --- a script for ANTsPy ---------------------------------------------------------------------------------------------

SCRIPT = """
import ants
REGISTRATION

tx = registration(fixed=fixed, moving=moving, type_of_transform="SyN", outprefix=prefix, **extra)
warped = ants.apply_transforms(fixed=fixed, moving=moving, transformlist=tx["fwdtransforms"])
labels = ants.apply_transforms(
    fixed=fixed, moving=moving_labels, transformlist=tx["fwdtransforms"], interpolator="nearestNeighbor"
)
back = ants.apply_transforms(
    fixed=moving, moving=fixed, transformlist=tx["invtransforms"], whichtoinvert=[True, False]
)
there = ants.apply_transforms_to_points(fixed.dimension, landmarks, tx["fwdtransforms"])
home = ants.apply_transforms_to_points(fixed.dimension, there, tx["invtransforms"], whichtoinvert=[True, False])
jacobian = ants.create_jacobian_determinant_image(fixed, tx["fwdtransforms"][0], do_log=False)
"""


@BOTH
@pytest.mark.parametrize("line", ["registration = ants.registration", "from itk_nir.compat.ants import registration"])
def test_a_script_for_antspy_runs_with_one_line_changed(
    oblique: dict[int, Phantom], d: int, line: str, tmp_path: Path
) -> None:
    phantom = oblique[d]
    ours = "itk_nir" in line
    names = images(phantom)
    points = inner(phantom.geometry)
    extra = QUICK if ours else {"reg_iterations": (10, 0)}
    names |= {"landmarks": table(points), "prefix": str(tmp_path / "out_"), "extra": extra}
    exec(SCRIPT.replace("REGISTRATION", line), names)

    tx = names["tx"]
    assert set(tx) >= {"warpedmovout", "warpedfixout", "fwdtransforms", "invtransforms"}
    assert [Path(p).name for p in tx["fwdtransforms"]] == ["out_1Warp.nii.gz", "out_0GenericAffine.mat"]
    assert [Path(p).name for p in tx["invtransforms"]] == ["out_0GenericAffine.mat", "out_1InverseWarp.nii.gz"]
    for image, grid in ((tx["warpedmovout"], names["fixed"]), (tx["warpedfixout"], names["moving"])):
        assert image.shape == grid.shape
        np.testing.assert_allclose(image.direction, grid.direction, atol=1e-6)
        np.testing.assert_allclose(image.origin, grid.origin, atol=1e-4)
    value = 200.0
    for again, image in ((names["warped"], tx["warpedmovout"]), (names["back"], tx["warpedfixout"])):
        assert np.abs(array(again) - array(image)).max() < 1e-4 * value
    before = ants.resample_image_to_target(names["moving_labels"], names["fixed"], interp_type="nearestNeighbor")
    start, end = (overlap(phantom.fixed_labels, array(labels)) for labels in (before, names["labels"]))
    home = coordinates(names["home"])
    assert np.linalg.norm(home - points, axis=1).mean() < 0.3
    inside = phantom.fixed_labels > 0
    assert 0.7 < array(names["jacobian"])[inside].mean() < 1.4
    if not ours:  # a few iterations of theirs, for the flow of the script only
        assert end > start - 0.05
    else:
        assert end > start + 0.05
        there = coordinates(names["there"])
        index = np.rint(phantom.geometry.physical_to_index(points)).astype(int)
        truth = phantom.displacement[tuple(index[:, ::-1].T)]
        error = np.linalg.norm(there - points - truth, axis=1).mean()
        assert error < 0.75 * np.linalg.norm(truth, axis=1).mean()


@BOTH
def test_files_lists_and_composites_say_the_same(oblique: dict[int, Phantom], d: int, tmp_path: Path) -> None:
    phantom = oblique[d]
    names = images(phantom)
    single = registration(names["fixed"], names["moving"], outprefix=f"{tmp_path}/new/", random_seed=3, **QUICK)
    both = registration(
        names["fixed"],
        names["moving"],
        outprefix=f"{tmp_path}/c_",
        random_seed=3,
        write_composite_transform=True,
        **QUICK,
    )
    assert single["fwdtransforms"][0] == str(tmp_path / "new" / "1Warp.nii.gz")
    assert both["fwdtransforms"] == str(tmp_path / "c_Composite.h5")
    assert both["invtransforms"] == str(tmp_path / "c_InverseComposite.h5")
    assert sorted(os.listdir(tmp_path)) == ["c_Composite.h5", "c_InverseComposite.h5", "new"]
    assert len(os.listdir(tmp_path / "new")) == 3
    np.testing.assert_array_equal(array(single["warpedmovout"]), array(both["warpedmovout"]))
    points = table(inner(phantom.geometry))
    one = ants.apply_transforms_to_points(d, points, single["fwdtransforms"])
    other = ants.apply_transforms_to_points(d, points, [both["fwdtransforms"]])
    assert np.abs(coordinates(one) - coordinates(other)).max() < 1e-3
    one = ants.apply_transforms_to_points(d, points, single["invtransforms"], whichtoinvert=[True, False])
    other = ants.apply_transforms_to_points(d, points, [both["invtransforms"]])
    assert np.abs(coordinates(one) - coordinates(other)).max() < 1e-3


# --- signs and axes --------------------------------------------------------------------------------------------------


def known(d: int) -> Any:
    """A rotation and a shift by unlike amounts along the axes, fixed → moving, in SimpleITK's own convention."""
    tx = sitk.Euler2DTransform() if d == 2 else sitk.Euler3DTransform()
    tx.SetCenter((4.0, -9.0, 6.0)[:d])
    if d == 2:
        tx.SetAngle(0.12)
    else:
        tx.SetRotation(0.04, -0.07, 0.12)
    tx.SetTranslation((7.0, -4.0, 2.5)[:d])
    return tx


def moved(phantom: Phantom, tx: Any) -> Any:
    """The fixed image such that fixed point ``p`` shows what the moving one shows at ``tx(p)``, by SimpleITK alone."""
    from itk_nir.images import to_sitk

    fixed = to_sitk(phantom.fixed, phantom.geometry)
    grid = to_sitk(phantom.moving, phantom.moving_geometry)
    return sitk.Resample(fixed, grid, tx.GetInverse(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


@BOTH
@pytest.mark.parametrize("kind", ["Rigid", "Affine", "SyN"])
def test_a_known_rotation_and_shift_come_out_with_the_right_sign(
    oblique: dict[int, Phantom], d: int, kind: str, tmp_path: Path
) -> None:
    phantom, truth = oblique[d], known(d)
    moving = moved(phantom, truth)
    tx = registration(
        to_ants(phantom.fixed, phantom.geometry),
        to_ants(sitk.GetArrayFromImage(moving), phantom.moving_geometry),
        kind,
        outprefix=f"{tmp_path}/",
        **{**QUICK, "linear_iterations": (60,)},
    )
    assert len(tx["fwdtransforms"]) == (2 if kind == "SyN" else 1)
    if kind != "SyN":
        assert tx["fwdtransforms"] == tx["invtransforms"] == [f"{tmp_path}/0GenericAffine.mat"]
    points = inner(phantom.geometry)
    wanted = np.array([truth.TransformPoint(p.tolist()) for p in points])
    got = coordinates(ants.apply_transforms_to_points(d, table(points), tx["fwdtransforms"]))
    # A wrong sign or axis would be off by the size of the motion or more.
    assert np.linalg.norm(got - wanted, axis=1).mean() < 0.15 * np.linalg.norm(wanted - points, axis=1).mean()


def test_an_initial_transform_is_composed_in_ants_order(oblique: dict[int, Phantom], tmp_path: Path) -> None:
    """A start from files: the same affine is kept, and ``[file,1]`` is its inverse."""
    phantom, truth = oblique[2], known(2)
    fixed = to_ants(phantom.fixed, phantom.geometry)
    moving = to_ants(sitk.GetArrayFromImage(moved(phantom, truth)), phantom.moving_geometry)
    sitk.WriteTransform(
        sitk.AffineTransform(truth.GetMatrix(), truth.GetTranslation(), truth.GetCenter()), str(tmp_path / "a.mat")
    )
    sitk.WriteTransform(truth.GetInverse(), str(tmp_path / "b.tfm"))
    points = inner(phantom.geometry)
    wanted = np.array([truth.TransformPoint(p.tolist()) for p in points])
    for start in (str(tmp_path / "a.mat"), [f"[{tmp_path}/b.tfm,1]"], ["Identity", str(tmp_path / "a.mat")]):
        tx = registration(fixed, moving, "SyNOnly", initial_transform=start, outprefix=f"{tmp_path}/o", **QUICK)
        got = coordinates(ants.apply_transforms_to_points(2, table(points), tx["fwdtransforms"]))
        assert np.linalg.norm(got - wanted, axis=1).mean() < 1.0
    tx = registration(
        fixed, moving, "SyNOnly", initial_transform=tx["fwdtransforms"], outprefix=f"{tmp_path}/p", **QUICK
    )
    got = coordinates(ants.apply_transforms_to_points(2, table(points), tx["fwdtransforms"]))
    assert np.linalg.norm(got - wanted, axis=1).mean() < 1.0
    with pytest.raises(InputError, match="alignment of the centres"):
        registration(fixed, moving, initial_transform="[f.nii,m.nii,1]")
    with pytest.raises(InputError, match="no such file"):
        registration(fixed, moving, initial_transform="nowhere.mat")


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_antspy() -> None:
    theirs, ours = (inspect.signature(f).parameters for f in (ants.registration, registration))
    assert list(ours) == list(theirs)
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}
    assert set(OPTIONS) == set(theirs) - {"fixed", "moving", "kwargs"} | {"random_seed"}
    assert {what for what, _ in OPTIONS.values()} == {"honoured", "approximated"}
    assert {ours for _, ours, _ in METRICS.values()} <= set(ENGINE_METRICS)


def test_the_options_that_stand_for_anothers_exist() -> None:
    """``set linear_iterations=`` and the like name options that `itk_nir.register` has."""
    named = {name for _, meaning in OPTIONS.values() for name in re.findall(r"\bset (\w+)=", meaning)}
    assert "learning_rates" in named
    assert named <= engine_options("default")


def test_names_of_before_are_taken_with_a_warning(oblique: dict[int, Phantom]) -> None:
    given = {n: p.default for n, p in inspect.signature(registration).parameters.items()}
    with pytest.warns(DeprecationWarning, match="option 'displacement_diffusion' is called 'smoothness'") as warned:
        _, options = register_options(given, {"displacement_diffusion": 2.0, "preset": "fast"})
    assert [w.filename for w in warned] == [__file__]
    assert options == {"smoothness": 2.0, "preset": "fast"}
    with pytest.raises(OptionError, match="'steps' is the old name of 'iterations'; give one of them"):
        register_options(given, {"steps": 3, "iterations": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"syn_metric": "PSE"}, "syn_metric='PSE' has no counterpart here; there are cc, mattes, mi, gc, meansquares"),
        ({"aff_metric": "PSE"}, "aff_metric='PSE' has no counterpart here"),
        ({"syn_metric": None}, "syn_metric=None has no counterpart here"),
        ({"syn_sampling": 0}, "syn_sampling is a whole number of bins"),
        ({"aff_sampling": 8.5}, "aff_sampling is a whole number of bins"),
        ({"syn_metric": "CC", "syn_sampling": 0}, "syn_sampling is the radius of CC"),
        ({"aff_metric": "CC", "aff_sampling": 0}, "aff_sampling is the radius of CC"),
        ({"preset": "paper", "metric": "mind"}, "metric must be one of 'lncc', 'ncc', 'mse', 'nmi', 'mi', got 'mind'"),
        ({"aff_random_sampling_rate": 0}, "aff_random_sampling_rate"),
        ({"reg_iterations": (0, 0)}, "all zero"),
        ({"reg_iterations": "40x20"}, "reg_iterations"),
        ({"type_of_transform": "t"}, "unknown type_of_transform 't'"),
        ({"type_of_transform": "TV[n]"}, "unknown type_of_transform"),
        ({"type_of_transform": "Syn"}, "did you mean 'SyN'"),
        ({"type_of_transform": "antsRegistrationSyN[r,4]"}, "can follow a type with a deformation"),
        ({"type_of_transform": "antsRegistrationSyN[s,0]"}, "a radius of CC .* at least 1"),
        ({"grad_step": 0}, "grad_step is a number above 0"),
        ({"flow_sigma": -1}, "the update of ANTs' smoothing is a number that is not negative, got -1"),
        ({"total_sigma": "1"}, "the total of ANTs' smoothing"),
        ({"total_sigma": 1, "preset": "paper"}, "preset 'paper' has no smoothness"),
        ({"aff_iterations": 4, "aff_shrink_factors": 4, "aff_smoothing_sigmas": (4, 4)}, "one number a level each"),
        ({"aff_iterations": (4, 4)}, "aff_shrink_factors and aff_smoothing_sigmas have one number"),
        ({"aff_iterations": (0, 0, 0, 0)}, "aff_iterations has a level that is not zero"),
        ({"aff_shrink_factors": (2, 1.5, 1, 1)}, "aff_shrink_factors has one whole number a level"),
        ({"multivariate_extras": "CC"}, "multivariate_extras is a list, got str"),
        ({"multivariate_extras": [("CC", None, None, 1)]}, "the metric's number each, got 4"),
        ({"multivariate_extras": [("PSE", None, None, 1, 2)]}, "metric 'PSE' has no counterpart"),
        ({"multivariate_extras": [("CC", None, None, -1, 2)]}, "a weight is a number that is not negative"),
        ({"multivariate_extras": [("CC", None, None, 1, 0)]}, "is the radius of CC in voxels"),
        ({"type_of_transform": "Rigid", "multivariate_extras": [("CC", None, None, 1, 2)]}, "no meaning for 'Rigid'"),
        ({"type_of_transform": "antsRegistrationSyN[q]"}, "there is no type 'q'"),
        ({"regiterations": (10, 5)}, "did you mean 'reg_iterations'"),
        ({"stepz": (1, 1, 1)}, "did you mean 'iterations'"),
        ({"linear": "rigid"}, "unknown option 'linear'"),
        ({"random_seed": 1, "seed": 1}, "same option"),
        ({"preset": "quick"}, "unknown preset"),
    ],
)
def test_wrong_options_are_named(oblique: dict[int, Phantom], options: dict[str, Any], message: str) -> None:
    names = images(oblique[2])
    with pytest.raises(OptionError, match=message):
        registration(names["fixed"], names["moving"], **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"syn_metric": "CC"}, "syn_metric"), ({"reg_iterations": (10, 5), "syn_sampling": 4}, "syn_sampling and reg_it")],
)
def test_options_of_the_deformation_are_not_used_by_linear_types(
    oblique: dict[int, Phantom], options: dict[str, Any], named: str
) -> None:
    """ANTsPy ignores them, so that callers may give every type the same arguments."""
    names = images(oblique[2])
    with pytest.warns(UserWarning, match=f"{named}.*: not used, as type_of_transform='Rigid' has no deform") as told:
        found = registration(names["fixed"], names["moving"], "Rigid", **options)
    assert [w.filename for w in told] == [__file__]
    plain = registration(names["fixed"], names["moving"], "Rigid")
    np.testing.assert_array_equal(found["warpedmovout"].numpy(), plain["warpedmovout"].numpy())


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    given = {n: p.default for n, p in inspect.signature(registration).parameters.items()}
    numbers = {"syn_metric": "CC", "syn_sampling": np.int64(3), "reg_iterations": (np.int32(7), np.int64(0), 5)}
    _, options = register_options({**given, **numbers}, {"preset": "fast"})
    assert (options["radius"], options["shrink_factors"], options["iterations"]) == (3, (4, 1), (7, 5))
    for wrong in ({"syn_metric": "CC", "syn_sampling": True}, {"reg_iterations": (7, 2.5)}, {"reg_iterations": ()}):
        with pytest.raises(OptionError, match=r"whole number|radius"):
            register_options({**given, **wrong}, {})


def test_types_map_to_stages_and_presets() -> None:
    assert parse_type("") == parse_type("SyN") == parse_type(["SyN"]) == TYPES["SyN"]
    assert parse_type("antsRegistrationSyN[so]") == SCRIPT_TYPES["so"]
    assert parse_type("antsRegistrationSyNRepro[r]") == SCRIPT_TYPES["r"]
    assert parse_type("antsRegistrationSyN[s,4]").radius == 4
    four = {"linear": "affine", "deformable": True, "preset": make_settings("default", radius=4, metric="lncc")}
    assert kind_options(parse_type("antsRegistrationSyN[s,4]")) == four
    given = {"radius": 2, "preset": "fast", "seed": 3, "metric": "auto"}
    fast = {**four, "preset": make_settings("fast", radius=2), "seed": 3}
    assert kind_options(parse_type("antsRegistrationSyN[s,4]"), given) == fast
    assert kind_options(parse_type("SyN"), {"preset": make_settings("fast", radius=2), "seed": 3}) == fast
    assert kind_options(replace(SCRIPT_TYPES["r"], radius=4))["preset"] == make_settings("default")
    quick = parse_type("antsRegistrationSyNQuick[sr]")
    assert (quick.linear, quick.deformable, quick.preset) == ("rigid", True, "fast")
    assert parse_type("antsRegistrationSyN[t]") == parse_type("Translation") == Kind("translation", False)
    assert parse_type("TV[3]") == parse_type("TVMSQ") == Kind("none", True)
    squares = kind_options(parse_type("TVMSQC"))["preset"].deformable.metric
    assert (squares, kind_options(parse_type("SyNabp"))["preset"].deformable.radius) == ("mse", (4, 4, 4))
    # With Quick the number is that of the bins, its default changes nothing, and the distance of the knots smooths.
    thirty_two = parse_type("antsRegistrationSyNQuick[b,32,26]")
    assert kind_options(thirty_two) == kind_options(parse_type("antsRegistrationSyNQuick[b]"))
    wide = kind_options(parse_type("antsRegistrationSyNQuick[b,16,52]"))["preset"].deformable
    own = make_settings("fast").deformable.smoothness
    assert (wide.metric, wide.smoothness) == (NMI(16), tuple(2 * w for w in own))
    assert kind_options(parse_type("antsRegistrationSyNQuickRepro[s,3]"))["preset"].deformable.radius == (3, 3, 3)
    bold = [parse_type(name) for name in ("SyNBold", "SyNBoldAff")]
    assert [(kind.linear, kind.deformable) for kind in bold] == [("rigid", True), ("affine", True)]


NMI = MutualInformation


@pytest.mark.parametrize(
    ("given", "options"),
    [
        # What the caller does not say, the pair decides.
        ({}, {}),
        ({"type_of_transform": "SyNBold"}, {}),
        ({"type_of_transform": "antsRegistrationSyN[s]"}, {}),
        # What the caller says is honoured, the words of the defaults too.
        ({"syn_metric": "mattes"}, {"metric": "nmi"}),
        ({"syn_metric": "mattes", "syn_sampling": 16}, {"metric": NMI(16)}),
        ({"syn_metric": "MI", "syn_sampling": 50}, {"metric": NMI(50)}),
        ({"syn_sampling": 64}, {"metric": NMI(64)}),
        ({"syn_metric": "CC"}, {"metric": "lncc"}),
        ({"syn_metric": "cc", "syn_sampling": 4}, {"metric": "lncc", "radius": 4}),
        ({"syn_metric": "GC", "syn_sampling": 7}, {"metric": "ncc"}),
        ({"syn_metric": "meansquares"}, {"metric": "mse"}),
        ({"syn_metric": "Demons"}, {"metric": "mse"}),
        ({"aff_metric": "mattes"}, {"linear_metric": "nmi"}),
        ({"aff_metric": "mattes", "aff_sampling": 20}, {"linear_metric": NMI(20)}),
        ({"aff_sampling": 20}, {"linear_metric": NMI(20)}),
        ({"aff_metric": "GC", "syn_metric": "CC"}, {"linear_metric": "ncc", "metric": "lncc"}),
        ({"aff_metric": "meansquares"}, {"linear_metric": "mse"}),
        ({"aff_metric": "CC", "aff_sampling": 3}, {"linear_metric": "lncc", "linear_radius": 3}),
        ({"type_of_transform": "Rigid", "aff_metric": "GC"}, {"linear_metric": "ncc"}),
        ({"type_of_transform": "SyNOnly", "aff_metric": "GC", "syn_metric": "MI"}, {"metric": "nmi"}),
        # A type that names CC: a number is its radius.
        ({"type_of_transform": "SyNCC", "syn_sampling": 3}, {"metric": "lncc", "radius": 3}),
        ({"type_of_transform": "SyNCC", "syn_metric": "mattes"}, {"metric": "nmi"}),
    ],
)  # fmt: skip
def test_metrics_are_honoured_by_the_metric_of_that_name(given: dict[str, Any], options: dict[str, Any]) -> None:
    defaults = {n: p.default for n, p in inspect.signature(registration).parameters.items()}
    assert register_options({**defaults, **given}, {})[1] == options
    assert register_options({**defaults, **given}, {"metric": "mind"})[1]["metric"] == "mind"


def test_a_type_that_names_cc_has_it_unless_the_caller_says_otherwise() -> None:
    defaults = {n: p.default for n, p in inspect.signature(registration).parameters.items()}
    for name in ("SyNCC", "antsRegistrationSyN[s,4]", "antsRegistrationSyNRepro[so,4]"):
        for given, metric in (({}, "lncc"), ({"syn_metric": "mattes"}, "nmi"), ({"syn_metric": "GC"}, "ncc")):
            kind, options = register_options({**defaults, **given, "type_of_transform": name}, {})
            assert kind_options(kind, options)["preset"].deformable.metric == metric
    assert kind_options(parse_type("SyN"))["preset"].deformable.metric == "auto"
    assert kind_options(parse_type("SyNCC"), {"metric": "mind"})["preset"].deformable.metric == "mind"


@pytest.mark.filterwarnings("ignore:.*little in common")  # which is what CC finds
@pytest.mark.filterwarnings("ignore:.*look like unlike contrasts")
def test_mutual_information_aligns_what_cc_cannot(oblique: dict[int, Phantom], tmp_path: Path) -> None:
    """The metric reaches the engine: inside the head the contrast is reversed, outside it is not."""
    phantom = oblique[2]
    head = phantom.moving_labels > 0
    moving = np.where(head, 1.1 * phantom.moving.max() - phantom.moving, 0.0).astype(np.float32)
    fixed = to_ants(phantom.fixed, phantom.geometry)
    points = phantom.geometry.grid()[phantom.fixed_labels > 0]
    truth = points + phantom.displacement[phantom.fixed_labels > 0]
    errors = {}
    for metric in ("mattes", "CC"):
        tx = registration(
            fixed, to_ants(moving, phantom.moving_geometry), "SyNOnly", outprefix=f"{tmp_path}/", syn_metric=metric,
            preset="fast", threads=1, device="cpu",
        )  # fmt: skip
        got = coordinates(ants.apply_transforms_to_points(2, table(points), tx["fwdtransforms"]))
        errors[metric] = np.linalg.norm(got - truth, axis=1).mean()
    start = np.linalg.norm(truth - points, axis=1).mean()
    assert errors["mattes"] < 0.5 * start < start < errors["CC"]


@pytest.mark.filterwarnings("ignore:.*little in common")  # after so few iterations
def test_what_the_options_become(
    oblique: dict[int, Phantom], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Levels, iterations, radius and seed reach the engine; masks count; verbose prints; our callback is called."""
    phantom = oblique[2]
    names = images(phantom)
    seen = []
    mask = to_ants((phantom.fixed_labels > 0).astype(np.float32), phantom.geometry)
    moving_mask = to_ants((phantom.moving_labels > 0).astype(np.float32), phantom.moving_geometry)
    options = {k: QUICK[k] for k in ("preset", "threads", "device")}
    registration(
        names["fixed"], names["moving"], "SyNOnly", outprefix=f"{tmp_path}/", syn_metric="CC", syn_sampling=3,
        reg_iterations=(7, 0, 5), mask=mask, moving_mask=moving_mask, verbose=True, callback=seen.append, **options,
    )  # fmt: skip
    most = [(p.level, p.iterations) for p in seen if p.stage == "deformable"]
    assert set(most) == {(0, 7), (1, 5)}
    assert "deformable level 2 of 2, iteration 5 of 5: metric" in capsys.readouterr().out
    kind, settings = register_options(
        {**{n: p.default for n, p in inspect.signature(registration).parameters.items()},
         "reg_iterations": [100, 70, 50, 20], "syn_metric": "CC", "syn_sampling": 3},
        {"random_seed": 5},
    )  # fmt: skip
    assert kind == TYPES["SyN"]
    assert settings["shrink_factors"] == (8, 4, 2, 1)
    assert settings["radius"] == 3
    assert settings["seed"] == 5
    empty = to_ants(np.zeros_like(phantom.fixed), phantom.geometry)
    for name in ("mask", "moving_mask"):
        with pytest.raises(InputError, match="mask: is empty"):
            registration(names["fixed"], names["moving"], **{name: empty})


def test_verbose_tells_begin_and_end_of_a_level_once(
    oblique: dict[int, Phantom], capsys: pytest.CaptureFixture[str]
) -> None:
    """A linear stage reports every map that it tries, several with one number."""
    lines: list[str] = []
    report = printing(None, lines.append, every=None)
    for level, tried in enumerate(([0, 0, 0, 9, 18, 24, 24], [0, 24])):
        for iteration in tried:
            report(Progress("linear", level, 2, iteration, 25, 0.5, 0.5, 1.0, 0.0, 0.0))
    assert [line.split(":")[0] for line in lines] == [
        f"linear level {level} of 2, iteration {n} of 25" for level in (1, 2) for n in (1, 25)
    ]
    names = images(oblique[2])
    registration(names["fixed"], names["moving"], "Rigid", verbose=True, **QUICK)
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "level" in line]
    assert told
    assert len(told) == len(set(told))


def test_images_that_cannot_be_used(oblique: dict[int, Phantom]) -> None:
    names = images(oblique[2])
    bad = names["fixed"].clone()
    bad[3, 4] = np.nan
    with pytest.raises(InputError, match="fixed image: has 1 NaN"):
        registration(bad, names["moving"])
    with pytest.raises(InputError, match="moving image: has 2 values"):
        registration(names["fixed"], ants.merge_channels([names["moving"]] * 2))
    with pytest.raises(InputError, match="is 2D but"):
        registration(images(oblique[3])["fixed"], names["moving"])
    with pytest.raises(InputError, match="antsRegistration's arguments alone"):
        registration(["-d", "2"], names["moving"])
    with pytest.raises(InputError, match="words and names of files, got ANTsImage; write images to files"):
        registration(["-d", "2", "-f", names["fixed"]], None)
    with pytest.raises(InputError, match="ndarray"):
        registration(names["fixed"].numpy(), names["moving"])


def test_without_a_prefix_files_go_to_a_folder_of_their_own(oblique: dict[int, Phantom]) -> None:
    names = images(oblique[2])
    folders = set()
    for _ in range(2):
        tx = registration(names["fixed"], names["moving"], "Rigid", **QUICK)
        path = Path(tx["fwdtransforms"][0])
        assert path.is_file()
        folders.add(path.parent)
        path.unlink()
        path.parent.rmdir()
    assert len(folders) == 2


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_runs_and_lists_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = (centred((44, 40), (3.8, 4.9), turned(2, 0.3)), centred((40, 46), (4.2, 4.4), turned(2, -0.2)))
    phantom = brain_phantom(2, geometry=grids[0], moving_geometry=grids[1])
    save_image(phantom.fixed, phantom.geometry, tmp_path / "fixed.nii.gz")
    save_image(phantom.moving, phantom.moving_geometry, tmp_path / "moving.nii.gz")
    save_image(phantom.moving_labels, phantom.moving_geometry, tmp_path / "moving_labels.nii.gz")
    monkeypatch.chdir(tmp_path)
    names = run_blocks("coming_from_ants.md")
    landmarks, home = coordinates(names["landmarks"]), coordinates(names["in_fixed"])
    assert np.abs(landmarks - home).max() < 0.5
    assert np.abs(array(names["again"]) - array(names["warped"])).max() < 1e-4 * 200
    text = (DOCS / "coming_from_ants.md").read_text(encoding="utf-8")
    for option, (what, meaning) in OPTIONS.items():
        assert f"| `{option}` | {what} | {meaning} |" in text
    for metric, (what, ours, meaning) in METRICS.items():
        assert f"| `{metric}` | {what} | `{ours}` | {meaning} |" in text
    for name, kind in TYPES.items():
        assert f"| `{name}` | {kind.linear} | {'yes' if kind.deformable else 'no'} | {kind.preset} |" in text
    for name, kind in SCRIPT_TYPES.items():
        deformation = "yes" if kind.deformable else "no"
        assert f"| `antsRegistrationSyN[{name}]` | {kind.linear} | {deformation} | {kind.preset} |" in text
    for name, how in APPROXIMATED_TYPES.items():
        assert f"`{name}` ({how})" in text


def test_restricted_transformation(oblique: dict[int, Phantom]) -> None:
    given = {n: p.default for n, p in inspect.signature(registration).parameters.items()}
    for value in ((0, 1, 0), [0, 1, 0], np.array([0.0, 1.0, 0.0])):
        _, options = register_options({**given, "restrict_transformation": value}, {})
        assert options["restrict"] == (0, 1, 0)
    for value in ((0.1, 1, 0.1), (0, 0, 0), "0x1x0", 1):
        with pytest.raises(OptionError, match=r"restrict_transformation=.*such as"):
            register_options({**given, "restrict_transformation": value}, {})
    with pytest.raises(OptionError, match="are the same option; give one of them"):
        register_options({**given, "restrict_transformation": (0, 1)}, {"restrict": (0, 1)})
    names = images(oblique[2])
    with pytest.raises(OptionError, match="restrict has one value for each axis"):
        registration(names["fixed"], names["moving"], restrict_transformation=(0, 1, 0))


def test_warps_of_all_images_can_be_added_up(phantom_2d: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an image, such as the template itself, moves so little that a coarse grid would hold its field."""
    names = images(phantom_2d)
    template, other = names["fixed"], names["moving"]
    warps = []

    def register(fixed: Any, moving: Any, **options: Any) -> dict[str, Any]:
        found = registration(fixed, moving, **options, **QUICK)
        warps.append(ants.image_read(found["fwdtransforms"][0]))
        return found

    monkeypatch.setattr(ants, "registration", register)
    built = ants.build_template(initial_template=template, image_list=[template, other], iterations=1)
    assert built.shape == template.shape
    assert [ants.image_physical_space_consistency(warp, template) for warp in warps] == [True, True]


def test_a_grid_that_is_asked_for_is_kept(phantom_2d: Phantom) -> None:
    names = images(phantom_2d)
    for asked in ({"field_spacing": 2}, {"field_spacing": None}, {"max_interpolation_error": 10.0}):
        found = registration(names["fixed"], names["fixed"], "SyNOnly", **QUICK, **asked)
        assert ants.image_read(found["fwdtransforms"][0]).shape < names["fixed"].shape


def test_no_seed_is_what_antspy_calls_none() -> None:
    given = {n: p.default for n, p in inspect.signature(registration).parameters.items()}
    assert register_options(given, {"random_seed": None}) == register_options(given, {})
    assert register_options(given, {"random_seed": None, "seed": 3})[1]["seed"] == 3

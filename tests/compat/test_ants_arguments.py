"""ANTsPy's arguments: smoothing, levels of the linear stage, further pairs, raw arguments; types of what comes back."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import ants
import numpy as np
import pandas as pd
import pytest

from itk_nir.compat.ants import TYPES, register_options, registration, to_ants
from itk_nir.compat.ants.arguments import kind_options, linear_levels
from itk_nir.compat.ants.smoothness import smoothness_factor, smoothness_for
from itk_nir.errors import InputError, ItkNirError
from itk_nir.images import save_image
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.settings import make_settings
from tests.grids import centred, turned

#: Few iterations: enough to be well on the way on images this small.
QUICK: dict[str, Any] = {
    "preset": "fast", "shrink_factors": (2, 1), "smoothing_sigmas": (0.5, 0.5), "iterations": (25, 8),
    "learning_rates": (0.4, 0.2), "grid_spacing": (2.0, 2.0), "coarsest_grid_spacing": 8.0, "radius": (3, 3),
    "velocity_smoothness": (0.1, 0.1), "linear_size": (28,), "linear_iterations": (40,), "linear_start_iterations": 8,
    "threads": 1, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return brain_phantom(2, (56, 64))


def images(phantom: Phantom) -> dict[str, Any]:
    return {
        "fixed": to_ants(phantom.fixed, phantom.geometry),
        "moving": to_ants(phantom.moving, phantom.moving_geometry),
    }


def arguments(**given: Any) -> dict[str, Any]:
    return {**{n: p.default for n, p in inspect.signature(registration).parameters.items()}, **given}


def test_smoothing_of_ants_is_a_factor_that_grows_with_its_numbers() -> None:
    assert smoothness_for(3, 0) == {} == register_options(arguments(), {})[1]
    updates, totals = (0.5, 1, 2, 3, 6, 20), (0, 0.25, 0.5, 1, 2)
    for factors in (
        [smoothness_factor(u, 0) for u in updates],
        [smoothness_factor(3, t) for t in totals],
        [smoothness_factor(3, 0, d) for d in (20, 26, 40)],
    ):
        assert all(a < b for a, b in itertools.pairwise(factors))
    own = make_settings("default").deformable.smoothness
    for given in ({"total_sigma": 1}, {"flow_sigma": 3 * 2.25**4}):
        kind, options = register_options(arguments(**given), {})
        assert kind_options(kind, options)["preset"].deformable.smoothness == pytest.approx([2.25 * w for w in own])
    levels = register_options(arguments(total_sigma=1, reg_iterations=(10, 10, 10, 10)), {})[1]
    assert levels["smoothness"] == pytest.approx([2.25 * w for w in (*own, own[-1])])
    assert register_options(arguments(total_sigma=1), {"smoothness": 3.0})[1]["smoothness"] == 3.0
    assert register_options(arguments(type_of_transform="Rigid", total_sigma=1), {})[1] == {}


def test_levels_of_the_linear_stage() -> None:
    grid = centred((64, 48), (1.0, 1.0), turned(2, 0.0))
    kind = TYPES["Affine"]
    assert linear_levels(arguments(), kind, grid, "default") == {}
    given = {"aff_iterations": (40, 0, 20), "aff_shrink_factors": (4, 2, 1), "aff_smoothing_sigmas": (2, 1, 0)}
    levels = {"linear_size": (16, 64), "linear_iterations": (40, 20)}
    assert linear_levels(arguments(**given), kind, grid, "default") == levels
    one = arguments(aff_iterations=4, aff_shrink_factors=np.int64(4), aff_smoothing_sigmas=4)
    assert linear_levels(one, kind, grid, "default") == {"linear_size": (16,), "linear_iterations": (4,)}
    assert linear_levels(one, TYPES["SyNOnly"], grid, "default") == {}


def test_raw_arguments_are_the_programs(phantom: Phantom, tmp_path: Path) -> None:
    pytest.importorskip("itk_nir.programs.ants_registration", reason="there are no programs in this version")
    save_image(phantom.fixed, phantom.geometry, tmp_path / "f.nii.gz")
    save_image(phantom.moving, phantom.moving_geometry, tmp_path / "m.nii.gz")
    metric = f"MI[{tmp_path}/f.nii.gz,{tmp_path}/m.nii.gz,1,32,Regular,0.25]"
    words: list[Any] = ["-d", 2, "-o", f"{tmp_path}/x", "-t", "Rigid[0.1]", "-m", metric]
    words += ["-c", "[20,1e-6,10]", "-f", "2", "-s", "1vox"]
    assert registration(words, None) == 0
    assert (tmp_path / "x0GenericAffine.mat").is_file()
    with pytest.raises(ItkNirError):
        registration([*words[:-2], "-s", "nonsense"], None)


def test_pixel_types_and_the_precision_of_fields_are_those_of_antspy(phantom: Phantom, tmp_path: Path) -> None:
    """Both images have the type of the fixed one, whatever that of the moving one."""
    names = images(phantom)
    fixed = names["fixed"].clone("unsigned char")
    tx = registration(
        fixed, names["moving"].clone("double"), "SyNOnly", outprefix=f"{tmp_path}/", singleprecision=False, **QUICK
    )
    assert (tx["warpedmovout"].pixeltype, tx["warpedfixout"].pixeltype) == ("unsigned char", "unsigned char")
    theirs = ants.apply_transforms(names["fixed"], names["moving"], tx["fwdtransforms"]).numpy()
    assert np.abs(tx["warpedmovout"].numpy() - theirs).max() < 0.51
    assert ants.image_header_info(tx["fwdtransforms"][0])["pixeltype"] == "double"
    tx = registration(
        names["fixed"].clone("double"), names["moving"], "Translation", outprefix=f"{tmp_path}/t", **QUICK
    )
    assert (tx["warpedmovout"].pixeltype, tx["warpedfixout"].pixeltype) == ("double", "double")
    matrix = ants.read_transform(tx["fwdtransforms"][0]).parameters[:4]
    assert np.allclose(matrix, [1, 0, 0, 1], rtol=0, atol=1e-12)


def test_further_pairs_count_as_channels(phantom: Phantom, tmp_path: Path) -> None:
    """Where the first pair shows nothing of the deformation, the second does."""
    names = images(phantom)
    extras = [("demons", names["fixed"], names["moving"], 2, 1), ["CC", names["fixed"], names["moving"], 0.5, 3]]
    _, options = register_options(arguments(type_of_transform="SyNOnly", multivariate_extras=extras), {})
    assert options == {"metric": ("nmi", "mse", "lncc"), "channel_weights": (1.0, 2.0, 0.5), "radius": 3}
    blobs = [np.exp(-((g.grid() - g.centre) ** 2).sum(-1) / 2e3) for g in (phantom.geometry, phantom.moving_geometry)]
    blank = [
        to_ants(b.astype(np.float32), g)
        for b, g in zip(blobs, (phantom.geometry, phantom.moving_geometry), strict=True)
    ]
    points = phantom.geometry.grid()[phantom.fixed_labels > 0]
    truth = points + phantom.displacement[phantom.fixed_labels > 0]
    errors = []
    for more in (None, [("CC", names["fixed"], names["moving"], 4, 3)]):
        tx = registration(
            *blank,
            "SyNOnly",
            outprefix=f"{tmp_path}/",
            syn_metric="CC",
            syn_sampling=3,
            multivariate_extras=more,
            **QUICK,
        )
        table = pd.DataFrame(points, columns=["x", "y"])
        got = ants.apply_transforms_to_points(2, table, tx["fwdtransforms"]).to_numpy()
        errors.append(np.linalg.norm(got - truth, axis=1).mean())
    assert errors[1] < 0.7 * errors[0]
    part = ants.crop_indices(names["fixed"], (0, 0), (40, 40))
    with pytest.raises(InputError, match="lies on another grid than fixed image"):
        registration(*blank, "SyNOnly", multivariate_extras=[("CC", part, names["moving"], 1, 3)])


def test_outside_the_other_image_is_0_whatever_the_background(phantom: Phantom) -> None:
    """As with ANTs, whose images of CT hold 0 there, not air."""
    names = images(phantom)
    tx = registration(names["fixed"] - 1000, names["moving"] - 1000, "Rigid", **QUICK)
    for image, (onto, of, files, back) in {
        "warpedmovout": ("fixed", "moving", "fwdtransforms", []),
        "warpedfixout": ("moving", "fixed", "invtransforms", [True]),
    }.items():
        theirs = ants.apply_transforms(names[onto], names[of] - 1000, tx[files], whichtoinvert=back or None).numpy()
        assert (theirs == 0).sum() > 20
        assert np.abs(tx[image].numpy() - theirs).max() < 0.01, image


def test_levels_may_be_arrays_and_sigmas_fractions() -> None:
    given = arguments(
        reg_iterations=np.array([5, 3, 0]), aff_iterations=np.array([9, 8]), aff_shrink_factors=(2, 1),
        aff_smoothing_sigmas=(1.5, 0),
    )  # fmt: skip
    kind, options = register_options(given, {"preset": "fast"})
    assert (options["shrink_factors"], options["iterations"]) == ((4, 2), (5, 3))
    geometry = brain_phantom(2, (56, 64)).geometry
    assert len(linear_levels(given, kind, geometry, "fast")["linear_size"]) == 2

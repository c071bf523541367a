"""`register`, from images to transforms, on phantoms whose deformation is known."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import itk_nir
from itk_nir.engine.metrics import LNCC
from itk_nir.engine.progress import Progress
from itk_nir.errors import InputError, ItkNirError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image, to_itk, to_sitk
from itk_nir.phantom import Phantom, brain_phantom
from itk_nir.result import RegistrationResult
from itk_nir.settings import make_settings, options_of
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform
from tests.grids import turned

BOTH = pytest.mark.parametrize("d", [2, 3])
#: Few steps on two coarse levels: enough to be well on the way.
QUICK: dict[str, Any] = {
    "shrink_factors": (2, 1), "smoothing_sigmas": (0.5, 0.5), "iterations": (25, 8), "learning_rates": (0.4, 0.2),
    "grid_spacing": (2.0, 2.0), "coarsest_grid_spacing": 8.0, "radius": (3, 3), "velocity_smoothness": (0.5, 0.5),
    "smoothness": (0.0, 0.0), "metric": LNCC(epsilon=1e-3), "integration_steps": 5, "jacobian_weight": 0.0,
    "linear_size": (24,), "linear_iterations": (25,), "linear_start_iterations": 8,
}  # fmt: skip
ENV = {**os.environ, "PYTHONPATH": str(Path(itk_nir.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}


#: Arguments of `register` that are no options.
OWN = frozenset({
    "preset", "linear", "deformable", "fixed_mask", "moving_mask", "initial_transform", "seed", "device", "threads",
    "callback",
})  # fmt: skip


def run(fixed: Any, moving: Any, **options: Any) -> RegistrationResult:
    """Options go into the settings, the expert ones too; the rest is arguments."""
    arguments = {"threads": 1, "device": "cpu", **{k: v for k, v in options.items() if k in OWN}}
    chosen = {**QUICK, **{k: v for k, v in options.items() if k not in OWN}}
    preset = make_settings(arguments.pop("preset", "default"), **chosen)
    return itk_nir.register(fixed, moving, preset=preset, **arguments)


@pytest.fixture(scope="module")
def phantoms(phantom_2d: Phantom) -> dict[int, Phantom]:
    return {2: phantom_2d, 3: brain_phantom(3, (30, 36, 30))}


@pytest.fixture(scope="module")
def oblique_results(oblique: dict[int, Phantom]) -> dict[int, RegistrationResult]:
    return {d: run(*images(oblique[d]), linear="affine") for d in (2, 3)}


def images(p: Phantom, kind: str = "sitk") -> tuple[Any, Any]:
    make = to_sitk if kind == "sitk" else to_itk
    return make(p.fixed, p.geometry), make(p.moving, p.moving_geometry)


def brain(p: Phantom) -> np.ndarray:
    return np.asarray(p.fixed_labels > 0)


def error(result: RegistrationResult, p: Phantom) -> float:
    """Mean distance to the true place over the brain, mm."""
    points = p.geometry.grid()[brain(p)]
    return float(np.linalg.norm(result.transform_points(points) - points - p.displacement[brain(p)], axis=-1).mean())


def start(p: Phantom) -> float:
    return float(np.linalg.norm(p.displacement[brain(p)], axis=-1).mean())


# --- images in, transform out ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("d", "kind"), [(2, "itk"), (2, "sitk"), (2, "path"), (3, "itk")])
def test_every_kind_of_image(phantoms: dict[int, Phantom], tmp_path: Path, d: int, kind: str) -> None:
    p = phantoms[d]
    if kind == "path":
        files = tmp_path / "f.nii.gz", tmp_path / "m.nii.gz"
        save_image(p.fixed, p.geometry, files[0])
        save_image(p.moving, p.geometry, files[1])
        result = run(files[0], str(files[1]))
    else:
        result = run(*images(p, kind))
    assert error(result, p) < (0.5 if d == 2 else 0.9) * start(p)
    assert type(result.warped).__module__.split(".")[0] == ("SimpleITK" if kind == "sitk" else "itk")
    assert result.warped_array.shape == p.fixed.shape
    before, after = (np.abs(x - p.fixed)[brain(p)].mean() for x in (p.moving, result.warped_array))
    assert after < 0.75 * before
    own = itk_nir.apply(images(p)[1], result.mapping, images(p)[0], interpolation="linear")
    # A path's header rounds the grid.
    np.testing.assert_allclose(sitk.GetArrayFromImage(own), result.warped_array, atol=1e-3)


@pytest.mark.slow
def test_kind_of_image_changes_no_bit(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    by_itk, by_sitk = (run(*images(p, kind)) for kind in ("itk", "sitk"))
    np.testing.assert_array_equal(by_itk.warped_array, by_sitk.warped_array)
    mixed = run(images(p, "itk")[0], images(p, "sitk")[1])
    np.testing.assert_array_equal(mixed.warped_array, by_sitk.warped_array)


@BOTH
def test_oblique_anisotropic_pair_is_registered(
    oblique: dict[int, Phantom], oblique_results: dict[int, RegistrationResult], d: int
) -> None:
    assert error(oblique_results[d], oblique[d]) < (0.5 if d == 2 else 0.9) * start(oblique[d])


@BOTH
def test_every_tool_resamples_alike(
    oblique: dict[int, Phantom], oblique_results: dict[int, RegistrationResult], tmp_path: Path, d: int
) -> None:
    """ITK through `.transform`, SimpleITK through the .h5 and the engine's own warp: 1e-3 of the range."""
    import itk

    p, result = oblique[d], oblique_results[d]
    own = result.warped_array
    tolerance = 1e-3 * float(np.ptp(p.moving))
    paths = result.save(tmp_path / "case_")
    fixed, moving = images(p)
    by_sitk = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, sitk.ReadTransform(str(paths["composite"])), sitk.sitkLinear)
    )
    fixed, moving = images(p, "itk")
    for transform in (result.transform, result.composite):
        by_itk = itk.resample_image_filter(moving, transform=transform, reference_image=fixed, use_reference_image=True)
        assert np.abs(np.asarray(by_itk) - own)[brain(p)].max() <= tolerance
    assert np.abs(by_sitk - own).max() <= tolerance
    assert own.std() > 10


@BOTH
def test_inverse_after_forward_is_the_identity(
    oblique: dict[int, Phantom], oblique_results: dict[int, RegistrationResult], d: int
) -> None:
    p, result = oblique[d], oblique_results[d]
    points = p.geometry.grid()[brain(p)]
    unit = min(p.geometry.spacing)
    back = result.transform_points(result.transform_points(points), inverse=True)
    gap = np.linalg.norm(back - points, axis=-1) / unit
    assert gap.mean() <= 0.1
    assert np.percentile(gap, 99) <= 0.5
    sampled = np.linalg.norm(result.mapping.inverse().map(result.mapping.map(points)) - points, axis=-1) / unit
    assert sampled.mean() <= 0.1
    assert np.percentile(sampled, 99) <= 0.5
    m = result.report
    assert m.inverse_error_mean_voxels <= 0.1
    assert m.inverse_error_p99_voxels <= 0.5
    assert m.interpolation_error_voxels <= 0.05 or m.field_spacing_voxels == 1


@BOTH
def test_itk_inverse_is_set(
    oblique: dict[int, Phantom], oblique_results: dict[int, RegistrationResult], d: int
) -> None:
    p, result = oblique[d], oblique_results[d]
    points = p.geometry.grid()[brain(p)][::37]
    inverse = result.transform.GetInverseTransform()
    assert inverse is not None
    back = np.array([list(inverse.TransformPoint(result.transform.TransformPoint(q.tolist()))) for q in points])
    assert np.linalg.norm(back - points, axis=-1).mean() <= 0.1 * min(p.geometry.spacing)


@BOTH
def test_points_follow_the_continuous_map(
    oblique: dict[int, Phantom], oblique_results: dict[int, RegistrationResult], d: int
) -> None:
    p, result = oblique[d], oblique_results[d]
    rng = np.random.default_rng(0)
    points = p.geometry.grid()[brain(p)]
    points = points[rng.integers(0, len(points), 3000)] + rng.normal(size=(3000, d))
    gap = np.linalg.norm(result.transform_points(points) - result.mapping.map(points), axis=-1) / min(
        p.geometry.spacing
    )
    assert gap.max() < max(0.06, 1.15 * result.report.interpolation_error_voxels)


@BOTH
def test_report(oblique: dict[int, Phantom], oblique_results: dict[int, RegistrationResult], d: int) -> None:
    p, result = oblique[d], oblique_results[d]
    m = result.report
    assert [t.level for t in m.trace] == [0] * 25 + [1] * 8
    # Both at the last level, after its last step and without any deformation.
    assert m.similarity is not None
    assert m.similarity_start is not None
    assert m.similarity_start < m.trace[25].metric < m.similarity
    assert m.similarity == pytest.approx(m.trace[-1].metric, abs=0.02)
    assert m.similarity > 0.8
    assert (m.preset, m.seed, m.threads, m.device, m.stop) == ("default", 0, 1, "cpu", "all iterations done")
    seconds = m.seconds
    assert set(seconds) == {"read", "linear", "deformable", "verdict", "sampling", "total"}
    assert sum(v for k, v in seconds.items() if k != "total") == pytest.approx(seconds["total"], abs=0.05)
    assert min(seconds.values()) >= 0
    assert m.peak_memory_mb > 50
    assert {"itk-nir", "torch", "numpy", "python"} <= set(m.versions)
    linear = LinearTransform(np.array(m.affine_matrix))
    np.testing.assert_allclose(linear.matrix, result.mapping.transforms[1].matrix)  # type: ignore[union-attr]
    # The Jacobian's numbers are of the deformation, without the linear part.
    det = result.jacobian_array[brain(p)] / np.linalg.det(linear.matrix)
    assert m.folded_voxels == 0
    assert det.min() > 0
    assert det.min() >= m.jacobian_range[0] - 0.15
    assert det.max() <= m.jacobian_range[1] + 0.15
    assert np.log(det).std() == pytest.approx(m.log_jacobian_sd, rel=0.5)


# --- presets and stages ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_paper_preset_with_fewer_iterations(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    phases = tuple(replace(phase, iterations=60) for phase in options_of("paper")["phases"])
    result = itk_nir.register(
        *images(p), preset=make_settings("paper", phases=phases), linear="none", threads=1, device="cpu"
    )
    assert error(result, p) < 0.8 * start(p)
    assert [t.level for t in result.report.trace] == [0] * 60 + [1] * 60
    points = p.geometry.grid()[brain(p)]
    back = result.transform_points(result.transform_points(points), inverse=True)
    gap = np.linalg.norm(back - points, axis=-1) / min(p.geometry.spacing)
    assert gap.mean() <= 0.1


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("linear", ["none", "rigid", "affine"])
def test_linear_stage(phantoms: dict[int, Phantom], d: int, linear: str) -> None:
    p = phantoms[d]
    move = np.eye(d + 1)
    if linear != "none":
        move[:d, :d] = turned(d, 0.15)
        move[:d, d] = (6.0, -4.0, 5.0)[:d]
    if linear == "affine":
        move[:d, :d] = move[:d, :d] @ np.diag([1.1, 0.95, 1.05][:d])
    truth = LinearTransform(move)
    moved = itk_nir.apply(images(p)[0], CompositeTransform((truth.inverse(),)), images(p)[0], interpolation="linear")
    result = run(images(p)[0], moved, linear=linear, linear_size=(24, 40), linear_iterations=(60, 30))
    found = np.array(result.report.affine_matrix)
    points = p.geometry.grid()[brain(p)]
    gap = np.linalg.norm(LinearTransform(found).map(points) - truth.map(points), axis=-1).mean()
    unit = max(p.geometry.spacing)
    if linear == "none":
        np.testing.assert_array_equal(found, np.eye(d + 1))
        assert result.report.similarity_linear is None
    else:
        assert gap < 0.4 * unit
        assert result.report.similarity_linear > 0.7
    if linear == "rigid":
        np.testing.assert_allclose(found[:d, :d] @ found[:d, :d].T, np.eye(d), atol=1e-5)
    total = np.linalg.norm(result.transform_points(points) - truth.map(points), axis=-1)
    assert total.mean() < 0.2 * unit


def test_images_that_share_no_space(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    away = to_sitk(p.moving, replace(p.geometry, origin=tuple(np.asarray(p.geometry.origin) + 1000.0)))
    with pytest.raises(InputError, match=r"does not overlap .*linear='affine'"):
        run(images(p)[0], away, linear="none")
    with pytest.warns(UserWarning, match="covers only 0%"):
        result = run(images(p)[0], away, linear="rigid", linear_iterations=(60,))
    points = p.geometry.grid()[brain(p)]
    gap = result.transform_points(points) - points - p.displacement[brain(p)] - 1000.0
    assert np.linalg.norm(gap, axis=-1).mean() < 0.6 * start(p)
    # With a start that says so, no linear stage is needed.
    shift = np.eye(3)
    shift[:2, 2] = 1000.0
    again = run(images(p)[0], away, linear="none", initial_transform=shift)
    gap = again.transform_points(points) - points - p.displacement[brain(p)] - 1000.0
    assert np.linalg.norm(gap, axis=-1).mean() < 0.6 * start(p)


# --- starts given by the caller --------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["matrix", "itk translation", "sitk", "file"])
@pytest.mark.filterwarnings("default:.*have little in common:UserWarning")
def test_linear_start_is_not_lost(phantoms: dict[int, Phantom], tmp_path: Path, d: int, kind: str) -> None:
    """Without any step taken, the result is the start."""
    import itk

    p = phantoms[d]
    shift = np.array([9.0, -6.0, 4.0])[:d]
    matrix = np.eye(d + 1)
    matrix[:d, d] = shift
    given: Any = matrix
    if kind == "itk translation":
        given = itk.TranslationTransform[itk.D, d].New()
        given.SetOffset(shift.tolist())
    elif kind in ("sitk", "file"):
        given = sitk.TranslationTransform(d, shift.tolist())
        if kind == "file":
            sitk.WriteTransform(given, str(tmp_path / "start.tfm"))
            given = tmp_path / "start.tfm"
    still = {"iterations": (1, 1), "learning_rates": (1e-7, 1e-7)}
    result = run(*images(p), linear="none", initial_transform=given, **still)
    points = p.geometry.grid()[brain(p)]
    np.testing.assert_allclose(result.transform_points(points), points + shift, atol=1e-4)
    np.testing.assert_allclose(result.mapping.inverse().map(points + shift), points, atol=1e-3)


@pytest.mark.slow
@BOTH
def test_deformation_and_linear_part_come_before_the_start(phantoms: dict[int, Phantom], d: int) -> None:
    """``phi(p) = T(A(p + u(p)))``: a start that turns space by a right angle tells the order."""
    p = phantoms[d]
    quarter = np.eye(d + 1)
    quarter[:2, :2] = [[0, -1], [1, 0]]
    quarter[:d, d] = (30.0, 5.0, -8.0)[:d]
    start_at = LinearTransform(quarter)
    size = tuple(max(p.geometry.size) for _ in range(d))
    there = Geometry.make(size, p.geometry.spacing)
    middle = start_at.map(p.geometry.centre[None])[0]
    there = replace(there, origin=tuple(middle - there.centre))
    moving = itk_nir.apply(images(p)[1], CompositeTransform((start_at.inverse(),)), there, interpolation="linear")
    for linear in ("none", "affine"):
        result = run(images(p)[0], moving, linear=linear, initial_transform=quarter)
        points = p.geometry.grid()[brain(p)]
        wanted = start_at.map(points + p.displacement[brain(p)])
        gap = np.linalg.norm(result.transform_points(points) - wanted, axis=-1).mean()
        assert gap < (0.6 if d == 2 else 0.95) * start(p)


@pytest.mark.slow
@BOTH
def test_displacement_field_as_a_start(phantoms: dict[int, Phantom], d: int) -> None:
    p = phantoms[d]
    points = p.geometry.grid()[brain(p)]
    truth = DisplacementField(p.geometry, p.displacement)
    for given in (truth, CompositeTransform((truth,))):
        result = run(*images(p), linear="none", initial_transform=given)
        # Already right: the registration adds next to nothing, and what was given is still all there.
        assert error(result, p) < (0.25 if d == 2 else 0.5) * start(p)
        back = result.transform_points(result.transform_points(points), inverse=True)
        assert np.linalg.norm(back - points, axis=-1).mean() < 0.2 * min(p.geometry.spacing)
    # Half of the way given: what is found adds to it.
    half = DisplacementField(p.geometry, p.displacement * 0.5)
    assert error(run(*images(p), linear="none", initial_transform=half), p) < (0.4 if d == 2 else 0.9) * start(p)


@pytest.mark.filterwarnings("default:.*have little in common:UserWarning")
def test_list_of_starts_in_the_order_of_ants(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    shift, turn = np.eye(3), np.eye(3)
    shift[:2, 2] = (12.0, 0.0)
    turn[:2, :2] = turned(2, 0.2)
    still = {"iterations": (1, 1), "learning_rates": (1e-7, 1e-7), "linear": "none"}
    points = p.geometry.grid()[brain(p)]
    result = run(*images(p), initial_transform=[shift, turn], **still)
    np.testing.assert_allclose(result.transform_points(points), (points + shift[:2, 2]) @ turn[:2, :2].T, atol=1e-4)


def test_start_that_leads_out_of_the_moving_image(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    away = DisplacementField(p.geometry, np.full_like(p.displacement, 5000.0))
    with pytest.raises(InputError, match="initial transform"):
        run(*images(p), linear="none", initial_transform=away)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", ["none", "affine"])
def test_masks(phantoms: dict[int, Phantom], linear: str) -> None:
    p = phantoms[2]
    x = np.arange(p.fixed.shape[1])
    half = np.broadcast_to(x < p.fixed.shape[1] // 2, p.fixed.shape)
    noise = np.random.default_rng(0).uniform(0, 200, p.fixed.shape).astype(np.float32)
    spoilt = np.where(half, p.fixed, noise).astype(np.float32)
    mask = to_sitk((half & brain(p)).astype(np.uint8), p.geometry)
    moving = images(p)[1]
    result = run(to_sitk(spoilt, p.geometry), moving, fixed_mask=mask, linear=linear)
    kept = half & brain(p)
    points = p.geometry.grid()[kept]
    truth = p.displacement[kept]
    gap = np.linalg.norm(result.transform_points(points) - points - truth, axis=-1).mean()
    assert gap < 0.6 * np.linalg.norm(truth, axis=-1).mean()
    clean = run(images(p)[0], moving, fixed_mask=mask, linear=linear)
    assert np.linalg.norm(clean.transform_points(points) - result.transform_points(points), axis=-1).mean() < 0.5


def test_mask_on_another_grid_is_taken_with_a_warning(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    coarse = Geometry.make((30, 30), (6.0, 7.0), p.geometry.origin, p.geometry.direction)
    mask = to_sitk(np.ones(coarse.shape, np.uint8), coarse)
    with pytest.warns(UserWarning, match="fixed mask.*another grid"):
        result = run(*images(p), fixed_mask=mask, moving_mask=to_sitk(np.ones(p.fixed.shape, np.uint8), p.geometry))
    assert any("another grid" in text for text in result.report.warnings)
    assert error(result, p) < 0.6 * start(p)


# --- the same bits ---------------------------------------------------------------------------------------------------


def bits(result: RegistrationResult) -> bytes:
    fields = [
        s
        for s in (*result.mapping.transforms, *result.mapping.inverse().transforms)
        if isinstance(s, DisplacementField)
    ]
    linear = [s for s in result.mapping.transforms if isinstance(s, LinearTransform)]
    return b"".join([*(f.vectors.tobytes() for f in fields), *(a.matrix.tobytes() for a in linear)])


_PROGRAM = """
import sys, hashlib, pathlib
from dataclasses import replace
import itk_nir
from itk_nir.engine.metrics import LNCC
from itk_nir.settings import options_of
for name, text, linear in zip(*[iter(sys.argv[1:])] * 3):
    folder = pathlib.Path(name)
    result = itk_nir.register(
        folder / "f.nii.gz", folder / "m.nii.gz", preset=eval(text), linear=linear, seed=3, threads=1, device="cpu",
    )
    result.save(folder / "fresh_")
    print(hashlib.sha256(result.warped_array.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_same_seed_same_bits(phantoms: dict[int, Phantom], tmp_path: Path) -> None:
    """Twice in one process, with other work and random numbers between; and in a fresh process."""
    import hashlib

    few = "tuple(replace(phase, iterations=4) for phase in options_of('paper')['phases'])"
    calls = {
        "default": (3, f"itk_nir.make_settings('default', **{ ({**QUICK, 'iterations': (4, 2)})!r})", "affine"),
        "paper": (2, f"itk_nir.make_settings('paper', phases={few}, field_spacing=3)", "none"),
    }
    names = {"itk_nir": itk_nir, "LNCC": LNCC, "replace": replace, "options_of": options_of}
    words, first = [sys.executable, "-c", _PROGRAM], {}
    for preset, (d, text, linear) in calls.items():
        p, folder = phantoms[d], tmp_path / preset
        folder.mkdir()
        files = folder / "f.nii.gz", folder / "m.nii.gz"
        save_image(p.fixed, p.geometry, files[0])
        save_image(p.moving, p.geometry, files[1])
        options: dict[str, Any] = {
            "preset": eval(text, names), "linear": linear, "seed": 3, "threads": 1, "device": "cpu"
        }  # fmt: skip
        first[preset] = itk_nir.register(*files, **options)
        run(*images(phantoms[2]), seed=9)
        torch.manual_seed(77)
        torch.rand(1000)
        np.random.seed(5)  # noqa: NPY002  what other code may do
        second = itk_nir.register(*files, **options)
        assert bits(first[preset]) == bits(second), preset
        np.testing.assert_array_equal(first[preset].warped_array, second.warped_array)
        words += [str(folder), text, linear]
    done = subprocess.run(words, capture_output=True, text=True, env=ENV, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(r.warped_array.tobytes()).hexdigest() for r in first.values()]
    for preset, result in first.items():
        paths = result.save(tmp_path / preset / "here_")
        fresh = tmp_path / preset / "fresh_Composite.h5"
        assert paths["composite"].read_bytes() == fresh.read_bytes(), preset


@BOTH
def test_threads_change_no_bit(phantoms: dict[int, Phantom], d: int) -> None:
    few = {"iterations": (8, 3), "linear_iterations": (10,), "linear_start_iterations": 3}
    one, two = (run(*images(phantoms[d]), threads=t, **few) for t in (1, 2))
    assert bits(one) == bits(two)
    assert one.report.threads == 1
    assert two.report.threads == 2


def test_seed_matters_where_something_is_drawn(phantoms: dict[int, Phantom]) -> None:
    """The first weights of the network."""
    few: dict[str, Any] = {"iterations": (6, 2), "linear": "none"}
    fields = [run(*images(phantoms[2]), seed=s, network_above=0, **few) for s in (0, 1)]
    assert bits(fields[0]) != bits(fields[1])
    fields = [run(*images(phantoms[2]), seed=s, network=None, **few) for s in (0, 1)]
    assert bits(fields[0]) == bits(fields[1])


def test_seed_matters_for_the_paper_preset(phantoms: dict[int, Phantom]) -> None:
    phases = tuple(replace(phase, iterations=2) for phase in options_of("paper")["phases"])
    settings = make_settings("paper", phases=phases, field_spacing=4)
    fields = [
        itk_nir.register(*images(phantoms[2]), preset=settings, linear="none", seed=s, threads=1, device="cpu")
        for s in (0, 1)
    ]
    assert bits(fields[0]) != bits(fields[1])


def test_state_of_the_process_is_left_alone(phantoms: dict[int, Phantom]) -> None:
    before_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(4)
        np.random.seed(4)  # noqa: NPY002
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        fixed, moving = images(phantoms[2])
        pixels = sitk.GetArrayFromImage(fixed).copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(fixed, moving)
            with pytest.raises(ZeroDivisionError):
                run(fixed, moving, callback=lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), torch_state)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert not torch.are_deterministic_algorithms_enabled()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(fixed), pixels)
    finally:
        torch.set_num_threads(before_threads)


@pytest.mark.slow
def test_calls_from_several_threads_go_one_after_another(phantoms: dict[int, Phantom]) -> None:
    before = torch.get_num_threads()
    alone = run(*images(phantoms[2]))
    order: list[int] = []
    threads: set[int] = set()

    def turn(k: int) -> RegistrationResult:
        def callback(_: Progress) -> None:
            order.append(k)
            threads.add(torch.get_num_threads())

        return run(*images(phantoms[2]), callback=callback)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(turn, range(3)))
        assert set(pool.map(lambda _: torch.get_num_threads(), range(3))) == {before}
    assert threads == {before}
    assert len([k for k, _ in groupby(order)]) == 3
    assert {bits(r) for r in results} == {bits(alone)}


# --- options, old and new --------------------------------------------------------------------------------------------


def test_settings_are_a_preset(phantoms: dict[int, Phantom]) -> None:
    """Public options as keywords, or all of them in the settings: the same bits."""
    few: dict[str, Any] = {"linear": "none", "threads": 1, "device": "cpu"}
    by_settings = itk_nir.register(
        *images(phantoms[2]), preset=make_settings("fast", iterations=4, smoothness=2.0), **few
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_keywords = itk_nir.register(*images(phantoms[2]), preset="fast", iterations=4, smoothness=2.0, **few)
        both = itk_nir.register(
            *images(phantoms[2]), preset=make_settings("fast", smoothness=2.0), iterations=4, **few
        )  # fmt: skip
    assert bits(by_settings) == bits(by_keywords) == bits(both)
    assert by_settings.report.preset == by_keywords.report.preset == "fast"
    assert by_settings.report.settings == by_keywords.report.settings == both.report.settings


@pytest.mark.parametrize("d", [2, 3])
def test_one_that_is_made_much_larger_is_told(d: int) -> None:
    """A metric is high where a smaller object fills a larger one, as a brain without its skull does a head."""
    p = brain_phantom(d, (112, 128) if d == 2 else (24, 28, 24))
    brief = {k: v for k, v in QUICK.items() if k.startswith("linear_")}
    preset = make_settings("fast", iterations=(1, 0, 0), search="never", linear_fine_iterations=0, **brief)
    call: dict[str, Any] = {"preset": preset, "threads": 1, "linear": "similarity"}
    fixed = to_sitk(p.fixed, p.geometry)
    for scale, told in ((0.88, False), (0.7, True)):
        moving = to_sitk(p.fixed, p.geometry)
        moving.SetSpacing([scale * s for s in moving.GetSpacing()])
        moving.SetOrigin([scale * o for o in moving.GetOrigin()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = itk_nir.register(fixed, moving, **call).report.warnings
        much = [text for text in found if "times as large in" in text]
        assert bool(much) == told, found
        assert all(f"{scale**-d:.1f}" in text and "give a mask" in text for text in much), much


def test_expert_settings_as_keywords_warn_and_work(phantoms: dict[int, Phantom]) -> None:
    few: dict[str, Any] = {"linear": "none", "threads": 1, "device": "cpu", "iterations": 3}
    wanted = itk_nir.register(*images(phantoms[2]), preset=make_settings("default", network=None), **few)
    message = r"network: expert settings go into preset=itk_nir.make_settings\('default', network=\.\.\.\) since 0\.2"
    with pytest.warns(DeprecationWarning, match=message) as told:
        found = itk_nir.register(*images(phantoms[2]), network=None, **few)
    assert [w.filename for w in told] == [__file__]
    assert bits(found) == bits(wanted)
    with pytest.warns(DeprecationWarning, match="network, ode_steps|betas, network") as told:
        itk_nir.register(*images(phantoms[2]), preset=make_settings("fast"), network=None, betas=(0.9, 0.99), **few)
    assert len(told) == 1


def test_old_names_as_keywords_warn_and_work(phantoms: dict[int, Phantom]) -> None:
    few: dict[str, Any] = {"linear": "none", "threads": 1, "device": "cpu"}
    wanted = itk_nir.register(
        *images(phantoms[2]), preset=make_settings("default", iterations=3, integration_steps=4), **few
    )
    with pytest.warns(DeprecationWarning) as told:  # noqa: PT030 - both texts are looked at below
        found = itk_nir.register(*images(phantoms[2]), steps=3, squarings=4, **few)
    assert [str(w.message) for w in told] == [
        "option 'steps' is called 'iterations' since 0.2", "option 'squarings' is called 'integration_steps' since 0.2"
    ]  # fmt: skip
    assert {w.filename for w in told} == {__file__}
    assert bits(found) == bits(wanted)


@pytest.mark.parametrize("name", ["grids", "centre_gradient", "epsilon"])
def test_options_that_are_gone(phantoms: dict[int, Phantom], name: str) -> None:
    with pytest.raises(OptionError, match=f"option '{name}' is gone since 0.2: "):
        itk_nir.register(*images(phantoms[2]), **{name: 1})


# --- errors that are not the user's input ----------------------------------------------------------------------------


class Mine(ValueError):
    pass


@pytest.mark.parametrize("stage", ["linear", "deformable", "sampling"])
def test_error_of_the_callback_comes_out_as_it_is(phantoms: dict[int, Phantom], stage: str) -> None:
    raised = Mine("of the caller")

    def fail(progress: Progress) -> None:
        if progress.stage == stage:
            raise raised

    with pytest.raises(Mine) as caught:
        run(*images(phantoms[2]), iterations=(3, 2), callback=fail)
    assert caught.value is raised
    assert not isinstance(caught.value, ItkNirError)
    assert caught.value.__cause__ is None


def test_error_inside_the_engine_is_no_error_of_the_input(
    phantoms: dict[int, Phantom], monkeypatch: pytest.MonkeyPatch
) -> None:
    from itk_nir.engine import ops

    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(ops, "diffusion", broken)
    with pytest.raises(ValueError, match=r"^operands could not be broadcast$") as caught:
        run(*images(phantoms[2]), smoothness=1.0)
    assert not isinstance(caught.value, InputError)
    assert any(entry.name == "broken" for entry in caught.traceback), "the traceback is kept"


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [1, 2, 3])
def test_threads_of_torch_are_as_found_in_and_after(phantoms: dict[int, Phantom], found: int) -> None:
    """The caller's own code runs as the caller has set it; the engine on one thread."""
    from itk_nir.engine import deformable

    before = torch.get_num_threads()
    seen: list[int] = []
    inside: list[int] = []
    optimise = deformable.optimise

    def noted(*arguments: Any, **options: Any) -> Any:
        inside.append(torch.get_num_threads())
        return optimise(*arguments, **options)

    def callback(progress: Progress) -> None:
        seen.append(torch.get_num_threads())

    def another(progress: Progress) -> None:
        run(*images(phantoms[2]), iterations=(1, 1), linear="none")
        seen.append(torch.get_num_threads())

    def fail(progress: Progress) -> None:
        raise Mine(str(torch.get_num_threads()))

    torch.set_num_threads(found)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deformable, "optimise", noted)
            run(*images(phantoms[2]), iterations=(3, 2), callback=callback)
        assert set(seen) == {found}
        assert inside == [1]
        assert torch.get_num_threads() == found
        with pytest.raises(Mine, match=f"^{found}$"):
            run(*images(phantoms[2]), iterations=(3, 2), callback=fail)
        assert torch.get_num_threads() == found
        with pytest.raises(InputError):
            run(images(phantoms[2])[0], "missing.nii.gz")
        assert torch.get_num_threads() == found
        # A callback may register another pair.
        run(*images(phantoms[2]), iterations=(1, 0), linear="none", callback=another)
        assert set(seen) == {found}
        assert torch.get_num_threads() == found
    finally:
        torch.set_num_threads(before)


_THREADS = """
import os, sys
os.cpu_count = lambda: 16
os.sched_getaffinity = lambda pid: set(range(16))
import numpy as np, SimpleITK as sitk, torch
import itk_nir
from itk_nir.phantom import brain_phantom
from itk_nir.images import to_sitk
torch.set_num_threads(4)
p = brain_phantom(3, (20, 24, 20))
settings = itk_nir.make_settings("fast", iterations=1, linear_iterations=1, linear_start_iterations=1)
fixed, moving = to_sitk(p.fixed, p.geometry), to_sitk(p.moving, p.geometry)
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
def count():
    return len(os.listdir("/proc/self/task"))
for threads in (1, None):
    before = count()
    result = itk_nir.register(fixed, moving, preset=settings, threads=threads, device="cpu")
    after = count()
    result.warped_array
    warped = count()
    itk_nir.apply(moving, result, interpolation="bspline", threads=threads)
    applied = count()
    result.jacobian_array
    print(before, after, warped, applied, count())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads by /proc/self/task")
def test_one_thread_is_kept_to_the_end() -> None:
    """On a machine that says to have 16 CPUs: neither `register` nor the warped image starts another thread."""
    done = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True, env=ENV, check=True)
    alone, free = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    assert alone == alone[:1] * 5, "before and after register, warped_array, apply, jacobian_array"
    # The count sees threads where they are asked for.
    assert max(free) >= free[0] + 8


# --- progress --------------------------------------------------------------------------------------------------------


def test_callback_sees_all_stages_and_changes_nothing(phantoms: dict[int, Phantom]) -> None:
    seen: list[Progress] = []
    result = run(*images(phantoms[2]), callback=seen.append)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.1
    assert fractions[-1] == 1.0
    stages = [p.stage for p in seen]
    assert list(dict.fromkeys(stages)) == ["linear", "deformable", "sampling"]
    assert stages.count("deformable") == 33
    seconds = [p.seconds for p in seen]
    assert seconds == sorted(seconds)
    assert bits(result) == bits(run(*images(phantoms[2])))


def test_callback_of_the_paper_preset(phantoms: dict[int, Phantom]) -> None:
    seen: list[Progress] = []
    phases = tuple(replace(phase, iterations=3) for phase in options_of("paper")["phases"])
    itk_nir.register(
        *images(phantoms[2]), preset=make_settings("paper", phases=phases, field_spacing=4), linear="none", threads=1,
        device="cpu", callback=seen.append,
    )  # fmt: skip
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert [p.stage for p in seen] == ["deformable"] * 6 + ["sampling"]


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("stage", ["linear", "deformable"])
def test_cancel_in_each_stage_keeps_the_best_so_far(phantoms: dict[int, Phantom], preset: str, stage: str) -> None:
    p = phantoms[2]
    count = 0

    def stop(progress: Progress) -> bool:
        nonlocal count
        count += progress.stage == stage
        return count == 20

    options = dict(QUICK)
    if preset == "paper":
        options = {"field_spacing": 2, **{k: v for k, v in QUICK.items() if k.startswith("linear")}}
    settings = make_settings(preset, **options)
    result = itk_nir.register(*images(p), preset=settings, threads=1, device="cpu", callback=stop)
    assert result.report.stop == "cancelled"
    assert count == 20
    assert np.isfinite(result.warped_array).all()
    if stage == "linear":
        field = result.mapping.transforms[0]
        assert isinstance(field, DisplacementField)
        assert not field.vectors.any()
    else:
        assert len(result.report.trace) == 20
        assert error(result, p) < start(p)
    assert result.report.folded_voxels == 0


# --- what cannot be registered ---------------------------------------------------------------------------------------


def good(p: Phantom, folder: Path) -> Path:
    path = folder / "good.nii.gz"
    save_image(p.fixed, p.geometry, path)
    return path


def bad(kind: str, folder: Path) -> tuple[Path, str]:
    """A file that cannot be used, and what the message says of it."""
    path = folder / f"{kind}.nii.gz"
    ramp = np.arange(24 * 20, dtype=np.float32).reshape(24, 20)
    if kind == "missing":
        return path, "no such file"
    if kind == "unreadable":
        path.write_bytes(b"this is no image" * 40)
        return path, "unreadable.nii.gz"
    if kind == "truncated":
        save_image(np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32), Geometry.make((40, 40)), path)
        path.write_bytes(path.read_bytes()[:2000])
        return path, "truncated.nii.gz"
    if kind == "folder":
        path.mkdir()
        return path, "folder"
    if kind == "four":
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([[ramp] * 6] * 3), isVector=False), str(path))
        return path, "4D"
    if kind == "other dimension":
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([ramp] * 20)), str(path))
        return path, "3D but .*2D|2D but .*3D"
    if kind == "constant":
        save_image(np.full((24, 20), 7.0, np.float32), Geometry.make((20, 24)), path)
        return path, "constant"
    assert kind in ("nan", "inf")
    path = folder / f"{kind}.mha"
    ramp[3, 4] = np.nan if kind == "nan" else np.inf
    sitk.WriteImage(sitk.GetImageFromArray(ramp), str(path))
    return path, "NaN|Inf|finite"


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize(
    "kind",
    ["missing", "unreadable", "truncated", "folder", "four", "other dimension", "constant", "nan", "inf"],
)
def test_image_that_cannot_be_used(phantoms: dict[int, Phantom], tmp_path: Path, kind: str, role: str) -> None:
    path, message = bad(kind, tmp_path)
    pair = {"fixed": good(phantoms[2], tmp_path), "moving": good(phantoms[2], tmp_path)}
    calls: list[Progress] = []
    with pytest.raises(InputError, match=message) as caught:
        run(**{**pair, role: path}, callback=calls.append)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert not calls, "said before any optimisation"


@pytest.mark.parametrize(
    ("options", "error_type", "message"),
    [
        ({"preset": "defualt"}, OptionError, "did you mean 'default'"),
        ({"linear": "bspline"}, OptionError, "linear is one of 'affine', 'similarity', 'rigid', 'translation', 'none'"),
        ({"seed": -1}, OptionError, "seed"),
        ({"seed": 1.5}, OptionError, "seed"),
        ({"seed": True}, OptionError, "seed"),
        ({"deformable": 1}, OptionError, "deformable is True or False"),
        ({"deformable": False, "linear": "none"}, OptionError, "leaves nothing to do"),
        ({"threads": True}, OptionError, "threads"),
        ({"linear": None}, OptionError, "linear is one of"),
        ({"threads": 0}, OptionError, "threads"),
        ({"threads": "2"}, OptionError, "threads"),
        ({"device": "gpu"}, OptionError, "device is 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        ({"shrink_factor": (2, 1)}, OptionError, "did you mean 'shrink_factors'"),
        ({"iterations": (1, 2)}, OptionError, "iterations has 2 values"),
        ({"fixed_mask": "no_mask.nii.gz"}, InputError, "no_mask.nii.gz"),
        ({"initial_transform": "no_transform.h5"}, InputError, "no_transform.h5"),
        ({"initial_transform": 3}, InputError, "initial transform"),
        ({"initial_transform": np.eye(4)}, InputError, "initial transform"),
    ],
)
def test_option_that_cannot_be_used(
    phantoms: dict[int, Phantom], options: dict[str, Any], error_type: type[ItkNirError], message: str
) -> None:
    calls: list[Progress] = []
    with pytest.raises(error_type, match=message) as caught:
        itk_nir.register(*images(phantoms[2]), callback=calls.append, **{"threads": 1, "device": "cpu", **options})
    assert "\n" not in str(caught.value)
    assert not calls, "said before any optimisation"


def test_cuda_where_there_is_none(phantoms: dict[int, Phantom], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="finds no CUDA device; use device='cpu'"):
        run(*images(phantoms[2]), device="cuda")


def test_empty_mask(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    for role in ("fixed_mask", "moving_mask"):
        with pytest.raises(InputError, match="is empty"):
            run(*images(p), **{role: to_sitk(np.zeros(p.fixed.shape, np.uint8), p.geometry)})


def test_mask_where_the_fixed_image_shows_nothing(phantoms: dict[int, Phantom]) -> None:
    p = phantoms[2]
    corner = np.zeros(p.fixed.shape, np.uint8)
    corner[:5, :5] = 1
    assert not p.fixed[:5, :5].any()
    with pytest.raises(InputError, match="is constant inside fixed mask"):
        run(*images(p), fixed_mask=to_sitk(corner, p.geometry), linear="none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "nan"])
def test_command_line_exits_with_2_and_writes_nothing(
    phantoms: dict[int, Phantom], tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """One in a process of its own; the other in this one, which has all loaded."""
    from itk_nir.cli.main import main

    path, _ = bad(kind, tmp_path)
    moving = good(phantoms[2], tmp_path)
    before = set(tmp_path.rglob("*"))
    words = ["register", "--fixed", str(path), "--moving", str(moving), "--output", str(tmp_path / "new" / "case_")]
    if kind == "nan":
        program = [sys.executable, "-m", "itk_nir.cli", *words]
        done = subprocess.run(program, capture_output=True, text=True, env=ENV, check=False)
        status, told, error = done.returncode, done.stdout, done.stderr
    else:
        status = main(words)
        told, error = capfd.readouterr()
    assert status == 2
    assert told == ""
    assert error.startswith("itk-nir: error: ")
    assert error.count("\n") == 1
    assert path.name in error
    assert set(tmp_path.rglob("*")) == before

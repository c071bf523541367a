"""Is a pair of images ever made worse? Cases with a known truth, easy and hopeless, and what is said of each.

    python benchmarks/trust.py                                # every row of which the data are there
    python benchmarks/trust.py --rows 'contrasts,box*' --add  # some, in place of what the page has of them
    python benchmarks/trust.py --list

A row is a function that yields cases; a case is a call of `itk_nir.register` and a score of a displacement on the fixed
grid, so that the start, the linear stage's map and the result are scored in one way, with SimpleITK and numpy alone.
Other programs are scored from the files that they wrote (rows ``peers-*``: whole processes, by `peers.py`). The page is
written after every case.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rows_landmarks
import SimpleITK as sitk
from cases import (
    THREADS,
    Case,
    Figures,
    Line,
    around_hippocampus,
    array,
    carried,
    coarser,
    correlations,
    do,
    each,
    error,
    field_of,
    landmarks,
    mask_of,
    motion,
    overlap_of,
    phantom,
    phantom_case,
    points_of,
    read,
)
from measure import RunFailed, method_named, processor_name, run, say
from pairs import OASIS, NoPairs, Pair, data_folder
from rows_apply import apply_programs, label_interpolation
from rows_bias import bias
from rows_edges import edges
from rows_epi import epi
from rows_light import light
from rows_masks import half, lesion, one_slice, regions, small_masks
from rows_motion import anatomies, far, sections_of_tissue, sliding
from rows_noise import noise
from rows_programs import peers_programs, programs
from rows_programs_epi import peers_programs_head, programs_epi, programs_head
from rows_shaded import air, shaded
from score import load_manifest, read_points
from study import rotation_about_a_skew_axis

# --- rows: brains and heads ------------------------------------------------------------------------------------------


def contrasts(data: Path) -> Iterator[Line]:
    """T1 of one person onto T2 of another, one grid, no linear stage, and by the default call. Scored by T1 against T1
    and T2 against T2."""
    alone = _contrast_case(data, ["T1"], ["T2"])
    yield from each([alone, _contrast_case(data, ["T1", "T2"], ["T1", "T2"])])
    yield from each([replace(alone, what=f"{alone.what}, default call", options={}, linear=True)])


def _contrast_score(data: Path) -> Callable[[np.ndarray], Figures]:
    folder = data / "brain_contrasts"
    fixed, moving = ({c: read(folder / f"{who}_{c}.nii.gz") for c in ("T1", "T2")} for who in ("p07", "p19"))
    return correlations(fixed, moving, array(fixed["T1"]) > 0)


def _contrast_case(data: Path, ours: list[str], theirs: list[str]) -> Case:
    folder = data / "brain_contrasts"
    fixed = [folder / f"p07_{c}.nii.gz" for c in ours]
    moving = [folder / f"p19_{c}.nii.gz" for c in theirs]
    what = f"p07 {'+'.join(ours)} ← p19 {'+'.join(theirs)}"
    single = len(fixed) == 1
    images: tuple[Any, Any] = (fixed[0], moving[0]) if single else (fixed, moving)
    return Case(what, images[0], images[1], _contrast_score(data), {"linear": "none"})


def same_person(data: Path) -> Iterator[Line]:
    """Contrasts of one person, which lie on each other: nothing is to move. Motion inside the brain."""
    folder = data / "brain_contrasts"
    for who, other in itertools.product(("p07", "p19"), ("T2", "FLAIR")):
        fixed = folder / f"{who}_T1.nii.gz"
        score = motion(array(read(fixed)) > 0)
        yield from each([Case(f"{who} T1 ← {other}", fixed, folder / f"{who}_{other}.nii.gz", score, before=False)])


def head_templates(data: Path) -> Iterator[Line]:
    """Templates of several contrasts in one space: nothing is to move. Motion inside the head."""
    folder = data / "head_templates"
    fixed = folder / "mni_t1_2mm.nii.gz"
    values = array(read(fixed))
    score = motion(values > 0.2 * np.percentile(values, 99))
    yield from each(
        [
            Case(f"T1 ← {c.upper()}", fixed, folder / f"mni_{c}_2mm.nii.gz", score, before=False)
            for c in ("t2", "pd", "ct")
        ]
    )


def whole_head(data: Path) -> Iterator[Line]:
    """Somebody's whole head, unaligned, onto a stripped template, default call. Share of the brain that it covers."""
    folder = data / "head_templates"
    fixed, moving = folder / "mni152_t1_1mm.nii.gz", folder / "native_t1_head_1mm.nii.gz"
    grid, image = read(fixed), read(moving)
    brain = array(grid) > 0
    ones = sitk.Cast(sitk.Equal(image, image), sitk.sitkFloat32)

    def score(u: np.ndarray) -> Figures:
        return {
            "brain covered": float((carried(ones, u, grid) > 0.5)[brain].mean()),
            "correlation": float(np.corrcoef(array(grid)[brain], carried(image, u, grid)[brain])[0, 1]),
        }

    yield from each([Case("mni152 ← native head", fixed, moving, score, linear=True)])


def oasis(data: Path) -> Iterator[Line]:
    """One pair of brains, T1, as it is and spoilt. Mean Dice over 30 labels; no linear stage."""
    folder = data / "brain_oasis"
    fixed, moving = folder / "fixed_t1.nii.gz", read(folder / "moving_t1.nii.gz")
    score = overlap_of(read(folder / "fixed_seg.nii.gz"), read(folder / "moving_seg.nii.gz"), OASIS)
    values = array(moving).astype(np.float32)
    z, x = np.linspace(-1, 1, values.shape[0])[:, None, None], np.linspace(-1, 1, values.shape[2])
    salted = values.copy()
    salted[np.random.default_rng(0).random(values.shape) < 0.01] = 255
    for what, spoilt in (
        ("as it is", values),
        ("1 % of the moving voxels white", salted),
        ("moving image times a bias field of 0.33 to 3", values * np.exp(0.6 * z - 0.5 * x)),
        ("contrast of the moving image inverted", values.max() - values),
    ):
        image = sitk.GetImageFromArray(spoilt.astype(np.float32))
        image.CopyInformation(moving)
        yield from each([Case(what, fixed, image, score, {"linear": "none"})])


# --- rows: bodies ----------------------------------------------------------------------------------------------------


def abdomen(data: Path) -> Iterator[Line]:
    """MR and CT of two people, partial views that do not overlap as they lie; and CT ← MR; and with headers that turn
    the moving image by 120° about three axes. Mean Dice over the scored organs."""
    folder = data / "abdomen_ct_mr"
    start = folder / "rigid_from_organ_centroids.tfm"
    fixed, moving, score = folder / "fixed.nii.gz", folder / "moving.nii.gz", _abdomen_score(folder)
    yield from each(
        [
            Case("as they lie", fixed, moving, score, linear=True),
            Case("from the organ centroids", fixed, moving, score, {"initial_transform": start}),
            Case(
                "from the organ centroids, deformation alone", fixed, moving, score,
                {"initial_transform": start, "linear": "none"},
            ),
            Case("CT ← MR, as they lie", moving, fixed, _abdomen_score(folder, exchanged=True), linear=True),
        ]
    )  # fmt: skip
    image, labels = read(moving), read(folder / "moving_seg.nii.gz")
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    for name, axis in (("x", (1.0, 0.0, 0.0)), ("y", (0.0, 1.0, 0.0)), ("z", (0.0, 0.0, 1.0))):
        turn = np.array(sitk.VersorTransform(axis, np.deg2rad(120.0)).GetMatrix()).reshape(3, 3)
        lies, there = (_put(i, turn, centre - turn @ centre) for i in (image, labels))
        case = Case(f"turned by 120° about {name}", fixed, lies, _abdomen_score(folder, there), linear=True)
        yield from each([case])


def _put(image: Any, rotation: np.ndarray, shift: np.ndarray) -> Any:
    """An image whose header puts it elsewhere, by a rotation and then a shift; its values stay."""
    out = sitk.Image(image)
    out.SetDirection((rotation @ np.array(image.GetDirection()).reshape(3, 3)).ravel().tolist())
    out.SetOrigin((rotation @ np.array(image.GetOrigin()) + shift).tolist())
    return out


def _abdomen_score(folder: Path, moving_seg: Any = None, *, exchanged: bool = False) -> Callable[[np.ndarray], Figures]:
    words = (folder / "scored_labels.txt").read_text().split()
    labels = tuple(int(word) for word in words if word.isdigit())
    theirs = read(folder / "moving_seg.nii.gz") if moving_seg is None else moving_seg
    maps = read(folder / "fixed_seg.nii.gz"), theirs
    return overlap_of(*(maps[::-1] if exchanged else maps), labels)


def spine(data: Path) -> Iterator[Line]:
    """T1 and T2 of one spine, which lie nearly right. Dice of the cord."""
    folder = data / "spine_t1_t2"
    yield from each([Case("T1 ← T2", folder / "t1w.nii.gz", folder / "t2.nii.gz", _spine_score(folder), linear=True)])


def _spine_score(folder: Path) -> Callable[[np.ndarray], Figures]:
    return overlap_of(read(folder / "t1w_seg-manual.nii.gz"), read(folder / "t2_seg-manual.nii.gz"), (1,))


def lung(data: Path) -> Iterator[Line]:
    """Two CT scans of a chest, with a mask. Distance of 51 landmarks."""
    folder = data / "lung_ct"
    ours, theirs = (read_points(folder / f"{side}_landmarks.csv", 3)[1] for side in ("fixed", "moving"))
    fixed = folder / "fixed.nii.gz"
    score = landmarks(read(fixed), ours, theirs)
    mask = {"fixed_mask": folder / "fixed_mask.nii.gz"}
    yield from each([Case("with a mask", fixed, folder / "moving.nii.gz", score, mask, linear=True)])


# --- rows: the phantom -----------------------------------------------------------------------------------------------


def box(_: Path) -> Iterator[Line]:
    """Phantom, 1.5 mm, a mask around a hippocampus: the smaller, the less there is to go by. True error inside it."""
    distance = around_hippocampus()
    for preset, edge in itertools.product(("fast", "default"), (16, 24, 36, 54)):
        cube = distance <= edge / 2
        yield from each([phantom_case(f"cube of {edge} mm, {preset}", cube, fixed_mask=mask_of(cube), preset=preset)])
    cube = distance <= 12
    masks = {"fixed_mask": mask_of(cube), "moving_mask": mask_of(distance <= 20)}
    yield from each([phantom_case("cube of 24 mm, moving mask of 40 mm", cube, **masks)])
    for what, axis in (("one slice", 0), ("one slice, coronal", 1), ("one slice, sagittal", 2)):
        slice_ = np.zeros(distance.shape, bool)
        slice_.swapaxes(0, axis)[distance.shape[axis] // 2] = True
        yield from each([phantom_case(what, slice_, fixed_mask=mask_of(slice_))])


def turned(_: Path) -> Iterator[Line]:
    """Phantom whose moving side is turned by 60° and shifted by 80 mm, linear stage rigid; the same with headers that
    make it half or three times as large, linear stage affine. True error in the brain, in mm of the fixed side."""
    made, fixed, moving = phantom()
    rotation = rotation_about_a_skew_axis(60)
    shift = 80 * np.array([1, 1, -1]) / np.sqrt(3)
    points = points_of(fixed)
    for what, size, kind in (
        ("", 1.0, "rigid"),
        (", half as large", 0.5, "affine"),
        (", 3 times as large", 3.0, "affine"),
    ):
        lies = _put(moving, rotation, shift)
        lies.SetSpacing((size * np.array(lies.GetSpacing())).tolist())
        lies.SetOrigin((size * np.array(lies.GetOrigin())).tolist())
        truth = size * ((points + made.displacement) @ rotation.T + shift) - points
        score = error(truth, made.fixed_labels > 0, size)
        yield from each([Case(f"turned by 60° and 80 mm{what}", fixed, lies, score, {"linear": kind}, linear=True)])


def effort(_: Path) -> Iterator[Line]:
    """Phantom, penalties of any weight and few iterations. True error in the brain: never above the linear stage's."""
    from itk_nir.settings import preset_settings

    smoothness = preset_settings("default").deformable.smoothness
    for factor in (1, 12, 30, 1000):
        weights = tuple(factor * w for w in smoothness)
        yield from each([phantom_case(f"penalty x {factor}", smoothness=weights)])
    for iterations in ((1, 1, 1), (2, 2, 1)):
        yield from each([phantom_case(f"iterations {','.join(map(str, iterations))}", iterations=iterations)])


def itself(_: Path) -> Iterator[Line]:
    """Phantom onto itself, and onto itself with noise (SD 3, of 0 to 255): nothing is to move."""
    made, fixed, _moving = phantom()
    parts = (
        motion(made.fixed_labels > 0, 1.5, "voxels"),
        motion(np.ones(made.fixed.shape, bool), 1.5, "voxels, with air"),
    )

    def score(u: np.ndarray) -> Figures:
        return parts[0](u) | parts[1](u)

    noise = np.random.default_rng(0).normal(0, 3, made.fixed.shape).astype(np.float32)
    noisy = sitk.GetImageFromArray(made.fixed + noise)
    noisy.CopyInformation(fixed)
    yield from each([Case(w, fixed, m, score, before=False) for w, m in (("itself", fixed), ("noisy copy", noisy))])


def seeds(data: Path) -> Iterator[Line]:
    """Other seeds, moving intensities times 1000, and with a relative noise of 1e-7, the rounding of a float: how far
    the maps lie from the first seed's in the brain."""
    from itk_nir import make_settings

    made, fixed, moving = phantom()
    score = error(made.displacement, made.fixed_labels > 0)
    yield from _spread("phantom", fixed, moving, score, made.fixed_labels > 0, 1.5, 8, {})
    folder = data / "brain_oasis"
    labels = read(folder / "fixed_seg.nii.gz")
    dice = overlap_of(labels, read(folder / "moving_seg.nii.gz"), OASIS)
    ours, theirs = (read(folder / f"{side}_t1.nii.gz") for side in ("fixed", "moving"))
    first = {"preset": make_settings("default", network_above=0.0)}
    for what, options in (("brain_oasis", {}), ("brain_oasis, a network always first", first)):
        yield from _spread(what, ours, theirs, dice, array(labels) > 0, 1.0, 3, {"linear": "none", **options})


def _spread(
    what: str, fixed: Any, moving: Any, score: Callable[[np.ndarray], Figures], brain: np.ndarray, voxel: float,
    number: int, options: dict[str, Any],
) -> Iterator[Line]:  # fmt: skip
    """A line for the seeds below `number`, one for the scaled intensities, and one for their rounding."""
    scaled = sitk.Cast(moving, sitk.sitkFloat32) * 1000.0
    values = array(moving).astype(np.float64)
    rounded = sitk.GetImageFromArray(
        (values * (1 + 1e-7 * np.random.default_rng(0).standard_normal(values.shape))).astype(np.float32)
    )
    rounded.CopyInformation(moving)
    runs = [(moving, {"seed": seed}) for seed in range(number)] + [(scaled, {}), (rounded, {})]
    done = [do(Case(what, fixed, image, score, options | more, before=False))[:2] for image, more in runs]
    maps = [u for _, u in done]
    apart = [float(np.linalg.norm(u - maps[0], axis=-1)[brain].mean() / voxel) for u in maps[1:]]
    (name,) = done[0][0].figures
    for of, some, gaps in (
        (f"seeds 1 to {number - 1} against seed 0", done[:-2], apart[:-2]),
        ("intensities x 1000", done[-2:-1], apart[-2:-1]),
        ("a relative noise of 1e-7", done[-1:], apart[-1:]),
    ):  # fmt: skip
        found = [line.figures[name][-1] for line, _ in some]
        figures = {"mean difference voxels, largest": [max(gaps)], f"{name}, least": [min(found)]}
        figures[f"{name}, largest"] = [max(found)]
        yield Line(f"{what}, {of}", figures, seconds=sum(line.seconds or 0.0 for line, _ in some))


# --- rows: 2D, large -------------------------------------------------------------------------------------------------


def sections(_: Path) -> Iterator[Line]:
    """2D, textures of several scales, a smooth deformation of up to 1.5 % of the edge. True error, pixels."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    for n in (2048, 4000):
        rng = np.random.default_rng(0)
        base = sum(gaussian_filter(rng.normal(size=(n, n)).astype(np.float32), s) * s for s in (2, 6, 20, 60))
        base = (base / base.std() * 30 + 100).astype(np.float32)
        u = np.stack([gaussian_filter(rng.normal(size=(n, n)).astype(np.float32), n / 12) for _ in range(2)])
        u *= 0.015 * n / np.abs(u).max()
        y, x = np.mgrid[:n, :n]
        fixed = map_coordinates(base, [y + u[1], x + u[0]], order=1, mode="nearest").astype(np.float32)
        inside = np.zeros((n, n), bool)
        inside[n // 20 : -n // 20, n // 20 : -n // 20] = True
        score = error(np.moveaxis(u, 0, -1), inside, name="px")
        yield from each([Case(f"{n} x {n}", sitk.GetImageFromArray(fixed), sitk.GetImageFromArray(base), score)])


# --- rows: what auto picks -------------------------------------------------------------------------------------------


def auto(data: Path) -> Iterator[Line]:
    """What `metric="auto"` picks. Expected: lncc for one contrast, mutual information for unlike ones; but what is the
    more accurate one (row `both`) for templates of T2 and PD, lncc, and for FLAIR of two people, mutual information."""
    for what, fixed, moving, same, options in _auto_pairs(data):
        began = time.perf_counter()
        picked, reason = _picked(fixed, moving, options)
        right = (picked == "lncc") == same
        verdict = ("as expected: " if right else "NOT as expected: ") + reason
        yield Line(what, {}, picked, verdict, time.perf_counter() - began)


def _picked(fixed: Any, moving: Any, options: dict[str, Any]) -> tuple[str, str]:
    """The metric and the reason: as the images are looked at, and, where they pass for one contrast, after a level."""
    import itk_nir
    from itk_nir.engine.choice import SAME, choose_metric
    from itk_nir.engine.linear_search import find_start
    from itk_nir.problem import Problem
    from itk_nir.settings import make_settings

    settings = make_settings("default")
    problem = Problem.prepare(fixed, moving, settings, threads=THREADS, **options)
    pair = problem.pair()
    if problem.linear != "none" and problem.start is None:
        start = find_start(pair, problem.linear, settings.linear, threads=THREADS)
        pair = replace(pair, linear=pair.linear @ start.matrix)
    choice = choose_metric(pair, THREADS)
    # Sections are looked at once more under the map of their linear stage, as a registration does it.
    if choice.metric != SAME and (problem.fixed.dimension == 3 or problem.linear == "none"):
        return choice.metric, choice.reason
    first, *others = settings.deformable.iterations
    level = replace(settings, deformable=replace(settings.deformable, iterations=(first, *(0 for _ in others))))
    report = itk_nir.register(fixed, moving, preset=level, threads=THREADS, **options).report
    return report.metric, report.metric_reason


def _auto_pairs(data: Path) -> Iterator[tuple[str, Any, Any, bool, dict[str, Any]]]:
    none = {"linear": "none"}
    folder = data / "brain_contrasts"
    for a, b in itertools.product(("T1", "T2", "FLAIR"), repeat=2):
        same = a == b != "FLAIR"
        yield f"contrasts p07 {a} ← p19 {b}", folder / f"p07_{a}.nii.gz", folder / f"p19_{b}.nii.gz", same, none
        if a != b:
            yield f"contrasts p07 {a} ← p07 {b}", folder / f"p07_{a}.nii.gz", folder / f"p07_{b}.nii.gz", False, {}
    brains = data / "brain_t1"
    for spacing in (1.5, 2.0):
        for a, b, same in (("T1", "T1", True), ("T2", "T2", True), ("T1", "FLAIR", False), ("FLAIR", "T1", False)):
            one, two = (coarser(folder / f"{name}.nii.gz", spacing) for name in (f"p07_{a}", f"p19_{b}"))
            yield f"contrasts p07 {a} ← p19 {b}, voxels of {spacing:g} mm", one, two, same, none
        one, two = (coarser(brains / f"{who}_t1.nii.gz", spacing) for who in ("sub07", "sub08"))
        yield f"brain_t1 sub07 ← sub08, voxels of {spacing:g} mm", one, two, True, {}
    folder = data / "head_templates"
    for a, b in itertools.permutations(("t1", "t2", "pd", "ct"), 2):
        same = {a, b} == {"t2", "pd"}
        yield f"heads {a} ← {b}", folder / f"mni_{a}_2mm.nii.gz", folder / f"mni_{b}_2mm.nii.gz", same, {}
    names = {"stripped": "mni152_t1_1mm", "whole 2 mm": "mni_t1_2mm", "native": "native_t1_head_1mm"}
    for a, b in (("stripped", "native"), ("native", "stripped"), ("whole 2 mm", "native")):
        yield f"heads T1 {a} ← {b}", folder / f"{names[a]}.nii.gz", folder / f"{names[b]}.nii.gz", True, {}
    for name, endings in (("brain_oasis", ("fixed", "moving")), ("brain_t1", ("sub04", "sub07", "sub08")),
                          ("mouse_fvb", ("fvb1", "fvb2", "fvb3")), ("chest_xray", ("cxr1", "cxr2"))):  # fmt: skip
        for a, b in itertools.permutations(endings, 2):
            options = none if name == "brain_oasis" else {}
            yield f"{name} {a} ← {b}", data / name / f"{a}_t1.nii.gz", data / name / f"{b}_t1.nii.gz", True, options
    folder = data / "abdomen_ct_mr"
    pair = folder / "fixed.nii.gz", folder / "moving.nii.gz"
    yield "abdomen MR ← CT", *pair, False, {}
    start = {"initial_transform": folder / "rigid_from_organ_centroids.tfm"}
    yield "abdomen MR ← CT, from the organ centroids", *pair, False, start
    for name, a, b, same in (
        ("lung_ct", "fixed.nii.gz", "moving.nii.gz", True), ("spine_t1_t2", "t1w.nii.gz", "t2.nii.gz", False),
        ("fetal_spina_bifida", "fixed.nii.gz", "moving.nii.gz", True), ("hands_xray", "fixed.mha", "moving.mha", True),
        ("slices_2d", "r16.nii.gz", "r64.nii.gz", True), ("merfish_um", "fixed.mha", "moving.mha", True),
    ):  # fmt: skip
        mask = {"fixed_mask": data / name / "fixed_mask.nii.gz"} if name == "lung_ct" else {}
        yield name, data / name / a, data / name / b, same, mask
    for a, b in itertools.permutations(("He", "CD31-3", "proSPC-4"), 2):
        folder = data / "histology_lung"
        yield f"histology_lung {a} ← {b}", folder / f"{a}.nii.gz", folder / f"{b}.nii.gz", False, {}
    for a, b in itertools.permutations(("He", "CD31-3", "proSPC-4"), 2):
        one, two = (coarser(folder / f"{name}.nii.gz", 2.0) for name in (a, b))
        yield f"histology_lung {a} ← {b}, half as many pixels", one, two, False, {}
    one, two = (coarser(data / "merfish_um" / f"{side}.mha", 30.0) for side in ("fixed", "moving"))
    yield "merfish_um, half as many pixels", one, two, True, {}
    one, two = (coarser(data / "chest_xray" / f"{name}_t1.nii.gz", 2.0) for name in ("cxr1", "cxr2"))
    yield "chest_xray cxr1 ← cxr2, half as many pixels", one, two, True, {}


def both(data: Path) -> Iterator[Line]:
    """Images whose windows agree in sign and which tell little of each other, by `lncc` and by what unlike ones get."""
    from itk_nir.engine.choice import UNLIKE

    heads, stains = data / "head_templates", data / "histology_lung"
    points = {name: read_points(stains / f"{name}_landmarks.csv", 2)[1] for name in ("He", "CD31-3", "proSPC-4")}
    for metric in ("lncc", UNLIKE):
        given = {"metric": metric}
        for a, b in (("t2", "pd"), ("pd", "t2")):
            fixed, moving = (heads / f"mni_{c}_2mm.nii.gz" for c in (a, b))
            values = array(read(fixed))
            head = motion(values > 0.2 * np.percentile(values, 99))
            yield from each([Case(f"heads {a.upper()} ← {b.upper()}", fixed, moving, head, given, before=False)])
        for ours, theirs in (("T1", "FLAIR"), ("FLAIR", "T1"), ("FLAIR", "FLAIR")):
            case = _contrast_case(data, [ours], [theirs])
            yield from each([replace(case, options=case.options | given)])
        for name in ("CD31-3", "proSPC-4"):
            fixed = stains / "He.nii.gz"
            score = landmarks(read(fixed), points["He"], points[name])
            yield from each([Case(f"stains He ← {name}", fixed, stains / f"{name}.nii.gz", score, given)])


# --- rows: other programs --------------------------------------------------------------------------------------------


def peers_contrasts(data: Path) -> Iterator[Line]:
    """Other programs on T1 of one person ← T2 of another, no linear stage, one run each, whole process."""
    folder = data / "brain_contrasts"
    yield from _peers(folder / "p07_T1.nii.gz", folder / "p19_T2.nii.gz", _contrast_score(data), "none")


def peers_abdomen(data: Path) -> Iterator[Line]:
    """Other programs on abdominal MR ← CT, the moving image put on the organ centroids by its header."""
    folder = data / "abdomen_ct_mr"
    start = sitk.ReadTransform(str(folder / "rigid_from_organ_centroids.tfm"))
    matrix, offset = _matrix(start)
    with tempfile.TemporaryDirectory() as work:
        for name in ("moving", "moving_seg"):
            back = np.linalg.inv(matrix)
            image = _put(read(folder / f"{name}.nii.gz"), back, -back @ offset)
            sitk.WriteImage(image, str(Path(work) / f"{name}.nii.gz"))
        moving = Path(work) / "moving.nii.gz"
        score = _abdomen_score(folder, read(Path(work) / "moving_seg.nii.gz"))
        yield from _peers(folder / "fixed.nii.gz", moving, score, "affine")
        yield from _peers(folder / "fixed.nii.gz", moving, score, "none")


def _matrix(transform: Any) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset of a linear transform."""
    offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    return np.stack([np.array(transform.TransformPoint(e)) - offset for e in np.eye(3).tolist()], axis=1), offset


def peers_spine(data: Path) -> Iterator[Line]:
    """Other programs on the spine, T1 ← T2, with their affine stage and without."""
    folder = data / "spine_t1_t2"
    for linear in ("affine", "none"):
        yield from _peers(folder / "t1w.nii.gz", folder / "t2.nii.gz", _spine_score(folder), linear)


PEERS = ("ants-mattes", "elastix-mi")
TIMEOUT = 360.0


def _peers(fixed: Path, moving: Path, score: Callable[[np.ndarray], Figures], linear: Any) -> Iterator[Line]:
    grid = read(fixed)
    start = np.zeros((*array(grid).shape, grid.GetDimension()))
    before = score(start)
    stage = "deformation alone" if linear == "none" else "with its affine stage"
    for name in PEERS:
        with tempfile.TemporaryDirectory() as work:
            try:
                usage = run(name, Pair("trust", fixed, moving, linear=linear), Path(work), THREADS, TIMEOUT)
            except RunFailed as failure:
                yield Line(f"{method_named(name).title}, {stage}", {}, verdict=str(failure))
                continue
            forward, _ = load_manifest(Path(work) / "transforms.json", grid.GetDimension())
            after = score(field_of(forward, grid))
        figures = {key: [before[key], after[key]] for key in after}
        yield Line(f"{method_named(name).title}, {stage}", figures, seconds=usage.wall)


# --- the page --------------------------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "contrasts": contrasts,
    "peers-contrasts": peers_contrasts,
    "same-person": same_person,
    "head-templates": head_templates,
    "whole-head": whole_head,
    "abdomen": abdomen,
    "peers-abdomen": peers_abdomen,
    "spine": spine,
    "peers-spine": peers_spine,
    "oasis": oasis,
    "lung": lung,
    "box": box,
    "small-masks": small_masks,
    "slices": one_slice,
    "lesion": lesion,
    "half": half,
    "regions": regions,
    "turned": turned,
    "effort": effort,
    "itself": itself,
    "bias": bias,
    "noise": noise,
    "air": air,
    "light": light,
    "shaded": shaded,
    "seeds": seeds,
    "sections": sections,
    "auto": auto,
    "both": both,
    "far": far,
    "tissue": sections_of_tissue,
    "sliding": sliding,
    "anatomies": anatomies,
    "edges": edges,
    "epi": epi,
    "programs": programs,
    "peers-programs": peers_programs,
    "programs-epi": programs_epi,
    "programs-head": programs_head,
    "peers-programs-head": peers_programs_head,
    "landmarks": rows_landmarks.given_landmarks,
    "hands": rows_landmarks.hands,
    "labels": rows_landmarks.given_labels,
    "label-interpolation": label_interpolation,
    "apply-programs": apply_programs,
}


def page(content: dict[str, Any]) -> str:
    """The Markdown page."""
    out = ["# Is a pair ever made worse?", ""]
    out += [
        f"{content['processor']} ({content['cores']} cores), {content['threads']} threads, default options unless said "
        "otherwise. Arrows lead from the start, over the linear stage where there are three figures, to the end. NMI: "
        "normalised mutual information at the start and at the end; folds, SD log J: of the deformation; seconds: of "
        "`register` in one run, reading included, on a machine that does other work. What another program had not done "
        f"after {TIMEOUT:.0f} s was stopped. Made with",
        "",
        "    python benchmarks/trust.py",
        "",
    ]
    for name in ROWS:
        row = content["rows"].get(name)
        if row is None:
            continue
        lines = [Line(**line) for line in row["lines"]]
        about = (ROWS[name].__doc__ or "").strip()
        out += [f"## {name}", "", f"{about} {row['date']}, version {row['version']}.", ""]
        out += [*_table(lines), ""]
        if name == "auto":
            right = sum(line.verdict.startswith("as expected") for line in lines)
            out += [f"As expected: {right} of {len(lines)}.", ""]
    return "\n".join(out)


def _table(lines: list[Line]) -> list[str]:
    figures = list(dict.fromkeys(key for line in lines for key in line.figures))
    columns: list[tuple[str, Callable[[Line], str]]] = [("case", lambda line: line.what)]
    columns += [(key, lambda line, key=key: arrow(line.figures.get(key, []))) for key in figures]  # type: ignore[misc]
    columns += [
        ("metric", lambda line: f"`{line.metric}`" if line.metric else ""),
        ("verdict" if figures else "expected?", lambda line: line.verdict),
        ("NMI", lambda line: arrow(line.nmi)),
        ("folds", lambda line: "" if line.folds is None else str(line.folds)),
        ("SD log J", lambda line: "" if line.spread is None else f"{line.spread:.3f}"),
        ("seconds", lambda line: "" if line.seconds is None else f"{line.seconds:.1f}"),
    ]
    kept = [(head, of) for head, of in columns if any(of(line) for line in lines)]
    rows = [[head for head, _ in kept], ["---" for _ in kept], *([of(line) for _, of in kept] for line in lines)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def arrow(values: list[float]) -> str:
    """Figures one after the other, three digits behind the point."""
    return " → ".join(f"{value:.3f}" for value in values)


def brief(line: Line) -> str:
    """A line of the table for the terminal."""
    parts = [line.what, *(f"{key} {arrow(values)}" for key, values in line.figures.items()), line.metric, line.verdict]
    if line.nmi:
        parts.append(f"NMI {arrow(line.nmi)}")
    if line.folds is not None:
        parts.append(f"folds {line.folds}")
    if line.spread is not None:
        parts.append(f"SD log J {line.spread:.3f}")
    if line.seconds is not None:
        parts.append(f"{line.seconds:.1f} s")
    return "  ".join(part for part in parts if part)


def chosen_rows(patterns: str) -> list[str]:
    """The rows whose name matches one of the comma-separated patterns; all without."""
    wanted = [word for word in patterns.split(",") if word]
    return [name for name in ROWS if not wanted or any(fnmatch.fnmatch(name, want) for want in wanted)]


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of pairs (default: ITK_NIR_DATA, else ../shared/data)")
    parser.add_argument("--rows", default="", help="names or patterns, comma-separated (default: all)")
    parser.add_argument("--add", action="store_true", help="keep the other rows of the page as they are")
    parser.add_argument("--page", action="store_true", help="write the page again from what was measured, and stop")
    parser.add_argument("--list", action="store_true", help="list the rows, and stop")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "benchmarks")
    options = parser.parse_args(words)
    names = chosen_rows(options.rows)
    if options.list:
        print("\n".join(f"{name}: {ROWS[name].__doc__}" for name in names))
        return 0
    file = options.output / "trust.json"
    if options.page:
        file.with_suffix(".md").write_text(page(json.loads(file.read_text(encoding="utf-8"))), encoding="utf-8")
        return 0
    if not names:
        parser.error(f"no row is called {options.rows}; --list shows what there is")
    try:
        data = data_folder(options.data)
    except NoPairs as reason:
        parser.error(str(reason))
    import itk_nir

    warnings.simplefilter("ignore")
    content: dict[str, Any] = {"processor": processor_name(), "cores": os.cpu_count(), "threads": THREADS, "rows": {}}
    options.output.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in names:
        row: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "version": itk_nir.__version__,
            "lines": [],
        }
        say(f"--- {name}")
        try:
            for line in ROWS[name](data):
                say(brief(line))
                row["lines"].append(vars(line))
                if options.add and file.exists():  # anew each time: another run may have added rows
                    content["rows"] = json.loads(file.read_text(encoding="utf-8"))["rows"]
                content["rows"][name] = row
                file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                file.with_suffix(".md").write_text(page(content), encoding="utf-8")
        except (OSError, RuntimeError) as reason:  # a folder that is not there
            say(f"{name}: {reason}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

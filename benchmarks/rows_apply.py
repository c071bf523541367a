"""Rows of `trust.py`: images and labels carried through a transform, beside ANTs' program that does it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import THREADS, Line, array, read

#: Structures whose overlap is scored.
_LABELS = (2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60)
#: The row of ``-o [file,1]``.
_FIELD = "one field for all"
_SAMPLES = {"t1": sitk.sitkLinear, "seg": sitk.sitkNearestNeighbor}
#: ANTs' program has no Python to load: its time is that of the call alone.
_THEIRS = """
import sys, time
from ants.internal import get_lib_fn
program = get_lib_fn("antsApplyTransforms")
began = time.process_time()
assert program(sys.argv[1:]) == 0
print(time.process_time() - began)
"""


def label_interpolation(data: Path) -> Iterator[Line]:
    """Labels of a brain, 2 mm, through one transform of ours by several interpolations: mean Dice of 28 structures."""
    import itk_nir

    folder = data / "brain_t1"
    fixed, moving, truth, labels = (
        _coarser(read(folder / f"sub{who}_{what}.nii.gz"), _SAMPLES[what]) for what in _SAMPLES for who in ("04", "07")
    )
    result = itk_nir.register(fixed, moving, threads=THREADS)
    for how in ("nearest", "label-linear", "label"):
        began = time.perf_counter()
        carried = itk_nir.apply(labels, result, interpolation=how, fill=0, threads=1)
        seconds = time.perf_counter() - began
        yield Line(how, {"Dice": [_dice(array(carried), array(truth))]}, seconds=seconds)


def apply_programs(data: Path) -> Iterator[Line]:
    """antsApplyTransforms on a 1 mm brain, one thread: CPU seconds of ANTs', without loading it, → our whole process.
    The difference is the 99.99th percentile as a share of the range; for labels the share of voxels."""
    if importlib.util.find_spec("ants") is None:
        return
    folder = data / "brain_t1"
    reference = folder / "sub04_t1.nii.gz"
    with tempfile.TemporaryDirectory() as place:
        field, matrix = _transforms(read(reference), Path(place))
        there, back = f"-t {field} -t {matrix}", f"-t [{matrix},1] -t {field}"
        for what, image, words in (
            ("Linear", "t1", there),
            ("Linear, inverse matrix", "t1", back),
            ("BSpline", "t1", f"{there} -n BSpline"),
            ("LanczosWindowedSinc", "t1", f"{there} -n LanczosWindowedSinc"),
            ("Gaussian", "t1", f"{there} -n Gaussian"),
            ("NearestNeighbor", "seg", f"{there} -n NearestNeighbor"),
            ("GenericLabel", "seg", f"{there} -n GenericLabel"),
            ("MultiLabel", "seg", f"{there} -n MultiLabel"),
            (_FIELD, "t1", there),
            (f"{_FIELD}, inverse matrix", "t1", back),
        ):
            line = f"-d 3 --float 1 -i {folder / f'sub07_{image}.nii.gz'} -r {reference} {words}".split()
            seconds, made = [], []
            for name, program in (("theirs", ["-c", _THEIRS]), ("ours", ["-m", "itk_nir.cli", "antsApplyTransforms"])):
                out = Path(place) / f"{name}.nii.gz"
                seconds.append(_run([*program, *line, "-o", f"[{out},1]" if what.startswith(_FIELD) else str(out)]))
                made.append(array(read(out)).astype(float))
            apart = np.abs(made[0] - made[1])
            far = np.mean(apart > 0) if image == "seg" else np.quantile(apart, 0.9999) / np.ptp(made[0])
            yield Line(what, {"CPU seconds, ANTs → ours": seconds, "difference": [float(far)]})


def _coarser(image: Any, how: int) -> Any:
    size = [n // 2 for n in image.GetSize()]
    spacing = [2 * s for s in image.GetSpacing()]
    origin = image.TransformContinuousIndexToPhysicalPoint([0.5] * 3)
    return sitk.Resample(image, size, sitk.Transform(), how, origin, spacing, image.GetDirection())


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    both = [(found == k, truth == k) for k in _LABELS]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in both]))


def _transforms(grid: Any, place: Path) -> tuple[Path, Path]:
    """A smooth field of some millimetres on the grid of an image, and an affine map."""
    rng = np.random.default_rng(0)
    coarse = sitk.GetImageFromArray(rng.normal(size=(16, 16, 16, 3)) * 4, isVector=True)
    coarse.SetSpacing([n * s / 15 for n, s in zip(grid.GetSize(), grid.GetSpacing(), strict=True)])
    coarse.SetOrigin(grid.GetOrigin())
    coarse.SetDirection(grid.GetDirection())
    smooth = sitk.Resample(coarse, grid, sitk.Transform(), sitk.sitkLinear)
    sitk.WriteImage(sitk.Cast(smooth, sitk.sitkVectorFloat32), str(place / "field.nii.gz"))
    matrix = sitk.AffineTransform(3)
    matrix.SetMatrix((np.eye(3) + rng.normal(size=(3, 3)) * 0.03).ravel())
    matrix.SetTranslation([2, -3, 1])
    sitk.WriteTransform(matrix, str(place / "matrix.mat"))
    return place / "field.nii.gz", place / "matrix.mat"


def _run(words: Sequence[str]) -> float:
    """CPU seconds of a process, or those that it prints itself."""
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    # As of an installed package, whose modules are compiled: the first process of a run may do it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = os.times()
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment, text=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return float(done.stdout.split()[-1]) if words[1] == _THEIRS else used

"""Row `epi`: an echo-planar image onto its undistorted self, along the phase-encoding axis alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from cases import Case, Figures, Line, array, carried, do, read

#: Total readout time in seconds: none is given with the data, and this is a common one.
READOUT = 0.05


def epi(data: Path) -> Iterator[Line]:
    """An echo-planar image of 2 mm onto what a measured field map makes of it (displacement along y: field in Hz times
    a readout time of 0.05 s, in voxels; the map smoothed by 2 mm), no linear stage. Error of the displacement inside
    the head, voxels; motion along the held axes x and z."""
    image, undistorted, truth, voxels = displaced(data)
    # As the field displaces signal, so it is stretched: the other way of making the image.
    stretched = sitk.GetImageFromArray(
        (array(undistorted) * np.clip(1 + np.gradient(voxels, axis=1), 0.1, None)).astype(np.float32)
    )
    stretched.CopyInformation(image)
    score = score_of(truth, undistorted)
    only = {"linear": "none", "restrict": (0, 1, 0)}
    for what, fixed, options in (
        ("restrict=(0, 1, 0)", undistorted, only),
        ("the same, signal stretched and piled up", stretched, only),
        ("the same, preset fast", undistorted, {**only, "preset": "fast"}),
        ("free along every axis", undistorted, {"linear": "none"}),
    ):
        yield do(Case(what, fixed, image, score, options))[0]


def displaced(data: Path) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """The echo-planar image, its undistorted self, the displacement between them in mm, and along y in voxels."""
    folder = data / "epi_fieldmap"
    image, hertz = read(folder / "epi.nii.gz"), read(folder / "field_hz.nii.gz")
    along = np.array(image.GetDirection()).reshape(3, 3)
    size = np.array(image.GetSpacing())
    voxels = READOUT * sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(hertz, 2.0)).astype(np.float64)
    truth = voxels[..., None] * size[1] * along[:, 1]
    values = carried(image, truth, image).astype(np.float32)
    undistorted = sitk.GetImageFromArray(values)
    undistorted.CopyInformation(image)
    return image, undistorted, truth, voxels


def score_of(truth: np.ndarray, undistorted: Any) -> Callable[[np.ndarray], Figures]:
    """Distance from the true displacement inside the head, and motion along the axes on which there is none."""
    along = np.array(undistorted.GetDirection()).reshape(3, 3)
    size = np.array(undistorted.GetSpacing())
    head = array(sitk.OtsuThreshold(undistorted, 0, 1)) > 0

    def score(u: np.ndarray) -> Figures:
        gap = (u - truth)[head] @ along / size
        held = np.abs(u @ along / size)[..., [0, 2]]
        return {
            "RMS error in the head, voxels": float(np.sqrt(np.square(gap).sum(axis=-1).mean())),
            "95 % voxels": float(np.percentile(np.linalg.norm(gap, axis=-1), 95)),
            "x and z, largest, voxels": float(held.max()),
        }

    return score

"""Row `epi`: an echo-planar image onto its undistorted self, along the phase-encoding axis alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from cases import Case, Figures, Line, carried, do, read

#: Total readout time in seconds: none is given with the data, and this is a common one.
READOUT = 0.05


def epi(data: Path) -> Iterator[Line]:
    """An echo-planar image of 2 mm onto what a measured field map makes of it (displacement along y: field in Hz times
    a readout time of 0.05 s, in voxels; the map smoothed by 2 mm), no linear stage. Error of the displacement inside
    the head, voxels; motion along the held axes x and z."""
    folder = data / "epi_fieldmap"
    image, hertz = read(folder / "epi.nii.gz"), read(folder / "field_hz.nii.gz")
    along = np.array(image.GetDirection()).reshape(3, 3)
    size = np.array(image.GetSpacing())
    voxels = READOUT * sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(hertz, 2.0)).astype(np.float64)
    truth = voxels[..., None] * size[1] * along[:, 1]
    values = carried(image, truth, image).astype(np.float32)
    undistorted = sitk.GetImageFromArray(values)
    undistorted.CopyInformation(image)
    # As the field displaces signal, so it is stretched: the other way of making the image.
    stretched = sitk.GetImageFromArray(
        (values * np.clip(1 + np.gradient(voxels, axis=1), 0.1, None)).astype(np.float32)
    )
    stretched.CopyInformation(image)
    head = sitk.GetArrayFromImage(sitk.OtsuThreshold(undistorted, 0, 1)) > 0
    score = _score(truth, head, along, size)
    only = {"linear": "none", "restrict": (0, 1, 0)}
    for what, fixed, options in (
        ("restrict=(0, 1, 0)", undistorted, only),
        ("the same, signal stretched and piled up", stretched, only),
        ("the same, preset fast", undistorted, {**only, "preset": "fast"}),
        ("free along every axis", undistorted, {"linear": "none"}),
    ):
        yield do(Case(what, fixed, image, score, options))[0]


def _score(truth: np.ndarray, head: np.ndarray, along: np.ndarray, size: np.ndarray) -> Callable[[np.ndarray], Figures]:
    def score(u: np.ndarray) -> Figures:
        gap = (u - truth)[head] @ along / size
        held = np.abs(u @ along / size)[..., [0, 2]]
        return {
            "RMS error in the head, voxels": float(np.sqrt(np.square(gap).sum(axis=-1).mean())),
            "95 % voxels": float(np.percentile(np.linalg.norm(gap, axis=-1), 95)),
            "x and z, largest, voxels": float(held.max()),
        }

    return score

"""ANTs' own programs, run by antspyx's library in a process of its own, and images for them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

_RUN = """
import json, sys
from ants.internal import get_lib_fn
program, commands = get_lib_fn(sys.argv[1]), json.load(open(sys.argv[2]))
statuses = {}
for name, words in commands.items():
    try:
        statuses[name] = program(words)
    except RuntimeError:
        statuses[name] = 1
json.dump(statuses, open(sys.argv[3], "w"))
"""


def run_ants(program: str, commands: Mapping[str, Sequence[str]], folder: Path) -> dict[str, int]:
    """Run command lines of a program of ANTs'; the exit status of each."""
    asked, answered = folder / "commands.json", folder / "statuses.json"
    asked.write_text(json.dumps(commands))
    subprocess.run(
        [sys.executable, "-c", _RUN, program, str(asked), str(answered)], check=True, capture_output=True, timeout=120
    )
    statuses: dict[str, int] = json.loads(answered.read_text())
    return statuses


@dataclass(frozen=True)
class Files:
    """A small set of files of one dimension, on unlike oblique grids."""

    folder: Path
    d: int

    def __call__(self, name: str) -> str:
        return str(self.folder / name)


def smooth(shape: Sequence[int], rng: np.random.Generator, sigma: float = 1.5) -> NDArray[np.float64]:
    image = sitk.GetImageFromArray(rng.random(shape))
    return np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigma)))


def placed(array: NDArray, spacing: float, origin: float, angle: float, *, several: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array, isVector=several)
    d = image.GetDimension()
    turn = np.eye(d)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image.SetSpacing([spacing, 1.1 * spacing, 1.3, 2.5][:d])
    image.SetOrigin([origin, -5.0, 3.0, 1.0][:d])
    image.SetDirection(turn.ravel().tolist())
    return image


def make_files(folder: Path, d: int) -> Files:
    """An image, labels, a series, several channels, vectors, a reference; a field, matrices and a composite."""
    folder.mkdir()
    rng = np.random.default_rng(d)
    shape = (14, 22, 26)[3 - d :]
    image = smooth(shape, rng)
    image = (image - image.min()) / np.ptp(image) * 100
    labels = np.floor(smooth(shape, rng) * 37) % 5
    files = Files(folder, d)
    sitk.WriteImage(placed(image.astype("f4"), 1.4, 3, 0.2), files("image.nii.gz"))
    sitk.WriteImage(placed(labels.astype("u1"), 1.4, 3, 0.2), files("labels.nii.gz"))
    sitk.WriteImage(placed(np.stack([image, 2 * image], -1), 1.4, 3, 0.2, several=True), files("channels.nii.gz"))
    arrows = np.stack([smooth(shape, rng) * 50 - 20 for _ in range(d)], -1)
    sitk.WriteImage(placed(arrows.astype("f4"), 1.4, 3, 0.2, several=True), files("vectors.nii.gz"))
    series = placed(np.stack([image, 2 * image, image[::-1]]).astype("f4"), 1.4, 3, 0.2)
    sitk.WriteImage(series, files("series.nii.gz"))
    sitk.WriteImage(placed(np.zeros((15, 24, 27)[3 - d :], "f4"), 1.2, 4, 0.1), files("reference.nii.gz"))
    vectors = np.stack([smooth((10, 13, 14)[3 - d :], rng) for _ in range(d)], -1)
    vectors = (vectors - vectors.mean()) * 30
    field = placed(vectors.astype("f4"), 2.6, 0, 0.1, several=True)
    sitk.WriteImage(field, files("field.nii.gz"))
    affine = sitk.AffineTransform(d)
    affine.SetMatrix((np.eye(d) + rng.normal(size=(d, d)) * 0.05).ravel())
    affine.SetTranslation([2, -1, 0.5][:d])
    affine.SetCenter([10, 12, 9][:d])
    sitk.WriteTransform(affine, files("affine.mat"))
    rigid = sitk.Euler2DTransform() if d == 2 else sitk.Euler3DTransform()
    rigid.SetParameters([0.1, 1, 2] if d == 2 else [0.1, 0.05, -0.1, 1, 2, -1])
    sitk.WriteTransform(rigid, files("rigid.mat"))
    whole = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    sitk.WriteTransform(sitk.CompositeTransform([affine, whole]), files("composite.h5"))
    return files

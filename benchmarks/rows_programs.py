"""Rows of `trust.py`: command lines of ANTs, run as whole processes by our programs, and by ANTs' own.

The numbers are those of settings that niworkflows ships, and of ANTs' scripts. Images are resampled to 2 mm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from cases import THREADS, Figures, Line, field_of, overlap_of, read
from pairs import OASIS

LABELS = tuple(label for label in OASIS if label not in (31, 63))
CLIP = "-w [0.005,0.995] -u 1 -a 1"
#: Name -> the line behind ``antsRegistration -d 3 -o PREFIX``; F and M stand for the images.
LINES = {
    "t1w-mni, precise": f"{CLIP} -t Rigid[0.05] -m Mattes[F,M,1,56,Regular,0.25] -c [100x100,1e-6,20] -s 2x1vox -f 2x1 "
    "-t Affine[0.08] -m Mattes[F,M,1,56,Regular,0.25] -c [100x100,1e-6,20] -s 1x0vox -f 2x1 "
    "-t SyN[0.1,3,0] -m CC[F,M,1,4,None,1] -c [100x70x50x20,1e-6,10] -s 3x2x1x0vox -f 8x4x2x1",
    "t1w-mni, fast": f"{CLIP} -t Rigid[0.01] -m Mattes[F,M,1,32,Random,0.15] -c [1000,1e-6,20] -s 4vox -f 4 "
    "-t Affine[0.08] -m Mattes[F,M,1,32,Regular,0.15] -c [500x250x100,1e-6,20] -s 4x2x0vox -f 4x2x1 "
    "-t SyN[0.1,3,0] -m Mattes[F,M,1,56,Regular,0.25] -c [50x20,1e-6,10] -s 1x0vox -f 2x1",
    "t1w-mni, testing": f"{CLIP} -t Rigid[1] -m Mattes[F,M,1,56,Random,0.2] -c [20,1e-7,15] -s 4vox -f 2 "
    "-t Affine[1] -m Mattes[F,M,1,56,Random,0.1] -c [15,1e-8,5] -s 2vox -f 1",
}
#: Lines that ANTs itself does in some minutes.
QUICK = ("t1w-mni, fast", "t1w-mni, testing")
OURS = (sys.executable, "-m", "itk_nir.cli")
ANTS = "import sys; from ants.internal import get_lib_fn; sys.exit(get_lib_fn('antsRegistration')(sys.argv[1:]))"


def programs(data: Path) -> Iterator[Line]:
    """Command lines of ANTs through our programs, whole processes: two brains at 2 mm (brain_t1 sub04, sub07), mean
    Dice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        score = _brains(data, folder)
        for what, line in LINES.items():
            yield program(what, [*OURS, "antsRegistration", *words(line, folder)], folder, score)
        for script in ("antsRegistrationSyN.sh", "antsRegistrationSyNQuick.sh"):
            images = ["-f", f"{folder}/fixed.nii.gz", "-m", f"{folder}/moving.nii.gz"]
            given = ["-d", "3", *images, "-o", f"{folder}/x", *(["-r", "32"] if "Quick" in script else [])]
            yield program(f"{script} -t s", [*OURS, script, *given], folder, score)


def peers_programs(data: Path) -> Iterator[Line]:
    """The shorter of these lines through ANTs' own antsRegistration (antspyx), on the same images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        score = _brains(data, folder)
        for what in QUICK:
            yield program(what, [sys.executable, "-c", ANTS, *words(LINES[what], folder)], folder, score)


def words(line: str, folder: Path) -> list[str]:
    """A line of `LINES` for the images ``fixed.nii.gz`` and ``moving.nii.gz`` of a folder."""
    images = line.replace("[F,M,", f"[{folder}/fixed.nii.gz,{folder}/moving.nii.gz,")
    return ["-d", "3", "-o", f"{folder}/x", *images.split()]


def _brains(data: Path, folder: Path) -> Callable[[Any], Figures]:
    """The two brains at 2 mm as files; the score of a displacement on the fixed grid."""
    labels = []
    for name, person in (("fixed", "sub04"), ("moving", "sub07")):
        image = at_2_mm(read(data / "brain_t1" / f"{person}_t1.nii.gz"))
        sitk.WriteImage(image, f"{folder}/{name}.nii.gz")
        place = (image.GetSize(), sitk.Transform(), sitk.sitkNearestNeighbor, image.GetOrigin(), image.GetSpacing())
        segments = read(data / "brain_t1" / f"{person}_seg.nii.gz")
        labels.append(sitk.Resample(segments, *place, image.GetDirection()))
    ours, theirs = labels
    return overlap_of(ours, theirs, LABELS)


def at_2_mm(image: Any) -> Any:
    """An image of 1 mm smoothed and sampled at every second voxel, as float32."""
    image = sitk.Cast(image, sitk.sitkFloat32)
    size = [-(-n // 2) for n in image.GetSize()]
    place = (image.GetOrigin(), [2 * s for s in image.GetSpacing()], image.GetDirection())
    smooth = sitk.SmoothingRecursiveGaussian(image, 0.8)
    return sitk.Resample(smooth, size, sitk.Transform(), sitk.sitkLinear, *place)


def program(what: str, command: list[str], folder: Path, score: Callable[[Any], Figures]) -> Line:
    """A process run, and the transform scored that it wrote for ``fixed.nii.gz`` under the prefix ``x``."""
    for old in folder.glob("x*"):
        old.unlink()
    environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(THREADS), "ANTS_RANDOM_SEED": "1"}
    clock = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - clock
    fixed = read(folder / "fixed.nii.gz")
    before = score(field_of(sitk.Transform(3, sitk.sitkIdentity), fixed))
    after = score(field_of(_written(folder), fixed))
    return Line(what, {name: [before[name], value] for name, value in after.items()}, seconds=seconds)


def _written(folder: Path) -> Any:
    """The whole transform: a composite, or what ANTs keeps apart (no matrix where nothing is linear)."""
    if (folder / "xComposite.h5").exists():
        return sitk.ReadTransform(str(folder / "xComposite.h5"))
    parts = [sitk.ReadTransform(str(path)) for path in sorted(folder.glob("x*GenericAffine.mat"))]
    for path in sorted(folder.glob("x*Warp.nii.gz")):
        if "Inverse" not in path.name:
            parts.append(sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64)))
    return sitk.CompositeTransform(parts)

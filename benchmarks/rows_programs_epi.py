"""Rows of `trust.py`: command lines of ANTs that fMRIPrep's workflows write, run as whole processes by our programs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from cases import Figures, Line, array, carried, read
from rows_epi import displaced, score_of
from rows_programs import ANTS, LINES, OURS, at_2_mm, program, words

#: What sdcflows asks antsRegistration for, behind the output; G and N are a second pair, which it weights less.
SDC = {
    "sd_syn": "-w [0.001,0.998] -t SyN[0.8,6,10] -m Mattes[F,M,0.9,48,Random,0.8] -m Mattes[G,N,0.1,48,Random,0.8] "
    "-c [200x100,1e-6,5] -s 2x0vox -f 1x1 -u 1 -g 0x1x0 -t SyN[0.8,2,0.5] -m Mattes[F,M,0.8,48] -m Mattes[G,N,0.2,48] "
    "-c [10,1e-8,2] -s 0vox -f 1 -u 1 -g 0x1x0",
    "sd_syn_sloppy": "-w [0.001,0.998] -t SyN[0.8,6,10] -m Mattes[F,M,0.9,48,Random,0.8] "
    "-m Mattes[G,N,0.1,48,Random,0.8] -c [20x10,1e-6,5] -s 2x0vox -f 1x1 -u 1 -g 0x1x0 -t SyN[0.8,2,0.5] "
    "-m Mattes[F,M,0.8,48] -m Mattes[G,N,0.2,48] -c [2,1e-8,2] -s 0vox -f 1 -u 1 -g 0x1x0",
}


def programs_epi(data: Path) -> Iterator[Line]:
    """sdcflows' settings through our antsRegistration, whole processes, on the images of row `epi` and the magnitudes
    of their gradients: an echo-planar image onto its undistorted self, along y alone. Error of the displacement inside
    the head, voxels; motion along the held axes x and z."""
    image, undistorted, truth, _ = displaced(data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, picture in (("fixed", undistorted), ("moving", image)):
            sitk.WriteImage(sitk.Cast(picture, sitk.sitkFloat32), f"{folder}/{file}.nii.gz")
            sitk.WriteImage(sitk.GradientMagnitude(picture), f"{folder}/{file}2.nii.gz")
        score = score_of(truth, undistorted)
        for what, line in SDC.items():
            second = line.replace("[G,N,", f"[{folder}/fixed2.nii.gz,{folder}/moving2.nii.gz,")
            yield program(what, [*OURS, "antsRegistration", *words(second, folder)], folder, score)


def programs_head(data: Path) -> Iterator[Line]:
    """niworkflows' precise line for a T1 through our antsRegistration, a whole process, from the centres of mass:
    somebody's whole head, unaligned, onto a stripped template, at 1 mm and at 2 mm. Correlation in the template's
    brain."""
    for spacing in (1, 2):
        yield from _head(data, spacing, (*OURS, "antsRegistration"))


def peers_programs_head(data: Path) -> Iterator[Line]:
    """The same line through ANTs' own antsRegistration (antspyx), on the same images at 2 mm: at 1 mm it takes some
    two hours of one core."""
    yield from _head(data, 2, (sys.executable, "-c", ANTS))


def _head(data: Path, spacing: int, command: tuple[str, ...]) -> Iterator[Line]:
    """The precise line by the antsRegistration that `command` starts."""
    folder = data / "head_templates"
    grid, image = read(folder / "mni152_t1_1mm.nii.gz"), read(folder / "native_t1_head_1mm.nii.gz")
    if spacing == 2:
        grid, image = at_2_mm(grid), at_2_mm(image)
    brain = array(grid) > (0 if spacing == 1 else 0.05 * array(grid).max())

    def score(u: np.ndarray) -> Figures:
        return {"correlation": float(np.corrcoef(array(grid)[brain], carried(image, u, grid)[brain])[0, 1])}

    with tempfile.TemporaryDirectory() as name:
        there = Path(name)
        for file, picture in (("fixed", grid), ("moving", image)):
            sitk.WriteImage(picture, f"{there}/{file}.nii.gz")
        start = ["-r", f"[{there}/fixed.nii.gz,{there}/moving.nii.gz,1]"]
        line = [*command, *start, *words(LINES["t1w-mni, precise"], there)]
        yield program(f"t1w-mni, precise, {spacing} mm", line, there, score)

"""What antsRegistration leaves: its transform files under its names, and the warped images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.atomic import split_prefix, together
from itk_nir.compat.ants.files import OUTSIDE
from itk_nir.images import Volume, save_image
from itk_nir.interpolating import Interpolation
from itk_nir.places import check_name, check_outputs, refuse_inputs, shown
from itk_nir.programs.ants_apply_values import interpolation_of
from itk_nir.programs.ants_plan import linear_name
from itk_nir.programs.ants_request import Request
from itk_nir.programs.ants_run import Outcome
from itk_nir.resample import resample
from itk_nir.transforms.formats.field_image import nifti_grid
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.formats.itk_text import write_itk_file
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step
from itk_nir.warping import in_place


@dataclass(frozen=True)
class File:
    """A file of a transform that is to be written.

    Parameters
    ----------
    ending : str
        Its name behind the prefix.
    step : LinearTransform or DisplacementField
        What it holds, fixed -> moving, or the inverse of a field.
    """

    ending: str
    step: Step


def check_outputs_of(request: Request) -> None:
    """Refuse names that could not be written to, or that are read. Nothing is left behind of the trial.

    Parameters
    ----------
    request : Request
        The command line.

    Raises
    ------
    InputError
        Such a name.
    """
    inputs = [name for stage in request.stages for metric in stage.metrics for name in metric.pair]
    inputs += [name for stage in request.stages for name in stage.masks if name]
    inputs += [name for start in request.starts for name in (start.file, *start.pair) if name]
    there = [name for name in inputs if os.path.exists(name)]
    label = f"output prefix {shown(request.prefix)}"
    check_name(request.prefix, label)
    folder, start = split_prefix(request.prefix)
    files = [folder / f"{start}{name}" for name in expected_endings(request)]
    check_outputs(files, label)
    refuse_inputs(files, there)
    for name in (request.warped, request.inverse_warped):
        if name:
            check_name(name, f"output {shown(name)}")
            check_outputs([Path(name)], f"output {shown(name)}")
            refuse_inputs([name], there)


def expected_endings(request: Request) -> tuple[str, ...]:
    """What follows the prefix in the names of the transforms of a command line, those of initial files left out.

    Parameters
    ----------
    request : Request
        The command line.

    Returns
    -------
    tuple of str
    """
    if request.composite:
        return "Composite.h5", "InverseComposite.h5"
    linear = any(stage.linear for stage in request.stages) or bool(request.starts)
    deformable = any(not stage.linear for stage in request.stages)
    fields = (f"{int(linear)}Warp.nii.gz", f"{int(linear)}InverseWarp.nii.gz") if deformable else ()
    return (*(("0GenericAffine.mat",) if linear else ()), *fields)


def write_outputs(request: Request, outcome: Outcome, threads: int | None) -> list[Path]:
    """Write everything that a command line asks for: all files appear, complete, or none.

    Parameters
    ----------
    request : Request
        The command line.
    outcome : Outcome
        What was found.
    threads : int or None
        CPU threads of resampling.

    Returns
    -------
    list of Path
        The files, transforms first.

    Raises
    ------
    WriteError
        The disk is full, or refuses otherwise.
    """
    folder, start = split_prefix(request.prefix)
    writers: list[tuple[Path, Callable[[Path], None]]] = []
    if request.composite:
        mapping = outcome.mapping
        centre = outcome.fixed.geometry.centre
        writers += [
            (folder / f"{start}Composite.h5", lambda path: write_h5(mapping, path, centre=centre)),
            (folder / f"{start}InverseComposite.h5", lambda path: write_h5(mapping.inverse(), path, centre=centre)),
        ]
    else:
        files = collapsed(request, outcome) if request.collapse else separate(request, outcome)
        writers += [(folder / f"{start}{file.ending}", _transform(file.step, outcome)) for file in files]
    _, how = interpolation_of(request.interpolation)
    if request.warped:
        writers.append((Path(request.warped), _warped(outcome.moving, outcome.mapping, outcome.fixed, how, threads)))
    if request.inverse_warped:
        inverse = outcome.mapping.inverse()
        writers.append((Path(request.inverse_warped), _warped(outcome.fixed, inverse, outcome.moving, how, threads)))
    # One folder may have two spellings.
    folders = list(dict.fromkeys(os.path.abspath(path.parent) for path, _ in writers))
    with together(folders) as stages:
        place = dict(zip(folders, stages, strict=True))
        for path, write in writers:
            write(place[os.path.abspath(path.parent)] / path.name)
    return [path for path, _ in writers]


def collapsed(request: Request, outcome: Outcome) -> list[File]:
    """The files of ``-z 1``: neighbouring linear maps are one; numbers count from the map that a point meets last.

    Parameters
    ----------
    request : Request
        The command line.
    outcome : Outcome
        What was found.

    Returns
    -------
    list of File
    """
    steps: list[Step] = [] if outcome.start is None else list(reversed(outcome.start.transforms))
    if any(stage.linear for stage in request.stages) or (request.starts and outcome.start is None):
        steps.append(outcome.linear)
    merged: list[Step] = []
    for step in steps:
        if isinstance(step, LinearTransform) and merged and isinstance(merged[-1], LinearTransform):
            # The one that comes later in this order meets a point first.
            merged[-1] = LinearTransform(merged[-1].matrix @ step.matrix)
        else:
            merged.append(step)
    files = [File(f"{n}{_ending(step)}", step) for n, step in enumerate(merged)]
    return [*files, *_deformation(outcome, len(merged))]


def separate(request: Request, outcome: Outcome) -> list[File]:
    """The files of ``-z 0``: one a stage; initial files are counted, and not written again.

    Parameters
    ----------
    request : Request
        The command line.
    outcome : Outcome
        What was found.

    Returns
    -------
    list of File
    """
    files: list[File] = []
    for k, start in enumerate(request.starts):
        if start.pair and len(request.starts) == 1:
            files.append(File(f"{k}DerivedInitialMovingTranslation.mat", outcome.first))
    count = len(request.starts)
    linear = [stage for stage in request.stages if stage.linear]
    identity = LinearTransform.identity(outcome.fixed.dimension)
    for k, stage in enumerate(linear):
        last = k == len(linear) - 1
        found = LinearTransform(np.linalg.inv(outcome.first.matrix) @ outcome.linear.matrix)
        files.append(File(f"{count + k}{linear_name(stage)}.mat", found if last else identity))
    count += len(linear)
    deformable = [stage for stage in request.stages if not stage.linear]
    for k in range(len(deformable)):
        if k == len(deformable) - 1:
            files += _deformation(outcome, count + k)
        else:
            grid = outcome.fixed.geometry
            still = DisplacementField(grid, np.zeros((*grid.shape, grid.dimension), np.float32))
            files += [File(f"{count + k}{name}.nii.gz", still) for name in ("Warp", "InverseWarp")]
    return files


def _deformation(outcome: Outcome, number: int) -> Iterable[File]:
    if outcome.deformation is None:
        return []
    there, back = outcome.deformation.transforms[0], outcome.deformation.inverse().transforms[0]
    return [File(f"{number}Warp.nii.gz", there), File(f"{number}InverseWarp.nii.gz", back)]


def _ending(step: Step) -> str:
    return "GenericAffine.mat" if isinstance(step, LinearTransform) else "Warp.nii.gz"


def _transform(step: Step, outcome: Outcome) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if isinstance(step, LinearTransform):
            write_itk_file(CompositeTransform((step,)), path, outcome.fixed.geometry.centre)
            return
        grid = nifti_grid(step.geometry)
        field = step if grid is step.geometry else CompositeTransform((step,)).displacement_on(grid)
        save_image(field.vectors, field.geometry, path)

    return write


def _warped(
    image: Volume, mapping: CompositeTransform, onto: Volume, how: Interpolation, threads: int | None
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array: Any = resample(
            image, mapping, onto.geometry, how, OUTSIDE, pixel_type=np.dtype(np.float32), threads=threads
        )
        save_image(*in_place(array, onto), path, space_code=onto.space_code)

    return write

"""What elastix leaves behind: parameter maps of the result, their files, and the resampled images."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from itk_nir.atomic import all_or_none
from itk_nir.compat.elastix.options import PIXELS
from itk_nir.compat.elastix.parameters import Request
from itk_nir.compat.elastix.resampling import as_pixel_type
from itk_nir.compat.elastix.run import Outcome
from itk_nir.compat.elastix.stages import stage_map
from itk_nir.errors import InputError
from itk_nir.images import save_image
from itk_nir.places import check_outputs, named_files, refuse_inputs
from itk_nir.transforms.formats.elastix import ParameterMap, as_text, as_toml, parameter_maps
from itk_nir.transforms.formats.elastix.parameters import INITIAL, NONE, as_numbers, grid_entries, in_order
from itk_nir.transforms.formats.elastix.steps import ShearedField

#: Stems of the files of the result and of an initial transform that was given in memory.
_OWN, _INITIAL = "TransformParameters", "InitialTransformParameters"
#: The image of the deformation.
_FIELD = "DeformationField.mha"


def result_maps(outcome: Outcome) -> list[ParameterMap]:
    """Express a result as parameter maps, with its displacement field in a temporary folder.

    Parameters
    ----------
    outcome : Outcome
        The registration.

    Returns
    -------
    list of dict of str to list of str
        Those of an initial transform that was given as an object, then one a stage: first applied first. The files
        that they name are removed when Python ends.
    """
    folder = temporary_folder()
    first = _initial_maps(outcome, folder, folder)
    return [*first, *_stage_maps(outcome, folder, folder, "float")]


def write_result(outcome: Outcome, folder: str | os.PathLike[str], pixel_type: str = "short") -> list[ParameterMap]:
    """Write transform files and images as elastix leaves them in its output directory, all or none.

    Parameters
    ----------
    outcome : Outcome
        The registration.
    folder : path
        An existing folder for ``TransformParameters.N.txt``, the displacement field that they name, and
        ``result.N.FORMAT`` for every stage; ``InitialTransformParameters.N.txt`` for an initial transform that was
        given in memory.
    pixel_type : str
        Of images where the request says nothing; a key of `PIXELS`.

    Returns
    -------
    list of dict of str to list of str
        As of `result_maps`; they name the displacement field by absolute path.

    Raises
    ------
    InputError
        A format of images that no writer knows, or a path that elastix' files cannot hold.
    """
    where = Path(os.path.abspath(folder))
    with all_or_none(where) as stage:
        first = _initial_maps(outcome, stage, where)
        own = _stage_maps(outcome, stage, where, pixel_type)
        before = NONE
        for number, one in enumerate(first):
            before = _write(one, stage, where, f"{_INITIAL}.{number}", before, toml=False)
        for number, (one, output) in enumerate(zip(own, outcome.request.outputs, strict=True)):
            before = one[INITIAL[0]][0] if number == 0 and not first else before
            name = f"{_OWN}.{number}"
            if output.parameters:
                before = _write(one, stage, where, name, before, output.toml)
            if output.image is not None:
                image = as_pixel_type(outcome.warped(number + 1), PIXELS[one["ResultImagePixelType"][0]])
                path = stage / f"{output.image}.{number}.{output.resampling.image_format}"
                save_image(image, outcome.grid, path, compression=5 if output.resampling.compress else 0)
    return [*first, *own]


def check_output_folder(folder: str | os.PathLike[str], request: Request, *inputs: Any) -> None:
    """Refuse a folder that the files of a result cannot be written to, or where they would replace what is read.

    Parameters
    ----------
    folder : path
        The output directory.
    request : Request
        What is asked for.
    *inputs : object
        Images, masks, points and initial transforms as they were given.

    Raises
    ------
    InputError
        No such folder or one that is not writable, or an output that is an input.
    OptionError
        A format of images that no writer knows.
    """
    if not Path(folder).is_dir():
        raise InputError(f"output_directory {folder}: no such folder; create it first")
    names = [_FIELD]
    for number, output in enumerate(request.outputs):
        if output.parameters:
            names.append(f"{_OWN}.{number}.{'toml' if output.toml else 'txt'}")
        if output.image is not None:
            output.resampling.check_format()
            names.append(f"{output.image}.{number}.{output.resampling.image_format}")
    files = [Path(os.path.abspath(folder)) / name for name in names]
    check_outputs(files, f"output_directory {folder}")
    refuse_inputs(files, named_files(*inputs))


def _write(parameters: ParameterMap, stage: Path, where: Path, name: str, before: str, toml: bool) -> str:
    """Write a parameter map into a folder and say the path that it will have."""
    file = f"{name}.toml" if toml else f"{name}.txt"
    text = (as_toml if toml else as_text)({**parameters, **{key: [before] for key in INITIAL}})
    (stage / file).write_text(text, encoding="utf-8", errors="surrogateescape")
    return str(where / file)


def _initial_maps(outcome: Outcome, folder: Path, where: Path) -> list[ParameterMap]:
    """The maps that come before those of the stages."""
    start = outcome.start
    if start is None:
        return []
    if start.in_memory:
        return parameter_maps(
            start.transform, folder, outcome.fixed.geometry, location=where, field_name="InitialDeformationField"
        )
    return [dict(one) for one in start.maps]


def _stage_maps(outcome: Outcome, folder: Path, where: Path, pixel_type: str) -> list[ParameterMap]:
    """One map a stage; the first one names the file of the initial transform where that is one."""

    start = outcome.start
    used = {
        name for one in (start.maps if start is not None else ()) for name in one.get("DeformationFieldFileName", ())
    }
    # An initial transform of this folder keeps its field.
    names = (_FIELD, *(f"DeformationField.{n}.mha" for n in range(1, len(used) + 1)))
    name = next(n for n in names if str(where / n) not in used)

    def write(field: ShearedField) -> Path:
        # Uncompressed: elastix reads it each time, and displacements hardly compress.
        field.write(folder / name)
        return where / name

    request, grid = outcome.request, outcome.fixed.geometry
    common = grid_entries(grid)
    if not request.use_direction:
        # elastix writes the image's own axes, which transformix gives the resampled image.
        common |= {"UseDirectionCosines": ["false"], "Direction": as_numbers(outcome.grid.rotation.T.ravel())}
    named = NONE if start is None or start.file is None else str(start.file)
    maps = []
    for number, (stage, output) in enumerate(zip(outcome.stages, request.outputs, strict=True)):
        how = output.resampling
        resampling = {
            "FinalBSplineInterpolationOrder": [str(how.order)],
            "DefaultPixelValue": [f"{how.default:g}"],
            "ResultImageFormat": [how.image_format],
            "ResultImagePixelType": [how.pixel_type or pixel_type],
            "CompressResultImage": ["true" if how.compress else "false"],
            **{name: list(values) for name, values in output.entries.items()},
        }
        first = {key: [named if number == 0 else NONE] for key in INITIAL}
        maps.append(in_order(stage_map(stage, grid, grid.centre, write), {**common, **resampling, **first}))
    return maps


def temporary_folder() -> Path:
    """Make a new folder for one result; all those of a process are removed when it ends.

    Returns
    -------
    Path
        Under the system's temporary folder.
    """
    pid = os.getpid()  # a forked child must not remove its parent's
    if pid not in _folders:
        _folders[pid] = Path(tempfile.mkdtemp(prefix="itk-nir-elastix-"))
        atexit.register(_remove, _folders[pid], pid)
    return Path(tempfile.mkdtemp(prefix="result-", dir=_folders[pid]))


_folders: dict[int, Path] = {}


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)

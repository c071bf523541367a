"""The files of a registration: what they are called, written together, and what of other runs lies beside them."""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.errors import InputError, SelfCheckWarning
from itk_nir.images import save_image
from itk_nir.places import check_name, check_outputs, refuse_inputs, shown
from itk_nir.transforms.formats.base import has_ending, parameter_file_prefix
from itk_nir.transforms.save import FORMATS, check_format, write_both

if TYPE_CHECKING:
    from itk_nir.result import RegistrationResult

#: What the transform files of each format are called behind the prefix; ``#`` stands for a number.
TRANSFORMS: dict[str, tuple[str, ...]] = {
    "itk": ("Composite.h5", "InverseComposite.h5"),
    "ants": ("0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz"),
    "elastix": tuple(
        f"{word}{name}"
        for word in ("", "Inverse")
        for name in ("TransformParameters.#.txt", "DeformationField.mha", "DeformationField.#.mha")
    ),
    "slicer": ("Displacement.nrrd", "InverseDisplacement.nrrd"),
    "nifti": ("DisplacementField.nii.gz", "InverseDisplacementField.nii.gz"),
}
REPORT, PICTURE = "report.json", "registration.png"


def file_names(kind: str, *more: str) -> tuple[str, ...]:
    """Give what follows the prefix in the names of all files of a result.

    Parameters
    ----------
    kind : str
        One of `itk_nir.transforms.save.FORMATS`.
    *more : str
        Other files that will be written with them.

    Returns
    -------
    tuple of str
        With a number of one digit in the place of any.

    Examples
    --------
    >>> file_names("itk")
    ('Warped.nii.gz', 'report.json', 'Composite.h5', 'InverseComposite.h5')
    """
    names = (FORMATS[kind].warped, REPORT, *TRANSFORMS[kind], *more)
    return tuple(name.replace("#", "0") for name in names)


def result_files(prefix: str | os.PathLike[str], kind: str, *more: str) -> list[Path]:
    """Give the files of a result, as of `file_names`.

    Parameters
    ----------
    prefix : path
        Start of the names of all files.
    kind : str
        One of `itk_nir.transforms.save.FORMATS`.
    *more : str
        What follows the prefix in the names of other files that will be written with them.

    Returns
    -------
    list of Path
    """
    folder, start = split_prefix(prefix)
    return [folder / f"{start}{name}" for name in file_names(kind, *more)]


def shared_file(files: Iterable[Path], owners: dict[str, int], owner: int) -> tuple[Path, int] | None:
    """Find a file that two results would write; where there is none, the files are noted.

    Parameters
    ----------
    files : iterable of Path
        Those of a result, as of `result_files`.
    owners : dict of str to int
        The files of the others, by where they really lie, and whose they are.
    owner : int
        Whose result it is.

    Returns
    -------
    tuple of (Path, int) or None
        The file and whose it is too.
    """
    # A folder may have several names; a link in the place of the file itself is replaced by it.
    real = {os.path.join(os.path.realpath(file.parent), file.name): file for file in files}
    for where, file in real.items():
        if owners.get(where, owner) != owner:
            return file, owners[where]
    owners.update(dict.fromkeys(real, owner))
    return None


def check_output_prefix(
    prefix: str | os.PathLike[str], names: Iterable[str] = (), inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse a prefix that no file can be written to. Nothing is left behind of the trial.

    Parameters
    ----------
    prefix : path
        Start of the names of all files.
    names : iterable of str, optional
        What follows it in the name of each file.
    inputs : iterable of path, optional
        Files that are read, and must not be written over.

    Raises
    ------
    InputError
        A folder that cannot be made or written to, names that are too long, something that is no file of ours where one
        is to be, or an output that is an input.
    """
    label = f"output prefix {shown(prefix)}"
    check_name(prefix, label)
    folder, start = split_prefix(prefix)
    files = [folder / f"{start}{name}" for name in names or ("x",)]
    check_outputs(files, label)
    refuse_inputs(files, inputs)


def check_result(
    prefix: str | os.PathLike[str],
    kind: str,
    more: Iterable[str] = (),
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Refuse a prefix that no result can be written to. Nothing is left behind of the trial.

    Parameters
    ----------
    prefix : path
        Start of the names of all files.
    kind : str
        One of `itk_nir.transforms.save.FORMATS`.
    more : iterable of str, optional
        What follows the prefix in the names of other files.
    inputs : iterable of path, optional
        Files that are read, and must not be written over.

    Raises
    ------
    InputError
        As of `check_output_prefix`, or a name that the format's files cannot hold.
    """
    check_output_prefix(prefix, file_names(kind, *more), inputs)
    if kind == "elastix" and any(mark in os.path.abspath(prefix) for mark in '"\n\r'):
        raise InputError(
            f"output prefix {shown(prefix)}: elastix' files cannot hold a name with a quotation mark or a line "
            "end; choose another"
        )


def check_transform_output(
    name: str | os.PathLike[str], kind: str | None, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse a name, or the start of several, under which no transform could be written.

    Parameters
    ----------
    name : path
        As of `itk_nir.transforms.save.save_transform`.
    kind : str, optional
        The format.
    inputs : iterable of path, optional
        Files that are read, and must not be written over.

    Raises
    ------
    InputError
        As of `check_output_prefix`.
    """
    text = os.fsdecode(name)
    prefix = parameter_file_prefix(text)
    if prefix is None and not (kind in ("ants", "elastix") and not has_ending(text)):
        check_output_prefix(name, [""], inputs)
        return
    if prefix is None and kind == "ants":
        names: Iterable[str] = TRANSFORMS["ants"]
    else:
        names = [one.replace("#", "0") for one in TRANSFORMS["elastix"] if "Inverse" not in one]
    start = text if prefix is None else prefix
    check_output_prefix(start or "./", names, inputs)


def save_result(
    result: RegistrationResult, prefix: str | os.PathLike[str], kind: str, more: Mapping[str, tuple[str, bytes]] = {}
) -> dict[str, Path]:
    """Write the files of a result, all or none.

    Parameters
    ----------
    result : RegistrationResult
        What was found.
    prefix : path
        Start of the names of all files.
    kind : str
        One of `itk_nir.transforms.save.FORMATS`.
    more : mapping of str to (str, bytes), optional
        Other files by key: what follows the prefix in the name, and the content.

    Returns
    -------
    dict of str to Path
        Paths by key.

    Raises
    ------
    OptionError, InputError, WriteError, ItkNirError
        As of `RegistrationResult.save`.
    """
    check_format(kind, result.mapping.dimension)
    check_result(prefix, kind, [name for name, _ in more.values()], result.inputs)
    folder, start = split_prefix(prefix)
    with all_or_none(folder) as stage:
        written = write_both(kind, result.mapping, result.fixed.geometry, result.moving.geometry, stage, start, folder)
        names = {"warped": start + FORMATS[kind].warped, **written.files, "report": f"{start}{REPORT}"}
        save_image(*result.warped_pixels, stage / names["warped"], space_code=result.fixed.space_code)
        for key, (name, content) in more.items():
            names[key] = f"{start}{name}"
            (stage / names[key]).write_bytes(content)
        report = {
            "run": uuid.uuid4().hex,
            "fixed": result.fixed.name,
            "moving": result.moving.name,
            "files": names,
            "bytes": {path.name: path.stat().st_size for path in sorted(stage.iterdir())},
            "self_check": written.report(),
            "metrics": result.report.as_dict(),
        }
        text = json.dumps(report, indent=2, allow_nan=False)
        (stage / names["report"]).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    for sentence in written.failed:
        warnings.warn(sentence, SelfCheckWarning, stacklevel=3)
    others = of_other_runs(folder, start, names.values())
    if others:
        warnings.warn(
            f"{shown(prefix)}: {', '.join(others)} {'is' if len(others) == 1 else 'are'} of another run, not of "
            "this one; remove what is not needed",
            stacklevel=3,
        )
    return {key: folder / name for key, name in names.items()}


def of_other_runs(folder: Path, start: str, written: Iterable[str]) -> list[str]:
    """Find the files of a prefix that registrations write and the last one did not.

    Parameters
    ----------
    folder : Path
        Where the files lie.
    start : str
        What their names begin with.
    written : iterable of str
        The names of the files of the last run.

    Returns
    -------
    list of str
        Names, sorted.
    """
    known = {REPORT, PICTURE, "InverseWarped.nii.gz", *(choice.warped for choice in FORMATS.values())}
    known |= {name for names in TRANSFORMS.values() for name in names}
    pattern = re.compile("|".join(re.escape(name).replace(r"\#", r"\d+") for name in known))
    own = set(written)
    found = [p.name for p in folder.iterdir() if p.name.startswith(start) and p.name not in own]
    return sorted(name for name in found if pattern.fullmatch(name[len(start) :]))

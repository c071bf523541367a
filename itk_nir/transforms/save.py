"""Transforms as files for other programs: one table of formats, and what was written is read back and compared."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.transforms import check
from itk_nir.transforms.formats import base
from itk_nir.transforms.formats.ants import Ants
from itk_nir.transforms.formats.elastix import Elastix
from itk_nir.transforms.formats.field_image import FieldImage
from itk_nir.transforms.formats.itk_h5 import ItkH5
from itk_nir.transforms.formats.itk_text import ItkText
from itk_nir.transforms.model import CompositeTransform, DisplacementField


@dataclass(frozen=True)
class Choice:
    """What a user means with the name of a format.

    Attributes
    ----------
    warped : str
        What the warped image is called beside the transforms.
    both : Format
        Writes a result: the transform and its inverse.
    one : tuple of Format
        Write one transform; the first that accepts the name does.
    """

    warped: str
    both: base.Format
    one: tuple[base.Format, ...]


_RAS_FIELD = FieldImage("DisplacementField.nii.gz", ras=True, endings=base.NIFTI)

#: Every format by the name that users give it.
FORMATS: dict[str, Choice] = {
    "itk": Choice("Warped.nii.gz", ItkH5(), (ItkH5(), ItkText(), FieldImage())),
    "ants": Choice("Warped.nii.gz", Ants(), (Ants(),)),
    "elastix": Choice("result.nii.gz", Elastix(), (Elastix(),)),
    "slicer": Choice("Warped.nrrd", FieldImage(), (ItkH5(), ItkText((".tfm",)), FieldImage())),
    "nifti": Choice("Warped.nii.gz", _RAS_FIELD, (_RAS_FIELD,)),
}


@dataclass(frozen=True, eq=False)
class Written:
    """What was written and how well.

    Attributes
    ----------
    files : dict of str to str
        Names by key.
    differences : dict of str to float
        For each transform file the largest distance (mm) between where it and the map that it stands for take a point,
        after reading it back. NaN if the file gives NaN.
    sampling : dict of str to float
        For each file that had to be sampled the largest distance (mm) that this costs at points between voxels.
    tolerance : float
        Largest difference that is allowed (mm): a thousandth of the finest spacing of all grids that it is about.
    failed : tuple of str
        A sentence for each file whose difference is larger.
    """

    files: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)
    tolerance: float = check.TOLERANCE
    failed: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every file is the transform that it stands for."""
        return not self.failed

    def report(self) -> dict[str, Any]:
        """Give all of it in JSON's types.

        Returns
        -------
        dict
            ``passed``, ``points``, ``tolerance_mm``, ``tolerance_voxels``, ``largest_difference_mm`` and
            ``sampling_mm``; ``failed`` where a file is not the transform.
        """
        out: dict[str, Any] = {
            "passed": self.passed,
            "points": check.POINTS,
            "tolerance_mm": self.tolerance,
            "tolerance_voxels": check.TOLERANCE,
            "largest_difference_mm": {k: v if math.isfinite(v) else None for k, v in self.differences.items()},
            "sampling_mm": self.sampling,
        }
        return out if self.passed else {**out, "failed": list(self.failed)}


def check_format(name: str, dimension: int | None = None) -> None:
    """Refuse a format that does not exist or cannot hold a transform.

    Parameters
    ----------
    name : str
        What the user gave.
    dimension : {2, 3}, optional
        Of the transform.

    Raises
    ------
    OptionError
        No such format.
    InputError
        It cannot hold transforms of that dimension.
    """
    if not isinstance(name, str) or name not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    if dimension is not None and dimension not in FORMATS[name].both.dimensions:
        raise InputError(
            f"format {name} is for 3D: ITK 5.4 misreads 2D fields with RAS vectors; use itk, ants or slicer"
        )


def write_both(
    kind: str,
    transform: CompositeTransform,
    fixed: Geometry,
    moving: Geometry,
    stage: Path,
    start: str,
    location: Path,
) -> Written:
    """Write a transform and its inverse and check what was written.

    Parameters
    ----------
    kind : str
        One of `FORMATS`.
    transform : CompositeTransform
        Fixed -> moving.
    fixed, moving : Geometry
        Grids of the two images.
    stage : Path
        Folder to write to.
    start : str
        What every name begins with.
    location : Path
        Folder that the files will be moved to (elastix' files name each other by absolute path).

    Returns
    -------
    Written
        What was written, and the self-check.

    Raises
    ------
    OptionError, InputError
        A format that does not exist or cannot hold the dimension.
    ItkNirError
        A file that cannot be read back.
    """
    check_format(kind, transform.dimension)
    points = check.random_points(_tried_in(transform, fixed))
    directions = base.Directions(transform, transform.inverse(), fixed, moving, points, transform.map(points))
    files = FORMATS[kind].both.save_both(directions, base.Place(stage, start, location))
    return _compared(files, check.tolerance(fixed, moving, *(f.geometry for f in transform.fields)))


def save_transform(
    transform: CompositeTransform,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word users know
    reference: Geometry | None = None,
) -> tuple[list[Path], Written]:
    """Write a transform fixed -> moving for another program, all files or none, and check what was written.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    path : str or os.PathLike
        Its name tells the format: ``.h5``, ``.tfm``, ``.txt``, ``.mat`` (linear only) are ITK transforms;
        ``.nii.gz``, ``.nrrd``, ``.mha``, ``.mhd`` displacement fields (LPS mm; NIfTI intent 1007);
        ``TransformParameters.N.txt`` elastix' files, numbered from 0 whatever N is. For ``format="ants"`` a prefix.
    format : str, optional
        One of `FORMATS`; ``"nifti"`` writes ``.nii.gz`` with RAS vectors and intent 1006.
    reference : Geometry, optional
        A grid of fixed space, needed where the format cannot hold the transform as it is: one field on that grid is
        exact at its voxels.

    Returns
    -------
    paths : list of Path
        What was written; of elastix' files the last is the one to give transformix.
    written : Written
        The self-check. Files that failed it are kept: it is for the caller to say so (``written.failed``).

    Raises
    ------
    InputError
        A name that tells no format, or a conversion that cannot be exact without `reference`.
    OptionError
        An unknown format.
    ItkNirError
        A file that cannot be read back.

    Examples
    --------
    >>> import tempfile
    >>> from itk_nir.transforms import LinearTransform
    >>> shift = CompositeTransform((LinearTransform.make(np.eye(3), [1, 2, 3]),))
    >>> paths, written = save_transform(shift, f"{tempfile.mkdtemp()}/shift.tfm")
    >>> [path.name for path in paths], written.passed
    (['shift.tfm'], True)
    """
    name = os.fspath(path)
    writer = _writer(name, format, transform.dimension)
    transform = transform.simplified()
    tried = _tried_in(transform, reference)
    folder, start = split_prefix(writer.prefix(name))
    with all_or_none(folder) as stage:
        place = base.Place(stage, start, folder)
        files = writer.save(transform, place, check.random_points(tried), reference, name)
        grids = [f.geometry for f in transform.fields] + [g for g in (reference,) if g is not None]
        written = _compared(files, check.tolerance(*(grids or [tried])))
    return [folder / n for n in written.files.values()], written


def _writer(name: str, kind: str | None, dimension: int) -> base.Format:
    """Who writes a transform under this name."""
    parameters = base.parameter_file_prefix(name) is not None
    if kind is None and not parameters and not base.has_ending(name):
        raise InputError(
            f"{name}: the name tells no transform format; end it in .h5, .tfm, .nii.gz or .nrrd, or give one of "
            f"{', '.join(FORMATS)}"
        )
    kind = kind or ("elastix" if parameters else "itk")
    check_format(kind, dimension)
    writer = next((w for w in FORMATS[kind].one if w.accepts(name)), None)
    if writer is not None:
        return writer
    if kind == "ants":
        raise InputError(f"{name}: ANTs has several files; give the start of their names, such as out/case_")
    if kind == "elastix":
        raise InputError(
            f"{name}: elastix has several files; name the last TransformParameters.0.txt, or give a prefix"
        )
    endings = ", ".join(ending for w in FORMATS[kind].one for ending in w.endings)
    raise InputError(f"{name}: format {kind} needs a name that ends in {endings}")


def _compared(files: list[base.SavedFile], tolerance: float) -> Written:
    """Read every file back and compare it with what it stands for."""
    differences: dict[str, float] = {}
    sampling: dict[str, float] = {}
    failed = []
    for file in files:
        if file.holds is None or file.applied is None or file.points is None:
            continue
        gap = check.largest_difference(file.holds, file.points, file.applied, file.name, file.exact)
        differences[file.name] = gap
        if not gap <= tolerance:  # NaN too
            failed.append(
                f"{file.name}: read back, it moves a point by {gap:.3g} mm more or less than it should (allowed: "
                f"{tolerance:.3g} mm); please report it"
            )
        cost = _sampling_cost(file)
        if cost is not None:
            sampling[file.name] = cost
    return Written({f.key: f.name for f in files}, differences, sampling, tolerance, tuple(failed))


def _sampling_cost(file: base.SavedFile) -> float | None:
    """How far a transform that was sampled for a file is from the transform itself; None where it was not sampled."""
    whole = file.sampled_from
    if whole is None or file.holds is None or file.points is None or not len(file.points):
        return None
    if all(any(f is own for own in whole.fields) for f in file.holds.fields):
        return None
    return float(np.linalg.norm(file.holds.map(file.points) - whole.map(file.points), axis=-1).max())


def _tried_in(transform: CompositeTransform, grid: Geometry | None) -> Geometry:
    """Where points are tried: inside the field that a fixed point meets first, else inside the given grid."""
    first = transform.transforms[0]
    if isinstance(first, DisplacementField):
        return first.geometry
    if grid is not None:
        return grid
    if transform.fields:
        return transform.fields[0].geometry
    return Geometry.make([201] * transform.dimension, origin=[-100.0] * transform.dimension)

"""Every transform format in one table: what is written, how it is checked, and which name means what."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images import save_image, temporary_name
from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.transforms.formats.ants import AFFINE, INVERSE_WARP, WARP, write_ants
from itk_nir.transforms.check import POINTS, TOLERANCE, Points, by_elastix, by_file, largest_difference, random_points
from itk_nir.transforms.formats.elastix import write_elastix
from itk_nir.transforms.composition import field_then_linear, whole_field
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

#: How the warped image is called beside the transforms of a format.
WARPED = {
    "itk": "Warped.nii.gz",
    "ants": "Warped.nii.gz",
    "elastix": "result.nii.gz",
    "slicer": "Warped.nrrd",
    "nifti": "Warped.nii.gz",
}
FORMATS = tuple(WARPED)

_PARAMETERS = re.compile(r"(.*)TransformParameters\.\d+\.txt$", re.DOTALL)
_NIFTI = (".nii", ".nii.gz")
_IMAGES = (*_NIFTI, ".mha", ".mhd", ".nrrd")
_HDF = (".h5", ".hdf5")
_TEXT = (".tfm", ".txt")
#: Endings that a format can have where one file holds the transform.
_ENDINGS = {"itk": (*_HDF, *_TEXT, ".mat", *_IMAGES), "slicer": (*_HDF, ".tfm", *_IMAGES), "nifti": _NIFTI}


@dataclass(frozen=True, eq=False)
class Written:
    """What was written and how well.

    Attributes
    ----------
    files : names by key.
    differences : for each transform file the largest distance (mm) between where it and the map that it stands for take
        a random point, after reading it back.
    sampling : for each file that had to be sampled the largest distance (mm) that this costs at points between voxels.
    """

    files: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "points": POINTS,
            "tolerance_mm": TOLERANCE,
            "largest_difference_mm": self.differences,
            "sampling_mm": self.sampling,
        }


def check_format(name: str, dimension: int | None = None) -> None:
    """Raise OptionError for a format that does not exist, InputError for one that cannot hold the dimension."""
    if name not in FORMATS:
        raise OptionError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    if name == "nifti" and dimension == 2:
        raise InputError("format nifti is for 3D: ITK 5.4 misreads 2D fields with RAS vectors; use itk, ants or slicer")


# --- a result: both directions ---------------------------------------------------------------------------------------


def write_both(
    kind: str, chain: CompositeTransform, fixed: Geometry, moving: Geometry, stage: Path, start: str, location: Path
) -> Written:
    """Write a chain and its inverse and check what was written.

    Parameters
    ----------
    kind : one of `FORMATS`.
    fixed, moving : grids of the two images.
    stage : folder to write to.
    start : what every name begins with.
    location : folder that the files will be moved to (elastix' files name each other by absolute path).
    """
    check_format(kind, chain.dimension)
    out = Written()
    inverse = chain.inverse()
    points = random_points(_grid_of(chain, fixed))
    moved = chain.map(points)
    if kind == "itk":
        for key, name, one, at in (
            ("composite", "Composite.h5", chain, points),
            ("inverse_composite", "InverseComposite.h5", inverse, moved),
        ):
            write_h5(one, stage / f"{start}{name}")
            _check(out, {key: f"{start}{name}"}, one, at, by_file(stage / f"{start}{name}"))
    elif kind == "ants":
        form = field_then_linear(chain, fixed)
        _write_ants(out, form, stage, start, points)
        _note_sampling(out, f"{start}{WARP}", chain, form, points)
        _note_sampling(out, f"{start}{INVERSE_WARP}", inverse, form.inverse(), moved)
    elif kind == "elastix":
        for word, key, one, grid, at in (
            ("", "", chain, fixed, points),
            ("Inverse", "inverse_", inverse, moving, moved),
        ):
            _write_elastix(out, one, grid, stage, start, location, at, word, key)
    else:
        name = "Displacement{}.nrrd" if kind == "slicer" else "DisplacementField.nii.gz"
        name = "Displacement.nrrd" if kind == "slicer" else "DisplacementField.nii.gz"
        for key, ending, one, grid, at in (
            ("displacement", name, chain, fixed, points),
            ("inverse_displacement", f"Inverse{name}", inverse, moving, moved),
        ):
            whole = whole_field(one, grid)
            _write_field(whole, stage / f"{start}{ending}", ras=kind == "nifti")
            at = _within(whole.geometry, at)
            _check(out, {key: f"{start}{ending}"}, CompositeTransform((whole,)), at, by_file(stage / f"{start}{ending}"))
            _note_sampling(out, f"{start}{ending}", one, CompositeTransform((whole,)), at)
    return out


# --- one transform, one way ------------------------------------------------------------------------------------------


def save_transform(
    chain: CompositeTransform,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word users know
    reference: Geometry | None = None,
) -> tuple[list[Path], Written]:
    """Write a transform fixed → moving for another program, all files or none, and check what was written.

    Parameters
    ----------
    chain : fixed → moving.
    path : its name tells the format: ``.h5``, ``.tfm``, ``.txt``, ``.mat`` (linear only) are ITK transforms;
        ``.nii.gz``, ``.nrrd``, ``.mha``, ``.mhd`` displacement fields (LPS mm; NIfTI intent 1007);
        ``TransformParameters.N.txt`` elastix' files, numbered from 0 whatever N is. For ``format="ants"`` a prefix.
    format : one of `FORMATS`; ``"nifti"`` writes ``.nii.gz`` with RAS vectors and intent 1006.
    reference : a grid of fixed space, needed where the format cannot hold the chain as it is: one field on that grid is
        exact at its voxels.

    Returns
    -------
    paths : what was written; of elastix' files the last is the one to give transformix.
    written : the self-check, see `Written`.

    Raises
    ------
    InputError : a name that tells no format, or a conversion that cannot be exact without `reference`.
    OptionError : an unknown format.
    ItkNirError : a file that, read back, is not the transform.
    """
    name = os.fspath(path)
    match = _PARAMETERS.fullmatch(name)
    ending = next((e for e in (*_HDF, *_TEXT, ".mat", *_IMAGES) if name.lower().endswith(e)), None)
    if format is None and match is None and ending is None:
        raise InputError(
            f"{name}: the name tells no transform format; end it in .h5, .tfm, .nii.gz or .nrrd, or give one of "
            f"{', '.join(FORMATS)}"
        )
    kind = format or ("elastix" if match else "itk")
    check_format(kind, chain.dimension)
    if kind in _ENDINGS and (match or ending not in _ENDINGS[kind]):
        raise InputError(f"{name}: format {kind} needs a name that ends in {', '.join(_ENDINGS[kind])}")
    if kind == "ants" and ending is not None:
        raise InputError(f"{name}: ANTs has several files; give the start of their names, such as out/case_")
    if kind == "elastix" and match is None and ending is not None:
        raise InputError(
            f"{name}: elastix has several files; name the last TransformParameters.0.txt, or give a prefix"
        )

    chain = chain.simplified()
    points = random_points(_grid_of(chain, reference))
    out = Written()
    folder, start = split_prefix(match[1] if match else path)
    with all_or_none(folder) as stage:
        if kind == "elastix":
            if reference is None and chain.is_linear:
                raise _needs_reference(name, "a linear transform has no grid for transformix to resample on")
            grid = chain.fields[0].geometry if reference is None else reference
            _write_elastix(out, chain, grid, stage, start, folder, points, "", "")
        elif kind == "ants":
            exact = chain.is_linear or (isinstance(chain.transforms[0], DisplacementField) and len(chain.fields) == 1)
            if not exact and reference is None:
                raise _needs_reference(name, "ANTs' files hold one warp, then one affine; this chain has to be sampled")
            form = field_then_linear(chain, reference)
            _write_ants(out, form, stage, start, points)
            _note_sampling(out, f"{start}{WARP}", chain, form, points)
        elif ending in _IMAGES:
            only = chain.transforms[0] if len(chain.transforms) == 1 else None
            if reference is None and not isinstance(only, DisplacementField):
                raise _needs_reference(name, "the transform is more than one displacement field and has to be sampled")
            whole = only if isinstance(only, DisplacementField) and reference is None else None
            whole = whole or chain.displacement_on(reference or chain.fields[0].geometry)
            _write_field(whole, stage / start, ras=kind == "nifti")
            _check(out, {"transform": start}, CompositeTransform((whole,)), points, by_file(stage / start))
            _note_sampling(out, start, chain, CompositeTransform((whole,)), _within(whole.geometry, points))
        else:
            if ending == ".mat" and not chain.is_linear:
                raise InputError(f"{name}: ITK's .mat files hold linear transforms only; use .h5")
            if ending in _HDF:
                write_h5(chain, stage / start)
            else:
                _write_itk_file(chain, stage / start)
            _check(out, {"transform": start}, chain, points, by_file(stage / start))
    return [folder / n for n in out.files.values()], out


# --- each format -----------------------------------------------------------------------------------------------------


def _write_elastix(
    out: Written, chain: CompositeTransform, grid: Geometry, stage: Path, start: str, location: Path, points: Points, word: str,
    key: str,
) -> None:  # fmt: skip
    stem = f"{word}DeformationField"
    files = write_elastix(
        chain, f"{stage}/{start}", grid, location=location, field_name=stem, name=f"{word}TransformParameters"
    )
    for image in sorted(p.name for p in stage.iterdir() if p.name.startswith(f"{start}{stem}")):
        number = image[len(start + stem) : -len(".mha")].replace(".", "_")
        out.files[f"{key}field{number}"] = image
    for place, path in enumerate(files[:-1]):
        out.files[f"{key}transform_{place}"] = path.name
    _check(out, {f"{key}transform": files[-1].name}, chain, points, by_elastix(files[-1]))


def _write_ants(out: Written, form: CompositeTransform, stage: Path, start: str, points: Points) -> None:
    write_ants(form, f"{stage}/{start}")
    warp, affine, inverse_warp = (f"{start}{name}" for name in (WARP, AFFINE, INVERSE_WARP))
    forward = by_file(stage / affine)
    linear = form.transforms[-1]
    assert isinstance(linear, LinearTransform)
    _check(out, {"affine": affine}, CompositeTransform((linear,)), points, forward)
    if form.is_linear:
        return
    there = by_file(stage / warp)
    _check(out, {"warp": warp}, form, points, lambda p: forward(there(p)))
    back = by_file(stage / inverse_warp)
    undo = _inverted(forward, form.dimension)
    _check(out, {"inverse_warp": inverse_warp}, form.inverse(), form.map(points), lambda p: back(undo(p)))


def _inverted(linear: Callable[[Points], Points], d: int) -> Callable[[Points], Points]:
    """What ANTs does with an affine file that it is told to invert."""
    origin = linear(np.zeros((1, d)))
    matrix = np.linalg.inv((linear(np.eye(d)) - origin).T)
    return lambda points: (points - origin) @ matrix.T


def _write_field(whole: DisplacementField, path: Path, *, ras: bool) -> None:
    if not ras:
        # Displacements hardly compress; where the name does not ask for it, time is worth more.
        save_image(whole.vectors, whole.geometry, path, compression=int(path.name.lower().endswith(".gz")))
        return
    # SimpleITK has no writer for RAS vectors: the header is set by hand.
    vectors = whole.vectors.copy()
    vectors[..., :2] *= -1
    plain = temporary_name(path.with_name(path.name.removesuffix(".gz")))
    try:
        save_image(vectors, whole.geometry, plain, compression=0)
        with open(plain, "r+b") as file:
            file.seek(68)
            file.write(struct.pack("<h", 1006))
        if path.name.lower().endswith(".gz"):
            with open(plain, "rb") as source, gzip.open(path, "wb", compresslevel=1) as packed:
                shutil.copyfileobj(source, packed, 1 << 22)
        else:
            os.replace(plain, path)
    finally:
        plain.unlink(missing_ok=True)


def _write_itk_file(chain: CompositeTransform, path: Path) -> None:
    import SimpleITK as sitk

    from itk_nir.transforms.as_simpleitk import to_sitk

    try:
        sitk.WriteTransform(to_sitk(chain), str(path))
    except RuntimeError as error:
        raise OSError(f"{path.name}: cannot be written ({one_line(error)})") from error


def _check(
    out: Written, files: dict[str, str], chain: CompositeTransform, points: Points, applied: Callable[[Points], Points]
) -> None:
    out.files.update(files)
    for name in files.values():
        out.differences[name] = largest_difference(chain, points, applied, name)


def _note_sampling(out: Written, name: str, chain: CompositeTransform, written: CompositeTransform, points: Points) -> None:
    """Keep how far a chain that was sampled for a file is from the chain itself, where it is at all."""
    if not len(points) or all(any(f is own for own in chain.fields) for f in written.fields):
        return
    out.sampling[name] = float(np.linalg.norm(written.map(points) - chain.map(points), axis=-1).max())


def _grid_of(chain: CompositeTransform, grid: Geometry | None) -> Geometry:
    """Where points are tried: inside the field that a fixed point meets first, else inside the given grid."""
    if isinstance(chain.transforms[0], DisplacementField):
        return chain.transforms[0].geometry
    if grid is None:
        return (
            chain.fields[0].geometry
            if chain.fields
            else Geometry.make([201] * chain.dimension, origin=[-100.0] * chain.dimension)
        )
    return grid


def _within(grid: Geometry, points: Points) -> Points:
    """The points between the outermost voxel centres."""
    index = grid.physical_to_index(points)
    return points[((index >= 0) & (index <= np.asarray(grid.size) - 1)).all(axis=1)]


def _needs_reference(name: str, reason: str) -> InputError:
    return InputError(f"{name}: {reason}; give the fixed image as the reference")

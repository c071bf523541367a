"""Deformations of other programs in NIfTI files, by what the intent in the header says that they are.

SPM's ``y_*.nii`` and NiftyReg's files have the intent 1007, as ANTs' warps, and hold something else: the positions (RAS
mm) that the voxels go to, RAS displacements, or control points.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images.nifti import Header, read_voxels, scaled
from itk_nir.transforms.as_simpleitk import from_sitk
from itk_nir.transforms.formats.base import needs_reference
from itk_nir.transforms.model import DisplacementField

F64 = NDArray[np.float64]

_VECTOR = 1007
#: NiftyReg's kinds of transforms, by the first parameter of the intent.
_NIFTYREG = (
    "a deformation field", "a displacement field", "cubic B-spline control points", "a velocity field (positions)",
    "a velocity field", "control points of a velocity", "linear spline control points",
)  # fmt: skip
_POSITIONS, _DISPLACEMENTS, _CONTROL_POINTS = 0, 1, 2
#: FSL's own intents: what the file holds and what makes a field of it.
_FSL = {
    2006: "a displacement field of FSL's FNIRT", 2007: "spline coefficients of FSL's FNIRT",
    2008: "cosine coefficients of FSL's FNIRT", 2009: "spline coefficients of FSL's FNIRT",
    2016: "spline coefficients of FSL's topup", 2017: "spline coefficients of FSL's topup",
    2018: "an off-resonance field of FSL's topup (Hz)",
}  # fmt: skip


@dataclass(frozen=True)
class Intent:
    """What the header of a NIfTI file says its values are.

    Attributes
    ----------
    code : int
        NIfTI's number.
    name : str
        The program's word.
    first : float
        The first parameter.
    about : str
        The description, in small letters.
    """

    code: int
    name: str
    first: float
    about: str = ""


def intent_of(path: Path, label: str) -> Intent | None:
    """Read the intent of a NIfTI file.

    Parameters
    ----------
    path : Path
        The file.
    label : str
        What opens every message.

    Returns
    -------
    Intent or None
        None where the file has no NIfTI header.

    Raises
    ------
    InputError
        A damaged gzip file.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            raw = file.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: damaged gzip file ({one_line(error)}); get a fresh copy") from error
    for order in "<>":
        if len(raw) >= 348 and struct.unpack_from(order + "i", raw)[0] == 348:
            code, first, name = (
                struct.unpack_from(order + "h", raw, 68)[0], struct.unpack_from(order + "f", raw, 56)[0], raw[328:344],
            )  # fmt: skip
        elif len(raw) >= 540 and struct.unpack_from(order + "i", raw)[0] == 540:
            code, first, name = (
                struct.unpack_from(order + "i", raw, 504)[0], struct.unpack_from(order + "d", raw, 80)[0], raw[508:524],
            )  # fmt: skip
        else:
            continue
        about = raw[148:228] if len(raw) < 540 or raw[344:347] in (b"n+1", b"ni1") else raw[240:320]
        words = [text.split(b"\0")[0].decode("latin-1").strip() for text in (name, about)]
        return Intent(code, words[0], first, words[1].lower())
    return None


def refuse_by_intent(intent: Intent, label: str) -> None:
    """Refuse files whose intent says that they are no displacements that can be read.

    Parameters
    ----------
    intent : Intent
        What the header says.
    label : str
        What opens the message.

    Raises
    ------
    InputError
        Fields and coefficients of FSL's, and velocities of SPM's DARTEL.
    """
    if "flow field" in intent.about:
        raise InputError(
            f"{label}: is a flow field, as of SPM's DARTEL (u_*.nii), whose vectors are velocities in voxels; make a "
            "deformation (y_*.nii) of it with SPM's Deformations"
        )
    if intent.code in _FSL:
        raise InputError(
            f"{label}: is {_FSL[intent.code]} (intent {intent.code}), which is in FSL's coordinates of two images; "
            "fnirtfileutils makes a field of coefficients, and wb_command -convert-warpfield -from-fnirt WARP MOVING "
            "-to-itk FIELD.nii.gz an LPS field of that, which can be read"
        )


def read_by_intent(
    path: Path, intent: Intent, reference: Geometry | None, label: str
) -> DisplacementField | None:  # fmt: skip
    """Read the files of SPM and NiftyReg.

    Parameters
    ----------
    path : Path
        The file.
    intent : Intent
        What its header says.
    reference : Geometry or None
        The fixed image's grid, on which control points are sampled.
    label : str
        What opens every message.

    Returns
    -------
    DisplacementField or None
        Fixed -> moving, LPS mm; None where the intent is neither program's.

    Raises
    ------
    InputError
        A kind of file that cannot be read, a damaged one, or control points without a reference.
    """
    name = intent.name.lower()
    if intent.code != _VECTOR or not (name == "mapping" or name.startswith("nreg")):
        return None
    kind = _POSITIONS if name == "mapping" else int(intent.first) if np.isfinite(intent.first) else -1
    if name not in ("mapping", "nreg_trans") or not 0 <= kind <= _CONTROL_POINTS:
        what = _NIFTYREG[kind] if name == "nreg_trans" and 0 <= kind < len(_NIFTYREG) else f"of kind {intent.name!r}"
        raise InputError(
            f"{label}: a file of NiftyReg, {what} (intent_p1 {intent.first:g}), cannot be read; reg_transform -def "
            "makes a deformation field of it"
        )
    header, stored = read_voxels(path, label) or (None, None)
    if header is None or stored is None:
        raise InputError(f"{label}: its values are no real numbers, as a field's are; get a fresh copy")
    grid = _grid(header, label)
    d = grid.dimension
    if stored.size != d * int(np.prod(grid.size)):
        raise InputError(f"{label}: has the size {header.shape}; a {d}D field has {d} values a voxel, in the 5th axis")
    values = scaled(header, stored, np.dtype(np.float64)).reshape(d, *grid.shape)
    vectors = np.moveaxis(values, 0, -1) * np.array([-1.0, -1.0, 1.0])[:d]
    if kind == _DISPLACEMENTS:
        return DisplacementField(grid, vectors)
    vectors = vectors - grid.grid()
    if kind == _POSITIONS:
        return DisplacementField(grid, vectors)
    if reference is None:
        raise needs_reference(label, "NiftyReg's control points have to be sampled")
    return _spline_on(vectors, grid, reference)


def _grid(header: Header, label: str) -> Geometry:
    """The grid as SPM and NiftyReg take it: the sform where there is one."""
    ras = header.sform if header.sform is not None else header.qform
    shape = [*header.shape, 1, 1, 1, 1, 1][:5]
    d = 2 if shape[2] == 1 and shape[4] == 2 else 3
    if ras is None or shape[3] != 1 or shape[4] != d:
        raise InputError(
            f"{label}: has the size {'x'.join(map(str, header.shape))} and orientation codes {header.qform_code}, "
            f"{header.sform_code}; a field is (x, y, z, 1, 3) with an orientation"
        )
    lps = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras)[:3, [*range(d), 3]][:d]
    spacing = np.linalg.norm(lps[:, :d], axis=0)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            return Geometry.make(shape[:d], spacing, lps[:, d], lps[:, :d] / spacing)
    except ValueError as error:
        raise InputError(f"{label}: its grid cannot be used ({one_line(error)})") from error


def _spline_on(displacements: F64, grid: Geometry, reference: Geometry) -> DisplacementField:
    """A cubic B-spline of the displacements of control points, sampled.

    Control points beyond the file's move as the nearest one does, which is what NiftyReg takes for them.
    """
    import SimpleITK as sitk

    d = grid.dimension
    if reference.dimension != d:
        raise InputError(f"control points are {d}D but the reference is {reference.dimension}D; give its fixed image")
    index = grid.physical_to_index(reference.corners())
    before = np.maximum(0, 2 - np.floor(index.min(axis=0))).astype(int)
    after = np.maximum(0, np.ceil(index.max(axis=0)) + 3 - np.asarray(grid.size)).astype(int)
    padded = np.pad(displacements, [*zip(before[::-1], after[::-1], strict=True), (0, 0)], mode="edge")
    size = np.asarray(grid.size) + before + after
    wide = grid.crop((-before).tolist(), size.tolist())
    spline = sitk.BSplineTransform(d, 3)
    fixed: list[Any] = [*map(float, wide.size), *wide.origin, *wide.spacing, *wide.rotation.ravel().tolist()]
    spline.SetFixedParameters(fixed)
    spline.SetParameters(np.moveaxis(padded, -1, 0).ravel().tolist())
    (field,) = from_sitk(spline, reference).fields
    return field

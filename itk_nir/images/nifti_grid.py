"""Where a NIfTI image lies: the choice between its sform, its qform and nothing, as nibabel, SPM and FSL make it.

The sform is taken where its code is above 0, else the qform where its code is, else the orientation is unknown. ITK's
rule is another one: it prefers a qform to an sform of a code above 1, it takes the spacing from ``pixdim`` in every
case, and it turns metres and micrometres into millimetres. Whatever is odd is told, with the matrix that was used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.findings import Finding, warning
from itk_nir.images.grids import RAS_TO_LPS, is_usable
from itk_nir.images.nifti_header import Header, qform_matrix

#: Names of the units of length that are not mm.
_UNITS = {1: "metres", 3: "micrometres"}
#: A column of the sform may differ from ``pixdim`` by this share: it is rounding.
_LENGTHS = 1e-3


@dataclass(frozen=True, eq=False)
class Orientation:
    """What a header says of the place of its voxels.

    Attributes
    ----------
    matrix : numpy.ndarray
        ``(4, 4)``, voxel index -> LPS.
    source : {"sform", "qform", "neither"}
        Where it is from.
    code : int
        NIfTI's number of the space; 0 for neither.
    findings : tuple of Finding
        What is odd.
    """

    matrix: NDArray[np.float64]
    source: str
    code: int
    findings: tuple[Finding, ...]


def orientation(header: Header, label: str) -> Orientation:
    """Read where the voxels of a header lie.

    Parameters
    ----------
    header : Header
        Of a NIfTI or Analyze file.
    label : str
        What opens every message.

    Returns
    -------
    Orientation

    Raises
    ------
    InputError
        No usable matrix where the header says that there is one.
    """
    found: list[Finding] = []
    steps = _steps(header, label, found)
    axes = min(len(header.size), 3)
    sform, qform = header.sform, _qform(header, steps)
    if header.units in _UNITS:
        name = _UNITS[header.units]
        found.append(
            warning(
                f"{label}: its header says that lengths are in {name}",
                "the numbers are used as they are, as nibabel does; ITK converts them to mm",
                units=name,
            )
        )
    if sform is not None and not is_usable(sform, axes):
        if qform is None:
            raise InputError(
                f"{label}: its sform (code {header.sform_code}) is singular or not finite and there is no qform that "
                "could be used; mend its header"
            )
        found.append(
            warning(f"{label}: its sform (code {header.sform_code}) is singular or not finite", "the qform is used")
        )
        sform = None
    if sform is not None:
        found += [*_unlike(header, sform, qform, label), *_lengths(header, sform, label)]
        return Orientation(RAS_TO_LPS @ sform, "sform", header.sform_code, tuple(found))
    if qform is not None:
        return Orientation(RAS_TO_LPS @ qform, "qform", header.qform_code, tuple(found))
    if header.qform_code > 0:
        raise InputError(
            f"{label}: its qform (code {header.qform_code}) is no rotation (quaternion {header.quaternion[:3]}, offset "
            f"{header.quaternion[3:]}) and there is no sform; mend its header"
        )
    why = "sform and qform codes are 0" if header.version else "an Analyze file has no orientation"
    found.append(
        warning(
            f"{label}: its header does not say how the object lies ({why})",
            "the axes are taken for left, back and up, as ITK does; give it an orientation if that is wrong",
            orientation="unknown",
        )
    )
    return Orientation(np.diag([*steps, 1.0]), "neither", 0, tuple(found))


def _steps(header: Header, label: str, found: list[Finding]) -> NDArray[np.float64]:
    """Lengths of the voxels by ``pixdim``, mended; what had to be is added to `found`, where it is used."""
    given = np.array([*header.pixdim[1:4]])[:3]
    axes = min(len(header.size), 3)
    # The step to the next slice means nothing where there is none.
    idle = np.array([*header.size, 1, 1, 1][:3]) == 1
    given[idle] = np.where(np.isfinite(given[idle]) & (given[idle] != 0), given[idle], 1.0)
    bad = ~np.isfinite(given)
    used = header.sform is None or not is_usable(header.sform, axes)
    if bad.any() and used:
        raise InputError(f"{label}: its voxel sizes (pixdim) are {_numbers(given)}; mend its header")
    steps = np.where(bad | (given == 0), 1.0, np.abs(given))
    if used and (steps != given).any():
        found.append(
            warning(f"{label}: its voxel sizes (pixdim) are {_numbers(given)}", f"{_numbers(steps)} mm are taken")
        )
    return steps


def _qform(header: Header, steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The qform as RAS; None where its code is 0 or its numbers are no rotation."""
    if header.qform_code <= 0:
        return None
    matrix = qform_matrix(header.quaternion, (header.pixdim[0], *steps))
    return matrix if matrix is not None and is_usable(matrix) else None


def _unlike(header: Header, sform: NDArray[np.float64], qform: NDArray[np.float64] | None, label: str) -> list[Finding]:
    """Say where the two orientations disagree."""
    if qform is None:
        return []
    size = np.array([*header.shape, 1, 1, 1][:3])
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1).reshape(-1, 3)
    gap = (sform - qform)[:3]
    distance = float(np.linalg.norm(corners @ gap[:, :3].T + gap[:, 3], axis=-1).max())
    voxel = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    # A float32 quaternion near half a turn is good to 3e-4 of a radian: what that moves a corner is no disagreement.
    extent = float(np.linalg.norm(sform[:3, :3] @ size))
    if distance <= max(0.25 * voxel, 5e-4 * extent):
        return []
    return [
        warning(
            f"{label}: its sform (code {header.sform_code}) and qform (code {header.qform_code}) differ by up to "
            f"{distance:.3g} mm",
            "the sform is used, as nibabel, SPM and FSL do",
            distance=distance,
        )
    ]


def _lengths(header: Header, sform: NDArray[np.float64], label: str) -> list[Finding]:
    """Say where the columns of the sform are no voxel of ``pixdim``."""
    axes = min(len(header.size), 3)
    lengths, given = np.linalg.norm(sform[:3, :axes], axis=0), np.array(header.pixdim[1 : axes + 1])
    with np.errstate(invalid="ignore"):
        if (np.abs(np.abs(given) - lengths) <= _LENGTHS * lengths).all():
            return []
    return [
        warning(
            f"{label}: its sform has voxels of {_numbers(lengths)} mm, its pixdim says {_numbers(given)}",
            "the sform is used, as nibabel, SPM and FSL do; ITK, ANTs and 3D Slicer take the sizes of pixdim",
            sform=[float(v) for v in lengths],
            pixdim=[float(v) for v in given],
        )
    ]


def _numbers(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{v:.6g}" for v in values)

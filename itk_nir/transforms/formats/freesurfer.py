"""FreeSurfer's linear transforms, ``.lta``: a matrix between two volumes whose geometries stand in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.transforms.formats.base import Spaces
from itk_nir.transforms.formats.matrices import FLIP, text_of
from itk_nir.transforms.model import CompositeTransform, LinearTransform

F64 = NDArray[np.float64]

_VOXELS, _RAS = 0, 1
_KINDS = {2: "TRANSFORM_ARRAY", 14: "REGISTER_DAT", 21: "LINEAR_CORONAL_RAS_TO_CORONAL_RAS"}
_GEOMETRY = ("voxelsize", "xras", "yras", "zras", "cras")


@dataclass(frozen=True, eq=False)
class _Lta:
    kind: int
    matrix: F64
    source: dict[str, list[float]]
    target: dict[str, list[float]]


def read_lta(path: Path, spaces: Spaces, label: str) -> CompositeTransform:
    """Read a ``.lta`` of voxel or of RAS coordinates.

    FreeSurfer's maps run from the source (moving) to the destination (fixed) volume. Where both images are known and
    the file says that they are the other way round, so is the map.

    Parameters
    ----------
    path : Path
        The file.
    spaces : Spaces
        The grids of the two images where they are known.
    label : str
        What opens every message.

    Returns
    -------
    CompositeTransform
        Fixed -> moving, LPS mm.

    Raises
    ------
    InputError
        A damaged file, several transforms, or coordinates of another kind.
    """
    text = text_of(path)
    if text is None:
        raise InputError(f"{label}: damaged or no FreeSurfer .lta")
    lta = _parse(text, label)
    ras = lta.matrix
    if lta.kind == _VOXELS:
        ras = _voxels_to_ras(lta.target, label) @ ras @ np.linalg.inv(_voxels_to_ras(lta.source, label))
    try:
        forward = LinearTransform(FLIP @ ras @ FLIP)
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    turned = _is_of(lta.source, spaces.fixed) and _is_of(lta.target, spaces.moving)
    straight = _is_of(lta.source, spaces.moving) and _is_of(lta.target, spaces.fixed)
    return CompositeTransform((forward if turned and not straight else forward.inverse(),))


def _parse(text: str, label: str) -> _Lta:
    lines = [line.split("#")[0].strip() for line in text.split("\n")]
    if not text.endswith("\n"):
        raise InputError(f"{label}: its last line is not complete, as of a truncated file; get a fresh copy")
    entries = dict(re.findall(r"^(type|nxforms)\s*=\s*(-?\d+)$", "\n".join(lines), re.MULTILINE))
    try:
        kind, count = int(entries["type"]), int(entries["nxforms"])
        at = lines.index("1 4 4")
        matrix = np.array([[float(v) for v in line.split()] for line in lines[at + 1 : at + 5]])
        begins = [lines.index(f"{word} volume info") for word in ("src", "dst")]
        source, target = (_volume(lines[begin + 1 :]) for begin in begins)
    except (KeyError, ValueError) as error:
        raise InputError(f"{label}: damaged or no FreeSurfer .lta ({error})") from error
    if count != 1 or lines.count("1 4 4") != 1:
        raise InputError(f"{label}: holds {count} transforms; one can be read")
    if kind not in (_VOXELS, _RAS):
        raise InputError(
            f"{label}: is of type {kind} ({_KINDS.get(kind, 'unknown')}); types 0 (voxel to voxel) and 1 (RAS to RAS) "
            "can be read: lta_convert --outlta makes them"
        )
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError(f"{label}: damaged, its matrix is not 4x4 numbers")
    return _Lta(kind, matrix, source, target)


def _volume(lines: list[str]) -> dict[str, list[float]]:
    """The geometry that begins at the first line."""
    found: dict[str, list[float]] = {}
    for line in lines:
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            break
        if name != "filename":
            found[name] = [float(v) for v in value.split()]
    wrong = [k for k in ("valid", "volume", *_GEOMETRY) if len(found.get(k, ())) != (1 if k == "valid" else 3)]
    if wrong:
        raise ValueError(f"a volume lacks {', '.join(wrong)}")
    return found


def _voxels_to_ras(volume: dict[str, list[float]], label: str) -> F64:
    if volume["valid"] != [1]:
        raise InputError(f"{label}: maps voxels, but the geometry of a volume is not valid; lta_convert can add it")
    matrix = np.eye(4)
    axes = np.stack([volume["xras"], volume["yras"], volume["zras"]], axis=1)
    matrix[:3, :3] = axes * np.asarray(volume["voxelsize"])
    matrix[:3, 3] = np.asarray(volume["cras"]) - matrix[:3, :3] @ (np.asarray(volume["volume"]) / 2)
    return matrix


def _is_of(volume: dict[str, list[float]], grid: Geometry | None) -> bool:
    """Whether a geometry of the file is that of an image, to a tenth of a voxel."""
    if (
        grid is None
        or grid.dimension != 3
        or volume["valid"] != [1]
        or volume["volume"] != [float(n) for n in grid.size]
    ):
        return False
    ours = FLIP @ grid.matrix
    theirs = _voxels_to_ras(volume, "")
    ends = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*grid.size, 1]
    return bool(np.abs(ends @ (ours - theirs).T).max() < 0.1 * min(grid.spacing))

"""Linear transforms of other programs that are a few numbers in a text file.

A 4x4 matrix in text says neither in which coordinates nor in which direction it maps, so its convention has to be given
(`CONVENTIONS`), unless the file tells it: MRtrix' comment lines, AFNI's ``.aff12.1D``, the ``.xfm`` of MINC and
FreeSurfer.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, OptionError, warn_caller
from itk_nir.geometry import Geometry
from itk_nir.transforms.formats.base import Spaces
from itk_nir.transforms.model import CompositeTransform, LinearTransform

F64 = NDArray[np.float64]

#: The convention of a field image whose values are displacements in LPS mm, whatever they look like.
DISPLACEMENTS = "displacements"
#: What a user calls a convention -> the coordinates of the matrix. ``lps`` and ``ras`` map fixed to moving points in
#: mm; ``fsl`` maps FLIRT's moving to its fixed ("ref") coordinates, voxels scaled to mm.
CONVENTIONS = {
    "lps": "lps", "itk": "lps", "afni": "lps",
    "ras": "ras", "greedy": "ras", "c3d": "ras", "niftyreg": "ras", "mrtrix": "ras",
    "fsl": "fsl", "flirt": "fsl",
    DISPLACEMENTS: "",
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
#: Longer files hold something else than one matrix.
_LONGEST = 1 << 16
#: LPS <-> RAS.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def check_convention(name: str | None) -> None:
    """Refuse a convention that does not exist.

    Parameters
    ----------
    name : str or None
        What the user gave.

    Raises
    ------
    OptionError
        It is none of `CONVENTIONS`.
    """
    if name is not None and (not isinstance(name, str) or name not in CONVENTIONS):
        raise OptionError(f"convention is one of {', '.join(CONVENTIONS)}, got {name!r}")


def text_of(path: Path) -> str | None:
    """Give the content of a short text file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str or None
        None for a long file, or one that is no text. Names of files in it may be in any encoding: bytes that are no
        UTF-8 are kept as surrogates, and a byte order mark is left out. Every line ends with a line feed.
    """
    with open(path, "rb") as file:
        raw = file.read(_LONGEST + 1)
    if len(raw) > _LONGEST or b"\0" in raw:
        return None
    return re.sub(r"\r\n?", "\n", raw.decode("utf-8-sig", "surrogateescape"))


def is_matrix_file(path: Path) -> bool:
    """Tell whether a file is rows of numbers in text, with comment lines (``#``) or without.

    Parameters
    ----------
    path : Path
        An existing file.

    Returns
    -------
    bool
        Whether it is; one that begins so and goes wrong later is.
    """
    lines = _lines(text_of(path) or "")
    return bool(lines) and all(_NUMBER.fullmatch(cell) for cell in lines[0])


def read_matrix_file(path: Path, spaces: Spaces, label: str) -> CompositeTransform:
    """Read a linear transform that is a matrix in text.

    Parameters
    ----------
    path : Path
        The file.
    spaces : Spaces
        The convention where the file does not tell it, and for FSL's the grids of both images.
    label : str
        What opens every message.

    Returns
    -------
    CompositeTransform
        Fixed -> moving, LPS mm.

    Raises
    ------
    InputError
        No matrix, a convention that is not known, or one that needs the images and does not have them.
    """
    text = text_of(path)
    if text is None:
        raise InputError(f"{label}: is no text with a matrix; give a transform file of another kind its own ending")
    comments = "\n".join(line for line in text.split("\n") if line.lstrip().startswith("#")).lower()
    told = _told(path, comments, label)
    rows = _lines(text)
    if told == "afni" and len(rows) > 1 and all(len(row) == 12 for row in rows):
        raise InputError(
            f"{label}: holds {len(rows)} matrices, one a volume of a series; cut out the row that you want"
        )
    matrix = _matrix(rows, label, ends=text.endswith("\n"))
    return from_matrix(matrix, spaces, label, told)


def from_matrix(matrix: F64, spaces: Spaces, label: str, told: str | None = None) -> CompositeTransform:
    """Make a transform of a homogeneous matrix in some convention.

    Parameters
    ----------
    matrix : numpy.ndarray
        ``(d + 1, d + 1)``.
    spaces : Spaces
        The convention, and for FSL's the grids of both images.
    label : str
        What opens every message.
    told : str, optional
        The convention that the file itself tells; it is not asked for.

    Returns
    -------
    CompositeTransform
        Fixed -> moving, LPS mm.

    Raises
    ------
    InputError
        As `read_matrix_file`.
    """
    convention = told or spaces.convention
    if convention in (None, DISPLACEMENTS):
        raise InputError(
            f"{label}: is a matrix in text, which tells neither its coordinates nor its direction; give its convention "
            "(convention= of load_transform, --convention of itk-nir convert and apply): fsl (FLIRT; needs the "
            "reference and the moving image), ras (greedy, c3d, NiftyReg, MRtrix), lps (this package, AFNI); all but "
            "fsl are fixed -> moving in mm"
        )
    frame = CONVENTIONS[str(convention)]
    if frame == "fsl":
        m = _from_flirt(matrix, spaces, label)
    elif frame == "ras":
        flip = FLIP if len(matrix) == 4 else np.diag([-1.0, -1.0, 1.0])
        m = flip @ matrix @ flip
    else:
        m = matrix
    if convention == "afni":
        _refuse_oblique(spaces, label)
    try:
        return CompositeTransform((LinearTransform(m),))
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


def read_xfm(path: Path, label: str) -> CompositeTransform:
    """Read a linear MNI transform file: of MINC or FreeSurfer (moving -> fixed in RAS mm), or as ITK writes it.

    Parameters
    ----------
    path : Path
        The file.
    label : str
        What opens every message.

    Returns
    -------
    CompositeTransform
        Fixed -> moving, LPS mm.

    Raises
    ------
    InputError
        A damaged file, more than one transform, or one that is not linear.
    """
    text = text_of(path)
    if text is None or not text.startswith("MNI Transform File"):
        raise InputError(f"{label}: damaged or no MNI transform file (its first line is 'MNI Transform File')")
    lines = text.split("\n")
    body = " ".join(line for line in lines[1:] if not line.lstrip().startswith("%"))
    kinds = re.findall(r"Transform_Type\s*=\s*(\w+)\s*;", body)
    if kinds != ["Linear"]:
        what = ", ".join(kinds) or "no whole transform"
        raise InputError(
            f"{label}: holds {what}; one linear transform can be read (xfmconcat joins linear ones; minc_displacement "
            "makes a field of others)"
        )
    found = re.fullmatch(
        r"\s*Transform_Type\s*=\s*Linear\s*;\s*(Invert_Flag\s*=\s*(\w+)\s*;)?\s*Linear_Transform\s*=([^;=]*);\s*", body
    )
    cells = found[3].split() if found else []
    if found is None or len(cells) != 12 or not all(_NUMBER.fullmatch(c) for c in cells):
        raise InputError(f"{label}: damaged, its Linear_Transform is not 12 numbers and a semicolon")
    m = np.vstack([np.array(cells, float).reshape(3, 4), [0, 0, 0, 1]])
    try:
        linear = LinearTransform(m)
        # ITK writes its own map under that name; everybody else the way of the moving image, in RAS.
        if not any(line.startswith("%ITK") for line in lines):
            linear = LinearTransform(FLIP @ m @ FLIP).inverse()
        return CompositeTransform((linear.inverse() if (found[2] or "").lower() == "true" else linear,))
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


def _lines(text: str) -> list[list[str]]:
    # Not `splitlines`: a comment may hold what Python takes for the end of a line.
    kept = (line.strip() for line in text.split("\n"))
    return [re.split(r"[\s,;]+", line.rstrip(",;")) for line in kept if line and not line.startswith("#")]


def _told(path: Path, comments: str, label: str) -> str | None:
    """The convention that a file tells by its name or its comments."""
    name = path.name.lower()
    if ("parameters" in comments and "3d" in comments) or name.endswith(".param.1d"):
        raise InputError(
            f"{label}: holds AFNI's parameters (shifts, angles, scales), no matrix; save the matrix with "
            "-1Dmatrix_save, or cat_matvec makes it"
        )
    if name.endswith(".aff12.1d") or "matrices (dicom-to-dicom" in comments:
        return "afni"
    return "mrtrix" if "command_history" in comments else None


def _matrix(rows: list[list[str]], label: str, ends: bool) -> F64:
    """The homogeneous matrix, from rows of cells; `ends` tells whether the file ends in a line end."""
    bad = next((cell for row in rows for cell in row if not _NUMBER.fullmatch(cell)), None)
    if bad is not None:
        raise InputError(f"{label}: damaged or no matrix in text, {bad!r} is no number")
    sizes = [len(row) for row in rows]
    if sizes in ([12], [4, 4, 4]):
        if not ends:
            raise InputError(f"{label}: its last line is not complete, as of a truncated file; get a fresh copy")
        return np.vstack([np.array([cell for row in rows for cell in row], float).reshape(3, 4), [0, 0, 0, 1]])
    d = len(rows) - 1
    if d not in (2, 3) or sizes != [d + 1] * (d + 1):
        raise InputError(
            f"{label}: has rows of {', '.join(map(str, sizes[:6]))} numbers; a linear transform is 4x4 (2D: 3x3), and "
            "fewer are what a truncated file has"
        )
    return np.array(rows, float)


def _from_flirt(matrix: F64, spaces: Spaces, label: str) -> F64:
    """Fixed -> moving, LPS mm, of a FLIRT matrix.

    Warns
    -----
    UserWarning
        A grid that does not tell whether its image has an orientation, and lies as if it had none.
    """
    if spaces.fixed is None or spaces.moving is None:
        raise InputError(
            f"{label}: FSL's matrices are in coordinates of both images; give the fixed one (reference=, --reference: "
            "FLIRT's -ref) and the moving one (moving=, --moving: FLIRT's -in)"
        )
    if spaces.fixed.dimension != 3 or spaces.moving.dimension != 3 or len(matrix) != 4:
        raise InputError(f"{label}: FSL's matrices are 4x4 and of 3D images")
    for role, grid in (("reference", spaces.fixed), ("moving", spaces.moving)):
        # Images in memory have forgotten whether their header said anything, and FSL mirrors those whose did not.
        if grid.oriented and np.array_equal(grid.rotation, np.eye(3)) and not np.any(grid.origin):
            warn_caller(
                f"{label}: the {role} image lies as images without an orientation (sform and qform codes 0) are read; "
                "if it has none, the map is mirrored along x: give it one (fslorient) and run FLIRT again"
            )
    try:
        back = LinearTransform(matrix).inverse().matrix
    except InputError as error:
        raise InputError(f"{label}: {error}") from error
    return _from_fsl(spaces.moving) @ back @ np.linalg.inv(_from_fsl(spaces.fixed))


def _from_fsl(grid: Geometry) -> F64:
    """FSL's coordinates of an image -> LPS mm: voxels times spacing, counted from the other side along x where the axes
    are right-handed ("neurological"); those of images without orientation it takes for left-handed."""
    to_index = np.diag([*(1 / np.asarray(grid.spacing)), 1.0])
    if grid.oriented and np.linalg.det(grid.rotation) > 0:
        to_index[0] *= -1
        to_index[0, 3] = grid.size[0] - 1
    return np.asarray(grid.matrix @ to_index)


def _refuse_oblique(spaces: Spaces, label: str) -> None:
    """AFNI leaves the obliquity of a grid out of its coordinates."""
    for grid in (spaces.fixed, spaces.moving):
        if grid is not None and np.abs(np.abs(grid.rotation) - np.rint(np.abs(grid.rotation))).max() > 1e-3:
            raise InputError(
                f"{label}: AFNI takes oblique images as if their axes were along x, y and z, so its matrix does not "
                "fit their place; run AFNI again on images from 3dWarp -deoblique"
            )

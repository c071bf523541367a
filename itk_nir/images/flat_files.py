"""2D files of planes that ITK cannot place: coronal, sagittal, oblique ones, of which two coordinates say too little.

They are read as the single slices in 3D that they are.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.findings import warning
from itk_nir.geometry import Geometry
from itk_nir.images.volume import Volume

#: A plane whose normal has at least this share along z is axial: 0.08 degrees.
_AXIAL = 1 - 1e-6
#: The matrix of a MetaImage file, by any of its names.
_MATRIX = re.compile(rb"^(TransformMatrix|Rotation|Orientation)\s*=\s*([^\r\n]*)", re.MULTILINE)


def axes_leave_xy(matrix: NDArray[np.float64]) -> bool:
    """Whether the plane of the first two axes of a grid is another than the axial one.

    Parameters
    ----------
    matrix : ndarray
        ``(4, 4)``, index to RAS or LPS.

    Returns
    -------
    bool
        False as well where the two axes span no plane.
    """
    normal = np.cross(matrix[:3, 0], matrix[:3, 1])
    length = float(np.linalg.norm(normal))
    return bool(np.isfinite(length) and length > 0 and abs(normal[2]) < _AXIAL * length)


def read_flat_meta(file: Path, label: str) -> Volume | None:
    """Read a 2D MetaImage file of a plane that is not axial.

    Its matrix has lost one of its two axes, which has no length in the two coordinates that are left.

    Parameters
    ----------
    file : Path
        Exists.
    label : str
        What opens every message.

    Returns
    -------
    Volume or None
        A single slice in 3D, of the file's pixel type; None for every other file.

    Raises
    ------
    InputError
        Such a file that is damaged.
    """
    import SimpleITK as sitk

    data = file.read_bytes() if file.suffix.lower() == ".mha" else file.read_bytes()[:65536]
    found = _MATRIX.search(data[:65536])
    if found is None:
        return None
    try:
        rows = np.array([float(x) for x in found[2].split()])
    except ValueError:
        return None
    if rows.size != 4 or abs(np.linalg.det(rows.reshape(2, 2))) > 1e-6:
        return None
    axes = np.zeros((3, 2))
    axes[:2] = rows.reshape(2, 2).T
    lengths = np.linalg.norm(axes, axis=0)
    if sorted(np.round(lengths, 3)) != [0, 1]:
        return None
    axes[2, int(lengths.argmin())] = 1
    with tempfile.TemporaryDirectory() as folder:
        # With any other matrix ITK reads it; a header with its voxels elsewhere names them from here.
        copy = Path(folder) / f"copy{file.suffix.lower()}"
        head, rest = data[: found.start(2)], data[found.end(2) :]
        rest = re.sub(
            rb"^(ElementDataFile\s*=\s*)(?!LOCAL|LIST)(\S[^\r\n]*)",
            lambda m: m[1] + str(file.parent.absolute() / m[2].decode()).encode(), rest, count=1, flags=re.MULTILINE,
        ) if file.suffix.lower() == ".mhd" else rest  # fmt: skip
        copy.write_bytes(head + b"1 0 0 1" + rest)
        try:
            image = sitk.ReadImage(str(copy))
        except RuntimeError as error:
            raise InputError(f"{label}: cannot be read, damaged or truncated ({one_line(error)})") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        return None
    told = warning(
        f"{label}: its direction has lost one of its two axes, so it is no axial plane",
        "that axis is taken to run along z; write the slice as a 3D image to keep its place",
    )
    columns = axes * np.asarray(image.GetSpacing())
    volume = slice_in_space(label, sitk.GetArrayFromImage(image), columns, [*image.GetOrigin(), 0.0])
    return replace(volume, findings=(told,))


def slice_in_space(label: str, array: NDArray[Any], columns: NDArray[np.float64], origin: Any) -> Volume:
    """A 2D array as the single slice in 3D that it is.

    Parameters
    ----------
    label : str
        What to call it in messages.
    array : numpy.ndarray
        ``(H, W)``.
    columns : numpy.ndarray
        ``(3, 2)``, the steps along its two axes, LPS mm.
    origin : array_like
        ``(3,)``, where its first pixel lies, LPS mm.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        Axes that are not perpendicular.
    """
    spacing = np.linalg.norm(columns, axis=0)
    unit = columns / spacing
    if abs(float(unit[:, 0] @ unit[:, 1])) > 1e-3:
        raise InputError(f"{label}: its two axes are not perpendicular; resample it to a perpendicular grid first")
    direction = np.column_stack([unit, np.cross(unit[:, 0], unit[:, 1])])
    left, _, right = np.linalg.svd(direction)
    geometry = Geometry.make([*array.shape[::-1], 1], [*spacing, 1.0], origin, left @ right)
    return Volume(array[None], geometry, label, "path", array.dtype)

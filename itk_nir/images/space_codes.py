"""NIfTI files with another space code than ITK's writer knows: it always writes 1."""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from itk_nir.geometry import Geometry
from itk_nir.images.convert import to_sitk

#: Where the codes of qform and sform are in a header.
_CODES = 252


def write_with_code(array: NDArray[Any], geometry: Geometry, path: Path, compression: int, code: int) -> None:
    """Write a NIfTI file.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape``, or with several values a pixel in a last axis.
    geometry : Geometry
        The grid.
    path : Path
        Ends in ``.nii`` or ``.nii.gz``.
    compression : int
        Level of gzip for the latter, 1 to 9.
    code : int
        The number of the space, for both forms.

    Raises
    ------
    RuntimeError
        ITK's, for an array that it does not write.
    """
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain = Path(folder) / "image.nii"
        sitk.WriteImage(to_sitk(array, geometry), str(plain))
        with open(plain, "r+b") as file:
            file.seek(_CODES)
            file.write(struct.pack("=2h", code, code))
        with open(plain, "rb") as source, open(path, "wb") as raw:
            if not path.name.lower().endswith(".gz"):
                shutil.copyfileobj(source, raw)
                return
            # Without a name and a time in its header, the same image is the same file.
            with gzip.GzipFile("", "wb", compression or 1, raw, mtime=0) as target:
                shutil.copyfileobj(source, target, 1 << 20)

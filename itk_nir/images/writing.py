"""Images as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from itk_nir.atomic import replacing
from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images.convert import to_sitk
from itk_nir.images.space_codes import write_with_code


def save_image(
    array: NDArray[Any],
    geometry: Geometry,
    path: str | os.PathLike[str],
    *,
    compression: int = 1,
    space_code: int = 1,
) -> None:
    """Write an image; the file appears complete or not at all.

    Parameters
    ----------
    array : numpy.ndarray
        ``geometry.shape`` scalars, or ``geometry.shape + (d,)`` vectors (LPS mm; in NIfTI files with intent 1007, as
        ANTs writes its warps).
    geometry : Geometry
        The grid.
    path : str or os.PathLike
        Its suffix chooses the format.
    compression : int, default 1
        Level of gzip, 1 to 9, for formats that have it; 0 writes uncompressed where the format allows.
    space_code : int, default 1
        NIfTI's number of the space that the coordinates refer to; other formats have none.

    Raises
    ------
    InputError
        No such folder, or a suffix that no writer knows.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from itk_nir.images import load_image
    >>> file = Path(tempfile.mkdtemp()) / "ramp.nii.gz"
    >>> save_image(np.arange(12, dtype=np.float32).reshape(3, 4), Geometry.make([4, 3], spacing=[0.5, 2.0]), file)
    >>> load_image(file, "image").geometry.spacing
    (0.5, 2.0)
    """
    import SimpleITK as sitk

    target = Path(path)
    with replacing(target) as temporary:
        if space_code != 1 and target.name.lower().endswith((".nii", ".nii.gz")):
            write_with_code(array, geometry, temporary, compression, space_code)
            return
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(temporary))
        writer.SetUseCompression(compression > 0)
        writer.SetCompressionLevel(compression or -1)
        try:
            writer.Execute(to_sitk(array, geometry))
        except RuntimeError as error:
            raise InputError(f"{target}: cannot be written ({one_line(error)}); try .nii.gz, .mha or .nrrd") from error

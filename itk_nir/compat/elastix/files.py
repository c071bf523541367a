"""What elastix leaves behind: parameter maps of the result, their files, the image and its pixel type."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from itk_nir.atomic import all_or_none
from itk_nir.compat.elastix.options import PIXELS
from itk_nir.compat.elastix.parameters import Request
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.transforms.formats.elastix import ParameterMap, as_text, parameter_maps
from itk_nir.transforms.model import CompositeTransform


def as_pixel_type(values: NDArray[Any], pixel_type: DTypeLike) -> NDArray[Any]:
    """Convert resampled values to a pixel type.

    Parameters
    ----------
    values : ndarray
        Floating-point values.
    pixel_type : dtype_like
        What they become.

    Returns
    -------
    ndarray of `pixel_type`
        Of the shape of `values`: rounded and clipped to the limits of an integer type, above 0.5 for bool.
    """
    dtype: np.dtype[Any] = np.dtype(pixel_type)
    if dtype.kind == "b":
        return values > 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        # In double: float32 does not hold the largest integers.
        return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def result_maps(mapping: CompositeTransform, request: Request, grid: Geometry) -> list[ParameterMap]:
    """Express a result as parameter maps, with its displacement fields in a temporary folder.

    Parameters
    ----------
    mapping : CompositeTransform
        Fixed → moving, LPS mm.
    request : Request
        How transformix shall resample.
    grid : Geometry
        What transformix resamples on (the fixed image's).

    Returns
    -------
    list of dict of str to list of str
        One a transform, first applied first. The files that they name are removed when Python ends.
    """
    return _with_output(parameter_maps(mapping, temporary_folder(), grid), request)


def write_result(
    mapping: CompositeTransform, folder: str | os.PathLike[str], request: Request, warped: NDArray[Any], grid: Geometry
) -> list[ParameterMap]:
    """Write transform files and image as elastix leaves them in its output directory, all or none.

    Parameters
    ----------
    mapping : CompositeTransform
        Fixed → moving, LPS mm.
    folder : path
        An existing folder for ``TransformParameters.N.txt``, the displacement fields they name, and
        ``result.N.FORMAT``.
    request : Request
        Whether an image is wanted, of which pixel type and format, and how transformix shall resample.
    warped : ndarray, shape ``grid.shape``
        The resampled moving image.
    grid : Geometry
        The fixed grid.

    Returns
    -------
    list of dict of str to list of str
        One a transform, first applied first; they name the displacement fields by absolute path.

    Raises
    ------
    InputError
        A format of images that no writer knows, or a path that elastix' files cannot hold.
    """
    where = Path(os.path.abspath(folder))
    with all_or_none(where) as stage:
        maps = _with_output(parameter_maps(mapping, stage, grid, location=where), request)
        for number, one in enumerate(maps):
            before = str(where / f"TransformParameters.{number - 1}.txt") if number else "NoInitialTransform"
            names = {key: [before] for key in one if key.startswith("InitialTransformParameter")}
            text = as_text({**one, **names})
            (stage / f"TransformParameters.{number}.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
        if request.write_image:
            last = maps[-1]
            image = as_pixel_type(warped, PIXELS[last["ResultImagePixelType"][0]])
            name = f"result.{len(maps) - 1}.{last['ResultImageFormat'][0]}"
            save_image(image, grid, stage / name, compression=5 if last["CompressResultImage"] == ["true"] else 0)
    return maps


def temporary_folder() -> Path:
    """Make a new folder for one result; all those of a process are removed when it ends.

    Returns
    -------
    Path
        Under the system's temporary folder.
    """
    pid = os.getpid()  # a forked child must not remove its parent's
    if pid not in _folders:
        _folders[pid] = Path(tempfile.mkdtemp(prefix="itk-nir-elastix-"))
        atexit.register(_remove, _folders[pid], pid)
    return Path(tempfile.mkdtemp(prefix="result-", dir=_folders[pid]))


_folders: dict[int, Path] = {}


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def _with_output(maps: list[ParameterMap], request: Request) -> list[ParameterMap]:
    """The maps with the caller's wishes about the resampled image, which transformix then follows."""
    wishes = {name: list(values) for name, values in request.output.items()}
    return [{**one, **wishes} for one in maps]

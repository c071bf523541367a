"""What the program transformix does: images, points and Jacobians through transform parameter files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.atomic import all_or_none
from itk_nir.compat.elastix.options import PIXELS
from itk_nir.compat.elastix.points import read_point_file
from itk_nir.compat.elastix.resampling import Resampling, as_pixel_type, resampled, without_direction
from itk_nir.errors import InputError
from itk_nir.images import Volume, load_image, save_image
from itk_nir.transforms.formats.elastix.exact import Chain, read_chain

F64 = NDArray[np.float64]

#: Stems of the images that are written.
FIELD, DETERMINANT, MATRIX = "deformationField", "spatialJacobian", "fullSpatialJacobian"


def transformix(
    parameters: Any,
    folder: str | os.PathLike[str],
    *,
    image: Any = None,
    points: str | os.PathLike[str] | None = None,
    determinant: bool = False,
    matrix: bool = False,
    threads: int | None = None,
) -> list[Path]:
    """Apply transform parameters of elastix as its program transformix does.

    Parameters
    ----------
    parameters : path, itk.ParameterObject, mapping or list of mappings
        A ``TransformParameters.N.txt`` (``.toml``), or parameter maps.
    folder : path
        Existing; the files go there.
    image : image or path, optional
        Resampled on the grid that the parameters name, as they say: ``result.FORMAT``.
    points : path, optional
        A point file of elastix or a ``.vtk`` file, for ``outputpoints.txt`` or ``outputpoints.vtk``; ``"all"`` for the
        displacement at every voxel of the grid: ``deformationField.FORMAT``.
    determinant, matrix : bool
        Whether the Jacobian determinant and the Jacobian matrix of every voxel are wanted:
        ``spatialJacobian.FORMAT``, ``fullSpatialJacobian.FORMAT`` (rows one after the other).
    threads : int, optional
        CPU threads; all by default.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError
        Parameters, an image or points that cannot be used, or a folder that does not exist.
    OptionError
        An interpolator, pixel type or format that cannot be had.
    """
    chain = read_chain(parameters)
    how = Resampling.of(chain.parameters)
    if image is not None or determinant or matrix or (points is not None and os.fspath(points) == "all"):
        how.check_format()
    where = Path(os.path.abspath(folder))
    moving = None if image is None else load_image(image, "input image")
    if moving is not None and moving.dimension != chain.dimension:
        raise InputError(f"{moving.name}: is {moving.dimension}D, but the transform parameters are {chain.dimension}D")
    if moving is not None and not chain.uses_direction:
        moving = without_direction(moving)
    grid, written = chain.output_grid, []
    with all_or_none(where) as stage:

        def keep(array: NDArray[Any], stem: str) -> None:
            name = f"{stem}.{how.image_format}"
            save_image(array, grid, stage / name, compression=5 if how.compress else 0)
            written.append(where / name)

        if points is not None:
            if os.fspath(points) == "all":
                keep(chain.displacement().astype(np.float32), FIELD)
            else:
                name = _write_points(Path(points), chain, moving, stage)
                written.append(where / name)
        if determinant or matrix:
            jacobian = chain.jacobian()
            if determinant:
                keep(np.linalg.det(jacobian).astype(np.float32), DETERMINANT)
            if matrix:
                keep(jacobian.reshape(*grid.shape, -1).astype(np.float32), MATRIX)
        if moving is not None:
            seen = resampled(moving, chain.transform_on(chain.grid), chain.grid, how, threads)
            keep(as_pixel_type(seen, PIXELS[how.pixel_type or "short"]), _result_name(chain))
    return written


def _result_name(chain: Chain) -> str:
    return (chain.parameters.get("ResultImageName") or ["result"])[0]


def _write_points(file: Path, chain: Chain, moving: Volume | None, stage: Path) -> str:
    """Points through the transform, in the form of the file that they come in; the name of the new file."""
    if file.suffix.lower() == ".vtk":
        from itk_nir.points import load_points, save_points

        source = load_points(file, chain.dimension)
        save_points(source, chain.map(source.points), stage / "outputpoints.vtk")
        return "outputpoints.vtk"
    values, are_indices = read_point_file(file, chain.dimension, "points")
    grid = chain.grid
    index = _rounded(values) if are_indices else _rounded(grid.physical_to_index(values))
    # As transformix has it, an index is a whole number of voxels.
    start = grid.index_to_physical(index) if are_indices else values
    end = chain.map(start)
    columns = [index, start, _rounded(grid.physical_to_index(end)), end, (end - start).astype(np.float32)]
    names = ["InputIndex", "InputPoint", "OutputIndexFixed", "OutputPoint", "Deformation"]
    if moving is not None:
        names.append("OutputIndexMoving")
        columns.append(_rounded(moving.geometry.physical_to_index(end)))
    lines = []
    for number, row in enumerate(zip(*columns, strict=True)):
        parts = [f"{name} = [ {_numbers(values)} ]" for name, values in zip(names, row, strict=True)]
        lines.append("\t; ".join([f"Point\t{number}", *parts]) + "\n")
    (stage / "outputpoints.txt").write_text("".join(lines), encoding="utf-8")
    return "outputpoints.txt"


def _rounded(index: F64) -> NDArray[np.int64]:
    return np.floor(np.asarray(index) + 0.5).astype(np.int64)


def _numbers(values: NDArray[Any]) -> str:
    whole = values.dtype.kind == "i"
    return " ".join(str(int(v)) if whole else f"{v:.6f}" for v in values)

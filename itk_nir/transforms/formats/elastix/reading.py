"""elastix' results, from parameter files or objects, as transforms."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.transforms.as_simpleitk import to_sitk
from itk_nir.transforms.formats.elastix.parameters import (
    INITIAL,
    NONE,
    dimension_of,
    grid_entries,
    grid_of,
    initial_file,
    parse,
)
from itk_nir.transforms.formats.elastix.steps import field_first, locate, step_of
from itk_nir.transforms.formats.elastix.text import ParameterMap
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform


def read_elastix(source: Any, grid: Geometry | None = None, *, beside: bool = False) -> CompositeTransform:
    """Read what elastix wrote or returned.

    Translation, Euler, similarity, affine and displacement-field transforms come over as they are. B-splines, and
    transforms combined by ``Add``, are sampled: exact at the voxels of `grid`, interpolated linearly between them.
    Other classes are sampled by itk-elastix, if it is installed.

    Parameters
    ----------
    source : str, os.PathLike, itk.ParameterObject, mapping or list of mappings
        A ``TransformParameters.N.txt`` (those before it are found by the names in it), or parameter maps, first
        applied to last.
    grid : Geometry, optional
        Grid of fixed space to sample on; when left out, the one that the parameters name (the fixed image's), with a
        warning where it is needed.
    beside : bool, default False
        Look for the files that a file names beside it first (a copied or moved folder), then where it says.

    Returns
    -------
    CompositeTransform
        Fixed -> moving.

    Raises
    ------
    InputError
        Missing or damaged files, parameters that are wanting, or a class that needs itk-elastix.
    """
    maps = collect(source, beside)
    if not maps:
        raise InputError("elastix: no parameter map")
    with explained():
        return _composite(maps, grid, beside)


@contextmanager
def explained() -> Iterator[None]:
    """Tell what is wrong with parameters as an error that says so.

    Yields
    ------
    None

    Raises
    ------
    InputError
        Whatever failed within.
    """
    try:
        yield
    except (KeyError, IndexError) as error:
        raise InputError(f"elastix: the parameters lack {error}; give a complete TransformParameters file") from error
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"elastix: the parameters do not fit together ({one_line(error)})") from error


def _composite(maps: list[tuple[ParameterMap, Path | None]], grid: Geometry | None, beside: bool) -> CompositeTransform:
    last = maps[-1][0]
    d = dimension_of(last, grid)
    whole = CompositeTransform((LinearTransform.identity(d),))
    for number, (parameters, folder) in enumerate(maps):
        step: Any = step_of(parameters, folder, d, beside)
        if step is None:
            return by_transformix([m for m, _ in maps], _sampling_grid(grid, last))
        adds = number > 0 and parameters.get("HowToCombineTransforms", ["Compose"])[0] == "Add"
        if isinstance(step, CompositeTransform) and not adds:
            whole = CompositeTransform((*whole.transforms, *step.transforms)).simplified()
        else:
            whole = _sampled(whole, step, _sampling_grid(grid, parameters), adds)
    return CompositeTransform(field_first(whole.transforms))


def _sampling_grid(grid: Geometry | None, parameters: ParameterMap) -> Geometry:
    if grid is not None:
        return grid
    warnings.warn(
        f"elastix: a {parameters['Transform'][0]} is sampled on the grid that its parameters name (the fixed image's): "
        "exact at its voxels, linear in between",
        stacklevel=4,
    )
    return grid_of(parameters)


def _sampled(before: CompositeTransform, step: Any, grid: Geometry, adds: bool) -> CompositeTransform:
    """`before` and `step` (one of ours or of SimpleITK's) as a field on `grid`, then the linear part of `before`."""
    import SimpleITK as sitk

    if adds:
        shift = step.displacement_on(grid) if isinstance(step, CompositeTransform) else on_grid(step, grid)
        return CompositeTransform((DisplacementField(grid, before.displacement_on(grid).vectors + shift.vectors),))
    linear = LinearTransform.identity(grid.dimension)
    for part in before.transforms:
        if isinstance(part, LinearTransform):
            linear = LinearTransform(part.matrix @ linear.matrix)
    # SimpleITK applies the last of a list first.
    whole = sitk.CompositeTransform([to_sitk(CompositeTransform((linear.inverse(),))), step, to_sitk(before)])
    return CompositeTransform((on_grid(whole, grid), linear)).simplified()


def on_grid(transform: Any, grid: Geometry) -> DisplacementField:
    """Sample a transform of SimpleITK's.

    Parameters
    ----------
    transform : SimpleITK.Transform
        Fixed -> moving.
    grid : Geometry
        Of fixed space.

    Returns
    -------
    DisplacementField
    """
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, grid.size, grid.origin, grid.spacing, grid.rotation.ravel().tolist()
    )
    return DisplacementField(grid, sitk.GetArrayFromImage(field))


def by_transformix(maps: list[ParameterMap], grid: Geometry) -> CompositeTransform:
    """The whole of a result that elastix alone understands, sampled by elastix itself.

    Parameters
    ----------
    maps : list of dict
        All of it, first applied to last.
    grid : Geometry
        Of fixed space.

    Returns
    -------
    CompositeTransform
        One field on `grid`.

    Raises
    ------
    InputError
        itk-elastix is not installed, or cannot read it either.
    """
    import itk

    names = ", ".join(m["Transform"][0] for m in maps)
    if not hasattr(itk, "TransformixFilter"):
        raise InputError(f"elastix: {names} can only be read by elastix itself; pip install itk-elastix")
    parameters = itk.ParameterObject.New()
    for number, one in enumerate(maps):
        own = {**one, **{key: [NONE] for key in INITIAL}}
        if number == len(maps) - 1:
            own.update({key: grid_entries(grid)[key] for key in ("Size", "Index", "Spacing", "Origin", "Direction")})
        parameters.AddParameterMap(own)
    image = itk.image_from_array(np.zeros((2,) * grid.dimension, np.float32))
    # elastix writes the field to a file too, into the working directory unless it is given another.
    with tempfile.TemporaryDirectory() as folder:
        try:
            out = itk.transformix_deformation_field(image, parameters, output_directory=folder)
        except RuntimeError as error:
            raise InputError(f"elastix: cannot read {names} ({one_line(error)})") from error
    return CompositeTransform((DisplacementField(grid, itk.array_from_image(out)),))


def collect(source: Any, beside: bool) -> list[tuple[ParameterMap, Path | None]]:
    """Every parameter map of a result, with the folder it was read from.

    Parameters
    ----------
    source : str, os.PathLike, itk.ParameterObject, mapping or list of mappings
        As of `read_elastix`.
    beside : bool
        As of `read_elastix`.

    Returns
    -------
    list of tuple of dict and Path or None
        First applied to last; None for maps in memory.

    Raises
    ------
    InputError
        Something else, or files that are missing, damaged or name each other in a circle.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_files(Path(source), set(), beside)
    if hasattr(source, "GetNumberOfParameterMaps"):
        source = [source.GetParameterMap(n) for n in range(source.GetNumberOfParameterMaps())]
    if isinstance(source, Mapping) or (hasattr(source, "keys") and not isinstance(source, (list, tuple))):
        source = [source]
    if not isinstance(source, (list, tuple)) or not all(hasattr(m, "keys") for m in source):
        raise InputError(
            f"elastix: cannot use an object of type {type(source).__name__}; give a TransformParameters file, an "
            "itk.ParameterObject or a list of parameter maps"
        )
    maps: list[ParameterMap] = [{str(k): [str(v) for v in m[k]] for k in m.keys()} for m in source]  # noqa: SIM118
    if not maps:
        return []
    # Maps in memory follow each other by their order, whatever files the later ones name.
    before = initial_file(maps[0])
    first = [] if before is None else _from_files(locate(before, None, beside), set(), beside)
    return [*first, *((m, None) for m in maps)]


def _from_files(path: Path, seen: set[Path], beside: bool) -> list[tuple[ParameterMap, Path | None]]:
    if not path.is_file():
        raise InputError(f"elastix: {path}: no such file; check the path")
    if path.resolve() in seen:
        raise InputError(f"elastix: {path}: its initial transforms name each other in a circle")
    parameters = parse(path)
    before = initial_file(parameters)
    first = [] if before is None else _from_files(locate(before, path.parent, beside), {*seen, path.resolve()}, beside)
    return [*first, (parameters, path.parent)]

"""elastix' results, from parameter files or objects, as transforms."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.places import as_file_name
from itk_nir.transforms.as_simpleitk import to_sitk
from itk_nir.transforms.formats.elastix.parameters import (
    INITIAL,
    NONE,
    ParameterMap,
    grid_entries,
    grid_of,
    initial_file,
    numbers,
    parse,
)
from itk_nir.transforms.formats.field_image import read_field
from itk_nir.transforms.formats.itk_text import read_itk_file
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

_BSPLINES = ("BSplineTransform", "RecursiveBSplineTransform")


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
    maps = _collect(source, beside)
    if not maps:
        raise InputError("elastix: no parameter map")
    try:
        return _composite(maps, grid, beside)
    except (KeyError, IndexError) as error:
        raise InputError(f"elastix: the parameters lack {error}; give a complete TransformParameters file") from error
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"elastix: the parameters do not fit together ({one_line(error)})") from error


def _composite(maps: list[tuple[ParameterMap, Path | None]], grid: Geometry | None, beside: bool) -> CompositeTransform:
    last = maps[-1][0]
    d = int(last.get("FixedImageDimension", ["0"])[0]) or len(last["Size"])
    whole = CompositeTransform((LinearTransform.identity(d),))
    for number, (parameters, folder) in enumerate(maps):
        step: Any = _step(parameters, folder, d, beside)
        if step is None:
            return _by_transformix([m for m, _ in maps], _sampling_grid(grid, last))
        adds = number > 0 and parameters.get("HowToCombineTransforms", ["Compose"])[0] == "Add"
        if isinstance(step, CompositeTransform) and not adds:
            whole = CompositeTransform((*whole.transforms, *step.transforms)).simplified()
        else:
            whole = _sampled(whole, step, _sampling_grid(grid, parameters), adds)
    return whole


def _sampling_grid(grid: Geometry | None, parameters: ParameterMap) -> Geometry:
    if grid is not None:
        return grid
    warnings.warn(
        f"elastix: a {parameters['Transform'][0]} is sampled on the grid that its parameters name (the fixed image's): "
        "exact at its voxels, linear in between",
        stacklevel=4,
    )
    return grid_of(parameters)


def _step(parameters: ParameterMap, folder: Path | None, d: int, beside: bool) -> Any:
    """One of ours; a SimpleITK transform that has to be sampled; None for a class that only elastix knows."""
    import SimpleITK as sitk

    name = parameters["Transform"][0]
    kind = name.removeprefix("Advanced")
    if kind == "DeformationFieldTransform":
        return CompositeTransform((_field(parameters, folder, beside),))
    if kind == "File":
        path = _locate(parameters["TransformFileName"][0], folder, beside)
        if not path.is_file():
            raise InputError(f"elastix' transform file {path}: no such file; check the path")
        return read_itk_file(path, None, f"elastix' transform file {path}")
    if kind == "ExternalTransform":
        raise InputError(
            "elastix: the result began from a transform in memory and holds no more than its address; start from "
            "parameter_maps(...) instead, or save the two parts on their own"
        )
    if kind in _BSPLINES and parameters.get("UseCyclicTransform", ["false"])[0] != "true":
        index, origin, spacing = (numbers(parameters, key, d) for key in ("GridIndex", "GridOrigin", "GridSpacing"))
        size = [int(n) for n in parameters["GridSize"]]
        direction = numbers(parameters, "GridDirection", d * d) if "GridDirection" in parameters else np.eye(d).ravel()
        axes = direction.reshape(d, d).T
        spline = sitk.BSplineTransform(d, int(parameters.get("BSplineTransformSplineOrder", ["3"])[0]))
        start = np.asarray(origin) + axes @ (spacing * index)
        spline.SetFixedParameters([*map(float, size), *start.tolist(), *spacing.tolist(), *axes.ravel().tolist()])
        spline.SetParameters(numbers(parameters, "TransformParameters", d * int(np.prod(size))).tolist())
        return spline
    linear = _linear(kind, parameters, d)
    return None if linear is None else CompositeTransform((linear,))


def _linear(kind: str, parameters: ParameterMap, d: int) -> LinearTransform | None:
    import SimpleITK as sitk

    kind = {"EulerTransform": f"Euler{d}DTransform", "SimilarityTransform": f"Similarity{d}DTransform"}.get(kind, kind)
    if kind == "TranslationTransform":
        return LinearTransform.make(np.eye(d), numbers(parameters, "TransformParameters", d))
    made: Any = {
        "AffineTransform": lambda: sitk.AffineTransform(d),
        "Euler2DTransform": sitk.Euler2DTransform,
        "Euler3DTransform": sitk.Euler3DTransform,
        "Similarity2DTransform": sitk.Similarity2DTransform,
        "Similarity3DTransform": sitk.Similarity3DTransform,
    }.get(kind)
    if made is None:
        return None
    transform = made()
    if kind == "Euler3DTransform":
        transform.SetComputeZYX(parameters.get("ComputeZYX", ["false"])[0] == "true")
    if "CenterOfRotationPoint" in parameters:
        centre = numbers(parameters, "CenterOfRotationPoint", d)
    else:  # as elastix 4 wrote it: an index of the fixed image
        centre = grid_of(parameters).index_to_physical(numbers(parameters, "CenterOfRotation", d))
    transform.SetCenter(centre.tolist())
    transform.SetParameters(numbers(parameters, "TransformParameters", len(transform.GetParameters())).tolist())
    return LinearTransform.of_map(transform.TransformPoint, d)


def _field(parameters: ParameterMap, folder: Path | None, beside: bool) -> DisplacementField:
    path = _locate(parameters["DeformationFieldFileName"][0], folder, beside)
    if parameters.get("DeformationFieldInterpolationOrder", ["0"])[0] != "1":
        warnings.warn(
            f"{path}: elastix was told to take the nearest vector; it is read with linear interpolation", stacklevel=2
        )
    return read_field(path, f"elastix' deformation field {path}")


def _sampled(before: CompositeTransform, step: Any, grid: Geometry, adds: bool) -> CompositeTransform:
    """`before` and `step` (one of ours or of SimpleITK's) as a field on `grid`, then the linear part of `before`."""
    import SimpleITK as sitk

    if adds:
        shift = step.displacement_on(grid) if isinstance(step, CompositeTransform) else _on_grid(step, grid)
        return CompositeTransform((DisplacementField(grid, before.displacement_on(grid).vectors + shift.vectors),))
    linear = LinearTransform.identity(grid.dimension)
    for part in before.transforms:
        if isinstance(part, LinearTransform):
            linear = LinearTransform(part.matrix @ linear.matrix)
    # SimpleITK applies the last of a list first.
    whole = sitk.CompositeTransform([to_sitk(CompositeTransform((linear.inverse(),))), step, to_sitk(before)])
    return CompositeTransform((_on_grid(whole, grid), linear)).simplified()


def _on_grid(transform: Any, grid: Geometry) -> DisplacementField:
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, grid.size, grid.origin, grid.spacing, grid.rotation.ravel().tolist()
    )
    return DisplacementField(grid, sitk.GetArrayFromImage(field))


def _by_transformix(maps: list[ParameterMap], grid: Geometry) -> CompositeTransform:
    """The whole of a result that elastix alone understands, sampled by elastix itself."""
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


def _collect(source: Any, beside: bool) -> list[tuple[ParameterMap, Path | None]]:
    """Every parameter map, first applied to last, with the folder it was read from."""
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
    first = [] if before is None else _from_files(_locate(before, None, beside), set(), beside)
    return [*first, *((m, None) for m in maps)]


def _from_files(path: Path, seen: set[Path], beside: bool) -> list[tuple[ParameterMap, Path | None]]:
    if not path.is_file():
        raise InputError(f"elastix: {path}: no such file; check the path")
    if path.resolve() in seen:
        raise InputError(f"elastix: {path}: its initial transforms name each other in a circle")
    parameters = parse(path)
    before = initial_file(parameters)
    first = [] if before is None else _from_files(_locate(before, path.parent, beside), {*seen, path.resolve()}, beside)
    return [*first, (parameters, path.parent)]


def _locate(name: str, folder: Path | None, beside: bool) -> Path:
    """A file that one in `folder` names: where elastix looks, else beside it; the other way round if asked."""
    path = Path(as_file_name(name))
    if folder is None:
        return path
    places = [path, folder / path, folder / path.name]
    found = [p for p in (reversed(places) if beside else places) if p.exists()]
    return found[0] if found else path

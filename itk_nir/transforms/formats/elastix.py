"""Chains ⇄ elastix: parameter maps, ``TransformParameters.N.txt`` files and what ``transformix`` makes of them.

elastix chains transforms by file: each names the one that is applied *before* it, so file 0 is applied first and the
highest number stands for the whole. A displacement field is an image file (LPS mm) that a ``DeformationFieldTransform``
names; a linear step is an ``AffineTransform``. ``Size``, ``Spacing``, ``Origin`` and ``Direction`` (column by column)
are the grid that transformix resamples on, not the grid of the field.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

ParameterMap = dict[str, list[str]]

# elastix 5 writes the first of these keys and elastix 4 and 5.0 read the second alone: files carry both.
_INITIAL = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
_NONE = "NoInitialTransform"
_ENTRY = re.compile(r'^\s*\(\s*([^\s"()]+)\s*(.*?)\s*\)\s*(?://.*)?$')
_VALUE = re.compile(r'"([^"]*)"|(\S+)')
_BSPLINES = ("BSplineTransform", "RecursiveBSplineTransform")


# --- writing ---------------------------------------------------------------------------------------------------------


def parameter_maps(
    chain: CompositeTransform,
    folder: str | os.PathLike[str],
    grid: Geometry | None = None,
    *,
    location: str | os.PathLike[str] | None = None,
    field_name: str = "DeformationField",
) -> list[ParameterMap]:
    """A chain as elastix' parameter maps, in the order in which they meet a fixed point.

    The maps go into an ``itk.ParameterObject`` one by one (``AddParameterMap``), or into files (`write_elastix`).

    Parameters
    ----------
    chain : fixed → moving; each step becomes one map.
    folder : an existing folder, where each displacement field goes: ``DeformationField.mha`` (float32, LPS mm), or
        ``DeformationField.0.mha``, ... for several. The maps name them by their absolute path, because elastix takes a
        relative one from the working directory.
    grid : what transformix resamples on (the fixed image); that of the first field when left out.
    location : folder that the maps name, if the field files will be moved there.
    field_name : stem of the field files.

    Raises
    ------
    InputError : a linear chain without `grid`.
    """
    if grid is None:
        if chain.is_linear:
            raise InputError("elastix: a linear transform has no grid of its own; give the fixed image's")
        grid = chain.fields[0].geometry
    where = Path(os.path.abspath(folder if location is None else location))
    several = len(chain.fields) > 1
    maps: list[ParameterMap] = []
    for step in chain.transforms:
        if isinstance(step, LinearTransform):
            matrix = step.matrix
            values = np.concatenate([matrix[:-1, :-1].ravel(), matrix[:-1, -1]])
            kind = {
                "Transform": ["AffineTransform"],
                "NumberOfParameters": [str(len(values))],
                "TransformParameters": _numbers(values),
                "CenterOfRotationPoint": _numbers(np.zeros(step.dimension)),
            }
        else:
            number = sum(m["Transform"] == ["DeformationFieldTransform"] for m in maps)
            name = f"{field_name}.{number}.mha" if several else f"{field_name}.mha"
            # Uncompressed: elastix reads it each time, and displacements hardly compress.
            save_image(step.vectors, step.geometry, Path(folder) / name, compression=0)
            kind = {
                "Transform": ["DeformationFieldTransform"],
                "NumberOfParameters": ["0"],
                "DeformationFieldFileName": [str(where / name)],
                # The default, 0, is nearest neighbour.
                "DeformationFieldInterpolationOrder": ["1"],
            }
        maps.append({**kind, **_grid_entries(grid)})
    return maps


def write_elastix(
    chain: CompositeTransform,
    prefix: str | os.PathLike[str],
    grid: Geometry | None = None,
    *,
    location: str | os.PathLike[str] | None = None,
    field_name: str = "DeformationField",
    name: str = "TransformParameters",
) -> list[Path]:
    """Write a chain as files for the ``transformix`` program, all or none.

    Parameters
    ----------
    prefix : a folder (with a slash at its end) or a folder and the start of the names. Writes
        ``PREFIXTransformParameters.0.txt`` (the first step), ``.1.txt`` (the second), ... and the field images.
    grid, location, field_name : as for `parameter_maps`. The files name each other by absolute path.
    name : what stands before the number.

    Returns
    -------
    The parameter files, first step to last: give ``transformix -tp`` the **last** one.
    """
    folder, start = split_prefix(prefix)
    where = Path(os.path.abspath(folder if location is None else location))
    with all_or_none(folder) as stage:
        maps = parameter_maps(chain, stage, grid, location=where, field_name=f"{start}{field_name}")
        names = [f"{start}{name}.{number}.txt" for number in range(len(maps))]
        for number, parameters in enumerate(maps):
            before = str(where / names[number - 1]) if number else _NONE
            text = as_text({**parameters, **{key: [before] for key in _INITIAL}})
            (stage / names[number]).write_text(text, encoding="utf-8")
    return [folder / n for n in names]


def _grid_entries(grid: Geometry) -> ParameterMap:
    d = str(grid.dimension)
    return {
        **{key: [_NONE] for key in _INITIAL},
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": [d],
        "MovingImageDimension": [d],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "Size": [str(n) for n in grid.size],
        "Index": ["0"] * grid.dimension,
        "Spacing": _numbers(grid.spacing),
        "Origin": _numbers(grid.origin),
        "Direction": _numbers(grid.rotation.T.ravel()),
        "UseDirectionCosines": ["true"],
        # elastix 5.0 knows no FinalLinearInterpolator; order 1 is the same.
        "ResampleInterpolator": ["FinalBSplineInterpolator"],
        "FinalBSplineInterpolationOrder": ["1"],
        "Resampler": ["DefaultResampler"],
        "DefaultPixelValue": ["0"],
        "ResultImageFormat": ["nii.gz"],
        "ResultImagePixelType": ["float"],
        "CompressResultImage": ["true"],
    }


def _numbers(values: Any) -> list[str]:
    return [repr(float(v)) for v in np.asarray(values).ravel()]


def as_text(parameters: Mapping[str, Sequence[str]]) -> str:
    quoted = '"{}"'.format
    lines = []
    for key, values in parameters.items():
        # The file format knows no escape, so a quotation mark in a path cannot be written.
        if any('"' in v or "\n" in v for v in values):
            raise InputError(f"elastix: {key} cannot hold {list(values)}: parameter files have no quotation marks")
        lines.append(f"({' '.join([key, *(v if _is_number(v) else quoted(v) for v in values)])})")
    return "\n".join(lines) + "\n"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- reading ---------------------------------------------------------------------------------------------------------


def is_elastix_file(path: str | os.PathLike[str]) -> bool:
    """Whether a text file is one of elastix' transform parameter files (ITK's own .txt transforms are not)."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return re.search(r"^\s*\(\s*Transform\s", file.read(1 << 22), re.MULTILINE) is not None


def read_elastix(source: Any, grid: Geometry | None = None, *, beside: bool = False) -> CompositeTransform:
    """What elastix wrote or returned, as a chain fixed → moving.

    Translation, Euler, similarity, affine and displacement-field transforms come over as they are. B-splines, and
    transforms combined by ``Add``, are sampled: exact at the voxels of `grid`, interpolated linearly between them.
    Other classes are sampled by itk-elastix, if it is installed.

    Parameters
    ----------
    source : a ``TransformParameters.N.txt`` (those before it are found by the names in it), an
        ``itk.ParameterObject``, or a list of parameter maps, first applied to last.
    grid : grid of fixed space to sample on; when left out, the one that the parameters name (the fixed image's), with
        a warning where it is needed.
    beside : look for the files that a file names beside it first (a copied or moved folder), then where it says.

    Raises
    ------
    InputError : missing or damaged files, parameters that are wanting, or a class that needs itk-elastix.
    """
    maps = _collect(source, beside)
    if not maps:
        raise InputError("elastix: no parameter map")
    try:
        return _chain(maps, grid, beside)
    except (KeyError, IndexError) as error:
        raise InputError(f"elastix: the parameters lack {error}; give a complete TransformParameters file") from error


def _chain(maps: list[tuple[ParameterMap, Path | None]], grid: Geometry | None, beside: bool) -> CompositeTransform:
    last = maps[-1][0]
    d = int(last.get("FixedImageDimension", ["0"])[0]) or len(last["Size"])
    chain = CompositeTransform((LinearTransform.identity(d),))
    for number, (parameters, folder) in enumerate(maps):
        step: Any = _step(parameters, folder, d, beside)
        if step is None:
            return _by_transformix([m for m, _ in maps], _sampling_grid(grid, last))
        adds = number > 0 and parameters.get("HowToCombineTransforms", ["Compose"])[0] == "Add"
        if isinstance(step, CompositeTransform) and not adds:
            chain = CompositeTransform((*chain.transforms, *step.transforms)).simplified()
        else:
            chain = _sampled(chain, step, _sampling_grid(grid, parameters), adds)
    return chain


def _sampling_grid(grid: Geometry | None, parameters: ParameterMap) -> Geometry:
    if grid is not None:
        return grid
    warnings.warn(
        f"elastix: a {parameters['Transform'][0]} is sampled on the grid that its parameters name (the fixed image's): "
        "exact at its voxels, linear in between",
        stacklevel=4,
    )
    return _grid(parameters)


def _step(parameters: ParameterMap, folder: Path | None, d: int, beside: bool) -> Any:
    """A chain; a SimpleITK transform that has to be sampled; ``None`` for a class that only elastix knows."""
    import SimpleITK as sitk

    name = parameters["Transform"][0]
    kind = name.removeprefix("Advanced")
    if kind == "DeformationFieldTransform":
        return CompositeTransform((_field(parameters, folder, beside),))
    if kind == "File":
        from itk_nir.transforms.load import load_transform

        return load_transform(
            _locate(parameters["TransformFileName"][0], folder, beside), role="elastix' transform file"
        )
    if kind == "ExternalTransform":
        raise InputError(
            "elastix: the result began from a transform in memory and holds no more than its address; start from "
            "parameter_maps(...) instead, or save the two parts on their own"
        )
    if kind in _BSPLINES and parameters.get("UseCyclicTransform", ["false"])[0] != "true":
        index, origin, spacing = (_floats(parameters, key, d) for key in ("GridIndex", "GridOrigin", "GridSpacing"))
        size = [int(n) for n in parameters["GridSize"]]
        direction = _floats(parameters, "GridDirection", d * d) if "GridDirection" in parameters else np.eye(d).ravel()
        axes = direction.reshape(d, d).T
        spline = sitk.BSplineTransform(d, int(parameters.get("BSplineTransformSplineOrder", ["3"])[0]))
        start = np.asarray(origin) + axes @ (spacing * index)
        spline.SetFixedParameters([*map(float, size), *start.tolist(), *spacing.tolist(), *axes.ravel().tolist()])
        spline.SetParameters(_floats(parameters, "TransformParameters", d * int(np.prod(size))).tolist())
        return spline
    linear = _linear(kind, parameters, d)
    return None if linear is None else CompositeTransform((linear,))


def _linear(kind: str, parameters: ParameterMap, d: int) -> LinearTransform | None:
    import SimpleITK as sitk

    kind = {"EulerTransform": f"Euler{d}DTransform", "SimilarityTransform": f"Similarity{d}DTransform"}.get(kind, kind)
    if kind == "TranslationTransform":
        return LinearTransform.make(np.eye(d), _floats(parameters, "TransformParameters", d))
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
        centre = _floats(parameters, "CenterOfRotationPoint", d)
    else:  # as elastix 4 wrote it: an index of the fixed image
        centre = _grid(parameters).index_to_physical(_floats(parameters, "CenterOfRotation", d))
    transform.SetCenter(centre.tolist())
    transform.SetParameters(_floats(parameters, "TransformParameters", len(transform.GetParameters())).tolist())
    origin = np.array(transform.TransformPoint([0.0] * d))
    columns = [np.array(transform.TransformPoint(row.tolist())) - origin for row in np.eye(d)]
    return LinearTransform.make(np.stack(columns, axis=1), origin)


def _field(parameters: ParameterMap, folder: Path | None, beside: bool) -> DisplacementField:
    from itk_nir.transforms.load import read_field

    path = _locate(parameters["DeformationFieldFileName"][0], folder, beside)
    if parameters.get("DeformationFieldInterpolationOrder", ["0"])[0] != "1":
        warnings.warn(
            f"{path}: elastix was told to take the nearest vector; it is read with linear interpolation", stacklevel=2
        )
    return read_field(path, f"elastix' deformation field {path}")


def _sampled(before: CompositeTransform, step: Any, grid: Geometry, adds: bool) -> CompositeTransform:
    """`before` and `step` (a chain or a SimpleITK transform) as a field on `grid`, then the linear part of `before`."""
    import SimpleITK as sitk

    from itk_nir.transforms.as_simpleitk import to_sitk

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
    """The whole of a chain that elastix alone understands, sampled by elastix itself."""
    import itk

    names = ", ".join(m["Transform"][0] for m in maps)
    if not hasattr(itk, "TransformixFilter"):
        raise InputError(f"elastix: {names} can only be read by elastix itself; pip install itk-elastix")
    parameters = itk.ParameterObject.New()
    for number, one in enumerate(maps):
        own = {**one, **{key: [_NONE] for key in _INITIAL}}
        if number == len(maps) - 1:
            own.update({key: _grid_entries(grid)[key] for key in ("Size", "Index", "Spacing", "Origin", "Direction")})
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
    # Maps in memory are chained by their order, whatever files the later ones name.
    before = _initial(maps[0])
    first = [] if before is None else _from_files(Path(before), set(), beside)
    return [*first, *((m, None) for m in maps)]


def _from_files(path: Path, seen: set[Path], beside: bool) -> list[tuple[ParameterMap, Path | None]]:
    if not path.is_file():
        raise InputError(f"elastix: {path}: no such file; check the path")
    if path.resolve() in seen:
        raise InputError(f"elastix: {path}: its initial transforms name each other in a circle")
    parameters = _parse(path)
    before = _initial(parameters)
    first = [] if before is None else _from_files(_locate(before, path.parent, beside), {*seen, path.resolve()}, beside)
    return [*first, (parameters, path.parent)]


def _parse(path: Path) -> ParameterMap:
    parameters: ParameterMap = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"elastix: {path}: is no text; give a TransformParameters.N.txt") from error
    for line in lines:
        text = line.strip()
        if not text or text.startswith("//"):
            continue
        match = _ENTRY.match(text)
        if match is None:
            raise InputError(f"elastix: {path}: damaged or no parameter file, at {text[:60]!r}")
        parameters[match[1]] = [quoted or plain for quoted, plain in _VALUE.findall(match[2])]
    if not parameters.get("Transform"):
        raise InputError(f"elastix: {path}: names no Transform; give a TransformParameters.N.txt")
    return parameters


def _initial(parameters: ParameterMap) -> str | None:
    for key in _INITIAL:
        name = (parameters.get(key) or [_NONE])[0]
        if name not in ("", _NONE):
            return name
    return None


def _locate(name: str, folder: Path | None, beside: bool) -> Path:
    """A file that one in `folder` names: where elastix looks, else beside it; the other way round if asked."""
    path = Path(name)
    if folder is None:
        return path
    places = [path, folder / path, folder / path.name]
    found = [p for p in (reversed(places) if beside else places) if p.exists()]
    return found[0] if found else path


def _grid(parameters: ParameterMap) -> Geometry:
    size = [int(n) for n in parameters["Size"]]
    d = len(size)
    direction = np.eye(d)
    if "Direction" in parameters and parameters.get("UseDirectionCosines", ["true"])[0] == "true":
        direction = _floats(parameters, "Direction", d * d).reshape(d, d).T
    spacing, origin = _floats(parameters, "Spacing", d), _floats(parameters, "Origin", d)
    index = _floats(parameters, "Index", d) if "Index" in parameters else np.zeros(d)
    return Geometry.make(size, spacing, origin + direction @ (spacing * index), direction)


def _floats(parameters: ParameterMap, key: str, count: int) -> np.ndarray:
    values = parameters[key]
    if len(values) != count:
        hint = (
            "; binary parameters (.dat) cannot be read"
            if "UseBinaryFormatForTransformationParameters" in parameters
            else ""
        )
        raise InputError(f"elastix: {key} has {len(values)} values, {count} are needed{hint}")
    try:
        return np.array([float(v) for v in values])
    except ValueError as error:
        raise InputError(f"elastix: {key} holds no numbers ({one_line(error)})") from error

"""Transforms as elastix' parameter maps and ``TransformParameters.N.txt`` files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itk_nir.atomic import all_or_none, split_prefix
from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.transforms.formats.base import (
    Directions,
    Mapping,
    Place,
    Points,
    SavedFile,
    has_ending,
    needs_reference,
    parameter_file_prefix,
)
from itk_nir.transforms.formats.elastix.parameters import INITIAL, NONE, as_numbers, grid_entries, in_order
from itk_nir.transforms.formats.elastix.reading import read_elastix
from itk_nir.transforms.formats.elastix.text import ParameterMap, as_text
from itk_nir.transforms.model import CompositeTransform, LinearTransform


@dataclass(frozen=True)
class Elastix:
    """elastix' files: one parameter file for each part of the transform, and an image for each displacement field."""

    endings: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = (2, 3)

    def accepts(self, name: str) -> bool:
        """Tell whether the name is a ``TransformParameters.N.txt`` or can be a prefix."""
        return parameter_file_prefix(name) is not None or not has_ending(name)

    def prefix(self, name: str) -> str:
        """Give what stands before ``TransformParameters.N.txt``, or the name, which is a prefix."""
        found = parameter_file_prefix(name)
        return name if found is None else found

    def save(
        self, transform: CompositeTransform, place: Place, points: Points, reference: Geometry | None, label: str
    ) -> list[SavedFile]:
        """Write one transform; the last file is the one to give transformix.

        Raises
        ------
        InputError
            A linear transform and no reference.
        """
        if reference is None and transform.is_linear:
            raise needs_reference(label, "a linear transform has no grid for transformix to resample on")
        grid = transform.fields[0].geometry if reference is None else reference
        return self._files(transform, grid, place, points, "", "")

    def save_both(self, directions: Directions, place: Place) -> list[SavedFile]:
        """Write both directions, the inverse one with ``Inverse`` in front of every name."""
        forward, inverse = directions.forward, directions.inverse
        return [
            *self._files(forward, directions.fixed, place, directions.points, "", ""),
            *self._files(inverse, directions.moving, place, directions.moved, "Inverse", "inverse_"),
        ]

    def applied(self, path: Path) -> Mapping:
        """Give the map of a parameter file and those before it, all in one folder, as transformix applies it."""
        return lambda points: read_elastix(path, beside=True).map(points)

    def _files(
        self, transform: CompositeTransform, grid: Geometry, place: Place, points: Points, word: str, key: str
    ) -> list[SavedFile]:
        stem = f"{word}DeformationField"
        start, prefix = f"{place.start}{stem}", f"{place.stage}/{place.start}"
        paths = write_elastix(
            transform, prefix, grid, location=place.location, field_name=stem, name=f"{word}TransformParameters"
        )
        files = []
        for image in sorted(p.name for p in place.stage.iterdir() if p.name.startswith(start)):
            number = image[len(start) : -len(".mha")].replace(".", "_")
            files.append(SavedFile(f"{key}field{number}", image))
        files.extend(SavedFile(f"{key}transform_{number}", path.name) for number, path in enumerate(paths[:-1]))
        return [*files, SavedFile(f"{key}transform", paths[-1].name, transform, points, self.applied(paths[-1]))]


def parameter_maps(
    transform: CompositeTransform,
    folder: str | os.PathLike[str],
    grid: Geometry | None = None,
    *,
    location: str | os.PathLike[str] | None = None,
    field_name: str = "DeformationField",
) -> list[ParameterMap]:
    """Make elastix' parameter maps of a transform, in the order in which they meet a fixed point.

    The maps go into an ``itk.ParameterObject`` one by one (``AddParameterMap``), or into files (`write_elastix`).

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving; each of its parts becomes one map.
    folder : str or os.PathLike
        An existing folder, where each displacement field goes: ``DeformationField.mha`` (float32, LPS mm), or
        ``DeformationField.0.mha``, ... for several. The maps name them by their absolute path, because elastix takes a
        relative one from the working directory.
    grid : Geometry, optional
        What transformix resamples on (the fixed image); that of the first field when left out.
    location : str or os.PathLike, optional
        Folder that the maps name, if the field files will be moved there.
    field_name : str, default "DeformationField"
        Stem of the field files.

    Returns
    -------
    list of dict
        Values as text by key.

    Raises
    ------
    InputError
        A linear transform without `grid`.
    """
    if grid is None:
        if transform.is_linear:
            raise InputError("elastix: a linear transform has no grid of its own; give the fixed image's")
        grid = transform.fields[0].geometry
    where = Path(os.path.abspath(folder if location is None else location))
    several = len(transform.fields) > 1
    maps: list[ParameterMap] = []
    for step in transform.transforms:
        if isinstance(step, LinearTransform):
            matrix, shift = step.about(np.zeros(step.dimension))
            values = np.concatenate([matrix.ravel(), shift])
            kind = {
                "Transform": ["AffineTransform"],
                "NumberOfParameters": [str(len(values))],
                "TransformParameters": as_numbers(values),
                "CenterOfRotationPoint": as_numbers(np.zeros(step.dimension)),
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
        maps.append(in_order(kind, grid_entries(grid)))
    return maps


def write_elastix(
    transform: CompositeTransform,
    prefix: str | os.PathLike[str],
    grid: Geometry | None = None,
    *,
    location: str | os.PathLike[str] | None = None,
    field_name: str = "DeformationField",
    name: str = "TransformParameters",
) -> list[Path]:
    """Write a transform as files for the ``transformix`` program, all or none.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    prefix : str or os.PathLike
        A folder (with a slash at its end) or a folder and the start of the names. Writes
        ``PREFIXTransformParameters.0.txt`` (what is applied first), ``.1.txt``, ... and the field images.
    grid, location, field_name : optional
        As for `parameter_maps`. The files name each other by absolute path.
    name : str, default "TransformParameters"
        What stands before the number.

    Returns
    -------
    list of Path
        The parameter files, first applied to last: give ``transformix -tp`` the **last** one.
    """
    folder, start = split_prefix(prefix)
    where = Path(os.path.abspath(folder if location is None else location))
    with all_or_none(folder) as stage:
        maps = parameter_maps(transform, stage, grid, location=where, field_name=f"{start}{field_name}")
        names = [f"{start}{name}.{number}.txt" for number in range(len(maps))]
        for number, parameters in enumerate(maps):
            before = str(where / names[number - 1]) if number else NONE
            text = as_text({**parameters, **{key: [before] for key in INITIAL}})
            (stage / names[number]).write_text(text, encoding="utf-8", errors="surrogateescape")
    return [folder / n for n in names]

"""Transforms as ITK's HDF5 files (.h5), written and read with h5py alone.

The layout is that of ITK's HDF5TransformIO: ``/TransformGroup/0`` holds the composite's type, the following groups
its transforms in ITK's order (the last one is applied first), each with ``TransformType``, ``TransformParameters``
and ``TransformFixedParameters``. itk, SimpleITK, ANTs and 3D Slicer read it. No file format of ITK stores a
transform's inverse; write it to a second file.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.atomic import replacing
from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.transforms.formats.base import HDF, Directions, Mapping, Place, Points, SavedFile, has_ending
from itk_nir.transforms.formats.itk_layout import wrong_sizes
from itk_nir.transforms.model import (
    CompositeTransform,
    DisplacementField,
    LinearTransform,
    Step,
    interpolate_vectors,
)

_TYPE = re.compile(r"(\w+?)_(float|double)_(\d)_(\d)$")
_AFFINE = ("AffineTransform", "MatrixOffsetTransformBase")


class UnknownTransformType(InputError):
    """A transform class that only ITK itself can read."""


@dataclass(frozen=True)
class ItkH5:
    """ITK's HDF5 files: the parts of the transform as they are."""

    endings: tuple[str, ...] = HDF
    dimensions: tuple[int, ...] = (2, 3)

    def accepts(self, name: str) -> bool:
        """Tell whether the name has one of the endings."""
        return has_ending(name, self.endings)

    def prefix(self, name: str) -> str:
        """Give the name itself: one file holds all."""
        return name

    def save(
        self, transform: CompositeTransform, place: Place, points: Points, reference: Geometry | None, label: str
    ) -> list[SavedFile]:
        """Write one transform, whatever its parts."""
        centre = None if reference is None else reference.centre
        return [self._file("transform", place.start, transform, points, place, centre)]

    def save_both(self, directions: Directions, place: Place) -> list[SavedFile]:
        """Write ``Composite.h5`` and ``InverseComposite.h5``."""
        there, back = f"{place.start}Composite.h5", f"{place.start}InverseComposite.h5"
        fixed, moving = directions.fixed.centre, directions.moving.centre
        return [
            self._file("composite", there, directions.forward, directions.points, place, fixed),
            self._file("inverse_composite", back, directions.inverse, directions.moved, place, moving),
        ]

    def applied(self, path: Path) -> Mapping:
        """Give the map of a file as ITK applies it, without reading more of a field than is needed."""
        return lambda points: _apply(path, points)

    def _file(
        self, key: str, name: str, transform: CompositeTransform, points: Points, place: Place, centre: Points | None
    ) -> SavedFile:
        path = place.stage / name
        write_h5(transform, path, centre=centre)
        return SavedFile(key, name, transform, points, self.applied(path))


def write_h5(
    transform: CompositeTransform,
    path: str | os.PathLike[str],
    *,
    precision: str = "float",
    compression: int = 0,
    centre: ArrayLike | None = None,
) -> None:
    """Write a transform as one ITK composite; the file appears complete or not at all.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving. Its inverse is not written.
    path : str or os.PathLike
        The file.
    precision : {"float", "double"}, default "float"
        Of displacement fields. Linear transforms are in double precision always: their translations may be as long as
        the way to another scanner's origin.
    compression : int, default 0
        Level of gzip, 0 (none) to 9. Displacements compress badly: a quarter off for a hundred times the time.
    centre : array_like, optional
        ``(d,)``, LPS mm, the point that linear transforms are written about. When left out, the centre of the first
        displacement field's grid, or else the origin of physical space.

    Raises
    ------
    InputError
        Another precision, or no such folder.
    WriteError
        The disk is full, or refuses otherwise.
    """
    import h5py

    if precision not in ("float", "double"):
        raise InputError(f"precision must be 'float' or 'double', got {precision!r}")
    if centre is None:
        centre = transform.fields[0].geometry.centre if transform.fields else np.zeros(transform.dimension)
    about = np.asarray(centre, np.float64)
    d = transform.dimension
    text = h5py.string_dtype("ascii")
    # In memory first: on a full disk HDF5 ends the process.
    whole = io.BytesIO()
    with h5py.File(whole, "w") as file:
        file.create_dataset("ITKVersion", data=["5.4.0"], dtype=text)
        file.create_dataset("HDFVersion", data=[h5py.version.hdf5_version], dtype=text)
        groups = file.create_group("TransformGroup")
        head = groups.create_group("0")
        head.create_dataset("TransformType", data=[f"CompositeTransform_{precision}_{d}_{d}"], dtype=text)
        for number, step in enumerate(reversed(transform.transforms), start=1):
            name, own, fixed, parameters = _encode(step, precision, about)
            group = groups.create_group(str(number))
            group.create_dataset("TransformType", data=[f"{name}_{own}_{d}_{d}"], dtype=text)
            group.create_dataset("TransformFixedParameters", data=fixed)
            options: dict[str, Any] = {}
            if compression and parameters.size > 1024:
                chunk = (min(parameters.size, 1 << 18),)
                options = {"chunks": chunk, "compression": "gzip", "compression_opts": compression, "shuffle": True}
            group.create_dataset("TransformParameters", data=parameters, **options)
    with replacing(path) as temporary, open(temporary, "wb") as out:
        out.write(whole.getbuffer())


def read_h5(path: str | os.PathLike[str]) -> CompositeTransform:
    """Read an ITK transform file of displacement fields, affine maps and composites of them.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    CompositeTransform
        Fixed -> moving; without an inverse, which no such file holds.

    Raises
    ------
    UnknownTransformType
        Another class of transform (SimpleITK can read it).
    InputError
        A file that is no ITK transform, or is damaged.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            if "TransformGroup" not in file:
                raise InputError(f"{os.fspath(path)}: an HDF5 file without ITK transforms; give an ITK transform .h5")
            numbers = sorted(file["TransformGroup"], key=int)
            if [int(n) for n in numbers] != list(range(len(numbers))):
                raise InputError(f"{os.fspath(path)}: damaged, its transforms are numbered {', '.join(numbers)}")
            groups = [file["TransformGroup"][k] for k in numbers]
            names = [_type_name(group, path) for group in groups]
            if names[0][0] == "CompositeTransform":
                # ITK stores nested composites flattened, so there is one head at most.
                groups, names = groups[1:], names[1:]
            elif len(groups) > 1:
                raise InputError(f"{os.fspath(path)}: a list of {len(groups)} transforms; write one composite instead")
            steps = tuple(_decode(name, d, group) for (name, d), group in zip(names, groups, strict=True))
    except InputError as error:
        if str(error).startswith(os.fspath(path)) or isinstance(error, UnknownTransformType):
            raise
        raise InputError(f"{os.fspath(path)}: {error}") from error
    # What h5py raises for damage is of any kind.
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError, MemoryError, AttributeError) as error:
        raise InputError(f"{os.fspath(path)}: damaged or no transform file ({one_line(error)})") from error
    if not steps:
        raise InputError(f"{os.fspath(path)}: an empty composite transform")
    return CompositeTransform(tuple(reversed(steps)))


def _encode(step: Step, precision: str, centre: Points) -> tuple[str, str, NDArray[Any], NDArray[Any]]:
    """Class, precision, fixed parameters and parameters."""
    if isinstance(step, LinearTransform):
        matrix, shift = step.about(centre)
        return "AffineTransform", "double", centre, np.concatenate([matrix.ravel(), shift])
    g = step.geometry
    fixed = np.concatenate([g.size, g.origin, g.spacing, g.rotation.ravel()]).astype(np.float64)
    vectors = step.vectors.reshape(-1)
    return "DisplacementFieldTransform", precision, fixed, vectors.astype("f4" if precision == "float" else "f8")


def _type_name(group: Any, path: str | os.PathLike[str]) -> tuple[str, int]:
    raw = group["TransformType"][0]
    text = raw.decode() if isinstance(raw, bytes) else str(raw)
    match = _TYPE.match(text)
    if match is None or match[3] != match[4] or match[3] not in "23":
        raise UnknownTransformType(f"{os.fspath(path)}: cannot use a transform of type {text!r}")
    return match[1], int(match[3])


def _decode(name: str, d: int, group: Any) -> Step:
    # ITK 4 wrote "Tranform...": a slip of its own that every reader has to know.
    def values(key: str) -> NDArray[Any]:
        return np.asarray(group[key if key in group else key.replace("Transform", "Tranform")])

    fixed = values("TransformFixedParameters").astype(np.float64).ravel()
    parameters = values("TransformParameters").ravel()
    problem = wrong_sizes(name, d, parameters, fixed)
    if problem:
        raise InputError(f"damaged or no transform file ({problem})")
    if name == "DisplacementFieldTransform":
        size, origin, spacing, direction = np.split(fixed, [d, 2 * d, 3 * d])
        geometry = Geometry.make([int(n) for n in size], spacing, origin, direction)
        return DisplacementField(geometry, parameters.reshape(*geometry.shape, d))
    parameters = parameters.astype(np.float64)
    if name in _AFFINE:
        return LinearTransform.make(parameters[: d * d].reshape(d, d), parameters[d * d :], fixed)
    if name == "TranslationTransform":
        return LinearTransform.make(np.eye(d), parameters)
    if name == "IdentityTransform":
        return LinearTransform.identity(d)
    raise UnknownTransformType(f"cannot use a transform of class {name}")


def _apply(path: Path, points: Points) -> Points:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        groups = file["TransformGroup"]
        numbers = sorted(groups, key=int)
        # Group 0 names the composite; of its parts ITK applies the last first.
        for number in reversed(numbers[1:]):
            fixed = np.asarray(groups[number]["TransformFixedParameters"])
            parameters = _mapped(path, groups[number]["TransformParameters"])
            d = points.shape[1]
            if b"DisplacementField" not in groups[number]["TransformType"][0]:
                matrix, shift = np.asarray(parameters[: d * d], float).reshape(d, d), np.asarray(parameters[d * d :])
                points = (points - fixed) @ matrix.T + fixed + shift
                continue
            size, origin, spacing, direction = np.split(fixed, [d, 2 * d, 3 * d])
            shape = (*size.astype(int)[::-1], d)
            index = (points - origin) @ np.linalg.inv(direction.reshape(d, d) * spacing).T
            points = points + interpolate_vectors(parameters.reshape(shape), index)
    return points


def _mapped(path: Path, dataset: Any) -> NDArray[Any]:
    """A dataset of an HDF5 file; mapped into memory instead of read where it lies in one piece."""
    offset = None if dataset.chunks else dataset.id.get_offset()
    if offset is None:
        return np.asarray(dataset)
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)

"""Chains as ITK transform files (.h5), written and read with h5py alone.

The layout is that of ITK's HDF5TransformIO: ``/TransformGroup/0`` holds the composite's type, the following groups
its transforms in ITK's order (the last one is applied first), each with ``TransformType``, ``TransformParameters``
and ``TransformFixedParameters``. itk, SimpleITK, ANTs and 3D Slicer read it. Single precision is the default: half
the size, and 1e-5 mm is enough for a position. No file format of ITK stores a transform's inverse; write it to a
second file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step

_TYPE = re.compile(r"(\w+?)_(float|double)_(\d)_(\d)$")
_AFFINE = ("AffineTransform", "MatrixOffsetTransformBase")


class UnknownTransformType(InputError):
    """A transform class that only ITK itself can read."""


def write_h5(chain: CompositeTransform, path: str | os.PathLike[str], *, precision: str = "float", compression: int = 0) -> None:
    """Write a chain as one ITK composite transform.

    Parameters
    ----------
    chain : fixed → moving; its `inverse_transforms` are not written.
    path : the file appears complete or not at all: it is written beside its place and then renamed.
    precision : ``"float"`` or ``"double"``.
    compression : gzip level, 0 (none) to 9. Displacements compress badly: a quarter off for a hundred times the time.
    """
    import h5py

    if precision not in ("float", "double"):
        raise InputError(f"precision must be 'float' or 'double', got {precision!r}")
    dtype = np.dtype(np.float32 if precision == "float" else np.float64)
    d = chain.dimension
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    text = h5py.string_dtype("ascii")
    try:
        with h5py.File(temporary, "w") as file:
            file.create_dataset("ITKVersion", data=["5.4.0"], dtype=text)
            file.create_dataset("HDFVersion", data=[h5py.version.hdf5_version], dtype=text)
            groups = file.create_group("TransformGroup")
            head = groups.create_group("0")
            head.create_dataset("TransformType", data=[f"CompositeTransform_{precision}_{d}_{d}"], dtype=text)
            for number, step in enumerate(reversed(chain.transforms), start=1):
                name, fixed, parameters = _encode(step)
                group = groups.create_group(str(number))
                group.create_dataset("TransformType", data=[f"{name}_{precision}_{d}_{d}"], dtype=text)
                group.create_dataset("TransformFixedParameters", data=fixed)
                options: dict[str, Any] = {}
                if compression and parameters.size > 1024:
                    chunk = (min(parameters.size, 1 << 18),)
                    options = {"chunks": chunk, "compression": "gzip", "compression_opts": compression, "shuffle": True}
                group.create_dataset("TransformParameters", data=parameters.astype(dtype, copy=False), **options)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_h5(path: str | os.PathLike[str]) -> CompositeTransform:
    """Read an ITK transform file of displacement fields, affine maps and composites of them.

    Raises
    ------
    UnknownTransformType : another class of transform (SimpleITK can read it).
    InputError : a file that is no ITK transform, or is damaged.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "TransformGroup" not in file:
                raise InputError(f"{os.fspath(path)}: an HDF5 file without ITK transforms; give an ITK transform .h5")
            groups = [file["TransformGroup"][k] for k in sorted(file["TransformGroup"], key=int)]
            names = [_type_name(group, path) for group in groups]
            if names[0][0] == "CompositeTransform":
                # ITK stores nested composites flattened, so there is one head at most.
                groups, names = groups[1:], names[1:]
            elif len(groups) > 1:
                raise InputError(f"{os.fspath(path)}: a list of {len(groups)} transforms; write one composite instead")
            steps = tuple(_decode(name, d, group) for (name, d), group in zip(names, groups, strict=True))
    except (OSError, KeyError) as error:
        raise InputError(f"{os.fspath(path)}: damaged or no transform file ({one_line(error)})") from error
    if not steps:
        raise InputError(f"{os.fspath(path)}: an empty composite transform")
    return CompositeTransform(tuple(reversed(steps)))


def _encode(step: Step) -> tuple[str, np.ndarray, np.ndarray]:
    if isinstance(step, LinearTransform):
        m = step.matrix
        return "AffineTransform", np.zeros(step.dimension), np.concatenate([m[:-1, :-1].ravel(), m[:-1, -1]])
    g = step.geometry
    fixed = np.concatenate([g.size, g.origin, g.spacing, g.rotation.ravel()]).astype(np.float64)
    return "DisplacementFieldTransform", fixed, step.vectors.reshape(-1)


def _type_name(group: Any, path: str | os.PathLike[str]) -> tuple[str, int]:
    raw = group["TransformType"][0]
    text = raw.decode() if isinstance(raw, bytes) else str(raw)
    match = _TYPE.match(text)
    if match is None or match[3] != match[4] or match[3] not in "23":
        raise UnknownTransformType(f"{os.fspath(path)}: cannot use a transform of type {text!r}")
    return match[1], int(match[3])


def _decode(name: str, d: int, group: Any) -> Step:
    # ITK 4 wrote "Tranform…": a slip of its own that every reader has to know.
    def values(key: str) -> np.ndarray:
        return np.asarray(group[key if key in group else key.replace("Transform", "Tranform")])

    fixed = values("TransformFixedParameters").astype(np.float64)
    parameters = values("TransformParameters")
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

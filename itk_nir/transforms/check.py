"""What was written, read back and applied as its reader would.

Each function here follows the convention of a file format, not the code that wrote the file: ITK's composites back to
front, elastix' chain of parameter files, NIfTI's RAS header with LPS vectors (intent 1007) or RAS vectors (1006).
Only the vectors around the points are touched where the file is not compressed, so that checking a full-size ``.h5``
takes milliseconds.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import ItkNirError
from itk_nir.geometry import Geometry
from itk_nir.images.nifti import is_nifti, parse_header
from itk_nir.transforms.model import CompositeTransform, DisplacementField, interpolate_vectors

#: Largest allowed distance (mm) between where a chain and its file take a point.
TOLERANCE = 1e-3
#: Points that are tried.
POINTS = 500

Points = NDArray[np.float64]


def random_points(grid: Geometry, count: int = POINTS, seed: int = 0) -> Points:
    """Points between the outermost voxel centres of a grid, ``(N, d)`` LPS mm; always the same for one grid."""
    index = np.random.default_rng(seed).uniform(size=(count, grid.dimension)) * (np.asarray(grid.size) - 1)
    return grid.index_to_physical(index)


def largest_difference(chain: CompositeTransform, points: Points, applied: Callable[[Points], Points], label: str) -> float:
    """Largest distance (mm) between ``chain.map`` and `applied`, where no rounding can throw a point off a field.

    Raises
    ------
    ItkNirError : it is above `TOLERANCE`, or a file cannot be read back.
    """
    p = points[_clear_of_rims(chain, points)]
    if not len(p):
        return 0.0
    try:
        gap = float(np.linalg.norm(applied(p) - chain.map(p), axis=-1).max())
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise ItkNirError(f"{label}: cannot be read back after writing ({error}); check the disk, report it") from error
    if not gap <= TOLERANCE:  # NaN too
        raise ItkNirError(
            f"{label}: read back, it moves a point by {gap:.3g} mm more or less than it should (allowed: {TOLERANCE} "
            "mm); nothing was kept, please report it"
        )
    return gap


def _clear_of_rims(chain: CompositeTransform, points: Points) -> NDArray[np.bool_]:
    """Whether each point stays a hundredth of a voxel away from where a field of the chain jumps to zero."""
    clear = np.ones(len(points), bool)
    p = points
    for step in chain.transforms:
        if isinstance(step, DisplacementField):
            index = step.geometry.physical_to_index(p)
            ends = np.array([np.full(step.dimension, -0.5), np.asarray(step.geometry.size) - 0.5])
            clear &= (np.abs(index[:, None] - ends) > 0.01).all(axis=(1, 2))
        p = step.map(p)
    return clear


def by_file(path: Path) -> Callable[[Points], Points]:
    """How ITK, SimpleITK, ANTs or 3D Slicer apply a transform file or a displacement field image."""
    name = path.name.lower()
    if name.endswith((".h5", ".hdf5")):
        return lambda points: _by_h5(path, points)
    if is_nifti(path):
        return lambda points: _by_nifti(path, points)
    if name.endswith((".tfm", ".txt", ".mat")):
        return lambda points: _by_itk_file(path, points)
    return lambda points: _by_image(path, points)


def by_elastix(path: Path) -> Callable[[Points], Points]:
    """How transformix applies a parameter file and those before it, all in one folder."""
    from itk_nir.transforms.formats.elastix import read_elastix

    return lambda points: read_elastix(path, beside=True).map(points)


def _by_h5(path: Path, points: Points) -> Points:
    import h5py

    with h5py.File(path, "r") as file:
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


def _by_itk_file(path: Path, points: Points) -> Points:
    import SimpleITK as sitk

    transform = sitk.ReadTransform(str(path))
    return np.array([transform.TransformPoint(p.tolist()) for p in points])


def _by_image(path: Path, points: Points) -> Points:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    d = points.shape[1]
    scale = np.reshape(image.GetDirection(), (d, d)) * image.GetSpacing()
    index = (points - image.GetOrigin()) @ np.linalg.inv(scale).T
    return points + interpolate_vectors(sitk.GetArrayViewFromImage(image), index)


def _by_nifti(path: Path, points: Points) -> Points:
    raw = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    header = parse_header(raw[:540])
    if header is None:
        raise ValueError("no NIfTI header")
    d = points.shape[1]
    # ITK's choice between the two orientations.
    ras = header.sform if header.sform_code == 1 or header.qform is None else header.qform
    intent = struct.unpack_from(header.byte_order + "h", raw, 68)[0]
    if ras is None or header.shape[3:] != (1, d) or header.datatype != 16 or intent not in (1006, 1007):
        raise ValueError(f"no float displacement field: intent {intent}, size {header.shape}")
    flip = np.array([-1.0, -1.0, 1.0])
    there = np.zeros((len(points), 3))
    there[:, :d] = points
    index = (there * flip - ras[:3, 3]) @ np.linalg.inv(ras[:3, :3]).T
    # One volume of scalars after the other, x fastest.
    data = np.frombuffer(raw, header.byte_order + "f4", int(np.prod(header.shape)), header.offset)
    volumes = data.reshape(d, *header.shape[2::-1])
    shift = np.stack(
        [interpolate_vectors(v.reshape(*header.shape[d - 1 :: -1], 1), index[:, :d])[:, 0] for v in volumes], -1
    )
    return points + (shift * flip[:d] if intent == 1006 else shift)

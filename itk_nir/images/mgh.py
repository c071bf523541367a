"""FreeSurfer's MGH and MGZ files -> `Volume`."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding, warning
from itk_nir.images.grids import RAS_TO_LPS, place, straightened
from itk_nir.images.nifti import file_blocks
from itk_nir.images.volume import ReadOptions, Volume, check_layout, check_memory

_HEADER = 284
#: FreeSurfer's numbers of the types of voxels.
_TYPES = {0: "u1", 1: "i4", 2: "i8", 3: "f4", 4: "i2", 10: "u2"}
#: The orientation of a file that says nothing: coronal slices.
_CORONAL = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def read_mgh(file: Path, label: str, options: ReadOptions) -> Volume:
    """Read a file.

    Parameters
    ----------
    file : Path
        ``.mgh`` or ``.mgz`` (packed by gzip).
    label : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        A damaged or truncated file, several frames, or a type that is not known.
    """
    blocks = file_blocks(file)
    try:
        raw = b""
        while len(raw) < _HEADER and (more := next(blocks, b"")):
            raw += more
        if len(raw) < _HEADER or struct.unpack_from(">i", raw)[0] != 1:
            raise InputError(f"{label}: no MGH header, or a damaged one; get a fresh copy")
        *size, frames, kind, _ = struct.unpack_from(">6i", raw, 4)
        if min(*size, frames) < 1 or kind not in _TYPES:
            raise InputError(
                f"{label}: its header is damaged, or of another kind of file (size {'x'.join(map(str, size))}, "
                f"{frames} frames, type {kind}); get a fresh copy"
            )
        check_layout(label, 3 if frames == 1 else 4, 1, options.several, frames)
        dtype = np.dtype(">" + _TYPES[kind])
        check_memory(label, size, dtype.itemsize)
        wanted = int(np.prod(size, dtype=object)) * dtype.itemsize
        data = [raw[_HEADER:], *blocks]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: truncated or damaged ({one_line(error)}); get a fresh copy") from error
    held = b"".join(data)
    if len(held) < wanted:
        raise InputError(f"{label}: truncated, {len(held)} of {wanted} voxel bytes are there; get a fresh copy")
    stored = np.frombuffer(held, dtype, wanted // dtype.itemsize).reshape(size[::-1])
    array = stored.astype(dtype.newbyteorder("="))
    matrix, findings = _matrix(raw, size, label)
    placed = place(size, RAS_TO_LPS @ matrix, label, options.resample_shear).told(not findings)
    array = straightened(array, placed, options.labels)
    found = (*findings, *placed.findings)
    return Volume(array, placed.geometry, label, "path", array.dtype, found)


def _matrix(raw: bytes, size: list[int], label: str) -> tuple[NDArray[np.float64], tuple[Finding, ...]]:
    """Voxel index -> RAS, and what is odd about it."""
    (good,) = struct.unpack_from(">h", raw, 28)
    steps = np.array(struct.unpack_from(">3f", raw, 30), float)
    axes = np.array(struct.unpack_from(">9f", raw, 42), float).reshape(3, 3).T
    centre = np.array(struct.unpack_from(">3f", raw, 78), float)
    findings: tuple[Finding, ...] = ()
    if good <= 0:
        steps, axes, centre = np.ones(3), _CORONAL, np.zeros(3)
        findings = (
            warning(
                f"{label}: its header does not say how the object lies",
                "coronal slices of 1 mm are taken, as FreeSurfer does; give it an orientation if that is wrong",
                orientation="unknown",
            ),
        )
    matrix = np.eye(4)
    matrix[:3, :3] = axes * steps
    # The place that is given is that of the middle voxel.
    matrix[:3, 3] = centre - matrix[:3, :3] @ (np.array(size) / 2)
    return matrix, findings

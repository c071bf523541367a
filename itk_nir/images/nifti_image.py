"""A NIfTI or Analyze file -> `Volume`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from itk_nir.errors import InputError
from itk_nir.findings import warning
from itk_nir.geometry import Geometry
from itk_nir.images.flat_files import axes_leave_xy, slice_in_space
from itk_nir.images.grids import is_same, place, straightened
from itk_nir.images.names import for_itk
from itk_nir.images.nifti import read_voxels, scaled
from itk_nir.images.nifti_grid import orientation
from itk_nir.images.nifti_header import Header
from itk_nir.images.quiet import quiet
from itk_nir.images.volume import ReadOptions, Volume, check_layout, excess, not_real, tensors


def read_nifti(file: Path, label: str, options: ReadOptions) -> Volume | None:
    """Read a file whose name is that of a NIfTI or Analyze file.

    Parameters
    ----------
    file : Path
        An ordinary file; of a ``.hdr``/``.img`` pair either.
    label : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume or None
        Its array may hold several values a pixel, last, where `options` allow it. None where the file has another
        header: it only bears the name.

    Raises
    ------
    InputError
        A damaged or truncated file, values that are no real numbers, more or fewer axes than 2 or 3, several values a
        pixel where one is wanted, or a place in space that cannot be.
    """

    def check(header: Header) -> None:
        if header.dtype is None:
            name = header.type_name
            raise (
                not_real(label, name)
                if "complex" in name
                else InputError(f"{label}: has voxels of type {name}, which cannot be read; convert them to float32")
            )
        if header.has_tensors:
            raise tensors(label)
        size = header.size
        check_layout(label, len(size), header.components, options.several, size[3] if len(size) == 4 else 0)

    found = read_voxels(file, label, check=check, finite=False)
    if found is None:
        return None
    header, stored = found
    if stored is None or header.dtype is None:  # more is wanted than the file could hold, and so it was not kept
        raise InputError(f"{label}: truncated, its header promises more voxels than it holds; get a fresh copy")
    shape = header.size[::-1]
    if header.components == 1:
        stored = stored.reshape(shape)
    elif header.colours > 1:
        stored = stored.reshape(*shape, header.colours)
    else:
        # One volume of scalars after the other in the file.
        stored = np.moveaxis(stored.reshape(header.components, *shape), 0, -1)
    native = header.dtype.newbyteorder("=")
    # As ITK: what is scaled is float32, unless it was wider before.
    dtype = np.dtype(np.float32) if header.is_scaled and native.kind != "f" else native
    array = scaled(header, stored, dtype)
    where = orientation(header, label)
    oriented, code = where.source != "neither", where.code or 1
    if len(header.size) == 2 and header.components == 1 and axes_leave_xy(where.matrix):
        volume = slice_in_space(label, array, where.matrix[:3, :2], where.matrix[:3, 3])
        told = (*where.findings, *excess(header.excess, header.data_bytes, label))
        geometry = replace(volume.geometry, oriented=oriented)
        return replace(volume, geometry=geometry, findings=told, space_code=code)
    placed = place(header.size, where.matrix, label, options.resample_shear)
    findings = [*where.findings, *excess(header.excess, header.data_bytes, label), *placed.findings]
    if placed.sheared is None:
        by_itk = geometry_of_itk(file, header)
        if by_itk is not None and is_same(placed.geometry, by_itk):
            placed = replace(placed, geometry=by_itk)
        elif by_itk is not None and not findings and len(shape) == 3:
            findings.append(
                warning(
                    f"{label}: ITK, ANTs and 3D Slicer place this file elsewhere than its {where.source} does",
                    f"the {where.source} is used, as nibabel, SPM and FSL do",
                )
            )
    array = straightened(array, placed, options.labels)
    return Volume(array, placed.told(oriented).geometry, label, "path", dtype, tuple(findings), code)


def geometry_of_itk(file: Path, header: Header) -> Geometry | None:
    """Read the grid of a NIfTI-1 file as ITK does.

    Its numbers are used where they are the same grid, so that what ITK reads and what this package reads are the same
    bits.

    Parameters
    ----------
    file : Path
        The file.
    header : Header
        Its header.

    Returns
    -------
    Geometry or None
        None where ITK does not read it.
    """
    import SimpleITK as sitk

    if header.version != 1:
        return None
    reader = sitk.ImageFileReader()
    with for_itk(file) as name, quiet():
        if name is None:
            return None
        reader.SetFileName(name)
        reader.SetImageIO("NiftiImageIO")
        try:
            reader.ReadImageInformation()
            if reader.GetDimension() != len(header.size) or reader.GetSize() != header.size:
                return None
            return Geometry.make(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
        except (RuntimeError, ValueError):  # ITK's word is not needed
            return None

"""Files and folders -> `Volume`: what each format needs beside SimpleITK's reader, or in its place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from itk_nir.errors import InputError
from itk_nir.findings import Finding
from itk_nir.images.dicom import is_dicom, read_dicom, read_folder
from itk_nir.images.flat_files import read_flat_meta
from itk_nir.images.metaimage import check_metaimage
from itk_nir.images.mgh import read_mgh
from itk_nir.images.names import checked_path, for_itk, label_of
from itk_nir.images.nifti import is_nifti
from itk_nir.images.nifti_image import read_nifti
from itk_nir.images.nrrd import check_nrrd
from itk_nir.images.objects import read_sitk
from itk_nir.images.ome_zarr import is_zarr, read_zarr
from itk_nir.images.pictures import check_picture
from itk_nir.images.quiet import quiet
from itk_nir.images.volume import ReadOptions, Volume, check_layout, check_memory, not_real, unreadable

#: Endings of the formats whose files name others that hold their pixels.
_DETACHED = (".mhd", ".nhdr", ".hdr", ".img", ".img.gz")
#: What is looked at before ITK reads it: endings -> check(file, label).
_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Path, str], tuple[Finding, ...]]], ...] = (
    ((".mha", ".mhd"), check_metaimage),
    ((".nrrd", ".nhdr"), check_nrrd),
    ((".jpg", ".jpeg", ".bmp", ".png", ".tif", ".tiff"), check_picture),
)
#: What is no image, in words.
_OTHERS = {
    ".npy": "a NumPy array without a grid; load it and give the pair (array, itk_nir.Geometry)",
    ".npz": "an archive of NumPy arrays; load one of them and give the pair (array, itk_nir.Geometry)",
    ".tfm": "a transform, no image",
    ".csv": "a table, no image",
    ".nii.bz2": "packed by bzip2; unpack it, or pack it by gzip",
    ".nii.xz": "packed by xz; unpack it, or pack it by gzip",
    ".nii.zst": "packed by zstd; unpack it, or pack it by gzip",
}


def read_path(path: str | os.PathLike[str], role: str, options: ReadOptions) -> Volume:
    """Read an image file, or a folder that is one image.

    Parameters
    ----------
    path : str or os.PathLike
        The file; the folder of a DICOM series; a level of an OME-Zarr image.
    role : str
        What it is in messages.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        Nothing that can be read, or an image that cannot be used.
    """
    file = checked_path(path, role)
    label = label_of(file, role)
    name = file.name.lower()
    if is_zarr(file):
        return read_zarr(file, label, options)
    if file.is_dir():
        return read_folder(file, label, options)
    for ending, words in _OTHERS.items():
        if name.endswith(ending):
            raise InputError(f"{label}: is {words}")
    volume: Volume | None = None
    if is_nifti(file):
        volume = read_nifti(file, label, options)
        if volume is None and name.endswith((".nii", ".nii.gz")):
            raise InputError(f"{label}: no NIfTI header, or a damaged one; get a fresh copy")
    elif name.endswith((".mgh", ".mgz", ".mgh.gz")):
        volume = read_mgh(file, label, options)
    elif is_dicom(file):
        volume = read_dicom(file, label, options)
    return volume or _read_by_itk(file, label, options)


def _read_by_itk(file: Path, label: str, options: ReadOptions) -> Volume:
    """Whatever ITK knows, after a look at what it would not see."""
    import SimpleITK as sitk

    name = file.name.lower()
    found: tuple[Finding, ...] = ()
    for endings, check in _CHECKS:
        if name.endswith(endings):
            found = check(file, label)
    reader = sitk.ImageFileReader()
    with for_itk(file, alone=not name.endswith(_DETACHED)) as known, quiet():
        if known is None:
            raise InputError(f"{label}: its name is not UTF-8, and ITK opens no such file; rename it")
        reader.SetFileName(known)
        try:
            reader.ReadImageInformation()
            if reader.GetDimension() == 2 and (flat := _flat(file, label)) is not None:
                return flat
            pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
            if "complex" in pixel:
                raise not_real(label, pixel)
            size, components = reader.GetSize(), reader.GetNumberOfComponents()
            volumes = size[3] if len(size) == 4 else 0
            check_layout(label, len(size), components, options.several, volumes)
            bits = re.search(r"(\d+)-bit", pixel)
            check_memory(label, (*size, components), int(bits[1]) // 8 if bits else 1)
            image = reader.Execute()
        except RuntimeError as error:
            if (flat := _flat(file, label)) is not None:
                return flat
            raise unreadable(label, error) from error
    volume = read_sitk(image, label, options)
    return replace(volume, kind="path", findings=(*found, *volume.findings))


def _flat(file: Path, label: str) -> Volume | None:
    """A 2D MetaImage file of a plane that ITK cannot place; None for every other."""
    return read_flat_meta(file, label) if file.suffix.lower() in (".mha", ".mhd") else None

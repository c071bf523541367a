"""DICOM series -> `Volume`: the folder of one, one of its files, or a single slice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, escaped
from itk_nir.findings import Finding, note, warning
from itk_nir.images.grids import place, straightened
from itk_nir.images.names import for_itk
from itk_nir.images.objects import read_sitk
from itk_nir.images.quiet import quiet
from itk_nir.images.volume import ReadOptions, Volume, check_layout, unreadable

_ENDINGS = (".dcm", ".dicom", ".ima")
_SERIES, _POSITION, _AXES, _SPACING = "0020|000e", "0020|0032", "0020|0037", "0028|0030"
#: How far a slice may lie from its even place, in slice distances: told beyond the first, refused beyond the second.
_UNEVEN, _MISSING = 0.02, 0.25


@dataclass(frozen=True, eq=False)
class _Slice:
    """What a file says of its slice: LPS mm."""

    name: str
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: NDArray[np.float64]
    size: tuple[int, ...]


def is_dicom(file: Path) -> bool:
    """Tell whether a file is DICOM, by its name or its first bytes.

    Parameters
    ----------
    file : Path
        An ordinary file.

    Returns
    -------
    bool
    """
    if file.name.lower().endswith(_ENDINGS):
        return True
    with open(file, "rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def read_folder(folder: Path, label: str, options: ReadOptions) -> Volume:
    """Read the one DICOM series of a folder.

    Parameters
    ----------
    folder : Path
        The folder; folders in it are not looked into.
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
        No series, several, or one that is no volume.
    """
    import SimpleITK as sitk

    with for_itk(folder) as name, quiet():
        if name is None:
            raise InputError(f"{label}: its name is not UTF-8, and ITK opens no such folder; rename it")
        # The scan of a folder of other files takes long and finds nothing.
        some = any(p.is_file() for p in folder.iterdir())
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(name) if some else ()
        files = {one: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name, one) for one in series}
        if not files:
            raise InputError(
                f"{label}: is a folder without a DICOM series; give an image file (.nii.gz, .nrrd, .mha, ...)"
            )
        if len(files) > 1:
            listed = ", ".join(f"{one} ({len(f)} files, {escaped(Path(f[0]).name)} is one)" for one, f in files.items())
            raise InputError(
                f"{label}: holds {len(files)} DICOM series: {listed}; give one file of the series you mean"
            )
        names = next(iter(files.values()))
        if len(names) == 1:
            return _single(names[0], label, options)
        slices = [_slice(n) for n in names]
        return _series([s for s in slices if s is not None], len(names), label, options)


def read_dicom(file: Path, label: str, options: ReadOptions) -> Volume:
    """Read a DICOM file: the whole series that it is a slice of, a volume of several frames, or one slice, which is 2D.

    Parameters
    ----------
    file : Path
        An ordinary file.
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
        A file that cannot be read, or a series that is no volume.
    """
    import SimpleITK as sitk

    with for_itk(file) as name, for_itk(file.parent) as folder, quiet():
        if name is None or folder is None:
            raise InputError(f"{label}: its name is not UTF-8, and ITK opens no such file; rename it")
        own = _slice(name)
        series = _tag(name, _SERIES, label)
        if own is None or not series:
            return _single(name, label, options)
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, series)
        slices = [_slice(n) for n in names]
        # Scouts in several planes may be one series: only slices that lie parallel are a volume.
        alike = [s for s in slices if s is not None and s.size == own.size and np.allclose(s.axes, own.axes, atol=1e-3)]
        if len(alike) < 2:
            return _single(name, label, options)
        volume = _series(alike, len(alike), label, options)
        told = note(f"{label}: is one of {len(alike)} slices of a DICOM series", "the whole series is read")
        return replace(volume, findings=(*volume.findings, told))


def _reader(name: str) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.SetImageIO("GDCMImageIO")
    return reader


def _tag(name: str, tag: str, label: str) -> str:
    """A tag of a file; empty where it has none."""
    reader = _reader(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(label, error) from error
    return reader.GetMetaData(tag).strip().strip("\0") if reader.HasMetaDataKey(tag) else ""


def _slice(name: str) -> _Slice | None:
    """The slice of a file; None where it does not say where that lies, holds several, or cannot be read."""
    reader = _reader(name)
    try:
        reader.ReadImageInformation()
        texts = [reader.GetMetaData(tag) for tag in (_POSITION, _AXES, _SPACING) if reader.HasMetaDataKey(tag)]
        position, axes, spacing = (np.array([float(v) for v in t.strip("\0 ").split("\\")]) for t in texts)
    except (RuntimeError, ValueError):
        return None
    size = reader.GetSize()
    if (len(position), len(axes), len(spacing)) != (3, 6, 2) or (len(size) == 3 and size[2] != 1):
        return None
    return _Slice(name, position, axes.reshape(2, 3), spacing[::-1], size[:2])


def _series(slices: list[_Slice], files: int, label: str, options: ReadOptions) -> Volume:
    """The volume of parallel slices."""
    import SimpleITK as sitk

    if len(slices) < files:
        raise InputError(
            f"{label}: {files - len(slices)} of its {files} DICOM files do not say where they lie; give a volume"
        )
    first = slices[0]
    if any(s.size != first.size or not np.allclose(s.axes, first.axes, atol=1e-3) for s in slices):
        raise InputError(
            f"{label}: its {files} DICOM files are no volume, they differ in size or direction; give one of the files"
        )
    normal = np.cross(*first.axes)
    slices = sorted(slices, key=lambda s: float(normal @ s.position))
    places = np.array([s.position for s in slices])
    step = (places[-1] - places[0]) / (len(slices) - 1)
    distance = float(np.linalg.norm(step))
    gaps = np.diff(places @ normal)
    if gaps.min() <= 1e-3 * max(distance, 1e-12):
        raise InputError(
            f"{label}: several of its {len(slices)} DICOM slices lie at one place (times, echoes); give one volume"
        )
    found: list[Finding] = []
    off = np.linalg.norm(places - places[0] - np.arange(len(slices))[:, None] * step, axis=1).max() / distance
    if off > _UNEVEN:
        said = f"{label}: its DICOM slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart"
        if off > _MISSING:
            raise InputError(
                f"{said}, slices seem to be missing; complete the series, or resample it to even distances"
            )
        found.append(warning(said, f"they are taken for {distance:.4g} mm"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([s.name for s in slices])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(label, error) from error
    matrix = np.eye(4)
    matrix[:3, :2] = first.axes.T * first.spacing
    matrix[:3, 2], matrix[:3, 3] = step, places[0]
    return _volume(image, matrix, 3, label, options, found)


def _single(name: str, label: str, options: ReadOptions) -> Volume:
    """One file: a slice, which is 2D, or several frames."""
    reader = _reader(name)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(label, error) from error
    matrix = np.eye(4)
    d = image.GetDimension()
    matrix[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * image.GetSpacing()
    matrix[:d, 3] = image.GetOrigin()
    flat = d == 3 and image.GetSize()[2] == 1
    return _volume(image, matrix, 2 if flat else d, label, options, [])


def _volume(
    image: Any, matrix: NDArray[np.float64], d: int, label: str, options: ReadOptions, found: list[Finding]
) -> Volume:
    check_layout(label, d, image.GetNumberOfComponentsPerPixel(), options.several)
    volume = read_sitk(image, label, options)
    array = volume.array if d == image.GetDimension() else volume.array[0]
    placed = place(image.GetSize()[:d], matrix, label, options.resample_shear)
    array = straightened(array, placed, options.labels)
    return replace(volume, array=array, geometry=placed.geometry, kind="path", findings=(*found, *placed.findings))

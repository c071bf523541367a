"""DICOM series -> `Volume`: the folder of one, one of its files, or a single slice."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

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
#: Bytes before the first element of a file, and what the last four of them are.
_PREAMBLE, _MARK = 132, b"DICM"
#: Types of values whose length has four bytes, behind two empty ones; and those whose length has two.
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_SHORT = (
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
)  # fmt: skip
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF
#: Tags of elements: how the others are written, the class of the object, its series, its pixels, the end of a part.
_SYNTAX, _CLASS, _UID = (0x0002, 0x0010), (0x0002, 0x0002), (0x0020, 0x000E)
_PIXELS = ((0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010))
_ENDS = ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD))


@dataclass(frozen=True, eq=False)
class _Slice:
    """What a file says of its slice: LPS mm."""

    name: str
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    spacing: NDArray[np.float64]
    size: tuple[int, ...]


class _Outline(NamedTuple):
    """What the elements of a file say: its series and the class of its object, both empty where they do not come to
    that, whether there are pixels, and whether there is a class and the last element ends with the file."""

    series: str
    kind: str
    pixels: bool
    whole: bool


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
        return opened.read(_PREAMBLE)[128:] == _MARK


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
        No series, several, one that is no volume, or files that are cut off.
    """
    import SimpleITK as sitk

    with for_itk(folder) as name, quiet():
        if name is None:
            raise InputError(f"{label}: its name is not UTF-8, and ITK opens no such folder; rename it")
        # The scan of a folder of other files takes long and finds nothing.
        some = any(p.is_file() for p in folder.iterdir())
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(name) if some else ()
        files = {one: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name, one) for one in series}
        if len(files) > 1:
            listed = ", ".join(f"{one} ({len(f)} files, {escaped(Path(f[0]).name)} is one)" for one, f in files.items())
            raise InputError(
                f"{label}: holds {len(files)} DICOM series: {listed}; give one file of the series you mean"
            )
        names = next(iter(files.values()), ())
        _refuse_dropped(folder, names, next(iter(files), ""), label)
        if not names:
            raise InputError(
                f"{label}: is a folder without a DICOM series; give an image file (.nii.gz, .nrrd, .mha, ...)"
            )
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
        A file that cannot be read, a series that is no volume, or one of which files are cut off.
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
        _refuse_dropped(file.parent, names, series, label)
        slices = [_slice(n) for n in names]
        # Scouts in several planes may be one series: only slices that lie parallel are a volume.
        alike = [s for s in slices if s is not None and s.size == own.size and np.allclose(s.axes, own.axes, atol=1e-3)]
        if len(alike) < 2:
            return _single(name, label, options)
        volume = _series(alike, len(alike), label, options)
        told = note(f"{label}: is one of {len(alike)} slices of a DICOM series", "the whole series is read")
        return replace(volume, findings=(*volume.findings, told))


def _refuse_dropped(folder: Path, names: Sequence[str], series: str, label: str) -> None:
    """Refuse a series of which files may be missing: GDCM lists those that it can read, and says nothing of others.

    Others have their place beside a series: the images of another, and files without any (reports, a DICOMDIR).
    """
    # GDCM's names are UTF-8, whatever the system's are.
    listed = [Path(os.fsdecode(name.encode("utf-8", "surrogateescape"))) for name in names]
    known = {p.name for p in listed}
    kind = _outline(listed[0]).kind if listed else ""
    others = (p for p in sorted(folder.iterdir()) if p.name not in known and p.is_file())
    dropped = [p.name for p in others if p.name.upper() != "DICOMDIR" and _is_dropped(p, series, kind)]
    if dropped:
        some = ", ".join(escaped(n) for n in dropped[:3]) + (", ..." if len(dropped) > 3 else "")
        raise InputError(
            f"{label}: {len(dropped)} of its DICOM files cannot be read, cut off or damaged: {some}; get fresh "
            "copies, or move them to another folder"
        )


def _is_dropped(file: Path, series: str, kind: str) -> bool:
    """Whether a file that GDCM does not list belongs to a series of objects of a class, or may do so."""
    try:
        if not is_dicom(file):
            return False
        found = _outline(file)
    except OSError:  # may not be read
        return file.name.lower().endswith(_ENDINGS)
    if found.series not in ("", series):
        return False
    # A cut between two elements leaves an image without pixels.
    return not found.whole or (found.kind == kind != "" and (found.series == series or not found.pixels))


def _outline(file: Path) -> _Outline:
    """Go from one element of a DICOM file to the next by their lengths.

    Those of a length that is not said are entered, and so the depth is counted.
    """
    size, at, depth, pixels = file.stat().st_size, _PREAMBLE, 0, False
    texts = dict.fromkeys((_SYNTAX, _CLASS, _UID), "")
    with open(file, "rb") as opened:
        if opened.read(_PREAMBLE)[128:] != _MARK:
            # An older kind, or something else under such a name, as what macOS puts beside files (._*).
            return _Outline("", "", False, size >= _PREAMBLE or file.name.startswith("."))
        while at < size:
            opened.seek(at)
            head = opened.read(12)
            if not head.strip(b"\0"):  # the end is filled up
                break
            if len(head) < 8:
                at = size + 1
                break
            tag, width, length = _element(head, texts[_SYNTAX])
            at += width
            if length == _UNDEFINED:
                depth += 1
            elif tag in _ENDS:
                depth -= 1
            else:
                at += length
            if depth == 0 and tag in texts and at <= size:
                opened.seek(at - length)
                texts[tag] = opened.read(length).decode("latin1").strip(" \0")
            pixels = pixels or tag in _PIXELS
            if texts[_SYNTAX] == _DEFLATED:  # what follows is packed as a whole
                return _Outline("", "", False, True)
    return _Outline(texts[_UID], texts[_CLASS], pixels, at <= size and depth == 0 and texts[_CLASS] != "")


def _element(head: bytes, syntax: str) -> tuple[tuple[int, int], int, int]:
    """The tag of an element, the bytes of its head and those of its value."""
    # The first group, which says how the others are written, is always written alike.
    first = head[:2] == b"\2\0"
    order = ">" if syntax == _BIG_ENDIAN and not first else "<"
    group, element = struct.unpack_from(order + "HH", head)
    kind = b"" if group == 0xFFFE or (syntax == _IMPLICIT and not first) else head[4:6]
    if kind in _SHORT:
        return (group, element), 8, struct.unpack_from(order + "H", head, 6)[0]
    if kind in _LONG:
        return (group, element), 12, struct.unpack_from(order + "I", head.ljust(12, b"\0"), 8)[0]
    return (group, element), 8, struct.unpack_from(order + "I", head, 4)[0]


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
    if any(
        s.size != first.size
        or not np.allclose(s.axes, first.axes, atol=1e-3)
        or not np.allclose(s.spacing, first.spacing, rtol=1e-3)
        for s in slices
    ):
        raise InputError(
            f"{label}: its {files} DICOM files are no volume, they differ in size, direction or pixel spacing; give "
            "one of the files"
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

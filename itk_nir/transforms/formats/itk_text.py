"""Transforms as ITK's other files: text (.tfm, .txt) and MATLAB's format (.mat), in double precision."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from itk_nir.atomic import refuse_cut, refuse_if_full
from itk_nir.errors import InputError, WriteError, one_line
from itk_nir.geometry import Geometry
from itk_nir.places import itk_name
from itk_nir.transforms.as_simpleitk import from_sitk, to_sitk
from itk_nir.transforms.formats.base import (
    HDF,
    MATLAB,
    TEXT,
    Directions,
    Mapping,
    Place,
    Points,
    SavedFile,
    has_ending,
    parameter_file_prefix,
)
from itk_nir.transforms.formats.itk_h5 import UnknownTransformType, read_h5
from itk_nir.transforms.formats.itk_layout import add_count, check_matlab, check_text
from itk_nir.transforms.model import CompositeTransform

#: Bytes of the longest number, and more than those of a line of other text.
_LINE = 26
#: What ITK says of a class that it has no reader for.
_NO_READER = re.compile(r'Could not create an instance of "(\w+)"')


@dataclass(frozen=True)
class ItkText:
    """ITK's text and MATLAB files: the parts of the transform as they are; of linear ones only in the latter."""

    endings: tuple[str, ...] = (*TEXT, *MATLAB)
    dimensions: tuple[int, ...] = (2, 3)

    def accepts(self, name: str) -> bool:
        """Tell whether the name has one of the endings and is none of elastix'."""
        return has_ending(name, self.endings) and parameter_file_prefix(name) is None

    def prefix(self, name: str) -> str:
        """Give the name itself: one file holds all."""
        return name

    def save(
        self, transform: CompositeTransform, place: Place, points: Points, reference: Geometry | None, label: str
    ) -> list[SavedFile]:
        """Write one transform.

        Raises
        ------
        InputError
            A ``.mat`` file of anything but a linear transform.
        """
        if has_ending(label, MATLAB) and not transform.is_linear:
            raise InputError(f"{label}: ITK's .mat files hold linear transforms only; use .h5")
        path = place.stage / place.start
        write_itk_file(transform, path, None if reference is None else reference.centre)
        return [SavedFile("transform", place.start, transform, points, self.applied(path))]

    def save_both(self, directions: Directions, place: Place) -> list[SavedFile]:
        """Write ``Composite.tfm`` and ``InverseComposite.tfm``."""
        out = []
        for key, name, transform, points, grid in (
            ("composite", "Composite.tfm", directions.forward, directions.points, directions.fixed),
            ("inverse_composite", "InverseComposite.tfm", directions.inverse, directions.moved, directions.moving),
        ):
            path = place.stage / f"{place.start}{name}"
            write_itk_file(transform, path, grid.centre)
            out.append(SavedFile(key, path.name, transform, points, self.applied(path)))
        return out

    def applied(self, path: Path) -> Mapping:
        """Give the map of a file as ITK applies it."""
        return lambda points: _apply(path, points)


def write_itk_file(
    transform: CompositeTransform, path: str | os.PathLike[str], centre: ArrayLike | None = None
) -> None:
    """Write a transform with ITK's own writer, in double precision.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving. Its inverse is not written.
    path : str or os.PathLike
        The file; its ending chooses the format.
    centre : array_like, optional
        ``(d,)``, LPS mm, the point that linear transforms are written about; the origin of physical space when left
        out.

    Raises
    ------
    WriteError, OSError
        ITK cannot write it, or what it wrote is not the transform.
    """
    import SimpleITK as sitk

    name, written = itk_name(path), to_sitk(transform, centre)
    refuse_if_full(Path(path), _LINE * (1 + len(written.GetParameters()) + len(written.GetFixedParameters())))
    try:
        sitk.WriteTransform(written, name)
        found = sitk.ReadTransform(name)
    except RuntimeError as error:
        raise WriteError(f"{Path(path).name}: cannot be written ({one_line(error)}); check the disk") from error
    refuse_cut(Path(path))
    # Both formats keep every bit, and a number that lost its end is another.
    same = (
        found.GetParameters() == written.GetParameters() and found.GetFixedParameters() == written.GetFixedParameters()
    )
    if not same:
        raise WriteError(f"{Path(path).name}: read back, it is not what was written; the disk is full, make room")
    if has_ending(os.fspath(path), TEXT):
        add_count(Path(path), len(transform.transforms))


def is_itk_file(path: Path) -> bool:
    """Tell whether a file begins as ITK's text or MATLAB files do.

    Parameters
    ----------
    path : Path
        An existing file.

    Returns
    -------
    bool
        Whether it does.
    """
    with open(path, "rb") as file:
        head = file.read(16)
    return head.startswith(b"#Insight") or b"\0" in head


def read_itk_file(path: Path, reference: Geometry | None, label: str) -> CompositeTransform:
    """Read a transform file of ITK's in any of its formats.

    Parameters
    ----------
    path : Path
        The file.
    reference : Geometry or None
        Grid of fixed space to sample transforms on that are neither linear nor a displacement field.
    label : str
        What opens every message.

    Returns
    -------
    CompositeTransform
        Fixed -> moving.

    Raises
    ------
    InputError
        A damaged file, one of a class that ITK does not read, or one that has to be sampled and no `reference`.
    """
    if has_ending(path.name, (*HDF, ".hdf")):
        try:
            return read_h5(path)
        except UnknownTransformType:
            pass  # SimpleITK knows every class of ITK's
        except InputError as error:
            raise InputError(f"{label}: {str(error).removeprefix(str(path) + ': ')}") from error
    if has_ending(path.name, MATLAB):
        check_matlab(path, label)
    elif has_ending(path.name, TEXT):
        check_text(path, label)
    try:
        with _as_composite(path) as whole:
            return from_sitk(_read(whole), reference)
    except RuntimeError as error:
        unknown = _NO_READER.search(str(error))
        if unknown is not None:
            raise InputError(
                f"{label}: is a {unknown[1]}, which ITK does not read from files; write it as an AffineTransform or as "
                "a displacement field"
            ) from error
        raise InputError(f"{label}: damaged or no ITK transform file ({one_line(error)})") from error
    except InputError as error:
        raise InputError(f"{label}: {str(error).removeprefix('transform: ')}") from error


@contextmanager
def _as_composite(path: Path) -> Iterator[Path]:
    """A text file of several transforms as that of their composite, as ANTs takes it; any other file as it is.

    SimpleITK takes the first transform of such a list, and nothing else.
    """
    text = path.read_text(encoding="latin-1") if has_ending(path.name, TEXT) else ""
    names = re.findall(r"^Transform:\s*(\S+)", text, re.MULTILINE)
    if len(names) < 2 or names[0].startswith("CompositeTransform"):
        yield path
        return
    kind = "_".join(["CompositeTransform", *names[0].split("_")[1:4]])
    body = text[text.index("Transform:") :]
    with tempfile.TemporaryDirectory(prefix="itk_nir_") as folder:
        whole = Path(folder) / "composite.tfm"
        whole.write_text(
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\n#Transform 1\n{body}", encoding="latin-1"
        )
        yield whole


def _read(path: Path) -> Any:
    """A file by SimpleITK, whose own function fails where it has read a class that it has none of its own for."""
    from SimpleITK import _SimpleITK  # type: ignore[attr-defined]

    return _SimpleITK.ReadTransform(itk_name(path))


def _apply(path: Path, points: Points) -> Points:
    import SimpleITK as sitk

    transform = sitk.ReadTransform(itk_name(path))
    return np.array([transform.TransformPoint(p.tolist()) for p in points])

"""What all formats have in common: where their files go, and what is checked after they are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.transforms.model import CompositeTransform

Points: TypeAlias = NDArray[np.float64]
Mapping: TypeAlias = Callable[[Points], Points]

HDF = (".h5", ".hdf5")
TEXT = (".tfm", ".txt")
MATLAB = (".mat",)
NIFTI = (".nii", ".nii.gz")
IMAGES = (*NIFTI, ".mha", ".mhd", ".nrrd")
#: Every ending that tells what a file of one transform is.
ENDINGS = (*HDF, *TEXT, *MATLAB, *IMAGES)


@dataclass(frozen=True, eq=False)
class Spaces:
    """What a user says about a transform that a file leaves open.

    Attributes
    ----------
    fixed : Geometry or None
        Grid of the fixed image, on which what has to be sampled is sampled.
    moving : Geometry or None
        Grid of the moving image.
    convention : str or None
        Whose convention files follow that do not tell it themselves.
    """

    fixed: Geometry | None = None
    moving: Geometry | None = None
    convention: str | None = None


_PARAMETER_FILE = re.compile(r"(.*)TransformParameters\.\d+\.txt$", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Place:
    """Where the files of one save go.

    Attributes
    ----------
    stage : Path
        Folder to write to.
    start : str
        What every name begins with; the whole name where one file holds all.
    location : Path
        Folder that the files will be moved to (elastix' files name each other by absolute path).
    """

    stage: Path
    start: str
    location: Path


@dataclass(frozen=True, eq=False)
class Directions:
    """A transform and its inverse, and where they are tried.

    Attributes
    ----------
    forward, inverse : CompositeTransform
        Fixed -> moving and moving -> fixed.
    fixed, moving : Geometry
        Grids of the two images.
    points, moved : numpy.ndarray
        ``(N, d)`` fixed points and where `forward` takes them, LPS mm.
    """

    forward: CompositeTransform
    inverse: CompositeTransform
    fixed: Geometry
    moving: Geometry
    points: Points
    moved: Points


@dataclass(frozen=True, eq=False)
class SavedFile:
    """A file that was written, and what to compare with what it says when it is read back.

    Attributes
    ----------
    key : str
        What the file is to the user: ``"composite"``, ``"warp"``, ...
    name : str
        Its name, without the folder.
    holds : CompositeTransform or None
        The map that the file stands for. None for a part that is checked with the file that names it.
    points : numpy.ndarray or None
        ``(N, d)`` points to compare at, LPS mm.
    applied : callable or None
        Points -> points as the format's own readers apply the file.
    exact : callable or None
        What `holds` does, where that keeps less digits than the file.
    sampled_from : CompositeTransform or None
        The map that had to be sampled to get `holds`.
    """

    key: str
    name: str
    holds: CompositeTransform | None = None
    points: Points | None = None
    applied: Mapping | None = None
    exact: Mapping | None = None
    sampled_from: CompositeTransform | None = None


class Format(Protocol):
    """Files of one kind: which names they have, how they are written, and how their readers apply them."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the names; none where a prefix is given."""
        ...

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Dimensions that the files can have."""
        ...

    def accepts(self, name: str) -> bool:
        """Tell whether `save` can write a transform under this name.

        Parameters
        ----------
        name : str
            A file name or prefix.

        Returns
        -------
        bool
        """
        ...

    def prefix(self, name: str) -> str:
        """Give what all names begin with, from the name that the user gave.

        Parameters
        ----------
        name : str
            The name that the user gave.

        Returns
        -------
        str
        """
        ...

    def save(
        self, transform: CompositeTransform, place: Place, points: Points, reference: Geometry | None, label: str
    ) -> list[SavedFile]:
        """Write one transform.

        Parameters
        ----------
        transform : CompositeTransform
            Fixed → moving, LPS mm.
        place : Place
            Where the files go.
        points : ndarray
            ``(N, d)`` LPS mm, at which the files are checked.
        reference : Geometry or None
            A grid of fixed space if the user gave one.
        label : str
            Opens messages.

        Returns
        -------
        list of SavedFile
        """
        ...

    def save_both(self, directions: Directions, place: Place) -> list[SavedFile]:
        """Write a transform and its inverse under the format's own names.

        Parameters
        ----------
        directions : Directions
            The transform and its inverse.
        place : Place
            Where the files go.

        Returns
        -------
        list of SavedFile
        """
        ...


def has_ending(name: str, endings: tuple[str, ...] = ENDINGS) -> bool:
    """Tell whether a name has one of some endings, in small or capital letters.

    Parameters
    ----------
    name : str
        The name of a file.
    endings : tuple of str, optional
        Any that tells a format when left out.

    Returns
    -------
    bool
        Whether it has.
    """
    return name.lower().endswith(endings)


def needs_reference(label: str, reason: str) -> InputError:
    """Make the error of a transform that has to be sampled, on a grid that nobody gave.

    Parameters
    ----------
    label : str
        The file that cannot be written.
    reason : str
        Why a grid is needed.

    Returns
    -------
    InputError
        To be raised.
    """
    return InputError(f"{label}: {reason}; give the fixed image as the reference")


def parameter_file_prefix(name: str) -> str | None:
    """Give what stands before ``TransformParameters.N.txt`` in the name of one of elastix' parameter files.

    Parameters
    ----------
    name : str
        The name, with or without a folder.

    Returns
    -------
    str or None
        None if the name is none of elastix'.
    """
    match = _PARAMETER_FILE.fullmatch(name)
    return None if match is None else match[1]

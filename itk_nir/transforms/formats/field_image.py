"""The whole of a transform as one image of displacements: ``.nii.gz``, ``.nrrd``, ``.mha``.

The vectors are LPS mm in every format, ANTs' NIfTI files (intent 1007, a vector) among them; they are RAS mm in NIfTI
files with the intent 1006, NIfTI's own word for a displacement.
"""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.atomic import replacing
from itk_nir.errors import InputError, one_line, warn_caller
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.images.nifti import SideBySide, is_nifti, parse_header, read_voxels, refuse_not_finite
from itk_nir.images.nifti_header import Header
from itk_nir.images.quiet import quiet
from itk_nir.places import itk_name
from itk_nir.transforms.check import random_points
from itk_nir.transforms.composition import whole_field_grid
from itk_nir.transforms.formats.base import (
    IMAGES,
    Directions,
    Mapping,
    Place,
    Points,
    SavedFile,
    Spaces,
    has_ending,
    needs_reference,
)
from itk_nir.transforms.formats.matrices import DISPLACEMENTS
from itk_nir.transforms.formats.nifti_field import intent_of, read_by_intent, refuse_by_intent
from itk_nir.transforms.model import CompositeTransform, DisplacementField, interpolate_vectors

_RAS, _LPS = 1006, 1007
#: Displacements are in double precision where rounding to single would cost more than this, in voxels.
_ROUNDING = 1e-4
#: A shift of a grid that is none, and one that leaves voxels of an image out, in voxels.
_SHIFT, _MISSED = 1e-5, 0.75
#: How far the linear part of a field may be from that of positions to be taken for one. A true map that stretches
#: everything by more than this share of a doubling is taken for what it is.
_LIKE_POSITIONS = 0.35


@dataclass(frozen=True)
class FieldImage:
    """Images of displacements.

    Attributes
    ----------
    name : str
        What the forward field of a result is called; the inverse one has ``Inverse`` in front.
    ras : bool
        RAS vectors and intent 1006 (NIfTI only) instead of LPS vectors.
    endings : tuple of str
        Endings of the names.
    """

    name: str = "Displacement.nrrd"
    ras: bool = False
    endings: tuple[str, ...] = IMAGES

    @property
    def dimensions(self) -> tuple[int, ...]:
        """2 and 3; 3 alone for RAS vectors, which ITK 5.4 misreads in 2D."""
        return (3,) if self.ras else (2, 3)

    def accepts(self, name: str) -> bool:
        """Tell whether the name has one of the endings."""
        return has_ending(name, self.endings)

    def prefix(self, name: str) -> str:
        """Give the name itself: one file holds all."""
        return name

    def save(
        self, transform: CompositeTransform, place: Place, points: Points, reference: Geometry | None, label: str
    ) -> list[SavedFile]:
        """Write one transform: a single displacement field as it is, anything else sampled on the reference.

        Raises
        ------
        InputError
            A transform that has to be sampled and no reference.
        """
        only = transform.transforms[0] if len(transform.transforms) == 1 else None
        if reference is None and not isinstance(only, DisplacementField):
            raise needs_reference(label, "the transform is more than one displacement field and has to be sampled")
        as_it_is = isinstance(only, DisplacementField) and nifti_grid(only.geometry) is only.geometry
        if isinstance(only, DisplacementField) and reference is None and (as_it_is or not is_nifti(place.start)):
            return [self._file("transform", place.start, transform, only.geometry, place, points, only.vectors)]
        grid = reference or transform.fields[0].geometry
        return [self._file("transform", place.start, transform, grid, place, points)]

    def save_both(self, directions: Directions, place: Place) -> list[SavedFile]:
        """Write a field on a grid that covers the fixed image, and one of the inverse that covers the moving image."""
        there, back = f"{place.start}{self.name}", f"{place.start}Inverse{self.name}"
        forward, inverse = directions.forward, directions.inverse
        fixed, moving = whole_field_grid(forward, directions.fixed), whole_field_grid(inverse, directions.moving)
        return [
            self._file("displacement", there, forward, fixed, place, directions.points),
            self._file("inverse_displacement", back, inverse, moving, place, directions.moved),
        ]

    def applied(self, path: Path) -> Mapping:
        """Give the map of a file as ITK, SimpleITK, ANTs or 3D Slicer apply it."""
        if is_nifti(path):
            return lambda points: _apply_nifti(path, points)
        return lambda points: _apply_image(path, points)

    def _file(
        self,
        key: str,
        name: str,
        transform: CompositeTransform,
        grid: Geometry,
        place: Place,
        points: Points,
        vectors: NDArray[Any] | None = None,
    ) -> SavedFile:
        if vectors is None and is_nifti(name):
            grid = nifti_grid(grid)
        values = displacements(transform, grid) if vectors is None else vectors
        path = place.stage / name
        write_vectors(values, grid, path, ras=self.ras)
        at = _within(grid, points)
        return SavedFile(
            key,
            name,
            CompositeTransform((DisplacementField(grid, values),)),
            at if len(at) else random_points(grid),
            self.applied(path),
            lambda p: p + interpolate_vectors(values, grid.physical_to_index(p)),
            transform if vectors is None else None,
        )


def nifti_grid(grid: Geometry) -> Geometry:
    """Give the grid next to another whose origin a NIfTI header holds, which is in single precision.

    Parameters
    ----------
    grid : Geometry
        Any grid.

    Returns
    -------
    Geometry
        The grid itself where the rounding of its origin is below a hundred-thousandth of a voxel, and where it is so
        large that the other grid would miss the image (the self-check tells then).
    """
    with np.errstate(over="ignore"):
        origin = np.asarray(grid.origin, np.float32).astype(np.float64)
    shift = np.abs(origin - grid.origin).max() / min(grid.spacing)
    if not _SHIFT < shift < _MISSED:
        return grid
    return Geometry.make(grid.size, grid.spacing, origin, grid.direction)


def displacements(transform: CompositeTransform, grid: Geometry) -> NDArray[Any]:
    """Sample the displacement of a transform at the voxels of a grid.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed -> moving.
    grid : Geometry
        A grid of fixed space.

    Returns
    -------
    numpy.ndarray
        ``grid.shape + (d,)``, LPS mm. Single precision, or double where some are longer than a thousand voxels, as
        between images whose origins lie far apart.
    """
    single = transform.displacement_on(grid).vectors
    longest = max(abs(float(single.max())), abs(float(single.min())))
    if longest * 2.0**-24 <= _ROUNDING * min(grid.spacing):
        return single
    out = np.empty(single.shape, np.float64)
    for part, points, mapped in transform.rows(grid):
        np.subtract(mapped, points, out=out[part])
    return out


def write_vectors(vectors: NDArray[Any], grid: Geometry, path: Path, *, ras: bool = False) -> None:
    """Write displacements as a vector image; the file appears complete or not at all.

    Parameters
    ----------
    vectors : numpy.ndarray
        ``grid.shape + (d,)``, LPS mm.
    grid : Geometry
        Their grid.
    path : Path
        The file; its suffix chooses the format.
    ras : bool, default False
        RAS vectors with intent 1006 (3D NIfTI) instead of LPS vectors (NIfTI: intent 1007).
    """
    if not ras:
        # Displacements hardly compress; where the name does not ask for it, time is worth more.
        save_image(vectors, grid, path, compression=int(path.name.lower().endswith(".gz")))
        return
    # SimpleITK has no writer for RAS vectors: the header is set by hand.
    turned = vectors.copy()
    turned[..., :2] *= -1
    packed = path.name.lower().endswith(".gz")
    with replacing(path) as temporary:
        plain = temporary.with_name(temporary.name[: -len(".gz")]) if packed else temporary
        try:
            save_image(turned, grid, plain, compression=0)
            with open(plain, "r+b") as file:
                file.seek(68)
                file.write(struct.pack("<h", _RAS))
            if packed:
                with open(plain, "rb") as source, gzip.open(temporary, "wb", compresslevel=1) as target:
                    shutil.copyfileobj(source, target, 1 << 22)
        finally:
            if packed:
                plain.unlink(missing_ok=True)


def read_field(path: Path, label: str, spaces: Spaces | None = None) -> DisplacementField:
    """Read a vector image as a displacement field.

    Parameters
    ----------
    path : Path
        The file. NIfTI files with intent 1006 hold RAS vectors, those of SPM and NiftyReg what their intent says,
        everything else LPS mm.
    label : str
        What opens every message.
    spaces : Spaces, optional
        The fixed image's grid, which NiftyReg's control points are sampled on; and the convention: ``"displacements"``
        says that the values are displacements in LPS mm, whatever the file looks like.

    Returns
    -------
    DisplacementField
        Fixed -> moving.

    Raises
    ------
    InputError
        A file that is no image, is damaged, is not finite, or has another number of values a voxel than axes; one whose
        values are positions, or FSL's.
    """
    import SimpleITK as sitk

    asked = spaces or Spaces()
    intent = intent_of(path, label) if is_nifti(path) else None
    if intent is not None and asked.convention != DISPLACEMENTS:
        refuse_by_intent(intent, label)
        found = read_by_intent(path, intent, asked.fixed, label)
        if found is not None:
            return found
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(label, error) from error
    d = reader.GetDimension()
    if d == 4 and reader.GetSize()[3] in (2, 3) and reader.GetNumberOfComponents() == 1:
        raise InputError(
            f"{label}: is 4D with {reader.GetSize()[3]} volumes and says nowhere whether they are displacements or "
            "positions, and in which coordinates; write displacements as a vector image (NIfTI: 5D; intent 1007 "
            "for LPS mm, 1006 for RAS mm)"
        )
    if d not in (2, 3) or reader.GetNumberOfComponents() != d:
        raise InputError(
            f"{label}: is a {d}D image with {reader.GetNumberOfComponents()} values a voxel, no displacement "
            "field; a field has as many values as axes (NIfTI: 5D with intent code 1007)"
        )
    if d == 2 and intent is not None and intent.code == _RAS:
        raise InputError(
            f"{label}: is a 2D field with RAS vectors (NIfTI intent 1006), which ITK misreads; write it with LPS "
            "vectors and intent 1007"
        )
    try:
        geometry = Geometry.make(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    except ValueError as error:
        raise InputError(f"{label}: its grid cannot be used ({one_line(error)})") from error
    if path.name.lower().endswith(".mha"):
        _refuse_damaged(path, label)
    vectors = _nifti_vectors(path, geometry, label) if is_nifti(path) else None
    if vectors is None:
        try:
            with quiet():
                image = reader.Execute()
            vectors = sitk.GetArrayFromImage(image).astype(np.float32)
        except RuntimeError as error:
            raise _unreadable(label, error) from error
    try:
        field = DisplacementField(geometry, vectors)
    except InputError as error:
        refuse_not_finite(vectors, label)
        raise InputError(f"{label}: {error}") from error
    if asked.convention != DISPLACEMENTS:
        _question(field, label)
    return field


def _unreadable(label: str, error: Exception) -> InputError:
    return InputError(
        f"{label}: neither a transform file nor an image ({one_line(error)}); give a transform file (.h5, .tfm, .mat, "
        ".txt, ...) or a displacement field (.nii.gz, .nrrd, .mha, ...)"
    )


def _refuse_damaged(path: Path, label: str) -> None:
    """Unpack a compressed MetaImage once: ITK's reader does not say that what comes out is damaged."""
    raw = path.read_bytes()
    head, mark, data = raw.partition(b"ElementDataFile = LOCAL\n")
    if not mark or not re.search(rb"^CompressedData = True\s*$", head, re.MULTILINE):
        return
    try:
        zlib.decompress(data)
    except zlib.error as error:
        raise InputError(f"{label}: damaged, what is packed in it cannot be unpacked ({error})") from error


def _question(field: DisplacementField, label: str) -> None:
    """Refuse a field whose vectors are positions; warn of one that takes most of its grid elsewhere.

    Positions grow along the axes as the grid's own do (in RAS two of them the other way round), displacements hardly:
    this looks at the linear map that fits the vectors best.
    """
    grid, d = field.geometry, field.dimension
    step = [max(1, n // 16) for n in grid.shape]
    part = tuple(slice(None, None, s) for s in step)
    at = np.stack(np.meshgrid(*[np.arange(0, n, s) for n, s in zip(grid.shape, step, strict=True)], indexing="ij"), -1)
    p = grid.index_to_physical(at[..., ::-1].reshape(-1, d))
    u = field.vectors[part].reshape(-1, d).astype(np.float64)
    centred = p - p.mean(axis=0)
    slope = np.linalg.lstsq(centred, u - u.mean(axis=0), rcond=None)[0].T
    extent = float(np.sqrt((centred**2).sum(axis=1).mean()))
    for flip in (np.ones(d), np.array([-1.0, -1.0, 1.0])[:d]):
        near = float(np.sqrt(((u - p * flip) ** 2).sum(axis=1).mean())) < extent
        if near and np.linalg.norm(slope - np.diag(flip), 2) < _LIKE_POSITIONS:
            frame = "LPS" if flip[0] > 0 else "RAS"
            raise InputError(
                f"{label}: looks like absolute positions in {frame} mm, not displacements; subtract the positions of "
                "the voxels, or say with the convention 'displacements' that they are LPS displacements"
            )
    outside = float((~grid.contains(p + u)).mean())
    if outside > 0.5 and np.linalg.norm(slope, 2) > 0.2:
        warn_caller(
            f"{label}: takes {outside:.0%} of its own grid outside itself; check that it holds displacements in LPS mm"
        )


def _nifti_vectors(path: Path, grid: Geometry, label: str) -> NDArray[np.float32] | None:
    """LPS vectors from the file's own bytes; None where ITK alone knows what to make of the file."""
    d = grid.dimension
    vectors: list[SideBySide] = []

    def into(header: Header) -> SideBySide | None:
        plain = header.intent in (_RAS, _LPS) and not header.is_scaled and header.colours == 1
        if not plain or header.dtype is None or header.shape != (*grid.size, *(1,) * (4 - d), d):
            return None
        vectors.append(SideBySide(int(np.prod(grid.size)), d, header.dtype, np.dtype(np.float32)))
        return vectors[0]

    found = read_voxels(path, label, finite=False, into=into)
    if found is None or not vectors:
        return None
    out = vectors[0].array.reshape(*grid.shape, d)
    if found[0].intent == _RAS:
        out[..., :2] *= -1
    return out


def _apply_image(path: Path, points: Points) -> Points:
    import SimpleITK as sitk

    image = sitk.ReadImage(itk_name(path))
    d = points.shape[1]
    scale = np.reshape(image.GetDirection(), (d, d)) * image.GetSpacing()
    index = (points - image.GetOrigin()) @ np.linalg.inv(scale).T
    return points + interpolate_vectors(sitk.GetArrayViewFromImage(image), index)


def _apply_nifti(path: Path, points: Points) -> Points:
    raw = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
    header = parse_header(raw[:540])
    if header is None:
        raise ValueError("no NIfTI header")
    d = points.shape[1]
    # ITK's choice between the two orientations.
    ras = header.sform if header.sform_code == 1 or header.qform is None else header.qform
    if (
        ras is None
        or header.shape[3:] != (1, d)
        or header.datatype not in (16, 64)
        or header.intent not in (_RAS, _LPS)
    ):
        raise ValueError(f"no displacement field of real numbers: intent {header.intent}, size {header.shape}")
    flip = np.array([-1.0, -1.0, 1.0])
    there = np.zeros((len(points), 3))
    there[:, :d] = points
    index = (there * flip - ras[:3, 3]) @ np.linalg.inv(ras[:3, :3]).T
    # One volume of scalars after the other, x fastest.
    kind = "f4" if header.datatype == 16 else "f8"
    data = np.frombuffer(raw, header.byte_order + kind, int(np.prod(header.shape)), header.offset)
    volumes = data.reshape(d, *header.shape[2::-1])
    shift = np.stack(
        [interpolate_vectors(v.reshape(*header.shape[d - 1 :: -1], 1), index[:, :d])[:, 0] for v in volumes], -1
    )
    return points + (shift * flip[:d] if header.intent == _RAS else shift)


def _within(grid: Geometry, points: Points) -> Points:
    """The points between the outermost voxel centres."""
    index = grid.physical_to_index(points)
    return points[((index >= 0) & (index <= np.asarray(grid.size) - 1)).all(axis=1)]

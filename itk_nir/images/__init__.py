"""Any image → `Volume` (an array and its `Geometry`), and back. Point files too.

One table, `READERS`, lists the kinds of image that come in; a new kind is one more row. Every reader refuses, with a
one-line `InputError`, what no registration can use: vector, colour or complex pixels, 4D, NaN. A `Volume` that left
this module is a finite scalar image in 2 or 3 dimensions.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images.nifti import check_nifti, is_nifti


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image in memory.

    Attributes
    ----------
    array : ``([D,] H, W)``, C-contiguous; float32, or the file's own type if `load_image` was asked for it.
    geometry : its grid.
    name : what to call it in a message, for example ``"fixed image /data/f.nii.gz"``.
    kind : where it came from and so what results are given as: ``"itk"``, ``"sitk"`` or ``"path"``.
    pixel_type : type of the source's pixels.
    warnings : what the reader found odd, one line each.
    """

    array: NDArray[Any]
    geometry: Geometry
    name: str
    kind: str
    pixel_type: np.dtype[Any]
    warnings: tuple[str, ...] = ()

    @property
    def dimension(self) -> int:
        return self.geometry.dimension


def load_image(image: Any, role: str, *, native: bool = False) -> Volume:
    """Read an image of any kind that `READERS` knows.

    Parameters
    ----------
    image : ``itk.Image``, ``SimpleITK.Image``, a path, or a `Volume` (returned as it is).
    role : what it is in messages: ``"fixed image"``, ``"moving mask"``, ...
    native : keep the pixel type (label maps); float32 otherwise.

    Raises
    ------
    InputError : missing, unreadable or truncated file; not 2D or 3D; more than one component a pixel; complex
        pixels; NaN or infinite values; a kind of object that is not known.
    """
    for _, accepts, reader in READERS:
        if accepts(image):
            volume = reader(image, role)
            return volume if native else replace(volume, array=_contiguous(volume.array, np.float32))
    known = ", ".join(name for name, _, _ in READERS)
    raise InputError(f"{role}: cannot use an object of type {type(image).__name__}; give one of: {known}")


def to_itk(array: NDArray[Any], geometry: Geometry) -> Any:
    """An ``itk.Image`` of its own memory from ``shape`` scalars or ``shape + (d,)`` vectors (float32).

    ITK's Python wheels lack some integer types; those go to the next wider one (bool to uint8).
    """
    import itk

    if array.ndim == geometry.dimension + 1:
        return _itk_vectors(array, geometry, itk.F)
    image = itk.image_from_array(np.ascontiguousarray(_wrapped_type(array)))
    _place(image, geometry)
    return image


def to_sitk(array: NDArray[Any], geometry: Geometry) -> Any:
    """A ``SimpleITK.Image`` of its own memory from ``shape`` scalars or ``shape + (d,)`` vectors."""
    import SimpleITK as sitk

    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(array, isVector=array.ndim == geometry.dimension + 1)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.rotation.ravel().tolist())
    return image


def like(array: NDArray[Any], geometry: Geometry, kind: str) -> Any:
    """An image of the given `Volume.kind`; images that came from a path go out as ``itk.Image``."""
    return to_sitk(array, geometry) if kind == "sitk" else to_itk(array, geometry)


def save_image(array: NDArray[Any], geometry: Geometry, path: str | os.PathLike[str], *, compression: int = 1) -> None:
    """Write an image; the file appears complete or not at all.

    Parameters
    ----------
    array : ``shape`` scalars, or ``shape + (d,)`` vectors (LPS mm; NIfTI intent 1007, as ANTs writes its warps).
    path : the suffix chooses the format.
    compression : gzip level 1 to 9, for formats that have it; 0 writes uncompressed where the format allows.

    Raises
    ------
    InputError : no such folder, or a suffix that no writer knows.
    """
    import SimpleITK as sitk

    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; create it first")
    temporary = temporary_name(target)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(temporary))
    writer.SetUseCompression(compression > 0)
    writer.SetCompressionLevel(compression or -1)
    try:
        writer.Execute(to_sitk(array, geometry))
        os.replace(temporary, target)
    except RuntimeError as error:
        raise InputError(f"{target}: cannot be written ({one_line(error)}); try .nii.gz, .mha or .nrrd") from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(target: Path) -> Path:
    """A hidden name in the same folder that keeps every suffix, because writers choose the format by it."""
    return target.with_name(f".{os.getpid()}.part.{target.name}")


# --- readers ---------------------------------------------------------------------------------------------------------


def _is_itk(image: Any) -> bool:
    return "itk" in sys.modules and hasattr(image, "GetLargestPossibleRegion") and hasattr(image, "GetBufferedRegion")


def _is_sitk(image: Any) -> bool:
    module = sys.modules.get("SimpleITK")
    return module is not None and isinstance(image, module.Image)


def _read_itk(image: Any, role: str) -> Volume:
    import itk

    try:
        image.Update()
    except RuntimeError as error:
        raise InputError(f"{role}: its ITK pipeline failed ({one_line(error)})") from error
    _check_layout(role, int(image.GetImageDimension()), int(image.GetNumberOfComponentsPerPixel()))
    try:
        view = itk.array_view_from_image(image)
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(f"{role}: ITK gives no array of this image ({one_line(error)}); cast it to float") from error
    region = image.GetBufferedRegion()
    _check_pixels(role, view.dtype)
    # The origin belongs to index 0, which after a crop is not the first voxel.
    origin = image.TransformIndexToPhysicalPoint(region.GetIndex())
    direction = itk.array_from_matrix(image.GetDirection())
    geometry = _geometry(role, tuple(region.GetSize()), tuple(image.GetSpacing()), tuple(origin), direction)
    array = np.array(view, order="C")
    _check_values(role, array)
    return Volume(array, geometry, role, "itk", view.dtype)


def _read_sitk(image: Any, role: str) -> Volume:
    import SimpleITK as sitk

    _check_layout(role, image.GetDimension(), image.GetNumberOfComponentsPerPixel())
    array = sitk.GetArrayFromImage(image)
    _check_pixels(role, array.dtype)
    geometry = _geometry(role, image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    _check_values(role, array)
    return Volume(array, geometry, role, "sitk", array.dtype)


def _read_path(path: str | os.PathLike[str], role: str) -> Volume:
    import SimpleITK as sitk

    file = Path(path)
    label = f"{role} {file}"
    if file.is_dir():
        raise InputError(f"{label}: is a folder; give an image file (.nii.gz, .nrrd, .mha, ...)")
    if not file.exists():
        raise InputError(f"{label}: no such file; check the path")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(label, error) from error
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in pixel:
        raise _not_real(label, pixel)
    _check_layout(label, reader.GetDimension(), reader.GetNumberOfComponents())
    warnings = check_nifti(file, label) if is_nifti(file) else []
    try:
        volume = _read_sitk(reader.Execute(), label)
    except RuntimeError as error:
        raise _unreadable(label, error) from error
    return replace(volume, kind="path", warnings=tuple(warnings))


def _read_volume(volume: Volume, role: str) -> Volume:
    return volume


#: (name, does it accept the object?, reader). The first row that accepts reads. The tests must not import anything.
READERS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, str], Volume]], ...] = (
    ("itk.Image", _is_itk, _read_itk),
    ("SimpleITK.Image", _is_sitk, _read_sitk),
    ("path", lambda image: isinstance(image, (str, os.PathLike)), _read_path),
    ("Volume", lambda image: isinstance(image, Volume), _read_volume),
)


def _check_layout(label: str, dimension: int, components: int) -> None:
    if dimension not in (2, 3):
        hint = "; extract one volume first" if dimension == 4 else ""
        raise InputError(f"{label}: is {dimension}D, but a registration takes 2D and 3D images{hint}")
    if components != 1:
        raise InputError(
            f"{label}: has {components} values a pixel (colour or vectors); convert it to one grey value first"
        )


def _check_pixels(label: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise _not_real(label, str(dtype))


def _not_real(label: str, pixel: str) -> InputError:
    return InputError(f"{label}: has pixels of type {pixel}; take the magnitude or the real part first")


def _check_values(label: str, array: NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float64)
    if not np.isfinite(total) and not (finite := np.isfinite(array)).all():
        count = int(array.size - np.count_nonzero(finite))
        raise InputError(
            f"{label}: has {count} NaN or infinite voxels; replace them, for example by the background value"
        )


def _geometry(label: str, size: Sequence[int], spacing: ArrayLike, origin: ArrayLike, direction: ArrayLike) -> Geometry:
    try:
        return Geometry.make(size, spacing, origin, direction)
    except ValueError as error:
        raise InputError(f"{label}: its grid cannot be used: {one_line(error)}") from error


def _unreadable(label: str, error: RuntimeError) -> InputError:
    text = str(error)
    if "orthonormal" in text:
        return InputError(
            f"{label}: its axes are not perpendicular (sheared sform), which ITK does not read; resample it to a "
            "perpendicular grid first"
        )
    if "Unable to determine ImageIO reader" in text or "not find" in text:
        return InputError(f"{label}: no image format that can be read, or a damaged header; convert it to .nii.gz")
    return InputError(f"{label}: cannot be read, damaged or truncated ({one_line(text)}); get a fresh copy")


def _contiguous(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=dtype)


# --- ITK images ------------------------------------------------------------------------------------------------------


def _wrapped_type(array: NDArray[Any]) -> NDArray[Any]:
    """The array in a type that ITK's wheels have images of."""
    wider = {"b1": np.uint8, "i1": np.int16, "f2": np.float32}
    key = array.dtype.kind + str(array.dtype.itemsize)
    if key in wider:
        return array.astype(wider[key])
    if key in ("i8", "u8"):
        small = np.int32 if array.size == 0 or abs(array).max() < 2**31 else np.float64
        return array.astype(small)
    return array


def _itk_vectors(vectors: NDArray[Any], geometry: Geometry, component: Any) -> Any:
    """An ``itk.Image`` of ``itk.Vector[component, d]``; filled through a view, the only way without a dangling copy."""
    import itk

    d = geometry.dimension
    image = itk.Image[itk.Vector[component, d], d].New()
    image.SetRegions([int(n) for n in geometry.size])
    image.Allocate()
    itk.array_view_from_image(image)[...] = vectors
    _place(image, geometry)
    return image


def _place(image: Any, geometry: Geometry) -> None:
    import itk

    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(geometry.rotation)))


# --- points ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PointFile:
    """A table of points.

    Attributes
    ----------
    points : ``(N, d)``, LPS mm.
    columns : the header, ``x, y[, z]`` among them.
    rows : the cells as text, so that other columns go out as they came in.
    """

    points: NDArray[np.float64]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def load_points(path: str | os.PathLike[str], dimension: int | None = None) -> PointFile:
    """Read a CSV file whose header names the columns ``x, y[, z]`` (LPS mm, any order and case).

    Parameters
    ----------
    dimension : 2 or 3; what the header says when left out.

    Raises
    ------
    InputError : missing file, no such columns, a cell that is no finite number.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"points file {file}: no such file; check the path")
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            table = [row for row in csv.reader(handle, skipinitialspace=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"points file {file}: is no CSV text ({one_line(error)})") from error
    columns = tuple(table[0]) if table else ()
    at = _coordinate_columns(columns, dimension, file)
    points = np.empty((len(table) - 1, len(at)))
    for number, row in enumerate(table[1:]):
        try:
            points[number] = [float(row[i]) for i in at]
        except (ValueError, IndexError) as error:
            raise InputError(f"points file {file}: row {number + 1} has no {len(at)} numbers: {row}") from error
    if not np.isfinite(points).all():
        raise InputError(f"points file {file}: has NaN or infinite coordinates; remove those rows")
    return PointFile(points, columns, tuple(tuple(row) for row in table[1:]))


def save_points(source: PointFile, points: ArrayLike, path: str | os.PathLike[str]) -> None:
    """Write moved points with the columns of the table they came from; the file appears complete or not at all."""
    target = Path(path)
    values = np.asarray(points, float)
    if values.shape != source.points.shape:
        raise InputError(f"{target}: the table has {source.points.shape} coordinates, got {values.shape}")
    at = _coordinate_columns(source.columns, values.shape[1], target)
    temporary = temporary_name(target)
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(source.columns)
            for row, point in zip(source.rows, values, strict=True):
                cells = list(row)
                for i, value in zip(at, point, strict=True):
                    cells[i] = f"{value:.6f}"
                writer.writerow(cells)
        os.replace(temporary, target)
    except FileNotFoundError as error:
        raise InputError(f"{target}: the folder {target.parent} does not exist; create it first") from error
    finally:
        temporary.unlink(missing_ok=True)


def _coordinate_columns(columns: Sequence[str], dimension: int | None, file: Path) -> list[int]:
    names = [c.strip().lower() for c in columns]
    axes = "xyz" if dimension == 3 or (dimension is None and "z" in names) else "xy"
    missing = [a for a in axes if a not in names]
    if missing:
        raise InputError(
            f"points file {file}: the header has no column {', '.join(missing)}; it must name {', '.join(axes)} "
            f"(LPS mm), got {', '.join(columns) or 'nothing'}"
        )
    return [names.index(a) for a in axes]

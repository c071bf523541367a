"""One parameter map of elastix as a transform."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.atomic import refuse_cut
from itk_nir.errors import InputError, one_line
from itk_nir.geometry import Geometry
from itk_nir.images.quiet import quiet
from itk_nir.places import as_file_name, itk_name
from itk_nir.transforms.formats.elastix.parameters import grid_of, numbers
from itk_nir.transforms.formats.elastix.text import ParameterMap
from itk_nir.transforms.formats.field_image import read_field
from itk_nir.transforms.formats.itk_text import read_itk_file
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step

_BSPLINES = ("BSplineTransform", "RecursiveBSplineTransform")
#: A direction matrix is taken for orthonormal up to this.
_ORTHONORMAL = 1e-6


def step_of(parameters: ParameterMap, folder: Path | None, d: int, beside: bool) -> Any:
    """Read the transform of one parameter map, whatever is applied before it.

    Parameters
    ----------
    parameters : dict
        The map.
    folder : Path or None
        The folder of the file that it was read from.
    d : {2, 3}
        Its dimension.
    beside : bool
        Look for files that it names in `folder` first.

    Returns
    -------
    CompositeTransform, SimpleITK.Transform or None
        One of ours; a B-spline of SimpleITK's; None for a class that only elastix knows.

    Raises
    ------
    InputError
        A file that is missing or damaged, or a transform that was never written down.
    """
    name = parameters["Transform"][0]
    kind = name.removeprefix("Advanced")
    if kind == "DeformationFieldTransform":
        return CompositeTransform(_field(parameters, folder, beside))
    if kind == "File":
        path = locate(parameters["TransformFileName"][0], folder, beside)
        if not path.is_file():
            raise InputError(f"elastix' transform file {path}: no such file; check the path")
        return read_itk_file(path, None, f"elastix' transform file {path}")
    if kind == "ExternalTransform":
        raise InputError(
            "elastix: the result began from a transform in memory and holds no more than its address; start from "
            "parameter_maps(...) instead, or save the two parts on their own"
        )
    if kind in _BSPLINES and parameters.get("UseCyclicTransform", ["false"])[0] != "true":
        return _spline(parameters, d)
    linear = _linear(kind, parameters, d)
    return None if linear is None else CompositeTransform((linear,))


def _spline(parameters: ParameterMap, d: int) -> Any:
    import SimpleITK as sitk

    size = [int(n) for n in parameters["GridSize"]]
    values = numbers(parameters, "TransformParameters", d * int(np.prod(size)))
    if not values.any():
        return CompositeTransform((LinearTransform.identity(d),))
    index, origin, spacing = (numbers(parameters, key, d) for key in ("GridIndex", "GridOrigin", "GridSpacing"))
    direction = numbers(parameters, "GridDirection", d * d) if "GridDirection" in parameters else np.eye(d).ravel()
    axes = direction.reshape(d, d).T
    spline = sitk.BSplineTransform(d, int(parameters.get("BSplineTransformSplineOrder", ["3"])[0]))
    start = np.asarray(origin) + axes @ (spacing * index)
    spline.SetFixedParameters([*map(float, size), *start.tolist(), *spacing.tolist(), *axes.ravel().tolist()])
    spline.SetParameters(values.tolist())
    return spline


def _linear(kind: str, parameters: ParameterMap, d: int) -> LinearTransform | None:
    transform = linear_class(kind, d)
    if kind == "TranslationTransform":
        return LinearTransform.make(np.eye(d), numbers(parameters, "TransformParameters", d))
    if transform is None:
        return None
    if kind == "EulerTransform" and d == 3:
        transform.SetComputeZYX(parameters.get("ComputeZYX", ["false"])[0] == "true")
    if "CenterOfRotationPoint" in parameters:
        centre = numbers(parameters, "CenterOfRotationPoint", d)
    else:  # as elastix 4 wrote it: an index of the fixed image
        centre = grid_of(parameters).index_to_physical(numbers(parameters, "CenterOfRotation", d))
    transform.SetCenter(centre.tolist())
    transform.SetParameters(numbers(parameters, "TransformParameters", len(transform.GetParameters())).tolist())
    return LinearTransform.of_map(transform.TransformPoint, d)


def linear_class(kind: str, d: int) -> Any:
    """Make the SimpleITK transform whose parameters are those of one of elastix' linear classes.

    Parameters
    ----------
    kind : str
        Name of the class in a parameter map.
    d : {2, 3}
        Dimension.

    Returns
    -------
    SimpleITK.Transform or None
        The identity; None for any other class.
    """
    import SimpleITK as sitk

    kind = {"EulerTransform": f"Euler{d}DTransform", "SimilarityTransform": f"Similarity{d}DTransform"}.get(kind, kind)
    made: Any = {
        "TranslationTransform": lambda: sitk.TranslationTransform(d),
        "AffineTransform": lambda: sitk.AffineTransform(d),
        "Euler2DTransform": sitk.Euler2DTransform,
        "Euler3DTransform": sitk.Euler3DTransform,
        "Similarity2DTransform": sitk.Similarity2DTransform,
        "Similarity3DTransform": sitk.Similarity3DTransform,
    }.get(kind)
    return None if made is None else made()


def _field(parameters: ParameterMap, folder: Path | None, beside: bool) -> tuple[Step, ...]:
    path = locate(parameters["DeformationFieldFileName"][0], folder, beside)
    if parameters.get("DeformationFieldInterpolationOrder", ["0"])[0] != "1":
        warnings.warn(
            f"{path}: elastix was told to take the nearest vector; it is read with linear interpolation", stacklevel=2
        )
    sheared = read_sheared(path)
    return (read_field(path, f"elastix' deformation field {path}"),) if sheared is None else sheared.steps()


@dataclass(frozen=True, eq=False)
class ShearedField:
    """A displacement at every node of a grid whose axes need not be perpendicular; elastix and ITK take such grids.

    Parameters
    ----------
    size : tuple of int
        Nodes, ``(x, y[, z])``.
    matrix : ndarray
        ``(d + 1, d + 1)``, index → LPS mm.
    vectors : ndarray
        ``size`` reversed ``+ (d,)``, LPS mm.
    """

    size: tuple[int, ...]
    matrix: NDArray[np.float64]
    vectors: NDArray[np.float32]

    @classmethod
    def after(cls, linear: LinearTransform, field: DisplacementField) -> ShearedField:
        """The field that does after a linear map what another one does before it.

        ``q + v(q)`` with ``q = A p`` is ``A(p + u(p))`` where ``v(q) = M u(A^-1 q)`` and ``M`` is the matrix of ``A``:
        the nodes of ``v`` are those of ``u``, moved by ``A``, and linear interpolation follows exactly.

        Parameters
        ----------
        linear : LinearTransform
            ``A``.
        field : DisplacementField
            ``u``.

        Returns
        -------
        ShearedField
            ``v``.
        """
        d = field.dimension
        vectors = field.vectors @ linear.matrix[:d, :d].T.astype(np.float32)
        return cls(field.geometry.size, linear.matrix @ field.geometry.matrix, np.ascontiguousarray(vectors))

    def steps(self) -> tuple[Step, ...]:
        """The same map by a field on perpendicular axes, between a linear map and its inverse.

        Returns
        -------
        tuple of LinearTransform or DisplacementField
            Applied first to last; the field alone where the axes are perpendicular.
        """
        d = len(self.size)
        plain = _orthonormal(self.size, self.matrix)
        if plain is not None:
            return (DisplacementField(plain, self.vectors),)
        rotation, upper = np.linalg.qr(self.matrix[:d, :d])
        signs = np.sign(np.diag(upper))
        grid = Geometry.make(self.size, np.abs(np.diag(upper)), self.matrix[:d, d], rotation * signs)
        shear = LinearTransform(self.matrix @ grid.inverse_matrix)
        inverse = shear.inverse()
        vectors = self.vectors @ inverse.matrix[:d, :d].T.astype(np.float32)
        return inverse, DisplacementField(grid, vectors), shear

    def write(self, path: Path) -> None:
        """Write it as a MetaImage, the format of ITK's that keeps such axes.

        Parameters
        ----------
        path : Path
            Ends in ``.mha``.
        """
        import SimpleITK as sitk

        d = len(self.size)
        axes = self.matrix[:d, :d]
        spacing = np.linalg.norm(axes, axis=0)
        image = sitk.GetImageFromArray(self.vectors, isVector=True)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(self.matrix[:d, d].tolist())
        image.SetDirection((axes / spacing).ravel().tolist())
        sitk.WriteImage(image, itk_name(path), useCompression=False)
        refuse_cut(path)


def _orthonormal(size: tuple[int, ...], matrix: NDArray[np.float64]) -> Geometry | None:
    """The grid of an index → LPS matrix whose axes are perpendicular."""
    d = len(size)
    spacing = np.linalg.norm(matrix[:d, :d], axis=0)
    axes = matrix[:d, :d] / spacing
    if np.abs(axes.T @ axes - np.eye(d)).max() > _ORTHONORMAL:
        return None
    return Geometry.make(size, spacing, matrix[:d, d], axes)


def read_sheared(path: Path) -> ShearedField | None:
    """Read a field whose axes are not perpendicular, which only MetaImages hold.

    Parameters
    ----------
    path : Path
        Its file.

    Returns
    -------
    ShearedField or None
        None for any other file.

    Raises
    ------
    InputError
        A file that cannot be read.
    """
    if path.suffix.lower() not in (".mha", ".mhd") or not path.is_file():
        return None
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    try:
        with quiet():
            reader.ReadImageInformation()
        d = reader.GetDimension()
        axes = np.array(reader.GetDirection()).reshape(d, d)
        if d not in (2, 3) or np.abs(axes.T @ axes - np.eye(d)).max() <= _ORTHONORMAL:
            return None
        with quiet():
            image = reader.Execute()
        vectors = sitk.GetArrayFromImage(image).astype(np.float32)
    except RuntimeError as error:
        raise InputError(f"elastix' deformation field {path}: cannot be read ({one_line(error)})") from error
    matrix = np.eye(d + 1)
    matrix[:d, :d] = axes * np.array(reader.GetSpacing())
    matrix[:d, d] = reader.GetOrigin()
    if vectors.shape != (*reader.GetSize()[::-1], d) or not np.isfinite(vectors).all():
        raise InputError(f"elastix' deformation field {path}: is no image of finite displacements in {d}D")
    return ShearedField(tuple(reader.GetSize()), matrix, vectors)


def field_first(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Bring a linear map, then a field, into the form of a field, then a linear map, where axes stay perpendicular.

    That is how our own results are kept, and the quick form for resampling.

    Parameters
    ----------
    steps : tuple of LinearTransform or DisplacementField
        Applied first to last.

    Returns
    -------
    tuple of LinearTransform or DisplacementField
        The same map; the same parts where they have another form.
    """
    if len(steps) not in (2, 3) or not isinstance(steps[0], LinearTransform):
        return steps
    linear, field = steps[0], steps[1]
    if not isinstance(field, DisplacementField) or not all(isinstance(s, LinearTransform) for s in steps[2:]):
        return steps
    moved = ShearedField.after(linear.inverse(), field)
    grid = _orthonormal(moved.size, moved.matrix)
    if grid is None:
        return steps
    whole = linear.matrix
    for step in steps[2:]:
        if isinstance(step, LinearTransform):
            whole = step.matrix @ whole
    return DisplacementField(grid, moved.vectors), LinearTransform(whole)


def locate(name: str, folder: Path | None, beside: bool) -> Path:
    """Find a file that a parameter map names: where elastix looks, else beside the file of the map.

    Parameters
    ----------
    name : str
        As the map says it.
    folder : Path or None
        The folder of the map's file.
    beside : bool
        Look beside the file first.

    Returns
    -------
    Path
        The first place where there is something, else the name.
    """
    path = Path(as_file_name(name))
    if folder is None:
        return path
    places = [path, folder / path, folder / path.name]
    found = [p for p in (reversed(places) if beside else places) if p.exists()]
    return found[0] if found else path

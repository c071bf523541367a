"""`apply`: images and label maps carried through any transform."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from itk_nir.errors import InputError, OptionError, warn_caller, warn_renamed
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import Plane, Volume, checked_fill, flattened, like, pixel_type_named, save_image
from itk_nir.images.missing import checked_nan
from itk_nir.images.planes import is_slice
from itk_nir.images.series import Series, open_series, read_grid
from itk_nir.images.series_writing import check_series_path, four_dimensional, write_series
from itk_nir.interpolating import interpolation_named
from itk_nir.label_maps import is_label_map
from itk_nir.loading import load_transform
from itk_nir.options import truth_value
from itk_nir.resample import background_of, held, resample
from itk_nir.transforms.model import CompositeTransform


def apply(
    image: Any,
    transform: Any,
    reference: Any = None,
    *,
    interpolation: Literal[
        "auto",
        "linear",
        "nearest",
        "bspline",
        "gaussian",
        "cosine",
        "hamming",
        "welch",
        "lanczos",
        "label",
        "label-linear",
    ] = "auto",
    fill: float | None = None,
    pixel_type: Any = None,
    nan: Literal["error", "mask"] = "error",
    inverse: bool = False,
    convention: str | None = None,
    resample_shear: bool = False,
    threads: int | None = None,
    default: float | None = None,
) -> Any:
    """Resample a moving image on a reference grid.

    Parameters
    ----------
    image : path, itk.Image, SimpleITK.Image, ANTsImage, nibabel image or (array, Geometry)
        In moving space, of one or several values a pixel (colour). All volumes of a 4D image go through the one
        transform.
    transform : RegistrationResult, transform, path or list
        Fixed → moving: a result, or anything that `itk_nir.load_transform` takes.
    reference : image or path as above, or Geometry, optional
        Gives the output grid, and nothing else. Left out: the fixed image's grid of a `RegistrationResult`, else the
        image's own.
    interpolation : str
        ``"auto"``: nearest for label maps, linear for everything else. ``"linear"``, ``"nearest"``, ``"bspline"``
        (cubic), ``"gaussian"``, a sinc function with the window ``"cosine"``, ``"hamming"``, ``"welch"`` or
        ``"lanczos"``. For label maps, with smoother borders than nearest: ``"label"``, the label with the largest
        weight of a Gaussian as wide as a voxel (ANTs' MultiLabel), ``"label-linear"``, that of linear interpolation
        (ANTs' GenericLabel).
    fill : float, optional
        Value of voxels that map outside the image (more than half a voxel from its outermost centres). Left out: 0 for
        label maps, the background for everything else.
    pixel_type : str or dtype, optional
        Of the result, ``"float"`` or ``"uint8"``, say; the image's own where left out. Whole numbers are rounded, and
        clipped to what their type holds.
    nan : str
        What NaN and infinite voxels are: ``"error"``, or ``"mask"``: the result has `fill` where they take part.
    inverse : bool
        Go through the inverse: an image in fixed space onto a grid of moving space (the moving image's for a result).
    convention : str, optional
        Of a transform that is a matrix in text, as of `itk_nir.load_transform`.
    resample_shear : bool
        Resample an image whose axes are not perpendicular (to the nearest) instead of refusing it.
    threads : int, optional
        CPU threads; all that the process may use by default.
    default : float, optional
        Deprecated: `fill`.

    Returns
    -------
    image or array
        Of the kind that `image` is (``itk.Image`` for a path; of an array, the array on the output grid), with its
        pixel type, colour and fourth axis. Where image and reference are single slices and the transform is 2D, a slice
        in the reference's place.

    Raises
    ------
    InputError
        An image or transform that cannot be used, or unlike dimensions.
    OptionError
        Unknown interpolation or pixel type, or a fill value that the pixels cannot hold.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> result = itk_nir.register(fixed, moving, preset="fast", iterations=2)
    >>> labels = to_sitk(phantom.moving_labels, phantom.geometry)
    >>> itk_nir.apply(labels, result).GetSize()
    (48, 56)
    """
    if default is not None:
        warn_renamed("apply(default=)", "fill")
        if fill is not None:
            raise OptionError("default is the old name of fill; leave default out")
        fill = default
    job = Application.prepare(
        image, transform, reference, interpolation=interpolation, fill=fill, pixel_type=pixel_type, nan=nan,
        inverse=inverse, convention=convention, resample_shear=resample_shear, threads=threads,
    )  # fmt: skip
    for text in job.told:
        warn_caller(text)
    return job.image()


def spaces(image: Geometry, output: Geometry, inverse: bool, told: bool) -> tuple[Geometry | None, Geometry | None]:
    """What is known of the two spaces of a transform that an image is carried through.

    Parameters
    ----------
    image, output : Geometry
        Grids of the image and of the result.
    inverse : bool
        Whether the image lies in fixed space.
    told : bool
        Whether the grid of the result is that of the other image, and not only the image's own again.

    Returns
    -------
    fixed, moving : Geometry or None
        As ``reference`` and ``moving`` of `itk_nir.load_transform`.
    """
    if inverse:
        return image, output if told else None
    return output, image if told else None


@dataclass(frozen=True, eq=False)
class Application:
    """An image that is ready to be carried through a transform, volume by volume.

    Attributes
    ----------
    source : Series
        The image.
    transform : CompositeTransform
        From the space of `grid` to that of the image.
    grid : Geometry
        The output grid, in the plane where it is a single slice and the transform is 2D.
    plane : Plane or None
        That slice.
    mode : str
        What `apply` calls the interpolation, but not ``"auto"``.
    fill : float
        Value outside the image.
    pixel_type : numpy.dtype
        Of the result.
    threads : int or None
        CPU threads.
    told : tuple of str
        What was found odd about the image and the reference.
    """

    source: Series
    transform: CompositeTransform
    grid: Geometry
    plane: Plane | None
    mode: str
    fill: float | int
    pixel_type: np.dtype[Any]
    threads: int | None
    told: tuple[str, ...] = ()

    @classmethod
    def prepare(
        cls,
        image: Any,
        transform: Any,
        reference: Any = None,
        *,
        interpolation: str = "auto",
        fill: float | None = None,
        pixel_type: Any = None,
        nan: str = "error",
        inverse: bool = False,
        convention: str | None = None,
        resample_shear: bool = False,
        threads: int | None = None,
    ) -> Application:
        """Read and check what `apply` was given; of a 4D image, its first volume.

        Parameters
        ----------
        image, transform, reference, interpolation, fill, pixel_type, nan, inverse, convention, resample_shear, threads
            As of `apply`.

        Returns
        -------
        Application

        Raises
        ------
        InputError, OptionError
            As `apply`.
        """
        inverse, resample_shear = truth_value(inverse, "inverse"), truth_value(resample_shear, "resample_shear")
        if interpolation != "auto":
            interpolation_named(interpolation)
        source = open_series(image, "image", nan=checked_nan(nan), resample_shear=resample_shear)
        wanted = source.pixel_type if pixel_type is None else pixel_type_named(pixel_type)
        if fill is not None:
            fill = checked_fill(fill, wanted)
        own = getattr(transform, "moving" if inverse else "fixed", None) if reference is None else None
        whole = reference if reference is not None else own or source.geometry
        grid, odd = read_grid(whole, "reference image", resample_shear=resample_shear)
        known = spaces(source.geometry, grid, inverse, told=reference is not None)
        chain, plane = _read_transform(transform, grid, own, known, convention)
        grid = grid if plane is None else plane.flat
        chain = chain.inverse() if inverse else chain
        first = _first_with_contrast(source)
        told = texts((*source.findings, *odd))
        values = _values(first, chain.dimension)
        if not values[0].dimension == chain.dimension == grid.dimension:
            raise InputError(
                f"{source.name}: is {values[0].dimension}D, its transform {chain.dimension}D and the reference grid "
                f"{grid.dimension}D; they must have one dimension"
            )
        if interpolation == "auto":
            interpolation = "nearest" if len(values) == 1 and is_label_map(values[0].array) else "linear"
        if fill is None:
            fill = held(background_of(values[0]), wanted) if len(values) == 1 else None
        return cls(source, chain, grid, plane, interpolation, fill, wanted, threads, told)  # type: ignore[arg-type]

    def volumes(self) -> Iterator[NDArray[Any]]:
        """Carry the volumes through the transform, one after the other.

        Yields
        ------
        ndarray
            In the shape of the reference grid; several values a pixel are the last axis.
        """
        for volume in self.source.volumes():
            parts = [
                resample(
                    v, self.transform, self.grid, self.mode, self.fill, pixel_type=self.pixel_type, threads=self.threads
                )
                for v in _values(volume, self.transform.dimension)
            ]
            array = parts[0] if len(parts) == 1 else np.stack(parts, -1)
            yield array if self.plane is None else self.plane.put_back(array)

    @property
    def geometry(self) -> Geometry:
        """The grid of the result."""
        return self.grid if self.plane is None else self.plane.geometry

    def image(self) -> Any:
        """Make the result as an object of the image's library.

        Returns
        -------
        itk.Image or SimpleITK.Image
        """
        if self.source.time is None:
            return like(next(self.volumes()), self.geometry, self.source.kind)
        if self.geometry.dimension != 3:
            raise InputError(f"{self.source.name}: is 4D, but the reference grid is 2D; give a 3D reference")
        return four_dimensional(
            list(self.volumes()), self.geometry, self.source.time, self.source.kind, self.source.space_code
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the result; a 4D one volume by volume.

        Parameters
        ----------
        path : path
            Its suffix chooses the format.

        Raises
        ------
        InputError
            A file that cannot be written.
        """
        code = self.source.space_code
        if self.source.time is None:
            _check_picture(path, self.pixel_type, self.geometry.dimension)
            save_image(next(self.volumes()), self.geometry, path, space_code=code)
            return
        check_series_path(path)
        if self.geometry.dimension != 3:
            raise InputError(f"{self.source.name}: is 4D, but the reference grid is 2D; give a 3D reference")
        write_series(self.volumes(), self.source.count, self.geometry, self.source.time, path, code)


def _first_with_contrast(source: Series) -> Volume:
    """The first volume that is not the same everywhere, or else the first: the others are treated as it is."""
    first = None
    for volume in source.volumes():
        first = volume if first is None else first
        if source.count == 1 or volume.array.min() != volume.array.max():
            return volume
    assert first is not None
    return first


#: Types of pixels that pictures hold, by the end of their names.
_PICTURES = {".png": ("uint8", "uint16"), ".jpg": ("uint8",), ".jpeg": ("uint8",)}


def _check_picture(path: str | os.PathLike[str], dtype: np.dtype[Any], dimension: int) -> None:
    """Refuse a picture format that cannot hold the result."""
    ending = os.path.splitext(os.fspath(path))[1].lower()
    held_types = _PICTURES.get(ending)
    if held_types is None:
        return
    if dimension != 2:
        raise InputError(f"{os.fspath(path)}: {ending} files hold one 2D picture; write .nii.gz, .nrrd or .mha")
    if dtype.name not in held_types:
        raise InputError(
            f"{os.fspath(path)}: {ending} files hold pixels of type {' and '.join(held_types)}, these are {dtype}; ask "
            "for another (--pixel-type uchar), or write .nii.gz, .nrrd or .mha"
        )


def _read_transform(
    transform: Any, grid: Geometry, own: Volume | None, known: tuple[Geometry | None, Geometry | None],
    convention: str | None,
) -> tuple[CompositeTransform, Plane | None]:  # fmt: skip
    """The transform, and the plane that it works in where the grid is a single slice and it is 2D."""
    plane = Plane(grid) if is_slice(grid) else None
    if plane is not None and own is not None and own.plane is not None:
        return load_transform(transform, plane.flat), plane
    try:
        chain = load_transform(transform, known[0], moving=known[1], convention=convention)
    except InputError:
        if plane is None:
            raise
        # What is read onto a grid of its own dimension may be 2D.
        return load_transform(transform, plane.flat), plane
    return chain, plane if chain.dimension == 2 else None


def _values(volume: Volume, dimension: int) -> list[Volume]:
    """The values of a pixel, one Volume each; a single slice in 2D where the transform is."""
    several = volume.array.ndim > volume.geometry.dimension
    parts = np.moveaxis(volume.array, -1, 0) if several else [volume.array]
    values = [replace(volume, array=np.ascontiguousarray(part), components=len(parts)) for part in parts]
    return [flattened(v) for v in values] if dimension == 2 else values

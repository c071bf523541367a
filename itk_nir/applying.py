"""`apply`: an image or label map carried through any transform."""

from __future__ import annotations

from typing import Any, Literal

from itk_nir.errors import warn_caller
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import like, load_image
from itk_nir.loading import load_transform
from itk_nir.resample import resample


def apply(
    image: Any,
    transform: Any,
    reference: Any = None,
    *,
    interpolation: Literal["auto", "linear", "nearest", "bspline"] = "auto",
    default: float = 0.0,
    inverse: bool = False,
    convention: str | None = None,
    resample_shear: bool = False,
    threads: int | None = None,
) -> Any:
    """Resample a moving image on a reference grid.

    Parameters
    ----------
    image : path, itk.Image, SimpleITK.Image, ANTsImage, nibabel image or (array, Geometry)
        In moving space.
    transform : RegistrationResult, transform, path or list
        Fixed → moving: a result, or anything that `itk_nir.load_transform` takes.
    reference : image or path as above, or Geometry, optional
        Gives the output grid. Left out: the fixed image's grid of a `RegistrationResult`, else the image's own.
    interpolation : str
        ``"linear"``, ``"nearest"``, ``"bspline"`` (cubic) or ``"auto"``: nearest for label maps, linear for everything
        else.
    default : float
        Value of voxels that map outside the image (more than half a voxel from its outermost centres).
    inverse : bool
        Go through the inverse: an image in fixed space onto a grid of moving space (the moving image's for a result).
    convention : str, optional
        Of a transform that is a matrix in text, as of `itk_nir.load_transform`.
    resample_shear : bool
        Resample an image whose axes are not perpendicular (to the nearest) instead of refusing it.
    threads : int, optional
        CPU threads; all that the process may use by default.

    Returns
    -------
    image or array
        Of the kind that `image` is (``itk.Image`` for a path; of an array, the array on the output grid). Its pixel
        type is the image's own for nearest, float32 otherwise.

    Raises
    ------
    InputError
        An image or transform that cannot be used, or unlike dimensions.
    OptionError
        Unknown interpolation.

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
    volume = load_image(image, "image", native=True, resample_shear=resample_shear)
    for text in texts(volume.findings):
        warn_caller(text)
    if reference is None:
        own = getattr(transform, "moving" if inverse else "fixed", None)
        geometry = volume.geometry if own is None else own.geometry
    elif isinstance(reference, Geometry):
        geometry = reference
    else:
        geometry = load_image(reference, "reference image", resample_shear=resample_shear).geometry
    fixed, moving = spaces(volume.geometry, geometry, inverse, told=reference is not None)
    chain = load_transform(transform, fixed, moving=moving, convention=convention)
    if inverse:
        chain = chain.inverse()
    array = resample(volume, chain, geometry, interpolation, default, threads=threads)
    return like(array, geometry, volume.kind)


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

"""The call: ``registration`` with ANTsPy's signature, and `run_kind`, which ``itk-nir ants`` uses too.

The file is not called registration.py, because the package has a function of that name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.ants.arguments import field_grid, further_pairs, kind_options, linear_levels, register_options
from itk_nir.compat.ants.files import load_initial_transform, warped_images, write_files
from itk_nir.compat.ants.options import DEFAULT_METRIC, OPTIONS, Kind
from itk_nir.compat.printing import printing
from itk_nir.errors import InputError
from itk_nir.images import Volume, in_their_planes, load_image, to_ants
from itk_nir.places import named_files
from itk_nir.saving import TRANSFORMS, check_output_prefix
from itk_nir.warping import in_place

if TYPE_CHECKING:
    from itk_nir.geometry import Geometry
    from itk_nir.result import RegistrationResult

#: Pixel types of ANTsPy.
_PIXEL_TYPES = {"unsigned char": "u1", "unsigned int": "u4", "float": "f4", "double": "f8"}


def registration(
    fixed: Any,
    moving: Any,
    type_of_transform: str = "SyN",
    initial_transform: Any = None,
    outprefix: str = "",
    mask: Any = None,
    moving_mask: Any = None,
    mask_all_stages: bool = False,
    grad_step: float = 0.2,
    flow_sigma: float = 3,
    total_sigma: float = 0,
    aff_metric: str = DEFAULT_METRIC,
    aff_sampling: int = 32,
    aff_random_sampling_rate: float = 0.2,
    syn_metric: str = DEFAULT_METRIC,
    syn_sampling: int = 32,
    reg_iterations: Sequence[int] = (40, 20, 0),
    aff_iterations: Sequence[int] = (2100, 1200, 1200, 10),
    aff_shrink_factors: Sequence[int] = (6, 4, 2, 1),
    aff_smoothing_sigmas: Sequence[int] = (3, 2, 1, 0),
    write_composite_transform: bool = False,
    verbose: bool = False,
    multivariate_extras: Any = None,
    restrict_transformation: Any = None,
    smoothing_in_mm: bool = False,
    singleprecision: bool = True,
    use_legacy_histogram_matching: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """``ants.registration`` with its signature, files and return value.

    Parameters
    ----------
    fixed, moving : ants.ANTsImage, itk.Image, SimpleITK.Image or path
        2D or 3D images of one grey value. A list of antsRegistration's own arguments as `fixed` alone is handed to that
        program's interface here, as ANTsPy hands it to ANTs; 0 comes back.
    type_of_transform : str, default "SyN"
        A key of `TYPES`, or ``"antsRegistrationSyN[x]"`` or ``"antsRegistrationSyNQuick[x]"`` with a key of
        `SCRIPT_TYPES`.
    initial_transform : path, str or sequence of these, optional
        Files of transforms fixed → moving in ANTs' order, ``"[file,1]"`` for the inverse of one, or ``"Identity"``.
        Left out, the best of several starts is taken.
    outprefix : str, default ""
        Start of the names of all files, ``P`` below; empty for a new folder under the system's temporary folder, which
        stays.
    mask, moving_mask : image as `fixed`, optional
        Above 0 where the fixed or the moving image counts, in every stage.
    mask_all_stages : bool, default False
        Without effect: masks count in every stage.
    aff_metric : {"mattes", "MI", "GC", "meansquares", "CC"}
        Of the linear stage (see `METRICS`); left out, it has the metric of the deformation.
    aff_sampling : int, default 32
        Number of bins of ``aff_metric="mattes"``, or radius of ``"CC"``; 32 is the preset's own radius.
    aff_random_sampling_rate : float, default 0.2
        Above 0 and at most 1; all voxels are used whatever it is.
    syn_metric : {"mattes", "MI", "CC", "GC", "meansquares", "demons"}
        Of the deformation (see `METRICS`); left out, the type of transform says so, else the pair itself (``"auto"``).
    syn_sampling : int, default 32
        Number of bins of ``syn_metric="mattes"``, or radius of ``"CC"`` in voxels of the level; 32 is the preset's own
        radius.
    reg_iterations : sequence of int, default (40, 20, 0)
        One number a level with the shrink factors …, 4, 2, 1: most iterations of the level, 0 to leave it out. The
        default stands for the preset's own levels.
    write_composite_transform : bool, default False
        Write ``PComposite.h5`` and ``PInverseComposite.h5`` in place of the single files.
    verbose : bool, default False
        Print a line when a level begins and ends.
    grad_step : float, default 0.2
        Above 0; without effect.
    flow_sigma, total_sigma : float
        How smooth the deformation is (see `smoothness_factor`).
    aff_iterations, aff_shrink_factors, aff_smoothing_sigmas : int or sequence of int
        Levels of the linear stage: the most evaluations of each, its shrink factor, and a sigma without effect. The
        defaults stand for the preset's own levels.
    multivariate_extras : sequence of (str, image, image, float, int), optional
        Further pairs on the grids of the first: a metric of `METRICS`, a fixed and a moving image, the weight beside
        that of the first pair, 1, and the number of bins or radius.
    restrict_transformation : sequence of int, optional
        1 for each axis of the fixed image along which things may move, 0 for the others, in every stage: ``(0, 1, 0)``,
        ANTs' ``-g 0x1x0``.
    smoothing_in_mm, use_legacy_histogram_matching : bool
        Without effect.
    singleprecision : bool, default True
        False writes fields of doubles.
    **kwargs : object
        ``random_seed``, every argument of `itk_nir.register` and every option of its preset, public or expert
        (``preset``, ``device``, ``threads``, ``callback``, ``smoothness``, ...), which go before what the type of
        transform would set.

    Returns
    -------
    dict
        ``warpedmovout`` : ants.ANTsImage
            The moving image on the fixed grid, of the pixel type of an ANTsImage `fixed`, as ANTsPy has it (rounded to
            whole numbers, within the type's range); else float.
        ``warpedfixout`` : ants.ANTsImage
            The fixed image on the moving grid, of the same type.
        ``fwdtransforms`` : list of str, or str
            Files for ``ants.apply_transforms(fixed, moving, ...)``: ``[P1Warp.nii.gz, P0GenericAffine.mat]``, or the
            .mat alone after a linear type; with `write_composite_transform` one path as text.
        ``invtransforms`` : list of str, or str
            Files for ``ants.apply_transforms(moving, fixed, ...)``: ``[P0GenericAffine.mat, P1InverseWarp.nii.gz]``;
            the matrix is the forward one, which ANTs inverts by itself in this list.

    Raises
    ------
    InputError
        An image, mask or transform that cannot be used, or a prefix that cannot be written to.
    OptionError
        A `ValueError`, as ANTsPy raises: an option that does not exist (with the nearest name) or has a value it cannot
        have.

    Notes
    -----
    Points go the other way: ``ants.apply_transforms_to_points(d, points, tx["fwdtransforms"])`` takes fixed points to
    the moving image. `OPTIONS` says of every option what becomes of it and why.

    Examples
    --------
    >>> import ants, os, tempfile
    >>> from itk_nir.compat.ants import registration, to_ants
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_ants(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tx = registration(fixed, moving, "SyN", outprefix=folder + "/case1_", syn_metric="CC", preset="fast")
    ...     [os.path.basename(path) for path in tx["fwdtransforms"]]
    ...     warped = ants.apply_transforms(fixed, moving, tx["fwdtransforms"])
    ['case1_1Warp.nii.gz', 'case1_0GenericAffine.mat']
    >>> warped.shape
    (48, 56)
    """
    # First, while the arguments are all that is in the scope.
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    if isinstance(fixed, (list, tuple)) or moving is None:
        return _raw(fixed, moving)
    kind, options = register_options(given, kwargs)
    # Before the work and not after it.
    check_output_prefix(
        outprefix or os.path.join(tempfile.gettempdir(), ""),
        TRANSFORMS["itk" if write_composite_transform else "ants"] if outprefix else (),
        named_files(initial_transform),
    )
    for name in ("fixed_labels", "moving_labels"):
        if options.get(name) is not None:
            options[name] = load_image(options[name], name.replace("_", " "))
    if verbose:
        options["callback"] = printing(options.get("callback"), partial(print, flush=True), every=None)
    a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
    extras = further_pairs(given)
    levels = linear_levels(given, kind, a.geometry, options.get("preset", kind.preset))
    result = run_kind(
        a,
        b,
        kind,
        more=[
            (load_image(f, f"fixed image of multivariate_extras {k}"), load_image(m, f"its moving image {k}"))
            for k, (_, f, m, _, _) in enumerate(extras, 1)
        ],
        mask=None if mask is None else load_image(mask, "mask"),
        moving_mask=None if moving_mask is None else load_image(moving_mask, "moving mask"),
        initial_transform=initial_transform,
        options=field_grid(kind, options) | levels | options,
    )
    prefix = outprefix or tempfile.mkdtemp(prefix="itk_nir_") + os.sep
    precision = "float" if singleprecision else "double"
    files = write_files(result, prefix, composite=write_composite_transform, precision=precision)
    moved, back = warped_images(result)
    return {
        "warpedmovout": _of_type(fixed, *in_place(moved, result.fixed)),
        "warpedfixout": _of_type(fixed, *in_place(back, result.moving)),
        "fwdtransforms": files["fwdtransforms"],
        "invtransforms": files["invtransforms"],
    }


def run_kind(
    fixed: Volume,
    moving: Volume,
    kind: Kind,
    *,
    more: Sequence[tuple[Volume, Volume]] = (),
    mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    options: Mapping[str, Any] | None = None,
) -> RegistrationResult:
    """`itk_nir.register` for one of ANTs' types of transform.

    Parameters
    ----------
    fixed, moving : Volume
        The images.
    kind : Kind
        What the type of transform asks for (see `parse_type`).
    more : sequence of (Volume, Volume)
        Further channels of both images, on their grids.
    mask, moving_mask : Volume, itk.Image, SimpleITK.Image or path, optional
        Above 0 where the image counts.
    initial_transform : path, str or sequence of these, optional
        Files of transforms fixed → moving, as for `registration`.
    options : mapping of str to object, optional
        Arguments of `itk_nir.register` and options of its preset, which go before what the type would set.

    Returns
    -------
    RegistrationResult
        Fixed → moving, LPS mm.

    Raises
    ------
    InputError
        An image, mask or transform that cannot be used.
    OptionError
        An option that does not exist or has a value it cannot have.
    """
    # Here, because it imports torch: reading the tables and files must not wait for that.
    from itk_nir.registration import register

    fixed_channels, moving_channels, _ = in_their_planes(
        [fixed, *(f for f, _ in more)], [moving, *(m for _, m in more)]
    )
    fixed = fixed_channels[0]
    return register(
        fixed_channels if more else fixed,
        moving_channels if more else moving_channels[0],
        fixed_mask=mask,
        moving_mask=moving_mask,
        initial_transform=load_initial_transform(initial_transform, fixed.geometry),
        **kind_options(kind, options),
    )


def _raw(arguments: Any, moving: Any) -> Any:
    """What ``ants.registration([...])`` does with antsRegistration's own arguments.

    Raises
    ------
    InputError
        Not such a list alone, or the program ends with an error, which it has printed.
    """
    if moving is not None or not isinstance(arguments, (list, tuple)):
        raise InputError("registration takes two images, or a list of antsRegistration's arguments alone")
    wrong = [a for a in arguments if not isinstance(a, (str, int, float, os.PathLike))]
    if wrong:
        raise InputError(
            f"registration: antsRegistration's arguments are words and names of files, got {type(wrong[0]).__name__}; "
            "write images to files first"
        )
    try:
        # By its name: programs stand above the interfaces.
        main = import_module("itk_nir.programs.ants_registration").main
    except ImportError as error:
        raise InputError(f"registration takes two images; raw antsRegistration arguments: {error}") from error
    status = main([os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments])
    if status:
        raise InputError(f"registration: antsRegistration ended with status {status}")
    return status


def _of_type(like: Any, array: NDArray[Any], geometry: Geometry) -> Any:
    """An ``ANTsImage`` of the pixel type of another; as it is where that is no ``ANTsImage``."""
    kind = getattr(like, "pixeltype", None)
    if kind not in _PIXEL_TYPES:
        return to_ants(array, geometry)
    to = np.dtype(_PIXEL_TYPES[kind])
    if to.kind == "u":
        array = np.clip(np.rint(array), 0, np.iinfo(to).max)
    image = to_ants(array.astype(to), geometry)
    # ANTsPy makes floats of doubles.
    return image if image.pixeltype == kind else image.clone(kind)

"""The call: `registration_method`, with elastix' arguments and return values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.compat.elastix.files import as_pixel_type, result_maps, write_result
from itk_nir.compat.elastix.options import POINT_KEYWORDS, POINTS, REFUSED
from itk_nir.compat.elastix.parameters import check_dimensions, import_itk_elastix, read_maps, understand
from itk_nir.compat.elastix.points import read_points
from itk_nir.compat.options import Device
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import load_image, refuse_slices, to_itk
from itk_nir.loading import load_transform
from itk_nir.options import whole_number
from itk_nir.registration import register
from itk_nir.resample import resample_array
from itk_nir.settings import Settings, make_settings, present_names
from itk_nir.transforms.formats.elastix import read_elastix
from itk_nir.transforms.model import CompositeTransform

if TYPE_CHECKING:
    from itk_nir.engine.progress import Callback, Progress


def registration_method(
    fixed_image: Any,
    moving_image: Any,
    parameter_object: Any = None,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    external_initial_transform: Any = None,
    initial_transform_parameter_object: Any = None,
    initial_transform_parameter_file_name: str | os.PathLike[str] | None = None,
    fixed_point_set_file_name: str | os.PathLike[str] | None = None,
    moving_point_set_file_name: str | os.PathLike[str] | None = None,
    fixed_points: Any = None,
    moving_points: Any = None,
    output_directory: str | os.PathLike[str] | None = None,
    log_to_console: bool = False,
    number_of_threads: int = 0,
    preset: str | Settings = "default",
    device: Device = "auto",
    callback: Callback | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Register as ``itk.elastix_registration_method`` would be asked to.

    Parameters
    ----------
    fixed_image, moving_image : itk.Image, SimpleITK.Image or path
        2D or 3D images of one grey value; their pixel types may differ.
    parameter_object : itk.ParameterObject, dict, list of dict, path or list of path, optional
        One parameter map a stage, in order. Left out: an affine, then a deformable stage.
    fixed_mask, moving_mask : itk.Image, SimpleITK.Image or path, optional
        Above 0 where the image counts.
    initial_transform, external_initial_transform : transform of ITK or SimpleITK, path or matrix, optional
        Whatever `itk_nir.load_transform` takes, fixed → moving, LPS mm. Both names mean the same. At most one of these
        two and the next two may be given. The result contains it.
    initial_transform_parameter_object : itk.ParameterObject, optional
        A result of elastix to start from.
    initial_transform_parameter_file_name : path, optional
        The last ``TransformParameters.N.txt`` of a result of elastix to start from.
    fixed_point_set_file_name, moving_point_set_file_name : path, optional
        Corresponding points, elastix' files; a map must name ``CorrespondingPointsEuclideanDistanceMetric``.
    fixed_points, moving_points : itk.PointSet or array_like, optional
        The same points in memory, LPS mm.
    output_directory : path, optional
        An existing folder for ``TransformParameters.N.txt``, the displacement field they name, and
        ``result.N.FORMAT``. Left out: the field goes to a folder of its own for this result under the system's
        temporary folder, which is removed when Python ends; the returned object is of no use after that.
    log_to_console : bool, default False
        Print a line for every tenth iteration.
    number_of_threads : int, default 0
        CPU threads; 0 for all that the process may use.
    preset : str or Settings, default "default"
        As for `itk_nir.register`.
    device : str, default "auto"
        As for `itk_nir.register`.
    callback : callable, optional
        Called with a `Progress` after every iteration; a true return value ends the registration with the best
        deformation so far.
    **options : object
        Options of the preset, public and expert ones, as for `itk_nir.make_settings`.

    Returns
    -------
    image : itk.Image
        The moving image resampled through the transform on the fixed grid, in the fixed image's pixel type.
    transform_parameters : itk.ParameterObject
        First applied map first: the deformation (a ``DeformationFieldTransform``), the linear part, the initial
        transform; fixed → moving, LPS mm. ``itk.transformix_filter`` takes it.

    Raises
    ------
    OptionError
        A parameter or keyword that is unknown or cannot be honoured, by its name.
    InputError
        An image, mask, transform or folder that cannot be used, or itk-elastix is not installed.

    Examples
    --------
    >>> import itk
    >>> from itk_nir.compat.elastix import registration_method
    >>> from itk_nir.images import to_itk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_itk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> image, parameters = registration_method(fixed, moving, preset="fast", iterations=2)
    >>> parameters.GetNumberOfParameterMaps()
    2
    >>> again = itk.transformix_filter(moving, parameters)
    >>> bool(abs(itk.array_view_from_image(again) - itk.array_view_from_image(image)).mean() < 0.1)
    True
    """
    itk = import_itk_elastix()
    _check_keywords(options, number_of_threads)
    maps = read_maps(parameter_object)
    request = understand(maps)
    # A wrong option is refused before any image is read.
    settings = make_settings(preset, **request.with_metrics(present_names(preset, options)))
    folder = None if output_directory is None else Path(output_directory)
    if folder is not None and not folder.is_dir():
        raise InputError(f"output_directory {folder}: no such folder; create it first")
    fixed, moving = load_image(fixed_image, "fixed image"), load_image(moving_image, "moving image")
    refuse_slices(fixed=fixed.geometry.size, moving=moving.geometry.size)
    check_dimensions(maps, fixed, moving)
    starts = {
        "initial_transform": initial_transform,
        "external_initial_transform": external_initial_transform,
        "initial_transform_parameter_object": initial_transform_parameter_object,
        "initial_transform_parameter_file_name": initial_transform_parameter_file_name,
    }
    start = _start(starts, fixed.geometry)
    if start is None and not request.search:
        start = load_transform(np.eye(fixed.dimension + 1))

    landmarks = _landmarks(
        {"fixed_point_set_file_name": fixed_point_set_file_name, "fixed_points": fixed_points,
         "moving_point_set_file_name": moving_point_set_file_name, "moving_points": moving_points},
        request.points, fixed.geometry, moving.geometry,
    )  # fmt: skip

    if log_to_console and request.unused:
        print(f"elastix parameters without a meaning here: {', '.join(request.unused)}", flush=True)
    result = register(
        fixed, moving, preset=settings, linear=request.linear, deformable=request.deformable, fixed_mask=fixed_mask,
        moving_mask=moving_mask, initial_transform=start, seed=request.seed, device=device,
        threads=number_of_threads or None, callback=_printing(callback) if log_to_console else callback,
        **landmarks,
    )  # fmt: skip
    warped = resample_array(
        moving.array, moving.geometry, result.mapping, fixed.geometry, request.interpolation, request.default,
        threads=number_of_threads or None,
    )  # fmt: skip
    image = to_itk(as_pixel_type(warped, fixed.pixel_type), fixed.geometry)
    if folder is None:
        maps = result_maps(result.mapping, request, fixed.geometry)
    else:
        maps = write_result(result.mapping, folder, request, warped, fixed.geometry)
    parameters = itk.ParameterObject.New()
    for one in maps:
        parameters.AddParameterMap(one)
    return image, parameters


def _check_keywords(options: Mapping[str, Any], number_of_threads: Any) -> None:
    for name in options:
        if name in REFUSED:
            raise OptionError(f"elastix: {name} cannot be used here: {REFUSED[name]}")
    number = whole_number(number_of_threads)
    if number is None or number < 0:
        raise OptionError(f"number_of_threads is a whole number, 0 for all, got {number_of_threads!r}")


def _landmarks(given: Mapping[str, Any], weight: float | None, fixed: Geometry, moving: Geometry) -> dict[str, Any]:
    """The corresponding points as arguments of `register`."""
    present = [name for name, value in given.items() if value is not None]
    if weight is None:
        if present:
            raise OptionError(
                f"elastix: {', '.join(present)} without {POINTS} in any map has no effect; name it in Metric"
            )
        return {}
    out = {}
    for side, grid in (("fixed", fixed), ("moving", moving)):
        names = [name for name in POINT_KEYWORDS[side] if name in present]
        if len(names) != 1:
            raise OptionError(
                f"elastix: {POINTS} needs one of {', '.join(POINT_KEYWORDS[side])}, got {names or 'none'}"
            )
        out[f"{side}_landmarks"] = read_points(given[names[0]], grid, names[0])
    return out


def _start(given: Mapping[str, Any], grid: Geometry) -> CompositeTransform | None:
    """The one initial transform of the four that may be given."""
    present = [name for name, value in given.items() if value is not None]
    if not present:
        return None
    if len(present) > 1:
        raise OptionError(f"give one initial transform, got {', '.join(present)}")
    name = present[0]
    if "parameter" in name:
        return read_elastix(given[name], grid)
    return load_transform(given[name], grid, role=name)


def _printing(callback: Callback | None) -> Callback:
    """A callback that prints every tenth iteration of a level and its last one, and then calls `callback`."""

    def report(now: Progress) -> bool | None:
        if now.iteration % 10 == 0 or now.iteration == now.iterations - 1:
            print(
                f"{now.stage} level {now.level + 1} of {now.levels}, iteration {now.iteration + 1} of "
                f"{now.iterations}: metric {now.metric:.4f}",
                flush=True,
            )
        return None if callback is None else callback(now)

    return report

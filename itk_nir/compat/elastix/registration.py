"""The call: `registration_method`, with elastix' arguments and return values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from itk_nir.atomic import replacing
from itk_nir.compat.elastix.files import check_output_folder, result_maps, write_result
from itk_nir.compat.elastix.options import OF_SURFACES, PIXELS, REFUSED, STANDING_IN
from itk_nir.compat.elastix.parameters import Request, understand
from itk_nir.compat.elastix.reading import import_itk_elastix, read_maps
from itk_nir.compat.elastix.resampling import as_pixel_type
from itk_nir.compat.elastix.run import Outcome, run
from itk_nir.compat.elastix.stages import is_deformable
from itk_nir.compat.options import Device
from itk_nir.compat.printing import printing
from itk_nir.errors import OptionError
from itk_nir.images import to_itk
from itk_nir.options import whole_number

if TYPE_CHECKING:
    from itk_nir.engine.progress import Callback
    from itk_nir.settings import Settings


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
    log_to_file: bool = False,
    log_file_name: str | None = None,
    number_of_threads: int = 0,
    preset: str | Settings = "default",
    device: Device = "auto",
    callback: Callback | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Register as ``itk.elastix_registration_method`` would be asked to.

    Parameters
    ----------
    fixed_image, moving_image : itk.Image, SimpleITK.Image, path or list of these
        2D or 3D images of one grey value; their pixel types may differ. Lists are as many pairs, registered together:
        the first of them is resampled.
    parameter_object : itk.ParameterObject, dict, list of dict, path or list of path, optional
        One parameter map a stage, in order. Left out, elastix' stages: translation, affine, B-spline.
    fixed_mask, moving_mask : itk.Image, SimpleITK.Image or path, optional
        Above 0 where the image counts.
    initial_transform, external_initial_transform : transform of ITK or SimpleITK, path or matrix, optional
        Whatever `itk_nir.load_transform` takes, fixed → moving, LPS mm. Both names mean the same. At most one of these
        two and the next two may be given. Its maps come first in the result.
    initial_transform_parameter_object : itk.ParameterObject, optional
        A result of elastix to start from. Its maps come first in the result, as in elastix.
    initial_transform_parameter_file_name : path, optional
        The last ``TransformParameters.N.txt`` of a result of elastix to start from. The result does not contain it, as
        in elastix: its first map names the file.
    fixed_point_set_file_name, moving_point_set_file_name : path, optional
        Corresponding points, elastix' files; a map must name ``CorrespondingPointsEuclideanDistanceMetric``.
    fixed_points, moving_points : itk.PointSet or array_like, optional
        The same points in memory, LPS mm.
    output_directory : path, optional
        An existing folder for ``TransformParameters.N.txt``, the displacement field they name, and
        ``result.N.FORMAT``, one of each a stage. Left out: the field goes to a folder of its own for this result under
        the system's temporary folder, which is removed when Python ends; the returned object is of no use after that.
    log_to_console : bool, default False
        Print a line for every tenth iteration.
    log_to_file : bool, default False
        Write the same lines into a file of `output_directory`.
    log_file_name : str, optional
        Its name; ``elastix.log`` by default.
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
        Options of the preset, public and expert ones, as for `itk_nir.make_settings`, and the arguments of
        `itk_nir.register` that elastix has no word for: `PASSED`.

    Returns
    -------
    image : itk.Image
        The moving image resampled through the transform on the fixed grid, in the fixed image's pixel type.
    transform_parameters : itk.ParameterObject
        One map a stage, in order, after those of an initial transform that was given as an object: linear ones of the
        class that was asked for, the deformation as a ``DeformationFieldTransform``; fixed → moving, LPS mm.
        ``itk.transformix_filter`` takes it.

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
    >>> [parameters.GetParameterMap(n)["Transform"][0] for n in range(parameters.GetNumberOfParameterMaps())]
    ['TranslationTransform', 'AffineTransform', 'DeformationFieldTransform']
    >>> again = itk.transformix_filter(moving, parameters)
    >>> bool(abs(itk.array_view_from_image(again) - itk.array_view_from_image(image)).mean() < 0.1)
    True
    """
    image, parameters, _ = registered(
        fixed_image, moving_image, parameter_object, fixed_mask=fixed_mask, moving_mask=moving_mask,
        start={
            "initial_transform": initial_transform,
            "external_initial_transform": external_initial_transform,
            "initial_transform_parameter_object": initial_transform_parameter_object,
            "initial_transform_parameter_file_name": initial_transform_parameter_file_name,
        },
        points={
            "fixed_point_set_file_name": fixed_point_set_file_name, "fixed_points": fixed_points,
            "moving_point_set_file_name": moving_point_set_file_name, "moving_points": moving_points,
        },
        output_directory=output_directory, log_to_console=log_to_console, log_to_file=log_to_file,
        log_file_name=log_file_name, number_of_threads=number_of_threads, preset=preset, device=device,
        callback=callback, options=options,
    )  # fmt: skip
    return image, parameters


def registered(
    fixed_image: Any,
    moving_image: Any,
    parameter_object: Any,
    *,
    fixed_mask: Any,
    moving_mask: Any,
    start: Mapping[str, Any],
    points: Mapping[str, Any],
    output_directory: str | os.PathLike[str] | None,
    log_to_console: bool,
    log_to_file: bool,
    log_file_name: str | None,
    number_of_threads: int,
    preset: str | Settings,
    device: Device,
    callback: Callback | None,
    options: Mapping[str, Any],
) -> tuple[Any, Any, Outcome]:
    """Do what `registration_method` does, and give the registration itself too.

    Parameters
    ----------
    fixed_image, moving_image, parameter_object, fixed_mask, moving_mask, output_directory, log_to_console
        As of `registration_method`.
    start, points : mapping of str to object
        Its four ways to give an initial transform and its four to give points, by name; None where not given.
    log_to_file, log_file_name, number_of_threads, preset, device, callback
        As of `registration_method`.
    options : mapping of str to object
        Its ``**options``.

    Returns
    -------
    image : itk.Image
    transform_parameters : itk.ParameterObject
    outcome : Outcome

    Raises
    ------
    OptionError, InputError
        As of `registration_method`.
    """
    itk = import_itk_elastix()
    _check_keywords(options, number_of_threads)
    folder = None if output_directory is None else Path(output_directory)
    if log_to_file and folder is None:
        raise OptionError("elastix: log_to_file needs an output_directory, where the log is written")
    maps = read_maps(parameter_object)
    lines: list[str] = []
    say = _saying(lines, log_to_console)
    request = understand(maps)
    if folder is not None:
        inputs = (fixed_image, moving_image, fixed_mask, moving_mask, *start.values(), *points.values())
        check_output_folder(folder, request, *inputs)
    for line in remarks(request):
        say(line)
    outcome = run(
        _several(fixed_image), _several(moving_image), maps, fixed_mask=fixed_mask, moving_mask=moving_mask,
        start=start, points=points,
        preset=preset, device=device, threads=number_of_threads or None, options=options,
        callback=printing(callback, say) if log_to_console or log_to_file else callback,
    )  # fmt: skip
    image = to_itk(as_pixel_type(outcome.warped(), outcome.fixed.pixel_type), outcome.grid)
    pixel_type = next((n for n, t in PIXELS.items() if np.dtype(t) == outcome.fixed.pixel_type), "float")
    written = result_maps(outcome) if folder is None else write_result(outcome, folder, pixel_type)
    if log_to_file and folder is not None:
        with replacing(folder / (log_file_name or "elastix.log")) as file:
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    parameters = itk.ParameterObject.New()
    for one in written:
        parameters.AddParameterMap(one)
    return image, parameters, outcome


def remarks(request: Request) -> list[str]:
    """What a request does not get as it asks for it, a line each.

    Parameters
    ----------
    request : Request
        Of parameter maps.

    Returns
    -------
    list of str
    """
    out = []
    if request.unused:
        out.append(f"elastix parameters without a meaning here: {', '.join(request.unused)}")
    out.extend(
        f"elastix metric {name} is approximated by {(STANDING_IN | OF_SURFACES)[name]}" for name in request.standing_in
    )
    deformable = [k for k in request.kinds if is_deformable(k)]
    if len(deformable) > 1:
        out.append(
            f"{len(deformable)} deformable maps are one stage here: the first of them holds all of the deformation"
        )
    return out


def _several(image: Any) -> Sequence[Any]:
    return image if isinstance(image, list) else [image]


def _saying(lines: list[str], aloud: bool) -> Callable[[str], None]:
    def say(line: str) -> None:
        lines.append(line)
        if aloud:
            print(line, flush=True)

    return say


def _check_keywords(options: Mapping[str, Any], number_of_threads: Any) -> None:
    for name in options:
        if name in REFUSED:
            raise OptionError(f"elastix: {name} cannot be used here: {REFUSED[name]}")
    number = whole_number(number_of_threads)
    if number is None or number < 0:
        raise OptionError(f"number_of_threads is a whole number, 0 for all, got {number_of_threads!r}")

"""A registration as parameter maps ask for it, and what elastix would leave of it; no object of ITK is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.elastix.constraints import check_parameters
from itk_nir.compat.elastix.options import MISSING, OVERLAP, POINT_KEYWORDS, POINTS, SURFACES
from itk_nir.compat.elastix.parameters import Request, check_dimensions, understand
from itk_nir.compat.elastix.points import read_points
from itk_nir.compat.elastix.resampling import Resampling, resampled, without_direction
from itk_nir.compat.elastix.similarities import Overlap
from itk_nir.compat.elastix.stages import Stage, inverse_stages, is_deformable, linear_part, stages_of
from itk_nir.compat.elastix.surfaces import within_surfaces
from itk_nir.compat.options import Device
from itk_nir.errors import InputError, OptionError, warn_caller
from itk_nir.findings import texts
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, refuse_slices
from itk_nir.places import as_file_name
from itk_nir.resample import resample_array
from itk_nir.transforms.as_simpleitk import to_sitk
from itk_nir.transforms.formats.elastix import ParameterMap, read_elastix
from itk_nir.transforms.formats.elastix.exact import read_chain
from itk_nir.transforms.formats.elastix.reading import collect
from itk_nir.transforms.formats.elastix.steps import field_first
from itk_nir.transforms.model import CompositeTransform, LinearTransform

if TYPE_CHECKING:
    from itk_nir.engine.progress import Callback
    from itk_nir.result import RegistrationResult
    from itk_nir.settings import Settings

#: Arguments of `itk_nir.register` that elastix has no word for, and that go through as they are.
PASSED = (
    "rigid_regions", "volume_regions", "fixed_lesion", "moving_lesion", "fixed_labels", "moving_labels",
    "landmark_weights", "nan", "resample_shear", "strict_input", "checkpoint", "checkpoint_seconds",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Start:
    """Where a registration starts from, and how the result remembers it.

    Parameters
    ----------
    transform : CompositeTransform
        Fixed → moving.
    exact : SimpleITK.Transform
        The same, with nothing sampled that need not be.
    file : Path or None
        The parameter file that the first map of the result names; the result itself does not contain the start.
    maps : tuple of dict
        Parameter maps that come first in the result.
    in_memory : bool
        A transform without parameter maps, for which some are made, which come first in the result.
    """

    transform: CompositeTransform
    exact: Any
    file: Path | None = None
    maps: tuple[ParameterMap, ...] = ()
    in_memory: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished registration in the terms of elastix.

    Parameters
    ----------
    request : Request
        What was asked for.
    stages : tuple of Stage
        What each stage came to; they come after `start`.
    start : Start or None
        The initial transform.
    fixed, moving : Volume
        The first images, on the axes that the stages work in.
    grid : Geometry
        The fixed image's, with its own axes: what images come back on.
    result : RegistrationResult or None
        Of `itk_nir.register`; None where nothing had to be searched for.
    threads : int or None
        CPU threads.
    """

    request: Request
    stages: tuple[Stage, ...]
    start: Start | None
    fixed: Volume
    moving: Volume
    grid: Geometry
    result: RegistrationResult | None = None
    threads: int | None = None

    def transform(self, stages: int) -> Any:
        """The whole map after a number of stages.

        Parameters
        ----------
        stages : int
            How many.

        Returns
        -------
        SimpleITK.Transform
            Fixed → moving.
        """
        import SimpleITK as sitk

        parts: list[Any] = []
        for stage in self.stages[:stages]:
            if stage.linear is not None:
                parts.append(stage.linear)
            elif stage.field is not None:
                parts.extend(stage.field.steps())
        own = to_sitk(CompositeTransform(field_first(tuple(parts or (LinearTransform.identity(self.grid.dimension),)))))
        if self.start is None:
            return own
        return sitk.CompositeTransform([own, self.start.exact])  # the last one is applied first

    def warped(self, stages: int | None = None) -> NDArray[Any]:
        """The moving image after a number of stages, as the map of the last of them resamples it.

        Parameters
        ----------
        stages : int, optional
            How many; all by default.

        Returns
        -------
        ndarray
            ``grid.shape`` float.
        """
        count = len(self.stages) if stages is None else stages
        how: Resampling = self.request.outputs[count - 1].resampling
        return resampled(self.moving, self.transform(count), self.fixed.geometry, how, self.threads)


def run(
    fixed: Sequence[Any],
    moving: Sequence[Any],
    maps: Sequence[ParameterMap],
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    start: Mapping[str, Any] | None = None,
    points: Mapping[str, Any] | None = None,
    surfaces: Mapping[int, Sequence[str]] | None = None,
    preset: str | Settings = "default",
    device: Device = "auto",
    threads: int | None = None,
    callback: Callback | None = None,
    options: Mapping[str, Any] | None = None,
) -> Outcome:
    """Register as parameter maps ask for.

    Parameters
    ----------
    fixed, moving : sequence of image or path
        One image each, or as many of each: pairs that are registered together.
    maps : sequence of dict of str to list of str
        One a stage; none at all for elastix' default stages.
    fixed_mask, moving_mask : image or path, optional
        Above 0 where the image counts.
    start : mapping of str to object, optional
        The four ways of `registration_method` to give an initial transform, by their names; None where not given.
    points : mapping of str to object, optional
        The corresponding points, by the names of `registration_method`.
    surfaces : mapping of int to sequence of str, optional
        Number of a metric → files of the surfaces that it is for.
    preset, device, threads, callback
        As of `itk_nir.register`.
    options : mapping of str to object, optional
        Options of the preset, and the arguments of `itk_nir.register` that `registration_method` passes on.

    Returns
    -------
    Outcome

    Raises
    ------
    OptionError
        A parameter that is unknown or cannot be honoured, by its name.
    InputError
        An image, mask or transform that cannot be used.
    """
    # Here, because they import torch: transformix and the tables must not wait for that.
    from itk_nir.loading import load_transform
    from itk_nir.registration import register
    from itk_nir.settings import make_settings, present_names

    request = understand(maps)
    count = _pairs(fixed, moving)
    options = dict(options or {})
    arguments = {name: options.pop(name) for name in list(options) if name in PASSED}
    _check_overlap(request, count, arguments)
    missing = _missing(request, surfaces or {}, arguments)
    # A wrong option is refused before any image is read.
    channels = count - request.has_structure_apart(count)
    settings = make_settings(preset, **request.with_metrics(present_names(preset, options), channels))
    fixeds = [load_image(image, "fixed image") for image in fixed]
    movings = [load_image(image, "moving image") for image in moving]
    refuse_slices(fixed=fixeds[0].geometry.size, moving=movings[0].geometry.size)
    check_dimensions(maps, fixeds[0], movings[0])
    if "landmark_weight" not in options:
        settings = make_settings(settings, **request.points_options(fixeds, movings))
    grid = fixeds[0].geometry
    check_parameters(request.constraints, grid.dimension)
    masks = {"fixed_mask": fixed_mask, "moving_mask": moving_mask}
    read: dict[str, Any] = {
        name: None if m is None else load_image(m, name.replace("_", " ")) for name, m in masks.items()
    }
    if not request.use_direction:
        fixeds, movings = [without_direction(v) for v in fixeds], [without_direction(v) for v in movings]
        read = {name: None if m is None else without_direction(m) for name, m in read.items()}
    plain = fixeds[0].geometry
    began = start_of(start or {}, plain)
    given = _landmarks(points or {}, request.has_points, plain, movings[0].geometry)
    told: dict[str, Any] = {
        "request": request, "start": began, "fixed": fixeds[0], "moving": movings[0], "grid": grid, "threads": threads,
    }  # fmt: skip
    if request.inverse:
        if began is None:
            raise InputError(
                "elastix: the smallest displacement alone asks for the inverse of an initial transform; give one"
            )
        return Outcome(stages=inverse_stages(began.transform, request.kinds, plain), **told)
    initial = None if began is None else began.transform
    if initial is None and not request.search:
        initial = load_transform(np.eye(plain.dimension + 1))
    if request.rigidity:
        arguments.setdefault("rigid_regions", _rigid_regions(request, fixeds[0], initial))
    if missing:
        arguments["fixed_lesion"] = within_surfaces(missing, fixeds[0])
    if request.overlap is not None:
        number = request.overlap.image if request.has_structure_apart(count) else 0
        arguments |= _structures(request.overlap, fixeds[number], movings[number])
        if request.has_structure_apart(count):
            fixeds, movings = ([v for n, v in enumerate(several) if n != number] for several in (fixeds, movings))
    images: Any = (fixeds, movings) if channels > 1 else (fixeds[0], movings[0])
    every: dict[str, Any] = {
        "seed": request.seed, "device": device, "threads": threads, **read, **given, **arguments,
    }  # fmt: skip
    kinds, linear = request.kinds, request.linear
    before: tuple[Stage, ...] = ()
    if request.constraints:
        before, initial = _stepwise(request, images, settings, began, every, callback)
        if not request.deformable:
            return Outcome(stages=before, **told)
        kinds, linear = tuple(k for k in kinds if is_deformable(k)), "none"
    result = register(
        *images, preset=settings, linear=linear, deformable=request.deformable, initial_transform=initial,
        callback=callback, **every,
    )  # fmt: skip
    return Outcome(stages=(*before, *stages_of(result, kinds, initial)), result=result, **told)


def _pairs(fixed: Sequence[Any], moving: Sequence[Any]) -> int:
    if not fixed or len(fixed) != len(moving):
        raise InputError(
            f"elastix: there are {len(fixed)} fixed and {len(moving)} moving images; give as many of each, pair by pair"
        )
    return len(fixed)


def _check_overlap(request: Request, pairs: int, arguments: Mapping[str, Any]) -> None:
    """Refuse an overlap that has no images of its own, or stands beside labels."""
    if request.overlap is None:
        return
    if request.has_structure_apart(pairs) and request.overlap.image >= pairs:
        raise OptionError(
            f"elastix parameter Metric: {OVERLAP} is metric {request.overlap.image}, but there are {pairs} pairs of "
            "images; give it a pair of its own, or one pair for all metrics"
        )
    labels = [name for name in ("fixed_labels", "moving_labels") if arguments.get(name) is not None]
    if labels:
        raise OptionError(f"elastix: {', '.join(labels)} beside the metric {OVERLAP} cannot be had; give either")


def _missing(request: Request, surfaces: Mapping[int, Sequence[str]], arguments: Mapping[str, Any]) -> list[str]:
    """The surfaces of what has no counterpart in the moving image."""
    useless = sorted(set(surfaces) - {*request.missing, *request.surfaces})
    if useless:
        raise OptionError(f"elastix: metric {useless[0]} is neither {MISSING} nor {SURFACES}; a surface has no effect")
    files = [name for number in request.missing for name in surfaces.get(number, ())]
    lesion = arguments.get("fixed_lesion") is not None
    if request.missing and lesion == bool(files):
        raise OptionError(
            f"elastix metric {MISSING}: give either its surfaces (-fmeshA{request.missing[0]} FILE) or the keyword "
            f"fixed_lesion=, got {'both' if lesion else 'neither'}"
        )
    return files


def _structures(overlap: Overlap, fixed: Volume, moving: Volume) -> dict[str, Any]:
    """The images of one structure as label maps."""
    out: dict[str, Any] = {}
    for side, image in (("fixed", fixed), ("moving", moving)):
        values = image.array.astype(np.float64) * image.scale + image.offset
        here = (np.abs(values - overlap.foreground) <= 1e-3).astype(np.uint8)
        if not here.any():
            raise InputError(
                f"elastix: {image.name} has no voxel of the value {overlap.foreground:g}, which {OVERLAP} compares; "
                "set ForegroundValue to that of the structure"
            )
        name = f"structure of the {side} image"
        out[f"{side}_labels"] = replace(image, array=here, name=name, pixel_type=here.dtype, scale=1.0, offset=0)
    return out


def _stepwise(
    request: Request, images: Any, settings: Settings, began: Start | None, options: Mapping[str, Any],
    callback: Callback | None,
) -> tuple[tuple[Stage, ...], CompositeTransform]:  # fmt: skip
    """The linear stages by elastix' own parameters, and all of them after the initial transform."""
    # Here, because they import torch.
    from itk_nir.compat.elastix.stepwise import find_stepwise
    from itk_nir.problem import Problem

    start = None if began is None else began.transform
    if start is not None and not start.is_linear:
        raise OptionError(
            "elastix: parameters are held still or searched after a deformation, which cannot be had; give a linear "
            "initial transform, or none"
        )
    wrong = [name for name in ("checkpoint", "checkpoint_seconds", "rigid_regions") if name in options]
    if wrong:
        raise OptionError(f"elastix: {', '.join(wrong)} cannot be had where parameters are held still or searched")
    fixed, moving = images
    problem = Problem.prepare(
        fixed, moving, settings, linear="affine", deformable=False, initial_transform=start, **options
    )
    for note in texts(problem.findings):
        warn_caller(note)
    before = None if start is None else linear_part(start)
    found = find_stepwise(problem, request.constraints, before, callback)
    return found.stages, CompositeTransform((found.linear,))


def _rigid_regions(request: Request, fixed: Volume, start: CompositeTransform | None) -> Volume:
    """Every connected part of what the rigidity images hold to be stiff, as a region of its own.

    What the image of the moving side says is taken to the fixed grid by the initial transform.
    """
    import SimpleITK as sitk

    grid = fixed.geometry
    stiff = np.zeros(grid.shape, np.uint8)
    identity = CompositeTransform((LinearTransform.identity(grid.dimension),))
    for side, name in request.rigidity.items():
        word = f"{side.capitalize()}RigidityImageName"
        file = Path(as_file_name(name))
        if not name:
            raise OptionError(f"elastix parameter {word} is missing: name the image of what is rigid")
        if not file.is_file():
            raise InputError(f"elastix parameter {word}: {file}: no such file; check the path")
        image = load_image(file, word)
        if not request.use_direction:
            image = without_direction(image)
        through = identity if side == "fixed" or start is None else start
        near = resample_array((image.array > 0.5).astype(np.uint8), image.geometry, through, grid, "nearest")
        stiff |= near.astype(np.uint8)
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(stiff))).astype(np.uint16)
    if not labels.any():
        raise InputError(
            f"elastix: {', '.join(request.rigidity.values())}: nowhere above 0.5 in the fixed image, so that nothing "
            "is rigid; leave the penalty out, or give another image"
        )
    return replace(fixed, array=labels, name="rigid regions", pixel_type=labels.dtype, scale=1.0, offset=0)


def start_of(given: Mapping[str, Any], grid: Geometry) -> Start | None:
    """Read the one initial transform of the four that may be given.

    Parameters
    ----------
    given : mapping of str to object
        ``initial_transform``, ``external_initial_transform``, ``initial_transform_parameter_object``,
        ``initial_transform_parameter_file_name``; None where not given.
    grid : Geometry
        The fixed image's.

    Returns
    -------
    Start or None
        None where there is none.

    Raises
    ------
    OptionError
        More than one.
    InputError
        One that cannot be read.
    """
    from itk_nir.loading import load_transform  # imports torch

    present = [name for name, value in given.items() if value is not None]
    if not present:
        return None
    if len(present) > 1:
        raise OptionError(f"give one initial transform, got {', '.join(present)}")
    name = present[0]
    source = given[name]
    if "parameter" not in name:
        transform = load_transform(source, grid, role=name)
        return Start(transform, to_sitk(transform), in_memory=True)
    chain = read_chain(source, grid)
    transform = read_elastix(source, grid)
    exact = chain.transform_on(grid)
    if isinstance(source, (str, os.PathLike)):
        return Start(transform, exact, file=Path(os.path.abspath(as_file_name(os.fspath(source)))))
    return Start(transform, exact, maps=tuple(one for one, _ in collect(source, False)))


def _landmarks(given: Mapping[str, Any], wanted: bool, fixed: Geometry, moving: Geometry) -> dict[str, Any]:
    """The corresponding points as arguments of `register`."""
    present = [name for name, value in given.items() if value is not None]
    if not wanted:
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

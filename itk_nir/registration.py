"""`register`: two images in, one transform out."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from itk_nir.call import described
from itk_nir.checkpoint import Checkpoints, checked_seconds
from itk_nir.engine.journal import Journal
from itk_nir.engine.progress import Callback
from itk_nir.engine.torch_state import engine_state, in_state, until_exit
from itk_nir.errors import OptionError, VerdictWarning
from itk_nir.findings import texts
from itk_nir.memory import within_memory
from itk_nir.options import shown
from itk_nir.places import named_files
from itk_nir.problem import Problem
from itk_nir.result import RegistrationResult
from itk_nir.run import Run
from itk_nir.settings import Options, Settings, make_settings
from itk_nir.telling import warn_of_expert_settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from itk_nir.settings import PresetName

_log = logging.getLogger("itk_nir")


def register(
    fixed: Any,
    moving: Any,
    *,
    preset: PresetName | Settings = "default",
    linear: Literal["affine", "similarity", "rigid", "translation", "none"] = "affine",
    deformable: bool = True,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_lesion: Any = None,
    moving_lesion: Any = None,
    rigid_regions: Any = None,
    volume_regions: Any = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    landmark_weights: Any = None,
    fixed_labels: Any = None,
    moving_labels: Any = None,
    initial_transform: Any = None,
    fill: float | None = None,
    nan: Literal["error", "mask"] = "error",
    resample_shear: bool = False,
    strict_input: bool = False,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    **options: Unpack[Options],
) -> RegistrationResult:
    """Find the dense, invertible deformation that takes `moving` onto `fixed`.

    The map is ``phi(p) = T(A(p + u(p)))`` for a fixed physical point ``p`` (LPS mm): the deformation ``u`` of a neural
    field optimised for this pair, the linear map ``A``, and the caller's own ``T``.

    Parameters
    ----------
    fixed, moving : path, itk.Image, SimpleITK.Image, ANTsImage, nibabel image, (array, Geometry) or list of them
        2D or 3D, any grids and orientations (``docs/inputs.md`` has all kinds). Several channels (contrasts,
        features) are a list of images on one grid, or one image with several values a pixel (colour, vectors); `warped`
        shows the first of a list. Two single slices of 3D images are registered in 2D, in their own plane.
    preset : str or Settings
        ``"fast"``, ``"default"``, ``"accurate"`` or ``"paper"``, or what `itk_nir.make_settings` made, which takes
        expert settings too.
    linear : str
        Linear stage before the deformation: ``"affine"``, ``"similarity"``, ``"rigid"``, ``"translation"`` or
        ``"none"``.
    deformable : bool
        False stops after the linear stage: the result is a linear map (and `initial_transform`). The stage then goes on
        to the full resolution of the images.
    fixed_mask, moving_mask : image or path, optional
        Above 0 where the image counts, in every stage: similarity is compared there alone. What lies beyond may still
        be looked at by smoothing; a hole of a mask, which it encloses, counts as a lesion.
    fixed_lesion, moving_lesion : image or path, optional
        Above 0 where the image shows what has no counterpart in the other: a lesion, an implant, an artefact. It is not
        looked at in any stage; the deformation follows its surroundings there.
    rigid_regions, volume_regions : image or path, optional
        Label maps of the fixed image, any grid: 0 is no region; every other value is a region that keeps its shape
        (the map is rigid there, to 0.001 voxel), or its volume. Their surroundings adapt to them.
    fixed_landmarks, moving_landmarks : array_like or path, optional
        Corresponding points, ``(N, d)`` LPS mm or a file of points (CSV, Slicer, ...), row k to row k. Pairs that the
        others contradict are not believed, and the report says which.
    landmark_weights : array_like, optional
        ``(N,)``, 0 and more: how much each pair counts; left out, all the same.
    fixed_labels, moving_labels : image or path, optional
        Label maps, whole numbers with 0 as the background, on any grids.
    initial_transform : RegistrationResult, transform, matrix, path or list, optional
        Where to start from, fixed → moving: anything that `itk_nir.load_transform` takes; a list in ANTs' order. It is
        composed into the result, never lost.
    fill : float, optional
        Value of `warped` where the moving image does not reach; left out, its background (0 for label maps).
    nan : str
        What NaN and infinite voxels are: ``"error"``, or ``"mask"``: left out as by a mask.
    resample_shear : bool
        Resample images whose axes are not perpendicular onto a grid that is (label maps and masks to the nearest),
        instead of refusing them.
    strict_input : bool
        Make warnings about the input errors (`itk_nir.check` lists them).
    seed : int
        Every random draw comes from it.
    device : str
        ``"auto"`` (CUDA where the card has passed ``itk-nir selftest``, else the CPU), ``"cpu"``, ``"cuda"`` or
        ``"cuda:N"``.
    threads : int, optional
        CPU threads; all that the process may use by default. Results do not depend on it.
    callback : callable, optional
        Called with a `Progress` after every iteration; a true return value stops, and the best so far is kept.
    checkpoint : path, optional
        A folder: what is done so far is kept there after the linear stage, after every level and every
        `checkpoint_seconds` within one. The same call takes up from there what was stopped, and ends in the same bits;
        then the folder is emptied. Not for preset ``"paper"``.
    checkpoint_seconds : float
        At least 0.
    **options : Options
        Public options of the preset: `metric`, `channel_weights`, `linear_metric`, `iterations`, `shrink_factors`,
        `smoothing_sigmas`, `radius`, `learning_rates`, `regulariser`, `smoothness`, `grid_spacing`, `transform_model`,
        `symmetric`, `search`, `restrict`, `region_weight`, `landmark_weight`, `label_weight`, `labels`,
        `convergence_window`, `convergence_threshold`. ``docs/options.md`` and ``itk-nir presets PRESET`` say what each
        means and may be.

    Returns
    -------
    RegistrationResult
        ``.transform``, ``.inverse_transform``, ``.warped``, ``.report``, ``.save(prefix)``, ...

    Raises
    ------
    InputError
        An image, mask or transform that cannot be used, said before any work begins.
    OptionError
        An unknown or unfitting option.

    Warns
    -----
    VerdictWarning
        The evidence does not support the result (``report.verdict``).

    Notes
    -----
    Calls from several threads of one process go one after another (on a CPU).

    References
    ----------
    Sun, Han, Kong, Hua, Wu, Xie, "Medical Image Registration via Neural Fields", MedIA 97 (2024) 103249.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> result = itk_nir.register(fixed, moving, preset="fast", iterations=5)
    >>> result.report.similarity > result.report.similarity_start
    True
    """
    given = dict(locals())
    if callback is not None and not callable(callback):
        raise OptionError(f"callback is a function that takes a Progress, got {shown(callback)}")
    settings = make_settings(preset, **options)
    warn_of_expert_settings(preset, set(options))
    with engine_state():
        problem = Problem.prepare(
            fixed,
            moving,
            settings,
            linear=linear,
            deformable=deformable,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            fixed_lesion=fixed_lesion,
            moving_lesion=moving_lesion,
            rigid_regions=rigid_regions,
            volume_regions=volume_regions,
            fixed_landmarks=fixed_landmarks,
            moving_landmarks=moving_landmarks,
            landmark_weights=landmark_weights,
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            initial_transform=initial_transform,
            fill=fill,
            nan=nan,
            resample_shear=resample_shear,
            strict_input=strict_input,
            seed=seed,
            device=device,
            threads=threads,
        )
    kept = None if checkpoint is None else Checkpoints.of(checkpoint, problem)
    journal = Journal() if kept is None else kept.journal(checked_seconds(checkpoint_seconds))
    told = texts(problem.findings)
    for note in told:
        warnings.warn(note, UserWarning, stacklevel=2)
    with engine_state(problem.device) as found:
        told_of = until_exit(None if callback is None else in_state(callback, found))
        run = Run(problem, told_of, journal, described(given, settings))
        result = within_memory(run.result, problem)
    if kept is not None and result.report.stop != "cancelled":
        kept.clear()
    result = replace(
        result,
        inputs=named_files(
            fixed, moving, fixed_mask, moving_mask, fixed_lesion, moving_lesion, rigid_regions, volume_regions,
            fixed_landmarks, moving_landmarks, fixed_labels, moving_labels, initial_transform,
        ),
    )  # fmt: skip
    verdict = result.report.verdict
    for note in result.report.warnings[len(told) :]:
        category = VerdictWarning if verdict is not None and str(verdict) in note else UserWarning
        warnings.warn(note, category, stacklevel=2)
    return result

"""ANTsPy's `registration`, with this engine behind it.

>>> from itk_nir.compat.ants import registration
>>> tx = registration(fixed, moving, "SyN")
>>> warped = ants.apply_transforms(fixed, moving, tx["fwdtransforms"])

`OPTIONS` says of every option of ANTs what becomes of it; ``docs/coming_from_ants.md`` shows the same table.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat import STAND_IN, engine_options, level_options, nearest_name
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images import Volume, load_image, save_image
from itk_nir.transforms.model import CompositeTransform, LinearTransform, compose

if TYPE_CHECKING:
    from itk_nir.engine.progress import Callback, Progress
    from itk_nir.result import RegistrationResult

#: Option of ``ants.registration`` → (honoured, approximated or refused; what that means).
OPTIONS: dict[str, tuple[str, str]] = {
    "type_of_transform": ("honoured", "see the table of types; those without a counterpart are refused by name"),
    "initial_transform": (
        "honoured",
        "files in ANTs' order, `[file,1]` for the inverse of one, or 'Identity'; None looks for the best start "
        "(as they lie, centres, centres of mass)",
    ),
    "outprefix": ("honoured", "start of all file names; '' puts them into a new temporary folder, where they stay"),
    "mask": ("honoured", "above 0 where the fixed image counts"),
    "moving_mask": ("honoured", "above 0 where the moving image counts"),
    "mask_all_stages": ("approximated", "masks count in every stage, as with True"),
    "grad_step": ("refused", "set learning_rates= (voxels, one a level)"),
    "flow_sigma": ("refused", "set velocity_diffusion= (weight of the smoothness of the update, one a level)"),
    "total_sigma": ("refused", "set displacement_diffusion= (weight of the smoothness of the total, one a level)"),
    "aff_metric": ("approximated", f"'mattes', 'MI' and 'GC' become {STAND_IN}; 'meansquares' is refused"),
    "aff_sampling": ("refused", "the metric has no histogram"),
    "aff_random_sampling_rate": ("approximated", "all voxels are used, whatever the rate"),
    "syn_metric": (
        "approximated",
        f"'CC' is {STAND_IN} here too; 'mattes' (ANTs' default) and 'MI' become it: good within one modality, whatever "
        "the contrast; 'meansquares' and 'demons' are refused",
    ),
    "syn_sampling": ("honoured", "with 'CC' the radius in voxels of the level (32 is the preset's own); else refused"),
    "reg_iterations": (
        "honoured",
        "the number of levels, shrink factors …, 4, 2, 1, and most steps of each (0 leaves a level out); a preset that "
        "needs fewer steps takes fewer; the default (40, 20, 0) is the preset's own levels",
    ),
    "aff_iterations": ("refused", "set linear_steps="),
    "aff_shrink_factors": ("refused", "set linear_size="),
    "aff_smoothing_sigmas": ("refused", "the levels of the linear stage are smoothed as their size asks for"),
    "write_composite_transform": ("honoured", "Composite.h5 and InverseComposite.h5 in place of the single files"),
    "verbose": ("honoured", "prints one line a level"),
    "multivariate_extras": ("refused", "one image pair only"),
    "restrict_transformation": ("refused", "deformations are free along every axis"),
    "smoothing_in_mm": ("refused", "the linear stage has no sigmas to give"),
    "singleprecision": ("refused", "fields are float32, points and matrices float64; False cannot be had"),
    "use_legacy_histogram_matching": ("refused", f"{STAND_IN} does not see the contrast; match beforehand"),
    "random_seed": ("honoured", "the seed of every random draw; the same seed gives the same bits on a CPU"),
}

#: Refused options and the only value they may have, which is ANTsPy's default.
_FIXED_VALUES: dict[str, Any] = {
    "grad_step": 0.2,
    "flow_sigma": 3,
    "total_sigma": 0,
    "aff_sampling": 32,
    "aff_iterations": (2100, 1200, 1200, 10),
    "aff_shrink_factors": (6, 4, 2, 1),
    "aff_smoothing_sigmas": (3, 2, 1, 0),
    "multivariate_extras": None,
    "restrict_transformation": None,
    "smoothing_in_mm": False,
    "singleprecision": True,
    "use_legacy_histogram_matching": False,
}
_REG_ITERATIONS = (40, 20, 0)
_SYN_SAMPLING = 32


@dataclass(frozen=True)
class Kind:
    """What a type of transform asks for.

    Attributes
    ----------
    linear : ``"none"``, ``"rigid"`` or ``"affine"``.
    deformable : whether a deformation follows.
    preset : the preset that stands for it.
    radius : of the LNCC window, where the type names one.
    """

    linear: str
    deformable: bool
    preset: str = "default"
    radius: int | None = None


#: ANTs' type of transform → `Kind`.
TYPES: dict[str, Kind] = {
    "SyN": Kind("affine", True),
    "SyNRA": Kind("affine", True),
    "SyNCC": Kind("affine", True),
    "SyNOnly": Kind("none", True),
    "SyNAggro": Kind("affine", True, "accurate"),
    "SyNLessAggro": Kind("affine", True, "accurate"),
    "Rigid": Kind("rigid", False),
    "DenseRigid": Kind("rigid", False),
    "QuickRigid": Kind("rigid", False, "fast"),
    "BOLDRigid": Kind("rigid", False),
    "Affine": Kind("affine", False),
    "AffineFast": Kind("affine", False, "fast"),
    "BOLDAffine": Kind("affine", False),
    "TRSAA": Kind("affine", False),
}
#: ``antsRegistrationSyN[x]`` → `Kind`; so are the flag ``-t`` of the shell script and of ``itk-nir ants``.
SCRIPT_TYPES: dict[str, Kind] = {
    "r": Kind("rigid", False),
    "a": Kind("affine", False),
    "s": Kind("affine", True),
    "sr": Kind("rigid", True),
    "so": Kind("none", True),
    "b": Kind("affine", True),
    "br": Kind("rigid", True),
    "bo": Kind("none", True),
}
_NO_COUNTERPART: dict[str, str] = {
    "Translation": "the smallest linear map here is 'Rigid'",
    "Similarity": "use 'Rigid' or 'Affine'",
    "Elastic": "use 'SyN'",
    "ElasticSyN": "use 'SyN'",
    "SyNBold": "the metric wants both images in one modality",
    "SyNBoldAff": "the metric wants both images in one modality",
    "SyNabp": "use 'SyN'",
    "TVMSQ": "use 'SyN'",
    "TVMSQC": "use 'SyN'",
    "t": "the smallest linear map here is 'r'",
}
_SCRIPT = re.compile(r"antsRegistrationSyN(Quick)?(Repro)?(?:\[(\w+)(?:,([\d.]+))?\])?$")


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
    aff_metric: str = "mattes",
    aff_sampling: int = 32,
    aff_random_sampling_rate: float = 0.2,
    syn_metric: str = "mattes",
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
    """``ants.registration`` with its signature, files and return value; see `OPTIONS` for what each option does.

    Parameters
    ----------
    fixed, moving, mask, moving_mask : ``ANTsImage``, or anything that `itk_nir.register` takes.
    type_of_transform : see `TYPES` and `SCRIPT_TYPES`.
    **kwargs : ``random_seed``, and every option of `itk_nir.register` (``preset``, ``device``, ``threads``,
        ``callback``, ``steps``, ...), which goes before what the type of transform would set.

    Returns
    -------
    ``warpedmovout`` : ANTsImage, the moving image on the fixed grid.
    ``warpedfixout`` : ANTsImage, the fixed image on the moving grid.
    ``fwdtransforms`` : files for ``ants.apply_transforms(fixed, moving, ...)``: ``[P1Warp.nii.gz,
        P0GenericAffine.mat]``, or the .mat alone; with `write_composite_transform` one path as text.
    ``invtransforms`` : files for ``ants.apply_transforms(moving, fixed, ...)``: ``[P0GenericAffine.mat,
        P1InverseWarp.nii.gz]``; the matrix is the forward one, which ANTs inverts by itself in this list.

    Points go the other way: ``ants.apply_transforms_to_points(d, points, tx["fwdtransforms"])`` takes fixed points to
    the moving image.

    Raises
    ------
    InputError : an image, mask or transform that cannot be used, or a prefix that cannot be written to.
    OptionError : an option that is refused, does not exist (with the nearest name) or has a value it cannot have.
    """
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    if isinstance(fixed, (list, tuple)) or moving is None:
        raise InputError("registration takes two images; raw antsRegistration arguments cannot be used")
    kind, options = _options(given, kwargs)
    result = _run(fixed, moving, mask, moving_mask, initial_transform, kind, options, outprefix, verbose)
    prefix = outprefix or tempfile.mkdtemp(prefix="itk_nir_") + os.sep
    files = write_files(result, prefix, composite=write_composite_transform)
    back = _warped_fixed(result)
    return {
        "warpedmovout": to_ants(result.warped_array, result.fixed.geometry),
        "warpedfixout": to_ants(back, result.moving.geometry),
        "fwdtransforms": files["fwdtransforms"],
        "invtransforms": files["invtransforms"],
    }


def parse_type(name: Any) -> Kind:
    """ANTs' name of a type of transform → `Kind`.

    Raises
    ------
    OptionError : a type without counterpart, or an unknown one.
    """
    if isinstance(name, (list, tuple)) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str):
        raise OptionError(f"type_of_transform is a name such as 'SyN', got {name!r}")
    if name in TYPES or name == "":
        return TYPES[name or "SyN"]
    if name in _NO_COUNTERPART and name != "t":
        raise OptionError(f"type_of_transform {name!r} has no counterpart here: {_NO_COUNTERPART[name]}")
    if re.match(r"TV\[\d+\]$", name):
        raise OptionError(f"type_of_transform {name!r} has no counterpart here: use 'SyNOnly' or 'SyN'")
    script = _SCRIPT.match(name)
    if script is None:
        known = [*TYPES, *_NO_COUNTERPART, "antsRegistrationSyN[s]", "antsRegistrationSyNQuick[s]"]
        raise OptionError(
            f"unknown type_of_transform {name!r}{nearest_name(name, known)}; see docs/coming_from_ants.md"
        )
    quick, _, letters, number = script.groups()
    kind = parse_script_type(letters or "s", f"type_of_transform {name!r}")
    if quick:
        kind = replace(kind, preset="fast")
    if number is not None:
        if quick or not (letters.startswith("s") and number.isdigit()):
            raise OptionError(
                f"type_of_transform {name!r}: only the radius of CC can follow the letter, as in "
                "'antsRegistrationSyN[s,4]'; bins and spline distances have no counterpart here"
            )
        kind = replace(kind, radius=int(number))
    return kind


def parse_script_type(letters: str, where: str) -> Kind:
    """``s``, ``so``, ``r``, ... of antsRegistrationSyN.sh → `Kind`."""
    if letters == "t":
        raise OptionError(f"{where}: a translation alone has no counterpart here; {_NO_COUNTERPART['t']}")
    if letters not in SCRIPT_TYPES:
        raise OptionError(f"{where}: there is no type {letters!r}; give one of {', '.join(SCRIPT_TYPES)}")
    return SCRIPT_TYPES[letters]


def write_files(
    result: RegistrationResult, prefix: str, *, composite: bool = False, images: bool = False
) -> dict[str, Any]:
    """Write what ANTs writes, under its names: all files appear, complete, or none.

    Parameters
    ----------
    composite : ``PComposite.h5`` and ``PInverseComposite.h5`` in place of the single files.
    images : ``PWarped.nii.gz`` and ``PInverseWarped.nii.gz`` too.

    Returns
    -------
    ``fwdtransforms``, ``invtransforms`` as `registration` returns them; ``images``, a list of paths.
    """
    from itk_nir.checks import check_output_prefix
    from itk_nir.atomic import all_or_none, split_prefix
    from itk_nir.transforms.formats.ants import write_ants
    from itk_nir.transforms.formats.itk_h5 import write_h5

    check_output_prefix(prefix)
    folder, start = split_prefix(prefix)
    with all_or_none(folder) as stage:
        if composite:
            write_h5(result.chain, stage / f"{start}Composite.h5")
            write_h5(result.chain.inverse(), stage / f"{start}InverseComposite.h5")
        else:
            write_ants(result.chain, f"{stage}{os.sep}{start}", result.fixed.geometry)
        if images:
            save_image(result.warped_array, result.fixed.geometry, stage / f"{start}Warped.nii.gz")
            save_image(_warped_fixed(result), result.moving.geometry, stage / f"{start}InverseWarped.nii.gz")
        written = {path.name for path in stage.iterdir()}

    def named(*endings: str) -> list[str]:
        return [str(folder / f"{start}{e}") for e in endings if f"{start}{e}" in written]

    if composite:
        forward: Any = named("Composite.h5")[0]
        backward: Any = named("InverseComposite.h5")[0]
    else:
        forward = named("1Warp.nii.gz", "0GenericAffine.mat")
        backward = named("0GenericAffine.mat", "1InverseWarp.nii.gz")
    return {
        "fwdtransforms": forward,
        "invtransforms": backward,
        "images": named("Warped.nii.gz", "InverseWarped.nii.gz"),
    }


def run_kind(
    fixed: Volume,
    moving: Volume,
    kind: Kind,
    *,
    mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    options: dict[str, Any] | None = None,
) -> RegistrationResult:
    """`itk_nir.register` for one of ANTs' types of transform; `options` go before what the type would set."""
    from itk_nir.registration import register

    settings: dict[str, Any] = {"preset": kind.preset, **(options or {})}
    if kind.radius is not None and kind.deformable:
        settings.setdefault("radius", kind.radius)
    return register(
        fixed,
        moving,
        linear=kind.linear,
        deformable=kind.deformable,
        fixed_mask=mask,
        moving_mask=moving_mask,
        initial_transform=start_of(initial_transform, fixed.geometry),
        **settings,
    )


def start_of(initial: Any, reference: Geometry) -> CompositeTransform | None:
    """ANTs' initial transforms as one chain: a file, ``"[file,1]"`` for its inverse, ``"Identity"``, or a list.

    The first of a list is the first that a fixed point meets.
    """
    from itk_nir.loading import load_transform

    if initial is None:
        return None
    parts = list(initial) if isinstance(initial, (list, tuple)) else [initial]
    if not parts:
        raise InputError("initial transform: an empty list; give at least one file, or None")
    chains = []
    for part in parts:
        if not isinstance(part, (str, os.PathLike)):
            raise InputError(
                f"initial transform: ANTs takes names of files, got {type(part).__name__}; write it to a file, or give "
                "it to itk_nir.register"
            )
        text = os.fspath(part)
        if text.lower() == "identity":
            chains.append(CompositeTransform((LinearTransform.identity(reference.dimension),)))
            continue
        bracketed = re.match(r"\[(.+?)\s*,\s*([01])\]$", text)
        if (text.startswith("[") and bracketed is None) or (bracketed is not None and "," in bracketed[1]):
            raise InputError(
                f"initial transform {text}: give a file, or [file,1] for its inverse; alignment of the centres is what "
                "happens without an initial transform"
            )
        name = bracketed[1] if bracketed else text
        chain = load_transform(name, reference, role="initial transform")
        chains.append(chain.inverse() if bracketed and bracketed[2] == "1" else chain)
    return compose(*chains)


def as_volume(image: Any, role: str) -> Volume:
    """An ``ANTsImage``, or whatever else `itk_nir.register` takes, as a `Volume`."""
    ants = sys.modules.get("ants")
    if ants is None or not ants.is_image(image):
        return load_image(image, role)
    if image.dimension not in (2, 3) or image.components != 1:
        raise InputError(
            f"{role}: is {image.dimension}D with {image.components} values a voxel; a registration takes 2D and 3D "
            "images of one grey value"
        )
    try:
        geometry = Geometry.make(image.shape, image.spacing, image.origin, image.direction)
    except ValueError as error:
        raise InputError(f"{role}: its grid cannot be used: {error}") from error
    # ANTs' arrays have ITK's index order (x, y[, z]).
    values = image.numpy().T
    if not np.isfinite(values).all():
        count = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise InputError(f"{role}: has {count} NaN or infinite voxels; replace them, for example by the background")
    return Volume(np.ascontiguousarray(values, np.float32), geometry, role, "itk", values.dtype)


def to_ants(array: NDArray[Any], geometry: Geometry) -> Any:
    """An ``ANTsImage`` from ``geometry.shape`` scalars."""
    import ants

    return ants.from_numpy(
        np.ascontiguousarray(array.T),
        origin=list(geometry.origin),
        spacing=list(geometry.spacing),
        direction=geometry.rotation.copy(),
    )


def _options(given: dict[str, Any], kwargs: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """What the caller wrote → the kind of registration and options of `register`."""
    kind = parse_type(given["type_of_transform"])
    for name, only in _FIXED_VALUES.items():
        value = given[name]
        value = tuple(value) if isinstance(value, list) else value
        if value is not only and value != only:
            raise OptionError(f"{name}={given[name]!r} is refused: {OPTIONS[name][1]} (only {only!r} can be had)")
    preset = kwargs.get("preset", kind.preset)
    own = {"linear", "deformable", "fixed_mask", "moving_mask", "initial_transform"}
    allowed = (engine_options(preset) - own) | {"random_seed"}
    for name in kwargs:
        if name not in allowed:
            raise OptionError(
                f"unknown option {name!r}{nearest_name(name, {*allowed, *OPTIONS})}; ANTs' options and those of "
                "itk_nir.register can be given"
            )
    rate = given["aff_random_sampling_rate"]
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
        raise OptionError(f"aff_random_sampling_rate is above 0 and at most 1, got {rate!r}")
    if str(given["aff_metric"]).lower() not in ("mattes", "mi", "gc"):
        raise OptionError(
            f"aff_metric={given['aff_metric']!r} is refused: 'mattes', 'MI' and 'GC' are approximated by {STAND_IN}"
        )
    options = {**_deformable_options(given, kind, preset), **kwargs}
    if "random_seed" in options:
        if "seed" in options:
            raise OptionError("random_seed and seed are the same option; give one of them")
        options["seed"] = options.pop("random_seed")
    return kind, options


def _deformable_options(given: dict[str, Any], kind: Kind, preset: str) -> dict[str, Any]:
    metric, sampling = str(given["syn_metric"]).lower(), given["syn_sampling"]
    iterations = tuple(given["reg_iterations"]) if isinstance(given["reg_iterations"], Sequence) else ()
    name = given["type_of_transform"]
    if not kind.deformable:
        if metric != "mattes" or sampling != _SYN_SAMPLING or iterations != _REG_ITERATIONS:
            raise OptionError(
                f"syn_metric, syn_sampling and reg_iterations have no meaning for {name!r}, which has no deformable "
                "stage; leave them out"
            )
        return {}
    if metric not in ("cc", "mattes", "mi"):
        raise OptionError(
            f"syn_metric={given['syn_metric']!r} is refused: it compares intensities as such; 'CC' is {STAND_IN}, "
            "which is what runs here"
        )
    out: dict[str, Any] = {}
    if sampling != _SYN_SAMPLING:
        if metric != "cc":
            raise OptionError(
                f"syn_sampling={sampling!r} is refused: bins have no meaning; with syn_metric='CC' it is the radius"
            )
        if isinstance(sampling, bool) or not isinstance(sampling, int) or sampling < 1:
            raise OptionError(f"syn_sampling is the radius of CC in voxels, at least 1, got {sampling!r}")
        out["radius"] = sampling
    if iterations != _REG_ITERATIONS:
        if not iterations or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in iterations):
            raise OptionError(f"reg_iterations has one whole number a level, got {given['reg_iterations']!r}")
        levels = [(2 ** (len(iterations) - 1 - k), n) for k, n in enumerate(iterations) if n > 0]
        if not levels:
            raise OptionError("reg_iterations is all zero, which leaves nothing to do; use a linear type of transform")
        out.update(level_options(preset, [f for f, _ in levels], most_steps=[n for _, n in levels]))
    return out


def _run(
    fixed: Any,
    moving: Any,
    mask: Any,
    moving_mask: Any,
    initial_transform: Any,
    kind: Kind,
    options: dict[str, Any],
    outprefix: str,
    verbose: bool,
) -> RegistrationResult:
    from itk_nir.checks import check_output_prefix

    check_output_prefix(outprefix or os.path.join(tempfile.gettempdir(), ""))
    if verbose:
        options = {**options, "callback": _printing(options.get("callback"))}
    return run_kind(
        as_volume(fixed, "fixed image"),
        as_volume(moving, "moving image"),
        kind,
        mask=None if mask is None else as_volume(mask, "mask"),
        moving_mask=None if moving_mask is None else as_volume(moving_mask, "moving mask"),
        initial_transform=initial_transform,
        options=options,
    )


def _printing(callback: Callback | None) -> Callback:
    """A callback that prints a line when a level begins or ends, and then calls `callback`."""

    def report(progress: Progress) -> bool | None:
        if progress.step in (0, progress.steps - 1):
            print(
                f"{progress.stage} level {progress.level + 1}/{progress.levels} step {progress.step + 1}/"
                f"{progress.steps} LNCC² {progress.metric:.4f} {progress.seconds:.1f} s",
                flush=True,
            )
        return None if callback is None else callback(progress)

    return report


def _warped_fixed(result: RegistrationResult) -> NDArray[np.float32]:
    """The fixed image on the moving grid: one linear interpolation, 0 outside."""
    from itk_nir.resample import resample_array

    fixed, moving = result.fixed, result.moving
    out: NDArray[np.float32] = resample_array(
        fixed.array, fixed.geometry, result.chain.inverse(), moving.geometry, "linear"
    )
    return out

"""`register`: two images in, one transform out."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
import warnings
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import itk_nir
from itk_nir.settings import Settings, make_settings
from itk_nir.engine import ops
from itk_nir.engine.sampling import bake
from itk_nir.engine.linear import optimise_linear
from itk_nir.engine.optimize import (
    WEAK,
    LatticeField,
    LatticeSettings,
    Pair,
    TraceStep,
    as_volume,
    background,
    optimise_lattice,
)
from itk_nir.paper.field import PointField
from itk_nir.paper.registration import optimise_points
from itk_nir.engine.progress import Callback, Progress
from itk_nir.engine.execution import torch_on_one_thread
from itk_nir.errors import InputError, OptionError
from itk_nir.images import Volume, load_image
from itk_nir.neural_field import Network
from itk_nir.checks import check_pair, match_mask
from itk_nir.resample import resample_array
from itk_nir.result import RegistrationResult
from itk_nir.loading import load_transform
from itk_nir.transforms.model import CompositeTransform, LinearTransform, compose

F64 = NDArray[np.float64]


def register(
    fixed: Any,
    moving: Any,
    *,
    preset: str = "default",
    linear: str = "affine",
    deformable: bool = True,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> RegistrationResult:
    """Find the dense, invertible deformation that takes `moving` onto `fixed`.

    The map is ``phi(p) = T(A(p + u(p)))`` for a fixed physical point ``p`` (LPS mm): the deformation ``u`` of a neural
    field optimised for this pair, the linear map ``A``, and the caller's own ``T``.

    Parameters
    ----------
    fixed, moving : ``itk.Image``, ``SimpleITK.Image`` or a path; scalar, 2D or 3D, any grids and orientations.
    preset : ``"fast"``, ``"default"``, ``"accurate"`` or ``"paper"``.
    linear : linear stage before the deformation: ``"affine"``, ``"rigid"`` or ``"none"``.
    deformable : False stops after the linear stage: the result is a linear map (and `initial_transform`).
    fixed_mask, moving_mask : image or path, above 0 where the image counts, in every stage.
    initial_transform : where to start from, fixed → moving: an ITK or SimpleITK transform, a 4x4 (3x3) LPS matrix, a
        path, or a list of these in ANTs' order. It is composed into the result, never lost.
    seed : every random draw comes from it.
    device : ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda"``.
    threads : CPU threads; all that the process may use by default. Results do not depend on it.
    callback : called with a `Progress` after every step; a true return value stops, and the best so far is kept.
    **options : anything that `itk-nir presets PRESET` lists.

    Calls from several threads of one process go one after another (on a CPU).

    Returns
    -------
    RegistrationResult : ``.transform``, ``.inverse_transform``, ``.warped``, ``.metrics``, ``.save(prefix)``, ...

    Raises
    ------
    InputError : an image, mask or transform that cannot be used, said before any work begins.
    OptionError : an unknown or unfitting option.
    """
    clock = time.perf_counter()
    settings = make_settings(preset, **options)
    if linear not in ("none", "rigid", "affine"):
        raise OptionError(f"linear is 'none', 'rigid' or 'affine', got {linear!r}")
    if not deformable and linear == "none":
        raise OptionError("linear='none' with deformable=False leaves nothing to do; ask for one of the two stages")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(f"seed is a whole number that is not negative, got {seed!r}")
    where = _device(device)
    threads = _threads(threads)
    a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
    fixed_on = None if fixed_mask is None else load_image(fixed_mask, "fixed mask")
    moving_on = None if moving_mask is None else load_image(moving_mask, "moving mask")
    start = (
        None if initial_transform is None else load_transform(initial_transform, a.geometry, role="initial transform")
    )
    notes = check_pair(a, b, fixed_on, moving_on, start, linear=linear)
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    with torch_on_one_thread(where):
        return _run(
            a, b, fixed_on, moving_on, start, settings, linear, deformable, seed, where, threads, callback, clock,
            preset, notes,
        )  # fmt: skip


def _run(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Volume | None,
    moving_mask: Volume | None,
    start: CompositeTransform | None,
    settings: Settings,
    linear: str,
    deformable: bool,
    seed: int,
    device: torch.device,
    threads: int,
    callback: Callback | None,
    clock: float,
    preset: str,
    notes: list[str],
) -> RegistrationResult:
    seconds = {"read": time.perf_counter() - clock}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    grid = fixed.geometry
    d = grid.dimension
    shares = _shares(linear, deformable)
    stages = {
        stage: None if callback is None else _stage(callback, *shares[stage]) for stage in ("linear", "deformable")
    }
    # A linear start is part of the linear map; any other is resampled into the moving image first and composed after.
    before = np.eye(d + 1)
    tail: tuple[Any, ...] = ()
    source, source_mask = moving, moving_mask
    if start is not None:
        if start.is_linear:
            before = _matrix(start)
        else:
            tail = start.transforms
            source, source_mask = _through(start, moving, moving_mask, grid)
    pair = Pair(
        fixed=_tensor(fixed.array, device),
        fixed_geometry=grid,
        moving=_tensor(source.array, device),
        moving_geometry=source.geometry,
        linear=before,
        fixed_weight=None if fixed_mask is None else _tensor(match_mask(fixed_mask, fixed)[0].array, device),
        moving_weight=None if source_mask is None else _tensor(match_mask(source_mask, source)[0].array, device),
    )
    cancelled = False
    linear_metric = None
    if linear != "none":
        matrix, linear_metric, cancelled = optimise_linear(
            pair, linear, settings.linear, search=start is None, threads=threads, callback=stages["linear"], clock=clock
        )
        pair = replace(pair, linear=matrix)
    seconds["linear"] = time.perf_counter() - clock - sum(seconds.values())
    if not deformable:
        if linear_metric is not None and linear_metric < WEAK and not cancelled:
            note = (
                f"{moving.name}: has little in common with {fixed.name} (mean LNCC² {linear_metric:.2f} after the "
                "linear stage); check the result, and whether both images show the same object in one modality"
            )
            notes = [*notes, note]
            warnings.warn(note, UserWarning, stacklevel=3)
        metrics: dict[str, Any] = {
            "preset": preset,
            "stop": "cancelled" if cancelled else "all steps done",
            "similarity": linear_metric,
            "linear_matrix": pair.linear.tolist(),
            **_about_run(seed, device, threads, seconds, clock),
            "warnings": notes,
        }
        parts = (LinearTransform(pair.linear), *((start,) if start is not None and tail else ()))
        return RegistrationResult(fixed, moving, compose(*parts), metrics)

    field, trace, stop = _deform(pair, settings, seed, threads, stages["deformable"], clock, cancelled)
    seconds["deformable"] = time.perf_counter() - clock - sum(seconds.values())

    if trace and trace[-1].metric < WEAK:
        note = (
            f"{moving.name}: has little in common with {fixed.name} (mean LNCC² {trace[-1].metric:.2f} at the end); "
            "the deformation was kept stiff and may mean nothing: check the result, and whether both images show the "
            "same object in one modality"
        )
        notes = [*notes, note]
        warnings.warn(note, UserWarning, stacklevel=3)
    weight = pair.fixed_weight
    inside = weight > 0.5 if weight is not None else _foreground(pair.fixed)
    ops.release_memory()  # many small arrays are done with, a few large ones follow
    baked = bake(field, settings.bake, inside, threads)
    seconds["bake"] = time.perf_counter() - clock - sum(seconds.values())
    metrics = {
        "preset": preset,
        "stop": "cancelled" if cancelled else stop,
        "similarity": trace[-1].metric if trace else None,
        "similarity_start": trace[0].metric if trace else None,
        "similarity_linear": linear_metric,
        "trace": [{"level": t.level, "step": t.step, "metric": t.metric, "loss": t.loss} for t in trace],
        **baked.metrics(),
        "linear_matrix": pair.linear.tolist(),
        **_about_run(seed, device, threads, seconds, clock),
        "warnings": notes,
    }
    if callback is not None:
        callback(
            Progress("bake", 0, 1, 0, 1, trace[-1].metric if trace else 0.0, trace[-1].loss if trace else 0.0,
                     time.perf_counter() - clock, 1.0)
        )  # fmt: skip

    about = {k: metrics[k] for k in ("preset", "seed", "device", "versions")} | {"settings": asdict(settings)}
    network = Network(field, LinearTransform(pair.linear), start if tail else None, about)
    return RegistrationResult(fixed, moving, network.chain(baked), metrics, network.map, network)


def _deform(
    pair: Pair, settings: Settings, seed: int, threads: int, callback: Callback | None, clock: float, cancelled: bool
) -> tuple[LatticeField | PointField, list[TraceStep], str]:
    engine = settings.engine
    if isinstance(engine, LatticeSettings):
        if cancelled:
            callback = lambda _: True  # noqa: E731  one evaluation, then out with the identity
        try:
            result = optimise_lattice(pair, engine, seed=seed, threads=threads, callback=callback, clock=clock)
        except ValueError as error:
            raise InputError(str(error)) from None
        return result.field, result.trace, result.stop
    d = pair.fixed_geometry.dimension

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x[None] if d == 3 else x

    registration = optimise_points(
        flat(pair.fixed),
        pair.fixed_geometry,
        flat(pair.moving),
        pair.moving_geometry,
        pair.linear,
        engine,
        None if pair.fixed_weight is None else flat(pair.fixed_weight),
        None if pair.moving_weight is None else flat(pair.moving_weight),
        seed,
        (lambda _: True) if cancelled else callback,
        pair.fixed.device,
    )
    return (
        PointField(pair.fixed_geometry, registration),
        [TraceStep(t.phase, t.step, t.metric, t.loss) for t in registration.trace],
        "cancelled" if registration.cancelled else "all steps done",
    )


def _about_run(
    seed: int, device: torch.device, threads: int, seconds: dict[str, float], clock: float
) -> dict[str, Any]:
    """What a run used: metrics that every kind of result has."""
    return {
        "seed": seed,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": threads,
        "seconds": {**seconds, "total": time.perf_counter() - clock},
        "peak_memory_mb": _peak_memory(),
        "peak_device_memory_mb": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
        "versions": {
            "itk-nir": itk_nir.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _through(start: CompositeTransform, moving: Volume, mask: Volume | None, grid: Any) -> tuple[Volume, Volume | None]:
    """The moving image (and its mask) seen through the caller's transform, on the fixed grid."""
    array = resample_array(moving.array, moving.geometry, start, grid, "linear")
    ones = np.ones_like(moving.array) if mask is None else match_mask(mask, moving)[0].array.astype(np.float32)
    seen = resample_array(ones, moving.geometry, start, grid, "nearest") > 0.5
    if not seen.any():
        raise InputError(
            "initial transform: takes the fixed image wholly outside the moving image; check its direction (fixed → "
            "moving, LPS mm)"
        )
    source = replace(moving, array=array, geometry=grid)
    if mask is None and seen.all():
        return source, None
    return source, replace(moving, array=seen.astype(np.float32), geometry=grid, name="initial transform's extent")


def _matrix(chain: CompositeTransform) -> F64:
    m = np.eye(chain.dimension + 1)
    for step in chain.transforms:
        assert isinstance(step, LinearTransform)
        m = step.matrix @ m
    return m


def _tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return as_volume(torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device))


def _foreground(image: torch.Tensor) -> torch.Tensor:
    value = background(image)
    return torch.ones_like(image, dtype=torch.bool) if value is None else image != value


def _shares(linear: str, deformable: bool) -> dict[str, tuple[float, float]]:
    """Begin and length of each stage on the progress scale 0 … 1."""
    a = (0.1 if deformable else 1.0) if linear != "none" else 0.0
    return {"linear": (0.0, a), "deformable": (a, max(0.0, 0.95 - a))}


def _stage(callback: Callback, begin: float, length: float) -> Callback:
    return lambda p: callback(replace(p, fraction=begin + length * p.fraction))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise OptionError(f"device is 'auto', 'cpu' or 'cuda', got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device 'cuda' was asked for but torch finds no CUDA device; use device='cpu' or 'auto'")
    return torch.device(name)


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise OptionError(f"threads is a whole number of at least 1, got {threads!r}")
    return threads


def _peak_memory() -> float:
    """Peak resident memory of the process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)

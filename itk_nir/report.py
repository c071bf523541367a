"""What is known of a finished registration: typed, documented, plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from itk_nir.engine.progress import Iteration, Measures
from itk_nir.verdict import Verdict


@dataclass(frozen=True)
class LandmarkDistances:
    """How far the landmarks of a registration are apart in the space of the moving image, in the order they came in.

    Parameters
    ----------
    before, after : tuple of float
        mm, under the map that the registration began with and under its result.
    believed : tuple of bool
        False for the pairs that the others contradict: they took no part.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    believed: tuple[bool, ...]


@dataclass(frozen=True)
class Report:
    """Numbers about a registration. None stands for what a stage that did not run, or an engine, does not measure.

    Parameters
    ----------
    preset : str
        The preset that the settings began as.
    stop : str
        Why the registration ended: ``"all iterations done"``, ``"converged"`` or ``"cancelled"``.
    similarity_start, similarity : float or None
        The metric before the deformable stage and at its end, both at its last level and over the same positions: 1 is
        perfect for LNCC and NCC.
    similarity_linear : float or None
        The metric at the last level of the linear stage. That level is coarser, so it compares with neither of the two.
    metric, metric_reason : str
        What was maximised, by name where it has one; and why, where ``metric="auto"`` picked it.
    verdict : Verdict or None
        Whether the evidence supports the result, and why not.
    evidence : dict of str to Measures
        The chosen metric, mutual information and the overlap at ``"start"`` (the map that the registration began with),
        after the ``"linear"`` stage, and at the ``"end"``. The last two are taken over the same positions.
    landmarks : LandmarkDistances or None
        Distances of the landmarks before and after, and which were believed.
    labels : dict of int to tuple of float
        Dice overlap of every label that counted, before and after.
    returned_levels : tuple of int
        Levels of the deformable stage, coarsest 0, that ended less alike than they began and gave their start back.
    search : str
        What became of the search for large motion: whether it was called for, whether its field was kept, and how many
        of the matches lead back, from the fixed to the moving image and back, to where they began; and whether things
        that slide along each other were told apart, or a smoother field was kept under a thin mask.
    trace : tuple of Iteration
        Every iteration of the deformable stage: level, metric, loss, learning rate. Where a smoother field was tried
        under a thin mask, those of the field that was kept.
    folded_voxels, folded_percent : int, float or None
        Grid points with a Jacobian determinant of the deformation that is not above 0, over the voxels that count (the
        fixed mask, or else the foreground).
    jacobian_range : tuple of float or None
        Least and largest determinant over them.
    log_jacobian_sd : float or None
        Standard deviation of the determinant's natural logarithm over them.
    inverse_error_mean_voxels, inverse_error_p99_voxels : float or None
        Distance between a fixed point and where the deformation followed by its inverse takes it: mean and 99th
        percentile over them, in voxels of the fixed image.
    field_spacing_voxels : int or None
        Spacing of the displacement grid, voxels of the fixed image.
    interpolation_error_voxels : float or None
        Bound of the error that linear interpolation between its points makes.
    affine_matrix : list of list of float
        ``(d + 1, d + 1)`` homogeneous matrix of the linear part, LPS mm, fixed → moving.
    seed : int or None
        Of every random draw.
    device : str
        What the field was trained on.
    threads : int
        CPU threads.
    seconds : dict
        By stage: ``"read"``, ``"linear"``, ``"deformable"``, ``"verdict"``, ``"sampling"``; ``"total"``.
    peak_memory_mb, peak_device_memory_mb : float or None
        Largest resident memory of the process so far, and memory of the CUDA device, MiB.
    versions : dict
        Of itk-nir, torch, numpy and Python.
    settings : dict
        Every option, public and expert, by stage.
    inputs : dict of str to str
        SHA-256 of the voxels and the grid of every image that was given, and of points and transforms.
    call : dict
        The arguments, the preset and the options that are not as it has them: what `itk_nir.repeat` needs.
    warnings : tuple of str
        What was found odd, one sentence each.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> report = itk_nir.register(fixed, moving, preset="fast", iterations=2).report
    >>> report.preset, report.stop, len(report.trace)
    ('fast', 'all iterations done', 6)
    >>> report.as_dict()["trace"][0]["iteration"]
    0
    """

    preset: str = ""
    stop: str = ""
    similarity_start: float | None = None
    similarity: float | None = None
    similarity_linear: float | None = None
    metric: str = ""
    metric_reason: str = ""
    verdict: Verdict | None = None
    evidence: dict[str, Measures] = field(default_factory=dict)
    landmarks: LandmarkDistances | None = None
    labels: dict[int, tuple[float, float]] = field(default_factory=dict)
    returned_levels: tuple[int, ...] = ()
    search: str = ""
    trace: tuple[Iteration, ...] = ()
    folded_voxels: int | None = None
    folded_percent: float | None = None
    jacobian_range: tuple[float, float] | None = None
    log_jacobian_sd: float | None = None
    inverse_error_mean_voxels: float | None = None
    inverse_error_p99_voxels: float | None = None
    field_spacing_voxels: int | None = None
    interpolation_error_voxels: float | None = None
    affine_matrix: list[list[float]] = field(default_factory=list)
    seed: int | None = None
    device: str = "cpu"
    threads: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    peak_device_memory_mb: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's types, by the names of its attributes.

        Returns
        -------
        dict
            Lists, dictionaries, numbers, text and None only.
        """
        plain: dict[str, Any] = as_json(dataclasses.asdict(self))
        return plain


def as_json(value: Any) -> Any:
    """A value in JSON's types.

    Numbers that JSON lacks (NaN, infinity) become null, other objects their `repr`.

    Parameters
    ----------
    value : object
        Mappings, sequences, arrays and numbers of NumPy among others.

    Returns
    -------
    object
        What `json.dumps` takes.
    """
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [as_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else repr(value)

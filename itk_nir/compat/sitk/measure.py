"""What a registration would measure of two images as they lie: `MetricEvaluate`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.options import register_arguments
from itk_nir.compat.sitk.options import Setup

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric
    from itk_nir.settings import Settings


def similarity(
    fixed: NDArray[np.float32],
    warped: NDArray[np.float32],
    counted: NDArray[np.bool_],
    seen: NDArray[np.bool_],
    setup: Setup,
    deformable: bool,
) -> float:
    """What a stage would optimise, of two whole images on one grid.

    Parameters
    ----------
    fixed, warped : ndarray of float32
        The images.
    counted, seen : ndarray of bool
        Where the fixed image counts and where the moving one does; they are compared where both do.
    setup : Setup
        What the setters have said.
    deformable : bool
        Whether it is for a deformation, else for a linear registration.

    Returns
    -------
    float
        1 where it is perfect, 0 where the metric is not defined: the correlation with an image that is flat there.
    """
    import torch

    from itk_nir.engine.execution import thread_count
    from itk_nir.engine.images import Channel, Intensity, as_volume
    from itk_nir.engine.metrics import MSE, LevelImages
    from itk_nir.engine.torch_state import engine_state
    from itk_nir.engine.views import View

    settings = register_arguments(setup.preset, setup.options)["preset"]
    inside, metric = counted & seen, metric_of(setup, settings, deformable)
    if isinstance(metric, MSE):
        # Over the variance of all of the fixed image that counts, as in a registration. That of the overlap alone, all
        # that the engine's metric would see here, changes from map to map: maps would be ranked by it too.
        variance = float(fixed[counted].var(dtype=np.float64))
        return 1 - float(np.square(fixed - warped, dtype=np.float64)[inside].mean()) / (variance or 1.0)
    radius = setup.radius or int(np.max(getattr(settings.deformable, "radius", 4)))
    with engine_state():
        weight, *images = (as_volume(torch.from_numpy(a)) for a in (inside.astype(np.float32), fixed, warped))
        first, second = intensities = [Intensity.of(image, weight) for image in images]
        a, b = (i.normalised(image).contiguous() for i, image in zip(intensities, images, strict=True))
        channel = Channel(images[0], images[1], first, second)
        level = metric.prepare(
            LevelImages(
                a,
                b,
                weight,
                radius,
                thread_count(setup.allowed_threads),
                fixed_range=first.normalised_range,
                moving_range=second.normalised_range,
                moving_in_fixed_units=channel.moving_in_fixed_units,
                dimension=fixed.ndim,
            )
        )
        value = float(level(View.identity(b)))
    return 0.0 if math.isnan(value) else value


def metric_of(setup: Setup, settings: Settings, deformable: bool) -> Metric:
    """The metric of what is optimised: as set, else that of the stage.

    Parameters
    ----------
    setup : Setup
        What the setters have said.
    settings : Settings
        The preset with the options that were given by name.
    deformable : bool
        Whether it is for a deformation, else for a linear registration.

    Returns
    -------
    Metric
    """
    from itk_nir.engine.metrics import LNCC, channel_metrics

    metric: Any = setup.metric
    if metric is None and not deformable:
        metric = settings.linear.linear_metric
    if metric is None or metric == "same":
        # The engine of the paper has metrics of its own.
        metric = settings.deformable.metric if settings.deformable.kind == "deformable" else LNCC()
    return channel_metrics(metric, (), 1)[0][1]

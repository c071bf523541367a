"""What a registration would measure of two images as they lie: `MetricEvaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.options import register_arguments
from itk_nir.compat.sitk.options import Setup

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric
    from itk_nir.settings import Settings


def similarity(
    fixed: NDArray[np.float32], warped: NDArray[np.float32], inside: NDArray[np.bool_], setup: Setup, deformable: bool
) -> float:
    """What a stage would optimise, of two whole images on one grid.

    Parameters
    ----------
    fixed, warped : ndarray of float32
        The images.
    inside : ndarray of bool
        Where they are compared.
    setup : Setup
        What the setters have said.
    deformable : bool
        Whether it is for a deformation, else for a linear registration.

    Returns
    -------
    float
        1 where it is perfect.
    """
    import torch

    from itk_nir.engine.execution import thread_count
    from itk_nir.engine.images import Channel, Intensity, as_volume
    from itk_nir.engine.metrics import LevelImages
    from itk_nir.engine.torch_state import engine_state
    from itk_nir.engine.views import View

    settings = register_arguments(setup.preset, setup.options)["preset"]
    radius = setup.radius or int(np.max(getattr(settings.deformable, "radius", 4)))
    with engine_state():
        weight, *images = (as_volume(torch.from_numpy(a)) for a in (inside.astype(np.float32), fixed, warped))
        first, second = intensities = [Intensity.of(image, weight) for image in images]
        a, b = (i.normalised(image).contiguous() for i, image in zip(intensities, images, strict=True))
        channel = Channel(images[0], images[1], first, second)
        level = metric_of(setup, settings, deformable).prepare(
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
        return float(level(View.identity(b)))


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

"""No metric at all: landmarks and labels alone bring the images together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from itk_nir.engine.metric_protocol import LevelImages, LevelMetric, Metric, Tuning
from itk_nir.engine.views import View

#: The word for it.
NONE = "none"


@dataclass(frozen=True)
class NoMetric:
    """Measures nothing: landmarks and labels alone bring the images together."""

    #: Nothing but them stands against the penalties, which are tuned for images that pull at every voxel.
    tuning = Tuning(smoothness=0.1)

    def prepare(self, images: LevelImages) -> LevelMetric:
        """Count the positions that there are.

        Parameters
        ----------
        images : LevelImages
            Of the level.

        Returns
        -------
        LevelMetric
        """
        return _LevelNothing(float(images.inside().sum()))


@dataclass(frozen=True, eq=False)
class _LevelNothing:
    count: float

    def __call__(self, view: View) -> Tensor:
        return view.displacement.new_zeros(())


def look_at_images(metrics: Sequence[tuple[float, Metric]]) -> bool:
    """Whether any metric is more than ``"none"``.

    Parameters
    ----------
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.

    Returns
    -------
    bool
    """
    return not all(isinstance(m, NoMetric) for _, m in metrics)

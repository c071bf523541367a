"""The channels of a pair at one resolution, and what measures them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.images import Pair
from itk_nir.engine.level_grids import LevelGrids
from itk_nir.engine.metrics import LevelImages, LevelMetric, Metric, WeightedSum, weighted_sum
from itk_nir.engine.views import LinearView, View
from itk_nir.errors import OptionError, warn_caller
from itk_nir.options import shown

F64 = NDArray[np.float64]

#: The similarity under a map that a metric from outside gives no finite value for: below any that one could have.
WORST = -1e30


@dataclass(frozen=True, eq=False)
class LevelChannels:
    """What the metric of every channel is shown of a level.

    Parameters
    ----------
    images : tuple of LevelImages
        One a channel, without a weight.
    """

    images: tuple[LevelImages, ...]

    @classmethod
    def of(
        cls, pair: Pair, grids: LevelGrids, normalised: Sequence[tuple[Tensor, Tensor]], sigma: float, radius: int,
        threads: int,
    ) -> LevelChannels:  # fmt: skip
        """Smooth and shrink every channel.

        Parameters
        ----------
        pair : Pair
            The images, and the linear map along which their axes are compared.
        grids : LevelGrids
            The voxels of the level.
        normalised : sequence of (Tensor, Tensor)
            Of `Pair.normalised`.
        sigma : float
            Of the Gaussian, in voxels of the level.
        radius : int
            Of windowed metrics, in voxels of the level.
        threads : int
            CPU threads.

        Returns
        -------
        LevelChannels
        """
        axes = grids.voxel_map(pair, pair.linear)[0][:, :3]
        out = []
        for channel, (fixed, moving) in zip(pair.channels, normalised, strict=True):
            out.append(
                LevelImages(
                    *grids.images(pair, fixed, moving, sigma, threads),
                    weight=None,
                    radius=radius,
                    threads=threads,
                    fixed_range=channel.fixed_intensity.normalised_range,
                    moving_range=channel.moving_intensity.normalised_range,
                    moving_in_fixed_units=channel.moving_in_fixed_units,
                    axes=axes,
                    dimension=pair.fixed_geometry.dimension,
                )
            )
        return cls(tuple(out))

    def metric(
        self, metrics: Sequence[tuple[float, Metric]], weight: Tensor | None, centres: Tensor | None = None
    ) -> LevelMetric:
        """What measures all channels together.

        Parameters
        ----------
        metrics : sequence of (float, Metric)
            Weight and metric of each channel.
        weight : Tensor or None
            ``(Z, Y, X)``, above 0.5 where the fixed image counts.
        centres : Tensor or None
            Where windows may be centred, see `LevelImages`.

        Returns
        -------
        LevelMetric
            Its `count` is 0 where there is nothing to compare.
        """
        parts = [(w, _prepared(m, i.weighted(weight, centres))) for (w, m), i in zip(metrics, self.images, strict=True)]
        return weighted_sum(parts)

    def exchanged(self, targets: Sequence[Tensor]) -> LevelChannels:
        """The channels of the other direction: fixed and moving image have changed places.

        Parameters
        ----------
        targets : sequence of Tensor
            ``(Z, Y, X)``, the moving image of every channel on the fixed grid.

        Returns
        -------
        LevelChannels
            Both images lie on the fixed grid.
        """
        return LevelChannels(
            tuple(
                replace(
                    i, fixed=target, moving=i.fixed, fixed_range=i.moving_range, moving_range=i.fixed_range,
                    moving_in_fixed_units=_inverted(*i.moving_in_fixed_units), axes=None,
                )
                for i, target in zip(self.images, targets, strict=True)
            )
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _FromOutside:
    """What a metric from outside the package measures with, whose values are looked at."""

    name: str
    metric: LevelMetric
    #: What was looked at already: ``"value"`` and ``"gradient"`` have been finite, ``"told"`` that a later one was not.
    seen: set[str] = field(default_factory=set)

    @property
    def count(self) -> float:
        return self.metric.count

    def __call__(self, view: View) -> Tensor:
        value = self.metric(view)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
            raise OptionError(
                f"metric {self.name} gave {what} for the similarity under a map; return one number as a tensor"
            )
        # Under a linear map, a displacement is only made for who asks for it.
        asked = view.parts if isinstance(view, LinearView) else view.displacement
        wanted = torch.is_grad_enabled() and asked.requires_grad
        if wanted and not value.requires_grad:
            raise OptionError(
                f"metric {self.name} gave a similarity without its gradient by the map; compute it from "
                "view(images.moving) by PyTorch's operations, without detach(), item() or NumPy"
            )
        if not bool(torch.isfinite(value.detach())):
            return self._worst(value, asked if wanted else None)
        self.seen.add("value")
        if wanted and "gradient" not in self.seen:
            self._look_at_gradient(value, asked)
        return value

    def _worst(self, value: Tensor, asked: Tensor | None) -> Tensor:
        """The similarity under a map that goes too far; the first map of a level is none such.

        Raises
        ------
        OptionError
            The metric has given no finite value at the level yet.
        """
        if "value" not in self.seen:
            raise OptionError(
                f"metric {self.name} gave {float(value.detach())} for the similarity under the first map of a level; "
                "return a finite number: look for a division by zero, or the logarithm or root of what may be 0"
            )
        if "told" not in self.seen:
            self.seen.add("told")
            warn_caller(f"metric {self.name} gave {float(value.detach())} under a map, which is taken for the worst")
        worst = torch.full_like(value, WORST, requires_grad=False)
        # No gradient leads back from there.
        return worst if asked is None else worst + 0 * asked.sum().to(worst)

    def _look_at_gradient(self, value: Tensor, asked: Tensor) -> None:
        """Have the first gradient of the level looked at, when it is computed.

        Raises
        ------
        OptionError
            It is not finite; raised by who computes it.
        """

        def look(gradient: Tensor) -> None:
            if "gradient" in self.seen:
                return
            if not bool(torch.isfinite(gradient).all()):
                raise OptionError(
                    f"metric {self.name} gave {float(value.detach())} for the similarity under a map and a gradient "
                    "by the map that is not finite; look for the root of what may be 0, or a division by it"
                )
            self.seen.add("gradient")

        asked.register_hook(look)


def _prepared(metric: Metric, images: LevelImages) -> LevelMetric:
    if isinstance(metric, WeightedSum):  # its parts may be from outside
        return weighted_sum([(w, _prepared(m, images)) for w, m in metric.parts])
    level = metric.prepare(images)
    if type(level).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return level
    name = type(metric).__name__
    if not (callable(level) and hasattr(level, "count")):
        raise OptionError(
            f"metric {name} prepared {shown(level)} for a level; return an object that has a count and is called with "
            "a view (docs/own_metric.md)"
        )
    return _FromOutside(name, level)


def _inverted(scale: float, offset: float) -> tuple[float, float]:
    return 1 / scale, -offset / scale

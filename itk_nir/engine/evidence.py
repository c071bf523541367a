"""How alike two images are under several maps, at the same positions and by the same measures, so that maps compare.

What a stage maximises says little about whether it did good: every optimiser raises its own metric. Here the chosen
metric and mutual information are taken on one grid, without a deformation and with it, over the positions that both
maps have, and under the map that the registration began with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from itk_nir.engine.empty_windows import telling
from itk_nir.engine.images import Pair
from itk_nir.engine.inside import objects_of
from itk_nir.engine.labels import LevelLabels
from itk_nir.engine.level_channels import LevelChannels
from itk_nir.engine.level_grids import LevelGrids, counting_weight
from itk_nir.engine.metrics import METRICS, Metric, MutualInformation, look_at_images, mean_of
from itk_nir.engine.progress import Measures
from itk_nir.engine.sampling import Field
from itk_nir.engine.views import View

F64 = NDArray[np.float64]

#: Voxels that the longest axis has where maps are compared, about.
SIZE = 96

#: Radius of windowed metrics there, voxels.
RADIUS = 4

#: Smoothing of the images there, in its voxels.
SIGMA = 0.5

#: How many times the metric that is little evidence counts as little under a linear map where noisy air is left out, up
#: to the latter. By the sum of NMI and MIND, phantoms of two contrasts that end nearer to the truth have 0.13 and more
#: there, those that do not 0.08 at most; of one contrast, by LNCC, 0.43 and more.
IN_AIR, MOST_IN_AIR = 10.0, 0.25

#: Variance of the normalised images up to which a window is flat.
LEAST_VARIANCE = 1e-4


class Comparison:
    """The images on one grid, where maps are compared.

    Parameters
    ----------
    pair : Pair
        The images; of its linear map, the change of size alone matters, which the grids follow.
    metrics : sequence of (float, Metric)
        Weight and metric of each channel.
    threads : int
        CPU threads; no result depends on it.
    """

    pair: Pair
    metrics: Sequence[tuple[float, Metric]]
    threads: int
    grids: LevelGrids
    channels: LevelChannels
    still: Tensor
    most: float
    shown: Tensor
    telling: Tensor | None
    labels: LevelLabels | None

    def __init__(self, pair: Pair, metrics: Sequence[tuple[float, Metric]], threads: int = 1) -> None:
        self.pair, self.metrics, self.threads = pair, metrics, threads
        self.grids = LevelGrids.whole(pair, SIZE)
        self.channels = LevelChannels.of(pair, self.grids, pair.normalised(), SIGMA, RADIUS, threads)
        self.telling = telling(pair, self.grids, self.channels, SIGMA, LEAST_VARIANCE)
        fixed = self.channels.images[0].fixed
        self.still = fixed.new_zeros(3, *fixed.shape)
        mask = pair.fixed_counts
        counted = float(fixed.numel() if mask is None else (self.grids.fixed_mask(mask) > 0.5).sum())
        self.most = max(1.0, counted)
        self.shown = objects_of(fixed) if mask is None else objects_of(fixed) * (self.grids.fixed_mask(mask) > 0.5)
        self.labels = None
        if pair.known is not None:
            weight = None if mask is None else self.grids.fixed_mask(mask)
            self.labels = pair.known.labels_at(pair, self.grids, weight, 0.5, threads)

    def under(self, linear: F64, fields: Sequence[Field | None]) -> list[Measures]:
        """How alike the images are under a linear map after each of some deformations, over the same positions.

        Parameters
        ----------
        linear : ndarray
            ``(d + 1, d + 1)`` LPS mm, fixed → moving.
        fields : sequence of Field or None
            Trained fields; None for no deformation.

        Returns
        -------
        list of Measures
            One a field; the overlap is its own.
        """
        return self.of([(linear, field) for field in fields])

    def of(self, maps: Sequence[tuple[F64, Field | None]]) -> list[Measures]:
        """How alike the images are under several maps, over the positions that all of them have.

        Parameters
        ----------
        maps : sequence of (ndarray, Field or None)
            A linear map, ``(d + 1, d + 1)`` LPS mm, fixed → moving, and the deformation before it.

        Returns
        -------
        list of Measures
            One a map; the overlap is its own.
        """
        parts = []
        for linear, field in maps:
            u = self.still if field is None else field.on_grid(self.grids.fixed)
            index, vector = self.grids.voxel_map(self.pair, linear)
            parts.append((u, index, vector, self._weight(u, index, vector)))
        both: Tensor = parts[0][-1]
        for *_, w in parts[1:]:
            both = both * w
        seen_by_windows = both if self.telling is None else both * self.telling
        chosen = self.channels.metric(self.metrics, seen_by_windows)
        information = self.channels.metric([(w, METRICS["nmi"]) for w, _ in self.metrics], both)
        out = []
        with torch.no_grad():
            for (linear, field), (u, index, vector, weight) in zip(maps, parts, strict=True):
                view = View(u, index, vector, threads=self.threads)
                values = [float(m(view)) if m.count >= 1 else 0.0 for m in (chosen, information)]
                distance, overlap = self._known(linear, field, view)
                share, images = float(weight.sum()) / self.most, look_at_images(self.metrics)
                seen = float((weight * self.shown).sum() / self.shown.sum()) if bool(self.shown.any()) else None
                out.append(Measures(values[0], values[1], share, distance, overlap, images, seen))
        return out

    def chance_in_air(self, linear: Measures, end: Measures) -> tuple[str, ...]:
        """The doubt that a deformation found chance likeness alone, where noisy air around an object is left out.

        Images whose contrasts differ may agree in their outlines, which is all that noise leaves of them.

        Parameters
        ----------
        linear, end : Measures
            Without the deformation and with it.

        Returns
        -------
        tuple of str
            A sentence, or none.
        """
        little = mean_of(self.metrics, "little_evidence")
        least = min(MOST_IN_AIR, IN_AIR * little)
        known = self.pair.known is not None or not linear.images
        # Mutual information asks for no likeness of windows.
        whole = all(isinstance(metric, MutualInformation) for _, metric in self.metrics)
        if self.telling is None or known or whole or linear.metric >= least or end.metric < little:
            return ()
        return (
            "in noise, the images have little in common but for the deformation (metric "
            f"{linear.metric:.2f} without it, little evidence below {least:.2f})",
        )

    def _known(self, linear: F64, field: Field | None, view: View) -> tuple[float | None, float | None]:
        """The mean distance of the landmarks and the mean overlap of the labels, as far as there are any."""
        known = self.pair.known
        if known is None:
            return None, None
        distance = None
        if known.landmarks is not None:
            u = None if field is None else field.displacement(known.landmarks.fixed)
            distance = known.landmarks.distance(linear, u) / min(self.pair.fixed_geometry.spacing)
        return distance, None if self.labels is None else 1 - float(self.labels(view))

    def _weight(self, u: Tensor, index: F64, vector: F64) -> Tensor:
        moving = self.channels.images[0].moving
        weight = counting_weight(self.pair, self.grids, u, moving, index, vector, self.threads)
        return torch.ones_like(u[0]) if weight is None else (weight > 0.5).float()

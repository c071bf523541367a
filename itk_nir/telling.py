"""What a registration tells its user beside the verdict: notes, names and versions."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.engine.bias import Biases
from itk_nir.engine.frame import Frame
from itk_nir.engine.landmarks import Landmarks
from itk_nir.engine.level_channels import WORST
from itk_nir.engine.progress import Callback, Measures, Optimised, Progress
from itk_nir.errors import warn_caller
from itk_nir.settings import Settings, options_of, public_options
from itk_nir.version import __version__


@dataclass
class Listener:
    """Who is told of the progress of a registration.

    Parameters
    ----------
    callback : callable or None
        The caller's own, see `itk_nir.register`.
    frame : Frame
        Of the engine's points.
    fraction : float
        Of the work, as it was told last.
    """

    callback: Callback | None
    frame: Frame
    fraction: float = 0.0

    def share(self, begin: float, length: float) -> Callback | None:
        """The callback for a stage, with its fraction as a share of the whole, and with a map of physical points.

        Parameters
        ----------
        begin, length : float
            Which share that is.

        Returns
        -------
        callable or None
        """
        callback, frame = self.callback, self.frame
        if callback is None:
            return None

        def tell(p: Progress) -> bool | None:
            mapping = None if p.mapping is None else partial(frame.through, p.mapping)
            # Stages may be done once more: there is no way back for what is told.
            self.fraction = max(self.fraction, begin + length * p.fraction)
            return callback(replace(p, fraction=self.fraction, mapping=mapping))

        return tell

    def tell_end(self, done: Optimised, clock: float) -> None:
        """Tell of the end.

        Parameters
        ----------
        done : Optimised
            The deformation.
        clock : float
            ``time.perf_counter()`` when the registration began.
        """
        if self.callback is not None:
            metric, loss = (done.trace[-1].metric, done.trace[-1].loss) if done.trace else (0.0, 0.0)
            self.callback(Progress("sampling", 0, 1, 0, 1, metric, loss, 0.0, time.perf_counter() - clock, 1.0))


def warn_of_expert_settings(preset: str | Settings, given: set[str]) -> None:
    """Tell where expert settings belong that were given as keywords.

    Parameters
    ----------
    preset : str or Settings
        What they were given beside.
    given : set of str
        The names of all keywords.
    """
    expert = sorted(given & (set(options_of(preset)) - public_options(preset)))
    if expert:
        name = preset.preset if isinstance(preset, Settings) else preset
        warn_caller(
            f"{', '.join(expert)}: expert settings go into preset=itk_nir.make_settings({name!r}, "
            f"{expert[0]}=...) since 0.2",
            DeprecationWarning,
        )


def metric_name(metric: Any) -> str:
    """What a metric is called, or several.

    Parameters
    ----------
    metric : str, Metric or tuple of them
        The option.

    Returns
    -------
    str
    """
    if isinstance(metric, tuple):
        return ", ".join(map(metric_name, metric))
    return metric if isinstance(metric, str) else repr(metric)


def not_finite(evidence: Mapping[str, Measures], done: Optimised | None) -> list[str]:
    """Tell of measures that are NaN or infinite: no comparison with them says anything.

    Parameters
    ----------
    evidence : mapping of str to Measures
        Under the maps that are compared.
    done : Optimised or None
        The deformation.

    Returns
    -------
    list of str
        One clause a kind of measure.
    """
    metric = [m.metric for m in evidence.values()]
    metric += [] if done is None else [v for v in (done.similarity_start, done.similarity) if v is not None]
    kinds = (("the metric", metric), ("mutual information", [m.mutual_information for m in evidence.values()]))
    return [
        f"{name} has no finite value under a map, which cannot be compared"
        for name, values in kinds
        if not all(np.isfinite(v) and v > WORST for v in values)
    ]


#: By how many times a linear stage may change volumes before that is told. Brains of adults differ by up to 1.74 times,
#: from the MNI template, which is large; a brain without its skull that is laid on a whole head, by 1.9 to 3.6.
LARGEST_SCALE = 2.0


def on_volume(matrix: NDArray[np.float64], moving: str, fixed: str) -> list[str]:
    """A note where the linear stage found that two images show things of very different sizes.

    Its metric is high where a smaller object fills a larger one, although each may show another part of a body.

    Parameters
    ----------
    matrix : ndarray
        ``(d, d)``: what the linear stage found, fixed → moving, without its translation.
    moving, fixed : str
        Names of the images.

    Returns
    -------
    list of str
    """
    ratio = abs(float(np.linalg.det(matrix)))
    factor, what = max(ratio, 1 / ratio), "volume" if len(matrix) == 3 else "area"
    if factor <= LARGEST_SCALE:
        return []
    much = f"{factor:.2f} times as {'large' if ratio < 1 else 'small'} in {what}"
    return [
        f"{moving}: the linear stage makes it {much}, to lie on {fixed}. Where both show the same, they differ that "
        "much at different ages or in different units alone; where one shows less (a brain without its skull, and a "
        'whole head), give a mask of what both show, or linear="rigid"'
    ]


def on_biases(biases: Biases, channels: int, fixed: str, moving: str) -> list[str]:
    """A note where an image is brighter in some places than the other, or than itself elsewhere, by a smooth factor.

    Parameters
    ----------
    biases : sequence of Bias or None
        One a channel, between images of one contrast; or, of unlike contrasts, one a channel of the fixed images, then
        one a channel of the moving ones.
    channels : int
        How many channels there are.
    fixed, moving : str
        Names of the images.

    Returns
    -------
    list of str
        One sentence an image.
    """
    unlike = len(biases) > channels
    beside, whose = ("", "a bias field") if unlike else (f"beside {moving} ", "a bias field of either")
    notes = []
    for name, some in ((fixed, biases[:channels]), (moving, biases[channels:])):
        largest = max((bias.most - bias.least for bias in some if bias is not None), default=0.0)
        if largest:
            notes.append(
                f"{name}: {beside}it is up to {math.exp(largest):.2g} times as bright at one place as at another "
                f"({whose}): the registration sees it divided by that; what is written keeps it"
            )
    return notes


def on_landmarks(landmarks: Landmarks | None) -> list[str]:
    """A note where some pairs of landmarks are not believed.

    Parameters
    ----------
    landmarks : Landmarks or None
        Those of the pair of images.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    if landmarks is None or landmarks.believed.all():
        return []
    rows = [str(k + 1) for k, believed in enumerate(landmarks.believed) if not believed]
    several = len(rows) > 1
    return [
        f"landmarks: the pair{'s' if several else ''} in row {', '.join(rows)} of {len(landmarks.fixed)} "
        f"contradict{'' if several else 's'} the others and took no part; check {'them' if several else 'it'}"
    ]


def versions() -> dict[str, str]:
    """Versions of what a result may depend on.

    Returns
    -------
    dict of str to str
    """
    return {
        "itk-nir": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }

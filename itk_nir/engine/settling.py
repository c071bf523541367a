"""How the iterations of a level settle: when they have converged, and the mean of the last ones.

Steps of a length that is given, as Adam's are, never come to rest: where the loss is flat they go to and fro, and where
they are when the iterations end depends on the last bits of the images. The mean over the last iterations lies in the
middle, as Polyak and Juditsky showed for stochastic descent, and steps may stay as long as it takes to get there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Average:
    """The mean of control points over the last iterations of a level.

    Parameters
    ----------
    points : Tensor
        The control points, which are changed in place.
    first, iterations : int
        The first iteration, and that after the last.
    share : float
        Of the iterations, the last ones: 0 for none.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30(4), 1992.
    """

    points: Tensor
    mean: Tensor
    begin: int
    known: bool

    def __init__(self, points: Tensor, first: int, iterations: int, share: float) -> None:
        self.points, self.mean = points, points.detach().clone()
        self.begin = iterations - int(np.ceil(share * (iterations - first)))
        #: Whether there is a mean.
        self.known = False

    @torch.no_grad()
    def add(self, iteration: int) -> None:
        """Count the control points as they are after an iteration.

        Parameters
        ----------
        iteration : int
            As `first` is counted; every one once, in their order.
        """
        if iteration >= self.begin:
            # Points that do not move stay what they are to the last bit.
            self.mean.lerp_(self.points, 1 / (iteration - self.begin + 1))
            self.known = True

    @torch.no_grad()
    def take(self) -> None:
        """Let the control points be their mean, where there is one."""
        if self.known:
            self.points.copy_(self.mean)


def converged(losses: list[float], window: int, threshold: float) -> bool:
    """Whether the mean loss of a window of iterations is hardly below that of the window before.

    Parameters
    ----------
    losses : list of float
        Of all iterations.
    window : int
        Iterations.
    threshold : float
        Of the fall; 0 for never.

    Returns
    -------
    bool
    """
    if threshold <= 0 or len(losses) < 2 * window:
        return False
    return float(np.mean(losses[-2 * window : -window]) - np.mean(losses[-window:])) < threshold

"""Adam, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from itk_nir.engine.ops import reference
from itk_nir.engine.ops.dispatch import native_for
from itk_nir.engine.ops.limits import thread_count


class Adam:
    """Adam [1]_ on a list of tensors.

    Beside torch's: one pass over memory, and it does not import torch's compiler, which costs more than a second.

    Parameters
    ----------
    parameters : list of Tensor
        Leaf tensors with gradients, of any shape.
    betas : tuple of float
        Decay rates of the two moments, as in the paper.
    epsilon : float
        As in the paper; in the unit of the gradients.
    threads : int
        Of the native op.

    References
    ----------
    .. [1] Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """

    parameters: list[Tensor]
    betas: tuple[float, float]
    epsilon: float
    threads: int
    count: int
    first: list[Tensor]
    second: list[Tensor]

    def __init__(
        self, parameters: list[Tensor], betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.parameters, self.betas, self.epsilon = parameters, betas, epsilon
        self.threads = thread_count(threads)
        self.count = 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def next_rates(self, rate: float) -> tuple[float, float]:
        """Count a step.

        Parameters
        ----------
        rate : float
            As of `step`.

        Returns
        -------
        tuple of float
            The rate, corrected for the first moment, and what the second one is multiplied by.
        """
        self.count += 1
        corrected = rate * (1 / (1 - self.betas[0] ** self.count))
        return corrected, 1 / (1 - self.betas[1] ** self.count)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step along the gradients, which are then cleared. Tensors without a gradient stay as they are.

        Parameters
        ----------
        rate : float
            The step size, in the unit of the parameters.
        """
        corrected, correction = self.next_rates(rate)
        for p, first, second in zip(self.parameters, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            native = native_for(p) if p.is_contiguous() else None
            if native:
                native.adam(p, p.grad, first, second, self.betas, corrected, correction, self.epsilon, self.threads)
            else:
                reference.adam(p, p.grad, first, second, self.betas, corrected, correction, self.epsilon)
            p.grad = None

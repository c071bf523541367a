"""From the coefficients of a field to its displacement on the same lattice."""

from __future__ import annotations

from torch import Tensor

from itk_nir.engine import ops


def flowed(v: Tensor, outer: Tensor | None, model: str, integration_steps: int, spacing: float, threads: int) -> Tensor:
    """The displacement ``(id + outer) o exp(v) - id`` of a velocity, composed with another one.

    Parameters
    ----------
    v : Tensor
        ``(3, z, y, x)`` mm.
    outer : Tensor or None
        ``(3, z, y, x)``, in units of the lattice.
    model : str
        ``"velocity"`` or ``"displacement"`` (`v` in place of ``exp(v) - id``).
    integration_steps : int
        Squarings of scaling and squaring.
    spacing : float
        Of the lattice, mm.
    threads : int
        CPU threads.

    Returns
    -------
    Tensor
        ``(3, z, y, x)``, in units of the lattice.
    """
    if model == "velocity":
        return ops.exponential(v, integration_steps, 1 / spacing, threads, outer=outer)
    return v / spacing if outer is None else ops.compose(outer, v / spacing, threads)

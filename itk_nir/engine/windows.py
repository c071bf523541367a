"""The local correlation of a resolution level, in a module of its own: a card has launches that know it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from itk_nir.engine import ops
from itk_nir.engine.views import View


@dataclass(frozen=True, eq=False)
class LevelLNCC:
    """The mean over windows of the squared local correlation with the fixed image of a level.

    Parameters
    ----------
    moving : Tensor
        ``(Z', Y', X')`` the moving image of the level, on its own grid.
    lncc : Lncc
        The sums of the fixed image over its windows.
    """

    moving: Tensor
    lncc: ops.Lncc

    @property
    def count(self) -> float:
        """How many windows are compared."""
        return self.lncc.count

    def __call__(self, view: View) -> Tensor:
        """The similarity under a map.

        Parameters
        ----------
        view : View
            Shows a moving image under the map.

        Returns
        -------
        Tensor
            Scalar, 0 to 1.
        """
        return self.lncc(view(self.moving))

"""Options that name the axes of the fixed image: as the user has them stored, and as the engine has them."""

from __future__ import annotations

from dataclasses import replace

from itk_nir.engine.frame import AxisOrder
from itk_nir.settings import Settings


def restriction(settings: Settings) -> tuple[float, ...]:
    """What `restrict` is, which not every preset has.

    Parameters
    ----------
    settings : Settings
        Of all stages.

    Returns
    -------
    tuple of float
        1 for each axis of the fixed image along which things may move, 0 for the others; empty for all.
    """
    return tuple(getattr(settings.deformable, "restrict", ()))


def for_engine(settings: Settings, axes: AxisOrder) -> Settings:
    """Settings whose values for the axes of the fixed image are in the order of the engine's axes.

    Parameters
    ----------
    settings : Settings
        As the user gave them, for the axes as they are stored.
    axes : AxisOrder
        How these lie to the engine's.

    Returns
    -------
    Settings
    """
    turns = axes.along(settings.linear.linear_rotations)
    settings = replace(settings, linear=replace(settings.linear, linear_rotations=turns))
    restrict = restriction(settings)
    if not restrict:
        return settings
    return replace(settings, deformable=replace(settings.deformable, restrict=axes.along(restrict)))

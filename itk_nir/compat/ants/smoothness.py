"""How smooth ANTs' numbers ask a deformation to be: the variances of its Gaussians, the distances of its knots.

ANTs smooths every update, and after it the whole displacement field, by Gaussians. Here a penalty does that. What the
numbers of the one mean for the other was measured: SyN and this engine, both on squared local correlation, on three
pairs of brain slices, by the standard deviation of the logarithm of the Jacobian determinant. With ANTs' own numbers (3
and 0) the preset's own weights give the same spread (0.33 to 0.39 for SyN, 0.37 to 0.39 here). The variance of the
update hardly changes it; that of the total does: 0.5 takes SyN to 0.23 to 0.27, 1 to 0.20 to 0.21, 2 to 0.13 to 0.16,
and the weights times 1.8, 2.25, 3 take this engine to about the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from itk_nir.errors import OptionError

if TYPE_CHECKING:
    from itk_nir.settings import Settings

#: ANTs' own numbers, with which the preset's own weights stay.
UPDATE, TOTAL, SPLINE_DISTANCE = 3.0, 0.0, 26.0
#: The least and the most that the weights are multiplied by.
LEAST, MOST = 0.5, 20.0


def smoothness_factor(update_sigma: float, total_sigma: float, spline_distance: float = SPLINE_DISTANCE) -> float:
    """What the weights of the penalty are multiplied by.

    ``(update / 3)^(1/4) (1 + 1.25 total^(2/3))``, the first factor not below 0.5, times ``distance / 26 mm``: it grows
    with each of them, and is 1 for ANTs' own numbers.

    Parameters
    ----------
    update_sigma, total_sigma : float
        ANTs' numbers, which are variances in squared voxels: of the Gaussian of the update and of that of the total
        field, the second and third of ``SyN[step,update,total]``, `flow_sigma` and `total_sigma` of ANTsPy.
    spline_distance : float, optional
        Between the knots at the first level, mm: the second number of ``BSplineSyN[step,distance,...]``.

    Returns
    -------
    float
        0.5 to 20.

    Raises
    ------
    OptionError
        A negative or infinite number.

    Examples
    --------
    >>> smoothness_factor(3, 0), round(smoothness_factor(3, 1), 2), round(smoothness_factor(6, 0), 2)
    (1.0, 2.25, 1.19)
    """
    for name, value in (("update", update_sigma), ("total", total_sigma), ("spline distance", spline_distance)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise OptionError(f"the {name} of ANTs' smoothing is a number that is not negative, got {value!r}")
    update = max(LEAST, (update_sigma / UPDATE) ** 0.25)
    factor = update * (1 + 1.25 * total_sigma ** (2 / 3)) * spline_distance / SPLINE_DISTANCE
    return min(MOST, max(LEAST, factor))


def smoothness_for(
    update_sigma: float,
    total_sigma: float,
    preset: str | Settings = "default",
    levels: int | None = None,
    spline_distance: float = SPLINE_DISTANCE,
) -> dict[str, Any]:
    """Options of `itk_nir.register` that make a deformation as smooth as ANTs' numbers ask for.

    Parameters
    ----------
    update_sigma, total_sigma, spline_distance
        As of `smoothness_factor`.
    preset : str or Settings
        The preset whose weights are multiplied.
    levels : int, optional
        How many levels there are, where that is not the preset's own number: weights are cut, or the last one repeated.

    Returns
    -------
    dict of str to object
        ``smoothness``, one weight a level; empty for ANTs' own numbers.

    Raises
    ------
    OptionError
        A negative or infinite number, or a preset without such weights.

    Examples
    --------
    >>> smoothness_for(3, 0)
    {}
    >>> smoothness_for(3, 1)
    {'smoothness': (2.7, 1.4625, 2.475)}
    """
    factor = smoothness_factor(update_sigma, total_sigma, spline_distance)
    if factor == 1:
        return {}
    from itk_nir.settings import options_of, preset_settings

    own = options_of(preset).get("smoothness")
    if own is None:
        raise OptionError(
            f"preset {preset_settings(preset).preset!r} has no smoothness to set; leave ANTs' smoothing at {UPDATE:g} "
            f"and {TOTAL:g}"
        )
    weights = (tuple(own) + (own[-1],) * (levels or 0))[: levels or len(own)]
    return {"smoothness": tuple(round(factor * w, 6) for w in weights)}

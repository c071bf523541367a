"""Linear maps of which some parameters are held still, and those that are searched exhaustively: what maps ask for.

elastix holds a parameter by a scale so large that no step moves it, and ``FullSearch`` tries every node of a grid of a
few parameters while the others stay. Both are statements about parameters of elastix' own transforms, about its own
centre of rotation, so that they need those (`stepwise` finds the maps).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from itk_nir.compat.elastix.linear_parameters import parameter_count
from itk_nir.compat.elastix.options import TRANSFORMS
from itk_nir.compat.elastix.values import flag_of, number_of, numbers_of
from itk_nir.errors import OptionError
from itk_nir.transforms.formats.elastix import ParameterMap

#: Scales that differ by more than this hold parameters still, rather than making steps alike.
MOST_SCALES = 5e5
#: More positions than that are a mistake.
MOST_POSITIONS = 100_000
#: The optimiser that tries every node of a grid.
EXHAUSTIVE = "FullSearch"
#: How a linear map may begin where it is not searched for: by name, what is brought together.
INITIALISATIONS = ("GeometricalCenter", "CenterOfGravity", "Origins")

_SPACE = re.compile(r"FullSearchSpace(\d+)$")


@dataclass(frozen=True)
class Range:
    """The values of one parameter that are tried.

    Parameters
    ----------
    parameter : int
        Its number.
    first, last, step : float
        From one value to another, in the unit of the parameter.
    """

    parameter: int
    first: float
    last: float
    step: float

    @property
    def count(self) -> int:
        """How many there are."""
        return math.floor((self.last - self.first) / self.step * (1 + 1e-12) + 1e-9) + 1

    @property
    def values(self) -> tuple[float, ...]:
        """All of them."""
        return tuple(self.first + n * self.step for n in range(self.count))


@dataclass(frozen=True)
class Constraint:
    """What is asked of one linear map beyond its class.

    Parameters
    ----------
    kind : str
        Its class.
    scales : tuple of float
        As given: one a parameter, or one for all but the translation; none where they hold nothing.
    spaces : tuple of tuple of Range
        The grid that is searched at each resolution; none where the map is not searched exhaustively.
    initialisation : str or None
        One of `INITIALISATIONS`; None where it begins at the identity.
    centre, centre_index : tuple of float or None
        Centre of rotation in LPS mm, or in voxels of the fixed image.
    """

    kind: str
    scales: tuple[float, ...] = ()
    spaces: tuple[tuple[Range, ...], ...] = ()
    initialisation: str | None = None
    centre: tuple[float, ...] | None = None
    centre_index: tuple[float, ...] | None = None

    @property
    def binds(self) -> bool:
        """Whether any parameter is held or searched exhaustively."""
        return bool(self.scales or self.spaces)


def is_of_search(name: str) -> bool:
    """Tell whether a parameter says what an exhaustive search tries.

    Parameters
    ----------
    name : str
        Name of a parameter.

    Returns
    -------
    bool
        Whether it is ``FullSearchSpace0`` or that of another resolution.
    """
    return _SPACE.match(name) is not None


def constraint_of(parameters: ParameterMap, where: str) -> Constraint:
    """What a map asks of its parameters.

    Parameters
    ----------
    parameters : dict of str to list of str
        The map, with a class of `TRANSFORMS`.
    where : str
        What to call it in messages.

    Returns
    -------
    Constraint

    Raises
    ------
    OptionError
        Scales or a search that cannot be.
    """
    kind = parameters["Transform"][0]
    linear = TRANSFORMS.get(kind, "deformable") != "deformable"
    scales = _all_of(parameters, "Scales", where)
    # Translations and splines have no scales in elastix, and estimated ones take the place of those that are given.
    if not linear or kind == "TranslationTransform" or flag_of(parameters, "AutomaticScalesEstimation", False):
        scales = ()
    # A single one is that of all but the translation, whose scale is 1 then.
    held = abs(scales[0]) > MOST_SCALES if len(scales) == 1 else holds(scales)
    spaces: tuple[tuple[Range, ...], ...] = ()
    if EXHAUSTIVE in parameters.get("Optimizer", ())[:1]:
        if not linear:
            raise OptionError(
                f"elastix parameter Optimizer {where}: {EXHAUSTIVE} tries parameters of linear maps alone here, not "
                f"those of {kind}"
            )
        spaces = _spaces(parameters, where)
    method = (parameters.get("AutomaticTransformInitializationMethod") or [INITIALISATIONS[0]])[0]
    begins = flag_of(parameters, "AutomaticTransformInitialization", False)
    found = Constraint(
        kind, () if spaces or not held else scales, spaces, method if begins else None,
        _all_of(parameters, "CenterOfRotationPoint", where) or None,
        _all_of(parameters, "CenterOfRotation", where) or None,
    )  # fmt: skip
    if found.binds and begins and method not in INITIALISATIONS:
        raise OptionError(
            f"elastix parameter AutomaticTransformInitializationMethod {where}: {method!r} cannot be had where "
            f"parameters are held still or searched; it may be {', '.join(INITIALISATIONS)}"
        )
    if flag_of(parameters, "ComputeZYX", False) and found.binds:
        raise OptionError(
            f"elastix parameter ComputeZYX {where}: 'true' cannot be had where parameters are held still or searched; "
            "remove it, and give the angles of the order that it is without it"
        )
    return found


def check_parameters(constraints: Sequence[Constraint], d: int) -> None:
    """Refuse numbers of parameters that the transforms do not have in this dimension.

    Parameters
    ----------
    constraints : sequence of Constraint
        Of the linear maps.
    d : {2, 3}
        Dimension of the images.

    Raises
    ------
    OptionError
        Another number of scales, a parameter that does not exist, or a centre of another dimension.
    """
    for one in constraints:
        count = parameter_count(one.kind, d)
        if one.scales and len(one.scales) not in (1, count):
            raise OptionError(
                f"elastix parameter Scales: {one.kind} has {count} parameters in {d}D, got {len(one.scales)} scales"
            )
        if one.kind == "SimilarityTransform" and len(one.scales) == 1:
            raise OptionError(
                f"elastix parameter Scales: one number for all parameters of {one.kind} but the translation cannot be "
                f"had; give {count}, one a parameter"
            )
        for space in one.spaces:
            wrong = next((r.parameter for r in space if r.parameter >= count), None)
            if wrong is not None:
                raise OptionError(
                    f"elastix parameter FullSearchSpace: {one.kind} has the parameters 0 to {count - 1} in {d}D, got "
                    f"{wrong}"
                )
        for name, given in (("CenterOfRotationPoint", one.centre), ("CenterOfRotation", one.centre_index)):
            if given is not None and len(given) != d:
                raise OptionError(f"elastix parameter {name}: has {d} numbers in {d}D, got {len(given)}")


def _all_of(parameters: ParameterMap, name: str, where: str) -> tuple[float, ...]:
    return numbers_of(parameters.get(name, ()), f"elastix parameter {name} {where}")


def holds(scales: Sequence[float]) -> bool:
    """Tell whether scales hold something still.

    Parameters
    ----------
    scales : sequence of float
        One for each parameter or axis.

    Returns
    -------
    bool
        Whether they differ too much to be there for steps of like length.
    """
    sizes = [abs(v) for v in scales]
    return max(sizes, default=1.0) > MOST_SCALES * min(sizes, default=1.0)


def _spaces(parameters: ParameterMap, where: str) -> tuple[tuple[Range, ...], ...]:
    """The grids of all resolutions."""
    count = number_of(parameters, "NumberOfResolutions", 3)
    out = []
    for level in range(int(count)):
        name = f"FullSearchSpace{level}"
        values = parameters.get(name, [])
        if not values or len(values) % 5:
            raise OptionError(
                f"elastix parameter {name} {where}: {EXHAUSTIVE} needs a name, the number of a parameter, the first "
                f"value, the last and a step for each that it tries, at each of {int(count)} resolutions; got {values}"
            )
        ranges = []
        for start in range(0, len(values), 5):
            try:
                first, last, step = (float(v) for v in values[start + 2 : start + 5])
                ranges.append(Range(int(values[start + 1]), first, last, step))
            except ValueError:
                raise OptionError(
                    f"elastix parameter {name} {where}: are a name and four numbers, got {values[start : start + 5]}"
                ) from None
            if not (step > 0 and first <= last < math.inf) or ranges[-1].parameter < 0:
                raise OptionError(
                    f"elastix parameter {name} {where}: a parameter goes up from its first value to its last by steps "
                    f"above 0, got {values[start : start + 5]}"
                )
        if math.prod(r.count for r in ranges) > MOST_POSITIONS:
            raise OptionError(
                f"elastix parameter {name} {where}: more than {MOST_POSITIONS} positions; give larger steps"
            )
        out.append(tuple(ranges))
    return tuple(out)

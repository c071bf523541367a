"""What the interfaces share: the entries of their tables of options, and options as arguments of `register`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from itk_nir.errors import OptionError, warn_caller
from itk_nir.options import whole_number

if TYPE_CHECKING:
    from itk_nir.engine.metrics import Metric
    from itk_nir.geometry import Geometry
    from itk_nir.settings import Settings

#: The words of two arguments of `register`.
LinearStage = Literal["affine", "similarity", "rigid", "translation", "none"]
Device = str

#: The entry of `itk_nir.engine.metrics.METRICS` that honours every mutual information, whoever's. The normalised one
#: is largest about where the plain one is, and its values, 0 to 1, go with the weights of the penalties.
MUTUAL_INFORMATION = "nmi"
#: The option that is the metric of the linear stage alone.
LINEAR_METRIC = "linear_metric"


class OptionSupport(NamedTuple):
    """What becomes of an option (or a method) of another program: an entry of an interface's table.

    Make it with `honoured`, `approximated` or `refused`.

    Attributes
    ----------
    status : {"honoured", "approximated", "refused"}
        Whether it means here what it means there, has a documented substitute, or raises `OptionError`.
    meaning : str
        What exactly that is; for a refused one, why or what to use instead. The documentation shows the same words.

    Examples
    --------
    >>> refused("use SetNumberOfThreads").refusal("SetNumberOfWorkUnits")
    OptionError('SetNumberOfWorkUnits is refused: use SetNumberOfThreads')
    """

    status: Literal["honoured", "approximated", "refused"]
    meaning: str

    def refusal(self, what: str) -> OptionError:
        """The error to raise where the option is given.

        Parameters
        ----------
        what : str
            Its name, or the name with its value.

        Returns
        -------
        OptionError
        """
        return OptionError(f"{what} is refused: {self.meaning}")


def honoured(meaning: str) -> OptionSupport:
    """An option that means here what it means there.

    Parameters
    ----------
    meaning : str
        What exactly it means.

    Returns
    -------
    OptionSupport
    """
    return OptionSupport("honoured", meaning)


def approximated(meaning: str) -> OptionSupport:
    """An option with a documented substitute.

    Parameters
    ----------
    meaning : str
        What the substitute is.

    Returns
    -------
    OptionSupport
    """
    return OptionSupport("approximated", meaning)


def refused(meaning: str) -> OptionSupport:
    """An option that raises `OptionError`.

    Parameters
    ----------
    meaning : str
        Why, or what to use instead.

    Returns
    -------
    OptionSupport
    """
    return OptionSupport("refused", meaning)


def mutual_information(bins: Any, what: str) -> str | Metric:
    """The metric that honours another program's mutual information with a number of bins.

    Parameters
    ----------
    bins : int
        Of either image. A number that the histogram cannot have becomes the nearest one that it can, with a warning.
    what : str
        What to call the number in messages.

    Returns
    -------
    str or Metric
        Its name in the table of metrics where the number is the one that it has there, else the metric itself.

    Raises
    ------
    OptionError
        No whole number above 0.
    """
    # Here, because it imports torch: reading the tables must not wait for that.
    from itk_nir.engine.metrics import METRICS, MutualInformation
    from itk_nir.engine.ops.histogram import LEAST_BINS, MOST_BINS

    number = whole_number(bins)
    if number is None or number < 1:
        raise OptionError(f"{what} is a whole number of bins, at least 1, got {bins!r}")
    allowed = min(max(number, LEAST_BINS), MOST_BINS)
    if allowed != number:
        warn_caller(f"{what}: there can be {LEAST_BINS} to {MOST_BINS} bins; {allowed} are taken, not {number}")
    metric = MutualInformation(allowed, normalised=MUTUAL_INFORMATION == "nmi")
    return MUTUAL_INFORMATION if metric == METRICS[MUTUAL_INFORMATION] else metric


def level_options(
    preset: str | Settings,
    shrink_factors: Sequence[int],
    *,
    smoothing_sigmas: Sequence[float] | None = None,
    most_iterations: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Options of `make_settings` that give the deformable stage these levels.

    Parameters
    ----------
    preset : str or Settings
        The preset whose options they override.
    shrink_factors : sequence of int
        Coarsest first, in voxels of the fixed image along its finest axis.
    smoothing_sigmas : sequence of float, optional
        One a level: mm divided by the finest spacing of the fixed image (not by that of the level).
    most_iterations : int or sequence of int, optional
        Upper limit of the iterations of a level, for all or for each; a preset that needs fewer takes fewer.

    Returns
    -------
    dict
        Name of the option -> value.

    Raises
    ------
    OptionError
        A preset without levels, factors below 1 or that rise, or unlike lengths.
    """
    from itk_nir.settings import options_of, preset_settings

    known = options_of(preset)
    if "shrink_factors" not in known:
        raise OptionError(
            f"preset {preset_settings(preset).preset!r} has no resolution levels to set; use 'fast', 'default' or "
            "'accurate'"
        )
    factors = tuple(int(f) for f in shrink_factors)
    n = len(factors)
    if n == 0 or min(factors) < 1 or list(factors) != sorted(factors, reverse=True):
        raise OptionError(f"shrink factors are at least 1 and fall from level to level, got {list(shrink_factors)}")
    # Control points about one voxel of the level apart, two at full resolution, as in the presets; the spacings of all
    # levels must be powers of two times one another.
    spacings = [max(2.0, 2.0 ** math.ceil(math.log2(f))) for f in factors]
    out: dict[str, Any] = {
        "shrink_factors": factors,
        "grid_spacing": tuple(s / f for s, f in zip(spacings, factors, strict=True)),
        "coarsest_grid_spacing": max(16.0, *spacings),
        "iterations": limited(known["iterations"], n, most_iterations),
    }
    if smoothing_sigmas is not None:
        if len(smoothing_sigmas) != n:
            raise OptionError(
                f"there are {n} shrink factors but {len(smoothing_sigmas)} smoothing sigmas; give as many"
            )
        out["smoothing_sigmas"] = tuple(float(s) / f for s, f in zip(smoothing_sigmas, factors, strict=True))
    return out


def limited(iterations: Sequence[int], levels: int, most: int | Sequence[int] | None) -> tuple[int, ...]:
    """The iterations of a preset for another number of levels, none above a limit.

    Parameters
    ----------
    iterations : sequence of int
        The preset's, one a level: cut, or the last one repeated.
    levels : int
        How many are wanted.
    most : int or sequence of int, optional
        The limit, for all levels or for each.

    Returns
    -------
    tuple of int
        One a level.

    Raises
    ------
    OptionError
        A limit below 1, or limits for another number of levels.
    """
    own = (tuple(iterations) + (iterations[-1],) * levels)[:levels]
    if most is None:
        return own
    limits = (most,) * levels if isinstance(most, int) else tuple(most)
    if len(limits) != levels:
        raise OptionError(f"there are {levels} levels but {len(limits)} numbers of iterations; give as many")
    if min(limits) < 1:
        raise OptionError(f"iterations are at least 1 a level, got {list(limits)}")
    return tuple(min(a, b) for a, b in zip(own, limits, strict=True))


def linear_sizes(fixed: Geometry, shrink_factors: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the levels of the linear stage for another program's shrink factors.

    Parameters
    ----------
    fixed : Geometry
        The fixed grid.
    shrink_factors : sequence of int
        One a level, in voxels of the fixed image along its finest axis.

    Returns
    -------
    tuple of int
        ``linear_size``: voxels along the longest axis, at least 4 and at most 1024.
    """
    voxels = 2 * fixed.half_extent / min(fixed.spacing)
    return tuple(min(1024, max(4, round(voxels / factor))) for factor in shrink_factors)


def engine_options(preset: str | Settings) -> set[str]:
    """Names of what `register` and `make_settings` take with this preset, beside the images.

    Parameters
    ----------
    preset : str or Settings
        What the options are for.

    Returns
    -------
    set of str
    """
    from itk_nir.settings import ARGUMENTS, options_of

    return (set(ARGUMENTS) - {"fixed", "moving"}) | set(options_of(preset))


def register_arguments(preset: str | Settings, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for `register`, with the options of the preset, public and expert ones alike, as one `Settings`.

    Parameters
    ----------
    preset : str or Settings
        What to begin with.
    options : mapping of str to object
        Arguments of `register` (``seed``, ``threads``, ...) and options of the preset.

    Returns
    -------
    dict of str to object
        The arguments among them, and ``preset``.

    Raises
    ------
    OptionError
        An unknown preset or option, or a value it cannot have.
    """
    from itk_nir.settings import ARGUMENTS, make_settings

    arguments = {name: value for name, value in options.items() if name in ARGUMENTS}
    settings = make_settings(preset, **{name: value for name, value in options.items() if name not in ARGUMENTS})
    return {**arguments, "preset": settings}

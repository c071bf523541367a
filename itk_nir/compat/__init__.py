"""The package behind the interfaces of other registration tools, one module for each: change one line and go on.

What a tool's option becomes here is one of three things, and the docs pages list which: *honoured*, *approximated* (a
documented stand-in) or *refused*, which is an `OptionError` that names it. Nothing is ignored.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Sequence
from typing import Any

from itk_nir.errors import OptionError

#: What stands in for metrics that allow the contrast to differ, in words for warnings and docs.
STAND_IN = "squared local correlation (LNCC²)"


def level_options(
    preset: str,
    shrink_factors: Sequence[int],
    *,
    smoothing_sigmas: Sequence[float] | None = None,
    most_steps: int | Sequence[int] | None = None,
) -> dict[str, Any]:
    """Options of `register` that give the deformable stage these levels.

    Parameters
    ----------
    shrink_factors : coarsest first, in voxels of the fixed image along its finest axis.
    smoothing_sigmas : mm divided by the finest spacing of the fixed image (not by that of the level).
    most_steps : upper limit of the steps of a level, for all or for each; a preset that needs fewer takes fewer.

    Raises
    ------
    OptionError : a preset without levels, factors below 1 or that rise, or unlike lengths.
    """
    from itk_nir.settings import options_of

    known = options_of(preset)
    if "shrink_factors" not in known:
        raise OptionError(f"preset {preset!r} has no resolution levels to set; use 'fast', 'default' or 'accurate'")
    factors = tuple(int(f) for f in shrink_factors)
    n = len(factors)
    if n == 0 or min(factors) < 1 or list(factors) != sorted(factors, reverse=True):
        raise OptionError(f"shrink factors are at least 1 and fall from level to level, got {list(shrink_factors)}")
    # A lattice of about one voxel of the level, two at full resolution, as the presets have; the spacings of all
    # levels must be powers of two times one another.
    lattices = [max(2.0, 2.0 ** math.ceil(math.log2(f))) for f in factors]
    out: dict[str, Any] = {
        "shrink_factors": factors,
        "lattice_spacing": tuple(s / f for s, f in zip(lattices, factors, strict=True)),
        "coarsest_lattice": max(16.0, *lattices),
        "steps": limited(known["steps"], n, most_steps),
    }
    if smoothing_sigmas is not None:
        if len(smoothing_sigmas) != n:
            raise OptionError(
                f"there are {n} shrink factors but {len(smoothing_sigmas)} smoothing sigmas; give as many"
            )
        out["smoothing_sigmas"] = tuple(float(s) / f for s, f in zip(smoothing_sigmas, factors, strict=True))
    return out


def limited(steps: Sequence[int], levels: int, most: int | Sequence[int] | None) -> tuple[int, ...]:
    """The steps of a preset for this number of levels (cut, or the last one repeated), none above `most`."""
    own = (tuple(steps) + (steps[-1],) * levels)[:levels]
    if most is None:
        return own
    limits = (most,) * levels if isinstance(most, int) else tuple(most)
    if len(limits) != levels:
        raise OptionError(f"there are {levels} levels but {len(limits)} numbers of iterations; give as many")
    if min(limits) < 1:
        raise OptionError(f"iterations are at least 1 a level, got {list(limits)}")
    return tuple(min(a, b) for a, b in zip(own, limits, strict=True))


def engine_options(preset: str) -> set[str]:
    """Names that `register` takes beside those that a face has of its own."""
    from itk_nir.settings import options_of
    from itk_nir.registration import register

    named = set(inspect.signature(register).parameters) - {"fixed", "moving", "options"}
    return named | set(options_of(preset))


def nearest_name(name: str, known: Sequence[str] | set[str]) -> str:
    """``", did you mean 'x'?"`` or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""

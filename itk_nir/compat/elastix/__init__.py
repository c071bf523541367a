"""elastix' call: ``registration_method(fixed, moving, parameter_object=…) -> (image, ParameterObject)``.

The parameter maps say *what* to align (which transforms, metrics, masks, how to resample): that is honoured. *How*
elastix searches (its optimiser, samples, pyramids, B-spline grid) has no counterpart: the preset decides. A parameter
that is in neither list is an error that names it. The returned object is for ``itk.transformix_filter``, and to start
elastix from. It needs ``itk-elastix`` (``pip install itk-elastix``).

`HONOURED`, `TRANSFORMS`, `METRICS`, `PENALTIES`, `INTERPOLATORS`, `ONLY`, `NO_MEANING` and `REFUSED` say what becomes
of each parameter and keyword; ``docs/coming_from_elastix.md`` shows the same tables.
"""

from __future__ import annotations

from itk_nir.compat.elastix.options import (
    HONOURED,
    INSTEAD,
    INTERPOLATORS,
    METRICS,
    NO_MEANING,
    ONLY,
    PENALTIES,
    REFUSED,
    TRANSFORMS,
)
from itk_nir.compat.elastix.parameters import Request, understand
from itk_nir.compat.elastix.registration import registration_method

__all__ = [
    "HONOURED",
    "INSTEAD",
    "INTERPOLATORS",
    "METRICS",
    "NO_MEANING",
    "ONLY",
    "PENALTIES",
    "REFUSED",
    "TRANSFORMS",
    "Request",
    "registration_method",
    "understand",
]

"""elastix' interfaces: the call and the class of ITKElastix, and what its programs do.

``registration_method(fixed, moving, parameter_object=…) -> (image, ParameterObject)`` stands for
``itk.elastix_registration_method``, `ElastixRegistrationMethod` for the class, `transformix` for the program.

The parameter maps say *what* to align (which transforms, metrics, masks, how to resample): that is honoured. *How*
elastix searches (its optimiser, samples, pyramids, B-spline grid) has no counterpart: the preset decides. A parameter
that is in neither list is an error that names it. The call and the class need ``itk-elastix`` (``pip install
itk-elastix``) for the objects that they return; the programs do not.

`HONOURED`, `TRANSFORMS`, `METRICS`, `PENALTIES`, `INTERPOLATORS`, `ONLY`, `NO_MEANING` and `REFUSED` say what becomes
of each parameter and keyword; ``docs/coming_from_elastix.md`` shows the same tables.
"""

from __future__ import annotations

from itk_nir.compat.elastix.method import ElastixRegistrationMethod
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
from itk_nir.compat.elastix.transformix import transformix

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
    "ElastixRegistrationMethod",
    "Request",
    "registration_method",
    "transformix",
    "understand",
]

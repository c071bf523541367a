"""Deformable registration by neural fields, baked into ITK displacement-field transforms.

>>> import itk_nir
>>> result = itk_nir.register(fixed, moving)
>>> result.transform        # an itk.DisplacementFieldTransform, fixed -> moving, with its inverse
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from itk_nir.engine.progress import Progress
    from itk_nir.errors import InputError, ItkNirError, OptionError
    from itk_nir.geometry import Geometry
    from itk_nir.neural_field import load_network
    from itk_nir.registration import register
    from itk_nir.resample import apply
    from itk_nir.result import RegistrationResult
    from itk_nir.loading import load_transform

# Public name → module: imported when first asked for, so that `import itk_nir` is instant.
_PUBLIC = {
    "Geometry": "itk_nir.geometry",
    "InputError": "itk_nir.errors",
    "ItkNirError": "itk_nir.errors",
    "OptionError": "itk_nir.errors",
    "Progress": "itk_nir.engine.progress",
    "RegistrationResult": "itk_nir.result",
    "apply": "itk_nir.resample",
    "load_network": "itk_nir.neural_field",
    "load_transform": "itk_nir.loading",
    "register": "itk_nir.registration",
}

__all__ = [
    "Geometry", "InputError", "ItkNirError", "OptionError", "Progress", "RegistrationResult", "apply",
    "load_network", "load_transform", "register",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from importlib import import_module

        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'itk_nir' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

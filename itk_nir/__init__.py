"""Deformable registration by neural fields, sampled into ITK displacement-field transforms.

>>> import itk_nir
>>> result = itk_nir.register("fixed.nii.gz", "moving.nii.gz")  # doctest: +SKIP
>>> result.transform        # an itk.DisplacementFieldTransform, fixed -> moving  # doctest: +SKIP

What `__all__` lists is stable: it changes with a release that says so in CHANGELOG, old names first with a
`DeprecationWarning`. Everything else is not. The names are imported when they are first asked for, so that
``import itk_nir`` is instant; ``__init__.pyi`` lists them for editors and type checkers.
"""

from itk_nir.version import __version__ as __version__

# Public name → its module.
_MODULES = {
    "Check": "itk_nir.checking",
    "FieldConfig": "itk_nir.engine.coordinate_networks",
    "Finding": "itk_nir.findings",
    "Geometry": "itk_nir.geometry",
    "InputError": "itk_nir.errors",
    "ItkNirError": "itk_nir.errors",
    "NeuralField": "itk_nir.neural_field",
    "OptionError": "itk_nir.errors",
    "PairResult": "itk_nir.many",
    "Progress": "itk_nir.engine.progress",
    "RegistrationCancelled": "itk_nir.errors",
    "RegistrationResult": "itk_nir.result",
    "Report": "itk_nir.report",
    "SelfCheckWarning": "itk_nir.errors",
    "Settings": "itk_nir.settings",
    "VerdictWarning": "itk_nir.errors",
    "apply": "itk_nir.applying",
    "check": "itk_nir.checking",
    "load_field": "itk_nir.neural_field",
    "load_transform": "itk_nir.loading",
    "make_settings": "itk_nir.settings",
    "register": "itk_nir.registration",
    "register_many": "itk_nir.many",
    "repeat": "itk_nir.repeating",
}

__all__ = [
    "Check",
    "FieldConfig",
    "Finding",
    "Geometry",
    "InputError",
    "ItkNirError",
    "NeuralField",
    "OptionError",
    "PairResult",
    "Progress",
    "RegistrationCancelled",
    "RegistrationResult",
    "Report",
    "SelfCheckWarning",
    "Settings",
    "VerdictWarning",
    "apply",
    "check",
    "load_field",
    "load_transform",
    "make_settings",
    "register",
    "register_many",
    "repeat",
]

# Name of before 0.2 → now.
_RENAMED = {"load_network": "load_field"}


def __getattr__(name):  # type: ignore[no-untyped-def]
    import importlib
    import sys
    import warnings

    if name in _RENAMED:
        warnings.warn(
            f"itk_nir.{name} is itk_nir.{_RENAMED[name]} since 0.2", DeprecationWarning, stacklevel=2
        )  # fmt: skip
        return __getattr__(_RENAMED[name])
    if name in _MODULES:
        if _MODULES[name] != "itk_nir.errors" and "torch" not in sys.modules:
            # In a folder that was removed, torch ends the process as it is imported.
            importlib.import_module("itk_nir.places").check_working_folder()
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'itk_nir' has no attribute {name!r}")


def __dir__():  # type: ignore[no-untyped-def]
    return sorted([*__all__, "__version__"])

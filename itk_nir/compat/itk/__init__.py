"""Registration as a filter of ITK: `NIRRegistrationMethod`, and `nir_registration_method`, its functional form.

Both are also names of ``itk`` itself, once the package is installed. Importing this package imports neither ITK nor
PyTorch; the first filter does.
"""

from __future__ import annotations

from itk_nir.compat.itk.filter import (
    NIRRegistrationMethod,
    nir_registration_method,
    nir_registration_method_init_docstring,
)

__all__ = ["NIRRegistrationMethod", "nir_registration_method", "nir_registration_method_init_docstring"]

"""The module NIR of ITK, loaded when one of its names is first asked for.

ITK's loader executes this file twice, so nothing is defined here.
"""

from itk_nir.compat.itk import NIRRegistrationMethod, nir_registration_method, nir_registration_method_init_docstring

__all__ = ["NIRRegistrationMethod", "nir_registration_method", "nir_registration_method_init_docstring"]

# ITK's loader takes this for the names of C++ wrappers.
swig: dict = {}

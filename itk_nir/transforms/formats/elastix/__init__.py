"""Transforms <-> elastix: parameter maps, ``TransformParameters.N.txt`` files and what ``transformix`` makes of them.

elastix chains transforms by file: each names the one that is applied *before* it, so file 0 is applied first and the
highest number stands for the whole. A displacement field is an image file (LPS mm) that a ``DeformationFieldTransform``
names; a linear transform is an ``AffineTransform``. ``Size``, ``Spacing``, ``Origin`` and ``Direction`` (column by
column) are the grid that transformix resamples on, not the grid of the field.
"""

from itk_nir.transforms.formats.elastix.parameters import is_elastix_file
from itk_nir.transforms.formats.elastix.reading import read_elastix
from itk_nir.transforms.formats.elastix.text import ParameterMap, as_text, as_toml, read_entries
from itk_nir.transforms.formats.elastix.writing import Elastix, parameter_maps, write_elastix

__all__ = [
    "Elastix",
    "ParameterMap",
    "as_text",
    "as_toml",
    "is_elastix_file",
    "parameter_maps",
    "read_elastix",
    "read_entries",
    "write_elastix",
]

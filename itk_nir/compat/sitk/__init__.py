"""SimpleITK's `ImageRegistrationMethod`, with this engine behind it.

>>> from itk_nir.compat.sitk import ImageRegistrationMethod
>>> R = ImageRegistrationMethod()
>>> R.SetMetricAsANTSNeighborhoodCorrelation(4)
>>> transform = R.Execute("fixed.nii.gz", "moving.nii.gz")  # doctest: +SKIP

The class of the initial transform says what is optimised, as in SimpleITK: a rigid or affine transform gives a linear
registration, a displacement field or B-spline a deformable one without a linear stage. Without an initial transform
an affine stage and the deformation run, one after the other.

`OPTIONS` says of every method what becomes of it; ``docs/coming_from_simpleitk.md`` shows the same table.
"""

from itk_nir.compat.sitk.method import ImageRegistrationMethod
from itk_nir.compat.sitk.options import OPTIONS

__all__ = ["OPTIONS", "ImageRegistrationMethod"]

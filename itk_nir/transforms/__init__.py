"""Spatial transforms: the package's own small objects, and one file for each library or format they travel to."""

from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, compose

__all__ = ["CompositeTransform", "DisplacementField", "LinearTransform", "compose"]

"""Spatial transforms: the package's own small objects, and one file for each library or format they travel to."""

from itk_nir.transforms.model import Chain, DisplacementField, LinearTransform, compose

__all__ = ["Chain", "DisplacementField", "LinearTransform", "compose"]

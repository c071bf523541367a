"""Procedural images for demonstrations and tests: a pair, its labels and the true deformation; a head and a chest."""

from itk_nir.phantom.anatomy import LABELS
from itk_nir.phantom.pair import Phantom, brain_phantom
from itk_nir.phantom.sliding import sliding_phantom

__all__ = ["LABELS", "Phantom", "brain_phantom", "sliding_phantom"]

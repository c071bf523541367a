"""A procedural head for demonstrations and tests: two T1-like images, their labels and the true deformation."""

from itk_nir.phantom.anatomy import LABELS
from itk_nir.phantom.pair import Phantom, brain_phantom

__all__ = ["LABELS", "Phantom", "brain_phantom"]

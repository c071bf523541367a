"""Any image -> `Volume` (an array and its `Geometry`), and back."""

from itk_nir.images.channels import load_channels
from itk_nir.images.convert import like, to_ants, to_itk, to_itk_vectors, to_nibabel, to_sitk
from itk_nir.images.reading import READERS, load_image
from itk_nir.images.volume import Volume
from itk_nir.images.writing import check_image_name, save_image

__all__ = [
    "READERS",
    "Volume",
    "check_image_name",
    "like",
    "load_channels",
    "load_image",
    "save_image",
    "to_ants",
    "to_itk",
    "to_itk_vectors",
    "to_nibabel",
    "to_sitk",
]

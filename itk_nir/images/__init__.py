"""Any image -> `Volume` (an array and its `Geometry`), and back."""

from itk_nir.images.channels import load_channels
from itk_nir.images.convert import like, to_ants, to_itk, to_itk_vectors, to_nibabel, to_sitk
from itk_nir.images.missing import background_value
from itk_nir.images.planes import Plane, flattened, in_their_planes, refuse_slices
from itk_nir.images.reading import READERS, load_image
from itk_nir.images.values import as_float32, as_pixels, checked_fill, pixel_type_named
from itk_nir.images.volume import Volume
from itk_nir.images.writing import check_image_name, save_image

__all__ = [
    "READERS",
    "Plane",
    "Volume",
    "as_float32",
    "as_pixels",
    "background_value",
    "check_image_name",
    "checked_fill",
    "flattened",
    "in_their_planes",
    "like",
    "load_channels",
    "load_image",
    "pixel_type_named",
    "refuse_slices",
    "save_image",
    "to_ants",
    "to_itk",
    "to_itk_vectors",
    "to_nibabel",
    "to_sitk",
]

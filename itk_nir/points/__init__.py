"""Tables of points: read in LPS mm whatever their file's format and frame, and written back as they came."""

from itk_nir.points.files import load_points, save_points
from itk_nir.points.table import PointFile, beyond

__all__ = ["PointFile", "beyond", "load_points", "save_points"]

"""ANTsPy's ``registration``, with this engine behind it.

>>> from itk_nir.compat.ants import registration
>>> tx = registration("fixed.nii.gz", "moving.nii.gz", "SyN")  # doctest: +SKIP
>>> tx["warpedmovout"], tx["fwdtransforms"]  # an ants.ANTsImage, files for ants.apply_transforms  # doctest: +SKIP

`OPTIONS` says of every option of ANTs what becomes of it, `METRICS` of every metric, `TYPES` and `SCRIPT_TYPES` of
every type of transform;
``docs/coming_from_ants.md`` shows the same tables.
"""

from __future__ import annotations

from itk_nir.compat.ants.arguments import parse_script_type, parse_type, register_options
from itk_nir.compat.ants.files import load_initial_transform, write_files
from itk_nir.compat.ants.options import APPROXIMATED_TYPES, METRICS, OPTIONS, SCRIPT_TYPES, TYPES, Kind
from itk_nir.compat.ants.run import registration, run_kind
from itk_nir.images import to_ants

__all__ = [
    "APPROXIMATED_TYPES",
    "METRICS",
    "OPTIONS",
    "SCRIPT_TYPES",
    "TYPES",
    "Kind",
    "load_initial_transform",
    "parse_script_type",
    "parse_type",
    "register_options",
    "registration",
    "run_kind",
    "to_ants",
    "write_files",
]

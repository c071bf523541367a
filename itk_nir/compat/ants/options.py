"""Options and types of transform of ANTs, as data: what becomes of each here.

``docs/coming_from_ants.md`` shows the same tables, and the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from itk_nir.compat.options import STAND_IN

#: Option of ``ants.registration`` → (honoured, approximated or refused; what that means).
OPTIONS: dict[str, tuple[str, str]] = {
    "type_of_transform": ("honoured", "see the table of types; those without a counterpart are refused by name"),
    "initial_transform": (
        "honoured",
        "files in ANTs' order, `[file,1]` for the inverse of one, or 'Identity'; None looks for the best start "
        "(as they lie, centres, centres of mass)",
    ),
    "outprefix": ("honoured", "start of all file names; '' puts them into a new temporary folder, where they stay"),
    "mask": ("honoured", "above 0 where the fixed image counts"),
    "moving_mask": ("honoured", "above 0 where the moving image counts"),
    "mask_all_stages": ("approximated", "masks count in every stage, as with True"),
    "grad_step": ("refused", "set learning_rates= (voxels, one a level)"),
    "flow_sigma": ("refused", "set velocity_smoothness= (weight of the smoothness of the update, one a level)"),
    "total_sigma": ("refused", "set smoothness= (weight of the smoothness of the total, one a level)"),
    "aff_metric": ("approximated", f"'mattes', 'MI' and 'GC' become {STAND_IN}; 'meansquares' is refused"),
    "aff_sampling": ("refused", "the metric has no histogram"),
    "aff_random_sampling_rate": ("approximated", "all voxels are used, whatever the rate"),
    "syn_metric": (
        "approximated",
        f"'CC' is {STAND_IN} here too; 'mattes' (ANTs' default) and 'MI' become it: good within one modality, whatever "
        "the contrast; 'meansquares' and 'demons' are refused",
    ),
    "syn_sampling": ("honoured", "with 'CC' the radius in voxels of the level (32 is the preset's own); else refused"),
    "reg_iterations": (
        "honoured",
        "the number of levels, shrink factors …, 4, 2, 1, and most iterations of each (0 leaves a level out); a preset "
        "that needs fewer takes fewer; the default (40, 20, 0) is the preset's own levels",
    ),
    "aff_iterations": ("refused", "set linear_iterations="),
    "aff_shrink_factors": ("refused", "set linear_size="),
    "aff_smoothing_sigmas": ("refused", "the levels of the linear stage are smoothed as their size asks for"),
    "write_composite_transform": ("honoured", "Composite.h5 and InverseComposite.h5 in place of the single files"),
    "verbose": ("honoured", "prints one line a level"),
    "multivariate_extras": ("refused", "one image pair only"),
    "restrict_transformation": ("refused", "deformations are free along every axis"),
    "smoothing_in_mm": ("refused", "the linear stage has no sigmas to give"),
    "singleprecision": ("refused", "fields are float32, points and matrices float64; False cannot be had"),
    "use_legacy_histogram_matching": ("refused", f"{STAND_IN} does not see the contrast; match beforehand"),
    "random_seed": ("honoured", "the seed of every random draw; the same seed gives the same bits on a CPU"),
}

#: Refused option → the only value that it may have, which is ANTsPy's default.
FIXED_VALUES: dict[str, Any] = {
    "grad_step": 0.2,
    "flow_sigma": 3,
    "total_sigma": 0,
    "aff_sampling": 32,
    "aff_iterations": (2100, 1200, 1200, 10),
    "aff_shrink_factors": (6, 4, 2, 1),
    "aff_smoothing_sigmas": (3, 2, 1, 0),
    "multivariate_extras": None,
    "restrict_transformation": None,
    "smoothing_in_mm": False,
    "singleprecision": True,
    "use_legacy_histogram_matching": False,
}
#: ANTsPy's defaults of two options that are honoured: with these the preset's own levels and radius stay.
REG_ITERATIONS = (40, 20, 0)
SYN_SAMPLING = 32


@dataclass(frozen=True)
class Kind:
    """What a type of transform asks for.

    Parameters
    ----------
    linear : {"none", "rigid", "affine"}
        The linear stage.
    deformable : bool
        Whether a deformation follows the linear stage.
    preset : str, default "default"
        The preset of `itk_nir.register` that stands for the type.
    radius : int, optional
        Radius of the LNCC window in voxels of the level, where the type names one; the preset's otherwise.
    """

    linear: str
    deformable: bool
    preset: str = "default"
    radius: int | None = None


#: ANTs' type of transform → `Kind`.
TYPES: dict[str, Kind] = {
    "SyN": Kind("affine", True),
    "SyNRA": Kind("affine", True),
    "SyNCC": Kind("affine", True),
    "SyNOnly": Kind("none", True),
    "SyNAggro": Kind("affine", True, "accurate"),
    "SyNLessAggro": Kind("affine", True, "accurate"),
    "Rigid": Kind("rigid", False),
    "DenseRigid": Kind("rigid", False),
    "QuickRigid": Kind("rigid", False, "fast"),
    "BOLDRigid": Kind("rigid", False),
    "Affine": Kind("affine", False),
    "AffineFast": Kind("affine", False, "fast"),
    "BOLDAffine": Kind("affine", False),
    "TRSAA": Kind("affine", False),
}
#: ``antsRegistrationSyN[x]`` → `Kind`; so are the flag ``-t`` of the shell script and of ``itk-nir ants``.
SCRIPT_TYPES: dict[str, Kind] = {
    "r": Kind("rigid", False),
    "a": Kind("affine", False),
    "s": Kind("affine", True),
    "sr": Kind("rigid", True),
    "so": Kind("none", True),
    "b": Kind("affine", True),
    "br": Kind("rigid", True),
    "bo": Kind("none", True),
}
#: Type of transform that is refused → why, or what to use instead.
NO_COUNTERPART: dict[str, str] = {
    "Translation": "the smallest linear map here is 'Rigid'",
    "Similarity": "use 'Rigid' or 'Affine'",
    "Elastic": "use 'SyN'",
    "ElasticSyN": "use 'SyN'",
    "SyNBold": "the metric wants both images in one modality",
    "SyNBoldAff": "the metric wants both images in one modality",
    "SyNabp": "use 'SyN'",
    "TVMSQ": "use 'SyN'",
    "TVMSQC": "use 'SyN'",
}
#: Type of the shell script that is refused → (what it is, what to use instead).
NO_SCRIPT_COUNTERPART: dict[str, tuple[str, str]] = {
    "t": ("a translation alone", "the smallest linear map here is 'r'"),
}

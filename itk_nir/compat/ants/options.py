"""Options and types of transform of ANTs, as data: what becomes of each here.

``docs/coming_from_ants.md`` shows the same tables, and the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from itk_nir.compat.options import MUTUAL_INFORMATION


class LeftOut(str):
    """The default of an argument, to be told from the same word in a call."""

    __slots__ = ()


#: ANTsPy's default of `aff_metric` and `syn_metric`.
DEFAULT_METRIC = LeftOut("mattes")

#: Metric of ANTs in lower case → (honoured or approximated; the metric here; what it and its number, `syn_sampling` or
#: `aff_sampling`, mean).
METRICS: dict[str, tuple[str, str, str]] = {
    "cc": (
        "honoured",
        "lncc",
        "squared local correlation; the number is the radius in voxels of the level (32: the preset's own)",
    ),
    "mattes": (
        "honoured",
        MUTUAL_INFORMATION,
        "mutual information, normalised to 0 … 1; the number is that of the bins, 4 to 128",
    ),
    "mi": ("honoured", MUTUAL_INFORMATION, "as 'mattes'"),
    "gc": ("honoured", "ncc", "correlation of the whole images, with its sign: reversed contrast does not match"),
    "meansquares": ("honoured", "mse", "mean squares over the variance of the fixed image"),
    "demons": ("approximated", "mse", "as 'meansquares', which the force of demons goes down"),
}

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
    "mask_all_stages": ("honoured", "masks count in every stage, as with True; False leaves them in as well"),
    "grad_step": ("refused", "set learning_rates= (voxels, one a level)"),
    "flow_sigma": ("refused", "set velocity_smoothness= (weight of the smoothness of the update, one a level)"),
    "total_sigma": ("refused", "set smoothness= (weight of the smoothness of the total, one a level)"),
    "aff_metric": (
        "honoured",
        "see the table of metrics; left out, the linear stage has that of the deformation",
    ),
    "aff_sampling": (
        "honoured",
        "the number of aff_metric; one other than 32 without aff_metric means 'mattes'",
    ),
    "aff_random_sampling_rate": ("approximated", "all voxels are used, whatever the rate"),
    "syn_metric": (
        "honoured",
        "see the table of metrics; left out, it is 'CC' with SyNCC and wherever the type names a radius, else metric "
        "'auto', which looks at the pair",
    ),
    "syn_sampling": (
        "honoured",
        "the number of syn_metric; one other than 32 without syn_metric means 'mattes'",
    ),
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
    "multivariate_extras": (
        "refused",
        "one image pair only; a sum of metrics of it is metric='0.5*nmi + 0.5*lncc', points and labels are "
        "fixed_landmarks=, moving_landmarks=, fixed_labels=, moving_labels=",
    ),
    "restrict_transformation": (
        "honoured",
        "along which axes of the fixed image things may move, 1 or 0 an axis, in every stage; a weight between the two "
        "is refused",
    ),
    "smoothing_in_mm": ("refused", "the linear stage has no sigmas to give"),
    "singleprecision": ("refused", "fields are float32, points and matrices float64; False cannot be had"),
    "use_legacy_histogram_matching": ("refused", "match the histograms beforehand, or take a metric that needs none"),
    "random_seed": ("honoured", "the seed of every random draw; the same seed gives the same bits on a CPU"),
}

#: Refused option → the only value that it may have, which is ANTsPy's default.
FIXED_VALUES: dict[str, Any] = {
    "grad_step": 0.2,
    "flow_sigma": 3,
    "total_sigma": 0,
    "aff_iterations": (2100, 1200, 1200, 10),
    "aff_shrink_factors": (6, 4, 2, 1),
    "aff_smoothing_sigmas": (3, 2, 1, 0),
    "multivariate_extras": None,
    "smoothing_in_mm": False,
    "singleprecision": True,
    "use_legacy_histogram_matching": False,
}
#: ANTsPy's defaults of options that are honoured: with these the preset's own levels and radius stay.
REG_ITERATIONS = (40, 20, 0)
SAMPLING = 32


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
        Radius of CC in voxels of the level, where the type names one; the preset's otherwise.
    cc : bool, default False
        Whether the type names CC as the metric of the deformation. One that names its radius need not say so.
    """

    linear: str
    deformable: bool
    preset: str = "default"
    radius: int | None = None
    cc: bool = False


#: ANTs' type of transform → `Kind`.
TYPES: dict[str, Kind] = {
    "SyN": Kind("affine", True),
    "SyNRA": Kind("affine", True),
    "SyNCC": Kind("affine", True, cc=True),
    "SyNOnly": Kind("none", True),
    "SyNAggro": Kind("affine", True, "accurate"),
    "SyNLessAggro": Kind("affine", True, "accurate"),
    "SyNBold": Kind("rigid", True),
    "SyNBoldAff": Kind("affine", True),
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
    "SyNabp": "use 'SyN'",
    "TVMSQ": "use 'SyN'",
    "TVMSQC": "use 'SyN'",
}
#: Type of the shell script that is refused → (what it is, what to use instead).
NO_SCRIPT_COUNTERPART: dict[str, tuple[str, str]] = {
    "t": ("a translation alone", "the smallest linear map here is 'r'"),
}

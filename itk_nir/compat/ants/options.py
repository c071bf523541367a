"""Options and types of transform of ANTs, as data: what becomes of each here.

``docs/coming_from_ants.md`` shows the same tables, and the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    "type_of_transform": ("honoured", "see the table of types"),
    "initial_transform": (
        "honoured",
        "files in ANTs' order, `[file,1]` for the inverse of one, or 'Identity'; None looks for the best start "
        "(as they lie, centres, centres of mass)",
    ),
    "outprefix": ("honoured", "start of all file names; '' puts them into a new temporary folder, where they stay"),
    "mask": ("honoured", "above 0 where the fixed image counts"),
    "moving_mask": ("honoured", "above 0 where the moving image counts"),
    "mask_all_stages": ("honoured", "masks count in every stage, as with True; False leaves them in as well"),
    "grad_step": (
        "approximated",
        "above 0; steps are the preset's own, whatever it is: set learning_rates= (voxels, one a level)",
    ),
    "flow_sigma": (
        "approximated",
        "variance of the smoothing of updates in voxels, as a factor on the preset's smoothness, see below; 3 is the "
        "preset's own",
    ),
    "total_sigma": (
        "approximated",
        "variance of the smoothing of the total in voxels, as a factor on the preset's smoothness, see below; 0 is the "
        "preset's own",
    ),
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
        "that needs fewer takes fewer; the default (40, 20, 0) is the preset's own levels; linear types have no use "
        "for it nor for syn_metric and syn_sampling, and warn",
    ),
    "aff_iterations": (
        "approximated",
        "one number a level of the linear stage, of every type that has one: the most evaluations, 0 leaves a level "
        "out; a preset that needs fewer takes fewer; the default is the preset's own levels",
    ),
    "aff_shrink_factors": (
        "approximated",
        "the size of the levels of the linear stage, of every type that has one; the default is the preset's own",
    ),
    "aff_smoothing_sigmas": (
        "approximated",
        "as many as aff_shrink_factors; the levels are smoothed as their size asks for, whatever they are",
    ),
    "write_composite_transform": ("honoured", "Composite.h5 and InverseComposite.h5 in place of the single files"),
    "verbose": ("honoured", "prints a line where a level begins and one at its last iteration"),
    "multivariate_extras": (
        "honoured",
        "further pairs as channels, `(metric, fixed, moving, weight, number)` each, on the grids of the first pair, "
        "whose weight is 1; they count in the linear stage as well; one radius for all of CC, the largest; without "
        "syn_metric the first pair has 'mattes', or 'CC' where the type says so",
    ),
    "restrict_transformation": (
        "honoured",
        "along which axes of the fixed image things may move, 1 or 0 an axis, in every stage; a weight between the two "
        "is refused",
    ),
    "smoothing_in_mm": ("approximated", "without effect, as aff_smoothing_sigmas"),
    "singleprecision": (
        "approximated",
        "False writes fields of doubles; they hold float32 values, points and matrices are float64 in both cases",
    ),
    "use_legacy_histogram_matching": (
        "approximated",
        "histograms are not matched, whatever it is: no metric but 'meansquares' and 'demons' would gain by it",
    ),
    "random_seed": ("honoured", "the seed of every random draw; the same seed gives the same bits on a CPU"),
}

#: ANTsPy's defaults: with these the preset's own levels, smoothness and radius stay.
REG_ITERATIONS = (40, 20, 0)
AFF_LEVELS: dict[str, tuple[int, ...]] = {
    "aff_iterations": (2100, 1200, 1200, 10),
    "aff_shrink_factors": (6, 4, 2, 1),
    "aff_smoothing_sigmas": (3, 2, 1, 0),
}
#: Number of bins, too, of antsRegistrationSyNQuick.sh.
SAMPLING = 32


@dataclass(frozen=True)
class Kind:
    """What a type of transform asks for.

    Parameters
    ----------
    linear : {"none", "translation", "rigid", "similarity", "affine"}
        The linear stage.
    deformable : bool
        Whether a deformation follows the linear stage.
    preset : str, default "default"
        The preset of `itk_nir.register` that stands for the type.
    radius : int, optional
        Radius of CC in voxels of the level, where the type names one; the preset's otherwise.
    metric : str, optional
        Metric of the deformation that the type names, a key of `METRICS`. One that names a radius has CC, and need not
        say so.
    bins : int, optional
        Number of bins of mutual information, where the type names one.
    spline_distance : float, optional
        Between the knots of ANTs' splines, mm, where the type names it.
    """

    linear: str
    deformable: bool
    preset: str = "default"
    radius: int | None = None
    metric: str | None = None
    bins: int | None = None
    spline_distance: float | None = None


#: ANTs' type of transform → `Kind`.
TYPES: dict[str, Kind] = {
    "SyN": Kind("affine", True),
    "SyNRA": Kind("affine", True),
    "SyNCC": Kind("affine", True, metric="cc"),
    "SyNabp": Kind("affine", True, radius=4),
    "SyNOnly": Kind("none", True),
    "SyNAggro": Kind("affine", True, "accurate"),
    "SyNLessAggro": Kind("affine", True, "accurate"),
    "Elastic": Kind("affine", True),
    "ElasticSyN": Kind("affine", True),
    "TVMSQ": Kind("none", True),
    "TVMSQC": Kind("none", True, metric="meansquares"),
    "SyNBold": Kind("rigid", True),
    "SyNBoldAff": Kind("affine", True),
    "Translation": Kind("translation", False),
    "Similarity": Kind("similarity", False),
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
    "t": Kind("translation", False),
    "r": Kind("rigid", False),
    "a": Kind("affine", False),
    "s": Kind("affine", True),
    "sr": Kind("rigid", True),
    "so": Kind("none", True),
    "b": Kind("affine", True),
    "br": Kind("rigid", True),
    "bo": Kind("none", True),
}
#: Type of transform that stands for another here → how it differs.
APPROXIMATED_TYPES: dict[str, str] = {
    "Elastic": "as 'SyN': the deformation is a diffeomorphism here too",
    "ElasticSyN": "as 'SyN'",
    "SyNabp": "as 'SyN' with CC of radius 4",
    "TVMSQ": "as 'SyNOnly': the velocity is that of two steps, not of four",
    "TVMSQC": "as 'SyNOnly' with 'meansquares'",
    "TV[n]": "as 'SyNOnly', whatever the number of steps",
}

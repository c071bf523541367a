"""What becomes of every flag and value of antsRegistration here, as data.

The grammar refuses by it, ``-v 1`` prints it, and ``docs/programs.md`` shows it.
"""

from __future__ import annotations

from typing import NamedTuple

from itk_nir.compat.options import OptionSupport, approximated, honoured, refused

#: Short name of a flag -> its long name.
NAMES: dict[str, str] = {
    "d": "dimensionality",
    "o": "output",
    "j": "save-state",
    "k": "restore-state",
    "a": "write-composite-transform",
    "p": "print-similarity-measure-interval",
    "z": "collapse-output-transforms",
    "i": "initialize-transforms-per-stage",
    "n": "interpolation",
    "g": "restrict-deformation",
    "q": "initial-fixed-transform",
    "r": "initial-moving-transform",
    "m": "metric",
    "t": "transform",
    "c": "convergence",
    "s": "smoothing-sigmas",
    "f": "shrink-factors",
    "u": "use-histogram-matching",
    "w": "winsorize-image-intensities",
    "x": "masks",
    "l": "use-estimate-learning-rate-once",
    "e": "use-estimate-learning-rate-once",  # of old scripts
    "v": "verbose",
}
#: Long name of a flag -> what becomes of it.
FLAGS: dict[str, OptionSupport] = {
    "dimensionality": honoured("2 or 3; left out, the images say"),
    "output": honoured("the start of the names of the transforms; the warped images under the names that are given"),
    "save-state": refused("the trained field is what can be gone on from: `itk-nir register --checkpoint FOLDER`"),
    "restore-state": refused("the trained field is what can be gone on from: `itk-nir register --checkpoint FOLDER`"),
    "write-composite-transform": honoured("Composite.h5 and InverseComposite.h5 in place of the single files"),
    "print-similarity-measure-interval": approximated("the metric of the level is printed, with `-v 1`"),
    "write-interval-volumes": refused("no images are written on the way"),
    "collapse-output-transforms": approximated(
        "1 is as in ANTs; 0 writes a file a stage: linear stages that were searched as one are the last of them, and "
        "the others are identities"
    ),
    "initialize-transforms-per-stage": approximated(
        "linear stages follow one another in one search, with 0 and with 1"
    ),
    "interpolation": honoured("of the warped images, as in antsApplyTransforms"),
    "restrict-deformation": honoured(
        "1 or 0 for each axis of the fixed image; a weight between the two, or one for each parameter of a linear map, "
        "is refused"
    ),
    "initial-fixed-transform": refused("give the inverse to --initial-moving-transform"),
    "initial-moving-transform": honoured(
        "files, `[file,1]` for an inverse, Identity, `[fixed,moving,0]` (1, 2) for centres (of mass, origins); before "
        "a linear stage an alignment is one of the starts that are tried"
    ),
    "metric": honoured("see the table; several of one stage are a weighted sum, other images of it further channels"),
    "transform": honoured("see the table"),
    "convergence": approximated(
        "of the deformable stage: up to twice as many iterations, which cost less, but no more than the preset needs; "
        "0 leaves a level out, and no threshold ends one. Linear stages have iterations of their own"
    ),
    "smoothing-sigmas": approximated(
        "of the deformable stage, in voxels or mm; linear stages have levels of their own"
    ),
    "shrink-factors": approximated("of the deformable stage; linear stages have levels of their own"),
    "use-histogram-matching": approximated(
        "done where the metric compares intensities (MeanSquares, Demons); CC, GC and mutual information need none"
    ),
    "winsorize-image-intensities": honoured("for the registration; the warped images are not clipped"),
    "masks": honoured(
        "one for all stages, or one a stage: the last of the linear stages counts in all of them, and so for the "
        "deformable ones; NULL or NOMASK for none, and a third part that says so is left out"
    ),
    "float": approximated("fields and images are float32, points and matrices float64, with 0 and with 1"),
    "use-estimate-learning-rate-once": approximated("steps are bounded by how far they move the image"),
    "minc": refused("write .nii.gz and .mat, and convert them"),
    "random-seed": honoured("the same seed gives the same bits on a CPU; else ANTS_RANDOM_SEED, else 0"),
    "verbose": honoured("prints what became of the line, and ANTs' DIAGNOSTIC lines"),
    "preset": honoured("not a flag of ANTs: the preset of `itk-nir register`, `default` where left out"),
    "device": honoured("not a flag of ANTs: `auto`, `cpu` or `cuda`"),
}


class Transform(NamedTuple):
    """A kind of transform of ANTs.

    Attributes
    ----------
    aliases : tuple of str
        Other names, in lower case.
    linear : str
        The linear stage that it is here; empty for a deformation.
    support : OptionSupport
        What becomes of it.
    """

    aliases: tuple[str, ...]
    linear: str
    support: OptionSupport


_FIELD = approximated("as SyN")
_SPLINES = approximated("as SyN; a spline distance other than 26 makes it smoother or less so")
#: Kind of transform -> what becomes of it.
TRANSFORMS: dict[str, Transform] = {
    "Translation": Transform((), "translation", honoured("merged with the linear stages around it")),
    "Rigid": Transform((), "rigid", honoured("merged with the linear stages around it")),
    "Similarity": Transform((), "similarity", honoured("merged with the linear stages around it")),
    "Affine": Transform((), "affine", honoured("merged with the linear stages around it")),
    "CompositeAffine": Transform(("compaff",), "affine", honoured("as Affine")),
    "SyN": Transform(
        ("symmetricnormalization",), "",
        honoured(
            "the deformation of this engine; steps are its own, whatever the gradient step; the variances that "
            "smooth the update and the total field scale its smoothness, and 3 and 0 leave it as it is"
        ),
    ),
    "BSplineSyN": Transform((), "", _SPLINES),
    "GaussianDisplacementField": Transform(("gdf",), "", _FIELD),
    "BSplineDisplacementField": Transform(("dmffd",), "", _SPLINES),
    "TimeVaryingVelocityField": Transform(("tvf",), "", _FIELD),
    "TimeVaryingBSplineVelocityField": Transform(("tvdmffd",), "", _FIELD),
    "Exponential": Transform((), "", _FIELD),
    "BSplineExponential": Transform((), "", _FIELD),
    "BSpline": Transform((), "", approximated("as SyN: the result is a displacement field, not a B-spline transform")),
}  # fmt: skip
#: Kinds of transform that are linear, smallest first.
LINEAR: dict[str, str] = {name: entry.linear for name, entry in TRANSFORMS.items() if entry.linear}
#: Linear stages of this engine, each one searching all of those before it.
ORDER = ("translation", "rigid", "similarity", "affine")


class MetricEntry(NamedTuple):
    """A metric of ANTs.

    Attributes
    ----------
    aliases : tuple of str
        Other names, in lower case.
    ours : str
        The metric here.
    number : str
        What the number behind its weight is; empty where it has none.
    support : OptionSupport
        What becomes of it.
    """

    aliases: tuple[str, ...]
    ours: str
    number: str
    support: OptionSupport


_POINTS = refused("use `itk-nir register --fixed-landmarks FILE --moving-landmarks FILE`")
#: Metric -> what becomes of it. Sampling has no effect: all voxels are looked at; and
#: neither has the gradient filter: gradients are those of the interpolated images.
METRICS: dict[str, MetricEntry] = {
    "CC": MetricEntry(
        (), "lncc", "radius", honoured("squared local correlation; the number is the radius in voxels of the level")
    ),
    "Mattes": MetricEntry(
        (), "nmi", "number of bins",
        honoured("mutual information, normalised to 0 … 1; the number is that of the bins, 4 to 128"),
    ),
    "MI": MetricEntry((), "nmi", "number of bins", honoured("as Mattes")),
    "MeanSquares": MetricEntry(("msq",), "mse", "", honoured("mean squares over the variance of the fixed image")),
    "Demons": MetricEntry((), "mse", "", approximated("as MeanSquares, which the force of demons goes down")),
    "GC": MetricEntry((), "ncc", "", honoured("correlation of the whole images, with its sign")),
    "ICP": MetricEntry((), "", "", _POINTS),
    "PSE": MetricEntry((), "", "", _POINTS),
    "JHCT": MetricEntry((), "", "", _POINTS),
    "IGDM": MetricEntry((), "", "", refused("use CC")),
}  # fmt: skip
#: Metrics of this engine that histograms are matched for.
COMPARES_INTENSITIES = ("mse",)

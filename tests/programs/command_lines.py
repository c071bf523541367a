"""Command lines of antsRegistration that programs around ANTs write, in short, and how each is spelt out.

A setting is the words about the whole line, then one line a stage: transform, metrics (``CC2`` is of a second pair),
convergence, sigmas, shrink factors, histogram matching. The numbers are those of settings that niworkflows and sdcflows
ship, and of ANTs' own scripts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SETTINGS: dict[str, str] = {
    "antsBrainExtractionNoLaplacian_precise": """
        Lan w0.025,0.975 a0
        Rigid[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        Affine[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        SyN[0.1,3,0] CC,1,4,None,1 50x10x0,1e-09,15 2x1x0vox 4x2x1 u1
    """,
    "antsBrainExtractionNoLaplacian_testing": """
        Lan w0.025,0.975 a0
        Rigid[0.1] MI,1,32,Regular,0.25 100x500x250x100,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        Affine[0.1] MI,1,32,Regular,0.25 100x500x250x100,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        SyN[0.1,3,0] CC,1,4,None,1 5x10x0,1e-09,15 1x0vox 2x1 u1
    """,
    "antsBrainExtraction_precise": """
        Lan w0.025,0.975 a0
        Rigid[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        Affine[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        SyN[0.1,3,0] CC,0.5,4,None,1 CC2,0.5,4,None,1 50x10x0,1e-09,15 2x1x0vox 4x2x1 u1
    """,
    "antsBrainExtraction_testing": """
        Lan w0.025,0.975 a0
        Rigid[0.1] MI,1,32,Regular,0.25 100x100x50x10,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        Affine[0.1] MI,1,32,Regular,0.25 100x100x50x10,1e-08,10 4x2x1x0vox 8x4x2x1 u1
        SyN[0.1,3,0] CC,0.5,4,None,1 CC2,0.5,4,None,1 5x0,1e-09,15 1x0vox 2x1 u1
    """,
    "boldref-mni_registration_precise_000": """
        Lan w0.005,0.995 a0
        Rigid[0.05] Mattes,1,56,Regular,0.25 10000x1000x100,1e-06,20 4x2x1vox 4x2x1 u1
        Affine[0.08] Mattes,1,56,Regular,0.25 500x250x100,1e-06,20 4x2x1vox 8x4x2 u1
        SyN[0.1,3,0] CC,1,4,None,1 100x30x20,1e-06,10 3x2x1vox 8x4x2 u1
    """,
    "boldref-mni_registration_precise_001": """
        Lan w0.01,0.9995 a0
        Rigid[0.1] Mattes,1,56,Random,0.8 10000,1e-07,250 8vox 4 u1
        Rigid[0.01] Mattes,1,32,Random,0.3 100,1e-08,5 4vox 2 u1
        Affine[0.01] Mattes,1,32,Random,0.25 10000,1e-08,500 1vox 2 u1
    """,
    "boldref-mni_registration_precise_002": """
        Lan w0.005,0.995 a0
        Rigid[0.05] Mattes,1,56,Regular,0.25 10000x1000x100,1e-06,20 4x2x1vox 4x2x1 u0
        Affine[0.01] Mattes,1,56,Regular,0.25 1000x500x250x100,1e-06,20 8x4x2x1vox 4x4x2x1 u0
        SyN[0.01,4,0.4] Mattes,1,56,Regular,0.25 100x30x20,1e-06,5 4x2x0vox 4x2x1 u1
    """,
    "boldref-mni_registration_testing_000": """
        Lin w0.001,0.995 a0
        Rigid[1] Mattes,1,56,Random,0.2 10000,1e-07,200 16mm 4 u1
        Rigid[1] Mattes,1,32,Random,0.3 1000,1e-08,50 8mm 2 u1
        Affine[1] Mattes,1,32,Regular,1 1000,1e-07,10 6mm 1 u1
    """,
    "boldref-mni_registration_testing_001": """
        Lin w0.005,0.999 a0
        Rigid[1] Mattes,1,56,Random,0.8 10000,1e-07,250 4mm 1 u1
        Rigid[0.1] Mattes,1,32,Random,0.5 100,1e-08,15 0mm 1 u1
        Affine[0.1] Mattes,1,32,None,1 100,1e-08,5 0mm 1 u0
    """,
    "boldref-mni_registration_testing_002": """
        Lin w0.005,0.999 a0
        Translation[0.1] Mattes,1,56,Random,0.8 10000,1e-07,250 4mm 2 u1
        Rigid[0.01] Mattes,1,32,Random,0.3 100,1e-08,5 0mm 1 u1
    """,
    "epi_atlasbased_brainmask": """
        Lin w0.05,0.98 a0
        Affine[0.1] Mattes,1,64,Random,0.2 200,1e-09,10 2mm 2 u1
    """,
    "petref-mni_registration_precise_000": """
        Lin w0.01,0.99 a0
        Rigid[0.1] Mattes,1,32,Regular,0.5 1000x500x250,1e-06,20 6x3x1vox 4x2x1 u1
        Affine[0.1] Mattes,1,32,Regular,0.5 500x250x100,1e-06,20 4x2x1vox 4x2x1 u1
        SyN[0.1,3,0] Mattes,1,32,None,1 100x50x30,1e-06,10 2x1x0vox 4x2x1 u1
    """,
    "t1w-mni_registration_fast_000": """
        Lan w0.0,1.0 a0
        Rigid[0.01] Mattes,1,32,Random,0.15 1000,1e-06,20 4vox 4 u1
        Affine[0.08] Mattes,1,32,Regular,0.15 500x250x100,1e-06,20 4x2x0vox 4x2x1 u1
        SyN[0.1,3,0] Mattes,1,56,Regular,0.25 50x20,1e-06,10 1x0vox 2x1 u1
    """,
    "t1w-mni_registration_precise_000": """
        Lan w0.005,0.995 a1
        Rigid[0.05] Mattes,1,56,Regular,0.25 100x100,1e-06,20 2x1vox 2x1 u1
        Affine[0.08] Mattes,1,56,Regular,0.25 100x100,1e-06,20 1x0vox 2x1 u1
        SyN[0.1,3,0] CC,1,4,None,1 100x70x50x20,1e-06,10 3x2x1x0vox 8x4x2x1 u1
    """,
    "t1w-mni_registration_precise_001": """
        Lan w0.005,0.995 a0
        Rigid[0.05] Mattes,1,56,Regular,0.3 100x100,1e-08,20 2x1vox 2x1 u0
        Affine[0.1] Mattes,1,56,Regular,0.3 100x100,1e-08,20 2x1vox 2x1 u0
        SyN[0.2,3,0] Mattes,0.5,56 CC2,0.5,4 100x30x20,-0.01,5 1x0.5x0vox 4x2x1 u1
    """,
    "t1w-mni_registration_precise_002": """
        Lan w0.005,0.995 a0
        Rigid[0.05] Mattes,1,32,Regular,0.3 100x100,1e-08,20 2x1vox 2x1 u0
        Affine[0.05] Mattes,1,32,Regular,0.3 100x100,1e-08,20 2x1vox 2x1 u0
        SyN[0.01,4,0] Mattes,0.5,32 CC2,0.5,4 100x30x20,-0.01,5 1x0.5x0vox 4x2x1 u1
    """,
    "t1w-mni_registration_testing_000": """
        Lan w0.005,0.995 a1
        Rigid[1] Mattes,1,56,Random,0.2 20,1e-07,15 4vox 2 u0
        Affine[1] Mattes,1,56,Random,0.1 15,1e-08,5 2vox 1 u1
    """,
    "t1w-mni_registration_testing_001": """
        Lin w0.005,0.995 a0
        Rigid[0.5] Mattes,1,56,Random,0.2 20,1e-07,15 4mm 2 u0
        Affine[0.1] Mattes,1,56,Random,0.1 15,1e-08,5 2mm 1 u1
    """,
    "t1w-mni_registration_testing_002": """
        Lin w0.005,0.995 a0
        Rigid[0.1] Mattes,1,56,Random,0.5 20,1e-07,15 4mm 2 u0
        Affine[0.1] Mattes,1,56,Random,0.2 15,1e-08,5 2mm 1 u1
    """,
    "affine": """
        Lin center w0.001,0.998 a0
        Rigid[2] Mattes,1,32,Regular,1 1000x0,1e-06,10 6x0mm 4x1 u1
        Affine[1] Mattes,1,32,Random,0.4 250x100,1e-07,5 2x1vox 2x1 u1
    """,
    "fmap-any_registration": """
        Lan center w0.001,0.999 a0
        Rigid[0.1] Mattes,1,32,Random,0.25 50,1e-07,5 8mm 2 u1
        Rigid[0.1] Mattes,1,32,Random,0.5 20,1e-08,3 2mm 1 u1
    """,
    "fmap-any_registration_testing": """
        Lan center w0.005,0.998 a0
        Rigid[1] Mattes,1,32,Regular,0.25 50,1e-07,5 8mm 2 u1
        Rigid[0.5] Mattes,1,32,Regular,0.5 10,1e-08,3 2mm 1 u1
    """,
    "sd_syn": """
        Lin w0.001,0.998 a0
        SyN[0.8,6,10] Mattes,0.9,48,Random,0.8 Mattes2,0.1,48,Random,0.8 200x100,1e-06,5 2x0vox 1x1 u1
        SyN[0.8,2,0.5] Mattes,0.8,48 Mattes2,0.2,48 10,1e-08,2 0vox 1 u1
    """,
    "sd_syn_sloppy": """
        Lin w0.001,0.998 a0
        SyN[0.8,6,10] Mattes,0.9,48,Random,0.8 Mattes2,0.1,48,Random,0.8 20x10,1e-06,5 2x0vox 1x1 u1
        SyN[0.8,2,0.5] Mattes,0.8,48 Mattes2,0.2,48 2,1e-08,2 0vox 1 u1
    """,
    "translation_rigid": """
        Lan float w0.005,0.998 a1
        Translation[0.05] Mattes,1,64,Random,0.5 500,1e-07,200 8mm 2 u1
        Rigid[0.01] Mattes,1,64,Random,0.5 200,1e-08,100 2mm 1 u1
    """,
    "antsBrainExtraction.sh": """
        Lin w0.025,0.975 a0 center
        Rigid[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-8,10 4x2x1x0 8x4x2x1 u1
        Affine[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-8,10 4x2x1x0 8x4x2x1 u1
        SyN[0.1,3,0] CC,0.5,4 CC2,0.5,4 50x10x0,1e-9,15 2x1x0 4x2x1 u1
    """,
    "antsMultivariateTemplateConstruction2.sh, SyN": """
        Lin w0,0.999 a0 center
        Rigid[0.1] MI,1,32,Regular,0.25 1000x500x250x0,1e-6,10 4x3x2x1vox 6x4x2x1 u1
        Affine[0.1] MI,1,32,Regular,0.25 1000x500x250x0,1e-6,10 4x3x2x1vox 6x4x2x1 u1
        SyN[0.1,3,0] CC,1,4 CC2,1,4 100x100x70x20,1e-9,10 3x2x1x0vox 6x4x2x1 u1
    """,
    "antsMultivariateTemplateConstruction2.sh, BSplineSyN": """
        Lin w0.01,0.99 a0
        BSplineSyN[0.15,40,0] CC,1,2 100x100x70x20,1e-9,10 3x2x1x0vox 6x4x2x1 u1
    """,
    "antsRegistrationSyN.sh": """
        Lin w0.005,0.995 a0 center float
        Rigid[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-6,10 3x2x1x0vox 8x4x2x1 u0
        Affine[0.1] MI,1,32,Regular,0.25 1000x500x250x100,1e-6,10 3x2x1x0vox 8x4x2x1 u0
        SyN[0.1,3,0] CC,1,4 100x70x50x20,1e-6,10 3x2x1x0vox 8x4x2x1 u0
    """,
}

#: Forms in which programs write the same line: antsRegistration as nipype writes it, and as ANTs' scripts do.
SPELLINGS = ("nipype", "script")
_FORMAT = {"Lan": "LanczosWindowedSinc", "Lin": "Linear"}


@dataclass(frozen=True)
class Line:
    """A setting, taken apart.

    Attributes
    ----------
    head : tuple of str
        Words about the whole line.
    stages : tuple of tuple of str
        One a stage.
    """

    head: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, text: str) -> Line:
        head, *stages = (tuple(line.split()) for line in text.strip().splitlines())
        return cls(head, tuple(stages))


def words(text: str, spelling: str, fixed: str = "f.nii.gz", moving: str = "m.nii.gz") -> list[str]:
    """The words of a setting behind ``antsRegistration``, in one of `SPELLINGS`."""
    line, nipype = Line.of(text), spelling == "nipype"
    name = "--{0}".format if nipype else "-{1}".format
    out = [name("dimensionality", "d"), "3"]
    out += [name("output", "o"), *_list(nipype, "out_", "w.nii.gz")]
    out += [name("interpolation", "n"), _FORMAT[line.head[0]]]
    for word in line.head[1:]:
        if word.startswith("w"):
            out += [name("winsorize-image-intensities", "w"), *_list(nipype, *word[1:].split(","))]
        elif word == "center":
            out += [name("initial-moving-transform", "r"), *_list(nipype, fixed, moving, "1")]
        elif word == "float":
            out += ["--float", "1"]
        else:
            out += [name("write-composite-transform", "a"), word[1:]]
    for stage in line.stages:
        out += list(_stage(stage, nipype, name, fixed, moving))
    return out


def _stage(stage: tuple[str, ...], nipype: bool, name: object, fixed: str, moving: str) -> Iterator[str]:
    assert callable(name)
    transform, *metrics, convergence, sigmas, factors, matching = stage
    kind, _, numbers = transform.rstrip("]").partition("[")
    first, *rest = _list(nipype, *numbers.split(","))
    yield from (name("transform", "t"), f"{kind}{first}", *rest)
    for metric in metrics:
        kind, *rest = metric.split(",")
        pair = [fixed, moving]
        if kind.endswith("2"):
            kind, pair = kind[:-1], ["f2.nii.gz", "m2.nii.gz"]
        first, *others = _list(nipype, *pair, *rest)
        yield from (name("metric", "m"), f"{kind}{first}", *others)
    yield from (name("convergence", "c"), *_list(nipype, *convergence.split(",")))
    yield from (name("smoothing-sigmas", "s"), sigmas)
    yield from (name("shrink-factors", "f"), factors)
    yield from (name("use-histogram-matching", "u"), matching[1:])
    if nipype:
        yield "-v"


def _list(nipype: bool, *parts: str) -> list[str]:
    """A list in brackets, in several words as nipype's lines have it when a shell has read them, or in one."""
    return ["[", *(f"{part}," for part in parts[:-1]), parts[-1], "]"] if nipype else [f"[{','.join(parts)}]"]

"""The programs that the benchmarks run beside this one, each as a whole process of its own::

    python benchmarks/peers.py NAME --fixed F --moving M --output FOLDER [--linear none|affine] [--threads N]

Each peer is one function that registers and leaves its transform as files, with the manifest ``transforms.json`` that
`score.py` reads. Settings are the ones that each program's makers give, or its defaults; where they leave a choice, it
stands beside the function. A peer that cannot do a pair raises `CannotDo` (exit status 3), one that is not installed
raises `ModuleNotFoundError` (exit status 4).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

CANNOT_DO, NOT_INSTALLED = 3, 4
THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
Steps = list[dict[str, Any]]


class CannotDo(Exception):
    """The peer has no way to register this pair."""


@dataclass(frozen=True)
class Job:
    """What is to be registered; every path is absolute, and the process works in `output`."""

    fixed: Path
    moving: Path
    fixed_mask: Path | None
    output: Path
    linear: str
    threads: int


@dataclass(frozen=True)
class Peer:
    """One program: its distribution, the function that runs it, and the one that inverts its warp where it can."""

    distribution: str
    run: Callable[[Job], tuple[Steps, Steps]]
    invert: Callable[[Job], Steps] | None = None


# --- greedy ----------------------------------------------------------------------------------------------------------
# NCC with windows of radius 2, 100x100x40 iterations. The smoothing comes in two variants, because neither is best
# everywhere: greedy's default (in voxels of each level), and the 1.5 mm and 0.5 mm of published OASIS comparisons. On
# brain_oasis the second has the higher Dice (0.753 to 0.741), on lung_ct the first has the lower landmark error (1.4 mm
# to 1.9 mm, and no folds). A claim to be ahead of greedy has to hold against the better of the two.
# The warp is written in full precision (-wp 0; the default rounds it to 0.1 voxel, which spoils its Jacobian) and
# uncompressed, which is quickest. The inverse is made by a second, untimed call: greedy is timed at the least work that
# gives a result.


def _greedy(smoothing: str) -> Callable[[Job], tuple[Steps, Steps]]:
    """Greedy diffeomorphic registration (picsl_greedy), with its own affine stage where one is asked for."""

    def run(job: Job) -> tuple[Steps, Steps]:
        program, radius = _greedy_program(job)
        pair = f"-i {_link(job.fixed, 'fixed')} {_link(job.moving, 'moving')} -m NCC {radius} -threads {job.threads}"
        if job.fixed_mask:
            pair += f" -gm {_link(job.fixed_mask, 'fixed_mask')}"
        forward: Steps = [{"file": "warp.nii"}]
        start = ""
        if job.linear == "affine":
            program.execute(f"{pair} -a -dof 12 -ia-image-centers -n 100x50x10 -o affine_ras.txt")
            ras_to_itk(Path("affine_ras.txt"), Path("affine.tfm"))
            forward.append({"file": "affine.tfm"})
            start = "-it affine_ras.txt"
        program.execute(f"{pair} {start} -n 100x100x40 {smoothing} -wp 0 -o warp.nii")
        return forward, []

    return run


def greedy_inverse(job: Job) -> Steps:
    """The inverse of the warp, by greedy itself."""
    program, _ = _greedy_program(job)
    program.execute(f"-threads {job.threads} -wp 0 -iw warp.nii inverse_warp.nii")
    affine: Steps = [{"file": "affine.tfm", "invert": True}] if job.linear == "affine" else []
    return [*affine, {"file": "inverse_warp.nii"}]


def _greedy_program(job: Job) -> tuple[Any, str]:
    picsl_greedy = import_module("picsl_greedy")
    three = _dimension(job.fixed) == 3
    return (picsl_greedy.Greedy3D(), "2x2x2") if three else (picsl_greedy.Greedy2D(), "2x2")


def ras_to_itk(ras: Path, itk: Path) -> None:
    """greedy's homogeneous matrix of RAS coordinates as an ITK transform file (LPS)."""
    rows = [[float(word) for word in line.split()] for line in ras.read_text().splitlines() if line.strip()]
    d = len(rows) - 1
    sign = [*[-1.0, -1.0, 1.0][:d], 1.0]
    lps = [[sign[i] * sign[j] * rows[i][j] for j in range(d + 1)] for i in range(d)]
    numbers = [lps[i][j] for i in range(d) for j in range(d)] + [lps[i][d] for i in range(d)]
    itk.write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        f"Transform: AffineTransform_double_{d}_{d}\n"
        f"Parameters: {' '.join(map(repr, numbers))}\nFixedParameters: {' '.join(['0'] * d)}\n"
    )


# --- ANTs ------------------------------------------------------------------------------------------------------------


def _ants(deformable: str, with_linear: str) -> Callable[[Job], tuple[Steps, Steps]]:
    """`ants.registration` with the named types: deformable only, and the same after its own linear stages."""

    def run(job: Job) -> tuple[Steps, Steps]:
        import ants

        kind = deformable if job.linear == "none" else with_linear
        mask = ants.image_read(str(job.fixed_mask)) if job.fixed_mask else None
        fixed, moving = ants.image_read(str(job.fixed)), ants.image_read(str(job.moving))
        result = ants.registration(fixed, moving, type_of_transform=kind, mask=mask, outprefix=f"{job.output}/")
        # ANTs lists transforms in the order in which a point meets them; affine ones are stored once, forward.
        forward = [{"file": Path(name).name} for name in result["fwdtransforms"]]
        inverse = [
            {"file": Path(name).name, "invert": True} if name.endswith(".mat") else {"file": Path(name).name}
            for name in result["invtransforms"]
        ]
        return forward, inverse

    return run


# --- elastix ---------------------------------------------------------------------------------------------------------
# elastix's default maps with a metric for one modality (normalised correlation) or for two (Mattes' mutual information,
# its default; the bending weight is the one chosen for the other) and more effort: 500 iterations a
# level, 4096 samples, a final grid of six voxels. The bending energy is per mm², so its weight follows the voxel: with
# the default map's weight of 1 the map folds and Dice is lower. It gives no inverse.


def _elastix(job: Job, *, metric: str) -> tuple[Steps, Steps]:
    """B-spline registration by itk-elastix, after its default affine stage (MI) where one is asked for."""
    import itk

    fixed, moving = itk.imread(str(job.fixed), itk.F), itk.imread(str(job.moving), itk.F)
    voxel = float(abs(_product(itk.spacing(fixed)))) ** (1 / fixed.GetImageDimension())
    parameters = itk.ParameterObject.New()
    stages = []
    if job.linear == "affine":
        stages.append(parameters.GetDefaultParameterMap("affine"))
        stages[0]["AutomaticTransformInitialization"] = ["true"]
    stages.append(parameters.GetDefaultParameterMap("bspline", 4, 6 * voxel))
    stages[-1]["Metric"] = [metric, "TransformBendingEnergyPenalty"]
    stages[-1]["Metric1Weight"] = [str(5 * voxel**2)]
    stages[-1]["MaximumNumberOfIterations"] = ["500"]
    stages[-1]["NumberOfSpatialSamples"] = ["4096"]
    for stage in stages:
        stage["WriteResultImage"] = ["false"]
        stage["ITKTransformOutputFileNameExtension"] = ["h5"]
        parameters.AddParameterMap(stage)
    program = itk.ElastixRegistrationMethod.New(fixed, moving)
    program.SetParameterObject(parameters)
    if job.fixed_mask:
        program.SetFixedMask(itk.imread(str(job.fixed_mask), itk.UC))
    program.SetOutputDirectory(str(job.output))
    # The number of threads comes from ITK's environment variable alone: with two metrics, a number set here that
    # differs from ITK's global default crashes elastix 5.3.
    program.UpdateLargestPossibleRegion()
    return [{"file": f"TransformParameters.{number}.h5"} for number in range(len(stages))], []


# --- FireANTs --------------------------------------------------------------------------------------------------------
# Scales, iterations and rates of the package's own examples; masks and the inverse are left out. The warp it writes
# holds the affine part.


def fireants(job: Job) -> tuple[Steps, Steps]:
    """FireANTs' greedy registration on the CPU, of 3D images."""
    import torch

    images, affine, greedy = (import_module(f"fireants.{name}") for name in _FIREANTS)
    if _dimension(job.fixed) != 3:
        raise CannotDo("cannot write the transform of a 2D pair")
    torch.set_num_threads(job.threads)
    fixed, moving = (
        images.BatchedImages([images.Image.load_file(str(path), device="cpu")]) for path in (job.fixed, job.moving)
    )
    start = None
    if job.linear == "affine":
        stage = affine.AffineRegistration(
            [8, 4, 2, 1], [200, 100, 50, 20], fixed, moving, optimizer_lr=3e-3, init_rigid="cof", progress_bar=False
        )
        stage.optimize()
        start = stage.get_affine_matrix().detach()
    program = greedy.GreedyRegistration(
        scales=[4, 2, 1],
        iterations=[100, 50, 20],
        fixed_images=fixed,
        moving_images=moving,
        init_affine=start,
        progress_bar=False,
    )
    program.optimize()
    program.save_as_ants_transforms("warp.nii.gz")
    return [{"file": "warp.nii.gz"}], []


_FIREANTS = ("io.image", "registration.affine", "registration.greedy")


# --- ConvexAdam ------------------------------------------------------------------------------------------------------
# Its own defaults. It has no linear stage and gives a displacement in voxels of one common grid.


def convexadam(job: Job) -> tuple[Steps, Steps]:
    """ConvexAdam with MIND features, for 3D images on one grid."""
    import numpy as np
    import SimpleITK as sitk
    import torch

    fixed, moving = (sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (job.fixed, job.moving))
    if fixed.GetDimension() != 3:
        raise CannotDo("registers 3D images only")
    if not fixed.IsSameImageGeometryAs(moving):
        raise CannotDo("needs both images on one grid and has no linear stage")
    convex_adam_pt = import_module("convexAdam.convex_adam_MIND").convex_adam_pt
    torch.set_num_threads(job.threads)
    arrays = (torch.from_numpy(sitk.GetArrayFromImage(image)) for image in (fixed, moving))
    voxels = convex_adam_pt(*arrays, dtype=torch.float32, device=torch.device("cpu"))[..., ::-1]  # z, y, x → x, y, z
    step = np.array(fixed.GetDirection()).reshape(3, 3) * np.array(fixed.GetSpacing())
    warp = sitk.GetImageFromArray((voxels @ step.T).astype(np.float32), isVector=True)
    warp.CopyInformation(fixed)
    sitk.WriteImage(warp, "warp.nii")
    return [{"file": "warp.nii"}], []


PEERS = {
    "greedy": Peer("picsl_greedy", _greedy(""), greedy_inverse),
    "greedy-oasis": Peer("picsl_greedy", _greedy("-s 1.5mm 0.5mm"), greedy_inverse),
    "ants-quick": Peer("antspyx", _ants("antsRegistrationSyNQuick[so]", "antsRegistrationSyNQuick[s]")),
    "ants-mattes": Peer("antspyx", _ants("SyNOnly", "SyN")),
    "ants-syn": Peer("antspyx", _ants("antsRegistrationSyN[so]", "antsRegistrationSyN[s]")),
    "elastix": Peer("itk-elastix", partial(_elastix, metric="AdvancedNormalizedCorrelation")),
    "elastix-mi": Peer("itk-elastix", partial(_elastix, metric="AdvancedMattesMutualInformation")),
    "fireants": Peer("fireants", fireants),
    "convexadam": Peer("convexAdam", convexadam),
}


# --- what they share -------------------------------------------------------------------------------------------------


def _link(path: Path, name: str) -> str:
    """A name without spaces for a program that splits its command at them."""
    link = Path(name + "".join(path.suffixes[-2:] if path.name.endswith(".nii.gz") else path.suffixes[-1:]))
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return link.name


def _dimension(path: Path) -> int:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return int(reader.GetDimension())


def _product(numbers: Any) -> float:
    total = 1.0
    for number in numbers:
        total *= float(number)
    return total


def main() -> int:
    """Run one peer; the exit status is 0, or `CANNOT_DO`, or `NOT_INSTALLED`."""
    parser = argparse.ArgumentParser(description="Register a pair with another program.")
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--version", action="store_true", help="print the program's version, and do nothing else")
    parser.add_argument("--invert", action="store_true", help="add the inverse to a finished registration")
    parser.add_argument("--fixed", type=Path)
    parser.add_argument("--moving", type=Path)
    parser.add_argument("--fixed-mask", type=Path)
    parser.add_argument("--output", type=Path, help="folder, which must exist")
    parser.add_argument("--linear", choices=("none", "affine"), default="affine")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    peer = PEERS[options.name]
    try:
        if options.version:
            print(metadata.version(peer.distribution))
            return 0
        if not (options.fixed and options.moving and options.output):
            parser.error("--fixed, --moving and --output are needed")
        for variable in THREAD_VARIABLES:  # read by the libraries when they are imported, below
            os.environ[variable] = str(options.threads)
        fixed, moving, output = (path.resolve() for path in (options.fixed, options.moving, options.output))
        mask = options.fixed_mask.resolve() if options.fixed_mask else None
        os.chdir(output)
        job = Job(fixed, moving, mask, output, options.linear, options.threads)
        manifest = Path("transforms.json")
        if options.invert:
            if peer.invert is not None:
                content = json.loads(manifest.read_text())
                manifest.write_text(json.dumps(content | {"inverse": peer.invert(job)}))
            return 0
        forward, inverse = peer.run(job)
        manifest.write_text(json.dumps({"forward": forward, "inverse": inverse}))
    except CannotDo as reason:
        print(reason, file=sys.stderr)
        return CANNOT_DO
    except (ModuleNotFoundError, metadata.PackageNotFoundError) as error:
        print(f"not installed: {error}", file=sys.stderr)
        return NOT_INSTALLED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Register two files and keep the result as files that ITK, SimpleITK, ANTs and 3D Slicer read.

    python examples/register_two_paths.py FIXED MOVING PREFIX

Without arguments it makes two files with the brain phantom first. The same from a shell:
``itk-nir register --fixed FIXED --moving MOVING --output PREFIX --picture``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import SimpleITK as sitk

import itk_nir
from itk_nir.images import save_image
from itk_nir.phantom import brain_phantom
from itk_nir.plot import picture

OUTPUT = Path(__file__).resolve().parent / "output"


def main(arguments: list[str]) -> None:
    if len(arguments) not in (0, 3):
        sys.exit("give FIXED MOVING PREFIX, or nothing for the brain phantom")
    fixed, moving, prefix = arguments or phantom_files()

    result = itk_nir.register(fixed, moving, preset="fast")
    files = result.save(prefix)
    picture(result, f"{prefix}registration.png")
    for what, path in files.items():
        print(f"{what}: {path}")

    # What was written is enough to do the rest elsewhere: here SimpleITK warps the moving image anew.
    reference = sitk.ReadImage(fixed)
    warped = sitk.Resample(sitk.ReadImage(moving), reference, sitk.ReadTransform(str(files["composite"])))
    difference = sitk.Abs(sitk.Cast(warped, sitk.sitkFloat32) - sitk.ReadImage(str(files["warped"])))
    statistics = sitk.StatisticsImageFilter()
    statistics.Execute(difference)
    print(f"mean difference between SimpleITK's resampling and ours: {statistics.GetMean():.2g}")


def phantom_files() -> list[str]:
    OUTPUT.mkdir(exist_ok=True)
    phantom = brain_phantom(3, (80, 96, 80))
    paths = [str(OUTPUT / name) for name in ("fixed.nii.gz", "moving.nii.gz")]
    save_image(phantom.fixed, phantom.geometry, paths[0])
    save_image(phantom.moving, phantom.moving_geometry, paths[1])
    return [*paths, str(OUTPUT / "phantom_")]


if __name__ == "__main__":
    main(sys.argv[1:])

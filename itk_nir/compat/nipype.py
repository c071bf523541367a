"""nipype: ``itk-nir register`` as one of its interfaces.

Importing this module needs nipype (``pip install itk-nir[nipype]``). nipype's own interfaces of ANTs
(``nipype.interfaces.ants``) call programs; ``itk-nir install-programs`` puts those of this package in their place.

Examples
--------
>>> from itk_nir.compat.nipype import Register  # doctest: +SKIP
>>> node = Register(fixed_image="fixed.nii.gz", moving_image="moving.nii.gz", preset="fast")  # doctest: +SKIP
>>> node.run().outputs.warped_image  # doctest: +SKIP
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from itk_nir.cli.arguments import FORMATS
from itk_nir.saving import PICTURE, file_names

try:
    from nipype.interfaces.base import (
        CommandLine,
        CommandLineInputSpec,
        File,
        InputMultiObject,
        OutputMultiObject,
        Str,
        TraitedSpec,
        isdefined,
        traits,
    )
except ImportError as error:
    raise ImportError(f"itk_nir.compat.nipype needs nipype ({error}): pip install 'itk-nir[nipype]'") from error

__all__ = ["Register", "RegisterInputSpec", "RegisterOutputSpec"]


def _file(flag: str, desc: str, **more: Any) -> Any:
    return File(exists=True, argstr=f"{flag} %s", desc=desc, **more)


def _levels(kind: Any, flag: str, desc: str) -> Any:
    return traits.List(kind, argstr=f"{flag} %s", sep=",", desc=f"{desc}, one a level or one for all")


class RegisterInputSpec(CommandLineInputSpec):
    """What ``itk-nir register`` takes: images, masks, landmarks and labels, preset, options, and what is written."""

    fixed_image: Any = _file("--fixed", "image that stays", mandatory=True)
    moving_image: Any = _file("--moving", "image that is brought onto it", mandatory=True)
    output_prefix: Any = Str(
        "registered_", argstr="--output %s", usedefault=True, desc="start of the names of all files"
    )
    preset: Any = traits.Enum("default", "fast", "accurate", "paper", argstr="--preset %s", desc="how much work")
    linear: Any = traits.Enum(
        "affine", "similarity", "rigid", "translation", "none", argstr="--linear %s", desc="linear stage"
    )
    format: Any = traits.Enum(*FORMATS, argstr="--format %s", desc="whose transform files")
    fixed_mask: Any = _file("--fixed-mask", "above 0 where the fixed image counts")
    moving_mask: Any = _file("--moving-mask", "above 0 where the moving image counts")
    fixed_lesion: Any = _file("--fixed-lesion", "above 0 where the fixed image has no counterpart")
    moving_lesion: Any = _file("--moving-lesion", "above 0 where the moving image has no counterpart")
    rigid_regions: Any = _file("--rigid-regions", "label map of the fixed image: regions that keep their shape")
    volume_regions: Any = _file("--volume-regions", "label map of the fixed image: regions that keep their volume")
    fixed_landmarks: Any = _file("--fixed-landmarks", "points in the fixed image", requires=["moving_landmarks"])
    moving_landmarks: Any = _file(
        "--moving-landmarks", "the same points in the moving image", requires=["fixed_landmarks"]
    )
    fixed_labels: Any = _file("--fixed-labels", "label map of the fixed image", requires=["moving_labels"])
    moving_labels: Any = _file("--moving-labels", "label map of the moving image", requires=["fixed_labels"])
    initial_transform: Any = InputMultiObject(
        File(exists=True),
        argstr="--initial-transform %s...",
        desc="where to start, in the order fixed points meet them",
    )
    metric: Any = traits.List(Str, argstr="--metric %s", sep=",", desc="similarity metric, one or one a channel")
    linear_metric: Any = traits.List(Str, argstr="--linear-metric %s", sep=",", desc="that of the linear stage")
    iterations: Any = _levels(traits.Int, "--iterations", "most iterations")
    shrink_factors: Any = _levels(traits.Int, "--shrink-factors", "voxel sizes")
    smoothing_sigmas: Any = _levels(traits.Float, "--smoothing-sigmas", "Gaussian sigmas")
    radius: Any = _levels(traits.Int, "--radius", "radius of a windowed metric")
    smoothness: Any = _levels(traits.Float, "--smoothness", "weight of the penalty")
    restrict: Any = traits.List(
        traits.Int, argstr="--restrict %s", sep="x", desc="1 for each axis along which things may move, else 0"
    )
    settings: Any = traits.Dict(Str, traits.Any, argstr="%s", desc="any other option of the preset by its name")
    fill: Any = traits.Float(argstr="--fill %g", desc="value outside the moving image")
    nan: Any = traits.Enum("error", "mask", argstr="--nan %s", desc="what NaN and infinite voxels are")
    resample_shear: Any = traits.Bool(
        argstr="--resample-shear", desc="resample images whose axes are not perpendicular"
    )
    strict_input: Any = traits.Bool(argstr="--strict-input", desc="warnings about the input are errors")
    picture: Any = traits.Bool(argstr="--picture", desc="write a picture too")
    seed: Any = traits.Int(argstr="--seed %d", desc="of every random draw")
    device: Any = traits.Enum("auto", "cpu", "cuda", argstr="--device %s", desc="where to compute")
    num_threads: Any = traits.Int(1, argstr="--threads %d", usedefault=True, nohash=True, desc="CPU threads")


class RegisterOutputSpec(TraitedSpec):
    """The files that were written."""

    warped_image: Any = File(exists=True, desc="moving image on the fixed grid")
    forward_transforms: Any = OutputMultiObject(
        File(exists=True), desc="fixed → moving, which resampling of the moving image needs, in ANTs' order"
    )
    reverse_transforms: Any = OutputMultiObject(File(exists=True), desc="the other way round, in ANTs' order")
    reverse_invert_flags: Any = traits.List(traits.Bool, desc="which of the latter antsApplyTransforms inverts")
    transforms: Any = OutputMultiObject(File(exists=True), desc="all files of transforms")
    report: Any = File(exists=True, desc="report.json")
    picture: Any = File(exists=True, desc="registration.png")


class Register(CommandLine):
    """nipype's interface of ``itk-nir register``.

    Its inputs are the flags of the command (`RegisterInputSpec`), its outputs the files (`RegisterOutputSpec`):
    ``forward_transforms`` and ``reverse_transforms`` with ``reverse_invert_flags`` are what nipype's
    ``ApplyTransforms`` takes (``format="itk"`` or ``"ants"``).

    Examples
    --------
    >>> from itk_nir.compat.nipype import Register  # doctest: +SKIP
    >>> Register(fixed_image="f.nii.gz", moving_image="m.nii.gz", format="ants").cmdline  # doctest: +SKIP
    'itk-nir register --fixed f.nii.gz --format ants --moving m.nii.gz --threads 1 --output registered_'
    """

    _cmd = "itk-nir register"
    input_spec: Any = RegisterInputSpec
    output_spec: Any = RegisterOutputSpec

    def _format_arg(self, name: str, spec: Any, value: Any) -> Any:
        if name == "settings":
            return " ".join(f"--set {shlex.quote(f'{key}={value[key]}')}" for key in sorted(value))
        return super()._format_arg(name, spec, value)

    def _list_outputs(self) -> dict[str, Any]:
        kind = self.inputs.format if isdefined(self.inputs.format) else FORMATS[0]
        prefix = os.path.abspath(self.inputs.output_prefix)
        if self.inputs.output_prefix.endswith(os.sep):
            prefix += os.sep
        warped, report, *transforms = (prefix + name for name in file_names(kind))
        written = [path for path in transforms if os.path.exists(path)]
        outputs: dict[str, Any] = self.output_spec().get()
        outputs |= {"warped_image": warped, "report": report, "transforms": written}
        if kind == "itk":
            outputs |= {
                "forward_transforms": transforms[:1],
                "reverse_transforms": transforms[1:],
                "reverse_invert_flags": [False],
            }
        elif kind == "ants":
            affine, warp, inverse = transforms
            outputs |= {
                "forward_transforms": [path for path in (warp, affine) if path in written],
                "reverse_transforms": [path for path in (affine, inverse) if path in written],
                "reverse_invert_flags": [True, False][: 1 + (inverse in written)],
            }
        if isdefined(self.inputs.picture) and self.inputs.picture:
            outputs["picture"] = prefix + PICTURE
        return outputs

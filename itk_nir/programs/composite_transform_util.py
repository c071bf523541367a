"""``CompositeTransformUtil``: composite transforms put together and taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from itk_nir.cli.console import tell
from itk_nir.errors import InputError, OptionError, escaped
from itk_nir.programs.ants_common import version

_USAGE = """\
Usage: CompositeTransformUtil --disassemble <composite.h5> <prefix>
or     CompositeTransformUtil --assemble <composite.h5> <transform 1> <transform 2> ... <transform N>

The transforms of --assemble are listed in the order of the file, which is the reverse of antsApplyTransforms': the last
one is the first that a point of the reference meets (affine first, then the warp). --disassemble writes
prefix_00_AffineTransform.mat, prefix_01_DisplacementFieldTransform.nii.gz and so on, numbered in that order."""


def main(arguments: Sequence[str]) -> int:
    """Run a command line of CompositeTransformUtil.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: all files are complete; 1 where nothing was asked for.

    Raises
    ------
    InputError, OptionError
        Words or a file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        tell(_USAGE)
        return 0 if words else 1
    if words[0] == "--version":
        tell(version())
        return 0
    action, *names = words
    if action == "--assemble":
        if len(names) < 2:
            raise OptionError("--assemble needs the composite to write, and the transforms that it is made of")
        assemble(names[0], names[1:])
    elif action == "--disassemble":
        if len(names) != 2:
            raise OptionError("--disassemble needs the composite to read, and the prefix of the files to write")
        disassemble(names[0], names[1])
    else:
        raise OptionError(f"there is no action {escaped(action)}; give --assemble or --disassemble")
    return 0


def assemble(composite: str, transforms: Sequence[str]) -> None:
    """Write a composite transform.

    Parameters
    ----------
    composite : str
        The file to write, .h5.
    transforms : sequence of str
        Files, in ITK's order: the last one is the first that a fixed point meets.

    Raises
    ------
    InputError
        A file that cannot be used, or unlike dimensions.
    WriteError
        The disk is full, or refuses otherwise.
    """
    from itk_nir.places import check_output_file
    from itk_nir.transforms.formats.itk_h5 import write_h5
    from itk_nir.transforms.load import read_transform
    from itk_nir.transforms.model import CompositeTransform

    if not composite.lower().endswith((".h5", ".hdf5")):
        raise InputError(f"{composite}: a composite transform is written to .h5; end the name so")
    check_output_file(composite, transforms)
    parts = [read_transform(file) for file in reversed(transforms)]
    # Not `compose`, which multiplies neighbouring matrices: what was put in can be taken out again.
    write_h5(CompositeTransform(tuple(step for part in parts for step in part.transforms)), composite)


def disassemble(composite: str, prefix: str) -> list[Path]:
    """Write the parts of a composite transform.

    Parameters
    ----------
    composite : str
        The file.
    prefix : str
        Start of the names; ``_00_AffineTransform.mat`` and the like follow it.

    Returns
    -------
    list of Path
        The files, in ITK's order.

    Raises
    ------
    InputError
        A file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    from itk_nir.atomic import all_or_none, split_prefix
    from itk_nir.images import save_image
    from itk_nir.saving import check_output_prefix
    from itk_nir.transforms.formats.itk_text import write_itk_file
    from itk_nir.transforms.load import read_transform
    from itk_nir.transforms.model import CompositeTransform, LinearTransform

    steps = tuple(reversed(read_transform(composite).transforms))
    names = [
        f"_{k:02d}_AffineTransform.mat"
        if isinstance(step, LinearTransform)
        else f"_{k:02d}_DisplacementFieldTransform.nii.gz"
        for k, step in enumerate(steps)
    ]
    check_output_prefix(prefix, names, [composite])
    folder, start = split_prefix(prefix)
    with all_or_none(folder) as stage:
        for step, name in zip(steps, names, strict=True):
            if isinstance(step, LinearTransform):
                write_itk_file(CompositeTransform((step,)), stage / f"{start}{name}")
            else:
                save_image(step.vectors, step.geometry, stage / f"{start}{name}")
    return [folder / f"{start}{name}" for name in names]

"""``transformix``: transform parameter files of elastix, applied to images and points."""

from __future__ import annotations

from collections.abc import Sequence

from itk_nir.cli.signals import requests
from itk_nir.errors import OptionError
from itk_nir.programs.elastix_words import folder_of, informed, log_of, pairs, single, threads_of

#: Flag → what becomes of it; ``docs/coming_from_elastix.md`` shows the same table.
FLAGS = {
    "-in": "image to resample: `result.FORMAT`",
    "-out": "an existing folder for all files",
    "-tp": "transform parameter file, `.txt` or `.toml`",
    "-def": "points to map, a file of elastix or `.vtk`: `outputpoints.txt`, `outputpoints.vtk`; `all` for "
    "`deformationField.FORMAT`",
    "-ipp": "the old name of `-def`",
    "-jac": "`all` for `spatialJacobian.FORMAT`, the Jacobian determinant of every voxel",
    "-jacmat": "`all` for `fullSpatialJacobian.FORMAT`, its Jacobian matrix",
    "-threads": "CPU threads",
    "-loglevel": "`off`, `error`, `warning` or `info`",
    "-priority": "accepted without effect: the priority of a process is the system's",
}

_HELP = """transformix applies a transform on an input image and/or generates a deformation field.
The transform is specified in the transform-parameter file.
  --help, -h displays this message and exit
  --version  output version information and exit

Call transformix from the command line with mandatory arguments:
  -out      output directory
  -tp       transform-parameter file, only 1

Optional extra commands:
  -in       input image to deform
  -def      file containing input-image points; the point are transformed
            according to the specified transform-parameter file
            use "-def all" to transform all points from the input-image, which
            effectively generates a deformation field.
  -jac      use "-jac all" to generate an image with the determinant of the
            spatial Jacobian
  -jacmat   use "-jacmat all" to generate an image with the spatial Jacobian
            matrix at each voxel
  -loglevel set the log level to "off", "error", "warning", or "info" (default)
  -priority accepted without effect
  -threads  set the maximum number of threads of transformix

At least one of the options "-in", "-def", "-jac", or "-jacmat" should be given."""

_WORK = ("-in", "-def", "-ipp", "-jac", "-jacmat")


def main(arguments: Sequence[str]) -> int:
    """Run a command line of transformix.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: all files are complete.

    Raises
    ------
    InputError, OptionError
        A flag, parameter or file that cannot be used.
    """
    if informed(arguments, "transformix", _HELP):
        return 0
    given = pairs(arguments, FLAGS, "transformix")
    parameters = single(given, "-tp")
    if parameters is None:
        raise OptionError('No CommandLine option "-tp" given!')
    if not any(flag in given for flag in _WORK):
        raise OptionError(
            'At least one of the CommandLine options "-in", "-def", "-jac", or "-jacmat" should be given!'
        )
    if "-def" in given and "-ipp" in given:
        raise OptionError('Can not use both "-def" and "-ipp"! "-ipp" is deprecated, use only "-def".')
    for flag in ("-jac", "-jacmat"):
        if single(given, flag) not in (None, "all"):
            raise OptionError(f'{flag}: should be used as "{flag} all", got {single(given, flag)!r}')
    log = log_of(given, "transformix", folder_of(given))
    log.head(arguments)
    try:
        # Here, because it imports the libraries that read images: help and mistakes must not wait for that.
        from itk_nir.compat.elastix.transformix import transformix

        written = transformix(
            parameters, log.folder, image=single(given, "-in"), points=single(given, "-def") or single(given, "-ipp"),
            determinant="-jac" in given, matrix="-jacmat" in given, threads=threads_of(given),
        )  # fmt: skip
        requests().written = True
        for path in written:
            log.say(f"  wrote {path}")
    except BaseException as error:
        log.write(error)
        raise
    log.write()
    return 0

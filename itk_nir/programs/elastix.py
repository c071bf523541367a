"""``elastix``: its command lines and parameter files, run by this engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from itk_nir.cli.signals import requests
from itk_nir.errors import OptionError
from itk_nir.programs.elastix_words import folder_of, informed, log_of, numbered, pairs, single, surfaces_of, threads_of

#: Flag → what becomes of it; ``docs/coming_from_elastix.md`` shows the same table.
FLAGS = {
    "-f": "fixed image; `-f0`, `-f1`, … several, which are registered together",
    "-m": "moving image; `-m0`, `-m1`, … as many",
    "-out": "an existing folder for all files",
    "-p": "parameter file, `.txt` or `.toml`; several `-p` are stages, one after the other",
    "-fMask": "mask of the fixed image, above 0 where it counts; one for all of them",
    "-mMask": "mask of the moving image",
    "-fp": "points of the fixed image, for the metric `CorrespondingPointsEuclideanDistanceMetric`",
    "-mp": "points of the moving image",
    "-t0": "transform parameter file to start from; the first file of the result names it",
    "-threads": "CPU threads; no result depends on it",
    "-loglevel": "`off`, `error`, `warning` or `info`",
    "-priority": "accepted without effect: the priority of a process is the system's",
    "-fN": "as `-f`",
    "-mN": "as `-m`",
    "-fMaskN": "as `-fMask`: `-fMask0` alone",
    "-mMaskN": "as `-mMask`: `-mMask0` alone",
    "-fmeshXN": "`-fmeshA1`, `-fmeshB1`, …: closed surfaces of the fixed image, for the metric of that number, "
    "`MissingStructurePenalty`",
}

_HELP = """elastix registers a moving image to a fixed image; here the engine of itk-nir does.
The registration-process is specified in the parameter file.
  --help, -h displays this message and exit
  --version  output version information and exit
  --extended-version  output extended version information and exit

Call elastix from the command line with mandatory arguments:
  -f        fixed image (-f0, -f1, ... for several)
  -m        moving image (-m0, -m1, ... for several)
  -out      output directory
  -p        parameter file, elastix handles 1 or more "-p"

Optional extra commands:
  -fMask    mask for fixed image
  -mMask    mask for moving image
  -fp       point set for fixed image
  -mp       point set for moving image
  -fmeshA1  surface of what has no counterpart, for metric 1 (-fmeshB1, ... for several)
  -t0       parameter file for initial transform
  -loglevel set the log level to "off", "error", "warning", or "info" (default)
  -priority accepted without effect
  -threads  set the maximum number of threads of elastix

What becomes of every parameter of a parameter file: docs/coming_from_elastix.md of itk-nir."""


def main(arguments: Sequence[str]) -> int:
    """Run a command line of elastix.

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
        Before any work begins: a flag, parameter or file that cannot be used.
    """
    if informed(arguments, "elastix", _HELP):
        return 0
    given = pairs(arguments, FLAGS, "elastix")
    files = given.get("-p", [])
    if not files:
        raise OptionError('No CommandLine option "-p" given!')
    log = log_of(given, "elastix", folder_of(given))
    log.head(arguments)
    try:
        for line in _register(given, files, log.folder, log.say):
            log.say(line)
    except BaseException as error:
        log.write(error)
        raise
    log.write()
    return 0


def _register(
    given: dict[str, list[str]], files: Sequence[str], folder: Path, say: Callable[[str], None]
) -> Iterator[str]:
    """Register and write; what there is to say."""
    # Here, because they import the libraries that read images: help and mistakes must not wait for that.
    from itk_nir.compat.elastix.files import check_output_folder, write_result
    from itk_nir.compat.elastix.parameters import understand
    from itk_nir.compat.elastix.reading import read_maps
    from itk_nir.compat.elastix.registration import remarks
    from itk_nir.compat.elastix.run import run
    from itk_nir.compat.printing import printing

    masks = {side: numbered(given, f"-{side}Mask") for side in ("f", "m")}
    for side, names in masks.items():
        if len(names) > 1:
            raise OptionError(f"-{side}Mask: there are {len(names)} masks; one holds for all images")
    maps = read_maps(list(files))
    request = understand(maps)
    check_output_folder(folder, request, *(name for flag, names in given.items() if flag != "-out" for name in names))
    for number, name in enumerate(files):
        yield f'Parameter file {number}: "{name}" ({request.kinds[number]})'
    yield from remarks(request)
    outcome = run(
        numbered(given, "-f"), numbered(given, "-m"), maps,
        fixed_mask=next(iter(masks["f"]), None), moving_mask=next(iter(masks["m"]), None),
        start={"initial_transform_parameter_file_name": single(given, "-t0")},
        points={"fixed_point_set_file_name": single(given, "-fp"), "moving_point_set_file_name": single(given, "-mp")},
        surfaces=surfaces_of(given), threads=threads_of(given), callback=requests().stopping(printing(None, say)),
    )  # fmt: skip
    if outcome.result is not None:
        yield f"\n{outcome.result.report.verdict}"
    write_result(outcome, folder)
    requests().written = True
    yield f"\nThe transform parameter files and images are in {folder}"

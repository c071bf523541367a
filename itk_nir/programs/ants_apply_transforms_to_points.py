"""``antsApplyTransformsToPoints``: tables of points through lists of transforms."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from itk_nir.compat.options import OptionSupport, approximated, honoured
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.programs.ants_common import asked_about
from itk_nir.programs.ants_words import dimension_of, flags_of
from itk_nir.transforms.listed import Listed, chain_of, listed

#: Short name of a flag -> its long name.
NAMES: dict[str, str] = {
    "d": "dimensionality",
    "p": "precision",
    "f": "forantsr",
    "i": "input",
    "o": "output",
    "t": "transform",
}
#: Long name of a flag -> what becomes of it.
FLAGS: dict[str, OptionSupport] = {
    "dimensionality": honoured("2 or 3: so many columns of the table, the first ones, are coordinates"),
    "precision": approximated("taken; computed is in double precision with 0 and with 1"),
    "forantsr": approximated("0; 1 is for R's interface and is refused"),
    "input": honoured(
        "a .csv with a header, LPS mm; the columns behind the coordinates go out as they came in, words too; images of "
        "points (.mha, .nii.gz) are refused"
    ),
    "output": honoured("a .csv; it appears when it is complete"),
    "transform": honoured(
        "a file, `[file,0]`, `[file,1]`, `identity`, any number of them, the first listed the first that a point "
        "meets; the inverse of a field is computed, where ANTs fails"
    ),
}
#: Digits of a coordinate: all that a double has.
_DIGITS = 15


@dataclass(frozen=True)
class Request:
    """A command line of antsApplyTransformsToPoints.

    Attributes
    ----------
    dimension : int
        2 or 3.
    input, output : str
        Tables.
    transforms : tuple of Listed
        In the order in which they meet a point.
    """

    dimension: int
    input: str
    output: str
    transforms: tuple[Listed, ...]


def main(arguments: Sequence[str]) -> int:
    """Run a command line of antsApplyTransformsToPoints.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: the file is complete; 1 where nothing was asked for.

    Raises
    ------
    InputError, OptionError
        A flag, value or file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    answered = asked_about(arguments, help_text)
    if answered is not None:
        return answered
    run_request(read_request(arguments))
    return 0


def read_request(arguments: Sequence[str]) -> Request:
    """Read a command line; no file is opened.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    Request

    Raises
    ------
    InputError, OptionError
        An unknown flag, a value that cannot be used, or a flag that is missing.
    """
    flags = flags_of(arguments, NAMES, FLAGS, several=("transform",))
    values = {flag.name: flag for flag in flags}
    for name in ("dimensionality", "input", "output"):
        if name not in values:
            raise OptionError(f"--{name} is missing; -d, -i and -o are needed")
    dimension = dimension_of(values["dimensionality"].wanted().text)
    if "forantsr" in values and values["forantsr"].yes():
        raise OptionError("--forantsr 1 is refused: it is for R's interface; give .csv tables")
    names = []
    for name in ("input", "output"):
        value = values[name].wanted()
        file = value.parts[0] if value.bracketed and value.parts[1:] in ((), ("0",)) else value.text
        if not file.lower().endswith(".csv"):
            raise OptionError(f"--{name} {file} is refused: give a table, .csv (points in images are not taken)")
        names.append(file)
    transforms = tuple(listed(flag.wanted().text) for flag in flags if flag.name == "transform")
    return Request(dimension, names[0], names[1], transforms)


def run_request(request: Request) -> None:
    """Do what a command line asks for, and write its file.

    Parameters
    ----------
    request : Request
        The command line.

    Raises
    ------
    InputError
        A file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    from itk_nir.atomic import replacing
    from itk_nir.places import check_output_file
    from itk_nir.transforms.load import read_transform

    check_output_file(request.output)
    header, rows, points = read_table(request.input, request.dimension)
    chain = chain_of(request.transforms, read_transform, request.dimension)
    if chain.dimension != request.dimension:
        raise InputError(f"the transforms are {chain.dimension}D, but --dimensionality is {request.dimension}")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row, moved in zip(rows, chain.map(points).reshape(-1, request.dimension), strict=True):
        writer.writerow([*(f"{value:.{_DIGITS}g}" for value in moved), *row[request.dimension :]])
    with replacing(request.output) as temporary:
        Path(temporary).write_text(out.getvalue(), encoding="utf-8")


def read_table(name: str, dimension: int) -> tuple[list[str], list[list[str]], NDArray[np.float64]]:
    """Read a table whose first columns are the coordinates, as ANTs wants it.

    Parameters
    ----------
    name : str
        The file.
    dimension : int
        How many.

    Returns
    -------
    header : list of str
        Names of the columns.
    rows : list of list of str
        The cells.
    points : ndarray
        ``(N, d)``, LPS mm.

    Raises
    ------
    InputError
        No such table, columns of other names, or coordinates that are no numbers.
    """
    from itk_nir.places import check_input
    from itk_nir.points.table import lines_of, number

    file = Path(name)
    label = f"points file {file}"
    check_input(name, label)
    if not file.is_file():
        raise InputError(f"{label}: no such file; check the path")
    try:
        lines = csv.reader(lines_of(file.read_bytes(), file), skipinitialspace=True, strict=True)
        table = [row for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{label}: is no CSV text ({one_line(error)})") from error
    header, rows = (table[0], table[1:]) if table else ([], [])
    if len(header) < dimension:
        raise InputError(f"{label}: has {len(header)} columns, {dimension} coordinates are needed, as x,y,z,t,label")
    order = [cell.strip().lower() for cell in header[:dimension]]
    if order != list("xyz"[:dimension]):
        raise InputError(
            f"{label}: its first columns are {', '.join(order)[:100]}; they must be {', '.join('xyz'[:dimension])} (a "
            "header is needed)"
        )
    points = np.empty((len(rows), dimension))
    for k, row in enumerate(rows):
        where = f"{label}: row {k + 1}"
        if len(row) < dimension:
            raise InputError(f"{where} has {len(row)} cells, {dimension} coordinates are needed")
        points[k] = [number(cell, where) for cell in row[:dimension]]
    return header, rows, points


def help_text() -> str:
    """What ``--help`` prints.

    Returns
    -------
    str
    """
    short = {long: f"-{letter}, " for letter, long in NAMES.items()}
    lines = ["", "COMMAND: ", "     antsApplyTransformsToPoints"]
    lines += _wrapped(
        "Takes the command lines of ANTs' antsApplyTransformsToPoints. Points go the way opposite to images: give the "
        "inverse of what warps the image that they belong to."
    )  # fmt: skip
    lines += ["", "OPTIONS: ", "     --version ", "     -h, --help "]
    for name, support in FLAGS.items():
        lines += [f"     {short[name]}--{name} ", *_wrapped(f"{support.status}: {support.meaning}")]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * 10, subsequent_indent=" " * 10)

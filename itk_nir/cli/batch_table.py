"""The table of ``itk-nir batch``: its rows as calls of `register`, which of them are finished, and the summary."""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from itk_nir.cli.arguments import FORMATS, add_common, add_options, settings_of
from itk_nir.cli.register import add_inputs, all_options, check_images, inputs_of
from itk_nir.errors import InputError, ItkNirError, OptionError, one_line

#: Columns that are files, which lie where the table says: beside it, unless the path is absolute.
FILES = (
    "fixed", "moving", "fixed_mask", "moving_mask", "fixed_lesion", "moving_lesion", "rigid_regions", "volume_regions",
    "fixed_landmarks", "moving_landmarks", "fixed_labels", "moving_labels", "initial_transform",
)  # fmt: skip

#: Columns of the summary.
SUMMARY = (
    "line", "fixed", "moving", "output", "status", "verdict", "similarity_start", "similarity", "folded_percent",
    "inverse_error_mean_voxels", "seconds", "error", "warnings",
)  # fmt: skip

#: Words of a column that is a switch.
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


@dataclass(frozen=True)
class Row:
    """One pair of the table.

    Parameters
    ----------
    line : int
        Where it stands; the line of the names is 1.
    name : str
        Its prefix below the output folder, by which it is told.
    output : str
        The prefix of its files.
    kind : str
        Whose files they are.
    call : dict
        Arguments of `itk_nir.register`.
    """

    line: int
    name: str
    output: str
    kind: str
    call: dict[str, Any]

    def pair(self) -> dict[str, Any]:
        """What `itk_nir.register_many` takes."""
        return {**self.call, "output": self.output, "format": self.kind}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def add_row(parser: argparse.ArgumentParser) -> None:
    """Add what the command line says for all pairs and a row for its own."""
    add_inputs(parser)
    add_common(parser)
    add_options(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="itk",
        help="whose transform files, as of `itk-nir register` (default: itk)",
    )


def read_rows(options: argparse.Namespace) -> list[Row]:
    """The rows of the table, each with what the command line says for all.

    Raises
    ------
    InputError
        No table, or one that says what cannot be; the message names the line.
    """
    table = Path(options.table)
    names, lines = _cells(table)
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_row(parser)
    parser.add_argument("--output")
    flags = {a.option_strings[0].lstrip("-").replace("-", "_"): a for a in parser._actions}
    for name in names:
        if name in ("device", "threads"):
            raise InputError(f"{table}: column {name}: holds for the whole batch; give it as --{name}")
        if name not in flags:
            from itk_nir.options import nearest_name

            hint = nearest_name(name, flags)
            raise InputError(f"{table}: unknown column {name!r}{hint}; its columns are options of `itk-nir register`")
    from itk_nir.saving import result_files, shared_file

    rows, owners = [], dict[str, int]()
    for number, (line, cells) in enumerate(lines, 1):
        given = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
        try:
            row = _row(line, number, given, flags, parser, options)
            shared = shared_file(result_files(row.output, row.kind), owners, line)
            if shared is not None:
                raise InputError(
                    f"output {row.name}: its file {shared[0]} is that of line {shared[1]} too; give another"
                )
        except ItkNirError as error:
            raise InputError(f"{table}, line {line}: {one_line(error)}") from error
        rows.append(row)
    if not rows:
        raise InputError(f"{table}: has no rows; give one a pair below the names of the columns")
    return rows


def _cells(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and line and cells of every row that is not empty.

    Raises
    ------
    InputError
        No such table, or a row with more cells than columns.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"table {table}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"table {table}: cannot be read as text ({one_line(error)}); save it as CSV, UTF-8") from error
    head = text.partition("\n")[0]
    mark = max(",\t;", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    try:
        names = [name.strip().lstrip("-").replace("-", "_") for name in next(reader, [])]
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise InputError(f"table {table}, line {reader.line_num}: {one_line(error)}; save it as CSV") from error
    if len(set(names)) != len(names):
        raise InputError(f"table {table}: has a column twice: {', '.join(names)}; give each name once")
    for line, cells in lines:
        if len(cells) > len(names):
            raise InputError(
                f"table {table}, line {line}: has {len(cells)} cells for {len(names)} columns; put a cell with a "
                f"{mark!r} in it between quotation marks"
            )
        cells += [""] * (len(names) - len(cells))
    return names, lines


def _row(
    line: int, number: int, given: Mapping[str, str], flags: Mapping[str, argparse.Action],
    parser: argparse.ArgumentParser, common: argparse.Namespace,
) -> Row:  # fmt: skip
    """What the cells of a line and the command line say together."""
    own = copy.copy(common)
    own.output = None
    if "initial_transform" in given:
        own.initial_transform = None  # that of the row stands in the place of that of all
    folder, words = os.path.dirname(common.table), list[str]()
    for name, cell in given.items():
        flag = flags[name].option_strings[0]
        if flags[name].nargs == 0:
            if cell.lower() not in (*_YES, *_NO):
                raise OptionError(f"{name}: is yes or no, got {cell!r}")
            words += [flag] if cell.lower() in _YES else []
            continue
        # What may be given several times is a list of them here.
        several = cell.split(";") if isinstance(flags[name].default, list) or name == "initial_transform" else [cell]
        for text in several:
            words.append(f"{flag}={_placed(folder, text.strip(), name) if name in FILES else text.strip()}")
    parser.parse_args(words, own)
    check_images(own)
    call = {"fixed": own.fixed, "moving": own.moving, "preset": settings_of(own.preset, all_options(own))}
    call |= {name: value for name, value in inputs_of(own).items() if name not in ("device", "threads")}
    name = own.output or f"{number:04d}{os.sep}"
    output = os.path.join(common.output, name)
    from itk_nir.places import named_files
    from itk_nir.saving import check_result

    check_result(output, own.format, (), named_files(*(call.get(column) for column in FILES)))
    return Row(line, name, output, own.format, call)


def _placed(folder: str, text: str, column: str) -> str:
    """The file of a cell beside the table; of transforms ``[file,1]`` and ``identity`` too."""
    from itk_nir.places import with_file

    path = os.path.join(folder, text)
    if column != "initial_transform" or os.path.exists(path):
        return path
    return text if text.lower() == "identity" else with_file(text, lambda name: os.path.join(folder, name))


def check_across(table: str, written: Sequence[Row], rows: Sequence[Row]) -> None:
    """Refuse rows that would write over what another row reads.

    Raises
    ------
    InputError
        The line, the file and the input.
    """
    from itk_nir.places import InputFiles, named_files
    from itk_nir.saving import result_files

    inputs = InputFiles(named_files(*(row.call.get(column) for row in rows for column in FILES)))
    for row in written:
        try:
            inputs.refuse(result_files(row.output, row.kind))
        except InputError as error:
            raise InputError(f"{table}, line {row.line}: {one_line(error)}") from error


def finished(row: Row) -> dict[str, Any] | None:
    """The report of a pair that was registered before, as it would be now: the same call, inputs that are older than
    the report, and files that are as it says; else None.
    """
    from itk_nir.atomic import split_prefix
    from itk_nir.places import named_files
    from itk_nir.saving import REPORT, file_names

    folder, start = split_prefix(row.output)
    path = folder / f"{start}{REPORT}"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        made = path.stat().st_mtime
        whole = all((folder / name).stat().st_size == size for name, size in report["bytes"].items())
        right = whole and f"{start}{file_names(row.kind)[2]}" in report["bytes"]
        then = report["metrics"]["call"]
        stopped = report["metrics"]["stop"] == "cancelled"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not whole: it is done again
        return None
    if not right or stopped or _what_counts(then) != _what_counts(_call_now(row)):
        return None
    read = named_files(*(then["arguments"].get(name) for name in FILES))
    if any(os.path.getmtime(name) > made for name in read):
        return None
    found: dict[str, Any] = report["metrics"]
    return found


def _call_now(row: Row) -> dict[str, Any]:
    """How the report of a row says that it was called, in JSON's values."""
    import inspect

    from itk_nir.call import described
    from itk_nir.registration import register

    parameters = inspect.signature(register).parameters.values()
    usual = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    called: dict[str, Any] = json.loads(json.dumps(described({**usual, **row.call}, row.call["preset"])))
    return called


def _what_counts(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call without what its result does not depend on."""
    kept = {name: value for name, value in call["arguments"].items() if name not in ("device", "threads")}
    return {**call, "arguments": kept}


def summary_line(row: Row, status: str, report: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A line of the summary: what is known of a pair, from its report in JSON's values."""
    verdict = report.get("verdict") or {}
    numbers = {name: report.get(name) for name in SUMMARY[6:10]}
    about = {"line": row.line, "fixed": row.call["fixed"], "moving": row.call["moving"], "output": row.output}
    return {**about, "status": status, "verdict": verdict.get("grade"), **numbers, **more}


def write_summary(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the summary, complete or not at all, in the order of the table."""
    from itk_nir.atomic import replacing

    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SUMMARY, restval="")
        writer.writeheader()
        writer.writerows(sorted(lines, key=lambda line: int(line["line"])))

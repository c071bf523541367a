"""``itk-nir batch``: the pairs of a table, several at a time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itk_nir.cli.arguments import positive
from itk_nir.cli.batch_table import Row, add_row, check_across, finished, read_rows, summary_line, write_summary
from itk_nir.cli.console import FAILED, SELF_CHECK_FAILED, SUCCESS, UNSUPPORTED, report_line, say, tell
from itk_nir.cli.signals import requests
from itk_nir.errors import InputError, SelfCheckWarning, escaped, one_line

if TYPE_CHECKING:
    from itk_nir.many import PairResult

#: The table of what came of every pair, in the output folder.
SUMMARY_NAME = "summary.csv"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command ``batch`` to the subparsers of ``itk-nir``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "batch",
        help="register the pairs of a table",
        description="Register every pair of a table (CSV): one line a pair, columns fixed, moving and any other option "
        "of `itk-nir register` (fixed_mask, linear, iterations, ...), and output, the start of the names of its files "
        f"in FOLDER. Options below hold for all pairs; those of a line go first. Writes FOLDER/{SUMMARY_NAME} too.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("table", metavar="TABLE", help="CSV with the names of the columns in its first line")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where everything is written")
    parser.add_argument(
        "--in-flight", type=positive, metavar="N", help="pairs at the same time (default: what cores and memory allow)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip pairs whose files are there and were made by the same call"
    )
    parser.add_argument("--strict", action="store_true", help="exit status 3 unless every verdict is 'good'")
    add_row(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Register the pairs, print one line each, write the summary; the exit status."""
    rows = read_rows(options)
    folder = Path(options.output)
    _check_summary(folder, options.table)
    reports = [finished(row) if options.resume else None for row in rows]
    left = [row for row, report in zip(rows, reports, strict=True) if report is None]
    check_across(options.table, left, rows)
    from itk_nir.many import register_many

    lines = []
    for row, report in zip(rows, reports, strict=True):
        if report is None:
            continue
        seconds = report.get("seconds", {}).get("total")
        lines.append(summary_line(row, "skipped", report, seconds=seconds, error="", warnings=""))
        tell(f"{len(lines)}/{len(rows)} {escaped(row.name)}: skipped, is finished")
    statuses = {SUCCESS}
    pairs = [row.pair() for row in left]
    folder.mkdir(parents=True, exist_ok=True)
    for one in register_many(pairs, device=options.device, threads=options.threads, in_flight=options.in_flight):
        requests().written = True  # what has a name is complete, whenever it ends
        row = left[one.index]
        statuses.add(_told(f"{len(lines) + 1}/{len(rows)} {escaped(row.name)}", one, options.strict))
        lines.append(_line(row, one))
        write_summary(folder / SUMMARY_NAME, lines)
    write_summary(folder / SUMMARY_NAME, lines)
    found = [line["status"] for line in lines]
    counts = [f"{found.count(word)} {word}" for word in ("registered", "skipped", "failed") if word in found]
    tell(f"{', '.join(counts)}; wrote {escaped(str(folder / SUMMARY_NAME))}")
    return next(status for status in (FAILED, SELF_CHECK_FAILED, UNSUPPORTED, SUCCESS) if status in statuses)


def _check_summary(folder: Path, table: str) -> None:
    """Refuse a summary that could not be written, before the work.

    Raises
    ------
    InputError
        As of `itk_nir.saving.check_output_prefix`, among it the table itself, or a file of that name that is no
        summary.
    """
    from itk_nir.saving import check_output_prefix

    path = folder / SUMMARY_NAME
    check_output_prefix(f"{folder}/", [SUMMARY_NAME], [table])
    if path.is_file() and path.read_bytes()[:11] not in (b"line,fixed,", b""):
        raise InputError(f"{path}: is there already and is no summary of this program; move it away")


def _told(name: str, one: PairResult, strict: bool) -> int:
    """Print the line of a pair, and its warnings; the exit status that it asks for."""
    for warning in one.warnings:
        say(f"warning: {name}: {one_line(str(warning))}")
    if one.report is None or one.error is not None:
        error = one.error or RuntimeError("no report")
        tell(f"{name}: failed: {escaped(one_line(error))}")
        return FAILED
    tell(f"{name}: {report_line(one.report)}, {one.seconds:.1f} s")
    if any(isinstance(warning, SelfCheckWarning) for warning in one.warnings):
        return SELF_CHECK_FAILED
    verdict = one.report.verdict
    return UNSUPPORTED if strict and verdict is not None and verdict.grade != "good" else SUCCESS


def _line(row: Row, one: PairResult) -> dict[str, Any]:
    report = {} if one.report is None else one.report.as_dict()
    error = "" if one.error is None else escaped(one_line(one.error))
    told = "; ".join(one_line(str(warning)) for warning in one.warnings)
    status = "registered" if one.ok else "failed"
    return summary_line(row, status, report, seconds=round(one.seconds, 2), error=error, warnings=told)

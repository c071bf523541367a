"""elastix' parameter maps as text: its own form, ``(Key value "text")``, and TOML, ``Key = [value, "text"]``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from itk_nir.errors import InputError

ParameterMap = dict[str, list[str]]

_ENTRY = re.compile(r'^\(\s*([^\s"()]+)\s*(.*?)\s*\)$')
_VALUE = re.compile(r'"([^"]*)"|(\S+)')
_COMMENT = re.compile(r'("[^"]*")|//.*')
_TOML_ENTRY = re.compile(r'^\s*"?([A-Za-z0-9_-]+)"?\s*=\s*(.*?)\s*$')
#: One value of TOML as elastix writes it, with the comma behind it.
_TOML_VALUE = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s,"'\[\]#]+))\s*(?:,|$)""")
#: Where a line ends. Python knows more such places, all of which may stand within a comment.
_LINE_END = re.compile(r"\r\n|\r|\n")
_ESCAPE = re.compile(r'\\(["\\])')


def read_entries(path: Path) -> ParameterMap:
    """Read a parameter file of elastix: of a registration, or of a transform.

    Parameters
    ----------
    path : Path
        A file; one that ends in ``.toml`` is read as TOML.

    Returns
    -------
    dict
        Values as text by key. Those that the file names are not followed.

    Raises
    ------
    InputError
        No such file, or no such text.
    """
    if not path.is_file():
        raise InputError(f"elastix: {path}: no such file; check the path")
    raw = path.read_bytes()
    if b"\0" in raw:
        raise InputError(f"elastix: {path}: is no text; give a parameter file of elastix")
    # A comment may be in any encoding, and so may the name of a file.
    text = raw.decode("utf-8-sig", "surrogateescape")
    toml = path.suffix.lower() == ".toml"
    parameters: ParameterMap = {}
    for line in _toml_lines(text) if toml else _LINE_END.split(text):
        stripped = line.strip() if toml else _COMMENT.sub(lambda m: m[1] or "", line).strip()
        if not stripped:
            continue
        found = _toml_entry(stripped) if toml else _entry(stripped)
        if found is None:
            raise InputError(f"elastix: {path}: damaged or no parameter file, at {line.strip()[:60]!r}")
        key, values = found
        if key in parameters:
            raise InputError(f"elastix: {path}: damaged, it has {key} twice")
        parameters[key] = values
    return parameters


def _entry(line: str) -> tuple[str, list[str]] | None:
    match = _ENTRY.match(line)
    if match is None or line.count('"') % 2:
        return None
    return match[1], [quoted or plain for quoted, plain in _VALUE.findall(match[2])]


def _toml_lines(text: str) -> list[str]:
    """The lines without comments, with those of an array joined."""
    lines: list[str] = []
    depth = 0
    for line in _LINE_END.split(text):
        bare = re.sub(r"""("(?:[^"\\]|\\.)*"|'[^']*')|#.*""", lambda m: m[1] or "", line)
        outside = re.sub(r"""("(?:[^"\\]|\\.)*"|'[^']*')""", "", bare)
        if depth > 0:
            lines[-1] += " " + bare.strip()
        else:
            lines.append(bare)
        depth += outside.count("[") - outside.count("]")
    return lines


def _toml_entry(line: str) -> tuple[str, list[str]] | None:
    match = _TOML_ENTRY.match(line)
    if match is None or not match[2]:
        return None
    body = match[2]
    if body.startswith("[") and body.endswith("]"):
        body = body[1:-1].strip().removesuffix(",")
    values, at = [], 0
    while at < len(body):
        value = _TOML_VALUE.match(body, at)
        if value is None:
            return None
        values.append(_ESCAPE.sub(r"\1", value[1]) if value[1] is not None else value[2] or value[3] or "")
        at = value.end()
    return match[1], values


def as_text(parameters: Mapping[str, Sequence[str]]) -> str:
    """Write a parameter map in the form of elastix' files.

    Parameters
    ----------
    parameters : mapping of str to sequence of str
        The map.

    Returns
    -------
    str
        One line for each entry.

    Raises
    ------
    InputError
        A value with a quotation mark or a line break, which such files cannot hold.
    """
    lines = []
    for key, values in parameters.items():
        _refuse_quotes(key, values)
        lines.append(f"({' '.join([key, *(v if _is_number(v) else _quoted(v) for v in values)])})")
    return "\n".join(lines) + "\n"


def as_toml(parameters: Mapping[str, Sequence[str]]) -> str:
    """Write a parameter map as TOML, as elastix 5.2 and newer do where a parameter file asks for it.

    Parameters
    ----------
    parameters : mapping of str to sequence of str
        The map.

    Returns
    -------
    str
        One line for each entry.

    Raises
    ------
    InputError
        As of `as_text`.
    """
    lines = []
    for key, values in parameters.items():
        _refuse_quotes(key, values)
        shown = [v if _is_number(v) or v in ("true", "false") else _quoted(v.replace("\\", "\\\\")) for v in values]
        lines.append(f"{key} = {shown[0] if len(shown) == 1 else '[' + ', '.join(shown) + ']'}")
    return "\n".join(lines) + "\n"


def _refuse_quotes(key: str, values: Sequence[str]) -> None:
    # The file format knows no escape, so a quotation mark in a path cannot be written.
    if any('"' in v or "\n" in v for v in values):
        raise InputError(f"elastix: {key} cannot hold {list(values)}: parameter files have no quotation marks")


def _quoted(text: str) -> str:
    return f'"{text}"'


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

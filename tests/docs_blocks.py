"""Runs the Python code of a page of the docs, so that what a reader copies is known to work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
_FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def python_blocks(path: str | os.PathLike[str]) -> list[tuple[set[str], int, str]]:
    """The fenced ``python`` blocks of a page: their tags (words after ``python``), the line of their first line, code.

    A relative path is looked for in ``docs/``.
    """
    text = (DOCS / path).read_text(encoding="utf-8")
    return [(set(m[1].split()), text.count("\n", 0, m.start(2)) + 1, m[2]) for m in _FENCE.finditer(text)]


def run_blocks(
    path: str | os.PathLike[str], namespace: Mapping[str, Any] | None = None, *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """Run every ``python`` block of a page, in order, in one namespace, in the current folder.

    Parameters
    ----------
    path : path
        The page; a relative path is looked for in ``docs/``.
    namespace : mapping of str to object, optional
        Names that the page takes for granted (``fixed``, ``moving``, ...).
    without : sequence of str
        Blocks with one of these tags are compiled but not run, for what needs a program that is not there.

    Returns
    -------
    dict of str to object
        The namespace after the last block. A failure shows the page's own line.
    """
    blocks = python_blocks(path)
    assert blocks, f"{path} has no python block"
    names: dict[str, Any] = {"__name__": "__docs__", **(namespace or {})}
    ran = 0
    for tags, line, code in blocks:
        compiled = compile("\n" * (line - 1) + code, str(DOCS / path), "exec", dont_inherit=True)
        if not tags & set(without):
            exec(compiled, names)
            ran += 1
    assert ran, f"{path} has no block that runs without {', '.join(without)}"
    return names

"""Files that belong to another one: those that a header names, and those that lie beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

#: Bytes of a text header that are searched for the names of other files.
HEADER = 1 << 16
#: How the headers of images, and elastix' parameter files, name other files.
_NAMED = {
    ".mhd": re.compile(rb"^ElementDataFile\s*=[ \t]*(\S.*?)[ \t]*\r?$", re.MULTILINE),
    ".nhdr": re.compile(rb"^data ?file:[ \t]*(\S.*?)[ \t]*\r?$", re.MULTILINE),
    ".txt": re.compile(rb'^\((?:InitialTransformParameters?FileName|DeformationFieldFileName) "([^"]*)"\)', re.M),
    ".toml": re.compile(rb'^(?:InitialTransformParameters?FileName|DeformationFieldFileName) = "([^"]*)"', re.M),
}
#: Endings of files that lie beside one of another ending and belong to it.
_BESIDE = {
    ".hdr": (".img", ".img.gz"),
    ".img": (".hdr",),
    ".hdr.gz": (".img", ".img.gz"),
    ".img.gz": (".hdr", ".hdr.gz"),
    ".mhd": (".raw", ".zraw"),
    ".nhdr": (".raw", ".raw.gz"),
}


def parts_of(path: str, seen: set[str]) -> Iterator[str]:
    """Give a file, and those that it names or that belong to it.

    Parameters
    ----------
    path : str
        A file.
    seen : set of str
        Files that were given already; those that are given now are added.

    Yields
    ------
    str
        Names; the files need not exist.
    """
    if path in seen:
        return
    seen.add(path)
    yield path
    yield from companions(path)
    pattern = _NAMED.get(os.path.splitext(path)[1].lower())
    if pattern is None or not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        head = file.read(HEADER)
    folder = os.path.dirname(path)
    for match in pattern.finditer(head):
        value = os.fsdecode(match[1])
        if value in ("", "LOCAL", "NoInitialTransform"):
            continue
        # A list of files follows line by line; a pattern of numbers has its numbers behind it.
        listed = os.fsdecode(head[match.end() :]).split("\n") if value.split()[0] == "LIST" else [value]
        for line in (one.strip() for one in listed):
            name = line.split(" ")[0] if "%" in line else line
            if not name:
                continue
            if "%" in name:
                yield from map(str, Path(folder or ".").glob(re.sub(r"%\d*d", "*", name)))
            else:
                yield from parts_of(os.path.join(folder, name), seen)


def companions(path: str) -> Iterator[str]:
    """Give the files that belong to another by their names: the voxels of a ``.mhd``.

    Parameters
    ----------
    path : str
        A file.

    Yields
    ------
    str
        Names; the files need not exist.
    """
    for ending, others in _BESIDE.items():
        if path.lower().endswith(ending):
            for other in others:
                yield path[: -len(ending)] + other

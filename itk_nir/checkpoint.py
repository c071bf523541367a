"""Checkpoints of a long registration in a folder: what was stopped is taken up again, and ends in the same bits.

Each is one file of named arrays and text (safetensors, no code), complete or not there, with a checksum. The last two
are kept: where the newer one is damaged, the one before is used.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.atomic import replacing
from itk_nir.engine.journal import Entry, Journal
from itk_nir.errors import InputError, OptionError, one_line, warn_caller
from itk_nir.identity import checksum, fingerprint
from itk_nir.options import shown
from itk_nir.problem import Problem
from itk_nir.settings import Settings

#: Key of the header's text that is ours, and the number of the layout below it.
KEY, LAYOUT = "itk-nir checkpoint", 5

#: How many files are kept.
KEPT = 2

_NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")


class _Damaged(Exception):
    """A file that holds no whole checkpoint."""


@dataclass
class Checkpoints:
    """The checkpoints of one registration.

    Parameters
    ----------
    folder : Path
        Where they are.
    about : dict
        What the result depends on, see `itk_nir.identity.fingerprint`.
    number : int
        Of the last file.
    failed : bool
        Whether one could not be written: it is told once, and the registration goes on.
    entries : dict of str to Entry
        What has been taken up or written, by name.
    """

    folder: Path
    about: dict[str, Any]
    number: int = 0
    failed: bool = False
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: str | os.PathLike[str], problem: Problem) -> Checkpoints:
        """Those of a folder, which is made where there is none.

        Parameters
        ----------
        folder : path
            Where they are, or shall be.
        problem : Problem
            What is registered.

        Returns
        -------
        Checkpoints

        Raises
        ------
        InputError
            No folder, one that cannot be written, one with the checkpoints of another registration, or with something
            under the name of a checkpoint that is no file.
        OptionError
            A preset that has none.
        """
        if not isinstance(folder, (str, os.PathLike)) or not str(os.fspath(folder)):
            raise OptionError(f"checkpoint is the name of a folder, got {shown(folder)}")
        if problem.settings.deformable.kind != "deformable":
            raise OptionError(f"preset {problem.settings.preset!r} has no checkpoints; leave checkpoint out")
        path = Path(os.fsdecode(folder))
        try:
            path.mkdir(parents=True, exist_ok=True)
            with replacing(path / "checkpoint-test") as temporary:
                temporary.write_bytes(b"")
            (path / "checkpoint-test").unlink()
        except OSError as error:
            raise InputError(f"checkpoint {path}: no folder that can be written ({one_line(error)})") from error
        out = cls(path, fingerprint(problem))
        out._take_up()
        return out

    def _files(self) -> list[tuple[int, Path]]:
        """Number and name of every file, the newest first."""
        found = [(_NAME.fullmatch(p.name), p) for p in self.folder.iterdir()]
        return sorted(((int(m[1]), p) for m, p in found if m is not None), reverse=True)

    def _take_up(self) -> None:
        """Read the newest that is whole.

        Raises
        ------
        InputError
            It belongs to another registration, or something of that name is a folder or a pipe.
        """
        files = self._files()
        for _, path in files:
            # It could neither be read nor removed in the end; a pipe would be waited for without end.
            if path.exists() and not path.is_file():
                raise InputError(f"checkpoint {path}: is a folder or a pipe, no file; remove it or give another folder")
        self.number = files[0][0] if files else 0
        for _, path in files:
            try:
                about, entries = read(path)
            except _Damaged as error:
                warn_caller(f"checkpoint {path}: is damaged ({error}); the one before is used, if there is one")
                continue
            unlike = [name for name in {**about, **self.about} if about.get(name) != self.about.get(name)]
            if unlike:
                raise InputError(
                    f"checkpoint {self.folder}: belongs to a registration with another {', '.join(unlike[:4])}"
                    f"{' and more' if len(unlike) > 4 else ''}; give another folder, or empty this one"
                )
            self.entries = entries
            return

    def journal(self, seconds: float) -> Journal:
        """What the engine writes into and is taken up from.

        Parameters
        ----------
        seconds : float
            Between two checkpoints within a level, at least.

        Returns
        -------
        Journal
        """
        return Journal(self.write, self.entries, seconds)

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Write a checkpoint; older ones than the one before it go.

        Parameters
        ----------
        entries : mapping of str to Entry
            What is known so far.
        """
        self.number += 1
        path = self.folder / f"checkpoint-{self.number:06d}.safetensors"
        try:
            write(path, self.about, entries)
            for _, old in self._files()[KEPT:]:
                old.unlink(missing_ok=True)
        except (OSError, InputError) as error:
            if not self.failed:
                self.failed = True
                warnings.warn(
                    f"checkpoint {path}: cannot be written ({one_line(error)}); the registration goes on without",
                    UserWarning, stacklevel=2,
                )  # fmt: skip

    def clear(self) -> None:
        """Remove the files: the registration has ended well.

        Warns
        -----
        UserWarning
            They cannot be removed; the result is whole without.
        """
        try:
            for _, path in self._files():
                path.unlink(missing_ok=True)
        except OSError as error:
            warn_caller(f"checkpoint {self.folder}: cannot be emptied ({one_line(error)}); remove its files yourself")


def chosen_metrics(settings: Settings) -> dict[str, Any]:
    """What ``metric="auto"`` was settled to.

    Parameters
    ----------
    settings : Settings
        With the metrics that were chosen.

    Returns
    -------
    dict
        JSON's values, for `with_chosen_metrics`.
    """
    deformable, linear = settings.deformable, settings.linear
    metric = linear.linear_metric
    return {
        "metric": deformable.metric,
        "smoothness": deformable.smoothness,
        "linear_metric": metric if isinstance(metric, str) else None,
    }


def with_chosen_metrics(settings: Settings, chosen: Mapping[str, Any]) -> Settings:
    """Settings with the metrics that were chosen.

    Parameters
    ----------
    settings : Settings
        As the registration was given.
    chosen : mapping
        Of `chosen_metrics`.

    Returns
    -------
    Settings
    """
    smoothness = tuple(chosen["smoothness"])
    deformable = replace(settings.deformable, metric=chosen["metric"], smoothness=smoothness)
    linear = settings.linear
    if chosen["linear_metric"] is not None:
        linear = replace(linear, linear_metric=chosen["linear_metric"])
    return replace(settings, deformable=deformable, linear=linear)


def checked_seconds(seconds: Any) -> float:
    """The time between two checkpoints.

    Parameters
    ----------
    seconds : object
        What the caller gave.

    Returns
    -------
    float

    Raises
    ------
    OptionError
        No number of at least 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not float(seconds) >= 0:
        raise OptionError(f"checkpoint_seconds is a number of at least 0, got {shown(seconds)}")
    return float(seconds)


def write(path: Path, about: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """Write a file of entries; it appears complete or not at all.

    Parameters
    ----------
    path : Path
        The file.
    about : mapping
        JSON's values: what they belong to.
    entries : mapping of str to Entry
        What it holds.

    Raises
    ------
    OSError
        It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    values = {name: entry.values for name, entry in entries.items()}
    arrays = {f"{n}/{key}": np.ascontiguousarray(a.numpy()) for n, e in entries.items() for key, a in e.arrays.items()}
    text = json.dumps({"layout": LAYOUT, "about": about, "entries": values})
    header = {KEY: text, "sha256": checksum(text, arrays)}
    with replacing(path) as temporary:
        try:
            save_file(arrays, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(one_line(error)) from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Read a file of `write`.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        What the entries belong to.
    dict of str to Entry
        The entries.

    Raises
    ------
    _Damaged
        It is not what was written.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, framework="numpy") as opened:
            header = opened.metadata() or {}
        arrays: dict[str, NDArray[Any]] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _Damaged(one_line(error)) from error
    if header.get("sha256") != checksum(header.get(KEY), arrays):
        raise _Damaged("its checksum is another")
    try:
        content = json.loads(header[KEY])
        if content["layout"] != LAYOUT:
            raise _Damaged(f"its layout is {content['layout']}, of another version")
        about, entries = dict(content["about"]), {n: Entry(dict(v)) for n, v in content["entries"].items()}
        for key, array in arrays.items():
            name, _, rest = key.partition("/")
            entries[name].arrays[rest] = torch.from_numpy(array)
    # Whoever writes such a file may make the checksum right, too.
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _Damaged(f"it is not laid out as a checkpoint is ({one_line(error)})") from error
    return about, entries
